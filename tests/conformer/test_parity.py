"""Our Conformer against the independent PyTorch one where nothing is recorded, and our kernels against our definitions.

A state_dict travels from ours to PyTorch's and back; logits, losses, every gradient, the images' gradient and the running statistics are compared in
float64. Then design.md's promise: delete any one kernel, or all of them, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from conformer import CONFIGS
from minigrad import Tensor, manual_seed
from minigrad.nn import dropout
from minigrad.op import REGISTRY, Kernel
from tests.conformer import witnesses
from tests.conformer.witnesses import Outcome, assert_same_outcome

BASE = dict(channel_ratio=0.25, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2.0, qkv_bias=True, num_classes=5)
SMALL = {
    "imagenet stem": (dict(), (3, 3, 32, 32)),
    "imagenet stem, patch 32, rectangle": (dict(patch_size=32), (3, 3, 64, 32)),
    "cifar stem, rectangle": (dict(stem="cifar"), (2, 3, 16, 32)),
    "cifar stem, patch 32": (dict(stem="cifar", patch_size=32), (2, 3, 16, 16)),
    "cifar_fast stem, rectangle": (dict(stem="cifar_fast"), (3, 3, 32, 16)),
    "one med block": (dict(stem="cifar_fast", num_med_block=1), (3, 3, 16, 16)),
    "two med blocks, single class token": (dict(stem="cifar", num_med_block=2, double_class_token=False), (2, 3, 16, 16)),
    "no qkv bias, own scale": (dict(stem="cifar_fast", qkv_bias=False, qk_scale=0.7, mlp_ratio=3.5), (3, 3, 16, 32)),
    "narrow base, narrow stem, grey": (dict(base_channel=40, channel_ratio=0.5, stem_channels=12, stem="cifar", in_chans=1), (2, 1, 16, 16)),
    "wide base, six blocks": (dict(base_channel=96, depth=6, stem="cifar_fast"), (3, 3, 16, 16)),
}


def drawn(shape: tuple[int, ...], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, C, H, W) and labels (B,)."""
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape), rng.integers(0, num_classes, shape[0])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("config", "shape"), SMALL.values(), ids=SMALL)
def test_equals_torch_there_and_back(config: dict, shape: tuple[int, ...], training: bool):
    config = {**BASE, **config}
    images, labels = drawn(shape, config["num_classes"])
    ours = witnesses.our_model(**config).train(training)
    theirs = witnesses.torch_model(ours.state_dict(), **config).train(training)
    heads = (0.7, 1.6)  # unequal, so that the heads cannot change places
    assert_same_outcome(witnesses.our_pass(ours, images, labels, heads), witnesses.torch_pass(theirs, images, labels, heads))

    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter -= 0.1 * parameter.grad
    changed = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(changed)
    assert list(ours.state_dict()) == list(changed)
    for name, array in ours.state_dict().items():
        assert_array_equal(array, changed[name], err_msg=name)
    assert_same_outcome(witnesses.our_pass(ours, images, labels, heads), witnesses.torch_pass(theirs, images, labels, heads))


def test_cifar_nano_equals_torch_at_its_own_size():
    """Large enough that the kernels cut their rows into blocks and share them among threads."""
    config = asdict(CONFIGS["cifar-nano"])
    images, labels = drawn((24, 3, 32, 32), 10)
    ours, theirs = witnesses.our_model(**config), witnesses.torch_model(**config)
    assert sum(parameter.size for parameter in ours.parameters()) == 1_071_880
    assert_same_outcome(witnesses.our_pass(ours, images, labels), witnesses.torch_pass(theirs, images, labels))


