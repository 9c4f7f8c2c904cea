"""The optimisers on the device "cuda", on the emulator: the CPU's numbers, one launch for all parameters, no waiting, and captured graphs.

The formulas themselves are compared with PyTorch's on the CPU: see `test_adamw.py` and its neighbours.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import gc
import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, optim
from minigrad import functional as F
from minigrad.backend import cuda
from minigrad.optim import multi_tensor
from minigrad.tensor import wrap
from tests.cuda_device import ORDERS, Waits, last_digits, nothing_waits, on_cuda, on_gpu
from tests.support import as_numpy, assert_close, rng

pytestmark = pytest.mark.cuda

SHAPES = [(3, 7), (), (0, 4), (13,), (5, 4), (2, 2, 9)]
OPTIONS: dict[type[optim.Optimizer], dict] = {optim.AdamW: {}, optim.SGD: {"momentum": 0.9}}  # with which a step depends on those before
CHUNK = multi_tensor.CHUNK
LAST_DIGITS = 1e-15  # of the largest number: the kernels compute in the CPU's order


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small parameters have several chunks, the last one of a few numbers or of one."""
    monkeypatch.setattr(multi_tensor, "CHUNK", 12)


@pytest.fixture
def device() -> Iterator[Any]:
    """Every launch runs in three orders of threads and blocks, which must give the same bits."""
    with on_cuda(ORDERS) as state:
        yield state


def parameters(where: str, dtypes: tuple = (np.float64, np.float32)) -> list[Tensor]:
    """The same parameters on any device; the dtypes in turn."""
    values = rng(1)
    kinds = [dtypes[k % len(dtypes)] for k in range(len(SHAPES))]
    return [Tensor(values.standard_normal(shape).astype(kind)).to(device=where).requires_grad_() for shape, kind in zip(SHAPES, kinds, strict=True)]


def set_gradients(params: list[Tensor], step: int, missing: float = 0.0) -> None:
    values = rng(100 + step)
    for p in params:
        grad = values.standard_normal(p.shape).astype(p.dtype)
        p.grad = None if values.random() < missing else Tensor(grad).to(device=p.device)


def assert_same(ours: list[Tensor], reference: list[Tensor], what: str = "") -> None:
    for k, (p, q) in enumerate(zip(ours, reference, strict=True)):
        eps = last_digits(LAST_DIGITS) if p.dtype == np.float64 else 2e-7
        assert_close(p.to(device="cpu"), q, f"{what}: parameter {k}", eps)


ADAMW = [{}, {"lr": 0.1, "weight_decay": 0.3, "betas": (0.5, 0.6), "eps": 1e-3}, {"weight_decay": 0.0}]
SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.2},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2},
]


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize(("kind", "options"), [*((optim.AdamW, o) for o in ADAMW), *((optim.SGD, o) for o in SGD)])
def test_steps_are_those_of_the_cpu(device: Any, kind: type[optim.Optimizer], options: dict, missing: float):
    """Both dtypes in one optimiser, two groups, a schedule, gradients that are missing now and then, and the state afterwards."""
    params, reference = parameters("cuda"), parameters("cpu")
    ours, theirs = (kind([{"params": p[:2], **options}, {"params": p[2:], **options, "lr": 0.05}]) for p in (params, reference))
    for step in range(6):
        for optimizer, leaves in ((ours, params), (theirs, reference)):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            set_gradients(leaves, step, missing)
            versions = [p.version[0] for p in leaves]
            optimizer.step()
            assert [p.version[0] - v for p, v in zip(leaves, versions, strict=True)] == [p.grad is not None for p in leaves]
        assert_same(params, reference, f"step {step}")
    ours_state, their_state = ours.state_dict(), theirs.state_dict()
    assert list(ours_state) == list(their_state)
    for name, value in their_state.items():
        assert_close(ours_state[name], value, name, last_digits(LAST_DIGITS) if value.dtype == np.float64 else 2e-7)


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_a_run_goes_on_where_it_was_saved_on_either_device(device: Any, kind: type[optim.Optimizer]):
    params, reference = parameters("cuda"), parameters("cpu")
    first, unbroken = kind(params, lr=0.1, **OPTIONS[kind]), kind(reference, lr=0.1, **OPTIONS[kind])
    for step in range(3):
        set_gradients(params, step)
        set_gradients(reference, step)
        first.step()
        unbroken.step()
    moved = [Tensor(p.to(device="cpu").numpy().copy(), requires_grad=True) for p in params]
    on_cpu, again = kind(moved, **OPTIONS[kind]), kind(params, **OPTIONS[kind])
    on_cpu.load_state_dict(first.state_dict())
    again.load_state_dict(unbroken.state_dict())
    for leaves, optimizer in ((params, again), (moved, on_cpu), (reference, unbroken)):
        set_gradients(leaves, 3)
        optimizer.step()
    assert_same(params, reference)
    assert_same(moved, reference)
    assert int(again.state_dict()["state.0.step"]) == int(on_cpu.state_dict()["state.0.step"]) == 4


