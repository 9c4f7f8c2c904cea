"""Saving and loading states: exact round trips, atomic replacement, one-sentence errors."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import SafetensorError

from minigrad import nn, safetensors_io
from minigrad.safetensors_io import load_state, replaced, save_state

STATE = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "running_mean": np.array([1.5, -2.5]),
    "num_batches_tracked": np.array(7, dtype=np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "flag": np.array([True, False]),
}


def test_a_state_and_its_metadata_come_back(tmp_path: Path):
    save_state(tmp_path / "a.safetensors", STATE, {"config": '{"depth": 6}'})
    mapping, metadata = load_state(tmp_path / "a.safetensors")
    assert metadata == {"config": '{"depth": 6}'}
    assert sorted(mapping) == sorted(STATE)
    for name, array in STATE.items():
        assert mapping[name].dtype == array.dtype and mapping[name].shape == array.shape
        np.testing.assert_array_equal(mapping[name], array)
    assert os.listdir(tmp_path) == ["a.safetensors"]


@given(
    array=hnp.arrays(st.sampled_from(["<f4", ">f8", "<f2", "<i8", "|u1", "|b1"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
def test_any_array_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray):
    path = tmp_path_factory.mktemp("state") / "a.safetensors"
    for stored in (array, array.T, array[::-1] if array.ndim else array):  # also memory that is not in C order
        save_state(path, {"x": stored})
        mapping, metadata = load_state(path)
        assert metadata == {} and mapping["x"].shape == stored.shape
        assert mapping["x"].tobytes() == stored.astype(stored.dtype.newbyteorder("<")).tobytes()


def test_loaded_arrays_are_ours_to_write(tmp_path: Path):
    save_state(tmp_path / "a.safetensors", STATE)
    first = load_state(tmp_path / "a.safetensors")[0]
    first["weight"] += 1
    np.testing.assert_array_equal(load_state(tmp_path / "a.safetensors")[0]["weight"], STATE["weight"])


def test_a_state_replaces_an_older_one_whole(tmp_path: Path):
    path = tmp_path / "last.safetensors"
    save_state(path, STATE, {"step": "1"})
    save_state(path, {"only": np.ones(3)}, {"step": "2"})
    mapping, metadata = load_state(path)
    assert list(mapping) == ["only"] and metadata == {"step": "2"}


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_file_has_the_usual_mode(tmp_path: Path):
    (tmp_path / "plain").touch()
    save_state(tmp_path / "a.safetensors", STATE)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str):
    path = tmp_path / "last.safetensors"
    save_state(path, STATE)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        with pytest.raises(OSError, match=r"cannot write .*last\.safetensors: No space left on device$"):
            save_state(path, {"x": np.ones(100)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.safetensors"]


def test_the_systems_reason_is_found_in_the_librarys_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for text, reason in (("Error while serializing: IoError(Os error (os error 28))", "No space left on device"), ("no reason", "no reason")):

        def failing(*_: object, text: str = text, **__: object) -> None:
            raise SafetensorError(text)

        monkeypatch.setattr(safetensors_io, "save_file", failing)
        with pytest.raises(OSError, match=rf"cannot write .*a\.safetensors: {reason}$"):
            save_state(tmp_path / "a.safetensors", STATE)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be opened elsewhere")
def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    handles: list[int] = []

    def fsync(handle: int) -> None:
        handles.append(handle)
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size > 0} file")

    def replace(source: Path, target: Path, really: Callable = os.replace) -> None:
        done.append("rename")
        really(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save_state(tmp_path / "a.safetensors", STATE)
    assert done == ["True file", "rename", "folder"]
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_must_be_new_takes_nobodys_place(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:  # as on some file systems
        monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "a"
    with replaced(path, new=True) as temporary:
        temporary.write_bytes(b"first")
    assert path.read_bytes() == b"first"
    with pytest.raises(FileExistsError), replaced(path, new=True) as temporary:
        temporary.write_bytes(b"second")
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["a"]


LIMITED = """
import resource, signal, sys
import numpy as np
from minigrad.safetensors_io import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_state(sys.argv[1], {"x": np.ones(int(sys.argv[2]))})
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_of_a_file_that_becomes_too_large_half_way_nothing_is_left(tmp_path: Path):
    """The library that writes fails in the middle, with a text of its own; what is said is one sentence with the system's reason."""
    path = tmp_path / "last.safetensors"
    for elements, said in ((10, ""), (1000, f"cannot write {path}: File too large\n")):
        result = subprocess.run([sys.executable, "-c", LIMITED, str(path), str(elements)], capture_output=True, text=True, timeout=60)
        assert (result.stdout, result.stderr) == (said, "")
        assert os.listdir(tmp_path) == ["last.safetensors"]
    assert len(load_state(path)[0]["x"]) == 10


