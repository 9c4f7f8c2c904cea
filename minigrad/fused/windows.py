"""Where the windows of an image lie, which convolution and pooling look through: how many there are, and which pixels each of them has.

How PyTorch lets a window, a stride or a factor be given: as a number, or as a pair of them where rows and columns differ. Read next: `conv2d.py`,
which asks for a `Geometry`, and `avg_pool2d.py`, which works along one `Axis` after the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from minigrad.fused.floats import check_floats
from minigrad.ops.movement import Pair
from minigrad.tensor import Tensor

__all__ = ["Axis", "Geometry", "Pair", "check_pairs", "check_pool", "pair", "window_axes"]


def pair(value: int | Pair | list[int]) -> Pair:
    """(rows, columns) as Python's numbers, from one number for both or one for each."""
    rows, columns = value if isinstance(value, tuple | list) else (value, value)
    return int(rows), int(columns)


def check_pairs(name: str, **arguments: Any) -> None:
    """Raise ValueError, in the name of the op or layer `name`, for an argument that `pair` cannot read, or with a number below 1 (padding: 0)."""
    for what, value in arguments.items():
        least = 0 if what == "padding" else 1
        numbers = value if isinstance(value, tuple | list) else (value, value)
        if len(numbers) != 2 or not all(isinstance(n, int | np.integer) and n >= least for n in numbers):
            raise ValueError(f"{name}: {what} must be a whole number of at least {least} or a pair (rows, columns) of them, it is {value!r}")


class Axis(NamedTuple):
    """The windows along one axis of an image: `kernel` pixels long, one every `stride` pixels, the first starting `padding` pixels before it."""

    size: int
    kernel: int
    stride: int
    padding: int

    @property
    def count(self) -> int:
        """How many windows fit."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def disjoint(self) -> bool:
        """Is every pixel in at most one window?"""
        return self.stride >= self.kernel

    @property
    def tiling(self) -> bool:
        """Is every pixel in exactly one window, and no padding?"""
        return self.stride == self.kernel and self.padding == 0 and self.size % self.kernel == 0

    def offsets(self) -> list[tuple[slice, slice]]:
        """For each place within a window: the windows that have an image pixel there, not padding, and those pixels."""
        found = []
        for place in range(self.kernel):
            shift = place - self.padding                                   # window w has pixel w * stride + shift here
            first = max(0, -(shift // self.stride))
            last = min(self.count - 1, (self.size - 1 - shift) // self.stride)
            if first <= last:
                found.append((slice(first, last + 1), slice(first * self.stride + shift, last * self.stride + shift + 1, self.stride)))
        return found


def window_axes(shape: tuple[int, ...], kernel_size: int | Pair, stride: int | Pair | None, padding: int | Pair) -> tuple[Axis, Axis]:
    """The windows along the rows and along the columns of an image (B, H, W, C)."""
    strides = pair(kernel_size if stride is None else stride)
    rows, columns = (Axis(*numbers) for numbers in zip(shape[1:3], pair(kernel_size), strides, pair(padding), strict=True))
    return rows, columns


def check_pool(name: str, x: Tensor, kernel_size: int | Pair, stride: int | Pair | None, padding: int | Pair) -> None:
    """Raise TypeError or ValueError, in the name of the op `name`, for what cannot be pooled."""
    check_floats(name, "x", x)
    if x.ndim != 4:
        raise ValueError(f"{name}: x must be (B, H, W, C), it has shape {x.shape}")
    check_pairs(name, kernel_size=kernel_size, stride=kernel_size if stride is None else stride, padding=padding)
    for axis in window_axes(x.shape, kernel_size, stride, padding):
        if 2 * axis.padding > axis.kernel:
            raise ValueError(f"{name}: padding must be at most half of the window, it is {axis.padding} and the window {axis.kernel}")
        if axis.size + 2 * axis.padding < axis.kernel:
            message = f"{name}: a window of {axis.kernel} does not fit in {axis.size} pixels with padding {axis.padding} (x shape {x.shape})"
            if x.shape[1] < x.shape[2] == x.shape[3]:
                message += "; images are (B, H, W, C) here: if x is (B, C, H, W), pass x.transpose(0, 2, 3, 1)"
            raise ValueError(message)


class Geometry(NamedTuple):
    """How the windows lie: all that convolution and its two gradients need to know besides the arrays. Pairs are (rows, columns)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @classmethod
    def of(cls, weight, stride, padding, dilation, groups) -> Geometry:
        """That of a convolution with these arguments, in Python's numbers."""
        return cls(tuple(weight.shape[2:]), pair(stride), pair(padding), pair(dilation), int(groups))

    @property
    def reach(self) -> Pair:
        """The distance from a window's first row (column) to its last: dilation * (kernel - 1)."""
        return self.dilation[0] * (self.kernel[0] - 1), self.dilation[1] * (self.kernel[1] - 1)

    @property
    def numbers(self) -> list[int]:
        """What all CUDA kernels are told of the windows."""
        return [*self.kernel, *self.stride, *self.padding, *self.dilation]

    @property
    def pointwise(self) -> bool:
        """Is each window one pixel, and each pixel one window (a 1x1 convolution)?"""
        return self.kernel == self.stride == (1, 1) and self.padding == (0, 0)

    def output_size(self, height: int, width: int) -> Pair:
        """How many windows there are in an image."""
        axes = zip((height, width), self.reach, self.stride, self.padding, strict=True)
        rows, columns = (Axis(size, reach + 1, stride, padding).count for size, reach, stride, padding in axes)
        return rows, columns
