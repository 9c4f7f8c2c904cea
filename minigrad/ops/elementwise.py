"""Elementwise operations: one number in each place, computed from the numbers in the same place. Rules in the density of a table.

Inputs are broadcast as NumPy does; the gradient of an input that was broadcast is summed back to its shape by `Primitive.backward`. Where a
function has a kink, the derivative there is PyTorch's: relu'(0) = abs'(0) = 0, a tie of maximum or minimum gives each side half, clip passes the
gradient at its bounds.
Read next: `inputs.py`.
"""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backend.erf import erf as erf_of_array
from minigrad.op import primitive
from minigrad.ops.inputs import as_tensor
from minigrad.tensor import Tensor

# --- arithmetic


@primitive(elementwise=True)
def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y."""
    return backend.add(x, y)


@primitive(elementwise=True)
def sub(x: Tensor, y: Tensor) -> Tensor:
    """x - y."""
    return x - y


@primitive(elementwise=True)
def mul(x: Tensor, y: Tensor) -> Tensor:
    """x * y."""
    return x * y


@primitive(elementwise=True, floating=True)
def div(x: Tensor, y: Tensor) -> Tensor:
    """x / y; of integers it is float32."""
    return x / y


@primitive
def neg(x: Tensor) -> Tensor:
    """-x."""
    return -x


@primitive(elementwise=True)
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """The larger of the two, nan where one is; where they tie, each has half of the gradient."""
    return np.maximum(x, y)


@primitive(elementwise=True)
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """The smaller of the two, nan where one is; where they tie, each has half of the gradient."""
    return np.minimum(x, y)


@primitive(elementwise=True, promoted=1, constants="condition")
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the boolean condition holds, else y; the condition has no gradient, and one that requires grad is refused."""
    return np.where(condition, x, y)


add.derivative(x=lambda g: g, y=lambda g: g)
sub.derivative(x=lambda g: g, y=lambda g: -g)
mul.derivative(x=lambda g, y: g * y, y=lambda g, x: g * x)
div.derivative(x=lambda g, y: g / y, y=lambda g, x, y: -(g * (x / y / y)))  # y * y may be infinite or 0
neg.derivative(x=lambda g: -g)
maximum.derivative(x=lambda g, x, y: g * _share(x, y), y=lambda g, x, y: g * _share(y, x))
minimum.derivative(x=lambda g, x, y: g * _share(-x, -y), y=lambda g, x, y: g * _share(-y, -x))
where.derivative(x=lambda g, condition: where(condition, g, 0.0), y=lambda g, condition: where(condition, 0.0, g))


def _share(x: Tensor, y: Tensor) -> Tensor:
    """1 where x is the larger, 0 where y is, 1/2 where they tie."""
    return 0.5 * (cast(x > y, x.dtype) + cast(x >= y, x.dtype))


for operation in (add, sub, mul, div, neg):
    operation.on_arrays()

# --- functions of one number


@primitive(floating=True)
def exp(x: Tensor) -> Tensor:
    """e to the power of x."""
    return np.exp(x)


@primitive(floating=True)
def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, exact where x is tiny too."""
    return np.expm1(x)


@primitive(floating=True)
def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return np.log(x)


@primitive(floating=True)
def log1p(x: Tensor) -> Tensor:
    """log(1 + x), exact where x is tiny too."""
    return np.log1p(x)


@primitive(floating=True)
def sqrt(x: Tensor) -> Tensor:
    """The square root; its gradient at 0 is infinite."""
    return np.sqrt(x)


@primitive(floating=True)
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return np.tanh(x)


@primitive(floating=True)
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) as e / (1 + e) with e = exp(x): as exact where e is tiny as where it is huge, and nothing overflows.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.sigmoid.html
    """
    e = np.exp(np.minimum(x, 40))  # from 37 on the result is 1 in float64 too
    e /= 1 + e
    return e


