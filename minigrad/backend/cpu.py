"""The CPU's threads: one small pool, and blocks of rows to run on it.

NumPy releases the interpreter lock inside ufuncs and matrix products, so two Python threads that each work on half of the rows use two cores. The
pool is made at the first call; at that moment BLAS is limited to one thread, once and for good: its own threads would fight with ours, and switching
the limit back and forth is slow. Apple's Accelerate, the BLAS of NumPy's wheels for macOS 14 and later, is none that threadpoolctl can limit;
`VECLIB_MAXIMUM_THREADS=1`, set before Python starts, is meant to, and nobody has tried it here. `MINIGRAD_THREADS=0` means no pool at all, and BLAS
is left alone.

Workers run array code only: no Tensor, no ContextVar. Read next: `minigrad/fused/linear.py`, the shortest kernel that uses this.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

__all__ = [
    "add_into", "blocks", "has_small_products", "keep_freed_memory", "parallel_blocks", "parallel_rows", "parallel_slices", "row_blocks",
    "thread_count",
]  # fmt: skip


def _threads_wanted() -> int:
    """`MINIGRAD_THREADS`, or the number of processors this process may use."""
    text = os.environ.get("MINIGRAD_THREADS", "")
    if text:
        if not text.isdecimal() or len(text) > 9 or int(text) > 1024:  # beyond which systems refuse to start them, and none has the processors
            raise ValueError(f"MINIGRAD_THREADS is {text!r}; give a whole number up to 1024, 0 for no thread pool")
        return int(text)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


class _Pool:
    """Worker threads that take calls from one queue. The thread that asks does a share of the work itself."""

    def __init__(self, threads: int):
        self.threads = max(threads, 1)
        self.calls: queue.SimpleQueue = queue.SimpleQueue()
        if threads:
            threadpool_limits(limits=1, user_api="blas")
        for number in range(1, threads):
            threading.Thread(target=self._work, name=f"minigrad-{number}", daemon=True).start()

    def _work(self) -> None:
        _inside.worker = True
        while True:
            work, blocks, numbers, outcomes, done = self.calls.get()
            for number in itertools.islice(numbers, 1):
                try:
                    outcomes[number] = work(*blocks[number]), None
                except BaseException as error:  # handed to the caller, which raises it
                    outcomes[number] = None, error
                done.put(number)
            del work, outcomes, done  # an idle worker keeps no arrays alive

    def run(self, work: Callable[[int, int], Any], blocks: list[tuple[int, int]]) -> list:
        """What `work` returns for each block. An error, Ctrl-C too, is raised when no worker writes into the caller's arrays any more."""
        done: queue.SimpleQueue = queue.SimpleQueue()
        outcomes: list = [None] * len(blocks)  # (result, None) or (None, error)
        call = work, blocks, iter(range(1, len(blocks))), outcomes, done
        handed, failure = False, None
        while None in outcomes:
            try:
                if not handed:  # once more, if an interrupt fell in between: a worker that finds no block left looks for other calls
                    for _ in blocks[1:]:
                        self.calls.put(call)
                    handed = True
                if outcomes[0] is None:
                    outcomes[0] = None, None  # whatever becomes of it, it is not begun again
                    outcomes[0] = work(*blocks[0]), None
                while None in outcomes:
                    done.get()
            except BaseException as error:
                failure = error if failure is None else failure
        if failure is None:
            failure = next((error for _, error in outcomes if error is not None), None)
        if failure is None:
            return [result for result, _ in outcomes]
        try:
            raise failure
        finally:
            del failure, call, outcomes  # an error's traceback knows this frame: a ring, which would keep the callers' arrays for long


_inside = threading.local()
_lock = threading.Lock()
_pool: _Pool | None = None


def _the_pool() -> _Pool:
    global _pool
    if _pool is None:
        with _lock:
            if _pool is None:
                _pool = _Pool(_threads_wanted())
    return _pool


