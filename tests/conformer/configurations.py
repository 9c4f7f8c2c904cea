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


VALUES: dict[str, list[Any]] = dict(
    patch_size=[16, 32, 48],
    in_chans=[1, 2, 3, 4],
    num_classes=[2, 3, 4, 5],
    base_channel=[1, 4, 10, 64],
    num_med_block=[0, 1, 2],
    depth=[3, 6],
    num_heads=[1, 2, 3, 4],
    mlp_ratio=[1, 1.5, 2.6, 4],
    qkv_bias=[False, True],
    qk_scale=[None, 0.3, 1.0, -0.7],
    stem=list(STEM_STRIDES),
    stem_channels=[1, 2, 3, 4, 5],
    double_class_token=[False, True],
)
RATES = {name: [0.0, 0.1, 0.5, 0.8] for name in ("drop_rate", "attn_drop_rate", "drop_path_rate")}


@st.composite
def options(draw: st.DrawFn, dropping: bool = False) -> dict[str, Any]:
    """Arguments of Conformer: every option, widths of a few channels; `dropping`: with rates of dropout and stochastic depth."""
    config = {name: draw(st.sampled_from(values)) for name, values in (VALUES | RATES if dropping else VALUES).items()}
    heads, width = config["num_heads"], 4 * draw(st.integers(1, 3))
    head_width = draw(st.integers(-(-4 // heads), 4))  # at least 4 in all: the layer norm of one or two numbers has no slope but rounding
    ratio = (width + draw(st.sampled_from([0, 0.5]))) / config["base_channel"]  # the product is cut down to a whole number
    return config | dict(channel_ratio=ratio, embed_dim=heads * head_width)


def chosen(dropping: bool = False) -> list[Case]:
    """Five networks that have every value of every option between them: what few examples draw leaves some out."""
    table, found = VALUES | RATES if dropping else VALUES, []
    for k in range(5):
        config = {name: values[(k + place) % len(values)] for place, (name, values) in enumerate(table.items())}  # neighbours in other combinations
        config |= dict(channel_ratio=(8 + k % 2 / 2) / config["base_channel"], embed_dim=4 * config["num_heads"])
        stride = STEM_STRIDES[config["stem"]]
        side = stride * config["patch_size"] // 4
        found.append(Case(config, (2 + k % 2, config["in_chans"], side, 2 * side - min(k % 2, stride - 1)), k))
    return found


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
