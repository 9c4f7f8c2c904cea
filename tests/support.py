"""What the tests share: comparing an operation with PyTorch in every way it can be run, and drawing arrays.

`check_op` runs one operation by its definition and by its kernels, forward, backward and twice backward, and compares with a PyTorch function.
Read next: any file in tests/fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigrad
from minigrad import Tensor
from minigrad.op import Fused

RELATIVE = 1e-11  # of the largest term: in float64 a bug shows at any size


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    """A float64 tensor that requires grad, with numbers between 0.5 and 1.5: away from the kinks and poles at 0."""
    return Tensor(rng(seed).uniform(0.5, 1.5, shape), requires_grad=True)


def arrays(shape: Any, low: float = -2.0, high: float = 2.0) -> st.SearchStrategy[np.ndarray]:
    """Float64 arrays of a shape (or of a strategy of shapes): random numbers between low and high, reproducible from one drawn seed."""
    shapes = shape if isinstance(shape, st.SearchStrategy) else st.just(shape)
    return st.builds(lambda s, seed: rng(seed).uniform(low, high, s), shapes, st.integers(0, 2**32 - 1))


def shapes(min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return hnp.array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side)


def assert_close(ours: Any, reference: Any, what: str = "", relative: float = RELATIVE, terms: float | None = None) -> None:
    """Equal shapes, and values within `relative` of the largest reference value (or of `terms`, where larger terms cancelled)."""
    ours, reference = _plain(ours), _plain(reference)
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


def _plain(x: Any) -> np.ndarray:
    if isinstance(x, Tensor):
        return x.numpy()
    return x.detach().numpy(force=True) if isinstance(x, torch.Tensor) else np.asarray(x)


def _several(result: Any) -> list:
    return list(result) if isinstance(result, tuple | list) else [result]


def check_op(
    op: Callable,
    torch_fn: Callable,
    inputs: Sequence[np.ndarray | None],
    values: dict[str, Any] | None = None,
    needs: Sequence[bool] | None = None,
    differentiable: int = 1,
    second: bool = True,
    seed: int = 0,
    relative: float = RELATIVE,
) -> None:
    """Compare `op(*inputs, **values)` with `torch_fn(*torch_inputs)`: outputs, gradients for a random upstream gradient, and the gradients of a
    random product of these.

    Args:
        op: a fused operation, a primitive, or any function of Tensors.
        torch_fn: takes torch tensors in the order of the inputs (None where None); transposes layouts inside.
        inputs: float64 arrays take part in the derivative; integer and boolean arrays do not.
        needs: which inputs require grad; by default all float64 ones.
        differentiable: how many of the outputs, from the first on, carry gradient.
        second: also compare the second derivative.

    Each way of running is compared: by kernel and by definition, and with the arrays non-contiguous. It is also checked that neither inputs nor
    the upstream gradient are written to, that gradients share memory with nothing, and that float32 stays float32.
    """
    values = values or {}
    wanted = [x is not None and x.dtype.kind == "f" for x in inputs]
    if needs is not None:
        wanted = [a and b for a, b in zip(wanted, needs, strict=True)]

    reference_inputs = [None if x is None else torch.tensor(x, requires_grad=need) for x, need in zip(inputs, wanted, strict=True)]
    reference_out = _several(torch_fn(*reference_inputs))
    upstream = [rng(seed + 1 + k).uniform(-1, 1, tuple(y.shape)) for k, y in enumerate(reference_out[:differentiable])]
    leaves = [x for x, need in zip(reference_inputs, wanted, strict=True) if need]
    reference_grads = _torch_grads(reference_out[:differentiable], leaves, [torch.tensor(u) for u in upstream], create_graph=second)
    weights = [rng(seed + 100 + k).uniform(-1, 1, tuple(x.shape)) for k, x in enumerate(leaves)]
    if second:
        total = sum((g * torch.tensor(w)).sum() for g, w in zip(reference_grads, weights, strict=True))
        linear = not (isinstance(total, torch.Tensor) and total.requires_grad)
        second_grads = [torch.zeros_like(x) for x in leaves] if linear else _torch_grads([total], leaves, [torch.ones((), dtype=torch.float64)])

    for way, layout in [("kernel", "C"), ("kernel", "strided"), ("definition", "C")]:
        if way == "definition" and not isinstance(op, Fused):
            continue
        what = f"{getattr(op, 'name', op)} by {way} ({layout}), shapes {[None if x is None else x.shape for x in inputs]}, {values}"
        context = minigrad.definitions() if way == "definition" else minigrad.enable_grad()
        with context:
            ours_in = [None if x is None else _laid_out(x, layout, need) for x, need in zip(inputs, wanted, strict=True)]
            before = [None if x is None else np.array(x.data) for x in ours_in]
            ours_out = _several(op(*ours_in, **values))
            for k, (y, reference) in enumerate(zip(ours_out, reference_out, strict=False)):
                assert_close(y, reference, f"{what}: output {k}", relative)
            ours_leaves = [x for x, need in zip(ours_in, wanted, strict=True) if need]
            if not ours_leaves:
                continue
            starts = [Tensor(u) for u in upstream]
            grads = minigrad.grad(ours_out[:differentiable], ours_leaves, starts, retain_graph=True, allow_unused=True)
            for k, (g, reference) in enumerate(zip(grads, reference_grads, strict=True)):
                _check_gradient(g, reference, ours_leaves[k], f"{what}: gradient of input {k}", relative)
            for u, start in zip(upstream, starts, strict=True):
                np.testing.assert_array_equal(start.data, u, err_msg=f"{what}: the upstream gradient was written to")
            for x, then in zip(ours_in, before, strict=True):
                if x is not None:
                    np.testing.assert_array_equal(x.data, then, err_msg=f"{what}: an input was written to")
            held = [g.data for g in grads if g is not None]
            for k, a in enumerate(held):
                others = held[:k] + [s.data for s in starts] + [x.data for x in ours_in if x is not None]
                assert not any(np.shares_memory(a, b) for b in others), f"{what}: a gradient shares memory"
            if second:
                made = minigrad.grad(ours_out[:differentiable], ours_leaves, starts, create_graph=True, allow_unused=True)
                for k, (g, reference) in enumerate(zip(made, reference_grads, strict=True)):
                    _check_gradient(g, reference, ours_leaves[k], f"{what}: gradient of input {k} with create_graph", relative)
                parts = [(g * w).sum() for g, w in zip(made, weights, strict=True) if g is not None and g.requires_grad]
                twice = minigrad.grad(parts, ours_leaves, allow_unused=True) if parts else [None] * len(ours_leaves)
                for k, (g, reference) in enumerate(zip(twice, second_grads, strict=True)):
                    _check_gradient(g, reference, ours_leaves[k], f"{what}: second derivative, input {k}", relative * 100)

    single = [None if x is None else Tensor(x.astype(np.float32) if x.dtype.kind == "f" else x, need) for x, need in zip(inputs, wanted, strict=True)]
    out = _several(op(*single, **values))[:differentiable]
    assert all(y.dtype == np.float32 for y in out), f"{op}: float32 inputs give {[y.dtype for y in out]}"
    singles = [x for x in single if x is not None and x.requires_grad]
    if singles:
        for g in minigrad.grad(out, singles, [Tensor(u.astype(np.float32)) for u in upstream], allow_unused=True):
            assert g is None or g.dtype == np.float32, f"{op}: the gradient of a float32 input is {g.dtype}"


def _torch_grads(outputs: list, leaves: list, upstream: list, create_graph: bool = False) -> list:
    if not leaves:
        return []
    grads = torch.autograd.grad(outputs, leaves, upstream, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return list(grads)


def _check_gradient(ours: Tensor | None, reference: Any, leaf: Tensor, what: str, relative: float) -> None:
    reference = _plain(reference)
    if ours is None:  # the output does not depend on the input at all
        assert not reference.any(), f"{what}: None, reference {reference}"
        return
    assert ours.dtype == leaf.dtype, f"{what}: dtype {ours.dtype} for a {leaf.dtype} tensor"
    assert_close(ours, reference, what, relative)


def _laid_out(array: np.ndarray, layout: str, requires_grad: bool) -> Tensor:
    """A leaf Tensor with the array's values, contiguous or with the strides of a reversed, transposed, every-second-element view."""
    tensor = Tensor(array)
    if layout == "strided" and array.ndim:
        wide = np.zeros(tuple(2 * n for n in array.shape[::-1]), array.dtype)
        view = wide.T[tuple(slice(None, None, 2) for _ in array.shape)][::-1]
        view[...] = array
        tensor.data = view
    return tensor.requires_grad_() if requires_grad else tensor


