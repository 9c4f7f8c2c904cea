"""dropout and drop_path with given masks against the formula in PyTorch. Read next: minigrad/fused/dropout.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.dropout import drop_path, dropout
from tests.support import check_op, rng, shapes

probabilities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])


def draw_mask(shape, p, seed, as_float) -> np.ndarray:
    mask = rng(seed + 1).random(shape) >= p
    return mask.astype(float) if as_float else mask


@settings(max_examples=25)
@given(shapes(), probabilities, st.integers(0, 1000), st.booleans())
def test_dropout_is_the_formula(shape, p, seed, as_float):
    def formula(x, mask):
        return x * mask / (1 - p) if p < 1 else x * 0

    mask = draw_mask(shape, p, seed, as_float)
    check_op(dropout, formula, [rng(seed).uniform(-2, 2, shape), mask], {"p": p}, needs=[True, False])


@settings(max_examples=25)
@given(shapes(min_dims=1, max_dims=4), probabilities, st.integers(0, 1000), st.booleans())
def test_drop_path_is_the_formula(shape, p, seed, as_float):
    def formula(x, mask):
        return x * mask.reshape(-1, *[1] * (x.ndim - 1)) / (1 - p) if p < 1 else x * 0

    mask = draw_mask(shape[:1], p, seed, as_float)
    check_op(drop_path, formula, [rng(seed).uniform(-2, 2, shape), mask], {"p": p}, needs=[True, False])


@pytest.mark.parametrize("op", [dropout, drop_path])
def test_the_mask_has_no_gradient_and_is_all_that_is_kept(op):
    mask = Tensor(np.array([1.0, 0.0, 1.0]), requires_grad=True)
    for context in (minigrad.enable_grad(), minigrad.definitions()):
        with context:
            x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
            y = op(x, mask, 0.5)
            y.backward(Tensor(np.array([3.0, 5.0, 7.0])))
        np.testing.assert_array_equal(y.numpy(), [2.0, 0.0, 6.0])
        np.testing.assert_array_equal(x.grad.numpy(), [6.0, 0.0, 14.0])
        assert mask.grad is None
    saved = op(x, mask, 0.5).node.saved
    assert len(saved) == 1 and saved[0] is mask


def test_errors():
    x = Tensor(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"dropout: mask has shape \(3,\), x has shape \(3, 2\)"):
        dropout(x, Tensor(np.ones(3)), 0.5)
    with pytest.raises(ValueError, match=r"drop_path: mask has shape \(2,\).*x shape \(3, 2\)"):
        drop_path(x, Tensor(np.ones(2)), 0.5)
    for op, shape in ((dropout, (3, 2)), (drop_path, (3,))):
        for p in (-0.1, 1.5, float("nan")):
            with pytest.raises(ValueError, match="between 0 and 1"):
                op(x, Tensor(np.ones(shape)), p)
