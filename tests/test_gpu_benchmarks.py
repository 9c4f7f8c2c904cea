"""The GPU benchmarks: what they count, what they make of samples, and that they run, beside PyTorch on the CPU, with the emulator as the GPU."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import minigrad
from benchmarks import gpu, gpu_ceilings, gpu_counts, gpu_kernels, gpu_profile, gpu_report, gpu_sides, gpu_step, gpu_suite, gpu_updates, ops
from benchmarks.gpu_counts import BACKWARD, FORWARD, Work, work_of
from benchmarks.measure import ROOT
from conformer.config import named_config
from conformer.model import Conformer
from minigrad.backend import cuda
from minigrad.backend.cublas import PRECISIONS
from tests.support import fused_with_kernel

PROGRAMS = ["gpu_ceilings", "gpu_kernels", "gpu_profile", "gpu_step", "gpu_suite"]


@pytest.fixture
def device() -> Iterator[object]:
    with minigrad.emulated(build="plain") as state:
        yield state


def given(*shapes: list[int] | None, needs: bool = True, kind: str = "f") -> list[dict | None]:
    return [None if shape is None else {"shape": shape, "kind": kind, "order": list(range(len(shape))), "needs": needs} for shape in shapes]


def case_of(op: str, inputs: list[dict | None], out: list[int], **values: object) -> dict:
    where = {"config": "cifar-nano", "batch": 64, "size": 32, "where": "training step", "count": 3}
    return {**where, "op": op, "inputs": inputs, "out": out, "values": values}


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_a_gpu_a_program_ends_with_one_sentence(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(cuda, "_load_driver", no_driver)
    monkeypatch.setattr(cuda, "_module", None)
    with pytest.raises(SystemExit) as exit:
        importlib.import_module(f"benchmarks.{program}").main([])
    assert isinstance(exit.value.code, str)  # Python prints it and ends with status 1
    assert exit.value.code.startswith("No CUDA: there is no NVIDIA driver here; install it")


# --- what an operation must do


def test_every_operation_with_a_cuda_kernel_is_counted_by_the_names_of_its_inputs() -> None:
    fused = fused_with_kernel("cuda")
    assert gpu_counts.NAMES.keys() == gpu_counts.READS.keys() == fused.keys()
    for name, op in fused.items():
        assert gpu_counts.NAMES[name].split() == list(op.names[: op.count]), name
        arrays = {*op.names[: op.count], "out", "place"}
        assert all(set(read.split()) <= arrays for read in gpu_counts.READS[name].values()), name


def test_a_linear_layer_counted_by_hand() -> None:
    work = work_of(case_of("linear", given([8, 3], [5, 3], [5]), [8, 5]))
    assert work[FORWARD] == Work(4 * (24 + 15 + 5 + 40), 4 * (24 + 15 + 5 + 40), 2 * 8 * 3 * 5)
    least = 4 * (40 + 24 + 15 + 24 + 15 + 5)  # dy, x, weight; dx, dweight, dbias
    assert work[BACKWARD] == Work(least, least + 4 * 40, 2 * 2 * 8 * 3 * 5)


def test_a_convolution_whose_input_wants_no_gradient_counted_by_hand() -> None:
    image, weight = given([2, 6, 6, 3], needs=False), given([4, 3, 3, 3], None)
    work = work_of(case_of("conv2d", image + weight, [2, 6, 6, 4], stride=1, padding=1, dilation=1, groups=1))
    pixels = 2 * 6 * 6
    assert work[FORWARD].flops == work[BACKWARD].flops == 2 * pixels * 4 * 3 * 9
    assert work[BACKWARD].moved == work[BACKWARD].least == 4 * (pixels * 4 + pixels * 3 + 4 * 27)  # dy, x; dweight


def test_a_training_batch_norm_reads_its_input_twice() -> None:
    x, c = [2, 3, 3, 8], [8]
    inputs = given(x, c, c, None, None, x)
    work = work_of(case_of("batch_norm", inputs, x, eps=1e-5, relu=True))
    n = 4 * 2 * 9 * 8
    assert work[FORWARD] == Work(3 * n + 4 * 4 * 8, 4 * n + 4 * 4 * 8, 0)  # x, residual, y; weight, bias, mean, variance
    assert work[BACKWARD].least == 5 * n + 3 * 4 * 8  # dy, x, y, dx, dresidual; weight, dweight, dbias
    assert work[BACKWARD].moved == 8 * n + 4 * 4 * 8
    evaluation = work_of(case_of("batch_norm", given(x, c, c, c, c, None, needs=False), x, eps=1e-5, relu=False))
    assert evaluation == {FORWARD: Work(2 * n + 4 * 4 * 8, 2 * n + 4 * 4 * 8, 0)}


def test_attention_counted_by_hand() -> None:
    heads = given(*[[2, 3, 5, 4]] * 3, None, None)
    work = work_of(case_of("scaled_dot_product_attention", heads, [2, 3, 5, 4], dropout_p=0.0, scale=None))
    n = 4 * 2 * 3 * 5 * 4
    assert work[FORWARD] == Work(4 * n, 4 * n, 2 * 2 * (2 * 3 * 5 * 5 * 4))
    assert work[BACKWARD] == Work(8 * n, 8 * n, 5 * 2 * (2 * 3 * 5 * 5 * 4))


def test_what_an_operation_waits_for() -> None:
    work = Work(least=100, moved=200, flops=4000)
    assert work.ideal_ms(bandwidth=1000, rate=10_000) == 400 and work.bound(1000, 10_000) == "products"
    assert work.ideal_ms(bandwidth=100, rate=10_000) == 2000 and work.bound(100, 10_000) == "memory"


# --- both sides of an operation


@pytest.mark.parametrize(
    "case",
    [
        case_of("gelu", given([2, 3, 8]), [2, 3, 8]),
        case_of("conv2d", given([2, 4, 4, 8], [4, 8, 1, 1], None), [2, 4, 4, 4], stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=1),
        case_of("batch_norm", given([2, 3, 3, 4], [4], [4], None, None, [2, 3, 3, 4]), [2, 3, 3, 4], eps=1e-5, relu=True),
        case_of("dropout", given([2, 3, 4]) + given([2, 3, 4], needs=False, kind="b"), [2, 3, 4], p=0.1),
        case_of("cross_entropy", given([4, 5]) + given([4], needs=False, kind="i"), [], label_smoothing=0.1),
    ],
    ids=lambda case: case["op"],
)
def test_an_operation_is_timed_on_both_sides_and_computes_the_same(case: dict, device: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MILLISECONDS", 0.0)
    rows = gpu_kernels.measured(case, rounds=2, cache=2000)
    assert [row["pass"] for row in rows] == [FORWARD, BACKWARD]
    for row in rows:
        assert "failed" not in row and row["methods"] == {"minigrad": "graph", "torch": "launches"}
        assert row["copies"] > 1 and [len(samples) for samples in row["ms"].values()] == [6, 6]
        assert min(row["ms"]["minigrad"] + row["ms"]["torch"]) > 0
    gradients = sum(bool(x and x["needs"]) for x in case["inputs"])
    assert len(rows[0]["differences"]) == 1 + gradients and max(rows[0]["differences"]) < 1e-5
    assert gpu_kernels.disagreeing(rows, "float32") == []
    rows[0]["differences"][0] = float("nan")
    assert len(gpu_kernels.disagreeing(rows, "float32")) == 1


@pytest.mark.parametrize("op", gpu_counts.UPDATES)
def test_an_update_of_all_parameters_is_timed_on_both_sides(op: str, device: object, tiny_network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MILLISECONDS", 0.0)
    case = next(case for case in gpu_updates.cases_of(tiny_network, 4, 32) if case["op"] == op)
    parameters = sum(p.size for p in Conformer(**asdict(named_config(tiny_network))).parameters())
    (row,) = gpu_kernels.measured(case, rounds=1, cache=0)
    assert row["moved"] == 4 * gpu_counts.UPDATES[op] * parameters and row["flops"] == 0
    assert "failed" not in row and row["pass"] == "update" and [len(samples) for samples in row["ms"].values()] == [3, 3]
    assert gpu_kernels.label(case) == f"{op} tiny, {parameters:,} parameters"


def test_a_side_that_fails_leaves_the_other(device: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MILLISECONDS", 0.0)
    monkeypatch.setattr(ops, "torch_operations", lambda: {})
    rows = gpu_kernels.measured(case_of("gelu", given([2, 4]), [2, 4]), rounds=1, cache=0)
    assert all(row["failed"] == {"torch": "KeyError: 'gelu'"} and list(row["ms"]) == ["minigrad"] for row in rows)


def test_views_of_the_same_memory_keep_their_order(device: object) -> None:
    head_wise = {"shape": [2, 3, 5, 4], "kind": "f", "order": [0, 2, 1, 3], "needs": True}
    data = gpu_sides.Data(case_of("scaled_dot_product_attention", [head_wise] * 3 + [None, None], [2, 3, 5, 4], dropout_p=0.0, scale=None), 2)
    (query, *_), (other, *_) = data.inputs
    assert not torch.equal(query, other) and tuple(query.shape) == (2, 3, 5, 4) and query.transpose(1, 2).is_contiguous()
    assert data.upstream[0].transpose(1, 2).is_contiguous()
    array = gpu_sides.ours(query)
    assert array.strides == tuple(4 * step for step in query.stride())
    assert torch.equal(gpu_sides.torchs(array), query)


def test_enough_copies_that_the_cache_holds_none() -> None:
    case = case_of("gelu", given([1000]), [1000])  # 8,000 bytes
    assert [gpu_sides.copies_of(case, cache) for cache in (0, 1000, 20_000, 10**9)] == [1, 1, 10, 64]


def test_the_largest_call_of_each_operation_stands_for_the_further_networks(tiny_network: str) -> None:
    first, both = (gpu_kernels.cases_of([f"{tiny_network}:4:32"] * times) for times in (1, 2))
    updates = first[-len(gpu_counts.UPDATES) :]
    first, further = first[: -len(updates)], both[len(first) - len(updates) : -len(updates)]
    assert both == first + further + updates and len({case["op"] for case in further}) == len(further)
    for case in further:
        assert ops.least_bytes(case) == max(ops.least_bytes(other) for other in first if other["op"] == case["op"])
    assert {case["op"] for case in gpu_kernels.cases_of([f"{tiny_network}:4:32"], ["gelu"])} == {"gelu"}


# --- the whole step


def test_all_sides_begin_with_the_same_loss(device: object, tiny_network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_step, "timed", lambda step, steps, warm_ups: {"ms": [float(step().item())], "wall_ms": 1.0})
    case = {"config": tiny_network, "batch": 2, "size": 32}
    rows = gpu_step.measured(case, "float32", ["graph", "eager", "torch", "torch-compile"], 1, lambda: False)
    assert gpu_step.losses_apart(rows) == [] and rows[1]["first_loss"] == pytest.approx(rows[2]["first_loss"], rel=1e-4)
    assert rows[0]["first_loss"] < rows[1]["first_loss"]  # the calls before the capture were steps
    assert [len(row["turns"]) for row in rows[:3]] == [1, 1, 1] and "spent" in rows[3]["failed"]
    assert all(row["turns"][0]["ms"][0] < row["first_loss"] for row in rows[:3])  # each call took a step
    rows[2]["first_loss"] *= 1.01
    assert "torch" in gpu_step.losses_apart(rows)[0]


def test_a_profile_says_how_long_a_step_takes(
    device: object, tiny_network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_profile.trace_of(lambda: None, 1) == []  # nothing runs on a GPU here
    monkeypatch.setattr(gpu_profile, "trace_of", lambda step, calls: EVENTS)
    gpu_profile.main(["--quick", "--config", tiny_network, "--side", "torch", "--out", str(tmp_path / "profile.json")])
    record = json.loads((tmp_path / "profile.json").read_text())
    assert record["rows"] == gpu_profile.by_kernel(EVENTS, 2) and len(record["times"]["eager"]["ms"]) == 2
    assert record["environment"]["versions"]["torch"] == torch.__version__ and record["environment"]["device"] == "the emulator"
    assert record["command"] == "python -m benchmarks.gpu_profile --quick --config tiny --side torch --out PATH"
    assert "torch, tiny, batch 2, float32: the GPU works 0.004 ms a step" in capsys.readouterr().out


def test_which_sides_are_compiled_unasked() -> None:
    micro, small = ({"config": name, "batch": 1, "size": 32} for name in ("cifar-micro", "cifar-small"))
    assert gpu_step.sides_of(micro, None) == ["graph", "eager", "torch", "torch-graph", "torch-compile"]
    assert gpu_step.sides_of(small, None) == ["graph", "eager", "torch", "torch-graph"]
    assert gpu_step.sides_of(small, ["torch-compile", "graph"]) == ["graph", "torch-compile"]


def test_the_suite_runs_every_program_and_counts_those_that_fail(device: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, int(command[2] == "benchmarks.gpu_step"))

    monkeypatch.setattr(subprocess, "run", run)
    assert gpu_suite.main(["--out", str(tmp_path)]) == 1
    assert [command[0] for command in commands] == [f"benchmarks.{part.split()[0]}" for part in gpu_suite.PARTS.values()] + ["benchmarks.gpu_report"]
    assert all(command[-2:] == ["--out", str(tmp_path)] for command in commands[:-1])
    only = [command[command.index("--only") + 1 : -2] for command in commands if "--only" in command]
    assert only and set(only[0]) <= gpu_counts.NAMES.keys()


# --- files


def small_suite(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    """The suite's programs on one tiny network, in this process, with the emulator as the GPU."""
    parts = {
        "step": f"gpu_step --cases {config}:2:32 --sides graph",
        "kernels": f"gpu_kernels --configs {config}:2:32 --only gelu",
        "kernels-tf32": f"gpu_kernels --precision tf32 --configs {config}:2:32 --only gelu",
        "profile": f"gpu_profile --config {config}",
    }
    assert parts.keys() == gpu_suite.PARTS.keys() and all(parts[name].split()[0] == gpu_suite.PARTS[name].split()[0] for name in parts)
    monkeypatch.setattr(gpu_suite, "PARTS", parts)
    monkeypatch.setattr(gpu_profile, "trace_of", lambda step, calls: EVENTS)
    monkeypatch.setattr(gpu_step, "FEWEST", 1)
    for module in (gpu_kernels, gpu_step):
        monkeypatch.setattr(module, "MILLISECONDS", 0.0)

    def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
        importlib.import_module(command[2]).main(command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)


