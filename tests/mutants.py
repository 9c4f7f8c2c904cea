"""Do the tests notice? Every small wrong change of `tests/mutations.py` is made to the library, one at a time, and its tests are run: one must fail.

    python -m tests.mutants                          everything (make mutants); a rerun goes on where the last one stopped
    python -m tests.mutants --only softmax           one operation, or one file
    python -m tests.mutants --survivors              what nothing noticed the last time: does the new test bite?
    python -m tests.mutants --show-survivors         what the results on file say, without running anything

Each change runs in a forked child of this process (`mutants_workers.py`). First come tests that noticed changes beside it, then those of the file
the change is in (PLAN), then those of its users. Each result is a line of a JSONL file. That a test has failed holds as long as the changed file, the
test, and what its file has besides tests stay the same, comments aside; that none has, as long as none of the tests changes.

Changes that are none (another way to the same numbers) are listed with their reason in `tests/mutants_equivalent.toml`. Read next:
`mutants_workers.py`.
"""

from __future__ import annotations

import argparse
import ast
import functools
import gc
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from tests.mutants_workers import Job, Outcome, Stage, Workers
from tests.mutations import Mutant, mutants, operations

MUTATED = (
    "minigrad/ops/*.py", "minigrad/fused/*.py", "minigrad/node.py", "minigrad/walk.py", "minigrad/autograd.py", "minigrad/optim/*.py",
    "minigrad/backend/sums.py", "minigrad/backend/addition.py",
    "minigrad/base_op.py", "minigrad/primitive_op.py", "minigrad/fused_op.py", "minigrad/fast_calls.py", "minigrad/tensor.py", "minigrad/modes.py",
    "minigrad/checkpoint.py", "minigrad/random.py", "minigrad/gradcheck.py", "minigrad/pth.py", "minigrad/pytorch_names.py",
    "minigrad/safetensors_io.py", "minigrad/nn/*.py",
)  # fmt: skip
USERS = (
    "tests/fused/test_cuda_*.py", "tests/optim/test_cuda_optim.py", "tests/test_graphs.py", "tests/test_*_op.py", "tests/test_far_device.py",
    "tests/test_tensor.py", "tests/test_functional.py", "tests/test_versions.py", "tests/test_memory.py", "tests/test_peers_bugs.py",
    "tests/nn/test_*.py",
)  # fmt: skip
"""Where tests named for an operation are found besides its own file."""
ALIASES = {"as_array": "setitem", "clipped": "clip", "plain_index": "getitem", "power": "pow", "power_of": "pow"}
"""What tests call a function by whose own name is not what one calls it by."""
CALLS = (
    ("tests/test_autograd.py", "tests/test_graphs.py", "tests/test_modes.py"), ("tests/test_tensor.py", "tests/test_versions.py"),
    ("tests/test_memory.py", "tests/test_anomaly.py", "tests/test_checkpoint.py", "tests/test_peers_bugs.py", "tests/test_devices.py"),
    ("tests/ops/test_elementwise.py", "tests/ops/test_movement.py", "tests/ops/test_reduce.py", "tests/ops/test_inputs.py"),
    ("tests/fused/test_linear.py", "tests/fused/test_batch_norm.py", "tests/test_threads.py"),
)  # fmt: skip
"""Where what happens in a call is tested besides."""
PLAN: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(("minigrad/node.py", "minigrad/walk.py", "minigrad/autograd.py"), (
        ("tests/test_autograd.py",), ("tests/test_graphs.py",), ("tests/test_versions.py", "tests/test_checkpoint.py", "tests/test_anomaly.py"),
        ("tests/test_memory.py", "tests/test_modes.py", "tests/test_*_op.py", "tests/test_far_device.py", "tests/test_threads.py"),
        ("tests/test_tensor.py",),
    )),
    "minigrad/backend/addition.py": (("tests/backend/test_cuda_backend.py",), ("tests/fused/test_cuda_launches.py",)),
    "minigrad/backend/sums.py": (("tests/backend/test_sums.py",), ("tests/ops/test_reduce.py",)),
    "minigrad/fused/attention.py": (
        ("tests/fused/test_attention.py",), ("tests/fused/test_cuda_attention.py",),
        ("tests/fused/test_cuda_choices.py", "tests/fused/test_cuda_launches.py"),
    ),
    "minigrad/fused/avg_pool2d.py": (
        ("tests/fused/test_avg_pool2d.py",), ("tests/fused/test_max_pool2d.py",),
        ("tests/fused/test_cuda_choices.py", "tests/fused/test_cuda_launches.py"),
    ),
    "minigrad/fused/conv2d_tensor.py": (
        ("tests/fused/test_cuda_choices.py",), ("tests/fused/test_cuda_conv_tensor.py",), ("tests/fused/test_cuda_launches.py",),
    ),
    "minigrad/fused/windows.py": (
        ("tests/fused/test_windows.py",), ("tests/fused/test_conv2d.py", "tests/fused/test_avg_pool2d.py", "tests/fused/test_max_pool2d.py"),
        ("tests/fused/test_cuda_choices.py", "tests/fused/test_cuda_launches.py"),
    ),
    "minigrad/checkpoint.py": (("tests/test_checkpoint.py",), ("tests/test_threads.py", "tests/test_memory.py", "tests/test_versions.py")),
    "minigrad/fast_calls.py": (
        ("tests/test_fast_calls.py",), ("tests/test_primitive_op.py", "tests/test_autograd.py", "tests/test_versions.py", "tests/test_anomaly.py"),
        ("tests/ops/test_elementwise.py", "tests/test_modes.py"),
    ),
    "minigrad/gradcheck.py": (("tests/test_gradcheck.py",), ("tests/test_proofs.py",)),
    "minigrad/modes.py": (
        ("tests/test_modes.py",), ("tests/test_*_op.py", "tests/test_autograd.py"),
        ("tests/test_anomaly.py", "tests/test_threads.py", "tests/test_checkpoint.py"), ("tests/test_tensor.py", "tests/test_types.py"),
    ),
    "minigrad/nn/activation.py": (("tests/nn/test_layers.py",),),
    "minigrad/nn/attention.py": (("tests/nn/test_layers.py",), ("tests/nn/test_dropout.py",)),
    "minigrad/nn/containers.py": (("tests/nn/test_module.py",), ("tests/nn/test_layers.py",)),
    "minigrad/nn/conv.py": (("tests/nn/test_layers.py",), ("tests/nn/test_init.py",)),
    "minigrad/nn/dropout.py": (("tests/nn/test_dropout.py",), ("tests/nn/test_layers.py",)),
    "minigrad/nn/init.py": (("tests/nn/test_init.py",), ("tests/test_pytorch_names.py",)),
    "minigrad/nn/linear.py": (("tests/nn/test_layers.py",), ("tests/nn/test_init.py",)),
    **dict.fromkeys(("minigrad/nn/module.py", "minigrad/nn/state_dict.py"), (
        ("tests/nn/test_module.py",), ("tests/nn/test_layers.py", "tests/optim/test_optimizer.py", "tests/optim/test_ema.py"),
        ("tests/test_memory_errors.py",),
    )),
    "minigrad/nn/norm.py": (("tests/nn/test_norm.py",), ("tests/nn/test_layers.py", "tests/nn/test_module.py"), ("tests/test_memory_errors.py",)),
    "minigrad/nn/pooling.py": (("tests/nn/test_layers.py",),),
    "minigrad/base_op.py": (
        ("tests/test_base_op.py",), ("tests/test_primitive_op.py", "tests/test_fused_op.py", "tests/test_fast_calls.py", "tests/test_far_device.py"),
        *CALLS,
    ),
    "minigrad/fused_op.py": (("tests/test_fused_op.py",), ("tests/test_base_op.py", "tests/test_far_device.py"), *CALLS),
    "minigrad/primitive_op.py": (
        ("tests/test_primitive_op.py",), ("tests/test_base_op.py", "tests/test_fast_calls.py", "tests/test_far_device.py"), *CALLS,
    ),
    "minigrad/ops/elementwise.py": (
        ("tests/ops/test_elementwise.py",), ("tests/test_*_op.py", "tests/test_far_device.py", "tests/test_tensor.py"),
        ("tests/test_versions.py", "tests/test_memory.py", "tests/test_peers_bugs.py", "tests/test_functional.py"),
    ),
    "minigrad/ops/index.py": (("tests/ops/test_index.py",), ("tests/test_checkpoint.py",)),
    "minigrad/ops/inputs.py": (
        ("tests/ops/test_inputs.py",), ("tests/ops/test_elementwise.py", "tests/test_*_op.py", "tests/test_far_device.py", "tests/test_tensor.py"),
        ("tests/ops/test_movement.py", "tests/ops/test_index.py", "tests/ops/test_reduce.py"),
    ),
    "minigrad/pth.py": (("tests/test_pth.py",),),
    **dict.fromkeys(("minigrad/nn/__init__.py", "minigrad/optim/__init__.py", "minigrad/pytorch_names.py"), (("tests/test_pytorch_names.py",),)),
    "minigrad/random.py": (("tests/test_random.py",), ("tests/nn/test_dropout.py", "tests/nn/test_init.py", "tests/test_threads.py")),
    "minigrad/safetensors_io.py": (("tests/test_safetensors_io.py",),),
    "minigrad/tensor.py": (
        ("tests/test_tensor.py",), ("tests/ops/test_elementwise.py", "tests/ops/test_matmul.py", "tests/test_pytorch_names.py"),
        ("tests/test_autograd.py", "tests/test_graphs.py", "tests/test_checkpoint.py", "tests/test_modes.py"),
        ("tests/test_peers_bugs.py", "tests/test_functional.py"),
        ("tests/test_versions.py", "tests/test_memory.py", "tests/test_devices.py", "tests/test_types.py"),
    ),
    "minigrad/optim/blocks.py": (
        ("tests/optim/test_blocks.py",), ("tests/optim/test_optimizer.py", "tests/test_memory_errors.py"),
        ("tests/optim/test_sgd.py", "tests/optim/test_adamw.py", "tests/optim/test_ema.py", "tests/optim/test_cuda_optim.py"),
    ),
    **dict.fromkeys(("minigrad/optim/launches.py", "minigrad/optim/multi_tensor.py"), (
        ("tests/optim/test_captured_steps.py",), ("tests/optim/test_cuda_optim.py",), ("tests/test_memory_errors.py",),
    )),
    "minigrad/optim/ema.py": (
        ("tests/optim/test_ema.py",), ("tests/optim/test_cuda_optim.py", "tests/optim/test_captured_steps.py"), ("tests/test_memory_errors.py",),
    ),
    "minigrad/optim/sgd.py": (
        ("tests/optim/test_sgd.py",), ("tests/optim/test_optimizer.py",), ("tests/optim/test_cuda_optim.py",),
        ("tests/optim/test_captured_steps.py", "tests/test_memory_errors.py"),
    ),
    **dict.fromkeys(("minigrad/optim/flat_state.py", "minigrad/optim/optimizer.py"), (
        ("tests/optim/test_optimizer.py",), ("tests/optim/test_sgd.py", "tests/optim/test_adamw.py", "tests/optim/test_schedule.py"),
        ("tests/optim/test_cuda_optim.py",), ("tests/optim/test_captured_steps.py", "tests/test_memory_errors.py"),
    )),
}  # fmt: skip
"""Files tried one after the other, as groups; for the other files see `stages`."""


