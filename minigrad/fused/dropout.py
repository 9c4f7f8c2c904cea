"""Dropout and stochastic depth ("drop path") with the mask passed in: the modules draw it, the operations are pure.

Both are linear in x, with themselves as derivative, so only the mask is kept. Read next: `minigrad/nn/`.
"""

from __future__ import annotations

import numpy as np

from minigrad.backend import Array, cuda
from minigrad.fused.floats import check_floats
from minigrad.op import fused
from minigrad.tensor import Tensor


@fused(constants="mask")
def dropout(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Keep the elements of x where mask is 1, scaled so that the expected value stays: `x * mask / (1 - p)`.

    Args:
        x: any shape.
        mask: the shape of x, bool (True keeps) or 0 and 1 in x's dtype; a constant.
        p: the probability with which the mask was dropped; 1 gives zeros.

    Returns:
        Like x.

    Raises:
        ValueError: mask and x differ in shape, the mask requires grad, or p is not between 0 and 1. TypeError: x is not of floats.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
    """
    return x * (mask.astype(x.dtype) * _scale(p))                          # (...)


@fused(constants="mask")
def drop_path(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Drop whole samples of a residual branch: dropout with one mask value a sample.

    Args:
        x: (B, ...).
        mask: (B,), bool (True keeps) or 0 and 1 in x's dtype; a constant.
        p: the probability with which the mask was dropped; 1 gives zeros.

    Returns:
        Like x.

    Raises:
        ValueError: the mask is not one value a sample, or requires grad, or p is not between 0 and 1. TypeError: x is not of floats.

    Source: Huang et al. 2016, Deep networks with stochastic depth; `drop_path` of timm, which the Conformer uses.
    """
    scaled = mask.astype(x.dtype) * _scale(p)                              # (B,)
    return x * scaled.reshape(-1, *(1,) * (x.ndim - 1))                    # (B, ...)


def _scale(p: float) -> float:
    return 0.0 if p == 1 else 1 / (1 - p)


dropout.advice = "; where the mask is to be drawn, use nn.Dropout(p), whose train() and eval() switch it on and off"
drop_path.advice = "; where the mask is to be drawn, use nn.DropPath(p), whose train() and eval() switch it on and off"


@dropout.check
def _check_dropout(x, mask, p) -> None:
    check_floats("dropout", "x", x)
    if mask.shape != x.shape:
        raise ValueError(f"dropout: mask has shape {mask.shape}, x has shape {x.shape}{'' if mask.ndim else dropout.advice}")
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be a probability between 0 and 1, it is {p}")


@drop_path.check
def _check_drop_path(x, mask, p) -> None:
    check_floats("drop_path", "x", x)
    if mask.shape != x.shape[:1] or not x.ndim:
        advice = "" if mask.ndim else drop_path.advice
        raise ValueError(f"drop_path: mask has shape {mask.shape}, it must be one value for each sample of x (x shape {x.shape}){advice}")
    if not 0 <= p <= 1:
        raise ValueError(f"drop_path: p must be a probability between 0 and 1, it is {p}")


dropout.derivative(x=lambda g, mask, p: dropout(g, mask, p))
drop_path.derivative(x=lambda g, mask, p: drop_path(g, mask, p))


def cpu_forward(x, mask, p):
    """The mask as it comes: a bool one is a quarter of a float32 one, and is multiplied without being converted first."""
    y = np.multiply(x, mask, out=np.empty_like(x), casting="unsafe")
    y *= _scale(p)
    return y, ()


def cpu_forward_path(x, mask, p):
    """One factor a sample."""
    scaled = mask.astype(x.dtype) * _scale(p)
    return x * scaled.reshape(-1, *(1,) * (x.ndim - 1)), ()


dropout.kernel("cpu", cpu_forward, None)
drop_path.kernel("cpu", cpu_forward_path, None)


_cuda = cuda.Kernels(__file__)


def _cuda_types(length: int, x, mask, y) -> tuple[str, Array, int]:
    """Template arguments, the mask as bools or as numbers like x's, and the numbers of a pack: `length` is a multiple of them."""
    width = cuda.vector_width(length, x, y)
    if mask.dtype != np.bool_:
        mask = mask.astype(x.dtype, copy=False)
    if mask.shape == x.shape and mask.data.ptr % (width * mask.itemsize):
        width = 1
    return f"{cuda.pack_types(x.dtype, width)}, {'bool' if mask.dtype == np.bool_ else cuda.c_type(x.dtype)}", mask, width


def cuda_forward(x, mask, p):
    """A thread for four elements: see dropout.cu."""
    y = cuda.array_module().empty_like(x)
    types, mask, width = _cuda_types(x.size, x, mask, y)
    packs = x.size // width
    _cuda.launch(f"dropout_forward<{types}>", -(-packs // 256), 256, x, mask, y, packs, float(_scale(p)))
    return y, ()


def cuda_forward_path(x, mask, p):
    """A row of blocks for each sample."""
    y = cuda.array_module().empty_like(x)
    samples = len(mask)
    length = x.size // max(samples, 1)
    types, mask, width = _cuda_types(length, x, mask, y)
    packs = length // width
    _cuda.launch(f"drop_path_forward<{types}>", (samples, min(-(-packs // 256), 65535)), 256, x, mask, y, packs, float(_scale(p)))
    return y, ()


dropout.kernel("cuda", cuda_forward, None)
drop_path.kernel("cuda", cuda_forward_path, None)


def cuda_keep_mask(generator: np.random.Generator, shape: tuple[int, ...], p: float, step: Array | None = None) -> Array:
    """`generator.random(shape, dtype=np.float32) >= p`, made on the device "cuda" from the generator's key and counter, to the last bit the same.

    Args:
        generator: a new one of `minigrad.random.generator`, or another Philox from which nothing has been drawn yet; it is left as it is.
        shape: of the mask. p: the probability of False.
        step: an array of one uint64 on the device, read when the kernel runs, in place of the first counter that the generator was made with.

    Returns:
        An array of bools on the device.

    Raises:
        ValueError: another kind of generator, or one from which something has been drawn.
    """
    state = generator.bit_generator.state
    if state["bit_generator"] != "Philox" or state["buffer_pos"] != 4 or state["has_uint32"]:
        raise ValueError("cuda_keep_mask: the generator must be a Philox from which nothing has been drawn yet")
    mask = cuda.array_module().empty(shape, np.bool_)
    words = [int(word) for name in ("key", "counter") for word in state["state"][name]]
    if words[2] + 1 + mask.size // 8 >= 2**64:
        raise ValueError("cuda_keep_mask: the generator's counter is too near its end")
    _cuda.launch("keep_mask", -(-mask.size // 2048), 256, mask, step, mask.size, float(p), *words)
    return mask
