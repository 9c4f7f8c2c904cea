"""One test for each bug that was found in another engine, named after the engine.

Not one of these is exotic: each was shipped, and most were found by running twenty lines of code. A test here says in its name who had the bug and
in its body what right looks like. Gradients are compared with PyTorch in float64 under a random upstream gradient.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
import minigrad.functional as F
from minigrad import Tensor, backend, nn, ops


def leaf(*shape: int, seed: int = 0, dtype: type = np.float64) -> Tensor:
    """A random leaf that requires grad."""
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def same_as_torch(ours: Callable, theirs: Callable, *arrays: np.ndarray) -> None:
    """Value and gradients of one function of Tensors equal those of one of torch tensors."""
    xs = [Tensor(array, requires_grad=True) for array in arrays]
    ts = [torch.tensor(array, requires_grad=True) for array in arrays]
    y, t = ours(*xs), theirs(*ts)
    assert_allclose(y.numpy(), t.detach().numpy(), rtol=1e-11, atol=1e-11)
    upstream = np.random.default_rng(99).standard_normal(y.shape)
    before = upstream.copy()
    y.backward(Tensor(upstream))
    t.backward(torch.tensor(upstream))
    assert_array_equal(upstream, before)
    for x, reference in zip(xs, ts, strict=True):
        expected = reference.grad.numpy()
        assert_allclose(x.grad.numpy(), expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max(initial=1))


def nchw(function: Callable) -> Callable:
    """A torch function of (B, C, H, W) images, as one of (B, H, W, C)."""
    return lambda x, *rest: function(x.permute(0, 3, 1, 2), *rest).permute(0, 2, 3, 1)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def seconds(work: Callable[[], object]) -> float:
    """The least of three processor times of this thread: other programs do not count."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return min(times)


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# --- the walk: order, depth, cost


def test_micrograd_mygrad_neunet_chain_recursion():
    """Recursion dies at a chain of 1000: forward, backward and dropping the graph must not recurse, not even in a thread with a small stack."""

    def work() -> None:
        x = Tensor(np.array([1.5]), requires_grad=True)
        y = x
        for _ in range(100_000):
            y = -y
        y.backward(Tensor(np.array([1.0])))
        done.append(x.grad.item())
        z = x
        for _ in range(100_000):
            z = -z
        del z  # never differentiated: the whole graph is dropped at once

    done: list[float] = []
    old = threading.stack_size(1024 * 1024)  # CPython 3.13.0 drops a chain of plain objects in no less; recursion needs many times more
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(old)
    assert done == [1.0]


def test_micrograd_operand_used_twice():
    """A set of parents forgets that an operand occurs twice, and which comes first."""
    same_as_torch(lambda x: x * x + (x + x), lambda x: x * x + (x + x), numbers(3))
    same_as_torch(lambda x: x @ x, lambda x: x @ x, numbers(3, 3))
    same_as_torch(lambda x, y: ops.stack([x, y, x]), lambda x, y: torch.stack([x, y, x]), numbers(3), numbers(3, seed=1))


def test_pynorch_diamond():
    """Without a topological order the upper half of a diamond runs before all of its gradient has arrived."""

    def diamonds(x):
        a = x + x
        b = a * x + a
        return b * b + a

    same_as_torch(diamonds, diamonds, numbers(4))


def test_micrograd_second_backward_counts_inner_gradients_twice():
    x = leaf(3)
    y = (x * x).exp().sum()
    y.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    y.backward()
    assert_allclose(x.grad.numpy(), 2 * once, rtol=1e-14)


def test_tinytorch_exponential_in_residual_depth():
    x = leaf(4)
    y = x
    for _ in range(300):
        y = y + 0.01 * y.tanh()
    y.sum().backward()  # 2 ** 300 paths: without a topological order this never ends
    t = torch.tensor(x.numpy().copy(), requires_grad=True)
    z = t
    for _ in range(300):
        z = z + 0.01 * z.tanh()
    z.sum().backward()
    assert_allclose(x.grad.numpy(), t.grad.numpy(), rtol=1e-11)


def test_smallpebble_enumerates_paths():
    x = Tensor(np.array([1.0]), requires_grad=True)
    y = x
    for _ in range(60):
        y = y + y
    y.backward(Tensor(np.array([1.0])))
    assert x.grad.item() == 2.0**60


