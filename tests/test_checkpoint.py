"""checkpoint: the same numbers as without it, for every way a function can reach tensors, with less memory (`test_memory.py`).

Read next: `test_anomaly.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, checkpoint, nn, ops, random
from minigrad import functional as F
from minigrad.backend.cublas import current_precision
from minigrad.modes import MODE, is_grad_enabled, recomputing
from minigrad.op import primitive
from tests.support import assert_close, leaf, rng


def upstream(y: Tensor, seed: int = 5) -> Tensor:
    return Tensor(rng(seed).uniform(-1, 1, y.shape).astype(y.dtype))


W, V, CONSTANT = leaf(3, 3, seed=7), leaf(3, seed=8), Tensor(rng(9).uniform(1, 2, (3,)))

# name: (function of x and z, which may capture; each is compared with itself without checkpoint)
FUNCTIONS: dict[str, Callable] = {
    "inputs alone": lambda x, z: (x.exp() * z).tanh(),
    "one input unused": lambda x, z: x * x,
    "captured parameters": lambda x, z: F.layer_norm((x @ W) * V, V) + z,
    "a captured constant": lambda x, z: x * CONSTANT + z * CONSTANT,
    "an input returned as it is": lambda x, z: z,
    "a view of an input": lambda x, z: x.T,
    "a captured leaf returned as it is": lambda x, z: W,
    "several outputs": lambda x, z: (x * z, (x + W).sin(), z @ W),
    "a list of outputs": lambda x, z: [x * z, x],
    "the same output twice": lambda x, z: (lambda y: (y, y))(x * z),
    "an output without gradient": lambda x, z: (x * z, (x * 2.0).detach(), x > z),
    "something that is no tensor": lambda x, z: (x * z, "text", 3),
    "nested": lambda x, z: checkpoint(lambda a: checkpoint(lambda b: (b @ W).sin() * x, a) * z, x * V) + x,
    "an operation with several outputs": lambda x, z: x.unbind()[0] * z.unbind()[1],
    "slices and joins": lambda x, z: ops.concatenate([x[:1], z[1:] * V, x[:1]]),
    "no gradient inside": lambda x, z: without_gradient(x) * z,
}


def without_gradient(x: Tensor) -> Tensor:
    with minigrad.no_grad():
        return x.exp()


def several(y: Any) -> list[Tensor]:
    return [t for t in (y if isinstance(y, tuple | list) else [y]) if isinstance(t, Tensor)]


def run(call: Callable, function: Callable, second: bool) -> tuple[list, list]:
    """The outputs, and the gradients of both inputs and all captured leaves (and of a random product of them)."""
    x, z = leaf(3, 3, seed=1), leaf(3, 3, seed=2)
    x_in, z_in = x * 2.0, z + x  # interior tensors come in
    outputs = several(call(function, x_in, z_in))
    differentiable = [y for y in outputs if y.requires_grad]
    leaves = [x, z, W, V]
    gs = minigrad.grad(differentiable, leaves, [upstream(y, k) for k, y in enumerate(differentiable)], create_graph=second, allow_unused=True)
    if second:
        parts = [(g * upstream(g, k)).sum() for k, g in enumerate(gs) if g is not None and g.requires_grad]
        gs += minigrad.grad(parts, leaves, allow_unused=True) if parts else ()
    return outputs, list(gs)


def plainly(function: Callable, *inputs: Any) -> Any:
    return function(*inputs)


@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_checkpoint_gives_what_the_function_gives_without(name: str, second: bool):
    ours, ours_gradients = run(checkpoint, FUNCTIONS[name], second)
    outputs, gradients = run(plainly, FUNCTIONS[name], second)
    assert [y.requires_grad for y in ours] == [y.requires_grad for y in outputs]
    for y, reference in zip(ours, outputs, strict=True):
        assert_array_equal(y.numpy(), reference.numpy())
    for g, reference in zip(ours_gradients, gradients, strict=True):
        if reference is None or not reference.numpy().any():
            assert g is None or not g.numpy().any()
        else:
            assert_close(g, reference, name, relative=1e-12)


WRONG_RESULTS = {
    "a dict": lambda x: {"y": x * 2.0},
    "a float": lambda x: 2.0,
    "None": lambda x: None,
    "a ndarray": lambda x: x.numpy(),
    "a tuple inside a tuple": lambda x: (x, (x * 2.0, x)),
    "a dict inside a list": lambda x: [{"y": x * 2.0}],
}


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_a_result_in_which_tensors_could_hide_is_refused(name: str, recorded: bool):
    mode = minigrad.enable_grad if recorded else minigrad.no_grad
    with mode(), pytest.raises(TypeError, match=f"checkpoint: the function returned {name}; return a Tensor or a tuple of Tensors"):
        checkpoint(WRONG_RESULTS[name], leaf(2))
    assert MODE.get().reads is None


def test_a_second_run_that_does_something_else_is_noticed():
    x, calls = leaf(4), []

    def function(x: Tensor) -> Any:
        calls.append(1)
        return x[: 5 - len(calls)].exp()

    y = checkpoint(function, x)
    message = r"checkpoint: the function made outputs of shapes \[\(3,\)\] in its second run, \[\(4,\)\] in its first"
    with pytest.raises(RuntimeError, match=message):
        y.backward(upstream(y))
    assert x.grad is None


class Block(nn.Module):
    """Batch norm, dropout and parameters; `wrap` runs its two halves, nested, plainly or by checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.dropout = nn.Linear(3, 3), nn.BatchNorm2d(3), nn.Dropout(0.4)

    def forward(self, x: Tensor, call: Callable) -> Tensor:
        def half(x: Tensor) -> Tensor:
            return self.dropout(F.gelu(self.bn(self.fc(x))))

        def whole(x: Tensor) -> Tensor:
            return self.bn(call(half, x) * x) + call(half, x)

        return call(whole, x)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("definitions", [False, True], ids=["kernels", "definitions"])
