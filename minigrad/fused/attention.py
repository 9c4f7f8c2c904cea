"""Scaled dot-product attention: every token reads from all tokens, weighted by how well its query matches their keys.

The kernel takes its inputs with any strides, and what it makes lies in memory in the order (B, N, h, D), in which the linear layers before and after
attention want it; the shape (B, h, N, D) is a view. Splitting and merging heads then moves no data. Letters: B batch, h heads, N query tokens, M key
tokens, D head width. Read next: `minigrad/nn/attention.py`.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad.backend.cpu import parallel_rows
from minigrad.fused.softmax import softmax
from minigrad.op import fused
from minigrad.ops import where
from minigrad.tensor import Tensor

__all__ = ["scaled_dot_product_attention"]

_BLOCK = 1 << 17  # scores worked on at a time: they stay in a core's second-level cache
_GRAIN = 1 << 13  # scores a thread is worth
_SAFE = 60.0  # exp(60) and exp(-60) are far from the ends of float32


@fused
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """`softmax(query @ key.T * scale + attn_mask) @ value`, for each head of each example.

    Args:
        query: (B, h, N, D).
        key: (B, h, M, D).
        value: (B, h, M, D'), usually D' = D.
        attn_mask: broadcasts to (B, h, N, M). Float: added to the scores. Bool: True where a query may look; one that may look nowhere gets 0.
        dropout_mask: (B, h, N, M), 0 or 1 (or bool): which attention weights to keep, divided by `1 - dropout_p`. The masks carry no gradient.
        dropout_p: the probability the dropout mask was drawn with.
        scale: default 1 / sqrt(D).

    Returns:
        (B, h, N, D').

    Raises:
        ValueError: shapes that do not fit together, a mask that requires grad, a dropout_p outside [0, 1).
        TypeError: query, key or value is not of floats.

    Source: Vaswani et al. 2017, section 3.2.1; https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.swapaxes(2, 3) * scale                            # (B, h, N, M)
    if attn_mask is None:
        weights = softmax(scores, axis=-1)                                 # (B, h, N, M)
    else:
        scores = scores + attn_mask if attn_mask.dtype.kind == "f" else where(attn_mask, scores, -math.inf)
        nowhere = scores.detach().max(-1, keepdims=True) == -math.inf      # (B, h, N, 1)
        weights = where(nowhere, 0.0, softmax(where(nowhere, 0.0, scores), axis=-1))
    if dropout_mask is not None:
        weights = weights * dropout_mask.astype(weights.dtype) / (1 - dropout_p)
    return weights @ value                                                 # (B, h, N, D')


@scaled_dot_product_attention.check
def _check(query, key, value, attn_mask, dropout_mask, dropout_p, scale) -> None:
    name = "scaled_dot_product_attention"
    if not query.ndim == key.ndim == value.ndim == 4 or not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        shapes = f"{query.shape}, {key.shape} and {value.shape}"
        raise ValueError(f"{name}: query, key and value must be (batch, heads, tokens, width) alike, they are {shapes}")
    for which, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dtype.kind != "f":
            raise TypeError(f"{name}: {which} must be a float Tensor, it is {tensor.dtype}")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"{name}: query has width {query.shape[3]}, key has width {key.shape[3]} (shapes {query.shape} and {key.shape})")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"{name}: there are {key.shape[2]} keys and {value.shape[2]} values (shapes {key.shape} and {value.shape})")
    if 0 in (query.shape[3], key.shape[2]):
        raise ValueError(f"{name}: needs at least one key and a width of at least 1, query has shape {query.shape}, key {key.shape}")
    scores = (*query.shape[:3], key.shape[2])
    if attn_mask is not None and not _broadcasts(attn_mask.shape, scores):
        raise ValueError(f"{name}: attn_mask of shape {attn_mask.shape} does not broadcast to the scores' shape {scores}")
    if attn_mask is not None and attn_mask.dtype.kind not in "fb":
        raise ValueError(f"{name}: attn_mask must be float or bool, it is {attn_mask.dtype}")
    if dropout_mask is not None and dropout_mask.shape != scores:
        raise ValueError(f"{name}: dropout_mask has shape {dropout_mask.shape}, the attention weights have shape {scores}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{name}: dropout_p is {dropout_p}, it must be at least 0 and below 1")
    if any(mask is not None and mask.requires_grad for mask in (attn_mask, dropout_mask)):
        raise ValueError(f"{name}: the masks carry no gradient; pass mask.detach()")


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(n in (1, m) for n, m in zip(shape[::-1], target[::-1], strict=False))


