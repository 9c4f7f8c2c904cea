"""What another engine got wrong, or its users asked for, one test for each: its name says what must hold, its docstring whose story it is.

Not one of these is exotic: each bug was shipped, and most were found by running twenty lines of code. Gradients are compared with PyTorch in float64
under a random upstream gradient.
"""

from __future__ import annotations

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
from minigrad.tensor import wrap
from tests.support import leaf


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


# --- the walk: order, depth, cost


def test_a_chain_of_100_000_operations_needs_no_recursion():
    """In micrograd, MyGrad and neunet recursion dies at a chain of 1000 or 2000: forward, backward and dropping the graph must not recurse, not even
    in a thread with a small stack.
    """

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


def test_an_operand_used_twice_counts_twice_and_in_its_place():
    """micrograd: a set of parents forgets that an operand occurs twice, and which comes first."""
    same_as_torch(lambda x: x * x + (x + x), lambda x: x * x + (x + x), numbers(3))
    same_as_torch(lambda x: x @ x, lambda x: x @ x, numbers(3, 3))
    same_as_torch(lambda x, y: ops.stack([x, y, x]), lambda x, y: torch.stack([x, y, x]), numbers(3), numbers(3, seed=1))


def test_the_upper_half_of_a_diamond_waits_for_all_of_its_gradient():
    """Pynorch: without a topological order it runs before all has arrived."""

    def diamonds(x):
        a = x + x
        b = a * x + a
        return b * b + a

    same_as_torch(diamonds, diamonds, numbers(4))


def test_a_second_backward_adds_the_same_gradient_again():
    """micrograd keeps the gradients of inner nodes, and counts them again."""
    x = leaf(3)
    y = (x * x).exp().sum()
    y.backward(retain_graph=True)
    once = x.grad.numpy().copy()
    y.backward()
    assert_allclose(x.grad.numpy(), 2 * once, rtol=1e-14)


def test_residual_blocks_are_walked_once_each():
    """TinyTorch walks every path."""
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


def test_a_graph_of_2_to_the_60_paths_is_walked_node_by_node():
    """SmallPebble enumerates them."""
    x = Tensor(np.array([1.0]), requires_grad=True)
    y = x
    for _ in range(60):
        y = y + y
    y.backward(Tensor(np.array([1.0])))
    assert x.grad.item() == 2.0**60


def test_the_walk_of_a_wide_graph_takes_time_in_proportion_to_its_nodes(no_collector: None):
    """DeZero sorts what is left at every push."""
    x = leaf(1)

    def work(count: int) -> None:
        ops.stack([-x for _ in range(count)]).sum().backward()

    assert seconds(lambda: work(4000)) < 24 * seconds(lambda: work(500))  # eight times the work; a sort at each push makes it 64


def test_the_walk_of_a_long_graph_takes_time_in_proportion_to_its_nodes(no_collector: None):
    """PyDyNet's is quadratic."""
    x = leaf(1)

    def work(count: int) -> None:
        y = x
        for _ in range(count):
            y = -y
        y.sum().backward()

    assert seconds(lambda: work(4000)) < 24 * seconds(lambda: work(500))


# --- whose memory is a gradient


def test_a_gradient_that_two_inputs_share_is_not_added_into():
    """ml-by-hand: `z = x + y; w = z + x` gave y the gradient 2: the first array that arrived was kept and then added to."""
    x, y = leaf(3), leaf(3, seed=1)
    (x + y + x).backward(Tensor(np.ones(3)))
    assert_array_equal(x.grad.numpy(), np.full(3, 2.0))
    assert_array_equal(y.grad.numpy(), np.ones(3))
    x, y = leaf(3), leaf(3, seed=1)
    z = x + y
    (z + x).backward(Tensor(np.ones(3)))
    assert_array_equal(x.grad.numpy(), np.full(3, 2.0))
    assert_array_equal(y.grad.numpy(), np.ones(3))


