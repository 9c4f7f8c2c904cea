"""Layers without parameters that act element by element, for use in Sequential: Identity, ReLU, GELU."""

from __future__ import annotations

from minigrad import functional as F
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = ["GELU", "Identity", "ReLU"]


class Identity(Module):
    """y = x. Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Identity.html"""

    def forward(self, x: Tensor) -> Tensor:
        return x


class ReLU(Module):
    """y = max(x, 0). Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.ReLU.html"""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class GELU(Module):
    """y = x Phi(x), not its approximation by tanh. Source: Hendrycks and Gimpel 2016; https://docs.pytorch.org/docs/stable/generated/torch.nn.GELU.html"""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)
