"""What is said about a network's inside agrees with what the network computes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from conformer import Conformer, ConvTransBlock
from conformer.blocks import FCUUp
from conformer.explain import (
    attention_gradients,
    attention_probabilities,
    attention_rollout,
    attention_weights,
    class_activation_maps,
    class_token_shares,
    coupling_strength,
    token_map,
    transformer_blocks,
)
from minigrad import Tensor, nn
from minigrad import functional as F
from minigrad.modes import no_grad
from minigrad.random import manual_seed
from tests.conformer.own_blocks import Nothing, Silent


def network(**changes) -> Conformer:
    manual_seed(0)
    sizes = {"depth": 6, "embed_dim": 16, "num_heads": 2, "channel_ratio": 0.25, "stem": "cifar", "stem_channels": 8, "num_classes": 5}
    model = Conformer(**(sizes | changes)).to(dtype="float64").eval()
    random = np.random.default_rng(0)
    for parameter in model.parameters():  # as after training: no bias is 0, no norm's weight is 1
        parameter.copy_(parameter.numpy() + random.normal(0, 0.05, parameter.shape))
    return model


@pytest.fixture(scope="module")
def model() -> Conformer:
    with no_grad():
        return network()


@pytest.fixture(scope="module")
def named(model: Conformer) -> dict[str, Tensor]:
    images = np.random.default_rng(1).normal(size=(2, 32, 48, 3))
    with no_grad():
        return model.intermediates(Tensor(images))


def test_the_mean_of_a_class_activation_map_is_the_logit_without_its_bias(model, named):
    for classes in ([0, 3], np.array([4, 4])):
        maps = class_activation_maps(model, named, classes)
        assert maps.shape == (2, *named["conv_trans_6"].shape[1:3])
        logits = named["conv_cls_head"].numpy()[[0, 1], classes] - model.conv_cls_head.bias.numpy()[classes]
        assert_allclose(maps.mean(axis=(1, 2)), logits, rtol=1e-12)


def test_attention_weights_are_those_that_the_attention_used(model, named):
    weights = attention_weights(model, named)
    assert list(weights) == ["trans_1", *(f"conv_trans_{number}.trans_block" for number in range(2, 7))]
    for name, block in transformer_blocks(model).items():
        count = named["tokens"].shape[1]
        assert weights[name].shape == (2, 2, count, count)
        assert_allclose(weights[name].sum(axis=3), 1, rtol=1e-12)
        tokens = named[f"{name}.norm1"].numpy()
        value = (tokens @ block.attn.qkv.weight.numpy().T)[..., 32:].reshape(2, count, 2, 8)  # no bias of its own
        mixed = np.einsum("bhnm,bmhd->bnhd", weights[name], value).reshape(2, count, 16)
        expected = mixed @ block.attn.proj.weight.numpy().T + block.attn.proj.bias.numpy()
        assert_allclose(named[f"{name}.attn"].numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("residual", ["measured", "half"])
def test_rollout_is_the_class_tokens_row_of_the_product_of_all_blocks(residual, model, named):
    row = attention_rollout(model, named, residual)
    assert_allclose(row.sum(axis=1), 1, rtol=1e-12)
    entering = named["tokens"].numpy()
    product = np.broadcast_to(np.eye(entering.shape[1]), (2, entering.shape[1], entering.shape[1]))
    for name, weights in attention_weights(model, named).items():
        if name != "trans_1":
            entering = entering + named[name.replace("trans_block", "squeeze_block")].numpy()
        own, update = (np.linalg.norm(x, axis=2, keepdims=True) for x in (entering, named[f"{name}.attn"].numpy()))
        kept = 0.5 if residual == "half" else own / (own + update)
        product = (kept * np.eye(entering.shape[1]) + (1 - kept) * weights.mean(axis=1)) @ product
        entering = named[name].numpy()
    assert_allclose(row, product[:, 0], rtol=0, atol=1e-12)


def test_a_rollout_of_an_unknown_kind_is_refused(model, named):
    with pytest.raises(ValueError, match="residual is 'double'; give 'measured' or 'half'"):
        attention_rollout(model, named, "double")


def test_a_map_of_tokens_lies_as_the_patches_do(named):
    patches = named["trans_patch_conv"].numpy()
    assert_array_equal(token_map(named, named["tokens"].numpy()), patches)
    assert_array_equal(token_map(named, named["tokens"].numpy()[..., 0]), patches[..., 0])


@pytest.mark.parametrize("double", [True, False])
def test_shares_of_the_class_token_are_what_arrives_of_each_blocks_update(double):
    """Blocks that add a constant each, whatever they see: the final class token is their sum, weighted."""
    with no_grad():
        model = network(double_class_token=double)
        model.cls_token.copy_(0 * model.cls_token.numpy())
        constants = np.random.default_rng(2).normal(size=(6, 16))
        for block, constant in zip(transformer_blocks(model).values(), constants, strict=True):
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.copy_(0 * layer.weight.numpy())
            block.attn.proj.bias.copy_(constant)
            block.mlp.fc2.bias.copy_(0 * constant)
        final = model.intermediates(Tensor(np.zeros((1, 32, 32, 3))))["conv_trans_6.trans_block"].numpy()[0, 0]
    shares = class_token_shares(model)
    assert_allclose(shares.sum(), 1, rtol=1e-12)
    assert_allclose(final, shares / shares[-1] @ constants, rtol=1e-12)


@pytest.mark.parametrize("med_blocks", [0, 1])
def test_coupling_strength_is_0_where_a_unit_adds_nothing(med_blocks):
    with no_grad():
        model = network(num_med_block=med_blocks)
        images = Tensor(np.random.default_rng(1).normal(size=(2, 32, 32, 3)))
        before = coupling_strength(model, model.intermediates(images))
        assert list(before) == [f"conv_trans_{number}" for number in range(2, 7)]
        assert all(down > 0.01 and up > 0.01 for down, up in before.values())
        silent = model.conv_trans_3
        for layer in (silent.squeeze_block.ln, silent.expand_block.bn):
            layer.weight.copy_(0 * layer.weight.numpy())
            layer.bias.copy_(0 * layer.bias.numpy())
        after = coupling_strength(model, model.intermediates(images))
        named, state = model.intermediates(images), model.state_dict()
        assert coupling_strength(model.train(), named) != after  # normalised by the batch
        assert all((state[name] == array).all() for name, array in model.state_dict().items())  # looking moves no statistics
    assert after["conv_trans_3"] == (0, 0)
    assert after["conv_trans_2"] == before["conv_trans_2"]


@pytest.mark.parametrize("med_blocks", [0, 2])
def test_coupling_strength_compares_what_a_unit_adds_with_what_it_is_added_to(med_blocks: int, monkeypatch: pytest.MonkeyPatch):
    """Down with the patch tokens that the block before left, up with what the fusion block's 3x3 convolution takes, less what FCUUp added."""
    with no_grad():
        model = network(num_med_block=med_blocks)
        entered: dict[str, np.ndarray] = {}
        for plan in model.plans:
            conv = getattr(model, plan.name).fusion_block.conv2
            monkeypatch.setattr(conv, "forward", lambda x, name=plan.name, run=conv.forward: entered.update({name: x.numpy()}) or run(x))
        named = model.intermediates(Tensor(np.random.default_rng(1).normal(size=(2, 32, 32, 3))))
        strengths = coupling_strength(model, named)

    def size(array: np.ndarray) -> float:
        return np.sqrt(np.square(array).mean())

    before = "trans_1"
    for name, (down, up) in strengths.items():
        expanded = named[f"{name}.expand_block"].numpy()
        assert_allclose(down, size(named[f"{name}.squeeze_block"].numpy()[:, 1:]) / size(named[before].numpy()[:, 1:]), rtol=1e-12)
        assert_allclose(up, size(expanded) / size(entered[name] - expanded), rtol=1e-9)
        before = f"{name}.trans_block"
    assert list(strengths) == [f"conv_trans_{number}" for number in range(2, 7)]


