"""A run's metrics.jsonl: read as it was written, without a last line half-written, and refused with the line where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conformer.run_log import read_log

HEADER = {"config": "cifar-nano", "dataset": "cifar10", "dataset_notice": "", "seed": 3, "parameters": 1071880, "steps": 40, "started": "today"}
TRAINING = {"step": 20, "epoch": 0.5, "loss": 2.0, "train_accuracy": {}, "learning_rate": 1e-3, "images_per_second": 640.0}
TEST = {"step": 40, "epoch": 1.0, "test_accuracy": {"cnn": 0.25, "transformer": 0.5, "sum": 0.75}, "test_loss": 1.5, "seconds": 4000.0}


HELD_OUT = {"step": 40, "epoch": 1.0, "held_out_accuracy": TEST["test_accuracy"], "held_out_loss": 1.5, "seconds": 4000.0}


def write(run: Path, *lines: dict) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_last_line_half_written_is_left_out(tmp_path: Path):
    write(tmp_path, HEADER, TRAINING, TEST)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "ep')
    log = read_log(tmp_path)
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
def test_a_damaged_log_is_refused_with_its_line(text: str, message: str, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_log(tmp_path)


@pytest.mark.parametrize(
    ("number", "changes", "said"),
    [
        (1, {"parameters": None}, "parameters is not a whole number"),
        (1, {"config": 3}, "config is not text"),
        (1, {"dataset_notice": []}, "dataset_notice is not text"),
        (1, {"steps": "many"}, "steps is not a whole number or null"),
        (1, {"macs": 0.5}, "macs is not a whole number or null"),
        (1, {"test_images": "all"}, "test_images is not a whole number"),
        (1, {"held_out_images": None}, "held_out_images is not a whole number"),
        (2, {"epoch": ...}, "epoch is missing"),
        (2, {"loss": None}, "loss is not a number"),
        (2, {"step": True}, "step is not a whole number"),
        (2, {"images_per_second": "fast"}, "images_per_second is not a number"),
        (2, {"learning_rate": float("nan")}, "NaN is not a number to compute with"),
        (3, {"test_loss": ...}, "test_loss is missing"),
        (3, {"seconds": {}}, "seconds is not a number"),
        (3, {"test_accuracy": None}, "test_accuracy is not accuracies by head"),
        (3, {"test_accuracy": {"cnn": 0.5}}, "test_accuracy is not accuracies by head"),
        (3, {"ema_test_accuracy": {"cnn": 0.5, "transformer": 0.5, "sum": None}}, "ema_test_accuracy is not accuracies by head"),
    ],
)
def test_a_value_that_is_missing_or_of_another_kind_is_refused(number: int, changes: dict, said: str, tmp_path: Path):
    """As a single changed letter makes it; what is said names the file and the line."""
    lines = [HEADER, TRAINING, TEST]
    changed = {name: value for name, value in (lines[number - 1] | changes).items() if value is not ...}
    write(tmp_path, *lines[: number - 1], changed, *lines[number:])
    with pytest.raises(ValueError, match=f"metrics.jsonl is damaged in line {number} \\(.*{said}\\)$"):
        read_log(tmp_path)


def test_figures_on_held_out_images_have_the_names_of_those_on_test_images_and_a_word_for_them(tmp_path: Path):
    write(tmp_path, HEADER | {"test_images": 8}, TRAINING, TEST)
    assert (read_log(tmp_path).measured, read_log(tmp_path).images) == ("test", 8)
    shares = {"cnn": 0.5, "transformer": 0.5, "sum": 0.5}
    write(tmp_path, HEADER | {"held_out_images": 8}, TRAINING, HELD_OUT | {"ema_held_out_accuracy": shares})
    log = read_log(tmp_path)
    assert (log.measured, log.images, log.training) == ("held-out", 8, [TRAINING])
    assert log.tests == [TEST | {"ema_test_accuracy": shares}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"held_out_accuracy": None}, "held_out_accuracy is not accuracies by head"),
        ({"held_out_loss": ...}, "held_out_loss is missing"),
        ({"ema_held_out_accuracy": {"cnn": 0.5}}, "ema_held_out_accuracy is not accuracies by head"),
    ],
)
def test_a_damaged_evaluation_on_held_out_images_is_refused(changes: dict, said: str, tmp_path: Path):
    changed = {name: value for name, value in (HELD_OUT | changes).items() if value is not ...}
    write(tmp_path, HEADER | {"held_out_images": 8}, TRAINING, changed, TRAINING)
    with pytest.raises(ValueError, match=f"metrics.jsonl is damaged in line 3 \\(.*{said}\\)$"):
        read_log(tmp_path)


def test_the_log_of_a_run_whose_steps_are_not_fixed_yet_is_read(tmp_path: Path):
    write(tmp_path, HEADER | {"steps": None}, TRAINING, TEST)
    assert read_log(tmp_path).header["steps"] is None and read_log(tmp_path).images is None
