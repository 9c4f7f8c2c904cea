"""The whole training step on the GPU: ours, with a launch for each kernel and as one CUDA graph, beside PyTorch, eager, captured and compiled.

    python -m benchmarks.gpu_step [--cases cifar-micro:512:32 ...] [--precisions float32 tf32 bf16] [--sides ...] [--compile-seconds 100]
                                  [--resume] [--quick]

All sides of a case begin with the same weights and take turns; a figure is the median over the steps of all turns. Compiling a network takes PyTorch
a minute, so the compiled sides come after all cases, each by itself, until --compile-seconds are spent; the others are named as left out. Unasked,
cifar-micro is compiled with and without a graph of the whole step, cifar-nano, where launches dominate, with it; PyTorch's own graphs
(reduce-overhead) leave clipping and AdamW to be launched, and are for --sides. Read before: `gpu_networks.py`, what a step is.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks import files, gpu, gpu_networks
from benchmarks.gpu_profile import timed
from benchmarks.sides import failure
from minigrad.backend.cublas import PRECISIONS

NAME = "gpu_step"
CASES = ["cifar-micro:512:32", "cifar-nano:64:32", "cifar-small:256:32", "tiny-patch16:64:224"]
SIDES = {
    "graph": "minigrad, one CUDA graph",
    "eager": "minigrad, eager",
    "torch": "PyTorch eager",
    "torch-graph": "PyTorch, one CUDA graph",
    "torch-compile": "torch.compile",
    "torch-graph-compile": "torch.compile, one CUDA graph",
    "torch-compile-graphs": "torch.compile, reduce-overhead",
}
OURS, ONE_GRAPH = ("graph", "eager"), ("torch-graph", "torch-graph-compile")  # PyTorch's whole step as one graph, as "graph" is ours
MODES = {"torch-compile": "default", "torch-graph-compile": "default", "torch-compile-graphs": "reduce-overhead"}
COMPILED = {("cifar-micro", "torch-compile"), ("cifar-micro", "torch-graph-compile"), ("cifar-nano", "torch-graph-compile")}  # if no sides are named
GOALS = {("cifar-micro", 512, "float32"): 0.9, ("cifar-micro", 512, "tf32"): 0.9, ("cifar-micro", 512, "bf16"): 1.0}
GOALS |= {("cifar-nano", 64, precision): 1 / 3 for precision in PRECISIONS}
"""What our step is to take of PyTorch eager's at most, by network, batch and precision."""
MILLISECONDS, FEWEST, MOST = 250.0, 5, 50  # that a turn measures, and steps


def prepare(side: str, case: dict, precision: str) -> tuple[Callable[[], Any], float]:
    """The step of a side, and the loss that it begins with (a captured step has taken others before, at a rate that changes nothing yet)."""
    if side in OURS:
        ours = gpu_networks.OurStep(case, precision)
        step = ours.captured() if side == "graph" else ours
    else:
        step = gpu_networks.torch_step(case, precision, MODES.get(side), graph=side in ONE_GRAPH)
    return step, float(step().item())


def sides_of(case: dict, named: Sequence[str] | None) -> list[str]:
    """Those that take part: the named ones; by default all but what takes long to compile and says little."""
    return [side for side in SIDES if (side in named if named else side not in MODES or (case["config"], side) in COMPILED)]


def jobs_of(cases: Sequence[dict], precisions: Sequence[str], named: Sequence[str] | None) -> list[list]:
    """What is measured, in this order: [case, precision, None] for the sides that take turns; in the end, since compiling takes long, and may take
    for ever, [case, precision, side] for each compiled one, of every network in the first precision before the next.
    """
    turns = [case for case in cases if any(side not in MODES for side in sides_of(case, named))]
    jobs: list[list] = [[case, precision, None] for case in turns for precision in precisions]
    return jobs + [[case, precision, side] for precision in precisions for case in cases for side in sides_of(case, named) if side in MODES]


