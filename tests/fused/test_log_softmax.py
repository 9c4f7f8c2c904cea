"""log_softmax along every axis: ordinary numbers, ties, numbers of ten thousand, classes ruled out. Read next: `test_cross_entropy.py`."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from minigrad.fused.log_softmax import log_softmax
from tests.fused.test_softmax import EXAMPLES, along_an_axis
from tests.proofs import Case, Pin, Proof, Refusal
from tests.support import rng

PAGE = sys.modules["minigrad.fused.softmax"]  # the rows are cut there


class TestLogSoftmax(Proof):
    op = log_softmax
    in_torch = staticmethod(lambda x, axis=-1: torch.log_softmax(x, axis))
    cases, share = along_an_axis(("ordinary", "large", "ties", "ruled out")), 0.8
    smooth = along_an_axis(("ordinary", "ties"))  # -inf has no differences, and those of numbers of ten thousand are rounded too coarsely
    examples = EXAMPLES
    keeps = {"x": "out"}
    float32 = [Case([3 * rng(1).standard_normal(shape)]) for shape in [(4, 3, 17, 17), (2, 4, 65, 65), (16, 10), (16, 1000)]]
    pins = [
        Pin("equal numbers: each has its share", Case([np.array([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]])])),
        Pin("one number: always 0", Case([np.array([[3.0], [-1e4]])]), [[[0.0], [0.0]]]),
        Pin("exp(-1e4) is 0, but its logarithm has a slope", Case([np.array([0.0, -1e4])]), [[-1.0, 1.0]]),
        Pin("-inf stays -inf", Case([np.array([1.0, -np.inf, 1.0])]), [[-0.5, 1.0, -0.5]]),
    ]
    errors = [
        Refusal(Case([np.zeros((2, 3))], {"axis": 2}), ValueError, "log_softmax: there is no axis 2; give one from -2 to 1"),
        Refusal(Case([np.zeros((2, 3))], {"axis": -3}), ValueError, "log_softmax: there is no axis -3; give one from -2 to 1"),
        Refusal(
            Case([np.zeros(())]), ValueError, "log_softmax: there is no axis -1; a 0-d tensor has none", "A number is a vector of one to PyTorch."
        ),
        Refusal(Case([np.arange(3)]), TypeError, "log_softmax: x must be a float Tensor, it is int64"),
    ]

    @pytest.mark.parametrize("x", [[-np.inf, -np.inf], [np.inf, 1.0], [np.nan, 1.0]])
    def test_a_row_without_an_answer_is_nan_and_alone(self, x: list[float]) -> None:
        x = np.array([x, [0.0, 0.0]])
        ours = log_softmax(x).numpy()
        np.testing.assert_allclose(ours, torch.log_softmax(torch.tensor(x), -1).numpy(), rtol=1e-15)
        assert np.isnan(ours[0]).any() and (ours[1] == -np.log(2)).all()

    def test_tiny_probabilities_keep_their_logarithm(self) -> None:
        """exp(-1e4) is 0, but its logarithm is -1e4."""
        np.testing.assert_array_equal(log_softmax(np.array([0.0, -1e4])).numpy(), [0.0, -1e4])

    def test_a_long_axis_that_lies_across_memory_is_added_up_in_parts(self) -> None:
        self.float32_is_accurate(Case([3 * rng(1).standard_normal((20_000, 3))], {"axis": 0}))

    def test_rows_on_several_threads_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PAGE, "_GRAIN", 0)
        self.kernel_equals_definition(Case([rng(0).uniform(-2, 2, (3, 5, 2))], {"axis": 1}))
