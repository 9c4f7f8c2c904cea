"""Linear: one matrix product with a bias. Read next: `conv.py`."""

from __future__ import annotations

import math

import numpy as np

from minigrad import functional as F
from minigrad.nn import init
from minigrad.nn.module import Module, Parameter
from minigrad.tensor import Tensor

__all__ = ["Linear"]


class Linear(Module):
    """y = x weight^T + bias over the last axis.

    Args:
        in_features, out_features: widths of input and output.
        bias: whether there is a bias.

    Attributes:
        weight: (out_features, in_features), bias: (out_features,) or None; both start uniform within +-1/sqrt(in_features).

    Raises:
        ValueError: a width is no whole number, or negative.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        check_widths("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        self.bias = Parameter(np.empty(out_features, np.float32)) if bias else None
        default_init(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}" + ("" if self.bias is not None else ", bias=False")


def check_widths(layer: str, **widths: object) -> None:
    """Raise ValueError, in a layer's name, where a number of features or channels is no whole number of at least 0: `4.0 * width` is none."""
    for name, width in widths.items():
        if not isinstance(width, int | np.integer) or width < 0:
            raise ValueError(f"{layer}: {name} must be a whole number of at least 0, it is {width!r}")


def default_init(weight: Tensor, bias: Tensor | None) -> None:
    """PyTorch's initialisation of linear and convolution layers: both uniform within +-1/sqrt(fan_in).

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """
    init.kaiming_uniform_(weight, a=math.sqrt(5))  # gain sqrt(2 / 6), times sqrt(3): 1
    if bias is not None:
        fan_in = init.fans(weight)[0]
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        init.uniform_(bias, -bound, bound)
