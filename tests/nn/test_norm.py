"""BatchNorm2d against PyTorch's over several steps: outputs, gradients, running statistics, and what must leave the statistics alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor, nn
from tests.cuda_device import ORDERS, nothing_waits, on_cuda
from tests.nn.parity import check_layer
from tests.support import assert_close, rng


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(x).permute(0, 3, 1, 2)


def pair(**options: object) -> tuple[nn.BatchNorm2d, torch.nn.BatchNorm2d]:
    """Both layers in float64 with the same random scale and shift."""
    ours, theirs = nn.BatchNorm2d(3, **options).to(dtype=np.float64), torch.nn.BatchNorm2d(3, **options).double()  # type: ignore[arg-type]
    state = {name: rng(9).uniform(0.5, 1.5, value.shape) if value.ndim else value for name, value in ours.state_dict().items()}
    ours.load_state_dict(state)
    theirs.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return ours, theirs


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track_running_stats", [True, False])
def test_training_then_evaluation(momentum: float | None, affine: bool, track_running_stats: bool):
    ours, theirs = pair(momentum=momentum, affine=affine, track_running_stats=track_running_stats, eps=1e-4)
    for step in range(4):
        if step == 3:
            ours.eval(), theirs.eval()
        x, upstream = rng(step).normal(2, 3, (2, 3, 4, 3)), rng(step + 50).uniform(-1, 1, (2, 3, 4, 3))
        our_x, their_x = Tensor(x, requires_grad=True), nchw(x).requires_grad_()
        y, reference = ours(our_x), theirs(their_x)
        assert_close(y, reference.permute(0, 2, 3, 1).detach(), f"step {step}")
        y.backward(Tensor(upstream))
        reference.backward(nchw(upstream))
        assert_close(our_x.grad, their_x.grad.permute(0, 2, 3, 1), f"step {step}: gradient of x")
        reference_state = theirs.state_dict()
        assert list(ours.state_dict()) == list(reference_state)
        for name, value in ours.state_dict().items():
            assert_close(value, reference_state[name], f"step {step}: {name}")
            assert value.dtype == reference_state[name].numpy().dtype
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, getattr(theirs, name).grad, f"gradient of {name}, summed over the steps")


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), st.integers(1, 4)),
    options=st.fixed_dictionaries(
        dict(
            eps=st.sampled_from([1e-6, 1e-5, 0.1]),
            momentum=st.sampled_from([0.1, 0.7, 1.0, 0.0, None]),
            affine=st.booleans(),
            track_running_stats=st.booleans(),
        )
    ),
    residual=st.booleans(),
    relu=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_batch_norm(shape: tuple[int, ...], options: dict[str, Any], residual: bool, relu: bool, seed: int):
    """Also with the addition and the ReLU that are done in the same operation."""

    class Ours(nn.BatchNorm2d):
        def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return super().forward(x, residual, relu)

    def run(layer: torch.nn.Module, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        y = layer(x) if added is None else layer(x) + added
        return torch.relu(y) if relu else y

    inputs = [rng(seed + k).normal(1.0, 2.0, shape) for k in range(1 + residual)]
    check_layer(Ours(shape[-1], **options), torch.nn.BatchNorm2d(shape[-1], **options), *inputs, run=run, seed=seed)


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_it_is_batch_norm_1d_on_vectors_and_sequences(shape: tuple[int, ...], momentum: float | None):
    """PyTorch has the channels of a sequence before its places."""

    def run(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return layer(x.movedim(-1, 1)).movedim(1, -1)

    inputs = rng(7).normal(1.0, 2.0, shape)
    check_layer(nn.BatchNorm2d(3, momentum=momentum), torch.nn.BatchNorm1d(3, momentum=momentum), inputs, run=run)


@given(modes=st.lists(st.booleans(), min_size=1, max_size=6), momentum=st.sampled_from([0.1, 0.7, None]), seed=st.integers(0, 2**32 - 1))
def test_statistics_over_any_sequence_of_training_and_evaluation(modes: list[bool], momentum: float | None, seed: int):
    ours, theirs = pair(momentum=momentum)
    for step, training in enumerate(modes):
        x = rng(seed + step).normal(2, 3, (2, 2, 2, 3))
        y, reference = ours.train(training)(Tensor(x)), theirs.train(training)(nchw(x))
        assert_close(y, reference.permute(0, 2, 3, 1).detach(), f"step {step}")
    for name, value in theirs.state_dict().items():
        assert_close(ours.state_dict()[name], value, name)
    assert ours.state_dict()["num_batches_tracked"] == sum(modes)


def test_running_statistics_are_replaced_not_written():
    layer = nn.BatchNorm2d(3)
    x = Tensor(rng().standard_normal((2, 3, 4, 3)).astype(np.float32), requires_grad=True)
    layer.eval()
    y = layer(x)
    mean, array, before = layer.running_mean, layer.running_mean.data, layer.running_mean.numpy().copy()
    layer.train()
    layer(x)
    assert layer.running_mean is not mean and layer.running_mean.data is not array
    np.testing.assert_array_equal(array, before)
    y.backward(np.ones(y.shape, np.float32))  # the graph made in eval mode still has the statistics it read
    assert not layer.running_mean.requires_grad and not layer.running_var.requires_grad
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def test_a_shallow_copy_counts_its_batches_by_itself():
    layer = nn.BatchNorm2d(2)
    other = copy.copy(layer)
    other(Tensor(rng(1).standard_normal((2, 2, 2, 2)).astype(np.float32)))
    assert (int(layer.num_batches_tracked), int(other.num_batches_tracked)) == (0, 1)


def test_float32_statistics_stay_float32():
    layer = nn.BatchNorm2d(3)
    layer(Tensor(rng().standard_normal((2, 3, 4, 3)).astype(np.float32)))
    state = layer.state_dict()
    assert state["running_mean"].dtype == state["running_var"].dtype == np.float32
    assert state["num_batches_tracked"].dtype == np.int64 and state["num_batches_tracked"].shape == () and state["num_batches_tracked"] == 1


@pytest.mark.parametrize("momentum", [0.1, np.float64(0.1), None])
def test_statistics_keep_their_dtype_whatever_the_batch_has(momentum: float | None):
    """Without weights of its own the layer takes any floats; statistics of another dtype would then not go with the next batch."""
    layer, wide = (nn.BatchNorm2d(3, affine=False, momentum=momentum) for _ in range(2))
    wide.to(dtype=np.float64)
    x = rng().standard_normal((2, 3, 4, 3))
    for dtype in (np.float64, np.float32):
        layer(Tensor(x.astype(dtype)))
        wide(Tensor(x))
        state, reference = layer.state_dict(), wide.state_dict()
        assert state["running_mean"].dtype == state["running_var"].dtype == np.float32
        for name, value in state.items():
            np.testing.assert_allclose(value, reference[name], rtol=1e-5, atol=1e-7)
    assert layer.eval()(Tensor(x.astype(np.float32))).dtype == np.float32


@pytest.mark.parametrize(("mode", "batch"), [("eval", 2), ("train", 0)])
def test_evaluation_and_empty_batches_leave_the_statistics_alone(mode: str, batch: int):
    layer = getattr(nn.BatchNorm2d(3), mode)()
    before = layer.state_dict()
    layer(Tensor(rng().standard_normal((batch, 3, 4, 3)).astype(np.float32)))
    assert all(np.array_equal(value, before[name]) for name, value in layer.state_dict().items())


def test_checkpoint_tracks_once():
    x = rng().standard_normal((2, 3, 4, 3))
    layers, grads = [nn.BatchNorm2d(3).to(dtype=np.float64) for _ in range(2)], []
    for layer, checkpointed in zip(layers, (False, True), strict=True):
        tensor = Tensor(x, requires_grad=True)
        y = minigrad.checkpoint(layer, tensor) if checkpointed else layer(tensor)
        y.backward(Tensor(rng(1).uniform(-1, 1, x.shape)))
        grads.append([tensor.grad, layer.weight.grad, layer.bias.grad])
    for plain, recomputed in zip(*grads, strict=True):
        assert_close(recomputed, plain)
    states = [layer.state_dict() for layer in layers]
    assert states[1]["num_batches_tracked"] == 1
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_checkpoint_in_eval_mode_refuses_statistics_that_have_moved(momentum: float | None):
    """It would read the new ones. A graph still has the old ones: its derivatives, also by the definition, are what they would have been."""
    x, grads = rng().standard_normal((2, 3, 4, 3)), []
    for moves in (False, True):
        layer, tensor = nn.BatchNorm2d(3, momentum=momentum).to(dtype=np.float64).eval(), Tensor(x, requires_grad=True)
        y, recomputed = layer(tensor), minigrad.checkpoint(layer, tensor)
        if moves:
            layer.train()(Tensor(2 * x))
            layer.eval()
        grads.append(minigrad.grad(y.sum(), [tensor, layer.weight], create_graph=True))
        if moves:
            with pytest.raises(
                RuntimeError, match="batch norm's statistics are some, and move with each forward pass in training mode.* was written"
            ):
                recomputed.sum().backward()
        else:
            recomputed.sum().backward()
    for plain, moved in zip(*grads, strict=True):
        np.testing.assert_array_equal(moved.numpy(), plain.numpy())


def test_a_checkpoint_of_both_modes():
    """Its second run, which moves no statistics, must find those that its first has read."""

    def both(layer: nn.BatchNorm2d, first: bool, x: Tensor) -> Tensor:
        y = layer.train(first)(x)
        return layer.train(not first)(y * y)

    layers, x = [nn.BatchNorm2d(3).to(dtype=np.float64) for _ in range(3)], Tensor(rng().standard_normal((2, 3, 4, 3)), requires_grad=True)
    ys = [minigrad.checkpoint(both, layers[0], True, x), both(layers[1], True, x)]
    (ours,), (plain,) = [minigrad.grad((y * y).sum(), x) for y in ys]
    assert_close(ours, plain)
    y = minigrad.checkpoint(both, layers[2], False, x)
    with pytest.raises(RuntimeError, match="the function reads a tensor from outside and then writes into it"):
        y.sum().backward()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_two_checkpoints_in_training_mode_and_one_backward(momentum: float | None):
    """They read no running statistics, so these may move in between."""
    found = []
    for call in (minigrad.checkpoint, lambda f, x: f(x)):
        layer, x = nn.BatchNorm2d(3, momentum=momentum).to(dtype=np.float64), Tensor(rng().standard_normal((2, 3, 4, 3)), requires_grad=True)
        a, b = call(layer, x), call(layer, x * x)
        (a * b).sum().backward()
        assert layer.num_batches_tracked.item() == 2
        found.append([x.grad, layer.weight.grad, layer.running_mean, layer.running_var])
    for ours, plain in zip(*found, strict=True):
        assert_close(ours, plain)


@pytest.mark.parametrize("channels", [1, 3])
def test_one_value_per_channel_cannot_be_normalised(channels: int):
    layer = nn.BatchNorm2d(channels)
    x = Tensor(np.ones((1, 1, 1, channels), np.float32))
    with pytest.raises(ValueError, match=rf"more than 1 value per channel .*, x has shape \(1, 1, 1, {channels}\): give .*eval"):
        layer(x)
    assert layer.state_dict()["num_batches_tracked"] == 0
    assert layer.eval()(x).shape == x.shape


def test_an_nchw_image_is_refused():
    with pytest.raises(ValueError, match="channels"):
        nn.BatchNorm2d(3)(Tensor(np.ones((2, 3, 8, 8), np.float32)))


# --- on the GPU, where the running statistics stay in place


@pytest.mark.cuda
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_on_the_gpu_are_the_cpus_in_the_same_arrays(momentum: float | None):
    ours, theirs = nn.BatchNorm2d(300, momentum=momentum).to(dtype="float64"), nn.BatchNorm2d(300, momentum=momentum).to(dtype="float64")
    with on_cuda(ORDERS) as device:
        ours.to(device="cuda")
        arrays = [buffer.data for buffer in ours.buffers()]
        for step in range(3):
            x = rng(step).normal(2, 3, (2, 2, 1, 300))
            theirs(Tensor(x))
            before = device.launches
            with nothing_waits(device):
                ours(Tensor(x).to(device="cuda"))
            assert device.launches - before == 4  # three of them are the operation's
        assert [buffer.data for buffer in ours.buffers()] == arrays
        for name, value in theirs.state_dict().items():
            assert_close(ours.state_dict()[name], value, name, 1e-14)


@pytest.mark.cuda
def test_running_statistics_on_the_gpu_keep_their_dtype_too():
    ours, theirs = nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3, affine=False)
    x = rng().normal(2, 3, (2, 3, 4, 3))
    theirs(Tensor(x))
    with on_cuda(ORDERS):
        ours.to(device="cuda")(Tensor(x).to(device="cuda"))
        for name, value in theirs.state_dict().items():
            assert ours.state_dict()[name].dtype == value.dtype
            np.testing.assert_allclose(ours.state_dict()[name], value, rtol=1e-6)


@pytest.mark.cuda
def test_a_graph_on_the_gpu_refuses_statistics_that_were_written_since():
    """On the CPU, where they are replaced, it still has the old ones: see test_running_statistics_are_replaced_not_written."""
    layer, x = nn.BatchNorm2d(3).to(dtype="float64"), Tensor(rng().standard_normal((2, 3, 4, 3)), requires_grad=True)
    with on_cuda():
        there = x.to(device="cuda")
        y = layer.to(device="cuda").eval()(there)
        layer.train()(there.detach())
        with pytest.raises(RuntimeError, match="was written in place"):
            minigrad.grad(y.sum(), [there], create_graph=True)
