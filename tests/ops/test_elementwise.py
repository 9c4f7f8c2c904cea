"""Elementwise primitives against PyTorch in float64: values, first and second derivatives, broadcasting, kinks, and the dtypes of mixed inputs.

Read next: `test_reduce.py`.
"""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from tests.support import arrays, assert_close, check_op, rng, shapes

UNARY = {
    "neg": (ops.neg, torch.neg, -2.0),
    "exp": (ops.exp, torch.exp, -2.0),
    "log": (ops.log, torch.log, 0.3),
    "sqrt": (ops.sqrt, torch.sqrt, 0.3),
    "tanh": (ops.tanh, torch.tanh, -2.0),
    "erf": (ops.erf, torch.erf, -2.0),
    "sin": (ops.sin, torch.sin, -2.0),
    "cos": (ops.cos, torch.cos, -2.0),
    "abs": (ops.abs, torch.abs, -2.0),
    "relu": (ops.relu, torch.relu, -2.0),
    "identity": (ops.identity, lambda x: x * 1, -2.0),
}
BINARY = {
    "add": (ops.add, torch.add, -2.0),
    "sub": (ops.sub, torch.sub, -2.0),
    "mul": (ops.mul, torch.mul, -2.0),
    "div": (ops.div, torch.div, 0.5),
    "maximum": (ops.maximum, torch.maximum, -2.0),
    "minimum": (ops.minimum, torch.minimum, -2.0),
    "power_of": (ops.pow, torch.pow, 0.5),
}
two_shapes = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3).map(lambda found: found.input_shapes)
three_shapes = hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, min_side=0, max_side=3).map(lambda found: found.input_shapes)


def draw(shape: tuple[int, ...], seed: int, low: float = -2.0) -> np.ndarray:
    return np.asarray(rng(seed).uniform(low, 2.0, shape))


@pytest.mark.parametrize("name", UNARY)
@settings(max_examples=8)
@given(shapes(), st.integers(0, 9999))
def test_functions_of_one_number(name: str, shape: tuple[int, ...], seed: int):
    ours, theirs, low = UNARY[name]
    check_op(ours, theirs, [draw(shape, seed, low)])


@pytest.mark.parametrize("name", BINARY)
@settings(max_examples=15)
@given(two_shapes, st.integers(0, 9999), st.sampled_from([(True, True), (True, False), (False, True)]))
def test_functions_of_two_numbers_broadcast(name: str, two: tuple, seed: int, needs: tuple[bool, bool]):
    ours, theirs, low = BINARY[name]
    check_op(ours, theirs, [draw(two[0], seed, low), draw(two[1], seed + 1, low)], needs=needs)


@given(three_shapes, st.integers(0, 9999))
def test_where_broadcasts_condition_and_both_sides(three: tuple, seed: int):
    condition = np.asarray(rng(seed).random(three[0]) < 0.5)
    check_op(ops.where, torch.where, [condition, draw(three[1], seed), draw(three[2], seed + 1)])


@pytest.mark.parametrize("exponent", [2, 3, 4, 1, 0, 0.5, -0.5, -1, -2.5, 2.0, 1 / 3])
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_power_with_a_number(exponent: float, shape: tuple[int, ...]):
    check_op(lambda x: x**exponent, lambda x: x**exponent, [draw(shape, 3, 0.3)])


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, 2.0, -1, -2])
def test_power_of_a_negative_base(exponent: float):
    check_op(lambda x: x**exponent, lambda x: x**exponent, [np.array([-2.0, -0.5, 0.7])])


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4])
def test_power_at_zero(exponent: float):
    check_op(lambda x: x**exponent, lambda x: x**exponent, [np.array([0.0, -1.0, 0.0, 2.0])])


@pytest.mark.parametrize("base", [2, 0.5, np.float64(3)])
def test_number_to_the_power_of_a_tensor(base: float):
    check_op(lambda x: base**x, lambda x: float(base) ** x, [draw((2, 3), 5)])


