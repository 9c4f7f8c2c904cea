"""Dropout and DropPath: what is dropped, how often, and that the masks are a function of seed, step and draw alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn, random
from minigrad.backend import cuda
from tests.cuda_device import nothing_waits, on_cuda


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    minigrad.manual_seed(3)
    yield
    minigrad.manual_seed(0)


def ones(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32), requires_grad=True)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(p: float):
    x = ones(100, 100)
    y = nn.Dropout(p)(x)
    kept = y.numpy() != 0
    np.testing.assert_allclose(y.numpy()[kept], 1 / (1 - p), rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 4 * np.sqrt(p * (1 - p) / kept.size)
    upstream = np.random.default_rng(0).uniform(-1, 1, y.shape).astype(np.float32)
    y.backward(upstream)
    np.testing.assert_allclose(x.grad.numpy(), upstream * kept / (1 - p), rtol=1e-6)


def test_drop_path_drops_whole_samples():
    x = ones(1000, 2, 3)
    y = nn.DropPath(0.25)(x).numpy()
    assert all(len(np.unique(sample)) == 1 for sample in y)
    kept = y[:, 0, 0] != 0
    np.testing.assert_allclose(y[kept], 1 / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 1000)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.DropPath(0.5)])
def test_evaluation_does_nothing_and_draws_nothing(layer: nn.Module):
    x = ones(4, 4)
    assert layer.eval()(x) is x
    assert random.get_counter().draw == 0


@pytest.mark.parametrize("kind", [nn.Dropout, nn.DropPath])
def test_the_ends_of_the_range(kind: type):
    x = ones(4, 4)
    assert kind(0.0)(x) is x and random.get_counter().draw == 0
    assert not kind(1.0)(x).numpy().any()
    with pytest.raises(ValueError, match="p is 1.5; give a probability from 0 to 1"):
        kind(1.5)
    with pytest.raises(ValueError, match="p is nan"):
        kind(float("nan"))


def test_a_step_draws_the_same_whatever_came_before():
    layer, x = nn.Dropout(0.5), ones(8, 8)
    random.set_step(4)
    first = [layer(x).numpy().copy() for _ in range(2)]
    assert not np.array_equal(*first)
    random.set_step(5)
    other = layer(x).numpy().copy()
    assert not np.array_equal(other, first[0])
    layer(x), layer(x)
    random.set_step(4)  # as a resumed run does
    assert all(np.array_equal(layer(x).numpy(), mask) for mask in first)
    minigrad.manual_seed(4)
    random.set_step(4)
    assert not np.array_equal(layer(x).numpy(), first[0])


def test_dropout_and_drop_path_have_streams_of_their_own():
    random.set_step(1)
    dropped = nn.Dropout(0.5)(ones(64)).numpy().copy()
    random.set_step(1)
    assert not np.array_equal(nn.DropPath(0.5)(ones(64)).numpy(), dropped)


def test_checkpoint_draws_the_same_masks_again():
    model = nn.Sequential(nn.Dropout(0.5), nn.DropPath(0.5))
    x = ones(16, 8)
    y = minigrad.checkpoint(model, x)
    after = random.get_counter()
    for _ in range(3):  # other draws between the forward pass and the recomputation
        random.next_draw()
    y.backward(np.ones(y.shape, np.float32))
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())  # x is ones: the derivative is the mask that made y
    assert 0 < (y.numpy() != 0).sum() < y.size
    assert random.get_counter() == (after.seed, after.step, after.draw + 3)


def test_threads_do_not_disturb_each_other():
    def masks(seed: int) -> list[np.ndarray]:
        minigrad.manual_seed(seed)
        layer, found = nn.Dropout(0.5), []
        for step in range(5):
            random.set_step(step)
            found.append(layer(ones(16)).numpy().copy())
        return found

    expected = [masks(seed) for seed in range(8)]
    found: dict[int, list[np.ndarray]] = {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: masks(seed)})) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for seed in range(8) for a, b in zip(expected[seed], found[seed], strict=True))


def test_attention_drops_weights_and_result_in_training_only():
    tokens = Tensor(np.random.default_rng(1).standard_normal((2, 5, 6)).astype(np.float32))
    layer = nn.MultiHeadAttention(6, 2, attn_drop=0.5, proj_drop=0.5)
    plain = nn.MultiHeadAttention(6, 2)
    plain.load_state_dict(layer.state_dict())
    random.set_step(1)
    first = layer(tokens).numpy().copy()
    assert random.get_counter().draw == 2
    assert 0 < (first == 0).sum() < first.size
    random.set_step(1)
    np.testing.assert_array_equal(layer(tokens).numpy(), first)
    np.testing.assert_array_equal(layer.eval()(tokens).numpy(), plain(tokens).numpy())

    # The weights alone: with values that are the identity, what comes out are the weights of the kept pairs, doubled.
    random.set_step(2)
    weights_only = nn.MultiHeadAttention(5, 1, attn_drop=0.5)
    weights_only.load_state_dict({"qkv.weight": np.concatenate([np.zeros((10, 5)), np.eye(5)]), "proj.weight": np.eye(5), "proj.bias": np.zeros(5)})
    out = weights_only(Tensor(np.eye(5, dtype=np.float32)[None])).numpy()  # all scores are equal: each weight is 1/5
    assert set(np.round(np.unique(out).astype(np.float64), 6).tolist()) == {0.0, 0.4}


# --- on the GPU, where masks are drawn


@pytest.mark.cuda
@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.DropPath(0.4)])
def test_on_the_gpu_the_same_masks_are_drawn_there(layer: nn.Module):
    x = ones(37, 3)
    random.set_step(6)
    expected = [layer(x).numpy().copy() for _ in range(2)]
    with on_cuda() as device:
        there = x.to(device="cuda")
        random.set_step(6)
        with nothing_waits(device):
            ours = [layer(there) for _ in range(2)]
        for mask, reference in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(mask.data.get(), reference)


@pytest.mark.cuda
def test_a_captured_step_draws_for_the_step_that_is_in_memory():
    layer, x = nn.DropPath(0.4), ones(37, 3)
    expected = []
    for step in (2**40, 3):
        random.set_step(step)
        layer(x)  # so that it is the step's second mask
        expected.append(layer(x).numpy().copy())
    with on_cuda():
        step, there = cuda.array_module().asarray(np.array([0], np.uint64)), x.to(device="cuda")

        def draw() -> Tensor:
            random.set_step(step)
            layer(there)
            return layer(there)

        captured = cuda.Captured(draw)
        for number, reference in zip((2**40, 3), expected, strict=True):
            cuda.write(step, np.array([number], np.uint64))
            captured.launch()
            np.testing.assert_array_equal(captured.result.data.get(), reference)
        with pytest.raises(TypeError, match="is on the GPU .*, and the host cannot draw for it"):
            layer(x)
