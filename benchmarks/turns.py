"""The sides take turns on every case (ours, theirs, ours, theirs, ...), each in a process of its own: what else the machine does is shared by all.

A noisy turn is taken again; Ctrl-C, a side that is not installed and one that fails leave what was measured. Read before: `sides.py`, the process
that answers. Read next: `records.py`, what becomes of the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks import files
from benchmarks.machine import NOISY, TICKS, environment, taken_by_others
from benchmarks.records import Rows, of_turns, refuse_to_mix, result_path, settings_of
from benchmarks.sides import SIDES, Side, process_environment


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


def label_of(case: dict) -> str:
    """What most benchmarks call a case in the progress that is printed."""
    return f"{case['config']}, batch {case['batch']}"


def interleaved(benchmark: str, cases: Iterable[dict], options: argparse.Namespace, fresh: bool, label: Callable[[dict], str] = label_of) -> Rows:
    """Let all sides take turns on each case; the first of a round goes last in the next. Ctrl-C ends it, and what was measured is returned.

    Raises:
        SystemExit: with --add, where the file is of another machine or other settings; nothing has been measured then.

    Args:
        benchmark: the module in benchmarks/ whose processes answer.
        cases: what JSON can hold. A case may name the only sides that take part in it under "sides".
        options: see `measure.arguments`.
        fresh: a new process for every turn: for cases that use much memory; otherwise one process for each side.
        label: what a case is called in the progress that is printed.
    """

    def say(line: str) -> None:
        print(line, flush=True)

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

    def measure(case: dict, turns: dict[str, list], failed: dict[str, str]) -> None:
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
                measure(case, turns, failed)
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
