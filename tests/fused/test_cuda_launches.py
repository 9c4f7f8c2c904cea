"""The CUDA kernels are launched with the blocks and the shared memory they need and not more. A grid that is too small leaves numbers unwritten, and
other tests see it; one that is too large only takes time, which they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, random
from minigrad.backend import cuda
from minigrad.fused.attention import scaled_dot_product_attention
from minigrad.fused.avg_pool2d import avg_pool2d, global_avg_pool2d
from minigrad.fused.batch_norm import batch_norm
from minigrad.fused.conv2d import conv2d
from minigrad.fused.cross_entropy import cross_entropy
from minigrad.fused.dropout import cuda_keep_mask, drop_path, dropout
from minigrad.fused.gelu import gelu
from minigrad.fused.layer_norm import layer_norm
from minigrad.fused.linear import linear
from minigrad.fused.log_softmax import log_softmax
from minigrad.fused.max_pool2d import max_pool2d
from minigrad.fused.softmax import softmax
from minigrad.fused.upsample_nearest import upsample_nearest
from minigrad.op import Fused
from tests.support import rng

PADDING = 16  # bytes that may be unused at the end of shared memory: rows there are longer than what they hold


def wasteful(op: Fused, inputs: Sequence[Any], wanted: Sequence[int] = (0,), **values: Any) -> list:
    """The launches, forward and backward in float32, with blocks or shared memory that nothing comes of.

    inputs: shapes, arrays that are no floats, or None. wanted: which of them gradients are for.
    """

    def tensor(k: int, given: Any) -> Tensor | None:
        if given is None:
            return None
        array = given if isinstance(given, np.ndarray) else rng(k).uniform(0.5, 1, given).astype(np.float32)
        return Tensor(array).to(device="cuda").requires_grad_(k in wanted)

    with cuda.emulated() as device:
        tensors = [tensor(k, given) for k, given in enumerate(inputs)]
        y = op(*tensors, **values)
        y = y[0] if isinstance(y, tuple) else y
        upstream = Tensor(rng(99).standard_normal(y.shape).astype(np.float32)).to(device="cuda")
        minigrad.grad([y], [t for t in tensors if t is not None and t.requires_grad], [upstream])
        assert device.launches
        return [(kernel, waste) for kernel, waste in device.wasteful if waste.idle_blocks or waste.unused_shared > PADDING]


# Sizes at a multiple of what a block works on, and just behind one: a block more, or one for every half of what there is, is then one too many.


@pytest.mark.parametrize("shape", [(1024,), (1028,), (4, 257), (256,)])
def test_gelu_and_dropout(shape):
    assert wasteful(gelu, [shape]) == []
    assert wasteful(dropout, [shape, rng(1).random(shape) < 0.5], p=0.5) == []
    assert wasteful(drop_path, [(3, *shape), np.array([True, False, True])], p=0.5) == []


@pytest.mark.parametrize("size", [2048, 2049])
def test_dropout_s_mask(size):
    with cuda.emulated() as device:
        cuda_keep_mask(random.generator("test", 0), (size,), 0.5)
        assert device.launches and device.wasteful == []


@pytest.mark.parametrize("shape", [(4, 32), (5, 33), (128, 128), (64, 65)])
def test_layer_norm(shape):
    assert wasteful(layer_norm, [shape, shape[-1:], shape[-1:]], (0, 1, 2)) == []


@pytest.mark.parametrize("op", [softmax, log_softmax])
@pytest.mark.parametrize(("shape", "axis"), [((4, 32), 1), ((5, 33), 1), ((3, 1028), 1), ((3, 1025), -1), ((2, 3, 64), 1), ((1, 3, 129), 1)])
def test_softmax_and_log_softmax(op, shape, axis):
    assert wasteful(op, [shape], axis=axis) == []


@pytest.mark.parametrize(("batch", "classes"), [(4, 10), (5, 3), (8, 1024), (3, 1025)])
def test_cross_entropy(batch, classes):
    assert wasteful(cross_entropy, [(batch, classes), rng(0).integers(0, classes, batch)]) == []
    assert wasteful(cross_entropy, [(batch, classes), (batch, classes)], (0, 1), label_smoothing=0.1) == []


@pytest.mark.parametrize(("rows", "features"), [(32, 128), (33, 129), (64, 32), (1, 33)])
def test_linear(rows, features):
    assert wasteful(linear, [(rows, 3), (features, 3), (features,)], (0, 1, 2)) == []


@pytest.mark.parametrize("op", [avg_pool2d, max_pool2d])
@pytest.mark.parametrize(("shape", "kernel"), [((2, 6, 86, 4), 2), ((2, 4, 66, 4), 2), ((1, 2, 128, 12), 1), ((1, 2, 43, 3), 1)])
def test_avg_pool2d_and_max_pool2d(op, shape, kernel):
    assert wasteful(op, [shape], kernel_size=kernel) == []


@pytest.mark.parametrize("channels", [32, 33])
def test_global_avg_pool2d(channels):
    assert wasteful(global_avg_pool2d, [(2, 3, 3, channels)]) == []


@pytest.mark.parametrize(("shape", "factors"), [((2, 2, 64, 4), (3, 2)), ((1, 2, 43, 3), 1), ((1, 1, 129, 4), (2, 1))])
def test_upsample_nearest(shape, factors):
    assert wasteful(upsample_nearest, [shape], scale_factor=factors) == []


@pytest.mark.parametrize("shape", [(2, 3, 23, 5), (2, 8, 8, 64), (65, 1, 1, 260), (9, 3, 3, 257)])
def test_batch_norm(shape):
    vector = shape[-1:]
    assert wasteful(batch_norm, [shape, vector, vector, None, None, shape], (0, 1, 2, 5), relu=True) == []
    assert wasteful(batch_norm, [shape, vector, vector, vector, vector], (0, 1, 2)) == []


@pytest.mark.parametrize("tokens", [(16, 33), (64, 64), (65, 17), (130, 5)])
@pytest.mark.parametrize("width", [8, 132])
def test_attention(tokens, width):
    own, others = ((1, 2, n, width) for n in tokens)
    assert wasteful(scaled_dot_product_attention, [own, others, others], (0, 1, 2)) == []


@pytest.mark.parametrize(
    ("shape", "weight", "values"),
    [
        ((2, 8, 8, 8), (64, 8, 3, 3), {"padding": 1}),
        ((1, 9, 15, 4), (36, 4, 3, 3), {"padding": 1}),
        ((2, 8, 16, 16), (16, 16, 2, 2), {"stride": 2}),
        ((1, 17, 16, 3), (65, 3, 2, 2), {}),
        ((1, 12, 12, 32), (32, 16, 3, 3), {"groups": 2}),
        ((1, 12, 11, 6), (6, 1, 3, 3), {"groups": 6, "padding": 1}),
        ((2, 4, 4, 8), (12, 8, 1, 1), {}),
    ],
)
def test_conv2d(shape, weight, values):
    assert wasteful(conv2d, [shape, weight, weight[:1]], (0, 1, 2), **values) == []
