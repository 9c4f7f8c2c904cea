"""dropout and drop_path with given masks against the formula in PyTorch. Read next: `test_conv2d.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.dropout import drop_path, dropout
from tests.proofs import Case, Pin, Proof, Refusal
from tests.support import lengths, rng, shapes

probabilities = st.sampled_from([0.5, 0.1, 0.7, 0.5, 0.0, 0.999999, 1.0])


def case(shape: tuple[int, ...], p: float, as_float: bool, seed: int = 0, of_samples: bool = False) -> Case:
    random = rng(seed)
    x = random.uniform(-2, 2, shape)
    mask = np.asarray(random.random(shape[:1] if of_samples else shape) >= p)
    return Case([x, mask.astype(float) if as_float else mask], {"p": p}, needs=(True, False))


def formula(x: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """What torch.nn.functional.dropout does, which draws the mask itself."""
    if mask.shape != x.shape or not 0 <= p <= 1:
        raise ValueError("not a mask for x, or not a probability")
    return x * mask / (1 - p) if p < 1 else x * 0


def formula_by_sample(x: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    """`drop_path` of timm 0.3.2, with the mask given."""
    return formula(x, mask.reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape), p)


refused = ["p must be a probability between 0 and 1, it is -0.1", "it is 1.5", "it is nan"]


class TestDropout(Proof):
    op = dropout
    in_torch = staticmethod(formula)
    cases = st.builds(case, shapes(), probabilities, st.booleans(), st.integers(0, 9999))
    share = 0.9
    examples = [
        case((4, 5), 0.1, False),
        case((), 0.5, True),
        case((0, 2), 0.5, False),
        case((3, 2), 0.0, False),
        case((3, 2), 1.0, True),
        case((2, 3), 0.999999, False),
    ]
    keeps = {"x": "mask"}
    float32 = [case((4, 17, 96), p, as_float) for p in (0.1, 0.9) for as_float in (True, False)]
    pins = [
        Pin("p = 1 gives zeros, not 0 / 0", Case([np.ones(2), np.zeros(2)], {"p": 1.0}, (True, False)), [[0.0, 0.0]]),
        Pin("p = 1 gives zeros, whatever the mask", Case([np.ones(2), np.ones(2)], {"p": 1.0}, (True, False)), [[0.0, 0.0]]),
        Pin("p = 0 keeps everything", Case([np.ones(2), np.ones(2, bool)], {"p": 0.0}, (True, False)), [[1.0, 1.0]]),
        Pin("what is kept is scaled", Case([np.ones(2), np.array([1.0, 0.0])], {"p": 0.75}, (True, False)), [[4.0, 0.0]]),
        Pin("nan is shown, also where it is dropped", Case([np.array([np.nan, np.nan]), np.array([True, False])], {"p": 0.5}, (True, False))),
    ]
    errors = [
        Refusal(Case([np.ones((3, 2)), np.ones(3)], {"p": 0.5}), ValueError, r"dropout: mask has shape \(3,\), x has shape \(3, 2\)"),
        *[
            Refusal(Case([np.ones(3), np.ones(3)], {"p": p}), ValueError, f"dropout: .*{why}")
            for p, why in zip((-0.1, 1.5, float("nan")), refused, strict=True)
        ],
    ]


class TestDropPath(Proof):
    op = drop_path
    in_torch = staticmethod(formula_by_sample)
    cases = st.builds(
        lambda batch, rest, *more: case((batch, *rest), *more, of_samples=True),
        lengths(2, 6, 0),
        shapes(max_dims=3, max_side=3),
        probabilities,
        st.booleans(),
        st.integers(0, 9999),
    )
    examples = [
        case((5, 2, 3), 0.5, False, 0, True),
        case((4, 3), 0.3, True, 6, True),
        case((3,), 0.5, True, 0, True),
        case((0, 2), 0.5, False, 0, True),
        case((1, 2, 2, 3), 0.999999, False, 0, True),
    ]
    keeps = {"x": "mask"}
    float32 = [case((8, 17, 96), p, as_float, 0, True) for p in (0.1, 0.9) for as_float in (True, False)]
    pins = [
        Pin("p = 1 gives zeros, not 0 / 0", Case([np.ones((2, 1)), np.zeros(2)], {"p": 1.0}, (True, False)), [[[0.0], [0.0]]]),
        Pin("p = 1 gives zeros, whatever the mask", Case([np.ones((2, 1)), np.ones(2)], {"p": 1.0}, (True, False)), [[[0.0], [0.0]]]),
        Pin("whole samples", Case([np.ones((2, 2)), np.array([True, False])], {"p": 0.5}, (True, False)), [[[2.0, 2.0], [0.0, 0.0]]]),
    ]
    errors = [
        Refusal(Case([np.ones((3, 2)), np.ones(2)], {"p": 0.5}), ValueError, r"drop_path: mask has shape \(2,\).*x shape \(3, 2\)"),
        Refusal(
            Case([np.ones((3, 2)), np.ones((3, 1))], {"p": 0.5}), ValueError, r"drop_path: mask has shape \(3, 1\)", "timm's mask is (B, 1, ...)."
        ),
        Refusal(Case([np.ones(()), np.ones(())], {"p": 0.5}), ValueError, r"drop_path: .*x shape \(\)"),
        *[
            Refusal(Case([np.ones(3), np.ones(3)], {"p": p}), ValueError, f"drop_path: .*{why}")
            for p, why in zip((-0.1, 1.5, float("nan")), refused, strict=True)
        ],
    ]


@pytest.mark.parametrize(("op", "layer"), [(dropout, "Dropout"), (drop_path, "DropPath")])
def test_a_call_as_in_pytorch_says_which_layer_draws_the_mask(op: Callable, layer: str):
    x = Tensor(np.ones((2, 3)))
    advice = rf"; where the mask is to be drawn, use nn\.{layer}\(p\), whose train\(\) and eval\(\) switch it on and off$"
    for call in (lambda: op(x, 0.5), lambda: op(x, p=0.5), lambda: op(x, 0.5, training=True), lambda: op(x, 0.5, True, False)):
        with pytest.raises(TypeError, match=f"^{op.name}: .*{advice}"):
            call()
    with pytest.raises(ValueError, match=rf"^{op.name}: mask has shape \(\),.*{advice}"):
        op(x, 0.5, True)
    with pytest.raises(ValueError, match=r"^drop.*mask has shape \(3,\),.*\(2, 3\)\)?$"):
        op(x, np.ones(3), 0.5)


@pytest.mark.parametrize("op", [dropout, drop_path])
def test_a_mask_that_requires_grad_is_refused(op: Any) -> None:
    mask = Tensor(np.array([1.0, 0.0, 1.0]), requires_grad=True)
    for context in (minigrad.enable_grad(), minigrad.definitions()):
        with context:
            x = Tensor(np.array([1.0, 2.0, 3.0]), requires_grad=True)
            with pytest.raises(ValueError, match=rf"^{op.name}: mask is a constant .*; pass mask\.detach\(\)$"):
                op(x, mask, 0.5)
            y = op(x, mask.detach(), 0.5)
            y.backward(Tensor(np.array([3.0, 5.0, 7.0])))
        np.testing.assert_array_equal(y.numpy(), [2.0, 0.0, 6.0])
        np.testing.assert_array_equal(x.grad.numpy(), [6.0, 0.0, 14.0])
        assert mask.grad is None