def test_power_of_tensors_at_zero_and_below():
    """0 ** y is flat in y for y >= 0, x ** 0 flat in x, and an integer power of a negative number has a derivative in the base, as in PyTorch."""
    base, exponent = np.array([0.0, 0.0, 0.0, -2.0, -1.5, 3.0]), np.array([0.0, 1.0, 2.0, 3.0, 0.0, 0.0])
    with np.errstate(divide="ignore", invalid="ignore"):
        check_op(ops.pow, torch.pow, [base, exponent], needs=(True, False))
        check_op(ops.pow, torch.pow, [base[:3], exponent[:3]], needs=(False, True), second=False)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (None, 0.5), (-0.5, None), (-3.0, 3.0), (0.5, -0.5)])
@settings(max_examples=6)
@given(arrays(shapes()))
def test_clip(low: float | None, high: float | None, x: np.ndarray):
    check_op(lambda x: ops.clip(x, low, high), lambda x: torch.clamp(x, low, high), [x])


# --- kinks: PyTorch's choice, pinned


KINKS = {
    "relu at 0": (ops.relu, torch.relu, [np.array([0.0, -0.0, 1.0, -1.0])]),
    "abs at 0": (ops.abs, torch.abs, [np.array([0.0, -0.0, 1.0, -1.0])]),
    "maximum ties": (ops.maximum, torch.maximum, [np.array([1.0, 2.0, 0.0, 5.0]), np.array([1.0, 3.0, -0.0, 4.0])]),
    "minimum ties": (ops.minimum, torch.minimum, [np.array([1.0, 2.0, 0.0, 5.0]), np.array([1.0, 3.0, -0.0, 4.0])]),
    "clip at its bounds": (lambda x: ops.clip(x, -1, 2), lambda x: torch.clamp(x, -1, 2), [np.array([-1.0, 2.0, -1.5, 2.5, 0.0])]),
    "clip at one bound": (lambda x: ops.clip(x, 0.0), lambda x: torch.clamp(x, 0.0), [np.array([0.0, -0.0, 1.0, -1.0])]),
    "maximum of a tensor with itself": (lambda x: ops.maximum(x, x), lambda x: torch.maximum(x, x), [np.array([1.0, -2.0])]),
}


@pytest.mark.parametrize("name", KINKS)
def test_derivative_at_a_kink(name: str):
    check_op(*KINKS[name])


def test_kinks_by_hand():
    """The same, as numbers that a reader can check."""
    for function, point, slope in [
        (ops.relu, 0.0, 0.0),
        (ops.abs, 0.0, 0.0),
        (lambda x: ops.clip(x, 0, 1), 1.0, 1.0),
        (lambda x: ops.maximum(x, 2.0), 2.0, 0.5),
    ]:
        x = Tensor(np.array([point]), requires_grad=True)
        assert minigrad.grad(function(x), x)[0].item() == slope


def test_infinities_and_nan():
    with np.errstate(all="ignore"):
        check_op(ops.exp, torch.exp, [np.array([-np.inf, -1e4, 0.0])], second=False)
        check_op(ops.log, torch.log, [np.array([0.0, np.inf, 1.0])], second=False)
        check_op(ops.sqrt, torch.sqrt, [np.array([0.0, np.inf])], second=False)
        check_op(ops.div, torch.div, [np.array([1.0, -1.0, np.inf]), np.array([0.0, 0.0, 2.0])], second=False)
        check_op(ops.tanh, torch.tanh, [np.array([-1e4, 1e4, np.inf])])
        for ours, theirs in [(ops.relu, torch.relu), (ops.abs, torch.abs), (ops.tanh, torch.tanh), (ops.exp, torch.exp), (ops.erf, torch.erf)]:
            assert np.isnan(ours(Tensor(np.array([np.nan]))).item()) and torch.isnan(theirs(torch.tensor([torch.nan]))).item()
    masked = ops.where(np.array([True, False]), Tensor(np.array([1.0, 2.0]), True), -np.inf)
    assert_array_equal(masked.numpy(), [1.0, -np.inf])


