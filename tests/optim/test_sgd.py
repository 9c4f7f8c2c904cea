"""SGD against PyTorch's over 50 steps, in float64, with any options and parameter groups (`parity.py`)."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad import Tensor, nn, optim
from tests.cuda_device import on_cuda
from tests.optim.parity import Run, check_run, runs
from tests.support import assert_close, rng

SHAPES = [(3, 4), (5,), (), (0, 2)]


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """All of them: a group may begin with momentum, get it later or lose it."""
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    nesterov = momentum > 0 and draw(st.booleans())
    dampening = 0.0 if nesterov else draw(st.sampled_from([0.0, 0.3]))
    return dict(lr=draw(st.floats(0, 0.5)), momentum=momentum, nesterov=nesterov, dampening=dampening, weight_decay=draw(st.floats(0, 0.5)))


@settings(max_examples=3 * settings().max_examples)
@given(runs(options()))
def test_any_50_steps_are_pytorchs_and_can_be_resumed(run: Run):
    check_run(optim.SGD, torch.optim.SGD, run)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.05, "weight_decay": 0.1},
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05},
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    ],
    ids=str,
)
def test_50_steps_are_pytorchs(options: dict):
    start = [rng(k).standard_normal(shape) for k, shape in enumerate(SHAPES)]
    ours = [nn.Parameter(x) for x in start]
    theirs = [torch.tensor(x, requires_grad=True) for x in start]
    our_optimizer, their_optimizer = optim.SGD(ours, **options), torch.optim.SGD(theirs, **options)
    for step in range(50):
        for k, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            if k == 1 and step % 3 == 0:  # a parameter that is not always used
                p.grad = q.grad = None
                continue
            grad = rng(1000 * k + step).standard_normal(p.shape) + 0.3 * p.numpy()
            p.grad, q.grad = Tensor(grad), torch.tensor(grad)
        our_optimizer.step()
        their_optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            assert_close(p, q, f"step {step}")


@pytest.mark.parametrize("dampening", [0.0, 0.3])
def test_momentum_that_is_switched_on_later(dampening: float):
    """The buffer then begins with the gradient itself, as at a first step."""
    p, q = nn.Parameter(np.ones(3)), torch.ones(3, dtype=torch.float64, requires_grad=True)
    ours, theirs = optim.SGD([p], lr=0.1), torch.optim.SGD([q], lr=0.1)
    for step in range(6):
        if step == 2:
            for optimizer in (ours, theirs):
                optimizer.param_groups[0].update(momentum=0.9, dampening=dampening)
        grad = rng(step).standard_normal(3)
        p.grad, q.grad = Tensor(grad), torch.tensor(grad)
        ours.step(), theirs.step()
        assert_close(p, q, f"step {step}")
        assert ours.state_dict()["state.0.step"] == (step + 1 if step < 2 else step - 1)


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.9), (0.9, 0.0)])
def test_state_can_be_saved_around_a_switch_of_momentum(before: float, after: float):
    """A buffer that is kept though momentum is off, or not made yet though it is on, is no reason to refuse a state."""
    p = nn.Parameter(np.ones(3))
    first = optim.SGD([p], lr=0.1, momentum=before)
    p.grad = Tensor(np.arange(3.0))
    first.step()
    first.param_groups[0]["momentum"] = after
    state = first.state_dict()
    assert ("state.0.momentum_buffer" in state) == (before > 0)
    for momentum in (0.0, 0.9):
        second = optim.SGD([nn.Parameter(np.ones(3))], momentum=momentum)
        second.load_state_dict(state)
        assert list(second.state_dict()) == list(state) and second.param_groups[0]["momentum"] == after
    with pytest.raises(ValueError, match=r"momentum_buffer has shape \(2,\), here \(3,\)"):
        first.load_state_dict({**state, "state.0.momentum_buffer": np.zeros(2)})


def test_a_loaded_buffer_of_no_step_waits_for_the_first_step_with_momentum():
    """As states from a GPU have them: zeros, of which no dampened gradient has come yet."""
    found = []
    for with_buffer in (False, True):
        p = Tensor(np.array([1.0, -2.0]), requires_grad=True)
        optimizer = optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
        if with_buffer:
            optimizer.load_state_dict(optimizer.state_dict() | {"state.0.step": np.array(0), "state.0.momentum_buffer": np.zeros(2)})
        for momentum in (0.0, 0.0, 0.9, 0.0, 0.9):
            optimizer.param_groups[0]["momentum"] = momentum
            p.grad = Tensor(np.array([1.0, 3.0]))
            optimizer.step()
        found.append(p.numpy().copy())
    assert_close(found[1], found[0])


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_decay_too_small_for_float32_is_not_lost(where: str):
    """1 - lr weight_decay is 1 in float32. What 30 steps of other gradients take off many numbers is right on average all the same."""
    values, lr, decay = rng(0), 1e-2, 2.5e-6
    start = values.uniform(0.5, 1, 400).astype(np.float32)
    exact = start.astype(np.float64)
    with on_cuda(build="plain") if where == "cuda" else contextlib.nullcontext():
        p = Tensor(start).to(device=where).requires_grad_()
        optimizer = optim.SGD([p], lr=lr, weight_decay=decay)
        for _ in range(30):
            grad = values.standard_normal(400).astype(np.float32)
            p.grad = Tensor(grad).to(device=where)
            optimizer.step()
            exact -= lr * (grad + decay * exact)
        wrong = (p.detach().to(device="cpu").numpy() - exact).mean()
    assert abs(wrong) < 0.1 * 30 * lr * decay * start.mean()


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_infinite_parameter_stays_so_without_decay(where: str, momentum: float):
    """As PyTorch's does: a mask, say, of which the gradient is 0."""
    with on_cuda(build="plain") if where == "cuda" else contextlib.nullcontext():
        p = Tensor([-np.inf, 1.0]).to(device=where).requires_grad_()
        p.grad = Tensor([0.0, 0.5]).to(device=where)
        optim.SGD([p], lr=0.5, momentum=momentum).step()
        np.testing.assert_array_equal(p.detach().to(device="cpu").numpy(), [-np.inf, 0.75])


def test_options_out_of_range():
    p = nn.Parameter(np.ones(3))
    with pytest.raises(ValueError, match="momentum is -0.1; it cannot be negative"):
        optim.SGD([p], momentum=-0.1)
    for dampening in (math.nan, math.inf, "x"):
        with pytest.raises(ValueError, match="dampening is .*; give a finite number"):
            optim.SGD([p], momentum=0.9, dampening=dampening)
    for options in ({"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match="nesterov needs a momentum and no dampening"):
            optim.SGD([p], **options)
