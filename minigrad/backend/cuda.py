"""CUDA kernels: loads `.cu` files, checks and launches them, on a GPU through CuPy or on the CPU through the emulator. Only this file imports CuPy.

    _cuda = cuda.Kernels(__file__)                                  # layer_norm.cu beside layer_norm.py; nothing is compiled yet
    _cuda.launch("layer_norm<float>", rows, 32, x, weight, bias, y, rows, channels, eps)

CuPy passes arguments to a kernel unchecked: a strided array as its address, a Python float as 8 bytes. So every argument is compared with the
kernel's parameter list first (`kernel_source.py`), and numbers are converted to its types. `with emulated():` gives the device "cuda" to the
emulator. Read next: `kernel_source.py`, then `emulator/`.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from minigrad import backend
from minigrad.backend import kernel_source
from minigrad.backend.kernel_source import CompileError, Kernel, Parameter

__all__ = [
    "Availability", "Captured", "CompileError", "Kernels", "Notes", "array_module", "availability", "c_type", "capturing", "connect", "emulated",
    "has_tensor_cores", "keep", "pack_types", "vector_width", "write",
]  # fmt: skip

OPTIONS = ("-std=c++17", "-lineinfo")
"""What NVRTC is given: line numbers for profilers cost nothing. CuPy adds -ftz=true: float32 numbers nearer to 0 than 1.2e-38 count as 0."""

_MOST_GRID = (2**31 - 1, 65535, 65535)
_SHARED_WITHOUT_ASKING = 48 * 1024

_module: Any = None  # what plays CuPy at present: CuPy, the emulator's stand-in, or None before the first use


class Availability(NamedTuple):
    """Whether the device "cuda" can be used here, and a sentence that says what there is, or what is missing and how to get it."""

    usable: bool
    sentence: str


def _load_driver() -> Any:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def availability() -> Availability:
    """Look for a driver, a GPU and CuPy, in this order. Inside `emulated()` the emulator counts."""
    if _module is not None and _module.__name__ != "cupy":
        return Availability(True, "CUDA: the emulator runs the kernels on the CPU.")
    emulator = "without it, `with minigrad.emulated():` runs the same kernels on the CPU"
    otherwise = f"; {emulator}." if sys.platform == "linux" else "."  # the emulator needs Linux
    try:
        driver = _load_driver()
    except OSError:
        if sys.platform == "darwin":
            return Availability(False, "No CUDA: macOS has no NVIDIA driver; everything runs on the CPU.")
        return Availability(False, f"No CUDA: there is no NVIDIA driver here; install it (https://www.nvidia.com/drivers){otherwise}")
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    error = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if error or count.value == 0:
        why = f"the driver finds no GPU (error {error})" if error else "the driver finds no GPU"
        return Availability(False, f"No CUDA: {why}; in a container start it with GPUs, and see that CUDA_VISIBLE_DEVICES names one{otherwise}")
    extra = "cuda13" if version.value >= 13000 else "cuda12"
    try:
        import cupy  # type: ignore[import-not-found]
    except ImportError as failure:
        reason = "CuPy is not installed" if isinstance(failure, ModuleNotFoundError) else f"CuPy cannot be imported ({failure})"
        return Availability(False, f'No CUDA: there is a GPU, but {reason}: in the project\'s folder, pip install -e ".[{extra}]"{otherwise}')
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return Availability(True, f"CUDA: {name} through CuPy {cupy.__version__}.")


def connect() -> Any:
    """Make the device "cuda" known and return its array module. Raises RuntimeError where there is none, with `availability().sentence`."""
    global _module
    if _module is None:
        found = availability()
        if not found.usable:
            raise RuntimeError(found.sentence)
        import cupy  # type: ignore[import-not-found]

        _use(cupy)
    return _module


def array_module() -> Any:
    """The module whose arrays live on the device "cuda": `cupy`, or its stand-in inside `emulated()`."""
    return connect() if _module is None else _module


def _use(module: Any) -> None:
    """Let `module` (CuPy, its stand-in, or None) be the device "cuda"."""
    global _module
    _module = module
    if module is None:
        backend.remove_device("cuda")
    else:
        from minigrad.backend import addition, cublas, scatter  # late: they import this file

        own = scatter.add_at, cublas.matmul, addition.add_into
        backend.add_device("cuda", module.ndarray, module.asarray, module.asnumpy, module.lib.stride_tricks.as_strided, *own)


@contextmanager
def emulated(build: str | None = None, orders: Sequence[str] = ("ascending",)) -> Iterator[Any]:
    """`with emulated() as device:` the device "cuda" is the emulator: kernels run on the CPU, and their mistakes raise.

    Args:
        build: "check" (the default; or what MINIGRAD_EMULATOR says) looks at every access, "plain" is several times faster, "address" uses
            AddressSanitizer and needs a process of its own. See emulator/compiler.py.
        orders: in which orders of threads and blocks every launch runs: "ascending", "descending", "shuffled". With more than one, results that
            differ in a single bit raise NotRepeatable.

    Yields:
        The emulated device: `launches`, `synchronisations` and `allocations` count what happens in the block.
    """
    from minigrad.backend.emulator import compiler, launch, standin, state

    build = build or os.environ.get("MINIGRAD_EMULATOR") or "check"
    if build not in compiler.BUILDS:
        raise ValueError(f"emulated: there is no build {build!r}; there are {', '.join(compiler.BUILDS)}")
    if not orders or not set(orders) <= set(launch.ORDERS):
        raise ValueError(f"emulated: orders are some of {', '.join(launch.ORDERS)}, not {orders!r}")
    launch.core(build)
    device = state.State(build, orders)
    before, module = state.use(device), _module
    _use(standin)
    try:
        yield device
    finally:
        state.use(before)
        _use(module)


class _OfThread(threading.local):
    """What each thread has for the work that it captures."""

    def __init__(self) -> None:  # called in each thread
        self.waiting: list[tuple[Any, np.ndarray]] = []  # (array, values): what it gave `write` meanwhile
        self.kept: list[Any] | None = None  # what it gave `keep` meanwhile; None while it captures nothing
        self.streams: dict[tuple[int, int], Any] = {}  # that it captures on, by array module and device


_of_thread = _OfThread()


def capturing() -> bool:
    """Whether work is being captured."""
    return array_module().cuda.get_current_stream().is_capturing()


def write(array: Any, values: np.ndarray) -> None:
    """Let an array on the GPU be `values` of the host, without waiting for the GPU; while work is captured, which allows no copies, after that.

    What is written after a capture is there for the graph, so `Captured` keeps the array.

    Raises:
        MemoryError: there is none on the GPU to bring the values there; then the array is as it was, and stays so.
    """
    if capturing():
        _of_thread.waiting.append((array, values))
        return
    _write_waiting()
    array[...] = array_module().asarray(values)  # through pinned memory; `array.set` would wait


def _write_waiting() -> None:
    """Do what `write` could not do while work was captured; `Captured` does so itself."""
    waiting = _of_thread.waiting
    while waiting:
        array, values = waiting[0]
        array[...] = array_module().asarray(values)
        del waiting[0]


def keep(*objects: Any) -> None:
    """While work is captured: its graph keeps these as long as itself, such as arrays that a launch finds through a table of addresses."""
    if _of_thread.kept is not None:
        _of_thread.kept.extend(objects)


_Note = TypeVar("_Note")


class Notes(Generic[_Note]):
    """What an object notes of captures that hold its work, a note for each: it lives as long as the capture's graph, which alone holds it."""

    def __init__(self) -> None:
        self._made: list[weakref.ref[_Note]] = []

    def add(self, note: _Note) -> None:
        """Add the note of the work that is being captured."""
        keep(note)
        self._made = [known for known in self._made if known() is not None] + [weakref.ref(note)]

    def latest(self) -> _Note | None:
        """The note of the last capture whose graph is still there."""
        return next((note for known in reversed(self._made) if (note := known()) is not None), None)


