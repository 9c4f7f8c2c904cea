"""Writes the pages of the documentation that are made of the code: one for each operation, the API's, the map from the paper, the notebooks.

    python docs/generate.py        before Sphinx; `make docs` does both

What it writes lies in docs/operations, docs/api, docs/notebooks and docs/paper.md, which git ignores.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import shutil
import sys
import tomllib
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

import conformer  # noqa: E402
import minigrad  # noqa: E402
from minigrad.op import REGISTRY, Fused, Op  # noqa: E402

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


def _fresh(name: str) -> Path:
    folder = DOCS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _code(text: str, language: str = "python") -> str:
    fence = "````" if "```" in text else "```"
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"


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

    rows = ["| operation | kind | backward | kernels | page |", "|---|---|---|---|---|"]
    for page, ops in sorted(pages.items()):
        rows += [f"| `{op.name}` | fused | {_backward(op)} | {', '.join(op.kernels) or '–'} | [{page}]({page}.md) |" for op in ops]
    for family in FAMILIES:
        for op in (op for op in REGISTRY.values() if op.__module__ == f"minigrad.ops.{family}"):
            rows.append(f"| `{op.name}` | primitive | {_backward(op)} | {', '.join(op.kernels) or '–'} | [{family}](primitives_{family}.md) |")
    index = f"""# Operations

Every operation that the registry knows: {sum(len(ops) for ops in pages.values())} fused ones, each with a definition and kernels
that compute the same fast, and the primitives they are made of. This page and those below are generated from the code.

{chr(10).join(rows)}

```{{toctree}}
:hidden:

{chr(10).join([*sorted(pages), *(f"primitives_{family}" for family in FAMILIES)])}
```
"""
    (folder / "index.md").write_text(index, encoding="utf-8")


def _backward(op: Op) -> str:
    if op.rules:
        return "rules"
    if isinstance(op, Fused):
        return "kernel, or its definition's"
    return "none"


def _fused_page(page: str, ops: list[Fused]) -> str:
    """One file of minigrad/fused: its text, and for each operation definition, kernels and CUDA source."""
    module = importlib.import_module(f"minigrad.fused.{page}")
    parts = [f"# {', '.join(op.name for op in ops)}", inspect.cleandoc(module.__doc__ or ""), f"*File: `minigrad/fused/{page}.py`*"]
    functions = {name: value for name, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__}
    for op in ops:
        if len(ops) > 1:
            parts.append(f"## {op.name}")
        level = "###" if len(ops) > 1 else "##"
        parts += [f"{level} Definition", "The textbook formula on Tensors. It runs inside `minigrad.definitions()`, and higher derivatives are its."]
        parts.append(_code(inspect.getsource(op.function)))
        for device, kernel in op.kernels.items():
            parts.append(f"{level} Kernel on {device}")
            for role, function in (("Forward", kernel.forward), ("Backward", kernel.backward)):
                if function is not None and function.__name__ in functions:
                    parts += [f"**{role}**", _code(inspect.getsource(function))]
    cuda = ROOT / "minigrad" / "fused" / f"{page}.cu"
    if cuda.exists():
        parts += ["## CUDA", _code(cuda.read_text(encoding="utf-8"), "cuda")]
    tests = ROOT / "tests" / "fused" / f"test_{page}.py"
    if tests.exists():
        parts += ["## Proofs", f"`tests/fused/{tests.name}`: {ast.get_docstring(ast.parse(tests.read_text(encoding='utf-8')))}"]
    return "\n\n".join(parts) + "\n"


def _family_page(family: str, what: str, ops: list[Op]) -> str:
    """One file of minigrad/ops: its text, its operations, and its source."""
    module = importlib.import_module(f"minigrad.ops.{family}")
    names = ", ".join(f"`{op.name}`" for op in ops)
    parts = [f"# {family}: {what}", inspect.cleandoc(module.__doc__ or ""), f"*File: `minigrad/ops/{family}.py`. Operations: {names}.*"]
    parts.append(_code(inspect.getsource(module).partition('"""\n\nfrom __future__')[2].partition("\n")[2]))
    return "\n\n".join(parts) + "\n"


# --- the API


def api() -> None:
    """docs/api: a page for each package with what its modules make public."""
    folder = _fresh("api")
    packages = {
        "minigrad": [
            "minigrad",
            "minigrad.tensor",
            "minigrad.autograd",
            "minigrad.checkpoint",
            "minigrad.modes",
            "minigrad.gradcheck",
            "minigrad.random",
        ],
        "minigrad.functional": ["minigrad.functional"],
        "minigrad.nn": _modules(minigrad.nn),
        "minigrad.optim": _modules(minigrad.optim),
        "minigrad.files-and-pictures": ["minigrad.safetensors_io", "minigrad.draw"],
        "conformer": [name for name in _modules(conformer) if name.rpartition(".")[2] not in ("cli", "parser", "__main__")],
    }
    for name, modules in packages.items():
        parts = [f"# {name}"]
        for module in modules:
            if module == "minigrad":
                continue
            parts += [f"## {module}", f"```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n```"]
        (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    toctree = "\n".join(packages)
    (folder / "index.md").write_text(f"# API\n\nMade from the docstrings.\n\n```{{toctree}}\n{toctree}\n```\n", encoding="utf-8")


def _modules(package) -> list[str]:
    return [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


# --- the paper


def paper() -> None:
    """docs/paper.md: what of the paper is where in the code, from docs/paper.toml; a name that is not in its file is an error."""
    entries = tomllib.loads((DOCS / "paper.toml").read_text(encoding="utf-8"))
    rows = []
    for entry in entries["place"]:
        file, name = entry["code"].split("::")
        rows.append(f"| {entry['paper']} | {entry['what']} | `{name}`, {file} line {line_of(ROOT / file, name)} |")
    text = entries["text"].strip()
    page = f"# The paper and the code\n\n{text}\n\n| paper | what | code |\n|---|---|---|\n{chr(10).join(rows)}\n"
    (DOCS / "paper.md").write_text(page, encoding="utf-8")


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
            raise ValueError(f"docs/paper.toml: {file.name} has no {name}")
    return line


# --- notebooks


def notebooks() -> None:
    """docs/notebooks: copies of the executed notebooks, and their list."""
    folder = _fresh("notebooks")
    names = []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if "solution" in cell["metadata"].get("tags", []):
                cell["metadata"]["tags"].append("hide-cell")  # myst-nb folds it
        (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")
        names.append(path.stem)
    text = "To be stepped through: `make notebooks` makes them, Jupyter opens them from `notebooks/`. Here they are as they came out."
    (folder / "index.md").write_text(f"# Notebooks\n\n{text}\n\n```{{toctree}}\n:maxdepth: 1\n\n{chr(10).join(names)}\n```\n", encoding="utf-8")


if __name__ == "__main__":
    main()
