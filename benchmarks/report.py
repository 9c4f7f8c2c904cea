"""Write docs/benchmarks.md and its plots from the JSON files in benchmarks/results/: no measurement on that page is typed by hand.

    make bench BENCH=report ARGS="[--results DIR] [--page FILE]"

Each benchmark that was run has a function here that makes its section; a section without a file is left out. A figure is the median over the turns
of the median over a turn's samples. Read before: `measure.py`, which writes the files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import NOISY, QUICK_RESULTS, RESULTS, ROOT, median, of_turns, taken_by_others

PAGE = ROOT / "docs" / "benchmarks.md"
OURS = "minigrad"
SLOW = 2.0  # times the fastest PyTorch: operations above it are listed with the passes they make
APART = 0.15  # by so much of their median may the turns of a figure differ before the page says so
PASSES = {"gelu": (17, 10), "layer_norm": (6, 11), "softmax": (5, 4), "log_softmax": (5, 4)}
"""Calls of NumPy or BLAS that go over all numbers of x, forward and backward, counted in minigrad/fused by hand; see `passes` for the others."""


VARIANTS = {"pinned": ", OpenBLAS pinned to Haswell", "xeon": ", on an Intel Xeon with AVX-512", "avx2": ", on a processor without AVX-512"}
"""What follows the benchmark's name in the name of a file, and in the heading: `step-pinned.json`, `step-xeon.json`, kept of another machine, and
`step-pinned-xeon.json`, both in this order.
"""


NAMING = ("config", "batch", "op", "varied", "value", "what", "where", "block", "threads")  # what a case is called by


OLD_STEPS = (
    "Of an earlier version of this benchmark, with one step of warm-up and three that count: PyTorch's second and third steps are slower than those "
    "after them, ours less, so the ratios are a few percent too good for minigrad. The commit is that of the last rows."
)


class Result:
    """One JSON file."""

    def __init__(self, file: Path):
        self.file = file
        self.record = json.loads(file.read_text())
        self.rows = [row for row in self.record["rows"] if "turns" in row]
        self.failed = [row for row in self.record["rows"] if "failed" in row]
        self.name = self.record["benchmark"]
        self.variants = [name for name in VARIANTS if name in file.stem.removeprefix(self.name).split("-")]
        if file.stem != "-".join([self.name, *self.variants]):
            parts = "".join(f"[-{name}]" for name in VARIANTS)
            raise SystemExit(f"{file}: the file of benchmark {self.name} is called {self.name}{parts}.json")
        self.heading = SECTIONS[self.name][0] + "".join(VARIANTS[variant] for variant in self.variants)

    @property
    def sides(self) -> list[str]:
        """Those that measured something, in the order of the file."""
        return list(dict.fromkeys(row["side"] for row in self.rows))

    def title(self, side: str) -> str:
        """What a side is called in a table."""
        return self.record["sides"].get(side, {}).get("title", side)

    def cases(self) -> list[tuple[dict, dict[str, list[dict]]]]:
        """Each case with the turns of its sides."""
        found: list[tuple[dict, dict[str, list[dict]]]] = []
        for row in self.rows:
            place = next((turns for case, turns in found if case == row["case"]), None)
            if place is None:
                found.append((row["case"], place := {}))
            place[row["side"]] = row["turns"]
        return found

    def turns(self) -> list[dict]:
        """All of them."""
        return [turn for row in self.rows for turn in row["turns"]]

    def apart(self) -> str:
        """A sentence on the figures whose turns differ by more than `APART`; empty if there are none."""
        quantity = next(iter(self.turns()[0]), "") if self.rows else ""
        spreads = []
        for row in self.rows:
            each = [median(turn[quantity]) for turn in row["turns"] if quantity in turn and isinstance(turn[quantity], list)]
            if len(each) > 1 and (spread := (max(each) - min(each)) / median(each)) > APART:
                spreads.append((spread, " ".join(str(row["case"][key]) for key in NAMING if key in row["case"]), self.title(row["side"])))
        if not spreads:
            return ""
        worst = [f"{case}, {side} (by {100 * spread:.0f} %)" for spread, case, side in sorted(spreads, reverse=True)[:8]]
        return (
            f"Of {len(spreads)} of these {len(self.rows)} figures the turns differ by more than {100 * APART:.0f} % of their median, "
            f"{'most' if len(spreads) > len(worst) else 'namely'} of {'; '.join(worst)}."
        )

    def revisions(self) -> str:
        """The commits that were measured, in their order; of a file that does not say it of each row, that of the last."""
        rows = sorted(self.rows, key=lambda row: row.get("date", ""))
        return ", ".join(dict.fromkeys(str(row["revision"]) for row in rows if "revision" in row)) or str(self.record["environment"]["revision"])

    def dates(self) -> str:
        """From the first row's to the last's."""
        first, last = (end(row.get("date", self.record["date"])[:16].replace("T", " ") for row in self.rows or [{}]) for end in (min, max))
        return first if first == last else f"{first} to {last[11:] if first[:10] == last[:10] else last}"

    def others(self) -> float | None:
        """The share of the processors that other processes took while something was measured."""
        told = [turn for turn in self.turns() if "others_s" in turn]
        return taken_by_others(told, self.record["environment"]["processors_in_all"]) if told else None


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers are right-aligned."""
    rows = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    aligned = ["---" if column == 0 else "--:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), aligned, *rows])


def number(value: float | None) -> str:
    """Three significant digits, a dash for nothing."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(ours: float | None, theirs: float | None) -> str:
    return "–" if not ours or not theirs else f"{ours / theirs:.2f}"


def anchor(side: str) -> bool:
    """Whether a side is PyTorch as it runs without compiling."""
    return side.startswith("torch") and side != "torch-compile"


def best_torch(values: dict[str, float]) -> float | None:
    """The fastest eager PyTorch side."""
    return min((value for side, value in values.items() if anchor(side)), default=None)


def medians(turns: dict[str, list[dict]], quantity: str = "wall_ms") -> dict[str, float]:
    """By side."""
    return {side: of_turns(taken, quantity) for side, taken in turns.items()}


# --- what was aimed at


NETWORKS = ("cifar-nano", "cifar-micro", "cifar-small")
OVERHEAD = "overhead.json"  # written by overhead.py, which has samples of another kind
OVERHEAD_GOALS = {"primitive": (2, 4), "fused": (4, 4)}  # microseconds of the engine's own, forward and backward
OP_GOALS = {"linear": 0.8, "1x1 convolution": 0.8, "attention": 0.7, "3x3 convolution": 1.7} | dict.fromkeys(
    ("batch norm", "layer norm", "softmax", "gelu"), 4.0
)
"""Times of PyTorch in channels_last memory that an operation may take; see `goal_of`."""


def targets_section(results: Sequence[Result], overhead: dict | None) -> str:
    """Every target with what was measured; one without a measurement says so."""
    plain = {result.name: result for result in results if not result.variants}
    rows = []
    for what, goal, pinned, theirs in (
        ("step: minigrad / fastest eager PyTorch", "at most 1.00, aiming at 0.85", False, best_torch),
        ("step: minigrad / PyTorch as a user writes it (NCHW)", "at most 0.70", False, lambda wall: wall.get("torch-nchw")),
        ("step, OpenBLAS pinned to Haswell: minigrad / fastest eager PyTorch", "at most 1.40", True, best_torch),
    ):
        steps = [result for result in results if result.name == "step" and aimed_at(result, pinned)]
        rows += [target(what, goal, step_found(result, theirs), result) for result in steps or [None]]
    found = op_found(ops := plain.get("ops"))
    for what, most in OP_GOALS.items():
        over_named = {config: [over for _, over, _ in values] for config, values in found.get(what, {}).items()}
        rows.append(target(f"{what}: minigrad / PyTorch, channels_last", f"at most {most:.2f}", over_named, ops))
    run, memory, block = plain.get("end_to_end"), plain.get("memory"), plain.get("block")
    over_torch, over_whole = memory_found(memory)
    rows += [
        target("images/s: whole run / bare step", "at least 0.95", run_found(run), run),
        target("peak memory: minigrad / least of PyTorch", "at most 1.20", over_torch, memory),
        target("peak memory: blocks checkpointed / not", "at most 0.50", over_whole, memory),
        target("one block: autograd / minigrad", "at least 5.00", block_found(block, "autograd"), block),
        target("one block: MyGrad / minigrad", "at least 5.00", block_found(block, "mygrad"), block),
    ]
    parts = [
        "What was aimed at: on two processors with AVX-512, in float32, at batch 128, ratios of times or bytes in one run. Of operations, "
        "forward and backward, these are the sums over the calls of a training step (softmax: those inside attention), at every batch of the file, "
        f"the largest first; single calls above {SLOW:g} are listed below with their bytes, passes and bandwidth. The sections and the files' "
        "lines below say how and where each was measured.",
        table(["what is compared", "target", *NETWORKS, "outcome", "file"], rows),
    ]
    beaten = [
        f"{what} of {config}, {batch} ({fastest:.2f})"
        for what, by_network in found.items()
        for config, values in by_network.items()
        for batch, named, fastest in values
        if named <= OP_GOALS[what] < fastest
    ]
    if beaten:
        parts.append(
            "Within its target beside channels_last with the C library's own malloc, yet not beside PyTorch's fastest eager form: "
            f"{'; '.join(beaten)}."
        )
    parts.append(
        "### The engine's own cost\n\nMicroseconds of an operation on tiny arrays beyond the kernel that does the arithmetic, from the least to the "
        f"most ([each of them](results.md#what-the-engine-itself-costs)).\n\n{overhead_targets(overhead)}"
    )
    return "\n\n".join(parts)


def target(what: str, goal: str, found: dict[str, list[float]], result: Result | None) -> list[str]:
    """A row. goal: "at most" or "at least", and the number that each value must keep. A network holds it with all of its values."""
    words = goal.replace(",", "").split()
    limit, least = float(words[2]), words[1] == "least"
    missed = [config.removeprefix("cifar-") for config, values in found.items() if any(value < limit if least else value > limit for value in values)]
    outcome = "not measured" if not found else "held" if not missed else "missed" if len(missed) == len(found) else f"missed by {', '.join(missed)}"
    cells = [", ".join(f"{value:.2f}" for value in found.get(config, [])) or "–" for config in NETWORKS]
    return [what, goal, *cells, outcome, f"`{result.file.name}`" if result and found else "–"]


def aimed_at(result: Result, pinned: bool) -> bool:
    """Whether its kernels are those that a target names: AVX-512, or those of Haswell on a machine that has better."""
    kernels = [part["architecture"] for part in result.record["sides"].get(OURS, {}).get("threads", [])]
    return result.record["settings"]["pinned"] == pinned and (pinned or "Haswell" not in kernels)


def step_found(result: Result | None, theirs: Callable[[dict[str, float]], float | None]) -> dict[str, list[float]]:
    walls = {case["config"]: medians(turns) for case, turns in result.cases() if case["batch"] == 128} if result else {}
    return {config: [wall[OURS] / other] for config, wall in walls.items() if OURS in wall and (other := theirs(wall))}


def op_found(result: Result | None) -> dict[str, dict[str, list[tuple[int, float, float]]]]:
    """By operation and network: batch, and our time over channels_last's and over the fastest eager one's, the largest batch first."""
    sums: dict[tuple[str, str, int], dict[str, float]] = {}
    for case, turns in result.cases() if result else []:
        wall = medians(turns)
        if (what := goal_of(case)) and result and wall.keys() >= set(result.sides):
            total = sums.setdefault((what, case["config"], case["batch"]), {})
            for side, value in wall.items():
                total[side] = total.get(side, 0.0) + case["count"] * value
    found: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for (what, config, batch), total in sorted(sums.items(), key=lambda item: -item[0][2]):
        fastest, named = best_torch(total), total.get("torch-channels-last")
        if OURS in total and fastest and named:
            found.setdefault(what, {}).setdefault(config, []).append((batch, total[OURS] / named, total[OURS] / fastest))
    return found


def goal_of(case: dict) -> str | None:
    """The name in `OP_GOALS` of a call; None if it has no target."""
    op = case["op"]
    if op == "conv2d":
        name = "x".join(map(str, case["inputs"][1]["shape"][2:])) + " convolution"
    else:
        name = "attention" if op == "scaled_dot_product_attention" else op.replace("_", " ")
    return name if name in OP_GOALS else None


def run_found(result: Result | None) -> dict[str, list[float]]:
    cases = result.cases() if result else []
    return {case["config"]: [of_turns(turns[OURS], "whole_of_bare")] for case, turns in cases if OURS in turns}


def memory_found(result: Result | None) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Over the least of PyTorch's; and of cifar-small, whose blocks are checkpointed, over without."""
    whole, checkpointed = {}, {}
    for case, turns in result.cases() if result else []:
        peak = medians(turns, "peak_mib")
        (checkpointed if case.get("checkpoint") else whole)[case["config"]] = peak
    over = {config: [peak[OURS] / least] for config, peak in whole.items() if OURS in peak and (least := best_torch(peak))}
    both = {config: [peak[OURS] / whole[config][OURS]] for config, peak in checkpointed.items() if config == "cifar-small" and config in whole}
    return over, both


def block_found(result: Result | None, side: str) -> dict[str, list[float]]:
    walls = {case["config"]: medians(turns) for case, turns in result.cases()} if result else {}
    return {config: [wall[side] / wall[OURS]] for config, wall in walls.items() if {side, OURS} <= wall.keys()}


def overhead_by_operation(record: dict, kind: str, direction: str) -> dict[str, float]:
    """Microseconds of each operation that its kernel does not take."""
    return {row["operation"]: row[f"{direction}_us"] - row[f"{direction}_kernel_us"] for row in record["rows"] if row["kind"] == kind}


def overhead_table(record: dict) -> str:
    """Every operation's own cost; where PyTorch was measured, also the whole call of both. It stands in docs/results.md, by hand."""
    rows = []
    for row in record["rows"]:
        own = [overhead_by_operation(record, row["kind"], direction)[row["operation"]] for direction in ("forward", "backward")]
        whole = [row[f"{side}{direction}_us"] for direction in ("forward", "backward") for side in ("", "torch_") if "torch_forward_us" in row]
        rows.append([row["operation"], *(f"{value:.1f}" for value in [*own, *whole])])
    header = ["operation", "forward", "backward"]
    if rows and len(rows[0]) > len(header):
        header += ["whole forward", "PyTorch's", "whole backward", "PyTorch's"]
        return table(header, rows) + "\n\n*Whole* is a call with its kernel, on one thread, beside PyTorch's whole call on the same numbers."
    return table(header, rows)


def overhead_origin(record: dict) -> str:
    """When it was measured, and of which code."""
    return f"Measured on {record['date']} at commit {record['environment']['revision']}"


def overhead_targets(record: dict | None) -> str:
    """A row for each kind of operation and each direction."""
    rows = []
    for kind, goals in OVERHEAD_GOALS.items():
        for direction, most in zip(("forward", "backward"), goals, strict=True):
            found = overhead_by_operation(record, kind, direction) if record else {}
            missed = [name for name, value in found.items() if value > most]
            across = f"{min(found.values()):.1f} to {max(found.values()):.1f}" if found else "–"
            outcome = "not measured" if not found else "held" if not missed else f"missed by {len(missed)} of {len(found)}: {', '.join(missed)}"
            rows.append([f"{kind}, {direction}", f"at most {most}", across, outcome])
    return table(["operations", "target", "measured", "outcome"], rows)


# --- sections: text, and plots by name


Plots = dict[str, Any]


def step_section(result: Result, plots: Plots) -> str:
    """Milliseconds of a training step by network and batch."""
    rows, ratios = [], []
    for case, turns in result.cases():
        wall, cpu = medians(turns), medians(turns, "cpu_ms")
        cells = [f"{number(wall[side])} ({number(cpu[side])})" if side in wall else "–" for side in result.sides]
        rows.append([f"{case['config']}, {case['batch']}", *cells, ratio(wall.get(OURS), best_torch(wall))])
        ratios.append((f"{case['config']}\nbatch {case['batch']}", wall))
    plots["step"] = lambda: bars(ratios, result, "milliseconds a step")
    header = ["network, batch", *map(result.title, result.sides), "minigrad / fastest eager PyTorch"]
    text = "Milliseconds of wall time, processor time in brackets. Below 1.00 in the last column minigrad is faster."
    compiled = {case["batch"] for case, turns in result.cases() if "torch-compile" in turns}
    if (without := {case["batch"] for case, _ in result.cases()} - compiled) and compiled:
        text += (
            f" torch.compile was not measured at batch {' and '.join(map(str, sorted(without)))}, for want of time alone: it compiles a whole "
            "network for a minute or more in every turn."
        )
    return text + "\n\n" + table(header, rows) + picture("step", "Milliseconds of a training step")


def step_ratios(result: Result, theirs: Callable[[dict[str, float]], float | None]) -> str:
    """From the smallest to the largest of our step's time over that of `theirs` (of all sides' times), as README has it."""
    walls = [medians(turns) for _, turns in result.cases()]
    found = [wall[OURS] / other for wall in walls if OURS in wall and (other := theirs(wall))]
    return f"{min(found):.2f} to {max(found):.2f}"


def profile_section(result: Result, plots: Plots) -> str:
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


def threads_section(result: Result, plots: Plots) -> str:
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


def ops_section(result: Result, plots: Plots) -> str:
    """Sums by operation over a step, then every call."""
    copies = [of_turns(row["turns"]) for row in result.rows if row["case"]["op"] == "copy"]
    copied = [2 * row["case"]["bytes"] for row in result.rows if row["case"]["op"] == "copy"]
    bandwidth = copied[0] / copies[0] / 1e6 if copies else None  # GB/s
    groups: dict[tuple[str, int], list] = {}
    for case, turns in result.cases():
        if case["op"] != "copy":
            groups.setdefault((case["config"], case["batch"]), []).append((case, medians(turns), medians(turns, "forward_ms")))
    sides = result.sides
    parts = [
        f"Copying memory reaches {number(bandwidth)} GB/s here (read and written bytes counted; more than the caches hold, which is more than most "
        "operations below touch: they run on the same arrays again and again, and can be faster than copying). An operation's traffic is the least "
        "it can be: each input and the upstream gradient read once, the output and each gradient written once; products of matrices are bound by "
        "arithmetic instead."
    ]
    differing = [f"{case['op']} ({case['config']}, batch {case['batch']})" for case, turns in result.cases() if not agreeing(turns)]
    if differing:
        parts.append(f"**The sides do not agree** on {', '.join(dict.fromkeys(differing))}.")
    plotted: list[tuple[str, dict[str, float]]] = []
    for (config, batch), cases in groups.items():
        sums: dict[str, dict[str, float]] = {}
        of_step = [(case, wall) for case, wall, _ in cases if case["where"] == "training step"]
        if lacking := sum(case["count"] for case, wall in of_step if wall.keys() != set(sides)):
            parts.append(f"The sums of {config}, batch {batch}, are without {lacking} calls that not all sides have.")
        for case, wall in of_step:
            if wall.keys() != set(sides):
                continue
            total = sums.setdefault(case["op"], dict.fromkeys(sides, 0.0) | {"calls": 0, "bytes": 0})
            total["calls"] += case["count"]
            total["bytes"] += case["count"] * case["bytes"]
            for side, value in wall.items():
                total[side] += case["count"] * value
        rows = []
        ordered = sorted(sums.items(), key=lambda item: -item[1].get(OURS, 0))
        for op, total in ordered:
            by_side = {side: total[side] for side in sides}
            reached = total["bytes"] / total[OURS] / 1e6 if total.get(OURS) else None
            rows.append([op, total["calls"], *by_side.values(), ratio(by_side.get(OURS), best_torch(by_side)), reached])
        every = {side: sum(total[side] for _, total in ordered) for side in sides}
        if rows:
            rows.append(["**all**", sum(total["calls"] for _, total in ordered), *every.values(), ratio(every.get(OURS), best_torch(every)), None])
            header = ["operation", "calls", *(f"{result.title(side)}, ms" for side in sides), "minigrad / fastest eager PyTorch", "minigrad GB/s"]
            parts.append(f"### {config}, batch {batch}: sums over a training step, forward and backward\n\n" + table(header, rows))
            plotted = plotted or [(op, {side: total[side] for side in sides}) for op, total in ordered]
        header = ["operation and inputs", "calls", *map(result.title, sides), "ratio", "forward, minigrad", "MB", "GB/s", "of copying"]
        rows: list[list[Any]] = []
        slowest: list[tuple[float, list[Any]]] = []
        for case, wall, forward in cases:
            shapes = " ".join("×".join(map(str, given["shape"])) for given in case["inputs"] if given)
            stride, relu = case["values"].get("stride"), case["values"].get("relu")
            extra = f" stride={stride}" * (stride not in (None, 1, [1, 1])) + " relu" * bool(relu)
            where = "" if case["where"] == "training step" else f" ({case['where']})"
            reached = case["bytes"] / wall[OURS] / 1e6 if OURS in wall else None
            share = f"{100 * reached / bandwidth:.0f} %" if reached and bandwidth else "–"
            cells = [wall.get(side) for side in sides]
            best = ratio(wall.get(OURS), best_torch(wall))
            rows.append([f"{case['op']} {shapes}{extra}{where}", case["count"], *cells, best, forward.get(OURS), case["bytes"] / 1e6, reached, share])
            if (slow := wall.get(OURS, 0) / (best_torch(wall) or float("inf"))) > SLOW:
                slowest.append((slow, [rows[-1][0], case["count"], best, case["bytes"] / 1e6, passes(case), reached, share]))
        if slowest:
            header_slow = ["operation and inputs", "calls", "ratio", "MB", "passes", "GB/s", "of copying"]
            listed = [row for _, row in sorted(slowest, key=lambda item: -item[0])]
            parts.append(
                f"### {config}, batch {batch}: more than {SLOW:g} times PyTorch's time\n\nA pass is a call of NumPy or BLAS that goes over all "
                "numbers, forward + backward, block by block in the cache; PyTorch's kernels make one or two each way. Of pooling they depend on the "
                f"window (see its page).\n\n{table(header_slow, listed)}"
            )
        title = f"{config}, batch {batch}: every call, milliseconds"
        parts.append(f"<details><summary>{title}</summary>\n\n{table(header, rows)}\n\n</details>")
    if plotted:
        config, batch = next(iter(groups))
        plots["ops"] = lambda: bars(plotted, result, f"milliseconds in a step of {config}, batch {batch}", turned=True)
        parts.insert(1, picture("ops", "Time by operation").strip())
    return "\n\n".join(parts)


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


def block_section(result: Result, plots: Plots) -> str:
    """The peers on one block."""
    parts, plotted = [], []
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
        plotted.append((f"{case['config']}\nbatch {case['batch']}", wall))
    plots["block"] = lambda: bars(plotted, result, "milliseconds")
    return "\n\n".join(parts) + picture("block", "One block, forward and backward")


def agreement(theirs: dict, ours: dict) -> str:
    """How far the loss and the norm of the gradient are from ours, relative to the gradient's norm."""
    scale = ours["dx_norm"]
    errors = [abs(theirs[key] - ours[key]) / scale for key in ("loss", "dx_norm")]
    error = math.nan if any(map(math.isnan, errors)) else max(errors)  # max passes over a NaN
    return f"{'yes' if error < 1e-2 else 'NO'} ({error:.0e})"


def end_to_end_section(result: Result, plots: Plots) -> str:
    rows = []
    for case, turns in result.cases():
        for side, taken in turns.items():
            train, bare = of_turns(taken, "train_images_per_second"), of_turns(taken, "bare_images_per_second")
            shares = sorted(turn["whole_of_bare"][0] for turn in taken)
            told = f"{100 * median(shares):.0f} % ({100 * shares[0]:.0f} to {100 * shares[-1]:.0f})"
            rows.append([f"{case['config']}, {case['batch']}: {result.title(side)}", train, bare, told])
    text = "The bare step is measured before the run and after it, and the quotient is that of a turn; in brackets the smallest and the largest.\n\n"
    return text + table(["network, batch", "whole run, images/s", "bare step, images/s", "whole run of bare step"], rows)


def memory_section(result: Result, plots: Plots) -> str:
    rows = []
    for case, turns in result.cases():
        peak = medians(turns, "peak_mib")
        cells = [peak.get(side) for side in result.sides]
        name = f"{case['config']}, {case['batch']}{', blocks checkpointed' if case.get('checkpoint') else ''}"
        rows.append([name, *cells, ratio(peak.get(OURS), best_torch(peak))])
    header = ["network, batch", *(f"{result.title(side)}, MiB" for side in result.sides), "minigrad / least of PyTorch"]
    return table(header, rows)


def growth_section(result: Result, plots: Plots) -> str:
    """A table and a curve for each thing that is varied."""
    curves: dict[str, dict[str, list]] = {}
    rows = []
    for case, turns in result.cases():
        wall = medians(turns)
        rows.append([f"{case['varied']} {case['value']}", *(wall.get(side) for side in result.sides), ratio(wall.get(OURS), best_torch(wall))])
        for side, value in wall.items():
            curves.setdefault(case["varied"], {}).setdefault(side, []).append((case["value"], value))

    def draw() -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3 * len(curves), 3), layout="constrained")
        for axes, (varied, by_side) in zip(figure.subplots(1, len(curves), squeeze=False).flat, curves.items(), strict=True):
            for side, points in by_side.items():
                axes.plot(*zip(*points, strict=True), marker="o", label=result.title(side))
            axes.set(xscale="log", yscale="log", xlabel=varied, ylabel="ms a step")
            axes.set_xticks([value for value, _ in next(iter(by_side.values()))], labels=[str(value) for value, _ in next(iter(by_side.values()))])
            axes.minorticks_off()
        axes.legend(fontsize=7)
        return figure

    plots["growth"] = draw
    return table(["", *(f"{result.title(side)}, ms" for side in result.sides), "ratio"], rows) + picture(
        "growth", "Time of a step as one thing grows"
    )


