"""The network in numbers, without running it: every block's output shapes, parameters and multiply-accumulates, counted from the configuration alone.

`describe` is the table that `python -m conformer info` prints, `count` the same as data. A part bears the name under which
`Conformer.intermediates` gives its output, and the tests hold both to each other. Read before: `model.py`, the network that is counted here.

What is counted: the multiply-accumulates of convolutions, linear layers and the two products of attention. The published figures count the same and
leave out norms, activations, pooling and additions. FCUDown counts as the official code runs it, with its 1x1 convolution at full resolution;
`blocks.py` pools first, which gives the same tokens for less work (`Count.executed_macs`). What a network of one's own multiplies is not known from a
configuration: `measured_macs` runs it, and counts.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from conformer.baselines import NETWORKS
from conformer.config import ConformerConfig
from conformer.model import Conformer, evaluating
from conformer.text import columns
from minigrad import nn
from minigrad.modes import definitions, no_grad
from minigrad.op import REGISTRY

__all__ = ["BlockCount", "Count", "Part", "count", "describe", "measured_macs"]

BRANCHES = ("CNN", "transformer", "patch embedding", "FCU", "heads")


@dataclass(frozen=True)
class Part:
    """One module: its name in `Conformer.intermediates`, what it puts out for one image, and what it costs."""

    name: str
    branch: str  # one of BRANCHES
    shape: tuple[int, ...]  # (H, W, C), (N, E) or (K,)
    parameters: int
    macs: int  # convolutions and linear layers, for one image
    attention_macs: int = 0  # the products Q K^T and A V
    spared_macs: int = 0  # of `macs`: those that the official code needs, and `blocks.py` does not


@dataclass(frozen=True)
class BlockCount:
    """One line of the table: the modules that make up a block, and the shapes of both branches after it."""

    name: str
    stage: int | None  # 1, 2 or 3; None for the stem and the heads
    parts: tuple[Part, ...]
    cnn: tuple[int, ...] | None  # (H, W, C)
    tokens: tuple[int, ...] | None  # (N, E)

    @property
    def parameters(self) -> int:
        """Parameters of the block."""
        return sum(part.parameters for part in self.parts)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the block for one image, attention products included."""
        return sum(part.macs + part.attention_macs for part in self.parts)


