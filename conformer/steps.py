"""Taking the steps of a run and saying what each came to, on the CPU; `gpu_steps.py` does the same on the GPU.

A step on the CPU is over when `take` returns. A GPU works behind the host's back, and what a step came to is known some steps later. So `take`
returns the outcomes that have become known, and `finish` waits for the rest. Read next: `conformer/gpu_steps.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from conformer.batches import Batch
from conformer.evaluate import Accuracies
from conformer.learner import Learner
from conformer.prefetch import prefetched

__all__ = ["CpuSteps", "Outcome", "Steps"]


class Outcome(NamedTuple):
    """What a step came to: its number (from 1), loss and accuracies on its images from before it, its learning rate, and how long it took."""

    step: int
    loss: float
    right: Accuracies
    learning_rate: float
    seconds: float


class Steps(Protocol):
    """What `Trainer` asks for a step."""

    def take(self) -> list[Outcome]:
        """Take the next step of the run; returns the outcomes known by now that no call has returned yet.

        Raises:
            FloatingPointError: the loss of a step is not finite.
        """
        ...

    def finish(self) -> list[Outcome]:
        """The outcomes of all steps taken that no call has returned yet; raises as `take` does."""
        ...

    def close(self) -> None:
        """No more steps are taken."""
        ...


class CpuSteps:
    """Steps on batches that a thread makes ahead of time.

    Args:
        learner: takes them.
        batches: those of the steps that are left.
    """

    def __init__(self, learner: Learner, batches: Iterator[Batch]):
        self._learner = learner
        self._batches = prefetched(batches)

    def take(self) -> list[Outcome]:
        """One step; waiting for its batch counts as part of it."""
        began = time.perf_counter()
        loss, right = self._learner.train_step(next(self._batches))
        return [Outcome(self._learner.step, loss, right, self._learner.learning_rate, time.perf_counter() - began)]

    def finish(self) -> list[Outcome]:
        """Nothing: every outcome has been returned."""
        return []

    def close(self) -> None:
        """End the thread."""
        self._batches.close()
