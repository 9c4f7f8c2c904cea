"""A whole network on either side: what the benchmarks of the training step, of growth, of memory and of inference time.

A case is `{"config": "cifar-nano", "changes": {...}, "size": 32, "batch": 64}`: the configuration, what is changed in it, side of the images in
pixels, images at a time; "checkpoint": True has our side run every ConvTransBlock again in backward. Both sides get the same images and run the same
recipe: the mean of both heads' cross entropies with label smoothing 0.1, the gradient's norm clipped to 1, AdamW. Read next: `step.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

import minigrad
from benchmarks.sides import Side
from conformer.batches import Batch
from conformer.config import ConformerConfig, named_config
from conformer.learner import Learner
from conformer.model import Conformer
from conformer.options import TrainConfig
from minigrad.backend.cpu import keep_freed_memory


def network_of(case: dict) -> ConformerConfig:
    """The configuration that a case names, changed as it says."""
    return replace(named_config(case["config"]), **case.get("changes", {}))


def batch_of(case: dict) -> tuple[np.ndarray, np.ndarray]:
    """Random images (B, H, W, C) and labels (B,)."""
    random, network = np.random.default_rng(0), network_of(case)
    images = random.standard_normal((case["batch"], case["size"], case["size"], network.in_chans), np.float32)
    return images, random.integers(0, network.num_classes, case["batch"])


def training_step(side: Side, case: dict) -> Callable[[], None]:
    """A function that takes one step: forward, backward, AdamW."""
    return {"minigrad": _our_step, "torch": _torch_step}[side.framework](side, case)


def inference(side: Side, case: dict) -> Callable[[], None]:
    """A function that computes the logits of the case's images, without a graph and with batch norm's running statistics."""
    return {"minigrad": _our_inference, "torch": _torch_inference}[side.framework](side, case)


def our_learner(case: dict) -> tuple[Learner, Batch]:
    """The network and what trains it, as in `conformer train`, and the case's images and labels."""
    keep_freed_memory()  # as `conformer train` does
    learner = Learner(network_of(case), TrainConfig(batch_size=max(2, case["batch"])), steps=1000)
    learner.model.train()
    return learner, Batch(*batch_of(case))


def _our_step(side: Side, case: dict) -> Callable[[], None]:
    learner, batch = our_learner(case)
    learner.model.set_grad_checkpointing(case.get("checkpoint", False))
    return lambda: learner.train_step(batch) and None


def _our_inference(side: Side, case: dict) -> Callable[[], None]:
    keep_freed_memory()
    model = Conformer(**asdict(network_of(case)))
    model.eval()
    images = minigrad.Tensor(batch_of(case)[0])

    def run() -> None:
        with minigrad.no_grad():
            cnn, transformer = model(images)
            (cnn + transformer).numpy()

    return run


def _torch_model(side: Side, case: dict) -> tuple[Any, Any, Any, Any]:
    """The module, what is called of it, and images and labels in the side's layout."""
    import torch

    from benchmarks.torch_model import TorchConformer

    torch.manual_seed(0)
    images, labels = (torch.from_numpy(array) for array in batch_of(case))
    model = TorchConformer(network_of(case)).to(memory_format=side.memory_format)
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=side.memory_format)
    return model, torch.compile(model) if side.compile else model, images, labels


def _torch_step(side: Side, case: dict) -> Callable[[], None]:
    import torch

    from benchmarks.torch_model import loss_of, optimizer_of

    model, call, images, labels = _torch_model(side, case)
    optimizer = optimizer_of(model, 2e-3, 0.05)

    def step() -> None:
        optimizer.zero_grad()
        loss = loss_of(call(images), labels, 0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step


def _torch_inference(side: Side, case: dict) -> Callable[[], None]:
    import torch

    model, call, images, _ = _torch_model(side, case)
    model.eval()

    def run() -> None:
        with torch.inference_mode():
            cnn, transformer = call(images)
            (cnn + transformer).numpy()

    return run
