"""A device of one's own: a wrapper with NumPy's protocols, as a GPU array is, that refuses to meet a NumPy array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, backend, ops
from minigrad import functional as F
from minigrad.tensor import wrap
from tests.support import leaf, rng


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


def test_a_numpy_array_beside_a_far_tensor_is_refused_and_a_number_is_not(far: Callable):
    with pytest.raises(TypeError, match=r"mul: inputs are on far and cpu; move .*\.to\(device=...\)"):
        far([1.0, 2.0]) * np.array([1.0, 2.0])
    assert (far([1.0, 2.0]) * 2.0).device == "far"  # numbers live everywhere
    assert (far([1.0, 2.0]) * np.float64(2.0)).device == "far"


def test_writing_across_devices_is_refused(far: Callable):
    x = Tensor([1.0, 2.0])
    with pytest.raises(TypeError, match="far.* cpu"):
        x.copy_(far([1.0, 2.0]))
    with pytest.raises(TypeError, match="far.* cpu"):
        x[0] = far(1.0)
    with pytest.raises(TypeError, match="backward: the gradient is on far, its output on cpu"):
        leaf(2).backward(far([1.0, 2.0]))
    assert x.version[0] == 0


def test_moving_between_devices_passes_gradients_on(far: Callable):
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
def test_a_whole_graph_on_another_device_never_leaves_it(create_graph: bool, far: Callable):
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


def test_an_unknown_array_type_is_refused():
    with pytest.raises(TypeError, match="FarArray is not an array of a known device"):
        wrap(FarArray([1.0])).device


def test_to_device_of_what_is_there_is_a_view():
    x = leaf(2)
    y = ops.to_device(x, "cpu")
    assert np.shares_memory(x.data, y.data) and y.version is x.version
