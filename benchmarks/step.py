"""The whole training step of the CIFAR networks, ours beside PyTorch's: forward, backward, clipping, AdamW, on images that are there already.

    make bench BENCH=step ARGS="[--configs cifar-nano ...] [--batches 64 128] [--sides ...] [--quick]"

Every turn is a process of its own, and the sides take turns. Three steps come before the first that counts: PyTorch's second and third are slower
than those after them. torch.compile takes part at the largest batch alone, since it compiles a whole network for a minute or more in every turn.
Read next: `networks.py`, what a step is.
"""

from __future__ import annotations

from benchmarks import measure
from benchmarks.networks import training_step
from benchmarks.sides import timed_answers

NAME = "step"
SIDES = ["minigrad", "torch-nchw", "torch-channels-last", "torch-tuned", "torch-compile"]
WARM_UP, LEAST = 3, 5  # steps before the first that counts, and of those that count


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=3, seconds=1.5, configs=measure.CONFIGS, batches=[128, 64])
    options = measure.parse(parser, argv, timed_answers(training_step, WARM_UP))
    if not options.quick:
        options.least = LEAST
    cases = []
    for config in options.configs:
        for batch in options.batches:
            sides = [side for side in options.sides if side != "torch-compile" or batch == max(options.batches)]
            cases.append({"config": config, "size": 32, "batch": batch, "sides": sides})
    measure.run(NAME, cases, options, argv, fresh=True, warm_up=WARM_UP, least=options.least)


if __name__ == "__main__":
    main()