def test_a_broadcast_gradient_is_not_added_into():
    """ml-by-hand: the gradient of a sum is a read-only broadcast view: a second contribution must not be added into it."""
    x = leaf(2, 3)
    total = x.sum() + x.sum() * 2.0
    total.backward()
    assert_array_equal(x.grad.numpy(), np.full((2, 3), 3.0))
    (x.sum()).backward()  # and once more into .grad itself
    assert_array_equal(x.grad.numpy(), np.full((2, 3), 4.0))


def test_gradients_share_no_memory_with_each_other_or_the_upstream_gradient():
    """In neunet they did."""
    upstream = Tensor(numbers(3))
    x, y = leaf(3), leaf(3, seed=1)
    (x + y).backward(upstream)
    assert not np.shares_memory(x.grad.numpy(), upstream.numpy())
    assert not np.shares_memory(x.grad.numpy(), y.grad.numpy())


def test_backward_after_a_write_in_place_raises():
    """No peer notices; MyGrad locks its arrays instead."""
    x = leaf(3)
    h = x * 1.0
    y = h.exp() * h
    with minigrad.no_grad():
        h[0] = 5.0
    with pytest.raises(RuntimeError, match="written in place"):
        y.backward(Tensor(np.ones(3)))


def test_parts_of_an_array_can_be_assigned():
    """HIPS autograd, and the most asked question of a NumPy engine: how do I assign to a part of an array?"""
    x = Tensor(np.zeros((2, 3)))
    x[0, 1:] = np.array([4.0, 5.0])
    x[x == 0] = -1.0
    assert_array_equal(x.numpy(), [[-1, 4, 5], [-1, -1, -1]])


# --- memory


def test_a_graph_dies_without_the_collector(no_collector: None):
    """micrograd's graphs are cycles, and HIPS autograd's were."""
    x = leaf(3)
    h = x.exp()
    y = h * h
    inner, outer = weakref.ref(h), weakref.ref(y)
    del h
    assert inner() is not None  # the product reads it
    del y
    assert outer() is None and inner() is None


def test_discarded_expressions_die_at_once(no_collector: None):
    """PyDyNet keeps every one in a list."""
    x = leaf(3)
    made = [weakref.ref(x.exp()) for _ in range(100)]
    assert all(reference() is None for reference in made)


def test_backward_frees_what_a_node_saved_while_its_output_lives(no_collector: None):
    """As in Chainer, since its users ran out of memory."""
    x = leaf(3)
    h = x.exp()
    y = (h * h).sum()
    saved = weakref.ref(h)
    del h
    y.backward()
    assert saved() is None  # though y, and with it the graph, is still here


def test_only_leaves_get_a_gradient_and_views_are_no_copies():
    """PyDyNet allocates a gradient for every node."""
    x = leaf(3, 4)
    y = x.reshape(4, 3)
    z = y.transpose(1, 0)
    assert np.shares_memory(x.numpy(), z.numpy())  # no copy of the output either
    (z * z).sum().backward()
    assert y.grad is None and z.grad is None and x.grad is not None


# --- an operand twice, ties, kinks, powers, broadcasting


def test_the_derivatives_of_a_minus_a_and_of_a_over_a_are_0():
    """PyDyNet tells operands apart by `is`: d(a - a)/da was 2 and d(a / a)/da 0.67."""
    a = np.array([1.0, -2.0, 3.0])
    same_as_torch(lambda a: a - a, lambda a: a - a, a)
    same_as_torch(lambda a: a / a, lambda a: a / a, a)
    same_as_torch(lambda a: a / a - a, lambda a: a / a - a, a)


def test_equal_maxima_share_the_gradient_and_so_do_equal_minima():
    """As in torch.amax; in DeZero each takes all of it."""
    x = np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    same_as_torch(lambda x: x.max(1), lambda x: x.amax(1), x)
    same_as_torch(lambda x: x.min((0, 1)), lambda x: x.amin((0, 1)), x)


def test_gradients_at_kinks_are_those_of_pytorch():
    """tinygrad's of relu6 at 6 was 0.5. PyTorch is not consistent with itself there: pinned op by op."""
    x = np.array([-1.0, 0.0, 6.0, 7.0])
    zero = np.zeros(4)
    same_as_torch(lambda x: x.relu(), torch.relu, x)
    same_as_torch(lambda x: x.clip(0.0, 6.0), lambda x: x.clamp(0.0, 6.0), x)
    same_as_torch(ops.maximum, torch.maximum, x, zero)
    same_as_torch(ops.minimum, torch.minimum, x, np.full(4, 6.0))
    same_as_torch(lambda x: x.abs(), torch.abs, x)


