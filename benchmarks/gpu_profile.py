"""Where a training step's time goes on the GPU, by kernel, and how long the step takes.

    python -m benchmarks.gpu_profile [--config cifar-micro] [--batch 512] [--size 32] [--precision float32] [--side minigrad|torch] [--top 40]

The step is timed first, without the profiler: with a launch for each kernel, and (ours) captured as a CUDA graph. The times are written; then
torch.profiler, which sees every kernel of the process through CUPTI, CuPy's too, records a few steps: it may stay attached, and slow down, or break,
what comes after. Read before: `gpu_networks.py`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import files, gpu, gpu_networks
from minigrad.backend.cublas import PRECISIONS

NAME = "gpu_profile"
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}  # what CUPTI's records are called in a trace


def trace_of(function: Callable[[], Any], calls: int) -> list[dict]:
    """What the GPU did in `calls` calls: the trace's events, durations in microseconds."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    function()
    gpu.synchronise()
    with profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            function()
        gpu.synchronise()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return [event for event in json.loads(file.read_text())["traceEvents"] if event.get("cat") in ON_DEVICE]


def by_kernel(events: Iterable[dict], steps: int) -> list[dict]:
    """One row for each kernel name (a copy's name says from where to where): calls and microseconds of a step; the longest first."""
    rows: dict[str, dict] = {}
    for event in events:
        row = rows.setdefault(event["name"], {"kernel": event["name"], "calls": 0, "us": 0.0, "registers": None, "blocks": []})
        row["calls"] += 1 / steps
        row["us"] += event["dur"] / steps
        arguments = event.get("args", {})
        row["registers"] = arguments.get("registers per thread", row["registers"])
        if "grid" in arguments:
            row["blocks"].append(int(arguments["grid"][0]) * int(arguments["grid"][1]) * int(arguments["grid"][2]))
    for row in rows.values():
        row["blocks"] = [min(row["blocks"]), max(row["blocks"])] if row["blocks"] else None
    return sorted(rows.values(), key=lambda row: -row["us"])


def covered_us(events: Iterable[dict]) -> float:
    """Microseconds in which at least one of the events was going on."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((event["ts"], event["ts"] + event["dur"]) for event in events):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def table_of(rows: list[dict], top: int) -> str:
    """The longest `top` of them and the sum of all."""
    whole = sum(row["us"] for row in rows)
    shown = [[short(row["kernel"]), row["us"], row["calls"], row["us"] / row["calls"], f"{100 * row['us'] / whole:.1f}"] for row in rows[:top]]
    rest = rows[top:]
    if rest:
        shown.append([f"{len(rest)} others", sum(row["us"] for row in rest), sum(row["calls"] for row in rest), None, ""])
    shown.append(["all", whole, sum(row["calls"] for row in rows), None, "100"])
    return gpu.text_table(["kernel", "us a step", "calls", "us a call", "%"], shown)


def short(name: str, length: int = 90) -> str:
    """A kernel's name without what all share, cut in the middle."""
    name = name.removeprefix("void ").replace("at::native::", "")
    return name if len(name) <= length else f"{name[: length - 31]}...{name[-28:]}"


def timed(function: Callable[[], Any], steps: int, warm_ups: int = 3) -> dict[str, Any]:
    """Milliseconds of each of `steps` steps by events, and of all by the host's clock, per step."""
    for _ in range(warm_ups):
        function()
    gpu.synchronise()
    began = time.perf_counter()
    each = gpu.each_ms(function, steps)
    gpu.synchronise()
    return {"ms": each, "wall_ms": round(1e3 * (time.perf_counter() - began) / steps, 5)}


def main(argv: list[str] | None = None) -> None:
    parser = gpu.arguments(__doc__)
    parser.add_argument("--config", default="cifar-micro")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--side", choices=["minigrad", "torch", "torch-compile"], default="minigrad")
    parser.add_argument("--top", type=int, default=40, help="kernels in the table")
    parser.add_argument("--steps", type=int, default=20, help="that are timed; 3 are profiled")
    options = parser.parse_args(argv)
    gpu.connect()
    if options.quick:
        options.batch, options.steps = 2, 2
    case = {"config": options.config, "size": options.size, "batch": options.batch}
    if options.side == "minigrad":
        step = ours = gpu_networks.OurStep(case, options.precision)
    else:
        ours, step = None, gpu_networks.torch_step(case, options.precision, "default" if options.side == "torch-compile" else None)
    what = {"case": case, "side": options.side, "precision": options.precision}
    times: dict[str, dict] = {}

    def save(rows: list[dict], busy_ms: float | None) -> Path:
        variant = f"{options.side}-{options.config}-{options.precision}"
        return gpu.save(NAME, rows, options, argv, variant, **what, times=times, busy_ms=busy_ms)

    times["eager"] = timed(step, options.steps)
    if ours is not None:
        try:
            times["captured"] = timed(ours.captured(), options.steps)
        except Exception as error:  # what was seen of the uncaptured step is worth having all the same
            print(f"not captured: {type(error).__name__}: {error}", flush=True)
    save([], None)  # the profiler may end the process
    profiled = min(3, options.steps)
    events = trace_of(step, profiled)
    rows, busy = by_kernel(events, profiled), covered_us(events) / profiled / 1e3
    files.told(save(rows, round(busy, 4)))
    if rows:
        print(table_of(rows, options.top))
    print(f"{options.side}, {options.config}, batch {options.batch}, {options.precision}: the GPU works {busy:.3f} ms a step")
    for name, taken in times.items():
        print(f"  {name}: {median(taken['ms']):.3f} ms a step by events (median), {taken['wall_ms']:.3f} by the clock")


if __name__ == "__main__":
    main()
