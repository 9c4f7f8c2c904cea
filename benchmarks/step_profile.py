"""Where the time of a training step goes: every operation's share, beside what the machine could do at best.

    make bench BENCH=step_profile ARGS="[--config cifar-nano] [--batch 128] [--threads 1] [--shapes] [--top 30]"

The step is that of `step.py`. Each operation is timed on its own (what it calls is taken off), forward and backward apart. Its bytes are those of
the arrays it is given and returns, each once: the least it must move. Its operations are those of its matrix products. The floor is the longer of
what the two would take at the speeds of this machine, measured at the start: a large matrix product, and copying an array out of memory. An array
that is still in a cache is read faster than that, so an operation can be below its floor. With one thread the clock counts processor time, which
other processes do not lengthen. Nothing is written. Read next: `networks.py`, the step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass
class Spent:
    """What the calls of one operation took together."""

    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    operations: int = 0


class Profile:
    """Times functions that call each other, each without what it calls; `spent` has them by name."""

    def __init__(self, shapes: bool, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.spent: dict[str, Spent] = {}
        self.shapes = shapes
        self.counting = 0.0  # seconds that the profile itself took
        self._inside = [0.0]  # of each running call, outermost first: the seconds that the calls inside it took

    def timed(self, name: str, function: Callable, operations: Callable[[tuple], int] | None = None) -> Callable:
        """The same function, timed. operations: those of its matrix products, from its arguments."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            began = self.clock()
            try:
                result = function(*args, **kwargs)
            finally:
                seconds = self.clock() - began
                inside = self._inside.pop()
                self._inside[-1] += seconds
            arrays = _arrays((args, result))
            which = f"{name} {_shapes_of(args)}" if self.shapes else name
            spent = self.spent.setdefault(which, Spent())
            spent.calls += 1
            spent.seconds += seconds - inside
            spent.bytes += sum(array.nbytes for array in arrays)
            spent.operations += operations(args) if operations else 0
            counting = self.clock() - began - seconds
            self._inside[-1] += counting
            self.counting += counting
            return result

        return call


def _arrays(things: Any) -> list:
    """The arrays in nested tuples and lists, and those of Tensors; each piece of memory once."""
    import numpy as np

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
    """The shapes of the first two arrays: usually x (or dy) and the weight."""
    return " ".join("x".join(map(str, array.shape)) for array in sorted(_arrays(args), key=lambda array: -array.size)[:3])


def _products() -> dict[str, tuple[Callable, Callable]]:
    """Operations of the matrix products of each kernel, forward and backward, from its arguments. A multiplication and an addition are two."""

    def convolution(y_size: int, weight: Any) -> int:
        return 2 * y_size * prod(weight.shape[1:])

    def conv2d_forward(args: tuple) -> int:
        from minigrad.fused.conv2d import Geometry

        x, weight, _, *options = args
        return convolution(len(x) * prod(Geometry.of(weight, *options).output_size(*x.shape[1:3])) * len(weight), weight)

    def conv2d_backward(args: tuple) -> int:
        dy, (_, weight, _), needs = args
        return sum(needs[:2]) * convolution(dy.size, weight)

    def attention_forward(args: tuple) -> int:
        query, key, value = args[:3]
        return 2 * query.size * key.shape[2] + 2 * prod(query.shape[:3]) * value.size // prod(value.shape[:2])

    def attention_backward(args: tuple) -> int:
        query, key, value = args[1][:3]
        return 2 * attention_forward((query, key, value))

    return {
        "conv2d": (conv2d_forward, conv2d_backward),
        "linear": (
            lambda args: 2 * prod(args[0].shape[:-1]) * args[1].size,
            lambda args: sum(args[2][:2]) * 2 * prod(args[0].shape[:-1]) * args[1][1].size,
        ),
        "scaled_dot_product_attention": (attention_forward, attention_backward),
    }


def instrument(profile: Profile, learner: Any) -> None:
    """Put `profile` around every operation of the registry, the adding up of gradients, clipping and the optimiser."""
    from conformer import learner as page
    from minigrad import autograd
    from minigrad.op import REGISTRY, Fused

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
    autograd._add = profile.timed("sums of gradients", autograd._add)
    page.clip_grad_norm_ = profile.timed("clip_grad_norm_", page.clip_grad_norm_)
    learner.optimizer.step = profile.timed("AdamW", learner.optimizer.step)


