"""The advice for what PyTorch has and this library has not: each piece of it is run, and gives what PyTorch's own gives."""

from __future__ import annotations

import copy
import doctest
import inspect
import pickle
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import minigrad
from minigrad import Tensor, nn, optim, pytorch_names
from minigrad import functional as F
from minigrad.pytorch_names import IN_FUNCTIONAL, IN_MINIGRAD, IN_NN, IN_OPTIM, INSTEAD, OF_MODULES
from minigrad.safetensors_io import load_state, save_state
from tests.support import rng

X, Y = rng(0).uniform(0.5, 1.5, (2, 3)), rng(1).uniform(0.5, 1.5, (2, 3))
MASK, INDICES = np.array([[True, False, True], [False, True, True]]), np.array([[0, 2, 1], [1, 1, 0]])
OTHERS: dict[str, dict[str, Any]] = {  # where the general ones will not do
    "expand": {"shape": (4, 2, 3)},
    "expand_as": {"y": rng(2).uniform(-1, 1, (4, 2, 3))},
    "index_select": {"indices": np.array([2, 0])},
    "type_as": {"y": Y.astype(np.float32)},
    "matmul": {"y": Y.T},
    "mm": {"y": Y.T},
    "bmm": {"x": X[None], "y": Y.T[None]},
    "dot": {"x": X[0], "y": Y[0]},
    "squeeze": {"x": X[:, None], "shape": (2, 3)},
    "isnan": {"x": np.array([1.0, np.nan])},
    "isfinite": {"x": np.array([1.0, np.inf])},
    **{name: {"x": MASK, "y": ~MASK[::-1]} for name in ("logical_not", "logical_and", "logical_or", "any", "all")},
}
SAME_ARGUMENTS = {
    (): "ravel t contiguous dim numel nelement cpu is_floating_point float double int long bool neg square reciprocal rsqrt norm any all "
    "isnan isfinite logical_not clone tolist zero_ detach_ squeeze",
    ("y",): "view_as reshape_as expand_as type_as add sub mul div pow maximum minimum matmul mm bmm dot eq ne gt ge lt le logical_and logical_or "
    "add_ sub_ mul_ div_",
    ("axis",): "softmax log_softmax amax amin argmin",
    ("low", "high"): "clamp clamp_ clip_",
    ("low",): "clamp_min",
    ("high",): "clamp_max",
    ("value",): "fill_",
    ("shape",): "view expand new_zeros new_ones",
    ("shape", "value"): "new_full",
    ("axes",): "permute",
    ("mask", "value"): "masked_fill masked_fill_",
    ("axis", "indices"): "gather index_select",
}
THEIRS: dict[str, Callable] = {
    **{
        name: lambda t, name=name, of=of: getattr(t["x"], name)(*[t[a] for a in of]) for of, names in SAME_ARGUMENTS.items() for name in names.split()
    },
    "mT": lambda t: t["x"].mT,
    "unsqueeze": lambda t: t["x"].unsqueeze(1),
    "repeat": lambda t: t["x"].repeat(1, 2),
    "split": lambda t: t["x"].split([2, 1], 1),
    "chunk": lambda t: t["x"].chunk(2, 1),
    "flip": lambda t: t["x"].flip(1),
    "new_tensor": lambda t: t["x"].new_tensor(X),
    "is_cuda": lambda t: t["x"].is_cuda,
    "type": lambda t: t["x"].type(torch.float32),
    "std": lambda t: t["x"].std(1, correction=0),
    "sort": lambda t: t["x"].sort(1).values,
    "where": lambda t: t["x"].where(t["mask"], t["y"]),
}
WITHOUT_A_RESULT = {"cuda", "normal_", "uniform_", "grad_fn", "retain_grad", "register_hook"}


def surroundings(name: str) -> dict[str, Any]:
    """What the words of the advice stand for; numbers, arrays for the two tensors, shapes."""
    words: dict[str, Any] = {
        "x": X,
        "y": Y,
        "shape": (3, 2),
        "axes": (1, 0),
        "axis": 1,
        "n": 2,
        "low": 0.75,
        "high": 1.25,
        "value": 7.0,
        "mask": MASK,
    }
    return words | {"indices": INDICES, "dtype": np.float32, "array": X, "generator": rng(0)} | OTHERS.get(name, {})


