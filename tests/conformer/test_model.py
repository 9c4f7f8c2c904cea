"""The Conformer's own promises: order of operations, couplings, switches, initialisation, names and errors.

Parity with PyTorch is in test_oracle.py and test_parity.py.
"""

from __future__ import annotations

import gc
import re
import tracemalloc
from dataclasses import fields
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import conformer
import minigrad
from conformer import Block, ConformerConfig, ConvBlock, ConvTransBlock, FCUDown, FCUUp, Med_ConvBlock, count, parameter_groups
from conformer.blocks import note
from conformer.config import STEM_STRIDES
from minigrad import Tensor, nn, no_grad
from minigrad import functional as F
from tests.conformer.configurations import Case, cases, options
from tests.conformer.own_blocks import Nothing, Silent, Uncoupled
from tests.support import draws, normal

EXAMPLES = settings().max_examples  # of the profile: the counts below are multiples of it

SMALL = {"num_classes": 5, "embed_dim": 12, "num_heads": 3, "mlp_ratio": 2, "channel_ratio": 0.25, "stem_channels": 8, "stem": "cifar", "depth": 6}


def small(seed=0, **changes):
    """A model in float64 that takes 8 x 8 images, with norms and biases away from 1 and 0."""
    minigrad.manual_seed(seed)
    model = conformer.Conformer(**{**SMALL, **changes}).to(dtype="float64")
    rng = np.random.default_rng(seed)
    with no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(parameter.numpy() + 0.1 * rng.standard_normal(parameter.shape))
            elif name == "cls_token":
                parameter.copy_(rng.standard_normal(parameter.shape))
    return model


def values(tensors):
    return [tensor.numpy().copy() for tensor in tensors]


# --- blocks


