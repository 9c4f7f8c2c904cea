"""The images: which data sets there are, where their files are looked for, and what becomes of them in memory.

A `Dataset` is two `Split`s (training and test) of uint8 images `(N, H, W, C)` and their labels, with the names of the classes and
the constants that normalise a pixel; `hold_out` makes of it one to choose options by. `load` finds one by name: CIFAR-10 and CIFAR-100
(`conformer/cifar.py`) in the folder or archive it is given, in `$CONFORMER_DATA` or in the cache, else by download (`conformer/download.py`);
coupling10 is generated (`conformer/coupling10.py`). `auto` is CIFAR-10 where it can be had, else coupling10. Read next: `conformer/archives.py`, how
files are read and what is refused, and then `conformer/augment.py`, what training does to a batch of these images.

Letters: N images, H W rows and columns, C channels, K classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from conformer import coupling10, download
from conformer.archives import SIDE, DataError, read_archive, read_batch, read_folder
from conformer.cifar import CIFAR10, CIFAR100, Cifar, Version
from conformer.text import with_home

__all__ = ["DATASETS", "DataError", "Dataset", "Split", "cache_folder", "checksum", "hold_out", "load", "place_of"]

Say = Callable[[str], None]


class _NotFound(DataError):
    """A data set is in none of the places it was looked for, and could not be downloaded either."""


@dataclass(frozen=True, eq=False)  # arrays are not equal or unequal
class Split:
    """Images and what they show: `images` uint8 (N, H, W, C), and `labels` integers (N,), kept as int64 (lists will do).

    In the data sets here H = W = 32 and C = 3.

    Raises:
        DataError: they are of another shape or dtype.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        try:
            images, labels = np.asarray(self.images), np.asarray(self.labels)
        except ValueError as error:  # "inhomogeneous shape"
            raise DataError("images are of one size, (N, H, W, C) in all, and a label is one number; these are of several shapes") from error
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(f"images are bytes (uint8) of shape (N, H, W, C), pixels from 0 to 255; these are {images.dtype} of shape {images.shape}")
        if (labels.size and labels.dtype.kind not in "iu") or labels.shape != images.shape[:1]:
            what = f"{labels.dtype} of shape {labels.shape}"
            raise DataError(f"{len(images)} images need as many labels, integers of shape ({len(images)},); these are {what}")
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))  # in 8 bits, products of class numbers wrap around

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory.

    `mean` and `std` are those of the training images' channels, with pixels from 0 to 1; `source` is the folder or archive it was read from, or
    says what it was made by. `notice` is what the first lines of whatever uses it must say: that `auto` took another data set than CIFAR-10, or why
    a run's accuracy is too high. `epochs` is how often training sees the images when it is not told. `measured` says what the images of `test` are,
    "test" or "held-out" ones.

    Raises:
        DataError: the classes are not names, a label is none of them, the two splits' images differ in size, mean and std are not those of pixels
            from 0 to 1, channel by channel, or `measured` is another word.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    test: Split
    source: Path | str
    notice: str = ""
    epochs: int = 20
    measured: str = "test"

    def __post_init__(self) -> None:
        classes = () if isinstance(self.classes, str) else tuple(self.classes)
        if not classes or not all(isinstance(name, str) for name in classes):
            raise DataError(f"the classes of {self.name} are {self.classes!r}; give a sequence of their names, which are strings")
        try:  # of whatever sequences and numbers they are: these can be written as JSON
            values: dict[str, object] = {name: tuple(map(float, getattr(self, name))) for name in ("mean", "std")}
            values["classes"] = tuple(map(str, classes))
        except (TypeError, ValueError) as error:
            raise DataError(f"mean {self.mean!r}, std {self.std!r} of {self.name}: give one number for each channel") from error
        try:
            values["epochs"] = operator.index(self.epochs)
        except TypeError as error:
            raise DataError(f"epochs of {self.name} is {self.epochs!r}; give a whole number") from error
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.measured not in ("test", "held-out"):
            raise DataError(f"measured of {self.name} is {self.measured!r}; say what the images of `test` are, 'test' or 'held-out' ones")
        sizes = [split.images.shape[1:] for split in (self.train, self.test) if len(split)]
        if len(set(sizes)) > 1:
            raise DataError(f"the training images of {self.name} are of shape {sizes[0]}, its test images of {sizes[1]}: bring them to one size")
        for split in (self.train, self.test):
            low, high = split.labels.min(initial=0), split.labels.max(initial=0)
            if low < 0 or high >= len(self.classes):
                raise DataError(f"labels of {self.name} go from {low} to {high}; its {len(self.classes)} classes are 0 to {len(self.classes) - 1}")
            channels = split.images.shape[3]
            if not (len(self.mean) == len(self.std) == channels and all(0 <= m <= 1 for m in self.mean) and all(0 < s <= 1 for s in self.std)):
                means = f"mean {self.mean}, std {self.std}"
                raise DataError(f"{means} of {self.name}: give one for each of the {channels} channels, of pixels from 0 to 1 (divide by 255)")


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """The data set with `count` of its training images in place of the test images, and the others to train on: to choose options by.

    Which images depends on their labels and their places alone, and not on the seed of a run, the machine or the version of NumPy: whatever is
    compared by them is compared by the same ones. Those of a smaller count are among those of a larger one. Where the classes have equally many
    images, equally many of each are held out, as far as `count` divides (the first classes have the rest); else in proportion, so that a class of few
    images may have none held out. Each keeps at least one to train on. `mean` and `std` stay those of all training images. 0 changes nothing.

    Raises:
        DataError: no whole number, more than can be, fewer than there are classes, or some are held out already.
    """
    try:
        count = operator.index(count)
    except TypeError as error:
        raise DataError(f"hold_out is {count!r}; give a whole number of images") from error
    if not count:
        return dataset
    if dataset.measured != "test":
        raise DataError(f"hold_out is {count:,}, and images of {dataset.name} are held out already; give the whole data set")
    labels, least = dataset.train.labels, len(dataset.classes)
    order = np.lexsort((_drawn(len(labels)), labels))  # class by class
    ordered = labels[order]
    counts = np.bincount(labels)[ordered]  # of the class of each
    places = np.arange(len(labels)) - np.searchsorted(ordered, ordered)  # in the order of their class
    turns = (places + 0.5) / counts  # the method of Sainte-Lague: first those that stand first in their class, as shares of it
    last = places == counts - 1
    most = len(labels) - last.sum()
    if not least <= count <= most:
        of = f"the {len(labels):,} training images of {dataset.name}"
        if most < least:
            raise DataError(f"hold_out is {count:,}, but {of} are too few to hold out one for each of {least:,} classes and train on as many: give 0")
        can = f"from {least:,} (as many as classes) to {most:,} (all but one of each class)"
        raise DataError(f"hold_out is {count:,}, and of {of} {can} can be held out")
    turns[last] = 1  # later than all others
    held = np.zeros(len(labels), bool)
    held[order[np.argsort(turns, kind="stable")[:count]]] = True
    train, test = (Split(dataset.train.images[chosen], labels[chosen]) for chosen in (~held, held))
    return replace(dataset, train=train, test=test, measured="held-out")


