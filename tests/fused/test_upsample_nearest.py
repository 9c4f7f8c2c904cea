"""upsample_nearest by any whole factors against PyTorch's interpolate. Read next: `test_dropout.py`."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from minigrad import Tensor
from minigrad.fused.upsample_nearest import upsample_nearest
from tests.proofs import Case, Proof, Refusal
from tests.support import lengths, rng

sides = lengths(2, 3)
factors = lengths(2, 4)


def case(shape: tuple[int, ...], scale_factor: object, seed: int = 0) -> Case:
    return Case([rng(seed).uniform(-2, 2, shape)], {"scale_factor": scale_factor})


def in_torch(x: torch.Tensor, scale_factor: object) -> torch.Tensor:
    return torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=scale_factor, mode="nearest").permute(0, 2, 3, 1)


class TestUpsampleNearest(Proof):
    op = upsample_nearest
    in_torch = staticmethod(in_torch)
    cases = st.builds(case, st.tuples(sides, sides, sides, sides), factors | st.tuples(factors, factors), st.integers(0, 9999))
    examples = [case((0, 2, 3, 4), (2, 3)), case((1, 1, 1, 1), 1), case((1, 1, 1, 2), (4, 1)), case((2, 3, 2, 1), 3), case((2, 2, 3, 1), [3, 2])]
    keeps = {"x": ""}
    float32 = [case((4, side, side, channels), factor) for side, channels, factor in [(4, 12, 4), (4, 24, 2), (8, 32, 2), (4, 48, 1)]]
    pins = "It copies: the derivative is 1 wherever an output comes from, at every number."
    errors = [
        Refusal(case((2, 3, 3), 2), ValueError, "upsample_nearest: x must be .B, H, W, C., it has shape .2, 3, 3.$"),
        Refusal(Case([np.zeros((2, 3, 3, 1), int)], {"scale_factor": 2}), TypeError, "upsample_nearest: x must be a float Tensor, it is int64"),
        Refusal(
            case((2, 3, 3, 1), 0),
            ValueError,
            "upsample_nearest: scale_factor must be a whole number of at least 1 or a pair .rows, columns. of them, it is 0",
        ),
        Refusal(case((2, 3, 3, 1), -1), ValueError, "scale_factor must be .* it is -1"),
        Refusal(case((2, 3, 3, 1), 1.5), ValueError, "scale_factor must be .* it is 1.5", "PyTorch takes the nearest pixel at any factor."),
        Refusal(case((2, 3, 3, 1), (2, 2, 2)), ValueError, "scale_factor must be"),
    ]

    def test_numpy_s_whole_numbers_are_whole_numbers(self) -> None:
        x = Tensor(rng(3).standard_normal((1, 2, 2, 1)), requires_grad=True)
        y = upsample_nearest(x, np.int64(2))  # type: ignore[arg-type]
        y.backward(Tensor(np.ones(y.shape)))
        assert y.shape == (1, 4, 4, 1) and x.grad is not None and (x.grad.numpy() == 4).all()

    def test_an_empty_map_has_an_empty_gradient(self) -> None:
        x = Tensor(np.zeros((2, 0, 3, 4)), requires_grad=True)
        upsample_nearest(x, 2).backward(Tensor(np.zeros((2, 0, 6, 4))))
        assert x.grad is not None and x.grad.shape == x.shape

    def test_the_gradient_of_ones_is_the_area(self) -> None:
        """In float32, through the mean of each block."""
        for factors in (3, (7, 3), 11, (11, 22)):
            x = Tensor(np.ones((1, 2, 1, 2), np.float32), requires_grad=True)
            y = upsample_nearest(x, factors)
            y.backward(Tensor(np.ones(y.shape, np.float32)))
            np.testing.assert_array_equal(x.grad.numpy(), np.full(x.shape, y.size / x.size))

    def test_values_are_copied_exactly(self) -> None:
        x = np.array([[[[np.inf], [-0.0]], [[np.nan], [1e-310]]]])
        y = upsample_nearest(Tensor(x), 2).numpy()
        np.testing.assert_array_equal(y[0, ::2, ::2], x[0])
        np.testing.assert_array_equal(y[0, 1::2, 1::2], x[0])
        np.testing.assert_array_equal(np.signbit(y[0, :2, 2:]), np.ones((2, 2, 1), bool))
