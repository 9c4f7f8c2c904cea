"""`ndarray`, the emulator's stand-in for `cupy.ndarray`: an array in the emulated device's memory.

It wraps a NumPy array without being one, so that NumPy never accepts it by mistake. As in CuPy, operations refuse NumPy arrays and lists as operands
and take Python and NumPy numbers; sums and elements are 0-d arrays on the device; results are in C order; `get()`, `float()`, `bool()` wait for the
device. Where CuPy's result is undefined this raises: reading what was never written, an index given twice in `x[index] = y`, a cast of a number that
does not fit. Attributes that are not here (`mT`, `flags.writeable`) are missing in some supported version of CuPy too. Read next: `standin.py`.

Source: https://docs.cupy.dev/en/stable/user_guide/difference.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from minigrad.backend.emulator import state
from minigrad.backend.emulator.faults import UninitialisedRead
from minigrad.backend.emulator.memory import Block

__all__ = ["VIEWS", "compute", "empty", "empty_like", "made", "ndarray", "no_upload", "operand", "upload"]

VIEWS = frozenset("broadcast_to expand_dims flip moveaxis ravel reshape squeeze swapaxes transpose".split())
"""NumPy's functions whose results share memory with their argument, where that is possible."""

_NUMBERS = (bool, int, float, np.generic)


class _Flags:
    def __init__(self, flags: Any, owndata: bool):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, owndata


class _Pointer:
    """`x.data` in CuPy. ptr: the address; mem: the memory it is in."""

    def __init__(self, address: int, block: Block):
        self.ptr, self.mem = address, block

    def copy_to_host_async(self, mem: int, size: int) -> None:
        """Copy `size` bytes to the host's memory at `mem`, which must be pinned; they are to be looked at after an event only. Nothing waits."""
        if state.current().capturing is not None:
            raise RuntimeError("copy_to_host_async: bytes are copied to the host while a graph is captured")
        room = self.mem.address + self.mem.nbytes - self.ptr
        if size > room:
            raise ValueError(f"copy_to_host_async: {size} bytes are copied from a place with {room} bytes to its end: copy no more than those")
        _check_written(np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(self.ptr)))
        ctypes.memmove(mem, self.ptr, size)


class ndarray(NDArrayOperatorsMixin):
    """An array on the emulated device. base: the array whose memory this one looks at, or None."""

    __slots__ = ("__weakref__", "_block", "_values", "base")

    _block: Block
    _values: np.ndarray

    # --- what it is

    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    nbytes = property(lambda self: self._values.nbytes)
    itemsize = property(lambda self: self._values.itemsize)
    strides = property(lambda self: self._values.strides)
    flags = property(lambda self: _Flags(self._values.flags, self.base is None))
    data = property(lambda self: _Pointer(self._values.__array_interface__["data"][0], self._block))
    T = property(lambda self: self.transpose())

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self.get())

    # --- to the host: these wait for the device

    def get(self, *, out: np.ndarray | None = None, blocking: bool = True) -> np.ndarray:
        """A copy in the host's memory, a NumPy array: `out`, if it is given. With blocking=False it counts as waiting all the same, as for CuPy."""
        state.synchronise("get()")
        if out is None:
            return _readable(self).copy()
        out[...] = _readable(self)
        return out

    def item(self) -> Any:
        """The only element as a Python number."""
        return self.get().item()

    def tolist(self) -> Any:
        """The elements as Python numbers, in lists."""
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def set(self, array: np.ndarray) -> None:
        """Copy a NumPy array of the same shape and dtype into this array."""
        if type(array) is not np.ndarray or array.shape != self.shape or array.dtype != self.dtype:
            raise TypeError(f"set: a NumPy array of shape {self.shape} and dtype {self.dtype} is needed")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        values = array.copy()
        state.submit("set()", lambda: _write(self._values, values), [self._block])

    # --- through NumPy's protocols: np.exp(x), np.concatenate([x, y]), x + y

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple = (), **options: Any) -> Any:
        from minigrad.backend.emulator import standin

        ours = getattr(standin, ufunc.__name__, None)
        if ours is None or method not in ("__call__", "at", "reduce") or not all(isinstance(x, _OPERANDS) for x in inputs):
            return NotImplemented  # also np.add.at(x, (i, j), y); add.at of the module itself takes the tuple, as CuPy's does
        if out:
            options["out"] = out[0]
            if type(out[0]) is np.ndarray:
                return NotImplemented
        return (ours if method == "__call__" else getattr(ours, method))(*inputs, **options)

    def __array_function__(self, function: Any, types: Any, args: tuple, options: dict) -> Any:
        from minigrad.backend.emulator import standin

        ours = getattr(standin, function.__name__, None)
        if ours is None or not all(t is ndarray or t is np.ndarray for t in types):
            return NotImplemented
        return ours(*args, **options)

    # --- new arrays, and views

    def astype(self, dtype: Any, order: str = "K", copy: bool = True) -> ndarray:
        """A copy in another dtype; keeps the order of the axes in memory, unlike what is computed. Without `copy` the array itself, if it is that."""
        if np.dtype(dtype) == self.dtype and not copy and (order == "K" or self.flags.c_contiguous):
            return self
        return made("astype", lambda: cast(_readable(self), dtype), [self], order)

    def copy(self, order: str = "C") -> ndarray:
        """A copy, in C order."""
        return made("copy", lambda: _readable(self), [self], order)

    def view(self, dtype: Any = None) -> ndarray:
        """Another array on the same memory, which may read its bytes as another dtype."""
        return _view(self, self._values.view() if dtype is None else self._values.view(dtype))

    def fill(self, value: Any) -> None:
        """Set all elements to a number."""
        self[...] = value

    def reshape(self, *shape: Any) -> ndarray:
        """The same elements in another shape: a view where that is possible."""
        return compute(np.reshape, self, shape[0] if len(shape) == 1 else shape, view=True)

    def transpose(self, *axes: Any) -> ndarray:
        """A view with the axes in another order."""
        return compute(np.transpose, self, axes[0] if len(axes) == 1 else axes or None, view=True)

    def __getitem__(self, index: Any) -> ndarray:
        index, used = _plain_index(index)
        if _is_masked(index):
            state.synchronise("x[mask]")  # how many elements there are is known on the device only
        for part in used:
            _readable(part)
        if not any(part is Ellipsis for part in index):
            index = (*index, ...)  # with it, NumPy gives an element as a 0-d view, as CuPy does
        return compute(lambda values: values[index], self, view=True)

    def __setitem__(self, index: Any, value: Any) -> None:
        index, used = _plain_index(index)
        if isinstance(value, np.ndarray):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        if _is_masked(index):
            state.synchronise("x[mask] = y")
        source = operand(value)
        used += [value] if isinstance(value, ndarray) else []
        values, sources = self._values, [x._values for x in used]

        def action() -> None:
            for x in sources:
                _check_written(x)
            _check_no_duplicates(values, index)
            values[index] = cast(source, values.dtype)
            state.memory().written(values, index)

        state.submit("x[index] = y", action, [self._block, *(x._block for x in used)])

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[k] for k in range(len(self)))


