"""Which runs a study has: those that study.json names, those that are added to them, and the commands that make them all.

Read before: `conformer/options.py`. Read next: `conformer/study.py`, which trains the runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from conformer.baselines import NETWORKS, label
from conformer.config import CONFIGS
from conformer.findings import Run
from conformer.options import OptionError, TrainConfig, from_plain, not_default, plain, words_of
from conformer.text import from_json, printable, quoted

__all__ = ["EACH_RUN", "SEEDS", "Key", "StudyError", "commands_of", "read_study", "with_added"]

Group = TypeVar("Group")

SEEDS = 0, 1, 2
"""Of a study that is not told any: fewer than three say next to nothing about chance."""
EACH_RUN = "config", "network", "seed", "out"
"""The options that are not a whole study's."""


class StudyError(ValueError):
    """The study, or its folder, is not one that what was asked for fits; the message is one sentence."""


class Key(NamedTuple):
    """What a run differs in from the others of its study."""

    config: str
    network: str
    seed: int

    @classmethod
    def of(cls, run: dict[str, Any]) -> Key:
        """What study.json says of a run."""
        return cls(run["config"], run.get("network", TrainConfig.network), run["seed"])  # an older version knew one network only


def read_study(path: Path) -> tuple[TrainConfig, dict[str, str], dict[Key, str], dict[str, Any]] | None:
    """The options, the data set, the runs with why they diverged, and the weights that study.json names; None where a study can begin."""
    file = path / "study.json"
    if not file.is_file():
        if path.exists() and not path.is_dir():
            raise StudyError(f"{path} is a file; give the study a folder")
        if there := sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")) if path.exists() else []:
            what = "a run" if "config.json" in there else f"something else ({there[0]})"
            raise StudyError(f"{path} holds {what} and no study (no study.json); give the study a folder of its own")
        return None
    try:
        values = from_json(file.read_bytes())
        about = {name: values["dataset"][name] for name in ("name", "notice", "fingerprint")}
        if not all(isinstance(text, str) for text in about.values()):
            raise ValueError("dataset is not text")
        for run in values["runs"]:
            _check(Key.of(run))
        runs = {Key.of(run): str(run.get("diverged", "")) for run in values["runs"]}
        options = from_plain(values["options"])
        places = [str(options.finetune)] if options.finetune else []
        weights = values.get("weights", {"fingerprint": None, "places": places})  # an older version did not write them
        return options, about, runs, {"fingerprint": weights["fingerprint"], "places": list(weights["places"])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} is not what `conformer study` of this version writes ({why}); put it back, or give another folder") from error


def with_added(keys: list[Key], seeds: Sequence[int], configs: Sequence[str], networks: Sequence[str]) -> list[Key]:
    """The networks and seeds that a study has, and those that it gets; raises StudyError where one is given twice, or is none."""
    for option, values in {"--seeds": seeds, "--configs": configs, "--networks": networks}.items():
        if twice := [value for value in values if values.count(value) > 1]:
            raise StudyError(f"{option} has {twice[0]} twice; give each once")
    if seeds or configs or networks or not keys:
        seeds = seeds or list(dict.fromkeys(key.seed for key in keys)) or SEEDS
        configs = configs or list(dict.fromkeys(key.config for key in keys)) or [TrainConfig.config]
        networks = networks or list(dict.fromkeys(key.network for key in keys)) or [TrainConfig.network]
        # networks take turns: the machine may change meanwhile
        keys = keys + [Key(config, network, seed) for seed in seeds for config in configs for network in networks]
    for key in keys:
        _check(key)
    return list(dict.fromkeys(keys))


def _check(key: Key) -> None:
    """Raise StudyError where there is no such configuration, or no such seed, or a network that nothing can be called."""
    if not isinstance(key.config, str) or key.config not in CONFIGS:
        raise StudyError(f"--configs: there is no network {key.config!r}; there is {', '.join(CONFIGS)}")
    for option, values in {"--networks": {"network": key.network}, "--seeds": {"seed": key.seed}}.items():
        try:
            TrainConfig(**values)
        except OptionError as error:
            raise StudyError(f"{option}: {error}") from error


def commands_of(path: Path, runs: Sequence[Run], options: TrainConfig) -> list[str]:
    """The commands that make a study of these runs in a folder: one, or one for each set of seeds where networks have others.

    There is none for a network that is none of `NETWORKS`: a comment, as a shell takes it, says so of each.
    """
    seeds = _grouped(((run.config, run.network), str(run.seed)) for run in runs)
    networks = _grouped(((config, numbers), network) for (config, network), numbers in seeds.items() if network in NETWORKS)
    configs = _grouped(((numbers, names), quoted(config)) for (config, numbers), names in networks.items())
    shared = {name: value for name, value in plain(options).items() if name not in EACH_RUN}
    words = "".join(f" {word}" for word in words_of(not_default(shared)))
    several = any(run.network != TrainConfig.network for run in runs)  # without its networks, a command would take those of the commands before it
    commands = []
    for (numbers, names), sizes in configs.items():
        of = f" --networks {' '.join(names)}" if several else ""
        commands.append(f"conformer study {quoted(path)} --seeds {' '.join(numbers)} --configs {' '.join(sizes)}{of}{words}")
    for (config, network), numbers in seeds.items():
        if network not in NETWORKS:
            what = f"{printable(label(config, network))} (seed{'s' * (len(numbers) > 1)} {' '.join(numbers)})"
            commands.append(f'# no command trains {what}: it takes Python code that builds it, Study(..., builds={{"{network}": ...}})')
    return commands


def _grouped(pairs: Iterable[tuple[Group, str]]) -> dict[Group, tuple[str, ...]]:
    """What is second in the pairs, by what is first, both in their order."""
    groups: dict[Group, tuple[str, ...]] = {}
    for group, member in pairs:
        groups[group] = (*groups.get(group, ()), member)
    return groups
