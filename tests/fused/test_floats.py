"""Integers where an operation wants floats: every one of them raises the same sentence. Read next: `test_linear.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad import Tensor, definitions, enable_grad
from minigrad.fused.floats import check_floats
from minigrad.op import Fused
from tests.proofs import all_proofs

PROOFS = [proof for proof in all_proofs() if isinstance(proof.op, Fused) and not proof.variant]


@pytest.mark.parametrize("context", [enable_grad, definitions])
@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.op.name)
def test_no_operation_takes_integers(proof: Any, context: Any):
    """The first case in float32 that the operation is proven with, as integers, and each input by itself."""
    case = proof.float32[0]
    name = proof.op.names[0]
    integers = [x if x is None else x.astype(np.int64) for x in case.inputs]
    with context():
        with pytest.raises(TypeError, match=rf"^{proof.op.name}: {name} must be a float Tensor, it is int64; pass {name}\.astype\('float32'\)$"):
            proof.op(*integers, **case.values)
        for name in set(" ".join(proof.keeps).split()):  # the inputs that carry gradient
            place = proof.op.names.index(name)
            if case.inputs[place] is None or name == "labels":  # class numbers
                continue
            mixed = [integers[k] if k == place else x for k, x in enumerate(case.inputs)]
            with pytest.raises(TypeError, match=rf"^{proof.op.name}: {name} must be a float Tensor, it is int64; pass {name}\.astype\('float.*'\)$"):
                proof.op(*mixed, **case.values)


def test_the_dtype_that_is_advised_is_that_of_the_first_floats():
    numbers, half = Tensor(np.arange(3)), Tensor(np.zeros(3))
    check_floats("op", "x weight", half, None)
    with pytest.raises(TypeError, match=r"^op: bias must be a float Tensor, it is int64; pass bias\.astype\('float64'\)$"):
        check_floats("op", "x weight bias", half, None, numbers)
    with pytest.raises(TypeError, match=r"^op: x must be a float Tensor, it is int64; pass x\.astype\('float64'\)$"):
        check_floats("op", "x weight bias", numbers, half, Tensor(np.zeros(3, np.float32)))
    with pytest.raises(TypeError, match=r"^op: x must be a float Tensor, it is bool; pass x\.astype\('float32'\)$"):
        check_floats("op", "x weight", Tensor(np.zeros(3, bool)), numbers)


def test_the_advice_helps():
    x = Tensor(np.arange(3)).astype("float32")
    check_floats("op", "x", x)
    assert x.dtype == np.float32
