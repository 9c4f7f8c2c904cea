"""The emulated device's memory: one range of addresses, cut into blocks with gaps between them.

What is freed is not handed out again for a while, so that a kernel which still uses it is caught. Read next: `arrays.py`.
"""

from __future__ import annotations

import bisect
import ctypes
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["Block", "Memory"]

ALLOCATED, WRITTEN, FREED = 1, 2, 3  # State in core.h
_ALIGNMENT = 256  # bytes, as on a GPU; also the least gap behind a block


class Block:
    """Some bytes of device memory. They are freed when the last array that uses them is gone."""

    __slots__ = ("__weakref__", "address", "alive", "memory", "nbytes")

    def __init__(self, memory: Memory, address: int, nbytes: int):
        self.memory, self.address, self.nbytes, self.alive = memory, address, nbytes, True

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():  # then half of Python is gone
            self.memory.free(self)


class Memory:
    """Hands out blocks of the range that `core` (the emulator's library) has reserved.

    size: bytes of the range; they cost nothing until they are used. quarantine: bytes of freed blocks that are kept back.
    """

    def __init__(self, core: Any, size: int = 1 << 30, quarantine: int = 1 << 26):
        base = core.emulator_arena(size)
        if not base:
            raise MemoryError(f"the emulator cannot reserve {size} bytes of addresses, and 9 times as much for its notes about them")
        self.base, self.size, self.quarantine = base, size, quarantine
        self.top = _ALIGNMENT
        self.freed: deque[tuple[int, int]] = deque()  # (address, bytes), the oldest first
        self.freed_bytes = 0
        self.reusable: dict[int, list[int]] = {}  # rounded size: addresses
        self.in_use: dict[int, int] = {}  # address: bytes
        self.starts: list[int] = []  # every address ever handed out, ascending
        self._mark = core.emulator_mark
        self.states = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(core.emulator_states()))

    def allocate(self, nbytes: int) -> Block:
        """A block that nobody has written. Its bits are all set: as floats they are NaN."""
        rounded = (nbytes // _ALIGNMENT + 2) * _ALIGNMENT  # with the gap
        if self.reusable.get(rounded):
            address = self.reusable[rounded].pop()
        else:
            if self.top + rounded > self.size:
                raise MemoryError(f"the emulated device has {self.size} bytes; {nbytes} more do not fit")
            address = self.base + self.top
            self.top += rounded
            self.starts.append(address)
        self.in_use[address] = nbytes
        self._mark(address, nbytes, ALLOCATED)
        ctypes.memset(address, 0xFF, nbytes)
        return Block(self, address, nbytes)

    def free(self, block: Block) -> None:
        """Make the block's bytes unusable, and those that have been so for longest usable again."""
        if not block.alive:
            return
        block.alive = False
        del self.in_use[block.address]
        self._mark(block.address, block.nbytes, FREED)
        self.freed.append((block.address, block.nbytes))
        self.freed_bytes += block.nbytes
        while self.freed_bytes > self.quarantine:
            address, nbytes = self.freed.popleft()
            self.freed_bytes -= nbytes
            self.reusable.setdefault((nbytes // _ALIGNMENT + 2) * _ALIGNMENT, []).append(address)

    def before(self, address: int) -> tuple[int, int | None] | None:
        """The last block that starts at or before `address`: (its address, its bytes, or None if it is freed). None where there is none."""
        position = bisect.bisect_right(self.starts, address) - 1
        if position < 0 or not self.base <= address < self.base + self.size:
            return None
        return self.starts[position], self.in_use.get(self.starts[position])

    def states_of(self, values: np.ndarray) -> np.ndarray:
        """The states of a view of this memory: an array of its shape and strides, whose elements are the states of the bytes of an element."""
        offset = values.__array_interface__["data"][0] - self.base
        return np.ndarray(values.shape, f"V{values.itemsize}", self.states, offset, values.strides)

    def unwritten(self, values: np.ndarray) -> np.ndarray:
        """Where elements of the view have not been written, or are no array's any more (by their first byte)."""
        offset = values.__array_interface__["data"][0] - self.base
        return np.ndarray(values.shape, np.uint8, self.states, offset, values.strides) != WRITTEN

    def written(self, values: np.ndarray, index: Any = ...) -> None:
        """Note that `values[index]` has been written, `values` being a view of this memory."""
        if values.size:
            self.states_of(values)[index] = np.void(bytes([WRITTEN]) * values.itemsize)