def layer(module):
    """Make a module float64 and its batch norms' statistics something other than 0 and 1."""
    module.to(dtype="float64").eval()
    rng = np.random.default_rng(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean"):
                with no_grad():
                    getattr(norm, name).copy_(rng.standard_normal(norm.num_features))
    return module


def test_conv_block_adds_the_tokens_after_the_first_relu_and_hands_out_the_3x3():
    block = layer(ConvBlock(8, 16, stride=2, res_conv=True))
    x, x_t = normal(2, 6, 4, 8), normal(2, 6, 4, 4, seed=2)
    y, x2 = block(x, x_t)
    first = block.bn1(block.conv1(x)).relu() + x_t
    expected_x2 = block.bn2(block.conv2(first)).relu()
    shortcut = block.residual_bn(block.residual_conv(x))
    assert (first.numpy() < 0).any(), "sums below 0 reach the 3x3 convolution"
    assert_allclose(x2.numpy(), expected_x2.numpy(), rtol=0, atol=1e-12)
    assert_allclose(y.numpy(), (block.bn3(block.conv3(expected_x2)) + shortcut).relu().numpy(), rtol=0, atol=1e-12)
    assert x2.shape == (2, 3, 2, 4) and y.shape == (2, 3, 2, 16)


def test_conv_block_without_projection_adds_its_input():
    block = layer(ConvBlock(16, 16))
    x = normal(2, 3, 3, 16)
    y, x2 = block(x)
    assert_allclose(y.numpy(), (block.bn3(block.conv3(x2)) + x).relu().numpy(), rtol=0, atol=1e-12)
    assert list(block.state_dict()) == list(Med_ConvBlock(16).state_dict())


@pytest.mark.parametrize("side", [1, 2])
def test_fcu_down_gives_what_convolving_first_and_pooling_then_gives(side):
    down = layer(FCUDown(4, 6, side))
    x, x_t = normal(2, 4, 6, 4), normal(2, 1 + 24 // side**2, 6, seed=2)
    tokens = down(x, x_t)
    official = F.avg_pool2d(down.conv_project(x), side, side).reshape(2, -1, 6)
    assert_allclose(tokens.numpy()[:, 1:], F.gelu(down.ln(official)).numpy(), rtol=0, atol=1e-12)
    assert_array_equal(tokens.numpy()[:, 0], x_t.numpy()[:, 0])


def test_fcu_up_leaves_the_class_token_behind_and_repeats_each_token():
    up = layer(FCUUp(6, 4, 2))
    x_t = normal(2, 7, 6)
    y = up(x_t, 2, 3).numpy()
    assert y.shape == (2, 4, 6, 4)
    assert_allclose(y[:, ::2, ::2], y[:, 1::2, 1::2], rtol=1e-12)
    by_token = up.bn(up.conv_project(x_t[:, 1:].reshape(2, 2, 3, 6))).relu()
    assert_allclose(y[:, ::2, ::2], by_token.numpy(), rtol=0, atol=1e-12)


# --- the whole network


def test_logits_are_pooled_features_and_the_class_token():
    model, images = small().eval(), normal(2, 8, 12, 3)
    named = model.intermediates(images)
    conv_logits, trans_logits = model(images)
    assert conv_logits.shape == trans_logits.shape == (2, 5)
    last = named["conv_trans_6"].numpy()
    assert_allclose(conv_logits.numpy(), model.conv_cls_head(Tensor(last.mean((1, 2)))).numpy(), rtol=0, atol=1e-12)
    tokens = named["conv_trans_6.trans_block"]
    assert_allclose(trans_logits.numpy(), model.trans_cls_head(model.trans_norm(tokens)[:, 0]).numpy(), rtol=0, atol=1e-12)


def test_intermediates_come_in_order_and_from_the_same_computation():
    model, images = small(num_med_block=1).eval(), normal(2, 8, 8, 3)
    named = model.intermediates(images)
    block = ["norm1", "attn", "norm2", "mlp"]
    expected = ["stem", "conv_1", "trans_patch_conv", "tokens", *(f"trans_1.{part}" for part in block), "trans_1"]
    for i in range(2, 7):
        inner = [
            "cnn_block",
            "squeeze_block",
            *(f"trans_block.{part}" for part in block),
            "trans_block",
            "med_block.0",
            "expand_block",
            "fusion_block",
        ]
        expected += [*(f"conv_trans_{i}.{name}" for name in inner), f"conv_trans_{i}"]
    expected += ["pooling", "conv_cls_head", "trans_norm", "trans_cls_head"]
    assert list(named) == expected
    conv_logits, trans_logits = model(images)
    assert_array_equal(named["conv_cls_head"].numpy(), conv_logits.numpy())
    assert_array_equal(named["trans_cls_head"].numpy(), trans_logits.numpy())
    tokens = named["trans_1"].numpy()
    assert_allclose(tokens, named["tokens"].numpy() + named["trans_1.attn"].numpy() + named["trans_1.mlp"].numpy(), rtol=0, atol=1e-12)


def test_a_gradient_can_be_asked_for_at_any_intermediate_but_the_unused():
    model, images = small().eval(), normal(2, 8, 8, 3)
    named = model.intermediates(images)
    upstream = np.random.default_rng(5).standard_normal((2, 5))
    loss = (named["conv_cls_head"] * upstream + named["trans_cls_head"] * upstream).sum()
    used = [tensor for name, tensor in named.items() if name != "trans_norm"]
    gradients = minigrad.grad(loss, used)
    for tensor, gradient in zip(used, gradients, strict=True):
        assert gradient.shape == tensor.shape and np.abs(gradient.numpy()).max() > 0


# --- some of the intermediates


NAMES = ["conv_trans_6", "trans_1.attn", "conv_trans_3.trans_block.norm2", "pooling", "conv_trans_4.trans_block", "stem", "conv_trans_5.cnn_block"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_some_intermediates_are_those_among_all(checkpointing: bool):
    model, images = small().eval(), normal(2, 8, 8, 3)
    every = model.intermediates(images)
    model.set_grad_checkpointing(checkpointing)
    some = model.intermediates(images, iter(NAMES))
    assert list(some) == [name for name in every if name in NAMES]
    for name, tensor in some.items():
        assert_array_equal(tensor.numpy(), every[name].numpy())
    names = ["conv_trans_6", "conv_trans_4.trans_block", "trans_1.attn"]
    losses = [sum((named[name] * named[name]).sum() for name in names) for named in (every, some)]
    expected, found = (minigrad.grad(loss, model.conv_trans_2.trans_block.attn.qkv.weight) for loss in losses)
    assert_allclose(found[0].numpy(), expected[0].numpy(), rtol=1e-10)
    assert model.intermediates(images, []) == {}


def test_the_names_that_may_be_asked_for_are_those_there_are():
    model = small(num_med_block=1, depth=3).eval()
    every = list(model.intermediates(normal(1, 8, 8, 3)))
    assert list(model.intermediates(normal(1, 8, 8, 3), every)) == every == list(model._names())


def test_with_checkpointing_blocks_run_again_of_which_only_the_output_is_asked(monkeypatch: pytest.MonkeyPatch):
    model, images, runs = small(), normal(2, 8, 8, 3), []
    for plan in model.plans:
        block = getattr(model, plan.name)
        monkeypatch.setattr(block, "forward", lambda *args, name=plan.name, run=block.forward: runs.append(name) or run(*args))
    names = [plan.name for plan in model.plans]
    for enable, wanted, again in [
        (True, ["conv_trans_2", "conv_trans_6.trans_block"], set(names)),
        (True, ["conv_trans_6", "conv_trans_3.trans_block.attn", "conv_trans_5.cnn_block"], set(names) - {"conv_trans_3", "conv_trans_5"}),
        (True, None, set()),
        (False, ["conv_trans_6"], set()),
    ]:
        model.set_grad_checkpointing(enable)
        named = model.intermediates(images, wanted)
        assert runs == names
        F.concatenate([named[name].reshape(-1) for name in wanted or ["conv_trans_6"]]).sum().backward()
        assert set(runs[5:]) == again
        runs.clear()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["conv_trans_6", "conv_trans_7"], "there is no 'conv_trans_7'; did you mean 'conv_trans_[0-9]' or "),
        (["trans_1.attention"], "there is no 'trans_1.attention'; did you mean 'trans_1.attn'"),
        (["wings!"], "there is no 'wings!'; its docstring lists the names"),
        (["conv_trans_2.med_block.0"], "there is no 'conv_trans_2.med_block.0'; did you mean"),
    ],
)
def test_names_that_there_are_not_are_refused(names: list[str], message: str):
    model = small()
    before = model.bn1.running_mean.numpy().copy()
    with pytest.raises(ValueError, match=f"Conformer.intermediates: {message}"):
        model.intermediates(normal(2, 8, 8, 3), names)
    assert_array_equal(model.bn1.running_mean.numpy(), before)
    with pytest.raises(TypeError, match=r"names is 'conv_1'; give a list of names, \['conv_1'\]"):
        model.intermediates(normal(2, 8, 8, 3), "conv_1")
    for others, odd in ([1], "1"), (["stem", 2], "2"), ([None, "conv_1"], "None"), ([["stem"]], r"\['stem'\]"), (5, "5"):
        with pytest.raises(TypeError, match=rf"^Conformer.intermediates: {odd} is not a name; give a list of names such as \['stem', 'trans_1'\]$"):
            model.intermediates(normal(2, 8, 8, 3), others)  # type: ignore[arg-type]
    assert list(model.intermediates(normal(2, 8, 8, 3), (name for name in ["stem"]))) == ["stem"]


