"""CNN-only, ViT-only and the Conformer on coupling10, with one recipe and the same batches in the same order.

    python -m benchmarks.coupling10_networks [--networks cnn vit conformer] [--steps 1500] [--seed 0] [--lr 1e-3] [--label-smoothing 0]
                                             [--batch-size 64] [--every 150] [--out FILE]

Appends to `benchmarks/results/coupling10-networks.jsonl` a line for each evaluation on the 10,000 test images and, when a network is done, a
last line with `"final": true`, its command, recipe and versions. A network that has such a line for this recipe and seed is skipped, so a
comparison that was broken off goes on with the network it was at. What came of it is in `docs/coupling10.md`.

All have cifar-nano's widths and depth: the branches are those of the Conformer (`conformer/baselines.py`), so they have fewer parameters than
it has. Shares are from 0 to 1; of the class that a network names, its arrangement and its texture are also judged alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.files import RESULTS
from conformer import CONFIGS, CNNBranch, TransformerBranch, data
from conformer.baselines import Build, builder
from conformer.batches import Batch, batches
from conformer.coupling10 import TEXTURES
from conformer.evaluate import by_head, evaluate
from conformer.learner import Learner
from conformer.options import TrainConfig
from conformer.prefetch import prefetched
from conformer.provenance import environment
from minigrad import nn
from minigrad.backend import cpu

CONFIG = "cifar-nano"
NETWORKS: dict[str, tuple[Build, str]] = {  # how to build it, and what the head is called where there is one
    "cnn": (CNNBranch, "cnn"),
    "vit": (TransformerBranch, "transformer"),
    "vit-without-positions": (partial(TransformerBranch, positional_embedding=False), "transformer"),
    "conformer": (builder("conformer"), ""),
}


def cues(model: nn.Module, head: str, dataset: data.Dataset) -> dict[str, dict[str, float]]:
    """Shares of test images whose class, arrangement and texture each head gets right, and the sum of the logits if there are two."""
    logits = by_head(evaluate(model, dataset.test, dataset).heads)
    labels, count, result = dataset.test.labels, len(TEXTURES), {}
    for name, values in logits.items():  # (N, K) each
        named = values.argmax(axis=1)
        right = {"class": named == labels, "arrangement": named // count == labels // count, "texture": named % count == labels % count}
        result[name if len(logits) > 1 else head] = {cue: round(float(share.mean()), 4) for cue, share in right.items()}
    return result


def stream(dataset: data.Dataset, batch_size: int, steps: int) -> Iterator[Batch]:
    """The batches that a run of `conformer train` with this seed sees."""
    return itertools.islice(itertools.chain.from_iterable(batches(dataset, batch_size, epoch) for epoch in itertools.count()), steps)


def train(name: str, recipe: TrainConfig, dataset: data.Dataset, every: int) -> Iterator[dict[str, Any]]:
    """Take the steps of `Trainer`; yields a line for each evaluation, the last one after the last step."""
    assert recipe.max_steps is not None
    build, head = NETWORKS[name]
    learner = Learner(CONFIGS[CONFIG], recipe, recipe.max_steps, build=build)
    learner.model.train()
    parameters = sum(parameter.size for parameter in learner.model.parameters())
    losses: list[float] = []
    began = time.perf_counter()
    with closing(prefetched(stream(dataset, recipe.batch_size, recipe.max_steps))) as source:
        for batch in source:
            losses.append(learner.train_step(batch)[0])
            if learner.step % every == 0 or learner.step == recipe.max_steps:
                line = {"network": name, "parameters": parameters, "step": learner.step, "loss": round(float(np.mean(losses)), 4)}
                yield {**line, "test": cues(learner.model, head, dataset), "seconds": round(time.perf_counter() - began, 1)}
                losses.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["cnn", "vit", "conformer"])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--every", type=int, default=150, help="steps between two evaluations")
    parser.add_argument("--out", type=Path, default=RESULTS / "coupling10-networks.jsonl")
    options = parser.parse_args()
    config = TrainConfig(
        config=CONFIG, dataset="coupling10", max_steps=options.steps, seed=options.seed, lr=options.lr, label_smoothing=options.label_smoothing,
        batch_size=options.batch_size,
    )  # fmt: skip
    named = "config", "dataset", "max_steps", "batch_size", "seed", "lr", "warmup", "weight_decay", "label_smoothing", "clip_norm"
    recipe = {name: getattr(config, name) for name in named}
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {line["network"] for line in lines if line.get("final") and line["recipe"] == recipe}
    dataset = data.load("coupling10")
    cpu.keep_freed_memory()  # as `Trainer.run` does
    for name in options.networks:
        if name in done:
            print(f"{name}: its final line is in {options.out} already", flush=True)
            continue
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        line: dict[str, Any] = {}
        for line in train(name, config, dataset, options.every):
            append(options.out, line | {"started": started, "seed": config.seed})
            shares = "; ".join(f"{head} {share['class']:.1%}" for head, share in line["test"].items())
            print(f"{name}, step {line['step']}: loss {line['loss']:.3f}, {shares} ({line['seconds']:.0f} s)", flush=True)
        command = shlex.join(["python", "-m", "benchmarks.coupling10_networks", *sys.argv[1:]])
        append(options.out, line | {"final": True, "started": started, "seed": config.seed, "recipe": recipe, "command": command} | environment())


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