def test_momentum_that_is_switched_on_later_starts_like_the_cpu_s(device: Any):
    """In one group; the other has had momentum all the time, and counts on. Dampening is left out of a first step with momentum."""
    params, reference = parameters("cuda"), parameters("cpu")
    both = [(optim.SGD([{"params": p[:3]}, {"params": p[3:], "momentum": 0.9}], lr=0.1, dampening=0.3), p) for p in (params, reference)]
    for step in range(6):
        for optimizer, leaves in both:
            optimizer.param_groups[0]["momentum"] = [0.0, 0.0, 0.5, 0.5, 0.0, 0.7][step]
            set_gradients(leaves, step)
            optimizer.step()
        assert_same(params, reference, f"step {step}")


@pytest.mark.parametrize("then", ["cuda", "cpu"])
@pytest.mark.parametrize("captured", [False, True])
def test_momentum_that_comes_back_after_a_state_of_before_the_first_step(then: str, captured: bool):
    """The buffer of the first steps is still there on the GPU, of zeros, and counts for none: not for a captured step, nor where the run goes on."""

    def go(where: str, then: str, captured: bool) -> np.ndarray:
        p = Tensor(np.zeros(3)).to(device=where).requires_grad_()
        p.grad = Tensor(np.ones(3)).to(device=where)
        optimizer = optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.5)
        fresh = optimizer.state_dict()
        optimizer.step()
        graph = cuda.Captured(optimizer.step, warm_ups=0) if captured else None
        optimizer.load_state_dict(fresh)
        for step, momentum in enumerate([0.0, 0.0, 0.9, 0.0, 0.9]):
            optimizer.param_groups[0]["momentum"] = momentum
            if step == 2 and then != where:
                p, old = Tensor(p.to(device="cpu").numpy().copy()).requires_grad_(), optimizer
                p.grad = Tensor(np.ones(3))
                optimizer, graph = optim.SGD([p]), None
                optimizer.load_state_dict(old.state_dict())
            if graph is None:
                optimizer.step()
            else:
                optimizer.upload()
                graph.launch()
        return as_numpy(p)

    with on_cuda(ORDERS):
        np.testing.assert_allclose(go("cuda", then, captured), go("cpu", "cpu", False), rtol=1e-15)


def test_a_group_that_is_added_later(device: Any):
    params, reference = parameters("cuda"), parameters("cpu")
    both = [(optim.AdamW(p[:3], lr=0.1), p) for p in (params, reference)]
    for step in range(4):
        for optimizer, leaves in both:
            if step == 2:
                optimizer.add_param_group({"params": leaves[3:], "lr": 0.3})
            set_gradients(leaves, step)
            optimizer.step()
    assert_same(params, reference)


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_parameters_that_change_places_between_groups(device: Any, kind: type[optim.Optimizer]):
    """As many as before, each with what is known of it, now with the other group's rate."""
    params, reference = parameters("cuda"), parameters("cpu")
    both = [(kind([{"params": leaves[:3]}, {"params": leaves[3:], "lr": 0.3}], lr=0.1, **OPTIONS[kind]), leaves) for leaves in (params, reference)]
    for step in range(4):
        for optimizer, leaves in both:
            if step == 2:
                first, second = optimizer.param_groups
                first["params"], second["params"] = second["params"][::-1], first["params"]
            set_gradients(leaves, step)
            optimizer.step()
        assert_same(params, reference, f"step {step}")


def test_a_state_of_before_the_first_step_is_written_where_a_captured_step_may_read_it(device: Any):
    """And a parameter on the CPU has none, as before its first step."""
    params = [parameters("cuda")[0], parameters("cpu")[0]]
    optimizer = optim.AdamW(params)
    start = optimizer.state_dict()
    set_gradients(params, 0)
    optimizer.step()
    array = optimizer._state[params[0]]["exp_avg"]
    optimizer.load_state_dict(start)
    assert optimizer._state[params[0]]["exp_avg"] is array and not array.get().any()
    assert {name: int(value.sum()) for name, value in optimizer.state_dict().items() if name.startswith("state")} == {
        "state.0.step": 0, "state.0.exp_avg": 0, "state.0.exp_avg_sq": 0
    }  # fmt: skip


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_groups_come_and_go_that_have_no_parameter_of_a_dtype(device: Any, kind: type[optim.Optimizer]):
    """First float64 alone, then a group of float32 and an empty one as well; these leave again one by one."""
    params, reference = parameters("cuda"), parameters("cpu")
    both = [(kind(leaves[::2], lr=0.1, **OPTIONS[kind]), leaves) for leaves in (params, reference)]
    for step in range(5):
        for optimizer, leaves in both:
            if step == 1:
                optimizer.add_param_group({"params": leaves[1::2], "lr": 0.3})
                optimizer.add_param_group({"params": []})
            if step > 2:
                optimizer.param_groups.pop()
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            set_gradients(leaves, step)
            optimizer.upload()
            optimizer.step()
        assert_same(params, reference, f"step {step}")


