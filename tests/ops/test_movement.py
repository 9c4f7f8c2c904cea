"""Movements against PyTorch: shapes, views, joins and splits, sliding windows; each derivative is the movement backwards.

Read next: `test_index.py`.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from minigrad import functional as F
from tests.proofs import Case, Proof, Refusal, check_op
from tests.support import assert_close, growing_shapes, lengths, rng, shapes


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.asarray(rng(seed).uniform(-2, 2, shape))


seeds = st.integers(0, 2**32 - 1)


# --- proofs: shapes


@st.composite
def reshapes(draw_from: Any) -> Case:
    """A shape, and another for as many numbers: the same lengths in another order, some multiplied together, with axes of length 1 between them."""
    shape = draw_from(shapes())
    lengths = draw_from(st.permutations([*shape, *[1] * draw_from(st.integers(0, 2))]))
    new: list[int] = []
    for length in lengths:
        if new and draw_from(st.booleans()):
            new[-1] *= length
        else:
            new.append(length)
    if new and 0 not in new and draw_from(st.booleans()):
        new[draw_from(st.integers(0, len(new) - 1))] = -1
    return Case([draw(shape, draw_from(seeds))], {"shape": tuple(new)})


class TestReshape(Proof):
    op, in_torch, cases = ops.reshape, torch.reshape, reshapes()
    examples = [
        Case([draw((2, 3, 4))], {"shape": (4, -1)}),
        Case([draw(())], {"shape": (1, 1)}),
        Case([draw((1,))], {"shape": ()}),
        Case([draw((0, 3))], {"shape": (3, 0)}),
    ]
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(Case([np.zeros((2, 3))], {"shape": (4,)}), ValueError, r"size 6 into shape \(4,\)"),
        Refusal(Case([np.zeros((2, 3))], {"shape": (-1, -1)}), ValueError, "one unknown dimension"),
    ]


@st.composite
def transposes(draw_from: Any) -> Case:
    shape = draw_from(shapes())
    axes = draw_from(st.sampled_from(list(permutations(range(len(shape))))[::-1]))
    axes = tuple(a - len(shape) if draw_from(st.booleans()) else a for a in axes)
    return Case([draw(shape, draw_from(seeds))], {"axes": draw_from(st.sampled_from([axes, axes, axes, None]))})


class TestTranspose(Proof):
    op, cases = ops.transpose, transposes()
    examples = [Case([draw((2, 3, 4))], {"axes": axes}) for axes in [(1, 2, 0), (2, 0, 1)]]  # one is not the other backwards
    in_torch = staticmethod(lambda x, axes: x.permute(tuple(range(x.ndim))[::-1] if axes is None else axes))
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(
            Case([np.zeros((2, 3))], {"axes": (0,)}), ValueError, r"transpose: axes \(0,\) do not order the 2 axes of shape \(2, 3\); .* swapaxes"
        ),
        Refusal(Case([np.zeros((2, 3))], {"axes": (0, 0)}), ValueError, "repeated axis"),
        Refusal(Case([np.zeros((2, 3))], {"axes": (0, 2)}), ValueError, "transpose: there is no axis 2; give one from -2 to 1"),
        Refusal(Case([np.zeros((2, 3))], {"axes": (0, 0.5)}), TypeError, r"transpose: the axis must be a whole number, it is 0\.5"),
    ]


class TestBroadcastTo(Proof):
    op, in_torch = ops.broadcast_to, staticmethod(lambda x, shape: torch.broadcast_to(x, shape))
    share = 0.85
    cases = st.builds(lambda pair, seed: Case([draw(pair[0], seed)], {"shape": pair[1]}), growing_shapes(), seeds)
    examples = [Case([draw((2, 1, 3))], {"shape": (4, 2, 2, 3)}), Case([draw(())], {"shape": (2, 3)}), Case([draw((2, 3))], {"shape": (2, 3)})]
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [Refusal(Case([np.zeros((2, 3))], {"shape": (2, 4)}), ValueError, r"\(2,3\).*\(2,4\)")]


class TestSumTo(Proof):
    op, in_torch = ops.sum_to, staticmethod(lambda x, shape: x.sum_to_size(shape))
    share = 0.85
    cases = st.builds(lambda pair, seed: Case([draw(pair[1], seed)], {"shape": pair[0]}), growing_shapes(), seeds)
    examples = [Case([draw((4, 2, 2, 3))], {"shape": (2, 1, 3)}), Case([draw((2, 3))], {"shape": ()}), Case([draw((2, 3))], {"shape": (2, 3)})]
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [Refusal(Case([np.zeros((2, 3))], {"shape": (2, 2)}), ValueError, r"sum_to: a tensor of shape \(2, 2\) is not broadcast to \(2, 3\)")]


@st.composite
def pads(draw_from: Any, values: Any = (0.0, 1.5, -np.inf)) -> Case:
    shape = draw_from(shapes(min_dims=1))
    widths = tuple((draw_from(st.integers(0, 2)), draw_from(st.integers(0, 2))) for _ in shape)
    return Case([draw(shape, draw_from(seeds))], {"widths": widths, "value": draw_from(st.sampled_from(values))})


def torch_pad(x: torch.Tensor, widths: tuple, value: float = 0.0) -> torch.Tensor:
    return torch.nn.functional.pad(x, [n for pair in reversed(widths) for n in pair], value=value)


class TestPad(Proof):
    op, in_torch, cases = ops.pad, staticmethod(torch_pad), pads()
    examples = [Case([draw((2, 3))], {"widths": ((0, 1), (2, 0))})]
    smooth = pads((0.0, 1.5))  # infinities have no differences
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(
            Case([np.zeros((2, 3))], {"widths": ((1, 1),)}),
            ValueError,
            r"pad: widths is \(\(1, 1\),\) for 2 axes \(shape \(2, 3\)\); give a pair",
            "PyTorch pads the last axes.",
        ),
        Refusal(Case([np.zeros((2, 3))], {"widths": ((-1, 0), (0, 0))}), ValueError, "negative", "PyTorch cuts off."),
    ]


# --- proofs: joins and splits


@st.composite
def joins(draw_from: Any, new_axis: bool) -> Case:
    """Two or three arrays, seldom one; to be concatenated they may differ in length along the axis."""
    shape, seed = draw_from(shapes(min_dims=0 if new_axis else 1, max_side=3)), draw_from(seeds)
    axis = draw_from(st.integers(-len(shape) - new_axis, len(shape) - 1 + new_axis))
    pieces = []
    for k in range(draw_from(lengths(2, 3))):
        piece = list(shape)
        if not new_axis:
            piece[axis] = draw_from(lengths(2, 3))
        pieces.append(draw(tuple(piece), seed + k))
    return Case(pieces, {"axis": axis})


class TestConcatenate(Proof):
    op, in_torch, cases = ops.concatenate, staticmethod(lambda *tensors, axis=0: torch.cat(tensors, axis)), joins(new_axis=False)
    examples = [Case([draw((2, n, 3), n) for n in (1, 4, 0)], {"axis": 1})]
    keeps = {"tensors": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(Case([]), ValueError, "concatenate: needs at least one tensor"),
        Refusal(Case([np.zeros((2, 3)), np.zeros((2, 2))]), ValueError, "size 3 and .* size 2"),
        Refusal(Case([np.zeros((2, 3)), np.zeros((2, 3))], {"axis": 2}), ValueError, "concatenate: there is no axis 2; give one from -2 to 1"),
        Refusal(Case([np.zeros(()), np.zeros(())]), ValueError, "concatenate: there is no axis 0; a 0-d tensor has none"),
        Refusal(Case([np.zeros(2), np.zeros(2)], {"axis": None}), TypeError, "concatenate: the axis must be a whole number, it is None"),
    ]


class TestStack(Proof):
    op, in_torch, cases = ops.stack, staticmethod(lambda *tensors, axis=0: torch.stack(tensors, axis)), joins(new_axis=True)
    examples = [Case([draw((2, 3)), draw((2, 3), 1)]), Case([draw((2, 3), seed) for seed in range(3)], {"axis": -1})]
    keeps = {"tensors": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(Case([]), ValueError, "stack: needs at least one tensor"),
        Refusal(Case([np.zeros((2, 3)), np.zeros((2, 2))]), ValueError, "same shape"),
        Refusal(Case([np.zeros(2), np.zeros(2)], {"axis": 2}), ValueError, "stack: there is no axis 2; give one from -2 to 1"),
        Refusal(Case([np.zeros(2), np.zeros(2)], {"axis": None}), TypeError, "stack: the axis must be a whole number, it is None"),
    ]


@st.composite
def splits(draw_from: Any) -> Case:
    shape = draw_from(shapes(min_dims=1))
    return Case([draw(shape, draw_from(seeds))], {"axis": draw_from(st.integers(-len(shape), len(shape) - 1))})


class TestUnbind(Proof):
    op, in_torch, cases = ops.unbind, torch.unbind, splits()
    in_torch = staticmethod(lambda x, axis=0: torch.unbind(x, axis))
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(Case([np.zeros(())]), ValueError, "unbind: there is no axis 0; a 0-d tensor has none"),
        Refusal(Case([np.zeros((2, 3))], {"axis": 2}), ValueError, "unbind: there is no axis 2; give one from -2 to 1"),
        Refusal(Case([np.zeros((2, 3))], {"axis": 0.5}), TypeError, r"unbind: the axis must be a whole number, it is 0\.5"),
    ]


# --- proofs: sliding windows


@st.composite
def looks(draw_from: Any, adjoint: bool) -> Case:
    """From the number of windows outwards: each drawn case is a possible one. The last window may leave a remainder of less than a stride."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    counts, kernel, stride, dilation = draw_from(pair), draw_from(pair), draw_from(pair), draw_from(pair)
    sides = [(n - 1) * s + d * (k - 1) + 1 + draw_from(st.integers(0, s - 1)) for n, k, s, d in zip(counts, kernel, stride, dilation, strict=True)]
    batch, channels, seed = draw_from(st.integers(1, 2)), draw_from(st.integers(1, 2)), draw_from(seeds)
    image = (batch, *sides, channels)
    if adjoint:
        return Case([draw((batch, *counts, *kernel, channels), seed)], {"shape": image, "stride": stride, "dilation": dilation})
    return Case([draw(image, seed)], {"kernel_size": kernel, "stride": stride, "dilation": dilation})


