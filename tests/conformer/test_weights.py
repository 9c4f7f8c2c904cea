"""Weights files: what is written can be read, and what cannot be used is refused before it takes memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformer import Conformer, ConformerConfig, ConvTransBlock, Mlp, likeness, weights
from conformer.baselines import CNNBranch
from conformer.batches import Batch
from conformer.learner import Learner
from conformer.options import TrainConfig
from conformer.weights import About, load_weights, save_weights
from minigrad import Tensor, nn, random, safetensors_io
from tests.conformer.own_blocks import Uncoupled

NETWORK = ConformerConfig(num_classes=2, channel_ratio=0.0625, embed_dim=8, num_heads=2, depth=3, stem="cifar", stem_channels=4)
ABOUT = About(asdict(NETWORK), "tiny", "made", "", ("cat", "dog"), (0.5,) * 3, (0.2,) * 3, (32, 32), 1, {"sum": 0.5})


@pytest.fixture(scope="module")
def model() -> Conformer:
    return Conformer(**asdict(NETWORK))


@pytest.fixture
def edited(model: Conformer, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a file as `conformer train` does, but for some of its metadata and arrays; those that are None are left out."""

    def write(metadata: dict[str, Any] | None = None, arrays: dict[str, np.ndarray | None] | None = None) -> Path:
        path = tmp_path / "w.safetensors"
        save_weights(path, model, ABOUT)
        state, entries = safetensors_io.load_state(path)
        entries |= {name: value if isinstance(value, str) else json.dumps(value) for name, value in (metadata or {}).items()}
        kept = {name: array for name, array in {**state, **(arrays or {})}.items() if array is not None}
        safetensors_io.save_state(path, kept, entries)
        return path

    return write


def test_what_is_saved_is_loaded(model: Conformer, edited: Callable[..., Path]):
    loaded, about = load_weights(edited())
    assert about == ABOUT and loaded.config == NETWORK
    for name, array in model.state_dict().items():
        assert loaded.state_dict()[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("name", ["conv_cls_head.weight", "bn1.running_var"])
def test_weights_that_are_not_finite(name: str, number: float, model: Conformer, edited: Callable[..., Path]):
    array = model.state_dict()[name].astype(np.float64)
    array.flat[-1] = number
    with pytest.raises(ValueError, match=rf"is not as `conformer train` wrote it \({name} has numbers that are not finite in float32"):
        load_weights(edited(arrays={name: array}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_med_block": 10**9}, "tensors for a network of 3,000,000,003 blocks"),
        ({"depth": 3 * 10**8}, "tensors for a network of 300,000,000 blocks"),
        ({"embed_dim": 4096}, r"its \d+ tensors are [\d,]+ numbers, for a network of [\d,]+ parameters"),
    ],
)
def test_a_network_that_the_file_cannot_fill_is_not_built(
    changes: dict[str, Any], said: str, edited: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    path = edited({"network": asdict(NETWORK) | changes})
    monkeypatch.setattr(weights, "builder", None)  # what it makes would ask for gigabytes
    with pytest.raises(ValueError, match=f"w.safetensors is not as `conformer train` wrote it .*{said}"):
        load_weights(path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"network": asdict(NETWORK) | {"mlp_ratio": float("inf")}}, "cannot build .Infinity is not a number to compute with"),
        ({"network": asdict(NETWORK) | {"mlp_ratio": 1e200}}, "mlp_ratio is 1e[+]200; it must be a number"),
        ({"network": asdict(NETWORK) | {"qk_scale": float("nan")}}, "NaN is not a number to compute with"),
        ({"network": asdict(NETWORK) | {"qk_scale": "x"}}, "qk_scale is 'x'; it must be a number"),
        ({"network": asdict(NETWORK) | {"num_heads": True}}, "num_heads is True; it must be a whole number"),
        ({"network": "[" * 100_000}, "cannot build .it is nested too deeply"),
        ({"network": []}, "cannot build"),
        ({"mean": [0.5, 0.5, 10**400]}, "a number of 401 digits is not a number to compute with"),
        ({"mean": [0.5, 0.5, 1e200]}, "which does not normalise images"),
        ({"std": [0.5, 0.5, 1e-200]}, "which does not normalise images"),
        ({"image_size": [24000, 24000]}, "images are 24,000 x 24,000 pixels, more than the 4,194,304 that are allowed"),
        ({"step": 0.5}, "step is 0.5, which is not a whole number"),
        ({"held_out": True}, "held_out is True, which is not a whole number"),
        ({"trained_on": {"made": "16"}}, "trained_on is {'made': '16'}, which is not a whole number for each data set"),
        ({"images": {"made": 16}}, "images is {'made': 16}, which is not text for each data set"),
        ({"trained_on": ["made"]}, r"trained_on is \['made'\], which is not a whole number for each data set"),
    ],
)
def test_metadata_that_no_network_can_have(metadata: dict[str, Any], said: str, edited: Callable[..., Path]):
    with pytest.raises(ValueError, match=said):
        load_weights(edited(metadata))


