"""Items made ahead of time by a thread: the same ones, not too many, and nothing of it is left behind."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from conformer import data, train
from conformer.batches import batches
from conformer.options import TrainConfig
from conformer.prefetch import prefetched
from minigrad import random


def test_prefetched_items_are_the_same_and_drawn_from_the_callers_seed(config: TrainConfig) -> None:
    """In a thread, whose seed is its own: the main thread's is everyone's."""
    dataset = data.load("cifar10", config.data_dir)
    random.manual_seed(3)
    found: list[tuple[list[train.Batch], list[train.Batch]]] = []

    def draw() -> None:
        random.manual_seed(7)
        found.append((list(prefetched(batches(dataset, 8, 0))), list(batches(dataset, 8, 0))))

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    ((ahead, expected),) = found
    for mine, theirs, other in zip(ahead, expected, batches(dataset, 8, 0), strict=True):
        assert_array_equal(mine.images, theirs.images)
        assert not np.array_equal(mine.images, other.images)
    assert list(prefetched(iter([]))) == []


def test_prefetching_is_ahead_but_not_far_ahead_and_ends() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with closing(prefetched(items(), ahead=2)) as ahead:
        assert next(ahead) == 0
        deadline = time.monotonic() + 5
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name == "conformer-prefetch"]


def test_fewer_than_one_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match="prefetched: ahead is 0; it must be at least 1"):
        next(prefetched(iter([1]), ahead=0))


def test_an_error_while_prefetching_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no more images")

    ahead = prefetched(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="no more images"):
        next(ahead)


def test_an_error_in_the_prefetching_thread_keeps_no_batches_alive() -> None:
    """It would, through a ring of its traceback and this frame, until the collector comes round."""
    arrays = []

    def items() -> Iterator[np.ndarray]:
        array = np.zeros(1000)
        arrays.append(weakref.ref(array))
        yield array[:1]
        raise MemoryError

    def attempt() -> None:
        with closing(prefetched(items())) as ahead, contextlib.suppress(MemoryError):
            list(ahead)

    gc.disable()
    try:
        attempt()
        assert arrays[0]() is None
    finally:
        gc.enable()
