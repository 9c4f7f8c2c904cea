"""Downloading a data set into the cache: with progress, checked, and put in place only when complete.

pooch, an extra of the application, keeps the unfinished file apart, compares the checksum and moves it; the connection is our own, so that
a machine without network is told so within seconds. Read next: `conformer/data.py`, the only caller.
"""

from __future__ import annotations

import queue
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
REPORT_SECONDS = 2.0


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
        DataError: no connection, no such file there, another checksum, a download that was cut short, a folder that cannot be written, or no pooch.
    """
    url = f"{SITE}/{archive}"
    try:
        import pooch
        import requests  # comes with pooch
    except ImportError as error:
        raise DataError('downloading needs pooch (in the project\'s folder, pip install -e ".[app]")') from error

    def download(url: str, output_file: str, _: Any) -> None:
        with _connect(url) as response:
            response.raise_for_status()
            progress = _Progress(archive, int(response.headers.get("content-length", 0)), say)
            try:
                with open(output_file, "wb") as file:
                    for chunk in response.iter_content(2**18):
                        file.write(chunk)
                        progress.add(len(chunk))
            except requests.RequestException as error:
                raise DataError(f"{url} cannot be downloaded: the connection broke after {progress.done:,} of {progress.total:,} bytes") from error

    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # what it would say, `say` and the errors below do
    try:
        return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=archive, path=folder, downloader=download))  # type: ignore[arg-type]
    except DataError:
        raise
    except requests.HTTPError as error:
        raise DataError(f"{url} cannot be downloaded: the server answers {str(error).split(' for url')[0]}") from error
    except (requests.Timeout, TimeoutError) as error:
        raise DataError(f"{url} cannot be downloaded: no answer within {ANSWER_SECONDS:g} seconds") from error
    except requests.RequestException as error:
        raise DataError(f"{url} cannot be downloaded: no connection") from error
    except ValueError as error:  # of pooch, for another checksum
        raise DataError(f"{url} cannot be used: what came is not the original file, whose MD5 is {md5}") from error
    except OSError as error:
        raise DataError(f"{url} cannot be saved in {folder}: {error.strerror or error}") from error
    finally:
        logger.setLevel(level)


def _connect(url: str) -> Any:
    """The open response to a request for `url`.

    In a thread of its own: looking up a host's name ignores every timeout, and may last half a minute where there is no network.

    Raises:
        TimeoutError: no answer within `ANSWER_SECONDS`.
        requests.RequestException: no connection.
    """
    import requests

    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(requests.get(url, stream=True, timeout=(ANSWER_SECONDS, STALL_SECONDS)))
        except Exception as error:  # raised again below
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer from {url}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


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
