"""Convolution on tensor cores, of a GPU or of the emulator: with one product as accurate as factors of 11 bits allow, with three as float32.

The emulator multiplies as `mma` instructions do and cuts sums off as harshly as tensor cores are known to (`tensor_core.cuh`). Read first:
`test_cuda_conv.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

import minigrad
from minigrad import Tensor
from minigrad.backend import cuda
from minigrad.fused import conv2d_tensor
from minigrad.fused.conv2d import conv2d, cuda_backward, cuda_forward
from minigrad.fused.windows import Geometry
from tests.cuda_device import ORDERS, on_cuda
from tests.fused.test_cuda_conv import conv_inputs, conv_values, packed_convolutions, uniform
from tests.support import draws, rng

pytestmark = pytest.mark.cuda

EPS = np.finfo(np.float32).eps


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to 11 significant bits, a tie to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def within_accuracy(ours: list[np.ndarray], single: list[np.ndarray], exact: list[np.ndarray], what: str) -> None:
    """The rule of `check_cuda`: at most twice the definition's own float32 error, and a few units in the last place."""
    for k, (a, definition, reference) in enumerate(zip(ours, single, exact, strict=True)):
        error, allowed = (np.abs(y.astype(np.float64) - reference).max(initial=0) for y in (a, definition))
        bound = 2 * allowed + 4 * EPS * np.abs(reference).max(initial=0)
        assert error <= bound, f"{what}, result {k}: error {error:.3g} > {bound:.3g} (definition: {allowed:.3g})"


def definition(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, dy: np.ndarray, values: dict, dtype: type) -> list[np.ndarray]:
    """y, dx and dweight by the definition."""
    inputs = [Tensor(a.astype(dtype), requires_grad=True) for a in (x, weight)]
    with minigrad.definitions():
        y = conv2d(*inputs, None if bias is None else Tensor(bias.astype(dtype)), **values)
        return [t.numpy() for t in (y, *minigrad.grad([y], inputs, [Tensor(dy.astype(dtype))]))]


def check_tf32(inputs: list, values: dict, seed: int = 0) -> None:
    """`precision("tf32")` equals the definition for factors rounded to tf32 (of y: x and weight; of dx: dy and weight; of dweight: x and dy)."""
    x, weight, bias = (None if a is None else a.astype(np.float32) for a in inputs)
    single = [None if a is None else Tensor(a) for a in (x, weight, bias)]
    dy = rng(seed + 1).uniform(-1, 1, conv2d(*single, **values).shape).astype(np.float32)
    references = [definition(tf32(x), tf32(weight), bias, tf32(dy), values, dtype) for dtype in (np.float32, np.float64)]
    with on_cuda(ORDERS), minigrad.precision("tf32"):
        tensors = [Tensor(a).to(device="cuda").requires_grad_() for a in (x, weight)]
        y = conv2d(*tensors, None if bias is None else Tensor(bias).to(device="cuda"), **values)
        ours = [t.data.get() for t in (y, *minigrad.grad([y], tensors, [Tensor(dy).to(device="cuda")]))]
    within_accuracy(ours, *references, "conv2d in tf32")


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "more images than one, of 16 channels": ({"batch": 3, "height": 8, "width": 6, "inputs": 16, "outputs": 16}, {"padding": 1}),
    "36 columns, stride, no bias": ({"height": 5, "width": 4, "inputs": 20, "outputs": 36, "bias": False}, {"padding": 1, "stride": 2}),
    "rows of a tile that end in the middle": ({"batch": 2, "height": 17, "width": 18, "outputs": 4}, {"padding": 1}),
    "patches": ({"inputs": 8, "outputs": 12, "kernel": (4, 4), "height": 9, "width": 8}, {"stride": 4}),
    "strided pointwise, phases without taps": ({"inputs": 8, "outputs": 12, "kernel": (1, 1)}, {"stride": 2}),
    "two groups, dilation": ({"inputs": 16, "outputs": 24, "groups": 2, "height": 7}, {"padding": (2, 1), "dilation": (2, 1)}),
}


@pytest.mark.parametrize("case", CASES)
def test_tf32(case):
    sizes, values = CASES[case]
    check_tf32(conv_inputs(**sizes), conv_values(**values, groups=sizes.get("groups", 1)))


