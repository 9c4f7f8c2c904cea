"""`python -m minigrad`: the table of all operations, made from the registry."""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import sys
import textwrap

import minigrad  # importing it fills the registry
from minigrad.op import REGISTRY, Fused, Op


def table() -> list[tuple[str, ...]]:
    """A row per operation, the head first: name, kind, definition, a column per device with kernels, derivative, lines of its definition or
    forward, file.
    """
    devices = sorted({"cpu", *(device for op in REGISTRY.values() for device in op.kernels)})
    rows: list[tuple[str, ...]] = [("operation", "kind", "definition", *devices, "derivative", "lines", "file")]
    for op in sorted(REGISTRY.values(), key=lambda op: (isinstance(op, Fused), op.__module__, op.name)):
        is_fused = isinstance(op, Fused)
        kernels = ["kernel" if device in op.kernels else "forward" if not is_fused else "-" for device in devices]
        rows.append(
            (op.name, "fused" if is_fused else "primitive", "yes" if is_fused else "-", *kernels, _derivative(op), str(_lines(op)), op.__module__)
        )
    return rows


def _derivative(op: Op) -> str:
    if op.rules:
        return "rule" + ("s" if len(op.rules) > 1 else "")
    return "definition" if isinstance(op, Fused) else "none"


def _lines(op: Op) -> int:
    """Lines of code, without docstring and comments: by the source, since `__doc__` is cleaned from Python 3.13 on, and gone under -OO."""
    source = textwrap.dedent(inspect.getsource(op.function))
    function = ast.parse(source).body[0]
    documented = function.body[:1] if isinstance(function, ast.FunctionDef) and ast.get_docstring(function, clean=False) is not None else []
    documentation = [number for statement in documented for number in range(statement.lineno, (statement.end_lineno or 0) + 1)]
    lines = [line.strip() for number, line in enumerate(source.splitlines(), 1) if number not in documentation]
    return len([line for line in lines if line and not line.startswith("#")])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m minigrad", description="Print the table of all operations.")
    parser.add_argument("--version", action="version", version=minigrad.__version__)
    parser.parse_args()
    rows = table()
    if sys.stdout is None:  # closed: python -m minigrad >&-
        return
    try:
        _print(rows)
        sys.stdout.flush()
    except OSError as error:  # of the output: its reader has left (`| head`), or the disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end what is left: to nowhere
        sys.exit(1 if isinstance(error, BrokenPipeError) else f"python -m minigrad: the output cannot be written: {error.strerror or error}")


def _print(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))
    fused = sum(row[1] == "fused" for row in rows)
    print(f"\n{len(rows) - 1 - fused} primitives, {fused} fused operations")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
