"""Elementwise primitives against PyTorch in float64: values, first and second derivatives, broadcasting, kinks, and casts.

Read next: `test_inputs.py`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from minigrad.op import REGISTRY
from tests.proofs import Case, Pin, Proof, Refusal, check_op
from tests.support import assert_close, broadcast_shapes, rng, shapes

seeds = st.integers(0, 2**32 - 1)


def draw(shape: tuple[int, ...], seed: int, low: float = -2.0) -> np.ndarray:
    return np.asarray(rng(seed).uniform(low, 2.0, shape))


def off_zero(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers of both signs, at least 0.3 away from 0."""
    return np.asarray(rng(seed).uniform(0.3, 2.0, shape) * rng(seed + 1).choice([-1.0, 1.0], shape))


def on_grid(shape: tuple[int, ...], seed: int, offset: float) -> np.ndarray:
    """Multiples of 0.2, plus an offset: with offsets 0 and 0.1, two arrays are never closer than 0.1."""
    return np.asarray(rng(seed).integers(-10, 10, shape) * 0.2 + offset)


def one(low: float = -2.0) -> st.SearchStrategy[Case]:
    return st.builds(lambda shape, seed: Case([draw(shape, seed, low)]), shapes(), seeds)


def two(make: Callable = draw, second: Callable | None = None) -> st.SearchStrategy[Case]:
    """Two arrays that broadcast."""
    return st.builds(lambda pair, seed: Case([make(pair[0], seed), (second or make)(pair[1], seed + 2)]), broadcast_shapes(), seeds)


# In every test: without axes, without elements; each broadcast along an axis of the other, of one shape, and one without the leading axis.
EDGES = [Case([draw((), 1, 0.3)]), Case([draw((0, 2), 0)])]
SHAPES = [((2, 1, 3), (4, 1)), ((2, 3), (2, 3)), ((2, 4, 3), (4, 3)), ((), (0, 2))]
PAIRS = [Case([draw(first, 2 * k, 0.3), draw(second, 2 * k + 1, 0.3)]) for k, (first, second) in enumerate(SHAPES)]
TIED_PAIRS = [Case([rng(2 * k).integers(0, 3, a) * 1.0, rng(2 * k + 1).integers(0, 3, b) * 1.0]) for k, (a, b) in enumerate(SHAPES)]


class OfOne(Proof):
    """Of a function of one array."""

    examples, share = EDGES, 0.85  # so many fewer are drawn


class OfTwo(Proof):
    """Of a function of two arrays that broadcast."""

    examples, share = PAIRS, 0.8


SMOOTH = "It is smooth wherever it is defined."
ANY_NUMBER = "It takes an array of any shape, with any numbers in it."
ONE, TWO = Case([np.array([1.0, -2.0])]), Case([np.array([1.0, -2.0]), np.array([1.0, -2.0])])
MISFIT = [
    Refusal(Case([np.zeros(2), np.zeros(3)]), ValueError, r"shapes \(2,\) and \(3,\) do not broadcast"),
    Refusal(Case([np.zeros((2, 3)), np.zeros((2, 1, 2))]), ValueError, r"shapes \(2, 3\) and \(2, 1, 2\) do not broadcast"),
]


# --- proofs: arithmetic


class TestAdd(OfTwo):
    op, in_torch, cases = ops.add, torch.add, two()
    keeps = {"x y": "", "x": "", "y": ""}
    pins, errors = SMOOTH, MISFIT


class TestSub(OfTwo):
    op, in_torch, cases = ops.sub, torch.sub, two()
    keeps = {"x y": "", "x": "", "y": ""}
    pins, errors = SMOOTH, [*MISFIT, Refusal(Case([np.array([True]), np.array([True])]), TypeError, "boolean subtract")]


class TestMul(OfTwo):
    op, in_torch, cases = ops.mul, torch.mul, two()
    keeps = {"x y": "x y", "x": "y", "y": "x"}
    pins, errors = SMOOTH, MISFIT


class TestDiv(OfTwo):
    op, in_torch, cases = ops.div, torch.div, two(draw, off_zero)
    keeps = {"x y": "x y", "x": "y", "y": "x y"}
    pins = [
        Pin("divided by 0", Case([np.array([1.0, -1.0, 0.0, 2.0, np.inf]), np.array([0.0, 0.0, 0.0, -0.0, 2.0])])),
        Pin("the square of y is infinite or 0", Case([np.array([1e200, 1e-300, 3e-180]), np.array([1e200, 1e-250, 2e-170])])),
    ]
    errors = MISFIT


