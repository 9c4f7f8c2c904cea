"""avg_pool2d and global_avg_pool2d against PyTorch: overlaps, gaps, padding, rows left over. Read next: minigrad/fused/avg_pool2d.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.avg_pool2d import Axis, avg_pool2d, global_avg_pool2d
from tests.support import check_op, rng


@st.composite
def pools(draw) -> tuple[tuple[int, ...], dict]:
    """A shape (B, H, W, C) and windows that fit in it, built from how many windows there are and how many pixels are left over."""
    sizes, kernels, strides, paddings = [], [], [], []
    for _ in "HW":
        kernel, stride, windows = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
        padding = draw(st.integers(0, kernel // 2))
        left_over = draw(st.integers(0, stride - 1))
        sizes.append(max((windows - 1) * stride + kernel - 2 * padding + left_over, 1))
        kernels, strides, paddings = [*kernels, kernel], [*strides, stride], [*paddings, padding]
    shape = (draw(st.integers(0, 3)), *sizes, draw(st.integers(1, 3)))
    return shape, {"kernel_size": tuple(kernels), "stride": tuple(strides), "padding": tuple(paddings)}


def torch_avg_pool2d(values: dict):
    return lambda x: torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), **values).permute(0, 2, 3, 1)


@settings(max_examples=25)
@given(pools(), st.integers(0, 1000))
def test_equals_torch(pool, seed):
    shape, values = pool
    check_op(avg_pool2d, torch_avg_pool2d(values), [rng(seed).uniform(-2, 2, shape)], values)


@pytest.mark.parametrize("values", [{"kernel_size": 2}, {"kernel_size": (2, 3)}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 1}])
def test_numbers_pairs_and_defaults(values):
    check_op(avg_pool2d, torch_avg_pool2d(values), [rng(1).uniform(-2, 2, (2, 4, 6, 3))], values)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_offsets_name_every_pixel_of_every_window(size, kernel, stride, padding):
    axis = Axis(size + kernel, kernel, stride, min(padding, kernel // 2))
    found = {(w, p) for which, pixels in axis.offsets() for w, p in zip(range(axis.count)[which], range(axis.size)[pixels], strict=True)}
    in_window = {(w, w * stride - axis.padding + place) for w in range(axis.count) for place in range(kernel)}
    assert found == {(w, p) for w, p in in_window if 0 <= p < axis.size}


def test_a_nan_stays_in_its_windows():
    x = rng(2).standard_normal((1, 4, 4, 1))
    x[0, 0, 1, 0] = np.nan
    np.testing.assert_array_equal(np.isnan(avg_pool2d(Tensor(x), 2).numpy()[0, :, :, 0]), [[True, False], [False, False]])


def test_the_graph_keeps_nothing_of_x():
    x = Tensor(rng(3).standard_normal((2, 4, 4, 3)), requires_grad=True)
    for y in (avg_pool2d(x * 2, 2), global_avg_pool2d(x * 2)):
        assert y.node.saved == ()


def test_float32_is_as_accurate_as_the_definition():
    x = rng(4).standard_normal((8, 16, 16, 12)).astype(np.float32)
    exact = x.astype(np.float64).reshape(8, 4, 4, 4, 4, 12).mean((2, 4))
    with minigrad.definitions():
        plain = avg_pool2d(Tensor(x), 4).numpy()
    error, allowed = (np.abs(y - exact).max() for y in (avg_pool2d(Tensor(x), 4).numpy(), plain))
    assert error <= 2 * allowed + 4 * np.finfo(np.float32).eps * np.abs(exact).max()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1), (0, 2, 2, 3), (3, 7, 1, 2)])
def test_global_average_equals_torch(shape):
    def reference(x):
        return torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(1)

    if shape[0]:
        check_op(global_avg_pool2d, reference, [rng(5).uniform(-2, 2, shape)])
    else:  # PyTorch raises for an empty batch
        assert global_avg_pool2d(Tensor(np.zeros(shape))).shape == (0, 3)


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 4, 4), (2,), "B, H, W, C"),
        ((2, 3, 8, 8), (4,), r"does not fit in 3 pixels.*transpose\(0, 2, 3, 1\)"),
        ((2, 8, 3, 8), (4,), r"does not fit in 3 pixels with padding 0 \(x shape \(2, 8, 3, 8\)\)$"),
        ((2, 8, 8, 3), (3, 1, 2), "at most half"),
        ((2, 8, 8, 3), (0,), "kernel_size must be"),
        ((2, 8, 8, 3), (2, 0), "stride must be"),
        ((2, 8, 8, 3), (2, 2, -1), "padding must be"),
        ((2, 8, 8, 3), (2.0,), "kernel_size must be"),
        ((2, 8, 8, 3), ((2, 2, 2),), "kernel_size must be"),
    ],
)
def test_errors(shape, arguments, message):
    with pytest.raises(ValueError, match=f"avg_pool2d: .*{message}"):
        avg_pool2d(Tensor(np.zeros(shape)), *arguments)


def test_errors_of_the_global_average():
    for array in (np.zeros((2, 3)), np.zeros((2, 0, 3, 1)), np.zeros((2, 3, 3, 1), int)):
        with pytest.raises(ValueError, match="global_avg_pool2d: x must be"):
            global_avg_pool2d(Tensor(array))
