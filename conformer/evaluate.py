"""How good a network is: logits for a whole split, the three accuracies, and the way from a run folder back to its network.

A Conformer has two heads, so every accuracy here comes three times: by the CNN head, by the transformer head, and by the sum of their
logits, which is the paper's prediction. Read next: `conformer/train.py`, which calls `evaluate` after each epoch and writes what
`load_run` reads.

Letters: N images, K classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conformer.augment import normalize
from conformer.data import Dataset, Split
from conformer.model import Conformer
from minigrad import functional as F
from minigrad import safetensors_io
from minigrad.modes import no_grad
from minigrad.tensor import Tensor

__all__ = ["Accuracies", "Evaluation", "accuracies", "evaluate", "load_run", "predict_logits"]


class Accuracies(NamedTuple):
    """Shares of right answers, from 0 to 1: by each head alone, and by the sum of both heads' logits."""

    cnn: float
    transformer: float
    sum: float

    def __str__(self) -> str:
        """In percent."""
        return "/".join(f"{100 * share:.1f}" for share in self)


class Evaluation(NamedTuple):
    """What a network does on a split: its accuracies, and the mean of both heads' cross entropy (in nats, without label smoothing)."""

    accuracies: Accuracies
    loss: float


def accuracies(cnn_logits: np.ndarray, transformer_logits: np.ndarray, labels: np.ndarray) -> Accuracies:
    """Compare logits (N, K) of both heads with labels (N,). Source: Peng et al. 2021, section 3: the outputs are summed at inference."""
    heads = cnn_logits, transformer_logits, cnn_logits + transformer_logits
    return Accuracies(*(float((logits.argmax(axis=1) == labels).mean()) for logits in heads))


def predict_logits(model: Conformer, split: Split, dataset: Dataset, batch_size: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Run the network in evaluation mode over a split; the mode it was in is put back.

    Args:
        model: the network.
        split: the images, not augmented.
        dataset: the data set the network was trained on: its constants normalise the images.
        batch_size: images at a time; the result does not depend on it but for rounding.

    Returns:
        The CNN head's and the transformer head's logits, each (N, K).
    """
    training = model.training
    model.eval()
    try:
        with no_grad():
            parts = []
            for start in range(0, len(split), batch_size):
                images = normalize(split.images[start : start + batch_size], dataset.mean, dataset.std)  # (B, 32, 32, 3)
                parts.append([head.numpy() for head in model(Tensor(images))])
    finally:
        model.train(training)
    cnn, transformer = zip(*parts, strict=True)
    return np.concatenate(cnn), np.concatenate(transformer)


def evaluate(model: Conformer, split: Split, dataset: Dataset, batch_size: int = 500) -> Evaluation:
    """The network's accuracies and loss on a split; arguments as for `predict_logits`."""
    cnn, transformer = predict_logits(model, split, dataset, batch_size)
    with no_grad():
        loss = sum(F.cross_entropy(Tensor(logits), split.labels).item() for logits in (cnn, transformer)) / 2
    return Evaluation(accuracies(cnn, transformer, split.labels), loss)


def load_run(path: str | Path) -> tuple[Conformer, dict[str, str]]:
    """Build the network that a run saved.

    Args:
        path: a run folder (its last.safetensors is read), or a weights file of one.

    Returns:
        `(model, metadata)`; the metadata has the entries that `train` writes: network, config, dataset, step.

    Raises:
        OSError: there is no such file.
        ValueError: it is not a weights file that `conformer train` wrote, or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "last.safetensors"
    state, metadata = safetensors_io.load_state(path)
    try:
        model = Conformer(**json.loads(metadata["network"]))
        if missing := {"dataset", "config", "step"} - metadata.keys():
            raise KeyError(min(missing))
    except KeyError as error:
        raise ValueError(f"{path} does not say what it is for (no {error} in its metadata); give weights that `conformer train` wrote") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is for a network that this version cannot build ({error})") from error
    model.load_state_dict(state)
    return model, metadata
