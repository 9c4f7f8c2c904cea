"""No memory, at every array in turn that NumPy makes: nothing is left half written, and when there is memory again everything goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigrad
from conformer import plots, report, train_commands
from conformer.cli import main
from conformer.text import quoted
from minigrad import Tensor, nn, optim, safetensors_io
from minigrad import functional as F
from minigrad.backend import cpu
from minigrad.backend.emulator import state as emulator
from minigrad.modes import MODE, mode
from tests.memory_errors import failing_at, made, places
from tests.support import rng


def leaf(*shape: int, dtype: type = np.float64) -> Tensor:
    return Tensor(rng(len(shape)).standard_normal(shape).astype(dtype), requires_grad=True)


def same(state: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether all is as before; states of zeros that an optimiser has begun are nothing new."""
    begun = [value for name, value in state.items() if name not in before]
    return not any(value.any() for value in begun) and all(np.array_equal(state[name], value) for name, value in before.items())


# --- operations

X, TOKENS, MAP = leaf(2, 6, 6, 8), leaf(2, 9, 16), leaf(8, 8, 3, 3)
OPERATIONS: dict[str, tuple[Callable, list[Tensor]]] = {
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), [X, MAP, leaf(8)]),
    "batch_norm": (lambda x, w, b: F.batch_norm(x, w, b, relu=True)[0], [X, leaf(8), leaf(8)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), [X]),
    "layer_norm": (F.layer_norm, [TOKENS, leaf(16), leaf(16)]),
    "attention": (F.scaled_dot_product_attention, [leaf(2, 2, 9, 8), leaf(2, 2, 9, 8), leaf(2, 2, 9, 8)]),
    "cross_entropy": (lambda x: F.cross_entropy(x, np.arange(40) % 10, label_smoothing=0.1), [leaf(40, 10)]),
    "several": (lambda x, w: F.gelu(F.linear(x, w)).relu().max(1) + (x * x).mean(), [TOKENS, leaf(24, 16)]),
    "checkpoint": (lambda x, w: minigrad.checkpoint(lambda x: F.gelu(F.linear(x, w)), x), [TOKENS, leaf(24, 16)]),
}


