"""Movements against PyTorch: shapes, views, joins and splits, sliding windows; each derivative is the movement backwards.

Read next: `test_index.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from tests.support import arrays, check_op, rng, shapes


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.asarray(rng(seed).uniform(-2, 2, shape))


# --- shapes


@pytest.mark.parametrize(
    ("shape", "new"),
    [
        ((2, 3), (3, 2)),
        ((2, 3), (6,)),
        ((6,), (2, -1)),
        ((), (1, 1)),
        ((1,), ()),
        ((0, 3), (3, 0)),
        ((2, 3, 4), (4, -1)),
        ((2, 3), (2, 1, 3, 1)),
        ((2, 0), (0,)),
    ],
)
def test_reshape(shape: tuple, new: tuple):
    check_op(lambda x: ops.reshape(x, new), lambda x: torch.reshape(x, new), [draw(shape)])
    assert Tensor(draw(shape)).reshape(*new).shape == Tensor(draw(shape)).reshape(new).shape == np.zeros(shape).reshape(new).shape


@given(shapes(), st.randoms(use_true_random=False), st.booleans())
def test_transpose(shape: tuple, random: Any, negative: bool):
    axes = list(range(len(shape)))
    random.shuffle(axes)
    axes = tuple(a - len(shape) if negative and k % 2 else a for k, a in enumerate(axes))
    check_op(lambda x: ops.transpose(x, axes), lambda x: x.permute(axes), [draw(shape)])
    check_op(lambda x: x.T, lambda x: x.permute(tuple(range(x.ndim))[::-1]), [draw(shape)])
    if shape:
        assert Tensor(draw(shape)).transpose(*axes).shape == draw(shape).transpose(axes).shape


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (-1, 0), (-1, -1), (0, -2)])
def test_swapaxes(axes: tuple):
    check_op(lambda x: x.swapaxes(*axes), lambda x: x.swapaxes(*axes), [draw((2, 3, 4))])


@pytest.mark.parametrize(("shape", "start"), [((2, 3, 4), 0), ((2, 3, 4), 1), ((2, 3, 4), -2), ((2, 3, 4), 2), ((), 0), ((0, 3), 0)])
def test_flatten(shape: tuple, start: int):
    check_op(lambda x: ops.flatten(x, start), lambda x: torch.flatten(x, start), [draw(shape)])


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3))
def test_broadcast_to_and_its_adjoint(found: Any):
    small = found.input_shapes[0]
    large = found.result_shape
    check_op(lambda x: ops.broadcast_to(x, large), lambda x: torch.broadcast_to(x, large), [draw(small)])
    check_op(lambda x: ops.sum_to(x, small), lambda x: x.sum_to_size(small), [draw(large)])


@given(arrays(shapes(min_dims=1)), st.data())
def test_pad(x: np.ndarray, data: st.DataObject):
    widths = tuple((data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in x.shape)
    value = data.draw(st.sampled_from([0.0, 1.5, -np.inf]))
    flat = [n for pair in reversed(widths) for n in pair]
    with np.errstate(invalid="ignore"):  # the comparison subtracts infinities
        check_op(lambda x: ops.pad(x, widths, value), lambda x: torch.nn.functional.pad(x, flat, value=value), [x])


# --- joins and splits


@settings(max_examples=20)
@given(shapes(min_dims=1, min_side=0, max_side=3), st.data())
def test_concatenate(shape: tuple, data: st.DataObject):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    pieces = []
    for k, length in enumerate(lengths):
        piece = list(shape)
        piece[axis] = length
        pieces.append(draw(tuple(piece), k))
    check_op(lambda *xs: ops.concatenate(xs, axis), lambda *xs: torch.cat(xs, axis), pieces)


@settings(max_examples=20)
@given(shapes(), st.data(), st.integers(1, 3))
def test_stack(shape: tuple, data: st.DataObject, count: int):
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    check_op(lambda *xs: ops.stack(xs, axis), lambda *xs: torch.stack(xs, axis), [draw(shape, k) for k in range(count)])


@settings(max_examples=20)
@given(shapes(min_dims=1, min_side=1), st.data())
def test_unbind(shape: tuple, data: st.DataObject):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    check_op(lambda x: ops.unbind(x, axis), lambda x: torch.unbind(x, axis), [draw(shape)], differentiable=shape[axis])


def test_unbind_with_slices_that_nothing_uses():
    x = Tensor(draw((3, 2)), requires_grad=True)
    first, _, last = x.unbind()
    (first * 2.0 + last * last).sum().backward()
    assert_array_equal(x.grad.numpy(), np.stack([[2.0, 2.0], [0.0, 0.0], 2 * x.numpy()[2]]))
    second = minigrad.grad(minigrad.grad((x.unbind()[1] ** 3).sum(), x, create_graph=True)[0].sum(), x)[0]
    np.testing.assert_allclose(second.numpy(), [[0, 0], 6 * x.numpy()[1], [0, 0]], rtol=1e-12)


def test_the_slices_of_a_vector_are_arrays():
    for piece in Tensor(np.array([1.0, 2.0]), requires_grad=True).unbind():
        assert type(piece.data) is np.ndarray and piece.shape == () and piece.requires_grad


def test_unbind_of_nothing():
    assert Tensor(np.zeros((0, 2)), requires_grad=True).unbind() == ()


def test_one_tensor_several_times():
    x = Tensor(draw((2, 2)), requires_grad=True)
    upstream = draw((6, 2), 1)
    ops.concatenate([x, x, x]).backward(Tensor(upstream))
    np.testing.assert_allclose(x.grad.numpy(), upstream[:2] + upstream[2:4] + upstream[4:], rtol=1e-14)


@pytest.mark.parametrize("join", [ops.concatenate, ops.stack])
def test_joining_mixed_dtypes_follows_the_rule_of_arithmetic(join: Any):
    """Integers beside float32 make float32, not float64; and every gradient has its tensor's dtype."""
    assert join([Tensor([1.0]), Tensor(np.array([2]))]).dtype == np.float32
    single, double = Tensor([1.0], requires_grad=True), Tensor(np.array([2.0]), requires_grad=True)
    joined = join([single, double])
    assert joined.dtype == np.float64
    joined.backward(Tensor(np.asarray(rng(0).uniform(-1, 1, joined.shape))))
    assert single.grad.dtype == np.float32 and double.grad.dtype == np.float64


