"""What a training run can be told: `TrainConfig`, each option with its meaning and its limits, to and from JSON.

Read next: `conformer/train.py`, which does what it says.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

from conformer.devices import DEVICES
from conformer.evaluate import TTA
from conformer.text import quoted
from minigrad.backend.cublas import PRECISIONS

__all__ = [
    "MAY_CHANGE", "OptionError", "TrainConfig", "began_with", "duration", "flag", "from_plain", "may_change", "not_default", "plain", "resumed",
    "saved_options", "words_of",
]  # fmt: skip

MAY_CHANGE = {"data_dir", "device", "log_every", "checkpoint_steps", "checkpoint_minutes"}
"""Options that a resumed run may be given anew: they change no weight, but for the last digits where the device is another."""

LARGEST = 10**9  # of a count: no run needs more, and products of two still fit 64 bits
COUNTS = {
    "epochs": (1, LARGEST), "max_steps": (1, LARGEST), "batch_size": (2, LARGEST), "accumulate": (1, LARGEST), "eval_epochs": (1, LARGEST),
    "log_every": (1, LARGEST), "checkpoint_steps": (0, LARGEST), "cutout": (0, LARGEST), "hold_out": (0, LARGEST), "seed": (0, 2**64 - 1),
}  # fmt: skip
"""The options that are whole numbers: the least and the most of each."""
SHARES = "warmup", "label_smoothing", "drop_path", "ema"
"""Those that are at least 0 and below 1."""
AMOUNTS = {"lr": "", "weight_decay": "", "clip_norm": ", 0 for no limit", "checkpoint_minutes": ", 0 for no such limit"}
"""Those that are other numbers of at least 0, and what 0 stands for; the learning rate is above it."""
UNITS = {"s": 1, "m": 60, "h": 3600}
LONGEST = 366 * 24 * 3600.0  # seconds of a time budget


def flag(name: str) -> str:
    """An option as the command line has it: --max-steps for max_steps."""
    return f"--{name.replace('_', '-')}"


class OptionError(ValueError):
    """An option that cannot be had.

    Args:
        message: one sentence, with the names of `TrainConfig`'s fields.
        names: those in it, in their order.
    """

    def __init__(self, message: str, *names: str):
        super().__init__(message)
        self.names = names

    @property
    def dashed(self) -> str:
        """The sentence as the command line says it."""
        text = str(self)
        for name in self.names:
            text = text.replace(name, flag(name), 1)
        return text


@dataclass(frozen=True)
class TrainConfig:
    """The options of a training run; each field's annotation is its help text on the command line.

    Raises:
        OptionError: a value out of range.
    """

    config: Annotated[str, "the network's sizes"] = "cifar-nano"
    network: Annotated[str, "the whole Conformer, or one of its branches alone"] = "conformer"
    dataset: Annotated[str, "the data set; auto is cifar10 where it can be found or downloaded, else coupling10, which is generated"] = "auto"
    data_dir: Annotated[Path | None, "an archive, its folder or their parent (if not given: $CONFORMER_DATA, the cache, then a download)"] = None
    out: Annotated[Path | None, "the run folder to make (if not given: runs/CONFIG-TIME, for a branch alone runs/CONFIG-NETWORK-TIME)"] = None
    finetune: Annotated[Path | None, "weights to begin with, a run or a file of this network; heads for other numbers of classes are new"] = None
    precision: Annotated[str, "how a GPU computes matrix products, whose results are float32"] = "float32"
    epochs: Annotated[int | None, "times the training images are seen (if not given: 20, and 4 for coupling10)"] = None
    max_steps: Annotated[int | None, "take at most this many steps; the learning rate's schedule is fitted to them"] = None
    batch_size: Annotated[int, "images a step"] = 128
    seed: Annotated[int, "fixes every random draw"] = 0
    device: Annotated[str, "where to compute; auto is cuda where a GPU and CuPy are there, else cpu"] = "auto"
    lr: Annotated[float, "highest learning rate"] = 2e-3
    warmup: Annotated[float, "share of the steps over which the learning rate rises; after them it falls along a cosine"] = 0.1
    weight_decay: Annotated[float, "AdamW's decay of weight matrices and kernels"] = 0.05
    label_smoothing: Annotated[float, "share of the target that is spread over all classes"] = 0.1
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for no limit"] = 1.0
    drop_path: Annotated[float | None, "stochastic depth of the last transformer block (if not given: the configuration's)"] = None
    cutout: Annotated[int, "side of a square that is blanked in each training image, in pixels, 0 for none"] = 0
    ema: Annotated[float, "decay of an average of the weights that is measured and saved too, 0 for none"] = 0.0
    accumulate: Annotated[int, "parts that a step's images are taken in, for less memory; batch norm sees one part at a time"] = 1
    time_budget: Annotated[str | None, "time to train for, like 30m; a few steps are timed, undone, and fix the number of steps"] = None
    hold_out: Annotated[int, "training images to keep out of training and to measure in place of the test images: choose options by them"] = 0
    eval_epochs: Annotated[int, "epochs between two evaluations; there is one at the end in any case"] = 1
    tta: Annotated[str, "test-time augmentation; mirror: the mean of the answers to an image and to its mirror image"] = "none"
    log_every: Annotated[int, "steps between two lines of metrics.jsonl"] = 20
    checkpoint_steps: Annotated[int, "steps between two checkpoints, beside those at each evaluation; 0 for no such limit"] = 0
    checkpoint_minutes: Annotated[float, "minutes between two checkpoints, likewise"] = 5.0

    def __post_init__(self) -> None:
        for name in ("data_dir", "finetune", "out"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(path) if str(path) else None)
        for name in ("config", "dataset"):
            if not isinstance(getattr(self, name), str):
                self._refuse(name, "it must be a name")
        for name, allowed in {"device": DEVICES, "precision": PRECISIONS, "tta": TTA}.items():
            if getattr(self, name) not in allowed:
                self._refuse(name, f"it must be one of {', '.join(allowed)}")
        if not isinstance(self.network, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.network):  # folders are called by it
            self._refuse("network", "it must be a name of letters, digits, dots, dashes and underscores")
        absent = {field.name for field in fields(self) if field.default is None and getattr(self, field.name) is None}
        for name in [name for name in COUNTS if name not in absent]:
            self._check_count(name, *COUNTS[name])
        for name in [name for name in (*SHARES, *AMOUNTS) if name not in absent]:
            self._check_number(name)
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            self._refuse("accumulate", f"it must divide the {self.batch_size} images of a step into equal parts of 2 or more")
        if self.time_budget is not None:
            for name in ("epochs", "max_steps"):
                if (value := getattr(self, name)) is not None:
                    raise OptionError(f"time_budget is {self.time_budget} and {name} is {value}; give one of the two", "time_budget", name)
            try:
                duration(self.time_budget)
            except ValueError as error:
                raise OptionError(f"time_budget {error}", "time_budget") from error

    def _check_count(self, name: str, least: int, most: int) -> None:
        """Make a whole number of Python's of it; raise OptionError where it is none, or out of range."""
        try:
            value = operator.index(getattr(self, name))
        except TypeError:
            self._refuse(name, "it must be a whole number")
        object.__setattr__(self, name, value)
        if value < least:
            self._refuse(name, f"it must be at least {least}")
        if value > most:
            self._refuse(name, f"it must be at most {most:,}")

    def _check_number(self, name: str) -> None:
        """Make a number of Python's, as JSON has them, of one of `SHARES` or `AMOUNTS`; raise OptionError where it is none, or out of range."""
        value = getattr(self, name)
        if not isinstance(value, numbers.Real):
            self._refuse(name, "it must be a number")
        object.__setattr__(self, name, value := float(value))
        if name in SHARES and not 0 <= value < 1:
            self._refuse(name, "it must be at least 0 and below 1")
        if name == "lr" and not value > 0:
            self._refuse(name, "it must be above 0")
        if not value >= 0:
            self._refuse(name, "it must be at least 0")
        if not math.isfinite(value):
            self._refuse(name, f"it must be a finite number{AMOUNTS[name]}")

    def _refuse(self, name: str, rule: str) -> NoReturn:
        raise OptionError(f"{name} is {getattr(self, name)}; {rule}", name)


