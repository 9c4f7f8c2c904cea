"""Studies: runs under several seeds and networks, which are begun, skipped, gone on with and added, and the figures that are made of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformer import cli, coupling10, data, devices, study, train, train_commands
from conformer.baselines import CNNBranch
from conformer.batches import Batch
from conformer.cli import main
from conformer.config import CONFIGS
from conformer.display import Display
from conformer.findings import Findings
from conformer.learner import Learner
from conformer.options import TrainConfig
from conformer.run_folder import read_config
from conformer.run_log import read_log
from conformer.study import Study, StudyError
from conformer.text import printable, quoted
from conformer.train import Trainer
from minigrad import safetensors_io

Cifar = Callable[..., Path]
Fails = Callable[..., str]


pytestmark = pytest.mark.usefixtures("plain_surroundings")


@pytest.fixture
def fails(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> Fails:
    """The one of conftest.py; pictures, which take long, are not drawn."""
    monkeypatch.setattr(train_commands, "_draw_curves", lambda run: False)
    return fails


@pytest.fixture
def options(cifar: Cifar, tiny_network: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two epochs of 3 steps, with everything that has a state or draws; beside `tiny` there is a network `tinier`."""
    monkeypatch.setitem(CONFIGS, "tinier", replace(CONFIGS["tiny"], embed_dim=8))
    return {"data_dir": cifar(records=8), "batch_size": 12, "epochs": 2, "ema": 0.5, "drop_path": 0.3}


def words(options: dict[str, Any]) -> list[str]:
    """Options as a command line has them."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def trained(path: Path, seeds: list[int], configs: list[str] | None = None, **options: Any) -> Study:
    """A study, gone on with to its end."""
    result = Study(path, seeds, configs or ["tiny"], **options)
    for trainer in result.trainers(Display()):
        trainer.run()
    return result


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("nothing is to be loaded or trained")


def weights(run: Path) -> dict[str, bytes]:
    """All that a run's weights and its state are, bit for bit."""
    return {
        f"{name}: {key}": array.tobytes()
        for name in ("last", "best", "ema", "checkpoint")
        for key, array in safetensors_io.load_state(run / f"{name}.safetensors")[0].items()
    }


def break_off(monkeypatch: pytest.MonkeyPatch, seed: int, step: int, how: Callable[[], Any]) -> None:
    """Let `how` happen before a step of a run."""
    original = Learner.train_step

    def broken(self: Learner, batch: Batch) -> Any:
        if (self.step, self.config.seed) == (step, seed):
            how()
        return original(self, batch)

    monkeypatch.setattr(Learner, "train_step", broken)


def test_a_study_is_ordinary_runs_and_a_broken_off_one_becomes_the_unbroken_one(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tmp_path / "whole", [0, 7], **options)
    assert [(run.path.name, run.step, run.steps) for run in whole.runs] == [("tiny-seed-0", 6, 6), ("tiny-seed-7", 6, 6)]
    alone = train.train(TrainConfig(config="tiny", seed=7, out=tmp_path / "alone", **options)).folder
    run = tmp_path / "whole" / "tiny-seed-7"
    assert weights(run) == weights(alone) != weights(whole.runs[0].path)
    assert read_config(run) == read_config(alone) | {"out": str(run)}

    def states() -> list[tuple[bool, int, int | None, bool]]:
        return [(run.begun, run.step, run.steps, run.figures is not None) for run in Study(tmp_path / "broken").runs]

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        break_off(patch, 0, 4, lambda: (_ for _ in ()).throw(MemoryError))
        trained(tmp_path / "broken", [0, 7], **options)
    assert states() == [(True, 3, 6, False), (False, 0, None, False)]
    next(Study(tmp_path / "broken").trainers(Display())).folder.close()  # killed before it takes a step
    again = Study(tmp_path / "broken").trainers(Display())
    next(again).run()
    next(again).folder.close()  # killed before there is a checkpoint
    again.close()
    assert states() == [(True, 6, 6, True), (True, 0, None, False)]
    for trainer in Study(tmp_path / "broken").trainers(Display()):
        trainer.run()
    for run in whole.runs:
        assert weights(tmp_path / "broken" / run.path.name) == weights(run.path)


