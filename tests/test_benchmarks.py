"""The benchmarks run, both sides compute the same, and the page says what the files hold: in quick mode, on tiny sizes."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    block,
    cifar10_networks,
    end_to_end,
    files,
    growth,
    machine,
    measure,
    memory,
    networks,
    op_cases,
    ops,
    overhead,
    peers,
    records,
    report,
    same_training,
    sections,
    sides,
    speeds,
    step,
    step_profile,
    suite,
    tables,
    targets,
    torch_model,
    torch_operations,
    torch_train,
)
from benchmarks.sides import SIDES
from conformer.augment import SHIFT
from conformer.config import CONFIGS, named_config
from conformer.info import count
from conformer.model import Conformer
from conformer.model import parameter_groups as our_groups
from conformer.options import TrainConfig
from conformer.spread import Difference, Spread
from minigrad.op import REGISTRY, Fused
from tests.conformer import torch_conformer
from tests.support import fused_with_kernel

BENCHMARKS = {"step", "step_profile", "threads", "ops", "block", "end_to_end", "memory", "growth", "inference"}


@pytest.fixture(autouse=True)
def no_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine.PINS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake_workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Workers that answer at once; what they do is logged in the list. The machine's speeds are not measured."""
    monkeypatch.setattr(measure, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "log", log := [], raising=False)
    monkeypatch.setattr(measure, "machine_speeds", lambda options: {"gflops": 10.0, "copy_gbs": 1.0})
    return log


def options_of(*words: str) -> argparse.Namespace:
    return measure.parse(measure.arguments(None, ["minigrad", "torch-tuned"], rounds=2, seconds=0.5), words, lambda side, request: {})


# --- (a) every fused operation


@pytest.fixture(scope="module")
def nano_cases() -> list[dict]:
    return op_cases.cases_of("cifar-nano", 4)


def test_every_fused_operation_that_the_network_calls_is_measured_against_torch(nano_cases: list[dict]) -> None:
    fused = {name for name, op in REGISTRY.items() if isinstance(op, Fused) and op.__module__.startswith("minigrad.fused")}
    measured = {case["op"] for case in nano_cases}
    assert measured <= fused and len(measured) >= 15  # one that no configuration calls has no shapes to be measured at
    assert measured <= torch_operations.OPERATIONS.keys()


def test_shapes_extended_from_two_small_batches_are_those_of_the_batch_itself(nano_cases: list[dict]) -> None:
    calls = op_cases.calls_of(named_config("cifar-nano"), 32, 4)
    recorded = [json.dumps([call["op"], [x and x["shape"] for x in call["inputs"]], call["out"]]) for call in calls]
    for case in nano_cases:
        if case["where"] == "training step":
            assert case["count"] <= recorded.count(json.dumps([case["op"], [x and x["shape"] for x in case["inputs"]], case["out"]]))
    assert sum(case["count"] for case in nano_cases if case["where"] == "training step") == len(calls)
    random = [(case["op"], case["count"]) for case in nano_cases if case["where"] == "with dropout and drop path"]
    assert random == [("dropout", 12), ("dropout", 6), ("drop_path", 10)]  # the last with a rate of its own in each block


def test_both_sides_of_every_operation_compute_the_same(nano_cases: list[dict]) -> None:
    first = {case["op"]: case for case in nano_cases}
    related = [case for case in nano_cases if case["op"] == "batch_norm"][:4]  # with and without ReLU and residual
    for case in [*first.values(), *related]:
        ours = ops.prepare(SIDES["minigrad"], case).facts  # type: ignore[attr-defined]
        for side in ("torch-nchw", "torch-channels-last"):
            theirs = ops.prepare(SIDES[side], json.loads(json.dumps(case))).facts  # type: ignore[attr-defined]
            assert ours == pytest.approx(theirs, rel=2e-4), (case["op"], side)


def test_least_bytes_of_a_linear_layer_counted_by_hand() -> None:
    given = [{"shape": shape, "kind": "f", "needs": True} for shape in ([8, 3], [5, 3], [5])]
    numbers = (24 + 15 + 5) * 2 + 2 * 40  # inputs and gradients, output and upstream gradient
    assert op_cases.least_bytes({"inputs": given, "out": [8, 5]}) == 4 * numbers


def test_attention_gets_its_inputs_as_views_of_one_token_major_array(nano_cases: list[dict]) -> None:
    case = next(case for case in nano_cases if case["op"] == "scaled_dot_product_attention")
    query = ops.arrays_of(case)[0]
    assert query is not None and query.shape == (4, 3, 17, 32) and query.transpose(0, 2, 1, 3).flags.c_contiguous


# --- what the engine itself costs


def test_the_engines_cost_is_measured_of_every_operation_with_a_kernel_beside_pytorch() -> None:
    found = {case.name: case for case in overhead.cases()}
    assert [name for name, case in found.items() if case.kind == "primitive"] == ["add", "mul", "tanh", "relu", "matmul"]
    fused = {name for name, case in found.items() if case.kind == "fused"}
    message = "add the new operation to `fused` in benchmarks/overhead.py::cases, and what is PyTorch's to benchmarks/torch_operations.py::OPERATIONS"
    assert fused == fused_with_kernel("cpu").keys(), message
    for name, case in found.items():
        ours, theirs = (side.call(side.start) for side in (case.ours, case.theirs))
        ours = ours[0] if isinstance(ours, tuple) else ours
        theirs = theirs.permute(0, 2, 3, 1) if theirs.ndim == 4 and name in torch_operations.MAPS else theirs  # global pooling gives (B, C)
        assert ours.shape == theirs.shape, name
        np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
        for side in (case.ours, case.theirs):
            y = side.link(side.first())
            assert side.link(y).shape == y.shape, name
            if side.added is not None:  # the same numbers without the operation
                np.testing.assert_allclose(side.added(y).detach().numpy(), side.link(y).detach().numpy(), rtol=1e-6, err_msg=name)
        assert (case.ours.added is None) == (case.theirs.added is None) == (name not in {"cross_entropy", "global_avg_pool2d"})


def test_backward_is_timed_by_the_link_without_the_additions(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"operation and addition": 9.0, "addition": 2.5}
    monkeypatch.setattr(overhead, "chained", lambda side, link, length: times[link])
    side = overhead.Side(None, abs, "operation and addition", abs, abs, "addition")  # type: ignore[arg-type]
    assert overhead.backward_seconds(side, 1) == 6.5
    assert overhead.backward_seconds(overhead.Side(None, abs, "addition", abs, abs), 1) == 2.5  # type: ignore[arg-type]