@pytest.mark.parametrize("metadata", [None, {"step": "3", "words": 'größer "a"'}])
def test_a_state_without_arrays_comes_back(tmp_path: Path, metadata: dict | None):
    from safetensors import safe_open

    save_state(tmp_path / "a.safetensors", {}, metadata)
    assert load_state(tmp_path / "a.safetensors") == ({}, metadata or {})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert list(file.keys()) == []


def test_a_folder_that_does_not_exist_is_said(tmp_path: Path):
    with pytest.raises(OSError, match="cannot write .*nowhere") as caught:
        save_state(tmp_path / "nowhere" / "a.safetensors", STATE)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_saved_is_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="metadata 'step' is int"):
        save_state(tmp_path / "a.safetensors", STATE, {"step": 3})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="'name' has dtype <U3"):
        save_state(tmp_path / "a.safetensors", {"name": np.array("abc")})
    for dtype in (np.complex64, np.longdouble)[: 2 if np.dtype(np.longdouble).itemsize > 8 else 1]:  # on some systems it is float64
        with pytest.raises(TypeError, match=f"'x' has dtype {np.dtype(dtype)}; give an array of numbers of at most 64 bits"):
            save_state(tmp_path / "a.safetensors", {"x": np.ones(2, dtype)})
    with pytest.raises(ValueError, match="no array can be called '__metadata__'"):
        save_state(tmp_path / "a.safetensors", {"__metadata__": np.ones(2)})
    assert os.listdir(tmp_path) == []