def torch_windows(x: torch.Tensor, kernel_size: tuple, stride: tuple = (1, 1), dilation: tuple = (1, 1)) -> torch.Tensor:
    """torch's unfold gives (B, C * kh * kw, Ho * Wo)."""
    (batch, height, _, channels), (kh, kw) = x.shape, kernel_size
    columns = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), kernel_size, dilation, 0, stride)
    rows = (height - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    return columns.reshape(batch, channels, kh, kw, rows, -1).permute(0, 4, 5, 2, 3, 1)


def torch_fold(x: torch.Tensor, shape: tuple, stride: tuple = (1, 1), dilation: tuple = (1, 1)) -> torch.Tensor:
    batch, rows, columns, kh, kw, channels = x.shape
    flat = x.permute(0, 5, 3, 4, 1, 2).reshape(batch, channels * kh * kw, rows * columns)
    return torch.nn.functional.fold(flat, shape[1:3], (kh, kw), dilation, 0, stride).permute(0, 2, 3, 1)


class TestWindows(Proof):
    op, in_torch, cases = ops.windows, staticmethod(torch_windows), looks(adjoint=False)
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(
            Case([np.zeros((1, 3, 5, 2))], {"kernel_size": (4, 1)}),
            ValueError,
            r"windows: a window of \(4, 1\) with dilation \(1, 1\) does not fit into an image of 3 x 5",
        ),
        Refusal(
            Case([np.zeros((1, 3, 5, 2))], {"kernel_size": (2, 2), "dilation": (1, 5)}),
            ValueError,
            r"windows: a window of \(2, 2\) with dilation \(1, 5\) does not fit into an image of 3 x 5",
        ),
        *[
            Refusal(
                Case([np.zeros((1, 4, 4, 1))], {"kernel_size": (2, 2)} | {name: pair}),
                ValueError,
                rf"windows: {name} must be a pair \(rows, columns\) of whole numbers of at least 1, it is {re.escape(repr(pair))}",
            )
            for name in ("kernel_size", "stride", "dilation")
            for pair in [(-1, -1), (1, 0), (1, 1.5), (1, 1, 1), 2]
        ],
        Refusal(
            Case([np.zeros((4, 4, 1))], {"kernel_size": (2, 2)}), ValueError, r"windows: x must be images \(B, H, W, C\), it has shape \(4, 4, 1\)"
        ),
    ]


