"""A command line made of dataclasses by argparse: options from fields, help from annotations, and mistakes in one sentence.

Read before: `conformer/cli.py`, which has the options.
"""

from __future__ import annotations

import argparse
import difflib
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from conformer.mistakes import Mistake
from conformer.options import flag
from conformer.text import with_home

__all__ = ["Parser", "add_options", "one_of", "one_of_numbers", "png_path", "positive", "some_path"]

METAVARS = {int: "N", float: "X", Path: "PATH", str: "NAME"}


class _Help(argparse.HelpFormatter):
    """argparse's help, with no line broken inside --max-steps or cifar-nano."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one sentence that name the option probably meant, and without guessing at abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, formatter_class=_Help, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        """What argparse does, but an unknown option is an error that names the one probably meant."""
        namespace, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
            self.error(f"there is no option {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
        return namespace, unknown

    def print_help(self, file: Any = None) -> None:
        """Print the help; argparse would keep quiet about a full disk."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """Raise `Mistake`, where argparse would print the usage and leave."""
        raise Mistake(f"{message} ({self.prog} --help lists the options)", 2)


def add_options(
    parser: argparse.ArgumentParser,
    config: type,
    choices: Mapping[str, Collection[str]],
    metavars: Mapping[str, str],
    names: Sequence[str] | None = None,
) -> None:
    """Make an option of each field of a dataclass, its type and help text from the annotation.

    An option that is not given is not in the namespace: the dataclass has the default, and a resumed run its own.

    Args:
        parser: gets the options.
        config: the dataclass; a field is annotated `Annotated[type, help text]`.
        choices: the values that a field may have, by its name.
        metavars: what a value is called in the help text, by the field's name, where its type does not say enough.
        names: the fields to take; None takes all.
    """
    hints = typing.get_type_hints(config, include_extras=True)
    for field in fields(config):
        if names is not None and field.name not in names:
            continue
        annotated, text = typing.get_args(hints[field.name])
        kind = next((part for part in typing.get_args(annotated) if part is not type(None)), annotated)  # X of X | None
        if allowed := choices.get(field.name):
            text += f": {', '.join(allowed)}"
            kind = one_of(allowed)
        text += "" if field.default is None else f" (default: {field.default})"
        metavar = metavars.get(field.name) or METAVARS.get(kind, "NAME")
        parser.add_argument(flag(field.name), type=some_path if kind is Path else kind, default=argparse.SUPPRESS, help=text, metavar=metavar)


def one_of(allowed: Collection[str]) -> Callable[[str], str]:
    """One of these names, for argparse, whose own message is another with each version of Python."""

    def check(text: str) -> str:
        if text not in allowed:
            close = [name for name in allowed if text and text in name] or difflib.get_close_matches(text, allowed, n=1)
            few = len(allowed) <= 3  # where a guess is likelier to mislead: "gpu" is not meant to be "cpu"
            meant = f"did you mean {close[0]}?" if close and not few else f"choose from {', '.join(allowed)}"
            raise argparse.ArgumentTypeError(f"there is no {text!r}; {meant}")
        return text

    return check


def one_of_numbers(text: str) -> int:
    """One of several whole numbers, for argparse, whose own message does not say how they are written."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; give whole numbers, with blanks between them") from error


def some_path(text: str) -> Path:
    """A path, for argparse. Of an empty one, as "$UNSET" is, Path would make the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    try:
        return Path(with_home(text, repr(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def png_path(text: str) -> Path:
    """The path of a picture to make, for argparse: what is written is PNG, which another ending would belie."""
    if Path(text).suffix.lower() not in ("", ".png"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png, and pictures are PNG files")
    return some_path(text)


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if text.isdecimal() and len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is too large; give a number of at most 9 digits")
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
