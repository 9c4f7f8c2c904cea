"""upsample_nearest against PyTorch's interpolate. Read next: minigrad/fused/upsample_nearest.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.fused.upsample_nearest import upsample_nearest
from tests.support import check_op, rng

sides = st.integers(1, 4)


def torch_upsample(scale_factor):
    return lambda x: torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=scale_factor, mode="nearest").permute(0, 2, 3, 1)


@settings(max_examples=25)
@given(st.tuples(sides, sides, sides, sides), st.one_of(sides, st.tuples(sides, sides)), st.integers(0, 1000))
def test_equals_torch(shape, scale_factor, seed):
    check_op(upsample_nearest, torch_upsample(scale_factor), [rng(seed).uniform(-2, 2, shape)], {"scale_factor": scale_factor})


def test_empty_batch():
    x = Tensor(np.zeros((0, 2, 3, 4)), requires_grad=True)
    y = upsample_nearest(x, (2, 3))
    y.backward(Tensor(np.zeros(y.shape)))
    assert y.shape == (0, 4, 9, 4) and x.grad.shape == x.shape


def test_values_are_copied_exactly():
    x = np.array([[[[np.inf], [-0.0]], [[np.nan], [1e-310]]]])
    y = upsample_nearest(Tensor(x), 2).numpy()
    np.testing.assert_array_equal(y[0, ::2, ::2], x[0])
    np.testing.assert_array_equal(y[0, 1::2, 1::2], x[0])
    np.testing.assert_array_equal(np.signbit(y[0, :2, 2:]), np.ones((2, 2, 1), bool))


def test_the_graph_keeps_nothing_of_x():
    x = Tensor(rng(1).standard_normal((2, 2, 2, 3)), requires_grad=True)
    assert upsample_nearest(x * 2, 2).node.saved == ()


@pytest.mark.parametrize(
    ("array", "scale_factor", "message"),
    [
        (np.zeros((2, 3, 3)), 2, "B, H, W, C"),
        (np.zeros((2, 3, 3, 1), int), 2, "float Tensor"),
        (np.zeros((2, 3, 3, 1)), 0, "scale_factor must be"),
        (np.zeros((2, 3, 3, 1)), 1.5, "scale_factor must be"),
        (np.zeros((2, 3, 3, 1)), (2, 2, 2), "scale_factor must be"),
    ],
)
def test_errors(array, scale_factor, message):
    with pytest.raises(ValueError, match=message):
        upsample_nearest(Tensor(array), scale_factor)