def test_all_that_the_suite_writes_is_in_the_folder_it_is_given(
    device: object, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "given"
    for module, name in ((gpu, "GPU_RESULTS"), (gpu, "QUICK_RESULTS"), (gpu_suite, "QUICK_RESULTS"), (gpu_report, "PAGE")):
        monkeypatch.setattr(module, name, elsewhere / name)
    gpu._host()  # it asks git, by the function that is replaced next
    small_suite(monkeypatch, tiny_network)
    assert gpu_suite.main(["--quick", "--out", str(folder)]) == 0
    names = ["gpu_kernels-the-emulator-float32", "gpu_kernels-the-emulator-tf32", f"gpu_profile-the-emulator-minigrad-{tiny_network}-float32"]
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        ["benchmarks_gpu.md", *(f"{name}.json" for name in [*names, "gpu_step-the-emulator"])]
    )
    assert not elsewhere.exists()
    assert all(f"({gpu_report.LINK}{name}.json)" in (folder / "benchmarks_gpu.md").read_text() for name in names)

    def measured(*_: object) -> list[dict]:
        raise AssertionError("what the files have is measured again")

    monkeypatch.setattr(gpu_step, "measured", measured)
    monkeypatch.setattr(gpu_kernels, "measured", measured)
    monkeypatch.setattr(gpu_ceilings, "measure_ceilings", lambda quick: CEILINGS)
    before = {file.name: json.loads(file.read_text())["rows"] for file in folder.glob("*.json")}
    assert gpu_suite.main(["--quick", "--resume", "--only", "step", "kernels", "kernels-tf32", "--out", str(folder)]) == 0
    assert {file.name: json.loads(file.read_text())["rows"] for file in folder.glob("*.json")} == before


