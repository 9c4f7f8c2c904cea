"""A section of docs/benchmarks.md for each benchmark but the operations', which are in `ops_section.py`.

Each is made of one file. Read before: `tables.py`. Read next: `report.py`, which puts them together.
"""

from __future__ import annotations

import math
from statistics import median

from benchmarks.records import of_turns
from benchmarks.tables import OURS, Result, figures, medians, number, over_torch, picture, ratio, table


def network(case: dict) -> str:
    """What most cases are called by."""
    return f"{case['config']}, {case['batch']}"


def step_section(result: Result) -> str:
    """Milliseconds of a training step by network and batch."""
    rows = []
    for case, turns in result.cases():
        wall, cpu = medians(turns), medians(turns, "cpu_ms")
        cells = [f"{number(wall[side])} ({number(cpu[side])})" if side in wall else "–" for side in result.sides]
        rows.append([network(case), *cells, over_torch(wall)])
    header = ["network, batch", *result.titles(), "minigrad / fastest eager PyTorch"]
    text = "Milliseconds of wall time, processor time in brackets. Below 1.00 in the last column minigrad is faster."
    compiled = {case["batch"] for case, turns in result.cases() if "torch-compile" in turns}
    if (without := {case["batch"] for case, _ in result.cases()} - compiled) and compiled:
        text += (
            f" torch.compile was not measured at batch {' and '.join(map(str, sorted(without)))}, for want of time alone: it compiles a whole "
            "network for a minute or more in every turn."
        )
    return text + "\n\n" + table(header, rows) + picture(result, "Milliseconds of a training step")


def profile_section(result: Result) -> str:
    """What takes at least a hundredth of the step."""
    parts = [
        "Each operation without those it calls. The floor of a call is what its matrix products would take at the speed of a large one, or the "
        "arrays that it is given and returns at the speed of copying memory, whichever is longer; what lies in a cache is read faster than that."
    ]
    for case, turns in result.cases():
        turn = turns[OURS][0]
        total = sum(row["ms"] for row in turn["operations"])
        rows: list[list] = [
            [
                row["operation"], row["ms"], f"{100 * row['ms'] / total:.0f} %", row.get("calls"), row["mb"] / row["ms"] if row.get("mb") else None,
                1e3 * row["gflop"] / row["ms"] if row.get("gflop") else None, row.get("floor_ms"), ratio(row["ms"], row.get("floor_ms")),
            ]
            for row in turn["operations"]
            if row["ms"] >= total / 100
        ]  # fmt: skip
        floor = sum(row.get("floor_ms", 0) for row in turn["operations"])
        rows.append(["**all**", total, "100 %", None, None, None, floor, ratio(total, floor)])
        header = ["operation", "ms", "share", "calls", "GB/s", "GFLOP/s", "floor, ms", "of the floor"]
        best = f"{number(turn['gflops'])} GFLOP/s and {number(turn['copy_gbs'])} GB/s"
        parts.append(f"### {case['config']}, batch {case['batch']}: the machine reached {best}\n\n" + table(header, rows))
    return "\n\n".join(parts)


def threads_section(result: Result) -> str:
    """Nanoseconds of a call by its length, on one thread and on two; what waking costs; what this means for the kernels."""
    wakes, chains = {}, {}
    for case, turns in result.cases():
        wall = medians(turns)[OURS]
        if case["what"] == "wake":
            wakes[case["where"]] = 1e3 * wall
        else:
            each = case["numbers"] * case["operations"] / 1e6
            chains.setdefault(case["block"], {})[case["threads"]] = (wall / each, medians(turns, "cpu_ms")[OURS] / (case["threads"] * wall))
    rows = []
    for block, found in chains.items():
        (one, _), (two, busy) = found[1], found[2]
        rows.append([f"{block:,}", one, two, ratio(one, two), f"{100 * (1 - busy):.0f} %"])
    told = " and ".join(f"{number(value)} microseconds later on {where}" for where, value in wakes.items())
    text = (
        f"A process that sleeps until another writes to it runs {told}. Below, a chain of operations in place on an array larger than the "
        "second-level cache, one NumPy call for each operation and block: nanoseconds a number and operation.\n\n"
    )
    meaning = (
        "One thread is fastest where a block stays in the second-level cache. Of two, the one that comes back from a call while the other holds the "
        "interpreter lock sleeps until it is woken; where that takes longer than the call did, two threads are slower than one. So kernels on two "
        "threads take blocks that leave the cache, and still wait. PyTorch pays neither: its loops make one pass, and its threads wait awake.\n\n"
        "What would close it without leaving Python: an interpreter without that lock. Tried, without gain or with too little of one for what it "
        "asks of the reader: the gradients of weights as work of their own for a thread that is idle, while the first goes on to the layer below; "
        "waiting awake, by yielding the processor, for the other thread to finish; shorter or longer blocks, more or fewer calls on two threads, "
        "another switch interval, polynomials as products of matrices, and threads of idle priority that keep the processors from sleeping."
    )
    header = ["numbers a call", "one thread", "two threads", "times as fast", "two threads idle"]
    return text + table(header, rows) + "\n\n" + meaning


