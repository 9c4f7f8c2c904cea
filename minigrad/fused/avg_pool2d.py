"""Average pooling of feature maps (B, H, W, C), over windows and over the whole map; and where windows lie, which `max_pool2d.py` shares.

Pooling is separable: summing the rows of all windows and then the columns takes kh + kw additions in place of kh * kw. It is linear too, so the
gradient needs no value of x: it is spread over the windows it came from. Letters: kh, kw the window; Ho, Wo the pooled rows and columns.
Read next: `max_pool2d.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minigrad import ops
from minigrad.backend import cuda, sums
from minigrad.backend.cpu import parallel_slices
from minigrad.fused.pair import Pair, check_pair, pair
from minigrad.op import fused
from minigrad.tensor import Tensor

BLOCK = 1 << 18  # elements worked on at a time, and the fewest a thread is started for


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
    """Raise ValueError, in the name of the op `name`, for what cannot be pooled."""
    if x.ndim != 4 or x.dtype.kind != "f":
        raise ValueError(f"{name}: x must be a float Tensor (B, H, W, C), it is {x.dtype} of shape {x.shape}")
    check_pair(name, "kernel_size", kernel_size, 1)
    if stride is not None:
        check_pair(name, "stride", stride, 1)
    check_pair(name, "padding", padding, 0)
    for axis in window_axes(x.shape, kernel_size, stride, padding):
        if 2 * axis.padding > axis.kernel:
            raise ValueError(f"{name}: padding must be at most half of the window, it is {axis.padding} and the window {axis.kernel}")
        if axis.size + 2 * axis.padding < axis.kernel:
            message = f"{name}: a window of {axis.kernel} does not fit in {axis.size} pixels with padding {axis.padding} (x shape {x.shape})"
            if x.shape[1] < x.shape[2] == x.shape[3]:
                message += "; images are (B, H, W, C) here: if x is (B, C, H, W), pass x.transpose(0, 2, 3, 1)"
            raise ValueError(message)


def for_image_blocks(work: Callable[[slice], None], images: np.ndarray) -> None:
    """Call `work(block)` for blocks of the images, on all threads; a block is small, so that what the work allocates stays in the cache."""
    step = max(BLOCK * len(images) // max(images.size, 1), 1)
    parallel_slices(work, len(images), step, step)


def reduce_windows(ufunc: np.ufunc, start: float, x: np.ndarray, axis: int, windows: Axis) -> np.ndarray:
    """Combine the pixels of each window along `axis` of x with `ufunc`; padding counts as `start`."""
    if windows.tiling and axis == 1:                                       # whole rows, read in order: twice as fast as what follows
        return ufunc.reduce(x.reshape(len(x), windows.count, windows.kernel, *x.shape[2:]), axis=2)
    along = (slice(None),) * axis
    y = np.full((*x.shape[:axis], windows.count, *x.shape[axis + 1 :]), start, x.dtype)
    for which, pixels in windows.offsets():
        part = y[(*along, which)]
        ufunc(part, x[(*along, pixels)], out=part)
    return y


def _spread_windows(dy: np.ndarray, axis: int, windows: Axis, dx: np.ndarray | None = None) -> np.ndarray:
    """Add each window's gradient to all its pixels along `axis`: the transpose of `reduce_windows`. It is written to `dx` if given."""
    along = (slice(None),) * axis
    if dx is None:
        dx = np.empty((*dy.shape[:axis], windows.size, *dy.shape[axis + 1 :]), dy.dtype)
    if not windows.tiling:
        dx[...] = 0
    for which, pixels in windows.offsets():
        if windows.disjoint:
            dx[(*along, pixels)] = dy[(*along, which)]
        else:
            dx[(*along, pixels)] += dy[(*along, which)]
    return dx