def speeds(clock: Callable[[], float], seconds: float = 0.3) -> tuple[float, float]:
    """Of this machine, on all threads of the pool: operations a second of a large matrix product, bytes a second of a large copy."""
    import numpy as np

    from minigrad.backend.cpu import parallel_rows

    def best(work: Callable[[int, int], Any], rows: int) -> float:
        fastest, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = clock()
            parallel_rows(work, rows)
            fastest = min(fastest, clock() - began)
        return fastest

    n = 1024
    a, b, c = (np.ones((n, n), np.float32) for _ in range(3))
    product = best(lambda start, stop: np.matmul(a[start:stop], b, out=c[start:stop]), n)
    source, target = np.ones((64, 1 << 18), np.float32), np.ones((64, 1 << 18), np.float32)  # 64 MiB each
    copy = best(lambda start, stop: np.copyto(target[start:stop], source[start:stop]), 64)
    return 2 * n**3 / product, 2 * source.nbytes / copy


def report(profile: Profile, steps: int, total: float, operations: float, bandwidth: float, top: int) -> list[str]:
    """The table, an operation a line, most expensive first."""
    lines = [f"{'ms':>8} {'share':>6} {'calls':>6} {'MB':>8} {'GB/s':>6} {'GFLOP/s':>8} {'floor ms':>8} {'x floor':>7}  operation"]
    rest = total
    for name, spent in sorted(profile.spent.items(), key=lambda item: -item[1].seconds)[:top]:
        seconds, moved, count = spent.seconds / steps, spent.bytes / steps, spent.operations / steps
        rest -= seconds
        floor = max(moved / bandwidth, count / operations)
        numbers = f"{1e3 * seconds:8.2f} {seconds / total:6.1%} {spent.calls / steps:6.0f} {moved / 1e6:8.1f} {moved / seconds / 1e9:6.1f}"
        product = f"{count / seconds / 1e9:8.1f}" if count else " " * 8
        lines.append(f"{numbers} {product} {1e3 * floor:8.2f} {seconds / floor if floor else 0:7.1f}  {name}")
    lines.append(f"{1e3 * rest:8.2f} {rest / total:6.1%} {'':47} everything else: modules, nodes, the walk")
    lines.append(f"{1e3 * total:8.2f} 100.0% {'':47} the step")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="cifar-nano")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--threads", type=int, help="default: as many as processors")
    parser.add_argument("--steps", type=int, default=5, help="steps to take the mean of (default: 5), after two others")
    parser.add_argument("--shapes", action="store_true", help="a line for every shape of an operation's arrays")
    parser.add_argument("--top", type=int, default=30, help="lines (default: 30)")
    options = parser.parse_args(argv)
    if options.threads:
        os.environ["MINIGRAD_THREADS"] = str(options.threads)

    from benchmarks.networks import batch_of, network_of
    from conformer.batches import Batch
    from conformer.learner import Learner
    from conformer.options import TrainConfig
    from minigrad.backend.cpu import keep_freed_memory, thread_count

    keep_freed_memory()
    case = {"config": options.config, "batch": options.batch, "size": options.size}
    learner = Learner(network_of(case), TrainConfig(batch_size=options.batch), steps=1000)
    learner.model.train()
    batch = Batch(*batch_of(case))
    clock = time.thread_time if thread_count() == 1 else time.perf_counter
    profile = Profile(options.shapes, clock)
    operations, bandwidth = speeds(clock)
    bare = []
    for _ in range(2 + options.steps):
        began = clock()
        learner.train_step(batch)
        bare.append(clock() - began)
    instrument(profile, learner)
    learner.train_step(batch)
    profile.spent.clear()
    profile.counting = 0.0
    began = clock()
    for _ in range(options.steps):
        learner.train_step(batch)
    total = (clock() - began - profile.counting) / options.steps
    print(f"{options.config}, batch {options.batch}, {thread_count()} threads: {1e3 * sorted(bare[2:])[options.steps // 2]:.1f} ms a step unwatched")
    print(f"this machine at best: {operations / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s\n")
    print("\n".join(report(profile, options.steps, total, operations, bandwidth, options.top)))


if __name__ == "__main__":
    main()
