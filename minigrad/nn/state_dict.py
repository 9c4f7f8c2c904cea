"""What a module's `load_state_dict` was given, beside what the module has: the arrays to write, or what is wrong, in words.

Most of it is for the mistakes that one makes with files of weights: names with another beginning ("module."), a mapping one level below, values that
are no arrays. Read before: `module.py`.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from minigrad import backend
from minigrad.tensor import Tensor

__all__ = ["KeyDifference", "loadable", "matched"]


class KeyDifference(NamedTuple):
    """What `load_state_dict(strict=False)` left alone: names the module has and the mapping lacks, and the other way round."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def matched(module: str, own: Mapping[str, Tensor], state_dict: Mapping[str, Any], strict: bool) -> tuple[dict[str, backend.Array], KeyDifference]:
    """The arrays for those of the module's tensors that the mapping has, and the names that only one side has; raises as `load_state_dict` says."""
    if not isinstance(state_dict, Mapping):
        what = f"{state_dict!r}; of a PyTorch module, save its state_dict()" if _not_read(state_dict) else f"a {type(state_dict).__name__}"
        raise TypeError(f"load_state_dict: {module} takes a mapping of names to arrays, as state_dict() gives, and this is {what}")
    given = {name: state_dict[name] for name in own if name in state_dict}
    values = {name: loadable(value) for name, value in given.items()}
    difference = KeyDifference([name for name in own if name not in state_dict], [name for name in state_dict if name not in own])
    missing = [f"missing {name} of shape {own[name].shape}" for name in difference.missing_keys] if strict else []
    unexpected = [f"unexpected {name}" for name in difference.unexpected_keys] if strict else []
    problems = []
    for name, value in values.items():
        if value is None:
            problems.append(f"{name} is {_no_array(given[name])}")
        elif value.shape != own[name].shape:
            problems.append(f"{name} has shape {value.shape}, here {own[name].shape}")
    if missing or unexpected or problems:
        remedy = not given and (_other_prefix(own, state_dict) or _one_below(own, state_dict))
        reason = remedy or _first_of(missing, unexpected, problems)
        raise ValueError(f"load_state_dict: {module} cannot take these {len(state_dict)} entries: {reason}")
    return values, difference


def loadable(value: Any) -> backend.Array | None:
    """What a `load_state_dict` was given, a Tensor or anything array-like, as an array; None if it is not one of numbers (or a masked array)."""
    value = value.data if isinstance(value, Tensor) else value
    if not backend.is_array(value):
        try:
            value = backend.host_array(value, "load_state_dict")
        except (TypeError, ValueError, RuntimeError):  # lists of unequal lengths; PyTorch's tensors of bfloat16, and those that require grad
            return None
    return value if value.dtype.kind in "biuf" else None


def _not_read(value: Any) -> bool:
    """Whether it is a `minigrad.pth.Unread`; by name, as `pth` is above this module in the order of imports."""
    return f"{type(value).__module__}.{type(value).__name__}" == "minigrad.pth.Unread"


def _no_array(value: Any) -> str:
    """What a value is that is `loadable` as nothing, and what to do about one of PyTorch's that NumPy cannot read, or from its files."""
    if _not_read(value):
        return f"{value!r}, not an array of numbers (in PyTorch, save a tensor)"
    hint = " (give its .detach().float())" if getattr(value, "requires_grad", False) or "bfloat16" in str(getattr(value, "dtype", "")) else ""
    return f"{type(value).__name__}, not an array of numbers{hint}"


def _first_of(*kinds: list[str], most: int = 10) -> str:
    """What is wrong, in one line: of each kind the first, and how much more there is."""
    there = [problems for problems in kinds if problems]
    every = [problem for problems in there for problem in problems]
    shown = every if len(every) <= most else [problem for problems in there for problem in problems[: most // len(there)]]
    return "; ".join(shown) + (f"; and {len(every) - len(shown):,} more" if len(shown) < len(every) else "")


def _other_prefix(own: Mapping[str, Any], given: Mapping[Any, Any]) -> str:
    """What to say where names on one side differ from the other's by a common beginning, such as that of a wrapper's child; empty if they do not."""
    if not all(isinstance(name, str) for name in given):
        return ""
    for prefix in _prefixes(given):
        if _most_of(own, (name.removeprefix(prefix) for name in given)):
            fix = f"give {{name.removeprefix({prefix!r}): value for name, value in state_dict.items()}}"
            return f"their names begin with {prefix!r}, which those of the module do not; {fix}"
    for prefix in _prefixes(own):
        if _most_of(own, (prefix + name for name in given)):
            fix = f"give {{{prefix!r} + name: value for name, value in state_dict.items()}}, or load into that child"
            return f"the names of the module begin with {prefix!r}, which theirs do not; {fix}"
    return ""


def _one_below(own: Mapping[str, Any], given: Mapping[Any, Any]) -> str:
    """What to say where one of the values is the mapping that was meant, as in a file of a whole training run; empty if none is."""
    for key, value in given.items():
        if isinstance(value, Mapping) and (_most_of(own, value) or _other_prefix(own, value)):
            return f"{key!r} is a mapping with the names of the module; give state_dict[{key!r}]"
    return ""


def _most_of(own: Mapping[str, Any], names: Iterable[Any]) -> bool:
    """Whether at least half of the module's names are among these. A few that agree by chance would hide what is wrong with all others."""
    return len(own) > 0 and 2 * len(own.keys() & set(names)) >= len(own)


def _prefixes(names: Iterable[str]) -> list[str]:
    """What all dotted names begin with, up to each of its dots."""
    common = os.path.commonprefix(list(names))
    return [common[: place + 1] for place, letter in enumerate(common) if letter == "."]
