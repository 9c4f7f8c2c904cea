"""A layer of ours and the same in PyTorch, brought to the same state, the same dropout masks and the same numbers: what they give, compared.

`check_layer` does it for one layer, by kernels and by definitions, in training and in evaluation; tests/conformer does it for whole networks.
Read next: `test_layers.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch

import minigrad
from minigrad import Tensor, nn
from minigrad.nn import dropout
from tests.support import rng

torch.set_num_threads(1)  # its threads spin while they wait, which on shared cores costs ten times what they bring to arrays this small

Masks = list[tuple[float, torch.Tensor]]
Moved = TypeVar("Moved")
Said = TypeVar("Said")


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


class Dropout(torch.nn.Module):
    """Dropout whose masks come from outside (`give_masks`), so that two networks can share them: x * mask / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.masks: Iterator[tuple[float, torch.Tensor]] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        if self.masks is None:
            raise ValueError(f"{type(self).__name__}: rate {self.p} in training needs masks; see give_masks")
        rate, mask = next(self.masks)
        if not math.isclose(rate, self.p) or mask.shape != self.wanted(x):
            raise ValueError(f"{type(self).__name__}: rate {self.p} and {tuple(x.shape)} meet a mask of rate {rate} and {tuple(mask.shape)}")
        return x * mask.to(x.dtype).reshape(mask.shape + (1,) * (x.ndim - mask.ndim)) / (1 - self.p)

    def wanted(self, x: torch.Tensor) -> torch.Size:
        return x.shape


class DropPath(Dropout):
    """The same with one mask value a sample: stochastic depth."""

    def wanted(self, x: torch.Tensor) -> torch.Size:
        return x.shape[:1]


def give_masks(module: torch.nn.Module, masks: Iterable[tuple[float, torch.Tensor]]) -> Iterator[tuple[float, torch.Tensor]]:
    """Let the dropouts of a module take these (rate, mask) in turn, as the forward pass comes by; what is returned has those that are left."""
    shared = iter(masks)
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.masks = shared
    return shared


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