def test_parameters_of_both_devices_and_of_any_strides(device: Any):
    """A parameter whose array is not contiguous is updated array by array; a gradient's order does not matter."""

    def made(where: str) -> list[Tensor]:
        leaves = [Tensor(rng(k).standard_normal((4, 3))).to(device=where if k else "cpu").requires_grad_() for k in range(3)]
        leaves[1].data = leaves[1].data.reshape(3, 4).T
        for k, p in enumerate(leaves):
            p.grad = Tensor(rng(10 + k).standard_normal((3, 4))).to(device=p.device).transpose(1, 0)
        return leaves

    params, reference = made("cuda"), made("cpu")
    for leaves in (params, reference):
        optimizer = optim.AdamW(leaves, lr=0.1)
        for _ in range(3):
            optimizer.step()
    assert_same(params, reference)


@pytest.mark.parametrize(("kind", "options"), [(optim.AdamW, {}), (optim.SGD, {"momentum": 0.9, "dampening": 0.3})])
@pytest.mark.parametrize("count", [1, 3])
def test_a_parameter_whose_array_is_contiguous_now_and_then(device: Any, kind: type[optim.Optimizer], options: dict, count: int):
    """It leaves the tables, where its steps are counted, and comes back: each time with its counter, and a state in the order of its array."""

    def made(where: str) -> tuple[list[Tensor], optim.Optimizer]:
        leaves = [Tensor(rng(k).standard_normal((4, 4))).to(device=where).requires_grad_() for k in range(count)]
        leaves[0].data = leaves[0].data.T
        return leaves, kind(leaves, lr=0.1, **options)

    both = [made("cuda"), made("cpu")]
    for step in range(8):
        for leaves, optimizer in both:
            if step in (2, 4, 6):  # contiguous from 2 to 3 and from 6 on
                leaves[0].data = leaves[0].data.T.copy().T if step == 4 else leaves[0].data.copy("C")
            set_gradients(leaves, step)
            optimizer.step()
        assert_same(both[0][0], both[1][0], f"step {step}")
        state = both[0][1].state_dict() if step % 3 == 2 else {}  # which reads the counters, too
        assert all(state[f"state.{number}.step"] == step + 1 for number in range(count) if state)


SHARED = {
    "the same": ((0, 12), (0, 12)),
    "a chain": ((0, 6), (4, 10), (9, 12)),
    "apart": ((0, 6), (6, 12)),
    "nested and behind": ((2, 4), (0, 12), (4, 6)),
}


@pytest.mark.parametrize("parts", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize(("kind", "options"), [(optim.AdamW, {"weight_decay": 0.5}), (optim.SGD, {"momentum": 0.9, "weight_decay": 0.3})])
def test_parameters_that_share_memory_are_updated_one_after_the_other(device: Any, kind: type[optim.Optimizer], options: dict, parts: tuple):
    """As on the CPU, in launches of their own: in one launch they would write there in any order. Others are updated together before and after.

    Each has its own state and its own counter, also when it shares nothing any more.
    """

    def made(where: str) -> tuple[list[Tensor], optim.Optimizer]:
        memory = Tensor(rng(1).uniform(1, 2, 12)).to(device=where)
        leaves = [wrap(memory.data[start:end]).requires_grad_() for start, end in parts]
        leaves = [*leaves, *parameters(where, (np.float64,))[:4]]
        return leaves, kind([{"params": leaves[:3]}, {"params": leaves[3:], "lr": 0.05}], lr=0.1, **options)

    both = [made("cuda"), made("cpu")]
    for step in range(4):
        launches = device.launches
        for leaves, optimizer in both:
            if step == 2:
                for p in leaves:
                    p.data = p.data.copy()
            set_gradients(leaves, step, missing=0.3 if step == 1 else 0.0)
            optimizer.step()
        apart = step >= 2 or parts == SHARED["apart"]
        assert device.launches - launches == (1 if apart else 1 + len(parts))
        assert_same(both[0][0], both[1][0], f"step {step}")
        if kind is optim.SGD and step == 0:
            graph = cuda.Captured(both[0][1].step, warm_ups=0)
            both[0][1].upload()
            graph.launch()
            both[1][1].step()
    steps = [[int(value) for name, value in optimizer.state_dict().items() if name.endswith("step")] for _, optimizer in both]
    assert steps[0] == steps[1]


def test_parameters_that_share_memory_for_a_while(device: Any):
    """The tables of before are not taken up again: their counters have stood still."""

    def made(where: str) -> tuple[list[Tensor], optim.Optimizer]:
        leaves = [Tensor(rng(k).uniform(1, 2, (2, 3))).to(device=where).requires_grad_() for k in range(3)]
        return leaves, optim.AdamW(leaves, lr=0.1)

    both = [made("cuda"), made("cpu")]
    for step in range(5):
        for leaves, optimizer in both:
            if step == 1:
                leaves[1].data = leaves[0].data
            if step == 3:
                leaves[1].data = leaves[1].data.copy()
            set_gradients(leaves, step)
            optimizer.step()
        assert_same(both[0][0], both[1][0], f"step {step}")
    assert [int(both[0][1].state_dict()[f"state.{k}.step"]) for k in range(3)] == [5, 5, 5]


@pytest.mark.parametrize("elementwise", [False, True])
def test_an_optimiser_without_kernels_updates_there_what_it_can_by_numpys_functions(device: Any, elementwise: bool):
    class Descent(optim.Optimizer):
        _elementwise = elementwise

        def _new_state(self, parameter: Tensor, group: Any) -> dict[str, Any]:
            return {}

        def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Any) -> None:
            param -= group["lr"] * grad

    weight = nn.Parameter(np.array([1.0, 2.0], np.float32)).detach().to(device="cuda").requires_grad_()
    weight.grad = Tensor([4.0, 8.0]).to(device="cuda")
    optimizer = Descent([weight], {"lr": 0.5})
    optimizer.upload()  # has nothing to bring there
    optimizer.step()
    np.testing.assert_array_equal(as_numpy(weight), [-1.0, -2.0])