def test_gradient_of_where_does_not_see_the_side_not_taken():
    x = Tensor(np.array([4.0, 0.0]), requires_grad=True)
    with np.errstate(divide="ignore"):
        y = ops.where(x > 1.0, x, 1.0) ** 0.5  # the usual way round an infinite slope
    y.backward(Tensor(np.array([1.0, 1.0])))
    assert_array_equal(x.grad.numpy(), [0.25, 0.0])


# --- comparisons


@pytest.mark.parametrize("name", ["greater", "greater_equal", "less", "less_equal", "equal", "not_equal", "logical_and"])
@settings(max_examples=8)
@given(two_shapes, st.integers(0, 9999))
def test_comparisons(name: str, two: tuple, seed: int):
    x, y = (np.asarray(rng(seed + k).integers(0, 3, shape).astype(np.float64)) for k, shape in enumerate(two))
    z = getattr(ops, name)(Tensor(x, True), Tensor(y, True))
    assert z.dtype == bool and not z.requires_grad
    assert_array_equal(z.numpy(), getattr(np, name)(x, y))
    assert type(z.data) is np.ndarray


@pytest.mark.parametrize("symbol", [operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne])
def test_comparison_operators(symbol):
    x = np.array([1.0, 2.0, 3.0], np.float32)
    for other in (2, 2.0, np.float64(2), np.array(2.0), np.array([3.0, 2.0, 1.0]), Tensor([2.0, 2.0, 2.0])):
        assert_array_equal(symbol(Tensor(x), other).numpy(), symbol(x, np.asarray(other)))
    assert_array_equal(symbol(np.array([3.0, 2.0, 1.0]), Tensor(x)).numpy(), symbol(np.array([3.0, 2.0, 1.0]), x))


def test_logical_not_and_isfinite():
    assert_array_equal(ops.logical_not(Tensor(np.array([True, False]))).numpy(), [False, True])
    assert_array_equal(ops.isfinite(Tensor(np.array([1.0, np.nan, np.inf, -np.inf]))).numpy(), [True, False, False, False])
    assert type(ops.isfinite(Tensor(1.0)).data) is np.ndarray


# --- dtypes


DTYPES = ["bool", "uint8", "int32", "int64", "float32", "float64"]


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
@pytest.mark.parametrize("shapes", [((2,), (2,)), ((2,), ()), ((), (2,)), ((), ())])
def test_mixed_tensors_have_the_dtype_that_pytorch_gives_them(first: str, second: str, shapes: tuple):
    x, y = np.ones(shapes[0], first), np.ones(shapes[1], second)
    expected = str(torch.result_type(torch.tensor(x), torch.tensor(y))).removeprefix("torch.")
    assert ops.add(Tensor(x), Tensor(y)).dtype == expected
    assert ops.where(True, Tensor(x), Tensor(y)).dtype == expected
    assert (Tensor(x) / Tensor(y)).dtype == (expected if expected.startswith("float") else "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), ()])
@pytest.mark.parametrize("number", [True, 2, 2.0], ids=["bool", "int", "float"])
def test_numbers_never_promote(dtype: str, shape: tuple, number: float):
    """Python numbers, NumPy scalars of any width and 0-d arrays change a tensor's kind (integer to float) at most, never its width."""
    x = Tensor(np.ones(shape, dtype))
    expected = str(torch.result_type(torch.tensor(x.data), number)).removeprefix("torch.")
    same_numbers = {bool: [np.bool_(True)], int: [np.int64(2), np.int32(2), np.uint8(2)], float: [np.float64(2), np.float32(2)]}[type(number)]
    for given_number in [number, *same_numbers, *[np.asarray(n) for n in same_numbers]]:
        assert (x * given_number).dtype == expected, repr(given_number)
        assert (given_number * x).dtype == expected, repr(given_number)
        assert ops.where(True, x, given_number).dtype == expected, repr(given_number)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.float64(2), np.int64(2), np.array(2.0)], ids=repr)