def _capture_stream(cp: Any) -> Any:
    """The stream that this thread captures on: always the same one, since cuBLAS has 32 MiB of workspace for each stream it has seen."""
    key = id(cp), cp.cuda.Device().id
    if key not in _of_thread.streams:
        _of_thread.streams[key] = cp.cuda.Stream(non_blocking=True)
    return _of_thread.streams[key]


@contextmanager
def _in_turn(outer: Any, inner: Any) -> Iterator[None]:
    """What the block does on the stream `inner` comes after what `outer` has had to do so far, and before what it gets later.

    Also if the block raises: what it had begun by then may write to arrays that others use.
    """
    inner.wait_event(outer.record())
    try:
        yield
    finally:
        outer.wait_event(inner.record())


class Captured:
    """What a function does on the GPU as one CUDA graph: `launch()` does all of it again, on the same memory, for the price of one launch.

    The function is called a few times first, so that kernels are compiled and constants are on the device, and once more while its work is noted
    down; it must be such that this does no harm. It reads its inputs from arrays that stay, and leaves in such what is to be read later; what Python
    decides, such as which tensors require grad, stays as it was. It may not wait for the device. Memory comes from a pool that nobody else uses, so
    that the graph writes where nothing else is. An optimiser and an `EMA` in it have `upload`, to be called before a launch: it brings their rates
    and their decay to the GPU, and says so if the arrays that the graph knows are no longer theirs.

    Args:
        function: takes nothing.
        warm_ups: calls before the one that is captured.

    Attributes:
        result: what the function returned when it was captured; its arrays have new contents after each launch.

    Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-graphs
    """

    def __init__(self, function: Callable[[], Any], warm_ups: int = 2):
        cp = array_module()
        stream = _capture_stream(cp)
        self._pool = cp.cuda.MemoryPool()
        with _in_turn(cp.cuda.get_current_stream(), stream), stream, cp.cuda.using_allocator(self._pool.malloc):
            for _ in range(warm_ups):
                function()
            # What lies in cycles goes now: collected in the middle of the capture, an older graph's memory would be freed (cudaFree), which waits for
            # the GPU. PyTorch does the same.
            gc.collect()
            kept: list[Any] = []
            stream.begin_capture()
            try:
                with backend.numbers_of_capture() as numbers:
                    _of_thread.kept = kept
                    self.result = function()
            except BaseException:
                kept.clear()  # the error's traceback has this list, and with it would hold arrays, and notes of a graph that never was
                with suppress(Exception):  # that the capture has failed is known
                    stream.end_capture()
                with suppress(Exception):
                    _write_waiting()  # whoever wrote believes that it is there
                raise
            finally:
                _of_thread.kept = None
            self._graph = stream.end_capture()
            written = [array for array, _ in _of_thread.waiting]
            self._arrays = [*numbers, *written, *kept]  # what the graph reads and writes by its address
            _write_waiting()

    def launch(self) -> None:
        """Do the work again; returns at once."""
        self._graph.launch()


