"""Operations: `@primitive`, `@fused`, the registry of all of them, and what happens when one is called. The first file to read.

A **primitive** has a forward on arrays and one derivative rule per input, written on Tensors out of other primitives: hence any order of
derivative, on any device.

    @primitive
    def mul(x: Tensor, y: Tensor) -> Tensor:
        return x * y                                    # here x and y are arrays

    mul.derivative(x=lambda g, y: g * y,                # g is the gradient of the output
                   y=lambda g, x: g * x)

The argument names of a rule say what the graph keeps for it: an input by its name, the output by `out`, a plain value by its name, and `x_shape`,
`x_dtype`, `x_device` where only that is needed of x. Nothing else stays alive, and only for inputs that require grad.

A **fused** operation has a definition, a pure function of Tensors made of primitives, and per device a kernel pair on raw arrays that computes the
same faster. Its derivative is the kernel's; with create_graph, where a kernel is missing, or where it was called under `minigrad.definitions()`, it
is the definition's. A fused operation may state rules too, where its derivative is short (softmax from its output).

Read next: `ops/elementwise.py`, then `fused/layer_norm.py`, then `autograd.py` (the walk that calls `backward` here).
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, TypeVar, overload

import numpy as np

from minigrad import backend, fast_calls
from minigrad.autograd import Node, changed_in_place, differentiate, freed, node_numbers
from minigrad.modes import MODE, caller_site, check_forward
from minigrad.modes import mode as changed_mode
from minigrad.tensor import Tensor, wrap

__all__ = ["REGISTRY", "Fused", "KernelPair", "Op", "Primitive", "fused", "primitive"]

REGISTRY: dict[str, Op] = {}
"""Every operation by name: `python -m minigrad` prints it."""

Result = TypeVar("Result")
"""What a call of an operation gives, for type checkers. Of the arguments they know nothing: an array or a number will do for a Tensor."""

_ndarray = np.ndarray
_new_node = Node.__new__


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a node keeps and which rules it runs, for one choice of inputs that require grad.

    saves: positions of the inputs kept as Tensors; facts: (position, attribute) pairs kept, such as a shape; out: whether the output array is kept.
    rules: (position of the input, rule, whether it asks for g alone, what picks its arguments from [g, *saved, *facts, out, *values]).
    array_rules: the same for raw arrays, or () where there are none.
    """

    saves: tuple
    facts: tuple
    out: bool
    rules: tuple
    array_rules: tuple


