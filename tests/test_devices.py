"""Tensors on the device "cuda": a whole network gives what it gives on the CPU, devices are never mixed, and a machine without a GPU says so.

They run on the emulator, or on a GPU: see `cuda_device.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest

import minigrad
from conformer import Conformer
from minigrad import Tensor, backend, nn, ops
from minigrad import functional as F
from minigrad.backend import cuda
from minigrad.optim import SGD
from tests.cuda_device import nothing_waits, on_cuda, on_gpu
from tests.support import assert_close, rng

pytestmark = pytest.mark.cuda


@pytest.fixture
def device() -> Iterator[object]:
    with on_cuda() as state:
        yield state


def network() -> Conformer:
    minigrad.manual_seed(0)
    sizes = {"depth": 3, "embed_dim": 16, "num_heads": 2, "channel_ratio": 0.25, "stem": "cifar_fast", "stem_channels": 8, "num_classes": 5}
    return Conformer(**sizes).to(dtype="float64")


def train_once(device: str, training: bool, definitions: bool) -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The loss, every gradient, and the state (running statistics included) after one pass."""
    model = network().to(device=device).train(training)
    images = Tensor(rng(1).standard_normal((3, 32, 32, 3))).to(device=device)
    labels = Tensor(np.array([0, 3, 4])).to(device=device)
    with minigrad.definitions() if definitions else minigrad.enable_grad():
        heads = model(images)
        loss = (F.cross_entropy(heads[0], labels, label_smoothing=0.1) + F.cross_entropy(heads[1], labels)) * 0.5
        loss.backward()
    assert loss.device == device
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(g is not None and g.device == device for g in gradients.values())
    return loss.item(), {name: g.to(device="cpu").numpy() for name, g in gradients.items() if g is not None}, model.state_dict()


@pytest.mark.parametrize(("training", "definitions"), [(True, False), (False, False), (True, True)])
def test_a_whole_conformer_is_the_same_on_both_devices(training: bool, definitions: bool):
    loss, gradients, state = train_once("cpu", training, False)
    with on_cuda(build="plain"):
        cuda_loss, cuda_gradients, cuda_state = train_once("cuda", training, definitions)
    assert_close(np.array(cuda_loss), np.array(loss), "loss", 1e-10)
    for name, gradient in gradients.items():
        assert_close(cuda_gradients[name], gradient, name, 1e-8)
    for name, array in state.items():
        assert_close(cuda_state[name], array, name, 1e-10)


def test_a_sigmoid_is_the_same_on_both_devices(device: object):
    numbers = np.concatenate([np.linspace(-100.0, 60.0, 50), [-np.inf, np.inf]]).astype(np.float32)
    x = Tensor(numbers, requires_grad=True)
    y = x.to(device="cuda").sigmoid()
    assert (y.device, y.dtype) == ("cuda", np.float32)
    np.testing.assert_allclose(y.to(device="cpu").numpy(), Tensor(numbers).sigmoid().numpy(), rtol=1e-6, atol=1e-38)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), (Tensor(numbers).sigmoid() * Tensor(-numbers).sigmoid()).numpy(), rtol=0, atol=1e-7)


def test_there_and_back(device: object):
    x = Tensor(rng(0).standard_normal((2, 3)), requires_grad=True)
    there = x.to(device="cuda")
    assert (there.device, there.dtype, there.shape) == ("cuda", np.float64, (2, 3))
    assert "device=cuda" in repr(there)
    back = (there * 2).to(device="cpu")
    np.testing.assert_array_equal(back.numpy(), 2 * x.numpy())
    back.backward(np.ones((2, 3)))
    assert x.grad is not None and x.grad.device == "cpu"
    np.testing.assert_array_equal(x.grad.numpy(), np.full((2, 3), 2.0))
    with pytest.raises(TypeError, match=r"numpy\(\): the tensor is on cuda; move it with .to\(device='cpu'\) first"):
        there.numpy()


