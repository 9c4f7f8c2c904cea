"""Ctrl-C while the command line loads, which takes a second: a sentence, where an interrupt in the middle of an import would have a traceback.

`conformer/__init__.py` imports this first, and the command line calls `loaded` when it begins. For everybody else nothing is done: an interrupt is
theirs.
"""

import _signal  # type: ignore[import-not-found]  # `signal` makes enumerations of it first, and that takes longer than all of this
import os
import sys

__all__ = ["loaded"]


def _leave(number: int, frame: object) -> None:
    """Not by an exception, which NumPy and Python make into others where it falls on certain imports. Nothing has been begun."""
    try:
        if sys.stderr is not None:
            os.write(2, b"conformer: stopped\n")
    finally:  # also where stderr cannot be written
        os._exit(128 + number)


def _is_ours() -> bool:
    """Whether this process is `python -m conformer`, also written -mconformer or -m conformer.__main__, or the installed script."""
    started = "".join(sys.argv[:1])
    if started == "-m":  # while the package of the module is imported
        word = "".join(sys.orig_argv[-len(sys.argv) :][:1])  # before the module's arguments: its name, perhaps joined to -m or -Im
        module = word.partition("m")[2] if word.startswith("-") else word
        return module in ("conformer", "conformer.__main__")
    if os.path.basename(started) not in ("conformer", "conformer.exe", "conformer-script.py"):
        return False
    try:
        with open(started, "rb") as script:  # which may be somebody's own of that name
            text = script.read()
    except OSError:
        return False
    return b"conformer.__main__" in text or b"conformer.cli" in text  # what pip writes, and wrote for earlier versions


def loaded() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if _signal.getsignal(_signal.SIGINT) is _leave:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


if _is_ours() and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not where it is ignored, as under nohup
    _signal.signal(_signal.SIGINT, _leave)
