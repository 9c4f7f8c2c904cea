"""The sum of an array along some axes: every element once, whatever its layout, and digits that do not get lost. Read next: `test_erf.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from minigrad import Tensor, ops
from minigrad.backend import sums
from tests.cuda_device import on_cuda
from tests.support import rng

LAYOUTS = {
    "as it lies": lambda x: x,
    "in Fortran's order": np.asfortranarray,
    "every other element": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "without the first row": lambda x: np.concatenate([x[:1], x])[1:],
    "a slice of each row": lambda x: np.concatenate([x, x], -1)[..., : x.shape[-1]],
    "backwards": lambda x: np.flip(x),
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape),
}


@st.composite
def sums_of(draw: Any) -> tuple[np.ndarray, tuple[int, ...], bool]:
    """Whole numbers, whose sum no rounding changes, in any layout; the axes to sum along."""
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 17, 64]), min_size=1, max_size=3)))
    numbers = rng(draw(st.integers(0, 2**32 - 1))).integers(-9, 10, shape).astype(float)
    axes = st.integers(-len(shape), len(shape) - 1)
    axis = draw(st.none() | axes | st.lists(axes, unique_by=lambda a: a % len(shape)).map(tuple))
    order = draw(st.permutations(range(len(shape))))
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](numbers).transpose(order), axis, draw(st.booleans())


@pytest.mark.parametrize(("rows", "few", "width"), [(4, 2, 1), (4, 3, 8), (4, 4, 1000), (6, 2, 7), (64, 16, 1 << 12)])
@given(sums_of())
def test_every_element_is_added_once(rows: int, few: int, width: int, case: tuple):
    x, axis, keepdims = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_ROWS", rows)
        patch.setattr(sums, "_FEW", few)
        patch.setattr(sums, "_WIDTH", width)
        ours = sums.total(x, axis, keepdims)
    expected = x.sum(axis, keepdims=keepdims)
    assert_array_equal(ours, expected)
    assert ours.shape == expected.shape and ours.dtype == expected.dtype and not np.shares_memory(ours, x)


@pytest.mark.parametrize("number", [0.1, 0.7])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1 << 14, 2), 0),
        ((64, 256, 2), (0, 1)),
        ((3, 1 << 14, 2), 1),
        ((1 << 14, 2, 3), (0, 2)),
        (((1 << 14) + 77, 2), 0),
        ((4096, 256), 0),
        ((1 << 16, 1), 0),
        ((128, 2), 0),
        ((3, 100, 10), 1),
        ((5, 25, 3), (0, 1)),
    ],
)
def test_sums_of_many_rows_keep_their_digits(shape: tuple[int, ...], axis: Any, number: float):
    """Equal numbers, whose rounding errors do not cancel: NumPy's own sums are 1e-4 off, and running sums of 128 rows 1.3e-6 to 2.5e-6."""
    x = np.full(shape, number, np.float32)
    exact = np.sum(x, axis, np.float64)
    for layout in ("as it lies", "in Fortran's order", "every other element", "repeated"):
        np.testing.assert_allclose(sums.total(LAYOUTS[layout](x), axis), exact, rtol=8e-7, err_msg=layout)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((65, 2), 0), ((128, 2), 0), ((129, 2), 0), ((3, 100, 5), 1), ((2, 10, 10, 3), (1, 2)), ((10, 10, 3), (0, 1)),
        ((10, 3, 10, 2), (0, 2)), ((2, 10, 5, 10), (1, 3)), ((10, 2, 10), (0, 2)),
    ],
)  # fmt: skip
def test_some_more_rows_than_are_added_at_once(shape: tuple[int, ...], axis: Any, keepdims: bool):
    """Of axes that lie beside each other in memory BLAS adds them in one product; others are cut."""
    x = rng(sum(shape)).integers(-9, 10, shape).astype(np.float32)
    for layout in ("as it lies", "in Fortran's order", "a slice of each row"):
        assert_array_equal(sums.total(LAYOUTS[layout](x), axis, keepdims), x.sum(axis, keepdims=keepdims), layout, strict=True)


def test_wrong_axes_are_refused_in_large_arrays_too():
    x = np.zeros((300, 2))
    for axis, message in ((2, "axis 2 is out of bounds for array of dimension 2"), ((0, 0), "repeated axis")):
        with pytest.raises(ValueError, match=message):
            sums.total(x, axis)


@pytest.mark.cuda
def test_sums_on_a_gpu():
    """There the library's own sum is taken; the dtypes are the same."""
    x = rng(0).uniform(-1, 1, (300, 2))
    small = np.arange(6, dtype=np.uint8).reshape(2, 3)
    with on_cuda():
        y = Tensor(x).to(device="cuda").sum(0)
        assert y.device == "cuda"
        np.testing.assert_allclose(y.to(device="cpu").numpy(), x.sum(0), rtol=1e-12)
        for whole in (small, small > 2):
            total = Tensor(whole).to(device="cuda").sum([0, 1])
            assert total.dtype == np.int64 and total.item() == whole.sum()
        assert ops.sum_to(Tensor(small).to(device="cuda"), (3,)).dtype == np.int64


@pytest.mark.parametrize("part", [1, 3, 4, 100])
@pytest.mark.parametrize(("lead", "rows"), [((), 8), ((), 7), ((2, 3), 8), ((), 0), ((0,), 5)])
def test_columns_are_added_in_parts(monkeypatch: pytest.MonkeyPatch, lead: tuple[int, ...], rows: int, part: int):
    for name, value in (("_PART", part), ("_ROWS", max(part, 4)), ("_FEW", 2)):
        monkeypatch.setattr(sums, name, value)
    for columns in (3, 64):
        x, y = rng(rows).integers(-9, 10, (2, *lead, rows, columns)).astype(float)
        assert_array_equal(sums.column_sums(x), x.sum(-2))
        if not lead:
            assert_array_equal(sums.column_products(x, y), (x * y).sum(0))


@pytest.mark.parametrize("number", [0.1, 0.7])
@pytest.mark.parametrize("shape", [((1 << 17) + 77, 2), (500, 96), (512, 64), (512, 10), (512, 7), (128, 3)])
def test_columns_of_many_rows_keep_their_digits(shape: tuple[int, ...], number: float):
    """In one running sum the 131,149 are 1e-3 off, and 500 products 5e-6."""
    x = np.full(shape, number, np.float32)
    exact = x.sum(0, np.float64)
    np.testing.assert_allclose(sums.column_sums(x), exact, rtol=1e-6)
    np.testing.assert_allclose(sums.column_products(x, x), exact * np.float64(x[0, 0]), rtol=1.5e-6)


@pytest.mark.parametrize("rows", [0, 1, 127, 255, 256, 300, 1000])
def test_weighted_sums_are_products(rows: int):
    """Of whole numbers, which no order of addition rounds: fewer rows than two parts, exactly two, and a rest."""
    numbers = rng(rows)
    weights, values = numbers.integers(-9, 10, rows).astype(float), numbers.integers(-9, 10, (rows, 3)).astype(float)
    assert_array_equal(sums.weighted_sum(weights, values), weights @ values)
    strided = np.repeat(values, 2, 0)[::2]
    assert_array_equal(sums.weighted_sum(weights, strided), weights @ values)


def test_weighted_sums_of_many_rows_keep_their_digits():
    weights, values = np.full(1 << 17, 0.1, np.float32), np.full((1 << 17, 4), 0.7, np.float32)
    exact = float(weights[0]) * float(values[0, 0]) * len(values)
    assert abs(sums.weighted_sum(weights, values) / exact - 1).max() < 2e-6