class Explicit(nn.Module):
    """An attention that writes its weights out, so that there are gradients by them."""

    def __init__(self, attention: nn.MultiHeadAttention):
        super().__init__()
        self.inner = attention

    def forward(self, x: Tensor) -> Tensor:
        b, n, e = x.shape
        query, key, value = self.inner.qkv(x).reshape(b, n, 3, 2, e // 2).transpose(2, 0, 3, 1, 4).unbind(0)
        self.weights = [F.softmax(query @ key.swapaxes(2, 3) * self.inner.scale)]
        return self.inner.proj((self.weights[0] @ value).transpose(0, 2, 1, 3).reshape(b, n, e))


@pytest.mark.parametrize("name", ["trans_1", "conv_trans_3.trans_block"])
def test_gradients_by_attention_weights_and_through_them_are_those_of_an_attention_that_writes_them_out(name: str):
    with no_grad():
        model = network(depth=3)
    images = Tensor(np.random.default_rng(1).normal(size=(2, 16, 16, 3)))
    block = transformer_blocks(model)[name]
    attention, classes = block.attn, [1, 3]
    wanted = [model.trans_patch_conv.weight, attention.qkv.weight]

    def score(named: dict[str, Tensor]) -> Tensor:
        return named["trans_cls_head"][[0, 1], classes].sum()

    named = model.intermediates(images, ["trans_cls_head", f"{name}.norm1", f"{name}.attn"])
    probabilities = attention_probabilities(attention, named[f"{name}.norm1"])
    (gradient,) = minigrad.grad(score(named), [named[f"{name}.attn"]])
    slopes = attention_gradients(attention, named[f"{name}.norm1"], gradient)
    distilled = minigrad.grad((probabilities * probabilities).sum(), wanted)

    block.attn = explicit = Explicit(attention)  # type: ignore[assignment]
    named = model.intermediates(images)
    (weights,) = explicit.weights
    assert_allclose(probabilities.numpy(), weights.numpy(), rtol=0, atol=1e-14)
    (expected,) = minigrad.grad(score(named), [weights])
    assert np.abs(expected.numpy()).max() > 0
    assert_allclose(slopes.numpy(), expected.numpy(), rtol=1e-9, atol=1e-14)
    for found, correct in zip(distilled, minigrad.grad((weights * weights).sum(), wanted), strict=True):
        assert_allclose(found.numpy(), correct.numpy(), rtol=1e-9, atol=1e-12)


class SilentUp(ConvTransBlock):
    def forward(self, x, x_t, named=None):
        given = None if named is None else {}
        x, x_t = super().forward(x, x_t, given)
        if named is not None and given is not None:
            named.update({name: tensor for name, tensor in given.items() if name != "expand_block"})
        return x, x_t


class NoUp(FCUUp):
    def forward(self, x_t, height, width):
        return None


def test_what_a_block_of_ones_own_does_not_note_is_said():
    images = Tensor(np.random.default_rng(1).normal(size=(1, 16, 16, 3)))
    with no_grad():
        model = network(depth=3)
        some = model.intermediates(images, ["trans_1.norm1"])
        some_coupling = model.intermediates(images, ["trans_1", "conv_trans_2.squeeze_block", "conv_trans_2.trans_block"])
        model.conv_trans_3.__class__ = Silent
        named = model.intermediates(images)
        model.conv_trans_3.__class__ = SilentUp
        without_up = model.intermediates(images)
    for given, function, missing in [
        (named, attention_weights, "conv_trans_3.trans_block.norm1"),
        (named, attention_rollout, "conv_trans_3.trans_block.norm1"),
        (named, coupling_strength, "conv_trans_3.squeeze_block"),
        (some, attention_weights, "conv_trans_2.trans_block.norm1"),
        (some_coupling, coupling_strength, "conv_trans_2.expand_block"),
        (without_up, coupling_strength, "conv_trans_3.expand_block"),
    ]:
        with pytest.raises(ValueError, match=f"explain: there is no '{missing}' among the intermediates; take all of them .*block of one's own"):
            function(model, given)


def test_without_up_coupling_its_strength_is_0():
    with no_grad():
        model = network(depth=3)
        model.conv_trans_2.expand_block = Nothing()  # type: ignore[assignment]
        images = Tensor(np.random.default_rng(1).normal(size=(1, 16, 16, 3)))
        strengths = coupling_strength(model, model.intermediates(images))
        model.conv_trans_2.__class__ = SilentUp
        assert coupling_strength(model, model.intermediates(images)) == strengths
        model.conv_trans_3.expand_block.__class__ = NoUp
        unexpanded = coupling_strength(model, model.intermediates(images))
    assert strengths["conv_trans_2"][0] > 0 and strengths["conv_trans_2"][1] == 0 and strengths["conv_trans_3"][1] > 0
    assert unexpanded["conv_trans_3"] == (strengths["conv_trans_3"][0], 0)
