"""Tests state how near two arrays must be: beside `atol=1e-12` alone, `assert_allclose` would let a relative error of 1e-7 pass."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent


def silent(source: str) -> list[int]:
    """The lines that call `assert_allclose` without a relative tolerance; it may also be the third argument, or in a dictionary given with **."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)] if "assert_allclose" in source else []
    named = [call for call in calls if "assert_allclose" in (getattr(call.func, "id", None), getattr(call.func, "attr", None))]
    return [call.lineno for call in named if len(call.args) < 3 and not {"rtol", None} & {keyword.arg for keyword in call.keywords}]


def test_assert_allclose_always_has_a_relative_tolerance():
    assert silent("assert_allclose(x, y)\nnp.testing.assert_allclose(x, y, atol=1e-12)\nassert_allclose(x, y, rtol=0, atol=1e-12)") == [1, 2]
    found = {str(path.relative_to(FOLDER)): silent(path.read_text(encoding="utf-8")) for path in FOLDER.rglob("*.py")}
    assert not any(found.values()), {file: lines for file, lines in found.items() if lines}
