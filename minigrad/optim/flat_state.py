"""What is saved of an optimiser: NumPy arrays by flat names, "groups.0.lr", "state.3.exp_avg", written and read here. See `Optimizer.state_dict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from minigrad import backend
from minigrad.tensor import Tensor

if TYPE_CHECKING:
    from minigrad.optim.optimizer import Optimizer

__all__ = ["flatten", "parse"]

MOST_STEPS = 1 << 31  # they are counted in an int on the GPU


def flatten(optimizer: Optimizer) -> dict[str, np.ndarray]:
    """Copies of the groups' options and of the parameters' states, whose step counters are up to date."""
    flat: dict[str, np.ndarray] = {}
    for number, group in enumerate(optimizer.param_groups):
        for option in _saved(optimizer, group):
            flat[f"groups.{number}.{option}"] = saved = np.array(group[option])
            if saved.dtype.kind not in "biuf":
                what = f"{type(optimizer).__name__}'s option {option} is {group[option]!r}"
                raise TypeError(f"state_dict: {what}; only numbers and tuples of them are saved")
        flat[f"groups.{number}.parameters"] = np.array(len(group["params"]))
    _check_named(optimizer)
    for number, parameter in enumerate(optimizer._parameters()):
        for name, value in optimizer._state.get(parameter, {}).items():
            flat[f"state.{number}.{name}"] = np.array(value if isinstance(value, int) else backend.to_device(value, "cpu"), order="C")
    return flat


def _check_named(optimizer: Optimizer) -> None:
    """Raise TypeError if a state has an entry that loading would not know."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer._state.get(parameter, {})
            optional = {name for name in optimizer._optional_state if getattr(state.get(name), "shape", None) == parameter.shape}
            if state and (unknown := state.keys() - optimizer._new_state(parameter, group).keys() - optional):
                what = f"{type(optimizer).__name__} keeps {', '.join(sorted(unknown))} of a parameter of shape {parameter.shape}, could not load it"
                raise TypeError(f"state_dict: {what}; make it in _new_state, whatever the options, or, of that shape, name it in _optional_state")


def _saved(optimizer: Optimizer, group: Mapping[str, Any]) -> list[str]:
    """The options of a group, and its entries of the caller's own but for texts. A rate as a schedule wrote it is in "lr"."""
    names = [name for name in group if name not in ("params", "scheduled_lr")]
    return [name for name in names if name in optimizer.defaults or not isinstance(group[name], str)]


def parse(optimizer: Optimizer, flat: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any] | None]]:
    """The options of each group and the state of each parameter, None where it had none, on its device.

    Raises:
        ValueError: it belongs to other groups or parameters, or an option is out of range. It lists every problem.
    """
    entries = _Entries(flat)
    options = [_loaded_options(optimizer, number, group, entries) for number, group in enumerate(optimizer.param_groups)]
    groups = [{**group, **loaded} for group, loaded in zip(optimizer.param_groups, options, strict=True)]
    members = [(parameter, group) for group in groups for parameter in group["params"]]
    states = [_loaded_state(optimizer, f"state.{number}.", parameter, group, entries) for number, (parameter, group) in enumerate(members)]
    if problems := [*entries.problems, *(f"unexpected {name}" for name in entries.left)]:
        raise ValueError(f"load_state_dict: {type(optimizer).__name__} cannot take these {len(flat)} entries: {'; '.join(problems)}")
    return options, states


class _Entries:
    """What is left when entries have been taken, and what did not fit."""

    def __init__(self, flat: Mapping[str, Any]):
        self.left = {name: np.asarray(value) for name, value in flat.items()}
        self.problems: list[str] = []

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray | None:
        """The entry of this name; None, and one problem more, if there is none or it is not numbers of this shape."""
        value = self.left.pop(name, None)
        if value is None:
            self.problems.append(f"missing {name}")
        elif value.dtype.kind not in "biuf":
            self.problems.append(f"{name} has dtype {value.dtype}, not numbers")
        elif value.shape != shape:
            self.problems.append(f"{name} has shape {value.shape}, here {shape}")
        else:
            return value
        return None


def _loaded_options(optimizer: Optimizer, number: int, group: dict[str, Any], entries: _Entries) -> dict[str, Any]:
    """What is loaded of one group."""
    prefix = f"groups.{number}."
    count = entries.left.pop(prefix + "parameters", None)
    if count is None or count.tolist() != len(group["params"]):
        entries.problems.append(f"group {number} has {'no' if count is None else count.tolist()} parameters, here {len(group['params'])}")
    loaded: dict[str, Any] = {}
    for option in dict.fromkeys([*optimizer.defaults, "initial_lr", *_saved(optimizer, group)]):
        if option not in optimizer.defaults and prefix + option not in entries.left:
            continue
        value = entries.take(prefix + option, np.shape(group.get(option, 0.0)))
        if value is not None:
            loaded[option] = tuple(value.tolist()) if value.ndim else value.item()
    entries.problems += [f"group {number}: {problem}" for problem in optimizer._problems({**group, **loaded})]
    return loaded


def _loaded_state(optimizer: Optimizer, prefix: str, parameter: Tensor, group: dict[str, Any], entries: _Entries) -> dict[str, Any] | None:
    """What is loaded of one parameter."""
    present = [name.removeprefix(prefix) for name in entries.left if name.startswith(prefix)]
    if not present:
        return None
    state = optimizer._empty_state(parameter, group, present)
    for name, empty in state.items():
        value = entries.take(prefix + name, () if isinstance(empty, int) else empty.shape)
        if value is None:
            continue
        if not isinstance(empty, int):
            dtype = parameter.dtype if empty.dtype.kind == "f" else empty.dtype
            state[name] = backend.to_device(np.array(value, dtype, order="C"), parameter.device)
        elif 0 <= value < MOST_STEPS and value == int(value):
            state[name] = int(value)
        else:
            entries.problems.append(f"{prefix}{name} is {value}, not a whole number from 0 to {MOST_STEPS - 1}")
    return state
