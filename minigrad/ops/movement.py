"""Operations that move numbers without computing any: reshape, transpose, broadcast, pad, join and split, sliding windows.

Each one's derivative is its adjoint: the movement backwards, adding up where a number was used twice. Views share memory, and their version
counter, with their source.
Read next: `index.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backend import sums
from minigrad.op import primitive
from minigrad.ops.inputs import as_tensor, check_axis, check_fits
from minigrad.tensor import Tensor, wrap

Pair = tuple[int, int]


@primitive(view=True)
def reshape(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same numbers in another shape; one length may be -1."""
    return x.reshape(shape)


@primitive(view=True)
def transpose(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """The axes in another order (None: reversed), as NumPy's transpose and PyTorch's permute. A view."""
    if axes is not None and len(axes) != x.ndim:
        raise ValueError(f"transpose: axes {axes} do not order the {x.ndim} axes of shape {x.shape}; to exchange two of them use swapaxes")
    try:
        return x.transpose(axes)
    except (TypeError, np.exceptions.AxisError):
        for axis in axes or ():
            check_axis("transpose", axis, x.ndim)
        raise


@primitive(view=True)
def broadcast_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x repeated along new axes and axes of length 1, without copying. A read-only view."""
    return np.broadcast_to(x, shape)


@primitive
def sum_to(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The adjoint of broadcast_to: x summed over the axes along which a tensor of `shape` would be repeated. Raises ValueError if it would not be."""
    extra = x.ndim - len(shape)
    if extra < 0 or any([n not in (1, there) for n, there in zip(shape, x.shape[extra:], strict=True)]):
        raise ValueError(f"sum_to: a tensor of shape {shape} is not broadcast to {x.shape}")
    axes = tuple([k for k in range(x.ndim) if k < extra or (shape[k - extra] == 1 and x.shape[k] != 1)])
    return sums.total(x, axes).reshape(shape)


reshape.derivative(x=lambda g, x_shape: g.reshape(x_shape))
reshape.on_arrays()
transpose.derivative(
    x=lambda g, axes: (
        g.transpose() if axes is None else g.transpose([axes.index(k) if k in axes else axes.index(k - len(axes)) for k in range(len(axes))])
    )
)
transpose.on_arrays()
broadcast_to.derivative(x=lambda g, x_shape: sum_to(g, x_shape))
sum_to.derivative(x=lambda g, x_shape: broadcast_to(g, x_shape))


def swapaxes(x: Tensor, first: int, second: int) -> Tensor:
    """x with two axes exchanged. A view."""
    x = as_tensor("swapaxes", x)
    for axis in (first, second):
        check_axis("swapaxes", axis, x.ndim)
    axes = list(range(x.ndim))
    axes[first], axes[second] = axes[second], axes[first]
    return transpose(x, tuple(axes))


def flatten(x: Tensor, start: int = 0) -> Tensor:
    """The axes from `start` on merged into one."""
    x = as_tensor("flatten", x)
    check_axis("flatten", start, x.ndim or 1)  # 0 and -1 name the one place of a 0-d tensor
    return reshape(x, (*x.shape[:start], math.prod(x.shape[start:])))


@primitive
def pad(x: Tensor, widths: tuple[Pair, ...], value: float = 0.0) -> Tensor:
    """x with `value` around it: widths holds a pair (before, after) for every axis."""
    if len(widths) != x.ndim or not all([isinstance(pair, tuple | np.ndarray) and len(pair) == 2 for pair in widths]):
        raise ValueError(f"pad: widths is {widths} for {x.ndim} axes (shape {x.shape}); give a pair (before, after) per axis, from the first on")
    check_fits("pad", value, x.dtype)
    return np.pad(x, widths, constant_values=value)


pad.derivative(x=lambda g, x_shape, widths: g[tuple([slice(before, before + n) for (before, _), n in zip(widths, x_shape, strict=True)])])


@primitive
def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors joined along an axis they have. Source: https://docs.pytorch.org/docs/stable/generated/torch.cat.html"""
    check_axis("concatenate", axis, tensors[0].ndim)
    return np.concatenate(tensors, axis)


@primitive
def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis."""
    check_axis("stack", axis, tensors[0].ndim + 1)
    return np.stack(tensors, axis)


@primitive(several=True, view=True)
def unbind(x: Tensor, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of x along an axis, which disappears; views. One node for all: their gradients fill one buffer (stack)."""
    check_axis("unbind", axis, x.ndim)
    moved = np.moveaxis(x, axis, 0)
    return tuple([moved[k, ...] for k in range(len(moved))])  # with "...", the slices of a 1-d tensor are 0-d arrays, not NumPy scalars


def _pieces(g: Any, tensors_shape: tuple, axis: int) -> list:
    pieces, start = [], 0
    for shape in tensors_shape:
        pieces.append(g[(slice(None),) * (axis % len(shape)) + (slice(start, start + shape[axis]),)])
        start += shape[axis]
    return pieces


def _stack_gradients(g: tuple[Tensor | None, ...], axis: int) -> Tensor:
    """The gradients of the slices, stacked; zeros for slices that nothing was computed from."""
    return stack([wrap(np.zeros_like(_first(g).data)) if x is None else x for x in g], axis)


def _stack_arrays(g: tuple, axis: int) -> Any:
    """The same on arrays. Where they are, in order, all the slices of one array already, as attention makes them: that array."""
    whole: Any = getattr(g[0], "base", None)
    if backend.is_array(whole) and whole.ndim == g[0].ndim + 1 and whole.shape[axis] == len(g):
        if all(backend.is_same(x, piece) for x, piece in zip(g, unbind.function(whole, axis), strict=True)):
            return whole
    return np.stack([np.zeros_like(_first(g)) if x is None else x for x in g], axis)


def _first(g: tuple) -> Any:
    return next(x for x in g if x is not None)


concatenate.derivative(tensors=_pieces)
concatenate.on_arrays()
stack.derivative(tensors=lambda g, axis: unbind(g, axis))
unbind.derivative(x=_stack_gradients)
unbind.on_arrays(x=_stack_arrays)


# --- sliding windows over images (B, H, W, C)


def _check_pairs(name: str, **pairs: Any) -> None:
    """Raise ValueError, in the name of the op `name`, for anything but pairs of whole numbers from 1 on: others would look beside the image."""
    for what, numbers in pairs.items():
        if not isinstance(numbers, tuple | list) or len(numbers) != 2 or not all(isinstance(n, int | np.integer) and n >= 1 for n in numbers):
            raise ValueError(f"{name}: {what} must be a pair (rows, columns) of whole numbers of at least 1, it is {numbers!r}")


def _window_counts(height: int, width: int, kernel_size: Pair, stride: Pair, dilation: Pair) -> Pair:
    rows = (height - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
    return rows, columns


@primitive(view=True)
def windows(x: Tensor, kernel_size: Pair, stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> Tensor:
    """Every window of an image: (B, H, W, C) -> (B, Ho, Wo, kh, kw, C), a read-only view without padding.

    Window (i, j) starts at (i * stride[0], j * stride[1]); its pixels are `dilation` apart. Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Unfold.html
    """
    _check_pairs("windows", kernel_size=kernel_size, stride=stride, dilation=dilation)
    if x.ndim != 4:
        raise ValueError(f"windows: x must be images (B, H, W, C), it has shape {x.shape}")
    batch, height, width, channels = x.shape
    rows, columns = _window_counts(height, width, kernel_size, stride, dilation)
    if rows < 1 or columns < 1:
        raise ValueError(f"windows: a window of {kernel_size} with dilation {dilation} does not fit into an image of {height} x {width}")
    b, h, w, c = x.strides
    shape = (batch, rows, columns, *kernel_size, channels)
    view = backend.as_strided(x, shape, (b, h * stride[0], w * stride[1], h * dilation[0], w * dilation[1], c))
    if type(view) is np.ndarray:
        view.flags.writeable = False  # windows overlap: writing to one would write to others
    return view


@primitive
def fold(x: Tensor, shape: tuple[int, ...], stride: Pair = (1, 1), dilation: Pair = (1, 1)) -> Tensor:
    """The adjoint of windows: (B, Ho, Wo, kh, kw, C) -> `shape` (B, H, W, C), every pixel the sum over the windows it was in."""
    _check_pairs("fold", stride=stride, dilation=dilation)
    if x.ndim != 6 or len(shape) != 4:
        raise ValueError(f"fold: x must be windows (B, Ho, Wo, kh, kw, C) and `shape` that of images (B, H, W, C), they are {x.shape} and {shape}")
    batch, rows, columns, kernel_rows, kernel_columns, channels = x.shape
    counts = _window_counts(shape[1], shape[2], (kernel_rows, kernel_columns), stride, dilation)
    if (batch, rows, columns, channels) != (shape[0], *counts, shape[3]):
        raise ValueError(
            f"fold: images of shape {shape} have {counts[0]} x {counts[1]} windows of ({kernel_rows}, {kernel_columns}) with stride {stride} and "
            f"dilation {dilation}; x has shape {x.shape}"
        )
    out: Any = np.zeros_like(x, shape=shape)
    for i in range(kernel_rows):
        for j in range(kernel_columns):
            top, left = i * dilation[0], j * dilation[1]
            out[:, top : top + rows * stride[0] : stride[0], left : left + columns * stride[1] : stride[1]] += x[:, :, :, i, j]
    return out


windows.derivative(x=lambda g, x_shape, stride, dilation: fold(g, x_shape, stride, dilation))
fold.derivative(x=lambda g, x_shape, stride, dilation: windows(g, x_shape[3:5], stride, dilation))
