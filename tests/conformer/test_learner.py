"""Steps of `Learner` beside a training loop written out: loss, smoothing, parts, clipping, optimiser, schedule and average."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from conformer.batches import Batch
from conformer.config import ConformerConfig, named_config
from conformer.evaluate import Accuracies
from conformer.learner import Learner
from conformer.model import Conformer, parameter_groups
from conformer.options import TrainConfig
from minigrad import functional as F
from minigrad import random
from minigrad.optim import AdamW
from minigrad.tensor import Tensor

STEPS = 3


@pytest.fixture
def network(tiny_network: str) -> ConformerConfig:
    return replace(named_config(tiny_network), num_classes=5, drop_path_rate=0.3)


def some_batches() -> list[Batch]:
    generator = np.random.default_rng(0)
    return [Batch(generator.standard_normal((8, 32, 32, 3), np.float32), generator.integers(0, 5, 8)) for _ in range(STEPS)]


def smoothed(logits: Tensor, labels: np.ndarray, smoothing: float) -> Tensor:
    """The mean cross entropy with targets of which a share is spread over all classes."""
    targets = (1 - smoothing) * np.eye(5, dtype=np.float32)[labels] + np.float32(smoothing / 5)
    return (F.log_softmax(logits) * Tensor(-targets / len(labels))).sum()


def gradients_of(model: Conformer) -> dict[str, np.ndarray]:
    return {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("clip_norm", [0.0, 1e-3, 1.0])
def test_steps_are_those_of_a_loop_written_out(parts: int, clip_norm: float, network: ConformerConfig) -> None:
    options: dict[str, Any] = {"weight_decay": 0.3, "label_smoothing": 0.3, "lr": 4e-3, "warmup": 0.4, "ema": 0.75, "seed": 5}
    config = TrainConfig(batch_size=8, accumulate=parts, clip_norm=clip_norm, **options)
    learner = Learner(network, config, STEPS)
    done = []
    for batch in some_batches():
        loss, right = learner.train_step(batch)
        done.append((loss, right, gradients_of(learner.model), learner.learning_rate, learner.model.state_dict()))

    random.manual_seed(5)
    model = Conformer(**asdict(network))
    optimizer = AdamW(parameter_groups(model, 0.3))
    average = model.state_dict()
    rates = [2e-3, 4e-3, 2e-3]  # of which one warms up, and the cosine is half-way down at the last
    norms = []
    for step, (batch, (loss, right, gradients, rate, weights)) in enumerate(zip(some_batches(), done, strict=True)):
        random.set_step(step)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        for parameter in model.parameters():
            parameter.grad = None
        losses, answers = [], []
        for images, labels in zip(np.split(batch.images, parts), np.split(batch.labels, parts), strict=True):
            cnn, transformer = model(Tensor(images))
            losses.append((smoothed(cnn, labels, 0.3) + smoothed(transformer, labels, 0.3)) / 2)
            (losses[-1] * (1 / parts)).backward()
            heads = cnn.numpy(), transformer.numpy(), cnn.numpy() + transformer.numpy()
            answers.append(np.stack([head.argmax(axis=1) == labels for head in heads]))
        mine = gradients_of(model)
        norms.append(math.sqrt(sum(float((gradient.astype(np.float64) ** 2).sum()) for gradient in mine.values())))
        scale = min(1.0, clip_norm / norms[-1]) if clip_norm else 1.0

        assert_allclose(loss, np.mean([part.item() for part in losses]), rtol=1e-5)
        assert right == Accuracies(*np.concatenate(answers, axis=1).mean(axis=1))
        assert_allclose(rate, rates[step], rtol=1e-6)
        assert gradients.keys() == mine.keys()
        for name, parameter in model.named_parameters():
            assert_allclose(gradients[name], mine[name] * scale, rtol=2e-3, atol=1e-5 * scale * norms[-1], err_msg=name)
            parameter.grad = Tensor(gradients[name])  # AdamW would make much of the last digits of gradients that are next to 0
        optimizer.step()
        for name, array in model.state_dict().items():
            assert_allclose(weights[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
            average[name] = 0.75 * average[name] + 0.25 * array if array.dtype.kind == "f" else array
    assert learner.step == STEPS
    assert 1e-3 < min(norms) < 1 < max(norms)  # so that 1 limits some steps only
    assert learner.ema is not None
    for name, array in learner.ema.state_dict().items():
        assert_allclose(array, average[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_accumulated_parts_are_one_step(network: ConformerConfig) -> None:
    """Without batch norm's statistics (evaluation mode) the parts' gradients are those of the whole; with them a run goes its own way."""
    (batch, *_), found = some_batches(), []
    for parts in (1, 2, 4):
        learner = Learner(network, TrainConfig(batch_size=8, accumulate=parts, clip_norm=0.0), STEPS)
        learner.model.eval()
        found.append((*learner.train_step(batch), gradients_of(learner.model)))
    whole, *others = found
    for loss, right, gradients in others:
        assert_allclose(loss, whole[0], rtol=1e-5)
        assert right == whole[1]
        assert gradients.keys() == whole[2].keys()
        for name, expected in whole[2].items():
            assert_allclose(gradients[name], expected, rtol=1e-3, atol=1e-5 * max(1, abs(expected).max()), err_msg=name)
