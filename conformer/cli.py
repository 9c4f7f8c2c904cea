"""The command line: `python -m conformer train|evaluate|predict|explain|report|study|info`, also installed as `conformer`.

The options of `train` are the fields of `TrainConfig`. What a user can put right ends in one sentence on stderr and exit status 2 (the
command is wrong) or 1 (a file, a folder or the training is); anything else is a fault of ours and keeps its traceback. The modules that need the
application's extras (`pip install -e ".[app]"`) are imported where they are used: `live_display.py` (rich), `plots.py` (matplotlib),
`image_files.py` (pillow), `report.py` (matplotlib and pillow) and `download.py` (pooch). Read next: `conformer/parser.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minigrad
from conformer import data, devices
from conformer.augment import normalize
from conformer.config import CONFIGS, named_config
from conformer.display import Display
from conformer.evaluate import HEADS, TTA, Predictions, evaluate, predict
from conformer.files import quoted
from conformer.info import columns, describe
from conformer.model import Conformer
from conformer.options import MAY_CHANGE, OptionError, TrainConfig, flag
from conformer.parser import Mistake, Parser, add_options, one_of, png_path, positive, some_path
from conformer.run_folder import CHECKPOINT, OPENBLAS_PINS, read_config
from conformer.run_log import read_log
from conformer.stopping import Stopped
from conformer.study import EACH_RUN, Study, StudyError
from conformer.text import printable
from conformer.train import Trainer
from conformer.weights import About, load_weights, weights_file
from minigrad import functional as F
from minigrad.backend import cpu, cuda
from minigrad.backend.cublas import PRECISIONS
from minigrad.modes import no_grad
from minigrad.tensor import Tensor

__all__ = ["main"]

CHOICES = {"config": CONFIGS, "dataset": data.DATASETS, "device": devices.DEVICES, "precision": PRECISIONS, "tta": TTA}
METAVARS = {"time_budget": "TIME"}
EXTRAS = 'in the project\'s folder, pip install -e ".[app]"'
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

    def command(name: str, run, text: str, more: str = "") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}{more}.")
        added.set_defaults(command=run)
        return added

    train = command("train", _train, "train a network", "; progress, metrics, weights and at the end a report go to a run folder")
    kept = ", ".join(flag(field.name) for field in fields(TrainConfig) if field.name in MAY_CHANGE)
    text = f"go on with the run in this folder, from its last checkpoint, with the options it was started with (these may be given anew: {kept})"
    train.add_argument("--resume", type=some_path, metavar="RUN", help=text)
    add_options(train, TrainConfig, CHOICES, METAVARS)

    more = ", all together and class by class, by the CNN head, the transformer head and the sum of both"
    measure = command("evaluate", _evaluate, "measure a trained network on the test images", more)
    measure.add_argument("run", type=some_path, metavar="RUN", help=WEIGHTS)
    measure.add_argument("--data-dir", type=some_path, metavar="PATH", help=DATA)
    add_options(measure, TrainConfig, CHOICES, METAVARS, ["device", "tta"])
    measure.add_argument("--batch-size", type=positive, metavar="N", help="images at a time (if not given: 500, and 1,000 on a GPU)")
    text = "where to draw which classes are taken for which (if not given: confusion.png beside the weights)"
    measure.add_argument("--picture", type=png_path, metavar="PATH", help=text)

    more = ": the likeliest classes by the CNN head, the transformer head and the sum of both"
    name = command("predict", _predict, "say what images show", more)
    name.add_argument("images", nargs="+", type=some_path, metavar="IMAGE", help="an image file: JPEG, PNG, WebP, GIF, ...")
    name.add_argument("--run", type=some_path, metavar="RUN", help=f"{WEIGHTS} (if not given: the newest run in runs)")
    add_options(name, TrainConfig, CHOICES, METAVARS, ["device"])
    name.add_argument("--top", type=positive, default=5, metavar="N", help="how many classes to name (default: 5)")

    more = ": the places that speak for its answer in the CNN branch, and those that the transformer branch's class token is made of"
    look = command("explain", _explain, "draw what a network looks at in images", more)
    look.add_argument("images", nargs="+", type=some_path, metavar="IMAGE", help="an image file: JPEG, PNG, WebP, GIF, ...")
    look.add_argument("--run", type=some_path, metavar="RUN", help=f"{WEIGHTS} (if not given: the newest run in runs)")
    add_options(look, TrainConfig, CHOICES, METAVARS, ["device"])
    look.add_argument("--out", type=png_path, default=Path("explained.png"), metavar="PATH", help="the picture to make (default: explained.png)")

    more = ": its curves, its test images by class, those it is surest of and those it is not, and its options"
    report = command("report", _report, "make a page of a run, RUN/report.html", more)
    report.add_argument("run", type=some_path, metavar="RUN", help="a run folder")
    report.add_argument("--data-dir", type=some_path, metavar="PATH", help=DATA)
    add_options(report, TrainConfig, CHOICES, METAVARS, ["device"])

    more = "; each run lies in OUT/CONFIG-seed-SEED, those that are finished are kept, those that were broken off go on"
    study = command("study", _study, "train a network, or several, under several seeds, to tell a difference from chance", more)
    text = f"the study's folder; what has begun goes on, with the options it was begun with (these may be given anew: {kept})"
    study.add_argument("study", type=some_path, metavar="OUT", help=text)
    text = "what fixes every random draw, run by run (if not given: 0 1 2, or those the study has)"
    study.add_argument("--seeds", type=int, nargs="+", default=[], metavar="N", help=text)
    text = f"the networks; differences are to the first one (if not given: cifar-nano, or those the study has): {', '.join(CONFIGS)}"
    study.add_argument("--configs", type=one_of(CONFIGS), nargs="+", default=[], metavar="NAME", help=text)
    study.add_argument("--show", action="store_true", help="print the tables of what is finished, and train nothing")
    add_options(study, TrainConfig, CHOICES, METAVARS, [field.name for field in fields(TrainConfig) if field.name not in EACH_RUN])

    info = command("info", _info, "print a network's shapes, parameters and multiply-accumulates, block by block")
    add_options(info, TrainConfig, CHOICES, METAVARS, ["config"])
    text = "side of the images in pixels (if not given: 32, or 224 with the ImageNet stem)"
    info.add_argument("--image-size", type=positive, metavar="N", help=text)
    return parser


def _train(options: argparse.Namespace) -> None:
    given = _given(options)
    if options.resume and "out" in given:
        raise Mistake("--resume goes on in the folder of the run itself: leave --out out", 2)
    _say_pins()
    with _setting_up():
        trainer = Trainer.resume(options.resume, _display(), **given) if options.resume else Trainer(TrainConfig(**given), _display())
    run = trainer.folder.path
    if trainer.finished:
        print(f"the run in {run} is finished: {trainer.steps:,} steps, test accuracy {trainer.test} %")
        _mend_weights(trainer)
        predictions = evaluate(trainer.learner.model, trainer.dataset.test, trainer.dataset, tta=trainer.config.tta)
        _report_of(run, lambda: (trainer.dataset, predictions))
        return
    with _told(1, FloatingPointError):
        _run_on(trainer, "train --resume", run)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of training that were given."""
    return {field.name: getattr(options, field.name) for field in fields(TrainConfig) if hasattr(options, field.name)}


