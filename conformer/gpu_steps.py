"""Taking the steps of a run on the GPU: one CUDA graph a step, and nothing that waits for the GPU within an epoch.

The whole training split lies in the GPU's memory, and so does everything a step reads or writes. The step is captured once (`cuda.Captured`) and
launched again and again:

    counters    the step's number in the run, which masks are drawn by, and its place in the epoch; the graph's last kernel counts on
    plan        which images are in each batch of the epoch, how they are moved: drawn on the host as for the CPU, one copy an epoch
    x, y        the batch, which the graph's first kernel makes (augment.cu)
    learning rate, weights, gradients, the optimiser's state, running statistics, averaged weights: where the eager step has them
    records     loss and right answers of each step of the epoch (gpu_steps.cu)

Rows of `records` are copied to the host every `interval` steps, and looked at when the copy has arrived. So the GPU never waits for the host; the
host waits for the GPU only so that it is not more than two intervals ahead. Read next: `minigrad/backend/cuda.py`, `Captured`.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from conformer.augment import PLAN, channel_constants, cuda_augment
from conformer.batches import plan
from conformer.data import Dataset
from conformer.evaluate import Accuracies
from conformer.learner import Learner, check_loss
from conformer.steps import Outcome
from minigrad import random
from minigrad.backend import cuda
from minigrad.tensor import Tensor, wrap

__all__ = ["GpuSteps"]

_cuda = cuda.Kernels(__file__)

WARM_UPS = 2  # steps before the one that is captured


class _Interval(NamedTuple):
    """Steps whose records are on their way to the host: the first one's number from 1, their learning rates, records (steps, 4), and events."""

    first: int
    rates: list[float]
    records: np.ndarray
    began: Any
    ended: Any


