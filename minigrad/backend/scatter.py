"""`numpy.add.at` on the GPU, repeatable: CuPy's adds floats by atomics, in whatever order threads come along. Read next: `cuda.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad.backend import cuda

__all__ = ["add_at"]

_cuda = cuda.Kernels(__file__)


def add_at(array: Any, index: Any, values: Any) -> None:
    """`array[index] += values` on the device "cuda", where the index may pick an element more than once: it then receives each value, in their order.

    Args:
        array: written to.
        index: as of `array[index]`: slices, integers, arrays of integers (also NumPy's), or a tuple of them.
        values: broadcasts to the shape of `array[index]`.
    """
    cp = cuda.array_module()
    parts = tuple(cp.asarray(part) if isinstance(part, np.ndarray) else part for part in (index if isinstance(index, tuple) else (index,)))
    if array.dtype.kind != "f":
        cp.add.at(array, parts, values)  # integers add up exactly, in any order
        return
    target = array if array.flags.c_contiguous else array.copy()
    places = cp.arange(array.size, dtype=np.int64).reshape(array.shape)[parts]  # where in memory each picked element lies
    numbers = cp.broadcast_to(values, places.shape).reshape(-1)
    places = places.reshape(-1)
    order = cp.argsort(places)  # stable: equal places keep their order
    count, kind = places.size, cuda.c_type(array.dtype)
    numbers = numbers if numbers.flags.c_contiguous else numbers.copy()
    _cuda.launch(f"add_at<{kind}>", -(-count // 256), 256, target, numbers, places[order], order, count)
    if target is not array:
        array[...] = target
