"""Write docs/benchmarks_gpu.md from the JSON files in benchmarks/results/gpu/: no figure on that page is typed by hand.

    python -m benchmarks.gpu_report [--results DIR] [--page FILE] [--run RUN]

Each GPU benchmark has a function here that makes its section; where there is no file the page says so. Figures of different cards stand in sections
of their own. A training run's section is made of what `conformer train` wrote into its folder: --run copies the two files that it needs to the
results first, each run into a folder of its own. Read before: `gpu.py`, which writes the files of the benchmarks. Read next: `gpu_run_section.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks import files, gpu, gpu_ceilings, gpu_kernels, gpu_profile, gpu_step
from benchmarks.gpu import GPU_RESULTS
from benchmarks.gpu_run_section import LINK, Run, add_run, read_run, run_section
from benchmarks.tables import ratio, table

PAGE = files.ROOT / "docs" / "benchmarks_gpu.md"
TOP = 25  # kernels of a profile that the page shows


def step_section(record: dict) -> str:
    """Milliseconds of a training step by side."""
    parts = [
        "Milliseconds from the end of one step to the end of the next, by CUDA events: forward, backward, clipping, AdamW; images and labels are "
        "on the GPU. PyTorch: channels_last, `cudnn.benchmark`, fused AdamW; its bf16 is autocast, ours rounds the factors of matrix products. The "
        "sides of a case take turns, but for those that torch.compile makes: they are measured after all others, each by itself. In the ratios to "
        "eager and to the fastest ours is the shorter of both; below 1.00 it is faster than PyTorch. *Graph to graph* is ours as one CUDA graph over "
        "PyTorch's whole step as one, with its own kernels or with torch.compile's: the shorter that was measured. The fastest is named, since not "
        "every case is compiled unasked.",
        table(*gpu_step.cells_of(record["rows"])),
    ]
    header, cells = gpu_step.goals_of(record["rows"])
    if cells:
        parts += [
            "### The goals of the step",
            "They are worded by PyTorch eager, which launches kernel after kernel from Python. Where launching takes longer than the kernels, as "
            "with a small network and batch, a CUDA graph is ahead by launches alone, whatever its kernels are: PyTorch's own graph shows by how "
            "much. How the kernels compare is graph to graph.",
            table(header, cells),
        ]
    missing = [f"{case['config']}, {precision}{f', {gpu_step.SIDES[side]}' if side else ''}" for case, precision, side in record.get("missing", [])]
    if missing:
        parts.append(f"The run was stopped before it came to these: {'; '.join(missing)}.")
    failed = [
        f"{row['case']['config']}, {row['precision']}, {gpu_step.SIDES[row['side']]}: {row['failed']}" for row in record["rows"] if "failed" in row
    ]
    if failed:
        parts.append("Not measured, or not to the end: " + "; ".join(failed) + ".")
    parts += [f"**The sides do not take the same step; their losses**: {line}." for line in gpu_step.losses_apart(record["rows"])]
    return "\n\n".join(parts)


def kernels_section(record: dict) -> str:
    """Sums by operation, every pass, and the memory-bound ones below the goal."""
    rows = record["rows"]
    configs = list(dict.fromkeys(gpu_kernels.config_of(row["case"]) for row in rows))
    parts = [
        ceilings_section({"rows": record["ceilings"]}),
        "What an operation must do is counted from its shapes (`benchmarks/gpu_counts.py`): arrays read and written, and the multiplications and "
        "additions of its matrix products. *Of its ceiling* is the time that would take at the speed of copying, or of cuBLAS's products, whichever "
        "is longer, over the time measured. Of what is read twice (a batch norm's statistics come before its output; both products of a backward "
        f"pass read dy) the second time counts only as far as it exceeds the L2 cache, {rows[0]['card']['l2_bytes'] / 1e6:.1f} MB on this card: what "
        "the cache may have kept need not come from memory. That is the least any kernel moves; *once to every pass* is the share with each array "
        "counted once, and with all passes counted as if there were no cache. GB/s are of what is judged. Inputs are so many copies that the first "
        "read finds nothing in the cache; where they are so small that it may hold them all the same, they are marked *cache*, and not judged by "
        "the speed of copying.",
    ]
    if len(speeds := {round(row["card"]["bytes_s"] / 1e9) for row in rows}) > 1:
        parts.append(
            f"Measured by several calls; each row is judged by the copy of its own, at {', '.join(map('{:,}'.format, sorted(speeds)))} GB/s."
        )
    config = configs[0]
    of_step = [
        [name, ours, theirs, f"{over:.2f}", f"{100 * ideal / ours:.0f} %"] for name, ours, theirs, over, ideal in gpu_kernels.sums(rows, config)
    ]
    if of_step:
        only = f", of {', '.join(record['only'])} alone" if record.get("only") else ""
        parts.append(f"### {network(config)}: sums over a training step{only}")
        parts += gpu_kernels.left_out(rows, config, record.get("missing", []))
        parts.append(table(["operation", "minigrad, ms", "PyTorch, ms", "ratio", "of its ceiling"], of_step))
    slow = gpu_kernels.exceptions(rows)
    goal = f"{100 * gpu_kernels.ENOUGH:.0f} %"
    parts.append(f"### Memory-bound passes below {goal} of the speed of copying: {len(slow)} of {len(gpu_kernels.judged(rows))}")
    if slow:
        cells = [[name_of(row), str(row["case"]["count"]), 1e3 * what["ours"], f"{100 * what['share']:.0f} %", counted(what)] for row, what in slow]
        parts.append(table(["operation and inputs", "calls", "µs", "of copying", "once to every pass"], cells))
    for config in configs:
        every = passes_table([row for row in rows if gpu_kernels.config_of(row["case"]) == config])
        parts.append(f"<details><summary>{network(config)}: every pass</summary>\n\n{every}\n\n</details>")
    off = gpu_kernels.disagreeing(rows, record["precision"])
    if off:
        told = "; ".join(f"{gpu_kernels.label(row['case'])} ({error:.0e})" for row, error in off)
        parts.append(f"**Both sides do not compute the same**: {told}.")
    launched = [
        f"{gpu_kernels.label(row['case'])} {row['pass']}, {side}" for row in rows for side, how in row.get("methods", {}).items() if how == "launches"
    ]
    if launched:
        parts.append(f"Launched from Python, which may take longer than the work, since no graph could be captured: {'; '.join(launched)}.")
    failed = [f"{gpu_kernels.label(row['case'])}, {side}: {why}" for row in rows for side, why in row.get("failed", {}).items()]
    if failed:
        parts.append("Not measured: " + "; ".join(dict.fromkeys(failed)) + ".")
    return "\n\n".join(parts)


def passes_table(rows: Sequence[dict]) -> str:
    """Both sides' times of each pass, and what ours reaches."""
    cells = []
    for row in rows:
        what = gpu_kernels.summary(row)
        ours, theirs = (None if ms is None else 1e3 * ms for ms in (what["ours"], what["theirs"]))
        share = "–" if what["share"] is None else f"{100 * what['share']:.0f} % ({what['bound']})"
        cells.append(
            [name_of(row), str(row["case"]["count"]), ours, theirs, ratio(ours, theirs), what["gb_s"], what["tflop_s"], share, counted(what)]
        )
    header = ["operation and inputs", "calls", "µs", "PyTorch, µs", "ratio", "GB/s", "TFLOP/s", "of its ceiling", "once to every pass"]
    return table(header, cells)


