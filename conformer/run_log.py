"""What a run measured: its metrics.jsonl, read. Read next: `conformer/plots.py`, which draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformer.baselines import label
from conformer.evaluate import HEADS
from conformer.options import TrainConfig
from conformer.text import from_json

__all__ = ["RunLog", "check_heads", "parse_line", "read_log"]

TEXT, WHOLE, WHOLE_OR_NULL, NUMBER, SHARES = "text", "a whole number", "a whole number or null", "a number", "accuracies by head"
TYPES = {TEXT: (str,), WHOLE: (int,), WHOLE_OR_NULL: (int, type(None)), NUMBER: (int, float)}
HEADER = {"config": TEXT, "dataset": TEXT, "seed": WHOLE, "parameters": WHOLE}
MEASURED = {"step": WHOLE, "epoch": NUMBER}
TRAINING = MEASURED | {"loss": NUMBER, "learning_rate": NUMBER, "images_per_second": NUMBER}
TEST = MEASURED | {"test_accuracy": SHARES, "test_loss": NUMBER, "seconds": NUMBER}
HELD_OUT = {name.replace("test", "held_out"): kind for name, kind in TEST.items()}
OPTIONAL = {"network": TEXT, "steps": WHOLE_OR_NULL, "dataset_notice": TEXT, "ema_test_accuracy": SHARES, "ema_held_out_accuracy": SHARES}
OPTIONAL |= {"macs": WHOLE_OR_NULL, "test_images": WHOLE, "held_out_images": WHOLE}
"""What is shown of a line, and of which kind it is: of the first, of running figures, of an evaluation on test images or on held-out ones, and what
may be there besides."""


@dataclass(frozen=True)
class RunLog:
    """The lines of a metrics.jsonl by kind: `header` says what the run is, `training` are running figures, `tests` evaluations.

    Figures on held-out images have the names here that those on test images have; `measured` tells which they are.
    """

    header: dict[str, Any]
    training: list[dict[str, Any]]
    tests: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Network, data set and seed."""
        network = label(self.header["config"], self.header.get("network", TrainConfig.network))  # the first versions knew no other
        return f"{network} on {self.header['dataset']}, seed {self.header['seed']}"

    @property
    def measured(self) -> str:
        """What images the evaluations are on: "test" or "held-out" ones."""
        return "held-out" if "held_out_images" in self.header else "test"

    @property
    def images(self) -> int | None:
        """How many these are; None where the first line does not say."""
        return self.header.get("held_out_images", self.header.get("test_images"))


def read_log(run: Path) -> RunLog:
    """Read a run folder's metrics.jsonl. A last line that a killed process left half-written is left out.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not one that `conformer train` wrote, or is damaged.
    """
    path = run / "metrics.jsonl"
    lines = []
    texts = path.read_bytes().splitlines(keepends=True)
    for number, text in enumerate(texts, 1):
        try:
            line = parse_line(text, number)
        except ValueError as error:
            if number == len(texts) > 1 and not text.endswith(b"\n"):
                break
            raise ValueError(f"{path} is damaged in line {number} ({error})") from error
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} is empty")
    header, *rest = lines
    rest = [{name.replace("held_out", "test"): value for name, value in line.items()} for line in rest]
    tests = [line for line in rest if "test_accuracy" in line]
    check_heads(path, tests)
    return RunLog(header, [line for line in rest if "train_accuracy" in line], tests)


def check_heads(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where some of the evaluations among the lines of a metrics.jsonl are of two heads, and others of one."""
    for name in ("test_accuracy", "held_out_accuracy"):
        if len({len(line[name]) for line in lines if name in line}) > 1:
            raise ValueError(f"{path} is damaged (some of its {name} are of two heads, some of one)")


def parse_line(text: bytes, number: int) -> dict[str, Any]:
    """What a line of metrics.jsonl says, the first one or another; raises ValueError where it is not as `conformer train` writes it."""
    if not isinstance(line := from_json(text), dict):
        raise ValueError("it is not what `conformer train` writes there")
    kinds = {"train_accuracy": TRAINING, "test_accuracy": TEST, "held_out_accuracy": HELD_OUT}
    _check(line, HEADER if number == 1 else next((kinds[name] for name in kinds if name in line), {}))
    return line


def _check(line: dict[str, Any], kinds: dict[str, str]) -> None:
    """Raise ValueError where one of `kinds` is missing in a line, or a value that is there is of another kind."""
    if missing := kinds.keys() - line.keys():
        raise ValueError(f"it is not what `conformer train` writes there: {min(missing)} is missing")
    for name, kind in (OPTIONAL | kinds).items():
        if name in line and not _is(line[name], kind):
            raise ValueError(f"it is not what `conformer train` writes there: {name} is not {kind}")


def _is(value: Any, kind: str) -> bool:
    if kind == SHARES:
        return isinstance(value, dict) and value.keys() in (HEADS.keys(), {"sum"}) and all(_is(share, NUMBER) for share in value.values())
    return type(value) in TYPES[kind]