def _drawn(count: int) -> np.ndarray:
    """Whole numbers at random, always the same: no version of NumPy changes these, unlike its permutations."""
    return np.random.Philox(key=int.from_bytes(b"hold-out", "big")).random_raw(count)


def checksum(what: object, *splits: Split) -> str:
    """A checksum of every image and label, and of what they are: equal for the same data, wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(what).encode())
    for split in splits:
        for array in (split.images, split.labels):
            digest.update(repr((array.shape, array.dtype.str)).encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def cache_folder() -> Path:
    """The folder for downloaded data: `conformer` in `$XDG_CACHE_HOME`, or else in `~/.cache`. Raises DataError where there is no home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conformer"
    except RuntimeError as error:
        raise _NotFound("there is no home folder to keep downloads in; give the data with --data-dir, or set XDG_CACHE_HOME to a folder") from error


def load(name: str, data_dir: str | Path | None = None, say: Say = lambda text: print(text, file=sys.stderr)) -> Dataset:
    """Read, download or generate the data set `name`.

    Args:
        name: one of `DATASETS`. It is the `name` of the result, too, by which a run finds it again; of "auto" it is the chosen one's.
        data_dir: an extracted folder, a folder that holds it or its archive, or the archive; when None, `$CONFORMER_DATA`, the cache folder
            and then a download are tried.
        say: is given a line before a download and lines of its progress.

    Raises:
        DataError: there is no such data set, or its files are not there or not what they should be.
    """
    if name not in DATASETS:
        raise DataError(f"there is no data set {name!r}; there is {', '.join(DATASETS)}")
    dataset = DATASETS[name](data_dir, say)
    return dataset if name in ("auto", dataset.name) else replace(dataset, name=name)


