"""What this card can do at most, as measured: copying memory, and matrix products in float32, TF32 and bfloat16 by cuBLAS.

    python -m benchmarks.gpu_ceilings [--quick]

The copy is from device memory to device memory, between buffers many times larger than the cache; bytes read and bytes written are counted. The
products are of random 8192 x 8192 matrices. Read next: `gpu_kernels.py`, which measures these in the same run as the kernels.
"""

from __future__ import annotations

import functools
from statistics import median

from benchmarks import files, gpu, gpu_networks
from minigrad.backend.cublas import PRECISIONS

NAME = "gpu_ceilings"


def measure_ceilings(quick: bool = False) -> list[dict]:
    """Rows `{"what": "copy", "bytes", "ms"}` and `{"what": "float32" | "tf32" | "bf16", "flops", "ms"}`."""
    import torch

    cp, rows = gpu.connect(), []
    count = 2**16 if quick else 2**28
    source, target = cp.zeros(count, "float32"), cp.empty(count, "float32")
    copy = functools.partial(cp.copyto, target, source)
    gpu.each_ms(copy, 3)
    rows.append({"what": "copy", "bytes": 2 * source.nbytes, "ms": gpu.each_ms(copy, 20)})
    del source, target, copy
    size = 64 if quick else 8192
    for precision in PRECISIONS:
        gpu_networks.set_torch_precision(precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=gpu.torch_device(), dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        multiply = functools.partial(torch.matmul, a, b, out=out)
        gpu.each_ms(multiply, 3)
        rows.append({"what": precision, "flops": 2 * size**3, "ms": gpu.each_ms(multiply, 10)})
    gpu.free_memory()
    return rows


def bandwidth(rows: list[dict]) -> float:
    """Bytes a second that copying reads and writes."""
    return next(row["bytes"] / median(row["ms"]) * 1e3 for row in rows if row["what"] == "copy")


def rate(rows: list[dict], precision: str) -> float:
    """FLOP a second of the products in this precision."""
    return next(row["flops"] / median(row["ms"]) * 1e3 for row in rows if row["what"] == precision)


def of_card(rows: list[dict], precision: str, cache: int) -> dict[str, float]:
    """What a kernel is judged by: bytes a second, FLOP a second in this precision, bytes of the cache."""
    return {"bytes_s": bandwidth(rows), "flops_s": rate(rows, precision), "l2_bytes": cache}


def table_of(rows: list[dict]) -> str:
    cells = [["copy, GB/s read and written", bandwidth(rows) / 1e9]]
    cells += [[f"products, {row['what']}, TFLOP/s", rate(rows, row["what"]) / 1e12] for row in rows if row["what"] != "copy"]
    return gpu.text_table(["ceiling", "measured"], cells)


def main(argv: list[str] | None = None) -> None:
    options = gpu.arguments(__doc__).parse_args(argv)
    gpu.connect()
    rows = measure_ceilings(options.quick)
    files.told(gpu.save(NAME, rows, options, argv))
    print(table_of(rows))


if __name__ == "__main__":
    main()
