"""What a graph keeps alive: only the arrays that rules read, nothing in cycles, and less and less as the walk passes.

Everything is measured with weak references and the cycle collector switched off: what dies, dies by reference counting alone.
Read next: `test_checkpoint.py`.
"""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, ops, optim, random
from minigrad import functional as F
from minigrad.node import Node
from minigrad.op import primitive
from tests.support import leaf

pytestmark = pytest.mark.usefixtures("no_collector")


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


# --- what a node keeps


@pytest.mark.parametrize(
    "function", [lambda x: x * 2.0, lambda x: x / 2.0, lambda x: x.mean(0)], ids=["a product with a number", "a quotient by a number", "a mean"]
)
def test_neither_input_nor_output_is_kept_beside_a_number(function: Callable):
    """What an operation of Tensors keeps is stated and tested in its proof, as `keeps`; in these the other operand is a number."""
    x = leaf(2, 2)
    given = x + 0.0  # itself keeps nothing
    out = function(given)
    arrays, node = [weakref.ref(given.data), weakref.ref(out.data)], out.node
    del given, out
    assert node is not None and [array() for array in arrays] == [None, None]


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


def test_a_gradient_of_attention_to_itself_keeps_no_other():
    """The three of a kernel may be slices of one array. Where they are added into one of them, the others must not stay in memory with it."""
    x = leaf(2, 2, 5, 4)
    F.scaled_dot_product_attention(x, x, x).sum().backward()
    array = x.grad.numpy()
    while array.base is not None:
        array = array.base
    assert array.size == x.size


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