@primitive(floating=True)
def erf(x: Tensor) -> Tensor:
    """The error function, 2/sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    return erf_of_array(x)


@primitive(floating=True)
def sin(x: Tensor) -> Tensor:
    """The sine; x is in radians."""
    return np.sin(x)


@primitive(floating=True)
def cos(x: Tensor) -> Tensor:
    """The cosine; x is in radians."""
    return np.cos(x)


@primitive
def relu(x: Tensor) -> Tensor:
    """max(x, 0). Its gradient is multiplied by the mask out > 0, so an infinite one becomes nan where PyTorch has 0: `np.where` would not do that,
    but takes ten times as long (4,800 against 400 ps an element, 262,144 float32 numbers, one core), and a gradient that is infinite is lost anyway.
    """
    return np.maximum(x, np.zeros_like(x, shape=(1,) * x.ndim))  # an array: several times faster than the scalar 0


@primitive
def abs(x: Tensor) -> Tensor:
    """The absolute value; its gradient at 0 is 0."""
    return np.abs(x)


@primitive(name="clip")
def clipped(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """clip, where the bounds are Python's numbers or NumPy's arrays, and the result has x's shape."""
    bounds: list[Any] = [low, high]
    if x.dtype.kind == "f":  # an array has a dtype, which would promote
        bounds = [bound.astype(x.dtype) if isinstance(bound, np.ndarray) else bound for bound in bounds]
    elif isinstance(low, float) or isinstance(high, float):
        x = x.astype(np.float32)
    return x.copy() if low is None and high is None else np.clip(x, *bounds)  # NumPy 2.0 wants a bound


@primitive
def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for a fixed number.

    NumPy's own power is slow for most exponents (x ** 3: 200 times x * x * x), so small whole ones are products: x ** 8 is up to 5 units in the
    last place off.
    """
    if x.dtype.kind != "f":
        whole = isinstance(exponent, int) and exponent >= 0
        x = x.astype(np.float32 if not whole else np.int64 if x.dtype == bool else x.dtype)
    factors = max(exponent, -exponent)
    if x.dtype.kind == "f" and 2 <= factors <= 8 and factors % 1 == 0:
        return _product(x, int(factors)) if exponent > 0 else 1 / _product(x, int(factors))
    if exponent in (0.5, -0.5):  # as PyTorch's, by the root: else -0.0 and -inf would have roots of one kind and derivatives of another
        return np.sqrt(x) if exponent > 0 else 1 / np.sqrt(x)
    return x**exponent


def _product(x: Any, count: int) -> Any:
    """x * x * ... with `count` factors; NumPy's square is faster than x * x."""
    if count == 1:
        return x
    if count % 2:
        return x * _product(x, count - 1)
    return _product(x, count // 2) ** 2


@primitive(elementwise=True, floating=True, name="pow")
def power_of(x: Tensor, y: Tensor) -> Tensor:
    """x ** y for an exponent that is a Tensor; of two integers, unlike PyTorch's, it is float32."""
    return x**y


exp.derivative(x=lambda g, out: g * out)
expm1.derivative(x=lambda g, x: g * exp(x))  # out + 1 has lost the digits of a small exp(x)
log.derivative(x=lambda g, x: g / x)
log1p.derivative(x=lambda g, x: g / (1 + x))
sqrt.derivative(x=lambda g, out: g / (2 * out))
tanh.derivative(x=lambda g, out: g * (1 - out * out))
sigmoid.derivative(x=lambda g, out: g * (out * (1 - out)))
erf.derivative(x=lambda g, x: g * (2 / np.pi**0.5 * exp(-(x * x))))
sin.derivative(x=lambda g, x: g * cos(x))
cos.derivative(x=lambda g, x: -(g * sin(x)))
relu.derivative(x=lambda g, out: g * (out > 0))
abs.derivative(x=lambda g, x: g * (cast(x > 0, x.dtype) - cast(x < 0, x.dtype)))
clipped.derivative(x=lambda g, x, low, high: g * cast(_inside(x, low, high), x.dtype))
power.derivative(x=lambda g, x, exponent: g * 0 if exponent == 0 else g * (exponent * power(x, exponent - 1)))
power_of.derivative(
    x=lambda g, x, y: g * where(equal(y, 0), 0.0, y * power_of(x, y - 1)),
    y=lambda g, x, y, out: g * where(logical_and(equal(x, 0), y >= 0), 0.0, out * log(x)),  # as PyTorch: 0 ** y is flat in y
)


for operation in (exp, log, log1p, sqrt, tanh, sigmoid, relu):
    operation.on_arrays()


def _inside(x: Tensor, low: float | None, high: float | None) -> Tensor:
    if low is None:
        return less_equal(x, np.inf if high is None else high)
    return greater_equal(x, low) if high is None else logical_and(greater_equal(x, low), less_equal(x, high))


def clip(x: Any, low: Any = None, high: Any = None) -> Tensor:
    """x brought between low and high, first above the one, then below the other; None means no bound.

    A bound is a number, or an array or a Tensor that is broadcast with x; a Tensor has a gradient where it is what comes out.
    Source: https://docs.pytorch.org/docs/stable/generated/torch.clamp.html
    """
    low, high = _plain_number(low), _plain_number(high)
    if isinstance(low, int | float | None) and isinstance(high, int | float | None):
        return clipped(x, low, high)
    x = as_tensor("clip", x)
    low, high = [bound if isinstance(bound, int | float | None) else as_tensor("clip", bound) for bound in (low, high)]
    bounds = [bound for bound in (low, high) if isinstance(bound, Tensor)]
    try:
        shape = np.broadcast_shapes(x.shape, *[bound.shape for bound in bounds])
    except ValueError:
        raise ValueError(f"clip: shapes {' and '.join(str(y.shape) for y in (x, *bounds))} do not broadcast") from None
    devices = [y.device for y in (x, *bounds)]
    if len(set(devices)) > 1:
        raise clipped._mixed_devices(devices)
    if shape == x.shape and x.device == "cpu" and not any([bound.requires_grad for bound in bounds]):
        return clipped(x, *[bound.data if isinstance(bound, Tensor) else bound for bound in (low, high)])
    if x.dtype.kind == "f":
        low, high = [cast(bound, x.dtype) if isinstance(bound, Tensor) else bound for bound in (low, high)]
    if low is not None:
        x = where(greater_equal(x, low), x, maximum(x, low))  # at the bound itself x has the gradient, all of it
    return x if high is None else where(less_equal(x, high), x, minimum(x, high))


def pow(x: Any, exponent: Any) -> Tensor:
    """x ** exponent; the exponent is a number or a Tensor. Integers stay integers where the exponent is a Python integer from 0 on."""
    exponent = _plain_number(exponent)
    if isinstance(exponent, numbers.Real) and (isinstance(x, Tensor) or isinstance(_plain_number(x), np.ndarray)):
        return power(x, exponent)
    return power_of(x, exponent)


def _plain_number(value: Any) -> Any:
    """A NumPy scalar or 0-d array as a Python number, which has no width and so cannot promote; fractions as floats; anything else as it is."""
    if isinstance(value, np.generic) or (backend.is_array(value) and value.ndim == 0):
        return value.item()
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, int) else value


