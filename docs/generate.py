"""Writes the pages of the documentation that are made of the code: one for each operation, the API's, the map from the paper, the notebooks.

    python docs/generate.py        before Sphinx; `make docs` does both

What it writes lies in docs/operations, docs/api, docs/notebooks and docs/paper.md, which git ignores, and in docs/network.svg, which is committed
because README.md shows it. `conf.py` uses `line_of` too. Needs nothing but the project itself: tests/test_docs.py runs it everywhere.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import itertools
import json
import pkgutil
import re
import shutil
import statistics
import sys
import tomllib
from collections.abc import Sequence
from html import escape
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGE = re.compile(r"(?<!\]\()(?<!/)`?\b(docs/(\w+\.md))\b`?")
LINK = r"[`\1`](../\2)"  # from a folder of docs/
INCLUDE = re.compile(r'^#include "(\w+\.cuh)"', re.MULTILINE)
sys.path.insert(0, str(ROOT))

import conformer  # noqa: E402
import minigrad  # noqa: E402
from conformer.augment import SHIFT  # noqa: E402
from conformer.config import named_config  # noqa: E402
from conformer.data import Dataset  # noqa: E402
from conformer.info import count  # noqa: E402
from conformer.options import TrainConfig  # noqa: E402
from minigrad import functional  # noqa: E402
from minigrad.op import REGISTRY, Fused, Op  # noqa: E402

PACKAGES = ("minigrad.nn", "minigrad.optim", "minigrad.backend")
FAMILIES = {
    "elementwise": "one number in each place",
    "reduce": "sums, means, extremes along axes",
    "movement": "the same numbers in another shape or place",
    "index": "parts of an array",
    "matmul": "products of matrices",
}


def main() -> None:
    """Write all of them."""
    operations()
    api()
    paper()
    notebooks()
    (DOCS / "network.svg").write_text(network_picture(), encoding="utf-8")


def _fresh(name: str) -> Path:
    folder = DOCS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _code(text: str, language: str = "python") -> str:
    fence = "````" if "```" in text else "```"
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


def _prose(text: str) -> str:
    """A docstring as Markdown: code that is indented is fenced, and the name of a page leads to it."""
    parts: list[str] = []
    for part in re.split(r"(?:^|(?<=\n\n))((?:    .*\n?|\n)+)", text):
        if part.strip() and part.startswith("    "):
            code = inspect.cleandoc(part)
            parts.append(f"{_code(code, 'python' if _is_python(code) else 'text')}\n\n")
        else:
            parts.append(PAGE.sub(LINK, part))
    return "".join(parts)


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


# --- operations


def operations() -> None:
    """docs/operations: an overview, a page for each family of primitives, a page for each file of fused operations."""
    folder = _fresh("operations")
    fused = [op for op in REGISTRY.values() if isinstance(op, Fused) and op.__module__.startswith("minigrad.fused.")]
    pages: dict[str, list[Fused]] = {}
    for op in fused:
        pages.setdefault(op.__module__.rpartition(".")[2], []).append(op)
    for page, ops in sorted(pages.items()):
        (folder / f"{page}.md").write_text(_fused_page(page, ops), encoding="utf-8")
    for family, what in FAMILIES.items():
        ops = [op for op in REGISTRY.values() if op.__module__ == f"minigrad.ops.{family}"]
        (folder / f"primitives_{family}.md").write_text(_family_page(family, what, ops), encoding="utf-8")

    (folder / "headers.md").write_text(_headers_page(), encoding="utf-8")

    rows = ["| operation | kind | backward | kernels |", "|---|---|---|---|"]
    listed = [(op, "fused", page) for page, ops in sorted(pages.items()) for op in ops]
    listed += [(op, family, f"primitives_{family}") for family in FAMILIES for op in REGISTRY.values() if op.__module__ == f"minigrad.ops.{family}"]
    rows += [f"| [`{op.name}`]({page}.md) | {kind} | {_backward(op)} | {', '.join(op.kernels) or '–'} |" for op, kind, page in listed]
    index = f"""# Operations

Every operation that the registry knows: {sum(len(ops) for ops in pages.values())} fused ones, each with a definition and kernels
that compute the same fast, and the primitives they are made of, by family. This page and those below are generated from the code.

{chr(10).join(rows)}

## What every operation must pass

