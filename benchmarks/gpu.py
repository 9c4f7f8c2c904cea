"""What the GPU benchmarks share: the card and what it is driven by, times by CUDA events, tables, the JSON file.

Ours and PyTorch's work run in one process and, unless said otherwise, on the same stream: the events of one measure both. Every program here prints
a short table last, writes what it measured, unreduced, to benchmarks/results/gpu/ (or --out), and on a machine without a GPU ends with the sentence
that `minigrad` has for it. The file is written anew after every case, so that a run which is stopped leaves what it had, and --resume goes on from
there (`Cases`). Read next: `gpu_networks.py`, the steps that are measured; `gpu_profile.py`, the shortest program.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import files, machine
from benchmarks.files import ROOT
from conformer.text import columns
from minigrad.backend import cuda

GPU_RESULTS = files.RESULTS / "gpu"
MEASURING = ["gpu", "gpu_ceilings", "gpu_counts", "gpu_kernels", "gpu_networks", "gpu_profile", "gpu_sides", "gpu_step", "gpu_updates"]
MEASURING += ["files", "machine", "networks", "op_cases", "sides", "torch_model", "torch_operations"]
"""The modules of this folder that make a figure; what is done with the figures may change between two runs of one file."""


def connect() -> Any:
    """CuPy, or its stand-in inside `minigrad.emulated()`. Where there is no GPU the program ends, with status 1 and a sentence that says why."""
    try:
        return cuda.connect()
    except RuntimeError as error:
        raise SystemExit(str(error)) from None


def emulated() -> bool:
    """Whether the emulator plays the GPU: everything runs, and no time means anything."""
    return cuda.array_module().__name__ != "cupy"


def torch_device() -> str:
    """Where PyTorch's side runs: beside the emulator on the CPU, so that its code runs too."""
    return "cpu" if emulated() else "cuda"


# --- times


def each_ms(function: Callable[[], Any], count: int) -> list[float]:
    """Milliseconds from the end of one call to the end of the next, for `count` calls, none of which is waited for."""
    cp = connect()
    events = [cp.cuda.Event() for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    events[-1].synchronize()
    return [round(cp.cuda.get_elapsed_time(before, after), 5) for before, after in itertools.pairwise(events)]


def synchronise() -> None:
    """Wait for the GPU."""
    connect().cuda.Device().synchronize()


def answers() -> bool:
    """Whether the GPU still takes work from this process: after an access out of bounds every call fails, and only a new process can go on."""
    try:
        synchronise()
    except Exception:
        return False
    return True


def free_memory() -> None:
    """Give what is unused in both frameworks' pools back to the card."""
    gc.collect()
    if emulated():
        return
    import torch

    connect().get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


# --- the command line, the table, the file


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="PATH", help="a JSON file, or a folder for it (default: benchmarks/results/gpu)")
    parser.add_argument("--quick", action="store_true", help="tiny cases, to see that everything works; written to runs/benchmarks/gpu/")
    return parser