def test_a_power_of_a_negative_number_or_of_0_has_a_gradient():
    """tinygrad took a logarithm too many: that of the base belongs to the exponent's gradient only; and 0 ** 0 and 0 ** 1 have gradients."""
    x = np.array([-2.0, -0.5, 0.0, 1.5])
    for exponent in (0, 1, 2, 3, 2.0):
        same_as_torch(lambda x, n=exponent: x**n, lambda x, n=exponent: x**n, x)
    same_as_torch(lambda x: x**-3, lambda x: x**-3, x[[0, 1, 3]])
    same_as_torch(lambda x: x**1.5, lambda x: x**1.5, np.abs(x))


def test_a_power_is_one_operation():
    """ml-by-hand unrolls it into products."""
    x = leaf(3)
    y = x**9
    assert y.node.edges == ((x, 0),)


def test_gradients_of_operands_with_fewer_axes_are_right():
    """PyDyNet raised at the product of shapes (2, 3) and (3,)."""
    same_as_torch(lambda x, y: x * y, lambda x, y: x * y, numbers(2, 3), numbers(3, seed=1))
    same_as_torch(lambda x, y: x / y, lambda x, y: x / y, numbers(3), 2 + numbers(4, 2, 3, seed=1) ** 2)


@pytest.mark.parametrize(
    ("first", "second"), [((), (3,)), ((3, 1), (1, 4)), ((2, 1, 3), (2, 1, 3)), ((1,), (2, 3)), ((1, 1), (4, 1)), ((2, 0), (1,))]
)
def test_gradients_are_summed_back_to_the_shapes_that_were_broadcast(first: tuple[int, ...], second: tuple[int, ...]):
    """The cases of minitorch's course."""
    same_as_torch(lambda x, y: x * y + x, lambda x, y: x * y + x, numbers(*first), numbers(*second, seed=1))


# --- dtype


def test_a_mean_a_variance_and_numbers_leave_float32_as_it_is():
    """DeZero's mean of float32 is float64."""
    x = Tensor(numbers(4).astype(np.float32), requires_grad=True)
    for y in (x * 2.0, 2 * x, x.mean(), x + np.float64(1), x / np.array(3.0), x**2, x.sum(), np.float64(2) - x, x.var()):
        assert y.dtype == np.float32


def test_the_gradient_of_float32_is_float32():
    """Not so in HIPS/autograd#671."""
    x = Tensor(numbers(4).astype(np.float32), requires_grad=True)
    y = ((x * np.float64(3)).exp().mean() + x.max() * 2.0 - (x**3).sum()) / 7
    y.backward()
    assert y.dtype == np.float32 and x.grad.dtype == np.float32


def test_float32_may_require_grad():
    """In PyDyNet only float64 may."""
    x = Tensor([1.0, 2.0], requires_grad=True)
    assert x.dtype == np.float32
    (x * x).sum().backward()
    assert_array_equal(x.grad.numpy(), [2.0, 4.0])


# --- modes and exceptions


def test_an_exception_leaves_later_graphs_alone(registry: None):
    """PyDyNet: a backward that fails at its start or midway, a failed op and a left `with` must leave nothing behind, and unrelated nodes are not
    visited.
    """
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


def test_eval_of_a_module_leaves_gradients_on():
    """In PyDyNet it switches them off everywhere."""
    nn.Linear(2, 2).eval()
    x = leaf(2)
    assert (x * x).requires_grad


def test_user_errors_are_no_assertions():
    """MyGrad asserts, and `python -O` removes assertions: what a user did wrong must raise a real error, with the numbers."""
    with pytest.raises(ValueError, match=r"3.*16|16.*3"):
        F.conv2d(Tensor(numbers(1, 5, 5, 3)), Tensor(numbers(16, 16, 3, 3)))
    with pytest.raises(ValueError):
        Tensor(numbers(2, 3)).reshape(4, 2)


