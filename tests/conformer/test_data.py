"""Data sets: what CIFAR's binary layout is read as, where it is looked for, and a sentence for each way it can be wrong. Next: `test_archives.py`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from conformer import coupling10, data
from conformer.cifar import CIFAR10, CIFAR100
from minigrad.random import manual_seed

Cifar = Callable[..., Path]


@pytest.fixture(autouse=True)
def _nothing_in_the_usual_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CONFORMER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))


def test_images_and_labels_are_the_files_records(cifar: Cifar) -> None:
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


def test_data_is_looked_for_where_it_is_named_then_in_the_variable_then_in_the_cache(
    cifar: Cifar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CONFORMER_DATA", "~nobody-of-this-name/data")
    with pytest.raises(data.DataError, match=r"no home folder for the ~ of \$CONFORMER_DATA \(~nobody-of-this-name/data\); .*, give ./~nobody"):
        data.load("cifar10")
    monkeypatch.setenv("CONFORMER_DATA", "~/data")  # as a file of settings has it, which no shell reads
    assert data.load("cifar10").source == inside
    assert data.load("cifar10", str(cached)).source == cached


def test_data_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        data.DataError, match=r"CIFAR-10 is not in the cache \(.*no-cache.conformer\) and http:.*binary.tar.gz cannot be downloaded: .* --data-dir"
    ):
        data.load("cifar10")
    monkeypatch.setenv("CONFORMER_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"not in \$CONFORMER_DATA \(.*\) or the cache"):
        data.load("cifar10")
    with pytest.raises(data.DataError, match=r"not in --data-dir \(.*\); expected cifar-10-binary.tar.gz or its folder cifar-10-batches-bin"):
        data.load("cifar10", tmp_path)
    with pytest.raises(data.DataError, match=r"there is no folder or file .*typo"):
        data.load("cifar10", tmp_path / "typo")
    (tmp_path / "cifar.tar.gz").write_bytes(b"")
    with pytest.raises(data.DataError, match=r"cifar.tar.gz is not an archive; expected a .tar.gz or .tar file, or a folder"):
        data.load("cifar10", tmp_path / "cifar.tar.gz")
    with pytest.raises(data.DataError, match="no data set 'mnist'; there is auto, cifar10, cifar100, coupling10"):
        data.load("mnist")


def test_a_cache_that_may_not_be_entered_is_as_good_as_none(cifar: Cifar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the home of somebody else, which `sudo` and containers leave in $HOME. What was named is another matter: then it is an error."""
    is_file = Path.is_file

    def refuse(self: Path) -> bool:
        if self.is_relative_to(tmp_path / "no-cache"):
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(data.DataError, match=r"the cache \(.*no-cache.conformer\) cannot be read: Permission denied; give the data with --data-dir"):
        data.load("cifar10")
    monkeypatch.setattr(coupling10, "generate", lambda count, seed=0, split=0: (np.zeros((10, 32, 32, 3), np.uint8), np.arange(10)))
    assert re.match("THIS IS NOT CIFAR-10 but .* cannot be read: Permission denied", data.load("auto").notice)
    monkeypatch.setenv("CONFORMER_DATA", str(tmp_path / "no-cache"))
    with pytest.raises(PermissionError):
        data.load("auto")


def test_a_missing_file_is_named(cifar: Cifar) -> None:
    folder = cifar()
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(data.DataError, match=re.escape(f"{folder} has no data_batch_3.bin")):
        data.load("cifar10", folder)


