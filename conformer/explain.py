"""What a Conformer looks at: class activation maps, attention, features of both branches, and what each coupling unit passes on.

Plain functions; the Tensors of `attention_probabilities` and `attention_gradients` stay in the graph. Most others take the network and what
`Conformer.intermediates` returns for some images, for example

    with no_grad():
        named = model.eval().intermediates(images)
    heat = class_activation_maps(model, named, classes)

Notebook 10 shows what they give on a trained network. Letters: B images, H W rows and columns of a feature map, h w rows and columns of the tokens'
grid, C channels, E token width, N = 1 + h w tokens (the class token first), D blocks.
"""

from __future__ import annotations

import numpy as np

from conformer.blocks import Block, ConvTransBlock, FCUUp, Named, Wanted
from conformer.model import Conformer
from minigrad import functional as F
from minigrad import nn
from minigrad.modes import no_grad
from minigrad.tensor import Tensor

__all__ = [
    "attention_gradients",
    "attention_probabilities",
    "attention_rollout",
    "attention_weights",
    "class_activation_maps",
    "class_token_shares",
    "coupling_strength",
    "token_map",
    "transformer_blocks",
]


def class_activation_maps(model: Conformer, named: Named, classes: np.ndarray | list[int]) -> np.ndarray:
    """Where the CNN branch sees a class: its head applied to every pixel of the last feature map instead of to their mean.

    The head is linear, so the mean of a map plus the head's bias is the class's logit: the map divides the logit up among the places.

    Args:
        model: the network.
        named: intermediates of B images.
        classes: a class for each image, (B,).

    Returns:
        (B, H, W), in units of the logit; below 0 where a place speaks against the class.

    Source: Zhou et al. 2016, "Learning deep features for discriminative localization", equation 2.
    """
    features = _at(named, model.plans[-1].name).numpy()  # (B, H, W, C)
    weight = model.conv_cls_head.weight.numpy()[np.asarray(classes)]  # (B, C)
    return np.einsum("bhwc,bc->bhw", features, weight)


def transformer_blocks(model: Conformer) -> dict[str, Block]:
    """The D transformer blocks by the names of their outputs among the intermediates, from the first to the last."""
    return {"trans_1": model.trans_1} | {f"{plan.name}.trans_block": getattr(model, plan.name).trans_block for plan in model.plans}


def attention_probabilities(attention: nn.MultiHeadAttention, tokens: Tensor) -> Tensor:
    """How much each token reads from each other, as a part of the graph: a loss on it, as in distillation, has gradients for what made it.

    The fused attention never writes them out, so they are computed again; dropout of the weights, in training mode, comes after them.

    Args:
        attention: a block's, such as `model.trans_1.attn`.
        tokens: what it was given, (B, N, E): the block's intermediate "norm1".

    Returns:
        (B, heads, N, N), rows that sum to 1.

    Source: Vaswani et al. 2017, equation 1.
    """
    query, key, _ = _queries_keys_values(attention, tokens)
    return F.softmax((query * attention.scale) @ key.transpose(0, 1, 3, 2))


