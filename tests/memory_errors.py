"""NumPy's memory running out, at an allocation of one's choice: `with failing_at(n):` the n-th array of those that NumPy makes is refused.

NumPy asks a handler for the memory of every array's numbers (NEP 49), which a program may replace; here it is one that counts, in this thread and in
the pool's. What is tested with it is in `test_memory_errors.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core import _multiarray_umath  # type: ignore[attr-defined]

from minigrad.backend import cpu

__all__ = ["failing_at", "places"]

SOURCE = """
#include <cstddef>
#include <cstdlib>

extern "C" {
volatile long made, failing, lasting;

static bool refused(size_t bytes)
{
    if (bytes < 200) return false;
    const long number = __sync_add_and_fetch(&made, 1);
    return number == failing || (lasting && 0 < failing && failing < number);
}
static void* counted_malloc(void*, size_t size) { return refused(size) ? nullptr : malloc(size ? size : 1); }
static void* counted_calloc(void*, size_t count, size_t size) { return refused(count * size) ? nullptr : calloc(count ? count : 1, size ? size : 1); }
static void* counted_realloc(void*, void* memory, size_t size) { return refused(size) ? nullptr : realloc(memory, size ? size : 1); }
static void counted_free(void*, void* memory, size_t) { free(memory); }

struct {
    char name[127];
    unsigned char version;
    struct {
        void* context;
        void* (*malloc)(void*, size_t);
        void* (*calloc)(void*, size_t, size_t);
        void* (*realloc)(void*, void*, size_t);
        void (*free)(void*, void*, size_t);
    } allocator;
} handler = {"counting", 1, {nullptr, counted_malloc, counted_calloc, counted_realloc, counted_free}};
}
"""
"""A PyDataMem_Handler. Not in Python: an array may be freed while an exception is on its way. Arrays of a few numbers are not counted: the C library
has memory for them in hand.
"""


def _built() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "handler.so")
        subprocess.run(["g++", "-shared", "-fPIC", "-O1", "-x", "c++", "-", "-o", library], input=SOURCE.encode(), check=True)
        return ctypes.CDLL(str(library))


_library = _built()
made, failing, lasting = (ctypes.c_long.in_dll(_library, name) for name in ("made", "failing", "lasting"))

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_table = ctypes.cast(_pointer(_multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
_set = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(_table[304])  # PyDataMem_SetHandler
_name = b"mem_handler"
_capsule = _new(ctypes.addressof(ctypes.c_char.in_dll(_library, "handler")), _name, None)


@contextlib.contextmanager
def _counted() -> Iterator[None]:
    """What this thread makes is counted."""
    before = _set(_capsule)
    try:
        yield
    finally:
        _set(before)


@contextlib.contextmanager
def failing_at(number: int, after: bool = False) -> Iterator[None]:
    """For the array of this number (from 1) of those that are made in the block there is no memory; with `after`, for none after it either."""
    run = cpu._Pool.run

    def counted(self: Any, work: Callable, blocks: list) -> list:
        def in_worker(*block: int) -> Any:
            with _counted():
                return work(*block)

        return run(self, in_worker, blocks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu._Pool, "run", counted)
        made.value, failing.value, lasting.value = 0, number, after
        try:
            with _counted():
                yield
        finally:
            failing.value = 0


def places(call: Callable[[], Any], after: bool = False, step: int = 1) -> Iterator[int]:
    """Call once for each array that `call` makes, with no memory for that one; gives its number after each call that raised MemoryError.

    Ends with the first call that did not, since it makes no more than that.
    """
    for number in itertools.count(1, step):
        try:
            with failing_at(number, after):
                call()
        except MemoryError:
            yield number
        else:
            if made.value < number:
                return
            raise AssertionError(f"there was no memory for array {number}, and nothing was said of it")


assert _set(_set(_capsule)) is _capsule and np.ones(3).sum() == 3  # NumPy's table is what it was when this was written