def inference_section(result: Result, plots: Plots) -> str:
    """Latency of one image with its slow end, throughput of the larger batches."""
    rows = []
    for case, turns in result.cases():
        wall = medians(turns)
        if case["batch"] == 1:
            slow = {side: sorted(value for turn in taken for value in turn["wall_ms"]) for side, taken in turns.items()}
            cells = [f"{number(wall[s])} ms (95 %: {number(slow[s][int(0.95 * (len(slow[s]) - 1))])})" if s in wall else "–" for s in result.sides]
        else:
            cells = [f"{number(1e3 * case['batch'] / wall[side])} images/s" if side in wall else "–" for side in result.sides]
        rows.append([f"{case['config']}, {case['batch']}", *cells, ratio(wall.get(OURS), best_torch(wall))])
    return table(["network, batch", *map(result.title, result.sides), "time: minigrad / fastest eager PyTorch"], rows)


SECTIONS: dict[str, tuple[str, Callable[[Result, Plots], str]]] = {
    "step": ("The training step", step_section),
    "step_profile": ("Where the time of our step goes", profile_section),
    "end_to_end": ("A whole training run against the bare step", end_to_end_section),
    "block": ("One block beside other frameworks", block_section),
    "threads": ("What a second thread brings", threads_section),
    "ops": ("Every fused operation", ops_section),
    "memory": ("Peak memory", memory_section),
    "growth": ("How the time of a step grows", growth_section),
    "inference": ("Inference", inference_section),
}


