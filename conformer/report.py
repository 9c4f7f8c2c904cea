"""A run as one HTML page that needs no other file: figures, curves, classes, the images it is sure of and those it is not, and all options.

`write_report` writes report.html into the run folder; `conformer train` ends with it, `conformer report RUN` makes it again. The pictures
are SVG from `conformer/plots.py` and PNG from `conformer/image_files.py`, so matplotlib and pillow are needed. The page's frame and style are in
`report.html`, beside this file.

Letters: N test images, or held-out ones, K classes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from conformer import plots
from conformer.baselines import NETWORKS
from conformer.data import Dataset
from conformer.evaluate import Predictions, titles
from conformer.files import write_file
from conformer.image_files import png
from conformer.options import not_default, words_of
from conformer.run_folder import read_config
from conformer.run_log import RunLog, read_log

__all__ = ["write_report"]

SHOWN = 12  # images of each kind, and pairs of classes
ON = {
    "test": "images that were not trained on. The best is chosen by these very images, so its figure is on the high side: quote that of the end.",
    "held-out": "training images that were kept out of training, to choose options by. What is chosen by them looks better on them than it is: for a "
    "figure to quote, train with the chosen options on all training images, and measure the test images once.",
}
"""What images the accuracies of a run are on, and what that means."""


def write_report(run: Path, dataset: Dataset | None = None, predictions: Predictions | None = None) -> Path:
    """Write `run`/report.html.

    Args:
        run: a run folder; a run that has not ended has a report of what there is.
        dataset: what the run was trained on and measured by (see `conformer.data.hold_out`); without it and `predictions` the page is one of curves
            and options only.
        predictions: the network's answers to its test images, or those held out.

    Returns:
        The page's path.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: config.json or metrics.jsonl is damaged; or the run was measured by held-out images, and the data set has test images, or vice
            versa.
    """
    log = read_log(run)
    if dataset and dataset.measured != log.measured:
        raise ValueError(f"the run in {run} was measured on {log.measured} images, and these are {dataset.measured} images (see data.hold_out)")
    config = read_config(run)
    parts = [_notice(log), _figures(log, predictions), _curves(log)]
    if dataset and predictions:
        parts += [_classes(dataset, predictions), _confusion(dataset, predictions), *_images(dataset, predictions)]
    parts.append(_options(log, config))
    template = Template(resources.files("conformer").joinpath("report.html").read_text(encoding="utf-8"))
    path = run / "report.html"
    page = template.substitute(title=escape(log.title), subtitle=_subtitle(log, config), body="\n".join(part for part in parts if part))
    write_file(path, page)
    return path


def _subtitle(log: RunLog, config: dict[str, Any]) -> str:
    """What the network is, how it was trained, and when."""
    chosen = {"dataset": log.header["dataset"]} if config.get("dataset") == "auto" else {}  # on another machine it may come to another
    network, how = config.get("network", "conformer"), f"<code>{escape(command(config | chosen))}</code>"
    if network == "conformer":
        what = "a vision Conformer"
    elif network in NETWORKS:
        what = "a branch of a vision Conformer"
    else:
        what = "a network of one's own"
        how += f", but from Python, which gives what builds {escape(str(network))} (<code>Trainer(..., build=...)</code>)"
    return f"{what}, trained by {how}; begun {escape(str(log.header.get('started', '')))}"


def command(config: dict[str, Any]) -> str:
    """The command that a run's options stand for: those that differ from the defaults, without its folder. (No command builds one's own network.)"""
    given = not_default(config)
    given.pop("out", None)
    return " ".join(["conformer train", *words_of(given)])


def _section(title: str, *content: str) -> str:
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *content, "</section>"])


def _notice(log: RunLog) -> str:
    notice = log.header.get("dataset_notice")
    return f'<p class="notice">{escape(notice)}</p>' if notice else ""


def _figures(log: RunLog, predictions: Predictions | None) -> str:
    """The few figures that a reader looks for first."""
    shares = predictions.accuracies.by_head() if predictions else log.tests[-1]["test_accuracy"] if log.tests else None
    figures = []
    if shares:
        named = titles(shares) | {"sum": f"{log.measured} accuracy"}
        figures = [(name, f"{100 * shares[head]:.2f} %") for head, name in reversed(named.items())]
    if log.tests:
        best = max(log.tests, key=lambda line: line["test_accuracy"]["sum"])
        epoch = f"{best['epoch']:,.2f}".rstrip("0").rstrip(".")
        after = f"epoch {epoch}" if best["epoch"] >= 1 else f"step {best['step']:,}"  # 0.004 epochs are no epoch 0
        figures.append((f"best, after {after}", f"{100 * best['test_accuracy']['sum']:.2f} %"))
        figures.append(("training time", _minutes(log.tests[-1]["seconds"])))
    taken = max((line["step"] for line in log.training + log.tests), default=0)
    of = "" if log.header.get("steps") in (None, taken) else f" of {log.header['steps']:,}"
    figures.append(("steps", f"{taken:,}{of}"))
    if log.training:
        figures.append(("images a second", f"{np.median([line['images_per_second'] for line in log.training]):.0f}"))
    figures.append(("parameters", f"{log.header['parameters']:,}"))
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in figures)
    if not shares:
        return f'<div class="figures">{cells}</div>'
    by = "that of the sum of both heads' logits, " if len(shares) > 1 else ""
    explained = f"<p>The {log.measured} accuracy is {by}on {ON[log.measured]}</p>"
    return f'<div class="figures">{cells}</div>{explained}'


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _curves(log: RunLog) -> str:
    if not log.training and not log.tests:
        return _section("Curves", "<p>Nothing has been measured yet.</p>")
    pictures: dict[str, Callable[[Any, RunLog], None]] = {
        "Accuracies by epoch": plots.draw_accuracies, "Losses by epoch": plots.draw_losses, "Learning rate by epoch": plots.draw_learning_rate,
    }  # fmt: skip
    drawn = "".join(f"<div>{plots.svg(lambda axes, draw=draw: draw(axes, log), 5, 3.6, title)}</div>" for title, draw in pictures.items())
    return _section("Curves", f'<div class="pictures">{drawn}</div>')


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kinds: Sequence[str]) -> str:
    """A table; cells are HTML already, `kinds` are the classes of the columns."""
    top = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "".join("<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(row, kinds, strict=True)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _classes(dataset: Dataset, predictions: Predictions) -> str:
    shares = predictions.class_accuracies()
    rows = []
    for number in np.argsort(-np.nan_to_num(shares["sum"], nan=-1.0), kind="stable"):
        values = [100 * column[number] for column in shares.values()]
        bar = f'<i style="width: {0 if np.isnan(values[-1]) else values[-1]:.1f}%"></i>'
        rows.append([escape(dataset.classes[number]), *("–" if np.isnan(value) else f"{value:.1f}" for value in values), bar])
    table = _table(["class", *titles(shares).values(), ""], rows, ["", *["number"] * len(shares), "bar"])
    text = f"<p>{dataset.measured.capitalize()} accuracy class by class in percent, the best at the top.</p>"
    return _section("Classes", text, table if len(rows) <= 20 else f"<details><summary>all {len(rows)} classes</summary>{table}</details>")


def _confusion(dataset: Dataset, predictions: Predictions) -> str:
    matrix = predictions.confusion_matrix()
    side = plots.matrix_side(dataset.classes)
    picture = plots.svg(lambda axes: plots.draw_confusion_matrix(axes, matrix, dataset.classes), side, side, "Confusion matrix")
    parts = [
        "<p>What the images of each class (rows) are taken for (columns), in percent.</p>",
        f'<div class="matrix">{picture}</div>',
    ]
    wrong = matrix - np.diag(np.diag(matrix))
    order = [divmod(int(place), len(wrong)) for place in np.argsort(-wrong, axis=None, kind="stable")[:SHOWN]]
    if pairs := [(row, column) for row, column in order if wrong[row, column]]:
        rows = [
            [escape(dataset.classes[row]), escape(dataset.classes[column]), f"{wrong[row, column]} of {matrix[row].sum()}"] for row, column in pairs
        ]
        parts.append("<p>Most often confused:</p>" + _table(["shows", "taken for", "images"], rows, ["", "", "number"]))
    else:
        parts.append("<p>No image is taken for another class.</p>")
    return _section("Confusion matrix", *parts)


def _images(dataset: Dataset, predictions: Predictions) -> list[str]:
    """The images that the network is wrongly sure of, unsure of, and rightly sure of. Sure means: by the softmax of the sum of both heads' logits."""
    logits, labels = predictions.sum, predictions.labels
    answers = logits.argmax(axis=1)  # (N,)
    probabilities = predictions.probabilities  # (N, K)
    margins = -np.diff(np.sort(logits, axis=1)[:, -2:], axis=1)[:, 0] if logits.shape[1] > 1 else np.zeros(len(logits))  # (N,), 0 where two tie
    right = answers == labels
    sections = []
    of = "the sum of both heads' logits; where the heads agree, it is surer than either" if len(predictions.heads) > 1 else "the logits"
    sure = f"Percentages are the softmax of {of}. On average they are {100 * predictions.calibration_errors()['sum']:.1f} points away from the share "
    sure += "of right answers among those that are about as sure (expected calibration error)."
    for title, text, chosen, none in (
        ("Most confident mistakes", f"Wrong, by the widest margin. {sure}", _first(margins, ~right), f"There are no mistakes. {sure}"),
        ("Most confused", "The two likeliest classes are closest together.", _first(-margins, np.ones_like(right)), ""),
        ("Most confident", "Right, by the widest margin.", _first(margins, right), "No image is right."),
    ):
        figures = "".join(_figure(dataset, number, int(labels[number]), probabilities[number]) for number in chosen)
        sections.append(_section(title, f"<p>{text}</p>", f'<div class="images">{figures}</div>') if figures else _section(title, f"<p>{none}</p>"))
    return sections


