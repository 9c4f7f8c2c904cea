"""Scaled dot-product attention: every token reads from all tokens, weighted by how well its query matches their keys.

The kernel takes its inputs with any strides, and what it makes lies in memory in the order (B, N, h, D), in which the linear layers before and after
attention want it; the shape (B, h, N, D) is a view. Splitting and merging heads then moves no data. Letters: B batch, h heads, N query tokens, M key
tokens, D head width. The CUDA kernels are in `attention.cu` (any length) and `attention_short.cu`. Read next: `minigrad/nn/attention.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from minigrad import backend
from minigrad.backend import cuda
from minigrad.backend.cpu import parallel_slices
from minigrad.fused.floats import check_floats
from minigrad.fused.softmax import softmax
from minigrad.op import fused
from minigrad.ops import where
from minigrad.tensor import Tensor

__all__ = ["scaled_dot_product_attention"]

_BLOCK = 1 << 17  # scores worked on at a time: they stay in a core's second-level cache
_GRAIN = 1 << 15  # scores a thread is worth: 28,000 take 0.12 ms on one and 0.25 ms on two
_SAFE = 60.0  # exp(60) and exp(-60) are far from the ends of float32


@fused(constants="attn_mask dropout_mask")
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
        dropout_mask: (B, h, N, M), 0 or 1 (or bool): which attention weights to keep, divided by `1 - dropout_p`. The masks are constants.
        dropout_p: the probability the dropout mask was drawn with.
        scale: default 1 / sqrt(D).

    Returns:
        (B, h, N, D'). A query whose scores are all -infinity gets 0 without a mask, too (the definition: nan), as in PyTorch.

    Raises:
        ValueError: shapes that do not fit together, a mask that requires grad, a dropout_p outside [0, 1).
        TypeError: query, key or value is not of floats, or attn_mask of integers.

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
    check_floats(name, "query key value", query, key, value)
    if attn_mask is not None and attn_mask.dtype.kind not in "fb":
        raise TypeError(f"{name}: attn_mask must be float or bool, it is {attn_mask.dtype}; pass attn_mask.astype(bool)")
    if not query.ndim == key.ndim == value.ndim == 4 or not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        shapes = f"{query.shape}, {key.shape} and {value.shape}"
        raise ValueError(f"{name}: query, key and value must be (batch, heads, tokens, width) alike, they are {shapes}")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"{name}: query has width {query.shape[3]}, key has width {key.shape[3]} (shapes {query.shape} and {key.shape})")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"{name}: there are {key.shape[2]} keys and {value.shape[2]} values (shapes {key.shape} and {value.shape})")
    if 0 in (query.shape[3], key.shape[2]):
        raise ValueError(f"{name}: needs at least one key and a width of at least 1, query has shape {query.shape}, key {key.shape}")
    scores = (*query.shape[:3], key.shape[2])
    if attn_mask is not None and not _broadcasts(attn_mask.shape, scores):
        raise ValueError(f"{name}: attn_mask of shape {attn_mask.shape} does not broadcast to the scores' shape {scores}")
    if dropout_mask is not None and dropout_mask.shape != scores:
        raise ValueError(f"{name}: dropout_mask has shape {dropout_mask.shape}, the attention weights have shape {scores}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{name}: dropout_p is {dropout_p}, it must be at least 0 and below 1")


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
    parallel_slices(work, batch, 1 + _BLOCK // (scores_each + 1), 1 + _GRAIN // (scores_each + 1))


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
    if all(needs[:3]) and query.shape == key.shape == value.shape and len({id(query), id(key), id(value)}) == 3:
        # Slices of one array (B, N, 3, h, D): where `unbind` made the three, this is the gradient of what they were cut from, and nothing is copied.
        # (Where two are the same, their gradients are added, and the sum would keep all three in memory.)
        together = np.empty((batch, tokens, 3, heads, query.shape[3]), query.dtype)
        dquery, dkey, dvalue = (together[:, :, k].swapaxes(1, 2) for k in range(3))
    else:
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


_cuda, _cuda_short = cuda.Kernels(__file__), cuda.Kernels(Path(__file__).with_name("attention_short.cu"))
_SHORT = {"float": (24, 72), "double": (24,)}  # queries, and keys, up to which the kernels with a block per head are compiled
_SHORT_WIDTH = 32  # of a head, for these
_WIDTHS = {"float": (32, 64, 128), "double": (32,)}  # head widths that the kernels with a block per tile are compiled for
_SHARED = 64 * 1024  # bytes of shared memory that a block may take: what every GPU since 2018 has


def _memory(x) -> tuple:
    """An array that begins where x does, which is all that a kernel is told of it, and how many elements apart the steps along x's axes are."""
    return backend.as_strided(x, (1,), (x.itemsize,)), [apart // x.itemsize for apart in x.strides]


def _rows(*arrays) -> tuple[list, list[int]]:
    """As `_memory`, for arrays whose last axis is contiguous (else copies of them): all memories, and all steps along the first three axes."""
    memories, steps = [], []
    for x in arrays:
        if (x.shape[-1] > 1 and x.strides[-1] != x.itemsize) or min(x.strides) < 0:
            x = x.copy()
        memory, apart = _memory(x)
        memories.append(memory)
        steps += apart[:3]
    return memories, steps


def _masks(attn_mask, dropout_mask, scores: tuple[int, ...], dtype: np.dtype) -> tuple[list, list[int]]:
    """The kernels' arguments for the masks: bias, allowed, keeping and kept (None where there is none), and the strides of the first two."""
    cp, (bias, allowed, keeping, kept), apart = cuda.array_module(), [None] * 4, [0] * 4
    if attn_mask is not None:
        mask, apart = _memory(cp.broadcast_to(attn_mask, scores))
        bias, allowed = (None, mask) if mask.dtype == bool else (mask, None)
    if dropout_mask is not None:
        mask = dropout_mask if dropout_mask.flags.c_contiguous else dropout_mask.copy()
        keeping, kept = (None, mask) if mask.dtype == bool else (mask.astype(dtype, copy=False), None)
    return [bias, allowed, keeping, kept], apart


def _cuda_launch(kernel: str, template: str, own: int, width: int, own_arrays: int, heads: int, dtype: np.dtype, arguments: list) -> None:
    """Launch the kernel with a block per tile where it is compiled for such a `width`, else the one with a thread per row.

    Args:
        kernel, template: its name and, with a format for the width, its template arguments.
        own: rows of a head that results are made for. own_arrays: how many arrays of them lie in shared memory.
        heads: of all examples together.
    """
    number = cuda.c_type(dtype)
    wide = next((n for n in _WIDTHS[number] if n >= width), None)
    arguments = [*arguments, heads * own]
    if wide is None:
        _cuda.launch(f"{kernel}_naive<{template.format('')}>", -(-heads * own // 128), 128, *arguments)
        return

    def shared(warps: int) -> int:
        return dtype.itemsize * ((16 * warps * own_arrays + 64) * (wide + 4) + 16 * warps * 36)

    warps = max([1, *[n for n in (2, 3, 4) if shared(n) <= _SHARED]])
    blocks = -(-own // (16 * warps))
    warps = -(-own // (16 * blocks)) if blocks else 1                      # as many blocks, of equal sizes
    _cuda.launch(f"{kernel}<{template.format(f', {wide}')}>", heads * blocks, 32 * warps, *arguments, shared=shared(warps))


def _short_tokens(query, key, value) -> int | None:
    """How many tokens the smallest kernel with a block per head has room for, that these fit in; None if there is none."""
    if max(query.shape[3], value.shape[3]) > _SHORT_WIDTH:
        return None
    return next((n for n in _SHORT[cuda.c_type(query.dtype)] if n >= max(query.shape[2], key.shape[2])), None)


def _cuda_launch_short(kernel: str, tokens: int, shared: int, heads: int, dtype: np.dtype, masks: list, arguments: list) -> None:
    """Launch the kernel with a block per head. shared: numbers in shared memory. heads: of all examples together."""
    masked = "true" if any(mask is not None for mask in masks) else "false"
    threads = tokens // 24 * 32
    name = f"{kernel}<{cuda.c_type(dtype)}, {threads}, {masked}>"
    _cuda_short.launch(name, heads, threads, *arguments, shared=dtype.itemsize * shared)


def cuda_forward(query, key, value, attn_mask, dropout_mask, dropout_p, scale):
    """A block per head (attention_short.cu), or blocks of queries and tiles of keys (attention.cu); and no (N, M) array."""
    cp = cuda.array_module()
    (batch, heads, tokens, width), keys, value_width = query.shape, key.shape[2], value.shape[3]
    factors = [float(1 / math.sqrt(width) if scale is None else scale), 1 / (1 - dropout_p)]
    out = cp.empty((batch, tokens, heads, value_width), query.dtype)       # (B, N, h, D')
    top, rescale = cp.empty((batch, heads, tokens), query.dtype), cp.empty((batch, heads, tokens), query.dtype)  # (B, h, N)
    masks, masks_apart = _masks(attn_mask, dropout_mask, (batch, heads, tokens, keys), query.dtype)
    arrays, apart = _rows(query, key, value)
    packs = cuda.vector_width(math.gcd(width, value_width, *apart), *arrays, out) == 4
    arguments = [*arrays, *masks, out, top, rescale, *apart, *masks_apart, heads, tokens, keys, width, value_width, *factors, packs]
    short = _short_tokens(query, key, value)
    if short:
        shared = 36 * short + short * max(72, short + 4)
        _cuda_launch_short("attention_forward_short", short, shared, batch * heads, query.dtype, masks, arguments)
    else:
        template = cuda.c_type(query.dtype) + "{}"
        _cuda_launch("attention_forward", template, tokens, max(width, value_width), 1, batch * heads, query.dtype, arguments)
    out = out.swapaxes(1, 2)                                               # (B, h, N, D')
    return out, (query, key, value, attn_mask, dropout_mask, out, top, rescale, factors)


def cuda_backward(dy, saved, needs):
    """The formulas of `cpu_backward`, with P made again from the scores: one kernel for short sequences, else one for query and one for the rest."""
    query, key, value, attn_mask, dropout_mask, out, top, rescale, factors = saved
    cp, dtype, number = cuda.array_module(), query.dtype, cuda.c_type(query.dtype)
    (batch, heads, tokens, width), keys, value_width = query.shape, key.shape[2], value.shape[3]
    masks, masks_apart = _masks(attn_mask, dropout_mask, (batch, heads, tokens, keys), dtype)
    arrays, apart = _rows(query, key, value, dy)

    inputs, row = (query, key, value), heads * width
    if all(needs[:3]) and query.shape == key.shape == value.shape and all(x.strides[2] == 3 * row * x.itemsize for x in inputs):
        # The inputs are slices of one array (B, N, 3, h, D), and so are their gradients, as in `cpu_backward`. A kernel is told where each begins.
        abreast, together = 3, cp.empty((batch, tokens, 3, heads, width), dtype)
        made, gradients = [together[:, :, k] for k in range(3)], [together.reshape(-1)[k * row :] for k in range(3)]
    else:
        abreast = 1
        shapes = [(batch, x.shape[2], heads, x.shape[3]) for x in inputs]  # (B, N, h, D)
        gradients = made = [cp.empty(shape, dtype) if need else None for shape, need in zip(shapes, needs, strict=False)]

    def arguments(statistics: list, gradients: list) -> list:
        packs = cuda.vector_width(math.gcd(width, value_width, *apart), *arrays, *gradients) == 4
        numbers = [*apart, *masks_apart, heads, tokens, keys, width, value_width, *factors, packs, abreast]
        return [*arrays, *masks, top, rescale, *statistics, *gradients, *numbers]

    short = _short_tokens(query, key, value)
    if short:
        shared = 108 * short + short * max(36, short + 4)
        _cuda_launch_short("attention_backward_short", short, shared, batch * heads, dtype, masks, arguments([], gradients))
    else:
        dquery, dkey, dvalue = gradients
        delta = cp.empty((batch, heads, tokens), dtype)                    # (B, h, N), sum_d dY Y
        numbers = [*apart[9:], heads, tokens, value_width, delta.size]     # dy's steps first
        _cuda.launch(f"attention_delta<{number}>", -(-delta.size // 128), 128, arrays[3], _memory(out)[0], delta, *numbers)

        def by_tiles(of_keys: str, own: int, first, second) -> None:
            template = f"{number}{{}}, {of_keys}"
            _cuda_launch("attention_backward", template, own, max(width, value_width), 2, batch * heads, dtype, arguments([delta], [first, second]))

        if dquery is not None:
            by_tiles("false", tokens, dquery, None)
        if dkey is not None or dvalue is not None:
            by_tiles("true", keys, dkey, dvalue)
    return *(None if x is None else x.swapaxes(1, 2) for x in made), None, None


_SCORES = "query key attn_mask dropout_mask"  # made again, whatever the gradient
_CUDA_READS = {"query": f"{_SCORES} value out", "key": f"{_SCORES} value out", "value": _SCORES}
scaled_dot_product_attention.kernel("cuda", cuda_forward, cuda_backward, strided=True, fresh=True, reads=_CUDA_READS)
