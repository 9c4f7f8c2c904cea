"""Average pooling of feature maps (B, H, W, C).

Pooling is separable: summing the rows of all windows and then the columns takes kh + kw additions in place of kh * kw. It is linear too, so the
gradient needs no value of x: it is spread over the windows it came from. Letters: kh, kw the window; Ho, Wo the pooled rows and columns.
Read next: `max_pool2d.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minigrad import ops
from minigrad.backend import cuda
from minigrad.backend.cpu import parallel_slices
from minigrad.fused.windows import Axis, Pair, check_pool, window_axes
from minigrad.op import fused
from minigrad.tensor import Tensor


@fused
def avg_pool2d(x: Tensor, kernel_size: int | Pair, stride: int | Pair | None = None, padding: int | Pair = 0) -> Tensor:
    """The mean of each window.

    Args:
        x: (B, H, W, C).
        kernel_size, stride, padding: pixels; a number, or a pair (rows, columns). stride None is kernel_size. The padding is zeros, and counts.

    Returns:
        (B, Ho, Wo, C), with Ho = (H + 2 padding - kernel_size) // stride + 1: rows that fill no window are left out.

    Raises:
        ValueError: a window that does not fit, or padding of more than half a window. TypeError: x is not of floats.

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


avg_pool2d.derivative(x=_transposed)


# --- CPU


BLOCK = 1 << 18  # elements worked on at a time, and the fewest a thread is started for


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


def cpu_forward(x, kernel_size, stride, padding):
    """Sum the rows first: they are long, and what is left for the columns is small. Where the windows lie is all that backward needs."""
    rows, columns = window_axes(x.shape, kernel_size, stride, padding)
    batch, _, _, channels = x.shape
    y = np.empty((batch, rows.count, columns.count, channels), x.dtype)

    def work(block: slice) -> None:
        sums = reduce_windows(np.add, 0, x[block], 1, rows)                # (b, Ho, W, C)
        np.divide(reduce_windows(np.add, 0, sums, 2, columns), rows.kernel * columns.kernel, out=y[block])

    for_image_blocks(work, x)
    return y, (x.shape, rows, columns)


def cpu_backward(dy, saved, needs):
    """Spread over the columns, then over the rows: forward's two steps, transposed and in reverse."""
    shape, rows, columns = saved
    dx = np.empty(shape, dy.dtype)

    def work(block: slice) -> None:
        _spread_windows(_spread_windows(dy[block] / (rows.kernel * columns.kernel), 2, columns), 1, rows, dx[block])

    for_image_blocks(work, dx)
    return (dx,)


avg_pool2d.kernel("cpu", cpu_forward, cpu_backward, fresh=True)


# --- CUDA


_cuda = cuda.Kernels(__file__)


def _packs(out, arrays: tuple, shape: tuple[int, ...], rows: Axis, columns: Axis) -> tuple[str, int, tuple[int, ...]]:
    """Template arguments of a pooling kernel, packs per pixel, and the numbers that it is given. Arguments as for `launch_by_rows`."""
    channels = shape[3]
    width = cuda.vector_width(channels, *(x for x in arrays if x.dtype == out.dtype))
    sizes = (*shape[1:3], rows.count, columns.count, channels // width)
    windows = (rows.kernel, columns.kernel, rows.stride, columns.stride, rows.padding, columns.padding)
    return cuda.pack_types(out.dtype, width), channels // width, (*sizes, *windows)


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
