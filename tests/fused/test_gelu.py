"""gelu on numbers of all sizes; the polynomial of the float32 kernel against the truth. Read next: `test_softmax.py`."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.backend import cpu
from minigrad.fused.gelu import gelu
from tests.proofs import Case, Pin, Proof, Refusal
from tests.support import arrays, rng, shapes

PAGE = sys.modules[gelu.__module__]


class TestGelu(Proof):
    op = gelu
    in_torch = staticmethod(torch.nn.functional.gelu)
    cases = st.builds(lambda x, scale: Case([np.asarray(x * scale)]), arrays(shapes(), -3, 3), st.sampled_from([1.0, 1.0, 0.01, 4.0, 1e3]))
    examples = [Case([np.array(0.7)]), Case([np.zeros((0, 2))]), Case([np.array([[-1e3, -5.8, -0.01], [0.01, 5.8, 1e3]])])]
    keeps = {"x": "x out"}  # Phi(x) is read off their quotient
    float32 = [Case([scale * rng(1).standard_normal(shape)]) for scale in (1.0, 4.0) for shape in [(2, 17, 384), (2, 65, 512)]]
    pins = [
        Pin("at 0 the slope is one half", Case([np.array([0.0, -0.0])]), [[0.5, 0.5]]),
        Pin("far away it is relu", Case([np.array([-1e3, 1e3])]), [[0.0, 1.0]]),
    ]
    errors = [Refusal(Case([np.arange(3)]), TypeError, "gelu: x must be a float Tensor, it is int64")]

    @pytest.mark.parametrize("grain", [1, 1000])
    @pytest.mark.parametrize("size", [2, 9, 40])
    def test_blocks_and_threads_change_nothing(self, monkeypatch: pytest.MonkeyPatch, size: int, grain: int) -> None:
        monkeypatch.setattr(cpu, "TOGETHER", 4)
        monkeypatch.setattr(cpu, "ALONE", 3)
        monkeypatch.setattr(PAGE, "_GRAIN", grain)
        case = Case([rng(0).uniform(-3, 3, size)])
        self.kernel_equals_definition(case)
        self.float32_is_accurate(case)

    def test_float32_polynomial(self) -> None:
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

    def test_nan_and_infinity(self) -> None:
        x = np.array([np.nan, np.inf, -np.inf])
        for dtype in (np.float32, np.float64):
            np.testing.assert_array_equal(gelu(x.astype(dtype)).numpy(), torch.nn.functional.gelu(torch.tensor(x)).numpy())

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_the_slope_is_a_half_where_the_square_underflows(self, dtype: type) -> None:
        smallest, tiny = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).tiny
        x = Tensor(np.array([0.0, -0.0, smallest, -smallest, tiny, -tiny, np.sqrt(tiny), -np.sqrt(tiny)], dtype), requires_grad=True)
        gelu(x).backward(Tensor(np.ones(8, dtype)))
        np.testing.assert_array_equal(x.grad.numpy(), np.full(8, 0.5, dtype))