class Noting(Block):
    """A transformer block of one's own that notes more."""

    def forward(self, x, named=None):
        note(named, entering=x)
        return super().forward(x, named)


def test_a_block_of_ones_own_may_note_what_it_likes():
    model, images = small(depth=3).eval(), normal(2, 8, 8, 3)
    model.trans_1.__class__ = model.conv_trans_2.trans_block.__class__ = Noting
    names = ["trans_1.entering", "conv_trans_2.trans_block.entering"]
    named = model.intermediates(images, ["tokens", *names])
    assert list(named) == ["tokens", *names]
    assert_array_equal(named["trans_1.entering"].numpy(), named["tokens"].numpy())
    assert list(model.intermediates(images)).index("trans_1.entering") == 4
    model.conv_trans_2.__class__ = Silent
    assert list(model.intermediates(images, ["conv_trans_2", "conv_trans_2.trans_block"])) == ["conv_trans_2.trans_block", "conv_trans_2"]
    assert "conv_trans_2.trans_block" in model.intermediates(images) and "conv_trans_2.cnn_block" not in model.intermediates(images)
    with pytest.raises(ValueError, match=r"nothing was noted as 'conv_trans_2.cnn_block'; a block of one's own notes its parts by"):
        model.intermediates(images, ["conv_trans_2", "conv_trans_2.cnn_block"])


def test_tokens_come_from_the_stem_and_not_from_conv_1():
    model, images = small().eval(), normal(2, 8, 8, 3)
    before = model.intermediates(images)
    with no_grad():
        model.conv_1.bn3.bias.copy_(model.conv_1.bn3.bias.numpy() + 1.0)
    after = model.intermediates(images)
    assert_array_equal(after["trans_1"].numpy(), before["trans_1"].numpy())
    assert (after["conv_1"].numpy() != before["conv_1"].numpy()).any()
    assert (after["conv_trans_2.trans_block"].numpy() != before["conv_trans_2.trans_block"].numpy()).any(), (
        "the CNN branch reaches the tokens in block 2"
    )
    with no_grad():
        model.trans_1.mlp.fc2.bias.copy_(model.trans_1.mlp.fc2.bias.numpy() + 1.0)
    coupled = model.intermediates(images)
    assert_array_equal(coupled["conv_trans_2.cnn_block"].numpy(), after["conv_trans_2.cnn_block"].numpy())
    assert (coupled["conv_trans_2"].numpy() != after["conv_trans_2"].numpy()).any(), "the tokens reach the CNN branch in block 2"


@pytest.mark.parametrize("doubled", [True, False])
def test_class_token_doubles_in_each_coupled_block_unless_switched_off(doubled):
    model, images = small(double_class_token=doubled).eval(), normal(2, 8, 8, 3)
    named = model.intermediates(images)
    before = named["trans_1"].numpy()
    for plan in model.plans:
        block = getattr(model, plan.name)
        entering = named[f"{plan.name}.squeeze_block"].numpy() + before
        assert_allclose(entering[:, 0], before[:, 0] * (2 if doubled else 1), rtol=1e-14)
        assert (entering[:, 1:] != before[:, 1:]).all()
        assert_allclose(named[f"{plan.name}.trans_block"].numpy(), block.trans_block(Tensor(entering)).numpy(), rtol=0, atol=1e-11)
        before = named[f"{plan.name}.trans_block"].numpy()


