"""What each part of train.py's recipe is worth: the optimizer, the schedule, the loss, the augmentation.

One change at a time, over several seeds, validated on other cars.

    python -m benchmarks.study                         # a quarter of the FEATURES: an hour on two cores
    python -m benchmarks.study --ONLY boundar --SEEDS 0   # the recipe and the changes with this word
    python -m benchmarks.study --FEATURES 64 128 256 512 --TRAIN_CARS 0 --NUM_EPOCHS 3   # all images, on a GPU

Each run is train.py's own `main` in a process of its own, with one thing changed. It needs Carvana's images.
Each seed draws its own training and validation cars, which all changes share, so that their differences say more
than their values.
"""

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import albumentations as A
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import train
from benchmarks import common
from losses import BCEDiceLoss
from model import UNET
from prepare_data import FOLDERS, by_group
from support.device import choose_device
from support.errors import BadInput
from support.options import ConstantParser
from support.pairs import find_pairs

IMG_DIR = "data/train_images/"  # images of the cars to draw from
MASK_DIR = "data/train_masks/"  # their masks
TRAIN_CARS = 6  # cars of the training set; 0 takes all that aren't in the validation set
VAL_CARS = 12  # cars of the validation set
SEEDS = [0, 1, 2]  # a run of each change for each
IMAGE_HEIGHT = 160  # pixels
IMAGE_WIDTH = 240  # pixels
FEATURES = [16, 32, 64, 128]  # channels of each level: a quarter of train.py's
NUM_EPOCHS = 4  # passes over the training images
ONLY = ""  # a part of the names of the changes to try; what none has lists them all
OUT = ""  # a file for the table, in Markdown
RECIPE = "the recipe"  # the name of no change


class CrossEntropyAlone(BCEDiceLoss):
    """The training loss without its Dice term."""

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(
            logits, targets, self.pixel_weights(torch.cat((1 - targets, targets), 1))
        )


def adamw(model: nn.Module, learning_rate: float, by_layer: bool = True) -> torch.optim.Optimizer:
    """AdamW for all weights, with `learning_rate` for each or, `by_layer`, divided by sqrt(inputs of a unit)."""
    layers = [module for module in model.modules() if list(module.parameters(recurse=False))]
    divisors = [math.sqrt(layer.weight[0].numel()) if by_layer else 1 for layer in layers]
    groups = zip((layer.parameters(recurse=False) for layer in layers), divisors, strict=True)
    return torch.optim.AdamW([{"params": weights, "lr": learning_rate / divisor} for weights, divisor in groups])


def augmentation(*added: A.BasicTransform, without: Sequence[str] = ()) -> dict[str, Any]:
    """train.py's transforms without some, and with others before what makes a tensor of an image."""

    def make_transforms() -> tuple[A.Compose, A.Compose]:
        training, validation = original()
        kept = [transform for transform in training.transforms if type(transform).__name__ not in without]
        to_tensor = len(validation.transforms)
        return A.Compose([*kept[:-to_tensor], *added, *kept[-to_tensor:]]), validation

    original = train.make_transforms
    return {"make_transforms": make_transforms}


def averaged_weights() -> dict[str, Any]:
    """train.py's functions, with a moving average of the weights kept, over some ten steps, and validated."""

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
    """train.py's functions, with BatchNorm's statistics measured before each validation, on the training images."""

    def train_fn(loader: Any, model: nn.Module, *rest: Any, **options: Any) -> float:
        loss = original(loader, model, *rest, **options)
        epoch = loader.batch_sampler.epoch
        update_bn(loader, model, next(model.parameters()).device)
        loader.batch_sampler.epoch = epoch  # that pass was none
        return loss

    original = train.train_fn
    return {"train_fn": train_fn}


def network(change: Callable[[nn.Module], None]) -> Callable[..., nn.Module]:
    """The network, with `change` called on each of its modules."""
    return lambda **arguments: UNET(**arguments).apply(change)


def initialise(module: nn.Module) -> None:
    """He's initialisation; PyTorch's own has weights of a sixth of that variance."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def slow_down(module: nn.Module) -> None:
    """BatchNorm's averages are taken over some 33 steps instead of 10."""
    if isinstance(module, nn.BatchNorm2d):
        module.momentum = 0.03


