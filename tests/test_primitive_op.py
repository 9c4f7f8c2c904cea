"""Primitives: what a forward may give, any number of Tensors, errors, whose memory a result is. Read next: `test_fast_calls.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, ops
from minigrad.op import REGISTRY, fused, primitive
from tests.support import leaf

pytestmark = pytest.mark.usefixtures("registry")


# --- what a forward gives


@pytest.mark.parametrize("result", [2.0, {}, None])
@pytest.mark.parametrize("options", [{}, {"view": True}])
def test_a_forward_that_gives_no_array(result: Any, options: dict):
    @primitive(**options)
    def odd(x: Tensor) -> Tensor:
        return result

    with pytest.raises(TypeError, match=f"^odd: its forward gives an object of type {type(result).__name__}; give an array$"):
        odd(Tensor([1.0]))


@pytest.mark.parametrize("scale", [{}, {"scale": 2.0}])
def test_how_many_results_a_forward_gives(scale: dict):
    def pieces(x: Tensor, scale: float = 1.0) -> Any:
        return [x * scale, x.sum()][:count] if count else x * scale

    def one(x: Tensor) -> Any:
        return (x,)

    op, count = primitive(several=True)(pieces), 2
    op.derivative(x=lambda g, scale: g[0] * scale)
    x = leaf(2)
    for count in (2, 1):
        outputs = op(x, **scale)
        assert type(outputs) is tuple and len(outputs) == count and all(type(y.data) is np.ndarray for y in outputs)
        assert_array_equal(minigrad.grad(outputs[0], x, np.array([1.0, 10.0]))[0].numpy(), np.array([1.0, 10.0]) * scale.get("scale", 1.0))
    count = 0
    with pytest.raises(TypeError, match="^pieces: its forward gives an object of type ndarray; with several=True, give a tuple of arrays$"):
        op(x, **scale)
    count = 2
    with pytest.raises(TypeError, match=r"^pieces: its forward gives \(ndarray, float64\); give an array, or declare several=True$"):
        primitive(pieces)(x, **scale)
    with pytest.raises(TypeError, match=r"^one: its forward gives \(ndarray\); give an array, or declare several=True$"):
        primitive(one)(x)
    op.derivative(x=lambda g, out: g[0] * out)
    with pytest.raises(TypeError, match="^pieces: a rule asks for 'out'; it may ask for g, x, scale or x_shape$"):
        op(x)


def test_several_results_of_several_inputs():
    """The gradient of each input that requires grad, by its own rule, and no node where there are no rules."""

    @primitive(several=True)
    def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + y, x * y

    a, b = leaf(2), leaf(2, seed=1)
    assert not any(z.requires_grad for z in both(a, b))
    both.derivative(x=lambda g, y: g[0] + g[1] * y, y=lambda g, x: g[0] + g[1] * x)
    upstream = [np.array([1.0, 10.0]), np.array([3.0, 5.0])]
    for x, y in ((a, b), (a, b.detach()), (a.detach(), b)):
        outputs = both(x, y)
        assert len(outputs[0].node.saved) == x.requires_grad + y.requires_grad
        expected = ((x, upstream[0] + upstream[1] * b.numpy()), (y, upstream[0] + upstream[1] * a.numpy()))
        wanted = [(z, gradient) for z, gradient in expected if z.requires_grad]
        found = minigrad.grad(outputs, [z for z, _ in wanted], upstream)
        for ours, (_, gradient) in zip(found, wanted, strict=True):
            assert_allclose(ours.numpy(), gradient, rtol=1e-14)


# --- any number of Tensors


def variadic(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors)  # type: ignore[return-value]


def test_an_operation_on_any_number_of_tensors():
    total = primitive(variadic)
    total.derivative(tensors=lambda g, tensors_shape: [g * (k + 1.0) for k in range(len(tensors_shape))])
    a, b = leaf(2), leaf(2, seed=1)
    ga, gb = minigrad.grad(total([a, b, a]).sum(), [a, b])
    assert_array_equal(ga.numpy(), [4.0, 4.0])
    assert_array_equal(gb.numpy(), [2.0, 2.0])
    assert_array_equal(total([np.ones(2), np.full(2, 3.0)]).numpy(), [4.0, 4.0])  # arrays alone
    with pytest.raises(ValueError, match="variadic: needs at least one tensor"):
        total([])


def test_a_rule_of_any_number_of_tensors_that_asks_for_the_gradient_alone():
    """Or for another thing alone, such as the output, be that the derivative or not."""
    pair = primitive(variadic)
    a, b = leaf(3), leaf(3, seed=1)
    pair.derivative(tensors=lambda out: [out, out * 2.0])
    total = (a + b).numpy()
    for found, expected in zip(minigrad.grad(pair([a, b]).sum(), [a, b]), (total, 2 * total), strict=True):
        assert_array_equal(found.numpy(), expected)
    for state in (lambda: pair.derivative(tensors=lambda g: [g, g * 2.0]), pair.on_arrays):
        state()
        ga, gb = minigrad.grad(pair([a, b]).sum(), [a, b])
        assert_array_equal([ga.numpy(), gb.numpy()], [[1.0] * 3, [2.0] * 3])


def test_the_facts_of_a_sequence_are_those_of_each_tensor():
    asked: list = []
    total = primitive(variadic)

    def rule(g: Tensor, tensors_dtype: tuple, tensors_shape: tuple, tensors_device: tuple) -> list[Tensor]:
        asked.append((tensors_dtype, tensors_shape, tensors_device))
        return [ops.sum_to(g, shape) for shape in tensors_shape]

    total.derivative(tensors=rule)
    x, y = leaf(2, 3), leaf(3)
    minigrad.grad(total([x, y, y]).sum(), [x, y])
    assert asked == [((np.dtype(np.float64),) * 3, ((2, 3), (3,), (3,)), ("cpu",) * 3)]
    total.derivative(tensors=lambda g, tensors: [g * x for x in tensors])
    with pytest.raises(TypeError, match="^variadic: a rule asks for 'tensors'; it may ask for g, out or tensors_shape$"):
        total([x, x])


def test_a_sequence_is_the_only_input_and_of_a_primitive():
    def scaled(scale: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        return scale * tensors[0]

    for make, function in ((primitive, scaled), (fused, scaled), (fused, variadic)):
        with pytest.raises(TypeError, match=r"^\w+: tensors is a Sequence\[Tensor\], which only a primitive can take, and as its only input$"):
            make(function)
        assert function.__name__ not in REGISTRY


def test_a_setting_may_be_a_sequence():
    @primitive
    def total(x: Tensor, axes: Sequence[int]) -> Tensor:
        return x.sum(axes)

    assert_array_equal(total(Tensor(np.ones((2, 3, 4))), [0, 1]).numpy(), [6.0] * 4)


# --- errors of the arrays


WRONG_SHAPES = {
    "add: shapes (2, 3) and (4,) do not broadcast": lambda x: x + np.ones(4),
    "mul: shapes (4,) and (2, 3) do not broadcast": lambda x: np.ones(4) * x,
    "where: shapes (4,) and (2, 3) and () do not broadcast": lambda x: ops.where(np.ones(4, bool), x, 0.0),
    "reshape: cannot reshape array of size 6 into shape (4,) (given shape (2, 3))": lambda x: x.reshape(4),
    "concatenate: all the input array dimensions except for the concatenation axis must match": lambda x: ops.concatenate([x, x.T]),
    "stack: all input arrays must have the same shape (given shapes (2, 3) and (3, 2))": lambda x: ops.stack([x, x.T]),
    "getitem: index 5 is out of bounds for axis 0 with size 2 (given shape (2, 3))": lambda x: x[5],
    "sum: duplicate value in 'axis' (given shape (2, 3))": lambda x: x.sum((0, 0)),
    "max: zero-size array to reduction operation maximum which has no identity": lambda x: x[:0].max(),
    "transpose: axes (0,) do not order the 2 axes of shape (2, 3)": lambda x: x.transpose(0),
    "matmul: shapes (2, 3) and (2, 3) do not fit": lambda x: x @ x,
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("message", WRONG_SHAPES)
def test_errors_name_the_operation_and_the_shapes(message: str, requires_grad: bool):
    for watched in (minigrad.enable_grad, minigrad.anomaly):
        with watched(), pytest.raises((ValueError, IndexError)) as error:
            WRONG_SHAPES[message](Tensor(np.ones((2, 3)), requires_grad))
        assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_errors_of_other_kinds_come_through_as_they_are():
    class Own(ValueError):
        def __init__(self, number: int, text: str):
            super().__init__(number, text)

    def own(x: Tensor) -> Tensor:
        raise Own(3, "three")

    def named(x: Tensor) -> Tensor:
        raise ValueError("named: says it all")

    with pytest.raises(Own) as error:
        primitive(own)(Tensor([1.0]))
    assert error.value.args == (3, "three")
    with pytest.raises(ValueError, match="^named: says it all$"):
        primitive(named)(Tensor([1.0]))


def unary_failing(x: Tensor) -> Tensor:
    try:
        return {}[x.shape]
    except KeyError as error:
        raise TypeError("no such shape") from error


def binary_failing(x: Tensor, y: Tensor) -> Tensor:
    return unary_failing(x)


def other_failing(a: Tensor) -> Tensor:
    return unary_failing(a)


@pytest.mark.parametrize("function", [unary_failing, binary_failing, other_failing])
def test_an_error_of_its_own_keeps_its_cause(function: Callable):
    op = primitive(function)
    with pytest.raises(TypeError, match="^no such shape$") as error:
        op(*[Tensor([1.0])] * op.count)
    assert isinstance(error.value.__cause__, KeyError)


# --- whose memory a result is


def reversal(x: Tensor) -> Tensor:
    return x


def every_second(x: Tensor, step: int = 2) -> Tensor:
    return x[::step]


def second(x: Tensor, y: Tensor) -> Tensor:
    return y


def flat(x: Tensor, y: Tensor) -> Tensor:
    return y.reshape(-1)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:2], x[2:]


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("view_of_a_view", [False, True])
@pytest.mark.parametrize("function", [reversal, every_second, second, flat, halves])
def test_an_output_that_looks_at_an_input_s_memory_shares_its_version(function: Callable, view_of_a_view: bool, requires_grad: bool):
    """Declared or not: a write to the input is one to the output, which whoever has used the output must hear of."""
    op = primitive(several=True)(function) if function is halves else primitive(function)
    for name in op.names[: op.count]:
        op.derivative(**{name: lambda g: g})
    x = Tensor(np.arange(8.0), requires_grad=requires_grad)[2:6] if view_of_a_view else Tensor(np.arange(4.0), requires_grad=requires_grad)
    w = leaf()
    y = op(leaf(4), x) if op.count == 2 else op(x)
    for part in y if isinstance(y, tuple) else (y,):
        assert part.version is x.version
        loss = (part * w).sum()
        with minigrad.no_grad():
            x.copy_(7.0)
        with pytest.raises(RuntimeError, match="backward of mul: an input .* was written in place after the forward pass"):
            loss.backward()


def test_an_output_of_its_own_memory_has_its_own_version():
    @primitive
    def doubled(x: Tensor) -> Tensor:
        return (x * 2).reshape(x.shape)  # a view, but of nothing that was given

    @primitive
    def summed(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    x, y = leaf(3), leaf(3)
    for z in (doubled(x), summed(x, y), x.sum(), ops.concatenate([x, x])):
        assert z.version == [0] and z.version is not x.version and z.version is not y.version


def test_the_rule_of_an_output_that_is_the_input_reads_it_unwritten():
    @primitive
    def same(x: Tensor) -> Tensor:
        return x

    same.derivative(x=lambda g, out: g * out)
    x = Tensor([2.0, 3.0])
    x.copy_([4.0, 5.0])
    x.requires_grad_()
    y = same(x)
    assert_array_equal(minigrad.grad(y, x, np.array([1.0, 10.0]), retain_graph=True)[0].numpy(), [4.0, 50.0])
    with minigrad.no_grad():
        x.copy_(1.0)
    with pytest.raises(RuntimeError, match="backward of same: its output"):
        minigrad.grad(y, x, np.ones(2))
