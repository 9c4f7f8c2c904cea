"""cross_entropy against PyTorch: integer and soft labels, smoothing, extreme logits, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigrad import Tensor, definitions, enable_grad
from minigrad.fused.cross_entropy import cross_entropy
from tests.support import assert_close, check_float32, check_op, rng


def torch_cross_entropy(label_smoothing: float):
    return lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def draw(batch: int, classes: int, soft: bool, scale: float = 1.0, seed: int = 0) -> list:
    """Soft targets here do not sum to 1: PyTorch allows that, and it makes the formulas differ from their short forms."""
    random = rng(seed)
    labels = random.uniform(0, 1, (batch, classes)) if soft else random.integers(0, classes, batch)
    return [random.uniform(-2, 2, (batch, classes)) * scale, labels]


@given(st.integers(1, 5), st.integers(1, 6), st.booleans(), st.sampled_from([1.0, 1e4]), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 1000))
def test_equals_torch(batch, classes, soft, scale, label_smoothing, seed):
    check_op(cross_entropy, torch_cross_entropy(label_smoothing), draw(batch, classes, soft, scale, seed), {"label_smoothing": label_smoothing})


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_gradient_of_one_input_only(needs):
    check_op(cross_entropy, torch_cross_entropy(0.1), draw(3, 4, soft=True), {"label_smoothing": 0.1}, needs=needs, second=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_integer_dtypes_and_plain_arrays(dtype):
    logits, labels = draw(4, 5, soft=False)
    exact = torch_cross_entropy(0.0)(torch.tensor(logits), torch.tensor(labels))
    assert_close(cross_entropy(Tensor(logits), labels.astype(dtype)), exact)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_class_ruled_out(label_smoothing):
    """A logit of -inf at another class than the label leaves the loss finite, unless smoothing asks for that class too."""
    logits = np.array([[1.0, -np.inf, 2.0]])
    for context in (enable_grad(), definitions()):
        with context:
            ours = cross_entropy(Tensor(logits), np.array([0]), label_smoothing)
        assert_close(ours, torch_cross_entropy(label_smoothing)(torch.tensor(logits), torch.tensor([0])))


def test_empty_batch_is_nan():
    for context in (enable_grad(), definitions()):
        with context:
            assert np.isnan(cross_entropy(Tensor(np.zeros((0, 3))), np.zeros(0, np.int64)).item())
            assert np.isnan(cross_entropy(Tensor(np.zeros((0, 3))), np.zeros((0, 3))).item())


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_float32_is_as_accurate_as_the_definition(classes, soft, label_smoothing):
    check_float32(cross_entropy, draw(16, classes, soft), {"label_smoothing": label_smoothing})


def test_by_hand():
    """Equal logits say 1/K to every class: the loss is log K."""
    assert_close(cross_entropy(Tensor(np.zeros((2, 8))), np.array([0, 7])), np.log(8.0))


@pytest.mark.parametrize(
    ("logits", "labels", "values", "error", "message"),
    [
        ((2, 3), np.array([0, 3]), {}, ValueError, "cross_entropy: labels go from 0 to 3, logits have 3 classes, 0 to 2"),
        ((2, 3), np.array([-1, 2]), {}, ValueError, "labels go from -1 to 2"),
        ((2, 3), np.array([0, 1, 2]), {}, ValueError, r"2 rows of logits need integer labels of shape \(2,\), they have shape \(3,\)"),
        ((2, 3), np.array([[0], [1]]), {}, ValueError, r"they have shape \(2, 1\)"),
        ((2, 3), np.zeros(2), {}, ValueError, r"must have the logits' shape \(2, 3\), they have shape \(2,\); class numbers must be integers"),
        ((2, 3), np.array([True, False]), {}, TypeError, "labels must be integers or floats, they are bool"),
        ((3,), np.array([0]), {}, ValueError, r"logits must be a float Tensor \(batch, classes\), it is float64 of shape \(3,\)"),
        ((2, 3, 4), np.array([0, 1]), {}, ValueError, r"of shape \(2, 3, 4\)"),
        ((2, 0), np.array([0, 0]), {}, ValueError, r"of shape \(2, 0\)"),
        ((2, 3), np.array([0, 1]), {"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5, it must be from 0 to 1"),
    ],
)
def test_errors(logits, labels, values, error, message):
    with pytest.raises(error, match=message):
        cross_entropy(Tensor(np.zeros(logits)), labels, **values)