class TestFold(Proof):
    op, in_torch, cases = ops.fold, staticmethod(torch_fold), looks(adjoint=True)
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [
        *[
            Refusal(
                Case([np.zeros((1, *counts, 3, 3, 1))], {"shape": (1, 3, 3, 1)}),
                ValueError,
                r"fold: images of shape \(1, 3, 3, 1\) have 1 x 1 windows of \(3, 3\) with stride \(1, 1\) and dilation \(1, 1\); x has shape \(1, ",
            )
            for counts in [(2, 2), (1, 0)]
        ],
        Refusal(
            Case([np.zeros((1, 1, 1, 3, 3, 1))], {"shape": (2, 3, 3, 1)}),
            ValueError,
            r"fold: images of shape \(2, 3, 3, 1\) have .*; x has shape \(1, 1, 1",
            "There the number of images is not said.",
        ),
        Refusal(
            Case([np.zeros((1, 1, 1, 3, 3, 1))], {"shape": (1, 3, 3, 1), "stride": (0, 1)}),
            ValueError,
            r"fold: stride must be a pair .* of at least 1, it is \(0, 1\)",
        ),
        Refusal(Case([np.zeros((1, 9, 1))], {"shape": (1, 3, 3, 1)}), ValueError, r"fold: x must be windows \(B, Ho, Wo, kh, kw, C\)"),
        Refusal(
            Case([np.zeros((1, 1, 1, 3, 3, 1))], {"shape": (3, 3)}), ValueError, r"`shape` that of images \(B, H, W, C\), they are .* and \(3, 3\)"
        ),
    ]