def test_there_is_no_positional_embedding():
    """Blind to the CNN branch, the tokens do not know where they are: shuffled, they give the same class token."""
    model, tokens = small().eval(), normal(2, 5, 12)
    shuffled = tokens[:, np.array([0, 3, 1, 4, 2])]
    assert_allclose(model.trans_1(shuffled).numpy()[:, 0], model.trans_1(tokens).numpy()[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "size", "stem", "maps", "tokens"),
    [
        ({"stem": "imagenet"}, (32, 48), (8, 12), [(8, 12), (4, 6), (2, 3), (1, 2)], 1 + 2 * 3),
        ({"stem": "imagenet", "patch_size": 32}, (32, 32), (8, 8), [(8, 8), (4, 4), (2, 2), (1, 1)], 1 + 1),
        ({"stem": "cifar"}, (8, 12), (8, 12), [(8, 12), (4, 6), (2, 3), (1, 2)], 1 + 2 * 3),
        ({"stem": "cifar_fast"}, (16, 15), (8, 8), [(8, 8), (4, 4), (2, 2), (1, 1)], 1 + 2 * 2),
        ({"stem": "imagenet"}, (30, 29), (8, 8), [(8, 8), (4, 4), (2, 2), (1, 1)], 1 + 2 * 2),
    ],
)
def test_maps_and_tokens_have_these_sizes_through_the_stages(changes, size, stem, maps, tokens):
    model = small(**changes)
    named = model.intermediates(normal(2, *size, 3))
    assert named["stem"].shape == (2, *stem, 8)
    found = [named[f"conv_trans_{i}"].shape[1:3] for i in (2, 4, 5, 6)]
    assert found == maps
    assert [named[f"conv_trans_{i}"].shape[3] for i in (2, 4, 6)] == [16, 32, 64]
    assert all(
        named[name].shape == (2, tokens, 12) for name in ("tokens", "trans_1", "conv_trans_3.squeeze_block", "conv_trans_6.trans_block", "trans_norm")
    )


@pytest.mark.parametrize("changes", [{"depth": 3}, {"num_med_block": 2}, {"base_channel": 32}, {"in_chans": 1}, {"qkv_bias": True, "qk_scale": 0.5}])
def test_gradients_of_every_variant_reach_every_parameter(changes):
    model = small(**changes)
    images = normal(2, 8, 8, changes.get("in_chans", 3))
    conv_logits, trans_logits = model(images)
    assert model.conv_cls_head.in_features == 4 * int(changes.get("base_channel", 64) * 0.25)
    upstream = np.random.default_rng(7).standard_normal((2, 5))
    (conv_logits * upstream + trans_logits * upstream).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and np.isfinite(parameter.grad.numpy()).all(), name
    assert ("conv_trans_2.med_block.1.conv2.weight" in model.state_dict()) == ("num_med_block" in changes)


def test_the_gradient_of_the_whole_network_is_its_slope():
    model, images = small(stem="cifar_fast").eval(), normal(2, 8, 8, 3)
    rng = np.random.default_rng(11)
    up = rng.standard_normal((2, 2, 5))

    def loss():
        conv_logits, trans_logits = model(images)
        return (conv_logits * up[0] + trans_logits * up[1]).sum()

    loss().backward()
    parameters = list(model.parameters())
    steps = [rng.standard_normal(parameter.shape) for parameter in parameters]
    start, epsilon, ends = values(parameters), 1e-7, []
    for sign in (1, -1):
        with no_grad():
            for parameter, value, step in zip(parameters, start, steps, strict=True):
                parameter.copy_(value + sign * epsilon * step)
            ends.append(loss().item())
    slope = sum(float((parameter.grad.numpy() * step).sum()) for parameter, step in zip(parameters, steps, strict=True))
    assert_allclose((ends[0] - ends[1]) / (2 * epsilon), slope, rtol=1e-5)


def test_running_statistics_move_in_training_and_rest_in_evaluation():
    model, images = small(), normal(2, 8, 8, 3)
    start = model.state_dict()
    model(images)
    moved = model.state_dict()
    counts = [name for name in moved if name.endswith("num_batches_tracked")]
    assert all(moved[name] == 1 for name in counts)
    for name in start:
        if "running_" in name:
            assert (moved[name] != start[name]).any(), name
    model.eval()(images)
    for name, value in model.state_dict().items():
        assert_array_equal(value, moved[name])


