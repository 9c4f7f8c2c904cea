"""Reads the files that `torch.save` writes, without PyTorch and without running anything in them: published checkpoints, most of all.

    state = pth.load("Conformer_tiny_patch16.pth")
    model.load_state_dict(state)

Such a file is a pickle, and a pickle is a program for a machine with a stack: it names classes and functions, and says what to call them with.
Python's own machine (`pickle`) does as it is told. The one here (`_unpickle`) has only the instructions that make what torch.save writes, and a name
means something only if it is in `_meaning`. Whatever else a file names becomes an `Unread`, which nothing can be done with.

Where the bytes are depends on the age of the file. Since PyTorch 1.6 it is a ZIP archive of the pickle and one member for each storage, uncompressed.
Before that it was a row of pickles, the fourth of which is the object and the fifth the order of the storages, whose bytes follow.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html, torch/serialization.py, and pickletools.py for the instructions.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickletools
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

MOST_COPIED = 16
"""How many times as large as its file what is read may be: tensors that share a storage have copies of their own here."""


class Unread:
    """Stands for a class or function that a file names, or an object of it: for whatever is no number, text, list, tuple, set, dict or tensor.

    Attributes:
        kind: module and name of the class, or of the function that makes the object.
    """

    def __init__(self, kind: str):
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}, not read>"


def load(path: str | os.PathLike[str]) -> Any:
    """Read a file that `torch.save` has written.

    Args:
        path: the file, usually called .pth or .pt.

    Returns:
        What was saved, with NumPy arrays for tensors and parameters, on whatever device these were, each with memory of its own: for a state_dict an
        OrderedDict, name -> array, which `Module.load_state_dict` takes. bfloat16 becomes float32, which has all of its numbers. What is no number,
        text, list, tuple, set, dict or tensor is `Unread`, NumPy's arrays and numbers among it.

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
            archive = file.read(4) == b"PK\x03\x04"  # as PyTorch tells: a ZIP archive may begin anywhere, and its end stand in any file
            file.seek(0)
            return _read_archive(file) if archive else _read_pickles(file.read())
        except _Refused as reason:
            raise ValueError(f"{path} {reason}") from None
        except Exception as error:  # of a damaged file, zipfile and pickletools raise nearly anything
            if isinstance(error, OSError) and error.errno:
                raise type(error)(error.errno, f"cannot read {path}: {error.strerror}") from error
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ValueError(f"{path} is not a file that torch.save has written, or is damaged ({what})") from error


class _Refused(Exception):
    """Why a file is not read; follows its name."""


def _read_archive(file: IO[bytes]) -> Any:
    length = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise _Refused(f"is a ZIP archive, but not one that torch.save has written ({len(pickles)} files in it are called data.pkl)")
        folder = pickles[0].removesuffix("data.pkl")
        if folder + "constants.pkl" in members:
            raise _Refused("is a program that torch.jit.save has written; save the state_dict() of its module with torch.save")

        def read(name: str) -> bytes:
            member = members[folder + name]
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise _Refused(f"is damaged: {name} is compressed, which torch.save does not do")
            return archive.read(member)  # checks the member's CRC-32

        big = folder + "byteorder" in members and read("byteorder") == b"big"
        return _unpickle(io.BytesIO(read("data.pkl")), lambda kind, key, count: _numbers(read(f"data/{key}"), kind, count, big), length)


def _read_pickles(data: bytes) -> Any:
    file = io.BytesIO(data)
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
        if int.from_bytes(file.read(8), "little") != count:
            raise _Refused(f"is damaged: storage {key} is not as long as its tensors say")
        arrays[key] = _numbers(file.read(count * _size(kind)), kind, count, big=False)
    file.seek(start)
    return _unpickle(file, lambda kind, key, count: arrays.pop(key), len(data))


_NOT_YET = np.empty(0)
"""The numbers of a storage that has not been read."""


def _no_storage(kind: str, key: str, count: int) -> np.ndarray:
    """For pickles in which torch.save refers to no storage."""
    raise _Refused("is damaged: there is a storage where torch.save writes none")


def _size(kind: str) -> int:
    """Bytes a number."""
    if kind not in DTYPES:
        raise _Refused(f"holds numbers of a dtype that minigrad does not have ({kind}Storage); save them as real ones of another (PyTorch: .float())")
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


# --- tensors


class _Tensors:
    """Makes the arrays of one file.

    Args:
        most: bytes that they may have together; a small file must not become many large arrays.
    """

    def __init__(self, most: int):
        self.left = most
        self.given: set[int] = set()  # by id: storages that an array has for its own

    def make(self, numbers: Any, offset: Any, shape: Any, strides: Any, grad: bool = False, hooks: Any = None, metadata: Any = None) -> Any:
        """`torch._utils._rebuild_tensor_v2`."""
        if type(numbers) is not np.ndarray or type(shape) is not tuple or not all(type(n) is int for n in (offset, *shape, *strides)):
            raise _Refused("is damaged: a tensor is not made of a storage and whole numbers")
        if numbers is _NOT_YET:
            return numbers
        count = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min(offset, *shape, *strides, 0) < 0 or (count and last >= len(numbers)):
            raise _Refused(f"is damaged: a tensor of shape {shape} is not within its storage of {len(numbers)} numbers")
        if count > len(numbers):
            raise _Refused(f"holds a tensor of shape {shape} whose {count} elements share {len(numbers)} numbers; save it as .contiguous()")
        self.left -= count * numbers.itemsize
        if self.left < 0:
            raise _Refused(f"holds tensors that share storages, and are more than {MOST_COPIED} times as large as it; save them as .clone()")
        array = np.lib.stride_tricks.as_strided(numbers[offset:], shape, [stride * numbers.itemsize for stride in strides])
        if count < len(numbers) or not array.flags.c_contiguous or id(numbers) in self.given:
            array = array.copy()
        else:
            self.given.add(id(numbers))
            array = numbers.reshape(shape)
        marks = [name for name, value in metadata.items() if value] if type(metadata) is dict else []
        if marks not in ([], ["neg"]):  # a conjugate complex tensor, most of all
            raise _Refused(f"holds a tensor of a kind that minigrad does not have ({', '.join(map(str, marks))}); save it as .resolve_conj()")
        return np.negative(array) if marks else array


