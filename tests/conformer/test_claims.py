"""Folders that are one process's alone: no other process, forked child or Trainer has them until they are given up."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from conformer import claims
from conformer.claims import claim, claimed, release
from conformer.options import TrainConfig
from conformer.train import Trainer
from tests.conformer.runs import folder


def test_a_folder_is_claimed_once_until_it_is_given_up(tmp_path: Path) -> None:
    held = claim(tmp_path, "we have it")
    for _ in range(2):
        with pytest.raises(FileExistsError, match="is in use: we have it$"):
            claim(tmp_path, "we have it")
    claim_of_another = claim(tmp_path.parent, "we have that")
    release(held)
    with pytest.raises(ZeroDivisionError), claimed(tmp_path, "we have it"):
        with pytest.raises(FileExistsError), claimed(tmp_path, "we have it"):
            pass
        raise ZeroDivisionError
    release(claim(tmp_path, "we have it"))
    release(claim_of_another)


def test_a_folder_that_another_process_has_is_refused(tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(FileExistsError, match="is in use: another process is training there$"):
        claim(tmp_path, "we have it")
    os.close(other)
    release(claim(tmp_path, "we have it"))


def test_on_windows_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "fcntl", None)
    assert claim(tmp_path, "we have it") is None and claim(tmp_path, "we have it") is None
    release(None)


@pytest.mark.parametrize("closed", [True, False])
def test_a_trainer_of_this_process_that_has_the_folder_is_told_from_another_process(config: TrainConfig, closed: bool) -> None:
    """As when a notebook's cell is run again."""
    trainer = Trainer(config)
    with pytest.raises(FileExistsError, match=r"is in use: a Trainer of this process has it; delete that one, or call its folder.close\(\)$"):
        Trainer.resume(folder(config))
    if closed:
        trainer.folder.close()
    else:
        del trainer
    Trainer.resume(folder(config)).folder.close()


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_neither_gives_up_nor_keeps_the_claim_on_a_folder(tmp_path: Path, closes: bool) -> None:
    held = claim(tmp_path, "we have it")
    (reads_ready, ready), (reads_end, end) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        if closes:
            release(held)
        os.write(ready, b"1")
        os.read(reads_end, 1)
        os._exit(0)
    try:
        os.read(reads_ready, 1)
        with pytest.raises(FileExistsError, match="we have it"):
            claim(tmp_path, "we have it")
        release(held)
        release(claim(tmp_path, "we have it"))
    finally:
        os.write(end, b"1")
        os.waitpid(child, 0)
        for handle in (reads_ready, ready, reads_end, end):
            os.close(handle)
