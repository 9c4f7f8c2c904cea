"""How operations behave in a context: `no_grad`, `definitions`, `anomaly`, and what checkpoint's second run needs.

One record in one ContextVar, replaced and never changed: an operation looks once, threads and tasks do not see each other's, and an exception
leaves nothing behind. An interrupt (Ctrl-C) can fall anywhere, also as a `with` block is left: so the engine itself, which nobody would set right
after it, writes `try`, `MODE.set(...)`, `finally`, `MODE.set(before)`. The second half of the file is what anomaly mode does. Read next:
`checkpoint.py`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ContextDecorator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, cast, overload

import numpy as np

from minigrad import backend

__all__ = ["MODE", "Mode", "anomaly", "definitions", "enable_grad", "is_grad_enabled", "mode", "no_grad", "recomputing"]


@dataclass(slots=True, eq=False)
class Mode:
    """How operations behave in this context.

    record: leave Nodes behind. definitions: run fused operations from their definitions. anomaly: look for NaN and Inf. recomputing: inside
    checkpoint's second run. reads: a list that collects every (version counter, version) operations read, or None. site: the `file:line` that stands
    for all operations, where a definition is run again for a call made there. watched: anything beyond `record` that every operation must do.
    """

    record: bool = True
    definitions: bool = False
    anomaly: bool = False
    recomputing: bool = False
    reads: list | None = None
    site: str | None = None
    watched: bool = field(init=False)

    def __post_init__(self) -> None:
        self.watched = self.anomaly or self.reads is not None


MODE: ContextVar[Mode] = ContextVar("minigrad_mode", default=Mode())  # noqa: B039 (a Mode is never changed, only replaced)
"""The mode of this thread or task."""


_Function = TypeVar("_Function", bound=Callable[..., Any])


class mode(ContextDecorator):
    """Change fields of the current Mode inside a `with` block, or in a function or generator that this decorates. Afterwards the mode is what it was,
    whatever a block inside has left.
    """

    def __init__(self, **changes: Any):
        self._changes = changes
        self._before: Mode | None = None  # while a `with` block is open

    def __enter__(self) -> None:
        if self._before is not None:
            raise RuntimeError(f"mode({', '.join(self._changes)}): this one is entered already, here or in another thread; make another")
        self._before = before = MODE.get()
        try:
            MODE.set(replace(before, **self._changes))
        except BaseException:
            MODE.set(before)
            self._before = None
            raise

    def __exit__(self, *error: Any) -> None:
        assert self._before is not None
        MODE.set(self._before)
        self._before = None

    def _recreate_cm(self) -> mode:
        """For each call of a decorated function: generators and threads may be in several at once."""
        return mode(**self._changes)

    def __call__(self, function: _Function) -> _Function:
        """The function with this mode around it, also an `async` one; a generator has it whenever it runs, and whoever takes its values between has
        not.

        Raises:
            TypeError: it is a class, an `async` generator, or nothing that is called.
        """
        kind: type = type(function)
        unfit = None
        if inspect.isclass(function):
            unfit = "a class; decorate its methods"
        elif inspect.isasyncgenfunction(function):
            unfit = "an async generator; decorate what it calls"
        elif kind in (classmethod, staticmethod):
            unfit = f"a {kind.__name__}; decorate below @{kind.__name__}"
        elif not callable(function):
            unfit = f"a {kind.__name__}"
        if unfit:
            raise TypeError(f"no_grad() and its like decorate functions, and {function!r} is {unfit}")
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(kind.__call__):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with self._recreate_cm():
                    return await cast(Callable, function)(*args, **kwargs)

            return cast(_Function, awaited)
        if not inspect.isgeneratorfunction(function):
            return cast(_Function, super().__call__(function))

        @functools.wraps(function)
        def resumed(*args: Any, **kwargs: Any) -> Generator:
            generator = function(*args, **kwargs)
            try:
                with self._recreate_cm():
                    value = next(generator)
                while True:
                    try:
                        sent = yield value
                    except BaseException as error:  # by throw(), or close()
                        with self._recreate_cm():
                            value = generator.throw(error)
                    else:
                        with self._recreate_cm():
                            value = generator.send(sent)
            except StopIteration as end:
                return end.value

        return cast(_Function, resumed)


class _Maker(Protocol):
    @overload
    def __call__(self) -> mode: ...
    @overload
    def __call__(self, function: _Function, /) -> _Function: ...


def _also_bare(make: Callable[[], mode]) -> _Maker:
    """What makes a mode, as a decorator without parentheses too: `@no_grad`, as in PyTorch."""

    @functools.wraps(make)
    def made(*function: Any) -> Any:
        return make()(*function) if function else make()

    return made


@_also_bare
def no_grad() -> mode:
    """`with no_grad():` operations leave no graph behind. Source: https://docs.pytorch.org/docs/stable/generated/torch.no_grad.html"""
    return mode(record=False)


