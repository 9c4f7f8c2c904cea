"""Reductions against PyTorch: every way to name axes, ties, empty and 0-d tensors. Read next: `test_movement.py`."""

from __future__ import annotations

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
from tests.proofs import Case, Pin, Proof, Refusal, check_op
from tests.support import assert_close, rng, shapes


@st.composite
def reductions(draw: Any, min_side: int = 0, make: Any = None, keepdims: bool = True) -> Case:
    """An array, an axis argument that fits it (None, a number, a tuple; negative ones too), and keepdims."""
    shape = draw(shapes(min_side=min_side))
    dims, axis = len(shape), None
    if shape and (kind := draw(st.sampled_from(("one", "some", "none", "some") if keepdims else ("one", "one", "one", "none")))) != "none":
        chosen = draw(st.sampled_from([axes for count in range(1, dims + 1) for axes in permutations(range(dims), count)]))
        axes = tuple(a - dims if draw(st.booleans()) else a for a in chosen)
        axis = axes if kind == "some" else axes[0]
    numbers = rng(draw(st.integers(0, 2**32 - 1)))
    x = numbers.uniform(-2, 2, shape) if make is None else make(numbers, shape)
    return Case([x], {"axis": axis, "keepdims": draw(st.booleans())} if keepdims else {"axis": axis})


