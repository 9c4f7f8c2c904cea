"""The options of a training run: what each may be, and times that are written like 30m. That `train` obeys them is tested in `test_train.py`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformer.options import TrainConfig, duration, plain


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
        ({"config": []}, r"config is \[\]; it must be a name"),
        ({"dataset": {}}, r"dataset is \{\}; it must be a name"),
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
        ({"hold_out": -1}, "hold_out is -1; it must be at least 0"),
        ({"hold_out": 1.5}, "hold_out is 1.5; it must be a whole number"),
        ({"cutout": 10**22}, "cutout is 1(0+); it must be at most 1,000,000,000"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it must be at most 18,446,744,073,709,551,615"),
        ({"time_budget": "9" * 400 + "s"}, "time_budget '9+s' is more than a year"),
        ({"max_steps": 2.5}, "max_steps is 2.5; it must be a whole number"),
        ({"seed": "1"}, "seed is 1; it must be a whole number"),
        ({"seed": None}, "seed is None; it must be a whole number"),
        ({"batch_size": None}, "batch_size is None; it must be a whole number"),
        ({"lr": None}, "lr is None; it must be a number"),
        ({"lr": "1e-3"}, "lr is 1e-3; it must be a number"),
        ({"drop_path": 1.0}, "drop_path is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_options_of_other_types_become_those_they_have() -> None:
    config = TrainConfig(epochs=np.int64(3), out="run", data_dir="data")  # type: ignore[arg-type]
    assert (type(config.epochs), config.out, config.data_dir) == (int, Path("run"), Path("data"))
    assert TrainConfig(out="").out is None  # type: ignore[arg-type]
    assert json.loads(json.dumps(plain(TrainConfig(lr=np.float32(0.5), ema=np.float64(0.5)))))["lr"] == 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400)])
def test_times_are_read_as_seconds(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-3m", "3 m", "1d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time; write it like 90s, 30m or 1h30m"):
        duration(text)
