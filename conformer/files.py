"""Files that are written whole or not at all: whoever reads one sees the old file or the new one, never half of one."""

from __future__ import annotations

from pathlib import Path

from minigrad.safetensors_io import replaced

__all__ = ["write_file"]


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
    try:
        with replaced(path, new) as temporary:
            temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
