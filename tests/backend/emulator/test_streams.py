"""Capturing a graph: it is done later, again and again, on the same memory; what a captured step must not do raises."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

import minigrad
from minigrad.backend import cuda
from minigrad.backend.emulator import launch, state
from minigrad.backend.emulator.faults import UninitialisedRead

KERNELS = cuda.Kernels(Path(__file__).parent / "vocabulary.cu")


@pytest.fixture
def device():
    with cuda.emulated() as device:
        yield device


@pytest.fixture
def cp(device):
    return cuda.array_module()


@pytest.fixture
def stream(device, cp):
    with cp.cuda.Stream(non_blocking=True) as stream:
        yield stream
    device.capturing = None


def test_a_graph_is_done_when_it_is_launched_and_as_often(cp, device, stream):
    x, total = cp.zeros((2, 3), np.float32), cp.zeros(3, np.float32)
    turned = cp.empty((3, 2), np.float32)
    stream.begin_capture()
    assert stream.is_capturing()
    np.add(x, 1, out=x)
    KERNELS.launch("transpose<float>", (1, 1), (8, 8), x, turned, 2, 3)
    total[...] = turned[:, 0]
    graph = stream.end_capture()
    assert (x.get() == 0).all()
    assert device.launches == 0
    for count in (1, 2, 3):
        graph.launch()
        assert (total.get() == count).all()
    x[...] = 10  # the graph looks at memory, not at values
    graph.launch()
    assert (total.get() == 11).all()
    assert (device.launches, device.graph_launches) == (4, 4)


def test_what_a_captured_step_must_not_do(cp, stream):
    x, pinned = cp.ones(3), np.zeros(3)
    stream.begin_capture()
    for forbidden, message in [
        (lambda: x + 1, "allocated while a graph is captured"),
        (lambda: cp.empty(3), "allocated while a graph is captured"),
        (lambda: cp.asarray(np.ones(3)), "copied to the device while a graph is captured"),
        (lambda: x.copy(), "allocated while a graph is captured"),
        (lambda: x[np.array([0, 1])], "an index is copied to the device while a graph is captured"),
        (lambda: np.stack([x] * 9), "a list of more than 8 addresses is copied to the device while a graph is captured"),
        (lambda: x.get(), "waits for the device while a graph is captured"),
        (lambda: float(x[0]), "waits for the device while a graph is captured"),
        (lambda: bool(x[0]), "waits for the device while a graph is captured"),
        (lambda: x.data.copy_to_host_async(pinned.ctypes.data, 24), "copied to the host while a graph is captured"),
        (stream.synchronize, "waits for the device while a graph is captured"),
        (stream.begin_capture, "captured already"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            forbidden()
    stream.end_capture()
    with pytest.raises(RuntimeError, match="no graph is being captured"):
        stream.end_capture()


def test_arrays_made_in_a_graph_with_a_memory_pool_are_made_at_each_launch(cp, device, stream):
    x, pool = cp.zeros(3, np.float32), cp.cuda.MemoryPool()
    with cp.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        y = (x + 1).astype(np.float64)
        turned = cp.empty((3, 1), np.float32)
        KERNELS.launch("transpose<float>", (1, 1), (8, 8), x.reshape(1, 3), turned, 1, 3)
        first, largest, filled = turned[0].copy(), y.max(), cp.full(2, 7.0)
        graph = stream.end_capture()
    del turned
    gc.collect()  # the pool keeps its memory
    for value in (2.0, 5.0):
        x[...] = value
        graph.launch()
        assert (y.get() == value + 1).all()
        assert (first.get() == value).all()
        assert (float(largest), filled.get().tolist()) == (value + 1, [7.0, 7.0])


def test_a_graph_does_not_keep_its_arrays_and_notices_when_one_is_gone(cp, stream):
    x, y = cp.zeros(3), cp.zeros(3)
    stream.begin_capture()
    np.add(x, 1, out=y)
    graph = stream.end_capture()
    graph.launch()
    del x
    gc.collect()
    with pytest.raises(RuntimeError, match="add uses an array that has been freed since it was captured"):
        graph.launch()


def test_the_default_stream_is_not_captured(cp):
    with pytest.raises(RuntimeError, match="the default stream cannot be captured"):
        cp.cuda.get_current_stream().begin_capture()
    with pytest.raises(RuntimeError, match="enter this one first"):
        cp.cuda.Stream(non_blocking=True).begin_capture()


def test_a_graph_is_launched_with_the_shared_memory_that_its_kernels_may_have_now(cp, stream):
    x, y = cp.ones(8), cp.zeros(8)
    kernel = cp.RawModule(code=KERNELS.source.text).get_function("running_sum")
    kernel.max_dynamic_shared_size_bytes = 100 * 1024
    stream.begin_capture()
    kernel((1,), (8,), (x, y), shared_mem=100 * 1024)
    graph = stream.end_capture()
    kernel.max_dynamic_shared_size_bytes = 60 * 1024
    with pytest.raises(ValueError, match="102400 bytes of dynamic shared memory; it may have 61440"):
        graph.launch()


def test_bytes_are_copied_to_the_host_without_waiting(cp, device):
    x, pinned = cp.asarray(np.arange(6.0).reshape(3, 2)), np.zeros(4)
    x[1:].data.copy_to_host_async(pinned.ctypes.data, pinned.nbytes)
    assert pinned.tolist() == [2, 3, 4, 5]
    with pytest.raises(ValueError, match="40 bytes are copied from a place with 32 bytes to its end"):
        x[1:].data.copy_to_host_async(pinned.ctypes.data, 40)
    with pytest.raises(UninitialisedRead, match="nobody has written it"):
        cp.empty(4).data.copy_to_host_async(pinned.ctypes.data, pinned.nbytes)
    assert device.synchronisations == 0


def test_cupy_s_own_check_warns_and_sees_copies_but_neither_streams_nor_events(cp, device):
    x = cp.ones(2)
    with pytest.warns(UserWarning, match="allow_synchronize"), state.allow_synchronize(False):
        cp.cuda.get_current_stream().synchronize()
        cp.cuda.Event().synchronize()
        cp.cuda.runtime.deviceSynchronize()
        for wait in (x.get, lambda: x.get(out=np.zeros(2), blocking=False), cp.cuda.Device().synchronize):
            with pytest.raises(state.DeviceSynchronized, match="which is forbidden here"):
                wait()
    x.get()
    assert device.synchronisations == 4


def test_events_and_streams_wait_for_the_device(cp, device):
    start, end = cp.cuda.Event(), cp.cuda.Event()
    start.record()
    end.record()
    end.synchronize()
    cp.cuda.Device().synchronize()
    cp.cuda.get_current_stream().synchronize()
    assert device.synchronisations == 3
    assert cp.cuda.get_elapsed_time(start, end) >= 0
    assert cp.cuda.runtime.getDeviceCount() == 1
    with pytest.raises(RuntimeError, match="device 0 only"):
        cp.cuda.Device(1)


def test_a_forked_child_can_launch_whoever_was_in_a_launch():
    """The thread that holds the lock is not there to release it."""
    with minigrad.emulated():
        core = launch.core()
        with core.lock:
            launch._new_lock()  # what a child does first
            assert core.lock.acquire(blocking=False)
        core.lock = threading.Lock()
