"""A checkpoint: everything a run needs to go on as if it had never been broken off, in one file.

Weights, the optimiser's state and the averaged weights are its arrays; the rest (step, options, data set, best accuracies, the window of running
figures) is one piece of JSON in its metadata. No generator state is in it: draws depend on the seed and the step (`minigrad/random.py`). The file
is replaced atomically, so whenever a process is killed, the last checkpoint or the one before it is there, whole. Read before:
`conformer/run_folder.py`, the files around it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from conformer.data import Dataset, checksum
from conformer.evaluate import Accuracies
from conformer.text import from_json
from minigrad import safetensors_io

__all__ = ["Checkpoint", "fingerprint", "load_checkpoint", "save_checkpoint"]

VERSION = 1
NUMBER = int, float
KINDS = {
    **dict.fromkeys(("options", "network", "environment"), (dict,)),
    **dict.fromkeys(("dataset", "fingerprint"), (str,)),
    **dict.fromkeys(("step", "steps", "evaluated", "lines"), (int,)),
    **dict.fromkeys(("learning_rate", "seconds", "evaluation_seconds"), NUMBER),
}
"""What fields of a checkpoint are in JSON."""

MOST_STEPS = 3 * 10**13
"""A billion epochs of CIFAR-10 in batches of two."""
LONGEST = 10**11
"""Seconds, three thousand years: no step, evaluation or run has taken more, whatever the machine slept meanwhile."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands after a step.

    Attributes:
        arrays: "model.*", "optimizer.*" and, with averaged weights, "ema.*".
        options: the fields of `TrainConfig`, paths as text.
        network: the fields of `ConformerConfig`.
        dataset: name of the data set; `fingerprint`: of its images and labels.
        environment: what the last digits depend on: threads, NumPy, BLAS.
        step: steps taken; `steps`: of how many; `evaluated`: step of the last evaluation.
        lines: lines that metrics.jsonl has.
        learning_rate: of the last step.
        test, best: accuracies at the last and the best evaluation.
        recent: loss, accuracies and seconds of the last steps.
        seconds: that the run has taken so far; `evaluation_seconds`: of the last evaluation.
    """

    arrays: dict[str, np.ndarray]
    options: dict[str, Any]
    network: dict[str, Any]
    dataset: str
    fingerprint: str
    environment: dict[str, Any]
    step: int
    steps: int
    evaluated: int
    lines: int
    learning_rate: float
    test: Accuracies | None
    best: Accuracies | None
    recent: list[tuple[float, Accuracies, float]]
    seconds: float
    evaluation_seconds: float


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically; raises OSError, and an older file is then unharmed."""
    values = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint) if field.name != "arrays"}
    safetensors_io.save_state(path, checkpoint.arrays, {"checkpoint": json.dumps({"version": VERSION, **values}, allow_nan=False)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, or no checkpoint of this version of the program.
    """
    arrays, metadata = safetensors_io.load_state(path)
    try:
        values = from_json(metadata["checkpoint"])
        version = values.pop("version")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a checkpoint that `conformer train` wrote") from error
    if version != VERSION:
        raise ValueError(f"{path} is a checkpoint of version {version}, and this program reads version {VERSION}")
    try:
        for name, kinds in KINDS.items():
            if type(values[name]) not in kinds:
                raise TypeError(f"{name} is {values[name]!r}")
        for name in ("test", "best"):
            values[name] = None if values[name] is None else _accuracies(values[name])
        values["recent"] = [(loss, _accuracies(shares), seconds) for loss, shares, seconds in values["recent"]]
        _numbers(number for loss, _, seconds in values["recent"] for number in (loss, seconds))
        checkpoint = Checkpoint(arrays=arrays, **values)
        _check(checkpoint)
        return checkpoint
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a checkpoint that this program wrote ({error})") from error


def _numbers(values: Iterable[Any]) -> list[float]:
    """The values, if all are numbers; raises TypeError if not."""
    numbers = list(values)
    if any(type(number) not in NUMBER for number in numbers):
        raise TypeError(f"{numbers} are not numbers")
    return numbers


def _accuracies(values: Iterable[Any]) -> Accuracies:
    """Accuracies of two heads, or those of one, which are None by each; raises TypeError if the values are neither."""
    shares = Accuracies(*values)
    _numbers(shares[2:] if shares[:2] == (None, None) else shares)
    return shares


def _check(checkpoint: Checkpoint) -> None:
    """Raise ValueError where counts contradict each other, or times are none, as no run's do."""
    if not 0 <= checkpoint.evaluated <= checkpoint.step <= checkpoint.steps <= MOST_STEPS or checkpoint.lines < 1:
        counts = {name: getattr(checkpoint, name) for name in ("evaluated", "step", "steps", "lines")}
        raise ValueError(", ".join(f"{name} is {count}" for name, count in counts.items()))
    for seconds in (checkpoint.seconds, checkpoint.evaluation_seconds, *(seconds for *_, seconds in checkpoint.recent)):
        if not 0 <= seconds <= LONGEST:
            raise ValueError(f"something took {seconds:.3g} seconds")
    if checkpoint.evaluated and not (checkpoint.test and checkpoint.best):
        raise ValueError(f"evaluated is {checkpoint.evaluated}, but there are no accuracies")


def fingerprint(dataset: Dataset) -> str:
    """A checksum of every image and label, and of what they are called and normalised with: equal for the same data, wherever they lie."""
    return checksum((dataset.name, dataset.classes, dataset.mean, dataset.std), dataset.train, dataset.test)
