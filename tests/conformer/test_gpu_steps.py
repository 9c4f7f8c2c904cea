"""Training on the device "cuda": the captured step is the CPU's step, nothing waits, and runs go on where they were broken off."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from PIL import Image

import minigrad
from benchmarks.launches import launches
from conformer import gpu_steps, train
from conformer.augment import channel_constants, cuda_augment
from conformer.batches import Batch, batches, plan
from conformer.cli import main
from conformer.config import CONFIGS, ConformerConfig
from conformer.data import Dataset, Split
from conformer.evaluate import accuracies, evaluate
from conformer.gpu_steps import GpuSteps, _cuda
from conformer.learner import Learner
from conformer.model import Conformer
from conformer.options import OptionError, TrainConfig
from conformer.train import Trainer
from minigrad import random, safetensors_io
from minigrad.backend import cuda
from minigrad.backend.cublas import current_precision
from minigrad.optim import EMA
from tests.cuda_device import ORDERS, nothing_waits, on_cuda, on_gpu
from tests.support import assert_close, draws, rng

SMALL = replace(CONFIGS["cifar-nano"], channel_ratio=0.25, embed_dim=16, depth=3, num_heads=2, stem_channels=8, drop_path_rate=0.3)
CONFIG = TrainConfig(batch_size=4, accumulate=2, ema=0.5, drop_path=0.3, cutout=9, lr=1e-2, clip_norm=1.0, label_smoothing=0.1)


def dataset(images: int = 14) -> Dataset:
    numbers = rng(images)
    train, test = (Split(numbers.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), numbers.integers(0, 10, n)) for n in (images, 5))
    return Dataset("noise", tuple("abcdefghij"), (0.5, 0.4, 0.45), (0.25, 0.2, 0.21), train, test, "a test")


def learner(device: str, dtype: str, network: ConformerConfig = SMALL) -> Learner:
    made = Learner(network, CONFIG, 10, device)
    made.model.to(dtype=dtype).train()
    made.ema = EMA(made.model, CONFIG.ema)
    return made


@pytest.mark.cuda
def test_a_capture_that_fails_leaves_the_learner_as_it_was(monkeypatch: pytest.MonkeyPatch):
    """There is no memory for it, or Ctrl-C comes while kernels are compiled."""
    with on_cuda():
        made = learner("cuda", "float32")
        before, draws_before = made.state(), random.get_counter()

        def captured(step: Callable, warm_ups: int) -> None:
            step()
            raise MemoryError

        monkeypatch.setattr(cuda, "Captured", captured)
        with pytest.raises(MemoryError):
            GpuSteps(made, dataset(), 4, 2)
        after = made.state()
        assert all(np.array_equal(after[name], before[name]) for name in before)
        assert not any(after[name].any() for name in after if name.startswith("optimizer.state."))  # as if it had never been updated
        assert random.get_counter() == draws_before and made.step == 0


def assert_same_state(ours: Learner, reference: Learner, relative: float, all_biases: bool = True) -> None:
    """Weights, moments, statistics and averages agree, as far as they are not made of nothing but rounding.

    Before a batch norm the gradient of a bias is that, which Adam scales up; so is that of the keys' bias, a third of an array.
    """
    state, expected = ours.state(), reference.state()
    assert state.keys() == expected.keys()
    order = [id(p) for group in reference.optimizer.param_groups for p in group["params"]]
    rounding = [(name, order.index(id(p))) for name, p in reference.model.named_parameters() if name.endswith("expand_block.conv_project.bias")]
    assert len(rounding) == len(reference.model.plans)
    weights, moments = tuple(name for name, _ in rounding), tuple(f"optimizer.state.{place}." for _, place in rounding)
    for name, array in expected.items():
        if all_biases or not name.endswith(weights):
            alone = name.startswith(moments) or name.endswith((*weights, "qkv.bias"))
            scale = 1 if alone else np.abs(array).max(initial=0) or 1  # most are much smaller than 1
            assert_close(state[name] / scale, array / scale, name, relative)


@pytest.mark.cuda
def test_three_steps_of_cifar_nano_are_those_of_the_cpu():
    """The default network itself, captured and replayed, without a wait for the device: SMALL, below, is a relative that the emulator runs faster."""
    data, reference = dataset(6), learner("cpu", "float64", CONFIGS["cifar-nano"])
    for batch in batches(data, 2, 0, cutout=CONFIG.cutout):
        reference.train_step(Batch(batch.images.astype("float64"), batch.labels))
    with on_cuda(build="plain") as device:
        ours = learner("cuda", "float64", CONFIGS["cifar-nano"])
        steps = GpuSteps(ours, data, batch_size=2, interval=3)
        with nothing_waits(device):
            outcomes = steps.take() + steps.take() + steps.take()
        assert on_gpu() or device.graph_launches == 3
        assert [outcome.step for outcome in outcomes + steps.finish()] == [1, 2, 3]
        assert_same_state(ours, reference, 1e-6)  # Adam makes of a rounding 4e-9 in a bias whose gradient is small


@pytest.mark.cuda
@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-9), ("float32", 2e-3)])
def test_captured_steps_are_the_steps_of_the_cpu(dtype: str, relative: float, capsys: pytest.CaptureFixture[str]):
    """In parts, with drop path, clipping and averaged weights, over the end of an epoch of 3 steps; float32 as far as Adam lets roundings grow."""
    data, reference, expected = dataset(), learner("cpu", dtype), []
    for epoch in range(2):
        for batch in batches(data, 4, epoch, cutout=9):
            if len(expected) < 4:
                expected.append(reference.train_step(Batch(batch.images.astype(dtype), batch.labels)))
    with on_cuda(build="plain") as device:
        ours = learner("cuda", dtype)
        steps = GpuSteps(ours, data, batch_size=4, interval=2)
        launches = device.launches
        with nothing_waits(device):
            outcomes = steps.take() + steps.take() + steps.take() + steps.take()
        assert on_gpu() or device.graph_launches == 4
        with capsys.disabled():
            print(f" {(device.launches - launches) // 4} launches a step ", end="")
        outcomes += steps.finish()
        state = ours.state()
        assert [outcome.step for outcome in outcomes] == [1, 2, 3, 4]
        for outcome, (loss, right) in zip(outcomes, expected, strict=True):
            assert_close(np.array(outcome.loss), np.array(loss), "loss", max(1e-3 * relative, 1e-10))
            assert outcome.right == right and outcome.seconds > 0
        assert [outcome.learning_rate for outcome in outcomes] == [ours.schedule.set(step) for step in range(4)]
        assert_same_state(ours, reference, relative, dtype == "float64")
        assert state["model.bn1.num_batches_tracked"] == 8

        with minigrad.no_grad():
            ours.model.cls_token.copy_(np.nan)
        with pytest.raises(FloatingPointError, match=r"the loss is nan at step 5; a lower --lr \(now 0.01\)"):
            steps.take() + steps.finish()


def plain_learner(where: str = "cuda") -> Learner:
    """One whose steps note means of images and their labels, and change nothing: what a network would do does not matter."""

    def update(parts: Any, note: Callable[..., None]) -> None:
        for number, (images, labels) in enumerate(parts):
            means = images.mean((1, 2))
            note(number, (means * means).mean(), (means, -means), labels)

    made = learner(where, "float32")
    made.update = update  # type: ignore[method-assign]
    return made


@pytest.mark.cuda
@pytest.mark.parametrize(("images", "taken"), [(5, 0), (14, 2)])
def test_the_calls_before_a_capture_stay_within_the_tables_of_an_epoch(images: int, taken: int):
    """Of an epoch of one step, and from the end of one of three; then come the right steps of two epochs."""
    data, reference = dataset(images), plain_learner("cpu")
    reference.step = taken
    planned = [batch for epoch in range(2) for batch in batches(data, 4, epoch, cutout=CONFIG.cutout)]
    expected = [reference.train_step(batch) for batch in planned[taken : taken + 2]]
    with on_cuda():
        ours = plain_learner()
        ours.step = taken
        steps = GpuSteps(ours, data, batch_size=4, interval=1)
        outcomes = steps.take() + steps.take() + steps.finish()
    assert [outcome.step for outcome in outcomes] == [taken + 1, taken + 2]
    for outcome, (loss, right) in zip(outcomes, expected, strict=True):
        assert_close(np.array(outcome.loss), np.array(loss), "loss", 1e-6)
        assert outcome.right == right


def test_the_host_is_at_most_two_intervals_ahead(monkeypatch: pytest.MonkeyPatch):
    done, waited = [], []

    def sleep(seconds: float) -> None:
        waited.append(len(taken))
        done.append(True)

    with minigrad.emulated(build="plain"):
        monkeypatch.setattr(cuda.array_module().cuda.Event, "done", property(lambda event: bool(done)))
        monkeypatch.setattr(gpu_steps, "time", SimpleNamespace(sleep=sleep))
        steps, taken = GpuSteps(plain_learner(), dataset(), batch_size=4, interval=1), []
        for _ in range(3):
            taken.append([outcome.step for outcome in steps.take()])
        assert (taken, waited) == ([[], [], [1, 2, 3]], [2])
        done.clear()
        steps.take()
        assert [outcome.step for outcome in steps.finish()] == [4]
        assert waited == [2, 3]


@pytest.fixture
def config(cifar: Callable[..., Path], tiny_network: str, tmp_path: Path) -> TrainConfig:
    """Two epochs of 2 steps on 10 images, with everything that has a state or draws."""
    options: dict[str, Any] = {"epochs": 2, "batch_size": 5, "log_every": 1, "ema": 0.5, "drop_path": 0.3, "device": "cuda"}
    return TrainConfig(config=tiny_network, data_dir=cifar(records=2), out=tmp_path / "run", **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "seconds", "started")} for line in found if "resumed" not in line]


def test_a_resumed_run_is_the_unbroken_one(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """On the GPU bit for bit; on the other device it goes on, and says so."""
    other = replace(config, out=config.out.with_name("other"), checkpoint_steps=1)
    with minigrad.emulated(build="plain"):
        result = train.train(config)
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken off"):
            original = GpuSteps.take

            def take(self: GpuSteps) -> list:
                if self._learner.step == 3:
                    raise RuntimeError("broken off")
                return original(self)

            patch.setattr(GpuSteps, "take", take)
            train.train(other)
        kept = {path.name: path.read_bytes() for path in other.out.iterdir()}
        assert train.resume(other.out).test == result.test
        assert "on CUDA: the emulator runs the kernels on the CPU" in capsys.readouterr().out
    assert result.steps == 4
    for name in ("last", "ema"):
        state, expected = (safetensors_io.load_state(folder / f"{name}.safetensors")[0] for folder in (other.out, config.out))
        for key, array in expected.items():
            assert_array_equal(state[key], array, err_msg=key)
    assert lines(other.out) == lines(config.out)
    assert lines(config.out)[0]["device"].startswith("CUDA")

    for name, content in kept.items():
        (other.out / name).write_bytes(content)
    with pytest.raises(RuntimeError, match="No CUDA: "):
        train.resume(other.out)
    Trainer.resume(other.out, device="cpu").run()
    assert "device and numpy and threads and blas differ from those the run was started with" in capsys.readouterr().out
    for ours, expected in zip(lines(other.out)[1:], lines(config.out)[1:], strict=True):
        assert_close(np.array(ours.get("loss", 0)), np.array(expected.get("loss", 0)), "loss", 1e-4)


def test_a_gpu_without_the_tensor_cores_that_a_precision_needs(config: TrainConfig, monkeypatch: pytest.MonkeyPatch):
    with minigrad.emulated(build="plain"):
        monkeypatch.setattr(cuda, "has_tensor_cores", lambda: False)
        with pytest.raises(OptionError, match=r"precision is tf32, which needs tensor cores of compute capability 8.0 .*: leave it"):
            Trainer(replace(config, device="cuda", precision="tf32"))
        Trainer(replace(config, device="cuda")).folder.close()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_step_is_captured_in_the_precision_of_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, precision: str):
    def capture(self: GpuSteps) -> None:
        raise RuntimeError(f"captured in {current_precision()}")

    monkeypatch.setattr(GpuSteps, "_capture", capture)
    with minigrad.emulated(build="plain"), pytest.raises(RuntimeError, match=f"captured in {precision}$"):
        train.train(replace(config, precision=precision))


@pytest.mark.parametrize(("tta", "waits"), [("none", 2), ("mirror", 4)])
def test_evaluation_on_the_gpu_waits_once_for_each_head(tta: str, waits: int):
    data, model = dataset(), Conformer(**vars(SMALL))
    expected = evaluate(model, data.test, data, tta=tta)
    with minigrad.emulated(build="plain") as device:
        model.to(device="cuda")
        before = device.synchronisations
        ours = evaluate(model, data.test, data, batch_size=2, tta=tta)
        assert device.synchronisations == before + waits
    assert model.training
    for head in ("cnn", "transformer"):
        assert_close(getattr(ours, head), getattr(expected, head), head, 1e-5)


@pytest.mark.cuda
@draws(15)
@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 4),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    channels=st.integers(1, 4),
    cutout=st.integers(0, 6),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_a_batch_made_on_the_gpu_is_the_cpus_bit_for_bit(seed: int, batch: int, height: int, width: int, channels: int, cutout: int, dtype: str):
    images, labels = rng(seed).integers(0, 256, (2 * batch + 1, height, width, channels), dtype=np.uint8), rng(seed).integers(0, 9, 2 * batch + 1)
    mean, std = rng(seed).uniform(0.1, 0.9, (2, channels))
    random.manual_seed(seed)
    split = Split(images, labels)
    data = replace(dataset(), train=split, test=split, mean=mean, std=std)
    planned = plan(data, batch, epoch=3, cutout=cutout)
    with on_cuda(ORDERS):
        cp = cuda.array_module()
        arrays = [cp.asarray(a) for a in (images, labels, planned, np.array([1], np.uint64), channel_constants(mean, std))]
        x, y = cp.empty((batch, height, width, channels), dtype), cp.empty(batch, np.int64)
        cuda_augment(*arrays, x, y)
        naive, number = cp.empty(x.shape, dtype), cuda.c_type(np.dtype(dtype))
        kernels = cuda.Kernels(Path(train.__file__).with_name("augment.cu"))
        blocks = -(-height * width * channels // 64)
        kernels.launch(f"augment_naive<{number}>", (batch, blocks), 64, *arrays, naive, cp.empty(batch, np.int64), height, width, channels)
        got, got_labels, got_naive = x.get(), y.get(), naive.get()
    expected = list(batches(data, batch, epoch=3, cutout=cutout))[1]
    assert_array_equal(got, expected.images.astype(dtype))
    assert_array_equal(got_naive, got)
    assert_array_equal(got_labels, expected.labels)


@pytest.mark.cuda
@draws(15)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["float32", "float64"]), st.booleans())
def test_right_answers_are_counted_as_on_the_cpu(seed: int, images: int, classes: int, dtype: str, some_nan: bool):
    """With many ties, of which the first counts, and with nan; a step in two parts adds up, and the next one has a row of its own."""
    cnn, transformer = rng(seed).integers(-3, 3, (2, 2, images, classes)).astype(dtype)
    if some_nan:
        cnn[rng(seed + 1).uniform(size=cnn.shape) < 0.1] = np.nan
    labels, losses = rng(seed + 2).integers(0, classes, (2, images)), rng(seed + 3).uniform(0, 3, 2).astype(dtype)
    with on_cuda(ORDERS):
        cp, number = cuda.array_module(), cuda.c_type(np.dtype(dtype))
        records, counters = cp.asarray(np.full((3, 4), -1.0)), cp.asarray(np.array([6, 1], np.uint64))
        for part in range(2):
            arrays = [cp.asarray(a[part]) for a in (cnn, transformer, labels)] + [cp.asarray(np.asarray(losses[part]))]
            _cuda.launch(f"note<{number}>", 1, 1024, *arrays, records, counters, images, classes, part == 0, part == 1)
        got, counted = records.get(), counters.get()
    shares = [accuracies([a.reshape(-1, classes) for a in (cnn, transformer)], labels.reshape(-1))]
    assert_array_equal(got[[0, 2]], np.full((2, 4), -1.0))
    assert_array_equal(got[1, 1:], np.round(np.array(shares[0]) * 2 * images))
    assert got[1, 0] == float(losses[0]) + float(losses[1])
    assert_array_equal(counted, [7, 2])


def test_evaluate_predict_and_explain_on_the_gpu(config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """They print what they print on the CPU, where the network was trained."""
    run, photo = str(config.out), tmp_path / "photo.png"
    train.train(replace(config, device="cpu", max_steps=1))
    Image.fromarray(rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(photo)
    commands = [
        ["evaluate", run, "--tta", "mirror", "--data-dir", str(config.data_dir)],
        ["predict", str(photo), "--run", run],
        ["explain", str(photo), "--run", run, "--out", str(tmp_path / "explained.png")],
    ]
    capsys.readouterr()
    assert [main([*command, "--device", "cpu"]) for command in commands] == [0, 0, 0]
    expected = capsys.readouterr().out
    with minigrad.emulated(build="plain") as device:
        for command in commands:
            before = device.launches
            assert main([*command, "--device", "cuda"]) == 0
            assert device.launches > before
    ours = capsys.readouterr().out
    assert "on CUDA: the emulator runs the kernels on the CPU, with mirror images" in ours
    assert ours.splitlines()[1:] == expected.splitlines()[1:]


def test_what_a_step_launches_is_counted(tiny_network: str):
    counts, ours = launches(tiny_network)
    assert counts["note<float>"] == counts["augment<float, float4>"] == counts["adamw<float>"] == 1
    assert counts["running_statistics<float>"] == counts["batch_norm_forward<float, float4>"] + counts["batch_norm_forward<float, float>"]
    assert 0 < ours < counts.total()
