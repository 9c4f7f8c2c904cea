"""What the Conformer is compared with: each of its two branches alone, a ResNet and a ViT, made of the same blocks by the same configuration.

`conformer train --network` makes one of `NETWORKS`. Parameters have the names and shapes they have in the Conformer, so a branch's
`load_state_dict(conformer.state_dict(), strict=False)` takes its share of a trained one. Only the coupling is gone: no FCU carries anything over.
Read before: `blocks.py` and `model.py`, whose parts these are. What the three reach on coupling10 is in `docs/coupling10.md`, by
`benchmarks/coupling10_networks.py`.

Letters: B batch, H W rows and columns, C1 channels of the first stage, N tokens (class token included), E token width, d side of a token in pixels of
the stem's output, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np

from conformer.blocks import ConvBlock, Med_ConvBlock, stem_convolution, transformer_block
from conformer.config import BlockPlan, ConformerConfig
from conformer.model import Conformer, initialise
from minigrad import functional as F
from minigrad import nn, ops
from minigrad.tensor import Tensor

__all__ = ["NETWORKS", "Build", "CNNBranch", "ConvBranchBlock", "TransBranchBlock", "TransformerBranch", "builder", "label"]

Build = Callable[[ConformerConfig], nn.Module]
"""Makes a network of a configuration: a `lambda config: Ablated(**asdict(config))`, or a class whose only argument it is."""

NETWORKS = "conformer", "cnn", "transformer"
"""The networks that a configuration stands for: the whole, and each branch alone."""


def builder(network: str, image_size: tuple[int, int] | None = None) -> Build:
    """What makes one of `NETWORKS`.

    Args:
        network: its name.
        image_size: height and width of the images, for the positions of the transformer branch; None is as for `TransformerBranch`.

    Raises:
        ValueError: it is none of them.
    """
    if network not in NETWORKS:
        raise ValueError(f"network is {network}; it must be one of {', '.join(NETWORKS)}, unless Python code gives what builds it")
    if network == "conformer":
        return lambda config: Conformer(**asdict(config))
    return CNNBranch if network == "cnn" else partial(TransformerBranch, image_size=image_size)


def label(config: str, network: str) -> str:
    """What a network of a configuration is called: cifar-nano, or cifar-nano-cnn for a branch alone."""
    return config if network == "conformer" else f"{config}-{network}"


class ConvBranchBlock(nn.Module):
    """What a ConvTransBlock is to the CNN branch: two bottlenecks in a row, and Med_ConvBlocks between them if there are any.

    FCUDown is gone, since no token reads the map; so is FCUUp, since there is no token to expand: `fusion_block` keeps its name, its convolutions and
    its stride, and adds nothing to the input of its 3x3 convolution. That is what it computes in a Conformer whose `expand_block` gives zeros.
    """

    def __init__(self, config: ConformerConfig, plan: BlockPlan):
        super().__init__()
        self.cnn_block = ConvBlock(plan.inplanes, plan.outplanes, plan.stride, plan.res_conv)
        self.fusion_block = ConvBlock(plan.outplanes, plan.outplanes, stride=2 if plan.last_fusion else 1, res_conv=plan.last_fusion)
        self.med_block = nn.ModuleList([Med_ConvBlock(plan.outplanes) for _ in range(config.num_med_block)])

    def forward(self, x: Tensor) -> Tensor:
        """The map (B, H, W, C) -> the same after this block, C, H and W perhaps changed."""
        x, _ = self.cnn_block(x)  # (B, H, W, C)
        for med_block in self.med_block:
            x, _ = med_block(x)  # (B, H, W, C)
        x, _ = self.fusion_block(x)  # (B, H, W, C), half of H and W in the last block
        return x


class CNNBranch(nn.Module):
    """The Conformer's CNN branch alone: a ResNet of bottlenecks, with the Conformer's stem and its CNN head.

    For "cifar-nano" 269,322 parameters, a quarter of the Conformer's.

    Source: Peng et al. 2021, section 3 (the CNN branch is a ResNet in its feature pyramid of stages); He et al. 2016 (bottlenecks).

    Args:
        config: the Conformer's; what only the tokens read (embed_dim, num_heads, rates, ...) has no effect.
    """

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.config = config
        self.plans = config.blocks()
        self.conv_cls_head = nn.Linear(config.widths[2], config.num_classes)
        self.conv1 = stem_convolution(config)
        self.bn1 = nn.BatchNorm2d(config.stem_channels)
        self.conv_1 = ConvBlock(config.stem_channels, config.widths[0], res_conv=True)
        for plan in self.plans:
            setattr(self, plan.name, ConvBranchBlock(config, plan))
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, in_chans), normalised -> logits (B, K). H and W need not be multiples of anything: there is no token grid to fit.

        Raises:
            ValueError: images of another shape, or a single value per channel for a training batch norm. TypeError: another dtype.
        """
        x = self.bn1(self.conv1(images), relu=True)  # (B, H, W, stem_channels)
        if self.config.stem == "imagenet":
            x = F.max_pool2d(x, 3, 2, 1)
        x, _ = self.conv_1(x)  # (B, H, W, C1)
        for plan in self.plans:
            x = getattr(self, plan.name)(x)  # (B, H, W, C)
        return self.conv_cls_head(F.global_avg_pool2d(x))  # (B, K)


