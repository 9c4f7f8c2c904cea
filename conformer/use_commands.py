"""The commands that use what was trained: `evaluate`, `predict`, `explain` and `report`; and `info`, the network in numbers.

Read before: `conformer/cli.py`, the options. Read next: `conformer/weights.py`, what is read of a run.
"""

from __future__ import annotations

import argparse
import glob
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conformer import data, devices
from conformer.augment import normalize
from conformer.baselines import label
from conformer.config import named_config
from conformer.evaluate import TTA, Predictions, by_head, evaluate, predict, titles
from conformer.explain import attention_rollout, class_activation_maps, token_map
from conformer.info import describe
from conformer.mistakes import EXTRAS, Mistake, complain, drawing, say_pins, sentence, told
from conformer.model import Conformer
from conformer.options import TrainConfig
from conformer.run_checks import other_images
from conformer.run_folder import read_config
from conformer.run_log import read_log
from conformer.text import columns, printable
from conformer.weights import About, load_weights, weights_file
from minigrad import functional as F
from minigrad import nn
from minigrad.backend import cuda
from minigrad.modes import no_grad
from minigrad.tensor import Tensor

__all__ = ["measure", "run_evaluate", "run_explain", "run_info", "run_predict", "run_report"]


def run_evaluate(options: argparse.Namespace) -> None:
    """Print three accuracies, or that of one head, and each class; draw which classes are taken for which."""
    device = _device(options)
    with told(1):
        picture = options.picture or weights_file(options.run).with_name("confusion.png")
        model, about = load_weights(options.run)
        saved = _options_of(options.run)
        tta = getattr(options, "tta", None) or _tta_of(saved)
        dataset = _dataset_of(about, options.data_dir, saved)
    predictions = evaluate(model.to(device=device), dataset.test, dataset, options.batch_size, tta)
    title = f"{printable(label(about.config, about.kind))} after {about.step:,} steps, on {len(dataset.test):,} test images of {dataset.name}"
    print(f"{title} from {printable(dataset.source)}, on {devices.describe(device)}{', with mirror images' * (tta == 'mirror')}")
    _print_accuracies(predictions, [printable(name) for name in dataset.classes], tta)
    try:
        with drawing("the picture of the confusion matrix"):
            from conformer.plots import save_confusion_matrix
        save_confusion_matrix(picture, predictions.confusion_matrix(), dataset.classes, title)
    except (Mistake, OSError) as error:
        said = str(error) if isinstance(error, Mistake) else f"the picture is not drawn: {sentence(error)}"
        if options.picture is not None:
            raise Mistake(said, 1) from error
        complain(said)  # nobody asked for it; the figures, which were asked for, are printed
    else:
        print(f"\nwhich classes are taken for which: {printable(picture)}")


def _print_accuracies(predictions: Predictions, classes: list[str], tta: str) -> None:
    """Print how good each head is, and their sum: over all images, and class by class."""
    accuracies = predictions.accuracies.by_head()
    named, losses, errors = titles(accuracies), predictions.cross_entropies(), predictions.calibration_errors()
    print(f"  {'':<17} accuracy  cross entropy  calibration error")
    for head, share in accuracies.items():
        print(f"  {named[head]:<17} {100 * share:6.2f} %  {losses[head]:13.3f}  {100 * errors[head]:15.1f} %")
    if len(named) > 1:
        print(f"  loss, as training shows it of test images: {predictions.loss:.3f}, the mean of both heads' cross entropies")
    percentages = "the percentages that `predict` prints" if tta == "none" else "the percentages of these answers"
    print(f"  calibration error: how far {percentages} are from shares of right answers, on average")
    of_classes = zip(classes, *predictions.class_accuracies().values(), strict=True)
    rows = [[name, *(f"{100 * share:.1f}" for share in shares)] for name, *shares in of_classes]
    print("\n" + columns([["accuracy in percent", *named.values()], *rows]))


