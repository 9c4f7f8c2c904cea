"""Softmax: numbers along an axis become positive and sum to one. Its derivative needs the output alone, so its node keeps nothing else.

Letters: K numbers along the axis, R rows (everything else). Read next: `log_softmax.py`, `attention.py`.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad.backend import cuda, sums
from minigrad.backend.cpu import parallel_rows
from minigrad.fused.floats import check_floats
from minigrad.op import fused
from minigrad.ops.inputs import check_axis
from minigrad.tensor import Tensor

__all__ = ["softmax"]

_GRAIN = 1 << 15  # elements a thread is worth


@fused
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """`exp(x) / sum(exp(x))` along `axis`. The largest element is subtracted first, which changes nothing but keeps exp in range.

    Args:
        x: any shape.
        axis: along which the results sum to 1.

    Returns:
        The shape of x. A row of only -inf gives nan, as in PyTorch.

    Raises:
        ValueError: an axis that x does not have. TypeError: x is not of floats, or the axis no whole number.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.softmax.html
    """
    if x.size == 0:
        return x.exp()                                                     # nothing to normalise, and no largest element
    shifted = (x - x.max(axis, keepdims=True).detach()).exp()              # the shape of x
    return shifted / shifted.sum(axis, keepdims=True)                      # the shape of x


# y_i = exp(x_i) / sum_k exp(x_k) has dy_i/dx_j = y_i (delta_ij - y_j), hence dx_j = sum_i g_i dy_i/dx_j = y_j (g_j - sum_i g_i y_i).
softmax.derivative(x=lambda g, out, axis: out * (g - (g * out).sum(axis, keepdims=True)))


def check_input(name: str, x: Tensor, axis: int) -> None:
    """Raise for integers, and for an axis that x does not have."""
    check_floats(name, "x", x)
    check_axis(name, axis, x.ndim)


@softmax.check
def _check(x, axis) -> None:
    check_input("softmax", x, axis)


def by_rows(work, axis: int, *arrays: np.ndarray) -> np.ndarray:
    """Turn `axis` of each array last, call `work(out, *rows)` on blocks of rows (r, K), and turn the result back."""
    turned = [np.moveaxis(a, axis, -1) for a in arrays]
    rows = [a.reshape(-1, a.shape[-1]) if a.size else a.reshape(0, 1) for a in turned]  # (R, K)
    out = np.empty_like(rows[0])

    def share(start: int, stop: int) -> None:
        with np.errstate(invalid="ignore"):  # inf - inf is nan without a word, as in PyTorch
            work(out[start:stop], *[a[start:stop] for a in rows])

    parallel_rows(share, len(out), 1 + _GRAIN // out.shape[-1])
    return np.moveaxis(out.reshape(turned[0].shape), -1, axis)


def row_sums(rows: np.ndarray) -> np.ndarray:
    """(R, K) to (R, 1). Rows that lie across memory are added up in parts: BLAS would make one running sum of each."""
    return (rows @ np.ones(rows.shape[1], rows.dtype) if rows.flags.c_contiguous else sums.column_sums(rows.T))[:, None]


def _forward_rows(out, x) -> None:
    np.subtract(x, x.max(1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= row_sums(out)


def _backward_rows(out, dy, y) -> None:
    np.multiply(dy, y, out=out)
    out -= y * row_sums(out)


def cpu_forward(x, axis):
    y = by_rows(_forward_rows, axis, x)
    return y, (y, axis)


def cpu_backward(dy, saved, needs):
    """The rule above, `dx = y * dy - y * sum(y * dy)`, with one product taken once."""
    y, axis = saved
    return (by_rows(_backward_rows, axis, dy, y),)


softmax.kernel("cpu", cpu_forward, cpu_backward, fresh=True)


_cuda = cuda.Kernels(__file__)
_ITEMS = {"float": (1, 8, 32), "float4": (1, 2, 8), "double": (1, 8, 32)}  # packs a lane holds: the instances of the kernels for a warp
_LONGEST = 1024  # numbers that a warp's registers hold


def cuda_rows(kernels: cuda.Kernels, name: str, axis: int, *arrays) -> None:
    """Launch the kernel `name` on arrays of one shape, the written one last: the `_warp`, `_block` or `_columns` one, as softmax.cu says."""
    shape, number = arrays[0].shape, cuda.c_type(arrays[0].dtype)
    axis %= len(shape)
    length, inner = shape[axis], math.prod(shape[axis + 1 :])
    rows = arrays[0].size // max(length, 1)
    if inner > 1:
        kernels.launch(f"{name}_columns<{number}>", -(-rows // 128), 128, *arrays, rows, length, inner)
        return
    width = cuda.vector_width(length, *arrays)
    pack, packs = number if width == 1 else "float4", length // width
    if length > _LONGEST:
        kernels.launch(f"{name}_block<{number}, {pack}>", rows, 256, *arrays, packs)
        return
    items = next(n for n in _ITEMS[pack] if packs <= 32 * n)
    kernels.launch(f"{name}_warp<{number}, {pack}, {items}>", -(-rows // 4), 128, *arrays, rows, packs)


def cuda_forward(x, axis):
    y = cuda.array_module().empty_like(x)
    cuda_rows(_cuda, "softmax_forward", axis, x, y)
    return y, (y, axis)


def cuda_backward(dy, saved, needs):
    y, axis = saved
    dx = cuda.array_module().empty_like(y)
    cuda_rows(_cuda, "softmax_backward", axis, dy, y, dx)
    return (dx,)


softmax.kernel("cuda", cuda_forward, cuda_backward, fresh=True)
