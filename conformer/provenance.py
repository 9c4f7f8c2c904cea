"""What makes a run: the versions, the commit of this project and the machine, as the first line of its log says them."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

import minigrad
from minigrad.backend import cpu

__all__ = ["OPENBLAS_PINS", "environment", "revision"]

OPENBLAS_PINS = "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"
"""Environment variables that make OpenBLAS run an older processor's code; set on some machines, they halve NumPy's speed."""

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 2.0  # seconds that git may take for an answer; it takes a hundredth of one


def environment() -> dict[str, Any]:
    """What made a run, and what its times depend on: versions, the commit where it is known, machine, threads, and the two variables that can slow
    NumPy's matrix products down.
    """
    commit = revision()
    return {
        "versions": {"minigrad-conformer": minigrad.__version__, "numpy": np.__version__, "python": platform.python_version()},
        **({"revision": commit} if commit else {}),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": cpu.thread_count(),
        "blas": [
            {key: library.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
            for library in threadpoolctl.threadpool_info()
            if library.get("user_api") == "blas"
        ]
        or [np.show_config("dicts")["Build Dependencies"]["blas"]["name"]],  # type: ignore[index]  # Accelerate, which threadpoolctl does not know
        **{name: os.environ.get(name) for name in OPENBLAS_PINS},
    }


@functools.cache  # what is changed later is not what this process runs
def revision(root: Path = ROOT) -> str | None:
    """The commit that the packages in a folder are of, ten digits of it, followed by "+" where their files differ from it.

    It is None where the folder is not the top of a git checkout, or this file is not in its commit: an environment that lies in another project's
    checkout does not pass for that project, unless that has committed the packages at its top. It is None, too, where git is missing, fails, or takes
    too long.
    """
    if not (root / ".git").exists():  # as where the packages are installed: no process is started
        return None
    commit = _git(root, "rev-parse", "HEAD", "HEAD:conformer/provenance.py")
    changes = _git(root, "status", "--porcelain", "--untracked-files=normal", "--", "minigrad", "conformer")
    return None if commit is None or changes is None else commit[:10] + ("+" if changes else "")


def _git(root: Path, *words: str) -> str | None:
    """What git says about the checkout in a folder, and in no folder above; it writes nothing, and starts no process that would outlive it."""
    repository = [f"--git-dir={root / '.git'}", f"--work-tree={root}", "--no-optional-locks", "-c", "core.fsmonitor=false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's are of another checkout
    how = {"cwd": root, "env": environment, "stdin": subprocess.DEVNULL, "capture_output": True, "timeout": TIMEOUT, "check": True}
    try:
        return subprocess.run(["git", *repository, *words], encoding="utf-8", errors="replace", **how).stdout
    except (OSError, subprocess.SubprocessError):
        return None
