"""Networks other than the Conformer: each branch alone, of one head, and what somebody else builds; and files of before there were any."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from conformer import CNNBranch, Conformer, ConvTransBlock, TransformerBranch, train_commands
from conformer.baselines import NETWORKS, Build, builder
from conformer.batches import Batch, batches
from conformer.cli import main
from conformer.config import CONFIGS, ConformerConfig
from conformer.data import Dataset, Split
from conformer.display import Display
from conformer.evaluate import Accuracies, Predictions, accuracies, evaluate, heads_of
from conformer.gpu_steps import GpuSteps
from conformer.info import count
from conformer.learner import Learner
from conformer.options import OptionError, TrainConfig
from conformer.run_folder import read_config
from conformer.run_log import read_log
from conformer.study import Study, StudyError
from conformer.text import quoted
from conformer.train import Trainer, resume, train
from conformer.weights import About, load_weights, save_weights
from minigrad import Tensor, nn, safetensors_io
from minigrad import functional as F
from minigrad.optim import EMA
from tests.cuda_device import nothing_waits, on_cuda, on_gpu
from tests.support import assert_close, rng

Cifar = Callable[..., Path]
Fails = Callable[..., str]
TINY = replace(CONFIGS["cifar-nano"], channel_ratio=0.25, embed_dim=16, depth=3, num_heads=2, stem_channels=8)
ALONE = ("cnn", "transformer")

pytestmark = pytest.mark.usefixtures("plain_surroundings")


@pytest.fixture
def config(cifar: Cifar, tiny_network: str, tmp_path: Path) -> TrainConfig:
    """Two epochs of 2 steps on 10 images, with everything that has a state or draws."""
    options: dict[str, Any] = {"epochs": 2, "batch_size": 5, "log_every": 1, "ema": 0.5, "drop_path": 0.3, "accumulate": 1}
    return TrainConfig(config=tiny_network, data_dir=cifar(records=2), out=tmp_path / "run", **options)


class UncoupledBlock(ConvTransBlock):
    """A block whose map is told nothing by the tokens."""

    def __init__(self, config: ConformerConfig, plan: Any):
        super().__init__(config, plan)
        self.expand_block = NoUp()


class NoUp(nn.Module):
    def forward(self, x_t: Tensor, height: int, width: int) -> None:
        return None


class Uncoupled(Conformer):
    block = UncoupledBlock


def uncoupled(config: ConformerConfig) -> Conformer:
    return Uncoupled(**asdict(config))


class Linear(nn.Module):
    """A network of one head that has nothing of a Conformer."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.head = nn.Linear(config.in_chans, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean((1, 2)))


def arrays(run: Path) -> dict[str, bytes]:
    """All that a run's weights and its state are, bit for bit."""
    return {
        f"{name}: {key}": array.tobytes()
        for name in ("last", "best", "ema", "checkpoint")
        for key, array in safetensors_io.load_state(run / f"{name}.safetensors")[0].items()
    }


