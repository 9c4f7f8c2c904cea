"""How good a network is: its predictions for a whole split, and what can be read off them.

A Conformer has two heads, so every figure here comes three times: by the CNN head, by the transformer head, and by the sum of their
logits, which is the paper's prediction. A network of one head, as each branch alone is, has the last of the three only.
Read next: `conformer/train.py`, which calls `evaluate` after an epoch, and `conformer/report.py`, the page made of it.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from conformer.augment import PLAN, channel_constants, cuda_augment, normalize
from conformer.data import Dataset, Split
from conformer.model import evaluating
from minigrad import backend, nn
from minigrad import functional as F
from minigrad.backend import cuda
from minigrad.modes import no_grad
from minigrad.tensor import Tensor, wrap

__all__ = ["HEADS", "TTA", "Accuracies", "Predictions", "accuracies", "by_head", "evaluate", "heads_of", "predict", "titles"]

HEADS = {"cnn": "CNN head", "transformer": "transformer head", "sum": "sum of both"}
"""What the three answers are called, by the names of `Accuracies`."""

TTA = "none", "mirror"
"""Test-time augmentations: see `evaluate`."""


def titles(heads: Collection[str]) -> dict[str, str]:
    """What the answers of a network are called that has these of `HEADS`: all of them, or "sum" alone."""
    return HEADS if "cnn" in heads else {"sum": "its one head"}


class Accuracies(NamedTuple):
    """Shares of right answers, from 0 to 1: by each head alone, and by the sum of both heads' logits. Of a network of one head it is None by each."""

    cnn: float | None
    transformer: float | None
    sum: float

    @classmethod
    def mean(cls, shares: Iterable[Accuracies]) -> Accuracies:
        """The mean of several, of one network."""
        columns = [[share for share in column if share is not None] for column in zip(*shares, strict=True)]
        cnn, transformer, both = (sum(column) / len(column) if column else None for column in columns)
        assert both is not None
        return cls(cnn, transformer, both)

    def by_head(self) -> dict[str, float]:
        """Those that there are, by the names of `HEADS`."""
        return {head: share for head, share in self._asdict().items() if share is not None}

    def __str__(self) -> str:
        """In percent."""
        return "/".join(f"{100 * share:.1f}" for share in self.by_head().values())


