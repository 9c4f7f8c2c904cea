"""Training a Conformer, from options to weights on disk.

`TrainConfig` is every option with its meaning; `Trainer` sets a run up (what a user can get wrong is found there, before anything is
written) and runs it; `train(config)` does both. The recipe is in `Trainer.train_step`: the mean of both heads' losses, the gradient's norm
clipped, AdamW, a warm-up and a cosine. Batches come from `batches`, files are written by `RunFolder`, and what is shown goes to a
`Display`. Read next: `conformer/cli.py`, the command line around this.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import threadpoolctl

from conformer import data
from conformer.augment import normalize, shift_and_flip
from conformer.config import named_config
from conformer.display import Display, Progress
from conformer.evaluate import Accuracies, accuracies, evaluate
from conformer.model import Conformer, parameter_groups
from minigrad import functional as F
from minigrad import random, safetensors_io
from minigrad.backend import cpu
from minigrad.optim import EMA, AdamW, WarmupCosine, clip_grad_norm_
from minigrad.tensor import Tensor

__all__ = ["OPENBLAS_PINS", "Batch", "RunFolder", "TrainConfig", "TrainResult", "Trainer", "batches", "environment", "train"]

OPENBLAS_PINS = "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"
"""Environment variables that make OpenBLAS run an older processor's code; set on some machines, they halve NumPy's speed."""

WINDOW = 50  # steps that running figures are averaged over


@dataclass(frozen=True)
class TrainConfig:
    """The options of a training run; each field's annotation is its help text on the command line.

    Raises:
        ValueError: a value out of range.
    """

    config: Annotated[str, "the network"] = "cifar-nano"
    dataset: Annotated[str, "the data set; auto is cifar10 where it can be found or downloaded, else coupling10, which is generated"] = "auto"
    data_dir: Annotated[Path | None, "an archive, its folder or their parent (if not given: $CONFORMER_DATA, the cache, then a download)"] = None
    out: Annotated[Path | None, "the run folder to make (if not given: runs/CONFIG-TIME)"] = None
    epochs: Annotated[int, "times the training images are seen"] = 20
    max_steps: Annotated[int | None, "stop after this many steps; the learning rate's schedule is fitted to them"] = None
    batch_size: Annotated[int, "images a step"] = 128
    seed: Annotated[int, "fixes every random draw"] = 0
    lr: Annotated[float, "highest learning rate"] = 2e-3
    warmup: Annotated[float, "share of the steps over which the learning rate rises; after them it falls along a cosine"] = 0.1
    weight_decay: Annotated[float, "AdamW's decay of weight matrices and kernels"] = 0.05
    label_smoothing: Annotated[float, "share of the target that is spread over all classes"] = 0.1
    clip_norm: Annotated[float, "largest norm of the gradient, 0 for no limit"] = 1.0
    drop_path: Annotated[float, "stochastic depth of the last transformer block"] = 0.0
    ema: Annotated[float, "decay of an average of the weights that is measured and saved too, 0 for none"] = 0.0
    log_every: Annotated[int, "steps between two lines of metrics.jsonl"] = 20

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 2, "log_every": 1, "seed": 0, "weight_decay": 0, "clip_norm": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {bound}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; it must be at least 1")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr is {self.lr}; it must be above 0")
        for name in ("warmup", "label_smoothing", "drop_path", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")


class Batch(NamedTuple):
    """One step's images float32 (B, 32, 32, 3), augmented and normalised, and labels int64 (B,)."""

    images: np.ndarray
    labels: np.ndarray


def batches(dataset: data.Dataset, batch_size: int, epoch: int) -> Iterator[Batch]:
    """The training batches of one epoch, shuffled, shifted and flipped; a last batch that is not full is dropped.

    What a batch holds depends on the seed, `epoch` and its place in the epoch only, so it may be made ahead of time, or again.

    Args:
        dataset: its training split is used.
        batch_size: images in each batch.
        epoch: number of the epoch, from 0.
    """
    order = random.generator("shuffle", epoch).permutation(len(dataset.train))
    for number in range(len(order) // batch_size):
        chosen = order[number * batch_size : (number + 1) * batch_size]
        images = shift_and_flip(dataset.train.images[chosen], random.generator("augment", epoch, number))
        yield Batch(normalize(images, dataset.mean, dataset.std), dataset.train.labels[chosen])


class RunFolder:
    """The files of one run: config.json, metrics.jsonl (a line each time something is measured), last.safetensors and best.safetensors.

    A folder that holds a run is never written to by another: config.json is created, not opened, so of two that want one folder the second
    is refused.

    Args:
        path: the folder; made if it is not there.
        config: what config.json says.
        header: the first line of metrics.jsonl.

    Raises:
        OSError: the folder cannot be made or written, or holds a run.
    """

    def __init__(self, path: Path, config: dict[str, Any], header: dict[str, Any]):
        self.path = path
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"{path} is a file; choose another folder with --out")
        path.mkdir(parents=True, exist_ok=True)
        taken = [name for name in ("config.json", "metrics.jsonl", "last.safetensors", "best.safetensors") if (path / name).exists()]
        if taken:
            raise FileExistsError(f"{path} already holds a run ({taken[0]}); choose another folder with --out, or remove this one")
        with open(path / "config.json", "x", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2) + "\n")
        self.log(**header)

    def log(self, **values: Any) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")

    def save(self, name: str, model: Conformer, entries: dict[str, str]) -> None:
        """Write `name`.safetensors: the model's state_dict, and `entries` as its metadata; an older one stays until the new one is complete."""
        safetensors_io.save_state(self.path / f"{name}.safetensors", model.state_dict(), entries)