def broken_off(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    """Train until a step after the first epoch fails."""
    original = Learner.train_step

    def broken(self: Learner, batch: Batch) -> Any:
        if self.step == 3:
            raise RuntimeError("broken off")
        return original(self, batch)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken off"):
        patch.setattr(Learner, "train_step", broken)
        train(config, **given)


@pytest.mark.parametrize("network", ALONE)
def test_a_branch_alone_is_trained_and_resumed(
    network: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fails: Fails
) -> None:
    """A run that was broken off becomes the unbroken one bit for bit."""
    monkeypatch.setattr(train_commands, "_draw_curves", lambda run: False)  # it takes long
    run, broken = tmp_path / "run", tmp_path / "broken"
    options = ["--config", "tiny", "--network", network, "--data-dir", config.data_dir, "--epochs", 2, "--batch-size", 5, "--log-every", 1]
    assert main([str(word) for word in ["train", *options, "--ema", 0.5, "--drop-path", 0.3, "--out", run]]) == 0
    text = capsys.readouterr().out
    assert f"tiny-{network} on cifar10: 10 training" in text and "CNN head" not in text
    broken_off(replace(config, network=network, out=broken), monkeypatch)
    assert main(["train", "--resume", str(broken)]) == 0
    assert arrays(broken) == arrays(run)
    assert read_config(run)["network"] == network

    log = read_log(run)
    assert log.title == f"tiny-{network} on cifar10, seed 0"
    model, about = load_weights(run)
    assert type(model) is (CNNBranch if network == "cnn" else TransformerBranch) and about.kind == network
    assert log.header["parameters"] == sum(parameter.size for parameter in model.parameters())
    share = log.tests[-1]["test_accuracy"]
    assert share.keys() == {"sum"} == log.training[0]["train_accuracy"].keys() == log.tests[0]["ema_test_accuracy"].keys()
    assert about.test_accuracy == share
    assert f"was started with --network {network}, not with conformer" in fails(1, "train", "--resume", run, "--network", "conformer")


def test_a_branch_alone_is_measured_used_and_reported(config: TrainConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path, fails: Fails) -> None:
    from PIL import Image

    run, photo = train(replace(config, network="cnn", epochs=None, max_steps=1)).folder, tmp_path / "photo.png"
    share = read_log(run).tests[-1]["test_accuracy"]["sum"]
    Image.fromarray(rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(photo)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--picture", str(tmp_path / "confusion.png")]) == 0
    text = capsys.readouterr().out
    assert "tiny-cnn after 1 steps" in text and f"\n  its one head      {100 * share:6.2f} % " in text
    assert not [words for words in ("CNN head", "both heads", "sum of both") if words in text]
    assert main(["predict", str(photo), "--run", str(run)]) == 0
    _, first, *rest = capsys.readouterr().out.splitlines()
    assert first.split() == ["its", "one", "head"] and len(rest) == 5 and rest[-1].endswith(" %")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "--network cnn" in page and not [words for words in ("CNN head", "sum of both", "mean of both") if words in page]
    said = fails(1, "explain", photo, "--run", run)
    assert said.endswith("explain shows both branches of a Conformer, and this is the cnn branch alone; give the run of a Conformer")


def test_fine_tuning_begins_with_weights_of_the_same_network(config: TrainConfig, tmp_path: Path) -> None:
    short = replace(config, epochs=None, max_steps=1)
    for network in ALONE:
        train(replace(short, network=network, out=tmp_path / network))
        trainer = Trainer(replace(short, network=network, out=tmp_path / f"{network}-2", finetune=tmp_path / network))
        expected = safetensors_io.load_state(tmp_path / network / "last.safetensors")[0]
        assert all(np.array_equal(array, expected[name]) for name, array in trainer.learner.model.state_dict().items())
    message = r"with network cnn instead of transformer; .* give --config tiny --network cnn, or in a study --configs tiny --networks cnn alone$"
    with pytest.raises(ValueError, match=message):
        Trainer(replace(short, network="transformer", out=tmp_path / "other", finetune=tmp_path / "cnn"))
    large = np.zeros((12, 40, 40, 3), np.uint8), np.arange(12) % 10
    dataset = Dataset("large", tuple("abcdefghij"), (0.5,) * 3, (0.2,) * 3, Split(*large), Split(*large), "a test")
    with pytest.raises(ValueError, match=r"with image_size \(32, 32\) instead of \(40, 40\)"):  # its positions are of another grid
        Trainer(replace(short, network="transformer", out=tmp_path / "other", finetune=tmp_path / "transformer"), dataset=dataset)
    trained = train_on(dataset, replace(short, network="transformer", out=tmp_path / "large"))
    assert trained.pos_embed.shape == (1, 26, 16) and load_weights(tmp_path / "large")[0].image_size == (40, 40)


def test_for_other_classes_the_heads_of_a_network_of_ones_own_are_new(tmp_path: Path) -> None:
    """They are known by their names, and one of another name is told so."""

    class Named(nn.Module):
        def __init__(self, config: ConformerConfig):
            super().__init__()
            self.mix, self.mean_cls_head = nn.Linear(3, 4), nn.Linear(4, config.num_classes)

        def forward(self, images: Tensor) -> Tensor:
            return self.mean_cls_head(self.mix(images.mean((1, 2))))

    split = Split(np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 3)
    five = Dataset("five", tuple("abcde"), (0.5,) * 3, (0.2,) * 3, split, split, "a test")
    three = replace(five, name="three", classes=tuple("abc"))

    def trainer(dataset: Dataset, build: Build, finetune: Path | None = None) -> Trainer:
        path = tmp_path / build.__name__ / dataset.name
        return Trainer(TrainConfig(network="own", max_steps=1, batch_size=4, finetune=finetune, out=path), Display(), dataset=dataset, build=build)

    trained = trainer(five, Named).run().folder
    given, weights = safetensors_io.load_state(trained / "last.safetensors")[0], trainer(three, Named, trained).learner.model.state_dict()
    assert {name for name in given if not np.array_equal(given[name], weights[name])} == {"mean_cls_head.weight", "mean_cls_head.bias"}
    message = r"is for 5 classes, and head.weight has another shape for 3; only modules whose names end in _cls_head begin anew: give its module"
    with pytest.raises(ValueError, match=message):
        trainer(three, Linear, trainer(five, Linear).run().folder)


def train_on(dataset: Dataset, config: TrainConfig) -> Any:
    trainer = Trainer(config, dataset=dataset)
    trainer.run()
    return trainer.learner.model


@pytest.mark.parametrize(("build", "heads"), [(uncoupled, 2), (Linear, 1)])
def test_a_network_of_ones_own(
    build: Any, heads: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, fails: Fails
) -> None:
    """It bears a name of its own in the run's files, and whoever goes on with it or loads it says what builds it."""
    config = replace(config, network="own")
    whole, broken = (replace(config, out=tmp_path / name) for name in ("whole", "broken"))

    def assert_heads_are_named() -> None:
        said = capsys.readouterr().out.split("accuracies in percent: CNN head/transformer head/sum of both\n")
        assert len(said) == heads and "%" in said[-1] and (heads == 1 or "%" not in said[0])

    train(whole, build=build)
    assert_heads_are_named()
    broken_off(broken, monkeypatch, build=build)
    assert_heads_are_named()
    with pytest.raises(OptionError, match="network is own; it must be one of conformer, cnn, transformer, unless Python code gives what builds it"):
        resume(broken.out)
    resume(broken.out, build=build)
    assert_heads_are_named()
    assert arrays(whole.out) == arrays(broken.out)

    model, about = load_weights(whole.out, build)
    assert type(model) is type(build(TINY)) and about.kind == "own"
    assert len(read_log(whole.out).tests[-1]["test_accuracy"]) == (3 if heads == 2 else 1)
    with pytest.raises(ValueError, match="holds a network of somebody's own, own, which only Python code with what builds it can load"):
        load_weights(whole.out)
    assert "which only Python code" in fails(1, "evaluate", whole.out)
    begun = Trainer(replace(config, out=tmp_path / "finetuned", finetune=whole.out), build=build)
    assert_array_equal(next(begun.learner.model.parameters()).numpy(), next(model.parameters()).numpy())
    begun.folder.close()
    with pytest.raises(ValueError, match="own instead of another; .*: in Python, give config='tiny', network='own' and what builds it$"):
        Trainer(replace(config, network="another", out=tmp_path / "other", finetune=whole.out), build=build)
    with pytest.raises(OptionError, match="network is cnn, which this program builds itself; give what is built in Python a name of its own"):
        train(replace(config, network="cnn", out=tmp_path / "other"), build=build)


def test_a_learner_trains_what_it_is_told_to_build() -> None:
    """One step of each, beside the step written out."""
    batch = Batch(rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32), rng(1).integers(0, 10, 4))
    options = TrainConfig(lr=1e-2, label_smoothing=0.1, clip_norm=0.0, weight_decay=0.0, batch_size=4, accumulate=2)
    for build in (builder("cnn"), builder("transformer"), uncoupled, Linear):
        learner = Learner(TINY, options, 10, build=build)
        learner.model.train()
        twin = Learner(TINY, options, 10, build=build).model.train()
        losses, right = [], []
        for part in (slice(0, 2), slice(2, 4)):
            heads = twin(Tensor(batch.images[part]))
            heads = heads if isinstance(heads, tuple) else (heads,)
            losses += [sum(F.cross_entropy(head, batch.labels[part], label_smoothing=0.1).item() for head in heads) / len(heads)]
            right += list(sum(head.numpy() for head in heads).argmax(1) == batch.labels[part])
        loss, shares = learner.train_step(batch)
        assert loss == pytest.approx(np.mean(losses), rel=1e-5)
        assert shares.sum == np.mean(right) and (shares.cnn is None) == (len(heads) == 1)
        moved = [not np.array_equal(a.numpy(), b.numpy()) for a, b in zip(learner.model.parameters(), twin.parameters(), strict=True)]
        assert sum(moved) > 0.8 * len(moved)
    assert type(Learner(TINY, replace(options, network="cnn"), 1).model) is CNNBranch


def test_what_a_network_may_give() -> None:
    class Gives(nn.Module):
        def __init__(self, value: Any):
            super().__init__()
            self.value = [value]

        def forward(self, images: Tensor) -> Any:
            return self.value[0]

    one = Tensor(np.zeros((2, 3)))
    for value, heads in ((one, 1), ((one, one), 2), ([one], 1)):
        assert len(heads_of(Gives(value), one)) == heads
    for value, found in ((None, "NoneType"), ((one,) * 3, "tuple of 3"), ([one, 3], "list of 2"), ((), "tuple of 0")):
        with pytest.raises(TypeError, match=f"a Gives gives a {found}; its forward has to return a Tensor of logits, or two"):
            heads_of(Gives(value), one)


def test_one_head_has_one_answer() -> None:
    logits, labels = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [0, 1, 0]]), np.array([0, 1, 2, 2])
    one, two = Predictions((logits,), labels), Predictions((logits, logits), labels)
    assert one.accuracies == Accuracies(None, None, 0.75) == accuracies([logits], labels)
    assert (str(one.accuracies), one.accuracies.by_head()) == ("75.0", {"sum": 0.75})
    assert_array_equal(one.sum, logits)
    assert one.loss == pytest.approx(two.loss, rel=1e-12)
    assert list(one.class_accuracies()) == ["sum"]
    assert_array_equal(one.confusion_matrix(), two.confusion_matrix())
    with pytest.raises(ValueError, match="the network has one head; its logits are `sum`"):
        _ = one.cnn
    assert Accuracies.mean([one.accuracies, Accuracies(None, None, 0.25)]) == Accuracies(None, None, 0.5)
    assert Accuracies.mean([Accuracies(0.5, 0.25, 1), Accuracies(0.25, 0.75, 0)]) == Accuracies(0.375, 0.5, 0.5)


