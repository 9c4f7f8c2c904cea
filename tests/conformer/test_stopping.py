"""Signals to stop: the first is noted, a second does not wait, and those of others are left alone. What a run does then: `test_resume.py`."""

from __future__ import annotations

import os
import runpy
import signal
import sys

import pytest

from conformer import stopping
from conformer.stopping import Stopped, StopSignals


def test_a_second_signal_does_not_wait() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped), StopSignals() as signals, signals.at_once():
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_came_before_what_need_not_be_finished_is_obeyed_there() -> None:
    signals = StopSignals()
    signals.received = signal.SIGTERM
    with pytest.raises(Stopped) as stopped, signals.at_once():
        raise AssertionError("it was begun")
    assert stopped.value.signal == signal.SIGTERM
    with StopSignals() as signals:
        with signals.at_once():
            pass
        assert not signals._at_once  # or the next line would end pytest
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


def test_a_signal_where_stderr_is_closed_is_noted_and_writes_into_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `2>&-` the next file that is opened is number 2."""
    written: list[int] = []
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(os, "write", lambda handle, text: written.append(handle))
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
    assert not written


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopping.SIGNALS == (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def test_the_signals_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    assert runpy.run_path(str(stopping.__file__))["SIGNALS"] == (signal.SIGINT, signal.SIGTERM, 21)


@pytest.mark.usefixtures("ctrl_c")
def test_a_handler_that_is_not_python_s_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program in C that Python is embedded in: getsignal says None, which signal() does not take back."""
    getsignal = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else getsignal(number))
    before = getsignal(signal.SIGTERM), getsignal(signal.SIGINT)
    with StopSignals() as signals:
        assert getsignal(signal.SIGTERM) is before[0] and getsignal(signal.SIGINT) == signals._note
    assert (getsignal(signal.SIGTERM), getsignal(signal.SIGINT)) == before
