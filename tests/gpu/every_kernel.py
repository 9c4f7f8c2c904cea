"""Launches every kernel of every `.cu` file on small arrays, and says which ones it has missed: what `make sanitize` runs under NVIDIA's sanitizer.

    python -m tests.gpu.every_kernel                    on a GPU
    python -m tests.gpu.every_kernel --emulator         or without one

The launches are those of tests (each also compares what it gets), chosen so that every instance of every kernel occurs. Device memory comes from
CUDA itself here, not from CuPy's pool: the sanitizer would not see an access past the end of an array that the pool has cut from something larger.
And every launch is done once: the copies by which two are compared would read what nobody has written, and the sanitizer is slow enough.
Read next: `sanitize.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from minigrad import Tensor, nn, optim
from minigrad.backend import cuda
from minigrad.fused.log_softmax import log_softmax
from minigrad.fused.softmax import softmax
from minigrad.nn.norm import BatchNorm2d
from tests.backend import test_cublas, test_cuda_backend
from tests.cuda_device import on_cuda, use_gpu
from tests.fused import test_cuda_attention as attention
from tests.fused import test_cuda_conv as conv
from tests.fused import test_cuda_conv_tensor as conv_tensor
from tests.fused import test_cuda_kernels as kernels
from tests.gpu.compile_all import FILES
from tests.optim import test_cuda_optim
from tests.support import rng

__all__ = ["every_kernel", "missed"]


def calls() -> Iterator[Callable[[], Any]]:
    """What launches them, page by page."""
    for case in conv.TILES:
        yield partial(conv.test_tiles_of_a_convolution, case)
    for case in conv_tensor.CASES:
        yield partial(conv_tensor.test_tf32, case)
        yield partial(conv_tensor.test_three_products_are_as_accurate_as_float32, case)
    yield conv.test_the_numbers_may_be_numpy_s
    yield conv.test_arrays_that_do_not_lie_at_sixteen_bytes_take_the_kernel_for_single_numbers
    for values in ({"padding": 1}, {"groups": 2, "dilation": (2, 1)}):
        yield partial(conv.test_every_rung_of_convolution, values)
    yield conv.test_every_rung_of_linear
    for op in (conv.max_pool2d, conv.avg_pool2d):
        for shape, values in conv.POOLS:
            yield partial(conv.test_pooling, op, shape, values)
            yield partial(conv.test_every_rung_of_pooling, op, shape, values)
    yield partial(conv.test_global_pooling, (2, 5, 9, 33))
    yield conv.test_every_rung_of_global_pooling
    yield partial(conv.test_upsampling, (2, 3, 5, 8), 2)
    yield partial(conv.test_upsampling, (1, 2, 33, 5), (3, 4))
    yield conv.test_every_rung_of_upsampling

    for sizes in ((33, 97), (68, 96)):
        yield partial(kernels.test_layer_norm_is_as_accurate_as_the_definition, *sizes)
    yield partial(kernels.test_every_rung_of_layer_norm_s_ladder_computes_the_same, 6, 20)
    for evaluation in (False, True):
        for sizes in ((600, 12), (530, 5)):
            yield partial(kernels.test_batch_norm_of_several_slices_and_blocks_of_channels, *sizes, evaluation)
    yield partial(kernels.test_every_rung_of_batch_norm_s_ladder_computes_the_same, 33, 8)
    for size in (64, 63):
        yield partial(kernels.check_cuda, kernels.gelu, [rng(1).uniform(-3, 3, size)])
    yield kernels.test_the_naive_gelu_computes_the_same
    for op in (softmax, log_softmax):
        for shape, axis in kernels.ROWS:
            yield partial(kernels.test_softmax_of_rows_of_all_lengths, op, shape, axis)
        yield partial(kernels.test_the_naive_softmax_computes_the_same, op, 20)
    for sizes in ((3, 1030), (5, 70)):
        yield partial(kernels.test_cross_entropy_of_long_rows_and_of_many, *sizes, False, 0.1)
    yield partial(kernels.test_the_naive_cross_entropy_computes_the_same, 10)
    yield _dropout
    yield kernels.test_a_mask_of_dropout_may_start_at_any_number
    yield kernels.test_the_naive_dropout_computes_the_same
    yield kernels.test_a_mask_of_dropout_drawn_on_the_device_is_the_one_that_numpy_draws

    for tokens in (1, 33, 65):
        yield partial(attention.test_any_number_of_tokens, tokens)
    for widths in ((33, 7), (96, 127), (32, 32)):
        yield partial(attention.test_any_head_width, *widths)
    yield _attention
    for dtype in (np.float32, np.float64):
        yield partial(attention.test_wider_heads_take_the_kernels_with_a_thread_per_row, dtype)
        yield partial(test_cuda_backend.test_erf_and_its_gradient_are_the_cpu_s, dtype, (300,))
        for size in (4100, 1025):
            yield partial(test_cuda_backend.test_large_arrays_are_added_by_one_launch, dtype, size, 0)
    yield test_cuda_backend.test_the_naive_sum_is_the_same
    yield test_cuda_backend.test_values_are_added_in_the_order_of_numpy
    yield test_cublas.test_bfloat16_of_every_kind_of_number
    yield partial(test_cublas.test_factors_are_rounded_and_sums_are_not, "bf16", 7, True)
    yield _optimisers
    yield _conformer


def _dropout() -> None:
    """By packs and by single numbers, with masks of booleans and of numbers, in both dtypes."""
    kernels_naive = cuda.Kernels(kernels.FOLDER / "dropout.cu")
    with on_cuda():
        for number in (np.float32, np.float64):
            for shape in ((7, 5, 9), (8, 40)):
                x = rng(1).standard_normal(shape).astype(number)
                for op, of in ((kernels.dropout, shape), (kernels.drop_path, shape[:1])):
                    for kind in (bool, number):
                        mask = (rng(2).uniform(0, 1, of) < 0.7).astype(kind)
                        ours = op(Tensor(x).to(device="cuda"), Tensor(mask).to(device="cuda"), 0.3)
                        np.testing.assert_array_equal(ours.data.get(), op(Tensor(x), Tensor(mask), 0.3).numpy())
        cp = cuda.array_module()
        x, mask, y = cp.asarray(rng(1).standard_normal((2, 300), np.float32)[0]), cp.ones(300, np.float32), cp.empty(300, np.float32)
        kernels_naive.launch("dropout_forward_naive<float, float>", 2, 256, x, mask, y, 300, 2.0)
        np.testing.assert_array_equal(y.get(), 2 * x.get())


def _attention() -> None:
    """With every kind of mask, by each rung, also where the short sequences' kernels would do."""
    for short in (attention.page._SHORT, {"float": (), "double": ()}):
        for values in ("bias", "allowed", "dropout", "dropout of floats"):
            with pytest.MonkeyPatch.context() as changes:
                changes.setattr(attention.page, "_SHORT", short)
                attention.test_every_rung_of_the_ladder_computes_the_same(changes, values)
        with pytest.MonkeyPatch.context() as changes:
            changes.setattr(attention.page, "_SHORT", short)
            random = rng(3)
            for tokens in (17, 33):
                keep = random.random((1, 2, tokens, tokens)) < 0.7
                attention.check(attention.qkv(tokens, tokens, 6, heads=2), dropout_mask=keep, dropout_p=0.3)


