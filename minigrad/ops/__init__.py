"""The primitive operations, by family. Each has a forward on arrays and derivative rules on Tensors; see `minigrad/op.py`.

elementwise.py  add, mul, exp, ...; dtype and device; comparisons     reduce.py   sum, mean, max, ...
movement.py     reshape, transpose, pad, windows, unbind, ...         index.py    getitem, gather and their adjoints
matmul.py       the matrix product                                    inputs.py   what becomes of arguments; dtype promotion
"""

# isort: off
from minigrad.ops.inputs import as_array, as_tensor, promote, refuse_lists_with_gradients
from minigrad.ops.elementwise import (
    abs, add, cast, clip, cos, div, equal, erf, exp, expm1, greater, greater_equal, identity, isfinite, less, less_equal, log, log1p, logical_and,
    logical_not, logical_or, logical_xor, maximum, minimum, mul, neg, not_equal, pow, relu, sigmoid, sin, sqrt, sub, tanh, to_device, where,
)  # fmt: skip
from minigrad.ops.movement import (
    broadcast_to, concatenate, flatten, fold, pad, reshape, stack, sum_to, swapaxes, transpose, unbind, windows,
)  # fmt: skip
from minigrad.ops.index import gather, getitem, plain_index, put, scatter_add
from minigrad.ops.matmul import matmul
from minigrad.ops.reduce import argmax, max, mean, min, sum, var
# isort: on

__all__ = [
    "abs", "add", "argmax", "as_array", "as_tensor", "broadcast_to", "cast", "clip", "concatenate", "cos", "div", "equal", "erf", "exp", "expm1",
    "flatten", "fold", "gather", "getitem", "greater", "greater_equal", "identity", "isfinite", "less", "less_equal", "log", "log1p", "logical_and",
    "logical_not", "logical_or", "logical_xor", "matmul", "max", "maximum", "mean", "min", "minimum", "mul", "neg", "not_equal", "pad", "plain_index",
    "pow", "promote", "put", "refuse_lists_with_gradients", "relu", "reshape", "scatter_add", "sigmoid", "sin", "sqrt", "stack", "sub", "sum",
    "sum_to", "swapaxes", "tanh", "to_device", "transpose", "unbind", "var", "where", "windows",
]  # fmt: skip
