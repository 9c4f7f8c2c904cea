"""`python -m minigrad`: the table of all operations."""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minigrad import functional as F
from minigrad.__main__ import table
from minigrad.op import REGISTRY, Fused


def test_the_table_has_a_row_for_every_operation():
    head, *rows = table()
    assert head[0] == "operation" and "cpu" in head
    assert sorted(row[0] for row in rows) == sorted(REGISTRY)
    assert all(len(row) == len(head) and all(row) for row in rows)
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    for name, op in REGISTRY.items():
        assert cells[name]["kind"] == ("fused" if isinstance(op, Fused) else "primitive")
        assert cells[name]["file"] == op.__module__
        assert int(cells[name]["lines"]) >= 2
    assert cells["layer_norm"]["cpu"] == "kernel" and cells["layer_norm"]["definition"] == "yes" and cells["layer_norm"]["derivative"] == "definition"
    assert cells["softmax"]["derivative"] == "rule" and cells["mul"]["derivative"] == "rules" and cells["greater"]["derivative"] == "none"


def test_no_fused_operation_is_missing():
    fused = {name for name, value in vars(F).items() if isinstance(value, Fused)}
    assert fused == {op.name for op in REGISTRY.values() if isinstance(op, Fused) and op.__module__.startswith("minigrad.")}


def test_lines_do_not_count_documentation():
    head, *rows = table()
    lines = {row[0]: int(row[head.index("lines")]) for row in rows}
    assert lines["add"] == 3  # decorator, def, return; no docstring
    assert lines["where"] == 3  # the same, with a docstring
    assert lines["layer_norm"] == 10  # with one of many lines


def test_lines_are_those_of_the_source_whatever_python_keeps_of_the_docstring(monkeypatch: pytest.MonkeyPatch):
    """Python 3.13 and later take the indentation out of `__doc__`; -OO leaves it away."""
    rows = table()
    for op in REGISTRY.values():
        monkeypatch.setattr(op.function, "__doc__", inspect.cleandoc(op.function.__doc__ or ""))
    assert table() == rows
    for op in REGISTRY.values():
        monkeypatch.setattr(op.function, "__doc__", None)
    assert table() == rows


def test_the_program_takes_no_arguments():
    result = subprocess.run([sys.executable, "-m", "minigrad", "--ops"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "unrecognized arguments: --ops" in result.stderr and not result.stdout


def test_the_program_prints_the_table():
    result = subprocess.run([sys.executable, "-m", "minigrad"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and not result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split()[:2] == ["operation", "kind"] and set(lines[1]) <= {"-", " "}
    fused = sum(isinstance(op, Fused) and op.__module__.startswith("minigrad.") for op in REGISTRY.values())
    assert lines[-1].endswith(f" {fused} fused operations")
    assert any(line.startswith("conv2d ") for line in lines)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_output_that_cannot_be_written_is_one_sentence_or_for_a_closed_pipe_none():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "minigrad"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "python -m minigrad: the output cannot be written: No space left on device\n")
    reader, no_reader = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "minigrad"], stdout=no_reader, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(no_reader)
    assert (done.returncode, done.stderr) == (1, "")
    done = subprocess.run(f"{shlex.quote(sys.executable)} -m minigrad >&-", shell=True, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_both_programs_and_the_package_say_their_version(monkeypatch: pytest.MonkeyPatch):
    from importlib import metadata

    import minigrad

    for module in ("minigrad", "conformer"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.returncode == 0 and done.stdout == f"{minigrad.__version__}\n"
    assert minigrad.__version__ == metadata.version("minigrad-conformer")

    def nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nothing)
    assert minigrad.__version__ == "not installed"
    with pytest.raises(AttributeError, match="module 'minigrad' has no attribute 'nothing'"):
        _ = minigrad.nothing  # type: ignore[attr-defined]
