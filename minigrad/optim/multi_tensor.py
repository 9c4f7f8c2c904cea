"""Many tensors in one launch of a CUDA kernel: the tables through which it finds them. See `chunks.cuh` for what is in them.

A captured graph repeats launches with the arguments they had. So whatever changes from step to step is read from memory: learning rates, step
counters, the factor of a clipped gradient. Addresses are another matter: a graph's gradients lie in its own memory, always at the same places, and
those of steps that are not captured lie elsewhere; so a captured launch gets a table of addresses to itself. Nothing can be copied to the GPU while
work is captured: what is to be written then is written after it (`cuda.write`). Read next: `adamw.cu`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backend import cuda

__all__ = ["CHUNK", "Chunks", "DeviceCopy", "fits"]

CHUNK = 4096
"""Numbers of the largest part of a tensor that one block works on."""


def fits(array: Any, dtypes: str = "fd") -> bool:
    """Whether an array can be among those of one launch: on the GPU, contiguous, of a dtype (by its letter in NumPy) that the kernel has."""
    return type(array) is not np.ndarray and backend.device_of(array) == "cuda" and array.flags.c_contiguous and array.dtype.char in dtypes


class DeviceCopy:
    """The host's numbers in the GPU's memory, written again when they are others."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self.array = cuda.array_module().asarray(values)

    def write(self, values: np.ndarray) -> None:
        """Let the array be `values`; while work is captured, after that."""
        if not np.array_equal(values, self.values):
            cuda.write(self.array, values)
            self.values = values


class Chunks:
    """The tensors of one dtype that a kernel works on together, cut into chunks.

    Args:
        sizes: numbers in each tensor.
        groups: the parameter group of each.
        columns: how many arrays belong to a tensor: parameter, gradient, ...

    Attributes:
        table: the chunks. count: how many there are. first: of each tensor, its first chunk.
    """

    def __init__(self, sizes: Sequence[int], groups: Sequence[int], columns: int):
        rows = []
        self.first: list[int] = []
        for tensor, (size, group) in enumerate(zip(sizes, groups, strict=True)):
            self.first.append(len(rows))
            rows += [(tensor, group, start, min(CHUNK, size - start)) for start in range(0, max(size, 1), CHUNK)]  # one of an empty tensor, too
        self.count, self.tensors = len(rows), len(self.first)
        self.table = cuda.array_module().asarray(np.array(rows, np.int64))
        self._addresses = DeviceCopy(np.zeros((columns, self.tensors), np.uint64))
        self._spare = cuda.array_module().empty((columns, self.tensors), np.uint64)  # for a captured launch

    def addresses(self, *columns: Iterable[Any]) -> Any:
        """The table of the arrays' addresses, column by column, None where there is none.

        It holds no array: the GPU works in order. A graph that captures the launch does.

        Raises:
            RuntimeError: in a capture, for the second time without a call between that is not captured.
        """
        columns = tuple(map(list, columns))
        # an empty array is there, too, though CuPy's lies at address 0: the kernel reads none of it
        values = np.array([[0 if x is None else max(x.data.ptr, 256) for x in column] for column in columns], np.uint64)
        if not cuda.capturing():
            self._addresses.write(values)
            if self._spare is None:
                self._spare = cuda.array_module().empty(values.shape, np.uint64)
            return self._addresses.array
        if self._spare is None:
            raise RuntimeError("these tensors have been in a capture since the last step that was not captured: take one first")
        table, self._spare = self._spare, None
        cuda.write(table, values)
        cuda.keep(self, *columns)
        return table
