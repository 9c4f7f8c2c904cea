"""Runs every test file that draws examples with the profile `deep`: 1,000 examples where `ci` draws 25, other ones each time.

    make deep                      all of them; a rerun goes on with the files that have not passed since they, or the library, last changed
    python -m tests.deep --only tests/fused --jobs 1

A line of a JSONL file says for each file how many tests ran and failed, and in how many seconds. `docs/trust.py` reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.mutants import digest

ROOT = Path(__file__).parent.parent


def files(only: list[str]) -> list[Path]:
    """The test files in which Hypothesis draws, that hold proofs, or that say they are for the deep run."""
    found = sorted(
        path for path in ROOT.glob("tests/**/test_*.py") if re.search(r"@given|\bProof\b|TestCase = |StateMachine|\bdeep run\b", path.read_text())
    )
    return [path for path in found if not only or any(path.relative_to(ROOT).as_posix().startswith(name) for name in only)]


def fingerprint(path: Path) -> str:
    """Of the library, of the application where the file uses it, of what the tests share, and of the file itself; comments in Python files aside."""
    shared = [ROOT / "tests" / name for name in ("conftest.py", "cuda_device.py", "support.py", "proofs.py")]
    application = sorted(ROOT.glob("conformer/**/*.py")) if "conformer" in path.read_text(encoding="utf-8") else []
    python = [*sorted(ROOT.glob("minigrad/**/*.py")), *application, *shared, path]
    kernels = [source.read_bytes() for kind in ("cu", "cuh", "cpp", "h") for source in sorted(ROOT.glob(f"minigrad/**/*.{kind}"))]
    return hashlib.sha256("".join(map(digest, python)).encode() + b"".join(kernels)).hexdigest()[:16]


def run(path: Path, seconds: float) -> dict[str, Any]:
    """Run one file; what came of it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "--timeout=0", str(path)]
    began = time.perf_counter()
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "deep", "MINIGRAD_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
        output, errors, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        (output, errors), code = ((stream or b"").decode(errors="replace") for stream in (error.stdout, error.stderr)), 124
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|error|skipped)", output.splitlines()[-1] if output else "")}
    output, errors = (text.replace(f"{ROOT}{os.sep}", "") for text in (output, errors))  # where this lies says nothing
    result = {"file": path.relative_to(ROOT).as_posix(), "code": code, **counts, "seconds": round(time.perf_counter() - began, 1)}
    if code:
        result["output"] = output[-6000:]
        if errors:  # of a process that ended in a crash: where it was
            result["errors"] = errors[-6000:]
    return result


def latest(results: Path) -> dict[str, dict[str, Any]]:
    """The last line of each file."""

    def lines() -> Iterator[dict[str, Any]]:
        for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else []:
            try:
                yield json.loads(line)
            except ValueError:  # cut short by a kill
                continue

    return {line["file"]: line for line in lines()}


def main() -> int:
    """Run what has not passed yet; the exit status is 1 if anything fails."""
    parser = argparse.ArgumentParser(description="Run the tests that draw examples, with 1,000 examples each.")
    parser.add_argument("--only", action="append", default=[], metavar="PATH", help="files or folders to run, for example tests/fused")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="files at a time (default: 2)")
    parser.add_argument("--seconds", type=float, default=10800, metavar="S", help="limit for a file (default: 10800)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "deep.jsonl", metavar="PATH", help="where lines are added")
    options = parser.parse_args()
    known = latest(options.results)
    marks = {path: fingerprint(path) for path in files(options.only)}
    done = {line["file"] for line in known.values() if line["code"] == 0 and line["mark"] == marks.get(ROOT / line["file"])}
    left = [path for path in marks if path.relative_to(ROOT).as_posix() not in done]
    print(f"{len(left)} of {len(marks)} files to run", flush=True)
    lock = threading.Lock()

    def work(path: Path) -> int:
        result = run(path, options.seconds)
        with lock:
            with open(options.results, "a", encoding="utf-8") as file:
                file.write(json.dumps({"date": datetime.now().astimezone().isoformat(timespec="seconds"), "mark": marks[path], **result}) + "\n")
            said = "failed" if result["code"] else f"{result.get('passed', 0)} passed"
            print(f"{result['file']}: {said}, {result['seconds']:.0f} s", flush=True)
        return result["code"]

    with ThreadPoolExecutor(options.jobs) as pool:
        return int(any(list(pool.map(work, left))))


if __name__ == "__main__":
    sys.exit(main())
