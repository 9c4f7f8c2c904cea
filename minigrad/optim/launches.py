"""Parameters on the GPU, updated in one launch for all of a dtype: the tables it reads, and the steps it counts. Read next: `multi_tensor.py`.

Parameters that share memory, which a launch would write in no order, have a launch each, one after the other.

A captured graph repeats a launch with the tables and arrays of then. So these stay for as long as the same parameters are updated, and the graph
keeps them: what takes their place later, it knows nothing of, and `Launches.changed` says so. A step is counted where it is taken, in a table on the
GPU, and the numbers are brought to the optimiser's states when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backend import cuda
from minigrad.optim import multi_tensor
from minigrad.tensor import Tensor

__all__ = ["Launches", "arrays_of"]

States = Mapping[Tensor, dict[str, Any]]
_Launch = tuple[np.dtype, int | None]  # a dtype; and the number of the parameter that has the launch to itself, None for all others together


def arrays_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a parameter's state; what else is in it is counted, in whole numbers."""
    return {name: value for name, value in state.items() if not isinstance(value, int)}


class _Tables:
    """The parameters of one launch as the kernel has them; `layout` says when they must be made anew."""

    def __init__(self, parameters: list[Tensor], layout: list[tuple[int, int, int]], columns: int, options: np.ndarray, states: States):
        self.parameters = parameters  # kept alive: `layout` has their ids
        self.layout = layout  # of each parameter: its id, its group's number, its size
        self.chunks = multi_tensor.Chunks([size for _, _, size in layout], [group for _, group, _ in layout], columns)
        self.options = multi_tensor.DeviceCopy(options)  # (groups, numbers of a group)
        self.steps = cuda.array_module().asarray(self.steps_of(states))  # of each chunk

    def steps_of(self, states: States) -> np.ndarray:
        """The states' step counters, one for each chunk."""
        steps = np.array([states.get(parameter, {}).get("step", 0) for parameter in self.parameters], np.int32)
        return np.repeat(steps, np.diff([*self.chunks.first, self.chunks.count]))

    def write_options(self, options: np.ndarray) -> None:
        """Those of the groups that there were when the tables were made: nothing is read of others, nor of a group that has left since."""
        rows = self.options.values.copy()
        rows[: len(options)] = options[: len(rows)]
        self.options.write(rows)


class _Step:
    """What a captured step works on, as it was then.

    Args:
        groups: all parameters of the optimiser, group by group. tables: by launch. arrays: of each parameter that is in the tables, with its group's
            number, those of its state by name: None where it had none, though a gradient.
    """

    def __init__(self, groups: list[list[Tensor]], tables: dict[_Launch, _Tables], arrays: dict[Tensor, tuple[int, dict[str, Any]]]):
        self.groups, self.tables, self.arrays = groups, tables, arrays
        self.data = {parameter: parameter.data for parameter in arrays}


