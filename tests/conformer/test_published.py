"""The four published variants at full size, 224 x 224 pixels and 1,000 classes: their outputs in float64 are those of the PyTorch Conformer.

That one is the witness of test_oracle.py, which holds it against the official code's own numbers, of two small networks. Here only the deep run
takes part (`make deep`): a variant takes up to a minute, most of it to make its weights.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from conformer.config import CONFIGS
from minigrad import Tensor, no_grad
from tests.conformer import witnesses
from tests.conformer.test_oracle import published

VARIANTS = {"ti": "tiny-patch16", "small": "small-patch16", "base": "base-patch16", "s32": "small-patch32"}  # list of keys -> our name

pytestmark = pytest.mark.skipif(os.environ.get("HYPOTHESIS_PROFILE") != "deep", reason="the published variants at full size are for `make deep`")


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_of_a_published_variant(variant: str) -> None:
    config, _ = published(variant)
    theirs = witnesses.torch_model(**config).eval()
    state = {name: array.numpy() for name, array in theirs.state_dict().items()}
    ours = witnesses.our_model(state, **config).eval()
    assert ours.config == CONFIGS[VARIANTS[variant]]
    images = witnesses.fill.make_input(1, 3, 224, 224)
    with torch.no_grad():
        expected = [head.numpy() for head in theirs(torch.from_numpy(images))]
    with no_grad():
        logits = [head.numpy() for head in ours(Tensor(np.ascontiguousarray(images.transpose(0, 2, 3, 1))))]
    for head, reference in zip(logits, expected, strict=True):
        assert reference.shape == (1, 1000) and np.ptp(reference) > 1
        assert_allclose(head, reference, rtol=0, atol=1e-12 * np.abs(reference).max())
