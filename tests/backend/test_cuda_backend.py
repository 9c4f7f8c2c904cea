"""The backend's own CUDA kernels on the emulator: the error function, and adding at places that are given more than once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, ops
from minigrad.backend import cuda, nvrtc
from minigrad.backend.kernel_source import read
from minigrad.backend.scatter import add_at
from tests.backend.emulator.in_a_process import run_tests
from tests.cuda_device import ORDERS, last_digits, on_cuda
from tests.support import assert_close, draws, rng

pytestmark = pytest.mark.cuda

FILES = sorted((Path(minigrad.__file__).parent / "backend").glob("*.cu"))


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


def added(array: np.ndarray, index: Any, values: np.ndarray) -> np.ndarray:
    """By the kernel, in every order of threads."""
    with on_cuda(ORDERS):
        target = cuda.array_module().asarray(array)
        add_at(target, index, cuda.array_module().asarray(values))
        return target.get()


@draws(20)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    count=st.integers(0, 40),
    dtype=st.sampled_from([np.float32, np.float64, np.int64]),
    seed=st.integers(0, 999),
)
def test_values_are_added_in_the_order_of_numpy(shape: tuple[int, ...], count: int, dtype: type, seed: int) -> None:
    """To the last bit: with numbers of very different size any other order would show."""
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


@pytest.mark.emulator
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_compiles_with_nvrtc(file: Path, architecture: str) -> None:
    source = read(file)
    compiled = nvrtc.compile_with_nvrtc(source, architecture)
    assert set(compiled.symbols) == set(source.kernels)
    assert not compiled.log, compiled.log


@pytest.mark.emulator
@pytest.mark.skipif("MINIGRAD_EMULATOR" in os.environ, reason="runs in the process that this test starts")
def test_the_same_under_address_sanitizer() -> None:
    run_tests(__file__, MINIGRAD_EMULATOR="address")
