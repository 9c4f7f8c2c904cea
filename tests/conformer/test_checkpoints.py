"""A checkpoint is read as it was written, and none that no run can have written; what the fingerprint of a data set is of.

`test_resume.py` goes on from checkpoints.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformer import data
from conformer.checkpoints import Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from conformer.evaluate import Accuracies
from conformer.options import TrainConfig
from minigrad import safetensors_io

CHECKPOINT = Checkpoint(
    arrays={},
    options={"seed": 3},
    network={"depth": 3},
    dataset="made",
    fingerprint="0",
    environment={},
    step=7,
    steps=10,
    evaluated=5,
    lines=4,
    learning_rate=1e-3,
    test=Accuracies(0.25, 0.5, 0.75),
    best=Accuracies(0.5, 0.5, 1.0),
    recent=[(2.0, Accuracies(0, 0.5, 1.0), 0.1)],
    seconds=30.0,
    evaluation_seconds=1.0,
)


@pytest.mark.parametrize("changes", [{}, {"step": 0, "evaluated": 0, "test": None, "best": None, "recent": []}, {"step": 10, "evaluated": 10}])
def test_a_checkpoint_is_read_as_it_was_written(changes: dict[str, Any], tmp_path: Path):
    written = replace(CHECKPOINT, **changes)
    save_checkpoint(tmp_path / "c.safetensors", replace(written, arrays={"model.weight": np.arange(3.0)}))
    read = load_checkpoint(tmp_path / "c.safetensors")
    assert read.arrays["model.weight"].tolist() == [0, 1, 2]
    assert replace(read, arrays={}) == written
    assert all(isinstance(shares, Accuracies) for shares in (read.test, read.best) if shares is not None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": -1}, "evaluated is 5, step is -1, steps is 10, lines is 4"),
        ({"evaluated": -1}, "evaluated is -1, step is 7"),
        ({"evaluated": 8}, "evaluated is 8, step is 7"),
        ({"steps": 6}, "step is 7, steps is 6"),
        ({"step": 2**62, "steps": 2**62}, "steps is 4611686018427387904"),
        ({"lines": 0}, "lines is 0"),
        ({"step": True}, "step is True"),
        ({"steps": 10.0}, "steps is 10.0"),
        ({"options": []}, r"options is \[\]"),
        ({"test": None}, "evaluated is 5, but there are no accuracies"),
        ({"best": None}, "evaluated is 5, but there are no accuracies"),
        ({"best": [0.5, 0.5, "all"]}, r"\[0.5, 0.5, 'all'\] are not numbers"),
        ({"best": [0.5, 0.5]}, "missing 1 required positional argument"),
        ({"recent": [[2.0, [0.5, 0.5, None], 0.1]]}, r"\[0.5, 0.5, None\] are not numbers"),
        ({"recent": [[None, [0.5, 0.5, 0.5], 0.1]]}, r"\[None, 0.1\] are not numbers"),
        ({"evaluation_seconds": 10**30}, r"something took 1e\+30 seconds"),
        ({"seconds": -1.0}, "something took -1 seconds"),
        ({"recent": [[2.0, [0.5, 0.5, 0.5], 0.1], [2.0, [0.5, 0.5, 0.5], 1e12]]}, r"something took 1e\+12 seconds"),
        ({"wings": 2}, "wings"),
    ],
)
def test_what_no_run_has_written_is_refused(changes: dict[str, Any], said: str, tmp_path: Path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, CHECKPOINT)
    values = json.loads(safetensors_io.load_state(path)[1]["checkpoint"])
    safetensors_io.save_state(path, {}, {"checkpoint": json.dumps(values | changes)})
    with pytest.raises(ValueError, match=rf"c.safetensors is not a checkpoint that this program wrote \(.*{said}.*\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", ["", "[1]", "7", "[" * 100_000, '{"version": NaN}'])
def test_what_is_no_checkpoint_is_refused(text: str, tmp_path: Path):
    safetensors_io.save_state(tmp_path / "c.safetensors", {}, {"checkpoint": text})
    with pytest.raises(ValueError, match="c.safetensors is not a checkpoint that `conformer train` wrote$"):
        load_checkpoint(tmp_path / "c.safetensors")


@pytest.mark.parametrize("field", ["images", "labels"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_the_fingerprint_is_of_every_image_and_label(config: TrainConfig, part: str, field: str) -> None:
    dataset = data.load("cifar10", config.data_dir)
    split = getattr(dataset, part)
    array = getattr(split, field).copy()
    array.flat[-1] ^= 1
    assert fingerprint(replace(dataset, **{part: replace(split, **{field: array})})) != fingerprint(dataset)


@pytest.mark.parametrize("given", [{"name": "other"}, {"classes": tuple("abcdefghij")}, {"mean": (0.4, 0.5, 0.6)}, {"std": (0.4, 0.5, 0.6)}])
def test_the_fingerprint_is_of_what_the_images_are_taken_for_but_not_of_where_they_lie(config: TrainConfig, given: dict[str, Any]) -> None:
    dataset = data.load("cifar10", config.data_dir)
    assert fingerprint(replace(dataset, **given)) != fingerprint(dataset) == fingerprint(replace(dataset, source="elsewhere", notice="moved"))