def test_threads_that_save_to_one_path_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each has written its file before either gives it the name."""
    path, both, replace = tmp_path / "a.safetensors", threading.Barrier(2), os.replace

    def together(*paths: Path) -> None:
        both.wait(timeout=5)
        replace(*paths)

    monkeypatch.setattr(os, "replace", together)
    with ThreadPoolExecutor(2) as threads:
        for saved in [threads.submit(save_state, path, {"x": np.full(100, k)}) for k in range(2)]:
            saved.result()
    assert len(set(load_state(path)[0]["x"].tolist())) == 1
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_missing_file_and_a_folder_are_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"cannot read .*a\.safetensors: No such file"):
        load_state(tmp_path / "a.safetensors")
    with pytest.raises(OSError, match="cannot read"):
        load_state(tmp_path)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "header"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str):
    path = tmp_path / "a.safetensors"
    save_state(path, STATE)
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"this is not one", "cut": content[:-5], "header": b"\xff" * 8 + content[8:]}[damage])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a safetensors file") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


def test_every_byte_of_the_arrays_is_checked(tmp_path: Path):
    """The file's form stays whole: only the checksum can tell."""
    path = tmp_path / "a.safetensors"
    save_state(path, STATE, {"step": "3"})
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) - header == sum(array.nbytes for array in STATE.values())
    for place in range(header, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.safetensors is damaged: its arrays are not those that were written") as caught:
            load_state(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old", ["weight", '"shape":[2,3]', '"dtype":"F64"'])
def test_names_shapes_and_dtypes_are_checked(tmp_path: Path, old: str):
    path = tmp_path / "a.safetensors"
    save_state(path, STATE)
    new = {"weight": "height", '"shape":[2,3]': '"shape":[3,2]', '"dtype":"F64"': '"dtype":"I64"'}[old]
    content = path.read_bytes()
    assert content.count(old.encode()) == 1
    path.write_bytes(content.replace(old.encode(), new.encode()))
    with pytest.raises(ValueError, match="its arrays are not those that were written"):
        load_state(path)


def test_files_without_a_checksum_are_read(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(2)}, tmp_path / "a.safetensors", metadata={"step": "3"})
    mapping, metadata = load_state(tmp_path / "a.safetensors")
    assert mapping["w"].tolist() == [1, 1] and metadata == {"step": "3"}


def test_metadata_that_was_loaded_can_be_saved_again_with_other_arrays(tmp_path: Path):
    save_state(tmp_path / "a.safetensors", STATE, {"step": "3"})
    mapping, metadata = load_state(tmp_path / "a.safetensors")
    save_state(tmp_path / "a.safetensors", {**mapping, "weight": np.ones(2)}, metadata)
    assert load_state(tmp_path / "a.safetensors")[1] == {"step": "3"}
    with pytest.raises(ValueError, match=r"no metadata can be called 'minigrad\.checksum'"):
        save_state(tmp_path / "a.safetensors", STATE, {"minigrad.checksum": "0"})


def test_bfloat16_becomes_float32(tmp_path: Path):
    """Whatever stands before it in the file, and every number that there is."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(256, 2, 128)
    whole = {"every": every, "w": torch.arange(6.0).reshape(2, 3), "half": torch.ones(3).half(), "flag": torch.tensor([True]), "n": torch.tensor(7)}
    whole |= {"one": torch.tensor(1.5).bfloat16(), "none": torch.ones(0, 4).bfloat16()}
    save_file(whole, tmp_path / "a.safetensors", metadata={"step": "3", "größer": "a"})
    mapping, metadata = load_state(tmp_path / "a.safetensors")
    assert metadata == {"step": "3", "größer": "a"} and set(mapping) == set(whole)
    for name, tensor in whole.items():
        right = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert mapping[name].dtype == right.dtype and mapping[name].shape == right.shape and mapping[name].flags.writeable
        np.testing.assert_array_equal(mapping[name], right)
    layer = nn.Linear(3, 2)
    save_file({"weight": torch.tensor([[1.0, -2.5, 3e38]] * 2).bfloat16(), "bias": torch.zeros(2)}, tmp_path / "a.safetensors")
    layer.load_state_dict(load_state(tmp_path / "a.safetensors")[0])
    np.testing.assert_array_equal(layer.weight.numpy()[1], torch.tensor([1.0, -2.5, 3e38]).bfloat16().float())


def test_bfloat16_in_a_damaged_file(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2, dtype=torch.bfloat16)}, path)
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"0", content.replace(b"[2]", b"[3]"), content.replace(b"[0,4]", b"[0,6]"), content.replace(b"{", b" ")):
        assert damaged != content
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.safetensors is not a safetensors file that NumPy can read, or is damaged") as caught:
            load_state(path)
        assert "\n" not in str(caught.value)


def test_a_dtype_that_numpy_does_not_have_is_refused_with_advice(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2).to(torch.float8_e4m3fn), "y": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors is not a safetensors file that NumPy can read, or is damaged \(.*float8") as caught:
        load_state(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)


def test_complex_numbers_are_refused(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file({"w": np.ones(2), "x": np.ones(2, np.complex64)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: 'x' has dtype complex64, which minigrad does not have"):
        load_state(tmp_path / "a.safetensors")


def test_reads_and_writes_what_pytorch_does(tmp_path: Path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    save_state(tmp_path / "ours.safetensors", STATE)
    for name, tensor in load_file(tmp_path / "ours.safetensors").items():
        np.testing.assert_array_equal(tensor.numpy(), STATE[name])
    save_file({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "theirs.safetensors")
    np.testing.assert_array_equal(load_state(tmp_path / "theirs.safetensors")[0]["w"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("refusals", [0, 1, 5])
def test_windows_waits_for_a_reader(refusals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(safetensors_io, "_WINDOWS", True)
    pauses: list[float] = []
    left = [PermissionError(13, "in use")] * refusals

    def replace(source: Path, target: Path, really: Callable = os.replace) -> None:
        if left:
            raise left.pop()
        really(source, target)

    monkeypatch.setattr(safetensors_io.os, "replace", replace)
    monkeypatch.setattr(safetensors_io.time, "sleep", pauses.append)
    save_state(tmp_path / "a.safetensors", STATE)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6][:refusals]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]
    left += [PermissionError(13, "in use")] * 6
    with pytest.raises(OSError, match=r"cannot write .*a\.safetensors: Permission denied"):
        save_state(tmp_path / "a.safetensors", {"x": np.zeros(1)})
    assert set(load_state(tmp_path / "a.safetensors")[0]) == set(STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_what_is_not_a_file_is_not_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="cannot write .*pipe: it is not a file"):
        save_state(tmp_path / "pipe", STATE)
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1
