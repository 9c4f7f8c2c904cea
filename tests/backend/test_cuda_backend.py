"""The backend's own CUDA kernels on the emulator: the error function, sums of large arrays, and adding at places that are given more than once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minigrad import Tensor, backend, ops
from minigrad.backend import addition, cuda
from minigrad.backend.scatter import add_at
from tests.cuda_device import ORDERS, last_digits, on_cuda
from tests.support import assert_close, draws, often, rng

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (300,), (3, 5)])
def test_erf_and_its_gradient_are_the_cpu_s(dtype: type, shape: tuple[int, ...]) -> None:
    x = rng(1).uniform(-4, 4, shape).astype(dtype)
    here = Tensor(x, requires_grad=True)
    expected = ops.erf(here)
    expected.sum().backward()
    with on_cuda(ORDERS):
        there = Tensor(x).to(device="cuda").requires_grad_()
        out = ops.erf(there)
        out.sum().backward()
        assert out.dtype == dtype
        assert_close(out, expected, relative=1e-15 if dtype == np.float64 else last_digits(1e-7))
        assert there.grad is not None
        assert_close(there.grad, here.grad, relative=1e-14 if dtype == np.float64 else 1e-6)


def test_erf_at_the_ends_and_of_strided_arrays() -> None:
    x = np.array([[np.nan, -0.0, 0.0, 1e-300], [np.inf, -np.inf, 7.0, -7.0]])
    with on_cuda():
        out = ops.erf(Tensor(x).to(device="cuda").transpose(1, 0)).to(device="cpu").numpy()
    np.testing.assert_allclose(out, ops.erf(Tensor(x.T.copy())).numpy(), rtol=last_digits(1e-16))
    np.testing.assert_array_equal(np.signbit(out), np.signbit(ops.erf(Tensor(x.T.copy())).numpy()))


def large_arrays(size: int, dtype: type, count: int = 2, start: int = 0) -> list[Any]:
    """On the device; each begins `start` numbers behind the beginning of its memory."""
    cp = cuda.array_module()
    return [cp.asarray(rng(seed).uniform(-9, 9, start + size).astype(dtype))[start:] for seed in range(count)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("size", "start"), [(4096, 0), (4100, 0), (1025, 0), (1024, 1), (backend.LARGE, 0)])
def test_large_arrays_are_added_by_one_launch(dtype: type, size: int, start: int) -> None:
    """The bits of CuPy's sum: in a new array, and in either summand. Arrays that do not begin at 16 bytes are read number by number."""
    with pytest.MonkeyPatch.context() as patch, on_cuda(ORDERS if size < backend.LARGE else ORDERS[:1]) as device:
        patch.setattr(backend, "LARGE", min(size, backend.LARGE))
        x, y = large_arrays(size, dtype, start=start)
        expected = (x + y).get()
        np.testing.assert_array_equal(backend.add(x, y).get(), expected)
        for total in (x, y):
            before = total.copy()
            assert backend.add(x, y, out=total) is total
            np.testing.assert_array_equal(total.get(), expected)
            total[...] = before
        assert device.launches == 3


