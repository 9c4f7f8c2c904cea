"""AdamW: Adam with weight decay that does not pass through the gradient. Read before: `optimizer.py` for groups and state."""

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

__all__ = ["AdamW"]


class AdamW(Optimizer):
    r"""Adam with decoupled weight decay.

    At step t (from 1), with g the gradient, m and v its running mean and the running mean of its square (0 at first):

        p = p - lr * weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        p = p - lr * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: beta1 and beta2.
        eps: keeps the division finite.
        weight_decay: per unit of learning rate.

    Raises:
        ValueError: an option is out of range.

    Source: Loshchilov and Hutter 2019; https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html
    """

    _elementwise = True
    _kernels = cuda.Kernels(__file__)
    _arrays = ("exp_avg", "exp_avg_sq")
    _not_negative = (*Optimizer._not_negative, "eps")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _problems(self, group: Mapping[str, Any]) -> list[str]:
        problems, betas = super()._problems(group), group["betas"]
        if np.shape(betas) != (2,) or not all(isinstance(beta, numbers.Real) and 0 <= float(beta) < 1 for beta in betas):
            problems.append(f"betas is {betas}; give two numbers from 0 to below 1")
        return problems

    def _new_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"step": 0, "exp_avg": np.zeros_like(parameter.data), "exp_avg_sq": np.zeros_like(parameter.data)}

    def _numbers(self, group: Mapping[str, Any]) -> list[float]:
        return [group["lr"], *group["betas"], group["eps"], group["weight_decay"]]

    def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        state["step"] += 1
        beta1, beta2 = group["betas"]
        lr, eps, keep = group["lr"], group["eps"], 1 - group["lr"] * group["weight_decay"]
        step_size = lr / (1 - beta1 ** state["step"])
        rescale = 1 / math.sqrt(1 - beta2 ** state["step"])

        def update(p: Any, g: Any, m: Any, v: Any, scratch: Any) -> None:
            np.multiply(m, beta1, out=m)
            np.multiply(g, 1 - beta1, out=scratch)
            np.add(m, scratch, out=m)
            np.multiply(v, beta2, out=v)
            np.multiply(g, 1 - beta2, out=scratch)  # first: g * g may overflow
            np.multiply(scratch, g, out=scratch)
            np.add(v, scratch, out=v)
            np.sqrt(v, out=scratch)
            np.multiply(scratch, rescale, out=scratch)
            np.add(scratch, eps, out=scratch)
            np.divide(m, scratch, out=scratch)
            np.multiply(scratch, step_size, out=scratch)
            if keep != 1:
                np.multiply(p, keep, out=p)
            np.subtract(p, scratch, out=p)

        in_blocks(update, param, grad, state["exp_avg"], state["exp_avg_sq"])