# --- the page


def picture(name: str, alternative: str) -> str:
    return f"\n\n![{alternative}](benchmarks/{name}.svg)"


def bars(groups: list[tuple[str, dict[str, float]]], result: Result, label: str, turned: bool = False) -> Any:
    """A group of bars for each name, a bar for each side."""
    from matplotlib.figure import Figure

    sides = [side for side in result.sides if any(side in values for _, values in groups)]
    figure = Figure(figsize=(8, 1 + 0.5 * len(groups)) if turned else (8, 3.5), layout="constrained")
    axes = figure.subplots()
    for k, side in enumerate(sides):
        places = [index + (k - (len(sides) - 1) / 2) * 0.8 / len(sides) for index in range(len(groups))]
        values = [by_side.get(side, 0.0) for _, by_side in groups]
        (axes.barh if turned else axes.bar)(places, values, 0.8 / len(sides), label=result.title(side))
    names = [name for name, _ in groups]
    if turned:
        axes.set_yticks(range(len(names)), labels=names)
        axes.invert_yaxis()
        axes.set_xlabel(label)
    else:
        axes.set_xticks(range(len(names)), labels=names)
        axes.set_ylabel(label)
    axes.legend(fontsize=8)
    return figure


def quietness(results: Sequence[Result]) -> str:
    """Which files the page is made of, on which of its machines, and how much else that did meanwhile."""
    rows, machines = [], list(dict.fromkeys(map(machine_of, results)))
    for result in results:
        loads, share = [turn["load"] for turn in result.turns() if "load" in turn], result.others()
        speeds, counts = result.record.get("speeds", []), [len(row["turns"]) for row in result.rows]
        told = "–" if share is None else f"{100 * share:.0f} %" + (" **noisy**" if share > NOISY else "")
        rows.append([
            f"`{result.file.name}`", str(1 + machines.index(machine_of(result))), result.dates(), result.revisions(),
            str(result.record["settings"]["threads"]), spread(counts, "d"),
            spread([each["gflops"] for each in speeds]), spread([each["copy_gbs"] for each in speeds]),
            f"{median(loads):.1f} (at most {max(loads):.1f})" if loads else "–", told,
        ])  # fmt: skip
    header = [
        "file",
        "machine",
        "date (UTC)",
        "commit",
        "threads a side",
        "turns",
        "product, GFLOP/s",
        "copying, GB/s",
        "load average",
        "processors taken by others",
    ]
    text = table(header, rows)
    if any(result.record.get("speeds") for result in results):
        text += (
            "\n\nA large matrix product and a copy of 256 MiB, before each benchmark and after it, say what state the machine was in: neighbours on "
            "a host share its memory bus, last cache and clock unseen. Two files compare only where these agree."
        )
    if any("**noisy**" in row[-1] for row in rows):
        text += (
            "\n\nFigures of a noisy run compare nothing: on a busy machine PyTorch's OpenMP threads wait for each other in a loop, which costs its "
            "side many times over, in processor time too, and ours, whose threads sleep, much less."
        )
    return text


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """From the smallest to the largest."""
    ends = [format(end(values), form) for end in (min, max)] if values else ["–"]
    return " to ".join(dict.fromkeys(ends))


