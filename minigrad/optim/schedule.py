"""Learning rate over the steps: a pure function of the step, and an object that writes it into an optimiser's groups."""

from __future__ import annotations

import math

from minigrad.optim.optimizer import Optimizer
from minigrad.pytorch_names import OF_SCHEDULES, advising

__all__ = ["WarmupCosine", "warmup_cosine"]


def warmup_cosine(step: int, total: int, warmup: int, lr: float, min_lr: float = 0.0) -> float:
    """The learning rate of one step: a straight line up to `lr`, then half a cosine down to `min_lr`.

        lr * (step + 1) / (warmup + 1)                                                             step <= warmup
        min_lr + (lr - min_lr) * (1 + cos(pi * (step - warmup) / (total - warmup))) / 2            after it

    Args:
        step: counts from 0; steps `total` and later get `min_lr`.
        total: how many steps there are.
        warmup: how many come before the one at `lr` itself.
        lr: the largest rate. min_lr: the rate at the end.

    Returns:
        The rate, above 0 already at step 0.

    Raises:
        ValueError: `step` is negative, or `warmup` is not from 0 to below `total`.

    Source: Loshchilov and Hutter 2017, "SGDR", eq. 5; Goyal et al. 2017, sec. 2.2 (warm-up)
    """
    if step < 0 or not 0 <= warmup < total:
        raise ValueError(f"warmup_cosine: step {step}, warmup {warmup}, total {total}; needed are step >= 0 and 0 <= warmup < total")
    if step <= warmup:
        return lr * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / (total - warmup), 1.0)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * progress)) / 2


@advising(OF_SCHEDULES)
class WarmupCosine:
    """Sets the learning rate of every group of an optimiser by `warmup_cosine`; the rate a group has at first is its largest.

    That rate is kept in the group as "initial_lr", hence in the optimiser's state_dict; the schedule has no state of its own. After `set(step)` a
    resumed run has the rates of the unbroken one.

    A second schedule of the same optimiser, say for a second stage, begins anew with the same largest rates; where a group's "lr" was changed by hand
    since a schedule set it (or since it was loaded), that is its largest rate from then on. To write "initial_lr" itself does the same outright.
    A running schedule does not look at what is written into "lr": the next `set` replaces it.

    Args:
        optimizer: whose groups to set; they get the rate of step 0 at once. One that is added later keeps its own until the next `set`.
        total, warmup, min_lr: as for `warmup_cosine`; the rates of all groups end at `min_lr`, also of one that has a smaller rate from the start.
    """

    def __init__(self, optimizer: Optimizer, total: int, warmup: int, min_lr: float = 0.0):
        self.optimizer, self.total, self.warmup, self.min_lr = optimizer, total, warmup, min_lr
        # Here alone, not in `set`: programs that scale what `set` wrote, group by group, do so at every step, and mean no new largest rate.
        for group in optimizer.param_groups:
            if group["lr"] != group.get("scheduled_lr", group["lr"]):
                group["initial_lr"] = group["lr"]
        self.set(0)

    def __repr__(self) -> str:
        return f"WarmupCosine({type(self.optimizer).__name__}, total={self.total}, warmup={self.warmup}, min_lr={self.min_lr})"

    def set(self, step: int) -> float:
        """Set the rates for `step` (from 0), before that step is taken; returns the first group's."""
        for group in self.optimizer.param_groups:
            largest = group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["scheduled_lr"] = warmup_cosine(step, self.total, self.warmup, largest, self.min_lr)
        return self.optimizer.param_groups[0]["lr"]
