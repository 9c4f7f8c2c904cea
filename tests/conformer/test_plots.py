"""The pictures of a run, by what is drawn on their Axes: which numbers, under which names, which way up."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from conformer import plots
from conformer.run_log import RunLog

Lines = dict[str, tuple[Sequence[float], Sequence[float]]]
"""Values along both axes, by the lines' names."""

TRAINING = [
    {"epoch": 0.5, "loss": 2.3, "learning_rate": 0.001},
    {"epoch": 1.0, "loss": 1.9, "learning_rate": 0.004},
    {"epoch": 1.5, "loss": 2.1, "learning_rate": 0.002},
]
TESTS = [
    {"epoch": 1.0, "test_loss": 1.7, "test_accuracy": {"cnn": 0.11, "transformer": 0.22, "sum": 0.33}},
    {
        "epoch": 2.0,
        "test_loss": 1.2,
        "test_accuracy": {"cnn": 0.25, "transformer": 0.5, "sum": 0.75},
        "ema_test_accuracy": {"cnn": 0.3, "transformer": 0.4, "sum": 0.6},
    },
    {
        "epoch": 3.0,
        "test_loss": 1.4,
        "test_accuracy": {"cnn": 0.2, "transformer": 0.45, "sum": 0.7},
        "ema_test_accuracy": {"cnn": 0.35, "transformer": 0.55, "sum": 0.8},
    },
]
LOG = RunLog({"config": "cifar-nano", "dataset": "cifar10", "seed": 3}, TRAINING, TESTS)
MATRIX = np.array([[6, 3, 1], [0, 0, 0], [1, 0, 199]])  # of class 1 there are no images, and 0.5 % of class 2 are taken for class 0
LOSSES: Lines = {"training, augmented": ([0.5, 1.0, 1.5], [2.3, 1.9, 2.1]), "test": ([1.0, 2.0, 3.0], [1.7, 1.2, 1.4])}
ACCURACIES: Lines = {
    "CNN head: 20.00 %": ([1.0, 2.0, 3.0], [11, 25, 20]),
    "transformer head: 45.00 %": ([1.0, 2.0, 3.0], [22, 50, 45]),
    "sum of both: 70.00 %": ([1.0, 2.0, 3.0], [33, 75, 70]),
    "sum, average of the weights: 80.00 %": ([2.0, 3.0], [60, 80]),
}
RATES = [([0.5, 1.0, 1.5], [0.001, 0.004, 0.002])]


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Figure, Path]]:
    """The figures that would have been written, and where."""
    figures: list[tuple[Figure, Path]] = []

    def keep(figure: Figure, path: Path) -> Path:
        figures.append((figure, path))
        return path

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def drawn(axes: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.lines]


def assert_lines(axes: Axes, expected: Lines) -> None:
    """The lines, and those of the legend, are these, in this order."""
    assert [line.get_label() for line in axes.lines] == list(expected)
    for found, wanted in zip(drawn(axes), expected.values(), strict=True):
        assert_allclose(found, wanted, rtol=1e-12)
    legend = axes.get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == list(expected)


def test_losses_of_training_and_test_are_drawn_under_their_own_names(axes: Axes):
    plots.draw_losses(axes, LOG)
    assert_lines(axes, LOSSES)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss: cross entropy, mean of both heads")


def test_accuracies_are_drawn_head_by_head_and_those_of_the_averaged_weights_where_they_were_measured(axes: Axes):
    plots.draw_accuracies(axes, LOG)
    assert_lines(axes, ACCURACIES)
    assert [line.get_color() for line in axes.lines] == [*plots.COLORS.values(), "tab:purple"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "test accuracy in percent")


def test_curves_on_held_out_images_are_called_so(axes: Axes):
    log = RunLog(LOG.header | {"held_out_images": 8}, TRAINING, TESTS)
    plots.draw_accuracies(axes, log)
    assert axes.get_ylabel() == "held-out accuracy in percent"
    assert_lines(axes, ACCURACIES)
    plots.draw_losses(losses := Figure().subplots(), log)
    assert_lines(losses, {name.replace("test", "held-out"): line for name, line in LOSSES.items()})


def test_a_run_without_averaged_weights_and_tests_has_three_names_without_figures(axes: Axes):
    plots.draw_accuracies(axes, RunLog(LOG.header, TRAINING, []))
    assert_lines(axes, {name: ([], []) for name in ("CNN head", "transformer head", "sum of both")})


def test_learning_rates_are_drawn_at_their_epochs(axes: Axes):
    plots.draw_learning_rate(axes, LOG)
    assert_allclose(drawn(axes), RATES, rtol=1e-12)
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_legend()) == ("epoch", "learning rate", None)


def test_the_picture_of_the_curves_has_losses_accuracies_and_learning_rate(saved: list[tuple[Figure, Path]], tmp_path: Path):
    assert plots.save_curves(tmp_path, LOG) == tmp_path / "curves.png"
    ((figure, path),) = saved
    losses, accuracies, rates = figure.axes
    assert (path, figure.get_suptitle()) == (tmp_path / "curves.png", "cifar-nano on cifar10, seed 3")
    assert_lines(losses, LOSSES)
    assert_lines(accuracies, ACCURACIES)
    assert_allclose(drawn(rates), RATES, rtol=1e-12)


