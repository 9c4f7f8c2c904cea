"""What training does to a batch of images: shift, flip, normalise, cut a square out. Whole batches at once, no loop over images.

The random draws come from a generator that the caller makes for each batch (`minigrad.random.generator("augment", epoch, number)`, its number in the
epoch), so a batch is the same whoever makes it and whenever; on the GPU too (`cuda_augment`, augment.cu), which then makes the very same numbers of
them. Read next: `conformer/batches.py`, which calls these.

Letters: N images of the data set, B batch, H W rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conformer.archives import DataError
from minigrad.backend import Array, cuda

__all__ = [
    "PLAN", "SHIFT", "channel_constants", "check_sides", "cuda_augment", "cut_out", "draw_shifts", "draw_squares", "normalize", "shift_and_flip",
]  # fmt: skip

SHIFT = 4
"""How far training images are moved at most, in pixels."""

PLAN = 8
"""Numbers in a row of a plan for the GPU: see augment.cu."""

_cuda = cuda.Kernels(__file__)


def draw_shifts(generator: np.random.Generator, batch: int, shift: int = SHIFT) -> tuple[np.ndarray, np.ndarray]:
    """Draw how each image of a batch is moved, and whether it is flipped after that.

    Returns:
        The offset of each image's window, in pixels down and right, from -shift to shift: integers (2, B). Whether it is flipped: bools (B,).
    """
    moves = generator.integers(-shift, shift + 1, size=(2, batch))
    return moves, generator.random(batch) < 0.5


def shift_and_flip(images: np.ndarray, generator: np.random.Generator, shift: int = SHIFT) -> np.ndarray:
    """Move every image by up to `shift` pixels each way, the border filled with its mirror image, and flip half of them left to right.

    The same as padding by reflection, cropping a random window and flipping, but read straight from the originals: row and
    column numbers are drawn and mirrored, not pixels.

    Args:
        images: (B, H, W, C) of any dtype, H and W greater than `shift`.
        generator: where the draws come from.
        shift: largest distance, in pixels.

    Returns:
        A new array like `images`.

    Raises:
        DataError: the images are smaller than that.
    """
    batch, height, width, _ = images.shape
    check_sides(height, width, shift)
    moves, flips = draw_shifts(generator, batch, shift)
    rows = _mirror(np.arange(height) + moves[0, :, None], height)  # (B, H)
    columns = _mirror(np.arange(width) + moves[1, :, None], width)  # (B, W)
    columns = np.where(flips[:, None], columns[:, ::-1], columns)
    return images[np.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)


def check_sides(height: int, width: int, shift: int = SHIFT) -> None:
    """Raise DataError for images too small to be shifted: mirrored once at a border, they would end before the window does."""
    if min(height, width) <= shift:
        raise DataError(f"images of {height} x {width} pixels cannot be shifted by up to {shift}; give images of at least {shift + 1} x {shift + 1}")


def draw_squares(generator: np.random.Generator, batch: int, height: int, width: int, side: int) -> np.ndarray:
    """Draw where a square of `side` pixels lies in each image: its top and left, integers (2, B). Its middle is in the image."""
    middles = [generator.integers(0, length, size=batch) for length in (height, width)]
    return np.stack(middles) - side // 2


def cut_out(images: np.ndarray, generator: np.random.Generator, side: int) -> np.ndarray:
    """Set a square of `side` pixels in every image to 0, which is the mean of normalised ones.

    Args:
        images: (B, H, W, C) of any dtype; not written to.
        generator: where the squares come from (`draw_squares`).
        side: in pixels.

    Returns:
        A new array like `images`.

    Source: DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout".
    """
    batch, height, width, _ = images.shape
    top, left = draw_squares(generator, batch, height, width, side)[:, :, None]  # (B, 1) each
    rows, columns = np.arange(height), np.arange(width)
    inside_rows, inside_columns = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)  # (B, H), (B, W)
    kept = ~(inside_rows[:, :, None] & inside_columns[:, None, :])  # (B, H, W)
    return np.where(kept[..., None], images, images.dtype.type(0))


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

    Raises:
        TypeError: the images are not uint8. Those of floats, from 0 to 1 or normalised already, would be divided by 255 once more.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"normalize: the images are {images.dtype}; give uint8, pixels from 0 to 255 (for floats from 0 to 1: (images - mean) / std)")
    scale, offset = channel_constants(mean, std)
    return images * scale + offset


def channel_constants(mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """What `normalize` multiplies each channel by, and what it adds then: float32 (2, C)."""
    return np.array([[1 / (255 * s) for s in std], [-m / s for m, s in zip(mean, std, strict=True)]], np.float32)


def cuda_augment(images: Array, labels: Array, plan: Array, place: Array, constants: Array, x: Array, y: Array) -> None:
    """Write a batch that is planned (`conformer.batches.plan`) into x and y, all arrays on the GPU: the batch that the CPU makes, bit for bit.

    Args:
        images, labels: the data set, uint8 (N, H, W, C) and int64 (N,).
        plan: int32 (batches, B, PLAN).
        place: which of the batches, an array of one uint64.
        constants: `channel_constants`, (2, C).
        x, y: the batch, float32 or float64 (B, H, W, C) and int64 (B,).
    """
    batch, height, width, channels = x.shape
    numbers = height * width * channels
    pack = cuda.vector_width(numbers, x)
    arguments = (images, labels, plan, place, constants, x, y, height, width, channels)
    _cuda.launch(f"augment<{cuda.pack_types(x.dtype, pack)}>", (batch, -(-numbers // pack // 256)), 256, *arguments)
