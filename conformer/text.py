"""Text: JSON from files that anyone may have written or damaged, names to show, words for a shell, and tables for a terminal."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

__all__ = ["columns", "from_json", "printable", "quoted"]

LARGEST = 1e300
"""Of a number in JSON: what is computed with it is still far from infinity."""


def from_json(text: str | bytes) -> Any:
    """What a piece of JSON says, with numbers that are finite.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has NaN, Infinity (which Python alone takes for JSON) or a number as good as infinite.
    """
    try:
        return json.loads(text, parse_int=partial(_number, int), parse_float=partial(_number, float), parse_constant=partial(_number, float))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _number(kind: Callable[[str], float], text: str) -> float:
    if not -LARGEST <= (number := kind(text)) <= LARGEST:
        raise ValueError(f"{text if len(text) < 20 else f'a number of {len(text)} digits'} is not a number to compute with")
    return number


def printable(text: str) -> str:
    r"""A text on one line, as a terminal and matplotlib take it: control characters, and bytes of names that are not UTF-8, as escapes (\n, \x1b)."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def quoted(text: object) -> str:
    """A piece of a command as the user's shell takes it for one word."""
    if isinstance(text, PurePath) and str(text).startswith(("~", "-")):  # a path leaves out the first two letters of ./~run and ./-run
        text = os.path.join(".", text)
    return subprocess.list2cmdline([str(text)]) if os.name == "nt" else shlex.quote(str(text))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right."""
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, *cells in rows)