def test_the_first_round_is_not_counted_and_kernels_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which each call takes what its function says."""
    case = next(case for case in overhead.cases() if case.name == "gelu")
    calls: list[Any] = []
    monkeypatch.setattr(overhead, "seconds", lambda function, loops: float(calls.append(loops) or len(calls)))
    monkeypatch.setattr(overhead, "backward_seconds", lambda side, length: 100.0 if side is case.ours else 200.0)
    row = overhead.measured(case, overhead.Size(1, 7, 9))
    assert row == {
        "operation": "gelu", "kind": "fused", "forward_us": 5e6, "forward_kernel_us": 6e6, "torch_forward_us": 7e6,
        "backward_us": 100e6, "backward_kernel_us": 8e6, "torch_backward_us": 200e6,
    }  # fmt: skip
    assert calls == [7, 7, 7, 9] * 2


def test_the_engines_cost_goes_into_a_file_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    some = [case for case in overhead.cases() if case.name in ("mul", "cross_entropy")]
    monkeypatch.setattr(overhead, "cases", lambda: some)
    threads = torch.get_num_threads()
    try:
        overhead.main(["--quick", "--out", str(tmp_path / "overhead.json")])
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "overhead.json").read_text())
    assert record["command"] == 'make bench BENCH=overhead ARGS="--quick"' and {"date", "numpy", "torch", "environment"} <= record.keys()
    assert [row["operation"] for row in record["rows"]] == ["mul", "cross_entropy"] and all(row["torch_forward_us"] > 0 for row in record["rows"])
    capsys.readouterr()
    record["rows"] = [
        {"operation": "mul", "kind": "primitive", "forward_us": 3.26, "forward_kernel_us": 1.0, "torch_forward_us": 9.0,
         "backward_us": 5.0, "backward_kernel_us": 0.5, "torch_backward_us": 8.04},
    ]  # fmt: skip
    (tmp_path / "overhead.json").write_text(json.dumps(record))
    overhead.main(["--table", str(tmp_path / "overhead.json")])
    header, _, row, *_, legend, _, origin = capsys.readouterr().out.splitlines()
    assert header == "| operation | forward | backward | whole forward | PyTorch's | whole backward | PyTorch's |"
    assert row == "| mul | 2.3 | 4.5 | 3.3 | 9.0 | 5.0 | 8.0 |"
    assert "PyTorch's whole call" in legend and origin == f"Measured on {record['date']} at commit {record['environment']['revision']}"
    for name in ("torch_forward_us", "torch_backward_us"):  # as files of before
        del record["rows"][0][name]
    assert targets.overhead_table(record).splitlines() == ["| operation | forward | backward |", "| --- | --: | --: |", "| mul | 2.3 | 4.5 |"]


# --- the PyTorch model


@pytest.mark.parametrize("name", ["cifar-nano", "cifar-micro", "cifar-small"])
def test_the_fast_torch_model_computes_what_the_independent_one_does(name: str) -> None:
    config = named_config(name)
    torch.manual_seed(0)
    fast = torch_model.TorchConformer(config).double()
    plain = torch_conformer.TorchConformer(
        num_classes=10, channel_ratio=config.channel_ratio, embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
        qkv_bias=True, stem=config.stem,
    ).double()  # fmt: skip
    plain.load_state_dict(fast.state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for ours, theirs in zip(fast(images.to(memory_format=torch.channels_last)), plain(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_fast_torch_model_decays_the_parameters_that_ours_does() -> None:
    from dataclasses import asdict

    config = named_config("cifar-nano")
    theirs = torch_model.optimizer_of(torch_model.TorchConformer(config), 1e-3, 0.05).param_groups
    ours = our_groups(Conformer(**asdict(config)), 0.05)
    assert [len(group["params"]) for group in theirs] == [len(group["params"]) for group in ours]
    assert [group["weight_decay"] for group in theirs] == [0.05, 0.0]


@pytest.mark.parametrize("side", ["minigrad", "torch-nchw", "torch-channels-last"])
def test_a_step_and_an_inference_run(side: str, tiny_network: str) -> None:
    case = {"config": tiny_network, "size": 32, "batch": 2}
    turn = sides.timed(networks.training_step(SIDES[side], case), seconds=0, least=2)
    assert len(turn["wall_ms"]) == len(turn["cpu_ms"]) == 2 and min(turn["wall_ms"]) > 0
    assert networks.inference(SIDES[side], case)() is None


# --- (b) peers


def test_the_block_given_to_peers_is_the_conformers() -> None:
    """In torch's words and float64 it computes what the torch model does; so it does in ours."""

    class Functions:
        ones = staticmethod(lambda shape: torch.ones(shape, dtype=torch.float64))
        mean = staticmethod(lambda x, axes: x.mean(axes, keepdim=True))
        relu = staticmethod(torch.relu)
        softmax = staticmethod(lambda x: torch.softmax(x, -1))
        gelu = staticmethod(torch.nn.functional.gelu)
        permute = staticmethod(lambda x, axes: x.permute(*axes))
        concatenate = staticmethod(lambda parts: torch.cat(parts, 1))

        @staticmethod
        def conv3x3(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)

    case = block.case_of("cifar-nano", 2)
    arrays, weights = block.numbers_of(case)
    inputs = {name: torch.from_numpy(array).double() for name, array in arrays.items()}
    x = inputs["x"].requires_grad_()
    loss = peers.loss_of(Functions, inputs, [torch.from_numpy(weight).double() for weight in weights], case["heads"], case["d"])
    (dx,) = torch.autograd.grad(loss, x)
    expected = {"loss": loss.item(), "dx_norm": dx.norm().item()}
    for side in ("minigrad", "torch-channels-last"):
        facts = block.prepare(SIDES[side], case).facts  # type: ignore[attr-defined]
        assert facts["dx_norm"] == pytest.approx(expected["dx_norm"], rel=1e-4)
        assert facts["loss"] == pytest.approx(expected["loss"], abs=1e-4 * expected["dx_norm"])


def test_a_peer_that_is_not_installed_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "block.json"
    block.main(["--quick", "--sides", "mygrad", "--out", str(file)])
    record = json.loads(file.read_text())
    if record["rows"]:  # it is installed here
        assert record["rows"][0]["side"] == "mygrad" and not record["skipped"]
    else:
        assert record["skipped"] == {"mygrad": "mygrad is not installed"}
        assert "MyGrad: left out, mygrad is not installed" in capsys.readouterr().out


# --- turns, processes, files


class FakeWorker(measure.Worker):
    """Answers at once; a case "boom" fails, the side jax is not installed. `others`: seconds that others took in each turn of a second; an exception
    in their place is raised, a text is the reason of a failure.
    """

    log: list[str]
    others: list | None = None

    def __init__(self, benchmark: str, side: sides.Side, options: argparse.Namespace):
        self.side = side
        self.log.append(f"start {side.name}")

    def ask(self, case: dict, seconds: float, least: int) -> dict:
        self.log.append(f"{self.side.name} {case['name']}")
        if self.side.name == "jax":
            return {"missing": "jax is not installed", "about": {"versions": {}}}
        if case["name"] == "boom":
            return {"failed": "MemoryError: ", "about": {}}
        noise = {"seconds": 1.0, "others_s": 0.0 if self.others is None else self.others.pop(0)}
        if isinstance(noise["others_s"], BaseException):
            raise noise["others_s"]
        if isinstance(noise["others_s"], str):
            return {"failed": noise["others_s"], "about": {}}
        return {"wall_ms": [1.0], "cpu_ms": [2.0], **noise, "about": {"versions": {"numpy": "1"}}}

    def ended(self) -> bool:
        return False

    def close(self) -> None:
        self.log.append(f"end {self.side.name}")


def test_sides_take_turns_and_a_missing_or_failing_one_stops_nobody(fake_workers: list[str]) -> None:
    rows = measure.interleaved("x", [{"name": "a"}, {"name": "boom"}], options_of("--sides", "minigrad", "jax", "torch-tuned"), False, str)
    asked = [line for line in fake_workers if not line.startswith(("start", "end"))]
    assert asked[:5] == ["minigrad a", "jax a", "torch-tuned a", "torch-tuned a", "minigrad a"]  # who was first goes last in the next round
    assert asked[5:] == ["minigrad boom", "torch-tuned boom"]
    assert rows.skipped == {"jax": "jax is not installed"}
    assert [(row["side"], row["case"]["name"], len(row.get("turns", []))) for row in rows] == [
        ("minigrad", "a", 2), ("torch-tuned", "a", 2), ("minigrad", "boom", 0), ("torch-tuned", "boom", 0),
    ]  # fmt: skip
    assert fake_workers.count("start minigrad") == fake_workers.count("end minigrad") == 1
    assert rows.speeds == [{"gflops": 10.0, "copy_gbs": 1.0}] * 2  # before and after


def test_a_noisy_turn_is_taken_again_in_the_same_process_and_the_quietest_counts(fake_workers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = 1.5 * (os.cpu_count() or 1)
    monkeypatch.setattr(FakeWorker, "others", [noisy, 0.0, 2 * noisy, noisy, 3 * noisy, -0.01])
    (row,) = measure.interleaved("x", [{"name": "a"}], options_of("--sides", "minigrad", "--rounds", "3", "--retakes", "2"), True, str)
    assert [(turn["others_s"], turn["retakes"]) for turn in row["turns"]] == [(0.0, 1), (noisy, 2), (-0.01, 0)]
    assert fake_workers == ["start minigrad", *["minigrad a"] * 2, "end minigrad", "start minigrad", *["minigrad a"] * 3, "end minigrad",
                            "start minigrad", "minigrad a", "end minigrad"]  # fmt: skip


def test_a_retake_or_a_later_round_that_fails_leaves_what_was_measured(fake_workers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = 1.5 * (os.cpu_count() or 1)
    monkeypatch.setattr(FakeWorker, "others", [noisy, 2 * noisy, "MemoryError: ", 0.0, "MemoryError: "])
    (row,) = measure.interleaved("x", [{"name": "a"}], options_of("--sides", "minigrad", "--rounds", "3"), False, str)
    assert [(turn["others_s"], turn["retakes"]) for turn in row["turns"]] == [(noisy, 1), (0.0, 0)] and row["failed"] == "MemoryError: "


def test_a_process_that_a_retake_ended_is_not_asked_again(fake_workers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = 1.5 * (os.cpu_count() or 1)
    monkeypatch.setattr(FakeWorker, "others", [noisy, "its process ended", 0.0])
    monkeypatch.setattr(FakeWorker, "ended", lambda self: True)
    measure.interleaved("x", [{"name": "a"}, {"name": "b"}], options_of("--sides", "minigrad", "--rounds", "1"), False, str)
    assert fake_workers.count("start minigrad") == fake_workers.count("end minigrad") == 2


def test_rows_survive_the_last_look_at_the_machine(fake_workers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"gflops": 1.0}])

    def machine_speeds(options: object) -> dict:
        for look in looks:
            return look
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "machine_speeds", machine_speeds)
    rows = measure.interleaved("x", [{"name": "a"}], options_of("--sides", "minigrad", "--rounds", "1"), False, str)
    assert len(rows) == 1 and rows.speeds == [{"gflops": 1.0}]


