"""The command line: `python -m conformer train|evaluate|predict|explain|report|study|info`, also installed as `conformer`.

Here are its options, and how the program begins and ends; what each command does is in `train_commands.py` and `use_commands.py`. The options of
`train` are the fields of `TrainConfig`. What a user can put right ends in one sentence on stderr and exit status 2 (the command is wrong) or 1 (a
file, a folder or the training is); anything else is a fault of ours and keeps its traceback. The modules that need the application's extras
(`pip install -e ".[app]"`) are imported where they are used: `live_display.py` (rich), `plots.py` (matplotlib), `image_files.py` (pillow),
`report.py` (matplotlib and pillow) and `download.py` (pooch). Read next: `conformer/parser.py`, then the commands.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import minigrad
from conformer import data, devices
from conformer.baselines import NETWORKS
from conformer.config import CONFIGS
from conformer.evaluate import TTA
from conformer.loading import loaded
from conformer.mistakes import Mistake, complain, sentence
from conformer.options import MAY_CHANGE, TrainConfig, flag
from conformer.parser import Parser, add_options, one_of, one_of_numbers, png_path, positive, some_path
from conformer.study import EACH_RUN
from conformer.train_commands import run_study, run_train
from conformer.use_commands import run_evaluate, run_explain, run_info, run_predict, run_report
from minigrad.backend import cpu
from minigrad.backend.cublas import PRECISIONS

__all__ = ["main"]

CHOICES = {"config": CONFIGS, "network": NETWORKS, "dataset": data.DATASETS, "device": devices.DEVICES, "precision": PRECISIONS, "tta": TTA}
WEIGHTS = "a run folder (its last weights are taken), or a weights file in it"
DATA = "an archive, its folder or their parent (if not given: where the run had it, $CONFORMER_DATA, the cache, then a download)"


class _Version(argparse.Action):
    """Prints the version and leaves. argparse's own action wants it beforehand, and looking it up takes 20 ms."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(minigrad.__version__)
        parser.exit()


