"""Conv2d over channels-last feature maps. Read next: `minigrad/fused/conv2d.py` for the operation itself."""

from __future__ import annotations

import numpy as np

from minigrad import functional as F
from minigrad.fused.windows import Pair, check_pairs, pair
from minigrad.nn.linear import check_widths, default_init
from minigrad.nn.module import Module, Parameter
from minigrad.tensor import Tensor

__all__ = ["Conv2d"]


class Conv2d(Module):
    """A 2-d convolution (cross-correlation, as everywhere in deep learning) of (B, H, W, C) maps, zero-padded.

    Args:
        in_channels, out_channels: channels of input and output.
        kernel_size, stride, padding, dilation: one number, or one for rows and one for columns.
        groups: into how many groups the channels are split, each with its own filters.
        bias: whether there is a bias.

    Attributes:
        weight: (out_channels, in_channels / groups, kh, kw), PyTorch's shape; bias: (out_channels,) or None; both start uniform within
            +-1/sqrt(fan_in).

    Raises:
        ValueError: `groups` does not divide both numbers of channels, or a number of channels or of a window is not a whole one, or too small.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Conv2d.html
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair | list[int],
        stride: int | Pair | list[int] = 1,
        padding: int | Pair | list[int] = 0,
        dilation: int | Pair | list[int] = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        check_widths("Conv2d", in_channels=in_channels, out_channels=out_channels, groups=groups)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(f"Conv2d: groups is {groups}; it must divide in_channels ({in_channels}) and out_channels ({out_channels})")
        check_pairs("Conv2d", kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = pair(kernel_size), pair(stride), pair(padding), pair(dilation)
        self.weight = Parameter(np.empty((out_channels, in_channels // groups, *self.kernel_size), np.float32))
        self.bias = Parameter(np.empty(out_channels, np.float32)) if bias else None
        default_init(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) -> (B, Ho, Wo, out_channels)."""
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups)

    def extra_repr(self) -> str:
        settings = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        for name, default in (("padding", (0, 0)), ("dilation", (1, 1)), ("groups", 1)):
            if getattr(self, name) != default:
                settings.append(f"{name}={getattr(self, name)}")
        return ", ".join(settings) + ("" if self.bias is not None else ", bias=False")
