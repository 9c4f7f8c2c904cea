"""How the emulated device is set up, what it counts, and the graph it is recording, if it is.

Read next: `arrays.py`.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minigrad.backend.emulator import launch
from minigrad.backend.emulator.memory import Block, Memory

__all__ = [
    "DeviceSynchronized", "Graph", "State", "allocate", "allow_synchronize", "captured_values_unknown", "current", "memory", "submit", "synchronise",
    "use",
]  # fmt: skip


class Graph:
    """What was submitted between `begin_capture` and `end_capture`, to be done again on the same memory. CuPy: `cupy.cuda.Graph`.

    It keeps addresses, not arrays, as a CUDA graph does: `launch` raises RuntimeError if an array it uses has been freed.
    """

    def __init__(self) -> None:
        self._work: list[tuple[str, Callable[[], Any], list[weakref.ref[Block]]]] = []

    def launch(self, stream: Any = None) -> None:
        """Do everything that was captured, in the same order."""
        for what, _, blocks in self._work:
            if any(reference() is None for reference in blocks):
                raise RuntimeError(f"Graph.launch: {what} uses an array that has been freed since it was captured")
        for _, action, _ in self._work:
            action()
        _current.graph_launches += 1


class State:
    """The emulated device.

    build: see compiler.py. orders: every launch runs once in each, see launch.ORDERS. seconds: how long a launch may take in the check build. The
    other attributes count what happened: kernel launches, launches of graphs, allocations, `synchronisations`, the times the host waited for the
    device. `wasteful` lists the launches of the check build with blocks or shared memory that nothing came of, as (kernel, Waste) pairs.
    """

    def __init__(self, build: str = "check", orders: Sequence[str] = ("ascending",)):
        self.build, self.orders = build, tuple(orders)
        self.seconds = 30.0
        self.launches = self.graph_launches = self.allocations = self.synchronisations = 0
        self.wasteful: list[tuple[str, launch.Waste]] = []
        self.capturing: Graph | None = None
        self.may_wait = True  # see `allow_synchronize`
        self.unknown = False  # whether values are looked at for their shape alone, see `captured_values_unknown`
        self.pool: list[Block] | None = None  # the blocks of the memory pool in use, if it is not the common one


_current = State()


def current() -> State:
    """The device as it is set up now."""
    return _current


def use(state: State) -> State:
    """Set the device up in another way; returns what it was before."""
    global _current
    before, _current = _current, state
    return before


def memory() -> Memory:
    """The device's memory."""
    return launch.core().memory


def allocate(nbytes: int) -> Block:
    """A block of device memory.

    Raises RuntimeError while a graph is captured, but for blocks from a pool of one's own: those of the common pool go to others once their array is
    gone, and the graph would still write there.
    """
    if _current.capturing is not None and _current.pool is None:
        raise RuntimeError(
            "an array is allocated while a graph is captured: allocate results before, and write into them (out=, x[...] = y), or capture with a "
            "memory pool of its own (using_allocator)"
        )
    _current.allocations += 1
    block = launch.core(_current.build).memory.allocate(nbytes)
    if _current.capturing is not None and _current.pool is not None:
        _current.pool.append(block)
    return block


class DeviceSynchronized(RuntimeError):
    """The host waited where `allow_synchronize` forbids it. CuPy: `cupyx.DeviceSynchronized`."""


@contextmanager
def allow_synchronize(allow: bool) -> Iterator[None]:
    """Let what CuPy takes for waiting raise DeviceSynchronized in this block, or not. CuPy: `cupyx.allow_synchronize`; it warns at every use too."""
    warnings.warn("cupyx.allow_synchronize: it is deprecated, and does not notice everything that waits", stacklevel=3)
    device = _current
    before, device.may_wait = device.may_wait, allow
    try:
        yield
    finally:
        device.may_wait = before


def synchronise(what: str, noticed: bool = True) -> None:
    """Count that the host waits for the device. Raises RuntimeError while a graph is captured: nothing has been computed yet.

    noticed: whether `allow_synchronize` sees it: of streams and events, CuPy's does not.
    """
    if _current.capturing is not None:
        raise RuntimeError(f"{what} waits for the device while a graph is captured")
    if noticed and not _current.may_wait:
        raise DeviceSynchronized(f"{what} waits for the device, which is forbidden here")
    _current.synchronisations += 1


@contextmanager
def captured_values_unknown() -> Iterator[None]:
    """While a graph is captured, what is computed in this block is computed for its shape: reading what has not been written is no fault."""
    device = _current
    device.unknown = device.capturing is not None
    try:
        yield
    finally:
        device.unknown = False


def submit(what: str, action: Callable[[], Any], blocks: Iterable[Block]) -> None:
    """Do something on the device: now, or, while a graph is captured, whenever the graph is launched."""
    if _current.capturing is None:
        action()
    else:
        _current.capturing._work.append((what, action, [weakref.ref(block) for block in blocks]))
