"""Ctrl-C while the programs load, which takes a second: one sentence and status 130, and for whoever imports the packages the interrupt itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conformer import __main__, cli, loading

ROOT = Path(__file__).parents[1]
SCRIPT = "import sys\nfrom conformer.__main__ import main\nsys.exit(main())\n"  # what pip installs as `conformer`
LOADED = "import signal\nsignal.raise_signal(signal.SIGINT)\n"  # as if it came while NumPy loads, the first import that takes long


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("-m conformer", 130, "conformer: stopped\n"),
        ("-m conformer study there --show", 130, "conformer: stopped\n"),
        ("bin/conformer", 130, "conformer: stopped\n"),
        ("-m minigrad", 130, "python -m minigrad: stopped\n"),
        ("bin/another", None, ""),
    ],
)
def test_while_the_packages_load(program: str, status: int | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(LOADED)
    (tmp_path / "bin").mkdir()
    for name in ("conformer", "another"):
        (tmp_path / "bin" / name).write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, *program.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)
    if status is None:
        assert done.returncode != 0 and done.stderr.startswith("Traceback") and done.stderr.endswith("KeyboardInterrupt\n")
    else:
        assert (done.returncode, done.stderr, done.stdout) == (status, said, "")


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_where_nothing_can_be_said(tmp_path: Path) -> None:
    """The program ends all the same, also where an import would take the error of writing for one of its own."""
    (tmp_path / "numpy.py").write_text("import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept OSError:\n    print('went on')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "conformer"], stdout=subprocess.PIPE, stderr=full, text=True, cwd=tmp_path, env=environment, timeout=60
        )
    assert (done.returncode, done.stdout) == (130, "")


def test_when_all_is_loaded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a KeyboardInterrupt again, which the commands know what to do with."""

    def interrupted() -> int:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    before = signal.signal(signal.SIGINT, loading._leave)
    try:
        assert __main__.main() == 130 and capsys.readouterr().err == "conformer: stopped\n"
    finally:
        signal.signal(signal.SIGINT, before)
