"""Training steps on the GPU, ours and PyTorch's: forward, the mean of both heads' cross entropies with label smoothing 0.1, backward, the gradient's
norm clipped to 1, AdamW.

A case is `{"config": "cifar-micro", "size": 32, "batch": 512}`. Images and labels are on the GPU before the step and stay there; nothing waits for
the GPU. Read next: `gpu_step.py`, which times them, and `gpu_profile.py`, which says where the time goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from benchmarks import gpu
from benchmarks.networks import batch_of, network_of

LEARNING_RATE, WEIGHT_DECAY, SMOOTHING, CLIP_NORM = 2e-3, 0.05, 0.1, 1.0
PRECISIONS = ("float32", "tf32", "bf16")


def our_step(case: dict, precision: str = "float32") -> Callable[[], Any]:
    """A function that takes a step, with a launch for each kernel, and returns the loss, which stays on the GPU.

    precision: of matrix products, see `minigrad.precision`.
    """
    import minigrad
    from conformer.model import Conformer, parameter_groups
    from minigrad import functional as F
    from minigrad.nn import BatchNorm2d
    from minigrad.optim import AdamW, clip_grad_norm_

    minigrad.manual_seed(0)
    model = Conformer(**asdict(network_of(case))).to(device="cuda")
    optimizer = AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE)
    images, labels = (minigrad.Tensor(array).to(device="cuda") for array in batch_of(case))
    # A graph reads and writes the same memory at every launch. So each step starts from the same running statistics, and moves them once.
    names = ("running_mean", "running_var", "num_batches_tracked")
    statistics = [(module, {name: getattr(module, name) for name in names}) for module in model.modules() if isinstance(module, BatchNorm2d)]

    def step() -> minigrad.Tensor:
        for module, buffers in statistics:
            for name, tensor in buffers.items():
                setattr(module, name, tensor)
        optimizer.zero_grad()
        with minigrad.precision(precision):
            cnn, transformer = model(images)
            loss = (F.cross_entropy(cnn, labels, label_smoothing=SMOOTHING) + F.cross_entropy(transformer, labels, label_smoothing=SMOOTHING)) * 0.5
            loss.backward()
        clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        return loss

    return step


def captured(step: Callable[[], Any]) -> Callable[[], None]:
    """The step as one CUDA graph; the function launches it."""
    from minigrad.backend import cuda

    return cuda.Captured(step).launch


def torch_step(case: dict, precision: str = "float32", compiled: str | None = None) -> Callable[[], Any]:
    """The same in PyTorch: channels_last, cuDNN's fastest algorithms (cudnn.benchmark), fused AdamW; the loss stays on the GPU.

    Args:
        case: the network, the images' size and how many.
        precision: float32; tf32: products and convolutions in TensorFloat-32; bf16: that, and autocast to bfloat16.
        compiled: the mode of torch.compile for the forward and backward pass, None for eager.
    """
    import torch
    import torch.nn.functional as F

    from benchmarks.torch_model import TorchConformer, optimizer_of

    device = gpu.torch_device()
    set_torch_precision(precision)
    torch.manual_seed(0)
    model = TorchConformer(network_of(case)).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = (torch.from_numpy(array).to(device) for array in batch_of(case))
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    optimizer = optimizer_of(model, LEARNING_RATE, WEIGHT_DECAY)
    parameters = list(model.parameters())
    half = precision == "bf16"

    def loss_of() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            cnn, transformer = model(images)
            return (F.cross_entropy(cnn, labels, label_smoothing=SMOOTHING) + F.cross_entropy(transformer, labels, label_smoothing=SMOOTHING)) / 2

    forward = torch.compile(loss_of, mode=compiled) if compiled else loss_of

    def step() -> torch.Tensor:
        set_torch_precision(precision)  # other steps of the process may have another
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=True)
        optimizer.step()
        return loss.detach()

    return step


def set_torch_precision(precision: str) -> None:
    """What PyTorch's float32 products and convolutions are computed in, from now on. Convolutions are in TF32 unless told otherwise."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
