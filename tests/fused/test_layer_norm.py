"""layer_norm against PyTorch, near and far from zero."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.fused.layer_norm import layer_norm
from tests.support import check_float32, check_op, rng, shapes

PAGE = sys.modules[layer_norm.__module__]


def torch_layer_norm(eps: float = 1e-5):
    return lambda x, weight, bias: torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def draw(leading: tuple[int, ...], channels: int, weight: bool = True, bias: bool = True, seed: int = 0) -> list:
    random = rng(seed)
    vector = lambda wanted: random.uniform(-2, 2, channels) if wanted else None  # noqa: E731
    return [random.uniform(-2, 2, (*leading, channels)), vector(weight), vector(bias)]


affines = st.sampled_from([(True, True), (True, False), (False, False)])


@given(shapes(), st.integers(2, 6), affines, st.sampled_from([1e-5, 1e-2]), st.integers(0, 1000))
def test_equals_torch(leading, channels, affine, eps, seed):
    check_op(layer_norm, torch_layer_norm(eps), draw(leading, channels, *affine, seed=seed), {"eps": eps})


def test_bias_without_weight():
    check_op(layer_norm, torch_layer_norm(), draw((3,), 4, weight=False), second=False)  # PyTorch's double backward cannot


def test_one_channel_gives_the_bias_and_no_gradient():
    check_op(layer_norm, torch_layer_norm(), draw((3, 2), 1))


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_gradients_of_some_inputs_only(needs):
    check_op(layer_norm, torch_layer_norm(), draw((2, 3), 4), needs=needs, second=False)


@pytest.mark.parametrize("rows", [2, 7, 24])
def test_blocks_and_threads_change_nothing(monkeypatch, rows):
    monkeypatch.setattr(PAGE, "_BLOCK", 8)
    monkeypatch.setattr(PAGE, "_GRAIN", 0)
    check_op(layer_norm, torch_layer_norm(), draw((rows,), 5), second=False)


@pytest.mark.parametrize("mean", [0.0, 1e3])
@pytest.mark.parametrize("shape", [(4, 17, 96), (4, 4, 4, 96), (2, 65, 128)])
def test_float32_is_as_accurate_as_the_definition(shape, mean):
    random = rng(4)
    check_float32(layer_norm, [random.standard_normal(shape) + mean, random.standard_normal(shape[-1]), random.standard_normal(shape[-1])])


def test_a_large_mean_costs_the_variance_no_digits():
    """Mean 1000, deviation 1 in float32: E[x^2] - E[x]^2 would keep no digit; here only the rounding of the mean (6e-5) remains."""
    x = (rng(5).standard_normal((64, 96)) + 1e3).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    assert np.abs(layer_norm(x).numpy() - exact).max() < 2e-4


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 3), (4,), None, r"layer_norm: x has 3 channels \(shape \(2, 3\)\), weight has shape \(4,\)"),
        ((2, 3), (3,), (1, 3), r"layer_norm: x has 3 channels \(shape \(2, 3\)\), bias has shape \(1, 3\)"),
        ((), None, None, r"layer_norm: x must have at least one channel in its last axis, it has shape \(\)"),
        ((2, 0), None, None, r"layer_norm: x must have at least one channel"),
    ],
)
def test_errors(x, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        layer_norm(*[None if shape is None else Tensor(np.zeros(shape)) for shape in (x, weight, bias)])