def test_the_gradient_of_a_bias_keeps_its_digits():
    """It is the sum over the rows that the bias was added to."""
    rows = 1 << 14
    bias, upstream = Tensor(np.zeros(2, np.float32), requires_grad=True), np.full((rows, 2), 0.1, np.float32)
    (Tensor(np.zeros((rows, 2), np.float32)) + bias).backward(upstream)
    np.testing.assert_allclose(bias.grad.numpy(), upstream.sum(0, np.float64), rtol=3e-6)


# --- shapes as they are written


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
def test_reshape_takes_lengths_or_a_tuple(shape: tuple, new: tuple):
    assert Tensor(draw(shape)).reshape(*new).shape == Tensor(draw(shape)).reshape(new).shape == np.zeros(shape).reshape(new).shape


@given(transposes())
def test_transpose_takes_axes_or_a_tuple(case: Case):
    (x,), axes = case.inputs, case.values["axes"]
    assert_array_equal(Tensor(x).T.numpy(), x.T)
    for reverse in (lambda t: t.transpose(None), np.transpose):
        assert_array_equal(reverse(Tensor(x)).numpy(), x.T)
    if axes:
        assert_array_equal(Tensor(x).transpose(*axes).numpy(), x.transpose(axes))


@pytest.mark.parametrize("axes", [(0, 1), (1, 2), (-1, 0), (-1, -1), (-3, -2)])
def test_swapaxes(axes: tuple):
    check_op(lambda x: x.swapaxes(*axes), lambda x: x.swapaxes(*axes), [draw((2, 3, 4))])


@pytest.mark.parametrize(("shape", "start"), [((2, 3, 4), 0), ((2, 3, 4), 1), ((2, 3, 4), -2), ((2, 3, 4), 2), ((), 0), ((0, 3), 0)])
def test_flatten(shape: tuple, start: int):
    check_op(lambda x: ops.flatten(x, start), lambda x: torch.flatten(x, start), [draw(shape)])
    assert ops.flatten(Tensor(draw(shape))).ndim == 1


# --- joins and splits


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_unbind_with_slices_that_nothing_uses(dtype: type):
    x = Tensor(draw((3, 2)).astype(dtype), requires_grad=True)
    first, _, last = x.unbind()
    (first * 2.0 + last * last).sum().backward()
    assert_array_equal(x.grad.numpy(), np.stack([[2.0, 2.0], [0.0, 0.0], 2 * x.numpy()[2]]))
    (slope,) = minigrad.grad((x.unbind()[1] ** 3).sum(), x, create_graph=True)
    (second,) = minigrad.grad(slope.sum(), x)
    np.testing.assert_allclose(second.numpy(), [[0, 0], 6 * x.numpy()[1], [0, 0]], rtol=1e-12 if dtype is np.float64 else 1e-6)
    assert x.grad.dtype == slope.dtype == second.dtype == dtype


