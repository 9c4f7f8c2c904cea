"""Two-dimensional convolution: every window of the image, as one long row, times the weight.

The definition says just that: pad, take the windows, one matrix product. The CPU kernels do the same a few images at a time, so that the windows
written out as rows ("columns", 9 times the image for a 3x3 kernel) stay in the cache; or only what one row of the kernel sees (3 times the image),
where three products are faster than nine copies. Letters: B batch, H W rows and columns of the input, Ho Wo of the output, I O input and output
channels, G groups, kh kw the kernel. Read next: `avg_pool2d.py`, which looks through the same windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, prod

import numpy as np

from minigrad import ops
from minigrad.backend import cublas, cuda, sums
from minigrad.backend.cpu import has_small_products, parallel_rows
from minigrad.fused import conv2d_tensor
from minigrad.fused.floats import check_floats
from minigrad.fused.linear import cuda_backward as linear_backward
from minigrad.fused.linear import cuda_column_sums
from minigrad.fused.linear import cuda_forward as linear_forward
from minigrad.fused.long_rows import along_rows, copies_for
from minigrad.fused.windows import Geometry, Pair, check_pairs
from minigrad.op import fused
from minigrad.tensor import Tensor

__all__ = ["conv2d"]


@fused
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Slide a kernel over the image and take, at each place, its inner product with the window under it.

    y[b, h, w, o] = bias[o] + sum over r, c, i of x[b, stride h + dilation r - padding, stride w + dilation c - padding, i] weight[o, i, r, c]

    Args:
        x: (B, H, W, I).
        weight: (O, I / groups, kh, kw), PyTorch's shape.
        bias: (O,) or None.
        stride: pixels from one window to the next; this, padding and dilation are a number or a pair (rows, columns).
        padding: rows and columns of zeros put on each side.
        dilation: pixels from one element of a window to the next.
        groups: the channels are cut into this many groups, and each group of outputs sees only its group of inputs.

    Returns:
        (B, Ho, Wo, O), with Ho = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1 and Wo alike.

    Raises:
        ValueError, TypeError: shapes, numbers or dtypes do not fit together.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv2d.html (there in NCHW).
    """
    g = Geometry.of(weight, stride, padding, dilation, groups)
    (ph, pw), (kh, kw) = g.padding, g.kernel
    groups, outputs, inputs = g.groups, weight.shape[0] // g.groups, weight.shape[1]             # outputs and inputs of one group
    padded = ops.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))                                    # (B, H + 2 ph, W + 2 pw, I)
    windows = ops.windows(padded, g.kernel, g.stride, g.dilation)                                # (B, Ho, Wo, kh, kw, I)
    batch, rows, columns = windows.shape[:3]
    windows = windows.reshape(batch * rows * columns, kh * kw, groups, inputs).transpose(2, 0, 1, 3)  # (G, B Ho Wo, kh kw, I/G)
    windows = windows.reshape(groups, batch * rows * columns, kh * kw * inputs)                  # (G, B Ho Wo, kh kw I/G)
    matrix = weight.reshape(groups, outputs, inputs, kh * kw).transpose(0, 3, 2, 1)              # (G, kh kw, I/G, O/G)
    matrix = matrix.reshape(groups, kh * kw * inputs, outputs)                                   # (G, kh kw I/G, O/G)
    y = (windows @ matrix).transpose(1, 0, 2)                                                    # (B Ho Wo, G, O/G)
    y = y.reshape(batch, rows, columns, groups * outputs)                                        # (B, Ho, Wo, O)
    return y if bias is None else y + bias


