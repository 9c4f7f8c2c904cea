"""Training on small folders of coloured images: batches, the recipe's schedule, the run folder, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from conformer import data, learner, train
from conformer.batches import batches
from conformer.checkpoints import load_checkpoint
from conformer.devices import DeviceError
from conformer.display import Display, Progress
from conformer.evaluate import Accuracies, accuracies, evaluate
from conformer.options import OptionError, TrainConfig
from conformer.train import Trainer
from conformer.weights import load_weights
from minigrad import Tensor, random, safetensors_io

Cifar = Callable[..., Path]
STEP_LINE = {"step", "epoch", "loss", "train_accuracy", "learning_rate", "images_per_second"}
TEST_LINE = {"step", "epoch", "test_accuracy", "test_loss", "seconds"}


@pytest.fixture
def config(cifar: Cifar, tiny_network: str, tmp_path: Path) -> TrainConfig:
    """Two epochs of 5 steps on 40 images."""
    return TrainConfig(config=tiny_network, data_dir=cifar(records=8), out=tmp_path / "run", epochs=2, batch_size=8, log_every=2)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"lr": math.nan}, "lr is nan; it must be above 0"),
        ({"warmup": 1.0}, "warmup is 1.0; it must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1; it must be at least 0 and below 1"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; it must be at least 0"),
        ({"accumulate": 3}, "accumulate is 3; it must divide the 128 images of a step into equal parts of 2 or more"),
        ({"accumulate": 128}, "accumulate is 128; it must divide the 128 images"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes is -1.0; it must be at least 0"),
        ({"time_budget": "soon"}, "time_budget 'soon' is not a time; write it like 90s, 30m or 1h30m"),
        ({"time_budget": "0m"}, "time_budget '0m' leaves no time to train"),
        ({"time_budget": "5m", "max_steps": 3}, "time_budget is 5m and max_steps is 3; give one of the two"),
        ({"time_budget": "5m", "epochs": 3}, "time_budget is 5m and epochs is 3; give one of the two"),
        ({"eval_epochs": 0}, "eval_epochs is 0; it must be at least 1"),
        ({"device": "tpu"}, "device is tpu; it must be one of auto, cpu, cuda"),
        ({"tta": "crops"}, "tta is crops; it must be one of none, mirror"),
        ({"precision": "half"}, "precision is half; it must be one of float32, tf32, bf16"),
        ({"ema": 1.0}, "ema is 1.0; it must be at least 0 and below 1"),
        ({"lr": math.inf}, "lr is inf; it must be a finite number"),
        ({"weight_decay": math.inf}, "weight_decay is inf; it must be a finite number"),
        ({"clip_norm": math.inf}, "clip_norm is inf; it must be a finite number, 0 for no limit"),
        ({"clip_norm": math.nan}, "clip_norm is nan; it must be at least 0"),
        ({"checkpoint_minutes": math.inf}, "checkpoint_minutes is inf; it must be a finite number, 0 for no such limit"),
        ({"epochs": 10**26}, "epochs is 1(0+); it must be at most 1,000,000,000"),
        ({"cutout": 10**22}, "cutout is 1(0+); it must be at most 1,000,000,000"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it must be at most 18,446,744,073,709,551,615"),
        ({"time_budget": "9" * 400 + "s"}, "time_budget '9+s' is more than a year"),
        ({"max_steps": 2.5}, "max_steps is 2.5; it must be a whole number"),
        ({"seed": "1"}, "seed is 1; it must be a whole number"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_options_of_other_types_than_they_have() -> None:
    config = TrainConfig(epochs=np.int64(3), out="run", data_dir="data")  # type: ignore[arg-type]
    assert (type(config.epochs), config.out, config.data_dir) == (int, Path("run"), Path("data"))


def test_batches_cover_an_epoch_and_depend_on_seed_and_place_only(cifar: Cifar) -> None:
    dataset = data.load("cifar10", cifar(records=7))
    numbered = replace(dataset, train=replace(dataset.train, labels=np.arange(35)))
    random.manual_seed(0)
    first = list(batches(numbered, 8, epoch=0))
    seen = np.concatenate([batch.labels for batch in first])
    assert len(first) == 4  # 35 images: the last 3 are dropped
    assert len(set(seen)) == 32
    assert first[0].images.shape == (8, 32, 32, 3)
    assert first[0].images.dtype == np.float32
    assert list(seen) != list(np.concatenate([batch.labels for batch in batches(numbered, 8, epoch=1)]))

    ahead = batches(numbered, 8, epoch=0)
    np.random.default_rng(5).random(100)
    random.generator("shuffle", 3).random(100)
    for mine, again in zip(first, ahead, strict=True):
        assert_array_equal(mine.images, again.images)
        assert_array_equal(mine.labels, again.labels)
    random.manual_seed(1)
    assert list(seen) != list(np.concatenate([batch.labels for batch in batches(numbered, 8, epoch=0)]))


def test_run_folder(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = train.train(config)
    assert result.folder == config.out
    assert result.steps == 10
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "last.safetensors",
        "metrics.jsonl",
    ]
    saved = json.loads((result.folder / "config.json").read_text())
    assert saved["config"] == "tiny"
    assert saved["epochs"] == 2
    assert saved["data_dir"] == str(config.data_dir)

    header, *rest = lines(result.folder)
    assert header["dataset"] == "cifar10"
    assert (header["train_images"], header["test_images"], header["steps"], header["seed"]) == (40, 8, 10, 0)
    assert header["versions"]["numpy"] == np.__version__
    assert header["threads"] >= 1
    assert {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "platform", "blas"} <= set(header)
    assert [line["step"] for line in rest if set(line) == STEP_LINE] == [2, 4, 6, 8, 10]
    tests = [line for line in rest if set(line) == TEST_LINE]
    assert [(line["step"], line["epoch"]) for line in tests] == [(5, 1.0), (10, 2.0)]
    assert len(rest) == 7
    assert tests[-1]["test_accuracy"] == result.test._asdict()
    assert max(line["test_accuracy"]["sum"] for line in tests) == result.best.sum

    text = capsys.readouterr().out
    assert "40 training and 8 test images" in text
    assert "10/10" in text
    assert f"test accuracy {result.test} %" in text


def test_saved_weights_are_the_trained_network(config: TrainConfig) -> None:
    trainer = Trainer(config)
    result = trainer.run()
    state, _ = safetensors_io.load_state(result.folder / "last.safetensors")
    for name, array in trainer.learner.model.state_dict().items():
        assert_array_equal(state[name], array, err_msg=name)
    model, about = load_weights(result.folder)
    assert (about.config, about.dataset, about.step, about.notice) == ("tiny", "cifar10", 10, "")
    assert (about.classes, about.mean, about.std) == (trainer.dataset.classes, trainer.dataset.mean, trainer.dataset.std)
    assert (about.image_size, about.test_accuracy) == ((32, 32), result.test._asdict())
    again = evaluate(model, trainer.dataset.test, trainer.dataset)
    assert again.accuracies == result.test
    assert trainer.predictions is not None
    assert_array_equal(again.sum, trainer.predictions.sum)
    assert not trainer.learner.model.cls_token.dtype == np.float64


def test_same_seed_same_bits(config: TrainConfig, tmp_path: Path) -> None:
    runs = [(tmp_path / "a", 0), (tmp_path / "b", 0), (tmp_path / "c", 1)]
    states = []
    for out, seed in runs:
        train.train(replace(config, out=out, seed=seed, max_steps=3, drop_path=0.2))
        states.append(safetensors_io.load_state(out / "last.safetensors")[0])
    for name in states[0]:
        assert_array_equal(states[0][name], states[1][name], err_msg=name)
    assert not np.array_equal(states[0]["conv1.weight"], states[2]["conv1.weight"])
    untimed = [[{k: v for k, v in line.items() if k in ("loss", "train_accuracy", "test_loss")} for line in lines(out)] for out, _ in runs]
    assert untimed[0] == untimed[1] != untimed[2]


def test_it_learns(config: TrainConfig, cifar: Cifar) -> None:
    """Ten colours: far better than chance after 30 steps, by either head."""
    folder = cifar(records=48, folder="more")
    result = train.train(replace(config, data_dir=folder, batch_size=24, epochs=9, max_steps=30, lr=1e-2, log_every=30))
    last = [line for line in lines(result.folder) if "loss" in line][-1]
    assert last["loss"] < 1.9  # ln 10 = 2.30, and label smoothing leaves 0.50
    assert min(last["train_accuracy"].values()) > 0.4


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(None, None, 15), (None, 4, 4), (None, 40, 40), (2, None, 10), (2, 4, 4), (2, 40, 10)])
def test_number_of_steps(epochs: int | None, max_steps: int | None, steps: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5 steps an epoch, on a data set that is seen 3 times unless told otherwise."""
    whole = data.load
    monkeypatch.setattr(data, "load", lambda *arguments: replace(whole(*arguments), epochs=3))
    assert Trainer(replace(config, epochs=epochs, max_steps=max_steps)).steps == steps


