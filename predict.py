"""Predict masks of images, at the images' own sizes.

    python predict.py image.jpg more_images/ --CHECKPOINT best_checkpoint.pth.tar --OUT predictions/
    python predict.py images/ --OVERLAY                             # also the images with the masks' boundaries
    python predict.py images/ --MASK_DIR masks/                     # also scores against true masks, at full size
    python predict.py images/ --CUTOUT --POLYGONS polygons.json     # also the objects alone, and their outlines
    python predict.py test/ --OUT "" --SUBMISSION submission.csv    # nothing but the file that Kaggle takes

    python predict.py test/ --CHECKPOINT a.pth.tar b.pth.tar        # the mean of several networks

The network sees an image at the size that it was trained at, and its logits are scaled up to the image's own; one
that was trained with CROP sees it at its own size, in overlapping windows.
"""

import math
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset import make_transforms
from model import UNET, unet_arguments
from support.checkpoint import load_checkpoint, plain_weights, read_checkpoint, trained_size
from support.coco import Outline, coco_file, outlines
from support.device import (
    autocast,
    choose_device,
    choose_memory_format,
    choose_precision,
    count_cores,
    give_memory_back,
)
from support.errors import BadInput, counted, run_script
from support.files import writable_folder
from support.options import ConstantParser
from support.pairs import find_images, skipped_files, with_masks
from support.reading import AS_IS, Classes, Reading, Size, must_match, read_image, read_mask, read_with_size
from support.rle import CARVANA_SIZE, encode, submission_rows
from support.sliding_window import SlidingWindow
from support.visualize import (
    draw_overlay,
    save_cutout,
    save_mask,
    save_probability,
    scale_to_mask,
    scale_to_probability,
)
from utils import Scores, count_classes, describe, evaluating, overall_scores

CHECKPOINT = "best_checkpoint.pth.tar"  # what train.py wrote; it tells the network. Of several, the mean is taken
OUT = "predictions/"  # gets a mask of each image, NAME.png, in 0 and 255 or in class numbers; "" writes none
OVERLAY = False  # True also writes NAME_overlay.jpg, the image with the mask's boundary or its classes in colour
PROBABILITY = False  # True also writes NAME_probability.png, 65535 for 1; of several classes the predicted one's
CUTOUT = False  # True also writes NAME_cutout.png, the object without the background, with soft edges
POLYGONS = ""  # a file for annotation tools: outlines of all masks as COCO's JSON has them; "" writes none
MASK_DIR = ""  # true masks to score against; "" doesn't score
SUBMISSION = ""  # a file for Kaggle, img,rle_mask at 1918x1280; "" writes none

THRESHOLD = 0.5  # of the probability: a pixel above it is foreground; several classes have none
VIEWS = 1  # of an image, whose logits are averaged: 2 with its mirror image, 4 upside down, too, 8 in all ways

IMAGE_HEIGHT = "auto"  # pixels that the network sees; auto is what the checkpoint says
IMAGE_WIDTH = "auto"  # pixels
BATCH_SIZE = 8  # images that the network sees at once
NUM_WORKERS = "auto"  # threads that read images and write masks; auto is one for each core
DEVICE = "auto"  # cuda, cuda:1, mps or cpu


class Item(NamedTuple):
    """An image on its way: with its mask's file, its own size, and its pixels or its logits."""

    path: Path
    target: Path | None
    size: Size
    values: Any


class Result(NamedTuple):
    """What came of an image: its row of `count_classes`, its mask for Kaggle and its outlines, if asked for; or why
    it has no row."""

    path: Path
    size: Size
    counts: Tensor | None
    runs: str
    outlines: list[Outline]
    unscored: BadInput | None = None


def load_network(
    path: str | Path, device: torch.device, height: int | str = "auto", width: int | str = "auto"
) -> tuple[nn.Module, Reading, torch.dtype]:
    """The network in a checkpoint, ready to predict; how it reads images; its precision.

    One that was trained with CROP is in a SlidingWindow, for images of their own size. Weights alone tell their
    network by their shapes. Raises BadInput for a checkpoint that can't be used."""
    checkpoint = read_checkpoint(path)
    if "constants" not in checkpoint and "auto" in (height, width):
        print(f"{path}: doesn't say at what size it was trained: IMAGE_WIDTH and IMAGE_HEIGHT are taken as 240x160")
    constants = {"IGNORE_INDEX": 255, "PRECISION": "auto", "RANGE": AS_IS.highest} | checkpoint.get("constants", {})
    trained = trained_size(checkpoint)
    size = trained[0] if height == "auto" else height, trained[1] if width == "auto" else width
    try:
        arguments = checkpoint.get("model") or unet_arguments(plain_weights(checkpoint))
    except KeyError as error:
        raise BadInput(path, f"not a U-Net of model.py: no weight {error}", "Use one of train.py") from error
    if min(size) < (smallest := 2 ** len(arguments["features"])):
        raise BadInput("IMAGE_HEIGHT and IMAGE_WIDTH", f"{size[0]} and {size[1]}", f"Give {smallest} or more each")
    precision = choose_precision(constants["PRECISION"], device)
    model = UNET(**arguments)
    load_checkpoint(checkpoint, model)
    model.to(device, memory_format=choose_memory_format(device, precision)).eval()
    if constants.get("CROP") and (height, width) == ("auto", "auto"):
        model, size = SlidingWindow(model, constants["CROP"]), None
    classes = Classes(arguments["out_channels"], constants["IGNORE_INDEX"])
    return model, Reading(size, classes, arguments["in_channels"], constants["RANGE"]), precision