def run(code: str, words: dict[str, Any]) -> Any:
    """The value of an expression, or what a statement leaves in x."""
    try:
        return eval(compile(code, code, "eval"), words)
    except SyntaxError:
        exec(code, words)
        return words["x"]


def as_arrays(result: Any) -> list[np.ndarray]:
    return [
        np.asarray(part.detach() if isinstance(part, Tensor | torch.Tensor) else part) for part in (result if isinstance(result, tuple) else [result])
    ]


def there_now(place: str, name: str, advice: str) -> str:
    """What to do about it."""
    also = {"IN_NN": " (or _LIKE)"}.get(advice, "")
    here = {"IN_FUNCTIONAL": ", then from IN_TORCH here", "INSTEAD": ", then from THEIRS here"}.get(advice, "")
    return f"there is a {place}.{name}: strike it from {advice}{also} of minigrad/pytorch_names.py{here}; see also docs/differences.md"


@pytest.mark.parametrize("name", INSTEAD)
def test_the_advice_is_run_and_gives_what_pytorch_gives(name: str):
    assert hasattr(torch.Tensor, name) and not hasattr(Tensor, name), there_now("Tensor", name, "INSTEAD")
    codes = re.findall("`([^`]+)`", INSTEAD[name])
    assert codes
    for code in codes:
        words = surroundings(name) | {"F": F, "np": np, "minigrad": minigrad, "Tensor": Tensor}
        x = words["x"] = Tensor(words["x"], requires_grad=words["x"].dtype.kind == "f")
        words["y"] = Tensor(words["y"])
        if name in ("grad_fn", "retain_grad", "register_hook"):
            x = words["x"] = x * 2.0
            words["score"] = (x * x).sum()
        with minigrad.emulated() if name == "cuda" else nullcontext():
            ours = run(code, words)
            if name == "cuda":
                assert ours.device == "cuda"
        if name in WITHOUT_A_RESULT:
            continue
        theirs = {key: torch.tensor(value) if isinstance(value, np.ndarray) else value for key, value in surroundings(name).items()}
        for mine, right in zip(as_arrays(ours), as_arrays(THEIRS[name](theirs)), strict=True):
            assert mine.shape == right.shape and mine.dtype == right.dtype
            assert_allclose(mine, right, rtol=1e-12 if right.dtype == np.float64 else 1e-6)


def test_what_the_advice_for_the_graph_gives():
    x = Tensor(X, requires_grad=True) * 2.0
    words = {"x": x, "score": (x * x).sum(), "minigrad": minigrad}
    assert run("x.node", words).op.name == "mul"
    assert_allclose(run("minigrad.grad(score, x)[0]", words).numpy(), 2 * x.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("view", "Tensor has no attribute 'view', which PyTorch's has; write `x.reshape(shape)`"),
        ("zero_", "Tensor has no attribute 'zero_', which PyTorch's has; write `with minigrad.no_grad(): x.copy_(0)`"),
        ("shap", "'Tensor' object has no attribute 'shap'"),
    ],
)
def test_an_attribute_that_is_not_there(name: str, message: str):
    x = Tensor([1.0])
    with pytest.raises(AttributeError) as error:
        getattr(x, name)
    assert str(error.value) == message and error.value.name == name and error.value.obj is x  # Python adds what may have been meant to the last
    assert not hasattr(Tensor, name)


def test_what_is_not_there_is_not_offered():
    """By completion, nor by Python where a name is misspelt."""
    offered = dir(Tensor([1.0]))
    assert {"reshape", "transpose", "data", "__add__"} <= set(offered) and not INSTEAD.keys() & set(offered)


def test_what_is_there_is_found_as_fast_as_ever():
    """By the interpreter's own lookup: with a `__getattr__` it takes longer for every attribute of every Tensor."""
    assert "__getattr__" not in vars(Tensor) and "__getattribute__" not in vars(Tensor)


