"""The thread pool: blocks cover the rows, errors come back, nothing deadlocks, results do not depend on luck."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from threadpoolctl import threadpool_info

from minigrad import backend
from minigrad.backend import cpu
from minigrad.backend.cpu import blocks, parallel_blocks, parallel_rows, row_blocks, thread_count


@pytest.fixture(scope="module", params=[1, 2, 5])
def pool(request: pytest.FixtureRequest) -> Iterator[int]:
    """A test that asks for it runs with pools of several sizes, whatever this machine has."""
    before = cpu._pool
    cpu._pool = cpu._Pool(request.param)
    yield request.param
    cpu._pool = before


@pytest.mark.usefixtures("pool")
@given(st.integers(0, 50), st.integers(0, 12))
def test_blocks_cover_the_rows_exactly(rows: int, grain: int):
    blocks = row_blocks(rows, grain)
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(rows))
    assert len(blocks) <= thread_count()
    if len(blocks) > 1:
        lengths = [stop - start for start, stop in blocks]
        assert min(lengths) >= max(grain, 1) and max(lengths) - min(lengths) <= 1


@pytest.mark.usefixtures("pool")
@given(st.integers(0, 50), st.integers(1, 12))
def test_every_row_is_worked_on_once_and_results_are_in_order(rows: int, grain: int):
    counts = np.zeros(rows)

    def work(start: int, stop: int) -> tuple[int, int]:
        counts[start:stop] += 1
        return start, stop

    results = parallel_rows(work, rows, grain)
    assert_array_equal(counts, 1)
    assert results[0][0] == 0 and results[-1][1] == rows
    assert all(a[1] == b[0] for a, b in itertools.pairwise(results))


def test_threads_really_share_the_work(pool: int):
    """All blocks are under way at the same time: each waits for the others."""
    together, names = threading.Barrier(pool, timeout=30), set()

    def work(start: int, stop: int) -> None:
        together.wait()
        names.add(threading.current_thread().name)

    parallel_rows(work, 100)
    assert len(names) == pool == thread_count()


@pytest.mark.parametrize("failing", ["first", "last", "all"])
def test_an_exception_comes_back_when_all_blocks_are_done(failing: str, pool: int):
    finished = []

    def work(start: int, stop: int) -> None:
        if failing == "all" or start == (0 if failing == "first" else blocks[-1][0]):
            raise KeyError(f"rows {start} to {stop}")
        time.sleep(0.01)
        finished.append(start)

    blocks = row_blocks(100)
    with pytest.raises(KeyError, match="rows "):
        parallel_rows(work, 100)
    assert len(finished) == (0 if failing == "all" else len(blocks) - 1)  # nobody writes into the caller's arrays any more
    assert parallel_rows(lambda start, stop: stop - start, 100) == [stop - start for start, stop in blocks]  # the pool lives on


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_raised_when_no_worker_writes_any_more(pool: int):
    """It comes while the caller, done with its own share, waits for the others."""
    out = np.zeros(100)

    def work(start: int, stop: int) -> None:
        if start:
            time.sleep(0.01)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
            time.sleep(0.05)
        out[start:stop] = 1

    if pool == 1:
        parallel_rows(work, 100)
    else:
        with pytest.raises(KeyboardInterrupt):
            parallel_rows(work, 100)
    assert out.all()
    assert parallel_rows(lambda start, stop: stop - start, 100) == [stop - start for start, stop in row_blocks(100)]


@pytest.mark.parametrize("where", ["caller", "worker"])
def test_an_exception_keeps_no_arrays_alive(where: str, pool: int):
    """A ring through its traceback would, until the collector comes round: a step that found no memory could not be tried again with less."""
    arrays: list[weakref.ref] = []

    def attempt() -> None:
        array = np.zeros(1000)
        arrays.append(weakref.ref(array))

        def work(start: int, stop: int) -> None:
            if (start == 0) == (where == "caller"):
                raise MemoryError(array.size)

        parallel_rows(work, 100)

    gc.disable()
    try:
        with contextlib.suppress(MemoryError):
            attempt()
        deadline = time.monotonic() + 30
        while arrays[0]() is not None and time.monotonic() < deadline:
            time.sleep(0.001)  # a worker says that it is done just before it lets go
        assert arrays[0]() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("grain", [1, 1000])
def test_blocks_on_all_threads_are_returned_in_their_order(monkeypatch: pytest.MonkeyPatch, pool: int, grain: int):
    """Each thread's share is cut into blocks of its own; a grain is rows, however wide one is."""
    monkeypatch.setattr(cpu, "ALONE", 21)
    monkeypatch.setattr(cpu, "TOGETHER", 33)
    shares = []
    monkeypatch.setattr(cpu, "parallel_rows", lambda *given: shares.append(given[1:]) or parallel_rows(*given))
    x = np.arange(500).reshape(100, 5)
    together = grain == 1 and pool > 1
    shared = row_blocks(100) if together else [(0, 100)]
    expected = [slice(row, min(row + (6 if together else 4), stop)) for start, stop in shared for row in range(start, stop, 6 if together else 4)]
    seen = parallel_blocks(lambda block: (block, int(x[block].sum())), *x.shape, grain)
    assert [block for block, _ in seen] == expected and sum(part for _, part in seen) == x.sum()
    assert shares == [(100, grain)]
    assert parallel_blocks(lambda block: block, 0, 5, grain) == []


