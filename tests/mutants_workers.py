"""Runs tests on changed sources: forked children that have imported what the tests need and nothing of the project, several at a time.

A child's import hook hands out the changed source. First come, from all files, the tests that noticed other changes of the same function, those that
noticed many in a short time before others; then file by file the tests named for the operation, then the rest, fast ones before slow ones, until one
fails. A change that hangs, crashes or takes all the memory is noticed too. Read next: `mutations.py`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import selectors
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.mutations import Mutant

MEMORY = 16 << 30  # bytes of address space that a child may take; the CUDA emulator reserves 10 of these 16 GiB and uses little of them
PYTEST = ["-o", "addopts=", "--import-mode=importlib", "--assert=plain", "-q", "-x", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
PYTEST += ["-k", "not under_address_sanitizer"]  # they run the other tests again, in a process that would not have the change


@dataclass(frozen=True)
class Stage:
    """Test files that run together; `named`: only those tests in them that name the changed operation; `tests`: only these, in this order."""

    files: tuple[str, ...]
    named: bool = False
    tests: tuple[str, ...] = ()


@dataclass
class Outcome:
    """passed; else `by`, the test that failed, or how else the change was noticed. tests: the seconds of each test, for the order next time."""

    passed: bool
    by: str
    tests: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""


# --- in the child


class _ChangedModule(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):
    """Finds and loads one module: changed."""

    used = False

    def __init__(self, root: Path, file: str, source: str):
        super().__init__(".".join(Path(file).with_suffix("").parts).removesuffix(".__init__"), str(root / file))
        self.changed = compile(source, self.path, "exec", dont_inherit=True)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.name else None

    def get_code(self, fullname: str) -> Any:
        self.used = True
        return self.changed


class _Watcher:
    """Puts the tests in order, and hands over the outcome at the end, without the seconds pytest takes to leave."""

    def __init__(self, pipe: int, module: _ChangedModule | None, job: Job, known: dict[str, float]):
        self.pipe, self.module, self.known, self.chosen, self.ran = pipe, module, known, job.left[0].tests, job.tests
        self.names, self.only_named = {_key(name) for name in job.names}, job.left[0].named and job.mutant is not None
        self.failed, self.message, self.tests = "", "", Counter()

    def pytest_sessionstart(self) -> None:
        if "hypothesis" in sys.modules:
            from hypothesis import Phase, settings

            # the profile that conftest.py has loaded, but a failing example is not made smaller, which takes minutes
            settings.register_profile("mutants", settings(phases=[Phase.explicit, Phase.generate, Phase.target], database=None))
            settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list) -> None:
        if self.chosen:
            items[:] = sorted((item for item in items if item.nodeid in self.chosen), key=lambda item: self.chosen.index(item.nodeid))
            return
        named = {item.nodeid for item in items if self.is_named(item)}
        left = [item for item in items if item.nodeid not in self.ran and (item.nodeid in named or not self.only_named)]
        items[:] = sorted(left, key=lambda item: (item.nodeid not in named, self.known.get(item.nodeid, 0.0)))

    def is_named(self, item: Any) -> bool:
        operation = getattr(getattr(item, "cls", None), "op", None)
        own = getattr(operation, "name", getattr(operation, "__name__", ""))
        title = _key(item.nodeid.partition("::")[2] + " " + own)
        return any(name in title for name in self.names)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.note(report, f"{report.nodeid or 'the tests'} (when imported)")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.tests[report.nodeid] += report.duration
        if report.failed:
            self.note(report, report.nodeid)

    def note(self, report: Any, name: str) -> None:
        if not self.failed:
            self.failed = name
            crash = getattr(report.longrepr, "reprcrash", None)
            self.message = crash.message if crash else report.longreprtext

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.leave(int(exitstatus))

    def leave(self, status: int) -> None:
        error = ""
        if self.module is not None and not self.module.used and status in (0, 5):
            error = f"the tests never imported {self.module.name}"
        nothing = status == pytest.ExitCode.NO_TESTS_COLLECTED
        by = self.failed or ("" if status == 0 else "no tests" if nothing else "when conftest.py was imported")
        result = {"passed": status in (0, 5), "by": by, "tests": self.tests, "error": error, "message": self.message}
        with os.fdopen(self.pipe, "w") as stream:
            json.dump(result, stream)
        os._exit(0)


def _key(name: str) -> str:
    """batch_norm and TestBatchNorm name the same thing."""
    return name.replace("_", "").lower()


def _child(pipe: int, root: Path, job: Job, known: dict[str, float]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    module = None
    if job.mutant is not None:
        try:
            module = _ChangedModule(root, job.mutant.file, job.mutant.apply(job.source))
        except SyntaxError as error:  # a fault of mutations.py
            os.write(pipe, json.dumps({"passed": False, "by": "", "error": f"not Python: {error}"}).encode())
            os._exit(0)
        sys.meta_path.insert(0, module)
    watcher = _Watcher(pipe, module, job, known)
    status = pytest.main([*PYTEST, f"--rootdir={root}", *job.left[0].files], plugins=[watcher])
    watcher.leave(int(status))  # reached where pytest has not come as far as a session


# --- in the parent


@dataclass
class Job:
    """A change (None: the library as it is, which must pass) and the tests still to run on it."""

    mutant: Mutant | None
    source: str
    names: set[str]
    left: list[Stage]
    seconds: float = 0.0
    ran: tuple[str, ...] = ()  # the files of the stage that ended last
    tests: tuple[str, ...] = ()  # those that came first, and passed

    @property
    def place(self) -> tuple[str, str] | None:
        return (self.mutant.file, self.mutant.unit) if self.mutant else None


class Workers:
    """Runs jobs in forked children, `count` at a time."""

    def __init__(self, root: Path, count: int, limit: float):
        self.root, self.count, self.limit = root, count, limit
        self.known: dict[str, float] = {}  # seconds of every test
        self.keen: dict[tuple, Counter[str]] = {}  # tests that noticed other changes of the same function, and how many
        self.usual: dict[Stage, float] = {}  # seconds of every stage where all tests pass
        self.selector = selectors.DefaultSelector()
        self.running: dict[int, tuple[Job, int, float, float, bytearray]] = {}

    def run(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Each job with its outcome: the failure, or that all its stages passed."""
        waiting: deque[Job] = deque()
        try:
            while True:
                while len(self.running) < self.count:
                    job = waiting.popleft() if waiting else next(jobs, None)
                    if job is None:
                        break
                    self._start(job)
                if not self.running:
                    return
                for job, outcome in self._ended():
                    job.seconds += outcome.seconds
                    done = job.left.pop(0)
                    job.ran = done.files
                    if job.mutant is None and outcome.passed:
                        self.known.update(outcome.tests)
                        self.usual[done] = outcome.seconds
                    if not outcome.passed and "::" in outcome.by:
                        self.keen.setdefault(job.place, Counter())[outcome.by] += 1
                    if outcome.passed and job.left:
                        waiting.append(job)
                    else:
                        yield job, outcome
        finally:
            for pipe in list(self.running):
                self._end(pipe)

    def _start(self, job: Job) -> None:
        reading, writing = os.pipe()
        if (keen := self.keen.get(job.place)) and not job.ran and not job.tests:
            job.tests = tuple(sorted(keen, key=lambda test: (self.known.get(test, 0.0) + 0.1) / keen[test]))
            job.left.insert(0, Stage(tuple(dict.fromkeys(test.partition("::")[0] for test in job.tests)), tests=job.tests))
        stage = job.left[0]
        process = os.fork()
        if process == 0:
            try:
                os.setpgrp()
                _child(writing, self.root, job, self.known)
            finally:
                os._exit(70)
        with suppress(OSError):  # whichever of the two comes first
            os.setpgid(process, process)  # what it starts ends with it
        os.close(writing)
        usual = sum(self.known.get(test, self.limit) for test in stage.tests) if stage.tests else self.usual.get(stage, self.limit)
        limit = min(5 + 5 * usual, self.limit)  # a hang, not a busy machine
        now = time.monotonic()
        self.running[reading] = (job, process, now, now + limit, bytearray())
        self.selector.register(reading, selectors.EVENT_READ)

    def _ended(self) -> Iterator[tuple[Job, Outcome]]:
        """Wait until some child is done, or past its time."""
        nearest = min(deadline for *_, deadline, _ in self.running.values())
        for key, _ in self.selector.select(max(0.0, nearest - time.monotonic())):
            piece = os.read(key.fd, 1 << 16)
            if piece:
                self.running[key.fd][-1].extend(piece)
            else:
                yield self._end(key.fd)
        for pipe, (*_, deadline, _) in list(self.running.items()):
            if time.monotonic() > deadline:
                yield self._end(pipe, late=True)

    def _end(self, pipe: int, late: bool = False) -> tuple[Job, Outcome]:
        job, process, start, _, text = self.running.pop(pipe)
        self.selector.unregister(pipe)
        os.close(pipe)
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        seconds = time.monotonic() - start
        if late:
            return job, Outcome(False, "time limit", seconds=seconds)
        try:
            result = json.loads(text)
        except ValueError:
            how = signal.Signals(status & 127).name if status & 127 else f"exit status {status >> 8}"
            return job, Outcome(False, f"crash ({how})", seconds=seconds)
        outcome = Outcome(result["passed"], result["by"], result.get("tests", {}), seconds, result["error"])
        if not outcome.passed and job.mutant is None:
            outcome.error = result.get("message", "")
        return job, outcome
