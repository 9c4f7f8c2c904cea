"""checkpoint: keep none of a function's intermediate arrays, and run it again when its derivative is asked for. Read first: `autograd.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minigrad import ops, random
from minigrad.autograd import differentiate
from minigrad.backend.cublas import current_precision, precision
from minigrad.modes import MODE, Mode, caller_site, mode
from minigrad.node import Node, changed_in_place, edge_of, freed, node_numbers
from minigrad.tensor import Tensor, wrap

__all__ = ["checkpoint"]


class _Checkpoint:
    """The operation behind `checkpoint`: its definition is the function, and that is all it has."""

    name = "checkpoint"

    def __init__(self, function: Callable, shapes: list, steps: list, captured: list, reads: list, draws: Any, draws_end: int, mode_then: Mode):
        self.function, self.shapes, self.steps, self.captured = function, shapes, steps, captured
        self.draws, self.draws_end, self.mode, self.precision = draws, draws_end, mode_then, current_precision()
        self.reads = [(counter, counter[0]) for counter, _ in reads]
        self.written = {id(counter) for counter, then in reads if counter[0] != then}  # by the function, after it had read it

    def again(self, *inputs: Any) -> Any:
        """Run the function a second time; raise if it is visibly not the function that it was."""
        reads: list[tuple[list, int]] = []
        with mode(reads=reads if self.written else None), precision(self.precision):
            outputs, steps, _ = _run(self.function, inputs, self.captured)
        # A tensor that the function has made is another one in each run. No id is used again: self.reads keeps the first run's counters.
        if any(id(counter) in self.written for counter, _ in reads):
            raise RuntimeError(
                "checkpoint: the function reads a tensor from outside and then writes into it, so that its second run reads other numbers than its "
                "first; let it write into a copy"
            )
        shapes, draws_end = _shapes(_listed(outputs)), random.get_counter().draw
        if shapes != self.shapes:
            raise RuntimeError(
                f"checkpoint: the function made outputs of shapes {shapes} in its second run, {self.shapes} in its first; "
                "it must do the same both times"
            )
        if steps != self.steps or draws_end != self.draws_end:
            first = self.draws.draw
            other = _difference(self.steps, steps) or f"random draws: {self.draws_end - first} then, {draws_end - first} now"
            raise RuntimeError(
                f"checkpoint: the function did something else in its second run, in backward, than in its first ({other}); until backward is done, "
                "leave train() and eval(), requires_grad and all that it captures (a loop's variable, too) as they were"
            )
        return outputs

    def backward(self, node: Node, gradients: list, needs: tuple | None, create_graph: bool) -> tuple[list, bool]:
        inputs = node.inputs  # read once: another thread's walk may free the node meanwhile
        if inputs is None:
            raise freed(self.name)
        if needs is None:
            needs = tuple([edge is not None for edge in node.edges])
        count = len(inputs)
        for counter, then in self.reads:
            if counter[0] != then:
                what = "a tensor that the function used (batch norm's statistics are some, and move with each forward pass in training mode)"
                raise changed_in_place(self.name, what, then, counter[0])
        own, others = needs[:count], [edge for edge, need in zip(self.captured, needs[count:], strict=True) if need]
        now = random.get_counter()
        before = MODE.get()
        try:
            random.set_counter(self.draws)
            MODE.set(replace(before, recomputing=True, definitions=self.mode.definitions, reads=None))
            results, rest = differentiate(self.again, inputs, gradients, own, create_graph, others)
        finally:
            MODE.set(before)
            random.set_counter(now)
        remaining = iter(rest)
        return results + [next(remaining) if need else None for need in needs[count:]], False


def _listed(outputs: Any) -> list:
    """What a checkpointed function returned, as a list. Raises TypeError for anything in which a Tensor could hide from the graph."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if type(outputs) not in (tuple, list):
        found = "None" if outputs is None else f"a {type(outputs).__name__}"
        raise TypeError(f"checkpoint: the function returned {found}; return a Tensor or a tuple of Tensors")
    for y in outputs:
        if isinstance(y, tuple | list | set | Mapping):
            found = f"a {type(y).__name__} inside a {type(outputs).__name__}"
            raise TypeError(f"checkpoint: the function returned {found}; return a Tensor or a tuple of Tensors")
    return list(outputs)


def _shapes(outputs: Sequence[Any]) -> list:
    return [y.shape if isinstance(y, Tensor) else None for y in outputs]


