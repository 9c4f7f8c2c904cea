"""What `cuda_device.py` does on a GPU, where the emulator's stand-in plays CuPy, and says and refuses what CuPy does."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad.backend import cuda
from minigrad.backend.emulator import state
from minigrad.backend.emulator.faults import UninitialisedRead
from tests import cuda_device
from tests.conformer import test_gpu_steps
from tests.cuda_device import ORDERS, Waits, nothing_waits, on_cuda, use_gpu
from tests.gpu import every_kernel

ROOT = Path(__file__).parent.parent


def test_every_file_with_tests_for_a_gpu_is_run_by_make() -> None:
    """A test that is about the emulator too says nothing there; a line of the Makefile names folders and files."""
    paths = " ".join(re.findall(r"^ON_GPU \+?= (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)).split()
    marked = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for_a_gpu = {path for path, text in marked.items() if re.search(r"mark\.cuda\b(?!.*\n@pytest\.mark\.emulator)", text)}
    assert {path for path in for_a_gpu if not any(path.is_relative_to(ROOT / named) for named in paths)} == set()
    assert len(for_a_gpu) > 20 and all((ROOT / named).exists() for named in paths)


SOURCE = """
__global__ void twice_as_much(const float* x, float* y, int n)
{
    if (threadIdx.x < n) y[threadIdx.x] = 2 * x[threadIdx.x];
}
__global__ void count(float* calls, float* y)
{
    y[0] = calls[0];
    calls[0] += 1;
}
__global__ void count_behind_its_back(const float* calls, float* y)
{
    y[0] = calls[0];
    const_cast<float*>(calls)[0] += 1;
}
"""


@pytest.fixture
def cp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, taken for a GPU."""
    monkeypatch.setitem(sys.modules, "cupyx", SimpleNamespace(allow_synchronize=state.allow_synchronize, DeviceSynchronized=state.DeviceSynchronized))
    with minigrad.emulated(build="plain"):
        use_gpu(True)
        yield cuda.array_module()
    use_gpu(False)


@pytest.fixture
def kernels(tmp_path: Path) -> cuda.Kernels:
    (tmp_path / "page.cu").write_text(SOURCE)
    return cuda.Kernels(tmp_path / "page.cu")


def test_several_orders_are_two_launches_that_give_the_same_bits(cp: Any, kernels: cuda.Kernels):
    x, y, calls = cp.ones(3, np.float32), cp.zeros(3, np.float32), cp.zeros(1, np.float32)
    with on_cuda(ORDERS) as device:
        kernels.launch("twice_as_much", 1, 32, x, y, 3)
        kernels.launch("count", 1, 1, calls, y)
        assert device.launches == 2
        with pytest.raises(AssertionError, match="count_behind_its_back gives other results when it is launched again"):
            kernels.launch("count_behind_its_back", 1, 1, calls, y)
    np.testing.assert_array_equal(y.get(), [2, 2, 2])
    assert float(calls[0]) == 3  # one of the first kernel, whose memory was put back, and two of the other


def test_large_results_are_compared_where_they_are(cp: Any):
    x = cp.zeros((1 << 16) + 1, np.float32)
    y = x.copy()
    with nothing_waits(None):
        assert cuda_device._same_bits(x, y)
        y[-1] = 1
        assert not cuda_device._same_bits(x, y)


def test_with_one_launch_nothing_is_read_that_nobody_has_written(cp: Any, kernels: cuda.Kernels, monkeypatch: pytest.MonkeyPatch):
    x = cp.ones(3, np.float32)

    def launch() -> None:
        with on_cuda(ORDERS):
            kernels.launch("twice_as_much", 1, 32, x, cp.empty(3, np.float32), 3)

    with pytest.raises(UninitialisedRead):
        launch()
    use_gpu(True, twice=False)
    launch()

    use_gpu(True)
    launched: list[tuple[set, int]] = []
    monkeypatch.setattr(every_kernel, "every_kernel", lambda: launched.append((set(), 0)) or launch() or launched[-1])
    monkeypatch.setattr(cp.cuda, "set_allocator", lambda allocator: None, raising=False)
    assert every_kernel.main([]) == 1 and launched  # all kernels are missed, but it has come so far


def test_a_worker_whose_gpu_is_lost_says_after_which_test_and_ends(
    cp: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    cuda_device.end_if_lost(request.config)
    assert ended == []
    monkeypatch.setattr(type(cp.cuda.Device()), "synchronize", lambda device: (_ for _ in ()).throw(RuntimeError("an illegal memory access")))
    with capfd.disabled():
        told = io.StringIO()
        monkeypatch.setattr(sys, "stderr", told)
        cuda_device.end_if_lost(request.config)
    assert ended == [1]
    assert told.getvalue() == f"\nThe GPU answers no more after {request.node.nodeid}: RuntimeError: an illegal memory access\n"


def test_what_waits_is_noticed_on_a_gpu_and_nothing_warns(cp: Any):
    x, pinned = cp.ones(3), np.zeros(3)
    for wait in (x.get, lambda: x.get(out=pinned, blocking=False), lambda: float(x[0]), lambda: bool(x[0] > 0), cp.cuda.Device().synchronize):
        with pytest.raises(Waits, match="waits for the device"), nothing_waits(None):
            wait()
    with nothing_waits(None):
        x += 1
        x.data.copy_to_host_async(pinned.ctypes.data, pinned.nbytes)
        cp.cuda.get_current_stream().record()
    np.testing.assert_array_equal(pinned, [2, 2, 2])
    assert x.get().tolist() == [2, 2, 2]


def test_a_training_step_waits_for_nothing_that_cupy_would_notice(cp: Any, capsys: pytest.CaptureFixture[str]):
    test_gpu_steps.test_captured_steps_are_the_steps_of_the_cpu("float64", 1e-9, capsys)
