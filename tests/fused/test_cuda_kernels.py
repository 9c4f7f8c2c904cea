"""The CUDA kernels on the emulator: equal to the definitions, in every order of threads and blocks bit for bit the same, and without a fault.

`MINIGRAD_EMULATOR=address pytest tests/fused/test_cuda_kernels.py` runs them under AddressSanitizer; the last test here does, and
`test_cuda_conv.py` and `test_cuda_attention.py` with them.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, functional, random
from minigrad.backend import cuda
from minigrad.fused.batch_norm import batch_norm
from minigrad.fused.cross_entropy import cross_entropy
from minigrad.fused.dropout import cuda_keep_mask, drop_path, dropout
from minigrad.fused.gelu import gelu
from minigrad.fused.layer_norm import layer_norm
from minigrad.fused.log_softmax import log_softmax
from minigrad.fused.softmax import softmax
from minigrad.op import Fused
from minigrad.tensor import wrap
from tests.backend.emulator.in_a_process import run_tests
from tests.cuda_device import ORDERS, nothing_waits, on_cuda
from tests.support import RELATIVE, assert_close, draws, rng

pytestmark = pytest.mark.cuda

FOLDER = Path(minigrad.__file__).parent / "fused"


def run(op: Fused, inputs: list, values: dict, dtype: type, device: str, needs: list[bool], seed: int, lowest: float = -1) -> list[np.ndarray | None]:
    """Output and gradients, for a random upstream gradient of numbers from `lowest` to 1, as NumPy arrays."""
    tensors = [None if x is None else Tensor(x.astype(dtype)).to(device=device).requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
    y = op(*tensors, **values)
    assert (y.device, y.dtype) == (device, dtype)
    leaves = [x for x in tensors if x is not None and x.requires_grad]
    upstream = Tensor(rng(seed).uniform(lowest, 1, y.shape).astype(dtype)).to(device=device)
    gradients = minigrad.grad([y], leaves, [upstream]) if leaves else []
    return [t.to(device="cpu").numpy() for t in (y, *gradients)]


def check_cuda(
    op: Fused,
    inputs: list,
    values: dict | None = None,
    needs: list[bool] | None = None,
    seed: int = 0,
    float32: bool = True,
    launches: bool = True,
    lowest: float = -1,
) -> None:
    """Compare the CUDA kernels with the definition: in float64 to the last digits, in float32 by the bound of `tests/proofs.py`.

    launches: whether kernels of ours take part, not cuBLAS alone. lowest: see `run`.
    """
    values = values or {}
    needs = [x is not None and (needs is None or needs[k]) for k, x in enumerate(inputs)]
    inputs = [None if x is None else x.astype(np.float32).astype(np.float64) for x in inputs]
    with minigrad.definitions():
        exact = run(op, inputs, values, np.float64, "cpu", needs, seed, lowest)
        single = run(op, inputs, values, np.float32, "cpu", needs, seed, lowest)
    with on_cuda(ORDERS) as device:
        double = run(op, inputs, values, np.float64, "cuda", needs, seed, lowest)
        assert (device.launches > 0) == launches or not exact[0].size
        for k, (ours, reference) in enumerate(zip(double, exact, strict=True)):
            assert_close(ours, reference, f"{op.name} on cuda, result {k}", RELATIVE)
        if not float32:
            return
        ours_single = run(op, inputs, values, np.float32, "cuda", needs, seed, lowest)
        for k, (ours, definition, reference) in enumerate(zip(ours_single, single, exact, strict=True)):
            error, allowed = (np.abs(a.astype(np.float64) - reference).max(initial=0) for a in (ours, definition))
            bound = 2 * allowed + 4 * np.finfo(np.float32).eps * np.abs(reference).max(initial=0)
            assert error <= bound, f"{op.name} on cuda, result {k}: float32 error {error:.3g} > {bound:.3g} (definition: {allowed:.3g})"


def layer_norm_inputs(rows: int, channels: int, weight: bool = True, bias: bool = True, seed: int = 0) -> list:
    random = rng(seed)
    vector = lambda wanted: random.uniform(-2, 2, channels) if wanted else None  # noqa: E731
    return [random.standard_normal((rows, channels)), vector(weight), vector(bias)]


@draws(15)
@given(st.integers(0, 9), st.integers(1, 140), st.booleans(), st.booleans(), st.sampled_from([1e-5, 1e-2]), st.integers(0, 1000))
def test_layer_norm(rows, channels, weight, bias, eps, seed):
    check_cuda(layer_norm, layer_norm_inputs(rows, channels, weight, bias, seed), {"eps": eps}, seed=seed, float32=False)


@pytest.mark.parametrize(("rows", "channels"), [(68, 96), (65, 128), (33, 97), (600, 64), (40, 132), (35, 260), (20, 768), (20, 772)])
def test_layer_norm_is_as_accurate_as_the_definition(rows, channels):
    check_cuda(layer_norm, layer_norm_inputs(rows, channels))


def test_a_large_mean_costs_the_variance_no_digits():
    """As on the CPU: with mean 1000 and deviation 1 in float32 only the rounding of the mean (6e-5) remains."""
    x = (rng(5).standard_normal((64, 96)) + 1e3).astype(np.float32)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    with on_cuda():
        assert np.abs(layer_norm(Tensor(x).to(device="cuda")).data.get() - exact).max() < 2e-4


@pytest.mark.parametrize(
    "needs", [[True, False, False], [False, True, False], [False, False, True], [False, True, True], [True, False, True], [True, True, False]]
)
def test_layer_norm_with_some_gradients_only(needs):
    check_cuda(layer_norm, layer_norm_inputs(5, 8), needs=needs)


@draws(10)
@given(st.integers(0, 700), st.integers(0, 1000))
def test_gelu(size, seed):
    check_cuda(gelu, [rng(seed).uniform(-3, 3, size)], seed=seed, float32=size > 50)


def test_gelu_far_from_zero():
    check_cuda(gelu, [np.array([-30.0, -6.0, -0.0, 0.0, 1e-20, 6.0, 30.0, 5.0])], float32=False)
    far = np.array([-8.0, -6.0, -5.0])  # where erf is -1 but for the last digits, which Phi has all of
    exact = [x * math.erfc(-x / math.sqrt(2)) / 2 for x in far]
    with on_cuda():
        for dtype, relative in ((np.float64, 1e-12), (np.float32, 3e-5)):
            np.testing.assert_allclose(gelu(Tensor(far.astype(dtype)).to(device="cuda")).data.get(), exact, rtol=relative)


@pytest.mark.parametrize(("rows", "channels"), [(6, 20), (130, 5)])
def test_every_rung_of_layer_norm_s_ladder_computes_the_same(rows, channels):
    kernels = cuda.Kernels(FOLDER / "layer_norm.cu")
    x, weight, bias = (a.astype(np.float32) for a in layer_norm_inputs(rows, channels))
    upstream = rng(5).standard_normal(x.shape).astype(np.float32)
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        x_, weight_, bias_, dy = (cp.asarray(a) for a in (x, weight, bias, upstream))
        y, mean, rstd, dx, dweight, dbias = (cp.empty(s, np.float32) for s in (x.shape, rows, rows, x.shape, channels, channels))
        blocks = -(-rows // 128)
        kernels.launch("layer_norm_forward_naive<float>", blocks, 128, x_, weight_, bias_, y, mean, rstd, rows, channels, 1e-5)
        kernels.launch("layer_norm_backward_naive<float>", blocks, 128, dy, x_, weight_, mean, rstd, dx, rows, channels)
        kernels.launch("layer_norm_columns_naive<float>", 1, 128, dy, x_, mean, rstd, dweight, dbias, rows, channels)
        naive = [a.get() for a in (y, dx, dweight, dbias)]
        for dtype, types, width in ((np.float32, "float, float4", 4), (np.float64, "double, double", 1)):
            for wanted in ((0, 1, 2), (0,), (1, 2)):  # in one pass; dx alone; the sums alone
                tensors = [Tensor(a.astype(dtype)).to(device="cuda").requires_grad_(k in wanted) for k, a in enumerate((x, weight, bias))]
                out = layer_norm(*tensors)
                gradients = minigrad.grad([out], [tensors[k] for k in wanted], [Tensor(upstream.astype(dtype)).to(device="cuda")])
                for ours, first in zip((out, *gradients), (naive[0], *(naive[1 + k] for k in wanted)), strict=True):
                    assert_close(ours.to(device="cpu"), first, relative=1e-5)
            arrays = [cp.asarray(a.astype(dtype)) for a in (upstream, x, weight, mean.get(), rstd.get())]
            for items in (1, 2, 3, 6) if channels % width == 0 else ():
                dx, partial = cp.empty(x.shape, dtype), cp.empty((2, 2, channels), dtype)
                kernels.launch(f"layer_norm_backward_all<{types}, {items}>", 2, 256, *arrays, dx, partial, rows, channels // width)
                for ours, first in zip((dx.get(), *partial.get().sum(0)), naive[1:], strict=True):
                    assert_close(ours, first, relative=1e-5)


def test_the_naive_gelu_computes_the_same():
    kernels = cuda.Kernels(FOLDER / "gelu.cu")
    x = rng(2).standard_normal(300).astype(np.float32)
    with on_cuda():
        cp = cuda.array_module()
        y = cp.empty(300, np.float32)
        kernels.launch("gelu_forward_naive<float>", 2, 256, cp.asarray(x), y, 300)
        np.testing.assert_array_equal(y.get(), gelu(Tensor(x).to(device="cuda")).data.get())


# --- batch_norm


def batch_norm_inputs(shape: tuple[int, ...], evaluation: bool = False, offset: float = 0.0, seed: int = 0) -> list:
    random, channels = rng(seed), shape[-1]
    statistics = [random.uniform(-1, 1, channels), random.uniform(0.5, 2, channels)] if evaluation else [None, None]
    x, residual = random.standard_normal(shape) + offset, random.standard_normal(shape)
    return [x, random.uniform(0.5, 2, channels), random.uniform(-2, 2, channels), *statistics, residual]


def run_batch_norm(inputs: list, dtype: type, device: str, relu: bool = True, upstream: np.ndarray | None = None) -> list[np.ndarray]:
    """All outputs, and the gradients of x, weight, bias and residual."""
    tensors = [None if x is None else Tensor(x.astype(dtype)).to(device=device) for x in inputs]
    leaves = [tensors[k].requires_grad_() for k in (0, 1, 2, 5)]
    outputs = batch_norm(*tensors, relu=relu)
    upstream = rng(9).uniform(-1, 1, inputs[0].shape) if upstream is None else upstream
    gradients = minigrad.grad([outputs[0]], leaves, [Tensor(upstream.astype(dtype)).to(device=device)])
    return [t.to(device="cpu").numpy() for t in (*outputs, *gradients)]


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize(("rows", "channels"), [(600, 12), (530, 5), (150, 300), (600, 150), (40, 1028)])
def test_batch_norm_of_several_slices_and_blocks_of_channels(rows, channels, evaluation):
    """600 rows of 3 packs are cut into slices, 150 rows of 300 numbers into more than the 16 that are merged side by side, of which the last is
    empty, and 600 rows of 150 into more than the 64 that are loaded at once; 257 packs, or 300 numbers in float64, need two blocks side by side.
    """
    inputs = batch_norm_inputs((rows, channels), evaluation)
    with minigrad.definitions():
        exact = run_batch_norm(inputs, np.float64, "cpu")
    for dtype, relative in ((np.float64, 1e-11), (np.float32, 1e-6)):
        with on_cuda():
            for k, (ours, reference) in enumerate(zip(run_batch_norm(inputs, dtype, "cuda"), exact, strict=True)):
                if k in (3, 6) and dtype == np.float32:  # rounding switches a ReLU here and there: not at all is seen in float64
                    ours = np.where(np.abs(exact[0]) < 1e-5, reference, ours)
                terms = np.sqrt(rows) if k in (4, 5) else None
                assert_close(ours, reference, f"result {k} in {np.dtype(dtype)}", relative, terms)


@pytest.mark.parametrize("first", [None, 0.0, 1e5])
def test_a_mean_of_a_thousand_costs_batch_norm_no_digits(first):
    """Also where the first number, which is subtracted from all others, lies far from them, and so in their place tells the least."""
    inputs = batch_norm_inputs((900, 8), offset=1e3)
    inputs = [None if x is None else x.astype(np.float32).astype(np.float64) for x in inputs]
    if first is not None:
        inputs[0][0] = first
    with minigrad.definitions():
        exact = run_batch_norm(inputs, np.float64, "cpu", relu=False)
    with on_cuda():
        ours = run_batch_norm(inputs, np.float32, "cuda", relu=False)
    for k, (a, b) in enumerate(zip(ours, exact, strict=True)):
        assert_close(a, b, f"result {k}", relative=1e-6 if first is None else 1e-5, terms=30 if k in (4, 5) else None)


@pytest.mark.parametrize("at", [0, 150, 299])
def test_a_number_far_from_all_others_costs_batch_norm_no_digits(at):
    """Wherever the kernels look for the pivot, which is subtracted from all numbers."""
    inputs = batch_norm_inputs((300, 4))
    inputs[0][at] = 1e5
    inputs = [None if x is None else x.astype(np.float32).astype(np.float64) for x in inputs]
    with minigrad.definitions():
        exact = run_batch_norm(inputs, np.float64, "cpu", relu=False)
    with on_cuda():
        ours = run_batch_norm(inputs, np.float32, "cuda", relu=False)
    for k, (a, b) in enumerate(zip(ours, exact, strict=True)):
        a, b = (np.delete(r, at, 0) if len(r) == 300 else r for r in (a, b))  # beside its own y any error is small
        assert_close(a, b, f"result {k}", relative=1e-6, terms=30 if k in (4, 5) else None)


def test_an_infinite_variance_leaves_no_gradient_even_where_products_with_it_overflow():
    x, upstream = np.float32([[1], [-1], [0.5], [1]]) * np.float32(1e38), np.float32([[9], [-9], [9], [9]])
    with on_cuda():
        leaves = [Tensor(a).to(device="cuda").requires_grad_() for a in (x, np.ones(1, np.float32))]
        y = functional.batch_norm(*leaves)[0]
        for t in (y, *minigrad.grad([y], leaves, [Tensor(upstream).to(device="cuda")])):
            assert not t.to(device="cpu").numpy().any()


def test_numbers_whose_squares_are_infinite_have_an_infinite_variance_and_not_nan():
    """As on the CPU, and in PyTorch."""
    x = np.array([[1e20, 1.0], [0.0, 2.0], [1.0, 3.0], [-1.0, 4.0]], np.float32)
    with np.errstate(over="ignore"):
        expected = [y.numpy() for y in functional.batch_norm(Tensor(x))]
    with on_cuda():
        found = [y.to(device="cpu").numpy() for y in functional.batch_norm(Tensor(x).to(device="cuda"))]
    for ours, cpu in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, cpu, rtol=1e-6, atol=1e-7)
    assert np.isinf(expected[2][0]) and not expected[0][:, 0].any()


def test_pooling_of_no_channels_is_empty():
    with on_cuda():
        for shape in ((2, 4, 4, 0), (0, 4, 4, 0)):
            x = Tensor(np.zeros(shape, np.float32), requires_grad=True).to(device="cuda")
            y = functional.avg_pool2d(x, 2)
            assert minigrad.grad([y], x, [Tensor(np.zeros(y.shape, np.float32)).to(device="cuda")])[0].shape == shape


def test_an_infinite_gradient_stops_at_a_relu_that_cut():
    inputs = batch_norm_inputs((2, 3, 3, 4))
    with on_cuda():
        y = run_batch_norm(inputs, np.float32, "cuda")[0]
        assert 0 < (y == 0).sum() < y.size
        for gradient in run_batch_norm(inputs, np.float32, "cuda", upstream=np.where(y == 0, np.inf, 1.0))[3:]:
            assert np.isfinite(gradient).all()


def test_nan_stays_in_its_channel_through_a_relu():
    inputs = batch_norm_inputs((2, 3, 3, 4))
    inputs[0][1, 0, 2, 1] = np.nan
    with on_cuda():
        y = run_batch_norm(inputs, np.float32, "cuda")[0]
    assert np.isnan(y[..., 1]).all() and np.isfinite(y[..., [0, 2, 3]]).all()


@pytest.mark.parametrize(("rows", "channels"), [(150, 6), (33, 8)])
def test_every_rung_of_batch_norm_s_ladder_computes_the_same(rows, channels):
    kernels = cuda.Kernels(FOLDER / "batch_norm.cu")
    inputs = batch_norm_inputs((rows, channels))
    upstream = rng(9).uniform(-1, 1, (rows, channels)).astype(np.float32)
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        x, weight, bias, residual, dy = (cp.asarray(a.astype(np.float32)) for a in (*inputs[:3], inputs[5], upstream))
        statistics, mean, var, dweight, dbias = (cp.empty(shape, np.float32) for shape in [(3, channels), *[channels] * 4])
        y, dx, dresidual = (cp.empty_like(x) for _ in range(3))
        kernels.launch("batch_norm_statistics_naive<float>", 1, 128, x, statistics, mean, var, rows, channels, 1e-5)
        arguments = (x, weight, bias, residual, statistics, y, x.size, channels, True)
        kernels.launch("batch_norm_forward_naive<float>", -(-x.size // 256), 256, *arguments)
        arguments = (dy, x, y, weight, statistics, dx, dweight, dbias, dresidual, rows, channels)
        kernels.launch("batch_norm_backward_naive<float>", 1, 128, *arguments)
        naive = [a.get() for a in (y, mean, var, dx, dweight, dbias, dresidual)]
        for k, (ours, first) in enumerate(zip(run_batch_norm(inputs, np.float32, "cuda"), naive, strict=True)):
            assert_close(ours, first, f"result {k}", relative=1e-5)


def test_normalising_never_waits_for_the_device():
    with on_cuda() as device:
        tensors = [None if x is None else Tensor(x).to(device="cuda").requires_grad_() for x in batch_norm_inputs((4, 4, 4, 8))]
        with nothing_waits(device):
            y, _, _ = batch_norm(*tensors, relu=True)
            minigrad.grad([y], [t for t in tensors if t is not None], [y.detach()])


# --- softmax and log_softmax


ROWS = [
    *[((5, 33), -1), ((3, 257), -1), ((2, 1023), 1), ((5, 128), -1), ((2, 132), -1), ((3, 1024), -1)],  # a warp per row
    *[((2, 1028), -1), ((2, 1030), -1)],  # a block per row
    *[((3, 5, 60), 1), ((40, 7), 0), ((2, 9, 1), 1)],  # other axes, of which only the last one's numbers are neighbours
]


@pytest.mark.parametrize("op", [softmax, log_softmax])
@pytest.mark.parametrize(("shape", "axis"), ROWS)
def test_softmax_of_rows_of_all_lengths(op, shape, axis):
    check_cuda(op, [3 * rng(1).standard_normal(shape)], {"axis": axis})


@pytest.mark.parametrize("op", [softmax, log_softmax])
def test_softmax_of_long_columns_is_as_accurate_as_the_definition(op):
    """One running sum of 10,000 numbers was up to eight times the bound: in forward for softmax, in backward for both."""
    check_cuda(op, [rng(1).standard_normal((10_000, 2))], {"axis": 0}, lowest=0)


@pytest.mark.parametrize("op", [softmax, log_softmax])
@pytest.mark.parametrize(("length", "axis"), [(70, 1), (1030, 1), (70, 0)])
def test_softmax_of_ties_and_of_rows_with_infinities_is_the_definition_s(op, length, axis):
    """Equal numbers share equally to the last bit; a row of -inf, or with an inf or a nan, is nan where the definition's is, and alone."""
    x = rng(2).uniform(-2, 2, (7, length)).astype(np.float32)
    x[0] = 7.25
    x[1, ::2] = -np.inf
    x[2] = -np.inf
    x[3, 3], x[4, 5] = np.inf, np.nan
    x[5, min(240, length - 1)] = 1e4  # of a block's last warp; nobody's exponential overflows
    x[6] = -3e38
    x = x if axis == 1 else np.ascontiguousarray(x.T)
    with minigrad.definitions(), np.errstate(invalid="ignore"):
        expected = op(Tensor(x), axis=axis).numpy()
    with on_cuda():
        ours = op(Tensor(x).to(device="cuda"), axis=axis).data.get()
    np.testing.assert_allclose(ours, expected, rtol=1e-5, equal_nan=True)
    first = ours[0] if axis == 1 else ours[:, 0]
    assert (first == first[0]).all()
    if op is softmax:
        assert first[0] == np.float32(1) / np.float32(length)


