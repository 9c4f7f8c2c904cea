"""Training a Conformer, from options to weights on disk.

`Trainer` sets a run up from a `TrainConfig` and runs it; `train(config)` does both, and `resume(run)` goes on with a run that was broken off. What a
user can get wrong is found by `run_checks.py`, before anything is written. Steps are taken by a `Learner`, through `CpuSteps` or `GpuSteps`, files
are written by `RunFolder`, and what is shown goes to a `Display`. Read next: `conformer/steps.py`, `conformer/run_folder.py`, then
`conformer/cli.py`, the command line around this.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conformer import data, devices
from conformer.baselines import NETWORKS, Build, label
from conformer.batches import Batch, batches
from conformer.budget import seconds_of, steps_within, timed_step
from conformer.checkpoints import Checkpoint, fingerprint
from conformer.config import named_config
from conformer.display import Display, Progress
from conformer.evaluate import Accuracies, Predictions, evaluate
from conformer.gpu_steps import GpuSteps
from conformer.info import count
from conformer.learner import Learner, check_loss, check_weights
from conformer.options import TrainConfig, duration, may_change, plain, resumed
from conformer.provenance import environment
from conformer.run_checks import check_data, check_precision, check_same, chosen_builder, given_weights, held_out, options_of
from conformer.run_folder import RunFolder
from conformer.steps import CpuSteps, Outcome, Steps
from conformer.stopping import StopSignals
from conformer.weights import About, check_trained_on, comparable_images, seen_before, with_images
from minigrad import random, safetensors_io
from minigrad.backend import cpu
from minigrad.backend.cublas import precision

__all__ = ["TrainResult", "Trainer", "resume", "train"]

WINDOW = 50  # steps that running figures are averaged over


class TrainResult(NamedTuple):
    """What a run came to: its folder, the steps it took, the last and the best accuracies on the test images (or on those held out), and how long it
    took in all.
    """

    folder: Path
    steps: int
    test: Accuracies
    best: Accuracies
    seconds: float


class Trainer:
    """A training run: setting it up finds what is wrong with options, data or folder; `run` trains.

    Args:
        config: the options.
        display: where progress is shown; None prints lines.
        origin: the folder and the checkpoint to go on from; `Trainer.resume` gives them.
        dataset: what the options' data set is, where it is loaded already; with nothing held out yet.
        build: makes a network of one's own of its configuration, with one head or two; the options' `network` is then the name that it has in the
            run's files.

    Raises:
        OptionError: an option that does not fit the data or the device.
        ValueError: data that is missing or damaged, or a network that its images do not fit.
        OSError: the run folder holds a run already, or cannot be written.
        DeviceError: there is no GPU, and the options ask for one.
    """

    def __init__(
        self,
        config: TrainConfig,
        display: Display | None = None,
        origin: tuple[RunFolder, Checkpoint | None] | None = None,
        dataset: data.Dataset | None = None,
        build: Build | None = None,
    ):
        folder, checkpoint = origin or (None, None)
        self.config = config
        self.display = display or Display()
        self.device = devices.choose(config.device)
        if config.precision != "float32":
            check_precision(config.precision, self.device, folder and folder.path)
        whole = dataset or data.load(config.dataset, config.data_dir, self.display.message)
        self._images = data.checksum("training images", whole.train)
        self.dataset = held_out(whole, config)
        del whole  # whose images would be in memory twice
        self._logged_as = self.dataset.measured.replace("-", "_")  # names in metrics.jsonl have it
        network = replace(named_config(config.config), num_classes=len(self.dataset.classes))
        self.network = network if config.drop_path is None else replace(network, drop_path_rate=config.drop_path)
        check_data(self.dataset, config, self.network)
        self._build = chosen_builder(config.network, build, self.dataset)
        self.steps_per_epoch = len(self.dataset.train) // config.batch_size
        self.evaluation_steps = config.eval_epochs * self.steps_per_epoch  # from one evaluation to the next
        limits = [config.epochs and config.epochs * self.steps_per_epoch, config.max_steps]
        steps = min(filter(None, limits), default=self.dataset.epochs * self.steps_per_epoch)
        self.steps = checkpoint.steps if checkpoint else steps  # a time budget may have fixed those of a run that goes on
        self.steps_fixed = checkpoint is not None or config.time_budget is None  # False until `_fit_to_budget` has fixed them
        self.fingerprint = fingerprint(self.dataset)
        self.evaluated = 0  # steps taken at the last evaluation
        self.saved: tuple[int, int] | None = None  # step and evaluated at the last checkpoint
        self.test: Accuracies | None = None
        self.best: Accuracies | None = None
        self.predictions: Predictions | None = None  # of the last evaluation, if it was in this process
        self._recent: deque[tuple[float, Accuracies, float]] = deque(maxlen=WINDOW)  # loss, accuracies and seconds of the last steps
        self._begun = False
        self._unshown: OSError | None = None  # why the display could not show progress
        self._evaluation_seconds = 0.0
        self._started = self._saved_at = time.perf_counter()
        # Those to begin with; a checkpoint has weights.
        begins = config.finetune is not None and checkpoint is None
        self._initial, self._trained_on, self._images_before = None, {}, {}  # of the weights to begin with
        if begins:
            self._initial, about = given_weights(config, self.network, self.dataset, build)
            self._trained_on, self._images_before = about.trained_on, comparable_images(about, self.dataset)
            if seen := seen_before(self._trained_on, self._images_before, self.dataset, config.hold_out, self._images):
                before = self.dataset.notice.rstrip(".")
                self.dataset = replace(self.dataset, notice=f"{before}. {seen}" if before else seen)
        self.learner = self._new_learner()

        now = datetime.now().astimezone()
        self.header = self._header(now)
        self.folder = folder or self._new_folder(f"{label(config.config, config.network)}-{now:%Y-%m-%d-%H%M%S}")
        if folder:
            self._restore(checkpoint)

    @classmethod
    def resume(
        cls, run: Path, display: Display | None = None, loaded: data.Dataset | None = None, build: Build | None = None, **given: Any
    ) -> Trainer:
        """Set up a run that was interrupted; `run()` then ends with the weights of an uninterrupted one, bit for bit on the same device.

        Args:
            run: its folder. A run that was broken off before its first checkpoint begins again.
            display: as for `Trainer`.
            loaded: the run's data set, where it is loaded already.
            build: what it was given for the run, if anything.
            **given: options of `TrainConfig`: those that it `may_change` hold from here on, any other must be what the run was started with.

        Raises:
            ValueError: an option or the data set is not that of the run, or one of its files is damaged.
            OSError: there is no run in the folder, or it is in use.
        """
        run = Path(run)
        folder = RunFolder.reopen(run)
        try:
            checkpoint = folder.load_checkpoint()
            config = resumed(run, options_of(run, checkpoint), checkpoint and checkpoint.dataset, given)
            if loaded or "data_dir" in given:
                return cls(config, display, (folder, checkpoint), loaded, build)
            if not checkpoint and config.data_dir and not config.data_dir.exists():  # without its fingerprint, other data would pass for it
                raise data.DataError(f"the run's data is not in {config.data_dir} any more; give it with --data-dir")
            with data.place_of(config.dataset, config.data_dir) as place:
                return cls(replace(config, data_dir=place), display, (folder, checkpoint), build=build)
        except BaseException:
            folder.close()
            raise

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.learner.step

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.steps_fixed and self.step == self.evaluated == self.steps

    def run(self) -> TrainResult:
        """Train to the last step. After every `eval_epochs` epochs, and at the end, it evaluates and saves; in between it saves as often as
        `checkpoint_steps` and `checkpoint_minutes` say. Ctrl-C, SIGTERM and SIGHUP, on Windows Ctrl-Break too, finish the step and save first.

        It may be called once: a run that was broken off is gone on with by `Trainer.resume`, from its last checkpoint.

        Raises:
            RuntimeError: it was called before.
            Stopped: by one of these (a KeyboardInterrupt).
            FloatingPointError: the loss or a weight is not finite any more.
            OSError: a file cannot be written, or the run's folder is no longer at its path; or progress cannot be shown, and then the step is
                finished and saved first.
        """
        if self._begun:
            raise RuntimeError(f"this run has ended, or was broken off in the middle of a step: go on with Trainer.resume({str(self.folder.path)!r})")
        self._begun = True
        show, config, dataset = self.display.message, self.config, self.dataset
        random.manual_seed(config.seed)  # another run may have been set up since this one was
        if dataset.notice:
            show(dataset.notice)
        images = f"{len(dataset.train):,} training and {len(dataset.test):,} {dataset.measured} images from {dataset.source}"
        show(f"{label(config.config, config.network)} on {dataset.name}: {images}")
        show(f"on {devices.describe(self.device)}")
        cpu.keep_freed_memory()
        try:
            with StopSignals() as signals, precision(config.precision), warnings.catch_warnings():
                # Of numbers that are not finite one sentence is said, by `check_loss`. (np.errstate would not reach the pool's threads.)
                warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(minigrad|conformer|numpy)\.")
                if not self.steps_fixed:
                    self._fit_to_budget(signals)
                done = f", {self.step:,} of them taken" if self.step else ""
                show(f"{self.steps:,} steps of {config.batch_size} images{done}, run folder {self.folder.path}")
                if self._recent:  # of the run that goes on
                    self._say_heads()
                self._save()
                if self._evaluation_due():  # the run was broken off in the middle of it
                    self._evaluate(signals)
                if self.step < self.steps:
                    self._take_steps(signals)
        finally:
            with contextlib.suppress(OSError):  # the terminal is closed: why the run ends is said by what comes through here
                self.display.close()
            self.folder.close()
        assert self.test is not None and self.best is not None
        seconds = time.perf_counter() - self._started
        weights = self.folder.path / "last.safetensors"
        show(f"{self.step:,} steps in {seconds / 60:.1f} minutes: {dataset.measured} accuracy {self.test} %, weights in {weights}")
        return TrainResult(self.folder.path, self.step, self.test, self.best, seconds)

    # --- the steps, and what is done between them

    def _take_steps(self, signals: StopSignals) -> None:
        """Take all steps that are left."""
        with closing(self._stepper()) as steps:
            while self.step < self.steps:
                self._note(steps.take())
                due = self._evaluation_due()
                if due or signals.received is not None or self._unshown is not None or self._save_due():
                    self._note(steps.finish())
                    self._save()
                    if self._unshown is not None:
                        signals.check()  # the signal that a terminal has closed comes about as fast as the error of writing to it
                        raise self._unshown
                    if due:
                        self._evaluate(signals)
                signals.check()

    def _stepper(self) -> Steps:
        """What takes the steps that are left, where the network is, which is put into training mode."""
        self.learner.model.train()
        if self.device == "cuda":
            began = time.perf_counter()
            steps = GpuSteps(self.learner, self.dataset, self.config.batch_size, self.config.log_every)
            self.display.message(f"a step is captured in {time.perf_counter() - began:.1f} s (its kernels are compiled the first time)")
            return steps
        return CpuSteps(self.learner, self._batches())

    def _batches(self) -> Iterator[Batch]:
        """The batches of all steps that are left; whatever broke the run off, they are those of the unbroken one."""
        epoch, first = divmod(self.step, self.steps_per_epoch)
        size, cutout = self.config.batch_size, self.config.cutout
        rest = (batches(self.dataset, size, epoch + later, 0 if later else first, cutout) for later in itertools.count())
        return itertools.islice(itertools.chain.from_iterable(rest), self.steps - self.step)

    def _note(self, outcomes: list[Outcome]) -> None:
        """Put what steps came to into the log and on the display. That the display fails is raised when the run is saved (`_take_steps`)."""
        for outcome in outcomes:
            first = not self._recent
            self._recent.append((outcome.loss, outcome.right, outcome.seconds))
            progress = self._progress(outcome)
            try:
                if first:
                    self._say_heads()
                self.display.progress(progress)
            except OSError as error:  # the terminal is closed, the disk full
                self._unshown = error
            if outcome.step % self.config.log_every == 0 or outcome.step == self.steps:
                self.folder.log(
                    step=outcome.step,
                    epoch=progress.epoch,
                    loss=progress.loss,
                    train_accuracy=progress.train.by_head(),
                    learning_rate=progress.learning_rate,
                    images_per_second=progress.images_per_second,
                )

    def _say_heads(self) -> None:
        """Say what the numbers of an accuracy are where the network, of whatever name, has given several."""
        _, shares, _ = self._recent[-1]
        if shares.cnn is not None:
            self.display.message("accuracies in percent: CNN head/transformer head/sum of both")

    def _progress(self, last: Outcome) -> Progress:
        losses, shares, seconds = zip(*self._recent, strict=True)
        each = sum(seconds) / len(seconds)
        evaluations_left = -(-self.steps // self.evaluation_steps) - self.evaluated // self.evaluation_steps
        return Progress(
            step=last.step,
            steps=self.steps,
            epoch=last.step / self.steps_per_epoch,
            loss=sum(losses) / len(losses),
            train=Accuracies.mean(shares),
            test=self.test,
            learning_rate=last.learning_rate,
            images_per_second=self.config.batch_size / each,
            seconds_left=(self.steps - last.step) * each + evaluations_left * self._evaluation_seconds,
            measured=self.dataset.measured,
        )

    def _evaluation_due(self) -> bool:
        return self.step > self.evaluated and (self.step % self.evaluation_steps == 0 or self.step == self.steps)

    def _save_due(self) -> bool:
        every, minutes = self.config.checkpoint_steps, self.config.checkpoint_minutes
        return bool(every and self.step % every == 0) or bool(minutes and time.perf_counter() - self._saved_at >= 60 * minutes)

    def _save(self) -> None:
        """Write the checkpoint, unless there is one of just this moment."""
        if self.saved == (self.step, self.evaluated):
            return
        arrays = self.learner.state()
        check_weights(arrays, self.step, self.config.lr)  # what is on the disk stays usable
        self.folder.save_checkpoint(
            Checkpoint(
                arrays=arrays,
                options=plain(self.config),
                network=asdict(self.network),
                dataset=self.dataset.name,
                fingerprint=self.fingerprint,
                environment=self._environment(),
                step=self.step,
                steps=self.steps,
                evaluated=self.evaluated,
                lines=self.folder.lines,
                learning_rate=self.learner.learning_rate,
                test=self.test,
                best=self.best,
                recent=list(self._recent),
                seconds=time.perf_counter() - self._started,
                evaluation_seconds=self._evaluation_seconds,
            )
        )
        self.saved = self.step, self.evaluated
        self._saved_at = time.perf_counter()

    def _evaluate(self, signals: StopSignals) -> None:
        """Measure the network on the test images, or on those held out; log and show it, and save the weights; the same for their average, if any.

        A signal to stop is obeyed at once: the checkpoint of this step is on the disk, and a resumed run begins with this evaluation.
        """
        began, measured, name = time.perf_counter(), self.dataset.measured, self._logged_as
        self.predictions = self._measured(signals)
        test, loss = self.predictions.accuracies, self.predictions.loss
        check_loss(loss, self.step, self.config.lr, on=f" on the {measured} images")
        self.test = test
        about = self._about(test)
        self.folder.save("last", self.learner.model, about)
        if self.best is None or test.sum > self.best.sum:
            self.best = test
            self.folder.save("best", self.learner.model, about)
        shown, logged = f"{measured} accuracy {test} %", {f"{name}_accuracy": test.by_head(), f"{name}_loss": loss}
        if self.learner.ema:
            averaged = self.save_average(signals)
            shown += f" (average of the weights: {averaged} %)"
            logged[f"ema_{name}_accuracy"] = averaged.by_head()
        self.evaluated = self.step
        self._evaluation_seconds = time.perf_counter() - began

        seconds = time.perf_counter() - self._started
        self.folder.log(step=self.step, epoch=self.step / self.steps_per_epoch, **logged, seconds=seconds)
        self._save()
        epoch = -(-self.step // self.steps_per_epoch)
        self.display.message(f"epoch {epoch}, step {self.step}: {shown}, {measured} loss {loss:.3f}, {seconds / 60:.1f} minutes")

    def _measured(self, signals: StopSignals | None) -> Predictions:
        """What the network answers to the images it is measured by, unless a signal to stop comes, or has come."""
        with signals.at_once() if signals else contextlib.nullcontext():
            return evaluate(self.learner.model, self.dataset.test, self.dataset, tta=self.config.tta)

    def _about(self, shares: Accuracies) -> About:
        """What weights with these accuracies are for."""
        what = self.network, self.config.config, self.dataset, self.step, shares.by_head(), self.config.network
        images = with_images(self._images_before, self._trained_on, self.dataset.name, self._images)
        return About.of(*what, held_out=self.config.hold_out, before=self._trained_on, images=images)

    def save_last(self, name: str = "last") -> None:
        """Write last.safetensors of a finished run anew, or best.safetensors, where the last weights are the best; raises OSError."""
        assert self.test is not None
        self.folder.save(name, self.learner.model, self._about(self.test))

    def save_average(self, signals: StopSignals | None = None) -> Accuracies:
        """Measure the average of the weights and write ema.safetensors, unless a signal to stop comes; raises OSError."""
        assert self.learner.ema is not None
        with self.learner.ema.swapped():
            averaged = self._measured(signals).accuracies
            self.folder.save("ema", self.learner.model, self._about(averaged))
        return averaged

    # --- a time budget

    def _fit_to_budget(self, signals: StopSignals) -> None:
        """Fix the number of steps by taking some and undoing them: the learning rate's schedule depends on it from the first step.

        What follows is the run that --max-steps would give.
        """
        assert self.config.time_budget is not None
        budget = duration(self.config.time_budget)
        each = timed_step(self._stepper, self.steps, budget, signals.check)
        evaluation, saving = self._evaluating_seconds(budget / 4), self._saving_seconds()
        evaluation += 3 * saving  # two checkpoints, and two or three times the weights, which are a third of one
        if self.config.checkpoint_steps:
            each += saving / self.config.checkpoint_steps
        left = 0.98 * budget - (time.perf_counter() - self._started)
        self.steps, self.steps_fixed = steps_within(left, each, evaluation, self.evaluation_steps), True
        self.learner = self._new_learner()
        self._evaluation_seconds = evaluation
        self.folder.set_steps(self.steps)
        self.folder.log(step=0, time_budget=budget, seconds_per_step=each, seconds_per_evaluation=evaluation, steps=self.steps)
        self.display.message(f"{each:.3g} s a step and {evaluation:.3g} s an evaluation: {self.steps:,} steps fit {self.config.time_budget}")

    def _evaluating_seconds(self, limit: float) -> float:
        """Seconds of evaluating the network, and the average of its weights if there is one, by some images; see `seconds_of` for `limit`."""
        part = data.Split(self.dataset.test.images[:500], self.dataset.test.labels[:500])
        seconds = seconds_of(lambda: evaluate(self.learner.model, part, self.dataset, tta=self.config.tta), limit)
        return seconds * len(self.dataset.test) / len(part) * (2 if self.learner.ema else 1)

    def _saving_seconds(self) -> float:
        """Seconds of writing a checkpoint."""
        path = self.folder.to_write(".timed.tmp")
        try:
            return seconds_of(lambda: safetensors_io.save_state(path, self.learner.state()))
        finally:
            path.unlink(missing_ok=True)

    # --- setting up, and finding everything as a checkpoint left it

    def _new_learner(self) -> Learner:
        return Learner(self.network, self.config, self.steps, self.device, self._initial, self._build)

    def _header(self, now: datetime) -> dict[str, Any]:
        """The first line of metrics.jsonl: what the run is, and what its times depend on."""
        height, width = self.dataset.train.images.shape[1:3]
        return {
            "dataset": self.dataset.name,
            "dataset_notice": self.dataset.notice,
            **({"trained_on_before": self._trained_on, "images_before": self._images_before} if self._trained_on else {}),
            "config": self.config.config,
            "network": self.config.network,
            "parameters": sum(parameter.size for parameter in self.learner.model.parameters()),
            "macs": count(self.network, (height, width), self.config.network).macs if self.config.network in NETWORKS else None,
            "train_images": len(self.dataset.train),
            f"{self._logged_as}_images": len(self.dataset.test),
            "measured_by": data.checksum("measured by", self.dataset.test),
            "steps": self.steps if self.steps_fixed else None,
            "seed": self.config.seed,
            "started": now.isoformat(timespec="seconds"),
            "device": devices.describe(self.device),
            **environment(),
        }

    def _environment(self) -> dict[str, Any]:
        """What the last digits of the weights depend on."""
        if self.device == "cuda":
            return {"device": self.header["device"]}
        return {"device": "CPU", "numpy": np.__version__, "threads": self.header["threads"], "blas": self.header["blas"]}

    def _new_folder(self, name: str) -> RunFolder:
        """The folder that was asked for, or one in runs/ by this name, or by the next that no run has: another may begin in the same second."""
        options = plain(self.config) | {"steps": self.header["steps"]}
        if self.config.out:
            return RunFolder.create(self.config.out, options, self.header)
        for suffix in ("", *(f"-{number}" for number in range(2, 100))):
            with contextlib.suppress(FileExistsError):
                return RunFolder.create(Path("runs", name + suffix), options, self.header)
        raise FileExistsError(f"runs has a hundred runs called {name}; choose a folder with --out")

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        """Put everything where the checkpoint found it; without one, the run begins anew, also in what is written of it."""
        new = {name: value for name, value in plain(self.config).items() if name in may_change(checkpoint is not None)}
        if checkpoint is None:
            self.folder.rewind(0, self.header)
            self.folder.set_options(**new, steps=self.header["steps"])
            return
        check_same(checkpoint, self.folder.path, self.dataset, self.fingerprint, self.config.config, self.network)
        try:
            self.learner.load_state(checkpoint.arrays, checkpoint.step, checkpoint.learning_rate)
        except ValueError as error:
            raise ValueError(f"the checkpoint in {self.folder.path} does not fit the run's options ({error})") from error
        self.evaluated, self.test, self.best = checkpoint.evaluated, checkpoint.test, checkpoint.best
        self._recent.extend(checkpoint.recent)
        self._evaluation_seconds = checkpoint.evaluation_seconds
        self._started = time.perf_counter() - checkpoint.seconds
        self.saved = self.step, self.evaluated
        self.folder.rewind(checkpoint.lines, self.header)
        header = self.folder.header()
        self.dataset = replace(self.dataset, notice=header.get("dataset_notice", ""))  # of a data set that is asked for by name now
        self._trained_on, self._images_before = header.get("trained_on_before", {}), header.get("images_before", {})
        try:
            check_trained_on("trained_on_before", self._trained_on)
            check_trained_on("images_before", self._images_before, str)
        except ValueError as error:
            raise ValueError(f"{self.folder.path / 'metrics.jsonl'} is damaged in line 1 ({error}); mend it") from error
        if new != {name: checkpoint.options.get(name) for name in new}:  # from now on: also for whoever comes next, who finds data that moved
            self.folder.set_options(**new)
            self.saved = None
            self._save()
        if not self.finished:
            self._log_resumed(checkpoint)

    def _log_resumed(self, checkpoint: Checkpoint) -> None:
        """Note in the log that the run goes on here, by which code, and what differs from the machine it was on before; say the latter."""
        before = {"device": "CPU"} | checkpoint.environment  # the first versions knew no other
        differs = {key: value for key, value in self._environment().items() if value != before.get(key)}
        self.folder.log(step=self.step, resumed=self.header["started"], revision=self.header.get("revision"), **differs)
        if differs:
            self.display.message(f"{' and '.join(differs)} differ from those the run was started with: the last digits of the weights will too")


def train(config: TrainConfig, display: Display | None = None, build: Build | None = None) -> TrainResult:
    """Train a Conformer, a branch of it alone, or what `build` makes; see `Trainer` for what it raises."""
    return Trainer(config, display, build=build).run()


def resume(run: Path, display: Display | None = None, build: Build | None = None) -> TrainResult:
    """Go on with a run that was broken off; see `Trainer.resume` for what it raises."""
    return Trainer.resume(run, display, build=build).run()