def test_a_thread_that_works_alone_takes_the_shorter_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "ALONE", 20)
    monkeypatch.setattr(cpu, "TOGETHER", 30)
    assert blocks(0, 9, 9, 5) == [slice(0, 4), slice(4, 8), slice(8, 9)]
    assert blocks(3, 12, 13, 5) == [slice(3, 9), slice(9, 12)]
    assert blocks(0, 9, 13, 5) == [slice(0, 6), slice(6, 9)] and blocks(9, 13, 13, 5) == [slice(9, 13)]
    assert blocks(0, 2, 2, 100) == [slice(0, 1), slice(1, 2)]  # at least a row
    assert blocks(0, 21, 21) == [slice(0, 20), slice(20, 21)]
    assert blocks(0, 0, 0, 5) == []


def test_a_call_inside_a_worker_runs_there():
    """No worker waits for another: a pool of n threads would be full after n nested calls."""

    def inner(start: int, stop: int) -> tuple[str, int]:
        return threading.current_thread().name, stop - start

    def outer(start: int, stop: int) -> tuple[str, list]:
        return threading.current_thread().name, parallel_rows(inner, 8)

    for name, results in parallel_rows(outer, 100):
        assert sum(count for _, count in results) == 8
        if name.startswith("minigrad-"):
            assert results == [(name, 8)]


@pytest.mark.usefixtures("pool")
def test_many_callers_at_once():
    results: dict[int, bool] = {}

    def caller(number: int) -> None:
        out = np.zeros(1000)

        def work(start: int, stop: int) -> None:
            out[start:stop] = number

        for _ in range(20):
            out[:] = -1
            parallel_rows(work, 1000)
            if not (out == number).all():
                return
        results[number] = True

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert sorted(results) == list(range(8))


@pytest.mark.usefixtures("pool")
def test_sums_over_blocks_are_reproducible_to_the_bit():
    x = np.random.default_rng(0).standard_normal((999, 7)).astype(np.float32)

    def total() -> np.ndarray:
        return np.asarray(sum(parallel_rows(lambda start, stop: x[start:stop].sum(0), len(x), 8)))

    first = total()
    for _ in range(30):
        assert_array_equal(total(), first)


