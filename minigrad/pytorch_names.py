"""What one writes here for what PyTorch has under another name, or has and this library has not: the advice of the AttributeErrors.

Of tensors (`INSTEAD`), modules, and the libraries' own modules. x is the tensor; what stands in backticks is code, and each piece of it is run by a
test, beside PyTorch's own. Read next: `modes.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NoReturn, TypeVar

__all__ = [
    "INSTEAD", "IN_FUNCTIONAL", "IN_INIT", "IN_MINIGRAD", "IN_NN", "IN_OPTIM", "OF_MODULES", "OF_SCHEDULES", "Missing", "TensorModule", "absent",
    "advising",
]  # fmt: skip


class Missing:
    """Stands in the class where PyTorch has a method: asked for, it raises an AttributeError that says what to write instead.

    No `__getattr__`, as Python then takes longer for every attribute that is there, a tenth of the call of a small operation. What an object or a
    subclass has under the name goes before it.
    """

    def __init__(self, name: str, advice: str):
        self.name, self.advice = name, advice

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        message = f"{owner.__name__} has no attribute {self.name!r}, which PyTorch's has; write {self.advice}"
        raise AttributeError(message, name=self.name, obj=owner if instance is None else instance)


_Class = TypeVar("_Class", bound=type)


def advising(instead: Mapping[str, str]) -> Callable[[_Class], _Class]:
    """Decorator of a class: it gets a `Missing` under each of the names, which `dir` of an object leaves out."""

    def __dir__(self: Any) -> list[str]:
        return [name for name in object.__dir__(self) if name not in instead or hasattr(self, name)]

    def decorated(owner: _Class) -> _Class:
        for name, advice in instead.items():
            setattr(owner, name, Missing(name, advice))
        owner.__dir__ = __dir__  # type: ignore[method-assign]
        return owner

    return decorated


def absent(module: str, instead: Mapping[str, str]) -> Callable[[str], NoReturn]:
    """A module's `__getattr__`, which Python asks for a name that is not there. (`from module import name` asks, too, but says nothing of it.)"""

    def __getattr__(name: str) -> NoReturn:
        advice = f"; write {instead[name]}" if name in instead else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{advice}", name=name, obj=sys.modules.get(module))

    return __getattr__


class TensorModule(ModuleType):
    """The class of the module `minigrad.tensor`, where PyTorch has a function of that name."""

    def __call__(self, *values: Any, **options: Any) -> NoReturn:
        """Raise TypeError: it is not called."""
        raise TypeError("minigrad.tensor is a module; write `minigrad.Tensor(values)`")


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
    "roll": "`F.concatenate([x[-n:], x[:-n]])` along the first axis",
    "diff": "`x[..., 1:] - x[..., :-1]`",
    "tril": "`F.where(np.tril(np.ones(x.shape, bool)), x, 0)`",
    "triu": "`F.where(np.triu(np.ones(x.shape, bool)), x, 0)`",
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
    "log2": "`x.log() / math.log(2)`",
    "log10": "`x.log() / math.log(10)`",
    "round": "`Tensor(np.round(x.numpy()))`, whose gradient is 0",
    "floor": "`Tensor(np.floor(x.numpy()))`, whose gradient is 0",
    "ceil": "`Tensor(np.ceil(x.numpy()))`, whose gradient is 0",
    "trunc": "`Tensor(np.trunc(x.numpy()))`, whose gradient is 0",
    "sign": "`Tensor(np.sign(x.numpy()))`, whose gradient is 0",
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
    "sort": "`F.gather(x, np.argsort(x.numpy(), axis), axis)`",
    "argsort": "`np.argsort(x.numpy(), axis)`",
    "topk": "`F.gather(x, np.argsort(-x.numpy(), -1)[..., :n], -1)`",
    "cumsum": "`np.tril(np.ones((len(x), len(x)), x.dtype)) @ x` of floats along axis 0 of a vector or matrix, or, with no gradient, "
    "`np.cumsum(x.numpy(), axis)`",
    "prod": "`math.prod(x)` along the first axis, or of all elements `math.prod(x.flatten())`",
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
    "isinf": "`x.abs() == np.inf`",
    "isfinite": "`F.isfinite(x)`",
    "logical_not": "`F.logical_not(x)`",
    "logical_and": "`F.logical_and(x, y)`",
    "logical_or": "`F.logical_or(x, y)`",
    "masked_fill": "`F.where(mask, value, x)`, for integers with a whole value",
    "where": "`F.where(mask, x, y)`",
    "gather": "`F.gather(x, indices, axis)`",
    "nonzero": "`np.argwhere(x.numpy())`",
    # copies and new ones
    "clone": "`x * 1` for a copy that passes gradients on, or `Tensor(x)`",
    "tolist": "`x.numpy().tolist()`",
    "new_tensor": "`Tensor(np.asarray(array, x.dtype))`",
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
"""Methods and attributes of PyTorch's tensors."""