def test_joining_arrays_and_tensors():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    joined = ops.concatenate([np.array([0.0]), x])
    joined.backward(Tensor(np.array([5.0, 6.0, 7.0])))
    assert_array_equal(joined.numpy(), [0.0, 1.0, 2.0])
    assert_array_equal(x.grad.numpy(), [6.0, 7.0])


# --- windows


WINDOWS = [
    ((3, 3), (1, 1), (1, 1)),
    ((2, 3), (2, 1), (1, 1)),
    ((2, 2), (2, 2), (1, 1)),
    ((2, 2), (3, 2), (1, 1)),
    ((2, 2), (1, 2), (2, 3)),
    ((1, 1), (2, 2), (1, 1)),
    ((3, 2), (1, 1), (2, 1)),
]


def torch_windows(x: torch.Tensor, kernel_size: tuple, stride: tuple, dilation: tuple) -> torch.Tensor:
    """torch's unfold gives (B, C * kh * kw, Ho * Wo)."""
    (batch, height, _, channels), (kh, kw) = x.shape, kernel_size
    columns = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), kernel_size, dilation, 0, stride)
    rows = (height - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    return columns.reshape(batch, channels, kh, kw, rows, -1).permute(0, 4, 5, 2, 3, 1)


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), WINDOWS)
@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (1, 7, 5, 1)])
def test_windows(shape: tuple, kernel_size: tuple, stride: tuple, dilation: tuple):
    values = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    check_op(lambda x, **v: ops.windows(x, **v), lambda x: torch_windows(x, kernel_size, stride, dilation), [draw(shape)], values)


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), WINDOWS)
def test_fold_is_the_adjoint_of_windows(kernel_size: tuple, stride: tuple, dilation: tuple):
    shape = (2, 6, 5, 2)
    x = torch.tensor(draw(shape), requires_grad=True)
    seen = torch_windows(x, kernel_size, stride, dilation)
    y = draw(tuple(seen.shape), 1)

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(seen, x, y, create_graph=True, retain_graph=True)[0]

    check_op(lambda y: ops.fold(y, shape, stride, dilation), adjoint, [y])


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_windows_see_what_they_should(batch: int, side: int, kernel: int, stride: int, dilation: int):
    assume(side > dilation * (kernel - 1))
    x = draw((batch, side, side + 1, 2))
    seen = ops.windows(Tensor(x), (kernel, 1), (stride, 2), (dilation, 1)).numpy()
    for row in range(seen.shape[1]):
        for column in range(seen.shape[2]):
            for k in range(kernel):
                assert_array_equal(seen[:, row, column, k, 0], x[:, row * stride + k * dilation, column * 2])
    assert seen.shape[1] == (side - dilation * (kernel - 1) - 1) // stride + 1
    assert seen.shape[2] == math.ceil((side + 1) / 2)


