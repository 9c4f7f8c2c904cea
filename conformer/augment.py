"""What training does to a batch of images: shift, flip, normalise. Whole batches at once, no loop over images.

The random draws come from a generator that the caller makes for each step (`minigrad.random.generator("augment", epoch, step)`),
so a step draws the same whoever computes it and whenever. Read next: `conformer/batches.py`, which calls these.

Letters: B batch, H W rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["normalize", "shift_and_flip"]


def shift_and_flip(images: np.ndarray, generator: np.random.Generator, shift: int = 4) -> np.ndarray:
    """Move every image by up to `shift` pixels each way, the border filled with its mirror image, and flip half of them left to right.

    The same as padding by reflection, cropping a random window and flipping, but read straight from the originals: row and
    column numbers are drawn and mirrored, not pixels.

    Args:
        images: (B, H, W, C) of any dtype, H and W greater than `shift`.
        generator: where the draws come from.
        shift: largest distance, in pixels.

    Returns:
        A new array like `images`.
    """
    batch, height, width, _ = images.shape
    moves = generator.integers(-shift, shift + 1, size=(2, batch, 1))  # down and right
    flips = generator.random((batch, 1)) < 0.5
    rows = _mirror(np.arange(height) + moves[0], height)  # (B, H)
    columns = _mirror(np.arange(width) + moves[1], width)  # (B, W)
    columns = np.where(flips, columns[:, ::-1], columns)
    return images[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)


def _mirror(index: np.ndarray, size: int) -> np.ndarray:
    """Numbers outside `range(size)` mirrored at the first and the last pixel, which are not repeated: -1 becomes 1, and `size` becomes `size - 2`."""
    return size - 1 - np.abs(size - 1 - np.abs(index))


def normalize(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """`(images / 255 - mean) / std`, channel by channel.

    Args:
        images: uint8 (..., C).
        mean: C values, for pixels from 0 to 1.
        std: C values.

    Returns:
        A new float32 array (..., C).
    """
    scale = np.array([1 / (255 * s) for s in std], np.float32)
    offset = np.array([-m / s for m, s in zip(mean, std, strict=True)], np.float32)
    return images * scale + offset