# --- randomness and imports


def test_importing_leaves_numpy_as_it_is_and_brings_neither_cupy_nor_pytorch():
    """ml-by-hand overwrites numpy.random, neunet imports CuPy. Seeding and drawing must leave NumPy's global state alone, too."""
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


def test_the_bias_of_a_convolution_is_drawn_around_0():
    """In ml-by-hand from 0 to 1."""
    minigrad.manual_seed(0)
    bias = nn.Conv2d(4, 64, 3).bias.numpy()
    assert bias.min() < 0 < bias.max() and np.abs(bias).max() <= (4 * 9) ** -0.5


# --- convolution and pooling


def test_gradients_of_overlapping_windows_of_conv2d_add_up():
    """PyDyNet: `=` for `+=`: where windows overlap only the last one's gradient survived."""
    same_as_torch(
        lambda x, w: F.conv2d(x, w, stride=1, padding=1),
        nchw(lambda x, w: torch.nn.functional.conv2d(x, w, padding=1)),
        numbers(2, 5, 4, 2),
        numbers(3, 2, 3, 3),
    )


def test_gradients_of_overlapping_windows_of_pools_add_up():
    """The same in PyDyNet's pools."""
    x = numbers(2, 7, 6, 2)
    same_as_torch(lambda x: F.max_pool2d(x, 3, 2, 1), nchw(lambda x: torch.nn.functional.max_pool2d(x, 3, 2, 1)), x)
    same_as_torch(lambda x: F.avg_pool2d(x, 3, 1), nchw(lambda x: torch.nn.functional.avg_pool2d(x, 3, 1)), x)


def test_rows_that_no_window_of_conv2d_reaches_are_left_out():
    """As in PyTorch, and they get a zero gradient; MyGrad refuses such sizes."""
    same_as_torch(
        lambda x, w: F.conv2d(x, w, stride=3), nchw(lambda x, w: torch.nn.functional.conv2d(x, w, stride=3)), numbers(1, 7, 6, 2), numbers(2, 2, 2, 2)
    )


def test_conv2d_takes_other_numbers_along_each_axis_and_groups():
    """ml-by-hand has square kernels and no groups."""

    def theirs(x, w):
        return torch.nn.functional.conv2d(x, w, stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2)

    same_as_torch(
        lambda x, w: F.conv2d(x, w, stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=2), nchw(theirs), numbers(2, 5, 6, 4), numbers(6, 2, 2, 3)
    )


def test_conv2d_of_one_channel_is_right_in_float32():
    """PyTorch 2.13, with AVX-512 and channels last, gives 83 where the second sum is 81: it reads beyond the rows, and in other images gives 1e27."""
    x, weight = np.arange(64.0, dtype=np.float32).reshape(4, 4, 4, 1), np.ones((1, 1, 3, 3), np.float32)
    y = F.conv2d(Tensor(x), Tensor(weight), stride=(1, 2))
    assert_array_equal(y.numpy().ravel(), [45, 81, 189, 225, 333, 369, 477, 513])


def test_a_dilated_conv2d_writes_to_no_input():
    """neunet dilates the weight itself, until backward undoes it."""
    x, w = leaf(1, 6, 6, 2), leaf(3, 2, 2, 2, seed=1)
    array, before, inputs = w.data, w.numpy().copy(), x.numpy().copy()
    y = F.conv2d(x, w, dilation=2)
    assert w.data is array
    assert_array_equal(w.numpy(), before)
    y.backward(Tensor(numbers(*y.shape)))
    assert w.data is array
    assert_array_equal(w.numpy(), before)
    assert_array_equal(x.numpy(), inputs)


def test_pad_and_stack_are_those_of_pytorch():
    """needle's tests compared them with nothing."""
    same_as_torch(lambda x: ops.pad(x, ((1, 0), (2, 1)), value=0.5), lambda x: torch.nn.functional.pad(x, (2, 1, 1, 0), value=0.5), numbers(2, 3))
    same_as_torch(lambda x, y: ops.stack([x, y], axis=1), lambda x, y: torch.stack([x, y], dim=1), numbers(2, 3), numbers(2, 3, seed=1))