def test_windows_of_no_images():
    x = Tensor(np.zeros((0, 4, 4, 2)), requires_grad=True)
    y = ops.windows(x, (3, 3))
    assert y.shape == (0, 2, 2, 3, 3, 2)
    assert minigrad.grad(y, x, y)[0].shape == x.shape


# --- views


VIEWS = {
    "reshape": lambda x: x.reshape(3, 2),
    "transpose": lambda x: x.T,
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "slice": lambda x: x[:, 1:],
    "row": lambda x: x[1],
    "new axis": lambda x: x[None, ..., ::2],
    "unbind": lambda x: x.unbind(1)[2],
    "iteration": lambda x: list(x)[1],
    "broadcast_to": lambda x: x.broadcast_to((4, 2, 3)),
    "windows": lambda x: ops.windows(x[None, :, :, None], (2, 2)),
    "detach": lambda x: x.detach(),
    "identity": lambda x: ops.identity(x),
    "a view of a view": lambda x: x.T[1:].reshape(1, 2, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_share_memory_and_version(name: str):
    x = Tensor(np.arange(6.0).reshape(2, 3))
    y = VIEWS[name](x)
    assert np.shares_memory(x.data, y.data)
    assert y.version is x.version
    x[...] = x.numpy() + 10.0
    assert y.version[0] == 1 and (y.numpy() >= 10).all()


COPIES = {
    "integer array": lambda x: x[[0, 1]],
    "boolean array": lambda x: x[x > -1],
    "arithmetic": lambda x: x + 0.0,
    "reshape that must copy": lambda x: x.T.reshape(6),
    "constructor": lambda x: Tensor(x),
    "sum over nothing": lambda x: x.sum(()),
    "concatenate": lambda x: ops.concatenate([x]),
    "pad by nothing": lambda x: ops.pad(x, ((0, 0), (0, 0))),
    "sum_to the same shape": lambda x: ops.sum_to(x, (2, 3)),
    "clip": lambda x: x.clip(),
    "relu": lambda x: x.relu(),
    "cast": lambda x: x.astype(np.float32),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_share_neither(name: str):
    x = Tensor(np.arange(6.0).reshape(2, 3))
    y = COPIES[name](x)
    assert not np.shares_memory(x.data, y.data)
    assert y.version is not x.version


# --- errors


def test_errors_carry_the_numbers():
    x = Tensor(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"size 6 into shape \(4,\)"):
        x.reshape(4)
    with pytest.raises(ValueError, match=r"transpose: axes \(0,\) do not order the 2 axes of shape \(2, 3\); .* swapaxes"):
        x.transpose(0)
    with pytest.raises(ValueError, match="repeated axis"):
        x.transpose(0, 0)
    with pytest.raises(ValueError, match=r"swapaxes: there is no axis 2 in a tensor of 2 axes \(shape \(2, 3\)\)"):
        x.swapaxes(0, 2)
    with pytest.raises(ValueError, match=r"\(2,3\).*\(2,4\)"):
        x.broadcast_to((2, 4))
    with pytest.raises(ValueError, match=r"pad: 1 pairs of widths for 2 axes \(shape \(2, 3\)\)"):
        ops.pad(x, ((1, 1),))
    with pytest.raises(ValueError, match="negative"):
        ops.pad(x, ((-1, 0), (0, 0)))
    with pytest.raises(ValueError, match="windows: a window of \\(4, 1\\) with dilation \\(1, 1\\) does not fit into an image of 3 x 5"):
        ops.windows(Tensor(np.zeros((1, 3, 5, 2))), (4, 1))
    with pytest.raises(ValueError, match="concatenate: needs at least one tensor"):
        ops.concatenate([])
    with pytest.raises(ValueError, match="size 3 and .* size 2"):
        ops.concatenate([x, Tensor(np.zeros((2, 2)))])
    with pytest.raises(ValueError, match="same shape"):
        ops.stack([x, Tensor(np.zeros((2, 2)))])
