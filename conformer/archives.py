"""Reading CIFAR's files, from a folder or straight from an archive, binary records or pickles: nothing is unpacked to disk, nothing in a file is run.

`read_folder` and `read_archive` give the contents of files by name; `read_batch` turns one file's contents into pixels and labels, and checks
both. What is wrong is a `DataError` that names the file, what was expected and what was found. Read before: `conformer/data.py`.

Letters: N images.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import numpy as np

from conformer.cifar import Version

__all__ = ["PIXELS", "SIDE", "DataError", "read_archive", "read_batch", "read_folder"]

SIDE = 32
"""Rows and columns of every image."""
PIXELS = 3 * SIDE * SIDE
"""Bytes of an image."""
LARGEST = 2**29  # bytes of all files together; those of the binary and the Python version of a data set have 371 million
LARGEST_HEADERS = 2**25  # bytes of all headers of an archive, with the names in them; the original ones have a few thousand


class DataError(ValueError):
    """A data set that is missing, damaged or of another kind; the message is one sentence for the user."""


def read_folder(folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """The contents of those files of `folder` that are there, by name.

    Raises:
        DataError: one of them cannot be read, or all together are too large.
    """
    contents: dict[str, bytes] = {}
    for path in (folder / name for name in names):
        try:
            if path.is_file():
                _check_size(str(path), path.stat().st_size, contents)
                contents[path.name] = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return contents


def _check_size(file: str, size: int, before: dict[str, bytes]) -> None:
    """Refuse a file that makes those that were read before it too large. Without that, a small archive could fill the memory."""
    total = size + sum(map(len, before.values()))
    if total > LARGEST:
        others = f", {total:,} with those before it" if before else ""
        raise DataError(f"{file} has {size:,} bytes{others}; expected at most {LARGEST:,} for a data set")


class _Headers:
    """A stream as `tarfile` reads it for an archive's headers, which it keeps in memory, whatever their length: up to `LARGEST_HEADERS` bytes."""

    def __init__(self, stream: Any, path: Path):
        self.seek, self.tell = stream.seek, stream.tell
        self.stream, self.path, self.left = stream, path, LARGEST_HEADERS

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise DataError(
                f"{self.path} has more than {LARGEST_HEADERS:,} bytes of names and other headers; no archive of this data set has; get it again"
            )
        return self.stream.read(size)


def read_archive(path: Path, names: Collection[str]) -> dict[str, bytes]:
    """The contents of those files that a .tar.gz or .tar holds, by name; the folder they lie in does not matter.

    The archive is read to its end, where gzip's checksum stands. Links and other special members are passed over.

    Args:
        path: the archive.
        names: the files to read.

    Raises:
        DataError: it is not such an archive, cannot be read, is cut short, damaged or too large, or holds one of the files twice or none of them.
    """
    contents: dict[str, bytes] = {}
    others: list[str] = []
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if zipped else file
            with tarfile.open(fileobj=_Headers(stream, path), mode="r:") as archive:  # type: ignore[arg-type]
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if not member.isreg() or name not in names:
                        others.append(member.name)
                    elif name in contents:
                        raise DataError(f"{path} holds {name} twice; expected one data set")
                    elif member.issparse():
                        raise DataError(f"{path}: {name} is stored with holes, which no archive of this data set has; get it again")
                    else:
                        _check_size(f"{path}: {name}", member.size, contents)
                        contents[name] = _read_member(stream, member)
                while stream.read(2**20):
                    pass
    except DataError:
        raise
    except EOFError as error:
        raise DataError(f"{path} is cut short; get it again") from error
    except (gzip.BadGzipFile, zlib.error, ValueError, OverflowError) as error:  # the last two for numbers in a header that cannot be
        raise DataError(f"{path} is damaged ({error}); get it again") from error
    except tarfile.TarError as error:
        if contents or others:
            raise DataError(f"{path} is cut short or damaged ({error}); get it again") from error
        raise DataError(f"{path} is not an archive; expected a .tar.gz or .tar file, or a folder") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not contents:
        held = f"; it holds {', '.join(others[:4])}{', ...' if len(others) > 4 else ''}" if others else ", but it is empty"
        raise DataError(f"{path}: expected {', '.join(names)}{held}")
    return contents


def _read_member(stream: Any, member: tarfile.TarInfo) -> bytes:
    """The contents of one file of an archive; raises EOFError where the archive ends before them."""
    stream.seek(member.offset_data)
    content = stream.read(max(member.size, 0))  # a damaged header may have a size below 0
    if len(content) < member.size:
        raise EOFError
    return content


