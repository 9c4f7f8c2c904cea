"""Every fused kernel on 1, 2, 4 and 8 threads, with its rows cut into as many blocks as there are threads, however few they are.

Elementwise work is the same to the last bit however it is shared out. Sums over the rows are taken block by block, and BLAS adds up in an order that
depends on the size of a matrix: their rounding depends on the number of threads, and on nothing else. Read next: `../backend/test_cpu.py`, which
tests the pool.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.backend import cpu
from tests.support import assert_close, fused_with_kernel, rng

pool_of = functools.cache(cpu._Pool)


def draw(*shape: int) -> np.ndarray:
    return rng(sum(shape)).uniform(-1, 1, shape)


EXACT, ROUNDED, ALONE = "same bits on any number of threads", "rounding depends on the number of threads", "the kernel uses one thread"
CASES: dict[str, tuple[list, dict[str, Any], str]] = {
    "avg_pool2d": ([draw(9, 5, 5, 2)], {"kernel_size": 3, "stride": 2, "padding": 1}, EXACT),
    "batch_norm": ([draw(9, 3, 2, 5), draw(5), draw(5), None, None, draw(9, 3, 2, 5)], {"relu": True}, ROUNDED),
    "conv2d": ([draw(9, 5, 5, 4), draw(6, 2, 3, 3), draw(6)], {"padding": 1, "groups": 2}, ROUNDED),
    "conv2d with stride": ([draw(9, 5, 5, 4), draw(6, 4, 3, 3), draw(6)], {"padding": 1, "stride": 2}, ROUNDED),
    "conv2d 1x1": ([draw(9, 3, 3, 4), draw(6, 4, 1, 1), draw(6)], {}, ROUNDED),
    "cross_entropy": ([draw(9, 5), np.arange(9) % 5], {"label_smoothing": 0.1}, ROUNDED),
    "drop_path": ([draw(9, 5), draw(9) > 0], {"p": 0.5}, ALONE),
    "dropout": ([draw(9, 5), draw(9, 5) > 0], {"p": 0.5}, ALONE),
    "gelu": ([draw(9, 5)], {}, ROUNDED),
    "global_avg_pool2d": ([draw(9, 5, 5, 2)], {}, ALONE),
    "layer_norm": ([draw(9, 5), draw(5), draw(5)], {}, ROUNDED),
    "linear": ([draw(9, 5), draw(3, 5), draw(3)], {}, ROUNDED),
    "log_softmax": ([draw(9, 5)], {}, ROUNDED),
    "max_pool2d": ([draw(9, 5, 5, 2)], {"kernel_size": 3, "stride": 2, "padding": 1}, EXACT),
    "scaled_dot_product_attention": ([draw(9, 2, 3, 4), draw(9, 2, 4, 4), draw(9, 2, 4, 4)], {}, ROUNDED),
    "softmax": ([draw(9, 5)], {}, ROUNDED),
    "upsample_nearest": ([draw(9, 3, 3, 2)], {"scale_factor": 2}, EXACT),
}


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As long as the test runs, a block of one row is worth a thread. The list tells into how many blocks each array was cut."""
    counts: list[int] = []
    by_grain = cpu.parallel_rows

    def parallel_rows(work: Any, rows: int, grain: int = 1) -> list:
        counts.append(len(cpu.row_blocks(rows)))
        return by_grain(work, rows)

    for name, page in list(sys.modules.items()):
        if name.startswith(("minigrad.fused.", "minigrad.backend.cpu")) and hasattr(page, "parallel_rows"):
            monkeypatch.setattr(page, "parallel_rows", parallel_rows)
    return counts


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    before = cpu._pool
    yield
    cpu._pool = before


def run(name: str, threads: int, dtype: type) -> dict[str, np.ndarray]:
    """The outputs and all gradients."""
    inputs, values, _ = CASES[name]
    op = getattr(F, name.split()[0])
    cpu._pool = pool_of(threads)
    tensors = [None if x is None else Tensor(x.astype(dtype), True) if x.dtype.kind == "f" else Tensor(x) for x in inputs]
    outputs = op(*tensors, **values)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    leaves = {op.names[k]: x for k, x in enumerate(tensors) if x is not None and x.requires_grad}
    upstream = Tensor(rng(1).uniform(-1, 1, outputs[0].shape).astype(dtype))
    gradients = minigrad.grad(outputs[0], list(leaves.values()), upstream)
    found = {f"output {k}": y for k, y in enumerate(outputs)} | {f"d{leaf}": g for leaf, g in zip(leaves, gradients, strict=True)}
    return {what: np.array(tensor.numpy()) for what, tensor in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_threads_change_nothing_but_rounding(name: str, cuts: list[int]):
    kind = CASES[name][2]
    one = run(name, 1, np.float64)
    for threads in (2, 4, 8):
        cuts.clear()
        several = run(name, threads, np.float64)
        assert max(cuts, default=1) == (1 if kind is ALONE else threads), "the rows were not cut as the table says"
        for what, array in several.items():
            if kind is ROUNDED:
                assert_close(array, one[what], f"{name}, {threads} threads: {what}", 1e-12)
            else:
                np.testing.assert_array_equal(array, one[what], err_msg=f"{name}, {threads} threads: {what}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_the_same_number_of_threads_gives_the_same_bits(name: str, dtype: type, cuts: list[int]):
    """Whichever thread is ready first."""
    for threads in (1, 2, 4, 8):
        first = run(name, threads, dtype)
        for _ in range(3):
            for what, array in run(name, threads, dtype).items():
                np.testing.assert_array_equal(array, first[what], err_msg=what)


def test_no_operation_is_missing():
    assert {name.split()[0] for name in CASES} == fused_with_kernel("cpu").keys(), "each with a CPU kernel has a case in CASES, above"
