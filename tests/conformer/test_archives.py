"""CIFAR's archives and pickles: the official layouts are read, and what is damaged, foreign or means harm is refused by name, with nothing run."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from conformer import archives, data
from conformer.cifar import CIFAR10, CIFAR100, Version

Cifar = Callable[..., Path]
BINARY, PYTHON = CIFAR10.versions


def python2_pickle(value: Any) -> bytes:
    """`value` as cPickle of Python 2 wrote it at protocol 2: text is bytes (opcodes U, T), and an array is _reconstruct's result with a state."""
    return b"\x80\x02" + _emit(value) + b"."


def _emit(value: Any) -> bytes:
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case bytes():
            return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value
        case str():
            return _emit(value.encode())
        case None:
            return b"N"
        case list():
            return b"](" + b"".join(map(_emit, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_emit, value)) + b"t"
        case dict():
            return b"}(" + b"".join(_emit(key) + _emit(content) for key, content in value.items()) + b"u"
        case np.ndarray():
            create = b"cnumpy.core.multiarray\n_reconstruct\n" + b"(cnumpy\nndarray\n" + _emit((0,)) + _emit("b") + b"tR"
            dtype = b"cnumpy\ndtype\n" + _emit((value.dtype.str[1:], 0, 1)) + b"R" + _emit((3, "|", None, None, None, -1, -1, 0)) + b"b"
            fortran = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
            return create + b"(" + _emit(1) + _emit(value.shape) + dtype + _emit(fortran) + _emit(value.tobytes("A")) + b"tb"
    raise TypeError(value)


def batch(labels: list[int], key: str = "labels", seed: int = 0) -> dict[str, Any]:
    """What a file of a Python version holds."""
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), np.uint8)
    return {
        "batch_label": "training batch 1 of 5",
        key: labels,
        "data": images,
        "filenames": ["leptodactylus_pentadactylus_s_000004.png"] * len(labels),
    }


def folder_of(version: Version, place: Path, key: str = "labels", labels: tuple[int, ...] = (3, 0, 9)) -> Path:
    place.mkdir(parents=True)
    for seed, file in enumerate(version.files):
        (place / file).write_bytes(python2_pickle(batch(list(labels), key, seed)))
    return place


