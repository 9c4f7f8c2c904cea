"""coupling10: a generated data set of 32x32 colour images with one cue that is local and one that is only seen globally.

Made for machines with neither CIFAR nor network, and to see what coupling a convolution branch with a transformer branch is good for:

    class = 5 * arrangement + texture

* The **texture** (one of five) fills the image with a pattern that repeats every 4 pixels; any window of 8x8 pixels shows it.
* The **arrangement** (one of two) is told by four discs, one in the middle of each quarter of the image, two of them orange and two blue: discs of
  one colour lie beside each other (`rows`) or above each other (`columns`). Which pair has which colour is random. So every single disc has the
  same distribution in both arrangements: no window of up to 9x9 pixels, which never meets two discs, says anything about the arrangement,
  wherever it lies. Two discs 8 pixels apart have to be compared.

Each cue is drawn independently, so texture alone caps at 50 % accuracy, arrangement alone at 20 %. Mirroring an image left to right and
moving it by up to 4 pixels (`conformer/augment.py`) keeps its class. `docs/coupling10.md` has pictures. Read next: `conformer/data.py`, which
serves this beside CIFAR.

Letters: B images of one chunk, N images, H W rows and columns, C channels.
"""

from __future__ import annotations

import numpy as np

__all__ = ["ARRANGEMENTS", "CLASSES", "MEAN", "STD", "TEXTURES", "generate"]

SIDE = 32
PERIOD = 4  # of a texture in pixels; it divides the 16 pixels between quarters, so a disc meets the same texture in each of them
CHUNK = 1000  # images made at a time, a hundred of each class
MARGIN = 4  # pixels between a disc and the border; between two discs there are 8
DISC = np.hypot(*(np.mgrid[:8, :8] - 3.5)) < 4  # (8, 8)

ARRANGEMENTS = "rows", "columns"
"""Where discs of one colour lie beside each other, and where above each other."""
TEXTURES = "horizontal stripes", "vertical stripes", "checks", "grid", "grain"
"""What fills the ground."""
CLASSES = tuple(f"{arrangement}, {texture}" for arrangement in ARRANGEMENTS for texture in TEXTURES)
"""Names, in the order of the labels: 5 * arrangement + texture."""

MEAN = 0.498, 0.498, 0.498
STD = 0.161, 0.105, 0.159
"""Of the training images of seed 0, by colour."""


def generate(count: int, seed: int = 0, split: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Make images and labels; the same arguments give the same images, and a larger `count` begins with those of a smaller one.

    Args:
        count: number of images N; of each thousand of them (0 to 999, 1,000 to 1,999, ...), 100 are of each class.
        seed: which data set, from 0 to 2**64 - 1. Independent of the seed of a training run.
        split: 0 for the training images, 1 for the test images: different draws of one data set.

    Returns:
        `(images, labels)`: uint8 (N, 32, 32, 3) and int64 (N,).
    """
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    labels = np.empty(count, np.int64)
    for chunk, start in enumerate(range(0, count, CHUNK)):
        # Philox: draws depend on (seed, split) and the number of the chunk only.
        random = np.random.Generator(np.random.Philox(key=np.array([seed, split], np.uint64), counter=np.array([0, chunk, 0, 0], np.uint64)))
        drawn = random.permutation(CHUNK) % len(CLASSES)  # (B,)
        kept = min(CHUNK, count - start)
        images[start : start + kept] = _draw(drawn, random)[:kept]
        labels[start : start + kept] = drawn[:kept]
    return images, labels


def _draw(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images uint8 (B, 32, 32, 3) of the classes `labels` (B,)."""
    arrangement, texture = np.divmod(labels, len(TEXTURES))

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return random.uniform(low, high, (len(labels), *shape)).astype(np.float32)

    grey = uniform(15, 30, 1, 1) * _textures(texture, random)  # (B, H, W)
    grey += uniform(4, 12, 1, 1) * random.standard_normal(grey.shape, np.float32)

    angle = uniform(0.3, 0.7, 1) - np.float32(2 * np.pi / 3) * np.arange(3, dtype=np.float32)  # (B, C)
    hue = uniform(70, 90, 1) * _cos(angle)  # its channels sum to 0: discs are as bright as the rest
    discs = _discs(arrangement, random)  # (B, H, W)

    tint = uniform(110, 145, 3)  # (B, C)
    images = np.empty((*grey.shape, 3), np.uint8)
    for channel in range(3):
        plane = grey + discs * hue[:, None, None, channel] + tint[:, None, None, channel]
        images[..., channel] = np.clip(plane, 0, 255, out=plane)
    return images


def _cos(angle: np.ndarray) -> np.ndarray:
    """The cosine, rounded once: NumPy's in float32 has another last digit on every kind of processor, and a pixel another value after it."""
    return np.cos(angle.astype(np.float64)).astype(np.float32)


def _textures(texture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Patterns float32 (B, 32, 32) of mean 0 and mean square 1, exactly so in any 4x4 pixels of all but the grain; each has a phase of its own."""
    phases = random.uniform(0, 2 * np.pi, (2, len(texture), 1)).astype(np.float32)
    waves = np.float32(np.sqrt(2)) * _cos(phases + np.float32(2 * np.pi / PERIOD) * np.arange(SIDE, dtype=np.float32))  # (2, B, 32)
    down, across = waves[0, :, :, None], waves[1, :, None, :]  # (B, H, 1) and (B, 1, W)
    result = np.empty((len(texture), SIDE, SIDE), np.float32)
    for number, name in enumerate(TEXTURES):
        chosen = texture == number
        if name == "horizontal stripes":
            result[chosen] = down[chosen]
        elif name == "vertical stripes":
            result[chosen] = across[chosen]
        elif name == "checks":
            result[chosen] = down[chosen] * across[chosen]
        elif name == "grid":
            result[chosen] = (down[chosen] + across[chosen]) * np.float32(np.sqrt(0.5))
        else:
            result[chosen] = random.standard_normal((chosen.sum(), SIDE, SIDE), np.float32)
    return result


def _discs(arrangement: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Where the discs are, float32 (B, 32, 32): +1 in those of the first colour, -1 in those of the second, 0 elsewhere."""
    result = np.zeros((len(arrangement), SIDE, SIDE), np.float32)
    first = random.choice(np.array([-1, 1], np.float32), len(arrangement))  # colour of the disc at the top left
    for bottom in (0, 1):
        for right in (0, 1):
            row, column = MARGIN + SIDE // 2 * np.array([bottom, right])
            other = np.where(arrangement == 0, bottom, right)  # rows: the colour changes downwards; columns: to the right
            result[:, row : row + len(DISC), column : column + len(DISC)] = (first * (1 - 2 * other))[:, None, None] * DISC
    return result
