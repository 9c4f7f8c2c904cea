"""The documentation does what it says: links lead somewhere, names exist, code runs, commands have the options they are given.

Python blocks run page by page, from top to bottom, in a process of their own; `print(...)  # result` must print that result; `py` blocks are pieces
of code, and do not run. A block that begins with `# minigrad/...`, `# tests/...` or another folder's name is a file, a diff block a change of one:
such a page is followed in a copy of the project, and its `.venv/bin/python` lines are run there. The site itself is built where Sphinx is installed
(the extra `docs`). docs/errors.md and the two sides of docs/differences.md have tests of their own: `test_errors_page.py`, `test_differences.py`.
Read next: `docs/generate.py`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import minigrad
from conformer import cli
from minigrad import Tensor
from minigrad.op import REGISTRY
from minigrad.pytorch_names import IN_FUNCTIONAL, IN_MINIGRAD

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / "README.md", *sorted(path for path in DOCS.glob("*.md") if path.name != "paper.md")]
# Warnings are errors but for one: OpenBLAS now and then sets the processor's flag for an invalid operation in small products of ones, which NumPy
# then reports (seen in 1 of 240 runs of docs/map.md); a NaN would show in what is printed.
STRICT = ("-W", "error", "-W", "ignore:invalid value encountered in matmul:RuntimeWarning")
MADE = shutil.ignore_patterns("_build", "api", "notebooks", "operations", "paper.md", "__pycache__", ".jupyter_cache", "jupyter_execute")
SITE = ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "sphinx-mathjax-offline")

spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
assert spec and spec.loader
generate = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = generate
spec.loader.exec_module(generate)


class Block(NamedTuple):
    """A fenced block: its language, its lines, and the number of the first of them on the page, from 1."""

    language: str
    lines: list[str]
    start: int

    @property
    def file(self) -> str | None:
        """The file that the block is, or changes."""
        found = re.fullmatch(r"# ((?:minigrad|conformer|tests|benchmarks)/\S+\.py)", self.lines[0]) if self.lines else None
        return found[1] if found else None


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    language, lines, start, fence = "", [], 0, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        found = re.match(r"(`{3,})(.*)", line)
        if fence and line.rstrip() == fence:
            yield Block(language, lines, start)
            fence = ""
        elif fence:
            lines.append(line)
        elif found:
            fence, language, lines, start = found[1], found[2].strip(), [], number + 1
    assert not fence, f"{page.name}: the block before line {start} has no end"


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^(`{3,}).*?^\1\s*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- links


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of docs/ with the generated pages, in a tree that is otherwise the project's."""
    tree = tmp_path_factory.mktemp("tree")
    for path in ROOT.iterdir():
        if path.name != "docs" and not path.name.startswith("."):
            (tree / path.name).symlink_to(path)
    shutil.copytree(DOCS, tree / "docs", ignore=MADE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "DOCS", tree / "docs")
        generate.main()
    yield tree


