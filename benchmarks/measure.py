"""What every CPU benchmark does: it reads the options, and lets the sides take turns on its cases; a side's process answers instead.

A benchmark names its cases and says how a side prepares one. Read next: `step.py`, the shortest benchmark; then `sides.py`, the process of a side,
`turns.py` and `records.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import files
from benchmarks.machine import PINS, processors
from benchmarks.records import save
from benchmarks.sides import SIDES, Side, serve
from benchmarks.turns import interleaved, label_of

CONFIGS = ("cifar-nano", "cifar-micro", "cifar-small")


def arguments(
    description: str | None, sides: Sequence[str], rounds: int, seconds: float, configs: Sequence[str] = (), batches: Sequence[int] = ()
) -> argparse.ArgumentParser:
    """The options that all benchmarks have, and --configs and --batches for one that has such cases; given is what they are by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(sides), metavar="SIDE", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side on each case (default: {rounds})")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"how long a turn measures (default: {seconds:g}), at least three samples")
    parser.add_argument("--threads", type=int, help="of every side (default: as many as processors; 1 with --quick)")
    parser.add_argument("--retakes", type=int, default=2, help="how often a noisy turn is taken again; the quietest counts (default: 2)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no turn after so long; what was measured until then is written")
    parser.add_argument("--pinned", action="store_true", help="with OPENBLAS_CORETYPE=Haswell, as some machines have it; goes to a file of its own")
    parser.add_argument("--quick", action="store_true", help="one sample of tiny cases, to see that everything works; written to runs/benchmarks/")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PYTHON", help="interpreter with jax, tinygrad, autograd, mygrad")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON file (default: benchmarks/results/NAME.json)")
    parser.add_argument("--add", action="store_true", help="keep what the file holds of other cases and sides: for a long benchmark taken in pieces")
    parser.add_argument("--worker", metavar="SIDE", help=argparse.SUPPRESS)  # this process is one side's
    if configs:
        parser.add_argument("--configs", nargs="+", default=list(configs))
    if batches:
        parser.add_argument("--batches", nargs="+", type=int, default=list(batches))
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, answer: Callable[[Side, dict], dict]) -> argparse.Namespace:
    """The options; --quick makes configurations, batches, rounds and samples few. A side's process (--worker) gives its answers here, and ends.

    Refuses (exit status 2) to time NumPy with another processor's kernels unasked.
    """
    options = parser.parse_args(argv)
    if options.worker:
        serve(options, answer)
        raise SystemExit
    found = [f"{name}={os.environ[name]}" for name in PINS if name in os.environ]
    if found and not options.pinned:
        parser.error(
            f"{' and '.join(found)} makes NumPy run another processor's matrix products; start with `env {' '.join(f'-u {name}' for name in PINS)}` "
            "(make bench does), or give --pinned to measure that"
        )
    options.least, options.revision = 3, files.revision()
    if options.quick:
        options.rounds, options.seconds, options.least, options.retakes = 1, 0.0, 1, 0
        if "configs" in options:
            options.configs = options.configs[:1]
        if "batches" in options:
            options.batches = [2]
    # On a busy machine threads that wait for each other wait long.
    options.threads = options.threads or (1 if options.quick else processors())
    return options


def run(
    name: str,
    cases: Iterable[dict],
    options: argparse.Namespace,
    argv: Sequence[str] | None,
    fresh: bool,
    label: Callable[[dict], str] = label_of,
    **more: Any,
) -> None:
    """Measure the cases (see `turns.interleaved`), and write the file, with `more` in it."""
    save(name, interleaved(name, cases, options, fresh, label), options, argv, **more)
