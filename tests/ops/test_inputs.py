"""What operations make of their arguments: the dtype of mixed inputs as PyTorch's, numbers that never promote, what is refused and how it is said.

Read next: `test_reduce.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from tests.support import assert_close, rng

# --- dtypes of mixed inputs


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
    if shapes[1]:  # an array with axes counts as much as a tensor
        assert ops.add(Tensor(x), y).dtype == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,), ()])
@pytest.mark.parametrize("number", [True, 2, 2.0], ids=["bool", "int", "float"])
def test_numbers_never_promote(dtype: str, shape: tuple, number: float):
    """Python numbers, NumPy scalars of any width and 0-d arrays change a tensor's kind (integer to float) at most, never its width."""
    x = Tensor(np.ones(shape, dtype))
    expected = str(torch.result_type(torch.tensor(x.data), number)).removeprefix("torch.")
    same_numbers = {
        bool: [np.bool_(True)],
        int: [np.int64(2), np.int32(2), np.uint8(2)],
        float: [np.float64(2), np.float32(2), np.float16(2), np.longdouble(2)],
    }[type(number)]
    if number is not True:
        assert ops.pow(np.ones(2, dtype), number).dtype == (x**number).dtype
    with pytest.raises(TypeError, match="mul: dtype float16 is not supported"):
        x * np.ones(1, np.float16)
    for given_number in [number, *same_numbers, *[np.asarray(n) for n in same_numbers]]:
        assert (x * given_number).dtype == expected, repr(given_number)
        assert (given_number * x).dtype == expected, repr(given_number)
        assert ops.where(True, x, given_number).dtype == expected, repr(given_number)


@pytest.mark.parametrize("pair", [(True, True), (True, 2), (2, 3), (2, 3.5), (np.float64(2), 3), (np.int32(2), np.uint8(3)), (np.array(2.0), 3)])
def test_numbers_alone_have_the_dtype_that_pytorch_gives_them(pair: tuple):
    plain = [n if isinstance(n, bool | int | float) else n.item() for n in pair]
    expected = str(torch.result_type(*plain)).removeprefix("torch.")
    assert ops.add(*pair).dtype == expected and ops.where(True, *pair).dtype == expected
    assert ops.add(*pair).numpy() == np.add(*plain)
    assert ops.div(*pair).dtype == np.float32


def test_integers_stay_integers_where_they_can():
    x = Tensor(np.array([1, 2, 3], np.int32))
    for y in (x + x, x * 2, -x, abs(x), x - 1, x**2, ops.maximum(x, 2), x.relu(), x.clip(2, 3)):
        assert y.dtype == np.int32 and not y.requires_grad
    for y in (x / x, x / 2, x.exp(), x.sqrt(), x**-2, x**0.5, 2**x, x * 0.5, x.clip(1.5, 2.5)):
        assert y.dtype == np.float32


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3).map(lambda found: found.input_shapes))
def test_gradients_of_mixed_dtypes_have_their_tensors_dtype(two: tuple):
    x, y = Tensor(rng(0).uniform(-2, 2, two[0]).astype(np.float32), True), Tensor(np.asarray(rng(1).uniform(-2, 2, two[1])), True)
    z = x * y
    z.backward(Tensor(np.asarray(rng(2).uniform(-1, 1, z.shape))))
    assert x.grad.dtype == np.float32 and x.grad.shape == x.shape
    assert y.grad.dtype == np.float64 and y.grad.shape == y.shape


# --- one argument at a time


def test_what_is_not_a_number_is_refused():
    x = Tensor([1.0, 2.0])
    with pytest.raises(TypeError, match="add: cannot use list as a tensor"):
        ops.add(x, [1, 2])
    with pytest.raises(TypeError, match="mul: cannot use str as a tensor"):
        x * "2"
    with pytest.raises(TypeError, match="mul: .*complex128"):
        x * np.array([1j, 2j])
    with pytest.raises(TypeError, match="mul: dtype complex64 is not supported"):
        x * np.complex64(1)
    with pytest.raises(TypeError, match="add: cannot use complex as a tensor"):
        x + 1j
    for dtype in (np.float16, np.longdouble, complex, str, object):
        with pytest.raises(TypeError, match=r"cast: dtype .* is not supported; give booleans, integers, float32 or float64"):
            x.astype(dtype)