OF_MODULES = {
    "cpu": '`model.to(device="cpu")`',
    "cuda": '`model.to(device="cuda")`',
    "float": "`model.to(dtype=np.float32)`",
    "double": "`model.to(dtype=np.float64)`",
    "half": '`with minigrad.precision("bf16"): y = model(x)` for the matrix products on a GPU; there is no half precision else',
    "bfloat16": '`with minigrad.precision("bf16"): y = model(x)` for the matrix products on a GPU; there is no half precision else',
    "type": "`model.to(dtype=dtype)`",
    "add_module": "`setattr(model, name, module)`",
    "register_module": "`setattr(model, name, module)`",
    "register_parameter": "`setattr(model, name, nn.Parameter(array))`",
    "get_submodule": "`dict(model.named_modules())[name]`",
    "get_parameter": "`dict(model.named_parameters())[name]`",
    "get_buffer": "`dict(model.named_buffers())[name]`",
    "register_forward_hook": "`h = part(x)` where you call it, in a forward of your own, and keep h; there are no hooks",
    "register_forward_pre_hook": "`h = part(x)` where you call it, in a forward of your own, and change x before it; there are no hooks",
    "register_full_backward_hook": "`minigrad.grad(score, h)[0]` for the gradient of what a part gave; there are no hooks",
    "register_backward_hook": "`minigrad.grad(score, h)[0]` for the gradient of what a part gave; there are no hooks",
}
"""Methods of PyTorch's modules; model is the module."""

