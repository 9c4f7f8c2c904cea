"""The CUDA kernels of attention on the emulator: every length and width, every rung of the ladder, strided views, and nothing of N x M numbers.

Small cases by the hundred are in `test_attention.py` (`test_cuda_kernel_equals_definition`); what is here is about tiles and their ends.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, ops
from minigrad.backend import cuda
from minigrad.backend.kernel_source import Source, read
from minigrad.fused import attention as page
from minigrad.fused.attention import scaled_dot_product_attention
from tests import nvrtc
from tests.cuda_device import ORDERS, on_cuda
from tests.support import assert_close, rng

pytestmark = pytest.mark.cuda

FILE = Path(minigrad.__file__).parent / "fused" / "attention.cu"
SHORT = FILE.with_name("attention_short.cu")


def qkv(queries: int, keys: int, width: int, value_width: int | None = None, heads: int = 1, batch: int = 1, seed: int = 0) -> list[np.ndarray]:
    """Query, key, value and the upstream gradient, rounded to float32."""
    random, value_width = rng(seed), value_width or width
    shapes = [(batch, heads, queries, width), (batch, heads, keys, width), (batch, heads, keys, value_width), (batch, heads, queries, value_width)]
    return [random.standard_normal(shape).astype(np.float32) for shape in shapes]


def run(arrays: list[np.ndarray], dtype: type, device: str, **values: Any) -> list[np.ndarray]:
    """The output, and the gradients of query, key and value."""
    *inputs, upstream = (Tensor(x.astype(dtype)).to(device=device) for x in arrays)
    for x in inputs:
        x.requires_grad_()
    masks = {name: Tensor(x).to(device=device) if isinstance(x, np.ndarray) else x for name, x in values.items()}
    out = scaled_dot_product_attention(*inputs, **masks)
    return [t.to(device="cpu").numpy() for t in (out, *minigrad.grad([out], inputs, [upstream]))]


def check(arrays: list[np.ndarray], orders: tuple = ("ascending", "descending"), dtypes: tuple = (np.float32, np.float64), **values: Any) -> None:
    """The kernels equal the definition in float64 to the last digits, and in float32 are about as accurate as it is."""
    with minigrad.definitions():
        exact, single = run(arrays, np.float64, "cpu", **values), run(arrays, np.float32, "cpu", **values)
    with on_cuda(orders):
        if np.float64 in dtypes:
            for k, (ours, reference) in enumerate(zip(run(arrays, np.float64, "cuda", **values), exact, strict=True)):
                assert_close(ours, reference, f"result {k}")
        if np.float32 in dtypes:
            for k, (ours, plain, reference) in enumerate(zip(run(arrays, np.float32, "cuda", **values), single, exact, strict=True)):
                error, allowed = (np.abs(x.astype(np.float64) - reference).max(initial=0) for x in (ours, plain))
                bound = 2 * allowed + 4 * np.finfo(np.float32).eps * np.abs(reference).max(initial=0)
                assert error <= bound, f"result {k}: float32 error {error:.3g} > {bound:.3g} (definition: {allowed:.3g})"


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sequence is short: all take the kernels with a block per tile."""
    monkeypatch.setattr(page, "_SHORT", {"float": (), "double": ()})


@pytest.mark.parametrize("tokens", [1, 2, 23, 24, 25, 48, 65, 71, 72, 73])
def test_any_number_of_tokens(tokens: int) -> None:
    """A block per head up to 24 and up to 72, the latter in float32 only."""
    check(qkv(tokens, tokens, 6, heads=2), dtypes=(np.float32, np.float64) if tokens < 48 else (np.float32,))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65])
def test_any_number_of_tokens_in_tiles(tokens: int) -> None:
    check(qkv(tokens, tokens, 6, heads=2))


