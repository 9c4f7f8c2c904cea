"""The same training under several seeds, and perhaps with several networks, so that a difference can be told from chance.

A `Study` is a folder of ordinary run folders, CONFIG-seed-K, or CONFIG-NETWORK-seed-K of a branch alone, with study.json (the options that all runs
share, and what each run came to) and study.md (the tables, by `conformer/findings.py`). `Study.trainers` gives a `Trainer` for each run that is not
finished yet, one after the other; what was measured is read from the runs themselves, never from study.json. Read before: `conformer/study_plan.py`,
which runs it has, and `conformer/train.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from conformer import data
from conformer.baselines import NETWORKS, Build, label
from conformer.checkpoints import Checkpoint, fingerprint, load_checkpoint
from conformer.claims import claimed
from conformer.display import Display
from conformer.files import write_file
from conformer.findings import AVERAGED, Findings, Run
from conformer.options import MAY_CHANGE, OptionError, TrainConfig, flag, from_plain, may_change, plain, resumed, saved_options
from conformer.run_checks import held_out
from conformer.run_folder import CHECKPOINT, incomplete, read_options
from conformer.run_log import read_log
from conformer.study_plan import EACH_RUN, Key, StudyError, commands_of, read_study, with_added
from conformer.text import quoted
from conformer.train import Trainer
from conformer.weights import weights_file

__all__ = ["EACH_RUN", "Study", "StudyError"]


class Study:
    """A folder of runs that differ in seed and network alone: the one that is there, or one to begin.

    Args:
        path: the folder.
        seeds: of runs to add to the study (if not given: those it has, or 0, 1 and 2).
        configs: the sizes of these runs' networks (if not given: those it has, or cifar-nano). Of the study's own runs, all go on.
        networks: which networks are made of each of them (if not given: those it has, or the Conformer).
        builds: what makes those that are somebody's own, by their names.
        **given: options of `TrainConfig` but for `EACH_RUN`. In a study that has begun, those of `MAY_CHANGE` hold from here on, and any other must
            be what it was begun with; but `finetune` may be another place of the same weights, while there are runs that need them.

    Attributes:
        path: the folder.
        options: what all runs share.
        runs: as they are now, in the order in which they are trained.
        saved: whether study.json has what was asked for here; not before `trainers` or `save` wrote it.

    Raises:
        StudyError: the folder holds something else, a run in it or an option is not of the study, or a seed or a network is given twice.
        OptionError: an option out of range.
        ValueError: a file in the folder is damaged.
        OSError: a file cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        seeds: Sequence[int] = (),
        configs: Sequence[str] = (),
        networks: Sequence[str] = (),
        builds: Mapping[str, Build] | None = None,
        **given: Any,
    ):
        self.path = path = Path(path)
        self.data: dict[str, str] = {}  # name, notice and fingerprint of the data set, once it is loaded
        self._moved = "data_dir" in given  # and is to be taken at its word
        self._builds = builds or {}
        diverged: dict[Key, str] = {}  # of the runs that it has: why, if they did
        self._weights: dict[str, Any] = {"fingerprint": None, "places": []}  # to begin with: of the file, and all options.finetune that it had
        self.saved = False
        self._as_read = _content(path / "study.json")
        if saved := read_study(path):
            self.options, self.data, diverged, self._weights = saved
        else:
            self.options = from_plain(plain(TrainConfig(**given)))  # paths in full, as the runs' checkpoints have them
        self._networks: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {}  # see `_differs_from_first`
        self._place = self.options.data_dir  # where the data is to be looked for; options.data_dir is where it was found
        if unknown := [name for name in networks if name not in (*NETWORKS, *self._builds)]:
            raise StudyError(f"--networks: there is no network {unknown[0]!r}; there is {', '.join([*NETWORKS, *self._builds])}")
        keys = with_added(list(diverged), seeds, configs, networks)
        if saved:
            self.options = self._going_on(given, moved=any(not (self._folder(key) / CHECKPOINT).exists() for key in keys))
        self.runs = [self._look(key, diverged.get(key, "")) for key in keys]

    def _folder(self, key: Key) -> Path:
        return self.path / f"{label(key.config, key.network)}-seed-{key.seed}"

    @classmethod
    def existing(cls, path: str | Path) -> Study:
        """The study in a folder; raises StudyError where there is none, and else what `Study` does."""
        if not (Path(path) / "study.json").is_file():
            raise StudyError(f"there is no study in {path} (no study.json); give the folder of one")
        return cls(path)

    def _going_on(self, given: dict[str, Any], moved: bool) -> TrainConfig:
        """The study's options with those that are given anew; `moved`: the weights to begin with may be elsewhere now."""
        given = given | {name: Path(os.path.abspath(given[name])) for name in ("data_dir", "finetune") if given.get(name)}
        source = given.pop("finetune") if moved and self.options.finetune and given.get("finetune") else self.options.finetune
        try:
            values = plain(self.options) | {"dataset": self.data["name"]}
            options = resumed(self.path, values, self.data["name"], given, "study")
            self._place = options.data_dir
            return replace(options, dataset=self.options.dataset, data_dir=self.options.data_dir, out=None, finetune=source)
        except OptionError:
            raise
        except ValueError as error:
            raise StudyError(str(error)) from error

    def _look(self, key: Key, diverged: str) -> Run:
        """A run as its folder has it. That it diverged, and why, is not in the folder; whoever removes that has the run begin anew."""
        run = Run(self._folder(key), key.config, key.seed, network=key.network)
        anew = f"remove {quoted(run.path)}, and the study begins this run anew"
        if os.path.lexists(run.path) and not run.path.is_dir():
            raise StudyError(f"{run.path} is no folder; {anew}")
        try:
            return self._read_run(run, diverged)
        except StudyError:
            raise
        except (FileNotFoundError, ValueError) as error:
            why = f"{error.filename} is not there" if isinstance(error, OSError) else error
            raise ValueError(f"{why}; mend that, or {anew}") from error

    def _read_run(self, run: Run, diverged: str) -> Run:
        """What the files in a run's folder say; raises StudyError where it is not the study's, ValueError or OSError where they are damaged."""
        saved = run.path / CHECKPOINT
        checkpoint = load_checkpoint(saved) if saved.exists() else None
        if begun := (run.path / "config.json").is_file():
            self._check(run, checkpoint)
        if why := incomplete(run.path):
            raise ValueError(why)
        if not begun:
            return run
        run = replace(run, begun=True, diverged=diverged)
        if checkpoint is None:
            return run
        run = replace(run, step=checkpoint.step, steps=checkpoint.steps)
        if not checkpoint.step == checkpoint.evaluated == checkpoint.steps:
            return run
        log = read_log(run.path)
        if not log.tests or log.tests[-1]["step"] != run.steps:
            raise ValueError(f"{run.path / 'metrics.jsonl'} has no evaluation at step {run.steps}, the last one of the run")
        last = log.tests[-1]
        averaged = {AVERAGED + head: share for head, share in last.get("ema_test_accuracy", {}).items()}
        figures = last["test_accuracy"] | averaged | {"seconds": last["seconds"]}
        run = replace(run, figures=figures, device=str(log.header.get("device", "")), diverged="", measured=log.measured, images=log.images)
        run = replace(run, notice=log.header.get("dataset_notice", ""))
        return replace(run, parameters=log.header["parameters"], macs=log.header.get("macs"))  # which an older version did not write

    def _check(self, run: Run, checkpoint: Checkpoint | None) -> None:
        """Raise StudyError for a run that has other options or other data than the study."""
        options = saved_options(run.path, checkpoint.options if checkpoint else read_options(run.path))
        if other := self._differs_from_study(run, options, checkpoint):
            raise StudyError(f"the run in {run.path} is not of this study: {other}; move it elsewhere, or begin another study in another folder")

    def _differs_from_study(self, run: Run, options: TrainConfig, checkpoint: Checkpoint | None) -> str | None:
        """What is other of a run than the study has it, in words; None if nothing is."""
        expected = replace(self.options, config=run.config, network=run.network, seed=run.seed)
        for name in [field.name for field in fields(TrainConfig) if field.name not in MAY_CHANGE | {"out", "dataset"}]:
            was, wanted = getattr(options, name), getattr(expected, name)
            if was != wanted and not (name == "finetune" and str(was) in self._weights["places"]):
                has, needs = ("none" if value is None else value for value in (was, wanted))
                return f"its {flag(name)} is {has}, not {needs}"
        name = checkpoint.dataset if checkpoint else options.dataset
        if name not in (self.data["name"], "auto"):
            return f"it is on {name}, not on {self.data['name']}"
        if checkpoint and checkpoint.fingerprint != self.data["fingerprint"]:
            return f"it is on other images of {name}"
        if not checkpoint:
            return None
        weights = {name.removeprefix("model."): array for name, array in checkpoint.arrays.items() if name.startswith("model.")}
        return self._differs_from_first(run, checkpoint.network, weights)

    def _differs_from_first(self, run: Run, settings: dict[str, Any], weights: Mapping[str, np.ndarray]) -> str | None:
        """By what the network of a run is another than that of the first one of its name, in words; None if neither its settings nor the names and
        shapes of its weights tell. What else somebody's `builds` make of one name from run to run is not seen.
        """
        shapes = {name: array.shape for name, array in weights.items()}
        first, its, known = self._networks.setdefault(run.name, (run.path.name, settings, shapes))
        other = [name for name in settings if name in its and settings[name] != its[name]]  # another version may have others
        other += [name for name in sorted(known | shapes) if known.get(name) != shapes.get(name)]
        return f"its network is another than that of {first}, by its {other[0]}" if other else None

    def trainers(self, display: Display) -> Generator[Trainer]:
        """A Trainer for each run that is not finished, set up when it is its turn; whoever asks for the next one has run it, or as much as could be,
        or has noted that it diverged (`note_diverged`), and then it is not tried again.

        Before the first one, the data is loaded and each network is tried, so that what does not fit is not found after hours; where nothing is left
        to train, data is loaded only if it is given in another place. study.json and study.md are written then, after each run, and for one
        that was broken off when the iterator is closed; the folder is this process's alone from then on (but not on Windows), until the last run is
        done or the iterator is closed.

        Raises:
            StudyError: the data is not that of the study, or another process has changed study.json since it was read.
            FileExistsError: another process is at the study, or another iterator of this one.
            Exception: what `Trainer` raises.
        """
        left = [number for number, run in enumerate(self.runs) if run.left]
        dataset = self._load(display) if left or self._place != self.options.data_dir else None
        if dataset:
            self._try_networks(dataset)
        if self.options.finetune and any(self.runs[number].steps is None for number in left):
            self._check_weights(self.options.finetune)
        self.path.mkdir(parents=True, exist_ok=True)
        with claimed(self.path, "this process has trainers() of it; go through all of them, or close() them"):
            if _content(self.path / "study.json") != self._as_read:
                raise StudyError(f"another process has changed the study in {self.path} since it was read; give the command again")
            self.save()
            for number in left:
                run = self.runs[number]
                display.message(f"run {number + 1} of {len(self.runs)}: {run.name}, seed {run.seed}")
                try:
                    yield self._trainer(run, display, dataset)
                except GeneratorExit:  # the run was broken off; whoever ran it says why, and nothing that fails here
                    if not sys.is_finalizing() and (self.path / "study.json").is_file():  # Python is there, and the folder was not moved away
                        with contextlib.suppress(OSError, ValueError):
                            self._look_again(number)
                    raise
                self._look_again(number)

    def _look_again(self, number: int) -> None:
        """Note how far a run is by now; raises what `_look` and `save` do."""
        run = self.runs[number]
        self.runs[number] = self._look(Key(run.config, run.network, run.seed), run.diverged)
        self.save()

    def note_diverged(self, trainer: Trainer, why: str) -> None:
        """Leave the run of one of `trainers` out of the study: going on, it would diverge once more."""
        self.runs = [replace(run, diverged=why) if run.path == trainer.folder.path else run for run in self.runs]

    @property
    def _dataset(self) -> str:
        """The name of the data set, or what was asked for until it is loaded."""
        return self.data.get("name", self.options.dataset)

    def _load(self, display: Display) -> data.Dataset:
        """The study's data, for all runs: what "auto" comes to is chosen once."""
        name, place = self._dataset, self._place
        with contextlib.nullcontext(place) if self._moved else data.place_of(name, place) as place:
            dataset = data.load(name, place, display.message)
        known = fingerprint(held_out(dataset, self.options))  # as the runs' checkpoints have it
        found = {"name": dataset.name, "notice": self.data.get("notice", dataset.notice), "fingerprint": known}
        if self.data and found != self.data:
            has = f"the study in {self.path} has other images of {dataset.name} than those that are in {dataset.source} now"
            raise StudyError(f"{has}; give the data it was begun with (--data-dir)")
        self.data, self.options = found, replace(self.options, data_dir=place)
        return replace(dataset, notice=found["notice"])

    def _try_networks(self, dataset: data.Dataset) -> None:
        """Set up the first run of each network in a folder that is thrown away; raises what `Trainer` does, and StudyError for another network than
        the runs of its name have.
        """
        first: dict[str, Run] = {}
        for run in self.runs:
            if run.left and run.steps is None:
                first.setdefault(run.name, run)
        with tempfile.TemporaryDirectory() as folder:
            for run in first.values():
                options = replace(self.options, config=run.config, network=run.network, out=Path(folder, run.path.name))
                trainer = Trainer(options, dataset=dataset, build=self._builds.get(run.network))
                trainer.folder.close()
                if other := self._differs_from_first(run, asdict(trainer.network), trainer.learner.model.state_dict()):
                    raise StudyError(f"{run.path.name} is not begun: {other}; give it another name, or begin another study in another folder")

    def _check_weights(self, source: Path) -> None:
        """Raise StudyError where the weights to begin with are not those of the runs that have begun; note where they are."""
        found = hashlib.sha256(weights_file(source).read_bytes()).hexdigest()
        if self._weights["fingerprint"] not in (None, found):
            raise StudyError(f"the study in {self.path} began with other weights than those that are in {source} now; give those (--finetune)")
        places = dict.fromkeys([*self._weights["places"], str(source)])
        self._weights = {"fingerprint": found, "places": list(places)}

    def _trainer(self, run: Run, display: Display, dataset: data.Dataset | None) -> Trainer:
        build = self._builds.get(run.network)
        if run.begun:
            given = {name: getattr(self.options, name) for name in may_change(run.steps is not None)}
            return Trainer.resume(run.path, display, dataset, build, **given)
        options = replace(self.options, config=run.config, network=run.network, seed=run.seed, out=run.path)
        return Trainer(options, display, dataset=dataset, build=build)

    def save(self) -> None:
        """Write study.json and study.md; raises OSError, and StudyError where none of `trainers` was asked for: the data is not known yet."""
        if not self.data:
            raise StudyError(f"the study in {self.path} has not begun: go through its trainers()")
        names = "config", "network", "seed", "step", "steps", "parameters", "macs", "figures", "diverged"
        runs = [{"folder": run.path.name} | {name: getattr(run, name) for name in names} for run in self.runs]
        findings = self.findings()
        values = {
            "options": {name: value for name, value in plain(self.options).items() if name not in EACH_RUN},
            "dataset": self.data,
            "weights": self._weights,
            "runs": runs,
            "networks": {name: {key: spread._asdict() for key, spread in spreads.items()} for name, spreads in findings.spreads.items()},
            "differences": {name: value._asdict() | {"by_chance": value.by_chance} for name, value in findings.differences.items()},
        }
        content, page = json.dumps(values, indent=2, allow_nan=False) + "\n", findings.markdown(self.commands())
        self.path.mkdir(parents=True, exist_ok=True)
        write_file(self.path / "study.json", content)
        self.saved, self._as_read = True, content.encode()
        write_file(self.path / "study.md", page)

    def findings(self) -> Findings:
        """What the runs come to, as they are now."""
        return Findings(self.runs, self._dataset, self.data.get("notice", ""))

    def commands(self) -> list[str]:
        """The commands that the study stands for: one, or one for each set of seeds where networks have others."""
        return commands_of(self.path, self.runs, replace(self.options, dataset=self._dataset))  # what auto came to here


def _content(path: Path) -> bytes | None:
    """What is in a file; None where there is none."""
    return path.read_bytes() if path.is_file() else None
