"""Module: what is registered, in PyTorch's order and under its names, and that state goes in and out whole or not at all."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import minigrad
from minigrad import Tensor, nn
from minigrad.modes import is_grad_enabled, mode
from minigrad.pth import Unread
from minigrad.pytorch_names import OF_MODULES


class Block(nn.Module):
    """A parameter, a buffer and children, assigned in mixed order."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.scale = nn.Parameter(np.arange(width, dtype=np.float32))
        self.register_buffer("seen", Tensor(np.array(0, np.int64)))
        self.norm = nn.BatchNorm2d(width)
        self.note = "not registered"
        self.shift = nn.Parameter(np.zeros(width, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x)) * self.scale + self.shift


class TorchBlock(torch.nn.Module):
    """The same in PyTorch."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.first = torch.nn.Linear(width, width)
        self.scale = torch.nn.Parameter(torch.arange(float(width)))
        self.register_buffer("seen", torch.tensor(0))
        self.norm = torch.nn.BatchNorm2d(width)
        self.shift = torch.nn.Parameter(torch.zeros(width))


def same_state(left: dict, right: dict) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left)


# --- names and order


def test_names_order_shapes_and_dtypes_are_pytorchs():
    ours, theirs = nn.Sequential(Block(), Block(2)), torch.nn.Sequential(TorchBlock(), TorchBlock(2))
    reference = {name: (tuple(value.shape), str(value.numpy().dtype)) for name, value in theirs.state_dict().items()}
    found = {name: (value.shape, str(value.dtype)) for name, value in ours.state_dict().items()}
    assert list(found.items()) == list(reference.items())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in theirs.named_buffers()]
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    assert [name for name, _ in ours.named_parameters("model")] == [name for name, _ in theirs.named_parameters("model")]


OURS = {name: getattr(nn, name) for name in nn.__all__ if hasattr(torch.nn, name) and name not in ("Parameter", "Sequential", "init")}
OURS |= {f"init.{name}": getattr(nn.init, name) for name in nn.init.__all__ if name != "skipped"}
OURS |= {
    f"Module.{name}": method for name, method in vars(nn.Module).items() if not name.startswith("_") and name not in ("forward", "to", *OF_MODULES)
}


@pytest.mark.parametrize("name", OURS)
def test_arguments_are_called_as_pytorchs_and_come_in_its_order(name: str):
    theirs, ours = (inspect.signature(function).parameters for function in (operator.attrgetter(name)(torch.nn), OURS[name]))
    places = [list(theirs).index(argument) for argument in ours]
    assert places == sorted(places)
    assert {argument: parameter.default for argument, parameter in ours.items()} == {argument: theirs[argument].default for argument in ours}


def test_attributes_are_what_was_assigned():
    block = Block()
    assert block.note == "not registered"
    assert isinstance(block.first, nn.Linear) and block.first.weight.requires_grad
    assert not block.seen.requires_grad
    assert list(block.children()) == [block.first, block.norm]


def test_only_leaf_tensors_that_require_grad_are_parameters():
    block = Block()
    names = [name for name, _ in block.named_parameters()]
    block.constant = Tensor(np.ones(3))
    block.computed = block.scale * 2.0
    assert [name for name, _ in block.named_parameters()] == names
    block.extra = Tensor(np.ones(3), requires_grad=True)
    assert [name for name, _ in block.named_parameters()][:3] == ["scale", "shift", "extra"]


def test_shared_parameters_and_modules_are_listed_once_but_saved_under_each_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = self.a
            self.c = nn.Linear(2, 2)
            self.c.weight = self.a.weight

    tied = Tied()
    assert [name for name, _ in tied.named_parameters()] == ["a.weight", "a.bias", "c.bias"]
    assert [name for name, _ in tied.named_modules()] == ["", "a", "c"]
    assert len(list(tied.children())) == 2
    assert list(tied.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"]


def test_a_module_registers_anew_where_its_kind_changes_and_in_place_where_not():
    block = Block()
    block.scale = nn.Parameter(np.ones(5, np.float32))
    assert [name for name, _ in block.named_parameters()][:2] == ["scale", "shift"]
    block.first = nn.Parameter(np.ones(1, np.float32))  # a child gives way to a parameter, which is then the last
    assert [name for name, _ in block.named_parameters()] == ["scale", "shift", "first", "norm.weight", "norm.bias"]
    assert [name for name, _ in block.named_children()] == ["norm"]
    block.seen = Tensor(np.array(5))
    assert int(block.state_dict()["seen"]) == 5


def test_deleted_and_none_attributes_are_gone():
    block = Block()
    del block.scale
    block.first = None
    block.seen = None
    assert list(block.state_dict()) == ["shift", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]
    assert not hasattr(block, "scale")
    block.first = nn.Linear(1, 1)
    assert "first.weight" in block.state_dict()
    with pytest.raises(AttributeError, match="scale"):
        del block.scale


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "scale",
            Tensor(np.ones(3)),
            "'scale' is a parameter and takes a leaf Tensor with requires_grad=True, or None, not a Tensor without gradient",
        ),
        ("scale", np.ones(3), "not a ndarray"),
        ("first", 3, "'first' is a module and takes a Module, or None, not a int"),
        ("seen", 3, "'seen' is a buffer"),
    ],
)
def test_a_registered_name_does_not_silently_lose_its_kind(name: str, value: object, message: str):
    block = Block()
    before = block.state_dict()
    with pytest.raises(TypeError, match=message):
        setattr(block, name, value)
    assert same_state(block.state_dict(), before)


def test_a_computed_tensor_cannot_replace_a_parameter():
    block = Block()
    with pytest.raises(TypeError, match="a Tensor that was computed"):
        block.scale = block.scale * 2.0


def test_an_input_that_became_a_parameter_can_be_kept_in_the_ways_the_error_names():
    class Keeps(nn.Module):
        def __init__(self, keep: Callable[[Tensor], object]):
            super().__init__()
            self.keep = keep

        def forward(self, x: Tensor) -> Tensor:
            self.x = self.keep(x)
            return x * 2.0

    leaf, plain = Tensor([1.0, -2.0], requires_grad=True), Tensor([3.0, 4.0])
    module = Keeps(lambda x: x)
    module(leaf)
    for later in (plain, leaf * 1.0):
        with pytest.raises(TypeError, match=r"'x' is a parameter .* became one when .*; delete it .*, and keep inputs as x.detach\(\) or \[x\]"):
            module(later)
    for keep in (lambda x: x.detach(), lambda x: [x]):
        del module.x
        module.keep = keep
        for x in (leaf, plain, leaf * 1.0):
            module(x)
        assert not list(module.parameters())
    (module(leaf) * Tensor([5.0, 7.0])).sum().backward()
    np.testing.assert_array_equal(module.x[0].grad.numpy(), [10.0, 14.0])


def test_a_buffer_takes_the_detached_value_of_what_was_computed_with_gradient():
    block, x = Block(), Tensor(np.ones((2, 3)), requires_grad=True)
    block.register_buffer("mean", Tensor(np.zeros(3)))
    mean = 0.9 * block.mean + 0.1 * x.mean(0)
    with pytest.raises(TypeError, match=r"'mean' is a buffer .* not a Tensor that was computed with gradient; assign its .detach\(\)$"):
        block.mean = mean
    block.mean = mean.detach()
    np.testing.assert_allclose(block.state_dict()["mean"], [0.1] * 3, rtol=1e-12)


class Scaled(nn.Module):
    """Its properties stand for what it keeps elsewhere."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.log_scale = nn.Parameter([0.0])

    @property
    def p(self) -> float:
        return self.drop.p

    @p.setter
    def p(self, value: float) -> None:
        self.drop.p = value

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()

    @scale.setter
    def scale(self, value: Tensor) -> None:
        if value.item() <= 0:
            raise ValueError("a scale is positive")
        self.log_scale = nn.Parameter(value.log())

    @property
    def layer(self) -> nn.Module:
        return self.drop


