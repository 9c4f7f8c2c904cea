"""Peak memory of training: how far the process grows over what it was before the model existed.

    make bench BENCH=memory ARGS="[--configs cifar-nano ...] [--batches 128] [--quick]"

Each figure is from a process of its own: everything is imported and the images are made, then its resident memory is noted and its peak set back;
then come the model, the optimiser and a few steps. Resident memory counts what the C library keeps after it was freed. What the process read
meanwhile of program files (the code of PyTorch's kernels comes in at their first call) is taken off, and noted as library_mib. Linux only.
Ours is measured once more with every ConvTransBlock run again in backward (`Conformer.set_grad_checkpointing`). Read next: `networks.py`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks import measure
from benchmarks.networks import batch_of, training_step
from benchmarks.sides import Side

NAME = "memory"
SIDES = ["minigrad", "torch-channels-last", "torch-tuned"]
STEPS = 3


def resident(field: str) -> float:
    """VmRSS (now), VmHWM (the peak) or RssFile (of it, program files) of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def answer(side: Side, request: dict) -> dict:
    """Peak growth in MiB."""
    if side.framework == "torch":
        for module in ("benchmarks.torch_model", "torch._dynamo"):  # its optimisers import the second
            importlib.import_module(module)
    images = batch_of(request["case"])  # held: both sides make this batch again, and both count it
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now
    before, files = resident("VmRSS"), resident("RssFile")
    step = training_step(side, request["case"])
    built = resident("VmRSS")
    for _ in range(STEPS):
        step()
    del images
    library = resident("RssFile") - files  # pages of code stay once they were read, so this much is in the peak
    figures = {"peak_mib": resident("VmHWM") - before - library, "built_mib": built - before, "library_mib": library, "before_mib": before}
    return {name: [round(value, 1)] for name, value in figures.items()}


def main(argv: list[str] | None = None) -> None:
    options = measure.parse(measure.arguments(__doc__, SIDES, rounds=3, seconds=0, configs=measure.CONFIGS, batches=[128]), argv, answer)
    cases: list[dict] = [{"config": config, "size": 32, "batch": batch} for config in options.configs for batch in options.batches]
    cases += [{**case, "checkpoint": True, "sides": ["minigrad"]} for case in cases]
    measure.run(NAME, cases, options, argv, fresh=True)


if __name__ == "__main__":
    main()
