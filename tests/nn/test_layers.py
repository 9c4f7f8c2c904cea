"""Every layer against PyTorch's in float64: names and shapes of the state, outputs, all gradients under a random upstream gradient, both modes.

What Hypothesis draws is a layer's options and the sizes of its input; `parity.py` compares. Batch norm's statistics over several steps are in
test_norm.py, what dropout drops in test_dropout.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, nn
from tests.conformer.torch_conformer import Attention
from tests.nn.parity import Dropout, DropPath, check_layer
from tests.support import arrays, assert_close, rng, shapes

EXAMPLES = settings().max_examples  # of the profile: the counts below are multiples of it
SEEDS = st.integers(0, 2**32 - 1)


@given(x=arrays(shapes(min_dims=1, max_dims=4, min_side=1)), out_features=st.integers(1, 5), bias=st.booleans(), seed=SEEDS)
def test_linear(x: np.ndarray, out_features: int, bias: bool, seed: int):
    theirs = torch.nn.Linear(x.shape[-1], out_features, bias=bias)
    check_layer(
        nn.Linear(x.shape[-1], out_features, bias=bias),
        theirs,
        x,
        run=lambda layer, x: through_last_axis(layer, x) if x.ndim == 4 else layer(x),
        seed=seed,
    )


def through_last_axis(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """PyTorch's layer over the channels of a map (B, C, H, W)."""
    return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@settings(max_examples=2 * EXAMPLES)
@given(data=st.data(), bias=st.booleans(), seed=SEEDS)
def test_conv2d(data: st.DataObject, bias: bool, seed: int):
    """Input sizes are made from output sizes, with rows and columns to spare that fill no window."""
    groups, pairs = data.draw(st.sampled_from([1, 1, 2, 3])), []
    for _ in range(2):
        kernel, stride, dilation, padding = (data.draw(st.integers(low, high)) for low, high in ((1, 3), (1, 3), (1, 2), (0, 2)))
        least = dilation * (kernel - 1) + 1
        size = (data.draw(st.integers(1, 3)) - 1) * stride + least + data.draw(st.integers(0, stride - 1)) - 2 * padding
        pairs.append((kernel, stride, padding, dilation, max(size, 1)))
    kernel, stride, padding, dilation, size = zip(*pairs, strict=True)
    arguments = dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
    channels = [groups * data.draw(st.integers(1, 3)) for _ in range(2)]
    x = rng(seed).standard_normal((data.draw(st.integers(1, 3)), *size, channels[0]))
    check_layer(nn.Conv2d(*channels, **arguments), torch.nn.Conv2d(*channels, **arguments), x, seed=seed)


@pytest.mark.parametrize("kernel", [1, 3])
def test_conv2d_takes_one_number_for_both_axes(kernel: int):
    arguments = dict(kernel_size=kernel, stride=2, padding=1, dilation=2)
    check_layer(nn.Conv2d(4, 6, **arguments), torch.nn.Conv2d(4, 6, **arguments), rng().standard_normal((2, 6, 7, 4)))


@pytest.mark.parametrize(
    "arguments",
    [{}, dict(stride=(2, 1)), dict(padding=(1, 0)), dict(padding=(0, 1)), dict(dilation=(1, 2)), dict(dilation=2), dict(groups=2), dict(bias=False)],
    ids=str,
)
def test_conv2d_says_of_itself_what_pytorchs_says(arguments: dict[str, Any]):
    assert repr(nn.Conv2d(4, 6, (3, 1), **arguments)) == repr(torch.nn.Conv2d(4, 6, (3, 1), **arguments))


