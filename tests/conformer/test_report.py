"""The report page: complete, well-formed, in need of no other file, whatever a run got to. The log it is made from: `test_run_log.py`."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from conformer import plots
from conformer.data import Dataset, Split
from conformer.evaluate import Predictions
from conformer.options import TrainConfig, plain
from conformer.report import command, write_report

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

    def section(self, title: str) -> str:
        """The source of one section."""
        (found,) = re.findall(rf"<section><h2>{title}</h2>(.*?)</section>", self.source, re.DOTALL)
        return found

    def table(self, title: str) -> list[list[str]]:
        """The first table of a section, its head first: what is in the cells, as it is written."""
        found = self.section(title).partition("<table>")[2].partition("</table>")[0]
        return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", found)]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No curves and no matrix, which take most of the time of a page, for tests of other parts of it."""
    monkeypatch.setattr(plots, "svg", lambda *_: "")


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
    train = Split(random.integers(0, 256, split.images.shape, np.uint8), random.integers(0, classes, count))
    return Dataset("made", names, (0.5,) * 3, (0.2,) * 3, train, split, "here"), Predictions((cnn, transformer), split.labels)


def test_a_page_that_needs_no_other_file(tmp_path: Path):
    run = folder(tmp_path / "run", HEADER, TRAINING, TEST)
    page = Page(write_report(run, *dataset(40, 5)).read_text())
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    text = page.text
    how = "conformer train --dataset cifar10 --lr 0.5"
    for words in ("cifar-nano on cifar10, seed 3", how, "1,071,880 parameters", "67 min training time", "class <4>", "lr 0.5"):
        assert words in text
    for title in ("Curves", "Classes", "Confusion matrix", "Most confident mistakes", "Most confused", "Most confident", "How it was trained"):
        assert title in page.words
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    assert len(ids) == len(set(ids)) > 100 and set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(ids)
    named = ("Accuracies by epoch", "Losses by epoch", "Learning rate by epoch", "Confusion matrix")
    assert re.findall(r'<svg role="img" aria-label="([^"]+)"', page.source) == list(named)
    assert len(page.alternatives) == 36 - 12 + min(12, round(40 * dataset(40, 5)[1].accuracies.sum))
    assert not list(run.glob(".*"))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("epoch", "text"),
    [(1.0, "epoch 1"), (0.5, "step 40"), (0.004, "step 40"), (1.5, "epoch 1.5"), (1234.0, "epoch 1,234"), (20.0, "epoch 20")],
)
def test_the_best_epoch_is_not_rounded_and_below_one_it_is_a_step(epoch: float, text: str, tmp_path: Path):
    page = Page(write_report(folder(tmp_path / "run", HEADER, TRAINING, TEST | {"epoch": epoch}), *dataset(40, 5)).read_text())
    assert f"best, after {text}" in page.words


@pytest.mark.usefixtures("undrawn")
def test_the_images_are_the_right_ones(tmp_path: Path):
    """Seven images of two classes; logits of the sum are twice the margin."""
    margins = np.array([5.0, -4.0, 0.1, -0.2, 3.0, -6.0, 2.0])  # above 0: taken for class 1
    labels = np.array([1, 0, 1, 1, 0, 1, 1])  # numbers 3, 4 and 5 are wrong
    images, _ = dataset(7, 2)
    split = Split(images.test.images, labels)
    logits = np.stack([np.zeros(7), margins], axis=1)
    made = Dataset("made", ("a", "b"), images.mean, images.std, images.train, split, "here")
    page = Page(write_report(folder(tmp_path / "run", HEADER, TEST), made, Predictions((logits, logits), labels)).read_text())
    numbers = [int(text.split(",")[0].removeprefix("test image ")) for text in page.alternatives]
    assert numbers[:3] == [5, 4, 3]  # mistakes, the surest first
    assert numbers[3:10] == [2, 3, 6, 4, 1, 0, 5]  # the least sure first
    assert numbers[10:] == [0, 1, 6, 2]  # right, the surest first
    assert "b taken for a 100\N{NO-BREAK SPACE}%" in page.text.replace("\n", " ") or "b taken for a 100 %" in page.text
    for number, source in zip(numbers, re.findall(r'<img src="data:image/png;base64,([^"]+)"', page.source), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(source))) as image:
            assert_array_equal(np.asarray(image), split.images[number])
    captions = dict(zip(numbers, re.findall(r"<figcaption><b>(.*?)</b><br>taken for (.*?)</figcaption>", page.source), strict=True))
    space = "\N{NO-BREAK SPACE}"
    assert captions[2] == ("b", f"b 55{space}% or a 45{space}%")
    assert captions[3] == ("b", f"a 60{space}% or b 40{space}%")
    assert captions[4] == ("a", f"b 100{space}%")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("heads", "of"), [(2, "the sum of both heads' logits; where the heads agree,"), (1, "the logits. ")])
