"""Loads the emulator's core and compiled kernel files, and launches kernels: the Python half of `core.h`.

A launch that goes wrong raises one of the exceptions in `faults.py`. Read next: `schedule.cpp`, then `memory.cpp`.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigrad.backend.emulator import compiler, faults
from minigrad.backend.emulator.memory import Memory
from minigrad.backend.kernel_source import Source, line_of

__all__ = ["MOST_SHARED", "ORDERS", "SHARED_WITHOUT_ASKING", "Core", "Function", "Library", "Waste", "core"]

ORDERS = ("ascending", "descending", "shuffled")  # Order in core.h

# The limits of devices of compute capability 8.0 to 9.0. Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
MOST_BLOCK = (1024, 1024, 64)
MOST_GRID = (2**31 - 1, 65535, 65535)
SHARED_WITHOUT_ASKING = 48 * 1024  # bytes of dynamic shared memory
MOST_SHARED = 163 * 1024  # compute capability 8.0; 9.0 has 227 KB


class _Uint3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


class _Kernel(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("call", ctypes.c_void_p), ("kinds", ctypes.c_char_p), ("sizes", ctypes.POINTER(ctypes.c_int)))


class _Library(ctypes.Structure):
    _fields_ = (
        ("kernels", ctypes.POINTER(_Kernel)), ("begin", ctypes.c_void_p), ("end", ctypes.c_void_p),
    )  # fmt: skip


class _SharedArray(ctypes.Structure):
    _fields_ = (("declaration", ctypes.c_void_p), ("name", ctypes.c_char_p), ("address", ctypes.c_void_p), ("bytes", ctypes.c_size_t))


class _Launch(ctypes.Structure):
    _fields_ = (
        ("call", ctypes.c_void_p), ("arguments", ctypes.POINTER(ctypes.c_void_p)), ("grid", _Uint3), ("block", _Uint3),
        ("dynamic_bytes", ctypes.c_size_t), ("library", ctypes.POINTER(_Library)), ("order", ctypes.c_int), ("seconds", ctypes.c_double),
    )  # fmt: skip


class _Report(ctypes.Structure):
    _fields_ = (
        ("fault", ctypes.c_int), ("block", _Uint3), ("thread", _Uint3), ("pc", ctypes.c_void_p), ("other_pc", ctypes.c_void_p),
        ("address", ctypes.c_void_p), ("line", ctypes.c_int), ("file", ctypes.c_char * 128), ("text", ctypes.c_char * 512),
        ("idle_blocks", ctypes.c_uint64), ("unused_shared", ctypes.c_uint64),
    )  # fmt: skip


class Core:
    """The emulator's own library, loaded once in a process, and the memory of the device it plays."""

    def __init__(self, address: bool):
        self.address = address
        # Global: kernel libraries find emulator_syncthreads, __tsan_read4 and so on in it. The core of the address build brings AddressSanitizer.
        self.library = ctypes.CDLL(str(compiler.build_core(address)), mode=ctypes.RTLD_GLOBAL)
        self.library.emulator_arena.restype = self.library.emulator_states.restype = ctypes.c_void_p
        self.library.emulator_arena.argtypes = (ctypes.c_size_t,)
        self.library.emulator_mark.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self.library.emulator_shared_at.restype = ctypes.POINTER(_SharedArray)
        self.library.emulator_shared_at.argtypes = (ctypes.c_void_p,)
        self.library.emulator_launch.argtypes = (ctypes.POINTER(_Launch), ctypes.POINTER(_Report))
        self.memory = Memory(self.library, size=1 << (28 if address else 30))  # AddressSanitizer's notes about it are made at once
        self.lock = threading.Lock()  # one launch at a time: ctypes lets other Python threads run meanwhile


_core: Core | None = None


def _new_lock() -> None:
    """In a forked child: a thread that was in a launch is not there to release it."""
    if _core is not None:
        _core.lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_new_lock)


def core(build: str | None = None) -> Core:
    """The core that `build` needs; without an argument, the one that is loaded (or the usual one). Raises RuntimeError if the other is loaded."""
    global _core
    if _core is None:
        _core = Core(address=build == "address")
    elif build is not None and _core.address != (build == "address"):
        raise RuntimeError("the build 'address' needs a process of its own: start Python with MINIGRAD_EMULATOR=address")
    return _core