def run_predict(options: argparse.Namespace) -> None:
    """Print the likeliest classes of each image, by both heads and by their sum, or by the only head."""
    model, about, images = _load_images(options)
    classes = [printable(name) for name in about.classes]
    batches = (normalize(images[start : start + 100], about.mean, about.std) for start in range(0, len(images), 100))
    logits = by_head(predict(model, batches))  # (N, K) each
    named = titles(logits)
    with no_grad():
        shares = {named[head]: F.softmax(Tensor(array)).numpy() for head, array in logits.items()}
    for number, path in enumerate(options.images):
        table = [[name, *_likeliest(share[number], classes, options.top)] for name, share in shares.items()]
        widths = [max(map(len, column)) for column in table]
        lines = ("    ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in zip(*table, strict=True))
        print(printable(path), *(f"  {line}" for line in lines), sep="\n")
    if len(named) > 1:
        print(f"({named['sum']}: the softmax of both heads' added logits, so where the heads agree it is surer than either)")


def _likeliest(shares: np.ndarray, classes: list[str], count: int) -> list[str]:
    """The classes (K,) with the largest shares, and these, line by line."""
    top = np.argsort(-shares, kind="stable")[:count]
    width = max(len(classes[place]) for place in top)
    return [f"{classes[place]:<{width}} {100 * shares[place]:5.1f} %" for place in top]


def run_explain(options: argparse.Namespace) -> None:
    """Draw where both branches look for the answer of each image."""
    model, about, images = _load_images(options)
    if not isinstance(model, Conformer):
        raise Mistake(f"explain shows both branches of a Conformer, and this is the {about.kind} branch alone; give the run of a Conformer", 1)
    with drawing("the picture"):
        from conformer.plots import save_explanation
    with told(1, OSError):
        if options.out.exists() and any(options.out.samefile(image) for image in options.images):
            raise Mistake(f"--out {printable(options.out)} is one of the images; give the picture another name", 2)
    batch = Tensor(normalize(images, about.mean, about.std)).to(device=next(model.parameters()).device)
    with no_grad():
        named = {name: tensor.to(device="cpu") for name, tensor in model.eval().intermediates(batch).items()}
    model.to(device="cpu")  # what is read off a few images takes no time
    answers = (named["conv_cls_head"].numpy() + named["trans_cls_head"].numpy()).argmax(axis=1)  # (N,)
    maps, shares = class_activation_maps(model, named, answers), token_map(named, attention_rollout(model, named))
    with told(1):
        names, taken = [path.name for path in options.images], [about.classes[answer] for answer in answers]
        picture = save_explanation(options.out, images, names, taken, maps, shares)
    print(printable(picture))


def run_report(options: argparse.Namespace) -> None:
    """Draw the curves and make the page of a run again, as far as it has come."""
    run, device = options.run, _device(options)
    with drawing("a report"):
        from conformer.plots import save_curves
        from conformer.report import write_report
    with told(1):
        if not (run / "metrics.jsonl").is_file():
            raise FileNotFoundError(f"there is no run in {run} (no metrics.jsonl); give the folder of a run")
        dataset = predictions = None
        if weights_file(run).is_file():
            dataset, predictions = measure(run, options.data_dir, device)
        save_curves(run, read_log(run))
        page = write_report(run, dataset, predictions)
    print(printable(page))


def run_info(options: argparse.Namespace) -> None:
    """Print the table of a network's blocks, and what there is here to run it on."""
    with told(2, ValueError):
        config, network = (getattr(options, name, getattr(TrainConfig, name)) for name in ("config", "network"))
        print(describe(named_config(config), options.image_size, network))
    print(f"\nhere: {devices.describe('cpu')}; {cuda.availability().sentence}")
    say_pins()


def _device(options: argparse.Namespace) -> str:
    """The device that was asked for."""
    with told(2, devices.DeviceError):
        return devices.choose(getattr(options, "device", TrainConfig.device))


def _load_images(options: argparse.Namespace) -> tuple[nn.Module, About, np.ndarray]:
    """The network that was asked for, and the images as it takes them: uint8 (N, H, W, 3), or (N, H, W, 1) for one of grey images."""
    try:
        from conformer.image_files import read_image
    except ImportError as error:
        raise Mistake(f"reading image files needs pillow ({EXTRAS})", 1) from error
    device = _device(options)
    if os.name == "nt":  # whose shells hand patterns on as they are
        options.images = [match for path in options.images for match in _matches(path)]
    with told(1):
        run = options.run or _newest_run()
        model, about = load_weights(run)
        channels = len(about.mean)
        if channels not in (1, 3):
            raise ValueError(f"the network takes images of {channels} channels, and those of image files have 3, or 1 of grey")
        images = np.stack([read_image(path, about.image_size, channels) for path in options.images])
    if options.run is None:
        print(f"by {printable(label(about.config, about.kind))} in {printable(run)}, trained on {printable(about.dataset)}")
    return model.to(device=device), about, images


def _matches(path: Path) -> list[Path]:
    """The files that a path stands for as a pattern, in which * and ? alone are for others; itself if there are none."""
    return [Path(name) for name in sorted(glob.glob(str(path).replace("[", "[[]")))] or [path]


def _newest_run() -> Path:
    """The run in runs/ whose weights were written last."""
    found = sorted(Path("runs").glob("*/last.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise Mistake("there is no trained network in runs: give one with --run, or make one with `conformer train`", 1)
    return found[-1].parent


def measure(run: Path, data_dir: Path | None, device: str) -> tuple[data.Dataset, Predictions]:
    """The data set of a run, and what its last weights come to on the images that it was measured by; raises ValueError where those are others."""
    model, about = load_weights(run)
    saved = read_config(run)
    tta = _tta_of(saved)
    dataset = data.hold_out(_dataset_of(about, data_dir, saved), about.held_out)
    if read_log(run).header.get("measured_by", found := data.checksum("measured by", dataset.test)) != found:  # older logs do not say
        raise other_images(run, "measured by", dataset)
    return dataset, evaluate(model.to(device=devices.choose(device)), dataset.test, dataset, tta=tta)


def _dataset_of(about: About, data_dir: Path | None, saved: dict[str, Any]) -> data.Dataset:
    """The data set that weights were trained on: in --data-dir, or else where the run with the options `saved` had it."""
    if data_dir is not None:
        dataset = data.load(about.dataset, data_dir)
    else:
        before = saved.get("data_dir")
        with data.place_of(about.dataset, Path(str(before)) if before else None) as place:
            dataset = data.load(about.dataset, place)
    if dataset.classes != about.classes or dataset.test.images.shape[1:3] != about.image_size:
        raise ValueError(f"the weights are for other classes or images of another size than {dataset.name} in {dataset.source} has")
    return replace(dataset, mean=about.mean, std=about.std)  # a run may have trained with others than are usual


def _options_of(run: Path) -> dict[str, Any]:
    """The options of the run that weights are from; none where the file lies alone."""
    config = weights_file(run).with_name("config.json")
    return read_config(config.parent) if config.is_file() else {}


def _tta_of(saved: dict[str, Any]) -> str:
    """The test-time augmentation that a run was measured with: without it, it would have another accuracy."""
    if (tta := saved.get("tta", TrainConfig.tta)) not in TTA:
        raise ValueError(f"config.json of the run says that tta is {tta!r}; it must be one of {', '.join(TTA)}")
    return tta
