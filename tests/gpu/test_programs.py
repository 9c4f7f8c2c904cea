"""The programs of this folder, as far as they need no GPU: every kernel is launched by some call, and the sanitizer's words are understood."""

from __future__ import annotations

import pytest

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


def test_no_kernel_is_without_a_test(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIGRAD_EMULATOR", "plain")
    launched, launches = every_kernel.every_kernel()
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
