"""What the tests share: drawing arrays, and comparing them. Read next: `proofs.py`, how every operation is proven."""

from __future__ import annotations

from typing import Any

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


def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


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
