"""anomaly(): the first NaN or Inf is reported where it is made: operation, shapes, and the line of this file. Read next: `test_gradcheck.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, anomaly, checkpoint, nn, ops
from minigrad import functional as F
from tests.support import rng

HERE = Path(__file__).name


@pytest.fixture(autouse=True)
def quiet_numpy() -> Iterator[None]:
    """NumPy warns of what anomaly mode reports."""
    with np.errstate(all="ignore"):
        yield


def line_of(function: Callable) -> int:
    """The number of the line of `function` that says that it is the culprit."""
    lines, start = inspect.getsourcelines(function)
    return start + next(k for k, line in enumerate(lines) if "the culprit" in line)


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def divide(x: Tensor) -> Tensor:
    y = x * 2.0
    return y / (x - x)  # the culprit


def logarithm(x: Tensor) -> Tensor:
    return (x - 5.0).log()  # the culprit


def overflow(x: Tensor) -> Tensor:
    return ops.exp(x * 1e6)  # the culprit


def convert(x: Tensor) -> Tensor:
    return x.astype(np.float32) * 1e300  # the culprit


FORWARD = {
    "div makes Inf": (divide, leaf(1.0, 2.0), r"anomaly: div made Inf in its output of shape \(2,\) from inputs of shape \(2,\), \(2,\), called at"),
    "div makes NaN": (divide, leaf(0.0, 2.0), r"anomaly: div made NaN in its output of shape \(2,\) from inputs of shape \(2,\), \(2,\), called at"),
    "log makes NaN": (logarithm, leaf(1.0), r"anomaly: log made NaN in its output of shape \(1,\) from inputs of shape \(1,\), called at"),
    "exp makes Inf": (overflow, leaf(1.0, 2.0, 3.0), r"anomaly: exp made Inf in its output of shape \(3,\) from inputs of shape \(3,\), called at"),
    "a number becomes Inf": (convert, leaf(3.0), r"anomaly: mul made Inf in its output of shape \(1,\) from inputs of shape \(1,\), \(\), called at"),
}


@pytest.mark.parametrize("where", ["plain", "no_grad", "checkpoint", "definitions"])
@pytest.mark.parametrize("name", FORWARD)
def test_the_first_bad_number_is_reported_with_operation_shapes_and_line(name: str, where: str):
    function, x, message = FORWARD[name]
    mode = {"no_grad": minigrad.no_grad, "definitions": minigrad.definitions}.get(where, minigrad.enable_grad)
    with anomaly(), mode(), pytest.raises(FloatingPointError, match=rf"{message} .*{HERE}:{line_of(function)}$"):
        checkpoint(function, x) if where == "checkpoint" else function(x)


def test_forward_of_a_kernel_names_the_fused_operation_and_its_definition_the_step():
    x = Tensor(np.array([[1.0, 1.0]]), requires_grad=True)

    def normalise(x: Tensor) -> Tensor:
        return F.layer_norm(x, eps=0.0)  # the culprit: a variance of 0

    with anomaly():
        with pytest.raises(FloatingPointError, match=rf"anomaly: layer_norm made NaN .*shape \(1, 2\).*{HERE}:{line_of(normalise)}$"):
            normalise(x)
        with (
            minigrad.definitions(),
            pytest.raises(FloatingPointError, match=rf"anomaly: power made Inf .*{HERE}:{line_of(normalise)}$"),
        ):
            normalise(x)


def test_a_module_is_part_of_the_package_and_not_the_line():
    layer = nn.LayerNorm(2)

    def call() -> None:
        layer(Tensor(np.array([[np.nan, 1.0]], np.float32)))  # the culprit

    with (
        anomaly(),
        pytest.raises(FloatingPointError, match=rf"layer_norm made NaN .*\(an input already holds NaN\), called at .*{HERE}:{line_of(call)}$"),
    ):
        call()


# --- backward


def square_root(x: Tensor) -> Tensor:
    y = x * 1.0
    return y.sqrt() + 1.0  # the culprit: an infinite slope at 0


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("where", ["plain", "checkpoint"])
def test_backward_names_the_line_of_the_forward(where: str, create_graph: bool):
    x = leaf(0.0, 1.0)
    expected = rf"backward of sqrt made Inf in a gradient of shape \(2,\); its forward was called at .*{HERE}:{line_of(square_root)}$"
    if create_graph:
        line = line_of(square_root)  # the rule itself runs as watched operations: g / (2 * out)
        expected = rf"backward of sqrt: div made Inf in its output of shape \(2,\) .*; its forward was called at .*{HERE}:{line}$"
    with anomaly():
        y = checkpoint(square_root, x) if where == "checkpoint" else square_root(x)
        with pytest.raises(FloatingPointError, match=f"anomaly: {expected}"):
            y.sum().backward(create_graph=create_graph)


def test_backward_of_a_kernel_names_the_line_of_its_forward():
    x = Tensor(np.zeros((1, 3)), requires_grad=True)

    def attend(x: Tensor) -> Tensor:
        return F.softmax(x)  # the culprit

    with anomaly():
        y = attend(x)
        with pytest.raises(
            FloatingPointError,
            match=rf"backward of softmax made NaN .*\(the incoming gradient already holds one\).*{HERE}:{line_of(attend)}$",
        ):
            y.backward(Tensor(np.array([[np.inf, 1.0, 0.0]])))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("nested", [0, 1, 2])
@pytest.mark.parametrize("where", ["kernels", "definitions"])
def test_backward_of_a_fused_operation_inside_checkpoints_names_the_line_in_the_function(where: str, nested: int, create_graph: bool):
    """The second run of a checkpoint, in the mode of the first, leads to the line in the function."""
    x, weight = Tensor(np.array([[1.0, -1.0]]), requires_grad=True), Tensor(np.array([1e200, 1e200]))

    def normalise(x: Tensor) -> Tensor:
        return F.layer_norm(x, weight)  # the culprit, with this weight and this upstream gradient

    def function(x: Tensor) -> Tensor:
        return normalise(x)

    for _ in range(nested):
        function = (lambda inner: lambda x: checkpoint(inner, x))(function)
    with anomaly():
        with minigrad.definitions() if where == "definitions" else minigrad.enable_grad():
            y = function(x)
        operation = "layer_norm" if where == "kernels" and not create_graph else "mul"
        with pytest.raises(FloatingPointError, match=rf"anomaly: backward of {operation}.* made .*{HERE}:{line_of(normalise)}$"):
            y.backward(Tensor(np.array([[1e200, 2e200]])), create_graph=create_graph)


def test_backward_of_a_rule_made_of_operations_names_the_operation_that_was_called():
    """What is named is the operation that was called, the one in its rule that went wrong, and the line of the call, not that of backward()."""
    x = Tensor(np.array([[1.0, 2.0]]), requires_grad=True)

    def repeat(x: Tensor) -> Tensor:
        return ops.broadcast_to(x, (3, 2))  # the culprit: its rule adds up

    with anomaly():
        y = repeat(x)
        with pytest.raises(
            FloatingPointError,
            match=r"anomaly: backward of broadcast_to: sum_to made Inf in its output of shape \(1, 2\) from inputs of shape \(3, 2\); "
            rf"its forward was called at .*{HERE}:{line_of(repeat)}$",
        ):
            y.backward(Tensor(np.full((3, 2), 1e308)))


def test_gradients_that_add_up_to_infinity_are_reported_where_they_meet():
    """Each is finite, and no rule is to blame."""
    x, y = leaf(1.0), leaf(1.0)
    g = Tensor(np.array([1e308]))

    def fan_out(x: Tensor) -> Tensor:
        return ops.identity(x)  # the culprit's output is used twice

    with anomaly():
        with pytest.raises(FloatingPointError, match=r"anomaly: the gradients that reach a leaf of shape \(1,\) add up to Inf$"):
            (x + x).backward(g)
        assert x.grad is None
        z = fan_out(y)
        with pytest.raises(
            FloatingPointError,
            match=r"the gradients that reach the output of identity of shape \(1,\), whose forward was called at "
            rf".*{HERE}:{line_of(fan_out)} add up to Inf$",
        ):
            (z + z).backward(g)
        z = fan_out(y)
        for wanted in ([z], [z, y]):  # where the walk ends, and where it goes on
            with pytest.raises(FloatingPointError, match="the gradients that reach the output of identity"):
                minigrad.grad(z + z, wanted, g)
        (y * 1.0).backward(g)
        x.grad = Tensor(np.array([2.0]))
        with pytest.raises(FloatingPointError, match=r"the gradients that reach the .grad of a leaf of shape \(1,\) add up to Inf$"):
            (y * 1.0 + x).backward(g)
        assert y.grad.item() == 1e308 and x.grad.item() == 2  # neither was added to
    x.grad = None
    (x + x).backward(g)
    assert x.grad.item() == np.inf


def test_backward_of_a_graph_that_was_recorded_before_says_that_its_line_is_not_known():
    y = square_root(leaf(0.0)).sum()
    with anomaly(), pytest.raises(FloatingPointError, match="backward of sqrt made Inf .* its forward was called at a line outside `with anomaly"):
        y.backward()


def test_numpys_own_error_in_backward_stays_as_it_is():
    with anomaly():
        y = square_root(leaf(0.0)).sum()
        with np.errstate(divide="raise"), pytest.raises(FloatingPointError, match="^divide by zero encountered in divide$"):
            y.backward()


def test_a_graph_recorded_inside_may_be_walked_outside():
    x = leaf(0.0)
    with anomaly():
        y = square_root(x).sum()
    y.backward()
    assert x.grad.item() == np.inf


# --- what passes


def test_infinities_that_were_given_pass():
    """-inf as a mask before softmax, as the padding of a maximum, as a bound: nothing was made that was not given."""
    scores = Tensor(rng(0).uniform(-1, 1, (2, 3)), requires_grad=True)
    mask = np.array([[True, False, True], [True, True, False]])
    for mode in (minigrad.enable_grad, minigrad.definitions):
        with anomaly(), mode():
            masked = ops.where(mask, scores, -np.inf)
            (F.softmax(masked) * Tensor(rng(1).uniform(-1, 1, (2, 3)))).sum().backward()
            added = scores + Tensor(np.where(mask, 0.0, -np.inf))
            F.softmax(added).max(1).sum().backward()
            image = Tensor(rng(2).uniform(-1, 1, (1, 4, 4, 2)), requires_grad=True)
            y = F.max_pool2d(image, 3, 2, 1)
            y.backward(Tensor(rng(3).uniform(-1, 1, y.shape)))
            ops.pad(scores, ((1, 0), (0, 0)), -np.inf).max(0).sum().backward()
            scores.clip(-np.inf, 0.5).sum().backward()
            ops.maximum(scores, -np.inf).sum().backward()
            ops.maximum(np.float32(-np.inf), scores).sum().backward()
    assert np.isfinite(scores.grad.numpy()).all() and np.isfinite(image.grad.numpy()).all()


def test_but_not_a_nan_made_of_them():
    x = Tensor(np.array([-np.inf, 1.0]))

    def subtract(x: Tensor) -> Tensor:
        return x - x  # the culprit

    with (
        anomaly(),
        pytest.raises(FloatingPointError, match=rf"sub made NaN .*\(an input already holds Inf\), called at .*{HERE}:{line_of(subtract)}$"),
    ):
        subtract(x)


def test_integers_and_booleans_are_never_looked_at():
    with anomaly():
        assert (Tensor(np.array([1, 2])) * 3).sum().item() == 9
        assert (Tensor([1.0]) > 0).item() is True


def test_where_it_is_off_nothing_is_said():
    x = leaf(0.0, 1.0)
    divide(x)
    square_root(x).sum().backward()
    assert x.grad.numpy()[0] == np.inf


def test_numbers_are_the_same_with_and_without():
    x = Tensor(rng(4).uniform(-1, 1, (3, 4)), requires_grad=True)
    w = Tensor(rng(5).uniform(-1, 1, (4, 4)), requires_grad=True)
    results = []
    for mode in (anomaly, minigrad.enable_grad):
        with mode():
            y = F.gelu(F.linear(F.layer_norm(x), w)).relu().max(1) * checkpoint(lambda x: x.exp().mean(1), x)
            results.append([y.numpy(), *[g.numpy() for g in minigrad.grad(y, [x, w], Tensor(rng(6).uniform(-1, 1, y.shape)))]])
    for ours, reference in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, reference)
