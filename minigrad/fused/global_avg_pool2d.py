"""Average pooling over the whole map (B, H, W, C): what is left is a number for each channel.

Its derivative is the same number at every pixel, so a rule states it, and neither kernel has a backward. Read next: `upsample_nearest.py`.
"""

from __future__ import annotations

from minigrad.backend import cuda, sums
from minigrad.fused.floats import check_floats
from minigrad.op import fused
from minigrad.tensor import Tensor


@fused
def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel over the whole map.

    Args:
        x: (B, H, W, C).

    Returns:
        (B, C).

    Raises:
        ValueError: x is not (B, H, W, C), or a map has no pixel. TypeError: x is not of floats.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.adaptive_avg_pool2d.html with output size 1, flattened.
    """
    return x.mean((1, 2))                                                  # (B, C)


@global_avg_pool2d.check_shapes
def _check(x) -> None:
    check_floats("global_avg_pool2d", "x", x)
    if x.ndim != 4 or 0 in x.shape[1:3]:
        raise ValueError(f"global_avg_pool2d: x must be (B, H, W, C) with at least one pixel, it has shape {x.shape}")


def _same_everywhere(g: Tensor, x_shape: tuple[int, ...]) -> Tensor:
    batch, height, width, channels = x_shape
    return (g / (height * width)).reshape(batch, 1, 1, channels).broadcast_to(x_shape)


global_avg_pool2d.derivative(x=_same_everywhere)


def cpu_forward(x):
    """The sums are products with rows of ones: NumPy's own mean takes three times as long."""
    batch, height, width, channels = x.shape
    return sums.column_sums(x.reshape(batch, height * width, channels)) / (height * width), ()


global_avg_pool2d.kernel("cpu", cpu_forward, None)


_cuda = cuda.Kernels(__file__)


def cuda_forward(x):
    """A block for 32 channels of an image. The gradient is the rule's, a broadcast view: no kernel is faster than what is not written."""
    batch, height, width, channels = x.shape
    y = cuda.array_module().empty((batch, channels), x.dtype)
    grid = (batch, -(-channels // 32))
    _cuda.launch(f"global_avg_pool2d_forward<{cuda.c_type(x.dtype)}>", grid, (32, 8), x, y, height * width, channels)
    return y, ()


global_avg_pool2d.kernel("cuda", cuda_forward, None)