def test_python_s_own_questions_are_answered_as_ever():
    x = Tensor([1.0, 2.0], requires_grad=True)
    assert not any(hasattr(x, name) for name in ("view", "nothing", "__float128__", "_repr_html_")) and hasattr(x, "shape")
    assert getattr(x, "permute", None) is None
    for twin in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert twin.requires_grad and twin.numpy().tolist() == [1.0, 2.0]
    empty = Tensor.__new__(Tensor)
    with pytest.raises(AttributeError, match="^'Tensor' object has no attribute 'data'$"):
        empty.data
    with pytest.raises(TypeError, match="'int' object is not callable"):
        x.size(0)  # type: ignore[operator]


# --- modules, and the libraries' own modules


class Net(nn.Module):
    """With a part, a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(4, 4)
        self.bias = nn.Parameter(np.ones(4))
        self.register_buffer("seen", Tensor([1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) + self.bias.astype(np.float32)


TF: Any = torch.nn.functional
SIGNS = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
TENSORS = {  # of floats; the first three require grad
    "x": rng(4).uniform(0.1, 2, (2, 4)) * SIGNS,
    "maps": rng(3).standard_normal((2, 4, 6, 3)),
    "weight": rng(7).standard_normal(4),
    "y": rng(5).uniform(0.5, 1.5, (2, 4)),
    "p": rng(6).uniform(0.1, 0.9, (2, 4)),
    "keep": np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0]).reshape(2, 1, 1, 3),
}
INTEGERS = {"labels": np.array([1, 0]), "indices": np.array([[1, 0], [3, 1]])}
NUMBERS = {"n": 2, "axis": 1, "first": 0, "second": 1, "slope": 0.1, "eps": 1e-5, "factor": 2, "rate": 0.25, "low": 0.75, "high": 1.25, "value": 7.0}
OTHER_TENSORS: dict[str, dict[str, np.ndarray]] = {  # where these will not do
    "binary_cross_entropy": {"x": TENSORS["p"][::-1].copy()},
    "BCELoss": {"x": TENSORS["p"]},
    "rsqrt": {"x": TENSORS["y"]},
    "conv1d": {"x": rng(9).standard_normal((2, 6, 3)), "weight": rng(10).standard_normal((5, 3, 3))},
    "outer": {"x": TENSORS["x"][0], "y": TENSORS["y"][1]},
    "einsum": {"y": TENSORS["y"].T.copy()},
    "bmm": {"x": TENSORS["x"][None], "y": TENSORS["y"].T[None].copy()},
    "mm": {"y": TENSORS["y"].T.copy()},
    "dot": {"x": TENSORS["x"][0], "y": TENSORS["y"][1]},
    "squeeze": {"x": TENSORS["x"][:, None]},
}


def nchw(t: Any) -> Any:
    return t["maps"].permute(0, 3, 1, 2)


IN_TORCH: dict[str, Callable] = {
    **{name: lambda t, name=name: getattr(TF, name)(t["x"], t["y"]) for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "cosine_similarity")},
    **{name: lambda t, name=name: getattr(TF, name)(t["x"], t["p"]) for name in ("binary_cross_entropy", "binary_cross_entropy_with_logits")},
    **{
        name: lambda t, name=name: getattr(TF, name)(t["x"])
        for name in "silu softplus logsigmoid mish elu relu6 hardtanh hardsigmoid hardswish glu normalize".split()
    },
    "nll_loss": lambda t: TF.nll_loss(t["x"], t["labels"]),
    "kl_div": lambda t: TF.kl_div(t["x"], t["p"], reduction="batchmean"),
    "leaky_relu": lambda t: TF.leaky_relu(t["x"], 0.1),
    "softmin": lambda t: TF.softmin(t["x"], 1),
    "rms_norm": lambda t: TF.rms_norm(t["x"], (4,), t["weight"], 1e-5),
    "instance_norm": lambda t: TF.instance_norm(nchw(t)).permute(0, 2, 3, 1),
    "one_hot": lambda t: TF.one_hot(t["labels"], 2).float(),
    "embedding": lambda t: TF.embedding(t["indices"], t["weight"][:, None])[..., 0],
    "adaptive_avg_pool2d": lambda t: TF.adaptive_avg_pool2d(nchw(t), 1).flatten(1),
    **{name: lambda t: TF.interpolate(nchw(t), scale_factor=2).permute(0, 2, 3, 1) for name in ("interpolate", "upsample")},
    "dropout2d": lambda t: t["maps"] * t["keep"] / 0.75,  # what it does with what it has drawn
    "conv1d": lambda t: TF.conv1d(t["x"].transpose(1, 2), t["weight"]).transpose(1, 2),
    # of torch itself
    **{name: lambda t, name=name: getattr(torch, name)(t["y"]) for name in ("as_tensor", "asarray", "zeros_like", "ones_like")},
    "from_numpy": lambda t: torch.from_numpy(t["y"].numpy()),
    **{name: lambda t, name=name: getattr(torch, name)((3, 2)) for name in ("zeros", "ones")},
    "full": lambda t: torch.full((3, 2), 7.0),
    "full_like": lambda t: torch.full_like(t["x"], 7.0),
    "eye": lambda t: torch.eye(2),
    "arange": lambda t: torch.arange(2),
    "linspace": lambda t: torch.linspace(0.75, 1.25, 2),
    **{name: lambda t, name=name: getattr(torch, name)([t["x"], t["y"]], 1) for name in ("cat", "concat")},
    **{name: lambda t, name=name: getattr(torch, name)([t["x"], t["y"]]) for name in ("hstack", "vstack")},
    "transpose": lambda t: torch.transpose(t["x"], 0, 1),
    "gather": lambda t: torch.gather(t["x"], 1, t["indices"]),
    "outer": lambda t: torch.outer(t["x"], t["y"]),
    "einsum": lambda t: torch.einsum("ij,jk->ik", t["x"], t["y"]),
    "logsumexp": lambda t: torch.logsumexp(t["x"], 1),
    "var": lambda t: torch.var(t["x"], 1, correction=0),
    **{name: lambda t, name=name: torch.tensor(getattr(torch, name)(t["x"], t["y"])) for name in ("equal", "allclose")},
    "is_tensor": lambda t: torch.tensor(torch.is_tensor(t["x"])),
}


def codes(advice: str) -> list[str]:
    return re.findall("`([^`]+)`", advice)


def tensors(name: str, make: Callable) -> dict[str, Any]:
    arrays = TENSORS | OTHER_TENSORS.get(name, {})
    return {key: make(arrays[key]).requires_grad_(key in ("x", "maps", "weight")) for key in arrays}


@pytest.mark.parametrize("name", IN_TORCH)
def test_the_advice_for_functions_gives_what_pytorch_gives(name: str):
    """Gradients too."""
    every = {**IN_MINIGRAD, **IN_FUNCTIONAL}
    assert name in every, "there is no advice for it any more: strike it from IN_TORCH, above"
    advice = every[name]
    ours, theirs = tensors(name, Tensor), tensors(name, torch.tensor)
    modules = {"F": F, "np": np, "Tensor": Tensor, "shape": (3, 2), "array": TENSORS["y"], "tensors": [ours["x"], ours["y"]]}
    expected = IN_TORCH[name]({**theirs, **{key: torch.tensor(value) for key, value in INTEGERS.items()}})
    axis = {"axis": 0} if name == "vstack" else {}
    found = run(codes(advice)[0], {**NUMBERS, **INTEGERS, **ours, **modules, **axis})
    (mine,), (right,) = as_arrays(found), as_arrays(expected)
    assert mine.shape == right.shape and mine.dtype == right.dtype
    assert_allclose(mine, right, rtol=1e-12 if right.dtype == np.float64 else 1e-6, atol=1e-13)
    assert getattr(found, "requires_grad", False) == expected.requires_grad
    if expected.requires_grad:
        upstream = rng(1).uniform(0.5, 1.5, right.shape)
        found.backward(Tensor(upstream))
        expected.backward(torch.tensor(upstream))
        for key in ("x", "maps", "weight"):
            assert (ours[key].grad is None) == (theirs[key].grad is None)
            if ours[key].grad is not None:
                assert_allclose(ours[key].grad.numpy(), theirs[key].grad.numpy(), rtol=1e-7, atol=1e-13)


PLACES: dict[Any, tuple[Any, dict[str, str]]] = {
    Net: (torch.nn.Module, OF_MODULES),
    nn: (torch.nn, IN_NN),
    optim: (torch.optim, IN_OPTIM),
    F: (TF, IN_FUNCTIONAL),
    minigrad: (torch, IN_MINIGRAD),
}
EVERY = [(place, name) for place, (_, advice) in PLACES.items() for name in advice]
NAMES = {"get_submodule": "part", "get_parameter": "part.weight", "get_buffer": "seen"}
LEAVES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "cuda": lambda w: w["place"] is not Net or w["model"].bias.device == "cuda",
    "cpu": lambda w: w["model"].bias.device == "cpu",
    "double": lambda w: w["place"] is not Net or w["model"].part.weight.dtype == np.float64,
    "float": lambda w: w["place"] is not Net or w["model"].bias.dtype == np.float32,
    "type": lambda w: w["model"].part.weight.dtype == np.float64,
    "add_module": lambda w: w["module"] is dict(w["model"].named_children())["new"],
    "register_module": lambda w: w["module"] is dict(w["model"].named_children())["new"],
    "register_parameter": lambda w: "new" in dict(w["model"].named_parameters()),
    "get_submodule": lambda w: w["found"] is w["model"].part,
    "get_parameter": lambda w: w["found"] is w["model"].part.weight,
    "get_buffer": lambda w: w["found"] is w["model"].seen,
    "register_full_backward_hook": lambda w: np.array_equal(w["found"].numpy(), 2 * w["h"].numpy()),
    "Buffer": lambda w: "new" in dict(w["model"].named_buffers()),
    "ModuleDict": lambda w: w["found"] is w["module"],
    "BatchNorm1d": lambda w: w["found"].shape == (2, 2),
    "Conv1d": lambda w: w["found"].shape == (2, 4, 2),
    "Embedding": lambda w: w["found"].shape == (2, 2, 4),
    "Flatten": lambda w: w["found"].shape == (2, 4),
    "Adam": lambda w: type(w["found"]) is optim.AdamW and w["found"].param_groups[0]["weight_decay"] == 0,
    "save": lambda w: set(load_state(w["path"])[0]) == set(w["model"].state_dict()),
    "randint": lambda w: w["found"].shape == (3, 2) and w["found"].dtype.kind == "i",
    "rand": lambda w: w["found"].shape == (3, 2) and w["found"].dtype == np.float32,
    "randn": lambda w: w["found"].shape == (3, 2) and w["found"].dtype == np.float32,
    "empty": lambda w: w["found"].shape == (3, 2),
    "clone": lambda w: True,
}


@pytest.mark.parametrize(("place", "name"), EVERY, ids=[f"{place.__name__}.{name}" for place, name in EVERY])
def test_every_name_is_pytorch_s_and_every_piece_of_advice_runs(place: Any, name: str, tmp_path: Path):
    theirs, instead = PLACES[place]
    advice = next(key for key, value in vars(pytorch_names).items() if value is instead)
    assert hasattr(theirs, name) and not hasattr(place, name), there_now(place.__name__, name, advice)
    assert getattr(place, name, None) is None
    asked = model = Net()
    if place is not Net:
        asked = place
    with pytest.raises(AttributeError) as caught:
        getattr(asked, name)
    said = f"Net has no attribute {name!r}, which PyTorch's has" if place is Net else f"module {place.__name__!r} has no attribute {name!r}"
    assert str(caught.value) == f"{said}; write {instead[name]}" and caught.value.name == name and caught.value.obj is asked
    words: dict[str, Any] = {**NUMBERS, **INTEGERS, **tensors(name, Tensor), "F": F, "np": np, "nn": nn, "optim": optim, "minigrad": minigrad}
    words |= {"Tensor": Tensor, "generator": rng(0), "model": model, "path": tmp_path / "a.safetensors", "shape": (3, 2), "dtype": np.float64}
    words |= {"array": np.ones((4, 4)), "tensors": [words["x"], words["y"]], "parameters": list(model.parameters()), "module": nn.Identity()}
    words |= {"optimizer": optim.SGD(model.parameters(), lr=0.1), "lr": 0.1, "total": 9, "warmup": 2, "name": NAMES.get(name, "new"), "place": place}
    words |= {"function": Tensor.exp, "dim": 8, "num_heads": 2, "channels": 3, "rows": Tensor(np.ones((2, 6, 3), np.float32)), "tensor": Tensor(1.0)}
    words |= {"mask": SIGNS > 0, "axes": (1, 0), "part": model.part}
    if any(word in instead[name] for word in ("model(x)", "part(x)", "norm(x", "score")):
        words["x"] = Tensor(np.ones((2, 2 if "norm" in instead[name] else 4), np.float32))
        words["h"] = model.part(Tensor(np.ones((2, 4), np.float32)))
        words["score"] = (words["h"] * words["h"]).sum()
    if name == "squeeze":
        words["shape"] = (2, 4)
    elif name in ("ravel", "permute"):
        words["x"] = words["x"].detach()
    if name == "load":
        save_state(words["path"], model.state_dict())
    pieces = codes(instead[name])
    assert pieces
    with minigrad.emulated() if "cuda" in instead[name] else nullcontext():
        for code in pieces:
            words["found"] = run(code, words) if not code.startswith(("from ", "with ")) and " = " not in code else exec(code, words)
        assert LEAVES.get(name, lambda words: True)(words)


def test_no_advice_for_functions_is_left_without_a_comparison():
    assert IN_FUNCTIONAL.keys() <= IN_TORCH.keys(), "say in IN_TORCH, above, what PyTorch's own is called with"


@pytest.mark.parametrize("name", F.__all__)
def test_operations_are_found_in_functional(name: str):
    if name in vars(minigrad) or name in IN_MINIGRAD:
        return
    with pytest.raises(AttributeError, match=rf"^module 'minigrad' has no attribute '{name}'; write `F\.{name}`, where F is minigrad\.functional$"):
        getattr(minigrad, name)


@pytest.mark.parametrize("module", [F, nn, optim, minigrad], ids=lambda module: module.__name__)
def test_other_questions_to_a_module_are_answered_as_ever(module: Any):
    for name in ("nothing", "__path_of_nothing__", "__test__", "_private"):
        with pytest.raises(AttributeError, match=rf"^module '{module.__name__}' has no attribute '{name}'$") as caught:
            getattr(module, name)
        assert caught.value.name == name and caught.value.obj is module  # Python adds what may have been meant
        assert not hasattr(module, name) and getattr(module, name, 3) == 3
    assert dict(inspect.getmembers(module)).keys() >= set(module.__all__)
    assert inspect.unwrap(module) is module and inspect.getmodule(module.__all__[0]) is None
    assert [test for test in doctest.DocTestFinder().find(module) if test.examples] == []
    names: dict[str, Any] = {}
    exec(f"from {module.__name__} import *", names)
    assert set(module.__all__) <= set(names)
    with pytest.raises(ImportError, match="cannot import name 'one_hot'"):
        exec(f"from {module.__name__} import one_hot", {})


def test_a_module_may_use_the_names_itself():
    class Own(nn.Module):
        cpu = 3

        def __init__(self) -> None:
            super().__init__()
            self.half, self.type = nn.Linear(2, 2), "own"
            self.register_buffer("float", Tensor([1.0]))
            self.double = nn.Parameter([1.0])

        def cuda(self) -> str:
            return "here"

    own = Own()
    assert isinstance(own.half, nn.Linear) and own.type == "own" and own.cpu == 3 and own.cuda() == "here"
    assert set(own.state_dict()) == {"half.weight", "half.bias", "float", "double"}
    offered = dir(own)
    assert {"half", "type", "float", "double", "cpu", "cuda", "forward"} <= set(offered) and not {"get_buffer", "bfloat16"} & set(offered)
    for twin in (copy.deepcopy(own.half), pickle.loads(pickle.dumps(own.half)), copy.copy(own.half)):
        assert twin.state_dict().keys() == own.half.state_dict().keys() and not hasattr(twin, "cuda")
    del own.half
    with pytest.raises(AttributeError, match="^Own has no attribute 'half', which PyTorch's has; write"):
        own.half
    assert not hasattr(nn.Module, "cuda") and "__getattr__" not in vars(nn.Module)
    assert dict(inspect.getmembers(own)).keys() >= {"cuda", "forward"}
