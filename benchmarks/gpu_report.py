"""Write docs/benchmarks_gpu.md from the JSON files in benchmarks/results/gpu/: no figure on that page is typed by hand.

    python -m benchmarks.gpu_report [--results DIR] [--page FILE] [--run RUN]

Each GPU benchmark has a function here that makes its section; where there is no file the page says so. Figures of different cards stand in sections
of their own. A training run's section is made of what `conformer train` wrote into its folder: --run copies the two files that it needs to the
results first, each run into a folder of its own. Read before: `gpu.py`, which writes the files of the benchmarks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import gpu, gpu_ceilings, gpu_kernels, gpu_profile, gpu_step
from benchmarks.gpu import GPU_RESULTS
from benchmarks.measure import ROOT, median
from benchmarks.report import table
from conformer.config import named_config
from conformer.evaluate import HEADS
from conformer.info import count
from conformer.options import TrainConfig
from conformer.run_folder import read_config
from conformer.run_log import RunLog, read_log
from conformer.train import WINDOW

PAGE = ROOT / "docs" / "benchmarks_gpu.md"
LINK = "../benchmarks/results/gpu/"
TOP = 25  # kernels of a profile that the page shows


def step_section(record: dict) -> str:
    """Milliseconds of a training step by side."""
    parts = [
        "Milliseconds from the end of one step to the end of the next, by CUDA events: forward, backward, clipping, AdamW; images and labels are "
        "on the GPU. PyTorch: channels_last, `cudnn.benchmark`, fused AdamW; its bf16 is autocast, ours rounds the factors of matrix products. The "
        "sides of a case take turns, but for those that torch.compile makes: they are measured after all others, each by itself. In the ratios to "
        "eager and to the fastest ours is the shorter of both; below 1.00 it is faster than PyTorch. *Graph to graph* is ours as one CUDA graph over "
        "PyTorch's whole step as one, with its own kernels or with torch.compile's: the shorter that was measured. The fastest is named, since not "
        "every case is compiled unasked.",
        table(*gpu_step.cells_of(record["rows"])),
    ]
    header, cells = gpu_step.goals_of(record["rows"])
    if cells:
        parts += [
            "### The goals of the step",
            "They are worded by PyTorch eager, which launches kernel after kernel from Python. Where launching takes longer than the kernels, as "
            "with a small network and batch, a CUDA graph is ahead by launches alone, whatever its kernels are: PyTorch's own graph shows by how "
            "much. How the kernels compare is graph to graph.",
            table(header, cells),
        ]
    missing = [f"{case['config']}, {precision}{f', {gpu_step.SIDES[side]}' if side else ''}" for case, precision, side in record.get("missing", [])]
    if missing:
        parts.append(f"The run was stopped before it came to these: {'; '.join(missing)}.")
    failed = [
        f"{row['case']['config']}, {row['precision']}, {gpu_step.SIDES[row['side']]}: {row['failed']}" for row in record["rows"] if "failed" in row
    ]
    if failed:
        parts.append("Not measured, or not to the end: " + "; ".join(failed) + ".")
    parts += [f"**The sides do not take the same step; their losses**: {line}." for line in gpu_step.losses_apart(record["rows"])]
    return "\n\n".join(parts)


def kernels_section(record: dict) -> str:
    """Sums by operation, every pass, and the memory-bound ones below the goal."""
    rows = record["rows"]
    configs = list(dict.fromkeys(gpu_kernels.config_of(row["case"]) for row in rows))
    parts = [
        ceilings_section({"rows": record["ceilings"]}),
        "What an operation must do is counted from its shapes (`benchmarks/gpu_counts.py`): arrays read and written, and the multiplications and "
        "additions of its matrix products. *Of its ceiling* is the time that would take at the speed of copying, or of cuBLAS's products, whichever "
        "is longer, over the time measured. Of what is read twice (a batch norm's statistics come before its output; both products of a backward "
        f"pass read dy) the second time counts only as far as it exceeds the L2 cache, {rows[0]['card']['l2_bytes'] / 1e6:.1f} MB on this card: what "
        "the cache may have kept need not come from memory. That is the least any kernel moves; *once to every pass* is the share with each array "
        "counted once, and with all passes counted as if there were no cache. GB/s are of what is judged. Inputs are so many copies that the first "
        "read finds nothing in the cache; where they are so small that it may hold them all the same, they are marked *cache*, and not judged by "
        "the speed of copying.",
    ]
    if len(speeds := {round(row["card"]["bytes_s"] / 1e9) for row in rows}) > 1:
        parts.append(
            f"Measured by several calls; each row is judged by the copy of its own, at {', '.join(map('{:,}'.format, sorted(speeds)))} GB/s."
        )
    config = configs[0]
    of_step = [
        [name, ours, theirs, f"{ratio:.2f}", f"{100 * ideal / ours:.0f} %"] for name, ours, theirs, ratio, ideal in gpu_kernels.sums(rows, config)
    ]
    if of_step:
        only = f", of {', '.join(record['only'])} alone" if record.get("only") else ""
        parts.append(f"### {network(config)}: sums over a training step{only}")
        parts += gpu_kernels.left_out(rows, config, record.get("missing", []))
        parts.append(table(["operation", "minigrad, ms", "PyTorch, ms", "ratio", "of its ceiling"], of_step))
    slow = gpu_kernels.exceptions(rows)
    goal = f"{100 * gpu_kernels.ENOUGH:.0f} %"
    parts.append(f"### Memory-bound passes below {goal} of the speed of copying: {len(slow)} of {len(gpu_kernels.judged(rows))}")
    if slow:
        cells = [[name_of(row), str(row["case"]["count"]), 1e3 * what["ours"], f"{100 * what['share']:.0f} %", counted(what)] for row, what in slow]
        parts.append(table(["operation and inputs", "calls", "µs", "of copying", "once to every pass"], cells))
    for config in configs:
        cells = []
        for row in rows:
            if gpu_kernels.config_of(row["case"]) == config:
                what = gpu_kernels.summary(row)
                ours, theirs = (None if ms is None else 1e3 * ms for ms in (what["ours"], what["theirs"]))
                ratio = f"{ours / theirs:.2f}" if ours and theirs else "–"
                share = "–" if what["share"] is None else f"{100 * what['share']:.0f} % ({what['bound']})"
                cells.append([name_of(row), str(row["case"]["count"]), ours, theirs, ratio, what["gb_s"], what["tflop_s"], share, counted(what)])
        header = ["operation and inputs", "calls", "µs", "PyTorch, µs", "ratio", "GB/s", "TFLOP/s", "of its ceiling", "once to every pass"]
        parts.append(f"<details><summary>{network(config)}: every pass</summary>\n\n{table(header, cells)}\n\n</details>")
    off = gpu_kernels.disagreeing(rows, record["precision"])
    if off:
        told = "; ".join(f"{gpu_kernels.label(row['case'])} ({error:.0e})" for row, error in off)
        parts.append(f"**Both sides do not compute the same**: {told}.")
    failed = [f"{gpu_kernels.label(row['case'])}, {side}: {why}" for row in rows for side, why in row.get("failed", {}).items()]
    if failed:
        parts.append("Not measured: " + "; ".join(dict.fromkeys(failed)) + ".")
    return "\n\n".join(parts)


def network(config: str) -> str:
    """A "name:batch:size" in words."""
    name, batch, size = config.split(":")
    return f"{name}, {batch} of {size}x{size}"


def name_of(row: dict) -> str:
    return f"{gpu_kernels.label(row['case'])}, {row['pass']}"


def counted(found: dict) -> str:
    """`gpu_kernels.counted` for the page."""
    range_of = gpu_kernels.counted(found, " to ")
    return f"{range_of} %" if range_of else ""


def ceilings_section(record: dict) -> str:
    """What the card reaches at most."""
    rows = record["rows"]
    products = [f"{precision} {gpu_ceilings.rate(rows, precision) / 1e12:.0f}" for precision in (row["what"] for row in rows) if precision != "copy"]
    return (
        f"The card copies memory at {gpu_ceilings.bandwidth(rows) / 1e9:,.0f} GB/s (bytes read and bytes written counted); cuBLAS multiplies large "
        f"matrices at so many TFLOP/s: {', '.join(products)}."
    )


def profile_section(record: dict) -> str:
    """The kernels that take longest."""
    case, rows = record["case"], record["rows"]
    whole = sum(row["us"] for row in rows)
    cells = [
        [f"`{gpu_profile.short(row['kernel'], 70)}`", f"{row['calls']:.0f}", row["us"], row["us"] / row["calls"], f"{100 * row['us'] / whole:.1f} %"]
        for row in rows[:TOP]
    ]
    times = ", ".join(f"{name} {median(taken['ms']):.2f} ms" for name, taken in record["times"].items())
    text = f"{record['side']}, {case['config']}, batch {case['batch']}, {record['precision']}: a step takes {times}"
    if record["busy_ms"] is None:
        return f"{text}. The profiler did not end its work."
    text += (
        f"; the GPU works {record['busy_ms']:.2f} ms in a step, on {sum(row['calls'] for row in rows):.0f} kernels and copies of {len(rows)} kinds."
    )
    return text + "\n\n" + table(["kernel", "calls a step", "µs a step", "µs a call", "share"], cells)


SECTIONS: dict[str, tuple[str, Callable[[dict], str]]] = {
    gpu_step.NAME: ("The training step", step_section),
    gpu_kernels.NAME: ("Every fused operation", kernels_section),
    gpu_ceilings.NAME: ("What the card can do", ceilings_section),
    gpu_profile.NAME: ("Where a step's time goes", profile_section),
}


# --- a training run


class Run(NamedTuple):
    """What a training run left: its folder's name, its metrics and its options."""

    name: str
    log: RunLog
    options: dict[str, Any]


