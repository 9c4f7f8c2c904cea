"""Makes docs/errors.md: wrong uses of the program and of the library, each run for real, with what it answers.

    python docs/errors.py            writes the page
    python docs/errors.py --check    says whether the page is what would be written

Two examples need a file system of their own (a full one, a read-only one): they run under `unshare` and are found on Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "errors.md"
START = """# What goes wrong, and what is said about it

Each of these was run, by `.venv/bin/python docs/errors.py`, which writes this page; a test runs them again. A mistake on the command line ends in
one sentence on stderr and a status that is not 0: 2 where the command is wrong, 1 where a file, a folder or the training is, 130 after Ctrl-C,
143 after SIGTERM, 129 where the terminal was closed. Whatever goes wrong, nothing is left half-written, and no run is overwritten.
"""


@dataclass(frozen=True)
class Example:
    """A wrong use: a command line, or a piece of Python; `prepare` makes the files it needs in the working directory."""

    title: str
    command: str = ""
    python: str = ""
    prepare: Callable[[Path], None] = lambda folder: None
    mount: str = ""  # options of a tmpfs that becomes the folder `disk`


def _cifar10(folder: Path, records: int = 20) -> None:
    """A small CIFAR-10 in the binary layout."""
    random = np.random.default_rng(0)
    path = folder / "cifar-10-batches-bin"
    path.mkdir()
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        data = random.integers(0, 256, (records, 3073), np.uint8)
        data[:, 0] %= 10
        data.tofile(path / name)


def _web_page(folder: Path) -> None:
    (folder / "cifar-10-binary.tar.gz").write_text("<html>404 Not Found</html>")


def _cut_short(folder: Path) -> None:
    _cifar10(folder)
    path = folder / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:50_000])


def _foreign_archive(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    with tarfile.open(folder / "photos.tar.gz", "w:gz") as archive:
        archive.add(folder / "notes.txt", "photos/notes.txt")


def _run(folder: Path) -> None:
    """A finished run of two steps on a small CIFAR-10."""
    _cifar10(folder)
    done = _execute(["train", "--data-dir", "cifar-10-batches-bin", "--batch-size", "10", "--max-steps", "2", "--out", "run"], folder)
    assert done.returncode == 0, done.stderr


def _study(folder: Path) -> None:
    """A study of one run."""
    _cifar10(folder)
    options = ["--data-dir", "cifar-10-batches-bin", "--batch-size", "10", "--max-steps", "2"]
    done = _execute(["study", "nano-seeds", "--seeds", "0", *options], folder)
    assert done.returncode == 0, done.stderr


def _run_and_text(folder: Path) -> None:
    _run(folder)
    (folder / "cat.jpg").write_text("this is not a picture")


def _run_cut_short(folder: Path) -> None:
    _run(folder)
    path = folder / "run" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:100_000])


def _other_weights(folder: Path) -> None:
    from safetensors.numpy import save_file

    _cifar10(folder)
    save_file({"weight": np.zeros(3, np.float32)}, folder / "resnet.safetensors")


def _no_pillow(folder: Path) -> None:
    (folder / "without").mkdir()
    (folder / "without" / "PIL.py").write_text("raise ImportError('no pillow here')\n")


EXAMPLES = [
    Example("An option that does not exist", "train --epoch 3"),
    Example("A value out of range", "train --lr 0"),
    Example("A network that does not exist", "train --config cifar-mini"),
    Example("A time that is none", "train --time-budget soon"),
    Example("A number without end", "train --clip-norm inf"),
    Example("Another data set than the folder holds", "train --dataset cifar100 --data-dir cifar-10-batches-bin", prepare=_cifar10),
    Example("A data file that is cut short", "train --data-dir cifar-10-batches-bin", prepare=_cut_short),
    Example("A web page saved as the archive", "train --data-dir cifar-10-binary.tar.gz", prepare=_web_page),
    Example("An archive of something else", "train --data-dir photos.tar.gz", prepare=_foreign_archive),
    Example("No data and no network", "train --dataset cifar10"),
    Example("A folder that holds a run already", "train --data-dir cifar-10-batches-bin --batch-size 10 --out run", prepare=_run),
    Example("A run that goes on with other options", "train --resume run --lr 0.1", prepare=_run),
    Example("Nothing to go on with", "train --resume nowhere"),
    Example("A study that goes on with other options", "study nano-seeds --seeds 0 1 2 --lr 0.1", prepare=_study),
    Example("A study in the folder of something else", "study run --seeds 0 1 2", prepare=_run),
    Example("A seed given twice", "study nano-seeds --seeds 0 1 1"),
    Example("A batch larger than the data", "train --data-dir cifar-10-batches-bin --batch-size 500", prepare=_cifar10),
    Example("A folder that cannot be written", "train --data-dir cifar-10-batches-bin --batch-size 10 --out disk/run", prepare=_cifar10, mount="ro"),
    Example(
        "A full disk",
        "train --data-dir cifar-10-batches-bin --batch-size 10 --max-steps 2 --out disk/run",
        prepare=_cifar10,
        mount="size=1m",
    ),
    Example(
        "Training that diverges",
        "train --data-dir cifar-10-batches-bin --batch-size 10 --max-steps 2 --lr 1e30 --out run",
        prepare=_cifar10,
    ),
    Example("Weights that are damaged", "evaluate run", prepare=_run_cut_short),
    Example("Weights of another program", "evaluate resnet.safetensors", prepare=_other_weights),
    Example("A file that is no image", "predict cat.jpg --run run", prepare=_run_and_text),
    Example("An extra that is not installed", "predict cat.jpg", prepare=_no_pillow),
    Example("A picture that is not called one", "explain cat.jpg --out explained.jpg"),
    Example("An image size that does not fit the network", "info --config tiny-patch16 --image-size 100"),
    Example(
        "Channels first",
        python="""
            import numpy as np
            from conformer import conformer_cifar_nano
            from minigrad import Tensor

            conformer_cifar_nano()(Tensor(np.zeros((1, 3, 32, 32))))
        """,
    ),
    Example(
        "Channels that do not fit",
        python="""
            import numpy as np
            from minigrad import Tensor, functional as F

            F.conv2d(Tensor(np.zeros((1, 8, 8, 3))), Tensor(np.zeros((16, 16, 3, 3))))
        """,
    ),
    Example(
        "Changing what a gradient needs",
        python="""
            from minigrad import Tensor, no_grad

            x = Tensor([1.0, 2.0], requires_grad=True)
            y = (x * x).sum()
            with no_grad():
                x[0] = 5.0
            y.backward()
        """,
    ),
    Example(
        "Walking a graph twice",
        python="""
            from minigrad import Tensor

            x = Tensor([1.0, 2.0], requires_grad=True)
            y = (x * x).sum()
            y.backward()
            y.backward()
        """,
    ),
    Example(
        "A gradient of something that is not a number",
        python="""
            from minigrad import Tensor

            (Tensor([1.0, 2.0], requires_grad=True) * 2).backward()
        """,
    ),
]


def _environment(folder: Path) -> dict[str, str]:
    """No data anywhere but in the folder, no network, and the package of this checkout."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV") if name in os.environ}
    paths = [str(folder / "without"), str(ROOT)]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return {**kept, **nowhere, "PYTHONPATH": os.pathsep.join(paths), "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder), "COLUMNS": "120"}


def _execute(arguments: list[str], folder: Path, mount: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conformer", *arguments]
    if mount:
        script = f'mount -t tmpfs -o {mount} none disk && exec "$@"'
        (folder / "disk").mkdir(exist_ok=True)
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *command]
    return subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, text=True)


