"""Layers without parameters that act element by element, for use in Sequential: Identity, ReLU, GELU."""

from __future__ import annotations

from minigrad import functional as F
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = ["GELU", "Identity", "ReLU"]


class Identity(Module):
    """y = x, whatever it is made with. Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Identity.html"""

    def __init__(self, *args: object, **kwargs: object):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class ReLU(Module):
    """y = max(x, 0). Raises ValueError for `inplace`. Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.ReLU.html"""

    def __init__(self, inplace: bool = False):
        super().__init__()
        if inplace:
            raise ValueError("ReLU: inplace is True, but no operation writes into its input here; leave it out")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class GELU(Module):
    """y = x Phi(x). Raises ValueError where its approximation by tanh is asked for.

    Source: Hendrycks and Gimpel 2016; https://docs.pytorch.org/docs/stable/generated/torch.nn.GELU.html
    """

    def __init__(self, approximate: str = "none"):
        super().__init__()
        if approximate != "none":
            raise ValueError(f"GELU: approximate is {approximate!r}, but only the exact function is here; leave it out")

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)
