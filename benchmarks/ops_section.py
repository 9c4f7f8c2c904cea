"""The page's section on every fused operation: sums over a training step, the calls that are slow, and every call.

Read before: `tables.py`; `op_cases.py`, what a case is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.records import of_turns
from benchmarks.tables import OURS, Result, best_torch, medians, number, over_torch, picture, table

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
