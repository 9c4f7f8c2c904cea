"""Running test files again in a process of their own: for the builds of the emulator that cannot share one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[3]
_RANDOM_BITS = Path("/proc/sys/vm/mmap_rnd_bits")


def run_tests(*files: str | Path, **environment: str) -> None:
    """Run the tests of these files with these environment variables set; they must pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, files)]
    # AddressSanitizer wants fixed addresses, which the kernel gives to others at random where it uses more than 28 bits (google/sanitizers#1614).
    if environment.get("MINIGRAD_EMULATOR") == "address" and int(_RANDOM_BITS.read_text()) > 28 and shutil.which("setarch"):
        command = ["setarch", "--addr-no-randomize", *command]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, cwd=_ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
