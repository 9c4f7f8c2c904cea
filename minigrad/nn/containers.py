"""Modules that hold modules under the names "0", "1", ...: ModuleList to loop over, Sequential to call."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from minigrad.nn.module import Module

__all__ = ["ModuleList", "Sequential"]


class _Numbered(Module):
    """A list of modules whose names are numbers: their positions, where nothing was taken out."""

    def __init__(self, modules: Iterable[Module]):
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns the list."""
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}: element {len(self)} is a {type(module).__name__}, not a Module")
        number = len(self)
        while str(number) in self._registered:  # where a place before it was deleted, or set to None
            number += 1
        setattr(self, str(number), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add several modules at the end, in their order; returns the list."""
        for module in list(modules):  # which may be this list itself
            self.append(module)
        return self

    def _name(self, index: int) -> str:
        position, names = operator.index(index), [name for name, _ in self._own("module")]
        if not -len(self) <= position < len(self):
            raise IndexError(f"{type(self).__name__}: index {position} is out of range, there are {len(self)} modules")
        return names[position]

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._of(list(self._own("module"))[index])
        return getattr(self, self._name(index))

    def _of(self, named: list[tuple[str, Module]]) -> _Numbered:
        raise NotImplementedError

    def __setitem__(self, index: int, module: Module) -> None:
        if not isinstance(module, Module):
            raise TypeError(f"{type(self).__name__}: element {index} would be a {type(module).__name__}, not a Module; nn.Identity() does nothing")
        setattr(self, self._name(index), module)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Module]:
        return (module for _, module in self._own("module"))  # a subclass may have parameters and buffers too


class ModuleList(_Numbered):
    """A list of modules; a slice of it is another, which counts from 0.

    Raises:
        TypeError: an element is not a Module.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.ModuleList.html
    """

    def __init__(self, modules: Iterable[Module] | None = None):
        super().__init__(() if modules is None else modules)

    def _of(self, named: list[tuple[str, Module]]) -> ModuleList:
        return ModuleList(module for _, module in named)


class Sequential(_Numbered):
    """Modules called one after the other, each on the result of the one before.

    A slice of it is another, whose modules keep their names: `model[2:].load_state_dict(state, strict=False)` takes its own of the whole state.

    Raises:
        TypeError: an element is not a Module.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.Sequential.html
    """

    def __init__(self, *modules: Module):
        several = modules[0] if len(modules) == 1 else None
        if isinstance(several, Iterable) and not isinstance(several, Module | str):
            found, values = type(several).__name__, ".values()" * isinstance(several, Mapping)
            raise TypeError(f"{type(self).__name__}: element 0 is a {found}, not a Module; give them one by one, as in Sequential(*modules{values})")
        super().__init__(modules)

    def _of(self, named: list[tuple[str, Module]]) -> Sequential:
        part = Sequential()
        for name, module in named:
            setattr(part, name, module)
        return part

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