def machine_of(result: Result) -> tuple[str, str]:
    """Processor, memory and system; NumPy's BLAS and the kernels that it chose."""
    e = result.record["environment"]
    ours = result.record["sides"].get(OURS, {}).get("threads", [])
    blas = ", ".join(f"{part['internal_api']} {part['version']} ({part['architecture']} kernels)" for part in ours)
    units = [f"with {', '.join(e['vector_units'])}"] if e.get("vector_units") else []
    caches = [f"{name} {size}" for name, size in e.get("caches", {}).items()]
    memory = e.get("memory_gib", e.get("memory_gb"))  # older files have the same number by a wrong name
    sizes = [f"{memory:g} GiB"] if memory else []
    return ", ".join([e["processor"], *units, *caches, f"{e['processors']} processors", *sizes, e["system"]]), blas


def machine(results: Sequence[Result]) -> str:
    """Hardware and software, once for each machine and choice of kernels, with all versions that its files name."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for result in results:
        versions = found.setdefault(machine_of(result), {})
        versions.setdefault("Python", set()).add(result.record["environment"]["python"])
        for side in result.record["sides"].values():
            for name, version in side.get("versions", {}).items():
                versions.setdefault(name, set()).add(version)
    lines = []
    for (hardware, blas), versions in found.items():
        software = ", ".join(f"{name} {' and '.join(sorted(versions[name]))}" for name in sorted(versions, key=lambda name: (name != "Python", name)))
        lines.append(f"{hardware}; {software}" + (f"; NumPy's BLAS: {blas}" if blas else "") + ".")
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def page_of(folder: Path) -> tuple[str, Plots]:
    """The page, and how its plots are drawn."""
    results = [Result(file) for file in sorted(folder.glob("*.json")) if "benchmark" in json.loads(file.read_text())]
    results.sort(key=lambda result: ([list(VARIANTS).index(name) for name in result.variants], list(SECTIONS).index(result.name)))
    if not results:
        raise SystemExit(f"there is no benchmark's JSON file in {folder}")
    parts = [
        "# Benchmarks",
        "Written by `make bench BENCH=report` from the files in `benchmarks/results/`; do not edit. Each side runs in a process of its own, they "
        "take turns, and a figure is the median over the turns of the median over a turn. PyTorch is shown as it comes (NCHW), in channels_last "
        "memory, and in channels_last with a C library that keeps freed memory; ours asks for the same by itself.",
        "## Targets",
        targets_section(results, json.loads((folder / OVERHEAD).read_text()) if (folder / OVERHEAD).exists() else None),
        "## Files and machines",
        machine(results),
        quietness(results),
    ]
    if any(result.record["settings"]["quick"] for result in results):
        parts.insert(1, "**Measured with --quick: these figures show that the benchmarks run, and nothing else.**")
    plots: Plots = {}
    for result in results:
        own: Plots = {}
        text = SECTIONS[result.name][1](result, own)
        if result.variants:  # plots are drawn for what an ordinary user has
            text = "\n\n".join(part for part in text.split("\n\n") if not part.startswith("!["))
        else:
            plots.update(own)
        parts.append(f"## {result.heading}")
        parts.append(f"```sh\n{result.record['command']}\n```")
        if result.name == "step" and "warm_up" not in result.record:
            parts.append(OLD_STEPS)
        parts.append(text)
        if apart := result.apart():
            parts.append(apart)
        left_out = [f"{result.title(side)}: {reason}" for side, reason in result.record["skipped"].items()]
        left_out += dict.fromkeys(f"{result.title(row['side'])}: {row['failed']}" for row in result.failed)
        if left_out:
            parts.append("Not measured: " + "; ".join(left_out) + ".")
    return "\n\n".join(parts) + "\n", plots


def write(folder: Path, page: Path) -> None:
    """Write the page and its plots."""
    text, plots = page_of(folder)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    draw(plots, page.parent / "benchmarks")
    print(f"written: {page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}")


def draw(plots: Plots, folder: Path) -> None:
    """Save the plots as SVG, the same bytes for the same figures."""
    import matplotlib

    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none"}):
        for name, make in plots.items():
            make().savefig(folder / f"{name}.svg", metadata={"Date": None})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="the folder with the JSON files (default: benchmarks/results)")
    parser.add_argument("--page", type=Path, help="the page to write (default: docs/benchmarks.md)")
    parser.add_argument("--quick", action="store_true", help="what --quick measured: from and to runs/benchmarks/")
    options = parser.parse_args(argv)
    folder, page = (QUICK_RESULTS, QUICK_RESULTS / "benchmarks.md") if options.quick else (RESULTS, PAGE)
    write(options.results or folder, options.page or page)


if __name__ == "__main__":
    main(sys.argv[1:])