def test_a_property_takes_what_is_assigned_to_it():
    module = Scaled()
    module.p = 0.75
    assert module.drop.p == 0.75
    module.scale = nn.Parameter([np.e])
    np.testing.assert_allclose(module.log_scale.numpy(), [1.0], rtol=1e-6)
    with pytest.raises(ValueError, match="positive"):
        module.scale = nn.Parameter([-1.0])
    for value in (nn.ReLU(), 3):
        with pytest.raises(AttributeError, match="layer"):
            module.layer = value
    with pytest.raises(AttributeError, match="layer"):
        del module.layer
    assert list(module.state_dict()) == ["log_scale"] and list(module.children()) == [module.drop]


def test_descriptors_slots_and_the_class_are_assigned_as_in_any_object():
    class Checked:
        def __set_name__(self, owner: type, name: str) -> None:
            self.name = name

        def __set__(self, instance: nn.Module, value: object) -> None:
            assert value is not None
            instance.__dict__[self.name] = value

        def __get__(self, instance: nn.Module, owner: type) -> object:
            return instance.__dict__[self.name]

    class Plain(nn.Module):
        __slots__ = ("note",)
        weight = Checked()

    module = Plain()
    module.note = 5
    assert module.note == 5
    module.weight = nn.Parameter([1.0])
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    with pytest.raises(AssertionError):
        module.weight = None
    other = nn.ReLU()
    other.__class__ = nn.GELU
    assert type(other) is nn.GELU and isinstance(other(Tensor([1.0])), Tensor)