class CannotRun(Exception):
    """Why nothing can be said about the changes."""


def stages(root: Path, file: str) -> list[Stage]:
    """The tests of a file of the library, nearest first."""
    path = Path(file)
    family = path.parent.name
    if file in PLAN:
        found = [Stage(files) for files in PLAN[file]]
    elif family == "optim":
        found = [Stage((f"tests/optim/test_{name}.py",)) for name in (path.stem, "optimizer", "cuda_optim")]
    else:
        found = [Stage((f"tests/{family}/test_{path.stem}.py",)), Stage(USERS, named=True)]
    there = [Stage(tuple(str(p.relative_to(root)) for f in s.files for p in sorted(root.glob(f))), s.named) for s in found]
    if not there[0].files:
        raise CannotRun(f"{file} has no tests: {' '.join(found[0].files)} is missing")
    return [stage for stage in there if stage.files]


@functools.cache
def digest(path: Path, test: str = "") -> str:
    """Of what a Python file says, comments and layout aside; with the id of a test, without the other tests in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if test:
        name = test.partition("[")[0].rpartition("::")[2]
        for scope in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
            scope.body = [n for n in scope.body if not isinstance(n, ast.FunctionDef) or n.name == name or not n.name.startswith("test")]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _test_of(row: dict[str, Any]) -> str:
    """The id of the test that failed, "" where it was no test's failure."""
    return row["by"] if "::" in row["by"] else ""


