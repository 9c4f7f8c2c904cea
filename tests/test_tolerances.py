"""Tests state how near two numbers must be: beside `atol=1e-12` alone, `assert_allclose` would let a relative error of 1e-7 pass, and
`pytest.approx` lets one of 1e-6 pass where nothing is said. Either hides a mistake in what is computed in float64.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
STATED = {"assert_allclose": {"rtol"}, "approx": {"rel", "abs", "nan_ok"}}  # nan_ok is for infinities and NaNs, which are equal or not


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name in (getattr(node.func, "id", None), getattr(node.func, "attr", None)):
            yield node


def silent(source: str, name: str) -> list[int]:
    """The lines that call a function of `STATED` without a tolerance; it may also be the argument after what is compared, or in a dictionary given
    with **.
    """
    compared = {"assert_allclose": 2, "approx": 1}[name]
    found = calls(ast.parse(source), name) if name in source else ()
    return [call.lineno for call in found if len(call.args) <= compared and not (STATED[name] | {None}) & {word.arg for word in call.keywords}]


@pytest.mark.parametrize("name", STATED)
def test_a_comparison_of_floats_always_has_a_tolerance(name: str):
    assert silent("assert_allclose(x, y)\nnp.testing.assert_allclose(x, y, atol=1e-12)\nassert_allclose(x, y, rtol=0)", "assert_allclose") == [1, 2]
    assert silent("approx(x)\nx == pytest.approx([y])\npytest.approx(x, rel=1e-12)\napprox(x, 1e-12)\napprox(x, abs=0.1)", "approx") == [1, 2]
    found = {str(path.relative_to(FOLDER)): silent(path.read_text(encoding="utf-8"), name) for path in FOLDER.rglob("*.py")}
    assert not any(found.values()), {file: lines for file, lines in found.items() if lines}
