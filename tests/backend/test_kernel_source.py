"""Reading parameter lists out of kernel files, and the rules for these files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from minigrad.backend import kernel_source
from minigrad.backend.kernel_source import parse, read


def test_kernels_and_their_parameters():
    source = parse(
        "page",
        """
        // __global__ void not_this(float* x) {}
        /* __global__ void nor_this(float* x) {} */
        __device__ float helper(float x) { return x; }
        extern "C" __global__ void plain(const float* __restrict__ x, unsigned char *mask,
                                         int rows, float eps, unsigned long long seed, bool last) { }
        constexpr int THREADS = 128;
        __global__ void __launch_bounds__(THREADS) bounded() {}
        """,
    )
    assert list(source.kernels) == ["plain", "bounded"]
    assert source.kernels["bounded"].most_threads == 128
    assert source.kernels["bounded"].parameters == ()
    plain = source.kernels["plain"]
    assert plain.most_threads == 1024
    assert [(p.name, p.type, p.dtype.name, p.pointer, p.const) for p in plain.parameters] == [
        ("x", "const float*", "float32", True, True),
        ("mask", "unsigned char*", "uint8", True, False),
        ("rows", "int", "int32", False, False),
        ("eps", "float", "float32", False, False),
        ("seed", "unsigned long long", "uint64", False, False),
        ("last", "bool", "bool", False, False),
    ]


def test_instances_of_templates():
    source = parse(
        "page",
        """
        // instances: sum<float, 4>, sum<double, 1>
        template <typename T, int N>
        __global__ void __launch_bounds__(N) sum(const T* x, T scale) {}
        // instances: move<float4>, move<double2>
        template <class V> __global__ void move(const V* x, V* y) {}
        """,
    )
    assert list(source.kernels) == ["sum<float, 4>", "sum<double, 1>", "move<float4>", "move<double2>"]
    single, double = source.kernels["sum<float, 4>"], source.kernels["sum<double, 1>"]
    assert [p.type for p in single.parameters + double.parameters] == ["const float*", "float", "const double*", "double"]
    assert (single.most_threads, double.most_threads) == (4, 1)
    vector = source.kernels["move<float4>"].parameters[1]
    assert (vector.dtype, vector.alignment, vector.type) == (np.float32, 16, "float4*")
    assert source.kernels["move<double2>"].parameters[0].alignment == 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "template <typename T> __global__ void f(T* x) {}",
            r'page.cu: nothing says which instances of the template f to compile: add "// instances: f<...>"',
        ),
        ("// instances: f<float, 4>\ntemplate <typename T> __global__ void f(T* x) {}", "f<float, 4> has 2 template arguments, the template has 1"),
        ("// instances: g<float>\n__global__ void f(float* x) {}", "instances of g are asked for, but there is no such template kernel"),
        ("__global__ void f(Matrix x) {}", "parameter 'Matrix x' of f: give a number, or a pointer to numbers"),
        ("__global__ void f(float** x) {}", r"parameter 'float\*\* x' of f"),
        ("__global__ void f(float4 x) {}", "parameter 'float4 x' of f"),
        ("__global__ void __launch_bounds__(SIZE) f(float* x) {}", "SIZE is not a number, nor a constexpr that is one"),
    ],
)
def test_what_does_not_follow_the_rules(text, message):
    with pytest.raises(ValueError, match=message):
        parse("page", text)


def test_no_row_is_counted_by_dividing_a_thread_s_number_in_the_grid():
    """blockIdx.x * blockDim.x has 32 bits: the number of a thread that is divided by the threads of a row wraps long before the rows do."""
    root = Path(kernel_source.__file__).parents[2]
    files = [path for package in ("minigrad", "conformer") for path in (root / package).rglob("*.cu*")]
    assert len(files) > 20
    for path in files:
        assert not re.search(r"blockIdx\.x \* blockDim\.x \+ threadIdx\.x\) [/%]", path.read_text(encoding="utf-8")), path.name


def test_included_files_come_in_once_and_lines_are_told_apart(tmp_path):
    (tmp_path / "inner.cuh").write_text("#pragma once\nint inner;\n")
    (tmp_path / "outer.cuh").write_text('#include "inner.cuh"\nint outer;\n')
    (tmp_path / "page.cu").write_text('#include "outer.cuh"\n#include "inner.cuh"\n__global__ void page(float* y)\n{\n}\n')
    source = read(tmp_path / "page.cu")
    assert source.text.count("int inner;") == 1
    assert "#pragma once" not in source.text
    message = "inner.cuh(2): error: one\nouter.cuh:2:1: error: two\npage.cu(3): error: three\nelsewhere.h:1: error"
    assert source.explain(message).splitlines()[4:] == [
        "  inner.cuh:2:  int inner;",
        "  outer.cuh:2:  int outer;",
        "  page.cu:3:  __global__ void page(float* y)",
    ]