def all_different(numbers: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that are at least 0.1 apart: no ties, nor near ones."""
    return numbers.permutation(int(np.prod(shape))).reshape(shape) * 0.1


def many_equal(numbers: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return numbers.integers(0, 3, shape) * 1.0


def every_axis(x: torch.Tensor, axis: Any) -> Any:
    return tuple(range(x.ndim)) if axis is None else axis


# --- proofs


NO_AXIS = [
    Refusal(Case([np.zeros((2, 3))], {"axis": 2}), ValueError, "there is no axis 2; give one from -2 to 1"),
    Refusal(Case([np.zeros((2, 3))], {"axis": -3}), ValueError, "there is no axis -3; give one from -2 to 1"),
    Refusal(Case([np.zeros((2, 3))], {"axis": (0, 0)}), ValueError, "duplicate"),
]


SOME_AXES = [Case([rng(0).permutation(24).reshape(2, 3, 4) * 0.1], {"axis": a, "keepdims": k}) for a, k in [((2, 0), False), (1, True)]]


class TestSum(Proof):
    op, in_torch = ops.sum, staticmethod(lambda x, axis=None, keepdims=False: torch.sum(x, every_axis(x, axis), keepdims) if x.ndim else x.sum())
    cases, share = reductions(), 0.85
    examples = [Case([np.arange(6.0).reshape(2, 3)]), *SOME_AXES, Case([np.zeros((0, 3))], {"axis": 0}), Case([np.array(3.0)], {"keepdims": True})]
    keeps = {"x": ""}
    pins, errors = "It is linear, there is no kink.", NO_AXIS


class TestMax(Proof):
    op, in_torch = ops.max, staticmethod(lambda x, axis=None, keepdims=False: torch.amax(x, every_axis(x, axis), keepdims))
    cases, share = reductions(min_side=1) | reductions(min_side=1, make=many_equal), 0.85
    smooth = reductions(min_side=1, make=all_different)
    examples = [*SOME_AXES, Case([np.zeros((0, 3))], {"axis": 1}), Case([np.array(3.0)])]
    keeps = {"x": "x out"}
    pins = [
        Pin("ties share", Case([np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])], {"axis": 1}), [[[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]]]),
        Pin("ties share among all", Case([np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])]), [[[0, 0.5, 0.5], [0, 0, 0]]]),
        Pin("infinities tie", Case([np.array([[np.inf, np.inf, 1.0], [-np.inf, -np.inf, -np.inf]])], {"axis": 1})),
    ]
    errors = [*NO_AXIS, Refusal(Case([np.zeros((0, 3))], {"axis": 0}), ValueError, "zero-size")]


class TestMin(TestMax):
    op, in_torch = ops.min, staticmethod(lambda x, axis=None, keepdims=False: torch.amin(x, every_axis(x, axis), keepdims))
    pins = [
        Pin("ties share", Case([np.array([[1.0, 1.0, 3.0], [2.0, 2.0, 2.0]])], {"axis": 1}), [[[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]]),
        Pin("infinities tie", Case([np.array([[np.inf, np.inf, np.inf], [-np.inf, -np.inf, 1.0]])], {"axis": 1})),
    ]


class TestArgmax(Proof):
    op, in_torch = ops.argmax, torch.argmax
    cases = reductions(min_side=1, make=all_different, keepdims=False)
    keeps = {}
    pins = "It has no derivative."
    errors = [
        *NO_AXIS[:2],
        Refusal(Case([np.zeros((0, 3))], {"axis": 0}), ValueError, "empty sequence"),
        *[
            Refusal(Case([np.zeros((2, 3))], {"axis": axis}), TypeError, rf"argmax: the axis must be a whole number, it is {text}")
            for axis, text in [((0, 1), r"\(0, 1\)"), ([1], r"\(1,\)")]
        ],
    ]


# --- functions made of these


@given(reductions(min_side=1))
def test_mean(case: Case):
    x, axis, keepdims = *case.inputs, case.values["axis"], case.values["keepdims"]
    check_op(lambda x: ops.mean(x, axis, keepdims), lambda x: torch.mean(x, every_axis(x, axis), keepdims) if x.ndim else x.mean(), [x])


@given(reductions(min_side=1))
def test_var(case: Case):
    x, axis, keepdims = *case.inputs, case.values["axis"], case.values["keepdims"]
    check_op(lambda x: ops.var(x, axis, keepdims), lambda x: ((x - x.mean(every_axis(x, axis), True)) ** 2).mean(every_axis(x, axis), keepdims), [x])


def test_var_is_numpys():
    x = rng(1).uniform(-1, 1, (3, 4)) + 1e6  # far from 0: the two-pass formula keeps its digits
    assert_close(Tensor(x).var(0), x.var(0), relative=1e-14)
    assert_close(Tensor(x).var(0), torch.var(torch.tensor(x), 0, correction=0), relative=1e-9)


@pytest.mark.parametrize(("shape", "mean"), [((1000, 40), 1e5), ((1000, 3), 1e6)])
def test_var_does_not_count_the_rounding_of_the_mean(shape: tuple[int, int], mean: float):
    """Its square would be 4e-4 of these variances at 100,000 in float32, 1e-2 at a million. The gradient is as good."""
    x = (mean + rng(0).standard_normal(shape)).astype(np.float32)
    upstream = rng(1).uniform(0.5, 2, shape[1]).astype(np.float32)
    leaf, exact = Tensor(x, requires_grad=True), Tensor(x.astype(np.float64), requires_grad=True)
    var, reference = leaf.var(0), exact.var(0)
    np.testing.assert_allclose(reference.numpy(), x.astype(np.float64).var(0), rtol=1e-11)
    np.testing.assert_allclose(var.numpy(), reference.numpy(), rtol=5e-7)
    var.backward(upstream)
    reference.backward(upstream.astype(np.float64))
    largest = np.abs(exact.grad.numpy()).max()
    np.testing.assert_allclose(leaf.grad.numpy(), exact.grad.numpy(), rtol=0, atol=1e-6 * largest)


@pytest.mark.parametrize("number", [0.1, 3.0, 1000.1, 1e6 + 0.3])
def test_var_of_equal_numbers(number: float):
    """Not more than the square of their last digit, and not negative."""
    for x in (np.full((300, 7), number, np.float32), np.full((7, 300), number)):
        var = Tensor(x).var(0).numpy()
        assert (var >= 0).all() and (var <= (1e-9 * number) ** 2).all()


def test_ties_by_hand():
    x = Tensor(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), requires_grad=True)
    x.max(1).backward(Tensor(np.array([1.0, 6.0])))
    assert_array_equal(x.grad.numpy(), [[0, 0.5, 0.5], [2, 2, 2]])
    x.grad = None
    x.max().backward()
    assert_array_equal(x.grad.numpy(), [[0, 0.5, 0.5], [0, 0, 0]])


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
@pytest.mark.parametrize("axis", [0, -1, None, ()])
def test_reducing_a_single_number(name: str, axis: Any):
    """PyTorch, like NumPy's ufuncs, takes 0 and -1 for an axis of a 0-d tensor."""
    x = Tensor(np.array(3.0), requires_grad=True)
    y = getattr(x, name)(axis)
    assert y.shape == () and type(y.data) is np.ndarray
    assert y.item() == (0.0 if name == "var" else 3.0)
    assert minigrad.grad(y, x)[0].item() == (0.0 if name == "var" else 1.0)


@pytest.mark.parametrize("axis", [np.int64(1), np.int32(-1), (np.int64(0), 1)], ids=repr)
@pytest.mark.parametrize("name", ["sum", "mean", "max"])
def test_axes_may_be_numpy_integers(name: str, axis: Any):
    x = rng(3).uniform(-1, 1, (2, 3))
    plain = tuple(int(a) for a in axis) if isinstance(axis, tuple) else int(axis)
    ours, expected = (Tensor(x, True) for _ in range(2))
    getattr(ours, name)(axis).sum().backward()
    getattr(expected, name)(plain).sum().backward()
    assert_array_equal(ours.grad.numpy(), expected.grad.numpy())


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_axes_may_be_a_list(name: str):
    x = rng(3).uniform(-1, 1, (2, 3, 4))
    ours, expected = (Tensor(x, True) for _ in range(2))
    y, reference = getattr(ours, name)([0, -1]), getattr(expected, name)((0, -1))
    assert_array_equal(y.numpy(), reference.numpy())
    upstream = rng(4).uniform(-1, 1, 3)
    y.backward(upstream)
    reference.backward(upstream)
    assert_array_equal(ours.grad.numpy(), expected.grad.numpy())


@pytest.mark.parametrize("name", ["mean", "var"])
def test_statistics_of_many_rows_keep_their_digits(name: str):
    x = np.repeat(rng(5).uniform(0.5, 1.5, (4, 2)).astype(np.float32), 1 << 12, 0)  # equal numbers, whose rounding errors do not cancel
    np.testing.assert_allclose(getattr(Tensor(x), name)(0).numpy(), getattr(x.astype(np.float64), name)(0), rtol=3e-6)


def test_no_axes_reduce_nothing():
    x = rng(0).uniform(-1, 1, (2, 3))
    for name in ("sum", "mean", "max"):
        t = Tensor(x, requires_grad=True)
        y = getattr(t, name)(())
        assert_array_equal(y.numpy(), x)
        upstream = rng(1).uniform(-1, 1, (2, 3))
        assert_array_equal(minigrad.grad(y, t, Tensor(upstream))[0].numpy(), upstream)


@given(reductions(min_side=1, make=many_equal, keepdims=False))
def test_argmax_takes_the_first(case: Case):
    y = ops.argmax(Tensor(case.inputs[0], requires_grad=True), **case.values)
    assert y.dtype == np.int64 and not y.requires_grad and type(y.data) is np.ndarray
    assert_array_equal(y.numpy(), np.argmax(case.inputs[0], **case.values))


def test_argmax_first_of_equals():
    assert ops.argmax(Tensor([1.0, 3.0, 3.0])).item() == 1
    assert_array_equal(Tensor([[0.0, 0.0], [1.0, 2.0]]).argmax(1).numpy(), [0, 1])


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_argmax_of_one_number(axis: int | None):
    assert Tensor(3.0).argmax(axis).item() == torch.tensor(3.0).argmax(axis).item() == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_results_are_arrays_of_the_same_dtype(name: str, dtype: type):
    y = getattr(Tensor(np.ones((2, 3), dtype)), name)()
    assert type(y.data) is np.ndarray and y.dtype == dtype and y.shape == ()
    assert getattr(ops, name)(Tensor(np.ones((2, 3), dtype))).shape == ()


def test_integers():
    x = Tensor(np.array([[1, 2], [3, 5]]))
    assert x.sum().item() == 11 and x.sum().dtype == np.int64
    assert x.max(0).dtype == np.int64
    assert x.mean().item() == 2.75 and x.mean().dtype == np.float32
    assert Tensor(np.array([True, False, True])).mean().item() == pytest.approx(2 / 3, rel=1e-7)  # float32
    assert Tensor(np.array([2**24 + 1, 2**24 + 1, 1, 1])).mean().item() == 2**23 + 1  # a sum of float32 would be 2 less


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_unsigned_numbers_add_up_to_int64(dtype: Any):
    """Of unsigned numbers NumPy makes uint64, which beside int64 becomes a float."""
    x = Tensor(np.array([[1, 0], [1, 1]], dtype))
    for total in (x.sum(), x.sum(0), ops.sum_to(x, (2,))):
        assert total.dtype == np.int64 == (total + Tensor(np.array([1]))).dtype
    assert x.sum().item() == 3


@pytest.mark.parametrize("name", ["sum", "mean", "var", "max", "min"])
def test_axes_are_a_sequence(name: str):
    x = Tensor(rng(0).standard_normal((2, 3, 4)))
    expected = getattr(x, name)((0, 1)).numpy()
    for axes in ([0, 1], range(2), Tensor(np.array([0, 1])) if name in ("sum", "max", "min") else [np.int64(0), -2]):
        assert_array_equal(getattr(x, name)(axes).numpy(), expected)
    assert x.reshape([4, 6]).shape == x.transpose([1, 0, 2]).reshape(range(4, 7, 2)).shape == (4, 6)


def test_empty():
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    assert_array_equal(x.sum(0).numpy(), np.zeros(3))
    assert x.sum().item() == 0.0
    assert x.max(1).shape == (0,)
    assert minigrad.grad(x.sum(), x)[0].shape == (0, 3)
    with pytest.raises(ValueError, match="zero-size"):
        x.max(0)


@pytest.mark.parametrize("name", ["mean", "var"])
@pytest.mark.parametrize(("axis", "message"), [(2, "there is no axis 2"), ((0, -3), "there is no axis -3"), ((0, 0), "duplicate")])
def test_an_axis_that_is_not_there(name: str, axis: Any, message: str):
    with pytest.raises(ValueError, match=f"^{name}: {message}"):
        getattr(Tensor(np.ones((2, 3))), name)(axis)
    with pytest.raises(TypeError, match=f"^{name}: a Tensor of shape .* is given as a plain value"):
        getattr(Tensor(np.ones((2, 3))), name)(Tensor(1.0, requires_grad=True))


@pytest.mark.parametrize("name", ["max", "min"])
def test_a_second_tensor_is_no_axis(name: str):
    """PyTorch's max of two tensors is `F.maximum`."""
    x = Tensor(np.ones((2, 3)))
    message = rf"{name}: the axis must be a whole number, .* it is \(\(1\.0, 1\.0, 1\.0\), .*; F\.{name}imum compares two tensors"
    with pytest.raises(TypeError, match=message):
        getattr(ops, name)(x, x)
    with pytest.raises(TypeError, match=rf"{name}: the axis must be a whole number, .*; F\.{name}imum compares two tensors"):
        getattr(x, name)(Tensor(np.ones((100, 3))))  # of more numbers than there can be axes
    with pytest.raises(TypeError, match="sum: the axis must be a whole number, a tuple of them or None, it is array"):
        x.sum(np.array([0, 1]))
    with pytest.raises(TypeError, match="sum: the axis must be a whole number, a tuple of them or None, it is 0.5$"):
        ops.sum(x, 0.5)
    with pytest.raises(np.exceptions.AxisError, match=f"^{name}: there is no axis 1; give one from -1 to 0$"):
        getattr(ops, name)(Tensor(1.0), 1)
    with pytest.raises(TypeError, match="keepdims|'str' object"):  # what is wrong is not the axis
        getattr(ops, name)(x, 0, "yes")
