"""A captured step, and what is replaced between its capture and its launch: the optimiser says so, and the graph writes into nobody's memory.

That it takes the steps it should is in `test_cuda_optim.py`.
"""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor, nn, optim
from minigrad.backend import cuda
from tests.cuda_device import on_cuda

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with on_cuda() as state:
        yield state


def pair(count: int = 2) -> list[Tensor]:
    """Parameters (2, 3) with gradients."""
    params = [Tensor(np.arange(6.0).reshape(2, 3) + k).to(device="cuda").requires_grad_() for k in range(count)]
    for p in params:
        p.grad = Tensor(np.ones((2, 3))).to(device="cuda")
    return params


def add_group(params: list[Tensor], optimizer: optim.Optimizer) -> None:
    optimizer.add_param_group({"params": pair(1)})


def remove_parameter(params: list[Tensor], optimizer: optim.Optimizer) -> None:
    del optimizer.param_groups[0]["params"][1]


def replace_array(params: list[Tensor], optimizer: optim.Optimizer) -> None:
    params[1].data = params[1].data.copy()


def move_there_and_back(params: list[Tensor], optimizer: optim.Optimizer) -> None:
    module = nn.Module()
    module.p = params[0]
    module.to(device="cpu").to(device="cuda")


def forget_states(params: list[Tensor], optimizer: optim.Optimizer) -> None:
    optimizer._launches.clear()


REPLACED: dict[Callable, str] = {
    add_group: "its parameters, or their groups, are others since its step was captured",
    remove_parameter: "its parameters, or their groups, are others since its step was captured",
    replace_array: "a parameter of shape (2, 3) has another array (it was moved, converted, or its .data was set) since its step was captured",
    move_there_and_back: "a parameter of shape (2, 3) has another array (it was moved, converted, or its .data was set) since its step was captured",
    forget_states: "its states were made anew since its step was captured",
}