@conv2d.check_shapes
def _check(x, weight, bias, stride, padding, dilation, groups) -> None:
    check_floats("conv2d", "x weight bias", x, weight, bias)
    if x.ndim != 4 or weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(f"conv2d: x is (B, H, W, I) and weight (O, I/groups, kh, kw), got x of shape {x.shape} and weight of shape {weight.shape}")
    check_pairs("conv2d", stride=stride, padding=padding, dilation=dilation)
    if not isinstance(groups, int | np.integer):
        raise ValueError(f"conv2d: groups must be a whole number, it is {groups!r}")
    g = Geometry.of(weight, stride, padding, dilation, groups)
    outputs, inputs = weight.shape[0], weight.shape[1] * g.groups
    if groups < 1 or outputs % g.groups:
        raise ValueError(f"conv2d: groups={groups} does not divide the {outputs} output channels (weight shape {weight.shape})")
    if x.shape[3] != inputs:
        message = f"conv2d: x has {x.shape[3]} channels, weight expects {inputs} (weight shape {weight.shape}{f', groups={groups}' * (g.groups > 1)})"
        if x.shape[1] == inputs:
            message += f"; x of shape {x.shape} looks like (B, C, H, W), images are (B, H, W, C) here: pass x.transpose(0, 2, 3, 1)"
        raise ValueError(message)
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"conv2d: weight has {outputs} output channels, bias has shape {bias.shape} (weight shape {weight.shape})")
    (height, width), (ph, pw) = x.shape[1:3], g.padding
    if min(g.output_size(height, width)) < 1:
        raise ValueError(
            f"conv2d: the window spans {g.reach[0] + 1}x{g.reach[1] + 1} pixels (kernel {g.kernel}, dilation {g.dilation}), "
            f"x with its padding only {height + 2 * ph}x{width + 2 * pw} (x shape {x.shape}, padding {g.padding})"
        )
    if x.shape[0] and 0 in (height, width):
        raise ValueError(f"conv2d: the images have no pixels, there is nothing but padding (x shape {x.shape}, padding {g.padding})")


# --- CPU: the building blocks


COLUMN_BYTES = 1 << 21  # of columns per thread at a time: more leaves the cache, less has the threads wait for the interpreter more often
GRAIN = 1 << 18  # elements to add up that a thread is worth
PRODUCT_GRAIN = 1 << 23  # multiplications that a thread is worth: 4.7 million take 0.09 ms on one and 0.18 ms on two
SMALL_PRODUCT = 1_000_000  # up to this many multiplications OpenBLAS does not first pack its operands, where it has kernels for that
PACKED_PRODUCT = 10_000_000  # elsewhere: the fewest for which packing the weight again does not matter
MOST_ADDED = 1024  # rows that a small product may add up in one running sum, whose rounding error grows with them
LEAST_PIXELS = 64  # of an image, for products of one image: with 16 of 48 channels they take 1.04 times as long, and those for dweight 1.27 times


