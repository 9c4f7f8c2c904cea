"""What every operation has: binding of arguments, settings, the registry, rules and what they may ask for.

Read next: `test_primitive_op.py`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any, Optional

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, ops
from minigrad import functional as F
from minigrad.op import REGISTRY, fused, primitive
from tests.cuda_device import on_cuda
from tests.support import leaf, rng

pytestmark = pytest.mark.usefixtures("registry")


# --- inputs that are constants


def beside(constant: Tensor, *shape: int, requires_grad: bool = False) -> Tensor:
    """Another input, on the same device."""
    return Tensor(rng(4).uniform(0.5, 1.5, shape), requires_grad).to(device=constant.device)


CONSTANTS: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "where condition": (lambda m: F.where(m, beside(m, 2, 3, requires_grad=True), 1.0), (2, 3)),
    "dropout mask": (lambda m: F.dropout(beside(m, 2, 3), m, 0.5), (2, 3)),
    "drop_path mask": (lambda m: F.drop_path(beside(m, 2, 3, requires_grad=True), m, 0.5), (2,)),
    "batch_norm mean": (lambda m: F.batch_norm(beside(m, 2, 3, requires_grad=True), mean=m, var=beside(m, 3)), (3,)),
    "batch_norm var": (lambda m: F.batch_norm(beside(m, 2, 3), mean=beside(m, 3), var=m), (3,)),
    "scaled_dot_product_attention attn_mask": (lambda m: F.scaled_dot_product_attention(*[beside(m, 1, 1, 2, 3)] * 3, m), (2, 2)),
    "scaled_dot_product_attention dropout_mask": (lambda m: F.scaled_dot_product_attention(*[beside(m, 1, 1, 2, 3)] * 3, None, m), (1, 1, 2, 2)),
}


def test_every_constant_is_here():
    own = [op for op in REGISTRY.values() if op.function.__module__.startswith("minigrad.")]
    assert {f"{op.name} {name}" for op in own for k, name in enumerate(op.names) if op.constants >> k & 1} == set(CONSTANTS)


@pytest.mark.parametrize("which", CONSTANTS)
@pytest.mark.parametrize("way", ["kernel", "definition"])
def test_a_constant_that_requires_grad_is_refused(which: str, way: str):
    """It would get no gradient, without a word. PyTorch refuses it too, or has a gradient for it."""
    call, shape = CONSTANTS[which]
    op, name = which.split()
    given = Tensor(np.ones(shape), requires_grad=True)
    with minigrad.definitions() if way == "definition" else contextlib.nullcontext():
        for constant in (given, given * 1.0):
            with pytest.raises(ValueError, match=rf"^{op}: {name} is a constant here, and would get no gradient; pass {name}\.detach\(\)$"):
                call(constant)
        call(given.detach())
        with minigrad.no_grad():
            call(given)


@pytest.mark.cuda
def test_a_constant_that_requires_grad_is_refused_on_a_gpu():
    with on_cuda():
        for which, (call, shape) in CONSTANTS.items():
            with pytest.raises(ValueError, match=rf"^{which.split()[0]}: .*\.detach\(\)$"):
                call(Tensor(np.ones(shape), requires_grad=True).to(device="cuda"))


def test_an_unknown_constant():
    with pytest.raises(TypeError, match="^odd: no input is called mask; there is x$"):

        @primitive(constants="mask")
        def odd(x: Tensor) -> Tensor:
            return x


def test_a_constant_has_no_rule():
    @fused(constants="mask")
    def masked(x: Tensor, mask: Tensor) -> Tensor:
        return x * mask

    with pytest.raises(TypeError, match="^masked: mask is declared a constant, which has no derivative rule$"):
        masked.derivative(x=lambda g, mask: g * mask, mask=lambda g, x: g * x)
    assert not masked.rules


# --- calling


def affine() -> Any:
    @fused
    def affine(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, power: int = 1, sign: float = 1.0) -> Tensor:
        """A test operation."""
        y = x**power * sign
        y = y if scale is None else y * scale
        return y if shift is None else y + shift

    return affine


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x, s: f(x, s, None, 2, -1.0),
        lambda f, x, s: f(x, s, power=2, sign=-1.0),
        lambda f, x, s: f(sign=-1.0, power=2, scale=s, x=x),
        lambda f, x, s: f(x, scale=s, sign=-1.0, power=2, shift=None),
        lambda f, x, s: f(x, s.numpy(), None, 2, -1.0),
    ],
)
def test_arguments_are_bound_as_python_does(call: Callable):
    x, s = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0])
    assert_array_equal(call(affine(), x, s).numpy(), [-3.0, -16.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: f(), "affine: argument 'x' is missing"),
        (lambda f, x: f(scale=x), "affine: argument 'x' is missing"),
        (lambda f, x: F.linear(x), "linear: argument 'weight' is missing"),
        (lambda f, x: f(x, x, x, 1, 1.0, 5), r"affine: 6 arguments given, at most 5 taken \(x, scale, shift, power, sign\)"),
        (lambda f, x: f(x, x, scale=x), "affine: argument 'scale' is given twice"),
        (lambda f, x: f(x, x, x, 1, 1.0, sign=1.0), "affine: argument 'sign' is given twice"),
        (lambda f, x: f(x, sacle=x), "affine: there is no argument 'sacle'; there are x, scale, shift, power, sign"),
    ],
)
def test_calls_that_do_not_fit(call: Callable, message: str):
    with pytest.raises(TypeError, match=message):
        call(affine(), Tensor([1.0]))


def test_it_looks_like_the_function():
    op = affine()
    assert (
        op.__name__ == "affine"
        and op.__doc__ == "A test operation."
        and list(inspect.signature(op).parameters) == ["x", "scale", "shift", "power", "sign"]
    )
    assert repr(op) == "<fused affine(x, scale=None, shift=None, power=1, sign=1.0)>" and repr(ops.add) == "<binary add(x, y)>"
    assert "def add(" in inspect.getsource(inspect.unwrap(ops.add))


def test_the_registry_knows_every_operation_once():
    assert REGISTRY["layer_norm"] is F.layer_norm and REGISTRY["mul"] is ops.mul
    affine()
    again = affine()  # as a notebook's cell that is run again
    assert REGISTRY["affine"] is again

    def relu(x: Tensor) -> Tensor:
        return x

    with pytest.raises(ValueError, match=r"there is an operation relu already, from minigrad.ops.elementwise; give this one another name"):
        primitive(relu)
    assert REGISTRY["relu"] is ops.relu


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_there_is_one_of_each_also_in_copies_and_pickles(protocol: int):
    for op in [op for op in REGISTRY.values() if op.__module__.startswith("minigrad.")]:
        assert pickle.loads(pickle.dumps(op, protocol)) is op
        assert copy.deepcopy(op) is op and copy.copy(op) is op
    softmax = pickle.loads(pickle.dumps(functools.partial(F.softmax, axis=0), protocol))
    assert softmax.func is F.softmax and softmax.keywords == {"axis": 0}
    op = affine()
    assert copy.deepcopy(op) is op
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"affine\.<locals>\.affine"):
        pickle.dumps(op, protocol)


def test_a_rule_that_asks_for_nothing_is_refused():
    @primitive
    def same(x: Tensor) -> Tensor:
        return x + 0

    with pytest.raises(TypeError, match="same: the rule of x asks for nothing, not even for g, the gradient of the output"):
        same.derivative(x=lambda: Tensor(np.ones(3)))


def test_tensors_come_first():
    with pytest.raises(TypeError, match="wrong: parameters annotated with Tensor come first"):

        @primitive
        def wrong(axis: int, x: Tensor) -> Tensor:
            return x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, "none of its parameters is an input; annotate its inputs with Tensor"),
        (lambda: np.ones(3), "none of its parameters is an input"),
        (lambda x, *, axis: x, "axis cannot be given by its place"),
        (lambda *x: x[0], "x cannot be given by its place"),
        (lambda x, **options: x, "options cannot be given by its place"),
    ],
)
def test_parameters_that_cannot_be_given_are_refused_where_the_operation_is_made(function: Callable, message: str):
    """Not in its first call, in the words of another matter."""

    def array(x: np.ndarray) -> np.ndarray:
        return x

    for wrong in (function, array) if "none" in message else (function,):
        wrong.__name__ = "bare"
        with pytest.raises(TypeError, match=f"^bare: {message}"):
            primitive(wrong)
    assert "bare" not in REGISTRY


@pytest.mark.parametrize("annotation", ["Tensor | None", "Optional[Tensor]", Tensor | None, Optional[Tensor]], ids=str)  # noqa: UP045
def test_an_input_that_may_be_none_needs_no_default(annotation: Any):
    def plus(x: Tensor, y: Any) -> Tensor:
        return x * 2.0 if y is None else x + y

    plus.__annotations__["y"] = annotation
    op = fused(plus)
    np.testing.assert_array_equal(op(Tensor([1.0]), None).numpy(), [2.0])
    np.testing.assert_array_equal(op(Tensor([1.0]), Tensor([5.0])).numpy(), [6.0])
    plus.__annotations__["y"], plus.__defaults__ = Tensor, (None,)  # nor, with that default, an annotation that says so
    np.testing.assert_array_equal(fused(plus)(Tensor([1.0])).numpy(), [2.0])


def test_attributes_of_the_function_are_not_the_operations():
    def triple(x: Tensor) -> Tensor:
        return x * 3

    triple.name, triple.several = "exp", True  # type: ignore[attr-defined]
    op = primitive(triple)
    assert op.name == "triple" and not op.several and REGISTRY["exp"] is ops.exp
    assert len({kernel for op in REGISTRY.values() for kernel in op.kernels.values()}) > 10


# --- settings


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to, of an array that can."""
    view = array.view()
    view.flags.writeable = False
    return view


