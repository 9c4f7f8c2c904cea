"""Loading and launching kernels: what is checked before a kernel sees it, what is said when there is no GPU, and Tensors on the emulator."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import weakref
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from minigrad import Tensor, backend
from minigrad.backend import cuda
from tests.cuda_device import on_cuda

pytestmark = pytest.mark.cuda

SOURCE = """
__global__ void scale_rows(const float* x, const float* weight, float* y, int rows, int columns, float by)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows * columns) y[i] = x[i] * by * (weight ? weight[i % columns] : 1.0f);
}
__global__ void __launch_bounds__(64) copy4(const float4* x, float4* y, long long n)
{
    if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x];
}
__global__ void flags(bool on, unsigned char small, unsigned long long large, double* out)
{
    out[0] = on + small + double(large);
}
"""


@pytest.fixture
def kernels(tmp_path) -> cuda.Kernels:
    (tmp_path / "page.cu").write_text(SOURCE)
    return cuda.Kernels(tmp_path / "page.py")


@pytest.fixture
def device():
    with on_cuda() as device:
        yield device


@pytest.fixture
def cp(device):
    return cuda.array_module()


def test_a_kernel_runs(kernels, cp, device):
    x, weight = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 10, 100], np.float32)
    y = cp.empty((2, 3), np.float32)
    kernels.launch("scale_rows", 1, 32, cp.asarray(x), cp.asarray(weight), y, 2, 3, 0.5)
    np.testing.assert_array_equal(y.get(), x * weight / 2)
    kernels.launch("scale_rows", (1,), (8, 1), cp.asarray(x), None, y, np.int32(2), np.int32(3), np.float32(2))
    np.testing.assert_array_equal(y.get(), x * 2)
    assert device.launches == 2


def test_numbers_are_converted_to_the_types_of_the_kernel(kernels, cp):
    out = cp.zeros(1)
    kernels.launch("flags", 1, 1, True, 255, 2**63, out)
    assert float(out[0]) == 1 + 255 + 2.0**63


class Wrong:
    """Arguments for scale_rows, one of which is wrong; made when the device is there."""

    def __init__(self, position, value, error, message):
        self.position, self.value, self.error, self.message = position, value, error, message


WRONG = {
    "a float for an int": Wrong(3, lambda cp: 2.0, TypeError, r"argument 4 \(rows\) of scale_rows: the kernel wants int, got float"),
    "an int for a float": Wrong(5, lambda cp: 2, TypeError, r"argument 6 \(by\) of scale_rows: the kernel wants float, got int"),
    "a bool for an int": Wrong(3, lambda cp: True, TypeError, r"argument 4 \(rows\) of scale_rows: the kernel wants int, got bool"),
    "a float64": Wrong(5, lambda cp: np.float64(2), TypeError, r"argument 6 \(by\) of scale_rows: the kernel wants float, got float64"),
    "an int64": Wrong(3, lambda cp: np.int64(2), TypeError, r"argument 4 \(rows\) of scale_rows: the kernel wants int, got int64"),
    "a large int": Wrong(3, lambda cp: 2**31, ValueError, r"argument 4 \(rows\) of scale_rows: .* got 2147483648, which does not fit in int32"),
    "an array for a number": Wrong(3, lambda cp: cp.zeros(1), TypeError, r"argument 4 \(rows\) of scale_rows: the kernel wants int, got ndarray"),
    "a number for an array": Wrong(0, lambda cp: 1.0, TypeError, r"argument 1 \(x\) of scale_rows: the kernel wants const float\*, got float"),
    "a NumPy array": Wrong(
        0, lambda cp: np.zeros(6, np.float32), TypeError, r"argument 1 \(x\) .* got an array on the CPU; move it with .to\(device='cuda'\)"
    ),
    "another dtype": Wrong(
        2, lambda cp: cp.zeros(6), TypeError, r"argument 3 \(y\) of scale_rows: the kernel wants float\*, got an array of float64"
    ),
    "strides": Wrong(
        2, lambda cp: cp.zeros((3, 2), np.float32).T, TypeError, r"argument 3 \(y\) .* not contiguous \(shape \(2, 3\), strides \(4, 8\)\)"
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_argument_is_named(kernels, cp, device, what):
    wrong = WRONG[what]
    arguments = [cp.zeros((2, 3), np.float32), None, cp.zeros((2, 3), np.float32), 2, 3, 1.0]
    arguments[wrong.position] = wrong.value(cp)
    with pytest.raises(wrong.error, match=wrong.message):
        kernels.launch("scale_rows", 1, 32, *arguments)
    assert device.launches == 0


def test_too_few_arguments_and_unknown_kernels(kernels, cp):
    with pytest.raises(TypeError, match="scale_rows: 1 arguments given, the kernel has 6: x, weight, y, rows, columns, by"):
        kernels.launch("scale_rows", 1, 32, cp.zeros(1))
    with pytest.raises(ValueError, match="page.cu: there is no kernel 'rows'; there are scale_rows, copy4, flags"):
        kernels.launch("rows", 1, 32)


def test_vectors_must_lie_at_multiples_of_sixteen_bytes(kernels, cp):
    x = cp.asarray(np.arange(12, dtype=np.float32))
    y = cp.zeros(8, np.float32)
    kernels.launch("copy4", 1, 2, x[4:], y, 2)
    np.testing.assert_array_equal(y.get(), np.arange(4, 12))
    with pytest.raises(ValueError, match=r"argument 1 \(x\) of copy4: .* got an array that starts 4 bytes past a multiple of 16"):
        kernels.launch("copy4", 1, 2, x[1:9], y, 2)
    assert [cuda.vector_width(4, x[4:], y), cuda.vector_width(4, x[1:], y), cuda.vector_width(6, x, y), cuda.vector_width(4, x, None)] == [4, 1, 1, 4]
    assert cuda.vector_width(4, x.astype(np.float64)) == 1


@pytest.mark.emulator
def test_launch_bounds_and_limits(kernels, cp):
    x = cp.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"copy4: block \(65, 1, 1\) has 65 threads; its __launch_bounds__ are 64"):
        kernels.launch("copy4", 1, 65, x, x, 1)
    raw = cp.RawModule(code=kernels.source.text).get_function("copy4")
    with pytest.raises(ValueError, match=r"copy4: block \(65, 1, 1\) has 65 threads; it may have 1 to 64"):
        raw((1,), (65,), (x, x, 1))


def test_an_empty_launch_is_none(kernels, cp, device):
    empty, full = cp.zeros((0, 3), np.float32), cp.zeros(3, np.float32)
    kernels.launch("scale_rows", 0, 32, full, None, full, 0, 3, 1.0)
    kernels.launch("scale_rows", 1, 32, empty, None, empty, 0, 3, 1.0)
    assert device.launches == 0
    kernels.launch("scale_rows", 1, 32, empty, None, full, 0, 3, 1.0)  # it may have something to write
    assert device.launches == 1


@pytest.mark.emulator
def test_without_the_launcher_cupy_checks_little_and_the_stand_in_more(kernels, cp):
    """What CuPy passes on as it is, and a kernel then reads as garbage, raises here."""
    module = cp.RawModule(code=kernels.source.text, options=cuda.OPTIONS, name_expressions=("scale_rows",))
    kernel, x = module.get_function("scale_rows"), cp.zeros((2, 3), np.float32)
    good = (x, np.uint64(0), x, np.int32(2), np.int32(3), np.float32(1))
    kernel((1,), (8,), good)
    for position, value, message in [
        (5, 1.0, "a Python float is passed as 8 bytes"),
        (3, 2, r"argument 4 of scale_rows: the kernel wants i4, got i8 \(int64\)"),
        (0, x.T, "the array is not contiguous"),
        (0, np.zeros(6, np.float32), "wants an array of this device, got ndarray"),
    ]:
        with pytest.raises(TypeError, match=message):
            kernel((1,), (8,), (*good[:position], value, *good[position + 1 :]))
    with pytest.raises(ValueError, match="there is no kernel 'copy4'; there are scale_rows"):
        module.get_function("copy4")
    with pytest.raises(ValueError, match="a grid has at least 1 block"):
        kernel((0,), (8,), good)


SHARED = """
__global__ void first(float* y)
{
    extern __shared__ float kept[];
    kept[threadIdx.x] = 1.0f;
    y[threadIdx.x] = kept[threadIdx.x];
}
"""


@pytest.mark.emulator
def test_much_shared_memory_is_asked_for_once_and_never_taken_back(tmp_path, cp, monkeypatch):
    """A graph that was captured when a launch with more of it went before is launched after one with less."""
    (tmp_path / "shared.cu").write_text(SHARED)
    kernels, asked = cuda.Kernels(tmp_path / "shared.cu"), []
    kind = type(kernels._function("first", cp))
    ask = kind.max_dynamic_shared_size_bytes.fset

    def asking(kernel, nbytes):
        asked.append(nbytes)
        ask(kernel, nbytes)

    monkeypatch.setattr(kind, "max_dynamic_shared_size_bytes", kind.max_dynamic_shared_size_bytes.setter(asking))
    y = cp.zeros(32, np.float32)

    def launches():
        for kibibytes in (40, 60, 100, 60, 100):
            kernels.launch("first", 1, 32, y, shared=kibibytes * 1024)
        kernels.launch("first", 1, 32, y, shared=50 * 1024)

    graph = cuda.Captured(launches, warm_ups=0)
    graph.launch()
    assert (y.get() == 1).all()
    assert asked == [60 * 1024, 100 * 1024]
    with pytest.raises(ValueError, match="dynamic shared memory"):
        kernels.launch("first", 1, 32, y, shared=1 << 20)
    assert kernels._most_shared.popitem()[1] == 100 * 1024  # what was refused is not remembered


@pytest.mark.emulator
def test_what_lies_in_cycles_is_freed_before_a_capture_and_not_inside(cp):
    class Cycle:
        def __init__(self):
            self.me = self

    gc.disable()
    try:
        reference, alive = weakref.ref(Cycle()), []
        cuda.Captured(lambda: alive.append(reference() is not None), warm_ups=1)
    finally:
        gc.enable()
    assert alive == [True, False]


@pytest.mark.emulator
def test_a_capture_waits_for_what_went_before_and_is_waited_for(cp, monkeypatch):
    """On a GPU; the emulator is never behind."""
    outer, steps, recorded = cp.cuda.get_current_stream(), [], {}
    record = cp.cuda.Stream.record

    def recording(stream, event=None):
        event = record(stream, event)
        recorded[id(event)] = stream, event, len(steps)
        return event

    def waiting(stream, event):
        of, _, before = recorded[id(event)]
        steps.append((stream, of, before))

    monkeypatch.setattr(cp.cuda.Stream, "record", recording)
    monkeypatch.setattr(cp.cuda.Stream, "wait_event", waiting)
    cuda.Captured(lambda: steps.append(cp.cuda.get_current_stream()), warm_ups=1)
    inner = steps[1]
    assert inner is not outer
    assert steps == [(inner, outer, 0), inner, inner, (outer, inner, 3)]

    def fails_at(call):
        steps.append(cp.cuda.get_current_stream())
        if steps.count(inner) == call:
            raise KeyError(call)

    for call in (1, 2):  # in the warm-up; in the capture
        steps.clear()
        with pytest.raises(KeyError):
            cuda.Captured(lambda call=call: fails_at(call), warm_ups=1)
        assert steps == [(inner, outer, 0), *[inner] * call, (outer, inner, 1 + call)]


@pytest.mark.emulator
def test_a_number_first_met_in_a_capture_is_written_by_its_graph_alone(cp):
    """CuPy fills it by a kernel, which a capture notes down and does not run: outside, the number must be another array."""
    x = Tensor([1.0, 2.0]).to(device="cuda")
    graph = cuda.Captured(lambda: x * 3.25, warm_ups=0)
    np.testing.assert_array_equal(backend.to_device((x * 3.25).data, "cpu"), [3.25, 6.5])
    graph.launch()
    np.testing.assert_array_equal(backend.to_device(graph.result.data, "cpu"), [3.25, 6.5])

    def fails():
        raise KeyError((x * 4.25).shape)

    with pytest.raises(KeyError):
        cuda.Captured(fails, warm_ups=0)
    np.testing.assert_array_equal(backend.to_device((x * 4.25).data, "cpu"), [4.25, 8.5])


@pytest.mark.emulator
def test_what_was_written_in_a_capture_that_failed_is_there(cp):
    """Whoever wrote it will not do so again."""
    array, elsewhere = cp.zeros(2, np.float32), []

    def fails():
        cuda.write(array, np.array([1, 2], np.float32))
        thread = threading.Thread(target=lambda: elsewhere.append(list(cuda._of_thread.waiting)))
        thread.start()
        thread.join()
        raise KeyError

    with pytest.raises(KeyError):
        cuda.Captured(fails, warm_ups=0)
    np.testing.assert_array_equal(array.get(), [1, 2])
    assert elsewhere == [[]]  # what waits belongs to the thread that captures


# --- the device "cuda"


def test_tensors_on_the_emulated_device(device):
    x = Tensor(np.arange(6.0).reshape(2, 3)).to(device="cuda")
    assert (x.device, x.dtype, x.shape) == ("cuda", np.float64, (2, 3))
    assert type(x.data) is cuda.array_module().ndarray
    np.testing.assert_array_equal((x * 2).to(device="cpu").numpy(), 2 * np.arange(6.0).reshape(2, 3))
    with pytest.raises(TypeError, match="add: inputs are on cuda and cpu; move them to one device"):
        x + Tensor(np.ones(3))


@pytest.mark.emulator
def test_outside_the_block_the_device_is_gone_but_its_arrays_can_be_brought_back(monkeypatch):
    monkeypatch.setattr(cuda, "_load_driver", lambda: (_ for _ in ()).throw(OSError("libcuda.so.1: cannot open")))
    with cuda.emulated("plain") as outer:
        x = Tensor([1.0, 2.0]).to(device="cuda")
        with cuda.emulated("check") as inner:
            x.to(device="cpu")
            assert (cuda.availability().usable, inner.build, inner.synchronisations, outer.synchronisations) == (True, "check", 1, 0)
        assert cuda.array_module().ndarray is type(x.data)
    np.testing.assert_array_equal(backend.to_device(x.data, "cpu"), [1, 2])
    with pytest.raises(RuntimeError, match="No CUDA: there is no NVIDIA driver here"):
        Tensor([1.0]).to(device="cuda")
    with pytest.raises(RuntimeError, match="with minigrad.emulated"):
        cuda.array_module()


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("build", "orders", "message"),
    [("fast", ("ascending",), "no build 'fast'"), ("check", ("random",), "orders are some of"), ("check", (), "orders")],
)
def test_wrong_options_of_the_emulator(build, orders, message):
    with pytest.raises(ValueError, match=message), cuda.emulated(build, orders):
        pass


def driver(version: int = 13000, init: int = 0, count: int = 1):
    def put(pointer, value):
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = value
        return 0

    return lambda: SimpleNamespace(cuDriverGetVersion=lambda p: put(p, version), cuInit=lambda _: init, cuDeviceGetCount=lambda p: put(p, count))


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("load", "sentence"),
    [
        (driver(init=100), "the driver finds no GPU (error 100); in a container start it with GPUs"),
        (driver(count=0), "the driver finds no GPU; in a container"),
        (driver(), 'there is a GPU, but CuPy is not installed: in the project\'s folder, pip install -e ".[cuda13]"'),
        (driver(version=12080), 'there is a GPU, but CuPy is not installed: in the project\'s folder, pip install -e ".[cuda12]"'),
    ],
)
def test_one_sentence_says_what_is_missing(monkeypatch, load, sentence):
    monkeypatch.setattr(cuda, "_load_driver", load)
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it raises ModuleNotFoundError
    found = cuda.availability()
    assert not found.usable
    assert sentence in found.sentence and found.sentence.endswith("; without it, `with minigrad.emulated():` runs the same kernels on the CPU.")
    with pytest.raises(RuntimeError, match="No CUDA"):
        cuda.connect()


@pytest.mark.emulator
@pytest.mark.parametrize(
    ("platform", "load", "sentence"),
    [
        ("darwin", None, "No CUDA: macOS has no NVIDIA driver; everything runs on the CPU."),
        ("win32", None, "No CUDA: there is no NVIDIA driver here; install it (https://www.nvidia.com/drivers)."),
        ("win32", driver(), 'No CUDA: there is a GPU, but CuPy is not installed: in the project\'s folder, pip install -e ".[cuda13]".'),
    ],
)
def test_where_there_is_no_emulator_none_is_advised(monkeypatch, platform, load, sentence):
    monkeypatch.setattr(cuda, "_load_driver", load or (lambda: (_ for _ in ()).throw(OSError("libcuda.so.1: no such file"))))
    monkeypatch.setattr(cuda, "sys", SimpleNamespace(platform=platform))
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cuda.availability() == (False, sentence)


@pytest.mark.emulator
def test_with_driver_gpu_and_cupy_the_device_is_there(monkeypatch):
    """CuPy is played by a module of its name: only how it is found and registered is tested."""
    played = ModuleType("cupy")

    class ndarray:
        pass

    properties = lambda number: {"name": b"Some GPU"}  # noqa: E731
    strides = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=None))
    played.__dict__.update(
        __version__="14.2.0", ndarray=ndarray, asarray=lambda a: ndarray(), asnumpy=lambda a: np.zeros(2), lib=strides,
        cuda=SimpleNamespace(runtime=SimpleNamespace(getDeviceProperties=properties)),
    )  # fmt: skip
    monkeypatch.setattr(cuda, "_load_driver", driver())
    monkeypatch.setitem(sys.modules, "cupy", played)
    monkeypatch.setattr(backend, "_by_type", dict(backend._by_type))
    try:
        assert cuda.availability() == (True, "CUDA: Some GPU through CuPy 14.2.0.")
        x = backend.to_device(np.zeros(2), "cuda")
        assert (type(x), backend.device_of(x)) == (ndarray, "cuda")
        with cuda.emulated("plain"):
            assert cuda.array_module() is not played
        assert cuda.array_module() is played
    finally:
        cuda._use(None)
    assert cuda._module is None
