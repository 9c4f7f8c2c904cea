"""The next batches, made by a thread while the network is busy with this one. Read next: `conformer/batches.py`, which makes them."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

__all__ = ["prefetched"]

Item = TypeVar("Item")


def prefetched(items: Iterator[Item], ahead: int = 2) -> Generator[Item]:
    """The same items in the same order, made up to `ahead` of time by one thread.

    The thread runs in a copy of the caller's context, hence draws from the caller's seed; draws depend on their counters alone
    (`minigrad/random.py`), so they are those that the caller would make. An error in the thread is raised here, in its turn.

    Args:
        items: consumed in the thread.
        ahead: how many may wait, at least 1.

    Yields:
        The items. Close the generator (`contextlib.closing`) to end the thread early.
    """
    if ahead < 1:
        raise ValueError(f"prefetched: ahead is {ahead}; it must be at least 1, or nothing is ever made")
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    places = threading.Semaphore(ahead)
    closed = threading.Event()
    end = object()

    def work() -> None:
        try:
            item = None
            while places.acquire() and not closed.is_set() and item is not end:
                item = next(items, end)
                done.put((item, None))
        except BaseException as error:  # handed to the caller, which raises it
            done.put((end, error))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="conformer-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = done.get()
            if error is not None:
                try:
                    raise error
                finally:
                    error = None  # it knows this frame through its traceback: a ring, which would keep the batches for long
            if item is end:
                return
            places.release()
            yield item
            del item  # a batch lives no longer than its step
    finally:
        closed.set()
        places.release()
        thread.join()
