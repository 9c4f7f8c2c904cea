"""The same vector along every row of an array, thousands of elements at a time: over rows of 96 numbers NumPy spends its time between the rows.

Rows that lie behind each other in memory are read as one long row, beside as many copies of the vector. The numbers are the same, bit for bit.
Read next: `linear.py`.
"""

from __future__ import annotations

import numpy as np

__all__ = ["LONG_ROW", "along_rows", "copies_for", "end_to_end"]

LONG_ROW = 8192  # elements: of float32 the copies fill most of the first-level cache


def end_to_end(vector: np.ndarray, times: int) -> np.ndarray:
    """`times` copies of the vector in one (np.tile takes three times as long)."""
    copies = np.empty((times, len(vector)), vector.dtype)
    copies[...] = vector
    return copies.reshape(-1)


def copies_for(rows: int, vector: np.ndarray) -> np.ndarray:
    """What `along_rows` takes for so many rows: the vector as often as makes a long row; once, where the copies would take longer than they save."""
    return end_to_end(vector, max(LONG_ROW // len(vector), 1)) if rows * len(vector) >= 8 * LONG_ROW else vector


def along_rows(ufunc: np.ufunc, rows: np.ndarray, copies: np.ndarray, out: np.ndarray) -> None:
    """Write `ufunc(rows, vector)` into `out`, which may be `rows`; both, (R, C), have no gaps. `copies` are the vector's for R rows or more."""
    channels = rows.shape[1]
    if len(copies) == channels:
        ufunc(rows, copies, out=out)
        return
    times = len(copies) // channels
    whole = len(rows) // times * times
    ufunc(rows[:whole].reshape(-1, len(copies)), copies, out=out[:whole].reshape(-1, len(copies)))
    ufunc(rows[whole:], copies[:channels], out=out[whole:])