class TestNeg(OfOne):
    op, in_torch, cases = ops.neg, torch.neg, one()
    keeps = {"x": ""}
    pins, errors = SMOOTH, [Refusal(Case([np.array([True])]), TypeError, "boolean negative")]


TIES = Case([np.array([1.0, 2.0, 0.0, 5.0]), np.array([1.0, 3.0, -0.0, 4.0])])


class TestMaximum(Proof):
    op, in_torch = ops.maximum, torch.maximum
    cases = two() | two(lambda shape, seed: rng(seed).integers(0, 3, shape) * 1.0)
    examples, share = TIED_PAIRS, 0.8
    smooth = two(lambda shape, seed: on_grid(shape, seed, 0.0), lambda shape, seed: on_grid(shape, seed, 0.1))
    keeps = {"x y": "x y", "x": "x y", "y": "x y"}
    pins, errors = [Pin("a tie gives each side half", TIES, [[0.5, 0, 0.5, 1], [0.5, 1, 0.5, 0]])], MISFIT


class TestMinimum(TestMaximum):
    op, in_torch = ops.minimum, torch.minimum
    pins = [Pin("a tie gives each side half", TIES, [[0.5, 1, 0.5, 0], [0.5, 0, 0.5, 1]])]


class TestWhere(Proof):
    op, in_torch = ops.where, torch.where
    cases = st.builds(lambda s, k: Case([np.asarray(rng(k).random(s[0]) < 0.5), draw(s[1], k), draw(s[2], k + 1)]), broadcast_shapes(3), seeds)
    share = 0.8
    examples = [
        Case([np.array([[True, False, True]]), draw((2, 1, 3), 0), draw((4, 1), 1)]),
        Case([np.array([[True], [False]]), draw((2, 3), 0), draw((2, 3), 1)]),
        Case([np.array(True), draw((), 0), draw((0, 2), 1)]),
    ]
    keeps = {"x y": "condition", "x": "condition", "y": "condition"}
    pins = [Pin("one side is infinite", Case([np.array([True, False]), np.array([1.0, 2.0]), np.array([np.inf, -np.inf])]), [[1, 0], [0, 1]])]
    errors = [
        Refusal(Case([np.array([True, False]), np.zeros(2), np.zeros(3)]), ValueError, r"where: shapes \(2,\) and \(2,\) and \(3,\) do not broadcast")
    ]

    def test_what_is_not_taken_sees_no_gradient_whatever_it_is(self) -> None:
        """inf * 0 would be nan: a mask is no product."""
        x, y = (Tensor(np.array([1.0, 2.0]), requires_grad=True) for _ in range(2))
        ops.where(np.array([True, False]), x, y).backward(Tensor(np.array([np.nan, np.inf])))
        assert_array_equal(x.grad.numpy(), [np.nan, 0.0])
        assert_array_equal(y.grad.numpy(), [0.0, np.inf])


# --- proofs: functions of one number


class TestExp(OfOne):
    op, in_torch, cases = ops.exp, torch.exp, one()
    examples = [*EDGES, Case([np.array([-np.inf, -1e4, 0.0, 80.0])])]
    smooth = one()
    keeps = {"x": "out"}
    pins, errors = SMOOTH, ANY_NUMBER


class TestLog(OfOne):
    op, in_torch, cases = ops.log, torch.log, one(0.3)
    keeps = {"x": "x"}
    pins, errors = [Pin("at 0 and infinity", Case([np.array([0.0, np.inf, 1.0])]), [[np.inf, 0, 1]])], ANY_NUMBER


class TestExpm1(OfOne):
    op, in_torch, cases = ops.expm1, torch.expm1, one()
    examples = [*EDGES, Case([np.array([-np.inf, -1e4, -30.0, -1e-300, 0.0, 1e-9, 80.0])])]
    smooth = one()
    keeps = {"x": "x"}
    pins, errors = SMOOTH, ANY_NUMBER

    def test_small_numbers_keep_their_digits(self) -> None:
        """Those of x, where exp(x) - 1 has none left; and the gradient those of exp(x), where PyTorch's, which is out + 1, has none left."""
        x = Tensor(np.array([1e-20, -1e-9, 3e-5, -30.0, -80.0], np.float32), requires_grad=True)
        y = x.expm1()
        upstream = np.array([2.0, -3.0, 0.5, 1.5, 0.7], np.float32)
        y.backward(upstream)
        steep = x.numpy().astype(np.float64)
        np.testing.assert_allclose(y.numpy(), np.expm1(steep), rtol=3e-7)
        np.testing.assert_allclose(x.grad.numpy(), upstream * np.exp(steep), rtol=3e-7)