_OPERANDS = (ndarray, np.ndarray, *_NUMBERS)  # NumPy arrays are refused later, with a better message


def _method(name: str) -> Any:
    function = getattr(np, name)
    view = name in VIEWS

    def method(self: ndarray, *args: Any, **options: Any) -> Any:
        return compute(function, self, *args, view=view, **options)

    method.__name__, method.__doc__ = name, f"As `numpy.ndarray.{name}`, on the device."
    return method


for _name in "sum mean max min prod argmax argmin any all var clip cumsum squeeze swapaxes ravel repeat take".split():
    setattr(ndarray, _name, _method(_name))


# --- making arrays


def _wrap(block: Block, values: np.ndarray, base: ndarray | None) -> ndarray:
    array = ndarray.__new__(ndarray)
    array._block, array._values, array.base = block, values, base
    return array


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """An array that nobody has written yet: its floats are NaN, and reading it is an error in the check build."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise TypeError(f"Unsupported dtype {dtype}")
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    block = state.allocate(nbytes)
    buffer = (ctypes.c_ubyte * max(nbytes, 1)).from_address(block.address)  # keeps no Block alive: like an address in a CUDA graph
    return _wrap(block, np.ndarray(shape, dtype, buffer, order="F" if order == "F" else "C"), None)


def empty_like(values: np.ndarray, dtype: Any = None, shape: Any = None) -> ndarray:
    """An array that nobody has written yet, in the order that `values` has in memory, as far as `shape` has as many axes."""
    like = np.empty_like(values, dtype, shape=shape)
    axes = sorted(range(like.ndim), key=lambda axis: -like.strides[axis])
    array = empty([like.shape[axis] for axis in axes], like.dtype)
    return _wrap(array._block, array._values.transpose(np.argsort(axes)), None)


def no_upload(what: str) -> None:
    """Raise RuntimeError if a graph is being captured, which would copy from the host's memory again at every launch."""
    if state.current().capturing is not None:
        raise RuntimeError(f"{what} copied to the device while a graph is captured: bring it there before")


def upload(values: np.ndarray) -> ndarray:
    """A NumPy array copied to the device, in C order, or in Fortran order if it is in that alone. Not while a graph is captured: but a 0-d array is
    filled by a kernel, as in CuPy, which a graph then does, and nobody before it.
    """
    if values.ndim:
        no_upload("an array is")
    return made("asarray", lambda: values, [], "F" if values.flags.fnc else "C")


def made(what: str, make: Callable[[], np.ndarray], sources: list[ndarray], order: str = "C") -> ndarray:
    """A new array with what `make` computes from the sources; while a graph is captured, whenever it is launched.

    order: "C", "F", or "K": the axes lie in memory in the order in which they do in what `make` gives.
    """
    with state.captured_values_unknown():
        values = make()  # while a graph is captured for the shape alone: what the arrays will hold is not known yet
    array = empty_like(values) if order == "K" else empty(values.shape, values.dtype, order)
    if state.current().capturing is None:
        _write(array._values, values)
    else:
        target = array._values  # not the array, which the graph does not keep alive
        state.submit(what, lambda: _write(target, make()), [array._block, *(x._block for x in sources)])
    return array