def test_a_study_that_holds_images_out_measures_all_its_runs_by_the_same(options: dict[str, Any], tmp_path: Path, fails: Fails) -> None:
    """And not by the test images, which may be others when it goes on."""
    out, given = tmp_path / "study", words(options | {"epochs": 1})
    new = ["study", out, "--configs", "tiny", "--seeds", 0]
    leaves = "which leaves 11 of the 40 training images, fewer than the 12 of a step: hold out at most 28"
    assert fails(2, *new, *given, "--hold-out", 29) == f"conformer: --hold-out is 29, {leaves}"
    assert "--hold-out is 9, and of the 40 training images of cifar10 from 10 (as" in fails(2, *new, *given, "--hold-out", 9)
    assert not out.exists()
    assert main([*map(str, new), *given, "--hold-out", "16"]) == 0
    files = options["data_dir"]
    (files / "test_batch.bin").write_bytes((files / "data_batch_1.bin").read_bytes())
    assert main(["study", str(out), "--seeds", "1"]) == 0
    assert "was started with --hold-out 16, not with 0" in fails(2, *new, "--hold-out", 0)
    study = Study(out)
    shares = [read_log(run.path).tests[-1]["test_accuracy"]["sum"] for run in study.runs]
    assert study.findings().spreads["tiny"]["sum"].mean == np.mean(shares)
    assert [Trainer.resume(run.path).fingerprint for run in study.runs] == [study.data["fingerprint"]] * 2
    page = (out / "study.md").read_text()
    assert (
        " --hold-out 16\n" in page
        and "| held-out accuracy at the end in percent, and time |" in page
        and "test" not in page.replace(str(tmp_path), "")
    )
    assert json.loads((out / "study.json").read_text())["options"]["hold_out"] == 16


def test_what_makes_a_studys_accuracies_too_high_is_said_with_them(options: dict[str, Any], tmp_path: Path) -> None:
    options |= {"max_steps": 1}
    seen = train.train(TrainConfig(config="tiny", out=tmp_path / "seen", **options)).folder
    trained(tmp_path / "study", [0, 1], finetune=seen, hold_out=12, **options)
    said = "* The weights to begin with were trained on held-out images of cifar10, so the held-out accuracy is too high.\n"
    assert (tmp_path / "study" / "study.md").read_text().count(said) == 1
    trained(tmp_path / "test", [0], finetune=seen, **options)
    assert "too high" not in (tmp_path / "test" / "study.md").read_text()


