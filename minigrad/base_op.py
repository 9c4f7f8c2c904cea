"""What every operation has, a primitive or a fused one: a name, a signature, derivative rules, and what a node keeps for them.

An operation is an object that one calls like a function. It binds the arguments (`_bind`), keeps settings as they are at the call (`frozen`), and
where an input requires grad leaves a `Node` (`new_node`). For its rules the node keeps what their argument names say (`_plan`, `_keep_for_rules`);
in backward they are run with that (`_run_rules`). What else happens in a call: see `primitive_op.py` and `fused_op.py`, in this order.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, TypeVar

import numpy as np

from minigrad import backend
from minigrad.modes import MODE, caller_site
from minigrad.node import Node, changed_in_place, freed, node_numbers
from minigrad.tensor import Tensor, wrap

__all__ = ["REGISTRY", "Op"]

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

    Parameters annotated with Tensor are the inputs and come first; the others are plain values. `constants`: names, with blanks between, of inputs
    that are constants by contract; one that requires grad is refused, as it would lose its gradient without a word.
    """

    takes_sequences = False  # see Primitive
    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Result], several: bool = False, name: str | None = None, constants: str = ""):
        self.name = name or function.__name__
        self.function = function
        self.several = several  # whether it returns a tuple
        self.kernels: dict[str, Any] = {}  # by device; only a fused operation gets any
        functools.update_wrapper(self, function, updated=())  # type: ignore[arg-type]  # inspect finds the signature and the source
        parameters = list(inspect.signature(function).parameters.values())
        if other := [p.name for p in parameters if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]:
            raise TypeError(f"{self.name}: {other[0]} cannot be given by its place; an operation's parameters can (a def without * and **)")
        is_input = ["Tensor" in str(p.annotation) for p in parameters]
        self.count = sum(is_input)
        if not self.count:
            raise TypeError(f"{self.name}: none of its parameters is an input; annotate its inputs with Tensor (a primitive's body is given arrays)")
        if not all(is_input[: self.count]):
            raise TypeError(f"{self.name}: parameters annotated with Tensor come first")
        sequences = [p.name for p in parameters[: self.count] if "Sequence" in str(p.annotation)]
        self.variadic = bool(sequences)
        if sequences and not (self.takes_sequences and self.count == 1):
            raise TypeError(f"{self.name}: {sequences[0]} is a Sequence[Tensor], which only a primitive can take, and as its only input")
        self.names = [p.name for p in parameters]
        self._position = {name: k for k, name in enumerate(self.names)}
        self._defaults = tuple(p.default for p in parameters)
        self._optional = tuple("None" in (kind := str(p.annotation)) or "Optional" in kind or p.default is None for p in parameters)
        self._required = sum(default is inspect.Parameter.empty for default in self._defaults)
        self.advice = ""  # what is added where arguments do not fit
        self.rules: dict[str, Callable] = {}
        self.array_rules: dict[str, Callable] = {}
        self._plans: dict[int, _Plan] = {}
        self.constants = self._bits(constants.split())
        self.with_gradient = 0  # bits of the inputs that have a gradient: an output requires grad for these alone
        known = REGISTRY.get(self.name)
        if known is not None and _place(known.function) != _place(function):  # not a notebook's cell, run again
            raise ValueError(f"there is an operation {self.name} already, from {known.__module__}; give this one another name")
        REGISTRY[self.name] = self

    def __repr__(self) -> str:
        signature = inspect.signature(self.function)
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
        return f"<{type(self).__name__.lower()} {self.name}{inspect.Signature(plain)}>"

    def __reduce__(self) -> str:
        """For copies and pickles: an operation is known by its name in its module, as a function is, and there is one of it."""
        return self.__qualname__

    def derivative(self, **rules: Callable[..., Any]) -> None:
        """State the gradient of inputs: `name=lambda g, ...`, see the top of `op.py`."""
        bits = self._bits({**self.rules, **rules})
        for name, rule in rules.items():
            if self._bits([name]) & self.constants:
                raise TypeError(f"{self.name}: {name} is declared a constant, which has no derivative rule")
            if not inspect.signature(rule).parameters:
                raise TypeError(f"{self.name}: the rule of {name} asks for nothing, not even for g, the gradient of the output")
        self.rules, self.array_rules = {**self.rules, **rules}, {}
        self.with_gradient = -1 if self.variadic else bits  # -1: all of them
        self._plans.clear()

    def _bits(self, names: Collection[str]) -> int:
        """Inputs by their names, as a number with a bit for each."""
        inputs = self.names[: self.count]
        unknown = [name for name in names if name not in inputs]
        if unknown:
            raise TypeError(f"{self.name}: no input is called {unknown[0]}; there is {', '.join(inputs)}")
        return sum(1 << inputs.index(name) for name in names)

    def on_arrays(self, **rules: Callable[..., Any]) -> None:
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

    def _mixed_devices(self, devices: Iterable[str]) -> TypeError:
        return TypeError(f"{self.name}: inputs are on {' and '.join(dict.fromkeys(devices))}; move them to one device with .to(device=...)")

    # --- recording

    def _sources(self, inputs: Sequence[Any], mask: int) -> Sequence[Any]:
        """The inputs that a gradient goes to, None for the others; for calls in which one of the others requires grad (their bits are in `mask`).

        Raises ValueError if that is a constant.
        """
        self._refuse_constants(mask)
        return [x if self.with_gradient >> k & 1 else None for k, x in enumerate(inputs)]

    def _refuse_constants(self, mask: int) -> None:
        for k, name in enumerate(self.names):
            if mask & self.constants & 1 << k:
                raise ValueError(f"{self.name}: {name} is a constant here, and would get no gradient; pass {name}.detach()")

    def _plan(self, mask: int) -> _Plan:
        """The plan for the inputs whose bits are set in `mask`."""
        plan = self._plans.get(mask)
        if plan is None:
            plan = self._plans[mask] = self._make_plan(mask)
        return plan

    def _make_plan(self, mask: int) -> _Plan:
        inputs, values = self.names[: self.count], self.names[self.count :]
        chosen = [k for k, name in enumerate(inputs) if mask >> k & 1 and name in self.rules]
        wanted = list(dict.fromkeys(a for k in chosen for a in inspect.signature(self.rules[inputs[k]]).parameters if a != "g"))
        kept = [] if self.variadic else inputs  # of a sequence, only facts
        saves = [a for a in wanted if a in kept]
        known = {f"{name}_{what}": (k, what) for k, name in enumerate(inputs) for what in ("shape", "dtype", "device")}
        facts = [a for a in wanted if a in known]
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
                places = [environment.index(a) for a in names]
                pick = itemgetter(*places) if len(places) != 1 else itemgetter(slice(places[0], places[0] + 1))  # of one: a list, too
                found.append((k, rule, names == ["g"], pick))
            return tuple(found)

        return _Plan(
            tuple(inputs.index(a) for a in saves),
            tuple(known[a] for a in facts),
            "out" in wanted,
            with_pickers(self.rules),
            with_pickers(self.array_rules) if self.array_rules else (),
        )

    def _keep_for_rules(self, node: Node, plan: _Plan, inputs: Sequence[Any], out: Any) -> None:
        """Note in the node what the rules will read. out: the result, a Tensor; of several, none is kept."""
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
        node.out = (out.data, out.version, out.version[0]) if plan.out else None

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
            check_arrays([tensor.data for tensor in saved])
            raise TypeError(
                f"{self.name}: a derivative rule on arrays gives an object of type {type(x).__name__}; it computes with arrays and gives one"
            )
        return x


_FIXED = frozenset({int, float, bool, str, type(None), type(...), slice})  # what nobody can change later (a slice: see `plain_index`)


def frozen(op: Op, values: tuple) -> tuple:
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


def new_node(op: Op, inputs: Sequence[Any], values: tuple, anomaly: bool) -> Node:
    """A node with what every operation records. inputs: see `Op._sources`."""
    node = _new_node(Node)
    node.op = op
    node.edges = tuple([None if x is None or not x._requires_grad else (x, 0) if x.node is None else (x.node, x.output) for x in inputs])
    node.values = values
    node.outputs = 1
    node.order = next(node_numbers)
    node.site = caller_site() if anomaly else None
    node.shapes = None
    return node


def check_arrays(arrays: Sequence[Any]) -> None:
    """Raise TypeError if something else than an array was given to a forward or a rule: someone has set `.data` to it."""
    for array in arrays:
        backend.device_of(array)


def kind_of(value: Any) -> str:
    """What a forward or a backward has returned, for the error that refuses it."""
    return f"({', '.join(type(part).__name__ for part in value)})" if isinstance(value, tuple | list) else f"an object of type {type(value).__name__}"


def _place(function: Callable) -> tuple[str, str]:
    return function.__module__, function.__qualname__
