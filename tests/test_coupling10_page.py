"""The figures of docs/coupling10.md, which is written by hand, are those of the runs in benchmarks/results/."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.files import RESULTS, ROOT
from conformer import CONFIGS
from conformer.info import count
from conformer.options import TrainConfig

STEPS = 150, 300, 450, 600, 750, 900, 1500
NETWORKS = {"cnn": "cnn", "vit": "transformer", "conformer": "conformer"}
"""What they are called in the file, and in `conformer.baselines`."""


@pytest.fixture(scope="module")
def page() -> str:
    """Without line breaks."""
    return " ".join((ROOT / "docs" / "coupling10.md").read_text(encoding="utf-8").split())


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / f"coupling10-{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def test_the_table_of_the_networks(page: str) -> None:
    lines = lines_of("networks")
    shares: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for line in lines:
        for head, cues in line["test"].items():
            shares.setdefault((line["network"], head), {})[line["step"]] = cues
    sizes = {line["network"]: line["parameters"] for line in lines}
    names = {
        ("cnn", "cnn"): "CNN-only (`cnn`)",
        ("vit", "transformer"): "ViT-only (`vit`, with positions)",
        ("conformer", "cnn"): "Conformer, CNN head",
        ("conformer", "transformer"): "Conformer, transformer head",
        ("conformer", "sum"): "**Conformer, sum of both**",
    }
    assert set(shares) == set(names) and all(set(STEPS) <= set(steps) for steps in shares.values())
    assert "after so many steps ([raw figures of the three networks](../benchmarks/results/coupling10-networks.jsonl))" in page
    assert f"| MACs per image | {' | '.join(f'{step:,}' for step in STEPS)} |" in page
    for (network, head), steps in shares.items():
        counted = count(CONFIGS["cifar-nano"], network=NETWORKS[network])
        assert counted.parameters == sizes[network]
        about = f"| {sizes[network]:,} | {counted.macs / 1e6:.1f} M |" if (network, head) not in list(names)[2:4] else "| | |"
        assert f"| {names[network, head]} {about} {' | '.join(percent(steps[step]['class']) for step in STEPS)} |" in page


def test_the_sentences_on_the_networks(page: str) -> None:
    by = {(line["network"], line["step"]): line["test"] for line in lines_of("networks")}
    (last,) = [line for line in lines_of("networks") if line.get("final") and line["network"] == "conformer"]
    recipe, test_images = last["recipe"], 10_000
    assert by["cnn", 1500]["cnn"]["class"] == by["conformer", 1500]["sum"]["class"] == 1
    assert f"CNN-only ends with all {test_images:,} test images right" in page
    heads = percent(by["conformer", 300]["cnn"]["class"]), percent(by["cnn", 300]["cnn"]["class"])
    assert "(at step 300 its CNN head has {} % right, CNN-only {} %)".format(*heads) in page
    assert f"textures after 150 steps ({percent(by['vit', 150]['transformer']['texture'])} %)" in page
    assert f"never learns the arrangement ({percent(by['vit', 1500]['transformer']['arrangement'])} % at the end)" in page
    works = [count(CONFIGS["cifar-nano"], network=name) for name in ("conformer", "cnn")]
    assert round(works[0].parameters / works[1].parameters) == 4 and f"{works[0].macs / works[1].macs:.1f} times the work per image" in page
    assert f"{round(recipe['warmup'] * recipe['max_steps'])} steps of warm-up and a cosine, weight decay {recipe['weight_decay']}" in page
    assert f"seed {recipe['seed']} and {recipe['max_steps']:,} steps of {recipe['batch_size']} images" in page


def test_the_table_of_the_recipes(page: str) -> None:
    runs: dict[tuple[float, float], list[dict[str, Any]]] = {}
    waiting: list[dict[str, Any]] = []
    for line in lines_of("recipes"):  # the recipe is on a run's last line
        waiting.append(line)
        if line.get("final"):
            runs[line["recipe"]["lr"], line["recipe"]["label_smoothing"]] = waiting
            waiting = []
    assert len(runs) == 3 and not waiting
    for (lr, smoothing), lines in runs.items():
        left = [(line["step"], head) for line in lines for head in ("cnn", "transformer") if line["test"][head]["arrangement"] > 0.55]
        when = f"{ {'cnn': 'CNN', 'transformer': 'transformer'}[left[0][1]] } head, step {left[0][0]}" if left else "no"
        ends = " / ".join(percent(lines[-1]["test"][head]["class"]) for head in ("cnn", "transformer", "sum"))
        assert f"| {lr:.0e} | {smoothing:g} | {when} | {ends} |".replace("e-0", "e-") in page


def test_the_run_of_the_default_recipe(page: str) -> None:
    header, *lines = lines_of("4-epochs")
    tests = [" / ".join(percent(line["test_accuracy"][head]) for head in ("cnn", "transformer", "sum")) for line in lines if "test_accuracy" in line]
    assert len(tests) == 4 and len(set(tests[1:])) == 1
    assert f"{tests[0]} after the first epoch, {tests[1]} after the second, third and fourth" in page
    usual = TrainConfig()
    asked = f"{usual.lr:.0e}, smoothing {usual.label_smoothing}, batch {usual.batch_size}, {len(tests)} epochs".replace("e-0", "e-")
    assert asked in page and header["steps"] == len(tests) * (header["train_images"] // usual.batch_size)