def test_numbers_on_the_device_are_the_last_ones_written(device: Any):
    numbers = multi_tensor.DeviceCopy(np.arange(3.0))
    for values in ([5.0, 6.0, 7.0], [0.0, 1.0, 2.0], [0.0, 1.0, 3.0]):
        numbers.write(np.array(values))
        assert numbers.array.get().tolist() == values


def test_a_parameter_without_a_gradient_keeps_its_place_in_the_table(device: Any, monkeypatch: pytest.MonkeyPatch):
    """A captured graph counts steps in these tables: they are not made anew because a gradient is missing now and then."""
    made: list[int] = []

    class Counted(multi_tensor.Chunks):
        def __init__(self, sizes: Any, groups: Any, columns: int):
            made.append(len(sizes))
            super().__init__(sizes, groups, columns)

    monkeypatch.setattr(multi_tensor, "Chunks", Counted)
    params = parameters("cuda", (np.float64,))
    optimizer = optim.AdamW(params)
    copies, twin = copy.deepcopy((params, optimizer))
    for leaves, kept in ((params, optimizer), (copies, twin)):
        made.clear()
        for step in range(4):
            set_gradients(leaves, step)
            leaves[step].grad = None
            kept.step()
            kept.load_state_dict(kept.state_dict())
        assert made == [len(leaves)]


MOVES = [("cuda", np.float32), ("cuda", np.float64), ("cpu", np.float64), ("cuda", np.float64), ("cuda", np.float32), ("cpu", np.float32)]