@pytest.mark.parametrize("definition", [False, True])
def test_settings_are_what_they_were_at_the_call(definition: bool):
    """A list, an array or a Tensor that was given as a setting may be changed before backward: kernels, definitions and rules do not see that."""

    def gradient(use: Callable, setting: Any, change: Callable[[Any], Any] = id) -> np.ndarray:
        x = Tensor(np.arange(16.0).reshape(1, 4, 4, 1), requires_grad=True)
        with contextlib.ExitStack() as stack:
            if definition:
                stack.enter_context(minigrad.definitions())
            y = use(x, setting)
        change(setting)
        y.backward(Tensor(rng(0).standard_normal(y.shape)))
        assert x.grad is not None
        return x.grad.numpy()

    widths = ((0, 0), (1, 0), (1, 2), (0, 0))
    for use, plain, given, change in (
        (lambda x, size: F.avg_pool2d(x, size, stride=2), 2, [2, 2], lambda setting: setting.__setitem__(slice(None), [1, 1])),
        (F.max_pool2d, 2, [2, 2], lambda setting: setting.__setitem__(0, 1)),
        (F.pad, widths, tuple(map(list, widths)), lambda setting: setting[2].reverse()),
        (F.pad, widths, np.array(widths), lambda setting: setting.fill(0)),
        (F.pad, widths, read_only(np.array(widths)), lambda setting: setting.base.fill(0)),
        (lambda x, axis: x.sum(axis), 1, Tensor(np.array(1)), lambda setting: setting.copy_(2)),
        (lambda x, axes: x.sum(axes), (0, 1), [0, 1], lambda setting: setting.__setitem__(1, 2)),
    ):
        assert_array_equal(gradient(use, given, change), gradient(use, plain))
    low = Tensor(np.zeros((4, 4, 1)))
    assert_array_equal(gradient(lambda x, view: x.clip(view, np.full(x.shape, 99.0)), low.numpy(), lambda _: low.copy_(100.0)), gradient(
        lambda x, _: x.clip(0.0, 99.0), None))  # fmt: skip
    with pytest.raises(TypeError, match=r"pad: a Tensor .* requires grad is given as a plain value \(widths, value\), which has .* give .detach"):
        F.pad(Tensor([1.0, 2.0]), ((1, 1),), Tensor(0.5, requires_grad=True))


