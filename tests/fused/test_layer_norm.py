"""layer_norm near and far from zero, of one channel, of constant rows, of no rows; in blocks on several threads. Read next: `test_gelu.py`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.backend import cpu
from minigrad.fused import long_rows
from minigrad.fused.layer_norm import layer_norm
from tests.cuda_device import on_cuda
from tests.proofs import Case, Pin, Proof, Refusal
from tests.support import lengths, rng, shapes

PAGE = sys.modules[layer_norm.__module__]


def case(
    leading: tuple[int, ...], channels: int, affine: tuple[bool, bool] = (True, True), eps: float = 1e-5, kind: str = "ordinary", seed: int = 0
) -> Case:
    """The channels of a row lie about 0.5 apart: the variance is far above eps, finite differences are exact enough, and float32 keeps its digits."""
    random, shape = rng(seed), (*leading, channels)
    x = random.permuted(np.broadcast_to(np.arange(channels) * 0.5 - 1, shape), axis=-1) + random.uniform(-0.2, 0.2, shape)
    if kind == "far":
        x = 4 * x + 100  # at a distance of 0.1, two channels would leave float32 three digits
    elif kind == "constant":
        x[...] = np.round(x[..., :1], 1)
    weight, bias = (random.uniform(-2, 2, channels) if wanted else None for wanted in affine)
    # PyTorch refuses the second derivative with a bias alone. A mean of 100 leaves 14 of 16 digits to the deviations.
    return Case([x, weight, bias], {"eps": eps}, second_in_torch=affine != (False, True), relative=1e-9 if kind == "far" else 1e-11)


affines = st.sampled_from([(True, True), (True, False), (False, True), (False, False)])
epsilons = st.sampled_from([1e-5, 1e-2])


class TestLayerNorm(Proof):
    op = layer_norm
    in_torch = staticmethod(lambda x, weight, bias, eps=1e-5: torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps))
    cases = st.builds(
        case, shapes(max_side=3), lengths(2, 6), affines, epsilons, st.sampled_from(["ordinary", "ordinary", "far", "constant"]), st.integers(0, 9999)
    )
    share = 0.8
    smooth = st.builds(case, shapes(max_side=3), lengths(2, 6), affines, epsilons, st.just("ordinary"), st.integers(0, 9999))
    examples = [case((), 3), case((3, 2), 1), case((0, 2), 4), case((3, 2), 4, kind="constant")]
    keeps = {wanted: "x weight bias" for wanted in ("x weight bias", "x weight", "x", "weight", "bias")}
    keeps_besides = staticmethod(lambda x, weight, bias, eps: 2 * x[..., 0].size)  # the mean and 1 / deviation of each row, not x_hat
    float32 = [
        Case([rng(4).standard_normal(shape) + mean, rng(5).standard_normal(shape[-1]), rng(6).standard_normal(shape[-1])])
        for mean in (0.0, 1e3)
        for shape in [(4, 17, 96), (4, 4, 4, 96), (2, 65, 128)]
    ]
    pins = [
        Pin("one channel: the bias, and no gradient", Case([np.array([[2.0], [-1.0]]), np.array([3.0]), None]), [[[0.0], [0.0]], [0.0]]),
        Pin("a constant row: the bias", Case([np.full((2, 4), 0.5), np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4)])),
        Pin("without eps", Case([np.array([-1.0, 1.0]), None, None], {"eps": 0.0}), [[0.0, 0.0]]),
    ]
    errors = [
        Refusal(
            Case([np.zeros((2, 3)), np.zeros(4), None]),
            ValueError,
            r"layer_norm: x has 3 channels \(shape \(2, 3\)\), weight has shape \(4,\)",
        ),
        Refusal(
            Case([np.zeros((2, 3)), np.zeros(3), np.zeros((1, 3))]),
            ValueError,
            r"layer_norm: x has 3 channels \(shape \(2, 3\)\), bias has shape \(1, 3\)",
        ),
        Refusal(
            Case([np.zeros((2, 3)), np.array([3.0]), None]),
            ValueError,
            r"weight has shape \(1,\); PyTorch's normalized_shape is left out here, it is always the last axis$",
        ),
        Refusal(Case([np.zeros(()), None, None]), ValueError, r"layer_norm: x must have at least one channel in its last axis, it has shape \(\)"),
        Refusal(
            Case([np.zeros((2, 0)), None, None]),
            ValueError,
            "layer_norm: x must have at least one channel",
            "PyTorch returns an empty array: there is nothing to have a mean.",
        ),
    ]

    @pytest.mark.parametrize("grain", [0, 1000])
    @pytest.mark.parametrize("rows", [2, 7, 24])
    def test_blocks_and_threads_change_nothing(self, monkeypatch: pytest.MonkeyPatch, rows: int, grain: int) -> None:
        monkeypatch.setattr(cpu, "TOGETHER", 8)
        monkeypatch.setattr(cpu, "ALONE", 6)
        monkeypatch.setattr(PAGE, "_GRAIN", grain)
        monkeypatch.setattr(long_rows, "LONG_ROW", 10)  # two rows at a time, if there are 16: of a block of one there is none
        self.kernel_equals_definition(case((rows,), 5))

    def test_many_short_rows_are_added_up_in_parts(self) -> None:
        self.float32_is_accurate(Case([rng(4).standard_normal((100_000, 4)), rng(5).standard_normal(4), rng(6).standard_normal(4)]))

    def test_a_large_mean_costs_the_variance_no_digits(self) -> None:
        """Mean 1000, deviation 1 in float32: E[x^2] - E[x]^2 would keep no digit; here only the rounding of the mean (6e-5) remains."""
        x = (rng(5).standard_normal((64, 96)) + 1e3).astype(np.float32)
        exact = x.astype(np.float64)
        exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
        assert np.abs(layer_norm(x).numpy() - exact).max() < 2e-4

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    @pytest.mark.parametrize("mean", [100.1, 1000.1, 10000.3])
    def test_equal_numbers_are_no_noise(self, device: str, mean: float) -> None:
        """The rounding of the mean once counted as their deviation, which came out as large as 1."""
        x = np.full((3, 384), mean, np.float32)
        x[1] = rng(2).standard_normal(384)  # rows that are not far are computed as ever
        dy = rng(3).standard_normal(x.shape).astype(np.float32)
        with on_cuda():
            given = Tensor(x).to(device=device).requires_grad_()
            y = layer_norm(given, None, None, 1e-6)
            y.backward(Tensor(dy).to(device=device))
            y, dx = y.to(device="cpu").numpy(), given.grad.to(device="cpu").numpy()
        assert not y[[0, 2]].any()
        exact = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.layer_norm(exact, (384,), eps=1e-6).backward(torch.tensor(dy, dtype=torch.float64))
        np.testing.assert_allclose(dx, exact.grad.numpy(), rtol=1e-5, atol=1e-3)  # beside gradients of 3,000
        np.testing.assert_allclose(dx[1], exact.grad.numpy()[1], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("context", [minigrad.enable_grad, minigrad.definitions])
    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    def test_a_variance_that_is_infinite(self, device: str, context: Any) -> None:
        """Then nothing but the bias is left of the row; a row of 1e20 with deviations of 1e15 has a variance."""
        x = np.float32([[1, 2, 3, 5], [1, 2, 3, 5], [1, 2, 3, 5]]) * np.float32([[1e19], [1], [1e15]]) + np.float32([[0], [0], [1e20]])
        exact = x.astype(np.float64)
        exact = (exact - exact.mean(1, keepdims=True)) / exact.std(1, keepdims=True)
        with np.errstate(over="ignore"), on_cuda(), context():
            leaf = Tensor(x).to(device=device).requires_grad_()
            y = layer_norm(leaf, None, Tensor(np.full(4, 0.5, np.float32)).to(device=device))
            y.backward(Tensor(np.float32([[1, -2, 1, 3]] * 3)).to(device=device))
            y, dx = y.to(device="cpu").numpy(), leaf.grad.to(device="cpu").numpy()
        assert (y[0] == 0.5).all() and not dx[0].any() and dx[1].all()
        np.testing.assert_allclose(y[1:], exact[1:] + 0.5, rtol=0, atol=5e-3)  # 1e20 has a digit of 9e12

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    def test_a_row_whose_sums_are_infinite(self, device: str) -> None:
        """What is left of the sum after the mean was subtracted has an infinite square (1e28), or the sum itself is infinite (1e38)."""
        x = np.float32([[1, -2, 3, -5], [1, 1, 1, 1], [1, 2, 3, 5]]) * np.float32([[1e28], [1e38], [1]])
        with np.errstate(over="ignore"), on_cuda():
            leaves = [Tensor(a).to(device=device).requires_grad_() for a in (x, np.ones(4, np.float32), np.full(4, 0.5, np.float32))]
            y = layer_norm(*leaves)
            y.backward(Tensor(np.float32([[1, -2, 1, 3]] * 3)).to(device=device))
            y, dx, dweight = (t.to(device="cpu").numpy() for t in (y, leaves[0].grad, leaves[1].grad))
        assert (y[:2] == 0.5).all() and not dx[:2].any()
        np.testing.assert_allclose(y[2] - 0.5, (x[2] - 2.75) / np.sqrt(2.1875), rtol=1e-5)
        np.testing.assert_allclose(dweight, (y[2] - 0.5) * [1, -2, 1, 3], rtol=1e-5)

    def test_the_gradient_of_deviations_whose_reciprocal_has_an_infinite_square(self) -> None:
        """On a GPU squares below 1e-38 are 0."""
        x, dy = 2e-21 * np.float32([[1, 2, 3, 5, -20, 9]]), np.float32([[1, -2, 1, 3, 1, 0]])
        leaf = Tensor(x, requires_grad=True)
        layer_norm(leaf, eps=0.0).backward(Tensor(dy))
        exact = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.layer_norm(exact, (6,), eps=0.0).backward(torch.tensor(dy, dtype=torch.float64))
        np.testing.assert_allclose(leaf.grad.numpy(), exact.grad.numpy(), rtol=1e-4)

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    def test_a_small_deviation_far_from_zero(self, device: str) -> None:
        """What remains is the rounding of the mean, 5e-4 of a deviation of 0.1: PyTorch's is 2.5 times as far off."""
        x = (1e4 + 0.1 * rng(4).standard_normal((8, 192))).astype(np.float32)
        with on_cuda():
            y = layer_norm(Tensor(x).to(device=device)).to(device="cpu").numpy()
        exact = x.astype(float)
        exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
        assert np.abs(y - exact).max() < 6e-3
