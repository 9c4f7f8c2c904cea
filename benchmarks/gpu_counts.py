"""What an operation has to do at least: bytes of memory traffic and floating-point operations of its forward and its backward pass, by its shapes.

A case is one of `op_cases.py`: the operation, its inputs' shapes and which need a gradient, the shape of its output, its values. Memory-bound kernels
are judged by the bytes that must come from memory or go there, compute-bound ones by their FLOP/s. Read next: `gpu_kernels.py`.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from benchmarks.op_cases import WIDTHS

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"


class Update(NamedTuple):
    """How many arrays of the parameters' size it works on; reads once and writes once; reads and writes in all its passes."""

    arrays: int
    least: int
    moved: int


UPDATES = {"adamw": Update(4, 7, 7), "clip_grad_norm": Update(1, 2, 3), "ema": Update(2, 3, 3)}
"""What is done to all parameters at once: AdamW reads parameter, gradient and two moments and writes all but the gradient; clipping reads the
gradient for its norm, then reads and writes it; an average is read with the weights, and written.
"""


class Work(NamedTuple):
    """least: bytes, each input read once and each output written once. moved: bytes in as many passes as the operation is made in, each of them
    out of memory: a batch norm's statistics must be known before its first output; each of two products reads dy. flops: of matrix products, a
    multiplication and an addition counted as two; 0 where there is none.
    """

    least: int
    moved: int
    flops: int

    def traffic(self, cache: int) -> int:
        """Bytes that no kernel can do without, on a card with a cache of so many: each array once, and of what is read again the part that the cache
        cannot have kept, whatever the order.
        """
        return self.least + max(0, self.moved - self.least - cache)

    def ideal_ms(self, bandwidth: float, rate: float | None, cache: int) -> float:
        """Milliseconds at `bandwidth` bytes and `rate` FLOP a second, whichever takes longer."""
        return 1e3 * max(self.traffic(cache) / bandwidth, self.flops / rate if rate else 0.0)

    def bound(self, bandwidth: float, rate: float | None, cache: int) -> str:
        """What it waits for on such a card: "memory" or "products"."""
        return "products" if rate and self.flops / rate > self.traffic(cache) / bandwidth else "memory"


NAMES = {
    "avg_pool2d": "x", "batch_norm": "x weight bias mean var residual", "conv2d": "x weight bias", "cross_entropy": "logits labels",
    "drop_path": "x mask", "dropout": "x mask", "gelu": "x", "global_avg_pool2d": "x", "layer_norm": "x weight bias", "linear": "x weight bias",
    "log_softmax": "x", "max_pool2d": "x", "scaled_dot_product_attention": "query key value attn_mask dropout_mask", "softmax": "x",
    "upsample_nearest": "x",
}  # fmt: skip
"""The inputs of each operation, in order."""

READS = {
    "avg_pool2d": {"x": ""}, "global_avg_pool2d": {"x": ""}, "upsample_nearest": {"x": ""}, "max_pool2d": {"x": "place"},
    "batch_norm": {"x": "x weight", "weight": "x", "bias": "", "residual": ""},
    "conv2d": {"x": "weight", "weight": "x", "bias": ""}, "linear": {"x": "weight", "weight": "x", "bias": ""},
    "cross_entropy": {"logits": "logits labels"}, "drop_path": {"x": "mask"}, "dropout": {"x": "mask"},
    "gelu": {"x": "x"}, "softmax": {"x": "out"}, "log_softmax": {"x": "out"}, "layer_norm": {"x": "x weight", "weight": "x", "bias": ""},
    "scaled_dot_product_attention": {"query": "query key value out", "key": "query key value out", "value": "query key"},
}  # fmt: skip
"""Which arrays an input's gradient is made of beside dy; batch norm with a ReLU reads its output too. place: where a maximum was found."""


def sizes_of(case: dict) -> dict[str, int]:
    """Bytes of each array of a case by name; "out" the output, "place" of max pooling an int32 for each number of it."""
    names = NAMES[case["op"]].split()
    sizes = {name: WIDTHS[given["kind"]] * prod(given["shape"]) for name, given in zip(names, case["inputs"], strict=True) if given}
    sizes["out"] = 4 * prod(case["out"])
    if case["op"] == "max_pool2d":
        sizes["place"] = sizes["out"]
    return sizes


def footprint(case: dict) -> int:
    """Bytes of its arrays, each counted once, however often it is read or written: what a cache would have to hold."""
    return 4 * UPDATES[case["op"]].arrays * prod(case["out"]) if case["op"] in UPDATES else sum(sizes_of(case).values())


def wanted(case: dict) -> list[str]:
    """The inputs that get a gradient."""
    return [name for name, given in zip(NAMES[case["op"]].split(), case["inputs"], strict=True) if given and given["needs"]]


def work_of(case: dict) -> dict[str, Work]:
    """What the case has to do, forward and backward (no entry where nothing wants a gradient); or in an update."""
    if case["op"] in UPDATES:
        update, size = UPDATES[case["op"]], 4 * prod(case["out"])
        return {UPDATE: Work(update.least * size, update.moved * size, 0)}
    sizes, gradients, op = sizes_of(case), wanted(case), case["op"]
    training = op == "batch_norm" and case["inputs"][3] is None
    vectors = 2 * sizes["weight"] if training and "weight" in sizes else 0  # mean and variance, which batch norm returns too
    least = sum(sizes.values()) + vectors
    products = _product(case)
    work = {FORWARD: Work(least, least + (sizes["x"] if training else 0), products)}
    if not gradients:
        return work
    read = {"dy", *(name for wants in gradients for name in READS[op][wants].split())}
    if op == "batch_norm" and case["values"].get("relu"):
        read.add("out")
    sizes["dy"] = sizes["out"]
    read_bytes = sum(sizes[name] for name in read)
    least = read_bytes + sum(sizes[name] for name in gradients)
    moved = least
    if training and "x" in gradients:
        moved += read_bytes
    if op in ("conv2d", "linear") and {"x", "weight"} <= set(gradients):
        moved += sizes["dy"]
    if op in ("conv2d", "linear"):
        products *= len({"x", "weight"} & set(gradients))
    elif op == "scaled_dot_product_attention":
        batch, heads, tokens, width = case["inputs"][0]["shape"]
        keys, value_width = case["inputs"][2]["shape"][2:]
        # the scores again, dP = dY V^T, dV = P^T dY, dQ = dS K, dK = dS^T Q: the (N, M) arrays are not in memory
        products = 2 * batch * heads * tokens * keys * (3 * width + 2 * value_width)
    work[BACKWARD] = Work(least, moved, products)
    return work


def _product(case: dict) -> int:
    """FLOP of the forward pass's matrix products; for a convolution and `linear` those of each of its gradients, too."""
    op, inputs = case["op"], case["inputs"]
    if op in ("conv2d", "linear"):
        return 2 * prod(case["out"]) * prod(inputs[1]["shape"][1:])
    if op == "scaled_dot_product_attention":
        batch, heads, tokens, width = inputs[0]["shape"]
        keys, value_width = inputs[2]["shape"][2:]
        return 2 * batch * heads * tokens * keys * (width + value_width)
    return 0
