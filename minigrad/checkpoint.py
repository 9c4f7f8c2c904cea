"""checkpoint: keep none of a function's intermediate arrays, and run it again when its derivative is asked for. Read first: `autograd.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from minigrad import ops, random
from minigrad.autograd import Node, changed_in_place, differentiate, edge_of, freed, node_numbers
from minigrad.modes import MODE, Mode, caller_site, mode
from minigrad.tensor import Tensor, wrap

__all__ = ["checkpoint"]


class _Checkpoint:
    """The operation behind `checkpoint`: its definition is the function, and that is all it has."""

    name = "checkpoint"

    def __init__(self, function: Callable, shapes: list, reads: list, captured: list, draws: Any, mode_then: Mode):
        self.function, self.shapes, self.captured, self.draws, self.mode = function, shapes, captured, draws, mode_then
        self.reads = [(counter, counter[0]) for counter, _ in reads]
        self.written = {id(counter) for counter, then in reads if counter[0] != then}  # by the function, after it had read it

    def again(self, *inputs: Any) -> Any:
        """Run the function a second time; raise if it is visibly not the function that it was."""
        if self.written:
            outputs = self._run_and_compare(*inputs)
        else:
            outputs = self.function(*inputs)
        shapes = _shapes(_listed(outputs))
        if shapes != self.shapes:
            raise RuntimeError(
                f"checkpoint: the function made outputs of shapes {shapes} in its second run, {self.shapes} in its first; "
                "it must do the same both times"
            )
        return outputs

    def _run_and_compare(self, *inputs: Any) -> Any:
        """Run a function that writes into what it has read: a tensor of its own, which is another one in each run, or the same one in both."""
        reads: list[tuple[list, int]] = []
        with mode(reads=reads):
            outputs = self.function(*inputs)
        if any(id(counter) in self.written for counter, _ in reads):  # no id is used again: self.reads keeps the first run's counters
            raise RuntimeError(
                "checkpoint: the function reads a tensor from outside and then writes into it, so that its second run reads other numbers than its "
                "first; let it write into a copy"
            )
        return outputs

    def backward(self, node: Node, gradients: list, needs: tuple | None, create_graph: bool) -> tuple[list, bool]:
        if node.inputs is None:
            raise freed(self.name)
        if needs is None:
            needs = tuple([edge is not None for edge in node.edges])
        count = len(node.inputs)
        for counter, then in self.reads:
            if counter[0] != then:
                raise changed_in_place(self.name, "a tensor that the function used", then, counter[0])
        own, others = needs[:count], [edge for edge, need in zip(self.captured, needs[count:], strict=True) if need]
        now = random.get_counter()
        before = MODE.get()
        try:
            random.set_counter(self.draws)
            MODE.set(replace(before, recomputing=True, definitions=self.mode.definitions, reads=None))
            results, rest = differentiate(self.again, node.inputs, gradients, own, create_graph, others)
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


def _shapes(outputs: list) -> list:
    return [y.shape if isinstance(y, Tensor) else None for y in outputs]


def _captured(shells: list[Tensor], results: list[Tensor], start: int) -> list[tuple]:
    """What a function captured: the edges that lead out of the part of the graph that it made, the nodes numbered from `start` on.

    shells: its inputs, each through a node of its own, at which the search stops.
    """
    shell_nodes = {x.node for x in shells if x.node is not None}
    made = [y.node for y in results if y.node is not None and y.node.order > start]
    captured: dict[tuple, None] = {}  # an ordered set of edges
    seen = set(made) | shell_nodes
    stack = [node for node in made if node not in shell_nodes]
    for y in results:
        if y.requires_grad and (y.node is None or y.node.order < start):
            captured[edge_of(y)] = None  # type: ignore[index]  # the function returned an outside tensor as it is
    while stack:
        for edge in stack.pop().edges:
            if edge is not None:
                target = edge[0]
                if type(target) is not Node or target.order < start:
                    captured[edge] = None
                elif target not in seen:
                    seen.add(target)
                    stack.append(target)
    return list(captured)


def checkpoint(function: Callable, *inputs: Any) -> Any:
    """Run `function(*inputs)` now, keep none of its intermediate arrays, and run it again when the derivative is asked for.

    Trades time for memory: only the inputs stay alive. Gradients reach the inputs and every tensor the function captured (parameters of modules).
    The second run makes the same random draws and leaves the running statistics of batch norm alone; the function must otherwise do the same both
    times.

    Args:
        function: takes the inputs, returns a Tensor or a tuple or list of Tensors (and of things that hold none, such as numbers).
        inputs: Tensors, or anything else that is passed on as it is.

    Raises:
        TypeError: the function returned something else, for example a dict. RuntimeError, in backward: a tensor that the function read was written
            in place since, by the function itself too unless it had made it, or the second run made outputs of other shapes than the first.

    Source: https://docs.pytorch.org/docs/stable/checkpoint.html (the non-reentrant kind)
    """
    current = MODE.get()
    if not current.record:
        outputs = function(*inputs)
        _listed(outputs)
        return outputs
    reads: list[tuple[list, int]] = []
    draws, start = random.get_counter()._replace(seed=random.get_seed()), next(node_numbers)
    try:
        MODE.set(replace(current, reads=reads))
        shells = [ops.identity(x) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs]
        outputs = function(*shells)
    finally:
        MODE.set(current)
    if current.reads is not None:
        current.reads.extend(reads)
    results = _listed(outputs)

    captured = _captured([x for x in shells if isinstance(x, Tensor)], [y for y in results if isinstance(y, Tensor)], start)

    edges = tuple([edge_of(x) if isinstance(x, Tensor) else None for x in inputs])
    node = Node()
    node.op = _Checkpoint(function, _shapes(results), reads, captured, draws, current)
    node.edges = (*edges, *captured)
    node.outputs, node.order, node.site = len(results), next(node_numbers), caller_site() if current.anomaly else None
    node.inputs, node.values = inputs, ()
    wrapped = [wrap(y.data, node, k, y.version) if isinstance(y, Tensor) and y.requires_grad else y for k, y in enumerate(results)]
    return wrapped[0] if isinstance(outputs, Tensor) else type(outputs)(wrapped)