def test_what_is_finished_is_kept_and_seeds_and_networks_are_added(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study"
    trained(path, [3], **options)
    before = {file: file.stat().st_mtime_ns for file in (path / "tiny-seed-3").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(data, "load", refuse)
        patch.setattr(Learner, "train_step", refuse)
        (path / "study.md").unlink()
        assert list(Study(path).trainers(Display())) == []
        assert "1 run of 6 steps, seed 3" in (path / "study.md").read_text()
        assert list(Study(path, [3], ["tiny"], **options).trainers(Display())) == []
    trained(path, [1])
    trained(path, [1], ["tinier"])
    assert [(run.config, run.seed) for run in Study(path).runs] == [("tiny", 3), ("tiny", 1), ("tinier", 1)]
    assert {file: file.stat().st_mtime_ns for file in (path / "tiny-seed-3").iterdir()} == before
    assert [(run.config, run.seed, run.begun) for run in Study(path, [5]).runs[3:]] == [("tiny", 5, False), ("tinier", 5, False)]
    commands = Study(path).commands()
    given = " ".join(f"{word if word.startswith('--') else quoted(word)}" for word in words(dict(sorted(options.items()))))
    assert [command.partition(" --data-dir")[0] for command in commands] == [
        f"conformer study {quoted(path)} --seeds 3 1 --configs tiny --dataset cifar10",
        f"conformer study {quoted(path)} --seeds 1 --configs tinier --dataset cifar10",
    ]
    assert all(sorted(command.split()[-10:]) == sorted(given.split()) for command in commands)
    for command in commands:  # which are those of this very study
        parsed = cli._parser().parse_args(command.split()[1:])
        assert len(Study(parsed.study, parsed.seeds, parsed.configs, **train_commands._given(parsed)).runs) == 3


def test_relative_paths_hold_when_a_study_goes_on_from_elsewhere(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options["epochs"] = 1
    source = train.train(TrainConfig(config="tiny", out=Path("source"), **options)).folder
    relative = options | {"data_dir": options["data_dir"].relative_to(tmp_path), "finetune": source}
    for seeds in ([0, 1], [2]):
        assert all(run.figures for run in trained(Path("study"), seeds, **relative).runs)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [run.seed for run in trained(tmp_path / "study", [3]).runs if run.figures] == [0, 1, 2, 3]


def test_a_study_is_one_process_s_at_a_time(options: dict[str, Any], tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study"
    late = Study(path, [5], ["tiny"], **options)  # read before the other one wrote
    others = Study(path, [0, 1], ["tiny"], **options).trainers(Display())
    next(others).run()
    before = (path / "study.json").read_text()
    script = f"import sys; from conformer.cli import main; sys.exit(main(['study', {str(path)!r}, '--seeds', '0']))"
    script = f"from dataclasses import replace; from conformer.config import CONFIGS; CONFIGS['tiny'] = {CONFIGS['tiny']!r}; {script}"
    script = f"from conformer.config import ConformerConfig; {script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"conformer: {path} is in use: another process is training there\n")
    line = fails(1, "study", path, "--seeds", 7)
    assert line == f"conformer: {path} is in use: this process has trainers() of it; go through all of them, or close() them"
    assert main(["study", str(path), "--show"]) == 0 and "Not finished: tiny-seed-1 (not begun)" in capsys.readouterr().out
    assert (path / "study.json").read_text() == before
    for trainer in others:
        trainer.run()
    with pytest.raises(StudyError, match="another process has changed the study in .* since it was read; give the command again"):
        next(late.trainers(Display()))
    assert [run.seed for run in trained(path, [7]).runs if run.figures] == [0, 1, 7]


def test_weights_to_begin_with_that_were_moved_are_asked_for_and_must_be_the_same(options: dict[str, Any], tmp_path: Path, fails: Fails) -> None:
    source = train.train(TrainConfig(config="tiny", out=tmp_path / "source", **options)).folder
    path = tmp_path / "study"
    trained(path, [0], **options, finetune=source)
    broken = Study(path, [1]).trainers(Display())
    next(broken).folder.close()  # killed before there is a checkpoint
    broken.close()
    moved = source.rename(tmp_path / "moved")
    line = fails(2, "study", path, "--seeds", 2)
    assert "--finetune: " in line and line.endswith("; give a run or a weights file")
    other = train.train(TrainConfig(config="tiny", seed=9, out=tmp_path / "other", **options)).folder
    said = f"the study in {path} began with other weights than those that are in {other} now; give those (--finetune)"
    assert said in fails(2, "study", path, "--seeds", 2, "--finetune", other)
    assert all(run.figures for run in trained(path, [2], finetune=str(moved)).runs)
    assert all(run.figures for run in trained(path, [3]).runs) and f"--finetune {quoted(moved)}" in Study(path).commands()[0]
    assert f"was started with --finetune {moved}, not with {other}: leave" in fails(2, "study", path, "--finetune", other)  # nothing needs it
    for run in Study(path).runs:  # all are what they would have been
        alone = train.train(TrainConfig(config="tiny", seed=run.seed, out=tmp_path / f"alone-{run.seed}", finetune=moved, **options)).folder
        assert weights(run.path) == weights(alone)


def test_a_new_study_that_is_told_nothing_has_cifar_nano_under_three_seeds(tmp_path: Path) -> None:
    assert [(run.config, run.seed) for run in Study(tmp_path / "new").runs] == [("cifar-nano", 0), ("cifar-nano", 1), ("cifar-nano", 2)]
    fresh = Study(str(tmp_path / "new"), [5, 6])
    assert fresh.findings().text() == "Not finished: cifar-nano-seed-5 (not begun), cifar-nano-seed-6 (not begun)."
    assert fresh.findings().markdown(fresh.commands()).startswith("# cifar-nano on auto\n\n```sh\nconformer study ")
    with pytest.raises(StudyError, match=r"the study in .*new has not begun: go through its trainers\(\)"):
        fresh.save()
    with pytest.raises(StudyError, match="there is no study in .*new"):
        Study.existing(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_both_texts_are_made_before_either_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Findings, "markdown", refuse)
    begun = Study(tmp_path / "study")
    begun.data = {"name": "cifar10", "notice": "", "fingerprint": "0"}
    with pytest.raises(AssertionError):
        begun.save()
    assert not (tmp_path / "study").exists()


def test_options_that_change_no_weight_may_be_given_anew(options: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path / "study", [0], **options)
    broken = Study(tmp_path / "study", [1]).trainers(Display())
    next(broken).folder.close()
    broken.close()
    moved = options["data_dir"].rename(tmp_path / "moved")
    with pytest.raises(data.DataError, match="the run's data is not in .* any more"):
        trained(tmp_path / "study", [1])
    with pytest.raises(data.DataError, match="--data-dir: there is no folder or file"):
        trained(tmp_path / "study", [1], data_dir=tmp_path / "nowhere")
    again = trained(tmp_path / "study", [1], data_dir=moved, log_every=1)
    assert (again.options.log_every, again.options.data_dir) == (1, moved)
    assert read_config(tmp_path / "study" / "tiny-seed-1")["log_every"] == 1
    assert len((tmp_path / "study" / "tiny-seed-1" / "metrics.jsonl").read_text().splitlines()) == 1 + 6 + 2
    trained(tmp_path / "study", [2])
    assert read_config(tmp_path / "study" / "tiny-seed-2")["data_dir"] == str(moved)


def test_no_place_of_the_data_is_stored_that_was_not_looked_at(
    options: dict[str, Any], tmp_path: Path, fails: Fails, cifar: Cifar, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, place = tmp_path / "study", options["data_dir"]
    trained(path, [0], **options)
    before = {name: (path / name).read_text() for name in ("study.json", "study.md")}
    other = cifar(records=8, folder="other/cifar-10-batches-bin", seed=1)
    assert f"--data-dir: there is no folder or file {tmp_path / 'nowhere'}" in fails(1, "study", path, "--data-dir", tmp_path / "nowhere")
    assert "has other images of cifar10 than those that are in" in fails(2, "study", path, "--data-dir", other)
    Study(path, data_dir=other).save()
    assert {name: (path / name).read_text() for name in before} == before
    moved = place.rename(tmp_path / "moved")
    assert list(Study(path, data_dir=moved).trainers(Display())) == []  # nothing is left to train
    monkeypatch.setattr(data, "load", refuse)  # and what is known is not looked at again
    assert Study(path, data_dir=moved).options.data_dir == moved and list(Study(path, data_dir=moved).trainers(Display())) == []
    assert f"--data-dir {quoted(moved)}" in (path / "study.md").read_text()


def test_runs_of_one_name_are_of_one_network(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its settings and its weights: what is built by another program of the same name is not begun, and not averaged with the rest."""
    path, given = tmp_path / "study", {**options, "epochs": 1}

    def begun(seed: int, **settings: Any) -> None:
        builds = {"own": lambda config: CNNBranch(replace(config, **settings))}
        for trainer in Study(path, [seed], ["tiny"], ["own"], builds, **given).trainers(Display()):
            trainer.run()

    begun(0)
    before = (path / "study.json").read_text()
    other = "its network is another than that of tiny-own-seed-0, by its "
    with pytest.raises(StudyError, match=f"^tiny-own-seed-1 is not begun: {other}conv_1.bn1.bias; give it another name, or begin another"):
        begun(1, channel_ratio=0.5)
    with pytest.raises(StudyError, match=f"^tiny-own-seed-1 is not begun: {other}conv_trans_2.med_block.0.bn1.bias; "):
        begun(1, num_med_block=1)
    with monkeypatch.context() as patch, pytest.raises(StudyError, match=f"^tiny-own-seed-1 is not begun: {other}num_heads; "):
        patch.setitem(CONFIGS, "tiny", replace(CONFIGS["tiny"], num_heads=4))  # whose weights have the same shapes
        begun(1)
    assert (path / "study.json").read_text() == before and not (path / "tiny-own-seed-1").exists()

    with pytest.raises(KeyError), monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda _: {}["killed"])  # before there is a checkpoint
        begun(1)
    with pytest.raises(StudyError, match="^tiny-own-seed-1 is not begun: "):
        begun(1, channel_ratio=0.5)
    begun(1)
    shutil.rmtree(path / "tiny-own-seed-1")  # in whose place an older version put another one
    run = TrainConfig(config="tiny", network="own", seed=1, out=path / "tiny-own-seed-1", **given)
    train.train(run, build=lambda config: CNNBranch(replace(config, channel_ratio=0.5)))
    with pytest.raises(StudyError, match=f"tiny-own-seed-1 is not of this study: {other}conv_1.bn1.bias; move it elsewhere"):
        Study.existing(path)
    shutil.rmtree(path / "tiny-own-seed-1")
    study = Study.existing(path)
    study._networks.clear()
    settings = asdict(CONFIGS["tiny"])
    del settings["mlp_ratio"]  # which the version that trained the first run did not know
    assert study._differs_from_first(study.runs[0], settings, {}) is None
    assert study._differs_from_first(study.runs[0], asdict(CONFIGS["tiny"]), {}) is None


def test_what_auto_comes_to_is_chosen_once(tiny_network: str, cifar: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = coupling10.generate
    monkeypatch.setattr(coupling10, "generate", lambda count, **options: whole(count // 1000, **options))
    trained(tmp_path / "study", [0], max_steps=1, batch_size=10)
    monkeypatch.setenv("CONFORMER_DATA", str(cifar()))
    again = trained(tmp_path / "study", [1])
    for run in again.runs:
        header = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
        assert header["dataset"] == "coupling10" and header["dataset_notice"].startswith("THIS IS NOT CIFAR-10")
    page = (tmp_path / "study" / "study.md").read_text()
    assert again.findings().text().startswith("THIS IS NOT CIFAR-10") and page.startswith("# tiny on coupling10\n\nTHIS IS NOT CIFAR-10")
    assert "--seeds 0 1 --configs tiny --dataset coupling10 --max-steps" in page
    for name in ("auto", "coupling10"):
        assert Study(tmp_path / "study", dataset=name).options.dataset == "auto"
    with pytest.raises(StudyError, match="was started with --dataset coupling10, not with cifar10"):
        Study(tmp_path / "study", dataset="cifar10")


def test_one_seed_that_diverges_does_not_keep_others_from_training(
    options: dict[str, Any], tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge() -> None:
        raise FloatingPointError("the loss is nan at step 5")

    monkeypatch.setattr(train_commands, "_draw_curves", lambda run: False)
    unbroken = Learner.train_step
    break_off(monkeypatch, 0, 4, diverge)
    assert main(["study", str(tmp_path / "study"), "--seeds", "0", "1", "--configs", "tiny", *words(options)]) == 1
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "conformer: tiny-seed-0: the loss is nan at step 5",
        "conformer: tiny-seed-0 diverged, left out of the means; for other options, begin another study in another folder; "
        "to try a run again, on another device perhaps, remove its folder",
    ]
    said = "Diverged, left out of the means: tiny-seed-0 (the loss is nan at step 5). A run begins anew, on another device perhaps, when its folder"
    assert "1 run of 6 steps, seed 1" in output.out and said in output.out and "Not finished" not in output.out

    monkeypatch.setattr(Learner, "train_step", refuse)
    assert main(["study", str(tmp_path / "study")]) == 0  # which does not try it again
    assert said in capsys.readouterr().out and said in (tmp_path / "study" / "study.md").read_text()
    monkeypatch.setattr(Learner, "train_step", unbroken)
    shutil.rmtree(tmp_path / "study" / "tiny-seed-0")
    next(Study(tmp_path / "study").trainers(Display())).folder.close()
    assert main(["study", str(tmp_path / "study"), "--seeds", "2"]) == 0
    assert "3 runs of 6 steps, seeds 0, 1, 2" in (shown := capsys.readouterr().out) and "iverged" not in shown
    file = tmp_path / "study" / "study.json"
    saved = json.loads(file.read_text())
    file.write_text(json.dumps(saved | {"runs": [{"config": run["config"], "seed": run["seed"]} for run in saved["runs"]]}))  # of an older version
    log = tmp_path / "study" / "tiny-seed-1" / "metrics.jsonl"
    header, *rest = log.read_text().splitlines()
    assert {"macs", "test_images"} < json.loads(header).keys()
    log.write_text("\n".join([json.dumps({name: json.loads(header)[name] for name in ("config", "dataset", "seed", "parameters")}), *rest, ""]))
    runs = Study.existing(tmp_path / "study").runs
    assert [(run.left, run.macs is None, run.images) for run in runs] == [(False, False, 8), (False, True, None), (False, False, 8)]
    assert len({run.parameters for run in runs}) == 1


def test_the_command_stops_goes_on_and_shows_what_numpy_makes_of_the_runs(
    options: dict[str, Any], tmp_path: Path, fails: Fails, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "my\x1b study"
    with monkeypatch.context() as patch:
        break_off(patch, 1, 4, lambda: signal.raise_signal(signal.SIGTERM))
        line = fails(143, "study", out, "--seeds", 0, 1, "--configs", "tiny", *words(options))
    assert line == f"conformer: stopped at step 5 of 6 in tiny-seed-1; step 5 is saved, go on with: {train_commands._program()} study {quoted(out)}"
    assert "Not finished: tiny-seed-1 (step 5 of 6 saved)." in (out / "study.md").read_text()
    assert [run["step"] for run in json.loads((out / "study.json").read_text())["runs"]] == [6, 5]
    assert main(["study", str(out), "--show"]) == 0
    assert "Not finished: tiny-seed-1 (step 5 of 6 saved)." in capsys.readouterr().out
    monkeypatch.setattr("conformer.report.write_report", lambda run, *_: run / "report.html")
    monkeypatch.setattr(train_commands, "_draw_curves", lambda run: True)
    assert main(["study", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "run 1 of 2" not in printed and "run 2 of 2: tiny, seed 1\n" in printed
    assert f"report: {printable(str(out / 'tiny-seed-1' / 'report.html'))}\n" in printed
    assert printed.endswith(f"\nwritten to {printable(str(out / 'study.md'))} and study.json\n")
    results = [json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1]) for run in Study(out).runs]
    for head, row in {"cnn": "CNN head  ", "sum": "sum of both  "}.items():
        values = np.array([100 * line["test_accuracy"][head] for line in results])
        (shown,) = [line for line in printed.splitlines() if line.startswith(row)]
        assert shown.split()[-4:] == [f"{value:.2f}" for value in (values.mean(), values.std(ddof=1), values.min(), values.max())]
        assert Study(out).findings().spreads["tiny"][f"ema_{head}"].mean == np.mean([line["ema_test_accuracy"][head] for line in results])
    monkeypatch.setattr(Study, "save", refuse)
    assert main(["study", str(out), "--show"]) == 0
    assert capsys.readouterr().out.strip() in printed


def test_what_memory_runs_out_for_is_another_study(options: dict[str, Any], tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise MemoryError("9 GB")

    break_off(monkeypatch, 0, 1, full)
    line = fails(1, "study", tmp_path / "study", "--configs", "tiny", *words(options))
    advice = "take a smaller --batch-size, or its images in parts with --accumulate, in another study, in another folder"
    assert line == f"conformer: there is not enough memory (9 GB); {advice}"
    assert fails(1, "train", "--config", "tiny", "--out", tmp_path / "run", *words(options)).endswith("with --accumulate")


def test_the_report_of_a_run_that_was_killed_before_it_is_made_later(
    options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    run = trained(tmp_path / "study", [0], **options).runs[0].path  # without curves and report, which the command makes
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    capsys.readouterr()
    assert main(["study", str(tmp_path / "study")]) == 0
    assert capsys.readouterr().out.startswith(f"report: {run / 'report.html'}\n")
    assert {file.name for file in run.iterdir()} == before.keys() | {"curves.png", "report.html"}
    assert {name: (run / name).read_bytes() for name in before} == before
    with monkeypatch.context() as patch:
        patch.setattr(train_commands, "measure", refuse)
        assert main(["study", str(tmp_path / "study")]) == 0 and "report:" not in capsys.readouterr().out
        (run / "report.html").unlink()
        patch.setattr(train_commands, "_draw_curves", lambda run: False)  # no matplotlib: nothing is measured
        assert main(["study", str(tmp_path / "study")]) == 0

    def no_device(_: str) -> str:
        raise devices.DeviceError("there is no GPU here")

    monkeypatch.setattr(devices, "choose", no_device)  # as for a study on a GPU whose folder is elsewhere now
    assert main(["study", str(tmp_path / "study")]) == 0
    assert capsys.readouterr().err == "conformer: report.html is not made: there is no GPU here\n"


@pytest.mark.parametrize("moved", ["study", "study/tiny-seed-0"])
def test_a_folder_that_goes_away_is_a_run_s_or_the_study_s(
    moved: str, options: dict[str, Any], tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study"
    with monkeypatch.context() as patch:
        break_off(patch, 0, 4, lambda: (tmp_path / moved).rename(tmp_path / "moved"))
        line = fails(1, "study", path, "--seeds", 0, "--configs", "tiny", *words(options))
    command = f"with: {train_commands._program()} study"
    way_on = {
        "study": f"if the folder was moved, go on in its new place {command} FOLDER",
        "study/tiny-seed-0": f"put {quoted(path / 'tiny-seed-0')} back to go on, or leave it and begin that run anew, {command} {quoted(path)}",
    }
    assert line.endswith(f"was moved, removed or emptied; what was saved is not there now; {way_on[moved]}")
    assert Study(path if path.exists() else tmp_path / "moved").runs[0].begun == (moved == "study")  # and so it is


def test_a_study_stopped_between_runs_says_how_to_go_on(
    options: dict[str, Any], tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    command = ["study", tmp_path / "study", "--seeds", 0, "--configs", "tiny", *words(options)]
    with monkeypatch.context() as patch:
        patch.setattr(data, "load", interrupted)
        assert fails(130, *command) == "conformer: stopped"  # and nothing is begun
    assert not (tmp_path / "study").exists()
    again = f"conformer: stopped between runs; go on with: {train_commands._program()} study {quoted(tmp_path / 'study')}"
    with monkeypatch.context() as patch:
        patch.setattr(Study, "_trainer", interrupted)
        assert fails(130, *command) == again
    with monkeypatch.context() as patch:
        patch.setattr(data, "load", interrupted)  # before what is added is in study.json
        added = ["--seeds", 7, 8, "--networks", "cnn", "--data-dir", tmp_path / "new place"]
        line = fails(130, "study", tmp_path / "study", *added)
        assert line == f"{again} --seeds 7 8 --networks cnn --data-dir {quoted(tmp_path / 'new place')}"
        assert fails(130, "study", tmp_path / "study") == again
    assert [run.seed for run in Study(tmp_path / "study").runs] == [0]


def test_of_what_is_refused_a_sentence_says_why(options: dict[str, Any], tmp_path: Path, fails: Fails, cifar: Cifar) -> None:
    out, given = tmp_path / "study", words(options)
    new = ["study", out, "--configs", "tiny", "--seeds", 0]
    assert "--seeds has 3 twice; give each once" in fails(2, "study", out, "--seeds", 3, 1, 3)
    assert "--configs has tiny twice; give each once" in fails(2, "study", out, "--configs", "tiny", "tiny")
    assert "--seeds: seed is -1; it must be at least 0" in fails(2, "study", out, "--seeds", -1)
    for text in ("x", "0,1,2"):
        said = f"argument --seeds: '{text}' is not a whole number; give whole numbers, with blanks between them ("
        assert said in fails(2, "study", out, "--seeds", text)
    assert "argument --configs: there is no 'tinyy'; did you mean tiny?" in fails(2, "study", out, "--configs", "tinyy")
    assert "--lr is 0.0; it must be above 0" in fails(2, "study", out, "--lr", 0)
    for option, meant in {"--seed": "--seeds", "--config": "--configs"}.items():
        assert f"there is no option {option}; did you mean {meant}?" in fails(2, "study", out, option, 1)
    for option in ("--out", "--resume"):
        assert f"there is no option {option}" in fails(2, "study", out, option, "x")
    assert "--show trains nothing: leave --batch-size out" in fails(2, "study", out, "--show", "--batch-size", 8)
    assert "--show trains nothing: leave --cutout out" in fails(2, "study", out, "--show", "--cutout", 0)
    assert "--show trains nothing: leave --seeds out" in fails(2, "study", out, "--show", "--seeds", 0)
    assert f"there is no study in {out} (no study.json); give the folder of one" in fails(2, "study", out, "--show")
    assert "--batch-size is 500, but " in fails(2, *new, "--data-dir", options["data_dir"], "--batch-size", 500)
    assert f"--data-dir: there is no folder or file {Path('nowhere').absolute()}" in fails(1, *new, "--data-dir", "nowhere")
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is a file; give the study a folder" in fails(2, "study", tmp_path / "file")
    assert "holds something else (cifar-10-batches-bin) and no study" in fails(2, "study", tmp_path)
    run = train.train(TrainConfig(config="tiny", out=tmp_path / "run", **options | {"epochs": 1})).folder
    assert f"{run} holds a run and no study (no study.json); give the study a folder of its own" in fails(2, "study", run)
    line = fails(1, *new, "--configs", "tiny", "tinier", *given, "--finetune", run)
    assert "holds weights of another network (tiny), with embed_dim 16 instead of 8; no other can begin with them: " in line
    assert line.endswith("give --config tiny, or in a study --configs tiny alone")
    assert not out.exists()  # what does not fit the second network is found before the first one is trained

    trained(out, [0], **options)
    said = (
        f"the study in {out} was started with --epochs 2, not with 3: leave --epochs out to go on with it, or begin another study in another folder"
    )
    assert fails(2, *new, "--epochs", 3) == f"conformer: {said}"
    assert "was started with --cutout 0, not with 3" in fails(2, *new, "--cutout", 3)
    assert "was started without --max-steps, not with 9" in fails(2, *new, "--max-steps", 9)
    assert "was started with --dataset cifar10, not with cifar100" in fails(2, *new, "--dataset", "cifar100")
    assert "--log-every is 0; it must be at least 1" in fails(2, *new, "--log-every", 0)
    other = ["--data-dir", cifar(records=8, folder="other/cifar-10-batches-bin", seed=1)]
    assert f"the study in {out} has other images of cifar10 than those that are in " in (line := fails(2, *new, 1, *other))
    assert line.endswith("; give the data it was begun with (--data-dir)")

    shutil.copytree(run, out / "tiny-seed-1")
    said = f"the run in {out / 'tiny-seed-1'} is not of this study: its --epochs is 1, not 2; move it elsewhere, or begin another study"
    assert said in fails(2, *new, 1)
    shutil.rmtree(out / "tiny-seed-1")
    shutil.copytree(out / "tiny-seed-0", out / "tiny-seed-1")
    assert "is not of this study: its --seed is 0, not 1; move it" in fails(2, *new, 1)
    (out / "tiny-seed-1" / "checkpoint.safetensors").unlink()
    assert "is not of this study: its --seed is 0, not 1; move it" in fails(2, *new, 1)
    for change, answer in [({"dataset": "cifar100"}, "it is on cifar100, not on cifar10"), ({"drop_path": None}, "its --drop-path is none, not 0.3")]:
        config = read_config(out / "tiny-seed-0") | {"seed": 1} | change
        (out / "tiny-seed-1" / "config.json").write_text(json.dumps(config))
        assert f"is not of this study: {answer}" in fails(2, *new, 1)
    shutil.rmtree(out / "tiny-seed-1")
    train.train(TrainConfig(config="tiny", seed=1, out=out / "tiny-seed-1", **options | {"data_dir": other[1]}))
    assert "is not of this study: it is on other images of cifar10; move it" in fails(2, *new, 1)


def test_damaged_files_are_named_with_a_way_out(options: dict[str, Any], tmp_path: Path, fails: Fails) -> None:
    out = tmp_path / "study"
    trained(out, [0], **options)
    file, log = out / "study.json", out / "tiny-seed-0" / "metrics.jsonl"
    whole = json.loads(file.read_text())
    for content, said in [
        ("{", "Expecting property name"),
        ("[]", "list indices must be integers"),
        ("{}", "'dataset' is missing"),
        (json.dumps(whole | {"options": {"wings": 2}}), "wings is unknown"),
        (json.dumps(whole | {"dataset": {"name": 1, "notice": 2, "fingerprint": 3}}), "dataset is not text"),
        (json.dumps(whole | {"runs": [{"config": "../tiny", "seed": 0}]}), "there is no network '../tiny'"),
        (json.dumps(whole | {"runs": [{"config": "tiny", "seed": "../.."}]}), "seed is ../..; it must be a whole number"),
    ]:
        file.write_text(content)
        line = fails(1, "study", out, "--show")
        assert line.startswith(f"conformer: {file} is not what `conformer study` of this version writes (") and said in line
    file.write_text(json.dumps(whole))
    *lines, _ = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    run = out / "tiny-seed-0"
    anew = f"; mend that, or remove {quoted(run)}, and the study begins this run anew"
    assert fails(1, "study", out) == f"conformer: {log} has no evaluation at step 6, the last one of the run{anew}"
    log.write_text("".join([*lines[:2], "x\n", *lines[3:]]))
    line = fails(1, "study", out)
    assert line.startswith(f"conformer: {log} is damaged in line 3 (") and line.endswith(anew)
    log.unlink()
    assert fails(1, "study", out) == f"conformer: {log} is not there{anew}"
    (run / "checkpoint.safetensors").write_bytes(b"")
    line = fails(1, "study", out, "--show")
    assert "checkpoint.safetensors is not a safetensors file" in line and line.endswith(anew)

    (run / "checkpoint.safetensors").unlink()
    assert fails(1, "study", out) == f"conformer: {run} has last.safetensors but no checkpoint.safetensors, so that run cannot go on{anew}"
    config = (run / "config.json").rename(tmp_path / "config.json")
    assert fails(1, "study", out) == f"conformer: {run} has last.safetensors but no config.json, so that run cannot go on{anew}"
    for file in run.iterdir():
        file.unlink()
    config.rename(run / "config.json").write_text('{"wings": 2}')
    assert "has options that this version of the program does not (wings is unknown); mend that, or remove" in fails(1, "study", out)
    shutil.rmtree(run)
    run.write_text("")
    assert fails(2, "study", out) == f"conformer: {run} is no folder; remove {quoted(run)}, and the study begins this run anew"
    run.unlink()
    assert all(run.figures for run in trained(out, []).runs)  # which is so


def test_a_full_disk_is_said(options: dict[str, Any], tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(study, "write_file", full)
    line = fails(1, "study", tmp_path / "study", "--configs", "tiny", *words(options))
    assert line == f"conformer: cannot write {tmp_path / 'study' / 'study.json'}: No space left on device"
