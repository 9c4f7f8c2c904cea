"""Clipping by the global norm, against PyTorch's."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad import Tensor, nn, optim
from tests.support import assert_close, rng


@settings(max_examples=2 * settings().max_examples)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5),
    missing=st.sampled_from([0.0, 0.5]),
    scale=st.sampled_from([1e-200, 1e-9, 1.0, 1e9, 1e200]),
    max_norm=st.sampled_from([0.0, 1e-9, 1.0, 1e9, math.inf]) | st.floats(0, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_gradients_are_clipped_as_pytorch_clips_them(shapes: list[tuple[int, ...]], missing: float, scale: float, max_norm: float, seed: int):
    values = rng(seed)
    ours = [nn.Parameter(np.zeros(shape)) for shape in shapes]
    theirs = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    for p, q in zip(ours, theirs, strict=True):
        if values.random() >= missing:
            grad = scale * values.standard_normal(p.shape)
            p.grad, q.grad = Tensor(grad), torch.tensor(grad)
    total = optim.clip_grad_norm_(ours, max_norm)
    # PyTorch squares without scaling: beyond the square root of the largest number its norm is inf, so it is shown smaller ones
    unit = 1.0 if 1e-100 < scale < 1e100 else scale
    with torch.no_grad():
        for q in theirs:
            if q.grad is not None:
                q.grad /= unit
    norm = torch.nn.utils.get_total_norm([q.grad for q in theirs if q.grad is not None]).item() * unit
    assert total == pytest.approx(norm, rel=1e-13, abs=0)
    factor = min(1.0, max_norm / (norm + 1e-6))
    if unit == 1.0:
        torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        factor = 1.0
    for p, q in zip(ours, theirs, strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy() * unit * factor, rtol=1e-12)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 3.0, 1e6, math.inf])
def test_is_pytorchs(max_norm: float):
    grads = [rng(k).standard_normal(shape) for k, shape in enumerate([(3, 4), (5,), (), (0, 2)])]
    ours, theirs = [nn.Parameter(np.zeros_like(g)) for g in grads], [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
    for p, q, g in zip(ours, theirs, grads, strict=True):
        p.grad, q.grad = Tensor(g), torch.tensor(g)
    unused = nn.Parameter(np.ones(2))
    total = optim.clip_grad_norm_([*ours, unused], max_norm)
    reference = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert type(total) is float and total == pytest.approx(reference.item(), rel=1e-14)
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p.grad, q.grad)
    assert unused.grad is None


def test_scales_in_place_and_only_where_needed():
    p = nn.Parameter(np.zeros(2, np.float32))
    p.grad = Tensor(np.array([3, 4], np.float32))
    grad, array = p.grad, p.grad.data
    assert optim.clip_grad_norm_([p], 10.0) == 5.0
    np.testing.assert_array_equal(array, [3, 4])
    version = grad.version[0]
    assert optim.clip_grad_norm_(p, 1.0) == 5.0
    assert p.grad is grad and grad.data is array and array.dtype == np.float32 and grad.version[0] == version + 1
    np.testing.assert_allclose(array, [0.6, 0.8], rtol=1e-6)


def test_a_parameter_given_twice_counts_once():
    p = nn.Parameter(np.zeros(2))
    p.grad = Tensor(np.array([3.0, 4.0]))
    assert optim.clip_grad_norm_([p, p], 1.0) == 5.0
    np.testing.assert_allclose(p.grad.numpy(), [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("size", [1e30, 1e-22, 1e-30])
def test_float32_gradients_whose_squares_leave_the_range(size: float):
    """Or are so near its end that few digits of them are left."""
    p = nn.Parameter(np.zeros(4, np.float32))
    p.grad = Tensor(size * np.array([3, -12, 0, 4], np.float32))
    assert p.grad.dtype == np.float32
    assert optim.clip_grad_norm_([p], math.inf) == pytest.approx(13 * size, rel=1e-6, abs=0)


def test_gradients_of_zeros():
    """Nothing is divided by their norm, and beside others they count for nothing."""
    p, q = nn.Parameter(np.zeros(3)), nn.Parameter(np.zeros(2))
    p.grad = Tensor(np.zeros(3))
    for max_norm in (0.0, 1.0):
        assert optim.clip_grad_norm_([p], max_norm) == 0.0
        np.testing.assert_array_equal(p.grad.numpy(), np.zeros(3))
    q.grad = Tensor(np.array([3.0, 4.0]))
    assert optim.clip_grad_norm_([p, q], 1.0) == 5.0


def test_nothing_to_clip():
    assert optim.clip_grad_norm_([], 1.0) == 0.0
    assert optim.clip_grad_norm_([nn.Parameter(np.ones(2))], 1.0) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite(bad: float):
    def fresh() -> tuple[Tensor, torch.Tensor]:
        p, q = nn.Parameter(np.zeros(2)), torch.zeros(2, dtype=torch.float64, requires_grad=True)
        p.grad, q.grad = Tensor(np.array([1.0, bad])), torch.tensor([1.0, bad], dtype=torch.float64)
        return p, q

    p, q = fresh()
    with pytest.raises(FloatingPointError, match="the norm of the gradients is"):
        optim.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(p.grad.numpy(), [1.0, bad])
    total, reference = optim.clip_grad_norm_([p], 1.0), torch.nn.utils.clip_grad_norm_([q], 1.0)
    np.testing.assert_array_equal([total], [reference.item()])
    np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


def test_a_nan_is_not_hidden_by_an_infinity():
    """`math.hypot(inf, nan)` is inf, by which everything else would be divided to 0."""
    params = [nn.Parameter(np.zeros(5000)) for _ in range(3)]  # too large to be put end to end
    for p, last in zip(params, (math.inf, math.nan, 1.0), strict=True):
        p.grad = Tensor(np.append(np.ones(4999), last))
    assert math.isnan(optim.clip_grad_norm_(params, 1.0))
    assert all(np.isnan(p.grad.numpy()).all() for p in params)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_infinite_norm_only_measures(bad: float):
    """Unlike PyTorch's, which divides infinity by infinity and makes every gradient NaN."""
    p = nn.Parameter(np.zeros(3))
    p.grad = Tensor(np.array([1.0, bad, -2.0]))
    version = p.grad.version[0]
    assert optim.clip_grad_norm_([p], math.inf) == pytest.approx(abs(bad), nan_ok=True)
    np.testing.assert_array_equal(p.grad.numpy(), [1.0, bad, -2.0])
    assert p.grad.version[0] == version


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_wrong_norm(max_norm: float):
    with pytest.raises(ValueError, match="max_norm is .*; it cannot be negative"):
        optim.clip_grad_norm_([], max_norm)