def test_assigning_before_super_init_says_so():
    class Early(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(1, 1)
            super().__init__()

    with pytest.raises(AttributeError, match=r"Early\.__init__ sets 'fc' before it calls super\(\).__init__\(\)"):
        Early()


def test_names_that_would_be_ambiguous_are_refused():
    block = Block()
    with pytest.raises(KeyError, match="dot"):
        setattr(block, "a.b", nn.Parameter([1.0]))
    with pytest.raises(KeyError, match="dot"):
        block.register_buffer("a.b", Tensor([1.0]))
    with pytest.raises(KeyError, match="'' cannot name"):
        block.register_buffer("", Tensor([1.0]))
    with pytest.raises(KeyError, match="already has an attribute 'note'"):
        block.register_buffer("note", Tensor([1.0]))
    with pytest.raises(TypeError, match="requires grad"):
        block.register_buffer("fresh", nn.Parameter([1.0]))
    with pytest.raises(TypeError, match="ndarray"):
        block.register_buffer("fresh", np.ones(3))  # type: ignore[arg-type]
    block.register_buffer("fresh", Tensor([1.0]))
    block.register_buffer("fresh", Tensor([2.0]))  # a buffer's name may be given to another, as in PyTorch
    assert block.fresh.item() == 2


def test_forward_must_be_defined():
    with pytest.raises(NotImplementedError, match=r"Module does not define forward"):
        nn.Module()(1)


# --- switches


def test_train_eval_freeze_zero_grad_and_apply():
    model = nn.Sequential(Block(), Block())
    assert all(module.training for module in model.modules())
    assert model.eval() is model and not any(module.training for module in model.modules())
    assert model.train() is model and all(module.training for module in model.modules())

    for parameter in model.parameters():
        parameter.grad = Tensor(np.ones(parameter.shape, np.float32))
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())

    names = list(model.state_dict())
    assert model.requires_grad_(False) is model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert list(model.state_dict()) == names and len(list(model.parameters())) == 12
    model.requires_grad_()
    assert all(parameter.requires_grad for parameter in model.parameters())

    visited: list[str] = []
    model.apply(lambda module: visited.append(type(module).__name__))
    assert visited == ["Linear", "BatchNorm2d", "Block"] * 2 + ["Sequential"]


# --- to


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("f8"), float])
def test_to_dtype_in_place(dtype: object):
    block = Block()
    parameters, before = list(block.parameters()), block.state_dict()
    block.scale.grad = Tensor(np.ones(3, np.float32))
    assert block.to(dtype=dtype) is block
    assert all(new is old for new, old in zip(block.parameters(), parameters, strict=True))
    state = block.state_dict()
    assert all(value.dtype == (np.int64 if name.endswith(("seen", "tracked")) else np.float64) for name, value in state.items())
    assert all(np.array_equal(state[name], before[name]) for name in state)
    assert block.scale.grad is not None and block.scale.grad.dtype == np.float64


def test_to_without_change_keeps_the_arrays_and_bad_requests_change_nothing():
    block = Block()
    array = block.scale.data
    block.to("cpu").to(device="cpu", dtype=np.float32)
    assert block.scale.data is array
    with pytest.raises(TypeError, match="int32; give a floating-point type"):
        block.to(dtype=np.int32)
    with pytest.raises(ValueError, match="no device 'moon'"):
        block.to(device="moon", dtype=np.float64)
    assert block.scale.data is array


