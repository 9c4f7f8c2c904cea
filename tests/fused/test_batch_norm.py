"""batch_norm near and far from zero, in training and evaluation, with residual and ReLU, of few rows and of none.

Two proofs: with the ReLU the node also keeps its output, and the kink at 0 must be stayed away from. Read next: minigrad/fused/batch_norm.py.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.backend import cpu
from minigrad.fused.batch_norm import batch_norm
from tests.cuda_device import on_cuda
from tests.proofs import Case, Pin, Proof, Refusal
from tests.support import assert_close, lengths, rng

PAGE = sys.modules[batch_norm.__module__]


def in_torch(x: Any, weight: Any, bias: Any, mean: Any, var: Any, residual: Any, eps: float = 1e-5, relu: bool = False) -> tuple:
    """The same in PyTorch: channels second; batch norm, sum and ReLU one after the other."""
    training = mean is None or var is None
    y = torch.nn.functional.batch_norm(x.movedim(-1, 1), mean, var, weight, bias, training, 0.0, eps).movedim(1, -1)
    if residual is not None and residual.shape != y.shape:
        raise ValueError("residual does not fit")
    y = y if residual is None else y + residual
    y = torch.relu(y) if relu else y
    if not training:
        return y, mean, var
    rows = x.detach().flatten(0, -2)
    statistics = (rows.mean(0), rows.var(0, unbiased=False)) if rows.numel() else torch.zeros(2, x.shape[-1], dtype=x.dtype)
    return y, *statistics


def case(
    shape: tuple[int, ...],
    affine: tuple[bool, bool] = (True, True),
    evaluation: bool = False,
    with_residual: bool = False,
    offset: float = 0.0,
    eps: float = 1e-5,
    relu: bool = False,
    seed: int = 0,
) -> Case:
    """The values of a channel are well apart, so that finite differences are exact enough. With a ReLU, what it sees is at least 0.02 from 0."""
    random, channels = rng(seed), shape[-1]
    rows = int(np.prod(shape[:-1]))
    x = random.permuted(np.broadcast_to(np.linspace(-1, 1, max(rows, 1))[:rows, None], (rows, channels)), axis=0)
    x = (x * random.uniform(0.5, 2, channels) + random.uniform(-0.1, 0.1, x.shape) + random.uniform(-0.5, 0.5, channels) + offset).reshape(shape)
    weight, bias = (random.uniform(0.5, 2, channels) * random.choice([-1, 1], channels) if wanted else None for wanted in affine)
    mean, var = (random.uniform(-1, 1, channels) + offset, random.uniform(0.5, 2, channels)) if evaluation else (None, None)
    if relu and bias is None:  # a channel of one number repeated is normalised to 0, the kink: something must move it away
        with_residual = True
    residual = random.uniform(-1, 1, shape) if with_residual else None
    if relu and rows > 1:
        axes = tuple(range(x.ndim - 1))
        center, spread = (x.mean(axes), x.var(axes)) if mean is None else (mean, var)
        before = (x - center) / np.sqrt(spread + eps) * (1 if weight is None else weight)
        if residual is not None:
            residual = random.uniform(0.02, 1, shape) * random.choice([-1, 1], shape) - before - (0 if bias is None else bias)
        else:  # the kink of each channel lies in its widest gap, not in the middle: of two rows that is 0, where a channel of one number is put
            ordered = np.sort(before.reshape(rows, channels), 0)
            widest = np.diff(ordered, axis=0).argmax(0)
            bias = -(0.6 * ordered[widest, np.arange(channels)] + 0.4 * ordered[widest + 1, np.arange(channels)])
    return Case(
        [x, weight, bias, mean, var, residual],
        {"eps": eps, "relu": relu},
        needs=(True, True, True, False, False, True),  # statistics are constants; PyTorch too refuses ones that require grad
        relative=1e-9 if offset else 1e-11,  # float64 keeps 13 of 16 digits beside a mean of 1000
        second_in_torch=affine[0] == affine[1],  # PyTorch wants both or neither
    )


shapes = st.one_of(
    st.tuples(st.integers(2, 8), lengths(2, 5)),
    st.tuples(st.integers(2, 3), st.integers(2, 5), lengths(2, 5)),
    st.tuples(lengths(2, 3), st.integers(2, 3), st.integers(2, 3), lengths(2, 4)),
)
affines = st.sampled_from([(True, True), (False, False), (True, False), (False, True)])
epsilons = st.sampled_from([1e-5, 1e-2])
KEPT = "x weight bias mean var residual"
SHAPES = [(16, 16, 16, 12), (4, 8, 8, 96), (8, 4, 4, 192), (1, 14, 14, 64)]


def at_network_shapes(relu: bool) -> list[Case]:
    """Standard deviation 1, mean `offset`: 0.5, and for many values 3.9, is read as it is, the others through a pivot."""
    cases = []
    for shape in SHAPES:
        for offset in (0.0, 0.5, 1.5, 3.9, 4.3, 1e3):
            random = rng(7)
            single = [random.standard_normal(s).astype(np.float32) for s in (shape, shape[-1], shape[-1], shape)]
            x, weight, bias, residual = single
            x = x + np.float32(offset)
            if relu:  # one ReLU that rounding switches would change whole gradients
                y = (x - x.mean((0, 1, 2), dtype=np.float64)) / x.std((0, 1, 2), dtype=np.float64) * weight + bias
                residual = np.where(np.abs(y + residual) < 0.01, residual + 0.05, residual)
            cases.append(Case([x, weight, bias, None, None, residual], {"relu": relu}, (True, True, True, False, False, True)))
    return cases


def row_pin(what: str, x: list, gradients: Any = None, statistics: tuple | None = None, residual: list | None = None, **values: Any) -> Pin:
    """One channel without weight and bias."""
    mean, var = (None, None) if statistics is None else (np.array([float(n)]) for n in statistics)
    column = lambda numbers: None if numbers is None else np.array(numbers)[:, None]  # noqa: E731
    given = [column(x), None, None, mean, var, column(residual)]
    return Pin(what, Case(given, values, (True, True, True, False, False, True)), gradients)


def refusal(shapes: list, message: str, in_torch: bool | str = True) -> Refusal:
    inputs = [None if shape is None else np.zeros(shape) for shape in shapes]
    return Refusal(Case(inputs + [None] * (6 - len(inputs))), ValueError, message, in_torch)


class TestBatchNorm(Proof):
    op = batch_norm
    in_torch = staticmethod(in_torch)
    share = 0.8
    cases = st.builds(
        case, shapes, affines, st.booleans(), st.booleans(), st.sampled_from([0.0, 0.0, 1e3]), epsilons, st.just(False), st.integers(0, 9999)
    )
    smooth = st.builds(case, shapes, affines, st.booleans(), st.booleans(), st.just(0.0), epsilons, st.just(False), st.integers(0, 9999))
    examples = [
        case((4, 3, 3, 3), with_residual=True),
        case((4, 3, 3, 3), evaluation=True, with_residual=True),
        case((2, 1)),
        case((1, 1, 2, 3)),
        case((1, 1, 1, 3), evaluation=True),
        case((0, 2, 2, 3)),
        case((0, 2, 2, 3), evaluation=True),
    ]
    keeps = {wanted: KEPT for wanted in ("x", "weight", "bias", "residual", "x weight bias", "x weight bias residual")}
    keeps_besides = staticmethod(lambda x, *rest, **values: 3 * x.shape[-1])  # pivot, offset, 1 / deviation: not x_hat
    float32 = at_network_shapes(relu=False)
    pins = [
        row_pin("a constant channel: 0 and no gradient", [0.5, 0.5, 0.5, 0.5], [[[0.0]] * 4]),
        row_pin("two values: -1 and 1, whatever they are", [3.0, 5.0], [[[0.0]] * 2]),
        row_pin("given statistics are constants", [1.0, 3.0], [[[0.5]] * 2], (1.0, 4.0), eps=0.0),
    ]
    errors = [
        refusal([(1, 1, 1, 3)], "batch_norm: expected more than 1 value per channel when training, x has shape"),
        refusal([(1, 3)], r"expected more than 1 value per channel .*\(1, 3\): give a larger batch, larger maps, or eval\(\)"),
        refusal([(2, 3, 4, 4), (3,)], r"x has 4 channels, weight has shape \(3,\).*transpose\(0, 2, 3, 1\)"),
        refusal([(2, 5, 4, 4), (4,), (3,)], r"x has 4 channels, bias has shape \(3,\)"),
        refusal([(2, 4, 4, 3), None, None, (3,)], "batch_norm: give mean and var both .evaluation. or neither"),
        refusal([(2, 4, 4, 3), None, None, (3,), (4,)], "var has shape"),
        refusal([(2, 4, 4, 3), None, None, None, None, (2, 4, 4, 1)], r"residual has shape \(2, 4, 4, 1\), x has shape \(2, 4, 4, 3\)"),
        refusal([(3,)], "2 or more dimensions"),
        refusal([(2, 2, 0)], "and a channel", "PyTorch returns an empty array."),
        *[
            Refusal(
                Case([None if x is None else x.astype(np.int64 if i == place else float) for i, x in enumerate(given)]),
                TypeError,
                f"batch_norm: {name} must be a float Tensor, it is int64",
                name != "residual" or "PyTorch's addition, which stands in for it, promotes.",
            )
            for place, (name, given) in enumerate(
                (name, [np.ones((2, 3)), *[np.ones(3)] * 4, np.ones((2, 3))]) for name in ("x", "weight", "bias", "mean", "var", "residual")
            )
        ],
    ]

    @pytest.mark.parametrize("evaluation", [False, True])
    @pytest.mark.parametrize("offset", [0.0, 50.0])
    @pytest.mark.parametrize("relu", [False, True])
    def test_long_rows_blocks_and_threads_change_nothing(self, monkeypatch: pytest.MonkeyPatch, evaluation: bool, offset: float, relu: bool) -> None:
        """With tiny limits an array of some hundred elements goes through several long rows, several blocks and every thread."""
        monkeypatch.setattr(PAGE, "LONG_ROW", 16)
        monkeypatch.setattr(cpu, "TOGETHER", 24)
        monkeypatch.setattr(cpu, "ALONE", 24)
        monkeypatch.setattr(PAGE, "GRAIN", 16)
        for shape in [(4, 4, 2, 3), (5, 3, 3, 4), (3, 2, 2, 40)]:
            self.kernel_equals_definition(case(shape, evaluation=evaluation, with_residual=True, offset=offset, relu=relu, seed=3))

    def test_one_channel_far_from_zero_among_others_near_it(self) -> None:
        given = case((4, 3, 3, 3), offset=1e-9, seed=4)  # an offset for the tolerance
        given.inputs[0][...] += np.array([0.0, 1e3, -0.5])
        self.definition_equals_pytorch(given)
        self.kernel_equals_definition(given)

    @pytest.mark.parametrize("scale", [1.0, 0.01])
    def test_a_large_mean_costs_no_digits(self, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
        """Mean 1000, deviation 1 in float32. With rows of one pixel the kernel's sums run over thousands of them, and lose digits of the mean."""
        monkeypatch.setattr(PAGE, "LONG_ROW", 1)
        random = rng(0)
        inputs = [(a * scale).astype(np.float32) for a in (1000.37 + random.standard_normal((4096, 2)), random.uniform(0.5, 2, 2))]
        upstream = [random.uniform(-1, 1, (4096, 2)).astype(np.float32)]
        wanted = [True, True, False, False, False, False]
        ours = self.run([*inputs, *[None] * 4], wanted, {}, upstream)
        with minigrad.definitions():
            exact = self.run([*[a.astype(np.float64) for a in inputs], *[None] * 4], wanted, {}, [upstream[0].astype(np.float64)])
        for array, reference in zip(ours.arrays(), exact.arrays(), strict=True):
            size = np.abs(reference).max()
            assert_close(array / size, reference / size, relative=4e-6)
        np.testing.assert_array_equal(ours.outputs[1].numpy(), exact.outputs[1].numpy().astype(np.float32))

    @pytest.mark.parametrize("context", [minigrad.enable_grad, minigrad.definitions])
    def test_the_rounding_of_a_mean_of_10000_is_no_deviation(self, context: Any) -> None:
        """By kernel and by definition. A mean of seven digits leaves numbers of deviation 1 a mean of 2e-4, and gradients wrong by as much."""
        x, dy = ((mean + rng(seed).standard_normal((16, 8, 8, 1))).astype(np.float32) for seed, mean in ((1, 1e4), (2, 0)))
        exact = torch.tensor(x.reshape(-1, 1), dtype=torch.float64, requires_grad=True)
        reference = torch.nn.functional.batch_norm(exact, None, None, training=True)
        reference.backward(torch.tensor(dy.reshape(-1, 1), dtype=torch.float64))
        with context():
            leaf = Tensor(x, requires_grad=True)
            y, _, var = batch_norm(leaf)
            y.backward(Tensor(dy))
        for ours, theirs in ((y, reference.detach()), (leaf.grad, exact.grad)):
            np.testing.assert_allclose(ours.numpy().reshape(-1, 1), theirs.numpy(), rtol=0, atol=2e-6)
        np.testing.assert_allclose(var.numpy(), x.astype(np.float64).var((0, 1, 2)), rtol=1e-6)

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    def test_numbers_whose_squares_are_infinite(self, device: str) -> None:
        """1e20 with a deviation of 1e15, beside a channel of ordinary numbers: the variance is a number, and the squares it is made of must be."""
        noise, dy = (rng(seed).standard_normal((4, 8, 8, 2)).astype(np.float32) for seed in (1, 2))
        x = noise * np.float32([1e15, 1]) + np.float32([1e20, 0])
        exact = x.astype(np.float64)
        deviation = np.sqrt(exact.var((0, 1, 2)) + 1e-5)
        exact = (exact - exact.mean((0, 1, 2))) / deviation
        with np.errstate(over="ignore", invalid="ignore"), on_cuda():
            leaf = Tensor(x).to(device=device).requires_grad_()
            y = batch_norm(leaf)[0]
            y.backward(Tensor(dy).to(device=device))
            y, dx = y.to(device="cpu").numpy(), leaf.grad.to(device="cpu").numpy()
        np.testing.assert_allclose(y, exact, rtol=0, atol=2e-6)
        slope = dy - dy.mean((0, 1, 2)) - exact * (dy * exact).mean((0, 1, 2))
        np.testing.assert_allclose(dx * deviation, slope, rtol=0, atol=4e-6)

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
    @pytest.mark.parametrize("constant", [1e30, 1e38])
    def test_equal_numbers_that_are_large_are_no_noise(self, device: str, constant: float) -> None:
        """The mean of nine times 1e30 is rounded by more than the square root of the largest number; the sum of nine times 1e38 is infinite."""
        x, dy = np.full((9, 2), constant, np.float32), rng(1).standard_normal((9, 2)).astype(np.float32)
        x[:, 1] = rng(2).standard_normal(9)
        with np.errstate(over="ignore", invalid="ignore"), on_cuda():
            leaf = Tensor(x).to(device=device).requires_grad_()
            outputs = batch_norm(leaf)
            outputs[0].backward(Tensor(dy).to(device=device))
            y, mean, var, dx = (t.to(device="cpu").numpy() for t in (*outputs, leaf.grad))
        assert mean[0] == np.float32(constant) and var[0] == 0 and not y[:, 0].any()
        np.testing.assert_allclose(dx[:, 0], (dy[:, 0] - dy[:, 0].mean()) / np.sqrt(1e-5), rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(y[:, 1], (x[:, 1] - x[:, 1].mean()) / np.sqrt(x[:, 1].var() + 1e-5), rtol=1e-5)

    @pytest.mark.parametrize("context", [minigrad.enable_grad, minigrad.definitions])
    def test_a_variance_that_is_infinite(self, context: Any) -> None:
        """Then nothing but the bias is left."""
        x = np.float32([[1, 0], [2, 1], [3, 2], [5, 4]]) * np.float32([1e19, 1])
        with np.errstate(over="ignore", invalid="ignore"), context():
            leaf = Tensor(x, requires_grad=True)
            y = batch_norm(leaf, None, Tensor(np.float32([0.5, 0.5])))[0]
            y.backward(Tensor(x[:, 1:] - np.float32([0.3, 2])))
        assert (y.numpy()[:, 0] == 0.5).all() and not leaf.grad.numpy()[:, 0].any() and leaf.grad.numpy()[:, 1].all()

    def test_constant_channel_gives_the_bias(self) -> None:
        for constant in (0.0, 0.1, 1234.567):
            x = np.full((4, 3, 3, 2), constant, np.float32)
            x[..., 1] = rng(5).standard_normal((4, 3, 3))
            leaf = Tensor(x, requires_grad=True)
            y, mean, var = batch_norm(leaf, None, Tensor(np.array([0.5, 0.0], np.float32)))
            np.testing.assert_allclose(y.numpy()[..., 0], 0.5, rtol=0, atol=1e-6)
            np.testing.assert_allclose(mean.numpy()[0], constant, rtol=1e-6)
            assert 0 <= var.numpy()[0] < 1e-6
            y.backward(Tensor(rng(6).standard_normal(x.shape).astype(np.float32)))
            assert np.isfinite(leaf.grad.numpy()).all()

    def test_a_variance_is_not_negative_for_rounding(self) -> None:
        """These means of squares are less than the squares of the means; eps is so large that no pivot is worth its while."""
        for rows, constant in ((3, 0.1), (7, 0.3), (7, 0.7), (12, 0.7), (12, 2.3)):
            assert (batch_norm(Tensor(np.full((rows, 1, 1, 2), constant)), eps=10.0)[2].numpy() >= 0).all()

    def test_statistics_are_outputs_without_gradient(self) -> None:
        x, weight, bias, *_ = case((4, 2, 2, 3)).inputs
        for context in (minigrad.enable_grad(), minigrad.definitions()):
            with context:
                y, mean, var = batch_norm(Tensor(x, requires_grad=True), Tensor(weight, requires_grad=True), Tensor(bias))
            assert y.requires_grad and not mean.requires_grad and not var.requires_grad

    def test_given_statistics_are_constants_and_are_returned(self) -> None:
        x, weight, bias, mean, var, _ = case((4, 2, 2, 3), evaluation=True).inputs
        for context in (minigrad.enable_grad(), minigrad.definitions()):
            with context:
                leaves = [Tensor(a, requires_grad=True) for a in (x, weight, bias, mean, var)]
                for name, place in (("mean", 3), ("var", 4)):
                    inputs = [leaf if k in (0, 1, 2, place) else leaf.detach() for k, leaf in enumerate(leaves)]
                    with pytest.raises(ValueError, match=rf"^batch_norm: {name} is a constant .*; pass {name}\.detach\(\)$"):
                        batch_norm(*inputs)
                y, same_mean, same_var = batch_norm(*leaves[:3], leaves[3].detach(), leaves[4].detach())
                y.backward(Tensor(rng(10).standard_normal(x.shape)))
            assert all(leaf.grad is not None for leaf in leaves[:3])
            np.testing.assert_array_equal(same_mean.numpy(), mean)
            np.testing.assert_array_equal(same_var.numpy(), var)

    def test_nan_stays_in_its_channel(self) -> None:
        x = rng(11).standard_normal((2, 2, 2, 3))
        x[0, 1, 0, 1] = np.nan
        y, *_ = batch_norm(Tensor(x))
        assert np.isnan(y.numpy()[..., 1]).all() and np.isfinite(y.numpy()[..., [0, 2]]).all()

    def test_gradients_of_many_narrow_rows_keep_their_digits(self) -> None:
        """An odd number of rows, which cannot be laid end to end: in one running sum the products of 60,001 are 5e-4 off."""
        x = np.full((60001, 2), 0.1, np.float32)
        x[::2] += np.float32(0.2)
        weight = Tensor(np.ones(2, np.float32), requires_grad=True)
        y = batch_norm(Tensor(x), weight, None)[0]
        dy = np.where(x > 0.2, np.float32(0.3), np.float32(-0.1))
        y.backward(Tensor(dy))
        exact = x.astype(float)
        exact = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
        np.testing.assert_allclose(weight.grad.numpy(), (exact * dy).sum(0), rtol=1e-5)


class TestBatchNormRelu(Proof):
    op = batch_norm
    variant = "With relu=True: the output is kept too, and there is a kink."
    in_torch = staticmethod(in_torch)
    share = 0.8
    cases = st.builds(
        case,
        shapes,
        affines,
        st.booleans(),
        st.booleans(),
        st.just(0.0),
        epsilons,
        st.just(True),
        st.integers(0, 9999),
    )
    examples = [
        case((4, 3, 3, 3), with_residual=True, relu=True),
        case((4, 3, 3, 3), evaluation=True, with_residual=True, relu=True),
        case((2, 1), relu=True),
        case((0, 2, 2, 3), relu=True),
        case((0, 2, 2, 3), evaluation=True, with_residual=True, relu=True),
    ]
    keeps = {wanted: f"{KEPT} out" for wanted in ("x", "weight", "bias", "residual", "x weight bias", "x weight bias residual")}
    keeps_besides = TestBatchNorm.keeps_besides
    float32 = at_network_shapes(relu=True)
    pins = [
        row_pin("the slope at 0 is 0: the middle of three", [-1.0, 0.0, 1.0], relu=True),
        row_pin("the slope at 0 is 0, by given statistics", [-1.0, 0.0, 1.0], [[[0.0], [0.0], [1.0]]], (0.0, 1.0), eps=0.0, relu=True),
        row_pin("the slope at -0.0 is 0", [-0.0, 2.0], [[[0.0], [1.0]]], (0.0, 1.0), eps=0.0, relu=True),
        row_pin("a residual that cancels", [1.0, 2.0], [[[0.0], [1.0]], [[0.0], [1.0]]], (0.0, 1.0), [-1.0, -1.0], eps=0.0, relu=True),
    ]
    errors = "What is refused does not depend on the ReLU: see TestBatchNorm."