class TransBranchBlock(nn.Module):
    """What a ConvTransBlock is to the transformer branch: a transformer block.

    FCUDown is gone, and with it the doubling of the class token: it is FCUDown that puts a second one there (`double_class_token`).
    """

    def __init__(self, config: ConformerConfig, plan: BlockPlan):
        super().__init__()
        self.trans_block = transformer_block(config, plan.drop_path_rate)

    def forward(self, x_t: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        return self.trans_block(x_t)


class TransformerBranch(nn.Module):
    """The Conformer's transformer branch alone: a ViT on the Conformer's stem, with its class token and its transformer head.

    Without the CNN branch nothing tells the tokens where they are, so each place gets a learnt vector that is added before the first block. For
    "cifar-nano" and 32 x 32 images 774,186 parameters, 1,632 of them positions.

    Source: Dosovitskiy et al. 2021, section 3.1; Touvron et al. 2021 (DeiT). `pos_embed` is timm 0.3.2's (vision_transformer.py): its name, shape
    and initialisation.

    Args:
        config: the Conformer's; what only the CNN branch reads (base_channel, channel_ratio, num_med_block, double_class_token) has no effect.
        positional_embedding: False leaves it out. Then the order of the tokens is lost, up to what the stem's padding betrays about the border.
        image_size: side in pixels, or (height, width), of the images that the positional embedding is for; None is 224 with the ImageNet stem and 32
            with the others.

    Raises:
        ValueError: images of that size do not fit the token grid.
    """

    def __init__(self, config: ConformerConfig, positional_embedding: bool = True, image_size: int | tuple[int, int] | None = None):
        super().__init__()
        self.config = config
        self.plans = config.blocks()
        width = config.embed_dim
        self.image_size = config.sides(image_size)
        rows, columns = config.token_grid(*self.image_size)
        self.cls_token = nn.Parameter(np.zeros((1, 1, width), np.float32))
        self.pos_embed = nn.Parameter(np.zeros((1, 1 + rows * columns, width), np.float32)) if positional_embedding else None
        self.trans_norm = nn.LayerNorm(width)
        self.trans_cls_head = nn.Linear(width, config.num_classes)
        self.conv1 = stem_convolution(config)
        self.bn1 = nn.BatchNorm2d(config.stem_channels)
        self.trans_patch_conv = nn.Conv2d(config.stem_channels, width, config.patch_stride, stride=config.patch_stride)
        self.trans_1 = transformer_block(config, 0.0)
        for plan in self.plans:
            setattr(self, plan.name, TransBranchBlock(config, plan))

        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(initialise)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)  # drawn last: everything else starts as it does without it

    def forward(self, images: Tensor) -> Tensor:
        """(B, H, W, in_chans), normalised -> logits (B, K).

        With a positional embedding H and W are those of `image_size`, else multiples of `config.size_multiple`.

        Raises:
            ValueError: images of another shape. TypeError: another dtype.
        """
        stem = self.conv1(images)  # (B, H, W, stem_channels); raises if these are no images
        rows, columns = self.config.token_grid(*images.shape[1:3])
        if self.pos_embed is not None and tuple(images.shape[1:3]) != self.image_size:
            raise ValueError(
                f"TransformerBranch: images are {images.shape[1]} x {images.shape[2]} pixels, but its positional embedding is for "
                f"{self.image_size[0]} x {self.image_size[1]}: give that image_size, or positional_embedding=False"
            )
        stem = self.bn1(stem, relu=True)  # nothing is wrong with the images: the statistics may move
        if self.config.stem == "imagenet":
            stem = F.max_pool2d(stem, 3, 2, 1)
        patches = self.trans_patch_conv(stem)  # (B, H/d, W/d, E)
        batch, width = images.shape[0], self.config.embed_dim
        class_token = self.cls_token.broadcast_to((batch, 1, width))  # (B, 1, E)
        x_t = ops.concatenate([class_token, patches.reshape(batch, rows * columns, width)], axis=1)  # (B, N, E)
        if self.pos_embed is not None:
            x_t = x_t + self.pos_embed
        x_t = self.trans_1(x_t)  # (B, N, E), like all below
        for plan in self.plans:
            x_t = getattr(self, plan.name)(x_t)
        return self.trans_cls_head(self.trans_norm(x_t)[:, 0])  # (B, K)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone although they are not 1-D (DeiT, models.py)."""
        return {"cls_token", "pos_embed"}
