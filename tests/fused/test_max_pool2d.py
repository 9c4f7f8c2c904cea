"""max_pool2d: overlaps, gaps, padding, and who gets the gradient of a tie. Read next: `test_global_avg_pool2d.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.max_pool2d import max_pool2d
from tests.cuda_device import on_cuda
from tests.fused.test_avg_pool2d import AWKWARD, pools, refusals, turned
from tests.proofs import Case, Pin, Proof
from tests.support import rng

Pool = tuple[tuple[int, ...], dict[str, Any]]


def with_ties(pool: Pool, seed: int = 0) -> Case:
    """Only three different values, so that most windows have ties."""
    shape, values = pool
    return Case([rng(seed).integers(-1, 2, shape).astype(float)], values)


def without_ties(pool: Pool, seed: int = 0) -> Case:
    """Any two values differ by 0.01 or more."""
    shape, values = pool
    count = int(np.prod(shape))
    return Case([(rng(seed).permutation(count) * 0.01 - 1).reshape(shape)], values)


image = [[1.0, 2.0, 2.0, 1.0], [0.0, 2.0, 2.0, 0.0], [3.0, 0.0, -1.0, -1.0], [0.0, 3.0, -1.0, -1.0]]


def pin(what: str, rows: Any, values: dict[str, Any], gradient: Any) -> Pin:
    """An image of one channel and what it gets, as rows of pixels."""
    return Pin(what, Case([np.array(rows)[None, :, :, None]], values), [np.array(gradient)[None, :, :, None]])


class TestMaxPool2d(Proof):
    op = max_pool2d
    in_torch = staticmethod(turned(torch.nn.functional.max_pool2d))
    cases = st.builds(without_ties, pools(), st.integers(0, 9999)) | st.builds(with_ties, pools(), st.integers(0, 9999))
    share = 0.8
    smooth = st.builds(without_ties, pools(), st.integers(0, 9999))
    examples = [make(pool, 1) for pool in AWKWARD for make in (with_ties, without_ties)]
    keeps = {"x": "x out"}
    float32 = [
        Case([rng(4).standard_normal((2, side, side, 64))], values)
        for side, values in [(16, {"kernel_size": 3, "stride": 2, "padding": 1}), (8, {"kernel_size": 2})]
    ]
    pins = [
        pin("the first of equal pixels, in reading order", image, {"kernel_size": 2}, [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]),
        pin(
            "padding is no pixel",
            np.full((4, 4), -5.0),
            {"kernel_size": 3, "stride": 2, "padding": 1},
            [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        ),
        pin("a pixel of several windows gets from all", np.eye(3), {"kernel_size": 2, "stride": 1}, [[1, 0, 0], [0, 3, 0], [0, 0, 0]]),
        pin("-0.0 and 0.0 are equal", [[-0.0, 0.0]], {"kernel_size": (1, 2)}, [[1, 0]]),
        pin("+inf wins", [[1.0, np.inf, np.inf]], {"kernel_size": (1, 3)}, [[0, 1, 0]]),
        pin("-inf is still more than padding", np.full((2, 2), -np.inf), {"kernel_size": 3, "stride": 2, "padding": 1}, [[1, 0], [0, 0]]),
        pin("-inf beside numbers", [[-np.inf, -5.0, -np.inf]], {"kernel_size": (1, 3), "stride": 2, "padding": (0, 1)}, [[0, 2, 0]]),
    ]
    errors = refusals("max_pool2d")

    def test_a_constant_image_by_hand(self) -> None:
        """Windows of 3 by 3, one every 2 pixels, padded by 1: the first pixel of each window that is not padding."""
        for context in (minigrad.enable_grad(), minigrad.definitions()):
            with context:
                x = Tensor(np.full((1, 4, 4, 1), -5.0), requires_grad=True)
                y = max_pool2d(x, 3, 2, 1)
                y.backward(Tensor(np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)))
            np.testing.assert_array_equal(y.numpy(), np.full((1, 2, 2, 1), -5.0))
            np.testing.assert_array_equal(x.grad.numpy()[0, :, :, 0], [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])

    def test_nan_and_infinities_pass_as_in_torch(self) -> None:
        x = rng(2).standard_normal((2, 6, 6, 2))
        x[0, 2, 2, 0], x[1, 0, 5, 1], x[1, 3, 3, 0] = np.nan, np.inf, -np.inf
        reference = self.run_in_torch([x], [False], {"kernel_size": 3, "stride": 2, "padding": 1}).outputs[0].numpy()
        for context in (minigrad.enable_grad(), minigrad.definitions()):
            with context:
                np.testing.assert_array_equal(max_pool2d(Tensor(x), 3, 2, 1).numpy(), reference)

    def test_the_gradient_of_a_window_goes_to_its_first_nan(self) -> None:
        """PyTorch's goes to the last: where there is one they agree."""
        one, two = np.array([[1.0, 5.0], [np.nan, 7.0]]), np.array([[1.0, np.nan], [np.nan, np.inf]])
        image = np.concatenate([one, two, one + 1], axis=1).reshape(1, 2, 6, 1)  # three windows side by side
        images = np.concatenate([np.ones_like(image), image])  # of which the first has none

        def gradient(device: str) -> np.ndarray:
            x = Tensor(images, requires_grad=True)
            max_pool2d(x.to(device=device), 2).backward(Tensor(np.tile([[2.0], [3.0], [4.0]], (2, 1, 1, 1))).to(device=device))
            return x.grad.numpy()[1, :, :, 0]

        expected = [[0, 0, 0, 3, 0, 0], [2, 0, 0, 0, 4, 0]]
        np.testing.assert_array_equal(gradient("cpu"), expected)
        with minigrad.definitions():
            np.testing.assert_array_equal(gradient("cpu"), expected)
        with on_cuda():
            np.testing.assert_array_equal(gradient("cuda"), expected)

    def test_an_infinite_gradient_reaches_its_pixel_alone(self) -> None:
        images, dy = np.tile(np.arange(1.0, 9.0).reshape(2, 4, 1), (2, 1, 1, 1)), np.array([2.0, 3.0, np.inf, np.nan]).reshape(2, 1, 2, 1)

        def gradient(device: str) -> np.ndarray:
            x = Tensor(images, requires_grad=True)
            max_pool2d(x.to(device=device), 2).backward(Tensor(dy).to(device=device))
            return x.grad.numpy()[1, :, :, 0]

        expected = [[0, 0, 0, 0], [0, np.inf, 0, np.nan]]
        np.testing.assert_array_equal(gradient("cpu"), expected)
        with minigrad.definitions():
            np.testing.assert_array_equal(gradient("cpu"), expected)
        with on_cuda():
            np.testing.assert_array_equal(gradient("cuda"), expected)

    def test_a_changed_input_is_noticed(self) -> None:
        x = Tensor(rng(3).standard_normal((1, 4, 4, 1)), requires_grad=True)
        y = max_pool2d(x, 2)
        with minigrad.no_grad():
            x[0, 0, 0, 0] = 9.0
        with pytest.raises(RuntimeError, match="max_pool2d"):
            y.backward(Tensor(np.ones(y.shape)))
