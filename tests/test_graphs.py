"""Random graphs beside PyTorch's: a state machine that grows a graph, writes into it, walks it in every way, and compares after every step.

Every value exists three times:

* `ours`, a Tensor of this engine;
* `theirs`, a PyTorch tensor that goes through the same operations, views and writes in place: it says which values change with a write, and where
  an error is due;
* `pure`, a PyTorch tensor of a graph in which nothing is ever written or freed: a write makes a new value there, through which gradients pass. It
  says what the right gradients are, also where PyTorch's engine refuses.

So a backward pass either gives `pure`'s gradients or raises, and it raises only where it must. All of it again with `ours` on the device "cuda".
More graphs: HYPOTHESIS_PROFILE=deep.
Read next: `test_versions.py`.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import minigrad
from minigrad import Tensor, checkpoint, ops
from minigrad import functional as F
from minigrad.op import REGISTRY, Fused
from tests.cuda_device import on_cuda
from tests.support import as_numpy, assert_close, rng

T = torch.nn.functional
SIZE = 24  # elements of the largest tensor
LARGEST = 50.0  # larger numbers are not used any further
TOLERANCE = 1e-8  # of the largest gradient: rounding grows along a chain of a few dozen operations


# --- the operations: (ours, PyTorch's, what the inputs must be)


def _small(x: np.ndarray) -> bool:
    """Fit to go on with: the cosine of 1e6 has lost six digits, which no two engines lose alike."""
    return bool(np.isfinite(x).all() and np.abs(x).max(initial=0) <= LARGEST)


def _far_from_zero(x: np.ndarray) -> bool:
    return bool((np.abs(x) > 0.3).all())


def _positive(x: np.ndarray) -> bool:
    return bool((x > 0.1).all())


def _off(x: np.ndarray, *kinks: float) -> bool:
    """Not near a kink, where rounding decides which side the two engines are on. What holds exactly on it the tests of each operation pin."""
    return all((np.abs(x - kink) > 1e-6).all() for kink in kinks)


def _apart(x: np.ndarray) -> bool:
    return bool((np.diff(np.sort(x, axis=None)) > 1e-6).all())


def _pattern(x: Any) -> np.ndarray:
    return np.arange(np.prod(x.shape, dtype=int)).reshape(x.shape) % 3 != 1


def _last_axis(x: np.ndarray) -> bool:
    return x.ndim > 0 and x.shape[-1] > 1


def _image(x: np.ndarray) -> bool:
    return x.ndim == 2 and x.shape[0] > 1 and x.shape[1] > 1 and _apart(x)


def _axis(shape: tuple, number: int) -> int:
    return number % max(len(shape), 1)


UNARY: dict[str, tuple[Callable, Callable, Callable | None]] = {
    "neg": (lambda x, k: -x, lambda x, k: -x, None),
    "exp": (lambda x, k: x.exp(), lambda x, k: x.exp(), lambda x: (x < 3).all()),
    "log": (lambda x, k: x.log(), lambda x, k: x.log(), _positive),
    "sqrt": (lambda x, k: x.sqrt(), lambda x, k: x.sqrt(), _positive),
    "tanh": (lambda x, k: x.tanh(), lambda x, k: x.tanh(), None),
    "sigmoid": (lambda x, k: x.sigmoid(), lambda x, k: x.sigmoid(), None),
    "erf": (lambda x, k: x.erf(), lambda x, k: x.erf(), None),
    "sin": (lambda x, k: x.sin(), lambda x, k: x.sin(), None),
    "cos": (lambda x, k: x.cos(), lambda x, k: x.cos(), None),
    "relu": (lambda x, k: x.relu(), lambda x, k: x.relu(), lambda x: _off(x, 0)),
    "abs": (lambda x, k: x.abs(), lambda x, k: x.abs(), lambda x: _off(x, 0)),
    "clip": (lambda x, k: x.clip(-0.5, 0.7), lambda x, k: x.clamp(-0.5, 0.7), lambda x: _off(x, -0.5, 0.7)),
    "square": (lambda x, k: x**2, lambda x, k: x**2, None),
    "cube": (lambda x, k: x**3, lambda x, k: x**3, None),
    "root": (lambda x, k: x**0.4, lambda x, k: x**0.4, _positive),
    "times a number": (lambda x, k: 0.5 * x + 1.0, lambda x, k: 0.5 * x + 1.0, None),
    "a number over": (lambda x, k: 1.0 / x, lambda x, k: torch.ones((), dtype=x.dtype) / x, _far_from_zero),
    "sum": (lambda x, k: x.sum(), lambda x, k: x.sum(), None),
    "sum, axis": (lambda x, k: x.sum(_axis(x.shape, k)), lambda x, k: x.sum(_axis(x.shape, k)), lambda x: x.ndim),
    "mean": (lambda x, k: x.mean(_axis(x.shape, k), keepdims=True), lambda x, k: x.mean(_axis(x.shape, k), keepdim=True), lambda x: x.ndim),
    "var": (lambda x, k: x.var(_axis(x.shape, k)), lambda x, k: x.var(_axis(x.shape, k), unbiased=False), lambda x: x.ndim),
    "max": (lambda x, k: x.max(_axis(x.shape, k)), lambda x, k: x.amax(_axis(x.shape, k)), lambda x: x.ndim and _apart(x)),
    "min": (lambda x, k: x.min(), lambda x, k: x.amin(tuple(range(x.ndim))), lambda x: x.ndim and _apart(x)),
    "copying index": (lambda x, k: x[[0, -1, 0]], lambda x, k: x[[0, -1, 0]], lambda x: x.ndim and 3 * x[0].size <= SIZE),
    "boolean index": (lambda x, k: x[_pattern(x)], lambda x, k: x[torch.tensor(_pattern(x))], lambda x: x.ndim),
    "pad": (
        lambda x, k: ops.pad(x, ((1, 0),) * x.ndim, 0.25),
        lambda x, k: T.pad(x, (1, 0) * x.ndim, value=0.25),
        lambda x: 0 < x.ndim and np.prod([n + 1 for n in x.shape]) <= SIZE,
    ),
    "softmax": (lambda x, k: F.softmax(x), lambda x, k: x.softmax(-1), _last_axis),
    "log_softmax": (lambda x, k: F.log_softmax(x), lambda x, k: x.log_softmax(-1), _last_axis),
    "gelu": (lambda x, k: F.gelu(x), lambda x, k: T.gelu(x), None),
    "layer_norm": (lambda x, k: F.layer_norm(x, eps=0.1), lambda x, k: T.layer_norm(x, x.shape[-1:], eps=0.1), _last_axis),
    "max_pool2d": (
        lambda x, k: F.max_pool2d(x.reshape(1, *x.shape, 1), 2, 1).reshape(x.shape[0] - 1, x.shape[1] - 1),
        lambda x, k: T.max_pool2d(x.reshape(1, 1, *x.shape), 2, 1).reshape(x.shape[0] - 1, x.shape[1] - 1),
        _image,
    ),
}

VIEWS: dict[str, tuple[Callable, Callable, Callable | None]] = {
    "flat": (lambda x, k: x.reshape(-1), lambda x, k: x.reshape(-1), None),
    "transposed": (lambda x, k: x.T, lambda x, k: x.permute(tuple(reversed(range(x.ndim)))), None),
    "new axis": (lambda x, k: x[None], lambda x, k: x[None], lambda x: x.ndim < 3),
    "row": (lambda x, k: x[k % len(x)], lambda x, k: x[k % len(x)], lambda x: x.ndim),
    "slice": (lambda x, k: x[..., 1:], lambda x, k: x[..., 1:], _last_axis),
    "every second": (lambda x, k: x[::2], lambda x, k: x[::2], lambda x: x.ndim),
    "unbound": (lambda x, k: x.unbind(-1)[k % x.shape[-1]], lambda x, k: x.select(-1, k % x.shape[-1]), lambda x: x.ndim),
    "repeated": (lambda x, k: x.broadcast_to((2, *x.shape)), lambda x, k: x.expand(2, *x.shape), lambda x: x.ndim < 3 and 2 * x.size <= SIZE),
    "identity": (lambda x, k: ops.identity(x), lambda x, k: x.view_as(x), None),
    "detached": (lambda x, k: x.detach(), lambda x, k: x.detach(), None),
}


def _broadcast(x: np.ndarray, y: np.ndarray) -> bool:
    try:
        return bool(np.prod(np.broadcast_shapes(x.shape, y.shape)) <= SIZE)
    except ValueError:
        return False


def _differ(x: np.ndarray, y: np.ndarray) -> bool:
    return _broadcast(x, y) and _off(x - y, 0)


def _join(x: np.ndarray, y: np.ndarray) -> bool:
    return x.ndim == y.ndim > 0 and x.shape[1:] == y.shape[1:] and 2 * x.size + y.size <= SIZE


def _alike(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and x.ndim < 3 and 2 * x.size <= SIZE


def _product(x: np.ndarray, y: np.ndarray) -> bool:
    return x.ndim == 2 and y.ndim in (1, 2) and x.shape[1] == y.shape[0]


def _attend(x: Any, y: Any) -> Any:
    return torch.softmax(x @ y.T * x.shape[1] ** -0.5, -1) @ y


BINARY: dict[str, tuple[Callable, Callable, Callable]] = {
    "add": (lambda x, y: x + y, lambda x, y: x + y, _broadcast),
    "residual": (lambda x, y: (x + y) + x, lambda x, y: (x + y) + x, lambda x, y: x.shape == y.shape),
    "sub": (lambda x, y: x - y, lambda x, y: x - y, _broadcast),
    "mul": (lambda x, y: x * y, lambda x, y: x * y, _broadcast),
    "div": (lambda x, y: x / y, lambda x, y: x / y, lambda x, y: _broadcast(x, y) and _far_from_zero(y)),
    "maximum": (ops.maximum, torch.maximum, _differ),
    "minimum": (ops.minimum, torch.minimum, _differ),
    "where": (
        lambda x, y: ops.where(Tensor(_pattern(x)).to(device=x.device), x, y),
        lambda x, y: torch.where(torch.tensor(_pattern(x)), x, y),
        _broadcast,
    ),
    "pow": (lambda x, y: x**y, lambda x, y: x**y, lambda x, y: _broadcast(x, y) and _positive(x) and (np.abs(y) < 3).all()),
    "matmul": (lambda x, y: x @ y, lambda x, y: x @ y, _product),
    "x.T @ y": (lambda x, y: x.T @ y, lambda x, y: x.T @ y, lambda x, y: x.ndim == 2 and _product(x.T, y) and x.shape[1] * y[0].size <= SIZE),
    "concatenate": (lambda x, y: ops.concatenate([x, y, x]), lambda x, y: torch.cat([x, y, x]), _join),
    "stack": (lambda x, y: ops.stack([x, y], -1), lambda x, y: torch.stack([x, y], -1), _alike),
    "linear": (F.linear, T.linear, lambda x, y: x.ndim and y.ndim == 2 and x.shape[-1] == y.shape[1] and x.size // x.shape[-1] * len(y) <= SIZE),
    "linear, bias": (
        lambda x, y: F.linear(y, y, x),
        lambda x, y: T.linear(y, y, x),
        lambda x, y: x.ndim == 1 and y.ndim == 2 and len(x) == len(y) and len(y) ** 2 <= SIZE,
    ),
    "layer_norm, weight": (
        lambda x, y: F.layer_norm(x, y, eps=0.1),
        lambda x, y: T.layer_norm(x, y.shape, y, eps=0.1),
        lambda x, y: y.ndim == 1 and _last_axis(x) and x.shape[-1:] == y.shape,
    ),
    "attention": (
        lambda x, y: F.scaled_dot_product_attention(x[None, None], y[None, None], y[None, None])[0, 0],
        _attend,
        lambda x, y: x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1],
    ),
}  # fmt: skip

RECENT = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 6, 9, 14, 22, 35])  # mostly the newest: graphs become deep
OPERATIONS = st.sampled_from(sorted(UNARY | VIEWS | BINARY))

# These read more than PyTorch's do, and may refuse where PyTorch does not: the kernels of attention and GELU read their own output, and checkpoint
# everything that its function read.
READ_MORE = {"scaled_dot_product_attention", "gelu", "checkpoint"}
# With create_graph these run their definition again, on all inputs.
RUN_AGAIN = {op.name for op in REGISTRY.values() if isinstance(op, Fused) and not op.rules}


class Rewritten(torch.autograd.Function):
    """What a write in place is in `pure`: other numbers, the same place in the graph."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return numbers.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple:  # type: ignore[override]
        return g, None


