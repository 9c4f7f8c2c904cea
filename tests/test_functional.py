"""The public list of operations: complete, and made of nothing else."""

from __future__ import annotations

import minigrad.functional as F
from minigrad import ops
from minigrad.op import REGISTRY, Fused


def test_every_fused_operation_is_listed():
    fused = {name for name, op in REGISTRY.items() if isinstance(op, Fused) and op.__module__.startswith("minigrad.")}
    assert fused, "the registry knows no fused operation"
    public = {getattr(F, name) for name in F.__all__}
    missing = [name for name in sorted(fused) if REGISTRY[name] not in public]
    assert not missing, f"minigrad.functional does not list {', '.join(missing)}"


def test_names_are_listed_once_and_exist():
    assert len(set(F.__all__)) == len(F.__all__)
    assert all(callable(getattr(F, name)) for name in F.__all__)


def test_each_operation_says_what_it_is():
    """Above all where a choice is made: the gradient of a tie, or at a kink."""
    assert [name for name in F.__all__ if not (getattr(F, name).__doc__ or "").strip()] == []


def test_only_the_engines_own_tools_are_left_out():
    assert set(ops.__all__) - set(F.__all__) == {
        "as_array",
        "as_tensor",
        "fold",
        "identity",
        "plain_index",
        "promote",
        "put",
        "to_device",
        "refuse_lists_with_gradients",
    }
