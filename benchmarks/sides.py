"""The sides that are compared, and the process of one of them: it answers requests, each a line of JSON, by samples.

Beside wall time every sample has the process's CPU time, and every turn what else the machine did: a noisy run shows that it was one.
Nothing here imports numpy or a framework: each process must set its environment first. Read before: `measure.py`, which asks.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import KEPT_MEMORY, PINS, THREAD_VARIABLES, cpu_times, noise


@dataclass(frozen=True)
class Side:
    """One of those compared: a framework and how it is used.

    environment: variables its process starts with. own: its packages may be in another environment (--peers-python). channels_last, compile: how
    PyTorch is used.
    """

    name: str
    title: str
    framework: str
    environment: dict[str, str] = field(default_factory=dict)
    own: bool = False
    channels_last: bool = False
    compile: bool = False

    @property
    def memory_format(self) -> Any:
        """PyTorch's word for how it lays out feature maps."""
        import torch

        return torch.channels_last if self.channels_last else torch.contiguous_format


SIDES = {
    side.name: side
    for side in (
        Side("minigrad", "minigrad", "minigrad"),
        Side("torch-nchw", "PyTorch, NCHW", "torch"),
        Side("torch-channels-last", "PyTorch, channels_last", "torch", channels_last=True),
        Side("torch-tuned", "PyTorch, channels_last, tuned malloc", "torch", KEPT_MEMORY, channels_last=True),
        Side("torch-compile", "torch.compile, channels_last, tuned malloc", "torch", KEPT_MEMORY, channels_last=True, compile=True),
        Side("jax", "JAX, jit", "jax", {"JAX_PLATFORMS": "cpu"}, own=True),
        Side("tinygrad", "tinygrad, CPU (needs clang)", "tinygrad", {"DEV": "CPU"}, own=True),
        Side("autograd", "autograd", "autograd", own=True),
        Side("mygrad", "MyGrad", "mygrad", own=True),
    )
}


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


# --- in the process of a side

MOST = 2000  # samples of a turn


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


def timed(function: Callable[[], dict[str, float] | None], seconds: float, least: int, warm_up: int = 1) -> dict[str, Any]:
    """Call `function` for `seconds`, `least` to `MOST` times, after `warm_up` calls; after one where a single sample is asked for (--quick).

    Returns:
        wall_ms and cpu_ms of every call (and whatever the function returns by name, in lists too), and what `noise` says of the time it took.
    """
    for _ in range(warm_up if least > 1 else 1):
        function()
    gc.collect()
    samples: dict[str, list[float]] = {"wall_ms": [], "cpu_ms": []}
    before, cpu_before = cpu_times(), time.process_time()
    end = time.perf_counter() + seconds
    while len(samples["wall_ms"]) < least or (time.perf_counter() < end and len(samples["wall_ms"]) < MOST):
        cpu, wall = time.process_time(), time.perf_counter()
        more = function() or {}
        more = {"wall_ms": 1e3 * (time.perf_counter() - wall), "cpu_ms": 1e3 * (time.process_time() - cpu), **more}
        for name, value in more.items():
            samples.setdefault(name, []).append(round(value, 4))
    return {**samples, **noise(before, time.process_time() - cpu_before)}


def about() -> dict[str, Any]:
    """Versions of the packages loaded in this process, and its BLAS libraries with the kernels they chose."""
    names = ("numpy", "torch", "jax", "jaxlib", "tinygrad", "autograd", "mygrad")
    versions = {name: importlib.metadata.version(name) for name in names if name in sys.modules}
    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError:  # in an environment of the peers'
        return {"versions": versions}
    blas = [{key: part.get(key) for key in ("internal_api", "version", "architecture", "num_threads")} for part in threadpool_info()]
    return {"versions": versions, "threads": blas}