PATHS = ("data_dir", "finetune", "out")
IMAGES = {"cifar10": (32, 10), "cifar100": (32, 100), "coupling10": (32, 10)}  # side in pixels and classes, which a run's metrics do not say
GOAL = ("cifar-micro", "cifar10", 0.94, 120)  # network, data set, accuracy, and the seconds within which it is to be reached


def forward_macs(header: dict[str, Any]) -> int | None:
    """Multiply-accumulates of one image's forward pass, as `conformer info` counts; None for a network that cannot be built again."""
    if header["dataset"] not in IMAGES:
        return None
    side, classes = IMAGES[header["dataset"]]
    counted = count(replace(named_config(header["config"]), num_classes=classes), side)
    return counted.macs if counted.parameters == header["parameters"] else None


def training_seconds(log: RunLog, batch: int) -> float | None:
    """Of the steps alone. A logged rate is that of the last `WINDOW` steps, whatever --log-every is, so windows are laid end to end, from the last
    line back to the first step; those that --log-every does not put so leave gaps or overlap, and give None. Fewer than `WINDOW` steps at the end, of
    which a window is there but none before it, count by that window's rate.
    """
    windows = {line["step"]: batch * min(WINDOW, line["step"]) / line["images_per_second"] for line in log.training}
    until = {0: 0.0}  # the seconds of the first so many steps
    for step in sorted(windows):
        if (before := max(0, step - WINDOW)) in until:
            until[step] = until[before] + windows[step]
    last, known = max(windows, default=0), max(until)
    if not known or last - known >= WINDOW:
        return None
    return until[known] + (last - known) * windows[last] / min(WINDOW, last)


