"""The configurations: what they accept, what they refuse and how they say it, and the plan of blocks that follows."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, asdict, fields, replace

import numpy as np
import pytest

from conformer import CONFIGS, Conformer, ConformerConfig, named_config


def test_defaults_are_the_constructors_and_the_published_signature():
    published = {
        "patch_size": 16, "in_chans": 3, "num_classes": 1000, "base_channel": 64, "channel_ratio": 4, "num_med_block": 0,
        "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0, "qkv_bias": False, "qk_scale": None,
        "drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0,
        "stem": "imagenet", "stem_channels": 64, "double_class_token": True,
    }  # fmt: skip
    assert {field.name: field.default for field in fields(ConformerConfig)} == published
    assert list(published) == [field.name for field in fields(ConformerConfig)]
    signature = inspect.signature(Conformer).parameters
    assert {name: parameter.default for name, parameter in signature.items()} == published
    assert list(signature) == list(published)


def test_the_named_configurations_are_the_published_ones_and_ours():
    assert list(CONFIGS) == ["tiny-patch16", "small-patch16", "base-patch16", "small-patch32", "cifar-nano", "cifar-micro", "cifar-small"]
    rows = {name: (c.channel_ratio, c.embed_dim, c.depth, c.num_heads, c.patch_size, c.stem, c.num_classes) for name, c in CONFIGS.items()}
    assert rows == {
        "tiny-patch16": (1, 384, 12, 6, 16, "imagenet", 1000),
        "small-patch16": (4, 384, 12, 6, 16, "imagenet", 1000),
        "base-patch16": (6, 576, 12, 9, 16, "imagenet", 1000),
        "small-patch32": (4, 384, 12, 6, 32, "imagenet", 1000),
        "cifar-nano": (0.75, 96, 6, 3, 16, "cifar_fast", 10),
        "cifar-micro": (1, 128, 9, 4, 16, "cifar", 10),
        "cifar-small": (1.5, 192, 12, 6, 16, "cifar", 10),
    }
    for config in CONFIGS.values():
        assert config.qkv_bias and config.mlp_ratio == 4 and config.stem_channels == 64 and config.double_class_token and config.num_med_block == 0
        assert ConformerConfig(**asdict(config)) == config
    assert named_config("cifar-nano") is CONFIGS["cifar-nano"]
    with pytest.raises(ValueError, match=r"'cifar-nono'; there are tiny-patch16, .*cifar-small"):
        named_config("cifar-nono")


def test_a_configuration_does_not_change():
    with pytest.raises(FrozenInstanceError):
        CONFIGS["cifar-nano"].depth = 3  # type: ignore[misc]


def plan_of(config):
    return [(p.number, p.stage, p.inplanes, p.outplanes, p.stride, p.res_conv, p.dw_stride, p.last_fusion) for p in config.blocks()]


def test_the_plan_of_the_published_small_network():
    plan = plan_of(CONFIGS["small-patch16"])
    expected = [(i, 1, 256, 256, 1, False, 4, False) for i in (2, 3, 4)]
    expected += [(5, 2, 256, 512, 2, True, 2, False)] + [(i, 2, 512, 512, 1, False, 2, False) for i in (6, 7, 8)]
    expected += [(9, 3, 512, 1024, 2, True, 1, False)] + [(i, 3, 1024, 1024, 1, False, 1, False) for i in (10, 11)]
    expected += [(12, 3, 1024, 1024, 1, False, 1, True)]
    assert plan == expected
    assert [p.dw_stride for p in CONFIGS["small-patch32"].blocks()] == [8] * 3 + [4] * 4 + [2] * 4


def test_plan_of_the_shallowest_network():
    assert plan_of(ConformerConfig(depth=3, channel_ratio=1)) == [(2, 2, 64, 128, 2, True, 2, False), (3, 3, 128, 256, 2, True, 1, True)]


def test_drop_path_grows_linearly_from_the_first_block_on():
    rates = [plan.drop_path_rate for plan in ConformerConfig(depth=6, drop_path_rate=0.1).blocks()]
    assert rates == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1], rel=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 8}, "patch_size is 8; it must be a multiple of 16"),
        ({"patch_size": 24}, "patch_size is 24; it must be a multiple of 16"),
        ({"patch_size": 0}, "patch_size is 0; it must be a multiple of 16"),
        ({"depth": 10}, "depth is 10; .* a multiple of 3, such as 9 or 12"),
        ({"depth": 2}, "depth is 2; .* a multiple of 3, such as 3"),
        ({"depth": 1}, "depth is 1; .* a multiple of 3, such as 3$"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"embed_dim": 100, "num_heads": 3}, "embed_dim 100 does not divide among num_heads 3"),
        ({"stem": "resnet"}, "stem is 'resnet'; choose one of 'imagenet', 'cifar', 'cifar_fast'"),
        ({"channel_ratio": 0.3}, r"base_channel 64 times channel_ratio 0.3 gives 19 channels.* multiple of 4: channel_ratio=0.3125 gives 20"),
        ({"channel_ratio": 0}, r"gives 0 channels.* multiple of 4: channel_ratio=0.0625 gives 4"),
        ({"mlp_ratio": 0}, "mlp_ratio 0 times embed_dim 768 leaves no hidden unit"),
        ({"num_classes": 0}, "num_classes is 0; it must be at least 1"),
        ({"num_med_block": -1}, "num_med_block is -1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0; it must be at least 0 and below 1"),
        ({"drop_rate": -0.1}, "drop_rate is -0.1"),
        ({"num_heads": True}, "num_heads is True; it must be a whole number, of at most 1,000,000,000"),
        ({"depth": 12.0}, "depth is 12.0; it must be a whole number"),
        ({"embed_dim": None}, "embed_dim is None; it must be a whole number"),
        ({"patch_size": "16"}, "patch_size is '16'; it must be a whole number"),
        ({"num_med_block": 10**10}, "num_med_block is 10000000000; it must be a whole number, of at most 1,000,000,000"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio is inf; it must be a number, of at most 1,000,000,000"),
        ({"channel_ratio": 1e308}, r"channel_ratio is 1e\+308; it must be a number"),
        ({"drop_rate": [0.1]}, r"drop_rate is \[0.1\]; it must be a number"),
        ({"qk_scale": float("nan")}, "qk_scale is nan; it must be a number"),
        ({"qk_scale": "x"}, "qk_scale is 'x'; it must be a number"),
        ({"qkv_bias": "no"}, "qkv_bias is 'no'; it must be True or False"),
        ({"double_class_token": 1}, "double_class_token is 1; it must be True or False"),
    ],
)
def test_arguments_that_no_network_can_be_built_with_are_refused(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        ConformerConfig(**changes)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        Conformer(**changes)


def test_numpys_numbers_are_numbers():
    config = ConformerConfig(embed_dim=np.int64(96), num_heads=np.int32(3), mlp_ratio=np.float32(2), qk_scale=np.float64(0.5))  # type: ignore[arg-type]
    assert (config.mlp_width, config.qk_scale) == (192, 0.5)


def test_suggested_channel_ratio_is_accepted():
    assert ConformerConfig(channel_ratio=0.3125).widths == (20, 40, 80)
    assert ConformerConfig(base_channel=48, channel_ratio=1).widths == (48, 96, 192)


@pytest.mark.parametrize("side", [13, 16, 29, 30, 31, 32, 48, 64, 96])
def test_sizes_that_the_original_takes(side):
    grid = (side + 15) // 16
    assert CONFIGS["tiny-patch16"].token_grid(side, side) == (grid, grid)


@pytest.mark.parametrize("side", [12, 17, 28, 33, 40, 56, 72, 100])
def test_sizes_that_the_original_fails_on(side):
    with pytest.raises(ValueError, match=f"images are {side} x 64 pixels.*multiples of 16: resize to "):
        CONFIGS["tiny-patch16"].token_grid(side, 64)
    with pytest.raises(ValueError, match=f"images are 64 x {side} pixels"):
        CONFIGS["tiny-patch16"].token_grid(64, side)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({}, (28, 40), "multiples of 16: resize to 16 x 32 or 32 x 48"),
        ({}, (64, 40), "multiples of 16: resize to 64 x 32 or 64 x 48"),
        ({}, (5, 16), "multiples of 16: resize to 16 x 16$"),
        ({}, (0, 16), "multiples of 16: resize to 16 x 16$"),
        ({}, (-20, 40), "multiples of 16: resize to 16 x 32 or 16 x 48$"),
        ({"patch_size": 32}, (48, 64), "patch_size 32 .*multiples of 32: resize to 32 x 64 or 64 x 64"),
        ({"stem": "cifar"}, (30, 32), "stem 'cifar' .*multiples of 4: resize to 28 x 32 or 32 x 32"),
        ({"stem": "cifar_fast"}, (32, 36), "stem 'cifar_fast' .*multiples of 8: resize to 32 x 32 or 32 x 40"),
    ],
)
def test_a_wrong_size_names_the_nearest_right_ones(changes, size, message):
    config = ConformerConfig(**changes)
    with pytest.raises(ValueError, match=message) as caught:
        config.token_grid(*size)
    for pair in str(caught.value).split("resize to ")[1].split(" or "):
        config.token_grid(*map(int, pair.split(" x ")))  # does not raise


def test_the_grids_of_tokens_that_the_stems_give():
    assert CONFIGS["tiny-patch16"].token_grid(224, 160) == (14, 10)
    assert CONFIGS["small-patch32"].token_grid(224, 224) == (7, 7)
    assert CONFIGS["cifar-micro"].token_grid(32, 32) == (8, 8)
    assert CONFIGS["cifar-nano"].token_grid(32, 32) == (4, 4)
    assert replace(CONFIGS["cifar-micro"], patch_size=32).token_grid(32, 32) == (4, 4)