def test_a_confusion_matrix_has_shares_of_each_row_and_the_first_class_at_the_top_left(axes: Axes):
    plots.draw_confusion_matrix(axes, MATRIX, ("cat", "$dog$", "frog"))
    (image,) = axes.images
    assert_allclose(np.asarray(image.get_array()), [[60, 30, 10], [0, 0, 0], [0.5, 0, 99.5]], rtol=1e-12)
    assert image.get_clim() == (0, 100) and axes.yaxis_inverted() and not axes.xaxis_inverted()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "shows")
    for ticks, labels in ((axes.get_xticks(), axes.get_xticklabels()), (axes.get_yticks(), axes.get_yticklabels())):
        assert [(place, label.get_text()) for place, label in zip(ticks, labels, strict=True)] == [(0, "cat"), (1, "$dog$"), (2, "frog")]


def test_figures_stand_in_their_cells_and_are_left_out_below_half_a_percent(axes: Axes):
    plots.draw_confusion_matrix(axes, np.array([[6, 3, 1], [0, 0, 0], [2, 1, 398]]), ("cat", "dog", "frog"))
    texts = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert texts == {(0, 0): ("60", "black"), (1, 0): ("30", "black"), (2, 0): ("10", "black"), (2, 2): ("99", "white")}


def test_more_than_twenty_classes_are_drawn_without_figures(axes: Axes):
    plots.draw_confusion_matrix(axes, np.eye(21, dtype=int), [str(number) for number in range(21)])
    assert not axes.texts and len(axes.get_xticks()) == len(axes.get_yticks()) == 21


def test_a_saved_confusion_matrix_has_its_title(saved: list[tuple[Figure, Path]], tmp_path: Path):
    assert plots.save_confusion_matrix(tmp_path / "c.png", MATRIX, ("cat", "dog", "frog"), "a title") == tmp_path / "c.png"
    ((figure, path),) = saved
    assert (path, figure.get_suptitle()) == (tmp_path / "c.png", "a title")
    assert_allclose(np.asarray(figure.axes[0].images[0].get_array()), [[60, 30, 10], [0, 0, 0], [0.5, 0, 99.5]], rtol=1e-12)


def test_names_that_are_no_formulas_and_no_text(tmp_path: Path):
    """Drawn for real: matplotlib refuses half a formula, and bytes that are not UTF-8."""
    log = RunLog({"config": "$\\frac{$", "dataset": "a\x1bb", "seed": "\udce9"}, TRAINING, TESTS)
    assert plots.save_curves(tmp_path, log).read_bytes().startswith(b"\x89PNG")
    names = ("$\\frac{$", "caf\udce9", "a\nb")
    assert plots.save_confusion_matrix(tmp_path / "c.png", MATRIX, names, "$\\frac{$ \udce9").read_bytes().startswith(b"\x89PNG")


def test_names_are_escaped(axes: Axes):
    plots.draw_confusion_matrix(axes, MATRIX, ("$dog$", "caf\udce9", "a\nb"))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["$dog$", r"caf\udce9", r"a\nb"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$dog$", r"caf\udce9", r"a\nb"]


def test_an_explanation_has_a_row_for_each_image_with_activation_map_and_class_token_over_it(saved: list[tuple[Figure, Path]], tmp_path: Path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 12, 16, 3), np.uint8)
    maps, shares = random.normal(size=(2, 6, 8)), random.random((2, 3, 4))
    assert plots.save_explanation(tmp_path / "e.png", images, ["one.png", "two.png"], ["cat", "frog"], maps, shares) == tmp_path / "e.png"
    ((figure, path),) = saved
    assert path == tmp_path / "e.png"
    for row, (name, answer) in enumerate((("one.png", "cat"), ("two.png", "frog"))):
        panels = figure.axes[3 * row : 3 * row + 3]
        titles = [panel.get_title() for panel in panels]
        assert titles == [f"{name}: {answer}", f"CNN branch: what speaks for {answer}", "transformer branch: class token"]
        assert [len(panel.images) for panel in panels] == [1, 2, 2]
        for panel in panels:
            assert_array_equal(panel.images[0].get_array(), images[row])
        for panel, heat in zip(panels[1:], (np.maximum(maps[row], 0), shares[row]), strict=True):
            assert_array_equal(panel.images[1].get_array(), heat)
            for image in panel.images:  # both cover the same pixels, the first row at the top
                assert (tuple(image.get_extent()), image.origin) == ((-0.5, 15.5, 11.5, -0.5), "upper")
            assert panel.yaxis_inverted() and not panel.xaxis_inverted()
    assert len(figure.axes) == 6


def test_a_picture_in_a_page_has_its_title_its_text_and_the_ink_of_the_page():
    markup = plots.svg(lambda axes: plots.draw_losses(axes, LOG), 5, 3.6, "Losses & more")
    assert markup.startswith('<svg role="img" aria-label="Losses &amp; more" ')
    assert "training, augmented" in markup and "loss: cross entropy, mean of both heads" in markup
    assert plots.INK not in markup and "currentColor" in markup
    assert all(name.startswith("losses-more-") for name in re.findall(r'\bid="([^"]+)"', markup))
    assert markup == plots.svg(lambda axes: plots.draw_losses(axes, LOG), 5, 3.6, "Losses & more")
