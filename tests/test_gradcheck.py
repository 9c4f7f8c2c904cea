"""gradcheck itself: it passes what is right and catches what is wrong, at first and at second order. Read next: `test_base_op.py`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, gradcheck, ops
from minigrad import functional as F
from minigrad.op import fused, primitive
from tests.support import leaf


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x * y.exp(),
        lambda x, y: (x @ y).tanh(),
        lambda x, y: F.softmax(x) * y,
        lambda x, y: F.layer_norm(x) @ y,
        lambda x, y: (x.unbind()[0], y.sum(0)),
        lambda x, y: minigrad.checkpoint(lambda x: x.sin() * y, x),
        lambda x, y: x + y,
        lambda x, y: x.sum(),
        lambda x, y: (x * y, x > y),
        lambda x, y: [x * 2.0],
        lambda x, y: ops.concatenate([x, y]) ** 3,
    ],
)
@pytest.mark.parametrize("order", [1, 2])
def test_what_is_right_passes(function: Callable, order: int):
    assert gradcheck(function, [leaf(3, 3), leaf(3, 3, seed=1)], order=order) is True


def test_one_input_needs_no_list_and_constants_are_left_alone():
    assert gradcheck(lambda x: x**2, leaf(3))
    assert gradcheck(lambda x, c: x * c, [leaf(3), Tensor(np.ones(3, np.float32))])
    assert gradcheck(lambda x: x.exp(), leaf()) and gradcheck(lambda x: x.exp(), leaf(0, 3))


WRONG = {
    "a factor": lambda g, x: g * x * 2.0002,
    "a sign": lambda g, x: -(g * x * 2.0),
    "one element": lambda g, x: ops.where(np.array([True, True, False]), g * x * 2.0, g * x),
    "a forgotten upstream gradient": lambda g, x: x * 2.0,
    "nothing at all": lambda g, x: g * 0.0,
    "nan": lambda g, x: g * float("nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_caught(name: str, registry: None):
    @primitive
    def square(x: Tensor) -> Tensor:
        return x * x

    square.derivative(x=WRONG[name])
    with pytest.raises(AssertionError, match=r"gradcheck: the derivative along direction \d is .* by backward, .* by finite differences"):
        gradcheck(square, leaf(3))
    square.derivative(x=lambda g, x: g * x * 2.0)
    square._plans.clear()
    assert gradcheck(square, leaf(3))


def test_a_missing_rule_is_caught(registry: None):
    @primitive
    def scaled(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    scaled.derivative(x=lambda g, y: g * y)  # none for y
    assert gradcheck(lambda x: scaled(x, Tensor(np.array([2.0, 3.0]))), leaf(2))
    with pytest.raises(AssertionError, match="gradcheck: the derivative"):
        gradcheck(scaled, [leaf(2), leaf(2, seed=1)])
    with pytest.raises(AssertionError, match=r"is 0 by backward"):
        gradcheck(lambda x: (x * x).detach(), leaf(2))


def test_a_mistake_that_a_plain_sum_hides_is_caught(registry: None):
    """The sum of a softmax is 1 whatever its input: only non-uniform weights see a wrong backward."""

    @fused
    def peaked(x: Tensor) -> Tensor:
        return F.softmax(x)

    def forward(x: np.ndarray) -> tuple:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True), ()

    peaked.kernel("cpu", forward, lambda dy, saved, needs: (dy - dy.mean(-1, keepdims=True),))
    x = leaf(2, 3)
    assert not np.any(np.abs(minigrad.grad(peaked(x).sum(), x)[0].numpy()) > 1e-12)
    with pytest.raises(AssertionError):
        gradcheck(peaked, x)


def test_a_wrong_second_derivative_is_caught(registry: None):
    """The kernel's derivative is right; the definition, which create_graph differentiates, has another."""

    @fused
    def cube(x: Tensor) -> Tensor:
        return x * x * x.detach()  # differentiates to 2 x^2 where 3 x^2 is right

    cube.kernel("cpu", lambda x: (x**3, (x,)), lambda dy, saved, needs: (3 * dy * saved[0] ** 2,))
    assert gradcheck(cube, leaf(3))
    with pytest.raises(AssertionError, match="gradcheck: the second derivative along direction"):
        gradcheck(cube, leaf(3), order=2)