def block_section(result: Result) -> str:
    """The peers on one block."""
    parts = []
    for case, turns in result.cases():
        wall, cpu = medians(turns), medians(turns, "cpu_ms")
        ours = turns.get(OURS)
        rows = []
        for side, value in sorted(wall.items(), key=lambda item: item[1]):
            rows.append([result.title(side), value, cpu[side], ratio(value, wall.get(OURS)), agreement(turns[side][0], ours[0]) if ours else "–"])
        header = ["", "ms", "processor ms", "of minigrad's", "computes the same"]
        parts.append(
            f"First coupled block of {case['config']}, batch {case['batch']}: map {case['x']}, tokens {case['x_t']}.\n\n" + table(header, rows)
        )
    return "\n\n".join(parts) + picture(result, "One block, forward and backward")


def agreement(theirs: dict, ours: dict) -> str:
    """How far the loss and the norm of the gradient are from ours, relative to the gradient's norm."""
    scale = ours["dx_norm"]
    errors = [abs(theirs[key] - ours[key]) / scale for key in ("loss", "dx_norm")]
    error = math.nan if any(map(math.isnan, errors)) else max(errors)  # max passes over a NaN
    return f"{'yes' if error < 1e-2 else 'NO'} ({error:.0e})"


def end_to_end_section(result: Result) -> str:
    rows = []
    for case, turns in result.cases():
        for side, taken in turns.items():
            train, bare = of_turns(taken, "train_images_per_second"), of_turns(taken, "bare_images_per_second")
            shares = sorted(turn["whole_of_bare"][0] for turn in taken)
            told = f"{100 * median(shares):.0f} % ({100 * shares[0]:.0f} to {100 * shares[-1]:.0f})"
            rows.append([f"{network(case)}: {result.title(side)}", train, bare, told])
    text = "The bare step is measured before the run and after it, and the quotient is that of a turn; in brackets the smallest and the largest.\n\n"
    return text + table(["network, batch", "whole run, images/s", "bare step, images/s", "whole run of bare step"], rows)


def memory_section(result: Result) -> str:
    rows = []
    for case, peak in figures(result, "peak_mib"):
        cells = [peak.get(side) for side in result.sides]
        rows.append([network(case) + ", blocks checkpointed" * bool(case.get("checkpoint")), *cells, over_torch(peak)])
    return table(["network, batch", *result.titles(", MiB"), "minigrad / least of PyTorch"], rows)


def growth_section(result: Result) -> str:
    """The time of each step."""
    rows = []
    for case, wall in figures(result):
        rows.append([f"{case['varied']} {case['value']}", *(wall.get(side) for side in result.sides), over_torch(wall)])
    return table(["", *result.titles(", ms"), "ratio"], rows) + picture(result, "Time of a step as one thing grows")


def inference_section(result: Result) -> str:
    """Latency of one image with its slow end, throughput of the larger batches."""
    rows = []
    for case, turns in result.cases():
        wall = medians(turns)
        if case["batch"] == 1:
            slow = {side: sorted(value for turn in taken for value in turn["wall_ms"]) for side, taken in turns.items()}
            cells = [f"{number(wall[s])} ms (95 %: {number(slow[s][int(0.95 * (len(slow[s]) - 1))])})" if s in wall else "–" for s in result.sides]
        else:
            cells = [f"{number(1e3 * case['batch'] / wall[side])} images/s" if side in wall else "–" for side in result.sides]
        rows.append([network(case), *cells, over_torch(wall)])
    return table(["network, batch", *result.titles(), "time: minigrad / fastest eager PyTorch"], rows)