class Op(Generic[Result]):
    """What primitives and fused operations share: a name, a signature, and derivative rules.

    Parameters annotated with Tensor are the inputs and come first; the others are plain values.
    """

    takes_sequences = False  # see Primitive
    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Result], several: bool = False, name: str | None = None):
        self.name = name or function.__name__
        self.function = function
        self.several = several  # whether it returns a tuple
        self.kernels: dict[str, KernelPair] = {}
        functools.update_wrapper(self, function, updated=())  # type: ignore[arg-type]  # inspect finds the signature and the source
        parameters = list(inspect.signature(function).parameters.values())
        is_input = ["Tensor" in str(p.annotation) for p in parameters]
        self.count = sum(is_input)
        if not all(is_input[: self.count]):
            raise TypeError(f"{self.name}: parameters annotated with Tensor come first")
        sequences = [p.name for p in parameters[: self.count] if "Sequence" in str(p.annotation)]
        self.variadic = bool(sequences)
        if sequences and not (self.takes_sequences and self.count == 1):
            raise TypeError(f"{self.name}: {sequences[0]} is a Sequence[Tensor], which only a primitive can take, and as its only input")
        self.names = [p.name for p in parameters]
        self._position = {name: k for k, name in enumerate(self.names)}
        self._defaults = tuple(p.default for p in parameters)
        self._optional = tuple("None" in str(p.annotation) or p.default is None for p in parameters)
        self._required = sum(default is inspect.Parameter.empty for default in self._defaults)
        self.advice = ""  # what is added where arguments do not fit
        self.rules: dict[str, Callable] = {}
        self.array_rules: dict[str, Callable] = {}
        self._plans: dict[int, _Plan] = {}
        known = REGISTRY.get(self.name)
        if known is not None and _place(known.function) != _place(function):  # not a notebook's cell, run again
            raise ValueError(f"there is an operation {self.name} already, from {known.__module__}; give this one another name")
        REGISTRY[self.name] = self

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {self.name}>"

    def __reduce__(self) -> str:
        """For copies and pickles: an operation is known by its name in its module, as a function is, and there is one of it."""
        return self.__qualname__

    def derivative(self, **rules: Callable) -> None:
        """State the gradient of inputs: `name=lambda g, ...`, see the top of this file. An input without a rule has no gradient."""
        inputs = self.names[: self.count]
        unknown = [name for name in rules if name not in inputs]
        if unknown:
            there = f"there is {', '.join(inputs)}" if inputs else "annotate its inputs with Tensor"
            raise TypeError(f"{self.name}: no input is called {unknown[0]}; {there}")
        self.rules, self.array_rules = {**self.rules, **rules}, {}
        self._plans.clear()

    def on_arrays(self, **rules: Callable) -> None:
        """State the same gradients, of all the inputs that `derivative` has rules for, on raw arrays, for when no graph is wanted; without
        arguments: the rules themselves, where they are plain operators.

        These rules may ask for what the rules on Tensors of the same inputs ask for, and nothing else is kept for them.
        """
        if rules and rules.keys() != self.rules.keys():
            stated = ", ".join(self.rules) or "none yet"
            raise TypeError(f"{self.name}: on_arrays gives rules for {', '.join(rules)}; those of derivative are for {stated}, give the same")
        self.array_rules = rules or self.rules
        self._plans.clear()

    # --- calling

    def _bind(self, args: tuple, kwargs: dict) -> tuple[Sequence, tuple]:
        """Split a call's arguments into inputs and values, as Python itself would bind them."""
        names, count = self.names, self.count
        if not kwargs and self._required <= len(args) <= len(names):
            bound: Any = args + self._defaults[len(args) :]
            return bound[:count], bound[count:]
        if len(args) > len(names):
            raise TypeError(f"{self.name}: {len(args)} arguments given, at most {len(names)} taken ({', '.join(names)}){self.advice}")
        bound = list(args) + list(self._defaults[len(args) :])
        for name, value in kwargs.items():
            position = self._position.get(name)
            if position is None:
                raise TypeError(f"{self.name}: there is no argument {name!r}; there are {', '.join(names)}{self.advice}")
            if position < len(args):
                raise TypeError(f"{self.name}: argument {name!r} is given twice")
            bound[position] = value
        for name, value in zip(names, bound, strict=True):
            if value is inspect.Parameter.empty:
                raise TypeError(f"{self.name}: argument {name!r} is missing{self.advice}")
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
        chosen = [k for k, name in enumerate(inputs) if (mask >> k & 1 or self.variadic) and name in self.rules]
        wanted = list(dict.fromkeys(a for k in chosen for a in inspect.signature(self.rules[inputs[k]]).parameters if a != "g"))
        kept = [] if self.variadic else inputs  # of a sequence, only facts
        saves = [a for a in wanted if a in kept]
        facts = [a for a in wanted if a.rpartition("_")[0] in inputs and a.rpartition("_")[2] in ("shape", "dtype", "device")]
        environment = ["g", *saves, *facts, "out", *values]

        def with_pickers(rules: dict[str, Callable]) -> tuple:
            found = []
            for k in chosen:
                rule = rules[inputs[k]]
                names = list(inspect.signature(rule).parameters)
                for a in names:
                    if a not in environment or (a == "out" and (self.several or "out" not in wanted)):
                        may = ["g", *([] if self.several else ["out"]), *kept, *values]
                        raise TypeError(f"{self.name}: a rule asks for {a!r}; it may ask for {', '.join(may)} or {inputs[0]}_shape")
                found.append((k, rule, names == ["g"], itemgetter(*[environment.index(a) for a in names])))
            return tuple(found)

        return _Plan(
            tuple(inputs.index(a) for a in saves),
            tuple((inputs.index(a.rpartition("_")[0]), a.rpartition("_")[2]) for a in facts),
            "out" in wanted,
            with_pickers(self.rules),
            with_pickers(self.array_rules) if self.array_rules else (),
        )

    def _keep_for_rules(self, node: Node, plan: _Plan, inputs: Sequence[Any], out: Tensor | None) -> None:
        node.plan = plan
        if plan.saves:
            node.saved = saved = tuple([inputs[k] for k in plan.saves])
            node.versions = tuple([x.version[0] for x in saved])
        else:
            node.saved = node.versions = ()
        if not plan.facts:
            node.facts = ()
        elif self.variadic:
            node.facts = tuple([tuple([getattr(x, what) for x in inputs]) for _, what in plan.facts])
        else:
            node.facts = tuple([getattr(inputs[k], what) for k, what in plan.facts])
        node.out = (out.data, out.version, out.version[0]) if plan.out and out is not None else None

    def _refuse_what_is_read(self, node: Node, saved: tuple, kept_out: tuple | None, needs: tuple | None) -> None:
        """Raise if an array that was written since the forward pass is one that the rules about to run ask for."""
        wanted = [rule for k, rule, _, _ in node.plan.rules if needs is None or self.variadic or needs[k]]
        asked = {name for rule in wanted for name in inspect.signature(rule).parameters}
        for x, then, k in zip(saved, node.versions, node.plan.saves, strict=True):
            if x.version[0] != then and self.names[k] in asked:
                raise changed_in_place(self.name, f"an input of shape {x.shape}", then, x.version[0])
        if kept_out is not None and "out" in asked:
            out, counter, then = kept_out
            if counter[0] != then:
                raise changed_in_place(self.name, f"its output of shape {out.shape}", then, counter[0])

    def _run_rules(self, node: Node, gradients: list, needs: tuple | None, create_graph: bool) -> list:
        """The gradients of the inputs by the rules, as Tensors. Their arguments come from the node: see _Plan."""
        kept_out = node.out  # each is read once, and this one first: another thread's walk may free the node meanwhile, and this one last
        plan, saved = node.plan, node.saved
        if saved is None:
            raise freed(self.name)
        for x, then in zip(saved, node.versions):  # noqa: B905 (both are as long as plan.saves)
            if x.version[0] != then:
                self._refuse_what_is_read(node, saved, kept_out, needs)
        out = counter = None
        if kept_out is not None:
            out, counter, then = kept_out
            if counter[0] != then:
                self._refuse_what_is_read(node, saved, kept_out, needs)
        on_arrays = plan.array_rules and not create_graph
        if on_arrays:
            gs = [None if g is None else g.data for g in gradients]
            environment = [*[x.data for x in saved], *node.facts, out, *node.values]
        else:
            gs = gradients
            environment = [*saved, *node.facts, None if out is None else wrap(out, node, 0, counter), *node.values]
        g = tuple(gs) if self.several else gs[0]
        environment.insert(0, g)
        rules = plan.array_rules if on_arrays else plan.rules
        results: list = [None] * len(node.edges)
        if self.variadic:
            ((_, rule, _, pick),) = rules
            results = list(rule(*pick(environment)))
        else:
            for k, rule, alone, pick in rules:
                if needs is None or needs[k]:
                    results[k] = rule(g) if alone else rule(*pick(environment))
        if on_arrays:
            return [x if x is None else wrap(x if type(x) is _ndarray else self._gradient_array(x, saved)) for x in results]
        for x in results:
            if x is not None and type(x) is not Tensor:
                raise TypeError(f"{self.name}: a derivative rule gives an object of type {type(x).__name__}; rules compute with Tensors and give one")
        return results

    def _gradient_array(self, x: Any, saved: Sequence[Tensor]) -> Any:
        """What a rule on arrays has returned, as an array: NumPy makes scalars of 0-d results."""
        if isinstance(x, np.generic):
            return np.asarray(x)
        if not backend.is_array(x):
            _check_arrays([tensor.data for tensor in saved])
            raise TypeError(
                f"{self.name}: a derivative rule on arrays gives an object of type {type(x).__name__}; it computes with arrays and gives one"
            )
        return x


