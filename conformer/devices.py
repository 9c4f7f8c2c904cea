"""Where a network runs: the CPU, or a GPU through CuPy. `--device` in words, and what there is. Read next: `minigrad/backend/cuda.py`."""

from __future__ import annotations

from minigrad.backend import cpu, cuda

__all__ = ["DEVICES", "DeviceError", "choose", "describe"]

DEVICES = "auto", "cpu", "cuda"
"""What `--device` takes."""


class DeviceError(RuntimeError):
    """The device that was asked for cannot be used here; the message is one sentence that says what is missing."""


def choose(device: str) -> str:
    """The device that one of `DEVICES` stands for: "auto" is "cuda" where a GPU and CuPy are there, else "cpu".

    Raises:
        DeviceError: "cuda" was asked for, and is not there.
        ValueError: there is no such device.
    """
    if device not in DEVICES:
        raise ValueError(f"there is no device {device!r}; there are {', '.join(DEVICES)}")
    if device == "cpu":
        return device
    found = cuda.availability()
    if found.usable:
        cuda.connect()
        return "cuda"
    if device == "cuda":
        raise DeviceError(found.sentence)
    return "cpu"


def describe(device: str) -> str:
    """What the device is, such as "CUDA: NVIDIA H100 80GB HBM3 through CuPy 14.2.0" or "CPU, 2 threads"."""
    if device == "cuda":
        return cuda.availability().sentence.removesuffix(".")
    threads = cpu.thread_count()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"
