"""The error function on arrays, which NumPy lacks: `erf(x) = 2 / sqrt(pi) * integral of exp(-t^2) for t from 0 to x`.

Method: a Taylor polynomial around the nearest of 193 grid points. The values there come from `math.erf`, the higher coefficients from the
differential equation of erf, so there is no table of fitted numbers. Error below 2 units in the last place in float64. Read next:
`minigrad/fused/gelu.py`, which uses it, and shows a faster way that is enough for float32.
"""

from __future__ import annotations

import math

import numpy as np

from minigrad.backend import cuda

__all__ = ["erf"]

_cuda = cuda.Kernels(__file__)

_STEP = 1 / 32  # grid spacing: a point is at most 1/64 away
_LIMIT = 6.0  # erf(6) = 1 - 2e-17, which rounds to 1
_DEGREE = 8


def _taylor_coefficients() -> np.ndarray:
    """`a[n, k]`, the coefficient of `t^n` in erf(c + t), `c = k / 32`: array (9, 193).

    erf' = 2 / sqrt(pi) exp(-x^2), hence erf'' = -2 x erf'. Putting erf(c + t) = sum a_n t^n into it and comparing the powers of t gives
        (n + 1) (n + 2) a_{n+2} = -2 (c (n + 1) a_{n+1} + n a_n).
    """
    centers = np.arange(round(_LIMIT / _STEP) + 1) * _STEP
    table = np.empty((_DEGREE + 1, len(centers)))
    table[0] = [math.erf(c) for c in centers]
    table[1] = [2 / math.sqrt(math.pi) * math.exp(-c * c) for c in centers]
    for n in range(_DEGREE - 1):
        table[n + 2] = -2 * (centers * (n + 1) * table[n + 1] + n * table[n]) / ((n + 1) * (n + 2))
    return table


_TABLE = _taylor_coefficients()


def erf(x: np.ndarray) -> np.ndarray:
    """The error function of every element, in the dtype of `x` (float32 is computed in float64). nan stays nan, -0.0 stays -0.0.

    An array on the GPU is given to a kernel, erf.cu.

    Source: NIST DLMF 7.2.1 and 7.10.1, https://dlmf.nist.gov/7 (definition and derivatives); torch.erf.
    """
    if not isinstance(x, np.ndarray | np.generic):
        x = x if x.flags.c_contiguous else x.copy()
        y = cuda.array_module().empty_like(x)
        _cuda.launch(f"erf_of<{cuda.c_type(x.dtype)}>", -(-x.size // 256), 256, x, y, x.size)
        return y
    distance = np.minimum(np.abs(x, dtype=np.float64), _LIMIT)
    # fmin, unlike minimum, prefers the number to nan: a nan must not become an index, but stays in `distance`
    nearest = np.fmin(distance * (1 / _STEP) + 0.5, _LIMIT / _STEP).astype(np.intp)
    t = distance - nearest * _STEP
    value = _TABLE[_DEGREE].take(nearest)
    for coefficients in _TABLE[_DEGREE - 1 :: -1]:  # Horner
        value *= t
        value += coefficients.take(nearest)
    return np.copysign(value, x).astype(x.dtype, copy=False)