def test_devices_are_not_mixed(device: object):
    here, there = Tensor([1.0, 2.0]), Tensor([1.0, 2.0]).to(device="cuda")
    for call in (
        lambda: here + there,
        lambda: there * np.ones(2),
        lambda: ops.matmul(here, there),
        lambda: F.linear(there.reshape(1, 2), Tensor(np.ones((2, 2), np.float32))),
    ):
        with pytest.raises(TypeError, match=r"(cpu and cuda|cuda and cpu); move"):
            call()
    with pytest.raises(TypeError, match="the value is on cpu, the tensor on cuda; move one"):
        there.copy_(here)


@pytest.mark.emulator
def test_numbers_go_where_the_tensor_is_and_only_once(device):
    x = Tensor([1.0, 2.0]).to(device="cuda")
    (x * 0.5 + 3).sum()
    before = device.allocations
    y = (x * 0.5 + 3).sum()
    assert device.allocations - before == 3  # the results
    assert y.item() == 7.5
    assert (x.dtype, y.dtype) == (np.float32, np.float32)


def test_writes_in_place(device: object):
    x = Tensor(np.zeros((2, 2))).to(device="cuda")
    x.copy_(Tensor(np.ones((2, 2))).to(device="cuda"))
    x[0, 1] = 5.0
    np.testing.assert_array_equal(x.to(device="cpu").numpy(), [[1, 5], [1, 1]])
    leaf = Tensor(np.ones(2), requires_grad=True).to(device="cuda").detach().requires_grad_()
    y = (leaf * leaf).sum()
    with minigrad.no_grad():
        leaf[0] = 3.0
    with pytest.raises(RuntimeError, match="was written in place after the forward pass"):
        y.backward()


def test_a_view_of_windows_tells_of_writes(device: object):
    """CuPy's strided views do not say whose memory they show."""
    x = Tensor(rng(0).standard_normal((1, 4, 4, 2))).to(device="cuda")
    patches = ops.windows(x, (2, 2))
    y = (patches * Tensor(np.ones(patches.shape)).to(device="cuda").requires_grad_()).sum()
    x[0, 0, 0, 0] = 1.0
    with pytest.raises(RuntimeError, match="was written in place after the forward pass"):
        y.backward()


def test_gradients_of_numbers_without_axes(device: object):
    x = Tensor(np.array(2.0)).to(device="cuda").requires_grad_()
    (x[None] * 3.0).sum().backward()
    assert x.grad is not None and x.grad.shape == () and x.grad.item() == 3.0


def test_minus_zero_and_floats_as_indices_are_what_they_are_on_the_cpu(device: object):
    x = Tensor([1.0, 2.0]).to(device="cuda")
    assert not np.signbit((x * 0.0).to(device="cpu").numpy()).any() and np.signbit((x * -0.0).to(device="cpu").numpy()).all()
    for here in (x, x.to(device="cpu")):
        with pytest.raises(IndexError, match=r"a tensor is indexed by integers, slices, None, Ellipsis, .* not by 1\.5"):
            here[1.5]


def test_indices_given_twice_add_up(device: object):
    x = Tensor(np.arange(4.0), requires_grad=True)
    there = x.to(device="cuda")
    (there[np.array([1, 1, 3])] * Tensor([1.0, 2.0, 4.0]).astype("float64").to(device="cuda")).sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [0, 3, 0, 4])


def test_indices_may_be_tensors_there(device: object):
    image = Tensor(np.arange(6.0).reshape(3, 2)).to(device="cuda")
    for index in (np.array([2, 0]), np.array([True, False, True])):
        there = Tensor(index).to(device="cuda")
        np.testing.assert_array_equal(image[there].to(device="cpu").numpy(), np.arange(6.0).reshape(3, 2)[index])
        np.testing.assert_array_equal(image[there, 1].to(device="cpu").numpy(), np.arange(6.0).reshape(3, 2)[index, 1])


@pytest.mark.parametrize("shape", [(2, 4, 4, 0), (0, 4, 4, 3)])
def test_maps_without_channels_and_no_maps_are_pooled_there(device: object, shape: tuple[int, ...]):
    for operation in (F.avg_pool2d, F.max_pool2d, F.upsample_nearest):
        x = Tensor(np.zeros(shape)).to(device="cuda").requires_grad_()
        operation(x, 2).sum().backward()
        assert x.grad is not None and x.grad.shape == shape