class TestLog1p(OfOne):
    op, in_torch, cases = ops.log1p, torch.log1p, one(-0.7)
    examples = [*EDGES, Case([np.array([1e-300, -1e-9, 1e4, 1e30])])]
    smooth = one(-0.7)
    keeps = {"x": "x"}
    pins, errors = [Pin("at -1 and infinity", Case([np.array([-1.0, np.inf, 0.0])]), [[np.inf, 0, 1]])], ANY_NUMBER

    def test_small_numbers_keep_their_digits(self) -> None:
        x = Tensor(np.array([1e-20, -1e-9, 3e-5, 2.0], np.float32), requires_grad=True)
        y = x.log1p()
        upstream = np.array([2.0, -3.0, 0.5, 1.5], np.float32)
        y.backward(upstream)
        steep = x.numpy().astype(np.float64)
        np.testing.assert_allclose(y.numpy(), np.log1p(steep), rtol=3e-7)
        np.testing.assert_allclose(x.grad.numpy(), upstream / (1 + steep), rtol=3e-7)


class TestSqrt(OfOne):
    op, in_torch, cases = ops.sqrt, torch.sqrt, one(0.3)
    keeps = {"x": "out"}
    pins, errors = [Pin("at 0 and infinity", Case([np.array([0.0, np.inf, 4.0])]), [[np.inf, 0, 0.25]])], ANY_NUMBER


class TestTanh(OfOne):
    op, in_torch, cases = ops.tanh, torch.tanh, one()
    examples = [*EDGES, Case([np.array([-np.inf, -1e4, 1e-300, 20.0, 1e4])])]
    smooth = one()
    keeps = {"x": "out"}
    pins, errors = SMOOTH, ANY_NUMBER


class TestSigmoid(OfOne):
    op, in_torch, cases = ops.sigmoid, torch.sigmoid, one() | one(-30.0)
    examples = [*EDGES, Case([np.array([-np.inf, -1e4, -700.0, -30.0, -1e-300, 0.0, 17.0, 38.0, 41.0, 1e4, np.inf])])]
    smooth = one()
    keeps = {"x": "out"}
    pins, errors = SMOOTH, ANY_NUMBER

    @pytest.mark.parametrize(("dtype", "smallest"), [(np.float32, -103.0), (np.float64, -745.0)])
    def test_is_exact_on_both_sides_and_silent(self, dtype: type, smallest: float) -> None:
        """Down to the smallest numbers there are, where PyTorch's own, 1 / (1 + exp(-x)), is 0."""
        numbers = np.concatenate([np.linspace(smallest, 60.0, 200), [-np.inf, 0.0, 1e30, np.inf]]).astype(dtype)
        with np.errstate(all="raise", under="ignore"):
            y = ops.sigmoid(Tensor(numbers)).numpy()
            steep = numbers.astype(np.longdouble)
            right = np.where(numbers < 0, np.exp(np.minimum(steep, 0)), 1) / (1 + np.exp(-np.abs(steep)))
        assert y.dtype == dtype
        assert (np.abs(y - right) <= 4 * np.spacing(np.abs(right).astype(dtype))).all()

    def test_a_number_without_axes(self) -> None:
        for number in (np.float32(-2.0), np.float64(3.0)):
            x = Tensor(np.array(number), requires_grad=True)
            y = x.sigmoid()
            y.backward()
            assert y.shape == () and y.dtype == number.dtype == x.grad.dtype
            assert x.grad.item() == pytest.approx(y.item() * (1 - y.item()), rel=1e-6)


class TestErf(OfOne):
    op, in_torch, cases = ops.erf, torch.erf, one() | one(-8.0)
    examples = [*EDGES, Case([np.array([-np.inf, -30.0, 1e-300, 0.5, 1.0, 2.0, 3.0, 6.0, 30.0])])]
    smooth = one()
    keeps = {"x": "x"}
    pins, errors = SMOOTH, ANY_NUMBER


