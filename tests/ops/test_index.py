"""Picking elements and adding values back, against PyTorch. Read next: `test_matmul.py`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, ops
from minigrad.op import REGISTRY
from tests.proofs import Case, Proof, Refusal, check_op
from tests.support import lengths, often, rng, shapes


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.asarray(rng(seed).uniform(-2, 2, shape))


def places(shape: tuple, index: Any) -> torch.Tensor:
    """Where the elements that NumPy's index picks stand in the flattened array: PyTorch has no negative steps."""
    return torch.tensor(np.array(np.arange(np.prod(shape, dtype=int)).reshape(shape)[index], order="C"))


def torch_getitem(x: torch.Tensor, index: Any) -> torch.Tensor:
    return x.reshape(-1)[places(x.shape, index)]


def torch_put(x: torch.Tensor, index: Any, shape: tuple) -> torch.Tensor:
    zeros = torch.zeros(int(np.prod(shape)), dtype=x.dtype)
    return zeros.index_put((places(shape, index).reshape(-1),), x.reshape(-1), accumulate=True).reshape(shape)


seeds = st.integers(0, 2**32 - 1)


def masks(shape: tuple) -> st.SearchStrategy[np.ndarray]:
    return seeds.map(lambda seed: np.asarray(rng(seed).random(shape) < 0.6))


def repeating(shape: tuple) -> st.SearchStrategy[Any]:
    return hnp.integer_array_indices(shape, result_shape=shapes(min_dims=1, max_dims=2, min_side=1))


@st.composite
def mixtures(draw_from: Any) -> tuple:
    """Slices in both directions and, along one or two axes, integers that may be the same: beside each other or apart, which is not the same."""
    shape = draw_from(st.sampled_from([(3, 4), (2, 3), (2, 3, 4), (4, 2, 3)]))
    some = draw_from(st.sampled_from([axes for count in (1, 2) for axes in combinations(range(len(shape)), count)]))
    count = draw_from(st.integers(2, 4))
    index = [rng(draw_from(seeds)).integers(-n, n, count) if axis in some else draw_from(st.sampled_from(SLICES)) for axis, n in enumerate(shape)]
    return shape, tuple(index)


@st.composite
def sliced(draw_from: Any) -> tuple:
    """Slices, and seldom a number, for some of the axes."""
    shape = draw_from(shapes(min_dims=1))
    count = draw_from(st.integers(1, len(shape)))
    parts = [st.sampled_from(SLICES) if length < 2 else often(st.sampled_from(SLICES), st.integers(-length, length - 1)) for length in shape]
    return shape, tuple(draw_from(part) for part in parts[:count])


SLICES = [slice(None), slice(None, None, -1), slice(1, None), slice(None, -1), slice(None, None, 2), slice(-1, 0, -1)]


def picks() -> st.SearchStrategy[tuple]:
    """A shape and an index that fits it: slices and integers, arrays of integers, both, masks."""
    other = shapes().flatmap(lambda shape: st.tuples(st.just(shape), hnp.basic_indices(shape, allow_newaxis=True)))
    arrays = shapes(min_dims=1, min_side=1).flatmap(lambda shape: st.tuples(st.just(shape), repeating(shape)))
    return often(sliced(), other, 2) | mixtures() | arrays | shapes(min_dims=1).flatmap(lambda shape: st.tuples(st.just(shape), masks(shape)))


MIXED = (slice(1, None), np.array([2, 0, 2]), slice(None, None, -2))
APART = (np.array([1, 1, 0]), slice(None), np.array([3, 3, 0]))


class TestGetitem(Proof):
    op, in_torch = REGISTRY["getitem"], staticmethod(torch_getitem)
    cases = st.builds(lambda pick, seed: Case([draw(pick[0], seed)], {"index": pick[1]}), picks(), seeds)
    share = 0.85
    examples = [
        *[Case([draw((2, 3, 4))], {"index": index}) for index in (MIXED, APART)],
        Case([draw(())], {"index": (None, ...)}),
        Case([draw((0, 2))], {"index": np.zeros((0, 2), bool)}),
    ]
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(Case([np.zeros((2, 3))], {"index": (0, 5)}), IndexError, "index 5 is out of bounds for axis 1 with size 3"),
        Refusal(Case([np.zeros((2, 3))], {"index": (0, 0, 0)}), IndexError, "too many indices.* 2-dimensional.* 3 were indexed"),
        Refusal(Case([np.zeros((2, 3))], {"index": np.ones(3, bool)}), IndexError, "boolean index did not match.* size of axis is 2.* is 3"),
        Refusal(Case([np.zeros((2, 3))], {"index": "row"}), IndexError, "only integers, slices"),
    ]


