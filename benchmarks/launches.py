"""What a training step launches on a GPU, by name and how often, counted on the emulator: `python -m benchmarks.launches --config cifar-nano`.

Numbers of launches do not depend on the batch but for kernels that are chosen by size; two images are enough to count them.
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

import minigrad
from conformer.config import CONFIGS, named_config
from conformer.data import Dataset, Split
from conformer.gpu_steps import GpuSteps
from conformer.learner import Learner
from conformer.options import TrainConfig


def launches(config: str, side: int = 32) -> tuple[Counter[str], int]:
    """How often a captured step launches what, and how many of the launches are kernels of this project."""
    images = Split(np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8), np.arange(2))
    data = Dataset("noise", tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, images, images, "")
    with minigrad.emulated(build="plain") as device:
        learner = Learner(named_config(config), TrainConfig(batch_size=2, ema=0.99), 1, "cuda")
        learner.model.train()
        steps = GpuSteps(learner, data, batch_size=2, interval=1)
        before = device.launches
        steps.take()
        return Counter(what for what, _, _ in steps._graph._graph._work), device.launches - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="cifar-nano")
    counts, ours = launches(parser.parse_args().config)
    print(f"{counts.total()} launches a step, {ours} of them kernels of ours")
    for name, count in counts.most_common():
        print(f"{count:5}  {name}")


if __name__ == "__main__":
    main()
