"""A run that is killed with -9 again and again ends in the weights of a run that was left alone, bit for bit.

A small Conformer is trained on a generated folder in CIFAR-10's format: once without a break, then in processes that are killed at random
moments and resumed with `--resume`. Then the weights of both (last, best and averaged, and the checkpoint with the optimiser's state) are compared
byte for byte, and their metrics.jsonl line for line (but for times).

    python benchmarks/kill_and_resume.py [--kills 20] [--seed 0]

Prints where every kill hit, and the outcome; the exit status is 0 if nothing differs. Takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from conformer import cli
from conformer.config import CONFIGS
from minigrad import safetensors_io

TIMES = {"images_per_second", "seconds", "resumed", "started"}
WEIGHTS = "last", "best", "ema", "checkpoint"


def child(arguments: list[str]) -> int:
    """The command line with a network of milliseconds a step."""
    CONFIGS["tiny"] = replace(CONFIGS["cifar-nano"], channel_ratio=0.25, embed_dim=16, depth=3, num_heads=2, stem_channels=8)
    return cli.main(arguments)


def write_images(folder: Path, records: int) -> None:
    """A folder in CIFAR-10's binary layout; each class has a colour of its own under noise."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (10, 3, 1))
    folder.mkdir(parents=True)
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        labels = generator.integers(0, 10, records)
        planes = np.clip(colours[labels] + generator.normal(0, 60, (records, 3, 1024)), 0, 255)
        np.concatenate([labels[:, None], planes.reshape(records, 3072)], axis=1).astype(np.uint8).tofile(folder / name)


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    """A process that trains; what it says goes to `log`."""
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, __file__, "--child", *arguments], stdout=file, stderr=subprocess.STDOUT)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times, and without the lines that say that the run was resumed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines if "resumed" not in line]


def compare(one: Path, other: Path) -> list[str]:
    """What differs between two runs; nothing, it is hoped."""
    wrong = []
    for name in WEIGHTS:
        states = [safetensors_io.load_state(run / f"{name}.safetensors")[0] for run in (one, other)]
        if states[0].keys() != states[1].keys():
            wrong.append(f"{name}: other names")
            continue
        differ = [key for key in states[0] if states[0][key].tobytes() != states[1][key].tobytes()]
        if differ:
            wrong.append(f"{name}: {len(differ)} of {len(states[0])} arrays, {differ[0]} first")
        else:
            print(f"  {name}.safetensors: {len(states[0])} arrays, {sum(array.nbytes for array in states[0].values()):,} bytes, identical")
    lines = [metrics(run) for run in (one, other)]
    if lines[0] != lines[1]:
        wrong.append(f"metrics.jsonl: {len(lines[0])} and {len(lines[1])} lines")
    else:
        print(f"  metrics.jsonl: {len(lines[0])} lines, identical but for times")
    return wrong


def main(kills: int, seed: int, epochs: int, records: int) -> int:
    """Train, train with kills, compare."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", records)
        options = ["--config", "tiny", "--data-dir", str(folder / "images"), "--batch-size", "16", "--epochs", str(epochs), "--ema", "0.9"]
        options += ["--drop-path", "0.2", "--log-every", "5", "--checkpoint-steps", "7"]
        whole, broken, log = folder / "whole", [folder / "broken-1"], folder / "log"

        began = time.perf_counter()
        if start(["train", *options, "--out", str(whole)], log).wait():
            print(log.read_text())
            return 1
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        start(["info"], log).wait()
        idle = time.perf_counter() - began  # of starting Python: a kill before anything is written shows nothing
        training = max(seconds - idle, 0.1)
        print(f"the unbroken run took {seconds:.1f} s, {idle:.1f} s of them to start", flush=True)

        done = 0
        while done < kills:
            run = broken[-1]
            resumed = (run / "config.json").exists()
            process = start(["train", "--resume", str(run)] if resumed else ["train", *options, "--out", str(run)], log)
            delay = idle * 0.9 + draw.random() * training * 2 / kills
            try:
                status = process.wait(delay)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                done += 1
                print(f"kill {done:2} after {delay:5.2f} s: {where(run)}", flush=True)
                continue
            if status:
                print(log.read_text())
                return 1
            print("finished; the next kills are for another run", flush=True)
            broken.append(folder / f"broken-{len(broken) + 1}")
        wrong = []
        for run in broken:
            if start(["train", "--resume", str(run)] if run.exists() else ["train", *options, "--out", str(run)], log).wait():
                print(log.read_text())
                return 1
            print(f"{run.name}, resumed to its end:")
            wrong += compare(whole, run)
            remnants = [path.name for path in run.glob(".*")]
            wrong += [f"left behind: {remnants}"] if remnants else []
        print("\n".join(f"  DIFFERS {line}" for line in wrong) or f"bit-identical after {done} kills")
        return bool(wrong)


def where(run: Path) -> str:
    """What is in a run folder whose process was killed."""
    if not (run / "checkpoint.safetensors").exists():
        return "no checkpoint yet"
    saved = json.loads(safetensors_io.load_state(run / "checkpoint.safetensors")[1]["checkpoint"])
    lines = len((run / "metrics.jsonl").read_text().splitlines())
    half = ", ".join(path.name for path in run.glob(".*.tmp"))
    evaluated = "" if saved["evaluated"] == saved["step"] or saved["step"] % 25 else ", not evaluated"
    return f"step {saved['step']} of {saved['steps']} is saved{evaluated}, {lines - saved['lines']} lines logged after it" + (
        half and f", half-written {half}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--epochs", type=int, default=12, help="of the run (default: 12)")
    parser.add_argument("--records", type=int, default=80, help="images in each of the six files (default: 80)")
    sys.exit(main(**vars(parser.parse_args())))