def measured(case: dict, precision: str, sides: Sequence[str], rounds: int, may_compile: Callable[[], bool]) -> list[dict]:
    """A row for each side: `{"case", "precision", "side", "turns": [{"ms", "wall_ms"}, ...], "first_loss", "last_loss", "prepared_s"}`.

    "failed" says why a side has no turns, or not all of them; "prepared_s", how long compiling or capturing it took, or took until it failed.
    """
    steps: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict] = {side: {"case": case, "precision": precision, "side": side} for side in sides}
    for side in sides:
        began = time.monotonic()
        if side in MODES and not may_compile():
            rows[side]["failed"] = "left out: the time for compiling was spent"
            continue
        try:
            steps[side], rows[side]["first_loss"] = prepare(side, case, precision)
            rows[side]["turns"] = []
            gpu.free_memory()
        except Exception as error:  # the other sides are still worth measuring
            steps.pop(side, None)
            rows[side]["failed"] = failure(error)
        rows[side]["prepared_s"] = round(time.monotonic() - began, 2)
    for number in range(1, rounds + 1):
        for side, step in list(steps.items()):
            try:
                once = timed(step, 1, warm_ups=2)["ms"][0]
                rows[side]["turns"].append(timed(step, int(min(MOST, max(FEWEST, MILLISECONDS / max(once, 0.01)))), warm_ups=0))
                if number == rounds:
                    rows[side]["last_loss"] = float(step().item())
                gpu.free_memory()
            except Exception as error:  # what it has of other turns stays
                del steps[side]
                rows[side]["failed"] = f"in turn {number} of {rounds}: {failure(error)}"
    steps.clear()
    if any("prepared_s" in rows[side] for side in MODES if side in rows):
        forget_compiled()
    return list(rows.values())


def forget_compiled() -> None:
    """Let go of what torch.compile keeps of networks that are measured no more."""
    import torch

    torch.compiler.reset()


# --- what the samples say


def step_ms(row: dict) -> float | None:
    """The median of all steps of all turns; None where nothing was measured."""
    return median(ms for turn in row["turns"] for ms in turn["ms"]) if row.get("turns") else None


def groups(rows: Sequence[dict]) -> list[tuple[dict, str, dict[str, dict]]]:
    """The rows by case and precision: (case, precision, rows by side)."""
    found: dict[str, tuple[dict, str, dict[str, dict]]] = {}
    for row in rows:
        key = json.dumps([row["case"], row["precision"]], sort_keys=True)
        found.setdefault(key, (row["case"], row["precision"], {}))[2][row["side"]] = row
    return list(found.values())


def best(rows: dict[str, dict], sides: Sequence[str]) -> tuple[float, str] | None:
    """The shortest step of these sides, and whose it is."""
    return min(((ms, side) for side in sides if side in rows and (ms := step_ms(rows[side])) is not None), default=None)


def ratio(rows: dict[str, dict], ours: Sequence[str], theirs: Sequence[str]) -> tuple[float, str] | None:
    """The shortest step of our sides over the shortest of theirs, and whose that is; None where one of both was not measured."""
    mine, (other, side) = best(rows, ours), best(rows, theirs) or (0.0, "")
    return (mine[0] / other, side) if mine and other else None


def beside(found: tuple[float, str] | None) -> str | None:
    """A ratio that may be to any of several sides, with the one that it is to."""
    return found and f"{found[0]:.2f} to {SIDES[found[1]]}"


def label(case: dict, precision: str) -> str:
    return f"{case['config']}, {case['batch']} of {case['size']}x{case['size']}, {precision}"


