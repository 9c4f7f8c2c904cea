"""The commands that train: `train`, one run, and `study`, several. Each begins something or goes on with it, and ends in curves and report.

Read before: `conformer/cli.py`, the options. Read next: `conformer/train.py`, `conformer/study.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from conformer import data, devices
from conformer.display import Display
from conformer.evaluate import Predictions, evaluate
from conformer.mistakes import EXTRAS, Mistake, complain, drawing, say_pins, sentence, told
from conformer.options import OptionError, TrainConfig, flag, words_of
from conformer.run_folder import CHECKPOINT
from conformer.run_log import read_log
from conformer.stopping import Stopped
from conformer.study import Study, StudyError
from conformer.text import printable, quoted
from conformer.train import Trainer
from conformer.use_commands import measure
from conformer.weights import load_weights

__all__ = ["run_study", "run_train"]


def run_train(options: argparse.Namespace) -> None:
    """Begin a run, or go on with one; of one that is finished, make again what is made of it."""
    given = _given(options)
    if options.resume and "out" in given:
        raise Mistake("--resume goes on in the folder of the run itself: leave --out out", 2)
    say_pins()
    with _setting_up():
        trainer = Trainer.resume(options.resume, _display(), **given) if options.resume else Trainer(TrainConfig(**given), _display())
    if not trainer.finished:
        with told(1, FloatingPointError):
            _run_on(trainer)
        if options.resume:
            _mend_weights(trainer)  # the best ones may be from before, and lost since
        return
    run = trainer.folder.path
    print(f"the run in {printable(run)} is finished: {trainer.steps:,} steps, {trainer.dataset.measured} accuracy {trainer.test} %")
    _mend_weights(trainer)
    predictions = evaluate(trainer.learner.model, trainer.dataset.test, trainer.dataset, tta=trainer.config.tta)
    _report_of(run, lambda: (trainer.dataset, predictions))


def run_study(options: argparse.Namespace) -> None:
    """Train what is left of a study, or show what it has."""
    given = _given(options)
    if options.show:
        if extra := [name for name in ("seeds", "configs", "networks") if getattr(options, name)] + list(given):
            raise Mistake(f"--show trains nothing: leave {flag(extra[0])} out", 2)
        with _setting_up():
            tables = Study.existing(options.study).findings().text()
        print(tables)  # where that fails, `main` says so
        return
    say_pins()
    with _setting_up():
        study = Study(options.study, options.seeds, options.configs, options.networks, **given)
    try:
        diverged = _run_all(study)
    except KeyboardInterrupt as error:  # between two runs
        if not (study.path / "study.json").is_file():
            raise
        again = f"{_program()} study {quoted(study.path)}{'' if study.saved else _repeated(options)}"
        raise Mistake(f"stopped between runs; go on with: {again}", 130) from error
    for run in study.runs:
        if run.figures and not (run.path / "report.html").exists():  # the process was killed after the last evaluation
            _report_of(run.path, partial(measure, run.path, study.options.data_dir, study.options.device))
    print(f"\n{study.findings().text()}\nwritten to {printable(study.path / 'study.md')} and study.json")
    if diverged:
        way_on = "for other options, begin another study in another folder; to try a run again, on another device perhaps, remove its folder"
        raise Mistake(f"{', '.join(diverged)} diverged, left out of the means; {way_on}", 1)


def _run_all(study: Study) -> list[str]:
    """Train the runs of a study that are not finished; returns the names of those that diverge now, without which the others go on."""
    diverged: list[str] = []
    with contextlib.closing(study.trainers(_display())) as trainers:
        while True:
            with _setting_up():
                trainer = next(trainers, None)
            if trainer is None:
                return diverged
            try:
                _run_on(trainer, study.path)
            except FloatingPointError as error:
                diverged.append(trainer.folder.path.name)
                study.note_diverged(trainer, sentence(error))
                complain(f"{diverged[-1]}: {sentence(error)}")
            del trainer  # before the next one needs the memory


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of training that were given."""
    return {field.name: getattr(options, field.name) for field in fields(TrainConfig) if hasattr(options, field.name)}


def _repeated(options: argparse.Namespace) -> str:
    """What a study was given, once more as the command line has it."""
    added = {name: values for name in ("seeds", "configs", "networks") if (values := getattr(options, name))}
    words = [f"{flag(name)} {' '.join(map(quoted, values))}" for name, values in added.items()]
    return "".join(f" {word}" for word in [*words, *words_of(_given(options))])


@contextlib.contextmanager
def _setting_up() -> Iterator[None]:
    """A block that sets a Trainer up: raises Mistake for what is wrong with options, data or folder."""
    try:
        yield
    except OptionError as error:
        raise Mistake(error.dashed, 2) from error
    except (devices.DeviceError, StudyError) as error:
        raise Mistake(sentence(error), 2) from error
    except (OSError, ValueError, FloatingPointError) as error:
        raise Mistake(sentence(error), 1) from error


