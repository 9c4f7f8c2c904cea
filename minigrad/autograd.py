"""The engine: what a graph is made of, and the walk that differentiates it.

An operation on tensors that require grad leaves a `Node`: which operation it was, where its inputs came from (the edges), and the arrays its
derivative will read. `backward()` walks the nodes from the result back to the leaves, every node once, after all the nodes that used its output.
Read `op.py` first, and `base_op.py`, which makes the nodes and runs the rules; this file only calls `node.op.backward`. Read next: `checkpoint.py`.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.modes import MODE, check_gradients, check_sum, in_backward
from minigrad.tensor import Tensor, wrap

__all__ = ["Node", "backward", "differentiate", "edge_of", "grad"]

# --- the graph


class Node:
    """One recorded operation.

    Attributes:
        op: what made it: has a `name` and `backward(node, gradients, needs, create_graph)`.
        edges: per input `(target, output)`, where its gradient goes: target is the Node that made it, or the leaf Tensor itself; None where none
            is wanted.
        outputs: how many outputs the operation has.
        order: nodes are numbered as they are made.
        site: the caller's `file:line` in anomaly mode, else None.
        values: the plain arguments of the call.
        plan, saved, versions, facts, out: what derivative rules read (see `base_op.Op`). saved: input Tensors; versions: of these; out: the output's
            raw array, its version counter and version (never its Tensor: that would be a cycle).
        inputs, kept, guards, needs: for fused operations: the input Tensors, what the kernel saved, the (version counter, version, readers, place) of
            inputs and outputs among it (see `fused_op.KernelPair`), and which inputs want a gradient.
        shapes: of the inputs, where the operation broadcast them.
    """

    __slots__ = (
        "edges", "facts", "guards", "inputs", "kept", "needs", "op", "order", "out", "outputs", "plan", "saved", "shapes", "site", "values",
        "versions",
    )  # fmt: skip

    op: Any
    edges: tuple
    values: tuple
    plan: Any
    saved: Any
    versions: tuple
    facts: tuple
    out: Any
    inputs: Any
    kept: Any
    guards: list
    needs: tuple
    shapes: Any
    outputs: int
    order: int
    site: str | None

    def free(self) -> None:
        """Let go of the arrays. The edges stay, so that a second walk can say what is wrong."""
        self.saved = self.inputs = self.kept = self.out = None


node_numbers = itertools.count()


def edge_of(tensor: Tensor) -> tuple | None:
    """Where the gradient of `tensor` goes: to the node that made it, to the leaf, or nowhere."""
    if not tensor._requires_grad:
        return None
    return (tensor, 0) if tensor.node is None else (tensor.node, tensor.output)


def changed_in_place(op_name: str, what: str, then: int, now: int) -> RuntimeError:
    return RuntimeError(
        f"backward of {op_name}: {what}, which its derivative reads, was written in place after the forward pass (version {then} then, {now} now); "
        "write before the forward pass, or to a copy"
    )


def freed(op_name: str) -> RuntimeError:
    return RuntimeError(f"backward of {op_name}: its saved arrays were freed by an earlier backward pass; pass retain_graph=True to that one")


# --- the walk


def _array(x: Any) -> Any:
    """x, as an array where NumPy has made a scalar of 0-d arrays (`np.asarray` alone would reach into the arrays of other devices)."""
    return np.asarray(x) if isinstance(x, np.generic) else x


class _Sum:
    """A running sum of gradients in an array that belongs to the walk alone, so that it may be added to in place."""

    __slots__ = ("data",)

    def __init__(self, first: Tensor, second: Tensor):
        self.data = _array(backend.add(first.data, second.data))


def _add(total: Any, gradient: Tensor, create_graph: bool) -> Any:
    """Add a contribution. The first is borrowed and never written; the second makes a sum that the walk owns; later ones are added into it."""
    if total is None:
        return gradient
    if create_graph:
        return total + gradient
    if type(total) is _Sum:
        backend.add(total.data, gradient.data, out=total.data)
        return total
    return _Sum(total, gradient)


def _as_tensor(total: Any) -> Tensor:
    return wrap(total.data) if type(total) is _Sum else total


def _count_uses(roots: list[Node], stops: set[Node]) -> dict[Node, int]:
    """Every node below the roots, with the number of edges that lead to it. The walk handles a node when all of these have been followed."""
    uses = dict.fromkeys(roots, 0)
    stack = list(uses)
    while stack:
        node = stack.pop()
        if node in stops:
            continue
        for edge in node.edges:
            if edge is not None:
                target = edge[0]
                if type(target) is Node:
                    if target in uses:
                        uses[target] += 1
                    else:
                        uses[target] = 1
                        stack.append(target)
    return uses


def _leads_to(uses: dict[Node, int], targets: set[tuple], stops: set[Node]) -> set[Node]:
    """The nodes from which a target can be reached: the only ones that `grad()` has to differentiate."""
    order, left = [], dict(uses)
    ready = [node for node, count in left.items() if count == 0]
    while ready:
        node = ready.pop()
        order.append(node)
        if node in stops:
            continue
        for edge in node.edges:
            if edge is not None and type(edge[0]) is Node:
                left[edge[0]] -= 1
                if left[edge[0]] == 0:
                    ready.append(edge[0])
    useful: set[Node] = set()
    for node in reversed(order):
        if node not in stops and any(edge is not None and (edge in targets or edge[0] in useful) for edge in node.edges):
            useful.add(node)
    return useful


def _watched_backward(node: Node, slots: list, needs: tuple | None, create_graph: bool) -> tuple[list, bool]:
    """The backward of a node in anomaly mode."""
    try:
        results, fresh = node.op.backward(node, slots, needs, create_graph)
    except FloatingPointError as error:
        raise in_backward(error, node) from None
    check_gradients(node, slots, results)
    return results, fresh


def _walk(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    retain_graph: bool,
    create_graph: bool,
    targets: Sequence[tuple] | None = None,
    stop: bool = False,
) -> dict[tuple, list]:
    """Carry gradients from the outputs down to the targets (edges), or to all leaves if targets is None.

    With `stop` the walk ends at the targets instead of going on below them. Returns {edge: [gradient (a Tensor, or a _Sum), fresh]}, where fresh
    says that the array of a leaf is not shared with anything. (Edges are good dictionary keys: nodes and Tensors hash by identity.)
    """
    wanted = None if targets is None else set(targets)
    stops = {edge[0] for edge in targets if type(edge[0]) is Node} if stop and targets is not None else set()
    found: dict[tuple, list] = {}
    pending: dict[Node, list] = {}

    def arrive(edge: tuple, gradient: Tensor, fresh: bool) -> None:
        target, output = edge
        if type(target) is not Node:
            if wanted is None or edge in wanted:
                entry = found.get(edge)
                if entry is None:
                    found[edge] = [gradient, fresh]
                else:
                    entry[0], entry[1] = _add(entry[0], gradient, create_graph), True
        elif target in pending:
            slots = pending[target]
            slots[output] = _add(slots[output], gradient, create_graph)
        elif target.outputs == 1:
            pending[target] = [gradient]
        else:
            slots = pending[target] = [None] * target.outputs
            slots[output] = gradient

    for tensor, gradient in zip(outputs, gradients, strict=True):
        edge = edge_of(tensor)
        if edge is not None:
            arrive(edge, gradient, False)

    uses = _count_uses(list(pending), stops)
    useful = None if wanted is None else _leads_to(uses, wanted, stops)
    ready = [node for node, count in uses.items() if count == 0]
    before = MODE.get()
    watch = before.anomaly
    needs = None  # all of them, unless only some targets are wanted
    try:
        MODE.set(replace(before, record=create_graph))
        while ready:
            node = ready.pop()
            slots = pending.pop(node, None)
            if wanted is not None:
                for output, gradient in enumerate(slots or ()):
                    if gradient is not None and (node, output) in wanted:
                        found[node, output] = [gradient, False]  # of an interior tensor nobody asks whether it is fresh
                if node in stops:
                    continue
                needs = tuple([edge is not None and (edge in wanted or edge[0] in useful) for edge in node.edges])  # type: ignore[operator]
            if slots is None or (needs is not None and True not in needs):
                results, fresh = itertools.repeat(None), False  # nothing to carry on, but the nodes below must still be counted down
            else:
                for output, total in enumerate(slots):
                    if type(total) is _Sum:
                        slots[output] = wrap(total.data)
                        if watch:
                            check_sum(total.data, node.site, f"the output of {node.op.name}")
                if watch:
                    results, fresh = _watched_backward(node, slots, needs, create_graph)
                else:
                    results, fresh = node.op.backward(node, slots, needs, create_graph)
                if not retain_graph:
                    node.free()
            for edge, gradient in zip(node.edges, results):  # noqa: B905 (one result per edge, or None for ever)
                if edge is not None:
                    target = edge[0]
                    if type(target) is not Node:
                        if gradient is not None:
                            arrive(edge, gradient, fresh)
                        continue
                    if gradient is not None:
                        if target.outputs == 1 and target not in pending:  # what `arrive` would do, without the call
                            pending[target] = [gradient]
                        else:
                            arrive(edge, gradient, fresh)
                    uses[target] = left = uses[target] - 1
                    if not left:
                        ready.append(target)
    finally:
        MODE.set(before)
    if watch:
        for (target, _), (total, _) in found.items():
            if type(total) is _Sum and type(target) is not Node:
                check_sum(total.data, None, "a leaf")
    return found


# --- the two public entrances


def _start_gradients(outputs: Sequence[Tensor], gradients: Sequence[Any], name: str) -> list[Tensor]:
    """The gradients the walk starts with: checked, in the dtype of their outputs; ones for scalars where none is given."""
    if len(outputs) != len(gradients):
        raise ValueError(f"{name}: {len(outputs)} outputs but {len(gradients)} gradients for them; give one per output")
    starts = []
    for tensor, gradient in zip(outputs, gradients, strict=True):
        if not tensor._requires_grad:
            raise RuntimeError(
                f"{name}: the output of shape {tensor.shape} does not require grad: nothing it was computed from does, or it was made under no_grad"
            )
        if gradient is None:
            if tensor.size != 1:
                raise ValueError(
                    f"{name}: the output has shape {tensor.shape}; only for a single number is the gradient 1 implied, pass one of that shape"
                )
            start = wrap(np.ones_like(tensor.data))
        else:
            start = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
            if start.shape != tensor.shape:
                raise ValueError(f"{name}: the gradient has shape {start.shape}, its output {tensor.shape}")
            if start.device != tensor.device:
                raise TypeError(f"{name}: the gradient is on {start.device}, its output on {tensor.device}; move one with .to(device=...)")
            start = start.astype(tensor.dtype)
        starts.append(start)
    return starts


def _refuse_misfit(name: str, x: Tensor, total: Any) -> None:
    """Raise if a gradient has not the shape and dtype of what it is the gradient of: an operation on the way has a wrong derivative."""
    data, gradient = x.data, total.data
    if type(gradient) is not type(data):
        backend.device_of(data)  # raises where `.data` was set to something that is no array
    if gradient.shape != data.shape or gradient.dtype != data.dtype:
        raise ValueError(
            f"{name}: the gradient of a tensor of shape {data.shape}, {data.dtype}, came out as {gradient.shape}, {gradient.dtype}: it was converted "
            "since the forward pass, or a derivative rule or kernel on the way is wrong (gradcheck finds which)"
        )


# Two threads that add to one `.grad` at once would lose one of the gradients. Reentrant: a debugger's `quit` where the block is left keeps it locked,
# and this thread's next backward would wait for ever.
_collecting = threading.RLock()


def _forget_lock() -> None:
    """In a forked child: a thread that held the lock is not there to release it."""
    global _collecting
    _collecting = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_lock)


def backward(tensor: Tensor, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
    """Add d(tensor)/d(leaf), weighted by `gradient`, to `.grad` of every leaf that requires grad.

    All or nothing: `.grad` is written when the whole walk has succeeded and all memory is there. If something raises on the way, every `.grad` is as
    it was (an interrupt can fall while they are written, too); the part of the graph that the walk had passed is freed (with retain_graph, nothing
    is), so run the forward pass again.

    Args:
        tensor: where to start, usually a loss.
        gradient: weights of `tensor`'s shape (d(something)/d(tensor)); may be left out for a single number.
        retain_graph: keep the saved arrays for another pass; without it they are freed as the walk passes.
        create_graph: make `.grad` differentiable itself (the definitions of the fused operations are differentiated, at any order).

    Raises:
        ValueError: gradient missing or of another shape, a `.grad` that does not fit its leaf, or a rule or kernel on the way whose gradient has not
            the shape or dtype of its input. RuntimeError: no graph, a freed one, or an array that was written in place after the forward pass.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html
    """
    starts = _start_gradients([tensor], [gradient], "backward")
    found = _walk([tensor], starts, retain_graph or create_graph, create_graph)
    with _collecting:
        for (leaf, _), (total, _) in found.items():
            _refuse_misfit("backward", leaf, total)
            old, data = leaf.grad, leaf.data
            if old is not None and not isinstance(old, Tensor):
                raise TypeError(f"backward: the .grad of a leaf of shape {data.shape} is a {type(old).__name__}; give a Tensor, or None")
            if old is not None and not (type(old.data) is type(data) and old.data.shape == data.shape and old.data.dtype == data.dtype):
                raise ValueError(
                    f"backward: the .grad of a leaf of shape {data.shape}, {data.dtype} on {leaf.device}, is of shape {old.shape}, {old.dtype} on "
                    f"{old.device}; nothing can be added to that: set it to None"
                )
        if MODE.get().anomaly:
            for (leaf, _), (total, _) in found.items():
                if leaf.grad is not None:
                    check_sum(_array(leaf.grad.data + total.data), None, "the .grad of a leaf")
        grads = []  # new ones, all of them before the first is kept, as there may be no memory; None where the old one is added to
        for (leaf, _), (total, fresh) in found.items():
            old = leaf.grad
            if create_graph:
                grads.append(_sum_with_graph(old, total))
            elif old is None:
                grads.append(_as_tensor(total) if fresh else wrap(total.data.copy("K")))  # .grad belongs to its leaf alone
            elif old._requires_grad or not getattr(old.data.flags, "writeable", True):
                grads.append(wrap(_array(old.data + total.data)))
            else:
                grads.append(None)
        for (leaf, _), (total, _), new in zip(found, found.values(), grads, strict=True):
            if new is not None:
                leaf.grad = new
            else:
                leaf.grad._bump()
                np.add(leaf.grad.data, total.data, out=leaf.grad.data)


def _sum_with_graph(old: Tensor | None, total: Tensor) -> Tensor:
    """The new `.grad` of a leaf with create_graph, also under `no_grad`; a tensor of its own in any case."""
    before = MODE.get()
    try:
        MODE.set(replace(before, record=True))
        return total * 1.0 if old is None else old + total
    finally:
        MODE.set(before)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> tuple[Tensor, ...]:
    """The gradients of `outputs` with respect to `inputs` (any tensors of the graph, not only leaves); `.grad` is not touched.

    Args:
        outputs: one tensor or several; the gradients of their sum, weighted by grad_outputs.
        inputs: one tensor or several.
        grad_outputs: a weight of each output's shape (None for single numbers).
        create_graph: make the results differentiable themselves.
        retain_graph: keep the saved arrays for another pass; by default only with create_graph.
        allow_unused: give None for an input that the outputs do not depend on, instead of raising.

    Returns:
        A tuple of Tensors, one per input (and None, with allow_unused: the annotation, as PyTorch's, is for the others).

    Raises:
        ValueError: a weight is missing, one too many, or of another shape than its output.
        RuntimeError: an input does not require grad, or the outputs do not depend on it; and what `backward` raises.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad.html
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    weights = [None] * len(outputs) if grad_outputs is None else [grad_outputs] if not isinstance(grad_outputs, list | tuple) else list(grad_outputs)
    starts = _start_gradients(outputs, weights, "grad")
    edges = []
    for number, tensor in enumerate(inputs):
        edge = edge_of(tensor)
        if edge is None:
            raise RuntimeError(f"grad: input {number} of shape {tensor.shape} does not require grad")
        edges.append(edge)
    found = _walk(outputs, starts, create_graph if retain_graph is None else retain_graph, create_graph, targets=edges)
    results: list[Any] = []
    for number, edge in enumerate(edges):
        entry = found.get(edge)
        if entry is None and not allow_unused:
            raise RuntimeError(
                f"grad: the outputs do not depend on input {number} of shape {inputs[number].shape}; allow_unused=True gives None for it"
            )
        if entry is None:
            results.append(None)
        else:
            total, fresh = entry
            _refuse_misfit("grad", inputs[number], total)
            results.append(_as_tensor(total) if fresh or create_graph else wrap(total.data.copy("K")))
            entry[1] = False  # asked for twice, it is copied the second time
    return tuple(results)


# --- differentiating a function by running it again: fused operations without a kernel, any second derivative, checkpoint


def differentiate(
    function: Callable,
    inputs: Sequence[Any],
    gradients: Sequence[Tensor | None],
    needs: Sequence[bool],
    create_graph: bool,
    others: Sequence[tuple] = (),
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Run `function(*inputs)` again, recording, and carry `gradients` (one per output, None where there is none) back to its inputs.

    Each input that needs a gradient enters through a node of its own, at which the walk stops: what lies above belongs to the caller, and a tensor
    passed twice gets two gradients. `others` are more edges to stop at. With create_graph the results stay connected to the inputs. Returns the
    gradients of the inputs and of the others.
    """
    before = MODE.get()
    try:
        MODE.set(replace(before, record=True))
        shells = [ops.identity(x) if need else x for x, need in zip(inputs, needs, strict=True)]
        outputs = function(*shells)
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    finally:
        MODE.set(before)
    pairs = [(y, g) for y, g in zip(outputs, gradients, strict=False) if g is not None and isinstance(y, Tensor) and y.requires_grad]
    edges = [(x.node, 0) if need else None for x, need in zip(shells, needs, strict=True)]
    targets = [edge for edge in edges if edge is not None] + list(others)
    found = _walk([y for y, _ in pairs], [g for _, g in pairs], create_graph, create_graph, targets=targets, stop=True)

    def result(edge: tuple | None) -> Tensor | None:
        entry = None if edge is None else found.get(edge)
        return None if entry is None else _as_tensor(entry[0])

    return [result(edge) for edge in edges], [result(edge) for edge in others]


from minigrad import ops  # noqa: E402  (the intended cycle: see tensor.py)
