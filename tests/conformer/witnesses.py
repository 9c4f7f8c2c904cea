"""One pass through either Conformer, ours or the PyTorch one, seen in the same form: arrays in PyTorch's (B, C, H, W) order, by parameter name.

test_oracle.py holds both against the recorded numbers of the original; test_parity.py holds them against each other.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from numpy.testing import assert_allclose

import minigrad
import minigrad.functional as F
from conformer import Conformer
from minigrad import Tensor
from minigrad.nn import dropout
from tests.conformer.torch_conformer import TorchConformer, give_masks

ORACLE = Path(__file__).parent / "oracle"

torch.set_num_threads(1)  # its threads spin while they wait, which on shared cores costs ten times what they bring to arrays this small


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


def seeded_state(shapes: Iterable[tuple[str, tuple[int, ...]]], seed: int) -> dict[str, np.ndarray]:
    """A whole state_dict in which nothing is at its usual start: norms scale, flip and shift, statistics are not 0 and 1, batches were counted."""
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("num_batches_tracked"):
            return rng.integers(0, 9, shape)
        if name.endswith("running_var"):
            return rng.uniform(0.5, 1.5, shape)
        if name.endswith("weight") and len(shape) == 1:
            return rng.normal(1.0, 0.5, shape)
        if name.endswith("weight"):
            return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return 0.3 * rng.standard_normal(shape)

    return {name: np.asarray(draw(name, shape)) for name, shape in shapes}


def shaken(array: np.ndarray, seed: int = 0) -> np.ndarray:
    """The array with up to four roundings' worth of random noise on each of its numbers."""
    if array.dtype.kind != "f":
        return array
    return array * (1 + np.random.default_rng(seed).uniform(-(2.0**-50), 2.0**-50, array.shape))


def torch_model(state: dict[str, np.ndarray] | None = None, **config) -> TorchConformer:
    """The PyTorch Conformer in float64; filled by the oracle's recipe unless a state is given."""
    with torch.device("meta"):
        model = TorchConformer(**config)
    model = model.double().to_empty(device="cpu")
    state = filled_state((name, tuple(t.shape)) for name, t in model.state_dict().items()) if state is None else state
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
    return model


def our_model(state: dict[str, np.ndarray] | None = None, seed: int | None = None, **config) -> Conformer:
    """Our Conformer in float64; filled by the oracle's recipe unless a state or a seed is given."""
    model = Conformer(**config).to(dtype=np.float64)
    shapes = [(name, array.shape) for name, array in model.state_dict().items()]
    state = state if state is not None else filled_state(shapes) if seed is None else seeded_state(shapes, seed)
    model.load_state_dict(state)
    return model


Masks = list[tuple[float, torch.Tensor]]


@contextmanager
def recorded_masks() -> Iterator[Masks]:
    """Every mask that our layers draw inside, with its rate, in the order of the forward pass: what `give_masks` takes."""
    draw, drawn = dropout.keep_mask, []

    def keep_mask(purpose: str, shape: tuple[int, ...], p: float, device: str) -> Tensor:
        mask = draw(purpose, shape, p, device)
        drawn.append((p, torch.from_numpy(mask.numpy().copy())))
        return mask

    with patch.object(dropout, "keep_mask", keep_mask):
        yield drawn


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


def assert_same_up_to_rounding(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], moved: dict[str, np.ndarray], largest: float | None = None
) -> None:
    """The same names in the same order, and numbers that differ by rounding alone: at most 1e-10 of the largest where nothing amplifies it.

    How much it is amplified depends on the network: a norm of nearly equal numbers has a slope of 1 / sqrt(eps), and there are tens of norms. So the
    bound grows with what `theirs` itself moves by when its weights and images are `shaken`: 100 times that, since this is one rounding of many.

    Args:
        moved: what `theirs` becomes by shaking.
        largest: of the terms that the numbers are sums of; None: of each array, and at least 1.
    """
    assert list(ours) == list(theirs)
    for name, reference in theirs.items():
        terms = max(1.0, np.abs(reference).max(initial=0.0)) if largest is None else largest
        bound = 1e-10 * terms + 100 * np.abs(moved[name] - reference).max(initial=0.0)
        assert ours[name].shape == reference.shape and ours[name].dtype == reference.dtype, name
        assert np.isfinite(reference).all(), f"{name}: the reference is not finite"
        error = np.abs(ours[name] - reference).max(initial=0.0)
        assert error <= bound, f"{name}: error {error:.3g} > {bound:.3g}, largest {np.abs(reference).max():.3g}, terms {terms:.3g}"


def assert_same_pass(ours: Outcome, theirs: Outcome, moved: Outcome) -> None:
    """`assert_same_up_to_rounding` of all that a pass gave; gradients are measured by the largest of them all."""
    largest = max(np.abs(gradient).max() for gradient in theirs.gradients.values())
    forward, gradients, states = zip(*(_parts(outcome) for outcome in (ours, theirs, moved)), strict=True)
    assert_same_up_to_rounding(*forward)
    assert_same_up_to_rounding(*gradients, largest=largest)
    assert_same_up_to_rounding(*states)


def _parts(outcome: Outcome) -> tuple[dict[str, np.ndarray], ...]:
    heads = ("conv", "trans")
    logits = {f"{head} logits": array for head, array in zip(heads, outcome.logits, strict=True)}
    losses = {f"{head} loss": np.array(loss) for head, loss in zip(heads, outcome.losses, strict=True)}
    return logits | losses, outcome.gradients | {"images": outcome.image_gradient}, outcome.state
