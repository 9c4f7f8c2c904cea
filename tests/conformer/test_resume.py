"""Runs that are broken off and go on: the same weights bit for bit, the same log, and what is refused.

`test_train.py` has the rest of training; what concerns files, claims or signals alone is in `test_run_folder.py`, `test_claims.py` and
`test_stopping.py`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformer import data, train
from conformer.checkpoints import fingerprint, load_checkpoint
from conformer.display import Display, Progress
from conformer.evaluate import Predictions
from conformer.learner import Learner
from conformer.options import TrainConfig, plain, resumed
from conformer.plots import save_curves
from conformer.run_folder import read_config
from conformer.run_log import read_log
from conformer.steps import Outcome
from conformer.stopping import Stopped
from conformer.train import Trainer
from conformer.weights import load_weights
from minigrad import safetensors_io
from tests.conformer.runs import Noted, assert_same_run, break_off, edit_checkpoint, folder, lines, run_on, untimed

Cifar = Callable[..., Path]


@pytest.fixture
def config(config: TrainConfig) -> TrainConfig:
    """The one of conftest.py, with everything that has a state or draws."""
    return replace(config, ema=0.5, drop_path=0.3)


@pytest.mark.parametrize("breaks", [(0,), (3,), (5,), (4, 7), (9, 9, 9)])
@pytest.mark.parametrize("checkpoint_steps", [0, 3])
def test_a_resumed_run_is_the_unbroken_one(config: TrainConfig, breaks: tuple, checkpoint_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, checkpoint_steps=checkpoint_steps)
    whole = train.train(config).folder
    broken = replace(config, out=whole.with_name("broken"))
    break_off(broken, breaks[0], monkeypatch)
    for after in breaks[1:]:
        run_on(Trainer.resume(folder(broken)), after, monkeypatch)
    result = train.resume(folder(broken))
    assert result.steps == 10
    assert_same_run(folder(broken), whole)


def test_a_run_killed_twice_has_the_same_bits_in_the_end() -> None:
    """`benchmarks/kill_and_resume.py` with fewer kills."""
    script = Path(__file__).parents[2] / "benchmarks" / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "2", "--epochs", "3", "--records", "16"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical after 2 kills" in done.stdout


def test_a_run_broken_off_before_its_first_checkpoint_begins_again(config: TrainConfig) -> None:
    whole = train.train(config).folder
    other = replace(config, out=whole.with_name("other"))
    Trainer(other).folder.close()
    (folder(other) / "metrics.jsonl").write_text('{"dataset": "ci')  # killed in the middle of the first line
    train.resume(folder(other))
    assert_same_run(folder(other), whole)


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_broken_off_in_an_evaluation_goes_on_with_it(config: TrainConfig, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first, of the weights themselves, or in the second, of their average."""
    whole = train.train(config).folder
    other = replace(config, out=whole.with_name("other"))
    trainer = Trainer(other)
    original, calls = train.evaluate, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) < number:
            return original(*arguments, **options)
        signal.raise_signal(signal.SIGTERM)  # obeyed at once
        raise AssertionError("the evaluation went on")

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(train, "evaluate", interrupted)
        trainer.run()
    assert train.evaluate is original
    assert len(calls) == number
    saved = load_checkpoint(folder(other) / "checkpoint.safetensors")
    assert (saved.step, saved.evaluated, saved.test) == (5, 0, None)
    train.resume(folder(other))
    assert_same_run(folder(other), whole)


