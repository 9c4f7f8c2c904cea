"""Initialisers: the distributions PyTorch documents, checked with statistics at fixed seeds, and reproducible by `manual_seed`."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
import pytest
import torch

import minigrad
from minigrad import Tensor, nn, random
from minigrad.nn import init


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    minigrad.manual_seed(11)
    yield
    minigrad.manual_seed(0)


def filled(fill: Callable, *shape: int, dtype: type = np.float64, **options: object) -> np.ndarray:
    tensor = nn.Parameter(np.empty(shape, dtype))
    assert fill(tensor, **options) is tensor
    return tensor.numpy()


def distance(values: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> float:
    """Kolmogorov and Smirnov's: sqrt(n) times the largest difference from `cdf`; above 1.95 in 1 of 1,000 fair draws."""
    values = np.sort(values.ravel())
    n = values.size
    expected = cdf(values)
    return math.sqrt(n) * max((np.arange(1, n + 1) / n - expected).max(), (expected - np.arange(n) / n).max())


def normal_cdf(values: np.ndarray, mean: float, std: float) -> np.ndarray:
    return torch.special.ndtr(torch.tensor((values - mean) / std)).numpy()


def test_uniform():
    values = filled(init.uniform_, 100, 100, a=-0.3, b=0.7)
    assert values.min() >= -0.3 and values.max() < 0.7
    assert distance(values, lambda v: v + 0.3) < 1.95


def test_normal():
    assert distance(filled(init.normal_, 100, 100, mean=2.0, std=0.5), lambda v: normal_cdf(v, 2.0, 0.5)) < 1.95


@pytest.mark.parametrize(("mean", "std", "a", "b"), [(0.0, 0.02, -2.0, 2.0), (0.0, 1.0, -2.0, 2.0), (1.0, 2.0, -0.5, 1.5), (0.0, 1.0, 2.0, 4.0)])
def test_truncated_normal_has_absolute_bounds(mean: float, std: float, a: float, b: float):
    values = filled(init.trunc_normal_, 100, 100, mean=mean, std=std, a=a, b=b)
    assert values.min() >= a and values.max() <= b
    low, high = normal_cdf(np.array([a, b]), mean, std)
    assert distance(values, lambda v: (normal_cdf(v, mean, std) - low) / (high - low)) < 1.95


def test_truncated_normal_refuses_what_would_never_end():
    with pytest.raises(ValueError, match=r"\[8.0, 9.0\] holds only"):
        filled(init.trunc_normal_, 3, a=8.0, b=9.0)
    with pytest.raises(ValueError, match="holds only 0.0e"):
        filled(init.trunc_normal_, 3, a=2.0, b=-2.0)
    with pytest.raises(ValueError, match="std is 0"):
        filled(init.trunc_normal_, 3, std=0.0)
    with pytest.raises(ValueError, match="std is nan"):
        filled(init.trunc_normal_, 3, std=float("nan"))
    with pytest.raises(ValueError, match="holds only"):
        filled(init.trunc_normal_, 3, mean=float("nan"))


@pytest.mark.parametrize(("share", "holds"), [(0.96e-3, False), (1.04e-3, True), (1.9e-3, True)])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (3.0, 0.5), (-0.7, 2.0)])
def test_a_thousandth_of_the_distribution_is_enough(share: float, holds: bool, mean: float, std: float):
    normal = NormalDist(mean, std)
    for a, b in ((normal.inv_cdf(0.6), normal.inv_cdf(0.6 + share)), (normal.inv_cdf(0.2), normal.inv_cdf(0.2 + share))):
        if holds:
            values = filled(init.trunc_normal_, 3, mean=mean, std=std, a=a, b=b)
            assert np.all((a - 1e-6 <= values) & (values <= b + 1e-6))
        else:
            with pytest.raises(ValueError, match=r"holds only 9\.6e-04 of a normal distribution"):
                filled(init.trunc_normal_, 3, mean=mean, std=std, a=a, b=b)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize(("nonlinearity", "a"), [("relu", 0.0), ("leaky_relu", 0.3), ("linear", 0.0), ("tanh", 0.0)])
def test_kaiming_spread_is_pytorchs(mode: str, nonlinearity: str, a: float):
    shape = (64, 16, 3, 3)
    gain = torch.nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]
    assert init.calculate_gain(nonlinearity, a) == pytest.approx(gain, rel=1e-15)
    assert init.calculate_gain(nonlinearity) == pytest.approx(torch.nn.init.calculate_gain(nonlinearity), rel=1e-15)  # type: ignore[arg-type]
    fan = torch.nn.init._calculate_correct_fan(torch.empty(shape), mode)
    std = gain / math.sqrt(fan)
    assert distance(filled(init.kaiming_normal_, *shape, a=a, mode=mode, nonlinearity=nonlinearity), lambda v: normal_cdf(v, 0, std)) < 1.95
    bound = math.sqrt(3) * std
    values = filled(init.kaiming_uniform_, *shape, a=a, mode=mode, nonlinearity=nonlinearity)
    assert abs(values).max() <= bound
    assert distance(values, lambda v: (v + bound) / (2 * bound)) < 1.95