class Ensemble(nn.Module):
    """The mean of several networks' logits."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        return sum(model(images).float() for model in self.models) / len(self.models)


def load_networks(
    paths: Sequence[str], device: torch.device, height: int | str = "auto", width: int | str = "auto"
) -> tuple[nn.Module, Reading, torch.dtype]:
    """What `load_network` gives, of the Ensemble of several checkpoints. Raises BadInput if they don't fit."""
    loaded = [load_network(path, device, height, width) for path in paths]
    model, reading, precision = loaded[0]
    for path, (_, other, _) in zip(paths, loaded, strict=True):
        names = {"size": "size", "classes": "classes", "channels": "IN_CHANNELS", "highest": "RANGE"}
        for field, name in names.items():
            if getattr(other, field) != getattr(reading, field):
                finding = f"its {name} is another than that of {paths[0]}"
                raise BadInput(path, finding, "Predict with each by itself")
    return model if len(loaded) == 1 else Ensemble([model for model, *_ in loaded]), reading, precision


def predict_logits(model: nn.Module, images: Tensor, *, views: int = 1, precision: torch.dtype) -> np.ndarray:
    """Logits, float32 (N, H, W), or of several classes (N, C, H, W), of images, float32 (N, B, H, W): the mean over
    so many `views` of them, with each side in both directions, then with the sides exchanged."""
    device = next(model.parameters()).device
    windows = any(isinstance(module, SlidingWindow) for module in model.modules())
    images = images if windows else images.to(device)  # a large image stays where it is
    total = 0
    with torch.inference_mode(), autocast(device, precision):
        for view in range(views):
            axes = [axis for axis, turned in ((3, view & 1), (2, view & 2)) if turned]
            seen = images.flip(axes) if axes else images
            logits = model(seen.transpose(2, 3)).transpose(2, 3) if view & 4 else model(seen)
            total = total + (logits.flip(axes) if axes else logits)
    logits = total / views if views > 1 else total
    return logits.squeeze(1).cpu().numpy() if windows else logits.float().squeeze(1).cpu().numpy()


def read_item(pair: tuple[Path, Path | None], reading: Reading, transform: Callable) -> Item:
    """An image as the network sees it; one of its own size, which may be large, as uint8."""
    image, own_size = read_with_size(pair[0], reading)
    values = transform(image=image)["image"] if reading.size else torch.from_numpy(image).permute(2, 0, 1)
    return Item(*pair, own_size, values)


def predict_items(
    items: Iterable[Item | BadInput], batch_size: int, network: Callable[[Tensor], np.ndarray]
) -> Iterator[Item | BadInput]:
    """The items with logits in the place of images."""
    items = iter(items)
    while batch := list(islice(items, batch_size)):
        images = [item.values for item in batch if isinstance(item, Item)]
        logits = iter(network(images[0][None] if len(images) == 1 else torch.stack(images)) if images else ())
        batch = [item._replace(values=next(logits)) if isinstance(item, Item) else item for item in batch]
        del images  # may be large
        yield from batch