def has_tensor_cores() -> bool:
    """Whether the current GPU's tensor cores take tf32 and bf16: compute capability 8.0 (A100, RTX 30) and later."""
    return int(array_module().cuda.Device().compute_capability) >= 80


def c_type(dtype: np.dtype) -> str:
    """What C++ calls a dtype that kernels compute in. Raises TypeError for others."""
    name = {"float32": "float", "float64": "double"}.get(np.dtype(dtype).name)
    if name is None:
        raise TypeError(f"CUDA kernels compute in float32 and float64, not in {dtype}")
    return name


def vector_width(length: int, *arrays: Any) -> int:
    """4 where kernels may read and write these arrays as float4: float32, rows of a `length` that 4 divides, at multiples of 16 bytes; else 1."""
    usable = length % 4 == 0 and all(x is None or (x.dtype == np.float32 and x.data.ptr % 16 == 0) for x in arrays)
    return 4 if usable else 1


def pack_types(dtype: np.dtype, width: int) -> str:
    """Template arguments of a kernel that moves packs of `width` numbers (see `vector_width`): the type of a number, and that of a pack."""
    number = c_type(dtype)
    return f"{number}, {'float4' if width == 4 else number}"


class Kernels:
    """The kernels of a `.cu` file, compiled at the first launch, and again where CuPy and the emulator both run them.

    Args:
        page: the `.cu` file, or the `.py` file beside it.
    """

    def __init__(self, page: str | Path):
        self.path = Path(page).with_suffix(".cu")
        self._source: kernel_source.Source | None = None
        self._compiled: dict[int, tuple[Any, dict[str, Any]]] = {}  # id of the array module: (its RawModule, functions by name)
        self._most_shared: dict[tuple[int, int, str], int] = {}  # (id of the array module, device, kernel): dynamic shared memory asked for

    @property
    def source(self) -> kernel_source.Source:
        """The file's text and its kernels' parameters."""
        if self._source is None:
            self._source = kernel_source.read(self.path)
        return self._source

    def launch(self, name: str, grid: int | tuple[int, ...], block: int | tuple[int, ...], *arguments: Any, shared: int = 0) -> None:
        """Launch a kernel; nothing happens if the grid, or every array it writes, is empty.

        Args:
            name: of the kernel, with its template arguments.
            grid, block: blocks of the grid and threads of a block, up to three numbers each.
            arguments: one per parameter: arrays on the device, C-contiguous and of its dtype (None for a null pointer), and Python or NumPy numbers.
            shared: bytes of dynamic shared memory.

        Raises:
            TypeError, ValueError: one sentence that names the argument.
            CompileError: with the compiler's message and the source lines.
        """
        kernel = self.source.kernels.get(name)
        if kernel is None:
            raise ValueError(f"{self.path.name}: there is no kernel {name!r}; there are {', '.join(self.source.kernels)}")
        if len(arguments) != len(kernel.parameters):
            raise TypeError(
                f"{name}: {len(arguments)} arguments given, the kernel has {len(kernel.parameters)}: {', '.join(p.name for p in kernel.parameters)}"
            )
        module = array_module()
        values = [_argument(name, k, p, x, module) for k, (p, x) in enumerate(zip(kernel.parameters, arguments, strict=True))]
        grid, block = _three(grid), _three(block)
        written = [x for p, x in zip(kernel.parameters, arguments, strict=True) if p.pointer and not p.const and x is not None]
        if 0 in grid or (written and all(x.size == 0 for x in written)):
            return
        _check_limits(kernel, grid, block)
        function = self._function(name, module)
        if shared > _SHARED_WITHOUT_ASKING:
            key = id(module), module.cuda.Device().id, name
            # It is raised only: a graph that has captured a launch with more is made, and launched, after this one.
            if shared > self._most_shared.get(key, 0):
                function.max_dynamic_shared_size_bytes = shared
                self._most_shared[key] = shared
        function(grid, block, tuple(values), shared_mem=shared)

    def _function(self, name: str, module: Any) -> Any:
        """The compiled kernel."""
        if id(module) not in self._compiled:
            code = self.source.text
            self._compiled[id(module)] = (module.RawModule(code=code, options=OPTIONS, name_expressions=tuple(self.source.kernels)), {})
        raw, functions = self._compiled[id(module)]
        if name not in functions:
            try:
                functions[name] = raw.get_function(name)
            except Exception as error:
                if type(error).__name__ not in ("CompileException", "CompileError"):  # CuPy's, the emulator's
                    raise
                raise CompileError(f"{self.path.name} does not compile:\n{self.source.explain(str(error))}") from error
        return functions[name]


