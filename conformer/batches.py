"""The training batches of an epoch: shuffled, augmented, normalised. Read next: `conformer/learner.py`, which takes a step with each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from conformer.augment import normalize, shift_and_flip
from conformer.data import Dataset
from minigrad import random

__all__ = ["Batch", "batches"]


class Batch(NamedTuple):
    """One step's images float32 (B, 32, 32, 3), augmented and normalised, and labels int64 (B,)."""

    images: np.ndarray
    labels: np.ndarray


def batches(dataset: Dataset, batch_size: int, epoch: int, first: int = 0) -> Iterator[Batch]:
    """The training batches of one epoch, shuffled, shifted and flipped; a last batch that is not full is dropped.

    What a batch holds depends on the seed, `epoch` and its place in the epoch only, so it may be made ahead of time, or again.

    Args:
        dataset: its training split is used.
        batch_size: images in each batch.
        epoch: number of the epoch, from 0.
        first: number of the batch to begin with.
    """
    order = random.generator("shuffle", epoch).permutation(len(dataset.train))
    for number in range(first, len(order) // batch_size):
        chosen = order[number * batch_size : (number + 1) * batch_size]
        images = shift_and_flip(dataset.train.images[chosen], random.generator("augment", epoch, number))
        yield Batch(normalize(images, dataset.mean, dataset.std), dataset.train.labels[chosen])