@pytest.mark.parametrize("replace", REPLACED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("stepped", [False, True])
def test_what_a_captured_step_does_not_know_is_refused(replace: Callable, stepped: bool):
    """Also after a step that was not captured, which takes the new arrays. The graph itself goes on with the old ones, which it keeps."""
    params = pair()
    optimizer = optim.SGD(params, momentum=0.9) if stepped else optim.AdamW(params)
    optimizer.step()
    graph = cuda.Captured(optimizer.step, warm_ups=0)
    optimizer.upload()
    replace(params, optimizer)
    if stepped:
        for p in params:
            p.grad = Tensor(np.ones((2, 3))).to(device="cuda")
        optimizer.step()
    with pytest.raises(
        ValueError, match=re.escape(f"{type(optimizer).__name__}: {REPLACED[replace]}, and the graph knows the old ones: capture it again")
    ):
        optimizer.upload()
    for p in params:
        p.grad = None
    gc.collect()
    graph.launch()
    del graph
    optimizer.upload()  # for no graph that is there


@pytest.mark.parametrize("had_one", [False, True])
def test_a_parameter_without_a_gradient_needs_no_state_in_a_captured_step(had_one: bool):
    """But if it has one, another in its place is refused."""
    params = pair()
    optimizer = optim.AdamW(params)
    if had_one:
        optimizer.step()
    params[1].grad = None
    optimizer.step()
    graph = cuda.Captured(optimizer.step, warm_ups=1)
    optimizer.upload()
    graph.launch()
    if had_one:
        optimizer._state[params[1]]["exp_avg"] = optimizer._state[params[1]]["exp_avg"].copy()
        with pytest.raises(ValueError, match=re.escape("a parameter of shape (2, 3) has another exp_avg since its step was captured")):
            optimizer.upload()


@pytest.mark.parametrize("stepped", [False, True])
def test_a_state_without_the_buffers_of_a_captured_step(stepped: bool):
    """Loaded from before there was a momentum: without one the graph goes on, and with one it is refused. It never wrote into memory it had lost."""
    params = pair()
    optimizer = optim.SGD(params, lr=0.1)
    optimizer.step()
    without = optimizer.state_dict()
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.step()
    graph = cuda.Captured(optimizer.step, warm_ups=0)
    optimizer.load_state_dict(without)
    optimizer.upload()
    before = params[0].to(device="cpu").numpy().copy()
    graph.launch()
    np.testing.assert_allclose(params[0].to(device="cpu").numpy(), before - 0.1, rtol=1e-15)
    optimizer.param_groups[0]["momentum"] = 0.9
    if stepped:
        optimizer.step()  # makes buffers anew
    with pytest.raises(ValueError, match=r"SGD: a parameter of shape \(2, 3\) has another momentum_buffer since its step was captured"):
        optimizer.upload()
    gc.collect()
    graph.launch()


def test_a_captured_step_without_buffers_stays_one_without_momentum():
    """Also where the table of options that it reads has come to name a momentum, and the launch follows an upload that was refused."""
    params, others = pair(), pair()
    optimizer, other = optim.SGD(params, lr=0.1), optim.SGD(others, lr=0.1, momentum=0.9)
    for either in (optimizer, other):
        either.step()
    graph = cuda.Captured(optimizer.step, warm_ups=0)
    optimizer.load_state_dict(other.state_dict())
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.step()
    with pytest.raises(ValueError, match=r"SGD: a parameter of shape \(2, 3\) has come to need its momentum_buffer since its step was captured"):
        optimizer.upload()
    before = params[0].to(device="cpu").numpy().copy()
    graph.launch()
    np.testing.assert_allclose(params[0].to(device="cpu").numpy(), before - 0.1, rtol=1e-15)


def test_states_that_are_loaded_are_those_of_the_captured_step():
    params = pair()
    optimizer = optim.AdamW(params)
    fresh = optimizer.state_dict()
    optimizer.step()
    later = optimizer.state_dict()
    graph = cuda.Captured(optimizer.step, warm_ups=0)
    for state, step in ((fresh, 0), (later, 1)):
        optimizer.load_state_dict(state)
        optimizer.upload()
        graph.launch()
        assert int(optimizer.state_dict()["state.0.step"]) == step + 1


def test_the_graph_that_was_captured_last_counts():
    """An older one that is still there does not; when the newest is gone, the one before it does."""
    params = pair()
    optimizer = optim.AdamW(params)
    optimizer.step()
    old = cuda.Captured(optimizer.step, warm_ups=0)
    before = params[0].data
    params[0].data = before.copy()
    optimizer.step()
    new = cuda.Captured(optimizer.step, warm_ups=0)
    optimizer.upload()
    old.launch()  # harmless, and of no use
    new.launch()
    del new
    with pytest.raises(ValueError, match="AdamW: a parameter of shape .* has another array"):
        optimizer.upload()
    params[0].data = before
    optimizer.upload()
    old.launch()


@pytest.mark.parametrize("gone", ["optimizer", "average"])
def test_a_graph_keeps_what_it_finds_through_tables(gone: str):
    """Of an optimiser and an average that are gone, also where the average's arrays were replaced when its module was moved."""
    module = nn.Linear(3, 2).to(device="cuda")
    optimizer, ema = optim.AdamW(module.parameters()), optim.EMA(module, 0.5)

    for p in module.parameters():
        p.grad = Tensor(np.ones(p.shape, np.float32)).to(device="cuda")
    both = [optimizer.step, ema.update]
    for update in both:
        update()
    graph = cuda.Captured(lambda: [update() for update in both], warm_ups=0)
    if gone == "average":
        module.to(dtype=np.float64)
        ema.update()
    del optimizer, ema
    both.clear()
    gc.collect()
    graph.launch()


def test_the_decay_of_a_captured_average_is_that_of_its_last_upload():
    """Of floats of both dtypes; what is counted is copied."""

    def made(where: str) -> tuple[nn.Sequential, optim.EMA]:
        module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm2d(2))
        module[0].to(dtype=np.float64)
        for k, tensor in enumerate([*module.parameters(), *module.buffers()]):
            tensor.data[...] = np.arange(1, 1 + tensor.size).reshape(tensor.shape) + k
        return module.to(device=where), optim.EMA(module, 0.5)

    both = [made("cuda"), made("cpu")]
    (there, average), (_, expected) = both
    average.update()
    graph = cuda.Captured(average.update, warm_ups=0)
    for step, decay in enumerate([0.5, 0.9, 0.9, 0.25, 0.0, 1.0, 0.5]):
        for module, ema in both:
            ema.decay = decay
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data[...] = tensor.data * 2
        if step == 5:
            average.update()  # which brings the decay to the GPU itself
        else:
            average.upload()
            graph.launch()
        expected.update()
        theirs = expected.state_dict()
        for name, value in average.state_dict().items():
            np.testing.assert_allclose(value, theirs[name], rtol=2e-7 if value.dtype == np.float32 else 1e-15)
    copied = copy.deepcopy((there, average))[1]
    copied.upload()  # no graph has captured that


def test_a_captured_average_gets_its_decay_also_where_an_update_meanwhile_had_other_sizes():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).to(device="cuda")
    ema = optim.EMA(module, 0.5)
    ema.update()
    graph = cuda.Captured(ema.update, warm_ups=0)
    weight = module[0].weight
    kept = weight.data
    weight.data = kept.copy().T.copy().T  # not contiguous, and so averaged apart from the others
    ema.update()
    weight.data = kept
    ema.decay = 0.0
    for number, parameter in enumerate(module.parameters()):
        parameter.data[...] = 7 + number
    ema.upload()
    graph.launch()
    for number, array in enumerate(ema.state_dict().values()):
        np.testing.assert_array_equal(array, np.full_like(array, 7 + number))


def replace_a_buffer(module: nn.Module) -> None:
    module.running = Tensor(np.ones(2)).to(device="cuda")


def lose_a_buffer(module: nn.Module) -> None:
    del module.running


