"""How every operation of the registry is proven: subclass `Proof` once per operation, state data, and the tests come with it.

In tests/fused/test_softmax.py:

    class TestSoftmax(Proof):
        op = softmax                                                   # the operation of the registry
        in_torch = staticmethod(torch.softmax)                         # takes torch tensors and the same values; turns layouts around inside
        cases = st.builds(lambda x: Case([x], {"axis": -1}), arrays(shapes(min_dims=1)))
        keeps = {"x": "out"}                                           # x requires grad: the node keeps the output and nothing else
        float32 = [Case([3 * rng(1).standard_normal((4, 3, 17, 17))])]  # at fixed seeds, at the network's shapes
        pins = [Pin("equal numbers", Case([np.array([2.0, 2.0, 1.0])]))]
        errors = [Refusal(Case([np.zeros((2, 3))], {"axis": 2}), ValueError, "softmax: axis 2 is out of range")]

gives tests/fused/test_softmax.py::TestSoftmax::test_kernel_equals_definition and its siblings: exactly the tests of that operation. A subclass adds
tests of its own as methods, where the operation has more to prove; the checks that take a `Case` (all those without `test_`) are there to be called.

What a subclass states:

op              the operation, an `Op` of `minigrad.op.REGISTRY`.
in_torch        staticmethod: (*torch tensors, **values) -> a tensor or a tuple of them, as many as op returns.
cases           Hypothesis strategy of `Case`: shapes built constructively, seldom awkward ones (0-d, size 0, size 1, batch of one). In most of the
                drawn cases every array must have 2 or more elements (`REAL`, see `for_each`).
smooth          the same away from kinks and ties, for finite differences and second derivatives; by default `cases`.
examples        more cases that must always be tried, in every test that draws from `cases`: the awkward ones, and each way through the code.
keeps           what a node keeps alive: names of the inputs that require grad -> names of the arrays that live on ("out": the output), both
                separated by spaces, for example {"x y": "x y", "x": "y", "y": "x"}. Everything else must die. {} where there is no derivative.
keeps_besides   staticmethod: (*arrays, **values) -> how many more elements (statistics, masks) the node may hold; 0 by default.
float32         cases with fixed seeds at the Conformer's shapes; a sentence saying why not, where the operation has no kernel.
emulated        places in `float32` of the cases that the emulator runs by the CUDA kernel too; by default the four smallest.
float32_bound   Bound(...) where the measured accuracy is not the one every kernel must have, with the reason.
pins            Pins: kinks and ties one by one. A sentence saying why there are none.
errors          Refusals: what must raise. A sentence saying why there are none.
layouts         ("contiguous", "strided", "repeated"): which memory layouts are tried; drop "repeated" (broadcast views: the values repeat along an
                axis) only with a comment saying why the operation cannot have it.
variant         a sentence, where this is another proof of an operation that has one: with which values what is stated above is different.
share           a multiple of the profile's number of examples, 1.0 by default. Never set max_examples: the profile `deep` must deepen everything.

`tests/test_proofs.py` fails for an operation without a proof, and shows for each test an operation that it refuses. Read next:
`tests/ops/test_elementwise.py`.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, backend, random
from minigrad.modes import mode
from minigrad.op import REGISTRY, Fused, Op, Primitive
from minigrad.tensor import wrap
from tests import cuda_device
from tests.support import RELATIVE, as_numpy, assert_close, rng

torch.set_num_threads(1)  # as in nn/parity.py, for runs without it: its threads spin while they wait, mostly on arrays as small as these

LAYOUTS = ("contiguous", "strided", "repeated")
REAL = 0.4  # the share of the drawn cases in which every array must have 2 or more elements
STEP = 1e-5  # of finite differences, along directions of length 1
SLOPE_ERROR = 1e-6  # allowed difference of a slope and its finite difference, of the largest of 1 and both


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    inputs: arrays in the order of the signature, None where there is none; float64 ones take part in the derivative, integers and booleans do not.
    values: the plain arguments by name. needs: which inputs can have a gradient, all float64 ones by default. relative: the tolerance, of the
    largest number; another than the usual one needs a reason beside it. second_in_torch: False where PyTorch has no second derivative.
    """

    inputs: Sequence[np.ndarray | None]
    values: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[bool] | None = None
    relative: float = RELATIVE
    second_in_torch: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", [x if x is None else np.asarray(x) for x in self.inputs])  # NumPy makes scalars of 0-d results

    @property
    def wanted(self) -> list[bool]:
        """Which inputs have a gradient."""
        floats = [x is not None and x.dtype.kind == "f" for x in self.inputs]
        return floats if self.needs is None else [a and bool(b) for a, b in zip(floats, self.needs, strict=True)]


class Pin(NamedTuple):
    """A point where the derivative is a choice: it must be PyTorch's, asked now, and `gradients` by hand (for an upstream of ones) where given."""

    what: str
    case: Case
    gradients: Sequence[Any] | None = None


class Refusal(NamedTuple):
    """What must raise `exception` with a `message`. `in_torch`: True where PyTorch raises too, else a sentence saying why it takes it."""

    case: Case
    exception: type[Exception]
    message: str
    in_torch: bool | str = True


class Bound(NamedTuple):
    """Accuracy of a float32 kernel: error <= factor * (the definition's error) + units * eps * max|exact|."""

    factor: float = 2.0
    units: float = 4.0
    reason: str = ""


class _Elsewhere(np.ndarray):
    """An array that says it is on another device; enough for what must be refused before anything is computed."""


