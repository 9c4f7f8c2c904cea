"""Checking a derivative against finite differences, for anyone who writes a rule or a kernel.

One number decides on a derivative: along a random direction v of the inputs and with random weights u of the outputs, (u . f(x + h v) -
u . f(x - h v)) / 2h must equal the gradient of u . f in direction v. Random weights matter: with a plain sum, the gradients of softmax and of
normalisations vanish and any mistake passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.autograd import grad
from minigrad.modes import definitions, enable_grad
from minigrad.tensor import Tensor

__all__ = ["gradcheck"]


@enable_grad()  # also under no_grad, which would give gradients of 0
def gradcheck(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor],
    *more: Any,
    step: float = 1e-5,
    tolerance: float = 1e-6,
    directions: int = 3,
    order: int = 1,
    seed: int = 0,
) -> bool:
    """Compare the gradients of `function(*inputs)` with central finite differences, and its values with those of its operations' definitions.

    Args:
        function: takes the inputs, returns a Tensor or a tuple of Tensors; must be smooth near the inputs (a kink within `step` gives a false alarm).
        inputs: one float64 Tensor, or a list of them; those that require grad are checked. The settings after it are given by name.
        step: distance of the two evaluations from x, along directions of length 1.
        tolerance: allowed difference, relative to the largest of 1 and both values; of the values, to 1 and the largest of an output.
        directions: how many random directions are tried.
        order: 2 also checks the gradient of the gradient.
        seed: of the random directions and weights.

    Returns:
        True. Raises AssertionError with both values if they differ, or if kernels and definitions do, or if the function or its derivative wrote into
        an input or into the gradient it was given; TypeError if an input that is to be checked is not float64, if inputs are not given as a list, or
        if the function returns something else than Tensors; ValueError if no input is to be checked, or in no direction, or at no distance, or if a
        gradient has not its input's shape and dtype.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.autograd.gradcheck.gradcheck.html (the fast mode)
    """
    if more:
        raise TypeError(f"gradcheck: {1 + len(more)} arguments after the function; give its inputs as a list, gradcheck(f, [x, w]); settings by name")
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [x for x in inputs if x.requires_grad]
    if not checked:
        raise ValueError("gradcheck: none of the inputs requires grad; there is nothing to check")
    for x in checked:
        if x.dtype != np.float64:
            raise TypeError(f"gradcheck: an input of shape {x.shape} is {x.dtype}; finite differences need float64")
    if directions < 1:
        raise ValueError(f"gradcheck: directions is {directions}; in fewer than 1 nothing is compared")
    if not 0 < step < np.inf:
        raise ValueError(f"gradcheck: step is {step}; give a positive number, such as 1e-5")
    generator = np.random.default_rng(seed)
    weights: list[Tensor] = []

    def floats(tensors: Sequence[Tensor]) -> list[Tensor]:
        outputs = function(*tensors)
        outputs = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        for y in outputs:
            if not isinstance(y, Tensor):
                raise TypeError(f"gradcheck: the function returned a {type(y).__name__}; let it return a Tensor or a tuple of Tensors")
        return [y for y in outputs if y.dtype.kind == "f"]

    def weighted(tensors: Sequence[Tensor]) -> Tensor:
        """The sum of the outputs times fixed random weights: one number."""
        outputs = floats(tensors)
        if not outputs:
            raise ValueError("gradcheck: none of the function's outputs is a float Tensor, so nothing has a derivative")
        if not weights:
            weights.extend(Tensor(np.asarray(generator.uniform(0.5, 1.5, y.shape) * generator.choice([-1.0, 1.0], y.shape))) for y in outputs)
        total = (outputs[0] * weights[0]).sum()
        for y, w in zip(outputs[1:], weights[1:], strict=True):
            total = total + (y * w).sum()
        return total

    def direction() -> list[np.ndarray]:
        v = [np.asarray(generator.uniform(0.1, 1.0, x.shape) * generator.choice([-1.0, 1.0], x.shape)) for x in checked]  # no component near 0
        length = np.sqrt(sum(float((part * part).sum()) for part in v))
        return [part / max(length, 1e-300) for part in v]

    def compare(value: Callable, what: str) -> None:
        """`value(tensors)` is one number: compare its gradient with its differences."""
        total = value(inputs)
        gradients = grad(total, checked, allow_unused=True) if total.requires_grad else [None] * len(checked)
        for number in range(directions):
            v = direction()
            analytic = sum(float((g.data * part).sum()) for g, part in zip(gradients, v, strict=True) if g is not None)
            ends = []
            for sign in (step, -step):
                moves = iter(v)
                moved = [Tensor(x.data + sign * next(moves), True) if x.requires_grad else x for x in inputs]
                ends.append(value(moved).item())
            numeric = (ends[0] - ends[1]) / (2 * step)
            if not abs(analytic - numeric) <= tolerance * max(1.0, abs(analytic), abs(numeric)):
                raise AssertionError(
                    f"gradcheck: {what} along direction {number} is {analytic!r} by backward, {numeric!r} by finite differences (step {step})"
                )

    def look_for_writes() -> None:
        """Inputs and upstream gradients belong to the caller: a second use of either would meet other numbers."""
        outputs = [(y, w.data) for y, w in zip(floats(inputs), weights, strict=True) if y.requires_grad]
        upstream = [Tensor(w) for _, w in outputs]
        if outputs:
            grad([y for y, _ in outputs], checked, upstream, allow_unused=True)
        for number, (x, (value, version)) in enumerate(zip(inputs, before, strict=True)):
            declared = x.version[0] != version and not x.requires_grad  # by copy_, such as a running average
            if not declared and not np.array_equal(x.data, value, equal_nan=True):
                raise AssertionError(f"gradcheck: input {number} of shape {x.shape} was written to; compute into an array of your own")
        if not all(np.array_equal(g.data, w) for g, (_, w) in zip(upstream, outputs, strict=True)):
            raise AssertionError("gradcheck: backward wrote into the gradient it was given; compute into an array of your own")

    def compare_with_definitions() -> None:
        """A kernel whose backward belongs to its forward may still compute something else than its operation's definition."""
        found = floats(inputs)
        with definitions():
            expected = floats(inputs)
        for number, (y, right) in enumerate(zip(found, expected, strict=True)):
            if y.shape != right.shape:
                raise AssertionError(f"gradcheck: output {number} has shape {y.shape} by kernels, {right.shape} by definitions")
            difference, size = (float(np.max(np.abs(values), initial=0.0)) for values in (y.data - right.data, right.data))
            if not difference <= tolerance * max(1.0, size):
                raise AssertionError(f"gradcheck: output {number} of shape {y.shape} differs by {difference:.3g} between kernels and definitions")

    before = [(x.data.copy(), x.version[0]) for x in inputs]
    weighted(inputs)  # draws the weights
    look_for_writes()
    compare_with_definitions()
    compare(weighted, "the derivative")
    if order > 1:
        v = direction()

        def slope(tensors: Sequence[Tensor]) -> Tensor:
            """The derivative along v, as a function of the inputs: its own derivative is the second one."""
            leaves = [x for x in tensors if x.requires_grad]
            gradients = grad(weighted(tensors), leaves, create_graph=True, allow_unused=True)
            parts = [(g * Tensor(part)).sum() for g, part in zip(gradients, v, strict=True) if g is not None]
            return sum(parts[1:], parts[0])

        compare(slope, "the second derivative")
    return True
