"""Nearest-neighbour upsampling of feature maps (B, H, W, C) by whole factors: each pixel becomes a block.

Its transpose sums blocks, which is average pooling without the division; so the derivative is one line. Read first: `avg_pool2d.py`.
"""

from __future__ import annotations

import numpy as np

from minigrad.backend import cuda
from minigrad.fused.avg_pool2d import avg_pool2d
from minigrad.fused.floats import check_floats
from minigrad.fused.windows import Pair, check_pairs, pair
from minigrad.op import fused
from minigrad.tensor import Tensor


@fused
def upsample_nearest(x: Tensor, scale_factor: int | Pair) -> Tensor:
    """Repeat each pixel in a block of `scale_factor` rows and columns.

    Args:
        x: (B, H, W, C).
        scale_factor: a whole number, or a pair (rows, columns).

    Returns:
        (B, H * rows, W * columns, C).

    Raises:
        ValueError: x is not (B, H, W, C), or a factor is not a whole number of at least 1. TypeError: x is not of floats.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.interpolate.html, mode "nearest" (there in NCHW).
    """
    rows, columns = pair(scale_factor)
    batch, height, width, channels = x.shape
    blocks = x.reshape(batch, height, 1, width, 1, channels).broadcast_to((batch, height, rows, width, columns, channels))
    copies = blocks * 1.0                                                  # not a view of x, even if both factors are 1
    return copies.reshape(batch, height * rows, width * columns, channels)  # (B, H rows, W columns, C)


@upsample_nearest.check_shapes
def _check(x, scale_factor) -> None:
    check_floats("upsample_nearest", "x", x)
    if x.ndim != 4:
        raise ValueError(f"upsample_nearest: x must be (B, H, W, C), it has shape {x.shape}")
    check_pairs("upsample_nearest", scale_factor=scale_factor)


def _block_sums(g: Tensor, scale_factor: int | Pair) -> Tensor:
    rows, columns = pair(scale_factor)
    if g.size == 0:  # an empty map has no windows
        batch, height, width, channels = g.shape
        return g.reshape(batch, height // rows, rows, width // columns, columns, channels).sum((2, 4))
    return avg_pool2d(g, (rows, columns)) * (rows * columns)


upsample_nearest.derivative(x=_block_sums)


def cpu_forward(x, scale_factor):
    """Columns before rows: the second, larger step then copies whole rows. Nothing is saved."""
    rows, columns = pair(scale_factor)
    return np.repeat(np.repeat(x, columns, axis=2), rows, axis=1), ()


upsample_nearest.kernel("cpu", cpu_forward, None)


_cuda = cuda.Kernels(__file__)


def _cuda_launch(name: str, source, target, images, factors: Pair) -> None:
    """Launch a kernel with a thread for every pack of `target`, each block within a row of it. images: the smaller of the two, (B, H, W, C)."""
    width = cuda.vector_width(source.shape[3], source, target)
    types, packs = cuda.pack_types(source.dtype, width), source.shape[3] // width
    grid = target.shape[0] * target.shape[1], -(-target.shape[2] * packs // 128)
    _cuda.launch(f"{name}<{types}>", grid, 128, source, target, images.shape[2], packs, *factors)


def cuda_forward(x, scale_factor):
    """A thread for four output numbers: see upsample_nearest.cu."""
    rows, columns = pair(scale_factor)
    batch, height, width, channels = x.shape
    y = cuda.array_module().empty((batch, height * rows, width * columns, channels), x.dtype)
    _cuda_launch("upsample_nearest_forward", x, y, x, (rows, columns))
    return y, (x.shape, (rows, columns))


def cuda_backward(dy, saved, needs):
    """The sum of each block."""
    shape, factors = saved
    dx = cuda.array_module().empty(shape, dy.dtype)
    _cuda_launch("upsample_nearest_backward", dy, dx, dx, factors)
    return (dx,)


upsample_nearest.kernel("cuda", cuda_forward, cuda_backward, fresh=True)
