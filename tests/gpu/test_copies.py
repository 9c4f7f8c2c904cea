"""Copies between a host and a GPU that do not wait, and kernels compiled for the GPU that is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from minigrad.backend import cuda
from tests.cuda_device import nothing_waits, on_cuda
from tests.gpu.compile_all import FILES, compile_file
from tests.support import rng

pytestmark = pytest.mark.gpu


@pytest.fixture
def cp() -> Any:
    with on_cuda():
        yield cuda.array_module()


def keep_busy(cp: Any) -> Any:
    """Give the GPU some tenths of a second of work; an event after it."""
    x = cp.ones((8192, 8192), np.float32)
    y = cp.empty_like(x)
    for _ in range(20):
        cp.matmul(x, x, out=y)  # 1.1 TFLOP each
    return cp.cuda.get_current_stream().record()


@pytest.mark.parametrize("way", ["write", "to", "copy_"])
def test_what_goes_to_the_gpu_does_not_wait_for_it(cp: Any, way: str):
    """And the host may write to its array at once: a copy of it, in pinned memory, is what travels."""
    target = Tensor(np.zeros((1000, 300), np.float32)).to(device="cuda")

    def send(values: np.ndarray) -> Tensor:
        if way == "write":
            cuda.write(target.data, values)
            return target
        if way == "to":
            return Tensor(values).to(device="cuda")
        with minigrad.no_grad():
            return target.copy_(Tensor(values).to(device="cuda"))

    send(rng(0).standard_normal((1000, 300), np.float32))  # pinned memory and the GPU's are in their pools now
    cp.cuda.get_current_stream().synchronize()
    values = rng(1).standard_normal((1000, 300), np.float32)
    expected = values.copy()
    busy = keep_busy(cp)
    sent = send(values)
    assert not busy.done, "the host has waited until the GPU had done what it was given before"
    values[...] = 0
    np.testing.assert_array_equal(sent.to(device="cpu").numpy(), expected)
    assert busy.done


def test_results_come_back_while_the_gpu_goes_on(cp: Any):
    """As the training program reads its records: into pinned memory, with an event that says when they are there."""
    x = cp.asarray(rng(0).standard_normal(1000))
    memory = np.frombuffer(cp.cuda.alloc_pinned_memory(x.nbytes), np.float64, x.size)
    x.data.copy_to_host_async(memory.ctypes.data, memory.nbytes)
    cp.cuda.get_current_stream().synchronize()
    memory[...] = 0
    keep_busy(cp)
    with nothing_waits(None):
        x.data.copy_to_host_async(memory.ctypes.data, memory.nbytes)
        there = cp.cuda.get_current_stream().record()
    assert not there.done
    there.synchronize()
    np.testing.assert_array_equal(memory, x.get())


def test_cuda_is_the_gpu(cp: Any):
    assert cp.__name__ == "cupy"
    found = cuda.availability()
    assert found.usable and found.sentence.endswith(f"through CuPy {cp.__version__}.")
    with minigrad.emulated(build="plain"):  # in the middle of it
        assert "emulator" in cuda.availability().sentence
        emulated = Tensor([1.0, 2.0]).to(device="cuda") * 2
    real = Tensor([1.0, 2.0]).to(device="cuda") * 2
    assert type(real.data) is cp.ndarray is not type(emulated.data)
    np.testing.assert_array_equal(emulated.to(device="cpu").numpy(), real.to(device="cpu").numpy())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_kernel_is_compiled_for_this_gpu(cp: Any, file: Path):
    names = compile_file(file)
    assert names
    for name in names:
        function = cuda.Kernels(file)._function(name, cp)
        assert 0 < function.max_threads_per_block <= 1024 and function.num_regs > 0
        most = cuda.Kernels(file).source.kernels[name].most_threads
        assert function.max_threads_per_block >= most or most == 1024, f"{name}: {most} threads do not fit, only {function.max_threads_per_block}"


def test_a_kernel_that_does_not_compile_is_quoted(cp: Any, tmp_path: Path):
    (tmp_path / "broken.cu").write_text("__global__ void broken(float* x)\n{\n    x[0] = unheard_of;\n}\n")
    with pytest.raises(cuda.CompileError, match=r"broken.cu does not compile:(.|\n)*unheard_of(.|\n)*broken.cu:3:  x\[0\] = unheard_of;"):
        cuda.Kernels(tmp_path / "broken.cu").launch("broken", 1, 1, cp.zeros(1, np.float32))
