"""Weights with what they are for: a trained network in one file that says how to build it, normalise images for it, and name its answers.

`conformer train` writes such files (last, best and ema.safetensors in a run folder); evaluate, predict, explain and report read them.
Read next: `conformer/evaluate.py`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from conformer.config import ConformerConfig
from conformer.data import Dataset
from conformer.model import Conformer
from minigrad import nn, safetensors_io

__all__ = ["About", "initial_weights", "load_weights", "save_weights", "weights_file"]


@dataclass(frozen=True)
class About:
    """What trained weights are for.

    Attributes:
        network: the fields of `ConformerConfig`; `config`: the name of that configuration.
        dataset: name of the data set; `notice`: a sentence where it is not the one that was asked for.
        classes: their names, in the order of the logits.
        mean, std: what images are normalised with, channel by channel (`conformer.augment.normalize`).
        image_size: height and width in pixels.
        step: steps taken.
        test_accuracy: shares of right answers by head, as in metrics.jsonl.
    """

    network: dict[str, Any]
    config: str
    dataset: str
    notice: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    step: int
    test_accuracy: dict[str, float]

    @classmethod
    def of(cls, network: ConformerConfig, config: str, dataset: Dataset, step: int, test_accuracy: dict[str, float]) -> About:
        """Describe a network that was trained on a data set."""
        height, width = dataset.train.images.shape[1:3]
        return cls(
            asdict(network), config, dataset.name, dataset.notice, dataset.classes, dataset.mean, dataset.std, (height, width), step, test_accuracy
        )


def save_weights(path: Path, model: nn.Module, about: About) -> None:
    """Write a network's weights and what they are for, atomically; raises OSError."""
    entries = {name: value if isinstance(value, str) else json.dumps(value) for name, value in asdict(about).items()}
    safetensors_io.save_state(path, model.state_dict(), entries)


def weights_file(path: str | Path) -> Path:
    """The weights file that a run folder or file stands for: of a folder its last.safetensors."""
    path = Path(path)
    return path / "last.safetensors" if path.is_dir() else path


def load_weights(path: str | Path) -> tuple[Conformer, About]:
    """Build the network that a run saved.

    Args:
        path: a run folder (its last.safetensors is read), or a weights file of one.

    Raises:
        OSError: there is no such file.
        ValueError: it is not a weights file that `conformer train` wrote, or is damaged.
    """
    path = weights_file(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder")
    state, metadata = safetensors_io.load_state(path)
    try:
        values: dict[str, Any] = {field.name: metadata[field.name] for field in fields(About)}
        values |= {name: json.loads(text) for name, text in values.items() if name not in ("config", "dataset", "notice")}
        values |= {name: tuple(values[name]) for name in ("classes", "mean", "std", "image_size")}  # JSON has lists
        model, about = Conformer(**values["network"]), About(**values)
    except KeyError as error:
        raise ValueError(f"{path} does not say what it is for (no {error} in its metadata); give weights that `conformer train` wrote") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is for a network that this version cannot build ({error})") from error
    try:
        _check(about, model.config)
        model.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path} is not as `conformer train` wrote it ({error})") from error
    return model, about


def initial_weights(path: str | Path, network: ConformerConfig) -> dict[str, np.ndarray]:
    """The parameters and buffers that a network begins with when it is fine-tuned: those of a run or weights file, without the heads where these are
    for another number of classes.

    Raises:
        OSError: there is no such file.
        ValueError: it is not a weights file that `conformer train` wrote, or is for a network that differs by more than classes and dropped paths.

    Source: the official code's main.py, `--finetune`.
    """
    model, about = load_weights(path)
    loose = {"num_classes", "drop_rate", "attn_drop_rate", "drop_path_rate"}
    mine, theirs = asdict(network), asdict(model.config)
    if differ := [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if name not in loose and mine[name] != theirs[name]]:
        raise ValueError(f"{weights_file(path)} holds weights of another network ({about.config}), with {', '.join(differ)}; give it as the config")
    state = model.state_dict()
    if mine["num_classes"] != theirs["num_classes"]:
        state = {name: array for name, array in state.items() if "_cls_head." not in name}
    return state


def _check(about: About, network: ConformerConfig) -> None:
    """Raise ValueError where what a file says of its weights, which an editor may have changed, does not fit the network."""
    if len(about.classes) != network.num_classes:
        raise ValueError(f"it has {len(about.classes)} names for {network.num_classes} classes")
    if numbers := [name for name in about.classes if not isinstance(name, str)]:
        raise ValueError(f"{numbers[0]!r} is not the name of a class")
    for name, least in {"mean": -math.inf, "std": 0}.items():
        numbers = getattr(about, name)
        if len(numbers) != network.in_chans or not all(type(x) in (int, float) and least < x < math.inf for x in numbers):
            raise ValueError(f"{name} is {list(numbers)}, which does not normalise images of {network.in_chans} channels")
    if len(about.image_size) != 2 or not all(type(side) is int for side in about.image_size):
        raise ValueError(f"image_size is {list(about.image_size)}, which is not a height and a width")
    network.stem_size(*about.image_size)
    if type(about.step) is not int:
        raise ValueError(f"step is {about.step!r}, which is not a whole number")