def attention_gradients(attention: nn.MultiHeadAttention, tokens: Tensor, gradient: Tensor) -> Tensor:
    """How much a score would grow with each attention weight, if that alone were larger: what relevance maps multiply the weights with.

    Of a network in eval mode, whose attention drops nothing:

        named = model.intermediates(images)
        score = named["trans_cls_head"][range(B), classes].sum()
        (gradient,) = minigrad.grad(score, [named["trans_1.attn"]])
        slopes = attention_gradients(model.trans_1.attn, named["trans_1.norm1"], gradient)

    Args:
        attention, tokens: see `attention_probabilities`.
        gradient: the score's by what the attention put out, (B, N, E): by the block's intermediate "attn".

    Returns:
        (B, heads, N, N).

    Source: Chefer et al. 2021, "Transformer interpretability beyond attention visualization", where it is called the gradient of A.
    """
    batch, count, width = tokens.shape
    heads = (gradient @ attention.proj.weight).reshape(batch, count, attention.num_heads, width // attention.num_heads)
    _, _, value = _queries_keys_values(attention, tokens)
    return heads.transpose(0, 2, 1, 3) @ value.transpose(0, 1, 3, 2)


def _queries_keys_values(attention: nn.MultiHeadAttention, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, heads, N, D) each."""
    batch, count, width = tokens.shape
    qkv = attention.qkv(tokens).reshape(batch, count, 3, attention.num_heads, width // attention.num_heads)
    query, key, value = (qkv[:, :, which].transpose(0, 2, 1, 3) for which in (0, 1, 2))
    return query, key, value


def _at(named: Named, name: str) -> Tensor:
    """An intermediate, or an error that says where it comes from."""
    if name not in named:
        raise ValueError(
            f"explain: there is no {name!r} among the intermediates; take all of them (no `names`), and let a block of one's own note its parts as "
            "those of conformer/blocks.py do"
        )
    return named[name]


def attention_weights(model: Conformer, named: Named) -> dict[str, np.ndarray]:
    """How much each token reads from each other, block by block and head by head: arrays (B, heads, N, N) whose rows sum to 1.

    They are `attention_probabilities`, out of the graph.

    Raises:
        ValueError: a block's intermediate is missing. So do the functions below.
    """
    with no_grad():
        blocks = transformer_blocks(model)
        return {name: attention_probabilities(block.attn, _at(named, f"{name}.norm1")).numpy() for name, block in blocks.items()}


def attention_rollout(model: Conformer, named: Named, residual: str = "measured") -> np.ndarray:
    """Which places the final class token reads, by attention through all blocks.

    A block mixes tokens by `x + attention(x)`. Rollout replaces it by `(r I + (1 - r) A)`, A the mean of the heads' weights, and multiplies over the
    blocks. With r = 1/2 both terms count alike, as in the paper. In a Conformer they do not: the class token is doubled before each block but the
    first (conformer/blocks.py, FCUDown), so its own part outgrows what attention adds. "measured" takes for each token
    r = |x| / (|x| + |attention(x)|), and 1/2 where both are 0.

    The paper's reading, which of the *first* tokens the last one is made of, holds for a transformer alone. From block 2 on FCUDown adds features of
    the map to each token, and they have seen more of the image than the token's patch: rollout books them on the token's place.

    Args:
        model: the network.
        named: intermediates of B images.
        residual: "measured", or "half" for r = 1/2.

    Returns:
        (B, N), the shares of the class token's row, which sum to 1; `token_map` makes a picture of it.

    Raises:
        ValueError: another `residual`.

    Source: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", section 3.
    """
    if residual not in ("measured", "half"):
        raise ValueError(f"attention_rollout: residual is {residual!r}; give 'measured' or 'half'")
    weights = attention_weights(model, named)
    row = np.zeros(_at(named, "tokens").shape[:2])  # (B, N): of the class token, carried from the last block to the first
    row[:, 0] = 1
    for name, entering in reversed(_block_inputs(model, named).items()):
        mixing = weights[name].mean(axis=1)  # (B, N, N)
        if residual == "half":
            kept = np.full(mixing.shape[:2], 0.5)  # (B, N)
        else:
            own, update = np.linalg.norm(entering, axis=2), np.linalg.norm(_at(named, f"{name}.attn").numpy(), axis=2)
            kept = np.divide(own, own + update, out=np.full_like(own, 0.5), where=own + update > 0)  # (B, N)
        row = row * kept + np.einsum("bn,bnm->bm", row * (1 - kept), mixing)
    return row


def _block_inputs(model: Conformer, named: Named) -> dict[str, np.ndarray]:
    """What enters each transformer block, (B, N, E): the tokens, and from the second block on what FCUDown adds to them."""
    inputs, tokens = {}, _at(named, "tokens").numpy()
    for name in transformer_blocks(model):
        if name != "trans_1":
            tokens = tokens + _at(named, name.replace("trans_block", "squeeze_block")).numpy()
        inputs[name] = tokens
        tokens = _at(named, name).numpy()
    return inputs


def token_map(named: Named, tokens: np.ndarray) -> np.ndarray:
    """Values of the tokens, (B, N) or (B, N, E), as a map (B, h, w) or (B, h, w, E); the class token is left out."""
    rows, columns = _at(named, "trans_patch_conv").shape[1:3]
    return tokens[:, 1:].reshape(tokens.shape[0], rows, columns, *tokens.shape[2:])


def class_token_shares(model: Conformer) -> np.ndarray:
    """The factor with which each of the D blocks' updates to the class token arrives at the end, (D,), scaled to sum to 1.

    The class token is added to itself before each block but the first, so what block i adds is doubled D - i times: of 12 blocks the first supplies
    half of it, the last one 1 part in 4,095. Without `double_class_token` all count alike.
    """
    depth = len(transformer_blocks(model))
    factors = 2.0 ** np.arange(depth - 1, -1, -1) if model.config.double_class_token else np.ones(depth)
    return factors / factors.sum()


def coupling_strength(model: Conformer, named: Named) -> dict[str, tuple[float, float]]:
    """How much each block's coupling units add: the size of what FCUDown adds to the patch tokens, and FCUUp to the feature map, relative to these.

    Returns:
        `{block: (down, up)}`, ratios of root mean squares; 0 is no coupling, also where something else is in FCUUp's place and gives None, 1 means as
        large as what is there already.
    """
    strengths: dict[str, tuple[float, float]] = {}
    tokens = _at(named, "trans_1").numpy()
    with no_grad():
        for plan in model.plans:
            down = _ratio(_at(named, f"{plan.name}.squeeze_block").numpy()[:, 1:], tokens[:, 1:])
            strengths[plan.name] = down, _up(model, named, plan.name)
            tokens = _at(named, f"{plan.name}.trans_block").numpy()
    return strengths


def _up(model: Conformer, named: Named, name: str) -> float:
    """What a block's FCUUp adds to the feature map relative to it."""
    block = getattr(model, name)
    if f"{name}.expand_block" not in named and not isinstance(named, Wanted):
        gave_none = type(block).forward is ConvTransBlock.forward  # it notes whatever is not None
        if gave_none or not isinstance(getattr(block, "expand_block", None), FCUUp):
            return 0.0
    expanded = _at(named, f"{name}.expand_block").numpy()
    before = _at(named, f"{name}.med_block.{model.config.num_med_block - 1}" if model.config.num_med_block else f"{name}.cnn_block")
    fusion = block.fusion_block
    conv, norm = fusion.conv1, fusion.bn1
    statistics = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    # What FCUUp's map is added to, (B, H, W, C / 4). Not by calling the layer: in training mode it would move its running statistics.
    entering = F.batch_norm(conv(before), norm.weight, norm.bias, *statistics, eps=norm.eps, relu=True)[0]
    return _ratio(expanded, entering.numpy())


def _ratio(added: np.ndarray, there: np.ndarray) -> float:
    """Root mean square of one array over that of another."""
    sizes = [np.sqrt(np.mean(np.square(array, dtype=np.float64))) for array in (added, there)]
    return float(sizes[0] / max(sizes[1], 1e-30))
