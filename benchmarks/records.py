"""A benchmark's file: everything that was measured, unreduced, on what, when, and by which command. Medians are taken when it is read (`tables.py`).

A row is what one side did on one case, `{"case", "side", "date", "revision", "turns" and/or "failed"}`; a turn has lists of samples by name, and what
else the machine did meanwhile. Read next: `tables.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import files
from benchmarks.machine import environment
from benchmarks.sides import SIDES


class Rows(list):
    """Rows, and what else there is to say of their run.

    Attributes:
        about: what each side is made of. skipped: why a side is missing. stopped: whether Ctrl-C ended it. speeds: the machine's, before and after.
    """

    def __init__(self, rows: Iterable[dict] = ()) -> None:
        super().__init__(rows)
        self.about: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.stopped = False
        self.speeds: list[dict[str, float]] = []


def of_turns(turns: Sequence[dict], quantity: str = "wall_ms") -> float:
    """The median over the turns of the median over a turn's samples."""
    return median(median(turn[quantity]) for turn in turns)


def result_path(name: str, options: argparse.Namespace) -> Path:
    """Where `save` writes: --out, or a file called after the benchmark."""
    return options.out or (files.QUICK_RESULTS if options.quick else files.RESULTS) / f"{name}{'-pinned' if options.pinned else ''}.json"


def without_paths(words: Sequence[str]) -> list[str]:
    """The words of a command line, with a name for what is a path of this machine."""
    names = ("PYTHON" if before == "--peers-python" else "DIR" for before in ("", *words))
    return [name if os.path.isabs(word) else word for name, word in zip(names, words, strict=False)]


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(options, key) for key in ("rounds", "seconds", "threads", "retakes", "pinned", "quick")}


def save(name: str, rows: Rows, options: argparse.Namespace, argv: Sequence[str] | None = None, **more: Any) -> Path:
    """Write the file and return its path. What changed in the code meanwhile shows as two revisions, "old..new".

    With --add, a row of the file as it is stays, with its date and revision, unless at least as many turns of it were measured now.

    Raises:
        SystemExit: Ctrl-C had ended it (exit status 130); or --add, and the file is of other versions or samples (1). What was measured is beside the
            results then, in runs/benchmarks/.
    """
    words = without_paths(sys.argv[1:] if argv is None else argv)
    now, path = files.revision(), result_path(name, options)
    record = {
        "benchmark": name,
        "date": files.now(),
        "command": f"make bench BENCH={name}" + (f' ARGS="{shlex.join(words)}"' if words else ""),
        "settings": settings_of(options),
        "environment": environment(),
        "sides": {side: {"title": SIDES[side].title, "environment": SIDES[side].environment, **(what or {})} for side, what in rows.about.items()},
        "skipped": rows.skipped,
        "speeds": rows.speeds,
        **more,
        "rows": json.loads(json.dumps(rows)),  # tuples are lists in the file
    }
    for row in record["rows"]:
        if now != options.revision:
            row["revision"] = f"{options.revision}..{now}"
    try:
        if rows.stopped:
            raise SystemExit(130)
        if options.add and path.exists():
            refuse_to_mix(path, record)
            record = _added(json.loads(path.read_text()), record)
    except SystemExit:
        files.write(files.QUICK_RESULTS / path.name, record)
        files.told(files.QUICK_RESULTS / path.name)
        raise
    measured = {row["side"] for row in record["rows"]}
    record["skipped"] = {side: why for side, why in record["skipped"].items() if side not in measured}
    files.write(path, record)
    files.told(path)
    return path


def _added(before: dict, now: dict) -> dict:
    """The record with what a file has beside it."""
    rows = {json.dumps([row["case"], row["side"]]): row for row in before["rows"]}
    for row in now["rows"]:
        key = json.dumps([row["case"], row["side"]])
        if len(row.get("turns", [])) >= len(rows.get(key, {}).get("turns", [])):
            rows.pop(key, None)  # so that it comes last
            rows[key] = row
    measured = {row["side"] for row in now["rows"] if "turns" in row}
    return {
        **now,
        "sides": {**now["sides"], **before["sides"], **{side: what for side, what in now["sides"].items() if side in measured}},
        "skipped": {**before["skipped"], **now["skipped"]},
        "speeds": [*before.get("speeds", []), *now["speeds"]],
        "command": "\n".join(dict.fromkeys([*before["command"].splitlines(), now["command"]])),
        "rows": list(rows.values()),
    }


def refuse_to_mix(path: Path, now: dict) -> None:
    """Raise SystemExit if rows of another machine, other versions, or otherwise sampled would come into one file."""
    if not path.exists():
        return
    before = json.loads(path.read_text())

    def made_of(record: dict) -> dict[str, Any]:
        about = {key: record["environment"].get(key) for key in ("processor", "vector_units", "caches", "processors", "system", "python")}
        about |= {key: record["settings"][key] for key in ("threads", "pinned", "quick")}
        about |= {key: record[key] for key in ("warm_up", "least") if key in record}
        return about | {f"{side}'s {name}": version for side, what in record["sides"].items() for name, version in what.get("versions", {}).items()}

    then, today = made_of(before), made_of(now)
    for key in then:
        if key in today and then[key] != today[key]:
            told = f"{path.name} was measured with {key} {then[key]}, now it is {today[key]}"
            raise SystemExit(f"{told}: measure it whole, without --add, or give another file by --out")