# --- dtype and device; the same again


@primitive(view=True)
def identity(x: Tensor) -> Tensor:
    """The same memory as a new node of the graph."""
    return x


@primitive(name="cast")
def converted(x: Tensor, dtype: Any) -> Tensor:
    """`cast`, where the dtype is another."""
    return x.astype(dtype)


@primitive(view=True)
def to_device(x: Tensor, device: str) -> Tensor:
    """A copy on another device; the same memory where it is there already."""
    return backend.to_device(x, device)


identity.derivative(x=lambda g: g)
identity.on_arrays()
converted.derivative(x=lambda g, x_dtype: cast(g, x_dtype))
to_device.derivative(x=lambda g, x_device: to_device(g, x_device))


def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype, anything `numpy.dtype()` takes; x itself if it has that dtype. Gradients pass between float dtypes."""
    dtype = backend.native(dtype)
    if not isinstance(x, Tensor):  # looked at here, since every mixed operation comes by
        x = as_tensor("cast", x)
    if x.dtype == dtype:
        return x
    backend.check_dtype(dtype, "cast")
    return converted(x if dtype.kind == "f" else x.detach(), dtype)


# --- comparisons and tests: booleans, without a derivative


@primitive(elementwise=True)
def greater(x: Tensor, y: Tensor) -> Tensor:
    """x > y, True or False in each place."""
    return x > y


@primitive(elementwise=True)
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    """x >= y, True or False in each place."""
    return x >= y


@primitive(elementwise=True)
def less(x: Tensor, y: Tensor) -> Tensor:
    """x < y, True or False in each place."""
    return x < y


@primitive(elementwise=True)
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    """x <= y, True or False in each place."""
    return x <= y


@primitive(elementwise=True)
def equal(x: Tensor, y: Tensor) -> Tensor:
    """x == y, True or False in each place; nan equals nothing."""
    return x == y


@primitive(elementwise=True)
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    """x != y, True or False in each place; nan differs from itself."""
    return x != y


@primitive(elementwise=True)
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    """Whether neither is 0."""
    return np.logical_and(x, y)


@primitive(elementwise=True)
def logical_or(x: Tensor, y: Tensor) -> Tensor:
    """Whether one of them, or both, is not 0."""
    return np.logical_or(x, y)


@primitive(elementwise=True)
def logical_xor(x: Tensor, y: Tensor) -> Tensor:
    """Whether one of them is 0 and the other is not."""
    return np.logical_xor(x, y)


@primitive
def logical_not(x: Tensor) -> Tensor:
    """Whether x is 0."""
    return np.logical_not(x)


@primitive
def isfinite(x: Tensor) -> Tensor:
    """Whether x is neither infinite nor nan."""
    return np.isfinite(x)
