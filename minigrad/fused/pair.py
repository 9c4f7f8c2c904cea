"""A number or a pair of them: how PyTorch lets a window, a stride or a factor be given, which may differ between rows and columns."""

from __future__ import annotations

from typing import Any

import numpy as np

Pair = tuple[int, int]


def pair(value: int | Pair | list[int]) -> Pair:
    """(rows, columns) as Python's numbers, from one number for both or one for each."""
    rows, columns = value if isinstance(value, tuple | list) else (value, value)
    return int(rows), int(columns)


def check_pair(name: str, what: str, value: Any, least: int) -> None:
    """Raise ValueError, in the name of the op or layer `name`, unless `pair` can read the argument `what` and finds numbers of at least `least`."""
    numbers = value if isinstance(value, tuple | list) else (value, value)
    if len(numbers) != 2 or not all(isinstance(n, int | np.integer) and n >= least for n in numbers):
        raise ValueError(f"{name}: {what} must be a whole number of at least {least} or a pair (rows, columns) of them, it is {value!r}")