def test_files_of_before_images_could_be_held_out(edited: Callable[..., Path]):
    path = edited({"held_out": 16})
    assert load_weights(path)[1].held_out == 16
    state, entries = safetensors_io.load_state(path)
    del entries["held_out"]
    safetensors_io.save_state(path, state, entries)
    assert load_weights(path)[1] == ABOUT


def test_of_many_entries_that_do_not_fit_the_first_are_named(model: Conformer, edited: Callable[..., Path]):
    state = model.state_dict()
    with pytest.raises(ValueError, match="; and [0-9]+ more") as caught:
        load_weights(edited(arrays={name: np.zeros((*array.shape, 2), np.float32) for name, array in state.items()}))
    assert len(str(caught.value)) < 500
    count = int(str(caught.value).partition("; and ")[2].split()[0])
    assert count == len(state) - 3
    with pytest.raises(ValueError, match=f"unexpected .*; and {len(state) - 3} more") as caught:
        load_weights(edited(arrays={f"{name}.x": array for name, array in state.items()}))
    assert len(str(caught.value)) < 500
    with pytest.raises(ValueError, match="unexpected wings[)]$"):
        load_weights(edited(arrays={"wings": np.zeros(2)}))


def test_numpys_numbers_are_saved(model: Conformer, tmp_path: Path):
    mean = tuple(np.float32([0.5, 0.25, 0.125]))
    save_weights(tmp_path / "w.safetensors", model, replace(ABOUT, mean=mean, step=np.int64(3), test_accuracy={"sum": np.float32(0.5)}))
    about = load_weights(tmp_path / "w.safetensors")[1]
    assert about == replace(ABOUT, mean=(0.5, 0.25, 0.125), step=3)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"classes": ("cat",)}, ValueError, "could not be loaded again .it has 1 names for 2 classes"),
        ({"network": asdict(replace(NETWORK, num_classes=3)), "classes": ("a", "b", "c")}, ValueError, "`network` is not the model's configuration"),
        ({"network": asdict(NETWORK) | {"wings": 2}}, ValueError, "could not be loaded again .*wings"),
        ({"std": (0.2, 0.2)}, ValueError, "which does not normalise"),
        ({"test_accuracy": {"sum": float("nan")}}, TypeError, "test_accuracy is .*, which JSON cannot hold; give text and finite numbers"),
        ({"mean": np.float32([0.5] * 3)}, TypeError, "mean is .*, which JSON cannot hold"),
        ({"classes": (b"cat", b"dog")}, TypeError, "classes is .*, which JSON cannot hold"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(changes: dict[str, Any], error: type[Exception], said: str, model: Conformer, tmp_path: Path):
    with pytest.raises(error, match=f"save_weights: .*{said}"):
        save_weights(tmp_path / "w.safetensors", model, replace(ABOUT, **changes))
    assert list(tmp_path.iterdir()) == []


class Tanh(Mlp):
    def forward(self, x):
        return self.fc2(self.fc1(x).tanh())


class OwnConformer(Conformer):
    block = Uncoupled


class OneHead(Conformer):
    def forward(self, images):
        return (super().forward(images)[0],) * 2


class Called(Conformer):
    def __call__(self, images):
        return super().__call__(images * 2)


class Mixin:
    def _check(self, images):
        return images.shape[1:3]


class Mixed(Mixin, Conformer):
    pass


class Frozen(nn.BatchNorm2d):
    """Called by itself it stays in eval mode."""

    def train(self, mode=True):
        return super().train(False)


class Training(nn.BatchNorm2d):
    """It stays in training mode."""

    training = property(lambda self: True, lambda self, mode: None)  # type: ignore[assignment]


class Kept(Conformer):
    """Its batch norms stay in eval mode, and it may be made with words of its own."""

    block = ConvTransBlock

    def __init__(self, network, note="mine"):
        super().__init__(**asdict(network))
        self.note = note

    def train(self, mode=True):
        super().train(mode)
        self.freeze()
        return self

    def eval(self):
        return super().train(False)

    def freeze(self):
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = False


def swapped(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def patched(module: nn.Module) -> None:
    module.forward = lambda x, x_t: x_t  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: swapped(model.conv_trans_3.trans_block.mlp, Tanh), r"of which conv_trans_3.trans_block.mlp is a .*Tanh and not a .*Mlp"),
        (lambda model: swapped(model.conv_trans_2, Uncoupled), r"of which conv_trans_2 is a .*Uncoupled and not a conformer.blocks.ConvTransBlock"),
        (lambda model: swapped(model.bn1, Training), "of which bn1 is a .*Training and not a minigrad.nn.*BatchNorm2d"),
        (lambda model: setattr(model.trans_1.attn, "scale", 0.50001), "of which trans_1.attn has another scale"),
        (lambda model: setattr(model.trans_norm, "eps", 0.1), "of which trans_norm has another eps"),
        (lambda model: setattr(model.conv_trans_2.squeeze_block, "double_class_token", False), "conv_trans_2.squeeze_block has another double_class"),
        (lambda model: patched(model.conv_trans_2.squeeze_block), "of which conv_trans_2.squeeze_block has another forward"),
        (lambda model: setattr(model, "plans", model.plans[:1]), "of which the whole has another plans"),
        (lambda model: model.bn1.register_buffer("running_mean", None), "of which bn1 has another running_mean"),
        (lambda model: model.bn1.register_buffer("count", Tensor([1.0])), "of which bn1 has another count"),
        (lambda model: setattr(model.conv_trans_2, "fusion_block", None) or setattr(model, "head", nn.Linear(8, 2)), "parts of it were replaced"),
        (lambda model: setattr(model.trans_1, "drop_path", None), "of which trans_1 has another drop_path"),
        (lambda model: setattr(model.trans_1.mlp, "drop", model.trans_1.attn.proj_drop), "which has no trans_1.mlp.drop of its own"),
        (lambda model: setattr(model.conv_trans_2, "last", nn.ReLU()), "which has a conv_trans_2.last, too"),
    ],
)
def test_a_network_that_computes_otherwise_is_not_saved(change: Callable[[Conformer], None], said: str, tmp_path: Path):
    model = Conformer(**asdict(NETWORK))
    change(model)
    with pytest.raises(ValueError, match=f"save_weights: .*{said}"):
        save_weights(tmp_path / "w.safetensors", model, ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_subclass_that_computes_otherwise_is_not_saved(tmp_path: Path):
    for kind in (OneHead, Called, Mixed):
        said = f"the model is a {kind.__name__}; save what computes otherwise with minigrad.safetensors_io.save_state"
        with pytest.raises(TypeError, match=said):
            save_weights(tmp_path / "w.safetensors", kind(**asdict(NETWORK)), ABOUT)
    with pytest.raises(ValueError, match=r"of which conv_trans_2 is a .*Uncoupled and not a conformer.blocks.ConvTransBlock"):
        model = OwnConformer(**asdict(NETWORK))
        model.load_state_dict(Conformer(**asdict(NETWORK)).state_dict())
        save_weights(tmp_path / "w.safetensors", model, ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_what_only_trains_otherwise_is_saved(tmp_path: Path):
    lasting = Conformer(**asdict(NETWORK)).eval()
    lasting.train = lambda mode=True: lasting  # type: ignore[method-assign, misc]
    lasting.bn1.eval = lambda: lasting.bn1  # type: ignore[method-assign]
    some = Conformer(**asdict(NETWORK))
    for module in some.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = Frozen
    images = Tensor(np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32))
    for number, model in enumerate((lasting, some, Kept(NETWORK))):
        assert model.train().bn1.training == (model is some)
        save_weights(path := tmp_path / f"{number}.safetensors", model, ABOUT)
        loaded, _ = load_weights(path)
        assert loaded.train().bn1.training
        for found, expected in zip(loaded.eval()(images), model.eval()(images), strict=True):
            assert found.numpy().tobytes() == expected.numpy().tobytes()


def test_what_does_not_change_what_is_answered_is_saved(tmp_path: Path):
    model = Conformer(**asdict(NETWORK))
    model.trans_cls_head, model.note = nn.Linear(8, 2), "mine"
    model.to(dtype="float64").eval().requires_grad_(False).set_grad_checkpointing()
    model.bn1.momentum = None
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.DropPath):
            module.p = 0.3
    save_weights(tmp_path / "w.safetensors", copy.deepcopy(model), ABOUT)
    images = Tensor(np.random.default_rng(0).standard_normal((2, 8, 8, 3)))
    loaded = load_weights(tmp_path / "w.safetensors")[0].to(dtype="float64").eval()
    for found, expected in zip(loaded(images), model(images), strict=True):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)  # the weights are loaded in float32