@fused
def avg_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """The mean of each window.

    Args:
        x: (B, H, W, C).
        kernel_size, stride, padding: pixels; a number, or a pair (rows, columns). stride None is kernel_size. The padding is zeros, and counts.

    Returns:
        (B, Ho, Wo, C), with Ho = (H + 2 padding - kernel_size) // stride + 1: rows that fill no window are left out.

    Raises:
        ValueError: a window that does not fit, or padding of more than half a window.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.avg_pool2d.html (there in NCHW).
    """
    rows, columns = window_axes(x.shape, kernel_size, stride, padding)
    around = ((0, 0), (rows.padding,) * 2, (columns.padding,) * 2, (0, 0))
    padded = ops.pad(x, around)                                                                             # (B, H + 2p, W + 2p, C)
    windows = ops.windows(padded, (rows.kernel, columns.kernel), (rows.stride, columns.stride), (1, 1))     # (B, Ho, Wo, kh, kw, C)
    return windows.mean((3, 4))                                                                             # (B, Ho, Wo, C)


@avg_pool2d.check_shapes
def _check(x, kernel_size, stride, padding) -> None:
    check_pool("avg_pool2d", x, kernel_size, stride, padding)


def _transposed(g: Tensor, x_shape: tuple[int, ...], kernel_size, stride, padding) -> Tensor:
    """The derivative on Tensors: pooling is `rows @ x @ columns.T / window`, with matrices of 0 and 1; this is `rows.T @ g @ columns / window`."""

    def transposed(axis: Axis) -> Tensor:                                  # (size, count)
        entries = np.zeros((axis.size, axis.count), g.dtype)
        for which, pixels in axis.offsets():
            entries[np.arange(axis.size)[pixels], np.arange(axis.count)[which]] = 1
        return Tensor(entries).to(device=g.device)

    rows, columns = window_axes(x_shape, kernel_size, stride, padding)
    batch, _, width, channels = x_shape
    dx = transposed(columns) @ (g / (rows.kernel * columns.kernel))        # (B, Ho, W, C)
    dx = transposed(rows) @ dx.reshape(batch, rows.count, width * channels)  # (B, H, W C)
    return dx.reshape(x_shape)                                             # (B, H, W, C)


avg_pool2d.derivative(x=lambda g, x_shape, kernel_size, stride, padding: _transposed(g, x_shape, kernel_size, stride, padding))


def cpu_forward(x, kernel_size, stride, padding):
    """Sum the rows first: they are long, and what is left for the columns is small. The saved shape is all that backward needs."""
    rows, columns = window_axes(x.shape, kernel_size, stride, padding)
    batch, _, _, channels = x.shape
    y = np.empty((batch, rows.count, columns.count, channels), x.dtype)

    def work(block: slice) -> None:
        sums = reduce_windows(np.add, 0, x[block], 1, rows)                # (b, Ho, W, C)
        np.divide(reduce_windows(np.add, 0, sums, 2, columns), rows.kernel * columns.kernel, out=y[block])

    for_image_blocks(work, x)
    return y, (x.shape, kernel_size, stride, padding)


def cpu_backward(dy, saved, needs):
    """Spread over the columns, then over the rows: forward's two steps, transposed and in reverse."""
    shape, kernel_size, stride, padding = saved
    rows, columns = window_axes(shape, kernel_size, stride, padding)
    dx = np.empty(shape, dy.dtype)

    def work(block: slice) -> None:
        _spread_windows(_spread_windows(dy[block] / (rows.kernel * columns.kernel), 2, columns), 1, rows, dx[block])

    for_image_blocks(work, dx)
    return (dx,)


avg_pool2d.kernel("cpu", cpu_forward, cpu_backward, fresh=True)


@fused
def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel over the whole map.

    Args:
        x: (B, H, W, C).

    Returns:
        (B, C).

    Raises:
        ValueError: x is not a float Tensor (B, H, W, C), or a map has no pixel.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.adaptive_avg_pool2d.html with output size 1, flattened.
    """
    return x.mean((1, 2))                                                  # (B, C)


@global_avg_pool2d.check_shapes
def _check_global(x) -> None:
    if x.ndim != 4 or x.dtype.kind != "f" or 0 in x.shape[1:3]:
        raise ValueError(f"global_avg_pool2d: x must be a float Tensor (B, H, W, C) with at least one pixel, it is {x.dtype} of shape {x.shape}")


def _same_everywhere(g: Tensor, x_shape: tuple[int, ...]) -> Tensor:
    batch, height, width, channels = x_shape
    return (g / (height * width)).reshape(batch, 1, 1, channels).broadcast_to(x_shape)


global_avg_pool2d.derivative(x=lambda g, x_shape: _same_everywhere(g, x_shape))


def cpu_forward_global(x):
    """The sums are products with rows of ones: NumPy's own mean takes three times as long."""
    batch, height, width, channels = x.shape
    return sums.column_sums(x.reshape(batch, height * width, channels)) / (height * width), ()