def finish_item(
    item: Item,
    *,
    out: Path | None,
    overlay: bool,
    threshold: float,
    submission: bool,
    probability: bool = False,
    cutout: bool = False,
    polygons: bool = False,
    reading: Reading = AS_IS,
) -> Result:
    """Write an image's mask, encode it and score it, as far as asked for."""
    reading, classes = replace(reading, size=None), reading.classes
    mask, counts, runs, unscored = scale_to_mask(item.values, item.size, threshold), None, "", None
    if out is not None:
        name = item.path.stem
        save_mask(mask, out / f"{name}.png")
        if probability:
            save_probability(scale_to_probability(item.values, item.size), out / f"{name}_probability.png")
        if overlay or cutout:
            image = read_image(item.path, reading)
            image = image[..., :3] if reading.channels >= 3 else image[..., :1].repeat(3, axis=2)
        if overlay:
            draw_overlay(image, mask, out / f"{name}_overlay.jpg")
        if cutout:  # half transparent where the mask ends
            logits = item.values if classes.multiclass else item.values - np.float32(threshold)
            opacity = scale_to_probability(logits, item.size, foreground=True)
            save_cutout(image, opacity, out / f"{name}_cutout.png")
    if submission:
        fits = item.size == CARVANA_SIZE
        runs = encode(mask if fits else scale_to_mask(item.values, CARVANA_SIZE, threshold))
    if item.target is not None:
        try:
            target = read_mask(item.target, reading)
            must_match(item.target, target.shape, mask.shape)
            counts = count_classes(torch.from_numpy(mask)[None], torch.from_numpy(target)[None], classes.count)[0]
        except BadInput as error:  # the prediction stands
            kind = f"classes 0 to {classes.count - 1}" if classes.multiclass else "black and white"
            unscored = BadInput(error.subject, error.finding, f"Give a mask of the image's size in {kind}")
    return Result(item.path, item.size, counts, runs, outlines(mask) if polygons else [], unscored)


