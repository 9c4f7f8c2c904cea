"""scaled_dot_product_attention: plain, with both kinds of mask, with dropout, and on the strided views a model passes.

Read next: `../nn/test_layers.py`.
"""

from __future__ import annotations

import math
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.attention import scaled_dot_product_attention
from tests.proofs import Case, Pin, Proof, Refusal
from tests.support import assert_close, lengths, rng

PAGE = sys.modules[scaled_dot_product_attention.__module__]
CONSTANTS = (True, True, True, False, False)  # the masks carry no gradient


def in_torch(query: Any, key: Any, value: Any, attn_mask: Any, dropout_mask: Any, dropout_p: float = 0.0, scale: float | None = None) -> torch.Tensor:
    """PyTorch draws its dropout mask itself, so with one the formula is written out."""
    if dropout_mask is None and dropout_p < 1:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the only one with a double backward
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask, scale=scale)
    if not 0 <= dropout_p < 1 or dropout_mask.shape != (*query.shape[:3], key.shape[2]):
        raise ValueError("no such dropout")
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    nowhere = torch.zeros(1, dtype=torch.bool)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        nowhere = (scores == -math.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(nowhere, 0).softmax(-1).masked_fill(nowhere, 0)
    return weights * dropout_mask / (1 - dropout_p) @ value


def case(
    batch: int = 2,
    heads: int = 2,
    queries: int = 3,
    keys: int = 3,
    width: int = 2,
    value_width: int = 2,
    mask: str = "",
    mask_shape: str = "BhNM",
    dropout: str = "",
    scale: float | None = None,
    seed: int = 0,
) -> Case:
    """mask: "float", "bool", "-inf" (of 0 and -inf) or ""; mask_shape: its axes, some left out or of size 1 ("1"). dropout: "float", "bool" or "".

    A scale of 1000 makes scores of some thousand: they take the way with the search for the largest element of each row.
    """
    random = rng(seed)
    query, key = random.uniform(-2, 2, (batch, heads, queries, width)), random.uniform(-2, 2, (batch, heads, keys, width))
    value = random.uniform(-2, 2, (batch, heads, keys, value_width))
    sizes = {"B": batch, "h": heads, "N": queries, "M": keys, "1": 1}
    attn_mask: Any = None
    if mask:
        drawn = random.uniform(-1, 1, [sizes[axis] for axis in mask_shape])
        attn_mask = {"float": drawn, "bool": drawn < 0.2, "-inf": np.where(drawn < 0.2, 0.0, -np.inf)}[mask]
    dropout_mask = random.uniform(0, 1, (batch, heads, queries, keys)) < 0.7 if dropout else None
    values: dict[str, Any] = {"scale": scale} | ({"dropout_p": 0.3} if dropout else {})
    inputs = [query, key, value, attn_mask, dropout_mask.astype(float) if dropout == "float" else dropout_mask]
    # Scores of some thousand have 12 digits after the point, and so have the exponents made of them.
    return Case(inputs, values, CONSTANTS, relative=1e-9 if scale == 1000 else 1e-11)


MASKS = st.sampled_from(["", "", "float", "bool", "-inf"])
MASK_SHAPES = st.sampled_from(["BhNM", "NM", "B11M", "M", "1hN1"])
DROPOUTS = st.sampled_from(["", "", "float", "bool"])
few = lengths(2, 3)


def strategy(scales: list[float | None]) -> st.SearchStrategy[Case]:
    sizes = (lengths(2, 2), lengths(2, 2), few, few, few, few)
    return st.builds(case, *sizes, MASKS, MASK_SHAPES, DROPOUTS, st.sampled_from(scales), st.integers(0, 9999))


def refusal(message: str, in_torch: bool | str = True, dropout_p: float | None = None, **changed: np.ndarray | None) -> Refusal:
    names = ("query", "key", "value", "attn_mask", "dropout_mask")
    inputs = dict(zip(names, case().inputs, strict=True)) | changed
    values = {} if dropout_p is None else {"dropout_p": dropout_p}
    return Refusal(Case([inputs[name] for name in names], values), ValueError, f"scaled_dot_product_attention: .*{message}", in_torch)


NOWHERE = np.array([[True, False, True], [False, False, False], [True, True, True]])


class TestScaledDotProductAttention(Proof):
    op = scaled_dot_product_attention
    in_torch = staticmethod(in_torch)
    cases, share = strategy([None, 0.7, 1000]), 0.85
    smooth = strategy([None, 0.7])
    examples = [
        case(),
        case(1, 1, 1, 1, 1, 1),  # one token
        case(keys=4, value_width=3),
        case(0),
        case(heads=0),
        case(queries=0),
        case(mask="float", dropout="float"),
        case(keys=4, scale=1000, mask="bool", mask_shape="NM", dropout="bool"),
        Case([*case().inputs[:3], NOWHERE, None], {}, CONSTANTS),
        Case([*case().inputs[:3], np.where(NOWHERE, 0.0, -np.inf), None], {}, CONSTANTS),
    ]
    keeps = {
        wanted: "query key value attn_mask dropout_mask out"
        for wanted in ("query", "key", "value", "query key", "query value", "key value", "query key value")
    }
    keeps_besides = staticmethod(lambda query, key, *rest, **values: query[..., 0].size * key.shape[2])  # the attention weights
    float32 = [
        Case([rng(3).standard_normal((2, heads, tokens, 32)) * large, *rng(4).standard_normal((2, 2, heads, tokens, 32)), None, None])
        for tokens, heads in [(17, 3), (65, 4)]
        for large in (1.0, 30.0)
    ]
    pins = [
        Pin("one key: its value, whatever the score", case(keys=1, width=3)),
        Pin("keys that are the same share", Case([np.ones((1, 1, 1, 2)), np.ones((1, 1, 2, 2)), np.array([[[[1.0], [3.0]]]]), None, None])),
        Pin("a query that may look nowhere gets 0, and gives none", Case([*case().inputs[:3], NOWHERE, None], {}, CONSTANTS)),
        Pin("nowhere, by -inf", Case([*case().inputs[:3], np.where(NOWHERE, 0.0, -np.inf), None], {}, CONSTANTS)),
    ]
    errors = [
        refusal(
            r"must be \(batch, heads, tokens, width\) alike, they are \(2, 3, 2\)", "PyTorch broadcasts leading axes.", query=np.zeros((2, 3, 2))
        ),
        refusal(r"alike, they are \(2, 2, 3, 2\), \(2, 3, 3, 2\) and \(2, 2, 3, 2\)", key=np.zeros((2, 3, 3, 2))),
        refusal(
            r"alike, they are \(2, 3, 2\), \(2, 3, 2\) and \(2, 3, 2\)",
            "PyTorch's heads may be missing, or be more than one axis.",
            **dict.fromkeys(("query", "key", "value"), np.zeros((2, 3, 2))),
        ),
        refusal("query has width 2, key has width 5", key=np.zeros((2, 2, 3, 5))),
        refusal("there are 3 keys and 4 values", value=np.zeros((2, 2, 4, 2))),
        refusal("needs at least one key", "PyTorch gives 0 to who has nowhere to look.", key=np.zeros((2, 2, 0, 2)), value=np.zeros((2, 2, 0, 2))),
        *[
            refusal(rf"attn_mask of shape {re.escape(str(shape))} does not broadcast to the scores' shape \(2, 2, 3, 3\)", attn_mask=np.zeros(shape))
            for shape in [(2, 3), (2, 2, 2, 3, 3)]
        ],
        refusal(r"attn_mask must be float or bool, it is int64; pass attn_mask\.astype\(bool\)$", attn_mask=np.zeros((3, 3), np.int64))._replace(
            exception=TypeError
        ),
        refusal(r"dropout_mask has shape \(3, 3\), the attention weights have shape \(2, 2, 3, 3\)", dropout_mask=np.ones((3, 3))),
        refusal("dropout_p is 1.0, it must be at least 0 and below 1", dropout_p=1.0, dropout_mask=np.ones((2, 2, 3, 3))),
        refusal("dropout_p is -0.1, it must be at least 0 and below 1", dropout_p=-0.1, dropout_mask=np.ones((2, 2, 3, 3))),
    ]

    @pytest.mark.parametrize("mask", ["attn_mask", "dropout_mask"])
    def test_masks_that_require_grad_are_refused(self, mask: str) -> None:
        with pytest.raises(ValueError, match=rf"{mask} is a constant here, and would get no gradient; pass {mask}.detach\(\)"):
            scaled_dot_product_attention(*case().inputs[:3], **{mask: Tensor(np.zeros((2, 2, 3, 3)), requires_grad=True)})

    def test_scores_that_are_all_large_are_no_infinities(self) -> None:
        given = case()
        for x in given.inputs[:2]:
            x[...] = 30 + 0.01 * x  # scores of about 1270, whose exp is none
        self.kernel_equals_definition(given)

    def test_a_query_that_may_look_nowhere_gets_zeros(self) -> None:
        assert not scaled_dot_product_attention(*case().inputs[:3], NOWHERE).numpy()[:, :, 1].any()

    def test_a_mask_of_the_lowest_finite_number_is_finite(self) -> None:
        """Added everywhere, it leaves nothing of the scores: the query reads the mean. (PyTorch's formula; its fused gradients are others.)"""
        random, mask = rng(0), np.zeros((3, 5), np.float32)
        mask[1], mask[2, ::2] = np.finfo(np.float32).min, np.finfo(np.float32).min
        arrays = [random.standard_normal((1, 1, n, 4)).astype(np.float32) for n in (3, 5, 5, 3)]
        inputs, in_theirs = [Tensor(x, requires_grad=True) for x in arrays[:3]], [torch.tensor(x, requires_grad=True) for x in arrays[:3]]
        out, theirs = scaled_dot_product_attention(*inputs, Tensor(mask)), in_torch(*in_theirs, torch.tensor(mask), None)
        np.testing.assert_allclose(out.numpy()[0, 0, 1], arrays[2][0, 0].mean(0), rtol=0, atol=2e-7)
        gradients, others = minigrad.grad([out], inputs, [Tensor(arrays[3])]), torch.autograd.grad(theirs, in_theirs, torch.tensor(arrays[3]))
        for k, (x, y) in enumerate(zip((out, *gradients), (theirs, *others), strict=True)):
            assert_close(x, y.detach().numpy(), f"result {k}", 2e-6)

    @pytest.mark.parametrize("scale", [None, 1000])
    @pytest.mark.parametrize("mask", ["", "float", "bool"])
    @pytest.mark.parametrize("dropout", ["", "bool"])
    def test_blocks_and_threads_change_nothing(self, monkeypatch: pytest.MonkeyPatch, scale: float | None, mask: str, dropout: str) -> None:
        monkeypatch.setattr(PAGE, "_BLOCK", 1)
        monkeypatch.setattr(PAGE, "_GRAIN", 0)
        self.kernel_equals_definition(case(5, mask=mask, dropout=dropout, scale=scale))

    def test_every_example_is_in_one_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two threads that work on one example at the same time would scale its scores twice."""
        monkeypatch.setattr(PAGE, "_BLOCK", 8)
        monkeypatch.setattr(PAGE, "_GRAIN", 0)
        seen: list[int] = []
        PAGE._by_blocks(lambda block: seen.extend(range(100)[block]), 7, 3)
        assert sorted(seen) == list(range(7))

    def test_splitting_and_merging_heads_moves_no_data(self) -> None:
        """The output's memory is in the order (B, N, h, D): merging the heads is a view. So are the gradients'."""
        qkv = rng(1).uniform(-1, 1, (2, 5, 3, 2, 4))
        query, key, value = (Tensor(x, requires_grad=True) for x in np.moveaxis(qkv.swapaxes(2, 3), 3, 0).swapaxes(2, 3))
        out = scaled_dot_product_attention(query, key, value)
        assert out.data.swapaxes(1, 2).flags.c_contiguous
        for gradient in minigrad.grad([out], [query, key, value], [Tensor(rng(2).uniform(-1, 1, out.shape))]):
            assert np.shares_memory(gradient.data.swapaxes(1, 2).reshape(2, 5, 8), gradient.data)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_score_that_is_no_number_stays_in_its_row(self, value: float) -> None:
        query, key, values, *_ = case().inputs
        expected = in_torch(*[torch.tensor(x) for x in (query, key, values)], None, None).numpy()
        query = query.copy()
        query[0, 0, 1] = value
        with np.errstate(invalid="ignore"):
            ours = scaled_dot_product_attention(query, key, values).numpy()
        assert np.isnan(ours[0, 0, 1]).all()
        ours = ours.copy()
        ours[0, 0, 1] = expected[0, 0, 1]
        assert_close(ours, expected)

    def test_by_hand(self) -> None:
        """A query orthogonal to every key weighs all values alike."""
        out = scaled_dot_product_attention(np.zeros((1, 1, 1, 2)), np.ones((1, 1, 2, 2)), np.array([[[[1.0], [3.0]]]]))
        np.testing.assert_array_equal(out.numpy(), [[[[2.0]]]])