@pytest.mark.usefixtures("pool")
def test_an_idle_worker_keeps_nothing_alive():
    array = np.zeros(100)
    reference = weakref.ref(array)

    def work(start: int, stop: int, array: np.ndarray = array) -> None:
        array[start:stop] = 1

    parallel_rows(work, 100)
    del work, array
    deadline = time.monotonic() + 30
    while reference() is not None and time.monotonic() < deadline:
        time.sleep(0.001)  # a worker says that it is done just before it lets go
    assert reference() is None


# --- in processes of their own


def run(code: str, threads: str | None) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "MINIGRAD_THREADS"} | (
        {} if threads is None else {"MINIGRAD_THREADS": threads}
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)


REPORT = """
import threading
import numpy as np
from threadpoolctl import threadpool_info
def blas():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
before = blas()
from minigrad.backend.cpu import parallel_rows, row_blocks, thread_count
assert blas() == before and threading.active_count() == 1      # importing makes no pool
blocks = len(parallel_rows(lambda start, stop: None, 1000))
print(thread_count(), blocks, threading.active_count(), blas() == before, set(blas()) == {1})
"""


def test_no_pool():
    result = run(REPORT, "0")
    assert result.stdout.split()[:4] == ["1", "1", "1", "True"], result.stderr  # BLAS is left alone


@pytest.mark.parametrize("threads", [1, 3])
def test_a_pool_of_so_many_threads(threads: int):
    result = run(REPORT, str(threads))
    fields = result.stdout.split()
    assert fields[:3] == [str(threads)] * 3, result.stderr  # the caller is one of them
    assert fields[4] == "True"  # BLAS has one thread


def test_as_many_threads_as_processors_by_default():
    result = run(REPORT, None)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert result.stdout.split()[0] == str(processors), result.stderr


@pytest.mark.parametrize("value", ["two", "-1", "1.5", " ", "1025", "9" * 5000])
def test_a_bad_number_of_threads(value: str):
    code = """
from minigrad.backend.cpu import parallel_rows
for _ in range(2):
    try:
        parallel_rows(lambda start, stop: None, 10)
    except ValueError as error:
        print(error)
"""
    result = run(code, value)
    assert result.stdout.splitlines() == [f"MINIGRAD_THREADS is {value!r}; give a whole number up to 1024, 0 for no thread pool"] * 2, result.stderr


FORK = """
import os, sys, threading, warnings
import numpy as np
warnings.simplefilter("ignore", DeprecationWarning)     # Python warns of forking with threads: that is what is tested
from minigrad import Tensor
from minigrad import functional as F
from minigrad.backend.cpu import parallel_rows
def work():
    out = np.zeros(1000)
    def fill(start, stop):
        out[start:stop] = 1
    parallel_rows(fill, 1000)
    x = Tensor(np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32), requires_grad=True)
    F.layer_norm(x).backward(x.detach())
    assert out.all()
    return x.grad.numpy().tobytes()
expected = work()
assert threading.active_count() == 3
child = os.fork()
if child == 0:
    assert threading.active_count() == 1
    same = work() == expected and threading.active_count() == 3
    os._exit(0 if same else 7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert work() == expected
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_pool_is_made_again_after_a_fork():
    result = run(FORK, "3")
    assert result.stdout == "done\n", result.stderr[-2000:]


def test_work_that_is_left_when_python_ends():
    """Workers have been stopped by then."""
    code = """
import numpy as np
from minigrad.backend.cpu import parallel_rows, row_blocks
class Late:
    def __del__(self):
        out = np.zeros(1000)
        parts = parallel_rows(lambda start, stop: out[start:stop].fill(1) or stop - start, 1000)
        print(out.tolist() == [1.0] * 1000, parts == [stop - start for start, stop in row_blocks(1000)], len(parts))
parallel_rows(lambda start, stop: None, 1000)
late = Late()
"""
    assert run(code, "3").stdout == "True True 3\n"


def test_the_same_bits_in_two_processes():
    code = """
