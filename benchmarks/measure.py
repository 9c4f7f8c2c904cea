"""What every benchmark here shares: the sides that are compared, a process for each, turns, samples, the machine's description, the JSON file.

A benchmark names its cases and says how a side prepares one; `interleaved` starts the processes and lets them take turns on every case (ours,
theirs, ours, theirs, ...), and `save` writes what came out, unreduced: medians are taken by `report.py`. Beside wall time every sample has the
process's CPU time, and every turn the load average and the share of the processors that other processes took: a noisy run shows that it was one.

Nothing here imports numpy or a framework: each process must set its environment first. Read next: `step.py`, the shortest benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "runs" / "benchmarks"  # git ignores runs/: what --quick measures is no result

PINS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that make OpenBLAS take the kernels of another processor than it finds."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MINIGRAD_THREADS", "GOTO_NUM_THREADS")

KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "268435456"}
"""glibc keeps what is freed. PyTorch has no allocator of its own on the CPU; ours is asked for the same by `keep_freed_memory`."""


NOISY = 0.05
"""Share of the processors that others may take before a turn, or a whole run, is called noisy."""

TICKS = 0.02
"""Seconds of others' time that may be rounding: the kernel counts in hundredths."""


@dataclass(frozen=True)
class Side:
    """One of those compared: a framework and how it is used.

    options: what the benchmark's code does for it. environment: variables its process starts with. own: its packages may be in another
    environment (--peers-python).
    """

    name: str
    title: str
    framework: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    own: bool = False


_LAST = {"channels_last": True}
SIDES = {
    side.name: side
    for side in (
        Side("minigrad", "minigrad", "minigrad"),
        Side("torch-nchw", "PyTorch, NCHW", "torch"),
        Side("torch-channels-last", "PyTorch, channels_last", "torch", _LAST),
        Side("torch-tuned", "PyTorch, channels_last, tuned malloc", "torch", _LAST, KEPT_MEMORY),
        Side("torch-compile", "torch.compile, channels_last, tuned malloc", "torch", {**_LAST, "compile": True}, KEPT_MEMORY),
        Side("jax", "JAX, jit", "jax", environment={"JAX_PLATFORMS": "cpu"}, own=True),
        Side("tinygrad", "tinygrad, CPU (needs clang)", "tinygrad", environment={"DEV": "CPU"}, own=True),
        Side("autograd", "autograd", "autograd", own=True),
        Side("mygrad", "MyGrad", "mygrad", own=True),
    )
}


# --- the command line


def arguments(description: str | None, sides: Sequence[str], rounds: int, seconds: float) -> argparse.ArgumentParser:
    """The options that all benchmarks have; `sides` are those compared by default."""
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
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; --quick makes rounds and samples few. Refuses (exit status 2) to time NumPy with another processor's kernels unasked."""
    options = parser.parse_args(argv)
    options.least, options.revision = 3, _revision()
    if options.quick:
        options.rounds, options.seconds, options.least, options.retakes = 1, 0.0, 1, 0
    # On a busy machine threads that wait for each other wait long.
    options.threads = options.threads or (1 if options.quick else processors())
    found = [f"{name}={os.environ[name]}" for name in PINS if name in os.environ]
    if found and not options.pinned and not options.worker:
        parser.error(
            f"{' and '.join(found)} makes NumPy run another processor's matrix products; start with `env {' '.join(f'-u {name}' for name in PINS)}` "
            "(make bench does), or give --pinned to measure that"
        )
    return options


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux alone has the first


# --- the process of one side


