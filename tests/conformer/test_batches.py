"""The training batches of an epoch: every image once, by draws that depend on seed and place alone. A GPU's: `test_gpu_steps.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.testing import assert_array_equal

from conformer import data
from conformer.batches import batches
from conformer.options import TrainConfig
from minigrad import random

Cifar = Callable[..., Path]


def test_batches_cover_an_epoch_and_depend_on_seed_and_place_only(cifar: Cifar) -> None:
    dataset = data.load("cifar10", cifar(records=7))
    numbered = replace(dataset, classes=tuple(map(str, range(35))), train=replace(dataset.train, labels=np.arange(35)))
    random.manual_seed(0)
    first = list(batches(numbered, 8, epoch=0))
    seen = np.concatenate([batch.labels for batch in first])
    assert len(first) == 4  # 35 images: the last 3 are dropped
    assert len(set(seen)) == 32
    assert first[0].images.shape == (8, 32, 32, 3)
    assert first[0].images.dtype == np.float32
    assert list(seen) != list(np.concatenate([batch.labels for batch in batches(numbered, 8, epoch=1)]))

    ahead = batches(numbered, 8, epoch=0)
    np.random.default_rng(5).random(100)
    random.generator("shuffle", 3).random(100)
    for mine, again in zip(first, ahead, strict=True):
        assert_array_equal(mine.images, again.images)
        assert_array_equal(mine.labels, again.labels)
    random.manual_seed(1)
    assert list(seen) != list(np.concatenate([batch.labels for batch in batches(numbered, 8, epoch=0)]))


def test_each_batch_of_each_epoch_is_augmented_by_draws_of_its_own(cifar: Cifar) -> None:
    """Of copies of one image: whatever differs is not the shuffling."""
    dataset = data.load("cifar10", cifar(records=5))
    copies = replace(dataset, train=replace(dataset.train, images=np.repeat(dataset.train.images[:1], 25, axis=0)))
    random.manual_seed(0)
    made = [batch.images.tobytes() for epoch in range(3) for batch in batches(copies, 8, epoch)]
    assert len(made) == len(set(made)) == 9


def test_batches_from_the_middle_are_those_of_the_whole_epoch(config: TrainConfig) -> None:
    dataset = data.load("cifar10", config.data_dir)
    for mine, expected in zip(list(batches(dataset, 8, 1, 3)), list(batches(dataset, 8, 1))[3:], strict=True):
        assert_array_equal(mine.images, expected.images)
        assert_array_equal(mine.labels, expected.labels)
