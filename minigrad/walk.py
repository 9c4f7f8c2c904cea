"""The walk, which carries gradients from the outputs of a graph back to what they are wanted for: the engine itself, all else prepares for it.

Nodes are numbered as they are made, so an edge always leads to something older. Of the nodes that a gradient has reached, the youngest can therefore
get no more of them: it is handled next, and what its operation makes of the sum goes on along its edges. So each node is handled once, and without
recursion. Read before: `node.py`; next: `autograd.py`, which starts walks and keeps what they find.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from operator import attrgetter

import numpy as np

from minigrad import backend
from minigrad.modes import MODE, check_gradients, check_sum, in_backward
from minigrad.node import Node, edge_of
from minigrad.tensor import Tensor, wrap

__all__ = ["add", "walk"]


def walk(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
    targets: Sequence[tuple] | None = None,
    stop: bool = False,
) -> tuple[dict[tuple, Tensor], set[tuple]]:
    """Carry gradients from the outputs down to the targets (edges), or to all leaves if targets is None.

    With `stop` the walk ends at the targets instead of going on below them. Returns the gradients by edge, and the edges whose gradient is an array
    of the walk's own: others are borrowed, and whoever keeps one copies it. (Edges are good dictionary keys: nodes and Tensors hash by identity.)
    """
    wanted = None if targets is None else set(targets)
    stops = {node for node, _ in targets if type(node) is Node} if targets and stop else set()
    totals: dict[tuple, Tensor] = {}  # by edge: the sum of the gradients that have arrived there
    own: set[tuple] = set()  # the edges whose total is an array of the walk's own
    found: dict[tuple, Tensor] = {}  # the totals of targets that are no leaves
    reached: dict[int, Node] = {}  # the nodes that a gradient has reached, by number
    queue: list[int] = []  # these numbers, negative: a heap, which gives the youngest first

    def arrive(edge: tuple, gradient: Tensor, fresh: bool) -> None:
        total = totals.get(edge)
        if total is not None:
            added = add(total, gradient, create_graph, edge in own)
            if added is not total:
                totals[edge] = added
                own.add(edge)
            return
        target, _ = edge
        if type(target) is Node:
            if target.order not in reached:
                reached[target.order] = target
                heappush(queue, -target.order)
        elif wanted is not None and edge not in wanted:
            return
        totals[edge] = gradient
        if fresh:
            own.add(edge)

    for tensor, gradient in zip(outputs, gradients, strict=True):
        edge = edge_of(tensor)
        if edge is not None:
            arrive(edge, gradient, False)

    useful = set() if wanted is None else _leading_to(wanted, reached.values(), stops)
    needs = None  # all gradients of a node, unless only some targets are wanted
    before = MODE.get()
    try:
        MODE.set(replace(before, record=create_graph))
        while queue:
            node = reached.pop(-heappop(queue))
            slots = [totals.pop((node, 0))] if node.outputs == 1 else [totals.pop((node, output), None) for output in range(node.outputs)]
            if before.anomaly:
                _watch_sums(node, slots, own)
            if wanted is not None:
                for output, total in enumerate(slots):
                    if total is not None and (node, output) in wanted:
                        found[node, output] = total
                needs = tuple([edge is not None and (edge in wanted or edge[0] in useful) for edge in node.edges])
                if node in stops or True not in needs:
                    continue
            if before.anomaly:
                results, fresh = _watched_backward(node, slots, needs, create_graph)
            else:
                results, fresh = node.op.backward(node, slots, needs, create_graph)
            if not retain_graph:
                node.free()
            for edge, gradient in zip(node.edges, results):  # noqa: B905 (one result per edge)
                if edge is not None and gradient is not None:
                    arrive(edge, gradient, fresh)
    finally:
        MODE.set(before)
    if before.anomaly:
        for edge, total in totals.items():
            if edge in own:
                check_sum(total.data, None, "a leaf")
    return totals | found, own


def add(total: Tensor, gradient: Tensor, create_graph: bool, own: bool = False) -> Tensor:
    """The sum of gradients that arrive at one place. What a rule gives may be the gradient it was given, or a view of it: so the sum is a new array.
    Where `total` is the walk's `own`, such a sum already or a kernel's fresh array, it is added into.
    """
    if create_graph:
        return total + gradient
    x, y = total.data, gradient.data
    if own and x.shape == y.shape and x.dtype == y.dtype:  # if they differ, a rule or kernel is wrong: the sum will show it
        backend.add(x, y, out=x)
        return total
    array = backend.add(x, y)
    return wrap(np.asarray(array) if isinstance(array, np.generic) else array)  # NumPy makes scalars of 0-d arrays


def _leading_to(targets: set[tuple], roots: Iterable[Node], stops: set[Node]) -> set[Node]:
    """The nodes from which a target can be reached: the only ones that `grad()` has to differentiate."""
    below = set(roots)
    stack = list(below)
    while stack:
        node = stack.pop()
        for edge in () if node in stops else node.edges:
            if edge is not None and type(edge[0]) is Node and edge[0] not in below:
                below.add(edge[0])
                stack.append(edge[0])
    useful: set[Node] = set()
    for node in sorted(below, key=attrgetter("order")):  # the oldest first
        if any(edge is not None and (edge in targets or edge[0] in useful) for edge in node.edges):
            useful.add(node)
    return useful


def _watch_sums(node: Node, slots: list, own: set[tuple]) -> None:
    """In anomaly mode: refuse sums of gradients, of a node that was reached, that are NaN or Inf."""
    for output, total in enumerate(slots):
        if (node, output) in own:
            check_sum(total.data, node.site, f"the output of {node.op.name}")


def _watched_backward(node: Node, slots: list, needs: tuple | None, create_graph: bool) -> tuple[list, bool]:
    """The backward of a node in anomaly mode."""
    try:
        results, fresh = node.op.backward(node, slots, needs, create_graph)
    except FloatingPointError as error:
        raise in_backward(error, node) from None
    check_gradients(node, slots, results)
    return results, fresh