def in_order(
    pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], most: int
) -> Iterator[Any | BadInput]:
    """What `function` makes of each item in the pool's threads, in the items' order; a BadInput stands for itself.

    At most `most` are at work or waiting to be taken, so that memory doesn't grow with the number of items.
    """

    def attempt(item: Any) -> Any | BadInput:
        try:
            return item if isinstance(item, BadInput) else function(item)
        except BadInput as error:  # one bad file stops no other
            return error

    waiting = deque()
    for item in items:
        waiting.append(pool.submit(attempt, item))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def predict_images(
    pairs: Iterable[tuple[Path, Path | None]],
    reading: Reading,
    network: Callable[[Tensor], np.ndarray],
    finish: Callable[[Item], Result],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[Result | BadInput]:
    """What comes of each image, in order. Threads read the next ones and finish the last ones meanwhile. Images of
    their own sizes come one at a time."""
    batch_size = batch_size if reading.size else 1
    most = batch_size + workers
    read = partial(read_item, reading=reading, transform=make_transforms()[1])
    with ThreadPoolExecutor(workers) as pool:
        items = predict_items(in_order(pool, read, pairs, most), batch_size, network)
        yield from in_order(pool, finish, items, most)


def score_images(
    pairs: Sequence[tuple[Path, Path]],
    model: nn.Module,
    reading: Reading,
    precision: torch.dtype,
    batch_size: int = 8,
) -> Scores:
    """Scores of a network that sees images by this `reading`, on images and their true masks at their own sizes."""
    network = partial(predict_logits, model, precision=precision)
    finish = partial(finish_item, out=None, overlay=False, threshold=0.0, submission=False, reading=reading)
    results = predict_images(pairs, reading, network, finish, batch_size=batch_size, workers=count_cores())
    results = tqdm(results, desc="scoring at full size", total=len(pairs), unit=" images", delay=1)
    with evaluating(model):
        return overall_scores(torch.stack([result.counts for result in results]))


def find_inputs(words: Sequence[str], out: str, mask_dir: str, endings: Sequence[str] = ("",)) -> list[Path]:
    """The images that `words` name, each once: files, and folders of them. A line says what folders hold besides.

    Raises BadInput for what isn't there, for a folder without any, for two whose masks would have one name, or what
    else is written with these `endings` of the name, and if `out` holds the images or the true masks.
    """
    skipped: Counter[str] = Counter()
    found = []
    for word in words:
        if not os.path.lexists(word):
            raise BadInput(word, "no such file or folder", "Give images, or folders of them")
        found += find_images(word) if os.path.isdir(word) else [Path(word)]
        skipped += skipped_files(word) if os.path.isdir(word) else Counter()
    if skipped:
        print("skipped:", ", ".join(f"{number} {kind}" for kind, number in sorted(skipped.items())))
    images = list({os.path.abspath(file): file for file in found}.values())
    names: dict[str, Path] = {}
    for file, ending in product(images, endings):
        if (other := names.setdefault(os.path.normcase(file.stem + ending), file)) is not file:
            raise BadInput(file, f"its mask would have the name of that of {other}", "Rename one of the two")
    if out:
        for folder in {file.parent for file in images} | ({Path(mask_dir)} if mask_dir else set()):
            if os.path.realpath(out) == os.path.realpath(folder):
                raise BadInput(out, "holds the images or true masks, which must stay", "Give another --OUT")
    return images


def report(results: list[Result]) -> None:
    """Print how the masks compare with the true ones, and the worst of them."""
    scores = overall_scores(torch.stack([result.counts for result in results]))
    print(describe(scores, f"{counted(len(results), 'image')} at full size"))
    print("the lowest dice:")
    for dice, path in sorted(zip(scores.images, (str(result.path) for result in results), strict=True))[:10]:
        print(f"{dice:.4f} {path}")


def list_failures(failures: list[BadInput], of: int, what: str) -> None:
    """Print the first 20 failures and their number on standard error."""
    for failure in failures[:20]:
        print(failure, file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {of} {what}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Predict as the constants above and `argv` say. Exits with 1 if some images or true masks couldn't be used."""
    parser = ConstantParser(globals())
    parser.add_argument("images", nargs="+", help="files, and folders of them")
    options = parser.parse_args(argv)
    pictures = options.OVERLAY or options.PROBABILITY or options.CUTOUT
    if not options.OUT and (pictures or not (options.SUBMISSION or options.POLYGONS or options.MASK_DIR)):
        raise BadInput("OUT", "empty, so there is nowhere to write to", "Give a folder")
    for name, example in (("SUBMISSION", "submission.csv"), ("POLYGONS", "polygons.json")):
        if os.path.isdir(file := getattr(options, name)):
            raise BadInput(file, "a folder", f"Give --{name} a file's name, say {example}")
    if options.POLYGONS and os.path.realpath(options.POLYGONS) == os.path.realpath(options.SUBMISSION):
        raise BadInput("POLYGONS", "the same file as SUBMISSION", "Give another one")
    endings = [""] + ["_probability"] * options.PROBABILITY + ["_cutout"] * options.CUTOUT
    images = find_inputs(options.images, options.OUT, options.MASK_DIR, endings)
    pairs = [(file, None) for file in images]
    if options.MASK_DIR:
        pairs = with_masks(images, options.MASK_DIR)
    give_memory_back()
    device = choose_device(options.DEVICE)
    checkpoints = options.CHECKPOINT if isinstance(options.CHECKPOINT, list) else [options.CHECKPOINT]
    model, reading, precision = load_networks(checkpoints, device, options.IMAGE_HEIGHT, options.IMAGE_WIDTH)
    classes = reading.classes
    if classes.multiclass:
        for name, unused in (("SUBMISSION", options.SUBMISSION), ("THRESHOLD", options.THRESHOLD != THRESHOLD)):
            if unused:
                finding = f"meant for one class, and {checkpoints[0]} has {classes.count}"
                raise BadInput(name, finding, "Leave it out")
    out = writable_folder(Path(options.OUT), "Give another --OUT") if options.OUT else None
    submission, polygons = (Path(file) if file else None for file in (options.SUBMISSION, options.POLYGONS))
    for name, file in (("SUBMISSION", submission), ("POLYGONS", polygons)):
        if file is not None:
            writable_folder(file.parent, f"Give another --{name}")
    names = {number: f"class {number}" for number in range(1, classes.count)} or {1: "foreground"}

    results = predict_images(
        pairs,
        reading,
        partial(predict_logits, model, views=options.VIEWS, precision=precision),
        partial(
            finish_item,
            out=out,
            overlay=options.OVERLAY,
            threshold=math.log(options.THRESHOLD / (1 - options.THRESHOLD)),  # of the logit
            submission=submission is not None,
            probability=options.PROBABILITY,
            cutout=options.CUTOUT,
            polygons=polygons is not None,
            reading=reading,
        ),
        batch_size=options.BATCH_SIZE,
        workers=count_cores() if options.NUM_WORKERS == "auto" else max(1, options.NUM_WORKERS),
    )
    scored, failures, unscored = [], [], []
    try:
        with (
            submission_rows(submission) if submission is not None else nullcontext() as rows,
            coco_file(polygons, names) if polygons is not None else nullcontext() as add_to_coco,
        ):
            for result in tqdm(results, total=len(pairs), unit=" images"):
                if isinstance(result, BadInput):
                    failures.append(result)
                    continue
                if rows is not None:
                    rows.writerow((result.path.name, result.runs))
                if add_to_coco is not None:
                    add_to_coco(result.path.name, result.size, result.outlines)
                if result.counts is not None:
                    scored.append(result)
                if result.unscored is not None:
                    unscored.append(result.unscored)
    except OSError as error:  # files that can't be read are a BadInput: this is the disk that is written to
        finding = f"can't be written ({error.strerror or error})"
        raise BadInput(error.filename or "results", finding, "Make room or give another place") from error

    written = " and ".join(filter(None, (options.OUT, options.SUBMISSION, options.POLYGONS))) or "nothing written"
    print(f"{len(pairs) - len(failures)} of {len(pairs)} images predicted: {written}")
    if scored:
        report(scored)
    lacking = " and ".join(filter(None, (options.SUBMISSION, options.POLYGONS)))
    lack = f"; they are missing in {lacking}" if lacking else ""
    list_failures(failures, len(pairs), f"images could not be used{lack}")
    list_failures(unscored, len(pairs), "images could not be scored")
    if failures or unscored:
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