def test_conv2d_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match=r"groups is 3; it must divide in_channels \(4\) and out_channels \(6\)"):
        nn.Conv2d(4, 6, 3, groups=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Conv2d(4, 6, 1.5), "Conv2d: kernel_size must be a whole number of at least 1 or a pair .* of them, it is 1.5"),
        (lambda: nn.Conv2d(4, 6, 3, padding=-1), "Conv2d: padding must be a whole number of at least 0 .* it is -1"),
        (lambda: nn.Conv2d(4, 6, 3, dilation=(1, 0)), r"Conv2d: dilation must be a whole number of at least 1 .* it is \(1, 0\)"),
        (lambda: nn.MaxPool2d((2, 2, 2)), r"MaxPool2d: kernel_size must be .* it is \(2, 2, 2\)"),
        (lambda: nn.AvgPool2d(2, stride=0), "AvgPool2d: stride must be a whole number of at least 1 .* it is 0"),
    ],
    ids=["fraction", "negative", "zero in a pair", "three", "zero"],
)
def test_windows_are_whole_numbers_or_pairs_of_them(make: Callable[[], nn.Module], message: str):
    """Said where the layer is made, not at the first image."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(8 * 4.0, 8), "Linear: in_features must be a whole number of at least 0, it is 32.0"),  # type: ignore[arg-type]
        (lambda: nn.Linear(8, -1), "Linear: out_features must be .*, it is -1"),
        (lambda: nn.Conv2d(3, 8 / 2, 3), "Conv2d: out_channels must be .*, it is 4.0"),  # type: ignore[arg-type]
        (lambda: nn.Conv2d(4, 4, 3, groups=2.0), "Conv2d: groups must be .*, it is 2.0"),  # type: ignore[arg-type]
        (lambda: nn.BatchNorm2d(8 / 2), "BatchNorm2d: num_features must be .*, it is 4.0"),  # type: ignore[arg-type]
        (lambda: nn.LayerNorm(8 / 2), "LayerNorm: normalized_shape must be .*, it is 4.0"),  # type: ignore[arg-type]
        (lambda: nn.LayerNorm([4.0]), "LayerNorm: normalized_shape must be .*, it is 4.0"),  # type: ignore[list-item]
        (lambda: nn.ReLU(inplace=True), "ReLU: inplace is True, but no operation writes into its input here; leave it out"),
        (lambda: nn.GELU("tanh"), "GELU: approximate is 'tanh', but only the exact function is here"),
    ],
)
def test_arguments_that_a_layer_does_not_take_are_refused_by_its_name(make: Callable[[], nn.Module], message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_layers_take_arguments_that_pytorchs_take_and_that_change_nothing():
    x = Tensor([1.0, -2.0])
    assert nn.Identity(54, unused=True)(x) is x
    np.testing.assert_array_equal(nn.ReLU(inplace=False)(x).numpy(), [1.0, 0.0])
    assert repr(nn.Sequential(nn.ReLU(False), nn.GELU("none"))) == repr(nn.Sequential(nn.ReLU(), nn.GELU()))
    assert nn.LayerNorm(np.int64(3)).normalized_shape == nn.LayerNorm(np.array([3])).normalized_shape == (3,)


@given(
    x=arrays(shapes(min_dims=1, max_dims=4, min_side=1).map(lambda shape: (*shape[:-1], shape[-1] + 2))),
    eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
    affine=st.sampled_from([(True, True), (True, False), (False, True)]),
    seed=SEEDS,
)
def test_layer_norm(x: np.ndarray, eps: float, affine: tuple[bool, bool], seed: int):
    options = dict(eps=eps, elementwise_affine=affine[0], bias=affine[1])
    ours, theirs = nn.LayerNorm(x.shape[-1], **options), torch.nn.LayerNorm(x.shape[-1], **options)
    check_layer(ours, theirs, x, run=lambda layer, x: through_last_axis(layer, x) if x.ndim == 4 else layer(x), seed=seed)


def test_layer_norm_takes_one_axis():
    assert nn.LayerNorm((6,)).normalized_shape == (6,)
    assert repr(nn.LayerNorm(6)) == "LayerNorm((6,), eps=1e-05)"
    assert repr(nn.LayerNorm(6, elementwise_affine=False)) == "LayerNorm((6,), eps=1e-05, elementwise_affine=False)"
    with pytest.raises(ValueError, match=r"normalized_shape is \(2, 6\)"):
        nn.LayerNorm((2, 6))


@st.composite
def pooled(draw: st.DrawFn) -> tuple[list[Any], tuple[int, ...]]:
    """Kernel, stride and padding of a pooling layer, and the shape of its input, with rows and columns to spare that fill no window."""
    pairs = []
    for _ in range(2):
        kernel = draw(st.integers(1, 3))
        stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, kernel // 2))
        size = (draw(st.integers(1, 3)) - 1) * stride + kernel + draw(st.integers(0, stride - 1)) - 2 * padding
        pairs.append((kernel, stride, padding, max(size, 1)))
    kernel, stride, padding, size = zip(*pairs, strict=True)
    return [kernel, stride, padding], (draw(st.integers(1, 3)), *size, draw(st.integers(1, 3)))


@pytest.mark.parametrize("name", ["MaxPool2d", "AvgPool2d"])
@given(windows=pooled(), seed=SEEDS)
def test_pooling(name: str, windows: tuple[list[Any], tuple[int, ...]], seed: int):
    arguments, shape = windows
    check_layer(getattr(nn, name)(*arguments), getattr(torch.nn, name)(*arguments), rng(seed).standard_normal(shape), seed=seed)


@pytest.mark.parametrize("name", ["MaxPool2d", "AvgPool2d"])
def test_pooling_windows_need_not_overlap(name: str):
    check_layer(getattr(nn, name)(2), getattr(torch.nn, name)(2), rng().standard_normal((2, 6, 7, 3)))


@pytest.mark.parametrize("name", ["ReLU", "GELU", "Identity"])
@given(x=arrays(shapes(max_dims=3)), seed=SEEDS)
def test_activations(name: str, x: np.ndarray, seed: int):
    check_layer(getattr(nn, name)(), getattr(torch.nn, name)(), x, seed=seed)


@pytest.mark.parametrize(("kind", "reference"), [(nn.Dropout, Dropout), (nn.DropPath, DropPath)], ids=["Dropout", "DropPath"])
@given(x=arrays(shapes(min_dims=1, max_dims=3)), p=st.sampled_from([0.0, 0.1, 0.5, 0.9]), seed=SEEDS)
def test_dropout(kind: Any, reference: Any, x: np.ndarray, p: float, seed: int):
    check_layer(kind(p), reference(p), x, seed=seed)


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    heads=st.integers(1, 3),
    head_width=st.integers(1, 4),
    qkv_bias=st.booleans(),
    qk_scale=st.sampled_from([None, 0.7, -2.0]),
    rates=st.tuples(*[st.sampled_from([0.0, 0.3, 0.7])] * 2),
    seed=SEEDS,
)
def test_attention(
    sizes: tuple[int, int], heads: int, head_width: int, qkv_bias: bool, qk_scale: float | None, rates: tuple[float, float], seed: int
):
    dim = heads * head_width
    ours = nn.MultiHeadAttention(dim, heads, qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop=rates[0], proj_drop=rates[1])
    check_layer(ours, Attention(dim, heads, qkv_bias, qk_scale, *rates), rng(seed).standard_normal((*sizes, dim)), seed=seed)


def trees(leaves: st.SearchStrategy[tuple[nn.Module, torch.nn.Module]]) -> st.SearchStrategy[tuple[nn.Module, torch.nn.Module]]:
    """A Sequential, or a ModuleList, of what is below it."""
    several = st.lists(leaves, min_size=1, max_size=3)
    kinds = st.sampled_from([(nn.Sequential, torch.nn.Sequential, True), (nn.ModuleList, torch.nn.ModuleList, False)])

    def build(kind: Any, parts: list[tuple[nn.Module, torch.nn.Module]]) -> tuple[nn.Module, torch.nn.Module]:
        ours, theirs = zip(*parts, strict=True)
        return (kind[0](*ours), kind[1](*theirs)) if kind[2] else (kind[0](ours), kind[1](theirs))

    return st.builds(build, kinds, several)


LEAVES = st.sampled_from(
    [("Linear", (2, 3)), ("Conv2d", (2, 2, 1)), ("BatchNorm2d", (3,)), ("LayerNorm", (4,)), ("ReLU", ()), ("Dropout", (0.5,))]
).map(lambda leaf: (getattr(nn, leaf[0])(*leaf[1]), getattr(torch.nn, leaf[0])(*leaf[1])))


@given(pair=st.recursive(LEAVES, trees, max_leaves=8))
def test_any_tree_of_modules_has_pytorchs_names_in_pytorchs_order(pair: tuple[nn.Module, torch.nn.Module]):
    ours, theirs = pair
    for kind in ("named_modules", "named_parameters", "named_buffers"):
        assert [name for name, _ in getattr(ours, kind)()] == [name for name, _ in getattr(theirs, kind)()]
    state = {name: (tuple(value.shape), str(value.numpy().dtype)) for name, value in theirs.state_dict().items()}
    assert [(name, (value.shape, str(value.dtype))) for name, value in ours.state_dict().items()] == list(state.items())
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    assert all(np.array_equal(value, theirs.state_dict()[name].numpy()) for name, value in ours.state_dict().items())


def test_attention_is_pytorchs_own_multi_head_attention():
    ours, theirs = nn.MultiHeadAttention(8, 2, qkv_bias=True).to(dtype=np.float64), torch.nn.MultiheadAttention(8, 2, batch_first=True).double()
    state = {name: torch.tensor(value) for name, value in ours.state_dict().items()}
    renamed = {"qkv.weight": "in_proj_weight", "qkv.bias": "in_proj_bias", "proj.weight": "out_proj.weight", "proj.bias": "out_proj.bias"}
    theirs.load_state_dict({renamed[name]: value for name, value in state.items()})
    x = rng().standard_normal((2, 4, 8))
    assert_close(ours(Tensor(x)), theirs(torch.tensor(x), torch.tensor(x), torch.tensor(x), need_weights=False)[0])


def test_attention_names_and_errors():
    assert list(nn.MultiHeadAttention(6, 3).state_dict()) == ["qkv.weight", "proj.weight", "proj.bias"]
    assert nn.MultiHeadAttention(16).num_heads == 8
    assert list(nn.MultiHeadAttention(6, 3, qkv_bias=True).state_dict()) == ["qkv.weight", "qkv.bias", "proj.weight", "proj.bias"]
    with pytest.raises(ValueError, match="dim is 6 and num_heads 4; the heads must divide the width"):
        nn.MultiHeadAttention(6, 4)
    with pytest.raises(ValueError, match=r"give tokens \(B, N, E\)"):
        nn.MultiHeadAttention(6, 3)(Tensor(np.ones((5, 6))))
    with pytest.raises(ValueError, match="attn_drop is 1.0; it must be below 1"):
        nn.MultiHeadAttention(6, 3, attn_drop=1.0)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Linear(4, 2), (3, 5), "linear: .*5.*4"),
        (nn.Conv2d(3, 4, 3), (2, 3, 8, 8), "conv2d: .*channels"),
        (nn.Conv2d(3, 4, 5), (2, 3, 3, 3), "conv2d: "),
        (nn.BatchNorm2d(3), (2, 3, 8, 8), "batch_norm: .*channels"),
        (nn.BatchNorm2d(3), (3,), "batch_norm: "),
        (nn.LayerNorm(6), (2, 5), "layer_norm: .*5.*6"),
        (nn.MaxPool2d(5), (1, 3, 3, 2), "max_pool2d: "),
        (nn.AvgPool2d(2), (3, 3, 2), "avg_pool2d: "),
        (nn.MultiHeadAttention(6, 3), (2, 4, 5), "linear: .*5.*6"),
    ],
    ids=str,
)
def test_inputs_of_the_wrong_size_are_refused_in_one_sentence(layer: nn.Module, shape: tuple[int, ...], message: str):
    for array in (np.ones(shape, np.float32), np.ones(shape)):
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            layer.to(dtype=array.dtype)(Tensor(array))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "shape", "dtypes"),
    [
        (nn.Linear(4, 2), (3, 4), ["float64", "int32", "uint8", "bool"]),
        (nn.Conv2d(3, 4, 3), (1, 4, 4, 3), ["float64", "int32", "uint8", "bool"]),
        (nn.LayerNorm(4), (2, 4), ["float64", "int32", "uint8", "bool"]),
        (nn.BatchNorm2d(3), (2, 2, 2, 3), ["float64", "int32", "uint8", "bool"]),
        (nn.MultiHeadAttention(4, 2), (1, 3, 4), ["float64", "int32", "uint8", "bool"]),
        (nn.Dropout(0.5), (2, 3), ["int32", "uint8", "bool"]),
        (nn.DropPath(0.5), (2, 3), ["int32", "uint8", "bool"]),
        (nn.MaxPool2d(2), (1, 2, 2, 3), ["int32", "uint8", "bool"]),
        (nn.AvgPool2d(2), (1, 2, 2, 3), ["int32", "uint8", "bool"]),
        (nn.GELU(), (2, 3), ["int32", "uint8", "bool"]),
    ],
    ids=str,
)
def test_inputs_of_another_dtype_are_refused_in_one_sentence(layer: nn.Module, shape: tuple[int, ...], dtypes: list[str]):
    """Integers never, and floats only of the parameters' type."""
    for dtype in dtypes:
        for way in (minigrad.enable_grad, minigrad.definitions):
            with way(), pytest.raises((ValueError, TypeError), match=f"^[a-z_0-9]+: .*{dtype}") as caught:
                layer(Tensor(np.ones(shape, dtype)))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["AvgPool2d", "BatchNorm2d", "Conv2d", "Dropout", "LayerNorm", "Linear", "MaxPool2d"])
def test_what_is_not_given_is_pytorchs_choice(name: str):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (nn, torch.nn))
    assert {key: value.default for key, value in ours.items()} == {key: theirs[key].default for key in ours}
    assert inspect.signature(nn.DropPath).parameters["p"].default == 0.0  # timm's


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