def read_batch(version: Version, content: bytes, path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one file.

    Args:
        version: how the file is laid out.
        content: what it holds.
        path: its name in messages.
        classes: labels are below this.

    Returns:
        `(planes, labels)`: uint8 (N, 3072), each image as three planes of 32 x 32, and int64 (N,).

    Raises:
        DataError: the content is not whole records, not such a pickle, or has labels out of range.
    """
    planes, labels = _read_records(version, content, path) if version.label_bytes else _read_pickle(version, content, path)
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        record = int(np.argmax(wrong))
        raise DataError(f"{path}: record {record} has label {labels[record]}; expected 0 to {classes - 1}")
    return planes, labels


def _read_records(version: Version, content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    length = version.label_bytes + PIXELS
    if not content or len(content) % length:
        raise DataError(f"{path} has {len(content):,} bytes; {version.title} has a whole number of records of {length:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, length)
    return records[:, version.label_bytes :], records[:, version.label_bytes - 1].astype(np.int64)


def _read_pickle(version: Version, content: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    def refuse(reason: str) -> NoReturn:
        raise DataError(f"{path} is not a file of {version.title}: {reason}")

    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise nearly anything (pickle's documentation says so)
        refuse(f"expected a pickle of plain values and arrays ({str(error) or type(error).__name__})")
    if not isinstance(batch, dict):
        refuse(f"expected a dictionary, found {type(batch).__name__}")
    batch = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    if missing := [key for key in ("data", version.label_key) if key not in batch]:
        refuse(f"expected an entry {missing[0]!r}, found {', '.join(repr(key) for key in batch if isinstance(key, str)) or 'none'}")
    data, labels = batch["data"], batch[version.label_key]
    if not isinstance(data, _PickledArray) or (planes := data.bytes_array()) is None or planes.ndim != 2 or planes.shape[1] != PIXELS:
        refuse(f"expected an array of bytes of shape (N, {PIXELS}) as 'data'")
    if not len(planes):
        refuse("it holds no images")
    # Numbers above 2**31 are no labels, and would not fit the array.
    if not isinstance(labels, list) or not all(type(label) is int and abs(label) < 2**31 for label in labels) or len(labels) != len(planes):
        refuse(f"expected a list of {len(planes):,} whole numbers as {version.label_key!r}")
    return planes, np.array(labels, np.int64)


class _PickledArray:
    """What a pickle says about an array. Stands in for NumPy's own types, so that reading a file runs none of their code."""

    arguments: tuple[Any, ...] = ()  # of the class: a pickle can make an object without calling __init__
    state: Any = None

    def __init__(self, *arguments: Any):  # _reconstruct(ndarray, (0,), "b"), or dtype("u1", 0, 1)
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def bytes_array(self) -> np.ndarray | None:
        """The array, if it is one of bytes with two axes; None otherwise."""
        match self.state:
            case (_, tuple(shape), _PickledArray(arguments=(b"u1" | "u1", *_)), bool(fortran) | int(fortran), bytes(content)):
                array = np.frombuffer(content, np.uint8)
                if len(shape) == 2 and all(type(size) is int and 0 <= size < 2**31 for size in shape) and array.size == shape[0] * shape[1]:
                    return array.reshape(shape, order="F" if fortran else "C")
        return None


# What files of plain values and arrays consist of, whichever Python wrote them: no sets, no objects, no other files.
_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE),
    *(pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1),
    *(pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.FLOAT, pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.LIST, pickle.EMPTY_LIST),
    *(pickle.APPEND, pickle.APPENDS, pickle.TUPLE, pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_DICT),
    *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.INST, pickle.REDUCE, pickle.BUILD),
)


def _refuse_opcode(_: pickle._Unpickler) -> NoReturn:
    raise pickle.UnpicklingError("it holds something else")


def _with_text_as_keys(opcode: bytes) -> Callable[[Any], None]:
    """What `opcode` does to a dictionary, refused where a key is no text: hashing a tuple of tuples of tuples ... may take for ever."""
    load = pickle._Unpickler.dispatch[opcode[0]]

    def load_checked(unpickler: Any) -> None:
        items = unpickler.stack[-2:] if opcode == pickle.SETITEM else unpickler.stack  # key, value, key, value, ...
        if not all(isinstance(key, (str, bytes)) for key in items[::2]):
            raise pickle.UnpicklingError("it has keys that are no text")
        load(unpickler)

    return load_checked


class _ArrayUnpickler(pickle._Unpickler):
    """Reads plain values, and NumPy's arrays as `_PickledArray`. What a pickle calls comes from `find_class`: here, something inert.

    It is `pickle`'s reader in Python, fast enough for the few opcodes of a file: the one in C cannot be told which of them to refuse, and takes 2 GB
    to remember a value under a large number.
    """

    dispatch = (
        dict.fromkeys(range(256), _refuse_opcode)
        | {opcode[0]: pickle._Unpickler.dispatch[opcode[0]] for opcode in _OPCODES}
        | {opcode[0]: _with_text_as_keys(opcode) for opcode in (pickle.DICT, pickle.SETITEM, pickle.SETITEMS)}
    )

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}:
            return _PickledArray
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
