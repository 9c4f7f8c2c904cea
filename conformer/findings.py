"""What the runs of a study come to: each figure over the seeds, each run beside the others, by how much networks differ, as tables and sentences.

Nothing here reads or writes a file. Read before: `conformer/spread.py`. Read next: `conformer/study.py`, which trains the runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformer.baselines import label
from conformer.evaluate import HEADS, titles
from conformer.spread import Difference, Spread
from conformer.text import columns, printable

__all__ = ["AVERAGED", "TITLES", "Findings", "Run"]

AVERAGED = "ema_"
TITLES = HEADS | {AVERAGED + head: f"{title}, average of the weights" for head, title in HEADS.items()} | {"seconds": "seconds, with evaluations"}
"""The figures of a run, by the names that study.json has for them."""


@dataclass(frozen=True)
class Run:
    """A run of a study, as its folder says; `figures` are by the names of `TITLES`, accuracies from 0 to 1, and None until it is finished. Of one
    that cannot be finished, `diverged` says why.
    """

    path: Path
    config: str
    seed: int
    begun: bool = False
    step: int = 0  # saved
    steps: int | None = None
    figures: dict[str, float] | None = None
    device: str = ""
    diverged: str = ""
    network: str = "conformer"
    measured: str = "test"  # or "held-out": what images its accuracies are on
    images: int | None = None  # how many these are; like the two below, None until it is finished, and where its log does not say
    parameters: int | None = None
    macs: int | None = None  # of one image
    notice: str = ""  # what its log says must be said of its accuracies

    @property
    def name(self) -> str:
        """What its network is called: runs that share it differ in the seed alone."""
        return label(self.config, self.network)

    @property
    def left(self) -> bool:
        """Whether there is something left to train."""
        return self.figures is None and not self.diverged

    @property
    def state(self) -> str:
        """How far it is, where it is not finished."""
        if not self.begun:
            return "not begun"
        return "nothing saved yet" if self.steps is None else f"step {self.step:,} of {self.steps:,} saved"


class Findings:
    """What some runs come to.

    Args:
        runs: at least one, finished or not; the other networks are compared with that of the first.
        dataset: the name of their data set.
        notice: what must be said of that, such as that it is not the one that was asked for.

    Attributes:
        finished: the finished runs of each network that has some.
        spreads: of each of these networks, the spread of each figure that all its finished runs have, by the names of `TITLES`.
        differences: by how much the accuracy of the sum of both heads is another than the first network's, by the names of the others; of none, where
            the first has no finished run.
    """

    def __init__(self, runs: Sequence[Run], dataset: str, notice: str = ""):
        self.runs, self.dataset, self.notice = runs, printable(dataset), printable(notice)
        done = {name: [run for run in runs if run.name == name and run.figures] for name in dict.fromkeys(run.name for run in runs)}
        self.finished = {name: some for name, some in done.items() if some}
        self.spreads = {name: _spreads([run.figures for run in some if run.figures]) for name, some in self.finished.items()}
        self.differences: dict[str, Difference] = {}
        first, *others = done
        if first in self.spreads:
            sums = {name: spreads["sum"] for name, spreads in self.spreads.items()}
            self.differences = {name: Difference.of(sums[name], sums[first]) for name in others if name in sums}

    def text(self) -> str:
        """The tables, and what is to be said about them, for a terminal."""
        notice = [f"{self.notice}\n"] if self.notice else []
        tables = [f"{title}\n{columns(rows)}\n" for title, rows in self._tables()]
        return "\n".join([*notice, *tables, *self.remarks()])

    def markdown(self, commands: Sequence[str]) -> str:
        """The same as a page, with the commands that make the runs."""
        parts = [f"# {' and '.join(map(printable, dict.fromkeys(run.name for run in self.runs)))} on {self.dataset}"]
        parts += [self.notice] if self.notice else []
        parts.append("\n".join(["```sh", *commands, "```"]))
        for title, (head, *rows) in self._tables():
            table = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
            parts += [f"## {title}", "\n".join(f"| {' | '.join(row)} |" for row in table)]
        parts.append("\n".join(f"* {remark}" for remark in self.remarks()))
        return "\n\n".join(parts) + "\n"

    def _tables(self) -> Iterator[tuple[str, list[list[str]]]]:
        """For each network that has finished runs: a title, and the rows of its table, of which the first is the head."""
        for name, runs in self.finished.items():
            steps = sorted({run.steps or 0 for run in runs})  # more than one where a time budget fixed them
            count = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
            of = f"{steps[0]:,}{f' to {steps[-1]:,}' if len(steps) > 1 else ''} step{'s' if steps[-1] > 1 else ''}"
            seeds = f"seed{'s' if len(runs) > 1 else ''} {', '.join(str(run.seed) for run in runs)}"
            head = [f"{runs[0].measured} accuracy at the end in percent, and time"]
            head += ["mean", "deviation", "smallest", "largest"] if len(runs) > 1 else ["one run"]
            heads = titles(self.spreads[name])
            called = TITLES | heads | {AVERAGED + head: f"{title}, average of the weights" for head, title in heads.items()}
            rows = [[called[figure], *_cells(figure, spread)] for figure, spread in self.spreads[name].items()]
            yield f"{printable(name)} on {self.dataset}: {count} of {of}, {seeds}", [head, *rows]
        if sum(map(len, self.finished.values())) > 1:
            yield self._each_run()

    def _each_run(self) -> tuple[str, list[list[str]]]:
        """A title, and a table of how large each network is and what each of its runs came to."""
        networks = list(self.finished.values())
        columns = {
            f"{networks[0][0].measured} accuracy at the end in percent": [printable(name) for name in self.finished],
            "parameters": [f"{size:,}" if (size := some[0].parameters) else "-" for some in networks],
            "MACs an image": [f"{macs / 1e6:,.1f} M" if (macs := some[0].macs) else "-" for some in networks],
        }
        for seed in dict.fromkeys(run.seed for some in networks for run in some):
            shares = [[run.figures["sum"] for run in some if run.figures and run.seed == seed] for some in networks]
            columns[f"seed {seed}"] = [f"{100 * share[0]:.2f}" if share else "-" for share in shares]
        known = {title: cells for title, cells in columns.items() if set(cells) != {"-"}}
        answers = dict.fromkeys(titles(spreads)["sum"] for spreads in self.spreads.values())
        return f"Each run on {self.dataset}: {' or '.join(answers)}", [list(known), *map(list, zip(*known.values(), strict=True))]

    def remarks(self) -> Iterator[str]:
        """What is to be said about the tables, sentence by sentence."""
        counts = {name: len(runs) for name, runs in self.finished.items()}
        first = self.runs[0].name
        if max(counts.values(), default=0) > 1:
            yield "The deviation is the sample standard deviation over the seeds."
            yield from self._on_images()
        yield from self._on_differences()
        for name, runs in self.finished.items():
            if len({run.steps for run in runs}) > 1:
                these = f"The runs of {printable(name)}"
                yield f"{these} took different numbers of steps, since a time budget fixed them run by run, which the deviation includes."
        if counts and first not in counts:
            yield f"{printable(first)}, which the others are compared with, has no finished run."
        of_data = self.notice.rstrip(".")
        own = dict.fromkeys(printable(run.notice).removeprefix(of_data).lstrip(". ") for runs in self.finished.values() for run in runs)
        yield from filter(None, own)  # besides what is said of the data set
        if any(run.measured == "held-out" for run in self.runs):
            yield "The accuracies are on training images that were held out, to choose by: what is chosen looks better on them than it is."
        if min(counts.values(), default=3) < 3:
            yield "Fewer than 3 seeds say next to nothing about chance: add some with --seeds."
        if diverged := [run for run in self.runs if run.diverged]:
            why = ", ".join(f"{printable(run.path.name)} ({printable(run.diverged)})" for run in diverged)
            yield f"Diverged, left out of the means: {why}. A run begins anew, on another device perhaps, when its folder is removed."
        if left := [run for run in self.runs if run.left]:
            yield f"Not finished: {', '.join(f'{printable(run.path.name)} ({run.state})' for run in left)}."
        if devices := sorted({run.device for run in self.runs if run.figures and run.device}):
            yield f"Trained on: {'; '.join(map(printable, devices))}."

    def _on_images(self) -> Iterator[str]:
        """That the images are a sample too, where it is known how many they are."""
        counts = {run.images for some in self.finished.values() for run in some}
        name, (run, *_) = next(iter(self.finished.items()))
        if len(counts) == 1 and (images := counts.pop()):
            share = self.spreads[name]["sum"].mean
            error = f"an accuracy of {100 * share:.2f} % has a standard error of {100 * math.sqrt(share * (1 - share) / images):.2f} points"
            which = f"the {images:,} {run.measured} images, the same for all runs, are a sample too"
            yield f"No figure here includes that {which}: by that alone {error}."

    def _on_differences(self) -> Iterator[str]:
        """By how much the networks differ, how that was found, and what it may come of."""
        first, bounds = self.runs[0].name, 0
        for name, difference in self.differences.items():
            enough = min(len(self.finished[each]) for each in (first, name)) > 2
            by = " by the sum of both" * all("cnn" in self.spreads[each] for each in (name, first))
            by += ", with the last weights and not their average" * (f"{AVERAGED}sum" in self.spreads[name])
            yield _compared(printable(name), printable(first), difference, enough, by)
            bounds += enough and difference.by_chance is not None
        if any(difference.standard_error is not None for difference in self.differences.values()):
            chance = ", and what chance would do is by Student's distribution, two-sided, at 95 %" * (bounds > 0)
            yield f"The runs count as independent, not as pairs of one seed: standard errors are Welch's{chance}."
        if bounds > 1:
            all_equal = "were all networks equally good, at least one would find more than it names by chance in about one"
            yield f"These are {bounds} comparisons, each judged alone: {all_equal} to {min(bounds, 20)} studies in 20."
        sizes = {size for name in (first, *self.differences) if name in self.finished and (size := self.finished[name][0].parameters)}
        if len(sizes) > 1:
            how = f"from {min(sizes):,} to {max(sizes):,} parameters"
            yield f"The networks differ in size, {how}: how much of a difference comes of that, these runs do not tell."


def _spreads(figures: Sequence[dict[str, float]]) -> dict[str, Spread]:
    """Of each figure that all runs have, in the order of `TITLES`."""
    return {name: Spread.of([each[name] for each in figures]) for name in TITLES if all(name in each for each in figures)}


def _cells(name: str, spread: Spread) -> list[str]:
    """A spread as cells of a table: accuracies in percent, to hundredths, and seconds to tenths."""
    values = [spread.mean] if spread.deviation is None else [spread.mean, spread.deviation, spread.smallest, spread.largest]
    return [f"{value:,.1f}" if name == "seconds" else f"{100 * value:.2f}" for value in values]


def _compared(name: str, first: str, difference: Difference, enough: bool, by: str) -> str:
    """A difference in a sentence, and with `enough` runs what chance alone would do."""
    text = f"{name} less {first}: {100 * difference.mean:+.2f} points of accuracy{by}"
    if difference.standard_error is None:
        return f"{text}; a standard error takes two runs of each."
    text += f", standard error {100 * difference.standard_error:.2f}"
    if not enough or difference.by_chance is None:
        return f"{text}."
    return f"{text}; were both equally good, one study in 20 would find more than {100 * difference.by_chance:.2f} points, either way, by chance."
