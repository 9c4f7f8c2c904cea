"""Primitives: what `@primitive` makes of a function on arrays, and what happens when one is called.

Read before: `base_op.py`; next: `fast_calls.py`, the same for the most common calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from minigrad import backend, fast_calls, ops  # ops: the intended cycle, see the end of tensor.py
from minigrad.base_op import Op, Result, check_arrays, frozen, kind_of, new_node
from minigrad.modes import MODE, check_forward
from minigrad.node import Node
from minigrad.tensor import Tensor, wrap

__all__ = ["Binary", "Primitive", "Unary", "primitive"]

_ndarray = np.ndarray


class Primitive(Op[Result]):
    """An operation with a forward on arrays. Made by `@primitive`.

    several: the forward returns a tuple of arrays, as many as the call wants, and the rule gets a tuple of gradients (None for those of outputs that
    nothing was computed from).
    elementwise: inputs are broadcast together and brought to one dtype (those from position `promoted` on); gradients are summed back over the
    broadcast axes.
    view: the output may look at an input's memory, and the array does not always say so (its `base`): it is looked at more closely. An output that
    does look at an input's memory shares the version counter of that input, whether declared or not.
    floating: integers become float32 first, as in PyTorch. constants: see `Op`.

    The one input may be a `Sequence[Tensor]`: the forward gets a list of arrays, brought to one dtype, the rule gives a sequence of gradients, and
    the facts it may ask for (NAME_shape, ...) are tuples with one for each Tensor.
    """

    takes_sequences = True

    def __init__(
        self,
        function: Callable[..., Result],
        several: bool = False,
        elementwise: bool = False,
        view: bool = False,
        floating: bool = False,
        promoted: int = 0,
        name: str | None = None,
        constants: str = "",
    ):
        super().__init__(function, several, name, constants)
        self.elementwise, self.view, self.floating, self.promoted = elementwise, view, floating, promoted

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """Call the operation with Tensors, arrays or numbers; positions and names as in its signature."""
        return self._run(*self._bind(args, kwargs))

    def _run(self, inputs: Any, values: tuple) -> Any:
        """Convert the inputs, run the forward, record a node. `fast_calls.py` does the same for the most common calls: a change is one of both."""
        values = frozen(self, values)
        if self.variadic:
            inputs = tuple(inputs[0])
            if not inputs:
                raise ValueError(f"{self.name}: needs at least one tensor")
            if not all([type(x) is Tensor for x in inputs]) or len({x.data.dtype for x in inputs}) > 1:
                inputs = ops.promote(self, inputs, 0, False)
        given = inputs
        if self.elementwise:
            inputs = ops.promote(self, inputs, self.promoted, self.floating)
        else:
            for x in inputs:
                if type(x) is not Tensor or (self.floating and x.data.dtype.kind != "f"):
                    inputs = self._tensors(inputs)
                    break
            if len(inputs) > 1 and len({type(x.data) for x in inputs}) > 1:
                raise self._mixed_devices(x.device for x in inputs)

        mode = MODE.get()
        arrays = [x.data for x in inputs]
        if self.variadic:
            check_arrays(arrays)  # NumPy would make arrays of Tensors
        try:
            out: Any = self.function(arrays, *values) if self.variadic else self.function(*arrays, *values)
        except (ValueError, IndexError, TypeError) as error:
            self._explain(error, arrays)
            raise
        if self.several:
            out = self._arrays(out, arrays)
        elif type(out) is not _ndarray:
            out = self._array(out, arrays)
        if mode.watched:
            if mode.anomaly:  # a number may be Inf in the tensor's dtype only: 1e300 beside float32
                numbers = [np.asarray(float(x)) if isinstance(x, int | float) else array for x, array in zip(given, arrays, strict=True)]
                check_forward(self.name, numbers, values, list(out) if self.several else [out])
            if mode.reads is not None:
                mode.reads.extend([(x.version, x.version[0]) for x in inputs])

        mask, sources = 0, inputs
        if mode.record and self.rules:
            bit = 1
            for x in inputs:
                if x._requires_grad:
                    mask |= bit
                bit += bit
            if mask & ~self.with_gradient:
                sources = self._sources(inputs, mask)
                mask &= self.with_gradient
        node = new_node(self, sources, values, mode.anomaly) if mask else None
        result: Any
        if self.several:
            result = self._wrap_several(out, inputs, node)
        else:
            result = wrap(out, node, 0, self._shared_version(out, inputs))
            if node is not None and self.elementwise and any([array.shape != out.shape for array in arrays]):
                node.shapes = tuple([array.shape for array in arrays])  # gradients must be summed back to these
        if node is not None:
            self._keep_for_rules(node, self._plan(1 if self.variadic else mask), inputs, result)
        return result

    def _explain(self, error: Exception, arrays: Sequence[Any]) -> None:
        """Raise NumPy's error with the operation's name and the shapes added; not for one of another kind, or that names the operation."""
        check_arrays(arrays)
        if type(error) not in (ValueError, IndexError, np.exceptions.AxisError) or str(error).startswith(f"{self.name}:"):
            return
        shapes = [array.shape for array in arrays]
        if self.elementwise:
            try:
                np.broadcast_shapes(*shapes)
            except ValueError:
                raise ValueError(f"{self.name}: shapes {' and '.join(map(str, shapes))} do not broadcast") from None
        raise type(error)(f"{self.name}: {error} (given shape{'s' * (len(shapes) > 1)} {' and '.join(map(str, shapes))})") from None

    def _array(self, out: Any, arrays: Sequence[Any]) -> Any:
        """What the forward has returned for these arrays, as an array: NumPy's reductions return scalars."""
        if isinstance(out, np.generic):
            return np.asarray(out)
        if not backend.is_array(out):
            check_arrays(arrays)
            also = ", or declare several=True" if isinstance(out, tuple | list) else ""
            raise TypeError(f"{self.name}: its forward gives {kind_of(out)}; give an array{also}")
        return out

    def _arrays(self, out: Any, arrays: Sequence[Any]) -> Any:
        """The same where the operation has several results: a tuple of arrays."""
        if not isinstance(out, tuple | list):
            raise TypeError(f"{self.name}: its forward gives {kind_of(out)}; with several=True, give a tuple of arrays")
        return tuple([self._array(array, arrays) for array in out])

    def _shared_version(self, out: Any, inputs: Sequence[Tensor]) -> list[int] | None:
        """The version counter of the input whose memory the array `out` looks at: a write to the one is a write to the other. None: to no input's."""
        if self.view or out.base is not None:
            for x in inputs:
                if backend.is_view(out, x.data):
                    return x.version
        else:
            for x in inputs:
                if out is x.data:
                    return x.version
        return None

    def _wrap_several(self, out: Any, inputs: Sequence[Tensor], node: Node | None) -> tuple[Tensor, ...]:
        if self.view and out:  # they all look at an input's memory, or none does
            versions = [self._shared_version(out[0], inputs)] * len(out)
        else:
            versions = [self._shared_version(array, inputs) for array in out]
        if node is not None:
            node.outputs = len(out)
        return tuple([wrap(array, node, k, version) for k, (array, version) in enumerate(zip(out, versions, strict=True))])

    def _tensors(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Arrays and numbers become Tensors; integers become floats where the operation is `floating`."""
        result = []
        for x in inputs:
            x = x if type(x) is Tensor else ops.as_tensor(self.name, x)
            result.append(ops.cast(x, np.float32) if self.floating and x.data.dtype.kind != "f" else x)
        return result

    def backward(self, node: Node, gradients: list, needs: tuple | None, create_graph: bool) -> tuple[list, bool]:
        """The gradients of the inputs, and whether their arrays are all fresh. See `walk.walk`."""
        results = self._run_rules(node, gradients, needs, create_graph)
        if node.shapes is not None:
            for k, shape in enumerate(node.shapes):
                if results[k] is not None and results[k].data.shape != shape:
                    results[k] = ops.sum_to(results[k], shape)
        return results, False


class Unary(Primitive[Tensor]):
    """A primitive of one Tensor and nothing else."""

    __call__ = fast_calls.unary


class Binary(Primitive[Tensor]):
    """A primitive of two Tensors and nothing else."""

    __call__ = fast_calls.binary


@overload
def primitive(function: Callable[..., Result]) -> Primitive[Result]: ...
@overload
def primitive(**options: Any) -> Callable[[Callable[..., Result]], Primitive[Result]]: ...
def primitive(function: Callable | None = None, **options: Any) -> Any:
    """Decorator: make a function on arrays a primitive operation on Tensors. Options: see Primitive."""

    def make(function: Callable) -> Primitive:
        parameters = inspect.signature(function).parameters.values()
        plain = all(p.annotation in ("Tensor", Tensor) and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        special = any(options.get(option) for option in ("view", "several", "constants"))
        kind = {1: Unary, 2: Binary}.get(len(parameters)) if plain and not special else None
        if kind is None:
            return Primitive(function, **options)
        call = fast_calls.called(kind.__call__, function, options.get("name") or function.__name__)  # type: ignore[arg-type]
        return type(kind.__name__, (kind,), {"__call__": call})(function, **options)

    return make if function is None else make(function)
