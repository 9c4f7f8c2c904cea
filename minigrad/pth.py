"""Reads the files that `torch.save` writes, without PyTorch and without running anything in them: published checkpoints, most of all.

    state = pth.load("Conformer_tiny_patch16.pth")
    model.load_state_dict(state)

Such a file is a pickle, and a pickle is a program: it names classes and functions, and says what to call them with. Here a name means something only
if it is that of an OrderedDict, of a storage (an array's bytes and their type), or of a function that makes a tensor of a storage. Whatever
else a file names becomes an `Unread`, which ignores what it is given.

Where the bytes are depends on the age of the file. Since PyTorch 1.6 it is a ZIP archive of the pickle and one member for each storage, uncompressed.
Before that it was a row of pickles, the fourth of which is the object and the fifth the order of the storages, whose bytes follow.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html and torch/serialization.py.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

__all__ = ["Unread", "load"]

MAGIC = 0x1950A86A20F9469CFC6C
"""What the first pickle of an old file holds."""

BFLOAT16 = "bfloat16"  # NumPy has none: see `_numbers`
DTYPES = {
    "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": BFLOAT16,
    "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?",
}  # fmt: skip
"""What the numbers of `torch.FloatStorage` and its like are."""


class Unread:
    """Stands for an object of a file that is none of numbers, text, containers and tensors. It knows what it is an object of, and nothing else.

    Attributes:
        kind: module and name of its class, or of the function that makes it.
    """

    kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Unread:
        """Ignores what the object would be made of, as all methods below ignore what it would hold."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Unread:
        """For a function that is looked up by another one, such as a class's method."""
        return self

    def append(self, value: Any) -> None:
        """As of a list."""

    def extend(self, values: Any) -> None:
        """As of a list."""

    def __repr__(self) -> str:
        return f"<{self.kind}, not read>"


class _Storage:
    """The type of a storage, by its name in a file."""

    def __init__(self, kind: str):
        self.kind = kind


