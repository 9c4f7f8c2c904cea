"""cross_entropy of integer and soft labels, with smoothing, extreme logits, one class, no example. Read next: `test_attention.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from minigrad import Tensor, definitions, enable_grad
from minigrad.fused.cross_entropy import cross_entropy
from tests.proofs import Case, Pin, Proof, Refusal
from tests.support import assert_close, lengths, rng


def case(batch: int, classes: int, soft: bool, scale: float = 1.0, label_smoothing: float = 0.0, seed: int = 0) -> Case:
    """Soft targets here do not sum to 1: PyTorch allows that, and it makes the formulas differ from their short forms."""
    random = rng(seed)
    labels = random.uniform(0, 1, (batch, classes)) if soft else random.integers(0, classes, batch)
    return Case([random.uniform(-2, 2, (batch, classes)) * scale, labels], {"label_smoothing": label_smoothing})


smoothings = st.sampled_from([0.1, 0.0, 0.1, 0.3, 1.0])


def refusal(logits: tuple[int, ...], labels: np.ndarray, message: str, exception: type[Exception] = ValueError, **options: object) -> Refusal:
    in_torch = options.pop("in_torch", True)
    return Refusal(Case([np.zeros(logits), labels], options), exception, message, in_torch)  # type: ignore[arg-type]


class TestCrossEntropy(Proof):
    op = cross_entropy
    in_torch = staticmethod(
        lambda logits, labels, label_smoothing=0.0: torch.nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    )
    cases = st.builds(case, lengths(2, 5), lengths(2, 6), st.booleans(), st.sampled_from([1.0, 1.0, 5e3]), smoothings, st.integers(0, 9999))
    share = 0.8
    smooth = cases  # without the examples: a mean of nothing is nan
    examples = [case(0, 3, False), case(0, 3, True), case(0, 3, False, 1.0, 0.1), case(1, 1, False), case(2, 1, True), case(3, 3, True)]
    examples += [case(3, 4, soft, label_smoothing=smoothing) for soft in (False, True) for smoothing in (0.0, 0.1, 1.0)]
    keeps = {"logits": "logits labels", "labels": "logits labels", "logits labels": "logits labels"}
    keeps_besides = staticmethod(lambda logits, labels, label_smoothing: logits.size)  # the log-probabilities
    float32 = [case(16, classes, soft, 1.0, smoothing) for classes in (10, 1000) for soft in (False, True) for smoothing in (0.0, 0.1)]
    pins = [
        Pin("one class: the loss is 0, whatever the logit", Case([np.array([[5.0], [-3.0]]), np.array([0, 0])]), [[[0.0], [0.0]]]),
        Pin("equal logits: the label is pulled up, the other down", Case([np.zeros((1, 2)), np.array([1])]), [[[0.5, -0.5]]]),
        Pin("smoothing of 1 leaves nothing of the label", Case([np.zeros((1, 2)), np.array([1])], {"label_smoothing": 1.0}), [[[0.0, 0.0]]]),
        Pin("another class ruled out", Case([np.array([[1.0, -np.inf, 2.0]]), np.array([0])])),
        Pin("the label's class ruled out", Case([np.array([[1.0, -np.inf, 2.0]]), np.array([1])])),
        Pin("a class ruled out that smoothing asks for", Case([np.array([[1.0, -np.inf, 2.0]]), np.array([0])], {"label_smoothing": 0.1})),
        Pin(
            "a class ruled out that only smoothing asks for",
            Case([np.array([[1.0, -np.inf, 2.0]]), np.array([[1.0, 0.0, 0.0]])], {"label_smoothing": 0.1}, needs=(True, False)),
        ),
    ]
    errors = [
        refusal((), np.array(0), r"logits must be \(batch, classes\) with at least one class, they have shape \(\)$"),
        refusal((2, 3), np.array([0, 3]), "cross_entropy: labels go from 0 to 3, logits have 3 classes, 0 to 2"),
        refusal((2, 3), np.array([-1, 2]), "labels go from -1 to 2"),
        refusal((2, 3), np.array([0, -100]), "labels go from -100 to 0", in_torch="-100 says that an example does not count; not here."),
        refusal((2, 3), np.array([0, 1, 2]), r"2 rows of logits need integer labels of shape \(2,\), they have shape \(3,\)"),
        refusal((2, 3), np.array([[0], [1]]), r"they have shape \(2, 1\)"),
        refusal((2, 3), np.zeros(2), r"must have the logits' shape \(2, 3\), they have shape \(2,\); class numbers must be integers"),
        refusal(
            (2, 3),
            np.zeros(2, np.float32),
            r"they have shape \(2,\); class numbers must be integers, in an array \(lists of numbers become float32\)",
        ),
        refusal((2, 3), np.array([True, False]), "labels must be integers or floats, they are bool", TypeError),
        refusal(
            (3,),
            np.array([0]),
            r"logits must be \(batch, classes\) with at least one class, they have shape \(3,\)$",
            in_torch="PyTorch takes one example without a batch axis.",
        ),
        refusal((2, 3, 4), np.array([0, 1]), r"they have shape \(2, 3, 4\); bring the classes to the last axis, where PyTorch has them as axis 1"),
        refusal(
            (2, 3, 4),
            np.zeros((2, 3), int),
            r"; if classes are the last axis, give logits\.reshape\(-1, 4\), and labels\.reshape\(-1\)$",
        ),
        refusal(
            (2, 1, 3, 4), np.zeros((2, 1, 3, 4)), r"give logits\.reshape\(-1, 4\), and labels\.reshape\(-1, 4\)$", in_torch="PyTorch takes more axes."
        ),
        refusal((2, 3, 0), np.zeros((2, 3), np.int64), r"logits must be .*, they have shape \(2, 3, 0\)$"),
        refusal((2, 0), np.array([0, 0]), r"logits must be .*, they have shape \(2, 0\)$"),
        refusal((2, 3), np.array([0, 1]), "label_smoothing is 1.5, it must be from 0 to 1", label_smoothing=1.5),
        refusal((2, 3), np.array([0, 1]), "label_smoothing is -0.1, it", label_smoothing=-0.1, in_torch="PyTorch takes less than 0 for 0."),
        refusal(
            (2, 3), np.array([0, 1]), "label_smoothing is an object of type tuple, .* no weights of classes", TypeError, label_smoothing=(1.0, 2.0)
        ),
        Refusal(Case([np.zeros((2, 3), np.int64), np.array([0, 1])]), TypeError, "cross_entropy: logits must be a float Tensor, it is int64"),
    ]

    @pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
    def test_integer_dtypes_and_plain_arrays(self, dtype: type) -> None:
        logits, labels = case(4, 5, soft=False).inputs
        exact = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
        for context in (enable_grad, definitions):
            with context():
                assert_close(cross_entropy(Tensor(logits), labels.astype(dtype)), exact)

    def test_empty_batch_is_nan(self) -> None:
        for context in (enable_grad(), definitions()):
            with context:
                assert np.isnan(cross_entropy(Tensor(np.zeros((0, 3))), np.zeros(0, np.int64)).item())
                assert np.isnan(cross_entropy(Tensor(np.zeros((0, 3))), np.zeros((0, 3))).item())

    def test_by_hand(self) -> None:
        """Equal logits say 1/K to every class: the loss is log K."""
        assert_close(cross_entropy(Tensor(np.zeros((2, 8))), np.array([0, 7])), np.log(8.0))
