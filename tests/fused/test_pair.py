"""What is taken for a pair, and what it becomes. The operations' and layers' own tests check that each of them asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad.fused.pair import check_pair, pair


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3)], ids=["int", "int32", "uint8"])
def test_pair_of_one_number_for_both(value: Any):
    check_pair("op", "stride", value, 3)
    assert pair(value) == (3, 3) and all(type(n) is int for n in pair(value))


@pytest.mark.parametrize("value", [(2, 5), [2, 5], (np.int64(2), np.int64(5))], ids=["tuple", "list", "int64"])
def test_pair_of_a_number_for_each(value: Any):
    check_pair("op", "stride", value, 2)
    assert pair(value) == (2, 5) and all(type(n) is int for n in pair(value))


@pytest.mark.parametrize("value", [1, -1, 2.0, np.float32(2), "22", None, (), (2,), (2, 2, 2), (2, 1), (1, 2), (2, 2.0)], ids=repr)
def test_pair_refused(value: Any):
    with pytest.raises(ValueError) as raised:
        check_pair("op", "stride", value, 2)
    assert str(raised.value) == f"op: stride must be a whole number of at least 2 or a pair (rows, columns) of them, it is {value!r}"
