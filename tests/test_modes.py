"""Modes: where each holds (blocks, functions, generators, coroutines, other tasks), and that none is left behind.

What anomaly mode reports is in `test_anomaly.py`, what threads see of modes in `test_threads.py`. Read next: `test_checkpoint.py`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Generator
from dataclasses import replace
from typing import Any

import pytest

import minigrad
from minigrad import Tensor
from minigrad import functional as F
from minigrad.modes import MODE, Mode, is_grad_enabled, mode
from minigrad.op import primitive
from tests.support import assert_close, leaf, rng


def test_no_grad_records_nothing_as_a_block_and_as_a_decorator():
    x = leaf(2)
    with minigrad.no_grad():
        y = x * 2.0
        assert not is_grad_enabled() and not y.requires_grad and y.node is None
        with minigrad.enable_grad():
            assert is_grad_enabled() and (x * 2.0).requires_grad
        assert not is_grad_enabled()
    assert is_grad_enabled()

    @minigrad.no_grad()
    def function(x: Tensor) -> Tensor:
        return x * 2.0

    assert not function(x).requires_grad and not function(x).requires_grad and is_grad_enabled()


MODES = {"no_grad": minigrad.no_grad, "enable_grad": minigrad.enable_grad, "definitions": minigrad.definitions, "anomaly": minigrad.anomaly}


@pytest.mark.parametrize("name", MODES)
def test_a_decorated_generator_has_the_mode_whenever_it_runs(name: str):
    seen: list[bool] = []

    def note() -> None:
        now = MODE.get()
        on = {"no_grad": not now.record, "enable_grad": now.record, "definitions": now.definitions, "anomaly": now.anomaly}
        seen.append(on[name] and now.recomputing)

    @MODES[name]()
    @mode(recomputing=True)  # they can be stacked
    def numbers(first: int) -> Generator[int, int, str]:
        note()
        try:
            got = yield first
            while True:
                note()
                try:
                    got = yield got + 1
                except KeyError:
                    note()
                    got = yield -1
                if got < 0:
                    return "done"
        finally:
            note()

    with minigrad.no_grad() if name == "enable_grad" else minigrad.enable_grad():
        before = MODE.get()
        generator = numbers(first=5)
        values = [next(generator), generator.send(10), generator.throw(KeyError("a")), generator.send(20)]
        assert values == [5, 11, -1, 21] and MODE.get() is before
        with pytest.raises(StopIteration) as end:
            generator.send(-1)
        assert end.value.value == "done" and seen == [True] * 5

        seen.clear()
        generator = numbers(5)
        next(generator)
        generator.close()
        with pytest.raises(ValueError, match="b"):  # which it does not catch
            failing = numbers(5)
            next(failing)
            failing.throw(ValueError("b"))
        with pytest.raises(StopIteration):
            next(generator)
        assert seen == [True] * 4 and MODE.get() is before


@pytest.mark.parametrize("name", MODES)
def test_a_mode_decorates_without_parentheses_too(name: str):
    def now() -> Mode:
        return MODE.get()

    bare, called = MODES[name](now), MODES[name]()(now)
    with minigrad.no_grad() if name == "enable_grad" else minigrad.enable_grad():
        assert bare.__name__ == "now" and repr(bare()) == repr(called()) != repr(now())


def test_a_decorated_coroutine_has_the_mode_while_it_runs_and_other_tasks_have_not():
    seen = []

    @minigrad.no_grad()
    async def inside() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(("inside", is_grad_enabled()))
        return "done"

    async def outside() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(("outside", is_grad_enabled()))

    class Called:
        async def __call__(self) -> bool:
            await asyncio.sleep(0)
            return is_grad_enabled()

    called = minigrad.no_grad()(Called())

    async def both() -> Any:
        results = await asyncio.gather(inside(), outside())
        return results, await inside(), await called(), is_grad_enabled()

    assert asyncio.run(both()) == (["done", None], "done", False, True)
    assert sorted(set(seen)) == [("inside", False), ("outside", True)] and len(seen) == 9


def test_what_a_mode_cannot_decorate():
    async def numbers() -> AsyncGenerator[int]:
        yield 1

    class Net:
        pass

    for wrong, what in (
        (Net, "is a class; decorate its methods"),
        (numbers, "is an async generator; decorate what it calls"),
        (0.5, "no_grad() and its like decorate functions, and 0.5 is a float"),
        (classmethod(len), "is a classmethod; decorate below @classmethod"),
    ):
        for decorator in (minigrad.no_grad, minigrad.no_grad()):
            with pytest.raises(TypeError, match=re.escape(what)):
                decorator(wrong)


@pytest.mark.parametrize("name", MODES)
def test_an_exception_leaves_no_mode_behind(name: str):
    before = MODE.get()
    with pytest.raises(KeyError), MODES[name](), MODES["no_grad"]():
        assert MODE.get() is not before
        raise KeyError
    assert MODE.get() is before


def test_a_mode_that_a_block_inside_has_left_is_taken_back(registry: None):
    """An interrupt can fall before a block that ends has done so."""
    before = MODE.get()
    with minigrad.enable_grad():
        MODE.set(replace(MODE.get(), record=False, recomputing=True))
    assert MODE.get() is before

    @primitive
    def leaving(x: Tensor) -> Tensor:
        return x * 1.0

    leaving.derivative(x=lambda g: (MODE.set(replace(MODE.get(), recomputing=True, reads=[])), g)[1])
    x = leaf(2)
    for function in (
        lambda: leaving(x).sum().backward(),
        lambda: minigrad.grad(leaving(x).sum(), x, create_graph=True),
        lambda: minigrad.checkpoint(leaving, x).sum().backward(),
        lambda: minigrad.checkpoint(lambda x: (MODE.set(replace(MODE.get(), record=False)), x * 1.0)[1], x),
    ):
        function()
        assert MODE.get() is before


def test_one_mode_is_entered_once_at_a_time():
    """Two threads that leave it in another order than they entered would otherwise take over each other's."""
    before, off = MODE.get(), minigrad.no_grad()
    for _ in range(2):
        with off:
            with pytest.raises(RuntimeError, match=r"mode\(record\): this one is entered already, here or in another thread; make another"), off:
                pass
            assert not is_grad_enabled()
        assert MODE.get() is before

    @minigrad.no_grad()
    def depth(n: int) -> int:
        assert not is_grad_enabled()
        return 0 if n == 0 else 1 + depth(n - 1)

    assert depth(3) == 3 and MODE.get() is before


