"""Whether a network computes what a new one of its configuration would, so that its weights and its configuration are all there is to know of it.

Classes are compared by what they override, modules by their attributes, weights by their shapes alone. Read next: `conformer/weights.py`, which
refuses to save what differs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from conformer.baselines import builder
from conformer.config import ConformerConfig
from minigrad import nn
from minigrad.tensor import Tensor

__all__ = ["computes_as", "difference"]

_FREE = {"_registered", "training", "grad_checkpointing", "p", "momentum", "train", "eval", "block"}
"""Attributes of modules on which no result in evaluation depends; `block` made modules, which are compared themselves."""


def computes_as(kind: type, plain: type) -> bool:
    """Whether objects of a class compute what those of another do if they have the same attributes.

    It is that one, or overrides of it only what is free, and special methods on which no result depends (`__init__`: what it sets is compared).
    """
    if not issubclass(kind, plain):
        return False
    own = {name for each in kind.__mro__ if each not in plain.__mro__ for name in vars(each)} - {"train", "eval", "block"}
    counted = {name for name in own if not name.startswith("__")} | (own & {"__call__", "__getattribute__"})
    return not any(hasattr(plain, name) or name == "training" for name in counted)


def difference(model: nn.Module, network: str, config: ConformerConfig, image_size: tuple[int, int]) -> str | None:
    """The first module that is not as in a new network, in words; None if all are.

    Args:
        model: the network.
        network: which of `conformer.baselines.NETWORKS` it is to be.
        config: its configuration.
        image_size: height and width of its images.
    """
    modules, plain = dict(model.named_modules()), _plain(network, config, image_size)
    for name, (kind, settings) in plain.items():
        if name not in modules:
            return f"which has no {name} of its own"
        module = modules[name]
        if not computes_as(type(module), kind):
            kinds = [f"{each.__module__}.{each.__qualname__}" for each in (type(module), kind)]
            return f"of which {name} is a {kinds[0]} and not a {kinds[1]}"
        found = _settings(module)
        counted = [key for key in found if key in settings or key in module._registered or hasattr(kind, key)]  # others, such as notes, do nothing
        for key in dict.fromkeys([*settings, *counted]):
            if key not in settings or key not in found or not _equal(settings[key], found[key]):
                return f"of which {name or 'the whole'} has another {key}"
    return next((f"which has a {name}, too" for name in modules if name not in plain), None)


def _equal(x: Any, y: Any) -> bool:
    """Whether two settings are equal. Of tuples not NumPy's opinion: to it they are unequal, too, where there is no memory to make arrays of them."""
    return x == y if type(x) is tuple and type(y) is tuple else bool(np.array_equal(x, y))


@cache
def _plain(network: str, config: ConformerConfig, image_size: tuple[int, int]) -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
    """The modules of a new network by name: their classes, and how they are set.

    It is built once for each configuration, and without drawing its weights, which takes seconds for a large one.
    """
    with nn.init.skipped():
        model = builder(network, image_size)(config)
    return {name: (type(module), _settings(module)) for name, module in model.named_modules()}


def _settings(module: nn.Module) -> dict[str, Any]:
    """A module's attributes but for its children; of tensors the shape."""
    own = {name: value for name, value in vars(module).items() if name not in _FREE and not isinstance(value, nn.Module)}
    return {name: ("Tensor", *value.shape) if isinstance(value, Tensor) else value for name, value in own.items()}
