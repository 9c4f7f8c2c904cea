"""The sum of an array along some axes, whose rounding error does not grow with the number of elements.

NumPy adds in pairs, and pairs of these, along the axis that lies densely in memory. Along any other it adds row after row to one running sum:
131,072 rows of 0.1 in float32 come out 0.1 % off, a million 1 %. Here a running sum adds not many more than 128 rows (512 where BLAS adds them), and
the partial sums are added up the same way. This takes no longer than NumPy's sum, usually less: however narrow the array, thousands of neighbouring
elements are added at once. Read next: `erf.py`.
"""

from __future__ import annotations

from math import inf, prod
from typing import Any

import numpy as np

__all__ = ["column_products", "column_sums", "total"]

_ROWS = 128  # that are added to one running sum; NumPy's sums in pairs begin with as many
_PART = 1 << 9  # rows that BLAS or einsum add up at once: they too keep one running sum for each column
_WIDTH = 1 << 12  # elements that are added at once: enough that the call for them costs little, few enough that they stay in the first-level cache


def total(x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Any:
    """`x.sum(axis, keepdims=keepdims)`; booleans and unsigned integers add up to int64, as in PyTorch."""
    kind = x.dtype.kind
    if type(x) is not np.ndarray or kind != "f" or x.size <= _ROWS:  # CuPy adds in trees
        return x.sum(axis, keepdims=keepdims, dtype=np.int64 if kind in "bu" else None)
    axes = tuple(range(x.ndim)) if axis is None else np.lib.array_utils.normalize_axis_tuple(axis, x.ndim)
    if prod([x.shape[a] for a in axes]) <= _ROWS or (x.flags.c_contiguous and min(axes) == x.ndim - len(axes)):
        return x.sum(axes, keepdims=keepdims)
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
    """Partial sums of x along an axis, at most _ROWS of them, with the same sum as x.

    The axis is cut into (blocks, rows, width), of which the rows are added up; what is left over at its end is taken along to the next round.
    """
    before, after, lead = x.shape[:axis], x.shape[axis + 1 :], (slice(None),) * axis
    while (count := x.shape[axis]) > _ROWS:
        width = min(max(1, _WIDTH // prod(after)), -(-count // _ROWS))
        blocks = -(-count // (_ROWS * width))
        rows = count // (blocks * width)
        sums, whole = blocks * width, blocks * rows * width
        parts = np.empty((*before, sums + count - whole, *after), x.dtype)
        cut = x[(*lead, slice(whole))].reshape(*before, blocks, rows, width, *after)
        np.sum(cut, axis + 1, out=parts[(*lead, slice(sums))].reshape(*before, blocks, width, *after))
        parts[(*lead, slice(sums, None))] = x[(*lead, slice(whole, None))]
        x = parts
    return x


def column_sums(rows: np.ndarray) -> np.ndarray:
    """(..., R, C) to (..., C): a row of ones times the rows, which BLAS takes at the speed of memory, in parts."""
    *lead, count, columns = rows.shape
    if count <= _PART:
        return np.ones(count, rows.dtype) @ rows
    parts = count // _PART
    whole, rest = rows[..., : parts * _PART, :].reshape(*lead, parts, _PART, columns), rows[..., parts * _PART :, :]
    return total(np.ones(_PART, rows.dtype) @ whole, -2) + column_sums(rest)


def column_products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The column sums of x * y, both (R, C), in parts."""
    if len(x) <= _PART:
        return np.einsum("rc,rc->c", x, y)
    parts, columns = len(x) // _PART, x.shape[1]
    rest = column_products(x[parts * _PART :], y[parts * _PART :])
    x, y = (rows[: parts * _PART].reshape(parts, _PART, columns) for rows in (x, y))
    return total(np.einsum("prc,prc->pc", x, y), 0) + rest
