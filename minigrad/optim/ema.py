"""EMA: an exponential moving average of a model's weights, which often generalises better than the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ContextDecorator
from functools import partial
from typing import Any

import numpy as np

from minigrad import backend
from minigrad.backend import cuda
from minigrad.nn.module import Module
from minigrad.nn.state_dict import loadable
from minigrad.optim import multi_tensor
from minigrad.optim.blocks import in_blocks, reserved
from minigrad.tensor import Tensor

__all__ = ["EMA"]

_cuda = cuda.Kernels(__file__)
_DTYPES = "fdl"  # float32, float64, and int64: batch norm's counters
# On the GPU: sizes of the tensors of a dtype, how they are cut, and what the kernel multiplies by.
_Tables = dict[np.dtype, tuple[list[int], multi_tensor.Chunks, multi_tensor.DeviceCopy]]


class EMA:
    """A shadow copy of a module's parameters and buffers: shadow = decay * shadow + (1 - decay) * value at every update.

    Buffers are averaged as parameters are (batch norm's running statistics belong to the weights they were measured with); those of integers are
    copied.

    Args:
        module: whose weights to follow; the shadow starts as a copy of them.
        decay: from 0 to 1; 0.999 remembers about the last 1,000 updates.

    Raises:
        ValueError: decay is not from 0 to 1.

    Source: Polyak and Juditsky 1992; timm's ModelEma
    """

    def __init__(self, module: Module, decay: float = 0.999):
        if not 0 <= decay <= 1:
            raise ValueError(f"EMA: decay is {decay}; give a number from 0 to 1")
        self.module, self.decay = module, decay
        self._shadow = {name: tensor.data.copy() for name, tensor in self._tensors()}
        self._tables: _Tables = {}
        self._captured: cuda.Notes[_Update] = cuda.Notes()

    def __repr__(self) -> str:
        return f"EMA({type(self.module).__name__} with {len(self._shadow)} parameters and buffers, decay={self.decay})"

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the shadow in the host's memory, and the devices it was on. The tables for the GPU are made anew."""
        shadow = {name: (backend.to_device(array, "cpu"), backend.device_of(array)) for name, array in self._shadow.items()}
        return {**self.__dict__, "_shadow": shadow, "_tables": {}, "_captured": cuda.Notes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shadow = {name: backend.to_device(array, device) for name, (array, device) in state["_shadow"].items()}

    def _tensors(self, module: Module | None = None) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by name. Looked up each time: batch norm replaces its buffers."""
        module = module or self.module
        yield from module.named_parameters()
        yield from module.named_buffers()

    def _followed(self, who: str) -> list[tuple[str, Tensor]]:
        """The module's parameters and buffers by name, after each of the shadow's arrays has followed its tensor to its dtype and device.

        Raises ValueError for `who` if there is a new one, or one of another shape; nothing has changed then.
        """
        tensors = list(self._tensors())
        if new := [name for name, _ in tensors if name not in self._shadow]:
            raise ValueError(f"EMA.{who}: the module has {', '.join(new)} now, which it had not when this average was begun; begin another")
        moved = {}
        for name, tensor in tensors:
            shadow, value = self._shadow[name], tensor.data
            if shadow.shape != value.shape:
                raise ValueError(f"EMA.{who}: {name} has shape {value.shape} now, and had {shadow.shape} when this average was begun; begin another")
            if type(shadow) is not type(value) or shadow.dtype != value.dtype:
                moved[name] = backend.to_device(shadow, tensor.device).astype(value.dtype, copy=False)
        self._shadow.update(moved)
        return tensors

    def update(self) -> None:
        """Move the shadow towards the module's present weights, shadow += (1 - decay) * (value - shadow); call it after `optimizer.step()`.

        A module that was moved takes the shadow along. A captured graph that holds this update works on the arrays of then: see `upload`.

        Raises:
            ValueError: the module has a parameter or buffer now that it did not have, or one of another shape; or one on the GPU is not contiguous
            while work is captured. MemoryError: there is none for what this needs beside. Nothing has changed then (where weights are infinite, which
            needs more, it may be in the middle, though).
        """
        on_gpu: dict[np.dtype, dict[str, tuple[Any, Any]]] = {}
        here: list[tuple[Any, Any]] = []
        copied: list[tuple[Any, Any]] = []
        for name, tensor in self._followed("update"):
            shadow = self._shadow[name]
            if multi_tensor.fits(tensor.data, _DTYPES):  # the shadow then does, too: it never has gaps
                on_gpu.setdefault(tensor.dtype, {})[name] = shadow, tensor.data
            elif tensor.dtype.kind == "f":
                if tensor.device == "cuda" and cuda.capturing():
                    what = f"{name} is not contiguous and cannot be averaged in a captured step, which would repeat today's decay"
                    raise ValueError(f"EMA.update: {what}; make a copy its .data first")
                here.append((shadow, tensor.data))
            else:
                copied.append((shadow, tensor.data))
        launches = [self._launch(dtype, list(pairs.values())) for dtype, pairs in on_gpu.items()]
        if on_gpu and cuda.capturing():
            self._captured.add(_Update(dict(self._tables), {name: pair for pairs in on_gpu.values() for name, pair in pairs.items()}))
        with reserved(here):
            for shadow, value in here:
                in_blocks(partial(_average, self.decay), shadow, value)
        for shadow, value in copied:
            shadow[...] = value
        for launch in launches:
            launch()

    def _launch(self, dtype: np.dtype, pairs: list[tuple[Any, Any]]) -> Callable[[], None]:
        """One launch for all (shadow, value) of a dtype: what is left to do when its memory is there."""
        sizes = [shadow.size for shadow, _ in pairs]
        if dtype not in self._tables or self._tables[dtype][0] != sizes:
            self._tables[dtype] = sizes, multi_tensor.Chunks(sizes, [0] * len(sizes), 2), multi_tensor.DeviceCopy(self._factors(dtype))
        _, chunks, factors = self._tables[dtype]
        factors.write(self._factors(dtype))
        addresses = chunks.addresses(*zip(*pairs, strict=True))
        kernel = f"ema<{'long long' if dtype.kind == 'i' else cuda.c_type(dtype)}>"
        return lambda: _cuda.launch(kernel, chunks.count, 256, addresses, chunks.table, factors.array, chunks.tensors)

    def _factors(self, dtype: np.dtype) -> np.ndarray:
        """What the kernel multiplies the shadow and the value by."""
        return np.array([0, 1] if dtype.kind == "i" else [self.decay, 1 - self.decay], np.float64)

    def upload(self) -> None:
        """Bring the decay to the GPU: before a captured graph that holds this average's update is launched.

        An update that is not captured does so itself.

        Raises:
            ValueError: the graph that was captured last works on arrays whose place others have taken.
        """
        update = self._captured.latest()
        captured: _Tables = {}
        if update is not None:
            captured = update.tables  # an update that was not captured may have made others since
            now = {name: (id(self._shadow.get(name)), id(tensor.data)) for name, tensor in self._tensors()}
            for name, (shadow, value) in update.arrays.items():
                if now.get(name) != (id(shadow), id(value)):
                    what = f"{name} has another array (it was moved, converted, or its .data was set) since the update was captured"
                    raise ValueError(f"EMA.upload: {what}, and the graph knows the old one: capture it again")
        for dtype, (_, _, factors) in (*self._tables.items(), *captured.items()):
            factors.write(self._factors(dtype))

    def copy_to(self, module: Module | None = None) -> None:
        """Write the shadow into `module` (a model of the same names and shapes; the followed one by default), in place.

        Raises:
            ValueError: names or shapes differ; nothing has been written.
        """
        shapes = {name: tensor.shape for name, tensor in self._tensors(module)}
        averaged = {name: array.shape for name, array in self._shadow.items()}
        if wrong := [name for name in shapes | averaged if shapes.get(name) != averaged.get(name)]:
            raise ValueError(f"EMA.copy_to: the module's names or shapes differ from the averaged ones at {', '.join(wrong)}")
        self._write_module(self._shadow, module)

    def swap(self) -> None:
        """Exchange the module's weights and the shadow, in place; a second call exchanges them back. If something raises, nothing is exchanged.

        Raises:
            ValueError: as `update`.
        """
        self._followed("swap")
        own, averaged = self._own(), {name: array.copy() for name, array in self._shadow.items()}
        try:
            self._write_shadow(own)
            self._write_module(averaged)
        except BaseException:
            self._write_shadow(averaged)
            self._write_module(own)
            raise

    def _own(self) -> dict[str, Any]:
        """Copies of the module's weights."""
        return {name: tensor.data.copy() for name, tensor in self._tensors()}

    def _write_module(self, values: Mapping[str, Any], module: Module | None = None) -> None:
        for name, tensor in self._tensors(module):
            if name in values and values[name].shape == tensor.shape:  # others are new in a module that has changed under `swapped`
                tensor.detach().copy_(backend.to_device(values[name], tensor.device))

    def _write_shadow(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self._shadow[name][...] = value  # in place, as in load_state_dict: a captured graph knows its address

    def swapped(self) -> AbstractContextManager[Module]:
        """`with ema.swapped() as model:` the module has the averaged weights inside the block, and its own again after it, also after an interrupt.

        What the block changes of them, such as batch norm's statistics, stays in the average. One interrupt cannot be caught: at the very moment when
        the block is left, Python raises it before anything here runs, and the module keeps the averaged weights.

        Not between a student's forward and backward, whose graph would find its weights changed: a teacher there is a model of its own, made by
        `teacher = copy.deepcopy(model)` and brought up to date by `ema.copy_to(teacher)`.

        Raises:
            ValueError: as `update`.
        """
        return _Swapped(self)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Name -> NumPy copy of the shadow, under the module's own names: `module.load_state_dict` takes it too (unless tensors are shared)."""
        return {name: np.array(backend.to_device(array, "cpu"), order="C") for name, array in self._shadow.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: names or shapes differ, or a value is not an array of numbers; it lists every one. Or as `update`. Nothing has changed then.
            MemoryError: there is none on the GPU for one of the arrays; those before it have been written.
        """
        loaded = {name: loadable(value) for name, value in state_dict.items()}
        problems = [f"missing {name}" for name in self._shadow if name not in loaded]
        problems += [f"unexpected {name}" for name in loaded if name not in self._shadow]
        for name, value in loaded.items():
            if value is None:
                problems.append(f"{name} is {type(state_dict[name]).__name__}, not an array of numbers")
            elif name in self._shadow and value.shape != self._shadow[name].shape:
                problems.append(f"{name} has shape {value.shape}, here {self._shadow[name].shape}")
        if problems:
            raise ValueError(f"load_state_dict: EMA cannot take these {len(loaded)} entries: {'; '.join(problems)}")
        self._followed("load_state_dict")
        for name, shadow in self._shadow.items():
            shadow[...] = backend.to_device(loaded[name], backend.device_of(shadow))


class _Update:
    """What a captured update works on, as it was then: the tables; arrays of the shadow and of the module by name."""

    def __init__(self, tables: _Tables, arrays: Mapping[str, tuple[Any, Any]]):
        self.tables, self.arrays = tables, arrays


def _average(decay: float, shadow: Any, value: Any, scratch: Any) -> None:
    """shadow += (1 - decay) * (value - shadow), in place; the difference is 0 for weights that rest (decay + (1 - decay) is not 1 in float32)."""
    if decay in (0, 1):  # no infinite number times 0, which is NaN
        if decay == 0:
            shadow[...] = value
        return
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(value, shadow, out=scratch)
        if _all_finite(scratch):
            _move(decay, shadow, value, scratch)
        else:
            _average_of_infinite(decay, shadow, value, scratch)


def _all_finite(difference: Any) -> bool:
    """NumPy's quickest look at all of them; False also where the squares are too large for a number, and where it was not looked."""
    return type(difference) is np.ndarray and math.isfinite(np.vdot(difference, difference))


def _move(decay: float, shadow: Any, value: Any, difference: Any) -> None:
    """By the smaller part of the difference, which is overwritten: from the shadow, or back from the value."""
    if decay >= 0.5:
        np.multiply(difference, 1 - decay, out=difference)
        np.add(shadow, difference, out=shadow)
    else:
        np.multiply(difference, decay, out=difference)
        np.subtract(value, difference, out=shadow)


def _average_of_infinite(decay: float, shadow: Any, value: Any, difference: Any) -> None:
    """decay * shadow + (1 - decay) * value where the difference is no number: of infinite ones, such as a mask's, and of those too far apart."""
    finite = np.isfinite(difference)
    formula = decay * shadow + (1 - decay) * value
    _move(decay, shadow, value, difference)
    shadow[...] = np.where(finite, shadow, formula)


class _Swapped(AbstractContextManager[Module], ContextDecorator):
    """See `EMA.swapped`. No generator, whose `finally` an interrupt could put off until the traceback is let go: it would then write the weights of
    that time over those that were trained since.
    """

    def __init__(self, ema: EMA):
        self._ema = ema
        self._own: dict[str, Any] | None = None  # inside the block

    def _recreate_cm(self) -> _Swapped:
        """For each call of a function that this decorates."""
        return _Swapped(self._ema)

    def __enter__(self) -> Module:
        if self._own is not None:
            raise RuntimeError("EMA.swapped: this one is entered already; make another")
        self._ema._followed("swapped")
        self._own = self._ema._own()
        try:
            self._ema._write_module(self._ema._shadow)
            return self._ema.module
        except BaseException as error:
            self.__exit__(type(error))
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        own, ema = self._own, self._ema
        assert own is not None
        try:
            if kind is None:
                ema._followed("swapped")
                ema._write_shadow(ema._own())
        finally:
            try:
                ema._write_module(own)
            except BaseException:
                ema._write_module(own)
                raise
            finally:
                self._own = None
