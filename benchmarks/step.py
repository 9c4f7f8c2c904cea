"""The whole training step of the CIFAR networks, ours beside PyTorch's: forward, backward, clipping, AdamW, on images that are there already.

    make bench BENCH=step ARGS="[--configs cifar-nano ...] [--batches 64 128] [--sides ...] [--quick]"

Every turn is a process of its own, and the sides take turns. The side torch-compile is asked for by --sides: it compiles a whole network for minutes
in every turn (`block.py` has it by default). Read next: `networks.py`, what a step is.
"""

from __future__ import annotations

from benchmarks import measure
from benchmarks.networks import training_step

NAME = "step"
SIDES = ["minigrad", "torch-nchw", "torch-channels-last", "torch-tuned"]


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=3, seconds=1.5)
    parser.add_argument("--configs", nargs="+", default=["cifar-nano", "cifar-micro", "cifar-small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 64])
    options = measure.parse(parser, argv)
    if options.worker:
        return measure.serve(options, measure.timed_answers(training_step, warm_up=1))
    if options.quick:
        options.configs, options.batches = options.configs[:1], [2]
    cases = [{"config": config, "size": 32, "batch": batch} for config in options.configs for batch in options.batches]
    measure.save(NAME, measure.interleaved(NAME, cases, options, fresh=True), options, argv)


if __name__ == "__main__":
    main()