def test_nested_checkpoints_with_batch_norm_dropout_and_parameters_give_what_the_functions_give(definitions: bool, order: int):
    """grad() with respect to an interior input and parameters, also differentiated again: the numbers, statistics and draws of a plain call."""
    found = []
    for call in (checkpoint, plainly):
        random.manual_seed(5)
        block = Block().to(dtype=np.float64)
        x = leaf(2, 3, 3, 3, seed=1)
        h = x * 2.0
        with minigrad.definitions() if definitions else minigrad.enable_grad():
            y = block(h, call)
        wanted = [h, *block.parameters()]
        gs = minigrad.grad(y, wanted, upstream(y), create_graph=order == 2)
        if order == 2:
            gs += minigrad.grad([(g * upstream(g, k)).sum() for k, g in enumerate(gs)], wanted)
        buffers = [b.numpy() for _, b in block.named_buffers()]
        assert block.bn.num_batches_tracked.item() == 3  # two halves and the end, none of them twice
        found.append((y, gs, buffers, random.get_counter()))
    (y, gs, buffers, counter), (reference, reference_gs, reference_buffers, reference_counter) = found
    assert_array_equal(y.numpy(), reference.numpy())
    assert len(gs) == order * 5
    for g, r in zip(gs, reference_gs, strict=True):
        assert_close(g, r, "gradient", relative=1e-10)
    for b, r in zip(buffers, reference_buffers, strict=True):
        assert_array_equal(b, r)
    assert counter == reference_counter


def test_a_function_of_captured_parameters_alone_may_be_checkpointed():
    """No input at all: everything is captured."""
    w = leaf(2, 2)
    y = checkpoint(lambda: (w @ w).exp())
    g = upstream(y)
    (ours,) = minigrad.grad(y, w, g)
    assert_close(ours, minigrad.grad((w @ w).exp(), w, g)[0])
    with minigrad.no_grad():
        assert not checkpoint(lambda: w @ w).requires_grad