def test_a_log_is_of_one_head_or_of_two(tmp_path: Path) -> None:
    header = {"config": "tiny", "dataset": "made", "seed": 0, "parameters": 1}
    test = {"step": 1, "epoch": 1.0, "test_loss": 1.0, "seconds": 1.0}
    two, one = ({"test_accuracy": dict.fromkeys(heads, 0.5)} for heads in (("cnn", "transformer", "sum"), ("sum",)))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (header, test | one, test | two)))
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged \(some of its test_accuracy are of two heads, some of one\)"):
        read_log(tmp_path)


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_of_each_network(network: str, tmp_path: Path) -> None:
    """Saved, loaded and refused; a file that cannot fill its network is noticed before that is built."""
    image_size = (48, 32)
    model, path = builder(network, image_size)(TINY), tmp_path / "w.safetensors"
    about = About(asdict(TINY), "tiny", "made", "", tuple("abcdefghij"), (0.5,) * 3, (0.2,) * 3, image_size, 3, {"sum": 0.5}, network)
    save_weights(path, model, about)
    loaded, read = load_weights(path)
    assert read == about and type(loaded) is type(model)
    assert all(np.array_equal(array, loaded.state_dict()[name]) for name, array in model.state_dict().items())

    other = builder(NETWORKS[NETWORKS.index(network) - 1], image_size)(TINY)
    with pytest.raises(
        TypeError, match=f"the model is a {type(other).__name__}; save what is no {type(model).__name__} with minigrad.safetensors_io"
    ):
        save_weights(path, other, about)
    block = model.trans_1.attn if network == "transformer" else model.conv_1
    kept = block.forward
    block.forward = lambda *inputs: kept(*inputs)
    with pytest.raises(ValueError, match="load_weights would build another network than this one, of which .* has another forward"):
        save_weights(path, model, about)
    del block.forward
    state, metadata = safetensors_io.load_state(path)
    for entries, said in (
        ({"network": json.dumps(asdict(replace(TINY, channel_ratio=4, embed_dim=512)))}, r"numbers, for a network of [\d,]+ parameters"),
        ({"network": json.dumps(asdict(replace(TINY, depth=300)))}, "tensors for a network of 300 blocks"),
        ({"kind": NETWORKS[NETWORKS.index(network) - 2]}, "is not as `conformer train` wrote it"),
    ):
        safetensors_io.save_state(path, state, metadata | entries)
        with pytest.raises(ValueError, match=said):
            load_weights(path)


