"""Ctrl-C, SIGTERM and a closed terminal while training: the step is finished, the run is saved, and only then does it end.

`StopSignals` notes the first signal; the training loop asks between steps, and raises `Stopped` when all is on the disk. A second signal does
not wait. Read next: `Trainer.run` in `conformer/train.py`, which asks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["StopSignals", "Stopped"]

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
"""Of the last two, Windows knows SIGBREAK alone, which Ctrl-Break sends, and other systems SIGHUP alone, which a closed terminal sends."""


class Stopped(KeyboardInterrupt):
    """The user, or the system, wants the program to end; `signal` is the number of the signal that said so.

    Like KeyboardInterrupt it is no Exception: nothing that handles errors should handle it.
    """

    def __init__(self, signal: int):
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


class StopSignals:
    """`with StopSignals() as signals:` the signals in SIGNALS set `signals.received` instead of ending the program; `check` raises.

    A second signal raises `Stopped` at once, wherever the program is. Signals that were ignored before stay ignored (as under nohup), those
    that the program around Python sees to stay its own, and in a thread other than the main one, where Python allows no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if handler is not signal.SIG_IGN and handler is not None:  # None: not Python's, which could not put it back
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or self.received is not None:
            self.received = number
            raise Stopped(number)
        self.received = number
        if sys.stderr is None:  # the shell has closed it, `2>&-`, and number 2 may be one of our files
            return
        with contextlib.suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, b"\nconformer: finishing this step, then saving (a second Ctrl-C does not wait)\n")

    def check(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.received is not None:
            raise Stopped(self.received)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside this block, which leaves nothing unsaved behind, the first signal does not wait either."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False
