"""The matrix product against PyTorch: vectors, matrices, stacks of matrices, leading axes that are broadcast, empty ones."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from minigrad import Tensor, ops
from minigrad.op import REGISTRY
from tests.proofs import Case, Proof, Refusal, check_op
from tests.support import broadcast_shapes, often, rng


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.asarray(rng(seed).uniform(-2, 2, shape))


def stacks(leading: tuple, lengths: tuple, seed: int) -> Case:
    n, k, m = lengths
    return Case([draw((*leading[0], n, k), seed), draw((*leading[1], k, m), seed + 1)])


leading_axes = st.sampled_from([((), ()), ((2,), ()), ((), (3,)), ((2,), (2,))]) | broadcast_shapes(max_dims=2)
different = st.sampled_from(list(permutations((2, 3, 4))))
lengths = often(different, st.integers(1, 3).map(lambda n: (n, n, n)) | st.tuples(*[st.integers(0, 4)] * 3))  # square ones times themselves


class TestProduct(Proof):
    """The primitive. `ops.matmul`, which brings vectors to it and says what does not fit, is tested below."""

    op, in_torch = REGISTRY["matmul"], torch.matmul
    cases = st.builds(stacks, leading_axes, lengths, st.integers(0, 2**32 - 1))
    share = 0.85
    examples = [
        Case([draw((3, 3)), draw((3, 3), 1)]),
        stacks(((2, 1), (3,)), (3, 2, 4), 0),  # each is repeated along an axis of the other
        stacks(((2,), ()), (2, 4, 3), 0),
        stacks(((), (2,)), (4, 3, 2), 0),
    ]
    keeps = {"x y": "x y", "x": "y", "y": "x"}
    pins = "It is linear in each of its inputs, there is no kink."
    errors = [
        Refusal(Case([np.zeros((2, 3)), np.zeros((4, 2))]), ValueError, "matmul: Input operand 1 has a mismatch in its core dimension"),
        Refusal(Case([np.zeros((2, 3, 4)), np.zeros((5, 4, 2))]), ValueError, r"\(2,3,4\).*\(5,4,2\)"),
    ]


# --- ops.matmul


@given(leading_axes, lengths, st.sampled_from([(True, True), (True, False), (False, True)]))
def test_stacks_of_matrices(leading: tuple, lengths: tuple, needs: tuple):
    check_op(ops.matmul, torch.matmul, stacks(leading, lengths, 0).inputs, needs=needs)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((3,), (3,)),
        ((3,), (3, 2)),
        ((2, 3), (3,)),
        ((3,), (4, 3, 2)),
        ((4, 2, 3), (3,)),
        ((0,), (0,)),
        ((0,), (0, 2)),
        ((2, 0), (0,)),
        ((2, 3, 0), (0, 5)),
        ((0, 2, 3), (3, 4)),
        ((2, 0, 3), (3, 4)),
        ((2, 1, 2, 3), (3, 4)),
        ((2, 3), (4, 3, 2)),
        ((2, 3), (5, 4, 3, 2)),
        ((1, 2, 3), (4, 3, 2)),
        ((1, 1), (1, 1)),
        ((5, 1, 2, 3), (1, 4, 3, 2)),
    ],
)
def test_vectors_and_awkward_shapes(first: tuple, second: tuple):
    check_op(ops.matmul, torch.matmul, [draw(first), draw(second, 1)])


def test_operators_reach_the_tensor_from_both_sides():
    a, b = draw((2, 3)).astype(np.float32), draw((3, 2), 1).astype(np.float32)
    for y in (Tensor(a) @ Tensor(b), a @ Tensor(b), Tensor(a) @ b):
        assert type(y) is Tensor and type(y.data) is np.ndarray and y.dtype == np.float32
        assert_allclose(y.numpy(), a @ b, rtol=1e-6)
    dot = Tensor(a[0]) @ Tensor(b[:, 0])
    assert type(dot.data) is np.ndarray and dot.shape == ()


def test_integers_multiply_exactly():
    x = np.array([[2**40, 1], [3, -5]])
    assert (Tensor(x) @ Tensor(x)).dtype == np.int64
    np.testing.assert_array_equal((Tensor(x) @ Tensor(x)).numpy(), x @ x)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((2, 3), (4, 2), r"matmul: shapes \(2, 3\) and \(4, 2\) do not fit; the last axis of the first must be as long as the last but one"),
        ((3,), (4,), r"matmul: shapes \(3,\) and \(4,\) do not fit"),
        ((), (3,), r"matmul: shapes \(\) and \(3,\) do not fit"),
        ((2, 3, 4), (5, 4, 2), r"matmul: shapes \(2, 3, 4\) and \(5, 4, 2\) do not fit; their leading axes \(2,\) and \(5,\) cannot be broadcast"),
    ],
)
def test_shapes_that_do_not_fit(first: tuple, second: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        Tensor(draw(first)) @ Tensor(draw(second))


def test_two_dtypes():
    with pytest.raises(TypeError, match=r"matmul: inputs are float32 and float64; bring them to one dtype with .astype"):
        Tensor(draw((2, 2)).astype(np.float32)) @ Tensor(draw((2, 2)))