def run_command(options: dict[str, Any]) -> str:
    """The command that a run's options stand for, but for the folders that it was given; without its own."""
    defaults, words = TrainConfig(), ["python -m conformer train"]
    for name, value in options.items():
        if name != "out" and hasattr(defaults, name) and value != getattr(defaults, name):
            words.append(f"--{name.replace('_', '-')} {'DIR' if name in PATHS else value}")
    return " ".join(words)


def run_section(run: Run) -> str:
    """What came out, how long it took, and how much was computed."""
    log, batch = run.log, run.options["batch_size"]
    header, last = log.header, log.tests[-1] if log.tests else None
    steps = max((line["step"] for line in log.training + log.tests), default=0)
    images, training, macs = batch * steps, training_seconds(log, batch), forward_macs(header)
    whole = last["seconds"] if last else None
    flop = None if macs is None else 3 * 2 * macs * images
    timed = log.training[-1]["step"] if log.training else 0  # of a run that was broken off, more or fewer steps than were evaluated
    rest = whole - training if last and training and timed == last["step"] else None
    speed = batch * timed / training if training else None
    cells = [
        header["config"], str(batch), run.options["precision"], f"{last['epoch']:g}" if last else None, whole, training, rest,
        speed, None if flop is None else flop / 1e15, 6 * macs * speed / 1e12 if macs and speed else None,
    ]  # fmt: skip
    top = ["network", "batch", "precision", "epochs", "seconds", "training, s", "the rest, s", "images/s", "PFLOP", "TFLOP/s"]
    version = ", ".join(f"{name} {number}" for name, number in header.get("versions", {}).items())
    parts = [
        f"{header.get('device') or 'On an unknown device'}; {version}. Begun on {str(header.get('started'))[:10]}:\n\n"
        f"```sh\n{run_command(run.options)}\n```\n\n[Raw figures]({LINK}{run.name}/metrics.jsonl).",
        table(top, [cells]),
    ]
    if header.get("steps") not in (None, steps):
        parts.insert(0, f"**The run did not come to its end: {steps:,} of {header['steps']:,} steps.**")
    if last:
        found = {"the weights": last["test_accuracy"], "their moving average": last.get("ema_test_accuracy")}
        shares = [[name, *(f"{100 * share[head]:.2f}" for head in HEADS)] for name, share in found.items() if share]
        parts.append(table([f"percent of {header.get('test_images', 0):,} test images, at the end", *HEADS.values()], shares))
    if (header["config"], header["dataset"]) == GOAL[:2]:
        parts.append(goal_of(log))
    if macs is not None:
        parts.append(
            "PFLOP are those of training, without evaluations: 3 (a backward pass multiplies twice as much as a forward one) x 2 (a multiplication "
            f"and an addition) x {macs:,} multiply-accumulates of an image's forward pass, as `conformer info` counts them, x {images:,} images. "
            "TFLOP/s are over the seconds of training."
        )
    parts.append(
        "Seconds are from the program's start to the end of the last evaluation; those of training are by the rates that the run logged, and the "
        "rest is starting, evaluating and saving."
    )
    if training is None and log.training:
        parts.append(
            f"The log does not say how long training took: its rates are those of the last {WINDOW} steps, which do not meet with --log-every "
            f"{run.options['log_every']}. A run with --log-every {WINDOW}, or a divisor of it, says so."
        )
    return "\n\n".join(parts)