def _three(numbers: int | tuple[int, ...]) -> tuple[int, int, int]:
    x, y, z = (*((numbers,) if isinstance(numbers, int) else numbers), 1, 1)[:3]
    return x, y, z


def _check_limits(kernel: Kernel, grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
    """Raise ValueError for a launch that the driver would refuse with less to say."""
    threads = block[0] * block[1] * block[2]
    if not 1 <= threads <= kernel.most_threads or block[2] > 64:
        bounds = (
            "a block has 1 to 1024 threads, at most 64 along z" if kernel.most_threads == 1024 else f"its __launch_bounds__ are {kernel.most_threads}"
        )
        raise ValueError(f"{kernel.name}: block {block} has {threads} threads; {bounds}")
    if any(n < 0 or n > most for n, most in zip(grid, _MOST_GRID, strict=True)):
        raise ValueError(f"{kernel.name}: grid {grid}; at most {_MOST_GRID} blocks along x, y, z")


_KINDS: dict[str, tuple[type, ...]] = {"i": (int,), "u": (int,), "f": (float,), "b": (bool,)}


def _argument(kernel: str, position: int, parameter: Parameter, x: Any, module: Any) -> Any:
    """What CuPy is given for argument `x`. Raises TypeError or ValueError if the parameter wants something else."""
    wanted = parameter.dtype
    if not parameter.pointer:
        if type(x) in _KINDS[wanted.kind]:
            if wanted.kind in "iu" and not np.iinfo(wanted).min <= x <= np.iinfo(wanted).max:
                raise ValueError(_what(kernel, position, parameter, f"{x}, which does not fit in {wanted}"))
            return wanted.type(x)
        if isinstance(x, np.generic) and x.dtype == wanted:
            return x
        raise TypeError(_what(kernel, position, parameter, str(x.dtype) if isinstance(x, np.generic) else type(x).__name__))
    if x is None:
        return np.uint64(0)
    if type(x) is not module.ndarray:
        on_cpu = "an array on the CPU; move it with .to(device='cuda')"
        raise TypeError(_what(kernel, position, parameter, on_cpu if isinstance(x, np.ndarray) else type(x).__name__))
    if x.dtype != wanted:
        raise TypeError(_what(kernel, position, parameter, f"an array of {x.dtype}"))
    if not x.flags.c_contiguous:
        raise TypeError(_what(kernel, position, parameter, f"an array that is not contiguous (shape {x.shape}, strides {x.strides})"))
    if x.size and (at := x.data.ptr % parameter.alignment):
        raise ValueError(_what(kernel, position, parameter, f"an array that starts {at} bytes past a multiple of {parameter.alignment}"))
    return x


def _what(kernel: str, position: int, parameter: Parameter, got: str) -> str:
    return f"argument {position + 1} ({parameter.name}) of {kernel}: the kernel wants {parameter.type}, got {got}"
