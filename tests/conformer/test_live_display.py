"""The table that a terminal shows while a run trains, and writes again at each step."""

from __future__ import annotations

import io

from conformer.display import Progress
from conformer.evaluate import Accuracies
from conformer.live_display import LiveDisplay


def test_figures_are_written_again_in_their_place_and_messages_stay_above_them() -> None:
    from rich.console import Console

    screen = io.StringIO()
    display = LiveDisplay(Console(file=screen, force_terminal=True, width=80, color_system=None), rate=1e9)
    progress = Progress(1, 4, 0.5, 2.0, Accuracies(0.5, 0.25, 0.525), None, 1e-3, 640.0, 75.0)
    display.message("starting [1/2]\x1b[2J")
    display.progress(progress)
    display.progress(progress._replace(step=2, test=Accuracies(0.7, 0.6, 0.8)))
    display.message("between")
    display.close()
    text = screen.getvalue()
    assert "starting [1/2]\\x1b[2J\n" in text  # a terminal obeys nothing that a message says
    for figure in ("step 1/4", "epoch 0.50", "0:01:15 left", "loss 2.000", "learning rate 0.001", "640 images/s", "25.0 %", "52.5 %"):
        assert figure in text[: text.index("step 2/4")]
    assert text.index("step 1/4") < text.index("\x1b[2K", text.index("step 1/4")) < text.index("step 2/4")  # the lines are erased and written again
    assert "80.0 %" not in text[: text.index("step 2/4")]
    assert "80.0 %" in text[text.index("step 2/4") :]
    assert text.rindex("between\n") < text.rindex("\x1b[2K")
    assert "test" in text and "held-out" not in text
    display.progress(progress._replace(step=3, test=Accuracies(0.7, 0.6, 0.8), measured="held-out"))
    display.close()
    said = screen.getvalue()[len(text) :]
    assert "held-out" in said and "80.0 %" in said and "test" not in said
