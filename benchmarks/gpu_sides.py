"""One operation on the GPU, ours and PyTorch's, ready to be timed: forward and backward apart, each as a CUDA graph of many calls.

Both sides work on the same memory: (B, H, W, C) for us is channels_last for PyTorch. A graph calls the operation once on each of several copies of
its inputs and keeps every output, so that the cache holds nothing that the next launch reads (but for the smallest), and launching costs nothing.
Read next: `gpu_kernels.py`, which times them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

import minigrad
from benchmarks import gpu
from benchmarks.gpu_counts import BACKWARD, FORWARD, footprint
from benchmarks.op_cases import values_of
from minigrad.backend import cuda
from minigrad.op import REGISTRY, Fused
from minigrad.tensor import wrap


class Timed(NamedTuple):
    """launch: does all calls once. calls: how many there are in it. method: "graph", or "launches" where none could be captured. function: what was
    captured; it holds the arrays, of which a graph knows only where they were.
    """

    launch: Callable[[], Any]
    calls: int
    method: str
    function: Callable[[], Any]


class Side(NamedTuple):
    """An operation on one side. passes: forward and backward. first: its output and its gradients on the first copy, as PyTorch tensors in our layout
    (None: not asked for).
    """

    passes: dict[str, Timed]
    first: list[Any]


CACHES, MOST_COPIES = 4, 64


def copies_of(case: dict, cache: int) -> int:
    """How many copies of the inputs to work through until none is in a cache of so many bytes any more: `CACHES` times what it holds; but no more
    than `MOST_COPIES`, which of the smallest cases it may hold.
    """
    return int(min(max(1, -(-CACHES * cache // max(footprint(case), 1))), MOST_COPIES))


class Data:
    """The case's inputs and upstream gradients on the GPU, `copies` of each: as PyTorch tensors in our layout; both sides make views of them.

    Floats are normal, masks nine tenths True, labels 0 or 1.
    """

    def __init__(self, case: dict, copies: int):
        import torch

        self.case, self.device = case, gpu.torch_device()
        torch.manual_seed(0)
        self.inputs: list[list[Any]] = [[None if given is None else self._random(given) for given in case["inputs"]] for _ in range(copies)]
        out: dict[str, Any] = {"shape": case["out"], "kind": "f", "order": range(len(case["out"]))}
        if case["op"] == "scaled_dot_product_attention":
            out["order"] = case["inputs"][0]["order"]  # its heads are put side by side again next
        self.upstream = [self._random(out) for _ in range(copies)]

    def _random(self, given: dict) -> Any:
        import torch

        laid_out = [given["shape"][axis] for axis in given["order"]]
        if given["kind"] == "f":
            array = torch.randn(laid_out, device=self.device)
        elif given["kind"] == "b":
            array = torch.rand(laid_out, device=self.device) < 0.9
        else:
            array = torch.randint(0, 2, laid_out, device=self.device)
        return array.permute([int(axis) for axis in np.argsort(given["order"])])


def ours(x: Any) -> Any:
    """CuPy's view of a PyTorch tensor's memory (on the emulator a copy in the same order)."""
    if x is None or x.device.type == "cuda":
        return x if x is None else gpu.connect().asarray(x)
    axes = sorted(range(x.ndim), key=lambda axis: (-x.stride(axis), axis))
    return gpu.connect().asarray(x.permute(axes).numpy()).transpose([int(axis) for axis in np.argsort(axes)])


def torchs(x: Any) -> Any:
    """PyTorch's view of a CuPy array's memory (from the emulator a copy)."""
    import torch

    if gpu.emulated():
        return torch.from_numpy(np.array(gpu.connect().asnumpy(x)))
    return torch.as_tensor(x, device="cuda")


def our_side(data: Data) -> Side:
    """The kernels as the engine calls them, on raw arrays; where the gradient is a rule on Tensors, the rule."""
    case = data.case
    op = REGISTRY[case["op"]]
    assert isinstance(op, Fused)
    kernel, values = op.kernels["cuda"], values_of(case)
    needs = tuple(bool(given and given["needs"]) for given in case["inputs"])
    inputs = [[ours(x) for x in given] for given in data.inputs]
    upstream = [ours(dy) for dy in data.upstream]

    def output(result: Any) -> Any:
        return result[0] if isinstance(result, tuple) else result

    def forward() -> list:
        return [kernel.forward(*arrays, *values.values()) for arrays in inputs]

    made = forward()
    first = [torchs(output(made[0][0]))]
    passes = {FORWARD: captured(forward, len(inputs))}
    if any(needs):
        if (kernel_backward := kernel.backward) is not None:

            def backward() -> list:
                return [kernel_backward(dy, saved, needs) for dy, (_, saved) in zip(upstream, made, strict=True)]

            gradients = backward()[0]
        else:
            leaves = [[None if x is None else wrap(x).requires_grad_(need) for x, need in zip(given, needs, strict=True)] for given in inputs]
            wanted = [[x for x in given if x is not None and x.requires_grad] for given in leaves]
            ready: list = []  # a graph of Tensors can be walked once

            def backward() -> list:
                outputs = ready.pop() if ready else [output(op(*given, **values)) for given in leaves]
                return [minigrad.grad(y, xs, wrap(dy)) for y, xs, dy in zip(outputs, wanted, upstream, strict=True)]

            gradients = [g.data for g in backward()[0]]
            ready += [[output(op(*given, **values)) for given in leaves] for _ in range(2)]
        first += [torchs(g) for g in gradients if g is not None]
        passes[BACKWARD] = captured(backward, len(inputs), warm_ups=1)
    return Side(passes, first)


def captured(function: Callable[[], Any], calls: int, warm_ups: int = 2) -> Timed:
    """The function's work as a CUDA graph of ours."""
    try:
        return Timed(cuda.Captured(function, warm_ups).launch, calls, "graph", function)
    except Exception as error:  # the kernels can be timed without
        print(f"not captured: {type(error).__name__}: {error}", flush=True)
        return Timed(function, calls, "launches", function)