@pytest.mark.parametrize(("kind", "options"), [(optim.AdamW, {}), (optim.SGD, {"momentum": 0.9, "dampening": 0.3}), (optim.SGD, {})])
@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("reload", [False, True])
def test_a_state_follows_its_parameter_to_another_device_and_dtype(
    device: Any, kind: type[optim.Optimizer], options: dict, missing: float, reload: bool
):
    """The same as on the CPU, where it is only converted. Steps are counted on, and what is loaded has the dtype and device of today."""

    def made() -> tuple[nn.Module, optim.Optimizer]:
        module = nn.Module()
        for k, p in enumerate(parameters("cpu")):
            setattr(module, f"p{k}", p)
        return module, kind(module.parameters(), lr=0.1, **options)

    (here, expected), (there, ours) = made(), made()
    eps = 1e-6 if on_gpu() else LAST_DIGITS  # what a GPU rounds its own way in float32 stays in the float64 that is made of it
    for step in range(2 * len(MOVES)):
        where, dtype = MOVES[step // 2]
        here.to(dtype=dtype)
        there.to(where, dtype)
        if reload:
            ours.load_state_dict(ours.state_dict())
        for module, optimizer in ((here, expected), (there, ours)):
            set_gradients(list(module.parameters()), step, missing)
            optimizer.step()
        for p, q in zip(there.parameters(), here.parameters(), strict=True):
            assert_close(p.to(device="cpu"), q, f"step {step}", eps)
        for p in there.parameters():
            assert all(a.dtype == p.dtype and type(a) is type(p.data) for a in ours._state.get(p, {}).values() if not isinstance(a, int))
    mine, theirs = ours.state_dict(), expected.state_dict()
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        assert_close(mine[name], value, name, eps)


def test_a_launch_counts_no_steps_for_who_came_after_its_parameters(device: Any):
    """Of those that never had a gradient, so no state: were they freed, one of the many new ones would have an id that the launch knows."""
    params = [p for _ in range(5) for p in parameters("cuda", (np.float64,))]
    optimizer = optim.AdamW(params)
    set_gradients(params[:2], 0)
    optimizer.step()
    optimizer.param_groups[0]["params"] = params = params[:2]
    optimizer.param_groups[0]["params"] = fresh = [Tensor(np.ones(2), requires_grad=True) for _ in range(2000)]
    set_gradients(fresh, 1)
    optimizer.step()
    state = optimizer.state_dict()
    assert [int(state[f"state.{number}.step"]) for number in range(len(fresh))] == [1] * len(fresh)


def test_a_parameter_of_another_shape_than_its_state_is_refused_before_anything_is_updated(device: Any):
    params = parameters("cuda", (np.float64,))
    optimizer = optim.AdamW(params)
    set_gradients(params, 0)
    optimizer.step()
    params[0].data, params[-1].data = params[0].data.astype(np.float32), params[-1].data[0]
    set_gradients(params, 1)
    before, state = [as_numpy(p).copy() for p in params], optimizer.state_dict()
    with pytest.raises(ValueError, match=r"a parameter has shape \(2, 9\) now, and the state 'exp_avg' of shape \(2, 2, 9\)"):
        optimizer.step()
    assert all(np.array_equal(as_numpy(p), values) for p, values in zip(params, before, strict=True))
    after = optimizer.state_dict()
    assert all(np.array_equal(after[name], value) for name, value in state.items())


def test_one_launch_for_all_parameters_and_nothing_is_waited_for():
    with on_cuda() as device:
        params = [Tensor(rng(k).standard_normal((5, k + 1)).astype(np.float32)).to(device="cuda").requires_grad_() for k in range(20)]
        optimizer = optim.AdamW([{"params": params[:10]}, {"params": params[10:], "weight_decay": 0.0}])
        schedule = optim.WarmupCosine(optimizer, 10, 2)
        for step in range(3):
            schedule.set(step)
            set_gradients(params, step)
            launches = device.launches
            with nothing_waits(device):
                optimizer.step()
                norm = optim.clip_grad_norm_(params, 1.0)
                assert norm.device == "cuda" and norm.shape == ()
            assert device.launches - launches == 1 + 3
        with pytest.raises(Waits), nothing_waits(device):
            float(norm)


def test_the_naive_kernel_computes_the_same():
    kernels = cuda.Kernels(sys.modules[optim.AdamW.__module__].__file__ or "")
    arrays = [rng(k).uniform(0.1, 1, 300) for k in range(4)]
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        p, g, m, v = map(cp.asarray, arrays)
        kernels.launch("adamw_naive<double>", 2, 256, p, g, m, v, 0.1, 0.9, 0.99, 1e-8, 0.2, 5, 300)
        leaf = Tensor(arrays[0]).to(device="cuda").requires_grad_()
        leaf.grad = Tensor(arrays[1]).to(device="cuda")
        optimizer = optim.AdamW([leaf], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2)
        optimizer._state[leaf] = {"step": 4, "exp_avg": cp.asarray(arrays[2]), "exp_avg_sq": cp.asarray(arrays[3])}
        optimizer.step()
        np.testing.assert_array_equal(leaf.data.get(), p.get())
        np.testing.assert_array_equal(optimizer._state[leaf]["exp_avg_sq"].get(), v.get())


# --- captured graphs


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_a_captured_step_follows_the_schedule_and_counts_steps(kind: type[optim.Optimizer]):
    """Steps that are not captured, with gradients elsewhere, may come between."""
    reference = parameters("cpu")
    expected = kind(reference, lr=0.1, **OPTIONS[kind])
    for step in range(6):
        expected.param_groups[0]["lr"] = 0.1 / (step + 1)
        set_gradients(reference, step)
        expected.step()
    with on_cuda():
        params = parameters("cuda")
        optimizer = kind(params, lr=0.1, **OPTIONS[kind])
        set_gradients(params, 0)
        optimizer.step()  # makes the tables
        set_gradients(params, 1)
        fixed = [p.grad for p in params]
        graph = cuda.Captured(optimizer.step, warm_ups=0)
        for step in range(1, 6):
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            set_gradients(params, step)
            if step == 3:
                optimizer.step()
                continue
            for grad, p in zip(fixed, params, strict=True):
                grad.data[...] = p.grad.data
                p.grad = None
            optimizer.upload()
            graph.launch()
        assert_same(params, reference)
        assert int(optimizer.state_dict()["state.0.step"]) == 6


def test_a_momentum_that_a_captured_step_has_no_buffer_for_is_refused():
    """In a group that has one now; where there is no graph, nothing is."""
    refusal = r"SGD: a parameter of shape \(5, 4\) has come to need its momentum_buffer since its step was captured, .*: capture it again"
    with on_cuda():
        params = parameters("cuda")
        optimizer = optim.SGD([{"params": params[:4]}, {"params": params[4:]}], lr=0.1)
        set_gradients(params, 0)
        optimizer.step()
        set_gradients(params, 1)
        graph = cuda.Captured(optimizer.step, warm_ups=0)
        optimizer.upload()
        optimizer.param_groups[1]["momentum"] = 0.9
        with pytest.raises(ValueError, match=refusal):
            optimizer.upload()
        set_gradients(params, 2)
        params[5].grad = None  # one that needs no buffer
        optimizer.step()  # makes the others, which the graph does not know
        with pytest.raises(ValueError, match=refusal):
            optimizer.upload()
        last = optimizer.param_groups.pop()
        with pytest.raises(ValueError, match="SGD: its parameters, or their groups, are others since its step was captured"):
            optimizer.upload()
        optimizer.param_groups.append(last)
        del graph
        optimizer.param_groups[0]["momentum"] = 0.9
        optimizer.upload()


def test_a_captured_clipping_outlives_its_thread():
    with on_cuda():
        params, captured = parameters("cuda"), {}
        set_gradients(params, 0)
        expected = float(optim.clip_grad_norm_([p for p in params], math.inf))

        def capture() -> None:
            captured["graph"] = cuda.Captured(lambda: optim.clip_grad_norm_(params, 1e9))

        thread = threading.Thread(target=lambda: contextvars.copy_context().run(capture))
        thread.start()
        thread.join()
        del thread
        gc.collect()
        captured["graph"].launch()
        assert float(captured["graph"].result) == pytest.approx(expected, rel=1e-12, abs=0)


CAPTURED_BEFORE = "^these tensors have been in a capture since the last step that was not captured: take one first$"


def test_two_graphs_have_a_table_of_addresses_each():
    with on_cuda():
        params, reference = parameters("cuda", (np.float64,)), parameters("cpu", (np.float64,))
        optimizer, expected = optim.SGD(params, lr=1.0), optim.SGD(reference, lr=1.0)
        set_gradients(params, 0)
        optimizer.step()
        graphs, kept = [], []
        for step in (1, 2):
            set_gradients(params, step)
            kept.append([p.grad for p in params])
            graphs.append(cuda.Captured(optimizer.step, warm_ups=0))
            if step == 1:
                with pytest.raises(RuntimeError, match=CAPTURED_BEFORE):
                    cuda.Captured(optimizer.step, warm_ups=0)
                set_gradients(params, 3)
                optimizer.step()
        optimizer.upload()
        graphs[0].launch()
        graphs[1].launch()
        for step in (0, 3, 1, 2):
            set_gradients(reference, step)
            expected.step()
        assert_same(params, reference)


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_that_failed_or_whose_graph_is_gone_is_no_second_graph(fails: bool):
    def step() -> None:
        optimizer.step()
        if fails:
            raise MemoryError("none is left")

    with on_cuda():
        params = parameters("cuda")
        set_gradients(params, 0)
        optimizer = optim.AdamW(params)
        optimizer.step()
        with pytest.raises(MemoryError, match="none is left") if fails else contextlib.nullcontext():
            cuda.Captured(step, warm_ups=0)
        with pytest.raises(RuntimeError, match=CAPTURED_BEFORE):
            cuda.Captured(optimizer.step, warm_ups=0)
        optimizer.step()
        cuda.Captured(optimizer.step, warm_ups=0).launch()
        assert int(optimizer.state_dict()["state.0.step"]) == 3


@pytest.mark.parametrize("taken", [0, 2])
def test_a_whole_captured_training_step(taken: int):
    """Loss, gradients, clipping, AdamW and the average in one graph, from where a run stood: what calls before the capture did is undone in place.

    Nothing waits for the device between the steps.
    """
    batches = [(rng(k).standard_normal((5, 4)), rng(50 + k).integers(0, 3, 5)) for k in range(6)]

    def made(where: str) -> tuple[nn.Module, optim.Optimizer, optim.EMA]:
        minigrad.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).to(dtype=np.float64, device=where)
        return module, optim.AdamW(module.parameters(), lr=0.1), optim.EMA(module, 0.9)

    def step(module: nn.Module, optimizer: optim.Optimizer, ema: optim.EMA, x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), y)
        loss.backward()
        norm = optim.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
        ema.update()
        return loss, norm

    here = made("cpu")
    with on_cuda() as device:
        there = made("cuda")
        cp = cuda.array_module()
        x, y = (Tensor(a).to(device="cuda") for a in batches[0])
        for _ in range(taken):
            step(*there, x, y)
            step(*here, *map(Tensor, batches[0]))
        states = [part.state_dict() for part in there]
        graph = cuda.Captured(lambda: step(*there, x, y))
        for part, state in zip(there, states, strict=True):
            part.load_state_dict(state)
        results = []
        for k, (images, labels) in enumerate(batches):
            there[1].param_groups[0]["lr"] = here[1].param_groups[0]["lr"] = 0.1 / (k + 1)
            with nothing_waits(device):
                x.data[...], y.data[...] = cp.asarray(images), cp.asarray(labels)
                there[1].upload()
                graph.launch()
                results.append([part + 0 for part in graph.result])
                expected = step(*here, Tensor(images), Tensor(labels))
                if k == 3:
                    with there[2].swapped(), here[2].swapped():
                        pass
            assert_close(results[-1][0], expected[0], relative=1e-13)
            assert float(results[-1][1]) == pytest.approx(expected[1], rel=1e-12)
        for ours, reference in zip(there, here, strict=True):
            mine = ours.state_dict()
            for name, value in reference.state_dict().items():
                assert_close(mine[name], value, name, 1e-12)