class TestSin(OfOne):
    op, in_torch, cases = ops.sin, torch.sin, one()
    keeps = {"x": "x"}
    pins, errors = SMOOTH, ANY_NUMBER


class TestCos(OfOne):
    op, in_torch, cases = ops.cos, torch.cos, one()
    keeps = {"x": "x"}
    pins, errors = SMOOTH, ANY_NUMBER


AT_ZERO = Case([np.array([0.0, -0.0, 1.0, -1.0])])


class TestRelu(OfOne):
    op, in_torch, cases = ops.relu, torch.relu, one()
    smooth = st.builds(lambda shape, seed: Case([off_zero(shape, seed)]), shapes(), seeds)
    keeps = {"x": "out"}
    pins, errors = [Pin("flat at 0", AT_ZERO, [[0, 0, 1, 0]])], ANY_NUMBER


class TestAbs(OfOne):
    op, in_torch, cases = ops.abs, torch.abs, one()
    smooth = TestRelu.smooth
    keeps = {"x": "x"}
    pins, errors = [Pin("flat at 0", AT_ZERO, [[0, 0, 1, -1]])], ANY_NUMBER


BOUNDS = st.sampled_from([(-0.5, 0.5), (None, 0.5), (-0.5, None), (-3.0, 3.0), (0.5, -0.5), (-1, 1)])


class TestClip(Proof):
    op, in_torch = REGISTRY["clip"], staticmethod(lambda x, low, high: torch.clamp(x, low, high))
    cases = st.builds(lambda shape, seed, b: Case([draw(shape, seed)], {"low": b[0], "high": b[1]}), shapes(), seeds, BOUNDS)
    smooth = st.builds(
        lambda shape, seed, b: Case([on_grid(shape, seed, 0.0)], {"low": b[0], "high": b[1]}), shapes(), seeds, BOUNDS.filter(lambda b: 1 not in b)
    )
    examples, share = [Case([case.inputs[0]], {"low": 0.5, "high": None}) for case in EDGES], 0.85
    keeps = {"x": "x"}
    pins = [
        Pin("the bounds belong to the inside", Case([np.array([-1.0, 2.0, -1.5, 2.5, 0.0])], {"low": -1, "high": 2}), [[1, 1, 0, 0, 1]]),
        Pin("one bound", Case([np.array([0.0, -0.0, 1.0, -1.0])], {"low": 0.0, "high": None}), [[1, 1, 1, 0]]),
        Pin("one bound, from above", Case([np.array([0.0, -0.0, 1.0, -1.0])], {"low": None, "high": 0.0}), [[1, 1, 0, 1]]),
        Pin("the bounds cross", Case([np.array([-1.0, 0.0, 0.5, 1.0])], {"low": 0.5, "high": 0.0})),
    ]
    errors = ANY_NUMBER


class TestPower(Proof):
    op, in_torch = REGISTRY["power"], staticmethod(lambda x, exponent: x**exponent)
    cases = st.builds(
        lambda shape, seed, e: Case([off_zero(shape, seed) if e == int(e) else draw(shape, seed, 0.3)], {"exponent": e}),
        shapes(),
        seeds,
        st.sampled_from([2, 3, 4, 1, 0, 2.0, 0.5, -0.5, -1, -2, -2.5, 1 / 3, 5, 6.0, 7, 8, 9, -3, -8.0]),
    )
    keeps = {"x": "x"}
    examples = [
        *(Case([case.inputs[0]], {"exponent": 1.5}) for case in EDGES),
        *(Case([np.array([4097, -3, 0])], {"exponent": e}) for e in (0, 1, 2, 3)),  # float32 would round 4097 ** 2
        Case([np.array([4097, 3, 0])], {"exponent": 0.5}),
        *(Case([np.array([True, False])], {"exponent": e}) for e in (0, 2, 0.5)),
    ]
    pins = [Pin(f"0 ** {e}", Case([np.array([0.0, -1.0, 0.0, 2.0])], {"exponent": e})) for e in (0, 1, 2, 3, 4, 6)]
    errors = ANY_NUMBER


