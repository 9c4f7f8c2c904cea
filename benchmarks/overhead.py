"""What the engine itself costs: microseconds per operation beyond the kernel that does the arithmetic.

    make bench BENCH=overhead ARGS="[--out FILE]"

Forward: time of the operation on Tensors that require grad (so a graph is recorded) minus time of its kernel on the arrays. Backward: time per
operation of `backward()` through a chain of them, each with parameters of its own, minus time of the kernel's backward (for primitives: of the
same products on arrays). Each figure is the median over rounds, in which the two sides take turns. Budget: 2 + 4 microseconds for a primitive, 4 +
4 for a fused operation.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MINIGRAD_THREADS", "1")  # arrays this small never leave the calling thread

import numpy as np

from benchmarks.measure import environment
from minigrad import Tensor, ops
from minigrad.op import REGISTRY, KernelPair, Op
from minigrad.ops.matmul import product

ROUNDS, LOOPS, LENGTH = 31, 400, 100


def seconds(function: Callable, loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        function()
    return (time.perf_counter() - start) / loops


def median_difference(ours: Callable, bare: Callable, loops: int = LOOPS) -> tuple[float, float]:
    """Medians of both in microseconds, measured in turns."""
    rounds = [(seconds(ours, loops), seconds(bare, loops)) for _ in range(ROUNDS)]
    return statistics.median(a for a, _ in rounds) * 1e6, statistics.median(b for _, b in rounds) * 1e6


def measure_backward(step: Callable, start: Tensor, bare: Callable) -> tuple[float, float]:
    """Per operation of a chain y = step(y), and of the bare arithmetic, in microseconds."""
    ours, alone = [], []
    for _ in range(ROUNDS):
        y = start
        for _ in range(LENGTH):
            y = step(y)
        upstream = Tensor(np.ones_like(y.data))
        begin = time.perf_counter()
        y.backward(upstream)
        ours.append((time.perf_counter() - begin) / LENGTH)
        alone.append(seconds(bare, LENGTH))
    return statistics.median(ours) * 1e6, statistics.median(alone) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    out = parser.parse_args().out
    draw = np.random.default_rng(0)

    def tensor(*shape: int) -> Tensor:
        return Tensor(draw.uniform(0.5, 1.0, shape).astype(np.float32), requires_grad=True)

    def own(tensor: Tensor) -> Tensor:
        return Tensor(tensor.data, requires_grad=True)

    v, one = tensor(16), Tensor(np.ones(16, np.float32), requires_grad=True)
    a, b, g = v.data, one.data, np.ones(16, np.float32)
    m, eye = tensor(4, 4), Tensor(np.eye(4, dtype=np.float32), requires_grad=True)
    primitives = [
        # name, start of the chain, the other input or None, operation on Tensors, the same on arrays, the backward arithmetic on arrays
        ("add", v, one, ops.add, lambda: a + b, lambda: None),
        ("mul", v, one, ops.mul, lambda: a * b, lambda: (g * b, g * a)),
        ("tanh", v, None, ops.tanh, lambda: np.tanh(a), lambda: g * (1 - a * a)),
        ("relu", v, None, ops.relu, lambda: ops.relu.function(a), lambda: g * (a > 0)),
        ("matmul", m, eye, product, lambda: np.matmul(m.data, eye.data), lambda: (np.matmul(m.data, eye.data.T), np.matmul(m.data.T, eye.data))),
    ]
    x, weight, bias = tensor(4, 16), tensor(16), tensor(16)
    square = Tensor(np.eye(16, dtype=np.float32), requires_grad=True)
    image, filters = tensor(1, 2, 2, 4), Tensor(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), requires_grad=True)
    channel, shift = tensor(4), tensor(4)
    fused = [
        ("layer_norm", x, (weight, bias)),
        ("linear", x, (square, bias)),
        ("gelu", x, ()),
        ("softmax", x, ()),
        ("batch_norm", image, (channel, shift)),
        ("conv2d", image, (filters,)),
        ("avg_pool2d", image, (1,)),
    ]

    rows = []
    for name, start, other, op, bare, back in primitives:
        others = () if other is None else (other,)
        forward = median_difference(lambda op=op, start=start, others=others: op(start, *others), bare)
        rows.append((name, "primitive", *forward, *measure_backward(lambda y, op=op, others=others: op(y, *map(own, others)), start, back)))
    for name, start, others in fused:
        op = REGISTRY[name]
        kernel = op.kernels["cpu"]
        inputs, values = op._bind((start, *others), {})
        raw = [t.data if isinstance(t, Tensor) else t for t in inputs]
        y, saved = kernel.forward(*raw, *values)
        dy = np.ones_like(y[0] if isinstance(y, tuple) else y)
        needs = tuple(isinstance(t, Tensor) for t in inputs)
        back = (lambda k=kernel, d=dy, s=saved, n=needs: k.backward(d, s, n)) if kernel.backward else (lambda: None)

        def step(y: Tensor, op: Op = op, others: tuple = others) -> Tensor:
            result = op(y, *[own(t) if isinstance(t, Tensor) else t for t in others])
            return result[0] if isinstance(result, tuple) else result

        def bare(k: KernelPair = kernel, raw: list = raw, values: tuple = values) -> None:
            k.forward(*raw, *values)

        forward = median_difference(lambda op=op, start=start, others=others: op(start, *others), bare)
        rows.append((name, "fused", *forward, *measure_backward(step, start, back)))

    print(f"{'operation':12} {'kind':10} {'forward, of it engine':>24} {'backward, of it engine':>24}   (microseconds)")
    for name, kind, forward, bare, back, bare_back in rows:
        print(f"{name:12} {kind:10} {forward:14.2f} {forward - bare:9.2f} {back:14.2f} {back - bare_back:9.2f}")
    if out:
        fields = ("operation", "kind", "forward_us", "forward_kernel_us", "backward_us", "backward_kernel_us")
        about = {"date": datetime.date.today().isoformat(), "command": "make bench BENCH=overhead", "numpy": np.__version__}
        table = [dict(zip(fields, row, strict=True)) for row in rows]
        out.write_text(json.dumps({**about, "environment": environment(), "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
