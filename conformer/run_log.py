"""What a run measured: its metrics.jsonl, read. Read next: `conformer/plots.py`, which draws it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RunLog", "read_log"]


@dataclass(frozen=True)
class RunLog:
    """The lines of a metrics.jsonl by kind: `header` says what the run is, `training` are running figures, `tests` evaluations."""

    header: dict[str, Any]
    training: list[dict[str, Any]]
    tests: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """Network, data set and seed."""
        return f"{self.header['config']} on {self.header['dataset']}, seed {self.header['seed']}"


def read_log(run: Path) -> RunLog:
    """Read a run folder's metrics.jsonl. A last line that a killed process left half-written is left out.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not one that `conformer train` wrote, or is damaged.
    """
    path = run / "metrics.jsonl"
    lines = []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or (number == 1 and not line.keys() >= {"config", "dataset", "seed"}):
                raise ValueError("it is not what `conformer train` writes there")
        except ValueError as error:
            if number == len(texts) > 1 and not text.endswith("\n"):
                break
            raise ValueError(f"{path} is damaged in line {number} ({error})") from error
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} is empty")
    header, *rest = lines
    return RunLog(header, [line for line in rest if "train_accuracy" in line], [line for line in rest if "test_accuracy" in line])