def test_files_of_before_there_were_other_networks(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run's config.json, log, checkpoint and weights without a word of which network it is; a study, too."""
    train(replace(config, out=tmp_path / "whole"))
    broken_off(config, monkeypatch)
    run = config.out
    values = read_config(run)
    del values["network"]
    (run / "config.json").write_text(json.dumps(values))
    header, *rest = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    without = json.loads(header)
    del without["network"]
    (run / "metrics.jsonl").write_text(json.dumps(without) + "\n" + "".join(rest))
    state, metadata = safetensors_io.load_state(run / "checkpoint.safetensors")
    values = json.loads(metadata["checkpoint"])
    del values["options"]["network"]
    safetensors_io.save_state(run / "checkpoint.safetensors", state, {"checkpoint": json.dumps(values)})
    state, metadata = safetensors_io.load_state(run / "last.safetensors")
    del metadata["kind"]
    safetensors_io.save_state(run / "last.safetensors", state, metadata)

    assert load_weights(run)[1].kind == "conformer"
    resume(run)
    assert arrays(run) == arrays(tmp_path / "whole")
    assert read_log(run).title == "tiny on cifar10, seed 0"

    path = tmp_path / "study"
    options: dict[str, Any] = {"data_dir": config.data_dir, "max_steps": 1, "batch_size": 5}
    for trainer in Study(path, [3], ["tiny"], **options).trainers(Display()):
        trainer.run()
    values = json.loads((path / "study.json").read_text())
    del values["runs"][0]["network"]
    (path / "study.json").write_text(json.dumps(values))
    assert [(run.config, run.network, run.seed, run.left) for run in Study(path).runs] == [("tiny", "conformer", 3, False)]


def test_a_study_of_networks(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails) -> None:
    path, builds = tmp_path / "study", {"own": Linear}
    options: dict[str, Any] = {"data_dir": config.data_dir, "max_steps": 1, "batch_size": 5, "ema": 0.5}
    for trainer in Study(path, [0, 1], ["tiny"], ["conformer", "cnn"], **options).trainers(Display()):
        trainer.run()
    for trainer in Study(path, [1], ["tiny"], ["own"], builds).trainers(Display()):
        trainer.run()
    study = Study(path)
    assert [run.path.name for run in study.runs] == ["tiny-seed-0", "tiny-cnn-seed-0", "tiny-seed-1", "tiny-cnn-seed-1", "tiny-own-seed-1"]
    assert f"{study.commands()[0]}\n" in (path / "study.md").read_text()
    assert list(study.findings().spreads) == ["tiny", "tiny-cnn", "tiny-own"]
    command, comment = study.commands()  # `--networks own` is none
    assert command.startswith(f"conformer study {quoted(path)} --seeds 0 1 --configs tiny --networks conformer cnn --dataset cifar10 ")
    assert comment == '# no command trains tiny-own (seed 1): it takes Python code that builds it, Study(..., builds={"own": ...})'
    assert f"{command}\n{comment}\n```\n" in (path / "study.md").read_text()
    capsys.readouterr()
    assert main(["study", str(path), "--show"]) == 0
    text = capsys.readouterr().out
    assert "tiny-cnn on cifar10: 2 runs of 1 step, seeds 0, 1" in text
    table = text.partition("tiny-cnn on")[2].partition("tiny-own on")[0]
    assert [line.split("  ")[0] for line in table.splitlines()[2:5]] == [
        "its one head", "its one head, average of the weights", "seconds, with evaluations",
    ]  # fmt: skip
    assert "tiny-cnn less tiny: " in text and "points of accuracy, with the last weights and not their average, standard error" in text
    sizes = text.partition("Each run on cifar10: sum of both or its one head\n")[2].splitlines()[1:4]
    macs = [f"{count(CONFIGS['tiny'], network=network).macs / 1e6:.1f} M" for network in ("conformer", "cnn")] + ["-"]
    assert [re.split("  +", line)[2] for line in sizes] == macs and [re.split("  +", line)[3] == "-" for line in sizes] == [False, False, True]
    assert [run.path.name for run in Study(path, networks=["transformer"]).runs[5:]] == ["tiny-transformer-seed-0", "tiny-transformer-seed-1"]
    with pytest.raises(StudyError, match="--networks: there is no network 'resnet'; there is conformer, cnn, transformer, own"):
        Study(path, networks=["resnet"], builds=builds)
    assert "--networks has cnn twice" in fails(2, "study", path, "--networks", "cnn", "cnn")


@pytest.mark.parametrize("network", ALONE)
def test_a_branch_is_counted(network: str) -> None:
    for name, config in CONFIGS.items():
        size = config.sides(None)
        counted = count(config, size, network)
        whole = {part.name: part for part in count(config, size).parts}
        assert all(part == whole[part.name] for part in counted.parts if part.name != "tokens"), name
        assert all((block.tokens is None) == (network == "cnn") for block in counted.blocks[1:-1])
    for config in (TINY, replace(TINY, num_med_block=2, in_chans=1, stem="imagenet", patch_size=32, qkv_bias=False)):
        size = (64, 32)
        model = builder(network, size)(config)
        assert count(config, size, network).parameters == sum(parameter.size for parameter in model.parameters())
    with pytest.raises(ValueError, match="count: network is 'vit'; it must be one of conformer, cnn, transformer"):
        count(TINY, network="vit")


@pytest.mark.cuda
@pytest.mark.parametrize("build", [builder("transformer", (16, 16)), Linear])
def test_captured_steps_of_one_head_are_those_of_the_cpu(build: Build) -> None:
    """With drop path, clipping and averaged weights; and what the test images are answered."""
    options = TrainConfig(batch_size=4, ema=0.5, cutout=9, lr=1e-2, clip_norm=1.0, label_smoothing=0.1)
    numbers = rng(0)
    train, test = (Split(numbers.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), numbers.integers(0, 10, n)) for n in (9, 5))
    data = Dataset("noise", tuple("abcdefghij"), (0.5, 0.4, 0.45), (0.25, 0.2, 0.21), train, test, "a test")

    def learner(device: str) -> Learner:
        made = Learner(replace(TINY, drop_path_rate=0.3), options, 10, device, build=build)
        made.model.to(dtype="float64").train()
        made.ema = EMA(made.model, options.ema)
        return made

    reference = learner("cpu")
    expected = [reference.train_step(Batch(batch.images.astype("float64"), batch.labels)) for batch in batches(data, 4, 0, cutout=9)]
    answers = evaluate(reference.model, test, data)
    with on_cuda(build="plain") as device:
        ours = learner("cuda")
        steps = GpuSteps(ours, data, batch_size=4, interval=2)
        with nothing_waits(device):
            outcomes = steps.take() + steps.take()
        assert on_gpu() or device.graph_launches == 2
        outcomes += steps.finish()
        state = ours.state()
        logits = evaluate(ours.model, test, data).sum
    for outcome, (loss, right) in zip(outcomes, expected, strict=True):
        assert_close(np.array(outcome.loss), np.array(loss), "loss", 1e-9)
        assert outcome.right == right and outcome.right.cnn is None
    for name, array in reference.state().items():
        if not name.endswith("qkv.bias") and "state" not in name:  # a third of it, and moments, are made of rounding
            assert_close(state[name], array, name, 1e-6)
    assert_close(logits, answers.sum, "logits", 1e-6)
