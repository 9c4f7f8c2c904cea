"""What a graph keeps alive: only the arrays that rules read, nothing in cycles, and less and less as the walk passes.

Everything is measured with weak references and the cycle collector switched off: what dies, dies by reference counting alone.
Read next: `test_checkpoint.py`.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, ops, optim, random
from minigrad import functional as F
from minigrad.autograd import Node
from minigrad.op import primitive
from tests.support import leaf


@pytest.fixture(autouse=True, scope="module")
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# --- no cycles


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.exp(),
        lambda x: x.relu(),
        lambda x: x.sqrt(),
        lambda x: x.tanh(),
        lambda x: x.max(),
        lambda x: x * x,
        lambda x: F.softmax(x),
        lambda x: F.log_softmax(x),
        lambda x: F.layer_norm(x),
        lambda x: F.gelu(x),
        lambda x: F.batch_norm(x.reshape(1, 2, 2, 1))[0],
        lambda x: x.unbind()[0],
        lambda x: x[0],
        lambda x: x.reshape(4).exp(),
        lambda x: minigrad.checkpoint(lambda x: x.exp() * x, x),
        lambda x: ops.stack([x, x]),
        lambda x: (x.exp() @ x).mean(),
    ],
)
def test_a_discarded_result_dies_at_once(make: Callable):
    x = leaf(2, 2)
    y = make(x)
    tensor, array, node = weakref.ref(y), weakref.ref(y.data), y.node
    assert node is not None
    del y, node
    assert tensor() is None and array() is None


def test_a_walked_graph_dies_at_once():
    x = leaf(2, 2)
    y = (x.exp() * F.softmax(x)).sum()
    array = weakref.ref(y.data)
    y.backward()
    first = minigrad.grad((F.layer_norm(x.exp()) ** 3).sum(), x, create_graph=True)[0]
    second = weakref.ref(first.data)
    minigrad.grad(first.sum(), x)
    del y, first
    assert array() is None and second() is None


def test_a_graph_that_failed_dies_with_the_exception():
    x = leaf(2, 2)
    y = x.exp()
    array = weakref.ref(y.data)
    with minigrad.no_grad():
        y[0] = 0.0
    with pytest.raises(RuntimeError):
        y.sum().backward()
    del y
    assert array() is None


# --- what a node keeps: the names of the inputs, and "out"


def survivors(function: Callable, requires: str, count: int) -> set[str]:
    """Which of the arrays x, y, z and out live on when only the graph is held. Inputs are results of `leaf + 0`, which itself keeps nothing."""
    leaves = [leaf(2, 2, seed=k) for k in range(count)]
    inputs = [x + 0.0 if name in requires else (x + 0.0).detach() for x, name in zip(leaves, "xyz", strict=False)]
    out: Any = function(*inputs)
    arrays = {name: weakref.ref(x.data) for name, x in zip("xyz", inputs, strict=False)} | {"out": weakref.ref(out.data)}
    node = out.node
    del inputs, out
    alive = {name for name, array in arrays.items() if array() is not None}
    assert node is not None
    return alive


KEPT = {
    "add": (lambda x, y: x + y, "xy", ""),
    "sub": (lambda x, y: x - y, "xy", ""),
    "neg": (lambda x: -x, "x", ""),
    "mul": (lambda x, y: x * y, "xy", "xy"),
    "mul, x requires grad": (lambda x, y: x * y, "x", "y"),
    "mul, y requires grad": (lambda x, y: x * y, "y", "x"),
    "mul by a number": (lambda x: x * 2.0, "x", ""),
    "div, x requires grad": (lambda x, y: x / y, "x", "y"),
    "div, y requires grad": (lambda x, y: x / y, "y", "xy"),
    "div by a number": (lambda x: x / 2.0, "x", ""),
    "exp": (lambda x: x.exp(), "x", "out"),
    "relu": (lambda x: x.relu(), "x", "out"),
    "tanh": (lambda x: x.tanh(), "x", "out"),
    "sigmoid": (lambda x: x.sigmoid(), "x", "out"),
    "sqrt": (lambda x: x.sqrt(), "x", "out"),
    "log": (lambda x: x.log(), "x", "x"),
    "sin": (lambda x: x.sin(), "x", "x"),
    "abs": (lambda x: x.abs(), "x", "x"),
    "clip": (lambda x: x.clip(0, 1), "x", "x"),
    "power": (lambda x: x**2, "x", "x"),
    "sum": (lambda x: x.sum(0), "x", ""),
    "mean": (lambda x: x.mean(0), "x", ""),
    "max": (lambda x: x.max(0), "x", "x out"),
    "reshape that copies": (lambda x: x.T.reshape(4), "x", ""),
    "copying index": (lambda x: x[[0, 0]], "x", ""),
    "pad": (lambda x: ops.pad(x, ((1, 1), (0, 0))), "x", ""),
    "concatenate": (lambda x, y: ops.concatenate([x, y]), "xy", ""),
    "stack": (lambda x, y: ops.stack([x, y]), "xy", ""),
    "cast": (lambda x: x.astype(np.float32), "x", ""),
    "where": (lambda x, y: ops.where(np.array([True, False]), x, y), "xy", ""),
    "maximum": (lambda x, y: ops.maximum(x, y), "xy", "xy"),
    "matmul, x requires grad": (lambda x, y: x @ y, "x", "y"),
    "matmul": (lambda x, y: x @ y, "xy", "xy"),
    "softmax": (lambda x: F.softmax(x), "x", "out"),
    "log_softmax": (lambda x: F.log_softmax(x), "x", "out"),
    "layer_norm": (lambda x: F.layer_norm(x), "x", "x"),
    "gelu": (lambda x: F.gelu(x), "x", "x out"),  # the layer that follows keeps the output too
    "linear": (lambda x, y: F.linear(x, y), "xy", "xy"),
    "dropout": (lambda x: F.dropout(x, np.ones((2, 2), bool), 0.5), "x", ""),
    "avg_pool2d": (lambda x: F.avg_pool2d(x.T.reshape(1, 2, 2, 1), 2), "x", ""),
    "upsample_nearest": (lambda x: F.upsample_nearest(x.T.reshape(1, 2, 2, 1), 2), "x", ""),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_node_keeps_what_its_rules_read(name: str):
    function, requires, kept = KEPT[name]
    count = function.__code__.co_argcount
    assert survivors(function, requires, count) == (set(kept.split()) if " " in kept or kept == "out" else set(kept))


def test_nodes_of_a_graph_die_with_its_result():
    gc.collect()
    before = sum(type(x) is Node for x in gc.get_objects())
    x = leaf(2, 2)
    y = F.softmax((x @ x).exp() + minigrad.checkpoint(lambda x: x * x, x)).unbind()[0].sum()
    assert sum(type(x) is Node for x in gc.get_objects()) > before + 5
    del y
    assert sum(type(x) is Node for x in gc.get_objects()) == before


def test_constants_leave_no_graph():
    x, w = Tensor(np.ones((2, 2))), leaf(2, 2)
    assert (x * x).node is None and F.layer_norm(x).node is None
    with minigrad.no_grad():
        assert (w * w).node is None
        array = weakref.ref((w * w).data)
    assert array() is None


# --- while the walk passes


def test_saved_arrays_are_freed_as_the_walk_passes(registry: None):
    """When the walk reaches an early node, what the later ones had saved is gone."""
    alive: list[list[bool]] = []
    arrays: list[Any] = []

    @primitive
    def probe(x: Tensor) -> Tensor:
        return x * 1.0

    probe.derivative(x=lambda g: alive.append([array() is not None for array in arrays]) or g)

    def graph() -> Tensor:
        y = probe(leaf(2, 2) + 0.0)
        arrays.clear()
        for function in (ops.exp, F.layer_norm, lambda y: y * y, F.softmax, lambda y: F.linear(y, y), lambda y: y.max(0)):
            y = function(y)
            arrays.append(weakref.ref(y.data))
        return y.sum()

    graph().backward()
    graph().backward(retain_graph=True)
    # read by: exp and layer_norm; the product; nothing; softmax and linear; max; max
    assert alive == [[False] * 6, [True, True, False, True, True, True]]


def test_a_gradient_passed_on_does_not_stay():
    """Only `.grad` of leaves remains of a backward pass."""
    x = leaf(2, 2)
    h = x * 3.0
    y = h * 2.0
    upstream = Tensor(np.ones((2, 2)))
    array = weakref.ref(upstream.data)
    y.backward(upstream)
    del upstream
    assert array() is None and h.grad is None
    assert x.grad is not None


# --- checkpoint


def test_checkpoint_keeps_no_intermediate_array():
    x, inside = leaf(2, 2), []

    def function(x: Tensor) -> Tensor:
        for _ in range(3):
            x = x.exp() * x
            inside.append(weakref.ref(x.data))
        return x + 0.0

    y = minigrad.checkpoint(function, x)
    assert [array() for array in inside] == [None] * 3
    y.sum().backward()
    assert len(inside) == 6 and [array() for array in inside] == [None] * 6

    plain = function(x)
    assert [array() is not None for array in inside[6:]] == [True, True, False]  # the last is read by nothing: adding keeps nothing
    del plain
    assert [array() for array in inside[6:]] == [None] * 3


# --- training


class Net(nn.Module):
    """Something of every kind that keeps arrays, statistics or caches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LayerNorm(4)
        self.attention, self.dropout, self.head = nn.MultiHeadAttention(4, num_heads=2), nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn(self.conv(images), relu=True), 2).reshape(len(images), -1, 4)
        x = minigrad.checkpoint(lambda x: x + self.dropout(self.attention(self.norm(x))), x)
        return self.head(F.gelu(x)).mean(1)