AUGMENTATION = ["HorizontalFlip", "Affine", "RandomBrightnessContrast", "CoarseDropout"]
# What is changed: options of train.py, and what takes the place of its names.
CHANGES: dict[str, tuple[list[str], dict[str, Any]]] = {
    RECIPE: ([], {}),
    "AdamW instead of Muon, a rate for each layer": (
        common.constants(LEARNING_RATE=0.006),
        {"make_optimizer": adamw},
    ),
    "AdamW instead of Muon, one rate": (
        common.constants(LEARNING_RATE=0.001),
        {"make_optimizer": partial(adamw, by_layer=False)},
    ),
    "all steps at full size": (common.constants(PROGRESSIVE_RESIZING=0), {}),
    "a quarter of the steps at half size": (common.constants(PROGRESSIVE_RESIZING=0.25), {}),
    "a learning rate that doesn't fall": ([], {"warmup_cosine": lambda progress: min(1, 0.04 + 5 * progress)}),
    "averaged weights": ([], averaged_weights()),
    "slower BatchNorm statistics": ([], {"UNET": network(slow_down)}),
    "BatchNorm statistics measured before each validation": ([], measured_statistics()),
    "He's initialisation": ([], {"UNET": network(initialise)}),
    "no more weight near boundaries": ([], {"BCEDiceLoss": partial(BCEDiceLoss, boundary_weight=0)}),
    "no Dice in the loss": ([], {"BCEDiceLoss": CrossEntropyAlone}),
    "no augmentation": ([], augmentation(without=AUGMENTATION)),
    **{f"no {name}": ([], augmentation(without=[name])) for name in AUGMENTATION},
    "half the learning rate": (common.constants(LEARNING_RATE=train.LEARNING_RATE / 2), {}),
    "twice the learning rate": (common.constants(LEARNING_RATE=train.LEARNING_RATE * 2), {}),
    "batches of 4": (common.constants(MIN_STEPS=24), {}),
    "with InvertImg": ([], augmentation(A.InvertImg(p=0.2))),
    "with HueSaturationValue": ([], augmentation(A.HueSaturationValue(90, 60, 0, p=0.5))),
}


def link_cars(o: Any, seed: int, folder: Path) -> list[str]:
    """Link the images and masks of the cars that `seed` draws into train.py's four folders, in `folder`."""
    cars = by_group(find_pairs(o.IMG_DIR, o.MASK_DIR))
    names = random.Random(seed).sample(sorted(cars), len(cars))
    validation, others = names[: o.VAL_CARS], names[o.VAL_CARS :]
    if not others:
        raise BadInput(o.IMG_DIR, f"{len(cars)} cars, of which VAL_CARS takes {o.VAL_CARS}", "Lower VAL_CARS")
    folders = [folder / name for name in FOLDERS]
    for name in [*others[: o.TRAIN_CARS or None], *validation]:
        for pair in cars[name]:
            for file, target in zip(pair, folders[2:] if name in validation else folders[:2], strict=True):
                target.mkdir(exist_ok=True)
                (target / file.name).symlink_to(file.absolute())
    return [str(folder) for folder in folders]


def run_one(change: str, seed: int, o: Any) -> common.Learning:
    """Train with a change, in a process of its own."""
    options, patches = CHANGES[change]
    for name, value in patches.items():
        setattr(train, name, value)
    with tempfile.TemporaryDirectory() as name:
        argv = common.folder_constants(*link_cars(o, seed, Path(name)))
        argv += common.constants(OUT_DIR=name, CACHE_DIR=f"{name}/cache", SEED=seed, NUM_SAVED_IMAGES=0)
        argv += common.constants(NUM_EPOCHS=o.NUM_EPOCHS)
        argv += common.constants(IMAGE_HEIGHT=o.IMAGE_HEIGHT, IMAGE_WIDTH=o.IMAGE_WIDTH, FEATURES=o.FEATURES)
        return common.watched_run([*argv, *options], time.time())


def table(results: dict[str, list[float]], o: Any) -> Iterator[str]:
    """The Dice of every change and seed in Markdown, with what each change costs or brings."""
    seeds = o.SEEDS[: len(results[RECIPE])]
    yield (
        f"Dice on {o.VAL_CARS} validation cars after {o.NUM_EPOCHS} epochs at {o.IMAGE_WIDTH}x{o.IMAGE_HEIGHT}, "
        f"{o.TRAIN_CARS or 'all other'} training cars, {o.FEATURES} features. "
        f"{common.describe_machine(choose_device('auto'))}."
    )
    yield "The last column: the mean difference from the recipe over the seeds, with its standard error.\n"
    yield from common.table_head("change", *(f"seed {seed}" for seed in seeds), "mean", "against the recipe")
    for change, dice in results.items():
        gains = [own - recipe for own, recipe in zip(dice, results[RECIPE], strict=True)]
        error = f" ± {statistics.stdev(gains) / math.sqrt(len(seeds)):.4f}" if len(seeds) > 1 else ""
        gain = f"{statistics.mean(gains):+.4f}{error}" if change != RECIPE else ""
        yield common.table_row(change, *(f"{value:.4f}" for value in (*dice, statistics.mean(dice))), gain)


def main(argv: list[str] | None = None) -> None:
    """Run every change with every seed, and print the table after each seed."""
    o = ConstantParser(globals()).parse_args(argv)
    if not any(o.ONLY in change for change in CHANGES):
        raise BadInput("ONLY", f"no change has {o.ONLY!r} in its name", f"The changes are: {'; '.join(CHANGES)}")
    results: dict[str, list[float]] = {name: [] for name in CHANGES if name == RECIPE or o.ONLY in name}
    for seed in o.SEEDS:
        for change, dice in results.items():
            curve = common.apart(run_one, change, seed, o).curve
            dice.append(curve[-1][1])
            epochs = " ".join(f"{dice:.4f}" for _, dice in curve)
            print(f"seed {seed}, {change}: {epochs}, {curve[-1][0]:.0f} s", flush=True)
        common.tell(table(results, o), o.OUT)


if __name__ == "__main__":
    common.run(main)