numbers = itertools.count()


class Value:
    """One tensor of the graph, three times; `origin` is `pure` before any write. parents: what it was made of.

    freed: the operation that made it was walked without retain_graph: "yes", "no", "maybe". vague: which operations a walk meets behind it is not
    known exactly, because of a second derivative (the engines' formulas differ) or a checkpoint that did not use one of its inputs. recomputed: a
    checkpoint made it, so that formulas of gradients in which it occurs (tanh's, say) have been given another tensor, with the same numbers.
    """

    def __init__(self, ours: Tensor, theirs: torch.Tensor, pure: torch.Tensor, parents: tuple[Value, ...] = (), vague: bool = False):
        self.ours, self.theirs, self.pure, self.origin, self.parents = ours, theirs, pure, pure, parents
        self.vague = vague or any(p.vague for p in parents)
        self.recomputed = False
        self.freed = "no"
        self.number = next(numbers)  # parents have smaller ones
        self.version = theirs._version

    def rewired(self) -> bool:
        """Whether PyTorch has given it another node, as it does to views that are written: a walk may then miss what was made of it before."""
        return self.theirs._is_view() and self.theirs._version > self.version

    def history(self) -> dict[Value, None]:
        """This value and everything it was made of that requires grad."""
        seen, stack = {self: None}, [self]
        while stack:
            for parent in stack.pop().parents:
                if parent not in seen and parent.ours.requires_grad:
                    seen[parent] = None
                    stack.append(parent)
        return seen


