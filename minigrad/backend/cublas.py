"""Matrix products on the GPU: NVIDIA's cuBLAS, called directly.

CuPy calls cuBLAS too, but refuses to while a CUDA graph is captured, copies transposed stacks of matrices, and has one precision for a whole process.
So `matmul` says itself where the matrices lie, and hands the product to a library: `_Cublas` on a GPU, `emulator/blas.py` on the emulator.

cuBLAS stores columns one after the other, we rows. Read as columns, our X (R, K) is X^T (K, R); so Y^T X^T = (X Y)^T is asked for, which lies in
memory as X Y does. A matrix that is a transposed view is read transposed instead of copied. Read next: `cuda.py`.

Source: https://docs.nvidia.com/cuda/cublas/
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minigrad.backend import cuda

__all__ = ["PRECISIONS", "Matrices", "current_precision", "matmul", "precision"]

PRECISIONS = ("float32", "tf32", "bf16")
"""What `precision` takes."""

_precision: ContextVar[str] = ContextVar("minigrad_precision", default="float32")
_cuda = cuda.Kernels(__file__)


@contextmanager
def precision(name: str) -> Iterator[None]:
    """`with precision("tf32"):` how products of float32 matrices are computed on a GPU; on a CPU nothing changes.

    A backward pass takes the precision that holds where it is called, whatever the forward pass had: call it inside the block, too.

    Args:
        name: "float32" (24 bits of precision in each factor), "tf32" (11 bits; our convolutions round to them, in other products cuBLAS does, or cuts
            the rest off) or "bf16" (8 bits; factors are converted to bfloat16 first; convolutions other than 1x1 take tf32 then, too). Sums and
            results are float32 always, and so is everything that is no matrix product. Products of float64 tensors stay float64. Needs a GPU of
            compute capability 8.0 (A100, RTX 30) or later: convolutions stay float32 on older ones. Our convolutions' rounding makes nan of
            infinities, and of numbers beyond 4.15e34, since it multiplies by 8193; cuBLAS keeps both.

    Raises:
        ValueError: there is no such precision.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision: there is no {name!r}; there are {', '.join(PRECISIONS)}")
    token = _precision.set(name)
    try:
        yield
    finally:
        _precision.reset(token)


def current_precision() -> str:
    """What `precision` says at present."""
    return _precision.get()


class Matrices(NamedTuple):
    """Matrices in memory as cuBLAS wants to be told of them.

    array: holds the first one's first number. transposed: whether they lie column by column (seen from us). apart: numbers from one row (column) to
    the next; further: from one matrix to the next, 0 where all products have the same.
    """

    array: Any
    transposed: bool
    apart: int
    further: int


def matmul(x: Any, y: Any) -> Any:
    """The product (..., n, k) @ (..., k, m) -> (..., n, m) of arrays on the device "cuda"; leading axes are broadcast.

    Raises:
        ValueError: lengths that do not fit.
    """
    cp = cuda.array_module()
    if x.dtype != y.dtype or x.dtype.char not in "fd" or x.ndim < 2 or y.ndim < 2:
        return cp.matmul(x, y)
    (n, k), (other_k, m) = x.shape[-2:], y.shape[-2:]
    if k != other_k:
        raise ValueError(
            f"matmul: shapes {x.shape} and {y.shape} do not fit; the last axis of the first must be as long as the last but one of the second"
        )
    batch = x.shape[:-2] if x.shape[:-2] == y.shape[:-2] else np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    if not k:
        return cp.zeros((*batch, n, m), x.dtype)
    result = cp.empty((*batch, n, m), x.dtype)
    if result.size:
        name = _precision.get() if x.dtype.char == "f" else "float64"
        if name == "bf16":
            x, y = _bfloat16(x), _bfloat16(y)
        _library(cp).gemm(name, (m, n, k), _matrices(y, batch), _matrices(x, batch), result, prod(batch))
    return result


