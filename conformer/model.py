"""The Conformer: a CNN branch and a transformer branch side by side, coupled in both directions in every block but the first.

Here are the network, its initialisation, its parameter groups for AdamW, and functions that make the published and the CIFAR variants. Parameters
have the official code's names, shapes and order (Peng et al., ICCV 2021; https://github.com/pengzhiliang/Conformer, conformer.py), so its checkpoints
load as they are. Read before: `blocks.py`, the parts. Read next: `info.py`, the same network in numbers.

Letters: B batch, H W rows and columns, C1 channels of the CNN branch's first stage, N tokens (class token included), E token width, d side of a token
in pixels of the stem's output, K classes.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from conformer.blocks import Block, ConvBlock, ConvTransBlock, Named, Wanted, inside, note, note_block, stem_convolution, transformer_block
from conformer.config import CONFIGS, ConformerConfig
from minigrad import backend, nn, ops
from minigrad import functional as F
from minigrad.checkpoint import checkpoint
from minigrad.tensor import Tensor

__all__ = [
    "Conformer",
    "conformer_base_patch16",
    "conformer_cifar_micro",
    "conformer_cifar_nano",
    "conformer_cifar_small",
    "conformer_small_patch16",
    "conformer_small_patch32",
    "conformer_tiny_patch16",
    "evaluating",
    "initialise",
    "parameter_groups",
]


class Conformer(nn.Module):
    """The vision Conformer. There is no positional embedding: the CNN branch tells the tokens where they are.

    `ConformerConfig` explains the arguments. The defaults are the official code's, which make no published variant; for those there are
    `conformer_tiny_patch16` and so on.

    Source: Peng et al. 2021, section 3; conformer.py, `Conformer`.

    Raises:
        ValueError: arguments that no network can be built with.
    """

    block: ClassVar[type[ConvTransBlock]] = ConvTransBlock
    """What makes the blocks from the second on, of the configuration and the block's plan: a subclass that says `block = MyBlock` has blocks of its
    own, initialised, checkpointed and looked into as these are (docs/add_layer.md)."""

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
    ):
        super().__init__()
        self.config = config = ConformerConfig(
            patch_size, in_chans, num_classes, base_channel, channel_ratio, num_med_block, embed_dim, depth, num_heads, mlp_ratio, qkv_bias, qk_scale,
            drop_rate, attn_drop_rate, drop_path_rate, stem, stem_channels, double_class_token,
        )  # fmt: skip
        self.plans = config.blocks()
        self.grad_checkpointing = False

        self.cls_token = nn.Parameter(np.zeros((1, 1, embed_dim), np.float32))
        self.trans_norm = nn.LayerNorm(embed_dim)
        self.trans_cls_head = nn.Linear(embed_dim, num_classes)
        # the official code writes int(256 * channel_ratio) inputs, which is this for base_channel 64 and fails for any other
        self.conv_cls_head = nn.Linear(config.widths[2], num_classes)

        self.conv1 = stem_convolution(config)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        # projected even where both have as many channels
        self.conv_1 = ConvBlock(stem_channels, config.widths[0], res_conv=True)
        self.trans_patch_conv = nn.Conv2d(stem_channels, embed_dim, config.patch_stride, stride=config.patch_stride)
        self.trans_1 = transformer_block(config, 0.0)
        for plan in self.plans:
            setattr(self, plan.name, self.block(config, plan))

        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(initialise)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads; their sum is the network's answer (Peng et al. 2021, section 3).

        Args:
            images: (B, H, W, in_chans), normalised, of the parameters' dtype; H and W are multiples of
                `config.size_multiple`, or what the stem rounds up to one (`config.stem_size`).

        Returns:
            The CNN head's logits (B, K) and the transformer head's (B, K).

        Raises:
            ValueError: images of another shape, or a single value per channel for a training batch norm. TypeError: another dtype.
        """
        return self._forward(images, None)

    def intermediates(self, images: Tensor, names: Iterable[str] | None = None) -> Named:
        """Every block's output, and those of its parts, by name and in the order they are made; takes and raises what `forward` does.

        They are part of the graph: a gradient can be asked for at each. The names are the modules', but for "stem", "tokens" (class token, patches)
        and "pooling": "stem", "conv_1", "trans_patch_conv" (B, H, W, E), "tokens", "trans_1.norm1", "trans_1.attn", "trans_1.norm2", "trans_1.mlp",
        "trans_1"; for each i from 2 "conv_trans_i.cnn_block", ".squeeze_block", ".trans_block.norm1" and so on, ".trans_block" (the tokens after
        block i), ".med_block.0" where there is one, ".expand_block", ".fusion_block", "conv_trans_i" (the same map); at the end "pooling",
        "conv_cls_head", "trans_norm", "trans_cls_head".

        Args:
            images: see `forward`.
            names: those to keep; None keeps all. With `set_grad_checkpointing` the blocks of which nothing is asked but "conv_trans_i" and
                "conv_trans_i.trans_block", what they put out, are then run again in backward; with None, or inside a block, everything is kept.
                cifar-small at batch 4, of which one block in three and the last tokens are kept: 10 MiB at the peak instead of 38 without a graph;
                with a loss on these and its backward 63 MiB when checkpointing, 128 when not, 137 with None.

        Raises:
            ValueError: names that there are not; it gives the nearest. TypeError: `names` is one text, or holds something else than texts.
        """
        if names is None:
            named: Named = {}
        elif isinstance(names, str):
            raise TypeError(f"Conformer.intermediates: names is {names!r}; give a list of names, [{names!r}]")
        else:
            wanted = list(names) if isinstance(names, Iterable) else [names]
            for name in wanted:
                if not isinstance(name, str):
                    raise TypeError(f"Conformer.intermediates: {name!r} is not a name; give a list of names such as ['stem', 'trans_1']")
            named = Wanted(wanted)
            self._check_names(named.names)
        self._forward(images, named)
        if isinstance(named, Wanted) and (missing := sorted(named.names - named.keys())):
            raise ValueError(
                f"Conformer.intermediates: nothing was noted as {', '.join(map(repr, missing))}; a block of one's own notes its parts by "
                "conformer.blocks.note, and a part that gives None has no output"
            )
        return named

    def _check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError where intermediates cannot have these names."""
        known = list(self._names())
        blocks = {plan.name: getattr(self, plan.name) for plan in self.plans}
        inner = {"trans_1": self.trans_1, **{f"{name}.trans_block": getattr(block, "trans_block", None) for name, block in blocks.items()}}
        foreign = tuple(f"{name}." for name, block in (blocks | inner).items() if type(block) not in (Block, ConvTransBlock))  # may note anything
        for name in sorted(names):
            if name not in known and not name.startswith(foreign):
                near = difflib.get_close_matches(name, known, 3)
                advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "its docstring lists the names"
                raise ValueError(f"Conformer.intermediates: there is no {name!r}; {advice}")

    def _names(self) -> Iterator[str]:
        """The names of the intermediates, in their order."""
        parts = "norm1", "attn", "norm2", "mlp"
        yield from ("stem", "conv_1", "trans_patch_conv", "tokens", *(f"trans_1.{part}" for part in parts), "trans_1")
        med_blocks = [f"med_block.{index}" for index in range(self.config.num_med_block)]
        inner = "cnn_block", "squeeze_block", *(f"trans_block.{part}" for part in parts), "trans_block", *med_blocks, "expand_block", "fusion_block"
        for plan in self.plans:
            yield from (*(f"{plan.name}.{part}" for part in inner), plan.name)
        yield from ("pooling", "conv_cls_head", "trans_norm", "trans_cls_head")

    def _forward(self, images: Tensor, named: Named | None) -> tuple[Tensor, Tensor]:
        grid = self._check(images)
        stem = self.bn1(self.conv1(images), relu=True)  # (B, H, W, stem_channels)
        if self.config.stem == "imagenet":
            stem = F.max_pool2d(stem, 3, 2, 1)
        x, _ = self.conv_1(stem)  # (B, H, W, C1)
        # from the stem, not from conv_1: both branches start from the same features
        patches = self.trans_patch_conv(stem)  # (B, H/d, W/d, E)
        batch, width = images.shape[0], self.config.embed_dim
        class_token = self.cls_token.broadcast_to((batch, 1, width))  # (B, 1, E)
        x_t = ops.concatenate([class_token, patches.reshape(batch, grid[0] * grid[1], width)], axis=1)  # (B, N, E)
        note(named, stem=stem, conv_1=x, trans_patch_conv=patches, tokens=x_t)
        inner = inside(named, "trans_1")
        x_t = self.trans_1(x_t, inner)  # (B, N, E)
        note_block(named, "trans_1", inner, x_t)

        for plan in self.plans:
            inner, block = inside(named, plan.name), getattr(self, plan.name)
            if isinstance(inner, Wanted) and inner.names == {"trans_block"}:  # which the block puts out anyway
                inner = None
            if self.grad_checkpointing and inner is None:
                x, x_t = checkpoint(block, x, x_t)  # (B, H, W, C), (B, N, E)
            else:
                x, x_t = block(x, x_t, inner)  # (B, H, W, C), (B, N, E)
            note_block(named, plan.name, (inner or {}) | {"trans_block": x_t}, x)

        pooled = F.global_avg_pool2d(x)  # (B, 4 C1)
        conv_logits = self.conv_cls_head(pooled)  # (B, K)
        normed = self.trans_norm(x_t)  # (B, N, E)
        trans_logits = self.trans_cls_head(normed[:, 0])  # (B, K)
        note(named, pooling=pooled, conv_cls_head=conv_logits, trans_norm=normed, trans_cls_head=trans_logits)
        return conv_logits, trans_logits

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep of each ConvTransBlock only what goes in, and run the block again in backward: a third of the memory for
        cifar-small at batch 128 (59 % for cifar-nano; `make bench BENCH=memory`), for the time of one more forward pass.

        The gradients are the same to the last bit. Until backward is done, leave `train()` and `eval()`, `requires_grad` and the running statistics
        as they are, or it raises RuntimeError (see `minigrad.checkpoint`): of a loss in each mode, take one's backward before the other's forward.
        `intermediates` without names keeps everything in any case. The name is timm's.
        """
        self.grad_checkpointing = enable

    def _check(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the token grid, or an error that says what is wrong with the images."""
        if not isinstance(images, Tensor) and not backend.is_array(images):
            kind, library = type(images).__qualname__, type(images).__module__.partition(".")[0]
            found = kind if library == "builtins" else f"{library}.{kind}"
            raise TypeError(f"Conformer: images are a {found}; give Tensor(images{'.numpy()' if hasattr(images, 'numpy') else ''})")
        shape, channels = tuple(images.shape), self.config.in_chans
        if len(shape) != 4:
            raise ValueError(f"Conformer: images have shape {shape}; give (batch, height, width, {channels})")
        if shape[3] != channels:
            if shape[1] == channels:
                raise ValueError(f"Conformer: images of shape {shape} look like (batch, channels, height, width); give images.transpose(0, 2, 3, 1)")
            raise ValueError(f"Conformer: images have {shape[3]} channels (shape {shape}), the network takes {channels} (in_chans)")
        if images.dtype != self.cls_token.dtype:
            as_stored = images.dtype == np.uint8  # as data sets have them, from 0 to 255
            give = "what conformer.augment.normalize makes of them" if as_stored else f"images.astype({str(self.cls_token.dtype)!r})"
            raise TypeError(f"Conformer: images are {images.dtype} and the parameters {self.cls_token.dtype}; give {give}")
        grid = self.config.token_grid(shape[1], shape[2])
        if any(type(norm) is nn.BatchNorm2d and norm.training for norm in self._lone_norms(shape[0], *grid)):
            raise ValueError(
                f"Conformer: one image of {shape[1]} x {shape[2]} pixels leaves batch norm a single value per channel, which has no variance: train "
                "with a larger batch or larger images, or call eval()"
            )
        return grid

    def _lone_norms(self, batch: int, rows: int, columns: int) -> Iterator[nn.Module | None]:
        """The batch norms that see a single value per channel, of parts that have not been replaced; what has been knows for itself what it takes.

        The smallest maps are FCUUp's tokens and, with tokens of d pixels, the last block's d/8 by d/8 for each token (rounded up).
        """
        d = self.config.patch_stride
        lone_token, lone_pixel = batch * rows * columns == 1, batch * -(-rows * d // 8) * -(-columns * d // 8) == 1
        for plan in self.plans if lone_token or lone_pixel else ():
            block = getattr(self, plan.name)
            if type(block).forward is not ConvTransBlock.forward:
                continue
            if lone_token:
                yield getattr(block.expand_block, "bn", None)
            if lone_pixel and plan.last_fusion:
                yield from (getattr(block.fusion_block, name, None) for name in ("bn2", "bn3", "residual_bn"))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone although they are not 1-D (conformer.py, `no_weight_decay`)."""
        return {"cls_token"}


def initialise(module: nn.Module) -> None:
    """The official initialisation (conformer.py, `_init_weights`): linear weights truncated normal, convolutions Kaiming normal by their outputs.

    What it leaves alone keeps PyTorch's default: norms 1 and 0, and the convolutions' biases uniform within 1 / sqrt(fan_in). No residual batch norm
    starts at 0.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: weights that decay, and those that do not: 1-D tensors, biases and what a module's `no_weight_decay()` names.

    Args:
        model: a Conformer or any other module, such as one that holds a Conformer; frozen parameters are left out.
        weight_decay: of the first group.

    Returns:
        What `minigrad.optim.AdamW` takes: a list of `{"params": [...], "weight_decay": ...}`.

    Source: timm 0.3.2, optim_factory.py, `add_weight_decay`, which the official code trains with.
    """
    spared = {f"{path}.{name}".lstrip(".") for path, module in model.named_modules() for name in getattr(module, "no_weight_decay", set)()}
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (kept if parameter.ndim <= 1 or name.endswith(".bias") or name in spared else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A block in which a network is in evaluation mode; then each module is put back into the mode it was in, since some may be frozen."""
    before = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


def _named(name: str, changes: dict[str, Any]) -> Conformer:
    return Conformer(**{**asdict(CONFIGS[name]), **changes})


def conformer_tiny_patch16(**changes: Any) -> Conformer:
    """Conformer-Ti: 23,524,704 parameters, 5.2 G multiply-accumulates at 224 x 224. `changes` replace arguments of `Conformer`, here and below."""
    return _named("tiny-patch16", changes)


def conformer_small_patch16(**changes: Any) -> Conformer:
    """Conformer-S: 37,673,424 parameters, 10.6 G multiply-accumulates at 224 x 224."""
    return _named("small-patch16", changes)


def conformer_base_patch16(**changes: Any) -> Conformer:
    """Conformer-B: 83,289,136 parameters, 23.3 G multiply-accumulates at 224 x 224."""
    return _named("base-patch16", changes)


def conformer_small_patch32(**changes: Any) -> Conformer:
    """Conformer-S/32: 38,853,072 parameters, 7.0 G multiply-accumulates at 224 x 224."""
    return _named("small-patch32", changes)


def conformer_cifar_nano(**changes: Any) -> Conformer:
    """For 32 x 32 images and a CPU: 1,071,880 parameters, 23 M multiply-accumulates, 4 x 4 patch tokens."""
    return _named("cifar-nano", changes)


def conformer_cifar_micro(**changes: Any) -> Conformer:
    """For 32 x 32 images: 2,661,332 parameters, 231 M multiply-accumulates, 8 x 8 patch tokens."""
    return _named("cifar-micro", changes)


def conformer_cifar_small(**changes: Any) -> Conformer:
    """For 32 x 32 images: 7,675,660 parameters, 662 M multiply-accumulates, 8 x 8 patch tokens."""
    return _named("cifar-small", changes)
