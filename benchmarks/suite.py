"""Run the benchmarks that docs/benchmarks.md shows with their default cases, then write docs/benchmarks.md: about an hour on two processors.

    make bench                                  make bench ARGS="--quick"         (a few minutes, figures that mean nothing)
    make bench ARGS="--pinned"                  the step and the operations once more, with OpenBLAS pinned to Haswell's kernels

Everything given here but --only is handed to each of them. Read next: `measure.py`, then `step.py`.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.measure import run_all

DEFAULT = ["step", "step_profile", "threads", "ops", "block", "end_to_end", "memory", "growth", "inference"]
PINNED = ["step", "ops"]


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
