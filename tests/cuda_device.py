"""The device "cuda" of the tests: the emulator, or with `pytest --device=gpu` a real GPU through CuPy.

    with on_cuda(ORDERS) as device:                     # every test of a CUDA kernel begins so
        y = gelu(Tensor(x).to(device="cuda"))

The emulator runs every launch in all `orders` of threads and blocks and wants the same bits from each. A GPU has orders of its own, which nobody
chooses; there a launch is done twice from the same memory, and must give the same bits twice (unless that is switched off: `use_gpu`).

Marks: `cuda` is a test that uses the device, `--device=gpu` runs these and no others; `emulator` is one of them that is about the emulator itself or
about what only it can count, and stays away from a GPU; `gpu` is one that says nothing without a GPU (tests/gpu). Read next: `proofs.py`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from minigrad.backend import cuda

__all__ = ["ORDERS", "Waits", "end_if_lost", "last_digits", "nothing_waits", "on_cuda", "on_gpu", "use_gpu"]

ORDERS = ("ascending", "descending", "shuffled")
"""Of threads and blocks, on the emulator."""

_gpu = False
_twice = True


def use_gpu(wanted: bool, twice: bool = True) -> None:
    """Let "cuda" be a real GPU from now on; RuntimeError with a sentence where there is none.

    twice: whether several orders are two launches there. What is copied for that may never have been written, which a sanitizer reports.
    """
    global _gpu, _twice
    if wanted:
        cuda.connect()
    _gpu, _twice = wanted, twice


def on_gpu() -> bool:
    """Whether "cuda" is a real GPU."""
    return _gpu


def last_digits(relative: float) -> float:
    """The tolerance of results that are the CPU's to the last digit: a GPU's compiler fuses products and sums, and rounds once for both."""
    return 8 * relative if _gpu else relative


def end_if_lost(config: Any) -> None:
    """Wait for the GPU; where it answers no more, since a kernel wrote out of bounds, say so and end this process: every later test would fail in it.

    Of pytest-xdist's workers the one that ends is replaced, and the test that it was at counts as failed.
    """
    if not _gpu:
        return
    try:
        cuda.array_module().cuda.Device().synchronize()
    except Exception as error:
        with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
            print(f"\nThe GPU answers no more after {test}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


@contextmanager
def on_cuda(orders: Sequence[str] = ("ascending",), build: str | None = None) -> Iterator[Any]:
    """The device "cuda" inside the block. orders and build: of the emulator, as in `minigrad.emulated`; on a GPU, several orders are two launches.

    Yields what counts: on a GPU `launches` alone.
    """
    if not _gpu:
        build = os.environ.get("MINIGRAD_EMULATOR") or build
        # "address" says where pointers lead; what an order of threads changes is for the other builds to find
        with cuda.emulated(build, orders[:1] if build == "address" else orders) as state:
            yield state
        return
    counts, once, found = _Counts(), cuda.Kernels.launch, cuda.Kernels._function

    def launch(kernels: cuda.Kernels, name: str, grid: Any, block: Any, *arguments: Any, shared: int = 0) -> None:
        written = _written(kernels, name, arguments) if len(orders) > 1 and _twice else []
        before = [x.copy() for x in written]
        once(kernels, name, grid, block, *arguments, shared=shared)
        if not written:
            return
        first = [x.copy() for x in written]
        for x, values in zip(written, before, strict=True):
            x[...] = values
        launches = counts.launches
        once(kernels, name, grid, block, *arguments, shared=shared)
        counts.launches = launches
        for x, values in zip(written, first, strict=True):
            assert _same_bits(x, values), f"{name} gives other results when it is launched again"

    def function(kernels: cuda.Kernels, name: str, module: Any) -> Any:
        counts.launches += 1  # it is looked up where nothing stands against the launch any more
        return found(kernels, name, module)

    cuda.Kernels.launch, cuda.Kernels._function = launch, function  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        cuda.Kernels.launch, cuda.Kernels._function = once, found  # type: ignore[method-assign]


class _Counts:
    launches = 0


class Waits(AssertionError):
    """The host waited for the device."""


@contextmanager
def _waiting(allowed: bool) -> Iterator[None]:
    """cupyx.allow_synchronize, without its warning that it does not notice everything: it comes at every use, and in tests warnings are errors."""
    import cupyx

    with ExitStack() as stack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            stack.enter_context(cupyx.allow_synchronize(allowed))
        yield


@contextmanager
def nothing_waits(device: Any) -> Iterator[None]:
    """What is done in this block does not wait for the device, or Waits is raised: the emulator counts, and CuPy refuses to bring anything back."""
    if _gpu:
        import cupyx

        try:
            with _waiting(False):
                yield
        except cupyx.DeviceSynchronized as error:
            raise Waits(str(error)) from error
        return
    before = device.synchronisations
    yield
    if device.synchronisations != before:
        raise Waits(f"the host waited {device.synchronisations - before} times")


def _written(kernels: cuda.Kernels, name: str, arguments: tuple) -> list[Any]:
    """The arrays that a launch may write to; none where it finds them in a table of addresses, or where a graph is being captured."""
    kernel = kernels.source.kernels.get(name)
    if kernel is None or len(arguments) != len(kernel.parameters) or cuda.array_module().cuda.get_current_stream().is_capturing():
        return []
    if any(p.type == "const unsigned long long*" for p in kernel.parameters):
        return []
    pairs = zip(kernel.parameters, arguments, strict=True)
    return [x for p, x in pairs if p.pointer and not p.const and type(x) is cuda.array_module().ndarray and x.size and x.flags.c_contiguous]


def _same_bits(x: Any, y: Any) -> bool:
    with _waiting(True):  # it is the test that waits
        if x.size > 1 << 16:  # there; it would take long to bring them here
            return bool((x.reshape(-1).view(np.uint8) == y.reshape(-1).view(np.uint8)).all())
        return x.get().tobytes() == y.get().tobytes()
