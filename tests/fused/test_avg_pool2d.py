"""avg_pool2d: overlaps, gaps, padding, rows left over, maps of one pixel, no images. Read next: `test_max_pool2d.py`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from minigrad import Tensor, definitions, enable_grad, grad
from minigrad.fused.avg_pool2d import avg_pool2d
from tests.cuda_device import on_cuda
from tests.proofs import Case, Proof, Refusal
from tests.support import lengths, rng

PAGE = sys.modules[avg_pool2d.__module__]


@st.composite
def pools(draw: Any) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A shape (B, H, W, C) and windows that fit in it, built from how many windows there are and how many pixels are left over."""
    sizes, kernels, strides, paddings = [], [], [], []
    for _ in "HW":
        kernel = draw(st.integers(1, 4))
        stride, windows = draw(st.integers(1, 4) | st.just(kernel)), draw(st.integers(1, 3))
        padding = draw(st.integers(0, kernel // 2))
        left_over = draw(st.integers(0, stride - 1))
        sizes.append(max((windows - 1) * stride + kernel - 2 * padding + left_over, 1))
        kernels, strides, paddings = [*kernels, kernel], [*strides, stride], [*paddings, padding]
    shape = (draw(lengths(2, 2)), *sizes, draw(lengths(2, 3)))
    return shape, {"kernel_size": tuple(kernels), "stride": tuple(strides), "padding": tuple(paddings)}


AWKWARD: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((1, 1, 1, 1), {"kernel_size": 1}),
    ((0, 4, 4, 2), {"kernel_size": 2}),
    ((2, 4, 6, 3), {"kernel_size": (2, 3)}),  # stride is the window: the windows tile the image
    ((1, 5, 4, 2), {"kernel_size": 2}),  # a row is left over
    ((2, 4, 6, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((1, 1, 2, 1), {"kernel_size": (2, 3), "stride": 2, "padding": 1}),  # windows larger than the image
    ((1, 6, 5, 2), {"kernel_size": 1, "stride": 3}),  # gaps between the windows
    ((1, 4, 4, 1), {"kernel_size": [2, 2], "stride": [1, 2]}),
    ((1, 4, 6, 1), {"kernel_size": 2, "stride": 2, "padding": 1}),  # whole windows, but for the padding
]


def turned(function: Any) -> Any:
    """PyTorch's (B, C, H, W) seen through (B, H, W, C)."""
    return lambda x, **values: function(x.permute(0, 3, 1, 2), **values).permute(0, 2, 3, 1)


def case(pool: tuple[tuple[int, ...], dict[str, Any]], seed: int = 0) -> Case:
    shape, values = pool
    return Case([rng(seed).uniform(-2, 2, shape)], values)


def refusals(name: str) -> list[Refusal]:
    """What no pooling takes."""
    wrong = [
        ((2, 4, 4), {"kernel_size": 2}, r"x must be \(B, H, W, C\), it has shape \(2, 4, 4\)$"),
        ((2, 3, 8, 8), {"kernel_size": 4}, r"does not fit in 3 pixels.*transpose\(0, 2, 3, 1\)"),
        ((2, 8, 3, 8), {"kernel_size": 4}, r"does not fit in 3 pixels with padding 0 \(x shape \(2, 8, 3, 8\)\)$"),
        ((2, 3, 3, 3), {"kernel_size": 4}, r"does not fit in 3 pixels with padding 0 \(x shape \(2, 3, 3, 3\)\)$"),
        ((2, 8, 2, 3), {"kernel_size": 5, "stride": 1, "padding": 1}, "does not fit in 2 pixels with padding 1"),
        ((2, 0, 8, 3), {"kernel_size": 2}, "does not fit in 0 pixels"),
        ((2, 8, 8, 3), {"kernel_size": 3, "stride": 1, "padding": 2}, "padding must be at most half of the window, it is 2 and the window 3"),
        ((2, 8, 8, 3), {"kernel_size": 0}, "kernel_size must be a whole number of at least 1 or a pair .rows, columns. of them, it is 0"),
        ((2, 8, 8, 3), {"kernel_size": 2, "stride": 0}, "stride must be"),
        ((2, 8, 8, 3), {"kernel_size": 2, "stride": "2"}, "stride must be"),
        ((2, 8, 8, 3), {"kernel_size": 2, "stride": 2, "padding": -1}, "padding must be"),
        ((2, 8, 8, 3), {"kernel_size": 2.0}, "kernel_size must be"),
        ((2, 8, 8, 3), {"kernel_size": (2, 2, 2)}, "kernel_size must be"),
    ]
    found = [Refusal(Case([np.zeros(shape)], values), ValueError, f"{name}: .*{message}") for shape, values, message in wrong]
    integers = Case([np.zeros((1, 4, 4, 1), np.int64)], {"kernel_size": 2})
    taken = "PyTorch pools integers too, without a derivative."
    return [*found, Refusal(integers, TypeError, f"{name}: x must be a float Tensor, it is int64; pass", taken)]


class TestAvgPool2d(Proof):
    op = avg_pool2d
    in_torch = staticmethod(turned(torch.nn.functional.avg_pool2d))
    cases, share = st.builds(case, pools(), st.integers(0, 9999)), 0.8
    examples = [case(pool) for pool in AWKWARD]
    keeps = {"x": ""}
    float32 = [case(((4, side, side, channels), {"kernel_size": window}), 4) for side, channels, window in [(16, 12, 4), (8, 24, 2), (16, 64, 4)]]
    pins = "It is linear: there are no kinks."
    errors = refusals("avg_pool2d")

    @pytest.mark.parametrize("images", [1, 2, 7, 11])
    def test_blocks_and_threads_change_nothing(self, monkeypatch: pytest.MonkeyPatch, images: int) -> None:
        monkeypatch.setattr(PAGE, "BLOCK", 3 * 30)  # three images; each is worked on once
        self.kernel_equals_definition(case(((images, 5, 6, 1), {"kernel_size": 3, "stride": 2, "padding": 1})))
        seen: list[int] = []
        PAGE.for_image_blocks(lambda block: seen.extend(range(100)[block]), np.zeros((images, 5, 6, 1)))
        assert sorted(seen) == list(range(images))

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    @pytest.mark.parametrize("kind", [np.int64, np.int8])
    def test_numpy_s_whole_numbers_are_whole_numbers(self, kind: Any, device: str) -> None:
        with on_cuda():
            x = Tensor(rng(3).standard_normal((1, 4, 4, 1))).to(device=device).requires_grad_()
            y = avg_pool2d(x, kind(2), stride=(kind(1), np.int32(1)), padding=kind(1))
            expected = avg_pool2d(x, 2, stride=1, padding=1)
            upstream = Tensor(rng(4).standard_normal(y.shape)).to(device=device)
            for ours, theirs in ((y, expected), (grad(y, x, upstream)[0], grad(expected, x, upstream)[0])):
                np.testing.assert_array_equal(ours.to(device="cpu").numpy(), theirs.to(device="cpu").numpy())

    @pytest.mark.parametrize("kernel", [7, 11, 22])
    @pytest.mark.parametrize("context", [enable_grad, definitions])
    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    def test_the_mean_of_ones_is_one(self, device: str, context: Any, kernel: int) -> None:
        """In float32 121 times the nearest number to 1 / 121 is not: the sum is divided. So is what each pixel gets, also by the rule on Tensors."""
        for create_graph in (False, True):
            with on_cuda(), context():
                x = Tensor(np.ones((1, 2 * kernel, kernel, 2), np.float32)).to(device=device).requires_grad_()
                y = avg_pool2d(x, kernel)
                upstream = Tensor(np.full(y.shape, 3.0, np.float32)).to(device=device)
                (dx,) = grad(y, x, upstream, create_graph=create_graph)
                found = [z.to(device="cpu").numpy() for z in (y, dx)]
            np.testing.assert_array_equal(found[0], np.ones((1, 2, 1, 2), np.float32))
            np.testing.assert_array_equal(found[1], np.full(x.shape, np.float32(3) / np.float32(kernel**2)))

    def test_a_nan_stays_in_its_windows(self) -> None:
        x = rng(2).standard_normal((1, 4, 4, 1))
        x[0, 0, 1, 0] = np.nan
        np.testing.assert_array_equal(np.isnan(avg_pool2d(Tensor(x), 2).numpy()[0, :, :, 0]), [[True, False], [False, False]])
