"""Arrays on the CPU in pieces of a good size: long ones block by block, small ones end to end.

What is updated in place must not be left in the middle because there is no memory for what the update needs beside: that is taken first, by
`reserved` and by the making of an `EndToEnd`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from minigrad.backend import cpu

__all__ = ["SMALL", "EndToEnd", "in_blocks", "is_small", "reserved"]

GRAIN = 1 << 17  # fewest elements a thread is worth

SMALL = 1 << 12
"""Elements up to which arrays are put end to end: a step of AdamW on 100 numbers is 14 calls of NumPy and little else."""


class _Room(threading.local):
    """Scratch by dtype, of the thread that has taken it; the pool's threads are given their parts of it."""

    scratch: dict[np.dtype, np.ndarray] | None = None


_room = _Room()


def _in_pieces(arrays: Iterable[Any]) -> bool:
    return all(array.flags.c_contiguous for array in arrays)


def _parts(arrays: Sequence[Any]) -> tuple[int, int]:
    """How many threads share these arrays, and how much scratch each of them needs: as many elements as its largest piece."""
    size = arrays[0].size
    if not _in_pieces(arrays):
        return 1, size
    threads = 1 if size < 2 * GRAIN else len(cpu.row_blocks(size, GRAIN))
    return threads, min(-(-size // threads), cpu.ALONE if threads == 1 else cpu.TOGETHER)


@contextlib.contextmanager
def reserved(updates: Iterable[Sequence[Any]]) -> Iterator[None]:
    """Inside the block `in_blocks` finds the scratch for these updates, of which each is given by its arrays: it asks for no memory then. (Not for an
    `in_blocks` inside another's update, which would write into the same scratch.)

    Raises:
        MemoryError: there is none; on entering.
    """
    most: dict[np.dtype, int] = {}
    for arrays in updates:
        if type(arrays[0]) is np.ndarray:
            threads, part = _parts(arrays)
            dtype = arrays[0].dtype
            most[dtype] = max(most.get(dtype, 0), threads * part)
    before = _room.scratch
    _room.scratch = {dtype: np.empty(size, dtype) for dtype, size in most.items()}
    try:
        yield
    finally:
        _room.scratch = before


def in_blocks(update: Callable[..., None], *arrays: Any) -> None:
    """Call `update(*pieces, scratch)` on matching pieces of equally shaped arrays, small enough for the cache, on the CPU's threads where that pays.

    Args:
        update: writes into the pieces in place; `scratch` is an array like a piece, to be used freely.
        *arrays: of one shape. Those that are not contiguous NumPy arrays (another device) are given whole.

    Raises:
        MemoryError: there is none for the scratch; nothing has been written.
    """
    first = arrays[0]
    if type(first) is not np.ndarray:
        update(*arrays, np.empty_like(first))
        return
    (threads, part), scratch = _parts(arrays), (_room.scratch or {}).get(first.dtype)
    if scratch is None or scratch.size < threads * part:
        scratch = np.empty(threads * part, first.dtype)
    if not _in_pieces(arrays):
        update(*arrays, scratch[:part].reshape(first.shape))
        return
    flat = [array.reshape(-1) for array in arrays]
    if part == first.size:
        update(*flat, scratch[:part])
        return
    parts = {start: scratch[number * part : (number + 1) * part] for number, (start, _) in enumerate(cpu.row_blocks(first.size, GRAIN))}

    def work(start: int, stop: int) -> None:
        for piece in cpu.blocks(start, stop, first.size):
            update(*[array[piece] for array in flat], parts[start][: piece.stop - piece.start])

    cpu.parallel_rows(work, first.size, GRAIN)


def is_small(array: Any) -> bool:
    """Whether a parameter's array may be one of those that are updated end to end. Of a view it is not known who else writes there; one that is not
    contiguous would be copied in the middle of a step, for which there may be no memory.
    """
    return type(array) is np.ndarray and array.size <= SMALL and array.base is None and array.flags.c_contiguous


class EndToEnd:
    """Many small parameters as one long one. All is copied in and, after the update, back.

    Args:
        parameters: of each its array, gradient and state. The arrays have one dtype, the states the same entries with the same whole numbers.

    Attributes:
        param: the long parameter, whose numbers are copied when it is updated: those before it in the same step may have written there, by a view.
        grad, state: that belong to it.
    """

    def __init__(self, parameters: Sequence[tuple[Any, Any, dict[str, Any]]]):
        self._params, grads, self._states = zip(*parameters, strict=True)
        self.grad = np.concatenate([grad.reshape(-1) for grad in grads])
        self.param = np.empty(self.grad.size, self._params[0].dtype)
        self.state = {
            name: value if isinstance(value, int) else np.concatenate([own[name].reshape(-1) for own in self._states])
            for name, value in self._states[0].items()
        }

    def update(self, update: Callable[..., None], group: Any) -> None:
        """Call `update(param, grad, state, group)`, as of an `Optimizer` all of whose parameters are in this group, once for all.

        It does to every element the same, whatever the others are.
        """
        np.concatenate([array.reshape(-1) for array in self._params], out=self.param)
        update(self.param, self.grad, self.state, group)
        start = 0
        for array, own in zip(self._params, self._states, strict=True):
            end = start + array.size
            array[...] = self.param[start:end].reshape(array.shape)
            for name, value in self.state.items():
                if isinstance(value, int):
                    own[name] = value
                elif name in own:
                    own[name][...] = value[start:end].reshape(array.shape)
                else:
                    own[name] = value[start:end].reshape(array.shape).copy()
            start = end