def test_dezero_sorts_the_wide_graph_on_every_push(no_collector):
    x = leaf(1)

    def work(count: int) -> None:
        ops.stack([-x for _ in range(count)]).sum().backward()

    assert seconds(lambda: work(4000)) < 24 * seconds(lambda: work(500))  # eight times the work; a sort at each push makes it 64


def test_pydynet_backward_is_quadratic_in_the_number_of_nodes(no_collector):
    x = leaf(1)

    def work(count: int) -> None:
        y = x
        for _ in range(count):
            y = -y
        y.sum().backward()

    assert seconds(lambda: work(4000)) < 24 * seconds(lambda: work(500))


# --- whose memory is a gradient


def test_mlhand_gradient_aliasing_residual():
    """`z = x + y; w = z + x` gave y the gradient 2: the first array that arrived was kept and then added to."""
    x, y = leaf(3), leaf(3, seed=1)
    (x + y + x).backward(Tensor(np.ones(3)))
    assert_array_equal(x.grad.numpy(), np.full(3, 2.0))
    assert_array_equal(y.grad.numpy(), np.ones(3))
    x, y = leaf(3), leaf(3, seed=1)
    z = x + y
    (z + x).backward(Tensor(np.ones(3)))
    assert_array_equal(x.grad.numpy(), np.full(3, 2.0))
    assert_array_equal(y.grad.numpy(), np.ones(3))


def test_mlhand_accumulates_into_a_broadcast_gradient():
    """The gradient of a sum is a read-only broadcast view: a second contribution must not be added into it."""
    x = leaf(2, 3)
    total = x.sum() + x.sum() * 2.0
    total.backward()
    assert_array_equal(x.grad.numpy(), np.full((2, 3), 3.0))
    (x.sum()).backward()  # and once more into .grad itself
    assert_array_equal(x.grad.numpy(), np.full((2, 3), 4.0))


def test_neunet_gradient_shares_the_upstream_array():
    upstream = Tensor(numbers(3))
    x, y = leaf(3), leaf(3, seed=1)
    (x + y).backward(upstream)
    assert not np.shares_memory(x.grad.numpy(), upstream.numpy())
    assert not np.shares_memory(x.grad.numpy(), y.grad.numpy())


def test_no_peer_detects_in_place_mutation():
    x = leaf(3)
    h = x * 1.0
    y = h.exp() * h
    with minigrad.no_grad():
        h[0] = 5.0
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward(Tensor(np.ones(3)))


def test_hips_array_assignment():
    """The most asked question of a NumPy engine: how do I assign to a part of an array?"""
    x = Tensor(np.zeros((2, 3)))
    x[0, 1:] = np.array([4.0, 5.0])
    x[x == 0] = -1.0
    assert_array_equal(x.numpy(), [[-1, 4, 5], [-1, -1, -1]])


# --- memory


def test_micrograd_hips_graph_survives_in_a_cycle(no_collector):
    x = leaf(3)
    h = x.exp()
    y = h * h
    inner, outer = weakref.ref(h), weakref.ref(y)
    del h
    assert inner() is not None  # the product reads it
    del y
    assert outer() is None and inner() is None


def test_pydynet_discarded_expressions_leak(no_collector):
    x = leaf(3)
    made = [weakref.ref(x.exp()) for _ in range(100)]
    assert all(reference() is None for reference in made)


def test_chainer_frees_nodes_as_backward_passes(no_collector):
    x = leaf(3)
    h = x.exp()
    y = (h * h).sum()
    saved = weakref.ref(h)
    del h
    y.backward()
    assert saved() is None  # though y, and with it the graph, is still here


def test_pydynet_allocates_a_gradient_for_every_node():
    x = leaf(3, 4)
    y = x.reshape(4, 3)
    z = y.transpose(1, 0)
    assert np.shares_memory(x.numpy(), z.numpy())  # no copy of the output either
    (z * z).sum().backward()
    assert y.grad is None and z.grad is None and x.grad is not None


# --- an operand twice, ties, kinks, powers, broadcasting


def test_pydynet_a_minus_a():
    """Operands told apart by `is`: d(a - a)/da was 2 and d(a / a)/da 0.67."""
    a = np.array([1.0, -2.0, 3.0])
    same_as_torch(lambda a: a - a, lambda a: a - a, a)
    same_as_torch(lambda a: a / a, lambda a: a / a, a)
    same_as_torch(lambda a: a / a - a, lambda a: a / a - a, a)


