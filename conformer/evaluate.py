"""How good a network is: its predictions for a whole split, and what can be read off them.

A Conformer has two heads, so every figure here comes three times: by the CNN head, by the transformer head, and by the sum of their
logits, which is the paper's prediction. Read next: `conformer/train.py`, which calls `evaluate` after each epoch, and `conformer/report.py`, the page
made of it.

Letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from conformer.augment import normalize
from conformer.data import Dataset, Split
from conformer.model import Conformer
from minigrad import functional as F
from minigrad.modes import no_grad
from minigrad.tensor import Tensor

__all__ = ["HEADS", "Accuracies", "Predictions", "accuracies", "evaluate", "predict"]

HEADS = {"cnn": "CNN head", "transformer": "transformer head", "sum": "sum of both"}
"""What the three answers are called, by the names of `Accuracies`."""


class Accuracies(NamedTuple):
    """Shares of right answers, from 0 to 1: by each head alone, and by the sum of both heads' logits."""

    cnn: float
    transformer: float
    sum: float

    def __str__(self) -> str:
        """In percent."""
        return "/".join(f"{100 * share:.1f}" for share in self)


def accuracies(cnn_logits: np.ndarray, transformer_logits: np.ndarray, labels: np.ndarray) -> Accuracies:
    """Compare logits (N, K) of both heads with labels (N,). Source: Peng et al. 2021, section 3: the outputs are summed at inference."""
    heads = cnn_logits, transformer_logits, cnn_logits + transformer_logits
    return Accuracies(*(float((logits.argmax(axis=1) == labels).mean()) for logits in heads))


@dataclass(frozen=True)
class Predictions:
    """A network's answers to a split: logits of the `cnn` and the `transformer` head, each (N, K), and the true `labels` (N,)."""

    cnn: np.ndarray
    transformer: np.ndarray
    labels: np.ndarray

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
        return np.bincount(self.labels * classes + self.sum.argmax(axis=1), minlength=classes * classes).reshape(classes, classes)


def predict(model: Conformer, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Run the network in evaluation mode, without a graph; the mode it was in is put back.

    Args:
        model: the network.
        batches: normalised images, (n, H, W, C) each; how they are divided changes nothing but rounding.

    Returns:
        The CNN head's and the transformer head's logits, each (N, K).
    """
    training = model.training
    model.eval()
    try:
        with no_grad():
            parts = [[head.numpy() for head in model(Tensor(images))] for images in batches]
    finally:
        model.train(training)
    cnn, transformer = zip(*parts, strict=True)
    return np.concatenate(cnn), np.concatenate(transformer)


def evaluate(model: Conformer, split: Split, dataset: Dataset, batch_size: int = 500) -> Predictions:
    """The network's answers to a split.

    Args:
        model: the network.
        split: the images, not augmented.
        dataset: the data set the network was trained on: its constants normalise the images.
        batch_size: images at a time.
    """
    starts = range(0, len(split), batch_size)
    batches = (normalize(split.images[start : start + batch_size], dataset.mean, dataset.std) for start in starts)
    return Predictions(*predict(model, batches), split.labels)
