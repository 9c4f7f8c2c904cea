"""Building and caching: a file is compiled once, workers do not disturb each other, and messages show the source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minigrad.backend import cuda
from minigrad.backend.emulator import compiler, faults
from minigrad.backend.kernel_source import CompileError
from tests.backend.emulator.in_a_process import run_tests

CODE = '#line 1 "{name}.cu"\n__global__ void {name}(float* y) {{ y[threadIdx.x] = {value}; }}'


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "minigrad" / "emulator"


def test_a_file_is_compiled_once_and_again_when_it_or_the_build_changes(empty_cache, monkeypatch):
    compiled = []
    run = subprocess.run
    compiler._compiler()
    monkeypatch.setattr(compiler.subprocess, "run", lambda command, **options: compiled.append(command) or run(command, **options))
    one, other = (CODE.format(name="cached", value=value) for value in (1, 2))
    first = compiler.build_kernels("cached", one, ("cached",), "plain")
    assert compiler.build_kernels("cached", one, ("cached",), "plain") == first
    assert len(compiled) == 1
    others = {compiler.build_kernels("cached", other, ("cached",), "plain"), compiler.build_kernels("cached", one, ("cached",), "check")}
    assert len(compiled) == 3
    assert first not in others
    assert sorted(path.parent for path in [first, *others]) == [empty_cache] * 3
    assert not list(empty_cache.glob("building-*"))


def test_workers_that_build_the_same_file_at_once_do_not_disturb_each_other(empty_cache):
    script = (
        "import numpy as np; from minigrad.backend import cuda\n"
        "with cuda.emulated('plain'):\n"
        "    cp = cuda.array_module(); y = cp.zeros(4, np.float32)\n"
        f"    cp.RawModule(code={CODE.format(name='shared_work', value=3)!r}).get_function('shared_work')((1,), (4,), (y,)); print(y.get().sum())"
    )
    folder = Path(__file__).parents[3]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    assert [worker.communicate()[0].strip() for worker in workers] == ["12.0"] * 2
    assert len(list(empty_cache.iterdir())) == 2  # the core and the file


@pytest.mark.parametrize("length", [0, 8_000, -1])
def test_a_library_that_was_cut_short_is_built_again(length, empty_cache):
    text = CODE.format(name="cut", value=1)
    library = compiler.build_kernels("cut", text, ("cut",), "plain")
    whole = library.read_bytes()
    library.write_bytes(whole[:length])
    assert compiler.build_kernels("cut", text, ("cut",), "plain") == library
    assert library.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(compiler.tempfile, "gettempdir", lambda: str(tmp_path))
    assert compiler.cache_folder() == tmp_path / f"minigrad-emulator-{os.getuid()}"

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiler.Path, "home", no_home)
    monkeypatch.chdir(tmp_path)
    assert compiler.cache_folder() == tmp_path / f"minigrad-emulator-{os.getuid()}" and not (tmp_path / "~").exists()


def test_without_a_compiler_the_message_says_how_to_get_one(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="there is no 'no-such-compiler' here: install it"):
        compiler._compiler.__wrapped__()


def test_the_compiler_may_be_a_command_or_have_a_space_in_its_path(monkeypatch, tmp_path):
    program = tmp_path / "my g++"
    program.symlink_to(shutil.which("g++"))
    monkeypatch.setenv("CXX", str(program))
    assert compiler._compiler.__wrapped__()[0] == [str(program)]
    monkeypatch.setenv("CXX", "env g++")  # as "ccache g++"
    words, version = compiler._compiler.__wrapped__()
    assert words == ["env", "g++"] and "Free Software Foundation" in version


@pytest.mark.parametrize(
    ("declaration", "called"),
    [
        ("{ extern __shared__ __align__(32) unsigned char s[];", "{ unsigned char* s = dynamic_shared<unsigned char>();"),
        (
            "__shared__ Row<T, 2> a; __shared__ int b;",
            'static char a_declared; auto& a = static_shared<Row<T, 2>>(&a_declared, "a"); '
            'static char b_declared; auto& b = static_shared<int>(&b_declared, "b");',
        ),
        (
            "    __shared__ __align__(8) T a[N + 1][2],\n  b;",
            '    static char a_declared; auto& a = static_shared<T[N + 1][2]>(&a_declared, "a", 8); '
            'static char b_declared; auto& b = static_shared<T>(&b_declared, "b", 8);\n',
        ),
        ("// not a __shared__ T s[2]; but a comment", "// not a __shared__ T s[2]; but a comment"),
    ],
)
def test_shared_memory_is_asked_for(declaration, called):
    assert compiler._ask_for_shared_memory(declaration) == called


@pytest.mark.parametrize("declaration", ["__shared__ int s = 1;", "volatile __shared__ int s;", "__shared__ int (*s)[2];"])
def test_shared_memory_that_would_not_be_watched_does_not_compile(declaration):
    with pytest.raises(CompileError, match="__shared__"):
        compiler.build_kernels("odd", f'#line 1 "odd.cu"\n__global__ void odd() {{\n    {declaration}\n}}', ("odd",), "plain")


@pytest.mark.parametrize("call", ["memcpy(y, y + 8, 64)", "memmove(y, y + 8, 64)", "memset(y, 0, 64)"])
def test_a_call_whose_reads_and_writes_would_not_be_watched_does_not_compile(call):
    with pytest.raises(CompileError, match=f"bulk.cu:3:.*poisoned.*{call[:6]}"):
        compiler.build_kernels("bulk", f"__global__ void bulk(float* y)\n{{\n    {call};\n}}", ("bulk",), "plain")


def test_a_mistake_is_shown_with_its_line(tmp_path):
    (tmp_path / "helper.cuh").write_text("__device__ float twice(float x)\n{\n    return x + y;\n}\n")
    (tmp_path / "page.cu").write_text('#include "helper.cuh"\n__global__ void page(float* y)\n{\n    y[0] = twice(1);\n    y[1] = thrice(1);\n}\n')
    with cuda.emulated(), pytest.raises(CompileError) as caught:
        cp = cuda.array_module()
        cuda.Kernels(tmp_path / "page.py").launch("page", 1, 1, cp.zeros(2, cp.float32))
    message = str(caught.value)
    assert "page.cu does not compile" in message
    assert "helper.cuh:3:  return x + y;" in message
    assert "page.cu:5:  y[1] = thrice(1);" in message


def test_a_fault_in_an_included_file_is_shown_with_both_lines(tmp_path):
    (tmp_path / "helper.cuh").write_text("// a comment\n__device__ float at(const float* x, int i) { return x[i]; }\n")
    (tmp_path / "page.cu").write_text('#include "helper.cuh"\n\n__global__ void page(float* y)\n{\n    y[0] = at(y, 2);\n}\n')
    with cuda.emulated(), pytest.raises(faults.OutOfBounds) as caught:
        cp = cuda.array_module()
        cuda.Kernels(tmp_path / "page.cu").launch("page", 1, 1, cp.zeros(2, cp.float32))
    assert caught.value.trace == (("helper.cuh", 2), ("page.cu", 5))
    assert "page.cu:5:  y[0] = at(y, 2);" in str(caught.value)


def test_lines_of_a_library_that_was_built_in_a_folder_with_any_name(tmp_path):
    folder = tmp_path / "my projects, für CUDA"
    folder.mkdir()
    (folder / "page.cu").write_text('\n\nextern "C" void f() {}\n')
    subprocess.run(["g++", "-shared", "-g1", "-x", "c++", "page.cu", "-o", "page.so"], cwd=folder, check=True)
    symbols = subprocess.run(["nm", "page.so"], cwd=folder, check=True, capture_output=True, text=True).stdout
    (offset,) = [int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" T f")]
    assert faults.lines_at(folder / "page.so", offset) == (("page.cu", 3),)


def test_a_barrier_in_an_included_file_is_shown_with_its_caller(tmp_path):
    (tmp_path / "helper.cuh").write_text("__device__ float sum(float x)\n{\n    return x + __shfl_xor_sync(0xffffffff, x, 1);\n}\n")
    (tmp_path / "page.cu").write_text('#include "helper.cuh"\n\n__global__ void page(float* y)\n{\n    if (threadIdx.x) y[0] = sum(y[0]);\n}\n')
    with cuda.emulated(), pytest.raises(faults.BarrierFault) as caught:
        cp = cuda.array_module()
        cuda.Kernels(tmp_path / "page.cu").launch("page", 1, 32, cp.zeros(2, cp.float32))
    assert caught.value.trace == (("helper.cuh", 3), ("page.cu", 5))


def test_fibres_by_ucontext_work_as_well():
    """What processors other than x86-64 use."""
    run_tests(Path(__file__).parent / "test_vocabulary.py", CXXFLAGS="-DEMULATOR_UCONTEXT")


def test_the_address_build_needs_a_process_of_its_own():
    with cuda.emulated("plain"):
        pass
    with pytest.raises(RuntimeError, match="needs a process of its own: start Python with MINIGRAD_EMULATOR=address"), cuda.emulated("address"):
        pass
