"""The GPU benchmarks: what they count, what they make of samples, and that they run, beside PyTorch on the CPU, with the emulator as the GPU."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import minigrad
from benchmarks import (
    files,
    gpu,
    gpu_ceilings,
    gpu_counts,
    gpu_kernels,
    gpu_networks,
    gpu_profile,
    gpu_report,
    gpu_run_section,
    gpu_sides,
    gpu_step,
    gpu_suite,
    gpu_updates,
    op_cases,
    suite,
    torch_model,
    torch_operations,
)
from benchmarks.files import ROOT
from benchmarks.gpu_counts import BACKWARD, FORWARD, UPDATE, Work, work_of
from conformer.config import named_config
from conformer.evaluate import Accuracies
from conformer.info import count
from conformer.model import Conformer
from conformer.options import TrainConfig, plain
from conformer.steps import Outcome
from conformer.train import WINDOW, Trainer
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


def card(l2_bytes: int = 0) -> dict[str, float]:
    """2 GB/s and 1 GFLOP/s, as of `CEILINGS`."""
    return {"bytes_s": 2e9, "flops_s": 1e9, "l2_bytes": l2_bytes}


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
    assert gpu_counts.NAMES.keys() == gpu_counts.READS.keys() == fused.keys(), "add the new operation to NAMES and READS of benchmarks/gpu_counts.py"
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
    assert work.ideal_ms(bandwidth=1000, rate=10_000, cache=0) == 400 and work.bound(1000, 10_000, 0) == "products"
    assert work.ideal_ms(bandwidth=100, rate=10_000, cache=0) == 2000 and work.bound(100, 10_000, 0) == "memory"
    assert work.ideal_ms(bandwidth=300, rate=10_000, cache=0) == pytest.approx(2000 / 3, rel=1e-12) and work.bound(300, 10_000, 0) == "memory"
    assert work.ideal_ms(bandwidth=300, rate=10_000, cache=90) == 400 and work.bound(300, 10_000, 90) == "products"


def test_what_is_read_again_counts_as_far_as_the_cache_cannot_have_kept_it() -> None:
    work = Work(least=100, moved=180, flops=0)
    assert [work.traffic(cache) for cache in (0, 30, 79, 80, 1000)] == [180, 150, 101, 100, 100]
    x, c = [512, 16, 16, 32], [32]  # a batch norm of cifar-micro, whose input of 16.8 MB is in the cache when it is read again
    norm = work_of(case_of("batch_norm", given(x, c, c, None, None, None), x, eps=1e-5, relu=True))
    n = 4 * 512 * 16 * 16 * 32
    assert norm[FORWARD].traffic(50_000_000) == norm[FORWARD].least == 2 * n + 4 * 4 * 32
    assert norm[BACKWARD].traffic(50_000_000) == norm[BACKWARD].least + 3 * n + 4 * 32 - 50_000_000  # dy, x, y and the weight again


def test_an_update_s_arrays_counted_by_hand() -> None:
    def update(op: str) -> dict:
        return case_of(op, given([1000], needs=False), [1000])

    assert work_of(update("adamw")) == {UPDATE: Work(28_000, 28_000, 0)}  # four read, three written
    assert work_of(update("clip_grad_norm")) == {UPDATE: Work(8_000, 12_000, 0)}  # read for the norm, then read and written
    assert work_of(update("ema")) == {UPDATE: Work(12_000, 12_000, 0)}
    assert [gpu_counts.footprint(update(op)) for op in gpu_counts.UPDATES] == [16_000, 4_000, 8_000]
    assert gpu_counts.footprint(case_of("gelu", given([1000]), [1000])) == 8_000


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
    rows = gpu_kernels.measured(case, rounds=2, card=card(2000))
    assert [row["pass"] for row in rows] == [FORWARD, BACKWARD]
    for row in rows:
        assert "failed" not in row and row["methods"] == {"minigrad": "graph", "torch": "launches"}
        assert row["copies"] > 1 and [len(samples) for samples in row["ms"].values()] == [6, 6]
        assert min(row["ms"]["minigrad"] + row["ms"]["torch"]) > 0
    gradients = sum(bool(x and x["needs"]) for x in case["inputs"])
    assert len(rows[0]["differences"]) == 1 + gradients and max(rows[0]["differences"]) < 1e-5
    assert gpu_kernels.disagreeing(rows, "float32") == []
    for place in range(1 + gradients):
        off = [1e-7] * (1 + gradients)
        off[place] = float("nan")
        ((_, worst),) = gpu_kernels.disagreeing([{**rows[0], "differences": off}, rows[1]], "float32")
        assert worst != worst


@pytest.mark.parametrize("op", gpu_counts.UPDATES)
def test_an_update_of_all_parameters_is_timed_on_both_sides(op: str, device: object, tiny_network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MILLISECONDS", 0.0)
    case = next(case for case in gpu_updates.cases_of(tiny_network, 4, 32) if case["op"] == op)
    parameters = sum(p.size for p in Conformer(**asdict(named_config(tiny_network))).parameters())
    (row,) = gpu_kernels.measured(case, rounds=1, card=card())
    assert row["moved"] == 4 * gpu_counts.UPDATES[op].moved * parameters and row["flops"] == 0 and not row["in_cache"]
    monkeypatch.setattr(gpu_kernels, "enough", lambda launch: [1.0])
    held = (
        4 * parameters * {"adamw": 4, "clip_grad_norm": 1, "ema": 2}[op] // gpu_sides.CACHES
    )  # by a cache of so many bytes, a quarter of the arrays
    assert [gpu_kernels.measured(case, 1, card(cache))[0]["in_cache"] for cache in (held, held + 1)] == [False, True]
    assert "failed" not in row and row["pass"] == "update" and [len(samples) for samples in row["ms"].values()] == [3, 3]
    assert gpu_kernels.label(case) == f"{op} tiny, {parameters:,} parameters"


def test_a_side_that_fails_leaves_the_other(device: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "MILLISECONDS", 0.0)
    monkeypatch.setattr(torch_operations, "OPERATIONS", {})
    rows = gpu_kernels.measured(case_of("gelu", given([2, 4]), [2, 4]), rounds=1, card=card())
    assert all(row["failed"] == {"torch": "KeyError: 'gelu'"} and list(row["ms"]) == ["minigrad"] for row in rows)


@pytest.mark.parametrize("at", ["data", "synchronise", "comparison", "backward"])
def test_whatever_fails_in_a_case_is_written_beside_what_does_not(at: str, device: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("it")

    calls = []

    def enough(launch: object) -> list[float]:
        calls.append(launch)
        return fail() if len(calls) == 3 else [1.0]  # type: ignore[return-value]  # forward of both sides, then ours backward

    monkeypatch.setattr(gpu_kernels, "enough", enough if at == "backward" else lambda launch: [1.0])
    place = {"data": (gpu_sides, "Data"), "synchronise": (gpu, "synchronise"), "comparison": (gpu_sides, "differences")}
    if at in place:
        monkeypatch.setattr(*place[at], fail)
    forward, backward = gpu_kernels.measured(case_of("gelu", given([2, 4]), [2, 4]), rounds=1, card=card())
    both = {name: "RuntimeError: it" for name in ("minigrad", "torch")}
    if at == "backward":
        assert len(forward["ms"]) == 2 and list(backward["ms"]) == ["torch"] and backward["failed"] == {"minigrad": "RuntimeError: it"}
    elif at == "comparison":
        assert forward["failed"] == {"comparison": "RuntimeError: it"} and len(forward["ms"]) == len(backward["ms"]) == 2
    else:
        assert forward["failed"] == backward["failed"] == both and forward["ms"] == backward["ms"] == {}


def test_an_operation_that_is_not_there_is_refused_before_anything_is_measured(
    device: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_ceilings, "measure_ceilings", lambda quick: pytest.fail("the ceilings are measured"))
    with pytest.raises(SystemExit) as exit:
        gpu_kernels.main(["--out", str(tmp_path), "--only", "gelu", "convd"])
    assert exit.value.code == 2 and "invalid choice: 'convd'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


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


def test_what_the_cache_may_hold_all_the_same_is_marked_and_not_judged_by_memory(device: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "enough", lambda launch: [1.0])
    case = case_of("gelu", given([10]), [10])  # 80 bytes, at most 64 times
    for cache, held in ((0, False), (64 * 80 // 4, False), (64 * 80 // 4 + 1, True)):
        rows = gpu_kernels.measured(case, rounds=1, card=card(cache))
        assert [row["in_cache"] for row in rows] == [held, held]
        assert {gpu_kernels.summary(row)["bound"] for row in rows} == {"cache" if held else "memory"}
        assert len(gpu_kernels.exceptions(rows)) == (0 if held else 2)
    page = gpu_report.page_of([("a.json", made_up("gpu_kernels", rows, ceilings=CEILINGS, precision="float32"))])
    assert "of the speed of copying: 0 of 0" in page and " % (cache) |" in page


def test_the_largest_call_of_each_operation_stands_for_the_further_networks(tiny_network: str) -> None:
    first, both = (gpu_kernels.cases_of([f"{tiny_network}:4:32"] * times) for times in (1, 2))
    updates = first[-len(gpu_counts.UPDATES) :]
    first, further = first[: -len(updates)], both[len(first) - len(updates) : -len(updates)]
    assert both == first + further + updates and len({case["op"] for case in further}) == len(further)
    for case in further:
        assert op_cases.least_bytes(case) == max(op_cases.least_bytes(other) for other in first if other["op"] == case["op"])
    assert {case["op"] for case in gpu_kernels.cases_of([f"{tiny_network}:4:32"], ["gelu"])} == {"gelu"}


# --- the whole step


def test_all_sides_begin_with_the_same_loss(device: object, tiny_network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_step, "timed", lambda step, steps, warm_ups: {"ms": [float(step().item())], "wall_ms": 1.0})
    case = {"config": tiny_network, "batch": 2, "size": 32}
    rows = gpu_step.measured(case, "float32", ["graph", "eager", "torch", "torch-compile"], 1, lambda: False)
    assert gpu_step.losses_apart(rows) == [] and rows[1]["first_loss"] == pytest.approx(rows[2]["first_loss"], rel=1e-4)
    assert rows[0]["first_loss"] < rows[1]["first_loss"]  # the calls before the capture were steps, which move a loss by little
    assert [len(row["turns"]) for row in rows[:3]] == [1, 1, 1] and "spent" in rows[3]["failed"]
    assert all(row["turns"][0]["ms"][0] < row["first_loss"] for row in rows[:3])  # each call took a step
    assert all(row["last_loss"] < row["turns"][0]["ms"][0] for row in rows[:3])
    rows[2]["first_loss"] *= 1.01
    assert "torch" in gpu_step.losses_apart(rows)[0]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"torch": {"first_loss": 2.3005}}, None),
        ({"torch": {"first_loss": float("nan")}}, "graph 2.3, eager 2.3, torch nan, torch-graph 2.3"),
        ({"graph": {"first_loss": float("nan")}}, "graph nan, eager 2.3, torch 2.3, torch-graph 2.3"),
        ({"torch-graph": {"first_loss": 0.0}}, "graph 2.3, eager 2.3, torch 2.3, torch-graph 0"),
        ({"eager": {"last_loss": float("inf")}}, "graph 2.3, eager 2.3, torch 2.3, torch-graph 2.3, eager at last inf"),
        ({"eager": {"last_loss": 1.1}}, None),  # it has taken more steps than the others
    ],
)
def test_every_side_s_losses_are_compared_and_must_be_numbers(changed: dict[str, dict], told: str | None) -> None:
    about = {"case": {"config": "cifar-micro", "batch": 512, "size": 32}, "precision": "float32", "first_loss": 2.3, "last_loss": 2.2}
    rows = [{**about, "side": side, **changed.get(side, {})} for side in ("graph", "eager", "torch", "torch-graph")]
    assert gpu_step.losses_apart(rows) == ([] if told is None else [f"cifar-micro, float32: {told}"])


def test_a_side_that_fails_in_a_later_turn_keeps_what_it_has_and_leaves_the_others(
    device: object, tiny_network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def timed(step: Callable, steps: int, warm_ups: int) -> dict:
        calls.append(step)
        if len(calls) == 5:  # of the two sides, each of which is called twice a turn
            raise RuntimeError("an illegal memory access")
        return {"ms": [1.0], "wall_ms": 1.0}

    monkeypatch.setattr(gpu_step, "timed", timed)
    graph, eager = gpu_step.measured({"config": tiny_network, "batch": 2, "size": 32}, "float32", ["graph", "eager"], 3, lambda: False)
    assert graph["failed"] == "in turn 2 of 3: RuntimeError: an illegal memory access" and len(graph["turns"]) == 1
    assert "failed" not in eager and len(eager["turns"]) == 3 and gpu_step.step_ms(graph) == 1.0


def test_pytorch_s_steps_before_a_capture_are_at_the_rate_of_the_first_step(
    device: object, tiny_network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, make = [], torch_model.optimizer_of
    monkeypatch.setattr(torch_model, "optimizer_of", lambda model, rate, decay: rates.append(rate) or make(model, rate, decay))
    case = {"config": tiny_network, "batch": 2, "size": 32}
    gpu_networks.torch_step(case)
    ours = gpu_networks.OurStep(case)
    ours.captured()
    assert rates == [ours._learner.learning_rate] and rates[0] < gpu_networks.RATE / 1000


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


def test_a_profile_has_every_time_before_the_profiler_is_attached(
    device: object, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(gpu_profile, "trace_of", crash)
    words = ["--quick", "--config", tiny_network, "--out", str(tmp_path / "profile.json")]
    with pytest.raises(Stopped):
        gpu_profile.main(words)
    record = json.loads((tmp_path / "profile.json").read_text())
    assert list(record["times"]) == ["eager", "captured"] and record["rows"] == [] and record["busy_ms"] is None
    assert "The profiler did not end its work." in gpu_report.page_of([("profile.json", record)])
    monkeypatch.setattr(
        gpu_profile, "trace_of", lambda step, calls: [step() for _ in range(calls)] and EVENTS
    )  # uncaptured steps after captured ones
    gpu_profile.main(words)
    record = json.loads((tmp_path / "profile.json").read_text())
    assert list(record["times"]) == ["eager", "captured"] and record["rows"] == gpu_profile.by_kernel(EVENTS, 2)


def test_which_sides_are_compiled_unasked() -> None:
    micro, nano, small = ({"config": name, "batch": 1, "size": 32} for name in ("cifar-micro", "cifar-nano", "cifar-small"))
    turns = ["graph", "eager", "torch", "torch-graph"]
    assert gpu_step.sides_of(micro, None) == [*turns, "torch-compile", "torch-graph-compile"]
    assert gpu_step.sides_of(nano, None) == [*turns, "torch-graph-compile"]
    assert gpu_step.sides_of(small, None) == turns
    assert gpu_step.sides_of(small, ["torch-compile", "graph"]) == ["graph", "torch-compile"]
    first, second = (
        [[micro, precision, "torch-compile"], [micro, precision, "torch-graph-compile"], [nano, precision, "torch-graph-compile"]]
        for precision in ("float32", "tf32")
    )
    turns = [[case, precision, None] for case in (micro, small, nano) for precision in ("float32", "tf32")]
    assert gpu_step.jobs_of([micro, small, nano], ["float32", "tf32"], None) == [*turns, *first, *second]
    assert gpu_step.jobs_of([small, nano], ["tf32"], ["torch-compile"]) == [[case, "tf32", "torch-compile"] for case in (small, nano)]


def test_what_is_compiled_and_what_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(gpu_networks, "torch_step", lambda *of, graph: asked.append((*of[2:], graph)) or (lambda: torch.tensor(2.0)))
    pytorchs = [side for side in gpu_step.SIDES if side not in gpu_step.OURS]
    assert [gpu_step.prepare(side, {}, "tf32")[1] for side in pytorchs] == [2.0] * 5
    assert dict(zip(pytorchs, asked, strict=True)) == {
        "torch": (None, False),
        "torch-graph": (None, True),
        "torch-compile": ("default", False),
        "torch-graph-compile": ("default", True),
        "torch-compile-graphs": ("reduce-overhead", False),
    }


def test_a_compile_that_fails_is_paid_for_and_cleared_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        nonlocal now
        now += 200
        raise RuntimeError("it")

    now, cleared = 0.0, []
    monkeypatch.setattr(gpu_step, "prepare", fails)
    monkeypatch.setattr(gpu_step.time, "monotonic", lambda: now)
    monkeypatch.setattr(gpu_step, "forget_compiled", lambda: cleared.append(now))
    (row,) = gpu_step.measured({"config": "cifar-micro", "batch": 2, "size": 32}, "tf32", ["torch-compile"], 3, lambda: True)
    assert row["prepared_s"] == 200 and row["failed"] == "RuntimeError: it" and "turns" not in row and cleared == [200]
    (row,) = gpu_step.measured({"config": "cifar-micro", "batch": 2, "size": 32}, "tf32", ["torch-compile"], 3, lambda: False)
    assert "spent" in row["failed"] and "prepared_s" not in row and cleared == [200]


def test_the_goals_of_the_step_and_the_graphs_beside_them() -> None:
    def rows(config: str, batch: int, precision: str, **ms: float) -> list[dict]:
        about = {"case": {"config": config, "batch": batch, "size": 32}, "precision": precision, "first_loss": 2.0}
        return [{**about, "side": side.replace("_", "-"), "turns": [{"ms": [each], "wall_ms": 1.0}]} for side, each in ms.items()]

    every = rows("cifar-micro", 512, "float32", graph=9.0, eager=8.9, torch=10.0, torch_graph=9.5, torch_compile=8.0, torch_graph_compile=7.5)
    every += rows("cifar-micro", 512, "bf16", graph=9.0, torch=8.0, torch_compile=7.0)
    every += rows("cifar-nano", 64, "tf32", graph=2.0, torch=6.0, torch_graph=4.0, torch_compile_graphs=3.0) + rows(
        "cifar-nano", 64, "bf16", graph=2.0
    )
    every += rows("cifar-micro", 64, "float32", graph=1.0, torch=9.0)
    header, cells = gpu_step.goals_of(every)
    assert header[1:] == ["ratio to eager, at most", "is", "reached", "ratio to torch.compile", "graph to graph"]
    assert cells == [
        ["cifar-micro, 512 of 32x32, float32", "0.900", "0.890", "yes", "1.11", "1.20 to torch.compile, one CUDA graph"],
        ["cifar-micro, 512 of 32x32, bf16", "1.000", "1.125", "no", "1.29", None],
        ["cifar-nano, 64 of 32x32, tf32", "0.333", "0.333", "yes", None, "0.50 to PyTorch, one CUDA graph"],
        ["cifar-nano, 64 of 32x32, bf16", "0.333", None, None, None, None],
    ]
    header, cells = gpu_step.cells_of(every)
    assert header[-3:] == ["ratio to eager", "graph to graph", "ratio to the fastest"]
    assert [row[-1] for row in cells] == [
        "1.19 to torch.compile, one CUDA graph", "1.29 to torch.compile", "0.67 to torch.compile, reduce-overhead", None, "0.11 to PyTorch eager"
    ]  # fmt: skip
    assert [row[-2] for row in cells] == ["1.20 to torch.compile, one CUDA graph", None, "0.50 to PyTorch, one CUDA graph", None, None]
    page = gpu_report.page_of([("a.json", made_up("gpu_step", every))])
    assert "### The goals of the step\n\nThey are worded by PyTorch eager" in page
    assert "| cifar-nano, 64 of 32x32, tf32 | 0.333 | 0.333 | yes | – | 0.50 to PyTorch, one CUDA graph |" in page
    assert "### The goals" not in gpu_report.page_of([("a.json", made_up("gpu_step", every[-2:]))])


def test_the_suite_runs_every_program_and_counts_those_that_fail(device: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], timeout: float | None) -> int:
        assert timeout is None
        commands.append(command[2:])
        return int(command[2] == "benchmarks.gpu_step")

    monkeypatch.setattr(suite, "status_of", run)
    assert gpu_suite.main(["--out", str(tmp_path)]) == 1
    assert [command[0] for command in commands] == [f"benchmarks.{part.split()[0]}" for part in gpu_suite.PARTS.values()] + ["benchmarks.gpu_report"]
    assert all(command[-2:] == ["--out", str(tmp_path)] for command in commands[:-1])
    only = [command[command.index("--only") + 1 : -2] for command in commands if "--only" in command]
    assert only and set(only[0]) <= gpu_counts.NAMES.keys()


def test_the_suite_stops_a_benchmark_at_the_end_of_its_share_and_goes_on(
    device: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now, given = 0.0, {}

    def run(command: list[str], timeout: float | None) -> int:
        nonlocal now
        given[command[2].removeprefix("benchmarks.")] = timeout
        if "gpu_step" in command[2] and timeout:
            now += timeout
            raise subprocess.TimeoutExpired(command, timeout)
        now += 30
        return 0

    monkeypatch.setattr(suite, "status_of", run)
    monkeypatch.setattr(suite.time, "monotonic", lambda: now)
    assert gpu_suite.main(["--seconds", "100", "--only", "kernels", "profile", "step", "--out", str(tmp_path)]) == 1
    assert given == {"gpu_kernels": 40, "gpu_profile": 30, "gpu_step": 40, "gpu_report": None}
    told = capsys.readouterr()
    assert "stopped after 40 s" in told.out and told.err == "failed: step\n"
    assert gpu_suite.UNTIL.keys() == gpu_suite.PARTS.keys() and sorted(gpu_suite.UNTIL.values()) == list(gpu_suite.UNTIL.values())


# --- files


def small_suite(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    """The suite's programs on one tiny network, in this process, with the emulator as the GPU."""
    parts = {
        "kernels": f"gpu_kernels --configs {config}:2:32 --only gelu",
        "kernels-tf32": f"gpu_kernels --precision tf32 --configs {config}:2:32 --only gelu",
        "profile": f"gpu_profile --config {config}",
        "step": f"gpu_step --cases {config}:2:32 --sides graph",
    }
    assert list(parts) == list(gpu_suite.PARTS) and all(parts[name].split()[0] == gpu_suite.PARTS[name].split()[0] for name in parts)
    monkeypatch.setattr(gpu_suite, "PARTS", parts)
    monkeypatch.setattr(gpu_profile, "trace_of", lambda step, calls: EVENTS)
    monkeypatch.setattr(gpu_step, "FEWEST", 1)
    for module in (gpu_kernels, gpu_step):
        monkeypatch.setattr(module, "MILLISECONDS", 0.0)

    def run(command: list[str], timeout: float | None) -> int:
        importlib.import_module(command[2]).main(command[3:])
        return 0

    monkeypatch.setattr(suite, "status_of", run)