def refusal(function: Callable) -> tuple[Any, str]:
    """What the function returns and "", or None and the text of its RuntimeError."""
    try:
        return function(), ""
    except RuntimeError as error:
        return None, str(error)


class RandomGraphs(RuleBasedStateMachine):
    """Rules name values by numbers, counted from the newest, modulo how many there are."""

    device = "cpu"  # of `ours`

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.leaves: list[Value] = []
        self.warnings = warnings.catch_warnings()
        self.warnings.__enter__()
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")

    def teardown(self) -> None:
        for x in self.leaves:
            x.pure.grad = x.origin.grad = None  # with create_graph, PyTorch's leaf and gradient hold each other
        self.warnings.__exit__(None, None, None)

    def tensor(self, array: np.ndarray) -> Tensor:
        return Tensor(array).to(device=self.device)

    def value(self, number: int) -> Value:
        return self.values[-1 - number % len(self.values)]

    def differentiable(self, number: int) -> Value:
        """A value with a graph behind it; large numbers stand for any value."""
        able = [v for v in self.values if v.parents]
        return able[-1 - number % len(able)] if able and number < 45 else self.value(number)

    def add(self, value: Value) -> None:
        array = as_numpy(value.ours)
        if array.size and array.size <= SIZE and _small(array):
            self.values.append(value)
            self.check(value)

    @staticmethod
    def check(value: Value) -> None:
        assert value.ours.requires_grad == value.pure.requires_grad
        assert_close(value.ours, value.theirs, "PyTorch with writes")
        assert_close(value.ours, value.pure, "PyTorch without writes")

    # --- growing

    @initialize(seed=st.integers(0, 2**16))
    def two_leaves(self, seed: int) -> None:
        self.leaf((2, 3), True, seed)
        self.leaf((3,), True, seed + 1)

    @precondition(lambda self: len(self.leaves) < 4)
    @rule(
        shape=st.sampled_from([(), (1,), (3,), (2, 3), (3, 2), (3, 3), (2, 1), (1, 3), (2, 2, 3)]),
        requires_grad=st.booleans(),
        seed=st.integers(0, 2**16),
    )
    def leaf(self, shape: tuple, requires_grad: bool, seed: int) -> None:
        array = np.asarray(rng(seed).uniform(-2, 2, shape))
        theirs, pure = torch.tensor(array, requires_grad=requires_grad), torch.tensor(array, requires_grad=requires_grad)
        value = Value(self.tensor(array).requires_grad_(requires_grad), theirs, pure)
        self.values.append(value)
        if requires_grad:
            self.leaves.append(value)

    def apply(self, ours: Callable, theirs: Callable, inputs: tuple[Value, ...], recorded: bool = True) -> Value:
        with nullcontext() if recorded else minigrad.no_grad():
            y = ours(*[x.ours for x in inputs])
        with torch.set_grad_enabled(recorded):
            z, p = theirs(*[x.theirs for x in inputs]), theirs(*[x.pure for x in inputs])
        if not recorded:
            z, p = z.detach(), p.detach()
        assert y.requires_grad == p.requires_grad
        value = Value(y, z, p, inputs if y.requires_grad else ())
        self.add(value)
        return value

    @rule(
        steps=st.lists(st.tuples(OPERATIONS, RECENT, st.integers(0, 3)), min_size=1, max_size=10),
        recorded=st.integers(0, 9),
    )
    def grow(self, steps: list, recorded: int) -> None:
        """A few operations, each on values that it can take; now and then under no_grad."""
        for name, pick, k in steps:
            if name in BINARY:
                ours, theirs, fits = BINARY[name]
                pairs = [(x, y) for x in self.values[-8:] for y in self.values[-8:] if fits(as_numpy(x.ours), as_numpy(y.ours))]
                if pairs:
                    self.apply(ours, theirs, pairs[-1 - pick % len(pairs)], recorded > 0)
                continue
            ours, theirs, fits = (UNARY | VIEWS)[name]
            able = [x for x in self.values if fits is None or fits(as_numpy(x.ours))]
            if name == "flat":  # a view or a copy? that depends on the strides that earlier operations chose
                able = [x for x in able if x.ours.data.flags.c_contiguous == x.theirs.is_contiguous()]
            if able:
                self.apply(lambda x: ours(x, k), lambda x: theirs(x, k), (able[-1 - pick % len(able)],), recorded > 0)  # noqa: B023 (called at once)

    @rule(
        steps=st.lists(st.tuples(st.sampled_from(sorted(UNARY)), st.sampled_from(sorted(BINARY)), st.integers(0, 3)), min_size=1, max_size=3),
        a=st.integers(0, 50),
        b=st.integers(0, 50),
        captured=st.integers(0, 50),
        nested=st.booleans(),
    )
    def checkpointed(self, steps: list, a: int, b: int, captured: int, nested: bool) -> None:
        """A random function of two values that also uses a third; nested: all but its first step is a checkpoint of its own."""
        x, y, z = self.value(a), self.value(b), self.value(captured)
        used = {x: None}

        def function(which: int, captured: Any, steps: list) -> Callable:
            def run(x: Any, second: Any) -> Any:
                for number, (name, combination, k) in enumerate(steps):
                    if nested and number == 1:
                        rest = function(which, captured, steps[1:])
                        return checkpoint(rest, x, second) if which == 0 else rest(x, second)
                    fits = UNARY[name][2]
                    if fits is None or fits(as_numpy(x.detach())):
                        result = UNARY[name][which](x, k)
                        x = result if _small(as_numpy(result.detach())) else x
                    for other, value in ((second, y), (captured, z)):
                        if BINARY[combination][2](as_numpy(x.detach()), as_numpy(other.detach())):
                            result = BINARY[combination][which](x, other)
                            if _small(as_numpy(result.detach())):
                                x = result
                                used[value] = None
                return x

            return run

        made = self.apply(lambda x, y, z: checkpoint(function(0, z, steps), x, y), lambda x, y, z: function(1, z, steps)(x.view_as(x), y), (x, y, z))
        made.vague |= any(v.ours.requires_grad and v not in used for v in (x, y, z))
        made.recomputed = True

    # --- writing in place

    @rule(a=st.integers(0, 50), part=st.sampled_from(["all", "row", "broadcast", "boolean"]), seed=st.integers(0, 2**16), allowed=st.integers(0, 4))
    def write(self, a: int, part: str, seed: int, allowed: int) -> None:
        x = self.value(a)
        if self.device == "cuda" and 0 in x.ours.data.strides:
            return  # a view that repeats what it shows: CuPy's arrays are always writable
        array = as_numpy(x.ours)
        index: Any = 0 if part == "row" and array.ndim else array > 0 if part == "boolean" else ...
        shape = array.shape[-1:] if part == "broadcast" else array[index].shape
        numbers = np.asarray(rng(seed).uniform(-2, 2, shape))
        before = array.copy()

        def ours() -> None:
            if part == "all":
                x.ours.copy_(self.tensor(numbers))
            else:
                x.ours[index] = self.tensor(numbers)

        if not getattr(x.ours.data.flags, "writeable", True) or (x.ours.requires_grad and not allowed):
            with nullcontext() if not allowed else minigrad.no_grad():
                _, message = refusal(ours)
            assert "read-only view" in message or "this tensor requires grad" in message
            np.testing.assert_array_equal(as_numpy(x.ours), before)
            return
        with minigrad.no_grad():
            ours()
        with torch.no_grad():
            x.theirs[torch.tensor(index) if part == "boolean" else index] = torch.tensor(numbers)
        for v in self.values:
            if v.ours.version is x.ours.version:
                with torch.enable_grad():
                    numbers_now = v.theirs.detach().clone()
                    v.pure = Rewritten.apply(v.pure, numbers_now) if v.pure.requires_grad else numbers_now
            self.check(v)  # also those that the write must not have reached

    # --- walking

    def walked(self, y: Value, inputs: list[Value] | None) -> list[Value]:
        """The values whose operations a walk from y runs: all of its history, or what leads from y to the inputs."""
        history = y.history()
        if inputs is None:
            return [v for v in history if v.parents]
        leading: set[Value] = set()
        for v in sorted(history, key=lambda v: v.number):
            if any(p in leading or p in inputs for p in v.parents):
                leading.add(v)
        return [v for v in history if v in leading]

    def judge(self, message: str, reference_message: str, walked: list[Value], ends: list[Value], create: bool) -> None:
        """Whether an error of ours, or its absence, is right; reference_message is PyTorch's error or ""."""
        freed, vague = {v.freed for v in walked}, any(v.vague for v in ends)
        if "were freed" in message:
            assert "yes" in freed or "maybe" in freed or vague, message
        elif message:
            name = re.match(r"backward of (\w+): .* was written in place", message)
            assert name, message
            excused = vague or name[1] in READ_MORE or (create and name[1] in RUN_AGAIN) or any(v.rewired() for v in walked + ends)
            assert reference_message or excused, f"ours: {message}; PyTorch has no objection"
        elif not vague:
            assert "yes" not in freed, f"a freed graph was walked; PyTorch: {reference_message}"

    @rule(a=st.integers(0, 50), seed=st.integers(0, 2**16), retain=st.booleans(), create_graph=st.integers(0, 4), recorded=st.integers(0, 4))
    def backward(self, a: int, seed: int, retain: bool, create_graph: int, recorded: int) -> None:
        """Into `.grad`, which accumulates."""
        y, create = self.differentiable(a), create_graph == 0
        upstream = np.asarray(rng(seed).uniform(-1, 1, y.ours.shape))
        before = [None if x.ours.grad is None else as_numpy(x.ours.grad).copy() for x in self.leaves]
        with nullcontext() if recorded else minigrad.no_grad():
            _, message = refusal(lambda: y.ours.backward(self.tensor(upstream), retain_graph=retain, create_graph=create))
        if not y.pure.requires_grad:
            assert "does not require grad" in message
            return
        leaves = [x.theirs for x in self.leaves]
        gradient = torch.tensor(upstream)
        _, reference_message = refusal(
            lambda: torch.autograd.grad(y.theirs, leaves, gradient, retain_graph=retain or create, create_graph=create, allow_unused=True)
        )
        walked = self.walked(y, None)
        self.judge(message, reference_message, walked, [y], create)
        if message:  # all or nothing
            for x, then in zip(self.leaves, before, strict=True):
                assert (x.ours.grad is None) == (then is None)
                if then is not None:
                    np.testing.assert_array_equal(as_numpy(x.ours.grad), then)
        else:
            y.pure.backward(gradient, retain_graph=True, create_graph=create)
            for number, x in enumerate(self.leaves):
                self.compare(x.ours.grad, x.origin.grad, f"leaf {number}")
        if not (retain or create):
            self.free(walked, y.vague, message or reference_message)

    def free(self, walked: list[Value], vague: bool, failed: str) -> None:
        """Mark what a walk has freed. Of a walk that failed nobody knows how far it came: what it met is not used again."""
        for v in walked:
            if v.freed != "yes":
                v.freed = "maybe" if vague else "yes"
        if failed:
            self.values = [v for v in self.values if v.history().keys().isdisjoint(walked)]

    @rule(
        outputs=st.lists(st.integers(0, 50), min_size=1, max_size=2),
        inputs=st.lists(st.integers(0, 50), min_size=1, max_size=3),
        seed=st.integers(0, 2**16),
        create=st.booleans(),
        retain=st.sampled_from([None, True]),
    )
    def grad(self, outputs: list[int], inputs: list[int], seed: int, create: bool, retain: bool | None) -> None:
        """Of several outputs with respect to several values, also interior ones; with create_graph the gradients join the graph."""
        ys, xs = [self.differentiable(k) for k in outputs], [self.differentiable(k) for k in inputs]
        upstream = [np.asarray(rng(seed + k).uniform(-1, 1, y.ours.shape)) for k, y in enumerate(ys)]
        weights = [torch.tensor(u) for u in upstream]
        gs, message = refusal(
            lambda: minigrad.grad(
                [y.ours for y in ys],
                [x.ours for x in xs],
                [self.tensor(u) for u in upstream],
                create_graph=create,
                retain_graph=retain,
                allow_unused=True,
            )
        )
        if not all(v.pure.requires_grad for v in ys + xs):
            assert "not require grad" in message
            return
        theirs, reference_message = refusal(
            lambda: torch.autograd.grad(
                [y.theirs for y in ys], [x.theirs for x in xs], weights, create_graph=create, retain_graph=retain, allow_unused=True
            )
        )
        walked = list(dict.fromkeys(v for y in ys for v in self.walked(y, xs)))
        self.judge(message, reference_message, walked, ys + xs, create)
        if not message:
            pure = torch.autograd.grad(
                [y.pure for y in ys], [x.origin for x in xs], weights, create_graph=create, retain_graph=True, allow_unused=True
            )
            for k, (g, p) in enumerate(zip(gs, pure, strict=True)):
                if xs[k].recomputed and any(y.vague for y in ys):
                    continue  # which part of a gradient goes through this value, and which past it, depends on the formulas
                self.compare(g, p, f"input {k}")
                z = None if theirs is None else theirs[k]
                if create and g is not None and p is not None and z is not None and g.requires_grad == p.requires_grad == z.requires_grad:
                    if np.allclose(z.detach().numpy(), p.detach().numpy(), 1e-9, 1e-9):
                        # as tensors of their own: two gradients may be one tensor or share memory, and not in both engines
                        self.add(Value(g * 1.0, z * 1.0, p * 1.0, tuple(dict.fromkeys(ys + walked)), vague=True))
        if not (create or retain):
            self.free(walked, any(y.vague for y in ys), message or reference_message)

    @staticmethod
    def compare(ours: Tensor | None, reference: torch.Tensor | None, what: str) -> None:
        if ours is None or reference is None:  # zeros may be known to be zeros, or computed
            for g in (ours, reference):
                assert g is None or not as_numpy(g.detach()).any(), f"{what}: {ours}, PyTorch {reference}"
            return
        terms = float(reference.detach().abs().max())
        if terms < 1e6:
            assert_close(ours, reference, what, TOLERANCE)

    @precondition(lambda self: len(self.values) > 12)
    @rule(a=st.integers(0, 50), leaf=st.integers(0, 3))
    def tidy(self, a: int, leaf: int) -> None:
        """Drop a gradient, and a value: what was made of it stays alive, and right."""
        x = self.leaves[leaf % len(self.leaves)]
        x.ours.grad = x.origin.grad = None
        del self.values[a % len(self.values)]

    # --- at every step

    @invariant()
    def shared_memory_means_one_version_counter(self) -> None:
        for a, b in itertools.combinations(self.values, 2):
            if a.ours.version is not b.ours.version:
                assert not np.shares_memory(a.ours.data, b.ours.data)

    @invariant()
    def gradients_belong_to_their_leaves(self) -> None:
        held = [x.ours.grad.data for x in self.leaves if x.ours.grad is not None]
        for k, g in enumerate(held):
            assert not any(np.shares_memory(g, other) for other in held[:k] + [v.ours.data for v in self.values])


class RandomGraphsOnCuda(RandomGraphs):
    """The same with `ours` on the device "cuda". Whose memory is whose, only NumPy can say."""

    device = "cuda"
    shared_memory_means_one_version_counter = gradients_belong_to_their_leaves = None

    def __init__(self) -> None:
        super().__init__()
        self.cuda = on_cuda()
        self.cuda.__enter__()

    def teardown(self) -> None:
        super().teardown()
        self.cuda.__exit__(None, None, None)


TIMEOUT = pytest.mark.timeout(120 + 2 * settings().max_examples)  # the deep profile takes minutes
TestRandomGraphs, TestRandomGraphsOnCuda = RandomGraphs.TestCase, RandomGraphsOnCuda.TestCase
TestRandomGraphs.pytestmark, TestRandomGraphsOnCuda.pytestmark = [TIMEOUT], [TIMEOUT, pytest.mark.cuda]
TestRandomGraphs.settings = settings(max_examples=4 * settings().max_examples, stateful_step_count=40)
TestRandomGraphsOnCuda.settings = settings(max_examples=settings().max_examples, stateful_step_count=40)