def _softmax_in_place(scores: np.ndarray) -> None:
    """Softmax of every row (last axis). The rows' largest elements are only searched for where some are large: it takes a third of the time."""
    shifted = not (-_SAFE < scores.min(initial=0) and scores.max(initial=0) < _SAFE)  # also if a score is nan
    if shifted:
        top = scores.max(-1, keepdims=True)
        scores -= np.where(np.isneginf(top), 0, top)  # a row that is masked everywhere: exp gives zeros
    np.exp(scores, out=scores)
    total = scores.reshape(-1, scores.shape[-1]) @ np.ones(scores.shape[-1], scores.dtype)
    if shifted:
        np.maximum(total, np.finfo(total.dtype).tiny, out=total)  # only that row sums to less than 1: its zeros stay zeros
    scores /= total.reshape(*scores.shape[:-1], 1)


def _token_major(batch: int, heads: int, tokens: int, width: int, dtype: np.dtype) -> np.ndarray:
    """A new array of shape (B, h, N, D) whose memory is in the order (B, N, h, D)."""
    return np.empty((batch, tokens, heads, width), dtype).swapaxes(1, 2)


def _by_blocks(work, batch: int, scores_each: int) -> None:
    """Call `work(slice)` for blocks of examples on all threads."""
    step = 1 + _BLOCK // (scores_each + 1)

    def share(start: int, stop: int) -> None:
        for first in range(start, stop, step):
            work(slice(first, min(first + step, stop)))

    parallel_rows(share, batch, 1 + _GRAIN // (scores_each + 1))


def cpu_forward(query, key, value, attn_mask, dropout_mask, dropout_p, scale):
    batch, heads, tokens, width = query.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    weights = np.empty((batch, heads, tokens, key.shape[2]), query.dtype)  # (B, h, N, M)
    out = _token_major(batch, heads, tokens, value.shape[3], query.dtype)  # (B, h, N, D')
    mask = None if attn_mask is None else np.broadcast_to(attn_mask, weights.shape)

    def work(block: slice) -> None:
        part = np.matmul(query[block], key[block].swapaxes(2, 3), out=weights[block])
        part *= scale
        if mask is not None and mask.dtype == bool:
            part[~mask[block]] = -np.inf
        elif mask is not None:
            part += mask[block]
        _softmax_in_place(part)
        if dropout_mask is not None:
            part = part * dropout_mask[block] * part.dtype.type(1 / (1 - dropout_p))
        np.matmul(part, value[block], out=out[block])

    _by_blocks(work, batch, heads * tokens * key.shape[2])
    return out, (query, key, value, weights, out, dropout_mask, dropout_p, scale)


def cpu_backward(dy, saved, needs):
    """With S the scores and P the softmax of their rows, Y = P V:

        dV = P^T dY,    dP = dY V^T,    dS_nm = P_nm (dP_nm - sum_k P_nk dP_nk),    dQ = scale dS K,    dK = scale dS^T Q.

    The sum needs no (N, M) array: sum_k P_nk dP_nk = sum_k P_nk sum_d dY_nd V_kd = sum_d dY_nd Y_nd. With dropout, Y = (P * mask / (1 - p)) V: then
    dV has the masked P, dP is masked too, and the sum is the same.
    """
    query, key, value, weights, out, dropout_mask, dropout_p, scale = saved
    batch, heads, tokens, keys = weights.shape
    dquery, dkey, dvalue = (_token_major(*x.shape, dtype=x.dtype) if need else None for x, need in zip((query, key, value), needs, strict=False))

    def work(block: slice) -> None:
        p, g = weights[block], dy[block]                                   # (b, h, N, M), (b, h, N, D')
        keep = None if dropout_mask is None else dropout_mask[block] * p.dtype.type(1 / (1 - dropout_p))
        if dvalue is not None:
            np.matmul((p if keep is None else p * keep).swapaxes(2, 3), g, out=dvalue[block])
        if dquery is None and dkey is None:
            return
        ds = g @ value[block].swapaxes(2, 3)                               # dP, becomes dS in place
        if keep is not None:
            ds *= keep
        ds -= np.vecdot(g, out[block])[..., None]
        ds *= p
        ds *= scale
        if dquery is not None:
            np.matmul(ds, key[block], out=dquery[block])
        if dkey is not None:
            np.matmul(ds.swapaxes(2, 3), query[block], out=dkey[block])

    _by_blocks(work, batch, heads * tokens * keys)
    return dquery, dkey, dvalue, None, None


_READS = {"query": "key value out dropout_mask", "key": "query value out dropout_mask", "value": "dropout_mask"}
scaled_dot_product_attention.kernel("cpu", cpu_forward, cpu_backward, strided=True, fresh=True, reads=_READS)
