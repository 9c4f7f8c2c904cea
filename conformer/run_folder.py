"""The files of a run, and what keeps them from being overwritten or left half-written.

config.json (the options), metrics.jsonl (a line each time something is measured; the first says what the run is), checkpoint.safetensors (to go
on from), last.safetensors, best.safetensors and ema.safetensors (weights to use). Every file but metrics.jsonl is replaced whole or not at all,
and a resumed run cuts from metrics.jsonl what was logged after its checkpoint. Read next: `conformer/checkpoints.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import weakref
from pathlib import Path
from typing import Any

from conformer.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from conformer.claims import claim, release
from conformer.files import write_file
from conformer.run_log import check_heads, parse_line
from conformer.text import from_json
from conformer.weights import About, save_weights
from minigrad import nn

__all__ = ["CHECKPOINT", "RunFolder", "incomplete", "read_config", "read_options"]

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "last.safetensors", "best.safetensors", "ema.safetensors"
HALF_WRITTEN = f".{'[0-9a-f]' * 16}.tmp"  # as `safetensors_io.replaced` calls a file until all of it is there
ARRAYS_HALF_WRITTEN = f".tmp{'[0-9A-Za-z]' * 6}"  # as safetensors 0.8 calls what it writes first, beside the file that it is given


class RunFolder:
    """The files of one run, made by `create` or opened again by `reopen`; it is this process's alone until `close` (but not on Windows,
    where nothing keeps two processes from going on with one run). The claim is on the folder itself, and files are written by its path: where
    another folder is at that path by now, or none, every method that writes raises OSError instead.

    Attributes:
        path: the folder.
        lines: how many lines metrics.jsonl has.
    """

    def __init__(self, path: Path):
        self.path = path
        self.lines = 0
        handle = claim(path, "a Trainer of this process has it; delete that one, or call its folder.close()")
        self._claimed = None if handle is None else os.fstat(handle)
        self._close = weakref.finalize(self, release, handle)

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], header: dict[str, Any]) -> RunFolder:
        """Begin a run. A folder that holds one is never written to: config.json is created, so of two that want a folder the second is refused.

        Args:
            path: the folder; made if it is not there.
            config: what config.json says.
            header: the first line of metrics.jsonl.

        Raises:
            OSError: the folder cannot be made or written, or holds a run.
        """
        _check_free(path)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder._clear(HALF_WRITTEN)  # by a process killed before there was config.json; other hidden files here may be anybody's
        try:
            write_file(path / "config.json", _pretty(config), new=True)
        except FileExistsError as error:
            raise FileExistsError(f"{path} already holds a run (config.json); choose another folder with --out") from error
        try:
            folder.log(**header)
        except OSError:  # the disk is full: leave nothing behind that would be taken for a run
            folder.close()
            for name in ("metrics.jsonl", "config.json"):
                folder.to_write(name).unlink(missing_ok=True)
            raise
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Open the folder of a run that is to go on, and clear away what a killed process left half-written.

        Raises:
            OSError: there is no run in it, or another process, or Trainer of this one, is at it (which is not noticed on Windows).
        """
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"there is no run to go on with in {path} (no config.json); give the folder of a run")
        folder = cls(path)
        if why := incomplete(path):
            raise FileNotFoundError(f"{why}; start another one with --out")
        folder._clear(".*.tmp", ARRAYS_HALF_WRITTEN)
        return folder

    def _clear(self, *patterns: str) -> None:
        """Remove what a killed process left half-written."""
        for remnant in itertools.chain(*map(self.path.glob, patterns)):
            with contextlib.suppress(OSError):
                remnant.unlink()

    def close(self) -> None:
        """Let other processes have the folder."""
        self._close()

    def to_write(self, name: str) -> Path:
        """The path of a file that is about to be written.

        Raises:
            FileNotFoundError: it would not be in the folder that was created or reopened, or that has no config.json any more.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if self._claimed is None or os.path.samestat(self._claimed, os.stat(self.path)):
                os.stat(self.path / "config.json")
                return self.path / name
        raise FileNotFoundError(f"{self.path} is no longer the folder that this run began in: it was moved, removed or emptied")

    def has(self, name: str) -> bool:
        """Whether this run's file of that name is there."""
        try:
            return self.to_write(name).is_file()
        except OSError:
            return False

    def log(self, **values: Any) -> None:
        """Add a line to metrics.jsonl."""
        path = self.to_write("metrics.jsonl")
        line = json.dumps(values, allow_nan=False) + "\n"
        try:
            with open(path, "a", encoding="utf-8", newline="\n") as file:
                file.write(line)
        except OSError as error:
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        self.lines += 1

    def rewind(self, lines: int, header: dict[str, Any]) -> None:
        """Cut metrics.jsonl to its first `lines` lines, those that a checkpoint counts; of none, `header` becomes the first.

        Raises:
            ValueError: one of them is damaged or missing, which no killed process leaves behind: they were on the disk before the checkpoint was.
        """
        path = self.to_write("metrics.jsonl")
        text = path.read_bytes() if path.exists() else b""
        kept, parsed = text.splitlines()[:lines], []
        if len(kept) < lines:
            raise ValueError(
                f"{path} has {len(kept)} of the {lines} lines that the checkpoint counts; put it back, with {{}} for a line that is lost"
            )
        for number, line in enumerate(kept, 1):
            try:
                parsed.append(parse_line(line, number))
            except ValueError as error:
                others = ", or put {} in its place to go on without it" if number > 1 else ""  # the first says what the run is
                raise ValueError(f"{path} is damaged in line {number} ({error}); mend it{others}") from error
        check_heads(path, parsed[1:])
        kept = kept or [json.dumps(header, allow_nan=False).encode()]
        self.lines = len(kept)
        content = b"".join(line + b"\n" for line in kept)
        if content != text:
            write_file(path, content)

    def header(self) -> dict[str, Any]:
        """The first line of metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "rb") as file:
            return parse_line(file.readline(), 1)

    def set_options(self, **values: Any) -> None:
        """Change what config.json says."""
        write_file(self.to_write("config.json"), _pretty(read_config(self.path) | values))

    def set_steps(self, steps: int) -> None:
        """Say in config.json and in the first line of metrics.jsonl how many steps the run has."""
        self.set_options(steps=steps)
        path = self.to_write("metrics.jsonl")
        _, *rest = path.read_bytes().splitlines(keepends=True)
        write_file(path, json.dumps(self.header() | {"steps": steps}).encode() + b"\n" + b"".join(rest))

    def save(self, name: str, model: nn.Module, about: About) -> None:
        """Write `name`.safetensors: the model's weights and what they are for; an older one stays until the new one is complete."""
        save_weights(self.to_write(f"{name}.safetensors"), model, about)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write checkpoint.safetensors; the lines of metrics.jsonl that it counts are on the disk before it is."""
        path = self.to_write(CHECKPOINT)
        with open(self.path / "metrics.jsonl", "rb+") as file:
            os.fsync(file.fileno())
        save_checkpoint(path, checkpoint)

    def load_checkpoint(self) -> Checkpoint | None:
        """The run's checkpoint; None if the run was broken off before it had one. Raises like `conformer.checkpoints.load_checkpoint`."""
        path = self.path / CHECKPOINT
        return load_checkpoint(path) if path.exists() else None


