"""The scratch of updates in place: how much there is of it, whose it is, and that what was reserved is used. See also `test_memory_errors.py`."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad.backend import cpu
from minigrad.optim import blocks


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "GRAIN", 40)
    monkeypatch.setattr(cpu, "ALONE", 20)
    monkeypatch.setattr(cpu, "TOGETHER", 45)
    monkeypatch.setattr(cpu, "_pool", cpu._Pool(2))


def arrays(size: int, dtype: type = np.float64) -> list[np.ndarray]:
    return [np.arange(size, dtype=dtype), np.ones(size, dtype)]


WANTED = {"one piece": (15, 15), "one thread": (79, 20), "two threads": (101, 90), "two, of less than a piece each": (81, 82), "none": (0, 0)}


@pytest.mark.parametrize("case", WANTED)
@pytest.mark.parametrize("reserve", [True, False])
def test_each_thread_has_scratch_for_its_largest_piece(case: str, reserve: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    size, wanted = WANTED[case]
    pair, used, made, empty = arrays(size), [], [], np.empty

    def noted(size: int, dtype: np.dtype) -> np.ndarray:
        made.append(empty(size, dtype))
        return made[-1]

    def update(x: np.ndarray, y: np.ndarray, scratch: np.ndarray) -> None:
        assert scratch.shape == x.shape == y.shape and scratch.dtype == x.dtype
        used.append((x.__array_interface__["data"][0], scratch.__array_interface__["data"][0], scratch))
        np.add(x, y, out=scratch)
        x[...] = scratch

    monkeypatch.setattr(np, "empty", noted)
    if reserve:
        with blocks.reserved([pair]):
            assert [array.size for array in made] == [wanted]
            blocks.in_blocks(update, *pair)
    else:
        blocks.in_blocks(update, *pair)
    assert [array.size for array in made] == [wanted]
    np.testing.assert_array_equal(pair[0], np.arange(size) + 1)
    if size > 80:
        middle = pair[0][size // 2 :].__array_interface__["data"][0]
        first, second = ([scratch for at, _, scratch in used if (at >= middle) == late] for late in (False, True))
        assert first and second and not any(np.shares_memory(x, y) for x in first for y in second)


def test_a_pool_of_one_thread_has_one_piece_of_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_pool", cpu._Pool(1))
    with blocks.reserved([arrays(101)]):
        assert {dtype: array.size for dtype, array in (blocks._room.scratch or {}).items()} == {np.dtype(np.float64): 20}


def test_the_largest_of_each_dtype_is_reserved_and_what_is_larger_makes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that is not contiguous is updated as a whole."""
    turned = np.ones((7, 5)).T
    with blocks.reserved([arrays(4), [turned, turned], arrays(6), arrays(9, np.float32), arrays(3, np.float32)]):
        assert {dtype: array.size for dtype, array in (blocks._room.scratch or {}).items()} == {np.dtype(np.float64): 35, np.dtype(np.float32): 9}
        room, seen = blocks._room.scratch, []
        for pair in ([turned, turned], arrays(6), arrays(101)):
            blocks.in_blocks(lambda x, y, scratch: seen.append((scratch.shape, any(np.shares_memory(scratch, s) for s in room.values()))), *pair)
        assert seen[:2] == [((5, 7), True), ((6,), True)] and not any(reserved for _, reserved in seen[2:])
        with blocks.reserved([arrays(3)]):
            assert blocks._room.scratch is not room
        assert blocks._room.scratch is room  # again
    assert blocks._room.scratch is None
