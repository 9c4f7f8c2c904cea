"""Training on small folders of coloured images: the recipe's schedule, what a run writes and shows, what fits a time budget, and what is refused.

Runs that are broken off and go on are in `test_resume.py`.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from conformer import CNNBranch, Conformer, budget, data, info, learner, train
from conformer.baselines import NETWORKS, Build
from conformer.batches import batches
from conformer.checkpoints import load_checkpoint
from conformer.config import CONFIGS
from conformer.devices import DeviceError
from conformer.display import Progress
from conformer.evaluate import Accuracies, Predictions, evaluate
from conformer.options import OptionError, TrainConfig
from conformer.provenance import environment
from conformer.steps import Outcome
from conformer.stopping import StopSignals
from conformer.train import Trainer
from conformer.weights import load_weights
from minigrad import Tensor, nn, safetensors_io
from tests.conformer.runs import Noted, assert_same_run, folder, lines, untimed

Cifar = Callable[..., Path]
STEP_LINE = {"step", "epoch", "loss", "train_accuracy", "learning_rate", "images_per_second"}
TEST_LINE = {"step", "epoch", "test_accuracy", "test_loss", "seconds"}


def answers(right: int, labels: np.ndarray) -> Predictions:
    """Of which the first `right` are right, by both heads."""
    guesses = np.where(np.arange(len(labels)) < right, labels, labels + 1) % 10
    logits = 5 * np.eye(10, dtype=np.float32)[guesses]
    return Predictions((logits, logits), labels)


def test_paths_dropped_are_the_configurations_unless_they_are_given(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(CONFIGS, "dropping", replace(CONFIGS[config.config], drop_path_rate=0.3))
    config = replace(config, config="dropping")
    assert Trainer(config).network.drop_path_rate == 0.3
    assert Trainer(replace(config, drop_path=0.0, out=tmp_path / "other")).network.drop_path_rate == 0.0


def test_the_log_says_what_an_image_costs_where_that_can_be_counted(config: TrainConfig, tmp_path: Path) -> None:
    """Not of somebody's own network."""

    def macs(network: str, side: int, build: Build | None = None) -> int | None:
        split = data.Split(np.zeros((8, side, side, 3), np.uint8), np.arange(8))
        dataset = data.Dataset("made", tuple("abcdefghij"), (0.5,) * 3, (0.2,) * 3, split, split, "a test")
        options = replace(config, network=network, out=tmp_path / f"{network}-{side}")
        trainer = Trainer(options, dataset=dataset, build=build)
        assert lines(folder(options))[0]["macs"] == trainer.header["macs"]
        return trainer.header["macs"]

    tiny = CONFIGS[config.config]
    for network in NETWORKS:
        assert macs(network, 32) == info.count(tiny, 32, network).macs != info.count(tiny, 16, network).macs == macs(network, 16)
    assert macs("own", 32, lambda network: Conformer(**asdict(network))) is None


def test_runs_that_are_set_up_before_they_run_draw_from_seeds_of_their_own(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, max_steps=2, drop_path=0.3)
    one_by_one = [train.train(replace(config, seed=seed, out=tmp_path / f"alone-{seed}")).folder for seed in (0, 1)]
    trainers = [Trainer(replace(config, seed=seed, out=tmp_path / f"abreast-{seed}")) for seed in (0, 1)]
    for alone, trainer in zip(one_by_one, trainers, strict=True):
        state = safetensors_io.load_state(trainer.run().folder / "last.safetensors")[0]
        for name, array in safetensors_io.load_state(alone / "last.safetensors")[0].items():
            assert_array_equal(state[name], array, err_msg=name)


