"""Training steps on the GPU, ours and PyTorch's: forward, the mean of both heads' cross entropies with label smoothing 0.1, backward, the gradient's
norm clipped to 1, AdamW; from the same weights, on the same images.

A case is `{"config": "cifar-micro", "size": 32, "batch": 512}`. Images and labels are on the GPU before the step and stay there; nothing waits for
the GPU. Read next: `gpu_step.py`, which times them, and `gpu_profile.py`, which says where the time goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import minigrad
from benchmarks import gpu, gpu_sides
from benchmarks.networks import batch_of, network_of
from conformer.learner import Learner
from conformer.options import TrainConfig
from minigrad.backend import cuda

if TYPE_CHECKING:
    import torch

STEPS = 100_000  # that the learning rate's schedule is fitted to: none of the benchmarks takes as many
RATE = 2e-5  # so low that the steps which are taken before a capture leave the loss as it is: those of all sides can be compared


def _learner(case: dict, device: str) -> Learner:
    """The network of the case with the weights of seed 0, and what trains it."""
    return Learner(network_of(case), TrainConfig(batch_size=max(2, case["batch"]), lr=RATE), STEPS, device)


class OurStep:
    """A call takes a step, with a launch for each kernel, and returns the loss, which stays on the GPU.

    Args:
        case: the network, the images' size and how many.
        precision: of matrix products, see `minigrad.precision`.
    """

    def __init__(self, case: dict, precision: str = "float32"):
        self._learner, self._precision = _learner(case, "cuda"), precision
        images, labels = (minigrad.Tensor(array).to(device="cuda") for array in batch_of(case))
        self._parts = [(images, labels)]
        self._loss: Any = None

    def _note(self, part: int, loss: Any, *_: Any) -> None:
        self._loss = loss.detach()

    def _update(self) -> None:
        with minigrad.precision(self._precision):
            self._learner.update(self._parts, self._note)

    def __call__(self) -> Any:
        """Take a step."""
        self._learner.begin_step()
        self._update()
        self._learner.step += 1
        return self._loss

    def captured(self) -> Callable[[], Any]:
        """A function that takes a step as one CUDA graph and returns the loss."""
        self._learner.begin_step()
        graph = cuda.Captured(self._update)
        loss = self._loss

        def launch() -> Any:
            self._learner.begin_step()
            self._learner.optimizer.upload()
            graph.launch()
            self._learner.step += 1
            return loss

        return launch


def torch_step(case: dict, precision: str = "float32", compiled: str | None = None, graph: bool = False) -> Callable[[], Any]:
    """The same in PyTorch: channels_last, cuDNN's fastest algorithms (cudnn.benchmark), fused AdamW; the loss stays on the GPU.

    Args:
        case: the network, the images' size and how many.
        precision: float32; tf32: products and convolutions in TensorFloat-32; bf16: that, and autocast to bfloat16.
        compiled: the mode of torch.compile for the forward and backward pass, None for eager.
        graph: capture the whole step as one CUDA graph, as a PyTorch user can by hand.
    """
    import torch

    from benchmarks.torch_model import TorchConformer, loss_of, optimizer_of

    device = gpu.torch_device()
    set_torch_precision(precision)
    learner = _learner(case, "cpu")
    model, config = TorchConformer(network_of(case)), learner.config
    model.load_state_dict({name: torch.from_numpy(array) for name, array in learner.model.state_dict().items()})
    model = model.to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = (torch.from_numpy(array).to(device) for array in batch_of(case))
    images = images.permute(0, 3, 1, 2)  # channels_last
    optimizer = optimizer_of(model, learner.begin_step(), config.weight_decay)  # steps before a capture are taken at this rate
    parameters, half, smoothing = list(model.parameters()), precision == "bf16", config.label_smoothing

    def forward() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            return loss_of(model(images), labels, smoothing)

    call = torch.compile(forward, mode=compiled) if compiled else forward

    def update() -> torch.Tensor:
        optimizer.zero_grad()
        loss = call()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm, foreach=True)
        optimizer.step()
        return loss.detach()

    take: Callable[[], torch.Tensor] = _torch_captured(update, optimizer) if graph and device == "cuda" else update

    def step() -> torch.Tensor:
        set_torch_precision(precision)  # other steps of the process may have another
        if compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        rate = learner.begin_step()
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        learner.step += 1
        return take()

    return step


def _torch_captured(update: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], torch.Tensor]:
    """The update as one CUDA graph, with learning rates that it reads from the GPU's memory."""
    import torch

    for group in optimizer.param_groups:
        group.update(capturable=True, lr=torch.tensor(float(group["lr"]), device="cuda"))
    with gpu_sides.capture_stream() as stream:
        for _ in range(3):
            update()
        graph = torch.cuda.CUDAGraph()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
            loss = update()
    kept = loss, update  # the function holds the arrays, of which a graph knows only where they were

    def launch() -> torch.Tensor:
        graph.replay()
        return kept[0]

    return launch


def set_torch_precision(precision: str) -> None:
    """What PyTorch's float32 products and convolutions are computed in, from now on. Convolutions are in TF32 unless told otherwise."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
