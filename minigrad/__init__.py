"""minigrad: tensors and automatic differentiation on NumPy, every operation written from first principles.

    import minigrad
    x = minigrad.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x * x).sum().backward()
    print(x.grad)                      # Tensor([2., 4., 6.])

Read next: `op.py` (what an operation is), `tensor.py`, `walk.py` (the engine), `ops/` and `fused/` (the operations), `nn/` and `optim/`.
"""

import sys
from typing import TYPE_CHECKING

try:
    from minigrad.tensor import Tensor  # isort: skip (first: see the end of tensor.py)
    from minigrad import functional, nn, optim, random
    from minigrad import pytorch_names as _pytorch
    from minigrad.autograd import grad
    from minigrad.backend.cublas import precision
    from minigrad.backend.cuda import emulated
    from minigrad.checkpoint import checkpoint
    from minigrad.gradcheck import gradcheck
    from minigrad.modes import anomaly, definitions, enable_grad, no_grad
    from minigrad.random import manual_seed
except KeyboardInterrupt:
    if not ("-m" in sys.argv[:1] and "minigrad" in sys.orig_argv):
        raise
    print("python -m minigrad: stopped", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = [
    "Tensor", "anomaly", "checkpoint", "definitions", "emulated", "enable_grad", "functional", "grad", "gradcheck", "manual_seed", "nn", "no_grad",
    "optim", "precision", "random",
]  # fmt: skip


if TYPE_CHECKING:  # of the installed distribution, which holds the conformer too
    __version__: str
else:  # a type checker would take it for any name
    _absent = _pytorch.absent(__name__, {name: f"`F.{name}`, where F is minigrad.functional" for name in functional.__all__} | _pytorch.IN_MINIGRAD)

    def __getattr__(name: str) -> str:
        if name != "__version__":
            _absent(name)
        from importlib import metadata

        try:
            return metadata.version("minigrad-conformer")
        except metadata.PackageNotFoundError:  # run from a source folder that is not installed
            return "not installed"
