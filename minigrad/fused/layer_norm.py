"""Layer normalisation: every vector along the last axis gets mean 0 and variance 1. The model page of a fused operation.

First the definition, the textbook formula on Tensors; then the kernel pair on arrays, which computes the same in fewer passes over memory. Letters:
C channels, R rows (all leading axes together). Read next: `gelu.py`.
"""

from __future__ import annotations

import numpy as np

from minigrad.backend import cuda, sums
from minigrad.backend.cpu import parallel_blocks
from minigrad.fused.floats import check_floats
from minigrad.fused.long_rows import along_rows, copies_for
from minigrad.op import fused
from minigrad.tensor import Tensor

__all__ = ["layer_norm"]

FAR = 4  # deviations from 0 to a row's mean, from which on the mean's own rounding matters in float32
_GRAIN = 1 << 16  # elements a thread is worth: 66,000 take 0.20 ms on one and 0.25 ms on two, 131,000 0.31 and 0.26


@fused
def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """`(x - mean) / sqrt(var + eps) * weight + bias`, mean and (biased) variance over the last axis.

    Args:
        x: (..., C).
        weight, bias: (C,), or None for 1 and 0.
        eps: added to the variance.

    Deviations whose squares are too large for the dtype (in float32 from about 1e19 on) have an infinite variance: such a row becomes 0 before the
    bias, and has no gradient. (PyTorch's becomes nan.) From about 1e27 on equal numbers may do so, too, since their mean is rounded by as much.

    Returns:
        (..., C).

    Raises:
        ValueError: shapes that do not fit together. TypeError: one of them is not of floats.

    Source: Ba et al. 2016, https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.layer_norm.html
    """
    centered = x - x.mean(-1, keepdims=True)                               # (..., C)
    var = (centered * centered).mean(-1, keepdims=True)                    # (..., 1)
    y = centered * (var + eps) ** -0.5                                     # (..., C)
    if weight is not None:
        y = y * weight                                                     # (..., C)
    if bias is not None:
        y = y + bias                                                       # (..., C)
    return y