def test_linear_and_convolution_start_as_pytorchs():
    # Both weights and biases are uniform within +-1/sqrt(fan_in).
    for layer, fan_in in ((nn.Linear(50, 400), 50), (nn.Conv2d(6, 500, (3, 5), groups=2), 3 * 15)):
        bound = 1 / math.sqrt(fan_in)
        for tensor in layer.parameters():
            values = tensor.numpy().astype(np.float64)
            assert tensor.dtype == np.float32 and abs(values).max() <= bound * (1 + 1e-6)
            assert distance(values, lambda v: (v + bound) / (2 * bound)) < 1.95  # noqa: B023 - used at once


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_"])
def test_what_is_not_given_is_pytorchs_choice(name: str):
    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (init, torch.nn.init))
    assert {key: value.default for key, value in ours.items()} == {key: theirs[key].default for key in ours}


@pytest.mark.parametrize("nonlinearity", ["linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu"])
def test_gains_are_pytorchs(nonlinearity: str):
    assert init.calculate_gain(nonlinearity) == pytest.approx(torch.nn.init.calculate_gain(nonlinearity), rel=1e-15)  # type: ignore[arg-type]


def test_zeros_and_ones():
    assert not filled(init.zeros_, 3, 2).any()
    assert (filled(init.ones_, 3, 2) == 1).all()


def test_what_draws_can_be_skipped_in_a_block():
    minigrad.manual_seed(3)
    before = random.get_counter()
    fills = (lambda x: init.uniform_(x), lambda x: init.normal_(x), lambda x: init.trunc_normal_(x), init.kaiming_normal_, init.kaiming_uniform_)
    with init.skipped():
        for fill in fills:
            x = Tensor(np.full((2, 3), 7, np.float32))
            assert fill(x) is x and (x.numpy() == 7).all()
        assert not init.zeros_(x).numpy().any() and init.ones_(x).numpy().all()
        with pytest.raises(ValueError, match="std is 0"):
            init.trunc_normal_(x, std=0.0)
    assert random.get_counter() == before
    with pytest.raises(KeyError), init.skipped():
        raise KeyError
    for fill in fills:
        assert len(np.unique(fill(x).numpy())) == 6


def test_wrong_arguments():
    with pytest.raises(ValueError, match="nonlinearity is 'swish'; give one of linear"):
        filled(init.kaiming_normal_, 2, 2, nonlinearity="swish")
    with pytest.raises(ValueError, match="mode is 'fan'"):
        filled(init.kaiming_normal_, 2, 2, mode="fan")
    with pytest.raises(ValueError, match=r"2 or more axes, this one has shape \(3,\)"):
        filled(init.kaiming_normal_, 3)


def test_empty_layers_are_allowed():
    layer = nn.Linear(0, 3)
    assert layer.weight.shape == (3, 0) and layer.bias is not None and not layer.bias.numpy().any()  # within +-1/sqrt(0) nothing is known
    assert nn.Linear(3, 0).weight.shape == (0, 3)


def build() -> dict[str, np.ndarray]:
    model = nn.Sequential(nn.Linear(4, 5), nn.Conv2d(2, 3, 3), nn.Linear(4, 5))
    init.trunc_normal_(model[0].weight, std=0.02)
    return model.state_dict()


def test_the_seed_makes_a_model_reproducible():
    first, second = build(), build()
    assert not np.array_equal(first["0.weight"], second["0.weight"])  # draws go on counting
    assert not np.array_equal(first["0.bias"], first["2.bias"])
    minigrad.manual_seed(11)
    again = build()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    minigrad.manual_seed(12)
    assert not np.array_equal(build()["0.weight"], first["0.weight"])


def test_threads_build_the_same_model_from_the_same_seed():
    expected = build()
    found: list[dict] = []

    def run() -> None:
        minigrad.manual_seed(11)
        found.append(build())

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(np.array_equal(state[name], expected[name]) for state in found for name in expected)


def test_dtype_does_not_change_the_draws():
    double = filled(init.normal_, 50)
    minigrad.manual_seed(11)
    np.testing.assert_array_equal(filled(init.normal_, 50, dtype=np.float32), double.astype(np.float32))


def test_numpys_global_state_is_left_alone_and_the_write_is_counted():
    state = np.random.get_state()[1].copy()
    tensor = Tensor(np.zeros(4))
    init.normal_(tensor)
    assert tensor.version[0] == 1
    assert np.array_equal(state, np.random.get_state()[1])
    assert random.get_counter().draw == 1