def test_to_invalidates_graphs_made_before():
    block = nn.Linear(3, 2)
    y = block(Tensor(np.ones((4, 3), np.float32), requires_grad=True))
    block.to(dtype=np.float64)
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward(np.ones((4, 2), np.float32))


# --- state


def test_state_dict_is_a_contiguous_copy():
    block = Block()
    block.first.weight.data = np.asfortranarray(block.first.weight.data)
    state = block.state_dict()
    assert all(type(value) is np.ndarray and value.flags.c_contiguous and value.flags.owndata for value in state.values())
    assert state["seen"].shape == () and state["seen"].dtype == np.int64
    before = block.scale.numpy().copy()
    state["scale"][:] = 99
    np.testing.assert_array_equal(block.scale.numpy(), before)


def test_load_writes_in_place_casts_and_counts_the_write():
    source, target = Block().to(dtype=np.float64), Block()
    source.seen = Tensor(np.array(12))
    parameters, versions = list(target.parameters()), [parameter.version[0] for parameter in target.parameters()]
    difference = target.load_state_dict(source.state_dict())
    assert difference == ([], [])
    assert all(new is old and new.version[0] > version for new, old, version in zip(target.parameters(), parameters, versions, strict=True))
    assert same_state(target.state_dict(), {name: value.astype(target.state_dict()[name].dtype) for name, value in source.state_dict().items()})
    assert int(target.state_dict()["seen"]) == 12


