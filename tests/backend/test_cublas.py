"""Matrix products on the GPU: every layout in memory is told to cuBLAS as it is, in each precision, and in captured graphs too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, functional
from minigrad.backend import cublas, cuda
from tests.cuda_device import on_cuda, on_gpu
from tests.support import assert_close, rng

pytestmark = pytest.mark.cuda


@st.composite
def factors(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of float64 that can be multiplied: turned around, with gaps, broadcast, some axes of length 0 or 1."""
    sides = st.integers(0, 5)
    n, k, m = draw(sides), draw(sides), draw(sides)
    batch = draw(st.lists(st.integers(0, 3), max_size=3))
    generator = rng(draw(st.integers(0, 2**32 - 1)))

    def one(rows: int, columns: int) -> np.ndarray:
        shape = [draw(st.sampled_from([size, 1])) for size in batch[draw(st.integers(0, len(batch))) :]]
        order = draw(st.permutations(range(len(shape) + 2)))
        full = np.array([*shape, rows, columns])
        step = draw(st.integers(1, 2))
        array = generator.uniform(-2, 2, [int(size) * step for size in full[order]])[(slice(None, None, step),) * len(order)]
        return array.transpose(np.argsort(order))

    return one(n, k), one(k, m)


def on_the_device(x: np.ndarray):
    """The array on the device with the same strides."""
    base = x
    while base.base is not None:
        base = base.base
    offset = x.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    flat = cuda.array_module().asarray(base.reshape(-1))[offset // x.itemsize :]
    return cuda.array_module().lib.stride_tricks.as_strided(flat, x.shape, x.strides)


@given(factors())
def test_products_of_any_layout(drawn: tuple[np.ndarray, np.ndarray]):
    x, y = drawn
    with on_cuda(build="plain"):
        product = cublas.matmul(on_the_device(x), on_the_device(y))
        assert product.flags.c_contiguous
        assert_close(product.get(), x @ y)


@pytest.mark.emulator
def test_no_copy_of_transposed_views():
    x, y = rng(0).standard_normal((2, 3, 4)), rng(1).standard_normal((2, 5, 4))
    with on_cuda(build="plain") as device:
        left, right = cuda.array_module().asarray(x), cuda.array_module().asarray(y)
        before = device.allocations
        product = cublas.matmul(left, right.swapaxes(1, 2))
        assert device.allocations == before + 1  # the result
        assert_close(product.get(), x @ y.swapaxes(1, 2))


def test_lengths_that_do_not_fit():
    with on_cuda(build="plain"), pytest.raises(ValueError, match=r"matmul: shapes \(2, 3\) and \(4, 5\) do not fit"):
        cublas.matmul(cuda.array_module().ones((2, 3)), cuda.array_module().ones((4, 5)))


def rounded(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 numbers with `bits` bits after the point, the nearest, ties to even."""
    mantissa, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent).astype(np.float32)


@pytest.mark.parametrize(("name", "bits"), [("float32", 23), ("tf32", 10), ("bf16", 7)])
@pytest.mark.parametrize("turned", [False, True])
def test_factors_are_rounded_and_sums_are_not(name: str, bits: int, turned: bool):
    """Against float64 on rounded factors, with float32's accuracy. An odd width makes the conversion go number by number."""
    x, y = rng(0).standard_normal((9, 65), np.float32), rng(1).standard_normal((65, 7), np.float32)
    expected = rounded(x, bits).astype(np.float64) @ rounded(y, bits).astype(np.float64)
    with on_cuda(), minigrad.precision(name):
        left, right = (Tensor(np.ascontiguousarray(a.T)).to(device="cuda").T if turned else Tensor(a).to(device="cuda") for a in (x, y))
        product = (left @ right).to(device="cpu").numpy()
    assert product.dtype == np.float32
    by_tensor_cores = name == "tf32" and on_gpu()  # which cut digits off instead of rounding, or are left alone by cuBLAS for so small a product
    assert_close(product, expected, relative=2.0**-bits if by_tensor_cores else 1e-6)
    if bits < 23 and not by_tensor_cores:
        assert np.abs(product - x.astype(np.float64) @ y).max() > 2.0 ** -(bits + 3)  # it is not float32


def test_bfloat16_of_every_kind_of_number():
    numbers = np.array([0.0, -0.0, 1.0, -1.00390625, 1.01171875, 3.4e38, -np.inf, np.nan, 1e-40, 65504.0, 2.0**-133], np.float32)
    nan_of_low_bits = np.array([0x7F800001], np.uint32).view(np.float32)
    numbers = np.concatenate([numbers, nan_of_low_bits, rng(0).standard_normal(20, np.float32)])
    with on_cuda():
        bits = cublas._bfloat16(cuda.array_module().asarray(numbers)).get()
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    torch = pytest.importorskip("torch")
    expected = torch.from_numpy(numbers).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(widened, expected)


def test_backward_is_in_the_precision_too():
    x, w, g = (rng(seed).standard_normal(shape, np.float32) for seed, shape in enumerate([(6, 8), (4, 8), (6, 4)]))
    with on_cuda(build="plain"), minigrad.precision("bf16"):
        weight = Tensor(w).to(device="cuda").detach().requires_grad_()
        functional.linear(Tensor(x).to(device="cuda"), weight).backward(Tensor(g).to(device="cuda"))
        assert weight.grad is not None
        gradient = weight.grad.to(device="cpu").numpy()
    assert_close(gradient, rounded(g, 7).astype(np.float64).T @ rounded(x, 7), relative=1e-6)


def test_an_exception_leaves_no_precision_behind():
    with pytest.raises(ValueError, match="precision: there is no 'fp8'; there are float32, tf32, bf16"), minigrad.precision("fp8"):
        pass
    with pytest.raises(KeyError), minigrad.precision("bf16"):
        raise KeyError
    assert cublas._precision.get() == "float32"


def test_sizes_that_cublas_has_no_number_for_are_refused():
    """ctypes would pass on their last 32 bits, and the product of a few rows would come back."""
    library = object.__new__(cublas._Cublas)
    for sizes, apart in (((10, 1 << 32, 4), 4), ((10, 4, 1 << 31), 4), ((10, 4, 4), 1 << 31)):
        factor = cublas.Matrices(None, False, apart, 0)
        with pytest.raises(ValueError, match="is too large for cuBLAS; take fewer rows at a time"):
            library.gemm("float32", sizes, factor, factor, None, 1)


def test_products_are_captured():
    """CuPy's own refuse to be, and the stand-in with it."""
    x = rng(0).standard_normal((3, 3))
    with on_cuda(build="plain"):
        left = Tensor(x).to(device="cuda")
        graph = cuda.Captured(lambda: left @ left.T)
        with minigrad.no_grad():
            left.copy_(left * 2)
        graph.launch()
        assert_close(graph.result.to(device="cpu"), 4 * x @ x.T)
        with pytest.raises(NotImplementedError, match="calling cuBLAS API during stream capture"):
            cuda.Captured(lambda: left.data @ left.data)
