"""BatchNorm2d and LayerNorm. The maths is in `minigrad/fused/batch_norm.py` and `layer_norm.py`; batch norm's running statistics are kept here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from minigrad import functional as F
from minigrad.backend import cuda
from minigrad.modes import recomputing
from minigrad.nn.linear import check_widths
from minigrad.nn.module import Module, Parameter
from minigrad.tensor import Tensor, wrap

__all__ = ["BatchNorm2d", "LayerNorm"]

_cuda = cuda.Kernels(__file__)


class BatchNorm2d(Module):
    """Normalises each channel of (B, H, W, C) maps over batch, rows and columns, then scales and shifts it.

    The channel is the last axis of whatever it is given, and the statistics are taken over all others: on (B, C), and on sequences (B, N, C), which
    PyTorch has as (B, C, N), this is its BatchNorm1d.

    In training mode with the mean and biased variance of the batch, which also move the running statistics (there the variance is unbiased); in
    eval mode with the running statistics. On the CPU mean and variance are replaced at every step, never written in place: a graph that read the old
    ones stays valid, and only a checkpoint, which would read the new ones, refuses. On the GPU they are written in place, as parameters are by an
    optimiser, so that a captured step finds them where it left them; their version counters tell, and a graph that would have to read the old ones
    refuses.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the batch in the running statistics; None weighs all batches so far equally.
        affine: whether to scale and shift.
        track_running_stats: whether to keep running statistics; without them the statistics of the batch serve in eval mode too.

    Attributes:
        weight, bias: (C,), ones and zeros at first, or None. running_mean, running_var: (C,), zeros and ones at first, or None.
            num_batches_tracked: 0-d int64 or None.

    Source: Ioffe and Szegedy 2015; https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True, track_running_stats: bool = True):
        super().__init__()
        check_widths("BatchNorm2d", num_features=num_features)
        self.num_features, self.eps, self.momentum, self.affine, self.track_running_stats = num_features, eps, momentum, affine, track_running_stats
        self.weight = Parameter(np.ones(num_features, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32)) if affine else None
        self.register_buffer("running_mean", Tensor(np.zeros(num_features, np.float32)) if track_running_stats else None)
        self.register_buffer("running_var", Tensor(np.ones(num_features, np.float32)) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", Tensor(np.array(0, np.int64)) if track_running_stats else None)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), then adds `residual` of that shape and applies a ReLU where asked, all in one operation.

        Raises:
            ValueError: the statistics of the batch are needed and it has one value per channel: their variance is 0, whatever the value.
        """
        mean = var = None
        if not self.training:
            mean, var = self.running_mean, self.running_var
            if self.num_batches_tracked is not None:
                self.num_batches_tracked._note_read()  # written whenever the statistics move: so a checkpoint, which would read them again, notices
        y, mean, var = F.batch_norm(x, self.weight, self.bias, mean=mean, var=var, residual=residual, eps=self.eps, relu=relu)
        if self.training and self.track_running_stats and x.size and not recomputing():
            self._track(mean, var, x.size // x.shape[-1])
        return y

    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch with `count` values per channel."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        if self.running_mean.device == "cuda":
            self._track_on_gpu(mean, var, count)
            return
        counted = np.asarray(self.num_batches_tracked.data + 1)
        momentum = 1 / counted.item() if self.momentum is None else self.momentum
        # On arrays: six operations on C numbers, which as operations on Tensors would take five times as long.
        moved = (1 - momentum) * self.running_mean.data + momentum * mean.data
        spread = (1 - momentum) * self.running_var.data + (momentum * count / (count - 1)) * var.data
        # They keep their dtype, whatever the batch had or the momentum is (a NumPy float64 promotes). All are there before one takes its place.
        mean, var = wrap(moved.astype(self.running_mean.dtype, copy=False)), wrap(spread.astype(self.running_var.dtype, copy=False))
        self.num_batches_tracked._bump()
        self.num_batches_tracked = wrap(counted, version=self.num_batches_tracked.version)
        self.running_mean, self.running_var = mean, var

    def _track_on_gpu(self, mean: Tensor, var: Tensor, count: int) -> None:
        """The same in one launch, in place: see norm.cu."""
        buffers = [buffer for buffer in (self.running_mean, self.running_var, self.num_batches_tracked) if buffer is not None]
        momentum = -1.0 if self.momentum is None else float(self.momentum)
        dtype = buffers[0].dtype
        arrays = (mean.data.astype(dtype, copy=False), var.data.astype(dtype, copy=False), *(buffer.data for buffer in buffers))
        _cuda.launch(f"running_statistics<{cuda.c_type(dtype)}>", 1, 256, *arrays, self.num_features, momentum, count / (count - 1))
        for buffer in buffers:
            buffer._bump()

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, track_running_stats={self.track_running_stats}"


class LayerNorm(Module):
    """Normalises each vector along the last axis, then scales and shifts it.

    Args:
        normalized_shape: the length of the last axis, C (or a list or tuple of it alone).
        eps: added to the variance.
        elementwise_affine: whether to scale and shift; bias: whether to shift.

    Attributes:
        weight: (C,), ones at first, or None. bias: (C,), zeros at first, or None.

    Raises:
        ValueError: `normalized_shape` names more than one axis, or is no whole number.

    Source: Ba et al. 2016; https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True):
        super().__init__()
        shape = tuple(normalized_shape) if isinstance(normalized_shape, Iterable) else (normalized_shape,)
        if len(shape) != 1:
            raise ValueError(f"LayerNorm: normalized_shape is {shape}; only the last axis is normalised, give its length")
        check_widths("LayerNorm", normalized_shape=shape[0])
        self.normalized_shape, self.eps = shape, eps
        self.weight = Parameter(np.ones(shape, np.float32)) if elementwise_affine else None
        self.bias = Parameter(np.zeros(shape, np.float32)) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return F.layer_norm(x, self.weight, self.bias, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}" + ("" if self.weight is not None else ", elementwise_affine=False")
