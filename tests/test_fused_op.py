"""Fused operations: their inputs, kernels and what becomes of them, several outputs. Read next: `backend/test_cpu.py`."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.op import REGISTRY, fused
from tests.proofs import check_op
from tests.support import leaf, rng

pytestmark = pytest.mark.usefixtures("registry")


# --- inputs


def test_two_dtypes_in_a_fused_operation_are_refused():
    with pytest.raises(TypeError, match=r"layer_norm: inputs are float32 and float64; bring them to one dtype with .astype\(...\)"):
        F.layer_norm(Tensor([[1.0, 2.0]]), Tensor(np.ones(2)))


@pytest.mark.parametrize("call", [lambda: F.gelu(None), lambda: F.softmax(None), lambda: F.linear(Tensor([[1.0]]), None), lambda: F.layer_norm(None)])
def test_an_input_that_is_not_there_is_refused(call: Callable):
    with pytest.raises(TypeError, match=r"^\w+: (x|weight) is None; give a Tensor$"):
        call()


def test_arrays_given_to_a_fused_operation_are_constants():
    """Labels, masks and images may be NumPy arrays, and their owner may reuse them before backward."""
    logits, labels = leaf(2, 3), np.array([0, 2])
    expected = minigrad.grad(F.cross_entropy(logits, Tensor(labels)), logits)[0].numpy()
    loss = F.cross_entropy(logits, labels)
    labels[:] = 1
    assert_array_equal(minigrad.grad(loss, logits)[0].numpy(), expected)

    weight, image = leaf(3, 2), np.array([[1.0, 2.0]])
    y = F.linear(image, weight)
    image[:] = 0.0
    with pytest.raises(TypeError, match="gelu: Tensors in a tuple would lose their gradients; put them together by F.stack first"):
        F.gelu((leaf(2), leaf(2)))
    with pytest.raises(TypeError, match="exp: Tensors in a list would lose their gradients"):
        F.exp([[leaf(2)], [1.0]])
    with pytest.raises(TypeError, match="matmul: Tensors in a list would lose their gradients"):
        F.matmul(Tensor([1.0, 2.0]), [leaf(), leaf()])
    assert_array_equal(minigrad.grad(y, weight, Tensor(np.ones((1, 3))))[0].numpy(), [[1.0, 2.0]] * 3)


def affine() -> Any:
    @fused
    def affine(x: Tensor, scale: Tensor | None = None, power: int = 1) -> Tensor:
        return x**power if scale is None else x**power * scale

    return affine


def test_checks_run_before_kernel_and_definition():
    op = affine()

    @op.check
    def check(x: Tensor, scale: Tensor | None, power: int) -> None:
        if x.ndim != 1:
            raise ValueError(f"affine: x has {x.ndim} axes (shape {x.shape}), one is needed")

    for mode in (minigrad.enable_grad, minigrad.definitions):
        with mode(), pytest.raises(ValueError, match=r"affine: x has 2 axes \(shape \(1, 1\)\), one is needed"):
            op(Tensor([[1.0]]))
    assert op(Tensor([2.0])).item() == 2.0


def test_checks_of_shapes_are_remembered_but_never_wrongly():
    op, seen = affine(), []

    @op.check_shapes
    def check(x: Tensor, scale: Tensor | None, power: int) -> None:
        seen.append((x.shape, x.dtype))
        if x.shape == (3,) or power == 7:
            raise ValueError("affine: no")

    x = Tensor([1.0, 2.0])
    for _ in range(3):
        op(x)
    assert len(seen) == 1
    op(x, None, 2)
    op(x.astype(np.float64))
    op(x, x)
    assert len(seen) == 4
    op(x, None, 2.0)
    op(x, None, True)  # 1 is what passed, and 1 == True
    assert len(seen) == 6
    for _ in range(2):  # what failed fails again
        with pytest.raises(ValueError, match="affine: no"):
            op(Tensor([1.0, 2.0, 3.0]))
        with pytest.raises(ValueError, match="affine: no"):
            op(x, power=7)


def test_checks_of_shapes_know_numbers_in_a_tuple_by_their_types():
    x, weight = Tensor(np.ones((1, 4, 4, 1))), Tensor(np.ones((1, 1, 3, 3)))
    F.conv2d(x, weight, stride=(1, 1))
    with pytest.raises(ValueError, match=r"conv2d: stride must be a whole number .* it is \(1\.0, 1\.0\)"):
        F.conv2d(x, weight, stride=(1.0, 1.0))  # type: ignore[arg-type]


def test_checks_of_shapes_are_not_remembered_without_end():
    """A thousand or so: a program whose shapes change with every call must not grow by each."""
    op, seen = affine(), []

    @op.check_shapes
    def check(x: Tensor, scale: Tensor | None, power: int) -> None:
        seen.append(x.shape)

    remembered = inspect.getclosurevars(op._check).nonlocals["passed"]
    most = 0
    for size in range(2500):
        op._check(Tensor(np.empty(size)), None, 1)
        most = max(most, len(remembered))
    assert 900 < most < 1100 and len(seen) == 2500
    op._check(Tensor(np.empty(2499)), None, 1)
    assert len(seen) == 2500


# --- kernels


class Counted:
    """A fused operation x * weight with a kernel that counts its calls."""

    def __init__(self, **options: Any):
        @fused
        def scaled(x: Tensor, weight: Tensor | None = None) -> Tensor:
            self.calls.append("definition")
            return x if weight is None else x * weight

        self.calls: list[str] = []
        self.arrays: list = []
        self.needs: list = []
        self.op = scaled
        scaled.kernel("cpu", self.forward, self.backward, **options)

    def forward(self, x: Any, weight: Any) -> tuple:
        self.calls.append("forward")
        self.arrays += [x, weight]
        return x * weight if weight is not None else x.copy(), (x, weight)

    def backward(self, dy: Any, saved: tuple, needs: tuple) -> tuple:
        self.calls.append("backward")
        self.arrays.append(dy)
        self.needs.append(needs)
        x, weight = saved
        return dy if weight is None else dy * weight, dy * x if needs[1] else None


def test_the_kernel_runs_forward_and_backward_and_the_definition_everything_else():
    counted = Counted()
    x, w = leaf(2), leaf(2, seed=1)
    minigrad.grad(counted.op(x, w).sum(), [x, w])
    assert counted.calls == ["forward", "backward"]
    counted.calls.clear()
    minigrad.grad(counted.op(x, w).sum(), [x, w], create_graph=True)
    assert counted.calls == ["forward", "definition"]
    counted.calls.clear()
    with minigrad.definitions():
        minigrad.grad(counted.op(x, w).sum(), [x, w])
    assert counted.calls == ["definition"]


def test_without_its_kernel_an_operation_still_works():
    x = leaf(2, 5)
    expected = [t.numpy() for t in (F.layer_norm(x), *minigrad.grad(F.layer_norm(x), x, Tensor(np.arange(10.0).reshape(2, 5))))]
    kernels = F.layer_norm.kernels
    F.layer_norm.kernels = {}
    try:
        again = [t.numpy() for t in (F.layer_norm(x), *minigrad.grad(F.layer_norm(x), x, Tensor(np.arange(10.0).reshape(2, 5))))]
    finally:
        F.layer_norm.kernels = kernels
    for a, b in zip(again, expected, strict=True):
        assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_kernels_get_contiguous_arrays_unless_they_take_any():
    for strided in (False, True):
        REGISTRY.pop("scaled", None)
        counted = Counted(strided=strided)
        x, w = leaf(3, 2), leaf(2, 3, seed=1)
        counted.op(x.T, w[:, ::-1]).backward(Tensor(rng(2).uniform(-1, 1, (3, 2))).T)
        assert [array.flags.c_contiguous for array in counted.arrays] == [not strided] * 3
        assert_allclose(w.grad.numpy(), (x.numpy().T * counted.arrays[-1])[:, ::-1], rtol=1e-12)


def test_needs_say_which_gradients_are_wanted():
    counted = Counted()
    x, w = leaf(2), leaf(2, seed=1)
    counted.op(x, w.detach()).sum().backward()
    counted.op(x.detach(), w).sum().backward()
    minigrad.grad(counted.op(x, w).sum(), w)
    counted.op(x, None).sum().backward()
    counted.op(x, w).sum().backward()
    assert counted.needs == [(True, False), (False, True), (False, True), (True, False), (True, True)]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_kernel_may_return_what_it_was_given(fresh: bool):
    """dy itself, and a view of it, unless it is declared fresh; `.grad` is the leaf's own all the same, and a fresh one is not copied."""
    made: list = []

    @fused
    def plus(x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def backward(dy: np.ndarray, saved: tuple, needs: tuple) -> tuple:
        made[:] = [dy.copy(), dy.copy()] if fresh else [dy, dy[:]]
        return tuple(made)

    plus.kernel("cpu", lambda x, y: (x + y, ()), backward, fresh=fresh)
    x, y, g = leaf(2, 2), leaf(2, 2, seed=1), Tensor(rng(3).uniform(-1, 1, (2, 2)))
    before = g.numpy().copy()
    plus(x, y).backward(g)
    assert (x.grad.data is made[0]) == fresh
    plus(x, x).backward(g)
    assert_allclose(x.grad.numpy(), 3 * before, rtol=1e-14)
    assert_array_equal(y.grad.numpy(), before)
    assert_array_equal(g.numpy(), before)
    assert not np.shares_memory(x.grad.data, y.grad.data) and not np.shares_memory(x.grad.data, g.data)


def test_a_kernel_need_not_know_that_numpy_makes_scalars_of_0d_arrays():
    @fused
    def square(x: Tensor) -> Tensor:
        return x * x

    square.kernel("cpu", lambda x: (x * x, (x,)), lambda dy, saved, needs: (2 * dy * saved[0],), fresh=True)
    x = leaf()
    square(x).backward()
    assert type(x.grad.data) is np.ndarray
    assert_allclose(x.grad.numpy(), 2 * x.numpy(), rtol=1e-14)


def test_kernels_may_give_lists_and_named_tuples():
    class Saved(NamedTuple):
        x: np.ndarray

    @fused
    def twice(x: Tensor) -> Tensor:
        return x * 2.0

    for saved in (Saved, lambda x: [x]):
        twice.kernel("cpu", lambda x, saved=saved: (x * 2, saved(x)), lambda dy, saved, needs: Saved(dy * 2))
        x = Tensor([3.0], requires_grad=True)
        twice(x).backward(np.ones(1))
        assert x.grad is not None and x.grad.item() == 2.0


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        (lambda x, w: x * w, None, r"pair: the forward of its kernel gives an object of type ndarray; give \(out, saved\)"),
        (lambda x, w: (x * w, x, w), None, r"pair: the forward of its kernel gives \(ndarray, ndarray, ndarray\); give \(out, saved\)"),
        (lambda x, w: (x * w, x), None, r"pair: the forward of its kernel gives \(ndarray, ndarray\); give \(out, saved\), where saved is a tuple"),
        (lambda x, w: (x * w, (x, w), w), None, r"pair: the forward of its kernel gives \(ndarray, tuple, ndarray\); give \(out, saved\)"),
        (lambda x, w: (x * w, (x, w)), lambda dy, saved, needs: (dy,), r"pair: the backward of its kernel gives \(ndarray\); .* per input, 2"),
        (lambda x, w: (x * w, (x, w)), lambda dy, saved, needs: dy, "pair: the backward of its kernel gives an object of type ndarray"),
    ],
)
def test_what_a_kernel_returns_is_looked_at(forward: Callable, backward: Any, message: str):
    @fused
    def pair(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    pair.kernel("cpu", forward, backward or (lambda dy, saved, needs: (dy, dy)))
    x, w = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0, 4.0], requires_grad=True)
    with pytest.raises(TypeError, match=message):
        pair(x, w).backward(np.ones(2))
    assert x.grad is None and w.grad is None