_FIXED = frozenset({int, float, bool, str, type(None), type(...), slice})  # what nobody can change later (a slice: see `plain_index`)


def _frozen(op: Op, values: tuple) -> tuple:
    """The values of a call in a form that their owner cannot change any more: backward must see what forward saw."""
    for value in values:
        if type(value) not in _FIXED and not (type(value) is tuple and _FIXED.issuperset(map(type, value))):
            return tuple([_frozen_value(op, value) for value in values])
    return values


def _frozen_value(op: Op, value: Any) -> Any:
    """Lists and ranges become tuples, at every depth; Tensors and NumPy's fractions, which would promote float32, become numbers; arrays become
    read-only copies; anything else (a dtype) is returned as it is.
    """
    kind = type(value)
    if kind in _FIXED:
        return value
    if kind is tuple or kind is list or kind is range:
        return tuple([_frozen_value(op, part) for part in value])
    if kind is Tensor:
        if value.requires_grad and MODE.get().record:
            raise TypeError(
                f"{op.name}: a Tensor of shape {value.shape} that requires grad is given as a plain value ({', '.join(op.names[op.count :])}), which "
                "has no gradient; give .detach() if it is meant to be one"
            )
        value._note_read()
        return _frozen_value(op, backend.to_device(value.data, "cpu").tolist())
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, np.ndarray) and (value.flags.writeable or not value.flags.owndata):  # what `plain_index` has copied is not copied again
        value = value.copy()
        value.flags.writeable = False
    return value


