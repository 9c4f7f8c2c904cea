"""What the application's tests get: a machine on which no GPU is found, whatever there is, so that `--device auto` is the CPU."""

from __future__ import annotations

import pytest

from minigrad.backend import cuda


@pytest.fixture(autouse=True)
def no_gpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda, "_load_driver", no_driver)
