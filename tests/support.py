"""What the tests share: drawing arrays, and comparing them. Read next: `proofs.py`, how every operation is proven."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minigrad import Tensor, backend
from minigrad.op import REGISTRY, Fused

RELATIVE = 1e-11  # of the largest term: in float64 a bug shows at any size


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    """A float64 tensor that requires grad, with numbers between 0.5 and 1.5: away from the kinks and poles at 0."""
    return Tensor(rng(seed).uniform(0.5, 1.5, shape), requires_grad=True)


def fused_with_kernel(device: str) -> dict[str, Fused]:
    """The library's fused operations that have a kernel for a device, by name; the registry may hold a test's own ones too."""
    own = {name: op for name, op in REGISTRY.items() if isinstance(op, Fused) and op.__module__.startswith("minigrad.fused.")}
    return {name: op for name, op in own.items() if device in op.kernels}


def draws(count: int) -> settings:
    """`@draws(15)` above `@given`: 15 examples where the profile `ci` draws 25, and as many in proportion under the other profiles."""
    return settings(max_examples=max(1, count * settings().max_examples // 25))


def arrays(shape: Any, low: float = -2.0, high: float = 2.0) -> st.SearchStrategy[np.ndarray]:
    """Float64 arrays of a shape (or of a strategy of shapes): random numbers between low and high, reproducible from one drawn seed."""
    shapes = shape if isinstance(shape, st.SearchStrategy) else st.just(shape)
    return st.builds(lambda s, seed: rng(seed).uniform(low, high, s), shapes, st.integers(0, 2**32 - 1))


# --- shapes: mostly of arrays in which mistakes can be seen
#
# Of 25 cases Hypothesis makes the first the simplest there is, the next few little more, and the last ones from those before by repeating parts of
# them. With lengths from 0 upwards most arrays had one element or none, and a broadcast that was wrong for all others was not noticed. Here the
# simplest draw is an array of several elements too, and what is degenerate has its share, `often`.


T = TypeVar("T")


def often(usual: st.SearchStrategy[T], seldom: st.SearchStrategy[T], one_in: int = 6) -> st.SearchStrategy[T]:
    """One time in `one_in` what is `seldom`; `usual` otherwise, also in what counts as the simplest draw. (`a | b` draws each half of the time.)"""
    return st.integers(1, one_in).flatmap(lambda number: seldom if number == one_in else usual)


def lengths(low: int = 2, high: int = 4, lowest: int = 1) -> st.SearchStrategy[int]:
    """A length from low to high, and seldom a lower one, from `lowest`. Several of these make one array: so one in ten."""
    return often(st.integers(low, high), st.integers(lowest, low - 1), 10)


def _full(min_dims: int, max_dims: int, sides: range) -> list[tuple[int, ...]]:
    """All shapes with these lengths, short ones first. Those whose neighbouring axes have different lengths, which show more, are in it twice."""
    found = [shape for dims in range(max(min_dims, 1), max_dims + 1) for shape in product(sides, repeat=dims)]
    return found + [shape for shape in found if all(a != b for a, b in pairwise(shape))]


def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Mostly with 2 or more along every axis, of which there is one or more; seldom any shape within the limits."""
    anything = hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)
    full = _full(min_dims, max_dims, range(max(min_side, 2), max_side + 1))
    return often(st.sampled_from(full), anything) if full else anything


def parts(whole: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The shapes of 2 or more elements that are broadcast to another, `whole`: with axes of length 1, or without the leading ones of these."""
    found = []
    for ones in product((False, True), repeat=len(whole)):
        part = tuple(1 if one else length for one, length in zip(ones, whole, strict=True))
        found += [part[start:] for start in range(len(part)) if prod(part[:start]) == 1]
    return [part for part in dict.fromkeys(found) if part != whole and prod(part) > 1]


def broadcast_shapes(count: int = 2, max_dims: int = 3) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    """Shapes that broadcast: half of them are whole, the others have axes of length 1 or lack the leading ones, so that often each of two is
    broadcast along an axis of the other. Seldom any ones, with axes of length 0 too.
    """

    def of(whole: tuple[int, ...]) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
        smaller = parts(whole)
        return st.tuples(*[st.sampled_from([whole] * len(smaller) + smaller) for _ in range(count)])

    anything = hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=max_dims, min_side=0, max_side=3).map(lambda found: found.input_shapes)
    return often(st.sampled_from(_full(2, max_dims, range(2, 5 if max_dims > 2 else 4))).flatmap(of), anything)


def growing_shapes() -> st.SearchStrategy[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A shape and one of up to 4 axes that it is broadcast to, seldom the same."""

    def of(whole: tuple[int, ...]) -> st.SearchStrategy[tuple[tuple[int, ...], tuple[int, ...]]]:
        return st.tuples(st.sampled_from(parts(whole)), st.just(whole))

    anything = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3)
    grown = st.sampled_from(_full(2, 3, range(2, 5)) + _full(4, 4, range(2, 4))).flatmap(of)
    return often(grown, anything.map(lambda found: (found.input_shapes[0], found.result_shape)))


def assert_close(ours: Any, reference: Any, what: str = "", relative: float = RELATIVE, terms: float | None = None) -> None:
    """Equal shapes, and values within `relative` of the largest reference value (or of `terms`, where larger terms cancelled)."""
    ours, reference = as_numpy(ours), as_numpy(reference)
    if reference.dtype == bool:
        ours, reference = ours.astype(np.int8), reference.astype(np.int8)
    assert ours.shape == reference.shape, f"{what}: shape {ours.shape}, reference {reference.shape}"
    if not reference.size:
        return
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(reference), err_msg=f"{what}: finite in different places")
    finite = np.isfinite(reference)
    np.testing.assert_array_equal(ours[~finite], reference[~finite], err_msg=what)
    if not finite.any():
        return
    error = np.abs(np.subtract(ours, reference, where=finite, out=np.zeros(ours.shape)))  # elsewhere inf - inf would warn
    bound = relative * max(np.abs(reference[finite]).max(), terms or 0.0, 1.0)
    worst = np.unravel_index(error.argmax(), error.shape)
    assert error.max() <= bound, (
        f"{what}: error {error.max():.3g} > {bound:.3g} at {tuple(map(int, worst))}: {ours[worst]!r}, reference {reference[worst]!r}"
    )


def as_numpy(x: Any) -> np.ndarray:
    """The numbers of a Tensor of any device, of a torch tensor, or of an array."""
    if isinstance(x, Tensor):
        return backend.to_device(x.data, "cpu")
    return x.numpy(force=True) if isinstance(x, torch.Tensor) else np.asarray(x)


def normal(*shape: int, seed: int = 1) -> Tensor:
    """A float64 tensor of normally distributed numbers around 0."""
    return Tensor(rng(seed).standard_normal(shape))
