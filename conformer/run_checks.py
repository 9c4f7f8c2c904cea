"""What does not fit together in a run: options, data, network and device; weights to begin with; a checkpoint to go on from.

Each function raises where that is so and says in one sentence what to change; where it is an option, an `OptionError`. What a single option may be is
in `options.py`. Read next: `train.py`, which asks before anything is written.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from conformer import data
from conformer.augment import check_sides
from conformer.baselines import NETWORKS, Build, builder
from conformer.checkpoints import Checkpoint
from conformer.config import ConformerConfig
from conformer.mistakes import sentence
from conformer.options import OptionError, TrainConfig, began_with, flag, may_change, plain, saved_options
from conformer.run_folder import read_config, read_options
from conformer.weights import About, initial_weights
from minigrad.backend import cuda

__all__ = ["check_data", "check_precision", "check_same", "chosen_builder", "given_weights", "held_out", "options_of", "other_images"]


def held_out(dataset: data.Dataset, config: TrainConfig) -> data.Dataset:
    """The data set as a run with these options trains on it and is measured by it; raises OptionError where not so many images can be held out."""
    count, batch, images = config.hold_out, config.batch_size, len(dataset.train)
    try:
        held = data.hold_out(dataset, count)
    except data.DataError as error:
        raise OptionError(str(error), "hold_out") from error
    if count and len(held.train) < batch:
        leaves = f"leaves {len(held.train):,} of the {images:,} training images, fewer than the {batch} of a step"
        if images - batch < len(dataset.classes):  # the fewest that can be held out
            raise OptionError(f"hold_out is {count:,}, which {leaves}: take a smaller batch_size", "hold_out", "batch_size")
        raise OptionError(f"hold_out is {count:,}, which {leaves}: hold out at most {images - batch:,}", "hold_out")
    return held


def check_data(dataset: data.Dataset, config: TrainConfig, network: ConformerConfig) -> None:
    """Raise where a data set, the options and the network do not fit each other: OptionError, or ValueError where no option is to blame."""
    images, height, width, channels = dataset.train.images.shape
    if images < config.batch_size:
        has = f"{dataset.source} has only {images} training images"
        raise OptionError(f"batch_size is {config.batch_size}, but {has}: take a smaller one", "batch_size")
    check_sides(height, width)
    if config.cutout >= min(height, width):
        raise OptionError(f"cutout is {config.cutout}, which can blank a whole image of {height} x {width} pixels: take a smaller one", "cutout")
    network.stem_size(height, width)  # raises if the network cannot take images of this size
    if channels != network.in_chans:
        raise data.DataError(f"{dataset.name} has images of {channels} channels, {config.config} takes {network.in_chans}")
    if not len(dataset.test):
        raise data.DataError(f"{dataset.name} has no test images, by which a run is measured after every epoch; hold some training images out")


def chosen_builder(network: str, build: Build | None, dataset: data.Dataset) -> Build:
    """What makes the network of a run: what was given, or else what its name stands for; raises OptionError where the name is not that of either."""
    if build is None:
        try:
            height, width = dataset.train.images.shape[1:3]
            return builder(network, (height, width))
        except ValueError as error:
            raise OptionError(str(error), "network") from error
    if network in NETWORKS:
        raise OptionError(f"network is {network}, which this program builds itself; give what is built in Python a name of its own", "network")
    return build


def given_weights(config: TrainConfig, network: ConformerConfig, dataset: data.Dataset, build: Build | None) -> tuple[dict[str, np.ndarray], About]:
    """Those of --finetune, and what they are for; raises OptionError where they are not there."""
    assert config.finetune is not None
    height, width = dataset.train.images.shape[1:3]
    try:
        return initial_weights(config.finetune, network, config.network, (height, width), build)
    except OSError as error:
        raise OptionError(f"finetune: {sentence(error)}; give a run or a weights file", "finetune") from error


def check_precision(precision: str, device: str, resumed: Path | None) -> None:
    """Raise where products cannot be computed in less than float32: OptionError, or ValueError for the folder of a run that is to go on."""
    if device == "cpu":
        if resumed is not None:
            raise ValueError(f"the run in {resumed} was started with --precision {precision}, which needs a GPU: go on with it on one")
        raise OptionError(f"precision is {precision}, which is for GPUs; the CPU computes in float32: leave it out", "precision")
    if not cuda.has_tensor_cores():
        needs = "which needs tensor cores of compute capability 8.0 (A100, RTX 30) or later, and this GPU has none: leave it out"
        raise OptionError(f"precision is {precision}, {needs}", "precision")


def options_of(run: Path, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The options that a run goes on with, as `plain` makes them: the checkpoint's, where it has one, but those that `may_change` config.json's.

    Raises:
        ValueError: config.json is damaged, or somebody has changed another option in it, which would not be followed, but reported.
    """
    if checkpoint is None:
        return read_options(run)
    saved, began = read_config(run), plain(saved_options(run, checkpoint.options)) | {"steps": checkpoint.steps}
    free = may_change(True)
    for name, value in saved.items():
        was = began.get(name)
        if name not in free | {"out"} and value not in began_with(name, was, checkpoint.dataset):  # `out` is where the run began
            begun = "without it" if was is None else f"with {was}"
            rest = f"put that back to go on ({', '.join(map(flag, sorted(free)))} may be given anew), or start another run with --out"
            raise ValueError(f"{run / 'config.json'} says that {name} is {value}, but the run was started {begun}: {rest}")
    return checkpoint.options | {name: value for name, value in saved.items() if name in free}


def check_same(checkpoint: Checkpoint, run: Path, dataset: data.Dataset, fingerprint: str, config: str, network: ConformerConfig) -> None:
    """Raise ValueError where the data set, of this fingerprint, or the network is not what the run was started with."""
    if checkpoint.fingerprint != fingerprint:
        raise other_images(run, "trained on", dataset)
    if checkpoint.network != asdict(network):
        raise ValueError(f"the run in {run} has another network than this version calls {config}; it cannot go on")


def other_images(run: Path, used: str, dataset: data.Dataset) -> ValueError:
    """What is raised where a run was `used` ("trained on", "measured by") other images than a data set of this name has now."""
    made = not isinstance(dataset.source, Path)  # by a program, which may be another version of it
    advice = "bring back the program that made those, or begin a new run" if made else "give the data it was started with (--data-dir)"
    where = f"{'come from' if made else 'are in'} {dataset.source} now"
    return ValueError(f"the run in {run} was {used} other images of {dataset.name} than those that {where}; {advice}")
