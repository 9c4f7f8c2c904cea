"""A run's curves as a picture: `curves.png` beside the `metrics.jsonl` it is drawn from. Needs matplotlib, an extra of the application."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

__all__ = ["draw_curves"]


def draw_curves(run: Path) -> Path:
    """Draw loss, accuracies and learning rate over the epochs into `run`/curves.png.

    Args:
        run: a run folder with metrics.jsonl: a header, then lines of training (loss, train_accuracy) and of evaluation (test_accuracy, test_loss).

    Returns:
        The picture's path.

    Raises:
        OSError: a file cannot be read or written.
    """
    header, *lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [line for line in lines if "train_accuracy" in line]
    tests = [line for line in lines if "test_accuracy" in line]

    figure = Figure(figsize=(14, 4), layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3, width_ratios=(3, 3, 2))
    losses.plot([line["epoch"] for line in training], [line["loss"] for line in training], color="tab:gray", label="training (smoothed labels)")
    losses.plot([line["epoch"] for line in tests], [line["test_loss"] for line in tests], "o-", markersize=3, color="tab:red", label="test")
    losses.set(xlabel="epoch", ylabel="cross entropy, mean of both heads")
    for head, name, color in (
        ("cnn", "CNN head", "tab:blue"),
        ("transformer", "transformer head", "tab:orange"),
        ("sum", "sum of both", "tab:green"),
    ):
        values = [100 * line["test_accuracy"][head] for line in tests]
        last = f": {values[-1]:.2f} %" if values else ""
        accuracies.plot([line["epoch"] for line in tests], values, "o-", markersize=3, color=color, label=f"{name}{last}")
    if averaged := [line for line in tests if "ema_test_accuracy" in line]:
        values = [100 * line["ema_test_accuracy"]["sum"] for line in averaged]
        label = f"sum, average of the weights: {values[-1]:.2f} %"
        accuracies.plot([line["epoch"] for line in averaged], values, "--", color="tab:purple", label=label)
    accuracies.set(xlabel="epoch", ylabel="test accuracy in percent")
    rates.plot([line["epoch"] for line in training], [line["learning_rate"] for line in training], color="tab:brown")
    rates.set(xlabel="epoch", ylabel="learning rate")
    for axes in (losses, accuracies, rates):
        axes.grid(alpha=0.3)
    losses.legend()
    accuracies.legend()
    figure.suptitle(f"{header['config']} on {header['dataset']}, seed {header['seed']}")
    path = run / "curves.png"
    figure.savefig(path, dpi=120)
    return path
