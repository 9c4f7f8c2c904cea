"""gelu against PyTorch in float64; the polynomial of the float32 kernel against the truth on all sizes of numbers."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.fused.gelu import gelu
from tests.support import arrays, check_float32, check_op, rng, shapes

PAGE = sys.modules[gelu.__module__]
torch_gelu = torch.nn.functional.gelu


@given(arrays(shapes(), -3, 3), st.sampled_from([0.01, 1.0, 4.0, 1e3]))
def test_equals_torch(x, scale):
    check_op(gelu, torch_gelu, [x * scale])


@pytest.mark.parametrize("size", [2, 9, 40])
def test_blocks_and_threads_change_nothing(monkeypatch, size):
    monkeypatch.setattr(PAGE, "_BLOCK", 4)
    monkeypatch.setattr(PAGE, "_GRAIN", 1)
    x = rng(0).uniform(-3, 3, size)
    check_op(gelu, torch_gelu, [x], second=False)
    check_float32(gelu, [x])


@pytest.mark.parametrize("shape", [(2, 17, 384), (2, 65, 512)])
def test_float32_is_as_accurate_as_the_definition(shape):
    check_float32(gelu, [rng(1).standard_normal(shape)])


def test_float32_polynomial():
    """Over the whole curve, and far outside the range the polynomial was fitted on: 6e-7 in the value, 4e-7 in the slope."""
    x = np.concatenate([np.linspace(-12, 12, 40001), np.linspace(-0.1, 0.1, 2001), [1e4, -1e4, 1e30, -1e30, 0.0]]).astype(np.float32)
    exact = x.astype(np.float64)
    cdf = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in exact])
    leaf = Tensor(x, requires_grad=True)
    y = gelu(leaf)
    y.backward(Tensor(np.ones_like(x)))
    assert (np.abs(y.numpy() - exact * cdf) <= 6e-7 + 6e-8 * np.abs(exact * cdf)).all()
    slope = cdf + exact * np.exp(-exact * exact / 2) / math.sqrt(2 * math.pi)
    assert np.abs(leaf.grad.numpy() - slope).max() <= 4e-7


def test_nan_and_infinity():
    x = np.array([np.nan, np.inf, -np.inf])
    for dtype in (np.float32, np.float64):
        np.testing.assert_array_equal(gelu(x.astype(dtype)).numpy(), torch_gelu(torch.tensor(x)).numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_slope_is_a_half_where_the_square_underflows(dtype):
    smallest, tiny = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny
    x = Tensor(np.array([0.0, -0.0, smallest, -smallest, tiny, -tiny, np.sqrt(tiny), -np.sqrt(tiny)], dtype), requires_grad=True)
    gelu(x).backward(Tensor(np.ones(8, dtype)))
    np.testing.assert_array_equal(x.grad.numpy(), np.full(8, 0.5, dtype))


def test_integers_are_refused():
    with pytest.raises(TypeError, match="gelu: x must be a float Tensor, it is int64"):
        gelu(np.arange(3))
