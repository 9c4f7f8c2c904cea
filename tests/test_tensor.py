"""Tensor itself: what it is made from, what it prints, how it meets NumPy, the ways out of the graph, and writing in place.

Read next: `test_autograd.py`.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, nn, ops
from minigrad import functional as F
from tests.support import rng

# --- making one


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (1, np.float32, ()),
        (1.5, np.float32, ()),
        ([1, 2], np.float32, (2,)),
        ([[1.0], [2.0]], np.float32, (2, 1)),
        ((1, 2.5), np.float32, (2,)),
        ([], np.float32, (0,)),
        (True, np.bool_, ()),
        ([True, False], np.bool_, (2,)),
        (np.float64(2), np.float64, ()),
        (np.float32(2), np.float32, ()),
        (np.int32(2), np.int32, ()),
        (np.bool_(True), np.bool_, ()),
        (np.zeros(3), np.float64, (3,)),
        (np.zeros((2, 0), np.float32), np.float32, (2, 0)),
        (np.array(1.0), np.float64, ()),
        (np.arange(3), np.int64, (3,)),
        (np.zeros(2, np.uint8), np.uint8, (2,)),
        (np.zeros(2, bool), np.bool_, (2,)),
        ([np.zeros(2), np.ones(2)], np.float64, (2, 2)),
        ([np.float64(1.0)], np.float64, (1,)),
        ([np.float32(1.0), 2.0], np.float32, (2,)),
        ([np.float32(1.0), np.float64(2.0), 3], np.float64, (3,)),
        ([np.int64(1), 2.5], np.float32, (2,)),
        ([np.int32(1), np.float32(2.5)], np.float32, (2,)),
        ([np.bool_(True), 2], np.int64, (2,)),
        ([Tensor(2.5), 1.0], np.float32, (2,)),
        ([[Tensor(np.array(2.5)), 1.0], (1, True)], np.float64, (2, 2)),
        ([[np.float64(1.0)], [2]], np.float64, (2, 1)),
        ([Tensor(np.arange(2)), Tensor(np.arange(2))], np.int64, (2, 2)),
        (np.ones(2, ">f8"), np.float64, (2,)),
        (range(3), np.float32, (3,)),
        (torch.ones(2, dtype=torch.float64), np.float64, (2,)),
        (np.arange(3).view(type("Subclass", (np.ndarray,), {})), np.int64, (3,)),
    ],
    ids=repr,
)
def test_dtype_and_shape_are_those_of_what_it_is_made_from(data: Any, dtype: type, shape: tuple):
    t = Tensor(data)
    assert type(t.data) is np.ndarray and t.dtype == dtype and t.shape == shape
    assert t.ndim == len(shape) and t.size == np.prod(shape, dtype=int) and t.device == "cpu"
    assert t.is_leaf and not t.requires_grad and t.grad is None


@pytest.mark.parametrize(
    "data",
    ["text", None, 1j, [1j], np.array([1j]), np.array(["a"]), object(), {"a": 1}, np.array([None]), np.ones(1, "f2"), np.ones(1, "g")],
    ids=lambda data: type(data).__name__,
)
def test_what_holds_no_numbers_is_refused(data: Any):
    with pytest.raises(TypeError, match=r"Tensor: (cannot make numbers of \w+ data|dtype .* is not supported)"):
        Tensor(data)


def test_bytes_are_in_the_machine_s_order():
    x, swapped = Tensor([1.0, 2.0]), np.array([3.0, 4.0], ">f4")
    for y in (x.astype(">f8"), x + swapped, nn.Linear(1, 1).to(dtype=">f8").weight, F.stack([x, swapped])):
        assert y.dtype.isnative
    assert_array_equal((x + swapped).numpy(), [4.0, 6.0])


def test_a_mask_is_not_lost_unseen():
    with pytest.raises(TypeError, match=r"a masked array's mask would be lost; give its .filled\(value\)"):
        Tensor(np.ma.masked_array([1.0, 2.0], [False, True]))
    t, masked = Tensor([1.0, 2.0]), np.ma.masked_array([1.0, 2.0], [False, True])
    for use in (lambda: t + masked, lambda: masked + t, lambda: F.stack([t, masked]), lambda: F.gelu(masked), lambda: t.copy_(masked)):
        with pytest.raises(TypeError, match=r"a masked array's mask would be lost; give its .filled\(value\)"):
            use()
    with pytest.raises(ValueError, match="bias is MaskedArray, not an array of numbers"):
        nn.Linear(1, 2).load_state_dict({"weight": np.ones((2, 1)), "bias": masked})


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="inhomogeneous"):
        Tensor([[1, 2], [3]])


def test_the_data_is_copied():
    array = np.array([1.0, 2.0])
    for t in (
        Tensor(array),
        Tensor(Tensor(array)),
        Tensor(array[::-1]),
        Tensor(np.asfortranarray(np.ones((2, 2)))),
        Tensor(memoryview(array).cast("B").cast("d")),
    ):
        assert not np.shares_memory(t.data, array) and t.data.flags.c_contiguous and t.data.flags.writeable
    t = Tensor(array)
    array[0] = 9.0
    assert_array_equal(t.numpy(), [1.0, 2.0])


def test_a_tensor_of_a_tensor_has_no_history():
    x = Tensor([1.0], requires_grad=True)
    y = Tensor(x * 2)
    assert y.is_leaf and not y.requires_grad and y.version is not x.version
    assert Tensor(x, requires_grad=True).requires_grad


@pytest.mark.parametrize("data", [np.arange(3), True, np.zeros(2, bool), np.uint8(1)], ids=repr)
def test_only_floats_require_grad(data: Any):
    with pytest.raises(TypeError, match=r"only floating-point tensors have gradients, this one is (int64|bool|uint8)"):
        Tensor(data, requires_grad=True)
    with pytest.raises(TypeError, match="only floating-point"):
        Tensor(data).requires_grad_()
    with pytest.raises(TypeError, match="only floating-point"):
        Tensor(data).requires_grad = True


@pytest.mark.parametrize("value", [3, 0, 1.0, None, "True", [True], Tensor([True]), np.array(True)], ids=repr)
def test_requires_grad_is_true_or_false(value: Any):
    """A second number is no length: PyTorch's `Tensor(2, 3)` is a matrix."""
    x = Tensor([1.0])
    for give in (
        lambda: Tensor(2, value),
        lambda: Tensor([1.0], requires_grad=value),
        lambda: x.requires_grad_(value),
        lambda: setattr(x, "requires_grad", value),
    ):
        with pytest.raises(TypeError) as error:
            give()
        message = f"requires_grad: it must be True or False, and is {value!r}; a tensor of a shape is made of an array, as in "
        assert str(error.value) == message + "Tensor(np.zeros((2, 3), np.float32))"
    assert not x.requires_grad and Tensor(2, np.True_).requires_grad is True and Tensor(2, np.False_).requires_grad is False