def test_schedule_is_fitted_to_the_steps(config: TrainConfig) -> None:
    result = train.train(replace(config, max_steps=8, lr=0.5e-3, warmup=0.25, log_every=1))
    rates = [line["learning_rate"] for line in lines(result.folder) if "learning_rate" in line]
    assert len(rates) == result.steps == 8
    assert rates[0] < rates[1] < rates[2] == max(rates)
    assert_allclose(max(rates), 0.5e-3)
    assert_allclose(rates[3:], [0.5e-3 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(1, 6)], rtol=1e-6)


def test_evaluation_every_few_epochs_and_at_the_end(config: TrainConfig) -> None:
    result = train.train(replace(config, epochs=3, eval_epochs=2))
    assert [line["step"] for line in lines(result.folder) if "test_accuracy" in line] == [10, 15]


def test_average_of_the_weights(config: TrainConfig) -> None:
    result = train.train(replace(config, ema=0.5, max_steps=4))
    last, average = (safetensors_io.load_state(result.folder / f"{name}.safetensors")[0] for name in ("last", "ema"))
    assert last.keys() == average.keys()
    assert not np.array_equal(last["conv1.weight"], average["conv1.weight"])
    assert set(lines(result.folder)[-1]) == TEST_LINE | {"ema_test_accuracy"}


