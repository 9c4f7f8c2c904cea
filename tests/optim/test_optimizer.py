"""What all optimisers share: groups and their errors, in-place updates, large and oddly laid out arrays, saving and resuming."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minigrad import Tensor, nn, optim
from minigrad.backend import cpu
from minigrad.optim import blocks
from minigrad.safetensors_io import load_state, save_state
from tests.support import assert_close, rng

BOTH = [lambda params, **options: optim.AdamW(params, **options), lambda params, **options: optim.SGD(params, momentum=0.9, **options)]


def parameters() -> list[Tensor]:
    return [nn.Parameter(rng(k).standard_normal(shape).astype(np.float32)) for k, shape in enumerate([(3, 4), (5,), ()])]


def give_gradients(params: list[Tensor], seed: int) -> None:
    for k, p in enumerate(params):
        p.grad = Tensor(rng(100 * seed + k).standard_normal(p.shape).astype(p.dtype))


NAMED = ["SGD", "AdamW", *(f"{kind}.{name}" for kind in ("SGD", "AdamW") for name in ("step", "zero_grad", "state_dict", "load_state_dict"))]


@pytest.mark.parametrize("name", NAMED)
def test_arguments_are_called_as_pytorchs(name: str):
    ours, theirs = (inspect.signature(operator.attrgetter(name)(module)).parameters for module in (optim, torch.optim))
    assert set(ours) <= set(theirs)


def test_arguments_of_clipping_are_called_as_pytorchs_and_come_in_its_order():
    ours, theirs = (list(inspect.signature(function).parameters) for function in (optim.clip_grad_norm_, torch.nn.utils.clip_grad_norm_))
    assert ours == [name for name in theirs if name in ours]


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_updates_in_place_and_leaves_gradients_alone(make: Callable):
    params = parameters()
    optimizer = make(params, lr=0.1)
    params[1].grad = None
    arrays, before = [p.data for p in params], [p.numpy().copy() for p in params]
    versions = [p.version[0] for p in params]
    give_gradients([params[0], params[2]], 1)
    grads = [None if p.grad is None else p.grad.numpy().copy() for p in params]
    tensors = [p.grad for p in params]
    optimizer.step()
    for k, p in enumerate(params):
        assert p.data is arrays[k] and p.grad is tensors[k] and p.requires_grad
        changed = k != 1
        assert np.array_equal(p.numpy(), before[k]) != changed
        assert p.version[0] == versions[k] + changed
        if changed:
            np.testing.assert_array_equal(p.grad.numpy(), grads[k])


def test_a_graph_that_read_a_parameter_notices_the_step():
    layer = nn.Linear(2, 2)
    optimizer = optim.SGD(layer.parameters(), lr=0.1)
    y = layer(Tensor(np.ones((1, 2), np.float32), requires_grad=True))
    give_gradients(list(layer.parameters()), 1)
    optimizer.step()
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward(np.ones((1, 2), np.float32))


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
@pytest.mark.parametrize("small", [0, 100])
def test_a_graph_that_read_a_parameter_notices_an_interrupted_step(make: Callable, small: int, monkeypatch: pytest.MonkeyPatch):
    p = nn.Parameter(np.ones(3))
    made = make([p])
    loss = (p * p * p).sum()
    loss.backward(retain_graph=True)

    def interrupted(*args: Any) -> None:
        p.data[...] = 7.0
        raise KeyboardInterrupt

    monkeypatch.setattr(made, "_update", interrupted)
    monkeypatch.setattr(blocks, "SMALL", small)
    with pytest.raises(KeyboardInterrupt):
        made.step()
    with pytest.raises(RuntimeError, match="written in place"):
        loss.backward()


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_no_memory_for_a_state_leaves_all_parameters_as_they_were(make: Callable, monkeypatch: pytest.MonkeyPatch):
    params = [nn.Parameter(np.ones(3)) for _ in range(3)]
    made, calls = make(params), []
    first = made._new_state

    def new_state(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return first(*args)

    monkeypatch.setattr(made, "_new_state", new_state)
    for p in params:
        p.grad = Tensor(np.ones(3))
    with pytest.raises(MemoryError):
        made.step()
    assert all((p.numpy() == 1).all() for p in params)
    made.step()
    assert len({p.numpy().tobytes() for p in params}) == 1 and params[0].numpy()[0] < 1


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
@pytest.mark.parametrize("size", [(1 << 16) - 1, (1 << 16) + 1, (1 << 18) + 3])
def test_blocks_and_threads_change_nothing(make: Callable, size: int):
    # One long parameter, updated block by block on the threads, against the same numbers as many short ones.
    values = rng(0).standard_normal(size).astype(np.float32)
    cuts = list(range(0, size, 50_000))
    whole, parts = nn.Parameter(values), [nn.Parameter(values[cut : cut + 50_000]) for cut in cuts]
    first, second = make([whole], lr=0.01), make(parts, lr=0.01)
    for step in range(3):
        grad = rng(step + 1).standard_normal(size).astype(np.float32)
        whole.grad = Tensor(grad)
        for cut, part in zip(cuts, parts, strict=True):
            part.grad = Tensor(grad[cut : cut + 50_000])
        first.step()
        second.step()
    np.testing.assert_array_equal(whole.numpy(), np.concatenate([part.numpy() for part in parts]))


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_arrays_that_are_not_contiguous(make: Callable):
    """The gradient alone, the parameter (and with it its state) alone, and all of them."""
    values, grad = rng(0).standard_normal((6, 5)), rng(1).standard_normal((6, 5))
    results = []
    for turned_values, turned_grad in ((False, False), (False, True), (True, False), (True, True)):
        p = nn.Parameter(values)
        p.data = np.array(values, order="F" if turned_values else "C")
        optimizer = make([p], lr=0.1)
        for _ in range(3):
            p.grad = Tensor(grad)
            p.grad.data = np.array(grad, order="F" if turned_grad else "C")
            optimizer.step()
        results.append(p.numpy())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("block", ["ALONE", "TOGETHER"])
def test_long_arrays_are_updated_in_pieces_of_a_block(monkeypatch: pytest.MonkeyPatch, block: str):
    """So that what an update reads again is still in the cache, and its scratch takes little memory."""
    size, pieces, limits = 155, [], {"ALONE": 20, "TOGETHER": 50}
    for name, elements in limits.items():
        monkeypatch.setattr(cpu, name, elements)
    monkeypatch.setattr(blocks, "GRAIN", 1 if block == "TOGETHER" else size)
    monkeypatch.setattr(cpu, "_pool", cpu._Pool(2))
    x, y = rng(0).standard_normal(size), rng(1).standard_normal(size)
    expected = x - 2 * y

    def update(x: np.ndarray, y: np.ndarray, scratch: np.ndarray) -> None:
        assert scratch.shape == x.shape and scratch.dtype == x.dtype
        pieces.append(x.size)
        np.multiply(y, 2, out=scratch)
        np.subtract(x, scratch, out=x)

    blocks.in_blocks(update, x, y)
    np.testing.assert_array_equal(x, expected)
    assert sum(pieces) == size and max(pieces) == limits[block]


def test_a_gradient_of_another_shape_is_refused():
    p = nn.Parameter(np.ones((2, 3)))
    p.grad = Tensor(np.ones(3))
    with pytest.raises(ValueError, match=r"a parameter of shape \(2, 3\) has a gradient of shape \(3,\)"):
        optim.SGD([p]).step()


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_a_gradient_of_another_dtype_is_refused(make: Callable):
    p = nn.Parameter(np.ones(3, np.float32))
    p.grad = Tensor(np.ones(3))
    with pytest.raises(TypeError, match="a parameter of float32 has a gradient of float64"):
        make([p]).step()
    np.testing.assert_array_equal(p.numpy(), np.ones(3))


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
@pytest.mark.parametrize(("wrong", "error"), [(np.ones(3, np.float32), ValueError), (np.ones((2, 3)), TypeError)])
def test_a_wrong_gradient_is_refused_before_anything_is_updated(make: Callable, wrong: np.ndarray, error: type[Exception], monkeypatch: Any):
    """Whether it comes after parameters that are updated alone or together."""
    for small in (0, 1 << 12):
        monkeypatch.setattr(blocks, "SMALL", small)
        params = [*parameters(), nn.Parameter(np.ones((2, 3), np.float32))]
        give_gradients(params, 1)
        params[-1].grad = Tensor(wrong)
        before, versions, made = [p.numpy().copy() for p in params], [p.version[0] for p in params], make(params)
        with pytest.raises(error, match="has a gradient of"):
            made.step()
        assert all(np.array_equal(p.numpy(), values) for p, values in zip(params, before, strict=True))
        assert [p.version[0] for p in params] == versions and not any(name.startswith("state") for name in made.state_dict())


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
@pytest.mark.parametrize("gradient", [np.ones(3), [1.0, 1.0, 1.0], 1.0], ids=["ndarray", "list", "float"])
def test_a_gradient_that_is_no_tensor_is_refused(make: Callable, gradient: Any):
    params = [nn.Parameter(np.ones(3)) for _ in range(2)]
    params[0].grad, params[1].grad = Tensor(np.ones(3)), gradient
    with pytest.raises(TypeError, match=rf"the .grad of a parameter of shape \(3,\) is a {type(gradient).__name__}; give a Tensor, or None"):
        make(params).step()
    assert all((p.numpy() == 1).all() for p in params)


# --- parameters that change their arrays


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
@pytest.mark.parametrize("small", [0, 100])
def test_a_state_follows_its_parameter_to_another_dtype(make: Callable, small: int, monkeypatch: pytest.MonkeyPatch):
    """As PyTorch's does when it is loaded, without which its AdamW's next step raises. One parameter has no gradient in the first step after."""
    monkeypatch.setattr(blocks, "SMALL", small)
    ours, theirs = nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    mine = make(ours.parameters(), lr=0.1)
    is_sgd = isinstance(mine, optim.SGD)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9) if is_sgd else torch.optim.AdamW(theirs.parameters(), lr=0.1)
    for step, dtype in enumerate([np.float32, np.float64, np.float64, np.float32, np.float32]):
        ours.to(dtype=dtype)
        theirs.to(torch.float64 if dtype is np.float64 else torch.float32)
        reference.load_state_dict(reference.state_dict())
        give_gradients(list(ours.parameters()), step)
        if step in (1, 3):
            ours.weight.grad = None
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            q.grad = None if p.grad is None else torch.tensor(p.grad.numpy().copy())
        mine.step()
        reference.step()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert_close(p, q, f"step {step}", 1e-6)
        state = mine.state_dict()
        assert {value.dtype for name, value in state.items() if name.startswith("state") and value.ndim} == {np.dtype(dtype)}
    assert state["state.0.step"] == 3 and state["state.1.step"] == 5


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_a_copy_that_was_made_between_another_dtype_and_the_step(make: Callable):
    params = parameters()
    first = make(params, lr=0.1)
    give_gradients(params, 1)
    first.step()
    for p in params:
        p.data = p.data.astype(np.float64)
    copies, second = copy.deepcopy((params, first))
    for leaves, made in ((params, first), (copies, second)):
        give_gradients(leaves, 2)
        made.step()
    assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(params, copies, strict=True))
    assert second.state_dict()["state.0.momentum_buffer" if isinstance(first, optim.SGD) else "state.0.exp_avg"].dtype == np.float64


@pytest.mark.parametrize("make", [*BOTH, lambda params, **options: Lars(params, **options)], ids=["adamw", "sgd", "lars"])
def test_a_parameter_of_another_shape_than_its_state_is_refused_before_anything_is_updated(make: Callable):
    params = parameters()[:2]
    made = make(params, lr=0.1)
    give_gradients(params, 1)
    made.step()
    params[0].data, params[1].data = params[0].data.astype(np.float64), np.ones(4, np.float32)  # the first could follow
    give_gradients(params, 2)
    before, state = [p.numpy().copy() for p in params], made.state_dict()
    with pytest.raises(ValueError, match=r"a parameter has shape \(4,\) now, and the state '\w+' of shape \(5,\) from when it had another; make"):
        made.step()
    assert all(np.array_equal(p.numpy(), values) for p, values in zip(params, before, strict=True))
    after = made.state_dict()
    assert all(np.array_equal(after[name], value) and after[name].dtype == value.dtype for name, value in state.items())


def test_a_state_without_arrays_does_not_mind_another_shape():
    p = nn.Parameter(np.ones(3))
    optimizer = optim.SGD([p], lr=0.1)
    for shape in (3, 4):
        p.data, p.grad = np.ones(shape), Tensor(np.ones(shape))
        optimizer.step()
        np.testing.assert_allclose(p.numpy(), 0.9, rtol=1e-12)
    assert optimizer.state_dict()["state.0.step"] == 2


# --- groups


@pytest.mark.parametrize(("name", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1})])
def test_prints_as_pytorchs_does(name: str, options: dict):
    """But for the options that are PyTorch's alone, and with how many parameters a group has."""

    def grouped(p: Any, q: Any) -> list[dict[str, Any]]:
        return [{"params": [p, q], "name": "body"}, {"params": [], "lr": 0.5, "weight_decay": 0.0}]

    ours = repr(getattr(optim, name)(grouped(*parameters()[:2]), lr=0.1, **options))
    theirs = repr(getattr(torch.optim, name)(grouped(*(torch.ones(k, requires_grad=True) for k in (2, 3))), lr=0.1, **options))
    shared = {line.split(":")[0] for line in ours.splitlines()}
    assert ours.count("\n    parameters: 2\n") == 1 and ours.count("\n    parameters: 0\n") == 1
    assert [line for line in theirs.splitlines() if line.split(":")[0] in shared] == [line for line in ours.splitlines() if "parameters" not in line]
    assert "    name: body" in ours and "    lr: 0.5" in ours


