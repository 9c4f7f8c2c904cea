"""What the engine itself costs: microseconds per operation beyond the kernel that does the arithmetic, and the whole call beside PyTorch's.

    make bench BENCH=overhead ARGS="[--quick] [--out FILE]"
    make bench BENCH=overhead ARGS="--table benchmarks/results/overhead.json"      what docs/results.md has of such a file

Forward: time of the operation on Tensors that require grad (so a graph is recorded) minus time of its kernel on the arrays. Backward: time per
operation of `backward()` through a chain of them, each with parameters of its own, minus time of the kernel's backward (for primitives: of the
same products on arrays). An operation that makes its input smaller cannot follow itself: the outputs of many are added up, and the time of the same
additions alone is taken off. PyTorch does the same, on arrays of the same numbers and with one thread; what its kernels take of that is not known,
so its times compare with ours of the whole call. Each figure is the median over rounds, in which the sides take turns. The goals are in `targets.py`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("MINIGRAD_THREADS", "1")  # arrays this small never leave the calling thread

import numpy as np
import torch

from benchmarks.machine import environment
from benchmarks.targets import overhead_origin, overhead_table
from benchmarks.torch_operations import OPERATIONS, torch_input
from minigrad import Tensor, ops
from minigrad.op import REGISTRY, Fused
from minigrad.ops.matmul import product


@dataclass(frozen=True)
class Size:
    """How much is measured: rounds of `loops` calls forward, and of a chain of `length` backward."""

    rounds: int = 31
    loops: int = 400
    length: int = 100


@dataclass(frozen=True)
class Side:
    """An operation as one framework runs it: `call(x)` of a start, and one link of a chain y -> y, with leaves of its own.

    added: a link that adds without the operation, where `link` adds the operation's output to y.
    """

    start: Any
    call: Callable[[Any], Any]
    link: Callable[[Any], Any]
    first: Callable[[], Any]  # what the chain begins with
    backward: Callable[[Any], None]  # from the end of a chain
    added: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Case:
    """An operation on both sides, and its arithmetic on arrays, forward and backward."""

    name: str
    kind: str
    ours: Side
    theirs: Side
    forward: Callable[[], Any]
    back: Callable[[], Any]


# --- the cases


def cases() -> list[Case]:
    """Five primitives and every fused operation that has kernels."""
    draw = np.random.default_rng(0)

    def tensor(*shape: int) -> Tensor:
        return Tensor(draw.uniform(0.5, 1.0, shape).astype(np.float32), requires_grad=True)

    def eye(size: int, *shape: int) -> Tensor:
        return Tensor(np.eye(size, dtype=np.float32).reshape(shape or (size, size)), requires_grad=True)

    v, one, m, unit = tensor(16), Tensor(np.ones(16, np.float32), requires_grad=True), tensor(4, 4), eye(4)
    a, b, g = v.data, one.data, np.ones(16, np.float32)
    found = [
        primitive("add", v, (one,), ops.add, torch.add, lambda: a + b, lambda: None),
        primitive("mul", v, (one,), ops.mul, torch.mul, lambda: a * b, lambda: (g * b, g * a)),
        primitive("tanh", v, (), ops.tanh, torch.tanh, lambda: np.tanh(a), lambda: g * (1 - a * a)),
        primitive("relu", v, (), ops.relu, torch.relu, lambda: ops.relu.function(a), lambda: g * (a > 0)),
        primitive(
            "matmul", m, (unit,), product, torch.matmul, lambda: m.data @ unit.data, lambda: (m.data @ unit.data.T, m.data.T @ unit.data)
        ),
    ]  # fmt: skip
    x, weight, bias, image, heads = tensor(4, 16), tensor(16), tensor(16), tensor(1, 2, 2, 4), tensor(1, 1, 4, 4)
    fused: dict[str, tuple[Tensor, tuple]] = {
        "layer_norm": (x, (weight, bias)),
        "linear": (x, (eye(16), bias)),
        "gelu": (x, ()),
        "softmax": (x, ()),
        "log_softmax": (x, ()),
        "cross_entropy": (x, (Tensor(np.arange(4)),)),
        "dropout": (x, (Tensor(draw.random((4, 16)) < 0.9), 0.1)),
        "drop_path": (x, (Tensor(draw.random(4) < 0.9), 0.1)),
        "scaled_dot_product_attention": (heads, (tensor(1, 1, 4, 4), tensor(1, 1, 4, 4))),
        "batch_norm": (image, (tensor(4), tensor(4))),
        "conv2d": (image, (eye(4, 4, 4, 1, 1),)),
        "avg_pool2d": (image, (1,)),
        "max_pool2d": (image, (1,)),
        "global_avg_pool2d": (image, ()),
        "upsample_nearest": (image, (1,)),
    }
    return found + [of_fused(name, start, others) for name, (start, others) in fused.items()]


def primitive(name: str, start: Tensor, others: Sequence[Tensor], op: Callable, theirs: Callable, forward: Callable, back: Callable) -> Case:
    """A case of an operation whose arithmetic NumPy does in a line."""
    first, *rest = (torch.from_numpy(t.data).requires_grad_() for t in (start, *others))
    return Case(name, "primitive", our_side(op, start, others, False), torch_side(theirs, first, rest, False), forward, back)


def of_fused(name: str, start: Tensor, others: Sequence[Any]) -> Case:
    """A case of an operation with kernels. Its output is made as its input is, or added up."""
    op = REGISTRY[name]
    assert isinstance(op, Fused)
    kernel = op.kernels["cpu"]
    inputs, values = op._bind((start, *others), {})
    raw = [t.data if isinstance(t, Tensor) else t for t in inputs]
    y, saved = kernel.forward(*raw, *values)
    y = y[0] if isinstance(y, tuple) else y
    dy, needs = np.ones_like(y), tuple(isinstance(t, Tensor) and t.requires_grad for t in inputs)
    named = dict(zip(op.names[op.count :], values, strict=True))

    def as_torch(position: int, t: Tensor) -> torch.Tensor:
        return torch_input(name, position, torch.from_numpy(t.data), named, torch.channels_last).requires_grad_(t.requires_grad)

    def theirs(x: Any, *rest: Any) -> Any:
        return operation(x, *rest, **named)

    first, *rest = (as_torch(position, t) if isinstance(t, Tensor) else t for position, t in enumerate(inputs))
    operation, smaller, back = OPERATIONS[name], y.shape != start.shape, kernel.backward
    return Case(
        name,
        "fused",
        our_side(op, start, others, smaller),
        torch_side(theirs, first, rest, smaller),
        lambda: kernel.forward(*raw, *values),
        (lambda: back(dy, saved, needs)) if back else (lambda: None),
    )


def our_side(op: Callable, start: Tensor, others: Sequence[Any], smaller: bool) -> Side:
    """How we run an operation; `smaller`: its output has another shape than its input."""
    return _side(op, start, others, smaller, lambda t: Tensor(t.data, requires_grad=True), ops.add, lambda t: Tensor(np.ones_like(t.data)))


def torch_side(op: Callable, start: Any, others: Sequence[Any], smaller: bool) -> Side:
    """How PyTorch runs it."""
    return _side(op, start, others, smaller, lambda t: t.detach().requires_grad_(), torch.add, torch.ones_like)


def _side(op: Callable, start: Any, others: Sequence[Any], smaller: bool, leaf: Callable, add: Callable, ones_like: Callable) -> Side:
    """leaf: a new one of the same numbers; add, ones_like: the framework's."""

    def own(value: Any) -> Any:
        return leaf(value) if getattr(value, "requires_grad", False) else value

    def run(x: Any) -> Any:
        y = op(x, *map(own, others))
        return y[0] if isinstance(y, tuple) else y

    def backward(y: Any) -> None:
        y.backward(ones)

    def call(x: Any) -> Any:
        return op(x, *others)

    like = leaf(run(start))
    ones = ones_like(like)
    if not smaller:
        return Side(start, call, run, lambda: start, backward)
    return Side(start, call, lambda y: add(y, run(own(start))), lambda: leaf(like), backward, lambda y: add(y, leaf(like)))