@pytest.fixture
def terminal() -> Iterator[None]:
    """Signals as where nobody ignores them: under nohup SIGHUP is ignored, and stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_saves(config: TrainConfig, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        original = Learner.train_step

        def step(self: Trainer, batch: train.Batch) -> Any:
            if self.step == 6:
                signal.raise_signal(number)
            return original(self, batch)

        trainer = Trainer(config)
        with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
            patch.setattr(Learner, "train_step", step)
            trainer.run()
        assert stopped.value.signal == number
        assert trainer.saved == (7, 5)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not [thread for thread in threading.enumerate() if thread.name == "conformer-prefetch"]
        whole = train.train(replace(config, out=folder(config).with_name("whole"))).folder
        train.resume(folder(config))
        assert_same_run(folder(config), whole)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("hangs_up", [False, True])
def test_where_progress_cannot_be_shown_the_run_is_saved(config: TrainConfig, hangs_up: bool) -> None:
    """A full disk, or a terminal that was closed: its signal comes before or after writing to it fails."""

    class Closed(Display):
        def progress(self, progress: Progress) -> None:
            if progress.step >= 7:
                if hangs_up:
                    signal.raise_signal(signal.SIGHUP)
                raise OSError(errno.EIO, "Input/output error")

        def close(self) -> None:
            raise OSError(errno.EIO, "from close")

    trainer = Trainer(config, Closed())
    with pytest.raises(Stopped if hangs_up else OSError, match="signal 1" if hangs_up else "Input/output error"):
        trainer.run()
    assert trainer.saved == (7, 5)
    whole = train.train(replace(config, out=folder(config).with_name("whole"))).folder
    train.resume(folder(config))  # which the folder's lock would not let us, had it not been closed
    assert_same_run(folder(config), whole)


def test_a_finished_run_has_nothing_to_do(config: TrainConfig) -> None:
    run = train.train(config).folder
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    trainer = Trainer.resume(run)
    assert trainer.finished
    assert trainer.run().steps == 10
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_options_that_change_the_weights_must_be_what_they_were(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder(config)
    break_off(replace(config, checkpoint_steps=2), 3, monkeypatch)
    for given, message in [
        ({"lr": 0.1}, "was started with --lr 0.002, not with 0.1: leave --lr out to go on with it, or start another run with --out"),
        ({"config": "cifar-nano"}, "was started with --config tiny, not with cifar-nano"),
        ({"max_steps": 4}, "was started without --max-steps, not with 4"),
        ({"dataset": "cifar100"}, "was started with --dataset auto, not with cifar100"),
    ]:
        with pytest.raises(ValueError, match=message):
            Trainer.resume(run, **given)
    trainer = Trainer.resume(run, lr=0.002, dataset="cifar10", log_every=1, checkpoint_steps=1)
    assert (trainer.config.log_every, trainer.config.checkpoint_steps, trainer.step) == (1, 1, 2)


def test_other_images_are_refused(config: TrainConfig, cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(config, 3, monkeypatch)
    with pytest.raises(ValueError, match="on other images of cifar10 than those that are in .*other now; give the data it was started with"):
        Trainer.resume(folder(config), data_dir=cifar(records=8, folder="other", seed=1))
    made = replace(data.load("cifar10", cifar(records=8, folder="third", seed=2)), source="a generator")
    with monkeypatch.context() as patch:
        patch.setitem(data.DATASETS, "cifar10", lambda *_: made)
        with pytest.raises(ValueError, match="than those that come from a generator now; bring back the program .*, or begin a new run$"):
            Trainer.resume(folder(config))
    same = cifar(records=8, folder="same")
    assert fingerprint(data.load("cifar10", same)) == fingerprint(data.load("cifar10", config.data_dir))
    assert Trainer.resume(folder(config), data_dir=same).dataset.source == same
    assert Trainer.resume(folder(config)).dataset.source == same  # from now on
    assert read_config(folder(config))["data_dir"] == str(same)


def test_a_run_that_holds_images_out_goes_on_with_the_same_ones(config: TrainConfig, cifar: Cifar, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the test images are by then, which are not its data; with other training images it does not go on."""
    config = replace(config, hold_out=16)
    whole = train.train(config).folder
    broken = replace(config, out=whole.with_name("broken"))
    break_off(broken, 4, monkeypatch)
    with pytest.raises(ValueError, match="was started with --hold-out 16, not with 0: leave --hold-out out to go on with it, or start another run"):
        Trainer.resume(folder(broken), hold_out=0)
    other = cifar(records=8, folder="other")
    (other / "test_batch.bin").write_bytes((cifar(records=8, folder="third", seed=1) / "test_batch.bin").read_bytes())
    for given in ({"data_dir": other}, {"hold_out": 16}):
        Trainer.resume(folder(broken), **given).folder.close()
    train.resume(folder(broken))
    assert_same_run(folder(broken), whole)
    (other / "data_batch_5.bin").write_bytes((other / "test_batch.bin").read_bytes())
    with pytest.raises(ValueError, match="on other images of cifar10 than those that are in"):
        Trainer.resume(folder(broken))


