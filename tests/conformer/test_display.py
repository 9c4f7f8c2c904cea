"""What is printed while a run trains."""

from __future__ import annotations

import contextlib
import errno
import io
import os

import pytest

from conformer.display import Display, Progress
from conformer.evaluate import Accuracies


def test_display_prints_at_intervals_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    shares = Accuracies(0.5, 0.25, 0.525)
    progress = Progress(1, 4, 0.5, 2.0, shares, None, 1e-3, 640.0, 75.0)
    display = Display(seconds=1000)
    for step in range(1, 5):
        display.progress(progress._replace(step=step, test=shares if step == 4 else None))
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step 1/4  epoch 0.50  0:01:15 left  loss 2.000  train 50.0/25.0/52.5 %  lr 0.001  640 images/s"
    display.progress(progress._replace(step=4, test=shares, measured="held-out"))
    assert "  held-out 50.0/25.0/52.5 %  " in (held_out := capsys.readouterr().out) and "test" not in held_out
    assert str(progress._replace(seconds_left=1e30)) == first.replace("0:01:15", "999999999 days, 23:59:59")
    assert last == "step 4/4  epoch 0.50  0:01:15 left  loss 2.000  train 50.0/25.0/52.5 %  test 50.0/25.0/52.5 %  lr 0.001  640 images/s"


def test_what_a_display_says_is_one_line_that_a_terminal_does_not_obey(capsys: pytest.CaptureFixture[str]) -> None:
    Display().message("a data set called \x1b[2J\nNOT THIS, für 1 €")
    assert capsys.readouterr().out == "a data set called \\x1b[2J\\nNOT THIS, für 1 €\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE])
def test_a_display_that_cannot_write_says_that_it_was_the_output(number: int) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    with contextlib.redirect_stdout(Full()), pytest.raises(OSError, match=f"the output cannot be written: {os.strerror(number)}") as caught:
        Display().message("a line")
    assert caught.value.errno == number and isinstance(caught.value, BrokenPipeError) == (number == errno.EPIPE)