def test_the_result_is_of_the_type_that_the_function_gives():
    x = leaf(2)
    assert type(checkpoint(lambda x: [x, x], x)) is list and type(checkpoint(lambda x: (x,), x)) is tuple
    assert type(checkpoint(lambda x: x * 2.0, x)) is Tensor
    assert checkpoint(lambda x: (x * 2.0, "text", None), x)[1:] == ("text", None)


def test_backward_reaches_captured_parameters():
    x, w = leaf(2, 2), leaf(2, 2, seed=1)
    checkpoint(lambda x: x @ w, x).backward(Tensor(np.array([[1.0, 2.0], [3.0, 4.0]])))
    assert_allclose(w.grad.numpy(), x.numpy().T @ [[1.0, 2.0], [3.0, 4.0]], rtol=1e-14)
    assert_allclose(x.grad.numpy(), np.array([[1.0, 2.0], [3.0, 4.0]]) @ w.numpy().T, rtol=1e-14)


def test_captured_tensors_alone_may_require_grad():
    w = leaf(2)
    y = checkpoint(lambda x: x * w, Tensor(np.array([2.0, 3.0])))
    assert y.requires_grad
    y.backward(Tensor(np.array([1.0, 10.0])))
    assert_array_equal(w.grad.numpy(), [2.0, 30.0])


def test_captured_interior_tensors_share_their_graph():
    """Two checkpoints capture one interior tensor: its own graph is walked once, with the sum."""
    x = leaf(2)
    h = x.exp()
    y = checkpoint(lambda a: a * h, x) + checkpoint(lambda a: a + h * h, x) + h
    (g,) = minigrad.grad(y, x, Tensor(np.array([1.0, -2.0])))
    e, v = np.exp(x.numpy()), x.numpy()
    assert_allclose(g.numpy(), np.array([1.0, -2.0]) * (e + v * e + 1 + 2 * e * e + e), rtol=1e-13)


def test_the_same_input_twice_gets_both_gradients():
    x = leaf(3)
    for call in (checkpoint, plainly):
        x.grad = None
        call(lambda a, b: a * b * b, x, x).sum().backward()
        assert_allclose(x.grad.numpy(), 3 * x.numpy() ** 2, rtol=1e-13)


def test_an_input_that_is_captured_too_gets_both_gradients():
    x = leaf(3)
    checkpoint(lambda a: a * x, x).sum().backward()
    assert_allclose(x.grad.numpy(), 2 * x.numpy(), rtol=1e-14)


def test_inputs_that_are_no_tensors_are_passed_on():
    x, array = leaf(3), np.array([1.0, 2.0, 3.0])
    y = checkpoint(lambda x, n, array, options: (x**n * array) * options["scale"], x, 3, array, {"scale": 0.5})
    y.sum().backward()
    assert_allclose(x.grad.numpy(), 1.5 * x.numpy() ** 2 * array, rtol=1e-13)


def test_only_what_is_asked_for_is_differentiated():
    x, w = leaf(3), leaf(3, seed=1)
    y = checkpoint(lambda x: x.exp() * w, x)
    (g,) = minigrad.grad(y.sum(), w, retain_graph=True)
    assert_allclose(g.numpy(), np.exp(x.numpy()), rtol=1e-14)
    (g,) = minigrad.grad(y.sum(), x)
    assert_allclose(g.numpy(), np.exp(x.numpy()) * w.numpy(), rtol=1e-14)
    assert x.grad is None and w.grad is None


def test_third_derivative_through_a_checkpoint():
    x = leaf(2)
    y = checkpoint(lambda x: x**4, x)
    for expected in (4 * x.numpy() ** 3, 12 * x.numpy() ** 2, 24 * x.numpy()):
        (y,) = minigrad.grad(y.sum(), x, create_graph=True)
        assert_allclose(y.numpy(), expected, rtol=1e-13)


