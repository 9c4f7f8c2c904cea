"""How many steps fit a time; what a run makes of its budget is in `test_train.py` and `test_resume.py`."""

from __future__ import annotations

from conformer.budget import seconds_a_step, steps_within


def test_seconds_a_step_are_the_mean_of_those_that_were_not_held_up() -> None:
    assert seconds_a_step([3.0]) == 3
    assert seconds_a_step([1.0, 1.5, 2.0, 1.5, 41.0]) == 1.5
    assert seconds_a_step([1.0, 1.0, 1.0, 1.0, 2.0, 2.0]) == 4 / 3  # a median of 1 would overrun a budget


def test_as_many_steps_are_taken_as_fit_with_their_evaluations() -> None:
    assert steps_within(100, 1, 10, 10) == 50  # 5 epochs of 20 seconds
    assert steps_within(95, 1, 10, 10) == 45  # 4 epochs, 5 steps, and their evaluation
    assert steps_within(85, 1, 10, 10) == 40  # 5 more seconds are no use: the last steps would not be evaluated
    assert steps_within(-3, 1, 10, 10) == 1
