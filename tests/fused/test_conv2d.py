"""conv2d: shapes are built from the output's size outwards, so that every drawn case is a possible one and every code path is met.

The kernels' paths: pointwise (no columns), windows that tile the image (assigned back), windows that overlap (added back), windows one pixel apart,
with and without dx wanted (columns of dy, columns of x), padding beyond the kernel's reach (columns of x), groups; each with one buffer of columns or
several in turn, and with products in one piece or in chunks with a remainder, or in parts, one for each row of the kernel. Read next:
minigrad/fused/conv2d.py.
"""

from __future__ import annotations

import sys
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from minigrad import Tensor, definitions, enable_grad, grad
from minigrad.fused.conv2d import conv2d
from tests.cuda_device import on_cuda
from tests.proofs import Case, Proof, Refusal
from tests.support import assert_close, lengths, rng

PAGE = sys.modules[conv2d.__module__]
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


def in_torch(x: Any, weight: Any, bias: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> torch.Tensor:
    """PyTorch's convolution, seen through (B, H, W, C). Without oneDNN, which reads beyond a channels_last float32 image that is smaller than its
    padded window, and ends the process: https://github.com/pytorch/pytorch/issues/195394.
    """
    onednn = torch.backends.mkldnn  # its context manager `flags` also sets TF32 for Intel's GPUs, and warns that there is none
    before, onednn.enabled = onednn.enabled, False
    try:
        return torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation, groups).permute(0, 2, 3, 1)
    finally:
        onednn.enabled = before


