"""What is done to all parameters of a network at once: AdamW's step, clipping the gradient's norm, the average of the weights; ours and PyTorch's.

A case is like one of `op_cases.py`, with the operation "adamw", "clip_grad_norm" or "ema"; its input and its output are all parameters as one vector.
Read before: `gpu_sides.py`, which has the same for the operations of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import minigrad
from benchmarks import gpu, gpu_sides
from benchmarks.gpu_counts import UPDATE, UPDATES
from benchmarks.networks import network_of
from conformer.info import count
from conformer.model import Conformer, parameter_groups
from minigrad.optim import EMA, AdamW, clip_grad_norm_

DECAY, LEARNING_RATE, WEIGHT_DECAY = 0.999, 1e-3, 0.05


def cases_of(config: str, batch: int, size: int) -> list[dict]:
    """A case for each of them. batch, size: images in a step and their side in pixels, which change nothing here."""
    parameters = count(network_of({"config": config}), size).parameters
    vector = {"shape": [parameters], "kind": "f", "order": [0], "needs": False}
    case = {"config": config, "batch": batch, "size": size, "where": "after the training step", "count": 1, "values": {}}
    return [{**case, "op": op, "inputs": [vector], "out": [parameters]} for op in UPDATES]


def sides(case: dict) -> dict[str, Callable[[Any], gpu_sides.Side]]:
    """As `our_side` and `torch_side` of `gpu_sides.py`."""
    return {"minigrad": lambda _: _ours(case), "torch": lambda _: _torch(case)}


def _ours(case: dict) -> gpu_sides.Side:
    minigrad.manual_seed(0)
    model = Conformer(**asdict(network_of(case))).to(device="cuda")
    for parameter in model.parameters():
        parameter.grad = minigrad.Tensor(parameter.data * 0.01)
    if case["op"] == "adamw":
        update: Callable[[], Any] = AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LEARNING_RATE).step
    elif case["op"] == "ema":
        update = EMA(model, DECAY).update
    else:

        def update() -> Any:
            return clip_grad_norm_(model.parameters(), 1e-3)

    return gpu_sides.Side({UPDATE: gpu_sides.captured(update, 1)}, [])


def _torch(case: dict) -> gpu_sides.Side:
    import torch

    from benchmarks.torch_model import TorchConformer, optimizer_of

    torch.manual_seed(0)
    model = TorchConformer(network_of(case)).to(gpu.torch_device())
    parameters = list(model.parameters())
    with gpu_sides.capture_stream() as stream, torch.no_grad():
        for parameter in parameters:
            parameter.grad = parameter * 0.01
        if case["op"] == "adamw":
            optimizer = optimizer_of(model, LEARNING_RATE, WEIGHT_DECAY)
            for group in optimizer.param_groups:
                group["capturable"] = stream is not None
            update: Callable[[], Any] = optimizer.step
        elif case["op"] == "ema":
            values = [*parameters, *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
            averages = [value.detach().clone() for value in values]

            def update() -> Any:
                torch._foreach_lerp_(averages, values, 1 - DECAY)  # type: ignore[attr-defined]
        else:

            def update() -> Any:
                return torch.nn.utils.clip_grad_norm_(parameters, 1e-3, foreach=True)

        return gpu_sides.Side({UPDATE: gpu_sides.torch_graph(update, stream, 1)}, [])