global_avg_pool2d.kernel("cpu", cpu_forward_global, None)


_cuda = cuda.Kernels(__file__)


def _packs(out, arrays: tuple, shape: tuple[int, ...], rows: Axis, columns: Axis) -> tuple[str, int, tuple[int, ...]]:
    """Template arguments of a pooling kernel, packs per pixel, and the numbers that it is given. Arguments as for `launch_by_rows`."""
    channels = shape[3]
    width = cuda.vector_width(channels, *(x for x in arrays if x.dtype == out.dtype))
    sizes = (*shape[1:3], rows.count, columns.count, channels // width)
    windows = (rows.kernel, columns.kernel, rows.stride, columns.stride, rows.padding, columns.padding)
    return cuda.pack_types(out.dtype, width), channels // width, tuple(map(int, (*sizes, *windows)))  # some may be NumPy's


def launch_by_rows(kernels: cuda.Kernels, name: str, out, arrays: tuple, shape: tuple[int, ...], rows: Axis, columns: Axis) -> None:
    """Launch a pooling kernel with a thread for every pack of `out` (B, h, w, C), each block within a row of it. shape: of the images."""
    types, packs, numbers = _packs(out, arrays, shape, rows, columns)
    grid = out.shape[0] * out.shape[1], -(-out.shape[2] * packs // 128)
    kernels.launch(f"{name}<{types}>", grid, 128, *arrays, *numbers)


def _launch(name: str, out, arrays: tuple, shape: tuple[int, ...], rows: Axis, columns: Axis) -> None:
    """The same where a block takes several rows if they are short: without, 96 of 128 threads would have nothing to do for rows of 32 packs."""
    if out.size == 0:
        return
    types, packs, numbers = _packs(out, arrays, shape, rows, columns)
    lines, length = out.shape[0] * out.shape[1], out.shape[2] * packs
    blocks = -(-length // 128)                                             # side by side
    block = -(-length // blocks), 128 // -(-length // blocks)              # packs, rows
    _cuda.launch(f"{name}<{types}>", (-(-lines // block[1]), blocks), block, *arrays, lines, *numbers)


def cuda_forward(x, kernel_size, stride, padding):
    """A thread for four output numbers: see avg_pool2d.cu."""
    rows, columns = window_axes(x.shape, kernel_size, stride, padding)
    y = cuda.array_module().empty((x.shape[0], rows.count, columns.count, x.shape[3]), x.dtype)  # (B, Ho, Wo, C)
    _launch("avg_pool2d_forward", y, (x, y), x.shape, rows, columns)
    return y, (x.shape, rows, columns)


def cuda_backward(dy, saved, needs):
    """Each pixel asks the windows it lies in."""
    shape, rows, columns = saved
    dx = cuda.array_module().empty(shape, dy.dtype)                        # (B, H, W, C)
    _launch("avg_pool2d_backward", dx, (dy, dx), shape, rows, columns)
    return (dx,)


avg_pool2d.kernel("cuda", cuda_forward, cuda_backward, fresh=True)


def cuda_forward_global(x):
    """A block for 32 channels of an image. The gradient is the rule's, a broadcast view: no kernel is faster than what is not written."""
    batch, height, width, channels = x.shape
    y = cuda.array_module().empty((batch, channels), x.dtype)
    grid = (batch, -(-channels // 32))
    _cuda.launch(f"global_avg_pool2d_forward<{cuda.c_type(x.dtype)}>", grid, (32, 8), x, y, height * width, channels)
    return y, ()


global_avg_pool2d.kernel("cuda", cuda_forward_global, None)