@pytest.mark.parametrize("size", [0, 1, 3072, 3073 * 8 - 1, 3074 * 8])
def test_a_file_of_the_wrong_size_is_named(cifar: Cifar, size: int) -> None:
    folder = cifar()
    (folder / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(
        data.DataError, match=rf"test_batch.bin has {size:,} bytes; CIFAR-10.s binary version has a whole number of records of 3,073 bytes"
    ):
        data.load("cifar10", folder)


def test_a_label_out_of_range_is_named(cifar: Cifar) -> None:
    folder = cifar()
    with open(folder / "data_batch_5.bin", "rb+") as file:
        file.seek(2 * 3073)
        file.write(bytes([10]))
    with pytest.raises(data.DataError, match=r"data_batch_5.bin: record 2 has label 10; expected 0 to 9"):
        data.load("cifar10", folder)


def test_a_file_that_cannot_be_read_is_named(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> None:
        raise OSError(5, "Input/output error")

    folder = cifar()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(data.DataError, match=r"data_batch_1.bin cannot be read: Input/output error"):
        data.load("cifar10", folder)


def test_files_are_read_in_the_order_of_their_numbers(cifar: Cifar) -> None:
    folder = cifar(records=4)
    expected = np.concatenate([np.fromfile(folder / f"data_batch_{number}.bin", np.uint8).reshape(-1, 3073)[:, 0] for number in range(1, 6)])
    assert_array_equal(data.load("cifar10", folder).train.labels, expected)


def cifar100(folder: Path, records: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number, file in enumerate(("train.bin", "test.bin")):
        content = np.random.default_rng(number).integers(0, 256, (records, 3074), np.uint8)
        content[:, 0], content[:, 1] = 19, [99, 0, 42]  # coarse, fine
        content.tofile(folder / file)
    return folder


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    folder = cifar100(tmp_path / "cifar-100-binary")
    dataset = data.load("cifar100", tmp_path)
    assert (dataset.name, len(dataset.classes), len(set(dataset.classes)), dataset.source) == ("cifar100", 100, 100, folder)
    assert_array_equal(dataset.train.labels, [99, 0, 42])
    assert (dataset.classes[0], dataset.classes[42], dataset.classes[99]) == ("apple", "leopard", "worm")
    assert dataset.test.images[2, 0, 1, 0] == np.fromfile(folder / "test.bin", np.uint8)[2 * 3074 + 2 + 1]
    with open(folder / "test.bin", "rb+") as file:
        file.write(bytes([0, 100]))
    with pytest.raises(data.DataError, match=r"test.bin: record 0 has label 100; expected 0 to 99"):
        data.load("cifar100", tmp_path)


def test_the_classes_of_cifar10_are_the_published_ones_in_the_order_of_the_labels() -> None:
    assert CIFAR10.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_the_classes_of_cifar100_are_the_published_ones_in_the_order_of_the_labels() -> None:
    """Their order is the alphabet's; the digest is that of all names with a space between each two."""
    assert len(CIFAR100.classes) == len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert hashlib.sha256(" ".join(CIFAR100.classes).encode()).hexdigest() == "77827c4c023a75b4a96911073f98319342db3ba589d39f75bec28def799cfea8"


def test_the_checksums_are_those_of_the_page_of_the_data_sets() -> None:
    """Source: https://www.cs.toronto.edu/~kriz/cifar.html."""
    assert {version.archive: version.md5 for described in (CIFAR10, CIFAR100) for version in described.versions} == {
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    }


def test_the_channels_have_the_means_and_deviations_of_the_training_images() -> None:
    assert (CIFAR10.mean, CIFAR10.std) == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert (CIFAR100.mean, CIFAR100.std) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def test_the_other_cifar_is_named(tmp_path: Path) -> None:
    cifar100(tmp_path / "cifar-100-binary")
    advice = "give the folder of CIFAR-10, or begin a run on CIFAR-100 with --dataset cifar100"  # what every command can follow, not `train` alone
    with pytest.raises(data.DataError, match=rf"which holds CIFAR-100; {advice}$"):
        data.load("cifar10", tmp_path)


def test_coupling10_reads_no_files_and_auto_falls_back_on_it_with_a_notice(cifar: Cifar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = coupling10.generate
    monkeypatch.setattr(coupling10, "generate", lambda count, **options: whole(count // 1000, **options))
    dataset = data.load("coupling10")
    assert (dataset.name, len(dataset.train), len(dataset.test), len(dataset.classes)) == ("coupling10", 50, 10, 10)
    assert dataset.notice == ""
    assert not np.array_equal(dataset.train.images[:10], dataset.test.images)
    with pytest.raises(data.DataError, match="coupling10 is generated and reads no files"):
        data.load("coupling10", tmp_path)

    lines: list[str] = []
    fallback = data.load("auto", say=lines.append)
    assert (fallback.name, len(lines)) == ("coupling10", 1)
    assert "NOT CIFAR-10" in fallback.notice
    folder = cifar()
    assert data.load("auto", folder).name == "cifar10"
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(data.DataError, match="CIFAR-10 is not in --data-dir"):  # who names a folder wants no other data
        data.load("auto", empty)
    monkeypatch.setenv("CONFORMER_DATA", str(folder))
    assert data.load("auto").name == "cifar10"
    (folder / "test_batch.bin").write_bytes(b"damaged")
    with pytest.raises(data.DataError, match="test_batch.bin has 7 bytes"):  # and damaged data is not passed over
        data.load("auto")


IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, np.array([0, 1]), r"images are bytes \(uint8\) of shape \(N, H, W, C\), .* these are float64 of shape \(2, 8, 8, 3\)"),
        (IMAGES[..., 0], np.array([0, 1]), r"these are uint8 of shape \(2, 8, 8\)"),
        (IMAGES, np.array([[0], [1]]), r"2 images need as many labels, integers of shape \(2,\); these are int64 of shape \(2, 1\)"),
        (IMAGES, np.array([0, 1, 1]), r"of shape \(3,\)"),
        (IMAGES, np.array([0.0, 1.0]), "these are float64"),
        ([IMAGES[0], IMAGES[1, :4]], np.array([0, 1]), r"images are of one size, \(N, H, W, C\) in all, .* these are of several shapes"),
        ([IMAGES[0], IMAGES[1, :, :4]], np.array([0, 1]), "these are of several shapes"),
        (IMAGES, [[0], [0, 1]], "a label is one number; these are of several shapes"),
    ],
)
def test_what_is_no_split_is_refused(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(data.DataError, match=message):
        data.Split(images, labels)


def test_labels_of_a_few_bits_are_kept_in_64() -> None:
    split = data.Split(IMAGES, np.array([0, 255], np.uint8))
    assert split.labels.dtype == np.int64 and split.labels.tolist() == [0, 255]


def test_splits_and_data_sets_are_themselves() -> None:
    """Arrays have no truth: a comparison number by number would raise."""
    one, other = (data.Split(IMAGES, np.array([0, 1])) for _ in range(2))
    made = data.Dataset("mine", ("a", "b"), (0.5,) * 3, (0.2,) * 3, one, other, source="here")
    assert one == one and one != other and len({one, other, made}) == 3 and made in [one, made]


def test_a_split_of_lists_and_one_without_images() -> None:
    split = data.Split(IMAGES, [1, 0])  # type: ignore[arg-type]
    assert split.labels.dtype == np.int64 and split.labels.tolist() == [1, 0]
    empty = data.Split(IMAGES[:0], np.array([]))
    assert len(empty) == 0 and empty.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "b")}, "labels of mine go from 0 to 2; its 2 classes are 0 to 1"),
        ({"mean": (127.0, 127.0, 127.0)}, r"mean \(127.0, .* of mine: give one for each of the 3 channels, of pixels from 0 to 1 \(divide by 255\)"),
        ({"std": (0.0, 0.2, 0.2)}, "of pixels from 0 to 1"),
        ({"std": (64.0, 0.2, 0.2)}, "of pixels from 0 to 1"),
        ({"mean": (0.5,)}, "one for each of the 3 channels"),
        ({"mean": 0.5}, "mean 0.5, std .* of mine: give one number for each channel"),
        ({"mean": ("a", "b", "c")}, "give one number for each channel"),
        ({"epochs": 2.5}, "epochs of mine is 2.5; give a whole number"),
        ({"classes": "abc"}, "the classes of mine are 'abc'; give a sequence of their names"),
        ({"classes": (0, 1, 2)}, "the classes of mine are .0, 1, 2.; give a sequence of their names, which are strings"),
        (
            {"test": data.Split(IMAGES[:, :1], np.array([0, 2]))},
            r"images of mine are of shape \(\d+, \d+, 3\), its test images of \(1, \d+, 3\)",
        ),
    ],
)
def test_what_is_no_data_set_is_refused(changes: dict, message: str) -> None:
    train, test = data.Split(IMAGES, np.array([0, 1])), data.Split(IMAGES, np.array([0, 2]))
    right = {"classes": ("a", "b", "c"), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    assert data.Dataset("mine", train=train, test=test, source="here", **right).classes == ("a", "b", "c")
    with pytest.raises(data.DataError, match=message):
        data.Dataset("mine", source="here", **({"train": train, "test": test} | right | changes))


def test_a_data_set_of_other_sequences_and_numbers_can_be_written_as_json() -> None:
    split = data.Split(IMAGES, np.array([0, 1]))
    numbers = np.full(3, 0.5, np.float32)
    made = data.Dataset("mine", np.array(["a", "b"]), numbers, list(numbers), split, split, source="here", epochs=np.int64(3))  # type: ignore[arg-type]
    assert json.loads(json.dumps([made.classes, made.mean, made.std, made.epochs])) == [["a", "b"], [0.5] * 3, [0.5] * 3, 3]
    assert made.classes == ("a", "b") and {type(name) for name in made.classes} == {str}


def test_a_data_set_has_the_name_that_it_is_found_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold of another data set, say: else a run would be measured on the other's images."""
    split = data.Split(IMAGES, np.array([0, 1]))
    whole = data.Dataset("whole", ("a", "b"), (0.5,) * 3, (0.2,) * 3, split, split, source="here")
    monkeypatch.setitem(data.DATASETS, "fold", lambda data_dir, say: whole)
    monkeypatch.setitem(data.DATASETS, "auto", lambda data_dir, say: whole)
    assert data.load("fold").name == "fold" and data.load("auto").name == "whole"


def numbered(labels: Any, classes: int) -> data.Dataset:
    """A data set whose training images are their numbers in two bytes."""
    images = np.stack(np.divmod(np.arange(len(labels)), 256), axis=-1).astype(np.uint8)[:, None, None]  # (N, 1, 1, 2)
    test = data.Split(np.full((3, 1, 1, 2), 255, np.uint8), [0, 0, 0])  # type: ignore[arg-type]
    names = tuple(map(str, range(classes)))
    return data.Dataset("numbered", names, (0.5,) * 2, (0.2,) * 2, data.Split(images, labels), test, source="here", notice="counted", epochs=7)


def numbers(split: data.Split) -> list[int]:
    return (split.images.astype(int).reshape(-1, 2) @ [256, 1]).tolist()


@given(st.lists(st.integers(0, 4), min_size=10, max_size=300), st.data(), st.integers(0, 9))
def test_held_out_images_are_of_each_class_in_proportion_and_the_same_under_every_seed(labels: list[int], drawn: st.DataObject, seed: int) -> None:
    whole = numbered(labels, 5)
    most = len(labels) - len(set(labels))  # each class keeps one
    count = drawn.draw(st.integers(5, most))
    made = data.hold_out(whole, count)
    kept, held = numbers(made.train), numbers(made.test)
    assert len(held) == count and kept == sorted(kept) and held == sorted(held) and sorted(kept + held) == list(range(len(labels)))
    for split, chosen in ((made.train, kept), (made.test, held)):
        assert split.labels.tolist() == [labels[number] for number in chosen]
    assert (made.measured, whole.measured) == ("held-out", "test")
    assert (made.name, made.classes, made.mean, made.std, made.source, made.notice, made.epochs) == (
        whole.name, whole.classes, whole.mean, whole.std, whole.source, whole.notice, whole.epochs,
    )  # fmt: skip

    of, taken = (np.bincount(part, minlength=5) for part in (labels, made.test.labels))
    there = of > 0
    assert (taken[there] < of[there]).all()
    more = there & (taken < of - 1)  # of which more could be; one share of every class, rounded to whole images, is what was taken of it
    assert ((taken[there] - 0.5) / of[there]).max() <= ((taken[more] + 0.5) / of[more]).min(initial=1) + 1e-12

    manual_seed(seed)
    other = data.Dataset("other", whole.classes, whole.mean, whole.std, data.Split(255 - whole.train.images, labels), whole.train, "elsewhere")  # type: ignore[arg-type]
    assert_array_equal(data.hold_out(other, count).test.images, 255 - made.test.images)
    larger = drawn.draw(st.integers(count, most))
    assert set(held) <= set(numbers(data.hold_out(whole, larger).test))


def test_which_images_are_held_out_never_changes() -> None:
    """Else figures of different days would be on different images, and a run that goes on would be trained on those that were held out."""
    labels = np.arange(50) % 10
    assert numbers(data.hold_out(numbered(labels, 10), 12).test) == [0, 7, 10, 14, 18, 29, 31, 41, 42, 43, 45, 46]
    made = data.hold_out(numbered(np.arange(50_000) % 10, 10), 5003)
    assert np.bincount(made.test.labels).tolist() == [501] * 3 + [500] * 7
    assert hashlib.sha256(json.dumps(numbers(made.test)).encode()).hexdigest()[:16] == "95dc4ca91388b49f"


def test_held_out_images_are_drawn_and_not_the_first_ones() -> None:
    held = np.array(numbers(data.hold_out(numbered(np.arange(10_000) % 10, 10), 1000).test))
    assert 4700 < held.mean() < 5300 and len(set(held // 10)) > 550  # as of 1,000 in 10,000, and each class by draws of its own


def test_no_image_is_held_out_of_a_data_set_that_is_left_as_it_is() -> None:
    whole = numbered([0, 1, 0, 1], 2)
    assert data.hold_out(whole, 0) is whole


@pytest.mark.parametrize("count", [-1, 1, 4, 60_000])
def test_the_last_image_of_a_class_and_fewer_than_there_are_classes_cannot_be_held_out(count: int) -> None:
    can = r"of the 5 training images of numbered from 2 \(as many as classes\) to 3 \(all but one of each class\) can be held out"
    with pytest.raises(data.DataError, match=f"^hold_out is {count:,}, and {can}$"):
        data.hold_out(numbered([0, 1, 0, 1, 0], 2), count)
    assert sorted(data.hold_out(numbered([0, 1, 0, 1, 0], 2), 3).test.labels) == [0, 0, 1]
    assert data.hold_out(numbered([0] * 9 + [1], 3), 8).train.labels.tolist() == [0, 1]  # where one class has a single image, and one none


def test_of_too_few_images_or_of_what_is_left_of_them_none_can_be_held_out() -> None:
    few = "but the 3 training images of numbered are too few to hold out one for each of 2 classes and train on as many: give 0"
    with pytest.raises(data.DataError, match=f"^hold_out is 2, {few}$"):
        data.hold_out(numbered([0, 1, 0], 2), 2)
    held = data.hold_out(numbered([0, 1, 0, 1], 2), 2)
    assert data.hold_out(held, 0) is held
    with pytest.raises(data.DataError, match="^hold_out is 2.5; give a whole number of images$"):
        data.hold_out(numbered([0, 1, 0, 1], 2), 2.5)  # type: ignore[arg-type]
    with pytest.raises(data.DataError, match="^hold_out is 2, and images of numbered are held out already; give the whole data set$"):
        data.hold_out(held, 2)
    with pytest.raises(data.DataError, match="^measured of numbered is 'validation'; say what the images of `test` are, 'test' or 'held-out' ones$"):
        replace(held, measured="validation")


def test_without_a_home_folder_data_must_be_named(cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    folder = cifar(records=1)
    with pytest.raises(data.DataError, match=r"^there is no home folder to keep downloads in; give the data with --data-dir"):
        data.load("cifar10")
    monkeypatch.setattr(coupling10, "generate", lambda count, seed=0, split=0: (np.zeros((10, 32, 32, 3), np.uint8), np.arange(10)))
    assert data.load("auto").notice.startswith("THIS IS NOT CIFAR-10 but the generated data set coupling10, because there is no home folder")
    monkeypatch.setenv("CONFORMER_DATA", str(folder))
    assert data.load("cifar10").source == folder