def test_ctrl_c_waits_for_the_benchmark_that_writes_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    class Process:
        def wait(self, timeout: float | None = None) -> int:
            waits.append(timeout)
            if len(waits) == 1:
                raise KeyboardInterrupt
            return 130

        def kill(self) -> None:
            waits.append("killed")

    monkeypatch.setattr(suite.subprocess, "Popen", lambda *_, **__: Process())
    with pytest.raises(KeyboardInterrupt):
        suite.run_all({"step": ["step"]}, ["report"])
    assert waits == [None, 60, "killed", None]


def test_a_program_gets_no_more_than_its_time() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        suite.status_of([sys.executable, "-c", "import time; time.sleep(60)"], 0.1)
    assert suite.status_of([sys.executable, "-c", "raise SystemExit(3)"], None) == 3


def test_a_file_of_another_machine_is_refused_before_anything_is_measured(fake_workers: list[str], tmp_path: Path) -> None:
    options = options_of("--add", "--out", str(tmp_path / "x.json"), "--threads", "2")
    about = machine.environment() | {"processor": "Another"}
    (tmp_path / "x.json").write_text(json.dumps({"environment": about, "settings": records.settings_of(options), "sides": {}, "rows": []}))
    with pytest.raises(SystemExit, match=r"x\.json was measured with processor Another, now it is .*: measure it whole, without --add, or"):
        measure.interleaved("x", [{"name": "a"}], options, False, str)
    assert fake_workers == []


def test_a_rounding_of_the_kernels_clock_is_no_noise(fake_workers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "NOISY", 0.001)
    monkeypatch.setattr(FakeWorker, "others", [machine.TICKS, 0.5, 0.0])
    (row,) = measure.interleaved("x", [{"name": "a"}], options_of("--sides", "minigrad", "--rounds", "2"), False, str)
    assert [turn["retakes"] for turn in row["turns"]] == [0, 1]


def test_ctrl_c_ends_a_benchmark_and_keeps_what_was_measured(fake_workers: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FakeWorker, "others", [0.0, 0.0, 0.0, KeyboardInterrupt()])
    monkeypatch.setattr(files, "QUICK_RESULTS", tmp_path / "runs")
    (tmp_path / "x.json").write_text("a good one")
    options = options_of("--rounds", "1", "--out", str(tmp_path / "x.json"))
    cases = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    rows = measure.interleaved("x", cases, options, False, str)
    with pytest.raises(SystemExit) as exit:
        records.save("x", rows, options, [])
    kept = json.loads((tmp_path / "runs" / "x.json").read_text())["rows"]
    assert (tmp_path / "x.json").read_text() == "a good one"
    assert exit.value.code == 130 and [(row["case"]["name"], row["side"]) for row in kept] == [
        ("a", "minigrad"),
        ("a", "torch-tuned"),
        ("b", "minigrad"),
    ]
    assert fake_workers.count("start minigrad") == fake_workers.count("end minigrad")


def test_a_process_that_died_with_a_request_unread_ends_quietly() -> None:
    class Closed:
        def close(self) -> None:
            raise BrokenPipeError

    worker = object.__new__(measure.Worker)
    closed = argparse.Namespace(close=lambda: None)
    worker.process = argparse.Namespace(stdin=Closed(), stdout=closed, wait=lambda: 1)  # type: ignore[assignment]
    worker.close()


