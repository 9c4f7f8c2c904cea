"""linear against PyTorch, in every number of axes, and in blocks on several threads."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.fused.linear import linear
from tests.support import check_float32, check_op, rng, shapes

PAGE = sys.modules[linear.__module__]
torch_linear = torch.nn.functional.linear


def draw(leading: tuple[int, ...], features_in: int, features_out: int, bias: bool = True, seed: int = 0) -> list:
    random = rng(seed)
    x, weight = (random.uniform(-2, 2, shape) for shape in ((*leading, features_in), (features_out, features_in)))
    return [x, weight, random.uniform(-2, 2, features_out) if bias else None]


@given(shapes(), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.integers(0, 1000))
def test_equals_torch(leading, features_in, features_out, bias, seed):
    check_op(linear, torch_linear, draw(leading, features_in, features_out, bias, seed))


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_gradients_of_some_inputs_only(needs):
    check_op(linear, torch_linear, draw((3, 2), 4, 3), needs=needs, second=False)


@pytest.mark.parametrize("rows", [1, 2, 3, 17])
def test_blocks_of_rows_change_nothing(monkeypatch, rows):
    monkeypatch.setattr(PAGE, "_GRAIN", 0)  # every thread gets rows
    check_op(linear, torch_linear, draw((rows,), 4, 3), second=False)


@pytest.mark.parametrize(("leading", "features_in", "features_out"), [((2, 17), 96, 384), ((2, 17), 384, 96), ((2, 65), 128, 384), ((16,), 96, 10)])
def test_float32_is_as_accurate_as_the_definition(leading, features_in, features_out):
    check_float32(linear, draw(leading, features_in, features_out, seed=3))


def test_by_hand():
    y = linear(Tensor([[1.0, 2.0]]), Tensor([[3.0, 4.0], [5.0, 6.0]]), Tensor([10.0, 20.0]))
    np.testing.assert_array_equal(y.numpy(), [[21, 37]])


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 3), (4, 5), None, r"linear: x has shape \(2, 3\), weight expects 5 features in the last axis \(weight shape \(4, 5\)\)"),
        ((), (4, 5), None, r"linear: x has shape \(\), weight expects 5"),
        ((2, 3), (3,), None, r"linear: weight must be \(out_features, in_features\), it has shape \(3,\)"),
        ((2, 3), (4, 3), (3,), r"linear: bias has shape \(3,\), weight makes 4 features"),
    ],
)
def test_errors(x, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        linear(Tensor(np.zeros(x)), Tensor(np.zeros(weight)), None if bias is None else Tensor(np.zeros(bias)))
