"""Dropout and stochastic depth ("drop path") with the mask passed in: the modules draw it, the operations are pure.

Both are linear in x, with themselves as derivative, so only the mask is kept. Read next: `minigrad/nn/`.
"""

from __future__ import annotations

import numpy as np

from minigrad.op import fused
from minigrad.tensor import Tensor


@fused
def dropout(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Keep the elements of x where mask is 1, scaled so that the expected value stays: `x * mask / (1 - p)`.

    Args:
        x: any shape.
        mask: the shape of x, bool (True keeps) or 0 and 1 in x's dtype; no gradient.
        p: the probability with which the mask was dropped; 1 gives zeros.

    Returns:
        Like x.

    Raises:
        ValueError: mask and x differ in shape, or p is not between 0 and 1. TypeError: x is not of floats.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html
    """
    return x * (mask.detach().astype(x.dtype) * _scale(p))                 # (...)


@fused
def drop_path(x: Tensor, mask: Tensor, p: float) -> Tensor:
    """Drop whole samples of a residual branch: dropout with one mask value a sample.

    Args:
        x: (B, ...).
        mask: (B,), bool (True keeps) or 0 and 1 in x's dtype; no gradient.
        p: the probability with which the mask was dropped; 1 gives zeros.

    Returns:
        Like x.

    Raises:
        ValueError: the mask is not one value a sample, or p is not between 0 and 1. TypeError: x is not of floats.

    Source: Huang et al. 2016, Deep networks with stochastic depth; `drop_path` of timm, which the Conformer uses.
    """
    scaled = mask.detach().astype(x.dtype) * _scale(p)                     # (B,)
    return x * scaled.reshape(-1, *(1,) * (x.ndim - 1))                    # (B, ...)


def _scale(p: float) -> float:
    return 0.0 if p == 1 else 1 / (1 - p)


@dropout.check
def _check_dropout(x, mask, p) -> None:
    if x.dtype.kind != "f":
        raise TypeError(f"dropout: x must be a float Tensor, it is {x.dtype}")
    if mask.shape != x.shape:
        raise ValueError(f"dropout: mask has shape {mask.shape}, x has shape {x.shape}")
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be a probability between 0 and 1, it is {p}")


@drop_path.check
def _check_drop_path(x, mask, p) -> None:
    if x.dtype.kind != "f":
        raise TypeError(f"drop_path: x must be a float Tensor, it is {x.dtype}")
    if mask.shape != x.shape[:1] or not x.ndim:
        raise ValueError(f"drop_path: mask has shape {mask.shape}, it must be one value for each sample of x (x shape {x.shape})")
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
