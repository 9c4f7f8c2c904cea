"""The training batches of an epoch: shuffled, augmented, normalised; and the plan by which a GPU makes the same ones.

Read next: `conformer/learner.py`, which takes a step with each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from conformer.augment import draw_shifts, normalize, shift_and_flip
from conformer.data import Dataset
from minigrad import random

__all__ = ["Batch", "batches", "plan"]


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
    for number, chosen in enumerate(_shuffled(len(dataset.train), batch_size, epoch)[first:], first):
        images = shift_and_flip(dataset.train.images[chosen], _draws(epoch, number))
        yield Batch(normalize(images, dataset.mean, dataset.std), dataset.train.labels[chosen])


def plan(images: int, batch_size: int, epoch: int) -> np.ndarray:
    """What the batches of an epoch hold, int32 (batches, B, 4): the number of the image, pixels it moves down and right, whether it is flipped.

    `batches` draws the same.

    Args:
        images: how many there are. batch_size, epoch: as for `batches`.
    """
    chosen = _shuffled(images, batch_size, epoch)
    planned = np.empty((*chosen.shape, 4), np.int32)
    planned[:, :, 0] = chosen
    for number in range(len(planned)):
        moves, flips = draw_shifts(_draws(epoch, number), batch_size)
        planned[number, :, 1:3], planned[number, :, 3] = moves.T, flips
    return planned


def _shuffled(images: int, batch_size: int, epoch: int) -> np.ndarray:
    """The numbers of the images in each batch of an epoch, (batches, B)."""
    order = random.generator("shuffle", epoch).permutation(images)
    return order[: images // batch_size * batch_size].reshape(-1, batch_size)


def _draws(epoch: int, number: int) -> np.random.Generator:
    """Where the shifts and flips of a batch come from."""
    return random.generator("augment", epoch, number)