def test_slices_of_several_tiles(monkeypatch: pytest.MonkeyPatch):
    """Two slices of three tiles. A block of the weight's gradient brings one after the other to the same memory, else for large images only."""
    monkeypatch.setattr(conv2d_tensor, "_BLOCKS", 2)
    check_tf32(conv_inputs(batch=3, height=9, width=9), conv_values(padding=1))


@draws(8)
@given(packed_convolutions())
def test_any_convolution_of_packs_in_tf32(drawn):
    check_tf32(*drawn)


@pytest.mark.parametrize("case", ["more images than one, of 16 channels", "36 columns, stride, no bias", "two groups, dilation"])
def test_three_products_are_as_accurate_as_float32(case):
    sizes, values = CASES[case]
    values = conv_values(**values, groups=sizes.get("groups", 1))
    x, weight, bias = (None if a is None else a.astype(np.float32) for a in conv_inputs(**sizes))
    g = Geometry.of(weight, *values.values())
    shape = (x.shape[0], *g.output_size(*x.shape[1:3]), weight.shape[0])
    dy = uniform(shape, seed=7)[0].astype(np.float32)
    single, exact = (definition(x, weight, bias, dy, values, dtype) for dtype in (np.float32, np.float64))
    with on_cuda():
        cp, by_group = cuda.array_module(), weight.reshape(g.groups, -1, *weight.shape[1:])
        y, dx = cp.empty(shape, np.float32), cp.empty(x.shape, np.float32)
        matrices = [cp.asarray(np.ascontiguousarray(by_group.transpose(axes))) for axes in ((0, 3, 4, 1, 2), (0, 3, 4, 2, 1))]
        on_device = [cp.asarray(a) for a in (x, dy)]
        conv2d_tensor.fill(on_device[0], matrices[0], None if bias is None else cp.asarray(bias), y, g, False, products=3)
        conv2d_tensor.fill(on_device[1], matrices[1], None, dx, g, True, products=3)
        partial = conv2d_tensor.partial_weight_gradient(*on_device, weight.shape, g, products=3).get().astype(np.float64)
    dweight = partial.sum(0).transpose(0, 3, 2, 1).reshape(weight.shape)  # (G, O/G, I/G, kh kw)
    within_accuracy([y.get(), dx.get(), dweight], single, exact, "three products")


def test_which_convolutions_take_tensor_cores():
    """Those of float32 in tf32 or bf16, whose channels come by fours, whose groups are not small, and whose kernel fits into shared memory."""

    def differ(name: str, dtype: type = np.float32, **sizes: Any) -> bool:
        """Are the products others than in precision float32?"""
        inputs = [a if a is None else Tensor(a.astype(dtype)).to(device="cuda") for a in conv_inputs(**sizes)]
        results = []
        for precision in (name, "float32"):
            with minigrad.precision(precision):
                results.append(conv2d(*inputs, padding=1, groups=sizes.get("groups", 1)).data.get())
        return not np.array_equal(*results)

    with on_cuda():
        assert differ("tf32") and differ("bf16") and differ("tf32", inputs=8, outputs=12)
        assert not differ("tf32", np.float64)
        assert not differ("tf32", inputs=6)
        assert not differ("tf32", groups=4, inputs=16, outputs=16)
        assert not differ("tf32", kernel=(8, 6), height=8, outputs=20)


def test_nan_is_not_lost_in_rounding():
    """A GPU's own nan has all bits set: added to, as integers are, it would be zero."""
    x = np.ones((1, 6, 6, 4), np.float32)
    x[0, 0, 0, 1] = np.array(0x7FFFFFFF, np.uint32).view(np.float32)
    weight = np.ones((4, 4, 3, 3), np.float32)
    with on_cuda(), minigrad.precision("tf32"):
        cp = cuda.array_module()
        y, saved = cuda_forward(cp.asarray(x), cp.asarray(weight), None, 1, 0, 1, 1)
        assert np.isnan(y.get()[0, 0, 0]).all() and np.isfinite(y.get()[0, 1:]).all()
        dy = cp.asarray(np.full(y.shape, 0.5, np.float32))
        dx, dweight, _ = cuda_backward(dy, saved, [True, True, False])
        assert np.isnan(dweight.get()[:, 1, 0, 0]).all() and np.isfinite(dweight.get()[:, 0]).all() and np.isfinite(dx.get()).all()