def test_checkpointed_blocks_give_the_same_bits_in_less_than_half_of_the_memory():
    """Drop path and the running statistics included. The memory is that of all arrays alive at once, from the forward pass on."""
    images, found = normal(16, 8, 8, 3), []
    for enable in (False, True):
        model = small(drop_path_rate=0.3, depth=12).train()
        model.set_grad_checkpointing(enable)
        minigrad.random.set_step(3)
        gc.collect()
        tracemalloc.start()
        cnn, transformer = model(images)
        (cnn * cnn + transformer).sum().backward()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        gradients = {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
        found.append((peak, {**gradients, **model.state_dict(), "logits": transformer.numpy().copy()}))
    (whole, expected), (peak, actual) = found
    assert peak < whole / 2, f"{peak / 2**20:.1f} MiB of {whole / 2**20:.1f}"
    for name, array in expected.items():
        assert_array_equal(actual[name], array, err_msg=name)


def test_drop_path_is_in_the_transformer_alone_and_grows():
    model = small(drop_path_rate=0.5)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.DropPath)}
    assert rates == pytest.approx(
        {"trans_1.drop_path": 0.0, **{f"conv_trans_{i}.trans_block.drop_path": 0.5 * (i - 1) / 5 for i in range(2, 7)}}, rel=1e-14
    )


def test_drop_path_drops_whole_branches_of_each_image_on_its_own():
    model = small(drop_path_rate=0.9)
    block = model.conv_trans_6.trans_block
    minigrad.manual_seed(3)
    named = {}
    tokens = normal(64, 4, 12)
    out = block(tokens, named)
    # each residual branch is either gone or ten times as strong
    outcomes = set()
    for x, y, attention, mlp in zip(tokens.numpy(), out.numpy(), named["attn"].numpy(), named["mlp"].numpy(), strict=True):
        fits = [(a, m) for a in (0, 10) for m in (0, 10) if np.allclose(y, x + a * attention + m * mlp, rtol=0, atol=1e-9)]
        assert len(fits) == 1
        outcomes.add(fits[0])
    assert len(outcomes) >= 3, "the two branches are drawn separately"
    assert_allclose(block.eval()(tokens).numpy(), block(tokens).numpy(), rtol=1e-12)


def test_the_same_seed_draws_the_same_and_another_does_not():
    images = normal(2, 8, 8, 3)

    def run(seed):
        model = small(seed=seed, drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2)
        return values(model(images))

    first, second, other = run(4), run(4), run(5)
    assert_array_equal(first, second)
    assert (np.array(first) != np.array(other)).any()


# --- any network


@draws(1)
@given(config=options(dropping=True))
def test_every_option_is_drawn(config: dict[str, Any]):
    """Else no test would see what it does to a network: whether its parameters are counted, say."""
    assert config.keys() == {field.name for field in fields(ConformerConfig)}, "draw the new option in tests/conformer/configurations.py"


@given(case=cases())
def test_intermediates_of_any_network_are_what_info_counts_and_what_forward_gives(case: Case):
    minigrad.manual_seed(case.seed)
    model = conformer.Conformer(**case.config).eval()
    images = Tensor(case.images.transpose(0, 2, 3, 1).astype(np.float32))
    with no_grad():
        named = model.intermediates(images)
        conv_logits, trans_logits = model(images)
    assert_array_equal(named["conv_cls_head"].numpy(), conv_logits.numpy())
    assert_array_equal(named["trans_cls_head"].numpy(), trans_logits.numpy())
    assert conv_logits.shape == trans_logits.shape == (len(case.images), case.config["num_classes"])
    result = count(model, case.shape[2:])
    assert result.config == model.config == ConformerConfig(**case.config)
    assert result.parameters == sum(parameter.size for parameter in model.parameters())
    for part in result.parts:
        assert named[part.name].shape == (len(case.images), *part.shape), part.name


@given(config=options(), seed=st.integers(0, 2**32 - 1))
def test_the_same_seed_makes_the_same_network_and_its_state_another_equal_one(config: dict[str, Any], seed: int):
    def make(seed: int) -> conformer.Conformer:
        minigrad.manual_seed(seed)
        return conformer.Conformer(**config)

    first, again, other = make(seed), make(seed), make((seed + 1) % 2**32)
    state = first.state_dict()
    assert not np.array_equal(other.state_dict()["conv1.weight"], state["conv1.weight"])
    other.load_state_dict(state)
    for same in (again.state_dict(), other.state_dict()):
        assert list(same) == list(state)
        assert all(np.array_equal(value, state[name]) and value.dtype == state[name].dtype for name, value in same.items())
    decayed, spared = parameter_groups(first, 0.05)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(first.parameters()))
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert [parameter for parameter in spared["params"] if parameter.ndim > 1] == [first.cls_token]


# --- initialisation, names and counts


