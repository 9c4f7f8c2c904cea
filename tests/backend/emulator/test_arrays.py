"""The stand-in for CuPy's arrays: what they refuse, what they count, and where they are stricter than NumPy."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest

from minigrad import backend
from minigrad.backend import cuda
from minigrad.backend.emulator import state
from minigrad.backend.emulator.faults import UninitialisedRead
from tests.cuda_device import on_cuda, on_gpu

pytestmark = pytest.mark.cuda


@pytest.fixture
def device():
    with on_cuda() as device:
        yield device


@pytest.fixture
def cp(device):
    return cuda.array_module()


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


PLAIN = numbers(3, 4)
MIXED = {
    "x + plain": lambda x: x + PLAIN,
    "plain + x": lambda x: PLAIN + x,
    "x * a 0-d array": lambda x: x * np.array(2.0),
    "x + [1, 2, 3, 4]": lambda x: x.__add__([1, 2, 3, 4]),
    "np.asarray(x)": np.asarray,
    "np.array([x, x])": lambda x: np.array([x, x]),
    "memoryview(x)": memoryview,
    "plain.dot(x)": lambda x: PLAIN.T.dot(x),
    "plain[x > 0]": lambda x: PLAIN[x > 0],
    "np.matmul(plain, x)": lambda x: np.matmul(PLAIN.T, x),
    "np.where(plain > 0, x, 0)": lambda x: np.where(PLAIN > 0, x, 0),
    "np.concatenate([x, plain])": lambda x: np.concatenate([x, PLAIN]),
    "np.copyto(x, plain)": lambda x: np.copyto(x, PLAIN),
    "np.add(x, x, out=plain)": lambda x: np.add(x, x, out=PLAIN),
    "x[...] = plain": lambda x: x.__setitem__(..., PLAIN),
    "plain[...] = x": lambda x: PLAIN.copy().__setitem__(..., x),
    "x += plain": lambda x: x.__iadd__(PLAIN),
}


@pytest.mark.parametrize("what", MIXED)
def test_arrays_of_the_two_sides_do_not_mix(cp, what):
    with pytest.raises((TypeError, ValueError)):  # CuPy says ValueError for copyto and assignment
        MIXED[what](cp.asarray(PLAIN))


SAME = {
    "operators": lambda np, x: (x + 1) * x - x / 2.0 + np.float32(3) ** 2,
    "comparison": lambda np, x: x > 0.5,
    "functions": lambda np, x: np.exp(x) + np.tanh(x) + np.maximum(x, 0) + np.minimum(x, 40),
    "matmul": lambda np, x: np.matmul(x, x.T),
    "the operator @": lambda np, x: x.T @ x,
    "sum": lambda np, x: x.sum(0, keepdims=True),
    "sum of all": lambda np, x: x.sum(),
    "argmax": lambda np, x: x.argmax(1),
    "where": lambda np, x: np.where(x > 0, x, 0.0),
    "concatenate": lambda np, x: np.concatenate([x, x], 1),
    "stack": lambda np, x: np.stack([x, x]),
    "pad": lambda np, x: np.pad(x, ((1, 0), (0, 2))),
    "broadcast_to": lambda np, x: np.broadcast_to(x, (2, 3, 4)),
    "moveaxis": lambda np, x: np.moveaxis(x, 0, 1),
    "take_along_axis": lambda np, x: np.take_along_axis(x, x.argmax(1)[:, None], 1),
    "index": lambda np, x: x[1:, ::-2],
    "an element": lambda np, x: x[1, 2],
    "a list as index": lambda np, x: x[[2, 0]],
    "an array as index": lambda np, x: x[x.argmax(0)],
    "a mask": lambda np, x: x[x > 0],
    "clip": lambda np, x: np.clip(x, -0.5, 0.5),
    "cast": lambda np, x: x.astype(np.float64),
    "zeros_like": lambda np, x: np.zeros_like(x, shape=(2,)),
    "cumsum": lambda np, x: x.cumsum(1),
}


@pytest.mark.parametrize("what", SAME)
def test_computes_what_numpy_computes(cp, what):
    expected, found = SAME[what](np, PLAIN), SAME[what](np, cp.asarray(PLAIN))
    assert isinstance(found, cp.ndarray)
    np.testing.assert_allclose(found.get(), expected, rtol=1e-5 if on_gpu() else 0, atol=1e-6 if on_gpu() else 0)  # a GPU has an exp of its own
    assert (found.dtype, found.shape) == (expected.dtype, np.shape(expected))


def test_what_is_computed_is_in_c_order_and_what_is_copied_in_the_order_it_had(cp):
    turned = cp.asarray(PLAIN).T
    assert turned.flags.f_contiguous
    assert np.exp(turned).flags.c_contiguous
    assert (turned + turned).flags.c_contiguous
    assert turned.copy().flags.c_contiguous
    for same in (
        cp.asarray(PLAIN.T), turned.astype(np.float64), turned.copy("K"), cp.empty_like(turned), np.zeros_like(turned), np.ones_like(turned),
        np.pad(turned, ((1, 1), (0, 0))),
    ):  # fmt: skip
        assert same.flags.f_contiguous and not same.flags.c_contiguous and same.base is None
    moved = cp.asarray(numbers(2, 3, 4)).transpose(1, 0, 2)  # neither order
    assert moved.astype(np.float64).strides == cp.empty_like(moved, dtype=np.float64).strides == (32, 96, 8)
    assert cp.empty_like(moved, shape=(5, 2)).flags.c_contiguous  # another number of axes
    assert cp.asarray(numbers(6, 4)[::2]).flags.c_contiguous


def test_without_a_copy_a_cast_gives_the_array_itself_if_its_order_is_the_one_asked_for(cp):
    rows = cp.asarray(numbers(3, 4))
    turned = rows.T
    assert rows.astype(np.float32, copy=False) is rows and rows.astype(np.float32, "C", copy=False) is rows
    assert turned.astype(np.float32, copy=False) is turned and rows.astype(np.float32) is not rows
    straight = turned.astype(np.float32, "C", copy=False)
    assert straight is not turned and straight.flags.c_contiguous
    np.testing.assert_array_equal(straight.get(), turned.get())


def test_the_shape_of_no_axes_counts_as_none_given(cp):
    """A mistake of CuPy 14.2; what makes 0-d arrays must not rely on it."""
    x = cp.ones((2, 3))
    assert np.zeros_like(x, shape=()).shape == cp.empty_like(x, shape=()).shape == cp.full_like(x, 1, shape=()).shape == (2, 3)
    assert np.zeros_like(x, shape=(1,)).reshape(()).shape == cp.zeros(()).shape == ()


def test_a_strided_view_names_no_owner_but_lies_in_the_same_memory(cp):
    x = cp.asarray(PLAIN)
    view = cp.lib.stride_tricks.as_strided(x[1:], (2, 2), (16, 4))
    assert view.base is None and view.data.mem is x.data.mem and view.data.ptr == x.data.ptr + 16
    assert backend.is_view(view, x) and backend.is_view(x.T, x) and not backend.is_view(x + 0, x) and not backend.is_view(x.T.reshape(-1), x)


def test_views_share_memory_and_name_their_owner(cp):
    x = cp.asarray(PLAIN)
    for view in (x[1:], x.T, x.reshape(4, 3), x[0], x[1, 2], np.broadcast_to(x, (2, 3, 4)), x.view(), x[1:].T):
        assert view.base is x
    assert x.base is None
    x.T[0] = 7
    assert (x.get()[:, 0] == 7).all()
    assert x.T.reshape(-1).base is None  # cannot be a view
    assert x.reshape(-1).view(np.uint8).base is x
    np.testing.assert_array_equal(x.reshape(-1).view(np.uint8).get(), x.get().reshape(-1).view(np.uint8))


@pytest.mark.emulator
@pytest.mark.parametrize("name", ["mT", "__array_interface__", "tofile", "strides_"])
def test_other_attributes_are_missing(cp, name):
    with pytest.raises(AttributeError):
        getattr(cp.zeros((2, 2)), name)


@pytest.mark.emulator
def test_other_names_of_the_module_are_missing_and_say_so(cp):
    with pytest.raises(AttributeError, match="the emulator's stand-in for CuPy has no 'fft'"):
        cp.fft
    assert not hasattr(cp.zeros(2).flags, "writeable")
    with pytest.raises(TypeError):
        np.linalg.norm(cp.zeros(2))


def test_what_no_function_of_cupy_takes(cp):
    x, whole = cp.asarray(PLAIN), cp.zeros((3, 4), np.int64)
    for refused, error in [
        (lambda: range(cp.asarray(3)), TypeError),  # its arrays are no indices
        (lambda: np.add(x, x, where=x > 0), TypeError),
        (lambda: np.add(x, x, out=whole), TypeError),
        (lambda: np.maximum.reduce(x), NotImplementedError),
        (lambda: np.exp.at(x, 0), (NotImplementedError, TypeError)),
        (lambda: np.concatenate([x[0, 0], x[0, 0]]), TypeError),
    ]:
        with pytest.raises(error):
            refused()
    np.testing.assert_array_equal(np.add.reduce(x, 1).get().shape, (3,))


@pytest.mark.emulator
def test_the_host_waits_for_numbers_and_nothing_else(cp, device):
    x = cp.asarray(PLAIN)
    y = np.exp(x).sum() * 2
    x[0] = y
    np.add(x, 1, out=x)
    assert device.synchronisations == 0
    for count, wait in enumerate(
        (
            x.get, y.item, lambda: float(y), lambda: int(y), lambda: bool(y > 0), lambda: x[x > 0], x.tolist, lambda: repr(x),
            lambda: x.__setitem__(x > 5, 0),
        ),
        1,
    ):  # fmt: skip
        wait()
        assert device.synchronisations == count


@pytest.mark.emulator
def test_what_nobody_has_written_is_not_read(cp):
    x = cp.empty((3, 4), np.float32)
    for read in (x.get, lambda: x + 1, lambda: x.sum(), lambda: np.concatenate([x, x]), lambda: cp.zeros(4)[x.argmax(0)]):
        with pytest.raises(UninitialisedRead, match=r"element \(0, 0\) of an array of shape \(3, 4\) \(float32\)"):
            read()
    x[:, ::2] = 1
    with pytest.raises(UninitialisedRead, match=r"element \(0, 1\) .* \(6 such elements\)"):
        x.get()
    x[..., [1, 3]] = 2
    np.testing.assert_array_equal(x.get(), np.tile([1, 2], (3, 2)))


@pytest.mark.emulator
def test_an_assignment_writes_an_element_once(cp):
    x = cp.zeros(4)
    x[[2, 0]] = cp.asarray([1.0, 2.0])
    np.testing.assert_array_equal(x.get(), [2, 0, 1, 0])
    with pytest.raises(ValueError, match="names an element more than once"):
        x[cp.asarray([1, 1])] = cp.asarray([1.0, 2.0])


def test_adding_at_places_given_more_than_once(cp):
    x = cp.zeros((3, 2))
    np.add.at(x, cp.asarray([1, 1]), 1.0)
    np.add.at(x, np.array([0]), cp.asarray([[5.0, 6.0]]))
    np.testing.assert_array_equal(x.get(), [[5, 6], [2, 2], [0, 0]])
    with pytest.raises(TypeError):
        np.add.at(x, (cp.asarray([1, 1]), 0), 1.0)  # CuPy's arrays refuse a tuple that comes by way of NumPy
    cp.add.at(x, (cp.asarray([2, 2]), 0), 1.0)
    np.testing.assert_array_equal(x.get(), [[5, 6], [2, 2], [2, 0]])


@pytest.mark.emulator
@pytest.mark.parametrize(("number", "dtype"), [(np.inf, np.int32), (-1.0, np.uint8), (256.0, np.uint8), (np.nan, np.int64)])
def test_a_cast_that_does_not_fit_raises(cp, number, dtype):
    with pytest.raises(ValueError, match="which cannot hold it"):
        cp.asarray([number]).astype(dtype)
    with pytest.raises(ValueError, match="which cannot hold it"):
        cp.zeros(1, dtype)[...] = cp.asarray([number])


def test_casts_that_fit(cp):
    np.testing.assert_array_equal(cp.asarray([0.0, 255.9, -0.5]).astype(np.uint8).get(), [0, 255, 0])


@pytest.mark.emulator
def test_memory_is_given_back_and_kept_back_for_a_while(cp):
    memory = state.memory()
    gc.collect()  # arrays that the traceback of another test's exception still holds
    before = len(memory.in_use)
    x = cp.zeros(1000)
    view, address = x[10:], x.data.ptr
    del x
    gc.collect()
    assert len(memory.in_use) == before + 1  # the view needs it
    del view
    gc.collect()
    assert len(memory.in_use) == before
    assert cp.zeros(1000).data.ptr != address


@pytest.mark.emulator
def test_memory_is_used_again_in_the_end(cp):
    memory = state.memory()
    tops = set()
    for _ in range(5):
        for _ in range(40):
            cp.empty(1 << 20, np.uint8)  # freed at once; 40 of them are more than the quarantine
        tops.add(memory.top)
    assert len(tops) <= 2


@pytest.mark.emulator
def test_the_ends_of_arrays_lie_apart_and_arrays_on_multiples_of_256(cp):
    arrays = [cp.zeros(n, np.uint8) for n in (1, 255, 256, 257)]
    for first, second in itertools.pairwise(arrays):
        if second.data.ptr > first.data.ptr:
            assert second.data.ptr - (first.data.ptr + first.nbytes) >= 256
    assert all(x.data.ptr % 256 == 0 for x in arrays)