def test_requires_grad_switches_a_leaf_on_and_off():
    x = Tensor([1.0])
    assert x.requires_grad_() is x and x.requires_grad
    assert not x.requires_grad_(False).requires_grad
    assert not Tensor(np.arange(3)).requires_grad_(False).requires_grad  # as integers never have one
    with pytest.raises(RuntimeError, match=r"requires_grad_\(False\): this tensor was made by mul; use .detach\(\)"):
        (x.requires_grad_() * 2.0).requires_grad_(False)


def test_setting_requires_grad_does_not_cut_the_graph():
    w = Tensor([1.0])
    w.requires_grad = True
    y = w * 2.0
    with pytest.raises(RuntimeError, match=r"requires_grad_\(False\): this tensor was made by mul; use .detach\(\)"):
        y.requires_grad = False
    y.requires_grad = True
    (y * 3.0 + w).sum().backward()
    assert w.grad.item() == 7.0
    w.requires_grad = False
    assert w.requires_grad is False and not (w * 2.0).requires_grad


# --- what it shows


def test_repr_shows_numbers_dtype_and_what_made_it():
    assert repr(Tensor([1.0, 2.5])) == "Tensor([1. , 2.5])"
    assert repr(Tensor(np.array([1.0]), requires_grad=True)) == "Tensor([1.], dtype=float64, requires_grad=True)"
    assert repr(Tensor([0.0], requires_grad=True).exp().detach()) == "Tensor([1.])"
    assert repr(Tensor([2.0], requires_grad=True) * 2) == "Tensor([4.], made_by=mul)"
    assert repr(Tensor(np.arange(2))) == "Tensor([0, 1], dtype=int64)"
    assert repr(Tensor(3)) == "Tensor(3.)"
    assert repr(Tensor([[1, 2], [3, 4]])) == "Tensor([[1., 2.],\n        [3., 4.]])"
    assert len(repr(Tensor(np.zeros((1000, 1000))))) < 500
    assert repr(Tensor(np.zeros((0, 3), np.float32))) == "Tensor([], shape=(0, 3))" and repr(Tensor([])) == "Tensor([])"