def _optimisers() -> None:
    """Every optimiser, clipping, the average, in both dtypes; captured and not."""
    with on_cuda() as device:
        for kind, options in ((optim.AdamW, {}), (optim.SGD, test_cuda_optim.SGD[2])):
            test_cuda_optim.test_steps_are_those_of_the_cpu(device, kind, options, 0.4)
        test_cuda_optim.test_clipping_is_the_cpu_s(device, (np.float64, np.float32), 1.0, 0.5)
        test_cuda_optim.test_the_average_is_the_cpu_s(device)
        module = nn.Linear(5, 3).to(device="cuda")
        optim.EMA(module).update()
        cp = cuda.array_module()
        arrays = [cp.asarray(rng(k).uniform(0.1, 1, 300).astype(np.float32)) for k in range(4)]
        test_cuda_optim.optim.AdamW._kernels.launch("adamw_naive<float>", 2, 256, *arrays, 0.1, 0.9, 0.99, 1e-8, 0.2, 5, 300)  # type: ignore[union-attr]
    test_cuda_optim.test_the_naive_kernel_computes_the_same()
    test_cuda_optim.test_a_whole_captured_training_step(2)


def _conformer() -> None:
    """The training program's own: the batch of a step, its record, the running statistics."""
    from conformer import augment, gpu_steps

    with on_cuda():
        cp = cuda.array_module()
        images, labels = cp.asarray(rng(1).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)), cp.asarray(rng(2).integers(0, 10, 6))
        moved = [rng(3).integers(0, 6, 8), *rng(4).integers(-4, 5, (2, 8)), rng(5).integers(0, 2, 8)]  # image, down, right, whether flipped
        plan = np.stack([*moved, *rng(6).integers(-2, 7, (2, 8)), np.full(8, 3), np.zeros(8, int)], 1).reshape(2, 4, augment.PLAN)  # square: 3 x 3
        place, plan = cp.asarray(np.ones(1, np.uint64)), cp.asarray(plan.astype(np.int32))
        constants = cp.asarray(augment.channel_constants(np.full(3, 0.5), np.full(3, 0.25)))
        for number in (np.float32, np.float64):
            name = {np.float32: "float", np.float64: "double"}[number]
            results = []
            for kernel in [f"augment_naive<{name}>", f"augment<{name}, {name}>", *(["augment<float, float4>"] if name == "float" else [])]:
                x, y = cp.empty((4, 8, 8, 3), number), cp.empty(4, np.int64)
                augment._cuda.launch(kernel, (4, 1), 256, images, labels, plan, place, constants, x, y, 8, 8, 3)
                results.append((x.get(), y.get()))
            for pixels, classes in results[1:]:
                np.testing.assert_array_equal(pixels, results[0][0])
                np.testing.assert_array_equal(classes, results[0][1])
            heads = [cp.asarray(rng(k).standard_normal((4, 10)).astype(number)) for k in range(2)]
            records, counters = cp.zeros((3, 4)), cp.zeros(2, np.uint64)
            gpu_steps._cuda.launch(f"note<{name}>", 1, 1024, *heads, y, cp.asarray(np.array(0.5, number)), records, counters, 4, 10, True, True)
            np.testing.assert_array_equal(counters.get(), 1)
            norm = BatchNorm2d(5).to(device="cuda", dtype=number)
            norm(Tensor(rng(1).standard_normal((2, 3, 3, 5)).astype(number)).to(device="cuda"))
            assert norm.num_batches_tracked is not None and norm.num_batches_tracked.item() == 1


