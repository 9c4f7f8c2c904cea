"""Run every GPU benchmark with its default cases, then write docs/benchmarks_gpu.md: about 6 minutes on an H100.

    make bench-gpu                               make bench-gpu ARGS="--quick"         (figures that mean nothing)
    python -m benchmarks.gpu_suite               where CuPy and PyTorch are installed already

Each runs in a process of its own; what one cannot measure leaves the others alone. Without a GPU the first one's sentence ends it.

Where a GPU is lent for 30 minutes, and 10 for one call, all there is to know about it comes from these calls, in this order. DIR is a folder (no
more than 8 files get into it) that outlasts a call; each file is written as soon as there is something for it, so a call may be stopped. Minutes are
guesses but for the suite's.

    1. timeout 540 make test-gpu PYTHON_GPU=python3 ARGS="-v --timeout=100" 2>&1 | tee DIR/tests.txt   9 minutes at most
    2. make bench-gpu PYTHON_GPU=python3 ARGS="--out DIR"                                              6; and if it was stopped, what is left:
       make bench-gpu PYTHON_GPU=python3 ARGS="--resume --out DIR"                                     DIR holds the files that the first call left
    3. make sanitize PYTHON_GPU=python3 ARGS="--only memcheck racecheck --timeout 270 --out DIR"       9 at most
    4. make sanitize PYTHON_GPU=python3 ARGS="--only initcheck synccheck --timeout 150 --out DIR"      5 at most

Then, anywhere: DIR's gpu_*.json go to benchmarks/results/gpu/, and `python -m benchmarks.gpu_report` writes the page.

Read next: `gpu.py`, then `gpu_profile.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import gpu
from benchmarks.measure import QUICK_RESULTS, run_all

PARTS = {
    "step": "gpu_step",
    "kernels": "gpu_kernels",
    "kernels-tf32": "gpu_kernels --precision tf32 --configs cifar-micro:512:32 --only conv2d linear scaled_dot_product_attention",
    "profile": "gpu_profile",
}
"""What is run, in this order."""

WHOLE = ("profile",)
"""What has one case only, which no --resume could leave out."""


def main(argv: list[str] | None = None) -> int:
    """The number of benchmarks that failed; the others are run all the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these benchmarks")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that everything works; written to runs/benchmarks/gpu/")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the JSON files and the page go (default: benchmarks/results/gpu and docs)")
    gpu.resumable(parser)
    options = parser.parse_args(argv)
    gpu.connect()
    folder = options.out or (QUICK_RESULTS / "gpu" if options.quick else None)
    handed_on = [*(["--quick"] if options.quick else []), *(["--out", str(folder)] if options.out else [])]
    where = ["--results", str(folder), "--page", str(folder / "benchmarks_gpu.md")] if folder else []
    parts = {name: [*PARTS[name].split(), *(["--resume"] if options.resume and name not in WHOLE else []), *handed_on] for name in options.only}
    return run_all(parts, ["gpu_report", *where])


if __name__ == "__main__":
    sys.exit(main())
