"""A whole Conformer and its training on a GPU: the CPU's numbers, the same bits at every run, and no more memory with every step.

The network is cifar-nano with everything that draws switched on: dropout, stochastic depth, shifted and flipped images. Read next: `test_shapes.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import minigrad
from conformer.batches import batches
from conformer.config import CONFIGS
from conformer.data import Dataset, Split
from conformer.gpu_steps import GpuSteps
from conformer.learner import Learner
from conformer.options import TrainConfig
from minigrad import Tensor, random
from minigrad import functional as F
from minigrad.backend import cuda
from tests.cuda_device import nothing_waits, on_cuda
from tests.support import rng

pytestmark = pytest.mark.gpu

NETWORK = replace(CONFIGS["cifar-nano"], drop_rate=0.1, drop_path_rate=0.1)
BATCH = 16
IMAGES = 4 * BATCH
STEPS = 20


def dataset() -> Dataset:
    """Images of noise, with a brightness that depends on the class: there is something to learn."""
    labels = rng(1).integers(0, 10, IMAGES)
    images = np.clip(rng(2).normal(60 + 15 * labels[:, None, None, None], 40, (IMAGES, 32, 32, 3)), 0, 255).astype(np.uint8)
    split = Split(images, labels)
    return Dataset("noise", tuple("0123456789"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), split, split, "made here")


def learner(device: str, dtype: str, steps: int = STEPS, ema: float = 0.0) -> Learner:
    made = Learner(NETWORK, TrainConfig(batch_size=BATCH, seed=3, ema=ema), steps, device)
    made.model.to(dtype=dtype)
    return made


def eager(made: Learner, steps: int) -> list[float]:
    """Take steps as the CPU does; their losses."""
    data, dtype, losses = dataset(), next(made.model.parameters()).dtype, []
    device = next(made.model.parameters()).device
    for _ in range(steps):
        epoch, place = divmod(made.step, IMAGES // BATCH)
        images, labels = next(batches(data, BATCH, epoch, place))
        made.begin_step()
        made.update(
            [(Tensor(images.astype(dtype)).to(device=device), Tensor(labels).to(device=device))], lambda part, loss, heads, y: losses.append(loss)
        )
        made.step += 1
    return [loss.item() for loss in losses]


def captured(made: Learner, steps: int) -> list[float]:
    """Take the same steps as launches of one graph."""
    taken = GpuSteps(made, dataset(), BATCH, interval=3)
    outcomes = [outcome for _ in range(steps) for outcome in taken.take()] + taken.finish()
    assert [outcome.step for outcome in outcomes] == list(range(1, steps + 1))
    return [outcome.loss for outcome in outcomes]


def weights(made: Learner) -> np.ndarray:
    """All weights and running statistics, one after the other."""
    return np.concatenate([array.reshape(-1).astype(np.float64) for array in made.model.state_dict().values()])


def passed(device: str, dtype: str, by_definitions: bool = False, training: bool = True) -> dict[str, np.ndarray]:
    """Logits, and the gradient of every parameter, after one pass."""
    made = learner(device, dtype)
    made.model.train(training)
    images, labels = next(batches(dataset(), BATCH, 0))
    random.set_step(0)
    with minigrad.definitions() if by_definitions else minigrad.enable_grad():
        heads = made.model(Tensor(images.astype(dtype)).to(device=device))
        y = Tensor(labels).to(device=device)
        (F.cross_entropy(heads[0], y, label_smoothing=0.1) + F.cross_entropy(heads[1], y)).backward()
    results = {"CNN head": heads[0], "transformer head": heads[1]} | {name: p.grad for name, p in made.model.named_parameters() if p.grad is not None}
    assert len(results) == 2 + len(list(made.model.parameters())) and all(x.device == device for x in results.values())
    return {name: x.to(device="cpu").numpy() for name, x in results.items()}


@pytest.mark.parametrize(("training", "by_definitions"), [(True, False), (False, False), (True, True)])
def test_forward_and_backward_are_the_cpu_s(training: bool, by_definitions: bool):
    exact = passed("cpu", "float64", training=training)
    with on_cuda(("ascending", "descending") if not by_definitions else ("ascending",)):
        ours = passed("cuda", "float64", by_definitions, training)
    largest = max(np.abs(x).max() for x in exact.values())
    for name, reference in exact.items():
        error = np.abs(ours[name] - reference).max()
        assert error <= 1e-9 * max(np.abs(reference).max(), 1e-3 * largest), f"{name}: {error}"


def distance(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(ours.astype(np.float64) - reference))


def test_float32_is_as_accurate_as_on_the_cpu():
    """All gradients as one long vector: the rule for kernels, for the network."""
    exact, single = passed("cpu", "float64"), passed("cpu", "float32")
    with on_cuda():
        ours = passed("cuda", "float32")
    for names in (["CNN head", "transformer head"], [name for name in exact if "head" not in name]):
        reference, plain, mine = (np.concatenate([x[name].reshape(-1) for name in names]) for x in (exact, single, ours))
        assert mine.dtype == np.float32
        bound = 2 * distance(plain, reference) + 4 * np.finfo(np.float32).eps * np.linalg.norm(reference)
        assert distance(mine, reference) <= bound, f"{names[0]} and so on: {distance(mine, reference)} > {bound}"


@pytest.mark.parametrize("take", [eager, captured])
def test_twenty_steps_are_the_cpu_s(take: Callable[[Learner, int], list[float]]):
    here = learner("cpu", "float64")
    expected = eager(here, STEPS)
    assert expected[-1] < expected[0]
    with on_cuda():
        there = learner("cuda", "float64")
        losses = take(there, STEPS)
        np.testing.assert_allclose(losses, expected, rtol=1e-7)
        assert distance(weights(there), weights(here)) <= 1e-6 * np.linalg.norm(weights(here))


def test_twenty_steps_in_float32_are_as_accurate_as_on_the_cpu():
    """Training multiplies what is rounded; but on the GPU not more than on the CPU, within a factor for luck."""
    exact, single = (eager(learner("cpu", dtype), STEPS) for dtype in ("float64", "float32"))
    with on_cuda():
        ours = captured(learner("cuda", "float32"), STEPS)
    errors, allowed = (np.abs(np.subtract(losses, exact)).max() for losses in (ours, single))
    assert errors <= 4 * allowed + 1e-4


def test_a_graph_s_steps_are_the_steps_to_the_last_bit_and_so_is_every_run():
    runs: list[tuple[list[float], dict[str, np.ndarray]]] = []
    for take in (eager, captured, captured, eager):
        with on_cuda():
            made = learner("cuda", "float32", ema=0.9)
            runs.append((take(made, 6), made.state()))
    (losses, state), *others = runs
    for other_losses, other_state in others:
        np.testing.assert_array_equal(np.float32(other_losses), np.float32(losses))
        for name, array in state.items():
            np.testing.assert_array_equal(other_state[name], array, err_msg=name)


def test_steps_do_not_wait_for_the_gpu():
    with on_cuda() as device:
        made = learner("cuda", "float32")
        taken = GpuSteps(made, dataset(), BATCH, interval=1000)
        with nothing_waits(device):
            for _ in range(3):  # within an epoch
                assert taken.take() == []
        assert len(taken.finish()) == 3


@pytest.mark.parametrize("take", [eager, captured])
def test_memory_stays_what_it_was(take: Any):
    with on_cuda():
        pool = cuda.array_module().get_default_memory_pool()
        made = learner("cuda", "float32", steps=240, ema=0.99)
        steps = GpuSteps(made, dataset(), BATCH, interval=10) if take is captured else None

        def some(count: int) -> tuple[int, int]:
            for _ in range(count):
                # one at a time: the losses of hundreds of steps, which `eager` keeps until it returns, would take more memory than those of twenty
                eager(made, 1) if steps is None else steps.take()
            if steps is not None:
                steps.finish()
            return pool.used_bytes(), pool.total_bytes()

        some(20)
        after_forty, in_all = some(20)
        assert (after_forty, in_all) == some(200)
