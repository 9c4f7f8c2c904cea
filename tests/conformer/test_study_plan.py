"""Which runs a study has: those that are added to others, and the commands that make them; what study.json may say is in `test_study.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformer import cli
from conformer.findings import Run
from conformer.options import TrainConfig
from conformer.study_plan import Key, StudyError, commands_of, with_added


def test_what_is_added_takes_the_rest_from_what_is_there() -> None:
    """And the same once more adds nothing."""
    assert with_added([], (), (), ()) == [Key("cifar-nano", "conformer", seed) for seed in (0, 1, 2)]
    there = with_added([], (4,), ("cifar-micro",), ("cnn",))
    assert there == [Key("cifar-micro", "cnn", 4)] == with_added(there, (), (), ())
    added = [((5, 4), (), ()), ((), ("cifar-nano",), ()), ((), (), ("own", "cnn")), ((6,), ("cifar-nano",), ("transformer",))]
    for seeds, configs, networks in added:
        more = with_added(there, seeds, configs, networks)
        assert more[: len(there)] == there and len(more) > len(there)
        assert with_added(more, seeds, configs, networks) == more
        there = more
    assert there[-1] == Key("cifar-nano", "transformer", 6) and len(there) == 2 * 2 * 2 + 1
    with pytest.raises(StudyError, match="--seeds has 4 twice; give each once"):
        with_added(there, (4, 4), (), ())


def test_commands_make_the_runs_and_no_command_makes_a_network_of_ones_own() -> None:
    runs = [Run(Path(), "cifar-nano", seed, network=network) for network in ("conformer", "own", "cnn", "wide.own") for seed in (0, 3)]
    *lines, one, other = commands_of(Path("a study"), [*runs, Run(Path(), "cifar-micro", 3, network="cnn")], TrainConfig(lr=0.1))
    assert lines == [
        "conformer study 'a study' --seeds 0 3 --configs cifar-nano --networks conformer cnn --lr 0.1",
        "conformer study 'a study' --seeds 3 --configs cifar-micro --networks cnn --lr 0.1",
    ]
    for line in lines:
        cli._parser().parse_args(line.replace("'a study'", "study").split()[1:])
    assert one == '# no command trains cifar-nano-own (seeds 0 3): it takes Python code that builds it, Study(..., builds={"own": ...})'
    assert other.startswith("# no command trains cifar-nano-wide.own (seeds 0 3): ")
    assert commands_of(Path("study"), runs[2:3], TrainConfig()) == [one.replace("seeds 0 3", "seed 0")]