def test_dezero_max_ties():
    """Equal maxima share the gradient, as in torch.amax; each must not take all of it."""
    x = np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    same_as_torch(lambda x: x.max(1), lambda x: x.amax(1), x)
    same_as_torch(lambda x: x.min((0, 1)), lambda x: x.amin((0, 1)), x)


def test_tinygrad_gradient_at_kinks():
    """At a kink PyTorch is not consistent with itself: pinned op by op."""
    x = np.array([-1.0, 0.0, 6.0, 7.0])
    zero = np.zeros(4)
    same_as_torch(lambda x: x.relu(), torch.relu, x)
    same_as_torch(lambda x: x.clip(0.0, 6.0), lambda x: x.clamp(0.0, 6.0), x)
    same_as_torch(ops.maximum, torch.maximum, x, zero)
    same_as_torch(ops.minimum, torch.minimum, x, np.full(4, 6.0))
    same_as_torch(lambda x: x.abs(), torch.abs, x)


def test_tinygrad_power_of_a_negative_base():
    """The logarithm of the base belongs to the exponent's gradient only; and 0 ** 0 and 0 ** 1 have gradients."""
    x = np.array([-2.0, -0.5, 0.0, 1.5])
    for exponent in (0, 1, 2, 3, 2.0):
        same_as_torch(lambda x, n=exponent: x**n, lambda x, n=exponent: x**n, x)
    same_as_torch(lambda x: x**-3, lambda x: x**-3, x[[0, 1, 3]])
    same_as_torch(lambda x: x**1.5, lambda x: x**1.5, np.abs(x))


def test_mlhand_power_unrolled_into_products():
    x = leaf(3)
    y = x**9
    assert y.node.edges == ((x, 0),)


def test_pydynet_broadcast_lower_rank():
    same_as_torch(lambda x, y: x * y, lambda x, y: x * y, numbers(2, 3), numbers(3, seed=1))
    same_as_torch(lambda x, y: x / y, lambda x, y: x / y, numbers(3), 2 + numbers(4, 2, 3, seed=1) ** 2)


@pytest.mark.parametrize(
    ("first", "second"), [((), (3,)), ((3, 1), (1, 4)), ((2, 1, 3), (2, 1, 3)), ((1,), (2, 3)), ((1, 1), (4, 1)), ((2, 0), (1,))]
)
def test_minitorch_unbroadcast_cases(first: tuple[int, ...], second: tuple[int, ...]):
    same_as_torch(lambda x, y: x * y + x, lambda x, y: x * y + x, numbers(*first), numbers(*second, seed=1))


# --- dtype


def test_dezero_mean_of_float32_is_float64():
    x = leaf(4, dtype=np.float32)
    for y in (x * 2.0, 2 * x, x.mean(), x + np.float64(1), x / np.array(3.0), x**2, x.sum(), np.float64(2) - x, x.var()):
        assert y.dtype == np.float32


def test_hips_671_float32_grad():
    x = leaf(4, dtype=np.float32)
    y = ((x * np.float64(3)).exp().mean() + x.max() * 2.0 - (x**3).sum()) / 7
    y.backward()
    assert y.dtype == np.float32 and x.grad.dtype == np.float32


def test_pydynet_only_float64_may_require_grad():
    assert leaf(2, dtype=np.float32).dtype == np.float32
    assert Tensor([1.0, 2.0], requires_grad=True).dtype == np.float32


# --- modes and exceptions


def test_pydynet_exception_poisons_later_graphs(registry: None):
    """A backward that fails at its start or midway, a failed op and a left `with` must leave nothing behind, and unrelated nodes are not visited."""
    unrelated = leaf(2)
    kept = unrelated * 3.0
    x = leaf(3)
    with pytest.raises(ValueError):
        (x * x).backward(Tensor(np.ones(4)))

    @minigrad.op.primitive
    def broken(x: Tensor) -> Tensor:
        return x + 0

    def broken_rule(g):
        raise KeyError("in the middle of the walk")

    broken.derivative(x=broken_rule)
    with pytest.raises(KeyError):
        (broken(x * x) * 2.0).backward(Tensor(np.ones(3)))
    with pytest.raises(ValueError):
        ops.matmul(x, leaf(2, 2))
    with pytest.raises(ZeroDivisionError), minigrad.no_grad(), minigrad.definitions(), minigrad.anomaly():
        _ = 1 / 0
    assert x.grad is None
    y = x * x
    assert y.requires_grad
    y.backward(Tensor(np.ones(3)))
    assert_array_equal(x.grad.numpy(), 2 * x.numpy())
    assert unrelated.grad is None and kept.requires_grad


