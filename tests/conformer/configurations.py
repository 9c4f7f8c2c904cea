"""Hypothesis strategies: any Conformer that can be built, as small as its options allow, and images that it takes.

Everything is built from what is legal, nothing drawn and thrown away: widths from heads and head width, image sizes from the token grid. Weights
and images come from one drawn seed. Read next: `test_parity.py`, which runs these networks through both witnesses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from conformer.config import STEM_STRIDES


class Case(NamedTuple):
    """A network and a batch for it; the seed also makes its weights (`witnesses.our_model`)."""

    config: dict[str, Any]  # arguments of Conformer
    shape: tuple[int, int, int, int]  # of the images: (B, C, H, W)
    seed: int

    @property
    def images(self) -> np.ndarray:
        return np.random.default_rng(self.seed).standard_normal(self.shape)

    @property
    def labels(self) -> np.ndarray:
        return np.random.default_rng(self.seed + 1).integers(0, self.config["num_classes"], self.shape[0])


@st.composite
def options(draw: st.DrawFn, dropping: bool = False) -> dict[str, Any]:
    """Arguments of Conformer: every option, widths of a few channels; `dropping`: with rates of dropout and stochastic depth."""
    heads = draw(st.integers(1, 4))
    head_width = draw(st.integers(-(-4 // heads), 4))  # at least 4 in all: the layer norm of one or two numbers has no slope but rounding
    width, base = 4 * draw(st.integers(1, 3)), draw(st.sampled_from([1, 4, 10, 64]))
    config = dict(
        patch_size=draw(st.sampled_from([16, 32, 48])),
        in_chans=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(2, 5)),
        base_channel=base,
        channel_ratio=(width + draw(st.sampled_from([0, 0.5]))) / base,  # the product is cut down to a whole number
        num_med_block=draw(st.integers(0, 2)),
        embed_dim=heads * head_width,
        depth=draw(st.sampled_from([3, 6])),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from([1, 1.5, 2.6, 4])),
        qkv_bias=draw(st.booleans()),
        qk_scale=draw(st.sampled_from([None, 0.3, 1.0, -0.7])),
        stem=draw(st.sampled_from(list(STEM_STRIDES))),
        stem_channels=draw(st.integers(1, 5)),
        double_class_token=draw(st.booleans()),
    )
    if dropping:
        rates = st.sampled_from([0.0, 0.1, 0.5, 0.8])
        config |= dict(drop_rate=draw(rates), attn_drop_rate=draw(rates), drop_path_rate=draw(rates))
    return config


@st.composite
def cases(draw: st.DrawFn, dropping: bool = False) -> Case:
    """A network and a batch that it can be trained on: one to six patch tokens, images as ragged as the stem forgives."""
    config = draw(options(dropping))
    stride, d = STEM_STRIDES[config["stem"]], config["patch_size"] // 4
    rows, columns = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 2)]))
    height, width = (stride * d * side - draw(st.integers(0, stride - 1)) for side in (rows, columns))
    smallest_map = min(rows * columns, -(-rows * d // 8) * -(-columns * d // 8))
    batch = draw(st.integers(1 if smallest_map > 1 else 2, 3))  # a batch norm needs two values per channel
    return Case(config, (batch, config["in_chans"], height, width), draw(st.integers(0, 2**32 - 1)))