def test_all_that_the_suite_writes_is_in_the_folder_it_is_given(
    device: object, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "given"
    for module, name in ((gpu, "GPU_RESULTS"), (files, "QUICK_RESULTS"), (gpu_report, "PAGE")):
        monkeypatch.setattr(module, name, elsewhere / name)
    gpu.host()  # it asks git, by the function that is replaced next
    small_suite(monkeypatch, tiny_network)
    assert gpu_suite.main(["--quick", "--out", str(folder)]) == 0
    names = ["gpu_kernels-the-emulator-float32", "gpu_kernels-the-emulator-tf32", f"gpu_profile-the-emulator-minigrad-{tiny_network}-float32"]
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        ["benchmarks_gpu.md", *(f"{name}.json" for name in [*names, "gpu_step-the-emulator"])]
    )
    assert not elsewhere.exists()
    assert all(f"({gpu_run_section.LINK}{name}.json)" in (folder / "benchmarks_gpu.md").read_text() for name in names)

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
    def measure(case: dict, rounds: int, card: dict) -> list[dict]:
        about = {"copies": 1, "in_cache": case["op"] == "softmax", "card": card, "ms": {"minigrad": [1.0], "torch": [1.0]}}
        return [{"case": case, "pass": which, **work._asdict(), **about} for which, work in work_of(case).items()]

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
    assert len(wanted) == 4 and second == wanted[3:]  # before what failed, and what the first run was stopped in
    third, complete = stopping(measure, 100)
    monkeypatch.setattr(gpu_kernels, "measured", complete)
    gpu_kernels.main([*words, "--resume"])
    assert third == [wanted[2], wanted[1]]  # a run was stopped in both; of one there are rows, if only of one side
    assert rows_of(tmp_path)[:2] == record["rows"][:2]
    assert not any("failed" in row for row in rows_of(tmp_path)) and [row["case"] for row in rows_of(tmp_path) if row["pass"] != BACKWARD] == wanted
    memory = [row for row in rows_of(tmp_path) if row["case"]["op"] != "softmax"]
    assert f"below 70 % of copying: {len(gpu_kernels.exceptions(memory))} of {len(memory)}\n" in capsys.readouterr().out
    before = len(third)
    gpu_kernels.main([*words[:-3], *words[-2:], "--resume"])  # without adamw
    assert len(third) == before and {row["case"]["op"] for row in rows_of(tmp_path)} == {"gelu", "softmax", "adamw"}
    assert json.loads(file.read_text())["only"] == ["adamw", "gelu", "softmax"]

    capsys.readouterr()
    monkeypatch.setattr(gpu, "code", lambda: "another")
    gpu_kernels.main([*words, "--resume"])
    assert third[before:] == wanted and "is measured anew, since it is of code " in capsys.readouterr().out
    gpu_kernels.main(words)
    assert third[before:] == 2 * wanted


