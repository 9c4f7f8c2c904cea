"""A benchmark's file as the page reads it, and how figures stand in a table.

A figure is the median over the turns of the median over a turn's samples.
Read before: `records.py`, which writes the files. Read next: `sections.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import taken_by_others
from benchmarks.records import of_turns

OURS = "minigrad"
APART = 0.15  # by so much of their median may the turns of a figure differ before the page says so
NAMING = ("config", "batch", "op", "varied", "value", "what", "where", "block", "threads")  # what a case is called by

VARIANTS = {"pinned": ", OpenBLAS pinned to Haswell", "xeon": ", on an Intel Xeon with AVX-512", "avx2": ", on a processor without AVX-512"}
"""What follows the benchmark's name in the name of a file, and in the heading: `step-pinned.json`, `step-xeon.json`, kept of another machine, and
`step-pinned-xeon.json`, both in this order.
"""


class Result:
    """One JSON file."""

    def __init__(self, file: Path):
        self.file = file
        self.record = json.loads(file.read_text())
        self.rows = [row for row in self.record["rows"] if "turns" in row]
        self.failed = [row for row in self.record["rows"] if "failed" in row]
        self.name = self.record["benchmark"]
        self.variants = [name for name in VARIANTS if name in file.stem.removeprefix(self.name).split("-")]
        if file.stem != "-".join([self.name, *self.variants]):
            parts = "".join(f"[-{name}]" for name in VARIANTS)
            raise SystemExit(f"{file}: the file of benchmark {self.name} is called {self.name}{parts}.json")

    @property
    def sides(self) -> list[str]:
        """Those that measured something, in the order of the file."""
        return list(dict.fromkeys(row["side"] for row in self.rows))

    def title(self, side: str) -> str:
        """What a side is called in a table."""
        return self.record["sides"].get(side, {}).get("title", side)

    def titles(self, unit: str = "") -> list[str]:
        """What all of them are called in a table's header."""
        return [self.title(side) + unit for side in self.sides]

    def cases(self) -> list[tuple[dict, dict[str, list[dict]]]]:
        """Each case with the turns of its sides."""
        found: dict[str, tuple[dict, dict[str, list[dict]]]] = {}
        for row in self.rows:
            found.setdefault(json.dumps(row["case"], sort_keys=True), (row["case"], {}))[1][row["side"]] = row["turns"]
        return list(found.values())

    def turns(self) -> list[dict]:
        """All of them."""
        return [turn for row in self.rows for turn in row["turns"]]

    def apart(self) -> str:
        """A sentence on the figures whose turns differ by more than `APART`; empty if there are none."""
        quantity = next(iter(self.turns()[0]), "") if self.rows else ""
        spreads = []
        for row in self.rows:
            each = [median(turn[quantity]) for turn in row["turns"] if quantity in turn and isinstance(turn[quantity], list)]
            if len(each) > 1 and (spread := (max(each) - min(each)) / median(each)) > APART:
                spreads.append((spread, " ".join(str(row["case"][key]) for key in NAMING if key in row["case"]), self.title(row["side"])))
        if not spreads:
            return ""
        worst = [f"{case}, {side} (by {100 * spread:.0f} %)" for spread, case, side in sorted(spreads, reverse=True)[:8]]
        return (
            f"Of {len(spreads)} of these {len(self.rows)} figures the turns differ by more than {100 * APART:.0f} % of their median, "
            f"{'most' if len(spreads) > len(worst) else 'namely'} of {'; '.join(worst)}."
        )

    def revisions(self) -> str:
        """The commits that were measured, in their order; of a file that does not say it of each row, that of the last."""
        rows = sorted(self.rows, key=lambda row: row.get("date", ""))
        return ", ".join(dict.fromkeys(str(row["revision"]) for row in rows if "revision" in row)) or str(self.record["environment"]["revision"])

    def dates(self) -> str:
        """From the first row's to the last's."""
        first, last = (end(row.get("date", self.record["date"])[:16].replace("T", " ") for row in self.rows or [{}]) for end in (min, max))
        return first if first == last else f"{first} to {last[11:] if first[:10] == last[:10] else last}"

    def others(self) -> float | None:
        """The share of the processors that other processes took while something was measured."""
        told = [turn for turn in self.turns() if "others_s" in turn]
        return taken_by_others(told, self.record["environment"]["processors_in_all"]) if told else None


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; numbers are right-aligned."""
    rows = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    aligned = ["---" if column == 0 else "--:" for column in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(header), aligned, *rows])


def number(value: float | None) -> str:
    """Three significant digits, a dash for nothing."""
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quotient(ours: float | None, theirs: float | None) -> float | None:
    """None where one of both was not measured."""
    return ours / theirs if ours and theirs else None


def ratio(ours: float | None, theirs: float | None) -> str:
    """Two digits after the point, a dash for nothing."""
    found = quotient(ours, theirs)
    return "–" if found is None else f"{found:.2f}"


def medians(turns: dict[str, list[dict]], quantity: str = "wall_ms") -> dict[str, float]:
    """By side."""
    return {side: of_turns(taken, quantity) for side, taken in turns.items()}


def figures(result: Result | None, quantity: str = "wall_ms") -> list[tuple[dict, dict[str, float]]]:
    """Each case with the medians of its sides; none without a file."""
    return [(case, medians(turns, quantity)) for case, turns in result.cases()] if result else []


def best_torch(values: dict[str, float]) -> float | None:
    """The least of PyTorch's sides, as it runs without compiling."""
    return min((value for side, value in values.items() if side.startswith("torch") and side != "torch-compile"), default=None)


def over_torch(values: dict[str, float]) -> str:
    """Ours over the least of PyTorch's."""
    return ratio(values.get(OURS), best_torch(values))


def picture(result: Result, alternative: str) -> str:
    """The benchmark's plot, which `charts.py` draws; of what an ordinary user has, not of variants."""
    return "" if result.variants else f"\n\n![{alternative}](benchmarks/{result.name}.svg)"
