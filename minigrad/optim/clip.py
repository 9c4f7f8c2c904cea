"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from minigrad.tensor import Tensor

__all__ = ["clip_grad_norm_"]


def clip_grad_norm_(params: Iterable[Tensor] | Tensor, max_norm: float, error_if_nonfinite: bool = False) -> float:
    """Scale the gradients of `params`, in place, so that their norm as one long vector is at most `max_norm`.

    Args:
        params: parameters; those without a gradient are passed over.
        max_norm: the largest norm allowed; infinity only measures.
        error_if_nonfinite: raise instead of scaling when a gradient holds a NaN or Inf.

    Returns:
        The norm before clipping.

    Raises:
        ValueError: max_norm is negative. FloatingPointError: the norm is not finite and `error_if_nonfinite` is set.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm is {max_norm}; it cannot be negative")
    params = [params] if isinstance(params, Tensor) else params
    grads = {id(p.grad): p.grad for p in params if p.grad is not None}.values()  # a parameter listed twice counts once
    total = math.hypot(*[_norm(grad) for grad in grads])
    if error_if_nonfinite and not math.isfinite(total):
        raise FloatingPointError(f"clip_grad_norm_: the norm of the gradients is {total}")
    scale = max_norm / (total + 1e-6)
    if not scale >= 1:  # also for a NaN, which then reaches every gradient, as in PyTorch
        for grad in grads:
            with np.errstate(invalid="ignore"):
                np.multiply(grad.data, scale, out=grad.data)
            grad._bump()
    return total


def _norm(grad: Tensor) -> float:
    """The norm of one gradient; a float32 one whose squares would overflow is divided by its largest element first."""
    flat = grad.data.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(flat, flat))
    if not flat.size or (math.isfinite(square) and square > 1e-30):
        return math.sqrt(square)
    largest = float(np.max(np.abs(flat)))
    if largest == 0 or not math.isfinite(largest):
        return largest
    flat = flat / largest
    return largest * math.sqrt(float(np.dot(flat, flat)))