def test_pydynet_eval_switches_gradients_off_everywhere():
    nn.Linear(2, 2).eval()
    x = leaf(2)
    assert (x * x).requires_grad


def test_mygrad_user_errors_by_assert():
    """`python -O` removes assertions: what a user did wrong must raise a real error, with the numbers."""
    with pytest.raises(ValueError, match=r"3.*16|16.*3"):
        F.conv2d(Tensor(numbers(1, 5, 5, 3)), Tensor(numbers(16, 16, 3, 3)))
    with pytest.raises(ValueError):
        Tensor(numbers(2, 3)).reshape(4, 2)


# --- randomness and imports


def test_mlhand_overwrites_numpy_random_and_neunet_imports_cupy():
    """Importing must not change NumPy, nor ask for CuPy, nor bring PyTorch; seeding and drawing must leave NumPy's global state alone."""
    program = """
import sys, numpy as np
before, state = dict(vars(np.random)), np.random.get_state()[1].tolist()
import minigrad, conformer
minigrad.manual_seed(3)
minigrad.nn.Linear(4, 4)
minigrad.nn.Dropout(0.5)(minigrad.Tensor(np.ones((4, 4))))
assert dict(vars(np.random)) == before
assert np.random.get_state()[1].tolist() == state
assert not {"cupy", "torch"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=minigrad.__path__[0] + "/..")
    assert result.returncode == 0, result.stderr


def test_mlhand_bias_drawn_from_zero_to_one():
    minigrad.manual_seed(0)
    bias = nn.Conv2d(4, 64, 3).bias.numpy()
    assert bias.min() < 0 < bias.max() and np.abs(bias).max() <= (4 * 9) ** -0.5


# --- convolution and pooling


def test_pydynet_conv_dx_overlapping_windows():
    """`=` for `+=`: where windows overlap only the last one's gradient survived."""
    same_as_torch(
        lambda x, w: F.conv2d(x, w, stride=1, padding=1),
        nchw(lambda x, w: torch.nn.functional.conv2d(x, w, padding=1)),
        numbers(2, 5, 4, 2),
        numbers(3, 2, 3, 3),
    )


def test_pydynet_pool_dx_overlapping_windows():
    x = numbers(2, 7, 6, 2)
    same_as_torch(lambda x: F.max_pool2d(x, 3, 2, 1), nchw(lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1)), x)
    same_as_torch(lambda x: F.avg_pool2d(x, 3, 1), nchw(lambda x: torch.nn.functional.avg_pool2d(x, 3, 1)), x)


def test_mygrad_conv_rejects_inexact_division():
    """Rows that no window reaches are left out, as in PyTorch; they get a zero gradient."""
    same_as_torch(
        lambda x, w: F.conv2d(x, w, stride=3), nchw(lambda x, w: torch.nn.functional.conv2d(x, w, stride=3)), numbers(1, 7, 6, 2), numbers(2, 2, 2, 2)
    )


def test_mlhand_conv_square_kernels_without_groups():
    def theirs(x, w):
        return torch.nn.functional.conv2d(x, w, stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2)

    same_as_torch(
        lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2), nchw(theirs), numbers(2, 5, 6, 4), numbers(6, 2, 2, 3)
    )


def test_neunet_conv_mutates_weight():
    x, w = leaf(1, 6, 6, 2), leaf(3, 2, 2, 2, seed=1)
    array, before, inputs = w.data, w.numpy().copy(), x.numpy().copy()
    y = F.conv2d(x, w, dilation=2)
    assert w.data is array
    assert_array_equal(w.numpy(), before)
    y.backward(Tensor(numbers(*y.shape)))
    assert w.data is array
    assert_array_equal(w.numpy(), before)
    assert_array_equal(x.numpy(), inputs)


