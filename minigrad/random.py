"""Randomness without state: a draw depends on the seed, its purpose and its counters, and on nothing else.

Philox is a function from (key, counter) to random bits. The key is made of the seed and the purpose ("init", "dropout", "augment"), the counters say
which draw it is (a step and the number of the draw in that step, or an epoch and a batch). So a resumed run, a prefetching thread and a
recomputed checkpoint draw the same numbers by construction, and no generator state is ever saved. NumPy's global state is never touched.

Modules that draw (dropout, initialisers) number their draws with `next_draw`; a training loop calls `set_step(step)` at the start of each step.
Where the count stands is kept per context, so threads do not disturb each other. Read next: `minigrad/nn/dropout.py`, which draws masks this way.
"""

from __future__ import annotations

import operator
import threading
import zlib
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Counter", "generator", "get_counter", "get_seed", "manual_seed", "next_draw", "set_counter", "set_step"]


class Counter(NamedTuple):
    """Where this context's draws stand. `seed` is None where the context has no seed of its own and uses the process's; `step`: see `set_step`."""

    seed: int | None
    step: Any
    draw: int


_process_seed = 0  # what contexts without a seed of their own use
_seedings = 0  # how many times it was set
_START = Counter(None, 0, 0)
_counter: ContextVar[tuple[Counter, int]] = ContextVar("minigrad.random", default=(_START, 0))  # and `_seedings` when that was counted


def _on_gpu(value: Any) -> bool:
    """Whether `value` is an array in the GPU's memory: this file knows no array library."""
    return hasattr(getattr(value, "data", None), "ptr")


def _word(value: int, name: str) -> int:
    """`value` as one 64-bit word of a Philox key or counter."""
    if _on_gpu(value):
        raise TypeError(f"{name} is on the GPU (see `set_step`), and the host cannot draw for it: draw on the GPU, or take this step uncaptured")
    try:
        word = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; give a whole number") from None
    if not 0 <= word < 2**64:
        raise ValueError(f"{name} is {word}; give a number from 0 to 2**64 - 1")
    return word


def manual_seed(seed: int) -> None:
    """Set the seed and start counting from step 0, draw 0.

    The seed holds for the calling context. Called in the main thread it also holds for every thread that sets none itself, which starts counting anew
    too: a prefetching thread, or one of a pool, draws from the same seed. Without a call the seed is 0.

    Args:
        seed: from 0 to 2**64 - 1.

    Raises:
        TypeError, ValueError: the seed is not such a number.
    """
    global _process_seed, _seedings
    seed = _word(seed, "manual_seed: seed")
    if threading.current_thread() is threading.main_thread():
        _process_seed = seed
        _seedings += 1
    set_counter(Counter(seed, 0, 0))


def set_step(step: Any) -> None:
    """Begin training step `step` in this context: the next draw is its draw 0.

    Args:
        step: its number; or an array on the GPU that holds it, a uint64, for a step that is captured as a graph: draws that are made on the GPU look
            there when the graph is launched, and a draw on the host, which could not be repeated, raises.
    """
    set_counter(Counter(get_counter().seed, step if _on_gpu(step) else _word(step, "set_step: step"), 0))


def next_draw() -> tuple[Any, int]:
    """Take the next draw of this context: `(step, draw)`, to be given to `generator` as its counters."""
    seedings = _seedings  # read first: a seed that another thread sets meanwhile is met by the draw after this one
    seed, step, draw = get_counter()
    _counter.set((Counter(seed, step, draw + 1), seedings))
    return step, draw


def get_seed() -> int:
    """The seed that draws in this context are made from."""
    seed = get_counter().seed
    return _process_seed if seed is None else seed


def get_counter() -> Counter:
    """Where this context's draws stand; `set_counter` goes back to it, and the same draws come again (`minigrad.checkpoint` does that)."""
    counter, seedings = _counter.get()
    return _START if counter.seed is None and seedings != _seedings else counter


def set_counter(value: Counter) -> None:
    """Put this context's draws where `get_counter` found them."""
    _counter.set((value, _seedings))


def generator(purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator for one draw: the same seed, purpose and counters give the same numbers, any other gives independent ones.

    Trailing zero counters are the same as counters left out. A purpose is known by its CRC-32: two different names collide with a probability of 1 in
    4 billion.

    Args:
        purpose: what the numbers are for, for example "init" or "augment"; each purpose has its own stream.
        *counters: up to three numbers from 0 to 2**64 - 1 that say which draw this is, for example `*next_draw()`, or an epoch and a batch's number.

    Returns:
        A new `numpy.random.Generator` at the beginning of that draw.

    Raises:
        TypeError, ValueError: more than three counters, or one that is not such a number.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    if len(counters) > 3:
        raise ValueError(f"generator takes up to 3 counters, not {len(counters)}")
    key = [get_seed(), zlib.crc32(purpose.encode())]
    words = [_word(counter, "generator: counter") for counter in counters]
    # Philox counts its own blocks of four numbers in the first word; ours come after it, so streams never overlap.
    counter = [0, *words, *[0] * (3 - len(words))]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64)))