def test_what_the_percentages_are_is_said_and_how_far_off(heads: int, of: str, tmp_path: Path):
    made, answered = dataset(40, 5)
    answered = Predictions(answered.heads[:heads], answered.labels)
    section = Page(write_report(folder(tmp_path / "run", HEADER), made, answered).read_text()).section("Most confident mistakes")
    assert f"Percentages are the softmax of {of}" in section
    assert f"On average they are {100 * answered.calibration_errors()['sum']:.1f} points away from the share of right answers" in section


def counted(*pairs: tuple[int, int, int]) -> tuple[Dataset, Predictions]:
    """Images of five classes: `(shows, taken for, how many)`. Alone, the CNN head says the next class, the transformer head the one after."""
    labels, answers = (np.repeat([pair[place] for pair in pairs], [pair[2] for pair in pairs]) for place in (0, 1))
    made, _ = dataset(len(labels), 5)
    cnn, transformer = (2 * np.eye(5)[answers] + 3 * np.eye(5)[(answers + further) % 5] for further in (1, 2))
    answered = Predictions((cnn, transformer), labels)
    return Dataset("made", made.classes, made.mean, made.std, made.train, Split(made.test.images, labels), "here"), answered


@pytest.mark.usefixtures("undrawn")
def test_the_figures_are_each_heads_own_and_the_best_is_that_of_all_epochs(tmp_path: Path):
    """Of four images the CNN head has one right, the transformer head two, and their sum three."""
    cnn = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    transformer = np.array([[0.0, 2.0], [0.0, 2.0], [5.0, 0.0], [1.0, 0.0]])
    labels = np.array([1, 1, 1, 1])
    made, _ = dataset(4, 2)
    best = TEST | {"epoch": 1.0, "test_accuracy": {"cnn": 0.1, "transformer": 0.2, "sum": 0.9}, "seconds": 100.0}
    run = folder(tmp_path / "run", HEADER, TRAINING, best, TEST | {"epoch": 2.0})
    page = Page(write_report(run, made, Predictions((cnn, transformer), labels)).read_text())
    figures = re.findall(r"<div><b>(.*?)</b><span>(.*?)</span></div>", page.source)
    measured = [("75.00 %", "test accuracy"), ("50.00 %", "transformer head"), ("25.00 %", "CNN head"), ("90.00 %", "best, after epoch 1")]
    rest = [("67 min", "training time"), ("40", "steps"), ("640", "images a second"), ("1,071,880", "parameters")]
    assert figures == [*measured, *rest]


def test_a_page_of_held_out_images_says_so_everywhere(tmp_path: Path):
    made, predictions = dataset(40, 5)
    made = replace(made, measured="held-out")
    evaluation = {name.replace("test", "held_out"): value for name, value in TEST.items()}
    run = folder(tmp_path / "run", HEADER | {"held_out_images": 40}, TRAINING, evaluation)
    page = Page(write_report(run, made, predictions).read_text())
    share = f"{100 * predictions.accuracies.sum:.2f} %"
    assert f"<div><b>{share}</b><span>held-out accuracy</span></div>" in page.source
    for words in (
        "The held-out accuracy is that of the sum of both heads' logits, on training images that were kept out of training, to choose options by. ",
        "train with the chosen options on all training images, and measure the test images once.",
        "Held-out accuracy class by class in percent",
        "held-out accuracy in percent",
        "held_out_images 40",
    ):
        assert words in page.text
    assert all(text.startswith("held-out image ") for text in page.alternatives) and page.source.count('title="held-out image ') >= 24
    assert re.findall(r".{12}\btest\b.{7}", page.source, re.IGNORECASE) == ["measure the test images"]
    for log, given, said in [(run, replace(made, measured="test"), "held-out images, and these are test images"),
                             (folder(tmp_path / "other", HEADER, TEST), made, "test images, and these are held-out images")]:  # fmt: skip
        with pytest.raises(ValueError, match=f"the run in {log} was measured on {said}"):
            write_report(log, given, predictions)


