"""How many steps fit a time: `--time-budget 30m` read, and turned into steps once a few of them have been timed.

Read next: `Trainer._fit_to_budget` in `conformer/train.py`, which does the timing.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

__all__ = ["LEAST_TIMED", "TIMED_STEPS", "duration", "seconds_a_step", "steps_within"]

TIMED_STEPS = 20
"""Steps by whose time a time budget is turned into a number of steps."""
LEAST_TIMED = 3
"""How many of them there are, however slow they are, if they fit into a quarter of the budget: of fewer it cannot be told which one was held up."""
LONGEST = 366 * 24 * 3600.0  # seconds

UNITS = {"s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """Seconds of "90s", "30m", "1.5h" or "1h30m"; raises ValueError for anything else, and for more than a year."""
    if not re.fullmatch(r"(\d+(\.\d+)?[smh])+", text):
        raise ValueError(f"{text!r} is not a time; write it like 90s, 30m or 1h30m")
    seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smh])", text))
    if not seconds > 0:
        raise ValueError(f"{text!r} leaves no time to train")
    if seconds > LONGEST:
        raise ValueError(f"{text!r} is more than a year")
    return seconds


def seconds_a_step(times: Sequence[float]) -> float:
    """What the steps of a run will take on average, by the times of some: their mean, without those that took more than twice the median.

    Those were held up: the process was stopped, or another one had the processor. The median itself would be too short for all the others, whose
    times are spread to the slow side, and a budget would be overrun.
    """
    most = 2 * statistics.median(times)
    return statistics.fmean(time for time in times if time <= most)


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