def test_the_second_derivative_of_every_input_is_looked_at(registry: None):
    @fused
    def cube(x: Tensor) -> Tensor:
        return x * x * x.detach()

    cube.kernel("cpu", lambda x: (x**3, (x,)), lambda dy, saved, needs: (3 * dy * saved[0] ** 2,))
    for function in (lambda x, y: cube(x) + y**2, lambda x, y: x**2 + cube(y)):
        with pytest.raises(AssertionError, match="gradcheck: the second derivative along direction"):
            gradcheck(function, [leaf(3), leaf(3, seed=1)], order=2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("scale", "error", "passes"),
    [(1000.0, 0.7e-6, True), (1000.0, 1.4e-6, False), (1e-3, 4e-4, True), (1e-3, 1.3e-3, False), (1e-3, 4e-3, False)],
    ids=["large, within", "large, outside", "small, within", "small, just outside", "small, outside"],
)
def test_the_tolerance_is_relative_to_the_largest_of_1_and_both_values(scale: float, error: float, passes: bool, sign: float, registry: None):
    """Of one number, whose only directions are 1 and -1: the slope is `scale` times a weight between 0.5 and 1.5 (1.14 with this seed)."""

    @primitive
    def scaled(x: Tensor) -> Tensor:
        return x * scale

    scaled.derivative(x=lambda g: g * (scale * (1.0 + sign * error)))
    x = Tensor(np.array(0.5), requires_grad=True)
    if passes:
        assert gradcheck(scaled, x)
    else:
        with pytest.raises(AssertionError, match="gradcheck: the derivative along direction"):
            gradcheck(scaled, x)


def test_two_points_at_the_distance_along_each_direction():
    x, y = leaf(3), leaf(2, seed=1)
    for options, directions, step in (({}, 3, 1e-5), (dict(directions=1, step=1e-4), 1, 1e-4)):
        moves = []

        def function(a: Tensor, b: Tensor, moves: list = moves) -> Tensor:
            moves.append(np.concatenate([a.numpy() - x.numpy(), b.numpy() - y.numpy()]))
            return a.sum() * b

        gradcheck(function, [x, y], **options)
        distances = [np.linalg.norm(move) for move in moves if move.any()]
        np.testing.assert_allclose(distances, step, rtol=1e-6)
        assert len(distances) == 2 * directions


def test_a_kink_is_a_false_alarm_and_says_so_in_numbers():
    with pytest.raises(AssertionError, match=r"step 1e-05"):
        gradcheck(lambda x: (x - 1.0).relu(), Tensor(np.array([1.0, 1.0]), requires_grad=True))


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([Tensor([1.0], requires_grad=True)], TypeError, r"gradcheck: an input of shape \(1,\) is float32; finite differences need float64"),
        ([Tensor(np.ones(2))], ValueError, "gradcheck: none of the inputs requires grad"),
        ([], ValueError, "gradcheck: none of the inputs requires grad"),
    ],
)
def test_inputs_that_cannot_be_checked(inputs: list, error: type, message: str):
    with pytest.raises(error, match=message):
        gradcheck(lambda *x: x[0] * 2.0, inputs)


@pytest.mark.parametrize("second", [Tensor(np.array(2.0), requires_grad=True), leaf(3, seed=1), Tensor(np.ones(3)), 1e-5])
def test_several_inputs_are_a_list(second: Any):
    """A second Tensor was taken for the step, and with one of no axes nothing was checked of it."""
    called = []
    with pytest.raises(TypeError, match=r"^gradcheck: 2 arguments after the function; give its inputs as a list, gradcheck\(f, \[x, w\]\)"):
        gradcheck(lambda *x: called.append(x) or x[0] * 2.0, leaf(3), second)
    assert not called
    with pytest.raises(TypeError, match=r"^gradcheck: 3 arguments after the function;"):
        gradcheck(lambda x, y, z: x * y * z, leaf(3), leaf(3), leaf(3))


def test_it_leaves_the_inputs_alone():
    x = leaf(3)
    before = x.numpy().copy()
    gradcheck(lambda x: x.exp(), x, order=2)
    np.testing.assert_array_equal(x.numpy(), before)
    assert x.grad is None and x.version[0] == 0


def test_a_function_without_float_outputs_has_no_derivative():
    with pytest.raises(ValueError, match="none of the function's outputs is a float Tensor"):
        minigrad.gradcheck(lambda x: x > 0, Tensor(np.ones(2), requires_grad=True))


def test_in_no_direction_nothing_would_be_compared():
    with pytest.raises(ValueError, match="gradcheck: directions is 0; in fewer than 1 nothing is compared"):
        gradcheck(lambda x: x * x, Tensor(np.ones(3), requires_grad=True), directions=0)


@pytest.mark.parametrize("step", [0, -1e-5, float("nan"), float("inf")])
def test_at_no_distance_nothing_would_be_compared(step: float):
    with pytest.raises(ValueError, match=rf"gradcheck: step is {step}; give a positive number"):
        gradcheck(lambda x: x * x, leaf(3), step=step)


@pytest.mark.parametrize(("output", "kind"), [(2.0, "float"), (None, "NoneType"), (np.ones(3), "ndarray")])
def test_what_is_no_tensor_has_no_derivative(output: object, kind: str):
    for function in (lambda x: output, lambda x: (x * x, output)):
        with pytest.raises(TypeError, match=f"gradcheck: the function returned a {kind}; let it return a Tensor or a tuple of Tensors"):
            gradcheck(function, leaf(3))


