"""What a study says of its runs: the tables against NumPy, and what is said of few runs, of none, and of those that diverged or are not finished."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conformer.findings import Findings, Run
from conformer.spread import student_95
from conformer.study import Study


def runs(accuracies: dict[str, list[float]], averaged: bool = False) -> list[Run]:
    """Finished runs that came to these accuracies by the sum of both heads."""
    return [
        Run(Path(f"{config}-seed-{seed}"), config, seed, True, 100, 100, figures(share, averaged), "CPU")
        for config, shares in accuracies.items()
        for seed, share in enumerate(shares)
    ]


def found(accuracies: dict[str, list[float]], averaged: bool = False) -> Findings:
    return Findings(runs(accuracies, averaged), "cifar10")


def figures(share: float, averaged: bool) -> dict[str, float]:
    return {
        "cnn": share - 0.02,
        "transformer": share - 0.03,
        "sum": share,
        "seconds": 1e4 * share,
        **({"ema_cnn": 0.1, "ema_transformer": 0.2, "ema_sum": 0.3} if averaged else {}),
    }


NANO, MICRO = [0.8366, 0.8491, 0.8402, 0.8388], [0.8611, 0.8532, 0.8705]


def test_the_table_is_what_numpy_makes_of_the_runs(tmp_path: Path) -> None:
    nano, micro = np.array(NANO), np.array(MICRO)
    study = Study(tmp_path / "study")
    study.data = {"name": "cifar10", "notice": "", "fingerprint": "0"}
    study.runs = runs({"cifar-nano": NANO, "cifar-micro": MICRO})
    lines = study.findings().text().splitlines()
    assert lines[0] == "cifar-nano on cifar10: 4 runs of 100 steps, seeds 0, 1, 2, 3"
    assert lines[1].startswith("test accuracy at the end in percent, and time  ") and lines[5].startswith("seconds, with evaluations  ")
    assert lines[1].split()[-4:] == ["mean", "deviation", "smallest", "largest"]
    for line, name, values in [
        (lines[2], "CNN head", 100 * nano - 2),
        (lines[3], "transformer head", 100 * nano - 3),
        (lines[4], "sum of both", 100 * nano),
        (lines[8 + 3 - 1], "transformer head", None),
        (lines[8 + 3], "sum of both", 100 * micro),
    ]:
        assert line.startswith(name)
        if values is not None:
            assert line.split()[-4:] == [f"{value:.2f}" for value in (values.mean(), values.std(ddof=1), values.min(), values.max())]
    assert lines[5].split()[-4:] == [f"{value:,.1f}" for value in (1e4 * nano.mean(), 1e4 * nano.std(ddof=1), 8366, 8491)]
    assert not any("average of the weights" in line for line in lines)

    parts = [values.var(ddof=1) / len(values) for values in (micro, nano)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    error = np.sqrt(sum(parts))
    assert study.findings().differences == {"cifar-micro": pytest.approx((micro.mean() - nano.mean(), error, freedom), rel=1e-12)}
    assert 3 < freedom < 4
    (said,) = [line for line in lines if line.startswith("cifar-micro less cifar-nano")]
    assert f": {100 * (micro.mean() - nano.mean()):+.2f} points of accuracy by the sum of both, standard error {100 * error:.2f}; " in said
    assert f"more than {100 * error * student_95(freedom):.2f} points" in said
    assert not any("Fewer than 3" in line for line in lines) and lines[-1] == "Trained on: CPU."

    study.save()
    saved = json.loads((tmp_path / "study" / "study.json").read_text())
    assert saved["networks"]["cifar-nano"]["sum"] == pytest.approx(
        {"runs": 4, "mean": nano.mean(), "deviation": nano.std(ddof=1), "smallest": nano.min(), "largest": nano.max()}, rel=1e-12
    )
    difference = {"standard_error": error, "degrees_of_freedom": freedom, "by_chance": error * student_95(freedom)}
    assert saved["differences"]["cifar-micro"] == pytest.approx({"mean": micro.mean() - nano.mean(), **difference}, rel=1e-12)
    page = (tmp_path / "study" / "study.md").read_text()
    assert page.startswith("# cifar-nano and cifar-micro on cifar10\n\n```sh\nconformer study ")
    values = (100 * micro.mean(), 100 * micro.std(ddof=1), 100 * micro.min(), 100 * micro.max())
    assert f"| sum of both | {' | '.join(f'{value:.2f}' for value in values)} |\n" in page
    assert f"\n* {said}\n" in page


def test_what_is_said_of_one_run_of_two_of_unlike_ones_and_of_none() -> None:
    one = found({"cifar-nano": [0.8]}, averaged=True).text()
    assert "deviation" not in one and "mean" not in one and "one run" in one
    assert [line.split()[-1] for line in one.splitlines()[2:9]] == ["78.00", "77.00", "80.00", "10.00", "20.00", "30.00", "8,000.0"]
    assert "sum of both, average of the weights" in one
    assert "Fewer than 3 seeds say next to nothing about chance: add some with --seeds." in one
    two = found({"cifar-nano": [0.8, 0.81], "cifar-micro": [0.8, 0.82]}).text()
    assert "+0.50 points of accuracy by the sum of both, standard error 1.12.\n" in two and "standard errors are Welch's.\nFewer than 3 seeds" in two
    unlike = found({"cifar-nano": NANO, "cifar-micro": [0.86]}).text()
    assert "points of accuracy by the sum of both; a standard error takes two runs of each.\nFewer than 3 seeds" in unlike
    third = found({"cifar-nano": NANO, "cifar-micro": MICRO, "cifar-small": [0.8, 0.9]}).text()
    assert re.search(r"cifar-micro less .* by chance\.\ncifar-small less .*, standard error \d\.\d\d\.\nThe runs count as independent", third)
    assert "comparisons" not in third  # one alone is judged
    equal = found({"cifar-nano": [0.5] * 3, "cifar-micro": [0.75] * 3})
    assert equal.differences == {"cifar-micro": (0.25, 0.0, None)} and "standard error 0.00.\n" in equal.text()
    (run, *_) = runs({"cifar-nano": NANO})
    none = Findings([replace(run, figures=None, step=50), Run(Path("cifar-nano-seed-9"), "cifar-nano", 9)], "cifar10")
    assert none.text() == "Not finished: cifar-nano-seed-0 (step 50 of 100 saved), cifar-nano-seed-9 (not begun)."
    assert none.differences == {}


def test_nothing_else_stands_in_for_the_first_network() -> None:
    whole = found({"cifar-nano": NANO, "cifar-micro": MICRO, "cifar-small": MICRO})
    assert list(whole.differences) == ["cifar-micro", "cifar-small"] and "no finished run" not in whole.text()
    rest = Findings([replace(run, figures=None) if run.config == "cifar-nano" else run for run in whole.runs], "cifar10")
    assert rest.differences == {} and " less " not in rest.text()
    assert "\ncifar-nano, which the others are compared with, has no finished run.\n" in rest.text()


def test_each_run_is_shown_beside_the_size_of_its_network() -> None:
    """Of a seed that a network does not have, of a size that is not known, and of one run alone there is nothing."""
    nano, micro = {"parameters": 1_071_880, "macs": 23_010_240}, {"parameters": 345_678, "macs": None}
    all_runs = runs({"cifar-nano": NANO, "cifar-micro": MICRO}, averaged=True)
    these = [replace(run, **(nano if run.config == "cifar-nano" else micro)) for run in all_runs]
    both = Findings(these, "cifar10")
    table = both.text().partition("\nEach run on cifar10: sum of both\n")[2].partition("\n\n")[0].splitlines()
    assert [re.split(r"  +", line) for line in table] == [
        ["test accuracy at the end in percent", "parameters", "MACs an image", "seed 0", "seed 1", "seed 2", "seed 3"],
        ["cifar-nano", "1,071,880", "23.0 M", "83.66", "84.91", "84.02", "83.88"],
        ["cifar-micro", "345,678", "-", "86.11", "85.32", "87.05", "-"],
    ]
    page = both.markdown([])
    assert (
        "## Each run on cifar10: sum of both\n\n| test accuracy" in page and "\n| cifar-micro | 345,678 | - | 86.11 | 85.32 | 87.05 | - |\n" in page
    )
    size = "The networks differ in size, from 345,678 to 1,071,880 parameters: how much of a difference comes of that, these runs do not tell.\n"
    assert size in page and size not in Findings([replace(run, parameters=5) for run in these], "cifar10").markdown([])
    assert size not in Findings([replace(run, figures=None) if run.config == "cifar-nano" else run for run in these], "cifar10").markdown([])
    old = Findings(runs({"cifar-nano": NANO}), "cifar10").text()
    assert "parameters" not in old and "MACs" not in old and "\ncifar-nano" in old.partition("Each run")[2]
    assert "Each run" not in Findings(these[:1], "cifar10").text()


def test_how_differences_were_found_is_said() -> None:
    """By which test, of which weights, how many at once, and on which images."""
    three = {"cifar-nano": NANO, "cifar-micro": MICRO, "cifar-small": MICRO}
    text = found(three).text()
    welch = "The runs count as independent, not as pairs of one seed: standard errors are Welch's"
    assert f"\n{welch}, and what chance would do is by Student's distribution, two-sided, at 95 %.\n" in text
    judged = "comparisons, each judged alone: were all networks equally good, at least one would find more than it names by chance in about one to"
    assert f"\nThese are 2 {judged} 2 studies in 20.\n" in text
    many = {f"cifar-{number}": MICRO for number in range(26)}
    assert f"\nThese are 25 {judged} 20 studies in 20.\n" in found(many).text()
    assert "comparisons" not in found({"cifar-nano": NANO, "cifar-micro": MICRO}).text() and "Welch" not in found({"cifar-nano": NANO}).text()
    assert "average" not in text
    which = "points of accuracy by the sum of both, with the last weights and not their average, standard error"
    assert found(three, averaged=True).text().count(which) == 2

    on = [replace(run, images=10_000) for run in runs({"cifar-nano": [0.83, 0.85]})]
    said = "\nNo figure here includes that the 10,000 test images, the same for all runs, are a sample too: by that alone "
    assert f"{said}an accuracy of 84.00 % has a standard error of 0.37 points.\n" in Findings(on, "cifar10").text()
    for some in (on[:1], [on[0], replace(on[1], images=500)], runs({"cifar-nano": NANO})):
        assert "sample too" not in Findings(some, "cifar10").text()


def test_different_steps_that_a_time_budget_fixed_are_said() -> None:
    first, second, *others = runs({"cifar-nano": NANO})
    longer = replace(second, steps=1234)
    text = Findings([first, longer, *others], "cifar10").text()
    assert "4 runs of 100 to 1,234 steps, seeds 0, 1, 2, 3\n" in text
    said = "\nThe runs of cifar-nano took different numbers of steps, since a time budget fixed them run by run, which the deviation includes.\n"
    assert said in text
    assert "different numbers" not in Findings([first, replace(longer, figures=None), *others], "cifar10").text()


def test_accuracies_on_held_out_images_are_called_so() -> None:
    said = "The accuracies are on training images that were held out, to choose by: what is chosen looks better on them than it is."
    held_out = [replace(run, measured="held-out") for run in runs({"cifar-nano": NANO, "cifar-micro": MICRO})]
    for text in (Findings(held_out, "cifar10").text(), Findings(held_out, "cifar10").markdown(["command"])):
        assert text.count("held-out accuracy at the end in percent, and time") == 2 and text.count(said) == 1 and "test" not in text
    assert "held" not in found({"cifar-nano": NANO, "cifar-micro": MICRO}).text()


def test_what_the_runs_say_of_themselves_is_said_once_besides_what_is_said_of_the_data() -> None:
    first, second, *others = runs({"cifar-nano": NANO})
    noted = [replace(second, notice="MADE."), *(replace(run, notice="MADE. Seen before.") for run in (first, *others))]
    for notice in ("MADE.", "MADE"):
        lines = Findings(noted, "cifar10", notice).text().splitlines()
        assert [line for line in lines if "MADE" in line or "Seen" in line] == [notice, "Seen before."]
    unfinished = replace(first, notice="Seen before.", figures=None)
    assert "Seen" not in Findings([unfinished, second, *others], "cifar10").text()


def test_a_notice_stands_above_the_tables_and_names_are_shown_as_a_terminal_takes_them() -> None:
    (run, *_) = runs({"cifar-nano": NANO})
    odd = Findings([replace(run, config="a\nb")], "c\x1bd", "NOT WHAT\twas asked for")
    assert odd.text().splitlines()[:3] == [r"NOT WHAT\twas asked for", "", r"a\nb on c\x1bd: 1 run of 100 steps, seed 0"]
    assert odd.markdown(["command"]).startswith("# a\\nb on c\\x1bd\n\nNOT WHAT\\twas asked for\n\n```sh\ncommand\n```\n\n## a\\nb on c\\x1bd: 1 run")
