"""The calls of primitives of one and of two Tensors and nothing else, which are most of what a network calls: `Primitive._run` without its cases.

They are here for speed alone, which counts where arrays are small: no loop over the inputs, no values, no conversions. A call that needs any of
these is `_run`'s, and what a call gives and leaves in its node is the same by either way. Read before: `primitive_op.py`; next: `fused_op.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from minigrad.modes import MODE
from minigrad.node import Node, node_numbers
from minigrad.tensor import Tensor, wrap

__all__ = ["binary", "called", "unary"]

_ndarray = np.ndarray
_new_node = Node.__new__


def called(call: FunctionType, function: Callable, name: str) -> FunctionType:
    """A copy of `unary` or `binary` with an operation's name, and with the names and defaults of the parameters of its `function`.

    Python says them where arguments do not fit (`relu(x, inplace=True)`), and the name stands in a profile. A look at the arguments here would take
    time in every call.
    """
    code = call.__code__
    parameters = inspect.signature(function).parameters
    defaults = tuple([p.default for p in parameters.values() if p.default is not p.empty])
    variables = (code.co_varnames[0], *parameters, *code.co_varnames[1 + len(parameters) :])
    return FunctionType(code.replace(co_name=name, co_qualname=name, co_varnames=variables), call.__globals__, name, defaults or None)


def unary(self: Any, x: Any) -> Tensor:
    """The `__call__` of `primitive_op.Unary`."""
    mode = MODE.get()
    if type(x) is not Tensor or mode.watched or (self.floating and x.data.dtype.kind != "f"):
        return self._run((x,), ())
    array = x.data
    try:
        out = self.function(array)
    except (ValueError, IndexError, TypeError) as error:
        self._explain(error, (array,))
        raise
    if type(out) is not _ndarray:
        out = self._array(out, (array,))
    version = None if out.base is None and out is not array else self._shared_version(out, (x,))
    if not x._requires_grad or not mode.record or not self.rules:
        return wrap(out, None, 0, version)
    node = _new_node(Node)
    node.op = self
    node.edges = ((x, 0) if x.node is None else (x.node, x.output),)
    node.values = node.facts = ()
    node.outputs = 1
    node.order = next(node_numbers)
    node.site = node.shapes = None
    node.plan = plan = self._plans.get(1) or self._plan(1)
    result = wrap(out, node, 0, version)
    if plan.saves:
        node.saved, node.versions = (x,), (x.version[0],)
    else:
        node.saved = node.versions = ()
    node.out = (out, result.version, result.version[0]) if plan.out else None
    if plan.facts:
        self._keep_for_rules(node, plan, (x,), result)
    return result


def binary(self: Any, x: Any, y: Any) -> Tensor:
    """The `__call__` of `primitive_op.Binary`."""
    mode = MODE.get()
    if type(y) is float and not mode.watched and type(x) is Tensor and x.data.dtype.kind == "f" and type(x.data) is _ndarray and self.elementwise:
        y = wrap(np.array(y, x.data.dtype))  # a number never changes the dtype
    elif type(x) is not Tensor or type(y) is not Tensor or mode.watched:
        return self._run((x, y), ())
    a, b = x.data, y.data
    dtype = a.dtype
    if dtype is not b.dtype or type(a) is not type(b) or (self.floating and dtype.kind != "f"):
        return self._run((x, y), ())
    try:
        out = self.function(a, b)
    except (ValueError, IndexError, TypeError) as error:
        self._explain(error, (a, b))
        raise
    if type(out) is not _ndarray:
        out = self._array(out, (a, b))
    version = None if out.base is None and out is not a and out is not b else self._shared_version(out, (x, y))
    if x._requires_grad:
        mask = 3 if y._requires_grad else 1
    elif y._requires_grad:
        mask = 2
    else:
        mask = 0
    if not mask or not mode.record or not (mask := mask & self.with_gradient):
        return wrap(out, None, 0, version)
    node = _new_node(Node)
    node.op = self
    node.edges = (
        None if not mask & 1 else (x, 0) if x.node is None else (x.node, x.output),
        None if not mask & 2 else (y, 0) if y.node is None else (y.node, y.output),
    )
    node.values = ()
    node.outputs = 1
    node.order = next(node_numbers)
    node.site = None
    if self.elementwise and not a.shape == out.shape == b.shape:
        node.shapes = (a.shape, b.shape)  # gradients must be summed back to these
    else:
        node.shapes = None
    result = wrap(out, node, 0, version)
    self._keep_for_rules(node, self._plans.get(mask) or self._plan(mask), (x, y), result)
    return result