def test_steps_measured_before_the_program_was_stopped_are_kept(
    device: object, tiny_network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"turns": [{"ms": [1.0], "wall_ms": 1.0}], "first_loss": 2.0, "prepared_s": 70.0}
    calls: list[tuple[str, str, bool]] = []
    most = 100

    def measured(case: dict, precision: str, sides: list[str], rounds: int, may_compile: Callable[[], bool]) -> list[dict]:
        if len(calls) == most:
            raise Stopped
        (side,) = sides
        calls.append((precision, side, may_compile()))
        kept = answer if side == "graph" or may_compile() else {"failed": "left out"}
        return [{"case": case, "precision": precision, "side": side, **kept}]

    def in_file() -> list[tuple[str, str, bool]]:
        return [(row["precision"], row["side"], "failed" in row) for row in rows_of(tmp_path)]

    monkeypatch.setattr(gpu_step, "measured", measured)
    words = ["--cases", f"{tiny_network}:2:32", "--sides", "graph", "torch-compile", "--compile-seconds", "100", "--out", str(tmp_path)]
    gpu_step.main(words)
    compiled = [("float32", "torch-compile", True), ("tf32", "torch-compile", True), ("bf16", "torch-compile", False)]
    assert calls == [(precision, "graph", True) for precision in PRECISIONS] + compiled  # what is compiled comes last
    calls.clear()
    gpu_step.main([*words, "--resume"])
    assert calls == [("bf16", "torch-compile", True)]  # it was left out when 140 s were spent, which this run has not
    everything = [(precision, side, False) for side in ("graph", "torch-compile") for precision in PRECISIONS]
    assert in_file() == everything
    calls.clear()
    most = 1
    with pytest.raises(Stopped):
        gpu_step.main(words)
    assert in_file() == everything[:1]  # not to be resumed, it begins anew
    (file,) = tmp_path.glob("*.json")
    page = gpu_report.page_of([(file.name, json.loads(file.read_text()))])
    assert f"before it came to these: {tiny_network}, tf32; {tiny_network}, bf16; {tiny_network}, float32, torch.compile" in page
    calls.clear()
    most = 100
    gpu_step.main([*words, "--resume", "--precisions", "bf16"])
    assert in_file() == [everything[2], everything[5], everything[0]] and [call[0] for call in calls] == ["bf16"] * 2
    calls.clear()
    gpu_step.main([*words, "--resume", "--rounds", "1", "--precisions", "bf16"])
    assert in_file() == [everything[2], everything[5]]  # other turns than those of the file


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, None),
        ({"driver": "2.0"}, "driver 1.0, now 2.0"),
        ({"cuda_runtime": 13_000}, "cuda_runtime None, now 13000"),
        ({"versions": {"torch": "2.13", "cudnn": "9.9"}}, "cudnn 9.8, now 9.9"),
        ({"versions": {"torch": "2.14", "cudnn": "9.8"}}, "torch 2.13, now 2.14"),
        ({"versions": {"torch": "2.13", "triton": "3.5"}}, None),  # imported by one of both alone
    ],
)
def test_figures_of_other_versions_are_not_gone_on_with(
    changed: dict, told: str | None, device: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = gpu.resumable(gpu.arguments(None)).parse_args(["--resume", "--out", str(tmp_path)])
    environment = {"device": "A1", "code": "abc", "driver": "1.0", "versions": {"torch": "2.13", "cudnn": "9.8"}}
    monkeypatch.setattr(gpu, "environment", lambda: environment)
    gpu.save("some", [{"a": 1}], options, [])
    environment |= changed
    assert gpu.kept("some", options)["rows"] == ([] if told else [{"a": 1}])
    assert capsys.readouterr().out == (f"--resume: some-a1.json is measured anew, since it is of {told}\n" if told else "")


def test_a_case_that_ends_the_process_is_begun_last_by_every_later_run(device: object, tmp_path: Path) -> None:
    """By two of them too: neither may keep the others from being measured."""
    options = gpu.resumable(gpu.arguments(None)).parse_args(["--resume", "--out", str(tmp_path)])
    deadly, order = {"b", "c"}, []

    def run() -> None:
        def write(rows: list[dict], **more: object) -> Path:
            return gpu.save("some", rows, options, [], **more)

        cases = gpu.Cases(list("abcde"), lambda row: row["case"], lambda _, rows: "failed" not in rows[0], gpu.kept("some", options), write)
        for case in cases.left():
            order.append(case)
            if case in deadly:
                raise Stopped
            cases.add(case, [{"case": case, **({"failed": "it"} if case == "d" else {})}])
        cases.save()

    for begun in ("ab", "c", "deb", "db"):
        order.clear()
        with pytest.raises(Stopped):
            run()
        assert "".join(order) == begun
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["missing"] == ["b", "c"] and record["begun"] == ["b", "c"]
    deadly.clear()
    order.clear()
    run()
    assert order == ["d", "b", "c"]
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["missing"] == record["begun"] == [] and [row["case"] for row in record["rows"]] == list("abcde")


def test_a_case_after_which_the_gpu_answers_no_more_ends_the_program_and_comes_last(
    device: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    def captured(launch: object) -> list[float]:
        monkeypatch.setattr(gpu, "synchronise", lost)
        return lost()  # type: ignore[return-value]

    monkeypatch.setattr(gpu_ceilings, "measure_ceilings", lambda quick: CEILINGS)
    monkeypatch.setattr(gpu_kernels, "enough", captured)
    cases = [case_of(op, given([2, 4]), [2, 4]) for op in ("gelu", "softmax")]
    cases[1]["values"] = {"axis": -1}
    monkeypatch.setattr(gpu_kernels, "cases_of", lambda configs, only: cases)
    with pytest.raises(SystemExit, match="the same command with --resume goes on with other cases"):
        gpu_kernels.main(["--out", str(tmp_path)])
    (file,) = tmp_path.glob("*.json")
    record = json.loads(file.read_text())
    why = "RuntimeError: an illegal memory access was encountered"
    assert [row["failed"] for row in record["rows"]] == [{"minigrad": why, "torch": why}] * 2 and record["begun"] == cases[:1]
    monkeypatch.undo()
    with minigrad.emulated(build="plain"):
        monkeypatch.setattr(gpu_kernels, "MILLISECONDS", 0.0)
        monkeypatch.setattr(gpu_ceilings, "measure_ceilings", lambda quick: CEILINGS)
        monkeypatch.setattr(gpu_kernels, "cases_of", lambda configs, only: cases)
        order, measure = stopping(gpu_kernels.measured, 2)
        monkeypatch.setattr(gpu_kernels, "measured", measure)
        gpu_kernels.main(["--resume", "--out", str(tmp_path)])
    assert order == cases[::-1] and not any("failed" in row for row in rows_of(tmp_path))


def test_a_file_that_is_being_written_when_the_program_is_stopped_stays_what_it_was(
    device: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = gpu.resumable(gpu.arguments(None)).parse_args(["--quick", "--resume", "--out", str(tmp_path)])
    gpu.save("some", [{"a": 1}], options, [])
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: write(path, text[: len(text) // 2]) and (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        gpu.save("some", [{"a": 1}, {"a": 2}], options, [])
    assert gpu.kept("some", options)["rows"] == [{"a": 1}]


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
                about = {"copies": 2, "in_cache": False, "card": card(), "ms": {"minigrad": [ours] * 3, "torch": [theirs]}}
                rows.append({"case": case, "pass": which, **work._asdict(), **about})
    return rows


def step_rows() -> list[dict]:
    def row(side: str, *ms: float, **more: object) -> dict:
        case = {"config": "cifar-micro", "batch": 512, "size": 32}
        return {"case": case, "precision": "tf32", "side": side, "turns": [{"ms": list(ms), "wall_ms": 1.0}], "first_loss": 2.0, **more}

    compiled = {"case": row("x")["case"], "precision": "tf32", "side": "torch-compile", "failed": "left out: the time for compiling was spent"}
    return [row("graph", 4.0, 5.0, 9.0), row("eager", 50.0), row("torch", 10.0, first_loss=2.5), compiled]


def test_passes_are_judged_by_what_they_wait_for() -> None:
    assert gpu_ceilings.of_card(CEILINGS, "float32", 5) == card(5)
    forward, backward, linear = (gpu_kernels.summary(row) for row in kernel_rows())
    assert (forward["bound"], linear["bound"]) == ("memory", "products")
    assert [found["share"] for found in (forward, backward, linear)] == pytest.approx([0.8, 0.5, 0.5], rel=1e-12)
    assert forward["gb_s"] == pytest.approx(1.6, rel=1e-12) and linear["tflop_s"] == pytest.approx(5e-4, rel=1e-12)
    ((slow, _),) = gpu_kernels.exceptions(kernel_rows())
    assert (slow["case"]["op"], slow["pass"]) == ("gelu", BACKWARD)
    of_step = {row[0]: row[1:] for row in gpu_kernels.sums(kernel_rows(), "cifar-nano:64:32")}
    assert of_step["gelu backward"] == pytest.approx([0.036, 0.03, 1.2, 0.018], rel=1e-12)  # three calls
    assert of_step["all of these"][:2] == pytest.approx([3 * 0.217, 3 * 0.414], rel=1e-12)


def test_each_row_is_judged_by_the_card_as_it_was_measured_beside_it() -> None:
    forward, *others = kernel_rows()
    later = {**forward, "card": {**card(), "bytes_s": 4e9}}
    assert [gpu_kernels.summary(row)["share"] for row in (forward, later)] == pytest.approx([0.8, 0.4], rel=1e-12)
    page = gpu_report.page_of([("a.json", made_up("gpu_kernels", [later, *others], ceilings=CEILINGS, precision="float32"))])
    assert "each row is judged by the copy of its own, at 2, 4 GB/s." in page
    assert "copy of its own" not in gpu_report.page_of([("a.json", made_up("gpu_kernels", kernel_rows(), ceilings=CEILINGS, precision="float32"))])


def test_a_second_pass_that_the_cache_serves_does_not_lift_a_kernel_over_the_goal() -> None:
    x, c = [2, 5, 5, 20], [20]
    case = case_of("batch_norm", given(x, c, c, None, None, None), x, eps=1e-5, relu=False)
    work = work_of(case)[FORWARD]
    assert (work.least, work.moved) == (8_320, 12_320)
    about = {"case": case, "pass": FORWARD, **work._asdict(), "copies": 60, "in_cache": False}
    rows = [{**about, "card": card(l2), "ms": {"minigrad": [0.0077], "torch": [0.01]}} for l2 in (0, 1_000, 10_000)]
    assert [round(100 * gpu_kernels.summary(row)["share"]) for row in rows] == [80, 74, 54]
    assert {gpu_kernels.counted(gpu_kernels.summary(row)) for row in rows} == {"54-80"}
    assert [row["card"]["l2_bytes"] for row, _ in gpu_kernels.exceptions(rows)] == [10_000]
    assert gpu_kernels.summary(rows[2])["gb_s"] == pytest.approx(8_320 / 7.7e3, rel=1e-12)
    page = gpu_report.page_of([("a.json", made_up("gpu_kernels", rows[2:], ceilings=CEILINGS, precision="float32"))])
    assert "exceeds the L2 cache, 0.0 MB on this card" in page
    assert "| batch_norm 2x5x5x20, forward | 3 | 7.7 | 54 % | 54 to 80 % |" in page
    assert "| 7.7 | 10 | 0.77 | 1.08 | – | 54 % (memory) | 54 to 80 % |" in page


def test_passes_that_failed_are_not_among_those_that_are_judged() -> None:
    forward, backward, linear = kernel_rows()
    rows = [forward, {**backward, "ms": {}, "failed": {"minigrad": "it"}}, linear]
    assert [row["pass"] for row, _ in gpu_kernels.judged(rows)] == [FORWARD]
    page = gpu_report.page_of([("a.json", made_up("gpu_kernels", rows, ceilings=CEILINGS, precision="float32"))])
    assert "below 70 % of the speed of copying: 0 of 1" in page


def test_two_batches_of_one_network_are_summed_apart() -> None:
    rows = kernel_rows()
    other = [{**row, "case": {**row["case"], "batch": 512}} for row in rows]
    assert gpu_kernels.sums(rows + other, "cifar-nano:64:32") == gpu_kernels.sums(rows, "cifar-nano:64:32") != []
    page = gpu_report.page_of([("a.json", made_up("gpu_kernels", rows + other, ceilings=CEILINGS, precision="float32"))])
    assert "### cifar-nano, 64 of 32x32: sums over" in page and page.count(": every pass</summary>") == 2


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
    assert "| cifar-micro, 512 of 32x32, tf32 | 5 | 50 | 10 | – | 0.50 | – | 0.50 to PyTorch eager |" in page
    assert "Not measured, or not to the end: cifar-micro, tf32, torch.compile: left out: the time for compiling was spent." in page
    assert "do not take the same step; their losses**: cifar-micro, tf32: graph 2, eager 2, torch 2.5." in page
    assert "copies memory at 2 GB/s" in page and "float32 0, tf32 0, bf16 0" in page
    assert "below 70 % of the speed of copying: 1 of 2" in page and "| gelu, backward | 3 | 12 | 50 % |  |" in page
    assert "| linear 100x10 50x10, forward | 3 | 200 | 400 | 0.50 |" in page
    assert "a step takes eager 9.00 ms; the GPU works 4.00 ms" in page and "| `add<float>(int)` | 2 | 6 | 3 | 66.7 % |" in page
    assert page.count("NVIDIA A1, driver 1.2; Python 3.12.1, cupy 14.2, torch 2.11; 16 processors (A processor).") == 4
    assert page.endswith("* [something else.json](../benchmarks/results/gpu/something else.json): something else\n")
    assert "--quick" not in page and "No figure" not in page


def test_the_page_says_what_was_launched_from_python() -> None:
    methods = [{"minigrad": "graph", "torch": "graph"}, {"minigrad": "launches", "torch": "graph"}]
    rows = [{**row, "methods": methods[number == 1]} for number, row in enumerate(kernel_rows())]
    page = gpu_report.page_of([("a.json", made_up("gpu_kernels", rows, ceilings=CEILINGS, precision="float32"))])
    told = f"Launched from Python, which may take longer than the work, since no graph could be captured: gelu {rows[1]['pass']}, minigrad."
    assert page.count("Launched from Python") == 1 and told in page


def test_the_page_says_what_its_sums_leave_out() -> None:
    rows = [{**row, "case": {**row["case"], "config": "cifar-nano"}} for row in kernel_rows()]
    whole = made_up("gpu_kernels", rows, ceilings=CEILINGS, precision="float32", missing=[], only=None)
    page = gpu_report.page_of([("a.json", whole)])
    assert "### cifar-nano, 64 of 32x32: sums over a training step\n\n| operation" in page and "| all of these |" in page
    further = case_of("gelu", given([5]), [5])
    missing = [further, {**further, "op": "softmax"}, {**further, "config": "cifar-micro"}, {**further, "where": "after the training step"}]
    rows[1] = {**rows[1], "ms": {"minigrad": [1.0]}, "failed": {"torch": "it"}}
    page = gpu_report.page_of([("a.json", {**whole, "rows": rows, "missing": missing, "only": ["gelu", "linear"]})])
    assert "### cifar-nano, 64 of 32x32: sums over a training step, of gelu, linear alone" in page
    assert "Only 2 of 4 cases have been measured.\n\nLeft out, since a side failed: gelu backward.\n\n| operation" in page
    assert "| gelu backward |" not in page
    nothing = gpu_report.page_of([("a.json", {**whole, "rows": [], "missing": missing})])
    assert "The run was stopped before the first case was measured." in nothing


def test_the_page_names_files_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "sanitize-all.json").write_text(json.dumps({"device": "A", "command": "python -m tests.gpu.sanitize", "tools": []}))
    gpu_report.main(["--results", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert "sanitize-all.json): python -m tests.gpu.sanitize\n" in (tmp_path / "page.md").read_text()


def test_a_file_without_a_commit_gets_the_one_whose_code_was_measured(device: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = {**gpu.host(), "revision": None}
    monkeypatch.setattr(gpu, "host", lambda: host)
    gpu.save("gpu_ceilings", CEILINGS, gpu.arguments(None).parse_args(["--out", str(tmp_path)]), [])
    (file,) = tmp_path.glob("*.json")
    monkeypatch.setattr(gpu, "driver_version", lambda: None)

    def page() -> str:
        gpu_report.write(tmp_path, tmp_path / "page.md")
        return (tmp_path / "page.md").read_text()

    assert f"at commit unknown, code {gpu.code()}:" in page()
    host["revision"] = "abcdef+"
    assert "at commit unknown" in page()
    code = gpu.code()
    host["revision"] = "abcdef"
    monkeypatch.setattr(gpu, "code", lambda: "another")
    assert "at commit unknown" in page()
    monkeypatch.setattr(gpu, "code", lambda: code)
    assert f"at commit abcdef, code {code}:" in page()
    host["revision"] = "later"
    assert f"at commit abcdef, code {code}:" in page() and json.loads(file.read_text())["rows"] == CEILINGS


def test_what_is_hashed_is_what_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of benchmarks/ that the measuring programs import, however they do it, and neither the page's program nor the suite."""
    imported, waiting = set(), ["gpu_kernels", "gpu_step", "gpu_profile", "gpu_ceilings"]
    while waiting:
        module = waiting.pop()
        imported.add(module)
        for node in ast.walk(ast.parse((ROOT / "benchmarks" / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "benchmarks":
                names = [node.module.partition(".")[2]] if "." in node.module else [alias.name for alias in node.names]
                waiting += [name for name in names if name not in imported]
    assert imported == set(gpu.MEASURING)
    for folder in ("minigrad", "conformer", "benchmarks"):
        (tmp_path / folder).mkdir()
    for module in [*gpu.MEASURING, "gpu_report"]:
        (tmp_path / "benchmarks" / f"{module}.py").touch()
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    codes = []
    for file in ("benchmarks/gpu_report.py", "benchmarks/gpu_sides.py", "minigrad/a.cu", "minigrad/a.cuh"):
        codes.append(gpu.code.__wrapped__())
        (tmp_path / file).write_text("changed")
    assert len(set(codes)) == 3 and codes[0] == codes[1] and gpu.code.__wrapped__() not in codes


def test_the_page_says_when_there_is_no_figure_or_a_quick_one() -> None:
    assert "No figure has been measured with these programs yet." in gpu_report.page_of([])
    quick = gpu_report.page_of([("a.json", {**made_up("gpu_ceilings", CEILINGS), "quick": True})])
    assert "**Measured with --quick" in quick and "No figure" not in quick


def test_the_committed_page_is_made_of_the_committed_files() -> None:
    assert gpu_report.PAGE.read_text() == gpu_report.page_of(*gpu_report.contents(gpu.GPU_RESULTS))


# --- a training run


def training_lines(seconds: list[float], log_every: int, batch: int, steps: int) -> list[dict]:
    """What a Trainer logs of the first steps of a run, which took so long."""
    lines: list[dict] = []
    trainer = object.__new__(Trainer)
    vars(trainer).update(vars(SimpleNamespace(
        config=TrainConfig(batch_size=batch, log_every=log_every), display=SimpleNamespace(progress=lambda progress: None, message=print),
        folder=SimpleNamespace(log=lambda **values: lines.append(values)), steps=steps, steps_per_epoch=100, evaluation_steps=100, evaluated=0,
        test=None, dataset=SimpleNamespace(measured="test"), _recent=deque(maxlen=WINDOW), _evaluation_seconds=0.0,
    )))  # fmt: skip
    right = Accuracies(0.5, 0.5, 0.5)
    trainer._note([Outcome(step, 1.0, right, 1e-3, taken) for step, taken in enumerate(seconds, 1)])
    return lines


def made_up_run(
    folder: Path, tests: list[dict], steps: int = 200, whole: int = 200, log_every: int = 50, seconds: list[float] | None = None, **changes: object
) -> Path:
    """A run's folder: 200 steps of 500 images, the first 50 at 1,000 images a second, the others at 2,500.

    Or `steps` of `whole` steps, of which each takes its `seconds`.
    """
    config = named_config("cifar-micro")
    parameters = count(replace(config, num_classes=10), 32).parameters
    header = {"dataset": "cifar10", "config": "cifar-micro", "parameters": parameters, "train_images": 50_000, "test_images": 10_000}
    header |= {"steps": whole, "seed": 0, "started": "2026-01-02T03:04:05+00:00", "device": "CUDA: NVIDIA A1 through CuPy 14.2.0"}
    header |= {"versions": {"numpy": "2.4"}, **changes}
    training = training_lines((seconds or [0.5] * 50 + [0.2] * 150)[:steps], log_every, 500, whole)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [header, *training, *tests]))
    options = TrainConfig(
        config="cifar-micro", batch_size=500, precision="tf32", epochs=2, ema=0.5, data_dir=Path("/a/secret"), out=folder, log_every=log_every
    )
    (folder / "config.json").write_text(json.dumps(plain(options) | {"steps": whole}))
    return folder


def evaluation(step: int, seconds: float, sum: float, average: float | None = None) -> dict:
    line = {"step": step, "epoch": step / 100, "test_accuracy": {"cnn": 0.5, "transformer": 0.6, "sum": sum}, "test_loss": 0.5, "seconds": seconds}
    return line if average is None else line | {"ema_test_accuracy": {"cnn": 0.7, "transformer": 0.8, "sum": average}}


def test_a_training_run_has_its_accuracies_seconds_and_pflop_on_the_page(tmp_path: Path) -> None:
    tests = [evaluation(100, 50.0, 0.9), evaluation(200, 90.0, 0.93456, 0.9401)]
    run = made_up_run(tmp_path / "run", tests, dataset_notice="/home/secret/cifar10 is damaged")
    results = tmp_path / "results"
    gpu_report.main(["--results", str(results), "--page", str(results / "page.md"), "--run", str(run)])
    page = (results / "page.md").read_text()
    assert "## A training run: cifar-micro on cifar10, A1, tf32\n" in page and "No figure" not in page
    assert "CUDA: NVIDIA A1 through CuPy 14.2.0; numpy 2.4. Begun on 2026-01-02:" in page
    command = "python -m conformer train --config cifar-micro --data-dir DIR --precision tf32 --epochs 2 --batch-size 500 --ema 0.5 --log-every 50"
    assert f"```sh\n{command}\n```" in page
    training, macs = 500 * 50 / 1000 + 500 * 150 / 2500, count(named_config("cifar-micro"), 32).macs  # those of 1,000 classes, for the size
    pflop = 6 * macs * 100_000 / 1e15
    (line,) = [line for line in page.splitlines() if line.startswith("| cifar-micro |")]
    *cells, whole_flop, rate = line.strip("| ").split(" | ")
    assert cells == ["cifar-micro", "500", "tf32", "2", "90", "55", "35", "1,818"]
    assert float(whole_flop) == pytest.approx(pflop, rel=0.01) and float(rate) == pytest.approx(1e3 * pflop / training, rel=0.01)
    assert "| the weights | 50.00 | 60.00 | 93.46 |" in page and "| their moving average | 70.00 | 80.00 | 94.01 |" in page
    assert "within 120 seconds: first found after 90.0 seconds, in time" in page
    exact = count(replace(named_config("cifar-micro"), num_classes=10), 32).macs
    assert f"x {exact:,} multiply-accumulates of an image's forward pass, as `conformer info` counts them, x 100,000 images." in page
    assert f"({gpu_run_section.LINK}train-cifar-micro-2026-01-02-030405-seed0/metrics.jsonl)" in page and "did not come to its end" not in page
    assert not any("secret" in file.read_text() for file in results.rglob("*.*") if file.is_file())
    assert sorted(file.name for file in results.glob("train-*/*")) == ["config.json", "metrics.jsonl"]
    gpu_report.main(["--results", str(results), "--page", str(results / "page.md")])  # from the copy alone
    assert (results / "page.md").read_text() == page


@pytest.mark.parametrize("kind", ["network", "held out"])
def test_a_run_of_a_branch_or_with_images_held_out_is_not_copied(kind: str, tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", [evaluation(200, 90.0, 0.95)])
    if kind == "network":
        options = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(options | {"network": "cnn"}))
    else:
        log = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(
            log.replace("test_images", "held_out_images").replace("test_acc", "held_out_acc").replace("test_l", "held_out_l")
        )
    what = "cnn, measured on test images" if kind == "network" else "conformer, measured on held-out images"
    with pytest.raises(SystemExit, match=f"is a run of {what}; the page is of whole Conformers and the test images"):
        gpu_report.main(["--results", str(tmp_path / "results"), "--page", str(tmp_path / "page.md"), "--run", str(run)])
    assert not (tmp_path / "results").exists() and not (tmp_path / "page.md").exists()


def test_runs_begun_in_the_same_minute_or_second_are_kept_apart(tmp_path: Path) -> None:
    begun = [("2026-01-02T03:04:05+00:00", 0), ("2026-01-02T03:04:05+00:00", 1), ("2026-01-02T03:04:06+00:00", 0)]
    runs = [made_up_run(tmp_path / f"run{number}", [], started=started, seed=seed) for number, (started, seed) in enumerate(begun)]
    given = ["--results", str(tmp_path / "results"), "--page", str(tmp_path / "page.md"), "--run"]
    for _ in range(2):  # once more is no harm
        gpu_report.main([*given, *map(str, runs)])
        assert [run.log.header["seed"] for run in gpu_report.contents(tmp_path / "results")[1]] == [0, 1, 0]
    other = made_up_run(tmp_path / "other", [evaluation(100, 50.0, 0.5)])
    with pytest.raises(SystemExit, match=r"train-cifar-micro-2026-01-02-030405-seed0 holds other metrics than those of .*other; remove it"):
        gpu_report.main([*given, str(other)])
    assert not gpu_report.contents(tmp_path / "results")[1][0].log.tests


@pytest.mark.parametrize(("log_every", "steps"), [(50, 200), (25, 200), (10, 180), (1, 173), (50, 50), (50, 30), (7, 40), (20, 40), (50, 80)])
def test_the_seconds_of_training_are_those_of_its_steps(log_every: int, steps: int, tmp_path: Path) -> None:
    taken = [0.5] * 50 + [0.2 + 0.01 * (step % 7) for step in range(150)]
    log = gpu_run_section.read_run(made_up_run(tmp_path / "run", [], steps, steps, log_every, taken)).log
    exact, found = sum(taken[:steps]), gpu_run_section.training_seconds(log, 500)
    if (log_every, steps) == (50, 80):  # steps 51 to 80 are known by the mean of 31 to 80 alone
        exact = sum(taken[:50]) + 30 * np.mean(taken[30:80])
    assert found == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("log_every", [20, 30, 100, 500])
def test_without_rates_that_meet_nothing_is_said_of_the_seconds_of_training(log_every: int, tmp_path: Path) -> None:
    page = gpu_report.page_of([], [gpu_run_section.read_run(made_up_run(tmp_path / "run", [evaluation(200, 90.0, 0.95)], log_every=log_every))])
    assert (
        "| cifar-micro | 500 | tf32 | 2 | 90 | – | – | – |" in page and f"do not meet with --log-every {log_every}. A run with --log-every 50" in page
    )


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ([evaluation(100, 119.0, 0.93), evaluation(200, 121.0, 0.95)], "first found after 121.0 seconds, too late"),
        ([evaluation(100, 120.0, 0.94), evaluation(200, 121.0, 0.95)], "first found after 120.0 seconds, in time"),
        ([evaluation(200, 90.0, 0.9399, 0.93)], "within 120 seconds: not reached."),
    ],
)
def test_when_the_accuracy_aimed_at_was_reached(tests: list[dict], said: str, tmp_path: Path) -> None:
    assert said in gpu_report.page_of([], [gpu_run_section.read_run(made_up_run(tmp_path / "run", tests))])


def test_a_run_has_no_figure_that_its_files_do_not_give(tmp_path: Path) -> None:
    def page(name: str, tests: list[dict], steps: int = 200, **changes: object) -> str:
        return gpu_report.page_of([], [gpu_run_section.read_run(made_up_run(tmp_path / name, tests, steps, **changes))])

    other = page("other", [evaluation(200, 90.0, 0.95)], dataset="mine")
    assert "| 90 | 55 | 35 | 1,818 | – | – |" in other and "FLOP are" not in other and "The goal" not in other
    assert "| – | – |" in page("changed", [evaluation(200, 90.0, 0.95)], parameters=1)
    broken_off = page("broken off", [], steps=100)
    assert "**The run did not come to its end: 100 of 200 steps.**" in broken_off and "test images, at the end" not in broken_off
    assert "| cifar-micro | 500 | tf32 | – | – | 35 | – | 1,429 |" in broken_off and "not reached" in broken_off
    later = page("later", [evaluation(50, 40.0, 0.5)], steps=100)  # 50 steps more were logged after the last evaluation
    assert "| cifar-micro | 500 | tf32 | 0.5 | 40 | 35 | – | 1,429 |" in later
    sooner = page("sooner", [evaluation(100, 50.0, 0.5)], steps=99)  # the last line is of step 50
    assert "| cifar-micro | 500 | tf32 | 1 | 50 | 25 | – | 1,000 |" in sooner
    nothing = page("nothing", [], steps=0)
    assert "| cifar-micro | 500 | tf32 | – | – | – | – | – | 0 | – |" in nothing


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
    assert float(gpu.figure(0.000123456)) == 0.0001235
