"""softmax along every axis: ordinary numbers, ties, numbers of ten thousand, classes ruled out. Read next: `test_log_softmax.py`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from minigrad.fused.softmax import softmax
from tests.proofs import Case, Pin, Proof, Refusal
from tests.support import lengths, rng, shapes

PAGE = sys.modules[softmax.__module__]


def case(shape: tuple[int, ...], axis: int, kind: str = "ordinary", seed: int = 0) -> Case:
    """No row is -inf throughout, not even if its first element is repeated."""
    random = rng(seed)
    x = random.uniform(-2, 2, shape)
    if kind == "large":
        x *= 5e3
    elif kind == "ties":
        x = np.round(x)
    elif kind == "ruled out":
        away = random.uniform(0, 1, shape) < 0.5
        np.moveaxis(away, axis, 0)[:1] = False
        x[away] = -np.inf
    return Case([x], {"axis": axis})


@st.composite
def along_an_axis(draw: Any, kinds: tuple[str, ...]) -> Case:
    """Any axis of any shape, with 2 to 5 numbers along it, seldom with one."""
    others = draw(shapes(max_side=3))
    axis = draw(st.integers(0, len(others)))
    shape = (*others[:axis], draw(lengths(2, 5)), *others[axis:])
    return case(shape, axis - len(shape) * draw(st.integers(0, 1)), draw(st.sampled_from(kinds)), draw(st.integers(0, 9999)))


EXAMPLES = [
    case((0,), 0),
    case((5,), 0),
    case((2, 0, 3), 1),
    case((2, 1), 1),
    case((3, 4), -1, "large"),
    case((3, 4), 0, "ties"),
    case((2, 3, 4), 1, "ruled out"),
]


class TestSoftmax(Proof):
    op = softmax
    in_torch = staticmethod(lambda x, axis=-1: torch.softmax(x, axis))
    cases, share = along_an_axis(("ordinary", "large", "ties", "ruled out")), 0.8
    examples = EXAMPLES
    keeps = {"x": "out"}
    float32 = [Case([3 * rng(1).standard_normal(shape)]) for shape in [(4, 3, 17, 17), (2, 4, 65, 65), (16, 10)]]
    pins = [
        Pin("equal numbers: each has its share", Case([np.array([[2.0, 2.0, 1.0], [0.0, 0.0, 0.0]])])),
        Pin("one number: always 1", Case([np.array([[3.0], [-1e4]])]), [[[0.0], [0.0]]]),
        Pin("no difference beyond 745 shows", Case([np.array([0.0, -1e4])]), [[0.0, 0.0]]),
        Pin("-inf: no chance, and no gradient", Case([np.array([1.0, -np.inf, 1.0])]), [[0.0, 0.0, 0.0]]),
    ]
    errors = [
        Refusal(Case([np.zeros((2, 3))], {"axis": 2}), ValueError, "softmax: there is no axis 2; give one from -2 to 1"),
        Refusal(Case([np.zeros((2, 3))], {"axis": -3}), ValueError, "softmax: there is no axis -3; give one from -2 to 1"),
        Refusal(Case([np.zeros(())]), ValueError, "softmax: there is no axis -1; a 0-d tensor has none", "A number is a vector of one to PyTorch."),
        Refusal(Case([np.arange(3)]), TypeError, "softmax: x must be a float Tensor, it is int64"),
        Refusal(Case([np.zeros((2, 3))], {"axis": 1.5}), TypeError, "softmax: the axis must be a whole number, it is 1.5"),
    ]

    @pytest.mark.parametrize("x", [[-np.inf, -np.inf], [np.inf, 1.0], [np.nan, 1.0]])
    def test_a_row_without_an_answer_is_nan_and_alone(self, x: list[float]) -> None:
        x = np.array([x, [0.0, 0.0]])
        ours = softmax(x).numpy()
        np.testing.assert_allclose(ours, torch.softmax(torch.tensor(x), -1).numpy(), rtol=1e-15)
        assert np.isnan(ours[0]).any() and (ours[1] == 0.5).all()

    def test_a_long_axis_that_lies_across_memory_is_added_up_in_parts(self) -> None:
        self.float32_is_accurate(Case([3 * rng(1).standard_normal((20_000, 10))], {"axis": 0}))

    def test_rows_on_several_threads_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nine rows, which they cannot share out equally."""
        monkeypatch.setattr(PAGE, "_GRAIN", 0)
        self.kernel_equals_definition(Case([rng(0).uniform(-2, 2, (3, 5, 3))], {"axis": 1}))
