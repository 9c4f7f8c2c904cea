"""Correct kernels give what CUDA gives, whatever the order, and nothing is reported: device.h and the scheduler."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from minigrad.backend import cuda
from minigrad.backend.emulator.launch import ORDERS

KERNELS = cuda.Kernels(Path(__file__).parent / "vocabulary.cu")


def launch(name, grid, block, *arguments, shared=0, orders=ORDERS):
    """Launch; NumPy arrays become arrays of the device. Returns what these then hold."""
    with cuda.emulated(orders=orders):
        cp = cuda.array_module()
        given = [cp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        KERNELS.launch(name, grid, block, *given, shared=shared)
        return [a.get() for a in given if isinstance(a, cp.ndarray)]


def test_threads_know_their_place_in_three_dimensions():
    thread, block = launch("who_am_i", (2, 3, 2), (4, 2, 3), np.zeros(288, np.int32), np.zeros(288, np.int32))
    z, y, x = np.meshgrid(range(3), range(2), range(4), indexing="ij")
    np.testing.assert_array_equal(thread.reshape(12, 24), np.broadcast_to((x + 10 * y + 100 * z).ravel(), (12, 24)))
    z, y, x = np.meshgrid(range(2), range(3), range(2), indexing="ij")
    np.testing.assert_array_equal(block.reshape(12, 24).T, np.broadcast_to((x + 10 * y + 100 * z).ravel(), (24, 12)))


@pytest.mark.parametrize("width", [8, 32])
def test_shuffles(width):
    x = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    y = launch("shuffles", 1, 64, x, np.zeros(5 * 64, np.float32), width)[1].reshape(5, 64)
    lane = np.arange(64)
    group, inside = lane - lane % width, lane % width
    np.testing.assert_array_equal(y[0], x[group + 3])
    np.testing.assert_array_equal(y[1], x[np.where(inside >= 2, lane - 2, lane)])
    np.testing.assert_array_equal(y[2], x[np.where(inside + 2 < width, lane + 2, lane)])
    np.testing.assert_array_equal(y[3], x[lane ^ 1])
    np.testing.assert_allclose(y[4], x[lane ^ 1], rtol=1e-6)


def test_a_shuffle_from_a_lane_that_does_not_exist_gives_nan():
    x = np.arange(40, dtype=np.float32)  # the second warp has 8 lanes
    y = launch("shuffles", 1, 40, x, np.zeros(5 * 40, np.float32), 32)[1].reshape(5, 40)
    np.testing.assert_array_equal(y[2], np.r_[2:32, 30, 31, 34:40, np.nan, np.nan])


def test_votes():
    x = np.random.default_rng(1).integers(0, 2, 96).astype(np.int32)
    x[32:64], x[64:] = 1, 0
    y = launch("votes", 1, 96, x, np.zeros(3 * 96, np.uint32))[1].reshape(3, 3, 32)
    bits = [sum(int(v) << k for k, v in enumerate(warp)) for warp in x.reshape(3, 32)]
    np.testing.assert_array_equal(y, np.broadcast_to(np.array([bits, [any(x[:32]), 1, 0], [all(x[:32]), 1, 0]])[:, :, None], (3, 3, 32)))


def test_halves_of_a_warp_may_go_different_ways():
    x = np.arange(32, dtype=np.float32)
    y = launch("half_warps_apart", 1, 32, x, np.zeros(32, np.float32))[1]
    np.testing.assert_array_equal(y, np.repeat([x[:16].sum(), 16 * x[16:].sum()], 16))


@pytest.mark.parametrize(("name", "dtype"), [("transpose<float>", np.float32), ("transpose<unsigned char>", np.uint8)])
def test_a_transpose_by_tiles(name, dtype):
    x = np.random.default_rng(2).integers(0, 200, (19, 13)).astype(dtype)
    y = launch(name, (2, 3), (8, 8), x, np.zeros((13, 19), dtype), 19, 13)[1]
    np.testing.assert_array_equal(y, x.T)


def test_a_running_sum_in_dynamic_shared_memory():
    x = np.random.default_rng(3).standard_normal(100)
    y = launch("running_sum", 1, 100, x, np.zeros(100), shared=1600)[1]
    np.testing.assert_allclose(y, np.cumsum(x), rtol=1e-13)


def test_atomics_of_shared_and_global_memory():
    x = np.random.default_rng(4).integers(0, 4, 1000).astype(np.int32)
    counts = launch("histogram", 3, 64, x, np.zeros(4, np.int32), 1000)[1]
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=4))
    start = np.array([0, 0, 5, 5, -1, 0, 0, 0], np.int32)
    x, f, u = launch("atomics", 1, 32, start, np.zeros(1, np.float32), np.zeros(1, np.uint64), orders=("ascending",))
    np.testing.assert_array_equal(x, [496, -496, 0, 31, -16, 15, 0, 32])
    assert (f[0], u[0]) == (16, 32 << 40)


def test_intrinsics():
    y = launch("arithmetic", 1, 1, np.array([4, 0.5], np.float32), np.zeros(8, np.float32))[1]
    np.testing.assert_allclose(y, [0.5, math.exp(0.5) + 8, 3.5, np.inf, 8 + 310 + 4000, 4321, 4.5, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "grid", "block", "shared", "message"),
    [
        ("who_am_i", 1, 1025, 0, r"who_am_i: block \(1025, 1, 1\) has 1025 threads; a block has 1 to 1024 threads"),
        ("who_am_i", 1, (8, 1, 128), 0, "at most 64 along z"),
        ("who_am_i", (1, 65536), 1, 0, r"grid \(1, 65536, 1\); at most \(2147483647, 65535, 65535\) blocks"),
        ("who_am_i", 1, 1, 164 * 1024, "167936 bytes of dynamic shared memory; a device of compute capability 8.0 has 166912"),
    ],
)
def test_limits_of_a_launch(name, grid, block, shared, message):
    with pytest.raises(ValueError, match=message):
        launch(name, grid, block, np.zeros(8, np.int32), np.zeros(8, np.int32), shared=shared)


def test_much_shared_memory_must_be_asked_for():
    """The launcher asks by itself; without that CUDA refuses, and so does the emulator."""
    launch("running_sum", 1, 8, np.ones(8), np.zeros(8), shared=100 * 1024)
    with cuda.emulated():
        cp = cuda.array_module()
        kernel = cp.RawModule(code=KERNELS.source.text).get_function("running_sum")
        arguments = (cp.ones(8), cp.zeros(8))
        with pytest.raises(ValueError, match="102400 bytes of dynamic shared memory; it may have 49152"):
            kernel((1,), (8,), arguments, shared_mem=100 * 1024)
        kernel.max_dynamic_shared_size_bytes = 100 * 1024
        kernel((1,), (8,), arguments, shared_mem=100 * 1024)


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_and_shared_memory_that_nothing_comes_of_are_counted(order):
    """Two tiles hold 9 x 8 numbers, and a running sum of 8 takes 128 bytes."""
    with cuda.emulated("check", orders=(order,)) as device:
        cp = cuda.array_module()
        x, y = cp.zeros((9, 8), np.float32), cp.zeros((8, 9), np.float32)
        for grid in ((2, 3), (1, 3), (1, 2)):
            KERNELS.launch("transpose<float>", grid, (8, 8), x, y, 9, 8)
        for shared in (128, 136):
            KERNELS.launch("running_sum", 1, 8, cp.ones(8), cp.zeros(8), shared=shared)
        assert device.wasteful == [("transpose<float>", (4, 0)), ("transpose<float>", (1, 0)), ("running_sum", (0, 8))]
    with cuda.emulated("plain", orders=(order,)) as device:
        cp = cuda.array_module()
        KERNELS.launch("running_sum", 2, 8, cp.ones(8), cp.zeros(8), shared=136)
        assert device.wasteful == []


def test_the_three_orders_are_really_different():
    """Thread k adds to what it finds, times two: only the order can tell."""
    code = '#line 1 "order.cu"\n__global__ void order(double* x) { atomicExch(x, *x * 2 + threadIdx.x); }'
    results = []
    for order in ORDERS:
        with cuda.emulated("plain", orders=(order,)):  # the check build would call it a race, which it is
            cp = cuda.array_module()
            x = cp.zeros(1)
            cp.RawModule(code=code).get_function("order")((1,), (8,), (x,))
            results.append(float(x[0]))
    assert len(set(results)) == 3
