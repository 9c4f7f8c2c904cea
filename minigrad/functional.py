"""The operations under one roof: `from minigrad import functional as F`. Names are PyTorch's where PyTorch has the operation, else NumPy's.

Where a name is both's, the meaning is NumPy's: `equal` compares element by element, `var` divides by n, `transpose` permutes all axes, and `max`
with an axis gives values only.

Fused operations come from `minigrad/fused`, one page each with its definition and its kernels; primitives from `minigrad/ops`. Images and feature
maps are (B, H, W, C), tokens (B, N, E), parameters have PyTorch's shapes. All of these are pure: dropout takes its mask, batch norm returns its
statistics; the layers in `minigrad/nn` draw and keep them. Read next: `minigrad/fused/linear.py`, then `layer_norm.py`.
"""

from __future__ import annotations

from minigrad import pytorch_names as _pytorch
from minigrad.fused.attention import scaled_dot_product_attention
from minigrad.fused.avg_pool2d import avg_pool2d
from minigrad.fused.batch_norm import batch_norm
from minigrad.fused.conv2d import conv2d
from minigrad.fused.cross_entropy import cross_entropy
from minigrad.fused.dropout import drop_path, dropout
from minigrad.fused.gelu import gelu
from minigrad.fused.global_avg_pool2d import global_avg_pool2d
from minigrad.fused.layer_norm import layer_norm
from minigrad.fused.linear import linear
from minigrad.fused.log_softmax import log_softmax
from minigrad.fused.max_pool2d import max_pool2d
from minigrad.fused.softmax import softmax
from minigrad.fused.upsample_nearest import upsample_nearest

# isort: off
from minigrad.ops import (
    abs, add, argmax, broadcast_to, cast, clip, concatenate, cos, div, equal, erf, exp, expm1, flatten, gather, getitem, greater, greater_equal,
    isfinite, less, less_equal, log, log1p, logical_and, logical_not, logical_or, logical_xor, matmul, max, maximum, mean, min, minimum, mul, neg,
    not_equal, pad, pow, relu, reshape, scatter_add, sigmoid, sin, sqrt, stack, sub, sum, sum_to, swapaxes, tanh, transpose, unbind, var, where,
    windows,
)  # fmt: skip

__all__ = [
    # fused: a definition and its kernels
    "avg_pool2d", "batch_norm", "conv2d", "cross_entropy", "drop_path", "dropout", "gelu", "global_avg_pool2d", "layer_norm", "linear", "log_softmax",
    "max_pool2d", "scaled_dot_product_attention", "softmax", "upsample_nearest",
    # primitives, and short functions of them
    "abs", "add", "argmax", "broadcast_to", "cast", "clip", "concatenate", "cos", "div", "equal", "erf", "exp", "expm1", "flatten", "gather",
    "getitem", "greater", "greater_equal", "isfinite", "less", "less_equal", "log", "log1p", "logical_and", "logical_not", "logical_or",
    "logical_xor", "matmul", "max", "maximum", "mean", "min", "minimum", "mul", "neg", "not_equal", "pad", "pow", "relu", "reshape", "scatter_add",
    "sigmoid", "sin", "sqrt", "stack", "sub", "sum", "sum_to", "swapaxes", "tanh", "transpose", "unbind", "var", "where", "windows",
]  # fmt: skip

# As a `def`, a type checker would take it for any name. What PyTorch has in torch itself, one looks for here as well.
globals()["__getattr__"] = _pytorch.absent(__name__, _pytorch.IN_MINIGRAD | _pytorch.IN_FUNCTIONAL)
