"""Layers: parameters, state and randomness around the operations of `minigrad.functional`, under PyTorch's names. Read next: `module.py`."""

from __future__ import annotations

from minigrad import pytorch_names as _pytorch
from minigrad.nn import init
from minigrad.nn.activation import GELU, Identity, ReLU
from minigrad.nn.attention import MultiHeadAttention
from minigrad.nn.containers import ModuleList, Sequential
from minigrad.nn.conv import Conv2d
from minigrad.nn.dropout import Dropout, DropPath
from minigrad.nn.linear import Linear
from minigrad.nn.module import Module, Parameter
from minigrad.nn.norm import BatchNorm2d, LayerNorm
from minigrad.nn.pooling import AvgPool2d, MaxPool2d

__all__ = [
    "GELU",
    "AvgPool2d",
    "BatchNorm2d",
    "Conv2d",
    "DropPath",
    "Dropout",
    "Identity",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "MultiHeadAttention",
    "Parameter",
    "ReLU",
    "Sequential",
    "init",
]

globals()["__getattr__"] = _pytorch.absent(__name__, _pytorch.IN_NN)  # as a `def`, a type checker would take it for any name
