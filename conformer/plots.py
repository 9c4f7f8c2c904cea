"""Pictures of a run: its curves, and which classes it takes for which. Needs matplotlib, an extra of the application.

Each `draw_` function draws one picture on the Axes it is given; `save_curves` and `save_confusion_matrix` make PNG files of them. Read next:
`conformer/report.py`, which puts them into a page.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conformer.evaluate import HEADS, titles
from conformer.files import write_file
from conformer.run_log import RunLog
from conformer.text import printable

__all__ = [
    "draw_accuracies",
    "draw_confusion_matrix",
    "draw_learning_rate",
    "draw_losses",
    "matrix_side",
    "save_confusion_matrix",
    "save_curves",
    "save_explanation",
    "svg",
]

COLORS = {"cnn": "tab:blue", "transformer": "tab:orange", "sum": "tab:green"}
MOST = 180  # images of `save_explanation`: matplotlib draws at most 65,536 pixels
FEW = 20  # classes: their names stand aslant in a confusion matrix, which has room for figures
INK = "#010203"  # text and lines of `svg`, replaced by the colour of the page's text


def draw_losses(axes: Axes, log: RunLog) -> None:
    """Losses over the epochs: of training, and on the test images or those held out."""
    axes.plot([line["epoch"] for line in log.training], [line["loss"] for line in log.training], color="tab:gray", label="training, augmented")
    epochs, losses = ([line[name] for line in log.tests] for name in ("epoch", "test_loss"))
    axes.plot(epochs, losses, "o-", markersize=3, color="tab:red", label=log.measured)
    axes.set(xlabel="epoch", ylabel=f"loss: cross entropy{', mean of both heads' * (len(_named(log)) > 1)}")
    _finish(axes)


def draw_accuracies(axes: Axes, log: RunLog) -> None:
    """Accuracies of both heads and their sum over the epochs, or of the only head, and of the averaged weights where there are any."""
    named = _named(log)
    for head, name in named.items():
        values = [100 * line["test_accuracy"][head] for line in log.tests]
        last = f": {values[-1]:.2f} %" if values else ""
        axes.plot([line["epoch"] for line in log.tests], values, "o-", markersize=3, color=COLORS[head], label=f"{name}{last}")
    if averaged := [line for line in log.tests if "ema_test_accuracy" in line]:
        values = [100 * line["ema_test_accuracy"]["sum"] for line in averaged]
        label = f"{'sum, ' * (len(named) > 1)}average of the weights: {values[-1]:.2f} %"
        axes.plot([line["epoch"] for line in averaged], values, "--", color="tab:purple", label=label)
    axes.set(xlabel="epoch", ylabel=f"{log.measured} accuracy in percent")
    _finish(axes)


def _named(log: RunLog) -> dict[str, str]:
    """What the run's answers are called, of two heads and their sum or of one."""
    return titles(log.tests[0]["test_accuracy"] if log.tests else HEADS)


def draw_learning_rate(axes: Axes, log: RunLog) -> None:
    """The learning rate over the epochs."""
    axes.plot([line["epoch"] for line in log.training], [line["learning_rate"] for line in log.training], color="tab:brown")
    axes.set(xlabel="epoch", ylabel="learning rate")
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(framealpha=0.3)


def draw_confusion_matrix(axes: Axes, matrix: np.ndarray, classes: Sequence[str]) -> None:
    """Which classes are taken for which, in percent of each row.

    Args:
        axes: where to draw.
        matrix: integers (K, K), as `Predictions.confusion_matrix` gives them.
        classes: the K names.
    """
    names = [printable(name) for name in classes]
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)  # (K, K), in percent of the row
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    few = len(classes) <= FEW
    size = None if few else 4
    axes.set_xticks(range(len(names)), names, rotation=45 if few else 90, ha="right" if few else "center", fontsize=size, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axes.set(xlabel="taken for", ylabel="shows")
    if few:
        for row, column in np.argwhere(share >= 0.5):
            color = "white" if share[row, column] > 60 else "black"
            axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=8, color=color)


