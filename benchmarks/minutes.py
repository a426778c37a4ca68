"""The validation Dice that the minutes bring: this repository, the plain tutorial loop, and a U-Net of
segmentation_models.pytorch with ImageNet's weights, one after the other on this machine.

    python -m benchmarks.minutes                                     # on the rendered sample set
    python -m benchmarks.minutes --RUNS="--TIME_LIMIT 1, --NUM_EPOCHS 3" --SEEDS 0 1 2
    python -m benchmarks.minutes --RIVALS plain smp --CURVE curve.png  # beside both (pip install
                                                                       # segmentation-models-pytorch)

Each run of train.py has a process of its own. A rival trains for as many seconds as the run with the same place in
RUNS took; validation, start and pictures don't count.
"""

import math
import shlex
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import albumentations as A
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import common
from dataset import CarvanaDataset, make_transforms
from losses import as_targets
from model import Encoder
from prepare_data import sample_if_empty
from support.device import autocast, choose_device, choose_precision
from support.options import ConstantParser
from support.pairs import find_pairs
from support.pretrained import load_pretrained
from support.reading import Reading
from utils import check_accuracy, count_overlap, image_scores

LITE0 = "tf_efficientnet_lite0"  # the encoder of smp, too

TRAIN_IMG_DIR = "data/train_images/"  # images to train on
TRAIN_MASK_DIR = "data/train_masks/"  # their masks
VAL_IMG_DIR = "data/val_images/"  # validation images
VAL_MASK_DIR = "data/val_masks/"  # their masks
IMAGE_HEIGHT = 160  # pixels
IMAGE_WIDTH = 240  # pixels
RUNS = "--TIME_LIMIT 0.5, --TIME_LIMIT 1, --TIME_LIMIT 2"  # options of train.py, a run for each part between commas
ENCODERS = ["", LITE0]  # of train.py, all of RUNS for each; "" is the U-Net of the paper
RIVALS = ["plain"]  # and smp; none leaves them out
SEEDS = [0]  # all of these for each seed
DEVICE = "auto"  # cuda, mps or cpu
OUT = ""  # a file for the table, in Markdown
CURVE = ""  # a file for a picture of it


class Point(NamedTuple):
    """What a network came to, with the seconds that it took."""

    network: str
    options: str
    seed: int
    training: float
    command: float  # the whole of it; 0 if there is none
    first_step: float  # from the start until the first step is done
    dice: float


def our_run(o: Any, encoder: str, options: str, seed: int) -> Point:
    """A run of train.py, counted from the start of its process."""
    with tempfile.TemporaryDirectory() as folder:
        argv = common.constants(OUT_DIR=folder, CACHE_DIR=f"{folder}/cache", DEVICE=o.DEVICE, SEED=seed)
        argv += common.constants(IMAGE_HEIGHT=o.IMAGE_HEIGHT, IMAGE_WIDTH=o.IMAGE_WIDTH, FULL_SIZE_SCORES=False)
        argv += common.folder_constants(o.TRAIN_IMG_DIR, o.TRAIN_MASK_DIR, o.VAL_IMG_DIR, o.VAL_MASK_DIR)
        argv += ["--ENCODER", encoder, *shlex.split(options)]
        run = common.apart(common.watched_run, argv, time.time())
    training, dice = run.curve[-1][0], max(dice for _, dice in run.curve)
    name = f"this, {encoder}" if encoder else "this repository"
    return Point(name, options, seed, training, run.end, run.first_step, dice)


def plain_curve(o: Any, seconds: float, seed: int) -> list[tuple[float, float]]:
    """Seconds and Dice after each epoch of the tutorial's loop, in its batches of 16, until the time is over."""
    device, size = choose_device(o.DEVICE), (o.IMAGE_HEIGHT, o.IMAGE_WIDTH)
    validation = DataLoader(CarvanaDataset(o.VAL_IMG_DIR, o.VAL_MASK_DIR, make_transforms()[1], Reading(size)), 16)
    side, curve, spent = common.Side(device, [64, 128, 256, 512], plain=True, seed=seed), [], 0.0
    loader = common.plain_loader(find_pairs(o.TRAIN_IMG_DIR, o.TRAIN_MASK_DIR), 16, size)
    while spent < seconds:
        spent += common.seconds(lambda: side.epoch(loader))
        curve.append((spent, check_accuracy(validation, side.model, device)["dice"]))
    return curve


