"""Every fused operation on a GPU at the shapes of real training, batch 512: grids of many thousand blocks, sums over half a million rows.

The rule is that of the proofs: in float32 the kernel is about as accurate as the definition, both against the definition in float64, which runs on
the GPU too (and is what it is on the CPU: the proofs). Every launch is done twice and must give the same bits. Read next: `test_copies.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from minigrad.backend import cuda
from minigrad.op import REGISTRY
from tests.cuda_device import on_cuda
from tests.proofs import Bound, all_proofs
from tests.support import fused_with_kernel, rng

BATCH = 512  # of CIFAR images; an eighth of it where images are 224 pixels wide

Case = tuple[str, list[Any], dict[str, Any]]
"""An operation, the shapes of its inputs (None: left out; in a list: a mask of booleans), and its plain values."""

CIFAR: list[Case] = [  # cifar-micro
    ("conv2d", [("B", 32, 32, 3), (64, 3, 3, 3)], {"padding": 1}),
    ("conv2d", [("B", 32, 32, 16), (16, 16, 3, 3)], {"padding": 1}),
    ("conv2d", [("B", 32, 32, 64), (32, 64, 3, 3)], {"padding": 1, "stride": 2}),
    ("conv2d", [("B", 32, 32, 64), (128, 64, 4, 4), (128,)], {"stride": 4}),
    ("conv2d", [("B", 16, 16, 128), (64, 128, 1, 1), (64,)], {}),
    ("linear", [("B", 65, 128), (512, 128), (512,)], {}),
    ("batch_norm", [("B", 32, 32, 64), (64,), (64,), None, None, ("B", 32, 32, 64)], {"relu": True}),
    ("batch_norm", [("B", 16, 16, 32), (32,), (32,)], {}),
    ("layer_norm", [("B", 65, 128), (128,), (128,)], {}),
    ("gelu", [("B", 65, 512)], {}),
    ("softmax", [("B", 4, 65, 65)], {"axis": -1}),
    ("log_softmax", [("B", 1000)], {"axis": 1}),
    ("cross_entropy", [("B", 10), "labels"], {"label_smoothing": 0.1}),
    ("scaled_dot_product_attention", [("B", 4, 65, 32), ("B", 4, 65, 32), ("B", 4, 65, 32)], {}),
    ("avg_pool2d", [("B", 32, 32, 64)], {"kernel_size": 4}),
    ("global_avg_pool2d", [("B", 8, 8, 256)], {}),
    ("upsample_nearest", [("B", 8, 8, 64)], {"scale_factor": 4}),
    ("dropout", [("B", 65, 128), [("B", 65, 128)]], {"p": 0.1}),
    ("drop_path", [("B", 65, 128), [("B",)]], {"p": 0.1}),
]
IMAGENET: list[Case] = [  # tiny-patch16
    ("conv2d", [("B", 224, 224, 3), (64, 3, 7, 7)], {"padding": 3, "stride": 2}),
    ("conv2d", [("B", 56, 56, 64), (64, 64, 3, 3)], {"padding": 1}),
    ("batch_norm", [("B", 112, 112, 64), (64,), (64,)], {"relu": True}),
    ("max_pool2d", [("B", 112, 112, 64)], {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("layer_norm", [("B", 197, 384), (384,), (384,)], {}),
    ("scaled_dot_product_attention", [("B", 6, 197, 64), ("B", 6, 197, 64), ("B", 6, 197, 64)], {}),
    ("upsample_nearest", [("B", 14, 14, 64)], {"scale_factor": 4}),
]


@pytest.fixture
def memory_is_given_back() -> Iterator[None]:
    """Several processes share the GPU, and definitions of large images take some gigabytes."""
    yield
    cuda.array_module().get_default_memory_pool().free_all_blocks()


def bound_of(name: str) -> Bound:
    """What the proof of an operation allows its kernel in float32."""
    return next(proof.float32_bound for proof in all_proofs() if proof.op is REGISTRY[name] and not proof.variant)


def inputs_of(shapes: list[Any], batch: int) -> list[Any]:
    """float32 arrays on the GPU, labels, and, for a shape in a list, masks of booleans."""
    generator, made, cp = rng(1), [], cuda.array_module()
    for shape in shapes:
        if shape is None:
            made.append(None)
        elif shape == "labels":
            made.append(cp.asarray(generator.integers(0, 10, batch)))
        elif isinstance(shape, list):
            made.append(cp.asarray(generator.random([batch if n == "B" else n for n in shape[0]]) < 0.9))
        else:
            sizes = [batch if n == "B" else n for n in shape]
            scale = 1.0 if "B" in shape or len(sizes) == 1 else np.prod(sizes[1:]) ** -0.5  # of weights, as they are initialised
            made.append(cp.asarray(generator.standard_normal(sizes, np.float32) * np.float32(scale)))
    return made


def run(op: Any, inputs: list[Any], values: dict[str, Any], dtype: type, upstream: Any) -> list[Any]:
    """First output and all gradients, arrays on the GPU; `upstream` is made by the first call and given to the others."""
    tensors = [None if x is None else Tensor(x if x.dtype.kind != "f" else x.astype(dtype)) for x in inputs]
    leaves = [x.requires_grad_() for x in tensors if x is not None and x.dtype.kind == "f"]
    out = op(*tensors, **values)
    y = out[0] if isinstance(out, tuple) else out
    gradients = minigrad.grad([y], leaves, [Tensor(upstream(y.shape).astype(dtype))])
    return [y.data, *[g.data for g in gradients if g is not None]]


def check(case: Case, batch: int) -> None:
    name, shapes, values = case
    op, bound = REGISTRY[name], bound_of(name)
    given: dict[tuple, Any] = {}

    def upstream(shape: tuple[int, ...]) -> Any:
        if shape not in given:
            given[shape] = cuda.array_module().asarray(rng(2).uniform(-1, 1, shape).astype(np.float32))
        return given[shape]

    with on_cuda(("ascending", "descending")) as device:
        inputs = inputs_of(shapes, batch)
        with minigrad.definitions():
            exact = run(op, inputs, values, np.float64, upstream)
            definition = run(op, inputs, values, np.float32, upstream)
        before = device.launches
        kernel = run(op, inputs, values, np.float32, upstream)
        assert device.launches > before, f"{name} has launched no kernel"
        for k, (ours, plain, reference) in enumerate(zip(kernel, definition, exact, strict=True)):
            assert ours.dtype == np.float32 and ours.shape == reference.shape
            error, allowed = (float(np.abs(x - reference).max()) for x in (ours, plain))
            most = bound.factor * allowed + bound.units * float(np.finfo(np.float32).eps) * float(np.abs(reference).max())
            assert error <= most, f"{name}, {'output' if k == 0 else f'gradient {k - 1}'}: {error:.3g} > {most:.3g} (definition: {allowed:.3g})"


def identify(case: Case) -> str:
    return f"{case[0]} {'x'.join(map(str, case[1][0]))}"


@pytest.mark.gpu
@pytest.mark.usefixtures("memory_is_given_back")
@pytest.mark.parametrize("case", CIFAR, ids=identify)
def test_as_accurate_as_the_definition_with_512_images(case: Case):
    check(case, BATCH)


@pytest.mark.gpu
@pytest.mark.usefixtures("memory_is_given_back")
@pytest.mark.parametrize("case", IMAGENET, ids=identify)
def test_as_accurate_as_the_definition_with_large_images(case: Case):
    check(case, max(BATCH // 8, 1))


def test_every_operation_with_a_cuda_kernel_is_among_them():
    assert {name for name, _, _ in CIFAR + IMAGENET} == fused_with_kernel("cuda").keys(), "add the new operation to CIFAR or IMAGENET, above"