@pytest.mark.parametrize(("size", "whole"), [(100, True), (101, False)])
def test_more_than_a_hundred_numbers_are_not_all_shown(size: int, whole: bool):
    assert ("..." in repr(Tensor(np.zeros(size)))) == (not whole)


def test_it_has_a_length_and_rows_that_pass_gradients_on():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert len(x) == 2 and [row.shape for row in x] == [(2,), (2,)]
    first, second = x
    (first * 2.0 + second * 3.0).sum().backward()
    assert_array_equal(x.grad.numpy(), [[2.0, 2.0], [3.0, 3.0]])
    assert [float(v) for v in Tensor([1.0, 2.0])] == [1.0, 2.0]
    assert all(v.device == "cpu" and v.ndim == 0 for v in Tensor([1.0, 2.0]))
    assert list(Tensor(np.zeros((0, 2)))) == []
    with pytest.raises(TypeError, match="0-d tensor"):
        len(Tensor(1.0))
    with pytest.raises(TypeError, match="0-d tensor has no first axis"):
        iter(Tensor(1.0))


def test_a_single_number_is_an_item_an_index_and_formatted():
    assert Tensor([[2.5]]).item() == 2.5 and type(Tensor(2.5).item()) is float
    assert type(Tensor(np.array([3])).item()) is int and type(Tensor(True).item()) is bool
    assert float(Tensor([2.5], requires_grad=True)) == 2.5 and int(Tensor(2.5)) == 2
    with pytest.raises(ValueError, match=r"item\(\): the tensor has 2 elements \(shape \(2,\)\), one is needed"):
        Tensor([1.0, 2.0]).item()
    with pytest.raises(ValueError, match="0 elements"):
        float(Tensor([]))
    assert [10, 20][Tensor(np.array(1))] == 20 and [*range(Tensor(np.array([2])))] == [0, 1]
    for other in (Tensor(1.0), Tensor(np.array(True)), Tensor(np.array([1, 2]))):
        with pytest.raises(TypeError, match=r"index: a tensor with one integer is needed, this one has shape"):
            [10, 20][other]
    assert f"{Tensor([2.5]):.2f} {Tensor(2.5)}" == "2.50 Tensor(2.5)"
    with pytest.raises(ValueError, match="2 elements"):
        f"{Tensor([1.0, 2.0]):.2f}"


def test_only_a_single_number_is_true_or_false():
    assert bool(Tensor(1.0)) and not bool(Tensor([0.0])) and (Tensor(1.0) > 0)
    with pytest.raises(ValueError, match=r"bool\(\): the tensor has 2 elements \(shape \(2,\)\), one is needed"):
        bool(Tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"0 elements \(shape \(0,\)\), one is needed$"):
        bool(Tensor([]))


def test_equality_is_elementwise_and_hash_is_identity():
    x, y = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    assert_array_equal((x == y).numpy(), [True, True])
    assert len({x, y}) == 2 and {x: 1}[x] == 1
    assert (x == None) is False and (x != "text") is True and x not in [None, "text", float]  # noqa: E711