def _new(op: Op, inputs: Sequence[Any], values: tuple, watched: bool) -> Node:
    """A node with what every operation records."""
    node = _new_node(Node)
    node.op = op
    node.edges = tuple([None if x is None or not x._requires_grad else (x, 0) if x.node is None else (x.node, x.output) for x in inputs])
    node.values = values
    node.outputs = 1
    node.order = next(node_numbers)
    node.site = caller_site() if watched else None
    node.shapes = None
    return node


class Primitive(Op[Result]):
    """An operation with a forward on arrays. Made by `@primitive`.

    several: the forward returns a tuple of arrays, as many as the call wants, and the rule gets a tuple of gradients (None for those of outputs that
    nothing was computed from).
    elementwise: inputs are broadcast together and brought to one dtype (those from position `promoted` on); gradients are summed back over the
    broadcast axes.
    view: the output may look at an input's memory, and the array does not always say so (its `base`): it is looked at more closely. An output that
    does look at an input's memory shares the version counter of that input, whether declared or not.
    floating: integers become float32 first, as in PyTorch.

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
    ):
        super().__init__(function, several, name)
        self.elementwise, self.view, self.floating, self.promoted = elementwise, view, floating, promoted

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        """Call the operation with Tensors, arrays or numbers; positions and names as in its signature."""
        return self._run(*self._bind(args, kwargs))

    def _run(self, inputs: Any, values: tuple) -> Any:
        """Convert the inputs, run the forward, record a node. `fast_calls.py` does the same for the most common calls: a change is one of both."""
        values = _frozen(self, values)
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
                raise self._mixed_devices(inputs)

        mode = MODE.get()
        arrays = [x.data for x in inputs]
        if self.variadic:
            _check_arrays(arrays)  # NumPy would make arrays of Tensors
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
                check_forward(self.name, numbers, values, out if isinstance(out, tuple) else (out,))
            if mode.reads is not None:
                mode.reads.extend([(x.version, x.version[0]) for x in inputs])
        if isinstance(out, tuple):
            return self._wrap_several(out, inputs, values, mode)

        version = self._shared_version(out, inputs)
        mask = 0
        if mode.record and self.rules:
            bit = 1
            for x in inputs:
                if x._requires_grad:
                    mask |= bit
                bit += bit
        if not mask:
            return wrap(out, None, 0, version)
        node = _new(self, inputs, values, mode.anomaly)
        result = wrap(out, node, 0, version)
        self._keep_for_rules(node, self._plan(1 if self.variadic else mask), inputs, result)
        if self.elementwise and any([array.shape != out.shape for array in arrays]):
            node.shapes = tuple([array.shape for array in arrays])  # gradients must be summed back to these
        return result

    def _explain(self, error: Exception, arrays: Sequence[Any]) -> None:
        """Raise NumPy's error with the operation's name and the shapes added; not for one of another kind, or that names the operation."""
        _check_arrays(arrays)
        if type(error) not in (ValueError, IndexError, np.exceptions.AxisError) or str(error).startswith(f"{self.name}:"):
            return
        shapes = [array.shape for array in arrays]
        if self.elementwise and not _broadcast(shapes):
            raise ValueError(f"{self.name}: shapes {' and '.join(map(str, shapes))} do not broadcast") from None
        raise type(error)(f"{self.name}: {error} (given shape{'s' * (len(shapes) > 1)} {' and '.join(map(str, shapes))})") from None

    def _array(self, out: Any, arrays: Sequence[Any]) -> Any:
        """What the forward has returned for these arrays, as an array: NumPy's reductions return scalars."""
        if isinstance(out, np.generic):
            return np.asarray(out)
        if not backend.is_array(out):
            _check_arrays(arrays)
            also = ", or declare several=True" if isinstance(out, tuple | list) else ""
            raise TypeError(f"{self.name}: its forward gives {_kind(out)}; give an array{also}")
        return out

    def _arrays(self, out: Any, arrays: Sequence[Any]) -> tuple:
        """The same where the operation has several results."""
        if not isinstance(out, tuple | list):
            raise TypeError(f"{self.name}: its forward gives {_kind(out)}; with several=True, give a tuple of arrays")
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

    def _tensors(self, inputs: Sequence[Any]) -> list[Tensor]:
        """Arrays and numbers become Tensors; integers become floats where the operation is `floating`."""
        result = []
        for x in inputs:
            x = x if type(x) is Tensor else ops.as_tensor(self.name, x)
            result.append(ops.cast(x, np.float32) if self.floating and x.data.dtype.kind != "f" else x)
        return result

    def _wrap_several(self, out: tuple, inputs: Sequence[Tensor], values: tuple, mode: Any) -> tuple[Tensor, ...]:
        first = self._shared_version(out[0], inputs) if out else None
        if self.view:  # they all look at it, or none does
            versions = [first] * len(out)
        else:
            versions = [first, *[self._shared_version(array, inputs) for array in out[1:]]]
        if not (mode.record and any(x._requires_grad for x in inputs)):
            return tuple([wrap(array, None, 0, version) for array, version in zip(out, versions, strict=True)])
        node = _new(self, inputs, values, mode.anomaly)
        node.outputs = len(out)
        self._keep_for_rules(node, self._plan(1), inputs, None)
        return tuple([wrap(array, node, k, version) for k, (array, version) in enumerate(zip(out, versions, strict=True))])

    def backward(self, node: Node, gradients: list, needs: tuple | None, create_graph: bool) -> tuple[list, bool]:
        """The gradients of the inputs, and whether their arrays are all fresh. See `autograd._walk`."""
        results = self._run_rules(node, gradients, needs, create_graph)
        if node.shapes is not None:
            for k, shape in enumerate(node.shapes):
                if results[k] is not None and results[k].data.shape != shape:
                    results[k] = ops.sum_to(results[k], shape)
        return results, False