class Stopped(BaseException):
    """As when the process is killed: nothing catches it."""


def rows_of(folder: Path) -> list[dict]:
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())["rows"]


def stopping(measure: object, after: int) -> tuple[list[dict], object]:
    """A benchmark's `measured` that is stopped after so many cases, and the cases it was given."""
    cases: list[dict] = []

    def measured(case: dict, *others: object) -> list[dict]:
        if len(cases) == after:
            raise Stopped
        cases.append(case)
        return measure(case, *others)  # type: ignore[operator]

    return cases, measured


def test_operations_measured_before_the_program_was_stopped_are_kept(
    device: object, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(case: dict, rounds: int, cache: int) -> list[dict]:
        ms = {"minigrad": [1.0], "torch": [1.0]}
        return [{"case": case, "pass": which, **work._asdict(), "copies": 1, "ms": ms} for which, work in work_of(case).items()]

    monkeypatch.setattr(gpu_ceilings, "measure_ceilings", lambda quick: CEILINGS)
    every = gpu_kernels.cases_of([f"{tiny_network}:2:32"])
    monkeypatch.setattr(gpu_kernels, "cases_of", lambda configs, only: [case for case in every if case["op"] in only])
    words = ["--quick", "--configs", f"{tiny_network}:2:32", "--only", "gelu", "softmax", "adamw", "--out", str(tmp_path)]
    wanted = json.loads(json.dumps(gpu_kernels.cases_of([], ["gelu", "softmax", "adamw"])))
    first, stopped = stopping(measure, 2)
    monkeypatch.setattr(gpu_kernels, "measured", stopped)
    with pytest.raises(Stopped):
        gpu_kernels.main(words)
    assert [row["case"] for row in rows_of(tmp_path) if row["pass"] != BACKWARD] == first == wanted[:2]

    (file,) = tmp_path.glob("*.json")
    record = json.loads(file.read_text())
    record["rows"][-1]["failed"] = {"torch": "out of memory"}
    file.write_text(json.dumps(record))
    second, stopped = stopping(measure, 1)
    monkeypatch.setattr(gpu_kernels, "measured", stopped)
    with pytest.raises(Stopped):
        gpu_kernels.main([*words, "--resume"])
    assert second == wanted[1:2] and "failed" not in rows_of(tmp_path)[-1]  # what failed is tried again
    third, complete = stopping(measure, 100)
    monkeypatch.setattr(gpu_kernels, "measured", complete)
    gpu_kernels.main([*words, "--resume"])
    assert third == wanted[2:] and rows_of(tmp_path)[:2] == record["rows"][:2]
    gpu_kernels.main([*words[:-3], *words[-2:], "--resume"])  # without adamw
    assert third == wanted[2:] and {row["case"]["op"] for row in rows_of(tmp_path)} == {"gelu", "softmax", "adamw"}

    capsys.readouterr()
    monkeypatch.setattr(gpu, "code", lambda: "another")
    gpu_kernels.main([*words, "--resume"])
    assert third == wanted[2:] + wanted and "is measured anew, since it is of code " in capsys.readouterr().out
    gpu_kernels.main(words)
    assert third == wanted[2:] + 2 * wanted


def test_steps_measured_before_the_program_was_stopped_are_kept(
    device: object, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"graph": {"turns": [{"ms": [1.0], "wall_ms": 1.0}], "first_loss": 2.0, "prepared_s": 70.0}}
    answers["torch-compile"] = {**answers["graph"], "first_loss": 2.0}
    calls: list[tuple[str, bool]] = []

    def measured(case: dict, precision: str, sides: list[str], rounds: int, may_compile: Callable[[], bool]) -> list[dict]:
        if len(calls) == 3:
            raise Stopped
        calls.append((precision, may_compile()))
        kept = {side: answers[side] if side == "graph" or may_compile() else {"failed": "left out"} for side in sides}
        return [{"case": case, "precision": precision, "side": side, **answer} for side, answer in kept.items()]

    monkeypatch.setattr(gpu_step, "measured", measured)
    words = ["--cases", f"{tiny_network}:2:32", "--sides", "graph", "torch-compile", "--compile-seconds", "100", "--out", str(tmp_path)]
    gpu_step.main(words)
    assert calls == [("float32", True), ("tf32", True), ("bf16", False)]
    calls.clear()
    gpu_step.main([*words, "--resume"])
    assert calls == [("bf16", True)]  # it was left out when 140 s were spent, which this run has not
    assert [(row["precision"], row["side"], "failed" in row) for row in rows_of(tmp_path)] == [
        (precision, side, False) for precision in PRECISIONS for side in ("graph", "torch-compile")
    ]
    calls[:] = [("", True)] * 2
    with pytest.raises(Stopped):
        gpu_step.main(words)
    assert [row["precision"] for row in rows_of(tmp_path)] == ["float32"] * 2  # not to be resumed, it begins anew
    calls.clear()
    gpu_step.main([*words, "--resume", "--precisions", "bf16"])
    assert [row["precision"] for row in rows_of(tmp_path)] == ["bf16"] * 2 + ["float32"] * 2 and calls == [("bf16", True)]
    calls.clear()
    gpu_step.main([*words, "--resume", "--rounds", "1", "--precisions", "bf16"])
    assert [row["precision"] for row in rows_of(tmp_path)] == ["bf16"] * 2  # other turns than those of the file


def test_a_file_that_is_being_written_when_the_program_is_stopped_stays_what_it_was(
    device: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = gpu.resumable(gpu.arguments(None)).parse_args(["--quick", "--resume", "--out", str(tmp_path)])
    gpu.save("some", [{"a": 1}], options, [])
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: write(path, text[: len(text) // 2]) and (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        gpu.save("some", [{"a": 1}, {"a": 2}], options, [])
    assert gpu.kept("some", options) == [{"a": 1}]


# --- what is made of the samples


EVENTS = [
    {"name": "void add<float>(int)", "ts": 0.0, "dur": 4.0, "args": {"grid": [2, 3, 1], "registers per thread": 40}},
    {"name": "void add<float>(int)", "ts": 10.0, "dur": 2.0, "args": {"grid": [1, 1, 1], "registers per thread": 40}},
    {"name": "Memset (Device)", "ts": 3.0, "dur": 3.0},
]


def test_events_by_kernel() -> None:
    add, memset = gpu_profile.by_kernel(EVENTS, steps=2)
    assert add == {"kernel": "void add<float>(int)", "calls": 1.0, "us": 3.0, "registers": 40, "blocks": [1, 6]}
    assert (memset["calls"], memset["us"], memset["blocks"]) == (0.5, 1.5, None)
    assert gpu_profile.covered_us(EVENTS) == 8.0  # 0 to 6 and 10 to 12
    assert gpu_profile.short("void at::native::copy") == "copy" and len(gpu_profile.short("x" * 200)) <= 90
    lines = gpu_profile.table_of([add, memset], top=1).splitlines()
    assert [line.split()[0] for line in lines] == ["kernel", "add<float>(int)", "1", "all"] and lines[-1].split()[1] == "4.5"


CEILINGS = [
    {"what": "copy", "bytes": 2_000_000, "ms": [1.0, 2.0, 1.0]},  # 2 GB/s
    *({"what": what, "flops": flops, "ms": [1.0]} for what, flops in (("float32", 10**6), ("tf32", 10**7), ("bf16", 10**8))),  # from 1 GFLOP/s on
]


def test_ceilings_are_those_of_the_median() -> None:
    assert gpu_ceilings.bandwidth(CEILINGS) == 2e9
    assert gpu_ceilings.rate(CEILINGS, "tf32") == 1e10


def made_up(name: str, rows: list[dict], **more: object) -> dict:
    environment = {"device": "NVIDIA A1", "driver": "1.2", "python": "3.12.1", "versions": {"cupy": "14.2", "torch": "2.11"}, "processors": 16,
                   "processor": "A processor", "revision": "abc"}  # fmt: skip
    date = "2026-01-02T03:04:05+00:00"
    return {
        "benchmark": name,
        "date": date,
        "command": f"python -m benchmarks.{name}",
        "quick": False,
        "environment": environment,
        **more,
        "rows": rows,
    }


def kernel_rows() -> list[dict]:
    gelu = case_of("gelu", given([1000]), [1000])  # 8,000 bytes forward: 0.004 ms; 12,000 backward: 0.006 ms
    linear = case_of("linear", given([100, 10], [50, 10], None), [100, 50])  # 100,000 FLOP: 0.1 ms
    samples = {("gelu", FORWARD): (0.005, 0.004), ("gelu", BACKWARD): (0.012, 0.010), ("linear", FORWARD): (0.2, 0.4)}
    rows = []
    for case in (gelu, linear):
        for which, work in work_of(case).items():
            if (case["op"], which) in samples:
                ours, theirs = samples[case["op"], which]
                rows.append({"case": case, "pass": which, **work._asdict(), "copies": 2, "ms": {"minigrad": [ours] * 3, "torch": [theirs]}})
    return rows


def step_rows() -> list[dict]:
    def row(side: str, *ms: float, **more: object) -> dict:
        case = {"config": "cifar-micro", "batch": 512, "size": 32}
        return {"case": case, "precision": "tf32", "side": side, "turns": [{"ms": list(ms), "wall_ms": 1.0}], "first_loss": 2.0, **more}

    compiled = {"case": row("x")["case"], "precision": "tf32", "side": "torch-compile", "failed": "left out: the time for compiling was spent"}
    return [row("graph", 4.0, 5.0, 9.0), row("eager", 50.0), row("torch", 10.0, first_loss=2.5), compiled]


def test_passes_are_judged_by_what_they_wait_for() -> None:
    forward, backward, linear = (gpu_kernels.summary(row, CEILINGS, "float32") for row in kernel_rows())
    assert (forward["bound"], linear["bound"]) == ("memory", "products")
    assert [found["share"] for found in (forward, backward, linear)] == pytest.approx([0.8, 0.5, 0.5])
    assert forward["gb_s"] == pytest.approx(1.6) and linear["tflop_s"] == pytest.approx(5e-4)
    ((slow, _),) = gpu_kernels.exceptions(kernel_rows(), CEILINGS, "float32")
    assert (slow["case"]["op"], slow["pass"]) == ("gelu", BACKWARD)
    of_step = {row[0]: row[1:] for row in gpu_kernels.sums(kernel_rows(), "cifar-nano", CEILINGS, "float32")}
    assert of_step["gelu backward"] == pytest.approx([0.036, 0.03, 1.2, 0.018])  # three calls
    assert of_step["all"][:2] == pytest.approx([3 * 0.217, 3 * 0.414])


def test_the_page_says_what_the_files_hold(tmp_path: Path) -> None:
    profile = {"case": {"config": "cifar-micro", "batch": 512}, "side": "minigrad", "precision": "float32", "busy_ms": 4.0,
               "times": {"eager": {"ms": [9.0, 8.0, 9.5]}}}  # fmt: skip
    records = [
        made_up("gpu_step", step_rows()),
        made_up("gpu_kernels", kernel_rows(), ceilings=CEILINGS, precision="float32"),
        made_up("gpu_ceilings", CEILINGS),
        made_up("gpu_profile", gpu_profile.by_kernel(EVENTS, 1), **profile),
        made_up("something else", []),
    ]
    for record in records:
        (tmp_path / f"{record['benchmark']}.json").write_text(json.dumps(record))
    gpu_report.main(["--results", str(tmp_path), "--page", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text()
    assert "| cifar-micro, 512 of 32x32, tf32 | 5 | 50 | 10 | – | 0.50 | 0.50 |" in page
    assert "Not measured: cifar-micro, tf32, torch.compile: left out: the time for compiling was spent." in page
    assert "do not begin with the same loss**: cifar-micro, tf32: eager 2, torch 2.5." in page
    assert "copies memory at 2 GB/s" in page and "float32 0, tf32 0, bf16 0" in page
    assert "below 70 % of the speed of copying: 1 of 2" in page and "| gelu, backward | 3 | 12 | 50 % |" in page
    assert "| linear 100x10 50x10, forward | 3 | 200 | 400 | 0.50 |" in page
    assert "a step takes eager 9.00 ms; the GPU works 4.00 ms" in page and "| `add<float>(int)` | 2 | 6 | 3 | 66.7 % |" in page
    assert page.count("NVIDIA A1, driver 1.2; Python 3.12.1, cupy 14.2, torch 2.11; 16 processors (A processor).") == 4
    assert page.endswith("* [something else.json](../benchmarks/results/gpu/something else.json): something else\n")
    assert "--quick" not in page and "No figure" not in page


def test_the_page_says_when_there_is_no_figure_or_a_quick_one() -> None:
    assert "No figure has been measured with these programs yet." in gpu_report.page_of([])
    quick = gpu_report.page_of([("a.json", {**made_up("gpu_ceilings", CEILINGS), "quick": True})])
    assert "**Measured with --quick" in quick and "No figure" not in quick


def test_the_committed_page_is_made_of_the_committed_files() -> None:
    files = sorted((ROOT / "benchmarks" / "results" / "gpu").glob("*.json"))
    assert gpu_report.PAGE.read_text() == gpu_report.page_of([(file.name, json.loads(file.read_text())) for file in files])


def test_a_file_is_called_after_the_card(tmp_path: Path) -> None:
    options = gpu.arguments(None).parse_args(["--out", str(tmp_path)])
    assert gpu.path_of("gpu_step", options, "NVIDIA H100 80GB HBM3", "tf32") == tmp_path / "gpu_step-h100-80gb-hbm3-tf32.json"
    options.out = tmp_path / "a.json"
    assert gpu.path_of("gpu_step", options, "NVIDIA H100 80GB HBM3", "") == tmp_path / "a.json"
    assert gpu.path_of("gpu_step", gpu.arguments(None).parse_args([]), "NVIDIA A1", "") == gpu.GPU_RESULTS / "gpu_step-a1.json"


def test_a_table_for_the_terminal() -> None:
    assert gpu.text_table(["a", "ms"], [["x", 1.23456], ["long", None], ["y", 12345.0]]).splitlines() == [
        "a         ms", "x      1.235", "long       -", "y     12,345",
    ]  # fmt: skip
    assert np.isclose(float(gpu.figure(0.000123456)), 0.0001235)