@contextlib.contextmanager
def _setting_up() -> Iterator[None]:
    """A block that sets a Trainer up: raises Mistake for what is wrong with options, data or folder."""
    try:
        yield
    except OptionError as error:
        raise Mistake(error.dashed, 2) from error
    except (devices.DeviceError, StudyError) as error:
        raise Mistake(_sentence(error), 2) from error
    except (OSError, ValueError, FloatingPointError) as error:
        raise Mistake(_sentence(error), 1) from error


def _run_on(trainer: Trainer, command: str, place: Path) -> None:
    """Run a Trainer to its end, and add curves and report; `command` and `place` are what goes on with it where it is broken off.

    Raises:
        FloatingPointError: the training diverges.
        Mistake: it is broken off by anything else that the user, or the machine, does.
    """
    run = trainer.folder.path
    try:
        trainer.run()
    except MemoryError as error:
        text = f"there is not enough memory ({_sentence(error)}); take a smaller --batch-size, or its images in parts with --accumulate"
        raise Mistake(text + ", in another study, in another folder" * (run != place), 1) from error
    except OSError as error:
        raise Mistake(f"{_sentence(error)}; {_way_on(trainer, command, place)}", 1) from error
    except KeyboardInterrupt as error:
        if trainer.folder.has("metrics.jsonl"):
            _draw_curves(run)
        number = error.signal if isinstance(error, Stopped) else signal.SIGINT
        where = f"at step {trainer.step:,} of {trainer.steps:,}" if trainer.steps_fixed else "while steps were timed"
        of = "" if run == place else f" in {run.name}"
        raise Mistake(f"stopped {where}{of}; {_way_on(trainer, command, place)}", 128 + number) from error
    _report_of(run, lambda: (trainer.dataset, trainer.predictions))


