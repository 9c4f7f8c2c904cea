"""An independent vision Conformer in plain PyTorch: the second witness that our own model is compared with.

Written from Peng et al. (ICCV 2021) and the behaviour of the official code, (B, C, H, W) throughout, for reading and not for speed. It shares no
line with `conformer/model.py`; the state_dict names, order and shapes are the official ones, so weights travel both ways. test_oracle.py
proves this file and ours against the recorded numbers of the original; test_parity.py compares the two where there is no recording.

Letters: B batch, C channels, H W rows and columns, N tokens, E embedding width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nn.parity import Dropout, DropPath

STEMS = {"imagenet": (7, 2), "cifar": (3, 1), "cifar_fast": (3, 2)}  # kernel size, stride


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Every batch norm but the stem's has this epsilon."""
    return nn.BatchNorm2d(channels, eps=1e-6)


class Attention(nn.Module):
    """Multi-head self-attention, written out."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, qk_scale: float | None, attn_drop: float, drop: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = Dropout(attn_drop)
        self.proj_drop = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # each (B, heads, N, head width)
        weights = self.attn_drop(torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1))
        y = (weights @ v).transpose(1, 2).reshape(batch, tokens, dim)
        return self.proj_drop(self.proj(y))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """A pre-norm transformer block; both of its residual branches are dropped for whole samples."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, qk_scale: float | None, drop: float, attn_drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvBlock(nn.Module):
    """The bottleneck 1x1, 3x3, 1x1; the tokens' map may be added after the first, and the second's output is what FCUDown reads."""

    def __init__(self, inplanes: int, outplanes: int, stride: int = 1, res_conv: bool = False) -> None:
        super().__init__()
        middle = outplanes // 4
        self.conv1 = nn.Conv2d(inplanes, middle, 1, bias=False)
        self.bn1 = batch_norm(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.bn2 = batch_norm(middle)
        self.conv3 = nn.Conv2d(middle, outplanes, 1, bias=False)
        self.bn3 = batch_norm(outplanes)
        self.res_conv = res_conv
        if res_conv:
            self.residual_conv = nn.Conv2d(inplanes, outplanes, 1, stride=stride, bias=False)
            self.residual_bn = batch_norm(outplanes)

    def forward(self, x: Tensor, x_t: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = F.relu(self.bn1(self.conv1(x)))
        if x_t is not None:
            y = y + x_t
        x2 = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(x2))
        shortcut = self.residual_bn(self.residual_conv(x)) if self.res_conv else x
        return F.relu(y + shortcut), x2


class FCUDown(nn.Module):
    """Feature map (B, C, H, W) to patch tokens (B, N, E)."""

    def __init__(self, inplanes: int, outplanes: int, dw_stride: int) -> None:
        super().__init__()
        self.dw_stride = dw_stride
        self.conv_project = nn.Conv2d(inplanes, outplanes, 1)
        self.ln = nn.LayerNorm(outplanes, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.conv_project(x), self.dw_stride, self.dw_stride)
        return F.gelu(self.ln(x.flatten(2).transpose(1, 2)))


class FCUUp(nn.Module):
    """Tokens (B, 1 + N, E) to a feature map (B, C, rows * up_stride, columns * up_stride)."""

    def __init__(self, inplanes: int, outplanes: int, up_stride: int) -> None:
        super().__init__()
        self.up_stride = up_stride
        self.conv_project = nn.Conv2d(inplanes, outplanes, 1)
        self.bn = batch_norm(outplanes)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        grid = x[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, rows, columns)  # (B, E, rows, columns)
        y = F.relu(self.bn(self.conv_project(grid)))
        return F.interpolate(y, size=(rows * self.up_stride, columns * self.up_stride), mode="nearest")


class ConvTransBlock(nn.Module):
    """One coupled block of both branches: (x, x_t) -> (x, x_t)."""

    def __init__(
        self,
        inplanes: int,
        outplanes: int,
        res_conv: bool,
        stride: int,
        dw_stride: int,
        embed_dim: int,
        last_fusion: bool,
        num_med_block: int,
        double_class_token: bool,
        block: Mapping[str, object],
    ) -> None:
        super().__init__()
        middle = outplanes // 4
        self.cnn_block = ConvBlock(inplanes, outplanes, stride, res_conv)
        self.fusion_block = ConvBlock(outplanes, outplanes, 2 if last_fusion else 1, last_fusion)
        if num_med_block > 0:
            self.med_block = nn.ModuleList(ConvBlock(outplanes, outplanes) for _ in range(num_med_block))
        self.squeeze_block = FCUDown(middle, embed_dim, dw_stride)
        self.expand_block = FCUUp(embed_dim, middle, dw_stride)
        self.trans_block = Block(embed_dim, **block)  # type: ignore[arg-type]
        self.dw_stride = dw_stride
        self.double_class_token = double_class_token

    def forward(self, x: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        x, x2 = self.cnn_block(x)
        class_token, patches = x_t[:, :1], x_t[:, 1:]
        # The original concatenates x_t's class token to the FCU's output and then adds x_t: the class token counts twice.
        class_token = 2 * class_token if self.double_class_token else class_token
        x_t = self.trans_block(torch.cat([class_token, self.squeeze_block(x2) + patches], dim=1))
        for med in getattr(self, "med_block", ()):
            x, _ = med(x)
        rows, columns = x2.shape[2] // self.dw_stride, x2.shape[3] // self.dw_stride
        x, _ = self.fusion_block(x, self.expand_block(x_t, rows, columns))
        return x, x_t


class TorchConformer(nn.Module):
    """The Conformer on images (B, 3, H, W), with the arguments of `conformer.Conformer` under the same names.

    Returns (conv_logits, trans_logits), each (B, K). Nothing is drawn: in training, rates above 0 need `give_masks` (tests/nn/parity.py).
    """

    def __init__(
        self,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        base_channel: int = 64,
        channel_ratio: float = 4,
        num_med_block: int = 0,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem: str = "imagenet",
        stem_channels: int = 64,
        double_class_token: bool = True,
    ) -> None:
        super().__init__()
        self.depth = depth
        self.stem = stem
        width = int(base_channel * channel_ratio)
        patch = patch_size // 4
        rates = [drop_path_rate * i / (depth - 1) for i in range(depth)]

        def block(index: int) -> dict[str, object]:
            return dict(
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rates[index],
            )

        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.trans_norm = nn.LayerNorm(embed_dim)
        self.trans_cls_head = nn.Linear(embed_dim, num_classes)
        self.conv_cls_head = nn.Linear(4 * width, num_classes)
        kernel, stride = STEMS[stem]
        self.conv1 = nn.Conv2d(in_chans, stem_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.conv_1 = ConvBlock(stem_channels, width, res_conv=True)
        self.trans_patch_conv = nn.Conv2d(stem_channels, embed_dim, patch, stride=patch)
        self.trans_1 = Block(embed_dim, **block(0))  # type: ignore[arg-type]
        for i in range(2, depth + 1):
            stage = (i - 1) * 3 // depth  # 0, 1, 2
            first = stage > 0 and (i - 2) * 3 // depth < stage  # the stage's first block halves the map and doubles the channels
            coupled = ConvTransBlock(
                inplanes=width * 2 ** (stage - 1) if first else width * 2**stage,
                outplanes=width * 2**stage,
                res_conv=first,
                stride=2 if first else 1,
                dw_stride=patch // 2**stage,
                embed_dim=embed_dim,
                last_fusion=i == depth,
                num_med_block=num_med_block,
                double_class_token=double_class_token,
                block=block(i - 1),
            )
            self.add_module(f"conv_trans_{i}", coupled)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The official initialisation; the biases of the convolutions keep PyTorch's default."""
        if self.cls_token.is_meta:
            return
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x_base = F.relu(self.bn1(self.conv1(images)))
        if self.stem == "imagenet":
            x_base = F.max_pool2d(x_base, 3, stride=2, padding=1)
        x, _ = self.conv_1(x_base)
        patches = self.trans_patch_conv(x_base).flatten(2).transpose(1, 2)  # (B, N, E)
        x_t = self.trans_1(torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1))
        for i in range(2, self.depth + 1):
            x, x_t = getattr(self, f"conv_trans_{i}")(x, x_t)
        return self.conv_cls_head(x.mean((2, 3))), self.trans_cls_head(self.trans_norm(x_t)[:, 0])


def no_decay(name: str, parameter: Tensor) -> bool:
    """Whether the official recipe exempts this parameter from weight decay."""
    return parameter.ndim == 1 or name.endswith(".bias") or name == "cls_token"


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The two groups of the official recipe: decayed, and not."""
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if not no_decay(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if no_decay(name, p)], "weight_decay": 0.0},
    ]
