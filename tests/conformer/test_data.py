"""CIFAR-10's binary layout: what is read, where it is looked for, and the sentence for each way it can be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from conformer import data

Cifar = Callable[..., Path]


@pytest.fixture(autouse=True)
def _nothing_in_the_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CONFORMER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))


def test_images_and_labels(cifar: Cifar) -> None:
    folder = cifar(records=3)
    dataset = data.load("cifar10", folder)
    assert (dataset.name, len(dataset.classes), dataset.source) == ("cifar10", 10, folder)
    assert (len(dataset.train), len(dataset.test)) == (15, 3)
    for split in (dataset.train, dataset.test):
        assert split.images.shape == (len(split), 32, 32, 3)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        assert split.images.flags.c_contiguous
    record = np.frombuffer((folder / "data_batch_2.bin").read_bytes(), np.uint8)[3073 : 2 * 3073]  # the second of the second file: number 4
    assert dataset.train.labels[4] == record[0]
    for row, column, channel in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (7, 29, 1), (31, 31, 2)]:
        assert dataset.train.images[4, row, column, channel] == record[1 + 1024 * channel + 32 * row + column]


def test_folder_parent_variable_and_cache(cifar: Cifar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = cifar(records=2, folder="data/cifar-10-batches-bin", seed=1)
    cached = cifar(records=2, folder="cache/conformer/cifar-10-batches-bin", seed=2)
    assert data.load("cifar10", inside).source == inside
    assert data.load("cifar10", inside.parent).source == inside
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.load("cifar10").source == cached
    monkeypatch.setenv("CONFORMER_DATA", str(tmp_path / "empty"))  # holds other data sets, say
    assert data.load("cifar10").source == cached
    monkeypatch.setenv("CONFORMER_DATA", str(inside.parent))
    assert data.load("cifar10").source == inside
    assert data.load("cifar10", str(cached)).source == cached


def test_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(data.DataError, match=r"CIFAR-10 is not in the cache \(.*no-cache.conformer\): get https://.*binary.tar.gz, .* --data-dir"):
        data.load("cifar10")
    monkeypatch.setenv("CONFORMER_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"not in \$CONFORMER_DATA \(.*\) and the cache"):
        data.load("cifar10")
    with pytest.raises(data.DataError, match=r"not in --data-dir \(.*\): get"):
        data.load("cifar10", tmp_path)
    with pytest.raises(data.DataError, match=r"there is no folder .*typo"):
        data.load("cifar10", tmp_path / "typo")
    (tmp_path / "cifar.tar.gz").write_bytes(b"")
    with pytest.raises(data.DataError, match=r"cifar.tar.gz is a file; unpack"):
        data.load("cifar10", tmp_path / "cifar.tar.gz")
    with pytest.raises(data.DataError, match="no data set 'mnist'; there is cifar10"):
        data.load("mnist")


def test_missing_file(cifar: Cifar) -> None:
    folder = cifar()
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(data.DataError, match=re.escape(f"{folder} has no data_batch_3.bin")):
        data.load("cifar10", folder)


@pytest.mark.parametrize("size", [0, 1, 3072, 3073 * 8 - 1, 3074 * 8])
def test_wrong_size(cifar: Cifar, size: int) -> None:
    folder = cifar()
    (folder / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(data.DataError, match=rf"test_batch.bin has {size:,} bytes; expected .* records of 3,073 bytes"):
        data.load("cifar10", folder)


def test_label_out_of_range(cifar: Cifar) -> None:
    folder = cifar()
    with open(folder / "data_batch_5.bin", "rb+") as file:
        file.seek(2 * 3073)
        file.write(bytes([10]))
    with pytest.raises(data.DataError, match=r"data_batch_5.bin: record 2 has label 10; expected 0 to 9"):
        data.load("cifar10", folder)


def test_unreadable_file(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    folder = cifar()
    monkeypatch.setattr(np, "fromfile", fail)
    with pytest.raises(data.DataError, match=r"data_batch_1.bin cannot be read: Input/output error"):
        data.load("cifar10", folder)


def test_order_of_the_files(cifar: Cifar) -> None:
    folder = cifar(records=4)
    expected = np.concatenate([np.fromfile(folder / f"data_batch_{number}.bin", np.uint8).reshape(-1, 3073)[:, 0] for number in range(1, 6)])
    assert_array_equal(data.load("cifar10", folder).train.labels, expected)