def test_initialisation_is_the_official_one():
    minigrad.manual_seed(1)
    model = conformer.Conformer(num_classes=10, channel_ratio=1, embed_dim=96, num_heads=3, depth=3, qkv_bias=True, stem="cifar")
    parameters = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    modules = dict(model.named_modules())
    assert_allclose(parameters["cls_token"].std(), 0.02, rtol=0.25)
    untouched = []
    for name, value in parameters.items():
        owner, kind = modules[name.rpartition(".")[0]], name.rpartition(".")[2]
        if isinstance(owner, nn.Linear):
            if kind == "bias":
                assert not value.any(), name
            else:
                assert_allclose(value.std(), 0.02, rtol=0.1, err_msg=name)
                assert abs(value.mean()) < 0.02 * 5 / sqrt(value.size), name
        elif isinstance(owner, nn.BatchNorm2d | nn.LayerNorm):
            assert (value == (1 if kind == "weight" else 0)).all(), name
        elif isinstance(owner, nn.Conv2d) and kind == "weight":
            out, _, height, width = value.shape
            std = sqrt(2 / (out * height * width))
            assert_allclose(value.std(), std, rtol=5 / sqrt(2 * value.size), err_msg=name)
            assert np.abs(value).max() > 2.2 * std, "normal, not uniform"
        elif isinstance(owner, nn.Conv2d):
            untouched.append(name)
            bound = 1 / sqrt(np.prod(owner.weight.shape[1:]))
            assert 0.8 * bound < np.abs(value).max() <= bound, name
    assert untouched == ["trans_patch_conv.bias"] + [
        f"conv_trans_{i}.{fcu}.conv_project.bias" for i in (2, 3) for fcu in ("squeeze_block", "expand_block")
    ]


def test_only_the_stem_s_and_the_last_norm_have_the_larger_epsilon():
    model = small(num_med_block=1)
    larger = {name for name, module in model.named_modules() if getattr(module, "eps", 1e-6) != 1e-6}
    assert larger == {"bn1", "trans_norm"}
    assert model.bn1.eps == model.trans_norm.eps == 1e-5
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


@pytest.fixture
def no_draws(monkeypatch):
    """Models of millions of parameters in no time: nothing is drawn."""
    for name in ("kaiming_uniform_", "kaiming_normal_", "trunc_normal_", "uniform_", "normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize(
    ("factory", "name", "parameters"),
    [
        (conformer.conformer_tiny_patch16, "tiny-patch16", 23_524_704),
        (conformer.conformer_small_patch16, "small-patch16", 37_673_424),
        (conformer.conformer_base_patch16, "base-patch16", 83_289_136),
        (conformer.conformer_small_patch32, "small-patch32", 38_853_072),
        (conformer.conformer_cifar_nano, "cifar-nano", 1_071_880),
        (conformer.conformer_cifar_micro, "cifar-micro", 2_661_332),
        (conformer.conformer_cifar_small, "cifar-small", 7_675_660),
    ],
)
def test_factories_build_the_named_configurations(no_draws, factory, name, parameters):
    model = factory()
    assert sum(parameter.size for parameter in model.parameters()) == parameters
    assert model.config == conformer.CONFIGS[name]


def test_factories_take_changes(no_draws):
    model = conformer.conformer_cifar_nano(num_classes=100, drop_path_rate=0.1)
    assert model.trans_cls_head.out_features == model.conv_cls_head.out_features == 100
    assert model.conv_trans_6.trans_block.drop_path.p == 0.1
    with pytest.raises(TypeError, match="num_class"):
        conformer.conformer_cifar_nano(num_class=100)


def test_parameters_come_in_the_official_order():
    names = list(small(depth=3, num_med_block=1, qkv_bias=True).state_dict())
    tops = list(dict.fromkeys(name.split(".")[0] for name in names))
    assert tops == [
        "cls_token", "trans_norm", "trans_cls_head", "conv_cls_head", "conv1", "bn1", "conv_1", "trans_patch_conv", "trans_1", "conv_trans_2",
        "conv_trans_3",
    ]  # fmt: skip
    inner = list(dict.fromkeys(name.split(".")[1] for name in names if name.startswith("conv_trans_2.")))
    assert inner == ["cnn_block", "fusion_block", "med_block", "squeeze_block", "expand_block", "trans_block"]


def test_parameter_groups_spare_vectors_biases_and_the_class_token():
    model = small(qkv_bias=True)
    model.conv1.requires_grad_(False)
    decayed, spared = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed_names, spared_names = ([named[id(parameter)] for parameter in group["params"]] for group in (decayed, spared))
    assert sorted(decayed_names + spared_names) == sorted(set(named.values()) - {"conv1.weight"})
    assert "cls_token" in spared_names and model.no_weight_decay() == {"cls_token"}
    assert {"trans_1.attn.qkv.weight", "conv_1.conv1.weight", "trans_patch_conv.weight", "conv_cls_head.weight"} <= set(decayed_names)
    assert all(name.endswith(".weight") for name in decayed_names)
    parameters = dict(model.named_parameters())
    assert all(parameters[name].ndim == 1 for name in spared_names if name != "cls_token")
    assert [len(group["params"]) for group in parameter_groups(nn.Linear(2, 3), 0.1)] == [1, 1]
    inside = parameter_groups(nn.Sequential(nn.Linear(2, 3), model), 0.05)[1]["params"]
    assert any(parameter is model.cls_token for parameter in inside)


# --- blocks of one's own


