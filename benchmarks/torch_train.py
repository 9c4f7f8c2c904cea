"""The anchor for every time and accuracy we report: a CIFAR Conformer trained in plain PyTorch, as a PyTorch user would write it.

Same network (`torch_model.py`), schedule and augmentation as `python -m conformer train`, on the CPU, channels_last. Recipe: AdamW 2e-3, batch 128,
weight decay 0.05 (none on 1-D tensors, biases and the class token), warm-up over a tenth of the steps then cosine to 0, label smoothing 0.1, gradient
norm clipped to 1, reflect-padded shifts of 4 and flips, the mean of both heads' losses; accuracy by the sum of the heads.

    env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python -m benchmarks.torch_train --data-dir cifar-10-batches-bin --epochs 20

Prints JSON lines: the setting, the progress every hundred steps, one line per epoch, and the time of a step at the end. The time of a step covers
everything from taking the batch to the optimiser's update; the median leaves out the first ten steps.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.torch_model import TorchConformer, loss_of, optimizer_of
from conformer.config import named_config

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1)
BATCH, LEARNING_RATE, WEIGHT_DECAY, SHIFT = 128, 2e-3, 0.05, 4


def read(files: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (n, 3, 32, 32) and labels (n,) of files in the binary layout: one label byte, then 3072 of the image."""
    records = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32)), torch.from_numpy(records[:, 0].astype(np.int64))


def normalised(images: torch.Tensor) -> torch.Tensor:
    """float32 in channels_last memory, by CIFAR-10's mean and standard deviation."""
    return ((images.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def augmented(padded: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random 32x32 window of each padded image, mirrored for half of them: (B, 3, 40, 40) -> (B, 3, 32, 32), uint8."""
    count = len(padded)
    top, left = (torch.randint(0, 2 * SHIFT + 1, (count, 1, 1, 1), generator=generator) for _ in range(2))
    flip = torch.randint(0, 2, (count, 1, 1, 1), generator=generator).bool()
    offsets = torch.arange(32)
    columns = left + torch.where(flip, 31 - offsets, offsets)  # (B, 1, 1, 32)
    rows = top + offsets.view(1, 1, 32, 1)  # (B, 1, 32, 1)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1), rows, columns]


def schedule(step: int, steps: int) -> float:
    """The factor on the learning rate at a step: a line up to 1 over a tenth of the steps, then half a cosine to 0."""
    warmup = steps // 10
    if step <= warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Percent right by the CNN head, the transformer head and the sum of both."""
    model.eval()
    right = np.zeros(3)
    for start in range(0, len(images), 500):
        conv, trans = model(normalised(images[start : start + 500]))
        right += [(head.argmax(1) == labels[start : start + 500]).sum().item() for head in (conv, trans, conv + trans)]
    return dict(zip(("conv", "trans", "sum"), (round(100 * r / len(images), 2) for r in right), strict=True))


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the extracted folder with data_batch_*.bin, or its parent")
    parser.add_argument("--config", default="cifar-nano")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--max-steps", type=int, help="stop after this many steps and test; the schedule stays that of --epochs")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--no-test", action="store_true", help="measure steps alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    batch_size = options.batch_size

    folder = options.data_dir if (options.data_dir / "test_batch.bin").exists() else options.data_dir / "cifar-10-batches-bin"
    if not (folder / "test_batch.bin").exists():
        parser.error(f"no test_batch.bin in {options.data_dir} or its cifar-10-batches-bin")
    images, labels = read(sorted(folder.glob("data_batch_*.bin")))
    test_images, test_labels = read([folder / "test_batch.bin"])
    padded = torch.cat([F.pad(part.float(), (SHIFT,) * 4, mode="reflect").byte() for part in images.split(5000)])  # (n, 3, 40, 40)

    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    model = TorchConformer(named_config(options.config)).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(model, LEARNING_RATE, WEIGHT_DECAY)
    per_epoch = len(images) // batch_size
    steps = options.epochs * per_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
    run = {"torch": torch.__version__, "config": options.config, "machine": platform.machine(), "threads": torch.get_num_threads()}
    say(**run, seed=options.seed, parameters=sum(p.numel() for p in model.parameters()), steps=steps)

    times: list[float] = []
    began = time.perf_counter()
    for epoch in range(1, options.epochs + 1):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, per_epoch * batch_size, batch_size):
            step_began = time.perf_counter()
            chosen = order[start : start + batch_size]
            x, y = normalised(augmented(padded[chosen], generator)), labels[chosen]
            loss = loss_of(model(x), y, 0.1)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            times.append(time.perf_counter() - step_began)
            if len(times) % 100 == 0 or len(times) == options.max_steps:
                recent = round(1e3 * statistics.median(times[-100:]), 1)
                say(step=len(times), loss=round(loss.item(), 4), gradient_norm=round(norm.item(), 3), ms_per_step=recent)
            if len(times) == options.max_steps:
                break
        minutes = (time.perf_counter() - began) / 60
        tested = {} if options.no_test else {"test_accuracy": accuracy(model, test_images, test_labels)}
        say(epoch=epoch, steps=len(times), minutes=round(minutes, 2), **tested)
        if len(times) == options.max_steps:
            break
    settled = times[10:] or times
    say(ms_per_step=round(1e3 * statistics.median(settled), 1), images_per_second=round(batch_size / statistics.mean(settled)))


if __name__ == "__main__":
    main()
