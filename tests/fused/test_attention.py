"""scaled_dot_product_attention against PyTorch: plain, with both kinds of mask, with dropout, and on the strided views a model passes."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.attention import scaled_dot_product_attention
from tests.support import assert_close, check_float32, check_op, rng

PAGE = sys.modules[scaled_dot_product_attention.__module__]


def torch_attention(dropout_p: float = 0.0, scale: float | None = None):
    """PyTorch draws its dropout mask itself, so with one the formula is written out."""

    def run(query, key, value, attn_mask, dropout_mask):
        if dropout_mask is None:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the only one with a double backward
                return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, scale=scale)
        scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) * dropout_mask / (1 - dropout_p) @ value

    return run


def draw(batch=2, heads=2, queries=3, keys=3, width=2, value_width=2, large=1.0, seed=0) -> list:
    random = rng(seed)
    query, key = random.uniform(-2, 2, (batch, heads, queries, width)), random.uniform(-2, 2, (batch, heads, keys, width))
    return [query * large, key, random.uniform(-2, 2, (batch, heads, keys, value_width))]


sizes = st.integers(1, 4)


@given(st.integers(0, 3), sizes, sizes, sizes, sizes, sizes, st.sampled_from([1.0, 1e4]), st.sampled_from([None, 0.7]), st.integers(0, 1000))
def test_equals_torch(batch, heads, queries, keys, width, value_width, large, scale, seed):
    """Large scores take the way with the search for the largest element of each row."""
    inputs = draw(batch, heads, queries, keys, width, value_width, large, seed)
    check_op(scaled_dot_product_attention, torch_attention(scale=scale), [*inputs, None, None], {"scale": scale}, second=large == 1.0)


@given(st.sampled_from([(2, 2, 3, 4), (3, 4), (2, 1, 1, 4), (4,)]), st.sampled_from(["float", "bool", "-inf"]), st.integers(0, 1000))
def test_masks(shape, kind, seed):
    random = rng(seed)
    mask = random.uniform(-1, 1, shape) if kind == "float" else random.uniform(0, 1, shape) < 0.6
    mask = np.where(mask, 0.0, -np.inf) if kind == "-inf" else mask
    check_op(scaled_dot_product_attention, torch_attention(), [*draw(keys=4, seed=seed), mask, None], needs=(True, True, True, False, False))


def test_a_query_that_may_look_nowhere_gets_zeros():
    mask = np.array([[True, False, True], [False, False, False], [True, True, True]])
    check_op(scaled_dot_product_attention, torch_attention(), [*draw(), mask, None])
    assert not scaled_dot_product_attention(*draw(), mask).numpy()[:, :, 1].any()


@given(st.booleans(), st.integers(0, 1000))
def test_dropout(with_mask, seed):
    dropout_mask = (rng(seed).uniform(0, 1, (2, 2, 3, 3)) < 0.7).astype(np.float64)
    attn_mask = rng(seed).uniform(-1, 1, (3, 3)) if with_mask else None
    inputs = [*draw(seed=seed), attn_mask, dropout_mask]
    check_op(scaled_dot_product_attention, torch_attention(0.3), inputs, {"dropout_p": 0.3}, needs=(True, True, True, False, False))
    inputs[4] = dropout_mask.astype(bool)
    check_op(scaled_dot_product_attention, torch_attention(0.3), inputs, {"dropout_p": 0.3}, needs=(True, True, True, False, False), second=False)


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_gradients_of_some_inputs_only(needs):
    check_op(scaled_dot_product_attention, torch_attention(), [*draw(), None, None], needs=[*needs, False, False], second=False)


@pytest.mark.parametrize("large", [1.0, 1e3])
def test_blocks_and_threads_change_nothing(monkeypatch, large):
    monkeypatch.setattr(PAGE, "_BLOCK", 1)
    monkeypatch.setattr(PAGE, "_GRAIN", 0)
    check_op(scaled_dot_product_attention, torch_attention(), [*draw(batch=5, large=large), None, None], second=False)


def test_splitting_and_merging_heads_moves_no_data():
    """The output's memory is in the order (B, N, h, D): merging the heads is a view. So are the gradients'."""
    qkv = rng(1).uniform(-1, 1, (2, 5, 3, 2, 4))
    query, key, value = (Tensor(x, requires_grad=True) for x in np.moveaxis(qkv.swapaxes(2, 3), 3, 0).swapaxes(2, 3))
    out = scaled_dot_product_attention(query, key, value)
    assert out.data.swapaxes(1, 2).flags.c_contiguous
    for gradient in minigrad.grad([out], [query, key, value], [Tensor(rng(2).uniform(-1, 1, out.shape))]):
        assert gradient.data.swapaxes(1, 2).flags.c_contiguous


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_no_number_stays_in_its_row(value):
    query, key, values = draw()
    query[0, 0, 1] = value
    expected = torch_attention()(*[torch.tensor(x) for x in draw()], None, None).numpy()
    with np.errstate(invalid="ignore"):
        ours = scaled_dot_product_attention(query, key, values).numpy()
    assert np.isnan(ours[0, 0, 1]).all()
    ours = ours.copy()
    ours[0, 0, 1] = expected[0, 0, 1]
    assert_close(ours, expected)


@pytest.mark.parametrize(("tokens", "heads"), [(17, 3), (65, 4)])
@pytest.mark.parametrize("large", [1.0, 30.0])
def test_float32_is_as_accurate_as_the_definition(tokens, heads, large):
    random = rng(3)
    query, key, value = (random.standard_normal((2, heads, tokens, 32)) for _ in range(3))
    check_float32(scaled_dot_product_attention, [query * large, key, value, None, None])


def test_by_hand():
    """A query orthogonal to every key weighs all values alike."""
    out = scaled_dot_product_attention(np.zeros((1, 1, 1, 2)), np.ones((1, 1, 2, 2)), np.array([[[[1.0], [3.0]]]]))
    np.testing.assert_array_equal(out.numpy(), [[[[2.0]]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": np.zeros((2, 3, 2))}, r"must be \(batch, heads, tokens, width\) alike, they are \(2, 3, 2\)"),
        ({"key": np.zeros((2, 3, 3, 2))}, r"alike, they are \(2, 2, 3, 2\), \(2, 3, 3, 2\) and \(2, 2, 3, 2\)"),
        ({"key": np.zeros((2, 2, 3, 5))}, r"query has width 2, key has width 5"),
        ({"value": np.zeros((2, 2, 4, 2))}, r"there are 3 keys and 4 values"),
        ({"key": np.zeros((2, 2, 0, 2)), "value": np.zeros((2, 2, 0, 2))}, r"needs at least one key"),
        ({"attn_mask": np.zeros((2, 3))}, r"attn_mask of shape \(2, 3\) does not broadcast to the scores' shape \(2, 2, 3, 3\)"),
        ({"attn_mask": np.zeros((3, 3), np.int64)}, r"attn_mask must be float or bool, it is int64"),
        ({"attn_mask": Tensor(np.zeros((3, 3)), requires_grad=True)}, r"the masks carry no gradient; pass mask.detach\(\)"),
        ({"dropout_mask": np.ones((3, 3))}, r"dropout_mask has shape \(3, 3\), the attention weights have shape \(2, 2, 3, 3\)"),
        ({"dropout_p": 1.0}, r"dropout_p is 1.0, it must be at least 0 and below 1"),
    ],
)
def test_errors(change, message):
    arguments = dict(zip(("query", "key", "value"), draw(), strict=True)) | change
    with pytest.raises(ValueError, match=f"scaled_dot_product_attention: .*{message}"):
        scaled_dot_product_attention(**arguments)