class Launches:
    """The launches of one optimiser.

    Args:
        kernels: the file's kernel of its own name updates the parameters; None for an optimiser that has none.
        arrays: those of a parameter's state that the kernel gets.
    """

    def __init__(self, kernels: cuda.Kernels | None, arrays: Sequence[str]):
        self._kernels, self._arrays = kernels, arrays
        self._tables: dict[_Launch, _Tables] = {}
        self._captured: cuda.Notes[_Step] = cuda.Notes()

    def update(self, members: Sequence[tuple[Tensor, int]], options: np.ndarray, states: States) -> None:
        """Update parameters, each given with its group's number. One without a gradient stays as it is, and keeps its place in the tables.

        Args:
            members: the parameters. options: of all groups. states: of the parameters; one has none before its first update.
        """
        kernels = self._kernels
        assert kernels is not None
        alone = _overlapping([parameter.data for parameter, _ in members])
        together: dict[_Launch, list[tuple[Tensor, int]]] = {}
        for number, member in enumerate(members):
            together.setdefault((member[0].dtype, number if number in alone else None), []).append(member)
        if not together.keys() >= self._tables.keys():  # some have left, or share their memory, or no longer do
            self.read_steps(states)
            self._tables = {launch: tables for launch, tables in self._tables.items() if launch in together}
        launches = []  # all memory is taken before the first
        for launch, mine in together.items():
            parameters, layout = [p for p, _ in mine], [(id(p), group, p.data.size) for p, group in mine]
            tables = self._tables.get(launch)
            if tables is None or tables.layout != layout:
                self.read_steps(states)
                tables = self._tables[launch] = _Tables(parameters, layout, 2 + len(self._arrays), options, states)
            tables.write_options(options)
            grads = [None if p.grad is None else p.grad.data for p in parameters]
            grads = [g if g is None or g.flags.c_contiguous else g.copy() for g in grads]
            arrays = [[states.get(p, {}).get(name) for p in parameters] for name in self._arrays]
            addresses = tables.chunks.addresses([p.data for p in parameters], grads, *arrays)
            launches.append((f"{kernels.path.stem}<{cuda.c_type(launch[0])}>", tables, addresses, grads))
        for name, tables, addresses, _ in launches:
            chunks = tables.chunks
            kernels.launch(name, chunks.count, 256, addresses, chunks.table, tables.options.array, tables.steps, chunks.tensors)

    def note_capture(self, groups: list[list[Tensor]], members: Sequence[tuple[Tensor, int]], states: States) -> None:
        """Note, after `update`, what a graph that is being captured works on.

        Args:
            groups: all parameters of the optimiser, group by group. members, states: as for `update`.
        """
        arrays = {}
        for parameter, group in members:
            state = states.get(parameter, {})
            names = [name for name in self._arrays if name in state or parameter.grad is not None]
            arrays[parameter] = group, {name: state.get(name) for name in names}
        self._captured.add(_Step(groups, dict(self._tables), arrays))

    def changed(self, groups: list[list[Tensor]], states: States, reads: Callable[[str, int], bool]) -> str:
        """What has taken the place of what the last captured step works on, whose graph is still there; empty if nothing has.

        Args:
            groups: as for `note_capture`. states: of the parameters. reads: whether the kernel needs a state's array of this name, with the options
                that the group of this number has now.
        """
        step = self._captured.latest()
        if step is None:
            return ""
        if [list(map(id, group)) for group in groups] != [list(map(id, group)) for group in step.groups]:
            return "its parameters, or their groups, are others"
        for parameter, array in step.data.items():
            if parameter.data is not array:
                return f"a parameter of shape {parameter.shape} has another array (it was moved, converted, or its .data was set)"
        for parameter, (group, arrays) in step.arrays.items():
            state = states.get(parameter, {})
            for name, array in arrays.items():
                if reads(name, group) and (array is None or state.get(name) is not array):
                    return f"a parameter of shape {parameter.shape} {'has come to need its' if array is None else 'has another'} {name}"
        return "" if all(self._tables.get(launch) is tables for launch, tables in step.tables.items()) else "its states were made anew"

    def write_options(self, options: np.ndarray) -> None:
        """Bring the groups' options to the GPU; `update` does so itself."""
        for tables in self._tables.values():
            tables.write_options(options)

    def read_steps(self, states: States) -> None:
        """Bring the states' step counters up to date. Waits for the GPU."""
        for tables in self._tables.values():
            steps = backend.to_device(tables.steps, "cpu")
            for parameter, first in zip(tables.parameters, tables.chunks.first, strict=True):
                if parameter in states:
                    states[parameter]["step"] = int(steps[first])

    def write_steps(self, states: States) -> None:
        """Go on from the states' step counters."""
        for tables in self._tables.values():
            cuda.write(tables.steps, tables.steps_of(states))

    def in_place(self, parameter: Tensor, present: dict[str, Any] | None, loaded: dict[str, Any] | None) -> dict[str, Any] | None:
        """What becomes of the `loaded` state of a parameter (None: it has not been updated): where a captured graph may hold addresses of arrays that
        are `present`, these get the numbers.
        """
        if present is None or not any(parameter is known for tables in self._tables.values() for known in tables.parameters):
            return loaded
        state = {"step": 0} if loaded is None else dict(loaded)
        for name, array in arrays_of(present).items():
            if loaded is None or name in loaded:
                array[...] = 0 if loaded is None else loaded[name]
                state[name] = array
        return state

    def clear(self) -> None:
        """Have all tables made anew. Captured graphs go on with the old ones, which nobody reads any more."""
        self._tables.clear()


def _overlapping(arrays: Sequence[Any]) -> set[int]:
    """Which of these arrays, each contiguous, have memory in common with another: the same array, or views of one."""
    found: set[int] = set()
    reach, last = 0, 0  # the end of those that begin before, and whose it is
    for start, end, number in sorted((array.data.ptr, array.data.ptr + array.nbytes, number) for number, array in enumerate(arrays)):
        if start < reach:
            found |= {number, last}
        if end > reach:
            reach, last = end, number
    return found
