"""What the operations of this folder ask of their inputs first: that they are of floats. Read next: `linear.py`."""

from __future__ import annotations

from minigrad.tensor import Tensor

__all__ = ["check_floats"]


def check_floats(op: str, names: str, *inputs: Tensor | None) -> None:
    """Raise TypeError, in the name of the operation `op`, for an input that is not of floats; None is one that is not given.

    `names` are the inputs', with blanks between (as keywords they would take half a microsecond of every call). The dtype that is advised is that of
    the first input that is of floats, float32 where there is none.
    """
    for x in inputs:
        if x is not None and x.data.dtype.kind != "f":
            name = names.split()[next(k for k, y in enumerate(inputs) if y is x)]
            wanted = next((str(y.dtype) for y in inputs if y is not None and y.dtype.kind == "f"), "float32")
            raise TypeError(f"{op}: {name} must be a float Tensor, it is {x.dtype}; pass {name}.astype({wanted!r})")
