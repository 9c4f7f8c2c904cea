"""What a user can put right, said in one sentence on stderr: `Mistake`, the exception that ends a command, and how other errors become one.

Read next: `conformer/cli.py`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from conformer.provenance import OPENBLAS_PINS
from conformer.text import printable

__all__ = ["EXTRAS", "Mistake", "complain", "drawing", "say_pins", "sentence", "told"]

EXTRAS = 'in the project\'s folder, pip install -e ".[app]"'
"""Where the libraries come from that only the command line needs."""


class Mistake(Exception):
    """Something the user can put right; the message is one sentence, `status` the exit status."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def complain(text: object) -> None:
    """Say something on stderr, in the program's name."""
    print(f"conformer: {text}", file=sys.stderr)


def sentence(error: Exception) -> str:
    """An error's message on one line, without "[Errno 2]"; names in it, of files and in files, may have anything in them."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = "there is not enough memory" + (f" ({text})" if text else "")
    return printable(text)


@contextlib.contextmanager
def told(status: int, errors: type[Exception] | tuple[type[Exception], ...] = (OSError, ValueError)) -> Iterator[None]:
    """A block in which these errors are what the user can put right: raises Mistake with their sentence and this exit status."""
    try:
        yield
    except errors as error:
        raise Mistake(sentence(error), status) from error


@contextlib.contextmanager
def drawing(what: str) -> Iterator[None]:
    """A block that imports matplotlib, directly or not, to draw `what`. Raises Mistake where it is missing, or where it refuses to be imported, as
    when MPLBACKEND names no backend.
    """
    try:
        yield
    except ImportError as error:  # also of pillow, which matplotlib brings
        raise Mistake(f"{what} needs matplotlib ({EXTRAS})", 1) from error
    except (ValueError, RuntimeError) as error:  # the latter: it finds no home to keep its files in
        raise Mistake(f"{what} is not drawn: {sentence(error)}", 1) from error


def say_pins() -> None:
    """Say when the environment pins OpenBLAS to an older processor; it is read before Python code runs, so only the user can change it."""
    if found := [f"{name}={os.environ[name]}" for name in OPENBLAS_PINS if os.environ.get(name)]:
        names = " ".join(f"-u {name}" for name in OPENBLAS_PINS)
        complain(f"{' and '.join(found)} may halve NumPy's speed; start with `env {names} ...` to leave it out")
