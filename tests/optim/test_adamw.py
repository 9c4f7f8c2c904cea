"""AdamW against PyTorch's over 50 steps, in float64, with any options and parameter groups (`parity.py`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad import Tensor, nn, optim
from minigrad.pytorch_names import IN_OPTIM
from tests.cuda_device import on_cuda
from tests.optim.parity import Run, check_run, runs
from tests.support import assert_close, rng

SHAPES = [(3, 4), (5,), (), (2, 0), (2, 3, 2)]


OPTIONS = st.fixed_dictionaries(
    {},
    optional=dict(
        lr=st.floats(0, 0.5),
        betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.9999)),
        eps=st.sampled_from([1e-8, 1e-6, 1e-2]),
        weight_decay=st.floats(0, 1),
    ),
)


@settings(max_examples=2 * settings().max_examples)
@given(runs(OPTIONS))
def test_any_50_steps_are_pytorchs_and_can_be_resumed(run: Run):
    check_run(optim.AdamW, torch.optim.AdamW, run)


@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3}, {"betas": (0.0, 0.0), "weight_decay": 0.0}], ids=str
)
@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_50_steps_are_pytorchs(options: dict, scale: float):
    start = [rng(k).standard_normal(shape) for k, shape in enumerate(SHAPES)]
    ours = [nn.Parameter(x) for x in start]
    theirs = [torch.tensor(x, requires_grad=True) for x in start]
    our_optimizer = optim.AdamW([{"params": ours[:2]}, {"params": iter(ours[2:]), "weight_decay": 0.0, "lr": 0.01}], **options)
    their_optimizer = torch.optim.AdamW([{"params": theirs[:2]}, {"params": theirs[2:], "weight_decay": 0.0, "lr": 0.01}], **options)
    for step in range(50):
        for k, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            if k == 1 and step % 3 == 0:  # a parameter that is not always used counts its own steps
                p.grad = q.grad = None
                continue
            grad = scale * rng(1000 * k + step).standard_normal(p.shape)
            p.grad, q.grad = Tensor(grad), torch.tensor(grad)
        if step == 25:
            for group in our_optimizer.param_groups + their_optimizer.param_groups:
                group["lr"] *= 0.5
        our_optimizer.step()
        their_optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            assert_close(p, q, f"step {step}")


def test_training_a_model_is_pytorchs():
    x, y = rng(0).standard_normal((8, 6, 6, 3)), rng(1).standard_normal((8, 2))
    ours = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.GELU(), nn.Linear(4, 2)).to(dtype=np.float64)
    theirs = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.GELU(), torch.nn.Linear(4, 2)).double()
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    our_optimizer, their_optimizer = optim.AdamW(ours.parameters(), lr=0.01), torch.optim.AdamW(theirs.parameters(), lr=0.01)
    for step in range(10):
        loss = ((ours(Tensor(x)).mean((1, 2)) - y) ** 2).mean()
        features = theirs[2](theirs[1](theirs[0](torch.tensor(x).permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        reference = ((theirs[3](features).mean((1, 2)) - torch.tensor(y)) ** 2).mean()
        assert_close(loss, reference, f"loss of step {step}", relative=1e-9)
        for model, optimizer, value in ((ours, our_optimizer, loss), (theirs, their_optimizer, reference)):
            optimizer.zero_grad()
            value.backward()
            assert all(p.grad is not None for p in model.parameters())
            optimizer.step()
    assert all(p.grad is not None for p in ours.parameters())
    our_optimizer.zero_grad()
    assert all(p.grad is None for p in ours.parameters())


def test_float32_stays_float32():
    p = nn.Parameter(np.ones(3, np.float32))
    optimizer = optim.AdamW([p])
    p.grad = Tensor(np.ones(3, np.float32))
    optimizer.step()
    assert p.dtype == np.float32
    assert optimizer.state_dict()["state.0.exp_avg"].dtype == np.float32


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), (0.9,)])
def test_options_out_of_range(betas: tuple):
    with pytest.raises(ValueError, match="betas is .*; give two numbers from 0 to below 1"):
        optim.AdamW([nn.Parameter(np.ones(3))], betas=betas)
    with pytest.raises(ValueError, match="eps is inf; give a finite number"):
        optim.AdamW([nn.Parameter(np.ones(3))], eps=float("inf"))
    with pytest.raises(ValueError, match="eps is -1"):
        optim.AdamW([nn.Parameter(np.ones(3))], eps=-1.0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_square_that_overflows_does_not_stop_a_weight_for_good(device: str):
    """g^2 is beyond float32, (1 - beta2) g^2 is not: PyTorch multiplies in that order too."""
    with on_cuda():
        p = Tensor(np.ones(2, np.float32)).to(device=device).requires_grad_()
        q = torch.ones(2, requires_grad=True)
        ours, reference = optim.AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
        for g in (1e20, *[1.0] * 5):
            p.grad, q.grad = Tensor(np.float32([g, 1.0])).to(device=device), torch.tensor([g, 1.0])
            ours.step()
            reference.step()
        assert np.isfinite(ours.state_dict()["state.0.exp_avg_sq"]).all()
        np.testing.assert_allclose(p.to(device="cpu").numpy(), q.detach().numpy(), rtol=1e-5)


def test_the_advice_for_adam_is_pytorchs_adam():
    values = rng(0).standard_normal((2, 3))
    mine, its = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    code = IN_OPTIM["Adam"].strip("`")
    ours, theirs = eval(code, {"optim": optim, "parameters": [mine], "lr": 0.1}), torch.optim.Adam([its], lr=0.1)
    for step in range(3):
        grad = rng(step + 1).standard_normal((2, 3))
        mine.grad, its.grad = Tensor(grad), torch.tensor(grad)
        ours.step()
        theirs.step()
    np.testing.assert_allclose(mine.numpy(), its.detach(), rtol=1e-12)
