"""Every kind of mistake that the emulator is for is planted once, and found: by which exception, at which line, by which build."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from minigrad.backend import cuda
from minigrad.backend.emulator import faults, state
from tests.backend.emulator.in_a_process import run_tests

BUILD = os.environ.get("MINIGRAD_EMULATOR") or "check"
FILE = Path(__file__).parent / "planted_bugs.cu"
KERNELS = cuda.Kernels(FILE)

X, Y, NEW = "an array of 32 numbers", "an array of 32 zeros", "an array of 32 numbers that nobody has written"


def launch(name: str, *arguments, block: int = 32, grid: int = 1, shared: int = 0, orders=("ascending",)) -> list[np.ndarray]:
    """Launch a planted kernel; returns what its arrays then hold."""
    with cuda.emulated(BUILD, orders) as device:
        device.seconds = 0.2
        cp = cuda.array_module()
        numbers = np.arange(1, block + 1, dtype=np.float32)
        given = [
            cp.asarray(numbers)
            if a is X
            else cp.zeros(block, np.float32)
            if a is Y
            else cp.empty(block, np.float32)
            if a is NEW
            else cp.asarray(a)
            if isinstance(a, np.ndarray)
            else a
            for a in arguments
        ]
        KERNELS.launch(name, grid, block, *given, shared=shared)
        return [a.get() for a in given if isinstance(a, cp.ndarray)]


def line_of(name: str, containing: str) -> int:
    """The line of `planted_bugs.cu` that has this text, inside the kernel `name` (or, where it is not there, in a function before it)."""
    text = FILE.read_text()
    start = text.index(f" {name.partition('<')[0]}(")
    place = text.find(containing, start, text.index("__global__", start) if "__global__" in text[start:] else None)
    return text[: place if place >= 0 else text.index(containing)].count("\n") + 1


# name: (arguments, launch options, exception, what the faulty line contains, what the message says)
FOUND_BY_CHECK = {
    "sum_without_barrier": ((X, Y), {"block": 64}, faults.UninitialisedRead, "s[threadIdx.x] +=", "shared memory that nobody has written"),
    "atomic_on_new_memory": ((NEW,), {}, faults.UninitialisedRead, "atomicAdd(&y", r"global memory that nobody has written"),
    "second_block_reads_the_first_ones_shared": ((Y,), {"grid": 2}, faults.UninitialisedRead, "< 16", r"block \(1, 0, 0\).*static shared memory th"),
    "second_block_reads_the_first_ones_dynamic": (
        (Y,), {"grid": 2, "block": 16, "shared": 64}, faults.UninitialisedRead, "] = s[", r"block \(1, 0, 0\).*dynamic shared memory that nobody",
    ),
    "count_without_atomic": ((Y,), {}, faults.DataRace, "count += 1", r"\(1, 0, 0\): reads a word of static shared memory that thread \(0, 0, 0\)"),
    "count_between_blocks": ((Y,), {"grid": 2, "block": 1}, faults.DataRace, "out[0] += 1", "a thread of another block wrote"),
    "read_what_another_block_writes": (
        (np.zeros(2, np.float32),), {"grid": 2, "block": 1}, faults.DataRace, "x[blockIdx.x] =", "a word of global memory that a thread of another",
    ),
    "atomic_and_plain": ((Y,), {}, faults.DataRace, "atomicAdd", "writes|reads"),
    "pass_on_without_syncwarp": ((X, Y), {}, faults.UninitialisedRead, "y[threadIdx.x] =", "static shared memory that nobody has written"),
    "pass_on_between_warps_with_syncwarp": ((X, Y), {"block": 64}, faults.UninitialisedRead, "y[threadIdx.x] =", "static shared memory"),
    "write_what_all_read": ((Y,), {}, faults.DataRace, "first = 2", "writes a word of static shared memory that other threads read"),
    "write_what_another_warp_has_read": ((Y,), {"block": 64}, faults.DataRace, "first = 2", r"\(32, 0, 0\): writes .* that other threads read"),
    "read_what_another_warp_writes": ((Y,), {"block": 64}, faults.DataRace, "] = first", r"\(63, 0, 0\): reads .* thread \(0, 0, 0\) wrote"),
    "pass_on_by_half_a_warp": ((Y,), {}, faults.DataRace, "s[31 -", r"\(31, 0, 0\): reads .* thread \(0, 0, 0\) wrote"),
    "set_and_count": ((Y,), {}, faults.DataRace, "atomicAdd", r"\(1, 0, 0\): writes .* thread \(0, 0, 0\)"),
    "write_what_another_block_has_read": (
        (np.zeros(1, np.float32),), {"grid": 2, "block": 1}, faults.DataRace, "x[0] =", "writes a word of global memory that a thread of another b",
    ),
    "write_the_same_byte": ((np.zeros(16, np.uint8),), {}, faults.DataRace, "y[threadIdx.x / 2]", r"\(1, 0, 0\): writes a word .*\(0, 0, 0\)"),
    "shared_before_it_is_set": ((Y,), {}, faults.UninitialisedRead, "y[threadIdx.x] =", "static shared memory that nobody"),
    "sum_by_template<float, 64>": ((X, Y), {"block": 64}, faults.UninitialisedRead, "s[threadIdx.x] +=", "nobody has .*byte 128 of s, which has"),
    "sum_by_template<double, 64>": ((X, Y), {"block": 64}, faults.UninitialisedRead, "s[threadIdx.x] +=", "byte 256 of s, which has 512 bytes"),
    "neighbours_twice<float, 32>": ((X, Y), {}, faults.DataRace, "const T before", r"\(1, 0, 0\): reads .*\(0, 0, 0\) wrote.*byte 0 of forth"),
    "neighbours_twice<double, 32>": ((X, Y), {}, faults.DataRace, "const T before", "byte 0 of forth, which has 512 bytes"),
    "half_is_set<float, 32>": ((X, Y), {}, faults.UninitialisedRead, "y[threadIdx.x] =", "byte 4 of pairs, which has 256 bytes"),
    "past_static_shared_by_a_pointer": (
        (Y,), {}, faults.OutOfBounds, "return array[i]", r"\(31, 0, 0\): reads from static shared memory, where no array is; byte 128 of first",
    ),
    "read_past_the_end": ((X, Y), {}, faults.OutOfBounds, "{ y[", r"byte 128 of x \(argument 1\), which has 128 bytes"),
    "write_past_the_end": ((X, Y), {}, faults.OutOfBounds, "{ y[", r"thread \(31, 0, 0\): writes to .* byte 128 of y \(argument 2\)"),
    "read_before_the_beginning": ((X, Y), {}, faults.OutOfBounds, "{ y[", r"thread \(0, 0, 0\): reads"),
    "wild_pointer": ((X, Y), {}, faults.OutOfBounds, "{ y[", "where no array is"),
    "past_dynamic_shared": ((Y,), {"shared": 128}, faults.OutOfBounds, "y[threadIdx.x] =", "byte 128 of dynamic shared memory"),
}  # fmt: skip
FOUND_BY_ALL_BUILDS = {
    "barrier_for_some": ((Y,), {}, faults.BarrierFault, "__syncthreads", r"\(0, 0, 0\): waits at __syncthreads, but thread \(31, 0, 0\) has"),
    "two_barriers": ((Y,), {}, faults.BarrierFault, "else\n        __syncthreads", r"waits at the one of planted_bugs.cu:\d+"),
    "shuffle_by_half_a_warp": ((X, Y), {}, faults.BarrierFault, "__shfl", "for lane 16, which its mask 0xffffffff names, and that lane has"),
    "shuffle_without_oneself": ((X, Y), {}, faults.BarrierFault, "__shfl", "lane 16, which its own mask 0x0000ffff leaves out"),
    "two_shuffles": ((X, Y), {}, faults.BarrierFault, "v, 2)", r"is here with mask 0xf*, while lane 0 of its warp waits at planted_bugs.cu:\d+"),
    "two_masks": ((X, Y), {}, faults.BarrierFault, "__shfl", "with mask 0xffff0000, while lane 0 of its warp waits at .* with mask 0xffffffff"),
    "assertion": ((Y, 4), {}, faults.AssertionFailed, "assert(n", r"assert\(n < 4\) fails"),
    "too_much_shared<double, 4096>": ((Y,), {}, faults.OutOfBounds, "T second[N]", "65536 bytes of static shared .* for second and what .* 49152"),
}  # fmt: skip
FOUND_BY_CHECK_AND_ADDRESS = {
    "past_static_shared": ((Y,), {}, faults.UndefinedBehaviour, "s[threadIdx.x + 1]", r"takes element 32 of an array 'float \[32\]'"),
    "past_local_array": ((Y,), {}, faults.UndefinedBehaviour, "local[threadIdx.x]", r"takes element 4 of an array 'float \[4\]'"),
    "misaligned_float4": ((X, Y), {}, faults.UndefinedBehaviour, "const float4 four", "'.*float4', which must lie at a multiple of 16 bytes"),
    "index_overflows": ((Y, 65536, 65536), {}, faults.UndefinedBehaviour, "rows * columns", r"65536 \* 65536 does not fit in 'int'"),
    "shift_too_far": ((Y, 32), {}, faults.UndefinedBehaviour, "1 << by", "shifts the 'int' 1 by 32 bits"),
    "divide_by_zero": ((Y, 0), {}, faults.UndefinedBehaviour, "1 / n", "divides by zero"),
    "null_pointer": ((None, Y), {}, faults.UndefinedBehaviour, "weight[", "null pointer"),
}  # fmt: skip
FOUND_BY_ADDRESS = {
    "read_past_the_end": ((X, Y), {}, faults.OutOfBounds, "{ y[", r"thread \(31, 0, 0\): reads 4 bytes .* byte 128 of x \(argument 1\)"),
    "write_past_the_end": ((X, Y), {}, faults.OutOfBounds, "{ y[", r"thread \(31, 0, 0\): writes 4 bytes .* byte 128 of y"),
    "past_dynamic_shared": ((Y,), {"shared": 128}, faults.OutOfBounds, "y[threadIdx.x] =", "byte 128 of dynamic shared memory"),
    "past_static_shared_by_a_pointer": ((Y,), {}, faults.OutOfBounds, "return array[i]", "use-after-poison.* byte 128 of first, which has 128"),
    # found by no other build: "check" knows of a thread's own arrays only where an index stands beside the declaration's length
    "past_local_array_by_a_pointer": ((Y,), {}, faults.OutOfBounds, "return array[i]", r"thread \(4, 0, 0\): .*stack-buffer-overflow"),
}  # fmt: skip
TABLE = FOUND_BY_ALL_BUILDS | {
    "check": FOUND_BY_CHECK | FOUND_BY_CHECK_AND_ADDRESS, "address": FOUND_BY_ADDRESS | FOUND_BY_CHECK_AND_ADDRESS, "plain": {},
}[BUILD]  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_is_found(name):
    arguments, options, exception, where, message = TABLE[name]
    for _ in range(2):  # found again: no report is given only once
        with pytest.raises(exception, match=message) as caught:
            launch(name, *arguments, **options)
        fault = caught.value
        if name == "two_barriers":  # either is as good
            assert fault.line in (line_of(name, "__syncthreads();\n    else"), line_of(name, "__syncthreads();\n    y["))
        else:
            lines = [line for file, line in fault.trace if file == FILE.name]
            assert line_of(name, where) in lines, f"reported at {fault.trace}"
        assert fault.kernel == name
        assert re.search(rf"{re.escape(name)}, block \(\d, 0, 0\), thread \(\d+, 0, 0\): ", str(fault))


def test_shared_arrays_of_a_template_hold_what_was_written():
    _, out = launch("neighbours_once<double, 32>", X, Y, orders=("ascending", "descending", "shuffled"))
    numbers = np.r_[0, np.arange(1, 33), 0]
    np.testing.assert_array_equal(out, numbers[:-2] + numbers[2:])


@pytest.mark.parametrize("name", ["sum_with_barrier", "pass_on_with_syncwarp"])
def test_the_same_without_the_mistake_passes(name):
    block = 64 if name == "sum_with_barrier" else 32
    _, out = launch(name, X, Y, block=block, orders=("ascending", "descending", "shuffled"))
    numbers = np.arange(1, block + 1)
    np.testing.assert_array_equal(out, numbers[::-1] if block == 32 else np.r_[numbers.sum(), np.zeros(63)])


def test_a_launch_after_a_fault_is_not_disturbed_by_it():
    with pytest.raises(faults.BarrierFault):
        launch("barrier_for_some", Y)
    assert launch("sum_with_barrier", X, Y, block=64)[1][0] == 64 * 65 / 2


def test_the_order_of_atomic_additions_is_not_repeatable():
    x = (np.random.default_rng(0).standard_normal(256) * 10.0 ** np.arange(256).clip(0, 6)).astype(np.float32)
    with pytest.raises(faults.NotRepeatable, match=r"ascending, then descending\): byte \d of out \(argument 2\) differs"):
        launch("add_in_any_order", x, np.zeros(1, np.float32), block=64, grid=4, orders=("ascending", "descending"))
    integers = np.arange(256, dtype=np.float32)  # sums of integers are exact
    assert launch("add_in_any_order", integers, np.zeros(1, np.float32), block=64, grid=4, orders=("ascending", "descending", "shuffled"))[1] == 32640


def test_who_writes_last_depends_on_the_order():
    with pytest.raises(faults.NotRepeatable):
        launch("last_one_stays", np.zeros(1, np.float32), orders=("ascending", "shuffled"))


@pytest.mark.skipif(BUILD != "check", reason="the other builds have no clock")
def test_waiting_for_another_block_ends():
    with pytest.raises(faults.OutOfTime, match="still runs after .* does it wait for another block"):
        launch("wait_for_another_block", np.zeros(1, np.int32), Y, grid=2, block=1)


@pytest.mark.skipif(BUILD != "check", reason="the check build knows who has written and read")
@pytest.mark.parametrize(
    ("name", "order", "exception"),
    [
        ("sum_without_barrier", "descending", faults.DataRace),
        ("sum_by_template<double, 64>", "descending", faults.DataRace),
        ("pass_on_without_syncwarp", "descending", faults.UninitialisedRead),
        ("write_what_all_read", "descending", faults.DataRace),
        ("write_what_another_block_has_read", "descending", faults.DataRace),
        ("count_without_atomic", "shuffled", faults.DataRace),
    ],
)
def test_is_found_in_another_order_too(name, order, exception):
    arguments, options, *_ = TABLE[name]
    with pytest.raises(exception):
        launch(name, *arguments, **options, orders=(order,))


def test_an_array_that_was_freed_is_not_read():
    if BUILD == "plain":
        pytest.skip("the plain build checks nothing")
    with cuda.emulated(BUILD):
        cp = cuda.array_module()
        x, y = cp.ones(32, np.float32), cp.ones(32, np.float32)
        state.memory().free(x._block)
        with pytest.raises(faults.OutOfBounds, match=r"byte 4 of an array that has been freed"):
            KERNELS.launch("read_past_the_end", 1, 32, x, y)


@pytest.mark.skipif(BUILD != "check", reason="it starts the tests of the other builds")
@pytest.mark.parametrize("build", ["address", "plain"])
def test_the_other_builds_find_theirs(build):
    """In a process of its own: AddressSanitizer must be there before the emulator's core."""
    run_tests(__file__, MINIGRAD_EMULATOR=build)
