"""What was aimed at, and what was measured of it: the first section of docs/benchmarks.md, and the table of the engine's own cost in docs/results.md.

Read before: `tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.sections import SLOW
from benchmarks.tables import OURS, Result, best_torch, figures, quotient, table

NETWORKS = ("cifar-nano", "cifar-micro", "cifar-small")
OP_GOALS = {"linear": 0.8, "1x1 convolution": 0.8, "attention": 0.7, "3x3 convolution": 1.7} | dict.fromkeys(
    ("batch norm", "layer norm", "softmax", "gelu"), 4.0
)
"""Times of PyTorch in channels_last memory that an operation may take; see `goal_of`."""

Found = dict[str, list[float]]  # by network


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
    run_found = {case["config"]: [shares[OURS]] for case, shares in figures(run, "whole_of_bare") if OURS in shares}
    over_torch, over_whole = memory_found(memory)
    rows += [
        target("images/s: whole run / bare step", "at least 0.95", run_found, run),
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


def target(what: str, goal: str, found: Found, result: Result | None) -> list[str]:
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


def step_found(result: Result | None, theirs: Callable[[dict[str, float]], float | None]) -> Found:
    return {case["config"]: [over] for case, wall in figures(result) if case["batch"] == 128 and (over := quotient(wall.get(OURS), theirs(wall)))}


def memory_found(result: Result | None) -> tuple[Found, Found]:
    """Over the least of PyTorch's; and of cifar-small, whose blocks are checkpointed, over without."""
    peaks = {(case["config"], bool(case.get("checkpoint"))): peak for case, peak in figures(result, "peak_mib")}
    over = {
        config: [share] for (config, checkpoint), peak in peaks.items() if not checkpoint and (share := quotient(peak.get(OURS), best_torch(peak)))
    }
    less = quotient(*(peaks.get(("cifar-small", checkpoint), {}).get(OURS) for checkpoint in (True, False)))
    return over, {"cifar-small": [less]} if less else {}


def block_found(result: Result | None, side: str) -> Found:
    return {case["config"]: [over] for case, wall in figures(result) if (over := quotient(wall.get(side), wall.get(OURS)))}


def op_found(result: Result | None) -> dict[str, dict[str, list[tuple[int, float, float]]]]:
    """By operation and network: batch, and our time over channels_last's and over the fastest eager one's, the largest batch first."""
    sums: dict[tuple[str, str, int], dict[str, float]] = {}
    for case, wall in figures(result):
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


# --- the engine's own cost: files of `overhead.py`, which have samples of another kind


OVERHEAD = "overhead.json"
OVERHEAD_GOALS = {"primitive": (2, 4), "fused": (4, 4)}  # microseconds of the engine's own, forward and backward


def overhead_by_operation(record: dict, kind: str, direction: str) -> dict[str, float]:
    """Microseconds of each operation that its kernel does not take."""
    return {row["operation"]: row[f"{direction}_us"] - row[f"{direction}_kernel_us"] for row in record["rows"] if row["kind"] == kind}


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


def overhead_table(record: dict) -> str:
    """Every operation's own cost; where PyTorch was measured, also the whole call of both. It stands in docs/results.md, by hand."""
    rows = []
    for row in record["rows"]:
        own = [row[f"{direction}_us"] - row[f"{direction}_kernel_us"] for direction in ("forward", "backward")]
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