def goal_of(log: RunLog) -> str:
    """When the accuracy that is aimed at was reached first."""
    *_, share, limit = GOAL
    goal = f"The goal is {100 * share:g} % by the sum of both heads, of the weights or of their moving average, within {limit} seconds"
    for line in log.tests:
        if max(line[key]["sum"] for key in ("test_accuracy", "ema_test_accuracy") if key in line) >= share:
            kept = "in time" if line["seconds"] <= limit else "too late"
            return f"{goal}: first found after {line['seconds']:.1f} seconds, {kept} (the network is not looked at between two evaluations)."
    return f"{goal}: not reached."


def read_run(folder: Path) -> Run:
    """A run's folder, or the copy of one."""
    return Run(folder.name, read_log(folder), read_config(folder))


def add_run(folder: Path, results: Path) -> Path:
    """Copy a run's metrics and options into a folder of the results, without the names of this machine's folders; returns that.

    Raises:
        FileExistsError: there is a copy of another run, or of this one before it went on.
    """
    run = read_run(folder)
    header = run.log.header
    begun = header["started"][:19].replace("T", "-").replace(":", "")
    target = results / f"train-{header['config']}-{begun}-seed{header['seed']}"
    _, *lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    shared = {name: value for name, value in header.items() if name != "dataset_notice"}  # it says where the data was looked for
    metrics = b"".join([json.dumps(shared).encode() + b"\n", *lines])
    copy = target / "metrics.jsonl"
    if copy.exists() and copy.read_bytes() != metrics:
        raise FileExistsError(f"{target} holds other metrics than those of {folder}; remove it, or move it away")
    target.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(metrics)
    options = {name: "DIR" if name in PATHS and value else value for name, value in run.options.items()}
    (target / "config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    return target


# --- the page


def origin(record: dict) -> str:
    """The card, what drives it, and how the figures came about."""
    e = record["environment"]
    code = f", code {e['code']}" if "code" in e else ""
    versions = ", ".join(f"{name} {version}" for name, version in e["versions"].items())
    return (
        f"{e['device']}, driver {e.get('driver') or 'unknown'}; Python {e['python']}, {versions}; {e['processors']} processors ({e['processor']}). "
        f"Measured on {record['date'][:10]} at commit {e['revision'] or 'unknown'}{code}:\n\n```sh\n{record['command']}\n```"
    )


def page_of(records: Sequence[tuple[str, dict]], runs: Sequence[Run] = ()) -> str:
    """The page, from the files' names and contents, and from training runs."""
    parts = [
        "# Benchmarks on a GPU",
        "Written by `python -m benchmarks.gpu_report` from the files in `benchmarks/results/gpu/`; do not edit. `make bench-gpu` measures, and "
        "writes it anew. Ours and PyTorch's work run in one process, and take turns but for what torch.compile makes.",
    ]
    known = sorted(
        ((name, record) for name, record in records if record.get("benchmark") in SECTIONS),
        key=lambda pair: (list(SECTIONS).index(pair[1]["benchmark"]), pair[1]["environment"]["device"], pair[0]),
    )
    if not known and not runs:
        parts.append("No figure has been measured with these programs yet.")
    if any(record["quick"] for _, record in known):
        parts.insert(1, "**Measured with --quick: these figures show that the benchmarks run, and nothing else.**")
    for name, record in known:
        heading, section = SECTIONS[record["benchmark"]]
        card = record["environment"]["device"].removeprefix("NVIDIA ")
        precision = f", {record['precision']}" if "precision" in record else ""
        side = f", {record['side']}" if "side" in record else ""
        text = section(record) if record["rows"] or "times" in record else "The run was stopped before the first case was measured."
        parts += [f"## {heading}: {card}{precision}{side}", f"{origin(record)}\n\n[Raw figures]({LINK}{name}).", text]
    for run in runs:
        header = run.log.header
        card = str(header.get("device")).removeprefix("CUDA: ").removeprefix("NVIDIA ").partition(" through")[0]
        parts += [f"## A training run: {header['config']} on {header['dataset']}, {card}, {run.options['precision']}", run_section(run)]
    # Those of other programs name what they are, or the command: `tests.gpu.sanitize` writes such.
    others = [
        f"* [{name}]({LINK}{name}): {record.get('benchmark') or record.get('command') or 'unknown'}"
        for name, record in records
        if record.get("benchmark") not in SECTIONS
    ]
    if others:
        parts.append("## Raw figures of other programs\n\n" + "\n".join(others))
    return "\n\n".join(parts) + "\n"


def add_commit(file: Path) -> None:
    """Write the commit into a file that was measured where none was known, if that is the code that is here."""
    text = file.read_text(encoding="utf-8")
    environment, commit = json.loads(text).get("environment", {}), gpu.host()["revision"]
    if environment.get("code") == gpu.code() and environment["revision"] is None and commit and not commit.endswith("+"):
        file.write_text(text.replace('"revision": null', f'"revision": "{commit}"', 1), encoding="utf-8")


def contents(folder: Path) -> tuple[list[tuple[str, dict]], list[Run]]:
    """The files of benchmarks by their names, and the training runs."""
    records = [(file.name, json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]
    return records, [read_run(file.parent) for file in sorted(folder.glob("*/metrics.jsonl"))]


def write(folder: Path, page: Path) -> None:
    """Write the page from the files of a folder."""
    for file in sorted(folder.glob("*.json")):
        add_commit(file)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_of(*contents(folder)), encoding="utf-8")
    print(f"written: {page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=GPU_RESULTS, help="the folder with the JSON files (default: benchmarks/results/gpu)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write (default: docs/benchmarks_gpu.md)")
    parser.add_argument("--run", type=Path, nargs="+", default=[], metavar="RUN", help="folders of training runs to copy to the results first")
    options = parser.parse_args(argv)
    for run in options.run:
        try:
            print(f"copied: {add_run(run, options.results)}")
        except FileExistsError as error:
            raise SystemExit(str(error)) from error
    write(options.results, options.page)


if __name__ == "__main__":
    main()
