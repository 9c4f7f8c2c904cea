"""The files of a run: what a killed process left half-written, disks that are full, and folders that were moved or emptied meanwhile.

What is refused where a run is to go on is tested in `test_resume.py`.
"""

from __future__ import annotations

import fnmatch
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformer import claims, run_folder, train
from conformer.options import TrainConfig
from conformer.run_folder import RunFolder, read_config
from conformer.train import Trainer
from minigrad import safetensors_io
from tests.conformer.runs import assert_same_run, before_step, folder

HEADER = {"config": "tiny", "dataset": "cifar10", "seed": 3, "parameters": 4}
"""The first line of a log, as far as it must be there."""


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    """The one of conftest.py, with everything that has a state or draws."""
    return replace(config, ema=0.5, drop_path=0.3)


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunFolder.create(run, {}, {}).close()
    for name in (".0123456789abcdef.tmp", ".checkpoint.tmp", ".tmpXZg8BN", "notes.tmp", ".hidden", ".tmpfiles"):
        (run / name).write_text("half")
    RunFolder.reopen(run).close()
    assert {path.name for path in run.iterdir()} == {"config.json", "metrics.jsonl", "notes.tmp", ".hidden", ".tmpfiles"}


def test_what_a_process_killed_while_it_writes_arrays_leaves_has_a_name_that_is_cleared_away(tmp_path: Path) -> None:
    """The library that writes safetensors may write to a file of its own first. Here the system kills the process at the second thousand bytes."""
    script = f"""
import numpy, resource, signal
from minigrad import safetensors_io
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
safetensors_io.save_state({str(tmp_path / "x.safetensors")!r}, dict(x=numpy.zeros(500)))
"""
    done = subprocess.run([sys.executable, "-B", "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGXFSZ, done
    names = {path.name for path in tmp_path.iterdir()}
    patterns = run_folder.HALF_WRITTEN, run_folder.ARRAYS_HALF_WRITTEN
    assert names and all(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in names), names


def test_what_a_process_left_that_was_killed_before_the_run_had_a_name_is_cleared_away(tmp_path: Path) -> None:
    """There is nothing to go on with then: the same command is given again. Files of others are nobody's to remove."""
    run = tmp_path / "run"
    run.mkdir()
    with safetensors_io.replaced(tmp_path / "config.json") as temporary:
        temporary.touch()
    others = {".0123456789abcdeg.tmp", ".0123456789abcdef0.tmp", ".notes.tmp", "0123456789abcdef.tmp"}
    for name in (temporary.name, *others):
        (run / name).write_text("half")
    RunFolder.create(run, {}, {}).close()
    assert {path.name for path in run.iterdir()} == {"config.json", "metrics.jsonl", *others}


def test_a_run_that_cannot_log_its_first_line_leaves_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk: the same command can be given again."""

    def full(self: RunFolder, **values: Any) -> None:
        (self.path / "metrics.jsonl").write_text('{"dataset": "ci')
        raise OSError("cannot write metrics.jsonl: No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(RunFolder, "log", full)
        RunFolder.create(tmp_path / "run", {}, {})
    assert list((tmp_path / "run").iterdir()) == []
    RunFolder.create(tmp_path / "run", {}, {}).close()


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_folder_that_was_moved_is_written_to_no_more(config: TrainConfig, log_every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is that of another run, which has its name by now: neither by a line of the log nor by a checkpoint. The moved one can go on."""
    config = replace(config, log_every=log_every, checkpoint_steps=2)
    run, moved = folder(config), folder(config).with_name("moved")
    found: dict[str, bytes] = {}

    def move() -> None:
        run.rename(moved)
        Trainer(replace(config, seed=1)).folder.close()
        (run / "checkpoint.safetensors").write_bytes(b"of another run")
        found.update((path.name, path.read_bytes()) for path in run.iterdir())

    trainer = Trainer(config)
    before_step(8, move, monkeypatch)
    with pytest.raises(OSError, match=r"run is no longer the folder that this run began in: it was moved, removed or emptied$"):
        trainer.run()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == found
    assert not trainer.folder.has("checkpoint.safetensors")
    for write in (
        lambda: trainer.folder.log(step=8),
        lambda: trainer.folder.rewind(0, trainer.header),
        lambda: trainer.folder.set_options(log_every=2),
        lambda: trainer.folder.set_steps(8),
        trainer.save_last,
        trainer._save,
        trainer._saving_seconds,
    ):
        with pytest.raises(OSError, match="is no longer the folder"):
            write()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == found
    whole = train.train(replace(config, out=run.with_name("whole"))).folder
    train.resume(moved)
    assert_same_run(moved, whole)


@pytest.mark.parametrize(("removed", "locks"), [(True, True), (False, True), (False, False)])
def test_a_folder_that_was_emptied_is_not_filled_again(config: TrainConfig, removed: bool, locks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on Windows, where a folder has no handle by which it could be told from another."""

    def empty() -> None:
        for path in folder(config).iterdir():
            path.unlink()
        if removed:
            folder(config).rmdir()

    if not locks:
        monkeypatch.setattr(claims, "fcntl", None)
    trainer = Trainer(replace(config, log_every=1))
    before_step(7, empty, monkeypatch)
    with pytest.raises(OSError, match="is no longer the folder"):
        trainer.run()
    assert list(folder(config).glob("*")) == []


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {}, {})
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match="cannot write .*metrics.jsonl: Is a directory"):
        run.log(step=1)


def test_the_lines_of_a_log_end_alike_on_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows ends those of text files by two characters, and what is cut to a checkpoint's lines is written as bytes."""
    as_on_windows = lambda *arguments, newline="\r\n", **options: open(*arguments, newline=newline, **options)  # noqa: E731
    monkeypatch.setattr(run_folder, "open", as_on_windows, raising=False)
    run = RunFolder.create(tmp_path / "run", {}, HEADER)
    run.log(step=1)
    run.log(step=2)
    run.rewind(2, {})
    run.log(step=3)
    assert (run.path / "metrics.jsonl").read_bytes() == json.dumps(HEADER).encode() + b'\n{"step": 1}\n{"step": 3}\n'


@pytest.mark.parametrize(
    ("header", "line", "said"),
    [
        ({"dataset_notice": 5}, {}, r"line 1 \(.*: dataset_notice is not text\); mend it$"),
        ({"parameters": None}, {}, r"line 1 \(.*: parameters is not a whole number\); mend it$"),
        ({"steps": "x"}, {}, r"line 1 \(.*: steps is not a whole number or null\); mend it$"),
        ({}, {"train_accuracy": {}, "step": 1}, r"line 2 \(.*: epoch is missing\); mend it, or put \{\} in its place to go on without it$"),
    ],
)
def test_a_log_that_could_not_be_read_after_the_training_is_refused(header: dict[str, Any], line: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {}, HEADER | header)
    run.log(**line)
    with pytest.raises(ValueError, match=rf"metrics.jsonl is damaged in {said}"):
        run.rewind(2, {})
    (run.path / "metrics.jsonl").write_text(json.dumps(HEADER) + "\n{}\n")
    run.rewind(2, {})


@pytest.mark.parametrize("measured", ["test", "held_out"])
def test_a_log_of_evaluations_of_two_heads_and_of_one_is_refused(measured: str, tmp_path: Path) -> None:
    """Training on, it would be found to be damaged at the end."""
    run = RunFolder.create(tmp_path / "run", {}, HEADER)
    for shares in ({"cnn": 0.5, "transformer": 0.5, "sum": 0.5}, {"sum": 0.5}):
        run.log(**{"step": 1, "epoch": 1.0, f"{measured}_accuracy": shares, f"{measured}_loss": 1.0, "seconds": 1.0})
    run.rewind(2, {})
    run.log(**{"step": 1, "epoch": 1.0, f"{measured}_accuracy": {"sum": 0.5}, f"{measured}_loss": 1.0, "seconds": 1.0})
    with pytest.raises(ValueError, match=rf"metrics.jsonl is damaged \(some of its {measured}_accuracy are of two heads, some of one\)"):
        run.rewind(3, {})


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_damaged_config_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is damaged \("):
        read_config(tmp_path)