def test_the_conformers_sequences_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """17 and 65 tokens, heads of 32: one launch forward, one backward."""
    launched: list[str] = []
    launch = cuda.Kernels.launch
    monkeypatch.setattr(cuda.Kernels, "launch", lambda self, name, *rest, **more: launched.append(name) or launch(self, name, *rest, **more))
    with on_cuda():
        for tokens in (17, 65):
            run(qkv(tokens, tokens, 32), np.float32, "cuda")
    assert launched == [f"attention_{which}_short<float, {threads}, false>" for threads in (32, 96) for which in ("forward", "backward")]


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_gradient_alone(wanted: int) -> None:
    """The kernel that makes all three leaves out what nobody wants, and makes the same numbers."""
    arrays = qkv(26, 30, 8)
    with on_cuda(ORDERS):
        *inputs, upstream = (Tensor(x).to(device="cuda") for x in arrays)
        inputs[wanted].requires_grad_()
        (alone,) = minigrad.grad([scaled_dot_product_attention(*inputs)], [inputs[wanted]], [upstream])
        together = run(arrays, np.float32, "cuda")[1 + wanted]
        np.testing.assert_array_equal(alone.to(device="cpu").numpy(), together)


def test_many_tokens() -> None:
    """Three query tiles of 96 and nine key tiles, each last one with one row."""
    with on_cuda(build="plain"):
        ours = run(qkv(257, 257, 8), np.float64, "cuda")
    with minigrad.definitions():
        for k, (x, reference) in enumerate(zip(ours, run(qkv(257, 257, 8), np.float64, "cpu"), strict=True)):
            assert_close(x, reference, f"result {k}")


@pytest.mark.parametrize(("queries", "keys"), [(1, 70), (70, 1), (17, 33), (40, 20)])
def test_more_keys_than_queries_and_fewer(queries: int, keys: int) -> None:
    check(qkv(queries, keys, 5, 3))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("queries", "keys"), [(17, 33), (40, 20)])
def test_more_keys_than_queries_and_fewer_in_tiles(queries: int, keys: int) -> None:
    check(qkv(queries, keys, 5, 3), dtypes=(np.float32,))


@pytest.mark.parametrize(("width", "value_width"), [(1, 1), (31, 32), (32, 32), (33, 7), (64, 64), (7, 65), (128, 128), (96, 127)])
def test_any_head_width(width: int, value_width: int) -> None:
    check(qkv(18, 21, width, value_width), dtypes=(np.float32,), orders=("ascending",))


@pytest.mark.parametrize("width", [40, 72])
def test_a_larger_score_in_a_second_tile_of_keys_fades_what_wide_heads_have_summed(width: int) -> None:
    """In all 64 or 128 columns of the kernel. A tile has 32 keys."""
    query, key, value, upstream = qkv(5, 34, width)
    key[:, :, 33] *= 4
    check([query, key, value, upstream], dtypes=(np.float32,), orders=("ascending",))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wider_heads_take_the_kernels_with_a_thread_per_row(dtype: type) -> None:
    check(qkv(5, 4, 130, 131, heads=2), dtypes=(dtype,))


@pytest.mark.parametrize("values", ["plain", "bias", "allowed", "nowhere", "dropout", "dropout of floats"])
def test_every_rung_of_the_ladder_computes_the_same(monkeypatch: pytest.MonkeyPatch, values: str) -> None:
    random = rng(3)
    arrays = qkv(19, 35, 12, 8, heads=2, batch=2)
    options: dict[str, Any] = {
        "plain": {"scale": 0.3},
        "bias": {"attn_mask": random.uniform(-1, 1, (2, 1, 19, 35)).astype(np.float32)},
        "allowed": {"attn_mask": random.random((19, 35)) < 0.4},
        "nowhere": {"attn_mask": np.arange(19)[:, None] % 2 == np.zeros(35)},
        "dropout": {"dropout_mask": random.random((2, 2, 19, 35)) < 0.7, "dropout_p": 0.3},
        "dropout of floats": {"dropout_mask": (random.random((2, 2, 19, 35)) < 0.7).astype(np.float32), "dropout_p": 0.3},
    }[values]
    with on_cuda(ORDERS):
        short = run(arrays, np.float32, "cuda", **options)
        monkeypatch.setattr(page, "_SHORT", {"float": ()})
        tiles = run(arrays, np.float32, "cuda", **options)
        monkeypatch.setattr(page, "_WIDTHS", {"float": ()})
        naive = run(arrays, np.float32, "cuda", **options)
    with minigrad.definitions():
        expected = run(arrays, np.float32, "cpu", **options)
    for which, results in {"a block per head": short, "tiles": tiles, "a thread per row": naive}.items():
        for k, (x, z) in enumerate(zip(results, expected, strict=True)):
            assert_close(x, z, f"{which}, result {k}", 3e-6)