def test_numbers_as_exponent_or_bound_never_promote(dtype: type, number: float):
    x = Tensor(np.array([0.5, 3.0]), requires_grad=True) if dtype is np.float64 else Tensor(np.array([0.5, 3.0], np.float32), requires_grad=True)
    results = [x**number, number**x, x.clip(number), x.clip(None, number), ops.maximum(x, number), x + number, number - x, x / number, number / x]
    for y in results:
        assert y.dtype == dtype and type(y.data) is np.ndarray
        assert minigrad.grad(y, x, Tensor(np.ones(2)))[0].dtype == dtype


def test_integers_stay_integers_where_they_can():
    x = Tensor(np.array([1, 2, 3], np.int32))
    for y in (x + x, x * 2, -x, abs(x), x - 1, ops.maximum(x, 2), x.relu(), x.clip(2, 3)):
        assert y.dtype == np.int32 and not y.requires_grad
    for y in (x / x, x / 2, x.exp(), x.sqrt(), x**2, x**0.5, x * 0.5, x.clip(1.5, 2.5)):
        assert y.dtype == np.float32


@given(two_shapes)
def test_gradients_of_mixed_dtypes_have_their_tensors_dtype(two: tuple):
    x, y = Tensor(draw(two[0], 0).astype(np.float32), True), Tensor(draw(two[1], 1), True)
    z = x * y
    z.backward(Tensor(np.asarray(rng(2).uniform(-1, 1, z.shape))))
    assert x.grad.dtype == np.float32 and x.grad.shape == x.shape
    assert y.grad.dtype == np.float64 and y.grad.shape == y.shape


def test_cast():
    x = Tensor(np.array([1.25, -2.5]), requires_grad=True)
    y = x.astype(np.float32)
    assert y.dtype == np.float32 and x.astype(np.float64) is x
    y.backward(Tensor(np.array([0.5, 3.0], np.float32)))
    assert x.grad.dtype == np.float64
    assert_array_equal(x.grad.numpy(), [0.5, 3.0])
    assert not x.astype(np.int64).requires_grad  # integers have no gradient
    assert x.to(dtype="float32").dtype == np.float32
    twice = minigrad.grad((x.astype(np.float32) ** 2).sum(), x, create_graph=True)[0]
    assert_array_equal(minigrad.grad(twice.sum(), x)[0].numpy(), [2.0, 2.0])


# --- errors


@pytest.mark.parametrize("operation", [ops.add, ops.sub, ops.mul, ops.div, ops.maximum, ops.pow, ops.greater])
def test_shapes_that_do_not_fit_are_named(operation):
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        operation(Tensor([1.0, 2.0]), Tensor([1.0, 2.0, 3.0]))


def test_what_is_not_a_number_is_refused():
    x = Tensor([1.0, 2.0])
    with pytest.raises(TypeError, match="add: cannot use list as a tensor"):
        ops.add(x, [1, 2])
    with pytest.raises(TypeError, match="mul: cannot use str as a tensor"):
        x * "2"
    with pytest.raises(TypeError, match="mul: .*complex128"):
        x * np.array([1j, 2j])
    with pytest.raises(TypeError, match="add: cannot use complex as a tensor"):
        x + 1j


def test_a_boolean_mask_given_as_an_array_may_be_reused():
    """An array handed to an operation is a constant: what its owner does with it afterwards changes no gradient."""
    x, mask = Tensor(np.array([1.0, 2.0]), requires_grad=True), np.array([True, False])
    y = ops.where(mask, x, 0.0)
    mask[:] = False
    y.backward(Tensor(np.array([3.0, 4.0])))
    assert_array_equal(x.grad.numpy(), [3.0, 0.0])
    factor = np.array([2.0, 5.0])
    z = x * factor
    factor[:] = 0.0
    assert_close(minigrad.grad(z, x, Tensor(np.ones(2)))[0], [2.0, 5.0])