@pytest.mark.parametrize("replace", [lambda module: module.to(device="cpu").to(device="cuda"), replace_a_buffer, lose_a_buffer])
@pytest.mark.parametrize("updated", [False, True])
def test_what_a_captured_average_does_not_know_is_refused(replace: Callable, updated: bool):
    """Also after an update that was not captured, which takes the new arrays. The graph that was captured last counts, of those that are there."""
    module = nn.Linear(3, 2)
    module.register_buffer("running", Tensor(np.zeros(2)))
    module.to(device="cuda")
    ema = optim.EMA(module, 0.5)
    ema.upload()
    ema.update()
    graph = cuda.Captured(ema.update, warm_ups=0)
    ema.upload()
    replace(module)
    if updated:
        ema.update()
    name = r"\w+" if replace not in (replace_a_buffer, lose_a_buffer) else "running"
    with pytest.raises(
        ValueError, match=rf"EMA.upload: {name} has another array \(it was moved, .*\) since the update was captured, .*: capture it again"
    ):
        ema.upload()
    gc.collect()
    graph.launch()
    if updated:
        newer = cuda.Captured(ema.update, warm_ups=0)
        ema.upload()
        del newer
        with pytest.raises(ValueError, match="EMA.upload"):
            ema.upload()
    del graph
    ema.upload()


def test_a_weight_whose_average_a_captured_step_would_not_take_as_the_decay_says_is_refused():
    module = nn.Linear(3, 3).to(device="cuda")
    ema = optim.EMA(module, 0.5)
    module.weight.data = module.weight.data.T
    ema.update()
    before = ema.state_dict()
    with pytest.raises(ValueError, match="EMA.update: weight is not contiguous and cannot be averaged in a captured step"):
        cuda.Captured(ema.update, warm_ups=0)
    assert all(np.array_equal(value, before[name]) for name, value in ema.state_dict().items())


def test_a_parameter_that_a_captured_step_would_not_update_as_the_options_say_is_refused():
    """It is not in the tables, where learning rates and step counters are read from."""
    params = pair()
    params[0].data, params[0].grad = params[0].data.T, Tensor(np.ones((3, 2))).to(device="cuda")
    optimizer = optim.AdamW(params)
    optimizer.step()
    with pytest.raises(ValueError, match=r"AdamW: a parameter of shape \(3, 2\) whose array is not contiguous cannot be updated in a captured step"):
        cuda.Captured(optimizer.step, warm_ups=0)
    optimizer.step()


@pytest.mark.parametrize(("kind", "momentum"), [(optim.AdamW, None), (optim.SGD, 0.9), (optim.SGD, 0.0)], ids=str)
def test_a_state_that_a_captured_step_would_make_anew_at_each_launch_is_refused(kind: type[optim.Optimizer], momentum: float | None):
    """A parameter that has its place in the tables, and gets its first gradient in the captured step, or its group its first momentum.

    Nothing has changed then. What has no arrays may be made there.
    """
    (p, q), (grad, _) = pair(), (p.grad for p in pair())
    q.grad = None
    optimizer = kind([p, q]) if momentum is None else kind([p, q], momentum=momentum)
    optimizer.step()
    q.grad = grad
    if momentum == 0:
        graph = cuda.Captured(optimizer.step, warm_ups=0)
        optimizer.upload()
        graph.launch()
        del graph
        optimizer.step()  # with addresses for another capture
        optimizer.param_groups[0]["momentum"] = 0.9
    before = optimizer.state_dict()
    what = r"the state of a parameter of shape \(2, 3\) would be made anew at each launch of a captured step"
    with pytest.raises(ValueError, match=f"{kind.__name__}: {what}; take a step that is not captured, with its gradient, first"):
        cuda.Captured(optimizer.step, warm_ups=0)
    after = optimizer.state_dict()
    assert list(after) == list(before) and all(np.array_equal(after[name], value) for name, value in before.items())
    optimizer.step()
    steps = [int(optimizer.state_dict()[f"state.{number}.step"]) for number in range(2)]
    graph = cuda.Captured(optimizer.step, warm_ups=0)
    for _ in range(2):
        optimizer.upload()
        graph.launch()
    assert [int(optimizer.state_dict()[f"state.{number}.step"]) for number in range(2)] == [step + 2 for step in steps]


def test_a_capture_that_fails_leaves_the_last_graph_in_its_place():
    """Also while its error, whose traceback has the frames of the capture, is still there, as a notebook keeps it."""
    module = nn.Linear(3, 2).to(device="cuda")
    average = optim.EMA(module, 0.9)
    captured = module.weight.data
    graph = cuda.Captured(average.update, warm_ups=1)
    module.weight.data = captured.copy()
    average.update()

    def fails() -> None:
        average.update()
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off") as error:
        cuda.Captured(fails, warm_ups=0)
    module.weight.data = captured
    average.upload()
    graph.launch()
    assert error.tb is not None


def test_nothing_is_kept_for_a_graph_where_nothing_is_captured():
    with pytest.raises(RuntimeError, match="broken off"):
        cuda.Captured(lambda: (_ for _ in ()).throw(RuntimeError("broken off")), warm_ups=0)
    kept = Tensor(np.ones(3)).to(device="cuda").data
    cuda.keep(kept)
    assert cuda._of_thread.kept is None