def _forget_pool() -> None:
    """A forked child inherits the pool object but none of its threads: it makes its own at its first call."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def thread_count() -> int:
    """How many blocks `parallel_rows` cuts its rows into at most."""
    return _the_pool().threads


def row_blocks(rows: int, grain: int = 1) -> list[tuple[int, int]]:
    """`range(rows)` cut into at most `thread_count()` nearly equal blocks `(start, stop)` of at least `grain` rows each."""
    count = max(1, min(thread_count(), rows // max(grain, 1)))
    edges = [rows * block // count for block in range(count + 1)]
    return list(itertools.pairwise(edges))


def parallel_rows(work: Callable[[int, int], Any], rows: int, grain: int = 1) -> list:
    """Call `work(start, stop)` for blocks of rows that together cover `range(rows)`, side by side on the pool.

    Args:
        work: array code for the rows from `start` to `stop`; it writes into arrays of the caller, or returns a partial result.
        rows: how many rows there are (images, tokens, ...).
        grain: fewest rows a block is worth: handing a block to a thread costs about 30 microseconds.

    Returns:
        What the calls returned, in the order of the blocks. The blocks, hence the order of any sum over them, depend on `rows`, `grain` and the
        number of threads only: results are the same in every run.
    """
    pool = _the_pool()
    if pool.threads == 1 or rows < 2 * grain or getattr(_inside, "worker", False):
        return [work(0, rows)]
    if sys.is_finalizing():  # Python has stopped the workers for good
        return [work(start, stop) for start, stop in row_blocks(rows, grain)]
    return pool.run(work, row_blocks(rows, grain))


ALONE = 1 << 16  # elements of a block that stays in the second-level cache: one thread is fastest so
TOGETHER = 1 << 18  # of two threads: they wait for the interpreter less often, which is worth more than that cache (`make bench BENCH=threads`)


def blocks(start: int, stop: int, rows: int, width: int = 1) -> list[slice]:
    """A thread's share of `rows` rows of `width` elements, cut into what an elementwise kernel should work on at a time."""
    step = max(1, (ALONE if stop - start == rows else TOGETHER) // width)
    return [slice(row, min(row + step, stop)) for row in range(start, stop, step)]


def parallel_blocks(work: Callable[[slice], Any], rows: int, width: int, grain: int) -> list:
    """Call `work(block)` for `blocks` that together cover `rows` rows of `width` elements, on all threads.

    Args:
        work: as in `parallel_rows`, for the rows of a slice.
        rows, width: the array's shape.
        grain: fewest rows a thread is worth, as in `parallel_rows`.

    Returns:
        What the calls returned, in the order of the blocks.
    """

    def share(start: int, stop: int) -> list:
        return [work(block) for block in blocks(start, stop, rows, width)]

    return list(itertools.chain(*parallel_rows(share, rows, grain)))


def parallel_slices(work: Callable[[slice], Any], rows: int, step: int, grain: int) -> None:
    """Call `work(part)` for slices of at most `step` rows that together cover `range(rows)`, on all threads; `grain` as in `parallel_rows`."""

    def share(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            work(slice(first, min(first + step, stop)))

    parallel_rows(share, rows, grain)


ADD_GRAIN = 1 << 17  # elements that a thread is worth: 131,000 take 0.09 ms on one and on two, 262,000 0.13 and 0.09


def add_into(x: np.ndarray, y: np.ndarray, total: np.ndarray) -> None:
    """`total[...] = x + y` on all threads, for arrays of one shape and dtype without gaps; `total` may be x or y."""
    first, second, sums = x.reshape(-1), y.reshape(-1), total.reshape(-1)
    parallel_rows(lambda start, stop: np.add(first[start:stop], second[start:stop], out=sums[start:stop]), x.size, ADD_GRAIN)


@functools.cache
def has_small_products() -> bool:
    """Does this BLAS multiply small matrices as they lie, without packing them first? OpenBLAS does on processors with AVX-512, and on no older one.

    Known at the first call, and the same for the life of the process.
    """
    return any(library.get("architecture") in ("SkylakeX", "Cooperlake", "SapphireRapids") for library in threadpool_info())


def keep_freed_memory() -> bool:
    """Ask the C library to keep memory that is freed for the next allocation, instead of giving it back to the system.

    A training step frees and allocates the same few gigabytes every time; taken from the system anew, every page of it costs a page fault: writing a
    new array of 32 MiB takes 8 ms so, and 4 ms in memory that was kept. This holds for the whole process, so programs call it, as `conformer train`
    does, not the library. Returns whether the C library is one (glibc) that can be asked.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # their numbers in malloc.h
    kept = [mallopt(trim_threshold, 2**31 - 1) == 1, mallopt(top_pad, 2**26) == 1]
    return all(kept) and any(mallopt(mmap_threshold, size) == 1 for size in (2**31 - 1, 2**25))  # before glibc 2.35, 2**25 is the most
