"""What can go wrong in a kernel, as exceptions. Each says which kernel, block, thread and source line.

Read next: `launch.py`, which raises them.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

__all__ = [
    "AssertionFailed", "BarrierFault", "DataRace", "KernelFault", "NotRepeatable", "OutOfBounds", "OutOfTime", "UndefinedBehaviour",
    "UninitialisedRead", "lines_at",
]  # fmt: skip


class KernelFault(RuntimeError):
    """A kernel did what it must not.

    Attributes:
        kernel: its name. block, thread: `blockIdx` and `threadIdx` of who was found out.
        file, line: where in the CUDA source; None where it is not known.
        trace: the same for the calls that lead there, innermost first: (file, line) pairs.
    """

    kernel: str = ""
    block: tuple[int, int, int] = (0, 0, 0)
    thread: tuple[int, int, int] = (0, 0, 0)
    file: str | None = None
    line: int | None = None
    trace: tuple[tuple[str, int], ...] = ()


class OutOfBounds(KernelFault):
    """An access to memory that belongs to no array."""


class UninitialisedRead(KernelFault):
    """A read of memory that nobody has written."""


class DataRace(KernelFault):
    """Two threads use one word, at least one of them writes, and no barrier says who is first."""


class BarrierFault(KernelFault):
    """Threads wait at a barrier that cannot open: some have returned, wait elsewhere, or are not named in a mask."""


class UndefinedBehaviour(KernelFault):
    """C++ does not say what happens: an index outside an array's type, a misaligned vector, an integer that overflows, a shift too far."""


class AssertionFailed(KernelFault):
    """An `assert` in the kernel."""


class OutOfTime(KernelFault):
    """The launch takes too long; a thread that waits for another block, for example, waits for ever here."""


class NotRepeatable(KernelFault):
    """The results depend on the order in which threads or blocks happen to run."""


BY_NUMBER = (KernelFault, OutOfBounds, UninitialisedRead, DataRace, BarrierFault, UndefinedBehaviour, AssertionFailed, OutOfTime)  # Fault in core.h


@functools.lru_cache(maxsize=256)
def lines_at(library: Path, offset: int) -> tuple[tuple[str, int], ...]:
    """The (file, line) pairs of a place in a library, innermost inlined function first; empty where it has none, or addr2line is missing."""
    program = shutil.which("addr2line")
    if program is None:
        return ()
    done = subprocess.run([program, "-i", "-e", str(library), hex(offset)], capture_output=True, encoding="utf-8", errors="replace")
    found = []
    for line in done.stdout.splitlines():
        file, _, number = line.partition(" (discriminator ")[0].rpartition(":")
        if number.isdecimal() and Path(file).name != "device.h":
            found.append((Path(file).name, int(number)))
    return tuple(found)
