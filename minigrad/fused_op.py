"""Fused operations: what `@fused` makes of a definition on Tensors, its kernels on arrays, and what happens when one is called.

Read before: `base_op.py`; next: `node.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np

from minigrad import backend, ops  # ops: the intended cycle, see the end of tensor.py
from minigrad.autograd import differentiate
from minigrad.base_op import Op, Result, frozen, kind_of, new_node
from minigrad.modes import MODE, check_forward
from minigrad.modes import mode as changed_mode
from minigrad.node import Node, changed_in_place, freed
from minigrad.tensor import Tensor, wrap

__all__ = ["Fused", "KernelPair", "fused"]

_ndarray = np.ndarray
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(slots=True, eq=False)
class KernelPair:
    """A forward and a backward on raw arrays for one device.

    forward(*arrays, *values) -> (out, saved); backward(dy, saved, needs) -> one gradient or None per input. `strided`: takes arrays with any
    strides, otherwise they arrive C-contiguous. `fresh`: the gradients it returns share memory with nothing, and may be
    written to. `readers`: per input, and last for the output, the inputs (as bits) whose gradients read its saved array; None: all of them.
    """

    forward: Callable
    backward: Callable | None
    strided: bool
    fresh: bool
    readers: tuple[int, ...] | None = None


class Fused(Op[Result]):
    """An operation with a definition on Tensors and a kernel pair per device. Made by `@fused`.

    outputs: how many the operation returns; differentiable: how many of them, from the first on, carry gradient (None: all). constants: see `Op`.
    """

    kernels: dict[str, KernelPair]

    def __init__(self, function: Callable[..., Result], outputs: int = 1, differentiable: int | None = None, constants: str = ""):
        super().__init__(function, outputs > 1, constants=constants)
        self.with_gradient = ~self.constants  # all others: kernels and definition give them, unless rules are stated
        self.outputs = outputs
        self.differentiable = outputs if differentiable is None else differentiable
        self._check: Callable | None = None
        self._needs: dict[int, tuple[bool, ...]] = {}

    @property
    def definition(self) -> Callable[..., Any]:
        """The function of Tensors that says what the operation is."""
        return self.function

    def check(self, function: _Function) -> _Function:
        """Decorator: `function(*inputs, *values)` runs before every call and raises for what the operation cannot take."""
        self._check = function
        return function

    def check_shapes(self, function: _Function) -> _Function:
        """Decorator: as `check`, for a function that looks at nothing but shapes, dtypes and values: what has passed once is not looked at again.

        That pays where the check takes longer than to look its arguments up, about a microsecond.
        """
        passed: set = set()

        def remembered(*arguments: Any) -> None:
            try:
                key = tuple(
                    [
                        (a.data.shape, a.data.dtype) if type(a) is Tensor else (a, *map(type, a)) if type(a) is tuple else (a, type(a))
                        for a in arguments
                    ]
                )  # with the types, as 1 == 1.0 == True
                known = key in passed
            except TypeError:  # a list among the values
                return function(*arguments)
            if not known:
                function(*arguments)
                if len(passed) > 1000:  # shapes that change with every call
                    passed.clear()
                passed.add(key)

        self._check = remembered
        return function

    def kernel(
        self,
        device: str,
        forward: Callable[..., Any],
        backward: Callable[..., Any] | None,
        strided: bool = False,
        fresh: bool = False,
        reads: dict[str, str] | None = None,
    ) -> None:
        """Use this pair on arrays of `device`. backward may be None for an operation with rules.

        reads: for an input, the names of the inputs (and "out") whose saved arrays its gradient depends on; all of them where nothing is said. An
        array may be written in place while none of the gradients that are asked for reads it.
        """
        if backward is None and not self.rules:
            raise ValueError(f"{self.name}: a kernel without a backward needs derivative rules")
        self.kernels[device] = KernelPair(forward, backward, strided, fresh, None if reads is None else self._readers(reads))

    def _readers(self, reads: dict[str, str]) -> tuple[int, ...]:
        """`reads` turned around: see KernelPair.readers."""
        saved = [*self.names[: self.count], "out"]
        read = [reads[name].split() if name in reads else saved for name in self.names[: self.count]]
        for name in itertools.chain(reads, *read):
            if name not in saved:
                raise ValueError(f"{self.name}: there is no array {name!r} that a kernel could read; there are {', '.join(saved)}")
        return tuple([sum(1 << k for k, names in enumerate(read) if name in names) for name in saved])

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """Call the operation with Tensors, arrays or numbers (None where an input is optional); positions and names as in its signature."""
        inputs, values = self._bind(args, kwargs)
        values = frozen(self, values)
        arrays: list = []
        array_type = dtype = mixed = None
        mask, bit = 0, 1
        for x in inputs:
            if type(x) is Tensor:
                data = x.data
                arrays.append(data)
                if type(data) is not array_type:
                    if array_type is not None:
                        raise self._mixed_devices(y.device for y in inputs if type(y) is Tensor)
                    array_type = type(data)
                if data.dtype is not dtype and data.dtype.kind == "f":
                    if dtype is not None and dtype != data.dtype:
                        mixed = f"{dtype} and {data.dtype}"
                    dtype = data.dtype
                if x._requires_grad:
                    mask |= bit
            elif x is None:
                if not self._optional[len(arrays)]:
                    raise TypeError(f"{self.name}: {self.names[len(arrays)]} is None; give a Tensor")
                arrays.append(None)
            else:
                return self(*[y if y is None or type(y) is Tensor else ops.as_tensor(self.name, y) for y in inputs], *values)
            bit += bit
        if self._check is not None:
            self._check(*inputs, *values)  # first: it may know a better reason, such as class numbers that are floats
        if mixed is not None:
            raise TypeError(f"{self.name}: inputs are {mixed}; bring them to one dtype with .astype(...)")
        mode = MODE.get()
        if mask & ~self.with_gradient and mode.record:
            self._refuse_without_gradient(mask)
        kernel = self.kernels.get("cpu" if array_type is _ndarray else backend.device_of(arrays[0]))
        if kernel is None or mode.definitions:
            return self.function(*inputs, *values)

        if not kernel.strided:
            for k, array in enumerate(arrays):
                if array is not None and not array.flags.c_contiguous:
                    arrays[k] = array.copy()
        result: Any
        made = kernel.forward(*arrays, *values)
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[1], tuple | list):
            raise TypeError(
                f"{self.name}: the forward of its kernel gives {kind_of(made)}; give (out, saved), where saved is a tuple for its backward"
            )
        out, saved = made
        if mode.watched:
            if mode.anomaly:
                check_forward(self.name, arrays, values, out if self.several else (out,))
            if mode.reads is not None:
                mode.reads.extend([(x.version, x.version[0]) for x in inputs if x is not None])
        node = new_node(self, inputs, values, mode.anomaly) if mask and mode.record else None
        if self.several:
            result = tuple([wrap(array, node if k < self.differentiable else None, k) for k, array in enumerate(out)])
            if node is not None:
                node.outputs = self.differentiable
                self._keep(node, mask, inputs, arrays, saved, result, kernel.readers)
            return result
        result = wrap(out if type(out) is array_type else np.asarray(out), node)  # NumPy's reductions return scalars
        if node is not None:
            self._keep(node, mask, inputs, arrays, saved, (result,), kernel.readers)
        return result

    def _refuse_without_gradient(self, mask: int) -> None:
        """Raise for inputs that require grad and have none: ValueError for a constant, TypeError for one that the rules leave out. The definition
        would differentiate that, and so may a kernel: what is right must not hang on which of them is asked.
        """
        self._refuse_constants(mask)
        bare = next(name for k, name in enumerate(self.names) if mask & ~self.with_gradient & 1 << k)
        constants = " ".join(name for k, name in enumerate(self.names) if name == bare or self.constants & 1 << k)
        raise TypeError(
            f"{self.name}: {bare} requires grad and has no derivative rule, as {', '.join(self.rules)} has; "
            f"state one, or declare a constant, @fused(constants={constants!r})"
        )

    def _keep(self, node: Node, mask: int, inputs: Sequence, arrays: list, saved: tuple, results: tuple, readers: tuple[int, ...] | None) -> None:
        """Note what backward needs: for rules what they read, else the input Tensors (the definition may be run again), and what the kernel saved.

        An input or output array among the saved ones is guarded by its version: the kernel will read it again.
        """
        guards = []
        readers = readers or (mask,) * (len(arrays) + 1)
        owners, own_output = list(map(id, arrays)), id(results[0].data)
        for array in saved:
            if array is not None:
                if id(array) in owners:
                    for k, owner in enumerate(owners):  # one array may have been passed in two places
                        if owner == id(array) and inputs[k].data is array and readers[k] & mask:  # not a contiguous copy of it
                            guards.append((inputs[k].version, inputs[k].version[0], readers[k], k))
                elif id(array) == own_output:
                    guards.append((results[0].version, results[0].version[0], readers[-1], None))
        node.kept, node.guards = saved, guards
        needs = self._needs.get(mask)
        if needs is None:
            needs = self._needs[mask] = tuple([bool(mask >> k & 1) for k in range(self.count)])
        node.needs = needs
        if self.rules:
            self._keep_for_rules(node, self._plan(mask), inputs, results[0])
        else:
            node.inputs = inputs
            node.versions = tuple([None if x is None else x.version[0] for x in inputs])

    def backward(self, node: Node, gradients: list, needs: tuple | None, create_graph: bool) -> tuple[list, bool]:
        """The gradients of the inputs, and whether their arrays are all fresh. See `walk.walk`."""
        kept = node.kept  # read once: another thread's walk may free the node meanwhile
        if kept is None:
            raise freed(self.name)
        g = gradients[0]
        if g is None:
            g = next(g for g in gradients if g is not None)
        kernel = self.kernels.get("cpu" if type(g.data) is _ndarray else backend.device_of(g.data))
        if kernel is None or kernel.backward is None or create_graph:
            return self._backward_by_definition(node, gradients, needs, create_graph), False
        needs = needs or node.needs
        for counter, then, readers, place in node.guards:
            if counter[0] != then and any(need and readers >> k & 1 for k, need in enumerate(needs)):
                what = "its output" if place is None else f"its input {self.names[place]}"
                raise changed_in_place(self.name, what, then, counter[0])
        dy: Any = [g if g is None else g.data if kernel.strided or g.data.flags.c_contiguous else g.data.copy() for g in gradients]
        arrays = kernel.backward(dy[0] if len(dy) == 1 else tuple(dy), kept, needs)
        if not isinstance(arrays, tuple | list) or len(arrays) != len(needs):
            raise TypeError(
                f"{self.name}: the backward of its kernel gives {kind_of(arrays)}; give a tuple of one gradient (or None) per input, {len(needs)}"
            )
        arrays = [np.asarray(array) if isinstance(array, np.generic) else array for array in arrays]  # NumPy makes scalars of 0-d results
        return [wrap(array) if need and array is not None else None for array, need in zip(arrays, needs)], kernel.fresh  # noqa: B905

    def _backward_by_definition(self, node: Node, gradients: list, needs: tuple | None, create_graph: bool) -> list:
        """The gradients from the rules if there are any, else from the definition, run again."""
        if self.rules:
            return self._run_rules(node, gradients, needs, create_graph)
        inputs = node.inputs
        if inputs is None:
            raise freed(self.name)
        for x, then in zip(inputs, node.versions, strict=True):
            if x is not None and x.version[0] != then:
                raise changed_in_place(self.name, f"an input of shape {x.shape}", then, x.version[0])

        def again(*tensors: Any) -> Any:
            if node.site is None:
                return self.function(*tensors, *node.values)
            with changed_mode(site=node.site):  # in anomaly mode the steps of the definition belong to the line that called the operation
                return self.function(*tensors, *node.values)

        return differentiate(again, inputs, gradients, needs or node.needs, create_graph)[0]


@overload
def fused(function: Callable[..., Result]) -> Fused[Result]: ...
@overload
def fused(**options: Any) -> Callable[[Callable[..., Result]], Fused[Result]]: ...
def fused(function: Callable | None = None, **options: Any) -> Any:
    """Decorator: make a function on Tensors the definition of a fused operation. Options: see Fused."""
    return (lambda f: Fused(f, **options)) if function is None else Fused(function)
