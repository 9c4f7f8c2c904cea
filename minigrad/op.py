"""Operations: `@primitive`, `@fused`, and the registry of all of them. The first file to read, and the one to import them from.

A **primitive** has a forward on arrays and one derivative rule per input, written on Tensors out of other primitives: hence any order of
derivative, on any device.

    @primitive
    def mul(x: Tensor, y: Tensor) -> Tensor:
        return x * y                                    # here x and y are arrays

    mul.derivative(x=lambda g, y: g * y,                # g is the gradient of the output
                   y=lambda g, x: g * x)

The argument names of a rule say what the graph keeps for it: an input by its name, the output by `out`, a plain value by its name, and `x_shape`,
`x_dtype`, `x_device` where only that is needed of x. Nothing else stays alive, and only for inputs that require grad.

A **fused** operation has a definition, a pure function of Tensors made of primitives, and per device a kernel pair on raw arrays that computes the
same faster.

    @fused
    def softmax(x: Tensor, axis: int = -1) -> Tensor:
        e = (x - x.max(axis, keepdims=True).detach()).exp()     # here x is a Tensor
        return e / e.sum(axis, keepdims=True)

    softmax.kernel("cpu", forward, backward)                    # forward(x, axis) -> (y, saved), backward(dy, saved, needs) -> (dx,)

Its derivative is the kernel's; with create_graph, where a kernel is missing, or where it was called under `minigrad.definitions()`, it is the
definition's. A fused operation may state rules too, where its derivative is short (that of softmax, from its output).

An input of a primitive that has no rule where others have one gets no gradient, and an output requires grad only for inputs that get one; of a fused
operation, which could differentiate it by its definition, it is refused. What is a constant by contract, such as a mask, is declared,
`@fused(constants="mask")`, also of a primitive: one that requires grad is refused.

Read next: one of each, in `ops/elementwise.py` and `fused/layer_norm.py`. What happens when one is called: `base_op.py` has what the two kinds share,
`primitive_op.py` and `fused_op.py` the rest; then `node.py`, what a graph is made of, and `walk.py`, the walk that calls their `backward`.
"""

from minigrad.base_op import REGISTRY, Op
from minigrad.fused_op import Fused, KernelPair, fused
from minigrad.primitive_op import Binary, Primitive, Unary, primitive

__all__ = ["REGISTRY", "Binary", "Fused", "KernelPair", "Op", "Primitive", "Unary", "fused", "primitive"]
