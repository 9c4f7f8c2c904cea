"""Cross-entropy: the loss of a classifier, from its logits.

Letters: B examples, K classes. Read next: `attention.py`.
"""

from __future__ import annotations

import math
from numbers import Real

import numpy as np

from minigrad.backend import cuda
from minigrad.fused.floats import check_floats
from minigrad.fused.log_softmax import cpu_forward as log_softmax_forward
from minigrad.fused.log_softmax import log_softmax
from minigrad.op import fused
from minigrad.ops import gather
from minigrad.tensor import Tensor

__all__ = ["cross_entropy"]


@fused
def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The mean over the batch of `-sum_k t_k log p_k`, where p = softmax(logits) and t is the target distribution.

    `t = (1 - label_smoothing) * target + label_smoothing / K`; for an integer label, `target` is 1 at the label and 0 elsewhere.

    Args:
        logits: (B, K).
        labels: integers (B,) from 0 to K - 1, or a target distribution for each example (B, K), of the logits' dtype (mixup and cutmix make such).
        label_smoothing: from 0 to 1, how much of the target is spread evenly over the classes.

    Returns:
        A number; nan for an empty batch, as in PyTorch.

    Raises:
        ValueError: shapes that do not fit together, a label_smoothing outside [0, 1], a label that is no class (on the
            CPU; the GPU is not waited for: loss and gradient of that row are nan).
        TypeError: logits that are not of floats, labels of another dtype, or a label_smoothing that is no number.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html; smoothing: Szegedy et al. 2015, section 7.
    """
    batch, classes = logits.shape
    scale = 1 / batch if batch else math.nan
    log_p = log_softmax(logits, axis=1)                                    # (B, K)
    if labels.dtype.kind == "f":
        target = labels * (1 - label_smoothing) + label_smoothing / classes  # (B, K)
        return -(target * log_p).sum() * scale
    hard = -gather(log_p, labels.reshape(batch, 1), 1).sum() * scale       # one log-probability per example
    if label_smoothing == 0:
        return hard
    return hard * (1 - label_smoothing) - log_p.sum() * (scale * label_smoothing / classes)


@cross_entropy.check
def _check(logits, labels, label_smoothing) -> None:
    check_floats("cross_entropy", "logits", logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        flat, classes = "", logits.shape[-1] if logits.ndim else 0
        if logits.ndim > 2 and classes and labels.shape in (logits.shape, logits.shape[:-1]):
            target = f"-1, {classes}" if labels.dtype.kind == "f" else "-1"
            flat = f"; if classes are the last axis, give logits.reshape(-1, {classes}), and labels.reshape({target})"
        elif logits.ndim > 2 and classes:
            flat = "; bring the classes to the last axis, where PyTorch has them as axis 1, and the other axes together"
        raise ValueError(f"cross_entropy: logits must be (batch, classes) with at least one class, they have shape {logits.shape}{flat}")
    batch, classes = logits.shape
    if not isinstance(label_smoothing, Real):
        what = f"an object of type {type(label_smoothing).__name__}"
        raise TypeError(f"cross_entropy: label_smoothing is {what}, it must be a number; there are no weights of classes")
    if not 0 <= float(label_smoothing) <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, it must be from 0 to 1")
    if labels.dtype.kind == "f":
        if labels.shape != logits.shape:
            raise ValueError(
                f"cross_entropy: float labels are target distributions and must have the logits' shape {logits.shape}, they have shape "
                f"{labels.shape}; class numbers must be integers, in an array (lists of numbers become float32)"
            )
        return
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers or floats, they are {labels.dtype}")
    if labels.shape != (batch,):
        raise ValueError(f"cross_entropy: {batch} rows of logits need integer labels of shape ({batch},), they have shape {labels.shape}")
    if batch and labels.device == "cpu":  # elsewhere looking at them would wait for the device, at every step
        low, high = int(labels.data.min()), int(labels.data.max())
        if low < 0 or high >= classes:
            raise ValueError(f"cross_entropy: labels go from {low} to {high}, logits have {classes} classes, 0 to {classes - 1}")


def cpu_forward(logits, labels, label_smoothing):
    batch, classes = logits.shape
    log_p, _ = log_softmax_forward(logits, 1)                              # (B, K)
    soft = labels.dtype.kind == "f"
    if soft:
        total = ((labels * (1 - label_smoothing) + label_smoothing / classes) * log_p).sum()
    else:  # a label picks its log-probability: multiplying the others by 0 would give nan where one is -inf
        total = (1 - label_smoothing) * log_p[np.arange(batch), labels].sum()
        if label_smoothing:
            total += label_smoothing / classes * log_p.sum()
    scale = -1 / batch if batch else math.nan
    return np.asarray(total * scale, logits.dtype), (log_p, labels, label_smoothing, scale)


def cpu_backward(dy, saved, needs):
    """`loss = -1/B sum_bk t_bk log p_bk`. With `d log p_k / d z_j = delta_kj - p_j`,

        dlogits_bj = -1/B sum_k t_bk (delta_kj - p_bj) = 1/B (p_bj sum_k t_bk - t_bj),

    and the t of an integer label sum to 1. For soft labels, dlabels = -1/B (1 - label_smoothing) log p.
    """
    log_p, labels, label_smoothing, scale = saved
    scale = dy * log_p.dtype.type(scale)                                   # -dy / B
    batch, classes = log_p.shape
    soft = labels.dtype.kind == "f"
    dlogits = dlabels = None
    if needs[0]:
        dlogits = np.exp(log_p)                                            # (B, K)
        if soft:
            dlogits *= (1 - label_smoothing) * labels.sum(1, keepdims=True) + label_smoothing
            dlogits -= (1 - label_smoothing) * labels
        else:
            dlogits[np.arange(batch), labels] -= 1 - label_smoothing
        if label_smoothing:
            dlogits -= label_smoothing / classes
        dlogits *= -scale
    if soft and needs[1]:
        dlabels = log_p * ((1 - label_smoothing) * scale)
    return dlogits, dlabels


READS = {"logits": "labels", "labels": ""}
cross_entropy.kernel("cpu", cpu_forward, cpu_backward, fresh=True, reads=READS)


_cuda = cuda.Kernels(__file__)


def _cuda_rows(log_p) -> tuple[str, int, int]:
    """Template arguments, blocks and threads of a block, for a kernel in which several threads share a row."""
    rows, classes = log_p.shape
    number = cuda.c_type(log_p.dtype)
    return (f"{number}, 32", -(-rows // 4), 128) if classes <= 1024 else (f"{number}, 256", rows, 256)


def cuda_forward(logits, labels, label_smoothing):
    """As on the CPU; labels are looked at on the device only: see cross_entropy.cu."""
    cp, (batch, classes) = cuda.array_module(), logits.shape
    soft = labels.dtype.kind == "f"
    labels = labels if soft else labels.astype(np.int64, copy=False)
    log_p, losses, loss = cp.empty_like(logits), cp.empty(batch, logits.dtype), cp.empty((), logits.dtype)  # (B, K), (B,), ()
    types, blocks, threads = _cuda_rows(logits)
    either = (None, labels) if soft else (labels, None)
    smoothing = 1 - float(label_smoothing), float(label_smoothing)
    _cuda.launch(f"cross_entropy_forward<{types}>", blocks, threads, logits, *either, log_p, losses, batch, classes, *smoothing)
    scale = -1 / batch if batch else math.nan
    _cuda.launch(f"cross_entropy_mean<{cuda.c_type(logits.dtype)}>", 1, 256, losses, loss, batch, scale)
    return loss, (log_p, labels, smoothing)


def cuda_backward(dy, saved, needs):
    log_p, labels, smoothing = saved
    cp, (batch, classes) = cuda.array_module(), log_p.shape
    soft = labels.dtype.kind == "f"
    dlogits = cp.empty_like(log_p) if needs[0] else None                   # (B, K)
    dlabels = cp.empty_like(log_p) if soft and needs[1] else None          # (B, K)
    types, blocks, threads = _cuda_rows(log_p)
    either = (None, labels) if soft else (labels, None)
    _cuda.launch(f"cross_entropy_backward<{types}>", blocks, threads, dy, log_p, *either, dlogits, dlabels, batch, classes, *smoothing)
    return dlogits, dlabels


cross_entropy.kernel("cuda", cuda_forward, cuda_backward, fresh=True, reads=READS)