def network(config: str) -> str:
    """A "name:batch:size" in words."""
    name, batch, size = config.split(":")
    return f"{name}, {batch} of {size}x{size}"


def name_of(row: dict) -> str:
    return f"{gpu_kernels.label(row['case'])}, {row['pass']}"


def counted(found: dict) -> str:
    """`gpu_kernels.counted` for the page."""
    range_of = gpu_kernels.counted(found, " to ")
    return f"{range_of} %" if range_of else ""


def ceilings_section(record: dict) -> str:
    """What the card reaches at most."""
    rows = record["rows"]
    products = [f"{precision} {gpu_ceilings.rate(rows, precision) / 1e12:.0f}" for precision in (row["what"] for row in rows) if precision != "copy"]
    return (
        f"The card copies memory at {gpu_ceilings.bandwidth(rows) / 1e9:,.0f} GB/s (bytes read and bytes written counted); cuBLAS multiplies large "
        f"matrices at so many TFLOP/s: {', '.join(products)}."
    )


def profile_section(record: dict) -> str:
    """The kernels that take longest."""
    case, rows = record["case"], record["rows"]
    whole = sum(row["us"] for row in rows)
    cells = [
        [f"`{gpu_profile.short(row['kernel'], 70)}`", f"{row['calls']:.0f}", row["us"], row["us"] / row["calls"], f"{100 * row['us'] / whole:.1f} %"]
        for row in rows[:TOP]
    ]
    times = ", ".join(f"{name} {median(taken['ms']):.2f} ms" for name, taken in record["times"].items())
    text = f"{record['side']}, {case['config']}, batch {case['batch']}, {record['precision']}: a step takes {times}"
    if record["busy_ms"] is None:
        return f"{text}. The profiler did not end its work."
    text += (
        f"; the GPU works {record['busy_ms']:.2f} ms in a step, on {sum(row['calls'] for row in rows):.0f} kernels and copies of {len(rows)} kinds."
    )
    return text + "\n\n" + table(["kernel", "calls a step", "µs a step", "µs a call", "share"], cells)


