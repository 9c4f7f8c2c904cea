"""Write docs/benchmarks.md and its plots from the JSON files in benchmarks/results/: no measurement on that page is typed by hand.

    make bench BENCH=report ARGS="[--results DIR] [--page FILE]"

Each benchmark that was run has a section; one without a file is left out. Here are the page's order and what it says of the files and machines. Read
next: `tables.py`, how a file is read; `sections.py`, `targets.py` and `charts.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks import sections
from benchmarks.charts import draw
from benchmarks.files import QUICK_RESULTS, RESULTS, ROOT, told
from benchmarks.machine import NOISY
from benchmarks.tables import OURS, VARIANTS, Result, table
from benchmarks.targets import OVERHEAD, targets_section

PAGE = ROOT / "docs" / "benchmarks.md"

OLD_STEPS = (
    "Of an earlier version of this benchmark, with one step of warm-up and three that count: PyTorch's second and third steps are slower than those "
    "after them, ours less, so the ratios are a few percent too good for minigrad. The commit is that of the last rows."
)

SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "step": ("The training step", sections.step_section),
    "step_profile": ("Where the time of our step goes", sections.profile_section),
    "end_to_end": ("A whole training run against the bare step", sections.end_to_end_section),
    "block": ("One block beside other frameworks", sections.block_section),
    "threads": ("What a second thread brings", sections.threads_section),
    "ops": ("Every fused operation", sections.ops_section),
    "memory": ("Peak memory", sections.memory_section),
    "growth": ("How the time of a step grows", sections.growth_section),
    "inference": ("Inference", sections.inference_section),
}


def quietness(results: Sequence[Result]) -> str:
    """Which files the page is made of, on which of its machines, and how much else that did meanwhile."""
    rows, machines = [], list(dict.fromkeys(map(machine_of, results)))
    for result in results:
        loads, share = [turn["load"] for turn in result.turns() if "load" in turn], result.others()
        speeds, counts = result.record.get("speeds", []), [len(row["turns"]) for row in result.rows]
        told = "–" if share is None else f"{100 * share:.0f} %" + (" **noisy**" if share > NOISY else "")
        rows.append([
            f"`{result.file.name}`", str(1 + machines.index(machine_of(result))), result.dates(), result.revisions(),
            str(result.record["settings"]["threads"]), spread(counts, "d"),
            spread([each["gflops"] for each in speeds]), spread([each["copy_gbs"] for each in speeds]),
            f"{median(loads):.1f} (at most {max(loads):.1f})" if loads else "–", told,
        ])  # fmt: skip
    header = ["file", "machine", "date (UTC)", "commit", "threads a side", "turns", "product, GFLOP/s", "copying, GB/s"]
    header += ["load average", "processors taken by others"]
    text = table(header, rows)
    if any(result.record.get("speeds") for result in results):
        text += (
            "\n\nA large matrix product and a copy of 256 MiB, before each benchmark and after it, say what state the machine was in: neighbours on "
            "a host share its memory bus, last cache and clock unseen. Two files compare only where these agree."
        )
    if any("**noisy**" in row[-1] for row in rows):
        text += (
            "\n\nFigures of a noisy run compare nothing: on a busy machine PyTorch's OpenMP threads wait for each other in a loop, which costs its "
            "side many times over, in processor time too, and ours, whose threads sleep, much less."
        )
    return text


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """From the smallest to the largest."""
    ends = [format(end(values), form) for end in (min, max)] if values else ["–"]
    return " to ".join(dict.fromkeys(ends))


def machine_of(result: Result) -> tuple[str, str]:
    """Processor, memory and system; NumPy's BLAS and the kernels that it chose."""
    e = result.record["environment"]
    ours = result.record["sides"].get(OURS, {}).get("threads", [])
    blas = ", ".join(f"{part['internal_api']} {part['version']} ({part['architecture']} kernels)" for part in ours)
    units = [f"with {', '.join(e['vector_units'])}"] if e.get("vector_units") else []
    caches = [f"{name} {size}" for name, size in e.get("caches", {}).items()]
    memory = e.get("memory_gib", e.get("memory_gb"))  # older files have the same number by a wrong name
    sizes = [f"{memory:g} GiB"] if memory else []
    return ", ".join([e["processor"], *units, *caches, f"{e['processors']} processors", *sizes, e["system"]]), blas


