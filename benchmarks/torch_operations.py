"""What a PyTorch user calls for each of our fused operations, and what its inputs are there. Read next: `ops.py`.

For a fused operation it is what its user would write: batch norm, then the addition, then ReLU. The masks of dropout are given to both sides, so
drawing them is not measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

MAPS = {"avg_pool2d": (0,), "batch_norm": (0, 5), "conv2d": (0,), "global_avg_pool2d": (0,), "max_pool2d": (0,), "upsample_nearest": (0,)}
"""Positions of the inputs that are feature maps: (B, H, W, C) for us, (B, C, H, W) for PyTorch."""
MASKS = {"dropout": 1}
"""Position of a mask that PyTorch gets as floats of 0 and 1 / (1 - p): then it makes one multiplication each way."""


def attention(query, key, value, attn_mask, dropout_mask, dropout_p, scale):
    return F.scaled_dot_product_attention(query, key, value, attn_mask, scale=scale)


def batch_norm(x, weight, bias, mean, var, residual, eps, relu):
    y = F.batch_norm(x, mean, var, weight, bias, training=mean is None, eps=eps)
    y = y if residual is None else y + residual
    return F.relu_(y) if relu else y


OPERATIONS: dict[str, Callable] = {
    "avg_pool2d": lambda x, kernel_size, stride, padding: F.avg_pool2d(x, kernel_size, stride, padding),
    "batch_norm": batch_norm,
    "conv2d": lambda x, weight, bias, stride, padding, dilation, groups: F.conv2d(x, weight, bias, stride, padding, dilation, groups),
    "cross_entropy": lambda logits, labels, label_smoothing: F.cross_entropy(logits, labels, label_smoothing=label_smoothing),
    "drop_path": lambda x, mask, p: x * (mask.view(-1, *[1] * (x.ndim - 1)) * (1 / (1 - p))),
    "dropout": lambda x, scaled_mask, p: x * scaled_mask,  # as F.dropout draws it: see MASKS
    "gelu": F.gelu,
    "global_avg_pool2d": lambda x: x.mean((2, 3)),
    "layer_norm": lambda x, weight, bias, eps: F.layer_norm(x, x.shape[-1:], weight, bias, eps),
    "linear": F.linear,
    "log_softmax": lambda x, axis: torch.log_softmax(x, axis),
    "max_pool2d": lambda x, kernel_size, stride, padding: F.max_pool2d(x, kernel_size, stride, padding),
    "scaled_dot_product_attention": attention,
    "softmax": lambda x, axis: torch.softmax(x, axis),
    "upsample_nearest": lambda x, scale_factor: F.interpolate(x, scale_factor=scale_factor),
}
"""Inputs by position, values by name."""


def torch_input(op: str, position: int, x: torch.Tensor, values: dict[str, Any], layout: torch.memory_format) -> torch.Tensor:
    """An input of an operation as PyTorch gets it, feature maps and kernels in the layout."""
    if position in MAPS.get(op, ()):
        return x.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    if position == MASKS.get(op):
        return x / (1 - values["p"])
    return x.contiguous(memory_format=layout) if op == "conv2d" and x.ndim == 4 else x


def gives_map(case: dict) -> bool:
    """Whether the output is a feature map, too."""
    return case["op"] in MAPS and len(case["out"]) == 4
