"""What the operations of this folder ask of their inputs first: that they are of floats. Read next: `linear.py`."""

from __future__ import annotations

from minigrad.tensor import Tensor

__all__ = ["check_floats"]


def check_floats(op: str, **inputs: Tensor | None) -> None:
    """Raise TypeError, in the name of the operation `op`, for an input that is not of floats; None is one that is not given.

    The dtype it advises is that of the first input that is of floats, float32 where there is none.
    """
    for name, x in inputs.items():
        if x is not None and x.data.dtype.kind != "f":
            wanted = next((str(y.dtype) for y in inputs.values() if y is not None and y.dtype.kind == "f"), "float32")
            raise TypeError(f"{op}: {name} must be a float Tensor, it is {x.dtype}; pass {name}.astype({wanted!r})")
