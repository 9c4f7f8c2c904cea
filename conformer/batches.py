"""The training batches of an epoch: shuffled, augmented, normalised; and the plan by which a GPU makes the same ones.

Read next: `conformer/learner.py`, which takes a step with each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from conformer.augment import PLAN, check_sides, cut_out, draw_shifts, draw_squares, normalize, shift_and_flip
from conformer.data import Dataset
from minigrad import random

__all__ = ["Batch", "batches", "plan"]


class Batch(NamedTuple):
    """One step's images float32 (B, H, W, C), augmented and normalised, and labels int64 (B,)."""

    images: np.ndarray
    labels: np.ndarray


def batches(dataset: Dataset, batch_size: int, epoch: int, first: int = 0, cutout: int = 0) -> Iterator[Batch]:
    """The training batches of one epoch, shuffled, shifted, flipped and cut out; a last batch that is not full is dropped.

    What a batch holds depends on the seed, `epoch` and its place in the epoch only, so it may be made ahead of time, or again.

    Args:
        dataset: its training split is used.
        batch_size: images in each batch.
        epoch: number of the epoch, from 0.
        first: number of the batch to begin with.
        cutout: side of the square that is cut out of each image, in pixels; 0 for none.
    """
    for number, chosen in enumerate(_shuffled(len(dataset.train), batch_size, epoch)[first:], first):
        generator = _draws(epoch, number)
        images = normalize(shift_and_flip(dataset.train.images[chosen], generator), dataset.mean, dataset.std)
        yield Batch(cut_out(images, generator, cutout) if cutout else images, dataset.train.labels[chosen])


def plan(dataset: Dataset, batch_size: int, epoch: int, cutout: int = 0) -> np.ndarray:
    """How a GPU makes the batches that `batches` yields, int32 (batches, B, PLAN): see augment.cu.

    Args:
        dataset, batch_size, epoch, cutout: as for `batches`.
    """
    images, height, width, _ = dataset.train.images.shape
    check_sides(height, width)
    chosen = _shuffled(images, batch_size, epoch)
    planned = np.zeros((*chosen.shape, PLAN), np.int32)
    planned[:, :, 0] = chosen
    for number in range(len(planned)):
        generator = _draws(epoch, number)
        moves, flips = draw_shifts(generator, batch_size)
        planned[number, :, 1:3], planned[number, :, 3] = moves.T, flips
        if cutout:
            planned[number, :, 4:6], planned[number, :, 6] = draw_squares(generator, batch_size, height, width, cutout).T, cutout
    return planned


def _shuffled(images: int, batch_size: int, epoch: int) -> np.ndarray:
    """The numbers of the images in each batch of an epoch, (batches, B)."""
    order = random.generator("shuffle", epoch).permutation(images)
    return order[: images // batch_size * batch_size].reshape(-1, batch_size)


def _draws(epoch: int, number: int) -> np.random.Generator:
    """Where what is done to the images of a batch comes from."""
    return random.generator("augment", epoch, number)
