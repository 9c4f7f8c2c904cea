"""batch_norm against PyTorch and its own definition, near and far from zero, in training and evaluation. Read next: minigrad/fused/batch_norm.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.fused.batch_norm import batch_norm
from tests.support import check_op, rng

PAGE = sys.modules[batch_norm.__module__]


def torch_batch_norm(eps: float, relu: bool):
    """The same in PyTorch: channels second; batch norm, sum and ReLU one after the other."""

    def run(x, weight, bias, mean, var, residual):
        training = mean is None
        y = torch.nn.functional.batch_norm(x.movedim(-1, 1), mean, var, weight, bias, training, 0.0, eps).movedim(1, -1)
        y = y if residual is None else y + residual
        y = torch.relu(y) if relu else y
        axes = tuple(range(x.ndim - 1))
        return (y, x.detach().mean(axes), x.detach().var(axes, unbiased=False)) if training else (y, mean, var)

    return run


def compare(x, weight, bias, mean, var, residual, eps=1e-5, relu=False, needs=(True,) * 6, **options) -> None:
    needs = (*needs[:3], False, False, needs[5])  # statistics are constants; PyTorch's have no gradient either
    values = {"eps": eps, "relu": relu}
    check_op(batch_norm, torch_batch_norm(eps, relu), [x, weight, bias, mean, var, residual], values, needs=needs, **options)


def draw_inputs(shape, seed, affine=True, evaluation=False, with_residual=False, offset=0.0) -> list:
    random, channels = rng(seed), shape[-1]
    vector = lambda low, high: random.uniform(low, high, channels)  # noqa: E731
    x = random.uniform(-2, 2, shape) + offset
    weight, bias = (vector(-2, 2), vector(-1, 1)) if affine else (None, None)
    mean, var = (vector(-1, 1) + offset, vector(0.5, 2)) if evaluation else (None, None)
    return [x, weight, bias, mean, var, random.uniform(-1, 1, shape) if with_residual else None]


shapes = st.one_of(
    st.tuples(st.integers(4, 8), st.integers(1, 5)),
    st.tuples(st.integers(2, 3), st.integers(2, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(2, 4), st.integers(1, 5)),
)


@settings(max_examples=25)
@given(shapes, st.integers(0, 1000), *[st.booleans()] * 4, st.sampled_from([1e-5, 1e-2]), st.sampled_from([0.0, 1e3]))
def test_equals_torch(shape, seed, affine, evaluation, with_residual, relu, eps, offset):
    inputs = draw_inputs(shape, seed, affine, evaluation, with_residual, offset)
    compare(*inputs, eps=eps, relu=relu, relative=1e-11 if not offset else 1e-9)  # float64 keeps 1e-13 of a mean of 1000


@settings(max_examples=15)
@given(st.lists(st.booleans(), min_size=6, max_size=6), st.booleans(), st.booleans())
def test_gradients_of_some_inputs_only(needs, evaluation, relu):
    compare(*draw_inputs((2, 3, 2, 3), 1, evaluation=evaluation, with_residual=True), relu=relu, needs=needs, second=False)


def test_weight_without_bias_and_bias_without_weight():
    x, weight, bias, *rest = draw_inputs((3, 2, 2, 4), 2)
    compare(x, weight, None, *rest, second=False)  # PyTorch's double backward raises here: it wants both or neither
    compare(x, None, bias, *rest, relu=True, second=False)


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_long_rows_blocks_and_threads_change_nothing(monkeypatch, evaluation, offset):
    """With tiny limits an array of some hundred elements goes through several long rows, several blocks and every thread."""
    monkeypatch.setattr(PAGE, "LONG_ROW", 16)
    monkeypatch.setattr(PAGE, "BLOCK", 24)
    monkeypatch.setattr(PAGE, "GRAIN", 16)
    for shape in [(4, 4, 2, 3), (5, 3, 3, 4), (3, 2, 2, 40)]:
        compare(*draw_inputs(shape, 3, evaluation=evaluation, with_residual=True, offset=offset), relu=True, second=False, relative=1e-10)


def test_one_channel_far_from_zero_among_others_near_it():
    x, *rest = draw_inputs((4, 3, 3, 3), 4)
    compare(x + np.array([0.0, 1e3, -0.5]), *rest, relative=1e-9)


def test_constant_channel_gives_the_bias():
    for constant in (0.0, 0.1, 1234.567):
        x = np.full((4, 3, 3, 2), constant, np.float32)
        x[..., 1] = rng(5).standard_normal((4, 3, 3))
        leaf = Tensor(x, requires_grad=True)
        y, mean, var = batch_norm(leaf, None, Tensor(np.array([0.5, 0.0], np.float32)))
        np.testing.assert_allclose(y.numpy()[..., 0], 0.5, atol=1e-4)
        np.testing.assert_allclose(mean.numpy()[0], constant, rtol=1e-6)
        assert 0 <= var.numpy()[0] < 1e-6
        y.backward(Tensor(rng(6).standard_normal(x.shape).astype(np.float32)))
        assert np.isfinite(leaf.grad.numpy()).all()


def run(inputs, upstream, dtype, by_definition: bool, relu: bool) -> list[np.ndarray]:
    """y, mean, var and the four gradients."""
    tensors = [None if x is None else Tensor(x.astype(dtype), requires_grad=True) for x in inputs]
    with minigrad.definitions() if by_definition else minigrad.enable_grad():
        outputs = batch_norm(*tensors, relu=relu)
        gradients = minigrad.grad(outputs[0], [tensors[k] for k in (0, 1, 2, 5)], Tensor(upstream.astype(dtype)))
    return [t.numpy() for t in (*outputs, *gradients)]


@pytest.mark.parametrize("offset", [0.0, 3.9, 4.3, 1e3])
@pytest.mark.parametrize("shape", [(16, 16, 16, 12), (4, 8, 8, 96), (8, 4, 4, 192), (2, 7, 7, 64)])
@pytest.mark.parametrize("relu", [False, True])
def test_float32_is_as_accurate_as_the_definition(shape, offset, relu):
    """Standard deviation 1, mean `offset`: 3.9 is read as it is, 4.3 and 1000 through a pivot."""
    random = rng(7)
    single = lambda *s: random.standard_normal(s).astype(np.float32)  # noqa: E731
    inputs = [single(*shape) + np.float32(offset), single(shape[-1]), single(shape[-1]), None, None, single(*shape)]
    reference64 = run(inputs, upstream := single(*shape), np.float64, True, relu)
    kernel, definition = (run(inputs, upstream, np.float32, way, relu) for way in (False, True))
    # One ReLU that rounding switches changes whole gradients: leave those elements' effect out by comparing where all three agree on the signs.
    same_signs = all(np.array_equal(y > 0, reference64[0] > 0) for y in (kernel[0], definition[0]))
    names = ["y", "mean", "var", "dx", "dweight", "dbias", "dresidual"]
    for name, ours, plain, exact in zip(names, kernel, definition, reference64, strict=True):
        if relu and not same_signs and name[0] == "d":
            continue
        error, allowed = (np.abs(a.astype(np.float64) - exact).max() for a in (ours, plain))
        assert error <= 2 * allowed + 4 * np.finfo(np.float32).eps * np.abs(exact).max(), f"{name}: error {error:.3g}, definition {allowed:.3g}"


def test_statistics_are_outputs_without_gradient():
    x, weight, bias, *_ = draw_inputs((4, 2, 2, 3), 8)
    for context in (minigrad.enable_grad(), minigrad.definitions()):
        with context:
            y, mean, var = batch_norm(Tensor(x, requires_grad=True), Tensor(weight, requires_grad=True), Tensor(bias))
        assert y.requires_grad and not mean.requires_grad and not var.requires_grad


def test_given_statistics_never_receive_gradient_and_are_returned():
    x, weight, bias, mean, var, _ = draw_inputs((4, 2, 2, 3), 9, evaluation=True)
    for context in (minigrad.enable_grad(), minigrad.definitions()):
        with context:
            leaves = [Tensor(a, requires_grad=True) for a in (x, weight, bias, mean, var)]
            y, same_mean, same_var = batch_norm(*leaves)
            y.backward(Tensor(rng(10).standard_normal(x.shape)))
        assert leaves[0].grad is not None and leaves[3].grad is None and leaves[4].grad is None
        np.testing.assert_array_equal(same_mean.numpy(), mean)
        np.testing.assert_array_equal(same_var.numpy(), var)


@pytest.mark.parametrize("statistics", [(), (np.zeros(3), np.ones(3))])
def test_empty_batch(statistics):
    for context in (minigrad.enable_grad(), minigrad.definitions()):
        with context:
            x, weight = Tensor(np.zeros((0, 2, 2, 3)), requires_grad=True), Tensor(np.ones(3), requires_grad=True)
            y, mean, var = batch_norm(x, weight, None, *[Tensor(vector) for vector in statistics])
            y.backward(Tensor(np.zeros(y.shape)))
        assert y.shape == x.grad.shape == (0, 2, 2, 3)
        np.testing.assert_array_equal(weight.grad.numpy(), np.zeros(3))
        np.testing.assert_array_equal([mean.numpy(), var.numpy()], statistics or np.zeros((2, 3)))


def test_nan_stays_in_its_channel():
    x = rng(11).standard_normal((2, 2, 2, 3))
    x[0, 1, 0, 1] = np.nan
    y, *_ = batch_norm(Tensor(x))
    assert np.isnan(y.numpy()[..., 1]).all() and np.isfinite(y.numpy()[..., [0, 2]]).all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 1, 1, 3)], "more than 1 value per channel"),
        ([(2, 3, 4, 4), (3,)], r"x has 4 channels, weight has shape \(3,\).*transpose\(0, 2, 3, 1\)"),
        ([(2, 5, 4, 4), (4,), (3,)], r"x has 4 channels, bias has shape \(3,\)"),
        ([(2, 4, 4, 3), None, None, (3,)], "both"),
        ([(2, 4, 4, 3), None, None, (3,), (4,)], "var has shape"),
        ([(2, 4, 4, 3), None, None, None, None, (2, 4, 4, 1)], "residual has shape"),
        ([(3,)], "2 or more dimensions"),
    ],
)
def test_errors(shapes, message):
    with pytest.raises(ValueError, match=message):
        batch_norm(*[None if shape is None else Tensor(np.zeros(shape)) for shape in shapes])
