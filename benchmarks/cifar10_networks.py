"""The Conformer and each of its branches alone on CIFAR-10, from a study of theirs: a file of results, and the section of docs/results.md.

    python -m conformer study OUT --seeds 0 1 2 --configs cifar-nano --networks conformer cnn transformer --epochs 5 --data-dir DIR
    python -m benchmarks.cifar10_networks OUT

The study trains them by one recipe, one seed after the other, and goes on with what was broken off when it is asked again. The second command
writes a line for each of its finished runs to `benchmarks/results/cifar10-networks.jsonl`, which is made anew, and the section.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.files import RESULTS, ROOT
from benchmarks.tables import table
from conformer.cifar import CIFAR10
from conformer.config import CONFIGS
from conformer.findings import Findings, Run
from conformer.info import count
from conformer.options import TrainConfig, not_default, words_of
from conformer.run_folder import read_config
from conformer.run_log import read_log
from conformer.study import Study
from conformer.study_plan import commands_of

FILE = RESULTS / "cifar10-networks.jsonl"
PAGE = ROOT / "docs" / "results.md"
TITLE = "## The Conformer beside each of its branches alone"
NEXT = "## The same training in PyTorch, step by step"
EPOCHS = 1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 300
RECIPE = "batch_size", "accumulate", "precision", "lr", "warmup", "weight_decay", "label_smoothing", "clip_norm", "drop_path", "cutout", "ema", "tta"
LENGTH = "epochs", "max_steps", "time_budget", "eval_epochs"
"""What else of a study's options is in its command here, besides the recipe."""


def lines_of(study: Study) -> list[dict[str, Any]]:
    """A line for each finished run of a study; raises ValueError for runs that the section does not describe."""
    lines = []
    for run in study.runs:
        if run.figures is None:
            continue
        log, options = read_log(run.path), read_config(run.path)
        if log.measured != "test" or options["finetune"]:
            raise ValueError(f"the run in {run.path} has images held out, or did not begin anew; give a study without --hold-out and --finetune")
        header = {name: log.header[name] for name in ("dataset", "parameters", "train_images", "test_images", "started", "device", "versions")}
        header["revision"] = log.header.get("revision")
        tests = [{"epoch": line["epoch"], **line["test_accuracy"]} for line in log.tests]
        recipe, length = ({name: options[name] for name in names} for names in (RECIPE, LENGTH))
        lines.append(
            {"config": run.config, "network": run.network, "seed": run.seed, "steps": run.steps, **header, "recipe": recipe}
            | {"length": length, "figures": run.figures, "tests": tests}
        )
    return lines


def section(lines: Sequence[dict[str, Any]]) -> str:
    """The section of docs/results.md, of the lines of all runs.

    Raises:
        ValueError: they differ in the recipe, the data or the number of steps, or are of something else than the section says.
    """
    first = lines[0]
    if first["dataset"] != CIFAR10.name:
        raise ValueError(f"the runs are on {first['dataset']}, and the section is about {CIFAR10.name}")
    for name in ("config", "dataset", "train_images", "test_images", "steps", "recipe", "length"):
        if any(line[name] != first[name] for line in lines):
            raise ValueError(f"the runs differ in {name}, and are to be compared")
    shared = "config", "seed", "steps", "figures", "device", "network", "parameters"
    runs = [
        Run(Path(), **{name: line[name] for name in shared}, begun=True, step=line["steps"], images=line["test_images"])  # finished
        for line in lines
    ]
    findings = Findings(runs, "CIFAR-10")
    seeds = dict.fromkeys(line["seed"] for line in lines)
    measured = {test["epoch"] for test in first["tests"]}
    last = max(measured)
    epochs = [epoch for epoch in EPOCHS if epoch in measured and epoch < last] + [last]
    sizes, curves = [], []
    for name, some in findings.finished.items():
        of = [line for line, run in zip(lines, runs, strict=True) if run in some]
        macs = count(CONFIGS[first["config"]], network=of[0]["network"]).macs
        means = findings.spreads[name]
        shares = [f"{100 * means[head].mean:.2f}" if head in means else "" for head in ("cnn", "transformer")]
        deviation = f"{100 * means['sum'].deviation:.2f}" if means["sum"].deviation is not None else "–"
        sizes.append([f"`{name}`", f"{of[0]['parameters']:,}", f"{macs / 1e6:.1f} M", *shares, f"**{100 * means['sum'].mean:.2f}**", deviation])
        tests = [{test["epoch"]: test["sum"] for test in line["tests"]} for line in of]
        curves.append([f"`{name}`", *(f"{100 * fmean(test[epoch] for test in tests):.2f}" for epoch in epochs)])
    columns = ["network", "parameters", "MACs per image", "CNN head", "transformer head", "its answer", "deviation"]
    days = sorted({line["started"][:10] for line in lines})
    recipe, other = first["recipe"], words_of(not_default(first["recipe"]))
    studies = commands_of(Path("OUT"), runs, TrainConfig(**recipe, **first["length"]))
    commands = [*(f"{study} --data-dir DIR" for study in studies), "benchmarks.cifar10_networks OUT"]
    but_for = f", but for {', '.join(other)}," if other else ""
    text = f"""The branches alone have the blocks, the stem, the widths and the depth that they have in `{first["config"]}`
        (`conformer/baselines.py`), so they are smaller than it is. All were trained by the recipe above{but_for} for {last:g} epochs of batches of
        {recipe["batch_size"]}, {first["steps"]:,} steps, under the same seeds: {", ".join(map(str, seeds))}. A seed fixes the order of the images and
        how each is moved. Means over the seeds, in percent of {first["test_images"]:,} test images, after the last step; a network of one head
        answers by it, the Conformer by the sum of both ([the runs of the networks](../benchmarks/results/{FILE.name}), begun on
        {" to ".join(dict.fromkeys((days[0], days[-1])))}):"""
    parts = [
        TITLE,
        "\n".join(["```sh", *(f".venv/bin/python -m {command}" for command in commands), "```"]),
        _wrapped(text),
        table(columns, sizes),
        "Its answer after so many epochs, likewise:",
        table(["after epoch", *(f"{epoch:g}" for epoch in epochs)], curves),
        "\n".join(_wrapped(f"* {remark}") for remark in findings.remarks()),
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    """A paragraph in lines as long as the page's."""
    indent = "  " * text.startswith("* ")
    return textwrap.fill(" ".join(text.split()), 175, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def with_section(page: str, text: str) -> str:
    """The page with the section, in place of the one that it has."""
    before, _, rest = page.partition(TITLE if TITLE in page else NEXT)
    after = rest.partition(NEXT)[2] if TITLE in page else rest
    return f"{before}{text}\n{NEXT}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="its folder")
    parser.add_argument("--out", type=Path, default=FILE, help="the file of results")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose section is written")
    options = parser.parse_args()
    try:
        lines = lines_of(Study.existing(options.study))
        if not lines:
            raise ValueError("no run of the study is finished")
        text = section(lines)
    except ValueError as error:
        raise SystemExit(f"{options.study}: {error}") from error
    options.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    options.page.write_text(with_section(options.page.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
