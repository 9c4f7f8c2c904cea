"""The calls of primitives of one and of two Tensors do what all calls do. Read next: `test_fused_op.py`."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from minigrad.op import REGISTRY, Binary, Unary, primitive
from tests.support import leaf, rng

pytestmark = pytest.mark.usefixtures("registry")


def test_the_fast_calls_are_for_inputs_alone():
    """x and y are names of settings, too, and an operation of x may have several results."""

    @primitive
    def scaled(x: Tensor, y: float = 2.0) -> Tensor:
        return x * y

    scaled.derivative(x=lambda g, y: g * y)
    x = Tensor([1.0, 3.0], requires_grad=True)
    scaled(x, 5.0).backward(np.array([1.0, 2.0]))
    assert x.grad is not None
    assert_array_equal(x.grad.numpy(), [5.0, 10.0])
    assert_array_equal(scaled(x).numpy(), [2.0, 6.0])

    @primitive(several=True)
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, x * 3

    both.derivative(x=lambda g: ops.mul(g[0], 2.0) if g[1] is None else g[0] * 2.0 + g[1] * 3.0)
    first, second = both(x)
    assert_array_equal(first.numpy(), [2.0, 6.0])
    (gradient,) = minigrad.grad([first, second], x, [np.array([1.0, 0.0]), np.array([10.0, 1.0])])
    assert gradient is not None
    assert_array_equal(gradient.numpy(), [32.0, 3.0])


@pytest.mark.parametrize("names", [("t",), ("out",), ("mode",), ("t", "u"), ("y", "x"), ("node", "mask"), ("a", "x")])
def test_the_fast_calls_take_any_names(names: tuple[str, ...]):
    """Those of the function, also by keyword, whatever the short way calls its own variables; there was a time when only x and y were fast."""
    parameters = ", ".join(f"{name}: Tensor" for name in names)
    space: dict[str, Any] = {"Tensor": Tensor, "__name__": __name__}
    exec(f"def op_of_names({parameters}) -> Tensor:\n    return {names[0]} * 2.0 - {names[-1]}", space)
    op = primitive(space["op_of_names"])
    assert isinstance(op, Unary if len(names) == 1 else Binary) and list(inspect.signature(op).parameters) == list(names)
    first, last = {names[0]: lambda g: g * 2.0}, {names[-1]: lambda g: -g}
    op.derivative(**({names[0]: lambda g: g} if len(names) == 1 else first | last))
    tensors = [leaf(2, 3, seed=k) for k in range(len(names))]
    upstream = rng(9).uniform(-1, 1, (2, 3))
    expected = [upstream * factor for factor in ((1.0,) if len(names) == 1 else (2.0, -1.0))]
    by_name = dict(zip(names, tensors, strict=True))
    for out in (op(*tensors), op(**by_name), op(tensors[0], **{name: by_name[name] for name in names[1:]})):
        assert_array_equal(out.numpy(), tensors[0].numpy() * 2.0 - tensors[-1].numpy())
        for g, exact in zip(minigrad.grad(out, tensors, upstream), expected, strict=True):
            assert g is not None
            assert_array_equal(g.numpy(), exact)
    with pytest.raises(TypeError, match=rf"^op_of_names\(\) missing {len(names)} required positional argument.*'{names[-1]}'"):
        op()


def test_the_fast_calls_know_defaults_and_leave_other_parameters_to_all_calls():
    @primitive(elementwise=True)
    def shifted(t: Tensor, by: Tensor = 2.0) -> Tensor:  # type: ignore[assignment]
        return t + by

    assert isinstance(shifted, Binary)
    assert_array_equal(shifted(leaf(2)).numpy(), leaf(2).numpy() + 2.0)
    assert_array_equal(shifted(t=leaf(2), by=1.0).numpy(), leaf(2).numpy() + 1.0)

    @primitive(elementwise=True, constants="scale")
    def scaled_by(x: Tensor, scale: Tensor) -> Tensor:
        return x * scale

    scaled_by.derivative(x=lambda g, scale: g * scale)
    with pytest.raises(ValueError, match=r"^scaled_by: scale is a constant here, .*; pass scale\.detach\(\)$"):
        scaled_by(leaf(2), leaf(2))

    @primitive
    def by_place(x: Tensor, /) -> Tensor:
        return x + 1

    assert not isinstance(by_place, Unary | Binary)
    assert_array_equal(by_place(leaf(2)).numpy(), leaf(2).numpy() + 1.0)


@pytest.mark.parametrize("x", [np.array([1.0, 2.0], np.float32), Tensor(np.array([1, 2]))], ids=["an array", "integers"])
def test_a_number_beside_what_is_no_tensor_of_floats(x: Any):
    y = ops.add(x, 0.5)
    assert_array_equal(y.numpy(), np.array([1.5, 2.5], np.float32))
    assert y.dtype == np.float32


def test_wrong_arguments_of_the_fast_calls_name_the_operation():
    x = Tensor([1.0, 2.0])

    @primitive(name="halved")
    def half(x: Tensor) -> Tensor:
        return x / 2

    for call, message in (
        (lambda: ops.relu(x, inplace=True), r"relu\(\) got an unexpected keyword argument 'inplace'"),
        (lambda: ops.tanh(x, x), r"tanh\(\) takes 2 positional arguments but 3 were given"),
        (lambda: ops.add(x, x, alpha=2), r"add\(\) got an unexpected keyword argument 'alpha'"),
        (lambda: ops.matmul(x), r"matmul\(\) missing 1 required positional argument: 'y'"),
        (lambda: half(x, out=x), r"halved\(\) got an unexpected keyword argument 'out'"),
    ):
        with pytest.raises(TypeError, match=f"^{message}$"):
            call()
    assert repr(ops.relu) == "<unary relu(x)>" and isinstance(ops.relu, Unary) and copy.deepcopy(ops.relu) is ops.relu
    assert_array_equal(half(x=x).numpy(), [0.5, 1.0])


def recorded(node: Any) -> dict[str, Any]:
    """What a node holds, comparable: Tensors are equal to themselves, and its output's array and counter to those with the same numbers."""
    held = {name: getattr(node, name) for name in ("op", "edges", "values", "outputs", "site", "shapes", "plan", "saved", "versions", "facts")}
    return held | {"out": node.out and (node.out[0].tolist(), *node.out[1:])}