def test_deepcopy_copies_the_gradient_and_keeps_ties():
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    twin = copy.deepcopy(x)
    assert twin.requires_grad and not np.shares_memory(twin.data, x.data) and not np.shares_memory(twin.grad.data, x.grad.data)
    assert_array_equal(twin.grad.numpy(), [2.0, 4.0])
    both = copy.deepcopy([x, x])
    assert both[0] is both[1]  # a tied weight stays tied
    with pytest.raises(RuntimeError, match="deepcopy: this tensor was made by mul"):
        copy.deepcopy(x * x)


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, *(lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in PROTOCOLS)])
def test_a_copy_is_whole_and_shares_among_itself_only(duplicate: Any):
    x = Tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    twin = Tensor([0.0, 0.0], requires_grad=True)
    twin.data = x.data
    first, second, detached = duplicate((x, twin, x.detach()))
    assert not any(np.shares_memory(a.data, b.data) for a, b in ((first, x), (first.grad, x.grad)))
    assert first.is_leaf and first.requires_grad and second.requires_grad and not detached.requires_grad
    assert_array_equal(first.grad.numpy(), [2.0, 4.0])
    assert second.grad is None and first.data is second.data and first.data is detached.data
    detached.copy_(3.0)
    assert first.version[0] == 1 and x.version[0] == 0
    (first * second).sum().backward()
    assert_array_equal(first.grad.numpy(), [5.0, 7.0])
    assert duplicate(Tensor(np.array(True))).item() is True


def test_a_gradient_is_copied_without_its_graph():
    x = Tensor([2.0], requires_grad=True)
    (x * x).sum().backward(create_graph=True)
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert twin.grad.is_leaf and not twin.grad.requires_grad and twin.grad.item() == 4.0
    assert not x.grad.is_leaf


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_computed_tensor_is_not_pickled(protocol: int):
    x = Tensor([1.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"pickle: this tensor was made by mul; only leaf tensors can be copied, use .detach\(\) first"):
        pickle.dumps(x * 2.0, protocol)


def test_other_libraries_that_copy_are_to_be_given_an_array():
    """`plt.plot(x)` copies x's elements: the message is all that one sees of this."""
    x = Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"made by getitem; .*, use .detach\(\) first \(for another library, which copies: .numpy\(\)\)$"):
        copy.copy(x[0])


def test_there_are_no_subclasses():
    with pytest.raises(TypeError, match="class Mine: operations look for Tensor itself, which has no subclasses; hold a Tensor in an attribute"):
        type("Mine", (Tensor,), {})


def test_there_is_no_place_for_misspelt_attributes():
    with pytest.raises(AttributeError):
        Tensor([1.0]).requires_gard = True


W = Tensor(np.ones((2, 3)), requires_grad=True)
USES = {
    "repr": repr,
    "numpy": lambda p: p.numpy(),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "copy_": lambda p: p.detach().copy_(0.0),
    "t[index] = value": lambda p: p.detach().__setitem__(0, 0.0),
    "+": lambda p: p + W,
    "* number": lambda p: p * 2.0,
    "-": lambda p: -p,
    "exp": lambda p: p.exp(),
    "sum": lambda p: p.sum(),
    "reshape": lambda p: p.reshape(6),
    "unbind": lambda p: p.unbind(),
    "matmul": lambda p: p @ W.T,
    "linear": lambda p: F.linear(W, p),
    "softmax": F.softmax,
    "stack": lambda p: F.stack([p, p]),
    "concatenate": lambda p: F.concatenate([W, p]),
}
BEFORE = {
    "*": lambda p: p * W,
    "sin": lambda p: p.sin(),
    "exp": lambda p: p.exp(),
    "log": lambda p: p.log(),
    "sum": lambda p: p.sum(),
    "pow": lambda p: p**3,
    "matmul": lambda p: W @ p.T,
    "linear": lambda p: F.linear(W, p),
}
NO_ARRAY = (
    r"^there is a Tensor where an array is needed; if a tensor's .data was set to it, write t.copy_\(value\) under `with minigrad.no_grad\(\):` "
    r"instead of t.data = value$"
)


def set_to_a_tensor(p: Tensor) -> None:
    """What PyTorch's `p.data = p.data.clamp(...)` becomes."""
    p.data = Tensor(np.clip(p.data, 0.5, 0.75))


@pytest.mark.parametrize("name", USES)
def test_data_that_was_set_to_a_tensor_is_refused_at_its_next_use(name: str):
    p = Tensor(rng(0).uniform(0.5, 1, (2, 3)), requires_grad=True)
    set_to_a_tensor(p)
    with pytest.raises(TypeError, match=NO_ARRAY):
        USES[name](p)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", BEFORE)
