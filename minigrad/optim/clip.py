"""Gradient clipping by the norm of all gradients together."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np

from minigrad.backend import cuda
from minigrad.optim import multi_tensor
from minigrad.optim.blocks import SMALL
from minigrad.tensor import Tensor, wrap

__all__ = ["clip_grad_norm_"]

_PIECE = 1 << 14  # elements whose squares BLAS adds up in float32: of 4 million at once, all of them 0.1, the norm comes out 2e-4 off, so 4e-7

_cuda = cuda.Kernels(__file__)
_known: dict[tuple, multi_tensor.Chunks] = {}  # by thread (two may not share a table of addresses), device, and sizes of the gradients on the GPU


def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float, *, error_if_nonfinite: bool = False) -> float | Tensor:
    """Scale the gradients of `parameters`, in place, so that their norm as one long vector is at most `max_norm`.

    Args:
        parameters: parameters; those without a gradient are passed over.
        max_norm: the largest norm allowed; infinity only measures: also gradients that hold a NaN or Inf stay as they are (PyTorch's become NaN).
        error_if_nonfinite: raise instead of scaling when a gradient holds a NaN or Inf.

    Returns:
        The norm before clipping; on a GPU, where waiting for a number would cost more than clipping, a 0-d Tensor (float() of it waits).

    Raises:
        ValueError: max_norm is negative. TypeError: a gradient is no Tensor. FloatingPointError: the norm is not finite and `error_if_nonfinite` is
            set.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html
    """
    if not max_norm >= 0:
        raise ValueError(f"clip_grad_norm_: max_norm is {max_norm}; it cannot be negative")
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    grads = {id(p.grad): p.grad for p in parameters if p.grad is not None}.values()  # a parameter listed twice counts once
    for grad in grads:
        if not isinstance(grad, Tensor):
            raise TypeError(f"clip_grad_norm_: the .grad of a parameter is a {type(grad).__name__}; give a Tensor, or None")
    if grads and all(multi_tensor.fits(grad.data) for grad in grads):
        return _clip_on_gpu(list(grads), max_norm, error_if_nonfinite)
    vectors = _vectors([grad.data for grad in grads])
    norms = [_norm(vector[start : start + _PIECE]) for vector in vectors for start in range(0, len(vector), _PIECE)]
    total = math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)  # hypot says inf of an Inf and a NaN
    if error_if_nonfinite and not math.isfinite(total):
        raise FloatingPointError(f"clip_grad_norm_: the norm of the gradients is {total}")
    if max_norm == math.inf:
        return total
    scale = max_norm / (total + 1e-6)
    if not scale >= 1:  # also for a NaN, which then reaches every gradient, as in PyTorch
        with np.errstate(invalid="ignore"):
            for grad in grads:
                grad._bump()
                np.multiply(grad.data, scale, out=grad.data)
    return total


def _clip_on_gpu(grads: list[Tensor], max_norm: float, error_if_nonfinite: bool) -> Tensor:
    """The same on the GPU, in three launches (five if there are gradients of both dtypes), and without asking for the norm: see clip.cu."""
    cp = cuda.array_module()
    launches = []
    for dtype in dict.fromkeys(grad.dtype for grad in grads):
        arrays = [grad.data for grad in grads if grad.dtype == dtype]
        key = (threading.get_ident(), id(cp), cp.cuda.Device().id, dtype, *[array.size for array in arrays])
        if key not in _known:  # kept for good: captured graphs know the addresses of its arrays only
            _known[key] = multi_tensor.Chunks([array.size for array in arrays], [0] * len(arrays), 1)
        chunks = _known[key]
        launches.append((cuda.c_type(dtype), chunks, chunks.addresses(arrays)))
    partial, result = cp.empty((sum(chunks.count for _, chunks, _ in launches), 3), np.float64), cp.empty(2, np.float64)
    start = 0
    for number, chunks, addresses in launches:
        part = partial[start : start + chunks.count]
        _cuda.launch(f"clip_squares<{number}>", chunks.count, 256, addresses, chunks.table, part, chunks.tensors)
        start += chunks.count
    _cuda.launch("clip_factor", 1, 256, partial, result, start, float(max_norm))
    if error_if_nonfinite and not math.isfinite(total := float(result[0])):
        raise FloatingPointError(f"clip_grad_norm_: the norm of the gradients is {total}")
    if max_norm == math.inf:
        return wrap(result[0])
    for grad in grads:
        grad._bump()
    for number, chunks, addresses in launches:
        _cuda.launch(f"clip_scale<{number}>", chunks.count, 256, addresses, chunks.table, result, chunks.tensors)
    return wrap(result[0])


def _vectors(arrays: list) -> list:
    """The arrays as vectors, the small ones among NumPy's end to end: a product with itself costs a vector of 100 numbers little but the call."""
    small: dict[np.dtype, list] = {}
    vectors = []
    for array in arrays:
        alike = small.setdefault(array.dtype, []) if type(array) is np.ndarray and array.size <= SMALL else vectors
        alike.append(array.reshape(-1))
    return vectors + [np.concatenate(alike) for alike in small.values()]


def _norm(flat: Any) -> float:
    """The norm of one vector; that of a float32 one whose squares would overflow is divided by its largest element first."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.dot(flat, flat))
    if not flat.size or (math.isfinite(square) and square > 1e-30):
        return math.sqrt(square)
    largest = float(np.max(np.abs(flat)))
    if largest == 0 or not math.isfinite(largest):
        return largest
    flat = flat / largest
    return largest * math.sqrt(float(np.dot(flat, flat)))