def check_float32(op: Fused, inputs: Sequence[np.ndarray | None], values: dict[str, Any] | None = None, seed: int = 0) -> None:
    """In float32 the kernel is about as accurate as the definition, in the output and in every gradient.

    Both errors are taken against the definition in float64 on the same rounded numbers: `err(kernel) <= 2 err(definition) + 4 eps max|reference|`.
    The floor is there because a sum taken in another order is sometimes luckier.
    """
    single = [None if x is None else x.astype(np.float32) if x.dtype.kind == "f" else x for x in inputs]

    def run(dtype: type, by_definition: bool) -> list[np.ndarray]:
        tensors = [None if x is None else Tensor(x.astype(dtype), True) if x.dtype.kind == "f" else Tensor(x) for x in single]
        with minigrad.definitions() if by_definition else minigrad.enable_grad():
            y = op(*tensors, **(values or {}))
        upstream = rng(seed).uniform(-1, 1, y.shape).astype(np.float32)
        return [
            y.numpy(),
            *(g.numpy() for g in minigrad.grad([y], [x for x in tensors if x is not None and x.requires_grad], [Tensor(upstream.astype(dtype))])),
        ]

    reference = run(np.float64, True)
    for k, (kernel, definition, exact) in enumerate(zip(run(np.float32, False), run(np.float32, True), reference, strict=True)):
        error, allowed = (np.abs(a.astype(np.float64) - exact).max() for a in (kernel, definition))
        bound = 2 * allowed + 4 * np.finfo(np.float32).eps * np.abs(exact).max()
        assert error <= bound, (
            f"{op.name}, {'output' if k == 0 else f'gradient {k - 1}'}: float32 error {error:.3g} > {bound:.3g} (definition: {allowed:.3g})"
        )
