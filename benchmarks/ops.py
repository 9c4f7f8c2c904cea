"""Every fused operation, forward and backward, at the shapes that the Conformers give it, beside PyTorch in both layouts.

    make bench BENCH=ops ARGS="[--configs cifar-nano ...] [--batches 64 128] [--only conv2d ...] [--sides ...] [--quick]"

No shape is written down here: the calls of a training step are recorded, at two small batches, and every axis is extended to the wanted batch.
Operations that such a step does not call are recorded where they do work: by the definitions (softmax inside attention), with dropout and drop path
switched on, and with the ImageNet stem (max pooling). Beside times there is the least memory traffic that an operation can do: each input and the
upstream gradient read once, the output and each gradient written once; and the speed at which this machine copies memory.

The upstream gradient is random, the masks of dropout are given to both sides (drawing them is not measured), and PyTorch runs what its user would
write for a fused operation: batch norm, then the addition, then ReLU. Read next: `measure.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import Side
from benchmarks.speeds import COPIED, copying
from conformer.config import STEM_STRIDES, ConformerConfig, named_config

NAME = "ops"
SIDES = ["minigrad", "torch-nchw", "torch-channels-last", "torch-tuned"]


# --- the cases: what a training step calls


@contextmanager
def recorded() -> Iterator[list[dict]]:
    """Collect every call of a fused operation: its name, its inputs' shapes, dtypes, order in memory and whether they need a gradient, the shape of
    its (first) output, and values.
    """
    from minigrad import Tensor
    from minigrad.op import Fused

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

    Fused.__call__ = spy  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        Fused.__call__ = call  # type: ignore[method-assign]


def memory_order(array: np.ndarray) -> list[int]:
    """The axes from the one with the longest stride to the one with the shortest: (0, 2, 1, 3) for a head-wise view of tokens."""
    return sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], axis))


def calls_of(network: ConformerConfig, size: int, batch: int, by_definition: bool = False) -> list[dict]:
    """What one training step calls."""
    import minigrad
    from conformer.model import Conformer
    from minigrad import functional as F

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

    def shapes_of(case: dict) -> dict:  # the rates of drop path differ from block to block
        return {**case, "count": 0, "values": {key: value for key, value in case["values"].items() if key != "p"}}

    def record(network: ConformerConfig, size: int, where: str, by_definition: bool = False, only: set[str] | None = None) -> None:
        two, three = (calls_of(network, size, small, by_definition) for small in (2, 3))
        found: list[dict] = []
        for a, b in zip(two, three, strict=True):
            if only is not None and a["op"] not in only:
                continue
            case = {"config": config, "batch": batch, "where": where, "op": a["op"], "values": a["values"], "out": extended(a["out"], b["out"])}
            case["inputs"] = [x and {**x, "shape": extended(x["shape"], y["shape"])} for x, y in zip(a["inputs"], b["inputs"], strict=True)]
            same = next((other for other in found if shapes_of(other) == shapes_of(case)), None)
            if same:
                same["count"] += 1
            else:
                found.append({**case, "count": 1})
        cases.extend(found)

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
    import minigrad.functional  # noqa: F401
    from minigrad.op import REGISTRY, Fused

    return [name for name, op in REGISTRY.items() if isinstance(op, Fused)]


# --- what a side runs


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


def norms(out: np.ndarray, gradients: list[np.ndarray]) -> dict[str, float]:
    """What two sides that compute the same agree in."""
    return {"out_norm": float(np.linalg.norm(out)), "gradient_norm": float(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients) ** 0.5)}


def prepare(side: Side, case: dict) -> Callable[[], dict[str, float] | None]:
    """A function that runs the operation forward and backward; it returns the time of the forward alone.

    Its `facts` are the norms of the output and of all gradients together, which must be the same on every side.
    """
    if case["op"] == "copy":
        source = np.ones(case["bytes"] // 4, np.float32)
        return copying(source, np.empty_like(source), case["threads"])
    return {"minigrad": _ours, "torch": _torch}[side.framework](side, case)


def _ours(side: Side, case: dict) -> Callable[[], dict[str, float]]:
    import time

    import minigrad
    from minigrad.backend.cpu import keep_freed_memory
    from minigrad.op import REGISTRY
    from minigrad.tensor import wrap

    keep_freed_memory()
    op = REGISTRY[case["op"]]
    inputs = [None if array is None else wrap(array) for array in arrays_of(case)]
    leaves = [x.requires_grad_() for x, given in zip(inputs, case["inputs"], strict=True) if given and given["needs"]]

    def forward() -> minigrad.Tensor:
        y = op(*inputs, **case["values"])
        return y[0] if isinstance(y, tuple) else y

    upstream = minigrad.Tensor(upstream_of(case))

    def run() -> dict[str, float]:
        start = time.perf_counter()
        y = forward()
        middle = time.perf_counter()
        minigrad.grad(y, leaves, upstream)
        return {"forward_ms": 1e3 * (middle - start)}

    y = forward()
    run.facts = norms(y.numpy(), [g.numpy() for g in minigrad.grad(y, leaves, upstream)])  # type: ignore[attr-defined]
    return run


def _torch_batch_norm(x, weight, bias, mean, var, residual, eps, relu):
    import torch.nn.functional as F

    y = F.batch_norm(x, mean, var, weight, bias, training=mean is None, eps=eps)
    y = y if residual is None else y + residual
    return F.relu_(y) if relu else y


def torch_operations() -> dict[str, Callable]:
    """What a PyTorch user calls for each of our fused operations; inputs by position, values by name."""
    import torch
    import torch.nn.functional as F

    def attention(query, key, value, attn_mask, dropout_mask, dropout_p, scale):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, scale=scale)

    return {
        "avg_pool2d": lambda x, kernel_size, stride, padding: F.avg_pool2d(x, kernel_size, stride, padding),
        "batch_norm": _torch_batch_norm,
        "conv2d": lambda x, weight, bias, stride, padding, dilation, groups: F.conv2d(x, weight, bias, stride, padding, dilation, groups),
        "cross_entropy": lambda logits, labels, label_smoothing: F.cross_entropy(logits, labels, label_smoothing=label_smoothing),
        "drop_path": lambda x, mask, p: x * (mask.view(-1, *[1] * (x.ndim - 1)) * (1 / (1 - p))),
        "dropout": lambda x, scaled_mask, p: x * scaled_mask,  # as F.dropout draws it: see MASKS
        "gelu": F.gelu,
        "global_avg_pool2d": lambda x: x.mean((2, 3)),
        "layer_norm": lambda x, weight, bias, eps: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
        "linear": F.linear,
        "log_softmax": lambda x, axis: torch.log_softmax(x, axis),
        "max_pool2d": lambda x, kernel_size, stride, padding: F.max_pool2d(x, kernel_size, stride, padding),
        "scaled_dot_product_attention": attention,
        "softmax": lambda x, axis: torch.softmax(x, axis),
        "upsample_nearest": lambda x, scale_factor: F.interpolate(x, scale_factor=scale_factor),
    }


MAPS = {"avg_pool2d": (0,), "batch_norm": (0, 5), "conv2d": (0,), "global_avg_pool2d": (0,), "max_pool2d": (0,), "upsample_nearest": (0,)}
"""Positions of the inputs that are feature maps: (B, H, W, C) for us, (B, C, H, W) for PyTorch."""
MASKS = {"dropout": 1}
"""Position of a mask that PyTorch gets as floats of 0 and 1 / (1 - p): then it makes one multiplication each way."""


def _torch(side: Side, case: dict) -> Callable[[], dict[str, float]]:
    import time

    import torch

    layout = torch.channels_last if side.options.get("channels_last") else torch.contiguous_format
    operation, inputs = torch_operations()[case["op"]], []
    for position, array in enumerate(arrays_of(case)):
        tensor = None if array is None else torch.from_numpy(array)
        if tensor is not None and position in MAPS.get(case["op"], ()):
            tensor = tensor.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        elif tensor is not None and case["op"] == "conv2d" and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=layout)
        elif tensor is not None and position == MASKS.get(case["op"]):
            tensor = tensor / (1 - case["values"]["p"])
        inputs.append(tensor)
    leaves = [x.requires_grad_() for x, given in zip(inputs, case["inputs"], strict=True) if given and given["needs"]]
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in case["values"].items()}  # JSON has no tuples
    upstream = torch.from_numpy(upstream_of(case))
    if upstream.ndim == 4 and case["op"] in MAPS:
        upstream = upstream.permute(0, 3, 1, 2).contiguous(memory_format=layout)

    def run() -> dict[str, float]:
        start = time.perf_counter()
        y = operation(*inputs, **values)
        middle = time.perf_counter()
        torch.autograd.grad(y, leaves, upstream)
        return {"forward_ms": 1e3 * (middle - start)}

    y = operation(*inputs, **values)
    run.facts = norms(y.detach().numpy(), [g.numpy() for g in torch.autograd.grad(y, leaves, upstream)])  # type: ignore[attr-defined]
    return run


# --- memory traffic


def least_bytes(case: dict) -> int:
    """Each input and the upstream gradient read once, the output and each gradient written once."""
    widths = {"f": 4, "b": 1, "i": 8, "u": 8}
    inputs = [given for given in case["inputs"] if given]
    read = sum(widths[given["kind"]] * int(np.prod(given["shape"])) for given in inputs)
    gradients = sum(4 * int(np.prod(given["shape"])) for given in inputs if given["needs"])
    return read + gradients + 2 * 4 * int(np.prod(case["out"]))


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=2, seconds=0.05)
    parser.add_argument("--configs", nargs="+", default=["cifar-nano", "cifar-micro", "cifar-small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 64])
    parser.add_argument("--only", nargs="+", metavar="OPERATION", help="these operations alone")
    options = measure.parse(parser, argv)
    if options.worker:
        return measure.serve(options, measure.timed_answers(prepare))
    if options.quick:
        options.configs, options.batches = options.configs[:1], [2]
    cases = [case for config in options.configs for batch in options.batches for case in cases_of(config, batch)]
    cases = [{**case, "bytes": least_bytes(case)} for case in cases if not options.only or case["op"] in options.only]
    copies = [{"op": "copy", "bytes": 2**20 if options.quick else COPIED, "threads": options.threads, "sides": ["minigrad"]}]
    rows = measure.interleaved(NAME, copies + cases, options, fresh=False, label=label)
    measure.save(NAME, rows, options, argv)


def label(case: dict) -> str:
    """Configuration, operation and shapes."""
    shapes = " ".join("x".join(map(str, given["shape"])) for given in case.get("inputs", ()) if given)
    return f"{case.get('config', '')} {case['op']} {shapes}".strip()


if __name__ == "__main__":
    main()