def test_a_mode_that_could_not_be_entered_is_none(monkeypatch: pytest.MonkeyPatch):
    """An interrupt as it is set, or a field that there is not: the next use begins anew."""
    before, wrong = MODE.get(), mode(speed=2)
    for _ in range(2):
        with pytest.raises(TypeError, match="speed"), wrong:
            pass

    class Interrupted:
        get, calls = staticmethod(MODE.get), 0

        def set(self, value: Mode) -> None:
            MODE.set(value)
            self.calls += 1
            if self.calls == 1:
                raise KeyboardInterrupt

    off = minigrad.no_grad()
    with monkeypatch.context() as patch:
        patch.setattr("minigrad.modes.MODE", Interrupted())
        with pytest.raises(KeyboardInterrupt), off:
            pass
    assert MODE.get() is before
    with off:
        assert not is_grad_enabled()
    assert MODE.get() is before


def test_a_definition_that_is_differentiated_in_a_walk_leaves_its_mode(monkeypatch: pytest.MonkeyPatch, registry: None):
    """It is run again recording, and what comes after it is not."""
    seen = []

    @primitive
    def spy(x: Tensor) -> Tensor:
        return x * 1.0

    spy.derivative(x=lambda g: (seen.append(MODE.get().record), g)[1])
    y = F.layer_norm(spy(leaf(2, 3))).sum()
    monkeypatch.delitem(F.layer_norm.kernels, "cpu")
    y.backward()
    assert seen == [False]


def test_definitions_use_no_kernel(monkeypatch: pytest.MonkeyPatch):
    def never(*_: Any) -> None:
        raise AssertionError("a kernel was used")

    x, dy = leaf(2, 3), Tensor(rng(1).uniform(-1, 1, (2, 3)))
    outside = F.layer_norm(x)
    expected = minigrad.grad(outside, x, dy, retain_graph=True)[0]
    monkeypatch.setattr(F.layer_norm.kernels["cpu"], "forward", never)
    monkeypatch.setattr(F.layer_norm.kernels["cpu"], "backward", never)
    with minigrad.definitions():
        inside = F.layer_norm(x)
        with pytest.raises(AssertionError, match="a kernel was used"):  # it was called before the block
            minigrad.grad(outside, x, dy)
    (g,) = minigrad.grad(inside, x, dy)
    assert_close(g, expected)
    with pytest.raises(AssertionError, match="a kernel was used"):
        F.layer_norm(x)
