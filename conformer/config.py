"""What fixes a Conformer: its constructor's arguments as a frozen dataclass, the plan of the network that follows, and the named configurations.

Nothing here touches an array. `model.py` builds the network from `ConformerConfig.blocks()`, `info.py` counts it from the same plan.
Read next: `blocks.py`, then `model.py`.

Sources: Peng et al., "Conformer: Local Features Coupling Global Representations for Visual Recognition", ICCV 2021, and the authors' code
(https://github.com/pengzhiliang/Conformer, conformer.py and models.py).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import NamedTuple

__all__ = ["CONFIGS", "STEM_STRIDES", "BlockPlan", "ConformerConfig", "named_config"]

STEM_STRIDES = {"imagenet": 4, "cifar": 1, "cifar_fast": 2}
"""How much smaller than the image the stem's output is."""

WHOLE = "patch_size", "in_chans", "num_classes", "base_channel", "num_med_block", "embed_dim", "depth", "num_heads", "stem_channels"
NUMBERS = "channel_ratio", "mlp_ratio", "qk_scale", "drop_rate", "attn_drop_rate", "drop_path_rate"
LARGEST = 10**9  # no network needs more, and products of two are still numbers that a computer has


class BlockPlan(NamedTuple):
    """One ConvTransBlock: its place in the network and what it is built with (the paper's and the official code's names)."""

    number: int  # 2 .. depth
    stage: int  # 1, 2 or 3
    inplanes: int  # channels of the CNN branch before the block
    outplanes: int  # and after it
    stride: int  # of cnn_block: 2 where a stage begins with half the resolution
    res_conv: bool  # cnn_block projects its shortcut
    dw_stride: int  # side of a token in pixels of this stage's feature map
    last_fusion: bool  # fusion_block halves the resolution: the very last block
    drop_path_rate: float

    @property
    def name(self) -> str:
        """The block's attribute in the model, hence the prefix of its parameters' names."""
        return f"conv_trans_{self.number}"