def duration(text: str) -> float:
    """Seconds of "90s", "30m", "1.5h" or "1h30m"; raises ValueError for anything else, and for more than a year."""
    if not re.fullmatch(r"(\d+(\.\d+)?[smh])+", text):
        raise ValueError(f"{text!r} is not a time; write it like 90s, 30m or 1h30m")
    seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smh])", text))
    if not seconds > 0:
        raise ValueError(f"{text!r} leaves no time to train")
    if seconds > LONGEST:
        raise ValueError(f"{text!r} is more than a year")
    return seconds


def plain(config: TrainConfig) -> dict[str, Any]:
    """The options as JSON has them. Paths in full: a run may be resumed from elsewhere."""
    values = asdict(config) | {name: (path := getattr(config, name)) and os.path.abspath(path) for name in ("data_dir", "finetune")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def not_default(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options as `plain` makes them that are not the default's; what else is among the values is left out."""
    usual = plain(TrainConfig())
    return {name: value for name, value in values.items() if name in usual and value != usual[name]}


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Options as a command has them, one by one: --max-steps 60."""
    return [f"{flag(name)} {quoted(value)}" for name, value in values.items()]


def from_plain(values: Mapping[str, Any]) -> TrainConfig:
    """The options back from what `plain` made of them; raises TypeError or ValueError for those of another version of the program."""
    if unknown := values.keys() - {field.name for field in fields(TrainConfig)}:
        raise ValueError(f"{min(unknown)} is unknown")
    return TrainConfig(**values)


def saved_options(run: Path, values: Mapping[str, Any], kind: str = "run") -> TrainConfig:
    """`from_plain`, of what the files of a run, or of a study, say; raises ValueError, which names its folder."""
    try:
        return from_plain(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the {kind} in {run} has options that this version of the program does not ({error})") from error


def may_change(saved: bool) -> set[str]:
    """Options that a run may be given anew; `saved`: it has a checkpoint, after which nothing needs the weights that it began with."""
    return MAY_CHANGE if saved else MAY_CHANGE | {"finetune"}


def began_with(option: str, value: Any, dataset: str | None) -> tuple:
    """What stands for an option's value at the beginning of a run: that, and for the data set also "auto", and what "auto" came to."""
    return (value, dataset, "auto") if option == "dataset" else (value,)


def resumed(run: Path, values: Mapping[str, Any], dataset: str | None, given: Mapping[str, Any], kind: str = "run") -> TrainConfig:
    """The options that a run, or a study of several, goes on with.

    Args:
        run: its folder.
        values: what `plain` made of its options.
        dataset: the data set that it was trained on: what "auto" came to is not chosen again. None before the first checkpoint.
        given: options to go on with; all but those that `may_change` must be what they were.
        kind: "run" or "study".

    Raises:
        ValueError: one is not.
    """
    config = saved_options(run, values, kind)
    anew = may_change(bool(dataset))
    if not config.finetune or not given.get("finetune"):
        anew = anew - {"finetune"}  # which may name another place of the weights, and no others
    for option, value in given.items():
        if option not in {field.name for field in fields(TrainConfig)}:
            raise ValueError(f"there is no option {option!r}; see TrainConfig for the list")
        old = getattr(config, option)
        if option not in anew and (Path(os.path.abspath(value)) if isinstance(value, Path) else value) not in began_with(option, old, dataset):
            was = f"without {flag(option)}" if old is None else f"with {flag(option)} {old}"
            other = "start another run with --out" if kind == "run" else "begin another study in another folder"
            raise ValueError(f"the {kind} in {run} was started {was}, not with {value}: leave {flag(option)} out to go on with it, or {other}")
    changed = {option: value for option, value in given.items() if option in anew}
    return replace(config, **changed, dataset=dataset or config.dataset, out=run)