class GpuSteps:
    """Steps as launches of one captured graph.

    Args:
        learner: as it is before the next step, its model on the device "cuda"; after each step its number is counted on.
        dataset: its training split is used.
        batch_size: images in a step.
        interval: steps between two copies of what they came to.
    """

    def __init__(self, learner: Learner, dataset: Dataset, batch_size: int, interval: int):
        cp, train = cuda.array_module(), dataset.train
        self._learner, self._batch_size, self._interval = learner, batch_size, interval
        self._steps_per_epoch = len(train) // batch_size
        dtype = next(learner.model.parameters()).dtype
        self._dataset = dataset
        self._data = cp.asarray(train.images), cp.asarray(train.labels)
        self._constants = cp.asarray(channel_constants(dataset.mean, dataset.std))
        rows = max(self._steps_per_epoch, WARM_UPS)
        self._plan = cp.asarray(np.zeros((rows, batch_size, PLAN), np.int32))
        self._counters = cp.asarray(np.zeros(2, np.uint64))
        self._records = cp.asarray(np.zeros((rows, 4)))
        self._x, self._y = cp.empty((batch_size, *train.images.shape[1:]), dtype), cp.empty(batch_size, np.int64)
        self._on_the_way: deque[_Interval] = deque()
        self._rates: list[float] = []  # of the steps since the last copy
        self._began: Any = None  # an event before the first of them
        self._capture()

    def _capture(self) -> None:
        """Capture the step. The calls before it are steps, too; they are undone."""
        learner = self._learner
        before, step, rate = learner.state(), learner.step, learner.learning_rate
        self._start_epoch()
        cuda.write(self._counters, np.array([step, 0], np.uint64))  # from the epoch's end they would count out of its tables
        draws = random.get_counter()
        try:
            self._graph = cuda.Captured(self._step, WARM_UPS)
        finally:  # also where there is no memory for it, or an interrupt falls while kernels are compiled
            random.set_counter(draws)
            learner.optimizer.zero_grad()
            learner.load_state(before, step, rate)
        self._start_epoch()

    def _step(self) -> None:
        """What is captured."""
        learner, parts = self._learner, self._learner.config.accumulate
        random.set_step(self._counters[:1])
        cuda_augment(*self._data, self._plan, self._counters[1:], self._constants, self._x, self._y)
        x, y = (array.reshape(parts, self._batch_size // parts, *array.shape[1:]) for array in (self._x, self._y))
        learner.update([(wrap(x[part]), wrap(y[part])) for part in range(parts)], self._note)

    def _note(self, part: int, loss: Tensor, heads: tuple[Tensor, ...], labels: Tensor) -> None:
        self._heads = len(heads)
        arrays = (heads[0].data, heads[-1].data, labels.data, loss.data, self._records, self._counters)
        first, last = part == 0, part == self._learner.config.accumulate - 1
        _cuda.launch(f"note<{cuda.c_type(loss.dtype)}>", 1, 1024, *arrays, *heads[0].shape, first, last)

    def _start_epoch(self) -> None:
        """Bring the plan of the epoch that the next step belongs to to the GPU, and where in it the step is."""
        epoch, place = divmod(self._learner.step, self._steps_per_epoch)
        planned = plan(self._dataset, self._batch_size, epoch, self._learner.config.cutout)
        cuda.write(self._plan[: self._steps_per_epoch], planned)
        cuda.write(self._counters, np.array([self._learner.step, place], np.uint64))

    def take(self) -> list[Outcome]:
        """Launch one step; the outcomes of earlier ones that have arrived."""
        learner = self._learner
        if self._began is None:
            self._began = cuda.array_module().cuda.get_current_stream().record()
        self._rates.append(learner.begin_step())
        learner.optimizer.upload()  # its rates; the decay of an average of the weights stays what it was
        self._graph.launch()
        learner.step += 1
        epoch_ends = learner.step % self._steps_per_epoch == 0
        if epoch_ends or learner.step % self._interval == 0:
            self._send_records()
        if epoch_ends:
            self._start_epoch()
        return self._arrived(2)

    def finish(self) -> list[Outcome]:
        """Wait for all steps that were launched; what comes before the next one is no part of its time."""
        if self._rates:
            self._send_records()
        self._began = None
        return self._arrived(0)

    def close(self) -> None:
        """Nothing is left to do: memory is freed with this object."""

    def _send_records(self) -> None:
        """Begin to copy the records of the steps since the last copy to the host; the next steps are launched meanwhile."""
        cp, count = cuda.array_module(), len(self._rates)
        memory = cp.cuda.alloc_pinned_memory(32 * count)
        records = np.frombuffer(memory, np.float64, 4 * count).reshape(count, 4)
        first = self._learner.step - count
        place = first % self._steps_per_epoch
        # `get(blocking=False)` would do the same, but CuPy, asked whether the host waits, counts every `get` as waiting.
        self._records[place : place + count].data.copy_to_host_async(records.ctypes.data, records.nbytes)
        ended = cp.cuda.get_current_stream().record()
        self._on_the_way.append(_Interval(first + 1, self._rates, records, self._began, ended))
        self._rates, self._began = [], ended

    def _arrived(self, most: int) -> list[Outcome]:
        """The outcomes that have arrived; waits until no more than `most` copies are on the way. Looking costs the GPU nothing."""
        outcomes: list[Outcome] = []
        while self._on_the_way:
            interval = self._on_the_way[0]
            if not interval.ended.done:
                if len(self._on_the_way) <= most:
                    break
                time.sleep(0.0005)
                continue
            self._on_the_way.popleft()
            seconds = cuda.array_module().cuda.get_elapsed_time(interval.began, interval.ended) / 1000 / len(interval.rates)
            for number, (rate, (loss, *right)) in enumerate(zip(interval.rates, interval.records.tolist(), strict=True), interval.first):
                check_loss(loss, number, self._learner.config.lr)
                shares = [count / self._batch_size for count in right]
                by_head = Accuracies(*shares) if self._heads == 2 else Accuracies(None, None, shares[0])  # of one head all three are equal
                outcomes.append(Outcome(number, loss, by_head, rate, seconds))
        return outcomes