def cpu_times() -> tuple[float, float] | None:
    """Seconds of processor time that all processes (and other virtual machines) took since the start of the machine, and now; None if not told."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), time.perf_counter()


def timed(function: Callable[[], dict[str, float] | None], seconds: float, least: int, warm_up: int = 1, most: int = 2000) -> dict[str, Any]:
    """Call `function` for `seconds`, at least `least` times, after `warm_up` calls; after one where a single sample is asked for (--quick).

    Returns:
        wall_ms and cpu_ms of every call (and whatever the function returns by name, in lists too), and what `noise` says of the time it took.
    """
    for _ in range(warm_up if least > 1 else 1):
        function()
    gc.collect()
    samples: dict[str, list[float]] = {"wall_ms": [], "cpu_ms": []}
    before, cpu_before = cpu_times(), time.process_time()
    end = time.perf_counter() + seconds
    while len(samples["wall_ms"]) < least or (time.perf_counter() < end and len(samples["wall_ms"]) < most):
        cpu, wall = time.process_time(), time.perf_counter()
        more = function() or {}
        more = {"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (time.process_time() - cpu), **more}
        for name, value in more.items():
            samples.setdefault(name, []).append(round(value, 4))
    return {**samples, **noise(before, time.process_time() - cpu_before)}


def noise(before: tuple[float, float] | None, own_cpu: float) -> dict[str, float]:
    """What else the machine did since `before`, when this process used `own_cpu` seconds of processor time.

    Returns:
        load: the 1-minute load average; and where the system tells, seconds: that passed, and others_s: of processor time that others took in them.
        The kernel counts in hundredths of a second, so others_s is off by that much, and may be below 0: add turns up before dividing.
    """
    after, load = cpu_times(), {"load": round(os.getloadavg()[0], 2)}
    if before is None or after is None:
        return load
    return {**load, "seconds": round(after[1] - before[1], 4), "others_s": round(after[0] - before[0] - own_cpu, 4)}


def side_by_side(work: Callable[[int, int], Any], size: int, threads: int) -> None:
    """Call `work(start, stop)` for so many equal parts of `range(size)` at once, each on a thread of its own; the first on this one."""
    edges = [size * part // threads for part in range(threads + 1)]
    others = [threading.Thread(target=work, args=edges[part : part + 2]) for part in range(1, threads)]
    for thread in others:
        thread.start()
    work(*edges[:2])
    for thread in others:
        thread.join()


def serve(options: argparse.Namespace, answer: Callable[[Side, dict], dict]) -> None:
    """Be the process of side `options.worker`: answer each request, a line of JSON, by a line of JSON."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the replies
    side = SIDES[options.worker]
    if side.framework == "torch":
        import torch

        torch.set_num_threads(options.threads)
    for line in sys.stdin:
        try:
            reply = answer(side, json.loads(line))
        except ModuleNotFoundError as error:
            reply = {"missing": f"{error.name} is not installed"}
        except Exception as error:  # reported beside the sides that can do it
            reply = {"failed": failure(error)}
        replies.write(json.dumps({**reply, "about": about()}) + "\n")
        replies.flush()