class Project:
    """The changes there are, and what is known of them."""

    def __init__(self, root: Path, results: Path):
        self.root, self.results = root, results
        self.sources: dict[str, str] = {}
        self.mutants: list[Mutant] = []
        self.names: dict[str, dict[str, set[str]]] = {}
        for pattern in MUTATED:
            for path in sorted(root.glob(pattern)):
                file = path.relative_to(root).as_posix()
                source = self.sources[file] = path.read_text(encoding="utf-8")
                self.names[file] = operations(source)
                self.mutants += mutants(file, source)
        self.rows: dict[str, dict[str, Any]] = {}  # by their key: of survivors, and of what no single test noticed
        self.noticed: dict[str, dict[str, Any]] = {}  # by their key for the test that failed
        self.latest: dict[tuple, dict[str, Any]] = {}  # by change alone, whatever the file and its tests said then
        if results.exists():
            for line in results.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # the last line of a run that was broken off
                    self._keep(json.loads(line))

    def _keep(self, row: dict[str, Any]) -> None:
        known = self.noticed if _test_of(row) else self.rows
        known[row["key"]] = self.latest[row["file"], row["before"], row["after"], row.get("number", 0)] = row

    def survived(self, mutant: Mutant) -> bool:
        """Whether nothing noticed a change when it was last run, though file and tests may have changed since."""
        row = self.latest.get((mutant.file, mutant.before, mutant.after, mutant.number))
        return row is not None and not row["killed"]

    def names_of(self, mutant: Mutant) -> set[str]:
        """The operations whose tests are nearest to a change."""
        found = {Path(mutant.file).stem} if "/fused/" in mutant.file else set(self.names[mutant.file][mutant.unit])
        found |= {ALIASES[name] for name in found & ALIASES.keys()}
        return {name for name in found if not name.startswith("_")} or {mutant.unit.strip("_")}

    @functools.cache  # noqa: B019 (one Project per run)
    def _context(self, file: str, test: str) -> str:
        apart = ("test_", "mutants", "mutations", "deep", "nvrtc")
        shared = [path for path in sorted((self.root / "tests").glob("*.py")) if not path.name.startswith(apart)]
        said = [digest(path) for path in [self.root / file, *shared]]
        if test:
            said.append(digest(self.root / test.partition("::")[0], test))
        else:
            said += [digest(self.root / name) for stage in stages(self.root, file) for name in stage.files]
        return " ".join(said)

    def key(self, mutant: Mutant, test: str = "") -> str:
        """Names a change for as long as its file, its tests (or `test` alone, with what its file has besides tests) and what they share stay."""
        names = "" if test else " ".join(sorted(self.names_of(mutant)))
        parts = (mutant.file, mutant.before, mutant.after, str(mutant.number), names, self._context(mutant.file, test))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]

    def row(self, mutant: Mutant) -> dict[str, Any] | None:
        """What is known of a change: the test that noticed it the last time is still there, or nothing has changed since then."""
        latest = self.latest.get((mutant.file, mutant.before, mutant.after, mutant.number))
        test = _test_of(latest) if latest else ""
        if test and (self.root / test.partition("::")[0]).exists() and (row := self.noticed.get(self.key(mutant, test))):
            return row
        return self.rows.get(self.key(mutant))

    def add(self, job: Job, outcome: Outcome) -> None:
        mutant = job.mutant
        assert mutant is not None
        row = {
            "key": self.key(mutant, _test_of({"by": outcome.by})), "file": mutant.file, "line": mutant.line, "unit": mutant.unit,
            "before": mutant.before, "after": mutant.after, "number": mutant.number, "killed": not outcome.passed, "by": outcome.by,
            "seconds": round(job.seconds, 2),
        }  # fmt: skip
        self._keep(row)
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def preload(root: Path, files: Sequence[str]) -> None:
    """Import what these files import from elsewhere, before anything is forked: a child then starts with it."""
    for file in files:
        for node in ast.parse((root / file).read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                if not (root / name.partition(".")[0]).is_dir():
                    importlib.import_module(name)
    if "torch" in sys.modules:
        importlib.import_module("torch.fx.experimental.symbolic_shapes")  # by torch.autograd.grad, at its first call: with SymPy, 0.4 s
    gc.collect()
    gc.freeze()  # a child's collections then leave these alone


def check_tests_pass(workers: Workers, project: Project, files: Sequence[str]) -> None:
    """Run every stage once without a change: seconds per test for the order, and an end with a reason if one fails."""
    needed = list(dict.fromkeys(stage for file in files for stage in stages(project.root, file)))
    for job, outcome in workers.run(Job(None, "", set(), [stage]) for stage in needed):
        if not outcome.passed or outcome.by:
            what = f"the tests are not done after {workers.limit:.0f} seconds (--seconds)" if outcome.by == "time limit" else f"{outcome.by} fails"
            raise CannotRun(f"without any change, {what}: {outcome.error or ' '.join(job.ran)}")


def run(project: Project, chosen: Sequence[Mutant], jobs: int, limit: float) -> None:
    """Run the chosen changes, saying every few seconds how far it has come."""
    files = list(dict.fromkeys(mutant.file for mutant in chosen))
    tests = [name for file in files for stage in stages(project.root, file) for name in stage.files]
    shared = [str(path.relative_to(project.root)) for path in (project.root / "tests").glob("*.py") if not path.name.startswith("test_")]
    preload(project.root, [*dict.fromkeys([*files, *tests, *shared])])
    workers = Workers(project.root, jobs, limit)
    print(f"{len(chosen)} changes to run; first their tests without a change", file=sys.stderr, flush=True)
    check_tests_pass(workers, project, files)
    start, said, killed = time.monotonic(), 0.0, 0
    queue = (Job(m, project.sources[m.file], project.names_of(m), stages(project.root, m.file)) for m in chosen)
    for number, (job, outcome) in enumerate(workers.run(queue), 1):
        assert job.mutant is not None
        if outcome.error:
            raise CannotRun(f"{job.mutant.file}:{job.mutant.line}: {job.mutant.after}: {outcome.error}")
        project.add(job, outcome)
        killed += not outcome.passed
        now = time.monotonic()
        if now - said > (0.2 if sys.stderr.isatty() else 20) or number == len(chosen):
            said, each = now, (now - start) / number
            text = (
                f"{number}/{len(chosen)}: {killed} killed, {each:.2f} s each, {each * (len(chosen) - number) / 60:.0f} min to go; {job.mutant.file}"
            )
            print(text.ljust(110), end="\r" if sys.stderr.isatty() and number < len(chosen) else "\n", file=sys.stderr, flush=True)


# --- what came of it


def read_equivalent(path: Path) -> list[dict[str, Any]]:
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equivalent", []) if path.exists() else []
    for entry in entries:
        if (
            {"file", "line", "becomes", "reason"} - entry.keys()
            or entry.keys() - {"file", "line", "becomes", "reason", "number"}
            or not entry["reason"]
        ):
            raise CannotRun(f"{path.name}: an entry has file, line, becomes, reason, and perhaps number; this one is {entry}")
    return entries


Figures = dict[str, Counter[str]]
"""By file: how many changes were killed (crashed and late: in what way), survived, are equivalent, or have not been run."""


def judge(project: Project, entries: Sequence[dict[str, Any]]) -> tuple[set[Mutant], list[str]]:
    """The changes listed as equivalent, and what is wrong with the list."""
    by_text: dict[tuple, list[Mutant]] = {}
    for mutant in project.mutants:
        by_text.setdefault((mutant.file, mutant.before, mutant.after), []).append(mutant)
    equivalent, faults = set(), []
    for entry in entries:
        found = by_text.get((entry["file"], entry["line"], entry["becomes"]), [])
        found = [mutant for mutant in found if entry.get("number", mutant.number) == mutant.number]
        if not found:
            faults.append(f"there is no such change any more: {entry['file']}: {entry['line']}  ->  {entry['becomes']}")
        for mutant in found:
            row = project.row(mutant)
            if row and row["killed"]:
                faults.append(f"listed as equivalent, but {row['by']} notices it: {mutant.file}:{mutant.line}: {mutant.before}  ->  {mutant.after}")
        equivalent.update(found)
    return equivalent, faults


def report(project: Project, chosen: Sequence[Mutant], entries: Sequence[dict[str, Any]], least: float, as_toml: bool) -> tuple[Figures, bool]:
    """Print survivors and figures of the chosen changes that have a result; the figures of each file, and whether all is well."""
    equivalent, faults = judge(project, entries)
    files: Figures = {}
    totals = Counter()
    for mutant in chosen:
        count = files.setdefault(mutant.file, Counter(killed=0, survived=0, equivalent=0, crashed=0, late=0, not_run=0))
        row = project.row(mutant)
        if row is None:
            count["not_run"] += 1
            continue
        kind = "killed" if row["killed"] else "equivalent" if mutant in equivalent else "survived"
        count[kind] += 1
        count["late"] += row["by"] == "time limit"
        count["crashed"] += row["by"].startswith("crash")
        if kind == "survived" and as_toml:
            fields = {"file": mutant.file, "line": mutant.before, "becomes": mutant.after, "reason": ""} | (
                {"number": mutant.number} if mutant.number else {}
            )
            print(f"[[equivalent]]  # {mutant.file}:{mutant.line}")
            print("".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items()))
        elif kind == "survived":
            print(f"{mutant.file}:{mutant.line}  survives\n  - {mutant.before}\n  + {mutant.after}")
    for file, count in files.items():
        totals.update(count)
        if count["killed"] + count["survived"] + count["equivalent"]:
            print(f"{_share(count)}  {file}")
    print(f"{_share(totals)}  in all; {totals['crashed']} by a crash, {totals['late']} since the tests then took too long")
    if totals["not_run"]:
        print(f"{totals['not_run']} of {len(chosen)} changes have not been run")
    for fault in faults:
        print(f"mutants_equivalent.toml: {fault}")
    percent = _percent(totals)
    well = not faults and percent >= least
    if percent < least:
        print(f"{percent:.1f} % is less than the {least:g} % asked for (--least)")
    return files, well


