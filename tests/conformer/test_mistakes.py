"""What a user can put right is one sentence: a picture without matplotlib, an image without pillow, OpenBLAS pinned to an old processor."""

from __future__ import annotations

import importlib.abc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import conformer

Cifar = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("plain_surroundings")


def test_without_matplotlib_all_but_the_pictures_is_made(
    cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "conformer.plots", raising=False)
    folder, run = str(cifar(records=8)), tmp_path / "run"
    line = fails(0, "train", "--config", tiny_network, "--data-dir", folder, "--out", str(run), "--batch-size", "8", "--max-steps", "1")
    assert "the curves needs matplotlib (in the project's folder, pip install" in line
    assert (run / "last.safetensors").exists()
    assert not (run / "curves.png").exists()
    assert not (run / "report.html").exists()
    assert "the picture of the confusion matrix needs matplotlib (in the project's folder, pip install" in fails(0, "evaluate", str(run))


def test_a_backend_of_matplotlib_that_there_is_not_is_said(tmp_path: Path) -> None:
    """Only a program of its own imports matplotlib anew, which then looks at MPLBACKEND."""
    from PIL import Image

    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    command = [sys.executable, "-m", "conformer", "explain", "--run", "notebooks/cifar_nano_coupling10.safetensors", str(image)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.png")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MPLBACKEND": "no"},
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "conformer: the picture is not drawn: Key backend: 'no' is not a valid value" in done.stderr


@pytest.mark.parametrize("error", [ValueError("Key backend: 'no' is not a valid value"), RuntimeError("Could not determine home directory.")])
def test_matplotlib_that_cannot_be_imported_is_said(
    error: Exception, cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "conformer.plots":
                raise error

    monkeypatch.delitem(sys.modules, "conformer.plots", raising=False)
    monkeypatch.delattr(conformer, "plots", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    run = str(tmp_path / "run")
    options = ["--config", tiny_network, "--data-dir", str(cifar(records=8)), "--out", run, "--batch-size", "8", "--max-steps", "1"]
    sentence = str(error).rstrip(".")
    assert f"a picture of the curves is not drawn: {sentence}" in fails(0, "train", *options)
    assert f"the picture of the confusion matrix is not drawn: {sentence}" in fails(0, "evaluate", run)
    assert f"the picture of the confusion matrix is not drawn: {sentence}" in fails(1, "evaluate", run, "--picture", str(tmp_path / "a.png"))
    assert f"a report is not drawn: {sentence}" in fails(1, "report", run)


def test_without_pillow_what_needs_it_says_so(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    import conformer.plots  # noqa: F401  matplotlib does not survive a first import without pillow

    monkeypatch.setitem(sys.modules, "PIL", None)
    for name in ("conformer.image_files", "conformer.report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "reading image files needs pillow (in the project's folder, pip install" in fails(1, "predict", "cat.jpg")
    assert "a report needs matplotlib (in the project's folder, pip install" in fails(1, "report", "run")


def test_pins_of_openblas_are_mentioned(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    line = fails(0, "info")
    assert "OPENBLAS_CORETYPE=Haswell may halve NumPy's speed; start with `env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE" in line