def _parser() -> Parser:
    parser = Parser(prog="conformer", description="The vision Conformer (Peng et al., ICCV 2021): train it, measure it, use it, look at its shapes.")
    parser.add_argument("--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print it")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    training_options = partial(add_options, config=TrainConfig, choices=CHOICES, metavars={"time_budget": "TIME"})

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str, more: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}{more}.")
        added.set_defaults(command=run)
        return added

    train = command("train", run_train, "train a network", "; progress, metrics, weights and at the end a report go to a run folder")
    kept = ", ".join(flag(field.name) for field in fields(TrainConfig) if field.name in MAY_CHANGE)
    text = f"go on with the run in this folder, from its last checkpoint, with the options it was started with (these may be given anew: {kept})"
    train.add_argument("--resume", type=some_path, metavar="RUN", help=text)
    training_options(train)

    more = ", all together and class by class, by the CNN head, the transformer head and the sum of both"
    measure = command("evaluate", run_evaluate, "measure a trained network on the test images", more)
    measure.add_argument("run", type=some_path, metavar="RUN", help=WEIGHTS)
    measure.add_argument("--data-dir", type=some_path, metavar="PATH", help=DATA)
    training_options(measure, names=["device", "tta"])
    measure.add_argument("--batch-size", type=positive, metavar="N", help="images at a time (if not given: 500, and 1,000 on a GPU)")
    text = "where to draw which classes are taken for which (if not given: confusion.png beside the weights)"
    measure.add_argument("--picture", type=png_path, metavar="PATH", help=text)

    more = ": the likeliest classes by the CNN head, the transformer head and the sum of both"
    predict = command("predict", run_predict, "say what images show", more)
    more = ": the places that speak for its answer in the CNN branch, and those that the transformer branch's class token is made of"
    explain = command("explain", run_explain, "draw what a network looks at in images", more)
    for added in (predict, explain):
        added.add_argument("images", nargs="+", type=some_path, metavar="IMAGE", help="an image file: JPEG, PNG, WebP, GIF, ...")
        added.add_argument("--run", type=some_path, metavar="RUN", help=f"{WEIGHTS} (if not given: the newest run in runs)")
        training_options(added, names=["device"])
    predict.add_argument("--top", type=positive, default=5, metavar="N", help="how many classes to name (default: 5)")
    explain.add_argument("--out", type=png_path, default=Path("explained.png"), metavar="PATH", help="the picture to make (default: explained.png)")

    more = ": its curves, the images it was measured by, by class, those it is surest of and those it is not, and its options"
    report = command("report", run_report, "make a page of a run, RUN/report.html", more)
    report.add_argument("run", type=some_path, metavar="RUN", help="a run folder")
    report.add_argument("--data-dir", type=some_path, metavar="PATH", help=DATA)
    training_options(report, names=["device"])

    more = "; each run lies in OUT/CONFIG-seed-SEED (a branch alone in OUT/CONFIG-NETWORK-seed-SEED), those that are finished are kept"
    more += ", those that were broken off go on"
    study = command("study", run_study, "train a network, or several, under several seeds, to tell a difference from chance", more)
    finetune = "--finetune, as another place of the same weights, while there are runs that need them"
    text = f"the study's folder; what has begun goes on, with the options it was begun with (these may be given anew: {kept}; and {finetune})"
    study.add_argument("study", type=some_path, metavar="OUT", help=text)
    text = "what fixes every random draw, run by run (if not given: 0 1 2, or those the study has)"
    study.add_argument("--seeds", type=one_of_numbers, nargs="+", default=[], metavar="N", help=text)
    text = f"the networks' sizes; differences are to the study's first one (if not given: cifar-nano, or those the study has): {', '.join(CONFIGS)}"
    study.add_argument("--configs", type=one_of(CONFIGS), nargs="+", default=[], metavar="NAME", help=text)
    text = f"of each: the Conformer, or a branch of it alone (if not given: conformer, or those the study has): {', '.join(NETWORKS)}"
    study.add_argument("--networks", type=one_of(NETWORKS), nargs="+", default=[], metavar="NAME", help=text)
    study.add_argument("--show", action="store_true", help="print the tables of what is finished, and train nothing")
    training_options(study, names=[field.name for field in fields(TrainConfig) if field.name not in EACH_RUN])

    info = command("info", run_info, "print a network's shapes, parameters and multiply-accumulates, block by block")
    training_options(info, names=["config", "network"])
    text = "side of the images in pixels (if not given: 32, or 224 with the ImageNet stem)"
    info.add_argument("--image-size", type=positive, metavar="N", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the command and its options; None takes the process's.

    Returns:
        The exit status: 0, or 1 or 2 after a sentence on stderr, or 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may have what the terminal's encoding has not
    try:
        status = _run(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where what goes wrong can be said, and not when Python ends
        return status
    except OSError as error:
        if error.filename is not None:  # not of our output
            raise
        return _output_lost(error)


def _run(argv: Sequence[str] | None) -> int:
    """Run one command, and say what the user can put right."""
    try:
        loaded()
        options = _parser().parse_args(argv)
        _start_threads()
        options.command(options)
        return 0
    except Mistake as mistake:
        complain(mistake)
        return mistake.status
    except SystemExit as leave:  # --help
        return int(leave.code or 0)
    except KeyboardInterrupt:
        complain("stopped")
        return 130
    except MemoryError as error:
        complain(f"{sentence(error)}; free some, or take fewer images at a time")
        return 1


def _start_threads() -> None:
    """Make the pool of threads, which every command but --help uses."""
    try:
        cpu.thread_count()
    except ValueError as error:
        raise Mistake(sentence(error), 2) from error
    except RuntimeError as error:
        raise Mistake(f"{sentence(error)}; set MINIGRAD_THREADS to a smaller number", 1) from error


def _output_lost(error: OSError) -> int:
    """Our output cannot be written: say so, unless its reader has left, as in `conformer info | head -3`. Returns the exit status."""
    broken = isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)  # Windows' number for a pipe that is closed
    for stream in (sys.stdout, sys.stderr) if broken else (sys.stdout,):
        with contextlib.suppress(AttributeError, OSError):  # Python flushes at its end what is left: to nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if not broken:
        with contextlib.suppress(OSError):  # both are the terminal that was closed
            complain(f"the output cannot be written: {error.strerror or error}")
    return 1