class Proof:
    """The tests of one operation: see the top of this file."""

    op: Any
    in_torch: Callable
    cases: st.SearchStrategy[Case]
    smooth: st.SearchStrategy[Case] | None = None
    examples: Sequence[Case] = ()
    keeps: Mapping[str, str]
    keeps_besides: Callable | None = None
    float32: Sequence[Case] | str = "It has no kernel: there is only one way to compute it."
    emulated: Sequence[int] | None = None
    float32_bound: Bound = Bound()
    pins: Sequence[Pin] | str
    errors: Sequence[Refusal] | str
    layouts: Sequence[str] = LAYOUTS
    variant: str = ""
    share: float = 1.0

    def __init_subclass__(cls) -> None:
        """Take away the tests that make no sense for the operation, so that no test passes without having tested anything."""
        for name in GENERIC:
            if why_not(cls, name):
                setattr(cls, name, None)

    # --- the tests that every operation gets

    def test_definition_equals_pytorch(self) -> None:
        """Values and gradients in float64, for every memory layout of inputs and upstream gradient. A primitive is its own definition."""
        reached: set[str] = set()

        def definition_equals_pytorch(case: Case) -> None:
            reached.update(self.definition_equals_pytorch(case))

        self.for_each(definition_equals_pytorch)
        missing = set(" ".join(self.keeps).split()) - reached
        assert not missing, f"no case has a gradient other than 0 for {' and '.join(sorted(missing))}"

    def test_kernel_equals_definition(self) -> None:
        """Values and gradients in float64 by every kernel, whichever inputs want one. Of a primitive: the short ways and rules on arrays against
        the long way and rules on Tensors.
        """
        self.for_each(self.kernel_equals_definition)

    @pytest.mark.cuda
    def test_cuda_kernel_equals_definition(self) -> None:
        """The same on the emulator, which runs every kernel in two orders of threads and blocks, or with --device=gpu on a GPU, which runs it twice:
        results must be equal bit for bit. In float32, where kernels read four numbers at once, no drawn case is far off, and the kernel is about as
        accurate as the definition, as in `test_float32_accuracy`: on the emulator for the four smallest cases, or those that `emulated` names.
        """
        self.for_each(self.cuda_kernel_equals_definition, 0.3)
        for pin in () if isinstance(self.pins, str) else self.pins:
            self.cuda_kernel_equals_definition(pin.case)
        size = lambda case: sum(0 if x is None else x.size for x in case.inputs)  # noqa: E731
        small = sorted(self.float32, key=size)[:4] if self.emulated is None else [self.float32[k] for k in self.emulated]
        for case in self.float32 if cuda_device.on_gpu() else small:
            self.float32_is_accurate(case, ON_CUDA)

    def test_float32_accuracy(self) -> None:
        """In float32 a kernel is about as accurate as the definition (see Bound), at fixed seeds."""
        for case in self.float32:
            self.float32_is_accurate(case)

    def test_fan_out_and_same_tensor_twice(self) -> None:
        """A tensor used by several operations, added to the result, and given as two inputs of one call, gets the sum of all gradients."""
        self.for_each(self.sums_gradients, 0.5)

    def test_gradcheck(self) -> None:
        """The gradient is the slope along random directions, by central differences: no second opinion needed."""
        self.for_each(self.gradient_is_the_slope, 0.5, smooth=True)

    def test_double_backward(self) -> None:
        """The derivative of the kernel's gradient, by inputs and by upstream gradient, is PyTorch's and that of finite differences."""
        self.for_each(self.gradient_of_the_gradient, 0.5, smooth=True)

    def test_pins(self) -> None:
        """At kinks and ties the derivative, and the second one, is PyTorch's; and it is the one written down."""
        for pin in self.pins:
            self.pinned(pin)

    def test_purity(self) -> None:
        """Inputs and upstream gradient stay as they are (read-only ones will do), results share memory with nothing, no random state is touched."""
        views: list[bool] = []

        def leaves_everything_alone(case: Case) -> None:
            views.append(self.leaves_everything_alone(case))

        self.for_each(leaves_everything_alone, 0.5)
        assert any(views) == getattr(self.op, "view", False), "an operation declared to give views never does"

    def test_dtypes(self) -> None:
        """float32 stays float32 and float64 float64, in values and gradients, and other results have the dtype that PyTorch gives them."""
        self.for_each(self.keeps_dtypes, 0.5)

    def test_what_a_node_keeps(self) -> None:
        """Only what `keeps` says outlives the call, and nothing outlives a backward pass; without the collector's help."""
        seen: set[str] = set()

        def node_keeps(case: Case) -> None:
            seen.update(self.node_keeps(case))

        self.for_each(node_keeps, 0.5)
        assert seen == set(self.keeps), f"no case showed what is kept where these require grad: {set(self.keeps) - seen}"

    def test_errors(self) -> None:
        """What cannot be computed raises, by kernel and by definition, and in PyTorch."""
        for refusal in self.errors:
            self.refuses(refusal)

    def test_mixed_devices_and_dtypes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two devices in one call are refused by name; so are two float dtypes in a fused operation."""
        monkeypatch.setattr(backend, "_by_name", dict(backend._by_name))
        monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
        backend.add_device("elsewhere", _Elsewhere, lambda a: a.view(_Elsewhere), np.asarray, np.lib.stride_tricks.as_strided)
        seen: list[bool] = []

        def refuses_mixtures(case: Case) -> None:
            seen.append(self.refuses_mixtures(case))

        self.for_each(refuses_mixtures, 0.2)
        assert any(seen), "no case has two tensors"

    # --- drawing

    def for_each(self, check: Callable[[Case], Any], share: float = 1.0, smooth: bool = False) -> None:
        """Run `check` for the examples and for as many drawn cases as the Hypothesis profile says, times `share`. Of these most must be able to show
        something: an operation that is wrong for all arrays but those of one element would pass, if only such ones were drawn.
        """
        if not smooth or self.smooth is None:
            for case in self.examples:
                check(case)
        strategy = self.smooth if smooth and self.smooth is not None else self.cases

        seen: list[bool] = []

        def draw(case: Case) -> None:
            seen.append(all(x is None or x.size > 1 for x in case.inputs))
            check(case)

        # the name decides what is drawn without randomness, and where the data base keeps failures: one for each operation and test
        draw.__name__ = f"{type(self).__name__}_{check.__name__}"
        count = max(1, round(settings().max_examples * share * self.share))
        settings(max_examples=count)(given(strategy)(draw))()
        # Those of the default profile are the same each time, and 1,000 are many: otherwise, and of fewer than ten, chance would decide.
        if count >= (10 if settings().derandomize else 100):
            assert sum(seen) >= REAL * len(seen), (
                f"{type(self).__name__}.{'smooth' if strategy is self.smooth else 'cases'}: every array has 2 or more elements in {sum(seen)} of "
                f"{len(seen)} drawn cases, {REAL:.0%} must be so. Build lengths with `shapes`, `broadcast_shapes`, `lengths` or `often` of "
                "tests/support.py, which give mostly 2 or more, in the simplest draw too; what else must be tried belongs into `examples`."
            )

    # --- running

    def call(self, tensors: Sequence[Tensor | None], values: Mapping[str, Any]) -> list[Tensor]:
        """The outputs of the operation, as a list."""
        out = self.op(tensors, **values) if getattr(self.op, "variadic", False) else self.op(*tensors, **values)
        return list(out) if isinstance(out, tuple | list) else [out]

    def carrying(self, outputs: list) -> list:
        """Those of the outputs that carry gradient."""
        if isinstance(self.op, Fused):
            return outputs[: self.op.differentiable]
        if isinstance(self.op, Primitive) and not self.op.rules:
            return []
        return [y for y in outputs if (y.is_floating_point() if isinstance(y, torch.Tensor) else y.dtype.kind == "f")]

    def ways(self) -> list[tuple[str, Callable[[], AbstractContextManager], str]]:
        """(name, context, device) of every way the operation can be run."""
        if not isinstance(self.op, Fused):
            return [("itself", minigrad.enable_grad, "cpu")]
        return [("definition", minigrad.definitions, "cpu"), *self.kernels()]

    def kernels(self) -> list[tuple[str, Callable[[], AbstractContextManager], str]]:
        """The ways that are kernels on the CPU."""
        return [("kernel on cpu", minigrad.enable_grad, "cpu")] if "cpu" in getattr(self.op, "kernels", ()) else []

    def run(self, arrays: Sequence, wanted: Sequence[bool], values: Mapping, upstream: Sequence | None = None, device: str = "cpu") -> Run:
        """Call the operation on leaves around these very arrays, and take the gradients of the wanted ones."""
        tensors = [None if x is None else _leaf(x, need, device) for x, need in zip(arrays, wanted, strict=True)]
        outputs = self.call(tensors, values)
        carrying = self.carrying(outputs) if True in wanted else []
        for y in outputs[len(carrying) :]:
            assert not y.requires_grad, f"{self.name}: an output without derivative requires grad"
        leaves = [x for x, need in zip(tensors, wanted, strict=True) if need]
        upstream = _upstream(carrying) if upstream is None else upstream
        starts = [_leaf(u, False, device) for u in upstream]
        grads = minigrad.grad(carrying, leaves, starts, retain_graph=True, allow_unused=True) if carrying and leaves else [None] * len(leaves)
        return Run(outputs, carrying, leaves, starts, list(grads))

    def run_in_torch(self, arrays: Sequence, wanted: Sequence[bool], values: Mapping, upstream: Sequence | None = None) -> Run:
        """The same by PyTorch, on copies of the arrays."""
        tensors = [None if x is None else torch.tensor(np.array(x, order="C"), requires_grad=need) for x, need in zip(arrays, wanted, strict=True)]
        out = type(self).in_torch(*tensors, **values)
        outputs = list(out) if isinstance(out, tuple | list) else [out]
        carrying = self.carrying(outputs) if True in wanted else []
        leaves = [x for x, need in zip(tensors, wanted, strict=True) if need]
        upstream = _upstream(carrying) if upstream is None else upstream
        starts = [torch.tensor(np.array(u, order="C")).to(y.dtype) for u, y in zip(upstream, carrying, strict=True)]
        return Run(outputs, carrying, leaves, starts, _torch_grads(carrying, leaves, starts))

    @property
    def name(self) -> str:
        """What messages call the operation."""
        return getattr(self.op, "name", None) or getattr(self.op, "__name__", "operation")

    def input_names(self, case: Case) -> list[str]:
        """The names of the inputs, as `keeps` writes them."""
        if not isinstance(self.op, Op) or self.op.variadic:
            return ["tensors"] * len(case.inputs)
        return self.op.names[: self.op.count]

    def _agree(self, ours: Run, reference: Run, case: Case, what: str) -> None:
        """Outputs and gradients are equal within the case's tolerance."""
        assert len(ours.outputs) == len(reference.outputs), f"{what}: {len(ours.outputs)} outputs, reference {len(reference.outputs)}"
        for k, (y, exact) in enumerate(zip(ours.outputs, reference.outputs, strict=True)):
            assert_close(as_numpy(y), exact, f"{what}: output {k}", case.relative)
        for k, (g, exact) in enumerate(zip(ours.grads, reference.grads, strict=True)):
            _check_gradient(g, exact, ours.leaves[k], f"{what}: gradient {k}", case.relative)

    # --- the checks of one case

    def definition_equals_pytorch(self, case: Case) -> set[str]:
        """See the test of this name. Returns the names of the inputs whose gradient is not 0 everywhere."""
        name, context, device = self.ways()[0]
        reached: set[str] = set()
        for layout in self.layouts:
            arrays = [None if x is None else lay_out(x, layout) for x in case.inputs]
            reference = self.run_in_torch(arrays, case.wanted, case.values)
            upstream = [lay_out(u, layout) for u in _upstream(reference.carrying)]
            if layout == "repeated":  # the upstream gradient has other values then
                reference = self.run_in_torch(arrays, case.wanted, case.values, upstream)
            with context():
                ours = self.run(arrays, case.wanted, case.values, upstream, device)
            self._agree(ours, reference, case, f"{self.name} by {name} ({layout}) and PyTorch")
            wanted = [input_name for input_name, need in zip(self.input_names(case), case.wanted, strict=True) if need]
            reached |= {input_name for input_name, g in zip(wanted, reference.grads, strict=True) if g.any()}
        return reached

    def kernel_equals_definition(self, case: Case) -> None:
        """See the test of this name."""
        if not isinstance(self.op, Fused):
            self._short_ways_equal_the_long_way(case)
            return
        for name, context, device in self.kernels():
            for layout in self.layouts:
                arrays = [None if x is None else lay_out(x, layout) for x in case.inputs]
                with minigrad.definitions():
                    reference = self.run(arrays, case.wanted, case.values)
                upstream = [lay_out(s.data, layout) for s in reference.starts]
                if layout == "repeated":
                    with minigrad.definitions():
                        reference = self.run(arrays, case.wanted, case.values, upstream)
                with context():
                    ours = self.run(arrays, case.wanted, case.values, upstream, device)
                    self._agree(ours, reference, case, f"{self.name} by {name} ({layout}) and definition")
            self._some_gradients_only(case, context, device)

    def cuda_kernel_equals_definition(self, case: Case) -> None:
        """See the test of this name."""
        with minigrad.definitions():
            reference = self.run(case.inputs, case.wanted, case.values)
        upstream = [s.data for s in reference.starts]
        with on_cuda():
            ours = self.run(case.inputs, case.wanted, case.values, upstream, "cuda")
            self._agree(ours, reference, case, f"{self.name} by its CUDA kernel and definition")
        self._some_gradients_only(case, on_cuda, "cuda")
        # The errors of a case of a few numbers, or of one where all digits cancel, are a matter of luck: this shows mistakes, not inaccuracy.
        self.float32_is_accurate(case, ON_CUDA, floor=1e-4)

    def _short_ways_equal_the_long_way(self, case: Case) -> None:
        ours = self.run(case.inputs, case.wanted, case.values)
        with mode(reads=[]):  # every call is watched and goes the long way
            reference = self.run(case.inputs, case.wanted, case.values)
            if reference.carrying and reference.leaves:  # with create_graph the rules on Tensors are used
                by_rules = minigrad.grad(reference.carrying, reference.leaves, reference.starts, create_graph=True, allow_unused=True)
                reference = reference._replace(grads=list(by_rules))
        self._agree(ours, reference, case, f"{self.name} by its short and its long way")
        self._some_gradients_only(case, minigrad.enable_grad, "cpu")

    def _some_gradients_only(self, case: Case, context: Callable, device: str) -> None:
        """Each wanted gradient alone, and all but one, are what they are among the others."""
        wanted = [k for k, need in enumerate(case.wanted) if need]
        if len(wanted) < 2:
            return
        with context():
            everything = self.run(case.inputs, case.wanted, case.values, device=device)
            chosen = {(k,) for k in wanted} | {tuple(j for j in wanted if j != k) for k in wanted}
            for some in sorted(chosen):
                ours = self.run(case.inputs, [k in some for k in range(len(case.inputs))], case.values, device=device)
                expected = everything._replace(grads=[everything.grads[wanted.index(k)] for k in some])
                self._agree(ours, expected, case, f"{self.name} with gradients of {some} only")

    def float32_is_accurate(self, case: Case, *ways: tuple[str, Callable[[], AbstractContextManager], str], floor: float = 0.0) -> None:
        """See `test_float32_accuracy`. All errors are taken against the definition in float64 on the same rounded numbers.

        floor: also allow this error, or this share of the largest number.
        """
        factor, units, _ = self.float32_bound
        single = [None if x is None else x.astype(np.float32) if x.dtype.kind == "f" else x for x in case.inputs]
        double = [None if x is None else x.astype(np.float64) if x.dtype.kind == "f" else x for x in single]
        with minigrad.definitions():
            exact = self.run(double, case.wanted, case.values)
            upstream = [s.data.astype(np.float32) for s in exact.starts]
            exact = self.run(double, case.wanted, case.values, [u.astype(np.float64) for u in upstream])
            definition = self.run(single, case.wanted, case.values, upstream)
        for name, context, device in ways or self.kernels():
            with context():
                kernel = self.run(single, case.wanted, case.values, upstream, device)
                results = kernel.arrays()
            for k, (ours, plain, reference) in enumerate(zip(results, definition.arrays(), exact.arrays(), strict=True)):
                assert ours.dtype == plain.dtype
                if reference.dtype.kind != "f" or not reference.size:
                    continue
                what = f"output {k}" if k < len(kernel.outputs) else f"gradient {k - len(kernel.outputs)}"
                finite = np.isfinite(reference)
                np.testing.assert_array_equal(ours[~finite], reference[~finite], err_msg=f"{self.name} by {name}, {what} in float32")
                largest = np.abs(reference[finite]).max(initial=0)
                error, allowed = (np.abs(a.astype(np.float64)[finite] - reference[finite]).max(initial=0) for a in (ours, plain))
                bound = max(factor * allowed + units * np.finfo(np.float32).eps * largest, floor * max(largest, 1))
                assert error <= bound, f"{self.name} by {name}, {what}: float32 error {error:.3g} > {bound:.3g} (definition: {allowed:.3g})"

    def sums_gradients(self, case: Case) -> None:
        """See `test_fan_out_and_same_tensor_twice`."""
        wanted = case.wanted
        first = [k for k, need in enumerate(wanted) if need]
        if not first:
            return
        twins = [(i, j) for i in first for j in first if i < j and case.inputs[i].shape == case.inputs[j].shape]  # type: ignore[union-attr]

        def tangle(call: Callable, leaves: list, pair: tuple[int, int] | None) -> list:
            """The operation twice on the same tensors, once with a residual and once with its first output only, and these tensors themselves."""
            inputs = [x * 1.0 if need else x for x, need in zip(leaves, wanted, strict=True)]
            if pair is not None:
                inputs[pair[1]] = inputs[pair[0]]
            results = self.carrying(call(inputs)) + self.carrying(call(inputs))[:1]
            for k in first:
                if results and tuple(results[0].shape) == tuple(inputs[k].shape):
                    results[0] = results[0] + inputs[k]
            return [*results, *[inputs[k] for k in first]]

        def in_torch(inputs: list) -> list:
            out = type(self).in_torch(*inputs, **case.values)
            return list(out) if isinstance(out, tuple | list) else [out]

        for pair in [None, *twins]:
            theirs = [None if x is None else torch.tensor(x, requires_grad=need) for x, need in zip(case.inputs, wanted, strict=True)]
            outputs = tangle(in_torch, theirs, pair)
            upstream = _upstream(outputs)
            used = [k for k in first if pair is None or k != pair[1]]
            starts = [torch.tensor(u).to(y.dtype) for u, y in zip(upstream, outputs, strict=True)]
            reference = _torch_grads(outputs, [theirs[k] for k in used], starts)
            for name, context, device in self.ways():
                with context():
                    ours = [None if x is None else _leaf(x, need, device) for x, need in zip(case.inputs, wanted, strict=True)]
                    results = tangle(lambda inputs: self.call(inputs, case.values), ours, pair)
                    start = [_leaf(u, False, device) for u in upstream]
                    grads = minigrad.grad(results, [ours[k] for k in used], start)
                for k, g, exact in zip(used, grads, reference, strict=True):
                    what = f"{self.name} by {name}, fanned out{'' if pair is None else f', inputs {pair} the same tensor'}: gradient {k}"
                    _check_gradient(g, exact, ours[k], what, case.relative)

    def gradient_is_the_slope(self, case: Case) -> None:
        """See `test_gradcheck`."""
        if not any(case.wanted):
            return
        for _, context, device in self.kernels() or self.ways():
            tensors = [None if x is None else _leaf(x, need, device) for x, need in zip(case.inputs, case.wanted, strict=True)]

            def function(*moved: Tensor, tensors: list = tensors) -> tuple:
                each = iter(moved)
                inputs = [next(each) if need else x for x, need in zip(tensors, case.wanted, strict=True)]
                return tuple(self.carrying(self.call(inputs, case.values)))

            leaves = [x for x in tensors if x is not None and x.requires_grad]
            with context():
                if function(*leaves):
                    minigrad.gradcheck(function, leaves, step=STEP, tolerance=SLOPE_ERROR, directions=2)

    def gradient_of_the_gradient(self, case: Case, smooth: bool = True) -> None:
        """See `test_double_backward`. What is differentiated: sum of w * g over the gradients g, with random weights w.

        At a kink (`smooth` is False) finite differences say nothing; PyTorch's choice holds.
        """
        if not any(case.wanted):
            return
        reference = self.run_in_torch(case.inputs, case.wanted, case.values)
        if not reference.carrying:
            return
        weights = [rng(100 + k).uniform(-1, 1, tuple(x.shape)) for k, x in enumerate(reference.leaves)]
        exact = self._second_in_torch(case, reference, weights) if case.second_in_torch else None
        for name, context, device in self.ways():
            with context():
                run = self.run(case.inputs, case.wanted, case.values, device=device)
                starts = [_leaf(s.data, True, device) for s in run.starts]
                made = minigrad.grad(run.carrying, run.leaves, starts, create_graph=True, allow_unused=True)
                for k, (g, before) in enumerate(zip(made, run.grads, strict=True)):
                    before = np.zeros(run.leaves[k].shape) if before is None else before
                    _check_gradient(g, before, run.leaves[k], f"{self.name} by {name}: gradient {k} with create_graph", case.relative)
                parts = [(g * _leaf(w, False, device)).sum() for g, w in zip(made, weights, strict=True) if g is not None and g.requires_grad]
                points = [*run.leaves, *starts]
                twice = minigrad.grad(parts, points, allow_unused=True) if parts else [None] * len(points)
            for k, (point, g) in enumerate(zip(points, twice, strict=True)):
                what = f"{self.name} by {name}: second derivative by {'input' if k < len(run.leaves) else 'upstream gradient'} {k}"
                assert g is None or (g.dtype == point.dtype and g.shape == point.shape), what
                if exact is not None:
                    _check_gradient(g, exact[k], point, what, case.relative * 100)
            if smooth:
                self._slope_of_gradients(case, points, twice, weights, context, device, f"{self.name} by {name}: second derivative")

    def _second_in_torch(self, case: Case, reference: Run, weights: list) -> list:
        starts = [s.requires_grad_() for s in reference.starts]
        grads = _torch_grads(reference.carrying, reference.leaves, starts, create_graph=True)
        total = sum((g * torch.tensor(w)).sum() for g, w in zip(grads, weights, strict=True))
        points = [*reference.leaves, *starts]
        if not (isinstance(total, torch.Tensor) and total.requires_grad):
            return [torch.zeros_like(x) for x in points]
        return _torch_grads([total], points, [torch.ones((), dtype=torch.float64)])

    def _slope_of_gradients(self, case: Case, points: list, twice: Sequence, weights: list, context: Callable, device: str, what: str) -> None:
        """The directional derivative of sum(w * g), g by the kernel without create_graph, from both sides of the point."""
        generator = rng(7)
        direction = [generator.uniform(0.1, 1, x.shape) * generator.choice([-1.0, 1.0], x.shape) for x in points]
        length = max(np.sqrt(sum(float((v * v).sum()) for v in direction)), 1e-300)
        direction = [v / length for v in direction]
        inside = sum(case.wanted)

        def total(step: float) -> float:
            moved = [np.asarray(as_numpy(x) + step * v) for x, v in zip(points, direction, strict=True)]
            leaves = iter(moved[:inside])
            arrays = [next(leaves) if need else x for x, need in zip(case.inputs, case.wanted, strict=True)]
            with context():
                grads = self.run(arrays, case.wanted, case.values, moved[inside:], device).grads
            return sum(float((as_numpy(g) * w).sum()) for g, w in zip(grads, weights, strict=True) if g is not None)

        numeric = (total(STEP) - total(-STEP)) / (2 * STEP)
        analytic = sum(float((as_numpy(g) * v).sum()) for g, v in zip(twice, direction, strict=True) if g is not None)
        largest = max(1.0, abs(numeric), abs(analytic), *[np.abs(as_numpy(g)).max(initial=0.0) for g in twice if g is not None])
        assert abs(numeric - analytic) <= SLOPE_ERROR * largest, f"{what} along a direction is {analytic!r}, by finite differences {numeric!r}"

    def pinned(self, pin: Pin) -> None:
        """See `test_pins`."""
        case = pin.case
        reference = self.run_in_torch(case.inputs, case.wanted, case.values)
        for name, context, device in self.ways():
            what = f"{self.name} by {name}, {pin.what}"
            with context(), np.errstate(all="ignore"):  # a slope may be infinite here
                self._agree(self.run(case.inputs, case.wanted, case.values, device=device), reference, case, what)
                if pin.gradients is not None:
                    ones = [np.ones(tuple(y.shape)) for y in reference.carrying]
                    ours = self.run(case.inputs, case.wanted, case.values, ones, device)
                    for k, (g, by_hand) in enumerate(zip(ours.grads, pin.gradients, strict=True)):
                        assert g is not None
                        np.testing.assert_array_equal(as_numpy(g), by_hand, err_msg=f"{what}: gradient {k}")
        if case.second_in_torch:
            with np.errstate(all="ignore"):
                self.gradient_of_the_gradient(case, smooth=False)

    def leaves_everything_alone(self, case: Case) -> bool:
        """See `test_purity`. Returns whether an output is a view of the first input."""
        is_view = False
        for name, context, device in self.ways():
            for read_only in (False, True):
                what = f"{self.name} by {name}{', read-only arrays' if read_only else ''}"
                arrays, spare = ([None if x is None else np.array(x) for x in case.inputs] for _ in range(2))
                with context():
                    upstream = _upstream(self.carrying(self.call([x if x is None else wrap(x) for x in spare], case.values)))
                for array in [*arrays, *upstream]:
                    if array is not None and read_only:
                        array.flags.writeable = False
                given = [np.array(u) for u in upstream] if True in case.wanted else []
                upstream = upstream[: len(given)]
                before = _random_state()
                with context():
                    run = self.run(arrays, case.wanted, case.values, upstream, device)
                assert _random_state() == before, f"{what}: random numbers were drawn, or a seed was set"
                for k, (x, then) in enumerate(zip(arrays, case.inputs, strict=True)):
                    if x is not None:
                        np.testing.assert_array_equal(x, then, err_msg=f"{what}: input {k} was written to")
                for u, then in zip(upstream, given, strict=True):
                    np.testing.assert_array_equal(u, then, err_msg=f"{what}: the upstream gradient was written to")
                assert all(x.version[0] == 0 for x in [*run.leaves, *run.starts]), f"{what}: a version was counted up"
                self._shares_no_memory(case, run, [x for x in arrays if x is not None], what)
                if getattr(self.op, "view", False) and run.leaves:
                    for y in run.outputs:
                        shared = np.may_share_memory(y.data, run.leaves[0].data)
                        is_view |= shared
                        if y.size:
                            assert shared == (y.version is run.leaves[0].version), f"{what}: memory and version counter are shared, or neither"
        return is_view

    def _shares_no_memory(self, case: Case, run: Run, inputs: list, what: str) -> None:
        outputs = [y.data for y in run.outputs]
        grads = [g.data for g in run.grads if g is not None]
        starts = [s.data for s in run.starts]
        if not getattr(self.op, "view", False):
            for k, y in enumerate(outputs):
                others = outputs[:k] + inputs
                assert not any(np.shares_memory(y, other) for other in others), f"{what}: output {k} shares memory with an input or another output"
        for x, u in [(x, u) for x in run.leaves for u in run.starts]:
            assert x.grad is None and u.grad is None
        for y, u in zip(run.carrying, run.starts, strict=True):
            if run.leaves and y.requires_grad:
                y.backward(u, retain_graph=True)
        collected = [x.grad.data for x in run.leaves if x.grad is not None]
        for arrays, how in ((grads, "grad()"), (collected, ".grad")):
            for k, g in enumerate(arrays):
                others = arrays[:k] + starts + inputs + outputs
                assert not any(np.shares_memory(g, other) for other in others), f"{what}: gradient {k} in {how} shares memory"

    def keeps_dtypes(self, case: Case) -> None:
        """See `test_dtypes`. float32 results are also near those in float64 on the same rounded numbers: a formula for float32 alone is tried too."""
        single = [None if x is None else x.astype(np.float32) if x.dtype.kind == "f" else x for x in case.inputs]
        double = [None if x is None else x.astype(np.float64) if x.dtype.kind == "f" else x for x in single]
        for name, context, device in self.ways():
            with context():
                exact = self.run(double, case.wanted, case.values, device=device)
            for arrays, dtype in ((single, np.float32), (double, np.float64)):
                what = f"{self.name} by {name} in {np.dtype(dtype)}"
                theirs = self.run_in_torch(arrays, [False] * len(arrays), case.values).outputs
                with context():
                    run = self.run(arrays, case.wanted, case.values, [as_numpy(s).astype(dtype) for s in exact.starts], device)
                for k, (y, reference) in enumerate(zip(run.outputs, theirs, strict=True)):
                    expected = str(reference.dtype).removeprefix("torch.")
                    assert y.dtype == expected, f"{what}: output {k} is {y.dtype}, PyTorch's {expected}"
                    assert type(y.data) is type(_leaf(np.zeros(()), False, device).data), f"{what}: output {k} is a {type(y.data).__name__}"
                near = max(1e-4, case.relative * 1e7)
                for k, (y, reference) in enumerate(zip(run.arrays(), exact.arrays(), strict=True)):
                    assert_close(y.astype(np.float64), reference.astype(np.float64), f"{what}: output or gradient {k}", near)
                with context():
                    if run.carrying and run.leaves:
                        for k, g in enumerate(minigrad.grad(run.carrying, run.leaves, run.starts, create_graph=True, allow_unused=True)):
                            assert g is None or g.dtype == dtype, f"{what}: gradient {k} with create_graph is {g.dtype}"

    def node_keeps(self, case: Case) -> list[str]:
        """See `test_what_a_node_keeps`. Returns which entries of `keeps` the case could show."""
        shown = []
        names = self.input_names(case)
        possible = {name for name, need in zip(names, case.wanted, strict=True) if need}
        for entry, kept in self.keeps.items():
            requires = set(entry.split())
            if requires <= possible:
                with _without_collector():
                    self._node_keeps(case, names, requires, set(kept.split()))
                shown.append(entry)
        return shown

    def _node_keeps(self, case: Case, names: list[str], requires: set[str], kept: set[str]) -> None:
        what = f"{self.name}, when {' and '.join(sorted(requires))} require grad"
        leaves = [None if x is None else _leaf(x, name in requires, "cpu") for x, name in zip(case.inputs, names, strict=True)]
        # results of an addition, which itself keeps nothing: then only the node could hold their arrays
        inputs = [None if x is None else x + 0.0 if x.requires_grad else Tensor(x) for x in leaves]
        outputs = self.call(inputs, case.values)
        if not self.carrying(outputs):
            return
        node = self.carrying(outputs)[0].node
        arrays = [(name, weakref.ref(x.data)) for name, x in zip(names, inputs, strict=True) if x is not None]
        arrays += [("out", weakref.ref(y.data)) for y in outputs]
        besides = _held(node) - {id(x.data) for x in [*inputs, *outputs] if x is not None}
        allowed = type(self).keeps_besides(*case.inputs, **case.values) if self.keeps_besides is not None else 0
        size = sum(array.size for array in _arrays(node) if id(array) in besides and not _is_view(array, [*inputs, *outputs]))
        del inputs, outputs
        alive = {name for name, array in arrays if array() is not None}
        present = {name for name, x in zip(names, leaves, strict=True) if x is not None} | {"out"}
        assert alive == kept & present, f"{what}: the node keeps {alive or 'nothing'}, not {kept or 'nothing'}"
        assert size <= allowed, f"{what}: the node keeps {size} more numbers than inputs and output have, {allowed} are allowed"
        del node

        inputs = [None if x is None else x + 0.0 if x.requires_grad else Tensor(x) for x in leaves]
        outputs = self.carrying(self.call(inputs, case.values))
        node = outputs[0].node
        arrays = [(name, weakref.ref(x.data)) for name, x in zip(names, inputs, strict=True) if x is not None]
        minigrad.grad(outputs, [x for x in leaves if x is not None and x.requires_grad], [Tensor(u) for u in _upstream(outputs)], allow_unused=True)
        del inputs, outputs
        alive = {name for name, array in arrays if array() is not None}
        assert node is not None and not alive, f"{what}: after a backward pass the node still keeps {alive}"

    def refuses(self, refusal: Refusal) -> None:
        """See `test_errors`."""
        case = refusal.case
        for _, context, device in self.ways():
            tensors = [None if x is None else _leaf(x, False, device) for x in case.inputs]
            with context(), pytest.raises(refusal.exception, match=refusal.message):
                self.call(tensors, case.values)
        theirs = [None if x is None else torch.tensor(x) for x in case.inputs]
        raised: Exception | None = None
        try:
            type(self).in_torch(*theirs, **case.values)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raised = error
        expected = refusal.in_torch is True
        if raised is not None and not expected:
            pytest.fail(f"{self.name}: PyTorch raises too ({type(raised).__name__}: {raised}): leave in_torch out of the Refusal")
        if raised is None and expected:
            pytest.fail(f"{self.name}: PyTorch takes what must raise {refusal.message!r}; say in the Refusal's in_torch why it does")

    def refuses_mixtures(self, case: Case) -> bool:
        """See `test_mixed_devices_and_dtypes`. Returns whether the case has two tensors."""
        present = [k for k, x in enumerate(case.inputs) if x is not None]
        if len(present) < 2:
            return False
        for k in present:
            far = [x if x is None else wrap(x.view(_Elsewhere) if j == k else x) for j, x in enumerate(case.inputs)]
            message = rf"{self.name}: inputs are on (cpu and elsewhere|elsewhere and cpu); move .*\.to\(device="
            for _, context, _ in self.ways():
                with context(), pytest.raises(TypeError, match=message):
                    self.call(far, case.values)
            floats = [j for j in present if case.inputs[j].dtype.kind == "f"]  # type: ignore[union-attr]
            if isinstance(self.op, Fused) and k in floats and len(floats) > 1:
                mixed = [x if x is None else wrap(x.astype(np.float32) if j == k else x) for j, x in enumerate(case.inputs)]
                for _, context, _ in self.ways():
                    with context(), pytest.raises(TypeError, match=rf"{self.name}: inputs are float.* and float.*; bring them to one dtype"):
                        self.call(mixed, case.values)
        return True


