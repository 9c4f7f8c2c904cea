"""EMA: the average itself, buffers, and giving the averaged weights to the model and back."""

from __future__ import annotations

import _thread
import copy
import gc
import pickle
import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, nn, optim
from minigrad.modes import is_grad_enabled, mode
from tests.cuda_device import on_cuda
from tests.support import assert_close, rng


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm2d(4)).to(dtype=np.float64)


def change(module: nn.Module, seed: int) -> None:
    """A training step: new weights, and batch norm replaces its statistics."""
    for k, parameter in enumerate(module.parameters()):
        with minigrad.no_grad():
            parameter.copy_(rng(100 * seed + k).standard_normal(parameter.shape))
    module(Tensor(rng(seed).standard_normal((2, 2, 2, 3))))


def averaged_model() -> tuple[nn.Sequential, optim.EMA]:
    """A module after a step, and the average with its first weights."""
    ours = model()
    ema = optim.EMA(ours, decay=0.5)
    change(ours, 1)
    ema.update()
    return ours, ema


def same(left: dict, right: dict) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[name], right[name]) for name in left)


def test_average_is_the_formula_and_pytorchs():
    ours = model()
    ema = optim.EMA(ours, decay=0.9)
    reference = {name: torch.tensor(value) for name, value in ours.state_dict().items()}
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    for step in range(5):
        change(ours, step)
        ema.update()
        state = ours.state_dict()
        floats = [name for name in state if state[name].dtype.kind == "f"]
        average([reference[name] for name in floats], [torch.tensor(state[name]) for name in floats], step)  # type: ignore[arg-type]
        for name, value in ema.state_dict().items():
            if name in floats:
                assert_close(value, reference[name], f"step {step}: {name}")
        assert ema.state_dict()["1.num_batches_tracked"] == step + 1  # counts are copied, not averaged
    assert not np.array_equal(ema.state_dict()["1.running_mean"], ours.state_dict()["1.running_mean"])


@pytest.mark.parametrize(("options", "decay"), [({}, 0.999), ({"decay": 0.0}, 0.0), ({"decay": 1.0}, 1.0)])
def test_the_default_decay_and_the_two_ends(options: dict, decay: float):
    ours = model()
    ema = optim.EMA(ours, **options)
    before = ema.state_dict()["0.weight"]
    change(ours, 1)
    ema.update()
    assert_close(ema.state_dict()["0.weight"], decay * before + (1 - decay) * ours.state_dict()["0.weight"])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999, 1.0])
def test_weights_that_rest_are_their_own_average(device: str, decay: float):
    """In float32 decay and 1 - decay do not add up to 1: 60,000 updates once moved them by 1e-4."""
    with on_cuda():
        linear = nn.Linear(20, 10).to(device=device)
        before = linear.state_dict()
        ema = optim.EMA(linear, decay=decay)
        for _ in range(20):
            ema.update()
        assert same(ema.state_dict(), before)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("decay", [0.0, 0.001, 0.9])