def test_data_that_was_set_to_a_tensor_is_refused_by_backward(name: str, create_graph: bool):
    p = Tensor(rng(0).uniform(0.5, 1, (2, 3)), requires_grad=True)
    y = BEFORE[name](p)
    set_to_a_tensor(p)
    with pytest.raises(TypeError, match=NO_ARRAY):
        y.backward(rng(1).uniform(-1, 1, y.shape), create_graph=create_graph)
    assert p.grad is None


# --- beside NumPy


@pytest.mark.parametrize(
    "operation",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: a @ b,
        lambda a, b: a**b,
        lambda a, b: a > b,
        lambda a, b: a == b,
    ],
)
def test_operators_between_array_and_tensor_give_a_tensor(operation: Any):
    a, b = rng(0).uniform(0.5, 1, (2, 2)).astype(np.float32), rng(1).uniform(0.5, 1, (2, 2)).astype(np.float32)
    for result in (operation(Tensor(a), b), operation(a, Tensor(b))):
        assert type(result) is Tensor and type(result.data) is np.ndarray
        np.testing.assert_allclose(result.numpy(), operation(a, b), rtol=1e-6)


@pytest.mark.parametrize("scalar", [2, 2.0, np.float32(2), np.float64(2), np.int64(2), np.array(2.0)], ids=repr)
def test_scalars_on_either_side_leave_the_dtype(scalar: Any):
    x = Tensor(np.array([1.0, 4.0], np.float32))
    results = [scalar + x, x + scalar, scalar - x, x - scalar, scalar * x, x * scalar, scalar / x, x / scalar, scalar**x, x**scalar]
    expected = [[3, 6], [3, 6], [1, -2], [-1, 2], [2, 8], [2, 8], [2, 0.5], [0.5, 2], [2, 16], [1, 16]]
    for result, values in zip(results, expected, strict=True):
        assert type(result) is Tensor and result.dtype == np.float32
        np.testing.assert_allclose(result.numpy(), values, rtol=1e-6)


def test_a_product_with_an_array_keeps_its_sides():
    a, x = rng(0).standard_normal((2, 3)), Tensor(rng(1).standard_normal((3, 2)))
    np.testing.assert_allclose((a @ x).numpy(), a @ x.numpy(), rtol=1e-14)
    np.testing.assert_allclose((x @ a).numpy(), x.numpy() @ a, rtol=1e-14)


def test_the_builtin_abs_takes_the_magnitude():
    assert abs(Tensor([-1.0, 2.0])).numpy().tolist() == [1.0, 2.0]


def test_arithmetic_of_single_numbers_gives_arrays():
    """NumPy turns 0-d arrays into scalars at every operation; a Tensor holds an array always."""
    x = Tensor(np.array(0.5), requires_grad=True)
    y = Tensor(np.array([0.25, 0.75]), requires_grad=True)
    for z in (
        x + x,
        -x,
        x * 2,
        x.exp(),
        x.relu(),
        abs(x),
        x**2,
        x.sum(),
        y.sum(),
        y.mean(),
        y.max(),
        y[0],
        y @ y,
        y.sum() / 2,
        x.clip(0, 1),
        ops.where(True, x, x),
        x > 0,
        x.T,
        y.var(),
    ):
        assert type(z.data) is np.ndarray, z
    for g in minigrad.grad(x * y.sum() * x.exp() + y.max() * y[1] * x.sin(), [x, y], create_graph=True):
        assert type(g.data) is np.ndarray
    for g in minigrad.grad(x * y.sum() * x.exp() + y.max() * y[1] * x.sin(), [x, y]):
        assert type(g.data) is np.ndarray


def test_plus_equals_rebinds():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = first = x * 1.0
    y += 1.0
    y *= 3.0
    y -= Tensor([0.5, 1.0])
    y /= 2.0
    assert y is not first and first.version[0] == 0
    assert_array_equal(first.numpy(), [1.0, 2.0])
    assert_array_equal(y.numpy(), [2.75, 4.0])
    y **= 2.0
    y @= Tensor([4.0, 2.0])
    assert y.item() == 4 * 2.75**2 + 2 * 4.0**2
    y.backward()
    assert_array_equal(x.grad.numpy(), [4 * 2 * 2.75 * 1.5, 2 * 2 * 4.0 * 1.5])
    z = constant = Tensor([1.0])
    z += 1.0
    assert constant.item() == 1.0 and z.item() == 2.0


