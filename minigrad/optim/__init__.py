"""Optimisers and what goes with them: learning-rate schedule, gradient clipping, averaged weights. Read next: `optimizer.py`, then `adamw.py`."""

from __future__ import annotations

from minigrad import pytorch_names as _pytorch
from minigrad.optim.adamw import AdamW
from minigrad.optim.clip import clip_grad_norm_
from minigrad.optim.ema import EMA
from minigrad.optim.optimizer import Optimizer
from minigrad.optim.schedule import WarmupCosine, warmup_cosine
from minigrad.optim.sgd import SGD

__all__ = ["EMA", "SGD", "AdamW", "Optimizer", "WarmupCosine", "clip_grad_norm_", "warmup_cosine"]

globals()["__getattr__"] = _pytorch.absent(__name__, _pytorch.IN_OPTIM)  # as a `def`, a type checker would take it for any name
