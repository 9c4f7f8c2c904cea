"""The counts of `conformer.info` against the published figures, and against what the model itself holds and puts out."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conformer import CONFIGS, CNNBranch, Conformer, ConformerConfig, TransformerBranch, conformer_cifar_nano, count, describe, measured_macs
from conformer.baselines import NETWORKS, builder
from minigrad import Tensor, checkpoint, nn, no_grad
from minigrad.op import REGISTRY

MILLION, BILLION = 1e6, 1e9


@pytest.mark.parametrize(
    ("name", "parameters", "macs", "without_attention"),
    [
        ("tiny-patch16", 23_524_704, 5.226, 4.868),
        ("small-patch16", 37_673_424, 10.599, 10.242),
        ("base-patch16", 83_289_136, 23.326, 22.789),
        ("small-patch32", 38_853_072, 7.046, 7.023),
    ],
)
def test_counts_of_the_published_variants_at_224_are_the_papers(name, parameters, macs, without_attention):
    result = count(CONFIGS[name])
    assert result.image_size == (224, 224)
    assert result.parameters == parameters
    assert round(result.macs / BILLION, 3) == macs
    assert round(result.macs_without_attention / BILLION, 3) == without_attention


@pytest.mark.parametrize(
    ("name", "changes", "parameters", "macs"),
    [
        ("cifar-nano", {}, 1_071_880, 23.0),
        ("cifar-micro", {}, 2_661_332, 231.2),
        ("cifar-small", {}, 7_675_660, 662.0),
        # measured on the original's modules with other stems, patches and widths
        ("cifar-nano", {"stem_channels": 32}, 1_020_000, 21.5),
        ("cifar-nano", {"stem_channels": 32, "stem": "cifar"}, 1_020_000, 87.6),
        ("cifar-nano", {"stem_channels": 32, "stem": "cifar", "channel_ratio": 0.5}, 864_000, 69.1),
        ("cifar-nano", {"stem_channels": 32, "stem": "cifar", "embed_dim": 80, "num_heads": 5}, 802_000, 72.4),
        ("cifar-nano", {"stem_channels": 32, "stem": "cifar", "patch_size": 32}, 1_167_000, 50.5),
        ("cifar-micro", {"patch_size": 32}, 3_055_000, 135.2),
        ("cifar-micro", {"stem": "cifar_fast"}, 2_661_332, 57.4),
        ("cifar-small", {"channel_ratio": 2, "depth": 9}, 7_048_000, 650.8),
        ("cifar-small", {"stem": "cifar_fast"}, 7_675_660, 166.0),
        ("cifar-small", {"patch_size": 32}, 8_265_000, 383.1),
    ],
)
def test_counts_of_cifar_variants_at_32(name, changes, parameters, macs):
    result = count(replace(CONFIGS[name], **changes))
    assert result.image_size == (32, 32)
    exact = parameters % 1000
    assert (result.parameters if exact else round(result.parameters, -3)) == parameters
    assert round(result.macs / MILLION, 1) == macs


def test_the_split_by_branch_of_the_published_tiny_and_small():
    for name, millions in (("tiny-patch16", (0.85, 21.29, 0.39, 0.35, 0.64)), ("small-patch16", (13.23, 21.29, 0.39, 1.34, 1.41))):
        result = count(CONFIGS[name])
        split = result.by_branch()
        assert list(split) == ["CNN", "transformer", "patch embedding", "FCU", "heads"]
        assert tuple(round(parameters / MILLION, 2) for parameters, _ in split.values()) == millions
        assert sum(parameters for parameters, _ in split.values()) == result.parameters
        assert sum(macs for _, macs in split.values()) == result.macs


SMALL = {"num_classes": 7, "embed_dim": 12, "num_heads": 3, "mlp_ratio": 1.5, "stem_channels": 6}


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"stem": "cifar", "channel_ratio": 0.25, "depth": 6, "qkv_bias": True}, (8, 12)),
        ({"stem": "cifar_fast", "channel_ratio": 0.125, "depth": 3, "num_med_block": 2, "in_chans": 1}, (16, 8)),
        ({"stem": "imagenet", "base_channel": 32, "channel_ratio": 0.5, "depth": 6, "patch_size": 32, "double_class_token": False}, (32, 64)),
        ({"stem": "imagenet", "channel_ratio": 0.125, "depth": 3}, (30, 29)),
    ],
)
def test_every_part_is_what_the_model_holds_and_puts_out(changes, size):
    config = ConformerConfig(**{**SMALL, **changes})
    model = Conformer(**{**SMALL, **changes}).eval()
    images = np.random.default_rng(0).standard_normal((2, *size, config.in_chans)).astype(np.float32)
    with no_grad():
        named = model.intermediates(Tensor(images))
    result = count(model, size)
    assert result.config == config
    assert measured_macs(model, images[:1]) == result.executed_macs
    # The parts whose parameters have other names than their outputs.
    owners = {"stem": ("conv1.", "bn1."), "tokens": ("cls_token",)}
    held = dict(model.named_parameters())
    for part in result.parts:
        assert named[part.name].shape == (2, *part.shape), part.name
        prefixes = owners.get(part.name, (part.name + ".",))
        mine = [name for name in held if name.startswith(prefixes)]
        assert part.parameters == sum(held.pop(name).size for name in mine), part.name
    assert not held, "parameters that no part counts"
    for block in result.blocks[1:-1]:
        last = block.parts[-1].name.split(".")[0]
        cnn, tokens = ("conv_1", "trans_1") if block.stage == 1 and last == "trans_1" else (last, f"{last}.trans_block")
        assert named[cnn].shape[1:] == block.cnn and named[tokens].shape[1:] == block.tokens


def test_a_part_takes_its_macs_from_layers_and_maps():
    """One block by hand: 2 x 3 tokens and a class token, 4 x 6 pixels of 16 channels, then 2 x 3 of 32, squeezed to 4 and 8."""
    config = ConformerConfig(
        stem="cifar", channel_ratio=0.25, embed_dim=12, num_heads=3, mlp_ratio=2, depth=3, num_med_block=1, stem_channels=6, num_classes=5
    )
    parts = {part.name: part for part in count(config, (8, 12)).parts}
    assert parts["stem"].macs == 3 * 9 * 6 * 96
    assert parts["conv_1"].macs == 96 * (6 * 4 + 9 * 4 * 4 + 4 * 16 + 6 * 16)
    assert parts["trans_patch_conv"].macs == 6 * 16 * 12 * 6
    assert parts["trans_1"].macs == 7 * (12 * 36 + 12 * 12 + 2 * 12 * 24)
    assert parts["trans_1"].attention_macs == 2 * 7 * 7 * 12
    assert parts["conv_trans_2.cnn_block"].macs == 96 * 16 * 8 + 24 * (9 * 8 * 8 + 8 * 32 + 16 * 32)
    assert parts["conv_trans_2.squeeze_block"].macs == 24 * 8 * 12  # at the map's 4 x 6 pixels, as the official code computes it
    assert parts["conv_trans_2.med_block.0"].macs == 24 * (32 * 8 + 9 * 8 * 8 + 8 * 32)
    assert parts["conv_trans_2.expand_block"].macs == 6 * 12 * 8
    assert parts["conv_trans_3.fusion_block"].macs == 6 * 64 * 16 + 2 * (9 * 16 * 16 + 16 * 64 + 64 * 64)
    assert parts["conv_cls_head"].macs == 64 * 5


def test_text_has_a_line_for_every_block_and_the_totals():
    text = describe(CONFIGS["cifar-nano"])
    lines = text.splitlines()
    assert lines[0].split() == ["block", "stage", "CNN", "branch", "tokens", "parameters", "MACs"]
    blocks = {line.split("  ")[0].strip(): line for line in lines[2:10]}
    assert list(blocks) == ["stem", "conv_1, trans_1", *(f"conv_trans_{i}" for i in range(2, 7)), "heads"]
    assert blocks["conv_trans_6"].split("  ")[-1] and "2 x 2 x 192" in blocks["conv_trans_6"] and "17 x 96" in blocks["conv_trans_6"]
    assert "238,224" in blocks["conv_trans_6"]
    assert len({len(line) for line in lines[:11]}) == 1, "columns line up"
    assert "images of 32 x 32 pixels: 1,071,880 parameters, 23.0 M multiply-accumulates" in text
    assert "5.226 G multiply-accumulates" in describe(CONFIGS["tiny-patch16"]) and "4.868 G without" in describe(CONFIGS["tiny-patch16"])


def test_the_text_has_the_patch_embedding_apart_and_says_how_fcudown_counts():
    def rows(network: str) -> dict[str, list[str]]:
        lines = describe(CONFIGS["cifar-nano"], network=network).splitlines()
        assert ("blocks.py pools first, for the same tokens: 22.5 M MACs in all" in lines) == (network == "conformer")
        assert any(line.startswith("FCUDown counts as in the authors' code") for line in lines) == (network == "conformer")
        cells = [line.rsplit(maxsplit=4) for line in lines if line.startswith("  ")]
        assert len({line.index(" parameters ") for line in lines if line.startswith("  ")}) == 1, "columns line up"
        return {name.strip(): [parameters, macs] for name, parameters, _, macs, _ in cells}

    # a convolution of 4 x 4 pixels of 64 channels to 96, at 4 x 4 places
    assert rows("conformer")["patch embedding"] == rows("transformer")["patch embedding"] == ["98,400", "1.6"]
    assert rows("conformer")["FCU"] == ["31,860", "1.0"]
    assert rows("cnn").keys() == {"CNN", "heads"}
    assert rows("transformer").keys() == {"stem", "transformer", "patch embedding", "heads"}
    assert rows("transformer")["stem"] == ["1,856", "0.4"]  # 3 x 3 x 3 weights and a norm's two for each of 64 channels, at 16 x 16 places


def test_what_macs_are_without_attention_is_said_where_there_is_one():
    for network, end in (("conformer", "an image,"), ("cnn", "an image"), ("transformer", "an image,")):
        lines = describe(CONFIGS["cifar-nano"], network=network).splitlines()
        (line,) = (number for number, line in enumerate(lines) if line.startswith("images of 32 x 32"))
        assert lines[line].endswith(f" multiply-accumulates (MACs) {end}")
        assert lines[line + 1].endswith(" M without attention's two products") == (network != "cnn")


def test_a_size_is_a_number_or_two_and_must_fit():
    assert count(CONFIGS["cifar-nano"], 64).image_size == (64, 64)
    assert count(CONFIGS["cifar-nano"], (32, 64)).image_size == count(CONFIGS["cifar-nano"], [np.int64(32), 64]).image_size == (32, 64)
    assert count(CONFIGS["cifar-nano"], np.array([32, 64])).image_size == (32, 64)  # type: ignore[arg-type]
    assert count(CONFIGS["cifar-nano"], np.int64(64)).image_size == (64, 64)  # type: ignore[arg-type]
    for branch in (CNNBranch, TransformerBranch):
        with pytest.raises(TypeError, match=f"count: a {branch.__name__} is not a whole Conformer; .* have conformer.measured_macs run it"):
            count(branch(CONFIGS["cifar-nano"]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images are 30 x 32 pixels"):
        describe(CONFIGS["cifar-micro"], (30, 32))


def test_a_model_whose_parts_were_replaced_is_not_counted_as_its_configuration():
    model = conformer_cifar_nano()
    assert count(model).parameters == 1_071_880
    model.trans_cls_head = nn.Linear(96, 5)
    with pytest.raises(ValueError, match="count: the model has 1,071,395 parameters, its configuration 1,071,880: parts of it were replaced"):
        count(model)


def images_of(height: int, width: int) -> Tensor:
    return Tensor(np.zeros((1, height, width, 3), np.float32))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["cifar-nano", "cifar-micro", "cifar-small"])
def test_what_is_measured_is_what_is_counted(name, network):
    """The one difference is FCUDown, which pools before its convolution: so it has the products of FCUUp, at the tokens' places."""
    config, size = CONFIGS[name], (16, 16)
    result = count(config, size, network)
    measured = measured_macs(builder(network, size)(config), images_of(*size))
    assert measured == result.executed_macs > 1_000_000, "what is counted is what runs"
    parts = {part.name: part.macs for part in result.parts}
    downs = [part for part in parts if part.endswith(".squeeze_block")]
    assert len(downs) == (config.depth - 1 if network == "conformer" else 0)
    assert measured == result.macs - sum(parts[down] - parts[down.replace("squeeze", "expand")] for down in downs)


