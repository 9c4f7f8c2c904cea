"""GELU, the activation of the transformer's MLP: x times the probability that a standard normal variable is below x.

The kernel computes that probability by `backend/erf.py` in float64, and in float32 by a polynomial inside an exp, which NumPy has a fast one of.
Read next: `softmax.py`.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad.backend import cuda
from minigrad.backend.cpu import parallel_blocks
from minigrad.backend.erf import erf
from minigrad.fused.floats import check_floats
from minigrad.op import fused
from minigrad.tensor import Tensor

__all__ = ["gelu"]

_GRAIN = 1 << 16  # elements a thread is worth: 66,000 take 0.24 ms on one and 0.27 ms on two, 131,000 0.41 and 0.28


@fused
def gelu(x: Tensor) -> Tensor:
    """`x * Phi(x)`, where `Phi(x) = (1 + erf(x / sqrt(2))) / 2` is the normal distribution function. Any shape; exact, not the tanh approximation.

    Source: Hendrycks and Gimpel 2016, https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.gelu.html
    """
    return x * 0.5 * (1 + (x / math.sqrt(2)).erf())                        # the shape of x


@gelu.check
def _check(x) -> None:
    check_floats("gelu", "x", x)


# Phi(x) = (1 + tanh(x Q(x^2))) / 2 = 1 / (1 + exp(-2 x Q(x^2))) with Q(s) = sum_k Q_k s^k, fitted so that the error of x Phi(x) is below 6.8e-8 for
# |x| < 5.6 (least squares, reweighted until the largest error was least). Beyond 5.75 x Q exceeds 10 and only grows: Phi is 0 or 1 to float32.
_Q = (0.797884216, 3.63342835e-2, -3.3129994e-5, -5.52401585e-5, 3.96910946e-6, -1.3344641e-7, 1.80561642e-9)
_MINUS_2Q = tuple([-2 * coefficient for coefficient in _Q])

_no_warnings = np.errstate(over="ignore", invalid="ignore")  # a huge x gives the right 0 or x by way of infinity; -inf nan, as in PyTorch


@_no_warnings
def _gelu(x: np.ndarray, out: np.ndarray) -> None:
    """Write x Phi(x) to `out`. Few arrays and no copies: the chain is as fast as the cache.

    exp rather than tanh: without AVX-512 NumPy's takes half as long (2.4 and 4.8 ns a number), and dividing x by 1 + exp saves two passes.
    """
    if x.dtype != np.float32:
        np.multiply(x, math.sqrt(0.5), out=out)
        out[...] = erf(out)
        out += 1
        out *= 0.5
        out *= x
        return
    square = x * x
    np.multiply(square, _MINUS_2Q[-1], out=out)
    for coefficient in _MINUS_2Q[-2:0:-1]:  # Horner
        out += coefficient
        out *= square
    out += _MINUS_2Q[0]
    out *= x
    np.exp(out, out=out)
    out += 1
    np.divide(x, out, out=out)


def cpu_forward(x):
    y = np.empty_like(x)
    x_flat, y_flat = x.reshape(-1), y.reshape(-1)

    parallel_blocks(lambda block: _gelu(x_flat[block], y_flat[block]), x.size, 1, _GRAIN)
    return y, (x, y)


def cpu_backward(dy, saved, needs):
    """`d/dx (x Phi(x)) = Phi(x) + x phi(x)`, since the derivative of Phi is the normal density `phi(x) = exp(-x^2 / 2) / sqrt(2 pi)`.

    Phi is `y / x`, a third of the work of computing it again, and y costs no memory in a network: the layer that follows keeps it as its input. Where
    x is so small that its square is 0, the quotient has lost its digits (or is 0 / 0), and Phi is 1/2.
    """
    x, y = saved
    dx = np.empty_like(x)
    x_flat, y_flat, dx_flat, dy_flat = x.reshape(-1), y.reshape(-1), dx.reshape(-1), dy.reshape(-1)

    @_no_warnings
    def work(block: slice) -> None:
        inputs = x_flat[block]
        part = np.divide(y_flat[block], inputs, out=dx_flat[block])        # Phi
        density = inputs * inputs
        small = density == 0
        if small.any():
            part[small] = 0.5
        density *= -0.5
        np.exp(density, out=density)
        density *= inputs
        density *= 1 / math.sqrt(2 * math.pi)
        part += density
        part *= dy_flat[block]

    parallel_blocks(work, x.size, 1, _GRAIN)
    return (dx,)


gelu.kernel("cpu", cpu_forward, cpu_backward, fresh=True)


_cuda = cuda.Kernels(__file__)


def _cuda_packs(x, *others) -> tuple[str, int]:
    """Template arguments and number of packs, for a kernel with a thread for every pack of x."""
    width = cuda.vector_width(x.size, x, *others)
    return cuda.pack_types(x.dtype, width), x.size // width


def cuda_forward(x):
    """A thread for four elements: see gelu.cu."""
    y = cuda.array_module().empty_like(x)
    types, packs = _cuda_packs(x, y)
    _cuda.launch(f"gelu_forward<{types}>", -(-packs // 256), 256, x, y, packs)
    return y, (x,)


def cuda_backward(dy, saved, needs):
    (x,) = saved
    dx = cuda.array_module().empty_like(x)
    types, packs = _cuda_packs(x, dy, dx)
    _cuda.launch(f"gelu_backward<{types}>", -(-packs // 256), 256, dy, x, dx, packs)
    return (dx,)


gelu.kernel("cuda", cuda_forward, cuda_backward, fresh=True)
