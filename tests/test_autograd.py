"""The walk: whose memory a gradient is, fan-out, several passes, any order of derivative, depth and exceptions.

Modes are in `test_modes.py`; what backward refuses after a write is in `test_versions.py`, what a graph keeps alive in `test_memory.py`, and
random graphs are in `test_graphs.py`. Read next: `test_modes.py`.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor, ops, random
from minigrad import functional as F
from minigrad.modes import MODE, is_grad_enabled, recomputing
from minigrad.op import fused, primitive
from minigrad.tensor import wrap
from tests.support import assert_close, leaf, rng


def upstream(shape: tuple[int, ...], seed: int = 77) -> Tensor:
    return Tensor(np.asarray(rng(seed).uniform(-1, 1, shape)))


# --- whose memory a gradient is


PASSING = {
    "the leaf itself": lambda x: x,
    "add": lambda x: x + 1.0,
    "identity": lambda x: ops.identity(x),
    "reshape": lambda x: x.reshape(6),
    "transpose": lambda x: x.T,
    "broadcast": lambda x: x.broadcast_to((2, 2, 3)),
    "sum": lambda x: x.sum(0),
    "sum of all": lambda x: x.sum(),
    "slice": lambda x: x[:, 1:],
    "pad": lambda x: ops.pad(x, ((1, 0), (0, 1))),
    "concatenate": lambda x: ops.concatenate([x, x]),
    "unbind": lambda x: x.unbind(0)[0],
    "stack": lambda x: ops.stack([x, x]),
    "mul": lambda x: x * 2.0,
}


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_of_a_leaf_is_its_own(name: str, create_graph: bool):
    """Rules hand on what they were given, or views of it; `.grad` shares memory with nothing and may be written."""
    x, other = leaf(2, 3), leaf(2, 3, seed=1)
    y = PASSING[name](x + other if name not in ("the leaf itself",) else x)
    g = upstream(y.shape)
    before = g.numpy().copy()
    y.backward(g, create_graph=create_graph)
    y2 = PASSING[name](x)
    y2.backward(g, create_graph=create_graph)  # a second contribution must not go into the first one's memory
    assert_array_equal(g.numpy(), before)
    held = [t.data for t in (x, other, y, y2, g)] + [other.grad.data if other.grad is not None else np.zeros(0)]
    assert not any(np.shares_memory(x.grad.data, array) for array in held)
    assert x.grad is not g and x.grad is not other.grad
    assert x.grad.data.flags.writeable and x.grad.shape == x.shape


def test_leaves_do_not_share_gradients():
    x, y = leaf(3), leaf(3, seed=1)
    for create_graph in (False, True):
        x.grad = y.grad = None
        (x + y).backward(upstream((3,)), create_graph=create_graph)
        assert x.grad is not y.grad and not np.shares_memory(x.grad.data, y.grad.data)


def test_gradients_of_the_residual_fan_out():
    """z = x + y; w = z + x: two paths carry the same borrowed array to x, where the second must not be added into what y still has to get."""
    x, y = leaf(2, 2), leaf(2, 2, seed=1)
    z = x + y
    w = z + x
    g = upstream(w.shape)
    w.backward(g)
    assert_allclose(x.grad.numpy(), 2 * g.numpy(), rtol=1e-15)
    assert_array_equal(y.grad.numpy(), g.numpy())
    assert not np.shares_memory(x.grad.data, y.grad.data)


def test_borrowed_gradients_are_never_written():
    """A node of many equal contributions: each consumer gets what its rule made, although the sum is built in place."""
    x = leaf(4)
    z = x.reshape(2, 2)
    parts = [z + 0.0, z.T, z[::-1], z.broadcast_to((3, 2, 2)), z, z * 3.0]
    weights = [upstream(p.shape, seed) for seed, p in enumerate(parts)]
    kept = [w.numpy().copy() for w in weights]
    total = sum(((p * w).sum() for p, w in zip(parts[1:], weights[1:], strict=True)), (parts[0] * weights[0]).sum())
    total.backward()
    w = kept
    expected = w[0] + w[1].T + w[2][::-1] + w[3].sum(0) + w[4] + 3 * w[5]
    assert_allclose(x.grad.numpy().reshape(2, 2), expected, rtol=1e-13)
    for weight, then in zip(weights, kept, strict=True):
        assert_array_equal(weight.numpy(), then)


def test_a_node_is_looked_at_once_however_many_ways_lead_to_it():
    """Of which there are 2**60 here."""
    x = leaf(2)
    h = middle = x * 1.0
    for _ in range(60):
        h = h + h
    h.sum().backward(retain_graph=True)
    assert_array_equal(x.grad.numpy(), [2.0**60] * 2)
    assert_array_equal(minigrad.grad(h.sum(), [middle])[0].numpy(), [2.0**60] * 2)


def test_a_gradient_with_a_graph_leaves_no_grad_as_it_was():
    x = leaf(2)
    y = (x * x).sum()
    with minigrad.no_grad():
        y.backward(create_graph=True)
        assert not is_grad_enabled() and x.grad.requires_grad


def test_gradients_are_added_into_a_fresh_one_of_their_shape_and_dtype(registry: None):
    """One that a kernel declares so. Into another the sum would not fit: NumPy would refuse it, or round it."""
    for fresh, into in ((np.full(3, 2.0), True), (np.full(3, 2.0, np.float32), False), (np.full(1, 2.0), False)):

        @fused
        def doubled(x: Tensor) -> Tensor:
            return x * 2.0

        doubled.kernel("cpu", lambda x: (x * 2.0, ()), lambda dy, saved, needs, fresh=fresh: (fresh,), fresh=True)
        x = leaf(3)
        h = x * 3.0
        y = h * 5.0
        (y + doubled(h)).sum().backward()  # of the two operations on h the kernel's is the younger, and comes first
        assert_array_equal(x.grad.numpy(), [21.0] * 3)
        assert fresh[0] == (7.0 if into else 2.0)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, _: x + x,
        lambda x, _: x - x,
        lambda x, _: x * x,
        lambda x, _: x / x,
        lambda x, _: x @ x,
        lambda x, _: x**x,
        lambda x, _: (x * x) * (x + x),
        lambda x, where: where.maximum(x, x),
        lambda x, where: where.where(x > 1.0, x, x),
        lambda x, where: where.stack([x, x, x])[1],
        lambda x, _: x[0] * x,
    ],
)
def test_the_same_tensor_twice_gets_both_gradients(function: Any):
    x = leaf(2, 2)
    t = torch.tensor(x.numpy(), requires_grad=True)
    g = upstream((2, 2))
    function(x, ops).backward(g)
    function(t, torch).backward(torch.tensor(g.numpy()))
    assert_close(x.grad, t.grad)


# --- several passes


def test_two_backward_passes_accumulate():
    x = leaf(3)
    for count in (1, 2, 3):
        (x * x).sum().backward()
        assert_allclose(x.grad.numpy(), count * 2 * x.numpy(), rtol=1e-14)


def test_accumulating_writes_into_the_same_gradient():
    x = leaf(3)
    (x * 2.0).sum().backward()
    g = x.grad
    (x * 3.0).sum().backward()
    assert x.grad is g and g.version[0] == 1
    assert_array_equal(g.numpy(), [5.0] * 3)


def test_a_gradient_that_the_user_set_is_added_to_where_it_fits():
    """What fits is added to, in a new array where it cannot be written; what does not is refused before any `.grad` is written."""
    x, y = leaf(3), leaf(3)
    y.grad = Tensor(np.array(1.0)).broadcast_to((3,))
    (x * y).backward(Tensor(np.ones(3)))
    assert_array_equal(y.grad.numpy(), 1 + x.numpy())
    before = x.grad.numpy().copy(), y.grad
    for wrong in (np.ones(2), np.ones(3, np.float32), np.ones(3, int)):
        y.grad = Tensor(wrong)
        for first, second in ((x, y), (y, x)):
            with pytest.raises(ValueError, match=r"the .grad of a leaf of shape \(3,\), float64 on cpu, is of shape .* set it to None"):
                (first * second).backward(Tensor(np.ones(3)))
        assert_array_equal(x.grad.numpy(), before[0])
        assert_array_equal(y.grad.numpy(), wrong)
    y.grad = np.ones(3)  # type: ignore[assignment]
    with pytest.raises(TypeError, match="the .grad of a leaf of shape .3,. is a ndarray; give a Tensor, or None"):
        (x * y).backward(Tensor(np.ones(3)))


def test_accumulating_after_create_graph_does_not_write_into_a_recorded_gradient():
    x = leaf(3)
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    assert first.requires_grad
    then = first.numpy().copy()
    (x * 2.0).sum().backward()
    assert_array_equal(first.numpy(), then)
    assert_allclose(x.grad.numpy(), then + 2.0, rtol=1e-14)


def test_passes_with_create_graph_add_up_and_can_be_differentiated_together():
    x = leaf(3)
    (x**3).sum().backward(create_graph=True)
    first = x.grad
    then = first.numpy().copy()
    (x**2).sum().backward(create_graph=True)
    assert_allclose(x.grad.numpy(), 3 * x.numpy() ** 2 + 2 * x.numpy(), rtol=1e-14)
    assert_array_equal(first.numpy(), then)
    assert_allclose(minigrad.grad(x.grad.sum(), x)[0].numpy(), 6 * x.numpy() + 2, rtol=1e-14)


def test_the_gradient_of_a_single_number_is_an_array_too():
    """NumPy makes scalars of sums of 0-d arrays; what is added later could not be written into them."""
    x = leaf()
    (x + x + x).backward()
    (x + x).backward()
    assert type(x.grad.data) is np.ndarray and x.grad.item() == 5.0
    x.grad = None
    (x * x).backward(create_graph=True)
    x.backward()
    assert type(x.grad.data) is np.ndarray
    assert_allclose(x.grad.numpy(), 2 * x.numpy() + 1, rtol=1e-14)


def test_a_freed_graph_says_so():
    x = leaf(3)
    for make, name in [
        (lambda: x.exp().sum(), "sum"),
        (lambda: x + 1.0, "add"),
        (lambda: F.layer_norm(x), "layer_norm"),
        (lambda: F.softmax(x), "softmax"),
        (lambda: x.unbind()[0], "unbind"),
    ]:
        y = make()
        y.backward(upstream(y.shape))
        with pytest.raises(
            RuntimeError, match=f"backward of {name}: its saved arrays were freed by an earlier backward pass; pass retain_graph=True"
        ):
            y.backward(upstream(y.shape))


@pytest.mark.parametrize("make", [lambda x: (x.exp() * x).sum(), lambda x: (F.layer_norm(x, x, x) * x).sum(), lambda x: (F.softmax(x) * x).sum()])
def test_with_retain_graph_a_graph_is_walked_again(make: Any):
    x = leaf(3)
    y = make(x)
    y.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    y.backward()
    assert_allclose(x.grad.numpy(), 2 * once, rtol=1e-14)
    with pytest.raises(RuntimeError, match="freed"):
        y.backward()


def test_a_shared_part_survives_only_with_retain_graph():
    x = leaf(2)
    shared = x.exp()
    first, second = shared.sum(), (shared * shared).sum()
    first.backward()
    with pytest.raises(RuntimeError, match="backward of exp"):
        second.backward()


# --- grad()


def test_grad_leaves_grad_alone_and_takes_interior_tensors():
    x, w = leaf(2, 3), leaf(3, 2, seed=1)
    h = x @ w
    y = (h * h.sin()).sum()
    dx, dh, dw = minigrad.grad(y, [x, h, w])
    assert x.grad is None and w.grad is None and h.grad is None
    expected = np.sin(h.numpy()) + h.numpy() * np.cos(h.numpy())
    assert_close(dh, expected)
    assert_close(dx, expected @ w.numpy().T)
    assert_close(dw, x.numpy().T @ expected)


def test_grad_of_an_interior_tensor_does_not_walk_below_it(registry: None):
    """Only nodes between the outputs and the inputs are differentiated."""
    called = []

    @primitive
    def spy(x: Tensor) -> Tensor:
        return x * 1.0

    spy.derivative(x=lambda g: called.append(1) or g)
    x = leaf(3)
    h = x * 1.0
    a = spy(h)
    b = a * 2.0
    side = spy(h)  # leads to no input that is asked for
    y = (b * b + side).sum()
    assert_allclose(minigrad.grad(y, b, retain_graph=True)[0].numpy(), 2 * b.numpy(), rtol=1e-14)
    assert not called
    minigrad.grad(y, a, retain_graph=True)
    assert not called
    minigrad.grad(y, x)
    assert len(called) == 2


def test_grad_of_an_output_is_the_weight_itself():
    x = leaf(2)
    y = x * 2.0
    assert_array_equal(minigrad.grad(y, y, Tensor(np.array([3.0, 4.0])))[0].numpy(), [3.0, 4.0])
    assert_array_equal(minigrad.grad(x.sum(), [x, x])[1].numpy(), [1.0, 1.0])


def test_grad_by_tensors_of_which_one_lies_above_another():
    x = leaf(2)
    a = x * 3.0
    b = a * a
    c = b * 5.0 + a
    dx, da, db = minigrad.grad(c.sum(), [x, a, b])
    assert_array_equal(db.numpy(), [5.0, 5.0])
    assert_allclose(da.numpy(), 10 * a.numpy() + 1, rtol=1e-14)
    assert_allclose(dx.numpy(), 3 * (10 * a.numpy() + 1), rtol=1e-14)


def test_gradients_of_several_outputs_add_up():
    x = leaf(3)
    a, b = x.exp(), x[:2] * 2.0
    weights = [upstream((3,), 1), upstream((2,), 2)]
    (g,) = minigrad.grad([a, b], x, weights)
    expected = weights[0].numpy() * np.exp(x.numpy())
    expected[:2] += 2 * weights[1].numpy()
    assert_close(g, expected)
    y = x.exp().sum()
    (g,) = minigrad.grad([y, y, x.sum()], x)
    assert_close(g, 2 * np.exp(x.numpy()) + 1)


def test_an_output_that_lies_below_another_adds_its_gradient():
    x = leaf(3)
    a = x * x
    b = a.sum()
    (g,) = minigrad.grad([b, a], x, [None, upstream((3,))])
    assert_close(g, 2 * x.numpy() * (1 + upstream((3,)).numpy()))


def test_of_an_operation_with_several_outputs_the_one_that_is_used_passes_its_gradient_on():
    x = leaf(3, 2)
    first, second, third = x.unbind()
    (g,) = minigrad.grad(second.exp().sum(), x)
    assert_allclose(g.numpy()[1], np.exp(x.numpy()[1]), rtol=1e-14)
    assert not g.numpy()[[0, 2]].any()
    assert first.node is third.node and [t.output for t in (first, second, third)] == [0, 1, 2]


@pytest.mark.parametrize("count", [2, 3])
def test_of_an_operation_with_several_outputs_those_that_are_used_pass_their_gradients_on(count: int):
    x = leaf(count, 2)
    parts = x.unbind()
    for used in (range(count), reversed(range(count)), [count - 1], [0, 0, 1]):
        used = list(used)
        weights = [upstream((2,), seed) for seed in range(len(used))]
        (g,) = minigrad.grad([parts[k] for k in used], x, weights, retain_graph=True)
        expected = np.zeros((count, 2))
        for k, w in zip(used, weights, strict=True):
            expected[k] += w.numpy()
        assert_close(g, expected)
        h = minigrad.grad([parts[k] * 2.0 for k in used], x, weights, retain_graph=True)[0]  # reached by the walk instead of started from
        assert_close(h, 2 * expected)


@pytest.mark.parametrize("function", [lambda x: x + 0.0, lambda x: x.reshape(4), lambda x: x * 2.0, F.gelu, lambda x: F.gelu(x) + x])
def test_results_of_grad_have_memory_of_their_own(function: Any):
    """Whether the gradient that arrives is fresh (then it is handed out as it is) or borrowed: a result may be written, even one asked for twice."""
    x = leaf(2, 2)
    y = function(x)
    g = upstream(y.shape)
    first, second = minigrad.grad(y, [x, x], g, retain_graph=True)
    held = [tensor.data for tensor in (x, y, g, second)]
    assert not any(np.shares_memory(first.data, array) for array in held) and not np.shares_memory(second.data, g.data)
    assert not first.requires_grad
    expected, weights = first.numpy().copy(), g.numpy().copy()
    first.data[...] = second.data[...] = np.nan
    assert_array_equal(minigrad.grad(y, x, g)[0].numpy(), expected)
    assert_array_equal(g.numpy(), weights)


@pytest.mark.parametrize("function", [lambda h: h + h, lambda h: F.gelu(h)])
def test_a_gradient_that_the_walk_goes_on_with_is_handed_out_alone(function: Any):
    """That of h is the walk's own, a sum or a kernel's fresh array; x and a view of it get the same numbers, which must not be the same memory."""
    x = leaf(2, 2)
    view = x.reshape(4)
    h = view.reshape(2, 2)
    found = minigrad.grad(function(h), [h, view, x, h], upstream((2, 2)))
    for k, first in enumerate(found):
        assert_array_equal(first.numpy().reshape(2, 2), found[0].numpy())
        assert not any(np.shares_memory(first.data, second.data) for second in found[:k])


# --- derivatives of derivatives


def test_derivatives_of_every_order_of_a_power_are_those_by_hand():
    x = Tensor(np.array([0.7, -1.2]), requires_grad=True)
    y = x**4
    for factor, power in ((4, 3), (12, 2), (24, 1), (24, 0)):
        (y,) = minigrad.grad(y.sum(), x, create_graph=True)
        assert_allclose(y.numpy(), factor * x.numpy() ** power, rtol=1e-13)


def normalised(x: torch.Tensor) -> torch.Tensor:
    """Layer norm by its formula: PyTorch's own is right up to the second derivative; its third treats the statistics as constants."""
    centered = x - x.mean(-1, keepdim=True)
    return centered * ((centered * centered).mean(-1, keepdim=True) + 1e-5) ** -0.5


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: (x.tanh() * x.exp()).sin(), lambda x: (x.tanh() * x.exp()).sin()),
        (lambda x: F.softmax(x) * x, lambda x: torch.softmax(x, -1) * x),
        (lambda x: F.gelu(x) * F.gelu(x), lambda x: torch.nn.functional.gelu(x) ** 2),
        (lambda x: F.layer_norm(x, x, None), lambda x: normalised(x) * x),
        (lambda x: (x @ x.reshape(3, 1)).erf(), lambda x: (x @ x.reshape(3, 1)).erf()),
        (lambda x: F.log_softmax(x), lambda x: torch.log_softmax(x, -1)),
        (lambda x: x.max() * x.sum() / (x * x).mean().sqrt(), lambda x: x.amax() * x.sum() / (x * x).mean().sqrt()),
    ],
)
def test_derivatives_up_to_the_third_are_those_of_pytorch(ours: Any, theirs: Any):
    """Each gradient is weighted with random numbers and differentiated again."""
    array = rng(4).uniform(0.3, 1.2, (3,))
    x, t = Tensor(array, requires_grad=True), torch.tensor(array, requires_grad=True)
    y, z = ours(x), theirs(t)
    for order in range(3):
        w = rng(order).uniform(-1, 1, tuple(z.shape))
        (y,) = minigrad.grad(y, x, Tensor(w), create_graph=True)
        (z,) = torch.autograd.grad(z, t, torch.tensor(w), create_graph=True)
        assert_close(y, z, f"order {order + 1}", relative=1e-10)


