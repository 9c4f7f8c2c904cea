"""The sum of an array along some axes, whose rounding error does not grow with the number of elements.

NumPy adds in pairs, and pairs of these, along the axis that lies densely in memory. Along any other it adds row after row to one running sum:
131,072 rows of 0.1 in float32 come out 0.1 % off, a million 1 %. Here at most 64 rows are added up at once (128 that are all there are), and the
partial sums the same way: what is off is a few units of the last digit. From 100,000 elements on this takes no longer than NumPy's sum, usually less
(below, up to 10 microseconds more): however narrow the array, thousands of neighbouring elements are added at once, and BLAS does it. Read next:
`erf.py`.
"""

from __future__ import annotations

from math import inf, prod
from typing import Any

import numpy as np

from minigrad.backend.cpu import thread_count

__all__ = ["column_products", "column_sums", "total", "weighted_sum"]

_ROWS = 64  # that are added up at once
_FEW = 16  # that are left to NumPy's running sum in the end; its sums in pairs begin with as many
_PART = 1 << 9  # rows that `column_sums` hands to BLAS as they are if they are long: it then adds several of them at a time
_WIDTH = 1 << 12  # elements that are added at once: enough that the call for them costs little, few enough that they stay in the first-level cache


def total(x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
    """`x.sum(axis, keepdims=keepdims)`; booleans and unsigned integers add up to int64, as in PyTorch."""
    kind = x.dtype.kind
    if type(x) is not np.ndarray or kind != "f" or x.size <= _ROWS:  # CuPy adds in trees
        return x.sum(axis, keepdims=keepdims, dtype=np.int64 if kind in "bu" else None)
    axes = tuple(range(x.ndim)) if axis is None else np.lib.array_utils.normalize_axis_tuple(axis, x.ndim)
    count = prod([x.shape[a] for a in axes])
    if count <= _ROWS or (x.flags.c_contiguous and min(axes) == x.ndim - len(axes)):
        return x.sum(axes, keepdims=keepdims)
    first, last = min(axes), max(axes) + 1
    if count <= 2 * _ROWS and last - first == len(axes) and x.flags.c_contiguous:
        out = _product_with_ones(x.reshape(*x.shape[:first], count, prod(x.shape[last:])))
        return out.reshape(*x.shape[:first], *[1] * (len(axes) if keepdims else 0), *x.shape[last:])
    order = sorted(range(x.ndim), key=lambda a: -abs(x.strides[a] or inf))  # an axis along which the numbers only repeat may come first
    places = [order.index(a) for a in range(x.ndim)]
    out = _total(x.transpose(order), sorted([places[a] for a in axes])).transpose(places)
    return out if keepdims else out.squeeze(axes)


def _total(x: np.ndarray, axes: list[int]) -> np.ndarray:
    """The sum along `axes`, which stay with length 1; x's axes are in the order in which they lie in memory."""
    if prod([x.shape[a] for a in axes]) <= _ROWS:
        return x.sum(tuple(axes), keepdims=True)
    runs: list[list[int]] = []  # [start, stop) of axes that can be seen as one
    for a in axes:
        if runs and a == runs[-1][1] and x.strides[a - 1] == x.shape[a] * x.strides[a]:
            runs[-1][1] = a + 1
        else:
            runs.append([a, a + 1])
    start, stop = runs[-1] if runs[-1][1] == x.ndim else runs[0]  # the innermost, which NumPy adds in pairs, is done first
    before, after = x.shape[:start], x.shape[stop:]
    rows = x.reshape(*before, prod(x.shape[start:stop]), *after)
    if stop < x.ndim:
        rows = _few_rows(rows, start)
    out = rows.sum(start).reshape(*before, *[1] * (stop - start), *after)
    rest = [a for a in axes if not start <= a < stop]
    return _total(out, rest) if rest else out


def _few_rows(x: np.ndarray, axis: int) -> np.ndarray:
    """Partial sums of x along an axis, at most _FEW of them, with the same sum as x.

    The axis is cut into (blocks, rows, width), of which the rows are added up; what is left over at its end is taken along to the next round. BLAS
    adds the rows of an array without gaps.
    """
    before, after, lead = x.shape[:axis], x.shape[axis + 1 :], (slice(None),) * axis
    dense = x.flags.c_contiguous
    while (count := x.shape[axis]) > _FEW:
        most = _ROWS if dense else _FEW
        width = min(max(1, _WIDTH // max(prod(after), 1)), -(-count // most))
        blocks = -(-count // (most * width))
        rows = count // (blocks * width)
        sums, whole = blocks * width, blocks * rows * width
        parts = np.empty((*before, sums + count - whole, *after), x.dtype)
        cut = x[(*lead, slice(whole))].reshape(*before, blocks, rows, width, *after)
        out = parts[(*lead, slice(sums))].reshape(*before, blocks, width, *after)
        if dense:
            length = width * prod(after)
            _product_with_ones(cut.reshape(*before, blocks, rows, length), out.reshape(*before, blocks, length))
        else:
            np.sum(cut, axis + 1, out=out)
        parts[(*lead, slice(sums, None))] = x[(*lead, slice(whole, None))]
        x, dense = parts, True
    return x


def _product_with_ones(rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """(..., R, C) to (..., C): a row of ones times the rows, which BLAS takes at the speed of memory."""
    thread_count()  # makes BLAS use one thread: with more the order of addition could be another
    return np.matmul(np.ones(rows.shape[-2], rows.dtype), rows, out=out)


def column_sums(rows: np.ndarray) -> np.ndarray:
    """(..., R, C) to (..., C): the sums of the columns, of many rows in parts."""
    count, columns = rows.shape[-2:]
    return _product_with_ones(rows) if count <= (_PART if columns >= 64 else 2 * _ROWS) else _few_rows(rows, rows.ndim - 2).sum(-2)


def weighted_sum(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`weights @ rows`, (R,) and (R, C) to (C,), of many rows in parts."""
    parts = len(rows) // (2 * _ROWS)
    if parts < 2:
        return weights @ rows
    whole = parts * 2 * _ROWS
    each = weights[:whole].reshape(parts, 1, -1) @ rows[:whole].reshape(parts, 2 * _ROWS, -1)
    return column_sums(each[:, 0]) + weights[whole:] @ rows[whole:]


def column_products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The column sums of x * y, both (R, C), in parts."""
    if len(x) <= _ROWS:
        return np.einsum("rc,rc->c", x, y)
    parts, columns = len(x) // _ROWS, x.shape[1]
    rest = column_products(x[parts * _ROWS :], y[parts * _ROWS :])
    x, y = (rows[: parts * _ROWS].reshape(parts, _ROWS, columns) for rows in (x, y))
    return total(np.einsum("prc,prc->pc", x, y), 0) + rest
