"""SGD against PyTorch's over 50 steps, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minigrad import Tensor, nn, optim
from tests.support import assert_close, rng

SHAPES = [(3, 4), (5,), (), (0, 2)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.05},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    ],
    ids=str,
)
def test_50_steps_are_pytorchs(options: dict):
    start = [rng(k).standard_normal(shape) for k, shape in enumerate(SHAPES)]
    ours = [nn.Parameter(x) for x in start]
    theirs = [torch.tensor(x, requires_grad=True) for x in start]
    our_optimizer, their_optimizer = optim.SGD(ours, lr=0.05, **options), torch.optim.SGD(theirs, lr=0.05, **options)
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


def test_momentum_that_is_switched_on_later():
    p, q = nn.Parameter(np.ones(3)), torch.ones(3, dtype=torch.float64, requires_grad=True)
    ours, theirs = optim.SGD([p], lr=0.1), torch.optim.SGD([q], lr=0.1)
    for step in range(6):
        if step == 2:
            ours.param_groups[0]["momentum"] = theirs.param_groups[0]["momentum"] = 0.9
        grad = rng(step).standard_normal(3)
        p.grad, q.grad = Tensor(grad), torch.tensor(grad)
        ours.step(), theirs.step()
        assert_close(p, q, f"step {step}")


def test_options_out_of_range():
    p = nn.Parameter(np.ones(3))
    with pytest.raises(ValueError, match="momentum is -0.1; it cannot be negative"):
        optim.SGD([p], momentum=-0.1)
    for options in ({"nesterov": True}, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}):
        with pytest.raises(ValueError, match="nesterov needs a momentum and no dampening"):
            optim.SGD([p], **options)
