"""The mutation tester itself: which changes it makes of a source, and that it tells a change that is noticed from one that is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import mutants as script
from tests import mutants_workers
from tests.mutants import Project
from tests.mutants_workers import Job, Outcome, Stage, Workers
from tests.mutations import mutants, operations

REPOSITORY = Path(__file__).parent.parent


def changed(source: str) -> list[str]:
    """The changed line of every mutant of a source, in alphabetical order."""
    return sorted(mutant.after for mutant in mutants("x.py", source))


# --- what is changed


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a = b + c", ["a = c", "a = b", "a = b - c"]),
        ("a = b - c", ["a = c - b", "a = b", "a = -c", "a = b + c"]),
        ("a = b * c", ["a = b / c"]),
        ("a = b / c", ["a = c / b", "a = b * c"]),
        ("a = b // c", ["a = c // b", "a = b * c"]),
        ("a = b @ c", ["a = c @ b"]),
        ("a = np.add(b, c)", ["a = np.add(0, c)", "a = np.add(b, 0)", "a = np.subtract(b, c)"]),
        ("a = np.multiply(b, c)", ["a = np.divide(b, c)"]),
        ("a = np.divide(b, c)", ["a = np.divide(c, b)", "a = np.multiply(b, c)"]),
        ("a = np.matmul(b, c)", ["a = np.matmul(c, b)"]),
        ("a = np.maximum(b, c)", ["a = np.minimum(b, c)"]),
        ("a = x.transpose(b, c)", ["a = x.transpose(c, b)"]),
        ("a = (b + c) / d", ["a = d / (b + c)", "a = (c) / d", "a = (b) / d", "a = (b - c) / d", "a = (b + c) * d"]),
        ("a = b * c / d", ["a = d / (b * c)", "a = b / c / d", "a = b * c * d"]),
        ("a = -b", ["a = b"]),
        ("a = not b", ["a = b"]),
        ("a = b < c", ["a = b >= c", "a = b <= c"]),
        ("a = b >= c", ["a = b < c", "a = b > c"]),
        ("a = b == c", ["a = b != c"]),
        ("a = b is not c", ["a = b is c"]),
        ("a = b in c", ["a = b not in c"]),
        ("a = b < c == d", ["a = b >= c == d", "a = b <= c == d", "a = b < c != d"]),
        ("a = equal(b, c)", ["a = not_equal(b, c)"]),
        ("a = b and c == d", ["a = (not b) and c == d", "a = b and c != d"]),
        ("a = b if c else d", ["a = b if (not c) else d"]),
        ("a = [b for b in c if d]", ["a = [b for b in c if (not d)]"]),
        ("a = 3", ["a = 6"]),
        ("a = 0.5", ["a = 1.0"]),
        ("a = 0", ["a = 1"]),
        ("a = True", []),
        ("a = b[c:]", ["a = b[c + 1:]", "a = b[c - 1:]"]),
        ("a = b[:-1]", ["a = b[:0]", "a = b[:-2]", "a = b[:1]"]),
        ("a = slice(*b)", []),
        ("a = slice(b, c)", ["a = slice(b + 1, c)", "a = slice(b - 1, c)", "a = slice(b, c + 1)", "a = slice(b, c - 1)"]),
        ("a = b.sum(1)", ["a = b.sum(2)", "a = b.sum(0)"]),
        ("a = np.sum(b, (1, 3))", ["a = np.sum(b, (2, 3))", "a = np.sum(b, (0, 3))", *(f"a = np.sum(b, (1, {n}))" for n in (4, 2, 6))]),
        ("a = b.mean(axis=c)", ["a = b.mean(axis=c + 1)", "a = b.mean(axis=c - 1)"]),
        ("a = f(b, axis)", ["a = f(b, axis + 1)", "a = f(b, axis - 1)"]),
        ("a = max(b, 1)", ["a = min(b, 1)", "a = max(b, 2)"]),
        ("a = b.sum(keepdims=True)", ["a = b.sum(keepdims=False)"]),
        ("a = b.sum(keepdims=c)", ["a = b.sum(keepdims=not c)"]),
        ("a = b.reshape(-1, c)", ["a = b.reshape(1, c)"]),
        ("a += b", ["pass", "a -= b"]),
        ("a /= b", ["pass", "a *= b"]),
        ("a[b] = c", ["pass"]),
        ("a[b], c[d] = e", ["pass"]),
        ("a = np.exp(b, out=c)", ["a = c"]),
    ],
)
def test_these_are_the_changes_of_an_expression(line: str, expected: list[str]):
    assert changed(line) == sorted(expected)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a", ["return -a"]),
        ("return a, (b @ c, None)", ["return -a, (b @ c, None)", "return a, (c @ b, None)", "return a, (-(b @ c), None)"]),
        ("return None if a is None else b", ["return None if a is not None else b", "return None if a is None else -b"]),
        ("return isinstance(a, b)", []),
        ("np.add.at(a, b, c)", ["pass"]),
        ("np.exp(a, out=b)", ["pass"]),
        ("a.grad = b", ["pass"]),
        ("if a: return", ["if (not a): return"]),
        ("while a.b(): return", ["while (not a.b()): return"]),
        ("def g(): return a", ["def g(): return -a"]),
    ],
)
def test_these_are_the_changes_of_a_statement(body: str, expected: list[str]):
    assert changed(f"def f(a, b):\n    {body}\n") == sorted(expected)


def test_rules_and_defaults_of_parameters_are_changed():
    assert changed("f.derivative(x=lambda g: g, y=lambda g: -g)") == [
        "f.derivative(x=lambda g: -g, y=lambda g: -g)",
        "f.derivative(x=lambda g: g, y=lambda g: g)",
    ]
    assert changed("def f(axis: int = 1, keepdims: bool = False): pass") == [
        "def f(axis: int = 0, keepdims: bool = False): pass",
        "def f(axis: int = 1, keepdims: bool = True): pass",
        "def f(axis: int = 2, keepdims: bool = False): pass",
    ]


def test_the_sign_of_a_result_that_is_no_number_stays():
    assert changed("def f(a) -> bool:\n    return a") == []
    assert changed("def f(a) -> tuple[Tensor, None]:\n    return a") == ["return -a"]


@pytest.mark.parametrize(
    "source",
    [
        'raise ValueError(f"{a + 1} of {b - 2}")',
        'raise ValueError("a" + str(-n))',
        'a = ValueError("one", 1 + 2)',
        'a = f"{b - 1}"',
        'a = "at " + b',
        'a += f" and {b}"',
        '"""Docstring: a - b."""',
        "a: Literal[3]",
        "def f(a: Literal[3]) -> Literal[4]: pass",
        '__all__ = ["a", "b"][0:1]',
        "_GRAIN = 1 << 15",
        "LONG_ROW, BLOCK = 8192, 1 << 18",
        "f(a, 1 + _GRAIN // n)",
        "parallel_rows(f, a, 1 + 2**18 // n)",
        "parallel_blocks(f, a, 1, 2**18 // n)",
        "parallel_slices(f, a, 2**16 // n, 2**18 // n)",
        "def _grain(y): return 1 + 1_000_000 // y.size",
        "slices = max(1, min(256, n // 32))",
        "class Grid:\n    def lay(self): self.of_rows = -(-n // 4), columns",
        "step = max(BLOCK // width, 1)",
        "a = n > LONG_ROW",
        "a.b()",
        "def _tile(n): return n + 1",
        "if TYPE_CHECKING:\n    from a import b",
    ],
)
def test_messages_annotations_and_speed_constants_stay(source: str):
    assert changed(source) == []


def test_a_speed_constant_that_is_added_to_a_position_is_no_excuse():
    assert changed("last = min(first + _BLOCK, stop)") == [
        "last = max(first + _BLOCK, stop)",
        "last = min(_BLOCK, stop)",
        "last = min(first - _BLOCK, stop)",
        "last = min(first, stop)",
    ]


def test_a_grid_is_no_speed_constant():
    assert set(changed("grid = slices * 2")) == {"grid = slices / 2", "grid = slices * 4"}


def test_a_change_has_its_line_among_comments_and_letters_beyond_ascii():
    source = '"""×."""\nx = (\n    "–", a  # - and +\n    - b,\n)  # × 3\n'
    found = mutants("x.py", source)
    assert [(m.line, m.after) for m in found] == [(3, '"–", b - a,'), (3, '"–", a,'), (3, '"–", -b,'), (4, "+ b,")]
    assert [m.before for m in found] == ['"–", a - b,'] * 3 + ["- b,"]
    assert found[0].apply(source) == '"""×."""\nx = (\n    "–", b - a,\n)  # × 3\n'


def test_the_same_change_of_the_same_line_is_numbered():
    found = mutants("x.py", "def f(a):\n    return [a * b]\ndef g(a):\n    return [a * b]\n")
    assert [(m.unit, m.after, m.number) for m in found] == [("f", "return [a / b]", 0), ("g", "return [a / b]", 1)]


def test_every_change_of_a_file_is_another_program():
    source = (REPOSITORY / "minigrad/fused/softmax.py").read_text()
    programs = [m.apply(source) for m in mutants("softmax.py", source)]
    assert len(programs) > 80 and len({source, *programs}) == len(programs) + 1
    for program in programs:
        compile(program, "softmax.py", "exec")


def test_operations_of_rules_and_of_shared_functions():
    source = """