# --- normalisation


def test_the_gradient_of_layer_norm_is_right_under_a_random_upstream_gradient():
    """tinygrad's test took the gradient of a sum, which is zero whatever the backward forgets; a random upstream gradient sees the variance term."""
    x = numbers(4, 6)
    t = torch.nn.functional.layer_norm
    same_as_torch(lambda x, w, b: F.layer_norm(x, w, b), lambda x, w, b: t(x, (6,), w, b), x, numbers(6, seed=1), numbers(6, seed=2))
    uniform = Tensor(x, requires_grad=True)
    F.layer_norm(uniform).backward(Tensor(np.ones((4, 6))))
    assert np.abs(uniform.grad.numpy()).max() < 1e-12


def test_layer_norm_normalises_each_row_alone():
    """PyDyNet's normalises over the batch."""
    layer = nn.LayerNorm(5).to(dtype=np.float64)
    assert_array_equal(layer.weight.numpy(), np.ones(5))
    x = numbers(3, 5)
    together = layer(Tensor(x)).numpy()
    alone = np.concatenate([layer(Tensor(row[None])).numpy() for row in x])
    assert_allclose(together, alone, rtol=1e-12, atol=1e-12)
    assert_allclose(together.mean(1), np.zeros(3), rtol=0, atol=1e-12)
    assert not list(layer.buffers())


def test_batch_norm_starts_from_ones_and_zeros():
    """In PyDyNet from random numbers."""
    layer = nn.BatchNorm2d(4)
    assert_array_equal(layer.weight.numpy(), np.ones(4))
    assert_array_equal(layer.running_mean.numpy(), np.zeros(4))
    assert_array_equal(layer.running_var.numpy(), np.ones(4))


