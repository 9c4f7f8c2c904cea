"""`cupy.cuda` of the stand-in: streams that run everything at once and in order, events, pinned memory, and the capture of graphs.

Source: https://docs.cupy.dev/en/stable/reference/cuda.html
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from minigrad.backend.emulator.state import Graph, current, synchronise

__all__ = ["Device", "Event", "MemoryPool", "Stream", "cuda"]


class Stream:
    """An order in which work is done. There is one device and it is never behind, so the streams of the emulator differ in name only."""

    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False):
        self.is_null = null

    def __enter__(self) -> Stream:
        _streams.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _streams.pop()

    def use(self) -> Stream:
        """Make this the current stream."""
        _streams[-1] = self
        return self

    def synchronize(self) -> None:
        """Wait until everything is done."""
        synchronise("Stream.synchronize()", noticed=False)

    def record(self, event: Event | None = None) -> Event:
        """Note the present place in the stream."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Let what comes later wait for the event."""

    def begin_capture(self, mode: int | None = None) -> None:
        """From now on nothing is done; it is noted down for a graph."""
        if self.is_null:
            raise RuntimeError("begin_capture: the default stream cannot be captured; make one with Stream(non_blocking=True) and use it")
        if get_current_stream() is not self:
            raise RuntimeError("begin_capture: work goes to another stream; enter this one first (`with stream:`)")
        if current().capturing is not None:
            raise RuntimeError("begin_capture: a graph is being captured already")
        current().capturing = Graph()

    def end_capture(self) -> Graph:
        """The graph of everything since `begin_capture`."""
        graph, current().capturing = current().capturing, None
        if graph is None:
            raise RuntimeError("end_capture: no graph is being captured")
        return graph

    def is_capturing(self) -> bool:
        """Whether a graph is being captured."""
        return current().capturing is not None


class Event:
    """A moment in a stream. Times are the emulator's own and say nothing about a GPU."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False):
        self.seconds = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Note the moment."""
        self.seconds = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether the moment has passed; asks, and does not wait."""
        return True

    def synchronize(self) -> None:
        """Wait until the moment has passed."""
        synchronise("Event.synchronize()", noticed=False)


class Device:
    """The only device there is."""

    def __init__(self, device: int = 0):
        if device:
            raise RuntimeError(f"the emulator has device 0 only, not {device}")
        self.id = 0
        self.compute_capability = "80"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    __hash__ = object.__hash__

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def use(self) -> None:
        """Make this the current device."""

    def synchronize(self) -> None:
        """Wait until everything is done."""
        synchronise("Device.synchronize()")


Stream.null = Stream(null=True)
_streams = [Stream.null]


def get_current_stream() -> Stream:
    """Where work goes."""
    return _streams[-1]


def get_elapsed_time(start: Event, end: Event) -> float:
    """Milliseconds between two events."""
    return (end.seconds - start.seconds) * 1e3


class MemoryPool:
    """Device memory for those who allocate from it alone. CuPy's hands freed blocks out again, this one keeps what a captured graph was given."""

    def __init__(self) -> None:
        self.blocks: list[Any] = []

    def malloc(self, size: int) -> Any:
        """What `using_allocator` is given; arrays come from this pool inside it."""
        raise NotImplementedError("the emulator's MemoryPool allocates for arrays only: with using_allocator(pool.malloc): ...")


@contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    """Arrays made in this block come from the pool whose `malloc` is given."""
    device = current()
    before, device.pool = device.pool, allocator.__self__.blocks
    try:
        yield
    finally:
        device.pool = before


def alloc_pinned_memory(nbytes: int) -> bytearray:
    """Host memory that a GPU could copy from while the host goes on."""
    return bytearray(nbytes)


cuda = SimpleNamespace(
    Stream=Stream, Event=Event, Device=Device, Graph=Graph, get_current_stream=get_current_stream, get_elapsed_time=get_elapsed_time,
    MemoryPool=MemoryPool, using_allocator=using_allocator, alloc_pinned_memory=alloc_pinned_memory, is_available=lambda: True,
    runtime=SimpleNamespace(getDeviceCount=lambda: 1, deviceSynchronize=lambda: synchronise("deviceSynchronize()", noticed=False)),
)  # fmt: skip