@dataclass(frozen=True)
class Count:
    """A network's blocks and their sums."""

    config: ConformerConfig
    image_size: tuple[int, int]  # height and width in pixels
    blocks: tuple[BlockCount, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every module, in the order of the forward pass."""
        return tuple(part for block in self.blocks for part in block.parts)

    @property
    def parameters(self) -> int:
        """Learnt numbers in the network."""
        return sum(part.parameters for part in self.parts)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image's forward pass, attention products included."""
        return sum(block.macs for block in self.blocks)

    @property
    def macs_without_attention(self) -> int:
        """The same without Q K^T and A V, as some papers and tools count."""
        return sum(part.macs for part in self.parts)

    @property
    def executed_macs(self) -> int:
        """Multiply-accumulates that `blocks.py` makes do with: of each FCUDown, which pools first, those of the pixels that are left."""
        return self.macs - sum(part.spared_macs for part in self.parts)

    def by_branch(self) -> dict[str, tuple[int, int]]:
        """Parameters and multiply-accumulates of each branch: the CNN, the transformer, its patch embedding, the coupling units, and the heads."""
        return {
            branch: (
                sum(part.parameters for part in self.parts if part.branch == branch),
                sum(part.macs + part.attention_macs for part in self.parts if part.branch == branch),
            )
            for branch in BRANCHES
        }


def _bottleneck(name: str, size: tuple[int, int], inplanes: int, outplanes: int, stride: int = 1, res_conv: bool = False) -> Part:
    """A ConvBlock on a map of `size`: 1x1, 3x3 of `stride`, 1x1, each with a batch norm (2 parameters a channel), perhaps a projected shortcut."""
    height, width = -(-size[0] // stride), -(-size[1] // stride)
    before, after, middle = size[0] * size[1], height * width, outplanes // 4
    shortcut = inplanes * outplanes if res_conv else 0
    reduce, spatial, expand = inplanes * middle, 9 * middle * middle, middle * outplanes
    norms = 2 * (middle + middle + outplanes) + (2 * outplanes if res_conv else 0)
    macs = reduce * before + (spatial + expand + shortcut) * after
    return Part(name, "CNN", (height, width, outplanes), reduce + spatial + expand + shortcut + norms, macs)


def _transformer(name: str, config: ConformerConfig, tokens: int) -> Part:
    """A Block on `tokens` tokens: two layer norms, attention (qkv, proj), and the token-wise network (fc1, fc2)."""
    width, hidden = config.embed_dim, config.mlp_width
    weights = 4 * width * width + 2 * width * hidden
    biases = (3 * width if config.qkv_bias else 0) + width + hidden + width
    return Part(name, "transformer", (tokens, width), weights + biases + 4 * width, weights * tokens, 2 * tokens * tokens * width)


def _alone(block: BlockCount, network: str) -> BlockCount:
    """What a branch alone has of a block of the Conformer."""
    if network == "cnn":
        parts = tuple(part for part in block.parts if part.branch == "CNN" or part.name == "conv_cls_head")
        return replace(block, name=block.name.removesuffix(", trans_1"), parts=parts, tokens=None)
    own = [part for part in block.parts if part.branch == "transformer" or part.name in ("stem", "trans_patch_conv", "trans_cls_head")]
    # each place has a vector that tells it
    parts = tuple(replace(part, parameters=part.parameters + math.prod(part.shape)) if part.name == "tokens" else part for part in own)
    return replace(block, name=block.name.removeprefix("conv_1, "), parts=parts, cnn=block.cnn if block.name == "stem" else None)


def count(config: ConformerConfig | Conformer, image_size: int | tuple[int, int] | None = None, network: str = "conformer") -> Count:
    """Count a network's parameters and multiply-accumulates, block by block, for images of one size.

    A model is counted as its configuration, after its parameters have been counted. So a block of your own that has as many parameters as the one in
    whose place it is, such as another attention, is taken for that one. `measured_macs` counts what is done, in these networks and all others.

    Args:
        config: a configuration, or a model.
        image_size: side in pixels, or (height, width); None is 224 with the ImageNet stem and 32 with the others.
        network: of a configuration, which of `conformer.baselines.NETWORKS`.

    Raises:
        ValueError: the network cannot take images of that size, or is none of them, or parts of the model were replaced, so that it is not its
            configuration's.
        TypeError: it is not a whole Conformer, such as one of its branches alone.
    """
    if not isinstance(config, ConformerConfig | Conformer):
        advice = "give a ConformerConfig or a Conformer, or have conformer.measured_macs run it"
        raise TypeError(f"count: a {type(config).__name__} is not a whole Conformer; {advice}")
    if isinstance(config, Conformer):
        result, real = count(config.config, image_size), sum(parameter.size for parameter in config.parameters())
        if real != result.parameters:
            raise ValueError(f"count: the model has {real:,} parameters, its configuration {result.parameters:,}: parts of it were replaced")
        return result
    if network not in NETWORKS:
        raise ValueError(f"count: network is {network!r}; it must be one of {', '.join(NETWORKS)}")
    height, width = config.sides(image_size)
    blocks = _blocks(config, height, width)
    if network != "conformer":
        blocks = [_alone(block, network) for block in blocks]
    return Count(config, (height, width), tuple(blocks))


def _blocks(config: ConformerConfig, height: int, width: int) -> list[BlockCount]:
    """What a Conformer consists of, block by block, as its `forward` runs through them."""
    size = config.stem_size(height, width)
    rows, columns = config.token_grid(height, width)
    embed, stem, patches = config.embed_dim, config.stem_channels, rows * columns
    tokens = patches + 1

    kernel = 7 if config.stem == "imagenet" else 3
    # the ImageNet stem's convolution works at twice the resolution that its max pool leaves
    stem_positions = (-(-height // 2)) * (-(-width // 2)) if config.stem == "imagenet" else size[0] * size[1]
    stem_weights = config.in_chans * kernel * kernel * stem
    blocks = [
        BlockCount("stem", None, (Part("stem", "CNN", (*size, stem), stem_weights + 2 * stem, stem_weights * stem_positions),), (*size, stem), None)
    ]

    patch_weights = stem * config.patch_stride**2 * embed
    first = (
        _bottleneck("conv_1", size, stem, config.widths[0], res_conv=True),
        Part("trans_patch_conv", "patch embedding", (rows, columns, embed), patch_weights + embed, patch_weights * patches),
        Part("tokens", "transformer", (tokens, embed), embed, 0),  # the class token
        _transformer("trans_1", config, tokens),
    )
    blocks.append(BlockCount("conv_1, trans_1", 1, first, first[0].shape, first[-1].shape))

    for plan in config.blocks():
        middle = plan.outplanes // 4
        parts = [_bottleneck(f"{plan.name}.cnn_block", size, plan.inplanes, plan.outplanes, plan.stride, plan.res_conv)]
        size = parts[0].shape[0], parts[0].shape[1]
        coupling, pixels = middle * embed, size[0] * size[1]
        squeezed = coupling + 3 * embed, coupling * pixels
        parts.append(Part(f"{plan.name}.squeeze_block", "FCU", (tokens, embed), *squeezed, spared_macs=coupling * (pixels - patches)))
        parts.append(_transformer(f"{plan.name}.trans_block", config, tokens))
        parts.extend(_bottleneck(f"{plan.name}.med_block.{index}", size, plan.outplanes, plan.outplanes) for index in range(config.num_med_block))
        parts.append(Part(f"{plan.name}.expand_block", "FCU", (*size, middle), coupling + 3 * middle, coupling * patches))
        stride = 2 if plan.last_fusion else 1
        parts.append(_bottleneck(f"{plan.name}.fusion_block", size, plan.outplanes, plan.outplanes, stride, plan.last_fusion))
        size = parts[-1].shape[0], parts[-1].shape[1]
        blocks.append(BlockCount(plan.name, plan.stage, tuple(parts), parts[-1].shape, (tokens, embed)))

    classes, channels = config.num_classes, config.widths[2]
    heads = (
        Part("conv_cls_head", "heads", (classes,), channels * classes + classes, channels * classes),
        Part("trans_norm", "transformer", (tokens, embed), 2 * embed, 0),
        Part("trans_cls_head", "heads", (classes,), embed * classes + classes, embed * classes),
    )
    blocks.append(BlockCount("heads", None, heads, None, None))
    return blocks


_measuring = threading.RLock()


def measured_macs(function: Callable[..., Any], *inputs: Any) -> int:
    """Multiply-accumulates of `function(*inputs)`, a module in evaluation mode or any other function of Tensors, counted as it runs.

        measured_macs(model, Tensor(np.zeros((1, 32, 32, 3), np.float32)))

    The definitions of all operations make their products with one primitive, matmul, so the function is run from these, and the shapes that reach
    matmul are looked at: convolutions, linear layers and attention, in networks of any kind. For a Conformer that is `Count.executed_macs`. Other
    multiplications (`x * y`, norms, pooling) are not counted, nor is what a primitive of your own does inside, or another thread.

    No gradients are recorded. A module is put back into its mode; what another function calls runs in the mode that it is in, so that batch norms
    that train take these inputs into their averages. Others that measure meanwhile wait, so that a function may not wait for a thread that does.
    """
    product, thread, macs = REGISTRY["matmul"], threading.get_ident(), 0

    def counted(x: Any, y: Any) -> Any:
        nonlocal macs
        result = multiply(x, y)
        if threading.get_ident() == thread:
            macs += result.size * x.shape[-1]
        return result

    with _measuring, definitions(), no_grad(), evaluating(function) if isinstance(function, nn.Module) else contextlib.nullcontext():
        multiply = product.function
        try:
            product.function = counted
            function(*inputs)
        finally:
            product.function = multiply
    return macs


def _macs(number: int) -> str:
    """A count of multiply-accumulates in millions or, from a thousand of those, in billions."""
    return f"{number / 1e9:.3f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape)) if shape else "-"


def describe(config: ConformerConfig | Conformer, image_size: int | tuple[int, int] | None = None, network: str = "conformer") -> str:
    """The shape table of a network as text, one line a block and the sums below; takes and raises what `count` does."""
    result = count(config, image_size, network)
    lines = [("block", "stage", "CNN branch", "tokens", "parameters", "MACs")]
    for block in result.blocks:
        stage = "-" if block.stage is None else str(block.stage)
        lines.append((block.name, stage, _shape(block.cnn), _shape(block.tokens), f"{block.parameters:,}", f"{block.macs / 1e6:,.2f} M"))
    table = columns(lines).splitlines()
    table.insert(1, "-" * len(table[0]))
    table.append(table[1])

    height, width = result.image_size
    table.append(f"images of {height} x {width} pixels: {result.parameters:,} parameters, {_macs(result.macs)} multiply-accumulates (MACs) an image")
    if result.macs_without_attention != result.macs:
        table[-1] += ","
        table.append(f"{_macs(result.macs_without_attention)} without attention's two products")
    for branch, (parameters, macs) in result.by_branch().items():
        if parameters:  # a branch alone has none of the other, but for the stem
            name = "stem" if (network, branch) == ("transformer", "CNN") else branch
            table.append(f"  {name:<16}{parameters:>12,} parameters  {_macs(macs):>9}")
    if result.executed_macs != result.macs:
        table.append("FCUDown counts as in the authors' code: a convolution at full resolution, then the pooling.")
        table.append(f"blocks.py pools first, for the same tokens: {_macs(result.executed_macs)} MACs in all")
    return "\n".join(table)
