"""What every CPU benchmark does: it reads its options, and lets the sides take turns on its cases (ours, theirs, ours, theirs, ...).

Each side is a process of its own, which is this program, too, and answers where the options are read; what else the machine does meanwhile is shared
by all. A noisy turn is taken again; Ctrl-C, a side that is not installed and one that fails leave what was measured. A benchmark names its cases and
says how a side prepares one. Read next: `step.py`, the shortest benchmark; then `sides.py`, the process that answers, and `records.py`, the file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import files
from benchmarks.machine import NOISY, PINS, TICKS, environment, processors, taken_by_others
from benchmarks.records import Rows, of_turns, refuse_to_mix, result_path, save, settings_of
from benchmarks.sides import SIDES, Side, process_environment, serve

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


# --- turns


class Worker:
    """The process of one side of one benchmark."""

    def __init__(self, benchmark: str, side: Side, options: argparse.Namespace):
        self.side = side
        python = options.peers_python if side.own else sys.executable
        command = [python, "-m", f"benchmarks.{benchmark}", "--worker", side.name, "--threads", str(options.threads)]
        self.process = subprocess.Popen(
            command, cwd=files.ROOT, env=process_environment(side, options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict:
        """The reply to a request; `{"failed": ...}` where the process ended, for want of memory for example."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"failed": f"its process ended with status {self.process.wait()}", "about": {}}

    def take_turn(self, case: dict, options: argparse.Namespace) -> dict:
        """The reply for one turn; one in which other processes took more than `NOISY` of the processors is taken again, and the quietest returned.

        Only time that was measured counts, so the choice looks at the others' time and not at the result; `retakes` says how often it was made.
        A retake that fails leaves what was measured before it.
        """
        measured: list[dict] = []
        for _ in range(1 + options.retakes):
            reply = self.ask(case=case, seconds=options.seconds, least=options.least)
            if "others_s" not in reply:
                if not measured:
                    return reply
                break
            measured.append(reply)
            if reply["others_s"] <= TICKS or taken_by_others([reply], os.cpu_count() or 1) <= NOISY:
                break
        return {**min(measured, key=lambda reply: taken_by_others([reply], 1)), "retakes": len(measured) - 1}

    def ended(self) -> bool:
        """Whether the process is gone: of itself, since nobody has closed it."""
        return self.process.poll() is not None

    def close(self) -> None:
        """End the process, and wait until it has."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died with a request unread
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


Label = Callable[[dict], str]


def label_of(case: dict) -> str:
    """What most benchmarks call a case in the progress that is printed."""
    return f"{case['config']}, batch {case['batch']}"


def interleaved(benchmark: str, cases: Iterable[dict], options: argparse.Namespace, fresh: bool, label: Label = label_of) -> Rows:
    """Let all sides take turns on each case; the first of a round goes last in the next. Ctrl-C ends it, and what was measured is returned.

    Raises:
        SystemExit: with --add, where the file is of another machine or other settings; nothing has been measured then.

    Args:
        benchmark: the module in benchmarks/ whose processes answer.
        cases: what JSON can hold. A case may name the only sides that take part in it under "sides".
        options: see `arguments`.
        fresh: a new process for every turn: for cases that use much memory; otherwise one process for each side.
        label: what a case is called in the progress that is printed.
    """
    say = functools.partial(print, flush=True)
    if options.add:
        refuse_to_mix(result_path(benchmark, options), {"environment": environment(), "settings": settings_of(options), "sides": {}})
    rows, workers = Rows(), {}
    rows.speeds.append(machine_speeds(options))
    end = time.monotonic() + 60 * options.minutes

    def turn(name: str, case: dict) -> dict:
        if name not in workers:
            workers[name] = Worker(benchmark, SIDES[name], options)
        worker = workers[name]
        reply = worker.take_turn(case, options)
        rows.about[name] = reply.pop("about", None) or rows.about.get(name)
        if fresh or reply.keys() & {"missing", "failed"} or worker.ended():
            workers.pop(name).close()
        return reply

    def take_turns(case: dict, turns: dict[str, list], failed: dict[str, str]) -> None:
        names = list(turns)
        for number in range(options.rounds):
            first = number % max(1, len(names))
            for name in names[first:] + names[:first]:
                if name in rows.skipped or name in failed or time.monotonic() > end:
                    continue
                reply = turn(name, case)
                if "missing" in reply:
                    rows.skipped[name] = reply["missing"]
                    say(f"{SIDES[name].title}: left out, {reply['missing']}" + (" (see --peers-python)" if SIDES[name].own else ""))
                elif "failed" in reply:
                    failed[name] = reply["failed"]
                    say(f"{SIDES[name].title}: failed on {label(case)}: {reply['failed']}")
                else:
                    turns[name].append(reply)

    try:
        for case in cases:
            turns: dict[str, list] = {name: [] for name in options.sides if name in case.get("sides", options.sides)}
            case = {key: value for key, value in case.items() if key != "sides"}
            failed: dict[str, str] = {}
            try:
                take_turns(case, turns, failed)
            except KeyboardInterrupt:
                rows.stopped = True
            about = {"date": files.now(), "revision": options.revision}
            for name, taken in turns.items():
                outcome = ({"turns": taken} if taken else {}) | ({"failed": failed[name]} if name in failed else {})
                if outcome:
                    rows.append({"case": case, "side": name, **about, **outcome})
            if rows.stopped:
                break
            say(f"{label(case)}: " + (", ".join(f"{name} {_summary(taken)}" for name, taken in turns.items() if taken) or "no time left"))
    finally:
        for worker in workers.values():
            worker.close()
    with contextlib.suppress(KeyboardInterrupt, subprocess.CalledProcessError, ValueError):  # the rows are worth more
        rows.speeds.append(machine_speeds(options))
    return rows


def machine_speeds(options: argparse.Namespace) -> dict[str, float]:
    """What `speeds.py` measures, in a process of its own, with the kernels that the benchmark runs with."""
    command = [sys.executable, "-m", "benchmarks.speeds", "--threads", str(options.threads), *["--quick"] * options.quick]
    done = subprocess.run(command, cwd=files.ROOT, env=process_environment(SIDES["minigrad"], options), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _summary(turns: Sequence[dict]) -> str:
    quantity = next(iter(turns[0]))  # the first that a turn holds
    return f"{of_turns(turns, quantity):.4g} {'ms' if quantity == 'wall_ms' else quantity}"


def run(
    name: str, cases: Iterable[dict], options: argparse.Namespace, argv: Sequence[str] | None, fresh: bool, label: Label = label_of, **more: Any
) -> None:
    """Measure the cases (see `interleaved`), and write the file, with `more` in it."""
    save(name, interleaved(name, cases, options, fresh, label), options, argv, **more)