def _mend_weights(trainer: Trainer) -> None:
    """Write last.safetensors of a finished run from its checkpoint, if it is lost or damaged."""
    try:
        load_weights(trainer.folder.path)
    except (OSError, ValueError) as error:
        print(f"conformer: {_sentence(error)}; it is written anew from the checkpoint", file=sys.stderr)
        with _told(1, OSError):
            trainer.save_last()


def _way_on(trainer: Trainer, command: str, place: Path) -> str:
    """How to go on with a run that was broken off."""
    kept = "nothing was saved yet" if trainer.saved is None else f"step {trainer.saved[0]:,} is saved"
    if not trainer.folder.has("config.json" if trainer.saved is None else CHECKPOINT):
        return f"what was saved is not there now; if the folder was moved, go on in its new place with: {_program()} {command} FOLDER"
    return f"{kept}, go on with: {_program()} {command} {quoted(place)}"


def _program() -> str:
    """This program, as the user's shell finds it: after `make train` there is no `conformer` on its path."""
    started = Path(sys.argv[0])
    if started.name == "conformer":  # the installed script
        return "conformer" if shutil.which("conformer") == str(started) else quoted(started)
    python = Path(sys.executable)
    return f"{python.name if shutil.which(python.name) == str(python) else quoted(python)} -m conformer"


def _report_of(run: Path, measured: Callable[[], tuple[data.Dataset, Predictions | None]]) -> None:
    """Add curves and report to a run, with what was `measured`, or is now, if there can be a report. Training has succeeded already, so what is in
    their way is said, and no more.
    """
    if _draw_curves(run):
        try:
            from conformer.report import write_report

            page = write_report(run, *measured())
        except (OSError, ValueError, devices.DeviceError) as error:
            print(f"conformer: report.html is not made: {_sentence(error)}", file=sys.stderr)
        else:
            print(f"report: {page}")


def _draw_curves(run: Path) -> bool:
    """Add the picture of the curves, or say why not."""
    try:
        with _drawing("a picture of the curves"):
            from conformer.plots import save_curves
        save_curves(run, read_log(run))
        return True
    except Mistake as mistake:
        print(f"conformer: {mistake}; curves.png and report.html are not made", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"conformer: curves.png is not drawn: {_sentence(error)}", file=sys.stderr)
    return False


@contextlib.contextmanager
def _drawing(what: str) -> Iterator[None]:
    """A block that imports matplotlib, directly or not, to draw `what`. Raises Mistake where it is missing, or where it refuses to be imported, as
    when MPLBACKEND names no backend.
    """
    try:
        yield
    except ImportError as error:  # also of pillow, which matplotlib brings
        raise Mistake(f"{what} needs matplotlib ({EXTRAS})", 1) from error
    except (ValueError, RuntimeError) as error:  # the latter: it finds no home to keep its files in
        raise Mistake(f"{what} is not drawn: {_sentence(error)}", 1) from error


@contextlib.contextmanager
def _told(status: int, errors: type[Exception] | tuple[type[Exception], ...] = (OSError, ValueError)) -> Iterator[None]:
    """A block in which these errors are what the user can put right: raises Mistake with their sentence and this exit status."""
    try:
        yield
    except errors as error:
        raise Mistake(_sentence(error), status) from error


