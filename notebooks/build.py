"""Makes the notebooks: runs each `NN_title.py` and writes `NN_title.ipynb` beside it, with what it printed and drew.

    make notebooks                                   all of them
    make notebooks ARGS="01 05"                      these
    python notebooks/build.py --fast --keep-none     run all with MINIGRAD_FAST=1 and write nothing (what `make test` does)
    python notebooks/build.py --check                say whether every .ipynb has the cells of its source

The sources are the truth: Python files in jupytext's percent format, to be read, compared and edited like any other. Cells tagged `solution` hold the
answers to the exercises; they run and are checked like the others, but Jupyter shows them folded, and what they print too. A cell that draws
begins with `# %% alt="what is to be seen"`: for those who do not see the picture, in pages made by nbconvert (`alt`) and by MyST-NB (`mystnb`).
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import sys
import time
import warnings
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from zmq import ZMQError

FOLDER = Path(__file__).parent
LARGEST = 1_000_000  # bytes of an .ipynb
CODE_CELLS = 25
SECONDS = 90  # for a notebook, on two cores


def sources(wanted: list[str] | None = None) -> list[Path]:
    """The notebooks' sources in order; those whose names begin with one of `wanted`, if given.

    Raises:
        ValueError: a name that no notebook begins with.
    """
    found = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    for name in wanted or []:
        if not any(path.name.startswith(name) for path in found):
            raise ValueError(f"no notebook begins with {name!r}; there are {', '.join(path.stem for path in found)}")
    return [path for path in found if not wanted or path.name.startswith(tuple(wanted))]


def read(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, not run; folded where it is tagged as a solution."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jupytext's, of nbformat's deprecations
        notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # not a new one each time
        tags, alt = cell.metadata.get("tags", []), cell.metadata.get("alt")
        cell.metadata = {"tags": tags} if tags else {}
        if "solution" in tags:
            cell.metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
        if alt:
            cell.metadata |= {"alt": alt, "mystnb": {"image": {"alt": alt}}}
    return notebook


def run(source: Path, fast: bool = False) -> tuple[nbformat.NotebookNode, float]:
    """Run a notebook in its folder; returns it with its outputs, and how long it took in seconds.

    Raises:
        CellExecutionError: a cell failed; the message has the cell and the traceback.
        RuntimeError: a cell wrote to stderr, or the kernel was lost.
    """
    notebook = read(source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")])}
    if fast:
        environment["MINIGRAD_FAST"] = "1"
    where = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources=where,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
    )
    began = time.perf_counter()
    try:
        client.execute(env=environment)
    except (AssertionError, DeadKernelError, ZMQError) as error:  # not a cell's: those are CellExecutionErrors
        seconds = time.perf_counter() - began
        raise RuntimeError(
            f"{source.name}: its kernel was lost after {seconds:.0f} s, and no cell raised anything: "
            "it was ended by a signal, for its memory or its time, or had no port"
        ) from error
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise RuntimeError(f"{source.name}: a cell wrote to stderr:\n{cell.source}\n\n{output.text}")
    return notebook, time.perf_counter() - began


def write(source: Path, notebook: nbformat.NotebookNode) -> Path:
    """Write the .ipynb beside its source.

    Raises:
        ValueError: it is too large.
    """
    text = nbformat.writes(notebook) + "\n"
    if len(text) > LARGEST:
        raise ValueError(
            f"{source.stem}.ipynb would have {len(text):,} bytes, and {LARGEST:,} are allowed: fewer or smaller pictures"
        )
    path = source.with_suffix(".ipynb")
    path.write_text(text, encoding="utf-8")
    return path


@functools.cache
def library_lines() -> set[str]:
    """Every line of code in the two packages, without what it is indented by."""
    files = [
        path
        for package in ("minigrad", "conformer")
        for path in (FOLDER.parent / package).rglob("*")
        if path.suffix in (".py", ".cu", ".cuh")
    ]
    return {line.strip() for path in files for line in path.read_text(encoding="utf-8").splitlines()}


def shown_code(cell: nbformat.NotebookNode) -> list[str]:
    """The lines of code that a cell shows with IPython's `Code`, which come from the library."""
    outputs = [output.get("data", {}) for output in cell.get("outputs", [])] if "Code(" in cell.source else []
    return [
        line for data in outputs if "text/latex" in data for line in data["text/plain"].splitlines()
    ]  # no picture has LaTeX


def differences(source: Path) -> list[str]:
    """What is wrong between a source and its .ipynb, a sentence each."""
    path = source.with_suffix(".ipynb")
    if not path.exists():
        return [f"{path.name} is missing; run `make notebooks`"]
    expected, found = read(source), nbformat.read(path, as_version=4)
    wrong = []
    texts, shown = (
        [(cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells] for notebook in (expected, found)
    )
    if texts != shown:
        wrong.append(f"{path.name} has other cells than {source.name}; run `make notebooks`")
    if not all(cell.execution_count for cell in found.cells if cell.cell_type == "code" and cell.source.strip()):
        wrong.append(f"{path.name} has cells that were not run; run `make notebooks`")
    lines = library_lines() | {line.strip() for cell in expected.cells for line in cell.source.splitlines()}
    for cell in found.cells:
        if gone := [line for line in shown_code(cell) if line.strip() not in lines]:
            wrong.append(f"{path.name} shows code that is not there any more ({gone[0].strip()}); run `make notebooks`")
    for cell in found.cells:
        drawn = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        if drawn != ("alt" in cell.metadata):
            beginning = cell.source.strip().partition("\n")[0]
            problem = "draws and does not say what" if drawn else "says what it draws and draws nothing"
            wrong.append(f'{path.name}: the cell {beginning!r} {problem}; see `# %% alt="..."` at the top of build.py')
    if path.stat().st_size > LARGEST:
        wrong.append(f"{path.name} has {path.stat().st_size:,} bytes, and {LARGEST:,} are allowed")
    count = sum(cell.cell_type == "code" for cell in expected.cells)
    if count > CODE_CELLS:
        wrong.append(f"{source.name} has {count} code cells, and {CODE_CELLS} are allowed")
    return wrong


def main() -> int:
    """Run and write notebooks, or check them."""
    parser = argparse.ArgumentParser(description="Run the notebooks and write their .ipynb files.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="notebooks that begin so, for example 01 (if not given: all)"
    )
    parser.add_argument("--fast", action="store_true", help="with MINIGRAD_FAST=1: fewer steps, smaller data")
    parser.add_argument("--keep-none", action="store_true", help="write nothing")
    parser.add_argument("--check", action="store_true", help="run nothing; exit 1 if an .ipynb differs from its source")
    options = parser.parse_args()
    if sys.platform == "win32" and sys.version_info < (3, 14):  # from which on it is deprecated
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    try:
        chosen = sources(options.names)
        if options.check:
            wrong = [sentence for source in chosen for sentence in differences(source)]
            print("\n".join(wrong) or f"{len(chosen)} notebooks agree with their sources")
            return int(bool(wrong))
        for source in chosen:
            notebook, seconds = run(source, options.fast)
            kept = "not kept" if options.keep_none else str(write(source, notebook).relative_to(FOLDER.parent))
            print(f"{source.stem}: {seconds:.1f} s, {kept}", flush=True)
            if seconds > SECONDS and not options.fast:
                print(f"  more than the {SECONDS} s that a notebook may take", flush=True)
    except (ValueError, RuntimeError, CellExecutionError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