class TestPut(Proof):
    op, in_torch = ops.put, staticmethod(torch_put)
    cases = st.builds(lambda pick, seed: Case([draw(places(*pick).shape, seed)], {"index": pick[1], "shape": pick[0]}), picks(), seeds)
    examples = [
        Case([draw((2,))], {"index": ([0, 0], [1, 1]), "shape": (2, 3)}),
        *[Case([draw(places((2, 3, 4), index).shape)], {"index": index, "shape": (2, 3, 4)}) for index in (MIXED, APART)],
    ]
    keeps = {"x": ""}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(Case([np.zeros(2)], {"index": 5, "shape": (3,)}), IndexError, "index 5 is out of bounds"),
        Refusal(Case([np.zeros(2)], {"index": slice(0, 3), "shape": (3,)}), ValueError, "shape"),
    ]


@st.composite
def gathers(draw_from: Any, adjoint: bool) -> Case:
    shape = draw_from(shapes(min_dims=1, min_side=1))
    axis, count, seed = draw_from(st.integers(-len(shape), len(shape) - 1)), draw_from(lengths(2, 5, 0)), draw_from(seeds)
    wanted = list(shape)
    wanted[axis] = count
    indices = rng(seed).integers(0, shape[axis], wanted)
    if adjoint:
        return Case([draw(tuple(wanted), seed), indices], {"axis": axis, "size": shape[axis]})
    return Case([draw(shape, seed), indices], {"axis": axis})


def torch_scatter_add(x: torch.Tensor, indices: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    shape = list(x.shape)
    shape[axis] = size
    return torch.zeros(shape, dtype=x.dtype).scatter_add(axis, indices, x)


BROADCAST = [((1, 4), (3, 2), 1), ((3, 4), (1, 2), 1), ((3, 4), (2, 1), 0), ((2, 1, 4), (1, 3, 5), -1), ((2, 4, 1), (1, 3, 5), 1)]


def torch_gather(x: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    """torch.take_along_dim, which broadcasts, but does not look whether the indices are inside; torch.gather does."""
    if x.ndim == indices.ndim:
        axis %= x.ndim
        common = torch.broadcast_shapes(*[(*y.shape[:axis], 1, *y.shape[axis + 1 :]) for y in (x, indices)])
        x, indices = (y.expand(*common[:axis], y.shape[axis], *common[axis + 1 :]) for y in (x, indices))
    return torch.gather(x, axis, indices)


class TestGather(Proof):
    op, in_torch = ops.gather, staticmethod(torch_gather)
    cases = gathers(adjoint=False)
    examples = [Case([draw(shape), rng(0).integers(0, shape[axis], wanted)], {"axis": axis}) for shape, wanted, axis in BROADCAST]
    keeps = {"x": "indices"}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(Case([np.zeros((2, 3)), np.array([[7], [0]])], {"axis": 1}), IndexError, "index 7 is out of bounds for axis 1 with size 3"),
        Refusal(Case([np.zeros((2, 3)), np.array([0])], {"axis": 1}), ValueError, "same number of dimensions"),
        Refusal(Case([np.zeros((2, 3)), np.array([[0.0]])], {"axis": 1}), IndexError, "must be an integer array"),
        Refusal(Case([np.zeros((2, 3)), np.array([0])], {"axis": None}), TypeError, "gather: the axis must be a whole number, it is None"),
    ]


class TestScatterAdd(Proof):
    op, in_torch = ops.scatter_add, staticmethod(torch_scatter_add)
    cases = gathers(adjoint=True)
    keeps = {"x": "indices"}
    pins = "It is linear, there is no kink."
    errors = [
        Refusal(
            Case([np.zeros((2, 1)), np.array([[7], [0]])], {"axis": 1, "size": 3}), IndexError, "index 7 is out of bounds for axis 1 with size 3"
        ),
        Refusal(Case([np.zeros((2, 3)), np.array([[0.0]])], {"axis": 1, "size": 3}), IndexError, "integer"),
        Refusal(
            Case([np.zeros((2, 3)), np.array([[0]])], {"axis": None, "size": 3}),
            TypeError,
            "scatter_add: the axis must be a whole number, it is None",
        ),
    ]


# --- indices as they are written


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
        range(2),
        range(0),
        (slice(None), range(2, 0, -1)),
    ],
    ids=repr,
)
def test_mixed_indices(index: Any):
    def plain(part: Any) -> Any:
        return np.array(part, int) if isinstance(part, list) and not part else part  # NumPy itself makes floats of []

    picked = tuple(plain(part) for part in index) if isinstance(index, tuple) else plain(index)
    check_op(lambda x: x[index], lambda x: torch_getitem(x, picked), [draw((2, 3))])


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
    for index in (np.array([0, 0]), Tensor(np.array([0, 0])), [0, 0], torch.tensor([0, 0])):
        y = x[index]
        index[:] = 2 if not isinstance(index, list) else [2, 2]
        assert_array_equal(minigrad.grad(y, x, Tensor(np.array([3.0, 4.0])))[0].numpy(), [7.0, 0.0, 0.0])


