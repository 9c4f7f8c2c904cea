"""The vision Conformer (Peng et al., ICCV 2021) on minigrad.

Importing this package needs only the hard dependencies. Read next: `model.py`, the network under the paper's names, and `config.py`, its sizes.
"""

from __future__ import annotations

from conformer import loading as _loading  # noqa: F401  # isort: skip (from here on Ctrl-C leaves no traceback)

from conformer.baselines import CNNBranch, TransformerBranch
from conformer.blocks import Block, ConvBlock, ConvTransBlock, FCUDown, FCUUp, Med_ConvBlock, Mlp
from conformer.config import CONFIGS, ConformerConfig, named_config
from conformer.info import count, describe, measured_macs
from conformer.model import (
    Conformer,
    conformer_base_patch16,
    conformer_cifar_micro,
    conformer_cifar_nano,
    conformer_cifar_small,
    conformer_small_patch16,
    conformer_small_patch32,
    conformer_tiny_patch16,
    initialise,
    parameter_groups,
)

__all__ = [
    "CONFIGS",
    "Block",
    "CNNBranch",
    "Conformer",
    "ConformerConfig",
    "ConvBlock",
    "ConvTransBlock",
    "FCUDown",
    "FCUUp",
    "Med_ConvBlock",
    "Mlp",
    "TransformerBranch",
    "conformer_base_patch16",
    "conformer_cifar_micro",
    "conformer_cifar_nano",
    "conformer_cifar_small",
    "conformer_small_patch16",
    "conformer_small_patch32",
    "conformer_tiny_patch16",
    "count",
    "describe",
    "initialise",
    "measured_macs",
    "named_config",
    "parameter_groups",
]
