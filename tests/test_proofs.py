"""Every operation has a proof, no proof lacks anything, and each generic test refuses an operation that is wrong in the way it looks for.

Read next: `tests/proofs.py`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigrad
from minigrad import Tensor, functional, ops, random
from minigrad.op import REGISTRY, Fused, Unary, fused, primitive
from tests.proofs import GENERIC, Bound, Case, Pin, Proof, Refusal, all_proofs, check_op, complaints, table, why_not
from tests.support import arrays, broadcast_shapes, rng, shapes

assert functional.add  # importing it fills the registry
OPERATIONS = sorted(name for name, op in REGISTRY.items() if op.__module__.startswith("minigrad."))

# --- completeness


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_one_proof(name: str):
    """Another one must say with which values it is different: what batch_norm keeps depends on whether it ends with a ReLU."""
    proofs = [proof for proof in all_proofs() if proof.op is REGISTRY[name]]
    whole = [proof.__name__ for proof in proofs if not proof.variant]
    assert len(whole) == 1, f"{name} has {len(whole)} proofs: {whole}"
    assert [complaint for proof in proofs for complaint in complaints(proof)] == []


def test_no_proof_is_of_something_else():
    assert {proof.op.name for proof in all_proofs()} <= set(OPERATIONS)


def test_the_table_says_for_each_operation_what_is_proven():
    head, *rows = table()
    assert len(head) == 2 + len(GENERIC)
    assert list(dict.fromkeys(row[0] for row in rows)) == OPERATIONS and len(rows) == len(all_proofs())
    for row in rows:
        assert "::Test" in row[1] and "no" not in row
        cells = dict(zip(head, row, strict=True))
        assert cells["definition equals pytorch"] == cells["kernel equals definition"] == cells["purity"] == cells["dtypes"] == "yes"
        assert all(cell == "yes" or cell.endswith(".") for cell in row[2:])


# --- what a proof must state


def stated() -> dict[str, Any]:
    """All that a proof of `neg` states."""
    return {
        "op": ops.neg,
        "in_torch": torch.neg,
        "cases": arrays(shapes()).map(lambda x: Case([x])),
        "keeps": {"x": ""},
        "pins": "It is linear, there is no kink.",
        "errors": "Every number has a negative.",
    }


def proof(**attributes: Any) -> type[Proof]:
    return type("TestNeg", (Proof,), stated() | attributes)


@pytest.mark.parametrize("attribute", ["op", "in_torch", "cases", "keeps", "pins", "errors"])
def test_nothing_may_be_left_out(attribute: str):
    assert complaints(proof()) == []
    everything = stated()
    del everything[attribute]
    assert f"TestNeg does not state {attribute}" in complaints(type("TestNeg", (Proof,), everything))


@pytest.mark.parametrize(
    ("attributes", "complaint"),
    [
        ({"pins": []}, r"pins is \[\]; state some"),
        ({"errors": "none"}, r"errors is 'none'; state some, or a sentence \(20 characters or more\)"),
        ({"keeps": {}}, "keeps is empty"),
        ({"op": torch.neg}, "not in the registry"),
        ({"op": functional.gelu}, "has a kernel, float32 must be cases"),
        ({"float32": [Case([np.ones(3)])]}, "has no kernel, float32 cases"),
        ({"float32_bound": Bound(10.0)}, "needs a reason"),
        ({"variant": "relu"}, "variant is 'relu'; say in a sentence"),
        ({"test_double_backward": None}, "replaces test_double_backward"),
        ({"test_purity": lambda self: None}, "replaces test_purity"),
        ({"for_each": lambda self, check, share=1.0, smooth=False: None}, "replaces for_each"),
        ({"kernel_equals_definition": lambda self, case: None}, "replaces kernel_equals_definition"),
        ({"__test__": False}, "is not run by pytest"),
        ({"pytestmark": pytest.mark.skip}, "is not run by pytest, or with marks"),
    ],
)
def test_what_is_no_proof(attributes: dict, complaint: str):
    with pytest.raises(AssertionError, match=complaint):
        raise AssertionError(complaints(proof(**attributes)))


def test_a_family_of_proofs_may_not_replace_a_test_either():
    family = type("Family", (Proof,), {"test_purity": lambda self: None})
    assert complaints(type("TestNeg", (family,), stated())) == ["TestNeg replaces test_purity"]


def test_only_tests_without_a_meaning_are_taken_away():
    """And each with the reason stated."""
    gone = {name for name in GENERIC if getattr(proof(), name) is None}
    assert (
        gone
        == {"test_cuda_kernel_equals_definition", "test_float32_accuracy", "test_pins", "test_errors", "test_mixed_devices_and_dtypes"}
        == {n for n in GENERIC if why_not(proof(), n)}
    )
    assert why_not(proof(), "test_pins") == "It is linear, there is no kink."
    everything = proof(op=ops.mul, pins=[Pin("", Case([]))], errors=[Refusal(Case([]), ValueError, "")], float32=[Case([])])
    assert [name for name in GENERIC if not callable(getattr(everything, name))] == ["test_cuda_kernel_equals_definition"]


# --- each test refuses what it should: x * x * scale, right and wrong in many ways


def forward(x: np.ndarray, scale: np.ndarray) -> tuple:
    return x * x * scale, (x, scale)


def backward(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
    x, scale = saved
    return (2 * dy * x * scale if needs[0] else None, dy * x * x if needs[1] else None)


def _backward_on_cuda(dy: Any, saved: tuple, needs: tuple) -> tuple:
    return backward(dy, saved, needs)


def definition(x: Tensor, scale: Tensor) -> Tensor:
    return x * x * scale


def prove(
    forward: Callable = forward,
    backward: Callable | None = backward,
    definition: Callable = definition,
    rules: dict | None = None,
    kernel: dict | None = None,
    on_cuda: Callable | None = None,
    **attributes: Any,
) -> Proof:
    """The proof of an operation with these parts; `on_cuda` is the forward of a CUDA kernel (here of array operations)."""

    def energy(x: Tensor, scale: Tensor) -> Tensor:
        return definition(x, scale)

    REGISTRY.pop("energy", None)
    op = fused(energy)
    if rules:
        op.derivative(**rules)
    op.kernel("cpu", forward, backward, **(kernel or {}))
    if on_cuda:
        op.kernel("cuda", on_cuda, _backward_on_cuda)

    @op.check
    def check(x: Tensor, scale: Tensor) -> None:
        if x.shape != scale.shape:
            raise ValueError(f"energy: x has shape {x.shape}, scale {scale.shape}")

    pair = st.builds(lambda x, seed: Case([x, rng(seed).uniform(-2, 2, x.shape)]), arrays(shapes(min_dims=1)), st.integers(0, 99))
    everything = {
        "op": op,
        "in_torch": staticmethod(lambda x, scale: x * x * scale),
        "cases": pair,
        "keeps": {"x scale": "x scale", "x": "x scale", "scale": "x scale"},
        "float32": [Case([rng(0).standard_normal((4, 5)), rng(1).standard_normal((4, 5))])],
        "pins": [Pin("at 0", Case([np.zeros(1), np.ones(1)]), [np.zeros(1), np.zeros(1)])],
        "errors": [Refusal(Case([np.zeros(2), np.zeros(3)]), ValueError, r"energy: x has shape \(2,\), scale \(3,\)")],
    }
    return type("TestEnergy", (Proof,), everything | attributes)()


@pytest.fixture(autouse=True)
def nothing_is_shrunk() -> Iterator[None]:
    """A case that fails is enough here, it need not be the smallest."""
    name = settings.get_current_profile_name()
    settings.register_profile("first failure", settings(), phases=[Phase.generate], database=None, report_multiple_bugs=False)
    settings.load_profile("first failure")
    yield
    settings.load_profile(name)


@pytest.fixture
def bites(registry: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function: the named tests of a proof fail, saying why, and the others given pass."""

    def check(wrong: Proof, test: str, message: str, still_passing: tuple[str, ...] = ()) -> None:
        for name in still_passing:
            run(wrong, name, monkeypatch)
        with pytest.raises((AssertionError, ValueError, pytest.fail.Exception), match=message):
            run(wrong, test, monkeypatch)

    return check