def cells_of(rows: Sequence[dict]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of a table: milliseconds by side; our shorter time over PyTorch's eager, our graph's over that of PyTorch's shorter graph, and
    our shorter time over PyTorch's shortest of all.
    """
    sides = [side for side in SIDES if any(row["side"] == side for row in rows)]
    cells = []
    for case, precision, by_side in groups(rows):
        times = [step_ms(by_side[side]) if side in by_side else None for side in sides]
        eager, graphs = ratio(by_side, OURS, ["torch"]), ratio(by_side, ["graph"], ONE_GRAPH)
        fastest = ratio(by_side, OURS, [side for side in SIDES if side not in OURS])
        cells.append([label(case, precision), *times, eager and f"{eager[0]:.2f}", beside(graphs), beside(fastest)])
    return ["network, batch, precision", *(SIDES[side] for side in sides), "ratio to eager", "graph to graph", "ratio to the fastest"], cells


def goals_of(rows: Sequence[dict]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of a table: of the cases that have a goal, the ratio to PyTorch eager that it is about, and those that say more."""
    cells = []
    for case, precision, by_side in groups(rows):
        goal = GOALS.get((case["config"], case["batch"], precision))
        if goal is None:
            continue
        eager, compiled = (ratio(by_side, OURS, [side]) for side in ("torch", "torch-compile"))
        reached = None if eager is None else "yes" if eager[0] <= goal else "no"
        graphs = beside(ratio(by_side, ["graph"], ONE_GRAPH))
        cells.append([label(case, precision), f"{goal:.3f}", eager and f"{eager[0]:.3f}", reached, compiled and f"{compiled[0]:.2f}", graphs])
    return ["network, batch, precision", "ratio to eager, at most", "is", "reached", "ratio to torch.compile", "graph to graph"], cells


def losses_apart(rows: Sequence[dict]) -> list[str]:
    """The cases whose sides begin with different losses, or where a loss is not finite: they would not be the same step."""
    apart = []
    for case, precision, by_side in groups(rows):
        first = {side: row["first_loss"] for side, row in by_side.items() if "first_loss" in row}
        last = {f"{side} at last": row["last_loss"] for side, row in by_side.items() if "last_loss" in row}  # after many steps, of each side its own
        lost = {side: loss for side, loss in last.items() if not math.isfinite(loss)}
        allowed = 1e-3 if precision == "float32" else 3e-2
        # max and min pass over a NaN, so that is asked for before
        if (
            lost
            or not all(map(math.isfinite, first.values()))
            or (first and max(first.values()) - min(first.values()) > allowed * max(first.values()))
        ):
            apart.append(f"{case['config']}, {precision}: {', '.join(f'{side} {loss:.6g}' for side, loss in {**first, **lost}.items())}")
    return apart


def main(argv: list[str] | None = None) -> None:
    parser = gpu.resumable(gpu.arguments(__doc__))
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="NAME:BATCH:SIZE")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default: all, compiled ones for some cases only")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--compile-seconds", type=float, default=100.0, help="no compiling begins after so much time was spent on it")
    options = parser.parse_args(argv)
    gpu.connect()
    if options.quick:
        name, _, size = options.cases[0].split(":")
        options.cases, options.rounds, options.precisions = [f"{name}:2:{size}"], 1, options.precisions[:1]
        options.sides = options.sides or [side for side in SIDES if side not in MODES]
    how = {"rounds": options.rounds}
    given = [text.split(":") for text in options.cases]
    jobs = jobs_of([{"config": config, "batch": int(batch), "size": int(size)} for config, batch, size in given], options.precisions, options.sides)

    def of(row: dict) -> list:
        return [row["case"], row["precision"], row["side"] if row["side"] in MODES else None]

    def asked(job: list) -> list[str]:
        return [job[2]] if job[2] else [side for side in sides_of(job[0], options.sides) if side not in MODES]

    def complete(job: list, rows: list[dict]) -> bool:  # all sides again where one is missing, since they take turns
        return set(asked(job)) <= {row["side"] for row in rows if "failed" not in row}

    before, write = gpu.kept(NAME, options, **how), functools.partial(gpu.save, NAME, options=options, argv=argv, **how)
    cases = gpu.Cases(jobs, of, complete, before, write)
    compiling = 0.0

    def may_compile() -> bool:
        return compiling < options.compile_seconds

    for job in cases.left():
        case, precision, _ = job
        found = measured(case, precision, asked(job), options.rounds, may_compile)
        compiling += sum(row.get("prepared_s", 0.0) for row in found if row["side"] in MODES)
        told = ", ".join(f"{row['side']} {ms:.3f} ms" if (ms := step_ms(row)) is not None else f"{row['side']} -" for row in found)
        print(f"{case['config']}:{case['batch']}:{case['size']} {precision}: {told}", flush=True)
        cases.add(job, found)
        gpu.free_memory()
    files.told(cases.save())
    rows = cases.rows()
    print(gpu.text_table(*cells_of(rows)))
    for row in rows:
        if "failed" in row:
            print(f"{row['case']['config']}, {row['precision']}, {row['side']}: {row['failed']}")
    for line in losses_apart(rows):
        print(f"DIFFERENT losses: {line}")


if __name__ == "__main__":
    main()
