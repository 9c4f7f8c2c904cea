"""Tensor: an array and how it was made.

The methods only forward to the operations in `minigrad/ops`; the derivatives live there, and the walk that uses them in `walk.py`. Read before:
`op.py`; next: `node.py`.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, final

import numpy as np

from minigrad import backend
from minigrad.backend import Array
from minigrad.modes import MODE, is_grad_enabled
from minigrad.pytorch_names import INSTEAD, TensorModule, advising

__all__ = ["Tensor", "wrap"]


@final
@advising(INSTEAD)
class Tensor:
    """An n-dimensional array that remembers how it was computed, so that `backward()` can find its derivatives.

    Args:
        data: anything NumPy makes an array of. It is copied: writing to the original later changes nothing here. Arrays keep their dtype, one
            of booleans, integers, float32 and float64; Python numbers and lists of them become float32 (integers in Python lists too, unless
            they come as an array). In a list with Tensors or NumPy's numbers, these decide.
        requires_grad: whether gradients are collected in `.grad`; only floating-point tensors can.

    Raises:
        TypeError: no numbers, a dtype that is not there, a list of Tensors that require grad, which would lose their gradients, or a requires_grad
            that is neither True nor False.

    Attributes:
        data: the array itself. Treat it as read-only; `copy_` and `t[index] = value` write, and tell the version counter. Nobody looks at what it is
            set to until it is used: a Tensor is refused there.
        grad: the gradient collected by `backward()`, a Tensor of this shape and dtype, or None.
        node: the `node.Node` this is an output of, None for a leaf; `output` says which output.
        version: one-element list, counts the writes; shared with every view of the same memory.

    Source: https://docs.pytorch.org/docs/stable/tensors.html
    """

    __slots__ = ("__weakref__", "_requires_grad", "data", "grad", "node", "output", "version")

    # numpy_array * tensor asks Tensor.__rmul__ instead of looping over the elements. A method could say more of np.exp(tensor) than that it "does not
    # support ufuncs", but then no operator would be left to Tensor's own: a masked array, which looks for None, would compute without gradients.
    __array_ufunc__ = None

    data: Array
    grad: Tensor | None
    node: Any
    output: int
    version: list[int]
    _requires_grad: bool

    def __init__(self, data: Any, requires_grad: bool = False):
        self.data, self.grad, self.node, self.output, self.version = _new_array(data), None, None, 0, [0]
        self._requires_grad = False
        if requires_grad is not False:
            self.requires_grad_(requires_grad)

    def __init_subclass__(cls) -> None:
        raise TypeError(f"class {cls.__name__}: operations look for Tensor itself, which has no subclasses; hold a Tensor in an attribute instead")

    # --- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def device(self) -> str:
        return backend.device_of(self.data)

    @property
    def is_leaf(self) -> bool:
        return self.node is None

    @property
    def requires_grad(self) -> bool:
        """Whether gradients are wanted here. The engine reads `_requires_grad`, for speed."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:
        values = np.array2string(backend.to_device(self.data, "cpu"), separator=", ", threshold=100, prefix="Tensor(")
        if self.size == 0 and self.ndim > 1:
            values += f", shape={self.shape}"
        dtype = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        made = f", made_by={self.node.op.name}" if self.node is not None else ", requires_grad=True" if self.requires_grad else ""
        device = "" if self.device == "cpu" else f", device={self.device}"
        return f"Tensor({values}{dtype}{device}{made})"

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor: it has no first axis")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("a 0-d tensor has no first axis to iterate over")
        return iter(ops.unbind(self, 0))

    def __bool__(self) -> bool:
        if self.size != 1:
            advice = "; reduce it by .max() or .min()" if self.size else ""
            raise ValueError(f"bool(): the tensor has {self.size} elements (shape {self.shape}), one is needed{advice}")
        self._note_read()
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.size != 1 or self.dtype.kind not in "iu":
            raise TypeError(f"index: a tensor with one integer is needed, this one has shape {self.shape} and is {self.dtype}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def _refuse_history(self, what: str) -> None:
        backend.device_of(self.data)  # raises if `.data` was set to something that is no array
        if self.node is not None:
            made = f"{what}: this tensor was made by {self.node.op.name}"
            raise RuntimeError(f"{made}; only leaf tensors can be copied, use .detach() first (for another library, which copies: .numpy())")

    def __deepcopy__(self, memo: dict) -> Tensor:
        """A copy with its `.grad`. Of tensors that share one array, copied together, the copies share one, too."""
        self._refuse_history("deepcopy")
        if id(self.data) not in memo:
            memo[id(self.data)] = self.data.copy()
        copy = wrap(memo[id(self.data)], version=deepcopy(self.version, memo))
        copy._requires_grad = self._requires_grad
        copy.grad = None if self.grad is None else deepcopy(self.grad.detach(), memo)
        return copy

    def __getstate__(self) -> tuple:
        self._refuse_history("copy, pickle")
        return self.data, None if self.grad is None else self.grad.detach(), self._requires_grad, self.version

    def __setstate__(self, state: tuple) -> None:
        self.node, self.output = None, 0
        self.data, self.grad, self._requires_grad, self.version = state

    # --- out of the graph

    def numpy(self) -> np.ndarray:
        """A read-only view of the values, also of a tensor that requires grad. Raises TypeError for a tensor that is not on the CPU."""
        if self.device != "cpu":
            raise TypeError(f"numpy(): the tensor is on {self.device}; move it with .to(device='cpu') first")
        self._note_read()
        view = self.data.view()
        view.flags.writeable = False
        return view

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.requires_grad and is_grad_enabled():  # NumPy asks, and what it computes with the array would have no gradient
            raise TypeError(
                f"a tensor of shape {self.shape} that requires grad was given to a function of arrays, which passes no gradients on; take minigrad's "
                "function (F.stack, F.concatenate, ...), or give .numpy()"
            )
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    # `torch.from_dlpack(x)`, `np.from_dlpack(x)`: the same memory. What another library writes there, no version counter notices; so the array is
    # handed on as one to be read, as `numpy()` is, where the protocol can say so (NumPy then refuses to write, PyTorch does not look).
    def __dlpack__(self, *, max_version: tuple[int, int] | None = None, **options: Any) -> Any:
        if self.requires_grad and is_grad_enabled():
            raise BufferError(
                f"a tensor of shape {self.shape} that requires grad was given to another library, which passes no gradients on; give .detach()"
            )
        on_cpu = self.device == "cpu"  # CuPy's arrays are always writable
        if self.size and any(step < 0 for step in self.data.strides):  # PyTorch would end the process
            raise BufferError(f"a tensor of shape {self.shape} that runs backwards in memory was given to another library; give .numpy().copy()")
        self._note_read()
        if max_version is None or max_version[0] < 1:
            return self.data.__dlpack__(**options)
        return (self.numpy() if on_cpu else self.data).__dlpack__(max_version=max_version, **options)

    def __dlpack_device__(self) -> tuple[int, int]:
        backend.device_of(self.data)
        return self.data.__dlpack_device__()

    def item(self) -> float | int | bool:
        """The value of a tensor with one element, as a Python number."""
        if self.size != 1:
            raise ValueError(f"item(): the tensor has {self.size} elements (shape {self.shape}), one is needed")
        self._note_read()
        return self.data.item()

    def _note_read(self) -> None:
        """Tell a checkpoint that its function has looked at the numbers: what it does may depend on them."""
        reads = MODE.get().reads
        if reads is not None:
            reads.append((self.version, self.version[0]))

    def detach(self) -> Tensor:
        """The same memory without history: gradients stop here."""
        return wrap(self.data, version=self.version)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Start (or stop) collecting gradients in this leaf; returns the tensor itself."""
        if not isinstance(requires_grad, bool | np.bool_):  # PyTorch's Tensor(2, 3) is of that shape
            raise TypeError(
                f"requires_grad: it must be True or False, and is {reprlib.repr(requires_grad)}; a tensor of a shape is made of an array, as in "
                "Tensor(np.zeros((2, 3), np.float32))"
            )
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"requires_grad: only floating-point tensors have gradients, this one is {self.dtype}")
        if not requires_grad and self.node is not None:
            raise RuntimeError(f"requires_grad_(False): this tensor was made by {self.node.op.name}; use .detach()")
        self._requires_grad = bool(requires_grad)
        return self

    def backward(self, gradient: Tensor | Array | None = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Add the derivative of this tensor to `.grad` of every leaf it was computed from: see `autograd.backward`."""
        autograd.backward(self, gradient, retain_graph=retain_graph, create_graph=create_graph)

    # --- writing in place (the only two ways, beside the optimisers and load_state_dict)

    def _writable(self, what: str, value: Any) -> None:
        backend.device_of(self.data)  # raises if `.data` was set to something that is no array
        if self.requires_grad and is_grad_enabled():
            raise RuntimeError(f"{what}: this tensor requires grad; write under `with minigrad.no_grad():`, or make a new tensor instead")
        if isinstance(value, Tensor) and value.requires_grad and is_grad_enabled():
            raise RuntimeError(
                f"{what}: the value requires grad, and nothing written in place passes gradients on; put tensors together by "
                "F.where, F.stack or F.concatenate, or give value.detach()"
            )
        if not getattr(self.data.flags, "writeable", True):  # CuPy's arrays are always writable
            raise RuntimeError(f"{what}: this tensor is a read-only view (of broadcast or overlapping memory); make a copy first")

    def _bump(self) -> None:
        """Say that the memory is being written: a graph that saved it will refuse to use it. Called first, since the writing may be interrupted."""
        self.version[0] += 1

    def copy_(self, value: Any) -> Tensor:
        """Write `value` (broadcast, cast to this dtype) into this tensor; returns the tensor itself."""
        self._writable("copy_", value)
        array = ops.as_array("copy_", value, self)
        self._bump()
        try:
            np.copyto(self.data, array, casting="unsafe")
        except ValueError:
            self.version[0] -= 1
            raise ValueError(f"copy_: a value of shape {array.shape} cannot be broadcast to the tensor's {self.shape}") from None
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        self._writable("t[index] = value", value)
        array = ops.as_array("t[index] = value", value, self)
        index = ops.plain_index(index)
        self._bump()
        try:
            self.data[index] = array
        except (ValueError, IndexError) as error:
            self.version[0] -= 1
            raise type(error)(f"t[index] = value: {error} (the tensor has shape {self.shape}, the value {array.shape})") from None

    # --- operations

    def to(self, device: str | None = None, dtype: Any = None) -> Tensor:
        """The tensor on another device and/or with another dtype; itself where nothing changes. Gradients pass."""
        x = self if dtype is None else ops.cast(self, dtype)
        return x if device is None or device == x.device else ops.to_device(x, device)

    def astype(self, dtype: Any) -> Tensor:
        return ops.cast(self, dtype)

    def __add__(self, other: Any) -> Tensor:
        return ops.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return ops.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return ops.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return ops.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return ops.mul(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return ops.mul(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return ops.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return ops.div(other, self)

    def __pow__(self, exponent: Any) -> Tensor:
        return ops.pow(self, exponent)

    def __rpow__(self, base: Any) -> Tensor:
        return ops.pow(base, self)

    def __matmul__(self, other: Any) -> Tensor:
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return ops.matmul(other, self)

    # `x += y` makes a new tensor, as for every immutable thing. Only where someone means to update a parameter that would do nothing, silently.
    def __iadd__(self, other: Any) -> Tensor:
        self._refuse_update("+=")
        return ops.add(self, other)

    def __isub__(self, other: Any) -> Tensor:
        self._refuse_update("-=")
        return ops.sub(self, other)

    def __imul__(self, other: Any) -> Tensor:
        self._refuse_update("*=")
        return ops.mul(self, other)

    def __itruediv__(self, other: Any) -> Tensor:
        self._refuse_update("/=")
        return ops.div(self, other)

    def __ipow__(self, exponent: Any) -> Tensor:
        self._refuse_update("**=")
        return ops.pow(self, exponent)

    def __imatmul__(self, other: Any) -> Tensor:
        self._refuse_update("@=")
        return ops.matmul(self, other)

    def _refuse_update(self, operator: str) -> None:
        if self.requires_grad and self.node is None:
            by = operator[:-1]
            raise RuntimeError(
                f"x {operator} y: x is a leaf that requires grad (a parameter), and would stay as it is, since {operator} makes a new tensor; write "
                f"x = x {by} y if that is meant, or update it under `with minigrad.no_grad():` by x.copy_(x {by} y)"
            )

    def __neg__(self) -> Tensor:
        return ops.neg(self)

    def __abs__(self) -> Tensor:
        return ops.abs(self)

    def __getitem__(self, index: Any) -> Tensor:
        return ops.getitem(self, index)

    # Comparisons are elementwise, give booleans and no gradient; a tensor still hashes by identity, as PyTorch's do.
    __hash__ = object.__hash__

    def __eq__(self, other: Any) -> Any:
        return NotImplemented if _is_no_number(other) else ops.equal(self, other)  # then Python says False

    def __ne__(self, other: Any) -> Any:
        return NotImplemented if _is_no_number(other) else ops.not_equal(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return ops.greater(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return ops.greater_equal(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return ops.less(self, other)

    def __le__(self, other: Any) -> Tensor:
        return ops.less_equal(self, other)

    # Of booleans alone: of integers these would be operations on bits.
    def __invert__(self) -> Tensor:
        return _of_booleans("~x", ops.logical_not, self)

    def __and__(self, other: Any) -> Tensor:
        return _of_booleans("x & y", ops.logical_and, self, other)

    def __rand__(self, other: Any) -> Tensor:
        return _of_booleans("x & y", ops.logical_and, other, self)

    def __or__(self, other: Any) -> Tensor:
        return _of_booleans("x | y", ops.logical_or, self, other)

    def __ror__(self, other: Any) -> Tensor:
        return _of_booleans("x | y", ops.logical_or, other, self)

    def __xor__(self, other: Any) -> Tensor:
        return _of_booleans("x ^ y", ops.logical_xor, self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return _of_booleans("x ^ y", ops.logical_xor, other, self)

    def exp(self) -> Tensor:
        return ops.exp(self)

    def expm1(self) -> Tensor:
        return ops.expm1(self)

    def log(self) -> Tensor:
        return ops.log(self)

    def log1p(self) -> Tensor:
        return ops.log1p(self)

    def sqrt(self) -> Tensor:
        return ops.sqrt(self)

    def tanh(self) -> Tensor:
        return ops.tanh(self)

    def sigmoid(self) -> Tensor:
        return ops.sigmoid(self)

    def erf(self) -> Tensor:
        return ops.erf(self)

    def sin(self) -> Tensor:
        return ops.sin(self)

    def cos(self) -> Tensor:
        return ops.cos(self)

    def relu(self) -> Tensor:
        return ops.relu(self)

    def abs(self) -> Tensor:
        return ops.abs(self)

    def clip(self, low: Any = None, high: Any = None) -> Tensor:
        return ops.clip(self, low, high)

    def sum(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        return ops.mean(self, axis, keepdims)

    def var(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        return ops.var(self, axis, keepdims)

    def max(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        return ops.max(self, axis, keepdims)

    def min(self, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        return ops.min(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Tensor:
        return ops.argmax(self, axis)

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        return ops.reshape(self, _one_tuple(shape))

    def flatten(self, start: int = 0) -> Tensor:
        """Merge the axes from `start` on into one."""
        return ops.flatten(self, start)

    def transpose(self, *axes: int | Sequence[int] | None) -> Tensor:
        """Reorder the axes as NumPy's `transpose` does; without arguments or by None, reverse them."""
        return ops.transpose(self, None if axes == (None,) else _one_tuple(axes) or None)

    @property
    def T(self) -> Tensor:
        return ops.transpose(self)

    def swapaxes(self, first: int, second: int) -> Tensor:
        return ops.swapaxes(self, first, second)

    def broadcast_to(self, shape: Sequence[int]) -> Tensor:
        return ops.broadcast_to(self, shape)

    def unbind(self, axis: int = 0) -> tuple[Tensor, ...]:
        return ops.unbind(self, axis)


_new = Tensor.__new__


def wrap(array: Array, node: Any = None, output: int = 0, version: list[int] | None = None) -> Tensor:
    """A Tensor around an array, without copying: how the engine itself makes tensors."""
    tensor = _new(Tensor)
    tensor.data = array
    tensor.grad = None
    tensor.node = node
    tensor.output = output
    tensor._requires_grad = node is not None
    tensor.version = [0] if version is None else version
    return tensor


# --- what arguments stand for


def _new_array(data: Any) -> Array:
    """The array of a Tensor that is made of `data`."""
    if isinstance(data, Tensor):
        data = data.data
    if backend.is_array(data):
        array = data.copy()
    elif hasattr(data, "__array__"):  # NumPy's scalars, memory maps, PyTorch's tensors
        array = np.array(backend.host_array(data, "Tensor"), order="C")
    else:
        array = _array_of_numbers(data)
    backend.check_dtype(array.dtype, "Tensor")
    return array.astype(backend.native(array.dtype), copy=False)


def _array_of_numbers(data: Any) -> np.ndarray:
    """The same of Python's numbers, or of lists, which may hold other numbers, arrays and Tensors, too."""
    try:
        array = np.array(data)
    except TypeError:  # perhaps of Tensors that require grad, which say so in general
        ops.refuse_lists_with_gradients("Tensor", data)
        raise
    if array.dtype == bool:
        return array
    if array.dtype.kind not in "iuf":
        raise TypeError(f"Tensor: cannot make numbers of {type(data).__name__} data (NumPy reads it as {array.dtype})")
    dtypes = _dtypes_in(data)
    if not dtypes:
        return array.astype(np.float32)
    if array.dtype.kind == "f":  # NumPy takes Python's fractions for float64, which would promote
        return array.astype(np.result_type(*[dtype for dtype in dtypes if dtype.kind == "f"] or [np.float32]))
    return array


def _dtypes_in(data: Any) -> set[np.dtype]:
    """The dtypes of the Tensors, arrays and NumPy's scalars inside a list; Python's numbers have none."""
    if not isinstance(data, list | tuple) or {int, float, bool}.issuperset(map(type, data)):  # the latter is most of the time
        return set()
    found = {part.dtype for part in data if isinstance(part, Tensor | np.ndarray | np.generic)}
    for part in data:
        if isinstance(part, list | tuple):
            found |= _dtypes_in(part)
    return found


def _is_no_number(value: Any) -> bool:
    """Whether == compares a tensor with something that is no tensor and no number, and so never equal to one."""
    return value is None or isinstance(value, str | bytes | type)


def _of_booleans(symbols: str, operation: Any, *operands: Any) -> Tensor:
    """`operation(*operands)`. Raises TypeError for operands that are not boolean: that of `x > 0 & y > 0`, say, is `0 & y`."""
    for x in operands:
        kind = str(getattr(x, "dtype", type(x).__name__))
        if kind != "bool":
            example = symbols.replace("x", "(x > 0)").replace("y", "(y > 0)")
            raise TypeError(
                f"{symbols}: booleans are needed, there is {kind}; compare first, in brackets, as in {example}, or take F.{operation.name}, for "
                "which every number but 0 is true"
            )
    return operation(*operands)


def _one_tuple(arguments: tuple) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` mean the same."""
    return tuple(arguments[0]) if len(arguments) == 1 and isinstance(arguments[0], tuple | list | range) else arguments


sys.modules[__name__].__class__ = TensorModule

# The one intended cycle: a Tensor's operators need the operations, and the operations make Tensors. By now the class exists.
from minigrad import autograd, ops  # noqa: E402