def test_the_fast_calls_do_what_all_calls_do():
    """For every operation that `fast_calls.py` serves, and every choice of inputs that require grad: results and nodes are those of `_run`."""
    arrays = [rng(0).uniform(0.5, 1, (2, 3)), rng(1).uniform(0.5, 1, (3, 2)).T, rng(2).uniform(0.5, 1, (4, 2, 3)), rng(3).uniform(0.5, 1, (1, 3))]
    served = [op for op in REGISTRY.values() if isinstance(op, Unary | Binary) and op.name != "matmul"]
    assert len(served) >= 25
    for op in served:
        for places in itertools.product(range(len(arrays)), repeat=op.count):
            for needs in itertools.product([False, True], repeat=op.count):
                tensors = tuple(Tensor(arrays[place], need) for place, need in zip(places, needs, strict=True))
                fast, slow = op(*tensors), op._run(tensors, ())
                assert_array_equal(fast.data, slow.data)
                assert fast.dtype == slow.dtype and fast.version == slow.version
                assert (fast.node is None) == (slow.node is None) == (not (op.rules and any(needs)))
                if fast.node is not None:
                    assert recorded(fast.node) == recorded(slow.node), op
        if op.count == 2:
            x = Tensor(arrays[0], requires_grad=True)
            for others in ((2.0,), (np.float32(2),), (np.arange(1, 4),), (Tensor(np.ones(3, np.float32)),)):
                fast, slow = op(x, *others), op._run((x, *others), ())
                assert_array_equal(fast.data, slow.data)
                assert fast.dtype == slow.dtype and fast.requires_grad == slow.requires_grad


def shaped(x: Tensor) -> Tensor:
    return x * 2.0


def the_same(x: Tensor) -> Tensor:
    return x


def a_view(x: Tensor) -> Tensor:
    return x[...]


def the_first(x: Tensor, y: Tensor) -> Tensor:
    return x


def a_view_of_the_second(x: Tensor, y: Tensor) -> Tensor:
    return y[...]


@pytest.mark.parametrize(("function", "shared"), [(shaped, None), (the_same, 0), (a_view, 0), (the_first, 0), (a_view_of_the_second, 1)])
def test_the_fast_calls_know_shapes_and_whose_memory_a_result_is(function: Callable, shared: int | None):
    op = primitive(function)
    op.derivative(**{name: lambda g, x_shape, x_dtype: ops.broadcast_to(g.astype(x_dtype), x_shape) for name in op.names})
    assert isinstance(op, Unary | Binary)
    tensors = tuple(leaf(2, 3, seed=k) for k in range(op.count))
    for fast, slow in ((op(*tensors), op._run(tensors, ())), (op(*[x.detach() for x in tensors]), None)):
        assert [fast.version is x.version for x in tensors] == [k == shared for k in range(op.count)]
        if slow is not None:
            assert recorded(fast.node) == recorded(slow.node) and fast.node.facts == ((2, 3), np.float64)
            assert [slow.version is x.version for x in tensors] == [k == shared for k in range(op.count)]
