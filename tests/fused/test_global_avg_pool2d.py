"""global_avg_pool2d: maps of any shape, of one pixel, of many, and no images. Read next: `test_upsample_nearest.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from minigrad import Tensor, definitions, enable_grad
from minigrad.fused.global_avg_pool2d import global_avg_pool2d
from tests.cuda_device import on_cuda
from tests.proofs import Case, Proof, Refusal
from tests.support import lengths, rng

sides = lengths(2, 4)


class TestGlobalAvgPool2d(Proof):
    op = global_avg_pool2d
    in_torch = staticmethod(lambda x: torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(1))
    cases = st.builds(lambda shape, seed: Case([rng(seed).uniform(-2, 2, shape)]), st.tuples(sides, sides, sides, sides), st.integers(0, 9999))
    examples = [Case([rng(0).uniform(-2, 2, shape)]) for shape in [(1, 1, 1, 1), (0, 2, 2, 3), (3, 7, 1, 2), (2, 1, 2, 0)]]
    keeps = {"x": ""}
    float32 = [Case([rng(5).standard_normal(shape)]) for shape in [(4, 2, 2, 192), (4, 4, 4, 384), (2, 7, 7, 256)]]
    pins = "It is linear: there are no kinks."
    errors = [
        Refusal(Case([np.zeros((2, 3))]), ValueError, r"global_avg_pool2d: x must be \(B, H, W, C\) .*, it has shape \(2, 3\)$"),
        *[
            Refusal(Case([np.zeros(shape)]), ValueError, "with at least one pixel", "The mean of nothing is nan to PyTorch.")
            for shape in [(2, 0, 3, 1), (2, 3, 0, 1)]
        ],
        Refusal(Case([np.zeros((2, 3, 3, 1), np.int64)]), TypeError, "global_avg_pool2d: x must be a float Tensor, it is int64"),
    ]

    @pytest.mark.parametrize("context", [enable_grad, definitions])
    def test_no_images(self, context: Any) -> None:
        with context():
            x = Tensor(np.zeros((0, 2, 2, 3)), requires_grad=True)
            y = global_avg_pool2d(x)
            y.backward(Tensor(np.zeros((0, 3))))
        assert y.shape == (0, 3) and x.grad.shape == x.shape

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    def test_large_maps_keep_their_digits(self, device: str) -> None:
        """In one running sum 90,000 pixels of 0.1 are 5e-5 off."""
        x = np.full((1, 300, 300, 2), 0.1, np.float32)
        with on_cuda():
            y = global_avg_pool2d(Tensor(x).to(device=device)).to(device="cpu").numpy()
        np.testing.assert_allclose(y, x[:, 0, 0], rtol=1e-5)
