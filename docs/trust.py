"""Makes docs/trust.md: what has been proven of each operation, and how hard the tests were tried, from committed figures.

python docs/trust.py           reads benchmarks/results/mutants.json, coverage.json and deep.jsonl; the table comes from the proofs themselves
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

from minigrad.op import REGISTRY  # noqa: E402
from tests.deep import files, latest  # noqa: E402
from tests.mutants import MUTATED  # noqa: E402
from tests.mutations import mutants as changes  # noqa: E402
from tests.proofs import table  # noqa: E402

START = """# Why to trust it

Made by `.venv/bin/python docs/trust.py` from the proofs and from the figures in `benchmarks/results`, each with its command.

Every operation of the registry is proven in the same way, by the tests of one class (`Proof` in `tests/proofs.py`), on examples that Hypothesis
draws:

* its definition gives PyTorch's values and gradients in float64, for random upstream gradients, on arrays that are contiguous or not, empty, of one
  element, without axes, given twice;
* its kernel gives the definition's in float64, and is about as accurate in float32;
* its gradient agrees with finite differences, and at kinks and ties with PyTorch's choice, one by one (pins);
* its second derivative agrees with finite differences of the kernel's gradient, and with PyTorch's;
* it writes to nothing it is given, its gradients share no memory, dtypes stay, errors are raised where PyTorch raises them, and a node keeps alive
  what it must and no more.

A test fails for an operation that lacks one of these without saying why (`tests/test_proofs.py`), and each of these tests is itself shown to refuse
an operation that is wrong in its way.

The Conformer made of them is compared with two others, in float64. Outputs, losses, gradients and five steps of AdamW of two small networks are
those that the authors' code came to, to 1e-9 and, of gradients, 1e-8 (`tests/conformer/test_oracle.py`; the numbers: `tests/conformer/oracle`). So
are those of an independent Conformer in PyTorch, and with this one are compared networks with drawn options (`tests/conformer/test_parity.py`) and,
at full size, 224 x 224 pixels and 1,000 classes, the outputs of the four published variants: to 1e-12 of the largest
(`tests/conformer/test_published.py`, in the long run).
"""
DATES = """The table above is that of today, and `make test` runs what it lists. The figures below are of the days that stand beside them: what has
been changed since was not tried again in these ways until they are made anew.
"""
NO_KERNEL = "It has no kernel: there is only one way to compute it."


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Write docs/trust.md.")
    text = "what `make coverage` wrote (build/coverage.json), to take into benchmarks/results/coverage.json first"
    parser.add_argument("--coverage", type=Path, metavar="PATH", help=text)
    if measured := parser.parse_args().coverage:
        (RESULTS / "coverage.json").write_text(json.dumps(condensed(measured), indent=1) + "\n", encoding="utf-8")
    (ROOT / "docs" / "trust.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    parts = [START, proofs(), DATES]
    for name, section in (("mutants.json", mutants), ("coverage.json", coverage), ("deep.jsonl", deep)):
        if (RESULTS / name).exists():
            parts.append(section(RESULTS / name))
    return "\n".join(parts)


def proofs() -> str:
    """The table of operations and proofs; a number where there is none, which leads to the reason."""
    head, *rows = table()
    several = Counter(name for name, *_ in rows)
    reasons: dict[str, int] = {}
    lines = ["## Operation by operation", "", "| " + " | ".join(head[:1] + head[2:]) + " |", "|" + "---|" * (len(head) - 1)]
    for name, test, *cells in rows:
        for place, title in enumerate(head[2:]):
            if title.startswith("kernel") and not REGISTRY[name].kernels:
                cells[place] = NO_KERNEL
        marks = ["✓" if cell == "yes" else f"({reasons.setdefault(cell, len(reasons) + 1)})" for cell in cells]
        variant = f" ({test.rpartition('::')[2]})" if several[name] > 1 else ""
        lines.append(f"| `{name}`{variant} | " + " | ".join(marks) + " |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items()), ""]
    return "\n".join(lines)


def condensed(path: Path) -> dict[str, Any]:
    """Of coverage.py's JSON the shares by file, in percent, and the date."""
    found = json.loads(path.read_text(encoding="utf-8"))

    def shares(summary: dict[str, Any]) -> dict[str, float]:
        branches = 100 * summary["covered_branches"] / summary["num_branches"] if summary["num_branches"] else 100.0
        lines = 100 * summary["covered_lines"] / summary["num_statements"] if summary["num_statements"] else 100.0
        return {"lines": round(lines, 2), "branches": round(branches, 2)}

    files = {name: shares(file["summary"]) for name, file in sorted(found["files"].items())}
    return {"date": found["meta"]["timestamp"][:10], **shares(found["totals"]), "files": files}


