"""Threads and tasks: each has its own modes and its own random draws, and eight that train at once get the numbers they would get alone.

What is promised: threads may share tensors and models for reading, and collect gradients in the same leaves; everything else that a step writes
(parameters, running statistics) belongs to one thread at a time. Read next: `test_memory.py`.
"""

from __future__ import annotations

import asyncio
import bdb
import inspect
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import minigrad
from minigrad import Tensor, autograd, nn, optim, random
from minigrad import functional as F
from minigrad.modes import MODE, is_grad_enabled
from minigrad.node import Node
from tests.support import rng

THREADS = 8


def at_once(work: Callable[[int], Any]) -> list:
    """What `work(0)`, `work(1)`, ... return, each in a thread of its own, all started together."""
    results: list = [None] * THREADS
    barrier = threading.Barrier(THREADS, timeout=60)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


# --- modes


def test_modes_belong_to_their_thread():
    started, go_on, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        seen.append((is_grad_enabled(), MODE.get().definitions))
        with minigrad.no_grad(), minigrad.definitions():
            started.set()
            go_on.wait(30)
            seen.append((is_grad_enabled(), MODE.get().definitions))

    with minigrad.no_grad():
        thread = threading.Thread(target=other)
        thread.start()
        assert started.wait(30)
        assert not is_grad_enabled() and not MODE.get().definitions
    assert is_grad_enabled()
    go_on.set()
    thread.join(30)
    assert seen == [(True, False), (False, True)]


def test_modes_belong_to_their_task():
    """Two coroutines of one thread take turns, inside no_grad and outside."""
    x, seen = Tensor(np.ones(2), requires_grad=True), []

    async def task(mode: Callable) -> None:
        for _ in range(3):
            with mode():
                await asyncio.sleep(0)
                seen.append((mode is minigrad.enable_grad, (x * 2.0).requires_grad))
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(task(minigrad.no_grad), task(minigrad.enable_grad))

    asyncio.run(both())
    assert len(seen) == 6 and all(expected == found for expected, found in seen)


