"""`backward()` and `grad()`: what starts a walk, and what becomes of the gradients that it finds.

The walk itself is in `walk.py`, to be read before. Here are the checks of what callers can get wrong, the writing of `.grad`, all or nothing and by
one thread at a time, and `differentiate`, a walk over a function that is run again. Read next: `modes.py`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.modes import MODE, check_sum
from minigrad.node import edge_of
from minigrad.tensor import Tensor, wrap
from minigrad.walk import add, walk

__all__ = ["backward", "differentiate", "grad"]


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
    totals, own = walk([tensor], starts, retain_graph or create_graph, create_graph)
    with _collecting:
        _collect(totals, own, create_graph)


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
    totals, own = walk(outputs, starts, create_graph if retain_graph is None else retain_graph, create_graph, targets=edges)
    results: list[Any] = []
    for number, edge in enumerate(edges):
        total = totals.get(edge)
        if total is not None:
            _refuse_misfit("grad", inputs[number], total)
            results.append(total if edge in own or create_graph else wrap(total.data.copy("K")))
            own.discard(edge)  # asked for twice, it is copied the second time
        elif allow_unused:
            results.append(None)
        else:
            raise RuntimeError(
                f"grad: the outputs do not depend on input {number} of shape {inputs[number].shape}; allow_unused=True gives None for it"
            )
    return tuple(results)


# --- writing .grad


# Two threads that add to one `.grad` at once would lose one of the gradients. Reentrant: a debugger's `quit` where the block is left keeps it locked,
# and this thread's next backward would wait for ever.
_collecting = threading.RLock()


def _forget_lock() -> None:
    """In a forked child: a thread that held the lock is not there to release it."""
    global _collecting
    _collecting = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forget_lock)


def _collect(totals: dict[tuple, Tensor], own: set[tuple], create_graph: bool) -> None:
    """Add what a walk has found to `.grad` of each leaf. All that can fail is done before the first is written: the checks, and the new arrays."""
    for (leaf, _), total in totals.items():
        _refuse_misfit("backward", leaf, total)
        old, data = leaf.grad, leaf.data
        if old is None:
            continue
        if not isinstance(old, Tensor):
            raise TypeError(f"backward: the .grad of a leaf of shape {data.shape} is a {type(old).__name__}; give a Tensor, or None")
        if type(old.data) is not type(data) or old.data.shape != data.shape or old.data.dtype != data.dtype:
            raise ValueError(
                f"backward: the .grad of a leaf of shape {data.shape}, {data.dtype} on {leaf.device}, is of shape {old.shape}, {old.dtype} on "
                f"{old.device}; nothing can be added to that: set it to None"
            )
    if MODE.get().anomaly:
        for (leaf, _), total in totals.items():
            if leaf.grad is not None:
                check_sum(add(leaf.grad, total, create_graph=False).data, None, "the .grad of a leaf")
    grads = []  # the new ones; None where the old one is added to
    for edge, total in totals.items():
        old = edge[0].grad
        if create_graph:
            grads.append(_sum_with_graph(old, total))
        elif old is None:
            grads.append(total if edge in own else wrap(total.data.copy("K")))  # .grad belongs to its leaf alone
        elif old._requires_grad or not getattr(old.data.flags, "writeable", True):
            grads.append(add(old, total, create_graph=False))
        else:
            grads.append(None)
    for ((leaf, _), total), new in zip(totals.items(), grads, strict=True):
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


# --- what callers and rules can get wrong


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


def _refuse_misfit(name: str, x: Tensor, total: Tensor) -> None:
    """Raise if a gradient has not the shape and dtype of what it is the gradient of: an operation on the way has a wrong derivative."""
    data, gradient = x.data, total.data
    if type(gradient) is not type(data):
        backend.device_of(data)  # raises where `.data` was set to something that is no array
    if gradient.shape != data.shape or gradient.dtype != data.dtype:
        raise ValueError(
            f"{name}: the gradient of a tensor of shape {data.shape}, {data.dtype}, came out as {gradient.shape}, {gradient.dtype}: it was converted "
            "since the forward pass, or a derivative rule or kernel on the way is wrong (gradcheck finds which)"
        )


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
    totals, _ = walk([y for y, _ in pairs], [g for _, g in pairs], create_graph, create_graph, targets=targets, stop=True)
    return [None if edge is None else totals.get(edge) for edge in edges], [totals.get(edge) for edge in others]


from minigrad import ops  # noqa: E402  (the intended cycle: see tensor.py)