@pytest.mark.parametrize("by", ["+", "-", "*", "/", "**", "@"])
@pytest.mark.parametrize("recording", [True, False])
def test_an_update_of_a_parameter_that_would_do_nothing_is_refused(by: str, recording: bool):
    p = Tensor([1.0], requires_grad=True)
    with (
        contextlib.nullcontext() if recording else minigrad.no_grad(),
        pytest.raises(RuntimeError, match="x {0}= y: x is a leaf that requires grad .* write x = x {0} y if .*copy_.x {0} y".format(re.escape(by))),
    ):
        operator = {"+": "iadd", "-": "isub", "*": "imul", "/": "itruediv", "**": "ipow", "@": "imatmul"}[by]
        getattr(p, f"__{operator}__")(2.0)
    assert p.item() == 1.0 and p.version[0] == 0


def test_numpy_functions_do_not_take_tensors_by_accident():
    with pytest.raises(TypeError):
        np.exp(Tensor([1.0]))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_numpy_is_a_read_only_view(requires_grad: bool):
    x = Tensor(np.array([1.0, 2.0]), requires_grad=requires_grad)
    for t in (x, x * 2, x[1:], x.detach()):
        view = t.numpy()
        assert np.shares_memory(view, t.data) and not view.flags.writeable and t.data.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 5.0
    with minigrad.no_grad():
        assert not np.asarray(x).flags.writeable
        assert np.array(x).flags.writeable and not np.shares_memory(np.array(x), x.data)
        assert np.asarray(x, np.float32).dtype == np.float32


def test_functions_of_arrays_do_not_lose_a_gradient_silently():
    x = Tensor([1.0, 2.0], requires_grad=True)
    for function in (np.asarray, lambda t: np.stack([t * 2.0, t * 3.0]), lambda t: np.array(t, np.float64)):
        with pytest.raises(TypeError, match=r"a tensor of shape \(2,\) that requires grad was given to a function of arrays"):
            function(x)
    with pytest.raises(TypeError, match=r"Tensor: Tensors in a list would lose their gradients; put them together by F\.stack"):
        Tensor([x * 2.0, x * 3.0])
    with minigrad.no_grad():
        assert_array_equal(Tensor([x * 2.0, x * 3.0]).numpy(), [[2.0, 4.0], [3.0, 6.0]])
    assert_array_equal(np.stack([x.detach(), x.numpy()]), [[1.0, 2.0], [1.0, 2.0]])


@pytest.mark.torch
def test_memory_is_shared_with_pytorch():
    x = Tensor(np.array([[1.0, 2.0], [3.0, 4.0]]))
    for t in (x, x.T, x[1:], x.to(dtype=np.float32), x > 2, Tensor(np.array([1, 2])), Tensor(2.0)):
        there = torch.from_dlpack(t)
        assert_array_equal(there.numpy(), t.numpy())
        assert there.numpy().dtype == t.dtype and np.shares_memory(there.numpy(), t.data)
    read_only = x[0].broadcast_to((3, 2))
    assert_array_equal(torch.from_dlpack(read_only).numpy(), read_only.numpy())
    for make in (torch.as_tensor, torch.tensor, torch.asarray):  # which find it, and no longer take the tensor for a list
        for t in (Tensor(2.0), x, read_only):
            assert_array_equal(make(t).numpy(), t.numpy())


def test_memory_that_is_shared_is_to_be_read():
    x = Tensor(np.array([1.0, 2.0]))
    view = np.from_dlpack(x)
    assert np.shares_memory(view, x.data) and not view.flags.writeable and x.data.flags.writeable
    copied = np.from_dlpack(x, copy=True)
    assert not np.shares_memory(copied, x.data)
    assert copied.flags.writeable == np.from_dlpack(x.data, copy=True).flags.writeable  # from NumPy 2.2.6 on it is
    assert x.__dlpack_device__() == x.data.__dlpack_device__()
    for older in (None, (0, 8)):  # which cannot say that it is to be read
        assert "dltensor" in repr(x.__dlpack__(max_version=older))
    with pytest.raises(BufferError, match="readonly"):
        Tensor(np.zeros(2)).broadcast_to((3, 2)).__dlpack__()


