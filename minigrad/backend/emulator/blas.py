"""Matrix products on the emulated device: what `backend/cublas.py` asks of cuBLAS, answered by NumPy from the same addresses and steps.

A wrong step or a transposition too many therefore shows here too. tf32 rounds the factors to the nearest with 10 bits after the point, as bf16 does
with 7; sums are float32. Read next: `standin.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backend.emulator import state
from minigrad.backend.emulator.arrays import _check_written, _write

__all__ = ["gemm"]


def gemm(precision: str, sizes: tuple[int, int, int], left: Any, right: Any, result: Any, count: int) -> None:
    """As `cublas._Cublas.gemm`."""
    m, n, k = sizes
    factors = [_seen(left, count, m, k), _seen(right, count, k, n)]  # without their arrays: a graph keeps addresses only
    target = result._values.reshape(count, n, m).swapaxes(1, 2)  # read columns first

    def action() -> None:
        for factor in factors:
            _check_written(factor)
        a, b = (_rounded(factor, precision) for factor in factors)
        with np.errstate(all="ignore"):
            _write(target, a @ b)

    state.submit("a matrix product", action, [left.array._block, right.array._block, result._block])


def _seen(given: Any, count: int, rows: int, columns: int) -> np.ndarray:
    """The matrices (count, rows, columns) that cuBLAS would read: columns first, or rows first if they are to be transposed."""
    values = given.array._values
    down, across = (given.apart, 1) if given.transposed else (1, given.apart)
    size = values.itemsize
    last = (count - 1) * given.further + (rows - 1) * down + (columns - 1) * across
    start = values.__array_interface__["data"][0] - given.array._block.address
    if start + (last + 1) * size > given.array._block.nbytes:
        raise RuntimeError(f"cuBLAS would read past the end of an array of shape {given.array.shape}: {given}")
    return np.lib.stride_tricks.as_strided(values, (count, rows, columns), (given.further * size, down * size, across * size))


def _rounded(values: np.ndarray, precision: str) -> np.ndarray:
    """The numbers that are multiplied."""
    if precision == "bf16":
        return backend.from_bfloat16(values)
    if precision == "tf32":
        bits = values.copy().view(np.uint32)
        finite = (bits & 0x7F800000) != 0x7F800000
        return np.where(finite, (bits + 0xFFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000), bits).view(np.float32)
    return values
