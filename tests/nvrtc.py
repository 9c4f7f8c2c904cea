"""Compiles kernel files for real GPUs, on a machine without one: by NVRTC, which is what CuPy uses, and by nvcc where it is installed.

NVRTC comes from PyPI (`pip install nvidia-cuda-nvrtc`, in the extra `test`) and needs no driver. The emulator is kinder than NVRTC, which knows
no standard header: INFINITY, INT_MAX, M_PI, std::max and int64_t are errors here, and only here. A template that is not instantiated compiles to
nothing; so every kernel's name is looked for in the result. Read next: `test_nvrtc.py`.

Source: https://docs.nvidia.com/cuda/nvrtc/
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigrad.backend.cuda import OPTIONS
from minigrad.backend.kernel_source import CompileError, Source

__all__ = ["ARCHITECTURES", "Compiled", "compile_with_nvcc", "compile_with_nvrtc", "nvrtc_library"]

_AS_CUPY = ("-ftz=true", "--device-as-default-execution-space")  # what CuPy 14 adds to the options it is given

ARCHITECTURES = ("sm_80", "sm_90")
"""What the kernels are compiled for: A100 and H100."""


@dataclass(frozen=True)
class Compiled:
    """A kernel file in machine code. symbols: of every kernel, its name in there; log: what the compiler said; ptx: the step before, as text."""

    cubin: bytes
    symbols: dict[str, str]
    log: str
    ptx: str = ""

    def ptx_of(self, name: str) -> str:
        """The instructions of one kernel, for a virtual machine that all GPUs have in common."""
        return next(part for part in self.ptx.split(".entry ") if part.startswith(self.symbols[name] + "("))


@functools.cache
def nvrtc_library() -> Any:
    """NVRTC as a ctypes library, from a wheel, else from the system; None where there is none."""
    candidates: list[str] = []
    package = importlib.util.find_spec("nvidia")
    for folder in (package.submodule_search_locations or []) if package else []:
        candidates += sorted(map(str, Path(folder).glob("*/lib/libnvrtc.so.*")), reverse=True)  # cu13 before cuda_nvrtc, the wheel for CUDA 12
    found = ctypes.util.find_library("nvrtc")
    for path in [*candidates, *([found] if found else []), "libnvrtc.so"]:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def compile_with_nvrtc(source: Source, architecture: str) -> Compiled:
    """The machine code of a kernel file for an architecture such as "sm_90".

    Raises:
        CompileError: with NVRTC's messages and the source lines, or because a kernel is missing in the result.
        RuntimeError: there is no NVRTC.
    """
    nvrtc = nvrtc_library()
    if nvrtc is None:
        raise RuntimeError("NVRTC is not installed: pip install nvidia-cuda-nvrtc")
    program = ctypes.c_void_p()

    def call(name: str, *arguments: Any) -> None:
        code = getattr(nvrtc, name)(program, *arguments)
        if code:
            nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise RuntimeError(f"{name}: {nvrtc.nvrtcGetErrorString(code).decode()}")

    def text(name: str) -> bytes:
        size = ctypes.c_size_t()
        call(f"nvrtcGet{name}Size", ctypes.byref(size))
        memory = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{name}", memory)
        return memory.raw

    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.text.encode(), f"{source.name}.cu".encode(), 0, None, None):
        raise RuntimeError("nvrtcCreateProgram failed")
    try:
        for name in source.kernels:
            call("nvrtcAddNameExpression", name.encode())
        options = [option.encode() for option in (*OPTIONS, *_AS_CUPY, f"-arch={architecture}")]
        failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = text("ProgramLog").decode(errors="replace").rstrip("\0").strip()
        if failed:
            raise CompileError(f"{source.name}.cu does not compile for {architecture}:\n{source.explain(log)}")
        cubin, ptx, symbols = text("CUBIN"), text("PTX").decode().rstrip("\0"), {}
        for name in source.kernels:
            symbol = ctypes.c_char_p()
            call("nvrtcGetLoweredName", name.encode(), ctypes.byref(symbol))
            symbols[name] = (symbol.value or b"").decode()
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    _check_all_there(source, architecture, cubin, symbols)
    return Compiled(cubin, symbols, log, ptx)


def _check_all_there(source: Source, architecture: str, cubin: bytes, symbols: dict[str, str]) -> None:
    missing = [name for name, symbol in symbols.items() if not symbol or f".text.{symbol}\0".encode() not in cubin]
    if missing:
        raise CompileError(f"{source.name}.cu for {architecture}: there is no code for {', '.join(missing)}")
    if not symbols:
        raise CompileError(f"{source.name}.cu: there is no kernel in it")


def compile_with_nvcc(source: Source, architecture: str) -> Compiled:
    """The same by nvcc, which must be installed. It knows the standard headers, so it accepts files that NVRTC does not.

    Raises:
        CompileError: with nvcc's messages and the source lines, or because a kernel is missing in the result.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("nvcc is not installed")
    wanted = [kernel for kernel in source.kernels.values() if kernel.template]
    instances = [f"template __global__ void {kernel.name}({', '.join(p.type for p in kernel.parameters)});" for kernel in wanted]
    with tempfile.TemporaryDirectory() as folder:
        file, cubin = Path(folder) / f"{source.name}.cu", Path(folder) / "out.cubin"
        file.write_text("\n".join([source.text, *instances]), encoding="utf-8")
        command = [nvcc, *OPTIONS, f"-arch={architecture}", "-cubin", "-o", str(cubin), str(file)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            raise CompileError(f"{source.name}.cu does not compile for {architecture} by nvcc:\n{source.explain(done.stdout + done.stderr)}")
        code = cubin.read_bytes()
    # Names are mangled, as _Z3sumILi4EEvPKf is for sum<4>; it is enough to find as many symbols of a kernel's name as there are instances.
    symbols: dict[str, str] = {}
    found = [part.decode(errors="replace") for part in code.split(b"\0") if part.startswith(b".text.")]
    for name in source.kernels:
        plain = name.partition("<")[0]
        own = [s for s in found if f"{len(plain)}{plain}" in s or s == f".text.{plain}"]
        place = [k for k in source.kernels if k.partition("<")[0] == plain].index(name)
        symbols[name] = own[place].removeprefix(".text.") if place < len(own) else ""
    _check_all_there(source, architecture, code, symbols)
    return Compiled(code, symbols, done.stdout + done.stderr)
