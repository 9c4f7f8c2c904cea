"""The command line: `python -m conformer train|evaluate|info`, also installed as `conformer`.

The options of `train` are the fields of `TrainConfig`. What a user can put right ends in one sentence on stderr and exit status 2 (the
command is wrong) or 1 (a file, a folder or the training is); anything else is a fault of ours and keeps its traceback. This module alone
(with `curves.py` and `download.py`, which it calls) imports the application's extras (`minigrad-conformer[app]`), and only where they are
used. Read next: `conformer/train.py`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import signal
import sys
import textwrap
import time
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from conformer import data
from conformer.config import CONFIGS, named_config
from conformer.display import Display, Progress
from conformer.evaluate import evaluate, load_run
from conformer.info import describe
from conformer.options import MAY_CHANGE, TrainConfig
from conformer.stopping import Stopped
from conformer.train import OPENBLAS_PINS, Trainer

__all__ = ["main"]

CHOICES = {"config": CONFIGS, "dataset": data.DATASETS}
METAVARS = {int: "N", float: "X", Path: "PATH", str: "NAME", "time_budget": "TIME"}


class Mistake(Exception):
    """Something the user can put right; the message is one sentence."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class _Help(argparse.HelpFormatter):
    """argparse's help, with no line broken inside --max-steps or cifar-nano."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one sentence that name the option probably meant, and without guessing at abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, formatter_class=_Help, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        namespace, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[0].split("=")[0], options, n=1)
            self.error(f"there is no option {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        raise Mistake(f"{message} ({self.prog} --help lists the options)", 2)


def _add_options(parser: argparse.ArgumentParser, config: type, names: Sequence[str] | None = None) -> None:
    """Make an option of each field of a dataclass (of those in `names`): its type and help text from the annotation.

    An option that is not given is not in the namespace: the dataclass has the default, and a resumed run its own.
    """
    hints = typing.get_type_hints(config, include_extras=True)
    for field in fields(config):
        if names is not None and field.name not in names:
            continue
        annotated, text = typing.get_args(hints[field.name])
        kind = next((part for part in typing.get_args(annotated) if part is not type(None)), annotated)  # X of X | None
        choices = CHOICES.get(field.name)
        text += f": {', '.join(choices)}" if choices else ""
        text += "" if field.default is None else f" (default: {field.default})"
        option = f"--{field.name.replace('_', '-')}"
        metavar = METAVARS.get(field.name, METAVARS[kind])
        parser.add_argument(option, type=kind, default=argparse.SUPPRESS, help=text, metavar=metavar, choices=choices)


def _parser() -> _Parser:
    parser = _Parser(prog="conformer", description="The vision Conformer (Peng et al., ICCV 2021): train it, measure it, look at its shapes.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    text = "train a network"
    train = commands.add_parser("train", help=text, description=f"{text.capitalize()}; progress, metrics and weights go to a run folder.")
    kept = ", ".join(f"--{field.name.replace('_', '-')}" for field in fields(TrainConfig) if field.name in MAY_CHANGE)
    text = f"go on with the run in this folder, from its last checkpoint, with the options it was started with (these may be given anew: {kept})"
    train.add_argument("--resume", type=Path, metavar="RUN", help=text)
    _add_options(train, TrainConfig)
    train.set_defaults(command=_train)

    text = "measure a trained network on the test images"
    measure = commands.add_parser("evaluate", help=text, description=f"{text.capitalize()}: CNN head, transformer head, and the sum of both.")
    measure.add_argument("run", type=Path, metavar="RUN", help="a run folder (its last weights are taken), or a weights file in it")
    _add_options(measure, TrainConfig, ["data_dir"])
    measure.add_argument("--batch-size", type=_positive, default=500, metavar="N", help="images at a time (default: 500)")
    measure.set_defaults(command=_evaluate)

    text = "print a network's shapes, parameters and multiply-accumulates, block by block"
    info = commands.add_parser("info", help=text, description=f"{text.capitalize()}.")
    _add_options(info, TrainConfig, ["config"])
    info.add_argument(
        "--image-size", type=_positive, metavar="N", help="side of the images in pixels (if not given: 32, or 224 with the ImageNet stem)"
    )
    info.set_defaults(command=_info)
    return parser


def _positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    given = {field.name: getattr(options, field.name) for field in fields(TrainConfig) if hasattr(options, field.name)}
    if options.resume and "out" in given:
        raise Mistake("--resume goes on in the folder of the run itself: leave --out out", 2)
    try:
        config = TrainConfig(**given)
    except ValueError as error:  # its sentence begins with the name of the field
        name, rest = str(error).split(" ", 1)
        raise Mistake(f"--{name.replace('_', '-')} {rest}", 2) from error
    _say_pins()
    try:
        trainer = Trainer.resume(options.resume, _display(), **given) if options.resume else Trainer(config, _display())
    except (OSError, ValueError) as error:
        raise Mistake(_sentence(error), 1) from error
    run = trainer.folder.path
    if trainer.finished:
        print(f"the run in {run} is finished: {trainer.steps:,} steps, test accuracy {trainer.test} %")
        _draw(run)
        return 0
    try:
        trainer.run()
    except FloatingPointError as error:
        raise Mistake(_sentence(error), 1) from error
    except OSError as error:
        raise Mistake(f"{_sentence(error)}; {_way_on(trainer)}", 1) from error
    except KeyboardInterrupt as error:
        number = error.signal if isinstance(error, Stopped) else signal.SIGINT
        raise Mistake(f"stopped at step {trainer.step:,} of {trainer.steps:,}; {_way_on(trainer)}", 128 + number) from error
    _draw(run)
    return 0


def _way_on(trainer: Trainer) -> str:
    """How to go on with a run that was broken off."""
    kept = "nothing was saved yet" if trainer.saved is None else f"step {trainer.saved[0]:,} is saved"
    return f"{kept}, go on with: conformer train --resume {shlex.quote(str(trainer.folder.path))}"


def _draw(run: Path) -> None:
    """Add the picture of the curves; training has succeeded already, so what is in its way is said and no more."""
    try:
        from conformer.curves import draw_curves

        draw_curves(run)
    except ImportError:
        print("conformer: curves.png needs matplotlib (pip install 'minigrad-conformer[app]'); it is not drawn", file=sys.stderr)
    except OSError as error:
        print(f"conformer: curves.png is not drawn: {_sentence(error)}", file=sys.stderr)


def _evaluate(options: argparse.Namespace) -> int:
    try:
        model, entries = load_run(options.run)
        dataset = data.load(entries["dataset"], getattr(options, "data_dir", None))
    except (OSError, ValueError) as error:
        raise Mistake(_sentence(error), 1) from error
    result = evaluate(model, dataset.test, dataset, options.batch_size)
    print(f"{entries['config']} after {int(entries['step']):,} steps, on {len(dataset.test):,} test images of {dataset.name} from {dataset.source}")
    for name, share in zip(("CNN head", "transformer head", "sum of both"), result.accuracies, strict=True):
        print(f"  {name:<17} {100 * share:6.2f} %")
    print(f"  loss              {result.loss:6.3f}")
    return 0


def _info(options: argparse.Namespace) -> int:
    try:
        print(describe(named_config(getattr(options, "config", TrainConfig.config)), options.image_size))
    except ValueError as error:
        raise Mistake(_sentence(error), 2) from error
    _say_pins()
    return 0


def _say_pins() -> None:
    """Say when the environment pins OpenBLAS to an older processor; it is read before Python code runs, so only the user can change it."""
    if found := [f"{name}={os.environ[name]}" for name in OPENBLAS_PINS if os.environ.get(name)]:
        names = " ".join(f"-u {name}" for name in OPENBLAS_PINS)
        print(f"conformer: {' and '.join(found)} may halve NumPy's speed; start with `env {names} ...` to leave it out", file=sys.stderr)


def _sentence(error: Exception) -> str:
    """An error's message without "[Errno 2]"."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _display() -> Display:
    """One line that is rewritten where output is a terminal (and rich is installed), lines every few seconds elsewhere."""
    if not sys.stdout.isatty():
        return Display()
    try:
        from rich.console import Console
    except ImportError:
        print("conformer: the live display needs rich (pip install 'minigrad-conformer[app]'); lines are printed instead", file=sys.stderr)
        return Display()
    console = Console()
    return Display() if console.is_dumb_terminal else LiveDisplay(console)


class LiveDisplay(Display):
    """Shows progress as one line of a terminal, rewritten at most `rate` times a second; messages stay above it."""

    def __init__(self, console: Any, rate: float = 4.0):
        from rich.live import Live

        super().__init__(seconds=1 / rate)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def message(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, progress: Progress) -> None:
        from rich.text import Text

        now = time.monotonic()
        if now >= self._next:
            self._next = now + self.seconds
            self._live.start()  # does nothing after the first time
            self._live.update(Text(str(progress), no_wrap=True, overflow="ellipsis"), refresh=True)

    def close(self) -> None:
        self._live.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the command and its options; None takes the process's.

    Returns:
        The exit status: 0, or 1 or 2 after a sentence on stderr, or 130 after Ctrl-C and 143 after SIGTERM.
    """
    try:
        options = _parser().parse_args(argv)
        return options.command(options)
    except Mistake as mistake:
        print(f"conformer: {mistake}", file=sys.stderr)
        return mistake.status
    except SystemExit as leave:  # --help
        return int(leave.code or 0)
    except KeyboardInterrupt:
        print("conformer: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left, as in `conformer info | head -3`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
