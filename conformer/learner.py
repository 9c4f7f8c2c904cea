"""A network and what trains it; `Learner.train_step` is the recipe.

The mean of the heads' losses, the gradient's norm clipped, AdamW, a warm-up and a cosine, perhaps an average of the weights. Nothing here knows
files or a display. Read next: `conformer/train.py`, which calls this step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from conformer.baselines import Build, builder
from conformer.batches import Batch
from conformer.config import ConformerConfig
from conformer.evaluate import Accuracies, accuracies, heads_of
from conformer.model import parameter_groups
from conformer.options import TrainConfig
from minigrad import functional as F
from minigrad import random
from minigrad.optim import EMA, AdamW, WarmupCosine, clip_grad_norm_
from minigrad.tensor import Tensor

__all__ = ["Learner", "check_loss", "check_weights"]

Note = Callable[[int, Tensor, tuple[Tensor, ...], Tensor], None]
"""What `Learner.update` tells of a part of a step."""


def check_loss(loss: float, step: int, lr: float, on: str = "") -> None:
    """Raise FloatingPointError if the loss of a step (from 1) is not finite; `on` says on which images it is."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss{on} is {loss} at step {step}; a lower --lr (now {lr:g}) or --clip-norm may help")


def check_weights(arrays: Mapping[str, np.ndarray], step: int, lr: float) -> None:
    """Raise FloatingPointError if a weight in `Learner.state()` is not finite: the loss, which is from before a step, does not tell."""
    if not all(np.isfinite(array).all() for name, array in arrays.items() if name.startswith("model.")):
        raise FloatingPointError(f"the weights are not finite after step {step}; a lower --lr (now {lr:g}) or --clip-norm may help")


class Learner:
    """A network as it is before the first step, and its optimiser, schedule and average; makes the seed of `config` the process's.

    Args:
        network: the network's configuration.
        config: the options of the run.
        steps: how many steps the learning rate's schedule is fitted to.
        device: where the network is, "cpu" or "cuda".
        weights: parameters and buffers to begin with, by name; the others are as they are initialised.
        build: makes the network of its configuration, with one head or two (`conformer.evaluate.heads_of`); None makes the one that `config.network`
            names, for images of the usual size.

    Attributes:
        model, optimizer, schedule: as they are after `step` steps.
        ema: the average of the weights, or None.
        step: steps taken.
        learning_rate: of the last of them.
    """

    def __init__(
        self,
        network: ConformerConfig,
        config: TrainConfig,
        steps: int,
        device: str = "cpu",
        weights: Mapping[str, np.ndarray] | None = None,
        build: Build | None = None,
    ):
        random.manual_seed(config.seed)
        self.config = config
        self.model = (build or builder(config.network))(network)
        if weights is not None:  # before the average begins with them
            self.model.load_state_dict({**self.model.state_dict(), **weights})
        self.model = self.model.to(device=device)
        self.optimizer = AdamW(parameter_groups(self.model, config.weight_decay), lr=config.lr)
        self.schedule = WarmupCosine(self.optimizer, steps, int(config.warmup * steps))
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self.step = 0
        self.learning_rate = 0.0

    def begin_step(self) -> float:
        """Set the draws and the learning rate for the next step; returns the rate."""
        random.set_step(self.step)
        self.learning_rate = self.schedule.set(self.step)
        return self.learning_rate

    def update(self, parts: Iterable[tuple[Tensor, Tensor]], note: Note) -> None:
        """What a step does: the gradient of the loss on its images and labels, taken in parts; clipping; the optimiser; the average.

        It looks at no number, so that it may be captured as a CUDA graph (`conformer/gpu_steps.py`). The loss is the mean of the heads' cross
        entropies. Source: Peng et al. 2021, section 3, and the official code's engine.py.

        Args:
            parts: `config.accumulate` equal parts of the batch, images (b, H, W, C) and labels (b,).
            note: is given each part's number, its share of the loss, the heads' logits and the labels, before its gradient is computed.
        """
        config = self.config
        self.optimizer.zero_grad()
        for number, (images, labels) in enumerate(parts):
            heads = heads_of(self.model, images)  # logits of the CNN head and of the transformer head, or of the only one, (b, K) each
            first, *others = (F.cross_entropy(head, labels, label_smoothing=config.label_smoothing) for head in heads)
            loss = sum(others, first) * (1 / len(heads) / config.accumulate)
            note(number, loss, heads, labels)
            loss.backward()
        if config.clip_norm:
            clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update()

    def train_step(self, batch: Batch) -> tuple[float, Accuracies]:
        """Take one step of the optimiser on the CPU; returns the loss and the accuracies on the batch, both from before the step.

        Raises:
            FloatingPointError: the loss is not finite any more.
        """
        total, logits = 0.0, []

        def note(number: int, loss: Tensor, heads: tuple[Tensor, ...], labels: Tensor) -> None:
            nonlocal total
            total += loss.item()
            check_loss(total, self.step + 1, self.config.lr)
            logits.append([head.numpy() for head in heads])

        self.begin_step()
        images, labels = (map(Tensor, np.split(array, self.config.accumulate)) for array in batch)
        self.update(zip(images, labels, strict=True), note)
        self.step += 1
        heads = [np.concatenate(parts) for parts in zip(*logits, strict=True)]  # (B, K) each
        return total, accuracies(heads, batch.labels)

    def state(self) -> dict[str, np.ndarray]:
        """Weights, optimiser and average as arrays called "model.*", "optimizer.*" and "ema.*"; `step` and the draws need no more than its number."""
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ema": self.ema.state_dict() if self.ema else {}}
        return {f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    def load_state(self, arrays: Mapping[str, np.ndarray], step: int, learning_rate: float) -> None:
        """Become what `state` was taken of, after `step` steps."""

        def part(name: str) -> dict[str, np.ndarray]:
            return {key.removeprefix(f"{name}."): array for key, array in arrays.items() if key.startswith(f"{name}.")}

        self.model.load_state_dict(part("model"))
        self.optimizer.load_state_dict(part("optimizer"))
        if self.ema:
            self.ema.load_state_dict(part("ema"))
        self.step, self.learning_rate = step, learning_rate
