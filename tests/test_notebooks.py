"""Every notebook runs from top to bottom without a warning, its solutions included, and the committed .ipynb has the cells of its source.

They run with MINIGRAD_FAST=1 (fewer steps, smaller data), each in a process of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FILE = Path(__file__).parent.parent / "notebooks" / "build.py"
spec = importlib.util.spec_from_file_location("notebooks_build", FILE)
assert spec and spec.loader
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

every_notebook = pytest.mark.parametrize("source", build.sources(), ids=lambda source: source.stem)


@every_notebook
def test_a_notebook_runs(source: Path) -> None:
    build.run(source, fast=True)


@every_notebook
def test_a_notebook_agrees_with_its_source(source: Path) -> None:
    assert build.differences(source) == []


@every_notebook
def test_a_notebook_keeps_to_the_form(source: Path) -> None:
    """Questions with folded answers, three exercises with solutions, and what comes before and after."""
    text = source.read_text(encoding="utf-8")
    assert "**You need**" in text
    assert "**You now have**" in text
    assert text.count("<details><summary>Answer</summary>") == text.count("</details>") >= 2
    assert text.count("**Predict:**") >= 2
    assert all(f"\n# **{number}.** " in text for number in (1, 2, 3))
    assert text.count('# %% tags=["solution"]') >= 3
    wide = [line for line in text.splitlines() if len(line) > (150 if line.startswith("#") else 120)]
    assert wide == [], "JupyterLab shows 120 characters of code without scrolling; text is filled anew"


def test_a_source_that_was_edited_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "01_small.py"
    source.write_text('# %% [markdown]\n# # Small\n\n# %%\nprint(6 * 7)\n\n# %% tags=["solution"]\nassert True\n')
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.differences(source) == ["01_small.ipynb is missing; run `make notebooks`"]
    notebook = build.read(source)
    build.write(source, notebook)
    assert build.differences(source) == ["01_small.ipynb has cells that were not run; run `make notebooks`"]
    notebook, _ = build.run(source)
    assert notebook.cells[1].outputs[0].text == "42\n"
    assert notebook.cells[2].metadata == {"tags": ["solution"], "jupyter": {"source_hidden": True, "outputs_hidden": True}}
    first = build.write(source, notebook).read_bytes()
    assert build.differences(source) == []
    assert build.write(source, build.run(source)[0]).read_bytes() == first
    source.write_text(source.read_text().replace("6 * 7", "6 * 8"))
    assert build.differences(source) == ["01_small.ipynb has other cells than 01_small.py; run `make notebooks`"]


def test_code_of_the_library_that_was_edited_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what cells show with `Code` every line must be in the library, or in the notebook itself."""
    source = tmp_path / "01_shown.py"
    shown = "from IPython.display import Code\n\ndef mine(): pass\n\nCode('def mine(): pass\\nimport numpy as np')\n"
    source.write_text(f"# %%\n{shown}")
    build.write(source, build.run(source)[0])
    monkeypatch.setattr(build, "library_lines", lambda: {"import numpy as np"})
    assert build.differences(source) == []
    monkeypatch.setattr(build, "library_lines", lambda: {"import numpy"})
    assert build.differences(source) == ["01_shown.ipynb shows code that is not there any more (import numpy as np); run `make notebooks`"]


def test_pictures_say_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of `# %% alt="..."` is where nbconvert and MyST-NB look for it; a picture without one is wrong, and one without a picture."""
    source = tmp_path / "01_drawn.py"
    picture = "from IPython.display import Image\n\nImage(b'\\x89PNG\\r\\n\\x1a\\n', format='png')\n"
    monkeypatch.setattr(build, "FOLDER", tmp_path)

    def wrong(text: str) -> list[str]:
        source.write_text(text)
        build.write(source, build.run(source)[0])
        return build.differences(source)

    assert wrong(f'# %% alt="a line that falls"\n{picture}') == []
    (cell,) = build.nbformat.read(source.with_suffix(".ipynb"), as_version=4).cells
    assert cell.metadata == {"alt": "a line that falls", "mystnb": {"image": {"alt": "a line that falls"}}}
    assert "image/png" in cell.outputs[0].data
    ending = 'see `# %% alt="..."` at the top of build.py'
    said = f"01_drawn.ipynb: the cell 'from IPython.display import Image' draws and does not say what; {ending}"
    assert wrong(f"# %%\n{picture}") == [said]
    assert wrong('# %% alt="a line"\nx = 1\n') == [f"01_drawn.ipynb: the cell 'x = 1' says what it draws and draws nothing; {ending}"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; print('careful', file=sys.stderr)", "wrote to stderr"),
        ("import os; os.kill(os.getpid(), 9)", "01_wrong.py: its kernel was lost after .* no cell raised anything"),
    ],
)
def test_a_cell_that_fails_or_warns_is_an_error(code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "01_wrong.py"
    source.write_text(f"# %%\n{code}\n")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    with pytest.raises(Exception, match=message):
        build.run(source)
    assert not source.with_suffix(".ipynb").exists()


def test_notebooks_are_named_by_what_they_begin_with() -> None:
    assert [path.name for path in build.sources(["01"])] == ["01_one_scalar_product.py"]
    with pytest.raises(ValueError, match="no notebook begins with '99'; there are 01_one_scalar_product"):
        build.sources(["99"])


@pytest.mark.parametrize(("platform", "version", "is_set"), [("linux", (3, 13), False), ("win32", (3, 13), True), ("win32", (3, 14), False)])
def test_the_loop_of_windows_is_another_before_python_deprecates_to_set_it(
    platform: str, version: tuple[int, int], is_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[str] = []
    monkeypatch.setattr(build, "sys", SimpleNamespace(platform=platform, version_info=version, stderr=sys.stderr))
    monkeypatch.setattr(build, "asyncio", SimpleNamespace(set_event_loop_policy=policies.append, WindowsSelectorEventLoopPolicy=lambda: "selector"))
    monkeypatch.setattr(sys, "argv", ["build.py", "no such notebook"])
    assert build.main() == 1 and policies == ["selector"] * is_set