@pytest.mark.parametrize("tokens", [{"float": (24, 72), "double": (24,)}, {"float": (), "double": ()}], ids=["short", "tiles"])
def test_scores_of_some_thousand_lose_nothing_in_backward(monkeypatch: pytest.MonkeyPatch, tokens: dict) -> None:
    """What is kept is the largest score and the sum: the logarithm of their product would have lost the sum's digits."""
    monkeypatch.setattr(page, "_SHORT", tokens)
    check(qkv(20, 40, 4), scale=300.0)


@pytest.mark.parametrize("tokens", [{"float": (24, 72)}, {"float": ()}], ids=["short", "tiles"])
def test_a_saturated_query_has_no_gradient_at_all(monkeypatch: pytest.MonkeyPatch, tokens: dict) -> None:
    """Its one weight is 1: the gradient of the scores is P (dP - sum P dP) = 0, and not what rounding leaves of it, times a scale of 1,000."""
    monkeypatch.setattr(page, "_SHORT", tokens)
    query, key, value, upstream = qkv(3, 3, 5)
    query[...], key[...] = np.eye(5, dtype=np.float32)[:3], np.eye(5, dtype=np.float32)[:3]
    keep = np.ones((1, 1, 3, 3), bool)
    with on_cuda():
        _, dquery, dkey, _ = run([query, key, value, upstream], np.float32, "cuda", scale=1000.0, dropout_mask=keep, dropout_p=0.3)
    assert not dquery.any() and not dkey.any()