def _view(of: ndarray, values: np.ndarray) -> ndarray:
    return _wrap(of._block, values, of if of.base is None else of.base)


def _write(target: np.ndarray, values: Any) -> None:
    target[...] = values
    state.memory().written(target)


# --- operands


def operand(x: Any) -> Any:
    """What NumPy is given for an operand. Raises TypeError for NumPy arrays and anything else that CuPy does not take."""
    if isinstance(x, ndarray):
        return x._values
    if isinstance(x, _NUMBERS):
        return x
    raise TypeError(f"Unsupported type {type(x)}: operands are arrays of this device, and numbers; bring others here with asarray()")


def _unwrap(x: Any, found: list[ndarray]) -> Any:
    """`x` with the device's arrays in it, which are added to `found`, as NumPy arrays. Shapes, axes and numbers pass."""
    if isinstance(x, ndarray):
        found.append(x)
        return x._values
    if isinstance(x, np.ndarray):
        return operand(x)
    if isinstance(x, list | tuple):
        return type(x)(_unwrap(part, found) for part in x)
    return x


def _check_written(values: np.ndarray) -> None:
    """Raise UninitialisedRead if an element of a view of the device's memory has never been written."""
    if state.current().unknown:
        return
    unwritten = state.memory().unwritten(values) if values.size else None
    if unwritten is not None and unwritten.any():
        first = tuple(int(k) for k in np.unravel_index(unwritten.argmax(), values.shape))
        raise UninitialisedRead(
            f"element {first} of an array of shape {values.shape} ({values.dtype}) is read, but nobody has written it "
            f"({unwritten.sum()} such elements)"
        )


def _readable(x: ndarray) -> np.ndarray:
    _check_written(x._values)
    return x._values


def compute(
    function: Any, *args: Any, out: ndarray | None = None, view: bool = False, order: str = "C", casting: Any = "same_kind", **options: Any
) -> Any:
    """`function(*args, **options)` of NumPy on arrays of the device: a new array, or `out`; with `view`, one on the same memory if NumPy's is.

    order: of a new array, see `made`. casting: how the result may differ in dtype from `out`.
    """
    found: list[ndarray] = []
    plain, options = [_unwrap(x, found) for x in args], {name: _unwrap(x, found) for name, x in options.items()}
    sources = [x._values for x in found]
    what = getattr(function, "__name__", "an operation")

    def result() -> Any:
        for values in sources:
            _check_written(values)
        with np.errstate(all="ignore"):  # a GPU does not warn
            return function(*plain, **options)

    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError(f"{what}: out must be an array of this device, it is {type(out)}")
        target = out._values

        def write() -> None:
            values = result()
            if not np.can_cast(values.dtype, target.dtype, casting):
                raise TypeError(f"{what}: cannot cast the result from {values.dtype} to {target.dtype} with casting rule {casting!r}")
            _write(target, values)

        state.submit(what, write, [out._block, *(x._block for x in found)])
        return out
    if view:
        values = function(*plain, **options)
        if isinstance(values, np.ndarray) and (not values.size or np.may_share_memory(values, found[0]._values)):
            return _view(found[0], values)
    return made(what, lambda: np.asarray(result()), found, order)


def cast(values: Any, dtype: Any) -> Any:
    """`values.astype(dtype)`. Raises ValueError where CuPy's result depends on the device: numbers that an integer type cannot hold."""
    dtype = np.dtype(dtype)
    if not isinstance(values, np.ndarray):
        return values
    if values.dtype.kind == "f" and dtype.kind in "iu" and values.size:
        limits = np.iinfo(dtype)
        if not (np.isfinite(values).all() and values.min() > limits.min - 1.0 and values.max() < limits.max + 1.0):
            raise ValueError(f"a {values.dtype} number is cast to {dtype}, which cannot hold it: the result differs between devices")
    return values.astype(dtype)


def _plain_index(index: Any) -> tuple[tuple, list[ndarray]]:
    """The index with all arrays as NumPy arrays, and those of the device among them. CuPy takes lists and NumPy arrays here too."""
    found: list[ndarray] = []
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, list | np.ndarray) for part in parts):
        no_upload("an index is")
    return tuple([np.asarray(part) if isinstance(part, list | np.ndarray) else _unwrap(part, found) for part in parts]), found


def _is_masked(index: tuple) -> bool:
    return any(isinstance(part, np.ndarray) and part.dtype == bool for part in index)


def _check_no_duplicates(values: np.ndarray, index: tuple) -> None:
    """Raise ValueError if an assignment writes an element twice: on a GPU either value may stay."""
    if any(isinstance(part, np.ndarray) and part.dtype != bool for part in index):
        places = np.arange(values.size).reshape(values.shape)[index]
        if len(np.unique(places)) != places.size:
            raise ValueError("x[index] = y: the index names an element more than once; which value stays is undefined on a GPU")