def _first(keys: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Numbers of the `SHOWN` smallest keys among those that `where` allows."""
    allowed = np.flatnonzero(where)
    return allowed[np.argsort(keys[allowed], kind="stable")[:SHOWN]]


def _figure(dataset: Dataset, number: int, label: int, probabilities: np.ndarray) -> str:
    """An image with the class it shows, and the two likeliest answers."""
    likely = [answer for answer in np.argsort(-probabilities, kind="stable")[:2] if probabilities[answer] > 0.005]
    answers = " or ".join(f"{dataset.classes[answer]} {100 * probabilities[answer]:.0f}\N{NO-BREAK SPACE}%" for answer in likely)
    shows, taken = escape(dataset.classes[label]), escape(answers)
    source = base64.b64encode(png(dataset.test.images[number])).decode()
    name = f"{dataset.measured} image {number}"
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{name}, which shows: {shows}" title="{name}">'
        f"<figcaption><b>{shows}</b><br>taken for {taken}</figcaption></figure>"
    )


def _options(log: RunLog, config: dict[str, Any]) -> str:
    given = not_default(config)
    rows = [[escape(name), f"<b>{escape(_text(value))}</b>" if name in given else escape(_text(value))] for name, value in config.items()]
    known = {"config", "network", "dataset", "dataset_notice", "parameters", "seed", "steps"}
    machine = [[escape(name), escape(_text(value))] for name, value in log.header.items() if name not in known]
    return _section(
        "How it was trained",
        "<p>All options; those that are not the default are bold.</p>",
        _table(["option", "value"], rows, ["", "value"]),
        f"<details><summary>data, machine and versions</summary>{_table(['', ''], machine, ['', 'value'])}</details>",
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