def test_no_block_is_opened_that_an_interrupt_could_keep_from_closing(monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C as `with no_grad():` is left, before `__exit__` has done anything."""
    monkeypatch.setattr(mode, "__exit__", lambda *_: pytest.fail("a block was opened"))
    block = Block()
    block.load_state_dict({name: value + 1 for name, value in block.state_dict().items()})
    block.to(dtype=np.float64)
    assert is_grad_enabled() and block.scale.dtype == np.float64 and block.scale.numpy().tolist() == [1, 2, 3]
    assert all(p.requires_grad and p.node is None for p in block.parameters())


def test_load_takes_tensors_and_half_precision():
    target = nn.Linear(2, 1)
    target.load_state_dict({"weight": Tensor(np.array([[1.5, 2.5]])), "bias": np.array([3], np.float16)})
    np.testing.assert_array_equal(target.weight.numpy(), [[1.5, 2.5]])
    assert target.bias is not None and target.bias.dtype == np.float32 and target.bias.item() == 3
    other = nn.Linear(2, 1)
    target.load_state_dict(dict(other.named_parameters()))  # which require grad
    np.testing.assert_array_equal(target.weight.numpy(), other.weight.numpy())


def test_a_failed_load_lists_everything_and_changes_nothing():
    block = Block()
    before = block.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    del state["shift"], state["norm.bias"]
    state |= {
        "scale": np.ones(4),
        "first.weight": np.ones((3, 3, 1)),
        "first.extra": np.ones(1),
        "other": np.ones(1),
        "norm.weight": np.array("text"),
    }
    with pytest.raises(ValueError) as caught:
        block.load_state_dict(state)
    message = str(caught.value)
    for part in (
        "missing shift of shape (3,)",
        "missing norm.bias of shape (3,)",
        "unexpected first.extra",
        "unexpected other",
        "scale has shape (4,), here (3,)",
        "first.weight has shape (3, 3, 1), here (3, 3)",
        "norm.weight is ndarray, not an array of numbers",
    ):
        assert part in message
    assert "\n" not in message
    assert same_state(block.state_dict(), before)


def test_what_pytorch_has_and_module_has_not_is_offered_where_a_module_has_it():
    """Completion: see tests/test_pytorch_names.py for what is said where it is asked for."""
    block = Block()
    assert not OF_MODULES.keys() & set(dir(block)) and {"forward", "scale", "to"} <= set(dir(block))
    block.half = nn.Linear(1, 1)
    assert OF_MODULES.keys() & set(dir(block)) == {"half"}
    with pytest.raises(AttributeError, match="^Block has no attribute 'cuda', which PyTorch's has; write `model.to"):
        block.cuda


def test_of_many_problems_the_first_of_each_kind_are_listed():
    names = [f"layer{number}" for number in range(200)]
    block = nn.Module()
    for name in names:
        setattr(block, name, nn.Parameter(np.ones(2)))
    state = {name.replace("layer", "part") if number < 100 else name: np.ones(3) for number, name in enumerate(names)}
    with pytest.raises(ValueError) as caught:
        block.load_state_dict(state)
    message = str(caught.value)
    kinds = ["missing layer{} of shape (2,)", "unexpected part{}", "layer1{:02} has shape (3,), here (2,)"]
    listed = "; ".join(kind.format(number) for kind in kinds for number in range(3))
    assert message == f"load_state_dict: Module cannot take these 200 entries: {listed}; and 291 more"
    ten = {**{name: np.ones(2) for name in names[5:]}, **{name + "x": np.ones(2) for name in names[:5]}}
    with pytest.raises(ValueError, match=r"entries: missing layer0 .*; missing layer4 .*; unexpected layer0x; .*; unexpected layer4x$"):
        block.load_state_dict(ten)
    nine = {name: np.ones(2) for name in [*names[1:], *(f"more{number}" for number in range(9))]}
    with pytest.raises(ValueError, match=r"entries: missing layer0 of shape \(2,\); unexpected more0; .*; unexpected more7; unexpected more8$"):
        block.load_state_dict(nine)
    with pytest.raises(ValueError, match=r"; missing layer4 .*; unexpected layer4x; and 4 more$"):
        block.load_state_dict({**ten, "a": np.ones(2), "b": np.ones(2), "c": np.ones(2), "d": np.ones(2)})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_names_that_all_begin_with_something_else_get_the_remedy(prefix: str):
    model, wrapper = nn.Sequential(Block(), nn.Linear(3, 1)), nn.Module()
    state = {prefix + name: value + 1 for name, value in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        model.load_state_dict(state)
    message = str(caught.value)
    said = f"their names begin with '{prefix}', which those of the module do not; give "
    assert message.startswith(f"load_state_dict: Sequential cannot take these {len(state)} entries: {said}") and len(message) < 300
    model.load_state_dict(eval(message.partition("; give ")[2], {"state_dict": state}))
    assert same_state(model.state_dict(), {name.removeprefix(prefix): value for name, value in state.items()})
    wrapper.backbone = model
    with pytest.raises(ValueError) as caught:
        wrapper.load_state_dict({name.removeprefix(prefix): value * 2 for name, value in state.items()})
    message = str(caught.value)
    assert "entries: the names of the module begin with 'backbone.', which theirs do not; give " in message
    code = message.partition("; give ")[2].partition(", or load into that child")[0]
    wrapper.load_state_dict(eval(code, {"state_dict": model.state_dict()}))


def test_what_names_begin_with_ends_at_a_dot():
    alike = nn.Module()
    alike.layer_a, alike.layer_b = nn.Linear(1, 1), nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"their names begin with 'net\.', which"):
        alike.load_state_dict({f"net.{name}": value for name, value in alike.state_dict().items()})


def test_no_remedy_is_made_up():
    model = nn.Sequential(nn.Linear(2, 1))
    for state in ({"a.b": np.ones(1), "a.c": np.ones(1)}, {}, {3: np.ones(1)}, {"x.0.weight": np.ones(1), "0.bias": np.ones(1)}):
        with pytest.raises(ValueError, match=r"missing 0\.weight of shape \(1, 2\)"):
            model.load_state_dict(state)
    assert model.load_state_dict({"x.0.weight": np.ones((1, 2))}, strict=False).unexpected_keys == ["x.0.weight"]


def test_names_that_agree_by_chance_hide_no_other_problem():
    model, wrapper = nn.Sequential(Block(), nn.Linear(3, 1)), nn.Module()
    names = list(model.state_dict())
    half = (len(names) + 1) // 2
    for count, remedy in ((1, False), (half - 1, False), (half, True), (len(names), True)):
        state = {f"net.{name if number < count else f'other{number}'}": np.ones(1) for number, name in enumerate(names)}
        with pytest.raises(ValueError) as caught:
            model.load_state_dict(state)
        assert ("give {name.removeprefix('net.')" in str(caught.value)) is remedy and (f"missing {names[0]} " in str(caught.value)) is not remedy
        wrapper.net = model
        with pytest.raises(ValueError) as caught:
            wrapper.load_state_dict({name.removeprefix("net."): value for name, value in state.items()})
        assert ("give {'net.' + name" in str(caught.value)) is remedy and (f"missing net.{names[0]} " in str(caught.value)) is not remedy


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_one_level_below_gets_the_remedy(prefix: str):
    model = nn.Sequential(Block(), nn.Linear(3, 1))
    inner = {prefix + name: value for name, value in model.state_dict().items()}
    outer = {"args": {"lr": 1}, "optimizer": {"state": {}, 3: {}}, "model": inner, "epoch": 3}
    with pytest.raises(ValueError) as caught:
        model.load_state_dict(outer)
    said = "'model' is a mapping with the names of the module; give state_dict['model']"
    assert str(caught.value) == f"load_state_dict: Sequential cannot take these 4 entries: {said}"
    with pytest.raises(ValueError, match="missing .*; unexpected args; unexpected optimizer"):
        model.load_state_dict(outer | {"model": {f"other.{name}" if number else name: 0 for number, name in enumerate(inner)}})
    with pytest.raises(ValueError, match="unexpected model$"):
        nn.ReLU().load_state_dict({"model": {}})


def test_what_is_no_mapping_is_no_state():
    unread = "<a.Net, not read>; of a PyTorch module, save its state_dict()"
    for given, what in ([("weight", 1)], "a list"), (Unread("a.Net"), unread), (None, "a NoneType"), (nn.Linear(2, 1), "a Linear"):
        for strict in (True, False):
            with pytest.raises(TypeError) as caught:
                nn.Linear(2, 1).load_state_dict(given, strict)  # type: ignore[arg-type]
            assert str(caught.value) == f"load_state_dict: Linear takes a mapping of names to arrays, as state_dict() gives, and this is {what}"


def test_a_value_that_pth_has_not_read_is_shown_as_what_it_was():
    with pytest.raises(ValueError, match=r"weight is <numpy.x, not read>, not an array of numbers \(in PyTorch, save a tensor\)$"):
        nn.Linear(2, 1).load_state_dict({"weight": Unread("numpy.x"), "bias": [0.0]})


def test_load_of_pytorchs_tensors():
    target = nn.Linear(2, 1)
    target.load_state_dict({"weight": torch.tensor([[1.5, 2.5]]), "bias": torch.tensor([3.0])})
    np.testing.assert_array_equal(target.weight.numpy(), [[1.5, 2.5]])
    given = {"weight": torch.ones(1, 2, dtype=torch.bfloat16), "bias": torch.nn.Parameter(torch.ones(1))}
    message = r"weight is Tensor, .* \(give its .detach\(\).float\(\)\); bias is Parameter, .* \(give its .detach\(\).float\(\)\)"
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(given)
    with pytest.raises(ValueError, match=r"weight is Tensor, not an array of numbers$"):
        target.load_state_dict({"weight": torch.ones(1, 2, device="meta"), "bias": torch.ones(1)})
    target.load_state_dict({name: tensor.detach().float() for name, tensor in given.items()})
    np.testing.assert_array_equal(target.weight.numpy(), [[1.0, 1.0]])


@pytest.mark.parametrize("dtype", ["float64", np.float64])
def test_a_dtype_in_the_place_of_a_device(dtype: object):
    for thing in (nn.Linear(2, 1), Tensor([1.0])):
        with pytest.raises(ValueError, match=r"there is no device .*float64.* here; .*; give a dtype as dtype=\.\.\."):
            thing.to(dtype)  # type: ignore[arg-type]
        for name in (",", "3,(", "gpu"):
            with pytest.raises(ValueError, match=r"there is no device .* here; there is [^;]*$"):
                thing.to(name)


def test_load_not_strict_writes_what_fits_and_says_what_did_not():
    block = Block()
    difference = block.load_state_dict({"scale": np.full(3, 7.0), "other": np.ones(1)}, strict=False)
    assert difference.unexpected_keys == ["other"] and "shift" in difference.missing_keys and "scale" not in difference.missing_keys
    np.testing.assert_array_equal(block.scale.numpy(), [7, 7, 7])
    with pytest.raises(ValueError, match="shape"):  # a shape that differs is never passed over
        block.load_state_dict({"scale": np.ones(1)}, strict=False)


def test_load_after_a_forward_pass_is_noticed_by_backward():
    layer = nn.Linear(2, 2)
    y = layer(Tensor(np.ones((1, 2), np.float32), requires_grad=True))
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward(np.ones((1, 2), np.float32))


def test_state_goes_to_pytorch_and_back():
    ours, theirs = Block(), TorchBlock()
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    other = Block()
    other.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    assert same_state(other.state_dict(), ours.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_copies_are_whole_and_independent(duplicate):
    model = nn.Sequential(Block(), nn.Linear(3, 1))
    other = duplicate(model)
    assert same_state(other.state_dict(), model.state_dict())
    with minigrad.no_grad():
        next(iter(other.parameters())).copy_(5.0)
    other[0].added = nn.Parameter([1.0])
    assert not same_state(other.state_dict(), model.state_dict())
    assert "0.added" not in model.state_dict() and "0.added" in other.state_dict()


def test_a_shallow_copy_shares_tensors_and_has_attributes_of_its_own():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model.register_buffer("seen", Tensor([0.0]))
    names = list(model.state_dict())
    other = copy.copy(model)
    assert type(other) is nn.Sequential and other[0] is model[0]
    assert all(new is old for new, old in zip(other.parameters(), model.parameters(), strict=True))
    other.append(nn.ReLU())
    other.added = nn.Parameter([1.0])
    other.register_buffer("count", Tensor([0.0]))
    del other.seen
    setattr(other, "0", nn.GELU())
    assert list(model.state_dict()) == names and len(model) == 2 and len(list(model.parameters())) == 4
    assert list(other.state_dict()) == ["added", "count", "1.weight", "1.bias"] and len(other) == 3


def test_repr_is_pytorchs_tree():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, groups=1, bias=False), nn.ReLU())
            self.head = nn.Linear(4, 2)

    assert repr(Net()) == (
        "Net(\n  (stem): Sequential(\n    (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)\n"
        "    (1): ReLU()\n  )\n  (head): Linear(4, 2)\n)"
    )
    assert (
        "p=0.25" in repr(nn.Dropout(0.25)) and "eps=1e-06" in repr(nn.LayerNorm(4, eps=1e-6)) and "num_heads=2" in repr(nn.MultiHeadAttention(4, 2))
    )


@pytest.mark.parametrize("settings", ["", "size=3", "size=3\nname=x"])
def test_settings_in_a_repr_stand_where_pytorchs_do(settings: str):
    """On the line of the bracket where there is nothing else, and before the children where there are some."""

    def made(library: Any, *children: Any) -> Any:
        class Part(library.Module):
            def extra_repr(self) -> str:
                return settings

        part = Part()
        for number, child in enumerate(children):
            setattr(part, f"child{number}", child)
        return part

    ours, theirs = (made(library, made(library), made(library, made(library))) for library in (nn, torch.nn))
    assert repr(ours) == repr(theirs)


# --- containers


def test_module_list_and_sequential():
    layers = [nn.Linear(2, 2) for _ in range(3)]
    modules = nn.ModuleList(layers[:2])
    modules.append(layers[2])
    assert len(modules) == 3 and list(modules) == layers and modules[-1] is layers[2] and modules[-3] is layers[0] and list(modules[1:]) == layers[1:]
    assert list(modules.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    modules[0] = layers[2]
    assert modules[0] is layers[2] and len(modules) == 3
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"index {index} is out of range, there are 3"):
            modules[index]
    with pytest.raises(TypeError, match="element 0 is a int, not a Module$"):
        nn.ModuleList([1])  # type: ignore[list-item]
    for several, advice in ((layers, "modules"), (iter(layers), "modules"), ({"fc": layers[0]}, "modules.values()")):
        found = re.escape(f"element 0 is a {type(several).__name__}, not a Module; give them one by one, as in Sequential(*{advice})")
        with pytest.raises(TypeError, match=found):
            nn.Sequential(several)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError):
        modules(1)

    chain = nn.Sequential(*layers)
    x = Tensor(np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(chain(x).numpy(), layers[2](layers[1](layers[0](x))).numpy())
    np.testing.assert_array_equal(chain[:2](x).numpy(), layers[1](layers[0](x)).numpy())
    assert nn.Sequential()(x) is x


@pytest.mark.parametrize("part", [slice(1, None), slice(-2, None), slice(None, 2), slice(None, None, 2), slice(None, None, -1), slice(2, 2)])
def test_a_slice_has_pytorchs_names(part: slice):
    """A Sequential's modules keep theirs, so that a part of a network finds its own in the whole one's state; a ModuleList's are numbered anew."""
    widths = [(1, 2), (2, 3), (3, 4), (4, 2)]
    ours, theirs = nn.Sequential(*(nn.Linear(*width) for width in widths)), torch.nn.Sequential(*(torch.nn.Linear(*width) for width in widths))
    sliced, reference = ours[part], theirs[part]
    assert type(sliced) is nn.Sequential and len(sliced) == len(reference) and list(sliced) == list(ours)[part]
    assert list(sliced.state_dict()) == list(reference.state_dict())
    assert [name for name, _ in sliced.named_modules()] == [name for name, _ in reference.named_modules()]
    assert [line.split(": ")[0] for line in repr(sliced).splitlines()] == [line.split(": ")[0] for line in repr(reference).splitlines()]
    for index in range(-len(reference), len(reference)):
        assert sliced[index] is list(ours)[part][index] and reference[index] is list(theirs)[part][index]
    again, expected = sliced[1:], reference[1:]
    assert list(again.state_dict()) == list(expected.state_dict())
    listed, expected = nn.ModuleList(ours)[part], torch.nn.ModuleList(theirs)[part]
    assert type(listed) is nn.ModuleList and list(listed.state_dict()) == list(expected.state_dict()) and list(listed) == list(ours)[part]


def test_a_part_of_a_network_loads_its_own_from_the_whole_ones_state():
    whole, other = (nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))) for _ in range(2))
    difference = other[2:].load_state_dict(whole.state_dict(), strict=False)
    assert difference == ([], ["0.weight", "0.bias", "1.weight", "1.bias"])
    np.testing.assert_array_equal(other[2].weight.numpy(), whole[2].weight.numpy())


