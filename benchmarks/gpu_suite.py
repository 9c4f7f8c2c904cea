"""Run every GPU benchmark with its default cases, then write docs/benchmarks_gpu.md: about 6 minutes on an H100.

    make bench-gpu                               make bench-gpu ARGS="--quick"         (figures that mean nothing)
    python -m benchmarks.gpu_suite               where CuPy and PyTorch are installed already

Each runs in a process of its own; what one cannot measure leaves the others alone. Without a GPU the first one's sentence ends it. Read next:
`gpu.py`, then `gpu_profile.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks import gpu
from benchmarks.measure import QUICK_RESULTS, ROOT

PARTS = ("step", "kernels", "profile")


def main(argv: list[str] | None = None) -> int:
    """The number of benchmarks that failed; the others are run all the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these benchmarks")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that everything works; written to runs/benchmarks/gpu/")
    options = parser.parse_args(argv)
    gpu.connect()
    quick, failed = ["--quick"] if options.quick else [], []
    for name in options.only:
        print(f"\n== {name}", flush=True)
        began = time.monotonic()
        if subprocess.run([sys.executable, "-m", f"benchmarks.gpu_{name}", *quick], cwd=ROOT).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} seconds", flush=True)
    where = ["--results", str(QUICK_RESULTS / "gpu"), "--page", str(QUICK_RESULTS / "benchmarks_gpu.md")] if options.quick else []
    if subprocess.run([sys.executable, "-m", "benchmarks.gpu_report", *where], cwd=ROOT).returncode:
        failed.append("report")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