def test_needle_tests_compared_pad_and_stack_with_nothing():
    same_as_torch(lambda x: ops.pad(x, ((1, 0), (2, 1)), value=0.5), lambda x: torch.nn.functional.pad(x, (2, 1, 1, 0), value=0.5), numbers(2, 3))
    same_as_torch(lambda x, y: ops.stack([x, y], axis=1), lambda x, y: torch.stack([x, y], dim=1), numbers(2, 3), numbers(2, 3, seed=1))


# --- normalisation


def test_tinygrad_layer_norm_passes_under_a_uniform_upstream_gradient():
    """The gradient of a layer norm's sum is zero whatever the backward forgets; a random upstream gradient sees the variance term."""
    x = numbers(4, 6)
    t = torch.nn.functional.layer_norm
    same_as_torch(lambda x, w, b: F.layer_norm(x, w, b), lambda x, w, b: t(x, (6,), w, b), x, numbers(6, seed=1), numbers(6, seed=2))
    uniform = Tensor(x, requires_grad=True)
    F.layer_norm(uniform).backward(Tensor(np.ones((4, 6))))
    assert np.abs(uniform.grad.numpy()).max() < 1e-12


def test_pydynet_layer_norm_normalises_over_the_batch():
    layer = nn.LayerNorm(5).to(dtype=np.float64)
    assert_array_equal(layer.weight.numpy(), np.ones(5))
    x = numbers(3, 5)
    together = layer(Tensor(x)).numpy()
    alone = np.concatenate([layer(Tensor(row[None])).numpy() for row in x])
    assert_allclose(together, alone, rtol=1e-12, atol=1e-12)
    assert_allclose(together.mean(1), np.zeros(3), rtol=0, atol=1e-12)
    assert not list(layer.buffers())


def test_pydynet_batch_norm_starts_random():
    layer = nn.BatchNorm2d(4)
    assert_array_equal(layer.weight.numpy(), np.ones(4))
    assert_array_equal(layer.running_mean.numpy(), np.zeros(4))
    assert_array_equal(layer.running_var.numpy(), np.ones(4))