def test_no_turn_begins_when_the_time_is_up_and_what_was_measured_is_kept(
    fake_workers: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    times = iter([0, 10, 20, 30])
    monkeypatch.setattr(measure.time, "monotonic", lambda: next(times, 61))
    rows = measure.interleaved("x", [{"name": "a"}, {"name": "b"}], options_of("--minutes", "1"), False, lambda case: case["name"])
    assert [(row["case"]["name"], row["side"], len(row["turns"])) for row in rows] == [("a", "minigrad", 1), ("a", "torch-tuned", 2)]
    assert "b: no time left" in capsys.readouterr().out


def test_fresh_processes_serve_one_turn_each(fake_workers: list[str]) -> None:
    measure.interleaved("x", [{"name": "a"}], options_of(), fresh=True, label=str)
    ours, theirs = ([f"start {side}", f"{side} a", f"end {side}"] for side in ("minigrad", "torch-tuned"))
    assert fake_workers == ours + theirs + theirs + ours


def test_a_pinned_openblas_is_refused_unless_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    with pytest.raises(SystemExit) as exit:
        options_of()
    assert exit.value.code == 2 and "OPENBLAS_CORETYPE=Haswell" in capsys.readouterr().err
    assert sides.process_environment(SIDES["minigrad"], options_of("--pinned"))["OPENBLAS_CORETYPE"] == "Haswell"


def test_a_sides_process_has_its_own_variables_and_no_inherited_pins_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of("--threads", "3")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ours, tuned = (sides.process_environment(SIDES[name], options) for name in ("minigrad", "torch-tuned"))
    assert ours["MINIGRAD_THREADS"] == tuned["OMP_NUM_THREADS"] == "3"
    assert "OPENBLAS_L2_SIZE" not in ours and "OMP_NUM_THREADS" not in ours
    assert tuned["MALLOC_TRIM_THRESHOLD_"] == "-1" and "MALLOC_TRIM_THRESHOLD_" not in ours


def test_a_recorded_command_names_no_path_of_the_machine():
    words = ["--peers-python", "/opt/peers/bin/python", "--out", "/tmp/x.json", "--peers-python", "python3", "--rounds", "2"]
    assert records.without_paths(words) == ["--peers-python", "PYTHON", "--out", "DIR", "--peers-python", "python3", "--rounds", "2"]


def test_a_real_process_measures_and_the_file_says_when_where_and_how(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    step.main(["--quick", "--sides", "minigrad", "--out", str(file)])
    record = json.loads(file.read_text())
    assert record.keys() >= {"benchmark", "date", "command", "settings", "environment", "sides", "skipped", "rows"}
    assert record["command"] == 'make bench BENCH=step ARGS="--quick --sides minigrad --out DIR"'
    assert record["sides"]["minigrad"]["versions"]["numpy"] == np.__version__
    assert record["environment"].keys() >= {"processor", "vector_units", "caches", "processors", "memory_gib", "python", "variables"}
    assert record["warm_up"] == 3 and [each.keys() for each in record["speeds"]] == [{"gflops", "copy_gbs"}] * 2
    (row,) = record["rows"]
    (turn,) = row["turns"]
    assert row["case"] == {"config": "cifar-nano", "size": 32, "batch": 2}
    assert turn["wall_ms"][0] > 0 and turn["cpu_ms"][0] > 0 and turn["load"] >= 0
    assert row["revision"] == files.revision()


def test_a_turn_has_the_warm_up_that_its_benchmark_asks_for() -> None:
    calls: list[str] = []
    answer = sides.timed_answers(lambda side, case: lambda: calls.append(case), warm_up=5)  # type: ignore[func-returns-value]
    answer(SIDES["minigrad"], {"case": "a", "seconds": 0, "least": 3})
    assert len(calls) == 5 + 3
    answer(SIDES["minigrad"], {"case": "b", "seconds": 0, "least": 1})  # --quick
    assert len(calls) == 8 + 1 + 1


def test_torch_compile_is_measured_at_the_largest_batch_of_a_network(
    fake_workers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[dict] = []
    monkeypatch.setattr(measure, "interleaved", lambda name, cases, *_: taken.extend(cases) or records.Rows())
    step.main(["--out", str(tmp_path / "step.json")])
    assert {(case["batch"], "torch-compile" in case["sides"]) for case in taken} == {(128, True), (64, False)}


@pytest.mark.parametrize("threads", [1, 3])
def test_the_machines_speeds_are_of_whole_copies_and_products(threads: int) -> None:
    quick = speeds.speeds(threads, 0.0, quick=True)
    assert quick["gflops"] > 0 and quick["copy_gbs"] > 0
    ticks = iter(range(1000))
    source, target = np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
    speeds.copying(source, target, threads)()
    np.testing.assert_array_equal(target, source)
    a, b, product = np.random.default_rng(0).standard_normal((3, 5, 5))
    speeds.multiplying(a, b, product, threads)()
    np.testing.assert_allclose(product, a @ b, rtol=1e-12)
    exact = speeds.speeds(threads, 0.0, clock=lambda: float(next(ticks)), quick=True)  # every call takes a second
    assert exact == {"gflops": round(2e-9 * 64**3, 2), "copy_gbs": round(2e-9 * 2**20, 2)}


def test_pieces_of_a_long_benchmark_go_into_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row measured again is replaced, the others stay; the file names every command."""
    monkeypatch.setattr(files, "revision", lambda: "now")
    monkeypatch.setattr(files, "QUICK_RESULTS", tmp_path / "runs")
    out = str(tmp_path / "step.json")

    def piece(
        argv: list[str], side: str, config: str, wall: float | str, turns: int = 2, numpy: str = "1", skipped: dict | None = None, then: str = "now"
    ) -> dict:
        row = {"case": {"config": config, "stride": (1, 2)}, "side": side, "revision": "abc"}
        rows = records.Rows([row | ({"failed": wall} if isinstance(wall, str) else {"turns": [{"wall_ms": [wall]}] * turns})])
        rows.about[side], rows.skipped = {"versions": {"numpy": numpy}} if numpy else None, skipped or {}
        options = options_of("--out", out, *argv)
        options.revision = then
        records.save("step", rows, options, argv)
        return json.loads(Path(out).read_text())

    def walls(record: dict) -> list:
        return [(row["side"], row["turns"][0]["wall_ms"] if "turns" in row else row["failed"]) for row in record["rows"]]

    piece(["--add"], "minigrad", "a", 1.0, skipped={"torch-tuned": "torch is not installed"})
    assert piece(["--add", "--sides", "torch-tuned"], "torch-tuned", "a", 2.0)["skipped"] == {}
    record = piece(["--add"], "minigrad", "a", 3.0)
    assert walls(record) == [("torch-tuned", [2.0]), ("minigrad", [3.0])]
    assert walls(piece(["--add"], "minigrad", "a", "MemoryError")) == walls(piece(["--add"], "minigrad", "a", 9.0, turns=1)) == walls(record)
    assert walls(piece(["--add"], "minigrad", "c", "MemoryError"))[2:] == [("minigrad", "MemoryError")]
    assert walls(piece(["--add"], "minigrad", "b", 5.0))[2:] == [("minigrad", "MemoryError"), ("minigrad", [5.0])]
    record = piece(["--add"], "minigrad", "c", 6.0)
    assert walls(record)[2:] == [("minigrad", [5.0]), ("minigrad", [6.0])]
    with pytest.raises(SystemExit, match=r"step\.json was measured with minigrad's numpy 1, now it is 2: measure it whole"):
        piece(["--add"], "minigrad", "a", 3.0, numpy="2")
    assert walls(json.loads(Path(out).read_text())) == walls(record)
    assert walls(json.loads((tmp_path / "runs" / "step.json").read_text())) == [("minigrad", [3.0])]  # beside it, not lost
    assert piece(["--add"], "torch-tuned", "a", "gone", numpy="")["sides"]["torch-tuned"]["versions"] == {"numpy": "1"}  # of the rows that stay
    assert record["sides"].keys() == {"minigrad", "torch-tuned"}
    assert record["command"].splitlines() == ['make bench BENCH=step ARGS="--add"', 'make bench BENCH=step ARGS="--add --sides torch-tuned"']
    assert [row["revision"] for row in piece([], "minigrad", "b", 4.0)["rows"]] == ["abc"]
    assert piece([], "minigrad", "b", 4.0, then="before")["rows"][0]["revision"] == "before..now"  # the code changed while it was measured


def test_medians_of_turns() -> None:
    assert records.of_turns([{"wall_ms": [4, 1, 2, 3]}]) == 2.5
    assert records.of_turns([{"wall_ms": [1, 9, 2]}, {"wall_ms": [5]}, {"wall_ms": [7, 8]}]) == 5


def test_processor_time_taken_by_others_is_all_time_less_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_times", lambda: (108.0, 12.0))
    found = machine.noise((100.0, 10.0), own_cpu=3.0)
    assert found["seconds"] == 2 and found["others_s"] == 5


# --- (c) to (f)


def test_both_sides_read_the_images_that_a_whole_run_is_given(tmp_path: Path) -> None:
    from conformer import data

    end_to_end.write_images(tmp_path, 4)
    theirs, labels = torch_train.read(sorted(tmp_path.glob("data_batch_*.bin")))
    ours = data.load("cifar10", tmp_path).train
    np.testing.assert_array_equal(ours.images, theirs.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(ours.labels, labels.numpy())


def test_our_training_is_pytorchs_step_by_step(tmp_path: Path) -> None:
    """In float64, beyond the warm-up, the losses of both are as near as PyTorch's own from weights moved by a unit in the last place; so their
    networks, batches, schedules, clipping and optimisers are the same.
    """
    end_to_end.write_images(tmp_path, 4)  # five files of them: a step at batch 4 each
    out = tmp_path / "lines.jsonl"
    same_training.main(f"--data-dir {tmp_path} --epochs 3 --steps 7 --batch-size 4 --dtype float64 --out {out}".split())
    setting, *steps, end = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert setting["schedule"] == 15 and [line["step"] for line in steps] == list(range(1, 8))
    losses = np.array([line["losses"] for line in steps])
    assert (np.diff(losses[:, 0]) != 0).all()
    np.testing.assert_allclose(losses[:, :1].repeat(2, 1), losses[:, 1:], rtol=1e-8)
    assert end["test_images"] == 4 and len(end["right"]) == 3


@pytest.mark.parametrize("quick", [False, True])
def test_every_network_that_growth_measures_can_be_built(quick: bool) -> None:
    cases = growth.cases_of(["batch", "size", "depth", "width"], quick)
    assert {case["varied"] for case in cases} == {"batch", "size", "depth", "width"}
    for case in cases:
        networks.network_of(case).stem_size(case["size"], case["size"])
    wide = next(case for case in cases if case["varied"] == "width" and case["value"] == 2)
    assert networks.network_of(wide).widths[0] == 2 * CONFIGS["cifar-nano"].widths[0]


def test_a_profile_finds_the_whole_step_and_counts_products_as_they_are(tmp_path: Path) -> None:
    """Batch 2 of cifar-nano: the products of a forward pass are its multiplications, and nearly all time is found in operations."""
    step_profile.main(["--quick", "--out", str(tmp_path / "profile.json")])
    (row,) = json.loads((tmp_path / "profile.json").read_text())["rows"]
    (turn,) = row["turns"]
    found = {line["operation"]: line for line in turn["operations"]}
    forward = sum(line["gflop"] for name, line in found.items() if name.endswith(" forward") and name != step_profile.REST)
    macs = count(named_config("cifar-nano"), 32).macs
    pooled_first = 12 * 96 * (16 * 16 - 4 * 4) + 2 * 24 * 96 * (8 * 8 - 4 * 4)  # pixels that FCUDown's convolutions are spared, which `count` counts
    assert forward == pytest.approx(2 * 2 * (macs - pooled_first) / 1e9, rel=1e-4)  # two images, and an addition to each multiplication
    for op, spared in {"linear": 0, "scaled_dot_product_attention": 0, "conv2d": 2 * 2 * 16 * 16 * 64 * 27 / 1e9}.items():  # the stem's images
        assert found[f"{op} backward"]["gflop"] == pytest.approx(2 * found[f"{op} forward"]["gflop"] - spared, abs=2e-6), op
    assert found["conv2d forward"]["calls"] == 49 and found["AdamW"]["calls"] == 1
    assert all(line["ms"] > 0 for line in turn["operations"])
    assert found["AdamW"]["mb"] == pytest.approx(7 * 4 * count(named_config("cifar-nano"), 32).parameters / 1e6, rel=1e-12)


def test_the_floor_of_an_operation_is_that_of_its_calls() -> None:
    spent = step_profile.Spent()
    spent.work.update({(100, 0): 2, (10, 50): 3})
    assert (spent.calls, spent.bytes, spent.operations) == (5, 230, 150)
    assert spent.floor(operations_a_second=10.0, bytes_a_second=100.0) == 2 * 1.0 + 3 * 5.0


def test_memory_is_measured_from_before_the_model_exists(tmp_path: Path) -> None:
    memory.main(["--quick", "--sides", "minigrad", "--out", str(tmp_path / "memory.json")])
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["case"].get("checkpoint", False) for row in rows] == [False, True]
    for row in rows:
        (turn,) = row["turns"]
        assert turn["peak_mib"][0] > turn["built_mib"][0] > 4  # the weights alone are 4.1 MiB
        assert turn["before_mib"][0] > 20


# --- the page


def made_up(name: str, rows: list[dict], **changes: object) -> dict:
    settings = {"rounds": 2, "seconds": 1.0, "threads": 2, "pinned": False, "quick": False}
    return {
        "benchmark": name, "date": "2026-01-02T03:04:05+00:00", "command": f"make bench BENCH={name}", "settings": settings,
        "environment": {"processor": "A processor", "processors": 2, "processors_in_all": 2, "memory_gib": 8.0, "system": "Linux 6",
                        "python": "3.11.7", "variables": {}, "revision": "abc"},
        "sides": {side: {"title": SIDES[side].title, "versions": {"numpy": "2.4"}, "threads": []} for side in ("minigrad", "torch-tuned")},
        "skipped": {}, "warm_up": 3, "rows": rows, **changes,
    }  # fmt: skip


def rows_of(case: dict, ours: list[float], theirs: list[float], quantity: str = "wall_ms", **more: object) -> list[dict]:
    noise = {"load": 0.5, "seconds": 10.0, "others_s": 0.1}
    return [
        {
            "case": case,
            "side": side,
            "turns": [{quantity: [value], "cpu_ms": [2 * value], "forward_ms": [value / 4], **noise, **more} for value in values],
        }
        for side, values in (("minigrad", ours), ("torch-tuned", theirs))
    ]


def all_made_up() -> list[dict]:
    network = {"config": "cifar-nano", "size": 32, "batch": 64}
    call = {"config": "cifar-nano", "batch": 64, "where": "training step", "op": "gelu", "count": 6, "values": {}, "out": [64, 17, 384],
            "inputs": [{"shape": [64, 17, 384], "kind": "f", "order": [0, 1, 2], "needs": True}], "bytes": 6_000_000}  # fmt: skip
    copy = {"case": {"op": "copy", "bytes": 10_000_000, "threads": 2}, "side": "minigrad", "turns": [{"wall_ms": [1.0]}]}
    images = {"bare_images_per_second": [400.0], "whole_of_bare": [0.75]}
    grown = [row for value in (3, 6) for row in rows_of({**network, "varied": "depth", "value": value}, [10.0 * value], [20.0 * value])]
    facts = {"loss": 10.0, "dx_norm": 100.0}
    products = {"operation": "linear forward", "ms": 20.0, "calls": 6.0, "mb": 80.0, "gflop": 1.5, "floor_ms": 15.0}
    profile = {"wall_ms": [25.0], "gflops": 100.0, "copy_gbs": 10.0, "operations": [products, {"operation": "everything else", "ms": 5.0}]}
    chain = {"what": "passes", "numbers": 1_000_000, "operations": 10, "block": 65536}
    threads = [(chain | {"threads": 1}, 4.0), (chain | {"threads": 2}, 2.5), ({"what": "wake", "where": "two processors"}, 0.03)]
    return [
        made_up("step", rows_of(network, [100, 300, 120], [150, 160, 170])),
        made_up("ops", [copy, *rows_of(call, [1.5], [1.0])], skipped={"jax": "jax is not installed"}),
        made_up("block", rows_of({"config": "cifar-nano", "batch": 64, "x": [64, 16, 16, 48], "x_t": [64, 17, 96]}, [20], [10], **facts)),
        made_up("end_to_end", rows_of({"config": "cifar-nano", "batch": 128}, [300.0], [200.0], "train_images_per_second", **images)),
        made_up("memory", rows_of(network, [100.0], [250.0], "peak_mib") + rows_of({**network, "checkpoint": True}, [40.0], [], "peak_mib")[:1]),
        made_up("growth", grown),
        made_up("inference", rows_of({**network, "batch": 1}, [4.0], [8.0]) + rows_of({**network, "batch": 256}, [512.0], [256.0])),
        made_up(
            "threads",
            [
                {"case": case, "side": "minigrad", "turns": [{"wall_ms": [ms]} | ({"cpu_ms": [4.0]} if "block" in case else {})]}
                for case, ms in threads
            ],
        ),
        made_up("step_profile", [{"case": {**network, "shapes": False}, "side": "minigrad", "turns": [profile]}]),
    ]


def written(folder: Path, records: list[dict]) -> str:
    folder.mkdir(exist_ok=True)
    for record in records:
        (folder / f"{record['benchmark']}{'-pinned' * record['settings']['pinned']}.json").write_text(json.dumps(record))
    report.write(folder, folder / "docs" / "benchmarks.md")
    return (folder / "docs" / "benchmarks.md").read_text()


def test_the_page_says_what_the_files_hold(tmp_path: Path) -> None:
    page = written(tmp_path, all_made_up())
    assert "| cifar-nano, 64 | 120 (240) | 160 (320) | 0.75 |" in page  # the step: medians of three turns
    assert "| linear forward | 20 | 80 % | 6 | 4 | 75 | 15 | 1.33 |" in page and "| **all** | 25 | 100 % | – | – | – | 15 | 1.67 |" in page
    assert "runs 30 microseconds later on two processors" in page and "| 65,536 | 0.4 | 0.25 | 1.60 | 20 % |" in page
    assert "Copying memory reaches 20 GB/s" in page
    assert "| gelu | 6 | 9 | 6 | 1.50 | 4 |" in page  # 6 calls of 1.5 ms, 6 MB in 1.5 ms
    assert "| gelu 64×17×384 | 6 | 1.5 | 1 | 1.50 | 0.375 | 6 | 4 | 20 % |" in page
    assert "Not measured: jax: jax is not installed." in page and "do not agree" not in page
    assert "| PyTorch, channels_last, tuned malloc | 10 | 20 | 0.50 | yes (0e+00) |" in page
    assert "| cifar-nano, 128: minigrad | 300 | 400 | 75 % (75 to 75) |" in page
    assert "Of 1 of these 2 figures the turns differ by more than 15 % of their median, namely of cifar-nano 64, minigrad (by 167 %)." in page
    assert "| cifar-nano, 64 | 100 | 250 | 0.40 |" in page and "| cifar-nano, 64, blocks checkpointed | 40 | – | – |" in page  # memory
    assert "| depth 6 | 60 | 120 | 0.50 |" in page
    assert "| cifar-nano, 256 | 500 images/s | 1,000 images/s | 2.00 |" in page
    assert "noisy" not in page and "--quick" not in page
    for name in ("step", "ops", "block", "growth"):
        assert f"](benchmarks/{name}.svg)" in page and (tmp_path / "docs" / "benchmarks" / f"{name}.svg").stat().st_size > 1000
    assert {record["benchmark"] for record in all_made_up()} == report.SECTIONS.keys() == BENCHMARKS


def step_ratios(result: tables.Result, theirs: Callable[[dict[str, float]], float | None]) -> str:
    """From the smallest to the largest of our step's time over that of `theirs` (of all sides' times), as README has it."""
    walls = [wall for _, wall in tables.figures(result)]
    found = [wall["minigrad"] / other for wall in walls if "minigrad" in wall and (other := theirs(wall))]
    return f"{min(found):.2f} to {max(found):.2f}" if found else "not measured"


def test_the_readme_has_the_ratios_of_the_files() -> None:
    readme = " ".join((files.ROOT / "README.md").read_text(encoding="utf-8").split())
    columns = (lambda wall: wall.get("torch-nchw"), tables.best_torch, lambda wall: wall.get("torch-compile"))
    for name, processor in {"step": "AMD EPYC with AVX-512", "step-xeon": "Intel Xeon with AVX-512", "step-avx2": "without AVX-512"}.items():
        result = tables.Result(files.RESULTS / f"{name}.json")
        row = f"| {processor} | {' | '.join(step_ratios(result, column) for column in columns)} |"
        assert row in readme, row


# --- docs/results.md, whose sentences are written by hand


def lines_of(name: str) -> list[dict]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in (files.RESULTS / name).read_text(encoding="utf-8").splitlines()]


def overhead_of(name: str) -> dict:
    return json.loads((files.RESULTS / name).read_text(encoding="utf-8"))


def across(record: dict, kind: str) -> str:
    """From the least to the most that a kind of operation costs, forward."""
    found = targets.overhead_by_operation(record, kind, "forward").values()
    return f"{min(found):.1f} to {max(found):.1f}"


def training_figures() -> list[str]:
    """What docs/results.md says of the runs of cifar-nano, from their metrics."""
    first, again, torchs = map(lines_of, ("cifar-nano-20-epochs.jsonl", "cifar-nano-20-epochs-again.jsonl", "torch-nano-20-epochs.jsonl"))
    header, defaults, epochs = first[0], TrainConfig(), (1, 2, 5, 10, 15, 17, 20)
    began, once_more = (date.fromisoformat(lines[0]["started"][:10]) for lines in (first, again))

    def row(lines: list[dict], head: str, bold: str = "", scale: float = 100) -> str:
        tested = {line["epoch"]: line["test_accuracy"] for line in lines if "test_accuracy" in line}
        assert max(tested) == epochs[-1]
        return " | ".join(f"{bold}{scale * tested[epoch][head]:.2f}{bold}" for epoch in epochs) + " |"

    for key in ("steps", "seed", "config"):
        assert header[key] == again[0][key] == torchs[0][key]
    assert (defaults.config, defaults.seed) == (header["config"], header["seed"])
    assert header["steps"] == epochs[-1] * (header["train_images"] // defaults.batch_size)
    ends = [100 * lines[-1]["test_accuracy"]["sum"] for lines in (first, again)]
    ends += [line["test_accuracy"]["sum"] for line in torchs if line.get("epoch") == epochs[-1]]
    blas, versions, memory = header["blas"][0], header["versions"], overhead_of("overhead.json")["environment"]["memory_gib"]
    return [
        f"{header['processors']} virtual processors of an AMD EPYC (Zen 4 or 5, AVX-512), {memory} GiB, Linux",
        f"Python {versions['python']} and NumPy {versions['numpy']} (OpenBLAS {blas['version'][:6]}, {blas['architecture']} kernels)",
        f"## {header['config']} on CIFAR-10, {epochs[-1]} epochs",
        f"# the defaults: {defaults.config}, {epochs[-1]} epochs, batch {defaults.batch_size}, seed {defaults.seed}",
        f"| after epoch | {' | '.join(map(str, epochs))} |",
        f"| CNN head | {row(first, 'cnn')}",
        f"| transformer head | {row(first, 'transformer')}",
        f"| **sum of both** | {row(first, 'sum', '**')}",
        f"| again, {once_more}, sum | {row(again, 'sum')}",
        f"in plain PyTorch, 2026-11-30, sum | {row(torchs, 'sum', scale=1)}",  # its file has no date
        f"percent of the {header['test_images']:,} test images",
        f"one run: seed {header['seed']}, {header['steps']:,} steps, {first[-1]['seconds'] / 60:.1f} minutes with evaluations",
        f"run on {began}).",
        f"with the code of {('no', 'one', 'two', 'three', 'four', 'five', 'six')[(once_more - began).days]} days later",
        f"torch_train --data-dir DIR --epochs {epochs[-1]}",
        f"(83.7) ended between 83.7 and {max(ends):.1f}.",  # the lines of the lowest were not kept
        f"learning rate {defaults.lr:.0e}".replace("e-0", "e-") + f" with {100 * defaults.warmup:.0f} % linear warm-up and a cosine to 0, "
        f"weight decay {defaults.weight_decay} on matrices and kernels only, label smoothing {defaults.label_smoothing}, "
        f"gradient norm clipped to {defaults.clip_norm:g}, reflect-padded shifts of up to {SHIFT} pixels and flips",
    ]


def seeds_figures() -> list[str]:
    """What docs/results.md says of three seeds of cifar-nano, ours and PyTorch's, at the end of a short training."""
    torchs = lines_of("torch-nano-5-epochs.jsonl")
    ours = [line for line in lines_of(cifar10_networks.FILE.name) if line["network"] == "conformer"]
    headers, (epochs,) = [line for line in torchs if "seed" in line], {line["length"]["epochs"] for line in ours}
    ends = [line["test_accuracy"] for line in torchs if line.get("epoch") == epochs]
    (steps,) = {line["steps"] for line in (*headers, *ours)}
    assert {line["threads"] for line in headers} == {1} and {line["config"] for line in (*headers, *ours)} == {"cifar-nano"}
    seeds = [header["seed"] for header in headers]
    assert seeds == [line["seed"] for line in ours] and len(seeds) == len(ends) == 3
    heads = {"CNN head": ("conv", "cnn"), "transformer head": ("trans", "transformer"), "**sum of both**": ("sum", "sum")}  # theirs, and ours
    table = []
    for title, (name, key) in heads.items():
        theirs, mine = Spread.of([end[name] for end in ends]), Spread.of([100 * line["figures"][key] for line in ours])
        apart, bold = Difference.of(mine, theirs), "**" * title.startswith("**")
        means = [f"{bold}{spread.mean:.2f}{bold} | {spread.deviation:.2f}" for spread in (mine, theirs)]
        table.append(f"| {title} | {' | '.join([*means, f'{apart.mean:.2f}', f'{apart.standard_error:.2f}'])} |")
    by_chance = apart.by_chance  # of the sums
    assert by_chance is not None
    assert abs(apart.mean) < by_chance  # as the page says
    return [
        f"After {epochs} it was, by three seeds each of ours and of PyTorch's",
        f"study OUT --seeds {' '.join(map(str, seeds))} --epochs {epochs} --data-dir DIR .venv",
        f"torch_train --data-dir DIR --epochs {epochs} --seed {seeds[0]} # and {seeds[1]}, and {seeds[2]}",
        *table,
        f"after the last of {steps:,} steps, means",
        f"one comparison in 20 would find more than {by_chance:.2f} points between the sums",
    ]


def network_figures() -> list[str]:
    """The section of docs/results.md on the three networks, as soon as their runs are there."""
    return [cifar10_networks.section(lines_of(cifar10_networks.FILE.name))] if cifar10_networks.FILE.exists() else []


def same_training_figures() -> list[str]:
    """What docs/results.md says of both trainings from the same weights."""
    marks = (10, 50, 100, 150, 200, 250, 300, 400)
    figures = [f"| at steps | {' | '.join(f'{mark - 9} to {mark}' for mark in marks)} |"]
    for dtype in ("float64", "float32"):
        setting, *steps, end = lines_of(f"same-training-{dtype}.jsonl")
        losses = np.array([line["losses"] for line in steps])
        assert len(losses) == marks[-1] and setting["trainings"] == list(same_training.TRAININGS)
        for place, name in (0, "ours and PyTorch's"), (2, "PyTorch's and its own, moved"):
            apart = [np.abs(losses[mark - 10 : mark, place] - losses[mark - 10 : mark, 1]).max() for mark in marks]
            figures.append(f"| {dtype}, {name} | {' | '.join(f'{most:.0e}' for most in apart)} |")
        right = " | ".join(f"{100 * count / end['test_images']:.1f}" for count in end["right"])
        figures.append(f"| {dtype} | {right} |")
        asked = {name: setting[name] for name in ("epochs", "steps", "batch_size", "dtype")}
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asked.items())
        if dtype == "float64":
            ours, yardstick = (np.abs(losses[: marks[5], place] - losses[: marks[5], 1]).reshape(-1, 10).max(1) for place in (0, 2))
            ratios = ours / yardstick
            figures.append(f"between {ratios.min():.1f} and {ratios.max():.1f} times as far from PyTorch's as PyTorch's own from one another")
            figures.append(f"half of the time more than {np.median(ratios):.1f} times")
            most = np.abs(losses[: marks[5], 0] - losses[: marks[5], 1]).max()
            figures.append(f"In float64 the losses agree to {most:.0e} until step {marks[5]}, well beyond the end of the warm-up")
            figures.append(f"two losses, which are between {losses.min():.1f} and {losses.max():.1f}, in ten steps")
            figures.append(f"(step {setting['schedule'] // 10 + 1}, where the learning rate is at its highest)")
        figures.append(f"same_training --data-dir DIR {options} --out same-training-{dtype}.jsonl")
    return [*figures, f"After {marks[-1]} steps the sum of both heads"]


def overhead_figures() -> list[str]:
    """What docs/results.md says of the engine's own cost."""
    record, then, now, fastest = (overhead_of(f"overhead{name}.json") for name in ("", "-adcda3b", "-bf1c8de", "-2026-11-23"))
    goals = [(kind, *pair) for kind, most in targets.OVERHEAD_GOALS.items() for pair in zip(("forward", "backward"), most, strict=True)]
    met = [value <= most for kind, way, most in goals for value in targets.overhead_by_operation(fastest, kind, way).values()]
    before, after = (targets.overhead_by_operation(each, "fused", "forward") for each in (then, now))
    assert then["date"] == now["date"]
    return [
        "The goal is {} forward and {} backward for a primitive, {} and {} for a fused operation.".format(*(most for _, _, most in goals)),
        targets.overhead_table(record),
        f"{targets.overhead_origin(record)};",
        f"On {fastest['date']}, on a faster machine (AMD EPYC, Zen 5), {sum(met)} of {len(met)} figures met it",
        f"machine: on {then['date']} the code of that day (commit adcda3b,",
        f"and commit {now['environment']['revision']} (",
        f"{across(then, 'primitive')} and {across(now, 'primitive')} forward for a primitive, "
        f"{across(then, 'fused')} and {across(now, 'fused')} for a fused operation",
        f"The median of the fused operations is {statistics.median(after[name] - cost for name, cost in before.items()):.1f} more",
    ]


def every_figure() -> list[str]:
    return [*training_figures(), *seeds_figures(), *network_figures(), *same_training_figures(), *overhead_figures()]


def results_page() -> str:
    return unspaced((files.ROOT / "docs" / "results.md").read_text(encoding="utf-8"))


def unspaced(text: str) -> str:
    """Without line breaks and indentation."""
    return " ".join(text.split())


NAMES = [
    "defaults: cifar-nano", "CIFAR-10", "AVX-512", "cifar-nano-20-epochs", "torch-nano-20-epochs", "overhead-2026-11-23.json",
    "those of the runs of three seeds each had 2 of an Intel Xeon", "changes after 20 epochs was not measured", "torch-nano-5-epochs",
    "on one thread, 2026-11-30)",
    "overhead-adcda3b.json", "overhead-bf1c8de.json", "commit 2c57cab", "Loss and test accuracies over 20 epochs", "of some 20 microseconds",
    "--seeds 0 1 2", "cifar-nano-seed-0", "losses in float64", "losses in float32", "same-training-float64.jsonl", "same-training-float32.jsonl",
    "In float32, where", "one study in 20 would find by chance (95 %, two-sided)",
]  # fmt: skip
"""What of docs/results.md has digits, and is no figure of a file: mostly names, those of files being held by the test of links."""


def test_the_results_page_has_the_figures_of_the_files() -> None:
    page = results_page()
    for figure in map(unspaced, every_figure()):
        assert page.count(figure) == 1, figure


def test_every_digit_of_the_results_page_is_held() -> None:
    """So another digit anywhere is noticed by the test above, but for those in `NAMES`."""
    page = results_page()
    loose = {place for place, letter in enumerate(page) if letter.isdigit()}
    for known in map(unspaced, [*every_figure(), *NAMES]):
        for place in (place for place in range(len(page)) if page.startswith(known, place)):
            loose -= set(range(place, place + len(known)))
    assert [page[max(0, place - 30) : place + 10] for place in sorted(loose)] == []


def test_the_same_files_give_the_same_page_and_plots(tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, all_made_up()[:1]) for name in ("a", "b"))
    assert first == second
    plots = [(tmp_path / name / "docs" / "benchmarks" / "step.svg").read_bytes() for name in ("a", "b")]
    assert plots[0] == plots[1]