class Run(NamedTuple):
    """What one run gave: all outputs, those that carry gradient, the leaves that want one, the upstream gradients, the leaves' gradients."""

    outputs: list
    carrying: list
    leaves: list
    starts: list
    grads: list

    def arrays(self) -> list[np.ndarray]:
        """Outputs and gradients as NumPy arrays; a gradient that is not there is 0."""
        grads = [np.zeros_like(as_numpy(x)) if g is None else as_numpy(g) for x, g in zip(self.leaves, self.grads, strict=True)]
        return [as_numpy(y) for y in self.outputs] + grads


def lay_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The array in another memory layout. "strided": a view that is reversed, transposed and takes every second element. "repeated": a read-only
    view with a stride of 0 along an axis, along which the values are then the same.
    """
    if layout == "contiguous" or array.ndim == 0:
        return array
    if layout == "strided":
        wide = np.zeros(tuple(2 * n for n in array.shape[::-1]), array.dtype)
        view = wide.T[tuple(slice(None, None, 2) for _ in array.shape)][::-1]
        view[...] = array
        return view
    axis = sum(array.shape) % array.ndim
    if array.dtype.kind != "f" or not array.size:
        return array
    return np.broadcast_to(array.take([0], axis), array.shape)


def _leaf(array: np.ndarray, requires_grad: bool, device: str) -> Tensor:
    """A leaf around this very array (a copy of it on another device)."""
    tensor = wrap(array) if device == "cpu" else Tensor(array).to(device=device).detach()
    return tensor.requires_grad_() if requires_grad else tensor


def _upstream(outputs: Iterable) -> list[np.ndarray]:
    """A random gradient for each output, never the same number twice: with ones, mistakes in softmax and normalisation vanish."""
    return [np.asarray(rng(1 + k).uniform(-1, 1, tuple(y.shape))) for k, y in enumerate(outputs)]


def _torch_grads(outputs: list, leaves: list, upstream: list, create_graph: bool = False) -> list:
    pairs = [(y, u) for y, u in zip(outputs, upstream, strict=True) if y.requires_grad]
    if not leaves:
        return []
    if not pairs:
        return [torch.zeros_like(x) for x in leaves]
    ys, us = zip(*pairs, strict=True)
    return list(torch.autograd.grad(ys, leaves, us, create_graph=create_graph, retain_graph=True, allow_unused=True, materialize_grads=True))


def _check_gradient(ours: Tensor | None, reference: Any, leaf: Tensor, what: str, relative: float) -> None:
    if reference is None:
        assert ours is None, f"{what}: there is one, the reference has none"
        return
    reference = as_numpy(reference)
    if ours is None:  # the output does not depend on the input at all
        assert not reference.any(), f"{what}: None, reference {reference}"
        return
    assert ours.dtype == leaf.dtype, f"{what}: dtype {ours.dtype} for a {leaf.dtype} tensor"
    assert_close(as_numpy(ours), reference, what, relative)


def _random_state() -> tuple:
    kind, keys, *rest = np.random.get_state()
    return random._process_seed, random.get_counter(), kind, keys.tobytes(), tuple(rest)


@contextmanager
def _without_collector() -> Iterator[None]:
    """What dies in here dies by reference counting alone."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _arrays(node: Any) -> list[np.ndarray]:
    """Every array that a node holds for its derivative."""
    found: list[np.ndarray] = []

    def look(thing: Any) -> None:
        if isinstance(thing, Tensor):
            found.append(thing.data)
        elif isinstance(thing, np.ndarray):
            found.append(thing)
        elif isinstance(thing, tuple | list):
            for part in thing:
                look(part)

    for slot in ("saved", "kept", "inputs", "out"):
        look(getattr(node, slot, None))
    return list({id(array): array for array in found}.values())


