"""Folders that are one process's alone, so that no two write the files of one run.

A claim is a lock on the folder itself (flock): the system forgets it when the process ends, however it ends. On Windows, and on file systems without
locks, nothing is claimed. Read next: `conformer/run_folder.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["claim", "claimed", "release"]

_claims: set[tuple[int, int, int]] = set()  # of the folders that this process has


def claim(path: Path, ours: str) -> int | None:
    """Claim a folder for this process until `release`.

    Args:
        path: the folder.
        ours: who has it, and what to do, where this process has claimed it before.

    Returns:
        The folder's handle; None on Windows.

    Raises:
        OSError: it is claimed, or is not there.
    """
    if fcntl is None:
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = ours if _key(handle) in _claims else "another process is training there"
        os.close(handle)
        raise FileExistsError(f"{path} is in use: {who}") from error
    except OSError:  # a file system without locks
        pass
    _claims.add(_key(handle))
    return handle


def release(handle: int | None) -> None:
    """Let others have a folder that was claimed."""
    if handle is None or fcntl is None:
        return
    if (key := _key(handle)) in _claims:  # and not in a forked child, whose copy of the folder has no say
        _claims.remove(key)
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # closed here alone, it would be kept by a child forked meanwhile
    os.close(handle)


@contextlib.contextmanager
def claimed(path: Path, ours: str) -> Iterator[None]:
    """A block in which a folder is this process's alone; takes and raises what `claim` does."""
    handle = claim(path, ours)
    try:
        yield
    finally:
        release(handle)


def _key(handle: int) -> tuple[int, int, int]:
    """Who claims which folder: the process, and the folder's device and inode."""
    status = os.fstat(handle)
    return os.getpid(), status.st_dev, status.st_ino