def test_an_operation_cannot_write_into_its_settings():
    @primitive
    def shifting(x: Tensor, by: np.ndarray) -> Tensor:
        by += 1
        return x + by

    by = np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="shifting: .*read-only"):
        shifting(Tensor([1.0, 2.0]), by)
    assert by.tolist() == [1.0, 2.0]


@pytest.mark.emulator
def test_settings_may_be_tensors_of_any_device():
    with minigrad.emulated():
        x = Tensor(np.arange(4.0)).to(device="cuda")
        assert F.reshape(x, Tensor(np.array([2, 2])).to(device="cuda")).shape == (2, 2)


def test_fractions_of_numpy_do_not_make_float32_wider():
    """np.linspace(0, 0.2, depth), say."""
    half = np.float64(0.5)
    x = Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    target = Tensor(np.full((2, 3), 1 / 3, np.float32), requires_grad=True)
    for function in (
        lambda: F.drop_path(x, np.array([True, False]), half),
        lambda: F.dropout(x, np.ones((2, 3), bool), half),
        lambda: F.cross_entropy(x, target, half),
        lambda: F.layer_norm(x, None, None, half),
    ):
        y = function()
        assert y.dtype == np.float32
        y.backward(Tensor(np.ones(y.shape, np.float32)))


# --- rules


