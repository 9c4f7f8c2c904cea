"""The advice for what PyTorch has and this library has not: each piece of it is run, and gives what PyTorch's own gives."""

from __future__ import annotations

import copy
import doctest
import inspect
import itertools
import math
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Container, Mapping
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
from minigrad.pytorch_names import IN_FUNCTIONAL, IN_INIT, IN_MINIGRAD, IN_NN, IN_OPTIM, INSTEAD, OF_MODULES
from minigrad.safetensors_io import load_state, save_state
from tests.support import rng

Words = dict[str, Any]
REFUSALS = (RuntimeError, IndexError, TypeError, ValueError)  # what PyTorch raises where it does not take a case


def alternatives(advice: str) -> list[list[str]]:
    """The pieces of code in it: lines that follow one another, if the first gives something a name, else each by itself."""
    pieces = re.findall("`([^`]+)`", advice)
    return [pieces] if re.match(r"\w+ = ", pieces[0]) else [[piece] for piece in pieces]


def run(code: str, words: Words) -> Any:
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


GRADIENTS = ("x", "maps", "weight")
WITHOUT_A_GRADIENT = {"clone", "cumsum", "round", "floor", "ceil", "trunc", "sign", "tolist"}
"""Of which a piece of advice has none, as it says, or as PyTorch's is 0."""


def compare(name: str, advice: str, theirs: Callable | list[Callable], words: Words, special: bool = False) -> bool:
    """Run each piece of advice and see that it gives what PyTorch gives, gradients too. Whether PyTorch takes these words at all.

    Args:
        name: of what PyTorch has.
        advice: what is written here instead.
        theirs: PyTorch's own, of the words; a list of them: one for each piece.
        words: what the words of the advice stand for. The arrays of TENSORS are tensors here, all arrays are tensors there.
        special: the numbers are infinite, NaN or at kinks, where only values are to be the same.
    """
    in_place = name.endswith("_")
    used = {"x", "y", *re.findall(r"\w+", advice)}

    def leaves(make: Callable, of: Container[str]) -> Words:
        made = {key: make(value) for key, value in words.items() if isinstance(value, np.ndarray) and key in used and key in of}
        return made | {key: made[key].requires_grad_() for key in GRADIENTS if key in made and words[key].dtype.kind == "f" and not in_place}

    pieces = alternatives(advice)
    for number, codes in enumerate(pieces):
        torches, ours = leaves(torch.tensor, words), {**words, **leaves(Tensor, TENSORS), **LIBRARIES}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = (theirs[number] if isinstance(theirs, list) else theirs)({**words, **torches})
            except REFUSALS:
                return False
        if name in ("hstack", "vstack") and (number == 1) != (words["x"].ndim == 1):
            continue
        ours = {"array": words["y"], **ours, "tensors": [ours["x"], ours["y"]]}
        if name in DERIVATIVES:
            ours["out"], ours["score"] = rows_of(ours["x"]), total_of(ours["x"])
        with np.errstate(all="ignore") if special else nullcontext():
            for code in codes:
                found = run(code, ours)
        for mine, right in zip(as_arrays(found), as_arrays(expected), strict=True):
            assert mine.shape == right.shape and mine.dtype == right.dtype
            rounded = words["x"].dtype == np.float32 and name not in INSTEAD  # sums of rounded numbers
            rtol, atol = (1e-12, 1e-13 * (name not in INSTEAD)) if right.dtype == np.float64 else (2e-6, 2e-7) if rounded else (1e-6, 0)
            assert_allclose(mine, right, rtol=rtol, atol=atol)
        parts, rights = (result if isinstance(result, tuple) else (result,) for result in (found, expected))
        for mine, right in zip(parts, rights, strict=True):
            if in_place or not isinstance(right, torch.Tensor) or (name in WITHOUT_A_GRADIENT and not getattr(mine, "requires_grad", False)):
                continue
            assert getattr(mine, "requires_grad", False) == right.requires_grad
            if right.requires_grad and not special:
                upstream = rng(1).uniform(0.5, 1.5, right.shape).astype(mine.dtype)
                mine.backward(Tensor(upstream), retain_graph=True)
                right.backward(torch.tensor(upstream), retain_graph=True)
        for key in GRADIENTS:
            if key in torches and not in_place and ours[key].is_leaf and (torches[key].grad is not None or ours[key].grad is not None):
                rtol, atol = (1e-7, 1e-13) if words[key].dtype == np.float64 else (2e-5, 2e-6)
                assert_allclose(ours[key].grad.numpy(), torches[key].grad.numpy(), rtol=rtol, atol=atol)
    return True


