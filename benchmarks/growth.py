"""How the time of a training step grows with the batch, the resolution, the depth and the width, from cifar-nano at batch 64.

    make bench BENCH=growth ARGS="[--vary batch size depth width] [--quick]"

Width multiplies the channels of the CNN branch, the tokens' width and the number of heads together. Read next: `networks.py`.
"""

from __future__ import annotations

from benchmarks import measure
from benchmarks.networks import training_step
from benchmarks.sides import timed_answers
from conformer.config import named_config

NAME = "growth"
SIDES = ["minigrad", "torch-tuned"]
START = {"config": "cifar-nano", "size": 32, "batch": 64}


def widened(factor: int) -> dict:
    """The changes that make cifar-nano `factor` times as wide."""
    config = named_config(START["config"])
    return {name: getattr(config, name) * factor for name in ("channel_ratio", "embed_dim", "num_heads")}


def cases_of(vary: list[str], quick: bool) -> list[dict]:
    """Each case says what varies and the value; the others are cifar-nano's."""
    values = {"batch": [8, 32, 128], "size": [16, 32, 64, 96], "depth": [3, 6, 12], "width": [1, 2, 4]}
    if quick:
        values = {"batch": [2, 4], "size": [16, 32], "depth": [3, 6], "width": [1, 2]}
    start = {**START, "batch": 2} if quick else START
    cases = []
    for vary_this in vary:
        for value in values[vary_this]:
            changes = {"depth": value} if vary_this == "depth" else widened(value) if vary_this == "width" else {}
            own = {vary_this: value} if vary_this in start else {}
            cases.append({**start, **own, "changes": changes, "varied": vary_this, "value": value})
    return cases


def label(case: dict) -> str:
    return f"{case['varied']} {case['value']}"


def main(argv: list[str] | None = None) -> None:
    parser = measure.arguments(__doc__, SIDES, rounds=2, seconds=0.7)
    parser.add_argument("--vary", nargs="+", choices=["batch", "size", "depth", "width"], default=["batch", "size", "depth", "width"])
    options = measure.parse(parser, argv, timed_answers(training_step))
    measure.run(NAME, cases_of(options.vary, options.quick), options, argv, fresh=True, label=label)


if __name__ == "__main__":
    main()
