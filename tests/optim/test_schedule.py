"""Warm-up and cosine, against the formula written another way and PyTorch's own cosine."""

from __future__ import annotations

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad import Tensor, nn, optim
from minigrad.optim import warmup_cosine
from minigrad.pytorch_names import OF_SCHEDULES
from tests.support import rng


def test_every_step_of_one_run():
    rates = [warmup_cosine(step, 10, 3, 1.0, 0.1) for step in range(12)]
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * t / 7)) / 2 for t in range(1, 7)]
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, *cosine, 0.1, 0.1], rtol=1e-14)
    assert warmup_cosine(10, 10, 3, 1.0) == 0.0


@settings(max_examples=2 * settings().max_examples)
@given(data=st.data(), total=st.integers(1, 1000), lr=st.floats(1e-5, 10), share=st.floats(0, 1))
def test_rises_to_lr_and_falls_to_min_lr(data: st.DataObject, total: int, lr: float, share: float):
    warmup, min_lr = data.draw(st.integers(0, total - 1)), lr * share
    rates = np.array([warmup_cosine(step, total, warmup, lr, min_lr) for step in range(total + 1)])
    assert rates[warmup] == pytest.approx(lr, rel=1e-12)  # min_lr + (lr - min_lr) is rounded
    assert rates.max() <= lr * (1 + 1e-12)
    assert (np.diff(rates[: warmup + 1]) > 0).all() and (np.diff(rates[warmup:]) <= 1e-12 * lr).all()
    assert rates[0] > 0 and rates[-1] == pytest.approx(min_lr, rel=1e-12)
    np.testing.assert_allclose(np.diff(rates[: warmup + 1]), lr / (warmup + 1), rtol=1e-6)


def test_cosine_is_pytorchs():
    p = torch.zeros(1, requires_grad=True)
    reference_optimizer = torch.optim.SGD([p], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(reference_optimizer, T_max=20, eta_min=0.01)
    for step in range(20):
        assert warmup_cosine(step, 20, 0, 0.3, 0.01) == pytest.approx(reference_optimizer.param_groups[0]["lr"], rel=1e-12)
        reference_optimizer.step()
        reference.step()


@settings(max_examples=2 * settings().max_examples)
@given(
    total=st.integers(2, 60),
    share=st.floats(0, 1),
    rates=st.lists(st.floats(1e-4, 10), min_size=1, max_size=3),
    min_lr=st.floats(0, 1e-4),
)
def test_any_warmup_and_cosine_of_several_groups_are_pytorchs(total: int, share: float, rates: list[float], min_lr: float):
    warmup = min(int(share * total), total - 1)
    ours = optim.SGD([{"params": [nn.Parameter(np.ones(1))], "lr": lr} for lr in rates])
    theirs = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in rates])
    schedule = optim.WarmupCosine(ours, total, warmup, min_lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, T_max=total - warmup, eta_min=min_lr)
    reference: torch.optim.lr_scheduler.LRScheduler = cosine
    if warmup:
        for group in theirs.param_groups:
            group["lr"] = group["initial_lr"]
        rise = torch.optim.lr_scheduler.LinearLR(theirs, start_factor=1 / (warmup + 1), end_factor=1.0, total_iters=warmup)
        reference = torch.optim.lr_scheduler.SequentialLR(theirs, [rise, cosine], milestones=[warmup])
    for step in range(total + 1):
        first = schedule.set(step)
        assert first == ours.param_groups[0]["lr"]
        for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert group["lr"] == pytest.approx(other["lr"], rel=1e-9, abs=1e-12)
        theirs.step()
        reference.step()


@pytest.mark.parametrize(("step", "total", "warmup"), [(-1, 10, 2), (0, 10, 10), (0, 10, -1), (0, 0, 0)])
def test_wrong_numbers(step: int, total: int, warmup: int):
    with pytest.raises(ValueError, match=f"step {step}, warmup {warmup}, total {total}"):
        warmup_cosine(step, total, warmup, 1.0)