def test_groups_take_options_of_their_own():
    a, b = nn.Parameter(np.ones(2)), nn.Parameter(np.ones(2))
    optimizer = optim.AdamW([{"params": a}, {"params": [b], "weight_decay": 0.0}], lr=0.5, weight_decay=0.1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["params"] == [a] and optimizer.param_groups[1]["lr"] == 0.5
    a.grad, b.grad = Tensor(np.zeros(2)), Tensor(np.zeros(2))
    optimizer.step()
    np.testing.assert_allclose(a.numpy(), 0.95, rtol=1e-12)
    np.testing.assert_allclose(b.numpy(), 1.0, rtol=1e-12)


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
@pytest.mark.parametrize("by_group", [False, True])
def test_a_new_parameter_begins_anew_where_another_has_left(make: Callable, by_group: bool):
    """One that were freed would leave its address, its id, to one of many new ones, and a state that goes by the id would be taken for theirs."""
    body, head = parameters(), [nn.Parameter(np.ones(3)) for _ in range(20)]
    ours = make([{"params": body}, {"params": head}], lr=0.1)
    for step in range(3):
        give_gradients(body + head, step)
        ours.step()
    if by_group:
        ours.param_groups.pop()
    else:
        ours.param_groups[1]["params"] = []
    del head
    heads = [nn.Parameter(np.ones(3)) for _ in range(2000)]
    if by_group:
        ours.add_param_group({"params": heads})
    else:
        ours.param_groups[1]["params"] = heads
    twins = [nn.Parameter(p.data) for p in heads]
    give_gradients(heads, 5)
    give_gradients(twins, 5)
    ours.step()
    make(twins, lr=0.1).step()
    for p, q in zip(heads, twins, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_a_parameter_that_comes_back_has_its_state_as_in_pytorch(make: Callable):
    values, is_sgd = rng(1).standard_normal(4), isinstance(make(parameters()), optim.SGD)
    mine, its = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    options = {"lr": 0.1, "weight_decay": 0.02}
    reference = torch.optim.SGD([its], momentum=0.9, **options) if is_sgd else torch.optim.AdamW([its], **options)
    ours = make([mine], **options)
    for step in range(6):
        for either, p in ((ours, mine), (reference, its)):
            either.param_groups[0]["params"] = [] if step in (2, 3) else [p]
        grad = rng(10 + step).standard_normal(4)
        mine.grad, its.grad = Tensor(grad), torch.tensor(grad)
        ours.step()
        reference.step()
    assert_close(mine, its)


def test_wrong_parameters_say_what_is_wrong():
    p = nn.Parameter(np.ones(2))
    with pytest.raises(ValueError, match="there are no parameters"):
        optim.SGD([])
    with pytest.raises(ValueError, match=r"a parameter of shape \(2,\) is listed twice"):
        optim.SGD([p, p])
    with pytest.raises(ValueError, match="listed twice"):
        optim.SGD([{"params": [p]}, {"params": [p]}])
    with pytest.raises(TypeError, match="params is a Tensor; give a list"):
        optim.SGD(p)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="params is a set"):
        optim.SGD({p})
    with pytest.raises(TypeError, match="cannot optimise a ndarray"):
        optim.SGD([np.ones(2)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="was computed by"):
        optim.SGD([p * 2.0])
    with pytest.raises(ValueError, match="lr is -0.1; it cannot be negative"):
        optim.SGD([p], lr=-0.1)
    with pytest.raises(ValueError, match="lr is nan"):
        optim.AdamW([p], lr=float("nan"))
    for options, message in ((dict(lr="0.1"), "lr is '0.1'; give a number"), (dict(lr=Tensor(0.1)), r"lr is Tensor\(0.1\); give a number")):
        with pytest.raises(ValueError, match=message):
            optim.SGD([p], **options)
    optim.AdamW([p], lr=np.array(0.1), betas=np.array([0.9, 0.999]))  # type: ignore[arg-type]
    optim.AdamW([p], lr=np.float32(0.1), betas=(np.float32(0.9), np.float32(0.999)))  # type: ignore[arg-type]
    for betas in (0.9, (0.9, "0.999"), (0.9,), (0.9, 1.0)):
        with pytest.raises(ValueError, match="betas is .*; give two numbers from 0 to below 1"):
            optim.AdamW([p], betas=betas)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight_decay is -1"):
        optim.AdamW([{"params": [p], "weight_decay": -1}])
    with pytest.raises(ValueError, match="unknown option 'weight_deacy'; there are lr, betas, eps, weight_decay"):
        optim.AdamW([{"params": [p], "weight_deacy": 0.0}])
    with pytest.raises(TypeError, match="a parameter group is a dict with an entry 'params'"):
        optim.AdamW([{"lr": 0.1}])


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("weight_deacy", 0.0, r"unknown option 'weight_deacy'; there are lr, betas, eps, weight_decay \(is 'weight_decay' meant\?\)"),
        ("LR", 0.1, r"unknown option 'LR'; .* \(is 'lr' meant\?\)"),
        ("beta_1", 0.1, r"unknown option 'beta_1'; .* \(is 'betas' meant\?\)"),
        ("learning_rate", 0.1, "unknown option 'learning_rate'; there are lr"),
        ("momentum", 0.9, "unknown option 'momentum'; there are lr, betas, eps, weight_decay$"),
        ("amsgrad", True, "unknown option 'amsgrad'"),
        ("parameters", 3, "unknown option 'parameters'"),  # the number of parameters is saved under this name
        ("blocks", [1, 2], "an entry 'blocks' that is a list; there are the options lr, betas, eps, weight_decay, and what else it holds must be"),
        ("owner", None, "an entry 'owner' that is a NoneType"),
        (3, 0.1, "an entry called 3; give it a text as its name"),
    ],
)
def test_an_entry_that_looks_like_an_option_or_cannot_be_kept_is_refused(entry: Any, value: Any, message: str):
    optimizer = optim.AdamW(parameters())
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.add_param_group({"params": [nn.Parameter(np.ones(1))], entry: value})
    assert len(optimizer.param_groups) == 1