class NoProducts(nn.Module):
    """In the place of an attention, with its parameters: the values alone, in which no token looks at another."""

    def __init__(self, attention: Any):
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.proj(self.qkv(x)[..., -x.shape[-1] :])


def test_a_block_with_as_many_parameters_is_counted_wrongly_and_measured_rightly():
    model = conformer_cifar_nano()
    before = measured_macs(model, images_of(32, 32))
    model.trans_1.attn = NoProducts(model.trans_1.attn)
    assert count(model).macs == count(CONFIGS["cifar-nano"]).macs
    assert before - measured_macs(model, images_of(32, 32)) == 2 * 17 * 17 * 96


def test_what_is_measured_may_be_any_function_and_is_left_as_it_was():
    x, y = Tensor(np.ones((4, 2, 3), np.float32)), Tensor(np.ones((3, 5), np.float32), requires_grad=True)
    multiply = REGISTRY["matmul"].function
    seen = []

    def function(x: Tensor, y: Tensor) -> Tensor:
        other = threading.Thread(target=lambda: seen.append(x @ y))
        other.start()
        other.join()
        assert measured_macs(lambda: y.swapaxes(0, 1) @ y) == 5 * 3 * 5  # inside another: both count it
        return checkpoint(lambda x, y: x @ y, x, y) + (x @ y.detach()) * 2

    assert measured_macs(function, x, y) == 2 * (4 * 2 * 3 * 5) + 5 * 3 * 5 and len(seen) == 1
    assert REGISTRY["matmul"].function is multiply

    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    layers[2].eval()
    state = {name: array.copy() for name, array in layers.state_dict().items()}
    assert measured_macs(layers, images_of(5, 6)) == 3 * 4 * 4 * 27
    assert [module.training for module in layers] == [True, True, False]
    assert all(np.array_equal(array, state[name]) for name, array in layers.state_dict().items())
    assert measured_macs(layers, np.zeros((7, 5, 6, 3), np.float32)) == 7 * measured_macs(layers, images_of(5, 6))
    with pytest.raises(ValueError, match="conv2d"):
        measured_macs(layers, np.zeros((1, 5, 6, 2), np.float32))
    assert REGISTRY["matmul"].function is multiply and layers[0].training


def test_two_threads_measure_one_after_the_other():
    """They count at the same place; each must find there what it left."""
    x, y = Tensor(np.ones((4, 2, 3), np.float32)), Tensor(np.ones((3, 5), np.float32))
    multiply, inside, counts = REGISTRY["matmul"].function, threading.Event(), []

    def second() -> Tensor:
        inside.set()
        return x @ y

    def first() -> Tensor:
        thread.start()
        assert not inside.wait(0.05)
        return x @ y

    thread = threading.Thread(target=lambda: counts.append(measured_macs(second)))
    counts.append(measured_macs(first))
    thread.join()
    assert counts == [4 * 2 * 3 * 5] * 2 and REGISTRY["matmul"].function is multiply