def test_running_statistics_of_batch_norm_take_a_tenth_of_the_new_ones():
    """neunet's momentum is the share of the old ones, and ml-by-hand keeps none. Right are 10 % of the new, of the unbiased variance, and evaluation
    uses them.
    """
    ours, theirs = nn.BatchNorm2d(3).to(dtype=np.float64), torch.nn.BatchNorm2d(3).double()
    x = 2 + 3 * numbers(2, 2, 3, 3)
    ours(Tensor(x))
    theirs(torch.tensor(x).permute(0, 3, 1, 2))
    assert_allclose(ours.running_mean.numpy(), theirs.running_mean.numpy(), rtol=1e-12)
    assert_allclose(ours.running_var.numpy(), theirs.running_var.numpy(), rtol=1e-12)
    expected = theirs.eval()(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert_allclose(ours.eval()(Tensor(x)).numpy(), expected.detach().numpy(), rtol=1e-11, atol=1e-11)


def test_batch_norm_in_evaluation_has_gradients():
    """In DeZero it crashed."""
    ours, theirs = nn.BatchNorm2d(3).to(dtype=np.float64).eval(), torch.nn.BatchNorm2d(3).double().eval()
    same_as_torch(ours, nchw(theirs), numbers(2, 2, 3, 3))


def test_the_gradient_of_batch_norm_does_not_hang_on_the_stride_of_an_axis_of_length_1():
    """PyTorch 2.13's does, in float64 on the CPU: it is wrong where images of width 1 have an upstream gradient of the strides (10, 1, 2, 10)."""
    x, upstream = Tensor(numbers(4, 5, 1, 2), requires_grad=True), numbers(4, 5, 1, 2, seed=1)
    odd = np.lib.stride_tricks.as_strided(upstream, strides=tuple(8 * n for n in (10, 2, 10, 1)))
    y = F.batch_norm(x, eps=0.05)[0]
    expected, found = (minigrad.grad(y, x, wrap(array), retain_graph=True)[0].numpy() for array in (upstream, odd))
    assert_array_equal(found, expected)
    with minigrad.definitions():
        assert_allclose(minigrad.grad(F.batch_norm(x, eps=0.05)[0], x, wrap(odd))[0].numpy(), expected, rtol=1e-11, atol=1e-11)


def test_batch_norm_of_one_value_is_refused():
    """Chainer warns."""
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


def test_the_second_derivative_of_batch_norm_is_right():
    """DeZero's is wrong, and it does not say so."""

    def ours(x, w, b):
        return F.batch_norm(x, w, b)[0]

    def theirs(x, w, b):
        return torch.nn.functional.batch_norm(x, None, None, w, b, training=True)

    double_backward(ours, nchw(theirs), numbers(2, 2, 2, 3), numbers(3, seed=1), numbers(3, seed=2))


def test_the_second_derivative_of_conv2d_is_right():
    """DeZero raises where the weight's is asked for."""
    double_backward(
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
        nchw(lambda x, w: torch.nn.functional.conv2d(x, w, stride=2, padding=1)),
        numbers(1, 5, 4, 2),
        numbers(3, 2, 3, 3),
    )


def test_checkpoint_moves_the_running_statistics_of_batch_norm_once():
    """As in Chainer, which knows when it recomputes: checkpointing runs the function twice."""
    plain, recomputed = (nn.BatchNorm2d(3).to(dtype=np.float64) for _ in range(2))
    x = Tensor(numbers(2, 2, 2, 3), requires_grad=True)
    upstream = Tensor(numbers(2, 2, 2, 3, seed=1))
    plain(x).backward(upstream)
    expected, x.grad = x.grad.numpy(), None
    minigrad.checkpoint(recomputed, x).backward(upstream)
    assert_allclose(x.grad.numpy(), expected, rtol=1e-12)
    for name, array in plain.state_dict().items():
        assert_array_equal(recomputed.state_dict()[name], array, err_msg=name)


def test_checkpoint_draws_the_same_dropout_mask_twice():
    """As in ml-by-hand, which puts its generator back."""
    layer = nn.Dropout(0.5)
    x = Tensor(np.ones(64), requires_grad=True)
    y = minigrad.checkpoint(layer, x)
    y.backward(Tensor(np.ones(64)))
    assert 0 < (y.numpy() == 0).sum() < 64
    assert_array_equal(x.grad.numpy(), y.numpy())  # what was kept, and how it was scaled, is the same in both runs


# --- modules


def test_parameters_come_in_the_order_of_assignment():
    """DeZero keeps them in a set, which has another order in every process."""

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
def test_operations_have_pytorch_s_names(name: str):
    """DeZero had a `batch_nrom`."""
    assert callable(getattr(F, name)) and callable(getattr(torch.nn.functional, name))


# --- devices


class OtherArray(np.ndarray):
    """Stands for the arrays of a second device."""


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_by_name", dict(backend._by_name))
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
    backend.add_device("other", OtherArray, lambda a: a.view(OtherArray), lambda a: a.view(np.ndarray), np.lib.stride_tricks.as_strided)


def test_saving_leaves_a_model_on_its_device(other_device: None):
    """DeZero moved a model on the GPU to the CPU in order to save it, and left it there."""
    layer = nn.Linear(2, 2).to(device="other")
    before = layer.weight.data
    state = layer.state_dict()
    assert layer.weight.data is before and layer.weight.device == "other"
    assert type(state["weight"]) is np.ndarray and not np.shares_memory(state["weight"], before)
    state["weight"] += 1
    assert not np.allclose(layer.weight.to(device="cpu").numpy(), state["weight"])


def test_mixed_devices_are_refused_by_name(other_device: None):
    """Chainer, and the most frequent complaint of a NumPy and CuPy engine: the error names the op, both devices and the fix, and nothing is converted
    silently.
    """
    here, there = Tensor(numbers(2, 2)), Tensor(numbers(2, 2)).to(device="other")
    assert (here.device, there.device) == ("cpu", "other")
    calls = [lambda: here + there, lambda: here @ there, lambda: F.linear(here, there), lambda: F.linear(here, there, [1.0, 2.0])]
    for name, call in zip(("add", "matmul", "linear", "linear"), calls, strict=True):
        with pytest.raises(TypeError) as caught:
            call()
        message = str(caught.value)
        assert all(word in message for word in (name, "cpu", "other", ".to(device=")), message