@pytest.mark.parametrize("tokens", [{"float": (24, 72)}, {"float": ()}], ids=["short", "tiles"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_stays_in_its_row(monkeypatch: pytest.MonkeyPatch, value: float, tokens: dict) -> None:
    monkeypatch.setattr(page, "_SHORT", tokens)
    query, key, values, upstream = qkv(20, 40, 4)
    query[0, 0, 7] = value
    with on_cuda(), np.errstate(invalid="ignore"):
        ours = run([query, key, values, upstream], np.float32, "cuda")[0]
    assert np.isnan(ours[0, 0, 7]).all()
    assert np.isfinite(np.delete(ours, 7, axis=2)).all()


@pytest.mark.parametrize("tokens", [{"float": (24, 72)}, {"float": ()}], ids=["short", "tiles"])
def test_a_mask_of_the_lowest_finite_number_is_finite(monkeypatch: pytest.MonkeyPatch, tokens: dict) -> None:
    """Where it is added everywhere, it leaves nothing of the scores: the query reads the mean. `test_attention.py` asks PyTorch."""
    monkeypatch.setattr(page, "_SHORT", tokens)
    arrays = qkv(3, 5, 4)
    mask = np.zeros((3, 5), np.float32)
    mask[1], mask[2, ::2] = np.finfo(np.float32).min, np.finfo(np.float32).min
    with on_cuda():
        ours = run(arrays, np.float32, "cuda", attn_mask=mask)
    np.testing.assert_allclose(ours[0][0, 0, 1], arrays[2][0, 0].mean(0), rtol=0, atol=2e-7)
    for k, (x, cpu) in enumerate(zip(ours, run(arrays, np.float32, "cpu", attn_mask=mask), strict=True)):
        assert_close(x, cpu, f"result {k}", 2e-6)


@pytest.mark.parametrize("tokens", [{"float": (24, 72)}, {"float": ()}], ids=["short", "tiles"])
@pytest.mark.parametrize("keys", [5, 24])
def test_a_query_whose_scores_are_all_minus_infinity_gets_0(monkeypatch: pytest.MonkeyPatch, keys: int, tokens: dict) -> None:
    """However many zeros the kernel puts beside the keys; as on the CPU."""
    monkeypatch.setattr(page, "_SHORT", tokens)
    arrays = qkv(3, keys, 4)
    arrays[0][0, 0, 1, 0], arrays[1][..., 0] = math.inf, -1
    with np.errstate(invalid="ignore"):
        expected = run(arrays, np.float32, "cpu")
    with on_cuda():
        ours = run(arrays, np.float32, "cuda")
    for k, (x, cpu) in enumerate(zip(ours, expected, strict=True)):
        np.testing.assert_allclose(x, cpu, rtol=0, atol=2e-6, err_msg=f"result {k}")
    assert not ours[0][0, 0, 1].any() and not ours[1][0, 0, 1].any() and np.isfinite(ours[3]).all()


@pytest.mark.emulator
@pytest.mark.parametrize("tokens", [{"float": (24, 72)}, {"float": ()}], ids=["short", "tiles"])
@pytest.mark.parametrize(("dim", "heads"), [(8, 2), (12, 4)])  # head widths of 4, read as float4, and of 3
def test_views_of_the_qkv_buffer_are_read_in_place(monkeypatch: pytest.MonkeyPatch, dim: int, heads: int, tokens: dict) -> None:
    """No input is copied: what is allocated is the output and two numbers for every row; in backward an array that the three gradients are slices of
    (each has its own where not all are wanted), and for tiles one more number."""
    monkeypatch.setattr(page, "_SHORT", tokens)
    x, upstream = rng(1).standard_normal((2, 3, 5, heads, dim // heads)), rng(2).standard_normal((2, 5, heads, dim // heads)).swapaxes(1, 2)
    buffer = np.moveaxis(x, 1, 2)  # (B, N, 3, h, D)
    parts = [np.ascontiguousarray(buffer[:, :, k].swapaxes(1, 2)) for k in range(3)]
    with minigrad.definitions():
        expected = run([*parts, upstream], np.float64, "cpu")
    with on_cuda(ORDERS) as device:
        on_device = Tensor(np.ascontiguousarray(buffer).astype(np.float32)).to(device="cuda").data
        query, key, value = (on_device[:, :, k].transpose(0, 2, 1, 3) for k in range(3))
        dy = cuda.array_module().asarray(np.ascontiguousarray(upstream.swapaxes(1, 2)).astype(np.float32)).swapaxes(1, 2)
        assert not query.flags.c_contiguous and not dy.flags.c_contiguous
        before = device.allocations
        out, saved = page.cuda_forward(query, key, value, None, None, 0.0, None)
        assert device.allocations - before == 3
        more = not tokens["float"]
        before = device.allocations
        gradients = page.cuda_backward(dy, saved, (True, True, True, False, False))[:3]
        assert device.allocations - before == 1 + more
        assert all(array.base is gradients[0].base for array in gradients) and gradients[0].base.shape == buffer.shape
        before = device.allocations
        two = page.cuda_backward(dy, saved, (True, True, False, False, False))[:3]
        assert device.allocations - before == 2 + more and two[2] is None
        for array in (out, *two[:2]):
            assert array.swapaxes(1, 2).flags.c_contiguous  # merging the heads is a view
        for array, alone in zip(gradients, two[:2], strict=False):
            np.testing.assert_array_equal(array.get(), alone.get())
        ours = [array.get() for array in (out, *gradients)]
    for k, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert_close(a, b, f"result {k}", 2e-6)


@pytest.mark.parametrize("rung", ["short", "tiles", "naive"])
@pytest.mark.parametrize("width", [4, 3])
def test_unbind_gets_the_slices_of_one_array(monkeypatch: pytest.MonkeyPatch, rung: str, width: int) -> None:
    """The gradient of what query, key and value were cut from is written by the kernels, not stacked; it has the bits of gradients that lie apart."""
    if rung != "short":
        monkeypatch.setattr(page, "_SHORT", {"float": ()})
    if rung == "naive":
        monkeypatch.setattr(page, "_WIDTHS", {"float": ()})
    x, upstream = rng(1).standard_normal((2, 19, 3, 2, width)).astype(np.float32), rng(2).standard_normal((2, 2, 19, width)).astype(np.float32)
    with on_cuda(ORDERS):
        qkv, dy = Tensor(x).to(device="cuda").requires_grad_(), Tensor(upstream).to(device="cuda")
        parts = [part.transpose(0, 2, 1, 3) for part in qkv.unbind(2)]
        leaves = [Tensor(part.data.copy(), requires_grad=True) for part in parts]
        apart = minigrad.grad([scaled_dot_product_attention(*leaves)], leaves, [dy])
        assert all(g.data.base is not apart[0].data.base and g.data.swapaxes(1, 2).flags.c_contiguous for g in apart[1:])
        expected = np.stack([g.data.get().swapaxes(1, 2) for g in apart], 2)
        monkeypatch.setattr(np, "stack", None)
        (gradient,) = minigrad.grad([scaled_dot_product_attention(*parts)], [qkv], [dy])
        assert gradient.data.flags.c_contiguous
        np.testing.assert_array_equal(gradient.data.get(), expected)


def test_unbind_stacks_what_is_not_all_of_one_array() -> None:
    """Slices in another order, a copy among them, one missing; by the rule on arrays, on the device."""
    rule = ops.unbind.array_rules["x"]
    with on_cuda():
        whole = cuda.array_module().asarray(rng(0).standard_normal((3, 3, 3)))
        first, second, third = (whole[:, k] for k in range(3))
        assert rule((first, second, third), 1) is whole
        for g in ((second, first, third), (first, None, third), (first, second, third.copy()), (first, second, third.T)):
            stacked = rule(g, 1)
            assert stacked.base is None or stacked.base is not whole
            np.testing.assert_array_equal(stacked.get(), np.stack([np.zeros((3, 3)) if x is None else x.get() for x in g], 1))


@pytest.mark.emulator
def test_no_array_of_all_scores_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 300 tokens of width 2 the largest array that is asked for is a gradient."""
    sizes: list[int] = []
    arrays = [Tensor(x.astype(np.float32)) for x in qkv(300, 300, 2)]
    with on_cuda(build="plain"):
        cp = cuda.array_module()
        *inputs, upstream = (x.to(device="cuda") for x in arrays)
        for x in inputs:
            x.requires_grad_()
        empty = cp.empty
        monkeypatch.setattr(cp, "empty", lambda shape, *rest: sizes.append(math.prod(shape)) or empty(shape, *rest))
        out = scaled_dot_product_attention(*inputs)
        minigrad.grad([out], inputs, [upstream])
    assert max(sizes) == 600


@pytest.mark.parametrize("shapes", [(0, 2, 3, 3), (2, 0, 3, 3), (1, 2, 0, 3)])
def test_nothing_to_do(shapes: tuple[int, int, int, int]) -> None:
    batch, heads, queries, keys = shapes
    check(qkv(queries, keys, 4, heads=heads, batch=batch))


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("file", "stores_of"),
    [
        (FILE, {"attention_forward<float, 32>": 4, "attention_backward<float, 64, true>": 16}),
        (SHORT, {"attention_forward_short<float, 96, false>": 6, "attention_backward_short<float, 96, false>": 18}),
    ],
    ids=["tiles", "short"],
)
@pytest.mark.skipif("MINIGRAD_EMULATOR" in os.environ, reason="NVRTC compiles the same for every build of the emulator")
def test_rows_move_sixteen_bytes_at_a_time(file: Path, stores_of: dict[str, int]) -> None:
    source = read(file)
    compiled = nvrtc.compile_with_nvrtc(Source(source.name, source.text, {name: source.kernels[name] for name in stores_of}), "sm_80")
    for name, stores in stores_of.items():
        ptx = compiled.ptx_of(name)
        assert "ld.global.nc.v4.f32" in ptx and "ld.shared.v4.f32" in ptx and "st.shared.v4.f32" in ptx, name
        assert ptx.count("st.global.v4.f32") == stores, name  # all that a thread stores