def test_rules_may_ask_for_inputs_output_values_shapes_and_dtypes():
    asked = {}

    @primitive
    def mixed(x: Tensor, y: Tensor, scale: float = 3.0) -> Tensor:
        return x * y * scale

    def rule(g: Tensor, y: Tensor, out: Tensor, scale: float, x_shape: tuple, y_dtype: np.dtype, x_device: str) -> Tensor:
        asked.update(out=out.numpy().copy(), scale=scale, shape=x_shape, dtype=y_dtype, device=x_device)
        return g * y * scale

    mixed.derivative(x=rule)
    x, y = leaf(2), Tensor(np.array([4.0, 5.0]))
    (g,) = minigrad.grad(mixed(x, y, scale=2.0), x, Tensor(np.array([1.0, 10.0])))
    assert_allclose(g.numpy(), [8.0, 100.0], rtol=1e-12)
    assert_allclose(asked["out"], x.numpy() * y.numpy() * 2, rtol=1e-12)
    assert (asked["scale"], asked["shape"], asked["dtype"], asked["device"]) == (2.0, (2,), np.float64, "cpu")


def test_a_rule_that_asks_for_something_else():
    @primitive
    def asking(x: Tensor, scale: float = 1.0) -> Tensor:
        return x * scale

    asking.derivative(x=lambda g, weight: g)
    with pytest.raises(TypeError, match=r"asking: a rule asks for 'weight'; it may ask for g, out, x, scale or x_shape"):
        asking(leaf(2))
    with pytest.raises(TypeError, match="asking: no input is called 'y'|asking: no input is called y"):
        asking.derivative(y=lambda g: g)


