"""Every block of the Conformer by itself against the independent PyTorch one: state names and shapes, outputs, all gradients, running statistics.

Hypothesis draws widths, sizes, strides and rates of a few units; `tests/nn/parity.py` compares, by kernels and by definitions, in training (with the
same dropout masks) and in evaluation. What the blocks promise about themselves is in test_model.py, whole networks are in test_parity.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer import Block, ConformerConfig, ConvBlock, ConvTransBlock, FCUDown, FCUUp, Med_ConvBlock, Mlp
from conformer.config import BlockPlan
from minigrad import Tensor, nn
from minigrad import functional as F
from tests.conformer import torch_conformer
from tests.nn.parity import check_layer
from tests.support import rng

EXAMPLES = settings().max_examples  # of the profile; of blocks with many options there are more
SEEDS = st.integers(0, 2**32 - 1)
RATES = st.sampled_from([0.0, 0.1, 0.5, 0.8])
WIDTHS = st.integers(1, 4)


@given(tokens=st.tuples(st.integers(1, 3), st.integers(1, 5)), dim=WIDTHS, hidden=WIDTHS, drop=RATES, seed=SEEDS)
def test_mlp_equals_torch(tokens: tuple[int, int], dim: int, hidden: int, drop: float, seed: int):
    check_layer(Mlp(dim, hidden, drop), torch_conformer.Mlp(dim, hidden, drop), rng(seed).standard_normal((*tokens, dim)), seed=seed)


@settings(max_examples=2 * EXAMPLES)
@given(
    tokens=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    heads=st.integers(1, 3),
    head_width=st.integers(2, 4),
    mlp_ratio=st.sampled_from([0.5, 1, 2.6]),
    qkv_bias=st.booleans(),
    qk_scale=st.sampled_from([None, 0.3, -0.7]),
    rates=st.tuples(RATES, RATES, RATES),
    seed=SEEDS,
)
def test_transformer_block_equals_torch(
    tokens: tuple[int, int],
    heads: int,
    head_width: int,
    mlp_ratio: float,
    qkv_bias: bool,
    qk_scale: float | None,
    rates: tuple[float, float, float],
    seed: int,
):
    dim = heads * head_width
    ours = Block(dim, heads, int(dim * mlp_ratio), qkv_bias, qk_scale, *rates)
    check_layer(ours, torch_conformer.Block(dim, heads, mlp_ratio, qkv_bias, qk_scale, *rates), rng(seed).standard_normal((*tokens, dim)), seed=seed)


@settings(max_examples=2 * EXAMPLES)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(3, 5), st.integers(3, 5)),
    middle=st.integers(1, 3),
    inplanes=st.integers(1, 6),
    stride=st.integers(1, 2),
    res_conv=st.booleans(),
    with_tokens=st.booleans(),
    seed=SEEDS,
)
def test_conv_block_equals_torch(size: tuple[int, ...], middle: int, inplanes: int, stride: int, res_conv: bool, with_tokens: bool, seed: int):
    """With odd and even maps; an identity shortcut needs as many channels and pixels behind as before."""
    inplanes, stride = (inplanes, stride) if res_conv else (4 * middle, 1)
    inputs = [rng(seed).standard_normal((*size, inplanes))] + [rng(seed + 1).standard_normal((*size, middle))] * with_tokens
    ours, theirs = ConvBlock(inplanes, 4 * middle, stride, res_conv), torch_conformer.ConvBlock(inplanes, 4 * middle, stride, res_conv)
    check_layer(ours, theirs, *inputs, seed=seed)


@given(size=st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(2, 4)), middle=st.integers(1, 3), seed=SEEDS)
def test_med_conv_block_equals_torch(size: tuple[int, ...], middle: int, seed: int):
    channels = 4 * middle
    x = rng(seed).standard_normal((*size, channels))
    check_layer(Med_ConvBlock(channels), torch_conformer.ConvBlock(channels, channels), x, seed=seed)


@settings(max_examples=2 * EXAMPLES)
@given(
    batch=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    d=st.integers(1, 4),
    spare=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    inplanes=WIDTHS,
    embed=st.integers(3, 6),
    doubled=st.booleans(),
    seed=SEEDS,
)
def test_fcu_down_equals_torch(
    batch: int, grid: tuple[int, int], d: int, spare: tuple[int, int], inplanes: int, embed: int, doubled: bool, seed: int
):
    """Pooling before the 1x1 convolution is the official order's result; pixels that fill no token are left out."""
    height, width = (side * d + min(more, d - 1) for side, more in zip(grid, spare, strict=True))
    x = rng(seed).standard_normal((batch, height, width, inplanes))
    x_t = rng(seed + 1).standard_normal((batch, 1 + grid[0] * grid[1], embed))

    def run(layer: torch.nn.Module, x: torch.Tensor, x_t: torch.Tensor) -> torch.Tensor:
        class_token = x_t[:, :1] if doubled else torch.zeros(batch, 1, embed, dtype=torch.float64)
        return torch.cat([class_token, layer(x)], dim=1)

    check_layer(FCUDown(inplanes, embed, d, doubled), torch_conformer.FCUDown(inplanes, embed, d), x, x_t, run=run, seed=seed)


