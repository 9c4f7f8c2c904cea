"""Operations: `@primitive`, `@fused`, the registry of all of them, and what happens when one is called. The first file to read.

A **primitive** has a forward on arrays and one derivative rule per input, written on Tensors out of other primitives: hence any order of derivative, on any device.

    @primitive
    def mul(x: Tensor, y: Tensor) -> Tensor:
        return x * y                                    # here x and y are arrays

    mul.derivative(x=lambda g, y: g * y,                # g is the gradient of the output
                   y=lambda g, x: g * x)

The argument names of a rule say what the graph keeps for it: an input by its name, the output by `out`, a plain value by its name, and `x_shape`, `x_dtype`, `x_device` where
only that is needed of x. Nothing else stays alive, and only for inputs that require grad.

A **fused** operation has a definition, a pure function of Tensors made of primitives, and per device a kernel pair on raw arrays that computes the same faster. Its derivative
is the kernel's; with create_graph, under `minigrad.definitions()`, or where a kernel is missing, it is the definition's. A fused operation may state rules too, where its derivative
is short (softmax from its output).

Read next: `ops/elementwise.py`, then `fused/layer_norm.py`, then `autograd.py` (the walk that calls `backward` here).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.autograd import MODE, Node, caller_site, changed_in_place, check_forward, differentiate, edge_of, freed, node_numbers
from minigrad.tensor import Tensor, wrap

__all__ = ["REGISTRY", "Fused", "Kernel", "Op", "Primitive", "fused", "primitive"]

REGISTRY: dict[str, Op] = {}
"""Every operation by name: `python -m minigrad` prints it."""

_ndarray = np.ndarray
_new_node = Node.__new__


class _Plan:
    """What a node keeps and which rules it runs, for one choice of inputs that require grad.

    saves: positions of the inputs kept as Tensors; facts: (position, attribute) pairs kept, such as a shape; out: whether the output array is kept.
    rules: (position of the input, rule, where its arguments stand in [g, *saved, *facts, out, *values]).
    """

    __slots__ = ("facts", "out", "rules", "saves")

    def __init__(self, saves: tuple, facts: tuple, out: bool, rules: tuple):
        self.saves, self.facts, self.out, self.rules = saves, facts, out, rules


class Op:
    """What primitives and fused operations share: a name, a signature, and derivative rules.

    Parameters annotated with Tensor are the inputs and come first; the others are plain values.
    """

    def __init__(self, function: Callable, outputs: int = 1):
        self.name = function.__name__
        self.function = function
        self.outputs = outputs
        self.kernels: dict[str, Kernel] = {}
        self.__doc__, self.__name__, self.__qualname__, self.__module__ = function.__doc__, function.__name__, function.__qualname__, function.__module__
        self.__wrapped__ = function  # inspect and documentation tools find the signature and the source here
        parameters = list(inspect.signature(function).parameters.values())
        is_input = ["Tensor" in str(p.annotation) for p in parameters]
        self.count = sum(is_input)
        if not all(is_input[: self.count]):
            raise TypeError(f"{self.name}: parameters annotated with Tensor come first")
        self.variadic = self.count == 1 and "Sequence" in str(parameters[0].annotation)
        self.names = [p.name for p in parameters]
        self._position = {name: k for k, name in enumerate(self.names)}
        self._defaults = tuple(p.default for p in parameters)
        self._value_defaults = self._defaults[self.count :]
        self._no_values_needed = inspect.Parameter.empty not in self._value_defaults
        self.rules: dict[str, Callable] = {}
        self._plans: dict[int, _Plan] = {}
        if self.name in REGISTRY:
            raise ValueError(f"there is an operation {self.name} already")
        REGISTRY[self.name] = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.name}>"

    def derivative(self, **rules: Callable) -> None:
        """State the gradient of inputs: `name=lambda g, ...`, see the top of this file. An input without a rule has no gradient."""
        unknown = [name for name in rules if name not in self.names[: self.count]]
        if unknown:
            raise TypeError(f"{self.name}: no input is called {unknown[0]}")
        self.rules = rules

    # --- calling

    def _bind(self, args: tuple, kwargs: dict) -> tuple[Sequence, tuple]:
        """Split a call's arguments into inputs and values, as Python itself would bind them."""
        names, count = self.names, self.count
        if len(args) > len(names):
            raise TypeError(f"{self.name}: {len(args)} arguments given, at most {len(names)} taken ({', '.join(names)})")
        bound = list(args) + list(self._defaults[len(args) :])
        for name, value in kwargs.items():
            position = self._position.get(name)
            if position is None:
                raise TypeError(f"{self.name}: there is no argument {name!r}; there are {', '.join(names)}")
            if position < len(args):
                raise TypeError(f"{self.name}: argument {name!r} is given twice")
            bound[position] = value
        for name, value in zip(names, bound, strict=True):
            if value is inspect.Parameter.empty:
                raise TypeError(f"{self.name}: argument {name!r} is missing")
        return bound[:count], tuple(bound[count:])

    def _mixed_devices(self, inputs: Sequence[Tensor | None]) -> TypeError:
        devices = [x.device for x in inputs if x is not None]
        return TypeError(f"{self.name}: inputs are on {' and '.join(dict.fromkeys(devices))}; move them to one device with .to(device=...)")

    # --- recording

    def _plan(self, mask: int) -> _Plan:
        """The plan for the inputs whose bits are set in `mask`."""
        plan = self._plans.get(mask)
        if plan is None:
            plan = self._plans[mask] = self._make_plan(mask)
        return plan

    def _make_plan(self, mask: int) -> _Plan:
        inputs, values = self.names[: self.count], self.names[self.count :]
        rules = [(k, self.rules[name]) for k, name in enumerate(inputs) if (mask >> k & 1 or self.variadic) and name in self.rules]
        wanted = list(dict.fromkeys(a for _, rule in rules for a in inspect.signature(rule).parameters if a != "g"))
        saves = [a for a in wanted if a in inputs]
        facts = [a for a in wanted if a.rpartition("_")[0] in inputs and a.rpartition("_")[2] in ("shape", "dtype", "device")]
        environment = ["g", *saves, *facts, "out", *values]
        for a in wanted:
            if a not in environment:
                raise TypeError(f"{self.name}: a rule asks for {a!r}; it may ask for g, out, {', '.join(inputs + values)} or {inputs[0]}_shape")
        return _Plan(
            tuple(inputs.index(a) for a in saves),
            tuple((inputs.index(a.rpartition("_")[0]), a.rpartition("_")[2]) for a in facts),
            "out" in wanted,
            tuple((k, rule, tuple(environment.index(a) for a in inspect.signature(rule).parameters)) for k, rule in rules),
        )

    def _keep_for_rules(self, node: Node, plan: _Plan, inputs: Sequence[Any], out: Tensor | None) -> None:
        node.plan = plan
        node.saved = tuple([inputs[k] for k in plan.saves])
        node.versions = tuple([x.version[0] for x in node.saved])
        node.facts = tuple([getattr(inputs[k], what) for k, what in plan.facts]) if not self.variadic else (tuple([x.shape for x in inputs]),) * len(plan.facts)
        node.out = None if out is None else (out.data, out.version, out.version[0])

    def _run_rules(self, node: Node, g: Any, needs: tuple) -> list:
        """The gradients of the inputs by the rules, as Tensors. Arguments come from the node: see _Plan."""
        plan, saved = node.plan, node.saved
        if saved is None:
            raise freed(self.name)
        for x, then in zip(saved, node.versions):  # noqa: B905 (both are as long as plan.saves)
            if x.version[0] != then:
                raise changed_in_place(self.name, f"an input of shape {x.shape}", then, x.version[0])
        out = None
        if node.out is not None:
            array, counter, then = node.out
            if counter[0] != then:
                raise changed_in_place(self.name, f"its output of shape {array.shape}", then, counter[0])
            out = wrap(array, node, 0, counter)
        environment = [g, *saved, *node.facts, out, *node.values]
        if self.variadic:
            (_, rule, arguments), = plan.rules
            return list(rule(*[environment[a] for a in arguments]))
        results: list = [None] * len(needs)
        for k, rule, arguments in plan.rules:
            if needs[k]:
                results[k] = rule(*[environment[a] for a in arguments])
        return results