def run(proof: Proof, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (monkeypatch,) if test == "test_mixed_devices_and_dtypes" else ()
    with monkeypatch.context():
        getattr(proof, test)(*arguments)


@pytest.mark.parametrize("test", GENERIC)
def test_the_right_operation_passes(test: str, registry: None, monkeypatch: pytest.MonkeyPatch):
    right = prove(on_cuda=forward)
    assert complaints(type(right)) == []
    run(right, test, monkeypatch)


def test_a_cuda_kernel_off_by_one_billionth(bites: Callable):
    wrong = prove(on_cuda=lambda x, scale: (x * x * scale * (1 + 1e-9), (x, scale)))
    bites(wrong, "test_cuda_kernel_equals_definition", "energy by its CUDA kernel .*: output 0: error", ("test_kernel_equals_definition",))


def test_a_cuda_kernel_that_loses_digits_in_float32(bites: Callable):
    def rounded(x: Any, scale: Any) -> tuple:
        return (x * x * scale * (1 + (1e-5 if x.dtype == np.float32 else 0)), (x, scale))

    bites(prove(on_cuda=rounded), "test_cuda_kernel_equals_definition", "energy by kernel on cuda, output 0: float32 error")


def test_a_kernel_off_by_one_billionth(bites: Callable):
    wrong = prove(forward=lambda x, scale: (x * x * scale * (1 + 1e-9), (x, scale)))
    bites(wrong, "test_kernel_equals_definition", "energy by kernel on cpu .*: output 0: error", ("test_definition_equals_pytorch", "test_dtypes"))


def test_a_wrong_definition(bites: Callable):
    bites(
        prove(definition=lambda x, scale: x * x * (scale + 1e-9)), "test_definition_equals_pytorch", "by definition .* and PyTorch: output 0: error"
    )


def test_a_definition_with_a_wrong_gradient(bites: Callable):
    wrong = prove(definition=lambda x, scale: x * x.detach() * scale)
    bites(wrong, "test_definition_equals_pytorch", "gradient 0: error")


def test_a_wrong_gradient_of_the_kernel(bites: Callable):
    def half(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        x, scale = saved
        return dy * x * scale, dy * x * x

    for test, message in [
        ("test_kernel_equals_definition", "gradient 0: error"),
        ("test_gradcheck", "gradcheck: the derivative along direction"),
        ("test_fan_out_and_same_tensor_twice", "by kernel on cpu, fanned out: gradient 0: error"),
        ("test_double_backward", "gradient 0 with create_graph"),
    ]:
        bites(prove(backward=half), test, message, ("test_definition_equals_pytorch", "test_purity", "test_what_a_node_keeps"))


def test_a_gradient_that_is_wrong_where_only_it_is_wanted(bites: Callable):
    def careless(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        x, scale = saved
        return 2 * dy * x * scale if needs[0] else None, dy * x * x if needs[0] else dy * x

    bites(prove(backward=careless), "test_kernel_equals_definition", r"with gradients of \(1,\) only: gradient 0", ("test_gradcheck",))


def test_a_kernel_that_takes_memory_for_values(bites: Callable):
    """Declared for any strides, it reads a transposed or reversed array in the order of its memory."""

    def reading(x: np.ndarray, scale: np.ndarray) -> tuple:
        flat = [np.ravel(a, "K").reshape(a.shape) for a in (x, scale)]
        return flat[0] * flat[0] * flat[1], (x, scale)

    bites(prove(forward=reading, kernel={"strided": True}), "test_kernel_equals_definition", r"\(strided\)", ("test_gradcheck",))


def test_a_gradient_that_is_the_upstream_gradient_itself(bites: Callable):
    """Borrowing it is fine, unless the kernel calls it fresh: then it becomes a leaf's own."""

    def passing(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        return dy, None

    def double(**kernel: Any) -> Proof:
        return prove(lambda x, s: (x + s, ()), lambda dy, saved, needs: (dy, dy), lambda x, s: x + s, kernel=kernel, keeps={"x scale": ""})

    double().test_purity()
    bites(double(fresh=True), "test_purity", r"gradient 0 in grad\(\) shares memory")


def test_two_gradients_in_one_array(bites: Callable):
    def shared(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        dx = dy * 1.0
        return dx, dx

    wrong = prove(lambda x, s: (x + s, ()), shared, lambda x, s: x + s, kernel={"fresh": True}, keeps={"x scale": ""})
    bites(wrong, "test_purity", r"gradient 1 in grad\(\) shares memory")


@pytest.mark.parametrize("what", ["an input, forward", "an input, backward", "the upstream gradient"])
def test_writing_to_what_is_not_its_own(what: str, bites: Callable):
    def writing_forward(x: np.ndarray, scale: np.ndarray) -> tuple:
        y = x * x * scale
        if what == "an input, forward":
            scale *= 1.5
        return y, (x, scale)

    def writing_backward(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        result = backward(dy, saved, needs)
        if what == "an input, backward":
            saved[0][...] = 0.0
        if what == "the upstream gradient":
            dy *= 2.0
        return result

    message = "the upstream gradient was written to" if what == "the upstream gradient" else "input . was written to"
    some = st.just(Case([rng(0).uniform(-2, 2, (2, 3)), rng(1).uniform(-2, 2, (2, 3))]))
    bites(prove(writing_forward, writing_backward, cases=some), "test_purity", message)


def test_arrays_that_must_be_writeable(bites: Callable):
    """It puts back what it has written; still it cannot take read-only arrays."""

    def swapping(x: np.ndarray, scale: np.ndarray) -> tuple:
        x *= 2.0
        y = x * x * scale / 4
        x /= 2.0
        return y, (x, scale)

    bites(prove(swapping), "test_purity", "read-only")


def test_an_output_that_is_an_input(bites: Callable):
    wrong = prove(lambda x, s: (x, ()), lambda dy, saved, needs: (dy, np.zeros_like(dy)), lambda x, s: x + s * 0.0)
    bites(wrong, "test_purity", "output 0 shares memory with an input", ("test_kernel_equals_definition",))


@pytest.mark.parametrize("wrong", ["a copy after all", "two version counters"])
def test_views_that_are_none(wrong: str, bites: Callable, monkeypatch: pytest.MonkeyPatch):
    @primitive(view=True)
    def same(x: Tensor) -> Tensor:
        return x.copy() if wrong == "a copy after all" else x

    same.derivative(x=lambda g: g)
    proof = prove(op=same, in_torch=staticmethod(lambda x: x * 1), cases=arrays(shapes()).map(lambda x: Case([x])), keeps={"x": ""})
    if wrong == "two version counters":
        monkeypatch.setattr("minigrad.backend.is_view", lambda array, of: False)
    bites(proof, "test_purity", "declared to give views never does" if wrong == "a copy after all" else "version counter are shared, or neither")


def test_an_output_that_nothing_uses(bites: Callable):
    @primitive(several=True)
    def halves(x: Tensor, scale: float = 0.5) -> tuple[Tensor, Tensor]:
        return x * scale, x * 0.25

    halves.derivative(x=lambda g: sum(part * slope for part, slope in zip([g[0], g[1] if g[1] is not None else g[0]], (0.5, 0.25), strict=True)))
    wrong = prove(
        op=halves, in_torch=staticmethod(lambda x: (x * 0.5, x * 0.25)), cases=arrays(shapes(min_dims=1)).map(lambda x: Case([x])), keeps={"x": ""}
    )
    bites(wrong, "test_fan_out_and_same_tensor_twice", "gradient 0: error", ("test_definition_equals_pytorch", "test_gradcheck"))


def test_drawing_random_numbers(bites: Callable):
    def drawing(x: np.ndarray, scale: np.ndarray) -> tuple:
        random.next_draw()
        return forward(x, scale)

    bites(prove(drawing), "test_purity", "random numbers were drawn")


def test_keeping_too_much(bites: Callable):
    wrong = prove(lambda x, s: (x + s, (x,)), lambda dy, saved, needs: (dy, dy), lambda x, s: x + s, rules={"x": lambda g: g, "scale": lambda g: g})
    type(wrong).keeps = {"x scale": ""}
    bites(wrong, "test_what_a_node_keeps", r"the node keeps \{'x'\}, not nothing")


def test_keeping_a_copy(bites: Callable):
    wrong = prove(lambda x, scale: (x * x * scale, (x.copy(), scale)))
    bites(wrong, "test_what_a_node_keeps", "more numbers than inputs and output have")


def test_keeping_the_output_in_a_cycle(bites: Callable):
    """A node that holds its own output lives until the collector comes."""

    class Cyclic(Unary):
        """Its node holds its output."""

        def __call__(self, x: Tensor) -> Tensor:
            y = super().__call__(x)
            if held and y.node is not None:
                y.node.shapes = [y]
            return y

    def cyclic(x: Tensor) -> Tensor:
        return np.exp(x)

    held: list[bool] = []
    op = Cyclic(cyclic)
    op.derivative(x=lambda g, x: g * x.exp())
    proof = prove(op=op, in_torch=torch.exp, cases=arrays(shapes()).map(lambda x: Case([x])), keeps={"x": "x"})
    proof.test_what_a_node_keeps()
    held.append(True)
    bites(proof, "test_what_a_node_keeps", "the node keeps .*'out'")


def test_keeping_after_the_backward_pass(bites: Callable):
    hidden: list = []

    def hoarding(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        hidden.append(saved)
        return backward(dy, saved, needs)

    bites(prove(backward=hoarding), "test_what_a_node_keeps", "after a backward pass the node still keeps")


def test_a_statement_about_what_is_kept_that_no_case_shows(bites: Callable):
    wrong = prove(cases=arrays(shapes()).map(lambda x: Case([x, x], needs=(True, False))), keeps={"x": "x scale", "scale": "x"})
    bites(wrong, "test_what_a_node_keeps", r"no case showed what is kept where these require grad: \{'scale'\}")


def test_a_wrong_second_derivative(bites: Callable):
    wrong = prove(rules={"x": lambda g, x, scale: g * (2 * x.detach() * scale), "scale": lambda g, x: g * x * x})
    bites(
        wrong,
        "test_double_backward",
        "second derivative by input 0",
        ("test_definition_equals_pytorch", "test_kernel_equals_definition", "test_gradcheck"),
    )


def test_a_gradient_that_forgets_the_upstream_gradients_graph(bites: Callable):
    wrong = prove(rules={"x": lambda g, x, scale: g.detach() * (2 * x * scale), "scale": lambda g, x: g * x * x})
    bites(wrong, "test_double_backward", "second derivative by upstream gradient", ("test_kernel_equals_definition", "test_gradcheck"))


def test_a_second_derivative_that_only_finite_differences_can_judge(bites: Callable):
    """Where PyTorch has none."""
    cases = arrays(shapes(min_dims=1, min_side=1)).map(lambda x: Case([x, x + 1], second_in_torch=False))
    wrong = prove(rules={"x": lambda g, x, scale: g * (2 * x.detach() * scale), "scale": lambda g, x: g * x * x}, cases=cases)
    bites(wrong, "test_double_backward", "by finite differences")


@pytest.mark.parametrize("wrong_part", ["value", "gradient"])
def test_float64_where_float32_is_given(wrong_part: str, bites: Callable):
    def widening_forward(x: np.ndarray, scale: np.ndarray) -> tuple:
        y = x * x * scale
        return y.astype(np.float64) if wrong_part == "value" else y, (x, scale)

    def as_wide_as(dtype: type, dy: np.ndarray, saved: tuple) -> tuple:
        return tuple(g.astype(dtype) for g in backward(dy, saved, (True, True)))

    def widening_backward(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        return as_wide_as(np.float64, dy, saved)

    def right_backward(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        return as_wide_as(saved[0].dtype, dy, saved)

    wrong = prove(widening_forward, widening_backward if wrong_part == "gradient" else right_backward)
    refused = r"the gradient of a tensor of shape .*, float32, came out as .*, float64"  # by the engine, whoever asks
    bites(wrong, "test_dtypes", "output 0 is float64, PyTorch's float32" if wrong_part == "value" else refused)


def test_a_formula_for_float32_alone(bites: Callable):
    wrong = prove(lambda x, scale: (x * x * scale * (1.01 if x.dtype == np.float32 else 1.0), (x, scale)))
    bites(wrong, "test_dtypes", "float32: output or gradient 0: error", ("test_kernel_equals_definition",))


def test_a_kernel_that_loses_digits_in_float32(bites: Callable):
    def rough(x: np.ndarray, scale: np.ndarray) -> tuple:
        return ((x * 3.1) * (x / 3.1) * scale + np.float32(400)) - np.float32(400), (x, scale)

    bites(prove(rough), "test_float32_accuracy", "output 0: float32 error", ("test_dtypes",))


def test_another_choice_at_a_kink(bites: Callable):
    """relu'(0) = 1: right everywhere else."""
    wrong = prove(
        lambda x, s: (np.maximum(x, 0) + s, (x,)),
        lambda dy, saved, needs: (dy * (saved[0] >= 0), dy),
        lambda x, s: x * ops.cast(x >= 0, x.dtype) + s,
        in_torch=staticmethod(lambda x, s: torch.relu(x) + s),
        keeps={"x scale": "x scale"},
    )
    bites(wrong, "test_pins", "at 0: gradient 0: error", ("test_definition_equals_pytorch", "test_kernel_equals_definition", "test_gradcheck"))


def test_a_gradient_written_down_wrongly(bites: Callable):
    wrong = prove(pins=[Pin("at 1", Case([np.ones(1), np.ones(1)]), [np.ones(1), np.ones(1)])])
    bites(wrong, "test_pins", "at 1: gradient 0")


def test_what_should_raise_and_does_not(bites: Callable):
    wrong = prove(errors=[Refusal(Case([np.zeros(1), np.zeros(1)]), ValueError, "energy")])
    bites(wrong, "test_errors", "DID NOT RAISE")


def test_what_pytorch_does_not_refuse(bites: Callable):
    """And the other way round: an exception to the rule that PyTorch raises too must be true."""
    broadcast = Case([np.zeros(1), np.zeros(3)])
    bites(prove(errors=[Refusal(broadcast, ValueError, "energy")]), "test_errors", "PyTorch takes what must raise 'energy'; say in the Refusal")
    prove(errors=[Refusal(broadcast, ValueError, "energy", "PyTorch broadcasts them.")]).test_errors()
    raising = prove(errors=[Refusal(Case([np.zeros(2), np.zeros(3)]), ValueError, "energy", "It is said that PyTorch takes it.")])
    bites(raising, "test_errors", r"PyTorch raises too \(RuntimeError: The size of tensor .*\): leave in_torch out")


def test_devices_that_meet(bites: Callable):
    right = prove()

    class Lenient:
        """Brings every array home before it calls the operation."""

        rules, name, names, count = {}, "energy", right.op.names, 2

        def __call__(self, *tensors: Tensor) -> Tensor:
            return right.op(*[Tensor(np.asarray(x.data)) for x in tensors])

    bites(prove(op=Lenient()), "test_mixed_devices_and_dtypes", "DID NOT RAISE")


def test_two_dtypes_that_meet(bites: Callable):
    class Promoting(Fused):
        """Brings float32 beside float64 to float64."""

        def __call__(self, x: Tensor, scale: Tensor) -> Any:
            if type(x.data) is type(scale.data):
                x, scale = (t.astype(np.float64) if t.dtype != scale.dtype else t for t in (x, scale))
                scale = scale.astype(x.dtype)
            return super().__call__(x, scale)

    def promoting(x: Tensor, scale: Tensor) -> Tensor:
        return x * x * scale

    bites(prove(op=Promoting(promoting)), "test_mixed_devices_and_dtypes", "DID NOT RAISE")


def test_cases_that_show_nothing(bites: Callable):
    flat = st.just(Case([np.zeros((2, 3)), np.ones((2, 3))]))
    bites(prove(cases=flat), "test_definition_equals_pytorch", "no case has a gradient other than 0 for scale and x")


@pytest.mark.parametrize(
    "sizes",
    [
        shapes(min_dims=1, max_side=1),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3).map(lambda found: found.input_shapes[0]),
    ],
    ids=["lengths 0 and 1", "Hypothesis's shapes", "Hypothesis's shapes that broadcast"],
)
def test_cases_of_hardly_an_element(sizes: st.SearchStrategy, registry: None):
    """With these a wrong operation passed for right as long as it was right for arrays of one element."""
    few = arrays(sizes).map(lambda x: Case([x, x + 1]))
    message = r"TestEnergy.{}: every array has 2 or more elements in \d+ of \d+ drawn cases, 40% must be so. Build lengths with `shapes`"
    with pytest.raises(AssertionError, match=message.format("cases")):
        prove(cases=few).test_dtypes()
    with pytest.raises(AssertionError, match=message.format("smooth")):
        prove(smooth=few).test_gradcheck()
    prove(smooth=few).test_dtypes()


@pytest.mark.parametrize("number", range(5))
def test_shapes_are_mostly_of_several_elements(number: int):
    """With any seed; and what is degenerate is among them."""
    drawn: list[tuple[int, ...]] = []

    @seed(number)
    @settings(max_examples=200, derandomize=False, database=None)
    @given(shapes(), broadcast_shapes(3))
    def draw(shape: tuple[int, ...], several: tuple[tuple[int, ...], ...]) -> None:
        drawn.extend([shape, *several])
        np.broadcast_shapes(*several)

    draw()
    sizes = [int(np.prod(shape)) for shape in drawn]
    assert sum(size > 1 for size in sizes) > 0.7 * len(sizes) and {0, 1} < set(sizes) and () in drawn
    assert np.mean([len(set(shape)) == len(shape) > 1 for shape in drawn]) > 0.3


def test_rules_on_arrays_that_differ_from_those_on_tensors(bites: Callable):
    @primitive
    def doubled(x: Tensor) -> Tensor:
        return x * 2.0

    doubled.derivative(x=lambda g: g * 2.0)
    doubled.on_arrays(x=lambda g: g * (2.0 + 1e-9))
    wrong = prove(op=doubled, in_torch=staticmethod(lambda x: x * 2), cases=arrays(shapes()).map(lambda x: Case([x])), keeps={"x": ""})
    bites(wrong, "test_kernel_equals_definition", "by its short and its long way: gradient 0")


def test_an_output_too_many(bites: Callable):
    wrong = prove(in_torch=staticmethod(lambda x, scale: (x * x * scale, x)))
    bites(wrong, "test_definition_equals_pytorch", "1 outputs, reference 2")


def test_any_function_can_be_checked():
    """check_op, on functions made of several operations."""
    x = rng(0).uniform(0.5, 1.5, (2, 3))
    check_op(lambda x: x.exp() * x, lambda x: x.exp() * x, [x])
    with pytest.raises(AssertionError, match="gradient 0"):
        check_op(lambda x: x.exp() * x.detach(), lambda x: x.exp() * x, [x])


def test_any_function_can_be_checked_twice_differentiated(registry: None):
    @primitive
    def cube(x: Tensor) -> Tensor:
        return x**3

    cube.derivative(x=lambda g, x: g * 3.0 * (x * x).detach())
    x = rng(0).uniform(0.5, 1.5, (2, 3))
    check_op(lambda x: cube(x), lambda x: x**3, [x], second=False)
    with pytest.raises(AssertionError, match="second derivative"):
        check_op(lambda x: cube(x), lambda x: x**3, [x])


def test_gradients_are_compared_in_every_mode():
    """definitions() and the kernel: both are among the ways a fused operation is run."""
    ways = [name for name, _, _ in prove_softmax().ways()]
    assert ways == ["definition", "kernel on cpu"]
    with minigrad.definitions():
        assert [name for name, _, _ in prove_softmax().ways()] == ways


def prove_softmax() -> Proof:
    return type("TestSoftmax", (Proof,), {"op": functional.softmax})()


CUDA_KERNEL_TO_COME: dict[str, str] = {}
"""Fused operations whose CUDA kernel is still to be written, with the reason."""


def test_every_fused_operation_has_a_cuda_kernel():
    ours = {name: op for name, op in REGISTRY.items() if isinstance(op, Fused) and op.function.__module__.startswith("minigrad.")}
    without = {name for name, op in ours.items() if "cuda" not in op.kernels}
    assert without == CUDA_KERNEL_TO_COME.keys(), "say in CUDA_KERNEL_TO_COME, above, why an operation has none; strike it there when it has one"


def test_the_table_says_why_an_operation_is_not_proven_on_cuda(registry: None, monkeypatch: pytest.MonkeyPatch):
    assert "primitive" in why_not(type("TestExp", (Proof,), {"op": functional.exp}), "test_cuda_kernel_equals_definition")
    softmax = type(prove_softmax())
    assert why_not(softmax, "test_cuda_kernel_equals_definition") == ""
    monkeypatch.delitem(REGISTRY["softmax"].kernels, "cuda")
    assert why_not(softmax, "test_cuda_kernel_equals_definition") == "It has no CUDA kernel: on a GPU it is computed by its definition."


def test_every_number_of_examples_is_in_proportion_to_the_profile_s():
    """Else the profile `deep` would draw no more of them."""
    fixed = re.compile(r"max_examples=\d+\b(?! \*)")
    tests = Path(__file__).parent
    found = [path.name for path in tests.rglob("test_*.py") if path.name != "test_proofs.py" and fixed.search(path.read_text(encoding="utf-8"))]
    assert not found, f"use `draws` of tests/support.py, or `share`: {', '.join(found)}"


def test_the_page_about_trust_shows_the_proofs_of_today_and_the_figures_there_are():
    path = Path(__file__).parent.parent / "docs" / "trust.py"
    spec = importlib.util.spec_from_file_location("trust_page", path)
    assert spec and spec.loader
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.page() == path.with_suffix(".md").read_text(encoding="utf-8"), "run `python docs/trust.py`"
