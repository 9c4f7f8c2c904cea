"""Arrays on the CPU in pieces of a good size: long ones block by block, small ones end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minigrad.backend.cpu import parallel_blocks

__all__ = ["SMALL", "end_to_end", "in_blocks", "is_small"]

GRAIN = 1 << 17  # fewest elements a thread is worth

SMALL = 1 << 12
"""Elements up to which arrays are put end to end: a step of AdamW on 100 numbers is 14 calls of NumPy and little else."""


def in_blocks(update: Callable[..., None], *arrays: Any) -> None:
    """Call `update(*pieces, scratch)` on matching pieces of equally shaped arrays, small enough for the cache, on the CPU's threads where that pays.

    Args:
        update: writes into the pieces in place; `scratch` is an array like a piece, to be used freely.
        *arrays: of one shape. Those that are not contiguous NumPy arrays (another device) are given whole.
    """
    if not all(type(array) is np.ndarray and array.flags.c_contiguous for array in arrays):
        update(*arrays, np.empty_like(arrays[0]))
        return
    flat = [array.reshape(-1) for array in arrays]

    def work(block: slice) -> None:
        pieces = [array[block] for array in flat]
        update(*pieces, np.empty_like(pieces[0]))

    parallel_blocks(work, flat[0].size, 1, GRAIN)


def is_small(array: Any) -> bool:
    """Whether a parameter's array may be one of those that are updated end to end. Of a view it is not known who else writes there."""
    return type(array) is np.ndarray and array.size <= SMALL and array.base is None and array.flags.c_contiguous


def end_to_end(update: Callable[..., None], parameters: Sequence[tuple[Any, Any, dict[str, Any]]], group: Any) -> None:
    """Call `update(param, grad, state, group)`, as of an `Optimizer`, once for many parameters as one long one; all is copied in and back.

    Args:
        update: does to every element the same, whatever the others are.
        parameters: of each its array, gradient and state. The arrays have one dtype, the states the same entries with the same whole numbers.
        group: all of them are in it.
    """
    params, grads, states = zip(*parameters, strict=True)
    param, grad = (np.concatenate([array.reshape(-1) for array in arrays]) for arrays in (params, grads))
    state = {
        name: value if isinstance(value, int) else np.concatenate([own[name].reshape(-1) for own in states]) for name, value in states[0].items()
    }
    update(param, grad, state, group)
    start = 0
    for array, own in zip(params, states, strict=True):
        end = start + array.size
        array[...] = param[start:end].reshape(array.shape)
        for name, value in state.items():
            if isinstance(value, int):
                own[name] = value
            elif name in own:
                own[name][...] = value[start:end].reshape(array.shape)
            else:
                own[name] = value[start:end].reshape(array.shape).copy()
        start = end
