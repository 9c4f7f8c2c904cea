"""max_pool2d against PyTorch: overlaps, gaps, padding, and who gets the gradient of a tie. Read next: minigrad/fused/max_pool2d.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.max_pool2d import max_pool2d
from tests.fused.test_avg_pool2d import pools
from tests.support import check_op, rng


def torch_max_pool2d(values: dict):
    return lambda x: torch.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), **values).permute(0, 2, 3, 1)


@settings(max_examples=25)
@given(pools(), st.integers(0, 1000))
def test_equals_torch(pool, seed):
    shape, values = pool
    check_op(max_pool2d, torch_max_pool2d(values), [rng(seed).uniform(-2, 2, shape)], values)


@settings(max_examples=25)
@given(pools(), st.integers(0, 1000))
def test_ties_go_to_the_first_maximum(pool, seed):
    """Only three different values, so that most windows have ties."""
    shape, values = pool
    x = rng(seed).integers(-1, 2, shape).astype(float)
    check_op(max_pool2d, torch_max_pool2d(values), [x], values, second=False)


def test_a_constant_image_by_hand():
    """Windows of 3 by 3, one every 2 pixels, padded by 1: the first pixel of each window that is not padding."""
    for context in (minigrad.enable_grad(), minigrad.definitions()):
        with context:
            x = Tensor(np.full((1, 4, 4, 1), -5.0), requires_grad=True)
            y = max_pool2d(x, 3, 2, 1)
            y.backward(Tensor(np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)))
        np.testing.assert_array_equal(y.numpy(), np.full((1, 2, 2, 1), -5.0))
        np.testing.assert_array_equal(x.grad.numpy()[0, :, :, 0], [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("values", [{"kernel_size": 2}, {"kernel_size": (2, 3)}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_numbers_pairs_and_defaults(values):
    check_op(max_pool2d, torch_max_pool2d(values), [rng(1).uniform(-2, 2, (2, 4, 6, 3))], values)


def test_nan_and_infinities_pass_as_in_torch():
    x = rng(2).standard_normal((2, 6, 6, 2))
    x[0, 2, 2, 0], x[1, 0, 5, 1], x[1, 3, 3, 0] = np.nan, np.inf, -np.inf
    reference = torch_max_pool2d({"kernel_size": 3, "stride": 2, "padding": 1})(torch.tensor(x)).numpy()
    for context in (minigrad.enable_grad(), minigrad.definitions()):
        with context:
            np.testing.assert_array_equal(max_pool2d(Tensor(x), 3, 2, 1).numpy(), reference)


def test_a_changed_input_is_noticed():
    x = Tensor(rng(3).standard_normal((1, 4, 4, 1)), requires_grad=True)
    y = max_pool2d(x, 2)
    with minigrad.no_grad():
        x[0, 0, 0, 0] = 9.0
    with pytest.raises(RuntimeError, match="max_pool2d"):
        y.backward(Tensor(np.ones(y.shape)))


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((2, 4, 4), (2,), "B, H, W, C"),
        ((2, 3, 224, 224), (4,), r"does not fit in 3 pixels.*transpose\(0, 2, 3, 1\)"),
        ((2, 8, 8, 3), (2, 2, 2), "at most half"),
        ((2, 8, 8, 3), (0,), "kernel_size must be"),
        ((2, 8, 8, 3), (2, "2"), "stride must be"),
    ],
)
def test_errors(shape, arguments, message):
    with pytest.raises(ValueError, match=f"max_pool2d: .*{message}"):
        max_pool2d(Tensor(np.zeros(shape)), *arguments)


def test_integers_are_refused():
    with pytest.raises(ValueError, match="float Tensor"):
        max_pool2d(Tensor(np.zeros((1, 4, 4, 1), int)), 2)