def _check_free(path: Path) -> None:
    """Raise OSError where a folder cannot be made, or holds a run."""
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; choose another folder with --out")
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise FileNotFoundError(f"{part} is a link to {os.readlink(part)}, which does not exist; make that folder, or choose another with --out")
    taken = [name for name in ("config.json", "metrics.jsonl", CHECKPOINT, *WEIGHTS) if (path / name).exists()]
    if taken:
        way_on = "go on with it with --resume" if "config.json" in taken else "remove this one"
        raise FileExistsError(f"{path} already holds a run ({taken[0]}); choose another folder with --out, or {way_on}")


def incomplete(run: Path) -> str:
    """Why the run in a folder cannot go on, if it has lost a file that is older than one that is there; "" if not, or if there is no run in it."""
    for first, later in {"config.json": ("metrics.jsonl", CHECKPOINT, *WEIGHTS), CHECKPOINT: WEIGHTS}.items():
        if not (run / first).exists() and (there := [name for name in later if (run / name).exists()]):
            return f"{run} has {there[0]} but no {first}, so that run cannot go on"
    return ""


def read_config(run: Path) -> dict[str, Any]:
    """What a run folder's config.json says: the options, and the number of steps; raises ValueError if it is damaged, OSError if it is not there."""
    path = run / "config.json"
    try:
        return dict(from_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def read_options(run: Path) -> dict[str, Any]:
    """The options alone; raises as `read_config` does."""
    return {name: value for name, value in read_config(run).items() if name != "steps"}


def _pretty(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"
