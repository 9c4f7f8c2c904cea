"""docs/errors.md is what the program and the library say today: every example on it is run again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "docs" / "errors.py"
spec = importlib.util.spec_from_file_location("errors_page", FILE)
assert spec and spec.loader
errors = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = errors  # dataclasses look their module up
spec.loader.exec_module(errors)


@pytest.mark.parametrize("example", errors.EXAMPLES, ids=lambda example: example.title)
def test_an_example_is_on_the_page_as_it_runs_today(example) -> None:
    if example.mount and not errors.can_mount():
        pytest.skip("this system does not allow file systems of one's own (unshare, mount)")
    assert errors.section(example) in errors.PAGE.read_text(encoding="utf-8")


def test_nothing_else_is_on_the_page() -> None:
    titles = [line.removeprefix("### ") for line in errors.PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("### ")]
    assert sorted(titles) == sorted(example.title for example in errors.EXAMPLES)