def test_an_exception_in_one_thread_changes_nothing_in_another():
    x = Tensor(np.array([0.0, 4.0]), requires_grad=True)

    def work(number: int) -> Any:
        if number % 2:
            try:
                with minigrad.anomaly(), minigrad.definitions(), np.errstate(all="ignore"):
                    minigrad.grad(x.sqrt().sum(), x)
            except FloatingPointError as error:
                return str(error)[:24], MODE.get().anomaly
        with np.errstate(divide="ignore"):
            return minigrad.grad(x.sqrt().sum(), x)[0].numpy().tolist(), MODE.get().anomaly

    assert at_once(work) == [([np.inf, 0.25], False), ("anomaly: backward of sqr", False)] * (THREADS // 2)


# --- training


class Net(nn.Module):
    """A little of everything that has state: parameters, running statistics, random masks, a block that is run a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiHeadAttention(8, num_heads=2)
        self.fc = nn.Linear(8, 64)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.bn(self.conv(images), relu=True)
        x = F.max_pool2d(x, 2).reshape(len(images), -1, 8)
        x = minigrad.checkpoint(lambda x: x + self.dropout(self.attention(self.norm(x))), x)
        return self.head(self.dropout(F.gelu(self.fc(x)))).mean(1)


def train(seed: int | None) -> dict[str, np.ndarray]:
    """Initialise, train four steps on data of one's own; returns the weights, the running statistics and the losses."""
    if seed is not None:
        random.manual_seed(seed)
    model = Net()
    optimiser = optim.AdamW(model.parameters(), lr=1e-2)
    images, labels = rng(seed or 0).standard_normal((32, 8, 8, 3)).astype(np.float32), rng(seed or 0).integers(0, 5, 32)
    losses = []
    for step in range(4):
        random.set_step(step)
        loss = F.cross_entropy(model(Tensor(images)), labels)
        optimiser.zero_grad()
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return model.state_dict() | {"losses": np.array(losses)}


def assert_same(ours: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> None:
    assert ours.keys() == reference.keys()
    for name, array in reference.items():
        assert_array_equal(ours[name], array, err_msg=name)


def test_eight_threads_train_at_once_and_get_the_same_numbers():
    expected = [train(seed) for seed in range(THREADS)]
    random.manual_seed(12345)
    counter = random.get_counter()
    for ours, reference in zip(at_once(train), expected, strict=True):
        assert_same(ours, reference)
    assert random.get_counter() == counter
    assert not np.array_equal(expected[0]["fc.weight"], expected[1]["fc.weight"])
    assert all(np.isfinite(e["losses"]).all() and e["losses"][-1] < e["losses"][0] for e in expected)


def test_threads_without_a_seed_draw_what_the_main_thread_would():
    """The seed of the main thread is the process's; how far the draws have come is counted in each thread."""
    random.manual_seed(7)
    expected = train(None)
    for ours in at_once(lambda _: train(None)):
        assert_same(ours, expected)


def test_gradients_of_several_threads_add_up():
    """Without a lock two threads find `.grad` None at once, or both add to what it was."""
    x, switching = Tensor(np.zeros(300), requires_grad=True), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            x.grad = None
            losses = [(x * float(2**number)) for number in range(THREADS)]
            at_once(lambda number: losses[number].backward(np.ones(300)))  # noqa: B023 (runs before the next)
            assert (x.grad.numpy() == 2**THREADS - 1).all()
    finally:
        sys.setswitchinterval(switching)


class FreedMeanwhile:
    """A node whose arrays another thread lets go of, the first `count` of them, after this one has looked at `looks` of them."""

    ARRAYS = "saved", "inputs", "kept", "out"  # in the order of `Node.free`

    def __init__(self, node: Node, looks: int, count: int):
        self.node, self.looks, self.count = node, looks, count

    def __getattr__(self, name: str) -> Any:
        if name in self.ARRAYS:
            if self.looks == 0:
                for array in self.ARRAYS[: self.count]:
                    setattr(self.node, array, None)
            self.looks -= 1
        return getattr(self.node, name)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", ["exp", "mul", "softmax", "layer_norm", "checkpoint"])
def test_a_node_that_another_thread_frees_gives_its_gradient_or_says_that_it_was_freed(name: str, create_graph: bool):
    x, dy = Tensor(rng(1).standard_normal((2, 5)), requires_grad=True), Tensor(rng(2).standard_normal((2, 5)))
    function: Callable = {"exp": F.exp, "mul": lambda x: x * x, "softmax": F.softmax, "layer_norm": F.layer_norm}.get(
        name, lambda x: minigrad.checkpoint(lambda x: x.exp(), x)
    )
    expected = minigrad.grad(function(x), x, dy)[0].numpy()
    outcomes = set()
    for looks in range(6):
        for count in range(1, 5):
            node: Any = function(x).node
            try:
                found, _ = node.op.backward(FreedMeanwhile(node, looks, count), [dy], None, create_graph)
            except RuntimeError as error:
                assert "its saved arrays were freed by an earlier backward pass" in str(error)
                outcomes.add("freed")
            else:
                np.testing.assert_allclose(sum(g.numpy() for g in found if g is not None), expected, 1e-12)
                outcomes.add("gradient")
    assert outcomes == {"freed", "gradient"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not():
    """The thread that adds to `.grad` while the process forks is not there to release its lock."""
    locked, forked = threading.Event(), threading.Event()

    def other() -> None:
        with autograd._collecting:
            locked.set()
            forked.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert locked.wait(30)
    child = os.fork()
    if not child:
        taken = autograd._collecting.acquire(timeout=0)
        os._exit(0 if taken else 1)
    forked.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_debugger_that_quits_as_the_lock_is_left_does_not_lock_this_thread_out():
    """Its trace function raises at the closing line of the `with` block, behind the block and before the lock is released."""
    x, visits, before = Tensor(np.ones(3), requires_grad=True), [], sys.gettrace()
    lines, first = inspect.getsourcelines(autograd.backward)
    number = first + next(k for k, line in enumerate(lines) if "with _collecting" in line)

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is autograd.backward.__code__ and event == "line" and frame.f_lineno == number:
            visits.append(frame)
            if len(visits) == 2:
                raise bdb.BdbQuit
        return trace

    try:
        sys.settrace(trace)
        with pytest.raises(bdb.BdbQuit):
            (x * 2.0).backward(np.array([1.0, 2.0, 3.0]))
        sys.settrace(before)
        assert autograd._collecting.acquire(timeout=0)
        autograd._collecting.release()
        (x * 2.0).backward(np.array([1.0, 2.0, 3.0]))
        assert x.grad.numpy().tolist() == [4, 8, 12]
    finally:
        sys.settrace(before)
        autograd._forget_lock()


def test_threads_share_a_model_for_reading():
    """grad() writes to nothing that is shared, in whatever mode each thread works."""
    random.manual_seed(3)
    model = Net().eval()
    parameters = list(model.parameters())
    modes = [minigrad.enable_grad, minigrad.definitions, minigrad.anomaly, minigrad.no_grad]

    def work(number: int) -> list[np.ndarray]:
        images, labels = Tensor(rng(number).standard_normal((4, 8, 8, 3)).astype(np.float32)), rng(number).integers(0, 5, 4)
        results = []
        for mode in modes[number % 4 :] + modes[: number % 4]:
            with mode():
                loss = F.cross_entropy(model(images), labels)
                results += [loss.numpy(), *(g.numpy() for g in minigrad.grad(loss, parameters))] if loss.requires_grad else [loss.numpy()]
        return results

    expected = [work(number) for number in range(THREADS)]
    before, versions = model.state_dict(), [p.version[0] for p in parameters]
    for ours, reference in zip(at_once(work), expected, strict=True):
        assert len(ours) == len(reference) == 4 + 3 * len(parameters)
        for a, b in zip(ours, reference, strict=True):
            assert_array_equal(a, b)
    assert_same(model.state_dict(), before)
    assert all(p.grad is None for p in parameters) and [p.version[0] for p in parameters] == versions
