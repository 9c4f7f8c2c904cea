"""The advice for methods that PyTorch's tensors have and Tensor has not: each piece of it is run, and gives what PyTorch's method gives."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.pytorch_names import INSTEAD
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


@pytest.mark.parametrize("name", INSTEAD)
def test_the_advice_is_run_and_gives_what_pytorch_gives(name: str):
    assert hasattr(torch.Tensor, name) and not hasattr(Tensor, name)
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
    assert_allclose(run("minigrad.grad(score, x)[0]", words).numpy(), 2 * x.numpy())


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
