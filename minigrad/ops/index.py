"""Picking elements by position, and the adjoint: adding values back at these positions. Read next: `matmul.py`."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.op import primitive
from minigrad.ops.inputs import check_axis
from minigrad.ops.movement import sum_to
from minigrad.tensor import Tensor


def plain_index(index: Any) -> Any:
    """An index with arrays instead of Tensors and lists; arrays are copied, so that writing to them later cannot change a recorded graph."""
    if isinstance(index, tuple):
        return tuple([plain_index(part) for part in index])
    if isinstance(index, slice):
        return slice(*[None if part is None else operator.index(part) for part in (index.start, index.stop, index.step)])
    if isinstance(index, Tensor):
        index._note_read()
        index = index.data
    if isinstance(index, list | range):  # NumPy, too, takes a range for a list
        index = np.array(index)
        index = index if index.size else index.astype(np.intp)  # NumPy makes floats of []
    if isinstance(index, float | np.floating):  # CuPy would take 1.7 for 1
        raise IndexError(f"a tensor is indexed by integers, slices, None, Ellipsis, and arrays of integers or booleans, not by {index!r}")
    if backend.is_array(index) or (hasattr(index, "__array__") and not isinstance(index, np.generic)):  # another library's array, too
        index = index.copy() if backend.is_array(index) else backend.host_array(index, "getitem").copy()
        if isinstance(index, np.ndarray):
            index.flags.writeable = False  # the operation need not copy it once more
    return index


def _is_basic(index: Any) -> bool:
    """Whether the index consists of integers, slices, None and Ellipsis only: every element is then picked at most once."""
    return all(
        part is None or part is Ellipsis or isinstance(part, slice | int | np.integer) for part in (index if isinstance(index, tuple) else (index,))
    )


@primitive(name="getitem", view=True)
def pick(x: Tensor, index: Any) -> Tensor:
    """x[index] for an index that is ready for NumPy."""
    out = x[index]
    if isinstance(out, np.generic):  # a single number: with "...", NumPy makes it a view as all others, and not a scalar
        out = x[(*index, ...) if isinstance(index, tuple) else (index, ...)]
    return out


@primitive
def put(x: Tensor, index: Any, shape: tuple[int, ...]) -> Tensor:
    """The adjoint of getitem: zeros of `shape`, with x added at `index`; an element that was picked twice receives both."""
    out = np.zeros_like(x, shape=shape) if shape else np.zeros_like(x, shape=(1,)).reshape(())  # CuPy takes the shape () for none given
    if _is_basic(index):
        out[index] = x
    else:
        backend.add_at(out, index, x)
    return out


pick.derivative(x=lambda g, x_shape, index: put(g, index, x_shape))
pick.on_arrays(x=lambda g, x_shape, index: put.function(g, index, x_shape))
put.derivative(x=lambda g, index: pick(g, index))


def getitem(x: Tensor, index: Any) -> Tensor:
    """x[index] with NumPy's indexing: integers, slices, None, Ellipsis (a view), boolean and integer arrays or Tensors (a copy)."""
    return pick(x, plain_index(index))


@primitive
def gather(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """x at integer `indices` along one axis; the other axes go along.

    Raises:
        IndexError: an index is out of range (on the CPU: a GPU wraps it around), or the indices are no integers.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.take_along_axis.html
    """
    check_axis("gather", axis, x.ndim)
    return np.take_along_axis(x, indices, axis)


@primitive
def scatter_add(x: Tensor, indices: Tensor, axis: int, size: int) -> Tensor:
    """The adjoint of gather: zeros with `size` elements along `axis`, x added at `indices`. Raises IndexError like it."""
    check_axis("scatter_add", axis, x.ndim)
    if indices.dtype.kind not in "iu":
        raise IndexError(f"scatter_add: the indices are {indices.dtype}; give integers")
    axis = axis % x.ndim
    out = np.zeros_like(x, shape=(*x.shape[:axis], size, *x.shape[axis + 1 :]))
    places = [np.arange(n).reshape((-1,) + (1,) * (x.ndim - 1 - k)) for k, n in enumerate(x.shape)]
    places[axis] = indices
    backend.add_at(out, tuple(places), x)
    return out


# sum_to: where x has length 1 along another axis than `axis` and the indices have not, both repeat it
gather.derivative(x=lambda g, indices, axis, x_shape: sum_to(scatter_add(g, indices, axis, x_shape[axis]), x_shape))
scatter_add.derivative(x=lambda g, indices, axis, x_shape: sum_to(gather(g, indices, axis), x_shape))