@given(
    batch=st.integers(1, 3),
    grid=st.sampled_from([(1, 3), (2, 2), (2, 3), (3, 1)]),
    d=st.integers(1, 4),
    embed=WIDTHS,
    outplanes=WIDTHS,
    seed=SEEDS,
)
def test_fcu_up_equals_torch(batch: int, grid: tuple[int, int], d: int, embed: int, outplanes: int, seed: int):
    class Ours(FCUUp):
        def forward(self, x_t: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x_t, *grid)

    x_t = rng(seed).standard_normal((batch, 1 + grid[0] * grid[1], embed))
    theirs = torch_conformer.FCUUp(embed, outplanes, d)
    check_layer(Ours(embed, outplanes, d), theirs, x_t, run=lambda layer, x_t: layer(x_t, *grid), seed=seed)


@st.composite
def coupled(draw: st.DrawFn) -> tuple[ConformerConfig, BlockPlan]:
    """One ConvTransBlock of any place in a network: its options, and its plan."""
    heads = draw(st.integers(1, 2))
    config = ConformerConfig(
        patch_size=draw(st.sampled_from([16, 32])),
        base_channel=4,
        channel_ratio=draw(st.integers(1, 2)),
        num_med_block=draw(st.integers(0, 2)),
        embed_dim=heads * draw(st.integers(2, 4)),
        depth=draw(st.sampled_from([3, 6, 9])),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from([1.0, 2.6])),
        qkv_bias=draw(st.booleans()),
        qk_scale=draw(st.sampled_from([None, 0.7])),
        drop_rate=draw(RATES),
        attn_drop_rate=draw(RATES),
        drop_path_rate=draw(RATES),
        double_class_token=draw(st.booleans()),
    )
    return config, draw(st.sampled_from(config.blocks()))


@settings(max_examples=3 * EXAMPLES)  # the place in the network is drawn too, and 25 draws had no last block without a projection
@given(place=coupled(), grid=st.sampled_from([(2, 2), (1, 3), (3, 2)]), batch=st.integers(2, 3), seed=SEEDS)
def test_conv_trans_block_equals_torch(place: tuple[ConformerConfig, BlockPlan], grid: tuple[int, int], batch: int, seed: int):
    config, plan = place
    options = dict(
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        qk_scale=config.qk_scale,
        drop=config.drop_rate,
        attn_drop=config.attn_drop_rate,
        drop_path=plan.drop_path_rate,
    )
    theirs = torch_conformer.ConvTransBlock(
        plan.inplanes,
        plan.outplanes,
        plan.res_conv,
        plan.stride,
        plan.dw_stride,
        config.embed_dim,
        plan.last_fusion,
        config.num_med_block,
        config.double_class_token,
        options,
    )
    side = plan.dw_stride * plan.stride
    x = rng(seed).standard_normal((batch, grid[0] * side, grid[1] * side, plan.inplanes))
    x_t = rng(seed + 1).standard_normal((batch, 1 + grid[0] * grid[1], config.embed_dim))
    check_layer(ConvTransBlock(config, plan), theirs, x, x_t, seed=seed, relative=1e-10)


@given(shape=st.tuples(*[st.integers(1, 4)] * 4), seed=SEEDS)
def test_global_average_pooling_equals_torch(shape: tuple[int, ...], seed: int):
    """What the CNN head reads; a function here, so a layer is made of it."""

    class Ours(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.global_avg_pool2d(x)

    check_layer(Ours(), torch.nn.Identity(), rng(seed).standard_normal(shape), run=lambda _, x: x.mean((2, 3)), seed=seed)


@pytest.mark.parametrize(
    ("block", "shapes", "message"),
    [
        (Mlp(4, 8), [(2, 3, 5)], "linear: .*5.*4"),
        (Block(4, 2, 8), [(2, 3, 5)], "layer_norm: .*5.*4"),
        (Block(4, 2, 8), [(3, 4)], r"MultiHeadAttention: .*give tokens \(B, N, E\)"),
        (ConvBlock(4, 8, res_conv=True), [(2, 4, 3, 3)], "conv2d: .*channels"),
        (ConvBlock(8, 8), [(2, 3, 3, 8), (2, 2, 2, 2)], r"add: shapes \(2, 3, 3, 2\) and \(2, 2, 2, 2\) do not broadcast"),
        (FCUDown(2, 4, 2), [(2, 3, 4, 4), (2, 5, 4)], "conv2d: .*channels"),
        (FCUDown(2, 4, 4), [(2, 3, 3, 2), (2, 2, 4)], "avg_pool2d: "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_inputs_that_do_not_fit_are_refused_in_one_sentence(block: nn.Module, shapes: list[tuple[int, ...]], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        block(*[Tensor(np.ones(shape, np.float32)) for shape in shapes])
    assert "\n" not in str(caught.value)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim is 6 and num_heads 4; the heads must divide the width"):
        Block(6, 4, 8)


def test_maps_in_pytorchs_order_are_told_how_to_turn():
    with pytest.raises(ValueError, match=r"conv2d: .*channels.*transpose\(0, 2, 3, 1\)"):
        ConvBlock(4, 8, res_conv=True)(Tensor(np.ones((2, 4, 6, 6), np.float32)))
