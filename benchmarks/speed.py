"""Measure this repository against the plain tutorial loop, in one run on this machine.

The plain loop is that of the tutorial's copies, with the same U-Net: two workers decode both files in full for
every sample; Adam at 1e-4, cross-entropy, float16 on CUDA.

    python -m benchmarks.speed                                             # on the rendered sample set
    python -m benchmarks.speed --IMG_DIR photos/ --MASK_DIR masks/         # on true files
    python -m benchmarks.speed --OUT speed.md                              # also write the table into a file

The two sides take turns after a warm-up; a figure is the median over REPEATS, with the lowest and the highest.
"""

import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import train
from benchmarks import common
from dataset import CarvanaDataset, make_transforms
from losses import BCEDiceLoss
from prepare_data import sample_if_empty
from support.device import choose_device, choose_num_workers
from support.errors import counted
from support.options import ConstantParser
from support.pairs import find_pairs
from support.reading import Pair, Reading
from utils import get_loaders

IMG_DIR = "data/train_images/"  # images to read
MASK_DIR = "data/train_masks/"  # their masks
IMAGE_HEIGHT = 160  # pixels
IMAGE_WIDTH = 240  # pixels
FEATURES = [64, 128, 256, 512]  # channels of each level of the U-Net
ENCODER = ""  # one of timm's networks for the way down; FEATURES are then one for each time it halves an image
BATCH_SIZE = 4  # images per step; 64 and more suit a large GPU
STEPS = 1  # steps per measurement on a synthetic batch; 50 and more suit a GPU
EPOCH_IMAGES = 16  # images of the epoch from disk, repeated if there are fewer; 0 takes all, as suits a GPU
REPEATS = 5  # measurements of each figure
PARTS = ["reading", "step", "epoch"]  # what to measure
DEVICE = "auto"  # cuda, mps or cpu
OUT = ""  # a file for the table, in Markdown


def row(name: str, plain: list[float], ours: list[float], higher_is_better: bool = True) -> str:
    """A row of the table: name, both medians with their range, and how many times ours is better."""
    better, worse = statistics.median(ours), statistics.median(plain)
    if not higher_is_better:
        better, worse = worse, better
    ratio = f"{better / worse:.2f}" if math.isfinite(better) and math.isfinite(worse) else ""
    return common.table_row(name, common.show(plain), common.show(ours), ratio)


def reading(pairs: list[Pair], o: Any) -> list[str]:
    """Milliseconds an image, augmentation included, on one core. For a process of its own, which it keeps there."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)  # as in a loader's worker
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    size = (o.IMAGE_HEIGHT, o.IMAGE_WIDTH)
    plain, numbers = common.PlainDataset(pairs, size), range(len(pairs))
    folders = pairs[0][0].parent, pairs[0][1].parent
    first, later = (CarvanaDataset(*folders, make_transforms()[0], Reading(size)) for _ in range(2))

    def first_pass() -> None:
        with tempfile.TemporaryDirectory() as folder:
            first.use_cache(folder)
            [first[0, i] for i in numbers]

    with tempfile.TemporaryDirectory() as folder:
        later.use_cache(folder)
        passes = (lambda: list(map(plain.__getitem__, numbers)), first_pass, lambda: [later[1, i] for i in numbers])
        turns = (lambda p=p: common.seconds(p) * 1000 / len(pairs) for p in passes)
        plainly, *ours = common.take_turns(o.REPEATS, *turns)
    epochs = zip(("first epoch", "later epochs"), ours, strict=True)
    return [row(f"reading, {name}: ms an image, one core", plainly, own, False) for name, own in epochs]


def loaders(folder: Path, o: Any, device: torch.device, pairs: list[Pair]) -> tuple[DataLoader, DataLoader]:
    """The plain loader and ours, over `pairs`; ours keeps its cache in `folder`."""
    size = (o.IMAGE_HEIGHT, o.IMAGE_WIDTH)
    dirs = (pairs[0][0].parent, pairs[0][1].parent)
    workers = choose_num_workers("auto", device)
    options = {"reading": Reading(size), "cache_dir": folder / "cache", "drop_last": True}
    ours, _ = get_loaders(*dirs, *dirs, o.BATCH_SIZE, *make_transforms(), workers, **options)
    return common.plain_loader(pairs, o.BATCH_SIZE, size), ours


def reading_with_workers(pairs: list[Pair], o: Any, device: torch.device) -> str:
    """Images a second from the loaders alone; ours has read the files before, and its workers stay."""
    with tempfile.TemporaryDirectory() as name:
        sides = loaders(Path(name), o, device, pairs)
        passes = (lambda s=s: len(s) * o.BATCH_SIZE / common.seconds(lambda: [*map(len, s)]) for s in sides)
        figures = common.take_turns(o.REPEATS, *passes)
    workers = " and ".join(str(side.num_workers) for side in sides)
    return row(f"reading, later epochs: images/s with the default workers, {workers}", *figures)


def step_memory(plain: bool, o: Any) -> float:
    """Peak memory of a training step in MB."""
    device = choose_device(o.DEVICE)
    common.Side(device, o.FEATURES, plain=plain, encoder=o.ENCODER).epoch([common.synthetic_batch(o, device)] * 2)
    return common.peak_memory(device)


def stepping(o: Any, device: torch.device) -> Iterator[str]:
    """Peak memory of training steps on a synthetic batch, their images a second, and their share of the matrix
    product's peak."""
    plain, ours = (common.apart(step_memory, plain, o) for plain in (True, False))
    yield row(f"peak memory of a step with batch {o.BATCH_SIZE}: MB, once", [plain], [ours], False)
    sides = [common.Side(device, o.FEATURES, plain=plain, encoder=o.ENCODER) for plain in (True, False)]
    batches = [common.synthetic_batch(o, device)] * o.STEPS
    images = o.BATCH_SIZE * o.STEPS
    turns = (lambda s=s: images / common.seconds(lambda: s.epoch(batches)) for s in sides)
    rates = common.take_turns(o.REPEATS, *turns)
    yield row("training step, synthetic batch: images/s", *rates)
    peak, work = common.matrix_peak(device), common.flop_per_image(o)
    kind = str(common.peak_precision(device)).removeprefix("torch.")
    shares = ([100 * rate * work / peak for rate in side] for side in rates)
    yield row(f"the same, % of a {kind} matrix product's {peak / 1e12:.3g} TFLOP/s", *shares)


