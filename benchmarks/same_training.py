"""Is it the same training? Our Conformer and PyTorch's from the same weights, on the same batches, step by step.

Two accuracies at the end of two runs do not say it: each run is one draw, and rounding drives even the same draw apart, since every step multiplies
the differences of the steps before. So a third training is the yardstick: PyTorch's once more, from weights moved in their last binary place. Ours
rounds otherwise than PyTorch in every operation of every step, so it may be some times as far from PyTorch's as that one, which was moved once. The
two distances growing alike, from the last place on, is what the same training looks like; a mistake in the recipe is there from its first step on.

    python -m benchmarks.same_training --data-dir DIR --epochs 1 --steps 400 --batch-size 32 --dtype float64 --out same-training-float64.jsonl

The recipe, the augmentation and the order of the images are those of `python -m conformer train`, whose `Learner` takes our steps. PyTorch's are
taken as in `torch_train.py`, with its own schedule, clipping and AdamW. Writes JSON lines: the setting; the loss of each step in the three
trainings; and at the end how many of the test images the sum of both heads gets right.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.torch_model import TorchConformer, loss_of, optimizer_of
from benchmarks.torch_train import schedule
from conformer.augment import normalize
from conformer.batches import Batch, batches
from conformer.config import ConformerConfig, named_config
from conformer.data import Dataset, load
from conformer.evaluate import evaluate
from conformer.learner import Learner
from conformer.options import TrainConfig

TRAININGS = "minigrad", "PyTorch", "PyTorch, weights moved"


class TorchLearner:
    """What `conformer.learner.Learner` does on the CPU, in PyTorch, beginning with the arrays `weights`."""

    def __init__(self, network: ConformerConfig, config: TrainConfig, steps: int, weights: dict[str, np.ndarray], dtype: torch.dtype):
        self.config, self.dtype = config, dtype
        self.model = TorchConformer(network).to(dtype=dtype, memory_format=torch.channels_last)
        self.model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
        self.optimizer = optimizer_of(self.model, config.lr, config.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: schedule(step, steps))

    def images(self, array: np.ndarray) -> torch.Tensor:
        """(B, H, W, C) as PyTorch counts the axes; in memory nothing moves, as that is its channels_last."""
        return torch.from_numpy(array).to(self.dtype).permute(0, 3, 1, 2)

    def train_step(self, batch: Batch) -> float:
        """Take one step; returns the loss from before it."""
        labels = torch.from_numpy(batch.labels)
        loss = loss_of(self.model.train()(self.images(batch.images)), labels, self.config.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    @torch.no_grad()
    def right(self, dataset: Dataset, batch_size: int = 500) -> int:
        """How many test images the sum of both heads gets right."""
        images, labels = dataset.test.images, dataset.test.labels
        self.model.eval()
        total = 0
        for start in range(0, len(images), batch_size):
            heads = self.model(self.images(normalize(images[start : start + batch_size], dataset.mean, dataset.std)))
            total += int((sum(heads).argmax(1).numpy() == labels[start : start + batch_size]).sum())
        return total


def moved(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every float up or down to the next that there is, by chance."""
    if array.dtype.kind != "f":
        return array
    return np.nextafter(array, generator.choice([-np.inf, np.inf], array.shape).astype(array.dtype))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 is; without it, as `python -m conformer train` looks for it")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--config", default="cifar-nano")
    parser.add_argument("--epochs", type=int, default=20, help="what the learning rate's schedule is fitted to")
    parser.add_argument("--steps", type=int, default=400, help="how many of these epochs' steps are taken")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)

    dataset = load(options.dataset, options.data_dir)
    config = TrainConfig(config=options.config, seed=options.seed, batch_size=options.batch_size)
    network = named_config(options.config)
    steps = options.epochs * (len(dataset.train) // options.batch_size)
    ours = Learner(network, config, steps)
    ours.model.to(dtype=options.dtype)
    weights = ours.model.state_dict()
    generator = np.random.default_rng(options.seed)
    theirs = [
        TorchLearner(network, config, steps, given, getattr(torch, options.dtype))
        for given in (weights, {name: moved(array, generator) for name, array in weights.items()})
    ]
    made = chain.from_iterable(batches(dataset, options.batch_size, epoch) for epoch in count())

    with open(options.out, "w", encoding="utf-8") as file:

        def say(**fields: object) -> None:
            print(json.dumps(fields), file=file, flush=True)

        say(trainings=TRAININGS, **{**vars(options), "data_dir": None, "out": None}, schedule=steps, torch=torch.__version__, numpy=np.__version__)
        began = time.perf_counter()
        for step, batch in enumerate(islice(made, options.steps), 1):
            mine = Batch(batch.images.astype(options.dtype), batch.labels)
            losses = [ours.train_step(mine)[0], *[learner.train_step(batch) for learner in theirs]]
            say(step=step, losses=losses)
            if step % 10 == 0 or step == options.steps:
                print(f"step {step}, {time.perf_counter() - began:.0f} s: {', '.join(map(repr, losses))}", flush=True)
        right = evaluate(ours.model.to(dtype="float32"), dataset.test, dataset).accuracies.sum
        say(test_images=len(dataset.test), right=[round(right * len(dataset.test)), *[learner.right(dataset) for learner in theirs]])


if __name__ == "__main__":
    main()
