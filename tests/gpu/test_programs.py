"""The programs of this folder, as far as they need no GPU: every kernel is launched by some call, and the sanitizer's words are understood."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

import minigrad
from minigrad.backend import cuda
from tests.gpu import compile_all, every_kernel, sanitize


def test_without_a_gpu_they_say_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def no_driver() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda, "_load_driver", no_driver)
    for main in (compile_all.main, lambda: every_kernel.main([]), lambda: sanitize.main([])):
        assert main() == 1
        error = capsys.readouterr().err
        assert error.startswith("No CUDA: ") and len(error.splitlines()) == 1


def test_a_file_that_does_not_compile_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name, body in (("good", "x[0] = 1;"), ("bad", "x[0] = nothing;"), ("last", "x[0] = 2;")):
        (tmp_path / f"{name}.cu").write_text(f"__global__ void {name}(float* x)\n{{\n    {body}\n}}\n")
    monkeypatch.setattr(compile_all, "FILES", [tmp_path / f"{name}.cu" for name in ("good", "bad", "last")])
    with minigrad.emulated(build="plain"):
        assert compile_all.main() == 0  # what comes next, tests or benchmarks, says what this means
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("2 kernels of 2 files compiled") and second.startswith("FAILED bad.cu: ")


def test_no_kernel_is_without_a_test(capsys: pytest.CaptureFixture[str]):
    launched, launches = every_kernel.every_kernel()
    names = capsys.readouterr().out.splitlines()  # each before it is called: where a sanitizer was stopped
    assert names[0] == "1 test_tiles_of_a_convolution" and [int(name.split()[0]) for name in names] == list(range(1, len(names) + 1))
    assert every_kernel.missed(launched) == []
    assert launches >= len(launched)
    some = next(iter(launched))
    assert every_kernel.missed(launched - {some}) == [f"{some[1]} ({some[0]})"]


CLEAN = """229 kernels in 753 launches: all there are
========= COMPUTE-SANITIZER
========= ERROR SUMMARY: 0 errors
"""
DIRTY = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at copy(const float *)+0x50 in copy.cu:3
========= ERROR SUMMARY: 2 errors
"""


@pytest.mark.parametrize(
    ("output", "clean", "told"),
    [
        (CLEAN, True, []),
        (DIRTY, False, ["Invalid __global__ read of size 4 bytes", "at copy(const float *)+0x50 in copy.cu:3"]),
        ("========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", True, []),
        ("========= RACECHECK SUMMARY: 10 hazards displayed (10 errors, 0 warnings)\n", False, []),
        ("Traceback: it has not even begun\n", False, []),
    ],
)
def test_what_the_sanitizer_says(output: str, clean: bool, told: list[str]):
    summaries, found = sanitize.findings(output)
    assert sanitize._clean(summaries) is clean
    assert found == told


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that plays compute-sanitizer, and notes how it is called; it finds nothing, and a file `sleep` beside it lets racecheck hang."""
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        f"""#!{sys.executable}
import pathlib, subprocess, sys
if sys.argv[1] == "--version":
    sys.exit(print("Version 2025.4"))
folder = pathlib.Path(__file__).parent
with (folder / "calls").open("a") as calls:
    print(" ".join(sys.argv[1:]), file=calls)
print("========= COMPUTE-SANITIZER", flush=True)
if "racecheck" in sys.argv and (folder / "sleep").exists():
    kernels = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])  # has the same pipe, as the program under a sanitizer
    (folder / "kernels").write_text(str(kernels.pid))
    kernels.wait()
print("3 kernels in 4 launches: all there are")
print("========= ERROR SUMMARY: 0 errors")
"""
    )
    program.chmod(0o755)
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: str(program))
    monkeypatch.setattr(cuda, "availability", lambda: cuda.Availability(True, "CUDA: Some GPU."))
    return program


def test_each_tool_is_run_with_its_options_and_its_result_is_written_at_once(sanitizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[list[str]] = []
    finished, file = sanitize._finished, tmp_path / "results" / "sanitize-all.json"

    def look(command: list[str], seconds: float) -> tuple[int | None, str, str]:
        written.append([result["tool"] for result in json.loads(file.read_text())["tools"]] if file.exists() else [])
        return finished(command, seconds)

    monkeypatch.setattr(sanitize, "_finished", look)
    assert sanitize.main(["--out", str(file.parent)]) == 0
    assert written == [[], ["memcheck"], ["memcheck", "racecheck"], ["memcheck", "racecheck", "initcheck"]]
    record = json.loads(file.read_text())
    assert record["sanitizer"] == ["Version 2025.4"] and all(result["clean"] and not result["timed_out"] for result in record["tools"])
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ["--report-api-errors no" in call for call in calls] == [True, False, False, False]
    assert [call.split()[1] for call in calls] == list(sanitize.TOOLS) and all(call.endswith("-m tests.gpu.every_kernel") for call in calls)


def test_a_tool_that_takes_too_long_is_stopped_with_what_it_runs_and_the_next_one_begins(
    sanitizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "sleep").touch()
    began = time.monotonic()
    assert sanitize.main(["--only", "racecheck", "synccheck", "--timeout", "3", "--out", str(tmp_path)]) == 1
    assert time.monotonic() - began < 60
    slow, quick = json.loads((tmp_path / "sanitize-racecheck-synccheck.json").read_text())["tools"]
    assert (slow["timed_out"], slow["clean"], slow["status"]) == (True, False, None) and quick["clean"]
    assert "racecheck was stopped after 3 s, before it had seen every kernel: give it more with --timeout" in capsys.readouterr().out
    child = Path(f"/proc/{(tmp_path / 'kernels').read_text()}/stat")
    assert not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z"  # killed; nobody here may have waited for it


def test_where_the_sanitizer_s_results_go(tmp_path: Path):
    assert sanitize.path_of(tmp_path, sanitize.TOOLS) == tmp_path / "sanitize-all.json"
    assert sanitize.path_of(tmp_path, ["initcheck"]) == tmp_path / "sanitize-initcheck.json"
    assert sanitize.path_of(tmp_path / "a.json", ["initcheck"]) == tmp_path / "a.json"