def anchors(page: Path) -> set[str]:
    """What a link may name on a page: its headings, as GitHub and MyST write them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^```\{image\} (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    return broken


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = [site / "README.md", *(site / "docs").rglob("*.md")]
    assert len(pages) > 20
    broken = {name(ROOT / page.relative_to(site)): links for page in pages if (links := broken_links(page))}
    assert broken == {}


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title, with a comma\n\n[a](#a-title-with-a-comma) [b](page.md#nothing) [c](gone.md) [d](https://example.org) `[e](f)`\n")
    assert broken_links(page) == ["page.md#nothing", "gone.md"]


def test_a_page_of_each_operation(site: Path) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in (site / "docs" / "operations").glob("*.md"))
    for operation in generate.REGISTRY.values():
        if operation.__module__.startswith("minigrad."):
            assert f"| [`{operation.name}`](" in text, f"{operation.name} is not in the table of operations"
            for function in (operation.function, *operation.rules.values()):
                assert function.__name__ == "<lambda>" or f"def {function.__name__}(" in text, f"{operation.name}'s {function.__name__} is on no page"
    assert "<function" not in text and "object at 0x" not in text
    for path in (ROOT / "minigrad" / "fused").glob("*.cu*"):
        assert path.read_text(encoding="utf-8").splitlines()[-2] in text, f"{path.name} is on no page"


def test_docstrings_become_markdown() -> None:
    """Code that is indented is fenced, as Python where it is; the name of a page leads to it."""
    text = "A sentence.\n\n    import minigrad\n\n    x = 3  # docs/a.md\n\nSee `docs/errors.md`, docs/trust.md.\n\n    make test ARGS\n"
    expected = "A sentence.\n\n```python\nimport minigrad\n\nx = 3  # docs/a.md\n```\n\n"
    expected += "See [`docs/errors.md`](../errors.md), [`docs/trust.md`](../trust.md).\n\n```text\nmake test ARGS\n```\n\n"
    assert generate._prose(text) == expected


def test_the_api_begins_with_what_users_import(site: Path) -> None:
    names = generate.public_names()
    assert names["minigrad.nn.Linear"] == "minigrad.nn.linear.Linear" and names["conformer.CONFIGS"] == "conformer.config.CONFIGS"
    assert names["minigrad.backend.Array"] == "minigrad.backend.Array"
    page = (site / "docs" / "api" / "minigrad.backend.md").read_text(encoding="utf-8")
    assert "| {py:obj}`Array <minigrad.backend.Array>` | A numpy.ndarray, or the array type of another backend |" in page
    for public, home in names.items():
        module, _, name = home.rpartition(".")
        assert name in generate._own(module).split(", "), f"{public} is on no page"
    for page in (site / "docs" / "notebooks").glob("*.ipynb"):
        assert "`docs/add_operation.md` does" not in page.read_text(encoding="utf-8")


def test_measured_times_are_shown_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"config": "cifar-nano", "op": "linear", "inputs": [{"shape": [2, 3]}, None]}
    rows = [{"case": case, "side": "minigrad", "turns": [{"wall_ms": [1.0, 3.0, 2.0]}]}, {"case": case, "side": "torch", "failed": "no memory"}]
    head = {"date": "2026-01-02T03:04:05", "command": "make bench BENCH=ops", "sides": {"minigrad": {"title": "this project"}}}
    monkeypatch.setattr(generate, "_results", lambda name: {"ops": head | {"rows": rows}}.get(name))
    text = "\n".join(generate._speed([generate.REGISTRY["linear"]]))
    assert "Measured on 2026-01-02 by `make bench BENCH=ops`" in text and "| cifar-nano | `linear` | 2×3 | this project | 2 |" in text
    assert "no memory" not in text
    assert generate._speed([generate.REGISTRY["gelu"]]) == []


def test_the_picture_of_the_network_is_the_committed_one() -> None:
    assert generate.network_picture() == (DOCS / "network.svg").read_text(encoding="utf-8"), "run python docs/generate.py and commit docs/network.svg"


# --- names


CONTENT = tomllib.loads((DOCS / "paper.toml").read_text(encoding="utf-8"))
PLACES = [entry["code"] for entry in CONTENT["place"] + CONTENT["difference"] + CONTENT["recipe"]]
REFERENCES = sorted({found for page in WRITTEN for found in re.findall(r"\{code-at\}`([^`]+)`", page.read_text(encoding="utf-8"))})


@pytest.mark.parametrize("place", sorted(set(PLACES) | set(REFERENCES)))
def test_what_a_page_refers_to_is_defined_there(place: str) -> None:
    file, symbol = place.split("::")
    line = generate.line_of(ROOT / file, symbol)
    assert re.search(rf"\b{symbol.rpartition('.')[2]}\b", (ROOT / file).read_text(encoding="utf-8").splitlines()[line - 1])


def test_the_paper_is_mapped() -> None:
    assert len(CONTENT["place"]) >= 25
    assert {entry["config"] for entry in CONTENT["place"] if "config" in entry} == {key for key in generate.conformer.CONFIGS if "patch" in key}


def test_the_recipes_stand_side_by_side_with_the_defaults_of_today(site: Path) -> None:
    page = (site / "docs" / "paper.md").read_text(encoding="utf-8").split("## The recipe, official and here")[1]
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", page, flags=re.MULTILINE))
    assert [len(row.split(" | ")) for row in rows.values()] == [4] * len(CONTENT["recipe"]) and "{lr" not in page
    for what, here in {
        "length": "| 20 epochs of CIFAR-10, 128 images a step |",
        "learning rate": "| at most 0.002 |",
        "optimiser": "| the same (weight decay 0.05) |",
        "schedule": "over 10% of the steps,",
        "targets": "| label smoothing 0.1 |",
        "clipping": "| the gradient's norm to at most 1;",
        "drop path, dropout": "| drop path 0, and",
        "crop and flip": "| moved by up to 4 pixels",
        "precision": "| float32;",
    }.items():
        assert here in f"| {rows[what]} |"
    assert minigrad.optim.AdamW([Tensor(1.0, requires_grad=True)]).defaults["betas"] == (0.9, 0.999)  # "the same"
    assert {"mixup, cutmix", "RandAugment", "random erasing", "repeated augmentation", "average of the weights", "evaluation"} <= set(rows)


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"blocks\.py has no FCUDown\.backward"):
        generate.line_of(ROOT / "conformer" / "blocks.py", "FCUDown.backward")


# --- code


def followed(page: Path) -> bool:
    """Whether the page changes the project, and is followed in a copy of it."""
    return any(block.file for block in blocks(page))


def script(page: Path) -> tuple[str, list[str | None]]:
    """The Python blocks of a page as one program, whose lines have the page's numbers, and what its print calls must print (None: anything)."""
    lines = [""] * len(page.read_text(encoding="utf-8").splitlines())
    for block in blocks(page):
        if block.language == "python" and not block.file:
            lines[block.start - 1 : block.start - 1 + len(block.lines)] = block.lines
    calls = [line for line in lines if re.match(r" *print\(", line)]
    return "\n".join(lines) + "\n", [line.split("  # ", 1)[1] if "  # " in line else None for line in calls]


