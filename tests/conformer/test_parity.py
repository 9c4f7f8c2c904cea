"""Our Conformer against the independent PyTorch one where nothing is recorded, and our kernels against our definitions.

Any network that can be built (`configurations.py`), in training and evaluation, with shared dropout masks, and over steps of training; then a few
chosen ones, whose state_dict travels from ours to PyTorch's and back. Logits, losses, every gradient, the images' gradient and the running
statistics are compared in float64. Then the promise of docs/architecture.md: delete any one kernel, or all of them, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, reduce
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from conformer import CONFIGS, Conformer, parameter_groups
from minigrad import Tensor, definitions, enable_grad, manual_seed, optim
from minigrad import functional as F
from minigrad.op import REGISTRY, KernelPair
from tests.conformer import torch_conformer, witnesses
from tests.conformer.configurations import Case, cases, chosen
from tests.conformer.torch_conformer import TorchConformer
from tests.conformer.witnesses import Outcome, assert_same_outcome, assert_same_pass
from tests.nn.parity import assert_nearly_all, assert_same_up_to_rounding, give_masks, recorded_masks, shaken, shaken_inside, until_equal
from tests.support import draws, fused_with_kernel

HEADS = (0.7, 1.6)  # weights of the two losses, unequal, so that the heads cannot change places

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


@pytest.fixture(scope="module")
def compared() -> Iterator[list[bool]]:
    """Whether each of the passes that this file's drawn networks made was compared with PyTorch's; in the end, nearly all must have been."""
    passes: list[bool] = []
    yield passes
    assert_nearly_all(passes)


def each_of(given: list[Case]) -> Callable[[Callable], Callable]:
    """`@each_of(chosen())` above `@given(case=...)`: these cases are run before those that are drawn."""
    return lambda test: reduce(lambda decorated, case: example(case=case)(decorated), reversed(given), test)


def models(case: Case) -> tuple[Conformer, TorchConformer, Callable[[int], TorchConformer]]:
    """Ours, PyTorch's with the same weights, and what makes PyTorch's with these and its layers shaken."""
    ours = witnesses.our_model(seed=case.seed, **case.config)
    state = ours.state_dict()

    def moved(seed: int) -> TorchConformer:
        return shaken_inside(witnesses.torch_model({name: shaken(array, seed) for name, array in state.items()}, **case.config), seed)

    return ours, witnesses.torch_model(state, **case.config), moved


@draws(20)
@each_of(chosen())
@given(case=cases())
def test_any_network_equals_torch_by_kernels_and_by_definitions(compared: list[bool], case: Case):
    ours, theirs, moved = models(case)
    before = ours.state_dict()
    for training in (False, True):
        reference = witnesses.torch_pass(theirs.train(training), case.images, case.labels, HEADS)
        close_by = cache(lambda shake, mode=training: witnesses.torch_pass(moved(shake).train(mode), shaken(case.images, shake), case.labels, HEADS))
        for run in (witnesses.our_pass, witnesses.our_pass_by_definitions):
            ours.load_state_dict(before)
            compared.append(assert_same_pass(run(ours.train(training), case.images, case.labels, HEADS), reference, close_by))
        for name, array in before.items():
            if name.endswith("num_batches_tracked"):
                assert reference.state[name] == array + training


@draws(20)
@each_of(chosen(dropping=True))
@given(case=cases(dropping=True))
def test_any_network_equals_torch_under_the_same_masks(compared: list[bool], case: Case):
    """Dropout after attention, on its weights and in the token-wise network, and stochastic depth."""
    ours, theirs, moved = models(case)
    before = ours.state_dict()
    for run in (witnesses.our_pass, witnesses.our_pass_by_definitions):
        ours.load_state_dict(before)
        manual_seed(case.seed)
        with recorded_masks() as masks:
            actual = run(ours, case.images, case.labels, HEADS)
        rates = [case.config[name] for name in ("attn_drop_rate", "drop_rate", "drop_path_rate")]
        blocks = case.config["depth"]
        drawn_by = [blocks, 3 * blocks, 2 * (blocks - 1)]  # the first block's branches are always kept
        assert len(masks) == sum(number for number, rate in zip(drawn_by, rates, strict=True) if rate)
        if run is witnesses.our_pass:
            reference = witnesses.torch_pass(theirs, case.images, case.labels, HEADS, masks)
            close_by = cache(lambda shake, masks=masks: witnesses.torch_pass(moved(shake), shaken(case.images, shake), case.labels, HEADS, masks))
        compared.append(assert_same_pass(actual, reference, close_by))


@st.composite
def optimisers(draw: st.DrawFn) -> dict[str, Any]:
    """Options of `trained`. AdamW's eps is not its usual 1e-8, by which it would divide gradients that are nothing but rounding."""
    options = dict(lr=draw(st.sampled_from([1e-3, 0.05])), weight_decay=draw(st.sampled_from([0.0, 0.05, 0.5])))
    if draw(st.booleans()):
        return dict(name="AdamW", **options, betas=draw(st.sampled_from([(0.9, 0.999), (0.5, 0.8)])), eps=1e-4)
    momentum = draw(st.sampled_from([0.0, 0.9]))
    return dict(name="SGD", **options, momentum=momentum, nesterov=momentum > 0 and draw(st.booleans()))


