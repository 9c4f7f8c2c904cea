"""Where several CUDA kernels compute the same, the one that is meant for the sizes is launched. Only this tells: nothing is computed here.

Read first: `test_cuda_launches.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import minigrad
from minigrad import Tensor
from minigrad.backend import cuda
from minigrad.fused.attention import cuda_forward
from minigrad.op import REGISTRY
from tests.fused.test_cuda_launches import Call


class Launch(NamedTuple):
    """What `cuda.Kernels.launch` was given."""

    kernel: str
    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    arguments: tuple
    shared: int


def launches(op: str, call: Call, dtype: type = np.float32, precision: str = "float32") -> list[Launch]:
    """The launches, forward and backward, that would be made: results are 0."""
    noted: list[Launch] = []

    def note(self: Any, name: str, grid: Any, block: Any, *arguments: Any, shared: int = 0) -> None:
        noted.append(Launch(name, grid, block, arguments, shared))
        for parameter, x in zip(self.source.kernels[name].parameters, arguments, strict=True):
            if parameter.pointer and not parameter.const and x is not None:
                x.fill(0)

    with cuda.emulated("plain"), minigrad.precision(precision), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda.Kernels, "launch", note)
        tensors = [
            None if x is None else Tensor(x if isinstance(x, np.ndarray) else np.ones(x, dtype)).to(device="cuda").requires_grad_(k in call.wanted)
            for k, x in enumerate(call.inputs)
        ]
        y = REGISTRY[op](*tensors, **call.values)
        y = y[0] if isinstance(y, tuple) else y
        minigrad.grad([y], [t for t in tensors if t is not None and t.requires_grad], [Tensor(np.ones(y.shape, dtype)).to(device="cuda")])
    return noted


def attention(own: int, keys: int, width: int, value_width: int | None = None, **options: Any) -> list[Launch]:
    inputs = [(2, 1, own, width), (2, 1, keys, width), (2, 1, keys, value_width or width)]
    return launches("scaled_dot_product_attention", Call(inputs, (0, 1, 2)), **options)


def numbers_in(kernel: str) -> list[int]:
    """The numbers among the template arguments of a kernel."""
    return [int(n) for n in re.findall(r"(?<=[<, ])\d+", kernel)]


def compiled(page: str, kernel: str, number: str) -> set[int]:
    """The first number of every instance of a kernel for this type."""
    kernels = cuda.Kernels(Path(minigrad.__file__).parent / "fused" / page).source.kernels
    return {numbers_in(name)[0] for name in kernels if name.startswith(f"{kernel}<{number},")}


@pytest.mark.parametrize(("dtype", "number"), [(np.float32, "float"), (np.float64, "double")])
@pytest.mark.parametrize("width", [1, 31, 32, 33, 64, 65, 128, 129])
def test_attention_by_tiles_takes_the_narrowest_kernel(dtype, number, width):
    fitting = [n for n in compiled("attention.cu", "attention_forward", number) if n >= width]
    for each in (attention(100, 2, width, dtype=dtype), attention(2, 100, 1, width, dtype=dtype)):
        names = [launch.kernel for launch in each if "delta" not in launch.kernel]
        assert len(names) == 3
        for name in names:
            assert "naive" in name if not fitting else numbers_in(name) == [min(fitting)]


@pytest.mark.parametrize(("dtype", "number"), [(np.float32, "float"), (np.float64, "double")])
@pytest.mark.parametrize("tokens", [1, 23, 24, 25, 72, 73])
def test_attention_of_few_tokens_takes_a_block_per_head(dtype, number, tokens):
    threads = {tokens // 24 * 32: tokens for tokens in (24, 72)}  # of the kernel for so many: attention_short.cu
    fitting = [n for n in compiled("attention_short.cu", "attention_forward_short", number) if threads[n] >= tokens]
    for own, keys in ((tokens, 1), (1, tokens), (tokens, tokens)):
        for width, value_width, short in ((32, 1, True), (1, 32, True), (33, 1, False), (1, 33, False)):
            for launch in attention(own, keys, width, value_width, dtype=dtype):
                assert ("short" in launch.kernel) == (short and fitting != [])
                if "short" in launch.kernel:
                    assert numbers_in(launch.kernel) == [min(fitting)] and launch.block == min(fitting) and launch.grid == 2


@pytest.mark.parametrize("width", [32, 64, 128])
def test_attention_s_blocks_are_as_large_as_64_kb_allow_and_of_equal_sizes(width):
    def by_kernel(own: int) -> dict[str, Launch]:
        return {launch.kernel: launch for launch in attention(own, own, width) if "delta" not in launch.kernel}

    for kernel in by_kernel(200):
        shared = {launch.block // 32: launch.shared for launch in (by_kernel(own)[kernel] for own in range(73, 300, 8))}  # bytes by warps
        most = max(shared)
        assert shared[most] <= 64 * 1024 and (most == 4 or 2 * shared[most] - shared.get(most - 1, 0) > 64 * 1024)
        for own in (73, 80, 81, 129, 200):
            launch = by_kernel(own)[kernel]
            blocks = launch.grid // 2
            assert blocks == -(-own // (16 * most)) and launch.block // 32 == -(-own // (16 * blocks))


def test_attention_reads_packs_where_there_are_some_and_masks_where_there_is_one():
    def said(call: Call) -> list[tuple[bool, bool]]:
        """(reads packs, asks for masks) of every launch of a kernel with a block per head."""
        noted = launches("scaled_dot_product_attention", call)
        return [(any(x is True for x in launch.arguments), "true" in launch.kernel) for launch in noted if "short" in launch.kernel]

    heads, mask = [(2, 1, 5, 8)] * 3, np.ones((5, 5), bool)
    assert said(Call(heads, (0, 1, 2))) == [(True, False)] * 2
    assert said(Call([*heads, mask], (0, 1, 2))) == [(True, True)] * 2
    assert said(Call([*heads, None, np.ones((2, 1, 5, 5), bool)], (0, 1, 2), {"dropout_p": 0.5})) == [(True, True)] * 2
    assert said(Call([(2, 1, 5, 7)] * 3, (0, 1, 2))) == [(False, False)] * 2
    long = launches("scaled_dot_product_attention", Call([(2, 1, 80, 8)] * 3, (0, 1, 2)))
    assert [any(x is True for x in launch.arguments) for launch in long] == [True, False, True, True]  # not for dY * Y


def test_attention_copies_only_what_it_cannot_read():
    def copies(query: Any, dropout_mask: Any = None) -> int:
        """How many arrays are allocated besides the three that are results."""
        with cuda.emulated("plain") as device:
            cp = cuda.array_module()
            other, mask = cp.ones((2, 3, 5, query(cp).shape[3]), np.float32), None if dropout_mask is None else dropout_mask(cp)
            arrays = query(cp), other, other
            before = device.allocations
            cuda_forward(*arrays, None, mask, 0.5 if mask is not None else 0.0, None)
            return device.allocations - before - 3

    assert copies(lambda cp: cp.ones((2, 5, 9, 4), np.float32).transpose(0, 2, 1, 3)[:, :3]) == 0
    assert copies(lambda cp: cp.broadcast_to(cp.ones((1, 3, 5, 4), np.float32), (2, 3, 5, 4))) == 0
    assert copies(lambda cp: cp.ones((2, 3, 1, 5), np.float32).transpose(0, 1, 3, 2)) == 0  # width 1: the steps along it do not matter
    assert copies(lambda cp: cp.ones((2, 3, 5, 2), np.float32)[..., :1]) == 0
    assert copies(lambda cp: cp.ones((2, 3, 2, 5), np.float32).transpose(0, 1, 3, 2)) == 1
    assert copies(lambda cp: cp.ones((2, 3, 5, 4), np.float32)[:, ::-1]) == 1
    whole, mask = (lambda cp: cp.ones((2, 3, 5, 4), np.float32)), (lambda cp: cp.ones((2, 3, 5, 5), bool))
    assert copies(whole, mask) == 0
    assert copies(whole, lambda cp: mask(cp).astype(np.float32)) == 0
    assert copies(whole, lambda cp: mask(cp).transpose(0, 1, 3, 2)) == 1


# --- convolution


def convolution(channels: int, outputs: int, groups: int = 1, kernel: int = 3, batch: int = 1, **options: Any) -> list[Launch]:
    shapes = [(batch, 5, 5, channels * groups), (outputs * groups, channels, kernel, kernel), (outputs * groups,)]
    return launches("conv2d", Call(shapes, (0, 1, 2), {"groups": groups, "padding": 1}), **options)


@pytest.mark.parametrize(
    ("columns", "wide"),
    [(4, 16), (16, 16), (20, 32), (32, 32), (36, 64), (48, 64), (64, 64), (68, 16), (80, 16), (84, 32), (96, 32), (100, 64), (128, 64)],
)
def test_conv2d_takes_the_widest_tile_that_is_more_than_half_full(columns, wide):
    """Of 64, 32 and 16 columns; where packs cannot be read there is one tile only."""
    forward, dx, dweight = (
        launch for launch in convolution(columns, columns, kernel=2) if "implicit" in launch.kernel or "gradient<" in launch.kernel
    )
    for launch in (forward, dx, dweight):
        assert launch.kernel.endswith(f"<float, float4, {4 * wide}>") and launch.block == 4 * wide
    assert forward.grid[1] == dweight.grid[1] == -(-columns // wide)
    for dtype, types, block in ((np.float32, "float, float", 256), (np.float64, "double, double", 64)):
        odd = [launch for launch in convolution(columns + 1, columns + 1, kernel=2, dtype=dtype) if "implicit" in launch.kernel]
        assert all(launch.kernel.endswith(f"<{types}, {block}>") and launch.block == block for launch in odd) and len(odd) == 2


@pytest.mark.parametrize(
    ("channels", "outputs", "groups", "few"), [(8, 8, 2, False), (7, 8, 2, True), (8, 7, 2, True), (1, 1, 2, True), (1, 1, 1, False)]
)
def test_conv2d_of_small_groups_takes_a_thread_per_number(channels, outputs, groups, few):
    kernels = [launch.kernel.partition("<")[0] for launch in convolution(channels, outputs, groups)]
    direct = ["conv2d_naive", "conv2d_input_gradient_naive", "conv2d_weight_gradient_direct"]
    assert [name in kernels for name in direct] == [few] * 3
    assert [name in kernels for name in ("conv2d_implicit", "conv2d_weight_gradient")] == [not few] * 2


def test_conv2d_takes_tiles_of_tensor_cores_by_the_channels():
    def taken(inputs: int, outputs: int) -> list[str]:
        kernels = [launch.kernel for launch in convolution(inputs, outputs, precision="tf32")]
        return [name.removeprefix("conv2d_tensor") for name in kernels if "tensor" in name]

    narrow, wide = "<4, 2, 1>", "<2, 4, 1>"  # 64 M pixels, 8 N columns of a block, and products
    assert taken(16, 16) == [narrow, narrow, "_weight_gradient<1, 1>"]
    assert taken(16, 20) == [wide, narrow, "_weight_gradient<2, 1>"]
    assert taken(20, 16) == [narrow, wide, "_weight_gradient<2, 1>"]
    assert taken(20, 20) == [wide, wide, "_weight_gradient<2, 1>"]
    assert taken(8, 6) == taken(6, 8) == taken(7, 8) == []


# --- batch norm


@pytest.mark.parametrize(
    ("training", "relu", "wanted", "backward"),
    [
        (True, True, (0,), ["sums", "sums_merge", "backward"]),
        (True, True, (1,), ["sums", "sums_merge"]),
        (True, True, (2,), ["sums", "sums_merge"]),
        (True, True, (5,), ["backward"]),
        (True, False, (5,), []),
        (False, True, (0,), ["backward"]),
        (False, True, (2,), ["sums", "sums_merge"]),
        (False, False, (0, 1), ["sums", "sums_merge", "backward"]),
    ],
)
def test_batch_norm_computes_only_what_is_wanted(training, relu, wanted, backward):
    shape, vector = (2, 3, 4, 8), (8,)
    statistics = [None, None] if training else [vector, vector]
    kernels = [x.kernel for x in launches("batch_norm", Call([shape, vector, vector, *statistics, shape], wanted, {"relu": relu}))]
    forward = ["statistics", "merge", "forward"] if training else ["given", "forward"]
    assert [name.removeprefix("batch_norm_").partition("<")[0] for name in kernels] == forward + backward