def test_sets_every_group_from_its_own_rate():
    a, b = nn.Parameter(np.ones(1)), nn.Parameter(np.ones(1))
    optimizer = optim.AdamW([{"params": [a]}, {"params": [b], "lr": 0.2}], lr=1.0)
    schedule = optim.WarmupCosine(optimizer, total=10, warmup=3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.05]
    assert schedule.set(3) == 1.0
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.2]
    schedule.set(10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]


def test_a_group_that_is_added_later_is_set_from_its_own_rate():
    optimizer = optim.SGD([nn.Parameter(np.ones(1))], lr=1.0)
    schedule = optim.WarmupCosine(optimizer, total=10, warmup=3)
    optimizer.add_param_group({"params": [nn.Parameter(np.ones(1))], "lr": 0.2})
    optimizer.add_param_group({"params": [nn.Parameter(np.ones(1))], "lr": 0.2, "initial_lr": 0.4})
    for step in (1, 2, 3):
        schedule.set(step)
    np.testing.assert_allclose([group["lr"] for group in optimizer.param_groups], [1.0, 0.2, 0.4], rtol=1e-12)
    schedule.set(1)
    np.testing.assert_allclose([group["lr"] for group in optimizer.param_groups], [0.5, 0.1, 0.2], rtol=1e-12)


@pytest.mark.parametrize("schedule_first", [True, False])
def test_a_resumed_run_has_the_same_rates(schedule_first: bool):
    def make() -> optim.AdamW:
        return optim.AdamW([nn.Parameter(np.ones(1))], lr=0.5)

    first = make()
    schedule = optim.WarmupCosine(first, total=10, warmup=3)
    schedule.set(6)
    state = first.state_dict()
    second = make()
    if schedule_first:
        resumed = optim.WarmupCosine(second, total=10, warmup=3)
        second.load_state_dict(state)
    else:
        second.load_state_dict(state)
        resumed = optim.WarmupCosine(second, total=10, warmup=3)
    assert [resumed.set(step) for step in range(10)] == [schedule.set(step) for step in range(10)]


def stages(*rates: float) -> optim.SGD:
    """An optimiser after a first stage, whose schedule has come to its end; groups with these rates."""
    optimizer = optim.SGD([{"params": [nn.Parameter(np.ones(1))], "lr": lr} for lr in rates])
    optim.WarmupCosine(optimizer, total=10, warmup=3).set(9)
    return optimizer


