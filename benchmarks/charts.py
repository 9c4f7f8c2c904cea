"""The plots of docs/benchmarks.md. Read before: `tables.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.sections import calls_of, sums_of
from benchmarks.tables import Result, figures


def bars(groups: list[tuple[str, dict[str, float]]], result: Result, label: str, turned: bool = False) -> Figure:
    """A group of bars for each name, a bar for each side."""
    sides = [side for side in result.sides if any(side in values for _, values in groups)]
    figure = Figure(figsize=(8, 1 + 0.5 * len(groups)) if turned else (8, 3.5), layout="constrained")
    axes = figure.subplots()
    for k, side in enumerate(sides):
        places = [index + (k - (len(sides) - 1) / 2) * 0.8 / len(sides) for index in range(len(groups))]
        values = [by_side.get(side, 0.0) for _, by_side in groups]
        (axes.barh if turned else axes.bar)(places, values, 0.8 / len(sides), label=result.title(side))
    names = [name for name, _ in groups]
    if turned:
        axes.set_yticks(range(len(names)), labels=names)
        axes.invert_yaxis()
        axes.set_xlabel(label)
    else:
        axes.set_xticks(range(len(names)), labels=names)
        axes.set_ylabel(label)
    axes.legend(fontsize=8)
    return figure


def by_network(result: Result, label: str) -> Figure:
    """Bars of each case."""
    return bars([(f"{case['config']}\nbatch {case['batch']}", wall) for case, wall in figures(result)], result, label)


def operations(result: Result) -> Figure | None:
    """The sums over a step of the first network that has some."""
    for (config, batch), calls in calls_of(result).items():
        if sums := sums_of(calls, result.sides)[0]:
            return bars(sums, result, f"milliseconds in a step of {config}, batch {batch}", turned=True)
    return None


def growth(result: Result) -> Figure:
    """A curve of each side for each thing that is varied."""
    curves: dict[str, dict[str, list]] = {}
    for case, wall in figures(result):
        for side, value in wall.items():
            curves.setdefault(case["varied"], {}).setdefault(side, []).append((case["value"], value))
    figure = Figure(figsize=(3 * len(curves), 3), layout="constrained")
    for axes, (varied, by_side) in zip(figure.subplots(1, len(curves), squeeze=False).flat, curves.items(), strict=True):
        for side, points in by_side.items():
            axes.plot(*zip(*points, strict=True), marker="o", label=result.title(side))
        axes.set(xscale="log", yscale="log", xlabel=varied, ylabel="ms a step")
        values = [value for value, _ in next(iter(by_side.values()))]
        axes.set_xticks(values, labels=[str(value) for value in values])
        axes.minorticks_off()
    axes.legend(fontsize=7)
    return figure


CHARTS: dict[str, Callable[[Result], Figure | None]] = {
    "step": lambda result: by_network(result, "milliseconds a step"),
    "block": lambda result: by_network(result, "milliseconds"),
    "ops": operations,
    "growth": growth,
}
"""By benchmark: see `tables.picture`."""


def draw(results: Iterable[Result], folder: Path) -> None:
    """Save the plots as SVG, the same bytes for the same figures."""
    folder.mkdir(exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none"}):
        for result in results:
            if not result.variants and result.name in CHARTS and (figure := CHARTS[result.name](result)):
                figure.savefig(folder / f"{result.name}.svg", metadata={"Date": None})