# --- the average of weights


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm2d(5)).to(dtype=np.float64)


def change(module: nn.Module, seed: int) -> None:
    """New weights and statistics."""
    for k, tensor in enumerate([*module.parameters(), *module.buffers()]):
        value = rng(100 * seed + k).uniform(1, 9, tensor.shape).astype(tensor.dtype)
        tensor.data[...] = Tensor(np.asarray(value)).to(device=tensor.device).data


def test_the_average_is_the_cpu_s(device: Any):
    here, there = model(), model()
    there.load_state_dict(here.state_dict())
    there.to(device="cuda")
    expected, ema = optim.EMA(here, 0.9), optim.EMA(there, 0.9)
    for step in range(4):
        for module in (here, there):
            if step == 2:  # fewer float64 numbers than there were
                module[0].to(dtype=np.float32)
            change(module, step)
        expected.update()
        launches = device.launches
        ema.update()
        assert device.launches - launches == (2 if step < 2 else 3)  # one for the floats of a dtype, one for batch norm's counter
    averages, references = ema.state_dict(), expected.state_dict()
    assert list(averages) == list(references)
    for name, value in references.items():
        assert averages[name].dtype == value.dtype
        assert_close(averages[name], value, name, 2e-7 if value.dtype == np.float32 else last_digits(LAST_DIGITS))