def test_a_run_from_before_images_could_be_held_out_goes_on_without(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train.train(config).folder
    other = replace(config, out=whole.with_name("other"))
    break_off(other, 7, monkeypatch)
    older = {name: value for name, value in plain(other).items() if name != "hold_out"}
    edit_checkpoint(folder(other), options=older)
    (folder(other) / "config.json").write_text(json.dumps(older | {"steps": 10}))
    with pytest.raises(ValueError, match="was started with --hold-out 0, not with 16"):
        Trainer.resume(folder(other), hold_out=16)
    assert train.resume(folder(other)).steps == 10
    assert_same_run(folder(other), whole)


def test_data_that_moved_before_the_first_checkpoint_is_found_again_when_it_is_given(config: TrainConfig, cifar: Cifar) -> None:
    Trainer(config).folder.close()
    same = cifar(records=8, folder="same")
    Trainer.resume(folder(config), data_dir=same).folder.close()
    assert read_config(folder(config))["data_dir"] == str(same)


def test_another_data_set_before_the_first_checkpoint_is_said(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was broken off before its first checkpoint begins again: what it says of itself does so too."""
    made = data.DATASETS["cifar10"](config.data_dir, print)
    with monkeypatch.context() as patch:
        patch.setitem(data.DATASETS, "auto", lambda *_: replace(made, name="made", notice="NOT CIFAR"))
        Trainer(config).folder.close()
    assert untimed(folder(config))[0]["dataset_notice"] == "NOT CIFAR"
    Trainer.resume(folder(config), log_every=3).run()
    header = untimed(folder(config))[0]
    assert (header["dataset"], header["dataset_notice"], read_config(folder(config))["log_every"]) == ("cifar10", "", 3)
    whole = train.train(replace(config, out=folder(config).with_name("whole"), log_every=3)).folder
    assert_same_run(folder(config), whole)


def test_a_resumed_run_keeps_its_notice(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set that "auto" came to is loaded by its name then, as one that was asked for. The notice may name a folder that is not UTF-8."""
    made = data.DATASETS["cifar10"](config.data_dir, print)
    notice = f"NOT WHAT WAS ASKED FOR in caf{os.fsdecode(bytes([0xE9]))}"
    monkeypatch.setitem(data.DATASETS, "auto", lambda *_: replace(made, notice=notice))
    break_off(config, 7, monkeypatch)
    train.resume(folder(config))
    assert lines(folder(config))[0]["dataset_notice"] == notice
    assert safetensors_io.load_state(folder(config) / "last.safetensors")[1]["notice"] == r"NOT WHAT WAS ASKED FOR in caf\udce9"


def test_data_that_is_not_where_it_was_is_looked_for_elsewhere(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.data_dir is not None
    elsewhere = config.data_dir.with_name("elsewhere")
    break_off(config, 7, monkeypatch)
    Trainer(replace(config, out=folder(config).with_name("new"))).folder.close()
    config.data_dir.rename(elsewhere)
    monkeypatch.setenv("CONFORMER_DATA", str(elsewhere))
    with pytest.raises(data.DataError, match=r"the run's data is not in .* any more; give it with --data-dir"):
        Trainer.resume(folder(config).with_name("new"))
    train.resume(str(folder(config)))  # type: ignore[arg-type]  # a path may be text
    monkeypatch.setenv("CONFORMER_DATA", "nowhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")
    monkeypatch.setattr(data.download, "fetch", lambda *_: (_ for _ in ()).throw(data.DataError("cannot be downloaded")))
    config.data_dir.mkdir()
    with pytest.raises(data.DataError, match=r"CIFAR-10 is not in \$CONFORMER_DATA .* and cannot be downloaded"):
        Trainer.resume(folder(config))


def test_a_run_for_a_gpu_goes_on_with_one(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(config, 7, monkeypatch)
    for_a_gpu = plain(config) | {"precision": "tf32"}
    edit_checkpoint(folder(config), options=for_a_gpu)
    (folder(config) / "config.json").write_text(json.dumps(for_a_gpu))
    with pytest.raises(ValueError, match=r"the run in .* was started with --precision tf32, which needs a GPU: go on with it on one"):
        Trainer.resume(folder(config))


def test_a_network_that_is_not_what_its_name_means_now_is_refused(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its weights would fit."""
    break_off(config, 7, monkeypatch)
    network = load_checkpoint(folder(config) / "checkpoint.safetensors").network
    edit_checkpoint(folder(config), network=network | {"drop_path_rate": 0.1})
    with pytest.raises(ValueError, match=r"the run in .*run has another network than this version calls tiny; it cannot go on"):
        Trainer.resume(folder(config))


def test_a_resumed_run_goes_on_counting_its_time(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(config, 7, monkeypatch)
    edit_checkpoint(folder(config), seconds=5000.0, evaluation_seconds=1000.0)
    result = Trainer.resume(folder(config), display := Noted()).run()
    assert [round(progress.seconds_left / 1000) for progress in display.shown] == [1] * 5  # steps 6 to 10, before the evaluation
    assert 5000 < result.seconds < 5100
    assert 5000 < lines(folder(config))[-1]["seconds"] <= result.seconds


def test_a_resumed_run_knows_its_best(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = data.load("cifar10", config.data_dir).test.labels
    right = np.eye(10, dtype=np.float32)[labels]
    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", lambda *_, **__: Predictions((right, right), labels))
        break_off(config, 7, patch)
    monkeypatch.setattr(train, "evaluate", lambda *_, **__: Predictions((-right, -right), labels))
    result = train.resume(folder(config))
    assert (result.best.sum, result.test.sum) == (1.0, 0.0)
    assert load_weights(folder(config) / "best.safetensors")[1].step == 5


def damaged(text: bytes, old: bytes, new: bytes) -> bytes:
    """With something else in the third line."""
    parts = text.splitlines(keepends=True)
    parts[2] = parts[2].replace(old, new)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: damaged(text, b"loss", b"lo\x01s"), r"metrics.jsonl is damaged in line 3 \(.*\); mend it, or put \{\} in its place"),
        (lambda text: damaged(text, b"loss", b"lo\xffs"), r"is damaged in line 3 \("),
        (lambda text: damaged(text, b"{", b"[" * 100_000), r"is damaged in line 3 \(it is nested too deeply\)"),
        (lambda text: b"null\n" + text, r"is damaged in line 1 \(it is not what `conformer train` writes there\)"),
        (lambda text: text.replace(b"{", b'{"trained_on_before": 5, ', 1), r"line 1 \(trained_on_before is 5, which is not a whole number for"),
        (lambda text: text.replace(b"{", b'{"trained_on_before": {"a": "7"}, ', 1), r"line 1 \(trained_on_before is \{'a': '7'\}, which is not"),
        (lambda text: b"".join(text.splitlines(keepends=True)[:3]), r"has 3 of the \d lines that the checkpoint counts; put it back, with \{\} for"),
        (lambda text: b"", r"has 0 of the \d lines"),
        (lambda text: text[:-20], r"is damaged in line \d"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_log_is_not_cut(
    finished: bool, damage: Callable[[bytes], bytes], said: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves half a line only after those that the checkpoint counts."""
    if finished:
        train.train(config)
    else:
        break_off(config, 9, monkeypatch)
    path = folder(config) / "metrics.jsonl"
    counted = load_checkpoint(folder(config) / "checkpoint.safetensors").lines
    before = damage(b"".join(path.read_bytes().splitlines(keepends=True)[:counted]))
    path.write_bytes(before)
    with pytest.raises(ValueError, match=said):
        Trainer.resume(folder(config))
    assert path.read_bytes() == before


def test_a_damaged_line_can_be_given_up(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(config, 7, monkeypatch)
    path = folder(config) / "metrics.jsonl"
    first, _, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"{}\n" + b"".join(rest))
    train.resume(folder(config))
    assert len(read_log(folder(config)).training) == 4 and path.read_bytes().splitlines()[1] == b"{}"


def test_a_log_without_its_last_line_end_can_go_on(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some editors save it."""
    whole = train.train(replace(config, out=folder(config).with_name("whole"))).folder
    break_off(replace(config, log_every=1), 5, monkeypatch)
    path = folder(config) / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    train.resume(folder(config))
    assert untimed(folder(config))[-1] == untimed(whole)[-1]


def test_options_given_anew_hold_from_then_on(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(config, 7, monkeypatch)
    older = {name: value for name, value in plain(config).items() if name != "device"}  # from before there was that option
    assert resumed(folder(config), older, "cifar10", {"device": "cpu"}).device == "cpu"
    with pytest.raises(ValueError, match="there is no option 'log_evry'"):
        Trainer.resume(folder(config), log_evry=3)
    Trainer.resume(folder(config), log_every=3, checkpoint_minutes=1.0).folder.close()
    for options in (read_config(folder(config)), load_checkpoint(folder(config) / "checkpoint.safetensors").options):
        assert (options["log_every"], options["checkpoint_minutes"]) == (3, 1.0)
    assert Trainer.resume(folder(config)).config.log_every == 3


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("lr", 0.1, r"config.json says that lr is 0.1, but the run was started with 0.002: put that back to go on \(--checkpoint-minutes, .* may be"),
        ("steps", 99, "says that steps is 99, but the run was started with 10: put"),
        ("dataset", "cifar100", "says that dataset is cifar100, but the run was started with auto: put"),
        ("wings", 2, "says that wings is 2, but the run was started without it: put"),
        ("finetune", "/elsewhere", "says that finetune is /elsewhere, but the run was started without it: put"),
        ("log_every", "x", r"has options that this version of the program does not \(log_every is x; it must be a whole number\)"),
    ],
)
def test_what_somebody_wrote_into_config_json_is_not_passed_over(
    name: str, value: Any, said: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run would go on by its checkpoint, and its report would show what config.json says."""
    break_off(replace(config, checkpoint_steps=2), 3, monkeypatch)
    path = folder(config) / "config.json"
    path.write_text(edited := json.dumps(read_config(folder(config)) | {name: value}))
    with pytest.raises(ValueError, match=said):
        Trainer.resume(folder(config))
    assert path.read_text() == edited


def test_weights_to_begin_with_are_not_given_to_a_run_that_began_without(config: TrainConfig, tmp_path: Path) -> None:
    Trainer(config).folder.close()
    with pytest.raises(ValueError, match="was started without --finetune, not with .*other: leave --finetune out to go on with it"):
        Trainer.resume(folder(config), finetune=tmp_path / "other")


def test_options_that_may_change_may_be_changed_in_config_json(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(replace(config, checkpoint_steps=2), 3, monkeypatch)
    path = folder(config) / "config.json"
    path.write_text(json.dumps(read_config(folder(config)) | {"log_every": 1, "out": "moved"}))
    trainer = Trainer.resume(folder(config), checkpoint_minutes=1.0)
    assert (trainer.config.log_every, trainer.config.checkpoint_minutes, trainer.config.checkpoint_steps) == (1, 1.0, 2)
    path.write_text("{")
    trainer.folder.close()
    with pytest.raises(ValueError, match=r"config.json is damaged \("):  # said now, and not by the report at the end
        Trainer.resume(folder(config))


def test_of_a_folder_that_cannot_go_on_a_sentence_says_why(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder(config)
    with pytest.raises(FileNotFoundError, match="there is no run to go on with in .*run"):
        Trainer.resume(run)
    trainer = break_off(config, 3, monkeypatch)
    checkpoint = run / "checkpoint.safetensors"
    held = os.open(run, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(FileExistsError, match="is in use: another process is training there"):
        Trainer.resume(run)
    os.close(held)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="checkpoint.safetensors is not a safetensors file that NumPy can read, or is damaged"):
        Trainer.resume(run)
    checkpoint.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(ValueError, match="checkpoint.safetensors is damaged: its arrays are not those that were written"):
        Trainer.resume(run)
    safetensors_io.save_state(checkpoint, {"weight": np.zeros(2)})
    with pytest.raises(ValueError, match="is not a checkpoint that `conformer train` wrote"):
        Trainer.resume(run)
    safetensors_io.save_state(checkpoint, {}, {"checkpoint": '{"version": 99}'})
    with pytest.raises(ValueError, match="is a checkpoint of version 99, and this program reads version 1"):
        Trainer.resume(run)
    checkpoint.write_bytes(whole)
    arrays, metadata = safetensors_io.load_state(checkpoint)
    values = json.loads(metadata["checkpoint"])
    safetensors_io.save_state(checkpoint, arrays, {"checkpoint": json.dumps(values | {"options": []})})
    with pytest.raises(ValueError, match=r"is not a checkpoint that this program wrote \(options is \[\]\)"):
        Trainer.resume(run)
    arrays.popitem()
    safetensors_io.save_state(checkpoint, arrays, metadata)
    with pytest.raises(ValueError, match="the checkpoint in .*run does not fit the run's options .*missing"):
        Trainer.resume(run)
    checkpoint.unlink()
    safetensors_io.save_state(run / "last.safetensors", trainer.learner.model.state_dict())
    with pytest.raises(FileNotFoundError, match="has last.safetensors but no checkpoint.safetensors, so that run cannot go on"):
        Trainer.resume(run)
    (run / "last.safetensors").unlink()
    (run / "config.json").write_text('{"wings": 2}')
    with pytest.raises(ValueError, match=r"has options that this version of the program does not \(wings is unknown\)"):
        Trainer.resume(run)
    with pytest.raises(
        FileExistsError, match=r"already holds a run \(config.json\); choose another folder with --out, or go on with it with --resume"
    ):
        Trainer(config)


def test_a_full_disk_leaves_the_checkpoint_whole(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write itself fails half-way, as it does on a full disk."""
    config = replace(config, checkpoint_steps=2)
    run = folder(config)
    original = safetensors_io.save_file
    saved = 0

    def full(arrays: dict, path: Path, **options: Any) -> None:
        nonlocal saved
        saved += 1
        original(arrays, path, **options)
        if saved == 3:  # the checkpoint of step 4
            os.truncate(path, 1000)
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="cannot write .*checkpoint.safetensors: No space left on device"):
        patch.setattr(safetensors_io, "save_file", full)
        Trainer(config).run()
    assert load_checkpoint(run / "checkpoint.safetensors").step == 2
    assert not list(run.glob(".*"))
    whole = train.train(replace(config, out=run.with_name("whole"))).folder
    train.resume(run)
    assert_same_run(run, whole)


def test_a_resumed_run_keeps_the_steps_of_its_budget(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, epochs=None, time_budget="30m")
    monkeypatch.setattr(train, "steps_within", lambda *_: 12)
    whole = train.train(config).folder
    other = replace(config, out=whole.with_name("other"))
    trainer = Trainer(other)
    original = Trainer._note

    def note(self: Trainer, outcomes: list[Outcome]) -> None:
        original(self, outcomes)
        if self.step == 8:
            raise RuntimeError("broken off")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken off"):
        patch.setattr(Trainer, "_note", note)
        trainer.run()
    monkeypatch.setattr(train, "steps_within", None)  # not measured again
    assert train.resume(folder(other)).steps == 12
    for line in (other_lines := untimed(folder(other))) + (whole_lines := untimed(whole)):
        for key in ("seconds_per_step", "seconds_per_evaluation"):
            line.pop(key, None)
    assert other_lines == whole_lines


def test_curves_are_drawn_of_a_run_without_an_evaluation_and_of_a_resumed_one(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    break_off(config, 3, monkeypatch)
    assert save_curves(folder(config), read_log(folder(config))).read_bytes().startswith(b"\x89PNG")  # no evaluation yet
    train.resume(folder(config))
    assert save_curves(folder(config), read_log(folder(config))).read_bytes().startswith(b"\x89PNG")


def test_weights_to_begin_with_are_needed_until_the_first_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    """Before the first checkpoint they are needed, and may be given anew; afterwards another place of them is another option."""
    before = train.train(replace(config, max_steps=2, out=tmp_path / "before")).folder
    trainer = Trainer(replace(config, finetune=before))
    trainer.folder.close()
    moved = before.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="finetune: .*before.*; give a run"):
        Trainer.resume(folder(config))
    with pytest.raises(ValueError, match="was started with --finetune .*before, not with None: leave --finetune out"):
        Trainer.resume(folder(config), finetune=None)
    resumed_run = Trainer.resume(folder(config), finetune=tmp_path / "run" / ".." / "moved")
    assert read_config(folder(config))["finetune"] == str(moved)  # which a report names
    assert resumed_run.run().steps == 10
    assert Trainer.resume(folder(config), finetune=moved).finished
    with pytest.raises(ValueError, match="was started with --finetune .*moved, not with .*elsewhere"):
        Trainer.resume(folder(config), finetune=tmp_path / "elsewhere")
