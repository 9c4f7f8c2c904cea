"""A run's progress as a few lines of a terminal that are rewritten in place. Needs rich, an extra of the application."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from conformer.display import Display, Progress
from conformer.evaluate import titles
from conformer.text import printable

__all__ = ["LiveDisplay", "panel"]


class LiveDisplay(Display):
    """Shows progress at the foot of a terminal, redrawn at most `rate` times a second; messages stay above it."""

    def __init__(self, console: Console, rate: float = 4.0):
        super().__init__(seconds=1 / rate)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def message(self, text: str) -> None:
        """Print a line above the progress."""
        self._live.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def _show(self, progress: Progress) -> None:
        self._live.start()  # does nothing after the first time
        self._live.update(panel(progress), refresh=True)

    def close(self) -> None:
        """Take the progress off the terminal; messages stay."""
        self._live.stop()


def panel(progress: Progress) -> Group:
    """Where a run stands: a bar, the running figures, and the accuracies of each head."""
    where = Table.grid(padding=(0, 2))
    where.add_row(
        ProgressBar(total=progress.steps, completed=progress.step, width=24),
        f"step {progress.step:,}/{progress.steps:,}  epoch {progress.epoch:.2f}  {progress.left} left",
    )
    figures = f"loss {progress.loss:.3f}  learning rate {progress.learning_rate:.2g}  {progress.images_per_second:.0f} images/s"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    named = titles(progress.train.by_head()).values()
    for _ in named:
        table.add_column(justify="right")
    table.add_row("", *(Text(name, style="dim") for name in named))
    for title, shares in {"training": progress.train, progress.measured: progress.test}.items():
        if shares:
            table.add_row(title, *(f"{100 * share:.1f} %" for share in shares.by_head().values()))
    return Group(where, Text(figures), table)