class Waste(NamedTuple):
    """What a launch has asked for in vain, as far as the check build saw; the other builds see nothing and say 0.

    idle_blocks: blocks that wrote to no array. unused_shared: bytes at the end of dynamic shared memory that no block wrote to.
    """

    idle_blocks: int
    unused_shared: int


class Library:
    """The kernels `names` of a source, compiled and loaded."""

    def __init__(self, source: Source, names: Sequence[str], build: str):
        self.core = core(build)
        self.source, self.build = source, build
        self.path: Path = compiler.build_kernels(source.name, source.text, tuple(names), build)
        self.loaded = ctypes.CDLL(str(self.path))
        self.info = _Library.in_dll(self.loaded, "emulator_library")
        self.functions: dict[str, Function] = {}
        for position, name in enumerate(names):
            self.functions[name] = Function(self, name, self.info.kernels[position])


class Function:
    """A kernel that can be launched. kinds, sizes: one entry per parameter, see the end of device.h."""

    def __init__(self, library: Library, name: str, row: _Kernel):
        self.library, self.name, self.call = library, name, row.call
        self.kinds: str = row.kinds.decode()
        self.sizes = [row.sizes[k] for k in range(len(self.kinds))]
        declared = library.source.kernels[name]
        self.parameters = [parameter.name for parameter in declared.parameters]
        self.most_threads = declared.most_threads

    def check_limits(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int, most_shared: int = SHARED_WITHOUT_ASKING) -> None:
        """Raise ValueError for a launch that no GPU accepts. most_shared: bytes of dynamic shared memory that were asked for beforehand."""
        threads = block[0] * block[1] * block[2]
        if threads > self.most_threads or any(not 1 <= n <= most for n, most in zip(block, MOST_BLOCK, strict=True)):
            raise ValueError(
                f"{self.name}: block {block} has {threads} threads; it may have 1 to {self.most_threads}, and at most {MOST_BLOCK} along x, y, z"
            )
        if any(not 1 <= n <= most for n, most in zip(grid, MOST_GRID, strict=True)):
            raise ValueError(f"{self.name}: grid {grid}; a grid has at least 1 block and at most {MOST_GRID} along x, y, z")
        if not 0 <= shared <= most_shared:
            raise ValueError(
                f"{self.name}: {shared} bytes of dynamic shared memory; it may have {most_shared}, and at most {MOST_SHARED} once "
                "max_dynamic_shared_size_bytes says so"
            )

    def _run(self, grid: tuple[int, int, int], block: tuple[int, int, int], values: Sequence[Any], shared: int, order: str, seconds: float) -> Waste:
        """Run the grid once."""
        core, arguments = self.library.core, (ctypes.c_void_p * max(len(values), 1))(*[ctypes.addressof(v) for v in values])
        launch = _Launch(self.call, arguments, _Uint3(*grid), _Uint3(*block), shared, ctypes.pointer(self.library.info), ORDERS.index(order), seconds)
        report = _Report()
        with core.lock:
            if core.library.emulator_launch(ctypes.byref(launch), ctypes.byref(report)):
                raise self._fault(report, values)
        return Waste(report.idle_blocks, report.unused_shared)

    def launch(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], values: Sequence[Any], shared: int, orders: Sequence[str], seconds: float
    ) -> Waste:
        """Run the grid in every one of the orders, from the same memory each time, and compare what it writes bit for bit.

        Args:
            values: one ctypes number per parameter, addresses as c_void_p.
            shared: bytes of dynamic shared memory.
            seconds: how long a run may take (in the check build).

        Raises:
            KernelFault: the exception for what a thread did; NotRepeatable if two orders give different results.
        """
        if len(orders) == 1:
            return self._run(grid, block, values, shared, orders[0], seconds)
        addresses = [v.value for v, kind in zip(values, self.kinds, strict=True) if kind == "p" and v.value]
        written = self._blocks([*addresses, *self._in_tables(values)])
        before = [(data.copy(), states.copy()) for _, data, states in written]
        first, waste = None, Waste(0, 0)
        for order in orders:
            for (_, data, states), (data_then, states_then) in zip(written, before, strict=True):
                data[...], states[...] = data_then, states_then
            waste = self._run(grid, block, values, shared, order, seconds)
            results = [data.copy() for _, data, _ in written]
            first = first or (order, results)
            for (address, _, _), result, other in zip(written, results, first[1], strict=True):
                if not np.array_equal(result, other):
                    byte = int((result != other).argmax())
                    fault = faults.NotRepeatable(
                        f"{self.name} gives other results when threads and blocks run in another order ({first[0]}, then {order}): "
                        f"byte {byte} of {self._argument_at(address, values)} differs"
                    )
                    fault.kernel = self.name
                    raise fault
        return waste

    def _in_tables(self, values: Sequence[Any]) -> list[int]:
        """The addresses that the launch's tables of addresses hold; see the top of kernel_source.py."""
        found: list[int] = []
        for parameter, value in zip(self.library.source.kernels[self.name].parameters, values, strict=True):
            place = self.library.core.memory.before(value.value) if parameter.type == "const unsigned long long*" and value.value else None
            if place and place[1]:
                end = place[0] + place[1]
                found += np.ctypeslib.as_array((ctypes.c_uint64 * ((end - value.value) // 8)).from_address(value.value)).tolist()
        return found

    def _blocks(self, addresses: Sequence[int]) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Bytes and states of the memory blocks that these addresses lie in: (address, bytes, states), each block once."""
        memory, found = self.library.core.memory, {}
        for address in addresses:
            place = memory.before(address)
            if place and place[1]:
                start, nbytes = place[0], place[1]
                data = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(start))
                found[start] = (start, data, memory.states[start - memory.base : start - memory.base + nbytes])
        return list(found.values())

    # --- reports

    def _fault(self, report: _Report, values: Sequence[Any]) -> faults.KernelFault:
        trace, site = self._lines(report.pc), (report.file.decode(), report.line)
        if report.line and site not in trace:
            trace = (site, *trace)
        block, thread = ((p.x, p.y, p.z) for p in (report.block, report.thread))
        text = f"{self.name}, block {block}, thread {thread}: {report.text.decode(errors='replace')}"
        if report.other_pc:
            text += " (there: " + ", ".join(f"{file}:{line}" for file, line in self._lines(report.other_pc)[:1]) + ")"
        if report.address:
            text += self._describe(report.address, values)
        for file, line in trace:
            quoted = line_of(self.library.source.text, self.library.source.name, file, line)
            text += f"\n  {file}:{line}" + (f":  {quoted.strip()}" if quoted else "")
        fault = faults.BY_NUMBER[report.fault](text)
        fault.kernel, fault.block, fault.thread, fault.trace = self.name, block, thread, tuple(trace)
        if trace:
            fault.file, fault.line = trace[0]
        return fault

    def _lines(self, pc: int) -> tuple[tuple[str, int], ...]:
        """The source lines of a program counter, which is a return address: the call before it is meant."""
        return faults.lines_at(self.library.path, pc - self.library.info.begin - 1) if pc else ()

    def _describe(self, address: int, values: Sequence[Any]) -> str:
        """Where `address` lies relative to the nearest array before it, and which argument that is."""
        memory = self.library.core.memory
        place = memory.before(address)
        if place is None:
            shared = self.library.core.library.emulator_shared_at(address)
            if shared:
                array = shared.contents
                return f"; byte {address - array.address} of {array.name.decode()}, which has {array.bytes} bytes"
            dynamic = ctypes.c_void_p.in_dll(self.library.core.library, "emulator_dynamic_shared").value or 0
            return f"; byte {address - dynamic} of dynamic shared memory" if 0 <= address - dynamic < 2**18 else ""
        start, nbytes = place
        if nbytes is None:
            return f"; byte {address - start} of an array that has been freed"
        return f"; byte {address - start} of {self._argument_at(start, values)}, which has {nbytes} bytes"

    def _argument_at(self, start: int, values: Sequence[Any]) -> str:
        """The name of the argument whose memory block starts at `start`."""
        memory = self.library.core.memory
        for k, (value, kind) in enumerate(zip(values, self.kinds, strict=True)):
            place = memory.before(value.value) if kind in "pc" and value.value else None
            if place and place[0] == start:
                return f"{self.parameters[k]} (argument {k + 1})"
        return "an array that is no argument"
