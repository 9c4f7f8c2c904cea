"""The branches alone are the Conformer's branches: its names, its blocks, its numbers wherever the coupling carries nothing."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from conformer import CONFIGS, Conformer, ConformerConfig, parameter_groups
from conformer.baselines import CNNBranch, TransformerBranch
from minigrad import Tensor, nn, no_grad
from tests.support import normal

SMALL = ConformerConfig(num_classes=5, embed_dim=12, num_heads=3, mlp_ratio=2, channel_ratio=0.25, stem_channels=8, stem="cifar", depth=6)
BRANCHES = CNNBranch, TransformerBranch


def built(make, *args, **kwargs):
    """A network in float64 in evaluation mode that has left its start: no weight is too small and no norm too plain to show."""
    minigrad.manual_seed(0)
    model = make(*args, **kwargs).to(dtype="float64").eval()
    rng = np.random.default_rng(0)
    with no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1 or name in ("cls_token", "pos_embed"):
                tensor.copy_(tensor.numpy() + 0.5 * rng.standard_normal(tensor.shape))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(rng.standard_normal(module.weight.shape) / np.sqrt(module.in_features))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.5 * rng.standard_normal(module.num_features))
                module.running_var.copy_(rng.uniform(0.5, 2, module.num_features))
    return model


@pytest.mark.parametrize("stem", ["imagenet", "cifar", "cifar_fast"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_images_become_logits(branch, stem):
    config = replace(SMALL, stem=stem)
    side = 2 * config.size_multiple
    keywords = {} if branch is CNNBranch else {"image_size": (side, 2 * side)}
    logits = branch(config, **keywords)(normal(3, side, 2 * side, 3).astype("float32"))
    assert (logits.shape, logits.dtype) == ((3, 5), np.float32)


@pytest.mark.parametrize(
    ("make", "parameters"),
    [(CNNBranch, 269_322), (TransformerBranch, 774_186), (lambda config: TransformerBranch(config, positional_embedding=False), 772_554)],
)
def test_parameter_counts_of_cifar_nano(make, parameters):
    assert sum(parameter.size for parameter in make(CONFIGS["cifar-nano"]).parameters()) == parameters


@pytest.mark.parametrize(("make", "med_blocks"), [(CNNBranch, 0), (CNNBranch, 2), (TransformerBranch, 0)])
def test_gradients_reach_every_parameter(make, med_blocks):
    config = replace(SMALL, num_med_block=med_blocks, qkv_bias=True)
    model = built(make, config, **({} if make is CNNBranch else {"image_size": 8})).train()
    (model(normal(4, 8, 8, 3)) * normal(4, 5, seed=2)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and np.isfinite(parameter.grad.numpy()).all(), name
        assert np.abs(parameter.grad.numpy()).max() > 1e-9, name
    assert ("conv_trans_3.med_block.1.conv2.weight" in model.state_dict()) == bool(med_blocks)


def test_names_shapes_and_order_are_the_conformers_and_the_heads_and_the_stem_are_shared():
    config = replace(SMALL, num_med_block=1, qkv_bias=True)
    whole = Conformer(**asdict(config)).state_dict()
    parts = [branch.state_dict() for branch in (CNNBranch(config), TransformerBranch(config, positional_embedding=False))]
    for part in parts:
        assert list(part) == [name for name in whole if name in part]
        for name, value in part.items():
            assert value.shape == whole[name].shape, name
    stem = {f"bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")} | {"conv1.weight"}
    assert parts[0].keys() & parts[1].keys() == stem
    assert all(".squeeze_block." in name or ".expand_block." in name for name in whole.keys() - parts[0].keys() - parts[1].keys())


def uncoupled(direction, **changes):
    """A Conformer one of whose FCUs gives zeros, in every block: its last norm multiplies by 0 and adds 0, and both ReLU and GELU keep 0."""
    model = built(Conformer, **asdict(replace(SMALL, **changes)))
    with no_grad():
        for plan in model.plans:
            block = getattr(model, plan.name)
            norm = block.expand_block.bn if direction == "up" else block.squeeze_block.ln
            norm.weight.copy_(np.zeros(norm.weight.shape))
            norm.bias.copy_(np.zeros(norm.bias.shape))
    return model


@pytest.mark.parametrize("changes", [{}, {"stem": "imagenet"}, {"num_med_block": 1}])
def test_the_cnn_branch_is_a_conformer_whose_tokens_give_nothing(changes):
    whole, branch = uncoupled("up", **changes), built(CNNBranch, replace(SMALL, **changes))
    branch.load_state_dict(whole.state_dict(), strict=False)
    images = normal(2, 16, 32, 3)
    assert_allclose(branch(images).numpy(), whole(images)[0].numpy(), rtol=0, atol=1e-12)
    coupled = built(Conformer, **asdict(replace(SMALL, **changes)))
    assert np.abs(coupled(images)[0].numpy() - branch(images).numpy()).max() > 1e-3, "coupled it is another function"


@pytest.mark.parametrize("changes", [{}, {"stem": "imagenet"}, {"qkv_bias": True}])
def test_the_transformer_branch_is_a_conformer_whose_map_gives_nothing(changes):
    """With `double_class_token=False`: else FCUDown hands on a class token even where the map gives nothing."""
    whole = uncoupled("down", **changes, double_class_token=False)
    branch = built(TransformerBranch, replace(SMALL, **changes), positional_embedding=False)
    branch.load_state_dict(whole.state_dict(), strict=False)
    images = normal(2, 16, 32, 3)
    assert_allclose(branch(images).numpy(), whole(images)[1].numpy(), rtol=0, atol=1e-12)
    doubled = uncoupled("down", **changes)
    assert np.abs(doubled(images)[1].numpy() - branch(images).numpy()).max() > 1e-3


def test_the_cnn_branch_takes_sizes_that_no_token_grid_fits():
    assert built(CNNBranch, SMALL)(normal(2, 9, 7, 3)).shape == (2, 5)


def shuffled(images, side):
    """The images with their tiles of `side` pixels in another order."""
    batch, height, width, channels = images.shape
    rows, columns = height // side, width // side
    tiles = (
        images.reshape(batch, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, side, side, channels)
    )
    tiles = tiles[:, np.random.default_rng(4).permutation(rows * columns)].reshape(batch, rows, columns, side, side, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)


@pytest.mark.parametrize("positional_embedding", [False, True])
def test_the_order_of_the_patches_matters_only_with_positions(positional_embedding):
    model = built(TransformerBranch, SMALL, positional_embedding, image_size=16)
    with no_grad():  # leave the stem's middle tap only: what is in a patch then depends on that patch's pixels alone
        taps = model.conv1.weight.numpy().copy()
        taps[:, :, np.array([[True, True, True], [True, False, True], [True, True, True]])] = 0
        model.conv1.weight.copy_(taps)
    images = normal(2, 16, 16, 3).numpy()
    difference = np.abs(model(Tensor(shuffled(images, 4))).numpy() - model(Tensor(images)).numpy()).max()
    assert (difference > 1e-3) if positional_embedding else (difference < 1e-12)
    inside = images.reshape(2, 4, 4, 4, 4, 3)[:, :, ::-1].reshape(images.shape)  # rows inside each patch upside down
    assert np.abs(model(Tensor(inside)).numpy() - model(Tensor(images)).numpy()).max() > 1e-3


def test_the_positions_are_one_vector_for_each_token_that_is_added_before_the_first_block():
    model = built(TransformerBranch, SMALL, image_size=(8, 12))
    assert model.pos_embed.shape == (1, 1 + 2 * 3, 12)
    images, seen = normal(2, 8, 12, 3), {}
    first = model.trans_1.forward
    model.trans_1.forward = lambda tokens: seen.update(tokens=tokens.numpy().copy()) or first(tokens)
    model(images)
    stem = model.bn1(model.conv1(images)).relu()
    patches = model.trans_patch_conv(stem).numpy().reshape(2, 6, 12)
    tokens = np.concatenate([np.broadcast_to(model.cls_token.numpy(), (2, 1, 12)), patches], axis=1)
    assert_allclose(seen["tokens"], tokens + model.pos_embed.numpy(), rtol=0, atol=1e-12)


def test_class_token_and_positions_start_small_and_positions_change_no_other_parameter():
    minigrad.manual_seed(3)
    with_positions = TransformerBranch(CONFIGS["cifar-nano"]).state_dict()
    minigrad.manual_seed(3)
    without = TransformerBranch(CONFIGS["cifar-nano"], positional_embedding=False).state_dict()
    assert_allclose(with_positions["cls_token"].std(), 0.02, rtol=0.25)
    assert_allclose(with_positions.pop("pos_embed").std(), 0.02, rtol=0.1)
    assert list(with_positions) == list(without)
    for name, value in without.items():
        assert_array_equal(value, with_positions[name], err_msg=name)


@pytest.mark.parametrize("branch", BRANCHES)
def test_initialisation_is_the_conformers(branch):
    """As for the Conformer: deviation 0.02 for linear layers, Kaiming by outputs for convolutions."""
    minigrad.manual_seed(1)
    model = branch(CONFIGS["cifar-nano"])
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert_allclose(module.weight.numpy().std(), 0.02, rtol=0.15, err_msg=name)
            assert not module.bias.numpy().any(), name
        elif isinstance(module, nn.Conv2d):
            outputs, _, height, width = module.weight.shape
            deviation = (2 / (outputs * height * width)) ** 0.5
            assert_allclose(module.weight.numpy().std(), deviation, rtol=5 / (2 * module.weight.size) ** 0.5, err_msg=name)


def test_drop_path_grows_as_in_the_conformer():
    config = replace(SMALL, drop_path_rate=0.5)
    rates = [
        {name: module.p for name, module in model.named_modules() if isinstance(module, nn.DropPath)}
        for model in (Conformer(**asdict(config)), TransformerBranch(config))
    ]
    assert rates[0] == rates[1] and rates[1]["conv_trans_6.trans_block.drop_path"] == 0.5


def test_weight_decay_spares_class_token_and_positions():
    model = TransformerBranch(SMALL, image_size=8)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = ({named[id(parameter)] for parameter in group["params"]} for group in parameter_groups(model, 0.05))
    assert {"cls_token", "pos_embed", "bn1.weight", "trans_cls_head.bias"} <= spared
    assert {"trans_patch_conv.weight", "trans_1.attn.qkv.weight", "conv1.weight"} <= decayed


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 8, 12, 3), r"images are 8 x 12 pixels, but its positional embedding is for 8 x 8: give that image_size, or positional_embedding=False"),
        ((2, 10, 8, 3), r"images are 10 x 8 pixels, .*multiples of 4"),
        ((2, 3, 8, 8), r"looks like \(B, C, H, W\), images are \(B, H, W, C\) here"),
    ],
)
def test_images_that_the_transformer_branch_cannot_take(shape, message):
    model = built(TransformerBranch, SMALL, image_size=8).train()
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        model(normal(*shape))
    for name, value in model.state_dict().items():
        assert_array_equal(value, before[name], err_msg=name)
    if shape == (2, 8, 12, 3):
        assert TransformerBranch(SMALL, False).to(dtype="float64")(normal(*shape)).shape == (2, 5)
    with pytest.raises(ValueError, match="images are 10 x 10 pixels"):
        TransformerBranch(SMALL, image_size=10)