@pytest.mark.parametrize("op", [softmax, log_softmax])
@pytest.mark.parametrize("length", [20, 1028])
def test_the_naive_softmax_computes_the_same(op, length):
    kernels = cuda.Kernels(FOLDER / f"{op.name}.cu")
    x, upstream = rng(3).uniform(-3, 3, (2, 5, length)).astype(np.float32)
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        x_, dy, y, dx = cp.asarray(x), cp.asarray(upstream), cp.empty((5, length), np.float32), cp.empty((5, length), np.float32)
        kernels.launch(f"{op.name}_forward_columns<float>", 1, 128, x_, y, 5, length, 1)
        kernels.launch(f"{op.name}_backward_columns<float>", 1, 128, dy, y, dx, 5, length, 1)
        leaf = Tensor(x).to(device="cuda").requires_grad_()
        out = op(leaf)
        (gradient,) = minigrad.grad([out], [leaf], [Tensor(upstream).to(device="cuda")])
        assert_close(out.to(device="cpu"), y.get(), relative=1e-6)
        assert_close(gradient.to(device="cpu"), dx.get(), relative=1e-6)


# --- cross_entropy

CROSS_ENTROPY = sys.modules[cross_entropy.__module__]


def cross_entropy_results(logits: np.ndarray, labels: np.ndarray, smoothing: float, device: str) -> list[np.ndarray]:
    """The loss and its gradients, for an upstream gradient of 0.7."""
    tensors = [Tensor(a).to(device=device) for a in (logits, labels)]
    leaves = [t.requires_grad_() for t in tensors if t.dtype.kind == "f"]
    loss = cross_entropy(*tensors, label_smoothing=smoothing)
    upstream = Tensor(np.array(0.7, logits.dtype)).to(device=device)
    return [t.to(device="cpu").numpy() for t in (loss, *minigrad.grad([loss], leaves, [upstream]))]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("batch", "classes"), [(3, 1030), (300, 5), (5, 70)])