@pytest.mark.parametrize("make", [lambda number: Tensor(np.array(number)), lambda number: np.array(number)], ids=["Tensor", "array"])
def test_a_slice_is_made_of_numbers(make: Callable):
    """What it was given may be written to before backward."""
    x, start, stop = Tensor(np.arange(5.0), requires_grad=True), make(0), make(2)
    y = x[start:stop]
    start[...], stop[...] = 1, 3
    y.backward(Tensor(np.array([10.0, 20.0])))
    assert_array_equal(x.grad.numpy(), [10.0, 20.0, 0.0, 0.0, 0.0])
    image = Tensor(np.arange(10.0).reshape(2, 5), requires_grad=True)
    y = image[1, start:stop]
    start[...] = 0
    y.backward(Tensor(np.array([10.0, 20.0])))
    assert_array_equal(image.grad.numpy(), [[0, 0, 0, 0, 0], [0, 10, 20, 0, 0]])
    with pytest.raises(TypeError):
        x[1.5:]
    with pytest.raises(TypeError, match="getitem: a masked array's mask would be lost"):
        x[np.ma.masked_array([0, 1], [True, False])]


def test_gather_keeps_its_own_copy_of_an_array_of_indices():
    x, indices = Tensor(np.array([1.0, 2.0]), requires_grad=True), np.array([0, 0])
    y = ops.gather(x, indices, 0)
    indices[:] = 1
    y.backward(Tensor(np.array([3.0, 4.0])))
    assert_array_equal(x.grad.numpy(), [7.0, 0.0])


def test_scatter_add_refuses_what_gather_does():
    x = Tensor(np.ones((2, 2)))
    for axis in (2, 3, -3):
        with pytest.raises(IndexError, match=f"^scatter_add: there is no axis {axis}; give one from -2 to 1$"):
            ops.scatter_add(x, np.zeros((2, 2), int), axis, 2)
    with pytest.raises(IndexError, match="^scatter_add: there is no axis 0; a 0-d tensor has none$"):
        ops.scatter_add(Tensor(np.ones(())), np.zeros((), int), 0, 2)
    for indices in (np.array([True, False]), np.array([0.0, 1.0])):
        with pytest.raises(IndexError, match="scatter_add: the indices are (bool|float64); give integers"):
            ops.scatter_add(Tensor(np.ones(2)), indices, 0, 2)


@pytest.mark.parametrize("axis", [0, 1])
def test_scatter_add_of_what_its_indices_repeat(axis: int):
    x = Tensor(np.array([[1.0, 2.0]]), requires_grad=True)
    indices = np.array([[0, 1], [1, 0], [2, 2]])
    y = ops.scatter_add(x, indices, axis, 3)
    weights = rng(1).uniform(-1, 1, y.shape)
    y.backward(Tensor(weights))
    picked = weights[indices, [0, 1]] if axis == 0 else np.array([[weights[0, j] for j in row] for row in indices])
    np.testing.assert_allclose(x.grad.numpy(), picked.sum(0, keepdims=True), rtol=1e-12)