def _device(options: argparse.Namespace) -> str:
    """The device that was asked for."""
    with _told(2, devices.DeviceError):
        return devices.choose(getattr(options, "device", TrainConfig.device))


def _evaluate(options: argparse.Namespace) -> None:
    device = _device(options)
    with _told(1):
        picture = options.picture or weights_file(options.run).with_name("confusion.png")
        model, about = load_weights(options.run)
        saved = _options_of(options.run)
        tta = getattr(options, "tta", None) or _tta_of(saved)
        dataset = _dataset_of(about, options.data_dir, saved)
    predictions = evaluate(model.to(device=device), dataset.test, dataset, options.batch_size, tta)
    classes = [printable(name) for name in dataset.classes]
    title = f"{printable(about.config)} after {about.step:,} steps, on {len(dataset.test):,} test images of {dataset.name}"
    print(f"{title} from {dataset.source}, on {devices.describe(device)}{', with mirror images' * (tta == 'mirror')}")
    for name, share in zip(HEADS.values(), predictions.accuracies, strict=True):
        print(f"  {name:<17} {100 * share:6.2f} %")
    print(f"  loss              {predictions.loss:6.3f}")
    shares = np.stack(list(predictions.class_accuracies().values()), axis=1)  # (K, 3)
    rows = [[name, *(f"{100 * share:.1f}" for share in row)] for name, row in zip(classes, shares, strict=True)]
    print("\n" + columns([["accuracy in percent", *HEADS.values()], *rows]))
    try:
        with _drawing("the picture of the confusion matrix"):
            from conformer.plots import save_confusion_matrix
        save_confusion_matrix(picture, predictions.confusion_matrix(), dataset.classes, title)
    except Mistake as mistake:
        if options.picture is not None:
            raise
        print(f"conformer: {mistake}", file=sys.stderr)  # nobody asked for it; the figures, which were asked for, are printed
    except OSError as error:
        raise Mistake(f"the picture is not drawn: {_sentence(error)}", 1) from error
    else:
        print(f"\nwhich classes are taken for which: {picture}")


def _dataset_of(about: About, data_dir: Path | None, saved: dict[str, Any]) -> data.Dataset:
    """The data set that weights were trained on: in --data-dir, or else where the run with the options `saved` had it."""
    if data_dir is not None:
        dataset = data.load(about.dataset, data_dir)
    else:
        before = saved.get("data_dir")
        with data.place_of(about.dataset, Path(str(before)) if before else None) as place:
            dataset = data.load(about.dataset, place)
    if dataset.classes != about.classes or dataset.test.images.shape[1:3] != about.image_size:
        raise ValueError(f"the weights are for other classes or images of another size than {dataset.name} in {dataset.source} has")
    return replace(dataset, mean=about.mean, std=about.std)  # a run may have trained with others than are usual


def _options_of(run: Path) -> dict[str, Any]:
    """The options of the run that weights are from; none where the file lies alone."""
    config = weights_file(run).with_name("config.json")
    return read_config(config.parent) if config.is_file() else {}


def _tta_of(saved: dict[str, Any]) -> str:
    """The test-time augmentation that a run was measured with: without it, it would have another accuracy."""
    if (tta := saved.get("tta", TrainConfig.tta)) not in TTA:
        raise ValueError(f"config.json of the run says that tta is {tta!r}; it must be one of {', '.join(TTA)}")
    return tta


def _load_images(options: argparse.Namespace) -> tuple[Conformer, About, np.ndarray]:
    """The network that was asked for, and the images as it takes them: uint8 (N, H, W, 3), or (N, H, W, 1) for one of grey images."""
    try:
        from conformer.image_files import read_image
    except ImportError as error:
        raise Mistake(f"reading image files needs pillow ({EXTRAS})", 1) from error
    device = _device(options)
    with _told(1):
        run = options.run or _newest_run()
        model, about = load_weights(run)
        channels = model.config.in_chans
        if channels not in (1, 3):
            raise ValueError(f"the network takes images of {channels} channels, and those of image files have 3, or 1 of grey")
        images = np.stack([read_image(path, about.image_size, channels) for path in options.images])
    if options.run is None:
        print(f"by {printable(about.config)} in {run}, trained on {printable(about.dataset)}")
    return model.to(device=device), about, images