@pytest.mark.parametrize("give", [torch.from_dlpack, torch.as_tensor, torch.tensor, np.from_dlpack])
def test_memory_that_runs_backwards_is_not_shared(give: Callable[[Tensor], Any]):
    """PyTorch takes no negative strides, and ends the process."""
    x = Tensor(np.arange(6.0).reshape(2, 3))
    for t in (x[::-1], x[:, ::-1].T):
        with pytest.raises(BufferError, match=r"runs backwards in memory was given to another library; give \.numpy\(\)\.copy\(\)"):
            give(t)
    assert give(x[:0, ::-1]).shape == (0, 3)


def test_memory_of_a_tensor_that_requires_grad_is_not_shared_silently():
    x = Tensor([1.0, 2.0], requires_grad=True)
    message = r"a tensor of shape \(2,\) that requires grad was given to another library, which passes no gradients on; give \.detach\(\)"
    for function in (np.from_dlpack, torch.from_dlpack, torch.as_tensor, lambda t: t.__dlpack__()):
        for t in (x, x * 2.0):
            with pytest.raises(BufferError, match=message):
                function(t)
        function(x.detach())
    with minigrad.no_grad():
        assert_array_equal(np.from_dlpack(x), [1.0, 2.0])
    x = Tensor([1.0])
    x.data = [1.0]  # type: ignore[assignment]
    for function in (lambda t: t.__dlpack__(), lambda t: t.__dlpack_device__()):
        with pytest.raises(TypeError, match="list"):
            function(x)


def test_a_checkpoint_knows_that_shared_memory_was_looked_at():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    for share in (np.from_dlpack, lambda t: t.__dlpack__(), lambda t: t.__dlpack__(max_version=(1, 0))):
        outside = Tensor(np.array([3.0, 4.0]))

        def function(x: Tensor, share=share, outside=outside) -> Tensor:
            share(outside)
            return x * 2.0

        y = minigrad.checkpoint(function, x)
        outside[0] = 5.0
        with pytest.raises(RuntimeError, match="written in place"):
            y.sum().backward()


# --- out of the graph


def test_detach_cuts_the_graph():
    x = Tensor([1.0, 2.0], requires_grad=True)
    y = (x * 2).detach()
    assert y.is_leaf and not y.requires_grad
    (x * y).sum().backward()
    assert_array_equal(x.grad.numpy(), y.numpy())


def test_to_converts_only_where_something_differs():
    x = Tensor([1.0], requires_grad=True)
    assert x.to() is x and x.to(device="cpu", dtype=np.float32) is x
    assert x.to(dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="there is no device 'tpu' here; there is 'cpu'"):
        x.to(device="tpu")


# --- in place


def test_copy_writes_in_place_and_counts_it():
    x = Tensor([1.0, 2.0])
    assert x.copy_(np.array([3.0, 4.0])) is x and x.dtype == np.float32 and x.version[0] == 1
    assert_array_equal(x.copy_(7).numpy(), [7.0, 7.0])
    assert_array_equal(x.copy_(Tensor([[1.0], [2.0]])[1]).numpy(), [2.0, 2.0])
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        x.copy_(np.zeros(3))
    for value, kind in (("7", "str"), (7j, "complex"), (None, "NoneType"), (np.array([1 + 2j, 3]), "ndarray"), (np.array([None, 1]), "ndarray")):
        with pytest.raises(TypeError, match=f"copy_: cannot write {kind} data"):
            x.copy_(value)
    assert x.version[0] == 3  # a refused write is none
    assert Tensor(np.zeros(0)).copy_([]).shape == (0,)


