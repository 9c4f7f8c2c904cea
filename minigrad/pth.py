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
import errno
import io
import math
import os
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from minigrad import backend

__all__ = ["Unread", "load"]

MAGIC = 0x1950A86A20F9469CFC6C
"""What the first pickle of an old file holds."""

BFLOAT16 = "bfloat16"  # NumPy has none: see `_numbers`
DTYPES = {
    "Double": "f8", "Float": "f4", "Half": "f2", "BFloat16": BFLOAT16,
    "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1", "Byte": "u1", "Bool": "?", "Untyped": "u1",
}  # fmt: skip
"""What the numbers of `torch.FloatStorage` and its like are."""

UNSIGNED = {"torch.uint16": "u2", "torch.uint32": "u4", "torch.uint64": "u8"}
"""Dtypes that no kind of storage has: their tensors are of untyped storages, which are bytes."""

ANOTHER_DTYPE = "save them in another (PyTorch: .float(), .dequantize() of quantised ones, torch.view_as_real() of complex ones)"
BYTES_ONLY = "torch.bits", "torch.float4"
"""Dtypes, by the beginnings of their names, that PyTorch itself does nothing with: neither .float() nor .to() takes them."""

REMEDIES = {
    "_rebuild_sparse_tensor": "; save it as .to_dense()",
    "_rebuild_qtensor": "; save it as .dequantize()",
    "_rebuild_nested_tensor": "; save the list of its .unbind()",
    "_rebuild_meta_tensor_no_storage": "; such a one has no numbers",
}
"""What to do about tensors that PyTorch makes with another function of `torch._utils`; for the rest there is no advice."""

MOST_PARTS = 100
"""How long a tuple may be that is a key, and others of which nobody writes long ones. A hostile file could have the same one looked through, part by
part, with every few of its bytes."""

MOST_COPIED = 16
"""How many times as large as its file what is read may be: tensors that share a storage have copies of their own here, and a hostile file could
have anything copied again and again."""


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
        OrderedDict, name -> array, which `Module.load_state_dict` takes. bfloat16 becomes float32, which has all of its numbers; a defaultdict or
        Counter becomes a dict, and a frozenset a set. What is no number, text, list, tuple, set, dict or tensor is `Unread`, with all that is in it:
        whole modules, namedtuples (such as `x.max(0)` gives), and NumPy's arrays and numbers, too.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not such a file (a program saved by `torch.jit.save` is none), is damaged, was written with `pickle_protocol=0`, or
            holds a tensor of a kind that minigrad does not have, such as a complex or sparse one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            archive = file.read(4) == b"PK\x03\x04"  # as PyTorch tells: a ZIP archive may begin anywhere, and its end stand in any file
            file.seek(0)
            return _read_archive(file) if archive else _read_pickles(file.read())
    except _Refused as reason:
        raise ValueError(f"{path} {reason}") from None
    except MemoryError:  # of the machine, not of the file
        raise
    except Exception as error:  # of a damaged file, zipfile and pickletools raise nearly anything
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # zipfile seeks to where the file says, perhaps before its start
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
        return _unpickle(io.BytesIO(read("data.pkl")), lambda kind, key, count: _numbers(read(f"data/{key}"), kind, count, big), length, big)


def _read_pickles(data: bytes) -> Any:
    file = io.BytesIO(data)
    if _unpickle(file, _no_storage, len(data)) != MAGIC:
        raise _Refused("is not a file that torch.save has written")
    for _ in ("the protocol's version", "the machine's byte order, which is not that of the storages"):
        _unpickle(file, _no_storage, len(data))
    start = file.tell()
    asked: dict[str, tuple[str, int]] = {}

    def note(kind: str, key: str, count: int) -> np.ndarray:
        asked[key] = kind, count
        return _NOT_YET

    _unpickle(file, note, len(data))  # the storages come after the object, and how long each is stands in the object
    arrays = {}
    for key in _unpickle(file, _no_storage, len(data)):
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
        raise _Refused(f"holds numbers of a dtype that minigrad does not have ({kind}Storage); {ANOTHER_DTYPE}")
    return 2 if DTYPES[kind] == BFLOAT16 else np.dtype(DTYPES[kind]).itemsize


