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
    """Compile, say how long it took and what failed. Returns the exit status, which is 0 all the same: what needs such a file fails by itself."""
    try:
        cuda.connect()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:  # the compiler lets other threads run
        pending = {file: pool.submit(compile_file, file) for file in FILES}
    failed = {file: error for file, future in pending.items() if (error := future.exception())}
    count = sum(len(future.result()) for file, future in pending.items() if file not in failed)
    files = len(FILES) - len(failed)
    print(f"{count} kernels of {files} files compiled, or found in CuPy's cache, in {time.perf_counter() - start:.1f} s", flush=True)
    for file, error in failed.items():
        print(f"FAILED {file.name}: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
