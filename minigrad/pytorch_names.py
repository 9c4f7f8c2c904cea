"""What one writes here for the methods of PyTorch's tensors that Tensor has not: the advice of its AttributeError.

x is the tensor; what stands in backticks is code, and each piece of it is run by a test, beside PyTorch's method. Read next: `modes.py`.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["INSTEAD", "Missing"]


class Missing:
    """Stands in the class where PyTorch has a method: asked for, it raises an AttributeError that says what to write instead.

    No `__getattr__`, as Python then takes longer for every attribute that is there, a tenth of the call of a small operation.
    """

    def __init__(self, name: str):
        self.name = name

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        message = f"{owner.__name__} has no attribute {self.name!r}, which PyTorch's has; write {INSTEAD[self.name]}"
        raise AttributeError(message, name=self.name, obj=owner if instance is None else instance)


def _write(value: str) -> str:
    return f"`with minigrad.no_grad(): x.copy_({value})`"


_GRADIENT = "`minigrad.grad(score, x)[0]` for the gradient of a tensor that is no leaf"

INSTEAD = {
    # shapes
    "view": "`x.reshape(shape)`",
    "view_as": "`x.reshape(y.shape)`",
    "reshape_as": "`x.reshape(y.shape)`",
    "ravel": "`x.flatten()`",
    "permute": "`x.transpose(axes)`",
    "t": "`x.T`",
    "mT": "`x.swapaxes(-1, -2)`",
    "unsqueeze": "`x[:, None]`, with None where the new axis is to be",
    "squeeze": "`x.reshape(shape)`, where the shape leaves out the axes of length 1",
    "expand": "`x.broadcast_to(shape)`",
    "expand_as": "`x.broadcast_to(y.shape)`",
    "repeat": "`F.concatenate([x] * n, axis)`, once for each axis",
    "split": "`x[:, :n], x[:, n:]`",
    "chunk": "`x[:, :n], x[:, n:]`",
    "flip": "`x[:, ::-1]`",
    "index_select": "`x[:, indices]`",
    "contiguous": "`x`, since operations take any strides",
    "dim": "`x.ndim`",
    "numel": "`x.size`",
    "nelement": "`x.size`",
    # devices and dtypes
    "cpu": '`x.to(device="cpu")`',
    "cuda": '`x.to(device="cuda")`',
    "is_cuda": '`x.device == "cuda"`',
    "float": "`x.to(dtype=np.float32)`",
    "double": "`x.to(dtype=np.float64)`",
    "int": "`x.to(dtype=np.int32)`",
    "long": "`x.to(dtype=np.int64)`",
    "bool": "`x != 0`",
    "type": "`x.to(dtype=dtype)`",
    "type_as": "`x.to(dtype=y.dtype)`",
    "is_floating_point": '`x.dtype.kind == "f"`',
    # arithmetic
    "add": "`x + y`",
    "sub": "`x - y`",
    "mul": "`x * y`",
    "div": "`x / y`",
    "pow": "`x ** y`",
    "neg": "`-x`",
    "square": "`x * x`",
    "reciprocal": "`1 / x`",
    "rsqrt": "`x ** -0.5`",
    "softmax": "`F.softmax(x, axis)`",
    "log_softmax": "`F.log_softmax(x, axis)`",
    "clamp": "`x.clip(low, high)`",
    "clamp_min": "`x.clip(low)`",
    "clamp_max": "`x.clip(None, high)`",
    "maximum": "`F.maximum(x, y)`",
    "minimum": "`F.minimum(x, y)`",
    "matmul": "`x @ y`",
    "mm": "`x @ y`",
    "bmm": "`x @ y`",
    "dot": "`x @ y`",
    # along an axis
    "amax": "`x.max(axis)`",
    "amin": "`x.min(axis)`",
    "argmin": "`np.argmin(x.numpy(), axis)`",
    "std": "`x.var(axis).sqrt()`, which divides by n where PyTorch divides by n - 1",
    "norm": "`(x * x).sum().sqrt()`",
    "sort": "`np.sort(x.numpy(), axis)`, which has no gradient",
    "any": "`x.numpy().any()`",
    "all": "`x.numpy().all()`",
    # comparisons and masks
    "eq": "`x == y`",
    "ne": "`x != y`",
    "gt": "`x > y`",
    "ge": "`x >= y`",
    "lt": "`x < y`",
    "le": "`x <= y`",
    "isnan": "`x != x`",
    "isfinite": "`F.isfinite(x)`",
    "logical_not": "`F.logical_not(x)`",
    "logical_and": "`F.logical_and(x, y)`",
    "logical_or": "`F.logical_or(x, y)`",
    "masked_fill": "`F.where(mask, value, x)`",
    "where": "`F.where(mask, x, y)`",
    "gather": "`F.gather(x, indices, axis)`",
    # copies and new ones
    "clone": "`x * 1` for a copy that passes gradients on, or `Tensor(x)`",
    "tolist": "`x.numpy().tolist()`",
    "new_tensor": "`Tensor(array)`",
    "new_zeros": "`Tensor(np.zeros(shape, x.dtype))`",
    "new_ones": "`Tensor(np.ones(shape, x.dtype))`",
    "new_full": "`Tensor(np.full(shape, value, x.dtype))`",
    # writing in place
    "zero_": _write("0"),
    "fill_": _write("value"),
    "add_": _write("x + y"),
    "sub_": _write("x - y"),
    "mul_": _write("x * y"),
    "div_": _write("x / y"),
    "clamp_": _write("x.clip(low, high)"),
    "clip_": _write("x.clip(low, high)"),
    "masked_fill_": "`with minigrad.no_grad(): x[mask] = value`",
    "normal_": _write("generator.standard_normal(x.shape)") + ", where the generator is np.random.default_rng(seed)",
    "uniform_": _write("generator.uniform(low, high, x.shape)") + ", where the generator is np.random.default_rng(seed)",
    "detach_": "`x = x.detach()`",
    # the graph
    "grad_fn": "`x.node`",
    "retain_grad": _GRADIENT,
    "register_hook": f"{_GRADIENT}; there are no hooks",
}
"""By the name in PyTorch."""