@_also_bare
def enable_grad() -> mode:
    """`with enable_grad():` undoes a surrounding `no_grad()`."""
    return mode(record=True)


@_also_bare
def definitions() -> mode:
    """`with definitions():` every fused operation called in the block runs from its definition, not its kernel: slower, and every step can be looked
    at. So does its backward, wherever that runs; a graph from outside keeps its kernels.
    """
    return mode(definitions=True)


@_also_bare
def anomaly() -> mode:
    """`with anomaly():` the first operation that makes a NaN or Inf, forward or backward, raises FloatingPointError naming it, its shapes and the
    caller's line.
    """
    return mode(anomaly=True)


def is_grad_enabled() -> bool:
    """Whether operations record a graph in this context."""
    return MODE.get().record


def recomputing() -> bool:
    """Whether checkpoint is running a function for the second time (BatchNorm then leaves its statistics alone)."""
    return MODE.get().recomputing


# --- anomaly mode


_OUTSIDE = "a line outside `with anomaly():`"


def caller_site() -> str:
    """The `file:line` of the code outside this package that called the running operation."""
    site = MODE.get().site
    if site is not None:
        return site
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "minigrad":
        frame = frame.f_back
    return "an unknown line" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _bad(array: Any) -> str | None:
    """What the array holds that is no number: "NaN", "Inf", or None."""
    array = backend.to_device(array, "cpu")
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return None
    return "NaN" if np.isnan(array).any() else "Inf"


def check_forward(name: str, inputs: Sequence[Any], values: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Raise FloatingPointError if the operation made a NaN, or an Inf out of finite numbers. An Inf that was given (a mask) may pass."""
    for out in outputs:
        bad = _bad(out)
        if bad is None:
            continue
        given = [_bad(x) for x in inputs if x is not None] + ["Inf" for v in values if isinstance(v, float) and not np.isfinite(v)]
        if bad == "NaN" or not any(given):
            shapes = ", ".join(str(x.shape) for x in inputs if x is not None)
            already = f" (an input already holds {next(filter(None, given))})" if any(given) else ""
            raise FloatingPointError(
                f"anomaly: {name} made {bad} in its output of shape {out.shape} from inputs of shape {shapes}{already}, called at {caller_site()}"
            )


def in_backward(error: FloatingPointError, node: Any) -> FloatingPointError:
    """The error of an operation that ran as part of the backward of `node`, with that operation's name and the line its forward was called at."""
    text = str(error)
    if not text.startswith("anomaly: ") or "forward was called at" in text:  # NumPy's own, or that of a walk inside this one
        return error
    what = text.removeprefix("anomaly: ").rpartition(", called at ")[0]
    return FloatingPointError(f"anomaly: backward of {node.op.name}: {what}; its forward was called at {node.site or _OUTSIDE}")


def check_sum(total: Any, site: str | None, what: str) -> None:
    """Raise FloatingPointError if a sum of gradients holds a NaN or Inf: each of them was looked at before, so adding them made it."""
    bad = _bad(total)
    if bad is not None:
        where = "" if site is None else f", whose forward was called at {site}"
        raise FloatingPointError(f"anomaly: the gradients that reach {what} of shape {total.shape}{where} add up to {bad}")


def check_gradients(node: Any, incoming: Sequence[Any], results: Sequence[Any]) -> None:
    """Raise FloatingPointError if the backward of `node` made a NaN or Inf, with the line its forward was called at."""
    for edge, gradient in zip(node.edges, results, strict=True):
        if edge is not None and gradient is not None and (bad := _bad(gradient.data)):
            already = " (the incoming gradient already holds one)" if any(_bad(g.data) for g in incoming if g is not None) else ""
            raise FloatingPointError(
                f"anomaly: backward of {node.op.name} made {bad} in a gradient of shape {gradient.shape}{already}; "
                f"its forward was called at {node.site or _OUTSIDE}"
            )
