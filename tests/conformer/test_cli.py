"""The command line, called in this process: what works, exit codes, and one sentence for each mistake."""

from __future__ import annotations

import errno
import importlib.abc
import importlib.metadata
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import conformer
from conformer import Conformer, cli, coupling10, data
from conformer.augment import normalize
from conformer.batches import Batch
from conformer.cifar import CIFAR10
from conformer.cli import main
from conformer.config import named_config
from conformer.display import Display, Progress
from conformer.evaluate import HEADS, Accuracies, Predictions, evaluate, predict
from conformer.explain import attention_rollout, class_activation_maps, token_map
from conformer.files import quoted
from conformer.image_files import read_image
from conformer.learner import Learner
from conformer.live_display import LiveDisplay
from conformer.weights import About, load_weights, save_weights
from minigrad import Tensor, safetensors_io
from minigrad.modes import no_grad
from minigrad.random import manual_seed

Cifar = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("plain_surroundings")


def saved_network(path: Path, config: str, **changes: Any) -> tuple[Conformer, About]:
    """Weights as `conformer train` writes them, of heads that disagree; `changes` are fields of `About`."""
    manual_seed(0)
    network = replace(named_config(config), num_classes=10)
    model = Conformer(**asdict(network)).eval()
    random = np.random.default_rng(2)
    with no_grad():
        for layer in (model.conv_cls_head, model.trans_cls_head):
            layer.weight.copy_(random.normal(size=layer.weight.shape))
    about = About(asdict(network), config, "cifar10", "", CIFAR10.classes, CIFAR10.mean, CIFAR10.std, (32, 32), 5, {})
    save_weights(path, model, about := replace(about, **changes))
    return model, about


def test_the_version_is_looked_up_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    asked: list[str] = []
    monkeypatch.setattr(importlib.metadata, "version", lambda name: asked.append(name) or "1.2.3")
    assert main(["info", "--config", "cifar-nano"]) == 0 and not asked
    capsys.readouterr()
    assert main(["--version"]) == 0 and capsys.readouterr() == ("1.2.3\n", "")


