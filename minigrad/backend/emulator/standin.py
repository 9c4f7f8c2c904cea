"""The emulator's stand-in for the module `cupy`: the names that a backend may use, and no others.

`from minigrad.backend.emulator import standin as cp` reads like `import cupy as cp`. A name that is not here is an AttributeError, so that code which
passes its tests on the emulator uses nothing that has not been thought about. What it cannot show: missing ordering between streams, occupancy, the
memory pool's reuse, the choice of cuBLAS algorithms, and speed. Read next: `raw.py` (kernels), `streams.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from minigrad.backend.emulator import arrays, state, streams
from minigrad.backend.emulator.arrays import VIEWS, _wrap, compute, empty, made, ndarray, no_upload, operand, upload
from minigrad.backend.emulator.raw import RawModule

__all__ = ["RawModule", "cuda", "empty", "ndarray"]

bool_, int8, int32, int64, uint8, uint16, uint32, float16, float32, float64 = (
    np.bool_, np.int8, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.float16, np.float32, np.float64,
)  # fmt: skip
dtype, newaxis, pi, inf, nan = np.dtype, None, np.pi, np.inf, np.nan

cuda = streams.cuda
lib = SimpleNamespace(
    stride_tricks=SimpleNamespace(
        # of CuPy's views, too, these name no base
        as_strided=lambda x, shape, strides: _wrap(x._block, np.lib.stride_tricks.as_strided(x._values, shape, strides), None),
    )
)


def __getattr__(name: str) -> Any:
    raise AttributeError(f"the emulator's stand-in for CuPy has no {name!r}: if CuPy has it, and it is needed, add it to emulator/standin.py")


# --- making arrays, and bringing them back


def asarray(a: Any, dtype: Any = None) -> ndarray:
    """`a` on the device: itself if it is there, a copy of a NumPy array, list or number otherwise."""
    if isinstance(a, ndarray):
        return a if dtype is None else a.astype(dtype, copy=False)
    return upload(np.asarray(a, dtype))


def array(a: Any, dtype: Any = None, copy: bool = True) -> ndarray:
    """A copy of `a` on the device."""
    return asarray(a, dtype).copy() if isinstance(a, ndarray) and copy else asarray(a, dtype)


def ascontiguousarray(a: ndarray) -> ndarray:
    """`a` in C order: itself, or a copy."""
    return a if a.flags.c_contiguous else a.copy()


def asnumpy(a: Any) -> np.ndarray:
    """A copy in the host's memory; waits for the device."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def full(shape: Any, fill_value: Any, dtype: Any = None) -> ndarray:
    """A new array of one number."""
    return made("full", lambda: np.full(shape, fill_value, dtype), [])


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """A new array of zeros."""
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: Any = float) -> ndarray:
    """A new array of ones."""
    return full(shape, 1, dtype)


def empty_like(prototype: ndarray, dtype: Any = None, shape: Any = None) -> ndarray:
    """A new array, not written, like another one, and in its order. CuPy takes the shape () for none given, and so does this."""
    return arrays.empty_like(prototype._values, dtype, shape or None)


def full_like(a: ndarray, fill_value: Any, dtype: Any = None, shape: Any = None) -> ndarray:
    """A new array of one number, like another one; see `empty_like`."""
    return made("full_like", lambda: np.full_like(a._values, fill_value, dtype, shape=shape or None), [], "K")


def zeros_like(a: ndarray, dtype: Any = None, shape: Any = None) -> ndarray:
    """A new array of zeros, like another one."""
    return full_like(a, 0, dtype, shape)


def ones_like(a: ndarray, dtype: Any = None, shape: Any = None) -> ndarray:
    """A new array of ones, like another one."""
    return full_like(a, 1, dtype, shape)


def arange(*args: Any, dtype: Any = None) -> ndarray:
    """As `numpy.arange`, on the device."""
    return made("arange", lambda: np.arange(*args, dtype=dtype), [])


def argsort(a: ndarray, axis: int = -1) -> ndarray:
    """The positions of the elements in ascending order; equal ones keep theirs, as in CuPy."""
    return compute(np.argsort, a, axis=axis, kind="stable")


