"""docs/differences.md says in code what PyTorch's is written as here: both sides of each such row are computed, and so are their gradients.

That the page is otherwise as it should be is tested in `test_docs.py`, the advice for single names in `test_pytorch_names.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import minigrad
from minigrad import Tensor
from minigrad import functional as F

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "differences.md").read_text(encoding="utf-8")


def translations() -> list[tuple[str, str]]:
    """The rows of the page whose two sides are code."""
    return re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", PAGE, flags=re.MULTILINE)


def functions() -> dict[str, Any]:
    """What the right sides are made of: the page's own functions, too."""
    code = "".join(re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
    names: dict[str, Any] = {"np": np, "F": F, "Tensor": Tensor, "minigrad": minigrad}
    for definition in re.findall(r"^def .*\n(?:(?: .*)?\n)+", code, flags=re.MULTILINE):
        exec(definition, names)
    return names


FUNCTIONS: dict[str, Callable] = {"f": lambda x: (x.exp() * x * x[:1]).sum(), "h": lambda x: (x * x * x).sum(1) + x.exp()[:, 0]}
"""That both sides derive."""


def test_there_are_translations() -> None:
    assert len(translations()) > 25


KINKS = {"x.max(1).values", "x.norm()", "x.std(0)"}
"""Of zeros their gradients are others than PyTorch's, as the page says: `max` shares ties, and a root of 0 has an infinite slope."""


@pytest.mark.parametrize("numbers", ["float64", "float32", "zeros"])
@pytest.mark.parametrize(("theirs", "ours"), translations(), ids=[theirs for theirs, _ in translations()])
def test_both_sides_of_a_translation_compute_the_same(theirs: str, ours: str, numbers: str) -> None:
    generator = np.random.default_rng(3)
    dtype = np.float32 if numbers == "float32" else np.float64
    shapes = {"x": (4, 3), "y": (4, 3), "q": (2, 2, 4, 3), "maps": (2, 5, 4, 3)}
    arrays = {name: (generator.standard_normal(shape) * (numbers != "zeros")).astype(dtype) for name, shape in shapes.items()}
    floats = {"p": generator.random((4, 3)).astype(dtype), "w": generator.uniform(0.5, 2, 3).astype(dtype)}
    integers = {"labels": np.array([2, 0, 1, 2]), "pixels": generator.integers(0, 3, (2, 5, 4))}
    tensors = {name: Tensor(array, requires_grad=True) for name, array in arrays.items()}
    torches = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    nchw = {**torches, "maps": torches["maps"].permute(0, 3, 1, 2)}
    constants = {name: Tensor(array) for name, array in floats.items()}
    found = eval(ours, {**functions(), **FUNCTIONS, **constants, **integers, **tensors})
    constants = {name: torch.tensor(array) for name, array in {**floats, **integers}.items()}
    expected = eval(theirs, {"torch": torch, "TF": torch.nn.functional, "TA": torch.autograd.functional, **FUNCTIONS, **constants, **nchw})
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-10, "atol": 1e-12}
    right = expected.detach().numpy()
    assert found.shape == right.shape and found.dtype == right.dtype and found.requires_grad == expected.requires_grad
    assert_allclose(found.numpy(), right, **near)
    if found.requires_grad and not (numbers == "zeros" and theirs in KINKS):
        upstream = generator.uniform(0.5, 1.5, found.shape).astype(dtype)
        found.backward(Tensor(upstream))
        expected.backward(torch.tensor(upstream))
        for name, tensor in tensors.items():
            gradient = torches[name].grad
            assert (tensor.grad is None) == (gradient is None)
            if gradient is not None and tensor.grad is not None:
                assert_allclose(tensor.grad.numpy(), gradient.numpy(), **near)


@pytest.mark.parametrize("x", [-1000.0, -30.0, -17.0, -0.0, 0.0, 17.0, 90.0, 1000.0])
def test_what_is_made_of_exponentials_is_exact_far_from_0_too(x: float) -> None:
    """Values and slopes, those of the losses for targets at both ends too; at 0 the sigmoid's is a half."""
    code = dict(translations())
    exact = dict.fromkeys(("torch.sigmoid(x)", "TF.silu(x)", "TF.softplus(x)", "TF.elu(x)"), 0.0)
    for theirs, near in {**exact, "TF.binary_cross_entropy_with_logits(x, p)": 1e-7}.items():  # PyTorch's own takes the logarithm from x
        for p in (0.0, 1.0) if "p)" in theirs else (0.0,):
            ours, t = Tensor([x], requires_grad=True), torch.tensor([x], requires_grad=True)
            found = eval(code[theirs], {"F": F, "x": ours, "p": Tensor([p])})
            expected = eval(theirs, {"torch": torch, "TF": torch.nn.functional, "x": t, "p": torch.tensor([p])})
            assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-6, atol=near)
            found.sum().backward()
            expected.sum().backward()
            assert ours.grad is not None and t.grad is not None
            assert_allclose(ours.grad.numpy(), t.grad.numpy(), rtol=1e-6, atol=1e-7)
