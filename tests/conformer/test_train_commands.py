"""The commands that train, called in this process: what they begin and go on with, and what is said where they are broken off."""

from __future__ import annotations

import json
import ntpath
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformer import coupling10, text, train_commands
from conformer.batches import Batch
from conformer.cli import main
from conformer.display import Display
from conformer.evaluate import Accuracies
from conformer.learner import Learner
from conformer.text import quoted
from conformer.train import Trainer
from minigrad import safetensors_io
from tests.conformer.runs import edit_checkpoint

Cifar = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("plain_surroundings")


def test_data_that_is_not_there_is_said(fails: Callable[..., str]) -> None:
    assert "cifar-10-binary.tar.gz cannot be downloaded: no connection; get cifar-10-binary.tar.gz elsewhere" in fails(
        1, "train", "--dataset", "cifar10"
    )
    assert "there is no folder or file nowhere" in fails(1, "train", "--data-dir", "nowhere")
    assert "coupling10 is generated and reads no files" in fails(1, "train", "--dataset", "coupling10", "--data-dir", ".")


def test_auto_without_cifar_says_so_first(
    tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = coupling10.generate
    monkeypatch.setattr(coupling10, "generate", lambda count, **options: whole(count // 500, **options))
    assert main(["train", "--config", tiny_network, "--out", str(tmp_path / "run"), "--batch-size", "8", "--max-steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "downloading http://127.0.0.1" in lines[0]
    assert lines[1].startswith("THIS IS NOT CIFAR-10 but the generated data set coupling10, because CIFAR-10 is not in the cache")
    assert lines[2].startswith("tiny on coupling10: 100 training and 20 test images")
    header = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (header["dataset"], header["dataset_notice"]) == ("coupling10", lines[1])
    assert safetensors_io.load_state(tmp_path / "run" / "last.safetensors")[1]["dataset"] == "coupling10"
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "on 20 test images of coupling10 from its generator" in capsys.readouterr().out


def test_a_run_folder_that_is_taken_or_cannot_be_made_is_said(
    cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar()), "--batch-size", "4", "--max-steps", "1", "--out", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").write_bytes(b"precious")
    assert "already holds a run (last.safetensors); choose another folder with --out" in fails(1, *command)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == b"precious"

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert fails(1, *command[:-1], str(tmp_path / "locked")) == f"conformer: {tmp_path / 'locked'}: Permission denied"


def test_a_full_disk_is_said_and_how_to_go_on(
    cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: object) -> None:
        raise OSError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(safetensors_io, "save_state", full)
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar()), "--batch-size", "4", "--max-steps", "1", "--out", str(tmp_path / "run")]
    line = fails(1, *command)
    assert f"checkpoint.safetensors: No space left on device; nothing was saved yet, go on with: {train_commands._program()} train --resume" in line


def test_ctrl_c_says_which_step_is_saved_and_how_to_go_on(
    cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner.train_step

    def interrupted(self: Learner, batch: Batch) -> tuple[float, Accuracies]:
        if self.step == 6:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Learner, "train_step", interrupted)
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--epochs", "2"]
    line = fails(130, *command, "--out", str(tmp_path / "run"))
    assert f"stopped at step 6 of 10; step 5 is saved, go on with: {train_commands._program()} train --resume {quoted(tmp_path / 'run')}" in line
    assert safetensors_io.load_state(tmp_path / "run" / "last.safetensors")[1]["step"] == "5"


@pytest.mark.parametrize("step", [3, 7])
@pytest.mark.parametrize("stopped", [True, False])
def test_a_checkpoint_that_is_gone_is_not_promised(
    stopped: bool, step: int, cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was moved, and another run has its name by now."""
    original, run = Learner.train_step, tmp_path / "run"

    def moved(self: Learner, batch: Batch) -> tuple[float, Accuracies]:
        if self.step == step:
            run.rename(tmp_path / "moved")
            run.mkdir()
            for name in ("config.json", "metrics.jsonl", "checkpoint.safetensors"):
                shutil.copy(tmp_path / "moved" / name, run)
            if stopped:
                raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Learner, "train_step", moved)
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--epochs", "2", "--out", str(run)]
    line = fails(130 if stopped else 1, *command)
    why = f"stopped at step {step} of 10" if stopped else f"{run} is no longer the folder that this run began in: it was moved, removed or emptied"
    way_on = f"if the folder was moved, go on in its new place with: {train_commands._program()} train --resume FOLDER"
    assert line == f"conformer: {why}; what was saved is not there now; {way_on}"
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.safetensors", "config.json", "metrics.jsonl"]


def test_without_rich_lines_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert type(train_commands._display()) is Display
    assert 'needs rich (in the project\'s folder, pip install -e ".[app]")' in capsys.readouterr().err


def test_tables_that_cannot_be_written_are_said_like_any_output(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    study = SimpleNamespace(findings=lambda: SimpleNamespace(text=lambda: "tables"))
    monkeypatch.setattr(train_commands.Study, "existing", lambda path: study)
    with open("/dev/full", "w", buffering=1) as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert fails(1, "study", "nano", "--show") == "conformer: the output cannot be written: No space left on device"


def test_a_run_whose_curves_cannot_be_drawn_has_no_report_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_commands._report_of(tmp_path, lambda: pytest.fail("measured"))
    said = capsys.readouterr().err
    assert said == f"conformer: curves.png and report.html are not made: {tmp_path / 'metrics.jsonl'}: No such file or directory\n"


def test_a_run_that_was_stopped_goes_on_with_its_options(
    cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says which of its files is lost that it does not write again."""
    run = str(tmp_path / "run")
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--epochs", "2"]
    original = Learner.train_step

    def terminated(self: Learner, batch: Batch) -> tuple[float, Accuracies]:
        if self.step == 6:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", terminated)
        line = fails(143, *command, "--out", run)
    assert line == f"conformer: stopped at step 7 of 10; step 7 is saved, go on with: {train_commands._program()} train --resume {quoted(run)}"
    assert "already holds a run (config.json); choose another folder with --out, or go on with it with --resume" in fails(1, *command, "--out", run)
    assert "--resume goes on in the folder of the run itself: leave --out out" in fails(2, "train", "--resume", run, "--out", "other")
    assert "was started with --epochs 2, not with 3" in fails(1, "train", "--resume", run, "--epochs", "3")
    assert "there is no run to go on with in nowhere" in fails(1, "train", "--resume", "nowhere")
    assert "--log-every is 0; it must be at least 1" in fails(2, "train", "--resume", run, "--log-every", "0")
    assert "--hold-out is 33, and of the 40 training images of cifar10 from 10 (as many as classes) to 30" in fails(
        2, *command, "--hold-out", "33", "--out", f"{run}-2"
    )
    assert "was started with --hold-out 0, not with 16: leave --hold-out out" in fails(1, "train", "--resume", run, "--hold-out", "16")
    assert "--time-budget 'soon' is not a time" in fails(2, "train", "--time-budget", "soon")
    (tmp_path / "run" / "best.safetensors").unlink()
    edit_checkpoint(tmp_path / "run", best=[1.0, 1.0, 1.0])
    assert "best.safetensors: No such file or directory; it cannot be written anew: use last" in fails(0, "train", "--resume", run)
    assert safetensors_io.load_state(tmp_path / "run" / "last.safetensors")[1]["step"] == "10"
    assert (tmp_path / "run" / "curves.png").exists()


def test_a_finished_run_is_mended_and_not_trained_again(
    cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_commands, "_draw_curves", lambda run: False)  # nor a report at the end of training: see test_report
    run, folder = str(tmp_path / "run"), cifar()
    command = ["train", "--config", tiny_network, "--data-dir", str(folder), "--batch-size", "12", "--accumulate", "3", "--max-steps", "1"]
    assert main([*command, "--ema", "0.5", "--out", run]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", run, "--accumulate", "3"]) == 0  # which does not divide the default of --batch-size
    assert f"the run in {run} is finished: 1 steps, test accuracy" in capsys.readouterr().out

    weights = tmp_path / "run" / "last.safetensors"
    whole, (state, about) = weights.read_bytes(), safetensors_io.load_state(weights)
    for content in (None, whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.unlink()
        if content is not None:
            weights.write_bytes(content)
        assert "last.safetensors" in (line := fails(0, "train", "--resume", run)) and line.endswith("; it is written anew from the checkpoint")
        mended, about_it = safetensors_io.load_state(weights)
        assert about_it == about
        assert {name: array.tobytes() for name, array in mended.items()} == {name: array.tobytes() for name, array in state.items()}
    weights.unlink()
    weights.mkdir()
    assert main(["train", "--resume", run]) == 1
    assert "cannot write" in capsys.readouterr().err
    weights.rmdir()
    weights.write_bytes(whole)

    average, best = (tmp_path / "run" / f"{name}.safetensors" for name in ("ema", "best"))
    state, about = safetensors_io.load_state(average)
    average.unlink()
    best.unlink()
    assert main(["train", "--resume", run]) == 0
    printed, said = capsys.readouterr()
    share = printed.split("accuracy ")[1].splitlines()[0]
    for line, path in zip(said.splitlines(), (best, average), strict=True):
        assert str(path) in line and line.endswith("; it is written anew from the checkpoint")
    mended, about_it = safetensors_io.load_state(average)
    assert about_it == about
    assert {name: array.tobytes() for name, array in mended.items()} == {name: array.tobytes() for name, array in state.items()}
    assert safetensors_io.load_state(best)[1] == safetensors_io.load_state(weights)[1]  # there was one evaluation
    best.unlink()
    trainer = Trainer.resume(tmp_path / "run")
    trainer.best = Accuracies(0.5, 0.25, 1.0)  # of weights from before the last ones
    train_commands._mend_weights(trainer)
    trainer.folder.close()
    said = f"; it cannot be written anew: use last.safetensors, with test accuracy {share} where that had 50.0/25.0/100.0 %\n"
    assert capsys.readouterr().err.endswith(said) and not best.exists()

    folder.rename(tmp_path / "moved")
    for name in ("evaluate", "report"):
        assert main([name, run]) == 1
        assert f"the run's data is not in {folder} any more, and CIFAR-10 is not in the cache" in capsys.readouterr().err
        monkeypatch.setenv("CONFORMER_DATA", str(tmp_path / "moved"))
        assert main([name, run]) == 0
        monkeypatch.delenv("CONFORMER_DATA")
        capsys.readouterr()
    assert main(["train", "--resume", run, "--data-dir", str(tmp_path / "moved")]) == 0
    for again in (["train", "--resume", run], ["evaluate", run], ["report", run]):
        assert main(again) == 0


def test_how_the_program_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my programs"
    folder.mkdir()
    for name in ("conformer", "python3"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python3"))
    for path, script, module in [("", f"'{folder}/conformer'", f"'{folder}/python3' -m conformer"), (folder, "conformer", "python3 -m conformer")]:
        monkeypatch.setenv("PATH", str(path))
        monkeypatch.setattr(sys, "argv", [str(folder / "conformer")])
        assert train_commands._program() == script
        monkeypatch.setattr(sys, "argv", ["./conformer"])  # beside where the user is
        assert train_commands._program() == "./conformer"
        monkeypatch.setattr(sys, "argv", ["/somewhere/conformer/__main__.py"])
        assert train_commands._program() == module


@pytest.mark.parametrize(
    ("started", "python", "said"),
    [
        ("C:\\lab\\Scripts\\conformer", "C:\\lab\\Scripts\\python.exe", "conformer"),  # of a path that which() spells in another way
        ("C:\\lab\\Scripts\\conformer.exe", "C:\\lab\\Scripts\\python.exe", "conformer.exe"),
        ("C:\\lab\\conformer\\__main__.py", "C:\\lab\\Scripts\\python.exe", "python.exe -m conformer"),
        ("D:\\lab\\Scripts\\conformer", "D:\\lab\\Scripts\\python.exe", "D:\\lab\\Scripts\\conformer"),
        ("D:\\lab\\conformer\\__main__.py", "D:\\lab\\python.exe", "D:\\lab\\python.exe -m conformer"),
        ("D:\\my lab\\conformer", "D:\\my lab\\python.exe", "python -m conformer"),  # in quotes PowerShell would print it
        ("D:\\my lab\\conformer\\__main__.py", "D:\\my lab\\python.exe", "python -m conformer"),
    ],
)
def test_how_the_program_is_started_again_on_windows(started: str, python: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = SimpleNamespace(name="nt", path=ntpath)
    monkeypatch.setattr(train_commands, "os", windows)
    monkeypatch.setattr(text, "os", windows)
    monkeypatch.setattr(shutil, "which", lambda name: f"c:\\Lab\\scripts\\{name.removesuffix('.exe')}.EXE")
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(sys, "argv", [started])
    assert train_commands._program() == said