def _check_arrays(arrays: Sequence[Any]) -> None:
    """Raise TypeError if something else than an array was given to a forward or a rule: someone has set `.data` to it."""
    for array in arrays:
        backend.device_of(array)


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether arrays of these shapes can be broadcast together."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


class Unary(Primitive[Tensor]):
    """A primitive of one Tensor and nothing else."""

    __call__ = fast_calls.unary


class Binary(Primitive[Tensor]):
    """A primitive of two Tensors and nothing else."""

    __call__ = fast_calls.binary


def _place(function: Callable) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def _kind(value: Any) -> str:
    """What a kernel has returned, for the error that refuses it."""
    return f"({', '.join(type(part).__name__ for part in value)})" if isinstance(value, tuple | list) else f"an object of type {type(value).__name__}"


@dataclass(slots=True, eq=False)
class KernelPair:
    """A forward and a backward on raw arrays for one device.

    forward(*arrays, *values) -> (out, saved); backward(dy, saved, needs) -> one gradient or None per input. `strided`: takes arrays with any
    strides, otherwise they arrive C-contiguous. `fresh`: the gradients it returns share memory with nothing. `readers`: per input, and last for the
    output, the inputs (as bits) whose gradients read its saved array; None: all of them.
    """

    forward: Callable
    backward: Callable | None
    strided: bool
    fresh: bool
    readers: tuple[int, ...] | None = None


