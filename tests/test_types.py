"""What a type checker says of a program that uses the library: the types that its lines name, and errors at those marked `# wrong`, no others."""

from __future__ import annotations

import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
from collections.abc import Iterator
from typing import assert_type

import minigrad
from minigrad import Tensor, nn

@minigrad.no_grad()
def accuracy(images: Tensor, name: str = "test") -> float:
    return images.shape[0] / 2

@minigrad.anomaly()
def batches(count: int) -> Iterator[Tensor]:
    yield from [Tensor([1.0])] * count

class Net(nn.Module):
    @minigrad.definitions()
    @minigrad.enable_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x

assert_type(accuracy(Tensor([1.0]), name="valid"), float)
assert_type(batches(3), Iterator[Tensor])
assert_type(Net().forward(Tensor([1.0])), Tensor)
accuracy("images")  # wrong
accuracy(Tensor([1.0]), names="valid")  # wrong
batches("3")  # wrong
Net().forward(3)  # wrong
assert_type(minigrad.no_grad(accuracy)(Tensor([1.0])), float)
minigrad.no_grad(0.5)  # wrong
with minigrad.no_grad() as nothing:
    assert_type(nothing, None)

(slope,) = minigrad.grad(nn.Linear(1, 1)(Tensor([1.0])).sum(), Tensor([1.0]), create_graph=True)
assert_type(slope.sum(), Tensor)

minigrad.random.set_step(3)
minigrad.random.set_stop(3)  # wrong
nn.LayerNorm([4]), nn.LayerNorm((4,)), nn.LayerNorm(4)
nn.LayerNorm("4")  # wrong
nn.Conv2d(3, 8, [3, 3], (1, 1), padding=[1, 1], dilation=2), nn.MaxPool2d([2, 2], stride=[2, 2]), nn.AvgPool2d(2, padding=(1, 1))
nn.Conv2d(3, 8, (3, 3, 3))  # wrong
nn.MaxPool2d("2")  # wrong
"""


def test_a_type_checker_sees_what_a_reader_does(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    settings = {"extraPaths": [str(ROOT)], "typeCheckingMode": "basic", "reportUnusedExpression": "none"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", "-p", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = [entry for entry in json.loads(result.stdout)["generalDiagnostics"] if entry["severity"] == "error"]
    wrong = [number for number, line in enumerate(PROGRAM.splitlines()) if line.endswith("# wrong")]
    assert [entry["range"]["start"]["line"] for entry in found] == wrong, [entry["message"] for entry in found]


@pytest.mark.parametrize("package", ["minigrad", "conformer"])
def test_installed_packages_say_that_they_have_types(package: str):
    """Without this file a type checker passes over them (PEP 561). What lies in their folders is in the wheel: see pyproject.toml."""
    assert importlib.resources.files(package).joinpath("py.typed").is_file()