@primitive(name="cast")
def converted(x): return x
@fused
def softmax(x): return _shift(x)
def _shift(x): return x
converted.derivative(x=lambda g: _shift(g))
"""
    assert operations(source)["converted"] == {"converted", "cast"}
    assert operations(source)["_shift"] == {"_shift", "softmax", "converted", "cast"}


# --- running them

TOY = "def area(width, height):\n    return width * height\n\n\ndef half(x):\n    return x / 2\n"
TESTS = """import os
from minigrad.fused.area import area, half
def test_half(): assert half(2.0) == 1.0
def test_area():
    if area(2.0, 3.0) < 0: os.abort()
    assert area(2.0, 3.0) == 6.0
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name, text in {
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
        "minigrad/__init__.py": "",
        "minigrad/fused/__init__.py": "",
        "minigrad/fused/area.py": TOY,
        "tests/fused/test_area.py": TESTS,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    script.digest.cache_clear()
    return tmp_path


def run(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The script in a process of its own, on another project."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-m", "tests.mutants", *arguments], cwd=root, env=environment, capture_output=True, text=True)


def test_what_is_noticed_and_what_survives(toy: Path):
    done = run(toy, "--jobs", "2", "--summary", "summary.json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "minigrad/fused/area.py:6  survives\n  - return x / 2\n  + return 2 / x\n" in done.stdout
    assert done.stdout.count("survives") == 1 and "less than the 98 %" in done.stdout
    assert "1 by a crash, 0 since the tests then took too long" in done.stdout
    summary = json.loads((toy / "summary.json").read_text())
    assert {file: (of["killed"], of["survived"]) for file, of in summary.items()} == {"minigrad/fused/area.py": (5, 1)}
    rows = {row["after"]: row["by"] for row in map(json.loads, (toy / ".mutants/results.jsonl").read_text().splitlines())}
    assert rows == {
        "return -(width * height)": "crash (SIGABRT)",
        "return width / height": "tests/fused/test_area.py::test_area",
        "return 2 / x": "",
        "return x * 2": "tests/fused/test_area.py::test_half",
        "return x / 4": "tests/fused/test_area.py::test_half",
        "return -(x / 2)": "tests/fused/test_area.py::test_half",
    }


def test_tests_that_fail_without_a_change_end_it(toy: Path):
    (toy / "tests/fused/test_area.py").write_text("def test_nothing(): assert False, 'the reason'\n")
    done = run(toy)
    assert done.returncode == 2
    assert "without any change, tests/fused/test_area.py::test_nothing fails: " in done.stderr and "the reason" in done.stderr


def test_tests_that_take_too_long_without_a_change_end_it(toy: Path):
    done = run(toy, "--seconds", "0.001")
    assert done.returncode == 2
    assert "the tests are not done after 0 seconds (--seconds): tests/fused/test_area.py" in done.stderr


def with_results(root: Path, survivor: str) -> Project:
    """A project whose changes have all been run; all but one were noticed."""
    project = Project(root, root / "results.jsonl")
    for mutant in project.mutants:
        outcome = Outcome(True, "") if mutant.after == survivor else Outcome(False, "tests/fused/test_area.py::test_half")
        project.add(Job(mutant, "", set(), []), outcome)
    return project


def not_run(root: Path) -> list[str]:
    script.digest.cache_clear()
    project = Project(root, root / "results.jsonl")
    return [mutant.after for mutant in project.mutants if project.row(mutant) is None]


def test_results_hold_while_file_and_tests_say_the_same(toy: Path):
    project = with_results(toy, "return 2 / x")
    assert not_run(toy) == []
    source, tests, results = toy / "minigrad/fused/area.py", toy / "tests/fused/test_area.py", toy / "results.jsonl"
    source.write_text("# a comment\n" + TOY)
    assert not_run(toy) == []
    source.write_text(TOY + "half(1)\n")
    assert len(not_run(toy)) == 7
    source.write_text(TOY)
    tests.write_text(TESTS + "def test_three(): pass\n")
    assert not_run(toy) == ["return 2 / x"]  # a test more: what was noticed stays so
    for changed in (TESTS + "three = 3\n", TESTS.replace("half(2.0) == 1.0", "half(4.0) == 2.0"), TESTS.replace("test_half", "test_a_half")):
        tests.write_text(changed)
        assert len(not_run(toy)) == 6
    tests.write_text(TESTS)
    (toy / "tests/test_base_op.py").write_text("def test_area_of_users(): pass\n")
    assert not_run(toy) == ["return 2 / x"]
    (toy / "tests/test_base_op.py").unlink()
    (toy / "tests/conftest.py").write_text("x = 1\n")
    assert len(not_run(toy)) == 6
    (toy / "tests/conftest.py").unlink()
    results.write_text(results.read_text()[:-20])  # broken off while writing
    assert not_run(toy) == [project.mutants[-1].after]


def test_survivors_are_tried_again_after_their_tests_have_changed(toy: Path):
    assert run(toy).returncode == 1
    (toy / "tests/fused/test_area.py").write_text(TESTS + "def test_half_again(): assert half(4.0) == 2.0\n")
    done = run(toy, "--survivors")
    assert done.returncode == 0 and "1 of     1 noticed" in done.stdout, done.stdout + done.stderr


def entry(**changes: object) -> dict:
    return {"file": "minigrad/fused/area.py", "line": "return x / 2", "becomes": "return 2 / x", "reason": "for the test", **changes}


@pytest.mark.parametrize(
    ("entries", "well", "text"),
    [
        ([], False, "83.3 % is less than the 98 %"),
        ([entry()], True, "5 of     5 noticed, 100.0 %  (1 equivalent)"),
        ([entry(), entry(becomes="return x * 2")], False, "listed as equivalent, but tests/fused/test_area.py::test_half notices it"),
        ([entry(), entry(becomes="return x + 2")], False, "there is no such change any more"),
        ([entry(number=1)], False, "there is no such change any more"),
    ],
)
def test_equivalent_changes(toy: Path, capsys: pytest.CaptureFixture, entries: list, well: bool, text: str):
    project = with_results(toy, "return 2 / x")
    _, verdict = script.report(project, project.mutants, entries, 98, False)
    assert verdict == well
    assert text in capsys.readouterr().out


def test_a_summary_takes_over_what_was_run_whole_and_keeps_the_other_files(toy: Path):
    (toy / "minigrad/fused/volume.py").write_text("def volume(side):\n    return side**3\n")
    project = with_results(toy, "return 2 / x")
    path = toy / "summary.json"
    older = {"date": "2026-01-01", "killed": 1, "survived": 0, "equivalent": 0}
    files, _ = script.report(project, project.mutants, [], 98, False)
    for chosen, partly in (
        ([mutant for mutant in project.mutants if mutant.unit == "half"], files),
        (project.mutants, {file: count | Counter(not_run=1) for file, count in files.items()}),
    ):
        path.write_text(json.dumps({name: older for name in ("minigrad/fused/area.py", "minigrad/fused/volume.py", "minigrad/fused/gone.py")}))
        script.write_summary(path, project, chosen, {"minigrad/fused/area.py": partly["minigrad/fused/area.py"]})
        assert json.loads(path.read_text()) == {"minigrad/fused/area.py": older, "minigrad/fused/volume.py": older}
    script.write_summary(path, project, project.mutants, {"minigrad/fused/area.py": files["minigrad/fused/area.py"]})
    found = json.loads(path.read_text())
    assert found["minigrad/fused/volume.py"] == older and found["minigrad/fused/area.py"]["date"] > older["date"]
    assert (found["minigrad/fused/area.py"]["killed"], found["minigrad/fused/area.py"]["survived"]) == (5, 1)


def test_an_equivalent_change_needs_a_reason(tmp_path: Path):
    path = tmp_path / "equivalent.toml"
    path.write_text('[[equivalent]]\nfile = "a"\nline = "b"\nbecomes = "c"\nreason = ""\n')
    with pytest.raises(script.CannotRun, match="has file, line, becomes, reason"):
        script.read_equivalent(path)


def test_every_file_that_is_changed_has_tests():
    project = Project(REPOSITORY, REPOSITORY / "no-results.jsonl")
    assert all(script.stages(REPOSITORY, file) for file in project.sources if mutants(file, project.sources[file]))


def test_some_of_the_changes(toy: Path):
    project = Project(toy, toy / "results.jsonl")
    assert {m.unit for m in script.choose(project, ["half"], None, 0)} == {"half"}
    assert len(script.choose(project, ["area.py"], None, 0)) == 6
    samples = [[m.after for m in script.choose(project, [], 3, seed)] for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2] and len(samples[0]) == 3
    with pytest.raises(script.CannotRun, match="no file and no operation is called volume"):
        script.choose(project, ["volume"], None, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_change_that_hangs_is_noticed(toy: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mutants_workers, "_child", lambda *arguments: signal.pause())
    mutant = mutants("minigrad/fused/area.py", TOY)[0]
    job = Job(mutant, TOY, set(), [Stage(("tests/fused/test_area.py",))])
    [(ended, outcome)] = Workers(toy, 1, limit=0.05).run(iter([job]))
    assert ended is job and not outcome.passed and outcome.by == "time limit"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_tests_that_noticed_other_changes_of_a_function_come_first(toy: Path, monkeypatch: pytest.MonkeyPatch):
    def child(pipe: int, root: Path, job: Job, *others: object) -> None:
        os.write(pipe, json.dumps({"passed": job.left[0] == near, "by": "tests/far.py::test", "error": ""}).encode())
        os._exit(0)

    monkeypatch.setattr(mutants_workers, "_child", child)
    near, far = Stage(("tests/near.py",)), Stage(("tests/far.py",))
    chosen = [mutant for mutant in mutants("minigrad/fused/area.py", TOY) if mutant.unit == "half"]
    ended = [job for job, _ in Workers(toy, 1, limit=60).run(Job(mutant, TOY, set(), [near, far]) for mutant in chosen)]
    assert [job.left for job in ended] == [[]] + [[near, far]] * (len(chosen) - 1)
    assert [job.tests for job in ended] == [()] + [("tests/far.py::test",)] * (len(chosen) - 1)
