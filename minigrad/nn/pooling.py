"""Pooling layers over (B, H, W, C) maps. Read next: `minigrad/fused/max_pool2d.py` and `avg_pool2d.py` for the operations."""

from __future__ import annotations

from minigrad import functional as F
from minigrad.fused.windows import Pair, check_pairs, pair
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = ["AvgPool2d", "MaxPool2d"]


class _Pool2d(Module):
    """What the pooling layers share: their windows."""

    def __init__(self, kernel_size: int | Pair | list[int], stride: int | Pair | list[int] | None = None, padding: int | Pair | list[int] = 0):
        super().__init__()
        stride = kernel_size if stride is None else stride
        check_pairs(type(self).__name__, kernel_size=kernel_size, stride=stride, padding=padding)
        self.kernel_size, self.stride, self.padding = pair(kernel_size), pair(stride), pair(padding)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool2d):
    """The largest value of each window; padding never wins. `stride` None means `kernel_size`.

    Raises ValueError for a window, stride or padding that is no whole number or pair of them, and in `forward` where no window fits.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, Ho, Wo, C)."""
        return F.max_pool2d(x, self.kernel_size, stride=self.stride, padding=self.padding)


class AvgPool2d(_Pool2d):
    """The mean of each window. `stride` None means `kernel_size`. Raises what `MaxPool2d` raises.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.AvgPool2d.html
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, Ho, Wo, C)."""
        return F.avg_pool2d(x, self.kernel_size, stride=self.stride, padding=self.padding)