`tests/proofs.py` has these tests once; an operation states its data, a PyTorch twin and its kinks, and gets them all. The arrays are drawn by
Hypothesis. `make test ARGS="tests/test_proofs.py"` shows that no operation is without a proof and that each test refuses an operation that is wrong
in the way it looks for.

{chr(10).join(f"* *{name}*: {text}" for name, text in _generic_tests().items())}

```{{toctree}}
:hidden:

{chr(10).join([*sorted(pages), "headers", *(f"primitives_{family}" for family in FAMILIES)])}
```
"""
    (folder / "index.md").write_text(index, encoding="utf-8")


def _backward(op: Op) -> str:
    if op.rules:
        return "rules"
    if isinstance(op, Fused):
        return "kernel or definition"
    return "none"


def _fused_page(page: str, ops: list[Fused]) -> str:
    """One file of minigrad/fused: its text, and for each operation definition, kernels, CUDA source, proofs and measured times."""
    module = importlib.import_module(f"minigrad.fused.{page}")
    parts = [f"# {', '.join(op.name for op in ops)}", _prose(inspect.cleandoc(module.__doc__ or "")), f"*File: `minigrad/fused/{page}.py`*"]
    functions = {name: value for name, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__}
    for op in ops:
        if len(ops) > 1:
            parts.append(f"## {op.name}")
        level = "###" if len(ops) > 1 else "##"
        parts += [f"{level} Definition", "The textbook formula on Tensors. It runs inside `minigrad.definitions()`, and higher derivatives are its."]
        parts.append(_code(inspect.getsource(op.function)))
        if op.rules:
            parts += [
                "**Derivative.** Stated as a rule, so that backward need not run the definition again:",
                _code(_rule(module, op)),
            ]
        for device, kernel in op.kernels.items():
            parts.append(f"{level} Kernel on {device}")
            for role, function in (("Forward", kernel.forward), ("Backward", kernel.backward)):
                if function is not None and function.__name__ in functions:
                    parts += [f"**{role}**", _code(inspect.getsource(function))]
    folder = ROOT / "minigrad" / "fused"
    for path in sorted(folder.glob(f"{page}_*.py")):
        parts += [f"## {path.name}", f"*File: `minigrad/fused/{path.name}`*", _code(path.read_text(encoding="utf-8"))]
    for cuda in [*folder.glob(f"{page}.cu"), *sorted(folder.glob(f"{page}_*.cu"))]:
        text = cuda.read_text(encoding="utf-8")
        shared = ", ".join(f"[{name}](headers.md)" for name in INCLUDE.findall(text))
        parts += ["## CUDA source", f"*File: `minigrad/fused/{cuda.name}`{f', with {shared}' if shared else ''}*", _code(text, "cuda")]
    parts += _proofs(ROOT / "tests" / "fused" / f"test_{page}.py", ops)
    parts += _speed(ops)
    return "\n\n".join(parts) + "\n"


def _headers_page() -> str:
    """What the CUDA files of several operations share."""
    parts = ["# CUDA headers", "What the CUDA sources of several operations include."]
    for path in sorted((ROOT / "minigrad" / "fused").glob("*.cuh")):
        parts += [f"## {path.name}", f"*File: `minigrad/fused/{path.name}`*", _code(path.read_text(encoding="utf-8"), "cuda")]
    return "\n\n".join(parts) + "\n"


def _family_page(family: str, what: str, ops: list[Op]) -> str:
    """One file of minigrad/ops: its text, its operations, its source, proofs and measured times."""
    module = importlib.import_module(f"minigrad.ops.{family}")
    names = ", ".join(f"`{op.name}`" for op in ops)
    parts = [f"# {family}: {what}", _prose(inspect.cleandoc(module.__doc__ or "")), f"*File: `minigrad/ops/{family}.py`. Operations: {names}.*"]
    parts.append(_code(inspect.getsource(module).partition('"""\n\nfrom __future__')[2].partition("\n")[2]))
    parts += _proofs(ROOT / "tests" / "ops" / f"test_{family}.py", ops)
    parts += _speed(ops)
    return "\n\n".join(parts) + "\n"


