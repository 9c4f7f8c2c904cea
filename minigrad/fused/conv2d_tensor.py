"""Convolution on tensor cores: how the kernels of `conv2d_tensor.cu` are launched. `conv2d.py` calls them where `minigrad.precision` allows it.

A block works on a tile of pixels, whose images it holds in shared memory; which tiles, and how many slices dweight is summed in, follows from the
shapes alone, so that results are the same on all devices. Letters as in `conv2d.py`.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd, prod
from pathlib import Path
from typing import NamedTuple

from minigrad.backend import cuda
from minigrad.fused.windows import Geometry, Pair

__all__ = ["fill", "fits", "partial_weight_gradient"]


_cuda = cuda.Kernels(Path(__file__).with_name("conv2d_tensor.cu"))
_MOST_SHARED = 64 * 1024  # bytes of a block, so that an H100's multiprocessor has room for three
_BLOCKS = 384  # of the weight's gradient: what 128 multiprocessors hold at a time
_TAPS = 9  # of the kernel, that a block of the weight's gradient sums for


class Tile(NamedTuple):
    """What a block works on: images, rows, columns; how many pixels of the images its windows see; bytes of shared memory."""

    images: int
    rows: int
    columns: int
    seen: int
    shared: int


@lru_cache(maxsize=4096)  # images whose sizes change with every call
def _tile(batch: int, size: Pair, steps: Pair, reach: Pair, most: int, multiple: int, room: tuple[int, int, int]) -> Tile | None:
    """The tile that needs the fewest blocks, then the fewest pixels; None if none fits into shared memory.

    Args:
        batch, size: images; rows and columns of the pixels to be shared out.
        steps, reach: how far apart neighbours' windows are in the image, and how far a window reaches.
        most, multiple: the most pixels of a tile, and what its columns are a multiple of.
        room: bytes for each pixel seen, for each pixel of the tile, and besides.
    """
    (rows, columns), tiles = size, []
    for w in {-(-columns // (n * multiple)) * multiple for n in range(1, columns + 1)}:
        for h in {-(-rows // n) for n in range(1, rows + 1)}:
            whole = h == rows and w >= columns
            for n in range(1, min(batch, most // (h * w)) + 1 if whole else 2):
                seen = n * ((h - 1) * steps[0] + reach[0] + 1) * ((w - 1) * steps[1] + reach[1] + 1)
                shared = seen * room[0] + n * h * w * room[1] + room[2]
                if n * h * w <= most and shared <= _MOST_SHARED:
                    blocks = -(-batch // n) * -(-rows // h) * -(-columns // w)
                    tiles.append((blocks, blocks * seen, Tile(n, h, w, seen, shared)))
    return min(tiles)[2] if tiles else None


class _Product(NamedTuple):
    """How y, or dx, is shared out: phases and pixels of the largest, 8 N columns and 64 M pixels of a block, its tile."""

    phases: Pair
    size: Pair
    wide: int
    most: int
    tile: Tile | None


def _product(target: tuple[int, ...], columns: int, g: Geometry, gradient: bool) -> _Product:
    phases = (min(g.stride[0], target[1]), min(g.stride[1], target[2])) if gradient else (1, 1)
    size = -(-target[1] // phases[0]), -(-target[2] // phases[1])
    apart = [s // gcd(s, d) if gradient else 1 for s, d in zip(g.stride, g.dilation, strict=True)]  # from one tap of a phase to its next
    taps = [-(-k // a) for k, a in zip(g.kernel, apart, strict=True)]
    steps = [a * d // s if gradient else d for a, d, s in zip(apart, g.dilation, g.stride, strict=True)]
    reach = (taps[0] - 1) * steps[0], (taps[1] - 1) * steps[1]
    wide, most = (16, 256) if columns <= 16 else (32, 128)
    room = (64, 0, 64 * prod(taps) * wide)
    return _Product(phases, size, wide, most, _tile(target[0], size, (1, 1) if gradient else g.stride, reach, most, 1, room))


def _weight_tile(dy: tuple[int, ...], inputs: int, outputs: int, g: Geometry) -> tuple[int, Tile | None]:
    """How many times 16 channels a block has, and its tile."""
    times = 1 if max(inputs, outputs) <= 16 else 2
    room = (64 * times + 32, 64 * times + 32, 0)
    return times, _tile(dy[0], (dy[1], dy[2]), g.stride, g.reach, 256 // times, 8, room)


def fits(x: tuple[int, ...], weight: tuple[int, ...], y: tuple[int, ...], g: Geometry) -> bool:
    """Can these kernels compute y of this shape and both gradients, for channels that come by fours? Large kernels do not fit into shared memory."""
    outputs = weight[0] // g.groups
    if 0 in (*x, *y):
        return False
    tiles = _product(y, outputs, g, False).tile, _product(x, weight[1], g, True).tile, _weight_tile(y, weight[1], outputs, g)[1]
    return None not in tiles


def fill(source, matrix, bias, target, g: Geometry, gradient: bool, products: int = 1) -> None:
    """Fill target (B, h, w, G columns) from source (B, h', w', G depth) and matrix (G, kh, kw, columns, depth): y from x, or dx from dy.

    Args:
        source, matrix, bias, target: float32, bias (G columns) or None; depth and columns are multiples of 4, and the arrays lie at 16 bytes.
        g: the convolution's.
        gradient: is dx wanted, not y?
        products: 1 for tf32, 3 for float32.
    """
    columns, depth = matrix.shape[3:]
    phases, size, wide, most, tile = _product(target.shape, columns, g, gradient)
    assert tile is not None
    blocks = prod(-(-n // m) for n, m in zip((target.shape[0], *size), tile[:3], strict=True))
    sizes = (target.shape[0], *source.shape[1:3], *target.shape[1:3], depth, columns, g.groups, *g.numbers, *tile[:4])
    grid, name = (blocks, -(-columns // wide) * g.groups, prod(phases)), f"conv2d_tensor<{most // 64}, {wide // 8}, {products}>"
    _cuda.launch(name, grid, 128, source, matrix, bias, target, gradient, *sizes, shared=tile.shared)


def partial_weight_gradient(x, dy, weight: tuple[int, ...], g: Geometry, products: int = 1):
    """dweight in slices of the output pixels, (S, G, kh kw, I/G, O/G), which are yet to be added up. Arguments as for `fill`."""
    inputs, outputs, taps = weight[1], weight[0] // g.groups, prod(weight[2:])
    times, tile = _weight_tile(dy.shape, inputs, outputs, g)
    assert tile is not None
    channels = -(-inputs // (16 * times)) * -(-outputs // (16 * times))
    tiles = prod(-(-n // m) for n, m in zip(dy.shape[:3], tile[:3], strict=True))
    each = -(-tiles // max(1, _BLOCKS // (channels * -(-taps // _TAPS) * g.groups)))  # tiles of a slice
    slices = -(-tiles // each)
    partial = cuda.array_module().empty((slices * (4 if times == 1 else 1), g.groups, taps, inputs, outputs), x.dtype)
    sizes = (*x.shape[:3], *dy.shape[1:3], inputs, outputs, g.groups, *g.numbers, *tile[:3])
    grid, name = (channels, -(-taps // _TAPS), g.groups * slices), f"conv2d_tensor_weight_gradient<{times}, {products}>"
    _cuda.launch(name, grid, 128, x, dy, partial, *sizes, shared=tile.shared)
    return partial
