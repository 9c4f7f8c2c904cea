"""Peak memory of training: how far the process grows over what it was before the model existed.

    make bench BENCH=memory ARGS="[--configs cifar-nano ...] [--batches 128] [--quick]"

Each figure is from a process of its own: everything is imported and the images are made, then its resident memory is noted and its peak set back;
then come the model, the optimiser and a few steps. Resident memory counts what the C library keeps after it was freed, so that PyTorch is measured
as it comes too. Linux only. Read next: `networks.py`.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Side
from benchmarks.networks import batch_of, training_step

NAME = "memory"
SIDES = ["minigrad", "torch-channels-last", "torch-tuned"]
STEPS = 3


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak) of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def answer(side: Side, request: dict) -> dict:
    """Peak growth in MiB."""
    if side.framework == "torch":
        import benchmarks.torch_model  # noqa: F401
    else:
        import conformer.learner  # noqa: F401
    images = batch_of(request["case"])  # held: both sides make this batch again, and both count it
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now
    before = resident("VmRSS")
    step = training_step(side, request["case"])
    built = resident("VmRSS")
    for _ in range(STEPS):
        step()
    del images
    return {"peak_mib": [round(resident("VmHWM") - before, 1)], "built_mib": [round(built - before, 1)], "before_mib": [round(before, 1)]}


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=1, seconds=0)
    parser.add_argument("--configs", nargs="+", default=["cifar-nano", "cifar-micro", "cifar-small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128])
    options = measure.parse(parser, argv)
    if options.worker:
        return measure.serve(options, answer)
    if options.quick:
        options.configs, options.batches = options.configs[:1], [2]
    cases = [{"config": config, "size": 32, "batch": batch} for config in options.configs for batch in options.batches]
    measure.save(NAME, measure.interleaved(NAME, cases, options, fresh=True), options, argv)


if __name__ == "__main__":
    main()
