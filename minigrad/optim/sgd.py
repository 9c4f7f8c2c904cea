"""SGD with momentum and Nesterov's variant. Read before: `optimizer.py` for groups and state."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minigrad.backend import cuda
from minigrad.optim.blocks import in_blocks
from minigrad.optim.optimizer import Optimizer
from minigrad.tensor import Tensor

__all__ = ["SGD"]


class SGD(Optimizer):
    r"""Stochastic gradient descent.

    With g the gradient plus weight_decay * p, and b the momentum buffer (b = g at the first step):

        b = momentum * b + (1 - dampening) * g
        p = p - lr * b                     (momentum)
        p = p - lr * (g + momentum * b)    (Nesterov)
        p = p - lr * g                     (neither)

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum, dampening: see above; both 0: no buffer is kept.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: Nesterov momentum; needs momentum and no dampening.

    Raises:
        ValueError: an option is out of range.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """

    _elementwise = True
    _kernels = cuda.Kernels(__file__)
    _arrays = ("momentum_buffer",)
    _not_negative = (*Optimizer._not_negative, "momentum")
    _optional_state = ("momentum_buffer",)  # from the first update with momentum on, also after it is switched off

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov})

    def _problems(self, group: Mapping[str, Any]) -> list[str]:
        problems, momentum, dampening = super()._problems(group), group["momentum"], group["dampening"]
        if not isinstance(dampening, numbers.Real) or not math.isfinite(dampening):
            problems.append(f"dampening is {dampening!r}; give a finite number")
        if group["nesterov"] and (momentum == 0 or dampening != 0):
            problems.append(f"nesterov needs a momentum and no dampening, not momentum {momentum} and dampening {dampening}")
        return problems

    def _new_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"step": 0, "momentum_buffer": np.zeros_like(parameter.data)} if group["momentum"] else {"step": 0}

    def _numbers(self, group: Mapping[str, Any]) -> list[float]:
        return [group["lr"], group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"]]

    def _reads(self, name: str, group: Mapping[str, Any]) -> bool:
        return bool(group["momentum"])

    def _prepare(self) -> set[int]:
        shared = super()._prepare()
        needed = [p for group in self.param_groups if group["momentum"] for p in group["params"] if p.grad is not None]
        late = [parameter for parameter in needed if "momentum_buffer" not in self._state[parameter]]
        if late:  # their groups had no momentum until now
            for parameter in late:
                self._check_no_capture(parameter)
            buffers = [np.zeros_like(parameter.data) for parameter in late]
            self._launches.read_steps(self._state)
            self._launches.clear()
            for parameter, buffer in zip(late, buffers, strict=True):
                self._state[parameter].update(step=0, momentum_buffer=buffer)
        return shared

    def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        lr, momentum, decay, nesterov = group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]
        if momentum or state["step"] or "momentum_buffer" not in state:  # a buffer that was loaded as of step 0 waits for the first with momentum
            state["step"] += 1
        keep, take = (momentum, 1 - group["dampening"]) if state["step"] > 1 else (0.0, 1.0)

        def decayed(p: Any, g: Any, scratch: Any) -> Any:
            """g of the formula. Not p (1 - lr decay) later, which float32 rounds to p where lr decay is below 3e-8."""
            return np.add(np.multiply(p, decay, out=scratch), g, out=scratch) if decay else g  # 0 times an infinite p would be NaN

        def plain(p: Any, g: Any, scratch: Any) -> None:
            np.multiply(decayed(p, g, scratch), lr, out=scratch)
            np.subtract(p, scratch, out=p)

        def with_momentum(p: Any, g: Any, b: Any, scratch: Any) -> None:
            g = decayed(p, g, scratch)
            np.multiply(b, keep, out=b)
            if nesterov:  # take is 1: b = momentum b + g, and the step is g + momentum b
                np.add(b, g, out=b)
                np.multiply(g, lr, out=scratch)
                np.subtract(p, scratch, out=p)
                np.multiply(b, lr * momentum, out=scratch)
            else:
                np.multiply(g, take, out=scratch)
                np.add(b, scratch, out=b)
                np.multiply(b, lr, out=scratch)
            np.subtract(p, scratch, out=p)

        if momentum:
            in_blocks(with_momentum, param, grad, state["momentum_buffer"])
        else:
            in_blocks(plain, param, grad)