def test_a_run_that_was_broken_off_is_not_gone_on_with_in_the_same_process(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have stopped in the middle of a step, and its folder is not locked any more."""
    trainer = Trainer(config)
    monkeypatch.setattr(trainer.learner, "train_step", lambda batch: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        trainer.run()
    with pytest.raises(RuntimeError, match=r"go on with Trainer.resume\('.*run'\)"):
        trainer.run()
    assert Trainer.resume(trainer.folder.path).run().steps == 10


def test_data_that_no_run_can_end_with_is_refused_before_it_begins(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.load("cifar10", config.data_dir)
    changed = {
        "no test images, by which a run is measured after every epoch; hold some training images out$": replace(
            whole, test=data.Split(whole.test.images[:0], whole.test.labels[:0])
        ),
        "images of 1 channels, tiny takes 3": replace(
            whole,
            mean=(0.5,),
            std=(0.2,),
            train=data.Split(whole.train.images[..., :1], whole.train.labels),
            test=data.Split(whole.test.images[..., :1], whole.test.labels),
        ),
    }
    small = {half: data.Split(getattr(whole, half).images[:, :4], getattr(whole, half).labels) for half in ("train", "test")}
    changed["images of 4 x 32 pixels cannot be shifted by up to 4"] = replace(whole, **small)
    for message, dataset in changed.items():
        monkeypatch.setitem(data.DATASETS, "mine", lambda data_dir, say, dataset=dataset: dataset)
        with pytest.raises(data.DataError, match=message):
            Trainer(replace(config, dataset="mine"))
        assert config.out is not None and not config.out.exists()
    monkeypatch.setitem(data.DATASETS, "mine", lambda data_dir, say: next(iter(changed.values())))
    assert len(Trainer(replace(config, dataset="mine", hold_out=16)).dataset.test) == 16


def test_a_run_that_begins_with_the_weights_of_another(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Heads for as many classes are taken over too, others are new; the average begins with them, and so does a resumed run."""
    before = train.train(replace(config, max_steps=2)).folder
    state = safetensors_io.load_state(before / "last.safetensors")[0]
    tuned = Trainer(replace(config, finetune=before, out=tmp_path / "tuned", ema=0.5, drop_path=0.2))
    assert tuned.learner.ema is not None
    for name, array in state.items():
        assert_array_equal(tuned.learner.model.state_dict()[name], array, err_msg=name)
        assert_array_equal(tuned.learner.ema.state_dict()[name], array, err_msg=name)
    tuned.folder.close()
    assert Trainer.resume(tuned.folder.path).learner.model.state_dict()["cls_token"].tobytes() == state["cls_token"].tobytes()

    whole = data.load("cifar10", config.data_dir)
    fewer = replace(
        whole,
        classes=("a", "b"),
        train=data.Split(whole.train.images, whole.train.labels % 2),
        test=data.Split(whole.test.images, whole.test.labels % 2),
    )
    monkeypatch.setitem(data.DATASETS, "fewer", lambda data_dir, say: fewer)
    other = replace(config, finetune=before / "best.safetensors", dataset="fewer", data_dir=None, out=tmp_path / "fewer")
    weights = Trainer(other).learner.model.state_dict()
    new = {"conv_cls_head.weight", "conv_cls_head.bias", "trans_cls_head.weight", "trans_cls_head.bias"}
    assert {name for name, array in state.items() if not np.array_equal(weights[name], array)} == new

    monkeypatch.setitem(CONFIGS, "wider", replace(CONFIGS[config.config], embed_dim=32))
    with pytest.raises(ValueError, match=r"last.safetensors holds weights of another network \(tiny\), with embed_dim 16 instead of 32"):
        Trainer(replace(config, config="wider", finetune=before, out=tmp_path / "wider"))
    for name, why in {"nowhere": "No such file or directory", "a" * 300: "File name too long"}.items():
        with pytest.raises(OptionError, match=f"finetune: (cannot read )?/.*{name}: {why}; give a run or a weights file"):
            Trainer(replace(config, finetune=tmp_path / name, out=tmp_path / "wider"))
    with pytest.raises(ValueError, match=r"checkpoint.safetensors is a checkpoint, .* weights to use are in last.safetensors beside it"):
        Trainer(replace(config, finetune=before / "checkpoint.safetensors", out=tmp_path / "wider"))
    assert not (tmp_path / "wider").exists()


def test_a_time_budget_begins_again_with_the_weights_that_were_given(config: TrainConfig, tmp_path: Path) -> None:
    before = train.train(replace(config, max_steps=2)).folder
    trainer = Trainer(replace(config, finetune=before, out=tmp_path / "tuned", epochs=None, time_budget="10m"))
    with StopSignals() as signals:
        trainer._fit_to_budget(signals)
    assert_array_equal(trainer.learner.model.state_dict()["cls_token"], safetensors_io.load_state(before / "last.safetensors")[0]["cls_token"])


class Frozen(CNNBranch):
    """Its batch norms stay in evaluation mode when it is trained."""

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        for module in self.modules():
            module.training &= not isinstance(module, nn.BatchNorm2d)
        return self


@pytest.mark.parametrize(("build", "noted"), [(Frozen, 0), (lambda network: CNNBranch(network).eval(), 2)], ids=["frozen", "made in evaluation mode"])
@pytest.mark.parametrize("limit", [{"max_steps": 2}, {"time_budget": "10m"}], ids=["steps", "time"])
def test_a_network_is_trained_in_the_mode_that_its_train_sets(
    limit: dict[str, Any], build: Build, noted: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the one that is made anew when a time budget has fixed the steps."""
    monkeypatch.setattr(budget, "TIMED_STEPS", 2)
    monkeypatch.setattr(train, "steps_within", lambda *_: 2)
    result = train.train(replace(config, network="own", epochs=None, **limit), build=build)
    state = safetensors_io.load_state(result.folder / "last.safetensors")[0]
    assert {int(array) for name, array in state.items() if name.endswith("num_batches_tracked")} == {noted}


def test_what_a_run_writes_and_prints(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "platform"} <= set(header)
    assert header["blas"] == environment()["blas"] and header["blas"][0]["version"]
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


def without_test_images(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, cifar10 is the options' data set with test images that nothing can look at."""
    whole = data.load("cifar10", config.data_dir)
    for name in ("images", "labels"):
        object.__delattr__(whole.test, name)
    monkeypatch.setitem(data.DATASETS, "cifar10", lambda data_dir, say: whole)


def test_a_run_that_holds_images_out_never_looks_at_the_test_images(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the same run, also in what its checkpoint knows its data by, where there is nothing to look at."""
    config = replace(config, dataset="cifar10", hold_out=16, ema=0.5)
    run = train.train(config).folder
    text = capsys.readouterr().out
    without_test_images(config, monkeypatch)
    trainer = Trainer(replace(config, out=run.with_name("blind")))
    result = trainer.run()
    assert_same_run(result.folder, run)
    known = [load_checkpoint(path / "checkpoint.safetensors").fingerprint for path in (run, result.folder)]
    assert known[0] == known[1]
    trainer = Trainer(replace(config, out=run.with_name("budget"), epochs=None, time_budget="10m"))
    trainer._fit_to_budget(StopSignals())
    assert trainer.steps > 3 == trainer.steps_per_epoch

    images = {split: {image.tobytes() for image in getattr(trainer.dataset, split).images} for split in ("train", "test")}
    assert [len(images[split]) for split in images] == [24, 16] and not images["train"] & images["test"]
    assert "40 training" not in text and "24 training and 16 held-out images from " in text
    assert f" minutes: held-out accuracy {result.test} %, weights in {run / 'last.safetensors'}\n" in text
    assert re.search(r"epoch 2, step 6: held-out accuracy [\d./]+ % \(average of the weights: [\d./]+ %\), held-out loss \d", text)
    assert re.search(r"step 6/6 .*  held-out [\d./]+ %  lr", text) and not re.search(r"\btest (accuracy|loss|images|\d)", text)


def test_files_of_a_run_that_holds_images_out_say_so(config: TrainConfig) -> None:
    result = train.train(replace(config, hold_out=16, ema=0.5))
    header, *rest = untimed(result.folder)
    assert (header["train_images"], header["held_out_images"], header["steps"]) == (24, 16, 6)
    *_, last = (line for line in rest if "held_out_accuracy" in line)
    assert last.keys() == {"step", "epoch", "held_out_accuracy", "held_out_loss", "ema_held_out_accuracy"}
    assert last["held_out_accuracy"] == result.test.by_head()
    assert not [name for line in (header, *rest) for name in line if "test" in name]
    assert json.loads((result.folder / "config.json").read_text())["hold_out"] == 16
    for name in ("last", "best", "ema"):
        about = load_weights(result.folder / f"{name}.safetensors")[1]
        assert (about.held_out, about.test_accuracy) == (16, {})


def test_weights_that_have_seen_held_out_images_are_said(config: TrainConfig, tmp_path: Path) -> None:
    before = {count: train.train(replace(config, hold_out=count, max_steps=1, out=tmp_path / f"{count}")).folder for count in (0, 12)}
    said = "The weights to begin with were trained on held-out images of cifar10, so the held-out accuracy is too high."
    for source, count, notice in [(0, 12, said), (12, 30, said), (12, 12, ""), (12, 10, ""), (12, 0, ""), (0, 0, "")]:
        tuned = Trainer(replace(config, finetune=before[source], hold_out=count, out=tmp_path / f"{source}-{count}"))
        assert (tuned.dataset.notice, lines(tuned.folder.path)[0]["dataset_notice"]) == (notice, notice)
    other = replace(data.load("cifar10", config.data_dir), name="other", notice="made")
    tuned = Trainer(replace(config, finetune=before[0], hold_out=16, max_steps=1, out=tmp_path / "other"), dataset=other)
    assert tuned.dataset.notice == "made"
    between = tuned.run().folder
    tuned = Trainer(replace(config, finetune=before[0], hold_out=16, max_steps=1, out=tmp_path / "tuned"))
    assert tuned.run().steps == 1
    tuned = Trainer.resume(tmp_path / "tuned")
    assert (tuned.dataset.notice, len(tuned.dataset.test)) == (said, 16)
    tuned.save_last()
    tuned.folder.close()
    for notice in ("made", "made."):
        noted = replace(data.load("cifar10", config.data_dir), notice=notice)
        tuned = Trainer(replace(config, finetune=before[0], hold_out=16, out=tmp_path / f"noted {notice}"), dataset=noted)
        assert tuned.dataset.notice == f"made. {said}"
    for number, source in enumerate((tmp_path / "tuned", between)):  # what they have seen once they have seen for good
        tuned = Trainer(replace(config, finetune=source, hold_out=16, out=tmp_path / f"again-{number}"))
        assert tuned.dataset.notice == said
    assert load_weights(between)[1].trained_on == {"cifar10": 0, "other": 16}
    assert lines(tuned.folder.path)[0]["trained_on_before"] == {"cifar10": 0, "other": 16}
    assert load_weights(before[12])[1].trained_on == {"cifar10": 12}
    assert "trained_on_before" not in lines(before[12])[0]


def test_weights_that_were_trained_on_other_images_of_the_same_name_are_said(config: TrainConfig, cifar: Callable[..., Path], tmp_path: Path) -> None:
    """Which images are held out, or tested, may be others then; once there were others, it is said for good. Of older files nothing is known."""
    config = replace(config, max_steps=1)
    known = data.checksum("training images", data.load("cifar10", config.data_dir).train)
    before = train.train(replace(config, hold_out=12, out=tmp_path / "before")).folder
    other = replace(config, data_dir=cifar(records=8, folder="other", seed=1), finetune=before)
    said = "The weights to begin with were trained on other images called cifar10, perhaps on {0} images of today among them, so the {0} accuracy "
    said += "may be too high."
    assert Trainer(replace(other, out=tmp_path / "tested")).dataset.notice == said.format("test")
    between = Trainer(replace(other, hold_out=12, out=tmp_path / "between"))
    assert between.dataset.notice == said.format("held-out")
    tuned = between.run().folder
    Trainer.resume(tuned).save_last()
    again = Trainer(replace(config, hold_out=12, finetune=tuned, out=tmp_path / "again"))
    assert again.dataset.notice == said.format("held-out")
    assert load_weights(before)[1].images == {"cifar10": known} == lines(tuned)[0]["images_before"]
    assert load_weights(tuned)[1].images == {"cifar10": "several"} == lines(again.folder.path)[0]["images_before"]

    log = tuned / "metrics.jsonl"
    log.write_text(log.read_text().replace(f'"{known}"', "7"))
    with pytest.raises(ValueError, match=r"is damaged in line 1 \(images_before is \{'cifar10': 7\}, which is not text for each data set\)"):
        Trainer.resume(tuned)
    state, entries = safetensors_io.load_state(before / "last.safetensors")
    del entries["images"]
    safetensors_io.save_state(before / "last.safetensors", state, entries)
    older = Trainer(replace(other, hold_out=12, out=tmp_path / "older"))
    assert older.dataset.notice == ""
    assert load_weights(older.run().folder)[1].images == {}  # some of what it stood for is not known

    made = data.load("cifar10", config.data_dir)
    half = [replace(split, images=split.images[:, ::2, ::2]) for split in (made.train, made.test)]
    resized = Trainer(replace(config, finetune=tuned, out=tmp_path / "resized"), dataset=replace(made, train=half[0], test=half[1]))
    assert resized.dataset.notice == ""  # the same pictures, for all that is known
    assert lines(resized.folder.path)[0]["images_before"] == {}


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


def test_the_same_seed_gives_the_same_bits(config: TrainConfig, tmp_path: Path) -> None:
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


def test_colours_are_learnt_in_30_steps_by_either_head(config: TrainConfig, cifar: Cifar) -> None:
    """Ten colours: far better than chance after 30 steps, by either head."""
    more = cifar(records=48, folder="more")
    result = train.train(replace(config, data_dir=more, batch_size=24, epochs=9, max_steps=30, lr=1e-2, log_every=30))
    last = [line for line in lines(result.folder) if "loss" in line][-1]
    assert last["loss"] < 1.9  # ln 10 = 2.30, and label smoothing leaves 0.50
    assert min(last["train_accuracy"].values()) > 0.4


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(None, None, 15), (None, 4, 4), (None, 40, 40), (2, None, 10), (2, 4, 4), (2, 40, 10)])
def test_of_epochs_and_steps_that_are_asked_for_the_fewer_are_taken(
    epochs: int | None, max_steps: int | None, steps: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 5 steps an epoch, on a data set that is seen 3 times unless told otherwise."""
    whole = data.load
    monkeypatch.setattr(data, "load", lambda *arguments: replace(whole(*arguments), epochs=3))
    assert Trainer(replace(config, epochs=epochs, max_steps=max_steps)).steps == steps


def test_the_schedule_is_fitted_to_the_steps(config: TrainConfig) -> None:
    result = train.train(replace(config, max_steps=8, lr=0.5e-3, warmup=0.25, log_every=1))
    rates = [line["learning_rate"] for line in lines(result.folder) if "learning_rate" in line]
    assert len(rates) == result.steps == 8
    assert rates[0] < rates[1] < rates[2] == max(rates)
    assert_allclose(max(rates), 0.5e-3, rtol=1e-12)
    assert_allclose(rates[3:], [0.5e-3 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(1, 6)], rtol=1e-6)


def test_there_is_an_evaluation_every_few_epochs_and_at_the_end(config: TrainConfig) -> None:
    result = train.train(replace(config, epochs=3, eval_epochs=2))
    assert [line["step"] for line in lines(result.folder) if "test_accuracy" in line] == [10, 15]


def test_the_average_of_the_weights_is_saved_and_measured(config: TrainConfig) -> None:
    result = train.train(replace(config, ema=0.5, max_steps=4))
    last, average = (safetensors_io.load_state(result.folder / f"{name}.safetensors")[0] for name in ("last", "ema"))
    assert last.keys() == average.keys()
    assert not np.array_equal(last["conv1.weight"], average["conv1.weight"])
    assert set(lines(result.folder)[-1]) == TEST_LINE | {"ema_test_accuracy"}


def test_best_is_the_best_evaluation_and_of_two_alike_the_first(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    right, states = [2, 6, 6, 3], []

    def evaluated(model: Any, split: data.Split, *_: Any, **__: Any) -> Predictions:
        states.append(model.state_dict())
        return answers(right[len(states) - 1], split.labels)

    monkeypatch.setattr(train, "evaluate", evaluated)
    result = train.train(replace(config, epochs=4, batch_size=20))
    assert (result.best.sum, result.test.sum) == (6 / 8, 3 / 8)
    for name, step, evaluation in (("best", 4, 1), ("last", 8, 3)):
        model, about = load_weights(result.folder / f"{name}.safetensors")
        assert (about.step, about.test_accuracy["sum"]) == (step, right[evaluation] / 8)
        for key, array in model.state_dict().items():
            assert_array_equal(array, states[evaluation][key], err_msg=f"{name}: {key}")


def test_the_average_of_one_step_is_half_way_from_where_it_began(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, ema=0.5, max_steps=1))
    start = trainer.learner.model.state_dict()
    trainer.run()
    last, average = (safetensors_io.load_state(trainer.folder.path / f"{name}.safetensors")[0] for name in ("last", "ema"))
    for name, array in last.items():
        expected = 0.5 * start[name] + 0.5 * array if array.dtype.kind == "f" else array
        assert_allclose(average[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)
    assert abs(last["conv1.weight"] - start["conv1.weight"]).max() > 1e-3


def test_the_average_is_what_is_measured_and_saved_as_such(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []

    def evaluated(model: Any, split: data.Split, *_: Any, **__: Any) -> Predictions:
        states.append(model.state_dict())
        return answers(len(states), split.labels)

    monkeypatch.setattr(train, "evaluate", evaluated)
    trainer = Trainer(replace(config, ema=0.5, epochs=1))
    result = trainer.run()
    assert (result.test.sum, result.best.sum) == (1 / 8, 1 / 8)
    last = lines(result.folder)[-1]
    for name, state, accuracy in zip(("last", "ema"), states, (last["test_accuracy"], last["ema_test_accuracy"]), strict=True):
        model, about = load_weights(result.folder / f"{name}.safetensors")
        assert about.test_accuracy == accuracy
        for key, array in model.state_dict().items():
            assert_array_equal(array, state[key], err_msg=f"{name}: {key}")
    assert last["ema_test_accuracy"]["sum"] == 2 / 8
    for key, array in trainer.learner.model.state_dict().items():
        assert_array_equal(array, states[0][key], err_msg=key)  # put back
    assert not np.array_equal(states[0]["conv1.weight"], states[1]["conv1.weight"])


def test_options_reach_what_they_are_for(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, drop_path=0.4, cutout=9, weight_decay=0.3, lr=0.7e-3, ema=0.25, tta="mirror"))
    assert trainer.network.drop_path_rate == trainer.learner.model.config.drop_path_rate == 0.4
    groups = trainer.learner.optimizer.param_groups
    assert [(group["weight_decay"], group["initial_lr"]) for group in groups] == [(0.3, 0.7e-3), (0.0, 0.7e-3)]
    assert trainer.learner.ema is not None
    assert trainer.learner.ema.decay == 0.25
    blanked, whole = (next(batches(trainer.dataset, 8, 0, cutout=cutout)).images for cutout in (9, 0))
    first = next(trainer._batches()).images
    assert_array_equal(first, blanked)
    assert not np.array_equal(first, whole)


def test_a_run_is_never_overwritten(config: TrainConfig) -> None:
    assert config.out is not None
    train.train(replace(config, max_steps=1))
    before = {path.name: path.read_bytes() for path in config.out.iterdir()}
    with pytest.raises(FileExistsError, match=r"run already holds a run \(config.json\); choose another folder with --out"):
        Trainer(config)
    assert {path.name: path.read_bytes() for path in config.out.iterdir()} == before
    with pytest.raises(FileExistsError, match=r"config.json is a file; choose another folder"):
        Trainer(replace(config, out=config.out / "config.json"))


def test_a_run_without_a_folder_is_called_after_its_network_and_the_time(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Trainer(replace(config, out=None)).folder.path
    assert path.parent == Path("runs")
    assert path.name.startswith("tiny-20")
    monkeypatch.undo()


def test_runs_of_the_same_second_have_folders_of_their_own(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    leaves = "leaves {} of the 40 training images, fewer than the {} of a step"
    with pytest.raises(OptionError, match=f"^hold_out is 25, which {leaves.format(15, 20)}: hold out at most 20$"):
        Trainer(replace(config, hold_out=25, batch_size=20))
    for batch in (31, 500):  # no number that can be held out leaves as many
        with pytest.raises(OptionError, match=f"^hold_out is 25, which {leaves.format(15, batch)}: take a smaller batch_size$") as caught:
            Trainer(replace(config, hold_out=25, batch_size=batch))
        assert caught.value.dashed.startswith("--hold-out is 25, ") and caught.value.dashed.endswith(": take a smaller --batch-size")
    assert len(Trainer(replace(config, hold_out=10, batch_size=30, out=config.out.with_name("fits"))).dataset.train) == 30
    can = r"of the 40 training images of cifar10 from 10 \(as many as classes\) to 30 \(all but one of each class\) can be held out"
    for count in (9, 31):
        with pytest.raises(OptionError, match=f"^hold_out is {count}, and {can}$"):
            Trainer(replace(config, hold_out=count))
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
    trainer = Trainer(config, display := Noted())
    trainer._evaluation_seconds = 1000.0
    evaluate = trainer._evaluate

    def evaluated(signals: Any) -> None:
        evaluate(signals)
        trainer._evaluation_seconds = 1000.0

    trainer._evaluate = evaluated  # type: ignore[method-assign]
    trainer.run()
    left = {progress.step: progress.seconds_left for progress in display.shown}
    assert [round(left[step] / 1000) for step in (1, 5, 6, 10)] == [2, 2, 1, 1]


def test_what_is_shown_of_a_step_are_means_and_the_time_left(config: TrainConfig) -> None:
    trainer = Trainer(config)
    trainer.evaluated, trainer.test, trainer._evaluation_seconds = 5, Accuracies(0.1, 0.2, 0.3), 7.0
    trainer._recent.append((3.0, Accuracies(0.125, 0.25, 0.5), 0.25))
    trainer._recent.append((1.0, Accuracies(0.375, 0.5, 0.25), 0.75))
    trainer._recent.append((1.25, Accuracies(1.0, 0.0, 0.75), 0.5))
    assert trainer._progress(Outcome(7, 1.25, Accuracies(1.0, 0.0, 0.75), 3e-4, 0.5)) == Progress(
        step=7,
        steps=10,
        epoch=1.4,
        loss=1.75,
        train=Accuracies(0.5, 0.25, 0.5),
        test=Accuracies(0.1, 0.2, 0.3),
        learning_rate=3e-4,
        images_per_second=16.0,
        seconds_left=3 * 0.5 + 7.0,
    )


def test_running_figures_are_of_the_last_50_steps(config: TrainConfig) -> None:
    trainer = Trainer(config, display := Noted())
    trainer._note([Outcome(step, float(step), Accuracies(0, 0, 0), 1e-3, 0.5) for step in range(1, 61)])
    assert [display.shown[step - 1].loss for step in (1, 2, 50, 51, 60)] == [1.0, 1.5, 25.5, 26.5, 35.5]


def test_the_last_step_is_logged_and_an_epoch_that_has_begun_counts(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = train.train(replace(config, max_steps=7, log_every=3))
    logged = lines(result.folder)[1:]
    assert [line["step"] for line in logged if "learning_rate" in line] == [3, 6, 7]
    assert [(line["step"], line["epoch"]) for line in logged if "test_loss" in line] == [(5, 1.0), (7, 1.4)]
    said = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert said == ["epoch 1, step 5", "epoch 2, step 7"]


def test_a_checkpoint_is_due_after_so_many_minutes(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, checkpoint_minutes=1.0))
    trainer._saved_at = time.perf_counter() - 30
    assert not trainer._save_due()
    trainer._saved_at = time.perf_counter() - 61
    assert trainer._save_due()
    trainer._save()
    assert not trainer._save_due()
    trainer.config = replace(config, checkpoint_minutes=0.0)
    trainer._saved_at = time.perf_counter() - 1e9
    assert not trainer._save_due()


def test_a_run_with_a_time_budget_is_the_one_of_as_many_steps(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(config, epochs=None, time_budget="1.5s", ema=0.5, drop_path=0.3)
    run = folder(config)
    trainer = Trainer(config)
    assert json.loads((run / "config.json").read_text())["steps"] is None
    began = time.perf_counter()
    result = trainer.run()
    assert time.perf_counter() - began < 6  # the machine may be shared
    assert json.loads((run / "config.json").read_text())["steps"] == result.steps
    header, measured, *_ = lines(run)
    assert header["steps"] == measured["steps"] == result.steps
    assert measured["time_budget"] == 1.5
    assert f"{result.steps:,} steps fit 1.5s" in capsys.readouterr().out

    train.train(replace(config, time_budget=None, epochs=1000, max_steps=result.steps, out=run.with_name("fixed")))
    for name in ("last", "ema"):
        state, expected = (safetensors_io.load_state(path / f"{name}.safetensors")[0] for path in (run, run.with_name("fixed")))
        for key, array in state.items():
            assert array.tobytes() == expected[key].tobytes()


def test_a_time_budget_has_the_time_of_saving_in_it(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_saving_seconds", lambda _: 1000.0)
        patch.setattr(train, "steps_within", lambda *_: 1)
        result = train.train(replace(config, epochs=None, time_budget="30m"))
    assert lines(result.folder)[1]["seconds_per_evaluation"] >= 1000
    trainer = Trainer(replace(config, out=result.folder.with_name("other")))
    assert trainer._saving_seconds() > 0
    assert not list(trainer.folder.path.glob(".*"))


@pytest.mark.parametrize(("ema", "evaluations"), [(0.0, 1), (0.5, 2)])
def test_a_budget_counts_the_evaluation_of_every_image_and_of_the_average(
    ema: float, evaluations: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which the 500 images that are timed take 10 seconds, and everything else none; of 1,000 images an evaluation takes twice that."""
    now, timed, asked = 0.0, [], []

    def evaluated(model: Any, split: data.Split, *_: Any, **__: Any) -> None:
        nonlocal now
        now += 10.0
        timed.append(len(split))

    whole = data.load
    many = data.Split(np.zeros((1000, 32, 32, 3), np.uint8), np.zeros(1000, np.int64))
    monkeypatch.setattr(data, "load", lambda *arguments: replace(whole(*arguments), test=many))
    for module in (train, budget):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(train, "evaluate", evaluated)
    monkeypatch.setattr(train, "steps_within", lambda *arguments: asked.append(arguments) or 12)
    monkeypatch.setattr(budget, "TIMED_STEPS", 2)
    trainer = Trainer(replace(config, epochs=None, time_budget="100s", ema=ema))
    trainer._fit_to_budget(StopSignals())
    ((seconds, each, evaluation, between),) = asked
    assert (timed, trainer.steps, between) == ([500, 500], 12, 5)
    assert_allclose([seconds, evaluation, trainer._evaluation_seconds], [98 - 20, 20 * evaluations, 20 * evaluations], rtol=1e-12)
    assert each > 0


def timed(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, steps: list[float], evaluations: list[float], savings: list[float]
) -> tuple[int, float, float, float]:
    """What a time budget comes to where steps, the evaluations of some images and checkpoints take these seconds, and all else none.

    Returns:
        How many steps were timed; seconds that are left, of a step and of an evaluation.
    """
    now, outcomes, asked = 0.0, [], []
    left = {name: iter(seconds) for name, seconds in {"steps": steps, "evaluations": evaluations, "savings": savings}.items()}

    def wait(what: str) -> float:
        nonlocal now
        now += (seconds := next(left[what]))
        return seconds

    def take() -> list[Outcome]:
        outcomes.append(Outcome(len(outcomes) + 1, 1.0, Accuracies(0, 0, 0), 1e-3, wait("steps")))
        return outcomes[-1:]

    with monkeypatch.context() as patch:
        for module in (train, budget):
            patch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
        patch.setattr(train, "evaluate", lambda *_, **__: wait("evaluations"))
        patch.setattr(safetensors_io, "save_state", lambda *_: wait("savings"))
        patch.setattr(train, "steps_within", lambda *arguments: asked.append(arguments) or 12)
        patch.setattr(Trainer, "_stepper", lambda _: SimpleNamespace(take=take, finish=list, close=lambda: None))
        Trainer(config)._fit_to_budget(StopSignals())
    ((seconds, each, evaluation, _),) = asked
    return len(outcomes), seconds, each, evaluation


@pytest.mark.parametrize("held_up", [0, 1, 2, 20])
def test_what_holds_a_run_up_once_does_not_change_what_fits_its_budget(held_up: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By 20 seconds, in a step, an evaluation and a checkpoint, where steps are timed for no more than 10."""
    steps = [0.25, *[0.125, 0.1875] * 10]
    steps[held_up] += 20
    budget = replace(config, epochs=None, time_budget="100s")
    count, seconds, each, evaluation = timed(budget, monkeypatch, steps, [0.5, 20.5], [20.25, 0.25])
    assert count == 21
    assert_allclose([seconds, evaluation], [98 - sum(steps) - 41.5, 0.5 + 3 * 0.25], rtol=1e-12)
    assert_allclose(each, 0.15625, rtol=0.02)  # the mean of ten of each, or of ten and nine


def test_of_slow_steps_few_are_timed_and_one_of_them_may_be_held_up(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = replace(config, epochs=None, time_budget="30s")
    assert timed(budget, monkeypatch, [3.0, 2.0, 2.0, 9.0], [1.0, 1.0], [0.5, 0.5])[::2] == (4, 2.0)


def test_what_takes_a_quarter_of_the_budget_is_timed_once(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = replace(config, epochs=None, time_budget="120s")
    count, seconds, each, evaluation = timed(budget, monkeypatch, [16.0, 15.0], [31.0], [2.0, 2.0])
    assert (count, each, evaluation) == (2, 15.0, 31.0 + 6.0)
    assert_allclose(seconds, 0.98 * 120 - 16 - 15 - 31 - 4, rtol=1e-12)


def test_a_budget_counts_the_checkpoints_between_evaluations(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = replace(config, epochs=None, time_budget="100s", checkpoint_steps=4)
    assert timed(budget, monkeypatch, [0.25] * 21, [1.0, 1.0], [0.5, 0.5])[2] == 0.25 + 0.5 / 4


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(config)
    monkeypatch.setattr(learner.F, "cross_entropy", lambda *arguments, **options: Tensor(np.float32(np.nan)))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1; a lower --lr"):
        trainer.run()
    assert not (trainer.folder.path / "last.safetensors").exists()


@pytest.mark.parametrize(
    ("lr", "hold_out", "message", "kept"),
    [
        (1e30, 0, "the loss on the test images is (nan|inf) at step 5; a lower --lr", 5),
        (1e30, 16, "the loss on the held-out images is (nan|inf) at step 3; a lower --lr", 3),
        (1e300, 0, "the weights are not finite after step 5; a lower --lr", 0),
    ],
)
def test_a_last_step_that_diverges(lr: float, hold_out: int, message: str, kept: int, config: TrainConfig) -> None:
    """No loss is computed after it but that on the test images; NumPy warns of none of it."""
    trainer = Trainer(replace(config, epochs=1, lr=1e-3, hold_out=hold_out))
    path = trainer.folder.path
    original = trainer.learner.begin_step

    def last() -> float:
        rate = original()
        if trainer.step == trainer.steps - 1:
            for group in trainer.learner.optimizer.param_groups:
                group["lr"] = lr
        return rate

    trainer.learner.begin_step = last
    with pytest.raises(FloatingPointError, match=message):
        trainer.run()
    assert not (path / "last.safetensors").exists()
    assert load_checkpoint(path / "checkpoint.safetensors").step == kept
