"""The images: where CIFAR-10 is looked for, how its files are read, and what is refused.

A `Dataset` is two `Split`s (training and test) of uint8 images `(N, 32, 32, 3)` and their labels, with the names of the classes and
the constants that normalise a pixel. `load` finds one by name and checks what it reads: sizes and labels, each error naming the file,
what was expected and what was found. Read next: `conformer/augment.py`, what training does to a batch of these images.

Letters: N images, H W rows and columns, C channels, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["DATASETS", "DataError", "Dataset", "Split", "cache_folder", "load"]

SIDE = 32  # rows and columns of every image
PIXELS = 3 * SIDE * SIDE


class DataError(ValueError):
    """A data set that is missing, damaged or of another kind; the message is one sentence for the user."""


@dataclass(frozen=True)
class Split:
    """Images and what they show: `images` uint8 (N, 32, 32, 3), `labels` int64 (N,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    `mean` and `std` are those of the training images' channels, with pixels from 0 to 1; `source` is the folder it was read from.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: Split
    test: Split
    source: Path


@dataclass(frozen=True)
class _Cifar:
    """The binary version of one of the CIFAR data sets: files of records, each `label_bytes` labels (the last one counts), then three planes of
    32 x 32 pixels.
    """

    name: str
    title: str
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    label_bytes: int
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    url: str

    @property
    def files(self) -> tuple[str, ...]:
        return self.train_files + self.test_files


# Source: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version". mean and std are computed from the 50,000 training images.
CIFAR10 = _Cifar(
    name="cifar10",
    title="CIFAR-10",
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_files=("test_batch.bin",),
    label_bytes=1,
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
)


def cache_folder() -> Path:
    """The folder for downloaded data: `conformer` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conformer"


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Read the data set `name` into memory.

    Args:
        name: one of `DATASETS`.
        data_dir: the extracted folder or its parent; when None, `$CONFORMER_DATA` and then the cache folder are tried.

    Raises:
        DataError: there is no such data set, or its files are not there or not what they should be.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}; there is {', '.join(DATASETS)}")
    return DATASETS[name](data_dir)


def _load_cifar(kind: _Cifar, data_dir: str | Path | None) -> Dataset:
    folder = _find(kind, data_dir)
    return Dataset(
        name=kind.name,
        classes=kind.classes,
        mean=kind.mean,
        std=kind.std,
        train=_read_split(kind, folder, kind.train_files),
        test=_read_split(kind, folder, kind.test_files),
        source=folder,
    )


def _find(kind: _Cifar, data_dir: str | Path | None) -> Path:
    """The folder that holds all files of `kind`, or an error that says where it was looked for and what is missing."""
    if data_dir is not None:
        places = {"--data-dir": Path(data_dir)}
        if not Path(data_dir).exists():
            raise DataError(f"--data-dir: there is no folder {data_dir}")
        if not Path(data_dir).is_dir():
            raise DataError(f"--data-dir: {data_dir} is a file; unpack the archive and give the folder {kind.folder} or its parent")
    else:
        variable = os.environ.get("CONFORMER_DATA")
        places = ({"$CONFORMER_DATA": Path(variable)} if variable else {}) | {"the cache": cache_folder()}
    for place in places.values():
        for folder in (place, place / kind.folder):
            missing = [file for file in kind.files if not (folder / file).is_file()]
            if not missing:
                return folder
            if len(missing) < len(kind.files):
                raise DataError(f"{folder} has no {', '.join(missing)}; {kind.title}'s binary version is {kind.files[0]} to {kind.files[-1]}")
    looked = " and ".join(f"{name} ({place})" for name, place in places.items())
    raise DataError(f"{kind.title} is not in {looked}: get {kind.url}, unpack it, and give its folder {kind.folder} with --data-dir")


def _read_split(kind: _Cifar, folder: Path, files: tuple[str, ...]) -> Split:
    records = np.concatenate([_read_records(kind, folder / file) for file in files])  # (N, label_bytes + 3072)
    planes = records[:, kind.label_bytes :].reshape(-1, 3, SIDE, SIDE)  # (N, C, H, W), as they lie in the file
    return Split(images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels=records[:, kind.label_bytes - 1].astype(np.int64))


def _read_records(kind: _Cifar, path: Path) -> np.ndarray:
    """The records of one file, uint8 (N, label_bytes + 3072)."""
    length = kind.label_bytes + PIXELS
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if data.size == 0 or data.size % length:
        raise DataError(f"{path} has {data.size:,} bytes; expected a whole number of records of {length:,} bytes (the original has 10,000 of them)")
    records = data.reshape(-1, length)
    labels = records[:, kind.label_bytes - 1]
    if labels.max() >= len(kind.classes):
        record = int(np.argmax(labels >= len(kind.classes)))
        raise DataError(f"{path}: record {record} has label {labels[record]}; expected 0 to {len(kind.classes) - 1}")
    return records


DATASETS: dict[str, Callable[[str | Path | None], Dataset]] = {
    CIFAR10.name: lambda data_dir: _load_cifar(CIFAR10, data_dir),
}
