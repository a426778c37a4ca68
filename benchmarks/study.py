"""Which parts of train.py's recipe earn their place: the optimizer, the schedule, the loss, the augmentation. One
change at a time, over several seeds, on held-out cars.

    python -m benchmarks.study                         # a quarter of the FEATURES: an hour on two cores
    python -m benchmarks.study --ONLY outline --SEEDS 0   # the recipe and the changes with this word
    python -m benchmarks.study --FEATURES 64 128 256 512 --TRAIN_CARS 0 --NUM_EPOCHS 3   # all images, on a GPU

Each run is train.py's own `main` in a process of its own, with one thing changed. It needs Carvana's images.
Each seed draws its own cars to learn from and to score on, which all changes share, so that their differences say
more than their values.
"""

import contextlib
import io
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import albumentations as A
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import train
from benchmarks.speed import Curve, apart, describe_machine
from losses import BCEDiceLoss
from model import UNET
from prepare_data import FOLDERS, by_group
from support.device import choose_device
from support.errors import BadInput, run_script
from support.options import ConstantParser
from support.pairs import find_pairs
from support.signals import exit_on_sigterm

IMG_DIR = "data/train_images/"  # images of the cars to share out
MASK_DIR = "data/train_masks/"  # their masks
TRAIN_CARS = 6  # cars to learn from; 0 takes all that aren't held out
HELD_OUT_CARS = 12  # cars to score on
SEEDS = [0, 1, 2]  # a run of each change for each
IMAGE_HEIGHT = 160  # pixels
IMAGE_WIDTH = 240  # pixels
FEATURES = [16, 32, 64, 128]  # channels of each level: a quarter of train.py's
NUM_EPOCHS = 4  # passes over the training images
ONLY = ""  # a part of the names of the changes to try; what none has lists them all
OUT = ""  # a file for the table, in Markdown


class CrossEntropyAlone(BCEDiceLoss):
    """The training loss without its Dice term."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(
            logits, targets, self.weigh(torch.cat((1 - targets, targets), 1))
        )


def adamw(model: nn.Module, learning_rate: float, by_layer: bool = True) -> torch.optim.Optimizer:
    """AdamW for all weights, with `learning_rate` for each or, `by_layer`, divided by sqrt(inputs of a unit)."""
    layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
    rates = [learning_rate / math.sqrt(layer.weight[0].numel() if by_layer else 1) for layer in layers]
    return torch.optim.AdamW(
        [{"params": layer.parameters(recurse=False), "lr": rate} for layer, rate in zip(layers, rates, strict=True)]
    )


def augmentation(
    *added: A.BasicTransform, without: Sequence[str] = ()
) -> Callable[[], tuple[A.Compose, A.Compose]]:
    """train.py's transforms without some, and with others before what makes a tensor of an image."""

    def make_transforms() -> tuple[A.Compose, A.Compose]:
        training, validation = original()
        kept = [transform for transform in training.transforms if type(transform).__name__ not in without]
        to_tensor = len(validation.transforms)
        return A.Compose([*kept[:-to_tensor], *added, *kept[-to_tensor:]]), validation

    original = train.make_transforms
    return make_transforms


def averaged_weights() -> dict[str, Any]:
    """train.py's functions, with a moving average of the weights kept, over some ten steps, and scored."""

    def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        averages.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True))
        optimizer = original(model, learning_rate)
        optimizer.register_step_post_hook(lambda *_: averages[-1].update_parameters(model))
        return optimizer

    def check_accuracy(loader: Any, _: nn.Module, *rest: Any, **options: Any) -> dict[str, float]:
        return score(loader, averages[-1].module, *rest, **options)

    averages: list[AveragedModel] = []
    original, score = train.make_optimizer, train.check_accuracy
    return {"make_optimizer": make_optimizer, "check_accuracy": check_accuracy}


def measured_statistics() -> dict[str, Any]:
    """train.py's functions, with BatchNorm's statistics measured before each score, on the training images."""

    def train_fn(loader: Any, model: nn.Module, *rest: Any, **options: Any) -> float:
        loss = original(loader, model, *rest, **options)
        epoch = loader.batch_sampler.epoch
        update_bn(loader, model, next(model.parameters()).device)
        loader.batch_sampler.epoch = epoch  # that pass was none
        return loss

    original = train.train_fn
    return {"train_fn": train_fn}


