"""Run the benchmarks that docs/benchmarks.md shows with their default cases, then write docs/benchmarks.md: about an hour on two processors.

    make bench                                  make bench ARGS="--quick"         (a few minutes, figures that mean nothing)
    make bench ARGS="--pinned"                  the step and the operations once more, with OpenBLAS pinned to Haswell's kernels

Everything given here but --only is handed to each of them. Read next: `measure.py`, then `step.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from benchmarks.files import ROOT

DEFAULT = ["step", "step_profile", "threads", "ops", "block", "end_to_end", "memory", "growth", "inference"]
PINNED = ["step", "ops"]


def run_all(programs: Mapping[str, Sequence[str]], report: Sequence[str], until: Mapping[str, float] | None = None) -> int:
    """Run programs of benchmarks/ one after the other, each in a process of its own, then the one that writes the page; how many failed.

    Args:
        programs: by what they are called in the progress that is printed: the module's name and its arguments.
        report: the same of the one that writes the page.
        until: of each program, how many seconds after the start of the first one it is stopped; it counts as failed.
    """
    start = time.monotonic()

    def fails(command: Sequence[str], end: float | None = None) -> bool:
        module, *words = command
        timeout = None if end is None else max(1.0, start + end - time.monotonic())
        try:
            return bool(status_of([sys.executable, "-m", f"benchmarks.{module}", *words], timeout))
        except subprocess.TimeoutExpired:
            print(f"stopped after {timeout:.0f} s, since its time was over", flush=True)
            return True

    failed = []
    for name, command in programs.items():
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        if fails(command, until and until[name]):
            failed.append(name)
        print(f"== {name}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)
    if fails(report):
        failed.append("report")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


def status_of(command: Sequence[str], timeout: float | None) -> int:
    """The exit status of a program, which is killed after `timeout` seconds (TimeoutExpired). Ctrl-C, of which the terminal tells it too, leaves it a
    minute to write what it has.
    """
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(timeout)
    except KeyboardInterrupt:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        raise
    finally:
        process.kill()
        process.wait()


def main(argv: list[str] | None = None) -> int:
    """The number of benchmarks that failed; the others are run all the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=DEFAULT, help="these benchmarks")
    options, handed_on = parser.parse_known_args(argv)
    names = options.only or (PINNED if "--pinned" in handed_on else DEFAULT)
    quick = ["--quick"] if "--quick" in handed_on else []
    return run_all({name: [name, *handed_on] for name in names}, ["report", *quick])


if __name__ == "__main__":
    sys.exit(main())