def failure(error: Exception) -> str:
    """What is reported of a side that cannot do something: the exception's name and its first line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def timed_answers(prepare: Callable[[Side, dict], Callable[[], dict[str, float] | None]], warm_up: int = 2) -> Callable[[Side, dict], dict]:
    """An `answer` for `serve` that times what `prepare(side, case)` returns, and adds its attribute `facts` if it has one.

    It is prepared once while the case stays the same. warm_up: calls before the first that counts, see `timed`.
    """
    ready: dict[str, Any] = {}

    def answer(side: Side, request: dict) -> dict:
        if ready.get("case") != request["case"]:
            ready.clear()  # before the next is made: both may not fit into memory
            ready.update(function=prepare(side, request["case"]), case=request["case"])
        samples = timed(ready["function"], request["seconds"], request["least"], warm_up)
        return {**samples, **getattr(ready["function"], "facts", {})}

    return answer


def about() -> dict[str, Any]:
    """Versions of the packages loaded in this process, and its BLAS libraries with the kernels they chose."""
    names = ("numpy", "torch", "jax", "jaxlib", "tinygrad", "autograd", "mygrad")
    versions = {name: importlib.metadata.version(name) for name in names if name in sys.modules or (name == "jaxlib" and "jax" in sys.modules)}
    blas = []
    if "threadpoolctl" in sys.modules or "numpy" in sys.modules:
        try:
            from threadpoolctl import threadpool_info
        except ModuleNotFoundError:
            return {"versions": versions}
        blas = [{key: part.get(key) for key in ("internal_api", "version", "architecture", "num_threads")} for part in threadpool_info()]
    return {"versions": versions, "threads": blas}


# --- the process that asks


def process_environment(side: Side, options: argparse.Namespace) -> dict[str, str]:
    """What a side's process starts with: this process's variables without pins and thread numbers, then its own."""
    dropped = {*PINS, *THREAD_VARIABLES, *KEPT_MEMORY}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    pins = {"OPENBLAS_CORETYPE": "Haswell"} if options.pinned else {}
    # Our pool limits BLAS itself; OMP_NUM_THREADS would be read by OpenBLAS too.
    threads = {"MINIGRAD_THREADS": str(options.threads)} if side.framework == "minigrad" else dict.fromkeys(THREAD_VARIABLES, str(options.threads))
    if side.framework == "jax":
        flags = f"--xla_cpu_multi_thread_eigen={str(options.threads > 1).lower()} intra_op_parallelism_threads={options.threads}"
        threads["XLA_FLAGS"] = flags
    return {**kept, **pins, **threads, **side.environment}


class Worker:
    """The process of one side of one benchmark, for a `with` statement."""

    def __init__(self, benchmark: str, side: Side, options: argparse.Namespace):
        self.side = side
        python = options.peers_python if side.own else sys.executable
        command = [python, "-m", f"benchmarks.{benchmark}", "--worker", side.name, "--threads", str(options.threads)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=process_environment(side, options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died with a request unread
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


class Rows(list):
    """Rows `{"case", "side", "date", "revision", "turns" and/or "failed"}`.

    Attributes:
        about: what each side is made of. skipped: why a side is missing. stopped: whether Ctrl-C ended it. speeds: the machine's, before and after.
    """

    def __init__(self, rows: Iterable[dict] = ()) -> None:
        super().__init__(rows)
        self.about: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.stopped = False
        self.speeds: list[dict[str, float]] = []


def interleaved(benchmark: str, cases: Iterable[dict], options: argparse.Namespace, fresh: bool, label: Callable[[dict], str] | None = None) -> Rows:
    """Let all sides take turns on each case; the first of a round goes last in the next. Ctrl-C ends it, and what was measured is returned.

    Raises:
        SystemExit: with --add, where the file is of another machine or other settings; nothing has been measured then.

    Args:
        benchmark: the module in benchmarks/ whose processes answer.
        cases: what JSON can hold. A case may name the only sides that take part in it under "sides".
        options: see `arguments`.
        fresh: a new process for every turn: for cases that use much memory; otherwise one process for each side.
        label: what a case is called in the progress that is printed (by default: its configuration and batch).
    """
    label = label or (lambda case: f"{case['config']}, batch {case['batch']}")

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
            workers.pop(name).__exit__()
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
            about = {"date": _now(), "revision": options.revision}
            for name, taken in turns.items():
                outcome = ({"turns": taken} if taken else {}) | ({"failed": failed[name]} if name in failed else {})
                if outcome:
                    rows.append({"case": case, "side": name, **about, **outcome})
            if rows.stopped:
                break
            say(f"{label(case)}: " + (", ".join(f"{name} {summary(taken)}" for name, taken in turns.items() if taken) or "no time left"))
    finally:
        for worker in workers.values():
            worker.__exit__()
    with contextlib.suppress(KeyboardInterrupt, subprocess.CalledProcessError, ValueError):  # the rows are worth more
        rows.speeds.append(machine_speeds(options))
    return rows


def machine_speeds(options: argparse.Namespace) -> dict[str, float]:
    """What `speeds.py` measures, in a process of its own, with the kernels that the benchmark runs with."""
    command = [sys.executable, "-m", "benchmarks.speeds", "--threads", str(options.threads), *["--quick"] * options.quick]
    return json.loads(
        subprocess.run(command, cwd=ROOT, env=process_environment(SIDES["minigrad"], options), stdout=subprocess.PIPE, check=True).stdout
    )


def taken_by_others(turns: Iterable[dict], processors: int) -> float:
    """The share of the processors that other processes took in these turns; 0 where the system does not tell."""
    told = [turn for turn in turns if "others_s" in turn]
    seconds = processors * sum(turn["seconds"] for turn in told)
    return max(0.0, sum(turn["others_s"] for turn in told)) / seconds if seconds else 0.0


def median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def of_turns(turns: Sequence[dict], quantity: str = "wall_ms") -> float:
    """The median over the turns of the median over a turn's samples."""
    return median(median(turn[quantity]) for turn in turns)


def summary(turns: Sequence[dict]) -> str:
    quantity = next(iter(turns[0]))  # the first that a turn holds
    return f"{of_turns(turns, quantity):.4g} {'ms' if quantity == 'wall_ms' else quantity}"


# --- all benchmarks


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


# --- the file


def environment() -> dict[str, Any]:
    """The machine, the software and the variables that matter to speed."""
    model, flags, caches, memory = platform.processor() or platform.machine(), set[str](), {}, None
    if hasattr(os, "sysconf"):  # not on Windows
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    with contextlib.suppress(OSError):
        told = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
        model = next((value.strip() for name, _, value in told if name.strip() == "model name"), model)
        flags = set(next((value.split() for name, _, value in told if name.strip() in ("flags", "Features")), []))
        for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index[23]")):
            caches["L" + (cache / "level").read_text().strip()] = (cache / "size").read_text().strip()
    variables = (*PINS, *THREAD_VARIABLES, *KEPT_MEMORY)
    return {
        "processor": model,
        "vector_units": sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"} & flags),
        "caches": caches,
        "processors": processors(),
        "processors_in_all": os.cpu_count(),
        "memory_gib": memory,
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "variables": {name: os.environ[name] for name in variables if name in os.environ},
        "revision": _revision(),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _revision() -> str | None:
    """The commit that is measured, "+" where files that are run differ from it: neither results nor pages."""
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs", ":!*.md"]
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=10", "HEAD"], changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")


