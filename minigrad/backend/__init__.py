"""The only place that knows which array library an array belongs to.

A device is a string: `"cpu"` for NumPy arrays; a GPU backend registers its own name with `add_device`. Everything else in the project calls NumPy
functions on arrays of any device (`np.exp(x)` reaches the right library through NumPy's dispatch protocols) and comes here for the few things that
have no such function.
Read next: `cpu.py` (the thread pool), `erf.py`, `cuda.py` (kernels on a GPU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigrad.backend import cpu

__all__ = [
    "Array", "add", "add_at", "add_device", "as_strided", "check_dtype", "device_of", "from_bfloat16", "is_array", "is_same", "is_view",
    "matmul", "number", "numbers_of_capture", "remove_device", "to_device",
]  # fmt: skip

Array = Any
"""A numpy.ndarray, or the array type of another backend."""


@dataclass(frozen=True, slots=True, eq=False)
class _Device:
    """What the engine must know of a device: how to recognise its arrays, how to move one there and back, and the functions it has of its own."""

    name: str
    from_numpy: Callable
    to_numpy: Callable
    as_strided: Callable
    add_at: Callable
    matmul: Callable
    add_into: Callable


_cpu = _Device("cpu", np.asarray, np.asarray, np.lib.stride_tricks.as_strided, np.add.at, np.matmul, cpu.add_into)
_by_name: dict[str, _Device] = {"cpu": _cpu}
_by_type: dict[type, _Device] = {np.ndarray: _cpu}
_numbers: dict[tuple, Array] = {}  # see `number`


def add_device(
    name: str,
    array_type: type,
    from_numpy: Callable,
    to_numpy: Callable,
    as_strided: Callable,
    add_at: Callable = np.add.at,
    matmul: Callable = np.matmul,
    add_into: Callable = np.add,
) -> None:
    """Make the arrays of `array_type` known under the device `name`; the functions convert and view them, add at places given more than once,
    multiply matrices, and write the sum of two large arrays to a third (see `add`).
    """
    _by_name[name] = _by_type[array_type] = _Device(name, from_numpy, to_numpy, as_strided, add_at, matmul, add_into)
    _numbers.clear()


def remove_device(name: str) -> None:
    """Forget the device `name`. Its arrays that are still alive are recognised, and can be moved to the CPU."""
    _by_name.pop(name, None)
    _numbers.clear()


def _find(array: Array) -> _Device:
    device = _by_type.get(type(array))
    if device is None:
        kind = type(array)
        if kind.__module__ == "minigrad.tensor":  # `p.data = p.data.clip(...)` is for arrays, and found out at the next use
            raise TypeError(
                "there is a Tensor where an array is needed; if a tensor's .data was set to it, write t.copy_(value) under "
                "`with minigrad.no_grad():` instead of t.data = value"
            )
        raise TypeError(f"{kind.__name__} is not an array of a known device ({', '.join(_by_name)})")
    return device


def is_array(value: object) -> bool:
    """Whether `value` is an array of a known device."""
    return type(value) in _by_type


def check_dtype(dtype: np.dtype, who: str) -> None:
    """Raise TypeError, in the name of `who`, for anything but booleans, integers, float32 and float64.

    NumPy has half precision too, but would add up 100,000 numbers in it, and most formulas of this library overflow there.
    """
    if dtype.kind not in "biu" and (dtype.kind != "f" or dtype.itemsize not in (4, 8)):
        raise TypeError(f"{who}: dtype {dtype} is not supported; give booleans, integers, float32 or float64")


def native(dtype: Any) -> np.dtype:
    """`numpy.dtype(dtype)` in the machine's byte order."""
    dtype = np.dtype(dtype)
    return dtype if dtype.isnative else dtype.newbyteorder("=")


def from_bfloat16(halves: np.ndarray) -> np.ndarray:
    """The numbers of bfloat16, which NumPy does not have, given as unsigned integers of 16 bits, as float32: each is the first half of one."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def host_array(value: Any, who: str) -> np.ndarray:
    """`numpy.asarray(value)`. Raises TypeError, in the name of `who`, for a masked array, whose mask would be lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{who}: a masked array's mask would be lost; give its .filled(value)")
    return np.asarray(value)


def device_of(array: Array) -> str:
    """The device an array lives on, such as `"cpu"`. Raises TypeError for anything that is not a backend's array."""
    return _find(array).name