def test_cross_entropy_of_long_rows_and_of_many(batch, classes, soft, smoothing):
    """A block per row; more rows than the block that takes the mean has threads; a warp per row."""
    logits = rng(1).uniform(-3, 3, (batch, classes))
    labels = rng(2).uniform(0, 1, (batch, classes)) if soft else rng(2).integers(0, classes, batch)
    with minigrad.definitions():
        exact = cross_entropy_results(logits, labels, smoothing, "cpu")
    single = logits.astype(np.float32), labels.astype(np.float32) if soft else labels
    with on_cuda(ORDERS[:2]):
        for ours, reference in zip(cross_entropy_results(logits, labels, smoothing, "cuda"), exact, strict=True):
            assert_close(ours, reference)
        for ours, reference in zip(cross_entropy_results(*single, smoothing, "cuda"), exact, strict=True):
            assert_close(ours, reference, relative=1e-6)


def test_a_smoothing_near_1_costs_the_gradient_of_the_targets_no_digits():
    """1 - 0.9999 has four digits in float32."""
    logits, targets = rng(1).uniform(-3, 3, (3, 5)).astype(np.float32), rng(2).uniform(0, 1, (3, 5)).astype(np.float32)
    with minigrad.definitions():
        exact = cross_entropy_results(logits.astype(np.float64), targets.astype(np.float64), 0.9999, "cpu")
    with on_cuda():
        ours = cross_entropy_results(logits, targets, 0.9999, "cuda")
    for a, b in zip(ours, exact, strict=True):
        assert_close(a / np.abs(b).max(), b / np.abs(b).max(), relative=1e-6)


