"""coupling10 is what it says: balanced, reproducible, and with one cue that any 8x8 pixels hold and one that no 9x9 pixels hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from benchmarks import coupling10 as probes
from conformer import coupling10
from conformer.augment import shift_and_flip


def test_the_same_arguments_give_the_same_images() -> None:
    images, labels = coupling10.generate(1200)
    assert (images.shape, images.dtype, labels.dtype) == ((1200, 32, 32, 3), np.uint8, np.int64)
    again, same = coupling10.generate(1100)
    assert_array_equal(images[:1100], again)  # a larger set begins with the smaller
    assert_array_equal(labels[:1100], same)
    assert_array_equal(np.bincount(labels[:1000]), [100] * 10)
    for other in (coupling10.generate(1000, seed=1), coupling10.generate(1000, split=1)):
        assert not np.array_equal(images[:1000], other[0])
        assert not np.array_equal(labels[:1000], other[1])
    assert_array_equal(labels[:12], [5, 0, 8, 7, 1, 4, 1, 6, 1, 4, 8, 2])  # the data set of today is that of tomorrow


def test_mean_and_deviation_of_the_images_are_what_the_module_says() -> None:
    images, _ = coupling10.generate(2000)
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, coupling10.MEAN, rtol=0, atol=1e-3)
    np.testing.assert_allclose(images.std((0, 1, 2)) / 255, coupling10.STD, rtol=0, atol=1e-3)
    assert len(coupling10.CLASSES) == len(set(coupling10.CLASSES)) == 10
    assert coupling10.CLASSES[6] == "columns, vertical stripes"


@pytest.fixture(scope="module")
def discs() -> tuple[np.ndarray, np.ndarray]:
    """Where discs are, (N, 32, 32) of -1, 0 and 1, and in which arrangement."""
    arrangement = np.arange(4000) % 2
    return coupling10._discs(arrangement, np.random.default_rng(0)), arrangement


def test_no_window_of_9_meets_two_discs_and_none_lies_at_the_border(discs: tuple[np.ndarray, np.ndarray]) -> None:
    layer = discs[0]
    quarters = np.kron(np.array([[1, 2], [3, 4]]), np.ones((16, 16))) * (layer[0] != 0)  # which disc a pixel belongs to, 0 for none
    for side, meets_two in ((9, False), (10, True)):
        windows = np.lib.stride_tricks.sliding_window_view(quarters, (side, side)).reshape(-1, side * side)
        largest, smallest = windows.max(1), np.where(windows == 0, 9, windows).min(1)
        assert bool((largest > smallest).any()) is meets_two
    assert not layer[:, :4].any() and not layer[:, -4:].any() and not layer[:, :, :4].any() and not layer[:, :, -4:].any()
    assert (np.abs(layer).sum((1, 2)) == 4 * coupling10.DISC.sum()).all()


def test_each_disc_alone_says_nothing(discs: tuple[np.ndarray, np.ndarray]) -> None:
    """Two of each colour; and each quarter's colour is a coin's throw, in both arrangements. Only two together tell them apart."""
    layer, arrangement = discs
    signs = layer.reshape(-1, 2, 16, 2, 16).sum((2, 4)) / coupling10.DISC.sum()  # (N, 2, 2): +1 or -1
    assert_array_equal(signs.sum((1, 2)), np.zeros(4000))
    for number in (0, 1):
        assert (np.abs(signs[arrangement == number].mean(0)) < 0.1).all()
    assert_array_equal(signs[:, 0, 0] == signs[:, 0, 1], arrangement == 0)  # rows: equal beside each other
    assert_array_equal(signs[:, 0, 0] == signs[:, 1, 0], arrangement == 1)
    assert (np.abs(layer) == np.abs(layer[0])).all()  # and discs are always in the same places


def test_augmentation_moves_no_image_to_another_class(discs: tuple[np.ndarray, np.ndarray]) -> None:
    layer, arrangement = discs
    moved = shift_and_flip(layer[..., None], np.random.default_rng(1))[..., 0]
    signs = np.sign(moved.reshape(-1, 2, 16, 2, 16).sum((2, 4)))
    assert_array_equal((signs[:, 0, 0] == signs[:, 0, 1]) & (signs[:, 1, 0] == signs[:, 1, 1]), arrangement == 0)


@pytest.mark.parametrize(
    ("probe", "arrangement", "texture"),
    [("window", (0.46, 0.54), None), ("bag", (0.46, 0.54), None), ("texture", (0.46, 0.54), (0.97, 1)), ("layout", (0.99, 1), (0.15, 0.25))],
)
def test_either_cue_alone_is_not_enough(probe: str, arrangement: tuple[float, float], texture: tuple[float, float] | None) -> None:
    found = probes.accuracy(probe, count=4000)
    assert arrangement[0] <= found[0] <= arrangement[1]
    assert texture is None or texture[0] <= found[1] <= texture[1]
    assert found[2] < {"window": 0.5, "bag": 0.5, "texture": 0.53, "layout": 0.25}[probe]


def test_cosines_are_the_same_on_every_processor():
    angles = np.random.default_rng(0).uniform(0, 14, 4000).astype(np.float32)
    exact = np.array([math.cos(float(angle)) for angle in angles]).astype(np.float32)
    assert_array_equal(coupling10._cos(angles), exact)
