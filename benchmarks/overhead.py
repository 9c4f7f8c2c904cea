"""What the engine itself costs: microseconds per operation beyond the kernel that does the arithmetic.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/overhead.py [--out FILE]

Forward: time of the operation on Tensors that require grad (so a graph is recorded) minus time of its kernel on the arrays. Backward: time per
operation of `backward()` through a chain of them, minus time of the kernel's backward (for primitives: of the same products on arrays). Each
figure is the median over rounds, in which the two sides take turns. Budget: 2 + 4 microseconds for a primitive, 4 + 4 for a fused operation.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("MINIGRAD_THREADS", "1")  # arrays this small never leave the calling thread

import numpy as np

import minigrad.functional as F
from minigrad import Tensor, ops
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

    v, one = tensor(16), Tensor(np.ones(16, np.float32), requires_grad=True)
    a, b, g = v.data, one.data, np.ones(16, np.float32)
    m, eye = tensor(4, 4), Tensor(np.eye(4, dtype=np.float32), requires_grad=True)
    primitives = [
        # name, forward on Tensors, the same on arrays, step of a chain, the backward arithmetic on arrays
        ("add", lambda: ops.add(v, one), lambda: a + b, lambda y: ops.add(y, one), lambda: None),
        ("mul", lambda: ops.mul(v, one), lambda: a * b, lambda y: ops.mul(y, one), lambda: (g * b, g * a)),
        ("tanh", lambda: ops.tanh(v), lambda: np.tanh(a), lambda y: ops.tanh(y), lambda: g * (1 - a * a)),
        ("relu", lambda: ops.relu(v), lambda: ops.relu.function(a), lambda y: ops.relu(y), lambda: g * (a > 0).astype(np.float32)),
        ("matmul", lambda: product(m, eye), lambda: m.data @ eye.data, lambda y: product(y, eye), lambda: (m.data @ eye.data.T, m.data.T @ eye.data)),
    ]
    x, weight, bias = tensor(4, 16), tensor(16), tensor(16)
    square = Tensor(np.eye(16, dtype=np.float32), requires_grad=True)
    image, filters = tensor(1, 2, 2, 4), Tensor(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), requires_grad=True)
    channel, shift = tensor(4), tensor(4)
    fused = [
        ("layer_norm", F.layer_norm, lambda y: (y, weight, bias), x),
        ("linear", F.linear, lambda y: (y, square, bias), x),
        ("gelu", F.gelu, lambda y: (y,), x),
        ("softmax", F.softmax, lambda y: (y,), x),
        ("batch_norm", F.batch_norm, lambda y: (y, channel, shift), image),
        ("conv2d", F.conv2d, lambda y: (y, filters), image),
        ("avg_pool2d", F.avg_pool2d, lambda y: (y, 1), image),
    ]

    rows = []
    for name, forward, bare, step, back in primitives:
        rows.append((name, "primitive", *median_difference(forward, bare), *measure_backward(step, v if name != "matmul" else m, back)))
    for name, op, arguments, start in fused:
        kernel = op.kernels["cpu"]
        inputs, values = op._bind(arguments(start), {})
        raw = [None if t is None else (t.data if isinstance(t, Tensor) else t) for t in inputs]
        y, saved = kernel.forward(*raw, *values)
        dy = np.ones_like(y[0] if isinstance(y, tuple) else y)
        needs = tuple(isinstance(t, Tensor) for t in inputs)
        back = (lambda k=kernel, d=dy, s=saved, n=needs: k.backward(d, s, n)) if kernel.backward else (lambda: None)
        forward = lambda op=op, args=arguments(start): op(*args)  # noqa: E731
        step = lambda y, op=op, arguments=arguments: r[0] if isinstance(r := op(*arguments(y)), tuple) else r  # noqa: E731
        rows.append(
            (name, "fused", *median_difference(forward, lambda k=kernel, r=raw, v=values: k.forward(*r, *v)), *measure_backward(step, start, back))
        )

    print(f"{'operation':12} {'kind':10} {'forward, of it engine':>24} {'backward, of it engine':>24}   (microseconds)")
    for name, kind, forward, bare, back, bare_back in rows:
        print(f"{name:12} {kind:10} {forward:14.2f} {forward - bare:9.2f} {back:14.2f} {back - bare_back:9.2f}")
    if out:
        fields = ("operation", "kind", "forward_us", "forward_kernel_us", "backward_us", "backward_kernel_us")
        machine = {
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.processor() or platform.machine(),
        }
        command = "env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/overhead.py"
        out.write_text(json.dumps({**machine, "command": command, "rows": [dict(zip(fields, row, strict=True)) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