def whole_epoch(o: Any, device: torch.device, pairs: list[Pair]) -> list[str]:
    """Images a second of an epoch from files on disk; our cache is there from the warm-up on."""
    sides = [common.Side(device, o.FEATURES, plain=plain, encoder=o.ENCODER) for plain in (True, False)]
    with tempfile.TemporaryDirectory() as name:
        few = []
        for number, pair in zip(range(o.EPOCH_IMAGES or len(pairs)), cycle(pairs)):
            few.append([Path(name, kind, f"{number}_{file.name}") for kind, file in zip("im", pair, strict=True)])
            for link, file in zip(few[-1], pair, strict=True):
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(file.absolute())
        synthetic = [common.synthetic_batch(o, device)] * (len(few) // o.BATCH_SIZE)
        workloads = (*loaders(Path(name), o, device, few), synthetic, synthetic)
        turns = [
            lambda s=s, w=w: len(few) / common.seconds(lambda: s.epoch(w))
            for s, w in zip(2 * sides, workloads, strict=True)
        ]
        *rates, plain_step, our_step = common.take_turns(o.REPEATS, *turns)
    shares = (  # round by round, since a machine's speed drifts
        [100 * own / step for own, step in zip(*pair, strict=True)]
        for pair in zip(rates, (plain_step, our_step), strict=True)
    )
    return [
        row(f"a whole epoch of {len(few)} images from disk: images/s", *rates),
        row("the same, % of the rate on synthetic batches", *shares),
    ]


def largest_batches(o: Any) -> Iterator[str]:
    """The batches that GPUs of three sizes hold, computed: what the backward pass in 16 bits keeps of each image, a
    fifth more for its own work, and 12 bytes a weight (itself, its gradient and its momentum)."""
    model = common.make_network(o.FEATURES, o.ENCODER)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(images: int) -> int:
        storages = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        x, y = torch.rand(images, 3, 64, 64), torch.ones(images, 1, 64, 64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = BCEDiceLoss()(logits.float(), y)
        del loss
        return sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in weights)

    each = 1.2 * (kept(3) - kept(1)) / 2 / 64**2  # bytes a pixel
    fixed = 12 * sum(parameter.numel() for parameter in model.parameters())
    yield f"\nLargest batches, computed ({each:.0f} bytes a pixel):\n"
    yield from common.table_head("size", "8 GB", "24 GB", "80 GB")
    for width, height in ((240, 160), (960, 640), (1918, 1280)):
        batches = (max(0, int((gigabytes * 1e9 - fixed) / (each * height * width))) for gigabytes in (8, 24, 80))
        yield common.table_row(f"{width}x{height}", *batches)


def measure(o: Any) -> Iterator[str]:
    """The lines of the table."""
    device = choose_device(o.DEVICE)
    o.IMG_DIR, o.MASK_DIR, *_ = sample_if_empty((o.IMG_DIR, o.MASK_DIR, train.VAL_IMG_DIR, train.VAL_MASK_DIR))
    pairs = find_pairs(o.IMG_DIR, o.MASK_DIR)
    what = f"{counted(len(pairs), 'image')} at {o.IMAGE_WIDTH}x{o.IMAGE_HEIGHT}"
    yield f"{common.describe_machine(device)}; {what}, batch {o.BATCH_SIZE}, medians of {o.REPEATS}\n"
    yield from common.table_head("what", "plain loop", "this repository", "times better")
    if "reading" in o.PARTS:
        yield from common.apart(reading, pairs, o)
        yield reading_with_workers(pairs, o, device)
    if "step" in o.PARTS:
        yield from stepping(o, device)
    if "epoch" in o.PARTS:
        yield from whole_epoch(o, device, pairs)
    if "step" in o.PARTS:
        yield from largest_batches(o)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and write it into OUT."""
    o = ConstantParser(globals()).parse_args(argv)
    threads = cv2.getNumThreads()  # loaders with workers set one
    try:
        common.tell(measure(o), o.OUT)
    finally:
        cv2.setNumThreads(threads)


if __name__ == "__main__":
    common.run(main)