def change(text: str, lines: list[str]) -> str:
    """A text changed as a diff block says: the lines that begin with a blank or a minus must follow one another in it, once."""
    before, after = ("".join(f"{line[1:]}\n" for line in lines if line[0] in marks) for marks in (" -", " +"))
    assert text.count(before) == 1, f"found {text.count(before)} times:\n{before}"
    return text.replace(before, after)


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder with the project that lies there; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONHASHSEED": "0"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def follow(page: Path, folder: Path) -> list[str]:
    """Write the files that a page describes into the project in `folder`; returns the commands that it gives."""
    commands = []
    for block in blocks(page):
        if block.file and block.language == "diff":
            target = folder / block.file
            target.write_text(change(target.read_text(encoding="utf-8"), block.lines[1:]), encoding="utf-8")
        elif block.file:
            assert not (folder / block.file).exists(), f"{name(page)}: there is a {block.file} already"
            (folder / block.file).write_text("\n".join(block.lines[1:]) + "\n", encoding="utf-8")
        elif block.language == "sh":
            commands += [line for line in block.lines if line.startswith(".venv/bin/python")]
    return commands


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page in WRITTEN if page.name != "errors.md" and "```python\n" in page.read_text(encoding="utf-8")], ids=name
)
def test_code_runs_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    folder, commands = ROOT, []
    if followed(page):
        folder = tmp_path / "project"
        for part in ("minigrad", "conformer", "tests", "docs", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=MADE)
        shutil.copy(ROOT / "pyproject.toml", folder)
        commands = follow(page, folder)
        assert commands, "a page that changes the project gives commands that test it"
    program = tmp_path / f"{page.stem}.py"
    text, expected = script(page)
    program.write_text(text, encoding="utf-8")
    printed = run([sys.executable, *STRICT, str(program)], folder).splitlines()
    assert len(printed) == len(expected), f"{len(expected)} calls of print, {len(printed)} lines: {printed}"
    assert [line for line, stated in zip(printed, expected, strict=True) if stated is not None] == [
        stated for stated in expected if stated is not None
    ]
    for command in commands:
        run([sys.executable, *shlex.split(command)[1:]], folder)
    for arguments in (["check"], ["format", "--check"]) if commands else ():
        run([sys.executable, "-m", "ruff", *arguments, "."], folder)


