"""Every fused operation, forward and backward, at the shapes that the Conformers give it, beside PyTorch in both layouts.

    make bench BENCH=ops ARGS="[--configs cifar-nano ...] [--batches 64 128] [--only conv2d ...] [--sides ...] [--quick]"

The calls are those of a training step (`op_cases.py`). Beside times there is the least memory traffic that an operation can do: each input and the
upstream gradient read once, the output and each gradient written once; and the speed at which this machine copies memory. The upstream gradient is
random, and PyTorch runs what its user would write (`torch_operations.py`). Read next: `measure.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import minigrad
from benchmarks import measure
from benchmarks.op_cases import cases_of, least_bytes, values_of
from benchmarks.sides import Side, timed_answers
from benchmarks.speeds import COPIED, copying
from minigrad.backend.cpu import keep_freed_memory
from minigrad.op import REGISTRY
from minigrad.tensor import wrap

NAME = "ops"
SIDES = ["minigrad", "torch-nchw", "torch-channels-last", "torch-tuned"]


def arrays_of(case: dict) -> list[np.ndarray | None]:
    """Random inputs in the case's memory order: floats normal, masks nine tenths True, labels 0 or 1."""
    random = np.random.default_rng(0)
    arrays: list[np.ndarray | None] = []
    for given in case["inputs"]:
        if given is None:
            arrays.append(None)
            continue
        laid_out = [given["shape"][axis] for axis in given["order"]]
        if given["kind"] == "f":
            array = random.standard_normal(laid_out, np.float32)
        else:
            array = random.random(laid_out) < 0.9 if given["kind"] == "b" else random.integers(0, 2, laid_out)
        arrays.append(array.transpose(np.argsort(given["order"])))
    return arrays


def upstream_of(case: dict) -> np.ndarray:
    """A random gradient of the output."""
    return np.asarray(np.random.default_rng(1).standard_normal(case["out"], np.float32))


def prepare(side: Side, case: dict) -> Callable[[], dict[str, float] | None]:
    """A function that runs the operation forward and backward; it returns the time of the forward alone.

    Its `facts` are the norms of the output and of all gradients together, which must be the same on every side.
    """
    if case["op"] == "copy":
        source = np.ones(case["bytes"] // 4, np.float32)
        return copying(source, np.empty_like(source), case["threads"])
    forward, backward = {"minigrad": _ours, "torch": _torch}[side.framework](side, case)

    def run() -> dict[str, float]:
        start = time.perf_counter()
        y = forward()
        middle = time.perf_counter()
        backward(y)
        return {"forward_ms": 1e3 * (middle - start)}

    y = forward()
    out, *gradients = (array.detach().numpy() for array in (y, *backward(y)))
    squares = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients)
    run.facts = {"out_norm": float(np.linalg.norm(out)), "gradient_norm": float(squares**0.5)}
    return run


def _ours(side: Side, case: dict) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    keep_freed_memory()
    op = REGISTRY[case["op"]]
    inputs = [None if array is None else wrap(array) for array in arrays_of(case)]
    leaves = [x.requires_grad_() for x, given in zip(inputs, case["inputs"], strict=True) if given and given["needs"]]
    upstream = minigrad.Tensor(upstream_of(case))

    def forward() -> minigrad.Tensor:
        y = op(*inputs, **case["values"])
        return y[0] if isinstance(y, tuple) else y

    return forward, lambda y: minigrad.grad(y, leaves, upstream)


def _torch(side: Side, case: dict) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    import torch

    from benchmarks.torch_operations import OPERATIONS, gives_map, torch_input

    op, values, layout = case["op"], values_of(case), side.memory_format
    inputs = [
        None if array is None else torch_input(op, position, torch.from_numpy(array), values, layout)
        for position, array in enumerate(arrays_of(case))
    ]
    leaves = [x.requires_grad_() for x, given in zip(inputs, case["inputs"], strict=True) if given and given["needs"]]
    upstream = torch.from_numpy(upstream_of(case))
    if gives_map(case):
        upstream = upstream.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    operation = OPERATIONS[op]
    return lambda: operation(*inputs, **values), lambda y: torch.autograd.grad(y, leaves, upstream)


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=2, seconds=0.05, configs=measure.CONFIGS, batches=[128, 64])
    parser.add_argument("--only", nargs="+", metavar="OPERATION", help="these operations alone")
    options = measure.parse(parser, argv, timed_answers(prepare))
    cases = [case for config in options.configs for batch in options.batches for case in cases_of(config, batch)]
    cases = [{**case, "bytes": least_bytes(case)} for case in cases if not options.only or case["op"] in options.only]
    copies = [{"op": "copy", "bytes": 2**20 if options.quick else COPIED, "threads": options.threads, "sides": ["minigrad"]}]
    measure.run(NAME, copies + cases, options, argv, fresh=False, label=label)


def label(case: dict) -> str:
    """Configuration, operation and shapes."""
    shapes = " ".join("x".join(map(str, given["shape"])) for given in case.get("inputs", ()) if given)
    return f"{case.get('config', '')} {case['op']} {shapes}".strip()


if __name__ == "__main__":
    main()
