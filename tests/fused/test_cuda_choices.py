"""Where several CUDA kernels compute the same, the one that is meant for the sizes is launched. Only this tells: nothing is computed here.

Read first: `test_cuda_launches.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import minigrad
from minigrad import Tensor
from minigrad.backend import cuda
from minigrad.fused import conv2d, conv2d_tensor
from minigrad.fused.attention import cuda_backward, cuda_forward
from minigrad.fused.dropout import cuda_forward_path
from minigrad.fused.windows import Geometry
from minigrad.op import REGISTRY
from tests.fused.test_cuda_launches import Call
from tests.support import draws


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


@pytest.mark.parametrize("which", range(5))
def test_attention_reads_no_packs_where_one_array_s_rows_do_not_begin_at_sixteen_bytes(monkeypatch: pytest.MonkeyPatch, which: int):
    """Query, key, value, the upstream gradient, or none of them."""
    packs: list[bool] = []
    monkeypatch.setattr(cuda.Kernels, "launch", lambda self, *arguments, shared: packs.append(any(x is True for x in arguments)))
    with cuda.emulated("plain"):
        cp = cuda.array_module()
        *inputs, dy = (cp.ones((2, 1, 5, 8 + (k == which)), np.float32)[..., :8] for k in range(4))
        _, saved = cuda_forward(*inputs, None, None, 0.0, None)
        cuda_backward(dy, saved, [True] * 3)
    assert packs == [which >= 3, which == 4]  # forward reads no upstream gradient


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


def test_dx_of_conv2d_takes_a_thread_for_every_number_where_a_grid_has_too_few_blocks_for_the_phases():
    def of_dx(stride: tuple[int, int]) -> str:
        _, launch = launches("conv2d", Call([(1, 256, 257, 1), (1, 1, 1, 1)], (0,), {"stride": stride}))
        return launch.kernel.partition("<")[0]

    names = [of_dx(stride) for stride in ((256, 256), (255, 257), (256, 2), (2, 2))]
    assert names == ["conv2d_input_gradient_naive", *["conv2d_implicit"] * 3]


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


def test_conv2d_s_weight_gradient_is_sliced_by_the_output_s_pixels():
    """So that about 512 blocks work, each on 128 pixels at least; the slices' sum takes 8 threads a number where there are many."""

    def of(*arguments: int) -> tuple[Launch, Launch, int]:
        noted = [launch for launch in convolution(*arguments[:3], batch=arguments[3]) if "weight_gradient" in launch.kernel]
        first, total = noted
        return first, total, len(total.arguments[0])

    for channels, outputs, groups, batch, tiles in ((8, 8, 1, 30, 1), (8, 8, 1, 164, 1), (8, 20, 32, 100, 32), (8, 20, 32, 2, 32)):
        first, total, slices = of(channels, outputs, groups, batch)
        pixels = 25 * batch
        assert slices == max(1, min(512 // tiles, pixels // 128)) and first.grid == (1, 1, groups * slices)
        assert first.arguments[3] == -(-pixels // slices)
        assert total.grid == -(-outputs * groups * channels * 9 // (32 if slices >= 32 else 256))
    first, _, slices = of(8, 7, 10, 100)  # a thread per number: 70 outputs, 72 weights each
    assert first.grid == (3, 9, slices) and slices == min(-(-512 // 27), 2500 // 128)


def test_conv2d_s_input_gradient_has_blocks_for_every_pixel_of_the_largest_phase():
    for size, blocks in ((16, 1), (17, 2)):  # 2 images of 8 x 8 or 9 x 9 pixels, 128 pixels a block
        call = Call([(2, size, size, 4), (4, 4, 3, 3), None], (0,), {"stride": 2, "padding": 1})
        (dx,) = (launch for launch in launches("conv2d", call)[1:] if "implicit" in launch.kernel)
        assert dx.grid == (blocks, 1, 4)


def test_conv2d_refuses_more_pixels_than_its_kernels_can_number():
    with cuda.emulated("plain"):
        x, weight = np.broadcast_to(np.float32(0), (2, 1 << 15, 1 << 15, 1)), np.zeros((1, 1, 3, 3), np.float32)
        with pytest.raises(ValueError, match=r"conv2d: x of shape \(2, 32768, 32768, 1\) has 2\^31 pixels or more, .*: split the batch"):
            conv2d.cuda_forward(x, weight, None, 1, 1, 1, 1)


def test_conv2d_takes_no_tensor_cores_that_are_not_there(monkeypatch: pytest.MonkeyPatch):
    """Before compute capability 8.0 they take half precision only, and the kernels are not even compiled."""
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "has_tensor_cores", lambda: False)
        assert not any("tensor" in launch.kernel for launch in convolution(8, 8, precision="tf32"))
    assert any("tensor" in launch.kernel for launch in convolution(8, 8, precision="tf32"))
    with cuda.emulated("plain"):
        assert cuda.has_tensor_cores()
        for capability, there in (("75", False), ("80", True), ("90", True), ("120", True)):
            device = type("Device", (), {"compute_capability": capability})
            monkeypatch.setattr(cuda.array_module().cuda, "Device", device)
            assert cuda.has_tensor_cores() is there


def test_conv2d_takes_tensor_cores_only_where_every_group_s_channels_come_by_fours():
    assert not any("tensor" in launch.kernel for launch in convolution(8, 10, groups=2, precision="tf32"))
    assert any("tensor" in launch.kernel for launch in convolution(8, 12, groups=2, precision="tf32"))


def test_conv2d_reads_packs_only_where_every_group_s_channels_come_by_fours():
    """Those of two groups of 10 do together."""

    def packed(channels: int, outputs: int) -> list[bool]:
        return ["float4" in x.kernel for x in convolution(channels, outputs, groups=2) if "implicit" in x.kernel or "weight_gradient<" in x.kernel]

    assert packed(12, 8) == [True] * 3
    assert packed(10, 10) == packed(12, 10) == packed(10, 12) == [False] * 3


geometries = st.builds(
    lambda kernel, stride, dilation, groups: Geometry(kernel, stride, (0, 0), dilation, groups),
    *[st.tuples(st.integers(1, most), st.integers(1, most)) for most in (5, 4, 3)],
    st.integers(1, 3),
)


@draws(60)
@given(geometries, st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)), st.sampled_from([4, 16, 20]), st.booleans())
def test_conv2d_on_tensor_cores_has_room_for_all_pixels_that_a_tile_s_windows_see(g, target, columns, gradient):
    """Counted pixel by pixel, by the definition: output p sees the pixels p stride + k dilation, k = 0 .. kernel - 1; its gradient goes there."""
    product = conv2d_tensor._product(target, columns, g, gradient)
    taps, reach = [], []
    for kernel, stride, dilation, size, phases, most in zip(g.kernel, g.stride, g.dilation, target[1:], product.phases, product.size, strict=True):
        seen = [[k * dilation for k in range(kernel)]]
        if gradient:
            seen = [[-k * dilation // stride for k in range(kernel) if (p - k * dilation) % stride == 0] for p in range(stride)]
        taps.append(max(len(pixels) for pixels in seen))
        reach.append(max(max(pixels) - min(pixels) for pixels in seen if pixels))
        assert phases == (min(stride, size) if gradient else 1) and most == max(len(range(p, size, phases)) for p in range(phases))
    wide = 16 if columns <= 16 else 32
    assert (product.wide, product.most) == (wide, 4096 // wide)
    steps, room = (1, 1) if gradient else g.stride, (64, 0, 64 * wide * taps[0] * taps[1])
    assert product.tile == conv2d_tensor._tile(target[0], product.size, steps, tuple(reach), product.most, 1, room)


@draws(60)
@given(geometries, st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)), st.sampled_from([4, 16, 20]), st.sampled_from([4, 16, 20]))
@example(Geometry((1, 1), (1, 1), (0, 0), (1, 1), 1), (1, 12, 12), 20, 20)  # 144 pixels would fit into shared memory
def test_conv2d_on_tensor_cores_shares_the_output_s_pixels_out_for_the_weight_s_gradient(g, dy, inputs, outputs):
    times, tile = conv2d_tensor._weight_tile((*dy, outputs * g.groups), inputs, outputs, g)
    assert times == (1 if max(inputs, outputs) <= 16 else 2)
    assert tile == conv2d_tensor._tile(dy[0], dy[1:], g.stride, g.reach, 256 // times, 8, (64 * times + 32, 64 * times + 32, 0))


def test_conv2d_on_tensor_cores_needs_room_in_shared_memory_for_each_of_its_three_products():
    def missing(kernel: int, inputs: int, outputs: int, groups: int, dilation: int) -> list[bool]:
        """Of y, dx and dweight: does no tile fit? The output has one pixel."""
        g = Geometry((kernel, kernel), (1, 1), (0, 0), (dilation, dilation), groups)
        side = dilation * (kernel - 1) + 1
        x, weight, y = (1, side, side, inputs * groups), (outputs * groups, inputs, kernel, kernel), (1, 1, 1, outputs * groups)
        tiles = [
            conv2d_tensor._product(y, outputs, g, False).tile,
            conv2d_tensor._product(x, inputs, g, True).tile,
            conv2d_tensor._weight_tile(y, inputs, outputs, g)[1],
        ]
        found = [tile is None for tile in tiles]
        assert conv2d_tensor.fits(x, weight, y, g) == (not any(found))
        return found

    assert missing(3, 8, 8, 1, 1) == [False, False, False]
    assert missing(3, 16, 20, 1, 10) == [False, False, True]
    assert missing(3, 20, 16, 1, 10) == [False, False, True]
    assert missing(3, 16, 16, 1, 10) == [False, False, False]
    assert missing(6, 16, 20, 1, 1) == [True, False, False]
    assert missing(6, 20, 16, 1, 1) == [False, True, False]
    assert missing(6, 16, 16, 2, 1) == [False, False, False]


def test_conv2d_on_tensor_cores_slices_the_weight_s_gradient_for_384_blocks():
    def of(channels: int, outputs: int, batch: int) -> tuple[Launch, int]:
        (launch,) = (x for x in convolution(channels, outputs, batch=batch, precision="tf32") if "tensor_weight_gradient" in x.kernel)
        return launch, len(launch.arguments[2])

    few, _ = of(40, 72, 3)
    pixels, images = 25, few.arguments[-3]
    assert few.grid == (2 * 3, 1, -(-3 // images))  # a tile of the pixels for each slice
    many, slices = of(40, 72, 900)
    assert 192 < 6 * slices <= 384 and many.grid == (6, 1, slices) and pixels * many.arguments[-3] <= 128


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


# --- layer norm


@pytest.mark.parametrize(
    ("channels", "dtype", "kernel"),
    [
        *[(128, np.float32, "float, float4, 1"), (132, np.float32, "float, float4, 2"), (256, np.float32, "float, float4, 2")],
        *[(260, np.float32, "float, float4, 3"), (384, np.float32, "float, float4, 3"), (388, np.float32, "float, float4, 6")],
        *[(768, np.float32, "float, float4, 6"), (772, np.float32, None), (97, np.float32, None)],
        *[(channels, np.float64, f"double, double, {items}") for channels, items in ((32, 1), (33, 2), (64, 2), (65, 3), (96, 3), (97, 6), (192, 6))],
        (193, np.float64, None),
    ],
)
def test_layer_norm_computes_all_gradients_in_one_pass_where_a_warp_can_keep_a_row(channels, dtype, kernel):
    vector = (channels,)
    for wanted in ((0, 1, 2), (0, 1), (0, 2), (0,), (1, 2)):
        kernels = [x.kernel.removeprefix("layer_norm_") for x in launches("layer_norm", Call([(40, channels), vector, vector], wanted), dtype)[1:]]
        if kernel and 0 in wanted and len(wanted) > 1:
            assert kernels[0] == f"backward_all<{kernel}>" and len(kernels) == 2
        else:
            names = ["backward"] * (0 in wanted) + ["columns"] * (1 in wanted or 2 in wanted)
            assert [name.partition("<")[0] for name in kernels if "sum" not in name] == names


@pytest.mark.parametrize(("rows", "slices"), [(15, 1), (32, 2), (8192, 512), (9000, 512)])
def test_layer_norm_s_warps_have_two_rows_each_before_there_are_more_than_512_blocks(rows, slices):
    first, last = launches("layer_norm", Call([(rows, 4), (4,), (4,)], (0, 1, 2)))[1:]
    assert (first.grid, first.block) == (slices, 256)
    assert (last.grid, last.block, last.arguments[2]) == (1, (32, 16), slices)


# --- average pooling


@pytest.mark.parametrize(
    ("width", "forward", "backward"),
    [(32, ((4, 1), (32, 4)), ((64, 1), (128, 1))), (36, ((6, 1), (36, 3)), ((64, 2), (72, 1))), (4, ((1, 1), (4, 32)), ((8, 1), (16, 8)))],
)
def test_avg_pool2d_fills_a_block_with_several_rows_where_one_is_short(width, forward, backward):
    made = launches("avg_pool2d", Call([(2, 32, width, 16)], (0,), {"kernel_size": 4}))
    assert [(launch.grid, launch.block) for launch in made] == [forward, backward]


# --- softmax, cross entropy


@pytest.mark.parametrize(
    ("length", "softmax", "cross_entropy"),
    [(128, "warp<float, float4, 1>", "float, 32"), (1024, "warp<float, float4, 8>", "float, 32"), (1025, "block<float, float>", "float, 256")],
)
def test_softmax_and_cross_entropy_give_a_row_of_up_to_1024_numbers_to_a_warp(length, softmax, cross_entropy):
    for launch in launches("softmax", Call([(5, length)], (0,), {"axis": -1})):
        assert launch.kernel.endswith(softmax) and (launch.grid, launch.block) == ((2, 128) if "warp" in softmax else (5, 256))
    rows = [x for x in launches("cross_entropy", Call([(5, length), np.arange(5)], (0,))) if x.kernel.endswith(f"<{cross_entropy}>")]
    assert rows and all((launch.grid, launch.block) == ((2, 128) if cross_entropy.endswith("32") else (5, 256)) for launch in rows)


# --- drop path


def test_dropout_of_paths_has_no_more_blocks_for_a_sample_than_a_grid_s_second_number_may_be(monkeypatch: pytest.MonkeyPatch):
    """65,535, of 256 threads: a sample of 2^24 + 1 numbers, which come one by one, would want 65,537, and some blocks take two parts."""
    grids: list[tuple] = []
    monkeypatch.setattr(cuda.Kernels, "launch", lambda self, name, grid, *others: grids.append(grid))
    with cuda.emulated("plain"):
        cp = cuda.array_module()
        cuda_forward_path(cp.empty((1, 2**24 + 1), np.float32), cp.ones(1, np.bool_), 0.5)
    assert grids == [(1, 65535)]