@dataclass(frozen=True)
class ConformerConfig:
    """The arguments of `Conformer`, checked.

    Args:
        patch_size: side of a token in image pixels under the ImageNet stem; a multiple of 16. The patch convolution on the stem's output has kernel
            and stride `patch_size // 4`, whatever the stem.
        in_chans: channels of an image.
        num_classes: outputs of each of the two heads.
        base_channel, channel_ratio: the CNN branch's stages have C1, 2 C1 and 4 C1 channels, C1 = int(base_channel * channel_ratio).
        num_med_block: Med_ConvBlocks between the two bottlenecks of every block (0 in every published variant).
        embed_dim, num_heads: width of a token, and attention heads that share it.
        depth: blocks in all, a third of them in each stage.
        mlp_ratio: hidden width of the token-wise network over embed_dim.
        qkv_bias, qk_scale: attention's options; `qk_scale=None` is `(embed_dim / num_heads) ** -0.5`.
        drop_rate, attn_drop_rate: dropout after projections, and on attention weights.
        drop_path_rate: stochastic depth of the last transformer block; it grows linearly from 0 in the first.
        stem: "imagenet" is a 7x7 convolution of stride 2 and a max pool of stride 2, "cifar" a 3x3 convolution of stride 1, "cifar_fast" a 3x3
            convolution of stride 2.
        stem_channels: channels after the stem (the official code fixes 64).
        double_class_token: every coupled block adds the class token to itself, as the official code does and its checkpoints expect; False leaves it
            as it is.

    Raises:
        ValueError: an argument that no network can be built with; the sentence says what to change.
    """

    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    base_channel: int = 64
    channel_ratio: float = 4
    num_med_block: int = 0
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    qk_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    stem: str = "imagenet"
    stem_channels: int = 64
    double_class_token: bool = True

    def __post_init__(self) -> None:
        for names, kind, words in ((WHOLE, Integral, "a whole number"), (NUMBERS, Real, "a number")):
            for name in names:
                value = getattr(self, name)
                if value is None and name == "qk_scale":
                    continue
                if not isinstance(value, kind) or isinstance(value, bool) or not -LARGEST <= value <= LARGEST:  # type: ignore[operator]
                    raise ValueError(f"Conformer: {name} is {value!r}; it must be {words}, of at most {LARGEST:,}")
        for name in ("qkv_bias", "double_class_token"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"Conformer: {name} is {getattr(self, name)!r}; it must be True or False")
        for name in ("in_chans", "num_classes", "base_channel", "embed_dim", "depth", "num_heads", "stem_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"Conformer: {name} is {getattr(self, name)}; it must be at least 1")
        if self.stem not in STEM_STRIDES:
            raise ValueError(f"Conformer: stem is {self.stem!r}; choose one of {', '.join(map(repr, STEM_STRIDES))}")
        if self.patch_size < 16 or self.patch_size % 16:
            raise ValueError(
                f"Conformer: patch_size is {self.patch_size}; it must be a multiple of 16, since the token grid is reached from three resolutions"
            )
        if self.depth % 3:
            near = dict.fromkeys(str(max(3, depth // 3 * 3)) for depth in (self.depth, self.depth + 3))  # 1 and 2 have one neighbour
            raise ValueError(
                f"Conformer: depth is {self.depth}; its three stages are equally deep, so give a multiple of 3, such as {' or '.join(near)}"
            )
        if self.embed_dim % self.num_heads:
            raise ValueError(f"Conformer: embed_dim {self.embed_dim} does not divide among num_heads {self.num_heads} heads")
        if self.widths[0] % 4 or self.widths[0] < 4:
            near = max(4, round(self.widths[0] / 4) * 4)
            ratio = f"{near / self.base_channel:g}"
            if int(self.base_channel * float(ratio)) != near:  # six digits, or rounding, fall short of the whole number
                ratio = repr((near + 0.5) / self.base_channel)
            raise ValueError(
                f"Conformer: base_channel {self.base_channel} times channel_ratio {self.channel_ratio} gives {self.widths[0]} channels, and a "
                f"bottleneck needs a multiple of 4: channel_ratio={ratio} gives {near}"
            )
        if self.mlp_width < 1:
            raise ValueError(f"Conformer: mlp_ratio {self.mlp_ratio} times embed_dim {self.embed_dim} leaves no hidden unit")
        if self.num_med_block < 0:
            raise ValueError(f"Conformer: num_med_block is {self.num_med_block}; it must not be negative")
        for name in ("drop_rate", "attn_drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Conformer: {name} is {getattr(self, name)}; it must be at least 0 and below 1")

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels of the CNN branch in the three stages."""
        first = int(self.base_channel * self.channel_ratio)
        return first, 2 * first, 4 * first

    @property
    def mlp_width(self) -> int:
        """Hidden units of a block's token-wise network."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def patch_stride(self) -> int:
        """Side of a token in pixels of the stem's output: kernel and stride of the patch convolution."""
        return self.patch_size // 4

    @property
    def size_multiple(self) -> int:
        """Image heights and widths that are multiples of this number always fit (the stem rounds up, so a few others do)."""
        return STEM_STRIDES[self.stem] * self.patch_stride

    def blocks(self) -> list[BlockPlan]:
        """The coupled blocks 2 .. depth; block 1, where the branches part, has no FCU (Peng et al. 2021, section 3; conformer.py, `Conformer`)."""
        plans = []
        for number in range(2, self.depth + 1):
            stage = (number - 1) // (self.depth // 3)  # 0, 1, 2
            halves = stage > 0 and (number - 1) % (self.depth // 3) == 0
            plans.append(
                BlockPlan(
                    number=number,
                    stage=stage + 1,
                    inplanes=self.widths[stage - 1] if halves else self.widths[stage],
                    outplanes=self.widths[stage],
                    stride=2 if halves else 1,
                    res_conv=halves,
                    dw_stride=self.patch_stride >> stage,
                    last_fusion=number == self.depth,
                    drop_path_rate=self.drop_path_rate * (number - 1) / (self.depth - 1),
                )
            )
        return plans

    def sides(self, image_size: int | Sequence[int] | None) -> tuple[int, int]:
        """Height and width in pixels of images that are named by one side, by both, or not at all: then 224 with the ImageNet stem, else 32."""
        if image_size is None:
            image_size = 224 if self.stem == "imagenet" else 32
        try:
            height = width = operator.index(image_size)  # type: ignore[arg-type]
        except TypeError:
            height, width = map(operator.index, image_size)  # type: ignore[arg-type]
        return height, width

    def stem_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the stem's output: every strided layer in it rounds up.

        Raises:
            ValueError: the token grid would not fit the feature maps; the sentence names sizes that do.
        """
        stride, multiple = STEM_STRIDES[self.stem], self.size_multiple
        sizes = -(-height // stride), -(-width // stride)
        if min(sizes) < 1 or any(size % self.patch_stride for size in sizes):
            fits = [size > 0 and size % self.patch_stride == 0 for size in sizes]
            below = [side if fit else max(multiple, side // multiple * multiple) for side, fit in zip((height, width), fits, strict=True)]
            above = [side if fit else max(multiple, (side // multiple + 1) * multiple) for side, fit in zip((height, width), fits, strict=True)]
            near = " or ".join(dict.fromkeys(f"{h} x {w}" for h, w in (below, above)))
            raise ValueError(
                f"Conformer: images are {height} x {width} pixels, but with stem {self.stem!r} and patch_size {self.patch_size} a whole number of "
                f"patches must cover them; so do multiples of {multiple}: resize to {near}"
            )
        return sizes

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens for an image of `height` x `width` pixels; raises like `stem_size`."""
        rows, columns = self.stem_size(height, width)
        return rows // self.patch_stride, columns // self.patch_stride


_PUBLISHED = ConformerConfig(channel_ratio=4, embed_dim=384, num_heads=6, qkv_bias=True)
_CIFAR = ConformerConfig(num_classes=10, qkv_bias=True)

CONFIGS: dict[str, ConformerConfig] = {
    "tiny-patch16": replace(_PUBLISHED, channel_ratio=1),
    "small-patch16": _PUBLISHED,
    "base-patch16": replace(_PUBLISHED, channel_ratio=6, embed_dim=576, num_heads=9),
    "small-patch32": replace(_PUBLISHED, patch_size=32),
    "cifar-nano": replace(_CIFAR, stem="cifar_fast", channel_ratio=0.75, embed_dim=96, depth=6, num_heads=3),
    "cifar-micro": replace(_CIFAR, stem="cifar", channel_ratio=1, embed_dim=128, depth=9, num_heads=4),
    "cifar-small": replace(_CIFAR, stem="cifar", channel_ratio=1.5, embed_dim=192, depth=12, num_heads=6),
}
"""The published four (models.py of the official code) and three for 32 x 32 images, under the names the command line takes."""


def named_config(name: str) -> ConformerConfig:
    """The configuration called `name`, for example "cifar-nano".

    Raises:
        ValueError: there is no such configuration; the sentence lists those there are.
    """
    if name not in CONFIGS:
        raise ValueError(f"Conformer: no configuration is called {name!r}; there are {', '.join(CONFIGS)}")
    return CONFIGS[name]
