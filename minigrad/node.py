"""What a graph is made of: an operation on tensors that require grad leaves a `Node`.

It says which operation it was, where its inputs came from (the edges), and keeps the arrays that the derivative will read. Nodes point to what they
were made from, never the other way round, so a graph goes when its results go. Read before: `op.py`, and `base_op.py`, which makes nodes; next:
`walk.py`, which walks over them.
"""

from __future__ import annotations

import itertools
from typing import Any

__all__ = ["Node", "changed_in_place", "edge_of", "freed", "node_numbers"]


class Node:
    """One recorded operation.

    Attributes:
        op: what made it: has a `name` and `backward(node, gradients, needs, create_graph)`.
        edges: per input `(target, output)`, where its gradient goes: target is the Node that made it, or the leaf Tensor itself; None where none
            is wanted.
        outputs: how many outputs the operation has.
        order: nodes are numbered as they are made, so each is younger than all that its edges lead to.
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
"""Where a node's `order` comes from, once its edges are known."""


def edge_of(tensor: Any) -> tuple | None:
    """Where the gradient of `tensor` goes: to the node that made it, to the leaf, or nowhere."""
    if not tensor._requires_grad:
        return None
    return (tensor, 0) if tensor.node is None else (tensor.node, tensor.output)


def changed_in_place(op_name: str, what: str, then: int, now: int) -> RuntimeError:
    """The error of an operation whose derivative would read what was written since: `what` says which array, then and now are its versions."""
    return RuntimeError(
        f"backward of {op_name}: {what}, which its derivative reads, was written in place after the forward pass (version {then} then, {now} now); "
        "write before the forward pass, or to a copy"
    )


def freed(op_name: str) -> RuntimeError:
    """The error of a second walk over a node that let go of its arrays in the first."""
    return RuntimeError(f"backward of {op_name}: its saved arrays were freed by an earlier backward pass; pass retain_graph=True to that one")