class Fused(Op[Result]):
    """An operation with a definition on Tensors and a kernel pair per device. Made by `@fused`.

    outputs: how many the operation returns; differentiable: how many of them, from the first on, carry gradient (None: all).
    """

    def __init__(self, function: Callable[..., Result], outputs: int = 1, differentiable: int | None = None):
        super().__init__(function, outputs > 1)
        self.outputs = outputs
        self.differentiable = outputs if differentiable is None else differentiable
        self._check: Callable | None = None
        self._needs: dict[int, tuple[bool, ...]] = {}

    @property
    def definition(self) -> Callable:
        """The function of Tensors that says what the operation is."""
        return self.function

    def check(self, function: Callable) -> Callable:
        """Decorator: `function(*inputs, *values)` runs before every call and raises for what the operation cannot take."""
        self._check = function
        return function

    def check_shapes(self, function: Callable) -> Callable:
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
        forward: Callable,
        backward: Callable | None,
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
        values = _frozen(self, values)
        arrays: list = []
        array_type = dtype = mixed = None
        mask, bit = 0, 1
        for x in inputs:
            if type(x) is Tensor:
                data = x.data
                arrays.append(data)
                if type(data) is not array_type:
                    if array_type is not None:
                        raise self._mixed_devices(inputs)
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
            raise TypeError(f"{self.name}: the forward of its kernel gives {_kind(made)}; give (out, saved), where saved is a tuple for its backward")
        out, saved = made
        if mode.watched:
            if mode.anomaly:
                check_forward(self.name, arrays, values, out if self.several else (out,))
            if mode.reads is not None:
                mode.reads.extend([(x.version, x.version[0]) for x in inputs if x is not None])
        node = _new(self, inputs, values, mode.anomaly) if mask and mode.record else None
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
            plan = self._plan(mask)
            self._keep_for_rules(node, plan, inputs, results[0])
        else:
            node.inputs = inputs
            node.versions = tuple([None if x is None else x.version[0] for x in inputs])

    def backward(self, node: Node, gradients: list, needs: tuple | None, create_graph: bool) -> tuple[list, bool]:
        """The gradients of the inputs, and whether their arrays are all fresh. See `autograd._walk`."""
        kept = node.kept  # read once: another thread's walk may free the node meanwhile
        if kept is None:
            raise freed(self.name)
        g = gradients[0]
        if g is None:
            g = next(g for g in gradients if g is not None)
        kernel = self.kernels.get("cpu" if type(g.data) is _ndarray else backend.device_of(g.data))
        if kernel is None or kernel.backward is None or create_graph:
            return self._backward_by_definition(node, gradients, needs, create_graph), False
        for counter, then, readers, place in node.guards:
            if counter[0] != then and any(need and readers >> k & 1 for k, need in enumerate(needs or node.needs)):
                what = "its output" if place is None else f"its input {self.names[place]}"
                raise changed_in_place(self.name, what, then, counter[0])
        dy: Any = [g if g is None else g.data if kernel.strided or g.data.flags.c_contiguous else g.data.copy() for g in gradients]
        needs = needs or node.needs
        arrays = kernel.backward(dy[0] if len(dy) == 1 else tuple(dy), kept, needs)
        if not isinstance(arrays, tuple | list) or len(arrays) != len(needs):
            raise TypeError(
                f"{self.name}: the backward of its kernel gives {_kind(arrays)}; give a tuple of one gradient (or None) per input, {len(needs)}"
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
def primitive(function: Callable[..., Result]) -> Primitive[Result]: ...
@overload
def primitive(**options: Any) -> Callable[[Callable[..., Result]], Primitive[Result]]: ...
def primitive(function: Callable | None = None, **options: Any) -> Any:
    """Decorator: make a function on arrays a primitive operation on Tensors. Options: see Primitive."""

    def make(function: Callable) -> Primitive:
        inputs = tuple([p.name if p.annotation in ("Tensor", Tensor) else None for p in inspect.signature(function).parameters.values()])
        one_result = not options.get("view") and not options.get("several")
        kind = {("x",): Unary, ("x", "y"): Binary}.get(inputs) if one_result else None  # their calls are written for these names
        if kind is None:
            return Primitive(function, **options)
        call = fast_calls.called(kind.__call__, options.get("name") or function.__name__)  # type: ignore[arg-type]
        return type(kind.__name__, (kind,), {"__call__": call})(function, **options)

    return make if function is None else make(function)


@overload
def fused(function: Callable[..., Result]) -> Fused[Result]: ...
@overload
def fused(**options: Any) -> Callable[[Callable[..., Result]], Fused[Result]]: ...
def fused(function: Callable | None = None, **options: Any) -> Any:
    """Decorator: make a function on Tensors the definition of a fused operation. Options: see Fused."""
    return (lambda f: Fused(f, **options)) if function is None else Fused(function)


from minigrad import ops  # noqa: E402  (the intended cycle: see tensor.py)
