"""Where figures lie, of which commit they are, and how a file of them is written. Read next: `records.py`, the files of the CPU benchmarks."""

from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "runs" / "benchmarks"  # git ignores runs/: what --quick measures is no result


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def revision() -> str | None:
    """The commit that is measured, "+" where files that are run differ from it: neither results nor pages."""
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs", ":!*.md"]
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=10", "HEAD"], changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whose "rows" come last, one row a line: a later run differs from this one line by line."""
    head = json.dumps({**record, "rows": []}, indent=1).removesuffix("[]\n}")
    rows = ",\n".join(json.dumps(row) for row in record["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")  # whoever is stopped while writing still has what was written before
    beside.write_text(f"{head}[\n{rows}\n]\n}}\n")
    beside.replace(path)


def told(path: Path) -> None:
    """Say where a file was written."""
    print(f"written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