class Wider(ConvTransBlock):
    """A block with a layer more, that lets the tokens alone."""

    def __init__(self, config, plan):
        super().__init__(config, plan)
        self.extra = nn.Linear(config.embed_dim, config.embed_dim)
        self.expand_block = Nothing()

    def forward(self, x, x_t, named=None):
        x, x_t = super().forward(x, x_t, named)
        return x, x_t + self.extra(x_t)


class OwnConformer(conformer.Conformer):
    block = Wider


def test_a_block_of_ones_own_is_initialised_checkpointed_and_looked_into():
    minigrad.manual_seed(0)
    model = OwnConformer(**(SMALL | {"embed_dim": 48})).to(dtype="float64")
    assert all(type(getattr(model, plan.name)) is Wider for plan in model.plans)
    extra = model.conv_trans_4.extra
    assert_allclose(extra.weight.numpy().std(), 0.02, rtol=0.1)
    assert not extra.bias.numpy().any()
    images, gradients = normal(2, 8, 8, 3), []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        cnn, transformer = model(images)
        (cnn * transformer).sum().backward()
        gradients.append(values(parameter.grad for parameter in model.parameters()))
    for expected, found in zip(*gradients, strict=True):
        assert_array_equal(found, expected)
    named = model.intermediates(images)
    assert "conv_trans_2.cnn_block" in named and "conv_trans_2.expand_block" not in named
    assert conformer.initialise is conformer.model.initialise


# --- errors


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8, 8), r"shape \(2, 3, 8, 8\) look like \(batch, channels, height, width\); give images.transpose\(0, 2, 3, 1\)"),
        ((2, 8, 8, 4), r"images have 4 channels \(shape \(2, 8, 8, 4\)\), the network takes 3"),
        ((8, 8, 3), r"images have shape \(8, 8, 3\); give \(batch, height, width, 3\)"),
        ((2, 10, 8, 3), r"images are 10 x 8 pixels, .*multiples of 4: resize to 8 x 8 or 12 x 8"),
    ],
)
def test_images_that_it_cannot_take_are_refused_and_change_nothing(shape, message):
    model = small()
    before = model.state_dict()
    with pytest.raises(ValueError, match=message) as caught:
        model(normal(*shape))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        model.intermediates(normal(*shape))
    for name, value in model.state_dict().items():
        assert_array_equal(value, before[name])


def refusal(make: Any) -> str | None:
    """The one sentence of the ValueError that `make()` raises, if it does."""
    try:
        make()
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith("Conformer: ")
        return str(error)
    return None


