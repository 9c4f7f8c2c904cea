"""What is read off a network's predictions: class by class, and which classes are taken for which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from conformer import CNNBranch, Conformer
from conformer.augment import normalize
from conformer.data import Dataset, Split
from conformer.evaluate import HEADS, Accuracies, Predictions, accuracies, evaluate, predict
from conformer.options import TrainConfig
from conformer.train import Trainer
from minigrad.random import manual_seed

CNN = np.array([[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0], [0, 1, 0, 0]])
TRANSFORMER = np.array([[0.0, 1, 0, 0], [0, 1, 0, 0], [0, 4, 0, 0], [0, 0, 3, 0]])


def test_accuracies_are_shares_class_by_class():
    shares = Predictions((CNN, TRANSFORMER), np.array([0, 1, 2, 2])).class_accuracies()
    assert list(shares) == list(HEADS)
    assert_array_equal(shares["cnn"], [1, 1, 0.5, np.nan])
    assert_array_equal(shares["transformer"], [0, 1, 0.5, np.nan])
    assert_array_equal(shares["sum"], [1, 1, 0.5, np.nan])


def test_rows_are_what_is_shown_and_columns_what_it_is_taken_for():
    matrix = Predictions((CNN, TRANSFORMER), np.array([0, 1, 2, 2])).confusion_matrix()
    assert_array_equal(matrix, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_class_numbers_of_any_integer_dtype(dtype: type):
    logits = np.eye(20)[np.arange(20)[::-1]]  # 19 times 20 does not fit into 8 bits
    matrix = Predictions((logits, logits), np.arange(20, dtype=dtype)).confusion_matrix()
    assert_array_equal(matrix, np.eye(20)[::-1])


def test_labels_may_be_a_list():
    assert accuracies((CNN, TRANSFORMER), [0, 1, 2, 3]) == accuracies((CNN, TRANSFORMER), np.arange(4))  # type: ignore[arg-type]


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"accuracies: 4 rows of logits need labels of shape \(4,\), they have shape \(4, 1\)"):
        accuracies((CNN, TRANSFORMER), np.zeros((4, 1), np.int64))


def test_both_heads_and_their_sum_are_told_apart_class_by_class():
    cnn = np.array([[1, 0], [0, 1], [0, 1], [0, 1], [0, 3], [0, 1]])
    transformer = np.array([[2, 0], [2, 0], [0, 2], [0, 2], [2, 0], [0, 2]])
    shares = Predictions((cnn, transformer), np.array([0, 0, 0, 0, 1, 1])).class_accuracies()
    assert {head: list(share) for head, share in shares.items()} == {"cnn": [0.25, 1], "transformer": [0.5, 0.5], "sum": [0.5, 1]}


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 999))
def test_all_figures_agree(count: int, classes: int, seed: int):
    random = np.random.default_rng(seed)
    cnn, transformer = random.normal(0, 3, (2, count, classes))
    labels = random.integers(0, classes, count)
    predictions = Predictions((cnn, transformer), labels)
    matrix = predictions.confusion_matrix()
    assert_array_equal(matrix.sum(axis=1), np.bincount(labels, minlength=classes))
    assert_allclose(np.trace(matrix) / count, predictions.accuracies.sum, rtol=1e-12)
    present = np.bincount(labels, minlength=classes) > 0
    assert_allclose(np.diag(matrix)[present] / matrix.sum(axis=1)[present], predictions.class_accuracies()["sum"][present], rtol=1e-12)
    for head, share in predictions.accuracies._asdict().items():
        mean = np.nansum(predictions.class_accuracies()[head] * np.bincount(labels, minlength=classes)) / count
        assert_allclose(mean, share, rtol=1e-12)
    reference = [torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item() for logits in (cnn, transformer)]
    assert_allclose(predictions.loss, sum(reference) / 2, rtol=1e-12)
    assert_allclose(predictions.probabilities, torch.softmax(torch.tensor(cnn + transformer), 1).numpy(), rtol=1e-12)
    both = torch.nn.functional.cross_entropy(torch.tensor(cnn + transformer), torch.tensor(labels)).item()
    losses, errors = predictions.cross_entropies(), predictions.calibration_errors()
    assert list(losses) == list(errors) == list(HEADS)
    assert_allclose(list(losses.values()), [*reference, both], rtol=1e-12)
    for head, logits in (("cnn", cnn), ("transformer", transformer), ("sum", cnn + transformer)):
        sure, answers = (found.numpy() for found in torch.softmax(torch.tensor(logits), 1).max(1))
        error = 0.0
        for low in range(15):  # Guo et al. 2017, equation 3
            inside = (sure > low / 15) & (sure <= (low + 1) / 15)
            if inside.any():
                error += inside.mean() * abs((answers == labels)[inside].mean() - sure[inside].mean())
        assert_allclose(errors[head], error, rtol=1e-9, atol=1e-12)
    (alone,) = Predictions((cnn,), labels).cross_entropies().values()
    assert alone == losses["cnn"] == Predictions((cnn,), labels).loss


def test_a_network_that_is_as_sure_as_it_is_right_has_no_calibration_error():
    """Of four answers at 75 % each three are right; twice the logits, as when two heads agree, make 90 % of it."""
    logits = np.tile([np.log(3), 0.0], (4, 1))
    predictions = Predictions((logits, logits), np.array([0, 0, 0, 1]))
    assert predictions.calibration_errors() == pytest.approx({"cnn": 0, "transformer": 0, "sum": 0.15}, abs=1e-12)
    assert Predictions((logits,), np.array([1, 1, 0, 1])).calibration_errors(bins=1) == pytest.approx({"sum": 0.5}, abs=1e-12)
    assert np.isnan(Predictions((np.array([[np.inf, 0.0]]),), np.array([0])).calibration_errors()["sum"])


def small_network() -> Conformer:
    return Conformer(depth=3, embed_dim=8, num_heads=2, channel_ratio=0.25, stem="cifar", stem_channels=8, num_classes=2)


def test_modules_that_are_frozen_stay_so():
    """A fine-tuning loop that evaluates after each epoch must not begin to train the statistics that it froze."""
    model = small_network().train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    predict(model, [np.zeros((1, 16, 16, 3), np.float32)])
    assert [module.training for module in model.modules()] == modes and not model.bn1.training and model.training


def test_a_network_in_float64_is_evaluated_in_float64():
    manual_seed(0)
    model, images = small_network(), np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    split = Split(images, np.array([0, 1, 0]))
    dataset = Dataset("x", ("a", "b"), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), split, split, Path())
    single, double = (evaluate(model.to(dtype=dtype), split, dataset) for dtype in (np.float32, np.float64))
    assert (single.cnn.dtype, double.cnn.dtype) == (np.float32, np.float64)
    assert_allclose(single.sum, double.sum, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_images_are_normalised_with_the_data_sets_constants_and_mirrored_left_to_right(batch_size: int | None):
    manual_seed(0)
    model, random = small_network().eval(), np.random.default_rng(0)
    images, other = random.integers(0, 256, (2, 5, 16, 32, 3), np.uint8)
    test, train = (Split(array, random.integers(0, 2, 5)) for array in (images, other))
    dataset = Dataset("x", ("a", "b"), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), train, test, Path())
    one, mirrored = (predict(model, [normalize(array, dataset.mean, dataset.std)]) for array in (images, images[:, :, ::-1]))
    for tta, expected in (("none", one), ("mirror", np.mean([one, mirrored], axis=0))):
        answers = evaluate(model, test, dataset, batch_size, tta)
        assert_allclose([answers.cnn, answers.transformer], expected, rtol=1e-4, atol=1e-6)
        assert_array_equal(answers.labels, test.labels)
    assert not np.allclose(one, mirrored, rtol=1e-2)


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {"tta": "mirorr"}, "evaluate: tta is 'mirorr'; it must be one of none, mirror"),
        (1, {"tta": True}, "evaluate: tta is True"),
        (0, {}, "evaluate: 0 images in batches of None; give at least one image"),
        (1, {"batch_size": -1}, "evaluate: 1 images in batches of -1; .*batches of at least 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(count: int, options: dict, message: str):
    split = Split(np.zeros((count, 16, 16, 3), np.uint8), np.zeros(count, np.int64))
    dataset = Dataset("x", ("a", "b"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), split, split, Path())
    with pytest.raises(ValueError, match=message):
        evaluate(small_network(), split, dataset, **options)


def test_labels_of_other_classes_than_the_network_has_are_refused():
    with pytest.raises(ValueError, match="there are labels from 0 to 3, but the network has 3 classes, 0 to 2"):
        Predictions((np.zeros((2, 3)), np.zeros((2, 3))), np.array([0, 3]))
    with pytest.raises(ValueError, match="there are labels from -1 to 2, but"):
        Predictions((np.zeros((2, 3)), np.zeros((2, 3))), np.array([-1, 2]))


@pytest.mark.parametrize("images", [1, 2])
def test_a_branch_alone_has_one_head(images: int):
    """Two images of one head do not pass for one image of two."""
    branch = CNNBranch(small_network().config)
    (logits,) = predict(branch, [np.zeros((images, 16, 16, 3), np.float32)])
    assert logits.shape == (images, branch.config.num_classes)


def test_evaluation_changes_nothing(config: TrainConfig) -> None:
    trainer = Trainer(config)
    trainer.learner.model.train()
    before = trainer.learner.model.state_dict()
    result = evaluate(trainer.learner.model, trainer.dataset.train, trainer.dataset, batch_size=7)
    whole = evaluate(trainer.learner.model, trainer.dataset.train, trainer.dataset)
    assert result.accuracies == whole.accuracies
    assert_allclose(result.loss, whole.loss, rtol=1e-5)
    assert trainer.learner.model.training
    for name, array in trainer.learner.model.state_dict().items():
        assert_array_equal(before[name], array, err_msg=name)


def test_the_mirror_image_counts_as_much_as_the_image(config: TrainConfig) -> None:
    trainer = Trainer(config)
    model, test = trainer.learner.model, trainer.dataset.test
    mirrored = replace(test, images=test.images[:, :, ::-1])
    both = evaluate(model, test, trainer.dataset, tta="mirror")
    one, other = (evaluate(model, split, trainer.dataset) for split in (test, mirrored))
    for head in ("cnn", "transformer"):
        assert_allclose(getattr(both, head), (getattr(one, head) + getattr(other, head)) / 2, rtol=1e-6)
    assert not np.allclose(one.cnn, other.cnn)
    assert both.labels is test.labels


def test_three_accuracies_are_of_both_heads_and_of_their_sum() -> None:
    cnn = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [0, 1, 0]])
    transformer = np.array([[0.0, 1, 0], [0, 1, 0], [0, 4, 0], [0, 0, 3]])
    assert accuracies((cnn, transformer), np.array([0, 1, 2, 2])) == Accuracies(cnn=0.75, transformer=0.5, sum=0.75)