@pytest.mark.parametrize("definitions", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation(name: str, definitions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward, then backward over the same graph; a gradient that is there already is not added to."""
    monkeypatch.setattr(cpu, "_pool", cpu._Pool(2))
    call, leaves = OPERATIONS[name]
    before, inputs = MODE.get(), [x.numpy().copy() for x in leaves]

    def forward() -> Tensor:
        with mode(definitions=definitions):
            return call(*leaves)

    expected = forward()
    for _ in places(forward):
        assert MODE.get() is before
    y = forward()
    np.testing.assert_array_equal(y.numpy(), expected.numpy())
    upstream = Tensor(rng(9).standard_normal(y.shape))
    gradients = minigrad.grad(expected, leaves, upstream)
    held = [Tensor(np.ones(x.shape)) for x in leaves]
    for x, grad in zip(leaves, held, strict=True):
        x.grad = grad
    number = 0
    while True:
        number += 1
        try:
            with failing_at(number):
                y.backward(upstream, retain_graph=True)
        except MemoryError:
            assert MODE.get() is before
            assert all(x.grad is grad and (grad.numpy() == 1).all() for x, grad in zip(leaves, held, strict=True))
        else:
            break
    assert number > 2 and made.value < number
    for x, gradient, values in zip(leaves, gradients, inputs, strict=True):
        assert x.grad is not None
        np.testing.assert_allclose(x.grad.numpy(), gradient.numpy() + 1, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(x.numpy(), values)


def test_a_graph_of_which_a_part_was_freed_says_so() -> None:
    x = leaf(10, 20)
    for number in (1, 2, 3):
        y = ((x * x).exp() * x).sum()
        with failing_at(number), pytest.raises(MemoryError):
            y.backward()
        assert x.grad is None
        with pytest.raises(RuntimeError, match="saved arrays were freed by an earlier backward pass"):
            y.backward()


# --- optimisers

OPTIMISERS: dict[str, Callable] = {
    "AdamW": optim.AdamW,
    "SGD": lambda params: optim.SGD(params, lr=0.1),
    "momentum": lambda params: optim.SGD(params, lr=0.1, momentum=0.9),
    "Nesterov": lambda params: optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "momentum from now on": lambda params: optim.SGD(params, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_step_is_taken_or_not(name: str, first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parameters that are updated end to end, in blocks on two threads, and as a whole since they are not contiguous."""
    monkeypatch.setattr(cpu, "_pool", cpu._Pool(2))
    monkeypatch.setattr("minigrad.optim.blocks.GRAIN", 3000)
    monkeypatch.setattr("minigrad.optim.blocks.SMALL", 500)
    monkeypatch.setattr(cpu, "TOGETHER", 1000)

    def begun() -> tuple[list[Tensor], optim.Optimizer]:
        params = [leaf(40, 10, dtype=np.float32), leaf(64), leaf(100, 70), leaf(30, 20), leaf(20)]
        params[3].data = params[3].data.T
        optimizer = OPTIMISERS[name](params)
        if not first:
            give(params, 0)
            optimizer.step()
        if name == "momentum from now on":
            optimizer.param_groups[0]["momentum"] = 0.9
        give(params, 1)
        return params, optimizer

    def give(params: list[Tensor], step: int) -> None:
        for number, p in enumerate(params):
            p.grad = Tensor(rng(10 * step + number).standard_normal(p.shape).astype(p.dtype))

    def state(params: list[Tensor], optimizer: optim.Optimizer) -> dict[str, np.ndarray]:
        values = {f"values.{number}": p.numpy().copy() for number, p in enumerate(params)}
        return {**values, **{name: value for name, value in optimizer.state_dict().items() if not name.endswith(".step")}}

    params, optimizer = begun()
    optimizer.step()
    after = state(params, optimizer)
    number, failures = 0, 0
    while True:
        number += 1
        params, optimizer = begun()
        before, versions = state(params, optimizer), [p.version[0] for p in params]
        try:
            with failing_at(number):
                optimizer.step()
        except MemoryError:
            failures += 1
            assert same(state(params, optimizer), before) and [p.version[0] for p in params] == versions
            optimizer.step()
        found = state(params, optimizer)
        assert found.keys() == after.keys() and same(found, after)
        if made.value < number:
            break
    assert failures > 2


def test_a_view_of_a_small_parameter_is_updated_before_it_all_the_same() -> None:
    """Though the memory for small ones, which are updated end to end, is taken first."""
    whole, other = leaf(12), leaf(3)
    part = Tensor(np.ones(6), requires_grad=True)
    part.data = whole.data[:6]
    start = whole.numpy().copy()
    for p in (whole, other, part):
        p.grad = Tensor(np.ones(p.shape))
    optim.SGD([whole, other, part], lr=1.0).step()
    np.testing.assert_allclose(whole.numpy(), start - 1 - (np.arange(12) < 6), rtol=1e-15)


# --- modules, averages and files


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm2d(40), nn.Linear(8, 9))


def moved(model: nn.Module) -> None:
    with minigrad.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(tensor * 2 + 1)


@pytest.mark.parametrize("decay", [0.9, 0.3, 0.0])
@pytest.mark.parametrize("converted", [False, True])
def test_an_average_is_updated_or_not(decay: float, converted: bool) -> None:
    model = network()
    ema = optim.EMA(model, decay)
    moved(model)
    if converted:
        model.to(dtype=np.float64)
    before = ema.state_dict()
    count = 0
    for count in places(ema.update):  # noqa: B007
        assert same(ema.state_dict(), before)
    assert count and not same(ema.state_dict(), before)


@pytest.mark.parametrize("method", ["swap", "copy_to", "swapped"])
def test_an_average_and_its_module_are_exchanged_or_not(method: str) -> None:
    model = network()
    ema = optim.EMA(model, 0.9)
    moved(model)

    def call() -> None:
        if method == "swapped":
            with ema.swapped():
                pass
        else:
            getattr(ema, method)()

    before = model.state_dict(), ema.state_dict()
    for _ in places(call):
        assert same(model.state_dict(), before[0]) and same(ema.state_dict(), before[1])


def test_gradients_are_clipped_or_not() -> None:
    params = [leaf(40, 10), leaf(100, 60), leaf(30)]
    for p in params:
        p.grad = Tensor(np.ones(p.shape))
    for _ in places(lambda: optim.clip_grad_norm_(params, 0.1)):
        assert all(p.grad is not None and (p.grad.numpy() == 1).all() for p in params)
    assert params[0].grad is not None and params[0].grad.numpy()[0, 0] < 1


def test_statistics_move_or_not() -> None:
    layer, x = nn.BatchNorm2d(64), Tensor(rng(0).standard_normal((4, 2, 2, 64)).astype(np.float32))
    before = layer.state_dict()
    count = 0
    for count in places(lambda: layer(x)):  # noqa: B007
        assert same(layer.state_dict(), before)
    assert count > 4 and layer.state_dict()["num_batches_tracked"] == 1


def test_a_module_is_converted_or_not() -> None:
    """With its gradients; and one that is converted already takes no memory."""
    model = network()
    for p in model.parameters():
        p.grad = Tensor(np.ones(p.shape, np.float32))
    count = 0
    for count in places(lambda: model.to(dtype=np.float64)):  # noqa: B007
        assert all(t.dtype != np.float64 for t in [*model.parameters(), *model.buffers()])
        assert all(p.grad is not None and p.grad.dtype == np.float32 for p in model.parameters())
    assert count > 8 and all(p.grad is not None and p.dtype == p.grad.dtype == np.float64 for p in model.parameters())
    with failing_at(1):
        model.to(dtype=np.float64)


@pytest.mark.parametrize("kind", ["module", "average", "optimiser"])
def test_a_state_is_loaded_or_not(kind: str) -> None:
    """Arrays of another dtype and order in memory."""
    model = network()
    for p in model.parameters():
        p.grad = Tensor(np.ones(p.shape, np.float32))
    optimizer = optim.AdamW(model.parameters())
    optimizer.step()
    keeper = {"module": model, "average": optim.EMA(model), "optimiser": optimizer}[kind]
    before = keeper.state_dict()
    other = {name: np.array(value + 1 if name.startswith(("0", "1", "2", "state")) else value, order="F") for name, value in before.items()}
    other = {name: value.astype(np.float64) if value.dtype == np.float32 else value for name, value in other.items()}
    for _ in places(lambda: keeper.load_state_dict(other)):
        assert same(keeper.state_dict(), before)
    assert same(keeper.state_dict(), other)


def test_a_file_is_written_or_not(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors_io.save_state(path, {"w": np.zeros(50)})
    before, state = path.read_bytes(), {"w": np.ones((20, 30)).T, "v": np.arange(200.0)[::2]}
    for _ in places(lambda: safetensors_io.save_state(path, state)):
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    for _ in places(lambda: safetensors_io.load_state(path)):
        pass
    assert same(safetensors_io.load_state(path)[0], state)


# --- on the GPU


@pytest.mark.cuda
@pytest.mark.emulator
@pytest.mark.parametrize("kind", ["AdamW", "SGD", "average"])
def test_on_the_gpu_all_memory_is_taken_before_the_first_launch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parameters of two dtypes, one launch each. A table that could not be brought to the GPU is not taken for one that is there."""

    def begun() -> tuple[Callable[[], Any], Callable[[], dict[str, Any]]]:
        minigrad.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm2d(5)).to(device="cuda")
        model[0].to(dtype=np.float64)
        for p in model.parameters():
            p.grad = Tensor(np.ones(p.shape, p.dtype)).to(device="cuda")
        keeper: Any = optim.EMA(model, 0.5) if kind == "average" else OPTIMISERS["momentum" if kind == "SGD" else kind](model.parameters())
        moved(model)
        call = keeper.update if kind == "average" else keeper.step
        return call, lambda: {**model.state_dict(), **{f"kept.{name}": value for name, value in keeper.state_dict().items()}}

    allocate = emulator.allocate
    with minigrad.emulated():
        call, state = begun()
        call()
        after = state()
        for number in range(1, 100):
            call, state = begun()
            before, left = state(), iter(range(1, number))

            def refused(size: int, left: Iterator[int] = left) -> Any:
                if next(left, None) is None:
                    raise MemoryError
                return allocate(size)

            with monkeypatch.context() as patch:
                patch.setattr(emulator, "allocate", refused)
                try:
                    call()
                except MemoryError:
                    pass
                else:
                    break
            assert same(state(), before)
            call()
            assert same(state(), after)
    assert 5 < number < 99


# --- the program


def test_a_run_goes_on_where_memory_ran_out(
    cifar: Callable[..., Path], tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence with what was wanted and what helps, and the weights of the unbroken run in the end."""
    monkeypatch.setattr(report, "write_report", lambda *_: "report.html")
    monkeypatch.setattr(plots, "save_curves", lambda *_: None)
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=4)), "--batch-size", "4", "--max-steps", "4", "--ema", "0.9"]
    command += ["--checkpoint-steps", "2", "--out"]
    with failing_at(0):
        assert main([*command, str(tmp_path / "whole")]) == 0
    count, saved, capture = made.value, set(), capsys.readouterr
    expected = safetensors_io.load_state(tmp_path / "whole" / "last.safetensors")[0]
    capture()
    for number in (count // 4, count * 2 // 3):
        run = tmp_path / str(number)
        with failing_at(number, after=True):
            assert main([*command, str(run)]) == 1
        (line,) = capture().err.splitlines()
        assert line.startswith("conformer: there is not enough memory (Unable to allocate ")
        advice, _, again = line.partition("; take a smaller --batch-size, or its images in parts with --accumulate")[2].partition("; or, ")
        assert not advice
        saved.add(again.partition(" is saved, ")[0])
        if again:
            assert again.endswith(f"go on with: {train_commands._program()} train --resume {quoted(run)}")
        assert main(["train", "--resume", str(run)]) == 0
        capture()
        assert same(safetensors_io.load_state(run / "last.safetensors")[0], expected)
    assert saved == {"", "where there is more again: step 2"}


def test_pictures_that_there_is_no_memory_for_are_left_out(
    cifar: Callable[..., Path], tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When the network is trained already."""

    def none_left(*_: Any) -> None:
        raise MemoryError("Unable to allocate 1 GiB")

    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=4)), "--batch-size", "4", "--max-steps", "1", "--out"]
    monkeypatch.setattr(report, "write_report", none_left)
    monkeypatch.setattr(plots, "save_curves", lambda *_: None)
    assert main([*command, str(tmp_path / "one")]) == 0
    assert capsys.readouterr().err == "conformer: report.html is not made: there is not enough memory (Unable to allocate 1 GiB)\n"
    monkeypatch.setattr(plots, "save_curves", none_left)
    assert main([*command, str(tmp_path / "two")]) == 0
    assert capsys.readouterr().err == "conformer: curves.png and report.html are not made: there is not enough memory (Unable to allocate 1 GiB)\n"