def trained(model: Conformer | TorchConformer, images: np.ndarray, labels: np.ndarray, name: str, weight_decay: float, clip: float, **options):
    """Four steps of either network by its own library; the loss, the norm of the gradients and the state after each."""
    ours = isinstance(model, Conformer)
    groups = (parameter_groups if ours else torch_conformer.parameter_groups)(model, weight_decay)
    optimizer = getattr(optim if ours else torch.optim, name)(groups, **options)
    history = {}
    for step in range(4):
        x = Tensor(images.transpose(0, 2, 3, 1)) if ours else torch.from_numpy(images)
        y = labels if ours else torch.from_numpy(labels)
        loss = sum(w * (F if ours else torch.nn.functional).cross_entropy(head, y) for w, head in zip(HEADS, model(x), strict=True))
        optimizer.zero_grad()
        loss.backward()
        norm = (optim if ours else torch.nn.utils).clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        state = {key: value if ours else value.numpy().copy() for key, value in model.state_dict().items()}
        history |= {f"step {step}: {key}": value for key, value in {"loss": np.array(loss.item()), "norm": np.array(float(norm)), **state}.items()}
    return history


@given(case=cases(dropping=True), options=optimisers(), clip=st.sampled_from([1.0, 1e6]), by_definitions=st.booleans())
def test_any_network_trains_as_torchs(compared: list[bool], case: Case, options: dict[str, Any], clip: float, by_definitions: bool):
    ours, theirs, moved = models(case)
    manual_seed(case.seed)
    with recorded_masks() as masks, definitions() if by_definitions else enable_grad():
        actual = trained(ours, case.images, case.labels, clip=clip, **options)

    def torchs(model: TorchConformer, images: np.ndarray) -> dict[str, np.ndarray]:
        left = give_masks(model, masks)
        history = trained(model, images, case.labels, clip=clip, **options)
        assert next(left, None) is None, "masks that no layer took"
        return history

    reference = torchs(theirs, case.images)
    assert list(actual) == list(reference)

    def compare(close_by: list[dict[str, np.ndarray]]) -> list[bool]:
        steps = []
        for step in range(4):
            ours_then, theirs_then, *moved_then = (
                {k: v for k, v in run.items() if k.startswith(f"step {step}:")} for run in (actual, reference, *close_by)
            )
            steps.append(assert_same_up_to_rounding(ours_then, theirs_then, moved_then))
            # each step multiplies the rounding of the ones before; where PyTorch no longer repeats its own steps, there is nothing to compare with
            first = moved_then[0]
            if any(np.abs(first[k] - v).max(initial=0.0) > 1e-10 * max(1.0, np.abs(v).max(initial=0.0)) for k, v in theirs_then.items()):
                break
        event(f"{sum(steps)} steps compared")
        return steps

    compared.extend(until_equal(lambda shake: torchs(moved(shake), shaken(case.images, shake)), compare))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("config", "shape"), SMALL.values(), ids=SMALL)
def test_a_network_equals_torch_there_and_back(config: dict, shape: tuple[int, ...], training: bool):
    config = {**BASE, **config}
    images, labels = drawn(shape, config["num_classes"])
    ours = witnesses.our_model(**config).train(training)
    theirs = witnesses.torch_model(ours.state_dict(), **config).train(training)
    assert_same_outcome(witnesses.our_pass(ours, images, labels, HEADS), witnesses.torch_pass(theirs, images, labels, HEADS))

    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter -= 0.1 * parameter.grad
    changed = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(changed)
    assert list(ours.state_dict()) == list(changed)
    for name, array in ours.state_dict().items():
        assert_array_equal(array, changed[name], err_msg=name)
    assert_same_outcome(witnesses.our_pass(ours, images, labels, HEADS), witnesses.torch_pass(theirs, images, labels, HEADS))


