"""Every layer against PyTorch's in float64: weights copied through state_dict, outputs and all gradients compared under a random upstream gradient.

Layers with statistics or randomness have tests of their own beside this file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigrad import Tensor, nn
from tests.support import assert_close, rng


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x, requires_grad=True)


def check_layer(ours: nn.Module, theirs: torch.nn.Module, x: np.ndarray, maps: bool = False, run: Callable | None = None) -> None:
    """Compare output and gradients (of x and of every parameter); `maps`: x is (B, H, W, C), PyTorch's layer wants (B, C, H, W)."""
    ours.to(dtype=np.float64)
    theirs.double()
    theirs.load_state_dict({name: torch.tensor(value) for name, value in ours.state_dict().items()})
    our_x, their_x = Tensor(x, requires_grad=True), to_torch(x)
    reference = (run or theirs)(their_x.permute(0, 3, 1, 2) if maps else their_x)
    reference = reference.permute(0, 2, 3, 1) if maps else reference
    y = ours(our_x)
    assert_close(y, reference, f"{ours}: output")
    upstream = rng(3).uniform(-1, 1, y.shape)
    y.backward(Tensor(upstream))
    reference.backward(torch.tensor(upstream))
    assert_close(our_x.grad, their_x.grad, f"{ours}: gradient of x")
    their_parameters = dict(theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(their_parameters)
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, their_parameters[name].grad, f"{ours}: gradient of {name}")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(3,), (2, 3), ()])
def test_linear(bias: bool, leading: tuple[int, ...]):
    check_layer(nn.Linear(4, 5, bias=bias), torch.nn.Linear(4, 5, bias=bias), rng().standard_normal((*leading, 4)))


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.sampled_from([1, 3, (2, 3)]),
    stride=st.sampled_from([1, 2, (1, 2)]),
    padding=st.sampled_from([0, 1, (1, 2)]),
    dilation=st.sampled_from([1, 2, (2, 1)]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_conv2d(kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, bias: bool):
    arguments = dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
    check_layer(nn.Conv2d(4, 6, **arguments), torch.nn.Conv2d(4, 6, **arguments), rng().standard_normal((2, 6, 7, 4)), maps=True)


def test_conv2d_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"groups is 3; it must divide in_channels \(4\) and out_channels \(6\)"):
        nn.Conv2d(4, 6, 3, groups=3)


@pytest.mark.parametrize(("elementwise_affine", "bias"), [(True, True), (True, False), (False, True)])
def test_layer_norm(elementwise_affine: bool, bias: bool):
    ours = nn.LayerNorm(6, eps=1e-3, elementwise_affine=elementwise_affine, bias=bias)
    theirs = torch.nn.LayerNorm(6, eps=1e-3, elementwise_affine=elementwise_affine, bias=bias)
    if ours.weight is not None:
        ours.load_state_dict({name: rng(5).uniform(0.5, 1.5, value.shape) for name, value in ours.state_dict().items()})
    check_layer(ours, theirs, rng().standard_normal((2, 3, 6)))


def test_layer_norm_takes_one_axis():
    assert nn.LayerNorm((6,)).normalized_shape == (6,)
    with pytest.raises(ValueError, match=r"normalized_shape is \(2, 6\)"):
        nn.LayerNorm((2, 6))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, None, 0), (3, 2, 1), ((2, 3), (1, 2), (1, 0))])
@pytest.mark.parametrize("name", ["MaxPool2d", "AvgPool2d"])
def test_pooling(name: str, kernel: Any, stride: Any, padding: Any):
    check_layer(
        getattr(nn, name)(kernel, stride, padding), getattr(torch.nn, name)(kernel, stride, padding), rng().standard_normal((2, 6, 7, 3)), maps=True
    )


@pytest.mark.parametrize("name", ["ReLU", "GELU", "Identity"])
def test_activations(name: str):
    check_layer(getattr(nn, name)(), getattr(torch.nn, name)(), rng().standard_normal((3, 5)))


class TorchAttention(torch.nn.Module):
    """timm's attention, written out: qkv split as (3, heads, width), softmax, projection."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, qk_scale: float | None):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.qkv = torch.nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = torch.nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, e = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, e // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, e))


@pytest.mark.parametrize(("num_heads", "qkv_bias", "qk_scale"), [(2, True, None), (1, False, 0.7), (6, True, None)])
def test_attention(num_heads: int, qkv_bias: bool, qk_scale: float | None):
    ours = nn.MultiHeadAttention(6, num_heads, qkv_bias=qkv_bias, qk_scale=qk_scale)
    check_layer(ours, TorchAttention(6, num_heads, qkv_bias, qk_scale), rng().standard_normal((2, 5, 6)))


def test_attention_is_pytorchs_own_multi_head_attention():
    ours, theirs = nn.MultiHeadAttention(8, 2, qkv_bias=True).to(dtype=np.float64), torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    state = {name: torch.tensor(value) for name, value in ours.state_dict().items()}
    renamed = {"qkv.weight": "in_proj_weight", "qkv.bias": "in_proj_bias", "proj.weight": "out_proj.weight", "proj.bias": "out_proj.bias"}
    theirs.load_state_dict({renamed[name]: value for name, value in state.items()})
    x = rng().standard_normal((2, 4, 8))
    assert_close(ours(Tensor(x)), theirs(torch.tensor(x), torch.tensor(x), torch.tensor(x), need_weights=False)[0])


def test_attention_names_and_errors():
    assert list(nn.MultiHeadAttention(6, 3).state_dict()) == ["qkv.weight", "proj.weight", "proj.bias"]
    assert list(nn.MultiHeadAttention(6, 3, qkv_bias=True).state_dict()) == ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    with pytest.raises(ValueError, match="dim is 6 and num_heads 4; the heads must divide the width"):
        nn.MultiHeadAttention(6, 4)
    with pytest.raises(ValueError, match=r"give tokens \(B, N, E\)"):
        nn.MultiHeadAttention(6, 3)(Tensor(np.ones((5, 6))))


def test_layers_keep_float32():
    x = Tensor(rng().standard_normal((2, 6, 6, 4)).astype(np.float32))
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.LayerNorm(4),
        nn.Dropout(0.5),
        nn.DropPath(0.5),
        nn.GELU(),
        nn.Linear(4, 2),
    )
    y = model(x)
    assert y.dtype == np.float32
    y.backward(np.ones(y.shape, np.float32))
    assert all(parameter.grad is not None and parameter.grad.dtype == np.float32 for parameter in model.parameters())
