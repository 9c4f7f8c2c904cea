"""What operations make of their arguments: Tensors of one dtype and on one device, arrays that may be written into another, axes that are there.

No operations: these are used by them, by `primitive_op.py` and `fused_op.py` before a forward runs, and by Tensor's own writes. Their errors are in
the name of whoever asks. Read next: `reduce.py`.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.modes import MODE
from minigrad.op import Op
from minigrad.tensor import Tensor, wrap

# --- dtypes of mixed inputs


def promote(op: Op, inputs: Sequence[Any], start: int, floating: bool) -> list[Tensor]:
    """The inputs as Tensors of one dtype (those from position `start` on) on one device.

    PyTorch's rule: tensors with axes decide among themselves, 0-d tensors and then numbers change the dtype only if they are of a higher kind
    (boolean < integer < float), so that float32 stays float32 beside 2.0 or a 0-d float64. NumPy scalars and 0-d arrays count as numbers: they
    have a kind, but no width. Integers beside floats take the floats' dtype. Source: torch.result_type.
    """
    inputs = [backend.host_array(x, op.name) if isinstance(x, np.ndarray) and not backend.is_array(x) else x for x in inputs]  # memory maps
    arrays = [x.data if type(x) is Tensor else x if backend.is_array(x) or isinstance(x, np.generic) else None for x in inputs]
    for x, array in zip(inputs, arrays, strict=True):
        if array is None and not isinstance(x, numbers.Real):
            kind = type(x).__qualname__ if type(x).__module__ == "builtins" else f"{type(x).__module__}.{type(x).__qualname__}"
            raise TypeError(f"{op.name}: cannot use {kind} as a tensor; give a Tensor, an array or a number")
        if array is not None and (type(x) is Tensor or array.ndim > 0 or array.dtype.kind != "f"):  # else it is a number, of any width
            backend.check_dtype(array.dtype, op.name)
    devices = list(dict.fromkeys(backend.device_of(a) for a in arrays if a is not None and not isinstance(a, np.generic)))
    if len(devices) > 1:
        raise op._mixed_devices(devices)
    dtype = _common_dtype(inputs[start:], arrays[start:], floating)
    device = devices[0] if devices else "cpu"
    result = []
    for position, x in enumerate(inputs):
        if position < start:
            result.append(x if type(x) is Tensor else wrap(x.copy() if backend.is_array(x) else backend.to_device(np.asarray(x), device)))
        elif type(x) is Tensor:
            result.append(x if x.data.dtype == dtype else x.astype(dtype))
        else:
            try:
                result.append(wrap(x.astype(dtype) if backend.is_array(x) else backend.number(x, dtype, device)))
            except OverflowError:
                raise OverflowError(f"{op.name}: {x} is no {dtype}, which the tensor is; give it another dtype with .astype(...)") from None
    return result


_KINDS = {"b": 0, "u": 1, "i": 1, "f": 2}  # boolean < integer < float
_NUMBERS = [np.dtype(bool), np.dtype(np.int64), np.dtype(np.float32)]  # what a number of each kind is where no tensor decides


def _common_dtype(inputs: Sequence[Any], arrays: Sequence[Any], floating: bool) -> np.dtype:
    """The dtype that `promote` brings these inputs to. arrays: that of each, None for a Python number."""
    with_axes, without, numbers_given = [], [], []
    for x, array in zip(inputs, arrays, strict=True):
        if array is not None and (type(x) is Tensor or array.ndim > 0):
            (with_axes if array.ndim > 0 else without).append(array.dtype)
        else:
            kind = _KINDS[array.dtype.kind] if array is not None else 0 if isinstance(x, bool) else 1 if isinstance(x, int) else 2
            numbers_given.append(_NUMBERS[kind])
    kind, dtype = -1, np.dtype(np.float32)
    for group in (with_axes, without, numbers_given):
        highest = max([_KINDS[d.kind] for d in group], default=-1)
        if highest > kind:
            kind, dtype = highest, functools.reduce(np.promote_types, [d for d in group if _KINDS[d.kind] == highest])
    return backend.native(np.float32 if floating and dtype.kind != "f" else dtype)


# --- one argument at a time


def as_tensor(who: str, value: Any) -> Tensor:
    """An array, number or list that the operation `who` got in the place of a Tensor, as one: a copy, the array's owner may write to it later.

    A Tensor is returned as it is.
    """
    if isinstance(value, Tensor):
        return value
    try:
        return Tensor(value)
    except TypeError:
        refuse_lists_with_gradients(who, value)  # as Tensor does, but in the operation's name
        raise


def _holds_gradients(value: Any) -> bool:
    return any(map(_holds_gradients, value)) if isinstance(value, list | tuple) else isinstance(value, Tensor) and value.requires_grad


def refuse_lists_with_gradients(who: str, value: Any) -> None:
    """Raise TypeError for Tensors inside lists that require grad: as an array they would have no gradient."""
    if MODE.get().record and _holds_gradients(value):
        raise TypeError(f"{who}: Tensors in a {type(value).__name__} would lose their gradients; put them together by F.stack first")


def as_array(what: str, value: Any, like: Tensor) -> Any:
    """The array of a Tensor, array or number that is to be written into `like`; `what` does it."""
    array = value.data if isinstance(value, Tensor) else value
    given = backend.is_array(array)
    if not given:
        refuse_lists_with_gradients(what, value)
        array = backend.host_array(value, what)
        extremes = [array.min().item(), array.max().item()] if array.size and array.dtype.kind in "iuf" else []
        for number in extremes if array.ndim else [value]:
            check_fits(what, number, like.dtype)
    if array.dtype.kind not in _KINDS:
        raise TypeError(f"{what}: cannot write {type(value).__name__} data (NumPy reads it as {array.dtype}) into a tensor; give numbers")
    if given and backend.device_of(array) != like.device:
        raise TypeError(f"{what}: the value is on {backend.device_of(array)}, the tensor on {like.device}; move one with .to(device=...)")
    return backend.to_device(array, like.device)


def check_fits(what: str, value: Any, dtype: np.dtype) -> None:
    """Raise OverflowError for a number that is to be written into an integer tensor and is beyond its dtype, or not finite: NumPy would wrap it."""
    if dtype.kind in "iu" and isinstance(value, numbers.Real):
        try:
            np.array(int(value), dtype)
        except (OverflowError, ValueError):
            raise OverflowError(f"{what}: {value} is no {dtype}, which the tensor is; give it another dtype with .astype(...)") from None


def check_axis(name: str, axis: Any, ndim: int) -> None:
    """Raise, in the name of the op `name`, TypeError for an axis that is no whole number (None is for the ops that say so), AxisError, which is a
    ValueError and an IndexError, for one that a tensor of `ndim` axes does not have.
    """
    if not isinstance(axis, int | np.integer):
        raise TypeError(f"{name}: the axis must be a whole number, it is {axis!r}")
    if not -ndim <= axis < ndim:
        advice = f"give one from {-ndim} to {ndim - 1}" if ndim else "a 0-d tensor has none"
        raise np.exceptions.AxisError(f"{name}: there is no axis {axis}; {advice}")
