"""The commands that use what was trained, called in this process: what they print and draw, and one sentence for what they cannot use."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from conformer import Conformer, cli, data, train_commands, use_commands
from conformer.augment import normalize
from conformer.cifar import CIFAR10
from conformer.cli import main
from conformer.config import named_config
from conformer.evaluate import HEADS, Predictions, evaluate, predict
from conformer.explain import attention_rollout, class_activation_maps, token_map
from conformer.image_files import read_image
from conformer.mistakes import Mistake
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


def test_evaluate_prints_what_training_measured_and_every_class(
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
        predictions = evaluate(model, dataset.test, dataset)
        for name, key in [("CNN head", "cnn"), ("transformer head", "transformer"), ("sum of both", "sum")]:
            rest = rf"{name} .* % +{predictions.cross_entropies()[key]:.3f} +{100 * predictions.calibration_errors()[key]:.1f} %\n"
            assert re.search(rest, text)
        assert f"loss, as training shows it of test images: {predictions.loss:.3f}, the mean of both heads' cross entropies" in text
        assert "calibration error: how far the percentages that `predict` prints are from shares of right answers, on average" in text
        shares = predictions.class_accuracies()
        for number, name in enumerate(dataset.classes):
            row = re.search(rf"\n{name} +([\d.]+|nan) +([\d.]+|nan) +([\d.]+|nan)\n", text)
            assert row and row.groups() == tuple(f"{100 * shares[head][number]:.1f}" for head in HEADS)
        assert f"which classes are taken for which: {run / 'confusion.png'}" in text
        assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", str(run), "--picture", str(tmp_path / "else.png")]) == 0  # the data is where the run had it from
    assert (tmp_path / "else.png").exists()
    assert main(["evaluate", str(run), "--tta", "mirror"]) == 0
    assert "calibration error: how far the percentages of these answers are from shares" in capsys.readouterr().out
    monkeypatch.setenv("CONFORMER_DATA", "nowhere")
    assert "the picture is not drawn: cannot write" in fails(1, "evaluate", str(run), "--picture", str(tmp_path / "no" / "else.png"))
    (run / "confusion.png").unlink()
    (run / "confusion.png").mkdir()
    said = f"conformer: the picture is not drawn: cannot write {run / 'confusion.png'}: it is not a file"
    assert fails(0, "evaluate", str(run)) == said  # nobody asked for it, and the figures are there


def test_predict_prints_the_likeliest_classes_of_each_head(
    cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert rest[10:] == ["(sum of both: the softmax of both heads' added logits, so where the heads agree it is surer than either)"]


def test_on_windows_a_pattern_stands_for_its_images(tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no shell replaces it; elsewhere it is the name of a file."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    saved_network(tmp_path / "network.safetensors", tiny_network)
    for name in ("a[2].png", "a[1].png", "b.png"):
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(name)

    def loaded(*images: str) -> list[str]:
        options = cli._parser().parse_args(["predict", "--run", "network.safetensors", *images])
        assert len(use_commands._load_images(options)[2]) == len(options.images)
        return [str(image) for image in options.images]

    with pytest.raises(Mistake, match=r"a\[\?\].png: No such file"):
        loaded("b.png", "a[?].png")
    monkeypatch.setattr(use_commands, "os", SimpleNamespace(name="nt"))
    assert loaded("b.png", "a[?].png", "a[1].png") == ["b.png", "a[1].png", "a[2].png", "a[1].png"]
    assert loaded("*.png") == ["a[1].png", "a[2].png", "b.png"]
    with pytest.raises(Mistake, match=r"c\*.png: No such file"):
        loaded("b.png", "c*.png")


def test_explain_draws_a_picture_or_says_why_not(
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
    assert [line.split()[6] for line in capsys.readouterr().out.splitlines()[2:18:3]] == answers


def test_the_run_whose_weights_were_written_last_is_the_newest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, written in (("a", 1000), ("b", 3000), ("c", 2000)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "last.safetensors").touch()
        os.utime(folder / "last.safetensors", (written, written))
    (tmp_path / "runs" / "begun").mkdir()
    assert use_commands._newest_run() == Path("runs/b")


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
    cifar: Cifar, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, whole = tmp_path / "run", data.DATASETS["cifar10"]
    with monkeypatch.context() as patch:
        patch.setitem(data.DATASETS, "cifar10", lambda *given: replace(whole(*given), mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7)))
        patch.setattr(train_commands, "_draw_curves", lambda run: False)
        options = ["--config", tiny_network, "--dataset", "cifar10", "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--max-steps", "1"]
        assert main(["train", *options, "--out", str(run)]) == 0
    measured: list[Predictions] = []
    monkeypatch.setattr(use_commands, "evaluate", lambda *given, **more: measured.append(evaluate(*given, **more)) or measured[-1])
    for name in ("evaluate", "report"):
        assert main([name, str(run)]) == 0
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    usual = evaluate(load_weights(run)[0], (dataset := data.load("cifar10", cifar(records=8, folder="same"))).test, dataset)
    assert [predictions.loss for predictions in measured] == pytest.approx([logged["test_loss"]] * 2, rel=1e-6)
    assert usual.loss != pytest.approx(logged["test_loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["L", "RGB"])
def test_a_network_of_grey_images_takes_grey_and_coloured_files(
    kind: str, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_names_that_no_terminal_shows_are_escaped_by_every_command(
    cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes that are called like files, and folders: train, evaluate, report, predict and explain."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    run, whole = str(tmp_path / "runs" / "run\n\x1b]0;PWNED\x07"), data.DATASETS["cifar10"]
    monkeypatch.setitem(data.DATASETS, "odd$\\frac{$", lambda *given: replace(whole(*given), name="odd$\\frac{$", classes=NAMES))
    monkeypatch.setitem(cli.CHOICES, "dataset", data.DATASETS)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "image\x1b.png")
    options = ["--config", tiny_network, "--dataset", "odd$\\frac{$", "--batch-size", "8", "--max-steps", "1"]
    options += ["--data-dir", str(cifar(records=8).rename(tmp_path / "data\x1b"))]
    image, out = str(tmp_path / "image\x1b.png"), str(tmp_path / "picture\x1b.png")
    for command in (
        ["train", *options, "--out", run],
        ["train", "--resume", run],
        ["evaluate", run],
        ["predict", image, "--top", "10"],
        ["explain", image, "--run", run, "--out", out],
        ["report", run],
    ):
        assert main(command) == 0
        output = capsys.readouterr()
        assert not output.err and all(letter.isprintable() for letter in output.out.replace("\n", ""))
        if command[0] in ("evaluate", "predict"):
            assert all(name in output.out for name in SHOWN)
    assert (Path(run) / "report.html").exists() and (Path(run) / "curves.png").exists()
    assert main(["explain", image, "--out", image]) == 2 and r"image\x1b.png is one of the images" in capsys.readouterr().err


def test_names_are_escaped_in_what_is_said(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert fails(1, "evaluate", str(tmp_path / "a\n\x1b]0;b")).startswith(rf"conformer: cannot read {tmp_path}/a\n\x1b]0;b: No such file")


@pytest.mark.parametrize("tta", ["mirrow", None, []])
def test_an_augmentation_that_there_is_not_is_said(tta: object, cifar: Cifar, tiny_network: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    run, folder = tmp_path, cifar(records=2)
    saved_network(run / "last.safetensors", tiny_network)
    (run / "config.json").write_text(json.dumps({"tta": tta}))
    (run / "metrics.jsonl").write_text("")
    for command in ("evaluate", "report"):
        line = fails(1, command, str(run), "--data-dir", str(folder))
        assert line == f"conformer: config.json of the run says that tta is {tta!r}; it must be one of none, mirror"
    assert main(["evaluate", str(run), "--data-dir", str(folder), "--tta", "none"]) == 0


def test_predict_says_what_is_missing(tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no trained network in runs: give one with --run" in fails(1, "predict", "cat.jpg")
    assert "cannot read nothing" in fails(1, "predict", "cat.jpg", "--run", "nothing")
    assert "IMAGE" in fails(2, "predict")
    assert "--top: '0' is not a whole number above 0" in fails(2, "predict", "cat.jpg", "--top", "0")


def test_report_writes_the_page_of_the_end_of_training_again(
    cifar: Cifar, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    command = ["train", "--config", tiny_network, "--data-dir", str(cifar(records=8)), "--batch-size", "8", "--max-steps", "1", "--out", str(run)]
    assert main([*command, "--tta", "mirror", "--hold-out", "16"]) == 0
    assert f"report: {run / 'report.html'}" in (shown := capsys.readouterr().out) and "test accuracy" not in shown
    at_the_end = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text() == at_the_end  # with mirror images, too, and of those that were held out
    assert "held-out image " in at_the_end and "test image " not in at_the_end
    other = cifar(records=8, folder="other", seed=1)
    said = f"conformer: the run in {run} was measured by other images of cifar10 than those that are in {other} now; give the data it was"
    assert fails(1, "report", str(run), "--data-dir", str(other)).startswith(said)
    assert (run / "report.html").read_text() == at_the_end
    (run / "report.html").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "report.html").read_text() == at_the_end
    assert f"the run in {run} is finished: 1 steps, held-out accuracy " in capsys.readouterr().out
    for options, said in (([], True), (["--tta", "none"], False)):  # the accuracy that the run has, if nothing else is asked for
        assert main(["evaluate", str(run), *options]) == 0
        assert (", with mirror images" in (shown := capsys.readouterr().out)) is said
        dataset, tta = data.load("cifar10", Path(command[4])), "mirror" if said else "none"
        share = evaluate(load_weights(run)[0], dataset.test, dataset, tta=tta).accuracies.sum
        assert "tiny after 1 steps, on 8 test images of cifar10 from " in shown and f"\n  sum of both       {100 * share:6.2f} % " in shown
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    assert "cannot write" in fails(1, "report", str(run))
    assert f"there is no run in {tmp_path} (no metrics.jsonl)" in fails(1, "report", str(tmp_path))
    (run / "metrics.jsonl").write_text("hello\n")
    assert "metrics.jsonl is damaged in line 1" in fails(1, "report", str(run))


def test_info_prints_parameters_or_why_not(capsys: pytest.CaptureFixture[str], fails: Callable[..., str]) -> None:
    assert main(["info"]) == 0
    assert "1,071,880 parameters" in capsys.readouterr().out
    assert main(["info", "--config", "tiny-patch16", "--image-size", "64"]) == 0
    assert "images of 64 x 64 pixels: 23,524,704 parameters" in capsys.readouterr().out
    assert "multiples of 16" in fails(2, "info", "--config", "tiny-patch16", "--image-size", "100")


def test_weights_that_cannot_be_used_are_said(tmp_path: Path, fails: Callable[..., str]) -> None:
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
    (tmp_path / "conformer.pth").write_bytes(b"PK")
    said = f"{tmp_path / 'conformer.pth'} is a file of PyTorch's, by its name; save its weights with their configuration (docs/own_data.md)"
    assert fails(1, "evaluate", str(tmp_path / "conformer.pth")) == f"conformer: {said}"


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
def test_weights_that_were_changed_are_refused(
    changed: dict[str, Any], said: str, tiny_network: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    network = asdict(replace(named_config(tiny_network), num_classes=2))
    about = About(network, "tiny", "cifar10", "", ("cat", "dog"), (0.5,) * 3, (0.2,) * 3, (32, 32), 1, {})
    entries = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (asdict(about) | changed).items()}
    entries |= {name: json.dumps(value) for name, value in changed.items()}
    safetensors_io.save_state(tmp_path / "w.safetensors", {"weight": np.zeros(2)}, entries)
    line = fails(1, "evaluate", str(tmp_path / "w.safetensors"))
    assert line.startswith(f"conformer: {tmp_path / 'w.safetensors'} is not as `conformer train` wrote it (") and said in line


@pytest.mark.parametrize("command", ["report", "explain"])
@pytest.mark.parametrize(("reason", "said"), [(errno.ENOSPC, "the output cannot be written: No space left on device\n"), (errno.EPIPE, "")])
def test_what_was_made_is_there_though_its_path_cannot_be_written(
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
