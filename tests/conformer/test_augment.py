"""Shifts and flips against padding, cropping and flipping image by image; normalisation against its formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from conformer.augment import cut_out, normalize, shift_and_flip
from minigrad import random


def one_by_one(images: np.ndarray, generator: np.random.Generator, shift: int) -> np.ndarray:
    """The textbook version: pad by reflection, crop, flip; the same draws."""
    batch, height, width, _ = images.shape
    moves = generator.integers(-shift, shift + 1, size=(2, batch, 1))[..., 0]
    flips = generator.random((batch, 1))[:, 0] < 0.5
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
    crops = [
        image[shift + down : shift + down + height, shift + right : shift + right + width]
        for image, down, right in zip(padded, moves[0], moves[1], strict=True)
    ]
    return np.stack([crop[:, ::-1] if flip else crop for crop, flip in zip(crops, flips, strict=True)])


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 4), st.integers(5, 9), st.integers(5, 9))
def test_shift_and_flip_is_padding_cropping_and_flipping_image_by_image(seed: int, batch: int, shift: int, height: int, width: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    mine = shift_and_flip(images, np.random.default_rng(seed), shift)
    assert mine.dtype == np.uint8
    assert mine.flags.c_contiguous
    assert_array_equal(mine, one_by_one(images, np.random.default_rng(seed), shift))


def test_every_shift_and_both_sides_are_drawn() -> None:
    column = np.arange(32, dtype=np.uint8)
    images = np.zeros((4000, 32, 32, 2), np.uint8)
    images[..., 0], images[..., 1] = column[:, None], column  # each pixel holds its row and its column
    moved = shift_and_flip(images, np.random.default_rng(0))
    assert_array_equal(np.bincount(moved[:, 16, 16, 0], minlength=21)[12:21] > 300, True)  # 9 row shifts, 444 each on average
    flipped = moved[:, 0, 16, 1] > moved[:, 0, 17, 1]
    assert 0.45 < flipped.mean() < 0.55


def test_images_that_would_be_mirrored_twice_are_refused() -> None:
    images = np.zeros((1, 4, 9, 3), np.uint8)
    with pytest.raises(ValueError, match="images of 4 x 9 pixels cannot be shifted by up to 4; give images of at least 5 x 5"):
        shift_and_flip(images, np.random.default_rng(0))
    assert shift_and_flip(images, np.random.default_rng(0), shift=3).shape == images.shape


def test_the_seed_fixes_the_draw() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    original = images.copy()
    random.manual_seed(3)
    first = shift_and_flip(images, random.generator("augment", 2, 5))
    other = shift_and_flip(images, random.generator("augment", 2, 6))
    random.manual_seed(3)
    again = shift_and_flip(images, random.generator("augment", 2, 5))
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert_array_equal(images, original)


def test_normalize_is_its_formula_in_float32() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    result = normalize(images, mean, std)
    assert result.dtype == np.float32
    assert_allclose(result, (images / 255 - np.array(mean)) / np.array(std), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="zip"):
        normalize(images, mean, std[:2])
    for wrong in (result, images / 255, images.astype(np.int64), images > 0):
        with pytest.raises(TypeError, match=rf"^normalize: the images are {wrong.dtype}; give uint8, pixels from 0 to 255 \(for floats"):
            normalize(wrong, mean, std)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(5, 9), st.integers(5, 9), st.integers(1, 7))
def test_a_square_is_cut_out_of_each_image(seed: int, batch: int, height: int, width: int, side: int) -> None:
    images = np.random.default_rng(seed).uniform(0.5, 1, (batch, height, width, 3)).astype(np.float32)
    mine, generator = cut_out(images, np.random.default_rng(seed), side), np.random.default_rng(seed)
    rows, columns = generator.integers(0, height, batch), generator.integers(0, width, batch)
    expected = images.copy()
    for image, row, column in zip(expected, rows, columns, strict=True):
        top, left = row - side // 2, column - side // 2
        image[max(top, 0) : top + side, max(left, 0) : left + side] = 0
    assert mine.dtype == np.float32
    assert_array_equal(mine, expected)