def pack(target: Path, members: dict[str, bytes], mode: Any = "w:gz") -> Path:
    with tarfile.open(target, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target


def members(folder: Path, prefix: str) -> dict[str, bytes]:
    return {prefix + path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_folder_of_the_python_version_is_read(tmp_path: Path) -> None:
    folder = folder_of(PYTHON, tmp_path / "cifar-10-batches-py")
    (folder / "batches.meta").write_bytes(b"not read")
    for place in (folder, tmp_path):
        dataset = data.load("cifar10", place)
        assert dataset.source == folder
        assert_array_equal(dataset.train.labels, [3, 0, 9] * 5)
        expected = batch([3, 0, 9], seed=5)["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert_array_equal(dataset.test.images, expected)


def test_cifar100_python_folder_has_fine_labels(tmp_path: Path) -> None:
    folder = folder_of(CIFAR100.versions[1], tmp_path / "cifar-100-python", "fine_labels", (99, 0))
    assert_array_equal(data.load("cifar100", folder).test.labels, [99, 0])
    folder_of(CIFAR100.versions[1], tmp_path / "coarse", "coarse_labels")
    with pytest.raises(data.DataError, match=r"coarse.train is not a file of CIFAR-100's Python version: expected an entry 'fine_labels', found"):
        data.load("cifar100", tmp_path / "coarse")


def test_both_versions_hold_the_same(tmp_path: Path, cifar: Cifar) -> None:
    binary = cifar(records=5)
    python = tmp_path / "cifar-10-batches-py"
    python.mkdir()
    for ours, theirs in zip(PYTHON.files, BINARY.files, strict=True):
        records = np.fromfile(binary / theirs, np.uint8).reshape(-1, 3073)
        (python / ours).write_bytes(python2_pickle({"labels": records[:, 0].tolist(), "data": records[:, 1:]}))
    first, second = data.load("cifar10", binary), data.load("cifar10", python)
    for mine, other in ((first.train, second.train), (first.test, second.test)):
        assert_array_equal(mine.images, other.images)
        assert_array_equal(mine.labels, other.labels)


@pytest.mark.parametrize("mode", ["w:gz", "w:"])
@pytest.mark.parametrize("prefix", ["cifar-10-batches-bin/", "./a/b/", ""])
def test_an_archive_is_read_and_not_unpacked(cifar: Cifar, tmp_path: Path, mode: str, prefix: str) -> None:
    folder = cifar(records=2)
    (folder / "readme.html").write_text("passed over")
    archive = pack(tmp_path / "anything.tar", members(folder, prefix), mode)
    dataset = data.load("cifar10", archive)
    assert dataset.source == archive
    assert_array_equal(dataset.train.images, data.load("cifar10", folder).train.images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anything.tar", "cifar-10-batches-bin"]  # nothing was unpacked


def test_an_archive_of_the_python_version_is_found_in_a_parent(tmp_path: Path) -> None:
    folder = folder_of(PYTHON, tmp_path / "elsewhere" / "py")
    (tmp_path / "data").mkdir()
    archive = pack(tmp_path / "data" / PYTHON.archive, members(folder, "cifar-10-batches-py/"))
    assert data.load("cifar10", tmp_path / "data").source == archive


def test_paths_that_lead_outside_an_archive_are_not_followed(cifar: Cifar, tmp_path: Path) -> None:
    folder = cifar()
    inside = members(folder, "../../")
    archive = pack(tmp_path / "sub.tar.gz", {"/etc/passwd": b"root", **inside})
    assert len(data.load("cifar10", archive).train) == 40
    assert {path.name for path in tmp_path.parent.iterdir() if path.name.startswith("data_batch")} == set()
    with tarfile.open(tmp_path / "links.tar.gz", "w:gz") as links:
        for name in BINARY.files:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(folder / name)
            links.addfile(link)
    with pytest.raises(data.DataError, match=r"links.tar.gz: expected data_batch_1.bin, .*; it holds data_batch_1.bin, .*\.\.\."):
        data.load("cifar10", tmp_path / "links.tar.gz")


def test_wrong_archives_are_refused(cifar: Cifar, tmp_path: Path) -> None:
    folder = cifar()
    whole = members(folder, "x/")

    def refused(name: str, message: str) -> None:
        with pytest.raises(data.DataError, match=rf"{name}{message}"):
            data.load("cifar10", tmp_path / name)

    pack(tmp_path / "other.tar.gz", {"cifar-100-binary/train.bin": b"", "cifar-100-binary/test.bin": b""})
    refused("other.tar.gz", ": expected data_batch_1.bin, .*; it holds cifar-100-binary/train.bin, cifar-100-binary/test.bin$")
    pack(tmp_path / "empty.tar.gz", {})
    refused("empty.tar.gz", ": expected data_batch_1.bin, .*, but it is empty")
    pack(tmp_path / "partial.tar.gz", {name: content for name, content in whole.items() if "4" not in name})
    refused("partial.tar.gz", " has no data_batch_4.bin; CIFAR-10's binary version is data_batch_1.bin to data_batch_5.bin and test_batch.bin")
    pack(tmp_path / "twice.tar.gz", {**whole, "y/test_batch.bin": b""})
    refused("twice.tar.gz", " holds test_batch.bin twice; expected one data set")
    pack(tmp_path / "sizes.tar.gz", {**whole, "x/test_batch.bin": bytes(3072)})
    refused("sizes.tar.gz", r".test_batch.bin has 3,072 bytes; .* records of 3,073 bytes")
    (tmp_path / "text.tar.gz").write_text("<html>404</html>" * 100)
    refused("text.tar.gz", " is not an archive; expected a .tar.gz or .tar file, or a folder")


def test_an_archive_cut_short_anywhere_or_damaged_is_refused(cifar: Cifar, tmp_path: Path) -> None:
    content = pack(tmp_path / "whole.tar.gz", members(cifar(), "x/")).read_bytes()
    path = tmp_path / "cut.tar.gz"
    for length in [1, 2, 10, 100, len(content) // 2, len(content) - 9, len(content) - 8, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(data.DataError, match=r"cut.tar.gz (is cut short|is damaged|is not an archive)"):
            data.load("cifar10", path)
    for place in (len(content) // 3, len(content) - 6):  # the last is in gzip's checksum
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(data.DataError, match=r"cut.tar.gz .*(damaged|cut short)"):
            data.load("cifar10", path)


def test_a_member_that_is_too_large_is_refused(cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(tmp_path / "a.tar.gz", members(cifar(), ""))
    monkeypatch.setattr(archives, "LARGEST", 1000)
    with pytest.raises(data.DataError, match=r"a.tar.gz: data_batch_1.bin has 24,584 bytes; expected at most 1,000"):
        data.load("cifar10", archive)


def test_files_that_are_too_large_together_are_refused(cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar()
    archive = pack(tmp_path / "a.tar.gz", members(folder, ""))
    monkeypatch.setattr(archives, "LARGEST", 100_000)
    for place in (f"{folder}.", "a.tar.gz: "):
        with pytest.raises(
            data.DataError,
            match=rf"{place}data_batch_5.bin has 24,584 bytes, 122,920 with those before it; expected at most 100,000 for a data set",
        ):
            data.load("cifar10", folder if place.startswith(str(folder)) else archive)
    with open(folder / "data_batch_1.bin", "r+b") as file:
        file.truncate(2**33)  # one hole, which takes no space on the disk
    with pytest.raises(data.DataError, match=r"data_batch_1.bin has 8,589,934,592 bytes; expected at most 100,000 for a data set"):
        data.load("cifar10", folder)


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_that_would_fill_the_memory_is_refused(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=kind) as archive:
        archive.addfile(tarfile.TarInfo("x" * 100_000))
    monkeypatch.setattr(archives, "LARGEST_HEADERS", 50_000)
    with pytest.raises(data.DataError, match=r"a.tar.gz has more than 50,000 bytes of names and other headers"):
        data.load("cifar10", tmp_path / "a.tar.gz")


def test_an_archive_with_holes_or_with_a_size_that_cannot_be_is_refused(cifar: Cifar, tmp_path: Path) -> None:
    names = list(members(cifar(), ""))
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo(names[0])
        member.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(member)
    header = bytearray((tmp_path / "a.tar").read_bytes())
    with pytest.raises(data.DataError, match=f"a.tar: {names[0]} is stored with holes"):
        data.load("cifar10", tmp_path / "a.tar")
    header[124:136] = b"\x80" + b"\xff" * 11  # the size, in base 256
    header[156:157] = tarfile.REGTYPE
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    (tmp_path / "b.tar").write_bytes(header)
    with pytest.raises(data.DataError, match=f"b.tar(: {names[0]} has .* bytes| is damaged)"):
        data.load("cifar10", tmp_path / "b.tar")


def read(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    return archives.read_batch(PYTHON, content, Path("data_batch_1"), 10)


def test_an_array_in_columns_is_read() -> None:
    content = batch([1, 2, 3])
    planes, _ = read(python2_pickle(content | {"data": np.asfortranarray(content["data"])}))
    assert_array_equal(planes, content["data"])


@pytest.mark.parametrize(
    ("content", "asks"),
    [
        (b"cos\nsystem\n(S'touch harm'\ntR.", "os.system"),
        (b"\x80\x02cbuiltins\neval\n(U\x0f__import__('os')tR.", "builtins.eval"),
        (b"(S'touch harm'\nios\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "os.system"),
        (b"\x80\x02cnumpy\nload\n(U\x01xtR.", "numpy.load"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
        (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.", "numpy.ndarray.__init__"),
    ],
)
def test_a_pickle_that_would_run_something_is_refused(content: bytes, asks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(data.DataError, match=rf"data_batch_1 is not a file of CIFAR-10's Python version: .* \(it asks for {asks}\)"):
        read(content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, r"expected an array of bytes of shape \(N, 3072\)"),
        ({"data": np.zeros((2, 3072), np.float64)}, "expected an array of bytes"),
        ({"data": np.zeros((2, 3071), np.uint8)}, "expected an array of bytes"),
        ({"data": np.zeros(6144, np.uint8)}, "expected an array of bytes"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "it holds no images"),
        ({"labels": [1]}, "expected a list of 2 whole numbers as 'labels'"),
        ({"labels": [1, b"2"]}, "expected a list of 2 whole numbers"),
        ({"labels": [1, True]}, "expected a list of 2 whole numbers"),
        ({"labels": {"1": 2}}, "expected a list of 2 whole numbers"),
        ({"labels": [1, 10]}, "record 1 has label 10; expected 0 to 9"),
        ({"labels": [-1, 1]}, "record 0 has label -1; expected 0 to 9"),
    ],
)
def test_wrong_contents_of_a_pickle_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(data.DataError, match=rf"data_batch_1.*{message}"):
        read(python2_pickle(batch([1, 2]) | change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a pickle of plain values and arrays"),
        (b"hello", "expected a pickle of plain values and arrays"),
        (python2_pickle(batch([1]))[:-10], "expected a pickle"),
        (python2_pickle([1, 2]), "expected a dictionary, found list"),
        (python2_pickle({}), "expected an entry 'data', found none"),
        (python2_pickle({"data": 1}), "expected an entry 'labels', found 'data'"),
        (python2_pickle({"data": 1, (1, (2,)): 3}), r"expected a pickle of plain values and arrays \(it has keys that are no text"),
        (python2_pickle({"data": 1, 2: 3}), "expected a pickle of plain values and arrays"),
        (b"\x80\x02}K\x01K\x02s.", "expected a pickle of plain values and arrays"),  # one key by itself, at protocol 2
        (b"(K\x01K\x02d.", "expected a pickle of plain values and arrays"),  # and at protocol 0
        (b"\x80\x04\x8f.", r"expected a pickle of plain values and arrays \(it holds something else\)"),  # a set
        (b"(S'data'\n(inumpy\nndarray\nd.", "expected an entry 'labels', found 'data'$"),
        (b"(S'data'\n(inumpy\nndarray\nS'labels'\n]d.", "expected an array of bytes"),  # an array of which nothing is said
    ],
)
def test_what_is_no_batch_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(data.DataError, match=f"data_batch_1 is not a file of CIFAR-10's Python version: {message}"):
        read(content)


def test_a_key_that_takes_for_ever_to_hash_is_refused() -> None:
    """A tuple of two tuples of two tuples ..., 60 deep: few bytes, and 2**60 steps."""
    key = b"K\x01\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60
    for set_item in (b"}" + key + b"K\x01s", b"}(" + key + b"K\x01u", b"(" + key + b"K\x01d", b"\x8f(" + key + b"\x90"):
        with pytest.raises(data.DataError, match="expected a pickle of plain values and arrays"):
            read(b"\x80\x02" + set_item + b".")


def test_a_large_number_for_a_value_to_remember_takes_no_memory() -> None:
    tracemalloc.start()
    with pytest.raises(data.DataError, match="expected an entry 'data', found none"):
        read(b"\x80\x02}r\xff\xff\xff\x07.")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_pickle_of_python_3_is_read() -> None:
    """As NumPy 1 wrote it: text is text, bytes are bytes."""
    content = batch([7])
    planes, labels = read(pickle.dumps(content, 3).replace(b"cnumpy._core.", b"cnumpy.core."))
    assert_array_equal(planes, content["data"])
    assert labels.tolist() == [7]


SMALL = python2_pickle({"labels": [1], "data": np.arange(3072).astype(np.uint8).reshape(1, 3072)})


@given(st.integers(0, 99), st.integers(0, 255))
def test_any_damage_ends_in_a_sentence_or_in_a_batch(place: int, value: int) -> None:
    damaged = bytearray(SMALL)
    damaged[place if place < 50 else place - 100] = value
    try:
        planes, labels = read(bytes(damaged))
    except data.DataError as error:
        assert str(error).startswith("data_batch_1")
    else:
        assert planes.shape == (len(labels), 3072)
