"""Dropout and DropPath: they draw the masks that the pure operations in `minigrad/fused/dropout.py` apply. Read before: `minigrad/random.py`."""

from __future__ import annotations

import numpy as np

from minigrad import functional as F
from minigrad import random
from minigrad.fused.dropout import cuda_keep_mask
from minigrad.nn.module import Module
from minigrad.tensor import Tensor, wrap

__all__ = ["DropPath", "Dropout"]


def keep_mask(purpose: str, shape: tuple[int, ...], p: float, device: str) -> Tensor:
    """Draw a mask of booleans, False (drop) with probability `p`: this context's next draw, the same on every device. On "cuda" it is drawn there."""
    step, draw = random.next_draw()
    if device == "cuda":
        on_gpu = None if isinstance(step, int) else step  # see `random.set_step`
        return wrap(cuda_keep_mask(random.generator(purpose, 0 if on_gpu is not None else step, draw), shape, p, on_gpu))
    keep = random.generator(purpose, step, draw).random(shape, dtype=np.float32) >= p
    return Tensor(keep).to(device=device)


def _probability(name: str, p: float) -> float:
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p is {p}; give a probability from 0 to 1")
    return float(p)


class Dropout(Module):
    """In training mode, zeroes each element with probability p and divides the others by 1 - p; in eval mode, does nothing.

    Raises:
        ValueError: p is not from 0 to 1.

    Source: Srivastava et al. 2014; https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        self.p = _probability("Dropout", p)

    def draw(self, shape: tuple[int, ...], device: str = "cpu") -> Tensor | None:
        """The next mask of this shape (True: keep), or None where nothing is dropped; for operations that apply it themselves."""
        return keep_mask("dropout", shape, self.p, device) if self.training and self.p > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; the result has the same."""
        mask = self.draw(x.shape, x.device)
        return x if mask is None else F.dropout(x, mask, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class DropPath(Module):
    """Stochastic depth: in training mode, drops the whole sample of a residual branch with probability p and divides the others by 1 - p.

    Raises:
        ValueError: p is not from 0 to 1.

    Source: Huang et al. 2016, "Deep networks with stochastic depth"
    """

    def __init__(self, p: float = 0.0):
        super().__init__()
        self.p = _probability("DropPath", p)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        return F.drop_path(x, keep_mask("drop_path", x.shape[:1], self.p, x.device), self.p) if self.training and self.p > 0 else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