# --- the measurement


def seconds(function: Callable[[], Any], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        function()
    return (time.perf_counter() - start) / loops


def chained(side: Side, link: Callable[[Any], Any], length: int) -> float:
    """Seconds a link of `backward()` through a chain."""
    y = side.first()
    for _ in range(length):
        y = link(y)
    start = time.perf_counter()
    side.backward(y)
    return (time.perf_counter() - start) / length


def backward_seconds(side: Side, length: int) -> float:
    return chained(side, side.link, length) - (chained(side, side.added, length) if side.added else 0.0)


def measured(case: Case, size: Size) -> dict[str, Any]:
    """Microseconds of the whole operation, of its kernel, and of PyTorch's whole operation, forward and backward."""
    turns = {
        "forward_us": lambda: seconds(lambda: case.ours.call(case.ours.start), size.loops),
        "forward_kernel_us": lambda: seconds(case.forward, size.loops),
        "torch_forward_us": lambda: seconds(lambda: case.theirs.call(case.theirs.start), size.loops),
        "backward_us": lambda: backward_seconds(case.ours, size.length),
        "backward_kernel_us": lambda: seconds(case.back, size.length),
        "torch_backward_us": lambda: backward_seconds(case.theirs, size.length),
    }
    rounds = [{name: turn() for name, turn in turns.items()} for _ in range(1 + size.rounds)][1:]  # the first loads and allocates
    return {"operation": case.name, "kind": case.kind, **{name: 1e6 * statistics.median(taken[name] for taken in rounds) for name in turns}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a few calls, to see that everything works")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing; print what docs/results.md has of such a file")
    options = parser.parse_args(argv)
    if options.table:
        record = json.loads(options.table.read_text())
        print(f"{overhead_table(record)}\n\n{overhead_origin(record)}")
        return
    torch.set_num_threads(1)
    size = Size(1, 2, 2) if options.quick else Size()
    about = {"date": datetime.date.today().isoformat(), "command": "make bench BENCH=overhead" + ' ARGS="--quick"' * options.quick}
    record = {**about, "numpy": np.__version__, "torch": torch.__version__, "environment": environment()}
    record["rows"] = [measured(case, size) for case in cases()]
    print("microseconds\n\n" + overhead_table(record))
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
