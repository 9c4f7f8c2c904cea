"""A training run's section in docs/benchmarks_gpu.md, and how a run comes into the results: two files of those that `conformer train` wrote.

Read before: `gpu_report.py`, whose page it is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.tables import table
from conformer.config import named_config
from conformer.evaluate import HEADS
from conformer.info import count
from conformer.options import TrainConfig
from conformer.run_folder import read_config
from conformer.run_log import RunLog, read_log
from conformer.train import WINDOW

LINK = "../benchmarks/results/gpu/"


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
        ValueError: the run is not of a whole Conformer that was measured on the test images, which the page is of.
    """
    run = read_run(folder)
    header = run.log.header
    if run.options.get("network", "conformer") != "conformer" or run.log.measured != "test":
        what = f"{run.options.get('network', 'conformer')}, measured on {run.log.measured} images"
        raise ValueError(
            f"{folder} is a run of {what}; the page is of whole Conformers and the test images: give a run without --network and --hold-out"
        )
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
