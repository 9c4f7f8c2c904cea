"""Optimizer: parameter groups, a step for each of their parameters, and the states that are kept of these.

An optimiser writes into `parameter.data` in place and says so to the version counter; gradients are only read. The update rules are in `sgd.py` and
`adamw.py`; how small parameters are updated together is in `blocks.py`, those on the GPU in `launches.py`; what is saved is in `flat_state.py`.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backend import cuda
from minigrad.optim import multi_tensor
from minigrad.optim.blocks import EndToEnd, is_small, reserved
from minigrad.optim.flat_state import flatten, parse
from minigrad.optim.launches import Launches, arrays_of
from minigrad.tensor import Tensor

__all__ = ["Optimizer"]

BESIDE_OPTIONS = ("params", "initial_lr", "scheduled_lr")  # of a group; the last two are a schedule's
# What optimisers here and elsewhere call options: where one has no such option, it is not taken for an entry of the caller's own.
OPTIONS = frozenset(
    "lr learning_rate weight_decay wd decay l2 decoupled_weight_decay momentum dampening nesterov beta beta1 beta2 betas eps epsilon alpha rho "
    "amsgrad centered maximize foreach capturable differentiable fused parameters".split()
)


class Optimizer:
    """Base class: subclasses define `_new_state` and `_update`, and `_problems` where they have options of their own to look at; `_elementwise` if it
    is so; for one launch for all parameters on the GPU also `_numbers`, `_arrays` and `_kernels`, a `.cu` file with a kernel that has the file's
    name. `docs/own_training.md` has an example. `copy.deepcopy((model, optimizer))` gives a pair that goes on by itself.

    Args:
        params: the parameters, or groups of them: dicts with "params" and whatever options differ from `defaults`. Entries of other names are the
            caller's own ("name", "lr_scale", ...), a number or a text each; numbers are saved with the options, texts are not.
        defaults: the options of a group that does not state them.

    Attributes:
        param_groups: one dict per group, "params" (a list of Tensors) and its options; a schedule writes "lr" here.

    Source: https://docs.pytorch.org/docs/stable/optim.html
    """

    _elementwise = False  # whether `_update` does to every element the same, whatever the others are: then it may get many parameters end to end
    _optional_state: tuple[str, ...] = ()  # arrays of its shape that a parameter's state has or lacks, depending on the options at its last update
    _not_negative: tuple[str, ...] = ("lr", "weight_decay", "initial_lr")  # options
    _kernels: cuda.Kernels | None = None
    _arrays: tuple[str, ...] = ()  # those of the state that the kernel gets

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]):
        name = type(self).__name__
        if isinstance(params, Tensor | dict | set | frozenset):
            raise TypeError(f"{name}: params is a {type(params).__name__}; give a list of Tensors or of groups (dicts), in a fixed order")
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        # By the parameter, which they keep alive, as PyTorch's do: another could get the id of one that is gone, and with it its state. Tensors
        # hash by identity, and no two that are alive hash alike: a dict never asks for their elementwise ==.
        self._state: dict[Tensor, dict[str, Any]] = {}
        self._kinds: dict[Tensor, tuple] = {}  # for which array of its parameter each state was made: see `_kind`
        self._launches = Launches(self._kernels, self._arrays)
        entries: list[Any] = list(params)
        if not entries:
            raise ValueError(f"{name}: there are no parameters to optimise (an empty list, or a generator that was already used up)")
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters with options of their own, for example `{"params": biases, "weight_decay": 0.0}`.

        Raises:
            TypeError: something in the group is not a Tensor, or an entry of the caller's own neither number nor text. ValueError: a parameter is
                listed twice or was computed, an option is out of range, or one that this optimiser does not have.
        """
        name = type(self).__name__
        if not isinstance(group, Mapping) or "params" not in group:
            raise TypeError(f"{name}: a parameter group is a dict with an entry 'params', not {type(group).__name__}")
        for option, value in group.items():
            if option not in self.defaults and option not in BESIDE_OPTIONS:
                self._check_own_entry(option, value)
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        seen = {id(parameter) for parameter in self._parameters()}
        for parameter in params:
            if not isinstance(parameter, Tensor):
                raise TypeError(f"{name}: cannot optimise a {type(parameter).__name__}; give Tensors")
            if parameter.node is not None:
                raise ValueError(
                    f"{name}: a tensor of shape {parameter.shape} was computed by {parameter.node.op.name}; only leaf tensors can be optimised"
                )
            if id(parameter) in seen:
                raise ValueError(f"{name}: a parameter of shape {parameter.shape} is listed twice")
            seen.add(id(parameter))
        options = {**self.defaults, **group, "params": params}
        if problems := self._problems(options):
            raise ValueError(f"{name}: {'; '.join(problems)}")
        self.param_groups.append(options)

    def __repr__(self) -> str:
        """As PyTorch's: each group's options and the caller's entries by name; and how many parameters it has."""
        groups = [
            [f"    {name}: {value}" for name, value in sorted({**group, "parameters": len(group["params"])}.items()) if name != "params"]
            for group in self.param_groups
        ]
        return f"{type(self).__name__} (\n" + "\n\n".join("\n".join([f"Parameter Group {n}", *lines]) for n, lines in enumerate(groups)) + "\n)"

    def _check_own_entry(self, option: Any, value: Any) -> None:
        """Raise for an entry of a group that is no option of this optimiser, if it looks like one, or cannot be kept."""
        name = type(self).__name__
        if not isinstance(option, str):
            raise TypeError(f"{name}: a parameter group has an entry called {option!r}; give it a text as its name")
        near = difflib.get_close_matches(option.lower(), self.defaults, cutoff=0.7)
        if option.lower() in OPTIONS or (near and not option.startswith(f"{near[0]}_")):
            meant = f" (is {near[0]!r} meant?)" if near else ""
            raise ValueError(f"{name}: a parameter group has the unknown option {option!r}; there are {', '.join(self.defaults)}{meant}")
        if not isinstance(value, str) and not _is_number(value):
            raise TypeError(
                f"{name}: a parameter group has an entry {option!r} that is a {type(value).__name__}; there are the options "
                f"{', '.join(self.defaults)}, and what else it holds must be a number or a text"
            )

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    def zero_grad(self) -> None:
        """Set `.grad` of every parameter to None."""
        for parameter in self._parameters():
            parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient, in place. A parameter that was moved or converted takes its state along.

        Raises:
            ValueError: the shape of a gradient or of a state is not its parameter's; or a state would be made in a step that is being captured.
            TypeError: a gradient is no Tensor, or of another dtype or on another device than its parameter. MemoryError: there is none for what the
                step needs beside. Nothing has been updated then (an optimiser of one's own whose `_update` makes arrays may be in the middle,
                though).
        """
        shared = self._prepare()
        launched: list[tuple[Tensor, int]] = []  # on the GPU, with the numbers of their groups
        small: dict[tuple, list[tuple[Any, Any, dict[str, Any]]]] = {}  # that are updated end to end
        large: list[tuple[Any, Any, dict[str, Any], dict[str, Any]]] = []  # that are updated one by one
        written: list[Tensor] = []
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                array, gradient = parameter.data, parameter.grad
                if gradient is not None:
                    written.append(parameter)
                if self._kernels is not None and multi_tensor.fits(array):
                    launched.append((parameter, number))  # also one without a gradient: it keeps its place in the tables
                elif gradient is None:
                    continue
                elif self._elementwise and is_small(array) and id(array) not in shared:
                    state = self._state[parameter]
                    entries = [value if isinstance(value, int) else name for name, value in state.items()]
                    small.setdefault((number, array.dtype, *entries), []).append((array, gradient.data, state))
                else:
                    if self._kernels is not None and backend.device_of(array) == "cuda" and cuda.capturing():
                        what = f"a parameter of shape {parameter.shape} whose array is not contiguous cannot be updated in a captured step"
                        raise ValueError(f"{type(self).__name__}: {what}, which would repeat today's options; make a copy its .data first")
                    large.append((array, gradient.data, self._state[parameter], group))
        together = [(EndToEnd(alike), self.param_groups[number]) for (number, *_), alike in small.items()]
        updates = [[array, gradient, *arrays_of(state).values()] for array, gradient, state, _ in large]
        with reserved([*updates, *[[long.param] for long, _ in together]]):
            for parameter in written:
                parameter._bump()
            for array, grad, state, group in large:
                self._update(array, grad, state, group)
            for long, group in together:
                long.update(self._update, group)
        if launched:
            self._launches.update(launched, self._all_numbers(), self._state)
            if cuda.capturing():
                self._launches.note_capture([group["params"][:] for group in self.param_groups], launched, self._state)

    def upload(self) -> None:
        """Bring the groups' options, such as learning rates, to the GPU: before a captured graph that holds this optimiser's step is launched.

        A step that is not captured does so itself.

        Raises:
            ValueError: the graph that was captured last works on arrays whose place others have taken, or lacks some that today's options need.
        """
        if self._kernels is not None:
            groups = [group["params"] for group in self.param_groups]
            if what := self._launches.changed(groups, self._state, lambda name, number: self._reads(name, self.param_groups[number])):
                raise ValueError(f"{type(self).__name__}: {what} since its step was captured, and the graph knows the old ones: capture it again")
            self._launches.write_options(self._all_numbers())

    def _all_numbers(self) -> np.ndarray:
        return np.array([self._numbers(group) for group in self.param_groups], np.float64)

    # --- what a subclass defines

    def _problems(self, group: Mapping[str, Any]) -> list[str]:
        """What to say of each option that is out of range."""
        given = {option: group[option] for option in self._not_negative if option in group}
        problems = [f"{option} is {value!r}; give a number" for option, value in given.items() if not _is_number(value)]
        problems = problems or [f"{option} is {value}; it cannot be negative" for option, value in given.items() if not value >= 0]
        return problems or [f"{option} is {value}; give a finite number" for option, value in given.items() if value == math.inf]

    def _new_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        """What is remembered of a parameter before its first update: `int`s, and arrays on its device; of its shape, where `_elementwise`.

        They follow the parameter to another device, and those of floats to another dtype.
        """
        raise NotImplementedError

    def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Write the new values into the array `param`, in place, and into `state`; `grad` is only read."""
        raise NotImplementedError

    def _numbers(self, group: Mapping[str, Any]) -> list[float]:
        """The options of a group as the kernel wants them."""
        raise NotImplementedError

    def _reads(self, name: str, group: Mapping[str, Any]) -> bool:
        """Whether the kernel needs the array `name` of a state, with these options."""
        return True

    # --- the states

    def _prepare(self) -> set[int]:
        """Before the first update: an error must not leave some parameters a step ahead of the others. For new states there may be no memory.

        Returns the ids of arrays that several parameters have: they are updated one after the other, while small ones are copied in and back.
        """
        unfit: list[tuple[Tensor, dict[str, Any]]] = []  # parameters with no state yet, or with one for another array
        seen: set[int] = set()
        shared: set[int] = set()
        states, kinds = self._state, self._kinds
        for group in self.param_groups:
            for parameter in group["params"]:
                array, gradient = parameter.data, parameter.grad
                dtype, shape = array.dtype, array.shape
                if gradient is not None:
                    if type(gradient) is not Tensor or type(grad := gradient.data) is not type(array) or grad.dtype != dtype or grad.shape != shape:
                        self._check_gradient(parameter, gradient)
                    (shared if id(array) in seen else seen).add(id(array))
                elif parameter not in states:
                    continue
                if kinds.get(parameter) != (type(array), dtype, shape, array.flags.c_contiguous):
                    unfit.append((parameter, group))
        if unfit:
            self._make_states(unfit)
        return shared

    def _check_gradient(self, parameter: Tensor, gradient: Any) -> None:
        if not isinstance(gradient, Tensor):
            what = f"the .grad of a parameter of shape {parameter.shape} is a {type(gradient).__name__}"
            raise TypeError(f"{type(self).__name__}: {what}; give a Tensor, or None")
        array, grad = parameter.data, gradient.data
        if grad.shape != array.shape:
            raise ValueError(f"{type(self).__name__}: a parameter of shape {array.shape} has a gradient of shape {grad.shape}")
        if grad.dtype != array.dtype:
            raise TypeError(f"{type(self).__name__}: a parameter of {array.dtype} has a gradient of {grad.dtype}; bring it to that")
        if type(grad) is not type(array) and gradient.device != parameter.device:
            devices = f"a parameter on {parameter.device} has a gradient on {gradient.device}"
            raise TypeError(f"{type(self).__name__}: {devices}; bring it there with .to(device={parameter.device!r})")

    def _make_states(self, params: list[tuple[Tensor, dict[str, Any]]]) -> None:
        """The states of parameters that have none yet, and those of others as their arrays are now: all of them, or none."""
        moved = any(parameter in self._state for parameter, _ in params)
        if moved:
            self._launches.read_steps(self._state)
        states = {}
        for parameter, group in params:
            state = self._state.get(parameter)
            states[parameter] = self._first_state(parameter, group) if state is None else self._moved_state(parameter, group, state)
            if arrays_of(states[parameter]):
                self._check_no_capture(parameter)
        self._state.update(states)
        self._kinds.update({parameter: _kind(parameter.data) for parameter, _ in params})
        if moved:  # otherwise they stay: captured graphs know them
            self._launches.clear()

    def _check_no_capture(self, parameter: Tensor) -> None:
        """Raise if a graph is being captured: it would make the arrays of this parameter's state anew at every launch."""
        if parameter.device == "cuda" and cuda.capturing():
            what = f"the state of a parameter of shape {parameter.shape} would be made anew at each launch of a captured step"
            raise ValueError(f"{type(self).__name__}: {what}; take a step that is not captured, with its gradient, first")

    def _first_state(self, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
        state = self._new_state(parameter, group)
        for name, value in state.items():
            if type(value) is not int and not backend.is_array(value):
                raise TypeError(f"{type(self).__name__}: the state {name!r} is a {type(value).__name__}; give whole numbers (int) and arrays")
            if self._elementwise and not isinstance(value, int) and value.shape != parameter.shape:
                what = f"the state {name!r} of a parameter of shape {parameter.shape} has shape {value.shape}"
                raise ValueError(f"{type(self).__name__}: {what}; with _elementwise give an array of the parameter's shape, or a whole number")
        return state

    def _moved_state(self, parameter: Tensor, group: Mapping[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        """The state on the parameter's device and, where it is of floats, in its dtype; contiguous, as kernels read it."""
        wanted, moved = self._empty_state(parameter, group, state), dict(state)
        for name, value in arrays_of(state).items():
            if value.shape != wanted.get(name, value).shape:
                raise ValueError(
                    f"{type(self).__name__}: a parameter has shape {parameter.shape} now, and the state {name!r} of shape {value.shape} from when it "
                    "had another; make another optimiser"
                )
            dtype = parameter.dtype if value.dtype.kind == "f" else value.dtype
            moved[name] = backend.to_device(value, parameter.device).astype(dtype, "C", copy=False)
        return moved

    def _empty_state(self, parameter: Tensor, group: Mapping[str, Any], present: Container[str]) -> dict[str, Any]:
        """What a state consists of: arrays of the right shapes, of the optional ones those that are `present`."""
        state = self._new_state(parameter, group)
        for name in self._optional_state:
            state.pop(name, None)
            if name in present:
                state[name] = parameter.data
        return state

    # --- copying and saving

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: states in the parameters' order and in the host's memory.

        The tables on the GPU are left out, to be made anew: they hold addresses of the original's arrays.
        """
        self._launches.read_steps(self._state)
        states = [self._state.get(parameter) for parameter in self._parameters()]
        kinds = [self._kinds.get(parameter, ())[1:] for parameter in self._parameters()]  # without the library
        on_host = [None if state is None else _on_device(state, "cpu") for state in states]
        return {**self.__dict__, "_state": on_host, "_kinds": kinds, "_launches": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._launches = Launches(self._kernels, self._arrays)
        places = list(zip(self._parameters(), state["_state"], state["_kinds"], strict=True))
        self._state = {parameter: _on_device(kept, parameter.device) for parameter, kept, _ in places if kept is not None}
        self._kinds = {parameter: (type(parameter.data), *kind) for parameter, _, kind in places if kind}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything needed to go on later, as NumPy copies by name.

        The names are "groups.0.lr", ..., "groups.0.parameters" (how many the group has) and "state.3.exp_avg", ..., with parameters counted from 0
        over all groups. Of the groups' other entries numbers are there too; texts are not, as they do not change.

        Raises:
            TypeError: an option of a subclass is neither a number nor a tuple of numbers, or a state has an entry that neither `_new_state`, with
                the options of today, nor `_optional_state` names.
        """
        self._launches.read_steps(self._state)
        return flatten(self)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave: the groups' options, and a copy of each parameter's state on its device, floats in its dtype.

        Raises:
            ValueError: it belongs to other groups or parameters, or an option is out of range. It lists every problem, and nothing has changed.
        """
        options, states = parse(self, state_dict)
        if any(parameter in self._kinds and self._kinds[parameter] != _kind(parameter.data) for parameter in self._parameters()):
            self._launches.clear()  # moved since: no captured graph holds arrays of today
        for group, loaded in zip(self.param_groups, options, strict=True):
            group.update(loaded)
            if "initial_lr" in group:  # what is written into "lr" from now on is written by hand
                group["scheduled_lr"] = group["lr"]
        kept = {p: self._launches.in_place(p, self._state.get(p), loaded) for p, loaded in zip(self._parameters(), states, strict=True)}
        self._state = {parameter: state for parameter, state in kept.items() if state is not None}
        self._kinds = {parameter: _kind(parameter.data) for parameter in self._state}
        self._launches.write_steps(self._state)


def _kind(array: Any) -> tuple:
    """What a state depends on: the library of its parameter's array, and with it the device; dtype and shape; and whether the array is contiguous,
    without which it is not in the tables on the GPU, where steps are counted (and a kernel reads a state's arrays in order).
    """
    return type(array), array.dtype, array.shape, array.flags.c_contiguous


def _on_device(state: Mapping[str, Any], device: str) -> dict[str, Any]:
    """A parameter's state with its arrays on a device: those that are there already are not copied."""
    return {**state, **{name: backend.to_device(array, device) for name, array in arrays_of(state).items()}}


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf")
