"""Downloading a data set into the cache: with progress, checked, and put in place only when complete.

pooch, an extra of the application, keeps the unfinished file apart, compares the checksum and moves it; the connection is our own, so that
a machine without network is told so within seconds. Read next: `conformer/data.py`, the only caller.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformer.archives import DataError

__all__ = ["SITE", "fetch"]

SITE = "https://www.cs.toronto.edu/~kriz"
"""Where CIFAR is."""
ANSWER_SECONDS = 4.0  # without an answer for so long, there is no network
STALL_SECONDS = 30.0  # without data for so long, the download has ended
LARGEST = 2**28  # bytes; the archives have up to 171 million
REPORT_SECONDS = 2.0


def check() -> None:
    """Raise DataError where pooch, with which `fetch` downloads, is not installed."""
    try:
        import pooch  # noqa: F401
    except ImportError as error:
        raise DataError('downloading needs pooch (in the project\'s folder, pip install -e ".[app]")') from error


def fetch(archive: str, md5: str, folder: Path, say: Callable[[str], None]) -> Path:
    """Download `SITE`/`archive` into `folder`, unless it is there already and has the right checksum.

    Args:
        archive: the file's name, at both ends.
        md5: its checksum, 32 hexadecimal digits.
        folder: made if it is not there.
        say: is given lines of progress.

    Returns:
        The file's path.

    Raises:
        DataError: no connection, no such file there, another checksum, a download that was cut short or has no end, a folder that cannot be written,
            or no pooch.
    """
    check()
    import pooch
    import urllib3  # comes with pooch, and so does requests

    url = f"{SITE}/{archive}"

    def download(url: str, output_file: str, _: Any) -> None:
        with _connect(url) as response:
            length = response.headers.get("content-length", "")
            progress = _Progress(archive, int(length) if length.isdecimal() else 0, say)
            Path(output_file).unlink()  # made by pooch for this user alone; a new one is open to whom the folder is shared with
            try:
                with open(output_file, "xb") as file:
                    for chunk in response.raw.stream(2**18, decode_content=False):  # as it lies on the server, which may say that it is encoded
                        file.write(chunk)
                        progress.add(len(chunk))
                        if progress.done > LARGEST:
                            raise DataError(f"{url} cannot be used: more than {LARGEST:,} bytes came, and the original file has fewer")
            except urllib3.exceptions.HTTPError as error:
                raise DataError(f"{url} cannot be downloaded: the connection broke after {progress.done:,} of {progress.total:,} bytes") from error

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # what it would say, `say` and the errors below do
    try:
        _remove_unfinished(folder)
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=archive, path=folder, downloader=download))  # type: ignore[arg-type]
    except DataError:
        raise
    except ValueError as error:  # of pooch, for another checksum
        raise DataError(f"{url} cannot be used: what came is not the original file, whose MD5 is {md5}") from error
    except OSError as error:
        raise DataError(f"{url} cannot be saved in {folder}: {error.strerror or error}") from error
    finally:
        logger.setLevel(level)


def _remove_unfinished(folder: Path) -> None:
    """Remove what downloads that were killed have left in `folder`: pooch's temporary files, but those to which data may still be coming."""
    for path in folder.glob("tmp????????"):
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            if re.fullmatch("tmp[a-z0-9_]{8}", path.name) and path.is_file() and time.time() - path.stat().st_mtime > 2 * STALL_SECONDS:
                path.unlink()


def _connect(url: str) -> Any:
    """The open response to a request for `url`.

    In a thread of its own: looking up a host's name ignores every timeout, and may last half a minute where there is no network.

    Raises:
        DataError: no connection, no answer within `ANSWER_SECONDS`, or not the answer that the file comes.
    """
    import requests

    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            headers = {"Accept-Encoding": "identity"}  # the archive is compressed
            answers.put(requests.get(url, stream=True, timeout=(ANSWER_SECONDS, STALL_SECONDS), headers=headers))
        except Exception as error:  # raised again below
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
        if isinstance(answer, Exception):
            raise answer
        if not answer.ok:
            answer.close()
        answer.raise_for_status()
        return answer
    except requests.HTTPError as error:
        raise DataError(f"{url} cannot be downloaded: the server answers {str(error).split(' for url')[0]}") from error
    except (requests.Timeout, queue.Empty) as error:
        raise DataError(f"{url} cannot be downloaded: no answer within {ANSWER_SECONDS:g} seconds") from error
    except requests.ConnectionError as error:
        raise DataError(f"{url} cannot be downloaded: no connection") from error
    except ImportError as error:
        raise DataError(f"{url} cannot be downloaded: this Python has no ssl module, which HTTPS needs") from error
    except (OSError, ValueError) as error:  # redirects without end or to no address, certificates that are not where the user says
        raise DataError(f"{url} cannot be downloaded: {str(error).rstrip('.')}") from error


class _Progress:
    """Says every two seconds, and at the end, how far a download is."""

    def __init__(self, name: str, total: int, say: Callable[[str], None]):
        self.name, self.total, self.say = name, total, say
        self.done = 0
        self.started = time.monotonic()
        self.next = self.started + REPORT_SECONDS

    def add(self, size: int) -> None:
        self.done += size
        now = time.monotonic()
        if now < self.next and self.done != self.total:
            return
        self.next = now + REPORT_SECONDS
        text = f"{self.name}: {self.done / 1e6:.1f}"
        if self.total:
            left = (self.total - self.done) * (now - self.started) / self.done
            text += f" of {self.total / 1e6:.1f} MB, {left:.0f} s left" if self.done < self.total else " MB, complete"
        else:
            text += " MB"
        self.say(text)
