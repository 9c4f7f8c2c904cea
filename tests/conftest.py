"""What every test gets: Hypothesis profiles, a guard against tests that leave global state changed, and small CIFAR folders.

`HYPOTHESIS_PROFILE=dev` draws new examples at every run, `deep` draws many; the default, `ci`, draws the same ones each time.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from minigrad import random
from minigrad.modes import MODE
from minigrad.op import REGISTRY
from tests import cuda_device


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=["emulator", "gpu"], default="emulator", help='what the device "cuda" is: see tests/cuda_device.py')


def pytest_configure(config: pytest.Config) -> None:
    try:
        cuda_device.use_gpu(config.getoption("--device") == "gpu")
    except RuntimeError as error:
        raise pytest.UsageError(f"--device=gpu: {error}") from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a GPU, the tests of the device "cuda" that are not about the emulator; without one, all that need none."""

    def chosen(item: pytest.Item) -> bool:
        marks = {mark.name for mark in item.iter_markers()}
        return bool(marks & {"cuda", "gpu"}) and "emulator" not in marks if cuda_device.on_gpu() else "gpu" not in marks

    left_out = [item for item in items if not chosen(item)]
    if left_out:
        items[:] = [item for item in items if chosen(item)]
        config.hook.pytest_deselected(items=left_out)


# No deadline: the first call of a kernel is slow (it makes the thread pool), and machines that run tests are shared.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", deadline=None, max_examples=25)
settings.register_profile("deep", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _global_state() -> dict[str, Any]:
    """What a test could leave changed for the tests after it, comparable with ==."""
    mode = MODE.get()
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "numpy's error handling (np.errstate)": np.geterr(),
        "numpy's print options": np.get_printoptions(),
        "numpy's global random state": (name, keys.tobytes(), position, has_gauss, gauss),
        "minigrad's modes": {field: getattr(mode, field) for field in mode.__slots__},
        "the working directory": os.getcwd(),
        # torch sets its cache folder when the first of its optimisers is made
        "the environment": {key: value for key, value in os.environ.items() if key not in ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR")},
    }


@pytest.fixture(autouse=True)
def leaves_no_trace() -> Iterator[None]:
    """Fail a test that leaves global state changed. The seed of minigrad is put back: training sets it, as it should."""
    before, seed, counter = _global_state(), random._process_seed, random.get_counter()
    yield
    random._process_seed = seed
    random.set_counter(counter)
    after = _global_state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"the test changed {' and '.join(changed)}"


@pytest.fixture(autouse=True)
def the_gpu_still_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test did wrong on a GPU is told of at its end, and spoils no other test."""
    yield
    cuda_device.end_if_lost(request.config)


@pytest.fixture(autouse=True)
def nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the network: where data sets are downloaded from is a port of this machine that nobody listens on."""
    monkeypatch.setattr("conformer.download.SITE", "http://127.0.0.1:9")


@pytest.fixture
def cifar(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a folder in CIFAR-10's binary layout and returns it; each class has a colour of its own, to be learnt in a few steps."""

    def make(records: int = 8, folder: str = "cifar-10-batches-bin", seed: int = 0) -> Path:
        generator = np.random.default_rng(seed)
        colours = np.random.default_rng(1).integers(0, 256, (10, 3, 1))
        (tmp_path / folder).mkdir(parents=True)
        for file in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
            labels = generator.integers(0, 10, records)
            planes = np.clip(colours[labels] + generator.normal(0, 20, (records, 3, 1024)), 0, 255)  # (N, C, H * W)
            data = np.concatenate([labels[:, None], planes.reshape(records, 3072)], axis=1)
            data.astype(np.uint8).tofile(tmp_path / folder / file)
        return tmp_path / folder

    return make


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a Conformer that takes milliseconds a step, for as long as the test runs."""
    from conformer.config import CONFIGS

    monkeypatch.setitem(CONFIGS, "tiny", replace(CONFIGS["cifar-nano"], channel_ratio=0.25, embed_dim=16, depth=3, num_heads=2, stem_channels=8))
    return "tiny"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT is not ignored, as it is in a shell's background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What dies while the test runs dies by reference counting alone."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def registry() -> Iterator[None]:
    """Operations that a test makes do not stay in the registry."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)
