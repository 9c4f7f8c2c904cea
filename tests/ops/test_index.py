"""Picking elements and adding values back, against PyTorch. Read next: `test_matmul.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from tests.support import check_op, rng, shapes


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.asarray(rng(seed).uniform(-2, 2, shape))


def torch_index(shape: tuple, index: Any) -> Any:
    """x[index] in PyTorch, which has no negative steps: by the places that NumPy's index picks."""
    places = torch.tensor(np.array(np.arange(np.prod(shape, dtype=int)).reshape(shape)[index], order="C"))
    return lambda x: x.reshape(-1)[places]


@settings(max_examples=40)
@given(shapes(min_side=0).flatmap(lambda shape: st.tuples(st.just(shape), hnp.basic_indices(shape, allow_newaxis=True))), st.integers(0, 99))
def test_basic_indices(case: tuple, seed: int):
    shape, index = case
    check_op(lambda x: x[index], torch_index(shape, index), [draw(shape, seed)])


@settings(max_examples=30)
@given(
    shapes(min_dims=1, min_side=1).flatmap(
        lambda shape: st.tuples(st.just(shape), hnp.integer_array_indices(shape, result_shape=hnp.array_shapes(max_dims=2, max_side=4)))
    )
)
def test_integer_arrays_repeat_elements(case: tuple):
    shape, index = case
    check_op(lambda x: x[index], torch_index(shape, index), [draw(shape)])


@settings(max_examples=20)
@given(shapes(), st.integers(0, 99))
def test_boolean_masks(shape: tuple, seed: int):
    mask = np.asarray(rng(seed).random(shape) < 0.5)
    check_op(lambda x: x[mask], torch_index(shape, mask), [draw(shape)])


@pytest.mark.parametrize(
    "index",
    [
        (slice(None), [0, 0, 2]),
        ([1, 1], slice(1, 3)),
        (0, [0, 2]),
        ([0, 1], [2, 2]),
        (None, [1, 0, 1]),
        (..., [2, 2]),
        ([[0], [1]], [[0, 1]]),
        (slice(None), np.array([True, False, True])),
        np.int64(1),
        (np.int32(1), slice(None, None, -1)),
        [0, 0],
        [],
        (slice(None), []),
        True,
        (slice(0, 0),),
        -1,
        [-1, -2],
        ([True, False],),
    ],
    ids=repr,
)
def test_mixed_indices(index: Any):
    def plain(part: Any) -> Any:
        return np.array(part, int) if isinstance(part, list) and not part else part  # NumPy itself makes floats of []

    picked = tuple(plain(part) for part in index) if isinstance(index, tuple) else plain(index)
    check_op(lambda x: x[index], torch_index((2, 3), picked), [draw((2, 3))])


def test_tensors_as_indices():
    x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    upstream = Tensor(np.array([1.0, 10.0, 100.0]))
    assert_array_equal(minigrad.grad(x[Tensor(np.array([2, 0, 2]))], x, upstream)[0].numpy(), [10, 0, 101])
    assert_array_equal(minigrad.grad(x[x < 2.5], x, upstream[:2])[0].numpy(), [1, 10, 0])
    image = Tensor(draw((2, 3)), requires_grad=True)
    rows, columns = Tensor(np.array([0, 1, 0])), Tensor(np.array([2, 2, 2]))
    assert_array_equal(minigrad.grad(image[rows, columns], image, upstream)[0].numpy(), [[0, 0, 101], [0, 0, 10]])


def test_an_index_may_be_reused():
    """The graph keeps its own copy of an index: writing to it later changes no gradient."""
    x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
    for index in (np.array([0, 0]), Tensor(np.array([0, 0])), [0, 0]):
        y = x[index]
        index[:] = 2 if not isinstance(index, list) else [2, 2]
        assert_array_equal(minigrad.grad(y, x, Tensor(np.array([3.0, 4.0])))[0].numpy(), [7.0, 0.0, 0.0])


@settings(max_examples=20)
@given(shapes(min_dims=1, min_side=1), st.data())
def test_gather_and_scatter_add(shape: tuple, data: st.DataObject):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    count, seed = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 99))
    wanted = list(shape)
    wanted[axis] = count
    indices = rng(seed).integers(0, shape[axis], wanted)
    check_op(lambda x, i: ops.gather(x, i, axis), lambda x, i: torch.take_along_dim(x, i, axis), [draw(shape), indices])
    values = draw(tuple(wanted), 1)
    check_op(
        lambda v, i: ops.scatter_add(v, i, axis, shape[axis]),
        lambda v, i: torch.zeros(shape, dtype=v.dtype).scatter_add(axis, i, v),
        [values, indices],
    )


@pytest.mark.parametrize(
    ("shape", "indices_shape", "axis"),
    [((1, 4), (3, 2), 1), ((3, 4), (1, 2), 1), ((3, 4), (2, 1), 0), ((2, 1, 4), (1, 3, 5), -1), ((2, 4, 1), (1, 3, 5), 1)],
)
def test_gather_broadcasts(shape: tuple, indices_shape: tuple, axis: int):
    indices = rng(0).integers(0, shape[axis], indices_shape)
    check_op(lambda x, i: ops.gather(x, i, axis), lambda x, i: torch.take_along_dim(x, i, axis), [draw(shape), indices])


def test_gather_keeps_its_own_copy_of_an_array_of_indices():
    x, indices = Tensor(np.array([1.0, 2.0]), requires_grad=True), np.array([0, 0])
    y = ops.gather(x, indices, 0)
    indices[:] = 1
    y.backward(Tensor(np.array([3.0, 4.0])))
    assert_array_equal(x.grad.numpy(), [7.0, 0.0])


@pytest.mark.parametrize("index", [(slice(None), 1), ([0, 0], [1, 2]), (None, slice(1, 2))], ids=repr)
def test_put_is_the_adjoint_of_getitem(index: Any):
    x = torch.zeros((2, 3), dtype=torch.float64, requires_grad=True)
    picked = torch_index((2, 3), index)(x)

    def adjoint(y: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(picked, x, y, create_graph=True, retain_graph=True)[0]

    check_op(lambda y: ops.put(y, index, (2, 3)), adjoint, [draw(tuple(picked.shape))])


def test_errors():
    x = Tensor(draw((2, 3)))
    with pytest.raises(IndexError, match="index 5 is out of bounds for axis 1 with size 3"):
        x[0, 5]
    with pytest.raises(IndexError, match="too many indices.* 2-dimensional.* 3 were indexed"):
        x[0, 0, 0]
    with pytest.raises(IndexError, match="boolean index did not match.* size of axis is 2.* is 3"):
        x[np.array([True, False, True])]
    with pytest.raises(IndexError, match="index 7 is out of bounds for axis 1 with size 3"):
        ops.gather(x, np.array([[7], [0]]), 1)
    with pytest.raises(IndexError):
        x["row"]