# --- whole chunks, and arrays that begin anywhere

UPDATES = ["SGD", "SGD with momentum", "AdamW", "EMA", "clipping"]


def updated(update: str, where: str, parameter_start: int = 0, gradient_start: int = 0) -> dict[str, np.ndarray]:
    """Everything there is after two updates of many numbers; arrays begin so many numbers behind the beginning of their memory."""

    def made(values: np.ndarray, start: int) -> Tensor:
        return wrap(Tensor(np.append(values[:start], values)).to(device=where).data[start:])

    module, norms = nn.Module(), []
    for k, (dtype, size) in enumerate([(np.float32, 5001), (np.float64, 700)]):
        setattr(module, f"p{k}", made(rng(k).standard_normal(size).astype(dtype), parameter_start).requires_grad_())
    module.register_buffer("integers", made(rng(7).integers(-99, 99, 700), 0))
    params, average = list(module.parameters()), optim.EMA(module, 0.9)
    momentum = {"momentum": 0.9, "dampening": 0.3} if update == "SGD with momentum" else {}
    optimizer = optim.AdamW(params, lr=0.1) if update == "AdamW" else optim.SGD(params, lr=0.1, weight_decay=0.2, **momentum)
    for step in range(2):
        for k, p in enumerate(params):
            p.grad = made(rng(10 + 2 * step + k).standard_normal(p.shape).astype(p.dtype), gradient_start)
        if update == "clipping":
            norms.append(float(optim.clip_grad_norm_(params, 30.0)))
            continue
        optimizer.step()
        if update == "EMA":
            module.integers.data[::2] = step
            average.update()
    parts = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average.state_dict()}
    arrays = {f"{part} {name}": as_numpy(value) for part, state in parts.items() for name, value in state.items()}
    return {**arrays, **{f"gradient {k}": as_numpy(p.grad) for k, p in enumerate(params)}, "norms": np.array(norms)}


def assert_updated_like_the_cpu(update: str, **starts: int) -> None:
    ours, reference = updated(update, "cuda", **starts), updated(update, "cpu", **starts)
    assert list(ours) == list(reference)
    for name, value in reference.items():
        exact = 2e-7 if value.dtype == np.float32 else last_digits(10 * LAST_DIGITS)
        assert_close(ours[name], value, name, 1e-6 if update == "clipping" else exact)  # the CPU measures float32 in float32


@pytest.mark.parametrize("update", UPDATES)
def test_chunks_in_which_each_thread_has_several_numbers(device: Any, monkeypatch: pytest.MonkeyPatch, update: str):
    monkeypatch.setattr(multi_tensor, "CHUNK", CHUNK)
    assert_updated_like_the_cpu(update)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("starts", [{"parameter_start": 1}, {"gradient_start": 1}, {"gradient_start": 2}], ids=str)
def test_arrays_that_do_not_begin_at_sixteen_bytes(device: Any, monkeypatch: pytest.MonkeyPatch, update: str, starts: dict[str, int]):
    """They are read number by number."""
    monkeypatch.setattr(multi_tensor, "CHUNK", CHUNK)
    assert_updated_like_the_cpu(update, **starts)


# --- clipping


@pytest.mark.parametrize("dtypes", [(np.float64,), (np.float32,), (np.float64, np.float32)])
@pytest.mark.parametrize(("scale", "max_norm"), [(1.0, 0.5), (1.0, 1e9), (1.0, math.inf), (1e-30, 1.0), (1e4, 3.0), (1.0, 0.0)])
def test_clipping_is_the_cpu_s(device: Any, dtypes: tuple, scale: float, max_norm: float):
    params, reference = parameters("cuda", dtypes), parameters("cpu", dtypes)
    for leaves in (params, reference):
        set_gradients(leaves, 1)
        leaves[3].grad = None
        for p in leaves:
            if p.grad is not None:
                p.grad = Tensor((p.grad.to(device="cpu").numpy() * scale).astype(p.dtype)).to(device=p.device)
    versions = [p.grad.version[0] for p in params if p.grad is not None]
    norm, expected = optim.clip_grad_norm_(params, max_norm), optim.clip_grad_norm_(reference, max_norm)
    written = max_norm < math.inf  # for all one knows: the host does not ask for the norm
    assert [p.grad.version[0] for p in params if p.grad is not None] == [version + written for version in versions]
    exact = last_digits(LAST_DIGITS) * 10 if dtypes == (np.float64,) else 1e-6
    assert float(norm) == pytest.approx(expected, rel=exact, abs=0)
    for p, q in zip(params, reference, strict=True):
        if q.grad is not None:
            np.testing.assert_allclose(p.grad.to(device="cpu").numpy(), q.grad.numpy(), rtol=exact)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e-154, 1e-153, 1e-121, 1e-90, 1e-20, 1e146, 3e153, 1e154, 1e200, 1e300])
