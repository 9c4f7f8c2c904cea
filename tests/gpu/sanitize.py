"""Runs every kernel under NVIDIA's compute-sanitizer: accesses out of bounds, races, reads of what nobody wrote, barriers that not all threads reach.

    python -m tests.gpu.sanitize [--only memcheck racecheck] [--out FILE.json]

Each tool runs `tests.gpu.every_kernel` once; its last lines are collected. The emulator finds the same kinds of mistakes in another way.

Source: https://docs.nvidia.com/compute-sanitizer/ComputeSanitizer/
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minigrad.backend import cuda

__all__ = ["TOOLS", "find_sanitizer", "findings"]

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
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


def run(sanitizer: str, tool: str) -> dict[str, Any]:
    """One tool over all kernels."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", "99", sys.executable, "-m", "tests.gpu.every_kernel"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, errors="replace")
    summaries, told = findings(done.stdout + done.stderr)
    own = [line for line in done.stdout.splitlines() if "kernels in" in line]
    clean = done.returncode == 0 and _clean(summaries) and bool(own)
    tail = [] if clean else (done.stdout + done.stderr).splitlines()[-15:]
    return {
        "tool": tool,
        "clean": clean,
        "status": done.returncode,
        "summary": summaries,
        "launched": own,
        "findings": [] if clean else told,
        "tail": tail,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 if every tool found nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    options = parser.parse_args(arguments)
    found, sanitizer = cuda.availability(), find_sanitizer()
    if not found.usable or sanitizer is None:
        print(found.sentence if not found.usable else "There is no compute-sanitizer here: it comes with the CUDA toolkit.", file=sys.stderr)
        return 1
    results = []
    for tool in options.only:
        result = run(sanitizer, tool)
        results.append(result)
        print(f"{tool}: {'; '.join(result['summary']) or 'no summary'} ({'; '.join(result['launched'])}; {result['seconds']} s)", flush=True)
        for line in [*result["findings"], *result["tail"]]:
            print(f"    {line}")
    if options.out:
        version = subprocess.run([sanitizer, "--version"], capture_output=True, text=True).stdout.strip().splitlines()[-1:]
        about = {
            "device": found.sentence, "date": datetime.now(UTC).isoformat(timespec="seconds"), "sanitizer": version,
            "command": "python -m tests.gpu.sanitize",
        }  # fmt: skip
        options.out.write_text(json.dumps(about | {"tools": results}, indent=1) + "\n")
    return 0 if all(result["clean"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