def copyto(dst: ndarray, src: Any, casting: Any = "same_kind") -> None:
    """Write `src`, broadcast, into `dst`."""
    if isinstance(src, np.ndarray):
        raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
    source = operand(src)
    given = source.dtype if isinstance(source, np.ndarray) else np.min_scalar_type(source)
    if not np.can_cast(given, dst.dtype, casting):
        raise TypeError(f"Cannot cast {given} to {dst.dtype} with casting rule {casting!r}")
    dst[...] = src


def shares_memory(a: ndarray, b: ndarray) -> bool:
    """Whether two arrays have an element in common."""
    return np.shares_memory(operand(a), operand(b))


def may_share_memory(a: ndarray, b: ndarray) -> bool:
    """Whether two arrays lie in the same range of addresses."""
    return np.may_share_memory(operand(a), operand(b))


# --- computing: NumPy's functions on the device's arrays


_REDUCIBLE = ("add", "multiply")
_AT = ("add", "bitwise_and", "bitwise_or", "bitwise_xor", "maximum", "minimum", "subtract")


class Ufunc:
    """An elementwise function, as `cupy.exp`. `at` adds (or the like) at places that may be given more than once."""

    def __init__(self, ufunc: np.ufunc):
        self._ufunc, self.__name__ = ufunc, ufunc.__name__

    def __call__(self, *args: Any, out: ndarray | None = None, **options: Any) -> Any:
        """The function of arrays and numbers. Raises TypeError for NumPy arrays."""
        if not options.keys() <= {"dtype", "casting"}:
            raise TypeError(f"Wrong arguments {options}")
        for x in args:
            operand(x)
        return compute(self._ufunc, *args, out=out, **options)

    def reduce(self, a: ndarray, axis: Any = 0, dtype: Any = None, out: ndarray | None = None, keepdims: bool = False) -> Any:
        """As `numpy.add.reduce`."""
        if self.__name__ not in _REDUCIBLE:
            raise NotImplementedError(f"`{self.__name__}.reduce` is not supported yet")
        return compute(self._ufunc.reduce, a, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def at(self, a: ndarray, indices: Any, b: Any) -> None:
        """As `numpy.add.at`. On a GPU the order of the additions differs from run to run."""
        if self.__name__ not in _AT:
            raise NotImplementedError(f"`{self.__name__}.at` is not supported yet")
        parts = [asarray(part) if isinstance(part, np.ndarray | list) else part for part in (indices if isinstance(indices, tuple) else (indices,))]

        def add(values: np.ndarray, index: Any, b: Any) -> np.ndarray:
            result = values.copy()
            self._ufunc.at(result, index, b)
            return result

        compute(add, a, tuple(parts), b, out=a)


for _name in (
    "abs absolute add arccos arcsin arctan bitwise_and bitwise_or bitwise_xor ceil cos cosh divide equal exp expm1 floor floor_divide fmax "
    "fmin greater greater_equal invert isfinite isinf isnan left_shift less less_equal log log1p log2 logical_and logical_not logical_or logical_xor "
    "maximum minimum multiply negative not_equal power reciprocal remainder right_shift rint sign sin sinh sqrt square subtract "
    "tan tanh true_divide trunc"
).split():
    globals()[_name] = Ufunc(getattr(np, _name))


_BY_CUBLAS = ("dot", "einsum", "matmul", "tensordot")


def _function(name: str) -> Any:
    function, view = getattr(np, name), name in VIEWS

    def on_the_device(*args: Any, **options: Any) -> Any:
        if name in ("concatenate", "stack") and len(args[0]) > 8:
            no_upload("a list of more than 8 addresses is")  # by which CuPy then finds the arrays
        if name == "concatenate" and 0 in [x.ndim for x in args[0]]:
            raise TypeError("zero-dimensional arrays cannot be concatenated")
        if name in _BY_CUBLAS and state.current().capturing is not None:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        return compute(function, *args, view=view, order="K" if name == "pad" else "C", **options)

    on_the_device.__name__, on_the_device.__doc__ = name, f"As `numpy.{name}`, on arrays of the device."
    return on_the_device


for _name in (
    "all amax amin any argmax argmin broadcast_to clip concatenate cumsum dot einsum expand_dims flip matmul max mean min moveaxis pad prod ravel "
    "repeat reshape roll squeeze stack std sum swapaxes take take_along_axis tensordot tile transpose tril triu var where"
).split():
    globals()[_name] = _function(_name)
