"""What can be told about a coupling10 image from one cue: simple classifiers, fitted by least squares, and the picture of docs/coupling10.md.

    python benchmarks/coupling10.py [PICTURE.png]

`window` sees one 9x9 window around a disc, `bag` the sum of what it sees in all four, without their places, `texture` the centre 8x8
pixels, `layout` the average colours of the four quarters. Read next: `conformer/coupling10.py`.

Letters: N images, F features, K classes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from conformer import coupling10


def standardized(images: np.ndarray) -> np.ndarray:
    """float64 (N, 32, 32, 3) with the background's colour taken off, so that the probes need not learn it."""
    return images - np.median(images, axis=(1, 2), keepdims=True)


def products(features: np.ndarray) -> np.ndarray:
    """All products of two of the features, and 1: (N, F) -> (N, F (F + 1) / 2 + 1)."""
    first, second = np.triu_indices(features.shape[1])
    return np.concatenate([features[:, first] * features[:, second], np.ones((len(features), 1))], axis=1)


def windows_of_quarters(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A 9x9 window at a random place that holds a whole disc, from each quarter: (N, 4, 9, 9, 3)."""
    starts = random.integers(3, 5, (len(images), 4, 2)) + np.array([[0, 0], [0, 16], [16, 0], [16, 16]])
    rows, columns = (starts[..., axis, None] + np.arange(9) for axis in (0, 1))  # (N, 4, 9)
    return images[np.arange(len(images))[:, None, None, None], rows[..., None], columns[:, :, None, :]]


def colours(windows: np.ndarray) -> np.ndarray:
    """The colour at the middle of each window against its mean, (N, ..., 3)."""
    return windows[..., 3:6, 3:6, :].mean((-3, -2))


def window(images: np.ndarray) -> np.ndarray:
    """All there is to colour in one window (the top left quarter's), its products, and the mean square of its pixels: (N, F)."""
    seen = windows_of_quarters(standardized(images), np.random.default_rng(0))[:, 0]
    return products(np.concatenate([colours(seen), seen.mean((1, 2)), seen.std((1, 2))], axis=1) / 30)


def bag(images: np.ndarray) -> np.ndarray:
    """The same, summed over the four windows: what is in the image, not where."""
    seen = windows_of_quarters(standardized(images), np.random.default_rng(0))
    features = np.concatenate([colours(seen), seen.mean((2, 3)), seen.std((2, 3))], axis=2) / 30  # (N, 4, 9)
    return sum(products(features[:, quarter]) for quarter in range(4))  # type: ignore[return-value]


def texture(images: np.ndarray) -> np.ndarray:
    """How the centre 8x8 pixels, which hold no disc, correlate with themselves moved by 0 to 2 pixels: (N, F)."""
    grey = images[:, 12:20, 12:20].mean(-1)
    grey = grey - grey.mean((1, 2), keepdims=True)
    shifts = [(down, across) for down in range(3) for across in range(3)]
    moved = [(grey[:, down:, across:] * grey[:, : 8 - down, : 8 - across]).mean((1, 2)) for down, across in shifts]
    return products(np.stack(moved, axis=1)[:, 1:] / moved[0][:, None])


def layout(images: np.ndarray) -> np.ndarray:
    """Products of the colours of the four quarters: (N, F)."""
    averages = images.reshape(-1, 2, 16, 2, 16, 3).mean((2, 4))
    averages = averages - averages.mean(-1, keepdims=True)  # textures are grey
    averages -= averages.mean((1, 2), keepdims=True)
    return products(averages.reshape(-1, 12))


PROBES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"window": window, "bag": bag, "texture": texture, "layout": layout}


def accuracy(probe: str, count: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Shares of test images whose arrangement, texture and class a linear classifier on the probe's features tells, fitted on `count` others."""
    (images, labels), (test_images, test_labels) = (coupling10.generate(number, seed, split) for split, number in enumerate((count, 5000)))
    features, test_features = PROBES[probe](images), PROBES[probe](test_images)
    scale = np.maximum(features.std(0), 1e-3)
    features, test_features = features / scale, test_features / scale
    inverse = np.linalg.pinv(features, rcond=1e-6)  # (F, N)
    shares = []
    for target in (lambda label: label // 5, lambda label: label % 5, lambda label: label):
        weights = inverse @ np.eye(10)[target(labels)]  # (F, K)
        shares.append(float(((test_features @ weights).argmax(1) == target(test_labels)).mean()))
    return shares[0], shares[1], shares[2]


def draw(path: Path) -> None:
    """Four images of each class."""
    from matplotlib.figure import Figure

    images, labels = coupling10.generate(1000)
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    for number, axes in enumerate(figure.subplots(2, 5).flat):
        sheet = np.full((66, 66, 3), 255, np.uint8)
        for place, image in enumerate(images[labels == number][:4]):
            row, column = 34 * (place // 2), 34 * (place % 2)
            sheet[row : row + 32, column : column + 32] = image
        axes.imshow(sheet, interpolation="nearest")
        arrangement, texture = coupling10.CLASSES[number].split(", ")
        axes.set_title(f"{number}: {arrangement},\n{texture}", fontsize=9)
        axes.axis("off")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="?", metavar="PICTURE.png", help="draw four images of each class, too")
    options = parser.parse_args()
    print("percent right   arrangement  texture  class")
    for name in PROBES:
        print(f"{name:<15}" + "".join(f"{100 * share:>{width}.1f}" for share, width in zip(accuracy(name), (12, 9, 7), strict=True)))
    if options.picture:
        draw(options.picture)
