"""What limits two Python threads that each do half of the work: NumPy calls of several lengths, and how long a sleeping thread takes to wake.

    make bench BENCH=threads ARGS="[--quick]"

A chain of operations on an array is cut into blocks, and every operation is one call on one block. Short blocks stay in the cache; but a thread that
comes back from a call while another holds the interpreter lock goes to sleep, and on a virtual machine waking a processor that idles can take longer
than the call did. The second figure is that: two processes, each on a processor of its own, hand a byte to and fro.
Read next: `minigrad/backend/cpu.py`, the threads that the figures are about.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

from benchmarks import measure
from benchmarks.sides import Side, timed_answers
from benchmarks.speeds import side_by_side

NAME = "threads"
NUMBERS = 1 << 22  # float32: two arrays of 16 MiB, more than a second-level cache holds
PASSES = 8
HANDOVERS = 2000


def cases_of(quick: bool) -> list[dict]:
    blocks = [1 << power for power in ((14, 18) if quick else (13, 14, 15, 16, 17, 18, 19))]
    chain = {"what": "passes", "numbers": NUMBERS >> 4 if quick else NUMBERS, "operations": PASSES}
    chains = [{**chain, "block": block, "threads": threads} for block in blocks for threads in (1, 2)]
    pairs = {"one processor": 1, "two processors": 2}
    wakes = [{"what": "wake", "where": where} for where, needed in pairs.items() if len(os.sched_getaffinity(0)) >= needed]
    return wakes + chains


def passes(case: dict) -> Callable[[], None]:
    """So many operations in place, block by block, on so many threads at once, each its part of the array."""
    x, y = np.ones(case["numbers"], np.float32), np.ones(case["numbers"], np.float32)

    def share(start: int, stop: int) -> None:
        for first in range(start, stop, case["block"]):
            last = min(first + case["block"], stop)
            a, b = x[first:last], y[first:last]
            for _ in range(case["operations"] // 2):
                np.multiply(a, b, out=a)
                np.add(a, 0.0, out=a)

    return lambda: side_by_side(share, case["numbers"], case["threads"])


def wake(case: dict) -> dict:
    """Milliseconds until a process that waits for a byte has it: the mean of `HANDOVERS` of them to and fro, five times."""
    processors = sorted(os.sched_getaffinity(0))
    there, back = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {processors[-1 if case["where"] == "two processors" else 0]})
        for _ in range(5 * HANDOVERS):
            os.write(back[1], os.read(there[0], 1))
        os._exit(0)
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processors[0]})
    samples = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(HANDOVERS):
            os.write(there[1], b"x")
            os.read(back[0], 1)
        samples.append((time.perf_counter() - start) / (2 * HANDOVERS) * 1e3)
    os.waitpid(child, 0)
    os.sched_setaffinity(0, own)
    for end in (*there, *back):
        os.close(end)
    return {"wall_ms": samples}


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, ["minigrad"], rounds=3, seconds=0.3)
    timed = timed_answers(lambda _, case: passes(case))

    def answer(side: Side, request: dict) -> dict:
        return wake(request["case"]) if request["case"]["what"] == "wake" else timed(side, request)

    options = measure.parse(parser, argv, answer)
    measure.run(NAME, cases_of(options.quick), options, argv, fresh=False, label=label)


def label(case: dict) -> str:
    return f"waking on {case['where']}" if case["what"] == "wake" else f"blocks of {case['block']:,}, {case['threads']} threads"


if __name__ == "__main__":
    main()