def test_neunet_batch_norm_momentum_is_the_inverse():
    """And ml-by-hand keeps no running statistics: 10 % of the new, of the unbiased variance, and evaluation uses them."""
    ours, theirs = nn.BatchNorm2d(3).to(dtype=np.float64), torch.nn.BatchNorm2d(3).double()
    x = 2 + 3 * numbers(2, 2, 3, 3)
    ours(Tensor(x))
    theirs(torch.tensor(x).permute(0, 3, 1, 2))
    assert_allclose(ours.running_mean.numpy(), theirs.running_mean.numpy(), rtol=1e-12)
    assert_allclose(ours.running_var.numpy(), theirs.running_var.numpy(), rtol=1e-12)
    expected = theirs.eval()(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert_allclose(ours.eval()(Tensor(x)).numpy(), expected.detach().numpy(), rtol=1e-11, atol=1e-11)


def test_dezero_batch_norm_eval_backward():
    ours, theirs = nn.BatchNorm2d(3).to(dtype=np.float64).eval(), torch.nn.BatchNorm2d(3).double().eval()
    same_as_torch(ours, nchw(theirs), numbers(2, 2, 3, 3))


def test_chainer_batch_norm_of_one_value():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(3)(Tensor(np.ones((1, 1, 1, 3), np.float32)))


def double_backward(ours: Callable, theirs: Callable, *arrays: np.ndarray) -> None:
    """The gradient of a random projection of the gradients equals PyTorch's."""
    xs = [Tensor(array, requires_grad=True) for array in arrays]
    ts = [torch.tensor(array, requires_grad=True) for array in arrays]
    y, t = ours(*xs), theirs(*ts)
    weights = numbers(*y.shape, seed=50)
    first = minigrad.grad(y, xs, Tensor(weights), create_graph=True)
    expected = torch.autograd.grad(t, ts, torch.tensor(weights), create_graph=True)
    projections = [numbers(*x.shape, seed=60 + k) for k, x in enumerate(xs)]
    total = sum((g * Tensor(p)).sum() for g, p in zip(first, projections, strict=True))
    expected_total = sum((g * torch.tensor(p)).sum() for g, p in zip(expected, projections, strict=True))
    total.backward()
    expected_total.backward()
    for x, reference in zip(xs, ts, strict=True):
        if reference.grad is None:  # such as a bias, which no first derivative depends on
            assert x.grad is None or not x.grad.numpy().any()
        else:
            assert_allclose(x.grad.numpy(), reference.grad.numpy(), rtol=1e-12, atol=1e-12 * np.abs(reference.grad.numpy()).max())


def test_dezero_batch_norm_double_backward_silently_wrong():
    def ours(x, w, b):
        return F.batch_norm(x, w, b)[0]

    def theirs(x, w, b):
        return torch.nn.functional.batch_norm(x, None, None, w, b, training=True)

    double_backward(ours, nchw(theirs), numbers(2, 2, 2, 3), numbers(3, seed=1), numbers(3, seed=2))


def test_dezero_conv_weight_double_backward():
    double_backward(
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
        nchw(lambda x, w: torch.nn.functional.conv2d(x, w, stride=2, padding=1)),
        numbers(1, 5, 4, 2),
        numbers(3, 2, 3, 3),
    )


def test_chainer_batch_norm_running_stats_in_recompute():
    """Checkpointing runs the function twice; the running statistics must move once."""
    plain, recomputed = (nn.BatchNorm2d(3).to(dtype=np.float64) for _ in range(2))
    x = Tensor(numbers(2, 2, 2, 3), requires_grad=True)
    upstream = Tensor(numbers(2, 2, 2, 3, seed=1))
    plain(x).backward(upstream)
    expected, x.grad = x.grad.numpy(), None
    minigrad.checkpoint(recomputed, x).backward(upstream)
    assert_allclose(x.grad.numpy(), expected, rtol=1e-12)
    for name, array in plain.state_dict().items():
        assert_array_equal(recomputed.state_dict()[name], array, err_msg=name)


def test_mlhand_recompute_repeats_the_dropout_mask():
    layer = nn.Dropout(0.5)
    x = Tensor(np.ones(64), requires_grad=True)
    y = minigrad.checkpoint(layer, x)
    y.backward(Tensor(np.ones(64)))
    assert 0 < (y.numpy() == 0).sum() < 64
    assert_array_equal(x.grad.numpy(), y.numpy())  # what was kept, and how it was scaled, is the same in both runs


# --- modules


def test_dezero_parameter_order():
    """Parameters in a set come in another order in every process; ours come in the order of assignment."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zeta, self.alpha, self.mid = nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm2d(2)

    names = ["zeta.weight", "zeta.bias", "alpha.weight", "alpha.bias", "mid.weight", "mid.bias"]
    assert [name for name, _ in Net().named_parameters()] == names
    assert [name for name in Net().state_dict() if name in names] == names


@pytest.mark.parametrize(
    "name", ["batch_norm", "layer_norm", "conv2d", "max_pool2d", "avg_pool2d", "softmax", "log_softmax", "gelu", "linear", "cross_entropy"]
)
def test_dezero_misspelt_batch_nrom(name: str):
    assert callable(getattr(F, name)) and callable(getattr(torch.nn.functional, name))


# --- devices


class OtherArray(np.ndarray):
    """Stands for the arrays of a second device."""


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_by_name", dict(backend._by_name))
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
    backend.add_device("other", OtherArray, lambda a: a.view(OtherArray), lambda a: a.view(np.ndarray), np.lib.stride_tricks.as_strided)


def test_dezero_saving_changes_the_model(other_device: None):
    """It moved a model on the GPU to the CPU in order to save it, and left it there."""
    layer = nn.Linear(2, 2).to(device="other")
    before = layer.weight.data
    state = layer.state_dict()
    assert layer.weight.data is before and layer.weight.device == "other"
    assert type(state["weight"]) is np.ndarray and not np.shares_memory(state["weight"], before)
    state["weight"] += 1
    assert not np.allclose(layer.weight.to(device="cpu").numpy(), state["weight"])


def test_chainer_mixed_devices(other_device: None):
    """The most frequent complaint of a NumPy and CuPy engine: the error names the op, both devices and the fix, and nothing is converted silently."""
    here, there = Tensor(numbers(2, 2)), Tensor(numbers(2, 2)).to(device="other")
    assert (here.device, there.device) == ("cpu", "other")
    for name, call in (("add", lambda: here + there), ("matmul", lambda: here @ there), ("linear", lambda: F.linear(here, there))):
        with pytest.raises(TypeError) as caught:
            call()
        message = str(caught.value)
        assert all(word in message for word in (name, "cpu", "other", ".to(device=")), message
