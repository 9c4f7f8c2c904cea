"""`tests/` mirrors the tree: where the tests of a module are is seen from its name, and the exceptions are few."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "minigrad/__init__.py": "tests/test_pytorch_names.py",  # what it offers; its version: test_main.py
    "minigrad/__main__.py": "tests/test_main.py",
    "minigrad/node.py": "tests/test_autograd.py",
    "minigrad/op.py": "tests/test_base_op.py",  # it only hands on
    "minigrad/walk.py": "tests/test_autograd.py",
    "conformer/__init__.py": "tests/conformer/test_model.py",  # it only hands on
    "conformer/__main__.py": "tests/conformer/test_cli.py",
    "conformer/cifar.py": "tests/conformer/test_data.py",
    "conformer/likeness.py": "tests/conformer/test_weights.py",
    "conformer/loading.py": "tests/test_interrupted.py",
    "conformer/parser.py": "tests/conformer/test_cli.py",
    "conformer/run_checks.py": "tests/conformer/test_train.py",  # of a run that goes on: test_resume.py
}
"""Modules whose tests are in a file of another name."""


def mirrored(module: str) -> str:
    """Where the tests of a module are looked for: minigrad/x.py in tests/test_x.py, conformer/x.py in tests/conformer/test_x.py."""
    folder, _, name = module.partition("/")
    return f"tests/{'' if folder == 'minigrad' else folder + '/'}test_{name}"


def test_every_module_has_its_tests_where_its_name_says():
    modules = [path.relative_to(ROOT).as_posix() for folder in ("minigrad", "conformer") for path in sorted((ROOT / folder).glob("*.py"))]
    assert mirrored("minigrad/modes.py") == "tests/test_modes.py" and "conformer/train.py" in modules
    missing = [module for module in modules if not (ROOT / ELSEWHERE.get(module, mirrored(module))).exists()]
    assert not missing, f"no tests of {', '.join(missing)}: name a file after each, or name the one that has them in ELSEWHERE, above"
    stale = [module for module in ELSEWHERE if module not in modules or (ROOT / mirrored(module)).exists()]
    assert not stale, f"strike {', '.join(stale)} from ELSEWHERE, above"