def test_train_then_evaluate(
    cifar: Cifar,
    tiny_network: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, run = str(cifar(records=8)), tmp_path / "run"
    assert main(["train", "--config", tiny_network, "--data-dir", folder, "--out", str(run), "--batch-size", "8", "--max-steps", "2"]) == 0
    output = capsys.readouterr()
    assert "step 2/2" in output.out
    assert output.err == ""
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    measured = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"]
    for weights in (run, run / "best.safetensors"):
        assert main(["evaluate", str(weights), "--data-dir", folder, "--batch-size", "3"]) == 0
        text = capsys.readouterr().out
        assert "tiny after 2 steps, on 8 test images of cifar10" in text
        for name, key in [("CNN head", "cnn"), ("transformer head", "transformer"), ("sum of both", "sum")]:
            assert f"{name:<17} {100 * measured[key]:6.2f} %" in text
        model, _ = load_weights(weights)
        dataset = data.load("cifar10", folder)
        shares = evaluate(model, dataset.test, dataset).class_accuracies()
        for number, name in enumerate(dataset.classes):
            row = re.search(rf"\n{name} +([\d.]+|nan) +([\d.]+|nan) +([\d.]+|nan)\n", text)
            assert row and row.groups() == tuple(f"{100 * shares[head][number]:.1f}" for head in HEADS)
        assert f"which classes are taken for which: {run / 'confusion.png'}" in text
        assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", str(run), "--picture", str(tmp_path / "else.png")]) == 0  # the data is where the run had it from
    assert (tmp_path / "else.png").exists()
    monkeypatch.setenv("CONFORMER_DATA", "nowhere")
    assert "the picture is not drawn: cannot write" in fails(1, "evaluate", str(run), "--picture", str(tmp_path / "no" / "else.png"))


def test_no_matplotlib(cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "conformer.plots", raising=False)
    folder, run = str(cifar(records=8)), tmp_path / "run"
    line = fails(0, "train", "--config", tiny_network, "--data-dir", folder, "--out", str(run), "--batch-size", "8", "--max-steps", "1")
    assert "the curves needs matplotlib (in the project's folder, pip install" in line
    assert (run / "last.safetensors").exists()
    assert not (run / "curves.png").exists()
    assert not (run / "report.html").exists()
    assert "the picture of the confusion matrix needs matplotlib (in the project's folder, pip install" in fails(0, "evaluate", str(run))


def test_a_backend_of_matplotlib_that_there_is_not(tmp_path: Path) -> None:
    """Only a program of its own imports matplotlib anew, which then looks at MPLBACKEND."""
    from PIL import Image

    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(image)
    command = [sys.executable, "-m", "conformer", "explain", "--run", "notebooks/cifar_nano_coupling10.safetensors", str(image)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out.png")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MPLBACKEND": "no"},
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "conformer: the picture is not drawn: Key backend: 'no' is not a valid value" in done.stderr


@pytest.mark.parametrize("error", [ValueError("Key backend: 'no' is not a valid value"), RuntimeError("Could not determine home directory.")])
def test_matplotlib_that_cannot_be_imported(
    error: Exception, cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "conformer.plots":
                raise error

    monkeypatch.delitem(sys.modules, "conformer.plots", raising=False)
    monkeypatch.delattr(conformer, "plots", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    run = str(tmp_path / "run")
    options = ["--config", tiny_network, "--data-dir", str(cifar(records=8)), "--out", run, "--batch-size", "8", "--max-steps", "1"]
    sentence = str(error).rstrip(".")
    assert f"a picture of the curves is not drawn: {sentence}" in fails(0, "train", *options)
    assert f"the picture of the confusion matrix is not drawn: {sentence}" in fails(0, "evaluate", run)
    assert f"the picture of the confusion matrix is not drawn: {sentence}" in fails(1, "evaluate", run, "--picture", str(tmp_path / "a.png"))
    assert f"a report is not drawn: {sentence}" in fails(1, "report", run)


def test_no_pillow(fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    import conformer.plots  # noqa: F401  matplotlib does not survive a first import without pillow

    monkeypatch.setitem(sys.modules, "PIL", None)
    for name in ("conformer.image_files", "conformer.report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert "reading image files needs pillow (in the project's folder, pip install" in fails(1, "predict", "cat.jpg")
    assert "a report needs matplotlib (in the project's folder, pip install" in fails(1, "report", "run")


def test_predict(cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--max-steps", "1"]) == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)).save("one.png")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)).save("two.jpg")
    capsys.readouterr()
    assert main(["predict", "one.png", "two.jpg", "--top", "3"]) == 0
    (run,) = Path("runs").iterdir()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"by tiny in {run}, trained on cifar10"
    assert [rest[0], rest[5]] == ["one.png", "two.jpg"]
    assert rest[1].split() == "CNN head transformer head sum of both".split()
    model, about = load_weights(run)
    image = normalize(read_image("two.jpg", (32, 32))[None], about.mean, about.std)
    cnn, transformer = predict(model, [image])
    for column, logits in enumerate((cnn[0], transformer[0], cnn[0] + transformer[0])):
        shares = np.exp(logits) / np.exp(logits).sum()
        for line, place in zip(rest[7:10], np.argsort(-shares)[:3], strict=True):
            name, share = line.replace("%", "").split()[2 * column : 2 * column + 2]
            assert (name, float(share)) == (about.classes[place], pytest.approx(100 * shares[place], abs=0.051))


def test_explain(
    cifar: Cifar,
    tiny_network: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from PIL import Image

    run, picture = str(tmp_path / "run"), tmp_path / "picture.png"
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--max-steps", "1", "--out", run]
    assert main(command) == 0
    images = [str(tmp_path / name) for name in ("$x^$.png", f"\u732b{os.fsdecode(bytes([0xE9]))}.png")]  # no formula; not in the font, not UTF-8
    for name in images:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(name)
    capsys.readouterr()
    assert main(["explain", *images, "--run", run, "--out", str(picture)]) == 0
    assert capsys.readouterr().out == f"{picture}\n"
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height > 0.5 * drawn.width
    assert "cannot write" in fails(1, "explain", *images, "--run", run, "--out", str(tmp_path / "no" / "picture.png"))
    assert "cannot write /dev/null: it is not a file" in fails(1, "explain", *images, "--run", run, "--out", "/dev/null")
    assert "File name too long" in fails(1, "explain", *images, "--run", run, "--out", "a" * 300)
    assert "is one of the images; give the picture another name" in fails(2, "explain", *images, "--run", run, "--out", images[0])
    monkeypatch.setattr("conformer.plots.MOST", 1)
    assert "2 images make too high a picture; give at most 1 at a time" in fails(1, "explain", *images, "--run", run, "--out", str(picture))
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert main(["predict", images[1], "--run", run]) == 0
    assert b"\\u732b\\udce9.png\n" in ascii_only.buffer.getvalue()


def test_explain_draws_the_answer_of_both_heads_together(
    tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    model, about = saved_network(tmp_path / "w.safetensors", tiny_network)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    images *= np.eye(3, dtype=np.uint8)[[0, 1, 2, 0, 1, 2], None, None]  # red ones, green ones and blue ones
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    drawn: list[Any] = []
    monkeypatch.setattr("conformer.plots.save_explanation", lambda *arguments: drawn.extend(arguments) or arguments[0])
    weights = ["--run", str(tmp_path / "w.safetensors")]
    assert main(["explain", *map(str, paths), *weights, "--out", str(tmp_path / "picture.png")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'picture.png'}\n"
    path, shown, names, answers, maps, shares = drawn
    batch = normalize(images, about.mean, about.std)
    cnn, transformer = predict(model, [batch])
    expected, *alone = (logits.argmax(axis=1) for logits in (cnn + transformer, cnn, transformer))
    assert all((head != expected).any() for head in alone) and len(set(expected)) > 1
    assert (path, names) == (tmp_path / "picture.png", [path.name for path in paths])
    assert answers == [about.classes[number] for number in expected]
    assert_array_equal(shown, images)
    with no_grad():
        named = model.intermediates(Tensor(batch))
    assert_allclose(maps, class_activation_maps(model, named, expected), rtol=1e-4, atol=1e-5)
    assert_allclose(shares, token_map(named, attention_rollout(model, named)), rtol=1e-4, atol=1e-6)
    assert main(["predict", *map(str, paths), *weights, "--top", "1"]) == 0
    assert [line.split()[6] for line in capsys.readouterr().out.splitlines()[2::3]] == answers


def test_the_run_whose_weights_were_written_last_is_the_newest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, written in (("a", 1000), ("b", 3000), ("c", 2000)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "last.safetensors").touch()
        os.utime(folder / "last.safetensors", (written, written))
    (tmp_path / "runs" / "begun").mkdir()
    assert cli._newest_run() == Path("runs/b")


@pytest.mark.parametrize("changes", [{"classes": CIFAR10.classes[::-1]}, {"image_size": (32, 48)}])
def test_weights_for_other_classes_or_sizes_are_not_measured(
    changes: dict[str, Any], cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    folder, weights = cifar(records=2), tmp_path / "w.safetensors"
    saved_network(weights, tiny_network, **changes)
    said = f"conformer: the weights are for other classes or images of another size than cifar10 in {folder} has"
    assert fails(1, "evaluate", str(weights), "--data-dir", str(folder)) == said
    saved_network(weights, tiny_network)
    assert main(["evaluate", str(weights), "--data-dir", str(folder)]) == 0


def test_a_run_is_measured_with_the_constants_it_was_trained_with(
    cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", data.DATASETS["cifar10"]
    with monkeypatch.context() as patch:
        patch.setitem(data.DATASETS, "cifar10", lambda *given: replace(whole(*given), mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7)))
        options = ["--config", tiny_network, "--dataset", "cifar10", "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--max-steps", "1"]
        assert main(["train", *options, "--out", str(run)]) == 0
    measured: list[Predictions] = []
    monkeypatch.setattr(cli, "evaluate", lambda *given, **more: measured.append(evaluate(*given, **more)) or measured[-1])
    for name in ("evaluate", "report"):
        assert main([name, str(run)]) == 0
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    usual = evaluate(load_weights(run)[0], (dataset := data.load("cifar10", cifar(records=8, folder="same"))).test, dataset)
    assert [predictions.loss for predictions in measured] == pytest.approx([logged["test_loss"]] * 2, rel=1e-6)
    assert usual.loss != pytest.approx(logged["test_loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["L", "RGB"])
def test_a_network_of_grey_images(kind: str, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    network = replace(named_config(tiny_network), num_classes=2, in_chans=1)
    about = About(asdict(network), "tiny", "made", "", ("cat", "dog"), (0.5,), (0.2,), (32, 32), 1, {})
    weights, image, picture = (tmp_path / name for name in ("w.safetensors", "image.png", "picture.png"))
    save_weights(weights, Conformer(**asdict(network)), about)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).convert(kind).save(image)
    assert main(["predict", str(image), "--run", str(weights)]) == 0
    assert "cat" in capsys.readouterr().out
    assert main(["explain", str(image), "--run", str(weights), "--out", str(picture)]) == 0
    with Image.open(picture) as drawn:  # the first panel has no colour
        panel = np.asarray(drawn.convert("RGB").crop((0, 0, drawn.width // 4, drawn.height)), int)
    assert np.ptp(panel, axis=2).max() == 0 < panel.std()


def test_a_network_of_other_channels_is_not_for_image_files(tiny_network: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    network = replace(named_config(tiny_network), num_classes=2, in_chans=4)
    about = About(asdict(network), "tiny", "made", "", ("cat", "dog"), (0.5,) * 4, (0.2,) * 4, (32, 32), 1, {})
    save_weights(tmp_path / "w.safetensors", Conformer(**asdict(network)), about)
    assert "takes images of 4 channels, and those of image files have 3, or 1" in fails(
        1, "predict", "cat.png", "--run", str(tmp_path / "w.safetensors")
    )


NAMES = ("cat\nand mouse", "\x1b]0;PWNED\x07dog", os.fsdecode(b"caf\xe9"), "$\\frac{$", *"efghij")
SHOWN = (r"cat\nand mouse", r"\x1b]0;PWNED\x07dog", r"caf\udce9", r"$\frac{$", *"efghij")


def test_names_that_no_terminal_shows(
    cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes that are called like files: train, evaluate, report, predict and explain."""
    from PIL import Image

    run, whole = str(tmp_path / "run"), data.DATASETS["cifar10"]
    monkeypatch.setitem(data.DATASETS, "odd$\\frac{$", lambda *given: replace(whole(*given), name="odd$\\frac{$", classes=NAMES))
    monkeypatch.setitem(cli.CHOICES, "dataset", data.DATASETS)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "image.png")
    options = ["--config", tiny_network, "--dataset", "odd$\\frac{$", "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--max-steps", "1"]
    image, out = str(tmp_path / "image.png"), str(tmp_path / "picture.png")
    assert main(["train", *options, "--out", run]) == 0
    assert (Path(run) / "report.html").exists() and (Path(run) / "curves.png").exists()
    capsys.readouterr()
    for command in (
        ["evaluate", run],
        ["predict", image, "--run", run, "--top", "10"],
        ["explain", image, "--run", run, "--out", out],
        ["report", run],
    ):
        assert main(command) == 0
        output = capsys.readouterr()
        assert not output.err and all(letter.isprintable() for letter in output.out.replace("\n", ""))
        if command[0] in ("evaluate", "predict"):
            assert all(name in output.out for name in SHOWN)


def test_names_in_what_is_said(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert fails(1, "evaluate", str(tmp_path / "a\n\x1b]0;b")).startswith(rf"conformer: cannot read {tmp_path}/a\n\x1b]0;b: No such file")


@pytest.mark.parametrize("tta", ["mirrow", None, []])
def test_an_augmentation_that_there_is_not(tta: object, cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    run, folder = tmp_path, cifar(records=2)
    saved_network(run / "last.safetensors", tiny_network)
    (run / "config.json").write_text(json.dumps({"tta": tta}))
    (run / "metrics.jsonl").write_text("")
    for command in ("evaluate", "report"):
        line = fails(1, command, str(run), "--data-dir", str(folder))
        assert line == f"conformer: config.json of the run says that tta is {tta!r}; it must be one of none, mirror"
    assert main(["evaluate", str(run), "--data-dir", str(folder), "--tta", "none"]) == 0


def test_predict_what_cannot_be_read(tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no trained network in runs: give one with --run" in fails(1, "predict", "cat.jpg")
    assert "cannot read nothing" in fails(1, "predict", "cat.jpg", "--run", "nothing")
    assert "IMAGE" in fails(2, "predict")
    assert "--top: '0' is not a whole number above 0" in fails(2, "predict", "cat.jpg", "--top", "0")


def test_report(cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]) -> None:
    run = tmp_path / "run"
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--max-steps", "1", "--out", str(run)]
    assert main([*command, "--tta", "mirror"]) == 0
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    at_the_end = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text() == at_the_end  # with mirror images, too
    (run / "report.html").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "report.html").read_text() == at_the_end
    capsys.readouterr()
    for options, said in (([], True), (["--tta", "none"], False)):  # the accuracy that the run has, if nothing else is asked for
        assert main(["evaluate", str(run), *options]) == 0
        assert (", with mirror images" in capsys.readouterr().out) is said
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    assert "cannot write" in fails(1, "report", str(run))
    assert f"there is no run in {tmp_path} (no metrics.jsonl)" in fails(1, "report", str(tmp_path))
    (run / "metrics.jsonl").write_text("hello\n")
    assert "metrics.jsonl is damaged in line 1" in fails(1, "report", str(run))


def test_info(capsys: pytest.CaptureFixture[str], fails: Callable[..., str]) -> None:
    assert main(["info"]) == 0
    assert "1,071,880 parameters" in capsys.readouterr().out
    assert main(["info", "--config", "tiny-patch16", "--image-size", "64"]) == 0
    assert "images of 64 x 64 pixels: 23,524,704 parameters" in capsys.readouterr().out
    assert "multiples of 16" in fails(2, "info", "--config", "tiny-patch16", "--image-size", "100")


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["explain"], ["report"], ["info"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: conformer" in text
    assert "None" not in text
    if command == ["train"]:
        assert "--batch-size N" in text
        assert "(default: 128)" in text
        assert "cifar-nano, cifar-micro, cifar-small" in " ".join(text.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--epoch", "3"], "there is no option --epoch; did you mean --epochs?"),
        (["train", "--qqq=3"], "there is no option --qqq=3 ("),
        (["train", "--epochs", "many"], "--epochs: invalid int value: 'many'"),
        (["train", "--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["train", "--max-steps", "-3"], "--max-steps is -3; it must be at least 1"),
        (["train", "--config", "nano"], "--config: there is no 'nano'; did you mean cifar-nano?"),
        (["train", "--device", "gpu"], "--device: there is no 'gpu'; choose from auto, cpu, cuda"),
        (["train", "--device", "cuda"], "No CUDA: "),
        (["evaluate", "run", "--device", "cuda"], "No CUDA: "),
        (["train", "--dataset", "mnist"], "--dataset: there is no 'mnist'; choose from auto, cifar10, cifar100, coupling10"),
        (["evaluate"], "RUN"),
        (["evaluate", "run", "--batch-size", "0"], "--batch-size: '0' is not a whole number above 0"),
        (["info", "--image-size", "big"], "--image-size: 'big' is not a whole number above 0"),
        (["info", "--image-size", "9" * 5000], "is too large; give a number of at most 9 digits"),
        (["train", "--time-budget", "5m", "--epochs", "3"], "--time-budget is 5m and --epochs is 3; give one of the two"),
        (["train", "--precision", "bf16", "--device", "cpu"], "--precision is bf16, which is for GPUs"),
        (["train", "--seed", "18446744073709551616"], "--seed is 18446744073709551616; it must be at most 18,446,744,073,709,551,615"),
        (["train", "--clip-norm", "inf"], "--clip-norm is inf; it must be a finite number, 0 for no limit"),
        (["train", "--out", ""], "--out: the path is empty"),
        (["evaluate", ""], "RUN: the path is empty"),
        (["explain", "cat.jpg", "--out", "x.jpg"], "--out: 'x.jpg' does not end in .png, and pictures are PNG files"),
        (["evaluate", "run", "--picture", "x.svg"], "--picture: 'x.svg' does not end in .png"),
    ],
)
def test_wrong_usage(argv: list[str], message: str, fails: Callable[..., str]) -> None:
    line = fails(2, *argv)
    assert line.startswith("conformer: ")
    assert message in line


def test_data_not_there(fails: Callable[..., str]) -> None:
    assert "cifar-10-binary.tar.gz cannot be downloaded: no connection; get cifar-10-binary.tar.gz elsewhere" in fails(
        1, "train", "--dataset", "cifar10"
    )
    assert "there is no folder or file nowhere" in fails(1, "train", "--data-dir", "nowhere")
    assert "coupling10 is generated and reads no files" in fails(1, "train", "--dataset", "coupling10", "--data-dir", ".")


def test_auto_without_cifar_says_so_first(
    tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = coupling10.generate
    monkeypatch.setattr(coupling10, "generate", lambda count, **options: whole(count // 500, **options))
    assert main(["train", "--config", tiny_network, "--out", str(tmp_path / "run"), "--batch-size", "8", "--max-steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "downloading http://127.0.0.1" in lines[0]
    assert lines[1].startswith("THIS IS NOT CIFAR-10 but the generated data set coupling10, because CIFAR-10 is not in the cache")
    assert lines[2].startswith("tiny on coupling10: 100 training and 20 test images")
    header = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert (header["dataset"], header["dataset_notice"]) == ("coupling10", lines[1])
    assert safetensors_io.load_state(tmp_path / "run" / "last.safetensors")[1]["dataset"] == "coupling10"
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "on 20 test images of coupling10 from its generator" in capsys.readouterr().out


def test_run_folder_taken_or_unwritable(
    cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar()), "--batch-size", "4", "--max-steps", "1", "--out", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.safetensors").write_bytes(b"precious")
    assert "already holds a run (last.safetensors); choose another folder with --out" in fails(1, *command)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == b"precious"

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert fails(1, *command[:-1], str(tmp_path / "locked")) == f"conformer: {tmp_path / 'locked'}: Permission denied"


def test_full_disk(cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *arguments: object) -> None:
        raise OSError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(safetensors_io, "save_state", full)
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar()), "--batch-size", "4", "--max-steps", "1", "--out", str(tmp_path / "run")]
    line = fails(1, *command)
    assert f"checkpoint.safetensors: No space left on device; nothing was saved yet, go on with: {cli._program()} train --resume" in line


def test_ctrl_c(cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Learner.train_step

    def interrupted(self: Learner, batch: Batch) -> tuple[float, Accuracies]:
        if self.step == 6:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Learner, "train_step", interrupted)
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--epochs", "2"]
    line = fails(130, *command, "--out", str(tmp_path / "run"))
    assert f"stopped at step 6 of 10; step 5 is saved, go on with: {cli._program()} train --resume {quoted(tmp_path / 'run')}" in line
    assert safetensors_io.load_state(tmp_path / "run" / "last.safetensors")[1]["step"] == "5"


@pytest.mark.parametrize("step", [3, 7])
@pytest.mark.parametrize("stopped", [True, False])
def test_a_checkpoint_that_is_gone_is_not_promised(
    stopped: bool, step: int, cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was moved, and another run has its name by now."""
    original, run = Learner.train_step, tmp_path / "run"

    def moved(self: Learner, batch: Batch) -> tuple[float, Accuracies]:
        if self.step == step:
            run.rename(tmp_path / "moved")
            run.mkdir()
            for name in ("config.json", "metrics.jsonl", "checkpoint.safetensors"):
                shutil.copy(tmp_path / "moved" / name, run)
            if stopped:
                raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Learner, "train_step", moved)
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--epochs", "2", "--out", str(run)]
    line = fails(130 if stopped else 1, *command)
    why = f"stopped at step {step} of 10" if stopped else f"{run} is no longer the folder that this run began in: it was moved, removed or emptied"
    way_on = f"if the folder was moved, go on in its new place with: {cli._program()} train --resume FOLDER"
    assert line == f"conformer: {why}; what was saved is not there now; {way_on}"
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint.safetensors", "config.json", "metrics.jsonl"]


def test_weights_that_cannot_be_used(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "cannot read" in fails(1, "evaluate", str(tmp_path / "nothing"))
    assert "last.safetensors" in fails(1, "evaluate", str(tmp_path))
    (tmp_path / "text.safetensors").write_text("hello")
    assert "is not a safetensors file" in fails(1, "evaluate", str(tmp_path / "text.safetensors"))
    safetensors_io.save_state(tmp_path / "other.safetensors", {"weight": np.zeros(2)})
    assert "does not say what it is for (no 'network' in its metadata)" in fails(1, "evaluate", str(tmp_path / "other.safetensors"))
    entries = {field.name: "[]" for field in fields(About)} | {"network": '{"wings": 2}'}
    safetensors_io.save_state(tmp_path / "new.safetensors", {"weight": np.zeros(2)}, entries)
    assert "is for a network that this version cannot build" in fails(1, "evaluate", str(tmp_path / "new.safetensors"))
    assert "/dev/null is neither a file nor a folder" in fails(1, "evaluate", "/dev/null")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"classes": ["cat"]}, "it has 1 names for 2 classes"),
        ({"classes": ["cat", 7]}, "7 is not the name of a class"),
        ({"mean": [0.5]}, "mean is [0.5], which does not normalise images of 3 channels"),
        ({"std": [0.2, 0, 0.2]}, "std is [0.2, 0, 0.2], which does not normalise"),
        ({"std": [0.2, "b", 0.2]}, "which does not normalise"),
        ({"image_size": [32]}, "image_size is [32], which is not a height and a width"),
        ({"image_size": [33, 32]}, "images are 33 x 32 pixels, but"),
        ({"step": "x"}, "step is 'x', which is not a whole number"),
        ({}, "it has 1 tensors for a network of 3 blocks"),
    ],
)
def test_weights_that_were_changed(changed: dict[str, Any], said: str, tiny_network: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    network = asdict(replace(named_config(tiny_network), num_classes=2))
    about = About(network, "tiny", "cifar10", "", ("cat", "dog"), (0.5,) * 3, (0.2,) * 3, (32, 32), 1, {})
    entries = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (asdict(about) | changed).items()}
    entries |= {name: json.dumps(value) for name, value in changed.items()}
    safetensors_io.save_state(tmp_path / "w.safetensors", {"weight": np.zeros(2)}, entries)
    line = fails(1, "evaluate", str(tmp_path / "w.safetensors"))
    assert line.startswith(f"conformer: {tmp_path / 'w.safetensors'} is not as `conformer train` wrote it (") and said in line


def test_pins_of_openblas_are_mentioned(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    line = fails(0, "info")
    assert "OPENBLAS_CORETYPE=Haswell may halve NumPy's speed; start with `env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE" in line


def test_live_display() -> None:
    from rich.console import Console

    screen = io.StringIO()
    display = LiveDisplay(Console(file=screen, force_terminal=True, width=80, color_system=None), rate=1e9)
    progress = Progress(1, 4, 0.5, 2.0, Accuracies(0.5, 0.25, 0.525), None, 1e-3, 640.0, 75.0)
    display.message("starting [1/2]\x1b[2J")
    display.progress(progress)
    display.progress(progress._replace(step=2, test=Accuracies(0.7, 0.6, 0.8)))
    display.message("between")
    display.close()
    text = screen.getvalue()
    assert "starting [1/2]\\x1b[2J\n" in text  # a terminal obeys nothing that a message says
    for figure in ("step 1/4", "epoch 0.50", "0:01:15 left", "loss 2.000", "learning rate 0.001", "640 images/s", "25.0 %", "52.5 %"):
        assert figure in text[: text.index("step 2/4")]
    assert text.index("step 1/4") < text.index("\x1b[2K", text.index("step 1/4")) < text.index("step 2/4")  # the lines are erased and written again
    assert "80.0 %" not in text[: text.index("step 2/4")]
    assert "80.0 %" in text[text.index("step 2/4") :]
    assert text.rindex("between\n") < text.rindex("\x1b[2K")


def test_no_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert type(cli._display()) is Display
    assert 'needs rich (in the project\'s folder, pip install -e ".[app]")' in capsys.readouterr().err


def test_the_package_needs_no_extras() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(["rich", "matplotlib", "PIL", "pooch", "torch", "cupy", "scipy"]))
sys.argv = ["conformer", "info"]
import runpy
runpy.run_module("conformer", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], env={**os.environ, "MINIGRAD_THREADS": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert "1,071,880 parameters" in done.stdout


def test_resume(cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(tmp_path / "run")
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--epochs", "2"]
    original = Learner.train_step

    def terminated(self: Learner, batch: Batch) -> tuple[float, Accuracies]:
        if self.step == 6:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", terminated)
        line = fails(143, *command, "--out", run)
    assert line == f"conformer: stopped at step 7 of 10; step 7 is saved, go on with: {cli._program()} train --resume {quoted(run)}"
    assert "already holds a run (config.json); choose another folder with --out, or go on with it with --resume" in fails(1, *command, "--out", run)
    assert "--resume goes on in the folder of the run itself: leave --out out" in fails(2, "train", "--resume", run, "--out", "other")
    assert "was started with --epochs 2, not with 3" in fails(1, "train", "--resume", run, "--epochs", "3")
    assert "there is no run to go on with in nowhere" in fails(1, "train", "--resume", "nowhere")
    assert "--log-every is 0; it must be at least 1" in fails(2, "train", "--resume", run, "--log-every", "0")
    assert "--time-budget 'soon' is not a time" in fails(2, "train", "--time-budget", "soon")
    assert main(["train", "--resume", run]) == 0
    assert safetensors_io.load_state(tmp_path / "run" / "last.safetensors")[1]["step"] == "10"
    assert (tmp_path / "run" / "curves.png").exists()


def test_resume_a_finished_run(
    cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, folder = str(tmp_path / "run"), cifar()
    command = ["train", "--config", tiny_network, "--data-dir", str(folder), "--batch-size", "12", "--accumulate", "3", "--max-steps", "1"]
    assert main([*command, "--out", run]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", run, "--accumulate", "3"]) == 0  # which does not divide the default of --batch-size
    assert f"the run in {run} is finished: 1 steps, test accuracy" in capsys.readouterr().out

    weights = tmp_path / "run" / "last.safetensors"
    whole, (state, about) = weights.read_bytes(), safetensors_io.load_state(weights)
    for content in (None, whole[:1000], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.unlink()
        if content is not None:
            weights.write_bytes(content)
        assert "last.safetensors" in (line := fails(0, "train", "--resume", run)) and line.endswith("; it is written anew from the checkpoint")
        mended, about_it = safetensors_io.load_state(weights)
        assert about_it == about
        assert {name: array.tobytes() for name, array in mended.items()} == {name: array.tobytes() for name, array in state.items()}
    weights.unlink()
    weights.mkdir()
    assert main(["train", "--resume", run]) == 1
    assert "cannot write" in capsys.readouterr().err
    weights.rmdir()
    weights.write_bytes(whole)

    folder.rename(tmp_path / "moved")
    for name in ("evaluate", "report"):
        assert main([name, run]) == 1
        assert f"the run's data is not in {folder} any more, and CIFAR-10 is not in the cache" in capsys.readouterr().err
        monkeypatch.setenv("CONFORMER_DATA", str(tmp_path / "moved"))
        assert main([name, run]) == 0
        monkeypatch.delenv("CONFORMER_DATA")
        capsys.readouterr()
    assert main(["train", "--resume", run, "--data-dir", str(tmp_path / "moved")]) == 0
    for again in (["train", "--resume", run], ["evaluate", run], ["report", run]):
        assert main(again) == 0


def test_how_the_program_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my programs"
    folder.mkdir()
    for name in ("conformer", "python3"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python3"))
    for path, script, module in [("", f"'{folder}/conformer'", f"'{folder}/python3' -m conformer"), (folder, "conformer", "python3 -m conformer")]:
        monkeypatch.setenv("PATH", str(path))
        monkeypatch.setattr(sys, "argv", [str(folder / "conformer")])
        assert cli._program() == script
        monkeypatch.setattr(sys, "argv", ["/somewhere/conformer/__main__.py"])
        assert cli._program() == module


def test_output_that_cannot_be_written() -> None:
    """Python would say so itself, with a traceback and the status 120, when it ends."""

    def start(argv: str, stdout: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "conformer", *argv.split()]
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    reader, no_reader = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    sentence = "conformer: the output cannot be written: No space left on device\n"
    cases = [("info", no_reader, ""), ("train --help", no_reader, ""), ("info", full, sentence), ("train --help", full, sentence)]
    started = [start(argv, stdout) for argv, stdout, _ in cases]
    os.close(no_reader)
    os.close(full)
    for process, (argv, _, said) in zip(started, cases, strict=True):
        assert (process.communicate()[1], process.returncode) == (said, 1), argv


@pytest.mark.parametrize("command", ["report", "explain"])
@pytest.mark.parametrize(("reason", "said"), [(errno.ENOSPC, "the output cannot be written: No space left on device\n"), (errno.EPIPE, "")])
def test_the_path_of_what_was_made_cannot_be_written(
    reason: int, said: str, command: str, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where output is not buffered, print itself fails."""
    from PIL import Image

    class Lost(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(reason, os.strerror(reason))

    saved_network(tmp_path / "w.safetensors", tiny_network)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "image.png")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"config": "tiny", "dataset": "made", "seed": 0, "parameters": 1}\n')
    explain = ["explain", str(tmp_path / "image.png"), "--run", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out.png")]
    monkeypatch.setattr(sys, "stdout", Lost())
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # pytest's own streams stay
    assert main(explain if command == "explain" else ["report", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (f"conformer: {said}" if said else "")
    assert (tmp_path / ("out.png" if command == "explain" else "report.html")).exists()


def test_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `>&-` there is no sys.stdout."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["info"]) == 0
    assert type(cli._display()) is Display


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("MINIGRAD_THREADS is 'two'; give a whole number"), 2, "MINIGRAD_THREADS is 'two'; give a whole number"),
        (RuntimeError("can't start new thread"), 1, "can't start new thread; set MINIGRAD_THREADS to a smaller number"),
        (MemoryError(), 1, "there is not enough memory; free some, or take fewer images at a time"),
        (MemoryError("8 GiB"), 1, "there is not enough memory (8 GiB); free some, or take fewer images at a time"),
    ],
)
def test_what_the_machine_does_not_have(error: Exception, status: int, said: str, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setattr(cli.cpu, "thread_count", fail)
    assert fails(status, "info") == f"conformer: {said}"


@pytest.mark.parametrize("command", ["evaluate", "report", "train --resume", "predict cat.jpg --run", "explain cat.jpg --run"])
def test_a_name_that_is_too_long(command: str, fails: Callable[..., str]) -> None:
    assert "File name too long" in fails(1, *command.split(), "a" * 300)


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "forgotten.html")

    monkeypatch.setattr(cli, "describe", fail)
    with pytest.raises(FileNotFoundError, match="forgotten"):
        main(["info"])