def can_mount() -> bool:
    """Whether this system lets us make file systems of our own."""
    try:
        script = "mount -t tmpfs none /tmp"
        return subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def section(example: Example) -> str:
    """Run an example; its part of the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        example.prepare(folder)
        if example.command:
            done = _execute(example.command.split(), folder, example.mount)
            said = f"$ conformer {example.command}\n{done.stderr.strip()}\n$ echo $?\n{done.returncode}"
            block = f"```console\n{said}\n```"
        else:
            code = "\n".join(line.removeprefix(" " * 12) for line in example.python.strip("\n").rstrip().splitlines())
            done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=_environment(folder), capture_output=True, text=True)
            block = f"```python\n{code}\n```\n\n```text\n{done.stderr.strip().splitlines()[-1]}\n```"
        assert done.returncode != 0, f"{example.title}: nothing went wrong"
        if example.command:
            assert "Traceback" not in done.stderr, f"{example.title}: {done.stderr}"
        block = re.sub(r"\S*python\S* -m conformer", "conformer", block)  # where it is not installed, it says how to start it all the same
        return f"### {example.title}\n\n{re.sub(re.escape(str(folder)), '/home/ada', block)}\n"


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description="Write docs/errors.md by running what it shows.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page would be another")
    check = parser.parse_args().check
    if not can_mount():
        print("errors.py: two examples need a file system of their own, which this system does not allow (unshare, mount)", file=sys.stderr)
        return 1
    commands = "\n".join(section(example) for example in EXAMPLES if example.command)
    python = "\n".join(section(example) for example in EXAMPLES if example.python)
    page = f"{START}\n## On the command line\n\n{commands}\n## In Python\n\n{python}"
    if check:
        return int(PAGE.read_text(encoding="utf-8") != page)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
