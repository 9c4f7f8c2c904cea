"""Reductions against PyTorch: every way to name axes, ties, empty and 0-d tensors. Read next: `test_movement.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from tests.support import assert_close, check_op, rng


@st.composite
def reductions(draw: Any, min_side: int = 0) -> tuple[np.ndarray, Any, bool]:
    """An array, an axis argument that fits it (None, a number, a tuple; negative ones too), and keepdims."""
    shape = tuple(draw(st.lists(st.integers(min_side, 4), max_size=3)))
    axes = st.integers(-len(shape), len(shape) - 1)
    several = st.lists(axes, unique_by=lambda a: a % len(shape), min_size=1).map(tuple)
    axis = draw(st.one_of(st.none(), axes, several)) if shape else None
    return np.asarray(rng(draw(st.integers(0, 9999))).uniform(-2, 2, shape)), axis, draw(st.booleans())


def every_axis(x: torch.Tensor, axis: Any) -> Any:
    return tuple(range(x.ndim)) if axis is None else axis


@given(reductions())
def test_sum(case: tuple):
    x, axis, keepdims = case
    check_op(lambda x: ops.sum(x, axis, keepdims), lambda x: torch.sum(x, every_axis(x, axis), keepdims) if x.ndim else x.sum(), [x])


@given(reductions(min_side=1))
def test_mean(case: tuple):
    x, axis, keepdims = case
    check_op(lambda x: ops.mean(x, axis, keepdims), lambda x: torch.mean(x, every_axis(x, axis), keepdims) if x.ndim else x.mean(), [x])


@given(reductions(min_side=1))
def test_var(case: tuple):
    x, axis, keepdims = case
    check_op(lambda x: ops.var(x, axis, keepdims), lambda x: ((x - x.mean(every_axis(x, axis), True)) ** 2).mean(every_axis(x, axis), keepdims), [x])


def test_var_is_numpys():
    x = rng(1).uniform(-1, 1, (3, 4)) + 1e6  # far from 0: the two-pass formula keeps its digits
    assert_close(Tensor(x).var(0), x.var(0), relative=1e-9)
    assert_close(Tensor(x).var(0), torch.var(torch.tensor(x), 0, correction=0), relative=1e-9)


@pytest.mark.parametrize("name", ["max", "min"])
@settings(max_examples=15)
@given(reductions(min_side=1), st.booleans())
def test_max_and_min_share_ties(name: str, case: tuple, ties: bool):
    x, axis, keepdims = case
    x = np.round(x) if ties else x
    reference = torch.amax if name == "max" else torch.amin
    check_op(lambda x: getattr(ops, name)(x, axis, keepdims), lambda x: reference(x, every_axis(x, axis), keepdims), [x])


def test_ties_by_hand():
    x = Tensor(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), requires_grad=True)
    x.max(1).backward(Tensor(np.array([1.0, 6.0])))
    assert_array_equal(x.grad.numpy(), [[0, 0.5, 0.5], [2, 2, 2]])
    x.grad = None
    x.max().backward()
    assert_array_equal(x.grad.numpy(), [[0, 0.5, 0.5], [0, 0, 0]])


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
@pytest.mark.parametrize("axis", [0, -1, None, ()])
def test_reducing_a_single_number(name: str, axis: Any):
    """PyTorch, like NumPy's ufuncs, takes 0 and -1 for an axis of a 0-d tensor."""
    x = Tensor(np.array(3.0), requires_grad=True)
    y = getattr(x, name)(axis)
    assert y.shape == () and type(y.data) is np.ndarray
    assert y.item() == (0.0 if name == "var" else 3.0)
    assert minigrad.grad(y, x)[0].item() == (0.0 if name == "var" else 1.0)


@pytest.mark.parametrize("axis", [np.int64(1), np.int32(-1), (np.int64(0), 1)], ids=repr)
@pytest.mark.parametrize("name", ["sum", "mean", "max"])
def test_axes_may_be_numpy_integers(name: str, axis: Any):
    x = rng(3).uniform(-1, 1, (2, 3))
    plain = tuple(int(a) for a in axis) if isinstance(axis, tuple) else int(axis)
    ours, expected = (Tensor(x, True) for _ in range(2))
    getattr(ours, name)(axis).sum().backward()
    getattr(expected, name)(plain).sum().backward()
    assert_array_equal(ours.grad.numpy(), expected.grad.numpy())


def test_no_axes_reduce_nothing():
    x = rng(0).uniform(-1, 1, (2, 3))
    for name in ("sum", "mean", "max"):
        t = Tensor(x, requires_grad=True)
        y = getattr(t, name)(())
        assert_array_equal(y.numpy(), x)
        upstream = rng(1).uniform(-1, 1, (2, 3))
        assert_array_equal(minigrad.grad(y, t, Tensor(upstream))[0].numpy(), upstream)


@settings(max_examples=15)
@given(reductions(min_side=1))
def test_argmax_takes_the_first(case: tuple):
    x, axis, _ = case
    x = np.round(x)
    axis = axis[0] if isinstance(axis, tuple) else axis
    y = ops.argmax(Tensor(x, requires_grad=True), axis)
    assert y.dtype == np.int64 and not y.requires_grad and type(y.data) is np.ndarray
    assert_array_equal(y.numpy(), np.argmax(x, axis))


def test_argmax_first_of_equals():
    assert ops.argmax(Tensor([1.0, 3.0, 3.0])).item() == 1
    assert_array_equal(Tensor([[0.0, 0.0], [1.0, 2.0]]).argmax(1).numpy(), [0, 1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_results_are_arrays_of_the_same_dtype(name: str, dtype: type):
    y = getattr(Tensor(np.ones((2, 3), dtype)), name)()
    assert type(y.data) is np.ndarray and y.dtype == dtype and y.shape == ()


def test_integers():
    x = Tensor(np.array([[1, 2], [3, 5]]))
    assert x.sum().item() == 11 and x.sum().dtype == np.int64
    assert x.max(0).dtype == np.int64
    assert x.mean().item() == 2.75 and x.mean().dtype == np.float32
    assert Tensor(np.array([True, False, True])).mean().item() == pytest.approx(2 / 3)


def test_empty():
    x = Tensor(np.zeros((0, 3)), requires_grad=True)
    assert_array_equal(x.sum(0).numpy(), np.zeros(3))
    assert x.sum().item() == 0.0
    assert x.max(1).shape == (0,)
    assert minigrad.grad(x.sum(), x)[0].shape == (0, 3)
    with pytest.raises(ValueError, match="zero-size"):
        x.max(0)


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min", "var"])
def test_an_axis_that_is_not_there(name: str):
    with pytest.raises(ValueError, match="axis 2 is out of bounds for array of dimension 2"):
        getattr(Tensor(np.ones((2, 3))), name)(2)
    with pytest.raises(ValueError, match="axis -3 is out of bounds for array of dimension 2"):
        getattr(Tensor(np.ones((2, 3))), name)(-3)
    with pytest.raises(ValueError, match="duplicate"):
        getattr(Tensor(np.ones((2, 3))), name)((0, 0))
