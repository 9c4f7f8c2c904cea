"""softmax against PyTorch along every axis: ordinary numbers, ties, numbers of ten thousand, infinities."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.fused.softmax import softmax
from tests.support import check_float32, check_op, rng, shapes

PAGE = sys.modules[softmax.__module__]


def torch_softmax(axis: int):
    return lambda x: torch.nn.functional.softmax(x, axis)


@given(shapes(min_dims=1, max_dims=4), st.data())
def test_equals_torch(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    scale = data.draw(st.sampled_from([1.0, 30.0, 1e4]))
    x = rng(data.draw(st.integers(0, 1000))).uniform(-1, 1, shape) * scale
    check_op(softmax, torch_softmax(axis), [x], {"axis": axis})


def test_ties():
    check_op(softmax, torch_softmax(-1), [np.array([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]])], {"axis": -1})


def test_rows_on_several_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(PAGE, "_GRAIN", 0)
    check_op(softmax, torch_softmax(1), [rng(0).uniform(-2, 2, (3, 5, 2))], {"axis": 1}, second=False)


@pytest.mark.parametrize("x", [[-np.inf, -np.inf], [np.inf, 1.0], [np.nan, 1.0], [-np.inf, 1.0]])
def test_infinities_and_nan(x):
    x = np.array([x, [0.0, 0.0]])
    np.testing.assert_allclose(softmax(x).numpy(), torch_softmax(-1)(torch.tensor(x)).numpy(), rtol=1e-15)


@pytest.mark.parametrize("shape", [(4, 3, 17, 17), (2, 4, 65, 65), (16, 10)])
def test_float32_is_as_accurate_as_the_definition(shape):
    check_float32(softmax, [3 * rng(1).standard_normal(shape)])


def test_errors():
    with pytest.raises(ValueError, match=r"softmax: axis 2 is out of range for x of shape \(2, 3\)"):
        softmax(Tensor(np.zeros((2, 3))), axis=2)
    with pytest.raises(TypeError, match="softmax: x must be a float Tensor, it is int64"):
        softmax(np.arange(3))