def test_infinite_numbers_that_rest_are_kept_and_at_decay_0_it_is_the_value(device: str, decay: float):
    """A mask among the buffers; and a value that is far smaller than the shadow: near decay 0, adding their difference to the shadow would not do."""
    with on_cuda():
        module = nn.Module()
        module.register_buffer("mask", Tensor(np.float32([0, -np.inf, np.inf, 123456792, 5])).to(device=device))
        ema = optim.EMA(module, decay=decay)
        module.mask.copy_(Tensor(np.float32([1, -np.inf, np.inf, 0.1, 5])).to(device=device))
        ema.update()
        new = ema.state_dict()["mask"]
    np.testing.assert_array_equal(new[[1, 2, 4]], [-np.inf, np.inf, 5])
    np.testing.assert_allclose(
        new[[0, 3]], [1 - decay, decay * 123456792 + (1 - decay) * 0.1] if decay else np.float32([1, 0.1]), rtol=1e-6 if decay else 0
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_infinite_numbers_that_come_and_go(device: str, decay: float):
    """The formula at infinity, and a difference that float32 has no number for; NaN only where the formula is, or the value at decay 0."""
    inf, nan, large = np.inf, np.nan, 3e38
    before = np.float32([0, 0, inf, inf, -large, large, inf, nan, 2, 0])
    values = np.float32([inf, -inf, 1, -inf, large, -large, inf, 1, 4, nan])
    mixed = [inf, -inf, inf, nan, (1 - 2 * decay) * large, (2 * decay - 1) * large, inf, nan, 4 - 2 * decay, nan]
    with on_cuda():
        module = nn.Module()
        module.register_buffer("mask", Tensor(before).to(device=device))
        ema = optim.EMA(module, decay=decay)
        module.mask.copy_(Tensor(values).to(device=device))
        ema.update()
        new = ema.state_dict()["mask"]
    np.testing.assert_allclose(new, values if decay == 0 else before if decay == 1 else mixed, rtol=1e-6)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_a_long_memory_is_as_long_as_it_says(device: str):
    """0.99999 in float32 is 0.14 % further from 1 than it says; 1 - 0.99999, which is rounded afterwards, is not."""
    with on_cuda():
        module = nn.Module()
        module.register_buffer("x", Tensor(np.zeros(3, np.float32)).to(device=device))
        ema = optim.EMA(module, decay=0.99999)
        module.x.copy_(Tensor(np.ones(3, np.float32)).to(device=device))
        for _ in range(10):
            ema.update()
        np.testing.assert_allclose(ema.state_dict()["x"], 1 - 0.99999**10, rtol=1e-5)


@given(
    decay=st.floats(0, 1),
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    resume=st.integers(0, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_50_updates_are_those_of_pytorchs_averaged_model(decay: float, widths: list[int], resume: int, seed: int):
    """PyTorch's copies the model at its first update, ours when it is made; so PyTorch's gets an update before the first step."""
    layers = list(pairwise(widths))
    ours = nn.Sequential(*[part for sizes in layers for part in (nn.Linear(*sizes), nn.BatchNorm2d(sizes[1]))]).to(dtype=np.float64)
    theirs = torch.nn.Sequential(*[part for sizes in layers for part in (torch.nn.Linear(*sizes), torch.nn.BatchNorm2d(sizes[1]))]).double()
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    reference = torch.optim.swa_utils.AveragedModel(theirs, multi_avg_fn=average, use_buffers=True)
    reference.update_parameters(theirs)
    first = second = optim.EMA(ours, decay)
    values = rng(seed)
    for step in range(51):
        if step == resume:
            second = optim.EMA(ours, decay)
            second.load_state_dict(first.state_dict())
        if step == 50:
            break
        state = {name: values.standard_normal(value.shape) if value.ndim else np.array(step) for name, value in ours.state_dict().items()}
        ours.load_state_dict(state)
        theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
        first.update()
        if second is not first:
            second.update()
        reference.update_parameters(theirs)
        for name, value in reference.module.state_dict().items():
            if value.is_floating_point():  # PyTorch averages and cuts down the counts of batches, ours copies them
                assert_close(first.state_dict()[name], value, f"step {step}: {name}")
            else:
                assert first.state_dict()[name] == step
    assert same(first.state_dict(), second.state_dict())


def test_it_prints_what_it_follows_and_how():
    assert repr(optim.EMA(nn.BatchNorm2d(3), 0.99)) == "EMA(BatchNorm2d with 5 parameters and buffers, decay=0.99)"


def test_module_is_not_touched_by_the_average():
    ours = model()
    ema = optim.EMA(ours, decay=0.5)
    change(ours, 1)
    before, versions = ours.state_dict(), [p.version[0] for p in ours.parameters()]
    ema.update()
    assert same(ours.state_dict(), before) and [p.version[0] for p in ours.parameters()] == versions


def test_copy_to_another_model():
    ours, other = model(), model()
    ema = optim.EMA(ours, decay=0.5)
    change(ours, 1)
    ema.update()
    kept = ours.state_dict()
    ema.copy_to(other)
    assert same(ours.state_dict(), kept)
    shadow = ema.state_dict()
    assert all(np.array_equal(value, shadow[name]) for name, value in other.state_dict().items())
    change(other, 2)
    assert same(ema.state_dict(), shadow)  # nothing is shared
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"differ from the averaged ones at weight, bias, 0\.weight"):
        ema.copy_to(other[0])
    assert same(other.state_dict(), before)


def test_swap_exchanges_and_exchanges_back():
    ours, ema = averaged_model()
    own, shadow, parameters = ours.state_dict(), ema.state_dict(), list(ours.parameters())
    with ema.swapped() as swapped:
        assert swapped is ours
        assert all(np.array_equal(value, shadow[name]) for name, value in ours.state_dict().items())
    assert same(ours.state_dict(), own) and same(ema.state_dict(), shadow)
    assert all(new is old for new, old in zip(ours.parameters(), parameters, strict=True))
    with pytest.raises(KeyboardInterrupt), ema.swapped():
        raise KeyboardInterrupt
    assert same(ours.state_dict(), own) and same(ema.state_dict(), shadow)


def test_a_teacher_between_a_student_s_forward_and_backward_is_a_model_of_its_own():
    """Under `swapped` the graph finds its weights changed, and says so."""
    student, ema = averaged_model()
    weight = next(student.parameters())
    x = Tensor(rng(3).standard_normal(weight.shape).astype(weight.dtype), requires_grad=True)
    teacher = copy.deepcopy(student)
    assert not same(teacher.state_dict(), ema.state_dict())
    ema.copy_to(teacher)
    assert same(teacher.state_dict(), ema.state_dict()) and not same(student.state_dict(), ema.state_dict())
    loss = (x * weight).sum()
    ema.copy_to(teacher)
    loss.backward()
    np.testing.assert_array_equal(x.grad.numpy(), weight.numpy())
    loss = (x * weight).sum()
    with ema.swapped():
        pass
    with pytest.raises(RuntimeError, match="written in place"):
        loss.backward()


def interrupt(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let Ctrl-C fall into the writing of a tensor, the `call`-th, which leaves other numbers there."""
    copy_, calls = Tensor.copy_, []

    def interrupted(self: Tensor, value: Any) -> Tensor:
        calls.append(self)
        if len(calls) == call:
            copy_(self, np.zeros(self.shape))
            raise KeyboardInterrupt
        return copy_(self, value)

    monkeypatch.setattr(Tensor, "copy_", interrupted)


@pytest.mark.parametrize("call", range(1, 9))
def test_an_interrupted_exchange_is_none(call: int, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C at any of its writes: neither the module nor the average is left half averaged."""
    ours, ema = averaged_model()
    own, shadow = ours.state_dict(), ema.state_dict()
    interrupt(monkeypatch, call)
    with pytest.raises(KeyboardInterrupt):
        ema.swap()
        ema.swap()  # 7 tensors: the last of `call` is in here
    second = call == 8
    assert same(ours.state_dict(), shadow if second else own) and same(ema.state_dict(), own if second else shadow)


@pytest.mark.parametrize("call", range(1, 15))
def test_an_interrupted_measurement_gives_the_module_back(call: int, monkeypatch: pytest.MonkeyPatch):
    ours, ema = averaged_model()
    own, shadow = ours.state_dict(), ema.state_dict()
    interrupt(monkeypatch, call)
    with pytest.raises(KeyboardInterrupt), ema.swapped():
        pass
    assert same(ours.state_dict(), own) and same(ema.state_dict(), shadow)


class CtrlC:
    """`CtrlC()[signal.SIGINT]`: the signal has come while an operator of C code ran, and Python sees to it when a function starts next."""

    __getitem__ = staticmethod(_thread.interrupt_main)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_at_the_end_of_the_block_writes_over_no_later_weights():
    """Whether or not the module had its own again: it is not given them when the traceback, which a notebook keeps, is let go."""
    ours, ema = averaged_model()
    with pytest.raises(KeyboardInterrupt) as caught, ema.swapped():
        CtrlC()[signal.SIGINT]
    change(ours, 2)
    trained = ours.state_dict()
    del caught
    gc.collect()
    assert same(ours.state_dict(), trained)


def test_no_block_is_opened_that_an_interrupt_could_keep_from_closing(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C as `with no_grad():` is left, before `__exit__` has done anything."""
    ours, ema = averaged_model()
    averaged = ema.state_dict()

    monkeypatch.setattr(mode, "__exit__", lambda *_: pytest.fail("a block was opened"))
    ema.copy_to()
    assert is_grad_enabled() and same(ours.state_dict(), averaged)


def test_one_exchange_is_entered_once_at_a_time():
    ours, ema = averaged_model()
    own, exchange = ours.state_dict(), ema.swapped()
    with exchange, pytest.raises(RuntimeError, match="EMA.swapped: this one is entered already; make another"):
        exchange.__enter__()
    assert same(ours.state_dict(), own)
    with exchange as averaged, ema.swapped():
        assert same(averaged.state_dict(), ema.state_dict())
    assert same(ours.state_dict(), own)


def test_an_exchange_decorates():
    ours, ema = averaged_model()
    own = ours.state_dict()

    @ema.swapped()
    def averaged(depth: int) -> bool:
        return same(ours.state_dict(), ema.state_dict()) and (depth == 0 or averaged(depth - 1))

    assert averaged(2) and averaged(0) and same(ours.state_dict(), own)


def test_what_is_measured_anew_of_the_average_stays_in_it():
    """Batch norm's statistics of the averaged weights."""
    ours, ema = averaged_model()
    own, before = ours.state_dict(), ema.state_dict()
    with ema.swapped() as averaged:
        averaged(Tensor(rng(5).standard_normal((2, 2, 2, 3))))
        measured = averaged.state_dict()
    assert same(ours.state_dict(), own) and same(ema.state_dict(), measured) and not same(measured, before)


def test_state_goes_out_and_in():
    ours, ema = averaged_model()
    resumed = optim.EMA(copy.deepcopy(ours), decay=0.5)
    resumed.load_state_dict(ema.state_dict())
    for module, average in ((ours, ema), (resumed.module, resumed)):
        change(module, 2)
        average.update()
    assert same(resumed.state_dict(), ema.state_dict())
    model().load_state_dict(ema.state_dict())  # a model takes it too

    before = ema.state_dict()
    for value in (np.array(["x"] * 3), np.ones(3) * 1j, [[1.0], [2.0, 3.0]], np.ma.masked_array(np.ones(3), True)):
        with pytest.raises(ValueError, match="0.bias is .*, not an array of numbers"):
            ema.load_state_dict({**before, "0.weight": before["0.weight"] + 1, "0.bias": value})
    assert same(ema.state_dict(), before)
    bad = {**before, "other": np.ones(1), "0.bias": np.ones(5)}
    del bad["0.weight"]
    with pytest.raises(ValueError) as caught:
        ema.load_state_dict(bad)
    for part in ("missing 0.weight", "unexpected other", "0.bias has shape (5,), here (4,)"):
        assert part in str(caught.value)
    assert same(ema.state_dict(), before)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_by_itself(way: Callable):
    ours, ema = averaged_model()
    before = ema.state_dict()
    twin, other = way((ours, ema))
    assert other.module is twin and other.decay == 0.5
    change(twin, 2)
    other.update()
    assert same(ema.state_dict(), before)
    change(ours, 2)
    ema.update()
    assert same(other.state_dict(), ema.state_dict())


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_wrong_decay(decay: float):
    with pytest.raises(ValueError, match="decay is .*; give a number from 0 to 1"):
        optim.EMA(model(), decay)


def measure(ema: optim.EMA) -> None:
    with ema.swapped():
        pass


METHODS: dict[str, Callable] = {
    "update": optim.EMA.update,
    "swap": optim.EMA.swap,
    "swapped": measure,
    "load_state_dict": lambda ema: ema.load_state_dict({name: value + 1 for name, value in ema.state_dict().items()}),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_has_grown(method: str):
    ours = model()
    ema = optim.EMA(ours, 0.5)
    before = ema.state_dict()
    change(ours, 1)
    ours.extra = nn.Linear(2, 1)
    own = ours.state_dict()
    with pytest.raises(ValueError, match=rf"EMA.{method}: the module has extra.weight, extra.bias now, .* begin another"):
        METHODS[method](ema)
    assert same(ema.state_dict(), before) and same(ours.state_dict(), own)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 4), (1,), (5, 3)])
def test_a_parameter_of_another_shape(method: str, shape: tuple[int, ...]):
    """Also where as many numbers, or one for all, would fit."""
    ours = model()
    ema = optim.EMA(ours, 0.5)
    before = ema.state_dict()
    ours[0].weight = nn.Parameter(np.ones(shape))
    ours.to(dtype=np.float32)
    with pytest.raises(ValueError) as caught:
        METHODS[method](ema)
    assert f"EMA.{method}: 0.weight has shape {shape} now, and had (4, 3) when this average was begun; begin another" in str(caught.value)
    after = ema.state_dict()
    assert same(after, before) and after["0.bias"].dtype == np.float64


def test_a_module_that_grows_while_it_has_the_average():
    ours, ema = averaged_model()
    own, before = ours.state_dict(), ema.state_dict()
    with pytest.raises(ValueError, match=r"EMA.swapped: the module has extra now"), ema.swapped():
        ours.extra = nn.Parameter(np.ones(2))
    after = ours.state_dict()
    assert same({name: after[name] for name in own}, own) and same(ema.state_dict(), before)


def test_a_parameter_of_another_shape_while_the_module_has_the_average():
    ours, ema = averaged_model()
    own, before = ours.state_dict(), ema.state_dict()
    with pytest.raises(ValueError, match=r"EMA.swapped: 0.weight has shape \(1, 1\) now"), ema.swapped():
        ours[0].weight = nn.Parameter(np.ones((1, 1)))
    after = ours.state_dict()
    del own["0.weight"], after["0.weight"]
    assert same(after, own) and same(ema.state_dict(), before)


def test_what_the_module_has_lost_is_still_loaded():
    ours = model()
    ema = optim.EMA(ours, 0.5)
    del ours[0].bias
    state = {name: value + 1 for name, value in ema.state_dict().items()}
    ema.load_state_dict(state)
    assert same(ema.state_dict(), state)


MOVES = [
    {"dtype": np.float32},
    pytest.param({"device": "cuda"}, marks=pytest.mark.cuda),
    pytest.param({"device": "cuda", "dtype": np.float32}, marks=pytest.mark.cuda),
]


@pytest.mark.parametrize("move", MOVES, ids=str)
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("method", [*METHODS, "copy_to"])
def test_the_average_follows_a_module_that_is_moved(method: str, move: dict, back: bool):
    """To another dtype and device, and back: whatever is done next goes on with the same numbers."""
    with on_cuda():
        ours = model().to(**move if back else {})
        ema = optim.EMA(ours, 0.5)
        ours.load_state_dict({name: rng(1).integers(1, 9, value.shape) for name, value in ours.state_dict().items()})
        ema.update()
        ours.to(**{"device": "cpu", "dtype": np.float64} if back else move)
        own, shadow = ours.state_dict(), ema.state_dict()
        {**METHODS, "copy_to": optim.EMA.copy_to}[method](ema)
        weights, averages = ours.state_dict(), ema.state_dict()
        for name, value in own.items():
            assert weights[name].dtype == value.dtype
            assert_close(weights[name], shadow[name] if method in ("swap", "copy_to") else value, name, 1e-6)
            if method != "copy_to":
                assert averages[name].dtype == value.dtype
            updated = (shadow[name] + value) / 2 if value.dtype.kind == "f" else value
            expected = {"update": updated, "swap": value, "load_state_dict": shadow[name] + 1}.get(method, shadow[name])
            assert_close(averages[name], expected, name, 1e-6)
        ema.update()


@pytest.mark.cuda
def test_a_module_that_is_moved_while_it_has_the_average():
    with on_cuda():
        ours = model()
        ema = optim.EMA(ours, 0.5)
        change(ours, 1)
        ema.update()
        own, before = ours.state_dict(), ema.state_dict()
        with ema.swapped() as averaged:
            averaged.to("cuda", np.float32)
        assert ours[0].weight.device == "cuda"
        for ours_now, then in ((ours.state_dict(), own), (ema.state_dict(), before)):
            for name, value in then.items():
                assert ours_now[name].dtype == (np.float32 if value.dtype.kind == "f" else np.int64)
                assert_close(ours_now[name], value, name, 1e-6)


@pytest.mark.cuda
def test_an_average_is_copied_to_a_model_on_another_device():
    with on_cuda():
        ours, other = model(), model().to("cuda")
        ema = optim.EMA(ours, 0.5)
        ema.copy_to(other)
        assert same(other.state_dict(), ema.state_dict()) and other[0].weight.device == "cuda"