def test_a_group_may_have_entries_of_the_caller_s_own(tmp_path: Path):
    """Numbers go with the state, through a file too; a text stays with the program."""

    def begin(scale: float, **more: Any) -> optim.AdamW:
        params = parameters()
        group = {"params": params[:1], "name": "trunk", "lr_scale": scale, "weight_decay_scale": 1, "frozen": False, **more}
        return optim.AdamW([group, {"params": params[1:]}], lr=0.1)

    optimizer = begin(0.3)
    assert optimizer.param_groups[0]["name"] == "trunk" and "name" not in optimizer.param_groups[1]
    run(optimizer, list(optimizer._parameters()), range(2))
    state = optimizer.state_dict()
    assert state["groups.0.lr_scale"] == 0.3 and "groups.0.name" not in state and "groups.1.lr_scale" not in state
    save_state(tmp_path / "state.safetensors", state, {})
    loaded, _ = load_state(tmp_path / "state.safetensors")
    other = begin(0.7, name="head", depth=5)
    other.load_state_dict(loaded)
    assert {key: other.param_groups[0][key] for key in ("name", "lr_scale", "weight_decay_scale", "frozen", "depth")} == {
        "name": "head",
        "lr_scale": 0.3,
        "weight_decay_scale": 1,
        "frozen": False,
        "depth": 5,  # a state from before there was such an entry
    }
    assert other.param_groups[0]["frozen"] is False
    with pytest.raises(ValueError, match=r"unexpected groups\.0\.frozen"):
        optim.AdamW([{"params": parameters()[:1]}, {"params": parameters()[1:]}]).load_state_dict(state)
    with pytest.raises(ValueError, match=r"groups\.0\.lr_scale has shape \(2,\), here \(\)"):
        other.load_state_dict({**state, "groups.0.lr_scale": np.ones(2)})
    assert copy.deepcopy(other).param_groups[0]["name"] == "head"