class TrainResult(NamedTuple):
    """What a run came to: its folder, the steps it took, the last and the best accuracies on the test images, and how long it all took."""

    folder: Path
    steps: int
    test: Accuracies
    best: Accuracies
    seconds: float


class Trainer:
    """A training run: setting it up finds what is wrong with options, data or folder; `run` trains.

    Args:
        config: the options.
        display: where progress is shown; None prints lines.

    Raises:
        ValueError: an option that does not fit the data or the network, or data that is missing or damaged.
        OSError: the run folder holds a run already, or cannot be written.
    """

    def __init__(self, config: TrainConfig, display: Display | None = None):
        self.config = config
        self.display = display or Display()
        self.dataset = data.load(config.dataset, config.data_dir, self.display.message)
        self.steps_per_epoch = len(self.dataset.train) // config.batch_size
        if not self.steps_per_epoch:
            raise ValueError(f"batch_size is {config.batch_size}, but {self.dataset.source} has only {len(self.dataset.train)} training images")
        self.steps = min(config.epochs * self.steps_per_epoch, config.max_steps or config.epochs * self.steps_per_epoch)

        random.manual_seed(config.seed)
        self.network = replace(named_config(config.config), num_classes=len(self.dataset.classes), drop_path_rate=config.drop_path)
        self.network.stem_size(*self.dataset.train.images.shape[1:3])  # raises if the network cannot take images of this size
        self.model = Conformer(**asdict(self.network))
        self.optimizer = AdamW(parameter_groups(self.model, config.weight_decay), lr=config.lr)
        self.schedule = WarmupCosine(self.optimizer, self.steps, int(config.warmup * self.steps))
        self.ema = EMA(self.model, config.ema) if config.ema else None

        now = datetime.now().astimezone()
        self.folder = RunFolder(
            config.out or Path("runs", f"{config.config}-{now:%Y-%m-%d-%H%M%S}"),
            {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
            {
                "dataset": self.dataset.name,
                "dataset_notice": self.dataset.notice,
                "config": config.config,
                "parameters": sum(parameter.size for parameter in self.model.parameters()),
                "train_images": len(self.dataset.train),
                "test_images": len(self.dataset.test),
                "steps": self.steps,
                "seed": config.seed,
                "started": now.isoformat(timespec="seconds"),
                **environment(),
            },
        )
        self.step = 0  # steps taken
        self.learning_rate = 0.0  # of the last of them
        self.test: Accuracies | None = None
        self.best: Accuracies | None = None
        self._recent: deque[tuple[float, Accuracies, float]] = deque(maxlen=WINDOW)  # loss, accuracies and seconds of the last steps
        self._evaluation_seconds = 0.0
        self._step_began = 0.0

    def run(self) -> TrainResult:
        """Train to the last step, evaluating and saving after every epoch and at the end.

        Raises:
            FloatingPointError: the loss is not finite any more.
            OSError: a file cannot be written.
        """
        cpu.keep_freed_memory()
        started = time.perf_counter()
        show, config, dataset = self.display.message, self.config, self.dataset
        if dataset.notice:
            show(dataset.notice)
        show(f"{config.config} on {dataset.name}: {len(dataset.train):,} training and {len(dataset.test):,} test images from {dataset.source}")
        show(f"{self.steps:,} steps of {config.batch_size} images, run folder {self.folder.path}")
        show("accuracies in percent: CNN head/transformer head/sum of both")
        self.model.train()
        try:
            for epoch in range(-(-self.steps // self.steps_per_epoch)):
                self._step_began = time.perf_counter()
                for batch in itertools.islice(batches(self.dataset, self.config.batch_size, epoch), self.steps - self.step):
                    self._timed_step(batch)
                self._evaluate(epoch, started)
        finally:
            self.display.close()
        assert self.test is not None and self.best is not None
        seconds = time.perf_counter() - started
        weights = self.folder.path / "last.safetensors"
        show(f"{self.step:,} steps in {seconds / 60:.1f} minutes: test accuracy {self.test} %, weights in {weights}")
        return TrainResult(self.folder.path, self.step, self.test, self.best, seconds)

    def train_step(self, batch: Batch) -> tuple[float, Accuracies]:
        """Take one step of the optimiser; returns the loss and the accuracies on the batch, both from before the step.

        The loss is the mean of both heads' cross entropies. Source: Peng et al. 2021, section 3, and the official code's engine.py.
        """
        config = self.config
        random.set_step(self.step)
        self.learning_rate = self.schedule.set(self.step)
        cnn, transformer = self.model(Tensor(batch.images))  # (B, K) each
        losses = [F.cross_entropy(logits, batch.labels, label_smoothing=config.label_smoothing) for logits in (cnn, transformer)]
        loss = (losses[0] + losses[1]) * 0.5
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.step + 1}; a lower --lr (now {config.lr:g}) or --clip-norm may help")
        self.optimizer.zero_grad()
        loss.backward()
        if config.clip_norm:
            clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        if self.ema:
            self.ema.update()
        self.step += 1
        return value, accuracies(cnn.numpy(), transformer.numpy(), batch.labels)

    def _timed_step(self, batch: Batch) -> None:
        """One step, with its lines in the log and on the display."""
        loss, right = self.train_step(batch)
        now = time.perf_counter()
        self._recent.append((loss, right, now - self._step_began))  # from the end of the step before: making the batch counts
        self._step_began = now
        progress = self._progress()
        self.display.progress(progress)
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            self.folder.log(
                step=self.step,
                epoch=progress.epoch,
                loss=progress.loss,
                train_accuracy=progress.train._asdict(),
                learning_rate=progress.learning_rate,
                images_per_second=progress.images_per_second,
            )

    def _progress(self) -> Progress:
        losses, shares, seconds = zip(*self._recent, strict=True)
        each = sum(seconds) / len(seconds)
        evaluations_left = -(-self.steps // self.steps_per_epoch) - self.step // self.steps_per_epoch
        return Progress(
            step=self.step,
            steps=self.steps,
            epoch=self.step / self.steps_per_epoch,
            loss=sum(losses) / len(losses),
            train=Accuracies(*(sum(column) / len(column) for column in zip(*shares, strict=True))),
            test=self.test,
            learning_rate=self.learning_rate,
            images_per_second=self.config.batch_size / each,
            seconds_left=(self.steps - self.step) * each + evaluations_left * self._evaluation_seconds,
        )

    def _evaluate(self, epoch: int, started: float) -> None:
        """Measure the network on the test images, log and show it, and save the weights; the same for their average if there is one."""
        began = time.perf_counter()
        self.test, loss = evaluate(self.model, self.dataset.test, self.dataset)
        entries = {
            "network": json.dumps(asdict(self.network)),
            "config": self.config.config,
            "dataset": self.dataset.name,
            "step": str(self.step),
            "test_accuracy": json.dumps(self.test._asdict()),
        }
        self.folder.save("last", self.model, entries)
        if self.best is None or self.test.sum > self.best.sum:
            self.best = self.test
            self.folder.save("best", self.model, entries)
        averaged: Accuracies | None = None
        if self.ema:
            with self.ema.swapped():
                averaged, _ = evaluate(self.model, self.dataset.test, self.dataset)
                self.folder.save("ema", self.model, entries | {"test_accuracy": json.dumps(averaged._asdict())})
        self._evaluation_seconds = time.perf_counter() - began

        seconds = time.perf_counter() - started
        log = {"step": self.step, "epoch": self.step / self.steps_per_epoch, "test_accuracy": self.test._asdict(), "test_loss": loss}
        self.folder.log(**log, **({"ema_test_accuracy": averaged._asdict()} if averaged else {}), seconds=seconds)
        average = f" (average of the weights: {averaged} %)" if averaged else ""
        self.display.message(
            f"epoch {epoch + 1}, step {self.step}: test accuracy {self.test} %{average}, test loss {loss:.3f}, {seconds / 60:.1f} minutes"
        )


def environment() -> dict[str, Any]:
    """What a time depends on: versions, machine, threads, and the two variables that can slow NumPy's matrix products down."""
    try:
        version = metadata.version("minigrad-conformer")
    except metadata.PackageNotFoundError:  # run from a source folder that is not installed
        version = "not installed"
    return {
        "versions": {"minigrad-conformer": version, "numpy": np.__version__, "python": platform.python_version()},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": cpu.thread_count(),
        "blas": [
            {key: library.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
            for library in threadpoolctl.threadpool_info()
            if library.get("user_api") == "blas"
        ],
        **{name: os.environ.get(name) for name in OPENBLAS_PINS},
    }


def train(config: TrainConfig, display: Display | None = None) -> TrainResult:
    """Train a Conformer; see `Trainer` for what it raises."""
    return Trainer(config, display).run()