def test_saving_and_loading_use_up_no_random_draw(model: Conformer, tmp_path: Path):
    """Nor does it matter where draws stand, such as on a GPU, where the host cannot draw."""
    on_gpu = type("Array", (), {"data": type("Memory", (), {"ptr": 1})})()
    before = random.get_counter()
    try:
        for counter in (random.Counter(None, 0, 0), random.Counter(5, 7, 3), random.Counter(5, on_gpu, 3)):
            likeness._plain.cache_clear()
            random.set_counter(counter)
            save_weights(tmp_path / "w.safetensors", model, ABOUT)
            load_weights(tmp_path / "w.safetensors")
            assert random.get_counter() == counter
            assert likeness._plain.cache_info().misses == 1
        save_weights(tmp_path / "w.safetensors", copy.deepcopy(model), ABOUT)
        assert likeness._plain.cache_info().misses == 1
    finally:
        random.set_counter(before)


def test_a_run_that_is_saved_in_between_ends_with_the_same_bits(tmp_path: Path):
    images, labels = np.random.default_rng(0).standard_normal((2, 4, 8, 8, 3)).astype(np.float32), np.array([[0, 1, 0, 1]] * 2)
    states = []
    for save in (False, True):
        learner = Learner(replace(NETWORK, drop_rate=0.2, drop_path_rate=0.2), TrainConfig(), 2)
        for batch in zip(images, labels, strict=True):
            learner.train_step(Batch(*batch))
            if save:
                likeness._plain.cache_clear()
                save_weights(tmp_path / "w.safetensors", learner.model, replace(ABOUT, network=asdict(learner.model.config)))
        states.append(learner.state())
    for name, array in states[0].items():
        assert states[1][name].tobytes() == array.tobytes(), name


def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(TypeError, match="the model is a CNNBranch; save what is no Conformer with minigrad.safetensors_io.save_state"):
        save_weights(path, CNNBranch(NETWORK), ABOUT)  # type: ignore[arg-type]
    model = Conformer(**asdict(NETWORK))
    weight = model.trans_cls_head.weight.numpy().copy()
    model.trans_cls_head = nn.Linear(8, 5)
    with pytest.raises(ValueError, match="the model has [0-9,]+ parameters, its configuration [0-9,]+: parts of it were replaced"):
        save_weights(path, model, ABOUT)
    model.trans_cls_head = nn.Linear(8, 2)
    weight[0, 0] = np.nan
    model.load_state_dict({"trans_cls_head.weight": weight}, strict=False)
    with pytest.raises(ValueError, match="trans_cls_head.weight has numbers that are not finite"):
        save_weights(path, model, ABOUT)
    assert not path.exists()
