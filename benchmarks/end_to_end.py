"""Images a second of a whole training run against those of the bare step: what reading, shuffling, augmenting and writing cost.

    make bench BENCH=end_to_end ARGS="[--configs cifar-nano] [--data-dir DIR] [--steps 60] [--quick]"

On our side the run is the command `conformer train` in a process of its own, and its speed what it writes to metrics.jsonl; on PyTorch's it is
`torch_train.py`. The bare step takes the same images again and again (`step.py`), before the run and after it, in one turn. Without --data-dir the
images are coupling10's, written in CIFAR-10's binary layout, so that both sides read the same files and nothing is downloaded. Evaluation is not
counted on either side.
Read next: `networks.py`, the bare step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import measure
from benchmarks.files import ROOT
from benchmarks.machine import cpu_times, noise
from benchmarks.networks import training_step
from benchmarks.records import save
from benchmarks.sides import Side, timed
from benchmarks.step import WARM_UP
from conformer import coupling10

NAME = "end_to_end"
SIDES = ["minigrad", "torch-channels-last", "torch-tuned"]


def write_images(folder: Path, records: int) -> None:
    """coupling10 in CIFAR-10's binary layout: five training files and a small one to test on."""
    files = [(f"data_batch_{number}.bin", records) for number in range(1, 6)] + [("test_batch.bin", min(records, 500))]
    for seed, (name, count) in enumerate(files):
        images, labels = coupling10.generate(count, seed)
        planes = images.transpose(0, 3, 1, 2).reshape(count, 3072)
        np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1).tofile(folder / name)


def run_ours(case: dict) -> list[float]:
    """Images a second of `conformer train`, from each line that it logged but the first."""
    with tempfile.TemporaryDirectory() as folder:
        run, every = Path(folder, "run"), max(1, case["steps"] // 10)
        options = ["--config", case["config"], "--dataset", "cifar10", "--data-dir", case["data_dir"], "--out", str(run)]
        options += ["--batch-size", str(case["batch"]), "--max-steps", str(case["steps"]), "--log-every", str(every)]
        _run(["-m", "conformer", "train", *options])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["images_per_second"] for line in lines if "images_per_second" in line and "step" in line][1:]


def run_torch(case: dict) -> list[float]:
    """Images a second of `torch_train.py`."""
    options = ["--config", case["config"], "--data-dir", case["data_dir"], "--max-steps", str(case["steps"]), "--batch-size", str(case["batch"])]
    lines = _run(["-m", "benchmarks.torch_train", "--no-test", *options]).splitlines()
    return [1e3 * case["batch"] / json.loads(lines[-1])["ms_per_step"]]


def _run(command: list[str]) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} ended with status {done.returncode}: {' '.join(done.stderr.split()[-30:])}")
    return done.stdout


def answer(side: Side, request: dict) -> dict:
    """One turn: the bare step, the whole run, the bare step again; `whole_of_bare` is the run's speed in the bare step's."""
    case, step = request["case"], training_step(side, {**request["case"], "size": 32})
    before, cpu = cpu_times(), sum(os.times()[:4])

    def bare() -> float:
        samples = timed(step, request["seconds"], request["least"], WARM_UP)
        return 1e3 * case["batch"] / median(samples["wall_ms"])

    first = bare()
    speeds = {"minigrad": run_ours, "torch": run_torch}[side.framework](case)
    both = [first, bare()]
    return {
        "train_images_per_second": [round(speed, 2) for speed in speeds],
        "bare_images_per_second": [round(speed, 2) for speed in both],
        "whole_of_bare": [round(median(speeds) / median(both), 4)],
        **noise(before, sum(os.times()[:4]) - cpu),  # with that of the run, a child
    }


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=3, seconds=2.0, configs=["cifar-nano"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=60, help="of each whole run (default: 60)")
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10, binary version: the folder with data_batch_1.bin (default: generated images)")
    options = measure.parse(parser, argv, answer)
    if options.quick:
        options.batch_size, options.steps = 2, 4
    with tempfile.TemporaryDirectory() as folder:
        if options.data_dir is None:
            write_images(Path(folder), 10 if options.quick else 2000)
        data_dir = str((options.data_dir or Path(folder)).resolve())
        cases = [{"config": config, "batch": options.batch_size, "steps": options.steps, "data_dir": data_dir} for config in options.configs]
        rows = measure.interleaved(NAME, cases, options, fresh=True)
    for row in rows:
        row["case"] = {**row["case"], "data_dir": "DIR" if options.data_dir else "coupling10"}  # a path of this machine says nothing
    save(NAME, rows, options, argv)


if __name__ == "__main__":
    main()