def rates(optimizer: optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def test_a_second_stage_has_the_rates_that_were_set_by_hand():
    optimizer = stages(1e-2, 2e-2)
    optimizer.param_groups[0]["lr"] = 1e-4
    second = optim.WarmupCosine(optimizer, total=20, warmup=1)
    second.set(1)
    assert rates(optimizer) == [1e-4, 2e-2]  # the one that was not touched begins anew with its own
    for lr in (1e-4, 2e-4):  # and a third one
        second.set(7)
        optimizer.param_groups[0]["lr"] = lr
        optim.WarmupCosine(optimizer, total=20, warmup=1).set(1)
        assert rates(optimizer) == [lr, 2e-2]


def test_a_frozen_group_that_is_let_go_has_its_new_rate():
    optimizer = stages(0.0, 1e-2)
    assert rates(optimizer)[0] == 0.0
    optimizer.param_groups[0]["lr"] = 1e-3
    optim.WarmupCosine(optimizer, total=20, warmup=0)
    assert rates(optimizer) == [1e-3, 1e-2]


def test_the_largest_rate_may_be_written_outright():
    optimizer = stages(1e-2)
    optimizer.param_groups[0]["initial_lr"] = 0.5
    optim.WarmupCosine(optimizer, total=20, warmup=0)
    assert rates(optimizer) == [0.5]


def test_a_running_schedule_replaces_what_is_written_into_the_rates():
    """Programs scale what it wrote, at every step: nothing of this adds up."""
    optimizer = stages(1.0, 1.0)
    schedule = optim.WarmupCosine(optimizer, total=10, warmup=0)
    for step in range(5):
        expected = schedule.set(step)
        optimizer.param_groups[1]["lr"] *= 0.1
        assert rates(optimizer) == [expected, expected * 0.1] == [warmup_cosine(step, 10, 0, 1.0), warmup_cosine(step, 10, 0, 1.0) * 0.1]


@pytest.mark.parametrize("schedule_first", [True, False])
@pytest.mark.parametrize("scaled", [1.0, 0.1])
def test_a_state_that_is_loaded_brings_its_largest_rate_and_no_hand(schedule_first: bool, scaled: float):
    first = stages(0.5)
    first.param_groups[0]["lr"] *= scaled  # by the program, after the schedule
    second = optim.SGD([nn.Parameter(np.ones(1))], lr=0.3)
    if schedule_first:
        optim.WarmupCosine(second, total=10, warmup=3)
    second.load_state_dict(first.state_dict())
    assert rates(second) == rates(first)
    assert "groups.0.scheduled_lr" not in second.state_dict()
    optim.WarmupCosine(second, total=10, warmup=3).set(3)
    assert rates(second) == [0.5]
    second.load_state_dict(first.state_dict())
    second.param_groups[0]["lr"] = 0.2  # by hand, after it: a second stage from a file
    optim.WarmupCosine(second, total=10, warmup=3).set(3)
    assert rates(second) == [0.2]


def test_a_copy_knows_what_was_written_by_hand():
    for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        optimizer = copied(stages(0.5, 0.5))
        optimizer.param_groups[1]["lr"] = 0.1
        schedule = optim.WarmupCosine(copied(optimizer), total=10, warmup=0)
        assert rates(schedule.optimizer) == [0.5, 0.1]


def test_a_resumed_run_ends_with_the_same_weights_also_in_its_second_stage():
    """The state is loaded, then the schedule made; the second stage has another rate."""

    def begin() -> tuple[Tensor, optim.AdamW]:
        weight = nn.Parameter(rng(0).standard_normal(5))
        return weight, optim.AdamW([weight], lr=1.0)

    def train(weight: Tensor, optimizer: optim.AdamW, steps: range) -> None:
        schedule = optim.WarmupCosine(optimizer, total=10, warmup=2)
        for step in steps:
            schedule.set(step)
            weight.grad = Tensor(rng(step).standard_normal(5))
            optimizer.step()

    def second_stage(optimizer: optim.AdamW) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01

    whole, optimizer = begin()
    train(whole, optimizer, range(10))
    second_stage(optimizer)
    train(whole, optimizer, range(7))
    broken, first = begin()
    train(broken, first, range(10))
    second_stage(first)
    train(broken, first, range(4))
    resumed, second = begin()
    resumed.detach().copy_(broken.detach())
    second.load_state_dict(first.state_dict())
    train(resumed, second, range(4, 7))
    np.testing.assert_array_equal(resumed.numpy(), whole.numpy())


def test_it_prints_as_it_was_made():
    schedule = optim.WarmupCosine(optim.AdamW([nn.Parameter(np.ones(2))]), total=9, warmup=2)
    assert repr(schedule) == "WarmupCosine(AdamW, total=9, warmup=2, min_lr=0.0)"


@pytest.mark.parametrize("name", OF_SCHEDULES)
def test_what_pytorchs_schedules_have_is_said_to_be_written_otherwise(name: str):
    optimizer = optim.SGD([nn.Parameter(np.ones(2))], lr=0.1)
    schedule, theirs = optim.WarmupCosine(optimizer, 4, 0), torch.optim.lr_scheduler.LRScheduler
    assert hasattr(theirs, name) and not hasattr(schedule, name) and name not in dir(schedule) and "set" in dir(schedule)
    with pytest.raises(AttributeError, match=f"^WarmupCosine has no attribute '{name}', which PyTorch's has; write ") as caught:
        getattr(schedule, name)
    (code,) = re.findall("`([^`]+)`", str(caught.value))
    found = eval(code, {"schedule": schedule, "optimizer": optimizer, "step": 2})
    assert found == ([0.1] if "lr" in name else warmup_cosine(2, 4, 0, 0.1)) and optimizer.param_groups[0]["lr"] == (0.1 if "lr" in name else found)
