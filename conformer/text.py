"""Text: JSON from files that anyone may have written or damaged, names to show, words for a shell and paths from it, and tables for a terminal."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

__all__ = ["columns", "from_json", "printable", "quoted", "with_home"]

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


def printable(text: object) -> str:
    r"""A text or path in one line, as terminals and matplotlib take it: control characters, and bytes that are not UTF-8, as escapes (\n, \x1b)."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text))


def quoted(text: object) -> str:
    """A piece of a command as the user's shell takes it for one word."""
    if isinstance(text, PurePath) and str(text).startswith(("~", "-")):  # a path leaves out the first two letters of ./~run and ./-run
        text = os.path.join(".", text)
    return subprocess.list2cmdline([str(text)]) if os.name == "nt" else shlex.quote(str(text))


def with_home(path: str, name: str) -> str:
    """A path with the home folder in place of the ~ that it begins with, which shells leave in --out=~/run and in files of settings.

    Raises:
        ValueError: there is no such home folder; `name` is what the sentence calls the path.
    """
    if (expanded := os.path.expanduser(path)).startswith("~"):
        raise ValueError(f"there is no home folder for the ~ of {name}; if it is part of a name, give {os.path.join('.', path)}")
    return expanded


def columns(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right."""
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([name.ljust(first), *map(str.rjust, cells, widths)]) for name, *cells in rows)