@pytest.mark.parametrize("page", [page for page in WRITTEN if followed(page)], ids=name)
def test_the_operations_that_a_page_adds_are_not_there_yet(page: Path) -> None:
    """Nor does a notebook add them, or `pytorch_names.py` say what to write instead: following the page would break more than it says."""
    files = ["\n".join(block.lines) for block in blocks(page) if block.file and block.language == "python"]
    added = {found for text in files for found in re.findall(r"^@(?:fused|primitive).*\ndef (\w+)", text, flags=re.MULTILINE)}
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("[0-9]*.py"))
    taken = {*REGISTRY, *re.findall(r"^def (\w+)", written, flags=re.MULTILINE), *IN_FUNCTIONAL, *IN_MINIGRAD}
    assert not added & taken
    assert added or page.name != "add_operation.md"


def test_a_change_that_does_not_fit_is_an_error() -> None:
    assert change("a\nb\nc\n", [" a", "-b", "+d", " c"]) == "a\nd\nc\n"
    with pytest.raises(AssertionError, match="found 0 times"):
        change("a\nb\nc\n", [" a", "+d", " c"])


# --- commands


def commands(page: Path) -> list[str]:
    """What a page says to type: the lines of its shell blocks, and code in its text that begins with a program of this project."""
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.lines]
    lines += [
        code for code in re.findall(r"`([^`\n]+)`", prose(page)) if re.match(r"(make|python|conformer|\.venv/bin/python|\.venv/bin/conformer) ", code)
    ]
    return [line for line in (re.sub(r"\s+#.*$", "", line).strip() for line in lines) if line]


def complaint(command: str) -> str | None:
    """What is wrong with a command, or None: an unknown target, file, subcommand or option."""
    words = shlex.split(command)
    while words[0] == "env" or "=" in words[0]:
        words = words[1:]
        while words[0] == "-u":
            words = words[2:]
    if words[0] == "make":
        return _wrong_with_make(words[1:])
    if words[0].endswith("/conformer") or words[0] == "conformer":
        return _wrong_with_options(words[1:])
    if words[0] in ("python", "python3", ".venv/bin/python"):
        if words[1] == "-m":
            if words[2].startswith(("benchmarks.", "tests.")):
                return _wrong_with_script(words[2].replace(".", "/") + ".py", words[3:])
            ours = {"conformer": _wrong_with_options, "pytest": _wrong_with_tests, "minigrad": _unexpected}
            others = {"pip": _wrong_with_pip, "venv": lambda words: None}
            return (ours | others).get(words[2], _unknown)(words[3:])
        return _wrong_with_script(words[1], words[2:])
    return None if words[0] in ("pip", "lint-imports", "ruff") else f"no program {words[0]} is known"


def _unexpected(words: list[str]) -> str | None:
    return f"takes no arguments, {words} given" if words else None


def _unknown(words: list[str]) -> str:
    return "no such module is known"


def _wrong_with_pip(words: list[str]) -> str | None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    missing = [word for word in words if word.startswith(".[") and word[2:-1] not in extras]
    return f"there is no extra {missing[0]}" if missing else None


def _wrong_with_make(words: list[str]) -> str | None:
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    arguments = shlex.split(settings.get("ARGS", "").replace("...", ""))
    for target in [word for word in words if "=" not in word]:
        if not re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE):
            return f"there is no target {target}"
        checks = {name: lambda name=name: _wrong_with_options([name, *arguments]) for name in ("train", "study")}
        checks["test"] = lambda: _wrong_with_tests(arguments)
        checks["bench"] = lambda: _wrong_with_script(f"benchmarks/{settings.get('BENCH', 'suite')}.py", arguments)
        checks["bench-gpu"] = lambda: _wrong_with_script("benchmarks/gpu_suite.py", arguments)
        checks["mutants"] = lambda: _wrong_with_script("tests/mutants.py", arguments)
        checks["deep"] = lambda: _wrong_with_script("tests/deep.py", arguments)
        if found := checks.get(target, lambda: None)():
            return found
    return None


