"""Time to the answer for one image, and images a second in batches of 256: no graph, batch norm with its running statistics.

    make bench BENCH=inference ARGS="[--configs cifar-nano ...] [--batches 1 256] [--quick]"

Read next: `networks.py`, what is run.
"""

from __future__ import annotations

from benchmarks import measure
from benchmarks.networks import inference
from benchmarks.sides import timed_answers

NAME = "inference"
SIDES = ["minigrad", "torch-nchw", "torch-channels-last", "torch-tuned"]


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=2, seconds=1.0, configs=measure.CONFIGS, batches=[1, 256])
    options = measure.parse(parser, argv, timed_answers(inference, warm_up=5))
    if options.quick:
        options.batches = [1, 2]
    cases = [{"config": config, "size": 32, "batch": batch} for config in options.configs for batch in options.batches]
    measure.run(NAME, cases, options, argv, fresh=True)


if __name__ == "__main__":
    main()