@pytest.mark.usefixtures("undrawn")
def test_without_predictions_the_figures_are_those_of_the_last_test(tmp_path: Path):
    better = TEST | {"epoch": 0.5, "step": 1020, "test_accuracy": {"cnn": 0.8, "transformer": 0.7, "sum": 0.9}}
    text = Page(write_report(folder(tmp_path / "run", HEADER, better, TEST)).read_text()).text
    assert "75.00 % test accuracy 50.00 % transformer head 25.00 % CNN head 90.00 % best, after step 1,020" in text


@pytest.mark.usefixtures("undrawn")
def test_classes_stand_from_the_best_to_the_worst_with_the_accuracies_of_both_heads_and_their_sum(tmp_path: Path):
    made, answered = counted((0, 0, 2), (0, 3, 6), (1, 1, 3), (1, 0, 1), (2, 1, 4), (3, 3, 5))
    page = Page(write_report(folder(tmp_path / "run", HEADER, TEST), made, answered).read_text())
    bars = [f'<i style="width: {share}%"></i>' for share in ("100.0", "75.0", "25.0", "0.0", "0.0")]
    assert page.table("Classes") == [
        ["class", "CNN head", "transformer head", "sum of both", ""],
        ["class &lt;3&gt;", "0.0", "0.0", "100.0", bars[0]],
        ["class &lt;1&gt;", "25.0", "0.0", "75.0", bars[1]],
        ["class &lt;0&gt;", "0.0", "75.0", "25.0", bars[2]],
        ["class &lt;2&gt;", "100.0", "0.0", "0.0", bars[3]],
        ["class &lt;4&gt;", "–", "–", "–", bars[4]],
    ]


@pytest.mark.usefixtures("undrawn")
def test_the_twelve_pairs_that_are_confused_most_often_stand_in_order(tmp_path: Path):
    pairs = [(shows, taken) for shows in range(5) for taken in range(5) if shows != taken][:14]
    counts = [int(count) for count in np.random.default_rng(0).permutation(14) + 1]
    made, answered = counted(*((*pair, count) for pair, count in zip(pairs, counts, strict=True)), *((number, number, 20) for number in range(5)))
    page = Page(write_report(folder(tmp_path / "run", HEADER, TEST), made, answered).read_text())
    of = np.bincount(answered.labels)
    order = sorted(zip(counts, pairs, strict=True), reverse=True)[:12]
    assert page.table("Confusion matrix") == [
        ["shows", "taken for", "images"],
        *([f"class &lt;{shows}&gt;", f"class &lt;{taken}&gt;", f"{count} of {of[shows]}"] for count, (shows, taken) in order),
    ]


@pytest.mark.usefixtures("undrawn")
def test_all_options_are_there_and_those_that_are_not_the_default_are_bold(tmp_path: Path):
    config = TrainConfig(lr=0.5, dataset="cifar100")
    page = Page(write_report(folder(tmp_path / "run", HEADER, config=config)).read_text())
    head, *rows = page.table("How it was trained")
    assert head == ["option", "value"]
    assert [name for name, _ in rows] == [*plain(config), "steps"]
    assert {name: value for name, value in rows if "<b>" in value} == {"lr": "<b>0.5</b>", "dataset": "<b>cifar100</b>"}
    assert ["batch_size", "128"] in rows