def to_device(array: Array, name: str) -> Array:
    """The array on device `name`: itself if it is there already, else a copy.

    Raises ValueError for a device that does not exist, RuntimeError for "cuda" where it cannot be used: the message says what is missing.
    """
    source, target = _find(array), _by_name.get(name)
    if target is None and name == "cuda":
        from minigrad.backend import cuda  # late: importing CuPy takes a second, and few need it

        cuda.connect()
        target = _by_name["cuda"]
    if target is None:
        hint = "; give a dtype as dtype=..." if _is_dtype(name) else ""
        raise ValueError(f"there is no device {name!r} here; there is {', '.join(map(repr, _by_name))}{hint}")
    return array if source is target else target.from_numpy(source.to_numpy(array))


def _is_dtype(name: Any) -> bool:
    """Whether a dtype was given in the place of a device, as PyTorch's `to` takes it."""
    try:
        np.dtype(name)
    except (TypeError, ValueError, SyntaxError):  # what NumPy makes of "gpu", "3,(" and ","
        return False
    return True


def number(value: Any, dtype: Any, device: str) -> Array:
    """A number as a 0-d array on a device, not to be written to.

    For other devices than the CPU those that were made are kept: a copy to a GPU takes longer than most operations, and in a captured graph it
    would be made again at every launch.
    """
    if device == "cpu":
        return np.asarray(value, dtype)
    key = device, np.dtype(dtype), type(value), value or str(value)  # -0.0 == 0.0
    if key not in _numbers:
        if len(_numbers) > 1000:
            _numbers.clear()
        _numbers[key] = to_device(np.asarray(value, dtype), device)
    return _numbers[key]


@contextmanager
def numbers_of_capture() -> Iterator[list[Array]]:
    """A block in which a graph is captured. The list holds, after the block, all arrays of `number` that the graph may use: it knows their addresses
    only, and must keep them as long as itself. Those that were made in the block are written by the graph alone, and not kept here.
    """
    older = dict(_numbers)
    found = list(older.values())
    try:
        yield found
    finally:
        made = {key: array for key, array in list(_numbers.items()) if older.get(key) is not array}
        for key in made:
            _numbers.pop(key, None)
        found += made.values()


def is_view(array: Array, of: Array) -> bool:
    """Whether `array`, which was made from `of`, looks at the same memory."""
    if array is of:
        return True
    base = array.base
    while base is not None:  # NumPy's views point at the array that owns the memory, strided ones (windows) by way of others
        if base is of or base is of.base:
            return True
        base = getattr(base, "base", None)
    if type(array) is np.ndarray or type(array) is not type(of):
        return False
    memory = getattr(array.data, "mem", None)  # the views of CuPy's as_strided name no base; arrays of other libraries have no such attribute
    return memory is not None and memory is of.data.mem


def is_same(x: Any, y: Array) -> bool:
    """Whether x (which may be None) is the same elements as y: of one shape and dtype, at the same places in memory."""
    if type(x) is not type(y) or x.shape != y.shape or x.strides != y.strides or x.dtype != y.dtype:
        return False
    if type(x) is np.ndarray:
        return x.__array_interface__["data"][0] == y.__array_interface__["data"][0]
    address = getattr(x.data, "ptr", None)  # CuPy's; arrays of other libraries have no such attribute
    return address is not None and address == y.data.ptr


LARGE = 1 << 19  # elements: enough for two threads of a CPU, and for 128 blocks on a GPU, which has about as many multiprocessors


def add(x: Array, y: Any, out: Array | None = None) -> Array:
    """x + y, written to `out` if given, an array of the sum's shape and dtype; large arrays by the device's own `add_into`.

    The residual sums of a network are large, and so is the sum of the two gradients that arrive at each.
    """
    if (
        x.size < LARGE or type(x) is not type(y) or x.shape != y.shape or x.dtype != y.dtype
        or not (x.flags.c_contiguous and y.flags.c_contiguous and (out is None or out.flags.c_contiguous))
    ):  # fmt: skip
        return x + y if out is None else np.add(x, y, out=out)
    total = np.empty_like(x) if out is None else out
    _find(x).add_into(x, y, total)
    return total


def add_at(array: Array, index: Any, values: Array) -> None:
    """`array[index] += values`, where the index may pick an element more than once: it then receives each value."""
    _find(array).add_at(array, index, values)


def matmul(x: Array, y: Array) -> Array:
    """The product of matrices, or of stacks of matrices whose leading axes are broadcast: `numpy.matmul` without vectors."""
    return np.matmul(x, y) if type(x) is np.ndarray else _find(x).matmul(x, y)


def as_strided(array: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """A view of `array`'s memory with this shape and these strides in bytes."""
    return _find(array).as_strided(array, shape, strides)