def _numbers(data: bytes, kind: str, count: int, big: bool) -> np.ndarray:
    """The numbers of a storage as a flat array, in this machine's byte order."""
    if len(data) != count * _size(kind):
        raise _Refused(f"is damaged: {count} numbers of {_size(kind)} bytes are {len(data)} bytes")
    order = ">" if big else "<"
    if DTYPES[kind] == BFLOAT16:
        return backend.from_bfloat16(np.frombuffer(data, f"{order}u2"))
    dtype = np.dtype(DTYPES[kind])
    return np.frombuffer(data, dtype.newbyteorder(order)).astype(dtype)


# --- tensors


class _Tensors:
    """Makes the arrays of one file.

    Args:
        most: bytes that all that is made may have together; a small file must not become many large arrays.
        big: whether the bytes of a number come in the order of a big-endian machine; matters where a storage is one of bytes.
    """

    def __init__(self, most: int, big: bool):
        self.left = most
        self.big = big
        self.given: set[int] = set()  # by id: storages that an array has for its own

    def spend(self, size: int) -> None:
        """Note that so many bytes are made; a member of a container is 8."""
        self.left -= size
        if self.left < 0:
            raise _Refused(f"holds more than {MOST_COPIED} times its own size; save tensors that share storages as .clone()")

    def make(
        self, storage: Any, offset: Any, shape: Any, strides: Any, grad: bool = False, hooks: Any = None, metadata: Any = None, dtype: Any = None
    ) -> Any:
        """`torch._utils._rebuild_tensor_v2`, and with a dtype `_rebuild_tensor_v3`."""
        short = type(storage) is np.ndarray and type(shape) is tuple and max(len(shape), len(strides)) <= MOST_PARTS
        if not short or not all(type(n) is int and n.bit_length() < 64 for n in (offset, *shape, *strides)):
            raise _Refused("is damaged: a tensor is not made of a storage and whole numbers")
        if storage is _NOT_YET:
            return storage
        numbers = storage if dtype is None else self._unsigned(storage, dtype)
        count = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (count and last >= len(numbers)):
            raise _Refused(f"is damaged: a tensor of shape {shape} is not within its storage of {len(numbers)} numbers")
        if count > len(numbers):
            raise _Refused(f"holds an expanded tensor, of shape {shape} with a storage of only {len(numbers)}; save it as .contiguous()")
        self.spend(count * numbers.itemsize)
        array = np.lib.stride_tricks.as_strided(numbers[offset:], shape, [stride * numbers.itemsize for stride in strides])
        if count < len(numbers) or not array.flags.c_contiguous or id(storage) in self.given:
            array = array.copy()
        else:
            self.given.add(id(storage))
            array = numbers.reshape(shape)
        marks = [name for name, value in metadata.items() if value] if type(metadata) is dict and len(metadata) <= MOST_PARTS else []
        if marks not in ([], ["neg"]):
            raise _Refused(f"holds a tensor of a kind that minigrad does not have ({', '.join(map(str, marks))})")
        return np.negative(array) if marks else array

    def _unsigned(self, storage: np.ndarray, dtype: Any) -> np.ndarray:
        kind = dtype.kind if type(dtype) is Unread else "?"
        if kind not in UNSIGNED:
            advice = "PyTorch has no arithmetic for them; save .view(torch.uint8), their bytes" if kind.startswith(BYTES_ONLY) else ANOTHER_DTYPE
            raise _Refused(f"holds numbers of a dtype that minigrad does not have ({kind}); {advice}")
        native = np.dtype(UNSIGNED[kind])
        whole = storage[: len(storage) // native.itemsize * native.itemsize]  # a storage may end within a number
        return whole.view(native.newbyteorder(">" if self.big else "<")).astype(native, copy=False)


def _meaning(tensors: _Tensors) -> dict[str, Callable[..., Any]]:
    """What is done for the names that mean something: nothing but to make containers, numbers and arrays."""

    def as_it_is(value: Any, *others: Any) -> Any:
        return value

    def encode(text: str, encoding: str) -> bytes:  # how bytes are written
        tensors.spend(len(text))
        return text.encode("latin1")

    def ordered(pairs: Any = ()) -> dict:  # in files of Python 2 the pairs come as a list, later ones put them into the dict
        tensors.spend(8 * len(pairs))
        return collections.OrderedDict((_key(name), value) for name, value in pairs)

    def a_set(values: Any) -> set:
        tensors.spend(8 * len(values))
        return {_key(value) for value in values}

    def make_v3(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None) -> Any:
        return tensors.make(storage, offset, shape, strides, grad, hooks, metadata, dtype)

    return {
        "collections.OrderedDict": ordered,
        "collections.defaultdict": lambda *factory: {},
        "collections.Counter": as_it_is,  # a dict
        "torch.Size": as_it_is,  # a tuple
        "_codecs.encode": encode,
        **{f"{module}.{name}": a_set for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
        **{f"{module}.complex": complex for module in ("builtins", "__builtin__")},
        "torch._utils._rebuild_tensor": tensors.make,
        "torch._utils._rebuild_tensor_v2": tensors.make,
        "torch._utils._rebuild_tensor_v3": make_v3,
        "torch._utils._rebuild_parameter": as_it_is,
        "torch._utils._rebuild_parameter_with_state": as_it_is,
    }


def _key(value: Any) -> Any:
    """What may be the key of a dict, or in a set. No tuples of tuples, no long ones and no large numbers: hashing takes as long as they are large,
    which may be without end, with each use; and numbers beyond 64 bits may all hash alike.
    """
    parts = value if type(value) is tuple else (value,)
    if len(parts) > MOST_PARTS or any(type(part) is int and part.bit_length() > 64 for part in parts):
        raise _Refused("has a key in a dict or a set that is a long tuple or a number of more than 64 bits; save its values by name")
    if not all(type(part) in (str, int, float, bool, bytes, type(None), Unread) for part in parts):
        raise _Refused("has a dict or a set of what is neither text nor numbers; save its values by name")
    return value


# --- the machine


def _unpickle(file: IO[bytes], storage: Callable[[str, str, int], np.ndarray], length: int, big: bool = False) -> Any:
    """The object of one pickle; the file stands behind it then.

    Args:
        file: where it begins.
        storage: gives a storage's numbers, by its kind ("Float"), its key and how many they are; it is called once for each.
        length: of the whole file in bytes.
        big: see `_Tensors`.
    """
    tensors = _Tensors(MOST_COPIED * length + (1 << 20), big)
    meaning = _meaning(tensors)
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
            if len(arguments) > MOST_PARTS:
                raise _Refused(f"is damaged: it calls {kind} with {len(arguments):,} arguments")
            return meaning[kind](*arguments)
        if kind.startswith("torch._utils._rebuild_"):
            name = kind.rpartition(".")[2]
            raise _Refused(f"holds a tensor of a kind that minigrad does not have ({name}){REMEDIES.get(name, '')}")
        return Unread(kind or "?")

    def refer(pid: Any) -> Any:
        if len(pid) > MOST_PARTS:
            raise _Refused("is damaged: it refers to what is not a storage")
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
            kind = ".".join(stack[-2:])
            tensors.spend(len(kind))
            stack[-2:] = [Unread(kind)]
        elif name in ("REDUCE", "NEWOBJ"):
            stack[-2:] = [call(stack[-2], stack[-1])]
        elif name == "NEWOBJ_EX":  # what has arguments by name is of no class with a meaning here
            stack[-3:] = [call(stack[-3], ())]
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
        elif name == "ADDITEMS":
            items = since_mark()
            stack[-1].update(map(_key, items))
        elif name == "FROZENSET":
            stack.append(set(map(_key, since_mark())))
        elif name == "BUILD":
            stack.pop()  # attributes: of an OrderedDict its _metadata, of the rest what is not read
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":  # of a tuple that has itself in it
            since_mark()
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise _Refused(f"has the instruction {name}, which torch.save does not write with the pickle protocols that are read, 1 to 5")
    raise _Refused("is damaged: it ends too early")


_VALUES = frozenset(
    ("INT BININT BININT1 BININT2 LONG LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8").split()
)  # fmt: skip
"""Instructions that put their argument on the stack."""
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
