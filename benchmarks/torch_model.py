"""The Conformer as a good PyTorch user would write it for speed: the other side of the benchmarks.

Parameters, their names and their order are those of `conformer.Conformer`, so the same weights run in both; tests/test_benchmarks.py compares the
two. Everything PyTorch offers for this network is used: in-place ReLU, layout-preserving reshapes (with channels_last, tokens and feature map are
the same memory), pooling before the 1x1 convolution that it commutes with (as ours does),
`scaled_dot_product_attention`, fused AdamW. Images are (B, 3, H, W).

Read next: `networks.py`, which trains it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformer.config import BlockPlan, ConformerConfig

EPS = 1e-6  # of every norm but the stem's and the last


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int, bias: bool, scale: float | None):
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        b, n, e = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, N, D) each
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(y.transpose(1, 2).reshape(b, n, e))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=EPS)
        self.attn = Attention(config.embed_dim, config.num_heads, config.qkv_bias, config.qk_scale)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=EPS)
        self.mlp = Mlp(config.embed_dim, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ConvBlock(nn.Module):
    """The bottleneck; returns its output and what FCUDown reads."""

    def __init__(self, inplanes: int, outplanes: int, stride: int = 1, res_conv: bool = False):
        super().__init__()
        middle = outplanes // 4
        self.conv1, self.bn1 = nn.Conv2d(inplanes, middle, 1, bias=False), nn.BatchNorm2d(middle, eps=EPS)
        self.conv2, self.bn2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False), nn.BatchNorm2d(middle, eps=EPS)
        self.conv3, self.bn3 = nn.Conv2d(middle, outplanes, 1, bias=False), nn.BatchNorm2d(outplanes, eps=EPS)
        self.res_conv = res_conv
        if res_conv:
            self.residual_conv, self.residual_bn = nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes, eps=EPS)

    def forward(self, x: Tensor, x_t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, inplanes, H, W) -> (B, outplanes, H', W'), (B, outplanes / 4, H', W')."""
        y = F.relu_(self.bn1(self.conv1(x)))
        if x_t is not None:
            y = y + x_t
        x2 = F.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(x2))
        return F.relu_(y.add_(self.residual_bn(self.residual_conv(x)) if self.res_conv else x)), x2


class FCUDown(nn.Module):
    """Feature map to patch tokens (B, N - 1, E)."""

    def __init__(self, inplanes: int, outplanes: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv_project = nn.Conv2d(inplanes, outplanes, 1)
        self.ln = nn.LayerNorm(outplanes, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N - 1, E)."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return F.gelu(self.ln(self.conv_project(x).flatten(2).transpose(1, 2)))


class FCUUp(nn.Module):
    """Patch tokens to a feature map."""

    def __init__(self, inplanes: int, outplanes: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv_project = nn.Conv2d(inplanes, outplanes, 1)
        self.bn = nn.BatchNorm2d(outplanes, eps=EPS)

    def forward(self, x_t: Tensor, rows: int, columns: int) -> Tensor:
        """(B, N, E) -> (B, C, rows * stride, columns * stride)."""
        x = x_t[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)  # (B, E, rows, columns) in channels_last strides
        x = F.relu_(self.bn(self.conv_project(x)))
        return F.interpolate(x, scale_factor=self.stride) if self.stride > 1 else x


class ConvTransBlock(nn.Module):
    """One coupled block of both branches."""

    def __init__(self, config: ConformerConfig, plan: BlockPlan):
        super().__init__()
        middle = plan.outplanes // 4
        self.d, self.factor = plan.dw_stride, 2.0 if config.double_class_token else 1.0
        self.cnn_block = ConvBlock(plan.inplanes, plan.outplanes, plan.stride, plan.res_conv)
        self.fusion_block = ConvBlock(plan.outplanes, plan.outplanes, 2 if plan.last_fusion else 1, plan.last_fusion)
        if config.num_med_block:
            self.med_block = nn.ModuleList(ConvBlock(plan.outplanes, plan.outplanes) for _ in range(config.num_med_block))
        self.squeeze_block = FCUDown(middle, config.embed_dim, plan.dw_stride)
        self.expand_block = FCUUp(config.embed_dim, middle, plan.dw_stride)
        self.trans_block = Block(config)

    def forward(self, x: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W), (B, N, E) -> the same after this block."""
        x, x2 = self.cnn_block(x)
        x_t = self.trans_block(torch.cat([self.factor * x_t[:, :1], self.squeeze_block(x2) + x_t[:, 1:]], 1))
        for med in getattr(self, "med_block", ()):
            x, _ = med(x)
        return self.fusion_block(x, self.expand_block(x_t, x2.shape[2] // self.d, x2.shape[3] // self.d))[0], x_t


class TorchConformer(nn.Module):
    """The Conformer of a configuration without its random parts (dropout, drop path); initialised as the official code does."""

    def __init__(self, config: ConformerConfig):
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.trans_norm = nn.LayerNorm(config.embed_dim)
        self.trans_cls_head = nn.Linear(config.embed_dim, config.num_classes)
        self.conv_cls_head = nn.Linear(config.widths[2], config.num_classes)
        kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1), "cifar_fast": (3, 2)}[config.stem]
        self.conv1 = nn.Conv2d(config.in_chans, config.stem_channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem_channels)
        self.conv_1 = ConvBlock(config.stem_channels, config.widths[0], res_conv=True)
        self.trans_patch_conv = nn.Conv2d(config.stem_channels, config.embed_dim, config.patch_stride, config.patch_stride)
        self.trans_1 = Block(config)
        for plan in config.blocks():
            self.add_module(plan.name, ConvTransBlock(config, plan))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> the CNN head's logits and the transformer head's, (B, K) each."""
        stem = F.relu_(self.bn1(self.conv1(images)))
        if self.config.stem == "imagenet":
            stem = F.max_pool2d(stem, 3, 2, 1)
        x, _ = self.conv_1(stem)
        patches = self.trans_patch_conv(stem).flatten(2).transpose(1, 2)  # (B, N - 1, E)
        x_t = self.trans_1(torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1))
        for plan in self.config.blocks():
            x, x_t = getattr(self, plan.name)(x, x_t)
        return self.conv_cls_head(x.mean((2, 3))), self.trans_cls_head(self.trans_norm(x_t[:, 0]))


def loss_of(heads: tuple[Tensor, Tensor], labels: Tensor, smoothing: float) -> Tensor:
    """The mean of both heads' cross entropies."""
    cnn, transformer = (F.cross_entropy(head, labels, label_smoothing=smoothing) for head in heads)
    return (cnn + transformer) / 2


def optimizer_of(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused AdamW that spares 1-D parameters, biases and the class token from weight decay, as ours does."""
    named = list(model.named_parameters())
    spared = [parameter for name, parameter in named if parameter.ndim <= 1 or name.endswith(".bias") or name == "cls_token"]
    chosen = {id(parameter) for parameter in spared}
    decayed = [parameter for _, parameter in named if id(parameter) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
