"""Text from files that anyone may have written or damaged: JSON to read, and names to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["from_json", "printable"]

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