def _predict(options: argparse.Namespace) -> None:
    model, about, images = _load_images(options)
    classes = [printable(name) for name in about.classes]
    batches = (normalize(images[start : start + 100], about.mean, about.std) for start in range(0, len(images), 100))
    cnn, transformer = predict(model, batches)  # (N, K) each
    with no_grad():
        shares = [F.softmax(Tensor(logits)).numpy() for logits in (cnn, transformer, cnn + transformer)]
    for number, path in enumerate(options.images):
        table = []
        for name, share in zip(HEADS.values(), shares, strict=True):
            top = np.argsort(-share[number], kind="stable")[: options.top]
            width = max(len(classes[place]) for place in top)
            cells = [f"{classes[place]:<{width}} {100 * share[number, place]:5.1f} %" for place in top]
            table.append([name, *cells])
        widths = [max(map(len, column)) for column in table]
        lines = ("    ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in zip(*table, strict=True))
        print(printable(str(path)), *(f"  {line}" for line in lines), sep="\n")


def _explain(options: argparse.Namespace) -> None:
    from conformer.explain import attention_rollout, class_activation_maps, token_map

    model, about, images = _load_images(options)
    with _drawing("the picture"):
        from conformer.plots import save_explanation
    with _told(1, OSError):
        if options.out.exists() and any(options.out.samefile(image) for image in options.images):
            raise Mistake(f"--out {options.out} is one of the images; give the picture another name", 2)
    batch = Tensor(normalize(images, about.mean, about.std)).to(device=next(model.parameters()).device)
    with no_grad():
        named = {name: tensor.to(device="cpu") for name, tensor in model.eval().intermediates(batch).items()}
    model.to(device="cpu")  # what is read off a few images takes no time
    answers = (named["conv_cls_head"].numpy() + named["trans_cls_head"].numpy()).argmax(axis=1)  # (N,)
    maps, shares = class_activation_maps(model, named, answers), token_map(named, attention_rollout(model, named))
    with _told(1):
        names, taken = [path.name for path in options.images], [about.classes[answer] for answer in answers]
        picture = save_explanation(options.out, images, names, taken, maps, shares)
    print(picture)


def _newest_run() -> Path:
    """The run in runs/ whose weights were written last."""
    found = sorted(Path("runs").glob("*/last.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise Mistake("there is no trained network in runs: give one with --run, or make one with `conformer train`", 1)
    return found[-1].parent


def _report(options: argparse.Namespace) -> None:
    run, device = options.run, _device(options)
    with _drawing("a report"):
        from conformer.plots import save_curves
        from conformer.report import write_report
    with _told(1):
        if not (run / "metrics.jsonl").is_file():
            raise FileNotFoundError(f"there is no run in {run} (no metrics.jsonl); give the folder of a run")
        dataset = predictions = None
        if weights_file(run).is_file():
            dataset, predictions = _measured(run, options.data_dir, device)
        save_curves(run, read_log(run))
        page = write_report(run, dataset, predictions)
    print(page)


def _measured(run: Path, data_dir: Path | None, device: str) -> tuple[data.Dataset, Predictions]:
    """The data set of a run, and what its last weights come to on the test images."""
    model, about = load_weights(run)
    saved = read_config(run)
    dataset = _dataset_of(about, data_dir, saved)
    return dataset, evaluate(model.to(device=devices.choose(device)), dataset.test, dataset, tta=_tta_of(saved))


def _study(options: argparse.Namespace) -> None:
    given = _given(options)
    if options.show:
        if extra := [name for name in ("seeds", "configs") if getattr(options, name)] + list(given):
            raise Mistake(f"--show trains nothing: leave {flag(extra[0])} out", 2)
        with _setting_up():
            print(Study.existing(options.study).findings().text())
        return
    _say_pins()
    with _setting_up():
        study = Study(options.study, options.seeds, options.configs, **given)
    diverged: list[str] = []
    try:
        with contextlib.closing(study.trainers(_display())) as trainers:
            while True:
                with _setting_up():
                    trainer = next(trainers, None)
                if trainer is None:
                    break
                try:
                    _run_on(trainer, "study", study.path)
                except FloatingPointError as error:  # other seeds may do without
                    diverged.append(trainer.folder.path.name)
                    study.note_diverged(trainer, _sentence(error))
                    print(f"conformer: {diverged[-1]}: {_sentence(error)}", file=sys.stderr)
                del trainer  # before the next one needs the memory
    except KeyboardInterrupt as error:  # between two runs
        if not (study.path / "study.json").is_file():
            raise
        raise Mistake(f"stopped between runs; go on with: {_program()} study {quoted(study.path)}", 130) from error
    for run in study.runs:
        if run.figures and not (run.path / "report.html").exists():  # the process was killed after the last evaluation
            _report_of(run.path, partial(_measured, run.path, study.options.data_dir, study.options.device))
    print(f"\n{study.findings().text()}\nwritten to {study.path / 'study.md'} and study.json")
    if diverged:
        raise Mistake(f"{', '.join(diverged)} diverged, left out of the means; for other options, begin another study in another folder", 1)


def _info(options: argparse.Namespace) -> None:
    with _told(2, ValueError):
        print(describe(named_config(getattr(options, "config", TrainConfig.config)), options.image_size))
    print(f"\nhere: {devices.describe('cpu')}; {cuda.availability().sentence}")
    _say_pins()


def _say_pins() -> None:
    """Say when the environment pins OpenBLAS to an older processor; it is read before Python code runs, so only the user can change it."""
    if found := [f"{name}={os.environ[name]}" for name in OPENBLAS_PINS if os.environ.get(name)]:
        names = " ".join(f"-u {name}" for name in OPENBLAS_PINS)
        print(f"conformer: {' and '.join(found)} may halve NumPy's speed; start with `env {names} ...` to leave it out", file=sys.stderr)


def _sentence(error: Exception) -> str:
    """An error's message on one line, without "[Errno 2]"; names in it, of files and in files, may have anything in them."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return printable(text)


def _display() -> Display:
    """A few lines that are rewritten where output is a terminal (and rich is installed), lines every few seconds elsewhere."""
    if sys.stdout is None or not sys.stdout.isatty():  # None: the shell has closed it, `>&-`
        return Display()
    try:
        from rich.console import Console

        from conformer.live_display import LiveDisplay
    except ImportError:
        print(f"conformer: the live display needs rich ({EXTRAS}); lines are printed instead", file=sys.stderr)
        return Display()
    console = Console()
    return Display() if console.is_dumb_terminal else LiveDisplay(console)


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
        options = _parser().parse_args(argv)
        _start_threads()
        options.command(options)
        return 0
    except Mistake as mistake:
        print(f"conformer: {mistake}", file=sys.stderr)
        return mistake.status
    except SystemExit as leave:  # --help
        return int(leave.code or 0)
    except KeyboardInterrupt:
        print("conformer: stopped", file=sys.stderr)
        return 130
    except MemoryError as error:
        why = f" ({_sentence(error)})" if str(error) else ""
        print(f"conformer: there is not enough memory{why}; free some, or take fewer images at a time", file=sys.stderr)
        return 1


def _start_threads() -> None:
    """Make the pool of threads, which every command but --help uses."""
    try:
        cpu.thread_count()
    except ValueError as error:
        raise Mistake(_sentence(error), 2) from error
    except RuntimeError as error:
        raise Mistake(f"{_sentence(error)}; set MINIGRAD_THREADS to a smaller number", 1) from error


def _output_lost(error: OSError) -> int:
    """Our output cannot be written: say so, unless its reader has left, as in `conformer info | head -3`. Returns the exit status."""
    broken = isinstance(error, BrokenPipeError) or (os.name == "nt" and error.errno == errno.EINVAL)  # Windows' number for a pipe that is closed
    for stream in (sys.stdout, sys.stderr) if broken else (sys.stdout,):
        with contextlib.suppress(AttributeError, OSError):  # Python flushes at its end what is left: to nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if not broken:
        with contextlib.suppress(OSError):  # both are the terminal that was closed
            print(f"conformer: the output cannot be written: {error.strerror or error}", file=sys.stderr)
    return 1
