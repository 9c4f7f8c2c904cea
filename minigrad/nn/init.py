"""Initialisers: they fill a tensor in place and return it.

Their draws come from `minigrad/random.py` with the purpose "init", so `manual_seed` makes a model reproducible, on every device and in every
dtype: numbers are drawn in float64 on the CPU and then cast. Names and distributions are PyTorch's. Read next: `linear.py`, which uses them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import numpy as np

from minigrad import backend, random
from minigrad import pytorch_names as _pytorch
from minigrad.tensor import Tensor

__all__ = ["calculate_gain", "kaiming_normal_", "kaiming_uniform_", "normal_", "ones_", "skipped", "trunc_normal_", "uniform_", "zeros_"]


_skipped: ContextVar[bool] = ContextVar("minigrad.nn.init", default=False)


@contextlib.contextmanager
def skipped() -> Iterator[None]:
    """A block in which initialisers that draw leave tensors as they are, and use up no draw: for a network whose weights are loaded next.

    Until then its numbers are whatever the memory held. PyTorch's `torch.nn.utils.skip_init` does this for one layer.
    """
    token = _skipped.set(True)
    try:
        yield
    finally:
        _skipped.reset(token)


def _fill(tensor: Tensor, value: np.ndarray | float) -> Tensor:
    tensor.detach().copy_(backend.to_device(np.asarray(value), tensor.device))
    return tensor


def _draw(tensor: Tensor, numbers: Callable[[np.random.Generator], np.ndarray]) -> Tensor:
    """Fill with `numbers` of the next generator, outside `skipped`."""
    return tensor if _skipped.get() else _fill(tensor, numbers(random.generator("init", *random.next_draw())))


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return _fill(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return _fill(tensor, 1.0)


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    """Fill with numbers drawn uniformly from [a, b]: b itself comes from rounding to the tensor's dtype, once in 30 million times in float32."""
    return _draw(tensor, lambda generator: generator.uniform(a, b, tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Fill with numbers drawn from the normal distribution N(mean, std^2)."""
    return _draw(tensor, lambda generator: generator.normal(mean, std, tensor.shape))


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fill with numbers drawn from N(mean, std^2), drawing again those that fall outside [a, b].

    Args:
        tensor: what to fill.
        mean, std: of the normal distribution before it is cut.
        a, b: the bounds themselves, not multiples of std: at std 0.02 the default bounds are never reached.

    Raises:
        ValueError: std is not positive, or [a, b] holds less than a thousandth of the distribution, so that drawing again would take too long.

    Source: https://docs.pytorch.org/docs/stable/nn.init.html#torch.nn.init.trunc_normal_
    """
    if not std > 0:
        raise ValueError(f"trunc_normal_: std is {std}; give a positive number")
    inside = (math.erf((b - mean) / std / math.sqrt(2)) - math.erf((a - mean) / std / math.sqrt(2))) / 2
    if not inside >= 1e-3:
        raise ValueError(
            f"trunc_normal_: [{a}, {b}] holds only {max(inside, 0.0):.1e} of a normal distribution with mean {mean} and std {std}; widen it"
        )

    def numbers(generator: np.random.Generator) -> np.ndarray:
        values = generator.normal(mean, std, tensor.size)
        outside = np.flatnonzero((values < a) | (values > b))
        while outside.size:
            drawn = generator.normal(mean, std, outside.size)
            values[outside] = drawn
            outside = outside[(drawn < a) | (drawn > b)]
        return values.reshape(tensor.shape)

    return _draw(tensor, numbers)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance of activations through `nonlinearity`: "linear", "conv2d", "sigmoid", "tanh", "relu", or "leaky_relu"
    with slope `param` (0.01 if not given).

    Source: https://docs.pytorch.org/docs/stable/nn.init.html#torch.nn.init.calculate_gain
    """
    a = 0.01 if param is None else param
    gains = {"linear": 1.0, "conv2d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "leaky_relu": math.sqrt(2 / (1 + a * a))}
    if nonlinearity not in gains:
        raise ValueError(f"calculate_gain: nonlinearity is {nonlinearity!r}; give one of {', '.join(gains)}")
    return gains[nonlinearity]


def fans(tensor: Tensor) -> tuple[int, int]:
    """`(fan_in, fan_out)` of a weight: how many inputs an output sums, how many outputs an input reaches. Linear (O, I); conv (O, I / groups, kh,
    kw).
    """
    if tensor.ndim < 2:
        raise ValueError(f"fan in and fan out need a weight of 2 or more axes, this one has shape {tensor.shape}")
    taps = math.prod(tensor.shape[2:])
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"kaiming: mode is {mode!r}; give 'fan_in' or 'fan_out'")
    fan = fans(tensor)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0


def kaiming_normal_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Fill with N(0, gain^2 / fan): keeps the variance of activations (fan_in) or of gradients (fan_out) from layer to layer.

    Args:
        tensor: a weight, (O, I) or (O, I / groups, kh, kw).
        a: slope of the leaky ReLU.
        mode: "fan_in" or "fan_out".
        nonlinearity: what follows the layer, see `calculate_gain`.

    Source: He et al. 2015, "Delving deep into rectifiers"; https://docs.pytorch.org/docs/stable/nn.init.html#torch.nn.init.kaiming_normal_
    """
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))


def kaiming_uniform_(tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """Fill uniformly within +-sqrt(3) gain / sqrt(fan), which has the variance of `kaiming_normal_`; arguments as there.

    Source: He et al. 2015; https://docs.pytorch.org/docs/stable/nn.init.html#torch.nn.init.kaiming_uniform_
    """
    bound = math.sqrt(3) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


globals()["__getattr__"] = _pytorch.absent(__name__, _pytorch.IN_INIT)  # as a `def`, a type checker would take it for any name
