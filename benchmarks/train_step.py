"""One training step of cifar-nano, ours beside plain PyTorch's: milliseconds, in turns, each in a process of its own.

    make bench BENCH=train_step ARGS="--data-dir DIR [--out FILE]"

A step is everything from choosing the images to the optimiser's update, batch 128, with as many threads as there are processors. The other side is
`torch_cifar_nano.py` (channels_last, default memory allocator). Each round runs both; the figures are medians over the steps of a round, then over
the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETTLED = 10  # steps not counted at the start of each process


def ours(data_dir: Path, steps: int) -> float:
    """Median milliseconds of a step of `conformer train`."""
    from conformer.batches import batches
    from conformer.options import TrainConfig
    from conformer.train import Trainer
    from minigrad.backend.cpu import keep_freed_memory

    keep_freed_memory()  # as `Trainer.run` does
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(TrainConfig(data_dir=data_dir, out=Path(folder, "run")))
        trainer.learner.model.train()
        times, began = [], time.perf_counter()
        for batch in islice(batches(trainer.dataset, trainer.config.batch_size, 0), steps):
            trainer.learner.train_step(batch)
            now = time.perf_counter()
            times.append(now - began)
            began = now
    return 1e3 * statistics.median(times[SETTLED:])


def run(command: list[str]) -> float:
    """The `ms_per_step` in the last line that a command prints."""
    lines = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()
    return json.loads(lines[-1])["ms_per_step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10, binary version: the extracted folder or its parent")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--ours", action="store_true", help="one run of our side alone (what each round calls)")
    options = parser.parse_args()
    if options.ours:
        print(json.dumps({"ms_per_step": round(ours(options.data_dir, options.steps), 1)}))
        return
    arguments = ["--data-dir", str(options.data_dir.resolve())]
    rounds = []
    for number in range(options.rounds):
        a = run(["benchmarks/train_step.py", "--ours", *arguments, "--steps", str(options.steps)])
        b = run(["benchmarks/torch_cifar_nano.py", *arguments, "--max-steps", str(options.steps)])
        rounds.append({"ours_ms": a, "torch_ms": b})
        print(f"round {number + 1}: ours {a:.1f} ms, PyTorch {b:.1f} ms, ratio {a / b:.2f}", flush=True)
    ratio = statistics.median(r["ours_ms"] / r["torch_ms"] for r in rounds)
    medians = {side: statistics.median(r[side] for r in rounds) for side in ("ours_ms", "torch_ms")}
    print(f"median: ours {medians['ours_ms']:.1f} ms, PyTorch {medians['torch_ms']:.1f} ms, ratio {ratio:.2f}")
    if options.out:
        command = 'make bench BENCH=train_step ARGS="--data-dir DIR"'
        machine = {"date": datetime.date.today().isoformat(), "machine": platform.machine(), "python": platform.python_version(), "command": command}
        options.out.write_text(json.dumps({**machine, **medians, "median_ratio": round(ratio, 3), "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