def shaken_inside(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module, which from now on shakes what every layer in it returns, and the gradient that comes back through it, by `shaken`'s noise.

    Where a batch norm sees equal numbers, gradients are sums that cancel, and what is left of them is rounding, a thousandfold with each norm. The
    reference may cancel to exactly 0, for any weights: only rounding inside shows that 0 is as good as any other number there.
    """
    generator = np.random.default_rng(seed)

    def shake(_layer: torch.nn.Module, _inputs: tuple, y: torch.Tensor) -> torch.Tensor:
        return y * torch.from_numpy(1 + generator.uniform(-(2.0**-50), 2.0**-50, y.shape))

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(shake)
    return module


def until_equal(shake: Callable[[int], Moved], compare: Callable[[list[Moved]], Said]) -> Said:
    """Call `compare` with what one seed of `shaken` makes of a reference, then with what two make, until it finds no difference; raise the fifth.

    Returns what the last call of `compare` returned. How far one shake moves a number is luck, most of all in an array of one number: a few show what
    rounding can do, and are rarely needed.
    """
    moved: list[Moved] = []
    for seed in range(4):
        moved.append(shake(seed))
        with suppress(AssertionError):
            return compare(moved)
    return compare([*moved, shake(4)])


def assert_same_up_to_rounding(
    ours: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    moved: Sequence[dict[str, np.ndarray]],
    largest: float | None = None,
    relative: float = 1e-10,
) -> bool:
    """The same names in the same order, and numbers that differ by rounding alone: at most `relative` of the largest where nothing amplifies it.

    How much it is amplified depends on the network: a norm of nearly equal numbers has a slope of 1 / sqrt(eps), and there are tens of norms. So the
    bound grows with what `theirs` itself moves by when its weights, images and layers are `shaken`: 100 times that, since a layer rounds many times.
    Where `theirs` keeps less than six digits of any number, nothing is compared: a batch norm over equal numbers multiplies what is left of sums that
    cancel a thousandfold, the next one again, and how far one shake moves it says no more than an order of magnitude.

    Args:
        moved: what `theirs` becomes by shaking, once or several times; the farthest counts.
        largest: of the terms that the numbers are sums of; None: of each array, and at least 1.

    Returns:
        Whether the numbers were compared. Whoever draws references must see to it that nearly all are: `assert_nearly_all`.
    """
    assert list(ours) == list(theirs)
    terms = {name: max(1.0, np.abs(reference).max(initial=0.0)) if largest is None else largest for name, reference in theirs.items()}
    noise = {name: max(np.abs(each[name] - reference).max(initial=0.0) for each in moved) for name, reference in theirs.items()}
    for name, reference in theirs.items():
        assert ours[name].shape == reference.shape and ours[name].dtype == reference.dtype, name
        assert np.isfinite(reference).all(), f"{name}: the reference is not finite"
        assert np.isfinite(ours[name]).all(), f"{name} is not finite"
    if any(noise[name] > 1e-6 * terms[name] for name in theirs):
        return False
    for name, reference in theirs.items():
        error, bound = np.abs(ours[name] - reference).max(initial=0.0), relative * terms[name] + 100 * noise[name]
        assert error <= bound, f"{name}: error {error:.3g} > {bound:.3g}, largest {np.abs(reference).max():.3g}, terms {terms[name]:.3g}"
    return True


def assert_nearly_all(compared: Sequence[bool]) -> None:
    """Of the references that a test drew, at most one in ten and two more kept too few digits to be compared with."""
    left_out = len(compared) - sum(compared)
    assert compared and left_out <= 2 + len(compared) // 10, f"{left_out} of {len(compared)} references were not compared with"


def run_layer(layer: Any, run: Callable[..., Any], inputs: Sequence[np.ndarray], seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Outputs and gradients by name, and the state afterwards, of either library's layer; four-dimensional arrays are (B, H, W, C) outside.

    What a gradient does not reach has none here either.
    """
    ours = isinstance(layer, nn.Module)
    layer.zero_grad()
    if ours:
        leaves = [Tensor(x, requires_grad=True) for x in inputs]
    else:
        leaves = [torch.tensor(x.transpose(0, 3, 1, 2) if x.ndim == 4 else x, requires_grad=True) for x in inputs]

    def plain(x: Any) -> np.ndarray:
        array = x.numpy() if ours else x.detach().numpy()
        return array if ours or array.ndim != 4 else array.transpose(0, 2, 3, 1)

    result = run(layer, *leaves)
    outputs = list(result) if isinstance(result, tuple) else [result]
    found = {f"output {k}": plain(y) for k, y in enumerate(outputs)}
    total = 0.0
    for k, y in enumerate(outputs):
        upstream = rng(seed + k).uniform(-1, 1, found[f"output {k}"].shape)
        weights = upstream if ours else torch.from_numpy(upstream.transpose(0, 3, 1, 2) if y.ndim == 4 else upstream)
        total = total + (y * weights).sum()
    total.backward()
    found |= {f"gradient of input {k}": plain(x.grad) for k, x in enumerate(leaves) if x.grad is not None}
    for name, parameter in layer.named_parameters():
        if parameter.grad is not None:  # a parameter keeps PyTorch's shape and layout
            found[f"gradient of {name}"] = np.array(parameter.grad.numpy())
    return found, {name: np.array(value) if ours else value.numpy().copy() for name, value in layer.state_dict().items()}


def check_layer(
    ours: nn.Module, theirs: torch.nn.Module, *inputs: np.ndarray, run: Callable[..., Any] | None = None, seed: int = 0, relative: float = 1e-11
) -> None:
    """Names, shapes, types and order of the state; outputs, gradients of inputs and parameters, and the state after a pass in each mode.

    Args:
        run: calls PyTorch's layer with its inputs, (B, C, H, W) where ours has (B, H, W, C); `theirs(*inputs)` by default.
        seed: of the state, the masks and the upstream gradients.
    """
    ours.to(dtype=np.float64)
    theirs.double()
    described = [(name, value.shape, str(value.dtype)) for name, value in ours.state_dict().items()]
    assert described == [(name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in theirs.state_dict().items()]
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    state = seeded_state([(name, shape) for name, shape, _ in described], seed)
    theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    moved = copy.deepcopy(theirs)
    moved.load_state_dict({name: torch.tensor(shaken(value)) for name, value in state.items()})

    for training in (True, False):
        passes = []
        for by_definitions in (False, True):
            ours.load_state_dict(state)
            minigrad.manual_seed(seed)
            with recorded_masks() as masks, minigrad.definitions() if by_definitions else minigrad.enable_grad():
                passes.append(run_layer(ours.train(training), lambda layer, *x: layer(*x), inputs, seed))
        for model in (theirs, moved):
            left = give_masks(model.train(training), masks)
            passes.append(run_layer(model, run or (lambda layer, *x: layer(*x)), inputs if model is theirs else [shaken(x) for x in inputs], seed))
            assert next(left, None) is None, "masks that no layer took"
        reference, close_by = passes[2:]
        largest = max((np.abs(array).max(initial=0.0) for array in reference[0].values()), default=0.0)
        for found in passes[:2]:
            assert assert_same_up_to_rounding(found[0], reference[0], close_by[:1], largest, relative), "the reference is mostly rounding"
            assert assert_same_up_to_rounding(found[1], reference[1], close_by[1:], relative=relative), "the reference's state is mostly rounding"
        theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        moved.load_state_dict({name: torch.tensor(shaken(value)) for name, value in state.items()})