def mutants(path: Path) -> str:
    """How many small wrong changes of the library the tests notice."""
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    killed, survived, equivalent = (sum(of[kind] for of in found.values()) for kind in ("killed", "survived", "equivalent"))
    lines = [
        "## Do the tests bite?",
        "",
        "`make mutants` makes small wrong changes to the library, one at a time (another operator, an axis or a bound moved by one,",
        "arguments swapped, an addend or an in-place statement dropped, ...), and runs the tests named for the changed operation:",
        "one of them must fail, crash, or take more than five times as long. Changes that change no result are listed with the reason in",
        "`tests/mutants_equivalent.toml`.",
        "",
        f"Of the files below **{killed:,} of {killed + survived:,} are noticed ({100 * killed / (killed + survived):.1f} %)**; {equivalent:,} more",
        'are equivalent. By `make mutants ARGS="--summary benchmarks/results/mutants.json"`:',
        "",
        "| file | noticed | of | equivalent | date |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {still_there(file)} | {of['killed']} | {of['killed'] + of['survived']} | {of['equivalent']} | {of['date']} |"
        for file, of in found.items()
    ]
    paths = {path.relative_to(ROOT).as_posix(): path for pattern in MUTATED for path in ROOT.glob(pattern)}
    more = [name for name in sorted(paths.keys() - found.keys()) if changes(name, paths[name].read_text(encoding="utf-8"))]
    left = f"Not run yet: {', '.join(more)}. " if more else ""
    lines += ["", *textwrap.wrap(f"{left}Of `backend/` only the sums and additions are in it, of `conformer/` nothing.", 150, break_on_hyphens=False)]
    return "\n".join([*lines, ""])


def still_there(file: str) -> str:
    """The name of a file that was measured, with a word where there is none of this name any more."""
    return file if (ROOT / file).exists() else f"{file} (renamed or moved since)"


def coverage(path: Path) -> str:
    """Lines and branches that the tests run."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## Coverage",
        "",
        f"`make coverage`: {found['lines']:.1f} % of the lines and {found['branches']:.1f} % of the branches of `minigrad/` ({found['date']}).",
        "Files of which not all lines are run:",
        "",
        "| file | lines | branches |",
        "|---|---|---|",
    ]
    files = {name: share for name, share in found["files"].items() if share["lines"] < 100}
    lines += [f"| {still_there(name)} | {share['lines']:.1f} | {share['branches']:.1f} |" for name, share in files.items()]
    here = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("minigrad/**/*.py")}
    if more := sorted(here - found["files"].keys()):
        lines += ["", *textwrap.wrap(f"Not measured yet, as they were made since: {', '.join(more)}.", 150, break_on_hyphens=False)]
    return "\n".join([*lines, ""])


def deep(path: Path) -> str:
    """The last long run of each file that draws examples."""
    known, wanted = latest(path), [file.relative_to(ROOT).as_posix() for file in files([])]
    missing = [name for name in wanted if name not in known]
    lines = [
        "## The long run",
        "",
        "`make deep`: 1,000 examples where `make test` draws 25, other ones each time. It takes hours, and goes on where it stopped. The last run of",
        f"each file, {len(wanted) - len(missing)} of {len(wanted)}{'; not run yet: ' + ', '.join(missing) if missing else ''}:",
        "",
        "| file | tests passed | failed | seconds | date |",
        "|---|---|---|---|---|",
    ]
    for name, line in sorted(known.items()):
        passed = "broken off at the time limit" if line["code"] == 124 else line.get("passed", 0)
        lines.append(f"| {name} | {passed} | {line.get('failed', 0)} | {line['seconds']:.0f} | {line['date'][:10]} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
