"""Reductions: many numbers become one, along some axes or all of them.

`axis` is None (all), an integer, or a sequence of them; `keepdims` keeps the reduced axes with length 1. Read next: `movement.py`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.backend import sums
from minigrad.op import primitive
from minigrad.ops.elementwise import cast, equal
from minigrad.ops.inputs import as_tensor, check_axis
from minigrad.ops.movement import broadcast_to, reshape
from minigrad.tensor import Tensor

Axes = int | Sequence[int] | None  # a list becomes a tuple at the call: see base_op.frozen


def _normalised(axis: Axes, ndim: int) -> tuple[int, ...]:
    """The axes as a tuple of numbers from 0 to ndim - 1."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple | list | range) else (axis,)
    return tuple([int(a) % ndim for a in axes]) if ndim else ()  # 0 and -1 name the one place of a 0-d tensor


def _spread(reduced: Tensor, shape: tuple[int, ...], axis: Axes) -> Tensor:
    """A reduced tensor (with or without keepdims) broadcast back to the shape it was reduced from."""
    return broadcast_to(reshape(reduced, _kept(shape, axis)), shape)


def _kept(shape: tuple[int, ...], axis: Axes) -> tuple[int, ...]:
    """The shape with the reduced axes of length 1."""
    axes = _normalised(axis, len(shape))
    return tuple([1 if k in axes else n for k, n in enumerate(shape)])


@primitive
def sum(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The sum along `axis`; of booleans and integers in int64. Source: https://docs.pytorch.org/docs/stable/generated/torch.sum.html"""
    try:
        return sums.total(x, axis, keepdims)
    except (TypeError, ValueError):
        _check_axes("sum", axis, x.ndim)
        raise


@primitive
def max(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The largest element along `axis`; ties share the gradient equally. Source: https://docs.pytorch.org/docs/stable/generated/torch.amax.html"""
    try:
        return x.max(axis, keepdims=keepdims)
    except (TypeError, ValueError):
        _check_axes("max", axis, x.ndim, "; F.maximum compares two tensors")
        raise


@primitive
def min(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The smallest element along `axis`; ties share the gradient equally. Source: https://docs.pytorch.org/docs/stable/generated/torch.amin.html"""
    try:
        return x.min(axis, keepdims=keepdims)
    except (TypeError, ValueError):
        _check_axes("min", axis, x.ndim, "; F.minimum compares two tensors")
        raise


def _check_axes(name: str, axis: Any, ndim: int, advice: str = "") -> None:
    """Raise, in the name of the op `name`, for axes that are no whole numbers and for those that are not there, as `check_axis` does for one."""
    axes = axis if isinstance(axis, tuple | list) else () if axis is None else (axis,)
    if not all([isinstance(a, int | np.integer) for a in axes]):
        what = reprlib.repr(axis)  # perhaps the numbers of a Tensor
        raise TypeError(f"{name}: the axis must be a whole number, a tuple of them or None, it is {what}{advice}") from None
    for a in axes:
        check_axis(name, a, ndim or 1)  # 0 and -1 name the one place of a 0-d tensor


@primitive
def argmax(x: Tensor, axis: int | None = None) -> Tensor:
    """The position of the first largest element along `axis` (None: in the flattened tensor); integers, no gradient."""
    if axis is not None:
        check_axis("argmax", axis, x.ndim or 1)
    return x.argmax(axis)


def _share_ties(g: Tensor, x: Tensor, out: Tensor, axis: Axes) -> Tensor:
    tied = cast(equal(x, _spread(out, x.shape, axis)), x.dtype)
    return _spread(g, x.shape, axis) * (tied / _spread(sum(tied, axis), x.shape, axis))


sum.derivative(x=lambda g, x_shape, axis: _spread(g, x_shape, axis))
sum.on_arrays(x=lambda g, x_shape, axis: np.broadcast_to(g.reshape(_kept(x_shape, axis)), x_shape))
max.derivative(x=_share_ties)
min.derivative(x=_share_ties)


def mean(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean along `axis`; integers become float32."""
    return _mean("mean", x, axis, keepdims)


def var(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean along `axis` (biased: divided by n, as NumPy's), in two passes."""
    x = as_tensor("var", x)
    centered = x - _mean("var", x, axis, keepdims=True)
    centered = centered - _mean("var", centered, axis, keepdims=True)  # what the rounding of a mean leaves, if that is far from 0
    return _mean("var", centered * centered, axis, keepdims)


def _mean(name: str, x: Tensor, axis: Axes, keepdims: bool) -> Tensor:
    """The mean in the name of the op `name`, which its errors speak of."""
    x = as_tensor(name, x)
    try:
        total = sum(x, axis, keepdims)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("sum:", f"{name}:", 1)) from None
    return total / math.prod([x.shape[a] for a in _normalised(axis, x.ndim)])