def test_a_generator_that_was_used_up_is_noticed():
    params = nn.Linear(2, 2).parameters()
    list(params)
    with pytest.raises(ValueError, match="already used up"):
        optim.SGD(params)


# --- copies

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


@pytest.mark.parametrize("make", [*BOTH, lambda params, **options: optim.SGD(params, **options)], ids=["adamw", "momentum", "sgd"])
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_has_its_state_and_goes_on_by_itself(make: Callable, way: str):
    """Of a parameter that is updated alone, of small ones, and of one that has no state yet."""
    params = [*parameters(), nn.Parameter(rng(9).standard_normal(5000)), nn.Parameter(np.ones(2))]
    first = make([{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}], lr=0.1)
    for step in range(5):
        give_gradients(params[:-1], step)
        first.step()
    copies, second = COPIES[way]((params, first))
    before = first.state_dict()
    give_gradients(copies, 5)
    second.step()
    assert all(np.array_equal(value, before[name]) for name, value in first.state_dict().items())
    give_gradients(params, 5)
    first.step()
    for p, q in zip(params, copies, strict=True):
        assert p is not q
        np.testing.assert_array_equal(q.numpy(), p.numpy())
    ours, theirs = second.state_dict(), first.state_dict()
    assert list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


# --- saving


def run(optimizer: optim.Optimizer, params: list[Tensor], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        if step % 2:
            params[1].grad = None
        optimizer.step()


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
@pytest.mark.parametrize("steps", [0, 4])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(make: Callable, steps: int, tmp_path: Path):
    def groups(params: list[Tensor]) -> list[dict]:
        return [{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.0}]

    unbroken = parameters()
    optimizer = make(groups(unbroken), lr=0.1, weight_decay=0.1)
    run(optimizer, unbroken, range(steps))
    optimizer.param_groups[0]["lr"] = 0.05
    save_state(tmp_path / "optimizer.safetensors", optimizer.state_dict())
    resumed = [nn.Parameter(p.data) for p in unbroken]
    other = make(groups(resumed), lr=0.3)
    other.load_state_dict(load_state(tmp_path / "optimizer.safetensors")[0])
    assert [{**group, "params": 0} for group in other.param_groups] == [{**group, "params": 0} for group in optimizer.param_groups]
    run(optimizer, unbroken, range(steps, 9))
    run(other, resumed, range(steps, 9))
    for p, q in zip(unbroken, resumed, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
    ours, theirs = optimizer.state_dict(), other.state_dict()
    assert list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_a_state_of_before_the_first_step_is_that_of_a_new_optimiser(make: Callable):
    params = parameters()
    optimizer = make(params, lr=0.1)
    start = optimizer.state_dict()
    run(optimizer, params, range(2))
    optimizer.load_state_dict(start)
    twins = [nn.Parameter(p.data) for p in params]
    run(optimizer, params, range(2, 4))
    run(make(twins, lr=0.1), twins, range(2, 4))
    assert all(np.array_equal(p.numpy(), q.numpy()) for p, q in zip(params, twins, strict=True))


def test_state_is_a_copy():
    params = parameters()
    optimizer = optim.AdamW(params)
    run(optimizer, params, range(1))
    state = optimizer.state_dict()
    before = {name: value.copy() for name, value in state.items()}
    run(optimizer, params, range(1, 3))
    assert all(np.array_equal(state[name], before[name]) for name in state)
    optimizer.load_state_dict(state)
    run(optimizer, params, range(3, 5))
    assert all(np.array_equal(state[name], before[name]) for name in state)


def test_a_state_that_does_not_fit_lists_everything_and_changes_nothing():
    params = parameters()
    optimizer = optim.AdamW(params, lr=0.1)
    run(optimizer, params, range(2))
    before = optimizer.state_dict()
    state = {**before, "state.0.exp_avg": np.zeros(3), "state.9.step": np.array(3), "groups.0.lr": np.array(9.0)}
    del state["state.1.step"], state["groups.0.eps"]
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(state)
    for part in ("state.0.exp_avg has shape (3,), here (3, 4)", "unexpected state.9.step", "missing state.1.step", "missing groups.0.eps"):
        assert part in str(caught.value)
    after = optimizer.state_dict()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    with pytest.raises(ValueError, match="group 0 has 3 parameters, here 2"):
        optim.AdamW(params[:2]).load_state_dict(before)
    with pytest.raises(ValueError, match="group 1 has no parameters, here 1"):
        optim.AdamW([{"params": params[:2]}, {"params": params[2:]}]).load_state_dict(before)


def test_a_state_with_options_or_counters_out_of_range_lists_everything_and_changes_nothing():
    params = parameters()
    optimizer = optim.AdamW([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    run(optimizer, params, range(2))
    before = optimizer.state_dict()
    wrong = {
        "groups.0.lr": (np.array(-5.0), "group 0: lr is -5.0; it cannot be negative"),
        "groups.0.weight_decay": (np.array(np.nan), "group 0: weight_decay is nan; it cannot be negative"),
        "groups.0.betas": (np.array([0.9, 0.99, 0.999]), "groups.0.betas has shape (3,), here (2,)"),
        "groups.0.parameters": (np.array([2, 2]), "group 0 has [2, 2] parameters, here 2"),
        "groups.0.initial_lr": (np.array([0.1]), "groups.0.initial_lr has shape (1,), here ()"),
        "groups.1.lr": (np.array([0.1, 0.2]), "groups.1.lr has shape (2,), here ()"),
        "groups.1.betas": (np.array([0.9, 1.0]), "group 1: betas is (0.9, 1.0); give two numbers from 0 to below 1"),
        "groups.1.eps": (np.array("small"), "groups.1.eps has dtype <U5, not numbers"),
        "groups.1.initial_lr": (np.array(-1.0), "group 1: initial_lr is -1.0; it cannot be negative"),
        "state.0.step": (np.array(-1), "state.0.step is -1, not a whole number from 0 to 2147483647"),
        "state.1.step": (np.array(np.nan), "state.1.step is nan, not a whole number"),
        "state.1.exp_avg": (np.full(5, "x"), "state.1.exp_avg has dtype <U1, not numbers"),
        "state.2.step": (np.array(1.5), "state.2.step is 1.5, not a whole number"),
    }
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict({**before, **{name: value for name, (value, _) in wrong.items()}})
    for _, said in wrong.values():
        assert said in str(caught.value)
    with pytest.raises(ValueError, match="state.0.step is 2147483648, not a whole number from 0 to 2147483647"):
        optimizer.load_state_dict({**before, "state.0.step": np.array(2**31)})
    optimizer.load_state_dict({**before, "state.0.step": np.array(0)})
    assert optimizer.state_dict()["state.0.step"] == 0
    optimizer.load_state_dict(before)
    after = optimizer.state_dict()
    assert list(after) == list(before) and all(np.array_equal(after[name], before[name]) for name in before)


def test_a_state_of_sgd_is_checked_too():
    optimizer = optim.SGD(parameters(), momentum=0.9, nesterov=True)
    state = {**optimizer.state_dict(), "groups.0.momentum": np.array(-0.5), "groups.0.dampening": np.array(0.1)}
    with pytest.raises(ValueError, match="momentum is -0.5; it cannot be negative.*nesterov needs a momentum and no dampening, not momentum -0.5"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["momentum"] == 0.9 and optimizer.param_groups[0]["dampening"] == 0.0


@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_small_parameters_are_updated_end_to_end_to_the_same_bits(make: Callable, monkeypatch: pytest.MonkeyPatch):
    """Of two groups, of two dtypes, one that had no gradient in the first step, one larger than those put together; gradients are only read.

    What is remembered of each is an array of its own: a part of the long one would keep that in memory.
    """
    shapes, results, calls = [(3, 4), (5,), (), (0,), (2, 3), (7, 3), (4,)], [], []
    for limit in (0, 12):
        monkeypatch.setattr(blocks, "SMALL", limit)
        params = [nn.Parameter(rng(k).standard_normal(shape).astype(np.float64 if k == 4 else np.float32)) for k, shape in enumerate(shapes)]
        optimizer = make([{"params": params[:3]}, {"params": params[3:], "lr": 0.3}], lr=0.1, weight_decay=0.2)
        monkeypatch.setattr(optimizer, "_update", lambda *arguments, update=optimizer._update, limit=limit: (calls.append(limit), update(*arguments)))
        for step in range(3):
            give_gradients(params, step)
            for p in params:
                p.grad.data.flags.writeable = False
            if step == 0:
                params[1].grad = None
            optimizer.step()
        remembered = [value for state in optimizer._state.values() for value in state.values() if isinstance(value, np.ndarray)]
        assert len(remembered) >= len(params) and all(value.base is None for value in remembered)
        results.append([p.numpy().copy() for p in params] + list(optimizer.state_dict().values()))
    assert calls.count(0) == 20 and calls.count(12) == 14  # the first group: 1, 2, 2 calls, the second 3 (one a dtype, one large) in each step
    for together, alone in zip(*results, strict=True):
        np.testing.assert_array_equal(together, alone)


# --- optimisers of one's own


class Lars(optim.Optimizer):
    """A step whose length depends on the whole parameter, so that parameters cannot be updated end to end."""

    def __init__(self, params: Any, **options: Any):
        super().__init__(params, {"lr": 0.1, **options})

    def _new_state(self, parameter: Tensor, group: Any) -> dict[str, Any]:
        return {"step": 0, "largest": np.zeros(parameter.shape[:1], parameter.dtype)}

    def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Any) -> None:
        state["step"] += 1
        state["largest"][...] = np.maximum(state["largest"], np.abs(grad).reshape(*grad.shape[:1], -1).max(-1) if grad.ndim else abs(grad))
        param -= group["lr"] * np.linalg.norm(param) / np.linalg.norm(grad) * grad


def test_an_optimiser_sees_one_parameter_at_a_time_unless_it_is_elementwise():
    params = parameters()
    before = [p.numpy().astype(np.float64) for p in params]
    ours = Lars(params)
    give_gradients(params, 1)
    ours.step()
    for p, start in zip(params, before, strict=True):
        assert p.grad is not None
        g = p.grad.numpy().astype(np.float64)
        np.testing.assert_allclose(p.numpy(), start - 0.1 * np.linalg.norm(start) / np.linalg.norm(g) * g, rtol=1e-6)
    again = Lars(parameters())
    again.load_state_dict(ours.state_dict())
    assert all((again.state_dict()[name] == value).all() for name, value in ours.state_dict().items())
    assert ours.state_dict()["state.0.largest"].shape == (3,)


@pytest.mark.parametrize("odd", [False, True])
def test_small_parameters_whose_states_count_differently_are_not_updated_end_to_end(odd: bool):
    """Whatever they call what they count, also in truth values."""

    class Decaying(optim.Optimizer):
        _elementwise = True

        def _new_state(self, parameter: Tensor, group: Any) -> dict[str, Any]:
            return {"times": 0}

        def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Any) -> None:
            param -= group["lr"] / (1 + state["times"]) * grad
            state["times"] = not state["times"] if odd else state["times"] + 1

    often, seldom = params = [nn.Parameter(np.zeros(2)) for _ in range(2)]
    optimizer = Decaying(params, {"lr": 0.1})
    for step in range(3):
        often.grad = Tensor(np.ones(2))
        seldom.grad = Tensor(np.ones(2)) if step else None
        optimizer.step()
    np.testing.assert_allclose(often.numpy(), -0.1 * (1 + 1 / 2 + 1 / (1 if odd else 3)), rtol=1e-12)
    np.testing.assert_allclose(seldom.numpy(), -0.1 * (1 + 1 / 2), rtol=1e-12)


def test_what_an_optimiser_of_ones_own_cannot_keep():
    class Wrong(Lars):
        def _new_state(self, parameter: Tensor, group: Any) -> dict[str, Any]:
            return {"norm": 0.0}

    params = parameters()
    give_gradients(params, 1)
    with pytest.raises(TypeError, match=r"Wrong: the state 'norm' is a float; give whole numbers \(int\) and arrays"):
        Wrong(params).step()
    joined = type("Joined", (Lars,), {"_elementwise": True})(params)
    message = r"Joined: the state 'largest' of a parameter of shape \(3, 4\) has shape \(3,\); with _elementwise give an array of the parameter's"
    with pytest.raises(ValueError, match=message):
        joined.step()
    assert not joined._state

    class Late(Lars):
        def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Any) -> None:
            super()._update(param, grad, state, group)
            state.setdefault("sum", np.zeros_like(param))

    late = Late(params)
    assert not [name for name in late.state_dict() if name.startswith("state")]
    late.step()
    message = r"state_dict: Late keeps sum of a parameter of shape {}, could not load it; make it in _new_state, whatever the options, or"
    with pytest.raises(TypeError, match=message.format(r"\(3, 4\)")):
        late.state_dict()
    flat = type("Flat", (Late,), {"_optional_state": ("sum", "largest")})(params)
    flat.step()
    assert "state.0.sum" in flat.state_dict()
    flat._state[params[1]]["sum"] = np.zeros(2)
    with pytest.raises(TypeError, match=message.format(r"\(5,\)").replace("Late", "Flat")):
        flat.state_dict()
    named = Lars(params, mode="fast")
    named.step()
    with pytest.raises(TypeError, match="state_dict: Lars's option mode is 'fast'; only numbers and tuples of them are saved"):
        named.state_dict()


def test_a_copy_keeps_states_of_another_dtype_than_their_parameter_s():
    class Exact(Lars):
        def _new_state(self, parameter: Tensor, group: Any) -> dict[str, Any]:
            return {**super()._new_state(parameter, group), "sum": np.zeros(parameter.shape)}

        def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Any) -> None:
            super()._update(param, grad, state, group)
            state["sum"] += grad

    params = parameters()
    pair = params, Exact(params)
    for seed in range(2):
        give_gradients(pair[0], seed)
        pair[1].step()
        pair = copy.deepcopy(pair)
    give_gradients(pair[0], 2)
    pair[1].step()
    assert pair[1].state_dict()["state.0.sum"].dtype == np.float64


def test_whole_numbers_in_a_state_follow_no_dtype():
    """Nor when they are loaded. A buffer that an update makes besides those of `_new_state` does."""

    class Counting(Lars):
        _optional_state = ("sum",)

        def _new_state(self, parameter: Tensor, group: Any) -> dict[str, Any]:
            return {**super()._new_state(parameter, group), "signs": np.zeros(parameter.shape, np.int64)}

        def _update(self, param: Any, grad: Any, state: dict[str, Any], group: Any) -> None:
            super()._update(param, grad, state, group)
            state["signs"] += grad > 0
            state.setdefault("sum", np.zeros_like(param))
            state["sum"] += grad

    params = parameters()
    optimizer = Counting(params)
    for seed in range(2):
        give_gradients(params, seed)
        optimizer.step()
        for p in params:
            p.data = p.data.astype(np.float64)
    state = optimizer.state_dict()
    assert state["state.0.signs"].dtype == np.int64 and state["state.0.sum"].dtype == state["state.0.largest"].dtype == np.float64
    optimizer.load_state_dict(state)
    assert all(value.dtype == state[name].dtype and np.array_equal(value, state[name]) for name, value in optimizer.state_dict().items())


@pytest.mark.parametrize("parts", [(None, None), (slice(-1), slice(1, None))], ids=["the same", "overlapping"])
@pytest.mark.parametrize("size", [3, 5000])
@pytest.mark.parametrize("make", BOTH, ids=["adamw", "sgd"])
def test_parameters_of_one_array_are_updated_one_after_the_other(make: Callable, size: int, parts: tuple):
    """As PyTorch does, which the decay of the weights tells from any other order."""
    values = rng(1).uniform(1, 2, size)
    w, theirs = Tensor(values), torch.tensor(values)
    pairs = [tuple((x if part is None else x[part]).detach().requires_grad_() for x in (w, theirs)) for part in parts]
    for seed, (p, q) in enumerate(pairs):
        grad = rng(10 + seed).uniform(-3, 3, p.shape)
        p.grad, q.grad = Tensor(grad), torch.tensor(grad)
    ours, twins = zip(*pairs, strict=True)
    is_sgd = isinstance(make([nn.Parameter(np.ones(1))]), optim.SGD)
    reference = torch.optim.SGD(twins, lr=0.1, momentum=0.9) if is_sgd else torch.optim.AdamW(twins, lr=0.1, weight_decay=0.5)
    options = {"lr": 0.1} if is_sgd else {"lr": 0.1, "weight_decay": 0.5}
    make(list(ours), **options).step()
    reference.step()
    assert_close(w, theirs)
