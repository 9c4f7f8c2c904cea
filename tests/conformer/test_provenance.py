"""What the log of a run says of what made it: the commit, that of this project's own checkout or none, and the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from conformer import provenance
from conformer.options import TrainConfig
from conformer.provenance import environment, revision
from conformer.train import Trainer
from tests.conformer.runs import break_off, folder, lines


@pytest.fixture(autouse=True)
def asked_anew():
    """A process remembers what it found: these tests change what there is to find."""
    revision.cache_clear()
    yield
    revision.cache_clear()


def git(folder: Path, *words: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("git is not there")
    somebody = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *somebody, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def checkout(folder: Path, *files: str) -> Path:
    """A checkout with one commit of these files."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("once\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    return folder


def asked(root: Path) -> str | None:
    revision.cache_clear()
    return revision(root)


FILES = ("conformer/provenance.py", "minigrad/op.py", "README.md")


def test_it_is_the_commit_and_says_where_the_packages_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout(tmp_path / "a b", *FILES)
    commit = git(root, "rev-parse", "HEAD")[:10]
    assert asked(root) == commit and len(commit) == 10
    (root / "README.md").write_text("again\n")
    (root / "runs").mkdir()
    (root / "runs" / "metrics.jsonl").write_text("{}\n")
    assert asked(root) == commit, "what does not run does not count"
    (root / "minigrad" / "op.py").write_text("again\n")
    assert asked(root) == commit + "+"
    git(root, "stash", "--quiet")
    assert asked(root) == commit
    (root / "conformer" / "own.py").write_text("new\n")
    assert asked(root) == commit + "+"
    assert revision(root) == commit + "+"
    (root / "conformer" / "own.py").unlink()
    assert revision(root) == commit + "+", "what is changed later is not what runs"

    # detached, its branches packed, from another folder, and with the variables that git sets for its hooks
    git(root, "checkout", "--quiet", "--detach")
    git(root, "pack-refs", "--all")
    other = checkout(tmp_path / "other", "else.txt")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.chdir(other)
    assert asked(root) == commit


def test_a_second_worktree_has_its_own(tmp_path: Path) -> None:
    root = checkout(tmp_path / "first", *FILES)
    git(root, "worktree", "add", "--quiet", "../second")
    (tmp_path / "second" / "minigrad" / "op.py").write_text("again\n")
    git(tmp_path / "second", "commit", "--quiet", "-a", "-m", "more")
    assert asked(tmp_path / "second") == git(tmp_path / "second", "rev-parse", "HEAD")[:10] != asked(root)


def test_another_projects_checkout_is_not_taken_for_ours(tmp_path: Path) -> None:
    outer = checkout(tmp_path / "outer", "venv/lib/conformer/provenance.py", "README.md")
    assert asked(outer / "venv" / "lib") is None, "even if somebody has committed their environment"
    inside = checkout(tmp_path / "ours", *FILES) / "venv" / "lib"
    (inside / ".git").mkdir(parents=True)  # no repository: git would look for one further up
    assert asked(inside) is None and asked(tmp_path / "ours")
    (outer / "conformer").mkdir()
    (outer / "conformer" / "provenance.py").write_text("installed here\n")  # pip install --target .
    assert asked(outer) is None
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "--quiet")
    assert asked(tmp_path / "empty") is None, "there is no commit yet"


def test_how_a_repository_is_set_changes_nothing_and_nothing_is_written_there(tmp_path: Path) -> None:
    root = checkout(tmp_path / "root", *FILES)
    commit = git(root, "rev-parse", "HEAD")[:10]
    (root / "hook").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (root / "hook").chmod(0o755)
    settings = {"core.fsmonitor": str(root / "hook"), "status.showUntrackedFiles": "no", "core.worktree": str(tmp_path / "elsewhere")}
    for name, value in settings.items():
        git(root, "config", name, value)
    index = root / ".git" / "index"
    os.utime(root / "minigrad" / "op.py", (1e9, 1e9))  # so that git would note in its index that the file is still the same
    before = index.read_bytes()
    assert asked(root) == commit
    (root / "conformer" / "own.py").write_text("new\n")
    assert asked(root) == commit + "+"
    assert index.read_bytes() == before and not (tmp_path / "started").exists()


def test_without_git_or_with_one_that_hangs_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout(tmp_path / "root", *FILES)
    monkeypatch.setattr(provenance, "TIMEOUT", 0.2)
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/bin{os.pathsep}/usr/bin")
    for program in ("sleep 20", "kill -9 $$", "exit 1"):
        (programs / "git").write_text(f"#!/bin/sh\n{program}\n")
        (programs / "git").chmod(0o755)
        began = time.monotonic()
        assert asked(root) is None
        assert time.monotonic() - began < 10
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert asked(root) is None


def test_where_there_is_no_checkout_no_process_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: pytest.fail("a process"))
    assert asked(tmp_path) is None


@pytest.mark.parametrize(("found", "later"), [("0123456789+", "0000000000"), ("0123456789", None), (None, "0123456789")])
def test_the_log_of_a_run_has_it(found: str | None, later: str | None, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its first line, where there is one; and in each line that says that the run goes on, also where it goes back to what it began with."""
    monkeypatch.setattr(provenance, "revision", lambda: found)
    break_off(config, 7, monkeypatch).folder.close()
    for now in (found, later, found):
        monkeypatch.setattr(provenance, "revision", lambda now=now: now)
        Trainer.resume(folder(config)).folder.close()
        header, *_, goes_on = lines(folder(config))
        assert header.get("revision") == found and ("revision" in header) == bool(found)
        assert "resumed" in goes_on and goes_on["revision"] == now


def test_a_blas_that_threadpoolctl_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where NumPy uses Apple's Accelerate."""
    monkeypatch.setattr(provenance.threadpoolctl, "threadpool_info", list)
    assert environment()["blas"] == [np.show_config("dicts")["Build Dependencies"]["blas"]["name"]]  # type: ignore[index]
