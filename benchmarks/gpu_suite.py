"""Run every GPU benchmark with its default cases, then write docs/benchmarks_gpu.md. How long that takes has not been measured yet.

    make bench-gpu                               make bench-gpu ARGS="--quick"         (figures that mean nothing)
    python -m benchmarks.gpu_suite               where CuPy and PyTorch are installed already

Each runs in a process of its own; what one cannot measure leaves the others alone. Without a GPU the first one's sentence ends it.

Where a GPU is lent for 30 minutes, and 10 for one call, all there is to know about it comes from these calls, in this order. DIR is a folder (no
more than 8 files get into it) whose files come home; each is written as soon as there is something for it, so a call may be stopped. Where nothing in
DIR outlasts a call, the JSON of call 2 is brought along to call 3 and copied into DIR first. The minutes are the most that a call takes; starting the
machine counts too, a minute or more each time that it was given back, so no time is spent on the results between the calls, and what does not fit is
left out from the end. Call 3 goes on with the files of call 2 on the same card, driver and versions; on others it writes them anew, so keep those of
call 2.

    0. python3 -m tests.gpu.compile_all; timeout -s INT -k 15 130 bash -c 'python3 -m pytest -p no:benchmark --device=gpu -n 6 --timeout=60
       --timeout-method=thread -v tests/gpu/test_network.py tests/gpu/test_copies.py tests/optim/test_captured_steps.py; :'    3 minutes: what has
       never run on a GPU (captured steps, most of all) fails here, while there is time to mend it

    1. timeout -s INT -k 30 530 make test-gpu PYTHON_GPU=python3 ARGS="-v --timeout=100" 2>&1 | tee DIR/tests.txt    9 minutes
    2. make bench-gpu PYTHON_GPU=python3 ARGS="--seconds 500 --out DIR"                                              9
    3. make bench-gpu PYTHON_GPU=python3 ARGS="--seconds 200 --resume --out DIR"                                     4; DIR has the files of call 2
    4. make sanitize PYTHON_GPU=python3 ARGS="--only memcheck --timeout 150 --out DIR"                               3

Interrupted by INT, the tests still say why some failed; by TERM they say nothing. (Between `timeout` and pytest there is make, or bash as in call 0:
pytest itself would get INT twice.) Then, anywhere: DIR's gpu_*.json go to benchmarks/results/gpu/, and
`python -m benchmarks.gpu_report` writes the page.

Training needs another 30 minutes. Where a call may carry only so much, CIFAR-10 comes in parts, in calls of their own, and is kept in a temporary
folder DATA while the machine stays warm. Nothing above compiles the kernels that CuPy makes itself, so a few steps come first and fill its cache; the
second run is to reach 94 %. Of its folder two files go into DIR.

    RUN="python3 -m conformer train --data-dir DATA --device cuda --config cifar-micro --precision tf32 --batch-size 512"
    $RUN --max-steps 5 --out DATA/short
    $RUN --epochs 30 --lr 3e-3 --warmup 0.15 --ema 0.995 --cutout 8 --eval-epochs 30 --log-every 50 --out DATA/run
    mkdir -p DIR/run; cp DATA/run/metrics.jsonl DATA/run/config.json DIR/run

Then, anywhere: `python -m benchmarks.gpu_report --run DIR/run` copies them, without the machine's folders, to benchmarks/results/gpu/train-.../ and
writes the page, where the run has a section: accuracies, seconds, images/s and PFLOP.

Read next: `gpu.py`, then `gpu_profile.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import files, gpu
from benchmarks.suite import run_all

PARTS = {
    "kernels": "gpu_kernels",
    "kernels-tf32": "gpu_kernels --precision tf32 --configs cifar-micro:512:32 --only conv2d linear scaled_dot_product_attention",
    "profile": "gpu_profile",
    "step": "gpu_step",
}
"""What is run, in this order: what may take long, since it compiles networks, comes last."""

UNTIL = {"kernels": 0.4, "kernels-tf32": 0.5, "profile": 0.6, "step": 1.0}
"""The share of --seconds by whose end each of them is stopped; what one does not need is the next one's."""

WHOLE = ("profile",)
"""What has one case only, which no --resume could leave out."""


def main(argv: list[str] | None = None) -> int:
    """The number of benchmarks that failed; the others are run all the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these benchmarks")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that everything works; written to runs/benchmarks/gpu/")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the JSON files and the page go (default: benchmarks/results/gpu and docs)")
    parser.add_argument("--seconds", type=float, help="stop after so long, each benchmark after its share; --resume goes on (default: no limit)")
    gpu.resumable(parser)
    options = parser.parse_args(argv)
    gpu.connect()
    folder = options.out or (files.QUICK_RESULTS / "gpu" if options.quick else None)
    handed_on = [*(["--quick"] if options.quick else []), *(["--out", str(folder)] if options.out else [])]
    where = ["--results", str(folder), "--page", str(folder / "benchmarks_gpu.md")] if folder else []
    parts = {name: [*PARTS[name].split(), *(["--resume"] if options.resume and name not in WHOLE else []), *handed_on] for name in options.only}
    until = {name: share * options.seconds for name, share in UNTIL.items()} if options.seconds else None
    return run_all(parts, ["gpu_report", *where], until)


if __name__ == "__main__":
    sys.exit(main())
