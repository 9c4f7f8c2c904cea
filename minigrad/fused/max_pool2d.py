"""Max pooling of feature maps (B, H, W, C).

The gradient goes to the first pixel, in reading order, that holds the window's maximum, as in PyTorch. The CPU kernel takes the maximum along the
rows and then along the columns, kh + kw comparisons in place of kh * kw. Read `windows.py` first: it says where the windows lie.
Read next: `global_avg_pool2d.py`.
"""

from __future__ import annotations

import numpy as np

from minigrad import ops
from minigrad.backend import cuda
from minigrad.fused.avg_pool2d import for_image_blocks, launch_by_rows, reduce_windows
from minigrad.fused.windows import Axis, Pair, check_pool, window_axes
from minigrad.op import fused
from minigrad.tensor import Tensor


@fused
def max_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """The maximum of each window. A window with a NaN gives NaN, and its gradient to the first of them (PyTorch's: to the last).

    Args:
        x: (B, H, W, C).
        kernel_size, stride, padding: pixels; a number, or a pair (rows, columns). stride None is kernel_size. The padding is -inf: it never wins.

    Returns:
        (B, Ho, Wo, C), with Ho = (H + 2 padding - kernel_size) // stride + 1: rows that fill no window are left out.

    Raises:
        ValueError: a window that does not fit, or padding of more than half a window. TypeError: x is not of floats.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.max_pool2d.html (there in NCHW).
    """
    rows, columns = window_axes(x.shape, kernel_size, stride, padding)
    around = ((0, 0), (rows.padding,) * 2, (columns.padding,) * 2, (0, 0))
    batch, height, width, channels = x.shape[0], rows.count, columns.count, x.shape[3]

    def candidates(image: Tensor) -> Tensor:                                                                # (B, Ho, Wo, kh kw, C)
        padded = ops.pad(image, around, -float("inf"))                                                      # (B, H + 2p, W + 2p, C)
        windows = ops.windows(padded, (rows.kernel, columns.kernel), (rows.stride, columns.stride), (1, 1))  # (B, Ho, Wo, kh, kw, C)
        return windows.reshape(batch, height, width, rows.kernel * columns.kernel, channels)

    above_padding = ops.maximum(x.detach(), np.finfo(x.dtype).min)                                          # also where x is -inf itself
    first = candidates(above_padding).argmax(3).reshape(batch, height, width, 1, channels)                  # (B, Ho, Wo, 1, C)
    return ops.gather(candidates(x), first, 3).reshape(batch, height, width, channels)                      # (B, Ho, Wo, C)


@max_pool2d.check_shapes
def _check(x, kernel_size, stride, padding) -> None:
    check_pool("max_pool2d", x, kernel_size, stride, padding)


def cpu_forward(x, kernel_size, stride, padding):
    """Along the rows first, where NumPy's inner loop is W * C long."""
    rows, columns = window_axes(x.shape, kernel_size, stride, padding)
    batch, _, _, channels = x.shape
    y = np.empty((batch, rows.count, columns.count, channels), x.dtype)

    def work(block: slice) -> None:
        highest = reduce_windows(np.maximum, -np.inf, x[block], 1, rows)   # (b, Ho, W, C)
        y[block] = reduce_windows(np.maximum, -np.inf, highest, 2, columns)

    for_image_blocks(work, x)
    return y, (x, y, rows, columns)


def _to_first(dy: np.ndarray, y: np.ndarray, x: np.ndarray, axis: int, windows: Axis, has_nan: bool, finite: bool) -> np.ndarray:
    """Add each window's gradient to its first pixel along `axis` of x that equals the maximum y."""
    along = (slice(None),) * axis
    dx = np.zeros_like(x)
    open_ = np.ones(y.shape, bool)                                         # windows whose maximum is still to come
    for which, pixels in windows.offsets():
        which, pixels = (*along, which), (*along, pixels)
        hit = x[pixels] == y[which]
        if has_nan:
            hit |= np.isnan(x[pixels])                                     # the maximum is NaN then
        hit &= open_[which]
        open_[which] ^= hit
        dx[pixels] += dy[which] * hit if finite else np.where(hit, dy[which], 0)  # inf * 0 is NaN
    return dx


def cpu_backward(dy, saved, needs):
    """The first maximum in reading order lies in the first row that has it; within that row it is the first. So: to the row, then to the pixel."""
    x, y, rows, columns = saved
    dx = np.empty_like(x)

    def work(block: slice) -> None:
        part = x[block]
        row_max = reduce_windows(np.maximum, -np.inf, part, 2, columns)    # (b, H, Wo, C)
        has_nan = bool(np.isnan(y[block]).any())
        finite = bool(np.isfinite(dy[block]).all())
        row_gradient = _to_first(dy[block], y[block], row_max, 1, rows, has_nan, finite)
        dx[block] = _to_first(row_gradient, row_max, part, 2, columns, has_nan, finite)

    for_image_blocks(work, x)
    return (dx,)


max_pool2d.kernel("cpu", cpu_forward, cpu_backward, fresh=True)


_cuda = cuda.Kernels(__file__)


def cuda_forward(x, kernel_size, stride, padding):
    """The maxima, and where in its window each was found: all that backward needs."""
    cp, (rows, columns) = cuda.array_module(), window_axes(x.shape, kernel_size, stride, padding)
    y = cp.empty((x.shape[0], rows.count, columns.count, x.shape[3]), x.dtype)  # (B, Ho, Wo, C)
    place = cp.empty(y.shape, np.int32)
    launch_by_rows(_cuda, "max_pool2d_forward", y, (x, y, place), x.shape, rows, columns)
    return y, (place, x.shape, rows, columns)


def cuda_backward(dy, saved, needs):
    """Each pixel asks the windows it lies in."""
    place, shape, rows, columns = saved
    dx = cuda.array_module().empty(shape, dy.dtype)                        # (B, H, W, C)
    launch_by_rows(_cuda, "max_pool2d_backward", dx, (dy, place, dx), shape, rows, columns)
    return (dx,)


max_pool2d.kernel("cuda", cuda_forward, cuda_backward, fresh=True, reads={"x": ""})