def compare_in_all(name: str, advice: str, theirs: Callable | list[Callable], cases: Mapping[str, Words], not_in: Container[str] = ()) -> None:
    """In every case that PyTorch takes, of which there must be two or more, unless the result is the same in all."""
    taken = []
    for case, words in cases.items():
        if case not in not_in:
            try:
                taken += [case] * compare(name, advice, theirs, words, case.startswith("special"))
            except Exception as error:
                error.add_note(f"{name}: {advice}, in the case {case!r}")
                raise
    assert len(taken) > (name not in ONE_CASE), f"{name}: PyTorch takes only {taken}"


LIBRARIES: Words = {"F": F, "np": np, "math": math, "minigrad": minigrad, "Tensor": Tensor}
X, Y = rng(0).uniform(0.5, 1.5, (2, 3)), rng(1).uniform(0.5, 1.5, (2, 3))
MASK, INDICES = np.array([[True, False, True], [False, True, True]]), np.array([[0, 2, 1], [1, 1, 0]])
OTHERS: dict[str, Words] = {  # where the general ones will not do
    "expand": {"shape": (4, 2, 3)},
    "expand_as": {"y": rng(2).uniform(-1, 1, (4, 2, 3))},
    "index_select": {"indices": np.array([2, 0])},
    "type_as": {"y": Y.astype(np.float32)},
    "matmul": {"y": Y.T},
    "mm": {"y": Y.T},
    "bmm": {"x": X[None], "y": Y.T[None]},
    "dot": {"x": X[0], "y": Y[0]},
    "squeeze": {"x": X[:, None], "shape": (2, 3)},
    **{name: {"x": MASK, "y": ~MASK[::-1]} for name in ("logical_not", "logical_and", "logical_or", "any", "all")},
}
ONE_CASE = {"squeeze", "bmm", "expand", "index_select"}
"""For which one shape is made, above (in two dtypes, unless one of them is fixed)."""


def tensor_cases(name: str) -> dict[str, Words]:
    """What the words stand for in the advice for a tensor: numbers, arrays, shapes."""
    two: Words = {"x": X, "y": Y, "shape": (3, 2), "axes": (1, 0), "axis": 1, "n": 2, "low": 0.75, "high": 1.25, "value": 7.0, "mask": MASK}
    two |= {"indices": INDICES, "dtype": np.float32, "array": X, "generator": rng(0)}
    square = two | {"x": rng(2).uniform(0.5, 1.5, (3, 3)), "y": rng(3).uniform(0.5, 1.5, (3, 3)), "mask": rng(4).random((3, 3)) < 0.5}
    square |= {"axis": -2, "axes": (-1, 0), "shape": (9,), "indices": np.array([[0, 2, 1], [1, 1, 0], [2, 0, 0]])}
    vector = two | {"x": X[0], "y": Y[0], "mask": MASK[0], "axis": -1, "axes": (-1,), "shape": (1, 3), "indices": INDICES[0]}
    deep = two | {"x": rng(5).uniform(0.5, 1.5, (2, 3, 3)), "y": rng(6).uniform(0.5, 1.5, (2, 3, 3)), "mask": rng(7).random((2, 3, 3)) < 0.5}
    deep |= {"axis": -1, "axes": (2, 0, -2), "shape": (6, 3), "indices": rng(8).integers(0, 2, (2, 3, 3))}
    whole = square | {
        "x": np.array([[3, 0, 1], [4, 2, 5], [1, 1, 0]]),
        "y": np.array([[1, 2, 3], [1, 2, 0], [2, 0, 1]]),
        "value": 7,
        "low": 1,
        "high": 3,
    }
    odd = np.array([[np.nan, np.inf, -np.inf], [0.0, -0.0, 1e300], [-2.5, 1.5, 0.5]])
    cases = {"two": two | OTHERS.get(name, {})}
    cases["float32"] = {key: value.astype(np.float32) if _is_float(value) else value for key, value in cases["two"].items()}
    if name in ONE_CASE:
        return cases
    cases |= {"square": square, "special: numbers": square | {"x": odd}, "special: others": square | {"y": odd}}
    cases |= {f"special: {dtype}": whole | {key: whole[key].astype(dtype) for key in ("x", "y")} for dtype in ("int32", "uint8", "bool")}
    return cases if name in OTHERS else cases | {"vector": vector, "deep": deep}


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