@pytest.mark.parametrize("kind", ["ModuleList", "Sequential"])
def test_extend_adds_modules_in_their_order(kind: str):
    ours, theirs = (getattr(library, kind)().append(library.ReLU()) for library in (nn, torch.nn))
    added = nn.GELU(), nn.Identity()
    assert ours.extend(iter(added)) is ours and list(ours)[1:] == [*added]
    theirs.extend([torch.nn.GELU(), torch.nn.Identity()])
    assert [name for name, _ in ours.named_children()] == [name for name, _ in theirs.named_children()]
    assert list(ours.extend(ours)) == 2 * list(ours)[:3]  # not without end
    with pytest.raises(TypeError, match="element 6 is a str, not a Module"):
        ours.extend(["relu"])  # type: ignore[list-item]


def test_what_is_appended_to_a_slice_takes_a_free_name():
    """PyTorch's takes the name of a module that is there, if its number is that of the modules, and is then in its place."""
    chain = nn.Sequential(nn.ReLU(), nn.GELU(), nn.Identity())
    part = chain[1:].append(nn.ReLU())
    assert [name for name, _ in part.named_children()] == ["1", "2", "3"] and part[-1] is not chain[2] and part[1] is chain[2]
    assert [name for name, _ in chain[:1].append(nn.ReLU()).named_children()] == ["0", "1"] and len(chain) == 3


