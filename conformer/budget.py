"""How many steps fit a time: `--time-budget 30m` turned into steps, once a few have been timed.

What holds the process up meanwhile, once, changes none of the times. Read next: `Trainer._fit_to_budget` in `conformer/train.py`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from conformer.steps import Steps

__all__ = ["seconds_a_step", "seconds_of", "steps_within", "timed_step"]

TIMED_STEPS = 20
"""Steps by whose time a time budget is turned into a number of steps."""
LEAST_TIMED = 3
"""How many of them there are, however slow they are, if they fit into a quarter of the budget: of fewer it cannot be told which one was held up."""


def timed_step(stepper: Callable[[], Steps], most: int, budget: float, check: Callable[[], None]) -> float:
    """Seconds of a step, by taking up to 20 after the first; fewer where they would take a tenth of the budget (but 3, or one if those would take a
    quarter).

    Args:
        stepper: makes what takes the steps.
        most: how many steps there are to take.
        budget: seconds.
        check: is called after each step; what it raises ends the timing.
    """
    began = time.perf_counter()
    times: list[float] = []
    with closing(stepper()) as steps:
        for number in range(min(1 + TIMED_STEPS, most)):
            times += [outcome.seconds for outcome in steps.take()]
            check()
            if number >= LEAST_TIMED and time.perf_counter() - began - max(times, default=0.0) > budget / 10:
                break
            if number and LEAST_TIMED * min(times, default=0.0) > budget / 4:
                break
        times += [outcome.seconds for outcome in steps.finish()]
    return seconds_a_step(times[1:] or times)  # the first makes threads and memory


def seconds_a_step(times: Sequence[float]) -> float:
    """What the steps of a run will take on average, by the times of some: their mean, without those that took more than twice the median.

    Those were held up: the process was stopped, or another one had the processor. The median itself would be too short for all the others, whose
    times are spread to the slow side, and a budget would be overrun.
    """
    most = 2 * statistics.median(times)
    return statistics.fmean(time for time in times if time <= most)


def seconds_of(action: Callable[[], object], limit: float = math.inf) -> float:
    """How long something takes: the shorter of two times, of which one may have been held up; of one alone, if it takes more than `limit`."""
    times: list[float] = []
    while len(times) < 2 and sum(times) <= limit:
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def steps_within(seconds: float, step: float, evaluation: float, between: int) -> int:
    """How many steps can be taken in `seconds`; at least 1.

    Args:
        seconds: the time there is.
        step: seconds of a step.
        evaluation: seconds of evaluating and saving, which is done every `between` steps and after the last one.
        between: steps.
    """
    rounds, rest = divmod(seconds, between * step + evaluation)
    return max(1, int(rounds) * between + max(0, int((rest - evaluation) / step)))
