"""The original's numbers: what the official implementation computed in float64, recorded in `oracle/`, held against two witnesses.

The independent PyTorch Conformer (torch_conformer.py) must reproduce them first; only then is it a witness for test_parity.py. Then ours, by its
kernels and by its definitions alone. `oracle/fill.py` makes the weights from their names, so the files hold only results.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import minigrad.functional as F
from conformer import Conformer, parameter_groups
from minigrad import Tensor, optim, random
from tests.conformer import torch_conformer, witnesses
from tests.conformer.witnesses import ORACLE, Outcome, fill

FILES = {"small64_d6": "imagenet", "cifar32_stem3_p16": "cifar"}  # recording -> our name of its stem
WITNESSES = ("torch", "minigrad", "definitions")
CASES = [(witness, file) for file in FILES for witness in WITNESSES if (witness, file) != ("definitions", "small64_d6")]
cases = pytest.mark.parametrize(("witness", "file"), CASES)


@cache
def recording(file: str) -> dict[str, np.ndarray]:
    with np.load(ORACLE / f"oracle_{file}.npz") as archive:
        return dict(archive)


def setting(file: str) -> tuple[dict, np.ndarray, np.ndarray]:
    """Model arguments, images (B, C, H, W) and labels of a recording."""
    meta = json.loads(str(recording(file)["meta"]))
    config = {**meta["config"], "stem": FILES[file]}
    return config, fill.make_input(meta["batch"], 3, *meta["image"]), fill.make_labels(meta["batch"], config["num_classes"])


@cache
def passes(witness: str, file: str) -> tuple[Outcome, Outcome]:
    """The eval pass, then the train pass from the same state."""
    config, images, labels = setting(file)
    model = witnesses.torch_model(**config) if witness == "torch" else witnesses.our_model(**config)
    run = {"torch": witnesses.torch_pass, "minigrad": witnesses.our_pass, "definitions": witnesses.our_pass_by_definitions}[witness]
    return run(model.eval(), images, labels), run(model.train(), images, labels)


@cases
def test_logits_and_losses_are_the_recorded_ones(witness: str, file: str):
    expected = recording(file)
    for mode, outcome in zip(("eval", "train"), passes(witness, file), strict=True):
        assert_allclose(outcome.logits[0], expected[f"{mode}_conv"], rtol=1e-9, atol=1e-9)
        assert_allclose(outcome.logits[1], expected[f"{mode}_trans"], rtol=1e-9, atol=1e-9)
        assert_allclose([*outcome.losses, sum(outcome.losses)], expected[f"{mode}_loss"], rtol=1e-10)


@cases
def test_gradients_are_the_recorded_ones(witness: str, file: str):
    expected = recording(file)
    for mode, outcome in zip(("eval", "train"), passes(witness, file), strict=True):
        assert list(outcome.gradients) == list(expected["param_names"])
        norms = [np.linalg.norm(gradient) for gradient in outcome.gradients.values()]
        assert_allclose(norms, expected[f"{mode}_gradnorm"], rtol=1e-8, atol=1e-10 * expected[f"{mode}_gradnorm"].max())
        assert_allclose(np.linalg.norm(outcome.image_gradient), expected[f"{mode}_input_grad_norm"], rtol=1e-8)
    outcome = passes(witness, file)[1]
    largest = max(np.abs(gradient).max() for gradient in outcome.gradients.values())
    recorded = [name.removeprefix("grad/") for name in expected if name.startswith("grad/")]
    assert len(recorded) == 15
    for name in recorded:
        theirs = expected[f"grad/{name}"]  # the first 1,536 elements
        assert_allclose(outcome.gradients[name].ravel()[: theirs.size], theirs, rtol=1e-8, atol=1e-10 * largest, err_msg=name)
    assert_allclose(outcome.image_gradient.ravel()[:256], expected["input_grad_first256"], rtol=1e-8, atol=1e-10 * largest)


@cases
def test_running_statistics_are_the_recorded_ones(witness: str, file: str):
    expected = recording(file)
    before, after = (outcome.state for outcome in passes(witness, file))
    names = [name.removesuffix(".running_mean") for name in after if name.endswith(".running_mean")]
    assert names == list(expected["bn_names"])
    for statistic, key in (("running_mean", "bn_mean_norm_after"), ("running_var", "bn_var_norm_after")):
        assert_allclose([np.linalg.norm(after[f"{name}.{statistic}"]) for name in names], expected[key], rtol=1e-10)
    for key in expected:
        if key.startswith("bn_after/"):
            assert_allclose(after[key.removeprefix("bn_after/")], expected[key], rtol=1e-10, atol=1e-12, err_msg=key)
    for name in names:  # the eval pass left them alone; the train pass counted itself
        assert_allclose(before[f"{name}.running_var"], fill.fill(f"{name}.running_var", before[f"{name}.running_var"].shape), rtol=0, atol=0)
        assert before[f"{name}.num_batches_tracked"] == 0 and after[f"{name}.num_batches_tracked"] == 1


def torch_losses(file: str) -> list[float]:
    """The mean of the heads' losses before each of five AdamW steps and after the last."""
    config, images, labels = setting(file)
    model = witnesses.torch_model(**config).train()
    optimizer = torch.optim.AdamW(torch_conformer.parameter_groups(model, 0.05), lr=1e-3)
    losses = []
    for _ in range(6):
        heads = model(torch.from_numpy(images))
        loss = sum(torch.nn.functional.cross_entropy(head, torch.from_numpy(labels)) for head in heads) / 2
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def our_losses(file: str) -> list[float]:
    """The same steps with our model, its parameter groups and our AdamW."""
    config, images, labels = setting(file)
    model = witnesses.our_model(**config).train()
    optimizer = optim.AdamW(parameter_groups(model, 0.05), lr=1e-3)
    x = Tensor(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
    losses = []
    for _ in range(6):
        conv_logits, trans_logits = model(x)
        loss = (F.cross_entropy(conv_logits, labels) + F.cross_entropy(trans_logits, labels)) / 2
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("losses", [torch_losses, our_losses])
def test_the_losses_of_five_adamw_steps_are_the_recorded_ones(losses, file: str):
    assert_allclose(losses(file), recording(file)["adamw_losses"], rtol=1e-9)


def published(variant: str) -> tuple[dict, list]:
    """Arguments of a published variant and its key list: [name, shape, dtype, "param" or "buffer"] in order."""
    listing = json.loads((ORACLE / f"keys_{variant}.json").read_text())
    return listing["config"], listing["keys"]


@pytest.mark.parametrize("variant", ["ti", "small", "base", "s32"])
def test_the_torch_witness_has_the_published_names_shapes_and_order(variant: str):
    config, keys = published(variant)
    with torch.device("meta"):
        model = torch_conformer.TorchConformer(**config)
    assert [[name, list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in model.state_dict().items()] == [key[:3] for key in keys]
    assert [name for name, _ in model.named_parameters()] == [key[0] for key in keys if key[3] == "param"]


class Zeros:
    """A generator that draws nothing."""

    def normal(self, mean: float, std: float, shape: tuple[int, ...] | int) -> np.ndarray:
        return np.zeros(shape)

    uniform = normal


@pytest.mark.parametrize("variant", ["ti", "small", "base", "s32"])
def test_our_model_has_the_published_names_shapes_and_order(variant: str, monkeypatch: pytest.MonkeyPatch):
    config, keys = published(variant)
    monkeypatch.setattr(random, "generator", lambda *_: Zeros())  # 183 million random numbers would take ten seconds
    model = Conformer(**config)
    assert [[name, list(array.shape), str(array.dtype)] for name, array in model.state_dict().items()] == [key[:3] for key in keys]
    assert [name for name, _ in model.named_parameters()] == [key[0] for key in keys if key[3] == "param"]
    assert [name for name, _ in model.named_buffers()] == [key[0] for key in keys if key[3] == "buffer"]
