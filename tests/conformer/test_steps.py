"""Steps on the CPU, one by one, with what each came to; `test_gpu_steps.py` has those on a GPU."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import islice

from conformer.batches import Batch
from conformer.evaluate import Accuracies
from conformer.learner import Learner
from conformer.options import TrainConfig
from conformer.steps import CpuSteps, Outcome
from conformer.train import Trainer


def test_a_step_is_over_when_it_is_returned_with_what_the_learner_says_of_it(config: TrainConfig) -> None:
    """Of each batch in its turn; no thread is left behind."""
    trainer = Trainer(config)
    learner, batches, taken = trainer.learner, list(islice(trainer._batches(), 3)), []

    def train_step(batch: Batch) -> tuple[float, Accuracies]:
        taken.append(batch)
        return Learner.train_step(learner, batch)

    learner.train_step = train_step  # type: ignore[method-assign]
    steps = CpuSteps(learner, iter(batches))
    found = []
    for number in (1, 2):
        (outcome,) = steps.take()
        found.append(outcome)
        assert learner.step == number and steps.finish() == []
        assert (outcome.step, outcome.learning_rate) == (number, learner.learning_rate) and outcome.seconds > 0
    steps.close()
    assert [id(batch) for batch in taken] == [id(batch) for batch in batches[:2]]
    assert not [thread for thread in threading.enumerate() if thread.name == "conformer-prefetch"]

    again = Trainer(replace(config, out=None if config.out is None else config.out.with_name("again"))).learner
    assert found == [Outcome(k + 1, *again.train_step(batches[k]), found[k].learning_rate, found[k].seconds) for k in range(2)]
