"""Counter-based randomness: the same draw is the same draw, whatever happened before it or beside it."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minigrad import random


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    before = random.get_counter()
    yield
    random.manual_seed(0)
    random.set_counter(before)


def test_same_seed_purpose_and_counters_give_the_same_numbers():
    random.manual_seed(7)
    first = random.generator("mask", 3, 4).random(100)
    random.generator("mask", 3, 5).random(1000)
    random.next_draw()
    assert np.array_equal(first, random.generator("mask", 3, 4).random(100))


def test_every_difference_gives_other_numbers():
    def draw(seed: int, purpose: str, *counters: int) -> tuple:
        random.manual_seed(seed)
        return tuple(random.generator(purpose, *counters).random(20))

    draws = {
        draw(0, "a"),
        draw(1, "a"),
        draw(2**63, "a"),
        draw(0, "b"),
        draw(0, "a", 1),
        draw(0, "a", 0, 1),
        draw(0, "a", 0, 0, 1),
        draw(0, "a", 1, 1),
    }
    assert len(draws) == 8


def test_neighbouring_draws_are_independent_streams():
    # Counters are not offsets into one stream: a draw of any length never runs into the next counter's numbers.
    long = random.generator("mask", 0, 0).integers(0, 2**63, 10_000)
    after = random.generator("mask", 0, 1).integers(0, 2**63, 100)
    assert not np.isin(after, long).any()
    correlation = np.corrcoef(random.generator("mask", 0, 0).standard_normal(10_000), random.generator("mask", 0, 1).standard_normal(10_000))[0, 1]
    assert abs(correlation) < 0.05


def test_a_fixed_draw_is_pinned():
    # Runs of earlier versions stay reproducible: these are the first numbers of this draw, for ever.
    random.manual_seed(1234)
    assert random.generator("init", 5, 6).integers(0, 1000, 5).tolist() == [829, 410, 619, 144, 762]


def test_numpy_global_state_is_not_touched():
    state = np.random.get_state()[1].copy()
    random.manual_seed(3)
    random.generator("mask", *random.next_draw()).random(10)
    assert np.array_equal(state, np.random.get_state()[1])


def test_steps_and_draws_count():
    random.manual_seed(0)
    assert [random.next_draw() for _ in range(3)] == [(0, 0), (0, 1), (0, 2)]
    random.set_step(9)
    assert [random.next_draw() for _ in range(2)] == [(9, 0), (9, 1)]
    random.manual_seed(0)
    assert random.next_draw() == (0, 0)


def test_the_counter_goes_back_for_a_recomputation():
    random.manual_seed(5)
    random.set_step(2)
    random.next_draw()
    mark = random.get_counter()
    first = [random.generator("mask", *random.next_draw()).random() for _ in range(3)]
    random.manual_seed(99)
    random.set_counter(mark)
    assert first == [random.generator("mask", *random.next_draw()).random() for _ in range(3)]


def test_threads_do_not_disturb_each_other():
    def draws(seed: int) -> list[float]:
        random.manual_seed(seed)
        values = []
        for step in range(5):
            random.set_step(step)
            values += [random.generator("mask", *random.next_draw()).random() for _ in range(10)]
        return values

    expected = [draws(seed) for seed in range(8)]
    found: dict[int, list[float]] = {}
    barrier = threading.Barrier(8)

    def run(seed: int) -> None:
        barrier.wait()
        found[seed] = draws(seed)

    random.manual_seed(77)
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(8)] == expected
    assert random.get_counter() == (77, 0, 0)
    seeds: list[int] = []
    without = threading.Thread(target=lambda: seeds.append(random.get_seed()))
    without.start()
    without.join()
    assert seeds == [77]  # nor the threads that set no seed


def test_a_thread_without_a_seed_uses_the_main_threads():
    random.manual_seed(42)
    expected = random.generator("crop", 1, 2).random()
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(random.generator("crop", 1, 2).random()))
    thread.start()
    thread.join()
    assert found == [expected]


def test_without_a_seed_the_seed_is_0():
    program = (
        "from minigrad import manual_seed, random; first = random.generator('mask', 1).random(); "
        "manual_seed(0); print(first == random.generator('mask', 1).random())"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_new_seed_in_the_midst_of_a_draw_is_met_by_the_next(monkeypatch: pytest.MonkeyPatch):
    context, read, again = contextvars.Context(), random.get_counter, contextvars.copy_context()

    def interrupted() -> random.Counter:
        counter = read()
        again.run(random.manual_seed, 9)  # as the main thread would meanwhile
        return counter

    assert context.run(random.next_draw) == (0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(random, "get_counter", interrupted)
        assert context.run(random.next_draw) == (0, 1)
    assert context.run(random.get_counter) == (None, 0, 0)


@pytest.mark.parametrize("where", ["a thread of a pool", "a context, such as a task's"])
def test_a_new_seed_starts_the_count_anew_where_there_is_none_of_its_own(where: str):
    """As in PyTorch, the program that sets its seed again gets the same draws again, also from threads that outlive that."""

    def draw() -> float:
        return random.generator("mask", *random.next_draw()).random()

    with ThreadPoolExecutor(1) as pool:
        other: Callable = contextvars.Context().run if "context" in where else lambda function, *values: pool.submit(function, *values).result()
        random.manual_seed(7)
        first = [other(draw) for _ in range(3)]
        other(random.set_step, 4)
        assert other(random.get_counter) == (None, 4, 0)
        random.manual_seed(7)
        assert other(random.get_counter) == (None, 0, 0)
        assert [other(draw) for _ in range(3)] == first and len(set(first)) == 3
        assert other(random.get_counter) == (None, 0, 3)
        other(random.set_counter, random.Counter(3, 2, 1))
        random.manual_seed(7)
        assert other(random.get_counter) == (3, 2, 1)  # has a seed of its own


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int):
    with pytest.raises(ValueError, match="from 0 to"):
        random.manual_seed(seed)


def test_wrong_counters_are_refused():
    with pytest.raises(TypeError, match="whole number"):
        random.set_step(1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="up to 3 counters, not 4"):
        random.generator("mask", 1, 2, 3, 4)
    with pytest.raises(ValueError, match="counter is -1"):
        random.generator("mask", -1)
    assert random.generator("mask", np.int64(3)).random() == random.generator("mask", 3).random()