def test_each_curve_stands_under_its_own_title(tmp_path: Path):
    section = Page(write_report(folder(tmp_path / "run", HEADER, TRAINING, TEST)).read_text()).section("Curves")
    pictures = re.findall(r'aria-label="([^"]+)"(.*?)</svg>', section, re.DOTALL)
    inside = ("test accuracy in percent", "cross entropy", "learning rate</text>")
    assert [title for title, _ in pictures] == ["Accuracies by epoch", "Losses by epoch", "Learning rate by epoch"]
    assert [[words in markup for words in inside] for _, markup in pictures] == np.eye(3, dtype=bool).tolist()


@pytest.mark.parametrize("right", [True, False])
def test_a_run_with_nothing_wrong_or_nothing_right_has_a_page(right: bool, tmp_path: Path):
    images, predictions = dataset(6, 3)
    logits = np.eye(3)[predictions.labels if right else (predictions.labels + 1) % 3]
    text = Page(write_report(folder(tmp_path / "run", HEADER, TEST), images, Predictions((logits, logits), predictions.labels)).read_text()).text
    assert ("There are no mistakes." in text) is ("No image is taken for another class." in text) is right
    assert ("No image is right." in text) is not right


def test_a_hundred_classes_have_a_page(tmp_path: Path):
    page = Page(write_report(folder(tmp_path / "run", HEADER, TRAINING, TEST), *dataset(200, 100)).read_text())
    assert "all 100 classes" in page.text
    assert "class <99>" in page.text


def test_of_a_run_that_has_not_ended_the_page_says_how_far_it_is(tmp_path: Path):
    text = Page(write_report(folder(tmp_path / "begun", HEADER)).read_text()).text
    assert "Nothing has been measured yet." in text
    assert "0 of 40 steps" in text
    text = Page(write_report(folder(tmp_path / "run", HEADER, TRAINING)).read_text()).text
    assert "20 of 40 steps" in text
    assert "Classes" not in text


@pytest.mark.usefixtures("undrawn")
def test_another_data_set_than_asked_for_is_said_loudly(tmp_path: Path):
    run = folder(tmp_path / "run", HEADER | {"dataset_notice": "THIS IS NOT CIFAR-10 <but> another"}, TEST)
    assert '<p class="notice">THIS IS NOT CIFAR-10 &lt;but&gt; another</p>' in write_report(run).read_text()


def test_the_command_has_what_is_not_the_default():
    assert command(plain(TrainConfig())) == "conformer train"
    config = plain(TrainConfig(epochs=3, dataset="cifar100", out=Path("a b"))) | {"steps": 7}
    assert command(config) == "conformer train --dataset cifar100 --epochs 3"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("network", "what"),
    {
        "conformer": "a vision Conformer, trained by conformer train --dataset cifar10 ; begun",
        "cnn": "a branch of a vision Conformer, trained by conformer train --network cnn --dataset cifar10 ; begun",
        "no-way": "a network of one's own, trained by conformer train --network no-way --dataset cifar10 , but from Python, which gives what builds "
        "no-way ( Trainer(..., build=...) ); begun",
    }.items(),
)
def test_the_page_says_what_network_it_is_of_and_which_command_cannot_build_it(network: str, what: str, tmp_path: Path):
    run = folder(tmp_path / "run", HEADER, TEST, config=TrainConfig(network=network))
    assert what in Page(write_report(run).read_text()).text


@pytest.mark.usefixtures("undrawn")
def test_the_command_names_the_data_set_that_auto_came_to(tmp_path: Path):
    run = folder(tmp_path / "run", HEADER | {"dataset": "coupling10"}, TEST, config=TrainConfig(max_steps=2))
    assert "<code>conformer train --dataset coupling10 --max-steps 2</code>" in write_report(run).read_text()


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl"])
def test_of_a_damaged_run_there_is_no_report(file: str, tmp_path: Path):
    run = folder(tmp_path / "run", HEADER, TEST)
    (run / file).write_text("{")
    with pytest.raises(ValueError, match=f"{file} is damaged"):
        write_report(run)
    assert not (run / "report.html").exists()
