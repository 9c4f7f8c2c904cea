"""Runs every kernel under NVIDIA's compute-sanitizer: accesses out of bounds, races, reads of what nobody wrote, barriers that not all threads reach.

    python -m tests.gpu.sanitize [--only memcheck racecheck] [--timeout SECONDS] [--out DIR]

Each tool runs `tests.gpu.every_kernel` once; its last lines are collected, and written as soon as it has ended. The emulator finds the same kinds of
mistakes in another way.

Source: https://docs.nvidia.com/compute-sanitizer/ComputeSanitizer/
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigrad.backend import cuda

__all__ = ["TOOLS", "find_sanitizer", "findings"]

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Calls of the API that fail on purpose (an event that is not done yet, is it?) are no finding; memcheck alone reports them.
_OPTIONS = {"memcheck": ["--report-api-errors", "no"]}
_ROOT = Path(__file__).parents[2]


def find_sanitizer() -> str | None:
    """The program, from the PATH, a toolkit, or NVIDIA's wheel; None where there is none."""
    folders = [os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME")] + ["/usr/local/cuda"]
    candidates = [Path(folder) / part / "compute-sanitizer" for folder in folders if folder for part in ("bin", "compute-sanitizer")]
    package = find_spec("nvidia")
    for folder in (package.submodule_search_locations or []) if package else []:
        candidates += sorted(Path(folder).glob("**/compute-sanitizer"))
    found = shutil.which("compute-sanitizer")
    return found or next((str(path) for path in candidates if path.is_file()), None)


def findings(output: str) -> tuple[list[str], list[str]]:
    """Of what the sanitizer printed: its summaries, such as "ERROR SUMMARY: 0 errors", and the first lines of what it found."""
    lines = [line.removeprefix("=========").strip() for line in output.splitlines() if line.startswith("=========")]
    summaries = [line for line in lines if "SUMMARY" in line]
    told = [line for line in lines if line and line not in summaries and not line.startswith("COMPUTE-SANITIZER")]
    return summaries, told[:40]


def _clean(summaries: list[str]) -> bool:
    """Whether there is a summary, and all count nothing: "0 errors", "0 hazards displayed (0 errors, 0 warnings)"."""
    return bool(summaries) and all(line.partition("SUMMARY:")[2].split()[:1] == ["0"] for line in summaries)


def _finished(command: list[str], seconds: float) -> tuple[int | None, str, str]:
    """Exit status (None: it was stopped after so many seconds), and what it printed."""
    process = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0)
    try:
        out, err = process.communicate(timeout=seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as stopped:
        os.killpg(process.pid, signal.SIGKILL)  # the program under the sanitizer too, which would hold the GPU and the pipes
        out, err = process.communicate()
        if isinstance(stopped, KeyboardInterrupt):
            raise
        return None, out, err
    return process.returncode, out, err


def run(sanitizer: str, tool: str, seconds: float) -> dict[str, Any]:
    """One tool over all kernels, stopped after so many seconds."""
    command = [sanitizer, "--tool", tool, *_OPTIONS.get(tool, []), "--error-exitcode", "99", sys.executable, "-u", "-m", "tests.gpu.every_kernel"]
    start = time.perf_counter()
    status, out, err = _finished(command, seconds)
    summaries, told = findings(out + err)
    own = [line for line in out.splitlines() if "kernels in" in line]
    clean = status == 0 and _clean(summaries) and bool(own)
    tail = [] if clean else (out + err).splitlines()[-15:]
    if status is None:
        tail.append(f"{tool} was stopped after {seconds:g} s, before it had seen every kernel: give it more with --timeout")
    return {
        "tool": tool,
        "clean": clean,
        "status": status,
        "timed_out": status is None,
        "summary": summaries,
        "launched": own,
        "findings": [] if clean else told,
        "tail": tail,
        "seconds": round(time.perf_counter() - start, 1),
    }


def path_of(out: Path, tools: Sequence[str]) -> Path:
    """Where --out says to write: in a folder, each choice of tools has a file of its own, so that calls for one tool each keep apart."""
    return out if out.suffix == ".json" else out / f"sanitize-{'-'.join(tools) if tuple(tools) != TOOLS else 'all'}.json"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 if every tool found nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="stop a tool after so long (default: 3600), and go on")
    parser.add_argument("--out", type=Path, metavar="PATH", help="a JSON file for the results, or a folder for it; written after each tool")
    options = parser.parse_args(arguments)
    found, sanitizer = cuda.availability(), find_sanitizer()
    if not found.usable or sanitizer is None:
        print(found.sentence if not found.usable else "There is no compute-sanitizer here: it comes with the CUDA toolkit.", file=sys.stderr)
        return 1
    version = subprocess.run([sanitizer, "--version"], capture_output=True, text=True, timeout=60).stdout.strip().splitlines()[-1:]
    about = {
        "device": found.sentence, "date": datetime.now(UTC).isoformat(timespec="seconds"), "sanitizer": version,
        "command": "python -m tests.gpu.sanitize",
    }  # fmt: skip
    results: list[dict[str, Any]] = []
    for tool in options.only:
        result = run(sanitizer, tool, options.timeout)
        results.append(result)
        if options.out:  # each time: what follows may be stopped
            path = path_of(options.out, options.only)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about | {"tools": results}, indent=1) + "\n")
        print(f"{tool}: {'; '.join(result['summary']) or 'no summary'} ({'; '.join(result['launched'])}; {result['seconds']} s)", flush=True)
        for line in [*result["findings"], *result["tail"]]:
            print(f"    {line}")
    return 0 if all(result["clean"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