SECTIONS: dict[str, tuple[str, Callable[[dict], str]]] = {
    gpu_step.NAME: ("The training step", step_section),
    gpu_kernels.NAME: ("Every fused operation", kernels_section),
    gpu_ceilings.NAME: ("What the card can do", ceilings_section),
    gpu_profile.NAME: ("Where a step's time goes", profile_section),
}


# --- the page


def origin(record: dict) -> str:
    """The card, what drives it, and how the figures came about."""
    e = record["environment"]
    code = f", code {e['code']}" if "code" in e else ""
    versions = ", ".join(f"{name} {version}" for name, version in e["versions"].items())
    return (
        f"{e['device']}, driver {e.get('driver') or 'unknown'}; Python {e['python']}, {versions}; {e['processors']} processors ({e['processor']}). "
        f"Measured on {record['date'][:10]} at commit {e['revision'] or 'unknown'}{code}:\n\n```sh\n{record['command']}\n```"
    )


def page_of(records: Sequence[tuple[str, dict]], runs: Sequence[Run] = ()) -> str:
    """The page, from the files' names and contents, and from training runs."""
    parts = [
        "# Benchmarks on a GPU",
        "Written by `.venv/bin/python -m benchmarks.gpu_report` from the files in `benchmarks/results/gpu/`; do not edit. `make bench-gpu` measures, "
        "and writes it anew. Ours and PyTorch's work run in one process, and take turns but for what torch.compile makes.",
    ]
    known = sorted(
        ((name, record) for name, record in records if record.get("benchmark") in SECTIONS),
        key=lambda pair: (list(SECTIONS).index(pair[1]["benchmark"]), pair[1]["environment"]["device"], pair[0]),
    )
    if not known and not runs:
        parts.append("No figure has been measured with these programs yet.")
    if any(record["quick"] for _, record in known):
        parts.insert(1, "**Measured with --quick: these figures show that the benchmarks run, and nothing else.**")
    for name, record in known:
        heading, section = SECTIONS[record["benchmark"]]
        card = record["environment"]["device"].removeprefix("NVIDIA ")
        precision = f", {record['precision']}" if "precision" in record else ""
        side = f", {record['side']}" if "side" in record else ""
        text = section(record) if record["rows"] or "times" in record else "The run was stopped before the first case was measured."
        parts += [f"## {heading}: {card}{precision}{side}", f"{origin(record)}\n\n[Raw figures]({LINK}{name}).", text]
    for run in runs:
        header = run.log.header
        card = str(header.get("device")).removeprefix("CUDA: ").removeprefix("NVIDIA ").partition(" through")[0]
        parts += [f"## A training run: {header['config']} on {header['dataset']}, {card}, {run.options['precision']}", run_section(run)]
    # Those of other programs name what they are, or the command: `tests.gpu.sanitize` writes such.
    others = [
        f"* [{name}]({LINK}{name}): {record.get('benchmark') or record.get('command') or 'unknown'}"
        for name, record in records
        if record.get("benchmark") not in SECTIONS
    ]
    if others:
        parts.append("## Raw figures of other programs\n\n" + "\n".join(others))
    return "\n\n".join(parts) + "\n"


def add_commit(file: Path) -> None:
    """Write the commit into a file that was measured where none was known, if that is the code that is here."""
    text = file.read_text(encoding="utf-8")
    environment, commit = json.loads(text).get("environment", {}), gpu.host()["revision"]
    if environment.get("code") == gpu.code() and environment["revision"] is None and commit and not commit.endswith("+"):
        file.write_text(text.replace('"revision": null', f'"revision": "{commit}"', 1), encoding="utf-8")


def contents(folder: Path) -> tuple[list[tuple[str, dict]], list[Run]]:
    """The files of benchmarks by their names, and the training runs."""
    records = [(file.name, json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))]
    return records, [read_run(file.parent) for file in sorted(folder.glob("*/metrics.jsonl"))]


def write(folder: Path, page: Path) -> None:
    """Write the page from the files of a folder."""
    for file in sorted(folder.glob("*.json")):
        add_commit(file)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(page_of(*contents(folder)), encoding="utf-8")
    files.told(page)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=GPU_RESULTS, help="the folder with the JSON files (default: benchmarks/results/gpu)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write (default: docs/benchmarks_gpu.md)")
    parser.add_argument("--run", type=Path, nargs="+", default=[], metavar="RUN", help="folders of training runs to copy to the results first")
    options = parser.parse_args(argv)
    for run in options.run:
        try:
            print(f"copied: {add_run(run, options.results)}")
        except (FileExistsError, ValueError) as error:
            raise SystemExit(str(error)) from error
    write(options.results, options.page)


if __name__ == "__main__":
    main()
