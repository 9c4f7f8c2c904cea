"""linear in every number of axes, without rows and without features, and in blocks on several threads. Read next: `test_layer_norm.py`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.fused import long_rows
from minigrad.fused.linear import linear
from tests.proofs import Case, Proof, Refusal
from tests.support import lengths, rng, shapes

PAGE = sys.modules[linear.__module__]


def case(leading: tuple[int, ...], features_in: int, features_out: int, bias: bool = True, seed: int = 0) -> Case:
    random = rng(seed)
    x, weight = (random.uniform(-2, 2, shape) for shape in ((*leading, features_in), (features_out, features_in)))
    return Case([x, weight, random.uniform(-2, 2, features_out) if bias else None])


class TestLinear(Proof):
    op = linear
    in_torch = staticmethod(torch.nn.functional.linear)
    cases = st.builds(case, shapes(max_side=3), lengths(2, 5), lengths(2, 5), st.sampled_from([True, True, False]), st.integers(0, 9999))
    share = 0.85
    examples = [
        case((2, 3), 4, 5),
        case((2,), 4, 2, bias=False),
        case((), 3, 2),
        case((1,), 1, 1),
        case((0, 2), 3, 2),
        case((2,), 0, 3),
        case((3,), 2, 0),
        case((4,), 4, 4, bias=False),  # x and weight can be the same tensor
    ]
    keeps = {  # whichever is wanted: the derivative may be taken from the definition
        wanted: "x weight bias" for wanted in ("x weight bias", "x weight", "x bias", "weight bias", "x", "weight", "bias")
    }
    float32 = [case(*sizes, seed=3) for sizes in [((2, 17), 96, 384), ((2, 17), 384, 96), ((2, 65), 128, 384), ((16,), 96, 10)]]
    pins = "It is linear in each of its inputs: there are no kinks."
    errors = [
        Refusal(
            Case([np.zeros((2, 3)), np.zeros((4, 5)), None]),
            ValueError,
            r"linear: x has shape \(2, 3\), weight expects 5 features in the last axis \(weight shape \(4, 5\)\)",
        ),
        Refusal(Case([np.zeros(()), np.zeros((4, 5)), None]), ValueError, r"linear: x has shape \(\), weight expects 5"),
        Refusal(
            Case([np.zeros((2, 3)), np.zeros(3), None]),
            ValueError,
            r"linear: weight must be \(out_features, in_features\), it has shape \(3,\)",
            "A vector is one output feature without an axis to PyTorch.",
        ),
        Refusal(Case([np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(3)]), ValueError, r"linear: bias has shape \(3,\), weight makes 4 features"),
        Refusal(
            Case([np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(1)]),
            ValueError,
            r"linear: bias has shape \(1,\), weight makes 4 features",
            "PyTorch lets a bias of one number serve all features.",
        ),
    ]

    @pytest.mark.parametrize("rows", [1, 2, 3, 17])
    def test_blocks_of_rows_change_nothing(self, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
        monkeypatch.setattr(PAGE, "_GRAIN", 0)  # every thread gets rows
        monkeypatch.setattr(long_rows, "LONG_ROW", 6)  # 17 rows get the bias two at a time
        self.kernel_equals_definition(case((rows,), 4, 3))

    def test_the_gradient_of_the_bias_keeps_its_digits(self) -> None:
        rows = (1 << 15) + 77
        bias, dy = Tensor(np.zeros(2, np.float32), requires_grad=True), np.full((rows, 2), 0.1, np.float32)
        linear(Tensor(np.zeros((rows, 1), np.float32)), Tensor(np.zeros((2, 1), np.float32)), bias).backward(dy)
        assert bias.grad is not None
        np.testing.assert_allclose(bias.grad.numpy(), dy.sum(0, np.float64), rtol=3e-6)

    def test_by_hand(self) -> None:
        y: Any = linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]), np.array([10.0, 20.0]))
        np.testing.assert_array_equal(y.numpy(), [[21, 37]])
