"""erf against math.erf and PyTorch, number by number, in units in the last place."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigrad.backend.erf import erf
from tests.support import rng


def test_two_units_in_the_last_place():
    random = rng(0)
    x = np.concatenate([random.uniform(-7, 7, 20000), random.normal(0, 0.05, 5000), 10.0 ** random.uniform(-20, 0, 5000), np.arange(-200, 200) / 64])
    exact = np.array([math.erf(v) for v in x])
    assert (np.abs(erf(x) - exact) / np.spacing(np.abs(exact))).max() <= 3  # ours is within 2, math.erf within 1 of the truth


@given(st.floats(allow_nan=False))
def test_every_float(x):
    ours, exact = erf(np.array(x)), math.erf(x)
    assert ours.shape == () and ours.dtype == np.float64
    assert abs(float(ours) - exact) <= 3 * np.spacing(abs(exact))
    assert float(erf(np.array(-x))) == -float(ours)


def test_float32_is_rounded_once():
    x = rng(1).normal(0, 1.5, 5000).astype(np.float32)
    ours, exact = erf(x), np.array([math.erf(v) for v in x])
    assert ours.dtype == np.float32
    assert (np.abs(ours - exact) / np.spacing(np.abs(exact).astype(np.float32))).max() < 0.51
    np.testing.assert_allclose(ours, torch.erf(torch.tensor(x)).numpy(), rtol=1e-6)


def test_ends_and_odd_shapes():
    x = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e300])
    np.testing.assert_array_equal(erf(x), [np.nan, 1, -1, -0.0, 5e-324, 1])
    assert np.signbit(erf(x)[3])
    assert erf(np.zeros((0, 3), np.float32)).shape == (0, 3)
    column = rng(2).normal(size=(6, 4))[::2, 1:3].T
    np.testing.assert_array_equal(erf(column), erf(column.copy()))