def write_summary(path: Path, project: Project, chosen: Sequence[Mutant], files: Figures) -> None:
    """Put the figures of files into a JSON file that keeps those of the other files: of those all of whose changes were chosen and have a result."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    there, taken = (Counter(mutant.file for mutant in of) for of in (project.mutants, chosen))
    whole = {file: count for file, count in files.items() if not count["not_run"] and taken[file] == there[file]}
    kinds = ("killed", "survived", "equivalent")
    known |= {file: {"date": date.today().isoformat(), **{kind: count[kind] for kind in kinds}} for file, count in whole.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({file: known[file] for file in project.sources if file in known}, indent=1) + "\n", encoding="utf-8")


def _percent(count: dict[str, int]) -> float:
    real = count["killed"] + count["survived"]
    return 100 * count["killed"] / real if real else 100.0


def _share(count: dict[str, int]) -> str:
    real = count["killed"] + count["survived"]
    return f"{count['killed']:5d} of {real:5d} noticed, {_percent(count):5.1f} %  ({count['equivalent']} equivalent)"


def choose(project: Project, only: Sequence[str], sample: int | None, seed: int) -> list[Mutant]:
    """The changes in files or operations of these names, or a random few of them."""
    chosen = project.mutants
    if only:
        chosen = [m for m in chosen if any(o in (m.file, Path(m.file).name, Path(m.file).stem, m.unit) or o in project.names_of(m) for o in only)]
        if not chosen:
            raise CannotRun(f"no file and no operation is called {' or '.join(only)}")
    if sample is not None and sample < len(chosen):
        picked = sorted(random.Random(seed).sample(range(len(chosen)), sample))
        chosen = [chosen[k] for k in picked]
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: enough is noticed; 1: too little, or a fault in the list of equivalent changes; 2: it could not be run."""
    try:
        return command(argv)
    except CannotRun as reason:
        print(f"mutants: {reason}", file=sys.stderr)
        return 2


