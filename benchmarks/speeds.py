"""Two speeds of this machine, now: a large matrix product, and copying memory. Every file of results has them from before and after its benchmark.

    make bench BENCH=speeds ARGS="[--threads 2]"

A virtual machine shares its memory bus, last-level cache and clock with neighbours that it cannot see: two files are comparable where these agree.
The arrays of the copy are larger than any cache, and both figures are medians. Read next: `measure.py`.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks.machine import processors

COPIED = 2**28  # bytes
SIDE = 1024  # of the matrices


def side_by_side(work: Callable[[int, int], Any], size: int, threads: int) -> None:
    """Call `work(start, stop)` for so many equal parts of `range(size)` at once, each on a thread of its own; the first on this one."""
    edges = [size * part // threads for part in range(threads + 1)]
    others = [threading.Thread(target=work, args=edges[part : part + 2]) for part in range(1, threads)]
    for thread in others:
        thread.start()
    work(*edges[:2])
    for thread in others:
        thread.join()


def copying(source: np.ndarray, target: np.ndarray, threads: int) -> Callable[[], None]:
    """Copies one array to the other, each thread its part."""

    def copy(start: int, stop: int) -> None:
        np.copyto(target[start:stop], source[start:stop])

    return lambda: side_by_side(copy, len(source), threads)


def multiplying(a: np.ndarray, b: np.ndarray, c: np.ndarray, threads: int) -> Callable[[], None]:
    """Multiplies two matrices into a third, each thread its rows of the product."""

    def multiply(start: int, stop: int) -> None:
        np.matmul(a[start:stop], b, out=c[start:stop])

    return lambda: side_by_side(multiply, len(a), threads)


def speeds(threads: int, seconds: float = 0.5, clock: Callable[[], float] = time.perf_counter, quick: bool = False) -> dict[str, float]:
    """gflops: 10^9 operations a second of the product; copy_gbs: 10^9 bytes a second of the copy, read and written ones counted.

    seconds: how long each is measured, three times at least. quick: at sizes that say nothing. BLAS must have been told to use one thread.
    """

    def of(work: Callable[[], None]) -> float:
        work()
        samples, end = [], time.perf_counter() + seconds
        while len(samples) < 3 or time.perf_counter() < end:
            began = clock()
            work()
            samples.append(clock() - began)
        return max(median(samples), 1e-9)  # a clock of processor time has ticks

    side, size = (64, 2**20) if quick else (SIDE, COPIED)
    matrices = [np.ones((side, side), np.float32) for _ in range(3)]
    product = of(multiplying(*matrices, threads))
    source = np.ones(size // 4, np.float32)
    copy = of(copying(source, np.empty_like(source), threads))
    return {"gflops": round(2e-9 * side**3 / product, 2), "copy_gbs": round(2e-9 * size / copy, 2)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=processors(), help="default: as many as processors")
    parser.add_argument("--quick", action="store_true", help="sizes that say nothing")
    options = parser.parse_args(argv)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        print(json.dumps(speeds(options.threads, 0.0 if options.quick else 0.5, quick=options.quick)))


if __name__ == "__main__":
    main()
