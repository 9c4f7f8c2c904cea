"""A section of docs/benchmarks.md for each benchmark; the longest, that of the operations, comes last.

Each is made of one file. Read before: `tables.py`. Read next: `report.py`, which puts them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.records import of_turns
from benchmarks.tables import OURS, Result, best_torch, figures, medians, number, over_torch, picture, ratio, table


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
        "An interpreter without that lock closes a part of it: on free-threaded Python 3.13 two threads gain at every length of call that was tried, "
        "but the step of cifar-nano takes as long as with the lock, until the arrays that count as too small for two threads, and the blocks, are "
        "made smaller too; then it is faster by less than neighbours change it here. Tried as well, without gain or with too little of one for what "
        "it asks of the reader: the gradients of weights as work of their own for a thread that is idle, while the first goes on to the layer below; "
        "waiting awake, by yielding the processor, for the other thread to finish; two to eight shares a thread, each for the thread that is free, "
        "even where another program keeps one processor busy; shorter or longer blocks, another switch interval, polynomials as products of "
        "matrices, and threads of idle priority that keep the processors from sleeping."
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


# --- every fused operation: see `op_cases.py` for what a case is


SLOW = 2.0  # times the fastest PyTorch: operations above it are listed with the passes they make
PASSES = {"gelu": (17, 10), "layer_norm": (6, 11), "softmax": (5, 4), "log_softmax": (5, 4)}
"""Calls of NumPy or BLAS that go over all numbers of x, forward and backward, counted in minigrad/fused by hand; see `passes` for the others."""


class Call(NamedTuple):
    """A case, and milliseconds by side: of the whole, and of forward alone."""

    case: dict
    wall: dict[str, float]
    forward: dict[str, float]

    @property
    def name(self) -> str:
        """Operation, shapes, and what else tells it from others of its kind."""
        case = self.case
        shapes = " ".join("×".join(map(str, given["shape"])) for given in case["inputs"] if given)
        stride, relu = case["values"].get("stride"), case["values"].get("relu")
        extra = f" stride={stride}" * (stride not in (None, 1, [1, 1])) + " relu" * bool(relu)
        return f"{case['op']} {shapes}{extra}" + ("" if case["where"] == "training step" else f" ({case['where']})")

    def speed(self, copying: float | None) -> tuple[float | None, str]:
        """GB/s that ours reaches, and its share of the speed of copying."""
        reached = self.case["bytes"] / self.wall[OURS] / 1e6 if OURS in self.wall else None
        return reached, f"{100 * reached / copying:.0f} %" if reached and copying else "–"


def calls_of(result: Result) -> dict[tuple[str, int], list[Call]]:
    """The calls by network and batch."""
    groups: dict[tuple[str, int], list[Call]] = {}
    for case, turns in result.cases():
        if case["op"] != "copy":
            groups.setdefault((case["config"], case["batch"]), []).append(Call(case, medians(turns), medians(turns, "forward_ms")))
    return groups


def sums_of(calls: Sequence[Call], sides: Sequence[str]) -> tuple[list[tuple[str, dict[str, float]]], int]:
    """By operation: milliseconds of each side over the calls of a training step, "calls" and "bytes", what takes us longest first; and how many calls
    are in none of them, since not all sides have them.
    """
    sums: dict[str, dict[str, float]] = {}
    lacking = 0
    for case, wall, _ in calls:
        if case["where"] != "training step":
            continue
        if wall.keys() != set(sides):
            lacking += case["count"]
            continue
        total = sums.setdefault(case["op"], dict.fromkeys([*sides, "calls", "bytes"], 0))
        for name, value in {**wall, "calls": 1, "bytes": case["bytes"]}.items():
            total[name] += case["count"] * value
    return sorted(sums.items(), key=lambda item: -item[1].get(OURS, 0)), lacking


def ops_section(result: Result) -> str:
    """Sums by operation over a step, then every call."""
    copied = [2 * row["case"]["bytes"] / of_turns(row["turns"]) / 1e6 for row in result.rows if row["case"]["op"] == "copy"]
    copying = copied[0] if copied else None  # GB/s
    parts = [
        f"Copying memory reaches {number(copying)} GB/s here (read and written bytes counted; more than the caches hold, which is more than most "
        "operations below touch: they run on the same arrays again and again, and can be faster than copying). An operation's traffic is the least "
        "it can be: each input and the upstream gradient read once, the output and each gradient written once; products of matrices are bound by "
        "arithmetic instead."
    ]
    groups = calls_of(result)
    if any(sums_of(calls, result.sides)[0] for calls in groups.values()) and (shown := picture(result, "Time by operation")):
        parts.append(shown.strip())
    differing = [f"{case['op']} ({case['config']}, batch {case['batch']})" for case, turns in result.cases() if not agreeing(turns)]
    if differing:
        parts.append(f"**The sides do not agree** on {', '.join(dict.fromkeys(differing))}.")
    for (config, batch), calls in groups.items():
        sums, lacking = sums_of(calls, result.sides)
        if lacking:
            parts.append(f"The sums of {config}, batch {batch}, are without {lacking} calls that not all sides have.")
        if sums:
            parts.append(f"### {config}, batch {batch}: sums over a training step, forward and backward\n\n{sums_table(sums, result)}")
        if slow := slow_table(calls, copying):
            parts.append(
                f"### {config}, batch {batch}: more than {SLOW:g} times PyTorch's time\n\nA pass is a call of NumPy or BLAS that goes over all "
                "numbers, forward + backward, block by block in the cache; PyTorch's kernels make one or two each way. Of pooling they depend on the "
                f"window (see its page).\n\n{slow}"
            )
        title = f"{config}, batch {batch}: every call, milliseconds"
        parts.append(f"<details><summary>{title}</summary>\n\n{calls_table(calls, copying, result)}\n\n</details>")
    return "\n\n".join(parts)


def sums_table(sums: list[tuple[str, dict[str, float]]], result: Result) -> str:
    """What `sums_of` returns, and the sums of all."""
    names = [*result.sides, "calls"]
    every = {name: sum(total[name] for _, total in sums) for name in names}
    rows = []
    for op, total in [*sums, ("**all**", every)]:
        by_side = {side: total[side] for side in result.sides}
        reached = total["bytes"] / total[OURS] / 1e6 if "bytes" in total and total.get(OURS) else None
        rows.append([op, total["calls"], *by_side.values(), over_torch(by_side), reached])
    return table(["operation", "calls", *result.titles(", ms"), "minigrad / fastest eager PyTorch", "minigrad GB/s"], rows)


def slow_table(calls: Sequence[Call], copying: float | None) -> str:
    """The calls above `SLOW`, the slowest first; empty where there are none."""
    rows = []
    for call in calls:
        if (over := call.wall.get(OURS, 0) / (best_torch(call.wall) or math.inf)) > SLOW:
            cells = [call.name, call.case["count"], over_torch(call.wall), call.case["bytes"] / 1e6, passes(call.case), *call.speed(copying)]
            rows.append((over, cells))
    header = ["operation and inputs", "calls", "ratio", "MB", "passes", "GB/s", "of copying"]
    return table(header, [cells for _, cells in sorted(rows, key=lambda row: -row[0])]) if rows else ""


def calls_table(calls: Sequence[Call], copying: float | None, result: Result) -> str:
    """All calls."""
    rows: list[list[Any]] = []
    for call in calls:
        walls = [call.wall.get(side) for side in result.sides]
        rows.append([
            call.name, call.case["count"], *walls, over_torch(call.wall), call.forward.get(OURS), call.case["bytes"] / 1e6, *call.speed(copying),
        ])  # fmt: skip
    return table(["operation and inputs", "calls", *result.titles(), "ratio", "forward, minigrad", "MB", "GB/s", "of copying"], rows)


def passes(case: dict) -> str:
    """How often the kernels of a case go over their numbers, forward + backward."""
    if case["op"] == "batch_norm":  # sums of x and x * x, scale, shift; sums of g and g * x, four to combine
        residual, relu = len(case["inputs"]) > 5 and case["inputs"][5] is not None, bool(case["values"].get("relu"))
        return f"{4 + residual + relu} + {6 + 2 * relu}"
    forward, backward = PASSES.get(case["op"], (None, None))
    return "–" if forward is None else f"{forward} + {backward}"


def agreeing(turns: dict[str, list[dict]]) -> bool:
    """Whether all sides that noted the norms of output and gradients noted the same, to a thousandth."""
    for key in ("out_norm", "gradient_norm"):
        noted = [taken[0][key] for taken in turns.values() if key in taken[0]]
        if any(map(math.isnan, noted)) or (noted and max(noted) - min(noted) > 1e-3 * max(noted)):
            return False
    return True
