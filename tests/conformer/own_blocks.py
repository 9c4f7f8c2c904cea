"""Blocks of one's own, which tests put in the place of a Conformer's."""

from __future__ import annotations

from conformer import ConvTransBlock
from minigrad import nn


class Silent(ConvTransBlock):
    """Notes nothing."""

    def forward(self, x, x_t, named=None):
        return super().forward(x, x_t)


class Uncoupled(ConvTransBlock):
    """Its branches exchange nothing."""

    def forward(self, x, x_t, named=None):
        return self.fusion_block(self.cnn_block(x)[0])[0], self.trans_block(x_t)


class Nothing(nn.Module):
    """In FCUUp's place: the map stays without the tokens."""

    def forward(self, x_t, height, width):
        return None
