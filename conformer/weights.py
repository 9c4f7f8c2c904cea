"""Weights with what they are for: a trained network in one file that says how to build it, normalise images for it, and name its answers.

`conformer train` writes such files (last, best and ema.safetensors in a run folder); evaluate, predict, explain and report read them.
Read next: `conformer/evaluate.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from conformer.baselines import NETWORKS, Build, CNNBranch, TransformerBranch, builder
from conformer.config import ConformerConfig
from conformer.data import Dataset
from conformer.info import count
from conformer.likeness import computes_as, difference
from conformer.model import Conformer
from conformer.text import from_json
from minigrad import nn, safetensors_io

__all__ = [
    "About", "check_trained_on", "comparable_images", "initial_weights", "load_weights", "save_weights", "seen_before",
    "unseen", "weights_file", "with_images",
]  # fmt: skip

SEVERAL = "several"
"""In place of a checksum, in `About.images`: images with more than one."""

PIXELS = 2**22
"""The most that an image may have: 2,048 x 2,048."""


@dataclass(frozen=True)
class About:
    """What trained weights are for.

    Attributes:
        network: the fields of `ConformerConfig`; `config`: the name of that configuration.
        dataset: name of the data set; `notice`: what must be said of its use, see `conformer.data.Dataset`.
        classes: their names, in the order of the logits.
        mean, std: what images are normalised with, channel by channel (`conformer.augment.normalize`).
        image_size: height and width in pixels.
        step: steps taken.
        test_accuracy: shares of right answers by head, as in metrics.jsonl; none where these are on other images than the test images.
        kind: which network is built of the configuration: one of `NETWORKS`, or another name for one of somebody's own.
        held_out: how many training images were held out (`conformer.data.hold_out`).
        trained_on: the data sets that the weights were trained on, also before they were fine-tuned, and how many images were held out of each
            whenever they were.
        images: the checksum (`conformer.data.checksum`) of the training images, with those held out, that each of these names stood for; `SEVERAL`
            where they were not always the same. Which images are held out depends on all of them. Of older files it is not known.
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
    kind: str = "conformer"  # as files have no other word for that are older than the others
    held_out: int = 0  # likewise
    trained_on: dict[str, int] = field(default_factory=dict)  # likewise; what is not said is that of `dataset` alone
    images: dict[str, str] = field(default_factory=dict)  # likewise

    def __post_init__(self) -> None:
        if not self.trained_on:
            object.__setattr__(self, "trained_on", {self.dataset: self.held_out})

    @classmethod
    def of(
        cls, network: ConformerConfig, config: str, dataset: Dataset, step: int, accuracy: dict[str, float], kind: str = "conformer",
        held_out: int = 0, before: Mapping[str, int] | None = None, images: Mapping[str, str] | None = None,
    ) -> About:  # fmt: skip
        """Describe a network that was trained on a data set, of which so many images are held out, and has this accuracy on its `test`.

        `before` is `trained_on` of the weights that it began with; `images` is what is to be known of all, see `with_images`.
        """
        height, width = dataset.train.images.shape[1:3]
        accuracy = accuracy if dataset.measured == "test" else {}
        trained_on = {**(before or {}), dataset.name: unseen(before or {}, dataset.name, held_out)}
        return cls(
            asdict(network), config, dataset.name, dataset.notice, dataset.classes, dataset.mean, dataset.std, (height, width), step,
            accuracy, kind, held_out, trained_on, dict(images or {}),
        )  # fmt: skip


def unseen(trained_on: Mapping[str, int], dataset: str, held_out: int) -> int:
    """How many of the images held out of a data set are new to weights that were trained so before; fewer that are held out are among more."""
    return min(trained_on.get(dataset, held_out), held_out)


def comparable_images(about: About, dataset: Dataset) -> dict[str, str]:
    """`about.images`; without those of this data set's name, if they were of another size: the same pictures have another checksum then."""
    same_size = about.image_size == dataset.train.images.shape[1:3]
    return {name: images for name, images in about.images.items() if same_size or name != dataset.name}