def test_200_training_steps_leave_nothing_behind():
    """With the collector off, after 200 steps there are as many Tensors, Nodes and other objects as after 20, and as many bytes."""
    random.manual_seed(0)
    model = Net()
    optimiser, average = optim.AdamW(model.parameters(), lr=1e-3), optim.EMA(model)
    generator = np.random.default_rng(0)

    def step(number: int) -> None:
        random.set_step(number)
        images = Tensor(generator.standard_normal((8 + number % 2, 12, 12, 3)).astype(np.float32), requires_grad=True)
        loss = F.cross_entropy(model(images), generator.integers(0, 3, len(images)))
        if number % 20 == 0:  # a penalty on the gradient: a second derivative through everything
            (g,) = minigrad.grad(loss, images, create_graph=True)
            loss = loss + (g * g).sum()
        if number % 7 == 0:  # a step that is given up
            with minigrad.no_grad():
                model.head.weight.copy_(model.head.weight)
            try:
                loss.backward()
            except RuntimeError:  # (pytest.raises would keep the traceback)
                return
            raise AssertionError("a graph was walked whose weights were written")
        optimiser.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average.update()

    def count() -> dict[str, int]:
        objects = gc.get_objects()
        kinds = [type(x) for x in objects]
        return {"tensors": kinds.count(Tensor), "nodes": kinds.count(Node), "objects": len(objects)}

    counts, sizes = [], []
    freed = [[(None,) * size + (object(),) for _ in range(2000)] for size in range(20)]
    del freed  # Python keeps up to 2000 freed tuples of each size for later; filled up step by step, these lists would look like a leak
    tracemalloc.start()
    try:
        for number in range(1, 201):
            step(number)
            if number in (20, 110, 200):
                counts.append(count())
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    first, _, last = counts
    assert first["tensors"] == last["tensors"] and first["nodes"] == last["nodes"] == 0, counts
    assert last["objects"] - first["objects"] < 180, counts  # less than one a step
    assert sizes[2] - sizes[0] < 180 * 300, sizes  # bytes; every feature map is larger, and most parameters
