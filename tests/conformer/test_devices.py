"""Which device is chosen where there is a GPU and where there is none, and what it is called."""

from __future__ import annotations

import pytest

import minigrad
from conformer import devices
from conformer.devices import DeviceError, choose, describe


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    """`conftest.py` lets no test of the application find one."""
    assert choose("auto") == choose("cpu") == "cpu"
    with pytest.raises(DeviceError, match="^No CUDA: there is no NVIDIA driver here"):
        choose("cuda")


def test_with_a_gpu_auto_takes_it() -> None:
    with minigrad.emulated(build="plain"):
        assert choose("auto") == choose("cuda") == "cuda" and choose("cpu") == "cpu"
        assert describe("cuda") == "CUDA: the emulator runs the kernels on the CPU"


def test_a_device_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no device 'tpu'; there are auto, cpu, cuda"):
        choose("tpu")


@pytest.mark.parametrize(("threads", "said"), [(1, "CPU, 1 thread"), (2, "CPU, 2 threads")])
def test_the_cpu_is_called_with_its_threads(threads: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.cpu, "thread_count", lambda: threads)
    assert describe("cpu") == said
