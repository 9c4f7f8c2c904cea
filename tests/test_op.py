"""What an operation is: binding of arguments, rules and what they may ask for, kernels and their fallbacks, the registry, devices.

Read next: `backend/test_cpu.py`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, backend, ops
from minigrad import functional as F
from minigrad.op import REGISTRY, Binary, Unary, fused, primitive
from minigrad.tensor import wrap
from tests.proofs import check_op
from tests.support import leaf, rng

pytestmark = pytest.mark.usefixtures("registry")


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
    assert repr(op) == "<fused affine>" and repr(ops.add).endswith(" add>")
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


def test_tensors_come_first():
    with pytest.raises(TypeError, match="wrong: parameters annotated with Tensor come first"):

        @primitive
        def wrong(axis: int, x: Tensor) -> Tensor:
            return x


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
    assert_allclose(g.numpy(), [8.0, 100.0])
    assert_allclose(asked["out"], x.numpy() * y.numpy() * 2)
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


# --- kernels


class Counted:
    """A fused operation x * weight with a kernel that counts its calls."""

    def __init__(self, **options: Any):
        @fused
        def scaled(x: Tensor, weight: Tensor | None = None) -> Tensor:
            self.calls.append("definition")
            return x if weight is None else x * weight

        self.calls: list[str] = []
        self.arrays: list = []
        self.needs: list = []
        self.op = scaled
        scaled.kernel("cpu", self.forward, self.backward, **options)

    def forward(self, x: Any, weight: Any) -> tuple:
        self.calls.append("forward")
        self.arrays += [x, weight]
        return x * weight if weight is not None else x.copy(), (x, weight)

    def backward(self, dy: Any, saved: tuple, needs: tuple) -> tuple:
        self.calls.append("backward")
        self.arrays.append(dy)
        self.needs.append(needs)
        x, weight = saved
        return dy if weight is None else dy * weight, dy * x if needs[1] else None


def test_the_kernel_runs_forward_and_backward_and_the_definition_everything_else():
    counted = Counted()
    x, w = leaf(2), leaf(2, seed=1)
    minigrad.grad(counted.op(x, w).sum(), [x, w])
    assert counted.calls == ["forward", "backward"]
    counted.calls.clear()
    minigrad.grad(counted.op(x, w).sum(), [x, w], create_graph=True)
    assert counted.calls == ["forward", "definition"]
    counted.calls.clear()
    with minigrad.definitions():
        minigrad.grad(counted.op(x, w).sum(), [x, w])
    assert counted.calls == ["definition"]


def test_without_its_kernel_an_operation_still_works():
    x = leaf(2, 5)
    expected = [t.numpy() for t in (F.layer_norm(x), *minigrad.grad(F.layer_norm(x), x, Tensor(np.arange(10.0).reshape(2, 5))))]
    kernels = F.layer_norm.kernels
    F.layer_norm.kernels = {}
    try:
        again = [t.numpy() for t in (F.layer_norm(x), *minigrad.grad(F.layer_norm(x), x, Tensor(np.arange(10.0).reshape(2, 5))))]
    finally:
        F.layer_norm.kernels = kernels
    for a, b in zip(again, expected, strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_kernels_get_contiguous_arrays_unless_they_take_any():
    for strided in (False, True):
        REGISTRY.pop("scaled", None)
        counted = Counted(strided=strided)
        x, w = leaf(3, 2), leaf(2, 3, seed=1)
        counted.op(x.T, w[:, ::-1]).backward(Tensor(rng(2).uniform(-1, 1, (3, 2))).T)
        assert [array.flags.c_contiguous for array in counted.arrays] == [not strided] * 3
        assert_allclose(w.grad.numpy(), (x.numpy().T * counted.arrays[-1])[:, ::-1])


def test_needs_say_which_gradients_are_wanted():
    counted = Counted()
    x, w = leaf(2), leaf(2, seed=1)
    counted.op(x, w.detach()).sum().backward()
    counted.op(x.detach(), w).sum().backward()
    minigrad.grad(counted.op(x, w).sum(), w)
    counted.op(x, None).sum().backward()
    counted.op(x, w).sum().backward()
    assert counted.needs == [(True, False), (False, True), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_kernel_may_return_what_it_was_given(fresh: bool):
    """dy itself, and a view of it, unless it is declared fresh; `.grad` is the leaf's own all the same, and a fresh one is not copied."""
    made: list = []

    @fused
    def plus(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def backward(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        made[:] = [dy.copy(), dy.copy()] if fresh else [dy, dy[:]]
        return tuple(made)

    plus.kernel("cpu", lambda x, y: (x + y, ()), backward, fresh=fresh)
    x, y, g = leaf(2, 2), leaf(2, 2, seed=1), Tensor(rng(3).uniform(-1, 1, (2, 2)))
    before = g.numpy().copy()
    plus(x, y).backward(g)
    assert (x.grad.data is made[0]) == fresh
    plus(x, x).backward(g)
    assert_allclose(x.grad.numpy(), 3 * before, rtol=1e-14)
    assert_array_equal(y.grad.numpy(), before)
    assert_array_equal(g.numpy(), before)
    assert not np.shares_memory(x.grad.data, y.grad.data) and not np.shares_memory(x.grad.data, g.data)


def test_a_kernel_need_not_know_that_numpy_makes_scalars_of_0d_arrays():
    @fused
    def square(x: Tensor) -> Tensor:
        return x * x

    square.kernel("cpu", lambda x: (x * x, (x,)), lambda dy, saved, needs: (2 * dy * saved[0],), fresh=True)
    x = leaf()
    square(x).backward()
    assert type(x.grad.data) is np.ndarray
    assert_allclose(x.grad.numpy(), 2 * x.numpy(), rtol=1e-14)


def test_several_outputs_of_which_some_carry_no_gradient():
    @fused(outputs=3, differentiable=2)
    def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.sum(), (x * x).sum(), x.max().detach()

    def backward(dy: tuple, saved: tuple, needs: tuple) -> tuple:
        (x,) = saved
        given.append([g is not None for g in dy])
        return (sum(g * slope for g, slope in zip(dy, (np.ones_like(x), 2 * x), strict=True) if g is not None),)

    given: list = []
    moments.kernel("cpu", lambda x: ((np.asarray(x.sum()), np.asarray((x * x).sum()), np.asarray(x.max())), (x,)), backward)
    x = leaf(3)
    first, second, third = moments(x)
    assert first.requires_grad and second.requires_grad and not third.requires_grad
    assert_allclose(minigrad.grad(second, x, retain_graph=True)[0].numpy(), 2 * x.numpy(), rtol=1e-14)
    assert_allclose(minigrad.grad([first, second], x, retain_graph=True)[0].numpy(), 1 + 2 * x.numpy(), rtol=1e-14)
    assert_allclose(minigrad.grad(first, x, create_graph=True)[0].numpy(), 1.0)
    assert given == [[False, True], [True, True]]


def test_two_outputs():
    @fused(outputs=2)
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2.0, x * x

    both.kernel("cpu", lambda x: ((x * 2, x * x), (x,)), lambda dy, saved, needs: ((0 if dy[0] is None else dy[0] * 2) + dy[1] * 2 * saved[0],))
    x = leaf(3)
    double, square = both(x)
    assert_allclose(double.numpy(), 2 * x.numpy())
    assert_allclose(square.numpy(), x.numpy() ** 2)
    assert_allclose(minigrad.grad(square, x, Tensor(np.array([1.0, 2.0, 3.0])))[0].numpy(), 2 * x.numpy() * [1, 2, 3], rtol=1e-14)


def test_a_rule_stands_in_for_a_missing_backward():
    @fused
    def logistic(x: Tensor) -> Tensor:
        return 1 / (1 + (-x).exp())

    with pytest.raises(ValueError, match="logistic: a kernel without a backward needs derivative rules"):
        logistic.kernel("cpu", lambda x: (1 / (1 + np.exp(-x)), ()), None)
    logistic.derivative(x=lambda g, out: g * out * (1 - out))
    logistic.kernel("cpu", lambda x: (1 / (1 + np.exp(-x)), ()), None)
    import torch

    check_op(logistic, torch.sigmoid, [rng(0).uniform(-2, 2, (2, 3))])


def test_checks_run_before_kernel_and_definition():
    op = affine()

    @op.check
    def check(x: Tensor, scale: Tensor | None, shift: Tensor | None, power: int, sign: float) -> None:
        if x.ndim != 1:
            raise ValueError(f"affine: x has {x.ndim} axes (shape {x.shape}), one is needed")

    for mode in (minigrad.enable_grad, minigrad.definitions):
        with mode(), pytest.raises(ValueError, match=r"affine: x has 2 axes \(shape \(1, 1\)\), one is needed"):
            op(Tensor([[1.0]]))
    assert op(Tensor([2.0])).item() == 2.0


def test_checks_of_shapes_are_remembered_but_never_wrongly():
    op, seen = affine(), []

    @op.check_shapes
    def check(x: Tensor, scale: Tensor | None, shift: Tensor | None, power: int, sign: float) -> None:
        seen.append((x.shape, x.dtype))
        if x.shape == (3,) or power == 7:
            raise ValueError("affine: no")

    x = Tensor([1.0, 2.0])
    for _ in range(3):
        op(x)
    assert len(seen) == 1
    op(x, None, None, 2)
    op(x.astype(np.float64))
    op(x, x)
    assert len(seen) == 4
    op(x, None, None, 2.0)
    op(x, None, None, True)  # 1 is what passed, and 1 == True
    assert len(seen) == 6
    for _ in range(2):  # what failed fails again
        with pytest.raises(ValueError, match="affine: no"):
            op(Tensor([1.0, 2.0, 3.0]))
        with pytest.raises(ValueError, match="affine: no"):
            op(x, power=7)


def test_checks_of_shapes_are_not_remembered_without_end():
    """A thousand or so: a program whose shapes change with every call must not grow by each."""
    op, seen = affine(), []

    @op.check_shapes
    def check(x: Tensor, scale: Tensor | None, shift: Tensor | None, power: int, sign: float) -> None:
        seen.append(x.shape)

    remembered = inspect.getclosurevars(op._check).nonlocals["passed"]
    most = 0
    for size in range(2500):
        op._check(Tensor(np.empty(size)), None, None, 1, 1.0)
        most = max(most, len(remembered))
    assert 900 < most < 1100 and len(seen) == 2500
    op._check(Tensor(np.empty(2499)), None, None, 1, 1.0)
    assert len(seen) == 2500


def test_two_dtypes_in_a_fused_operation():
    with pytest.raises(TypeError, match=r"layer_norm: inputs are float32 and float64; bring them to one dtype with .astype\(...\)"):
        F.layer_norm(Tensor([[1.0, 2.0]]), Tensor(np.ones(2)))


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


def test_an_operation_cannot_write_into_its_settings(registry: None):
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


def test_arrays_given_to_a_fused_operation_are_constants():
    """Labels, masks and images may be NumPy arrays, and their owner may reuse them before backward."""
    logits, labels = leaf(2, 3), np.array([0, 2])
    expected = minigrad.grad(F.cross_entropy(logits, Tensor(labels)), logits)[0].numpy()
    loss = F.cross_entropy(logits, labels)
    labels[:] = 1
    assert_array_equal(minigrad.grad(loss, logits)[0].numpy(), expected)

    weight, image = leaf(3, 2), np.array([[1.0, 2.0]])
    y = F.linear(image, weight)
    image[:] = 0.0
    with pytest.raises(TypeError, match="gelu: Tensors in a tuple would lose their gradients; put them together by F.stack first"):
        F.gelu((leaf(2), leaf(2)))
    with pytest.raises(TypeError, match="exp: Tensors in a list would lose their gradients"):
        F.exp([[leaf(2)], [1.0]])
    with pytest.raises(TypeError, match="matmul: Tensors in a list would lose their gradients"):
        F.matmul(Tensor([1.0, 2.0]), [leaf(), leaf()])
    assert_array_equal(minigrad.grad(y, weight, Tensor(np.ones((1, 3))))[0].numpy(), [[1.0, 2.0]] * 3)


# --- another device: a wrapper with NumPy's protocols, as a GPU array is, that refuses to meet a NumPy array


class FarArray(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands for an array on a GPU: ufuncs and NumPy functions of it give arrays of its own kind, and it never turns into a NumPy array unasked."""

    def __init__(self, array: Any):
        self.array = np.asarray(array)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion of a far array")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: tuple = (), **kwargs: Any) -> Any:
        if any(isinstance(x, np.ndarray) for x in inputs):
            raise TypeError("a far array met a near one")
        if out:
            kwargs["out"] = tuple(far.array for far in out)
        result = getattr(ufunc, method)(*[x.array if isinstance(x, FarArray) else x for x in inputs], **kwargs)
        return out[0] if out else FarArray(result)

    def __array_function__(self, function: Any, types: Any, args: tuple, kwargs: dict) -> Any:
        def near(x: Any) -> Any:
            if isinstance(x, np.ndarray):
                raise TypeError("a far array met a near one")
            return x.array if isinstance(x, FarArray) else type(x)(near(part) for part in x) if isinstance(x, list | tuple) else x

        result = function(*near(args), **{key: near(value) for key, value in kwargs.items()})
        return FarArray(result) if isinstance(result, np.ndarray | np.generic) else result

    def __getitem__(self, index: Any) -> FarArray:
        return FarArray(self.array[index])

    def __len__(self) -> int:
        return len(self.array)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # NumPy would find __array_interface__, and the memory
            raise AttributeError(name)
        value = getattr(self.__dict__["array"], name)
        if callable(value):
            return lambda *args, **kwargs: FarArray(value(*args, **kwargs))
        return FarArray(value) if isinstance(value, np.ndarray) else value


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Registers the device "far" for one test; returns a function that makes tensors on it."""
    monkeypatch.setattr(backend, "_by_name", dict(backend._by_name))
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
    backend.add_device(
        "far", FarArray, FarArray, lambda x: x.array, lambda x, shape, strides: FarArray(np.lib.stride_tricks.as_strided(x.array, shape, strides))
    )
    return lambda array, requires_grad=False: Tensor(FarArray(np.array(array)), requires_grad)


MIXES = {
    "add": lambda x, y: x + y,
    "mul": lambda x, y: y * x,
    "maximum": lambda x, y: ops.maximum(x, y),
    "where": lambda x, y: ops.where(x > 0, x, y),
    "matmul": lambda x, y: x @ y,
    "concatenate": lambda x, y: ops.concatenate([x, y]),
    "stack": lambda x, y: ops.stack([y, x]),
    "greater": lambda x, y: x > y,
    "linear": lambda x, y: F.linear(x, y),
    "layer_norm": lambda x, y: F.layer_norm(x, None, y[0]),
    "pow": lambda x, y: x**y,
}


@pytest.mark.parametrize("name", MIXES)
def test_mixing_devices_names_operation_both_devices_and_the_fix(name: str, far: Callable):
    near_one, far_one = Tensor(np.ones((2, 2))), far(np.ones((2, 2)))
    for x, y in ((near_one, far_one), (far_one, near_one)):
        with pytest.raises(TypeError) as error:
            MIXES[name](x, y)
        message = str(error.value)
        assert message.startswith(f"{name}: inputs are on ") and "cpu" in message and "far" in message and ".to(device=" in message, message


def test_a_numpy_array_beside_a_far_tensor(far: Callable):
    with pytest.raises(TypeError, match=r"mul: inputs are on far and cpu; move .*\.to\(device=...\)"):
        far([1.0, 2.0]) * np.array([1.0, 2.0])
    assert (far([1.0, 2.0]) * 2.0).device == "far"  # numbers live everywhere
    assert (far([1.0, 2.0]) * np.float64(2.0)).device == "far"


def test_writing_across_devices(far: Callable):
    x = Tensor([1.0, 2.0])
    with pytest.raises(TypeError, match="far.* cpu"):
        x.copy_(far([1.0, 2.0]))
    with pytest.raises(TypeError, match="far.* cpu"):
        x[0] = far(1.0)
    with pytest.raises(TypeError, match="backward: the gradient is on far, its output on cpu"):
        leaf(2).backward(far([1.0, 2.0]))
    assert x.version[0] == 0


def test_moving_between_devices(far: Callable):
    x = leaf(2)
    y = x.to(device="far")
    assert y.device == "far" and type(y.data) is FarArray and y.requires_grad and x.to(device="cpu") is x
    assert y.to(device="cpu").device == "cpu"
    (y * 3.0).backward(far([1.0, 10.0]))
    assert x.grad.device == "cpu"
    assert_array_equal(x.grad.numpy(), [3.0, 30.0])
    with pytest.raises(TypeError, match=r"numpy\(\): the tensor is on far; move it with .to\(device='cpu'\) first"):
        y.numpy()
    assert "device=far" in repr(y)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_whole_graph_on_another_device(create_graph: bool, far: Callable):
    """Forward and backward never leave the device: sums of gradients, `.grad`, results of grad(), accumulation."""
    values = rng(2).uniform(0.5, 1.5, (2, 3))

    def loss(x: Tensor, w: Tensor) -> Tensor:
        h = x @ w + x.sum() * 0.5
        h = F.softmax(h) * h.exp() + h.max(1, keepdims=True)
        return (F.layer_norm(h) * h.relu() / 2.0).sum() + (x * x).mean()

    gradients = []
    for make in (lambda a: Tensor(a, True), lambda a: far(a, True)):
        x, w = make(values), make(values.T @ values)
        for _ in range(2):
            loss(x, w).backward(create_graph=create_graph)
        (g,) = minigrad.grad(loss(x, w), x, create_graph=create_graph)
        assert {t.device for t in (g, x.grad, w.grad)} == {x.device}
        gradients.append([backend.to_device(t.data, "cpu") for t in (g, x.grad, w.grad)])
    for ours, reference in zip(*gradients, strict=True):
        assert_allclose(ours, reference, rtol=1e-12)


def test_an_unknown_array_type():
    with pytest.raises(TypeError, match="FarArray is not an array of a known device"):
        wrap(FarArray([1.0])).device


def variadic(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors)  # type: ignore[return-value]


def test_an_operation_on_any_number_of_tensors():
    total = primitive(variadic)
    total.derivative(tensors=lambda g, tensors_shape: [g * (k + 1.0) for k in range(len(tensors_shape))])
    a, b = leaf(2), leaf(2, seed=1)
    ga, gb = minigrad.grad(total([a, b, a]).sum(), [a, b])
    assert_array_equal(ga.numpy(), [4.0, 4.0])
    assert_array_equal(gb.numpy(), [2.0, 2.0])
    with pytest.raises(ValueError, match="variadic: needs at least one tensor"):
        total([])


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
def test_an_error_of_its_own_keeps_its_cause(function: Callable, registry: None):
    op = primitive(function)
    with pytest.raises(TypeError, match="^no such shape$") as error:
        op(*[Tensor([1.0])] * op.count)
    assert isinstance(error.value.__cause__, KeyError)


# --- what a kernel's gradients read


def test_a_kernel_says_what_its_gradients_read():
    """Here x * w: only the other factor is read, and only that one is guarded; without `reads`, both are."""

    def product(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    def forward(x: Any, w: Any) -> tuple:
        return x * w, (x, w)

    def backward(dy: Any, saved: tuple, needs: tuple) -> tuple:
        x, w = saved
        return dy * w if needs[0] else None, dy * x if needs[1] else None

    op = fused(product)
    with pytest.raises(ValueError, match="product: there is no array 'y' that a kernel could read; there are x, w, out"):
        op.kernel("cpu", forward, backward, reads={"x": "y"})
    with pytest.raises(ValueError, match="no array 'y'"):
        op.kernel("cpu", forward, backward, reads={"y": "x"})
    for reads, refused in ((None, ["x", "w"]), ({"x": "w", "w": "x"}, ["w"]), ({"x": ""}, [])):
        op.kernel("cpu", forward, backward, reads=reads)
        for written in ("x", "w"):
            tensors = {"x": leaf(2), "w": leaf(2, seed=1)}
            out = op(tensors["x"], tensors["w"]).sum()
            with minigrad.no_grad():
                tensors[written].copy_(3.0)
            if written in refused:
                with pytest.raises(RuntimeError, match="backward of product"):
                    minigrad.grad(out, tensors["x"])
            else:
                minigrad.grad(out, tensors["x"])
    op.kernel("cpu", forward, backward, reads={"x": "w", "w": "x"})
    x = leaf(2)
    out = op(x, x).sum()  # one array in two places: read by both
    with minigrad.no_grad():
        x.copy_(3.0)
    with pytest.raises(RuntimeError, match="backward of product"):
        out.backward()


def test_to_device_of_what_is_there_is_a_view():
    x = leaf(2)
    y = ops.to_device(x, "cpu")
    assert np.shares_memory(x.data, y.data) and y.version is x.version


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        (lambda x, w: x * w, None, r"pair: the forward of its kernel gives an object of type ndarray; give \(out, saved\)"),
        (lambda x, w: (x * w, x, w), None, r"pair: the forward of its kernel gives \(ndarray, ndarray, ndarray\); give \(out, saved\)"),
        (lambda x, w: (x * w, x), None, r"pair: the forward of its kernel gives \(ndarray, ndarray\); give \(out, saved\), where saved is a tuple"),
        (lambda x, w: (x * w, (x, w)), lambda dy, saved, needs: (dy,), r"pair: the backward of its kernel gives \(ndarray\); .* per input, 2"),
        (lambda x, w: (x * w, (x, w)), lambda dy, saved, needs: dy, "pair: the backward of its kernel gives an object of type ndarray"),
    ],
)
def test_what_a_kernel_returns_is_looked_at(forward: Callable, backward: Any, message: str):
    @fused
    def pair(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    pair.kernel("cpu", forward, backward or (lambda dy, saved, needs: (dy, dy)))
    x, w = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0], requires_grad=True)
    with pytest.raises(TypeError, match=message):
        pair(x, w).backward(np.ones(2))
    assert x.grad is None and w.grad is None


def test_all_outputs_carry_gradients_unless_told_otherwise():
    @fused(outputs=2)
    def two(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * x, x * 3.0

    two.kernel("cpu", lambda x: ((x * x, x * 3), (x,)), lambda dy, saved, needs: ((0 if dy[0] is None else dy[0] * 2 * saved[0]) + 3 * dy[1],))
    x = Tensor([1.0, 2.0], requires_grad=True)
    first, second = two(x)
    (first * Tensor([1.0, 2.0]) + second * Tensor([3.0, 5.0])).backward(np.ones(2))
    assert x.grad is not None
    assert_array_equal(x.grad.numpy(), [11.0, 23.0])


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


def test_an_operation_without_annotations_has_no_inputs():
    @primitive
    def bare(x):
        return x

    with pytest.raises(TypeError, match="bare: no input is called x; annotate its inputs with Tensor"):
        bare.derivative(x=lambda g: g)


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


def test_wrong_arguments_of_the_fast_calls_name_the_operation(registry: None):
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
    assert repr(ops.relu) == "<unary relu>" and isinstance(ops.relu, Unary) and copy.deepcopy(ops.relu) is ops.relu
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
def test_the_fast_calls_know_shapes_and_whose_memory_a_result_is(function: Callable, shared: int | None, registry: None):
    op = primitive(function)
    op.derivative(**{name: lambda g, x_shape, x_dtype: ops.broadcast_to(g.astype(x_dtype), x_shape) for name in op.names})
    assert isinstance(op, Unary | Binary)
    tensors = tuple(leaf(2, 3, seed=k) for k in range(op.count))
    for fast, slow in ((op(*tensors), op._run(tensors, ())), (op(*[x.detach() for x in tensors]), None)):
        assert [fast.version is x.version for x in tensors] == [k == shared for k in range(op.count)]
        if slow is not None:
            assert recorded(fast.node) == recorded(slow.node) and fast.node.facts == ((2, 3), np.float64)
            assert [slow.version is x.version for x in tensors] == [k == shared for k in range(op.count)]


def test_kernels_may_give_lists_and_named_tuples():
    class Saved(NamedTuple):
        x: np.ndarray

    @fused
    def twice(x: Tensor) -> Tensor:
        return x * 2.0

    for saved in (Saved, lambda x: [x]):
        twice.kernel("cpu", lambda x, saved=saved: (x * 2, saved(x)), lambda dy, saved, needs: Saved(dy * 2))
        x = Tensor([3.0], requires_grad=True)
        twice(x).backward(np.ones(1))
        assert x.grad is not None and x.grad.item() == 2.0


def test_attributes_of_the_function_are_not_the_operations():
    def triple(x: Tensor) -> Tensor:
        return x * 3

    triple.name, triple.several = "exp", True  # type: ignore[attr-defined]
    op = primitive(triple)
    assert op.name == "triple" and not op.several and REGISTRY["exp"] is ops.exp
    assert len({kernel for op in REGISTRY.values() for kernel in op.kernels.values()}) > 10


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


@pytest.mark.parametrize("call", [lambda: F.gelu(None), lambda: F.softmax(None), lambda: F.linear(Tensor([[1.0]]), None), lambda: F.layer_norm(None)])
def test_an_input_that_is_not_there(call: Callable):
    with pytest.raises(TypeError, match=r"^\w+: (x|weight) is None; give a Tensor$"):
        call()