def test_the_page_says_when_a_run_was_noisy_quick_or_pinned(tmp_path: Path) -> None:
    plain = made_up("step", rows_of({"config": "cifar-nano", "batch": 64}, [100], [150]))
    assert "**noisy**" not in written(tmp_path / "quiet", [plain])
    loud = json.loads(json.dumps(plain))
    loud["rows"][0]["turns"][0]["others_s"] = 4.0
    page = written(tmp_path / "loud", [loud])
    assert "10 % **noisy**" in page and "compare nothing" in page  # 4.1 of the 2 x 20 seconds
    quick = made_up("step", plain["rows"], settings={**plain["settings"], "quick": True})
    assert "Measured with --quick" in written(tmp_path / "quick", [quick])
    pinned = made_up("step", plain["rows"], settings={**plain["settings"], "pinned": True})
    page = written(tmp_path / "pinned", [plain, pinned])
    assert page.index("## The training step\n") < page.index("## The training step, OpenBLAS pinned to Haswell")
    assert page.count("step.svg") == 1


def test_the_page_has_files_of_another_machine_by_their_names(tmp_path: Path) -> None:
    plain = made_up("step", rows_of({"config": "cifar-nano", "batch": 64}, [100], [150]))
    about = plain["environment"] | {"processor": "Another", "vector_units": ["avx2"], "caches": {"L2": "1024K"}}
    old = {key: value for key, value in plain.items() if key != "warm_up"} | {"environment": about, "speeds": [{"gflops": 300.0, "copy_gbs": 20.0}]}
    dated = [{**row, "date": f"2026-01-0{day}T03:04:05+00:00", "revision": f"r{day}"} for day, row in enumerate(plain["rows"], 1)]
    (tmp_path / "step-avx2.json").write_text(json.dumps(old | {"rows": dated}))
    page = written(tmp_path, [plain])
    assert page.index("## The training step\n") < page.index("## The training step, on a processor without AVX-512\n")
    assert "1. A processor, 2 processors" in page and "2. Another, with avx2, L2 1024K, 2 processors" in page and page.count("step.svg") == 1
    assert page.count("an earlier version of this benchmark") == 1  # the old one, which says nothing of its warm-up
    assert "| `step-avx2.json` | 2 | 2026-01-01 03:04 to 2026-01-02 03:04 | r1, r2 | 2 | 1 | 300 | 20 |" in page
    assert "| `step.json` | 1 | 2026-01-02 03:04 | abc | 2 | 1 | – | – |" in page
    (tmp_path / "step-2.json").write_text(json.dumps(plain))
    with pytest.raises(SystemExit, match=r"step-2\.json: the file of benchmark step is called step\[-pinned\]\[-xeon\]\[-avx2\]\.json"):
        written(tmp_path, [plain])