def test_it_records_under_no_grad_too():
    with minigrad.no_grad():
        assert gradcheck(lambda x: x**3, leaf(3), order=2)
        with pytest.raises(AssertionError, match="gradcheck: the derivative along direction"):
            gradcheck(lambda x: x * x.detach(), leaf(3))
        assert not (leaf(3) * 2.0).requires_grad


def test_the_same_seed_tries_the_same_directions():
    seen: list = []

    def function(x: Tensor) -> Tensor:
        seen.append(x.numpy().copy())
        return x * 2.0

    runs = []
    for options in ({}, dict(seed=0), dict(seed=1)):
        seen.clear()
        gradcheck(function, Tensor(np.ones(3), requires_grad=True), **options)
        runs.append(np.array(seen))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("backward", "error", "message"),
    [
        (lambda dy, saved, needs: (dy * saved[1], dy * saved[0]), ValueError, r"gradient of a tensor of shape \(3,\), float64, came out as \(2, 3\)"),
        (lambda dy, saved, needs: (dy * saved[1], np.float32(1) * (dy * saved[0]).sum(0).astype(np.float32)), ValueError, "came out as .*float32"),
        (lambda dy, saved, needs: (np.multiply(dy, saved[1], out=dy), (dy * saved[0] / saved[1]).sum(0)), AssertionError, "wrote into the gradient"),
        (
            lambda dy, saved, needs: (dy * saved[1], np.multiply(dy, saved[0], out=saved[0]).sum(0)),
            AssertionError,
            "input 0 of shape .* was written to",
        ),
    ],
)
def test_a_kernel_that_breaks_the_rules(backward: Callable, error: type, message: str, registry: None):
    @fused
    def scale(x: Tensor, weight: Tensor) -> Tensor:
        return x * weight

    scale.kernel("cpu", lambda x, weight: (x * weight, (x, weight)), backward)
    with pytest.raises(error, match=message):
        gradcheck(scale, [leaf(2, 3), leaf(3, seed=1)], order=2)


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        (lambda x: (x**3, (x,)), lambda dy, saved, needs: (3 * dy * saved[0] ** 2,), r"differs by 3.25 between kernels and definitions"),
        (lambda x: (x * x + 5e-6, (x,)), lambda dy, saved, needs: (2 * dy * saved[0],), "differs by 5e-06 between kernels and definitions"),
        (lambda x: (x[:2] ** 2, (x,)), lambda dy, saved, needs: (np.append(2 * dy, 0),), r"shape \(2,\) by kernels, \(3,\) by definitions"),
    ],
)
def test_a_kernel_of_another_function_than_its_definition_s(forward: Callable, backward: Callable, message: str, registry: None):
    """Its backward is right, of what its forward computes."""

    @fused
    def square(x: Tensor) -> Tensor:
        return x * x

    square.kernel("cpu", forward, backward)
    x = Tensor(np.array([0.5, -0.7, 1.9]), requires_grad=True)
    with pytest.raises(AssertionError, match=f"^gradcheck: .*{message}"):
        gradcheck(square, x)
    with minigrad.definitions():
        assert gradcheck(square, x)


@pytest.mark.parametrize(
    ("size", "error", "tolerance", "passes"),
    [(1e3, 9e-4, 1e-6, True), (1e3, 1.1e-3, 1e-6, False), (0.01, 9e-7, 1e-6, True), (0.01, 1.1e-6, 1e-6, False), (1.0, 0.5, 0.5, True)],
)
def test_values_may_differ_relative_to_1_and_the_largest(size: float, error: float, tolerance: float, passes: bool, registry: None):
    @fused
    def same(x: Tensor) -> Tensor:
        return x * 1.0

    same.kernel("cpu", lambda x: (x + np.array([0.0, error]), ()), lambda dy, saved, needs: (dy * 1.0,))
    with nullcontext() if passes else pytest.raises(AssertionError, match="differs by .* between kernels and definitions"):
        gradcheck(same, Tensor(np.array([-size, size / 2]), requires_grad=True), tolerance=tolerance)


def test_a_write_that_is_declared_is_no_mistake():
    average = Tensor(np.zeros(3))

    def function(x: Tensor, average: Tensor) -> Tensor:
        with minigrad.no_grad():
            average.copy_(average * 0.9 + x.detach() * 0.1)
        return x * 2.0

    assert gradcheck(function, [leaf(3), average]) and average.numpy().any()

    def silent(x: Tensor, average: Tensor) -> Tensor:
        average.data += 1.0
        return x * 2.0

    with pytest.raises(AssertionError, match=r"gradcheck: input 1 of shape \(3,\) was written to"):
        gradcheck(silent, [leaf(3), average])