def test_a_list_of_modules_may_have_parameters_of_its_own():
    class Scaled(nn.Sequential):
        def __init__(self, *modules: nn.Module):
            super().__init__(*modules)
            self.gain = nn.Parameter(np.full(2, 3.0))
            self.register_buffer("calls", Tensor(np.zeros(1)))

    chain = Scaled(nn.ReLU())
    assert len(chain) == 1 and [type(module) for module in chain] == [nn.ReLU]
    chain.append(nn.Linear(2, 2, bias=False))
    assert list(chain.state_dict()) == ["gain", "calls", "1.weight"] and chain[-1] is chain[1]
    assert chain(Tensor(np.ones((1, 2), np.float32))).shape == (1, 2)


def test_appending_overwrites_no_module():
    chain = nn.Sequential(nn.ReLU(), nn.GELU(), nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"element 1 would be a NoneType, not a Module; nn.Identity\(\) does nothing"):
        chain[1] = None
    setattr(chain, "1", None)
    chain.append(nn.Identity())
    assert [name for name, _ in chain.named_children()] == ["0", "2", "3"] and len(list(chain.parameters())) == 2
    assert len(chain) == 3 and [chain[k] for k in range(3)] == list(chain) and chain[-1] is chain[2]
    last = chain[2]
    chain[1] = nn.ReLU()
    assert chain[2] is last and isinstance(chain[1], nn.ReLU)
