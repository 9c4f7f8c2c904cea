"""The logarithm of softmax, computed without the softmax: exact where a probability is too small to be written down.

Read next: `cross_entropy.py`, which is made of it.
"""

from __future__ import annotations

import numpy as np

from minigrad.backend import cuda
from minigrad.fused.softmax import by_rows, check_input, cuda_rows, row_sums
from minigrad.op import fused
from minigrad.tensor import Tensor

__all__ = ["log_softmax"]


@fused
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """`x - log(sum(exp(x)))` along `axis`, with the largest element subtracted first.

    Args:
        x: any shape.
        axis: along which the exponentials of the results sum to 1.

    Returns:
        The shape of x. A row of only -inf gives nan, as in PyTorch.

    Raises:
        ValueError: an axis that x does not have. TypeError: x is not of floats, or the axis no whole number.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html
    """
    if x.size == 0:
        return x * 1.0                                                     # no largest element
    shifted = x - x.max(axis, keepdims=True).detach()                      # the shape of x
    return shifted - shifted.exp().sum(axis, keepdims=True).log()          # the shape of x


# y_i = x_i - log sum_k exp(x_k) has dy_i/dx_j = delta_ij - exp(y_j), hence dx_j = g_j - exp(y_j) sum_i g_i.
log_softmax.derivative(x=lambda g, out, axis: g - out.exp() * g.sum(axis, keepdims=True))


@log_softmax.check
def _check(x, axis) -> None:
    check_input("log_softmax", x, axis)


def _forward_rows(out, x) -> None:
    np.subtract(x, x.max(1, keepdims=True), out=out)
    out -= np.log(row_sums(np.exp(out)))


def _backward_rows(out, dy, y) -> None:
    np.exp(y, out=out)
    out *= -row_sums(dy)
    out += dy


def cpu_forward(x, axis):
    y = by_rows(_forward_rows, axis, x)
    return y, (y, axis)


def cpu_backward(dy, saved, needs):
    """The rule above, in place."""
    y, axis = saved
    return (by_rows(_backward_rows, axis, dy, y),)


log_softmax.kernel("cpu", cpu_forward, cpu_backward, fresh=True)


_cuda = cuda.Kernels(__file__)


def cuda_forward(x, axis):
    """See log_softmax.cu."""
    y = cuda.array_module().empty_like(x)
    cuda_rows(_cuda, "log_softmax_forward", axis, x, y)
    return y, (y, axis)


def cuda_backward(dy, saved, needs):
    y, axis = saved
    dx = cuda.array_module().empty_like(y)
    cuda_rows(_cuda, "log_softmax_backward", axis, dy, y, dx)
    return (dx,)


log_softmax.kernel("cuda", cuda_forward, cuda_backward, fresh=True)
