"""minigrad: tensors and automatic differentiation on NumPy, every operation written from first principles.

    import minigrad
    x = minigrad.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x * x).sum().backward()
    print(x.grad)                      # Tensor([2., 4., 6.])

Read next: `op.py` (what an operation is), `tensor.py`, `autograd.py` (the engine), `ops/` and `fused/` (the operations), `nn/` and `optim/`.
"""

from minigrad.tensor import Tensor  # first: see the end of tensor.py

# isort: split
from minigrad import functional, nn, optim, random
from minigrad.autograd import grad
from minigrad.backend.cublas import precision
from minigrad.backend.cuda import emulated
from minigrad.checkpoint import checkpoint
from minigrad.gradcheck import gradcheck
from minigrad.modes import anomaly, definitions, enable_grad, no_grad
from minigrad.random import manual_seed

__all__ = [
    "Tensor", "anomaly", "checkpoint", "definitions", "emulated", "enable_grad", "functional", "grad", "gradcheck", "manual_seed", "nn", "no_grad",
    "optim", "precision", "random",
]  # fmt: skip