def test_a_run_is_never_overwritten(config: TrainConfig) -> None:
    assert config.out is not None
    train.train(replace(config, max_steps=1))
    before = {path.name: path.read_bytes() for path in config.out.iterdir()}
    with pytest.raises(FileExistsError, match=r"run already holds a run \(config.json\); choose another folder with --out"):
        Trainer(config)
    assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before
    with pytest.raises(FileExistsError, match=r"config.json is a file; choose another folder"):
        Trainer(replace(config, out=config.out / "config.json"))


def test_default_folder(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Trainer(replace(config, out=None)).folder.path
    assert folder.parent == Path("runs")
    assert folder.name.startswith("tiny-20")
    monkeypatch.undo()


def test_runs_of_the_same_second(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(replace(config, out=None))
    name = trainer.folder.path.name
    assert [trainer._new_folder(name).path for _ in range(2)] == [Path("runs", f"{name}-2"), Path("runs", f"{name}-3")]
    monkeypatch.undo()


def test_mistakes_leave_no_folder(config: TrainConfig) -> None:
    assert config.out is not None
    with pytest.raises(ValueError, match=r"batch_size is 41, but .* has only 40 training images"):
        Trainer(replace(config, batch_size=41))
    with pytest.raises(ValueError, match="no configuration is called 'nano'"):
        Trainer(replace(config, config="nano"))
    with pytest.raises(data.DataError, match="no folder"):
        Trainer(replace(config, data_dir=Path("nowhere")))
    with pytest.raises(OptionError, match="precision is tf32, which is for GPUs; the CPU computes in float32: leave it out"):
        Trainer(replace(config, precision="tf32"))
    with pytest.raises(OptionError, match="cutout is 32, which can blank a whole image of 32 x 32 pixels: take a smaller one"):
        Trainer(replace(config, cutout=32))
    with pytest.raises(DeviceError, match="No CUDA: "):
        Trainer(replace(config, device="cuda"))
    assert not config.out.exists()
    config.out.symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="run is a link to nowhere, which does not exist; make that folder, or choose another with --out"):
        Trainer(config)
    with pytest.raises(FileNotFoundError, match="run is a link to nowhere, which does not exist"):
        Trainer(replace(config, out=config.out / "deeper"))


def test_time_left_has_the_evaluation_that_is_due(config: TrainConfig) -> None:
    """Of 10 steps, evaluated after every 5: at step 5 the first is still to come, at step 10 the second."""
    trainer, shown = Trainer(config), {}

    class Noted(Display):
        def progress(self, progress: Progress) -> None:
            shown[progress.step] = progress.seconds_left

    trainer.display, trainer._evaluation_seconds = Noted(), 1000.0
    evaluate = trainer._evaluate

    def evaluated(signals: Any) -> None:
        evaluate(signals)
        trainer._evaluation_seconds = 1000.0

    trainer._evaluate = evaluated  # type: ignore[method-assign]
    trainer.run()
    assert [round(shown[step] / 1000) for step in (1, 5, 6, 10)] == [2, 2, 1, 1]


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(config)
    monkeypatch.setattr(learner.F, "cross_entropy", lambda *arguments, **options: Tensor(np.float32(np.nan)))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1; a lower --lr"):
        trainer.run()
    assert not (trainer.folder.path / "last.safetensors").exists()


@pytest.mark.parametrize(
    ("lr", "message", "kept"),
    [
        (1e30, "the loss on the test images is (nan|inf) at step 5; a lower --lr", 5),
        (1e300, "the weights are not finite after step 5; a lower --lr", 0),
    ],
)
def test_a_last_step_that_diverges(lr: float, message: str, kept: int, config: TrainConfig) -> None:
    """No loss is computed after it but that on the test images; NumPy warns of none of it."""
    trainer = Trainer(replace(config, epochs=1, lr=1e-3))
    path = trainer.folder.path
    original = trainer.learner.begin_step

    def last() -> float:
        rate = original()
        if trainer.step == 4:
            for group in trainer.learner.optimizer.param_groups:
                group["lr"] = lr
        return rate

    trainer.learner.begin_step = last
    with pytest.raises(FloatingPointError, match=message):
        trainer.run()
    assert not (path / "last.safetensors").exists()
    assert load_checkpoint(path / "checkpoint.safetensors").step == kept


def test_evaluation_changes_nothing(config: TrainConfig) -> None:
    trainer = Trainer(config)
    trainer.learner.model.train()
    before = trainer.learner.model.state_dict()
    result = evaluate(trainer.learner.model, trainer.dataset.train, trainer.dataset, batch_size=7)
    whole = evaluate(trainer.learner.model, trainer.dataset.train, trainer.dataset)
    assert result.accuracies == whole.accuracies
    assert_allclose(result.loss, whole.loss, rtol=1e-5)
    assert trainer.learner.model.training
    for name, array in trainer.learner.model.state_dict().items():
        assert_array_equal(before[name], array, err_msg=name)


def test_the_mirror_image_counts_as_much_as_the_image(config: TrainConfig) -> None:
    trainer = Trainer(config)
    model, test = trainer.learner.model, trainer.dataset.test
    mirrored = replace(test, images=test.images[:, :, ::-1])
    both = evaluate(model, test, trainer.dataset, tta="mirror")
    one, other = (evaluate(model, split, trainer.dataset) for split in (test, mirrored))
    for head in ("cnn", "transformer"):
        assert_allclose(getattr(both, head), (getattr(one, head) + getattr(other, head)) / 2, rtol=1e-6)
    assert not np.allclose(one.cnn, other.cnn)
    assert both.labels is test.labels


def test_three_accuracies() -> None:
    cnn = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 3], [0, 1, 0]])
    transformer = np.array([[0.0, 1, 0], [0, 1, 0], [0, 4, 0], [0, 0, 3]])
    assert accuracies(cnn, transformer, np.array([0, 1, 2, 2])) == Accuracies(cnn=0.75, transformer=0.5, sum=0.75)


def test_display_prints_at_intervals_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    shares = Accuracies(0.5, 0.25, 0.525)
    progress = Progress(1, 4, 0.5, 2.0, shares, None, 1e-3, 640.0, 75.0)
    display = Display(seconds=1000)
    for step in range(1, 5):
        display.progress(progress._replace(step=step, test=shares if step == 4 else None))
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step 1/4  epoch 0.50  0:01:15 left  loss 2.000  train 50.0/25.0/52.5 %  lr 0.001  640 images/s"
    assert last == "step 4/4  epoch 0.50  0:01:15 left  loss 2.000  train 50.0/25.0/52.5 %  test 50.0/25.0/52.5 %  lr 0.001  640 images/s"
