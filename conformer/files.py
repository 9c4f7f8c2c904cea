"""Files that are written whole or not at all: whoever reads one sees the old file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
from pathlib import Path

from minigrad.safetensors_io import replace

__all__ = ["quoted", "write_file"]


def quoted(text: object) -> str:
    """A piece of a command as the user's shell takes it for one word."""
    return subprocess.list2cmdline([str(text)]) if os.name == "nt" else shlex.quote(str(text))


def write_file(path: Path, content: str | bytes, new: bool = False) -> None:
    """Write a file under another name, and rename it when all of it is on the disk.

    Args:
        path: the file; its folder must exist.
        content: text, which is written as UTF-8 (names of files that UTF-8 does not have are escaped), or bytes.
        new: refuse a file that exists, instead of replacing it.

    Raises:
        FileExistsError: with `new`, there is one.
        OSError: it cannot be written; an older one is then unharmed, and nothing half-written is left.
    """
    if path.exists() and not path.is_file():  # a superuser could rename a file to /dev/null
        raise OSError(f"cannot write {path}: it is not a file")
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")  # of this call alone: other threads and machines may write `path`, too
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not new:
            replace(temporary, path)
            return
        try:
            os.link(temporary, path)  # unlike a renaming, fails where there is a file already
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with open(path, "xb") as file:
                file.write(data)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
