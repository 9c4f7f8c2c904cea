"""What a training run shows of itself: a `Progress` after each step, and a `Display` that decides what to do with it.

`Display` prints lines, which is right for a log file and for any program that reads them; `conformer/live_display.py` has one that rewrites
a line of a terminal. Read next: `conformer/train.py`, which makes the Progress.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import NamedTuple

from conformer.evaluate import Accuracies
from conformer.text import printable

__all__ = ["Display", "Progress"]


class Progress(NamedTuple):
    """Where a run stands after a step. Accuracies and loss of training are means over the last steps, on the augmented batches."""

    step: int
    steps: int
    epoch: float
    loss: float
    train: Accuracies
    test: Accuracies | None  # of the last evaluation
    learning_rate: float
    images_per_second: float
    seconds_left: float
    measured: str = "test"  # or "held-out": what images `test` is of

    @property
    def left(self) -> timedelta:
        """Time left, in whole seconds: 1:07:30. It is at most what a timedelta has, which a billion epochs may take longer than."""
        return timedelta(seconds=min(round(self.seconds_left), timedelta.max // timedelta(seconds=1)))

    def __str__(self) -> str:
        test = f"  {self.measured} {self.test} %" if self.test else ""
        return (
            f"step {self.step}/{self.steps}  epoch {self.epoch:.2f}  {self.left} left  loss {self.loss:.3f}  train {self.train} %{test}  "
            f"lr {self.learning_rate:.2g}  {self.images_per_second:.0f} images/s"
        )


class Display:
    """Shows a run as lines of text: every message, and the progress every `seconds` seconds. `conformer/live_display.py` has one for
    terminals.
    """

    def __init__(self, seconds: float = 10.0):
        self.seconds = seconds
        self._next = 0.0

    def message(self, text: str) -> None:
        """Print a line that stays, names in it of whatever is in them; raises OSError, which says what could not be written, where that is so."""
        try:
            print(printable(text), flush=True)
        except OSError as error:
            raise OSError(error.errno, f"the output cannot be written: {error.strerror or error}") from error

    def progress(self, progress: Progress) -> None:
        """Take note of a step; print where the run stands if it is time, or the last step."""
        now = time.monotonic()
        if now >= self._next or progress.step == progress.steps:
            self._next = now + self.seconds
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        self.message(str(progress))

    def close(self) -> None:
        """The run is over, or was broken off."""
