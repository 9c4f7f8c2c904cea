"""How good a network is: its predictions for a whole split, and what can be read off them.

A Conformer has two heads, so every figure here comes three times: by the CNN head, by the transformer head, and by the sum of their
logits, which is the paper's prediction. Read next: `conformer/train.py`, which calls `evaluate` after each epoch, and `conformer/report.py`, the page
made of it.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from conformer.augment import PLAN, channel_constants, cuda_augment, normalize
from conformer.data import Dataset, Split
from conformer.model import Conformer
from minigrad import backend
from minigrad import functional as F
from minigrad.backend import cuda
from minigrad.modes import no_grad
from minigrad.tensor import Tensor, wrap

__all__ = ["HEADS", "TTA", "Accuracies", "Predictions", "accuracies", "evaluate", "predict"]

HEADS = {"cnn": "CNN head", "transformer": "transformer head", "sum": "sum of both"}
"""What the three answers are called, by the names of `Accuracies`."""

TTA = "none", "mirror"
"""Test-time augmentations: see `evaluate`."""


class Accuracies(NamedTuple):
    """Shares of right answers, from 0 to 1: by each head alone, and by the sum of both heads' logits."""

    cnn: float
    transformer: float
    sum: float

    def __str__(self) -> str:
        """In percent."""
        return "/".join(f"{100 * share:.1f}" for share in self)


def accuracies(cnn_logits: np.ndarray, transformer_logits: np.ndarray, labels: np.ndarray) -> Accuracies:
    """Compare logits (N, K) of both heads with labels (N,); ValueError if they have another shape.

    Source: Peng et al. 2021, section 3: the outputs are summed at inference.
    """
    labels = np.asarray(labels)
    if labels.shape != cnn_logits.shape[:1]:
        raise ValueError(f"accuracies: {len(cnn_logits)} rows of logits need labels of shape ({len(cnn_logits)},), they have shape {labels.shape}")
    heads = cnn_logits, transformer_logits, cnn_logits + transformer_logits
    return Accuracies(*(float((logits.argmax(axis=1) == labels).mean()) for logits in heads))


@dataclass(frozen=True)
class Predictions:
    """A network's answers to a split: logits of the `cnn` and the `transformer` head, each (N, K), and the true `labels` (N,).

    Raises:
        ValueError: a label is none of the K classes.
    """

    cnn: np.ndarray
    transformer: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        classes, lowest, highest = self.cnn.shape[1], np.min(self.labels, initial=0), np.max(self.labels, initial=0)
        if lowest < 0 or highest >= classes:
            raise ValueError(f"there are labels from {lowest} to {highest}, but the network has {classes} classes, 0 to {classes - 1}")

    @property
    def sum(self) -> np.ndarray:
        """The network's answer: the sum of both heads' logits (N, K)."""
        return self.cnn + self.transformer

    @property
    def accuracies(self) -> Accuracies:
        """Shares of right answers."""
        return accuracies(self.cnn, self.transformer, self.labels)

    @property
    def loss(self) -> float:
        """The mean of both heads' cross entropies, in nats, without label smoothing."""
        with no_grad():
            return sum(F.cross_entropy(Tensor(logits), self.labels).item() for logits in (self.cnn, self.transformer)) / 2

    @property
    def probabilities(self) -> np.ndarray:
        """The softmax of the sum of both heads' logits (N, K)."""
        with no_grad():
            return F.softmax(Tensor(self.sum)).numpy()

    def class_accuracies(self) -> dict[str, np.ndarray]:
        """Shares of right answers class by class, (K,) by each of `HEADS`; nan where a class has no images."""
        counts = np.bincount(self.labels, minlength=self.cnn.shape[1])  # (K,)
        shares = {}
        for head, logits in zip(HEADS, (self.cnn, self.transformer, self.sum), strict=True):
            right = np.bincount(self.labels[logits.argmax(axis=1) == self.labels], minlength=len(counts))
            shares[head] = np.divide(right, counts, out=np.full(len(counts), np.nan), where=counts > 0)
        return shares

    def confusion_matrix(self) -> np.ndarray:
        """How many images of class i (row) the sum of both heads takes for class j (column): integers (K, K)."""
        classes = self.cnn.shape[1]
        pairs = np.asarray(self.labels, np.int64) * classes + self.sum.argmax(axis=1)
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def predict(model: Conformer, batches: Iterable[np.ndarray | Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Run the network in evaluation mode, without a graph; the mode it was in is put back.

    A GPU is waited for once, at the end.

    Args:
        model: the network.
        batches: normalised images, (n, H, W, C) each, on any device and of either dtype; how they are divided changes nothing but rounding.

    Returns:
        The CNN head's and the transformer head's logits, each (N, K).

    Raises:
        TypeError: the network has not two heads: it is one of the branches alone.
    """
    before = [(module, module.training) for module in model.modules()]  # some may be frozen
    device, dtype = _device(model), next(model.parameters()).dtype
    model.eval()
    try:
        with no_grad():
            parts = [[head.data for head in _two_heads(model, Tensor(images).to(device=device, dtype=dtype))] for images in batches]
    finally:
        for module, training in before:
            module.training = training
    cnn, transformer = (backend.to_device(np.concatenate(head), "cpu") for head in zip(*parts, strict=True))
    return cnn, transformer


def _two_heads(model: Conformer, images: Tensor) -> tuple[Tensor, Tensor]:
    heads = model(images)
    if isinstance(heads, Tensor):
        raise TypeError(f"predict: a {type(model).__name__} gives one tensor of shape {heads.shape}; give a Conformer, which has two heads")
    return heads


def _device(model: Conformer) -> str:
    return next(model.parameters()).device


def evaluate(model: Conformer, split: Split, dataset: Dataset, batch_size: int | None = None, tta: str = "none") -> Predictions:
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
    cnn, transformer = (np.mean(logits, axis=0) for logits in zip(*answers, strict=True))  # (N, K) each
    return Predictions(cnn, transformer, split.labels)


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
