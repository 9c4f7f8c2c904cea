"""Kernels written in CUDA C++, compiled and run by the emulator behind the interface of `cupy.RawModule`.

CuPy passes arguments as they are: an array as its address whatever its strides, a Python int as 64 bits, a Python float as a double, and a kernel
that wants an int or a float then reads garbage. Here every argument must be what the kernel's parameter says. Read next: `launch.py`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigrad.backend import kernel_source
from minigrad.backend.emulator import state
from minigrad.backend.emulator.arrays import ndarray
from minigrad.backend.emulator.launch import MOST_SHARED, SHARED_WITHOUT_ASKING, Function, Library
from minigrad.backend.emulator.memory import Block

__all__ = ["RawKernel", "RawModule"]

_FILE = re.compile(r'#line\s+1\s+"(\w+)\.cu"')


def _three(numbers: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*numbers, 1, 1)[:3]
    return int(x), int(y), int(z)


class RawModule:
    """The kernels of a CUDA source. CuPy: `cupy.RawModule`; compiled when the first kernel is asked for.

    Args:
        code: the source. A first line `#line 1 "name.cu"` gives it a name in messages.
        options: for NVRTC; not used here.
        name_expressions: which kernels to compile; all, without them.
    """

    def __init__(self, *, code: str, options: tuple[str, ...] = (), name_expressions: Sequence[str] | None = None):
        found = _FILE.match(code)
        self.source = kernel_source.parse(found[1] if found else "kernel", code)
        self.names = tuple(self.source.kernels) if name_expressions is None else tuple(name_expressions)
        self._libraries: dict[str, Library] = {}

    def get_function(self, name: str) -> RawKernel:
        """The kernel `name`. Raises ValueError if there is none, CompileError if the source does not compile."""
        if name not in self.names:
            raise ValueError(f"there is no kernel {name!r}; there are {', '.join(self.names)}")
        return RawKernel(self, name)

    def _function(self, name: str) -> Function:
        build = state.current().build
        if build not in self._libraries:
            self._libraries[build] = Library(self.source, self.names, build)
        return self._libraries[build].functions[name]


class RawKernel:
    """A kernel. CuPy: `cupy.RawKernel`."""

    def __init__(self, module: RawModule, name: str):
        self.module, self.name = module, name
        self._limit: int | None = None
        module._function(name)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """How much dynamic shared memory a launch may ask for."""
        return self._limit or SHARED_WITHOUT_ASKING

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, nbytes: int) -> None:
        if nbytes > MOST_SHARED:
            raise ValueError(f"{self.name}: {nbytes} bytes of dynamic shared memory; a device of compute capability 8.0 has {MOST_SHARED}")
        self._limit = nbytes

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], *, shared_mem: int = 0) -> None:
        """Launch. grid, block: up to three numbers; args: arrays and NumPy numbers of the kernel's types; shared_mem: bytes.

        Raises:
            TypeError, ValueError: for what the kernel cannot be launched with.
            KernelFault: for what it does; see faults.py.
        """
        function = self.module._function(self.name)
        blocks_of_grid, threads = _three(grid), _three(block)
        if len(args) != len(function.kinds):
            raise TypeError(f"{self.name}: {len(args)} arguments given, the kernel has {len(function.kinds)} parameters")
        values = [self._value(k, x, function.kinds[k], function.sizes[k]) for k, x in enumerate(args)]
        function.check_limits(blocks_of_grid, threads, shared_mem, self.max_dynamic_shared_size_bytes)
        written = [x._values for x, kind in zip(args, function.kinds, strict=True) if kind == "p" and isinstance(x, ndarray)]
        blocks: list[Block] = [x._block for x in args if isinstance(x, ndarray)]

        def action() -> None:
            # Again: when a graph is launched, the kernel may have been told another limit than when the launch was captured.
            function.check_limits(blocks_of_grid, threads, shared_mem, self.max_dynamic_shared_size_bytes)
            device = state.current()
            device.launches += 1
            waste = function.launch(blocks_of_grid, threads, values, shared_mem, device.orders, device.seconds)
            if any(waste):
                device.wasteful.append((self.name, waste))
            if function.library.build != "check":  # nobody looked on while they were written
                for x in written:
                    function.library.core.memory.written(x)

        state.submit(self.name, action, blocks)

    def _value(self, position: int, x: Any, kind: str, size: int) -> Any:
        """The ctypes value for an argument. Raises TypeError if the parameter (kind and size: see device.h) is of another type."""
        what = f"argument {position + 1} of {self.name}"
        if kind in "pc":
            if isinstance(x, np.integer) and x.itemsize == 8 and x == 0:
                return ctypes.c_void_p(None)
            if not isinstance(x, ndarray):
                raise TypeError(f"{what}: the kernel wants an array of this device, got {type(x).__name__}")
            if not x.flags.c_contiguous:
                raise TypeError(f"{what}: the array is not contiguous (shape {x.shape}, strides {x.strides}); a kernel sees its address only")
            return ctypes.c_void_p(x.data.ptr)
        if isinstance(x, float) and not isinstance(x, np.generic):
            raise TypeError(f"{what}: a Python float is passed as 8 bytes; give numpy.float32(x) or numpy.float64(x)")
        number = np.int64(x) if type(x) is int else np.bool_(x) if type(x) is bool else x
        if not isinstance(number, np.generic):
            raise TypeError(f"{what}: the kernel wants a number, got {type(x).__name__}")
        if (number.dtype.kind, number.itemsize) != (kind, size):
            raise TypeError(f"{what}: the kernel wants {kind}{size}, got {number.dtype.kind}{number.itemsize} ({number.dtype})")
        return (ctypes.c_char * size).from_buffer_copy(number.tobytes())