@settings(max_examples=4 * EXAMPLES)
@given(stem=st.sampled_from(list(STEM_STRIDES)), patch_size=st.sampled_from([16, 32, 48]), size=st.tuples(*[st.integers(0, 200)] * 2))
def test_any_image_size_is_taken_or_refused_with_sizes_that_are_taken(stem: str, patch_size: int, size: tuple[int, int]):
    config = ConformerConfig(stem=stem, patch_size=patch_size)
    message = refusal(lambda: config.token_grid(*size))
    side = STEM_STRIDES[stem] * (patch_size // 4)  # of a token in image pixels
    taken = [pixels > 0 and -pixels % side < STEM_STRIDES[stem] for pixels in size]  # the stem rounds up what is short by less than its stride
    assert (message is None) == all(taken)
    if message is None:
        assert config.token_grid(*size) == tuple(-(-pixels // side) for pixels in size)
        return
    assert f"images are {size[0]} x {size[1]} pixels" in message
    for pair in message.split("resize to ")[1].split(" or "):
        near = tuple(map(int, pair.split(" x ")))
        config.token_grid(*near)
        assert all(a == b if fits else abs(a - b) <= side for a, b, fits in zip(near, size, taken, strict=True))


@settings(max_examples=8 * EXAMPLES)
@given(base=st.integers(1, 100), ratio=st.floats(0, 8), depth=st.integers(1, 20), embed=st.integers(1, 20), heads=st.integers(1, 6))
def test_any_widths_are_taken_or_refused_with_a_ratio_that_is_taken(base: int, ratio: float, depth: int, embed: int, heads: int):
    width = int(base * ratio)
    message = refusal(lambda: ConformerConfig(base_channel=base, channel_ratio=ratio))
    assert (message is None) == (width >= 4 and width % 4 == 0)
    if message is not None:
        found = re.search(r"gives (\d+) channels.*multiple of 4: channel_ratio=(\S+) gives (\d+)$", message)
        assert found is not None and int(found[1]) == width
        assert ConformerConfig(base_channel=base, channel_ratio=float(found[2])).widths[0] == int(found[3])
        assert abs(int(found[3]) - width) <= 3 or width < 4
    message = refusal(lambda: ConformerConfig(depth=depth))
    assert (message is None) == (depth % 3 == 0)
    if message is not None:
        for near in re.findall(r"\d+", message.split("such as ")[1]):
            ConformerConfig(depth=int(near))
    message = refusal(lambda: ConformerConfig(embed_dim=embed, num_heads=heads))
    assert (message is None) == (embed % heads == 0)
    assert message is None or f"embed_dim {embed} does not divide among num_heads {heads} heads" in message


SIDES = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 12])


@cache
def one_network() -> conformer.Conformer:
    return small(depth=3)


@settings(max_examples=4 * EXAMPLES)
@given(
    shape=st.lists(SIDES, max_size=5).map(tuple) | st.tuples(st.integers(0, 2), st.sampled_from([4, 8, 12]), SIDES, st.sampled_from([2, 3])),
    training=st.booleans(),
)
def test_an_array_of_any_shape_is_taken_or_refused_and_then_changes_nothing(shape: tuple[int, ...], training: bool):
    model = one_network().train(training)
    before = model.state_dict()
    fits = len(shape) == 4 and shape[3] == 3 and all(side and side % 4 == 0 for side in shape[1:3])
    if fits and training and shape[0] == 1 and max(shape[1:3]) <= 8:  # the last block leaves one pixel
        fits = False
    message = refusal(lambda: model(normal(*shape)))
    assert (message is None) == fits, message
    if message is not None:
        assert str(shape) in message or f"{shape[1]} x {shape[2]} pixels" in message
        for name, value in model.state_dict().items():
            assert_array_equal(value, before[name])


def test_images_of_another_dtype_are_refused():
    with pytest.raises(TypeError, match=r"images are float32 and the parameters float64; give images.astype\('float64'\)"):
        small()(normal(2, 8, 8, 3).astype("float32"))
    with pytest.raises(TypeError, match=r"images are uint8 and the parameters float64; give what conformer\.augment\.normalize makes of them$"):
        small()(Tensor(np.zeros((2, 8, 8, 3), np.uint8)))


def test_images_of_another_library_are_refused():
    """As PyTorch's, which NumPy can read but whose dtype is another thing."""
    foreign = type("Tensor", (), {"__module__": "torch", "shape": (2, 8, 8, 3), "dtype": "torch.float64", "numpy": lambda self: np.zeros(self.shape)})
    model = small()
    with pytest.raises(TypeError, match=r"Conformer: images are a torch.Tensor; give Tensor\(images.numpy\(\)\)$"):
        model(foreign())
    with pytest.raises(TypeError, match=r"Conformer: images are a list; give Tensor\(images\)$"):
        model([[0.0]])
    images = normal(2, 8, 8, 3)
    assert_array_equal(model.eval()(images.numpy())[0].numpy(), model(images)[0].numpy())  # an array is taken as it is


class Centred(nn.Module):
    """In batch norm's place: something that takes a single value."""

    def forward(self, x, residual=None, relu=False):
        x = x - x.mean((1, 2, 3), keepdims=True)
        x = x if residual is None else x + residual
        return F.relu(x) if relu else x


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)


def test_parts_that_were_replaced_are_not_asked_for_their_batch_norms():
    one = normal(1, 8, 8, 3)
    model = small(patch_size=32, depth=3)  # one token, and a last map of one pixel
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, Centred())
    assert np.isfinite(model(one)[0].numpy()).all()
    for part in ("expand_block", "fusion_block"):
        model = small(patch_size=32, depth=3).eval()
        expected = model(one)[0].numpy()
        for plan in model.plans:
            block = getattr(model, plan.name)
            setattr(block, part, Wrapped(getattr(block, part)))
        assert_array_equal(model(one)[0].numpy(), expected)
    model = small(patch_size=32, depth=3)
    for plan in model.plans:
        getattr(model, plan.name).expand_block = Nothing()
    model.conv_trans_3.fusion_block.eval()
    assert model(one)[0].shape == (1, 5)

    model = small(patch_size=32, depth=3)
    for plan in model.plans:
        getattr(model, plan.name).__class__ = Uncoupled
    model.conv_trans_3.fusion_block.eval()
    assert model(one)[0].shape == (1, 5), "norms that the block does not use"


@pytest.mark.parametrize(("changes", "size", "larger"), [({}, (8, 8), (8, 12)), ({"patch_size": 64}, (16, 16), (16, 32))])
def test_training_on_one_value_per_channel_is_refused(changes, size, larger):
    """The last block leaves one pixel of an 8 x 8 image; tokens of 16 pixels leave one token of a 16 x 16 image."""
    model = small(**changes)
    with pytest.raises(ValueError, match=f"one image of {size[0]} x {size[1]} pixels leaves batch norm a single value per channel"):
        model(normal(1, *size, 3))
    model(normal(2, *size, 3))
    model(normal(1, *larger, 3))
    model.conv_1.bn1.eval()
    before = model.bn1.running_mean.numpy().copy()
    with pytest.raises(ValueError, match="single value per channel"):
        model(normal(1, *size, 3))
    assert_array_equal(model.bn1.running_mean.numpy(), before)
    model.eval()(normal(1, *size, 3))
    model.conv_1.bn1.train()
    model(normal(1, *size, 3))  # its map has pixels enough