def torch_side(data: Data) -> Side:
    """What a PyTorch user would write: `torch_operations.py`, on channels_last views of the same memory."""
    import torch

    from benchmarks.torch_operations import MAPS, OPERATIONS, gives_map, torch_input

    case = data.case
    operation, values = OPERATIONS[case["op"]], values_of(case)
    maps, in_maps = MAPS.get(case["op"], ()), gives_map(case)

    def view(x: Any, position: int) -> Any:
        return None if x is None else torch_input(case["op"], position, x.detach(), values, torch.channels_last)

    with capture_stream() as stream:
        inputs, leaves = [], []
        for given in data.inputs:
            tensors = [view(x, position) for position, x in enumerate(given)]
            leaves.append([x.requires_grad_() for x, about in zip(tensors, case["inputs"], strict=True) if about and about["needs"]])
            inputs.append(tensors)
        upstream = [dy.permute(0, 3, 1, 2) if in_maps else dy for dy in data.upstream]

        def forward() -> list:
            return [operation(*tensors, **values) for tensors in inputs]

        def backward() -> list:
            return [torch.autograd.grad(y, xs, dy, retain_graph=True) for y, xs, dy in zip(made, leaves, upstream, strict=True)]

        made = forward()  # on the stream that is captured later: backward runs where forward did
        passes = {FORWARD: torch_graph(forward, stream, len(inputs))}
        first = [made[0].detach()]
        if leaves[0]:
            gradients = backward()[0]
            passes[BACKWARD] = torch_graph(backward, stream, len(inputs))
            first += gradients
    positions = [None, *[k for k, about in enumerate(case["inputs"]) if about and about["needs"]]]
    laid_out = [
        x.permute(0, 2, 3, 1) if (in_maps if position is None else position in maps) else x for x, position in zip(first, positions, strict=False)
    ]
    return Side(passes, laid_out)


@contextmanager
def capture_stream() -> Iterator[Any]:
    """A stream of PyTorch's that work is captured on, the current one inside; None on the CPU."""
    import torch

    if gpu.torch_device() == "cpu":
        yield None
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.current_stream().wait_stream(stream)


def torch_graph(function: Callable[[], Any], stream: Any, calls: int) -> Timed:
    """The function's work as a CUDA graph, which keeps the memory it writes to; called inside `capture_stream`."""
    if stream is None:
        return Timed(function, calls, "launches", function)
    import torch

    function()  # cuDNN looks for its fastest algorithm, which no capture allows
    graph = torch.cuda.CUDAGraph()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):  # CuPy may free memory meanwhile
        kept = function()
    del kept  # only now: what is freed inside a capture is given to the next call
    return Timed(graph.replay, calls, "graph", function)


def differences(side: Side, other: Side) -> list[float]:
    """Of the output and of each gradient: the norm of the difference over the norm of the other's."""
    import torch

    found = []
    for x, y in zip(side.first, other.first, strict=True):
        norm, off = (float(torch.linalg.vector_norm(z, dtype=torch.float64)) for z in (y, x - y))
        found.append(off / norm if norm else off)
    return found