class TestPowerOf(OfTwo):
    op, in_torch = REGISTRY["pow"], torch.pow
    cases = two(lambda shape, seed: draw(shape, seed, 0.5), draw)
    keeps = {"x y": "x y out", "x": "x y", "y": "x y out"}
    pins = [
        Pin("in the base", Case([np.array([0.0, 0.0, -2.0, -1.5, 3.0]), np.array([1.0, 2.0, 3.0, 0.0, 0.0])], needs=(True, False))),
        # the second derivative here is 0 * inf by the rules, in PyTorch as here; by the upstream gradient it is nan there, 0 here
        Pin("0 ** 0 is flat in x", Case([np.zeros(1), np.zeros(1)], needs=(True, False), second_in_torch=False), [np.zeros(1)]),
        Pin("0 ** y is flat in y", Case([np.zeros(3), np.array([0.0, 1.0, 2.0])], needs=(False, True)), [np.zeros(3)]),
    ]
    errors = MISFIT


# --- proofs: dtype and device


class TestIdentity(OfOne):
    op, in_torch, cases = ops.identity, staticmethod(lambda x: x * 1), one()
    keeps = {"x": ""}
    pins, errors = SMOOTH, ANY_NUMBER


class TestCast(Proof):
    op, in_torch = REGISTRY["cast"], staticmethod(lambda x, dtype: x.to(getattr(torch, dtype, dtype)))
    cases = st.builds(
        lambda shape, seed, dtype: Case([draw(shape, seed)], {"dtype": dtype}), shapes(), seeds, st.sampled_from(["float32", "float64"])
    )
    smooth = st.builds(lambda shape, seed: Case([draw(shape, seed)], {"dtype": "float64"}), shapes(), seeds)  # rounding has no slope
    examples = [
        Case([draw((), 1)], {"dtype": "float64"}),
        Case([draw((0, 2), 1)], {"dtype": "float32"}),
        Case([np.array([1, -2, 3])], {"dtype": "float32"}),
        Case([np.array([True, False])], {"dtype": "int64"}),
    ]
    keeps = {"x": ""}
    pins = "Rounding to float32 counts as the identity."
    errors = [Refusal(Case([np.zeros(2)], {"dtype": "floaty"}), TypeError, "floaty", True)]


class TestToDevice(Proof):
    """To the CPU; between devices that differ: tests/test_far_device.py."""

    examples, share = [Case(case.inputs, {"device": "cpu"}) for case in EDGES], 0.85

    op, in_torch = ops.to_device, staticmethod(lambda x, device: x.to(device))
    cases = st.builds(lambda shape, seed: Case([draw(shape, seed)], {"device": "cpu"}), shapes(), seeds)
    keeps = {"x": ""}
    pins, errors = SMOOTH, [Refusal(Case([np.zeros(2)], {"device": "nowhere"}), ValueError, "there is no device 'nowhere' here; there is 'cpu'")]


# --- proofs: comparisons and tests


class Comparison(Proof):
    """Numbers of which many are equal, and the two awkward ones."""

    cases = two(lambda shape, seed: rng(seed).integers(0, 3, shape) * 1.0) | two(lambda shape, seed: rng(seed).integers(-1, 2, shape))
    share = 0.8
    examples = [*TIED_PAIRS, Case([np.array([np.nan, np.nan, np.inf, -np.inf, 0.0]), np.array([np.nan, 1.0, np.inf, np.inf, -0.0])])]
    keeps = {}
    pins, errors = "It has no derivative.", MISFIT


class TestGreater(Comparison):
    op, in_torch = ops.greater, torch.gt


class TestGreaterEqual(Comparison):
    op, in_torch = ops.greater_equal, torch.ge


class TestLess(Comparison):
    op, in_torch = ops.less, torch.lt


class TestLessEqual(Comparison):
    op, in_torch = ops.less_equal, torch.le


class TestEqual(Comparison):
    op, in_torch = ops.equal, torch.eq


class TestNotEqual(Comparison):
    op, in_torch = ops.not_equal, torch.ne


class TestLogicalAnd(Comparison):
    op, in_torch = ops.logical_and, torch.logical_and


class TestLogicalOr(Comparison):
    op, in_torch = ops.logical_or, torch.logical_or


class TestLogicalXor(Comparison):
    op, in_torch = ops.logical_xor, torch.logical_xor


class TestLogicalNot(Comparison):
    op, in_torch, errors = ops.logical_not, torch.logical_not, ANY_NUMBER
    cases = st.builds(lambda shape, seed: Case([np.asarray(rng(seed).random(shape) < 0.5)]), shapes(), seeds) | one().map(
        lambda case: Case([case.inputs[0].round()])
    )
    examples = EDGES