def matrix_side(classes: Sequence[str]) -> float:
    """Inches that a confusion matrix of these classes is high and wide."""
    return 6.5 if len(classes) <= FEW else 11


def save_curves(run: Path, log: RunLog) -> Path:
    """Draw loss, accuracies and learning rate over the epochs into `run`/curves.png; returns its path, raises OSError."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    draw_losses(losses, log)
    draw_accuracies(accuracies, log)
    draw_learning_rate(rates, log)
    figure.suptitle(printable(log.title), parse_math=False)
    return _save(figure, run / "curves.png")


def save_confusion_matrix(path: Path, matrix: np.ndarray, classes: Sequence[str], title: str) -> Path:
    """Draw a confusion matrix, in percent of each row, into a PNG file; returns its path, raises OSError."""
    side = matrix_side(classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    draw_confusion_matrix(figure.subplots(), matrix, classes)
    figure.suptitle(printable(title), parse_math=False)
    return _save(figure, path)


def save_explanation(path: Path, images: np.ndarray, names: Sequence[str], answers: Sequence[str], maps: np.ndarray, shares: np.ndarray) -> Path:
    """Draw what a network looks at in some images into a PNG file, a row for each; returns its path.

    Args:
        path: the file.
        images: uint8 (N, H, W, 3), or (N, H, W, 1) of grey.
        names: what each image is called.
        answers: what each is taken for.
        maps: class activation maps (N, h, w), as `class_activation_maps` gives them.
        shares: what the class token is made of, (N, h, w), as `attention_rollout` and `token_map` give it.

    Raises:
        OSError: it cannot be written.
        ValueError: it would be too high to be drawn.
    """
    if len(images) > MOST:
        raise ValueError(f"{len(images)} images make too high a picture; give at most {MOST} at a time")
    figure = Figure(figsize=(8, 2.8 * len(images)), layout="constrained")
    for row, panels in enumerate(figure.subplots(len(images), 3, squeeze=False)):
        place = (-0.5, images.shape[2] - 0.5, images.shape[1] - 0.5, -0.5)
        titles = (f"{names[row]}: {answers[row]}", f"CNN branch: what speaks for {answers[row]}", "transformer branch: class token")
        for axes, title, heat in zip(panels, titles, (None, np.maximum(maps[row], 0), shares[row]), strict=True):
            axes.imshow(images[row], cmap="gray", vmin=0, vmax=255)  # which only images of grey look at
            if heat is not None:
                axes.imshow(heat, cmap="inferno", alpha=0.6, extent=place, interpolation="bilinear")
            axes.set_title(printable(title), fontsize=8, parse_math=False)
            axes.set_axis_off()
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box
        figure.savefig(picture, format="png", dpi=120)
    write_file(path, picture.getvalue())
    return path


def svg(draw: Callable[[Axes], None], width: float, height: float, title: str) -> str:
    """A picture as an element of an HTML page: its text stays text, and its ink takes the colour of the page's text, in light and dark.

    Args:
        draw: draws on the Axes it is given.
        width: in inches.
        height: in inches.
        title: what it shows, for those who do not see it; pictures of one page have different ones, from which the names inside them are made.
    """
    names = "text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "xtick.labelcolor", "ytick.labelcolor"
    settings: dict[Any, Any] = dict.fromkeys(names, INK) | dict.fromkeys(("legend.facecolor", "axes.facecolor", "svg.fonttype"), "none")
    settings["svg.hashsalt"] = "minigrad"  # the same names inside the file each time
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    markup = text.getvalue()
    markup = markup[markup.index("<svg") :].replace(INK, "currentColor")
    prefix = re.sub(r"\W+", "-", title.lower())  # ids are those of a page, not of a picture
    markup = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", markup)
    return markup.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