def with_images(before: Mapping[str, str], trained_on: Mapping[str, int], dataset: str, images: str) -> dict[str, str]:
    """`About.images` of weights that had these, and this `trained_on`, before they were trained on a data set, whose images have this checksum."""
    if dataset in before:
        return {**before, dataset: images if before[dataset] == images else SEVERAL}
    return {**before} if dataset in trained_on else {**before, dataset: images}  # it was trained on images of this name that are not known


def seen_before(trained_on: Mapping[str, int], before: Mapping[str, str], dataset: Dataset, held_out: int, images: str) -> str:
    """What must be said of a run that begins with weights that were trained on images it is measured by, or perhaps were; "" if nothing must.

    Args:
        trained_on, before: what is known of the weights, see `About` and `comparable_images`.
        dataset: what the run trains on, of which so many images are held out; `images` is the checksum of its training images, with those held out.
    """
    name, measured, began = dataset.name, dataset.measured, "The weights to begin with were trained on"
    if before.get(name, images) != images:
        perhaps = f"perhaps on {measured} images of today among them, so the {measured} accuracy may be too high"
        return f"{began} other images called {name}, {perhaps}."
    if unseen(trained_on, name, held_out) < held_out:
        return f"{began} held-out images of {name}, so the held-out accuracy is too high."
    return ""


_CLASSES: dict[str, type[Conformer] | type[CNNBranch] | type[TransformerBranch]] = dict(
    zip(NETWORKS, (Conformer, CNNBranch, TransformerBranch), strict=True)
)