def _held(node: Any) -> set[int]:
    return {id(array) for array in _arrays(node)}


def _is_view(array: np.ndarray, tensors: Sequence[Tensor | None]) -> bool:
    return any(np.may_share_memory(array, x.data) for x in tensors if x is not None)


# --- proving anything else in the same way


def check_op(
    op: Callable,
    in_torch: Callable,
    inputs: Sequence[np.ndarray | None],
    needs: Sequence[bool] | None = None,
    second: bool = True,
) -> None:
    """All checks of one case at once, for functions made of several operations and for cases with a test of their own.

    Args:
        op: an operation or any function of Tensors; in_torch: the same for torch tensors.
        inputs, needs: see Case.
        second: also compare the second derivative (not at kinks, nor where PyTorch has none).
    """
    kind = type("Proof", (Proof,), {"op": staticmethod(op) if not isinstance(op, Op) else op, "in_torch": staticmethod(in_torch), "keeps": {}})
    proof, case = kind(), Case(inputs, needs=needs)
    proof.definition_equals_pytorch(case)
    if isinstance(op, Op):
        proof.kernel_equals_definition(case)
        proof.leaves_everything_alone(case)
    proof.keeps_dtypes(case)
    if second:
        proof.gradient_of_the_gradient(case)


# --- which proofs there are


