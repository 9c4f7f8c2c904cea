"""One pass through either Conformer, ours or the PyTorch one, seen in the same form: arrays in PyTorch's (B, C, H, W) order, by parameter name.

test_oracle.py holds both against the recorded numbers of the original; test_parity.py holds them against each other. How close two passes must be
is said in tests/nn/parity.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.testing import assert_allclose

import minigrad
import minigrad.functional as F
from conformer import Conformer
from minigrad import Tensor
from tests.conformer.torch_conformer import TorchConformer
from tests.nn.parity import Masks, assert_same_up_to_rounding, give_masks, seeded_state, until_equal

ORACLE = Path(__file__).parent / "oracle"


def _load_fill() -> ModuleType:
    """`oracle/fill.py`, kept as it was recorded: weights that anyone can make again from their names."""
    spec = importlib.util.spec_from_file_location("oracle_fill", ORACLE / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fill = _load_fill()


@dataclass
class Outcome:
    """What one pass gave: logits (B, K), the loss of each head, gradients by parameter name and of the images (B, C, H, W), state afterwards."""

    logits: tuple[np.ndarray, np.ndarray]
    losses: tuple[float, float]
    gradients: dict[str, np.ndarray]
    image_gradient: np.ndarray
    state: dict[str, np.ndarray]


def filled_state(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """A whole state_dict by the oracle's recipe."""
    return {name: fill.fill(name, shape) for name, shape in shapes}


def torch_model(state: dict[str, np.ndarray] | None = None, **config) -> TorchConformer:
    """The PyTorch Conformer in float64; filled by the oracle's recipe unless a state is given."""
    with torch.device("meta"):
        model = TorchConformer(**config)
    state = filled_state((name, tuple(t.shape)) for name, t in model.state_dict().items()) if state is None else state
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, assign=True)
    return model


def our_model(state: dict[str, np.ndarray] | None = None, seed: int | None = None, **config) -> Conformer:
    """Our Conformer in float64; filled by the oracle's recipe unless a state or a seed is given."""
    model = Conformer(**config).to(dtype=np.float64)
    shapes = [(name, array.shape) for name, array in model.state_dict().items()]
    state = state if state is not None else filled_state(shapes) if seed is None else seeded_state(shapes, seed)
    model.load_state_dict(state)
    return model


def torch_pass(
    model: TorchConformer, images: np.ndarray, labels: np.ndarray, weights: tuple[float, float] = (1.0, 1.0), masks: Masks | None = None
) -> Outcome:
    """Forward and backward of weights[0] * CE(conv logits) + weights[1] * CE(trans logits) in the model's current mode, with the given masks."""
    model.zero_grad()
    left = give_masks(model, masks or [])
    x = torch.from_numpy(images).requires_grad_()
    logits = model(x)
    assert next(left, None) is None, "masks that no layer took"
    losses = [torch.nn.functional.cross_entropy(head, torch.from_numpy(labels)) for head in logits]
    sum(weight * loss for weight, loss in zip(weights, losses, strict=True)).backward()
    return Outcome(
        logits=tuple(head.detach().numpy() for head in logits),
        losses=tuple(loss.item() for loss in losses),
        gradients={name: p.grad.numpy().copy() for name, p in model.named_parameters()},
        image_gradient=x.grad.numpy(),
        state={name: t.numpy().copy() for name, t in model.state_dict().items()},
    )


def our_pass(model: Conformer, images: np.ndarray, labels: np.ndarray, weights: tuple[float, float] = (1.0, 1.0)) -> Outcome:
    """The same through our engine; the images are turned to (B, H, W, C) and their gradient back."""
    model.zero_grad()
    x = Tensor(images.transpose(0, 2, 3, 1), requires_grad=True)
    logits = model(x)
    losses = [F.cross_entropy(head, labels) for head in logits]
    (losses[0] * weights[0] + losses[1] * weights[1]).backward()
    return Outcome(
        logits=tuple(head.numpy() for head in logits),
        losses=tuple(loss.item() for loss in losses),
        gradients={name: p.grad.numpy() for name, p in model.named_parameters()},
        image_gradient=x.grad.numpy().transpose(0, 3, 1, 2),
        state=model.state_dict(),
    )


def our_pass_by_definitions(model: Conformer, images: np.ndarray, labels: np.ndarray, weights: tuple[float, float] = (1.0, 1.0)) -> Outcome:
    """`our_pass` without a single kernel."""
    with minigrad.definitions():
        return our_pass(model, images, labels, weights)


def assert_same_outcome(actual: Outcome, expected: Outcome) -> None:
    """Two float64 passes agree: logits to 1e-9, gradients to 1e-8 relative and 1e-10 of the largest, running statistics to 1e-10."""
    for ours, theirs in zip(actual.logits, expected.logits, strict=True):
        assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    assert_allclose(actual.losses, expected.losses, rtol=1e-10)
    assert list(actual.gradients) == list(expected.gradients)
    largest = max(np.abs(gradient).max() for gradient in expected.gradients.values())
    for name, theirs in expected.gradients.items():
        assert_allclose(actual.gradients[name], theirs, rtol=1e-8, atol=1e-10 * largest, err_msg=name)
    assert_allclose(actual.image_gradient, expected.image_gradient, rtol=1e-8, atol=1e-10 * largest)
    assert list(actual.state) == list(expected.state)
    for name, theirs in expected.state.items():
        assert_allclose(actual.state[name], theirs, rtol=1e-10, atol=1e-10, err_msg=name)


def assert_same_pass(ours: Outcome, theirs: Outcome, moved: Callable[[int], Outcome]) -> bool:
    """`assert_same_up_to_rounding` of all that a pass gave; gradients are measured by the largest of them all. moved: `theirs`, shaken by a seed.

    Returns whether all of it was compared.
    """
    largest = max(np.abs(gradient).max() for gradient in theirs.gradients.values())

    def compare(shaken: list[Outcome]) -> bool:
        forward, gradients, states = zip(*(_parts(outcome) for outcome in (ours, theirs, *shaken)), strict=True)
        return all(
            [
                assert_same_up_to_rounding(*forward[:2], forward[2:]),
                assert_same_up_to_rounding(*gradients[:2], gradients[2:], largest=largest),
                assert_same_up_to_rounding(*states[:2], states[2:]),
            ]
        )

    return until_equal(moved, compare)


def _parts(outcome: Outcome) -> tuple[dict[str, np.ndarray], ...]:
    heads = ("conv", "trans")
    logits = {f"{head} logits": array for head, array in zip(heads, outcome.logits, strict=True)}
    losses = {f"{head} loss": np.array(loss) for head, loss in zip(heads, outcome.losses, strict=True)}
    return logits | losses, outcome.gradients | {"images": outcome.image_gradient}, outcome.state