def test_a_target_of_zero_for_a_class_ruled_out():
    """Without smoothing 0 times -inf is nan; with it the target is not 0, and the loss is infinite, as the definition says."""
    logits, labels = np.array([[1.0, -np.inf, 2.0]]), np.array([[1.0, 0.0, 0.0]])
    for smoothing, expected in ((0.0, np.nan), (0.1, np.inf)):
        with minigrad.definitions(), np.errstate(invalid="ignore"):
            exact = cross_entropy_results(logits, labels, smoothing, "cpu")
        with on_cuda():
            ours = cross_entropy_results(logits, labels, smoothing, "cuda")
        np.testing.assert_array_equal(ours[0], expected)
        for a, b in zip(ours, exact, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_of_every_integer_type_are_looked_at_on_the_device_only(dtype):
    logits, labels = rng(1).uniform(-3, 3, (4, 6)), np.array([0, 5, 2, 2])
    with minigrad.definitions():
        exact = cross_entropy_results(logits, labels, 0.1, "cpu")
    with on_cuda() as device:
        cp = cuda.array_module()
        with nothing_waits(device):
            loss, saved = CROSS_ENTROPY.cuda_forward(cp.asarray(logits), cp.asarray(labels.astype(dtype)), 0.1)
            gradient, nothing = CROSS_ENTROPY.cuda_backward(cp.asarray(np.array(0.7)), saved, (True, True))
        assert nothing is None
        assert_close(loss.get(), exact[0])
        assert_close(gradient.get(), exact[1])


@pytest.mark.parametrize("label", [-1, 6, -100, 2**40])
def test_a_label_that_is_no_class_gives_nan_and_reads_nothing_else(label):
    with on_cuda():
        cp = cuda.array_module()
        logits, labels = cp.asarray(rng(1).uniform(-3, 3, (3, 6))), cp.asarray(np.array([1, label, 2]))
        loss, saved = CROSS_ENTROPY.cuda_forward(logits, labels, 0.0)
        gradient, _ = CROSS_ENTROPY.cuda_backward(cp.asarray(np.array(1.0)), saved, (True, False))
        assert np.isnan(loss.get())
        np.testing.assert_array_equal(np.isnan(gradient.get()).all(1), [False, True, False])


@pytest.mark.parametrize("classes", [10, 1030])
def test_the_naive_cross_entropy_computes_the_same(classes):
    kernels = cuda.Kernels(FOLDER / "cross_entropy.cu")
    logits, labels = rng(1).uniform(-3, 3, (5, classes)).astype(np.float32), rng(2).integers(0, classes, 5)
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        logits_, labels_, dy = cp.asarray(logits), cp.asarray(labels), cp.asarray(np.array(0.7, np.float32))
        log_p, losses, dlogits = cp.empty_like(logits_), cp.empty(5, np.float32), cp.empty_like(logits_)
        kernels.launch("cross_entropy_forward<float, 1>", 1, 128, logits_, labels_, None, log_p, losses, 5, classes, 0.9, 0.1)
        kernels.launch("cross_entropy_backward<float, 1>", 1, 128, dy, log_p, labels_, None, dlogits, None, 5, classes, 0.9, 0.1)
        loss, gradient = cross_entropy_results(logits, labels, 0.1, "cuda")
        assert_close(losses.get().mean() * -1, loss, relative=1e-6)
        assert_close(dlogits.get(), gradient, relative=1e-6)


# --- dropout and drop_path


@pytest.mark.parametrize("as_bool", [False, True])
@pytest.mark.parametrize("shape", [(7, 5, 9), (8, 40), (3, 1200)])
def test_dropout_by_packs_and_by_single_numbers(shape, as_bool):
    x, upstream = rng(1).standard_normal((2, *shape)).astype(np.float32)
    for op, of in ((dropout, shape), (drop_path, shape[:1])):
        mask = rng(2).uniform(0, 1, of) < 0.7
        mask = mask if as_bool else mask.astype(np.float32)
        with minigrad.definitions():
            leaf = Tensor(x).requires_grad_()
            y = op(leaf, Tensor(mask), 0.3)
            expected = y.numpy(), minigrad.grad([y], [leaf], [Tensor(upstream)])[0].numpy()
        with on_cuda(ORDERS):
            leaf = Tensor(x).to(device="cuda").requires_grad_()
            y = op(leaf, Tensor(mask).to(device="cuda"), 0.3)
            for ours, reference in zip((y, *minigrad.grad([y], [leaf], [Tensor(upstream).to(device="cuda")])), expected, strict=True):
                np.testing.assert_array_equal(ours.data.get(), reference)


def test_a_mask_of_dropout_may_start_at_any_number():
    with on_cuda():
        x = Tensor(rng(1).standard_normal(64).astype(np.float32)).to(device="cuda")
        for dtype in (np.bool_, np.float32, np.int64):
            mask = Tensor((rng(2).uniform(0, 1, 65) < 0.5).astype(dtype)).to(device="cuda")
            y = dropout(x, mask[1:], 0.5).data.get()
            np.testing.assert_array_equal(y, x.data.get() * mask.data.get()[1:] * np.float32(2))


def test_the_naive_dropout_computes_the_same():
    kernels = cuda.Kernels(FOLDER / "dropout.cu")
    x, mask = rng(1).standard_normal(300).astype(np.float32), rng(2).uniform(0, 1, 300) < 0.5
    with on_cuda():
        cp = cuda.array_module()
        y = cp.empty(300, np.float32)
        kernels.launch("dropout_forward_naive<float, bool>", 2, 256, cp.asarray(x), cp.asarray(mask), y, 300, 2.0)
        np.testing.assert_array_equal(y.get(), dropout(Tensor(x).to(device="cuda"), Tensor(mask).to(device="cuda"), 0.5).data.get())


def test_blocks_of_dropout_of_paths_take_several_parts_where_a_sample_has_more_than_a_grid_can_have_blocks():
    """Two blocks for 1,100 numbers of a sample, in place of 65,535 for more than 16 million: see `test_cuda_choices.py`."""
    kernels = cuda.Kernels(FOLDER / "dropout.cu")
    x, mask = rng(1).standard_normal((3, 1100)).astype(np.float32), np.array([True, False, True])
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        y = cp.empty(x.shape, np.float32)
        kernels.launch("drop_path_forward<float, float, bool>", (3, 2), 256, cp.asarray(x), cp.asarray(mask), y, 1100, 2.0)
        np.testing.assert_array_equal(y.get(), x * mask[:, None] * np.float32(2))


@draws(30)
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1)), max_size=3),
    st.sampled_from([(), (0,), (1,), (7,), (8,), (3, 11), (2, 3, 5), (2051,)]),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1),
)
def test_a_mask_of_dropout_drawn_on_the_device_is_the_one_that_numpy_draws(seed, counters, shape, p):
    random.manual_seed(seed)
    expected = np.asarray(random.generator("dropout", *counters).random(shape, dtype=np.float32) >= p)
    with on_cuda() as device:
        with nothing_waits(device):
            ours = cuda_keep_mask(random.generator("dropout", *counters), shape, p)
        np.testing.assert_array_equal(ours.get(), expected)
        assert ours.shape == shape and ours.dtype == np.bool_