def _run_on(trainer: Trainer, study: Path | None = None) -> None:
    """Run a Trainer to its end, and add curves and report; `study` is the folder of the study that it is of.

    Raises:
        FloatingPointError: the training diverges.
        Mistake: it is broken off by anything else that the user, or the machine, does.
    """
    run = trainer.folder.path
    try:
        trainer.run()
    except MemoryError as error:
        raise Mistake(_no_memory(error, trainer, study), 1) from error
    except OSError as error:
        raise Mistake(f"{sentence(error)}; {_way_on(trainer, study)}", 1) from error
    except KeyboardInterrupt as error:
        if trainer.folder.has("metrics.jsonl"):
            _draw_curves(run)
        number = error.signal if isinstance(error, Stopped) else signal.SIGINT
        where = f"at step {trainer.step:,} of {trainer.steps:,}" if trainer.steps_fixed else "while steps were timed"
        of = f" in {run.name}" if study else ""
        raise Mistake(f"stopped {where}{of}; {_way_on(trainer, study)}", 128 + number) from error
    _report_of(run, lambda: (trainer.dataset, trainer.predictions))


def _no_memory(error: MemoryError, trainer: Trainer, study: Path | None) -> str:
    """What to do where memory runs out; a run that had enough for some steps may go on when other programs have given theirs back."""
    advice = "take a smaller --batch-size, or its images in parts with --accumulate" + (", in another study, in another folder" if study else "")
    again = f"; or, where there is more again: {_way_on(trainer, study)}" if trainer.saved and trainer.saved[0] else ""
    return f"{sentence(error)}; {advice}{again}"


def _mend_weights(trainer: Trainer) -> None:
    """Write the weights files of a finished run anew, as the checkpoint has them, if they are lost or damaged. It does not have those of
    best.safetensors, where the last ones are not as good.
    """
    best = partial(trainer.save_last, "best") if trainer.test == trainer.best else None
    mended = {"last": trainer.save_last, "best": best} | ({"ema": trainer.save_average} if trainer.learner.ema else {})
    for name, write in mended.items():
        try:
            load_weights(trainer.folder.path / f"{name}.safetensors")
        except (OSError, ValueError) as error:
            if write is None:
                rest = f"use last.safetensors, with {trainer.dataset.measured} accuracy {trainer.test} % where that had {trainer.best} %"
                complain(f"{sentence(error)}; it cannot be written anew: {rest}")
                continue
            complain(f"{sentence(error)}; it is written anew from the checkpoint")
            with told(1, OSError):
                write()


def _way_on(trainer: Trainer, study: Path | None) -> str:
    """How to go on with a run that was broken off."""
    command = f"{_program()} {'study' if study else 'train --resume'}"
    if not trainer.folder.has("config.json" if trainer.saved is None else CHECKPOINT):
        if study and (study / "study.json").is_file():  # the run's folder alone went away
            back = f"put {quoted(trainer.folder.path)} back to go on, or leave it and begin that run anew"
            return f"what was saved is not there now; {back}, with: {command} {quoted(study)}"
        return f"what was saved is not there now; if the folder was moved, go on in its new place with: {command} FOLDER"
    kept = "nothing was saved yet" if trainer.saved is None else f"step {trainer.saved[0]:,} is saved"
    return f"{kept}, go on with: {command} {quoted(study or trainer.folder.path)}"


def _program() -> str:
    """This program, as the user's shell finds it: after `make train` there is no `conformer` on its path."""
    is_script = _bare(os.path.basename(sys.argv[0])) == "conformer"  # the installed one
    started = sys.argv[0] if is_script else sys.executable
    name = os.path.basename(started)
    word = name if _bare(shutil.which(name) or "") == _bare(started) else quoted(started)
    if os.name == "nt" and word.startswith('"'):  # which PowerShell takes for a text, and not for a program
        return "python -m conformer"
    return word if is_script else f"{word} -m conformer"


def _bare(program: str) -> str:
    r"""A program's path, to compare: on Windows Scripts\conformer, as pip's launcher says, and scripts\conformer.EXE are one."""
    return os.path.normcase(os.path.splitext(program)[0]) if os.name == "nt" else program


def _report_of(run: Path, measured: Callable[[], tuple[data.Dataset, Predictions | None]]) -> None:
    """Add curves and report to a run, with what was `measured`, or is now, if there can be a report. Training has succeeded already, so what is in
    their way is said, and no more.
    """
    if _draw_curves(run):
        try:
            from conformer.report import write_report

            page = write_report(run, *measured())
        except (OSError, ValueError, MemoryError, devices.DeviceError) as error:
            complain(f"report.html is not made: {sentence(error)}")
        else:
            print(f"report: {printable(page)}")


def _draw_curves(run: Path) -> bool:
    """Add the picture of the curves, or say why not; returns whether it is there."""
    try:
        with drawing("a picture of the curves"):
            from conformer.plots import save_curves
        save_curves(run, read_log(run))
        return True
    except Mistake as mistake:
        complain(f"{mistake}; curves.png and report.html are not made")
    except (OSError, ValueError, MemoryError) as error:
        complain(f"curves.png and report.html are not made: {sentence(error)}")
    return False


def _display() -> Display:
    """A few lines that are rewritten where output is a terminal (and rich is installed), lines every few seconds elsewhere."""
    if sys.stdout is None or not sys.stdout.isatty():  # None: the shell has closed it, `>&-`
        return Display()
    try:
        from rich.console import Console

        from conformer.live_display import LiveDisplay
    except ImportError:
        complain(f"the live display needs rich ({EXTRAS}); lines are printed instead")
        return Display()
    console = Console()
    return Display() if console.is_dumb_terminal else LiveDisplay(console)