def test_cifar_nano_equals_torch_at_its_own_size():
    """Large enough that the kernels cut their rows into blocks and share them among threads."""
    config = asdict(CONFIGS["cifar-nano"])
    images, labels = drawn((24, 3, 32, 32), 10)
    ours, theirs = witnesses.our_model(**config), witnesses.torch_model(**config)
    assert sum(parameter.size for parameter in ours.parameters()) == 1_071_880
    assert_same_outcome(witnesses.our_pass(ours, images, labels), witnesses.torch_pass(theirs, images, labels))


def test_drop_path_equals_torch_under_the_same_masks():
    """Both residuals of every block but the first draw on their own, at rates that rise with the block."""
    config, rate = {**BASE, "depth": 6, "stem": "cifar_fast"}, 0.6
    images, labels = drawn((8, 3, 16, 16), config["num_classes"])
    manual_seed(1)
    ours = witnesses.our_model(**config, drop_path_rate=rate).train()
    with recorded_masks() as masks:
        actual = witnesses.our_pass(ours, images, labels)
    assert_allclose([p for p, _ in masks], [rate * block / 5 for block in range(1, 6) for _ in range(2)], rtol=1e-12)
    assert all(mask.shape == (8,) for _, mask in masks)
    assert 0 < sum(mask.sum().item() for _, mask in masks) < 8 * len(masks)
    theirs = witnesses.torch_model(witnesses.our_model(**config).state_dict(), **config, drop_path_rate=rate).train()
    assert_same_outcome(actual, witnesses.torch_pass(theirs, images, labels, masks=masks))
    with recorded_masks() as masks:
        still = witnesses.our_pass(ours.eval(), images, labels)
    assert not masks and np.isfinite(still.logits[0]).all()


def test_loading_names_all_that_does_not_fit():
    model = witnesses.our_model(**BASE)
    state = model.state_dict()
    state["extra.weight"] = state.pop("conv1.weight")
    state["cls_token"] = state["cls_token"][:, :, 1:]
    with pytest.raises((KeyError, ValueError, RuntimeError)) as caught:
        model.load_state_dict(state)
    assert all(word in str(caught.value) for word in ("extra.weight", "conv1.weight", "cls_token"))


TINY = {**BASE, "stem": "imagenet", "num_med_block": 1, "drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_path_rate": 0.4}
KERNELS = sorted(fused_with_kernel("cpu"))
INSIDE = {"log_softmax": "cross_entropy", "softmax": "scaled_dot_product_attention"}
"""Kernels that run in the network only where another operation, whose definition calls them, has none."""


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

    def counted(name: str, kernel: KernelPair) -> KernelPair:
        def forward(*arguments):
            ran.add(name)
            return kernel.forward(*arguments)

        return KernelPair(forward, kernel.backward, kernel.strided, kernel.fresh)

    for name in KERNELS:
        monkeypatch.setitem(REGISTRY[name].kernels, "cpu", counted(name, REGISTRY[name].kernels["cpu"]))
    assert_nothing_changed(tiny_passes(), passes_by_kernels())
    assert ran == {*KERNELS} - INSIDE.keys()
    for caller in INSIDE.values():
        monkeypatch.delitem(REGISTRY[caller].kernels, "cpu")
    ran.clear()
    assert_nothing_changed(tiny_passes(), passes_by_kernels())
    assert ran == {*KERNELS} - {*INSIDE.values()}


@pytest.mark.parametrize("name", KERNELS)
def test_without_one_kernel_nothing_changes(name: str, monkeypatch: pytest.MonkeyPatch):
    expected = passes_by_kernels()
    for without in {name, INSIDE.get(name, name)}:
        monkeypatch.delitem(REGISTRY[without].kernels, "cpu")
    assert_nothing_changed(tiny_passes(), expected)


def test_without_any_kernel_nothing_changes(monkeypatch: pytest.MonkeyPatch):
    expected = passes_by_kernels()
    for name in KERNELS:
        monkeypatch.delitem(REGISTRY[name].kernels, "cpu")
    assert_nothing_changed(tiny_passes(), expected)


def test_by_definitions_nothing_changes():
    assert_nothing_changed(tiny_passes(witnesses.our_pass_by_definitions), passes_by_kernels())
