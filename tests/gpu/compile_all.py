"""Compiles every `.cu` file for the GPU that is here, all at once: what the tests then find in CuPy's cache.

python -m tests.gpu.compile_all
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import conformer
import minigrad
from minigrad.backend import cuda

__all__ = ["FILES", "compile_file"]

FILES = sorted(file for package in (minigrad, conformer) for file in Path(package.__file__).parent.glob("**/*.cu"))


def compile_file(file: Path) -> list[str]:
    """The names of the kernels of a file, all of which were found in what the compiler made of it."""
    kernels = cuda.Kernels(file)
    module = cuda.array_module()
    for name in kernels.source.kernels:
        kernels._function(name, module)
    return list(kernels.source.kernels)


def main() -> int:
    """Compile, and say how long it took. Returns the exit status."""
    try:
        cuda.connect()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:  # the compiler lets other threads run
        count = sum(map(len, pool.map(compile_file, FILES)))
    print(f"{count} kernels of {len(FILES)} files compiled, or found in CuPy's cache, in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