def heads_of(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Logits (B, K) of each head of a network, which gives one tensor or two.

    Raises:
        TypeError: it gives something else.
    """
    logits = model(images)
    heads = (logits,) if isinstance(logits, Tensor) else logits
    if not isinstance(heads, tuple | list) or len(heads) not in (1, 2) or not all(isinstance(head, Tensor) for head in heads):
        what = f"{type(heads).__name__} of {len(heads)}" if isinstance(heads, tuple | list) else type(heads).__name__
        raise TypeError(f"a {type(model).__name__} gives a {what}; its forward has to return a Tensor of logits, or two")
    return tuple(heads)


def by_head(heads: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Logits by the names of `HEADS`, of both heads and their sum, or of one head as "sum" alone.

    Source: Peng et al. 2021, section 3: the outputs are summed at inference.
    """
    if len(heads) == 1:
        return {"sum": heads[0]}
    cnn, transformer = heads
    return {"cnn": cnn, "transformer": transformer, "sum": cnn + transformer}


def accuracies(heads: Sequence[np.ndarray], labels: np.ndarray) -> Accuracies:
    """Compare each head's logits (N, K) with labels (N,); ValueError if they have another shape."""
    labels, count = np.asarray(labels), len(heads[0])
    if labels.shape != (count,):
        raise ValueError(f"accuracies: {count} rows of logits need labels of shape ({count},), they have shape {labels.shape}")
    shares = {head: float((logits.argmax(axis=1) == labels).mean()) for head, logits in by_head(heads).items()}
    return Accuracies(shares.get("cnn"), shares.get("transformer"), shares["sum"])


@dataclass(frozen=True)
class Predictions:
    """A network's answers to a split: each head's logits (N, K), of the CNN and the transformer head or of the only one, and the true `labels` (N,).

    Raises:
        ValueError: a label is none of the K classes.
    """

    heads: tuple[np.ndarray, ...]
    labels: np.ndarray

    def __post_init__(self) -> None:
        classes, lowest, highest = self.heads[0].shape[1], np.min(self.labels, initial=0), np.max(self.labels, initial=0)
        if lowest < 0 or highest >= classes:
            raise ValueError(f"there are labels from {lowest} to {highest}, but the network has {classes} classes, 0 to {classes - 1}")

    @property
    def cnn(self) -> np.ndarray:
        """The CNN head's logits (N, K)."""
        return self._of_two(0)

    @property
    def transformer(self) -> np.ndarray:
        """The transformer head's logits (N, K)."""
        return self._of_two(1)

    def _of_two(self, place: int) -> np.ndarray:
        if len(self.heads) == 1:
            raise ValueError("Predictions: the network has one head; its logits are `sum`")
        return self.heads[place]

    @property
    def sum(self) -> np.ndarray:
        """The network's answer: the sum of both heads' logits (N, K), or those of its one head."""
        return by_head(self.heads)["sum"]

    @property
    def accuracies(self) -> Accuracies:
        """Shares of right answers."""
        return accuracies(self.heads, self.labels)

    @property
    def loss(self) -> float:
        """The mean of the heads' cross entropies, without label smoothing, as `test_loss` in metrics.jsonl; of their sum, see `cross_entropies`."""
        return sum(self._cross_entropy(logits) for logits in self.heads) / len(self.heads)

    def cross_entropies(self) -> dict[str, float]:
        """In nats, without label smoothing, by each of `HEADS` that there is."""
        return {head: self._cross_entropy(logits) for head, logits in by_head(self.heads).items()}

    def _cross_entropy(self, logits: np.ndarray) -> float:
        with no_grad():
            return F.cross_entropy(Tensor(logits), self.labels).item()

    @property
    def probabilities(self) -> np.ndarray:
        """The softmax of `sum` (N, K). Where the heads agree it is surer than either of them: adding logits does what a temperature of 1/2 does."""
        return _softmax(self.sum)

    def calibration_errors(self, bins: int = 15) -> dict[str, float]:
        """How far percentages are from shares of right answers, from 0 to 1, by each of `HEADS` that there is: the expected calibration error.

        The likeliest class's probabilities are sorted into bins of one width. In each bin their mean is compared with the share of right answers; the
        result is the mean of these differences, weighted with the images in each bin.

        Source: Guo et al. 2017, section 2.
        """
        errors = {}
        for head, logits in by_head(self.heads).items():
            sure = _softmax(logits).max(axis=1)  # (N,)
            place = np.searchsorted(np.arange(1, bins) / bins, sure)  # nan is in the last bin, and so in the result
            errors[head] = float(np.abs(np.bincount(place, weights=(logits.argmax(axis=1) == self.labels) - sure)).sum() / len(sure))
        return errors

    def class_accuracies(self) -> dict[str, np.ndarray]:
        """Shares of right answers class by class, (K,) by each of `HEADS` that there is; nan where a class has no images."""
        counts = np.bincount(self.labels, minlength=self.heads[0].shape[1])  # (K,)
        shares = {}
        for head, logits in by_head(self.heads).items():
            right = np.bincount(self.labels[logits.argmax(axis=1) == self.labels], minlength=len(counts))
            shares[head] = np.divide(right, counts, out=np.full(len(counts), np.nan), where=counts > 0)
        return shares

    def confusion_matrix(self) -> np.ndarray:
        """How many images of class i (row) the network, by `sum`, takes for class j (column): integers (K, K)."""
        classes = self.heads[0].shape[1]
        pairs = np.asarray(self.labels, np.int64) * classes + self.sum.argmax(axis=1)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _softmax(logits: np.ndarray) -> np.ndarray:
    with no_grad():
        return F.softmax(Tensor(logits)).numpy()


def predict(model: nn.Module, batches: Iterable[np.ndarray | Tensor]) -> tuple[np.ndarray, ...]:
    """Run the network in evaluation mode, without a graph; the mode it was in is put back.

    A GPU is waited for once a head, at the end.

    Args:
        model: the network.
        batches: normalised images, (n, H, W, C) each, on any device and of either dtype; how they are divided changes nothing but rounding.

    Returns:
        The CNN head's and the transformer head's logits, each (N, K), or those of its one head alone.

    Raises:
        TypeError: the network gives something else than the logits of one head or of two.
    """
    device, dtype = _device(model), next(model.parameters()).dtype
    with evaluating(model), no_grad():
        parts = [[head.data for head in heads_of(model, Tensor(images).to(device=device, dtype=dtype))] for images in batches]
    return tuple(backend.to_device(np.concatenate(head), "cpu") for head in zip(*parts, strict=True))


def _device(model: nn.Module) -> str:
    return next(model.parameters()).device


def evaluate(model: nn.Module, split: Split, dataset: Dataset, batch_size: int | None = None, tta: str = "none") -> Predictions:
    """The network's answers to a split.

    Args:
        model: the network; it runs where it is.
        split: the images, not augmented.
        dataset: the data set the network was trained on: its constants normalise the images.
        batch_size: images at a time; None takes 500 on the CPU and 1,000 on a GPU, which is then busy longer than the host needs for the launches.
        tta: test-time augmentation, one of `TTA`: with "mirror" an image's logits are the means of its own and its mirror image's.

    Raises:
        ValueError: another tta, no images, or a batch size below 1.
    """
    if tta not in TTA:
        raise ValueError(f"evaluate: tta is {tta!r}; it must be one of {', '.join(TTA)}")
    if not len(split) or (batch_size is not None and batch_size < 1):
        raise ValueError(f"evaluate: {len(split)} images in batches of {batch_size}; give at least one image, and batches of at least 1")
    on_gpu = _device(model) == "cuda"
    batch_size = batch_size or (1000 if on_gpu else 500)
    batches = _on_gpu if on_gpu else _on_cpu
    answers = [predict(model, batches(split, dataset, batch_size, mirrored)) for mirrored in ([False, True] if tta == "mirror" else [False])]
    heads = tuple(np.mean(logits, axis=0) for logits in zip(*answers, strict=True))  # (N, K) each
    return Predictions(heads, split.labels)


def _on_cpu(split: Split, dataset: Dataset, batch_size: int, mirrored: bool) -> Iterator[np.ndarray]:
    """A split's images, normalised, batch by batch."""
    images = split.images[:, :, ::-1] if mirrored else split.images
    for start in range(0, len(split), batch_size):
        yield normalize(images[start : start + batch_size], dataset.mean, dataset.std)


def _on_gpu(split: Split, dataset: Dataset, batch_size: int, mirrored: bool) -> Iterator[Tensor]:
    """The same batches made on the GPU: a quarter of the bytes is brought there."""
    cp = cuda.array_module()
    constants = cp.asarray(channel_constants(dataset.mean, dataset.std))
    images, labels, place = cp.asarray(split.images), cp.asarray(split.labels), cp.asarray(np.zeros(1, np.uint64))
    rows = np.zeros((len(split), PLAN), np.int32)
    rows[:, 0], rows[:, 3] = range(len(split)), mirrored
    plan = cp.asarray(rows)
    for start in range(0, len(split), batch_size):
        part = plan[start : start + batch_size]
        x, y = cp.empty((len(part), *split.images.shape[1:]), np.float32), cp.empty(len(part), np.int64)
        cuda_augment(images, labels, part, place, constants, x, y)
        yield wrap(x)
