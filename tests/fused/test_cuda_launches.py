"""The CUDA kernels are launched with the blocks and the memory they need and not more. A grid that is too small leaves numbers unwritten, and other
tests see it; one that is too large only takes time, which they do not. Read next: `test_cuda_choices.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, random
from minigrad.backend import cuda
from minigrad.backend.emulator import state
from minigrad.backend.emulator.memory import ALLOCATED, Block
from minigrad.fused.dropout import cuda_keep_mask
from minigrad.op import REGISTRY, Fused, Op
from tests.support import rng

PADDING = 32  # bytes that may be unused at the end of shared memory: rows there are longer than what they hold


@dataclass(frozen=True)
class Call:
    """inputs: shapes of float32 arrays, other arrays, or None. wanted: which of them gradients are for. values: the plain arguments."""

    inputs: Sequence[Any]
    wanted: Sequence[int] = (0,)
    values: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def arrays_without_use() -> Iterator[list[tuple[str, int]]]:
    """A list of ("unwritten bytes", their number) for every array of the device that ends so, or is there in the end."""
    memory, found, alive = state.memory(), [], {}

    def check(block: Block) -> None:
        start = block.address - memory.base
        unwritten = int((memory.states[start : start + block.nbytes] == ALLOCATED).sum())
        if alive.pop(block.address, None) is not None and unwritten:
            found.append(("unwritten bytes", unwritten))

    def allocate(nbytes: int) -> Block:
        block = type(memory).allocate(memory, nbytes)
        alive[block.address] = weakref.ref(block)
        return block

    def free(block: Block) -> None:
        check(block)
        type(memory).free(memory, block)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "allocate", allocate)
        patch.setattr(memory, "free", free)
        yield found
        for reference in list(alive.values()):
            block = reference()
            assert block is not None
            check(block)


def wasteful(op: Op, call: Call) -> list:
    """What nothing comes of, forward and backward: launches with blocks or shared memory, and arrays that are never written."""

    def tensor(k: int, given: Any) -> Tensor | None:
        if given is None:
            return None
        array = given if isinstance(given, np.ndarray) else rng(k).uniform(0.5, 1, given).astype(np.float32)
        return Tensor(array).to(device="cuda").requires_grad_(k in call.wanted)

    with cuda.emulated() as device, arrays_without_use() as unwritten:
        tensors = [tensor(k, given) for k, given in enumerate(call.inputs)]
        y = op(*tensors, **call.values)
        y = y[0] if isinstance(y, tuple) else y
        upstream = Tensor(rng(99).standard_normal(y.shape).astype(np.float32)).to(device="cuda")
        minigrad.grad([y], [t for t in tensors if t is not None and t.requires_grad], [upstream])
        assert device.launches
    return unwritten + [(kernel, waste) for kernel, waste in device.wasteful if waste.idle_blocks or waste.unused_shared > PADDING]


def batch_norms(*shapes: tuple[int, ...]) -> list[Call]:
    """In training, with residual and ReLU; in evaluation."""
    calls = []
    for shape in shapes:
        vector = shape[-1:]
        calls += [Call([shape, vector, vector, None, None, shape], (0, 1, 2, 5), {"relu": True}), Call([shape, *[vector] * 4], (0, 1, 2))]
    return calls


# Sizes at a multiple of what a block works on, and just behind one: a block more, or one for every half of what there is, is then one too many.
SIZES = [(1024,), (1028,), (4, 257), (256,)]
ROWS = [
    Call([shape], values={"axis": axis})
    for shape, axis in (((4, 32), 1), ((5, 33), 1), ((3, 1028), 1), ((3, 1025), -1), ((2, 3, 64), 1), ((1, 3, 129), 1))
]
POOLS = [
    Call([shape], values={"kernel_size": size}) for shape, size in (((2, 6, 86, 4), 2), ((2, 4, 66, 4), 2), ((1, 2, 128, 12), 1), ((1, 2, 43, 3), 1))
]
CALLS: dict[str, list[Call]] = {
    "gelu": [Call([shape]) for shape in SIZES],
    "dropout": [Call([shape, rng(1).random(shape) < 0.5], values={"p": 0.5}) for shape in SIZES],
    "drop_path": [Call([(3, *shape), np.array([True, False, True])], values={"p": 0.5}) for shape in SIZES],
    "layer_norm": [
        Call([shape, shape[-1:], shape[-1:]], wanted)
        for shape in ((4, 32), (5, 33), (128, 128), (64, 65), (8, 132))
        for wanted in ((0, 1, 2), (0,), (1, 2))
    ],
    "softmax": ROWS,
    "log_softmax": ROWS,
    "cross_entropy": [
        call
        for batch, classes in ((4, 10), (5, 3), (8, 1024), (3, 1025))
        for call in (
            Call([(batch, classes), rng(0).integers(0, classes, batch)]),
            Call([(batch, classes), (batch, classes)], (0, 1), {"label_smoothing": 0.1}),
        )
    ],
    "linear": [Call([(rows, 3), (features, 3), (features,)], (0, 1, 2)) for rows, features in ((32, 128), (33, 129), (64, 32), (1, 33))],
    "avg_pool2d": POOLS,
    "max_pool2d": POOLS,
    "global_avg_pool2d": [Call([(2, 3, 3, channels)]) for channels in (32, 33)],
    "upsample_nearest": [
        Call([shape], values={"scale_factor": factors}) for shape, factors in (((2, 2, 64, 4), (3, 2)), ((1, 2, 43, 3), 1), ((1, 1, 129, 4), (2, 1)))
    ],
    "batch_norm": batch_norms((2, 3, 23, 5), (2, 8, 8, 64), (65, 1, 1, 260), (9, 3, 3, 257)),
    "scaled_dot_product_attention": [
        Call([(1, 2, own, width), (1, 2, keys, width), (1, 2, keys, width)], (0, 1, 2))
        for width in (8, 40, 132)  # 8: a block per head for up to 24 or 72 tokens, else tiles; 132: a thread per row
        for own, keys in ((24, 16), (17, 25), (64, 64), (65, 17), (129, 5))
    ]
    + [
        Call([(1, 2, 80, 8)] * 3, wanted) for wanted in ((0,), (1,), (2,))
    ],
    "conv2d": [
        Call([shape, weight, weight[:1]], (0, 1, 2), values)
        for shape, weight, values in (
            ((2, 8, 8, 8), (64, 8, 3, 3), {"padding": 1}),
            ((1, 9, 15, 4), (36, 4, 3, 3), {"padding": 1}),
            ((2, 8, 16, 16), (16, 16, 2, 2), {"stride": 2}),
            ((1, 17, 16, 3), (65, 3, 2, 2), {}),
            ((1, 12, 12, 32), (32, 16, 3, 3), {"groups": 2}),
            ((1, 12, 11, 6), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
            ((2, 4, 4, 8), (12, 8, 1, 1), {}),
        )
    ],
}  # fmt: skip
PAGES = {"drop_path": "dropout"}  # whose page an operation is on, if not on one of its own: it is in the name of the test, for `tests/mutants.py`


@pytest.mark.parametrize(
    ("op", "call"), [pytest.param(op, call, id=f"{PAGES.get(op, op)}-{op}-{k}") for op, calls in CALLS.items() for k, call in enumerate(calls)]
)
def test_nothing_is_in_vain(op, call):
    assert wasteful(REGISTRY[op], call) == []


def test_every_operation_with_a_cuda_kernel_is_tried():
    kernels = {name for name, op in REGISTRY.items() if isinstance(op, Fused) and "cuda" in op.kernels}
    assert set(CALLS) == kernels, "add the new operation to CALLS, above"


@pytest.mark.parametrize("call", [call for call in CALLS["conv2d"] if call.inputs[0][3] % 4 == 0], ids=str)
def test_conv2d_on_tensor_cores(call):
    with minigrad.precision("tf32"):
        assert wasteful(REGISTRY["conv2d"], call) == []


@pytest.mark.parametrize("size", [2048, 2049])
def test_dropout_s_mask(size):
    with cuda.emulated() as device:
        cuda_keep_mask(random.generator("test", 0), (size,), 0.5)
        assert device.launches and device.wasteful == []