def _run(function: Callable, inputs: Sequence[Any], captured: Sequence[tuple] = ()) -> tuple[Any, list[tuple], list[tuple]]:
    """Run `function(*inputs)`, each input that requires grad entering through a node of its own.

    captured: what an earlier run captured. Returns the outputs; what was done (see `_steps`); and the edges that lead out of the part of the graph
    that the function made, other than to its inputs: those that it captured.
    """
    shells = [ops.identity(x) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs]
    start = next(node_numbers)
    outputs = function(*shells)
    entrances = [(x.node, 0) for x in shells if isinstance(x, Tensor) and x.requires_grad]
    ends: dict[tuple, int] = {edge: number for number, edge in enumerate([*entrances, *captured])}  # type: ignore[misc]
    steps = _steps(_listed(outputs), ends, start)
    return outputs, steps, list(ends)[len(entrances) :]


def _steps(outputs: list, ends: dict[tuple, int], start: int) -> list[tuple]:
    """What gradients will pass through on their way from the outputs, equal for two runs that did the same; it keeps no array alive.

    First where the outputs come from, then each operation: its name, its own steps if it is a checkpoint, the shapes of the tensors that it keeps,
    and where its inputs come from: (number of an operation, which output of it), the number of one of the `ends`, or None where no gradient goes.

    ends: edges, numbered; more of them are added as they are met, all that lead to leaves or to nodes numbered below `start`.
    """
    numbers: dict[Node, int] = {}
    stack: list[Node] = []

    def origin(edge: tuple | None) -> tuple | int | None:
        if edge is None:
            return None
        target, output = edge
        if type(target) is not Node or target.order < start:
            return ends.setdefault(edge, len(ends))
        number = numbers.get(target)
        if number is None:
            number = numbers[target] = len(numbers)
            stack.append(target)
        return number, output

    steps: list[tuple] = [("", (), (), [origin(edge_of(y)) if isinstance(y, Tensor) else None for y in outputs])]
    while stack:
        node = stack.pop()
        kept = getattr(node, "saved", None) or getattr(node, "inputs", None) or ()  # a node has the one or the other
        inner = node.op.steps if type(node.op) is _Checkpoint else ()
        steps.append((node.op.name, inner, _shapes(kept), [origin(edge) for edge in node.edges]))
    return steps


def _names(steps: Sequence[tuple]) -> Iterator[str]:
    for name, inner, _, _ in steps:
        yield name
        yield from _names(inner)


def _difference(then: list[tuple], now: list[tuple]) -> str | None:
    """Which operation occurs more often in one of two runs, in words; None if they are the same."""
    if then == now:
        return None
    before, after = Counter(_names(then)), Counter(_names(now))
    for name in before | after:
        if before[name] != after[name]:
            return f"{name}: {before[name]} then, {after[name]} now"
    return "the same operations on other inputs"


def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """Run `function(*inputs)` now, keep none of its intermediate arrays, and run it again when the derivative is asked for.

    Trades time for memory: only the inputs stay alive. Gradients reach the inputs and every tensor the function captured (parameters of modules). The
    second run makes the same random draws, multiplies matrices in the same `precision`, and leaves the running statistics of batch norm alone; the
    function must otherwise do the same both times: until backward is done, leave `train()` and `eval()`, `requires_grad` and all that it captures as
    they were. The two runs are compared by the operations that gradients pass through, the shapes that these keep, the tensors they start from (so a
    function must not make tensors that require grad on its own) and the number of draws; other numbers in a tensor that is merely another one are not
    noticed.

    Args:
        function: takes the inputs, returns a Tensor or a tuple or list of Tensors (and of things that hold none, such as numbers).
        inputs: Tensors, or anything else that is passed on as it is.

    Raises:
        TypeError: the function returned something else, for example a dict. RuntimeError, in backward: a tensor that the function read was written
            in place since, by the function itself too unless it had made it, or the second run visibly did something else than the first.

    Source: https://docs.pytorch.org/docs/stable/checkpoint.html (the non-reentrant kind)
    """
    current = MODE.get()
    if not current.record:
        outputs = function(*inputs)
        _listed(outputs)
        return outputs
    reads: list[tuple[list, int]] = []
    draws = random.get_counter()._replace(seed=random.get_seed())
    try:
        MODE.set(replace(current, reads=reads))
        outputs, steps, captured = _run(function, inputs)
    finally:
        MODE.set(current)
    if current.reads is not None:
        current.reads.extend(reads)
    results = _listed(outputs)

    edges = tuple([edge_of(x) if isinstance(x, Tensor) else None for x in inputs])
    node = Node()
    node.op = _Checkpoint(function, _shapes(results), steps, captured, reads, draws, random.get_counter().draw, current)
    node.edges = (*edges, *captured)
    node.outputs, node.order, node.site = len(results), next(node_numbers), caller_site() if current.anomaly else None
    node.inputs, node.values = inputs, ()
    wrapped = [wrap(y.data, node, k, y.version) if isinstance(y, Tensor) and y.requires_grad else y for k, y in enumerate(results)]
    return wrapped[0] if isinstance(outputs, Tensor) else type(outputs)(wrapped)