def initialised(**arguments: Any) -> nn.Module:
    """The network with He's initialisation, where PyTorch's own has weights of a sixth of that variance."""
    model = UNET(**arguments)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def slow_statistics(**arguments: Any) -> nn.Module:
    """The network with BatchNorm's averages taken over some 33 steps instead of 10."""
    model = UNET(**arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.03
    return model


# What is changed: options of train.py, and what takes the place of its names.
CHANGES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "the recipe": ([], {}),
    "AdamW instead of Muon, a rate for each layer": (
        ["--LEARNING_RATE", "0.006"],
        {"make_optimizer": adamw},
    ),
    "AdamW instead of Muon, one rate": (
        ["--LEARNING_RATE", "0.001"],
        {"make_optimizer": partial(adamw, by_layer=False)},
    ),
    "all steps at full size": (["--HALF_SIZE_SHARE", "0"], {}),
    "a quarter of the steps at half size": (["--HALF_SIZE_SHARE", "0.25"], {}),
    "a learning rate that doesn't fall": ([], {"warmup_cosine": lambda progress: min(1, 0.04 + 5 * progress)}),
    "averaged weights": ([], averaged_weights()),
    "slower BatchNorm statistics": ([], {"UNET": slow_statistics}),
    "BatchNorm statistics measured before each score": ([], measured_statistics()),
    "He's initialisation": ([], {"UNET": initialised}),
    "no more weight near outlines": ([], {"BCEDiceLoss": partial(BCEDiceLoss, border_weight=0)}),
    "no Dice in the loss": ([], {"BCEDiceLoss": CrossEntropyAlone}),
    "no augmentation": (
        [],
        {
            "make_transforms": augmentation(
                without=["HorizontalFlip", "Affine", "RandomBrightnessContrast", "CoarseDropout"]
            )
        },
    ),
    "no HorizontalFlip": ([], {"make_transforms": augmentation(without=["HorizontalFlip"])}),
    "no Affine": ([], {"make_transforms": augmentation(without=["Affine"])}),
    "no RandomBrightnessContrast": ([], {"make_transforms": augmentation(without=["RandomBrightnessContrast"])}),
    "no CoarseDropout": ([], {"make_transforms": augmentation(without=["CoarseDropout"])}),
    "half the learning rate": (["--LEARNING_RATE", str(train.LEARNING_RATE / 2)], {}),
    "twice the learning rate": (["--LEARNING_RATE", str(train.LEARNING_RATE * 2)], {}),
    "batches of 4": (["--MIN_STEPS", "24"], {}),
    "with InvertImg": ([], {"make_transforms": augmentation(A.InvertImg(p=0.2))}),
    "with HueSaturationValue": (
        [],
        {"make_transforms": augmentation(A.HueSaturationValue(90, 60, 0, p=0.5))},
    ),
}


def share_out(o: Any, seed: int, folder: Path) -> list[str]:
    """Link the images and masks of the cars that `seed` draws into train.py's four folders, in `folder`."""
    cars = by_group(find_pairs(o.IMG_DIR, o.MASK_DIR), o.IMG_DIR)
    names = random.Random(seed).sample(sorted(cars), len(cars))
    held_out, others = names[: o.HELD_OUT_CARS], names[o.HELD_OUT_CARS :]
    if not others:
        finding = f"{len(cars)} cars, of which HELD_OUT_CARS takes {o.HELD_OUT_CARS}"
        raise BadInput(o.IMG_DIR, finding, "Lower HELD_OUT_CARS")
    folders = [folder / name for name in FOLDERS]
    for name in [*others[: o.TRAIN_CARS or None], *held_out]:
        for pair in cars[name]:
            for file, target in zip(pair, folders[2:] if name in held_out else folders[:2], strict=True):
                target.mkdir(exist_ok=True)
                (target / file.name).symlink_to(file.absolute())
    return [str(folder) for folder in folders]