def every_kernel() -> tuple[set[tuple[str, str]], int]:
    """Make all calls. Returns (file, kernel) of every kernel that was launched, and how many launches there were."""
    launched: set[tuple[str, str]] = set()
    count = 0
    found = cuda.Kernels._function

    def function(self: cuda.Kernels, name: str, module: Any) -> Any:
        nonlocal count
        launched.add((self.path.name, name))
        count += 1
        return found(self, name, module)

    settings.register_profile("few", derandomize=True, deadline=None, max_examples=3, suppress_health_check=list(HealthCheck), database=None)
    profile = settings.get_current_profile_name()
    settings.load_profile("few")
    cuda.Kernels._function = function  # type: ignore[method-assign]
    try:
        for number, call in enumerate(calls(), 1):
            name = (call.func if isinstance(call, partial) else call).__name__
            print(f"{number} {name}", flush=True)  # before it: a sanitizer may be stopped in the middle
            call()
    finally:
        cuda.Kernels._function = found  # type: ignore[method-assign]
        settings.load_profile(profile)
    return launched, count


def missed(launched: set[tuple[str, str]]) -> list[str]:
    """The kernels that are not among the launched ones."""
    every = [(file.name, name) for file in FILES for name in cuda.Kernels(file).source.kernels]
    return [f"{name} ({file})" for file, name in every if (file, name) not in launched]


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if "--emulator" not in arguments:
        try:
            use_gpu(True, twice=False)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        cuda.array_module().cuda.set_allocator(None)
    launched, count = every_kernel()
    left = missed(launched)
    print(f"{len(launched)} kernels in {count} launches" + (f"; never launched: {', '.join(left)}" if left else ": all there are"))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
