"""conv2d against PyTorch: shapes are built from the output's size outwards, so that every drawn case is a possible one and every code path is met.

The kernels' paths: pointwise (no columns), windows that tile the image (assigned back), windows that overlap (added back), windows one pixel apart,
with and without dx wanted (columns of dy, columns of x), padding beyond the kernel's reach (columns of x), groups; each with one buffer of columns or
several in turn, and with products in one piece or in chunks with a remainder. Read next: minigrad/fused/conv2d.py.
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.conv2d import conv2d
from tests.support import assert_close, check_op, rng

page = sys.modules[conv2d.__module__]

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def in_torch(stride=1, padding=0, dilation=1, groups=1):
    """PyTorch's convolution, seen through (B, H, W, C)."""

    def function(x, weight, bias):
        return torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation, groups).permute(0, 2, 3, 1)

    return function


def draw_case(draw, kernel, stride, padding, dilation, groups, batch):
    """Inputs and values for a drawn output size; the last window may leave a remainder of less than a stride."""
    size = []
    for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True):
        fitted = (draw(st.integers(1, 3)) - 1) * s + d * (k - 1) + 1 - 2 * p + draw(st.integers(0, s - 1))
        size.append(max(fitted, 1))
    inputs, outputs = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    numbers = rng(draw(st.integers(0, 2**32 - 1)))
    x = numbers.uniform(-1, 1, (batch, *size, inputs))
    weight = numbers.uniform(-1, 1, (outputs, inputs // groups, *kernel))
    bias = numbers.uniform(-1, 1, outputs) if draw(st.booleans()) else None
    return [x, weight, bias], {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@st.composite
def cases(draw):
    kernel, stride, dilation = draw(pairs), draw(st.just((1, 1)) | pairs), draw(st.just((1, 1)) | pairs)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = draw(st.just((0, 0)) | st.tuples(*(st.integers(0, r + 1) for r in reach)))
    return draw_case(draw, kernel, stride, padding, dilation, draw(st.integers(1, 3)), draw(st.integers(1, 2)))


@st.composite
def pointwise_cases(draw):
    stride = draw(st.just((1, 1)) | pairs)
    return draw_case(draw, (1, 1), stride, (0, 0), (1, 1), draw(st.integers(1, 3)), draw(st.integers(1, 3)))


@st.composite
def patch_cases(draw):
    kernel = draw(pairs)
    return draw_case(draw, kernel, kernel, (0, 0), (1, 1), draw(st.integers(1, 2)), draw(st.integers(1, 2)))


@settings(max_examples=40)
@given(cases())
def test_any_window(case):
    inputs, values = case
    check_op(conv2d, in_torch(**values), inputs, values)


@settings(max_examples=15)
@given(pointwise_cases())
def test_1x1(case):
    inputs, values = case
    check_op(conv2d, in_torch(**values), inputs, values)


@settings(max_examples=15)
@given(patch_cases())
def test_kernel_equal_to_stride(case):
    inputs, values = case
    check_op(conv2d, in_torch(**values), inputs, values)


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 2), st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_depthwise(channels, multiplier, padding, seed):
    numbers = rng(seed)
    inputs = [numbers.uniform(-1, 1, (2, 4, 3, channels)), numbers.uniform(-1, 1, (channels * multiplier, 1, 3, 3)), None]
    values = {"padding": padding, "groups": channels}
    check_op(conv2d, in_torch(**values), inputs, values)


def random_inputs(batch=2, height=5, width=6, inputs=2, outputs=3, kernel=(3, 3), groups=1, seed=0):
    numbers = rng(seed)
    return [
        numbers.uniform(-1, 1, (batch, height, width, inputs)),
        numbers.uniform(-1, 1, (outputs, inputs // groups, *kernel)),
        numbers.uniform(-1, 1, outputs),
    ]


each_path = pytest.mark.parametrize(
    ("kernel", "values"),
    [
        pytest.param((1, 1), {}, id="pointwise"),
        pytest.param((3, 3), {"padding": 1}, id="same size"),
        pytest.param((3, 3), {"padding": 3}, id="padding beyond reach"),
        pytest.param((3, 3), {"padding": 1, "stride": 2}, id="strided"),
        pytest.param((2, 2), {"stride": 2}, id="tiles"),
        pytest.param((3, 3), {"groups": 2}, id="groups"),
    ],
)


@each_path
@pytest.mark.parametrize("needs", [n for n in product((True, False), repeat=3) if any(n)])
def test_only_the_gradients_that_are_needed(kernel, values, needs):
    inputs = random_inputs(outputs=4, kernel=kernel, groups=values.get("groups", 1))
    check_op(conv2d, in_torch(**values), inputs, values, needs=needs, second=False)
    y, saved = page.cpu_forward(*inputs, *({"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | values).values())
    assert saved[0] is inputs[0] and saved[1] is inputs[1]
    assert tuple(gradient is not None for gradient in page.cpu_backward(y, saved, needs)) == needs


@each_path
@pytest.mark.parametrize("batch", [0, 1])
def test_batch_of_none_and_of_one(kernel, values, batch):
    inputs = random_inputs(batch, outputs=4, kernel=kernel, groups=values.get("groups", 1))
    check_op(conv2d, in_torch(**values), inputs, values, second=batch > 0)


def test_one_pixel_one_channel():
    inputs = random_inputs(1, 1, 1, 1, 1, (3, 3))
    check_op(conv2d, in_torch(padding=1), inputs, {"padding": 1})


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("values", [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 3}, {"stride": 3}])
def test_several_buffers_of_columns(monkeypatch, groups, values):
    """Seven images shared out by three or four, at most two of them in a buffer."""
    values = {**values, "groups": groups}
    inputs = random_inputs(7, inputs=2, outputs=4, groups=groups)
    rows, columns = conv2d(*map(Tensor, inputs), **values).shape[1:3]
    monkeypatch.setattr(page, "COLUMN_BYTES", 2 * rows * columns * 9 * 2 * 8)
    monkeypatch.setattr(page, "_grain", lambda y, weight: 3)
    check_op(conv2d, in_torch(**values), inputs, values, second=False)


@pytest.mark.parametrize(("kernel", "outputs"), [((1, 1), 2), ((1, 1), 6), ((3, 3), 4)])
@pytest.mark.parametrize("groups", [1, 2])
def test_products_in_chunks(monkeypatch, kernel, outputs, groups):
    """Chunks of 64 rows, and what is left over; the weight's gradient with either operand the wider one."""
    chunks, cut = page._chunks, []
    monkeypatch.setattr(page, "SMALL_PRODUCT", 64 * kernel[0] * kernel[1] * (4 // groups) * (outputs // groups))
    monkeypatch.setattr(page, "_chunks", lambda rows, chunk: cut.append((rows.shape[1], chunk)) or chunks(rows, chunk))
    monkeypatch.setattr(page, "_grain", lambda y, weight: 1000)
    values = {"groups": groups, "padding": kernel[0] // 2}
    inputs = random_inputs(3, 7, 9, 4, outputs, kernel, groups)  # 189 rows
    check_op(conv2d, in_torch(**values), inputs, values, second=False)
    assert set(cut) == {(128, 64)}


def test_numbers_pairs_and_lists_mean_the_same():
    x, weight, _ = map(Tensor, random_inputs())
    expected = conv2d(x, weight, None, (2, 2), (1, 1), (1, 1)).numpy()
    for two, one in ((2, 1), ([2, 2], [1, 1]), (np.int64(2), np.int64(1))):
        np.testing.assert_array_equal(conv2d(x, weight, stride=two, padding=one, dilation=one).numpy(), expected)


@pytest.mark.parametrize("values", [{"padding": 1}, {"padding": 1, "stride": 2}, {"stride": 3}])
def test_float32_is_as_accurate_as_the_definition(values):
    """At a shape of the network: error of the kernel at most twice the definition's, and four units in the last place of the largest value."""
    inputs = random_inputs(4, 16, 16, 12, 12)
    exact = run(inputs, values)
    single = [a.astype(np.float32) for a in inputs]
    with minigrad.definitions():
        definition = run(single, values)
    for kernel, defined, reference in zip(run(single, values), definition, exact, strict=True):
        assert kernel.dtype == np.float32
        floor = 4 * np.finfo(np.float32).eps * np.abs(reference).max()
        assert np.abs(kernel - reference).max() <= 2 * np.abs(defined - reference).max() + floor


def run(inputs, values):
    """The output and the three gradients, as arrays."""
    tensors = [Tensor(a, requires_grad=True) for a in inputs]
    y = conv2d(*tensors, **values)
    y.backward(Tensor(rng(1).uniform(-1, 1, y.shape).astype(y.dtype)))
    return [y.numpy(), *(t.grad.numpy() for t in tensors)]


def test_the_kernel_slides_without_being_turned():
    """By hand: a row of pixels 1 2 3 seen through (10, 1) is 12, 23."""
    x, weight = Tensor(np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)), Tensor(np.array([10.0, 1.0]).reshape(1, 1, 1, 2))
    assert_close(conv2d(x, weight), np.array([12.0, 23.0]).reshape(1, 1, 2, 1))


@pytest.mark.parametrize(
    ("x", "weight", "values", "message"),
    [
        ((2, 8, 8, 3), (16, 16, 3, 3), {}, r"conv2d: x has 3 channels, weight expects 16 \(weight shape \(16, 16, 3, 3\)\)$"),
        ((2, 8, 8, 3), (4, 2, 3, 3), {"groups": 2}, r"conv2d: x has 3 channels, weight expects 4 \(weight shape \(4, 2, 3, 3\), groups=2\)$"),
        ((2, 3, 8, 8), (16, 3, 3, 3), {}, r"expects 3 .*; x of shape \(2, 3, 8, 8\) looks like \(B, C, H, W\).*pass x\.transpose\(0, 2, 3, 1\)$"),
        ((8, 8, 3), (16, 3, 3, 3), {}, r"conv2d: x is \(B, H, W, I\) and weight .*got x of shape \(8, 8, 3\) and weight of shape \(16, 3, 3, 3\)"),
        ((2, 8, 8, 3), (16, 27), {}, r"conv2d: .*weight of shape \(16, 27\)"),
        ((2, 8, 8, 3), (16, 3, 0, 3), {}, r"conv2d: .*weight of shape \(16, 3, 0, 3\)"),
        ((2, 8, 8, 4), (3, 2, 3, 3), {"groups": 2}, r"conv2d: groups=2 does not divide the 3 output channels \(weight shape \(3, 2, 3, 3\)\)"),
        ((2, 8, 8, 4), (3, 4, 3, 3), {"groups": 0}, r"conv2d: groups=0 does not divide"),
        ((2, 2, 8, 3), (4, 3, 3, 3), {}, r"conv2d: the window spans 3x3 pixels .*only 2x8 \(x shape \(2, 2, 8, 3\), padding \(0, 0\)\)"),
        ((2, 4, 8, 3), (4, 3, 3, 3), {"dilation": 3, "padding": 1}, r"spans 7x7 pixels \(kernel \(3, 3\), dilation \(3, 3\)\), .*only 6x10"),
        ((2, 8, 8, 3), (4, 3, 3, 3), {"stride": 0}, r"conv2d: stride is a whole number of at least 1 or a pair of them, got 0"),
        ((2, 8, 8, 3), (4, 3, 3, 3), {"padding": (1, -1)}, r"conv2d: padding is a whole number of at least 0 .*got \(1, -1\)"),
        ((2, 8, 8, 3), (4, 3, 3, 3), {"dilation": (1, 1, 1)}, r"conv2d: dilation is .*got \(1, 1, 1\)"),
        ((2, 8, 8, 3), (4, 3, 3, 3), {"stride": 1.5}, r"conv2d: stride is .*got 1\.5"),
        ((2, 8, 8, 3), (4, 3, 3, 3), {"bias": Tensor(np.zeros(3))}, r"conv2d: weight has 4 output channels, bias has shape \(3,\)"),
    ],
)
def test_what_does_not_fit_raises(x, weight, values, message):
    x, weight = Tensor(np.zeros(x)), Tensor(np.zeros(weight))
    with pytest.raises(ValueError, match=message):
        conv2d(x, weight, **values)
    with minigrad.definitions(), pytest.raises(ValueError, match=message):
        conv2d(x, weight, **values)


def test_bytes_are_not_images_yet():
    with pytest.raises(TypeError, match=r"conv2d: x is uint8, weight float32; pass x\.astype\('float32'\)"):
        conv2d(Tensor(np.zeros((1, 4, 4, 3), np.uint8)), Tensor(np.zeros((2, 3, 3, 3), np.float32)))