def command(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="mutants", description="Change the library, one small fault at a time; its tests must notice.")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="files (path or stem) or operations")
    parser.add_argument("--survivors", action="store_true", help="only what nothing noticed when it was last run, and is not listed as equivalent")
    parser.add_argument("--sample", type=int, metavar="N", help="a random N of them")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--limit", type=int, metavar="N", help="run at most N that have no result yet")
    parser.add_argument("--seconds", type=float, default=1800.0, help="that tests may take without a change; with one, 5 times what they took")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="at a time (default: one per core)")
    parser.add_argument("--least", type=float, default=98.0, metavar="PERCENT", help="of the changes that must be noticed (default 98)")
    parser.add_argument("--results", type=Path, default=Path(".mutants/results.jsonl"), help="default .mutants/results.jsonl")
    parser.add_argument("--summary", type=Path, help="put the figures of the files that have been run whole into this JSON file")
    parser.add_argument("--list", action="store_true", help="print the changes and run nothing")
    parser.add_argument("--show-survivors", action="store_true", help="run nothing; survivors as entries for mutants_equivalent.toml")
    options = parser.parse_args(argv)

    root = Path.cwd()
    project = Project(root, options.results)
    entries = read_equivalent(root / "tests/mutants_equivalent.toml")
    chosen = choose(project, options.only, options.sample, options.seed)
    equivalent, _ = judge(project, entries)
    if options.survivors:
        chosen = [mutant for mutant in chosen if project.survived(mutant) and mutant not in equivalent]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.file}:{mutant.line}  {mutant.before}  ->  {mutant.after}")
        print(f"{len(chosen)} changes")
        return 0
    interrupted = False
    if not options.show_survivors:
        for variable, value in (
            ("MINIGRAD_THREADS", "2"),
            ("OMP_NUM_THREADS", "1"),
            ("OPENBLAS_NUM_THREADS", "1"),
            ("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"),
        ):
            os.environ[variable] = value  # no threads before the fork; two in the child, so that splitting the rows is tested
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(options.results.parent.absolute() / "pycache")  # children need not compile
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        fresh = [mutant for mutant in chosen if project.row(mutant) is None]
        fresh = sorted(fresh, key=lambda m: (m in equivalent, project.survived(m)))[: options.limit]  # what takes long, all tests, comes last
        try:
            if fresh:
                run(project, fresh, options.jobs, options.seconds)
        except KeyboardInterrupt:
            interrupted = True
    files, well = report(project, chosen, entries, options.least, options.show_survivors)
    if options.summary:
        write_summary(options.summary, project, chosen, files)
    return 130 if interrupted else 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
