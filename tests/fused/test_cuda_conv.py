"""CUDA kernels of conv2d, linear, pooling and upsampling on the emulator, where the proofs do not reach: large tiles, several slices, rungs, packs.

`test_cuda_kernel_equals_definition` of each operation's proof draws small cases. Here are images of more than one tile, sums of more than one slice,
channels that are read four at a time, and the kernels that only explain the others. Read first: `test_cuda_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.backend import cuda
from minigrad.fused.attention import scaled_dot_product_attention
from minigrad.fused.avg_pool2d import avg_pool2d
from minigrad.fused.batch_norm import batch_norm
from minigrad.fused.conv2d import conv2d
from minigrad.fused.dropout import drop_path, dropout
from minigrad.fused.gelu import gelu
from minigrad.fused.global_avg_pool2d import global_avg_pool2d
from minigrad.fused.layer_norm import layer_norm
from minigrad.fused.linear import linear
from minigrad.fused.log_softmax import log_softmax
from minigrad.fused.max_pool2d import max_pool2d
from minigrad.fused.softmax import softmax
from minigrad.fused.upsample_nearest import upsample_nearest
from minigrad.fused.windows import window_axes
from minigrad.op import Fused
from tests.cuda_device import ORDERS, nothing_waits, on_cuda
from tests.fused.test_cuda_kernels import FOLDER, check_cuda
from tests.support import assert_close, draws, rng

pytestmark = pytest.mark.cuda


def uniform(*shapes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    numbers = rng(seed)
    return [numbers.uniform(-1, 1, shape) for shape in shapes]


def conv_inputs(batch=1, height=6, width=5, inputs=4, outputs=4, kernel=(3, 3), groups=1, bias=True, seed=0) -> list:
    x, weight, bias_ = uniform((batch, height, width, inputs), (outputs, inputs // groups, *kernel), (outputs,), seed=seed)
    return [x, weight, bias_ if bias else None]


def conv_values(stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> dict[str, Any]:
    return {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


# --- against the definitions


TILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "three tiles of rows, the last not full": ({"batch": 3, "height": 10, "width": 9, "outputs": 12}, {"padding": 1}),
    "64 columns": ({"inputs": 8, "outputs": 64, "height": 4}, {"padding": 1}),
    "64 columns, and 4 more": ({"inputs": 8, "outputs": 68}, {"padding": 1}),
    "32 columns": ({"inputs": 24, "outputs": 24}, {"padding": 1, "stride": 2}),
    "32 columns twice": ({"inputs": 4, "outputs": 96, "height": 3}, {}),
    "16 columns after 64": ({"inputs": 80, "outputs": 4, "kernel": (2, 2)}, {}),
    "a row of the weight's gradient beyond one tile": ({"inputs": 20, "outputs": 8}, {"padding": 1}),
    "three channels to 64": ({"inputs": 3, "outputs": 64, "kernel": (4, 5), "height": 7}, {"padding": 2, "stride": 2}),
    "patches": ({"inputs": 8, "outputs": 12, "kernel": (4, 4), "height": 9, "width": 8}, {"stride": 4}),
    "strided pointwise": ({"inputs": 8, "outputs": 12, "kernel": (1, 1)}, {"stride": 2}),
    "two groups": ({"inputs": 16, "outputs": 24, "groups": 2}, {"padding": 1}),
    "groups of one by one": ({"inputs": 16, "outputs": 16, "kernel": (1, 1), "groups": 2}, {}),
    "one group per channel": ({"inputs": 34, "outputs": 34, "groups": 34}, {"padding": 1}),
    "several slices of the weight's gradient, the last shorter": ({"batch": 2, "height": 17, "width": 17, "outputs": 4}, {"padding": 1}),
    "several slices, one of them shorter, one group per channel": ({"height": 27, "width": 13, "groups": 4}, {"padding": 1}),
}


@pytest.mark.parametrize("case", TILES)
def test_tiles_of_a_convolution(case):
    sizes, values = TILES[case]
    check_cuda(conv2d, conv_inputs(**sizes), conv_values(**values, groups=sizes.get("groups", 1)))


@st.composite
def packed_convolutions(draw: Any) -> tuple[list, dict[str, Any]]:
    """Channels by fours, with any remainders of size, stride and dilation: each phase of the input's gradient has other taps, or none."""
    pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, r + 1)) for r in reach)
    height, width = (max(1, r + 1 - 2 * p + draw(st.integers(0, 5))) for r, p in zip(reach, padding, strict=True))
    groups = draw(st.sampled_from([1, 1, 2]))
    least = 4 if groups == 1 else 8
    inputs, outputs = (groups * draw(st.integers(least // 4, 3)) * 4 for _ in range(2))
    x = conv_inputs(draw(st.integers(0, 2)), height, width, inputs, outputs, kernel, groups, draw(st.booleans()), draw(st.integers(0, 999)))
    return x, conv_values(stride, padding, dilation, groups)


@draws(15)
@given(packed_convolutions())
def test_any_convolution_of_packs(drawn):
    inputs, values = drawn
    _, weight, bias = inputs
    one_product = weight.shape[2:] == values["stride"] == (1, 1) and values["padding"] == (0, 0) and values["groups"] == 1 and bias is None
    check_cuda(conv2d, inputs, values, launches=not one_product)


def test_the_numbers_may_be_numpy_s():
    values = conv_values(np.int64(2), (np.int64(1), 1), np.int32(1), 1)
    check_cuda(conv2d, conv_inputs(), values)
    window = {"kernel_size": (np.int64(2), np.int64(2)), "stride": (np.int64(1), 2), "padding": 0}
    for op in (max_pool2d, avg_pool2d):
        check_cuda(op, uniform((1, 4, 5, 3)), window)
    check_cuda(upsample_nearest, uniform((1, 2, 3, 3)), {"scale_factor": (np.int64(2), np.int64(3))})


@pytest.mark.parametrize(("rows", "features_in", "features_out"), [(130, 8, 36), (70, 5, 33), (1, 4, 4), (0, 4, 3)])
def test_linear(rows, features_in, features_out):
    check_cuda(linear, uniform((rows, features_in), (features_out, features_in), (features_out,)))


def test_linear_of_one_vector_and_of_many_axes():
    check_cuda(linear, uniform((6,), (8, 6), (8,)))
    check_cuda(linear, uniform((2, 3, 2, 6), (8, 6), (8,)))


POOLS = [
    ((2, 7, 9, 8), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ((1, 6, 70, 4), {"kernel_size": 2}),  # a row of the output is one block and a part
    ((1, 5, 40, 7), {"kernel_size": (2, 3), "stride": (1, 4), "padding": (1, 0)}),
    ((3, 7, 8, 16), {"kernel_size": 3, "stride": 2}),  # four rows of the output to a block, and one left over; pixels in no window
]


@pytest.mark.parametrize("op", [max_pool2d, avg_pool2d])
@pytest.mark.parametrize(("shape", "values"), POOLS)
def test_pooling(op, shape, values):
    check_cuda(op, uniform(shape), values)
    if op is max_pool2d:  # and with ties
        check_cuda(op, [rng(1).integers(-1, 2, shape).astype(float)], values)


@pytest.mark.parametrize("shape", [(2, 5, 9, 33), (3, 1, 1, 4), (1, 3, 343, 3)])
def test_global_pooling(shape):
    """Of the last each thread adds up 128 pixels, and some of them a single one after these."""
    check_cuda(global_avg_pool2d, uniform(shape))


@pytest.mark.parametrize(("shape", "factors"), [((2, 3, 5, 8), 2), ((1, 2, 33, 5), (3, 4)), ((1, 2, 3, 4), 1)])
def test_upsampling(shape, factors):
    check_cuda(upsample_nearest, uniform(shape), {"scale_factor": factors})


def test_a_stride_with_more_phases_than_a_grid_has_blocks():
    """Of the 256 x 256 phases of dx one has a pixel that is seen."""
    with on_cuda():
        x, weight = (Tensor(np.full(shape, 2.0, np.float32)).to(device="cuda").requires_grad_() for shape in ((1, 256, 256, 1), (1, 1, 1, 1)))
        dx, dweight = (t.data.get() for t in minigrad.grad([conv2d(x, weight, stride=256)], [x, weight], [Tensor(x.data[:, :1, :1])]))
    assert dx[0, 0, 0, 0] == dweight.item() == 4 and np.count_nonzero(dx) == 1


def test_sums_of_thousands_of_numbers_are_made_in_parts():
    """Equal numbers show best what one running sum loses: it rounds most of them alike. 0.1 is so to seven digits."""
    tenths = lambda *shape: Tensor(np.full(shape, 0.1, np.float32)).to(device="cuda")  # noqa: E731
    with on_cuda():
        means = avg_pool2d(tenths(1, 64, 32, 2), (64, 32))
        slopes = minigrad.grad([avg_pool2d(x := tenths(1, 1999, 1, 1).requires_grad_(), (1000, 1), 1)], [x], [tenths(1, 1000, 1, 1)])[0][:, 999]
        copies = minigrad.grad([upsample_nearest(x := tenths(1, 1, 1, 2).requires_grad_(), (64, 32))], [x], [tenths(1, 64, 32, 2)])[0] / 2048
        # A row of thousands is summed in parts, too.
        wide_means = avg_pool2d(tenths(1, 1, 2000, 1), (1, 2000))
        wide_slopes = minigrad.grad([avg_pool2d(x := tenths(1, 1, 3999, 1).requires_grad_(), (1, 2000), 1)], [x], [tenths(1, 1, 2000, 1)])[0][
            :, :, 1999
        ]
        wide_copies = minigrad.grad([upsample_nearest(x := tenths(1, 1, 1, 1).requires_grad_(), (1, 2000))], [x], [tenths(1, 1, 2000, 1)])[0] / 2000
        kernels, partial = cuda.Kernels(FOLDER / "conv2d.cu"), cuda.array_module().empty((1, 2, 1, 1, 1), np.float32)
        arrays = tenths(1, 2000, 1, 2).data, tenths(1, 2000, 1, 2).data * 10
        kernels.launch("conv2d_weight_gradient_direct<float>", 1, (32, 8), *arrays, partial, 1, 2000, 1, 2000, 1, 1, 1, 2, 1, 1, 1, 1, 0, 0, 1, 1)
        # So are those of a tile: over the numbers of a window, and over the rows of a slice.
        windows = conv2d(tenths(1, 1, 2, 400), Tensor(np.ones((4, 400, 1, 2), np.float32)).to(device="cuda")) / 800
        arrays, in_tiles = (tenths(1, 800, 1, 4).data, tenths(1, 800, 1, 4).data * 10), cuda.array_module().empty((1, 1, 1, 4, 4), np.float32)
        sizes = (800, 1, 800, 1, 800, 1, 4, 4, 1, 1, 1, 1, 1, 0, 0, 1, 1)
        kernels.launch("conv2d_weight_gradient<float, float4, 64>", (1, 1, 1), 64, *arrays, in_tiles, *sizes)
        single = means.data, slopes.data, copies.data, wide_means.data, wide_slopes.data, wide_copies.data, windows.data
        for result in (*single, partial / 2000, in_tiles / 800):
            np.testing.assert_allclose(result.get(), 0.1, rtol=2e-6)


def test_a_window_with_nan_has_maximum_nan():
    x = uniform((1, 6, 6, 4))[0]
    x[0, 2, 2, 0], x[0, 0, 5, 1], x[0, 3, 3, 2], x[0, 3, 4, 2] = np.nan, np.inf, -np.inf, np.nan
    with minigrad.definitions():
        expected = max_pool2d(Tensor(x), 3, 2, 1).numpy()
    assert np.isnan(expected).any()
    with on_cuda():
        np.testing.assert_array_equal(max_pool2d(Tensor(x).to(device="cuda"), 3, 2, 1).data.get(), expected)


# --- how they are called


def test_arrays_that_do_not_lie_at_sixteen_bytes_take_the_kernel_for_single_numbers():
    """One of them is enough: each input alone, and the upstream gradient. Of all operations, not only of this page's."""

    def placed(x: np.ndarray, shifted: bool) -> Tensor:
        """The array on the device, at a multiple of 16 bytes or 4 bytes past one."""
        flat = Tensor(np.concatenate([[0.0] * shifted, x.reshape(-1)]).astype(np.float32)).to(device="cuda")
        placed = flat[int(shifted) :].reshape(x.shape).detach()
        assert placed.data.data.ptr % 16 == 4 * shifted
        return placed

    calls: list[tuple[Fused, list[Any], dict]] = [
        (conv2d, conv_inputs(), {"padding": 1}),
        (conv2d, conv_inputs(kernel=(1, 1)), {}),
        (linear, uniform((5, 4), (8, 4), (8,)), {}),
        (max_pool2d, uniform((1, 4, 4, 4)), {"kernel_size": 2}),
        (avg_pool2d, uniform((1, 4, 4, 4)), {"kernel_size": 2}),
        (upsample_nearest, uniform((1, 2, 2, 4)), {"scale_factor": 2}),
        (gelu, uniform((4, 8)), {}),
        (layer_norm, uniform((4, 8), (8,), (8,)), {}),
        (batch_norm, [*uniform((6, 8), (8,), (8,)), None, None, *uniform((6, 8), seed=1)], {"relu": True}),
        (softmax, uniform((4, 8)), {}),
        (log_softmax, uniform((4, 8)), {}),
        (dropout, [*uniform((4, 8)), rng(1).random((4, 8)) < 0.5], {"p": 0.5}),
        (drop_path, [*uniform((4, 8)), np.array([True, False, True, True])], {"p": 0.5}),
        (scaled_dot_product_attention, uniform((1, 1, 5, 8), (1, 1, 3, 8), (1, 1, 3, 4)), {}),
    ]
    for op, inputs, values in calls:
        floats = [k for k, x in enumerate(inputs) if x is not None and x.dtype == np.float64]
        tensors = [x if x is None else Tensor(x) for x in inputs]
        leaves = [tensors[k].requires_grad_() for k in floats]
        with minigrad.definitions():
            y = op(*tensors, **values)
            exact = y[0] if isinstance(y, tuple) else y
            upstream = uniform(exact.shape)[0]
            references = [exact, *minigrad.grad([exact], leaves, [Tensor(upstream)])]
        for which in [*floats, len(inputs)]:
            with on_cuda():
                for k in floats:
                    tensors[k] = placed(inputs[k], k == which).requires_grad_()
                y = op(*[x if x is None or k in floats else x.to(device="cuda") for k, x in enumerate(tensors)], **values)
                y = y[0] if isinstance(y, tuple) else y
                gradients = minigrad.grad([y], [tensors[k] for k in floats], [placed(upstream, which == len(inputs))])
                for result, reference in zip((y, *gradients), references, strict=True):
                    assert_close(result.data.get(), reference, f"{op.name}, array {which} shifted", 1e-5)


CALLS: dict[str, tuple[Fused, Callable[[], list], dict, int]] = {  # launches forward and backward; products are the array module's
    "conv2d": (conv2d, conv_inputs, {"padding": 1}, 1 + 1 + 2 + 2),
    "conv2d, 1x1": (conv2d, lambda: conv_inputs(kernel=(1, 1)), {}, 1 + 2),
    "linear": (linear, lambda: uniform((5, 4), (8, 4), (8,)), {}, 1 + 2),
    "max_pool2d": (max_pool2d, lambda: uniform((1, 4, 4, 4)), {"kernel_size": 2}, 2),
    "avg_pool2d": (avg_pool2d, lambda: uniform((1, 4, 4, 4)), {"kernel_size": 2}, 2),
    "global_avg_pool2d": (global_avg_pool2d, lambda: uniform((1, 4, 4, 4)), {}, 1),
    "upsample_nearest": (upsample_nearest, lambda: uniform((1, 2, 2, 4)), {"scale_factor": 2}, 2),
}


@pytest.mark.parametrize("name", CALLS)
def test_launches_and_nobody_waits_for_the_device(name):
    op, inputs, values, launches = CALLS[name]
    with on_cuda() as device:
        tensors = [Tensor(x.astype(np.float32)).to(device="cuda").requires_grad_() for x in inputs()]
        upstream = Tensor(np.ones(op(*tensors, **values).shape, np.float32)).to(device="cuda")
        before = device.launches
        with nothing_waits(device):
            minigrad.grad([op(*tensors, **values)], tensors, [upstream])
        assert device.launches - before == launches


# --- every rung of a ladder computes the same


def naive(page: str, kernel: str, block: int, arrays: list, shape: tuple[int, ...], *numbers: int, count: bool = True) -> np.ndarray:
    """Launch a naive kernel, a thread for every number of a result of this shape: its arguments are the arrays, the result, its size, the numbers."""
    result = cuda.array_module().empty(shape, np.float32)
    sizes = (result.size, *numbers) if count else numbers
    cuda.Kernels(FOLDER / page).launch(f"{kernel}<float>", -(-result.size // block), block, *arrays, result, *sizes)
    return result.get()


def used(op: Fused, inputs: list, values: dict, upstream: np.ndarray) -> list[np.ndarray]:
    """Result and gradients by the operation itself, in float32 on the device."""
    tensors = [Tensor(x).to(device="cuda").requires_grad_() for x in inputs]
    y = op(*tensors, **values)
    return [t.data.get() for t in (y, *minigrad.grad([y], tensors, [Tensor(upstream).to(device="cuda")]))]


def agree(ours: list[np.ndarray], first: list[np.ndarray]) -> None:
    for k, (a, b) in enumerate(zip(ours, first, strict=True)):
        assert_close(a, b, f"result {k}", 1e-5)


@pytest.mark.parametrize("values", [{"padding": 1}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": (2, 1)}])
def test_every_rung_of_convolution(values):
    values = conv_values(**values)
    groups, (stride, padding) = values["groups"], (values["stride"], values["padding"])
    dilation = values["dilation"] if isinstance(values["dilation"], tuple) else (1, 1)
    inputs = [x.astype(np.float32) for x in conv_inputs(2, 7, 6, 16, 8 * groups, groups=groups)]
    x, weight, bias = inputs
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        device = [cp.asarray(a) for a in inputs]
        shape = conv2d(Tensor(x), Tensor(weight), **values).shape
        upstream = uniform(shape, seed=3)[0].astype(np.float32)
        dy = cp.asarray(upstream)
        out = shape[1:3]
        tail = (16 // groups, 8, groups, 3, 3, stride, stride, padding, padding, *dilation)
        y = naive("conv2d.cu", "conv2d_naive", 128, device, shape, 7, 6, *out, *tail)
        dx = naive("conv2d.cu", "conv2d_input_gradient_naive", 128, [dy, device[1]], x.shape, 7, 6, *out, *tail)
        dweight = naive("conv2d.cu", "conv2d_weight_gradient_naive", 128, [device[0], dy], weight.shape, 2, 7, 6, *out, *tail)
        agree(used(conv2d, inputs, values, upstream), [y, dx, dweight, upstream.sum((0, 1, 2))])

        rows, depth = 2 * out[0] * out[1], 9 * 16 // groups  # the windows written out, and a product
        numbers = (rows, 7, 6, *out, 16 // groups, groups, *tail[3:])
        columns = naive("conv2d.cu", "conv2d_columns", 256, [device[0]], (groups, rows, depth), *numbers)
        matrix = weight.reshape(groups, 8, 16 // groups, 9).transpose(0, 3, 2, 1).reshape(groups, depth, 8)
        agree([(columns @ matrix).swapaxes(0, 1).reshape(shape) + bias], [y])


def test_every_rung_of_linear():
    inputs = [a.astype(np.float32) for a in uniform((70, 6), (40, 6), (40,))]
    x, weight, bias = inputs
    upstream = uniform((70, 40), seed=3)[0].astype(np.float32)
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        y = cp.asarray(x @ weight.T)
        cuda.Kernels(FOLDER / "linear.cu").launch("linear_add_bias_naive<float>", -(-70 * 40 // 256), 256, y, cp.asarray(bias), 70 * 40, 40)
        dbias = naive("linear.cu", "column_sums_naive", 128, [cp.asarray(upstream)], (40,), 70, 40, count=False)
        ours = used(linear, inputs, {}, upstream)
        agree([ours[0], ours[3]], [y.get(), dbias])


@pytest.mark.parametrize("rows", [2048, 2080, 9000])
def test_a_bias_s_gradient_of_as_many_slices_as_a_thread_loads_at_once_and_of_more(rows):
    check_cuda(linear, uniform((rows, 1), (3, 1), (3,)))


@pytest.mark.parametrize("op", [max_pool2d, avg_pool2d])
@pytest.mark.parametrize(("shape", "values"), POOLS)
def test_every_rung_of_pooling(op, shape, values):
    x = rng(2).integers(-2, 3, shape).astype(np.float32)
    rows, columns = window_axes(shape, values["kernel_size"], values.get("stride"), values.get("padding", 0))
    out = (shape[0], rows.count, columns.count, shape[3])
    upstream = uniform(out, seed=3)[0].astype(np.float32)
    windows = (rows.kernel, columns.kernel, rows.stride, columns.stride, rows.padding, columns.padding)
    numbers = (*shape[1:3], *out[1:3], shape[3], *windows)
    with on_cuda(ORDERS):
        cp, page = cuda.array_module(), f"{op.name}.cu"
        if op is max_pool2d:
            y, place = cp.empty(out, np.float32), cp.empty(out, np.int32)
            grid = -(-y.size // 128)
            cuda.Kernels(FOLDER / page).launch("max_pool2d_forward_naive<float>", grid, 128, cp.asarray(x), y, place, y.size, *numbers)
            first = [y.get(), naive(page, "max_pool2d_backward_naive", 128, [cp.asarray(upstream), place], shape, *numbers)]
        else:
            first = [
                naive(page, "avg_pool2d_forward_naive", 128, [cp.asarray(x)], out, *numbers),
                naive(page, "avg_pool2d_backward_naive", 128, [cp.asarray(upstream)], shape, *numbers),
            ]
        agree(used(op, [x], values, upstream), first)


def test_every_rung_of_global_pooling():
    x, upstream = (a.astype(np.float32) for a in uniform((2, 3, 5, 40), (2, 40)))
    with on_cuda(ORDERS):
        first = naive("global_avg_pool2d.cu", "global_avg_pool2d_forward_naive", 128, [cuda.array_module().asarray(x)], (2, 40), 15, 40)
        agree(used(global_avg_pool2d, [x], {}, upstream)[:1], [first])


def test_every_rung_of_upsampling():
    x, upstream = (a.astype(np.float32) for a in uniform((2, 3, 5, 6), (2, 6, 15, 6)))
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        y = naive("upsample_nearest.cu", "upsample_nearest_forward_naive", 128, [cp.asarray(x)], upstream.shape, 5, 6, 2, 3)
        dx = naive("upsample_nearest.cu", "upsample_nearest_backward_naive", 128, [cp.asarray(upstream)], x.shape, 5, 6, 2, 3)
        agree(used(upsample_nearest, [x], {"scale_factor": (2, 3)}, upstream), [y, dx])