def test_small_and_large_gradients_count_alike(monkeypatch: pytest.MonkeyPatch):
    """The small ones are laid end to end; here an array of six numbers is the largest of them."""
    page = sys.modules[optim.clip_grad_norm_.__module__]
    monkeypatch.setattr(page, "SMALL", 6)
    sizes = []
    monkeypatch.setattr(page, "_norm", lambda vector, norm=page._norm: sizes.append(vector.size) or norm(vector))
    grads = [rng(k).standard_normal(shape) for k, shape in enumerate([(2, 3), (7,), (1,), (4, 4)])]
    params = [nn.Parameter(np.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = Tensor(g.copy())
    assert optim.clip_grad_norm_(params, 1.0) == pytest.approx(np.linalg.norm(np.concatenate([g.reshape(-1) for g in grads])), rel=1e-14)
    assert sorted(sizes) == [7, 7, 16]


@pytest.mark.parametrize(("size", "count"), [(4096, 120), (491_520, 1)])
def test_many_numbers_are_added_up_in_pieces(size: int, count: int):
    """Half a million: in one running sum, even of BLAS, the norm was 1e-5 off."""
    params = [nn.Parameter(np.zeros(size, np.float32)) for _ in range(count)]
    for p in params:
        p.grad = Tensor(np.full(size, 0.1, np.float32))
    assert optim.clip_grad_norm_(params, math.inf) == pytest.approx(float(np.float32(0.1)) * math.sqrt(size * count), rel=2e-6, abs=0)


def test_a_gradient_that_is_no_tensor_is_refused():
    ours = [nn.Parameter(np.ones(3)) for _ in range(2)]
    ours[0].grad, ours[1].grad = Tensor(np.ones(3)), np.ones(3)  # type: ignore[assignment]
    with pytest.raises(TypeError, match="clip_grad_norm_: the .grad of a parameter is a ndarray; give a Tensor, or None"):
        optim.clip_grad_norm_(ours, 0.1)
    assert (ours[0].grad.numpy() == 1).all()