def machine(results: Sequence[Result]) -> str:
    """Hardware and software, once for each machine and choice of kernels, with all versions that its files name."""
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for result in results:
        versions = found.setdefault(machine_of(result), {})
        versions.setdefault("Python", set()).add(result.record["environment"]["python"])
        for side in result.record["sides"].values():
            for name, version in side.get("versions", {}).items():
                versions.setdefault(name, set()).add(version)
    lines = []
    for (hardware, blas), versions in found.items():
        software = ", ".join(f"{name} {' and '.join(sorted(versions[name]))}" for name in sorted(versions, key=lambda name: (name != "Python", name)))
        lines.append(f"{hardware}; {software}" + (f"; NumPy's BLAS: {blas}" if blas else "") + ".")
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def section_of(result: Result) -> str:
    """Heading, command, what was measured, and what was not."""
    heading, section = SECTIONS[result.name]
    old = result.name == "step" and "warm_up" not in result.record
    left_out = [f"{result.title(side)}: {reason}" for side, reason in result.record["skipped"].items()]
    left_out += dict.fromkeys(f"{result.title(row['side'])}: {row['failed']}" for row in result.failed)
    parts = [
        f"## {heading}{''.join(VARIANTS[variant] for variant in result.variants)}",
        f"```sh\n{result.record['command']}\n```",
        OLD_STEPS if old else "",
        section(result),
        result.apart(),
        f"Not measured: {'; '.join(left_out)}." if left_out else "",
    ]
    return "\n\n".join(filter(None, parts))


def contents(folder: Path) -> tuple[list[Result], dict | None]:
    """The files of benchmarks, in the order of the page, and the engine's own cost."""
    results = [Result(file) for file in sorted(folder.glob("*.json")) if "benchmark" in json.loads(file.read_text())]
    if not results:
        raise SystemExit(f"there is no benchmark's JSON file in {folder}")
    results.sort(key=lambda result: ([list(VARIANTS).index(name) for name in result.variants], list(SECTIONS).index(result.name)))
    return results, json.loads((folder / OVERHEAD).read_text()) if (folder / OVERHEAD).exists() else None


def page_of(results: Sequence[Result], overhead: dict | None) -> str:
    """The page, from what `contents` returns."""
    quick = any(result.record["settings"]["quick"] for result in results)
    parts = [
        "# Benchmarks",
        "**Measured with --quick: these figures show that the benchmarks run, and nothing else.**" if quick else "",
        "Written by `make bench BENCH=report` from the files in `benchmarks/results/`; do not edit. Each side runs in a process of its own, they "
        "take turns, and a figure is the median over the turns of the median over a turn. PyTorch is shown as it comes (NCHW), in channels_last "
        "memory, and in channels_last with a C library that keeps freed memory; ours asks for the same by itself.",
        "## Targets",
        targets_section(results, overhead),
        "## Files and machines",
        machine(results),
        quietness(results),
        *map(section_of, results),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def write(folder: Path, page: Path) -> None:
    """Write the page and its plots."""
    results, overhead = contents(folder)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_of(results, overhead), encoding="utf-8")
    draw(results, page.parent / "benchmarks")
    told(page)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="the folder with the JSON files (default: benchmarks/results)")
    parser.add_argument("--page", type=Path, help="the page to write (default: docs/benchmarks.md)")
    parser.add_argument("--quick", action="store_true", help="what --quick measured: from and to runs/benchmarks/")
    options = parser.parse_args(argv)
    folder, page = (QUICK_RESULTS, QUICK_RESULTS / "benchmarks.md") if options.quick else (RESULTS, PAGE)
    write(options.results or folder, options.page or page)


if __name__ == "__main__":
    main(sys.argv[1:])