def _matrices(x: Any, batch: tuple[int, ...]) -> Matrices:
    """How the last two axes of `x`, broadcast over `batch`, lie in memory; where cuBLAS cannot read them, those of a copy."""
    (rows, columns), (down, across) = x.shape[-2:], (step // x.itemsize for step in x.strides[-2:])
    if (columns == 1 or across == 1) and (rows == 1 or down >= columns):
        transposed, apart = False, down if rows > 1 else columns
    elif (rows == 1 or down == 1) and (columns == 1 or across >= rows):
        transposed, apart = True, across if columns > 1 else rows
    else:
        return _matrices(x.copy(), batch)
    further = _one_step(x, batch)
    if further is None:
        copied = cuda.array_module().broadcast_to(x, (*batch, rows, columns)).copy()
        return Matrices(copied, False, columns, rows * columns)
    return Matrices(x, transposed, apart, further)


def _one_step(x: Any, batch: tuple[int, ...]) -> int | None:
    """How many numbers apart the matrices of `x`, broadcast over `batch`, lie; None if that is not the same number for all."""
    leading = x.shape[:-2]
    steps = [0] * (len(batch) - len(leading)) + [0 if size == 1 else step // x.itemsize for size, step in zip(leading, x.strides[:-2], strict=True)]
    further, inner = None, 1
    for size, step in zip(reversed(batch), reversed(steps), strict=True):
        if size == 1:
            continue
        if further is None:
            further = step
        elif step != further * inner:
            return None
        inner *= size
    return None if further is not None and further < 0 else further or 0


def _bfloat16(x: Any) -> Any:
    """`x` rounded to bfloat16: an array of the upper 16 bits, in the order that `x` has in memory if that has no gaps, else in C order."""
    if not x.flags.c_contiguous:
        turned = x.swapaxes(-1, -2)
        return _bfloat16(turned).swapaxes(-1, -2) if turned.flags.c_contiguous else _bfloat16(x.copy())
    y = cuda.array_module().empty(x.shape, np.uint16)
    width = cuda.vector_width(x.size, x)
    types, packs = "float4, ushort4" if width == 4 else "float, unsigned short", x.size // width
    _cuda.launch(f"to_bfloat16<{types}>", -(-packs // 256), 256, x, y, packs)
    return y


# --- the library


_TYPES = {"float32": (0, 0, 68), "tf32": (0, 0, 77), "bf16": (14, 0, 68), "float64": (1, 1, 70)}  # of the factors, of the result, computing
_DEFAULT_ALGORITHM = -1
_WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for its GPUs since 2022
_of_thread = threading.local()


def _library(cp: Any) -> Any:
    """What computes products on the device "cuda" as it is now. A cuBLAS handle may not be shared by threads."""
    if cp.__name__ != "cupy":
        from minigrad.backend.emulator import blas

        return blas
    handles = _of_thread.__dict__.setdefault("handles", {})
    device = cp.cuda.runtime.getDevice()
    if device not in handles:
        handles[device] = _Cublas(cp)
    return handles[device]


class _Cublas:
    """A handle of cuBLAS. Work goes to the current stream, each with a workspace of its own: cuBLAS would otherwise allocate one inside a capture."""

    def __init__(self, cp: Any):
        cp.cuda.device.get_cublas_handle()  # CuPy finds the library and loads it
        major = cp.cuda.runtime.runtimeGetVersion() // 1000
        library = ctypes.CDLL(f"cublas64_{major}.dll" if os.name == "nt" else f"libcublas.so.{major}")
        number, size, pointer = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
        library.cublasSetStream_v2.argtypes = [pointer, pointer]
        library.cublasSetWorkspace_v2.argtypes = [pointer, pointer, ctypes.c_size_t]
        library.cublasGemmStridedBatchedEx.argtypes = [
            pointer, number, number, number, number, number, pointer, pointer, number, number, size, pointer, number, number, size, pointer, pointer,
            number, number, size, number, number, number,
        ]  # fmt: skip
        self._cp, self._library, self._handle = cp, library, pointer()
        self._workspaces: dict[int, Any] = {}
        self._stream: int | None = None
        self._call("cublasCreate_v2", ctypes.byref(self._handle))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"cuBLAS: {name} failed with status {status}; https://docs.nvidia.com/cuda/cublas/#cublasstatus-t says what it means")

    def _use_current_stream(self) -> None:
        stream = self._cp.cuda.get_current_stream().ptr
        if stream != self._stream:
            if stream not in self._workspaces:
                self._workspaces[stream] = self._cp.empty(_WORKSPACE, np.uint8)
            self._call("cublasSetStream_v2", self._handle, stream)
            self._call("cublasSetWorkspace_v2", self._handle, self._workspaces[stream].data.ptr, _WORKSPACE)
            self._stream = stream

    def gemm(self, precision: str, sizes: tuple[int, int, int], left: Matrices, right: Matrices, result: Any, count: int) -> None:
        """Fill `result` with `count` products of columns-first matrices, (m, k) by (k, n); `sizes` are m, n and k."""
        if max(*sizes, left.apart, right.apart, count) >= 1 << 31:  # of which ctypes would pass on the last 32 bits
            raise ValueError(
                f"matmul: a product of {sizes[1]} x {sizes[2]} by {sizes[2]} x {sizes[0]} is too large for cuBLAS; take fewer rows at a time"
            )
        self._use_current_stream()
        kind, result_kind, computing = _TYPES[precision]
        number = ctypes.c_double if precision == "float64" else ctypes.c_float
        one, zero, (m, n, _) = number(1), number(0), sizes
        self._call(
            "cublasGemmStridedBatchedEx", self._handle, left.transposed, right.transposed, *sizes, ctypes.byref(one),
            left.array.data.ptr, kind, left.apart, left.further, right.array.data.ptr, kind, right.apart, right.further, ctypes.byref(zero),
            result.data.ptr, result_kind, m, m * n, count, computing, _DEFAULT_ALGORITHM,
        )  # fmt: skip