import hashlib
import numpy as np
from minigrad import Tensor
from minigrad import functional as F
generator = np.random.default_rng(0)
x, w = (Tensor(generator.standard_normal(shape).astype(np.float32), requires_grad=True) for shape in [(3000, 64), (64, 64)])
F.layer_norm(F.gelu(F.linear(x, w)), w[0], w[1]).backward(Tensor(generator.standard_normal((3000, 64)).astype(np.float32)))
print(hashlib.sha256(x.grad.numpy().tobytes() + w.grad.numpy().tobytes()).hexdigest())
"""
    first, second = run(code, "3"), run(code, "3")
    assert first.stdout == second.stdout and len(first.stdout) == 65, first.stderr


def test_blas_keeps_one_thread():
    thread_count()
    assert {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"} == {1}


@pytest.mark.parametrize(
    ("architectures", "small"),
    [(["Haswell"], False), (["SkylakeX"], True), (["Zen", "Cooperlake"], True), (["SapphireRapids"], True), ([None], False)],
)
def test_small_products_are_what_openblas_has_with_avx_512(monkeypatch: pytest.MonkeyPatch, architectures: list[str | None], small: bool) -> None:
    """Other libraries (MKL, OpenMP) tell no architecture, or none of these."""
    monkeypatch.setattr(cpu, "threadpool_info", lambda: [{} if name is None else {"architecture": name} for name in architectures])
    assert cpu.has_small_products.__wrapped__() is small


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_adding_large_arrays_on_all_threads_gives_the_same_bits(dtype: type, pool: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """New arrays, a given one, one of the summands; and what is not split: other layouts, broadcasting, mixed dtypes, numbers, empty arrays."""
    monkeypatch.setattr(backend, "LARGE", 10)
    monkeypatch.setattr(cpu, "ADD_GRAIN", 5)
    parts: list[int] = []
    monkeypatch.setattr(
        cpu, "parallel_rows", lambda work, rows, grain: parts.append(len(row_blocks(rows, grain))) or parallel_rows(work, rows, grain)
    )
    x, y = (np.random.default_rng(seed).integers(-99, 99, (7, 11)).astype(dtype) for seed in (0, 1))
    expected = x + y
    assert_array_equal(backend.add(x, y), expected)
    out = np.empty_like(x)
    assert backend.add(x, y, out=out) is out
    assert_array_equal(out, expected)
    total = x.copy()
    assert backend.add(total, y, out=total) is total
    assert_array_equal(total, expected)
    assert parts == [pool] * 3 and out.dtype == dtype
    parts.clear()
    assert_array_equal(backend.add(x.T, y.T), expected.T)
    assert_array_equal(backend.add(x, y[0]), x + y[0])
    assert_array_equal(backend.add(x, y.astype(np.float16)), x + y.astype(np.float16))
    assert_array_equal(backend.add(x, 2), x + 2)
    assert_array_equal(backend.add(x[:0], y[:0]), expected[:0])
    assert_array_equal(backend.add(x[0, :3], y[0, :3], out=out[0, :3]), expected[0, :3])
    assert_array_equal(backend.add(x, y, out=np.empty((11, 7), dtype).T), expected)
    assert not parts


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="asks glibc")
def test_freed_memory_is_kept_and_large_arrays_take_it_again() -> None:
    """48 MiB: more than glibc before 2.35 can be asked to keep, unless there is room in what it keeps already."""
    script = """if True:
        import resource
        import numpy as np
        from minigrad.backend.cpu import keep_freed_memory

        def faults() -> int:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            np.ones(48 << 20, np.uint8)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        assert keep_freed_memory()
        first, *later = [faults() for _ in range(5)]
        assert first > 10 * max(later), (first, later)
    """
    libc = tuple(int(part) for part in str(os.confstr("CS_GNU_LIBC_VERSION")).split()[1].split("."))
    done = run(script, None)
    assert done.returncode == 0 or libc < (2, 35), done.stderr
