"""One ConvTransBlock forward and backward: ours, PyTorch, torch.compile, and four peers that NumPy users know.

    make bench BENCH=block ARGS="[--configs cifar-nano cifar-micro] [--batches 64] [--peers-python PYTHON] [--quick]"

The block is the first coupled one of a network: two bottlenecks, a transformer block and both FCUs. All sides get the same numbers, and what they
compute is compared: the loss and the norm of the gradient of the feature map go to the file with the times. A peer that is not installed is left out,
and the output says so; they fit into an environment of their own:

    python -m venv V && V/bin/pip install jax tinygrad autograd mygrad scipy threadpoolctl

Read next: `peers.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.sides import Side, timed_answers

NAME = "block"
SIDES = ["minigrad", "torch-nchw", "torch-channels-last", "torch-tuned", "torch-compile", "jax", "tinygrad", "autograd", "mygrad"]


def case_of(config: str, batch: int, size: int = 32) -> dict:
    """The shapes of a network's first coupled block and of its parameters: all that a side needs to know."""
    from conformer.blocks import ConvTransBlock
    from conformer.config import named_config

    network = named_config(config)
    plan = network.blocks()[0]
    height, width = network.stem_size(size, size)
    rows, columns = network.token_grid(size, size)
    return {
        "config": config,
        "batch": batch,
        "heads": network.num_heads,
        "d": plan.dw_stride,
        "x": [batch, height, width, plan.inplanes],
        "x_t": [batch, 1 + rows * columns, network.embed_dim],
        "parameters": {name: list(parameter.shape) for name, parameter in ConvTransBlock(network, plan).named_parameters()},
    }


def numbers_of(case: dict) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Inputs and parameters by name, and the upstream gradients of both outputs. Weights are scaled by their fan-in, norms start near 1."""
    random = np.random.default_rng(0)
    inputs = {name: random.standard_normal(case[name], np.float32) for name in ("x", "x_t")}
    for name, shape in case["parameters"].items():
        array = random.standard_normal(shape, np.float32) * np.float32(np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1)
        inputs[name] = array + np.float32(len(shape) == 1 and name.endswith("weight"))
    return inputs, [random.standard_normal(case[name], np.float32) for name in ("x", "x_t")]


def prepare(side: Side, case: dict) -> Callable[[], None]:
    """A function that runs the block forward and backward; its `facts` are the loss and the norm of the gradient of x."""
    inputs, weights = numbers_of(case)
    if side.framework in ("minigrad", "torch"):
        step = {"minigrad": _our_step, "torch": _torch_step}[side.framework](side, case, inputs, weights)
    else:
        from benchmarks.peers import STEPS

        step = STEPS[side.framework](inputs, weights, case["heads"], case["d"])

    def run() -> None:
        step()

    loss, dx = step()
    run.facts = {"loss": float(loss), "dx_norm": float(np.linalg.norm(np.asarray(dx, np.float64)))}  # type: ignore[attr-defined]
    return run


def _our_step(side: Side, case: dict, inputs: dict[str, np.ndarray], weights: list[np.ndarray]) -> Callable[[], tuple[Any, Any]]:
    import minigrad
    from conformer.blocks import ConvTransBlock
    from conformer.config import named_config
    from minigrad.backend.cpu import keep_freed_memory

    keep_freed_memory()
    network = named_config(case["config"])
    model = ConvTransBlock(network, network.blocks()[0])
    model.load_state_dict({**model.state_dict(), **{name: inputs[name] for name in case["parameters"]}})
    x, x_t = (minigrad.Tensor(inputs[name], requires_grad=True) for name in ("x", "x_t"))
    leaves, upstream = [x, x_t, *model.parameters()], [minigrad.Tensor(weight) for weight in weights]

    def step() -> tuple[Any, Any]:
        y, y_t = model(x, x_t)
        loss = (y * upstream[0]).sum() + (y_t * upstream[1]).sum()
        return loss.item(), minigrad.grad(loss, leaves)[0].numpy()

    return step


def _torch_step(side: Side, case: dict, inputs: dict[str, np.ndarray], weights: list[np.ndarray]) -> Callable[[], tuple[Any, Any]]:
    import torch

    from benchmarks.torch_model import ConvTransBlock
    from conformer.config import named_config

    layout = side.memory_format
    network = named_config(case["config"])
    model = ConvTransBlock(network, network.blocks()[0])
    model.load_state_dict({name: torch.from_numpy(inputs[name]) for name in case["parameters"]}, strict=False)  # but for running statistics
    model = model.to(memory_format=layout)
    call = torch.compile(model) if side.compile else model
    x, weight = (torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=layout) for array in (inputs["x"], weights[0]))
    x_t, weight_t = torch.from_numpy(inputs["x_t"]).requires_grad_(), torch.from_numpy(weights[1])
    leaves = [x.requires_grad_(), x_t, *model.parameters()]

    def step() -> tuple[Any, Any]:
        y, y_t = call(x, x_t)
        loss = (y * weight).sum() + (y_t * weight_t).sum()
        return loss.item(), torch.autograd.grad(loss, leaves)[0].numpy()

    return step


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=3, seconds=1.0, configs=["cifar-nano", "cifar-micro"], batches=[64])
    options = measure.parse(parser, argv, timed_answers(prepare))
    if options.quick:
        options.sides = [name for name in options.sides if name != "torch-compile"]  # a minute
    cases = [case_of(config, batch) for config in options.configs for batch in options.batches]
    measure.run(NAME, cases, options, argv, fresh=False)


if __name__ == "__main__":
    main()
