"""Linear: every row of the input times one weight matrix. The shortest kernel that uses the thread pool; read it before the others.

Letters: R rows (all leading axes of x together), I input features, O output features. Read next: `layer_norm.py`.
"""

from __future__ import annotations

import numpy as np

from minigrad.backend.cpu import parallel_rows
from minigrad.op import fused
from minigrad.tensor import Tensor

__all__ = ["linear"]


@fused
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: (..., I).
        weight: (O, I), PyTorch's shape.
        bias: (O,), or None for none.

    Returns:
        (..., O).

    Raises:
        ValueError: shapes that do not fit together.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear.html
    """
    y = x @ weight.T                                                           # (..., O)
    return y if bias is None else y + bias                                     # (..., O)


@linear.check
def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2:
        raise ValueError(f"linear: weight has shape {weight.shape}, expected (out_features, in_features)")
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x has shape {x.shape}, weight expects {weight.shape[1]} features in its last axis (weight shape {weight.shape})")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: bias has shape {bias.shape}, weight makes {weight.shape[0]} features (weight shape {weight.shape})")


def _grain(weight: np.ndarray) -> int:
    """Rows worth a thread: four million multiplications take about as long as handing them over."""
    return 1 + 2**22 // (weight.size + 1)


def cpu_forward(x, weight, bias):
    features_out, features_in = weight.shape
    rows = x.reshape(-1, features_in) if features_in else x.reshape(x.size // 1 if x.ndim < 2 else int(np.prod(x.shape[:-1])), 0)
    y = np.empty((len(rows), features_out), x.dtype)                           # (R, O)

    def work(start: int, stop: int) -> None:
        np.matmul(rows[start:stop], weight.T, out=y[start:stop])
        if bias is not None:
            y[start:stop] += bias

    parallel_rows(work, len(rows), _grain(weight))
    return y.reshape(*x.shape[:-1], features_out), (x, weight)


def cpu_backward(dy, saved, needs):
    """y_ro = sum_i x_ri w_oi + b_o is linear in each of its arguments, so

        dx_ri = sum_o dy_ro w_oi        dw_oi = sum_r dy_ro x_ri        db_o = sum_r dy_ro

    The sums over rows are taken block by block and the blocks' parts added. The last one is written as the product of a row of ones with dy, which BLAS does at the
    speed of memory.
    """
    x, weight = saved
    features_out, features_in = weight.shape
    dx = np.empty_like(x) if needs[0] else None
    rows, dx_rows, dy_rows = (None if a is None else a.reshape(-1, n) for a, n in ((x, features_in), (dx, features_in), (dy, features_out)))

    def work(start: int, stop: int) -> tuple:
        g = dy_rows[start:stop]                                                # (r, O)
        if dx is not None:
            np.matmul(g, weight, out=dx_rows[start:stop])
        return (g.T @ rows[start:stop] if needs[1] else None, np.ones(len(g), g.dtype) @ g if needs[2] else None)

    dweight, dbias = (sum_parts(parts) for parts in zip(*parallel_rows(work, len(dy_rows), _grain(weight)), strict=True))
    return dx, dweight, dbias