def resumable(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """With --resume, for a benchmark of many cases; see `Cases`."""
    parser.add_argument(
        "--resume", action="store_true", help="keep the cases that the file has, if card, driver, versions, code and options are the same"
    )
    return parser


@functools.cache
def host() -> dict[str, Any]:
    """What machine.py says of the host, asked for once: git takes longer than a case, and a file is written after each."""
    return machine.environment()


@functools.cache
def code() -> str:
    """Twelve hexadecimal digits that differ when the code does that is measured, or that measures: a machine that a copy of the files was brought to
    knows of no commit.
    """
    digest = hashlib.sha256()
    files = [file for folder in ("minigrad", "conformer") for kind in ("py", "cu", "cuh") for file in (ROOT / folder).rglob(f"*.{kind}")]
    for file in sorted([*files, *(ROOT / "benchmarks" / f"{module}.py" for module in MEASURING)]):
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def environment() -> dict[str, Any]:
    """The card, its driver, the versions, and the host."""
    import torch

    about: dict[str, Any] = {"device": "the emulator", **host(), "code": code()}
    if not emulated():
        cp = connect()
        properties = cp.cuda.runtime.getDeviceProperties(0)
        about.update(
            device=properties["name"].decode(),
            compute_capability=f"{properties['major']}.{properties['minor']}",
            multiprocessors=int(properties["multiProcessorCount"]),
            l2_bytes=int(properties["l2CacheSize"]),
            memory_bytes=int(properties["totalGlobalMem"]),
            driver=driver_version(),
            cuda_driver_api=int(cp.cuda.runtime.driverGetVersion()),
            cuda_runtime=int(cp.cuda.runtime.runtimeGetVersion()),
        )
    about["versions"] = {name: _version(name) for name in ("numpy", "cupy", "torch", "triton") if name in sys.modules}
    about["versions"]["cudnn"] = str(torch.backends.cudnn.version())
    return about


def _version(name: str) -> str:
    return str(getattr(sys.modules[name], "__version__", None) or importlib.metadata.version(name))


def driver_version() -> str | None:
    """What the kernel module calls itself, such as 580.95.05; None where it does not say."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and word.count(".") >= 1), None)


def path_of(name: str, options: argparse.Namespace, device: str, variant: str) -> Path:
    """Where `save` writes: --out if that is a JSON file, else a file in that folder, called after benchmark, card and what else tells runs apart."""
    if options.out and options.out.suffix == ".json":
        return options.out
    words = [name, re.sub(r"[^a-z0-9]+", "-", device.removeprefix("NVIDIA ").lower()), variant]
    return (options.out or (files.QUICK_RESULTS / "gpu" if options.quick else GPU_RESULTS)) / f"{'-'.join(word for word in words if word)}.json"


def save(name: str, rows: Sequence[dict], options: argparse.Namespace, argv: Sequence[str] | None, variant: str = "", **more: Any) -> Path:
    """Write what was measured, on what, when and by which command; returns the file. variant: part of its name."""
    words = ["PATH" if os.path.isabs(word) else word for word in (sys.argv[1:] if argv is None else argv)]
    record = {
        "benchmark": name,
        "date": files.now(),
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *words]),
        "quick": options.quick,
        "environment": environment(),
        **more,
        "rows": rows,
    }
    path = path_of(name, options, record["environment"]["device"], variant)
    files.write(path, record)
    return path


def kept(name: str, options: argparse.Namespace, variant: str = "", **same: Any) -> dict[str, Any]:
    """With --resume: the file that `save` is going to write, if card, driver, versions, code, --quick and what `same` says are those of now; else one
    without rows. A library that only one of both runs had imported, as triton is for torch.compile alone, is not compared.
    """
    here = environment()
    path = path_of(name, options, here["device"], variant)
    if not options.resume or not path.is_file():
        return {"rows": []}
    record = json.loads(path.read_text())
    versions = record["environment"]["versions"]
    before = {**record, **record["environment"], **versions}
    now = {key: here.get(key) for key in ("device", "driver", "cuda_runtime", "code")}
    now |= {name: version for name, version in here["versions"].items() if name in versions}
    now |= {"quick": options.quick, **same}
    other = [f"{key} {before.get(key)}, now {value}" for key, value in now.items() if before.get(key) != value]
    if other:
        print(f"--resume: {path.name} is measured anew, since it is of {'; '.join(other)}", flush=True)
        return {"rows": []}
    return record


class Cases:
    """The cases of a benchmark, and its file. That is written before each of them, since what follows may be stopped, and says besides the rows

        missing     the cases that are to be measured and are not
        begun       those of them that were begun: they have ended the process, or were under way when it was stopped

    Args:
        cases: what is asked for, as JSON has it.
        of: which case a row is of.
        complete: whether these rows, not none, are all that a case has to have.
        before: what `kept` returned.
        write: is given the rows and, by name, what the file has besides; returns the file.
    """

    def __init__(
        self, cases: Sequence[Any], of: Callable[[dict], Any], complete: Callable[[Any, list[dict]], bool], before: dict, write: Callable[..., Path]
    ) -> None:
        self.asked, self._of, self._complete, self._write = cases, of, complete, write
        self._rows: list[dict] = before["rows"]
        self._planned = [*cases, *(case for case in before.get("missing", []) if case not in cases)]
        self._begun: list[Any] = before.get("begun", [])

    def rows(self, case: Any = None) -> list[dict]:
        """Those of one case, or of all that are asked for."""
        return [row for one in (self.asked if case is None else [case]) for row in self._rows if self._of(row) == one]

    def left(self) -> Iterator[Any]:
        """The cases that are to be measured: those that have no rows, then those where a side failed, last those that have ended the process."""
        incomplete = [case for case in self.asked if not (found := self.rows(case)) or not self._complete(case, found)]
        for case in sorted(incomplete, key=lambda case: (case in self._begun, bool(self.rows(case)))):
            if case not in self._begun:
                self._begun.append(case)
            self.save()
            yield case

    def add(self, case: Any, rows: Sequence[dict]) -> None:
        """Take the rows of a case. Where it has left the GPU unusable, the program ends: a new process can go on with the others."""
        self._rows = [row for row in self._rows if self._of(row) != case] + list(rows)
        if any("failed" in row for row in rows) and not answers():
            files.told(self.save())
            raise SystemExit(
                "The GPU answers no more in this process, which therefore ends; the same command with --resume goes on with other cases."
            )
        self._begun.remove(case)

    def save(self) -> Path:
        """Write the file: the rows of the cases asked for in order, then what it has of others."""
        mine = self.rows()
        others = [row for row in self._rows if self._of(row) not in self.asked]
        measured = [self._of(row) for row in self._rows]
        return self._write(mine + others, missing=[case for case in self._planned if case not in measured], begun=self._begun)


def text_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table for a terminal: the first column to the left, the others to the right."""
    return columns([header, *([cell if isinstance(cell, str) else figure(cell) for cell in row] for row in rows)])


def figure(value: float | None) -> str:
    """A few significant digits; a dash for nothing."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