_SOFTPLUS = "F.where(x < 0, 0, x) + F.where(x < 0, x, -x).exp().log1p()"
"""In parts that join at 0 with all their derivatives: those of `maximum` and `abs` have kinks there, which do not cancel in the second."""
_BINARY = "`(F.where(x < 0, 0, x) - x * p + F.where(x < 0, x, -x).exp().log1p()).mean()`, p from 0 to 1"
_RESIZED = "`F.upsample_nearest(maps, factor)`, or two matrix products for a bilinear one: docs/differences.md has them"
IN_FUNCTIONAL = {
    # losses
    "mse_loss": "`((x - y) ** 2).mean()`",
    "l1_loss": "`(x - y).abs().mean()`",
    "smooth_l1_loss": "`F.where((x - y).abs() < 1, 0.5 * (x - y) ** 2, (x - y).abs() - 0.5).mean()`",
    "binary_cross_entropy": "`-(p * x.log() + (1 - p) * (-x).log1p()).mean()`, p from 0 to 1, x between them",
    "binary_cross_entropy_with_logits": _BINARY,
    "nll_loss": "`-F.gather(x, labels[:, None], 1).mean()`, or F.cross_entropy of the logits",
    "kl_div": "`(p * (p.log() - x)).sum() / len(x)`, x the logarithms, p above 0 (that is reduction='batchmean')",
    "cosine_similarity": "`(x * y).sum(axis) / ((x * x).sum(axis) * (y * y).sum(axis)).sqrt()`, of vectors other than 0",
    # functions of one number
    "silu": "`x * F.sigmoid(x)`",
    "softplus": f"`{_SOFTPLUS}`",
    "logsigmoid": "`F.where(x < 0, x, 0) - F.where(x < 0, x, -x).exp().log1p()`",
    "mish": f"`x * ({_SOFTPLUS}).tanh()`",
    "leaky_relu": "`F.where(x > 0, x, slope * x)`",
    "elu": "`F.where(x > 0, x, x.clip(None, 0).expm1())`",
    "relu6": "`F.relu(x).clip(None, 6)`, whose slope at 6 is 1",
    "hardtanh": "`x.clip(-1, 1)`, whose slope at -1 and 1 is 1",
    "hardsigmoid": "`(x / 6 + 0.5).clip(0, 1)`, whose slope at -3 and 3 is 1/6",
    "hardswish": "`x * (x / 6 + 0.5).clip(0, 1)`, whose slopes at -3 and 3 are those between them",
    "glu": "`x[..., :n] * F.sigmoid(x[..., n:])`, n half the width",
    "softmin": "`F.softmax(-x, axis)`",
    # of more of them
    "normalize": "`x / ((x * x).sum(axis, keepdims=True) + 1e-24).sqrt()`",
    "rms_norm": "`x / ((x * x).mean(-1, keepdims=True) + eps).sqrt() * weight`",
    "instance_norm": "`(maps - maps.mean((1, 2), keepdims=True)) / (maps.var((1, 2), keepdims=True) + eps).sqrt()`",
    "group_norm": "`g = maps.reshape(len(maps), -1, groups, maps.shape[-1] // groups)` and `((g - g.mean((1, 3), keepdims=True)) / "
    "(g.var((1, 3), keepdims=True) + eps).sqrt()).reshape(maps.shape)`, times weight plus bias",
    "one_hot": "`np.eye(n, dtype=np.float32)[labels]`",
    "embedding": "`weight[indices]`",
    "adaptive_avg_pool2d": "`F.global_avg_pool2d(maps)` for one number a channel, (B, C)",
    "interpolate": _RESIZED,
    "upsample": _RESIZED,
    "dropout2d": "`maps * (keep / (1 - rate))`, where keep is (B, 1, 1, C), drawn of 0 and 1",
    "conv_transpose2d": "`x = Tensor(np.zeros(shape, maps.dtype), requires_grad=True)` and "
    "`minigrad.grad(F.conv2d(x, weight, stride=2), x, maps, create_graph=True)[0]`, where the shape is the result's; inside "
    "minigrad.no_grad() under minigrad.enable_grad()",
    "conv1d": "`F.conv2d(x[:, None], weight[:, :, None])[:, 0]`, x (B, L, C)",
}
"""Functions of torch.nn.functional. maps are feature maps, (B, H, W, C)."""

_LIKE = {  # layers that are one function: its advice, or where it is here the function itself
    **dict(MSELoss="mse_loss", L1Loss="l1_loss", SmoothL1Loss="smooth_l1_loss", BCELoss="binary_cross_entropy", NLLLoss="nll_loss"),
    **dict(BCEWithLogitsLoss="binary_cross_entropy_with_logits", KLDivLoss="kl_div", CosineSimilarity="cosine_similarity", SiLU="silu"),
    **dict(Softplus="softplus", LogSigmoid="logsigmoid", Mish="mish", LeakyReLU="leaky_relu", ELU="elu", ReLU6="relu6", Hardtanh="hardtanh"),
    **dict(Hardsigmoid="hardsigmoid", Hardswish="hardswish", GLU="glu", RMSNorm="rms_norm", InstanceNorm2d="instance_norm", Upsample="upsample"),
    **dict(AdaptiveAvgPool2d="adaptive_avg_pool2d", Dropout2d="dropout2d", GroupNorm="group_norm", ConvTranspose2d="conv_transpose2d"),
}
IN_NN = {
    **{layer: IN_FUNCTIONAL.get(function, f"`F.{function}(x)`") + ", in forward()" for layer, function in _LIKE.items()},
    "CrossEntropyLoss": "`F.cross_entropy(x, labels)`",
    "Sigmoid": "`F.sigmoid(x)`, in forward()",
    "Tanh": "`F.tanh(x)`, in forward()",
    "Softmax": "`F.softmax(x, axis)`, in forward()",
    "LogSoftmax": "`F.log_softmax(x, axis)`, in forward()",
    "Flatten": "`x.flatten(1)`, in forward()",
    "Embedding": "`table = nn.Parameter(array)`, and in forward() `table[indices]`",
    "BatchNorm1d": "`nn.BatchNorm2d(n)`, which takes (B, C) too, and sequences (B, N, C)",
    "Conv1d": "`conv = nn.Conv2d(channels, n, (1, 3))`, and in forward() `conv(rows[:, None])[:, 0]`, rows (B, L, C)",
    "MultiheadAttention": "`nn.MultiHeadAttention(dim, num_heads, qkv_bias=True)`, of tokens to themselves; its qkv is PyTorch's in_proj, its proj "
    "out_proj",
    "ModuleDict": "`setattr(model, name, module)`, and `getattr(model, name)`",
    "ParameterList": "`setattr(model, name, nn.Parameter(array))`, and `getattr(model, name)`",
    "ParameterDict": "`setattr(model, name, nn.Parameter(array))`, and `getattr(model, name)`",
    "Buffer": "`model.register_buffer(name, tensor)`",
    "functional": "`from minigrad import functional as F`",
    "utils": "`minigrad.optim.clip_grad_norm_(parameters, 1.0)`",
}
"""Layers and modules of torch.nn."""

