"""Files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conformer.files import write_file


def test_of_two_that_write_the_same_file_the_last_to_rename_it_stands_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another thread would: while the first has written its part, but not renamed it yet."""
    path, fsync = tmp_path / "page.html", os.fsync

    def other(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        write_file(path, "second")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", other)
    write_file(path, "first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    write_file(tmp_path / "page.html", os.fsdecode(b"caf\xe9 \xc3\xa9"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "caf\\udce9 é"


def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="cannot write .*pipe: it is not a file"):
        write_file(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_takes_nobodys_place(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "a", "first", new=True)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", "second", new=True)
    assert (tmp_path / "a").read_text() == "first" and [path.name for path in tmp_path.iterdir()] == ["a"]