@layer_norm.check
def _check(x, weight, bias, eps) -> None:
    check_floats("layer_norm", "x weight bias", x, weight, bias)
    channels = x.data.shape[-1:]                                           # (C,)
    if channels in ((), (0,)):
        raise ValueError(f"layer_norm: x must have at least one channel in its last axis, it has shape {x.shape}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None and vector.data.shape != channels:
            advice = "; PyTorch's normalized_shape is left out here, it is always the last axis" if vector.data.tolist() == [*channels] else ""
            raise ValueError(f"layer_norm: x has {channels[0]} channels (shape {x.shape}), {name} has shape {vector.shape}{advice}")


def cpu_forward(x, weight, bias, eps):
    """A sum along a row is a product with a column of ones, or of the row with itself: BLAS takes both several times faster than NumPy sums rows."""
    channels = x.shape[-1]
    rows, ones = x.reshape(-1, channels), np.ones(channels, x.dtype)       # (R, C), (C,)
    y = np.empty_like(rows)                                                # (R, C)
    mean, rstd = np.empty(len(rows), x.dtype), np.empty(len(rows), x.dtype)  # (R,), (R,)
    weights, biases = (None if v is None else copies_for(len(rows), v) for v in (weight, bias))

    def recentre(part, out, far, mean, deviation) -> None:
        """In rows that are `far` from 0, the rounding of the mean counts as a deviation: take off what it left in `out`."""
        square = np.vecdot(out, out) / channels
        infinite = np.isposinf(square)                                     # then the row becomes 0, whatever the mean, which may be infinite too
        left = np.where(far & ~infinite, out @ ones / channels, 0)
        np.sqrt(np.maximum(square - left * left, 0) + eps, out=deviation, where=far)
        mean += left
        mean[far & infinite] = 0
        np.subtract(part, mean[:, None], out=out)

    def work(block: slice) -> None:
        part, out = rows[block], y[block]
        np.divide(part @ ones, channels, out=mean[block])
        np.subtract(part, mean[block, None], out=out)                      # centred first: a mean of 1000 then costs no digits of the variance
        deviation = np.sqrt(np.vecdot(out, out) / channels + eps)          # (r,)
        near = np.abs(mean[block]) < FAR * deviation                       # infinity is not
        if not near.all():
            recentre(part, out, ~near, mean[block], deviation)
        np.divide(1, deviation, out=rstd[block])
        out *= rstd[block, None]
        if weights is not None:
            along_rows(np.multiply, out, weights, out=out)
        if biases is not None:
            along_rows(np.add, out, biases, out=out)

    parallel_blocks(work, len(rows), channels, max(_GRAIN // channels, 1))
    return y.reshape(x.shape), (x, weight, mean, rstd)


def cpu_backward(dy, saved, needs):
    """With `x_hat = (x - mean) * rstd` and `g = dy * weight`, for each row

        dx = rstd * (g - mean(g) - x_hat * mean(g * x_hat)).

    x_hat is x with its component along (1, ..., 1) removed, brought to length sqrt(C) (but for eps, which the formula holds with too). It does not
    change when x moves along 1 or grows, so of g only the part orthogonal to 1 and to x_hat passes back; both have squared length C, hence the means.
    For the parameters, summed over the rows,

        dweight = sum(dy * x_hat),    dbias = sum(dy).
    """
    x, weight, mean, rstd = saved
    channels = x.shape[-1]
    rows, dy_rows = x.reshape(-1, channels), dy.reshape(-1, channels)      # (R, C)
    dx = np.empty_like(rows) if needs[0] else None
    weight = np.ones(channels, x.dtype) if weight is None else weight
    weights, average = copies_for(len(rows), weight), weight / channels  # dy @ average = mean(g)

    def work(block: slice) -> np.ndarray:
        g, scale = dy_rows[block], rstd[block]
        centered = rows[block] - mean[block, None]                         # x_hat is this times scale, which the sums and the row's factor take in
        out = np.multiply(g, centered, out=None if dx is None else dx[block])
        found = np.stack([sums.weighted_sum(scale, out), sums.column_sums(g)])  # (2, C): dweight and dbias of these rows
        if dx is not None:
            centered *= (scale * (out @ average) * scale)[:, None]         # x_hat * mean(g * x_hat); scale * scale may be infinite
            along_rows(np.multiply, g, weights, out=out)
            out -= centered
            out -= (g @ average)[:, None]
            out *= scale[:, None]
        return found

    dweight, dbias = np.zeros((2, channels), x.dtype) + sum(parallel_blocks(work, len(rows), channels, max(_GRAIN // channels, 1)))
    return None if dx is None else dx.reshape(x.shape), dweight if needs[1] else None, dbias if needs[2] else None


READS = {"x": "x weight", "weight": "x", "bias": ""}
layer_norm.kernel("cpu", cpu_forward, cpu_backward, fresh=True, reads=READS)


_cuda = cuda.Kernels(__file__)
_ITEMS = 1, 2, 3, 6
"""How many packs of a row a lane may keep in registers, to compute all gradients in one pass; a kernel each, but not for single floats."""


def _cuda_rows(x, *others) -> tuple[str, int, int, int]:
    """Template arguments, blocks, rows, and packs per row, for a kernel with a warp for every row of x and four warps to a block."""
    channels = x.shape[-1]
    rows, width = x.size // channels, cuda.vector_width(channels, x, *others)
    return cuda.pack_types(x.dtype, width), -(-rows // 4), rows, channels // width


def cuda_forward(x, weight, bias, eps):
    """A warp per row: see layer_norm.cu."""
    cp = cuda.array_module()
    y = cp.empty_like(x)                                                   # (..., C)
    types, blocks, rows, packs = _cuda_rows(x, weight, bias, y)
    mean, rstd = cp.empty(rows, x.dtype), cp.empty(rows, x.dtype)          # (R,), (R,)
    _cuda.launch(f"layer_norm_forward<{types}>", blocks, 128, x, weight, bias, y, mean, rstd, rows, packs, float(eps))
    return y, (x, weight, mean, rstd)


def cuda_backward(dy, saved, needs):
    """dx row by row; dweight and dbias in two steps, each with one order of addition: slices of the rows, then the slices.

    Where both are wanted, and a warp can keep a row of packs, the first step makes dx too: dy and x are read once.
    """
    x, weight, mean, rstd = saved
    cp, channels, number = cuda.array_module(), x.shape[-1], cuda.c_type(x.dtype)
    dx = cp.empty_like(x) if needs[0] else None                            # (..., C)
    types, blocks, rows, packs = _cuda_rows(x, dy, weight, dx)
    items = None if types == "float, float" else next((n for n in _ITEMS if packs <= 32 * n), None)
    in_one_pass = dx is not None and (needs[1] or needs[2]) and items is not None
    if dx is not None and not in_one_pass:
        _cuda.launch(f"layer_norm_backward<{types}>", blocks, 128, dy, x, weight, mean, rstd, dx, rows, packs)
    if not (needs[1] or needs[2]):
        return dx, None, None
    slices = max(1, min(512, rows // 16) if in_one_pass else min(128, rows // 32))  # by the shape alone: results are the same on all devices
    partial, sums = cp.empty((slices, 2, channels), x.dtype), cp.empty((2, channels), x.dtype)
    if in_one_pass:
        _cuda.launch(f"layer_norm_backward_all<{types}, {items}>", slices, 256, dy, x, weight, mean, rstd, dx, partial, rows, packs)
    else:
        _cuda.launch(f"layer_norm_columns<{number}>", (-(-channels // 32), slices), (32, 8), dy, x, mean, rstd, partial, rows, channels)
    _cuda.launch(f"layer_norm_columns_sum<{number}>", -(-2 * channels // 32), (32, 16), partial, sums, slices, 2 * channels)
    return dx, sums[0] if needs[1] else None, sums[1] if needs[2] else None


layer_norm.kernel("cuda", cuda_forward, cuda_backward, fresh=True, reads=READS)
