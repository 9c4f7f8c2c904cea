"""What is taken for a pair, and what it becomes; where windows lie. The operations' and layers' own tests check that each of them asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigrad.fused.windows import Axis, Geometry, check_pairs, pair, window_axes


@pytest.mark.parametrize("value", [1, np.int32(1), np.uint8(1)], ids=["int", "int32", "uint8"])
def test_pair_of_one_number_for_both(value: Any):
    check_pairs("op", stride=value, padding=value - value)
    assert pair(value) == (1, 1) and all(type(n) is int for n in pair(value))


@pytest.mark.parametrize("value", [(1, 5), [1, 5], (np.int64(1), np.int64(5))], ids=["tuple", "list", "int64"])
def test_pair_of_a_number_for_each(value: Any):
    check_pairs("op", stride=value, padding=(0, 5))
    assert pair(value) == (1, 5) and all(type(n) is int for n in pair(value))


@pytest.mark.parametrize("value", [0, -1, 2.0, np.float32(2), "22", None, (), (2,), (2, 2, 2), (2, 0), (0, 2), (2, 2.0)], ids=repr)
def test_pair_refused(value: Any):
    with pytest.raises(ValueError) as raised:
        check_pairs("op", kernel_size=3, stride=value)
    assert str(raised.value) == f"op: stride must be a whole number of at least 1 or a pair (rows, columns) of them, it is {value!r}"


@pytest.mark.parametrize("value", [-1, 2.0, (2, -1), (-1, 2)], ids=repr)
def test_padding_refused(value: Any):
    with pytest.raises(ValueError) as raised:
        check_pairs("op", padding=value)
    assert str(raised.value) == f"op: padding must be a whole number of at least 0 or a pair (rows, columns) of them, it is {value!r}"


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_offsets_name_every_pixel_of_every_window(size: int, kernel: int, stride: int, padding: int):
    axis = Axis(size + kernel, kernel, stride, min(padding, kernel // 2))
    found = {(w, p) for which, pixels in axis.offsets() for w, p in zip(range(axis.count)[which], range(axis.size)[pixels], strict=True)}
    in_window = {(w, w * stride - axis.padding + place) for w in range(axis.count) for place in range(kernel)}
    assert found == {(w, p) for w, p in in_window if 0 <= p < axis.size}


@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_what_an_axis_says_of_its_windows(size: int, kernel: int, stride: int, padding: int):
    axis = Axis(max(size, kernel), kernel, stride, padding)
    windows = [range(first, first + kernel) for first in range(-padding, axis.size + padding - kernel + 1, stride)]
    pixels = [pixel for window in windows for pixel in window]
    assert axis.count == len(windows)
    assert axis.disjoint == (stride >= kernel) and (len(pixels) == len(set(pixels)) or not axis.disjoint)
    assert not axis.tiling or pixels == list(range(axis.size))


@pytest.mark.parametrize(("stride", "strides"), [(None, (2, 3)), (1, (1, 1)), ([3, 1], (3, 1))])
def test_axes_of_an_image(stride: Any, strides: tuple[int, int]):
    assert window_axes((5, 7, 9, 2), (2, 3), stride, (1, 0)) == (Axis(7, 2, strides[0], 1), Axis(9, 3, strides[1], 0))


@given(*[st.tuples(st.integers(low, high), st.integers(low, high)) for low, high in ((1, 12), (1, 4), (1, 3), (0, 2), (1, 3))])
def test_a_geometry_counts_the_windows_that_fit(size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any):
    g = Geometry.of(np.empty((4, 1, *kernel)), stride, padding, dilation, 2)
    assert g == (kernel, stride, padding, dilation, 2) and g.numbers == [*kernel, *stride, *padding, *dilation]
    assert g.pointwise == (kernel == stride == (1, 1) and padding == (0, 0))
    for axis in (0, 1):
        taps = [dilation[axis] * k for k in range(kernel[axis])]
        assert g.reach[axis] == taps[-1] - taps[0]
        length = max(size[axis], taps[-1] + 1)
        fitting = [w for w in range(length + 2 * padding[axis]) if w * stride[axis] + taps[-1] < length + 2 * padding[axis]]
        assert g.output_size(length, length)[axis] == len(fitting)


@pytest.mark.parametrize("kind", [np.int64, np.int8])
def test_a_geometry_is_of_python_s_numbers(kind: Any):
    g = Geometry.of(np.empty((4, 1, 3, 3)), kind(2), (kind(1), kind(0)), [kind(1), kind(2)], kind(2))
    assert g == ((3, 3), (2, 2), (1, 0), (1, 2), 2)
    assert all(type(number) is int for number in [*g.numbers, g.groups, *g.reach, *g.output_size(8, 9)])
