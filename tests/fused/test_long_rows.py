"""A vector along rows: every row once, in long rows or not, to the last bit; and copies of it only where they pay. Read next: `test_linear.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad.fused import long_rows
from tests.support import rng


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("times", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 8, 40])
def test_every_row_meets_the_vector(rows: int, times: int, in_place: bool):
    """In long rows that come out even, with rows left over, with fewer rows than copies; what lies around the rows is left alone."""
    x, vector = rng(rows).uniform(-1, 1, (rows + 2, 5)).astype(np.float32), rng(times).uniform(-1, 1, 5).astype(np.float32)
    given = x.copy()
    target = given if in_place else np.full_like(x, 9)
    for ufunc in (np.add, np.divide):
        expected = target.copy()
        expected[1:-1] = ufunc(given[1:-1], vector)
        long_rows.along_rows(ufunc, given[1:-1], long_rows.end_to_end(vector, times), out=target[1:-1])
        np.testing.assert_array_equal(target, expected, strict=True)
    np.testing.assert_array_equal(given, target if in_place else x)


def test_rows_are_read_as_long_ones():
    x, vector, seen = np.zeros((7, 5)), np.ones(5), []
    record: Any = lambda rows, copies, out: seen.append(rows.shape)  # noqa: E731
    long_rows.along_rows(record, x, long_rows.end_to_end(vector, 3), out=x)
    assert seen == [(2, 15), (1, 5)]


def test_copies_lie_end_to_end():
    np.testing.assert_array_equal(long_rows.end_to_end(np.float32([1, 2, 3]), 2), np.float32([1, 2, 3, 1, 2, 3]), strict=True)


@pytest.mark.parametrize(
    ("rows", "channels", "times"),
    [(681, 96, 1), (683, 96, 85), (2048, 96, 85), (1 << 13, 8, 1024), ((1 << 13) - 1, 8, 1), (8, 8192, 1), (20, 10000, 1), (10**6, 0, 1), (0, 3, 1)],
)
def test_there_are_copies_only_of_a_vector_for_many_rows(rows: int, channels: int, times: int):
    """As many as fit into 8,192 elements, and one at least; none for fewer than eight such rows."""
    vector = rng(0).uniform(-1, 1, channels)
    np.testing.assert_array_equal(long_rows.copies_for(rows, vector), np.tile(vector, times), strict=True)