def _new(op: Op, inputs: Sequence[Any], values: tuple, watched: bool) -> Node:
    """A node with what every operation records."""
    node = _new_node(Node)
    node.op = op
    node.edges = tuple([None if x is None or not x.requires_grad else (x, 0) if x.node is None else (x.node, x.output) for x in inputs])
    node.values = values
    node.outputs = op.outputs
    node.order = next(node_numbers)
    node.site = caller_site() if watched else None
    node.shapes = None
    return node


class Primitive(Op):
    """An operation with a forward on arrays. Made by `@primitive`.

    elementwise: inputs are broadcast together and brought to one dtype; gradients are summed back over the broadcast axes.
    view: the output may share the input's memory, and then shares its version counter.
    floating: integers become float32 first, as in PyTorch.
    """

    def __init__(self, function: Callable, outputs: int = 1, elementwise: bool = False, view: bool = False, floating: bool = False, promoted: int = 0):
        super().__init__(function, outputs)
        self.elementwise, self.view, self.floating, self.promoted = elementwise, view, floating, promoted
        self._several = elementwise and self.count > 1
        self._plain = not (self._several or floating or view or self.variadic or outputs != 1)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == self.count and not kwargs and self._no_values_needed:
            inputs, values = args, self._value_defaults
        else:
            inputs, values = self._bind(args, kwargs)
        if self.variadic:
            inputs = tuple(inputs[0])
            if not inputs:
                raise ValueError(f"{self.name}: needs at least one tensor")
        if self._several:
            first, second = inputs[0], inputs[1]
            if not (
                type(first) is Tensor is type(second)
                and first.data.dtype is second.data.dtype
                and type(first.data) is type(second.data)
                and len(inputs) == 2
                and not (self.floating and first.data.dtype.kind != "f")
            ):
                inputs = ops.promote(self, inputs, self.promoted, self.floating)
        else:
            for x in inputs:
                if type(x) is not Tensor or (self.floating and x.data.dtype.kind != "f"):
                    inputs = self._tensors(inputs)
                    break

        mode = MODE.get()
        arrays = [x.data for x in inputs]
        out = self.function(*arrays, *values) if not self.variadic else self.function(arrays, *values)
        if mode.watched:
            if mode.anomaly:
                check_forward(self.name, arrays, values, out if type(out) is tuple else (out,))
            if mode.reads is not None:
                mode.reads.extend([(x.version, x.version[0]) for x in inputs])
        if type(out) is not _ndarray:
            if type(out) is tuple:
                return self._wrap_several(out, inputs, values, mode)
            if isinstance(out, np.generic):  # NumPy's reductions return scalars
                out = np.asarray(out)

        version = inputs[0].version if self.view and _shares_memory(out, arrays[0]) else None
        mask = 0
        if mode.record:
            bit = 1
            for x in inputs:
                if x.requires_grad:
                    mask |= bit
                bit += bit
        if not mask or not self.rules:
            return wrap(out, None, 0, version)
        node = _new(self, inputs, values, mode.anomaly)
        result = wrap(out, node, 0, version)
        plan = self._plans.get(mask) or self._plan(mask)
        self._keep_for_rules(node, plan, inputs, result if plan.out else None)
        if self._several:
            shape = out.shape
            for array in arrays:
                if array.shape != shape:
                    node.shapes = tuple([array.shape for array in arrays])  # gradients must be summed back to these
                    break
        return result

    def _tensors(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Arrays and numbers become Tensors; integers become floats where the operation is `floating`."""
        result = []
        for x in inputs:
            x = x if type(x) is Tensor else wrap(x) if backend.is_array(x) else Tensor(x)
            result.append(ops.cast(x, np.float32) if self.floating and x.data.dtype.kind != "f" else x)
        return result

    def _wrap_several(self, out: tuple, inputs: Sequence[Tensor], values: tuple, mode: Any) -> tuple[Tensor, ...]:
        version = inputs[0].version if self.view and out and _shares_memory(out[0], inputs[0].data) else None
        if not (mode.record and any(x.requires_grad for x in inputs)):
            return tuple([wrap(array, None, 0, version) for array in out])
        node = _new(self, inputs, values, mode.anomaly)
        node.outputs = len(out)
        self._keep_for_rules(node, self._plan(1), inputs, None)
        return tuple([wrap(array, node, k, version) for k, array in enumerate(out)])

    def backward(self, node: Node, gradients: list, needs: tuple, create_graph: bool) -> tuple[list, bool]:
        """The gradients of the inputs, and whether their arrays are all fresh. See `autograd._walk`."""
        g = gradients[0] if node.outputs == 1 and self.outputs == 1 else tuple(gradients)
        results = self._run_rules(node, g, needs)
        if node.shapes is not None:
            for k, shape in enumerate(node.shapes):
                if results[k] is not None and results[k].data.shape != shape:
                    results[k] = ops.sum_to(results[k], shape)
        return results, False


def _shares_memory(out: Any, array: Any) -> bool:
    """Whether `out` is a view of `array`'s memory. NumPy's views point at the array that owns the memory."""
    if out is array:
        return True
    base = out.base
    return base is not None and (base is array or base is array.base)


class Kernel:
    """A forward and a backward on raw arrays for one device.

    forward(*arrays, *values) -> (out, saved); backward(dy, saved, needs) -> one gradient or None per input. `strided`: takes arrays with any strides, otherwise they arrive
    C-contiguous. `fresh`: the gradients it returns share memory with nothing.
    """

    __slots__ = ("backward", "forward", "fresh", "strided")

    def __init__(self, forward: Callable, backward: Callable | None, strided: bool, fresh: bool):
        self.forward, self.backward, self.strided, self.fresh = forward, backward, strided, fresh


class Fused(Op):
    """An operation with a definition on Tensors and a kernel pair per device. Made by `@fused`.

    outputs: how many the operation returns; differentiable: how many of them, from the first on, carry gradient.
    """

    def __init__(self, function: Callable, outputs: int = 1, differentiable: int = 1):
        super().__init__(function, outputs)
        self.differentiable = differentiable
        self._check: Callable | None = None

    @property
    def definition(self) -> Callable:
        return self.function

    def check(self, function: Callable) -> Callable:
        """Decorator: `function(*inputs, *values)` runs before every call and raises for what the operation cannot take."""
        self._check = function
        return function

    def kernel(self, device: str, forward: Callable, backward: Callable | None, strided: bool = False, fresh: bool = False) -> None:
        """Use this pair on arrays of `device`. backward may be None for an operation with rules."""
        if backward is None and not self.rules:
            raise ValueError(f"{self.name}: a kernel without a backward needs derivative rules")
        self.kernels[device] = Kernel(forward, backward, strided, fresh)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(args) == self.count and not kwargs and self._no_values_needed:
            inputs, values = args, self._value_defaults
        else:
            inputs, values = self._bind(args, kwargs)
        dtype = array_type = None
        for x in inputs:
            if type(x) is Tensor:
                data = x.data
                if array_type is None:
                    array_type = type(data)
                elif array_type is not type(data):
                    raise self._mixed_devices([x for x in inputs if isinstance(x, Tensor)])
                if data.dtype.kind == "f":
                    if dtype is None:
                        dtype = data.dtype
                    elif dtype is not data.dtype and dtype != data.dtype:
                        raise TypeError(f"{self.name}: inputs are {dtype} and {data.dtype}; bring them to one dtype with .astype(...)")
            elif x is not None:
                return self(*[y if y is None or type(y) is Tensor else wrap(y) if backend.is_array(y) else Tensor(y) for y in inputs], *values)
        if self._check is not None:
            self._check(*inputs, *values)
        mode = MODE.get()
        kernel = self.kernels.get("cpu" if array_type is _ndarray else backend.device_of(next(x for x in inputs if x is not None).data))
        if kernel is None or mode.definitions:
            return self.function(*inputs, *values)

        if kernel.strided:
            arrays = [None if x is None else x.data for x in inputs]
        else:
            arrays = [None if x is None else x.data if x.data.flags.c_contiguous else x.data.copy() for x in inputs]
        out, saved = kernel.forward(*arrays, *values)
        if mode.watched:
            if mode.anomaly:
                check_forward(self.name, arrays, values, out if self.outputs > 1 else (out,))
            if mode.reads is not None:
                mode.reads.extend([(x.version, x.version[0]) for x in inputs if x is not None])
        node = None
        if mode.record:
            mask, bit = 0, 1
            for x in inputs:
                if x is not None and x.requires_grad:
                    mask |= bit
                bit += bit
            if mask:
                node = _new(self, inputs, values, mode.anomaly)
        if self.outputs > 1:
            result = tuple([wrap(array, node if k < self.differentiable else None, k) for k, array in enumerate(out)])
            if node is not None:
                node.outputs = self.differentiable
                self._keep(node, mask, inputs, arrays, saved, result)  # type: ignore[possibly-undefined]
            return result
        result = wrap(out if type(out) is array_type else np.asarray(out), node)  # NumPy's reductions return scalars
        if node is not None:
            self._keep(node, mask, inputs, arrays, saved, (result,))  # type: ignore[possibly-undefined]
        return result

    def _keep(self, node: Node, mask: int, inputs: Sequence, arrays: list, saved: tuple, results: tuple) -> None:
        """Note what backward needs: for rules what they read, else the input Tensors (the definition may be run again), and what the kernel saved.

        An input or output array among the saved ones is guarded by its version: the kernel will read it again.
        """
        guards = []
        for array in saved:
            if type(array) is _ndarray or backend.is_array(array):
                for x, own in zip(inputs, arrays):  # noqa: B905 (made from inputs)
                    if array is own and own is x.data:
                        guards.append((x.version, x.version[0], own.shape))
                        break
                else:
                    for y in results:
                        if array is y.data:
                            guards.append((y.version, y.version[0], array.shape))
        node.kept, node.guards = saved, guards
        if self.rules:
            plan = self._plan(mask)
            self._keep_for_rules(node, plan, inputs, results[0] if plan.out else None)
        else:
            node.inputs = inputs
            node.versions = tuple([None if x is None else x.version[0] for x in inputs])

    def backward(self, node: Node, gradients: list, needs: tuple, create_graph: bool) -> tuple[list, bool]:
        """The gradients of the inputs, and whether their arrays are all fresh. See `autograd._walk`."""
        if node.kept is None:
            raise freed(self.name)
        first = next(g for g in gradients if g is not None)
        kernel = self.kernels.get("cpu" if type(first.data) is _ndarray else backend.device_of(first.data))
        by_kernel = kernel is not None and kernel.backward is not None and not create_graph
        if self.rules and not by_kernel:
            return self._run_rules(node, gradients[0], needs), False
        if by_kernel:
            for counter, then, shape in node.guards:
                if counter[0] != then:
                    raise changed_in_place(self.name, f"an array of shape {shape}", then, counter[0])
            if not kernel.strided:  # type: ignore[union-attr]
                dy = [None if g is None else g.data if g.data.flags.c_contiguous else g.data.copy() for g in gradients]
            else:
                dy = [None if g is None else g.data for g in gradients]
            arrays = kernel.backward(dy[0] if len(dy) == 1 else tuple(dy), node.kept, needs)  # type: ignore[misc,union-attr]
            return [None if array is None or not need else wrap(array) for array, need in zip(arrays, needs)], kernel.fresh  # type: ignore[union-attr]  # noqa: B905
        for x, then in zip(node.inputs, node.versions, strict=True):
            if x is not None and x.version[0] != then:
                raise changed_in_place(self.name, f"an input of shape {x.shape}", then, x.version[0])
        results, _ = differentiate(lambda *tensors: self.function(*tensors, *node.values), node.inputs, gradients, needs, create_graph)
        return results, False


def primitive(function: Callable | None = None, **options: Any) -> Any:
    """Decorator: make a function on arrays a primitive operation on Tensors. Options: see Primitive."""
    return (lambda f: Primitive(f, **options)) if function is None else Primitive(function)


def fused(function: Callable | None = None, **options: Any) -> Any:
    """Decorator: make a function on Tensors the definition of a fused operation. Options: see Fused."""
    return (lambda f: Fused(f, **options)) if function is None else Fused(function)


from minigrad import ops  # noqa: E402  (the intended cycle: see tensor.py)