NO_CUDA = "It is a primitive: on a GPU its forward runs on CuPy's arrays (`erf`, `scatter_add`, large sums and products by our own kernels)."

FROM_DEFINITION = "It has no CUDA kernel: on a GPU it is computed by its definition."


def on_cuda() -> AbstractContextManager:
    """The device "cuda", where every launch must give the same bits twice."""
    return cuda_device.on_cuda(("ascending", "descending"))


GENERIC = tuple(name for name in vars(Proof) if name.startswith("test_"))
_MACHINERY = frozenset(name for name, member in vars(Proof).items() if isinstance(member, FunctionType | property)) | {"__init_subclass__"}


ON_CUDA = ("kernel on cuda", on_cuda, "cuda")


def why_not(proof: type[Proof], name: str) -> str:
    """The reason why an operation cannot have a generic test, or ""."""
    op = getattr(proof, "op", None)
    stated = {"test_pins": "pins", "test_errors": "errors", "test_float32_accuracy": "float32"}.get(name)
    if stated is not None:
        reason = getattr(proof, stated, "")
        return reason if isinstance(reason, str) else ""
    if name == "test_cuda_kernel_equals_definition":
        return "" if "cuda" in getattr(op, "kernels", ()) else FROM_DEFINITION if isinstance(op, Fused) else NO_CUDA
    if name in ("test_fan_out_and_same_tensor_twice", "test_gradcheck", "test_double_backward", "test_what_a_node_keeps"):
        return "It has no derivative." if isinstance(op, Primitive) and not op.rules else ""
    if name == "test_mixed_devices_and_dtypes":
        return "It takes one tensor." if isinstance(op, Op) and op.count == 1 and not op.variadic else ""
    return ""


