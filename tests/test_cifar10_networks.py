"""The section of docs/results.md on the three networks: what it says of made-up runs, and that the page has that of the runs there are."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cifar10_networks
from conformer.options import TrainConfig, plain

RECIPE, LENGTH = ({name: plain(TrainConfig())[name] for name in names} for names in (cifar10_networks.RECIPE, cifar10_networks.LENGTH))


def made_up(**changes: Any) -> list[dict[str, Any]]:
    """Three seeds of each network, of 2 epochs."""
    lines = []
    for seed in range(3):
        for network, end in {"conformer": 0.84, "cnn": 0.80, "transformer": 0.7}.items():
            shares = {"cnn": end - 0.01, "transformer": end - 0.02, "sum": end + 0.001 * seed}
            if network != "conformer":
                shares = {"sum": shares["sum"]}
            about = {"config": "cifar-nano", "network": network, "seed": seed, "steps": 780, "dataset": "cifar10", "parameters": 1000 + len(network)}
            about |= {"train_images": 50_000, "test_images": 10_000, "started": f"2027-01-0{1 + seed}T01:00:00", "device": "CPU, 2 threads"}
            tests = [{"epoch": 1.0, "sum": 0.4}, {"epoch": 2.0, **shares}]
            lines.append(
                about | {"recipe": RECIPE, "length": LENGTH | {"epochs": 2}, "figures": shares | {"seconds": 600.0}, "tests": tests} | changes
            )
    return lines


def test_the_section_says_what_the_runs_came_to() -> None:
    text = cifar10_networks.section(made_up())
    assert "study OUT --seeds 0 1 2 --configs cifar-nano --networks conformer cnn transformer --epochs 2 --data-dir DIR" in text
    assert "| `cifar-nano` | 1,009 | 23.0 M | 83.00 | 82.00 | **84.10** | 0.10 |" in text
    assert "| `cifar-nano-cnn` | 1,003 | 8.8 M |  |  | **80.10** | 0.10 |" in text
    assert "| `cifar-nano-transformer` | 40.00 | 70.10 |" in text
    assert "trained by the recipe above for 2 epochs of batches of 128, 780 steps, under the same seeds: 0, 1, 2." in " ".join(text.split())
    assert "begun on 2027-01-01 to 2027-01-03" in " ".join(text.split())
    assert "* cifar-nano-cnn less cifar-nano: -4.00 points of accuracy, standard error 0.08; were both equally good" in " ".join(text.split())
    for remark in (
        "* No figure here includes that the 10,000 test images, the same for all runs, are a sample too: by that alone an accuracy of 84.10 % has",
        "* These are 2 comparisons, each judged alone",
        "* The networks differ in size, from 1,003 to 1,011 parameters: how much",
    ):
        assert remark in " ".join(text.split())
    other = cifar10_networks.section(made_up(recipe=RECIPE | {"lr": 0.001, "drop_path": 0.1}))
    assert "recipe above, but for --lr 0.001, --drop-path 0.1, for 2 epochs" in " ".join(other.split())
    assert "--networks conformer cnn transformer --epochs 2 --lr 0.001 --drop-path 0.1 --data-dir DIR" in other
    lines = made_up(config="cifar-micro", length=LENGTH | {"epochs": 2, "eval_epochs": 2})
    rarely = cifar10_networks.section([line | {"tests": line["tests"][1:]} for line in lines])
    assert "OUT --seeds 0 1 2 --configs cifar-micro --networks" in rarely and "--epochs 2 --eval-epochs 2" in rarely
    assert "| after epoch | 2 |" in rarely
    with pytest.raises(ValueError, match="the runs differ in steps, and are to be compared"):
        cifar10_networks.section([*made_up(), made_up(steps=3)[0]])
    with pytest.raises(ValueError, match="the runs are on coupling10, and the section is about cifar10"):
        cifar10_networks.section(made_up(dataset="coupling10"))


def test_the_section_is_put_into_the_page_and_replaced() -> None:
    page = cifar10_networks.PAGE.read_text(encoding="utf-8")
    if cifar10_networks.TITLE in page:
        before, _, rest = page.partition(cifar10_networks.TITLE)
        page = before + cifar10_networks.NEXT + rest.partition(cifar10_networks.NEXT)[2]
    first, second = (cifar10_networks.section(made_up(test_images=images)) for images in (10_000, 20_000))
    once = cifar10_networks.with_section(page, first)
    assert once.replace(first + "\n", "") == page and once.count(cifar10_networks.TITLE) == 1
    assert cifar10_networks.with_section(once, second) == cifar10_networks.with_section(page, second)


def test_the_page_has_the_section_of_the_runs() -> None:
    """It comes with the file of results, and goes with it."""
    page, file = cifar10_networks.PAGE.read_text(encoding="utf-8"), cifar10_networks.FILE
    if not file.exists():
        assert cifar10_networks.TITLE not in page
        return
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert cifar10_networks.section(lines) in page


def test_a_study_becomes_lines_and_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_network: str) -> None:
    from conformer.data import Dataset, Split
    from conformer.findings import Run
    from conformer.train import Trainer

    numbers = np.random.default_rng(0)
    train, test = (Split(numbers.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), numbers.integers(0, 10, n)) for n in (8, 5))
    dataset = Dataset("cifar10", tuple("abcdefghij"), (0.5,) * 3, (0.2,) * 3, train, test, "a test")
    runs = []
    for network in ("conformer", "cnn"):
        options = TrainConfig(config=tiny_network, network=network, out=tmp_path / network, max_steps=1, batch_size=8)
        result = Trainer(options, dataset=dataset).run()
        figures = result.test.by_head() | {"seconds": 1.0}
        runs.append(Run(result.folder, tiny_network, 0, True, 1, 1, figures, "CPU", network=network))

    class Made:
        def __init__(self) -> None:
            self.runs = [*runs, Run(tmp_path, tiny_network, 1)]

    lines = cifar10_networks.lines_of(Made())  # type: ignore[arg-type]
    assert [(line["network"], line["tests"][-1]["sum"]) for line in lines] == [(run.network, run.figures["sum"]) for run in runs]
    assert str(tmp_path) not in json.dumps(lines)
    assert "`tiny-cnn`" in cifar10_networks.section(lines)
    known = [json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0]).get("revision") for run in runs]
    assert [line["revision"] for line in lines] == known

    tuned = Trainer(replace(options, out=tmp_path / "tuned", finetune=runs[1].path), dataset=dataset).run().folder
    held = Path(shutil.copytree(runs[1].path, tmp_path / "held"))
    (held / "metrics.jsonl").write_text((held / "metrics.jsonl").read_text().replace("test_", "held_out_"))
    for path in (tuned, held):
        runs[:] = [replace(runs[-1], path=path)]
        with pytest.raises(ValueError, match="has images held out, or did not begin anew; give a study without --hold-out and --finetune"):
            cifar10_networks.lines_of(Made())  # type: ignore[arg-type]
