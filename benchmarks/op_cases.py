"""What a training step of a Conformer calls, recorded: the cases of `ops.py` and of `gpu_kernels.py`.

No shape is written down here: the calls of a training step are recorded, at two small batches, and every axis is extended to the wanted batch.
Operations that such a step does not call are recorded where they do work: by the definitions (softmax inside attention), with dropout and drop path
switched on, and with the ImageNet stem (max pooling). Read next: `torch_operations.py`, what PyTorch runs for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import prod
from typing import Any

import numpy as np

import minigrad
from conformer.config import STEM_STRIDES, ConformerConfig, named_config
from conformer.model import Conformer
from minigrad import Tensor
from minigrad import functional as F
from minigrad.op import REGISTRY, Fused

WIDTHS = {"f": 4, "b": 1, "i": 8, "u": 8}
"""Bytes of a number of each kind: float32, bool, int64."""


@contextmanager
def recorded() -> Iterator[list[dict]]:
    """Collect every call of a fused operation: its name, its inputs' shapes, dtypes, order in memory and whether they need a gradient, the shape of
    its (first) output, and values.
    """
    calls: list[dict] = []
    call = Fused.__call__

    def spy(self: Fused, *args: Any, **kwargs: Any) -> Any:
        inputs, values = self._bind(args, kwargs)
        tensors = [x if x is None or isinstance(x, Tensor) else Tensor(x) for x in inputs]
        seen = [
            None if x is None else {"shape": list(x.shape), "kind": x.dtype.kind, "order": memory_order(x.data), "needs": x.requires_grad}
            for x in tensors
        ]
        out = call(self, *tensors, *values)
        shape = (out[0] if isinstance(out, tuple) else out).shape
        calls.append({"op": self.name, "inputs": seen, "out": list(shape), "values": dict(zip(self.names[self.count :], values, strict=True))})
        return out

    Fused.__call__ = spy
    try:
        yield calls
    finally:
        Fused.__call__ = call


def memory_order(array: np.ndarray) -> list[int]:
    """The axes from the one with the longest stride to the one with the shortest: (0, 2, 1, 3) for a head-wise view of tokens."""
    return sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], axis))


def calls_of(network: ConformerConfig, size: int, batch: int, by_definition: bool = False) -> list[dict]:
    """What one training step calls."""
    model = Conformer(**asdict(network))
    images = minigrad.Tensor(np.zeros((batch, size, size, network.in_chans), np.float32))
    with recorded() as calls, minigrad.definitions() if by_definition else minigrad.enable_grad():
        for head in model(images):
            F.cross_entropy(head, np.zeros(batch, np.int64), label_smoothing=0.1)
    return calls


def cases_of(config: str, batch: int, size: int = 32) -> list[dict]:
    """Each distinct call of a training step at this batch with the number of times it is made, then the operations that it does not call.

    size: side of the images in pixels.
    """
    network = named_config(config)
    cases: list[dict] = []

    def extended(two: list[int], three: list[int]) -> list[int]:
        return [a + (b - a) * (batch - 2) for a, b in zip(two, three, strict=True)]

    def shapes_of(case: dict) -> str:  # the rates of drop path differ from block to block
        return json.dumps({**case, "values": {key: value for key, value in case["values"].items() if key != "p"}})

    def record(network: ConformerConfig, size: int, where: str, by_definition: bool = False, only: set[str] | None = None) -> None:
        two, three = (calls_of(network, size, small, by_definition) for small in (2, 3))
        found: dict[str, dict] = {}
        for a, b in zip(two, three, strict=True):
            if only is not None and a["op"] not in only:
                continue
            case = {"config": config, "batch": batch, "where": where, "op": a["op"], "values": a["values"], "out": extended(a["out"], b["out"])}
            case["inputs"] = [x and {**x, "shape": extended(x["shape"], y["shape"])} for x, y in zip(a["inputs"], b["inputs"], strict=True)]
            found.setdefault(shapes_of(case), {**case, "count": 0})["count"] += 1
        cases.extend(found.values())

    record(network, size, "training step")
    missing = set(fused_operations()) - {case["op"] for case in cases}
    others = [
        (replace(network, drop_rate=0.1, drop_path_rate=0.1), size, "with dropout and drop path", False),
        (network, size, "inside another operation", True),
        (replace(network, stem="imagenet"), size * STEM_STRIDES["imagenet"] // STEM_STRIDES[network.stem], "with the ImageNet stem", False),
    ]
    for changed, side, where, by_definition in others:
        before = len(cases)
        record(changed, side, where, by_definition, missing)
        missing -= {case["op"] for case in cases[before:]}
    return cases


def fused_operations() -> list[str]:
    """The names of all of them."""
    return [name for name, op in REGISTRY.items() if isinstance(op, Fused)]


def values_of(case: dict) -> dict[str, Any]:
    """The values of a call by name; JSON has no tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in case["values"].items()}


def least_bytes(case: dict) -> int:
    """Each input and the upstream gradient read once, the output and each gradient written once."""
    inputs = [given for given in case["inputs"] if given]
    read = sum(WIDTHS[given["kind"]] * prod(given["shape"]) for given in inputs)
    gradients = sum(4 * prod(given["shape"]) for given in inputs if given["needs"])
    return read + gradients + 2 * 4 * prod(case["out"])
