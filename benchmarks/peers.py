"""One ConvTransBlock in four other frameworks with automatic differentiation: autograd, MyGrad, JAX and tinygrad.

The block is written once, channels-last, from what they have in common; each brings what it has of its own (a convolution, a softmax), and autograd,
which has no convolution, the im2col that its user would write. Each runs as its users run it: JAX and tinygrad compile the whole function.
MyGrad knows no error function, its GELU is the tanh approximation. Nothing of this project is imported: a peer may live in an environment of its own.

Letters: B batch, H W rows and columns, C channels, N tokens, E token width, h heads, d side of a token in pixels. Read next: `block.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Step = Callable[[], tuple[Any, Any]]  # the loss, and the gradient of the first input

EPS = 1e-6


def block(f: Any, p: dict[str, Any], x: Any, x_t: Any, heads: int, d: int) -> tuple[Any, Any]:
    """(B, H, W, C) and (B, N, E) -> the same. `p`: PyTorch's parameters; `f`: what differs between frameworks."""
    b, h, w, c = x.shape
    n, e = x_t.shape[1:]
    rows, columns = h // d, w // d

    def linear(name: str, x: Any) -> Any:
        weight = p[f"{name}.weight"]
        y = x.reshape(-1, x.shape[-1]) @ weight.reshape(weight.shape[0], weight.shape[1]).T
        return (y + p[f"{name}.bias"] if f"{name}.bias" in p else y).reshape(*x.shape[:-1], weight.shape[0])

    def normed(name: str, x: Any, axes: tuple[int, ...]) -> Any:
        centered = x - f.mean(x, axes)
        return centered * (f.mean(centered * centered, axes) + EPS) ** -0.5 * p[f"{name}.weight"] + p[f"{name}.bias"]

    def batch_norm(name: str, x: Any) -> Any:
        return normed(name, x, (0, 1, 2))

    def layer_norm(name: str, x: Any) -> Any:
        return normed(name, x, (-1,))

    def bottleneck(name: str, x: Any, from_tokens: Any = None) -> tuple[Any, Any]:
        y = f.relu(batch_norm(f"{name}.bn1", linear(f"{name}.conv1", x)))
        y = y if from_tokens is None else y + from_tokens
        x2 = f.relu(batch_norm(f"{name}.bn2", f.conv3x3(y, p[f"{name}.conv2.weight"])))
        return f.relu(batch_norm(f"{name}.bn3", linear(f"{name}.conv3", x2)) + x), x2

    def attention(name: str, x: Any) -> Any:
        qkv = f.permute(linear(f"{name}.qkv", x).reshape(b, n, 3, heads, e // heads), (2, 0, 3, 1, 4))  # (3, B, h, N, e)
        weights = f.softmax((qkv[0] * (e // heads) ** -0.5) @ f.permute(qkv[1], (0, 1, 3, 2)))
        return linear(f"{name}.proj", f.permute(weights @ qkv[2], (0, 2, 1, 3)).reshape(b, n, e))

    x, x2 = bottleneck("cnn_block", x)
    pooled = f.mean(x2.reshape(b, rows, d, columns, d, c // 4), (2, 4)).reshape(b, n - 1, c // 4)
    squeezed = f.gelu(layer_norm("squeeze_block.ln", linear("squeeze_block.conv_project", pooled)))
    x_t = f.concatenate([x_t[:, :1], squeezed]) + x_t
    x_t = x_t + attention("trans_block.attn", layer_norm("trans_block.norm1", x_t))
    hidden = f.gelu(linear("trans_block.mlp.fc1", layer_norm("trans_block.norm2", x_t)))
    x_t = x_t + linear("trans_block.mlp.fc2", hidden)
    expanded = f.relu(batch_norm("expand_block.bn", linear("expand_block.conv_project", x_t[:, 1:].reshape(b, rows, columns, e))))
    upsampled = (expanded.reshape(b, rows, 1, columns, 1, c // 4) * f.ones((1, 1, d, 1, d, 1))).reshape(b, h, w, c // 4)
    return bottleneck("fusion_block", x, upsampled)[0], x_t


def loss_of(f: Any, inputs: dict[str, Any], weights: list[Any], heads: int, d: int) -> Any:
    """The sum of both outputs times fixed random weights, the upstream gradients; `inputs` are the parameters, "x" and "x_t"."""
    return sum((y * weight).sum() for y, weight in zip(block(f, inputs, inputs["x"], inputs["x_t"], heads, d), weights, strict=True))


def autograd_step(inputs: dict[str, np.ndarray], weights: list[np.ndarray], heads: int, d: int) -> Step:
    import autograd.numpy as anp
    from autograd import value_and_grad
    from autograd.scipy.special import erf

    class Functions:
        ones = staticmethod(lambda shape: np.ones(shape, np.float32))
        mean = staticmethod(lambda x, axes: anp.mean(x, axis=axes, keepdims=True))
        relu = staticmethod(lambda x: anp.maximum(x, np.float32(0)))
        gelu = staticmethod(lambda x: np.float32(0.5) * x * (1 + erf(x * np.float32(math.sqrt(0.5)))))
        permute = staticmethod(anp.transpose)
        concatenate = staticmethod(lambda parts: anp.concatenate(parts, axis=1))

        @staticmethod
        def softmax(x: Any) -> Any:
            e = anp.exp(x - anp.max(x, axis=-1, keepdims=True))
            return e / anp.sum(e, axis=-1, keepdims=True)

        @staticmethod
        def conv3x3(x: Any, weight: Any) -> Any:
            b, h, w, c = x.shape
            padded = anp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "constant")
            columns = anp.concatenate([padded[:, r : r + h, s : s + w] for r in range(3) for s in range(3)], axis=-1)  # (B, H, W, 9 C)
            matrix = anp.transpose(weight, (2, 3, 1, 0)).reshape(9 * c, -1)
            return (columns.reshape(b * h * w, 9 * c) @ matrix).reshape(b, h, w, -1)

    step = value_and_grad(lambda inputs: loss_of(Functions, inputs, weights, heads, d))

    def run() -> tuple[Any, Any]:
        loss, gradients = step(inputs)
        return loss, gradients["x"]

    return run


def mygrad_step(inputs: dict[str, np.ndarray], weights: list[np.ndarray], heads: int, d: int) -> Step:
    import mygrad as mg
    from mygrad.nnet import activations
    from mygrad.nnet.layers import conv_nd

    mg.turn_memory_guarding_off()  # its manual's advice for speed

    class Functions:
        ones = staticmethod(lambda shape: np.ones(shape, np.float32))
        mean = staticmethod(lambda x, axes: mg.mean(x, axis=axes, keepdims=True))
        relu = staticmethod(activations.relu)
        softmax = staticmethod(lambda x: activations.softmax(x, axis=-1))
        gelu = staticmethod(lambda x: 0.5 * x * (1 + mg.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x)))))
        permute = staticmethod(lambda x, axes: x.transpose(*axes))
        concatenate = staticmethod(lambda parts: mg.concatenate(parts, axis=1))

        @staticmethod
        def conv3x3(x: Any, weight: Any) -> Any:  # it takes (B, C, H, W)
            return conv_nd(x.transpose(0, 3, 1, 2), weight, stride=1, padding=1).transpose(0, 2, 3, 1)

    tensors = {name: mg.tensor(array) for name, array in inputs.items()}

    def run() -> tuple[Any, Any]:
        for tensor in tensors.values():
            tensor.null_grad()
        loss = loss_of(Functions, tensors, weights, heads, d)
        loss.backward()
        return loss.item(), tensors["x"].grad

    return run


def jax_step(inputs: dict[str, np.ndarray], weights: list[np.ndarray], heads: int, d: int) -> Step:
    import jax
    import jax.numpy as jnp

    class Functions:
        ones = staticmethod(jnp.ones)
        mean = staticmethod(lambda x, axes: x.mean(axes, keepdims=True))
        relu = staticmethod(jax.nn.relu)
        softmax = staticmethod(jax.nn.softmax)
        gelu = staticmethod(lambda x: jax.nn.gelu(x, approximate=False))
        permute = staticmethod(jnp.transpose)
        concatenate = staticmethod(lambda parts: jnp.concatenate(parts, axis=1))

        @staticmethod
        def conv3x3(x: Any, weight: Any) -> Any:
            return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC"))

    step = jax.jit(jax.value_and_grad(lambda inputs: loss_of(Functions, inputs, weights, heads, d)))
    inputs = {name: jnp.asarray(array) for name, array in inputs.items()}

    def run() -> tuple[Any, Any]:
        loss, gradients = jax.block_until_ready(step(inputs))
        return loss, gradients["x"]

    return run


def tinygrad_step(inputs: dict[str, np.ndarray], weights: list[np.ndarray], heads: int, d: int) -> Step:
    from tinygrad import Tensor, TinyJit

    class Functions:
        ones = staticmethod(lambda shape: Tensor.ones(*shape))
        mean = staticmethod(lambda x, axes: x.mean(axes, keepdim=True))
        relu = staticmethod(Tensor.relu)
        softmax = staticmethod(Tensor.softmax)
        gelu = staticmethod(lambda x: 0.5 * x * (1 + (x * math.sqrt(0.5)).erf()))
        permute = staticmethod(lambda x, axes: x.permute(*axes))
        concatenate = staticmethod(lambda parts: parts[0].cat(*parts[1:], dim=1))

        @staticmethod
        def conv3x3(x: Any, weight: Any) -> Any:  # it takes (B, C, H, W)
            return x.permute(0, 3, 1, 2).conv2d(weight, padding=1).permute(0, 2, 3, 1)

    tensors = {name: Tensor(array).realize() for name, array in inputs.items()}
    fixed = [Tensor(weight).realize() for weight in weights]

    @TinyJit
    def step() -> tuple[Any, ...]:
        loss = loss_of(Functions, tensors, fixed, heads, d)
        gradients = loss.gradient(*tensors.values())
        return Tensor.realize(loss, *gradients), *gradients

    def run() -> tuple[Any, Any]:
        loss, *gradients = step()
        return loss.item(), dict(zip(tensors, gradients, strict=True))["x"].numpy()

    return run


STEPS = {"autograd": autograd_step, "mygrad": mygrad_step, "jax": jax_step, "tinygrad": tinygrad_step}