def save_weights(path: Path, model: nn.Module, about: About) -> None:
    """Write a network's weights and what they are for, atomically.

    `load_weights` builds a Conformer, or a branch of it, by its configuration: what computes otherwise is refused, be it a subclass or a network of
    which a module was replaced or set otherwise. What counts in training alone may be another: dropout's rates, batch norm's momentum, and `train`
    and `eval`, of an object or of a subclass, which may keep batch norms in eval mode. Where `about.kind` is a name of one's own, anything is taken,
    and whoever loads it says what builds it.

    Raises:
        OSError: the file cannot be written.
        TypeError: the model is not of the class that `about.kind` stands for, or of a subclass with a `forward` or another part of its own, or
            `about` has what JSON has not.
        ValueError: `about` is of another network, the model computes something else than a new one of its configuration, or `load_weights` would
            refuse the file for another reason.
    """
    kind = _CLASSES.get(about.kind)
    if kind and not computes_as(type(model), kind):
        what = "what computes otherwise" if isinstance(model, kind) else f"what is no {kind.__name__}"
        raise TypeError(f"save_weights: the model is a {type(model).__name__}; save {what} with minigrad.safetensors_io.save_state")
    entries = {name: value if isinstance(value, str) else _json(name, value) for name, value in asdict(about).items()}
    entries["notice"] = about.notice.encode(errors="backslashreplace").decode()  # it may name a folder in bytes that are not UTF-8
    state = model.state_dict()
    try:
        read = _about(entries)
        network = ConformerConfig(**read.network)
        if kind and isinstance(model, Conformer | CNNBranch | TransformerBranch) and network != model.config:
            raise ValueError("`network` is not the model's configuration")
        _check(read, network)
        if kind and isinstance(model, Conformer):
            count(model, network.size_multiple)  # raises where parts of it were replaced, such as a head
        _check_finite(state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_weights: the model could not be loaded again ({error})") from error
    if kind and (found := difference(model, about.kind, network, read.image_size)):
        raise ValueError(
            f"save_weights: load_weights would build another network than this one, {found}; save it with minigrad.safetensors_io.save_state"
        )
    safetensors_io.save_state(path, state, entries)


def _json(name: str, value: Any) -> str:
    """A field of `About` as JSON."""
    try:
        return json.dumps(value, allow_nan=False, default=lambda number: number.item())  # NumPy's numbers
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(f"save_weights: {name} is {value!r}, which JSON cannot hold; give text and finite numbers") from error


def weights_file(path: str | Path) -> Path:
    """The weights file that a run folder or file stands for: of a folder its last.safetensors."""
    path = Path(path)
    return path / "last.safetensors" if path.is_dir() else path


def load_weights(path: str | Path, build: Build | None = None) -> tuple[Any, About]:
    """Build the network that a run saved.

    Args:
        path: a run folder (its last.safetensors is read), or a weights file of one.
        build: makes a network of somebody's own of its configuration; a Conformer and its branches are made without it.

    Returns:
        The network, a Conformer where `About.kind` does not say otherwise, and what its weights are for.

    Raises:
        OSError: there is no such file.
        ValueError: it is not a weights file that `conformer train` wrote, or is damaged, or holds a network of somebody's own without `build`.
    """
    path = weights_file(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder")
    try:
        state, metadata = safetensors_io.load_state(path)
    except ValueError as error:
        if path.suffix not in (".pth", ".pt"):
            raise
        raise ValueError(f"{path} is a file of PyTorch's, by its name; save its weights with their configuration (docs/own_data.md)") from error
    if "checkpoint" in metadata:
        beside = "weights to use are in last.safetensors beside it, once the run has been evaluated"
        raise ValueError(f"{path} is a checkpoint, for --resume to go on from; {beside}")
    try:
        about = _about(metadata)
        network = ConformerConfig(**about.network)
    except KeyError as error:
        raise ValueError(f"{path} does not say what it is for (no {error} in its metadata); give weights that `conformer train` wrote") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is for a network that this version cannot build ({error})") from error
    if about.kind not in NETWORKS and build is None:
        raise ValueError(f"{path} holds a network of somebody's own, {about.kind}, which only Python code with what builds it can load")
    try:
        _check(about, network)
        if about.kind in NETWORKS:
            _check_size(about, network, state)
            build = builder(about.kind, about.image_size)
        assert build is not None
        _check_finite(state)
        with nn.init.skipped():
            model = build(network)
        model.load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"{path} is not as `conformer train` wrote it ({_shortened(str(error))})") from error
    return model, about


def initial_weights(
    path: str | Path, network: ConformerConfig, kind: str = "conformer", image_size: tuple[int, int] | None = None, build: Build | None = None
) -> tuple[dict[str, np.ndarray], About]:
    """The parameters and buffers that a network begins with when it is fine-tuned: those of a run or weights file, without the heads (modules whose
    names end in "_cls_head") where these are for another number of classes; and what they were for.

    Args:
        path: see `load_weights`.
        network: the configuration of the network.
        kind: which one is built of it, see `About`.
        image_size: height and width of its images.
        build: see `load_weights`.

    Raises:
        OSError: there is no such file.
        ValueError: it is not a weights file that `conformer train` wrote, or is for a network that differs by more than classes and dropped paths,
            such as in the positions of a transformer branch; or what depends on the number of classes has no name of a head.

    Source: the official code's main.py, `--finetune`.
    """
    model, about = load_weights(path, build)
    loose = {"num_classes", "drop_rate", "attn_drop_rate", "drop_path_rate"}
    mine, theirs = asdict(network) | {"network": kind}, asdict(ConformerConfig(**about.network)) | {"network": about.kind}
    if kind == "transformer" == about.kind:
        mine["image_size"], theirs["image_size"] = image_size or about.image_size, about.image_size
    if differ := [f"{name} {theirs[name]} instead of {mine[name]}" for name in mine if name not in loose and mine[name] != theirs[name]]:
        other = f"{weights_file(path)} holds weights of another network ({about.config}), with {', '.join(differ)}"
        if about.kind in NETWORKS:
            both = about.kind != "conformer" or kind != about.kind
            options, in_study = (f"--config{s} {about.config}" + f" --network{s} {about.kind}" * both for s in ("", "s"))
            advice = f"give {options}, or in a study {in_study} alone"
        else:  # which no command builds
            advice = f"in Python, give config={about.config!r}, network={about.kind!r} and what builds it"
        raise ValueError(f"{other}; no other can begin with them: {advice}")
    state = model.state_dict()
    if mine["num_classes"] != theirs["num_classes"]:
        state = {name: array for name, array in state.items() if "_cls_head." not in name}
        if about.kind not in NETWORKS:
            assert build is not None
            with nn.init.skipped():
                new = build(network).state_dict()
            if other := [name for name, array in state.items() if name in new and new[name].shape != array.shape]:
                what = f"{weights_file(path)} is for {theirs['num_classes']} classes, and {other[0]} has another shape for {mine['num_classes']}"
                raise ValueError(f"{what}; only modules whose names end in _cls_head begin anew: give its module such a name, and train it again")
    return state, about


def _about(metadata: Mapping[str, str]) -> About:
    """What a file's metadata says; raises KeyError for what it does not say, TypeError and ValueError for what it says in another way."""
    optional = "kind", "held_out", "trained_on", "images"
    values: dict[str, Any] = {field.name: metadata[field.name] for field in fields(About) if field.name in metadata or field.name not in optional}
    values |= {name: from_json(text) for name, text in values.items() if name not in ("config", "dataset", "notice", "kind")}
    values |= {name: tuple(values[name]) for name in ("classes", "mean", "std", "image_size")}  # JSON has lists
    return About(**values)


def _check(about: About, network: ConformerConfig) -> None:
    """Raise ValueError where what a file says of its weights, which an editor may have changed, does not fit the network."""
    if len(about.classes) != network.num_classes:
        raise ValueError(f"it has {len(about.classes)} names for {network.num_classes} classes")
    if numbers := [name for name in about.classes if not isinstance(name, str)]:
        raise ValueError(f"{numbers[0]!r} is not the name of a class")
    for name, (least, most) in {"mean": (-1e6, 1e6), "std": (1e-30, 1e30)}.items():  # what comes out is finite in float32
        numbers = getattr(about, name)
        if len(numbers) != network.in_chans or not all(type(x) in (int, float) and least <= x <= most for x in numbers):
            raise ValueError(f"{name} is {list(numbers)}, which does not normalise images of {network.in_chans} channels")
    if len(about.image_size) != 2 or not all(type(side) is int for side in about.image_size):
        raise ValueError(f"image_size is {list(about.image_size)}, which is not a height and a width")
    network.stem_size(*about.image_size)
    if math.prod(about.image_size) > PIXELS:
        raise ValueError(f"images are {about.image_size[0]:,} x {about.image_size[1]:,} pixels, more than the {PIXELS:,} that are allowed")
    for name in ("step", "held_out"):
        if type(value := getattr(about, name)) is not int:
            raise ValueError(f"{name} is {value!r}, which is not a whole number")
    check_trained_on("trained_on", about.trained_on)
    check_trained_on("images", about.images, str)


def check_trained_on(name: str, values: Any, kind: type = int) -> None:
    """Raise ValueError where an entry `name` that was read from a file is not what `About.trained_on` may be, or, with `str`, `About.images`."""
    if not isinstance(values, dict) or any(type(value) is not kind for value in values.values()):
        raise ValueError(f"{name} is {values!r}, which is not {'text' if kind is str else 'a whole number'} for each data set")


def _check_size(about: About, network: ConformerConfig, state: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where a file cannot fill the network, which is so much memory that it is not asked for before."""
    med_blocks = 0 if about.kind == "transformer" else network.num_med_block
    blocks, held = network.depth * (1 + med_blocks), sum(array.size for array in state.values())
    if blocks > len(state):  # each has several
        raise ValueError(f"it has {len(state):,} tensors for a network of {blocks:,} blocks")
    if held < (parameters := count(network, about.image_size, about.kind).parameters):
        raise ValueError(f"its {len(state):,} tensors are {held:,} numbers, for a network of {parameters:,} parameters")


def _check_finite(state: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where a weight is NaN or infinite, in float32, which the network has."""
    for name, array in state.items():
        if array.dtype.kind == "f" and not np.all(np.abs(array) <= np.finfo(np.float32).max):
            raise ValueError(f"{name} has numbers that are not finite in float32; the network would answer nothing but nan")


def _shortened(sentence: str) -> str:
    """An error of `load_state_dict` with the first three of the entries that it lists."""
    *parts, last = sentence.split("; ")
    found = re.fullmatch("and ([0-9,]+) more", last)  # what it does not list itself
    parts, unlisted = (parts, int(found[1].replace(",", ""))) if found else ([*parts, last], 0)
    more = len(parts) - 3 + unlisted
    return "; ".join(parts[:3]) + (f"; and {more:,} more" if more > 0 else "")