def test_a_checkpoint_is_walked_again_only_with_retain_graph():
    x = leaf(2)
    y = checkpoint(lambda x: x.exp(), x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert_allclose(x.grad.numpy(), 2 * np.exp(x.numpy()), rtol=1e-14)
    with pytest.raises(RuntimeError, match="freed by an earlier backward pass"):
        y.backward()
    y = checkpoint(lambda x: x.exp(), x)
    y.backward(Tensor(np.ones(2)))
    with pytest.raises(RuntimeError, match="backward of checkpoint: its saved arrays were freed"):
        y.backward(Tensor(np.ones(2)))


def test_under_no_grad_the_function_is_just_called():
    calls, parameter = [], leaf(2)
    with minigrad.no_grad():
        y = checkpoint(lambda x: calls.append(is_grad_enabled()) or x * 2.0, leaf(2))
        assert checkpoint(lambda x: parameter, leaf(2)) is parameter
    assert not y.requires_grad and calls == [False]


# --- the second run


def test_the_second_run_happens_once_and_knows_it():
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append((recomputing(), is_grad_enabled()))
        return x.exp()

    x = leaf(2)
    y = checkpoint(function, x)
    with minigrad.no_grad():  # where backward is called from does not matter
        y.sum().detach()
        y.backward(Tensor(np.ones(2)))
    assert seen == [(False, True), (True, True)] and not recomputing()
    assert_allclose(x.grad.numpy(), np.exp(x.numpy()), rtol=1e-14)


@pytest.mark.parametrize("definitions", [False, True])
def test_the_second_run_has_the_modes_of_the_first(definitions: bool, monkeypatch: pytest.MonkeyPatch):
    """A block checkpointed under definitions() is recomputed by definitions, wherever backward is called."""
    calls = []
    forward = F.layer_norm.kernels["cpu"].forward
    monkeypatch.setattr(F.layer_norm.kernels["cpu"], "forward", lambda *a: calls.append(1) or forward(*a))
    x = leaf(2, 3)
    with minigrad.definitions() if definitions else minigrad.enable_grad():
        y = checkpoint(lambda x: F.layer_norm(x), x)
    with minigrad.enable_grad() if definitions else minigrad.definitions():
        y.sum().backward()
    assert len(calls) == (0 if definitions else 2)


def test_the_second_run_makes_the_same_draws():
    layer = nn.Dropout(0.5)

    def function(x: Tensor) -> Tensor:
        return layer(layer(x) * 2.0)

    for draws_between in (0, 3):
        gradients = []
        for call in (checkpoint, plainly):
            random.manual_seed(11)
            x = leaf(40)
            layer(x)  # the first run does not start at draw 0
            y = call(function, x)
            after = random.get_counter()
            for _ in range(draws_between):
                layer(x)
            then = random.get_counter()
            y.backward(upstream(y))
            assert random.get_counter() == then  # the second run does not move the count
            gradients.append((y.numpy(), x.grad.numpy(), after))
        assert_array_equal(gradients[0][0], gradients[1][0])
        assert_array_equal(gradients[0][1], gradients[1][1])
        assert gradients[0][2] == gradients[1][2]
        assert 0 < np.count_nonzero(gradients[0][1]) < 40


def test_the_second_run_multiplies_in_the_precision_of_the_first():
    """As the function itself would have: backward, called outside the block, has another one."""
    seen = []

    def function(x):
        seen.append(current_precision())
        return x * x

    x = leaf(3)
    with minigrad.precision("bf16"):
        y = checkpoint(function, x)
    with minigrad.precision("tf32"):
        y.backward(rng(1).standard_normal(3))
        assert current_precision() == "tf32"
    assert seen == ["bf16", "bf16"]


def test_nested_checkpoints_make_the_same_draws():
    layer = nn.Dropout(0.5)
    gradients = []
    for call in (checkpoint, plainly):
        random.manual_seed(3)
        x = leaf(40)
        y = call(lambda x, call=call: layer(call(lambda a: layer(a) * a, layer(x))), x)
        y.backward(upstream(y))
        gradients.append(x.grad.numpy())
    assert_array_equal(gradients[0], gradients[1])
    assert 0 < np.count_nonzero(gradients[0]) < 40


def test_a_new_seed_between_forward_and_backward_changes_no_draw():
    """Also where the first run drew from the default seed, without any manual_seed."""
    layer, x = nn.Dropout(0.5), leaf(40)
    y = checkpoint(layer, x)
    random.manual_seed(99)
    y.backward(Tensor(np.ones(40)))
    assert_allclose(x.grad.numpy() * x.numpy(), y.numpy(), rtol=1e-14)


def test_batch_norm_moves_its_statistics_once():
    layers = [nn.BatchNorm2d(2), nn.BatchNorm2d(2)]
    x = rng(1).standard_normal((2, 3, 3, 2)).astype(np.float32)
    for layer, call in zip(layers, (checkpoint, plainly), strict=True):
        t = Tensor(x, requires_grad=True)
        y = call(layer, t)
        y.backward(upstream(y))
    ours, reference = layers
    assert ours.num_batches_tracked.item() == 1
    assert_array_equal(ours.running_mean.numpy(), reference.running_mean.numpy())
    assert_array_equal(ours.running_var.numpy(), reference.running_var.numpy())
    assert_array_equal(ours.weight.grad.numpy(), reference.weight.grad.numpy())


def test_an_exception_in_the_function_passes_through():
    def fail(x: Tensor) -> Tensor:
        raise KeyError("mine")

    x = leaf(2)
    with pytest.raises(KeyError, match="mine"):
        checkpoint(fail, x)
    calls = []

    def fail_later(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("later")
        return x * 2.0

    y, before = checkpoint(fail_later, x), random.get_counter()
    with pytest.raises(KeyError, match="later"):
        y.sum().backward()
    assert not recomputing() and random.get_counter() == before


# --- a second run that is not the first


class Net(nn.Module):
    """What the functions of CHANGES use, and what happens to it before backward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
        self.bn, self.dropout, self.drop_path = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.DropPath(0.5)
        self.v, self.w = nn.Parameter(V.numpy()), nn.Parameter(V.numpy())
        self.option = 1

    def set_option(self) -> None:
        self.option = 2

    def replace_v(self) -> None:
        self.v = nn.Parameter(V.numpy())


OTHER_INPUTS = "the same operations on other inputs"

# name: (function of a Net and x of shape (2, 3, 3, 3), what happens to the Net, the difference that the error names)
CHANGES: dict[str, tuple[Callable, Callable, str]] = {
    "dropout, then eval()": (lambda m, x: m.dropout(x), nn.Module.eval, "dropout: 1 then, 0 now"),
    "dropout, then train()": (lambda m, x: m.dropout(x), nn.Module.train, "dropout: 0 then, 1 now"),
    "drop path, then eval()": (lambda m, x: x + m.drop_path(x * x), nn.Module.eval, "drop_path: 1 then, 0 now"),
    "dropout without gradients, then eval()": (lambda m, x: m.dropout(CONSTANT) * x, nn.Module.eval, "random draws: 1 then, 0 now"),
    "batch norm, then eval()": (lambda m, x: m.bn(x), nn.Module.eval, OTHER_INPUTS),
    "batch norm, then train()": (lambda m, x: m.bn(x), nn.Module.train, OTHER_INPUTS),
    "a layer is frozen": (lambda m, x: m.fc(x), lambda m: m.fc.requires_grad_(False), OTHER_INPUTS),
    "all that has gradients is frozen": (lambda m, x: m.fc(x.detach()) + x, lambda m: m.fc.requires_grad_(False), "linear: 1 then, 0 now"),
    "a frozen layer is frozen no more": (lambda m, x: m.frozen(x), nn.Module.requires_grad_, OTHER_INPUTS),
    "a parameter is replaced": (lambda m, x: x * m.v, Net.replace_v, OTHER_INPUTS),
    "another parameter": (lambda m, x: x * (m.v if m.option == 1 else m.w), Net.set_option, OTHER_INPUTS),
    "parameters change places": (lambda m, x: (lambda a, b: x * a + b)(*(m.v, m.w)[:: 3 - 2 * m.option]), Net.set_option, OTHER_INPUTS),
    "outputs change places": (lambda m, x: (x, x * x)[:: 3 - 2 * m.option], Net.set_option, OTHER_INPUTS),
    "an output has no gradient": (lambda m, x: (x * x, x if m.option == 1 else x.detach()), Net.set_option, OTHER_INPUTS),
    "another output of an operation": (lambda m, x: x.unbind()[m.option - 1], Net.set_option, OTHER_INPUTS),
    "another operation": (lambda m, x: x.relu() if m.option == 1 else x.exp(), Net.set_option, "relu: 1 then, 0 now"),
    "another shape inside": (lambda m, x: (x[:, : m.option] ** 2).sum(), Net.set_option, OTHER_INPUTS),
}


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_second_run_that_is_not_the_first_is_refused(name: str, nested: bool):
    function, change, difference = CHANGES[name]
    net = Net().to(dtype=np.float64).train(not name.endswith("train()"))
    x = leaf(2, 3, 3, 3)
    y = checkpoint(lambda x: checkpoint(function, net, x) if nested else function(net, x), x)
    change(net)
    message = (
        rf"checkpoint: the function did something else in its second run, in backward, than in its first \({difference}\); until backward is done"
    )
    loss = sum(((t * t).sum() for t in several(y) if t.requires_grad), Tensor(0.0))
    with pytest.raises(RuntimeError, match=message):
        loss.backward()
    assert x.grad is None and all(p.grad is None for p in net.parameters())


def test_batch_norm_by_definition_in_another_mode_is_refused():
    net, x = Net().to(dtype=np.float64), leaf(2, 3, 3, 3)
    with minigrad.definitions():
        y = checkpoint(net.bn, x)
    net.eval()
    with pytest.raises(RuntimeError, match=r"in its second run, in backward, than in its first \(\w+: \d then, \d now\)"):
        y.sum().backward()


def test_the_variable_of_a_loop_that_has_moved_on_is_noticed():
    """Python's functions look at it when they run: all of them would multiply by the last one. PyTorch does."""
    x, ws = leaf(3), [leaf(3, seed=k) for k in range(3)]
    y = x
    for w in ws:
        y = checkpoint(lambda a: a * w, y)  # noqa: B023
    with pytest.raises(RuntimeError, match=r"leave .* all that it captures \(a loop's variable, too\) as they were"):
        y.sum().backward()


def test_two_modes_in_one_backward_are_refused_in_either_order():
    for first in (True, False):
        net, x = Net().to(dtype=np.float64), leaf(2, 3, 3, 3)
        losses = [checkpoint(lambda x, net=net: net.dropout(net.bn(x)), x).sum() for mode in (first, not first) if net.train(mode)]
        with pytest.raises(RuntimeError, match="in its second run, in backward|batch norm's statistics are some, and move with"):
            (losses[0] + losses[1]).backward()
        assert x.grad is None and net.bn.weight.grad is None


def first_run_alone(found: list) -> Callable:
    def function(x: Tensor) -> Tensor:
        if not recomputing():
            found.append(((x * V).mean().item(), x * x, Tensor(np.ones(3)) * CONSTANT))
        return x * found[0][2] + x.detach() * V

    return function


def gradient_inside(x: Tensor) -> Tensor:
    a = x * 1.0
    return minigrad.grad((a**3 * V).sum(), a, create_graph=True)[0]


def several_modes_inside(x: Tensor) -> tuple[Tensor, Tensor]:
    with minigrad.no_grad():
        mask = (x > 0.0) * (x @ W)
    with minigrad.definitions():
        y = F.layer_norm(x * mask, V)
    return y, F.softmax(y) * CONSTANT


SAME = {
    "more operations in the first run, none of which its result needs": lambda: first_run_alone([]),
    "a gradient inside": lambda: gradient_inside,
    "modes inside": lambda: several_modes_inside,
    "captured and given": lambda: lambda x: x * X * V,
    "nothing is done": lambda: lambda x: (x, X, CONSTANT),
}
X = leaf(3, 3, seed=3)


@pytest.mark.parametrize("wanted", [[X], [V], [X, V]], ids=["x", "v", "both"])
@pytest.mark.parametrize("name", SAME)
def test_a_second_run_that_does_the_same_is_not_refused(name: str, wanted: list[Tensor]):
    found = []
    for call in (checkpoint, plainly):
        outputs = [y for y in several(call(SAME[name](), X)) if y.requires_grad]
        found.append(minigrad.grad(outputs, wanted, [upstream(y) for y in outputs], allow_unused=True))
    for g, reference in zip(*found, strict=True):
        assert (g is None and reference is None) or assert_close(g, reference, name, relative=1e-12) is None


# --- in-place writes


WRITES = {
    "an input": lambda x, z, w, c, i: x,
    "an input that it only passes on": lambda x, z, w, c, i: z,
    "a captured parameter": lambda x, z, w, c, i: w,
    "a constant": lambda x, z, w, c, i: c,
    "an index": lambda x, z, w, c, i: i,
}


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("definitions", [False, True], ids=["kernels", "definitions"])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_into_anything_it_reads_is_refused(name: str, definitions: bool, nested: bool):
    x, z, w, c, index = leaf(3, 3), leaf(3, 3, seed=1), leaf(3, seed=2), Tensor(np.ones(3)), Tensor(np.array([0, 1]))

    def function(x: Tensor, z: Tensor) -> Tensor:
        return (F.layer_norm(x, w) * c + z)[index]

    def outer(x: Tensor, z: Tensor) -> Tensor:
        return checkpoint(function, x, z) * 2.0

    with minigrad.definitions() if definitions else minigrad.enable_grad():
        y = checkpoint(outer if nested else function, x, z)
    with minigrad.no_grad():
        written = WRITES[name](x, z, w, c, index)
        written[...] = 0 if written is index else 0.5
    with pytest.raises(RuntimeError, match="backward of checkpoint: a tensor that the function used.* was written in place after the forward pass"):
        y.sum().backward()


@pytest.mark.parametrize("look", [lambda t: t.numpy()[0] > 0, lambda t: t[0].item() > 0, lambda t: bool(t[0] > 0), lambda t: np.asarray(t).any()])
def test_a_write_into_what_decided_is_refused(look: Callable):
    """The function looked at the numbers of a tensor and took a branch; the second run would take the other."""
    x, switch = leaf(3), Tensor(np.ones(3))

    def function(x: Tensor) -> Tensor:
        return x * 2.0 if look(switch) else x * 5.0

    y = checkpoint(function, x)
    switch.copy_(0.0)
    with pytest.raises(RuntimeError, match="backward of checkpoint: a tensor that the function used.* was written in place after the forward pass"):
        y.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("look", [bool, float, Tensor.item])
def test_a_write_into_the_one_number_that_decided_is_refused(look: Callable):
    x, switch = leaf(3), Tensor([1.0])
    y = checkpoint(lambda x: x * (2.0 if look(switch) else 5.0), x)
    switch.copy_(0.0)
    with pytest.raises(RuntimeError, match="backward of checkpoint: a tensor that the function used.* was written in place after the forward pass"):
        y.backward(upstream(y))
    assert x.grad is None


def test_a_write_into_a_setting_is_refused():
    """A Tensor given as a plain value is read at the call; the second run would read another."""
    x, axis = leaf(3, 3), Tensor(np.array(0))
    y = checkpoint(lambda x: F.softmax(x, axis), x)
    axis.copy_(1)
    with pytest.raises(RuntimeError, match="backward of checkpoint: a tensor that the function used.* was written in place after the forward pass"):
        y.backward(upstream(y))
    assert x.grad is None


def test_a_write_into_something_else_is_not():
    x, other = leaf(3), leaf(3)
    y = checkpoint(lambda x: x.exp(), x)
    with minigrad.no_grad():
        other.copy_(0.0)
        y.copy_(0.0)  # its own result, which nothing reads
    y.backward(Tensor(np.ones(3)))
    assert_allclose(x.grad.numpy(), np.exp(x.numpy()), rtol=1e-14)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
def test_a_function_may_write_into_a_tensor_that_it_made(nested: bool, order: int):
    """Also after it has read it: the second run makes another."""

    def function(x: Tensor) -> Tensor:
        mask = Tensor(np.zeros(3))
        y = x + mask
        mask[0] = 2.0
        return y * y * mask

    x, upstream = leaf(3), np.array([1.0, -2.0, 3.0])
    y = checkpoint(lambda x: checkpoint(function, x) * 1.0, x) if nested else checkpoint(function, x)
    (g,) = minigrad.grad(y, x, upstream, create_graph=order == 2)
    assert_allclose(g.numpy(), upstream * 2 * x.numpy() * [2, 0, 0], rtol=1e-14)
    if order == 2:
        assert_allclose(minigrad.grad(g.sum(), x)[0].numpy(), upstream * 2 * np.array([2, 0, 0]), rtol=1e-14)


@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("view", [lambda t: t, lambda t: t[:2], lambda t: t.detach()], ids=["itself", "a slice", "detached"])
def test_a_function_must_not_write_into_a_tensor_from_outside_that_it_reads(view: Callable, nested: bool):
    x, counts = leaf(3), Tensor(np.ones(3))

    def function(x: Tensor) -> Tensor:
        y = x * counts
        view(counts)[0] = counts[0].item() + 1.0
        return y

    y = checkpoint(lambda x: checkpoint(function, x) * 1.0, x) if nested else checkpoint(function, x)
    with pytest.raises(
        RuntimeError, match="checkpoint: the function reads a tensor from outside and then writes into it.*; let it write into a copy"
    ):
        y.sum().backward()
    assert x.grad is None


def test_a_view_that_a_checkpoint_returns_shares_its_version():
    x = leaf(4)
    y = checkpoint(lambda x: x.reshape(2, 2), x)
    assert np.shares_memory(x.data, y.data) and y.version is x.version
    product = x * x
    with minigrad.no_grad():
        y.copy_(0.0)
    with pytest.raises(RuntimeError, match="backward of mul"):
        product.sum().backward()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_a_graph_it_is_the_function(name: str):
    x, z, function = leaf(3, 3, seed=1), leaf(3, 3, seed=2), FUNCTIONS[name]
    with minigrad.no_grad():
        found, expected = checkpoint(function, x, z), function(x, z)
        assert type(found) is type(expected)
        for ours, plain in zip(*([y] if isinstance(y, Tensor) else y for y in (found, expected)), strict=True):
            assert_array_equal(ours, plain)


def test_backward_leaves_the_mode_and_the_draws_as_they_are():
    x, drop = leaf(3, 3, seed=1), nn.Dropout(0.5)
    with minigrad.definitions():
        y = checkpoint(lambda x: F.softmax(drop(x)), x)
    before, draws = MODE.get(), random.get_counter()
    y.backward(upstream(y))
    assert MODE.get() == before and random.get_counter() == draws


def test_the_rest_of_the_walk_is_no_second_run(registry: None):
    """What comes after a checkpoint in one backward pass has the mode that backward was called in."""
    modes = []

    @primitive
    def probe(x: Tensor) -> Tensor:
        return x * 1.0

    def rule(g: Tensor) -> Tensor:
        modes.append((recomputing(), MODE.get().definitions))
        return g

    probe.derivative(x=rule)
    x = leaf(3, 3, seed=1)
    with minigrad.definitions():
        y = checkpoint(lambda x: F.softmax(x), probe(x))
    y.backward(upstream(y))
    assert modes == [(False, False)]


def test_anomaly_mode_knows_the_line_of_a_checkpoint():
    x = leaf(3, 3, seed=1)
    assert checkpoint(F.softmax, x).node.site is None
    with minigrad.anomaly():
        assert "test_checkpoint.py" in checkpoint(F.softmax, x).node.site
