"""The machine: what it is, and what else it did while something was measured. Read next: `sides.py`.

Nothing here imports numpy or a framework: each side's process must set its environment first.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import files

PINS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Variables that make OpenBLAS take the kernels of another processor than it finds."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MINIGRAD_THREADS", "GOTO_NUM_THREADS")

KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TOP_PAD_": "268435456"}
"""glibc keeps what is freed. PyTorch has no allocator of its own on the CPU; ours is asked for the same by `keep_freed_memory`."""

NOISY = 0.05
"""Share of the processors that others may take before a turn, or a whole run, is called noisy."""

TICKS = 0.02
"""Seconds of others' time that may be rounding: the kernel counts in hundredths."""


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # Linux alone has the first


def cpu_times() -> tuple[float, float] | None:
    """Seconds of processor time that all processes (and other virtual machines) took since the start of the machine, and now; None if not told."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _wait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), time.perf_counter()


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


def taken_by_others(turns: Iterable[dict], processors: int) -> float:
    """The share of the processors that other processes took in these turns; 0 where the system does not tell."""
    told = [turn for turn in turns if "others_s" in turn]
    seconds = processors * sum(turn["seconds"] for turn in told)
    return max(0.0, sum(turn["others_s"] for turn in told)) / seconds if seconds else 0.0


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
    return {
        "processor": model,
        "vector_units": sorted({"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"} & flags),
        "caches": caches,
        "processors": processors(),
        "processors_in_all": os.cpu_count(),
        "memory_gib": memory,
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "variables": {name: os.environ[name] for name in (*PINS, *THREAD_VARIABLES, *KEPT_MEMORY) if name in os.environ},
        "revision": files.revision(),
    }