def test_the_slices_of_a_vector_are_arrays():
    for piece in Tensor(np.array([1.0, 2.0]), requires_grad=True).unbind():
        assert type(piece.data) is np.ndarray and piece.shape == () and piece.requires_grad


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_gradients_that_are_the_slices_of_one_array_are_not_copied(axis: int):
    """In their order and all of them; otherwise they are stacked. Attention makes its three gradients so."""
    rule = ops.unbind.array_rules["x"]
    whole = rng(0).standard_normal((3, 3, 3))
    slices = tuple(np.moveaxis(whole, axis, 0))
    assert rule(slices, axis) is whole
    for g in (
        (slices[1], slices[0], slices[2]),
        (slices[0], None, slices[2]),
        tuple(x.copy() for x in slices),
        tuple(np.moveaxis(whole, axis - 1, 0)),
    ):
        stacked = rule(g, axis)
        assert not np.shares_memory(stacked, whole)
        np.testing.assert_array_equal(stacked, np.stack([np.zeros((3, 3)) if x is None else x for x in g], axis))


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, True)])
def test_attention_hands_unbind_the_slices_of_one_array(needs: tuple[bool, ...]):
    """Which is then the gradient of the array they were cut from; the same numbers as with a gradient apart for each."""
    qkv, upstream = Tensor(rng(1).standard_normal((2, 5, 3, 2, 4)), requires_grad=True), rng(2).standard_normal((2, 2, 5, 4))
    parts = [part.transpose(0, 2, 1, 3) if need else part.transpose(0, 2, 1, 3).detach() for part, need in zip(qkv.unbind(2), needs, strict=True)]
    (gradient,) = minigrad.grad(F.scaled_dot_product_attention(*parts), [qkv], upstream)
    leaves = [Tensor(part.numpy().copy(), requires_grad=True) for part in parts]
    apart = minigrad.grad(F.scaled_dot_product_attention(*leaves), leaves, upstream)
    expected = [g.numpy() if need else np.zeros(g.shape) for g, need in zip(apart, needs, strict=True)]
    assert_close(gradient, np.stack([g.transpose(0, 2, 1, 3) for g in expected], 2))


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


@given(looks(adjoint=False))
def test_windows_see_what_they_should(case: Case):
    """Not by PyTorch but by the words of the documentation."""
    (x,), kernel, stride, dilation = case.inputs, *case.values.values()
    seen = ops.windows(Tensor(x), kernel, stride, dilation).numpy()
    for i, j, r, c in np.ndindex(*seen.shape[1:5]):
        assert_array_equal(seen[:, i, j, r, c], x[:, i * stride[0] + r * dilation[0], j * stride[1] + c * dilation[1]])
    for side, count, k, s, d in zip(x.shape[1:3], seen.shape[1:3], kernel, stride, dilation, strict=True):
        last = (count - 1) * s + d * (k - 1)
        assert last < side <= last + s  # no further window fits


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


@pytest.mark.parametrize(("shape", "start"), [((2, 3), 5), ((2, 3), 2), ((2, 3), -3), ((), 1)])
def test_flattening_from_an_axis_that_is_not_there(shape: tuple, start: int):
    with pytest.raises(IndexError, match="Dimension out of range"):
        torch.flatten(torch.zeros(shape), start)
    count = max(len(shape), 1)
    with pytest.raises(np.exceptions.AxisError, match=rf"^flatten: there is no axis {start}; give one from {-count} to {count - 1}$"):
        Tensor(np.zeros(shape)).flatten(start)


def test_axes_that_do_not_order_the_axes():
    with pytest.raises(ValueError, match=r"transpose: axes \(0,\) do not order the 2 axes"):
        Tensor(np.zeros((2, 3))).transpose(0)


def test_pad_takes_no_numbers_for_pairs():
    for widths in ((1, 1), ((1, 1), 1), ((1, 1, 1), (1, 1))):  # PyTorch's (1, 1) pads the last axis
        with pytest.raises(ValueError, match=r"pad: widths is .* for 2 axes \(shape \(2, 3\)\); give a pair \(before, after\) per axis"):
            ops.pad(Tensor(np.zeros((2, 3))), widths)  # type: ignore[arg-type]
    assert ops.pad(Tensor(np.zeros((2, 3))), np.array([[1, 1], [0, 2]])).shape == (4, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "target"), [((2, 3), (3, 2)), ((6, 1), (2, 3)), ((4,), (2, 2)), ((2, 3), (2, 2)), ((3,), (1, 3))])
def test_sum_to_a_shape_that_is_not_broadcast_to_it(shape: tuple[int, ...], target: tuple[int, ...]):
    """It would only be another shape of the same numbers."""
    with pytest.raises(ValueError, match="sum_to: a tensor of shape .* is not broadcast to"):
        ops.sum_to(Tensor(np.ones(shape)), target)
