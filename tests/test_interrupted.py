"""Ctrl-C while the programs load, which takes a second: one sentence and status 130, and for whoever imports the packages the interrupt itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conformer import __main__, cli, loading

ROOT = Path(__file__).parents[1]
SCRIPT = "import sys\nfrom conformer.__main__ import main\nsys.exit(main())\n"  # what pip installs as `conformer`
EARLIER = SCRIPT.replace("__main__", "cli")  # and what it installed before
PROGRAMS = {"bin/conformer": SCRIPT, "bin/another": SCRIPT, "earlier/conformer": EARLIER, "own/conformer": "import conformer\n"}
PROGRAMS |= {"package/__init__.py": "import conformer\n", "package/__main__.py": ""}
LOADED = "import signal\nsignal.raise_signal(signal.SIGINT)\n"  # as if it came while NumPy loads, the first import that takes long


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("-m conformer", 130, "conformer: stopped\n"),
        ("-m conformer study there --show", 130, "conformer: stopped\n"),
        ("-mconformer", 130, "conformer: stopped\n"),
        ("-smconformer -m package", 130, "conformer: stopped\n"),
        ("-m conformer.__main__", 130, "conformer: stopped\n"),
        ("bin/conformer", 130, "conformer: stopped\n"),
        ("earlier/conformer", 130, "conformer: stopped\n"),
        ("-m minigrad", 130, "python -m minigrad: stopped\n"),
        ("bin/another", None, ""),
        ("own/conformer", None, ""),
        ("-m package conformer", None, ""),
        ("-mpackage -m conformer", None, ""),
    ],
)
def test_while_the_packages_load(program: str, status: int | None, said: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(LOADED)
    for name, text in PROGRAMS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
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


@pytest.mark.parametrize("main", [__main__.main, cli.main])
def test_when_all_is_loaded(main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a KeyboardInterrupt again, which the commands know what to do with; by whichever entry the program began."""

    def interrupted() -> None:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_parser", interrupted)
    before = signal.signal(signal.SIGINT, loading._leave)
    try:
        assert main() == 130 and capsys.readouterr().err == "conformer: stopped\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_before_the_commands_begin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupted)
    assert __main__.main() == 130 and capsys.readouterr().err == "conformer: stopped\n"