_FANS = "(sum(tensor.shape[:2]) * math.prod(tensor.shape[2:]))"
_WITH = "`with minigrad.no_grad(): tensor.copy_({})`"
IN_INIT = {
    "xavier_uniform_": f"`a = (6 / {_FANS}) ** 0.5` and `nn.init.uniform_(tensor, -a, a)`",
    "xavier_normal_": f"`nn.init.normal_(tensor, 0.0, (2 / {_FANS}) ** 0.5)`",
    "constant_": _WITH.format("value"),
    "eye_": _WITH.format("np.eye(*tensor.shape)"),
}
"""Functions of torch.nn.init."""

_OWN = "a subclass of `optim.Optimizer`, of some ten lines: docs/own_training.md"
IN_OPTIM = {
    "Adam": "`optim.AdamW(parameters, lr, weight_decay=0.0)`",
    "lr_scheduler": '`optim.WarmupCosine(optimizer, total, warmup)`, or set `optimizer.param_groups[0]["lr"]` at every step',
    "swa_utils": "`optim.EMA(model, 0.999)`",
    **dict.fromkeys(("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop"), _OWN),
}
"""Classes and modules of torch.optim."""

OF_SCHEDULES = {
    "step": "`schedule.set(step)` before each step of the optimizer, with its number from 0",
    "get_last_lr": '`[group["lr"] for group in optimizer.param_groups]`',
    "get_lr": '`[group["lr"] for group in optimizer.param_groups]`',
    "state_dict": "the number of the step into the file, and after loading `schedule.set(step)`: a schedule has no other state",
    "load_state_dict": "the number of the step into the file, and after loading `schedule.set(step)`: a schedule has no other state",
}
"""Methods of torch.optim.lr_scheduler's schedules; schedule is an `optim.WarmupCosine`."""

