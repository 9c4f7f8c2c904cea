"""The matrix product, of matrices and of stacks of matrices. Read next: `minigrad/fused/linear.py`."""

from __future__ import annotations

import math
from typing import Any

from minigrad import backend
from minigrad.op import primitive
from minigrad.ops.inputs import as_tensor
from minigrad.ops.movement import reshape, sum_to, swapaxes
from minigrad.tensor import Tensor


@primitive(name="matmul")
def product(x: Tensor, y: Tensor) -> Tensor:
    """The product of matrices, or of stacks of matrices whose leading axes are broadcast: matmul without vectors and checks."""
    return backend.matmul(x, y)


product.derivative(
    x=lambda g, y, x_shape: sum_to(product(g, swapaxes(y, -1, -2)), x_shape),  # (..., n, k) = (..., n, m) (..., m, k)
    y=lambda g, x, y_shape: sum_to(product(swapaxes(x, -1, -2), g), y_shape),  # (..., k, m) = (..., k, n) (..., n, m)
)
product.on_arrays(
    x=lambda g, y, x_shape: _summed_to(backend.matmul(g, y.swapaxes(-1, -2)), x_shape),
    y=lambda g, x, y_shape: _summed_to(backend.matmul(x.swapaxes(-1, -2), g), y_shape),
)


def _summed_to(array: Any, shape: tuple[int, ...]) -> Any:
    return array if array.shape == shape else sum_to.function(array, shape)


def matmul(x: Any, y: Any) -> Tensor:
    """The product (..., n, k) @ (..., k, m) -> (..., n, m); leading axes are broadcast, a vector is a row on the left and a column on the right.

    Raises:
        ValueError: inner lengths that differ, or a 0-d tensor. TypeError: two dtypes or devices.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.matmul.html
    """
    x, y = [as_tensor("matmul", z) for z in (x, y)]
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[-2 if y.ndim > 1 else 0]:
        raise ValueError(
            f"matmul: shapes {x.shape} and {y.shape} do not fit; the last axis of the first must be as long as the last but one of the second"
        )
    if x.dtype != y.dtype:
        raise TypeError(f"matmul: inputs are {x.dtype} and {y.dtype}; bring them to one dtype with .astype(...)")
    if x.device != y.device:
        raise product._mixed_devices([x.device, y.device])
    if x.ndim == 1:
        result = matmul(reshape(x, (1, -1)), y)  # (..., 1, m), or (1,) beside a vector
        return reshape(result, (*result.shape[:-2], result.shape[-1]) if y.ndim > 1 else ())
    if y.ndim == 1:
        result = matmul(x, reshape(y, (-1, 1)))  # (..., n, 1)
        return reshape(result, result.shape[:-1])
    if x.ndim > 2 and y.ndim == 2:  # one large product instead of many small ones
        return reshape(product(reshape(x, (math.prod(x.shape[:-1]), x.shape[-1])), y), (*x.shape[:-1], y.shape[1]))
    try:
        return product(x, y)
    except ValueError:
        raise ValueError(
            f"matmul: shapes {x.shape} and {y.shape} do not fit; their leading axes {x.shape[:-2]} and {y.shape[:-2]} cannot be broadcast together"
        ) from None
