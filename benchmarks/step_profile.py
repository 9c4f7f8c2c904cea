"""Where the time of our training step goes: every operation's share, beside what the machine could do at best.

    make bench BENCH=step_profile ARGS="[--configs cifar-nano] [--batches 128] [--threads 1] [--shapes] [--top 30]"

The step is that of `step.py`. Each operation is timed on its own (what it calls is taken off), forward and backward apart. Its bytes are those of
the arrays it is given and returns, each once: the least it must move (of an update: of the parameters, gradients and state). Its operations are
those of its matrix products. The floor of a call is the longer of what the two would take at the speeds of this machine, measured at the start:
a large matrix product, and copying an array out of memory (`speeds.py`). An array that is still in a cache is read faster than that, so an operation
can be below its floor. With one thread the clock counts processor time, which
other processes lengthen less. Read next: `networks.py`, the step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from statistics import median
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.machine import cpu_times, noise
from benchmarks.networks import our_learner
from benchmarks.records import save
from benchmarks.sides import Side, timed
from benchmarks.speeds import speeds
from conformer import learner as page
from minigrad import walk
from minigrad.backend.cpu import thread_count
from minigrad.op import REGISTRY, Fused

NAME = "step_profile"
REST = "everything else: modules, nodes, the walk"


@dataclass
class Spent:
    """What the calls of one operation took together."""

    seconds: float = 0.0
    work: Counter[tuple[int, int]] = field(default_factory=Counter)
    """How many calls had so many bytes and operations."""

    @property
    def calls(self) -> int:
        """All of them."""
        return self.work.total()

    @property
    def bytes(self) -> int:
        """Of all calls."""
        return sum(calls * bytes for (bytes, _), calls in self.work.items())

    @property
    def operations(self) -> int:
        """Of all calls."""
        return sum(calls * operations for (_, operations), calls in self.work.items())

    def floor(self, operations_a_second: float, bytes_a_second: float) -> float:
        """Seconds."""
        return sum(calls * max(bytes / bytes_a_second, operations / operations_a_second) for (bytes, operations), calls in self.work.items())


class Profile:
    """Times functions that call each other, each without what it calls; `spent` has them by name."""

    def __init__(self, shapes: bool, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.spent: dict[str, Spent] = {}
        self.shapes = shapes
        self.counting = 0.0  # seconds that the profile itself took
        self._inside = [0.0]  # of each running call, outermost first: the seconds that the calls inside it took

    def timed(self, name: str, function: Callable, operations: Callable[[tuple, Any], int] | None = None, moved: int | None = None) -> Callable:
        """The same function, timed. operations: those of its matrix products, from its arguments and result; moved: its bytes, where they are not
        those of its arguments and result.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            began = self.clock()
            try:
                result = function(*args, **kwargs)
            finally:
                seconds = self.clock() - began
                inside = self._inside.pop()
                self._inside[-1] += seconds
            bytes = sum(array.nbytes for array in _arrays((args, result))) if moved is None else moved
            which = f"{name} {_shapes_of(args)}" if self.shapes else name
            spent = self.spent.setdefault(which, Spent())
            spent.seconds += seconds - inside
            spent.work[bytes, operations(args, result) if operations else 0] += 1
            counting = self.clock() - began - seconds
            self._inside[-1] += counting
            self.counting += counting
            return result

        return call


def _arrays(things: Any) -> list:
    """The arrays in nested tuples and lists, and those of Tensors; each piece of memory once."""
    found: dict[tuple, Any] = {}
    stack = [things]
    while stack:
        thing = stack.pop()
        if isinstance(thing, tuple | list):
            stack.extend(thing)
        elif isinstance(thing, np.ndarray):
            found[thing.__array_interface__["data"][0], thing.size] = thing
        elif hasattr(thing, "data") and isinstance(thing.data, np.ndarray):
            stack.append(thing.data)
    return list(found.values())


def _shapes_of(args: tuple) -> str:
    """The shapes of the three largest arrays: usually x (or dy) and the weight among them."""
    return " ".join("x".join(map(str, array.shape)) for array in sorted(_arrays(args), key=lambda array: -array.size)[:3])


def _products() -> dict[str, tuple[Callable, Callable]]:
    """Operations of the matrix products of each kernel, forward and backward, from its arguments and result; a multiplication and an addition are
    two.
    """

    def weighted(y: Any, weight: Any) -> int:
        return 2 * y.size * prod(weight.shape[1:])

    def attention(query: Any, key: Any, value: Any) -> int:
        return 2 * query.size * key.shape[2] + 2 * prod(query.shape[:3]) * value.size // prod(value.shape[:2])

    by_weight = (
        lambda args, result: weighted(result[0], args[1]),  # x, weight, ... -> y, saved
        lambda args, _: sum(args[2][:2]) * weighted(args[0], args[1][1]),  # dy, (x, weight, ...), needs
    )
    return {
        "conv2d": by_weight,
        "linear": by_weight,
        "scaled_dot_product_attention": (lambda args, _: attention(*args[:3]), lambda args, _: 2 * attention(*args[1][:3])),
    }