@contextlib.contextmanager
def place_of(name: str, before: Path | None) -> Iterator[Path | None]:
    """Where to look for the data `name` that a run had in `before`: there; or, for CIFAR that is not there any more, wherever `load` looks (None).

    Other data sets may not be looked for elsewhere: nothing tells whether they are the same. A DataError inside the block then says what was tried.
    """
    gone = before is not None and not before.exists() and name in (CIFAR10.name, CIFAR100.name)
    try:
        yield None if gone else before
    except DataError as error:
        if gone:
            raise DataError(f"the run's data is not in {before} any more, and {error}") from error
        raise


def _load_auto(data_dir: str | Path | None, say: Say) -> Dataset:
    """CIFAR-10, or coupling10 where it is nowhere to be found. Damaged files, and a `data_dir` without CIFAR-10, are errors all the same."""
    try:
        return _load_cifar(CIFAR10, data_dir, say)
    except _NotFound as error:
        if data_dir is not None:
            raise
        notice = f"THIS IS NOT CIFAR-10 but the generated data set coupling10, because {error}"
        return replace(_load_coupling10(None, say), notice=notice)


def _load_coupling10(data_dir: str | Path | None, say: Say) -> Dataset:
    if data_dir is not None:
        raise DataError(f"coupling10 is generated and reads no files; leave --data-dir {data_dir} out")
    return Dataset(
        name="coupling10",
        classes=coupling10.CLASSES,
        mean=coupling10.MEAN,
        std=coupling10.STD,
        train=Split(*coupling10.generate(50_000, split=0)),
        test=Split(*coupling10.generate(10_000, split=1)),
        source="its generator, seed 0",
        epochs=4,
    )


def _load_cifar(kind: Cifar, data_dir: str | Path | None, say: Say) -> Dataset:
    path = _find(kind, data_dir, say)
    version, contents = _read(kind, path)
    train, test = (_split(kind, version, path, contents, files) for files in (version.train_files, version.test_files))
    return Dataset(name=kind.name, classes=kind.classes, mean=kind.mean, std=kind.std, train=train, test=test, source=path)


def _find(kind: Cifar, data_dir: str | Path | None, say: Say) -> Path:
    """The folder or archive of `kind`, downloaded if need be; or an error that says where it was looked for and what is missing."""
    if data_dir is not None:
        return _find_in(Path(data_dir), kind)
    places: dict[str, Path] = {}
    if variable := os.environ.get("CONFORMER_DATA", ""):
        try:
            places["$CONFORMER_DATA"] = named = Path(with_home(variable, f"$CONFORMER_DATA ({variable})"))
        except ValueError as error:
            raise DataError(str(error)) from error
        if found := _locate(kind, named):
            return found
    places["the cache"] = cache = cache_folder()  # only now: there may be no home to have a cache in
    try:
        if found := _locate(kind, cache):
            return found
    except OSError as error:  # a home of somebody else, for one
        raise _NotFound(
            f"the cache ({cache}) cannot be read: {error.strerror}; give the data with --data-dir, or set XDG_CACHE_HOME to a folder of yours"
        ) from error
    archive, md5 = kind.versions[0].archive, kind.versions[0].md5
    missing = f"{kind.title} is not in {' or '.join(f'{name} ({place})' for name, place in places.items())}"
    download.check()
    say(f"{missing}: downloading {download.SITE}/{archive}")
    try:
        return download.fetch(archive, md5, cache, say)
    except DataError as error:
        raise _NotFound(f"{missing} and {error}; get {archive} elsewhere and give it, or its folder, with --data-dir") from error