@pytest.mark.parametrize("spread", [0, 60])
def test_norms_of_which_squares_do_not_fit_into_a_double(device: Any, scale: float, spread: int):
    values = rng(4).uniform(1, 2, 50) * 10.0 ** rng(5).uniform(-spread, 0, 50) * scale
    p = Tensor(np.zeros(50)).to(device="cuda").requires_grad_()
    p.grad = Tensor(values).to(device="cuda")
    assert float(optim.clip_grad_norm_([p], math.inf)) == pytest.approx(math.hypot(*values), rel=1e-14, abs=0)


def test_a_norm_of_more_chunks_than_a_block_has_threads(device: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(multi_tensor, "CHUNK", 4)
    values = rng(6).standard_normal(1200)
    p = Tensor(np.zeros(1200)).to(device="cuda").requires_grad_()
    p.grad = Tensor(values).to(device="cuda")
    norm = optim.clip_grad_norm_([p], 1.0)
    assert float(norm) == pytest.approx(np.linalg.norm(values), rel=1e-12, abs=0)
    np.testing.assert_allclose(p.grad.to(device="cpu").numpy(), values / (np.linalg.norm(values) + 1e-6), rtol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_gradient_that_is_no_number_is_shown(device: Any, value: float, dtype: type):
    params, reference = parameters("cuda", (dtype,)), parameters("cpu", (dtype,))
    for leaves in (params, reference):
        set_gradients(leaves, 0)
        leaves[0].grad.data[0, 0] = value
        with pytest.raises(FloatingPointError, match="the norm of the gradients is"):
            optim.clip_grad_norm_(leaves, 1.0, error_if_nonfinite=True)
    norm, expected = optim.clip_grad_norm_(params, 1.0), optim.clip_grad_norm_(reference, 1.0)
    assert float(norm) == pytest.approx(expected, nan_ok=True)
    for p, q in zip(params, reference, strict=True):
        np.testing.assert_array_equal(p.grad.to(device="cpu").numpy(), q.grad.numpy())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_infinite_norm_only_measures_gradients_that_are_no_numbers(device: Any, value: float):
    for where in ("cpu", "cuda"):
        params = parameters(where)
        set_gradients(params, 0)
        params[0].grad.data[0, 0] = value
        before = [p.grad.to(device="cpu").numpy().copy() for p in params]
        assert float(optim.clip_grad_norm_(params, math.inf)) == pytest.approx(value, nan_ok=True)
        for p, grad in zip(params, before, strict=True):
            np.testing.assert_array_equal(p.grad.to(device="cpu").numpy(), grad)


# --- copies


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD])
def test_a_copy_goes_on_by_itself(device: Any, kind: type[optim.Optimizer]):
    """In tables of its own: what the original does afterwards changes nothing for the copy, and the other way round."""
    params, reference = parameters("cuda"), parameters("cpu")
    first, expected = kind(params, lr=0.1, **OPTIONS[kind]), kind(reference, lr=0.1, **OPTIONS[kind])
    for step in range(3):
        for optimizer, leaves in ((first, params), (expected, reference)):
            set_gradients(leaves, step)
            optimizer.step()
    copies, second = copy.deepcopy((params, first))
    for step in (3, 4):
        for optimizer, leaves in ((first, params), (second, copies), (expected, reference)):
            set_gradients(leaves, step)
            optimizer.step()
    assert_same(params, reference)
    assert_same(copies, reference)
    ours, theirs = second.state_dict(), first.state_dict()
    assert list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert int(ours["state.0.step"]) == 5


def test_a_copied_average_goes_on_by_itself(device: Any):
    there = model().to(device="cuda")
    ema = optim.EMA(there, 0.9)
    change(there, 1)
    ema.update()
    twin, other = copy.deepcopy((there, ema))
    for module, average in ((there, ema), (twin, other)):
        change(module, 2)
        average.update()
    ours, theirs = other.state_dict(), ema.state_dict()
    assert list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    change(twin, 3)
    other.update()
    assert all(np.array_equal(value, theirs[name]) for name, value in ema.state_dict().items())


def test_a_gradient_on_another_device_is_refused_before_anything_is_updated(device: Any):
    params = parameters("cuda")
    set_gradients(params, 0)
    params[-1].grad = params[-1].grad.to(device="cpu")
    optimizer, before = optim.AdamW(params), [p.to(device="cpu").numpy().copy() for p in params]
    with pytest.raises(TypeError, match=r"a parameter on cuda has a gradient on cpu; bring it there with \.to\(device='cuda'\)"):
        optimizer.step()
    assert all(np.array_equal(p.to(device="cpu").numpy(), values) for p, values in zip(params, before, strict=True))