class TestIsfinite(Comparison):
    op, in_torch, errors = ops.isfinite, torch.isfinite, ANY_NUMBER
    cases = st.builds(lambda shape, seed: Case([np.asarray(rng(seed).choice([1.5, np.nan, np.inf, -np.inf], shape))]), shapes(), seeds)
    examples = [*EDGES, Case([np.array([1, 2])]), Case([np.array([True])])]


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "sqrt", "tanh", "sigmoid", "erf", "sin", "cos"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_whole_numbers_become_float32_as_in_pytorch(name: str, dtype: type):
    numbers = np.array([[1, 0, 1], [1, 1, 0]] if dtype is bool else [[1, 2, 3], [4, 5, 9]]).astype(dtype)
    expected = getattr(torch, name)(torch.tensor(numbers)).numpy()
    with np.errstate(divide="ignore"):
        for given in (Tensor(numbers), numbers):
            y = getattr(ops, name)(given)
            assert y.dtype == np.float32 == expected.dtype and not y.requires_grad
            np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)


# --- powers, as they are written


def test_integers_stay_integers_to_whole_powers_from_0_on():
    for dtype, expected in ((np.int32, np.int32), (np.uint8, np.uint8), (bool, np.int64)):
        x = Tensor(np.array([1, 3]).astype(dtype))
        assert (x**2).dtype == (x**0).dtype == expected
        for exponent in (-1, -2, 2.0, 0.5):
            y = x**exponent
            assert y.dtype == np.float32
            np.testing.assert_allclose(y.numpy(), x.numpy().astype(np.float64) ** exponent, rtol=1e-6)


@pytest.mark.parametrize("exponent", [2, 3, 4, 1, 0, 0.5, -0.5, -1, -2.5, 2.0, 1 / 3])
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
def test_power_with_a_number(exponent: float, shape: tuple[int, ...]):
    check_op(lambda x: x**exponent, lambda x: x**exponent, [draw(shape, 3, 0.3)])


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, 2.0, -1, -2])
def test_power_of_a_negative_base(exponent: float):
    check_op(lambda x: x**exponent, lambda x: x**exponent, [np.array([-2.0, -0.5, 0.7])])


@pytest.mark.parametrize("exponent", [0.5, -0.5])
def test_half_powers_are_pytorchs_at_the_ends(exponent: float):
    """There a root and a power differ: the root of -0.0 is -0.0, that of -inf nan, its power inf. Values, first and second derivatives."""
    ends, upstream = np.array([-0.0, 0.0, -np.inf, np.inf, -1.0, 4.0]), rng(0).uniform(1, 2, 6)
    ours, theirs = Tensor(ends, requires_grad=True), torch.tensor(ends, requires_grad=True)
    with np.errstate(all="ignore"):
        y, reference = ours**exponent, theirs**exponent
        (g,) = minigrad.grad(y, ours, Tensor(upstream), create_graph=True)
        (second,) = minigrad.grad(g, ours, Tensor(upstream))
    (of_g,) = torch.autograd.grad(reference, theirs, torch.tensor(upstream), create_graph=True)
    (of_second,) = torch.autograd.grad(of_g, theirs, torch.tensor(upstream))
    for mine, other in ((y, reference), (g, of_g), (second, of_second)):
        np.testing.assert_allclose(mine.numpy(), other.detach().numpy(), rtol=1e-15)


def test_powers_of_0_are_flat_in_their_exponent_as_pytorchs_unless_it_is_negative():
    base, exponents, upstream = np.zeros(5), np.array([-2.0, -0.5, 0.0, 0.5, 3.0]), rng(0).uniform(1, 2, 5)
    ours, theirs = Tensor(exponents, requires_grad=True), torch.tensor(exponents, requires_grad=True)
    with np.errstate(all="ignore"):
        (g,) = minigrad.grad(Tensor(base) ** ours, ours, Tensor(upstream))
    (reference,) = torch.autograd.grad(torch.tensor(base) ** theirs, theirs, torch.tensor(upstream))
    np.testing.assert_array_equal(g.numpy(), reference.numpy())
    np.testing.assert_array_equal(g.numpy(), [-np.inf, -np.inf, 0, 0, 0])


@pytest.mark.parametrize("base", [2, 0.5, np.float64(3)])
def test_number_to_the_power_of_a_tensor(base: float):
    check_op(lambda x: base**x, lambda x: float(base) ** x, [draw((2, 3), 5)])


