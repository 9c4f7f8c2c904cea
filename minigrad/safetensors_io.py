"""Weights on disk: a state_dict with a few words of metadata in one safetensors file.

A file is written under a temporary name in the same folder and renamed when it is complete: a reader sees the old file or the new one, never half
of one, whatever happens in between. A checksum of the arrays, which stands in the metadata, tells damage that keeps the file's form (a disk or a copy
that changed some bytes). Nothing in a safetensors file is ever executed. Read next: `Module.state_dict` in `minigrad/nn/module.py`,
which makes what is stored here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minigrad import backend

__all__ = ["load_state", "replaced", "save_state"]

CHECKSUM = "minigrad.checksum"
"""What the checksum is called in the metadata."""

_WINDOWS = os.name == "nt"


@contextlib.contextmanager
def replaced(path: Path, new: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to. When the block ends, it is on the disk and takes the place of `path`; if the block fails, it is removed.

    Raises OSError for a path that is there and is no file; FileExistsError, with `new`, for any that is there.
    """
    if path.exists() and not path.is_file():  # a superuser could rename a file to /dev/null
        raise OSError("it is not a file")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # of this call alone: other threads and machines may write `path`, too
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # the bytes are on the disk before the name is
        (_create if new else _replace)(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)


def _replace(source: Path, target: Path) -> None:
    """`os.replace`; on Windows again for some seconds, while another program (a reader, a virus scanner) has the target open."""
    for pause in (0.1, 0.2, 0.4, 0.8, 1.6) if _WINDOWS else ():
        with contextlib.suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(pause)
    os.replace(source, target)


def _create(source: Path, target: Path) -> None:
    """Give the file another name, which none must have."""
    try:
        os.link(source, target)  # unlike a renaming, fails where there is a file already
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with open(target, "xb") as file:
            file.write(source.read_bytes())


def save_state(path: str | os.PathLike[str], mapping: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write named arrays and metadata to one safetensors file, atomically.

    Args:
        path: the file; one that exists is replaced. Its folder must exist.
        mapping: name -> array (or CPU Tensor) of any shape, for example a `state_dict()`. The name "__metadata__" is the format's own.
        metadata: text by name, for example the configuration as JSON. The name "minigrad.checksum" is the checksum's.

    Raises:
        TypeError: a value is not an array of numbers of at most 64 bits, or a piece of metadata is not text.
        ValueError: an array is called "__metadata__", or a piece of metadata "minigrad.checksum".
        OSError: the file cannot be written; an older file of this name is then unharmed and nothing half-written is left.
    """
    path = Path(path)
    for name, text in (metadata or {}).items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"save_state: metadata {name!r} is {type(text).__name__}; metadata is text by name")
    if "__metadata__" in mapping:
        raise ValueError("save_state: no array can be called '__metadata__', where the format keeps the metadata; give it another name")
    if CHECKSUM in (metadata or {}):
        raise ValueError(f"save_state: no metadata can be called {CHECKSUM!r}, where the checksum of the arrays is kept; give it another name")
    arrays = {name: _storable(name, value) for name, value in mapping.items()}
    entries = {**(metadata or {}), CHECKSUM: _checksum(arrays)}
    try:
        with replaced(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the user's umask gives a new file; safetensors would make it private
            if arrays:
                save_file(arrays, temporary, metadata=entries)
            else:  # for which the library writes a header that it cannot read
                header = json.dumps({"__metadata__": entries}).encode()
                temporary.write_bytes(len(header).to_bytes(8, "little") + header)
            temporary.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: Exception) -> OSError:
    """One sentence: what could not be written, and the system's reason, which the library hides in a longer text."""
    hidden = None if _WINDOWS else re.search(r"\(os error (\d+)\)", str(error))  # on Windows a number of another list
    number = error.errno if isinstance(error, OSError) else int(hidden[1]) if hidden else None
    return OSError(f"cannot write {path}: {os.strerror(number) if number else error}")


def _storable(name: str, value: Any) -> np.ndarray:
    """The value as a C-contiguous little-endian array, which is what the format stores."""
    array = np.asarray(backend.host_array(value.numpy() if hasattr(value, "numpy") else value, f"save_state: {name!r}"), order="C")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"save_state: {name!r} has dtype {array.dtype}; give an array of numbers of at most 64 bits, not complex")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Of names, dtypes, shapes and bytes, in whatever order they come."""
    checksum = hashlib.blake2b(digest_size=16)
    for name, array in sorted(arrays.items()):
        checksum.update(repr((name, array.dtype.newbyteorder("<").str, array.shape)).encode())
        checksum.update(array.data)
    return checksum.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Put the renaming itself on the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load_state(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file.

    Args:
        path: the file.

    Returns:
        `(mapping, metadata)`: name -> array, in memory of its own, and the metadata (empty if there is none). bfloat16 becomes float32, which has all
        of its numbers, as in `pth.load`.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not a safetensors file, is damaged (of a file that another program wrote, not every damage shows), or holds another dtype
            that NumPy does not have, such as float8, or complex numbers.
    """
    path = Path(path)
    try:
        path.open("rb").close()  # the system's own reason: missing, a folder, not permitted
    except OSError as error:
        raise type(error)(error.errno, f"cannot read {path}: {error.strerror}") from error
    try:
        with safe_open(path, framework="numpy") as file:
            names, metadata = list(file.keys()), dict(file.metadata() or {})
            halves = [name for name in names if file.get_slice(name).get_dtype() == "BF16"]
            widened = _bfloat16(path, halves) if halves else {}
            mapping = {name: widened[name] if name in widened else np.array(file.get_tensor(name)) for name in names}
    except (SafetensorError, TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file that NumPy can read, or is damaged ({error})") from error
    for name, array in mapping.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{path}: {name!r} has dtype {array.dtype}, which minigrad does not have; save it as real numbers")
    checksum = metadata.pop(CHECKSUM, None)  # other programs write none, nor did older versions of this one
    if checksum is not None and checksum != _checksum(mapping):
        raise ValueError(
            f"{path} is damaged: its arrays are not those that were written; use another copy of it (a program that changed them on purpose leaves "
            f"{CHECKSUM!r} out of the metadata)"
        )
    return mapping, metadata


def _bfloat16(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of bfloat16, which safetensors' own reader for NumPy does not have, as float32.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    arrays = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name in names:
            begin, end = header[name]["data_offsets"]
            file.seek(8 + length + begin)
            halves = np.frombuffer(file.read(end - begin), "<u2")
            arrays[name] = backend.from_bfloat16(halves).reshape(header[name]["shape"])
    return arrays
