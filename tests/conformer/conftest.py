"""What the application's tests get: a machine on which no GPU is found, whatever there is, so that `--device auto` is the CPU; options of a run that
takes a second; and, for those of the command line, surroundings without settings, and a way to run what fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conformer.cli import main
from conformer.options import TrainConfig
from conformer.provenance import OPENBLAS_PINS
from minigrad.backend import cuda


@pytest.fixture(autouse=True)
def no_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda, "_load_driver", no_driver)


@pytest.fixture
def config(cifar: Callable[..., Path], tiny_network: str, tmp_path: Path) -> TrainConfig:
    """Two epochs of 5 steps on 40 images, evaluated after each."""
    return TrainConfig(config=tiny_network, data_dir=cifar(records=8), out=tmp_path / "run", epochs=2, batch_size=8, log_every=2)


@pytest.fixture
def plain_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONFORMER_DATA", *OPENBLAS_PINS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-cache"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command, asserts its exit status, and returns the one line on stderr."""

    def run(status: int, *argv: object) -> str:
        assert main([str(word) for word in argv]) == status
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run