# --- at the edges


@pytest.mark.parametrize("name", ["relu", "abs", "tanh", "sigmoid", "exp", "expm1", "erf", "log", "log1p", "sqrt", "sin"])
def test_nan_stays_nan(name: str):
    assert np.isnan(getattr(ops, name)(Tensor(np.array([np.nan]))).item()) and torch.isnan(getattr(torch, name)(torch.tensor([torch.nan]))).item()


# --- comparisons


@pytest.mark.parametrize("symbol", [operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne])
def test_comparison_operators(symbol):
    x = np.array([1.0, 2.0, 3.0], np.float32)
    for other in (2, 2.0, np.float64(2), np.array(2.0), np.array([3.0, 2.0, 1.0]), Tensor([2.0, 2.0, 2.0])):
        assert_array_equal(symbol(Tensor(x), other).numpy(), symbol(x, np.asarray(other)))
    assert_array_equal(symbol(np.array([3.0, 2.0, 1.0]), Tensor(x)).numpy(), symbol(np.array([3.0, 2.0, 1.0]), x))


@pytest.mark.parametrize("symbol", [operator.and_, operator.or_, operator.xor])
def test_operators_on_booleans(symbol):
    x, y = Tensor(rng(0).random((2, 3)) < 0.5), Tensor(rng(1).random(3) < 0.5)
    for first, second in ((x, y), (y, x), (x, y.numpy()), (x.numpy(), y), (x, True), (False, x), (x, np.bool_(True)), (np.array(True), x)):
        z = symbol(first, second)
        assert type(z) is Tensor and z.dtype == bool
        assert_array_equal(z.numpy(), symbol(np.asarray(first), np.asarray(second)))
    assert_array_equal((~x).numpy(), ~x.numpy())
    numbers = Tensor(rng(2).uniform(-1, 1, (2, 3)))
    assert_array_equal(numbers[~x].numpy(), numbers.numpy()[~x.numpy()])
    sign, name = {operator.and_: ("&", "and"), operator.or_: ("|", "or"), operator.xor: ("^", "xor")}[symbol]
    for other, kind in ((numbers, "float64"), (1, "int"), (np.arange(3), "int64"), (0.5, "float"), ("yes", "str"), (None, "NoneType")):
        message = (
            f"x {sign} y: booleans are needed, there is {kind}; compare first, in brackets, as in (x > 0) {sign} (y > 0), or take F.logical_{name}, "
            "for which every number but 0 is true"
        )
        for pair in ((x, other), (other, x)):
            with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
                symbol(*pair)
    with pytest.raises(TypeError, match=r"^~x: booleans are needed, there is int64; .* as in ~\(x > 0\), or take F\.logical_not,"):
        ~Tensor(np.arange(3))


# --- dtypes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.float64(2), np.int64(2), np.array(2.0)], ids=repr)
def test_numbers_as_exponent_or_bound_never_promote(dtype: type, number: float):
    """Whatever kind of number it is, values, gradients and dtype are those of the Python number."""
    x = Tensor(np.array([0.5, 3.0], dtype), requires_grad=True)

    def results(n: float) -> list[Tensor]:
        return [x**n, n**x, x.clip(n), x.clip(None, n), ops.maximum(x, n), x + n, n - x, x / n, n / x]

    for y, exact in zip(results(number), results(2.0), strict=True):
        assert y.dtype == dtype and type(y.data) is np.ndarray
        assert_array_equal(y.numpy(), exact.numpy())
        gradient, right = (minigrad.grad(z, x, Tensor(np.ones(2)))[0] for z in (y, exact))
        assert gradient.dtype == dtype
        assert_array_equal(gradient.numpy(), right.numpy())


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


def test_cast_gives_bytes_in_the_machine_s_order():
    for dtype in (">f4", ">f8", ">i4"):
        x = ops.cast(Tensor(np.array([1, 2])), dtype)
        assert x.dtype.isnative and x.dtype == np.dtype(dtype).newbyteorder("=")
        assert_array_equal(x.numpy(), [1, 2])


def test_clip_without_bounds_is_a_copy():
    x = Tensor(np.array([-1.5, 2.0]), requires_grad=True)
    y = ops.clip(x)
    assert_array_equal(y.numpy(), [-1.5, 2.0])
    assert not np.shares_memory(y.data, x.data)
    y.backward(np.array([3.0, -4.0]))
    assert x.grad is not None
    assert_array_equal(x.grad.numpy(), [3.0, -4.0])


