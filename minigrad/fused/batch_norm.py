"""Batch normalisation of feature maps (B, H, W, C), with the residual sum and the ReLU that follow it in a convolution block.

The statistics of the batch go out as outputs; the module (`minigrad/nn/norm.py`) keeps the running ones. The CPU kernel walks the memory in rows
thousands of elements long, whatever C is: over rows of 12 channels NumPy would spend its time between the rows.
Read next: `minigrad/fused/layer_norm.py`, the same formula along the other axis.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import numpy as np

from minigrad.backend import cuda, sums
from minigrad.backend.cpu import blocks, parallel_blocks, parallel_rows
from minigrad.fused.floats import check_floats
from minigrad.fused.long_rows import LONG_ROW, end_to_end
from minigrad.op import fused
from minigrad.tensor import Tensor


@fused(outputs=3, differentiable=1, constants="mean var")
def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    relu: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each channel to mean 0 and variance 1, scale and shift it; then, if asked, add `residual` and apply ReLU.

    `y = relu((x - mean) / sqrt(var + eps) * weight + bias + residual)`

    Args:
        x: (..., C), usually (B, H, W, C).
        weight, bias: (C,), or None for 1 and 0.
        mean, var: (C,), constants: evaluation, the running statistics. None: training, the statistics of this batch. (PyTorch has them before the
            weight: give them by name.)
        residual: the shape of x.
        eps: added to the variance.
        relu: end with a ReLU. (On the CPU an infinite upstream gradient becomes nan where y is 0: see `relu`.)

    Deviations whose squares, or on a GPU and in the definition the sums of these, are too large for the dtype (in float32 from about 1e19, or
    1.8e19 / sqrt(rows), on) have an infinite variance: such a channel becomes 0 before the bias, and has no gradient. Where sums of the deviations
    themselves are too large (from about 1e38 / rows on), it may become nan.

    Returns:
        y like x; the mean (C,) and the biased variance (C,) that were used (of an empty batch: zeros). No gradient goes through the last two.

    Raises:
        ValueError: shapes that do not fit; mean without var; a mean or var that requires grad; a single value per channel in training.
        TypeError: one of them is not of floats.

    Source: Ioffe and Szegedy 2015, algorithm 1; https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.batch_norm.html
    """
    if mean is None or var is None:
        axes, count = tuple(range(x.ndim - 1)), max(x.size // x.shape[-1], 1)
        mean = x.sum(axes) / count                                         # (C,)
        centered = x - mean                                                # (..., C)
        centered = centered - centered.sum(axes) / count                   # (..., C): the mean was rounded; of a large one that leaves much
        var = (centered * centered).sum(axes) / count                      # (C,)
    else:
        mean, var = mean * 1.0, var * 1.0                                  # (C,), (C,): copies, since they are outputs too
        centered = x - mean                                                # (..., C)
    y = centered * (var + eps) ** -0.5                                     # (..., C)
    if weight is not None:
        y = y * weight                                                     # (..., C)
    if bias is not None:
        y = y + bias                                                       # (..., C)
    if residual is not None:
        y = y + residual                                                   # (..., C)
    if relu:
        y = y.relu()                                                       # (..., C)
    return y, mean.detach(), var.detach()                                  # (..., C), (C,), (C,)


@batch_norm.check
def _check(x, weight, bias, mean, var, residual, eps, relu) -> None:
    shape = x.data.shape
    check_floats("batch_norm", "x weight bias mean var residual", x, weight, bias, mean, var, residual)
    if len(shape) < 2 or not shape[-1]:
        raise ValueError(f"batch_norm: x must be (..., C) with 2 or more dimensions and a channel, it has shape {x.shape}")
    channels = shape[-1]
    for name, vector in (("weight", weight), ("bias", bias), ("mean", mean), ("var", var)):
        if vector is not None and vector.data.shape != (channels,):
            message = f"batch_norm: x has {channels} channels, {name} has shape {vector.shape} (x shape {x.shape})"
            if x.ndim == 4 and vector.shape == (x.shape[1],):
                message += "; images are (B, H, W, C) here: if x is (B, C, H, W), pass x.transpose(0, 2, 3, 1)"
            raise ValueError(message)
    if (mean is None) != (var is None):
        raise ValueError("batch_norm: give mean and var both (evaluation) or neither (training), not one of them")
    if mean is None and x.data.size == channels:
        advice = "give a larger batch, larger maps, or eval()"
        raise ValueError(f"batch_norm: expected more than 1 value per channel when training, x has shape {shape}: {advice}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"batch_norm: residual has shape {residual.shape}, x has shape {x.shape}")


GRAIN = 1 << 16  # elements a thread is worth: forward of 64,500 takes 0.17 ms on one and 0.28 ms on two, of 131,000 0.29 ms on either
FAR = 16  # mean ** 2 / var from which on x * x - mean * mean would lose digits of float32 that matter: a mean of 4 deviations
FEW, FAR_OF_FEW = 1024, 1  # with so few values of a channel from 1 deviation on: the errors of y and var do not average out, and a pivot costs little


def _channel_groups(rows: int, channels: int) -> int:
    """How many of the `rows` (of `channels` elements each) to lay end to end as one long row: a power of two that divides `rows`."""
    return gcd(rows, 1 << max(LONG_ROW // channels, 1).bit_length() - 1)


def _totals(work: Callable[[slice, np.ndarray], None], wide: np.ndarray, channels: int) -> np.ndarray:
    """Call `work(block, totals)` for the row blocks of `wide`, on all threads; it adds to `totals`, two long rows.

    Returned is (2, C): their total by channel, in float64 from here on, as C numbers cost nothing.
    """
    rows, width = wide.shape

    def share(start: int, stop: int) -> np.ndarray:
        totals = np.zeros((2, width), wide.dtype)
        for block in blocks(start, stop, rows, width):
            work(block, totals)
        return totals

    parts = parallel_rows(share, rows, max(GRAIN // width, 1))
    total = parts[0] if len(parts) == 1 else np.add.reduce(parts)
    return np.add.reduce(total.astype(np.float64).reshape(2, -1, channels), 1)


def cpu_forward(x, weight, bias, mean, var, residual, eps, relu):
    """Two passes over x: sums of x and x * x, then `y = x * scale + shift`, with `scale = rstd * weight` and `shift = bias - mean * scale`.

    Both forms cancel where the mean is large beside the deviation, and x * x may be too large for a number. Then, and only then, a first estimate
    of the mean, the pivot, is subtracted from each block as it is read: with `x' = x - pivot` and `offset = mean - pivot` everything above holds
    for x' and offset.
    """
    channels = x.shape[-1]
    count = max(x.size // channels, 1)
    groups = _channel_groups(x.size // channels, channels)
    y = np.empty_like(x)
    x_wide, y_wide = x.reshape(-1, groups * channels), y.reshape(-1, groups * channels)
    residual_wide = None if residual is None else residual.reshape(x_wide.shape)
    zeros = np.zeros(groups * channels, x.dtype)

    def moments(pivot: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:  # (C,), (C,): the mean and the variance of x'
        def work(block: slice, totals: np.ndarray) -> None:
            part = x_wide[block] if pivot is None else x_wide[block] - pivot
            totals[0] += sums.column_sums(part)
            totals[1] += sums.column_products(part, part)

        mean, square = _totals(work, x_wide, channels) / count
        square -= mean * mean
        return mean, np.maximum(square, 0, out=square)

    training = mean is None
    mean, var = moments(None) if training else (mean.astype(np.float64), var.astype(np.float64))
    pivot, offset = None, mean
    far = FAR if count > FEW else FAR_OF_FEW
    if not np.isfinite(var).all() or (mean * mean > far * (var + eps)).any():
        pivot = mean.astype(x.dtype)
        if training:
            pivot = np.where(np.isfinite(pivot), pivot, x_wide[0, :channels])  # of an infinite sum: any number will do for equal ones
            offset, var = moments(end_to_end(pivot, groups))
            if np.isinf(var).any():                                        # perhaps for the rounding of the mean alone: that of 1e30 is 1e23
                pivot = (pivot + offset).astype(x.dtype)
                offset, var = moments(end_to_end(pivot, groups))
            mean = pivot + offset
        else:
            offset = np.zeros(channels)                                    # the statistics have x's dtype
    rstd = 1 / np.sqrt(var + eps)                                          # (C,)
    scale = rstd if weight is None else rstd * weight
    shift = -offset * scale if bias is None else bias - offset * scale
    scale, shift = (end_to_end(vector.astype(x.dtype), groups) for vector in (scale, shift))
    long_pivot = None if pivot is None else end_to_end(pivot, groups)

    def affine(block: slice) -> None:
        part, out = x_wide[block], y_wide[block]
        if long_pivot is not None:
            part = np.subtract(part, long_pivot, out=out)
        np.multiply(part, scale, out=out)
        np.add(out, shift, out=out)
        if residual_wide is not None:
            np.add(out, residual_wide[block], out=out)
        if relu:
            np.maximum(out, zeros, out=out)                                # with a scalar zero NumPy takes five times as long

    parallel_blocks(affine, len(x_wide), x_wide.shape[1], max(GRAIN // x_wide.shape[1], 1))
    return (y, mean.astype(x.dtype), var.astype(x.dtype)), (x, weight, y if relu else None, pivot, offset, rstd, training)


def cpu_backward(dy, saved, needs):
    """Two passes again. With `g = dy` where y > 0 (without ReLU: everywhere), `x_hat = (x - mean) * rstd` and M values per channel:

    dresidual = g,  dbias = sum(g),  dweight = sum(g * x_hat).

    In training the statistics depend on x too: dmean/dx = 1 / M and drstd/dx = -rstd**2 * x_hat / M (eps included). By the product rule

    dx = weight * (rstd * (g - sum(g) / M) - rstd**2 * x_hat / M * sum(g * (x - mean)))
       = weight * rstd * (g - sum(g) / M - x_hat * sum(g * x_hat) / M)
       = g * a + x' * b + c,  a = weight * rstd,  b = -a * rstd * dweight / M,  c = -a * dbias / M - b * offset:

    the parts of g that would only shift or scale the whole channel, which normalising undoes, are taken out.

    In evaluation the statistics are constants, and dx = g * a.
    """
    x, weight, y, pivot, offset, rstd, training = saved
    wants_x, wants_weight, wants_bias, _, _, wants_residual = needs
    channels = x.shape[-1]
    count = max(x.size // channels, 1)
    groups = _channel_groups(x.size // channels, channels)
    x_wide, dy_wide = x.reshape(-1, groups * channels), dy.reshape(-1, groups * channels)
    long_pivot = None if pivot is None else end_to_end(pivot, groups)

    g_wide = dy_wide if y is None else np.empty_like(dy_wide)
    y_wide = None if y is None else y.reshape(dy_wide.shape)

    def products(block: slice, totals: np.ndarray) -> None:                # sums of g and of g * x'
        g, part = g_wide[block], x_wide[block]
        if y_wide is not None:
            np.multiply(dy_wide[block], y_wide[block] > 0, out=g)
        if pivot is not None:
            part = part - long_pivot
        totals[0] += sums.column_sums(g)
        totals[1] += sums.column_products(g, part)

    dbias, dweight = _totals(products, x_wide, channels)                   # float64
    dweight = (dweight - offset * dbias) * rstd

    dx = None
    if wants_x:
        a = rstd if weight is None else weight * rstd
        b = -a * rstd * dweight / count
        c = -a * dbias / count - b * offset
        a, b, c = (end_to_end(vector.astype(x.dtype), groups) for vector in (a, b, c))
        dx_wide = np.empty_like(g_wide) if y is None or wants_residual else g_wide

        def combine(block: slice) -> None:
            out = np.multiply(g_wide[block], a, out=dx_wide[block])
            if training:
                part = x_wide[block] * b if pivot is None else (x_wide[block] - long_pivot) * b
                part += c
                out += part

        parallel_blocks(combine, len(x_wide), x_wide.shape[1], max(GRAIN // x_wide.shape[1], 1))
        dx = dx_wide.reshape(x.shape)
    dresidual = (dy.copy() if y is None else g_wide.reshape(x.shape)) if wants_residual else None
    dweight, dbias = dweight.astype(x.dtype), dbias.astype(x.dtype)
    return dx, dweight if wants_weight else None, dbias if wants_bias else None, None, None, dresidual


READS = {"x": "x weight out", "weight": "x out", "bias": "out", "residual": "out"}
batch_norm.kernel("cpu", cpu_forward, cpu_backward, fresh=True, reads=READS)


_cuda = cuda.Kernels(__file__)


class _Grid:
    """How batch_norm.cu lays threads over rows and packs of channels. A choice by the shape alone: results are the same on every GPU."""

    def __init__(self, channels: int, rows: int, *arrays):
        width = cuda.vector_width(channels, *arrays)
        self.types = f"<{cuda.pack_types(arrays[0].dtype, width)}>"
        self.packs = channels // width
        columns = -(-self.packs // 256)
        self.block = (-(-self.packs // columns), 256 // -(-self.packs // columns))  # of threads: packs, rows
        self.slices = max(1, min(256, rows // (8 * self.block[1])))        # for sums: 8 rows a thread or more
        self.of_sums = (self.slices, columns)
        self.of_rows = (-(-rows // (4 * self.block[1])), columns)          # for what is done to each element: 4 rows a thread


def cuda_forward(x, weight, bias, mean, var, residual, eps, relu):
    """One pass over x for the statistics, one for y: see batch_norm.cu."""
    cp, channels, number = cuda.array_module(), x.shape[-1], cuda.c_type(x.dtype)
    rows, y, training = x.size // channels, cp.empty_like(x), mean is None
    statistics, mean_out, var_out = cp.empty((3, channels), x.dtype), cp.empty(channels, x.dtype), cp.empty(channels, x.dtype)
    grid = _Grid(channels, rows, x, weight, bias, residual, y, statistics)
    if training:
        partial = cp.empty((grid.slices, 2, channels), x.dtype)            # of each slice: the mean less a pivot, the squares around it
        _cuda.launch(f"batch_norm_statistics{grid.types}", grid.of_sums, grid.block, x, partial, rows, grid.packs)
        results = (statistics, mean_out, var_out, grid.slices, rows, channels, float(eps))
        _cuda.launch(f"batch_norm_merge<{number}>", -(-channels // 32), (32, 16), partial, x, *results)
    else:
        _cuda.launch(f"batch_norm_given<{number}>", -(-channels // 128), 128, mean, var, statistics, mean_out, var_out, channels, float(eps))
    arguments = (x, weight, bias, residual, statistics, y, rows, grid.packs, bool(relu))
    _cuda.launch(f"batch_norm_forward{grid.types}", grid.of_rows, grid.block, *arguments)
    return (y, mean_out, var_out), (x, weight, y if relu else None, statistics, training)


def cuda_backward(dy, saved, needs):
    """One pass for the sums, which in training dx needs too; one for dx and dresidual. Without ReLU, dresidual is a copy of dy.

    It could be dy itself; but then nothing here would count as fresh, and each weight's and bias's gradient be copied when it arrives.
    """
    x, weight, y, statistics, training = saved
    wants_x, wants_weight, wants_bias, _, _, wants_residual = needs
    cp, channels, number = cuda.array_module(), x.shape[-1], cuda.c_type(x.dtype)
    rows = x.size // channels
    dx = cp.empty_like(x) if wants_x else None
    dresidual = cp.empty_like(x) if wants_residual and y is not None else None
    grid = _Grid(channels, rows, x, dy, y, weight, statistics, dx, dresidual)
    gradients = (None, None)
    if wants_weight or wants_bias or (wants_x and training):
        partial, gradients = cp.empty((grid.slices, 2, channels), x.dtype), cp.empty((2, channels), x.dtype)
        _cuda.launch(f"batch_norm_sums{grid.types}", grid.of_sums, grid.block, dy, x, y, statistics, partial, rows, grid.packs)
        _cuda.launch(f"batch_norm_sums_merge<{number}>", -(-channels // 32), (32, 16), partial, statistics, gradients, grid.slices, channels)
    if dx is not None or dresidual is not None:
        arguments = (dy, x, y, weight, statistics, gradients if wants_x and training else None, dx, dresidual, rows, grid.packs)
        _cuda.launch(f"batch_norm_backward{grid.types}", grid.of_rows, grid.block, *arguments)
    dbias, dweight = gradients[0], gradients[1]
    dresidual = dy.copy() if wants_residual and y is None else dresidual
    return dx, dweight if wants_weight else None, dbias if wants_bias else None, None, None, dresidual


batch_norm.kernel("cuda", cuda_forward, cuda_backward, fresh=True, reads=READS)