def test_numbers_of_any_size_and_kind():
    """Fractions and huge integers are floats; what an integer tensor cannot hold is refused, where PyTorch would wrap it."""
    x, small = Tensor([4.0]), Tensor(np.array([3, 4], np.uint8))
    assert (x ** Fraction(1, 2)).numpy() == 2 and (x * Fraction(1, 2)).numpy() == 2 and (x + 2**100).numpy() == np.float32(2.0**100)
    assert (small * Fraction(1, 2)).dtype == np.float32 and (small + 251).dtype == np.uint8
    for number in (-1, 256, 2**100):
        with pytest.raises(OverflowError, match=rf"add: {number} is no uint8, which the tensor is; give it another dtype with \.astype"):
            small + number


def test_kinds_of_arrays(tmp_path: Path):
    """A memory map is an array like any other."""
    np.save(tmp_path / "x.npy", np.arange(3))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert Tensor(mapped).dtype == np.int64
    for y in (Tensor([1.0, 2.0, 3.0]) + mapped, mapped + Tensor([1.0, 2.0, 3.0])):
        assert type(y) is Tensor and y.numpy().tolist() == [1, 3, 5]


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


@pytest.mark.parametrize(
    ("dtype", "number"), [(np.uint8, 300), (np.uint8, -1), (np.int32, 2**40), (np.int32, np.nan), (np.int64, 1e20), (np.int64, 2**70)]
)
def test_a_number_that_does_not_fit_is_not_written(dtype: type, number: float):
    x = Tensor(np.ones(2, dtype))
    writes = [lambda: x.copy_(number), lambda: x.__setitem__(0, number), lambda: ops.pad(x, ((1, 1),), number)]
    writes += [lambda: x.copy_([1, number])] if abs(number) < 2**63 or not isinstance(number, int) else []
    for write in writes:
        with pytest.raises(OverflowError, match="is no u?int.*, which the tensor is; give it another dtype"):
            write()
    np.testing.assert_array_equal(x.numpy(), [1, 1])
    assert x.version[0] == 0
    x[0] = 2.7  # cut off, as in PyTorch
    assert x.numpy()[0] == 2


def test_what_is_no_tensor_is_called_by_its_full_name():
    with pytest.raises(TypeError, match=r"add: cannot use torch.Tensor as a tensor; give a Tensor, an array or a number"):
        Tensor([1.0]) + torch.ones(1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.mean(x, 0),
        lambda x: ops.var(x, 0),
        lambda x: ops.flatten(x),
        lambda x: ops.swapaxes(x, 0, 1),
        lambda x: ops.cast(x, np.float64),
        lambda x: ops.cast(x, np.int64),
    ],
)
def test_arrays_and_lists_will_do(function: Callable):
    array = np.arange(6.0).reshape(2, 3)
    expected = function(Tensor(array))
    for x in (array, array.tolist()):
        y = function(x)
        assert isinstance(y, Tensor) and not np.shares_memory(y.data, array)
        np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=1e-12)


@pytest.mark.parametrize("axis", [0.5, "0", None])
def test_an_axis_that_is_no_whole_number(axis: Any):
    x = Tensor(np.zeros((2, 3)))
    for name, call in (("swapaxes", lambda: x.swapaxes(0, axis)), ("flatten", lambda: x.flatten(axis)), ("unbind", lambda: x.unbind(axis))):
        with pytest.raises(TypeError, match=f"{name}: the axis must be a whole number, it is {axis!r}"):
            call()


OF_AN_AXIS = {
    "swapaxes": (lambda x, axis: ops.swapaxes(x, 0, axis), 2),
    "flatten": (ops.flatten, 2),
    "concatenate": (lambda x, axis: ops.concatenate([x, x], axis), 2),
    "stack": (lambda x, axis: ops.stack([x, x], axis), 3),
    "unbind": (ops.unbind, 2),
    "transpose": (lambda x, axis: ops.transpose(x, (0, axis)), 2),
    "gather": (lambda x, axis: ops.gather(x, np.zeros((2, 3), int), axis), 2),
    "scatter_add": (lambda x, axis: ops.scatter_add(x, np.zeros((2, 3), int), axis, 4), 2),
    **{name: (getattr(ops, name), 2) for name in ("sum", "mean", "var", "max", "min", "argmax")},
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", OF_AN_AXIS)
def test_an_axis_that_is_not_there_is_refused_in_one_wording(name: str, requires_grad: bool):
    call, count = OF_AN_AXIS[name]
    x = Tensor(np.zeros((2, 3)), requires_grad)
    for axis in (count, count + 1, -count - 1):
        with pytest.raises(np.exceptions.AxisError) as error:
            call(x, axis)
        assert str(error.value) == f"{name}: there is no axis {axis}; give one from {-count} to {count - 1}"
        assert isinstance(error.value, ValueError) and isinstance(error.value, IndexError)
    if name != "transpose":
        call(x, -count)
