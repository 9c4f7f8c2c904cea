"""Runs that tests break off, go on with and compare; the options that they are begun with are the fixture `config` of `conftest.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformer.batches import Batch
from conformer.display import Display, Progress
from conformer.learner import Learner
from conformer.options import TrainConfig
from conformer.train import Trainer
from minigrad import safetensors_io

TIMES = {"images_per_second", "seconds", "started", "resumed"}


class Noted(Display):
    """Notes the progress that it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        self.shown.append(progress)


def folder(config: TrainConfig) -> Path:
    """The run's, which the options name."""
    assert config.out is not None
    return config.out


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times and without what says that the run was resumed."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines(run) if "resumed" not in line]


def assert_same_run(run: Path, other: Path) -> None:
    """All files of weights are the same bit for bit, the logs but for times, and nothing is left half-written."""
    for name in ("last", "best", "ema", "checkpoint"):
        state, expected = (safetensors_io.load_state(path / f"{name}.safetensors")[0] for path in (run, other))
        assert state.keys() == expected.keys()
        for key, array in state.items():
            assert array.tobytes() == expected[key].tobytes(), f"{name}: {key}"
    assert untimed(run) == untimed(other)
    assert not list(run.glob(".*"))


def edit_checkpoint(run: Path, **values: Any) -> None:
    """Change what the checkpoint says beside its arrays."""
    path = run / "checkpoint.safetensors"
    arrays, metadata = safetensors_io.load_state(path)
    safetensors_io.save_state(path, arrays, {"checkpoint": json.dumps(json.loads(metadata["checkpoint"]) | values)})


def break_off(config: TrainConfig, after: int, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Train, and fail in the step after `after`."""
    trainer = Trainer(config)
    run_on(trainer, after, monkeypatch)
    return trainer


def run_on(trainer: Trainer, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, and fail in the step after `after`."""

    def fail() -> None:
        raise RuntimeError("broken off")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken off"):
        before_step(after + 1, fail, patch)
        trainer.run()


def before_step(number: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `action` happen once, before a step is taken."""
    original = Learner.train_step

    def step(self: Learner, batch: Batch) -> Any:
        if self.step == number - 1:
            monkeypatch.setattr(Learner, "train_step", original)
            action()
        return original(self, batch)

    monkeypatch.setattr(Learner, "train_step", step)