def case(batch=2, height=5, width=6, inputs=2, outputs=4, kernel=(3, 3), bias=True, seed=0, around=0.0, **values: Any) -> Case:
    numbers = rng(seed)
    x = numbers.uniform(around - 1, around + 1, (batch, height, width, inputs))
    weight = numbers.uniform(-1, 1, (outputs, inputs // values.get("groups", 1), *kernel))
    return Case([x, weight, numbers.uniform(-1, 1, outputs) if bias else None], values)


@st.composite
def cases(draw: Any) -> Case:
    """Any window, a 1x1 convolution, patches (kernel and stride the same), one group per channel; at least one output pixel, and a remainder that
    fills no window.
    """
    kind = draw(st.sampled_from(["any", "any", "any", "pointwise", "patches", "depthwise"]))
    kernel = (1, 1) if kind == "pointwise" else draw(pairs)
    stride = kernel if kind == "patches" else draw(st.just((1, 1)) | pairs)
    dilation = draw(st.just((1, 1)) | pairs) if kind in ("any", "depthwise") else (1, 1)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    most = [0, 0] if kind in ("pointwise", "patches") else [r + 1 for r in reach]
    padding = draw(st.just((0, 0)) | st.tuples(*(st.integers(0, p) for p in most)))
    groups = draw(st.sampled_from([2, 1, 3, 1]))
    inputs = groups * (1 if kind == "depthwise" else draw(st.sampled_from([2, 1, 2])))
    sizes = [
        max((draw(st.integers(1, 3)) - 1) * s + r + 1 - 2 * p + draw(st.integers(0, s - 1)), 1)
        for s, r, p in zip(stride, reach, padding, strict=True)
    ]
    values = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    outputs, seed = groups * draw(st.sampled_from([2, 1, 2])), draw(st.integers(0, 9999))
    return case(draw(lengths(2, 2)), *sizes, inputs, outputs, kernel, draw(st.booleans()), seed, **values)


PATHS: dict[str, dict[str, Any]] = {
    "pointwise": {"kernel": (1, 1)},
    "same size": {"padding": 1},
    "padding beyond reach": {"padding": 3},
    "rows beyond reach": {"kernel": (1, 3), "padding": (1, 0)},
    "columns beyond reach": {"kernel": (3, 1), "padding": (0, 1)},
    "strided": {"padding": 1, "stride": 2},
    "strided pointwise": {"kernel": (1, 1), "stride": 2},
    "strided, rows padded": {"padding": (1, 0), "stride": 2},
    "strided, columns padded": {"padding": (0, 1), "stride": 2},
    "overlapping rows": {"kernel": (3, 1), "stride": (2, 3)},
    "tiles": {"kernel": (2, 2), "stride": 2},
    "gaps": {"kernel": (2, 2), "stride": 3},
    "dilated": {"kernel": (2, 3), "dilation": 2, "padding": (1, 2)},
    "groups": {"inputs": 4, "outputs": 6, "groups": 2},
    "groups, all at once": {"inputs": 4, "groups": 2, "kernel": (2, 3), "stride": (2, 1), "dilation": (1, 2), "padding": 1},
    "depthwise": {"inputs": 4, "outputs": 8, "groups": 4, "padding": 1},
}


IN_PARTS: dict[str, dict[str, Any]] = {
    **{path: PATHS[path] for path in ("same size", "padding beyond reach", "dilated")},
    "without padding": {"inputs": 4},
    "5x3": {"kernel": (5, 3), "padding": (2, 1)},
    "2x4": {"kernel": (2, 4), "padding": (0, 3)},
    "padded by more than the images are": {"kernel": (3, 3), "height": 1, "width": 1, "padding": 2},
    "one column": {"width": 1, "padding": 1},
    "every other column": {"kernel": (3, 3), "stride": (1, 2), "padding": 1},
    "dilated, one pair of columns": {"kernel": (2, 2), "dilation": (3, 5)},
    "wide": {"inputs": 1, "outputs": 3, "padding": 1},
}
"""Windows that can be cut into parts."""


def refusal(
    x: tuple[int, ...], weight: tuple[int, ...], message: str, bias: int | None = None, in_torch: bool | str = True, **values: Any
) -> Refusal:
    return Refusal(Case([np.zeros(x), np.zeros(weight), None if bias is None else np.zeros(bias)], values), ValueError, message, in_torch)


class TestConv2d(Proof):
    op = conv2d
    in_torch = staticmethod(in_torch)
    cases, share = cases(), 0.8
    examples = [
        *[case(1, **values) for values in PATHS.values()],
        case(0, padding=1),
        case(0, 0, padding=2),
        case(1, 1, 1, 1, 1, (3, 3), padding=1),
        case(1, kernel=(1, 1), padding=(1, 0)),  # not every window is a pixel
        case(1, kernel=(1, 1), padding=(0, 1)),
        case(1, 3, 3, 2, 2, (3, 3)),  # one window
        case(2, 3, 3, 3, 2, (3, 3), bias=False),  # x could be the weight
    ]
    keeps = {wanted: "x weight bias" for wanted in ("x weight bias", "x weight", "x bias", "weight bias", "x", "weight", "bias")}
    float32 = [  # stage by stage: 3x3 and 1x1 convolutions, the stem, patches, projections
        case(2, 16, 16, 12, 12, (3, 3), False, padding=1),
        case(2, 16, 16, 48, 12, (1, 1), False),
        case(2, 16, 16, 24, 24, (3, 3), False, padding=1, stride=2),
        case(2, 32, 32, 3, 64, (3, 3), False, padding=1, stride=2),
        case(1, 32, 32, 3, 64, (7, 7), False, padding=3, stride=2),
        case(2, 16, 16, 64, 96, (4, 4), stride=4),
        case(2, 8, 8, 96, 192, (1, 1), False, stride=2),
        case(2, 16, 16, 12, 12, stride=3),
        case(1, 10, 10, 3, 64, (7, 7), False, padding=3, stride=2),  # a small image for the emulator, which takes 12 seconds for both stems
        case(1, 64, 64, 8, 8, (3, 3), False, padding=1, around=1.0),  # many pixels, whose products in dweight are added up
    ]
    emulated = 0, 2, 7, 8
    pins = "It is linear in each of its inputs: there are no kinks."
    errors = [
        refusal((2, 8, 8, 3), (16, 16, 3, 3), r"conv2d: x has 3 channels, weight expects 16 \(weight shape \(16, 16, 3, 3\)\)$"),
        refusal((2, 8, 8, 3), (4, 2, 3, 3), r"conv2d: x has 3 channels, weight expects 4 \(weight shape \(4, 2, 3, 3\), groups=2\)$", groups=2),
        refusal((2, 3, 8, 8), (16, 3, 3, 3), r"expects 3 .*; x of shape \(2, 3, 8, 8\) looks like \(B, C, H, W\).*pass x\.transpose\(0, 2, 3, 1\)$"),
        refusal((8, 8, 3), (16, 3, 3, 3), r"conv2d: x is \(B, H, W, I\) and weight .*got x of shape \(8, 8, 3\) and weight of shape \(16, 3, 3, 3\)"),
        refusal((2, 8, 8, 3), (16, 27), r"conv2d: .*weight of shape \(16, 27\)"),
        refusal((2, 8, 8, 3), (16, 3, 0, 3), r"conv2d: .*weight of shape \(16, 3, 0, 3\)"),
        refusal((2, 8, 8, 3), (0, 3, 3, 3), r"conv2d: .*weight of shape \(0, 3, 3, 3\)"),
        refusal((2, 8, 8, 4), (3, 2, 3, 3), r"conv2d: groups=2 does not divide the 3 output channels \(weight shape \(3, 2, 3, 3\)\)", groups=2),
        refusal((2, 8, 8, 4), (3, 4, 3, 3), r"conv2d: groups=0 does not divide", groups=0),
        refusal((2, 8, 8, 4), (4, 2, 3, 3), r"conv2d: groups must be a whole number, it is 2\.0$", groups=2.0),
        refusal((2, 2, 8, 3), (4, 3, 3, 3), r"conv2d: the window spans 3x3 pixels .*only 2x8 \(x shape \(2, 2, 8, 3\), padding \(0, 0\)\)"),
        refusal((2, 4, 8, 3), (4, 3, 3, 3), r"spans 7x7 pixels \(kernel \(3, 3\), dilation \(3, 3\)\), .*only 6x10", dilation=3, padding=1),
        refusal((2, 0, 8, 3), (4, 3, 3, 3), r"conv2d: the images have no pixels, .* \(x shape \(2, 0, 8, 3\), padding \(2, 2\)\)", padding=2),
        refusal((2, 8, 0, 3), (4, 3, 3, 3), r"conv2d: the images have no pixels", padding=2),
        refusal((2, 8, 8, 3), (4, 3, 3, 3), r"conv2d: stride must be a whole number of at least 1 or a pair .* of them, it is 0", stride=0),
        refusal(
            (2, 8, 8, 3), (4, 3, 3, 3), r"conv2d: padding must be a whole number of at least 0 or a pair .* of them, it is \(1, -1\)", padding=(1, -1)
        ),
        refusal((2, 8, 8, 3), (4, 3, 3, 3), r"conv2d: dilation must be .*it is \(1, 1, 1\)", dilation=(1, 1, 1)),
        refusal((2, 8, 8, 3), (4, 3, 3, 3), r"conv2d: stride must be .*it is 1\.5", stride=1.5),
        refusal((2, 8, 8, 3), (4, 3, 3, 3), r"conv2d: weight has 4 output channels, bias has shape \(3,\)", bias=3),
        Refusal(
            Case([np.zeros((1, 4, 4, 3), np.uint8), np.zeros((2, 3, 3, 3), np.float32), None]),
            TypeError,
            r"conv2d: x must be a float Tensor, it is uint8; pass x\.astype\('float32'\)",
        ),
        Refusal(
            Case([np.zeros((1, 4, 4, 3)), np.zeros((2, 3, 3, 3), int), None]),
            TypeError,
            r"conv2d: weight must be a float Tensor, it is int64; pass weight\.astype\('float64'\)",
        ),
        Refusal(
            Case([np.zeros((1, 4, 4, 1)), np.zeros((2, 1, 3, 3)), np.zeros(2, int)]),
            TypeError,
            r"conv2d: bias must be a float Tensor, it is int64; pass bias\.astype\('float64'\)",
        ),
    ]

    @pytest.mark.parametrize("path", PATHS)
    def test_only_the_gradients_that_are_needed_are_computed(self, path: str) -> None:
        given = case(**PATHS[path])
        values = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | dict(given.values)
        y, saved = PAGE.cpu_forward(*given.inputs, *values.values())
        assert saved[0] is given.inputs[0] and saved[1] is given.inputs[1]
        for needs in product((True, False), repeat=3):
            assert tuple(gradient is not None for gradient in PAGE.cpu_backward(y, saved, needs)) == needs

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    @pytest.mark.parametrize("context", [enable_grad, definitions])
    @pytest.mark.parametrize("kind", [np.int64, np.int8])
    def test_numpy_s_whole_numbers_are_whole_numbers(self, kind: Any, context: Any, device: str) -> None:
        """200 channels in 50 groups: 4 * 50 does not fit into an int8."""
        given = case(1, 5, 5, 200, 50, bias=False, groups=50)
        found = []
        for number in (int, kind):
            values = {"stride": (number(1), number(2)), "padding": number(1), "dilation": number(1), "groups": number(50)}
            with on_cuda(), context():
                x, weight = [Tensor(array).to(device=device).requires_grad_() for array in given.inputs[:2]]
                y = conv2d(x, weight, **values)
                upstream = Tensor(rng(1).standard_normal(y.shape)).to(device=device)
                found.append([t.to(device="cpu").numpy() for t in (y, *grad(y, (x, weight), upstream))])
        for ours, theirs in zip(*found, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_the_message_about_channels_of_numpy_s_groups(self) -> None:
        with pytest.raises(ValueError, match=r"x has 3 channels, weight expects 4 \(weight shape \(4, 2, 3, 3\), groups=2\)$"):
            conv2d(np.zeros((1, 5, 5, 3)), np.zeros((4, 2, 3, 3)), groups=np.int8(2))  # type: ignore[arg-type]

    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("batch", [0, 1])
    def test_batch_of_none_and_of_one(self, path: str, batch: int) -> None:
        given = case(batch, **PATHS[path])
        self.definition_equals_pytorch(given)
        self.kernel_equals_definition(given)

    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize("values", [{"padding": 1}, {"padding": 1, "stride": 2}, {"padding": 3}, {"stride": 3}, {"kernel": (1, 1)}])
    def test_several_buffers_of_columns(self, monkeypatch: pytest.MonkeyPatch, groups: int, values: dict) -> None:
        """Ten images shared out by five, at most three of them in a buffer; the bias's gradient is shared out too."""
        given = case(10, **values, groups=groups)
        rows, columns = conv2d(*map(Tensor, given.inputs), **given.values).shape[1:3]
        monkeypatch.setattr(PAGE, "COLUMN_BYTES", 3 * rows * columns * 9 * 2 * 8)
        monkeypatch.setattr(PAGE, "GRAIN", 0)
        monkeypatch.setattr(PAGE, "_grain", lambda *_: 3)
        self.kernel_equals_definition(given)

    @pytest.mark.parametrize("images", [0, 10])
    @pytest.mark.parametrize("path", IN_PARTS)
    def test_windows_in_parts(self, monkeypatch: pytest.MonkeyPatch, path: str, images: int) -> None:
        """Of images as small as here; ten shared out by five, of which about two are in a buffer of columns."""
        given = case(images, **IN_PARTS[path])
        rows, columns = conv2d(*map(Tensor, given.inputs), **given.values).shape[1:3]
        monkeypatch.setattr(PAGE, "LEAST_PIXELS", 1)
        monkeypatch.setattr(PAGE, "COLUMN_BYTES", 3 * 2 * (rows + 2) * columns * 3 * 2 * 8)
        monkeypatch.setattr(PAGE, "_grain", lambda *_: 3)
        asked, parts_of = [], PAGE.parts_of
        monkeypatch.setattr(PAGE, "parts_of", lambda *arguments: asked.append(arguments[-1]) or parts_of(*arguments))
        self.kernel_equals_definition(given)
        assert max(asked) > 1

    def test_in_parts_fewer_numbers_are_written_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A 3x3 kernel's columns are 9 times the image, in parts 3 times, and a row above and below it; all parts look at the same array."""
        x = rng(0).uniform(-1, 1, (2, 5, 6, 4))
        g = PAGE.Geometry.of(np.zeros((4, 4, 3, 3)), 1, 1, 1, 1)
        ((images, (whole,)),) = PAGE.parts_of(x, g, 0, 2, 1)
        ((_, parts),) = PAGE.parts_of(x, g, 0, 2, 3)
        assert images == slice(0, 2) and whole.size == 9 * x.size
        assert {part.shape for part in parts} == {(2, 30, 12)} and parts[0].base.size == 3 * x.size * 7 // 5
        assert all(part.base is parts[0].base for part in parts)
        np.testing.assert_array_equal(np.concatenate(parts, 2).reshape(whole.shape), whole)

    def test_what_the_choice_of_parts_is_made_by(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The pixels of an image that is written, the channels that are read and those that are written."""
        asked = []
        monkeypatch.setattr(PAGE, "parts_in", lambda g, *numbers: asked.append(numbers) or 1)
        y, saved = PAGE.cpu_forward(*case(1, 5, 6, 2, 4).inputs, 1, 0, 1, 1)
        PAGE.cpu_backward(y, saved, (True, True, True))
        assert asked == [(3 * 4, 2, 4), (5 * 6, 4, 2)]

    @pytest.mark.parametrize(
        ("parts", "pixels", "channels", "values"),
        [
            (3, 64, (24, 24), {}),
            (1, 63, (24, 24), {}),
            (3, 50_000, (1, 3), {}),
            (3, 100, (50, 66), {}),
            (1, 100, (50, 67), {}),
            (3, 64, (24, 64), {}),
            (1, 64, (24, 65), {}),
            (3, 64, (2, 6), {}),
            (1, 64, (2, 7), {}),
            (5, 64, (2, 2), {"kernel": (5, 3)}),
            (2, 64, (2, 2), {"kernel": (2, 2), "stride": (1, 2), "padding": (2, 3), "dilation": (3, 2)}),
            (1, 64, (2, 2), {"kernel": (3, 1)}),
            (1, 64, (2, 2), {"kernel": (1, 3)}),
            (1, 64, (2, 2), {"stride": (2, 1)}),
            (1, 64, (2, 2), {"groups": 2}),
        ],
    )
    def test_when_windows_are_cut_into_parts(self, parts: int, pixels: int, channels: tuple[int, int], values: dict) -> None:
        """From 64 pixels on, up to a million multiplications; no wider than there are pixels, or channels in a row of a window."""
        values = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1} | values
        assert PAGE.parts_in(PAGE.Geometry(**values), pixels, *channels) == parts

    @pytest.mark.parametrize(("kernel", "outputs"), [((1, 1), 2), ((1, 1), 6), ((3, 3), 4)])
    @pytest.mark.parametrize("groups", [1, 2])
    def test_products_in_chunks(self, monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int], outputs: int, groups: int) -> None:
        """Chunks of 64 rows, and what is left over; the weight's gradient with either operand the wider one."""
        chunks, cut = PAGE._chunks, []
        for limit in ("SMALL_PRODUCT", "PACKED_PRODUCT"):  # whichever this machine's BLAS goes by
            monkeypatch.setattr(PAGE, limit, 64 * kernel[0] * kernel[1] * (4 // groups) * (outputs // groups))
        monkeypatch.setattr(PAGE, "_chunks", lambda rows, chunk: cut.append((rows.shape[1], chunk)) or chunks(rows, chunk))
        monkeypatch.setattr(PAGE, "_grain", lambda *_: 1000)
        self.kernel_equals_definition(case(3, 7, 9, 4, outputs, kernel, groups=groups, padding=kernel[0] // 2))  # 189 rows
        assert set(cut) == {(128, 64)}

    @pytest.mark.parametrize(("limit", "cut"), [(64 * 6 - 1, 0), (64 * 6, 2)])
    def test_a_product_is_cut_where_64_of_its_rows_are_within_the_limit(self, monkeypatch: pytest.MonkeyPatch, limit: int, cut: int) -> None:
        chunks, seen = PAGE._chunks, []
        for name in ("SMALL_PRODUCT", "PACKED_PRODUCT"):
            monkeypatch.setattr(PAGE, name, limit)
        monkeypatch.setattr(PAGE, "_chunks", lambda rows, chunk: seen.append((rows.shape[1], chunk)) or chunks(rows, chunk))
        rows, matrix, other = rng(0).uniform(-1, 1, (2, 150, 2)), rng(1).uniform(-1, 1, (2, 2, 3)), rng(2).uniform(-1, 1, (2, 150, 3))
        out = np.empty((2, 150, 3))
        PAGE.multiply(rows, matrix, out)
        assert seen == [(128, 64)] * cut
        assert_close(out, rows @ matrix)
        assert_close(PAGE.multiply_transposed(rows, other), rows.swapaxes(1, 2) @ other)
        assert seen == [(128, 64)] * cut * 2

    @pytest.mark.parametrize(("small", "limit"), [(True, 1_000_000), (False, 10_000_000)])
    def test_chunks_suit_the_machines_blas(self, monkeypatch: pytest.MonkeyPatch, small: bool, limit: int) -> None:
        monkeypatch.setattr(PAGE, "has_small_products", lambda: small)
        for each in (12 * 48, 9 * 16 * 16, limit, limit + 1):
            rows = PAGE._chunk_rows(each)
            assert rows % 64 == 0 and rows * each <= limit < (rows + 64) * each

    def test_a_transposed_product_of_few_long_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """More columns than a chunk has rows, and fewer rows than that."""
        for limit in ("SMALL_PRODUCT", "PACKED_PRODUCT"):
            monkeypatch.setattr(PAGE, limit, 64 * 70 * 80)
        left, right = rng(0).uniform(-1, 1, (1, 50, 70)), rng(1).uniform(-1, 1, (1, 50, 80))
        assert_close(PAGE.multiply_transposed(left, right), left.swapaxes(1, 2) @ right)

    def test_numbers_pairs_and_lists_mean_the_same(self) -> None:
        x, weight, _ = map(Tensor, case().inputs)
        expected = conv2d(x, weight, None, (2, 2), (1, 1), (1, 1)).numpy()
        for two, one in ((2, 1), ([2, 2], [1, 1]), (np.int64(2), np.int64(1))):
            np.testing.assert_array_equal(conv2d(x, weight, stride=two, padding=one, dilation=one).numpy(), expected)

    def test_the_kernel_slides_without_being_turned(self) -> None:
        """By hand: a row of pixels 1 2 3 seen through (10, 1) is 12, 23."""
        x, weight = Tensor(np.array([1.0, 2.0, 3.0]).reshape(1, 1, 3, 1)), Tensor(np.array([10.0, 1.0]).reshape(1, 1, 1, 2))
        assert_close(conv2d(x, weight), np.array([12.0, 23.0]).reshape(1, 1, 2, 1))

    def test_sums_over_many_pixels_keep_their_digits(self) -> None:
        """In one running sum those of 131,072 equal numbers are 1e-3 off."""
        x, dy = (Tensor(np.full((2, 256, 256, channels), 0.1, np.float32)) for channels in (1, 2))
        weight, bias = Tensor(np.ones((2, 1, 1, 1), np.float32), requires_grad=True), Tensor(np.ones(2, np.float32), requires_grad=True)
        conv2d(x, weight, bias).backward(dy)
        np.testing.assert_allclose(bias.grad.numpy(), 131072 * np.float64(np.float32(0.1)), rtol=1e-5)
        np.testing.assert_allclose(weight.grad.numpy(), 131072 * np.float64(np.float32(0.1)) ** 2, rtol=2e-5)

    @pytest.mark.parametrize(
        ("image", "channels", "padding", "stride", "refused"),
        [
            ((2**9, 2**11, 2**11), (3, 4), 1, 2, True),  # 2^31 pixels before, a quarter of that after
            ((1, 46340, 46340), (3, 4), 2, 1, True),  # fewer before, more after
            ((1, 46340, 46340), (3, 4), 1, 1, False),  # fewer, of more numbers
        ],
    )
    def test_a_gpu_numbers_fewer_than_two_to_the_31_pixels(
        self, monkeypatch: pytest.MonkeyPatch, image: tuple[int, int, int], channels: tuple[int, int], padding: int, stride: int, refused: bool
    ) -> None:
        class Asked(Exception):
            """For the output's memory."""

        def no_memory() -> None:
            raise Asked

        monkeypatch.setattr(PAGE.cuda, "array_module", no_memory)
        x, weight = SimpleNamespace(shape=(*image, channels[0])), np.ones((channels[1], channels[0], 3, 3), np.float32)
        with pytest.raises(ValueError if refused else Asked, match=r"has 2\^31 pixels or more" if refused else None):
            PAGE.cuda_forward(x, weight, None, stride, padding, 1, 1)
