"""The README's first code block runs, and every `print(...)  # result` in it prints that result."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_first_code_block() -> None:
    block = re.search(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert block, "README.md has no ```python block"
    code = block[1]
    assert "minigrad" in code
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, str(README), "exec"), {"__name__": "readme"})
    expected = re.findall(r"^print\(.*\)\s+# (.*)$", code, flags=re.MULTILINE)
    assert expected, "the block shows no result: write print(...)  # result"
    assert output.getvalue().splitlines() == expected
