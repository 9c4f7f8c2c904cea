"""The parts of the Conformer, under the names of the paper and of the official code: what a block of each branch does, and how the two are coupled.

Feature maps are channels-last: a map (B, H, W, C) and its tokens (B, H*W, C) are the same memory, so the official code's flatten and transpose
are reshapes here. Letters: B batch, H W rows and columns of a feature map, C channels, N tokens (class token included), E token width, d side of a
token in pixels of the map.

Looking inside needs no hooks: a `forward` that takes a dictionary `named` writes its intermediate tensors there; without one it keeps nothing, and of
a `Wanted`, which is such a dictionary, only what was asked for.
Read next: `model.py`, which puts the parts together.

Sources: Peng et al., "Conformer: Local Features Coupling Global Representations for Visual Recognition", ICCV 2021, section 3; the authors' code
(https://github.com/pengzhiliang/Conformer, conformer.py), whose parameter names, shapes and order these are.
"""

from __future__ import annotations

from collections.abc import Iterable

from conformer.config import BlockPlan, ConformerConfig
from minigrad import functional as F
from minigrad import nn, ops
from minigrad.tensor import Tensor

__all__ = [
    "Block",
    "ConvBlock",
    "ConvTransBlock",
    "FCUDown",
    "FCUUp",
    "Med_ConvBlock",
    "Mlp",
    "Named",
    "Wanted",
    "inside",
    "note",
    "note_block",
    "stem_convolution",
    "transformer_block",
]

Named = dict[str, Tensor]

EPS = 1e-6  # of every norm in the official code but the stem's batch norm and trans_norm, which keep PyTorch's 1e-5


class Wanted(Named):
    """A `Named` that keeps some names alone.

    Args:
        names: they.
    """

    def __init__(self, names: Iterable[str]):
        super().__init__()
        self.names = frozenset(names)


def note(named: Named | None, **tensors: Tensor | None) -> None:
    """Keep intermediate tensors by name, where they were asked for; None, which a replaced part may give, is not kept."""
    if named is not None:
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        named.update({name: kept[name] for name in kept if name in named.names} if isinstance(named, Wanted) else kept)


def inside(named: Named | None, name: str) -> Named | None:
    """What the sub-block `name` is given to write its tensors to: None where nothing of its inside was asked for."""
    if not isinstance(named, Wanted):
        return None if named is None else {}
    parts = {part.removeprefix(f"{name}.") for part in named.names if part.startswith(f"{name}.")}
    return Wanted(parts) if parts else None


def note_block(named: Named | None, name: str, inner: Named | None, output: Tensor) -> None:
    """Keep a sub-block's output under the parent's name for it, after the tensors that the sub-block kept of itself."""
    note(named, **{f"{name}.{part}": tensor for part, tensor in (inner or {}).items()}, **{name: output})