def test_bounds_of_clip_for_each_element_do_not_promote():
    low = np.array([0.0, 5.0])
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    y = ops.clip(x, low)
    y.backward(Tensor(np.array([2.0, 3.0], np.float32)))
    assert y.dtype == x.grad.dtype == np.float32
    np.testing.assert_array_equal(y.numpy(), [1, 5])
    np.testing.assert_array_equal(x.grad.numpy(), [2, 0])
    np.testing.assert_array_equal(ops.clip(x, None, low.tolist()).numpy(), [0, 1])
    np.testing.assert_array_equal(ops.clip(Tensor(np.array([1, 7])), [0, 5], [3, 6]).numpy(), [1, 6])
    assert ops.clip(Tensor(np.array([1, 7])), 1.5).dtype == ops.clip(Tensor(np.array([1, 7])), None, 6.5).dtype == np.float32
    assert y.node.op is REGISTRY["clip"]  # in one pass, where no bound has a gradient and none has more axes
    larger = ops.clip(x, low[:, None])
    assert larger.dtype == np.float32
    np.testing.assert_array_equal(larger.numpy(), [[1, 1], [5, 5]])
    np.testing.assert_array_equal(minigrad.grad(larger, x, np.array([[2, 3], [4, 5]], np.float32))[0].numpy(), [2, 3])
    np.testing.assert_array_equal(ops.clip(Tensor(np.array([1, 7])), low[:, None]).numpy(), [[1, 7], [5, 7]])


@pytest.mark.parametrize("low_shape", [(3, 1), (5,), (), None])
@pytest.mark.parametrize("high_shape", [(3, 5), (1,), "number"])
def test_bounds_of_clip_may_be_tensors(low_shape: tuple | None, high_shape: tuple | str):
    """They are broadcast with x and have gradients, as PyTorch's: also of what is at a bound, and where the bounds cross."""
    x = Tensor(rng(0).integers(-4, 5, (3, 5)) / 4, requires_grad=True)
    low = None if low_shape is None else Tensor(np.asarray(rng(1).integers(-2, 3, low_shape) / 2), requires_grad=True)
    high = 0.25 if isinstance(high_shape, str) else Tensor(rng(2).integers(-2, 2, high_shape) / 2 + 0.25, requires_grad=True)
    leaves = [t for t in (x, low, high) if isinstance(t, Tensor)]
    y = ops.clip(x, low, high)
    theirs = [torch.tensor(t.numpy(), requires_grad=True) for t in leaves]
    given = dict(zip(map(id, leaves), theirs, strict=True))
    low_t, high_t = given.get(id(low)), given.get(id(high), high if low is None else torch.tensor(0.25, dtype=torch.float64))  # two of a kind
    expected = torch.clamp(theirs[0], low_t, high_t)
    upstream = rng(3).standard_normal(y.shape)
    for mine, right in zip(
        [y, *minigrad.grad(y, leaves, upstream)], [expected, *torch.autograd.grad(expected, theirs, torch.from_numpy(upstream))], strict=True
    ):
        assert_close(mine, right)


def test_what_clip_makes_of_nan_and_of_bounds_that_do_not_fit():
    x = Tensor([-1.0, 5.0], requires_grad=True)
    nan = ops.clip(x, Tensor([np.nan, 0.0]), np.array([4.0, np.nan])).numpy()
    assert np.isnan(nan).all() and np.isnan(ops.clip(Tensor([np.nan]), Tensor([0.0]), Tensor([1.0])).item())
    with pytest.raises(ValueError, match=r"clip: shapes \(2,\) and \(3,\) do not broadcast"):
        ops.clip(x, np.zeros(3))
    with pytest.raises(TypeError, match="cannot make numbers of str data"):
        ops.clip(x, "0")


@pytest.mark.emulator
def test_bounds_of_clip_on_another_device():
    with minigrad.emulated():
        x = Tensor([1.0, 2.0]).to(device="cuda")
        assert_array_equal(ops.clip(x, Tensor([1.5, 1.5]).to(device="cuda"), np.float64(1.75)).to(device="cpu").numpy(), [1.5, 1.75])
        with pytest.raises(TypeError, match=r"clip: inputs are on cuda and cpu; move them to one device"):
            ops.clip(x, np.zeros(2))
