"""log_softmax against PyTorch along every axis: ordinary numbers, ties, numbers of ten thousand, infinities."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.fused.log_softmax import log_softmax
from tests.support import check_float32, check_op, rng, shapes

PAGE = sys.modules["minigrad.fused.softmax"]  # the rows are cut there


def torch_log_softmax(axis: int):
    return lambda x: torch.nn.functional.log_softmax(x, axis)


@given(shapes(min_dims=1, max_dims=4), st.data())
def test_equals_torch(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    scale = data.draw(st.sampled_from([1.0, 30.0, 1e4]))
    x = rng(data.draw(st.integers(0, 1000))).uniform(-1, 1, shape) * scale
    check_op(log_softmax, torch_log_softmax(axis), [x], {"axis": axis})


def test_ties():
    check_op(log_softmax, torch_log_softmax(-1), [np.array([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]])], {"axis": -1})


def test_rows_on_several_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(PAGE, "_GRAIN", 0)
    check_op(log_softmax, torch_log_softmax(1), [rng(0).uniform(-2, 2, (3, 5, 2))], {"axis": 1}, second=False)


@pytest.mark.parametrize("x", [[-np.inf, -np.inf], [np.inf, 1.0], [np.nan, 1.0], [-np.inf, 1.0]])
def test_infinities_and_nan(x):
    x = np.array([x, [0.0, 0.0]])
    np.testing.assert_allclose(log_softmax(x).numpy(), torch_log_softmax(-1)(torch.tensor(x)).numpy(), rtol=1e-15)


def test_tiny_probabilities_keep_their_logarithm():
    """exp(-1e4) is 0, but its logarithm is -1e4."""
    np.testing.assert_array_equal(log_softmax(np.array([0.0, -1e4])).numpy(), [0.0, -1e4])


@pytest.mark.parametrize("shape", [(4, 3, 17, 17), (2, 4, 65, 65), (16, 10)])
def test_float32_is_as_accurate_as_the_definition(shape):
    check_float32(log_softmax, [3 * rng(1).standard_normal(shape)])


def test_errors():
    with pytest.raises(ValueError, match=r"log_softmax: axis 2 is out of range for x of shape \(2, 3\)"):
        log_softmax(Tensor(np.zeros((2, 3))), axis=2)
    with pytest.raises(TypeError, match="log_softmax: x must be a float Tensor, it is int64"):
        log_softmax(np.arange(3))