def stem_convolution(config: ConformerConfig) -> nn.Conv2d:
    """The first convolution; a batch norm, a ReLU and in the "imagenet" stem a max pool of stride 2 follow it."""
    kernel, stride = {"imagenet": (7, 2), "cifar": (3, 1), "cifar_fast": (3, 2)}[config.stem]
    return nn.Conv2d(config.in_chans, config.stem_channels, kernel, stride=stride, padding=kernel // 2, bias=False)


class Mlp(nn.Module):
    """The token-wise network of a transformer block: linear, exact GELU, dropout, linear, dropout (timm's Mlp)."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        x = self.drop(F.gelu(self.fc1(x)))  # (B, N, hidden)
        return self.drop(self.fc2(x))  # (B, N, E)


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)) (Dosovitskiy et al. 2021; conformer.py, `Block`).

    Stochastic depth draws for each of the two branches and each image on its own.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = nn.MultiHeadAttention(dim, num_heads, qkv_bias=qkv_bias, qk_scale=qk_scale, attn_drop=attn_drop, proj_drop=drop)
        self.drop_path = nn.DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, mlp_dim, drop)

    def forward(self, x: Tensor, named: Named | None = None) -> Tensor:
        """(B, N, E) -> (B, N, E). Names: norm1, attn, norm2, mlp."""
        norm1 = self.norm1(x)  # (B, N, E), like all below
        attention = self.attn(norm1)
        x = x + self.drop_path(attention)
        norm2 = self.norm2(x)
        mlp = self.mlp(norm2)
        note(named, norm1=norm1, attn=attention, norm2=norm2, mlp=mlp)
        return x + self.drop_path(mlp)


def transformer_block(config: ConformerConfig, drop_path_rate: float) -> Block:
    """A Block of the configuration's width, heads and rates."""
    return Block(
        config.embed_dim,
        config.num_heads,
        config.mlp_width,
        config.qkv_bias,
        config.qk_scale,
        drop=config.drop_rate,
        attn_drop=config.attn_drop_rate,
        drop_path=drop_path_rate,
    )


class ConvBlock(nn.Module):
    """A bottleneck: 1x1 to a quarter of the channels, 3x3 (which carries the stride), 1x1 to all of them, plus a shortcut.

    Source: conformer.py, `ConvBlock`.

    Args:
        inplanes, outplanes: channels before and after.
        stride: of the 3x3 convolution and of the projected shortcut.
        res_conv: project the shortcut by a 1x1 convolution and a batch norm.
    """

    def __init__(self, inplanes: int, outplanes: int, stride: int = 1, res_conv: bool = False):
        super().__init__()
        middle = outplanes // 4
        self.conv1 = nn.Conv2d(inplanes, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle, eps=EPS)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle, eps=EPS)
        self.conv3 = nn.Conv2d(middle, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes, eps=EPS)
        self.res_conv = res_conv
        if res_conv:
            self.residual_conv = nn.Conv2d(inplanes, outplanes, 1, stride=stride, bias=False)
            self.residual_bn = nn.BatchNorm2d(outplanes, eps=EPS)

    def forward(self, x: Tensor, expanded: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, H, W, inplanes) -> the output (B, H', W', outplanes), and the 3x3 convolution's (B, H', W', outplanes / 4), which FCUDown reads.

        `expanded` (B, H, W, outplanes / 4), what FCUUp made of the tokens, is added AFTER the first ReLU, before the 3x3 convolution.
        """
        shortcut = self.residual_bn(self.residual_conv(x)) if self.res_conv else x  # (B, H', W', outplanes)
        x = self.bn1(self.conv1(x), relu=True)  # (B, H, W, middle)
        if expanded is not None:
            x = x + expanded
        x2 = self.bn2(self.conv2(x), relu=True)  # (B, H', W', middle)
        return self.bn3(self.conv3(x2), residual=shortcut, relu=True), x2


class Med_ConvBlock(ConvBlock):
    """A bottleneck between the other two that keeps channels and resolution and meets no tokens; none in the published variants.

    Source: conformer.py, `Med_ConvBlock`.
    """

    def __init__(self, inplanes: int):
        super().__init__(inplanes, inplanes)


class FCUDown(nn.Module):
    """Feature map to tokens: 1x1 convolution, average over each token's d x d pixels, layer norm, GELU, class token in front.

    The official code convolves first and pools then. Both are linear, one acts on channels, the other on space, and an average keeps the bias: they
    commute. Pooling first convolves d * d times fewer pixels and gives the same tokens up to rounding.

    Source: Peng et al. 2021, section 3 (feature coupling unit); conformer.py, `FCUDown`.

    Args:
        inplanes: channels of the map.
        outplanes: token width E.
        dw_stride: side d of a token in pixels of the map.
        double_class_token: put the transformer's class token in front, which the sum that follows then doubles, as in the official code; False puts
            zeros there.
    """

    def __init__(self, inplanes: int, outplanes: int, dw_stride: int, double_class_token: bool = True):
        super().__init__()
        self.dw_stride = dw_stride
        self.double_class_token = double_class_token
        self.conv_project = nn.Conv2d(inplanes, outplanes, 1)
        self.ln = nn.LayerNorm(outplanes, eps=EPS)

    def forward(self, x: Tensor, x_t: Tensor) -> Tensor:
        """The map (B, H, W, C) and the tokens (B, N, E), of which only the class token is read -> (B, N, E)."""
        if self.dw_stride > 1:
            x = F.avg_pool2d(x, self.dw_stride, self.dw_stride)  # (B, H/d, W/d, C)
        x = self.conv_project(x)  # (B, H/d, W/d, E)
        x = F.gelu(self.ln(x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])))  # (B, N - 1, E)
        if self.double_class_token:
            return ops.concatenate([x_t[:, :1], x], axis=1)  # (B, N, E)
        return ops.pad(x, ((0, 0), (1, 0), (0, 0)))  # (B, N, E)


class FCUUp(nn.Module):
    """Tokens to feature map: 1x1 convolution, batch norm, ReLU, nearest up-sampling by d.

    The paper's figure 2 draws the up-sampling first; for nearest neighbours the order matters only to the running variance, and this is the code's.

    Source: Peng et al. 2021, section 3 (feature coupling unit); conformer.py, `FCUUp`.

    Args:
        inplanes: token width E.
        outplanes: channels of the map.
        up_stride: side d of a token in pixels of the map.
    """

    def __init__(self, inplanes: int, outplanes: int, up_stride: int):
        super().__init__()
        self.up_stride = up_stride
        self.conv_project = nn.Conv2d(inplanes, outplanes, 1)
        self.bn = nn.BatchNorm2d(outplanes, eps=EPS)

    def forward(self, x_t: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, 1 + height * width, E) -> (B, height * d, width * d, C). The class token stays behind."""
        x = x_t[:, 1:].reshape(x_t.shape[0], height, width, x_t.shape[2])  # (B, H/d, W/d, E)
        x = self.bn(self.conv_project(x), relu=True)  # (B, H/d, W/d, C)
        return F.upsample_nearest(x, self.up_stride) if self.up_stride > 1 else x  # (B, H, W, C)