def _find_in(place: Path, kind: Cifar) -> Path:
    """The folder or archive of `kind` that --data-dir names, holds, or holds the folder of."""
    if not place.exists():
        raise DataError(f"--data-dir: there is no folder or file {place}")
    if found := _locate(kind, place):
        return found
    missing = f"{kind.title} is not in --data-dir ({place})"
    for other in (CIFAR10, CIFAR100):
        if other is not kind and _locate(other, place):
            advice = f"give the folder of {kind.title}, or begin a run on {other.title} with --dataset {other.name}"  # which `evaluate` has not
            raise _NotFound(f"{missing}, which holds {other.title}; {advice}")
    version = kind.versions[0]
    raise _NotFound(f"{missing}; expected {version.archive} or its folder {version.folder}, from {download.SITE}")


def _locate(kind: Cifar, place: Path) -> Path | None:
    """`place` if it is a file; else the folder or archive in it that holds a version of `kind`, or is one; None if there is none.

    Raises:
        DataError: there is a folder in which some of the files are missing, and nothing better.
    """
    if place.is_file():
        return place
    incomplete = ""
    for version in kind.versions:
        for folder in (place, place / version.folder):
            missing = [file for file in version.files if not (folder / file).is_file()]
            if not missing:
                return folder
            if len(missing) < len(version.files):
                incomplete = incomplete or _lacks(folder, version, missing)
    for version in kind.versions:
        if (place / version.archive).is_file():
            return place / version.archive
    if incomplete:
        raise DataError(incomplete)
    return None


def _read(kind: Cifar, path: Path) -> tuple[Version, dict[str, bytes]]:
    """Which version of `kind` the folder or archive at `path` holds, and its files."""
    names = [file for version in kind.versions for file in version.files]
    contents = read_folder(path, names) if path.is_dir() else read_archive(path, names)
    for version in kind.versions:
        if contents.keys() >= set(version.files):
            return version, contents
    version = max(kind.versions, key=lambda version: len(contents.keys() & set(version.files)))
    missing = [file for file in version.files if file not in contents]
    raise DataError(_lacks(path, version, missing))


def _lacks(path: Path, version: Version, missing: list[str]) -> str:
    """What is said of a folder or archive in which files are missing."""
    first, last = version.train_files[0], version.train_files[-1]
    training = first if first == last else f"{first} to {last}"
    return f"{path} has no {', '.join(missing)}; {version.title} is {training} and {version.test_files[0]}"


def _split(kind: Cifar, version: Version, path: Path, contents: dict[str, bytes], files: tuple[str, ...]) -> Split:
    batches = [read_batch(version, contents[file], path / file, len(kind.classes)) for file in files]
    planes = np.concatenate([planes for planes, _ in batches]).reshape(-1, 3, SIDE, SIDE)  # (N, C, H, W), as they lie in the file
    return Split(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.concatenate([labels for _, labels in batches]))


DATASETS: dict[str, Callable[[str | Path | None, Say], Dataset]] = {
    "auto": _load_auto,
    CIFAR10.name: lambda data_dir, say: _load_cifar(CIFAR10, data_dir, say),
    CIFAR100.name: lambda data_dir, say: _load_cifar(CIFAR100, data_dir, say),
    "coupling10": _load_coupling10,
}
"""The data sets by name: how each is loaded, given where to look for it (or None) and where to say what happens. Others may be added."""