@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_of_three_arrays_that_does_not_begin_at_sixteen_bytes(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    monkeypatch.setattr(backend, "LARGE", 1024)
    with on_cuda(ORDERS) as device:
        x, y, total = (large_arrays(1024, np.float32, 3, start=int(k == which))[k] for k in range(3))
        assert backend.add(x, y, out=total) is total
        np.testing.assert_array_equal(total.get(), x.get() + y.get())
        assert device.launches == 1


def test_the_naive_sum_is_the_same() -> None:
    with on_cuda(ORDERS):
        x, y, total = large_arrays(300, np.float32, 3)
        addition._cuda.launch("add_naive<float>", 2, 256, x, y, total, 300)
        np.testing.assert_array_equal(total.get(), (x + y).get())


def test_other_sums_are_the_array_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small arrays, of arrays with gaps or in another order, of different shapes or dtypes, of integers, of numbers."""
    monkeypatch.setattr(backend, "LARGE", 12)
    with on_cuda() as device:
        cp = cuda.array_module()
        x, y = (array.reshape(4, 6) for array in large_arrays(24, np.float32))
        turned = cp.empty((6, 4), np.float32).T
        for a, b, out in (
            (x[:1], y[:1], None), (x.T, y.T, None), (x[:, :3], y[:, :3], None), (x, y[0], None), (x, y.astype(np.float64), None), (x, 2, None),
            (x.astype(np.int64), y.astype(np.int64), None), (x, y, turned), (x[:1], y[:1], cp.empty((1, 6), np.float32)),
        ):  # fmt: skip
            result = backend.add(a, b, out=out)
            np.testing.assert_array_equal(result.get(), a.get() + (b if isinstance(b, int) else b.get()))
            assert out is None or result is out
        assert device.launches == 0


@pytest.mark.emulator
@pytest.mark.parametrize("size", [4096, 4100, 1024, 1025])
def test_a_sum_has_no_block_too_many(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(backend, "LARGE", size)
    with on_cuda(build="check") as device:
        backend.add(*large_arrays(size, np.float32))
        assert device.launches == 1 and device.wasteful == []


def test_sums_of_gradients_in_a_captured_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that is used three times: one sum is made, and added to in place, whenever the graph is launched."""
    monkeypatch.setattr(backend, "LARGE", 1 << 10)
    names: list[str] = []
    launch = cuda.Kernels.launch
    monkeypatch.setattr(cuda.Kernels, "launch", lambda self, name, *rest, **more: names.append(name) or launch(self, name, *rest, **more))
    values = rng(0).uniform(-1, 1, (2, 32, 32)).astype(np.float32)

    def gradient(x: Tensor) -> Any:
        y = x * 1.5
        (y * y + y * 2.0 - y.exp()).sum().backward()
        found, x.grad = x.grad, None
        assert found is not None
        return found.data

    with on_cuda():
        x = Tensor(values[0]).to(device="cuda").requires_grad_()
        graph = cuda.Captured(lambda: gradient(x))
        names_of_a_call = len(names) // 3
        assert names[:names_of_a_call] == ["add<float4>"] * 4  # one of the sums that are written here, three of the four gradients that arrive at y
        for given in values:
            x.data[...] = cuda.array_module().asarray(given)
            graph.launch()
            np.testing.assert_array_equal(graph.result.get(), gradient(Tensor(given).to(device="cuda").requires_grad_()).get())
            assert_close(graph.result.get(), Tensor(gradient(Tensor(given, requires_grad=True))), relative=1e-6)


def added(array: np.ndarray, index: Any, values: np.ndarray) -> np.ndarray:
    """By the kernel, in every order of threads."""
    with on_cuda(ORDERS):
        target = cuda.array_module().asarray(array)
        add_at(target, index, cuda.array_module().asarray(values))
        return target.get()


@draws(20)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    count=often(st.integers(0, 40), st.integers(257, 600), 4),
    dtype=st.sampled_from([np.float32, np.float64, np.int64]),
    seed=st.integers(0, 999),
)
@example(shape=(1,), count=600, dtype=np.float32, seed=0)
@example(shape=(1, 300), count=1, dtype=np.float32, seed=0)
def test_values_are_added_in_the_order_of_numpy(shape: tuple[int, ...], count: int, dtype: type, seed: int) -> None:
    """To the last bit: with numbers of very different size any other order would show.

    Some fill several blocks, once those of one place, and once with a place for each.
    """
    random = rng(seed)
    array = random.standard_normal(shape).astype(dtype)
    index = random.integers(-shape[0], shape[0], count)
    values = (random.standard_normal((count, *shape[1:])) * 10.0 ** random.integers(0, 9, (count, *[1] * (len(shape) - 1)))).astype(dtype)
    expected = array.copy()
    np.add.at(expected, index, values)
    np.testing.assert_array_equal(added(array, index, values), expected)


@pytest.mark.parametrize(
    "index",
    [(slice(None), [1, 1, 0]), ([0, 2, 0], [1, 1, 1]), (Ellipsis, [3, 3]), (slice(1, None), slice(None, None, 2)), (np.array([[0, 1], [1, 0]]), 2)],
)
def test_any_index(index: Any) -> None:
    index = tuple(np.array(part) if isinstance(part, list) else part for part in index)
    array, values = rng(1).standard_normal((3, 4)), rng(2).standard_normal(rng(1).standard_normal((3, 4))[index].shape)
    expected = array.copy()
    np.add.at(expected, index, values)
    np.testing.assert_array_equal(added(array, index, values), expected)


def test_an_array_of_any_strides_and_a_value_for_all() -> None:
    with on_cuda():
        cp = cuda.array_module()
        base = cp.zeros((3, 4))
        add_at(base.T, np.array([1, 1, 3]), cp.asarray(np.array([1.0, 2.0, 4.0])))
        np.testing.assert_array_equal(base.get().T[1], [2.0, 4.0, 8.0])
        np.testing.assert_array_equal(base.get().T[3], [1.0, 2.0, 4.0])
        np.testing.assert_array_equal(base.get().T[[0, 2]], 0.0)
        add_at(base, np.array([0, 0, 2]), cp.asarray(8.0))
        np.testing.assert_array_equal(base.get(), [[16, 18, 16, 17], [0, 4, 0, 2], [8, 16, 8, 12]])