def load(path: str | os.PathLike[str]) -> Any:
    """Read a file that `torch.save` has written.

    Args:
        path: the file, usually called .pth or .pt.

    Returns:
        What was saved, with NumPy arrays for tensors and parameters, on whatever device these were, each with memory of its own: for a state_dict an
        OrderedDict, name -> array, which `Module.load_state_dict` takes. bfloat16 becomes float32, which has all of its numbers. Objects of other
        classes are `Unread`.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not such a file (a program saved by `torch.jit.save` is none), is damaged, or holds a tensor of a kind that minigrad does
            not have, such as a complex or sparse one.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise type(error)(error.errno, f"cannot read {path}: {error.strerror}") from error
    with file:
        try:
            return _read_archive(file) if zipfile.is_zipfile(file) else _read_pickles(file)
        except _Refused as reason:
            raise ValueError(f"{path} {reason}") from None
        except Exception as error:  # of a damaged file, pickle and zipfile raise nearly anything
            if isinstance(error, OSError) and error.errno:
                raise type(error)(error.errno, f"cannot read {path}: {error.strerror}") from error
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ValueError(f"{path} is not a file that torch.save has written, or is damaged ({what})") from error


class _Refused(Exception):
    """Why a file is not read; follows its name."""


def _read_archive(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refused("is a ZIP archive, but not one that torch.save has written (there is no data.pkl in it)")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in members:
            raise _Refused("is a program that torch.jit.save has written; save the state_dict() of its module with torch.save")

        def read(name: str) -> bytes:
            member = members[folder + name]
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise _Refused(f"is damaged: {name} is compressed, which torch.save does not do")
            return archive.read(member)  # checks the member's CRC-32

        big = folder + "byteorder" in members and read("byteorder") == b"big"
        return _unpickle(io.BytesIO(read("data.pkl")), lambda kind, key, count: _numbers(read(f"data/{key}"), kind, count, big))


def _read_pickles(file: IO[bytes]) -> Any:
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if _unpickle(file, _no_storage) != MAGIC:
        raise _Refused("is not a file that torch.save has written")
    for _ in ("the protocol's version", "the machine's byte order, which is not that of the storages"):
        _unpickle(file, _no_storage)
    start = file.tell()
    asked: dict[str, tuple[str, int]] = {}

    def note(kind: str, key: str, count: int) -> np.ndarray:
        asked[key] = kind, count
        return _NOT_YET

    _unpickle(file, note)  # the storages come after the object, and how long each is stands in the object
    arrays = {}
    for key in _unpickle(file, _no_storage):
        kind, count = asked[key]
        if int.from_bytes(file.read(8), "little") != count or count * _size(kind) > length - file.tell():
            raise _Refused(f"is damaged: storage {key} is not as long as its tensors say")
        arrays[key] = _numbers(file.read(count * _size(kind)), kind, count, big=False)
    file.seek(start)
    return _unpickle(file, lambda kind, key, count: arrays.pop(key))


_NOT_YET = np.empty(0)
"""The numbers of a storage that has not been read."""


def _no_storage(kind: str, key: str, count: int) -> np.ndarray:
    """For pickles in which torch.save refers to no storage."""
    raise _Refused("is damaged: there is a storage where torch.save writes none")


def _size(kind: str) -> int:
    """Bytes a number."""
    if kind not in DTYPES:
        raise _Refused(f"holds numbers of a kind that minigrad does not have ({kind}Storage); save them as real numbers (PyTorch: .float())")
    return 2 if DTYPES[kind] == BFLOAT16 else np.dtype(DTYPES[kind]).itemsize


def _numbers(data: bytes, kind: str, count: int, big: bool) -> np.ndarray:
    """The numbers of a storage as a flat array, in this machine's byte order."""
    if len(data) != count * _size(kind):
        raise _Refused(f"is damaged: {count} numbers of {_size(kind)} bytes are {len(data)} bytes")
    order = ">" if big else "<"
    if DTYPES[kind] == BFLOAT16:  # the first half of a float32
        return (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    dtype = np.dtype(DTYPES[kind])
    return np.frombuffer(data, dtype.newbyteorder(order)).astype(dtype)


def _unpickle(file: IO[bytes], storage: Callable[[str, str, int], np.ndarray]) -> Any:
    """The object of one pickle. `storage` is called once for each storage, with its kind, key and count, and gives its numbers."""
    known: dict[str, np.ndarray] = {}
    given: set[int] = set()  # by id: arrays that a tensor has for its own

    def tensor(numbers: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any) -> np.ndarray:
        """`torch._utils._rebuild_tensor_v2`; what comes after the strides are requires_grad, hooks and metadata."""
        if numbers is _NOT_YET:
            return numbers
        count = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min(offset, *shape, *strides, 0) < 0 or (count and last >= len(numbers)):
            raise _Refused(f"is damaged: a tensor of shape {tuple(shape)} is not within its storage of {len(numbers)} numbers")
        if count > len(numbers):  # a small file must not become a large array
            raise _Refused(f"holds a tensor of shape {tuple(shape)} that has {len(numbers)} numbers several times; save it as .contiguous()")
        view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, [stride * numbers.itemsize for stride in strides])
        if count < len(numbers) or not view.flags.c_contiguous or id(numbers) in given:
            return view.copy()
        given.add(id(numbers))
        return numbers.reshape(shape)

    meaning: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how bytes are written
        ("torch", "Size"): tuple,
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
        ("torch._utils", "_rebuild_parameter_with_state"): lambda data, requires_grad, hooks, state: data,
        ("torch._tensor", "_rebuild_from_type_v2"): lambda function, kind, arguments, state: function(*arguments),
    }

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in meaning:
                return meaning[module, name]
            if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage"):
                return _Storage(name.removesuffix("Storage"))
            if module == "torch._utils" and name.startswith("_rebuild_"):
                raise _Refused(f"holds a tensor of a kind that minigrad does not have ({name}); save it as a dense one of real numbers")
            return type(name, (Unread,), {"kind": f"{module}.{name}"})

        def persistent_load(self, pid: Any) -> Any:
            what, kind, *rest = pid
            if what == "module":  # a class and its source, in files of before PyTorch 1.6
                return kind
            key, _, count, *view = rest
            if what != "storage" or not isinstance(kind, _Storage) or any(view):
                raise _Refused("is damaged: it refers to what is not a storage")
            if key not in known:
                known[key] = storage(kind.kind, key, count)
            return known[key]

    return Reader(file, encoding="utf-8").load()
