"""A network and what trains it; `Learner.train_step` is the recipe.

The mean of both heads' losses, the gradient's norm clipped, AdamW, a warm-up and a cosine, perhaps an average of the weights. Nothing here knows
files or a display. Read next: `conformer/train.py`, which calls this step by step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from conformer.batches import Batch
from conformer.config import ConformerConfig
from conformer.evaluate import Accuracies, accuracies
from conformer.model import Conformer, parameter_groups
from conformer.options import TrainConfig
from minigrad import functional as F
from minigrad import random
from minigrad.optim import EMA, AdamW, WarmupCosine, clip_grad_norm_
from minigrad.tensor import Tensor

__all__ = ["Learner"]


class Learner:
    """A Conformer as it is before the first step, and its optimiser, schedule and average; makes the seed of `config` the process's.

    Args:
        network: the network.
        config: the options of the run.
        steps: how many steps the learning rate's schedule is fitted to.

    Attributes:
        model, optimizer, schedule: as they are after `step` steps.
        ema: the average of the weights, or None.
        step: steps taken.
        learning_rate: of the last of them.
    """

    def __init__(self, network: ConformerConfig, config: TrainConfig, steps: int):
        random.manual_seed(config.seed)
        self.config = config
        self.model = Conformer(**asdict(network))
        self.optimizer = AdamW(parameter_groups(self.model, config.weight_decay), lr=config.lr)
        self.schedule = WarmupCosine(self.optimizer, steps, int(config.warmup * steps))
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self.step = 0
        self.learning_rate = 0.0

    def train_step(self, batch: Batch) -> tuple[float, Accuracies]:
        """Take one step of the optimiser; returns the loss and the accuracies on the batch, both from before the step.

        The loss is the mean of both heads' cross entropies. Source: Peng et al. 2021, section 3, and the official code's engine.py.

        Raises:
            FloatingPointError: the loss is not finite any more.
        """
        config = self.config
        random.set_step(self.step)
        self.learning_rate = self.schedule.set(self.step)
        self.optimizer.zero_grad()
        value, heads = 0.0, []
        for images, labels in zip(*(np.split(array, config.accumulate) for array in batch), strict=True):
            logits = self.model(Tensor(images))  # of the CNN head and of the transformer head, (B / accumulate, K) each
            losses = [F.cross_entropy(head, labels, label_smoothing=config.label_smoothing) for head in logits]
            loss = (losses[0] + losses[1]) * (0.5 / config.accumulate)
            value += loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {self.step + 1}; a lower --lr (now {config.lr:g}) or --clip-norm may help")
            loss.backward()
            heads.append([head.numpy() for head in logits])
        if config.clip_norm:
            clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        self.step += 1
        cnn, transformer = (np.concatenate(parts) for parts in zip(*heads, strict=True))  # (B, K)
        return value, accuracies(cnn, transformer, batch.labels)

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
