"""The report page and the log it is made from: complete, well-formed, in need of no other file, whatever a run got to."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from conformer.data import Dataset, Split
from conformer.evaluate import Predictions
from conformer.options import TrainConfig, plain
from conformer.report import command, write_report
from conformer.run_log import read_log

HEADER = {"config": "cifar-nano", "dataset": "cifar10", "dataset_notice": "", "seed": 3, "parameters": 1071880, "steps": 40, "started": "today"}
TRAINING = {"step": 20, "epoch": 0.5, "loss": 2.0, "train_accuracy": {}, "learning_rate": 1e-3, "images_per_second": 640.0}
TEST = {"step": 40, "epoch": 1.0, "test_accuracy": {"cnn": 0.25, "transformer": 0.5, "sum": 0.75}, "test_loss": 1.5, "seconds": 4000.0}


class Page(HTMLParser):
    """Text and addresses of a page; fails where elements are not closed in order."""

    EMPTY = {"meta", "link", "img", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.alternatives: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        values = dict(attrs)
        self.addresses += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.alternatives += [values["alt"]] if tag == "img" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def folder(run: Path, *lines: dict, config: TrainConfig | None = None) -> Path:
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.json").write_text(json.dumps(plain(config or TrainConfig(lr=0.5)) | {"steps": 40}))
    return run


def dataset(count: int, classes: int) -> tuple[Dataset, Predictions]:
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (count, 32, 32, 3), np.uint8), random.integers(0, classes, count))
    names = tuple(f"class <{number}>" for number in range(classes))
    cnn, transformer = random.normal(0, 2, (2, count, classes))
    return Dataset("made", names, (0.5,) * 3, (0.2,) * 3, split, split, "here"), Predictions(cnn, transformer, split.labels)


def test_a_page_that_needs_no_other_file(tmp_path: Path):
    run = folder(tmp_path / "run", HEADER, TRAINING, TEST)
    page = Page(write_report(run, *dataset(40, 5)).read_text())
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    text = page.text
    for words in ("cifar-nano on cifar10, seed 3", "conformer train --lr 0.5", "1,071,880 parameters", "67 min training time", "class <4>", "lr 0.5"):
        assert words in text
    for title in ("Curves", "Classes", "Confusion matrix", "Most confident mistakes", "Most confused", "Most confident", "How it was trained"):
        assert title in page.words
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(ids) == len(set(ids)) > 100 and set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(ids)
    named = ("Accuracies by step", "Losses by step", "Learning rate by step", "Confusion matrix")
    assert re.findall(r'<svg role="img" aria-label="([^"]+)"', page.source) == list(named)
    assert len(page.alternatives) == 36 - 12 + min(12, round(40 * dataset(40, 5)[1].accuracies.sum))
    assert not list(run.glob(".*"))


@pytest.mark.parametrize(("epoch", "text"), [(1.0, "epoch 1"), (0.5, "epoch 0.5"), (1234.0, "epoch 1,234"), (20.0, "epoch 20")])
def test_the_best_epoch_is_not_rounded(epoch: float, text: str, tmp_path: Path):
    page = Page(write_report(folder(tmp_path / "run", HEADER, TRAINING, TEST | {"epoch": epoch}), *dataset(40, 5)).read_text())
    assert f"best, after {text}" in page.words


def test_the_images_are_the_right_ones(tmp_path: Path):
    """Seven images of two classes; logits of the sum are twice the margin."""
    margins = np.array([5.0, -4.0, 0.1, -0.2, 3.0, -6.0, 2.0])  # above 0: taken for class 1
    labels = np.array([1, 0, 1, 1, 0, 1, 1])  # numbers 3, 4 and 5 are wrong
    images, _ = dataset(7, 2)
    split = Split(images.test.images, labels)
    logits = np.stack([np.zeros(7), margins], axis=1)
    made = Dataset("made", ("a", "b"), images.mean, images.std, split, split, "here")
    page = Page(write_report(folder(tmp_path / "run", HEADER, TEST), made, Predictions(logits, logits, labels)).read_text())
    numbers = [int(text.split(",")[0].removeprefix("test image ")) for text in page.alternatives]
    assert numbers[:3] == [5, 4, 3]  # mistakes, the surest first
    assert numbers[3:10] == [2, 3, 6, 4, 1, 0, 5]  # the least sure first
    assert numbers[10:] == [0, 1, 6, 2]  # right, the surest first
    assert "b taken for a 100\N{NO-BREAK SPACE}%" in page.text.replace("\n", " ") or "b taken for a 100 %" in page.text


@pytest.mark.parametrize("right", [True, False])
def test_nothing_wrong_and_nothing_right(right: bool, tmp_path: Path):
    images, predictions = dataset(6, 3)
    logits = np.eye(3)[predictions.labels if right else (predictions.labels + 1) % 3]
    text = Page(write_report(folder(tmp_path / "run", HEADER, TEST), images, Predictions(logits, logits, predictions.labels)).read_text()).text
    assert ("There are no mistakes." in text) is ("No image is taken for another class." in text) is right
    assert ("No image is right." in text) is not right


def test_a_hundred_classes(tmp_path: Path):
    page = Page(write_report(folder(tmp_path / "run", HEADER, TRAINING, TEST), *dataset(200, 100)).read_text())
    assert "all 100 classes" in page.text
    assert "class <99>" in page.text


def test_runs_that_have_not_ended(tmp_path: Path):
    text = Page(write_report(folder(tmp_path / "begun", HEADER)).read_text()).text
    assert "Nothing has been measured yet." in text
    assert "0 of 40 steps" in text
    text = Page(write_report(folder(tmp_path / "run", HEADER, TRAINING)).read_text()).text
    assert "20 of 40 steps" in text
    assert "Classes" not in text


def test_another_data_set_than_asked_for_is_said_loudly(tmp_path: Path):
    run = folder(tmp_path / "run", HEADER | {"dataset_notice": "THIS IS NOT CIFAR-10 <but> another"}, TEST)
    assert '<p class="notice">THIS IS NOT CIFAR-10 &lt;but&gt; another</p>' in write_report(run).read_text()


def test_the_command_has_what_is_not_the_default():
    assert command(plain(TrainConfig())) == "conformer train"
    config = plain(TrainConfig(epochs=3, dataset="cifar100", out=Path("a b"))) | {"steps": 7}
    assert command(config) == "conformer train --dataset cifar100 --epochs 3"


def test_a_last_line_half_written_is_left_out(tmp_path: Path):
    run = folder(tmp_path / "run", HEADER, TRAINING, TEST)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "ep')
    log = read_log(run)
    assert (log.title, log.training, log.tests) == ("cifar-nano on cifar10, seed 3", [TRAINING], [TEST])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "metrics.jsonl is empty"),
        ("[1]\n", r"metrics.jsonl is damaged in line 1 \(it is not what `conformer train` writes there\)"),
        ('{"wings": 2}\n', "damaged in line 1"),
        (json.dumps(HEADER) + "\nhello\n", "damaged in line 2"),
        (json.dumps(HEADER) + "\nhello\n" + json.dumps(TEST) + "\n", "damaged in line 2"),
    ],
)
def test_damaged_logs(text: str, message: str, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_log(tmp_path)


def test_a_damaged_config(tmp_path: Path):
    run = folder(tmp_path / "run", HEADER, TEST)
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        write_report(run)
    assert not (run / "report.html").exists()