def test_a_pinned_measurement_kept_of_another_machine_says_both(tmp_path: Path) -> None:
    plain = made_up("step", rows_of({"config": "cifar-nano", "batch": 64}, [100], [150]))
    kept = plain | {"settings": {**plain["settings"], "pinned": True}, "date": "2025-01-02T03:04:05+00:00"}
    (tmp_path / "step-pinned-xeon.json").write_text(json.dumps(kept))
    page = written(tmp_path, [plain])
    assert "## The training step, OpenBLAS pinned to Haswell, on an Intel Xeon with AVX-512\n" in page
    assert "| `step-pinned-xeon.json` | 1 | 2025-01-02 03:04 |" in page
    (tmp_path / "step-pinned-xeon.json").rename(tmp_path / "step-xeon-pinned.json")
    with pytest.raises(SystemExit, match=r"step-xeon-pinned\.json: the file of benchmark step is called"):
        written(tmp_path, [plain])


def row_of(page: str, start: str) -> list[str]:
    """The cells after the first of the only row that starts so."""
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return line.strip("| ").split(" | ")[1:]


def of_network(config: str, batch: int, walls: dict[str, float], **more: object) -> list[dict]:
    """A row for each side, of one turn."""
    case = {"config": config, "size": 32, "batch": batch, **more}
    return [{"case": case, "side": side, "turns": [{"wall_ms": [wall], "cpu_ms": [wall]}]} for side, wall in walls.items()]