class ConvTransBlock(nn.Module):
    """One block of both branches: a bottleneck; its pixels join the tokens, a transformer block; its tokens join the pixels, a second bottleneck.

    Source: Peng et al. 2021, section 3; conformer.py, `ConvTransBlock`.
    """

    def __init__(self, config: ConformerConfig, plan: BlockPlan):
        super().__init__()
        middle = plan.outplanes // 4
        self.dw_stride = plan.dw_stride
        self.cnn_block = ConvBlock(plan.inplanes, plan.outplanes, plan.stride, plan.res_conv)
        self.fusion_block = ConvBlock(plan.outplanes, plan.outplanes, stride=2 if plan.last_fusion else 1, res_conv=plan.last_fusion)
        self.med_block = nn.ModuleList([Med_ConvBlock(plan.outplanes) for _ in range(config.num_med_block)])
        self.squeeze_block = FCUDown(middle, config.embed_dim, plan.dw_stride, config.double_class_token)
        self.expand_block = FCUUp(config.embed_dim, middle, plan.dw_stride)
        self.trans_block = transformer_block(config, plan.drop_path_rate)

    def forward(self, x: Tensor, x_t: Tensor, named: Named | None = None) -> tuple[Tensor, Tensor]:
        """The map (B, H, W, C) and the tokens (B, N, E) -> the same after this block, C, H and W perhaps changed.

        Names, in order: cnn_block, squeeze_block, trans_block.*, trans_block, med_block.*, expand_block, fusion_block.
        """
        inner = inside(named, "trans_block")
        x, x2 = self.cnn_block(x)  # (B, H, W, C), (B, H, W, C / 4)
        squeezed = self.squeeze_block(x2, x_t)  # (B, N, E)
        note(named, cnn_block=x, squeeze_block=squeezed)
        x_t = self.trans_block(squeezed + x_t, inner)  # (B, N, E); with double_class_token the class token enters doubled
        note_block(named, "trans_block", inner, x_t)
        for index, med_block in enumerate(self.med_block):
            x, _ = med_block(x)  # (B, H, W, C)
            note(named, **{f"med_block.{index}": x})
        expanded = self.expand_block(x_t, x2.shape[1] // self.dw_stride, x2.shape[2] // self.dw_stride)  # (B, H, W, C / 4)
        x, _ = self.fusion_block(x, expanded)  # (B, H, W, C), half of H and W in the last block
        note(named, expand_block=expanded, fusion_block=x)
        return x, x_t
