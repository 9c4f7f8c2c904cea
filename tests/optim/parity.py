"""One of our optimisers and PyTorch's side by side for 50 steps, whatever their options, groups and gradients, with a break in the middle.

`runs` draws what happens, `check_run` makes it happen. Read next: `test_adamw.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from minigrad import Tensor, nn, optim
from tests.support import assert_close, rng

STEPS = 50
Options = dict[str, Any]


class Run(NamedTuple):
    """What happens in 50 steps."""

    groups: list[tuple[list[tuple[int, ...]], Options]]  # shapes of each group's parameters, and its own options
    changes: dict[int, Options]  # before a step, options that are set in every group, as a schedule does
    missing: float  # the share of gradients that are not there
    scale: float  # of the gradients
    resume: int  # before this step the state is saved and loaded
    seed: int


@st.composite
def runs(draw: st.DrawFn, options: st.SearchStrategy[Options]) -> Run:
    """One to three groups of one to three parameters, of up to three dimensions, some of them empty or of one number."""
    shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=3)
    return Run(
        groups=draw(st.lists(st.tuples(shapes, options), min_size=1, max_size=3)),
        changes=draw(st.dictionaries(st.integers(1, STEPS - 1), options, max_size=3)),
        missing=draw(st.sampled_from([0.0, 0.3, 0.9])),
        scale=draw(st.sampled_from([1.0, 1e-7, 1e4])),
        resume=draw(st.integers(0, STEPS)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def check_run(ours: type[optim.Optimizer], theirs: type[torch.optim.Optimizer], run: Run) -> None:
    """The same numbers as PyTorch's after every step, and the same bits as of a run that was broken off and resumed."""
    values = rng(run.seed)
    start = [[values.standard_normal(shape) for shape in shapes] for shapes, _ in run.groups]
    params = [[nn.Parameter(x) for x in group] for group in start]
    reference = [[torch.tensor(x, requires_grad=True) for x in group] for group in start]
    optimizer = ours([{"params": group, **options} for group, (_, options) in zip(params, run.groups, strict=True)])
    their_optimizer = theirs([{"params": group, **options} for group, (_, options) in zip(reference, run.groups, strict=True)])
    pairs = [pair for group in zip(params, reference, strict=True) for pair in zip(*group, strict=True)]
    resumed: list[list[Tensor]] = []
    second = optimizer
    largest = [0.0] * len(pairs)  # that each parameter ever was: what was rounded then stays, also where it has shrunk since
    for step in range(STEPS + 1):
        if step == run.resume:
            resumed = [[nn.Parameter(p.data) for p in group] for group in params]
            second = ours([{"params": group} for group in resumed])  # its options come with the state
            second.load_state_dict(optimizer.state_dict())
        if step == STEPS:
            break
        for group in [*optimizer.param_groups, *their_optimizer.param_groups, *(second.param_groups if resumed else [])]:
            group.update(run.changes.get(step, {}))
        copies = [p for group in resumed for p in group] or [None] * len(pairs)
        for (p, q), copy in zip(pairs, copies, strict=True):
            gradient = None if values.random() < run.missing else run.scale * (values.standard_normal(p.shape) + 0.3 * p.numpy())
            p.grad, q.grad = (None, None) if gradient is None else (Tensor(gradient), torch.tensor(gradient))
            if copy is not None:
                copy.grad = None if gradient is None else Tensor(gradient)
        for each in (optimizer, their_optimizer, *([second] if resumed else [])):
            each.step()
        for number, (p, q) in enumerate(pairs):
            largest[number] = max(largest[number], np.abs(p.numpy()).max(initial=0.0))
            assert_close(p, q, f"step {step}", terms=largest[number])
    for group, copies in zip(params, resumed, strict=True):
        for p, copy in zip(group, copies, strict=True):
            np.testing.assert_array_equal(copy.numpy(), p.numpy())
    state, other = optimizer.state_dict(), second.state_dict()
    assert list(state) == list(other) and all(np.array_equal(state[name], other[name]) and state[name].dtype == other[name].dtype for name in state)