def _meaning(tensors: _Tensors) -> dict[str, Callable[..., Any]]:
    """What is done for the names that mean something: nothing but to make containers, numbers and arrays."""
    return {
        "collections.OrderedDict": collections.OrderedDict,
        "torch.Size": tuple,
        "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # how bytes are written
        **{f"{module}.set": lambda values: {_key(value) for value in values} for module in ("builtins", "__builtin__")},
        **{f"{module}.complex": complex for module in ("builtins", "__builtin__")},
        "torch._utils._rebuild_tensor": tensors.make,
        "torch._utils._rebuild_tensor_v2": tensors.make,
        "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, requires_grad, hooks, state: data,
    }


def _key(value: Any) -> Any:
    """What may be the key of a dict, or in a set. No tuples of tuples: hashing takes as long as they are large, which may be without end."""
    parts = value if type(value) is tuple else (value,)
    if not all(type(part) in (str, int, float, bool, bytes, type(None), Unread) for part in parts):
        raise _Refused("has a dict or a set of what is neither text nor numbers; save its values by name")
    return value


# --- the machine


def _unpickle(file: IO[bytes], storage: Callable[[str, str, int], np.ndarray], length: int = 1 << 20) -> Any:
    """The object of one pickle; the file stands behind it then.

    Args:
        file: where it begins.
        storage: gives a storage's numbers, by its kind ("Float"), its key and how many they are; it is called once for each.
        length: of the whole file in bytes.
    """
    meaning = _meaning(_Tensors(MOST_COPIED * length + (1 << 20)))
    known: dict[str, np.ndarray] = {}
    stack: list[Any] = []
    marks: list[int] = []  # how high the stack was at each MARK that is open
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = marks.pop()
        values = stack[place:]
        del stack[place:]
        return values

    def call(function: Any, arguments: Any) -> Any:
        kind = function.kind if type(function) is Unread else ""
        if kind == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes; the rest are its type and they
            return call(arguments[0], arguments[2])
        if kind in meaning:
            return meaning[kind](*arguments)
        if kind.startswith("torch._utils._rebuild_"):
            what = f"a tensor of a kind that minigrad does not have ({kind.rpartition('.')[2]})"
            raise _Refused(f"holds {what}; save it as a dense one (PyTorch: .to_dense(), .dequantize())")
        return Unread(kind or "?")

    def refer(pid: Any) -> Any:
        what, kind, *rest = pid
        if what == "module":  # a class and its source, in files of before PyTorch 1.6
            return kind
        key, _, count, *view = rest
        name = kind.kind.rpartition(".")[2] if type(kind) is Unread else ""
        if what != "storage" or not name.endswith("Storage") or type(key) is not str or type(count) is not int or any(view):
            raise _Refused("is damaged: it refers to what is not a storage")
        if key not in known:
            known[key] = storage(name.removesuffix("Storage"), key, count)
        return known[key]

    def put(items: list[Any], target: Any) -> None:
        if isinstance(target, dict):
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif type(target) is not Unread:
            raise _Refused("is damaged: it puts something into what is not a dict")

    def extend(items: list[Any], target: Any) -> None:
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Unread:
            raise _Refused("is damaged: it appends something to what is not a list")

    for instruction, argument, _ in pickletools.genops(file):
        name = instruction.name
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]  # type: ignore[index]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])  # type: ignore[index]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "GLOBAL":
            stack.append(Unread(str(argument).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [Unread(f"{stack[-2]}.{stack[-1]}")]
        elif name in ("REDUCE", "NEWOBJ"):
            stack[-2:] = [call(stack[-2], stack[-1])]
        elif name == "BINPERSID":
            stack[-1] = refer(stack[-1])
        elif name == "SETITEMS":
            put(since_mark(), stack[-1])
        elif name == "SETITEM":
            put([stack.pop(-2), stack.pop()], stack[-1])
        elif name == "APPENDS":
            extend(since_mark(), stack[-1])
        elif name == "APPEND":
            extend([stack.pop()], stack[-1])
        elif name == "BUILD":
            stack.pop()  # attributes: of an OrderedDict its _metadata, of the rest what is not read
        elif name == "POP":
            stack.pop()
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"has the instruction {name}, which torch.save does not write")
    raise _Refused("is damaged: it ends too early")


_VALUES = frozenset(
    ("BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8").split()
)  # fmt: skip
"""Instructions that put their argument on the stack."""
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