def complaints(proof: type[Proof]) -> list[str]:
    """What a proof lacks."""
    name, found, op = proof.__name__, [], getattr(proof, "op", None)
    for attribute in ("op", "in_torch", "cases", "keeps", "pins", "errors"):
        if not hasattr(proof, attribute):
            found.append(f"{name} does not state {attribute}")
    if op is not None and REGISTRY.get(getattr(op, "name", "")) is not op:
        found.append(f"{name}: {op!r} is not in the registry")
    for attribute in ("pins", "errors", "float32"):
        stated = getattr(proof, attribute, None)
        if stated is not None and len(stated) < (20 if isinstance(stated, str) else 1):
            found.append(f"{name}: {attribute} is {stated!r}; state some, or a sentence (20 characters or more) saying why there are none")
    if getattr(op, "kernels", None) and isinstance(proof.float32, str):
        found.append(f"{name}: the operation has a kernel, float32 must be cases")
    if op is not None and not getattr(op, "kernels", None) and not isinstance(proof.float32, str):
        found.append(f"{name}: the operation has no kernel, float32 cases would hold its definition against itself")
    if proof.float32_bound != Bound() and len(proof.float32_bound.reason) < 20:
        found.append(f"{name}: a float32_bound of its own needs a reason (20 characters or more)")
    if proof.variant and len(proof.variant) < 20:
        found.append(f"{name}: variant is {proof.variant!r}; say in a sentence (20 characters or more) what is different")
    if isinstance(op, Op) and (op.rules or isinstance(op, Fused)) and not getattr(proof, "keeps", {"x": ""}):
        found.append(f"{name}: keeps is empty")
    if not name.startswith("Test") or not getattr(proof, "__test__", True) or getattr(proof, "pytestmark", ()):
        found.append(f"{name} is not run by pytest, or with marks")
    for kind in proof.__mro__[: proof.__mro__.index(Proof)]:
        for own, member in vars(kind).items():
            removed = own in GENERIC and member is None and why_not(proof, own)
            if own in _MACHINERY and not removed:
                found.append(f"{name} replaces {own}")
    return found


def all_proofs() -> list[type[Proof]]:
    """Every proof in tests/ops and tests/fused. What several of them have in common may stand in a class without `op`."""
    found = []
    for folder in ("ops", "fused"):
        for path in sorted((Path(__file__).parent / folder).glob("test_*.py")):
            module = importlib.import_module(f"tests.{folder}.{path.stem}")
            own = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Proof) and c.__module__ == module.__name__]
            found += [c for c in own if hasattr(c, "op")]
    return found


def table() -> list[tuple[str, ...]]:
    """A row per proof, in the order of the operations' names, the head first: the operation, the test class, and for each generic test "yes" or why
    there is none.
    """
    rows: list[tuple[str, ...]] = [("operation", "proof", *[name.removeprefix("test_").replace("_", " ") for name in GENERIC])]
    proofs = all_proofs()
    for name, op in sorted(REGISTRY.items()):
        for proof in sorted([p for p in proofs if p.op is op], key=lambda p: p.variant):
            cells = [why_not(proof, test) or ("yes" if callable(getattr(proof, test)) else "no") for test in GENERIC]
            rows.append((name, f"{proof.__module__.replace('.', '/')}.py::{proof.__name__}", *cells))
    return rows
