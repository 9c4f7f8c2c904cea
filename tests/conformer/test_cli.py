"""The command line, called in this process: its options, its exit statuses, and output that is lost. Libraries that are: `test_mistakes.py`."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conformer import cli, parser, train_commands, use_commands
from conformer.cli import main
from conformer.display import Display

pytestmark = pytest.mark.usefixtures("plain_surroundings")


def test_the_version_is_looked_up_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    asked: list[str] = []
    monkeypatch.setattr(importlib.metadata, "version", lambda name: asked.append(name) or "1.2.3")
    assert main(["info", "--config", "cifar-nano"]) == 0 and not asked
    capsys.readouterr()
    assert main(["--version"]) == 0 and capsys.readouterr() == ("1.2.3\n", "")


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["explain"], ["report"], ["study"], ["info"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: conformer" in text
    assert "None" not in text
    if command == ["study"]:
        assert "differences are to the study's first one" in " ".join(text.split())
    if command == ["train"]:
        assert "--batch-size N" in text
        assert "(default: 128)" in text
        assert "cifar-nano, cifar-micro, cifar-small" in " ".join(text.split())
    if command == ["study"]:
        assert "--finetune, as another place of the same weights, while there are runs that need them" in " ".join(text.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--epoch", "3"], "there is no option --epoch; did you mean --epochs?"),
        (["train", "--qqq=3"], "there is no option --qqq=3 ("),
        (["train", "--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["train", "--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["train", "--max-steps", "-3"], "--max-steps is -3; it must be at least 1"),
        (["train", "--config", "nano"], "--config: there is no 'nano'; did you mean cifar-nano?"),
        (["train", "--device", "gpu"], "--device: there is no 'gpu'; choose from auto, cpu, cuda"),
        (["train", "--device", "cuda"], "No CUDA: "),
        (["evaluate", "run", "--device", "cuda"], "No CUDA: "),
        (["train", "--dataset", "mnist"], "--dataset: there is no 'mnist'; choose from auto, cifar10, cifar100, coupling10"),
        (["evaluate"], "RUN"),
        (["evaluate", "run", "--batch-size", "0"], "--batch-size: '0' is not a whole number above 0"),
        (["info", "--image-size", "big"], "--image-size: 'big' is not a whole number above 0"),
        (["info", "--image-size", "9" * 5000], "is too large; give a number of at most 9 digits"),
        (["train", "--time-budget", "5m", "--epochs", "3"], "--time-budget is 5m and --epochs is 3; give one of the two"),
        (["train", "--precision", "bf16", "--device", "cpu"], "--precision is bf16, which is for GPUs"),
        (["train", "--seed", "18446744073709551616"], "--seed is 18446744073709551616; it must be at most 18,446,744,073,709,551,615"),
        (["train", "--clip-norm", "inf"], "--clip-norm is inf; it must be a finite number, 0 for no limit"),
        (["train", "--out", ""], "--out: the path is empty"),
        (["evaluate", ""], "RUN: the path is empty"),
        (["train", "--out=~nobody of that name/run"], "no home folder for the ~ of '~nobody of that name/run'; if it is part of a name, give ./~n"),
        (["explain", "cat.jpg", "--out", "x.jpg"], "--out: 'x.jpg' does not end in .png, and pictures are PNG files"),
        (["evaluate", "run", "--picture", "x.svg"], "--picture: 'x.svg' does not end in .png"),
    ],
)
def test_wrong_usage_is_one_sentence(argv: list[str], message: str, fails: Callable[..., str]) -> None:
    line = fails(2, *argv)
    assert line.startswith("conformer: ")
    assert message in line


def test_a_home_is_written_as_shells_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells replace ~ at the beginning of a word, so not in --out=~/run; and nothing in quotes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [parser.some_path(text) for text in ("~", "~/run", "run/~")] == [tmp_path, tmp_path / "run", Path("run/~")]
    assert [parser.some_path(text) for text in ("./~", "./~run")] == [Path("~"), Path("~run")]  # a file of that name
    assert parser.png_path("~/x.png") == tmp_path / "x.png"
    options = cli._parser().parse_args(["train", "--out=~/run", "--data-dir=~/data", "--finetune=~/weights", "--resume=~/other"])
    assert (options.out, options.data_dir, options.finetune) == (tmp_path / "run", tmp_path / "data", tmp_path / "weights")
    assert options.resume == tmp_path / "other"


def test_the_package_needs_no_extras() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["rich", "matplotlib", "PIL", "pooch", "torch", "cupy", "scipy"]))
sys.argv = ["conformer", "info"]
import runpy
runpy.run_module("conformer", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], env={**os.environ, "MINIGRAD_THREADS": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert "1,071,880 parameters" in done.stdout


def test_output_that_cannot_be_written_is_one_sentence_or_for_a_closed_pipe_none() -> None:
    """Python would say so itself, with a traceback and the status 120, when it ends."""

    def start(argv: str, stdout: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "conformer", *argv.split()]
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    reader, no_reader = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    sentence = "conformer: the output cannot be written: No space left on device\n"
    cases = [("info", no_reader, ""), ("train --help", no_reader, ""), ("info", full, sentence), ("train --help", full, sentence)]
    started = [start(argv, stdout) for argv, stdout, _ in cases]
    os.close(no_reader)
    os.close(full)
    for process, (argv, _, said) in zip(started, cases, strict=True):
        assert (process.communicate()[1], process.returncode) == (said, 1), argv


def test_without_stdout_commands_run_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `>&-` there is no sys.stdout."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["info"]) == 0
    assert type(train_commands._display()) is Display


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("MINIGRAD_THREADS is 'two'; give a whole number"), 2, "MINIGRAD_THREADS is 'two'; give a whole number"),
        (RuntimeError("can't start new thread"), 1, "can't start new thread; set MINIGRAD_THREADS to a smaller number"),
        (MemoryError(), 1, "there is not enough memory; free some, or take fewer images at a time"),
        (MemoryError("8 GiB"), 1, "there is not enough memory (8 GiB); free some, or take fewer images at a time"),
    ],
)
def test_what_the_machine_does_not_have_is_said(
    error: Exception, status: int, said: str, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setattr(cli.cpu, "thread_count", fail)
    assert fails(status, "info") == f"conformer: {said}"


@pytest.mark.parametrize("command", ["evaluate", "report", "train --resume", "predict cat.jpg --run", "explain cat.jpg --run"])
def test_a_name_that_is_too_long_is_said(command: str, fails: Callable[..., str]) -> None:
    assert "File name too long" in fails(1, *command.split(), "a" * 300)


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "forgotten.html")

    monkeypatch.setattr(use_commands, "describe", fail)
    with pytest.raises(FileNotFoundError, match="forgotten"):
        main(["info"])