def test_every_one_of_the_24_bits_of_a_number_counts_for_a_mask_of_dropout():
    """With p equal to a number that is drawn, or to its neighbour above, the mask changes at that number."""
    random.manual_seed(3)
    numbers = random.generator("dropout").random(400, dtype=np.float32)
    with on_cuda():
        for p in numbers[:40]:
            for limit in (p, np.nextafter(p, np.float32(1))):
                ours = cuda_keep_mask(random.generator("dropout"), (400,), float(limit))
                np.testing.assert_array_equal(ours.get(), numbers >= limit)


def test_a_mask_of_dropout_may_take_a_generator_to_the_end_of_its_counter_and_not_beyond():
    """Philox makes four numbers of 64 bits, hence eight of the mask, for each value of its counter; the first value is the one after the start's."""
    with on_cuda():
        for left, size in ((2, 8), (3, 16), (3, 23), (4, 24)):
            generator = np.random.Generator(np.random.Philox(key=5, counter=np.array([2**64 - 1 - left, 1, 0, 0], np.uint64)))
            ours = cuda_keep_mask(generator, (size,), 0.5)
            np.testing.assert_array_equal(ours.get(), generator.random(size, dtype=np.float32) >= 0.5)
            with pytest.raises(ValueError, match="the generator's counter is too near its end"):
                cuda_keep_mask(np.random.Generator(np.random.Philox(key=5, counter=np.array([2**64 - left, 1, 0, 0], np.uint64))), (size,), 0.5)


def test_generators_whose_numbers_the_device_cannot_draw_for_dropout_are_refused():
    used = random.generator("dropout")
    used.random()
    for generator in (used, np.random.default_rng(0)):
        with on_cuda(), pytest.raises(ValueError, match="must be a Philox from which nothing has been drawn"):
            cuda_keep_mask(generator, (3,), 0.5)


# --- all of them


def test_other_dtypes_are_refused():
    with on_cuda(), pytest.raises(TypeError, match="CUDA kernels compute in float32 and float64, not in float16"):
        gelu(wrap(np.ones(4, np.float16)).to(device="cuda"))


@pytest.mark.emulator
@pytest.mark.skipif("MINIGRAD_EMULATOR" in os.environ, reason="runs in the process that this test starts")
def test_the_same_under_address_sanitizer():
    """It sees what leaves a thread's own arrays by a pointer. Kernels of other folders index theirs where they declare them, which `check` sees."""
    run_tests(*(Path(__file__).with_name(f"test_cuda_{name}.py") for name in ("kernels", "conv", "attention")), MINIGRAD_EMULATOR="address")
