"""Every kernel file compiles for real GPUs, by the compiler that CuPy uses; what only that compiler notices is noticed."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from minigrad.backend.kernel_source import CompileError, Source, parse, read
from tests import nvrtc
from tests.gpu.compile_all import FILES

HAS_NVCC = shutil.which("nvcc") is not None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_compiles(file: Path):
    """For every architecture, and by nvcc where it is installed: all at once, since a large file takes each of them 20 seconds."""
    source = read(file)
    with ThreadPoolExecutor(1 + len(nvrtc.ARCHITECTURES)) as pool:
        by_nvcc = pool.submit(nvrtc.compile_with_nvcc, source, "sm_90") if HAS_NVCC else None
        by_nvrtc = list(pool.map(partial(nvrtc.compile_with_nvrtc, source), nvrtc.ARCHITECTURES))
    for compiled in by_nvrtc:
        assert set(compiled.symbols) == set(source.kernels)
        assert not compiled.log, compiled.log  # no warning either
        for name in source.kernels:
            check_types(file.parent.name, name, compiled.ptx_of(name))
    if by_nvcc is not None:
        assert set(by_nvcc.result().symbols) == set(source.kernels)


def check_types(folder: str, name: str, ptx: str) -> None:
    """A float kernel that has a `0.5` for a `0.5f` computes in double, 32 times slower on most GPUs; a float4 kernel moves 16 bytes at a time."""
    if folder == "optim":  # whose options and sums are in double; an address from a table may be of any memory: not ld.global
        if name.endswith("<float>") and "naive" not in name:
            assert "ld.v4.f32" in ptx, f"{name} reads no float4"
            if name != "clip_squares<float>":
                assert "st.v4.f32" in ptx, f"{name} writes no float4"
        return
    if "double" not in name and name != "note<float>":  # whose records, three sums, are in double
        assert not re.findall(r"\S+\.f64", ptx), f"{name} computes in double"
    if "float4" in name:
        moves = re.findall(r"(?:ld|st)\.global\S*\.v4", ptx)
        assert moves, f"{name} moves no float4"


needs_nvcc = pytest.mark.skipif(not HAS_NVCC, reason="nvcc is not installed; NVRTC compiles the same files")
COMPILERS = [nvrtc.compile_with_nvrtc, pytest.param(nvrtc.compile_with_nvcc, marks=needs_nvcc)]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_mistake_is_shown_with_its_line(compiler):
    source = parse("page", "__global__ void page(float* y)\n{\n    y[0] = undeclared;\n}\n")
    with pytest.raises(CompileError, match=r'page.cu does not compile for sm_80(.|\n)*"?undeclared(.|\n)*\n  page.cu:3:  y\[0\] = undeclared;'):
        compiler(source, "sm_80")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_template_is_compiled_though_nothing_calls_it(compiler):
    """Without an instance a compiler accepts anything that depends on the template's arguments, and makes no code of it."""
    body = "template <typename T> __global__ void page(T* y) { y[0] = missing(y[0]); }"
    with pytest.raises(CompileError, match="missing"):
        compiler(parse("page", f"// instances: page<float>\n{body}"), "sm_80")
    compiled = compiler(parse("page", "// instances: page<float>, page<double>\n" + body.replace("missing(y[0])", "2 * y[0]")), "sm_80")
    assert len(set(compiled.symbols.values())) == 2


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_file_without_the_kernels_it_should_have(compiler):
    source = parse("page", "__global__ void page(float* y) { y[0] = 1; }")
    with pytest.raises(CompileError, match="there is no kernel in it"):
        compiler(Source("page", source.text, {}), "sm_80")
    with pytest.raises(CompileError, match="other"):
        compiler(Source("page", source.text, {**source.kernels, "other": source.kernels["page"]}), "sm_80")


@pytest.mark.parametrize("name", ["INFINITY", "INT_MAX", "M_PI", "std::max(y[0], y[1])", "FLT_MAX"])
def test_nvrtc_knows_no_headers(name):
    """The emulator and nvcc know these. CuPy compiles with NVRTC."""
    with pytest.raises(CompileError):
        nvrtc.compile_with_nvrtc(parse("page", f"__global__ void page(float* y) {{ y[0] = {name}; }}"), "sm_80")


def test_too_much_static_shared_memory_is_noticed():
    source = parse("page", "__global__ void page(float* y) { __shared__ float s[12289]; s[threadIdx.x] = 1; __syncthreads(); y[0] = s[y[1] > 0]; }")
    with pytest.raises(CompileError, match="too much shared data"):
        nvrtc.compile_with_nvrtc(source, "sm_80")


def test_without_nvrtc_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(nvrtc, "nvrtc_library", lambda: None)
    with pytest.raises(RuntimeError, match="pip install nvidia-cuda-nvrtc"):
        nvrtc.compile_with_nvrtc(parse("page", "__global__ void page(float* y) {}"), "sm_80")