def test_a_module_moves_and_its_state_is_the_same(device: object):
    model = nn.Linear(3, 2)
    state = model.state_dict()
    assert model.to(device="cuda") is model
    assert all(parameter.device == "cuda" for parameter in model.parameters())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
    x = Tensor(rng(0).standard_normal((4, 3)).astype(np.float32)).to(device="cuda")
    optimizer = SGD(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()
    expected = state["bias"] - np.float32(0.1) * 4
    np.testing.assert_allclose(model.state_dict()["bias"], expected, rtol=1e-6)


@pytest.mark.emulator
def test_without_a_gpu_one_sentence_says_what_is_missing(monkeypatch: pytest.MonkeyPatch):
    def no_driver() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda, "_load_driver", no_driver)
    with pytest.raises(RuntimeError, match=r"No CUDA: there is no NVIDIA driver here; .*`with minigrad.emulated\(\):` runs the same kernels"):
        Tensor([1.0]).to(device="cuda")


def test_a_captured_training_step_is_the_step(device):
    """Three launches give the weights of three steps; nothing waits for the device in between."""
    images, targets = rng(1).standard_normal((3, 4, 6)), rng(2).dirichlet(np.ones(4), (3, 4))

    def steps(name: str, captured: bool) -> list[np.ndarray]:
        minigrad.manual_seed(1)
        model = nn.Linear(6, 4).to(dtype="float64", device=name)
        optimizer = SGD(model.parameters(), lr=0.1)
        x, y = Tensor(images[0]).to(device=name), Tensor(targets[0]).to(device=name)

        def step() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        start = model.state_dict()
        graph = cuda.Captured(step) if captured else None
        model.load_state_dict(start)  # the calls before the capture were steps too
        losses = []
        with nothing_waits(device):
            for batch, target in zip(images, targets, strict=True):
                with minigrad.no_grad():
                    x.copy_(Tensor(batch).to(device=name))
                    y.copy_(Tensor(target).to(device=name))
                if graph is None:
                    losses.append(step())
                else:
                    optimizer.upload()
                    graph.launch()
                    losses.append(graph.result + 0)
        return [loss.item() for loss in losses] + list(model.state_dict().values())

    expected = steps("cpu", False)
    for captured in (False, True):
        for ours, reference in zip(steps("cuda", captured), expected, strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-12)
    assert on_gpu() or device.graph_launches == 3


@pytest.mark.emulator
def test_a_capture_that_fails_leaves_the_device_usable(device: object):
    x = Tensor(np.ones(3)).to(device="cuda")
    with pytest.raises(RuntimeError, match="captur"):
        cuda.Captured(lambda: (x * 2).sum().item(), warm_ups=1)
    assert (x + 1).sum().item() == 6
    doubled = cuda.Captured(lambda: x * 2)
    x[0] = 5.0
    doubled.launch()
    assert doubled.result.to(device="cpu").numpy().tolist() == [10, 2, 2]


@pytest.mark.emulator
def test_a_graph_keeps_the_numbers_it_reads(device: object):
    """The engine keeps a thousand numbers on the GPU, then forgets them; a graph knows no more of them than where they lie."""
    x = Tensor(np.ones(3)).to(device="cuda")
    graph = cuda.Captured(lambda: x * 0.1234)
    for number in range(1200):
        backend.number(number / 7, np.float64, "cuda")
    graph.launch()
    np.testing.assert_array_equal(graph.result.to(device="cpu").numpy(), np.full(3, 0.1234))


@pytest.mark.emulator
def test_a_graph_keeps_what_is_written_after_its_capture_and_no_longer_than_itself(device: object):
    """Such as the table of the tensors that an optimiser updates in one launch."""
    x = Tensor(np.zeros(3)).to(device="cuda")
    tables: list[weakref.ref] = []

    def add_table() -> None:
        table = cuda.array_module().empty(3)  # zeros would be part of the graph
        cuda.write(table, np.array([1.0, 2.0, 3.0]))
        x.data[...] += table
        tables.append(weakref.ref(table))

    graph = cuda.Captured(add_table, warm_ups=0)
    for _ in range(2):
        graph.launch()
    np.testing.assert_array_equal(x.to(device="cpu").numpy(), [2, 4, 6])
    assert tables[0]() is not None
    del graph
    assert tables[0]() is None