def instrument(profile: Profile, learner: Any) -> None:
    """Put `profile` around every operation of the registry, the adding up of gradients, clipping and the optimiser."""
    products = _products()
    for name, op in REGISTRY.items():
        kernel = op.kernels.get("cpu")
        forward, backward = products.get(name, (None, None))
        if isinstance(op, Fused) and kernel is not None:
            kernel.forward = profile.timed(f"{name} forward", kernel.forward, forward)
            if kernel.backward is not None:
                kernel.backward = profile.timed(f"{name} backward", kernel.backward, backward)
                continue
        else:
            op.function = profile.timed(f"{name} forward", op.function)
        op.backward = profile.timed(f"{name} backward", op.backward)
    walk.add = profile.timed("sums of gradients", walk.add)
    parameters = sum(parameter.data.nbytes for parameter in learner.model.parameters())
    page.clip_grad_norm_ = profile.timed("clip_grad_norm_", page.clip_grad_norm_, moved=parameters)  # gradients are read
    learner.optimizer.step = profile.timed("AdamW", learner.optimizer.step, moved=7 * parameters)  # all four are read, all but gradients written


def answer(side: Side, request: dict) -> dict:
    """Profile the steps of a case: milliseconds of a bare step, the machine's speeds, and each operation's share of a step."""
    case = request["case"]
    clock = time.thread_time if thread_count() == 1 else time.perf_counter
    learner, batch = our_learner(case)
    machine = speeds(thread_count(), min(0.5, request["seconds"]), clock, quick=request["seconds"] == 0)
    operations, bandwidth = 1e9 * machine["gflops"], 1e9 * machine["copy_gbs"]
    bare = timed(lambda: learner.train_step(batch) and None, request["seconds"], request["least"])
    profile = Profile(case["shapes"], clock)
    instrument(profile, learner)
    learner.train_step(batch)
    profile.spent.clear()
    profile.counting, before, cpu = 0.0, cpu_times(), time.process_time()
    began, steps = clock(), len(bare["wall_ms"])
    for _ in range(steps):
        learner.train_step(batch)
    total = (clock() - began - profile.counting) / steps
    rows = [
        {"operation": name, "ms": 1e3 * spent.seconds / steps, "calls": spent.calls / steps, "mb": spent.bytes / steps / 1e6,
         "gflop": spent.operations / steps / 1e9, "floor_ms": 1e3 * spent.floor(operations, bandwidth) / steps}
        for name, spent in sorted(profile.spent.items(), key=lambda item: -item[1].seconds)
    ]  # fmt: skip
    rows.append({"operation": REST, "ms": 1e3 * total - sum(row["ms"] for row in rows)})
    return {
        "wall_ms": bare["wall_ms"],
        "cpu_ms": bare["cpu_ms"],
        **machine,
        "operations": [{key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()} for row in rows],
        **noise(before, time.process_time() - cpu),
    }


def table(turn: dict, top: int) -> list[str]:
    """What `answer` returned, an operation a line, the most expensive first."""
    total = sum(row["ms"] for row in turn["operations"])
    lines = [f"{'ms':>9} {'share':>6} {'calls':>6} {'MB':>8} {'GB/s':>6} {'GFLOP/s':>8} {'floor ms':>8} {'x floor':>7}  operation"]
    for row in turn["operations"][:-1][:top]:
        ms, floor = max(row["ms"], 1e-6), row["floor_ms"]
        numbers = f"{ms:9.2f} {ms / total:6.1%} {row['calls']:6.0f} {row['mb']:8.1f} {row['mb'] / ms:6.1f}"
        product = f"{1e3 * row['gflop'] / ms:8.1f}" if row["gflop"] else " " * 8
        lines.append(f"{numbers} {product} {floor:8.2f} {ms / floor if floor else 0:7.1f}  {row['operation']}")
    rest = turn["operations"][-1]
    return [*lines, f"{rest['ms']:9.2f} {rest['ms'] / total:6.1%} {'':47} {rest['operation']}", f"{total:9.2f} 100.0% {'':47} the step"]


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, ["minigrad"], rounds=1, seconds=2.0, configs=measure.CONFIGS, batches=[128])
    parser.add_argument("--shapes", action="store_true", help="a line for every shape of an operation's arrays")
    parser.add_argument("--top", type=int, default=30, help="lines that are printed (default: 30); the file has all")
    options = measure.parse(parser, argv, answer)
    cases = [{"config": config, "size": 32, "batch": batch, "shapes": options.shapes} for config in options.configs for batch in options.batches]
    rows = measure.interleaved(NAME, cases, options, fresh=True)
    for row in rows:
        for turn in row.get("turns", []):
            best = f"this machine at best {turn['gflops']:.0f} GFLOP/s, {turn['copy_gbs']:.0f} GB/s"
            print(f"\n{row['case']['config']}, batch {row['case']['batch']}: {median(turn['wall_ms']):.1f} ms a step unwatched; {best}\n")
            print("\n".join(table(turn, options.top)))
    save(NAME, rows, options, argv)


if __name__ == "__main__":
    main()