def windows_of(padded: np.ndarray, g: Geometry) -> np.ndarray:
    """A view (n, Ho, Wo, kh, kw, G, C/G) of images that are padded already: writing to it writes to the images."""
    n, height, width, channels = padded.shape
    rows, columns = g._replace(padding=(0, 0)).output_size(height, width)
    image, row, column, channel = padded.strides
    strides = (image, row * g.stride[0], column * g.stride[1], row * g.dilation[0], column * g.dilation[1], channel * (channels // g.groups), channel)
    return np.ndarray((n, rows, columns, *g.kernel, g.groups, channels // g.groups), padded.dtype, padded, 0, strides)  # as_strided takes 20 us


def by_group(x: np.ndarray, groups: int) -> np.ndarray:
    """(n, H, W, C) as a view (G, n H W, C/G): a matrix per group."""
    return x.reshape(-1, groups, x.shape[3] // groups).swapaxes(0, 1)


def columns_of(x: np.ndarray, g: Geometry, start: int, stop: int, parts: int = 1) -> Iterator[tuple[slice, np.ndarray]]:
    """The windows of images `start` to `stop` written out as rows, a few images at a time: (which images, (G, n Ho Wo, kh kw C/G)).

    The array is one buffer, filled again for the next images; for a pointwise convolution there is nothing to write out, and it is a view of x. Of a
    kernel that is one of so many `parts` there are no more images at a time than of all of it.
    """
    if g.pointwise:
        yield slice(start, stop), by_group(x[start:stop], g.groups)
        return
    _, height, width, channels = x.shape
    (rows, columns), (ph, pw) = g.output_size(height, width), g.padding
    size = rows * columns * g.kernel[0] * g.kernel[1] * channels  # of one image's columns
    step = max(1, min(COLUMN_BYTES // max(parts * size * x.itemsize, 1), stop - start))
    buffer = np.empty(step * size, x.dtype)
    padded = np.zeros((step, height + 2 * ph, width + 2 * pw, channels), x.dtype) if ph or pw else None
    for first in range(start, stop, step):
        images = slice(first, min(first + step, stop))
        n, block = images.stop - first, x[images]
        if padded is not None:
            padded[:n, ph : ph + height, pw : pw + width] = block
            block = padded[:n]
        filled = buffer[: n * size].reshape(g.groups, n, rows, columns, *g.kernel, channels // g.groups)
        filled[...] = windows_of(block, g).transpose(5, 0, 1, 2, 3, 4, 6)
        yield images, filled.reshape(g.groups, n * rows * columns, -1)


def parts_in(g: Geometry, pixels: int, depth: int, width: int) -> int:
    """Into how many parts `parts_of` cuts windows of `depth` channels, for products `width` wide: 1 or, where that is faster, the kernel's kh rows.

    In parts each pixel is copied kw times instead of kh kw times, but there are kh products for each image, whose sums are not BLAS's. With AVX-512,
    forward and backward, 3x3 on 16x16x12 takes 0.80 of the time, on 32x32x16 0.81, on 16x16x32 0.83, on 8x8x64 0.90, on 8x8x24 0.98. In products that
    are larger, BLAS packs the weight for each image: 8x8x96 would take 1.15 times as long. And wide ones would need more memory.
    """
    length = g.kernel[1] * depth
    suits = pixels >= LEAST_PIXELS and pixels * length * width <= SMALL_PRODUCT and width <= min(pixels, length)
    return g.kernel[0] if suits and g.kernel[1] > 1 and g.stride[0] == g.groups == 1 else 1


def parts_of(x: np.ndarray, g: Geometry, start: int, stop: int, parts: int) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """`columns_of` in the parts whose products with those of the weight add up: one, (G, n Ho Wo, kh kw C/G), or kh, (n, Ho Wo, kw C).

    Each row of the kernel sees what the first one sees, some rows of the image further down: the kh parts are views of the same columns.
    """
    if parts == 1:
        for images, columns in columns_of(x, g, start, stop):
            yield images, [columns]
        return
    rows, columns = g.output_size(*x.shape[1:3])
    for images, seen in columns_of(x, g._replace(kernel=(1, g.kernel[1])), start, stop, parts):
        lines = seen.reshape(images.stop - images.start, -1, columns, seen.shape[2])  # (n, H + 2 ph, Wo, kw C)
        yield images, [lines[:, r : r + rows].reshape(len(lines), rows * columns, -1) for r in range(0, g.reach[0] + 1, g.dilation[0])]


def matrices_of(x: np.ndarray, g: Geometry, parts: int) -> np.ndarray:
    """The pixels that belong to the rows of `parts_of`, as a view: (G, n H W, C/G) or (n, H W, C)."""
    return by_group(x, g.groups) if parts == 1 else x.reshape(len(x), -1, x.shape[3])


def add_columns(columns: np.ndarray, g: Geometry, dx: np.ndarray) -> None:
    """The adjoint of `columns_of`: add what each window has for its pixels, (G, n Ho Wo, kh kw C/G), into dx (n, H, W, C), which holds zeros."""
    n, height, width, channels = dx.shape
    ph, pw = g.padding
    padded = np.zeros((n, height + 2 * ph, width + 2 * pw, channels), dx.dtype) if ph or pw else dx
    target = windows_of(padded, g)
    source = columns.reshape(g.groups, *target.shape[:5], channels // g.groups).transpose(1, 2, 3, 4, 5, 0, 6)
    if g.reach[0] < g.stride[0] and g.reach[1] < g.stride[1]:  # no pixel is in two windows
        target[...] = source
    else:
        for r, c in np.ndindex(g.kernel):  # two windows may share a pixel, but never at the same place (r, c)
            target[:, :, :, r, c] += source[:, :, :, r, c]
    if padded is not dx:
        dx[...] = padded[:, ph : ph + height, pw : pw + width]


def multiply(rows: np.ndarray, matrix: np.ndarray, out: np.ndarray) -> None:
    """Write rows @ matrix, (G, M, K) and (G, K, N), into out, some rows at a time: see `_chunk_rows`."""
    chunk = _chunk_rows(matrix.shape[1] * matrix.shape[2])
    whole = rows.shape[1] // chunk * chunk if chunk else 0
    if whole:
        np.matmul(_chunks(rows[:, :whole], chunk), matrix[:, None], out=_chunks(out[:, :whole], chunk))
    if whole < rows.shape[1]:
        np.matmul(rows[:, whole:], matrix, out=out[:, whole:])


def multiply_parts(parts: list[np.ndarray], matrices: np.ndarray, out: np.ndarray) -> None:
    """Write the sum of the products of each part and its matrix into out."""
    multiply(parts[0], matrices[0], out)
    for part, matrix in zip(parts[1:], matrices[1:], strict=True):
        out += part @ matrix


def multiply_transposed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left.T @ right, (G, M, K) and (G, M, N) to (G, K, N), in chunks for the same reason; it is faster with the wider one on the right."""
    if left.shape[2] > right.shape[2]:
        return multiply_transposed(right, left).swapaxes(1, 2)
    chunk = min(_chunk_rows(left.shape[2] * right.shape[2]), MOST_ADDED)
    whole = left.shape[1] // chunk * chunk if 0 < chunk < left.shape[1] else 0
    total = left[:, whole:].swapaxes(1, 2) @ right[:, whole:]
    if whole:
        total += sums.total(_chunks(left[:, :whole], chunk).swapaxes(2, 3) @ _chunks(right[:, :whole], chunk), 1)
    return total


def _chunk_rows(each: int) -> int:
    """How many rows to multiply at a time, at `each` multiplications a row; 0 for all of them.

    With AVX-512, 16384x64 by 64x12 takes 0.19 ms in small products and 0.30 ms in one. With AVX2 every product packs both operands: 8192x96 by 96x24
    takes 0.80 ms in small ones and 0.63 ms in one.
    """
    return (SMALL_PRODUCT if has_small_products() else PACKED_PRODUCT) // each // 64 * 64


def _chunks(rows: np.ndarray, chunk: int) -> np.ndarray:
    """(G, M, K) as (G, M / chunk, chunk, K), a view."""
    return rows.reshape(rows.shape[0], -1, chunk, rows.shape[2])


def _relaid(weight: np.ndarray, groups: int, axes: tuple[int, ...]) -> np.ndarray:
    """A contiguous copy of the weight as (G, O/G, I/G, kh, kw), its axes in another order."""
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(axes).copy()


def _images(x: np.ndarray, g: Geometry) -> np.ndarray:
    """What the threads share out: the images (B, H, W, C), or for a pointwise convolution every pixel as an image of its own."""
    return x.reshape(-1, 1, 1, x.shape[3]) if g.pointwise else x


def _grain(y: np.ndarray, weight: np.ndarray, products: int = 1) -> int:
    """How many images are worth handing to a thread, where it makes so many products of each."""
    return 1 + PRODUCT_GRAIN // max(1, products * y[:1].size * weight[0].size)


# --- CPU: the kernels


def cpu_forward(x, weight, bias, stride, padding, dilation, groups):
    """The columns of a few images, their product with the weight, the next few images; each thread has its share of the batch."""
    g = Geometry.of(weight, stride, padding, dilation, groups)
    result = np.empty((x.shape[0], *g.output_size(*x.shape[1:3]), weight.shape[0]), x.dtype)
    parts = parts_in(g, prod(result.shape[1:3]), *weight.shape[1::-1])
    matrices = _relaid(weight, g.groups, (0, 3, 4, 2, 1)).reshape(parts, g.groups, -1, weight.shape[0] // g.groups)  # (parts, G, kh kw I/G, O/G)
    images, y = _images(x, g), _images(result, g)
    biases = None if bias is None else copies_for(prod(y.shape[:3]), bias)

    def work(start: int, stop: int) -> None:
        for block, columns in parts_of(images, g, start, stop, parts):
            multiply_parts(columns, matrices, out=matrices_of(y[block], g, parts))
            if biases is not None:
                pixels = y[block].reshape(-1, y.shape[3])
                along_rows(np.add, pixels, biases, out=pixels)

    parallel_rows(work, len(images), _grain(y, weight))
    return result, (x, weight, g)


def cpu_backward(dy, saved, needs):
    """The gradients dx and dweight from the columns of dy where these serve both, else from the columns of x; dbias adds up dy."""
    x, weight, g = saved
    dx = dweight = dbias = None
    if needs[0] or needs[1]:
        crop = g.padding[0] > g.reach[0] or g.padding[1] > g.reach[1]  # windows that see nothing but padding
        one_set = g.pointwise or (needs[0] and g.stride == (1, 1) and not crop)
        if needs[0]:
            dx = np.empty_like(x) if one_set else np.zeros_like(x)
        dweight = np.empty_like(weight) if needs[1] else None
        fill = _by_columns_of_dy if one_set else _by_columns_of_x
        fill(_images(x, g), weight, g, _images(dy, g), None if dx is None else _images(dx, g), dweight)
    if needs[2]:
        rows = dy.reshape(-1, dy.shape[3])
        dbias = sum(parallel_rows(lambda start, stop: sums.column_sums(rows[start:stop]), len(rows), 1 + GRAIN // dy.shape[3]))
    return dx, dweight, dbias


def _by_columns_of_dy(x, weight, g, dy, dx, dweight):
    """Fill dx and dweight (where wanted) for windows one pixel apart: one set of columns for both, and nothing to add up: 1.4 to 3.5 times as fast.

    With d the dilation and p the padding, y[u] = sum over k of x[u + d k - p] weight[k]. Hence dx[u] = sum over k of dy[u + p - d k] weight[k]: a
    convolution of dy, padded by reach - p, with the kernel turned by 180 degrees, so columns(dy) @ turned. And dweight[k] = sum over u of
    x[u] dy[u + p - d k]: x.T @ columns(dy), turned.

    Where a window of dy lies beyond its border, it is zeros that are multiplied, and 0 times an infinite number or a NaN is NaN: one of them in x or
    in the weight also spoils entries of dweight or dx that it has no part in, which the definition leaves alone.
    """
    (outputs, inputs, kh, kw), groups = weight.shape, g.groups
    mirrored = g._replace(padding=(g.reach[0] - g.padding[0], g.reach[1] - g.padding[1]))
    parts = parts_in(g, prod(x.shape[1:3]), outputs, inputs)
    turned = _relaid(weight[:, :, ::-1, ::-1], groups, (0, 3, 4, 1, 2)).reshape(parts, groups, -1, inputs)  # (parts, G, kh kw O/G, I/G)

    def products(pixels: np.ndarray, part: np.ndarray) -> np.ndarray:      # (G, I/G, kh kw O/G / parts)
        found = multiply_transposed(pixels, part)
        return found if parts == 1 else found.sum(0)                       # those of each image

    def work(start: int, stop: int) -> np.ndarray:
        total = np.zeros((parts, groups, inputs, kh * kw * outputs // groups // parts), x.dtype)
        for block, columns in parts_of(dy, mirrored, start, stop, parts):
            if dweight is not None:
                for part, sums_of_part in zip(columns, total, strict=True):
                    sums_of_part += products(matrices_of(x[block], g, parts), part)
            if dx is not None:
                multiply_parts(columns, turned, out=matrices_of(dx[block], g, parts))
        return total

    total = np.sum(parallel_rows(work, len(x), _grain(dy, weight, 2)), 0)
    if dweight is not None:
        total = total.transpose(1, 2, 0, 3)                                # (G, I/G, parts, kh kw O/G)
        dweight[...] = total.reshape(groups, inputs, kh, kw, -1)[:, :, ::-1, ::-1].transpose(0, 4, 1, 2, 3).reshape(weight.shape)


def _by_columns_of_x(x, weight, g, dy, dx, dweight):
    """Fill dx and dweight (where wanted) for any windows: y = columns(x) @ matrix, so dmatrix = columns(x).T @ dy and dcolumns = dy @ matrix.T."""
    (outputs, inputs, kh, kw), groups = weight.shape, g.groups
    matrix_t = _relaid(weight, groups, (0, 1, 3, 4, 2)).reshape(groups, outputs // groups, -1)  # (G, O/G, kh kw I/G)

    def work(start: int, stop: int) -> np.ndarray:
        total = np.zeros((groups, kh * kw * inputs, outputs // groups), x.dtype)
        for block, columns in columns_of(x, g, start, stop):
            rows = by_group(dy[block], groups)
            if dweight is not None:
                total += multiply_transposed(columns, rows)
            if dx is not None:
                multiply(rows, matrix_t, out=columns)  # dcolumns, in the buffer of the columns, which are not needed any more
                add_columns(columns, g, dx[block])
        return total

    total = np.sum(parallel_rows(work, len(x), _grain(dy, weight, 2)), 0)
    if dweight is not None:
        dweight[...] = total.reshape(groups, kh, kw, inputs, -1).transpose(0, 4, 3, 1, 2).reshape(weight.shape)


READS = {"x": "weight", "weight": "x", "bias": ""}
conv2d.kernel("cpu", cpu_forward, cpu_backward, fresh=True, reads=READS)


# --- CUDA


_cuda = cuda.Kernels(__file__)
_FEW = 8  # channels of a group


def _few(weight, groups: int) -> bool:
    """Would a tile of a product be mostly empty? Then a thread for every number does better."""
    return groups > 1 and min(weight.shape[0] // groups, weight.shape[1]) < _FEW


def _is_linear(g: Geometry) -> bool:
    return g.pointwise and g.groups == 1


def _tiles(columns: int, length: int, dtype: np.dtype, *arrays) -> tuple[str, int]:
    """Template arguments and columns of a tile, for a product that is this wide, of arrays with rows of a `length`.

    A kernel takes the compiler half a second, so there is one tile only for what networks hardly have: rows that are not packs, and float64.
    """
    number, width = cuda.c_type(dtype), cuda.vector_width(length, *arrays)
    if width == 4:
        wide = next((wide for wide in (64, 32) if columns % wide == 0 or columns % wide > wide // 2), 16)
        return f"float, float4, {4 * wide}", wide
    return (f"{number}, {number}, 256", 64) if number == "float" else (f"{number}, {number}, 64", 16)


def _cuda_implicit(source, matrix, bias, target, g: Geometry, gradient: bool) -> None:
    """Fill target (B, h, w, G columns) from source (B, h', w', G depth) and matrix (G, kh, kw, depth, columns): y from x, or dx from dy."""
    depth, columns = matrix.shape[3:]
    types, wide = _tiles(columns, gcd(depth, columns), target.dtype, source, matrix, target)
    phases = [max(min(s, size), 1) if gradient else 1 for s, size in zip(g.stride, target.shape[1:3], strict=True)]
    rows = target.shape[0] * prod(-(-size // n) for size, n in zip(target.shape[1:3], phases, strict=True))  # of the largest phase
    grid = -(-rows // 128), -(-columns // wide) * g.groups, prod(phases)
    sizes = (target.shape[0], *source.shape[1:3], *target.shape[1:3], depth, columns, g.groups, *g.numbers)
    _cuda.launch(f"conv2d_implicit<{types}>", grid, 4 * wide, source, matrix, bias, target, gradient, *sizes)


def _on_tensor_cores(x_shape: tuple[int, ...], weight, y_shape: tuple[int, ...], g: Geometry, *arrays) -> bool:
    """May the products be less than float32, and are the arrays such that `conv2d_tensor.cu` computes them?"""
    if cublas.current_precision() == "float32" or _few(weight, g.groups) or not cuda.has_tensor_cores():
        return False
    by_fours = cuda.vector_width(gcd(weight.shape[0] // g.groups, weight.shape[1]), *arrays) == 4
    return by_fours and conv2d_tensor.fits(x_shape, weight.shape, y_shape, g)


def _cuda_weight_gradient(x, weight, dy, g: Geometry):
    """dweight in two steps, each with one order of addition: slices of the output pixels, then the slices."""
    cp, number = cuda.array_module(), cuda.c_type(x.dtype)
    if _on_tensor_cores(x.shape, weight, dy.shape, g, x, dy):
        partial = conv2d_tensor.partial_weight_gradient(x, dy, weight.shape, g)
    else:
        partial = _cuda_partial_weight_gradient(x, weight, dy, g)
    dweight, (slices, _, taps, inputs, outputs) = cp.empty(weight.shape, x.dtype), partial.shape
    shares = 8 if slices >= 32 else 1
    grid, sizes = -(-weight.size // (256 // shares)), (slices, shares, weight.size, taps, inputs, outputs)
    _cuda.launch(f"conv2d_weight_gradient_sum<{number}>", grid, 256, partial, dweight, *sizes)
    return dweight


def _cuda_partial_weight_gradient(x, weight, dy, g: Geometry):
    """The first of these steps without tensor cores: (S, G, kh kw, I/G, O/G)."""
    groups, outputs, inputs, rows = g.groups, weight.shape[0] // g.groups, weight.shape[1], prod(dy.shape[:3])
    depth = prod(weight.shape[1:])                                         # K = kh kw I/G
    sizes = (*x.shape[:3], *dy.shape[1:3], inputs, outputs, groups, *g.numbers)
    types, wide = _tiles(outputs, gcd(inputs, outputs), x.dtype, x, dy)
    tiles = (-(-weight.shape[0] // 32), -(-depth // 8)) if _few(weight, groups) else (-(-depth // 128), -(-outputs // wide) * groups)
    slices = max(1, min(-(-512 // prod(tiles)), rows // 128))              # by the shapes alone, not by the device: results are the same on all
    partial = cuda.array_module().empty((slices, groups, depth // inputs, inputs, outputs), x.dtype)
    if _few(weight, groups):
        _cuda.launch(f"conv2d_weight_gradient_direct<{cuda.c_type(x.dtype)}>", (*tiles, slices), (32, 8), x, dy, partial, *sizes)
    else:
        length, grid = -(-rows // slices), (tiles[0], -(-outputs // wide), groups * slices)
        _cuda.launch(f"conv2d_weight_gradient<{types}>", grid, 4 * wide, x, dy, partial, length, *sizes)
    return partial


def cuda_forward(x, weight, bias, stride, padding, dilation, groups):
    """A 1x1 convolution is `linear`; others multiply windows that are put together in shared memory: see conv2d.cu."""
    g = Geometry.of(weight, stride, padding, dilation, groups)
    if _is_linear(g):
        return linear_forward(x, weight.reshape(weight.shape[:2]), bias)[0], (x, weight, g)
    out_shape = (x.shape[0], *g.output_size(*x.shape[1:3]), weight.shape[0])
    if max(prod(x.shape[:3]), prod(out_shape[:3])) >= 1 << 31:
        raise ValueError(f"conv2d: x of shape {x.shape} has 2^31 pixels or more, before or after; the kernels on a GPU number fewer: split the batch")
    y = cuda.array_module().empty(out_shape, x.dtype)                      # (B, Ho, Wo, O)
    if _few(weight, g.groups):
        sizes = (*x.shape[1:3], *y.shape[1:3], weight.shape[1], weight.shape[0] // g.groups, g.groups, *g.numbers)
        _cuda.launch(f"conv2d_naive<{cuda.c_type(x.dtype)}>", -(-y.size // 128), 128, x, weight, bias, y, y.size, *sizes)
    elif _on_tensor_cores(x.shape, weight, y.shape, g, x):
        conv2d_tensor.fill(x, _relaid(weight, g.groups, (0, 3, 4, 1, 2)), bias, y, g, gradient=False)  # the matrix (G, kh, kw, O/G, I/G)
    else:
        _cuda_implicit(x, _relaid(weight, g.groups, (0, 3, 4, 2, 1)), bias, y, g, gradient=False)  # the matrix (G, kh, kw, I/G, O/G)
    return y, (x, weight, g)


def cuda_backward(dy, saved, needs):
    """dx by the same product on dy; dweight in slices; dbias by column sums, as in `linear`."""
    x, weight, g = saved
    if _is_linear(g):
        dx, dweight, dbias = linear_backward(dy, (x, weight.reshape(weight.shape[:2])), needs)
        return dx, None if dweight is None else dweight.reshape(weight.shape), dbias
    dx = None
    if needs[0]:
        dx = cuda.array_module().empty(x.shape, x.dtype)                   # (B, H, W, I)
        phases = prod(min(s, size) for s, size in zip(g.stride, x.shape[1:3], strict=True))
        if _few(weight, g.groups) or phases > 65535:                       # a grid has no more blocks along z
            sizes = (*x.shape[1:3], *dy.shape[1:3], weight.shape[1], weight.shape[0] // g.groups, g.groups, *g.numbers)
            _cuda.launch(f"conv2d_input_gradient_naive<{cuda.c_type(x.dtype)}>", -(-x.size // 128), 128, dy, weight, dx, x.size, *sizes)
        elif _on_tensor_cores(x.shape, weight, dy.shape, g, dy):
            conv2d_tensor.fill(dy, _relaid(weight, g.groups, (0, 3, 4, 2, 1)), None, dx, g, gradient=True)  # the matrix (G, kh, kw, I/G, O/G)
        else:
            _cuda_implicit(dy, _relaid(weight, g.groups, (0, 3, 4, 1, 2)), None, dx, g, gradient=True)  # the matrix (G, kh, kw, O/G, I/G)
    dweight = _cuda_weight_gradient(x, weight, dy, g) if needs[1] else None
    return dx, dweight, cuda_column_sums(dy.reshape(-1, dy.shape[3])) if needs[2] else None


conv2d.kernel("cuda", cuda_forward, cuda_backward, fresh=True, reads=READS)