_ROWS = "`F.stack([minigrad.grad(out, x, one, retain_graph=True)[0] for one in np.eye(out.size, dtype=out.dtype)])`"
_OF_TENSORS = (
    "ravel permute t unsqueeze squeeze split chunk flip index_select numel square reciprocal rsqrt clamp mm bmm dot amax amin argmin std norm sort "
    "any all eq ne gt ge lt le isnan masked_fill clone roll diff tril triu log2 log10 round floor ceil trunc sign argsort topk cumsum prod isinf "
    "nonzero"
)
IN_MINIGRAD = {
    **{name: INSTEAD[name] for name in _OF_TENSORS.split()},
    # new tensors
    "as_tensor": "`Tensor(array)`",
    "asarray": "`Tensor(array)`",
    "from_numpy": "`Tensor(array)`, which copies",
    "zeros": "`Tensor(np.zeros(shape, np.float32))`",
    "ones": "`Tensor(np.ones(shape, np.float32))`",
    "full": "`Tensor(np.full(shape, value, np.float32))`",
    "empty": "`Tensor(np.empty(shape, np.float32))`",
    "zeros_like": "`Tensor(np.zeros(x.shape, x.dtype))`",
    "ones_like": "`Tensor(np.ones(x.shape, x.dtype))`",
    "full_like": "`Tensor(np.full(x.shape, value, x.dtype))`",
    "eye": "`Tensor(np.eye(n, dtype=np.float32))`",
    "arange": "`Tensor(np.arange(n))`, of fractions with dtype=np.float32",
    "linspace": "`Tensor(np.linspace(low, high, n, dtype=np.float32))`",
    "rand": "`Tensor(generator.random(shape, np.float32))`, where the generator is np.random.default_rng(seed)",
    "randn": "`Tensor(generator.standard_normal(shape, np.float32))`, where the generator is np.random.default_rng(seed)",
    "randint": "`Tensor(generator.integers(n, size=shape))`, where the generator is np.random.default_rng(seed)",
    "randperm": "`Tensor(generator.permutation(n))`, where the generator is np.random.default_rng(seed)",
    # several at a time
    "cat": "`F.concatenate(tensors, axis)`",
    "concat": "`F.concatenate(tensors, axis)`",
    "hstack": "`F.concatenate(tensors, 1)`, of vectors `F.concatenate(tensors)`",
    "vstack": "`F.concatenate(tensors)`, of vectors `F.stack(tensors)`",
    "transpose": "`x.swapaxes(first, second)`",
    "gather": "`F.gather(x, indices, axis)`",
    "outer": "`x[:, None] * y`",
    "einsum": "`x @ y`, with the axes brought in order by transpose and reshape",
    "logsumexp": "`(x - x.max(axis, keepdims=True)).exp().sum(axis).log() + x.max(axis)`, of finite floats",
    "var": "`x.var(axis)`, which divides by n where PyTorch divides by n - 1",
    "equal": "`np.array_equal(x.numpy(), y.numpy())`; F.equal compares element by element",
    "allclose": "`np.allclose(x.numpy(), y.numpy())`",
    "is_tensor": "`isinstance(x, Tensor)`",
    # derivatives of functions: of torch.func and torch.autograd.functional
    "func": "`minigrad.grad(out, x, v)[0]`, out computed from x; docs/differences.md has jvp, hvp, jacobian and hessian",
    "vjp": "`minigrad.grad(out, x, v)[0]`, out computed from x",
    "jvp": "`u = Tensor(np.zeros(out.shape, out.dtype), requires_grad=True)` and "
    "`minigrad.grad(minigrad.grad(out, x, u, create_graph=True)[0], u, y)[0]`, out computed from x, y the direction",
    "hvp": "`minigrad.grad(minigrad.grad(score, x, create_graph=True)[0], x, y)[0]`, the score computed from x, y the direction",
    **dict.fromkeys(("jacrev", "jacfwd", "jacobian"), _ROWS + ", out a vector computed from x; docs/differences.md has jacobian(f, x)"),
    "hessian": f"`out = minigrad.grad(score, x, create_graph=True)[0].flatten()` and {_ROWS}, the score computed from x; "
    "docs/differences.md has hessian(f, x)",
    "vmap": "functions for a batch, as operations take leading axes: `(x * y).sum(-1)` for torch.dot",
    # files, devices, dtypes, modes
    "save": "`from minigrad.safetensors_io import save_state` and `save_state(path, model.state_dict())`",
    "load": "`from minigrad.safetensors_io import load_state` and `model.load_state_dict(load_state(path)[0])`, or, for PyTorch's own files, "
    "`from minigrad import pth` and pth.load(file)",
    "cuda": '`x.to(device="cuda")`',
    "device": '`x.to(device="cuda")`; devices are called by their names',
    "float": "`np.float32`",
    "float32": "`np.float32`",
    "double": "`np.float64`",
    "float64": "`np.float64`",
    "int": "`np.int32`",
    "int32": "`np.int32`",
    "long": "`np.int64`",
    "int64": "`np.int64`",
    **{name: f"`np.{name}`" for name in ("uint8", "int8", "int16")},
    "bool": "`np.bool_`",
    "inference_mode": "`with minigrad.no_grad(): y = model(x)`",
    "is_grad_enabled": "`minigrad.modes.is_grad_enabled()`",
    "set_grad_enabled": "`with minigrad.enable_grad(): y = model(x)`, or minigrad.no_grad()",
    "autocast": '`with minigrad.precision("bf16"): y = model(x)`',
    "amp": '`with minigrad.precision("bf16"): y = model(x)`',
    "utils": "`minigrad.checkpoint(function, x)`; there is no loader of data",
}
"""Functions and other names of torch itself."""