def smp_dice(o: Any, seconds: float, seed: int) -> tuple[float, float]:
    """Seconds and Dice of smp's U-Net with a pretrained lite0: batches of 4, AdamW, BCE and Dice, a warm-up and a
    cosine over the time. It takes sizes in multiples of 32 alone, and is scored at the true size."""
    import segmentation_models_pytorch as smp  # only this needs it

    torch.manual_seed(seed)
    device = choose_device(o.DEVICE)
    precision = choose_precision("auto", device)
    size = o.IMAGE_HEIGHT, o.IMAGE_WIDTH
    padded = tuple(-(-side // 32) * 32 for side in size)
    normal = A.Normalize(), *make_transforms()[1].transforms
    flips = A.HorizontalFlip(), A.RandomBrightnessContrast(0.3, 0.3, p=1)
    train_set = CarvanaDataset(o.TRAIN_IMG_DIR, o.TRAIN_MASK_DIR, A.Compose([*flips, *normal]), Reading(padded))
    images = CarvanaDataset(o.VAL_IMG_DIR, o.VAL_MASK_DIR, A.Compose(normal), Reading(padded))
    targets = CarvanaDataset(o.VAL_IMG_DIR, o.VAL_MASK_DIR, A.Compose(normal), Reading(size))
    with tempfile.TemporaryDirectory() as folder:
        for data in (train_set, images, targets):
            data.use_cache(folder)
        network = smp.Unet(f"tu-{LITE0}", encoder_weights=None)
        encoder = Encoder(LITE0)
        load_pretrained(encoder, LITE0)
        network.encoder.model.load_state_dict(encoder.network.state_dict())
        network.to(device, memory_format=torch.channels_last)
        optimizer, dice_loss = torch.optim.AdamW(network.parameters(), 1e-3), smp.losses.DiceLoss("binary")
        began = time.perf_counter()
        while (share := (time.perf_counter() - began) / seconds) < 1:
            for batch, masks in DataLoader(train_set, 4, shuffle=True, drop_last=True):
                share = min(1, (time.perf_counter() - began) / seconds)
                warm, fall = share / 0.1, 0.5 + 0.5 * math.cos(math.pi * (share - 0.1) / 0.9)
                optimizer.param_groups[0]["lr"] = 1e-3 * (warm if share < 0.1 else fall)
                batch, masks = batch.to(device, memory_format=torch.channels_last), as_targets(masks.to(device))
                with autocast(device, precision):
                    logits = network(batch)
                loss = F.binary_cross_entropy_with_logits(logits.float(), masks) + dice_loss(logits.float(), masks)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if share == 1:
                    break
        spent = time.perf_counter() - began
        network.eval()
        return spent, sum(
            score(network, images[index], targets[index], precision) for index in range(len(images))
        ) / len(images)


def score(network: nn.Module, item: tuple, truth: tuple, precision: torch.dtype) -> float:
    """Dice of an image (3, h, w) whose mask is given at another size, (H, W)."""
    device = next(network.parameters()).device
    with torch.no_grad(), autocast(device, precision):
        logits = network(item[0].unsqueeze(0).to(device))
    logits = F.interpolate(logits.float(), truth[1].shape, mode="bilinear", align_corners=False)
    return image_scores(count_overlap(logits[:, 0] > 0, truth[1].unsqueeze(0).to(device) > 0))["dice"].item()


def measure(o: Any) -> Iterator[Point]:
    """All points, as they come."""
    for seed in o.SEEDS:
        seconds: dict[str, float] = {}  # of the first network's training, by options
        for encoder in o.ENCODERS:
            for options in map(str.strip, o.RUNS.split(",")):
                point = our_run(o, encoder, options, seed)
                seconds.setdefault(options, point.training)
                yield point
        if "smp" in o.RIVALS:
            for limit in seconds.values():
                spent, dice = common.apart(smp_dice, o, limit, seed)
                yield Point(f"smp, {LITE0}", f"{limit:.0f} seconds", seed, spent, 0, 0, dice)
        if "plain" in o.RIVALS:
            for epoch, (spent, dice) in enumerate(common.apart(plain_curve, o, max(seconds.values()), seed), 1):
                yield Point("plain loop", f"epoch {epoch}", seed, spent, 0, 0, dice)


def draw(points: list[Point], path: str) -> None:
    """Draw Dice over seconds of training, a colour for each network: a dot for each seed, and their mean."""
    from matplotlib.figure import Figure  # only this needs it
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for network in dict.fromkeys(point.network for point in points):
        runs: dict[int, list[tuple[float, float]]] = {}
        for point in (point for point in points if point.network == network):
            runs.setdefault(point.seed, []).append((point.training, point.dice))
        by_place = zip_longest(*runs.values())  # of which some seeds may have fewer
        means = [np.mean([run for run in place if run], axis=0) for place in by_place]
        (line,) = axes.plot(*np.transpose(means), label=network)
        axes.plot(*zip(*chain(*runs.values()), strict=True), "o", markersize=4, color=line.get_color())
    axes.set(xlabel="seconds of training", ylabel="validation Dice", xscale="log", yscale="logit")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(ticks := (0.3, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99), map(str, ticks))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    figure.savefig(path, dpi=110)


def table(o: Any, points: list[Point]) -> Iterator[str]:
    """The lines of the table; `points` gets what they show."""
    device = choose_device(o.DEVICE)
    yield f"{common.describe_machine(device)}; {o.IMAGE_WIDTH}x{o.IMAGE_HEIGHT}\n"
    yield from common.table_head(
        "network", "options", "seed", "seconds of training", "whole command", "until the first step", "Dice"
    )
    for point in measure(o):
        points.append(point)
        whole = [f"{value:.0f}" if value else "" for value in (point.command, point.first_step)]
        yield common.table_row(*point[:3], f"{point.training:.0f}", *whole, f"{point.dice:.4f}")


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and write it into OUT and its picture into CURVE."""
    o = ConstantParser(globals()).parse_args(argv)
    folders = o.TRAIN_IMG_DIR, o.TRAIN_MASK_DIR, o.VAL_IMG_DIR, o.VAL_MASK_DIR
    o.TRAIN_IMG_DIR, o.TRAIN_MASK_DIR, o.VAL_IMG_DIR, o.VAL_MASK_DIR = sample_if_empty(folders)
    points: list[Point] = []
    common.tell(table(o, points), o.OUT)
    if o.CURVE:
        draw(points, o.CURVE)


if __name__ == "__main__":
    common.run(main)