def test_a_target_is_held_missed_or_missed_by_some_networks(tmp_path: Path) -> None:
    nano = of_network("cifar-nano", 128, {"minigrad": 100.0, "torch-nchw": 200.0, "torch-tuned": 101.0})
    micro = of_network("cifar-micro", 128, {"minigrad": 100.0, "torch-nchw": 100.0, "torch-tuned": 101.0})
    other = of_network("cifar-small", 64, {"minigrad": 900.0, "torch-nchw": 100.0, "torch-tuned": 101.0})
    page = written(tmp_path, [made_up("step", nano + micro + other)])
    assert row_of(page, "step: minigrad / fastest eager PyTorch") == ["at most 1.00, aiming at 0.85", "0.99", "1.00", "–", "held", "`step.json`"]
    assert row_of(page, "step: minigrad / PyTorch as a user writes it (NCHW)")[1:5] == ["0.50", "1.00", "–", "missed by micro"]
    pinned = "step, OpenBLAS pinned to Haswell: minigrad / fastest eager PyTorch"
    assert row_of(page, pinned) == ["at most 1.40", "–", "–", "–", "not measured", "–"]
    settings = {**made_up("step", [])["settings"], "pinned": True}
    slow = of_network("cifar-nano", 128, {"minigrad": 1.41, "torch-tuned": 1.0})
    page = written(tmp_path, [made_up("step", slow, settings=settings)])
    assert row_of(page, pinned) == ["at most 1.40", "1.41", "–", "–", "missed", "`step-pinned.json`"]
    assert row_of(page, "step: minigrad / fastest eager PyTorch")[1] == "0.99"


def test_a_machine_without_avx_512_is_none_that_the_targets_name(tmp_path: Path) -> None:
    record = made_up("step", of_network("cifar-nano", 128, {"minigrad": 1.0, "torch-tuned": 1.0}))
    record["sides"]["minigrad"]["threads"] = [{"internal_api": "openblas", "version": "1", "architecture": "Haswell", "num_threads": 1}]
    assert row_of(written(tmp_path, [record]), "step: minigrad / fastest eager PyTorch")[4] == "not measured"