def watched_run(argv: list[str]) -> Curve:
    """Run train.py's own `main` and note how it went."""
    spent, curve = 0.0, []
    train_fn, check_accuracy = train.train_fn, train.check_accuracy

    def timed(*args: Any, **kwargs: Any) -> float:
        nonlocal spent
        began = time.perf_counter()
        loss = train_fn(*args, **kwargs)
        spent += time.perf_counter() - began
        return loss

    def noted(*args: Any, **kwargs: Any) -> dict[str, float]:
        scores = check_accuracy(*args, **kwargs)
        curve.append((spent, scores["dice"]))
        return scores

    train.train_fn, train.check_accuracy = timed, noted
    try:
        train.main(argv)
    finally:
        train.train_fn, train.check_accuracy = train_fn, check_accuracy
    return curve


def run_one(change: str, seed: int, o: Any) -> Curve:
    """Train with a change, and score on the held-out cars after each epoch."""
    options, patches = CHANGES[change]
    for name, value in patches.items():
        setattr(train, name, value)
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folders = share_out(o, seed, Path(name))
        argv = ["--OUT_DIR", name, "--CACHE_DIR", f"{name}/cache", "--SEED", str(seed), "--NUM_PICTURES", "0"]
        for constant, folder in zip(("TRAIN_IMG", "TRAIN_MASK", "VAL_IMG", "VAL_MASK"), folders, strict=True):
            argv += [f"--{constant}_DIR", folder]
        argv += ["--IMAGE_HEIGHT", str(o.IMAGE_HEIGHT), "--IMAGE_WIDTH", str(o.IMAGE_WIDTH)]
        argv += ["--NUM_EPOCHS", str(o.NUM_EPOCHS), "--FEATURES", *map(str, o.FEATURES), *options]
        return watched_run(argv)


def table(results: dict[str, list[float]], o: Any) -> str:
    """The Dice of every change and seed in Markdown, with what each change costs or brings."""
    seeds = o.SEEDS[: len(results["the recipe"])]
    lines = [
        f"Dice on {o.HELD_OUT_CARS} held-out cars after {o.NUM_EPOCHS} epochs at {o.IMAGE_HEIGHT}x{o.IMAGE_WIDTH}, "
        f"{o.TRAIN_CARS or 'all other'} cars to learn from, {o.FEATURES} features. "
        f"{describe_machine(choose_device('auto'))}.",
        "The last column: the mean difference from the recipe over the seeds, with its standard error.",
        "",
        f"| change | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | against the recipe |",
        "|---" * (len(seeds) + 3) + "|",
    ]
    for change, dice in results.items():
        gains = [own - recipe for own, recipe in zip(dice, results["the recipe"], strict=True)]
        error = f" ± {statistics.stdev(gains) / math.sqrt(len(seeds)):.4f}" if len(seeds) > 1 else ""
        gain = f"{statistics.mean(gains):+.4f}{error}" if change != "the recipe" else ""
        values = " | ".join(f"{value:.4f}" for value in dice)
        lines.append(f"| {change} | {values} | {statistics.mean(dice):.4f} | {gain} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run every change with every seed, and print the table after each seed."""
    o = ConstantParser(globals()).parse_args(argv)
    changes = [change for change in CHANGES if change == "the recipe" or o.ONLY in change]
    if not any(o.ONLY in change for change in CHANGES):
        raise BadInput("ONLY", f"no change has {o.ONLY!r} in its name", f"The changes are: {'; '.join(CHANGES)}")
    results: dict[str, list[float]] = {change: [] for change in changes}
    for seed in o.SEEDS:
        for change in changes:
            curve = apart(run_one, change, seed, o)  # nothing is changed in a fresh process
            dice = [dice for _, dice in curve]
            results[change].append(dice[-1])
            print(f"seed {seed}, {change}: {' '.join(f'{d:.4f}' for d in dice)}, {curve[-1][0]:.0f} s", flush=True)
        print(table(results, o), flush=True)
        if o.OUT:
            Path(o.OUT).write_text(table(results, o) + "\n")


if __name__ == "__main__":
    exit_on_sigterm()
    run_script(main)