def _rule(module, op: Op) -> str:
    """The statement of a module that states the derivative of an operation, after the functions that it names, with the comment above it."""
    source = inspect.getsource(module)
    lines = source.splitlines()
    for node in ast.parse(source).body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{op.function.__name__}.derivative":
            first = node.lineno - 1
            while lines[first - 1].startswith("#"):
                first -= 1
            named = [getattr(module, keyword.value.id) for keyword in call.keywords if isinstance(keyword.value, ast.Name)]
            return "\n\n".join([*map(inspect.getsource, named), "\n".join(lines[first : node.end_lineno])])
    raise ValueError(f"{module.__name__} states no derivative of {op.name}")


def _proofs(path: Path, ops: Sequence[Op]) -> list[str]:
    """What a test file proves of the operations: the tests that every operation gets, where they apply, and those it has besides."""
    if not path.exists():
        return []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {op.function.__name__: op.name for op in ops} | {op.name: op.name for op in ops}
    generic = _generic_tests()
    parts = ["## Proofs", f"*File: `{path.relative_to(ROOT)}`.* {ast.get_docstring(tree)}"]
    parts.append(f'```sh\nmake test ARGS="{path.relative_to(ROOT)}"\n```')
    rows, own = [], []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            own.append(_sentence(node))
        if not isinstance(node, ast.ClassDef):
            continue
        stated = {
            target.id: item.value for item in node.body if isinstance(item, ast.Assign) for target in item.targets if isinstance(target, ast.Name)
        }
        if "op" in stated:
            name = ast.unparse(stated["op"]).rpartition(".")[2]
            rows.append(f"| `{names.get(name, name)}` | `{node.name}` | {_left_out(stated)} |")
        own += [_sentence(item) for item in node.body if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")]
    if rows:
        parts.append(f"Every operation gets [the same {len(generic)} tests](index.md#what-every-operation-must-pass), in a class:")
        parts.append("\n".join(["| operation | class | which of them cannot apply, and why |", "|---|---|---|", *rows]))
    if own:
        parts.append("Tests of this file alone:" if rows else "Tests:")
        parts.append("\n".join(f"* {text}" for text in own))
    return parts


def _generic_tests() -> dict[str, str]:
    """The tests of tests/proofs.py's Proof by what they say of an operation."""
    path = ROOT / "tests" / "proofs.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "Proof":
            tests = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")]
            return {_words(test.name): " ".join((ast.get_docstring(test) or "").split()) for test in tests}
    raise ValueError("tests/proofs.py has no class Proof")


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _sentence(test: ast.FunctionDef) -> str:
    documentation = " ".join((ast.get_docstring(test) or "").split())
    return f"*{_words(test.name)}*" + (f": {documentation}" if documentation else "")


def _left_out(stated: dict[str, ast.expr]) -> str:
    """The sentences with which a proof leaves tests out."""
    reasons = []
    for name in ("pins", "errors", "float32"):
        value = stated.get(name)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            reasons.append(f"{name}: {value.value}")
    return " ".join(reasons) or "–"


def _speed(ops: Sequence[Op]) -> list[str]:
    """What benchmarks/results holds about the operations; nothing where nothing was measured."""
    parts: list[str] = []
    names = {op.name for op in ops}
    measured = _results("ops")
    if measured is not None:
        rows = _operation_times(measured, names)
        if rows:
            head = ["| network | operation | shapes | side | forward + backward, ms |", "|---|---|---|---|---|"]
            parts += [f"Measured on {measured['date'][:10]} by `{measured['command']}`, medians.", "\n".join(head + rows)]
    measured = _results("overhead")
    rows = [row for row in measured["rows"] if row["operation"] in names] if measured is not None else []
    if measured is not None and rows:
        head = ["| operation | forward, µs | of it the kernel | backward, µs | of it the kernel |", "|---|---|---|---|---|"]
        keys = ("forward_us", "forward_kernel_us", "backward_us", "backward_kernel_us")
        table = [f"| `{row['operation']}` | " + " | ".join(f"{row[key]:.1f}" for key in keys) + " |" for row in rows]
        text = f"What a call costs on tiny arrays. Measured on {measured['date'][:10]} by `{measured['command']}`."
        parts += [text, "\n".join(head + table)]
    return ["## Speed", *parts] if parts else []


def _results(name: str) -> dict | None:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _operation_times(measured: dict, names: set[str]) -> list[str]:
    """Rows of benchmarks/ops.py's file: for each call of a training step the median over the turns of each side."""
    rows = []
    for row in measured["rows"]:
        case = row["case"]
        if case["op"] in names and "turns" in row:
            shapes = " ".join("×".join(map(str, given["shape"])) for given in case["inputs"] if given)
            time = statistics.median(statistics.median(turn["wall_ms"]) for turn in row["turns"])
            title = measured["sides"].get(row["side"], {}).get("title", row["side"])
            rows.append(f"| {case['config']} | `{case['op']}` | {shapes} | {title} | {time:.3g} |")
    return rows


# --- the API


def api() -> None:
    """docs/api: a page for each package with what it makes public, and what its modules do."""
    folder = _fresh("api")
    single = [name for name in _modules(minigrad) if not hasattr(importlib.import_module(name), "__path__") and name != "minigrad.functional"]
    packages = {
        "minigrad": single,
        **{name: _modules(importlib.import_module(name)) for name in PACKAGES},
        "conformer": _modules(conformer),
    }
    packages["minigrad.backend"].insert(0, "minigrad.backend")
    for name, modules in packages.items():
        parts = [f"# {name}", _prose(inspect.cleandoc(importlib.import_module(name).__doc__ or "")), _contents(name)]
        parts += [f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n{_members(module)}```" for module in modules]
        (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "minigrad.functional.md").write_text(_functional_page(), encoding="utf-8")
    toctree = "\n".join(sorted([*packages, "minigrad.functional"], key=lambda name: (name.startswith("conformer"), name)))
    (folder / "index.md").write_text(f"# API\n\nMade from the docstrings.\n\n```{{toctree}}\n{toctree}\n```\n", encoding="utf-8")


def _members(name: str) -> str:
    """The option that shows the public names of a module but those of another one, nothing where there are none of its own (`minigrad.op`)."""
    return f"   :members: {own}\n" if (own := _own(name)) else ""


def _own(name: str) -> str:
    """The public names of a module that are not another one's of the project."""
    module = importlib.import_module(name)
    imported = {alias.name for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ImportFrom) for alias in node.names}
    public = [entry for entry in getattr(module, "__all__", []) if entry not in imported]
    return ", ".join(entry for entry in public if not _project(where := getattr(getattr(module, entry), "__module__", name)) or where == name)


def _project(module: str | None) -> bool:
    return (module or "").partition(".")[0] in ("minigrad", "conformer")


@functools.cache
def public_names() -> dict[str, str]:
    """Under what name users import a thing, such as `minigrad.nn.Linear`: the name of the module that defines it, `minigrad.nn.linear.Linear`."""
    found = {}
    modules = [f"{package}.{file}" for package in ("minigrad", *PACKAGES, "conformer") for file in _files(package)]
    for package in ("minigrad", *PACKAGES, "conformer"):
        for name in importlib.import_module(package).__all__:
            value = getattr(importlib.import_module(package), name)
            if not inspect.ismodule(value):
                homes = [module for module in modules if _defines(module, name, value)]
                found[f"{package}.{name}"] = f"{homes[0]}.{name}" if homes else f"{package}.{name}"
    return found


def _files(package: str) -> list[str]:
    return [name.rpartition(".")[2] for name in _modules(importlib.import_module(package))]


def _defines(module: str, name: str, value: object) -> bool:
    found = importlib.import_module(module)
    return name in getattr(found, "__all__", ()) and getattr(found, name) is value and name in _own(module).split(", ")


def _contents(package: str) -> str:
    """A table of what a package makes public, each linked to its entry."""
    rows, homes = ["| name | what it is |", "|---|---|"], public_names()
    for name in importlib.import_module(package).__all__:
        value = getattr(importlib.import_module(package), name)
        if inspect.ismodule(value):
            page = f"{package}.{name}"
            link = f"[`{name}`]({page}.md)" if page in (*PACKAGES, "minigrad.functional") else f"{{py:mod}}`{name} <{value.__name__}>`"
        else:
            link = f"{{py:obj}}`{name} <{homes[f'{package}.{name}']}>`"
        rows.append(f"| {link} | {_first_sentence(value, homes.get(f'{package}.{name}', ''))} |")
    return "\n".join(rows)


def _first_sentence(value: object, name: str) -> str:
    """Of its docstring; of a constant's, which stands below it."""
    text = inspect.getdoc(value) if inspect.ismodule(value) or _project(getattr(value, "__module__", None)) else None
    if text is None:
        body = ast.parse(inspect.getsource(importlib.import_module(name.rpartition(".")[0]))).body
        for node, after in itertools.pairwise(body):
            target = getattr(node, "target", None) or (getattr(node, "targets", None) or [None])[0]
            if getattr(target, "id", None) == name.rpartition(".")[2] and isinstance(after, ast.Expr):
                text = str(ast.literal_eval(after.value))
    sentence = re.split(r"(?<=\.)\s", " ".join((text or "").split()), maxsplit=1)[0]
    return sentence.rstrip(".").replace("|", "\\|")


def _functional_page() -> str:
    """All operations under PyTorch's names, each linked to the page that shows how it is computed."""
    parts = ["# minigrad.functional", _prose(inspect.cleandoc(functional.__doc__ or ""))]
    for name in functional.__all__:
        value = getattr(functional, name)
        folder, _, file = value.__module__.removeprefix("minigrad.").rpartition(".")
        page = file if folder == "fused" else f"primitives_{file}"
        parts.append(f"```{{eval-rst}}\n.. autofunction:: minigrad.functional.{name}\n```\n\n[Definition and kernels](../operations/{page}.md)")
    return "\n\n".join(parts) + "\n"


def _modules(package) -> list[str]:
    return [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


# --- the paper


def paper() -> None:
    """docs/paper.md: what of the paper is where in the code, and both recipes, from docs/paper.toml; a name that is not in its file is an error, as
    is an option that there is not.
    """
    content = tomllib.loads((DOCS / "paper.toml").read_text(encoding="utf-8"))
    for entry in content["place"] + content["difference"] + content["recipe"]:
        file, name = entry["code"].split("::")
        line_of(ROOT / file, name)
    parts = ["# The paper and the code", content["text"].strip()]
    for group in dict.fromkeys(entry["group"] for entry in content["place"]):
        rows = [f"| {entry['paper']} | {_what(entry)} | {{code-at}}`{entry['code']}` |" for entry in content["place"] if entry["group"] == group]
        parts += [f"## {group}", "\n".join(["| where | what | here |", "|---|---|---|", *rows])]
    rows = [f"| {entry['where']} | {entry['paper']} | {entry['official']} | {{code-at}}`{entry['code']}` |" for entry in content["difference"]]
    parts += ["## Where paper and official code differ", "\n".join(["| | paper | official code | here |", "|---|---|---|---|", *rows])]
    parts += ["## The recipe, official and here", content["recipes"].strip()]
    defaults = recipe_defaults()
    rows = [f"| {e['what']} | {e['official']} | {e['here'].format(**defaults)} | {e['why']} | {{code-at}}`{e['code']}` |" for e in content["recipe"]]
    parts += ["\n".join(["| | official code | here | why | where |", "|---|---|---|---|---|", *rows])]
    (DOCS / "paper.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def recipe_defaults() -> dict[str, object]:
    """What the recipe's numbers are called in docs/paper.toml: the options of a run, and what the data set and the network decide."""
    options = TrainConfig()
    rate = named_config(options.config).drop_path_rate
    return {**vars(options), "epochs": Dataset.epochs, "shift": SHIFT, "drop_path_rate": rate}


def _what(entry: dict[str, str]) -> str:
    """What an entry says; for a variant also its size, counted."""
    if "config" not in entry:
        return entry["what"]
    size = count(named_config(entry["config"]))
    return f"{entry['what']}: {size.parameters:,} parameters, {size.macs / 1e9:.1f} G MACs at {size.image_size[0]} x {size.image_size[1]}"


def line_of(file: Path, name: str) -> int:
    """The line in which a class, function, method or module-level name of a Python file is defined.

    Raises:
        ValueError: it is not.
    """
    body: list[ast.stmt] = ast.parse(file.read_text(encoding="utf-8")).body
    line = 0
    for part in name.split("."):
        for node in body:
            names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
            if getattr(node, "name", None) == part or part in names or getattr(getattr(node, "target", None), "id", None) == part:
                line, body = node.lineno, getattr(node, "body", [])
                break
        else:
            raise ValueError(f"{file.name} has no {name}")
    return line


# --- notebooks


def notebooks() -> None:
    """docs/notebooks: copies of the executed notebooks, and their list."""
    folder = _fresh("notebooks")
    names = []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = PAGE.sub(LINK, "".join(cell["source"]))
            if "solution" in cell["metadata"].get("tags", []):
                cell["metadata"]["tags"].append("hide-cell")  # myst-nb folds it
        (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")
        names.append(path.stem)
    text = "To be stepped through: `make lab` opens them in JupyterLab. Here they are as they came out of `make notebooks`, solutions folded."
    (folder / "index.md").write_text(f"# Notebooks\n\n{text}\n\n```{{toctree}}\n:maxdepth: 1\n\n{chr(10).join(names)}\n```\n", encoding="utf-8")


# --- a picture


def network_picture(config: str = "cifar-nano") -> str:
    """The network as an SVG drawing: both branches from left to right with the shapes that follow from the configuration, and the FCUs between."""
    blocks = count(named_config(config)).blocks
    coupled = [block for block in blocks if block.tokens is not None]
    height, width = count(named_config(config)).image_size
    step, top, bottom, left = 126, 54, 194, 262
    right = left + step * len(coupled)
    drawn = []

    def box(x: int, y: int, wide: int, kind: str, *lines: str, tall: int = 56) -> None:
        drawn.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{wide}" height="{tall}" rx="6"/>')
        start = y + tall / 2 - 9 * (len(lines) - 1) + 5
        drawn.extend(f'<text x="{x + wide / 2:g}" y="{start + 18 * number:g}">{escape(line)}</text>' for number, line in enumerate(lines))

    def arrow(*points: tuple[float, float]) -> None:
        drawn.append(f'<path class="arrow" d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"/>')

    middle = (top + bottom + 56) / 2
    box(12, int(middle) - 28, 92, "plain", "image", f"{height}×{width}×3")
    stem = blocks[0].cnn or ()
    box(134, int(middle) - 28, 92, "cnn", "stem", "×".join(map(str, stem)))
    arrow((104, middle), (134, middle))
    arrow((226, middle), (244, middle), (244, top + 28), (left, top + 28))
    arrow((244, middle), (244, bottom + 28), (left, bottom + 28))
    for number, block in enumerate(coupled):
        x = left + step * number
        box(x, top, 96, "cnn", f"block {number + 1}", "×".join(map(str, block.cnn or ())))
        box(x, bottom, 96, "transformer", f"block {number + 1}", "×".join(map(str, block.tokens or ())))
        if number:  # block 1 has no coupling unit
            arrow((x + 30, top + 56), (x + 30, bottom))
            arrow((x + 66, bottom), (x + 66, top + 56))
        for y in (top, bottom):
            arrow((x + 96, y + 28), (x + step, y + 28))
    for y, kind, name in ((top, "cnn", "CNN head"), (bottom, "transformer", "transformer head")):
        box(right, y, 120, kind, name, f"{named_config(config).num_classes} logits")
    arrow((right + 60, top + 56), (right + 60, middle - 18))
    arrow((right + 60, bottom), (right + 60, middle + 18))
    box(right, int(middle) - 18, 120, "plain", "sum of logits", tall=36)
    for x, y, text, anchor in (
        (left, top - 24, "CNN branch: rows × columns × channels", "start"),
        (left, bottom + 96, "transformer branch: tokens × width", "start"),
        (right + 120, bottom + 96, "↓ FCUDown: pixels to tokens  ·  ↑ FCUUp: tokens to pixels", "end"),
    ):
        drawn.append(f'<text class="label" x="{x}" y="{y}" style="text-anchor:{anchor}">{text}</text>')
    total = right + 132
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} 310" width="{total}" height="310" role="img">
<title>The Conformer {config}: two branches and the coupling units between them</title>
<style>
text {{ font: 14px sans-serif; text-anchor: middle; fill: #1b1f24 }}
.label {{ fill: #57606a }}
rect {{ stroke: #57606a; stroke-width: 1 }}
.plain {{ fill: #f6f8fa }}
.cnn {{ fill: #dcebfb }}
.transformer {{ fill: #fdebd0 }}
.arrow {{ fill: none; stroke: #57606a; stroke-width: 1.5; marker-end: url(#tip) }}
</style>
<defs>
<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L8 4 L0 8 z" fill="#57606a"/></marker>
</defs>
<rect x="0" y="0" width="{total}" height="310" fill="#ffffff" style="stroke:none"/>
{chr(10).join(drawn)}
</svg>
"""


if __name__ == "__main__":
    main()
