"""Multi-head self-attention as the vision transformer has it. Read before: `minigrad/fused/attention.py` for the operation inside."""

from __future__ import annotations

from minigrad import functional as F
from minigrad.nn.dropout import Dropout
from minigrad.nn.linear import Linear
from minigrad.nn.module import Module
from minigrad.tensor import Tensor

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(Module):
    """Every token asks all tokens: softmax(scale q k^T) v in each head, heads side by side, then a projection.

    One Linear makes queries, keys and values; its output is split as (3, heads, head width) in that order.

    Args:
        dim: E, the width of a token.
        num_heads: h; it must divide `dim`.
        qkv_bias: whether the first Linear has a bias.
        qk_scale: what multiplies q k^T; None means (E / h)^-0.5.
        attn_drop, proj_drop: dropout of the attention weights and of the result.

    Attributes:
        qkv: Linear(E, 3 E). proj: Linear(E, E).

    Raises:
        ValueError: `num_heads` does not divide `dim`; `attn_drop` is not from 0 to below 1, `proj_drop` not from 0 to 1.

    Source: Vaswani et al. 2017; names as in timm's vision transformer, which the Conformer's checkpoints use.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = False, qk_scale: float | None = None, attn_drop: float = 0.0, proj_drop: float = 0.0
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"MultiHeadAttention: dim is {dim} and num_heads {num_heads}; the heads must divide the width")
        if not attn_drop < 1:
            raise ValueError(f"MultiHeadAttention: attn_drop is {attn_drop}; it must be below 1, or no token hears anything")
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = Dropout(attn_drop)
        self.proj = Linear(dim, dim)
        self.proj_drop = Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        if x.ndim != 3:
            raise ValueError(f"MultiHeadAttention: x has shape {x.shape}; give tokens (B, N, E)")
        b, n, e = x.shape
        h = self.num_heads
        qkv = self.qkv(x).reshape(b, n, 3, h, e // h)  # (B, N, 3, h, D)
        query, key, value = (part.transpose(0, 2, 1, 3) for part in qkv.unbind(2))  # (B, h, N, D) each, views
        mask = self.attn_drop.draw((b, h, n, n), x.device)
        p = 0.0 if mask is None else self.attn_drop.p
        out = F.scaled_dot_product_attention(query, key, value, dropout_mask=mask, dropout_p=p, scale=self.scale)  # (B, h, N, D)
        return self.proj_drop(self.proj(out.transpose(0, 2, 1, 3).reshape(b, n, e)))  # (B, N, E)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, scale={self.scale:.4g}"