def test_targets_of_operations_are_of_the_sums_over_a_step_beside_channels_last(tmp_path: Path) -> None:
    def call(op: str, batch: int, ours: float, last: float, tuned: float, count: int = 1, kernel: int = 3) -> list[dict]:
        inputs = [{"shape": shape, "kind": "f", "order": [0], "needs": True} for shape in ([2, 4, 4, 8], [8, 8, kernel, kernel])]
        more = {"op": op, "count": count, "where": "training step", "inputs": inputs, "out": [1], "values": {}, "bytes": 1}
        return of_network("cifar-nano", batch, {"minigrad": ours, "torch-channels-last": last, "torch-tuned": tuned}, **more)

    rows = [*call("conv2d", 64, 9.0, 5.0, 5.0), *call("conv2d", 128, 1.0, 1.0, 1.0, kernel=3), *call("conv2d", 128, 2.0, 1.0, 1.0, count=3)]
    rows += [*call("conv2d", 128, 0.8, 1.0, 0.6, kernel=1), *call("conv2d", 128, 99.0, 1.0, 1.0, kernel=4)]
    rows += [*call("scaled_dot_product_attention", 128, 0.7, 1.0, 1.0), *call("layer_norm", 128, 4.1, 1.0, 1.0)]
    for row in rows:
        row["turns"][0]["forward_ms"] = [0.1]
    page = written(tmp_path, [made_up("ops", rows)])
    assert row_of(page, "3x3 convolution: minigrad / PyTorch, channels_last") == ["at most 1.70", "1.75, 1.80", "–", "–", "missed", "`ops.json`"]
    assert row_of(page, "1x1 convolution: minigrad / PyTorch, channels_last")[1:5] == ["0.80", "–", "–", "held"]
    assert row_of(page, "attention: minigrad / PyTorch, channels_last")[1:5] == ["0.70", "–", "–", "held"]
    assert row_of(page, "layer norm: minigrad / PyTorch, channels_last")[4] == "missed"
    assert row_of(page, "gelu: minigrad / PyTorch, channels_last")[4] == "not measured"
    assert "yet not beside PyTorch's fastest eager form: 1x1 convolution of cifar-nano, 128 (1.33)." in page


def test_targets_of_whole_runs_memory_and_peers(tmp_path: Path) -> None:
    page = written(tmp_path, all_made_up())
    assert row_of(page, "images/s: whole run / bare step") == ["at least 0.95", "0.75", "–", "–", "missed", "`end_to_end.json`"]
    assert row_of(page, "peak memory: minigrad / least of PyTorch")[1:5] == ["0.40", "–", "–", "held"]
    assert row_of(page, "peak memory: blocks checkpointed / not")[4] == "not measured"  # of cifar-small alone
    small = [{**row, "case": {**row["case"], "config": "cifar-small"}} for row in all_made_up()[4]["rows"]]
    facts = {"loss": 10.0, "dx_norm": 100.0}
    peers = of_network("cifar-micro", 64, {"minigrad": 10.0, "autograd": 50.0, "mygrad": 49.0}, x=[1], x_t=[1])
    for row in peers:
        row["turns"][0] |= facts
    page = written(tmp_path, [made_up("memory", small), made_up("block", peers)])
    assert row_of(page, "peak memory: blocks checkpointed / not")[1:5] == ["–", "–", "0.40", "held"]
    assert row_of(page, "one block: autograd / minigrad")[1:5] == ["–", "5.00", "–", "held"]
    assert row_of(page, "one block: MyGrad / minigrad")[1:5] == ["–", "4.90", "–", "missed"]


def test_targets_of_the_engines_own_cost(tmp_path: Path) -> None:
    def cost(name: str, kind: str, forward: float, backward: float) -> dict:
        each = {"forward_us": 1 + forward, "forward_kernel_us": 1.0, "backward_us": 2 + backward, "backward_kernel_us": 2.0}
        return {"operation": name, "kind": kind, **each}

    assert row_of(written(tmp_path, all_made_up()[:1]), "primitive, forward") == ["at most 2", "–", "not measured"]
    rows = [cost("add", "primitive", 2.0, 4.5), cost("mul", "primitive", 1.0, 3.0), cost("gelu", "fused", 5.0, 4.0)]
    (tmp_path / "overhead.json").write_text(json.dumps({"rows": rows}))
    page = written(tmp_path, all_made_up()[:1])
    assert row_of(page, "primitive, forward") == ["at most 2", "1.0 to 2.0", "held"]
    assert row_of(page, "primitive, backward") == ["at most 4", "3.0 to 4.5", "missed by 1 of 2: add"]
    assert row_of(page, "fused, forward") == ["at most 4", "5.0 to 5.0", "missed by 1 of 1: gelu"]
    assert row_of(page, "fused, backward") == ["at most 4", "4.0 to 4.0", "held"]


def test_the_page_says_why_torch_compile_is_not_at_every_batch(tmp_path: Path) -> None:
    small, large = ({"minigrad": 1.0, "torch-tuned": 1.0, **more} for more in ({}, {"torch-compile": 1.0}))
    rows = of_network("cifar-nano", 64, small) + of_network("cifar-nano", 128, large)
    said = "torch.compile was not measured at batch 64, for want of time alone: it compiles a whole network for a minute or more in every turn."
    assert said in written(tmp_path, [made_up("step", rows)])
    for kept in (rows[:2], rows[2:]):
        assert "torch.compile was not measured" not in written(tmp_path, [made_up("step", kept)])


def test_the_committed_page_is_what_its_files_give() -> None:
    assert report.page_of(*report.contents(files.RESULTS)) == report.PAGE.read_text(encoding="utf-8"), "write it anew by `make bench BENCH=report`"


def test_the_step_on_a_pinned_blas_is_kept() -> None:
    """The file was lost once, and with it that its target was missed."""
    result = tables.Result(files.RESULTS / "step-pinned-xeon.json")
    assert result.record["settings"]["pinned"] and {case["config"] for case, _ in result.cases()} == {"cifar-nano", "cifar-micro", "cifar-small"}
    ours, _ = report.machine_of(result)
    assert ours.startswith("Intel(R) Xeon(R)") and "| `step-pinned-xeon.json` |" in report.PAGE.read_text(encoding="utf-8")


def test_the_page_lists_operations_above_twice_pytorchs_time_with_their_passes(tmp_path: Path) -> None:
    copy, gelu, _ = all_made_up()[1]["rows"]
    image, vector = ({"shape": shape, "kind": "f", "order": [0], "needs": True} for shape in ([4, 2, 2, 8], [8]))
    norm = gelu["case"] | {"op": "batch_norm", "values": {"relu": True}, "inputs": [image, vector, vector, None, None, image], "count": 2}
    plain = norm | {"values": {}, "inputs": [image, vector, vector, None, None, None]}
    rows = [copy, *rows_of(gelu["case"], [2.0], [1.0]), *rows_of(norm, [3.0], [1.0]), *rows_of(plain, [4.0], [1.0])]
    page = written(tmp_path, [made_up("ops", rows)])
    listed = page[page.index("more than 2 times") : page.index("<details>")]
    assert "gelu" not in listed  # 2.00 is not more
    assert "| batch_norm 4×2×2×8 8 8 4×2×2×8 relu | 2 | 3.00 | 6 | 6 + 8 | 2 | 10 % |" in listed
    assert listed.index("| 4.00 | 6 | 4 + 6 | 1.5 | 8 % |") < listed.index("| 3.00 |")  # the slowest first
    assert "more than 2 times" not in written(tmp_path / "equal", [all_made_up()[1]])


def test_sums_of_operations_are_of_calls_that_all_sides_have(tmp_path: Path) -> None:
    copy, *gelu = all_made_up()[1]["rows"]
    other = gelu[0]["case"] | {"out": [64, 16, 96], "count": 5}
    page = written(tmp_path, [made_up("ops", [copy, *gelu, rows_of(other, [7.0], [])[0]])])
    assert "The sums of cifar-nano, batch 64, are without 5 calls that not all sides have." in page
    assert "| gelu | 6 | 9 | 6 | 1.50 | 4 |" in page


def test_the_page_names_an_operation_that_two_sides_compute_differently(tmp_path: Path) -> None:
    record = all_made_up()[1]
    for norms in ((1.0, 1.1), (1.0, math.nan), (math.nan, math.nan)):
        for row, norm in zip(record["rows"][1:], norms, strict=True):
            row["turns"][0] |= {"out_norm": 3.0, "gradient_norm": norm}
        assert "**The sides do not agree** on gelu (cifar-nano, batch 64)." in written(tmp_path, [record])


def test_agreement_of_two_sides() -> None:
    ours = {"loss": 1.0, "dx_norm": 100.0}
    assert sections.agreement({"loss": 1.0, "dx_norm": 100.1}, ours).startswith("yes")
    assert sections.agreement({"loss": 9.0, "dx_norm": 100.0}, ours).startswith("NO")
    assert sections.agreement({"loss": 1.0, "dx_norm": math.nan}, ours).startswith("NO")
    assert math.isclose(float(tables.ratio(3.0, 2.0)), 1.5)