def _wrong_with_options(words: list[str]) -> str | None:
    if not words or any(word in ("...", "--help") for word in words):
        return None
    try:
        cli._parser().parse_args(words if len(words) > 1 else [*words, *{"evaluate": ["RUN"], "report": ["RUN"], "study": ["OUT"]}.get(words[0], [])])
    except (cli.Mistake, ValueError) as error:
        return str(error)
    return None


def _wrong_with_tests(words: list[str]) -> str | None:
    made = {block.file for page in WRITTEN for block in blocks(page)}  # by following a page
    missing = [word for word in words if word.startswith("tests/") and not (ROOT / word.split("::")[0]).exists() and word not in made]
    return f"there is no {missing[0]}" if missing else None


def _wrong_with_script(path: str, words: list[str]) -> str | None:
    if not (ROOT / path).is_file():
        return f"there is no {path}"
    shared = [ROOT / "benchmarks" / "measure.py"] if path.startswith("benchmarks/") else []
    source = "".join(file.read_text(encoding="utf-8") for file in [ROOT / path, *shared])
    unknown = [word for word in words if word.startswith("--") and f'"{word.split("=")[0]}"' not in source]
    return f"{path} has no option {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_commands_have_the_options_they_are_given(page: Path) -> None:
    wrong = {command: found for command in commands(page) if (found := complaint(command))}
    assert wrong == {}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("make tea", "there is no target tea"),
        ('make train ARGS="--epoch 3"', "there is no option --epoch; did you mean --epochs"),
        ('make study ARGS="OUT --seed 3"', "there is no option --seed; did you mean --seeds"),
        ('make test ARGS="tests/none"', "there is no tests/none"),
        ("make bench BENCH=none", "there is no benchmarks/none.py"),
        ("python benchmarks/overhead.py --quickly", "has no option --quickly"),
        ("python -m tests.deep --deeper", "has no option --deeper"),
        (".venv/bin/python -m conformer train --config huge", "there is no 'huge'"),
        ("env -u A -u B python -m other", "no such module"),
        ('python3 -m pip install -e ".[apps]"', "there is no extra .[apps]"),
    ],
)
def test_a_wrong_command_is_found(command: str, message: str) -> None:
    assert message in (complaint(command) or "")


def test_every_target_of_make_is_in_the_table() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)) - {"help"}
    text = (DOCS / "contributing.md").read_text(encoding="utf-8")
    assert [target for target in sorted(targets) if f"`make {target}" not in text and f"make {target} " not in text] == []


# --- the site


@pytest.mark.skipif(not all(map(importlib.util.find_spec, SITE)), reason="its packages are not installed; make docs installs them")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_site_builds_without_a_warning(site: Path, tmp_path: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    html = tmp_path / "html"
    run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "doctrees"), str(site / "docs"), str(html)], site)
    assert (html / "searchindex.js").stat().st_size > 10_000
    pages = [path.read_text(encoding="utf-8") for path in html.rglob("*.html")]
    assert len(pages) > 40
    inventory = InventoryFile.loads((html / "objects.inv").read_bytes(), uri="").data
    known = {name for kind in inventory if kind.startswith("py:") for name in inventory[kind]}
    assert generate.public_names().keys() - known == set(), "what users import is not in the index of the site"
    headings = [re.sub(r"<[^>]+>", "", found) for page in pages for found in re.findall(r'<dt class="sig.*?</dt>', page, flags=re.DOTALL)]
    assert len(headings) > 300 and max(map(len, headings)) < 1000, "a heading shows the value of a constant, or remarks"
    outside = {found for page in pages for found in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page)}
    assert outside == set(), "the site needs a network"