def result_path(name: str, options: argparse.Namespace) -> Path:
    """Where `save` writes: --out, or a file called after the benchmark."""
    return options.out or (QUICK_RESULTS if options.quick else RESULTS) / f"{name}{'-pinned' if options.pinned else ''}.json"


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    return {key: getattr(options, key) for key in ("rounds", "seconds", "threads", "retakes", "pinned", "quick")}


def save(name: str, rows: Rows, options: argparse.Namespace, argv: Sequence[str] | None = None, **more: Any) -> Path:
    """Write everything that was measured, and on what; returns the file. What changed in the code meanwhile shows as two revisions, "old..new".

    With --add, a row of the file as it is stays, with its date and revision, unless at least as many turns of it were measured now.

    Raises:
        SystemExit: Ctrl-C had ended it (exit status 130); or --add, and the file is of other versions or samples (1). What was measured is beside the
            results then, in runs/benchmarks/.
    """
    words = ["DIR" if os.path.isabs(word) else word for word in (sys.argv[1:] if argv is None else argv)]
    now, path = _revision(), result_path(name, options)
    record = {
        "benchmark": name,
        "date": _now(),
        "command": f"make bench BENCH={name}" + (f' ARGS="{shlex.join(words)}"' if words else ""),
        "settings": settings_of(options),
        "environment": environment(),
        "sides": {side: {"title": SIDES[side].title, "environment": SIDES[side].environment, **(what or {})} for side, what in rows.about.items()},
        "skipped": rows.skipped,
        "speeds": rows.speeds,
        **more,
        "rows": json.loads(json.dumps(rows)),  # tuples are lists in the file
    }
    for row in record["rows"]:
        if now != options.revision:
            row["revision"] = f"{options.revision}..{now}"
    if rows.stopped:
        _write(QUICK_RESULTS / path.name, record)
        raise SystemExit(130)
    if options.add and path.exists():
        try:
            refuse_to_mix(path, record)
        except SystemExit:
            _write(QUICK_RESULTS / path.name, record)
            raise
        record = _added(json.loads(path.read_text()), record)
    measured = {row["side"] for row in record["rows"]}
    record["skipped"] = {side: why for side, why in record["skipped"].items() if side not in measured}
    _write(path, record)
    return path


def _write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # one row a line: a later run differs from this one line by line
    head, rows = json.dumps({**record, "rows": []}, indent=1).removesuffix("[]\n}"), ",\n".join(json.dumps(row) for row in record["rows"])
    path.write_text(f"{head}[\n{rows}\n]\n}}\n")
    print(f"written: {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")


def _added(before: dict, now: dict) -> dict:
    """The record with what a file has beside it."""
    rows = {json.dumps([row["case"], row["side"]]): row for row in before["rows"]}
    for row in now["rows"]:
        key = json.dumps([row["case"], row["side"]])
        if len(row.get("turns", [])) >= len(rows.get(key, {}).get("turns", [])):
            rows.pop(key, None)  # so that it comes last
            rows[key] = row
    measured = {row["side"] for row in now["rows"] if "turns" in row}
    return {
        **now,
        "sides": {**now["sides"], **before["sides"], **{side: what for side, what in now["sides"].items() if side in measured}},
        "skipped": {**before["skipped"], **now["skipped"]},
        "speeds": [*before.get("speeds", []), *now["speeds"]],
        "command": "\n".join(dict.fromkeys([*before["command"].splitlines(), now["command"]])),
        "rows": list(rows.values()),
    }


def refuse_to_mix(path: Path, now: dict) -> None:
    """Raise SystemExit if rows of another machine, other versions, or otherwise sampled would come into one file."""
    if not path.exists():
        return
    before = json.loads(path.read_text())

    def made_of(record: dict) -> dict[str, Any]:
        about = {key: record["environment"].get(key) for key in ("processor", "vector_units", "caches", "processors", "system", "python")}
        about |= {key: record["settings"][key] for key in ("threads", "pinned", "quick")}
        about |= {key: record[key] for key in ("warm_up", "least") if key in record}
        return about | {f"{side}'s {name}": version for side, what in record["sides"].items() for name, version in what.get("versions", {}).items()}

    then, today = made_of(before), made_of(now)
    for key in then:
        if key in today and then[key] != today[key]:
            told = f"{path.name} was measured with {key} {then[key]}, now it is {today[key]}"
            raise SystemExit(f"{told}: measure it whole, without --add, or give another file by --out")