def test_backward_with_create_graph_makes_grad_differentiable():
    x = leaf(3)
    (x**3).sum().backward(create_graph=True)
    (x.grad * x.grad).sum().backward()  # adds to the gradient that is there: 3 x^2 + d/dx (9 x^4)
    assert_allclose(x.grad.numpy(), 3 * x.numpy() ** 2 + 36 * x.numpy() ** 3, rtol=1e-13)


def test_the_gradient_by_the_upstream_gradient_is_the_forward_derivative():
    """backward is linear in the upstream gradient: its derivative is the forward-mode derivative (the double-backward trick)."""
    x, u = leaf(3), Tensor(np.zeros(3), requires_grad=True)
    y = x.exp() * x
    (g,) = minigrad.grad(y, x, u, create_graph=True)
    v = upstream((3,))
    (jvp,) = minigrad.grad(g, u, v)
    assert_close(jvp, v.numpy() * np.exp(x.numpy()) * (1 + x.numpy()))


def test_create_graph_retains_the_first_graph():
    x = leaf(3)
    y = (x.exp()).sum()
    first = minigrad.grad(y, x, create_graph=True)[0]
    second = minigrad.grad(y, x)[0]
    assert_array_equal(first.numpy(), second.numpy())


# --- errors


def test_outputs_inputs_and_gradients_that_do_not_fit_are_refused():
    x, y = leaf(2, 3), leaf(2)
    with pytest.raises(ValueError, match=r"backward: the output has shape \(2, 3\); only for a single number is the gradient 1 implied"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"backward: the gradient has shape \(3,\), its output \(2, 3\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match=r"backward: the output of shape \(\) does not require grad"):
        Tensor(1.0).backward()
    with minigrad.no_grad(), pytest.raises(RuntimeError, match="made under no_grad"):
        x.sum().backward()
    with pytest.raises(RuntimeError, match=r"grad: input 1 of shape \(4,\) does not require grad"):
        minigrad.grad(x.sum(), [x, Tensor(np.ones(4))])
    with pytest.raises(RuntimeError, match=r"grad: the outputs do not depend on input 1 of shape \(2,\); allow_unused=True gives None"):
        minigrad.grad(x.sum(), [x, y])
    assert minigrad.grad(x.sum(), [y], allow_unused=True) == (None,)
    with pytest.raises(ValueError, match="grad: 1 outputs but 2 gradients"):
        minigrad.grad(x.sum(), x, [None, None])


def test_the_upstream_gradient_may_be_anything_a_tensor_is_made_of():
    x = Tensor([0.5, 1.5], requires_grad=True)
    for g in (np.array([1.0, 2.0]), [1.0, 2.0], Tensor(np.array([1, 2]))):
        x.grad = None
        (x * 1.0).backward(g)
        assert x.grad.dtype == np.float32
        assert_array_equal(x.grad.numpy(), [1.0, 2.0])


# --- depth


DEEP = """
import gc, sys, threading
import numpy as np
import minigrad
from minigrad import Tensor, ops
from minigrad import functional as F
gc.disable()

def leaf():
    return Tensor(np.array([1.0]), requires_grad=True)

def sums():                                     # nodes that keep nothing
    x = leaf()
    y = w = x
    for _ in range(100_000):
        y = y + x
        w = -w
    y.backward()
    assert x.grad.item() == 100_001, x.grad     # y was walked and w was not when they are dropped

def products():                                 # nodes that keep tensors, which hold nodes, and outputs
    x, c = leaf(), Tensor(np.array([1.0]), requires_grad=True)
    y = x
    for _ in range(10_000):
        y = (y * c).relu()
    y.backward(retain_graph=True)
    assert x.grad.item() == 1.0 and c.grad.item() == 10_000
    (g,) = minigrad.grad(y, x)
    assert g.item() == 1.0

def mixed():                                    # several inputs and outputs, kernels; and one that is dropped without a walk
    x = leaf()
    y = x
    for _ in range(800):
        a, b = ops.stack([y, x]).unbind()
        y = F.linear(ops.concatenate([a[None], b[None]]).reshape(1, 2), Tensor([[0.5, 0.5]]).astype(np.float64)).reshape(1)
    (g,) = minigrad.grad(y, x)
    assert abs(g.item() - 1.0) < 1e-9

def differentiated():                           # the graph of a gradient is as deep
    x = leaf()
    y = x
    for _ in range(6_000):
        y = y * 1.0
    (g,) = minigrad.grad((y * y).sum(), x, create_graph=True)
    (h,) = minigrad.grad(g, x)
    assert h.item() == 2.0

def work():
    for function in (sums, products, mixed, differentiated):
        function()
    done.append(True)

done = []
threading.stack_size(1 << 16 if sys.version_info < (3, 13) else 1 << 20)
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert done == [True]
"""


def test_chains_of_100_000_operations_need_no_recursion():
    """Forward, backward and dropping use no recursion of ours: they work with the interpreter's default limit in a thread with 64 KiB of stack.

    (1 MiB from Python 3.13 on, which drops chains of objects by recursion some thousand frames deep; threads have 8 by default.)
    """
    result = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr[-2000:]


# --- under no_grad


def test_create_graph_records_under_no_grad_too():
    """As in PyTorch: what the surrounding mode says concerns forward operations, not the graph that was asked for."""
    x = leaf(3)
    y = (x**3).sum()
    with minigrad.no_grad():
        y.backward(create_graph=True)
        (g,) = minigrad.grad(y, x, create_graph=True)
    (x.grad + g).sum().backward()
    t = torch.tensor(x.numpy(), requires_grad=True)
    z = (t**3).sum()
    with torch.no_grad():
        (first,) = torch.autograd.grad(z, t, create_graph=True)
    assert first.requires_grad
    assert_allclose(x.grad.numpy(), 3 * x.numpy() ** 2 + 12 * x.numpy(), rtol=1e-13)


def test_backward_works_under_no_grad_and_inside_it_records_nothing():
    x = leaf(2)
    y = (x * x).sum()
    with minigrad.no_grad():
        y.backward()
    assert_allclose(x.grad.numpy(), 2 * x.numpy(), rtol=1e-12)
    assert not x.grad.requires_grad


# --- exceptions


def test_no_memory_for_a_gradient_leaves_all_as_they_were(monkeypatch: pytest.MonkeyPatch):
    early, late = leaf(3), leaf(3, seed=1)
    read_only = np.ones(3)
    read_only.flags.writeable = False
    early.grad, late.grad = Tensor(np.ones(3)), wrap(read_only)  # added to in place; replaced by a new one
    y = (early * 2.0 + late).sum()

    def no_memory(*_: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("minigrad.autograd.add", no_memory)
    with pytest.raises(MemoryError):
        y.backward(retain_graph=True)
    assert_array_equal(early.grad.numpy(), np.ones(3))
    monkeypatch.undo()
    y.backward()
    assert_array_equal(early.grad.numpy(), [3.0, 3.0, 3.0])
    assert_array_equal(late.grad.numpy(), [2.0, 2.0, 2.0])


def test_an_exception_in_a_rule_leaves_no_mode_behind(registry: None):
    @primitive
    def broken(x: Tensor) -> Tensor:
        return x * 1.0

    def fail(g: Tensor) -> Tensor:
        raise ZeroDivisionError

    broken.derivative(x=fail)
    before = MODE.get()
    x = leaf(2)
    for function in (
        lambda: broken(x).sum().backward(),
        lambda: minigrad.grad(broken(x).sum(), x, create_graph=True),
        lambda: minigrad.checkpoint(broken, x).sum().backward(),
    ):
        with pytest.raises(ZeroDivisionError):
            function()
        assert MODE.get() is before and not recomputing() and is_grad_enabled()
    x.grad = None
    (x * 2.0).sum().backward()
    assert_array_equal(x.grad.numpy(), [2.0, 2.0])


class Interrupt(BaseException):
    """Like KeyboardInterrupt: no Exception."""


@pytest.mark.parametrize("error", [ValueError, Interrupt])
@pytest.mark.parametrize("where", ["rule", "kernel", "checkpoint"])
@pytest.mark.parametrize("retain", [False, True])
def test_an_exception_in_backward_leaves_every_gradient_as_it_was(
    where: str, error: type, retain: bool, monkeypatch: pytest.MonkeyPatch, registry: None
):
    """All or nothing: also for leaves that the walk had reached. With retain_graph the same graph can be walked when the reason is gone."""
    failing = [False]

    def fail_perhaps() -> None:
        if failing[0]:
            raise error("halfway")

    @primitive
    def fragile(x: Tensor) -> Tensor:
        return x * 1.0

    fragile.derivative(x=lambda g: (fail_perhaps(), g)[1])
    kernel = F.layer_norm.kernels["cpu"]
    backward = kernel.backward
    if where == "kernel":
        monkeypatch.setattr(kernel, "backward", lambda *args: (fail_perhaps(), backward(*args))[1])

    def halfway(x: Tensor) -> Tensor:
        if where == "checkpoint":
            return minigrad.checkpoint(lambda x: (fail_perhaps(), x * 1.0)[1], x)
        return fragile(x) if where == "rule" else F.layer_norm(x)

    early, late = leaf(3), leaf(3, seed=1)
    late.grad = Tensor(np.array([1.0, 2.0, 3.0]))

    def forward() -> Tensor:
        return ((halfway(early * 2.0) + late) * late).sum()  # the walk reaches `late` first

    forward().backward()
    expected = [early.grad.numpy().copy(), late.grad.numpy().copy()]
    early.grad, late.grad = None, Tensor(np.array([1.0, 2.0, 3.0]))
    held, mode, draws = late.grad, MODE.get(), random.get_counter()
    y = forward()
    failing[0] = True
    for _ in range(2):
        with pytest.raises(error, match="halfway"):
            y.backward(retain_graph=True) if retain else minigrad.grad(y, [late, early], retain_graph=True)
    with pytest.raises(error, match="halfway"):
        y.backward(retain_graph=retain)
    assert early.grad is None and late.grad is held and held.version[0] == 0
    assert_array_equal(held.numpy(), [1.0, 2.0, 3.0])
    assert MODE.get() is mode and random.get_counter() == draws and not recomputing()
    failing[0] = False
    if not retain:
        with pytest.raises(RuntimeError, match="freed by an earlier backward pass"):
            y.backward()
        y = forward()
    y.backward()
    assert_array_equal(early.grad.numpy(), expected[0])
    assert_array_equal(late.grad.numpy(), expected[1])


def test_an_exception_in_a_forward_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    """In a kernel, a check, a function under modes, a checkpointed function: no mode, no version, no draw, no gradient is left changed."""
    x, state = leaf(2, 3), (MODE.get(), random.get_counter())

    def fail(*_: Any) -> None:
        raise Interrupt

    def nested() -> None:
        with minigrad.no_grad(), minigrad.definitions(), minigrad.anomaly():
            minigrad.checkpoint(fail, x)

    def in_checkpoint() -> None:
        minigrad.checkpoint(lambda x: minigrad.checkpoint(fail, x * 2.0), x)

    def in_kernel() -> None:
        monkeypatch.setattr(F.softmax.kernels["cpu"], "forward", fail)
        F.softmax(x)

    for function, error in [(nested, Interrupt), (in_checkpoint, Interrupt), (in_kernel, Interrupt), (lambda: F.linear(x, x.T), ValueError)]:
        with pytest.raises(error):
            function()
        assert (MODE.get(), random.get_counter()) == state and not recomputing()
        assert x.version[0] == 0 and x.grad is None
    (x * x).sum().backward()
    assert_array_equal(x.grad.numpy(), 2 * x.numpy())


def test_a_write_that_fails_writes_nothing():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    for write in (lambda: x.copy_(np.ones(4)), lambda: x.__setitem__(0, np.ones(4)), lambda: x.__setitem__(5, 1.0)):
        with pytest.raises((ValueError, IndexError)):
            write()
    assert x.version[0] == 0
    assert_array_equal(x.numpy(), np.arange(6.0).reshape(2, 3))