SAME_ARGUMENTS = {
    (): "ravel t contiguous dim numel nelement cpu is_floating_point float double int long bool neg square reciprocal rsqrt norm any all "
    "isnan isinf isfinite logical_not clone tolist zero_ detach_ squeeze log2 log10 round floor ceil trunc sign nonzero tril triu",
    ("y",): "view_as reshape_as expand_as type_as add sub mul div pow maximum minimum matmul mm bmm dot eq ne gt ge lt le logical_and logical_or "
    "add_ sub_ mul_ div_",
    ("axis",): "softmax log_softmax amax amin argmin argsort",
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
THEIRS: dict[str, Callable | list[Callable]] = {
    **{
        name: lambda t, name=name, of=of: getattr(t["x"], name)(*[t[a] for a in of]) for of, names in SAME_ARGUMENTS.items() for name in names.split()
    },
    "mT": lambda t: t["x"].mT,
    "is_cuda": lambda t: t["x"].is_cuda,
    "new_tensor": lambda t: t["x"].new_tensor(t["array"].numpy()),
    "unsqueeze": lambda t: t["x"].unsqueeze(1),
    "repeat": lambda t: t["x"].repeat(*(2 if axis == t["axis"] % t["x"].ndim else 1 for axis in range(t["x"].ndim))),
    "split": lambda t: t["x"].split([2, 1], 1),
    "chunk": lambda t: t["x"].chunk(2, 1),
    "flip": lambda t: t["x"].flip(1),
    "roll": lambda t: t["x"].roll(2, 0),
    "diff": lambda t: t["x"].diff(),
    "type": lambda t: t["x"].type(torch.float32),
    "std": lambda t: t["x"].std(t["axis"], correction=0),
    "sort": lambda t: t["x"].sort(t["axis"]).values,
    "topk": lambda t: t["x"].topk(2).values,
    "cumsum": [lambda t: t["x"].cumsum(0), lambda t: t["x"].cumsum(t["axis"])],
    "prod": [lambda t: t["x"].prod(0), lambda t: t["x"].prod()],
    "where": lambda t: t["x"].where(t["mask"], t["y"]),
}
WITHOUT_A_RESULT = {"cuda", "normal_", "uniform_", "grad_fn", "retain_grad", "register_hook"}
NOT_IN: dict[str, tuple[str, ...]] = {  # as the advice, or docs/differences.md, says; or what PyTorch alone does
    "pow": ("special: int32", "special: uint8", "special: bool"),  # an exponent that is a Tensor gives float32
    "cumsum": ("deep", "special: numbers", "special: int32", "special: uint8", "special: bool"),
    "prod": ("special: int32", "special: uint8", "special: bool"),  # PyTorch's is int64
    **dict.fromkeys(("any", "all"), ("special: uint8",)),  # PyTorch's is uint8
    **dict.fromkeys(("clone", "square", "masked_fill", "tril", "triu"), ("special: bool",)),  # a number makes integers of booleans
    "topk": ("special: numbers", "special: uint8", "special: bool"),  # -x of numbers without a sign
    "sign": ("special: numbers", "special: bool"),  # PyTorch's of NaN is 0
    "diff": ("special: bool",),
}


def there_now(place: str, name: str, advice: str) -> str:
    """What to do about it."""
    also = {"IN_NN": " (or _LIKE)"}.get(advice, "")
    here = {"IN_FUNCTIONAL": ", then from IN_TORCH here", "INSTEAD": ", then from THEIRS here", "IN_NN": ", then from LAYERS here"}.get(advice, "")
    return f"there is a {place}.{name}: strike it from {advice}{also} of minigrad/pytorch_names.py{here}; see also docs/differences.md"


@pytest.mark.parametrize("name", INSTEAD)
def test_the_advice_is_run_and_gives_what_pytorch_gives(name: str):
    """For vectors and higher tensors, axes from either end, integers, and numbers that are none."""
    assert hasattr(torch.Tensor, name) and not hasattr(Tensor, name), there_now("Tensor", name, "INSTEAD")
    if name not in WITHOUT_A_RESULT:
        compare_in_all(name, INSTEAD[name], THEIRS[name], tensor_cases(name), NOT_IN.get(name, ()))
        return
    (codes,) = alternatives(INSTEAD[name])
    words = tensor_cases(name)["two"] | LIBRARIES
    x = words["x"] = Tensor(words["x"], requires_grad=True)
    if name in ("grad_fn", "retain_grad", "register_hook"):
        x = words["x"] = x * 2.0
        words["score"] = (x * x).sum()
    with minigrad.emulated() if name == "cuda" else nullcontext():
        for code in codes:
            ours = run(code, words)
        assert name != "cuda" or ours.device == "cuda"


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
    named = r"minigrad\.tensor\.Tensor" if sys.version_info >= (3, 13) else "Tensor"
    with pytest.raises(AttributeError, match=f"^'{named}' object has no attribute 'data'$"):
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
NUMBERS |= {"groups": 3, "shape": (3, 2)}
OTHER_TENSORS: dict[str, Words] = {  # where these will not do
    "binary_cross_entropy": {"x": TENSORS["p"][::-1].copy()},
    "BCELoss": {"x": TENSORS["p"]},
    "rsqrt": {"x": TENSORS["y"]},
    "conv1d": {"x": rng(9).standard_normal((2, 6, 3)), "weight": rng(10).standard_normal((5, 3, 3))},
    "conv_transpose2d": {"maps": rng(9).standard_normal((2, 3, 2, 3)), "weight": rng(10).standard_normal((3, 5, 2, 3)), "shape": (2, 6, 5, 5)},
    "group_norm": {"maps": rng(9).standard_normal((2, 3, 2, 6))},
    "outer": {"x": TENSORS["x"][0], "y": TENSORS["y"][1]},
    "einsum": {"y": TENSORS["y"].T.copy()},
    "bmm": {"x": TENSORS["x"][None], "y": TENSORS["y"].T[None].copy()},
    "mm": {"y": TENSORS["y"].T.copy()},
    "dot": {"x": TENSORS["x"][0], "y": TENSORS["y"][1]},
    "squeeze": {"x": TENSORS["x"][:, None], "shape": (2, 4)},
}
OTHER_TENSORS["ConvTranspose2d"] = OTHER_TENSORS["conv_transpose2d"]


def function_cases(name: str) -> dict[str, Words]:
    two: Words = {**TENSORS, **INTEGERS, **NUMBERS, **OTHER_TENSORS.get(name, {})}
    cases = {"two": {**two, "v": np.array([2.0, -0.5])}}
    cases["float32"] = {key: value.astype(np.float32) if _is_float(value) else value for key, value in cases["two"].items()}
    if name in OTHER_TENSORS and name != "binary_cross_entropy":
        return cases
    square = {key: rng(k).uniform(0.1, 0.9, (4, 4)) for k, key in enumerate(("x", "y", "p"))} | {"axis": -2, "labels": np.array([1, 3, 0, 0])}
    square |= {"indices": rng(3).integers(0, 4, (4, 4))}
    vector = {key: rng(k).uniform(0.1, 0.9, 6) for k, key in enumerate(("x", "y", "p", "weight"))} | {"axis": -1, "n": 3}
    deep = {key: rng(k).uniform(0.1, 0.9, (2, 3, 4)) for k, key in enumerate(("x", "y", "p"))} | {"axis": -2, "labels": rng(4).integers(0, 3, (2, 4))}
    deep |= {"maps": rng(5).standard_normal((3, 2, 1, 3)), "keep": TENSORS["keep"][:1], "indices": np.array([[[3]]])}
    kinks = {"x": np.array([[0.0, -0.0, 1.0, -1.0], [3.0, -3.0, 6.0, -6.0]]), "y": np.array([[0.0, 1.0, 1.0, 0.0], [3.0, -2.0, 0.0, 0.0]])}
    zeros = {"x": np.array([[0.0, -0.0, 2.0, -2.0], [2.0, 0.0, -0.5, 0.0]])}
    odd = {"x": np.array([[np.nan, np.inf, -np.inf, 0.0], [-0.0, 1e30, -1e30, 1e-30]])}
    cases |= {
        case: {**cases["two"], **words}
        for case, words in (("square", square), ("vector", vector), ("deep", deep), ("zeros", zeros), ("kinks", kinks))
    }
    return cases | {
        "special: numbers": {**cases["two"], **odd},
        "special: int32": {**cases["two"], "x": np.array([[3, 0, 1, 2], [-4, 2, 5, 1]], "i4")},
    }


_KINKS = "relu6 hardtanh hardsigmoid hardswish cosine_similarity"
NOT_AT: dict[str, tuple[str, ...]] = {  # where what differs is stated, or the formula is for numbers that are not there
    **dict.fromkeys(_KINKS.split(), ("kinks",)),
    "binary_cross_entropy": ("zeros", "kinks"),
    "logsumexp": ("special: numbers",),
    **dict.fromkeys("func vjp jvp hvp jacobian jacrev jacfwd hessian".split(), ("vector", "deep", "special: numbers", "special: int32")),
}


def nchw(t: Any) -> Any:
    return t["maps"].permute(0, 3, 1, 2)


def rows_of(x: Any) -> Any:
    """What the words of the advice for derivatives call out; theirs and ours."""
    return (x.exp() * x).sum(-1)


def total_of(x: Any) -> Any:
    """What they call the score."""
    return (x.exp() * x * x[:1]).sum()


TA: Any = torch.autograd.functional
DERIVATIVES = {"func", "vjp", "jvp", "hvp", "jacobian", "jacrev", "jacfwd", "hessian"}
IN_TORCH: dict[str, Callable | list[Callable]] = {
    **{name: lambda t, name=name: getattr(TF, name)(t["x"], t["y"]) for name in ("mse_loss", "l1_loss", "smooth_l1_loss")},
    "cosine_similarity": lambda t: TF.cosine_similarity(t["x"], t["y"], t["axis"]),
    **{name: lambda t, name=name: getattr(TF, name)(t["x"], t["p"]) for name in ("binary_cross_entropy", "binary_cross_entropy_with_logits")},
    **{
        name: lambda t, name=name: getattr(TF, name)(t["x"])
        for name in "silu softplus logsigmoid mish elu relu6 hardtanh hardsigmoid hardswish glu".split()
    },
    "normalize": lambda t: TF.normalize(t["x"], dim=t["axis"]),
    "nll_loss": lambda t: TF.nll_loss(t["x"], t["labels"]),
    "kl_div": lambda t: TF.kl_div(t["x"], t["p"], reduction="batchmean"),
    "leaky_relu": lambda t: TF.leaky_relu(t["x"], 0.1),
    "softmin": lambda t: TF.softmin(t["x"], t["axis"]),
    "rms_norm": lambda t: TF.rms_norm(t["x"], t["x"].shape[-1:], t["weight"], 1e-5),
    "instance_norm": lambda t: TF.instance_norm(nchw(t)).permute(0, 2, 3, 1),
    "group_norm": lambda t: TF.group_norm(nchw(t), 3).permute(0, 2, 3, 1),
    "one_hot": lambda t: TF.one_hot(t["labels"], t["n"]).float(),
    "embedding": lambda t: TF.embedding(t["indices"], t["weight"][:, None])[..., 0],
    "adaptive_avg_pool2d": lambda t: TF.adaptive_avg_pool2d(nchw(t), 1).flatten(1),
    **{name: lambda t: TF.interpolate(nchw(t), scale_factor=2).permute(0, 2, 3, 1) for name in ("interpolate", "upsample")},
    "dropout2d": lambda t: t["maps"] * t["keep"] / 0.75,  # what it does with what it has drawn
    "conv1d": lambda t: TF.conv1d(t["x"].transpose(1, 2), t["weight"]).transpose(1, 2),
    "conv_transpose2d": lambda t: TF.conv_transpose2d(nchw(t), t["weight"], stride=2).permute(0, 2, 3, 1),
    # of torch itself
    **{name: lambda t, name=name: getattr(torch, name)(t["y"]) for name in ("as_tensor", "asarray")},
    **{name: lambda t, name=name: getattr(torch, name)(t["x"].detach()) for name in ("zeros_like", "ones_like")},
    "from_numpy": lambda t: torch.from_numpy(t["y"].numpy()),
    **{name: lambda t, name=name: getattr(torch, name)((3, 2)) for name in ("zeros", "ones")},
    "full": lambda t: torch.full((3, 2), 7.0),
    "full_like": lambda t: torch.full_like(t["x"], 7.0),
    "eye": lambda t: torch.eye(t["n"]),
    "arange": lambda t: torch.arange(t["n"]),
    "linspace": lambda t: torch.linspace(0.75, 1.25, t["n"]),
    **{name: lambda t, name=name: getattr(torch, name)([t["x"], t["y"]], t["axis"]) for name in ("cat", "concat")},
    **{name: lambda t, name=name: getattr(torch, name)([t["x"], t["y"]]) for name in ("hstack", "vstack")},
    "transpose": lambda t: torch.transpose(t["x"], 0, 1),
    "gather": lambda t: torch.gather(t["x"], t["axis"], t["indices"]),
    "outer": lambda t: torch.outer(t["x"], t["y"]),
    "einsum": lambda t: torch.einsum("ij,jk->ik", t["x"], t["y"]),
    "logsumexp": lambda t: torch.logsumexp(t["x"], t["axis"]),
    "var": lambda t: torch.var(t["x"], t["axis"], correction=0),
    **{name: lambda t, name=name: torch.tensor(getattr(torch, name)(t["x"], t["y"])) for name in ("equal", "allclose")},
    "is_tensor": lambda t: torch.tensor(torch.is_tensor(t["x"])),
    # of torch.func and torch.autograd.functional
    **{name: lambda t: TA.vjp(rows_of, t["x"], t["v"])[1] for name in ("func", "vjp")},
    "jvp": lambda t: TA.jvp(rows_of, t["x"], t["y"])[1],
    "hvp": lambda t: TA.hvp(total_of, t["x"], t["y"])[1],
    **{name: lambda t: TA.jacobian(rows_of, t["x"]) for name in ("jacobian", "jacrev", "jacfwd")},
    "hessian": lambda t: TA.hessian(total_of, t["x"]).reshape(-1, *t["x"].shape),
    "vmap": lambda t: torch.vmap(torch.dot)(t["x"], t["y"]),
}


@pytest.mark.parametrize("name", IN_TORCH)
def test_the_advice_for_functions_gives_what_pytorch_gives(name: str):
    """As above, and at the kinks of the piecewise ones."""
    every = {**IN_MINIGRAD, **IN_FUNCTIONAL}
    assert name in every, "there is no advice for it any more: strike it from IN_TORCH, above"
    compare_in_all(name, every[name], IN_TORCH[name], function_cases(name), NOT_AT.get(name, ()))


LAYERS: dict[str, Callable] = {
    **{name: lambda t, name=name: getattr(torch.nn, name)()(t["x"], t["y"]) for name in ("MSELoss", "L1Loss", "SmoothL1Loss")},
    **{name: lambda t, name=name: getattr(torch.nn, name)()(t["x"], t["p"]) for name in ("BCELoss", "BCEWithLogitsLoss")},
    **{
        name: lambda t, name=name: getattr(torch.nn, name)()(t["x"])
        for name in "SiLU Softplus LogSigmoid Mish ELU ReLU6 Hardtanh Hardsigmoid Hardswish GLU Sigmoid Tanh".split()
    },
    **{name: lambda t, name=name: getattr(torch.nn, name)(dim=t["axis"])(t["x"]) for name in ("Softmax", "LogSoftmax")},
    **{name: lambda t, name=name: getattr(torch.nn, name)()(t["x"], t["labels"]) for name in ("CrossEntropyLoss", "NLLLoss")},
    "CosineSimilarity": lambda t: torch.nn.CosineSimilarity(t["axis"])(t["x"], t["y"]),
    "KLDivLoss": lambda t: torch.nn.KLDivLoss(reduction="batchmean")(t["x"], t["p"]),
    "LeakyReLU": lambda t: torch.nn.LeakyReLU(0.1)(t["x"]),
    "Flatten": lambda t: torch.nn.Flatten(1)(t["x"]),
    "GroupNorm": lambda t: torch.nn.GroupNorm(3, t["maps"].shape[-1], affine=False).to(t["maps"].dtype)(nchw(t)).permute(0, 2, 3, 1),
    "InstanceNorm2d": lambda t: torch.nn.InstanceNorm2d(3)(nchw(t)).permute(0, 2, 3, 1),
    "AdaptiveAvgPool2d": lambda t: torch.nn.AdaptiveAvgPool2d(1)(nchw(t)).flatten(1),
    "Upsample": lambda t: torch.nn.Upsample(scale_factor=2)(nchw(t)).permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_advice_for_layers_that_are_functions_gives_what_pytorch_gives(name: str):
    assert name in IN_NN, "there is no advice for it any more: strike it from LAYERS, above"
    cases = {case: words for case, words in function_cases(name).items() if case in ("two", "float32", "square", "vector")}
    compare_in_all(name, IN_NN[name], LAYERS[name], cases)


def test_batch_norm_of_vectors_and_of_sequences_is_pytorchs():
    for shape in ((5, 3), (2, 5, 3)):
        ours, theirs = eval(alternatives(IN_NN["BatchNorm1d"])[0][0], {"nn": nn, "n": 3}), torch.nn.BatchNorm1d(3)
        for training in (True, True, False):
            ours.train(training)
            theirs.train(training)
            x = rng(len(shape)).standard_normal(shape).astype(np.float32)
            right = theirs(torch.tensor(x).movedim(-1, 1)).movedim(1, -1)
            assert_allclose(ours(Tensor(x)).numpy(), right.detach(), rtol=1e-5, atol=1e-6)
        for name, value in theirs.state_dict().items():
            assert_allclose(ours.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_layers_with_pytorchs_weights_give_what_its_own_give():
    torch.manual_seed(0)
    words: Words = {"nn": nn, "channels": 3, "n": 4, "rows": Tensor(rng(0).standard_normal((2, 6, 3)).astype(np.float32)), "dim": 8, "num_heads": 2}
    convolution = torch.nn.Conv1d(3, 4, 3)
    make, call = (piece for (piece,) in alternatives(IN_NN["Conv1d"].replace("conv = ", "")))
    words["conv"] = eval(make, words)
    words["conv"].load_state_dict({"weight": convolution.weight.detach()[:, :, None], "bias": convolution.bias.detach()})
    right = convolution(torch.tensor(words["rows"].numpy()).transpose(1, 2)).transpose(1, 2)
    assert_allclose(eval(call, words).numpy(), right.detach(), rtol=1e-5, atol=1e-6)
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    torch.nn.init.normal_(attention.in_proj_bias)
    tokens = rng(1).standard_normal((2, 5, 8)).astype(np.float32)
    ours = eval(alternatives(IN_NN["MultiheadAttention"])[0][0], words)
    weights = {name.replace("in_proj_", "qkv.").replace("out_proj", "proj"): value for name, value in attention.state_dict().items()}
    ours.load_state_dict(weights)
    right = attention(*[torch.tensor(tokens)] * 3)[0]
    assert_allclose(ours(Tensor(tokens)).numpy(), right.detach(), rtol=1e-5, atol=1e-6)
    embedding = torch.nn.Embedding(4, 3)
    words |= {"array": embedding.weight.detach().numpy(), "indices": INTEGERS["indices"]}
    make, call = alternatives(IN_NN["Embedding"])[0]
    exec(make, words)
    assert_allclose(eval(call, words).numpy(), embedding(torch.tensor(words["indices"])).detach(), rtol=0)
    assert words["table"].requires_grad


def drawn_as(name: str) -> Callable[[Words], bool]:
    """Whether a tensor is filled as PyTorch's initialiser does: by the spread of its numbers, of which there are 9,600."""

    def check(words: Words) -> bool:
        theirs = torch.empty(words["tensor"].shape)
        getattr(torch.nn.init, name)(theirs, **({"val": 7.0} if name == "constant_" else {}))
        ours, right = words["tensor"].numpy(), theirs.numpy()
        if not name.startswith("xavier"):
            return np.array_equal(ours, right)
        return abs(ours.std() / right.std() - 1) < 0.04 and abs(ours.max() / right.max() - 1) < (0.01 if "uniform" in name else 0.3)

    return check


def _softplus(x: torch.Tensor) -> torch.Tensor:
    return TF.softplus(x, threshold=1000)  # by itself it is x from 20 on


NOTHING_LOST: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {  # PyTorch's own losses round the sum with x, or bound the slope
    "softplus": lambda x, p: _softplus(x),
    "logsigmoid": lambda x, p: TF.logsigmoid(x),
    "mish": lambda x, p: TF.mish(x),
    "elu": lambda x, p: TF.elu(x),
    "binary_cross_entropy_with_logits": lambda x, p: (1 - p) * _softplus(x) + p * _softplus(-x),
    "binary_cross_entropy": lambda x, p: -(p * x.log() + (1 - p) * (-x).log1p()),
}


@pytest.mark.parametrize("name", NOTHING_LOST)
def test_what_is_small_keeps_its_digits(name: str):
    """The formulas in float32, value and gradient, against float64, relative to the value itself: nothing is lost in a sum with 1."""
    probability = name == "binary_cross_entropy"
    for number in (1e-30, 1e-9, 3e-5, 0.4) if probability else (-80.0, -30.0, -17.0, -1e-4, -1e-8, 0.0, 1e-8, 1e-4, 17.0, 20.0, 80.0):
        for p in (0.0, 1.0, 0.25) if name.startswith("binary") else (0.0,):
            x = Tensor(np.array([number], np.float32), requires_grad=True)
            found = eval(alternatives(IN_FUNCTIONAL[name])[0][0], {"F": F, "x": x, "p": Tensor(np.array([p], np.float32))})
            exact = torch.tensor(x.numpy().astype(np.float64), requires_grad=True)
            expected = NOTHING_LOST[name](exact, p)
            assert_allclose(found.numpy().reshape(-1), expected.detach().numpy(), rtol=1e-6, err_msg=f"{number} {p}")
            found.sum().backward()
            expected.sum().backward()
            near = 1e-7 if name == "binary_cross_entropy_with_logits" else 0  # the difference of a probability and p
            assert_allclose(x.grad.numpy(), exact.grad.numpy(), rtol=1e-6, atol=near, err_msg=f"{number} {p}")


@pytest.mark.parametrize("name", ["softplus", "logsigmoid", "mish", "silu", "binary_cross_entropy_with_logits"])
def test_second_derivatives_at_0_are_those_of_the_whole(name: str):
    """Not of parts with kinks there, which a head that begins with zeros meets in its first step."""
    theirs = NOTHING_LOST.get(name, lambda x, p: TF.silu(x))
    for number in (0.0, -0.0, 1e-9, -1e-9, -3.0, 5.0):
        x, exact = Tensor(np.array([number]), requires_grad=True), torch.tensor([number], dtype=torch.float64, requires_grad=True)
        found = eval(alternatives(IN_FUNCTIONAL[name])[0][0], {"F": F, "x": x, "p": Tensor(np.array([0.25]))})
        (slope,) = minigrad.grad(found.sum(), x, create_graph=True)
        (expected,) = torch.autograd.grad(theirs(exact, 0.25).sum(), exact, create_graph=True)
        assert_allclose(slope.numpy(), expected.detach().numpy(), rtol=1e-12, err_msg=str(number))
        (curvature,) = minigrad.grad(slope.sum(), x)
        (second,) = torch.autograd.grad(expected.sum(), exact)
        assert_allclose(curvature.numpy(), second.numpy(), rtol=1e-6, err_msg=str(number))


PLACES: dict[Any, tuple[tuple[Any, ...], dict[str, str]]] = {
    Net: ((torch.nn.Module,), OF_MODULES),
    nn: ((torch.nn,), IN_NN),
    nn.init: ((torch.nn.init,), IN_INIT),
    optim: ((torch.optim,), IN_OPTIM),
    F: ((TF,), IN_FUNCTIONAL),
    minigrad: ((torch, torch.func, TA), IN_MINIGRAD),
}
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
    **{name: lambda w: w["found"] is dict(w["model"].named_parameters())["new"] for name in ("ParameterList", "ParameterDict")},
    **{name: drawn_as(name) for name in IN_INIT},
    "Adam": lambda w: type(w["found"]) is optim.AdamW and w["found"].param_groups[0]["weight_decay"] == 0,
    "save": lambda w: set(load_state(w["path"])[0]) == set(w["model"].state_dict()),
    "randint": lambda w: w["found"].shape == (3, 2) and w["found"].dtype.kind == "i",
    "rand": lambda w: w["found"].shape == (3, 2) and w["found"].dtype == np.float32,
    "randn": lambda w: w["found"].shape == (3, 2) and w["found"].dtype == np.float32,
    "empty": lambda w: w["found"].shape == (3, 2),
}
COMPARED = {*IN_TORCH, *LAYERS, "BatchNorm1d", "Conv1d", "Embedding", "MultiheadAttention"}
"""Whose advice is run above; with that for tensors, which other places repeat."""


EVERY = [(place, name) for place, (_, instead) in PLACES.items() for name in instead]
OTHER = [(place, name) for place, name in EVERY if place is Net or not (name in COMPARED or INSTEAD.get(name) == PLACES[place][1][name])]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_every_name_is_pytorch_s_and_its_error_gives_the_advice(place: Any):
    theirs, instead = PLACES[place]
    advice = next(key for key, value in vars(pytorch_names).items() if value is instead)
    asked = Net() if place is Net else place
    for name in instead:
        assert any(hasattr(there, name) for there in theirs) and not hasattr(place, name), there_now(place.__name__, name, advice)
        assert getattr(place, name, None) is None
        with pytest.raises(AttributeError) as caught:
            getattr(asked, name)
        said = f"Net has no attribute {name!r}, which PyTorch's has" if place is Net else f"module {place.__name__!r} has no attribute {name!r}"
        assert str(caught.value) == f"{said}; write {instead[name]}" and caught.value.name == name and caught.value.obj is asked


@pytest.mark.parametrize(("place", "name"), OTHER, ids=[f"{place.__name__}.{name}" for place, name in OTHER])
def test_advice_that_has_nothing_to_compare_runs_and_leaves_what_it_should(place: Any, name: str, tmp_path: Path):
    instead, model = PLACES[place][1], Net()
    words: Words = {**NUMBERS, **INTEGERS, **LIBRARIES, **{key: Tensor(value) for key, value in TENSORS.items()}, "nn": nn, "optim": optim}
    words |= {"generator": rng(0), "model": model, "path": tmp_path / "a.safetensors", "dtype": np.float64, "part": model.part, "place": place}
    words |= {"array": np.ones((4, 4)), "parameters": list(model.parameters()), "module": nn.Identity(), "function": Tensor.exp}
    words |= {"optimizer": optim.SGD(model.parameters(), lr=0.1), "lr": 0.1, "total": 9, "warmup": 2, "name": NAMES.get(name, "new")}
    words["tensor"] = nn.Parameter(np.zeros((60, 160) if name == "eye_" else (40, 60, 2, 2))) if place is nn.init else Tensor(1.0)
    if any(word in instead[name] for word in ("model(x)", "part(x)", "score")):
        words["x"] = Tensor(np.ones((2, 4), np.float32))
        words["h"] = model.part(words["x"])
        words["score"] = (words["h"] * words["h"]).sum()
    if name in ("RMSNorm", "Dropout2d", "ConvTranspose2d"):
        words |= {key: Tensor(value) if key != "shape" else value for key, value in OTHER_TENSORS.get(name, {}).items()}
    if name == "load":
        save_state(words["path"], model.state_dict())
    with minigrad.emulated() if "cuda" in instead[name] else nullcontext():
        for code in itertools.chain(*alternatives(instead[name])):
            words["found"] = run(code, words) if not code.startswith(("from ", "with ")) and " = " not in code else exec(code, words)
        assert LEAVES.get(name, lambda words: True)(words)


def test_functional_says_what_to_write_for_torchs_own_names():
    """`F.cat` is looked for there as well as `minigrad.cat`."""
    names = IN_MINIGRAD.keys() - IN_FUNCTIONAL.keys() - set(F.__all__)
    assert "cat" in names
    for name in names:
        with pytest.raises(AttributeError, match=f"^module 'minigrad.functional' has no attribute '{name}'; write {re.escape(IN_MINIGRAD[name])}$"):
            getattr(F, name)


def test_the_module_is_not_pytorchs_function():
    for arguments, options in (([[1.0, 2.0]], {}), ([], {"data": 3, "dtype": np.float32})):
        with pytest.raises(TypeError, match=r"^minigrad\.tensor is a module; write `minigrad\.Tensor\(values\)`$"):
            minigrad.tensor(*arguments, **options)


def test_no_advice_for_functions_is_left_without_a_comparison():
    assert IN_FUNCTIONAL.keys() <= IN_TORCH.keys(), "say in IN_TORCH, above, what PyTorch's own is called with"


@pytest.mark.parametrize("name", F.__all__)
def test_operations_are_found_in_functional(name: str):
    if name in vars(minigrad) or name in IN_MINIGRAD:
        return
    with pytest.raises(AttributeError, match=rf"^module 'minigrad' has no attribute '{name}'; write `F\.{name}`, where F is minigrad\.functional$"):
        getattr(minigrad, name)


@pytest.mark.parametrize("module", [F, nn, nn.init, optim, minigrad], ids=lambda module: module.__name__)
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