def test_a_rule_stands_in_for_a_missing_backward():
    @fused
    def logistic(x: Tensor) -> Tensor:
        return 1 / (1 + (-x).exp())

    with pytest.raises(ValueError, match="logistic: a kernel without a backward needs derivative rules"):
        logistic.kernel("cpu", lambda x: (1 / (1 + np.exp(-x)), ()), None)
    logistic.derivative(x=lambda g, out: g * out * (1 - out))
    logistic.kernel("cpu", lambda x: (1 / (1 + np.exp(-x)), ()), None)
    import torch

    check_op(logistic, torch.sigmoid, [rng(0).uniform(-2, 2, (2, 3))])


def test_an_input_that_the_rules_leave_out_is_refused():
    """The definition would differentiate it, and so does this kernel; dropping its gradient, or making it hang on which of them runs, is worse."""

    @fused
    def scaled(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    scaled.derivative(x=lambda g, w: g * w)
    x, w = leaf(3), leaf(3, seed=1)
    message = r"scaled: w requires grad and has no derivative rule, as x has; state one, or declare a constant, @fused\(constants='w'\)"
    for with_kernel in (False, True):
        if with_kernel:
            scaled.kernel("cpu", lambda x, w: (x * w, (x, w)), lambda dy, saved, needs: (dy * saved[1], dy * saved[0]))
        for mode in (contextlib.nullcontext, minigrad.definitions):
            with mode():
                with pytest.raises(TypeError, match=message):
                    scaled(x, w)
                with minigrad.no_grad():
                    scaled(x, w)
                assert scaled(x, w.detach()).requires_grad
    scaled.derivative(w=lambda g, x: g * x)
    for mode in (contextlib.nullcontext, minigrad.definitions):
        with mode():
            for found, expected in zip(minigrad.grad(scaled(x, w).sum(), [x, w]), (w, x), strict=True):
                assert_array_equal(found.numpy(), expected.numpy())


def test_of_several_inputs_that_the_rules_leave_out_the_first_is_named_and_constants_stay_what_they_are():
    @fused(constants="mask")
    def scaled(x: Tensor, mask: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return x * mask * v * w

    scaled.derivative(x=lambda g, mask, v, w: g * mask * v * w)
    message = r"scaled: v requires grad and has no derivative rule, as x has; state one, or declare a constant, @fused\(constants='mask v'\)"
    with pytest.raises(TypeError, match=message):
        scaled(leaf(3), leaf(3).detach(), leaf(3), leaf(3))


# --- several outputs


def test_two_outputs_are_several():
    @fused(outputs=2)
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2.0, (x * x).sum()

    both.kernel("cpu", lambda x: ((x * 2.0, (x * x).sum()), (x,)), lambda dy, saved, needs: (2.0 * dy[0] + 2.0 * saved[0] * dy[1],))
    x = leaf(3)
    doubled, square = both(x)
    assert (doubled.shape, square.shape) == ((3,), ())
    (doubled + square).sum().backward()
    assert_allclose(x.grad.numpy(), 2.0 + 6.0 * x.numpy(), rtol=1e-14)  # the second is added to three numbers


def test_several_outputs_of_which_some_carry_no_gradient():
    @fused(outputs=3, differentiable=2)
    def moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.sum(), (x * x).sum(), x.max().detach()

    def backward(dy: tuple, saved: tuple, needs: tuple) -> tuple:
        (x,) = saved
        given.append([g is not None for g in dy])
        return (sum(g * slope for g, slope in zip(dy, (np.ones_like(x), 2 * x), strict=True) if g is not None),)

    given: list = []
    moments.kernel("cpu", lambda x: ((np.asarray(x.sum()), np.asarray((x * x).sum()), np.asarray(x.max())), (x,)), backward)
    x = leaf(3)
    first, second, third = moments(x)
    assert first.requires_grad and second.requires_grad and not third.requires_grad
    assert_allclose(minigrad.grad(second, x, retain_graph=True)[0].numpy(), 2 * x.numpy(), rtol=1e-14)
    assert_allclose(minigrad.grad([first, second], x, retain_graph=True)[0].numpy(), 1 + 2 * x.numpy(), rtol=1e-14)
    assert_allclose(minigrad.grad(first, x, create_graph=True)[0].numpy(), 1.0, rtol=1e-12)
    assert given == [[False, True], [True, True]]


def test_a_kernel_with_two_outputs_is_told_which_has_no_gradient():
    @fused(outputs=2)
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2.0, x * x

    both.kernel("cpu", lambda x: ((x * 2, x * x), (x,)), lambda dy, saved, needs: ((0 if dy[0] is None else dy[0] * 2) + dy[1] * 2 * saved[0],))
    x = leaf(3)
    double, square = both(x)
    assert_allclose(double.numpy(), 2 * x.numpy(), rtol=1e-12)
    assert_allclose(square.numpy(), x.numpy() ** 2, rtol=1e-12)
    assert_allclose(minigrad.grad(square, x, Tensor(np.array([1.0, 2.0, 3.0])))[0].numpy(), 2 * x.numpy() * [1, 2, 3], rtol=1e-14)


def test_all_outputs_carry_gradients_unless_told_otherwise():
    @fused(outputs=2)
    def two(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * x, x * 3.0

    two.kernel("cpu", lambda x: ((x * x, x * 3), (x,)), lambda dy, saved, needs: ((0 if dy[0] is None else dy[0] * 2 * saved[0]) + 3 * dy[1],))
    x = Tensor([1.0, 2.0], requires_grad=True)
    first, second = two(x)
    (first * Tensor([1.0, 2.0]) + second * Tensor([3.0, 5.0])).backward(np.ones(2))
    assert x.grad is not None
    assert_array_equal(x.grad.numpy(), [11.0, 23.0])


# --- what a kernel's gradients read


def test_a_kernel_says_what_its_gradients_read():
    """Here x * w: only the other factor is read, and only that one is guarded; without `reads`, both are."""

    def product(x: Tensor, w: Tensor, scale: float = 1.0) -> Tensor:
        return x * w * scale

    def forward(x: Any, w: Any, scale: float) -> tuple:
        return x * w * scale, (x, w)

    def backward(dy: Any, saved: tuple, needs: tuple) -> tuple:
        x, w = saved
        return dy * w if needs[0] else None, dy * x if needs[1] else None

    op = fused(product)
    with pytest.raises(ValueError, match="product: there is no array 'y' that a kernel could read; there are x, w, out"):
        op.kernel("cpu", forward, backward, reads={"x": "y"})
    for reads in ({"y": "x"}, {"scale": "x"}, {"x": "scale"}):
        with pytest.raises(ValueError, match="no array '(y|scale)'"):
            op.kernel("cpu", forward, backward, reads=reads)
    for reads, refused in ((None, ["xx", "xw", "wx", "ww"]), ({"x": "w", "w": "x"}, ["xw", "wx"]), ({"x": ""}, ["wx", "ww"])):
        op.kernel("cpu", forward, backward, reads=reads)
        for asked, written in itertools.product("xw", repeat=2):
            tensors = {"x": leaf(2), "w": leaf(2, seed=1)}
            out = op(tensors["x"], tensors["w"]).sum()
            with minigrad.no_grad():
                tensors[written].copy_(3.0)
            if asked + written in refused:
                with pytest.raises(RuntimeError, match="backward of product"):
                    minigrad.grad(out, tensors[asked])
            else:
                minigrad.grad(out, tensors[asked])
    op.kernel("cpu", forward, backward, reads={"x": "w", "w": "x"})
    x = leaf(2)
    out = op(x, x).sum()  # one array in two places: read by both
    with minigrad.no_grad():
        x.copy_(3.0)
    with pytest.raises(RuntimeError, match="backward of product"):
        out.backward()


def test_a_write_to_an_output_is_refused_to_the_gradients_that_read_it(registry: None):
    """Of three inputs: which of them, and not its neighbours, the kernel says."""

    @fused
    def mixed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return x * w * 0.0 + b.exp()

    def forward(x: Any, w: Any, b: Any) -> tuple:
        out = np.exp(b)
        return out, (x, w, out)

    def backward(dy: Any, saved: tuple, needs: tuple) -> tuple:
        x, w, out = saved
        return dy * w * 0.0, dy * x * 0.0, dy * out

    mixed.kernel("cpu", forward, backward, reads={"x": "w", "w": "x", "b": "out"})
    for asked in "xwb":
        tensors = {name: leaf(2, seed=seed) for seed, name in enumerate("xwb")}
        out = mixed(**tensors)
        total = (out * 1.0).sum()
        with minigrad.no_grad():
            out.copy_(3.0)
        if asked == "b":
            with pytest.raises(RuntimeError, match="backward of mixed: its output, which its derivative reads, was written in place"):
                minigrad.grad(total, tensors[asked])
        else:
            minigrad.grad(total, tensors[asked])


@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_of_the_definition_are_the_same_in_anomaly_mode(registry: None, order: int):
    @fused
    def cubed(x: Tensor) -> Tensor:
        return x * x * x

    cubed.kernel("cpu", lambda x: (x * x * x, (x,)), lambda dy, saved, needs: (3.0 * dy * saved[0] ** 2,))
    x = leaf(3)
    with minigrad.anomaly():
        (g,) = minigrad.grad(cubed(x), x, Tensor(rng(2).standard_normal(3)), create_graph=True)
        (h,) = minigrad.grad(g, x, Tensor(rng(3).standard_normal(3)))
    values = x.numpy()
    expected = [3 * values**2 * rng(2).standard_normal(3), 6 * values * rng(2).standard_normal(3) * rng(3).standard_normal(3)]
    assert_allclose((g, h)[order - 1].numpy(), expected[order - 1], rtol=1e-13)