def test_drop_path_equals_torch_under_the_same_masks(monkeypatch: pytest.MonkeyPatch):
    """Both residuals of every block but the first draw on their own, at rates that rise with the block."""
    config, rate = {**BASE, "depth": 6, "stem": "cifar_fast"}, 0.6
    images, labels = drawn((8, 3, 16, 16), config["num_classes"])
    draw, drawn_masks = dropout.keep_mask, []

    def keep_mask(purpose: str, shape: tuple[int, ...], p: float, device: str) -> Tensor:
        drawn_masks.append((p, draw(purpose, shape, p, device)))
        return drawn_masks[-1][1]

    monkeypatch.setattr(dropout, "keep_mask", keep_mask)
    manual_seed(1)
    ours = witnesses.our_model(**config, drop_path_rate=rate).train()
    actual = witnesses.our_pass(ours, images, labels)
    rates = [rate * block / 5 for block in range(1, 6) for _ in range(2)]
    assert_allclose([p for p, _ in drawn_masks], rates)
    factors = [torch.ones(8).double()] * 2 + [torch.tensor(mask.numpy() / (1 - p)) for p, mask in drawn_masks]
    assert 0 < sum((factor == 0).sum().item() for factor in factors) < 8 * len(factors)
    theirs = witnesses.torch_model(witnesses.our_model(**config).state_dict(), **config, drop_path_rate=rate).train()
    assert_same_outcome(actual, witnesses.torch_pass(theirs, images, labels, masks=list(zip(factors[::2], factors[1::2], strict=True))))
    still = witnesses.our_pass(ours.eval(), images, labels)
    assert len(drawn_masks) == 10  # none in eval mode
    assert np.isfinite(still.logits[0]).all()


def test_loading_is_strict():
    model = witnesses.our_model(**BASE)
    state = model.state_dict()
    state["extra.weight"] = state.pop("conv1.weight")
    state["cls_token"] = state["cls_token"][:, :, 1:]
    with pytest.raises((KeyError, ValueError, RuntimeError)) as caught:
        model.load_state_dict(state)
    assert all(word in str(caught.value) for word in ("extra.weight", "conv1.weight", "cls_token"))


TINY = {**BASE, "stem": "imagenet", "num_med_block": 1, "drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.4}
KERNELS = sorted(name for name, op in REGISTRY.items() if "cpu" in op.kernels)


def tiny_passes(run: Callable[..., Outcome] = witnesses.our_pass) -> tuple[Outcome, Outcome]:
    """The eval pass, then the train pass of a tiny Conformer that meets every kind of layer; the same masks every time."""
    manual_seed(0)
    images, labels = drawn((3, 3, 32, 32), TINY["num_classes"])
    model = witnesses.our_model(**TINY)
    return run(model.eval(), images, labels), run(model.train(), images, labels)


@cache
def passes_by_kernels() -> tuple[Outcome, Outcome]:
    return tiny_passes()


def assert_nothing_changed(actual: tuple[Outcome, Outcome], expected: tuple[Outcome, Outcome]) -> None:
    for ours, kernels in zip(actual, expected, strict=True):
        assert_same_outcome(ours, kernels)


def test_the_tiny_network_runs_the_kernels(monkeypatch: pytest.MonkeyPatch):
    """Otherwise deleting them would prove nothing."""
    ran = set()

    def counted(name: str, kernel: Kernel) -> Kernel:
        def forward(*arguments):
            ran.add(name)
            return kernel.forward(*arguments)

        return Kernel(forward, kernel.backward, kernel.strided, kernel.fresh)

    for name in KERNELS:
        monkeypatch.setitem(REGISTRY[name].kernels, "cpu", counted(name, REGISTRY[name].kernels["cpu"]))
    assert_nothing_changed(tiny_passes(), passes_by_kernels())
    assert ran >= {"avg_pool2d", "batch_norm", "conv2d", "cross_entropy", "drop_path", "dropout", "gelu", "global_avg_pool2d", "layer_norm", "linear"}
    assert ran >= {"max_pool2d", "scaled_dot_product_attention", "upsample_nearest"}


@pytest.mark.parametrize("name", KERNELS)
def test_without_one_kernel(name: str, monkeypatch: pytest.MonkeyPatch):
    expected = passes_by_kernels()
    monkeypatch.delitem(REGISTRY[name].kernels, "cpu")
    assert_nothing_changed(tiny_passes(), expected)


def test_without_any_kernel(monkeypatch: pytest.MonkeyPatch):
    expected = passes_by_kernels()
    for name in KERNELS:
        monkeypatch.delitem(REGISTRY[name].kernels, "cpu")
    assert_nothing_changed(tiny_passes(), expected)


def test_by_definitions():
    assert_nothing_changed(tiny_passes(witnesses.our_pass_by_definitions), passes_by_kernels())