def test_setitem_writes_in_place_and_counts_it():
    x = Tensor(np.zeros((2, 3), np.float32))
    x[0] = 1.0
    x[:, 2] = Tensor([5.0, 6.0])
    x[x > 5.5] = -1.0
    x[Tensor(np.array([1])), [0]] = np.array([8.0])
    assert_array_equal(x.numpy(), [[1, 1, 5], [8, 0, -1]])
    assert x.version[0] == 4 and x.dtype == np.float32
    x[1:] = x[:1]  # overlapping memory is no matter
    assert_array_equal(x.numpy(), [[1, 1, 5], [1, 1, 5]])
    with pytest.raises(IndexError):
        x[9] = 0.0
    with pytest.raises(ValueError, match=r"t\[index\] = value: could not broadcast .* \(the tensor has shape \(2, 3\), the value \(2,\)\)"):
        x[0] = np.zeros(2)
    assert x.version[0] == 5


def test_a_value_that_requires_grad_is_not_written_where_its_gradient_would_be_lost():
    w, x = Tensor([2.0], requires_grad=True), Tensor([0.0, 0.0])
    for write in (lambda: x.copy_(w * 3), lambda: x.__setitem__(0, (w * 3)[0])):
        with pytest.raises(RuntimeError, match=r"the value requires grad, and nothing written in place .* give value.detach\(\)"):
            write()
    for write in (lambda: x.copy_([w[0], 1.0]), lambda: x.__setitem__(slice(None), [w[0], w[0]])):
        with pytest.raises(TypeError, match=r"Tensors in a list would lose their gradients; put them together by F.stack first"):
            write()
    assert x.version[0] == 0
    x[0] = (w * 3).detach()[0]
    leaf = Tensor(5.0, requires_grad=True)
    assert_array_equal(x.copy_([leaf.detach(), 1.0]).numpy(), [5, 1])
    with minigrad.no_grad():
        x[1:] = w * 4
        x[1:] = [w[0] * 4]
        x.copy_([w[0] * 3, leaf])
    assert_array_equal(x.numpy(), [6, 5])


@pytest.mark.parametrize("make", [lambda x: x, lambda x: x * 1.0, lambda x: x[:1]], ids=["leaf", "interior", "view"])
def test_a_tensor_that_requires_grad_is_written_only_under_no_grad(make: Any):
    x = make(Tensor(np.array([1.0, 2.0]), requires_grad=True))
    with pytest.raises(RuntimeError, match=r"copy_: this tensor requires grad; write under `with minigrad.no_grad\(\):`"):
        x.copy_(0.0)
    with pytest.raises(RuntimeError, match=r"t\[index\] = value: this tensor requires grad"):
        x[0] = 0.0
    assert x.version[0] == 0 and x.numpy()[0] == 1.0
    with minigrad.no_grad():
        x.copy_(3.0)
        x[0] = 4.0
    assert x.version[0] == 2 and x.numpy()[0] == 4.0


@pytest.mark.parametrize(
    "make",
    [lambda x: x.broadcast_to((3, 2)), lambda x: ops.windows(x.reshape(1, 2, 1, 1), (1, 1)), lambda x: x.broadcast_to((3, 2)).T],
    ids=["broadcast", "windows", "T"],
)
def test_read_only_views_are_refused(make: Any):
    y = make(Tensor([1.0, 2.0]))
    for write in (lambda: y.copy_(0.0), lambda: y.__setitem__(0, 0.0)):
        with pytest.raises(RuntimeError, match="read-only view"):
            write()
    assert y.version[0] == 0
    assert Tensor(y).copy_(0.0).version[0] == 1  # a copy may be written


def test_a_single_number_is_a_view_too():
    x = Tensor(np.arange(3.0))
    matrix = Tensor(np.arange(6.0).reshape(2, 3))
    for view, base, index in ((x[1], x, 1), (x[-1], x, 2), (matrix[1, 2], matrix, (1, 2)), (matrix[0][1], matrix, (0, 1)), (x[(0,)], x, 0)):
        assert view.shape == () and view.version is base.version
        view.copy_(9.0)
        assert base.numpy()[index] == 9.0


def test_writing_into_a_view_writes_into_the_tensor():
    x = Tensor(np.zeros((2, 2)))
    x.T[0] = 5.0
    x.reshape(4)[3:].copy_(7.0)
    assert_array_equal(x.numpy(), [[5.0, 0.0], [5.0, 7.0]])
    assert x.version[0] == 2