def test_rules_on_arrays_are_for_the_inputs_that_have_rules():
    @primitive
    def twice(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    rule = lambda g: g  # noqa: E731
    with pytest.raises(TypeError, match="twice: on_arrays gives rules for x; those of derivative are for none yet, give the same"):
        twice.on_arrays(x=rule)
    twice.derivative(x=rule, y=rule)
    for given in ({"x": rule}, {"x": rule, "z": rule}, {"x": rule, "y": rule, "z": rule}):
        with pytest.raises(TypeError, match=f"twice: on_arrays gives rules for {', '.join(given)}; those of derivative are for x, y, give the same"):
            twice.on_arrays(**given)
    twice.on_arrays(y=rule, x=rule)
    leaves = [leaf(1), leaf(1)]
    assert [g.item() for g in minigrad.grad(twice(*leaves), leaves)] == [1.0, 1.0]


def test_rules_on_arrays_are_used_only_where_no_graph_is_wanted():
    used = []

    @primitive
    def double(x: Tensor) -> Tensor:
        return x * 2.0

    double.derivative(x=lambda g: used.append(type(g)) or g * 2.0)
    x = leaf(2)
    minigrad.grad(double(x).sum(), x)
    assert used.pop() is Tensor
    double.on_arrays(x=lambda g: used.append(type(g)) or g * 2.0)
    first = minigrad.grad(double(x).sum(), x)[0]
    second = minigrad.grad(double(x).sum(), x, create_graph=True)[0]
    assert used == [np.ndarray, Tensor]
    assert_array_equal(first.numpy(), second.numpy())


def test_only_inputs_that_require_grad_have_their_rule_run():
    used = []

    @primitive
    def product(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    product.derivative(x=lambda g, y: used.append("x") or g * y, y=lambda g, x: used.append("y") or g * x)
    x, y = leaf(2), leaf(2, seed=1)
    product(x, y.detach()).sum().backward()
    assert used == ["x"]
    minigrad.grad(product(x, y).sum(), y)
    assert used == ["x", "y"]


def test_an_output_requires_grad_for_inputs_with_a_gradient_alone():
    """Else backward would run, and give nothing: a forgotten rule of a primitive, by the short way and the long one."""

    @primitive(elementwise=True)
    def weighed(x: Tensor, y: Tensor) -> Tensor:
        return x * 0.5 + y

    @primitive(several=True)
    def both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, y * 2

    weighed.derivative(x=lambda g: g * 0.5)
    both.derivative(x=lambda g: g[0] * 2.0)
    x, y, upstream = leaf(2, 3), leaf(3, seed=1), rng(2).uniform(-1, 1, (2, 3))
    for name, call in {
        "short": weighed, "long": lambda x, y: weighed(x, y=y.astype(np.float32)), "several": lambda x, y: both(x, y)[0],
    }.items():  # fmt: skip
        out = call(x.detach(), y)
        assert not out.requires_grad, name
        with pytest.raises(RuntimeError, match="does not require grad"):
            out.backward(upstream)
        out = call(x, y)
        assert out.node is not None and out.node.edges[1] is None, name  # and y's graph is not kept alive
        out.backward(upstream)
        assert x.grad is not None and y.grad is None
        assert_allclose(x.grad.numpy(), upstream * (2 if name == "several" else 0.5), rtol=1e-15, err_msg=name)
        x.grad = None


def test_rules_may_be_stated_one_by_one():
    @primitive
    def times(x: Tensor, y: Tensor) -> Tensor:
        return x * y

    x, y = Tensor([2.0], requires_grad=True), Tensor([5.0], requires_grad=True)
    times.derivative(x=lambda g, y: g * y)
    times.on_arrays()
    times(x, y).backward()
    assert x.grad is not None and x.grad.item() == 5.0 and y.grad is None
    times.derivative(y=lambda g, x: g * x)
    times(x, y).backward()
    assert x.grad.item() == 10.0 and y.grad is not None and y.grad.item() == 2.0


def test_a_rule_that_gives_an_array():
    @primitive
    def double(x: Tensor) -> Tensor:
        return x * 2

    double.derivative(x=lambda g: g.numpy() * 2)
    with pytest.raises(TypeError, match="double: a derivative rule gives an object of type ndarray; rules compute with Tensors"):
        double(Tensor([1.0], requires_grad=True)).backward()


def test_a_rule_on_arrays_that_gives_no_array():
    @primitive
    def double(x: Tensor) -> Tensor:
        return x * 2

    double.derivative(x=lambda g: g * 2)
    double.on_arrays(x=lambda g: Tensor(g * 2))
    with pytest.raises(
        TypeError, match="^double: a derivative rule on arrays gives an object of type Tensor; it computes with arrays and gives one$"
    ):
        double(Tensor([1.0], requires_grad=True)).backward()


@pytest.mark.parametrize("rule", [lambda g: g * Tensor(np.ones((2, 1), np.float32)), lambda g: g.astype(np.float64)])
def test_a_gradient_that_does_not_fit_its_leaf(rule: Callable):
    @primitive
    def same(x: Tensor) -> Tensor:
        return x * 1

    same.derivative(x=rule)
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ValueError, match=r"backward: the gradient of a tensor of shape \(2,\), float32, came out as"):
        same(x).backward(np.ones(2))
    with pytest.raises(ValueError, match=r"grad: the gradient of a tensor of shape \(2,\), float32, came out as"):
        minigrad.grad(same(x), x, np.ones(2))
    assert x.grad is None
