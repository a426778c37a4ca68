"""Predict masks of images and videos, at the images' own sizes.

    python predict.py image.jpg more_images/ --CHECKPOINT best_checkpoint.pth.tar --OUT predictions/
    python predict.py images/ --OVERLAY                             # also the images with the masks' boundaries
    python predict.py images/ --MASK_DIR masks/                     # also scores against true masks, at full size
    python predict.py images/ --CUTOUT --POLYGONS polygons.json     # also the objects alone, and their outlines
    python predict.py test/ --OUT "" --SUBMISSION submission.csv    # nothing but the file that Kaggle takes

    python predict.py drive.mp4                                     # masks of its frames, and an overlaid video
    python predict.py test/ --CHECKPOINT a.pth.tar b.pth.tar        # the mean of several networks

The network sees an image at the size that it was trained at, and its logits are scaled up to the image's own; one
that was trained with CROP sees it at its own size, in overlapping windows.
"""

import math
import os
import sys
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from dataset import make_transforms
from support import video
from support.coco import Outline, coco_file, outlines
from support.device import autocast, choose_device, count_cores, give_memory_back
from support.errors import BadInput, counted, run_script
from support.files import writable_folder
from support.networks import load_networks
from support.options import ConstantParser
from support.pairs import find_images, skipped_files, with_masks
from support.reading import AS_IS, Reading, Size, must_match, read_image, read_mask, read_with_size, to_array
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
VIEWS = 1  # test-time augmentation: 2 adds the mirror image; 4 and 8 turn it, for images that have no up

IMAGE_HEIGHT = "auto"  # pixels that the network sees; auto is what the checkpoint says
IMAGE_WIDTH = "auto"  # pixels
BATCH_SIZE = 8  # images that the network sees at once
NUM_WORKERS = "auto"  # threads that read images and write masks; auto is one for each core
DEVICE = "auto"  # cuda, cuda:1, mps or cpu


KINDS = ("overlay", "probability", "cutout", "submission", "polygons")  # of results, besides masks: an option each


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


def predict_logits(model: nn.Module, images: Tensor, *, views: int = 1, precision: torch.dtype) -> np.ndarray:
    """Logits, float32 (N, H, W), or of several classes (N, C, H, W), of images, float32 (N, B, H, W): the mean over
    so many `views` of test-time augmentation, flipped along each side, then with the sides exchanged."""
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
    return Item(*pair, own_size, to_input(image, reading, transform))


def to_input(image: np.ndarray, reading: Reading, transform: Callable) -> Tensor:
    """An image, uint8 (H, W, C), as the network takes it, (C, H, W)."""
    return transform(image=image)["image"] if reading.size else torch.from_numpy(image).permute(2, 0, 1)


def predict_frame(
    frame: np.ndarray, reading: Reading, transform: Callable, network: Callable[[Tensor], np.ndarray]
) -> np.ndarray:
    """Logits, float32 (h, w) or (C, h, w), of a frame of a video, uint8 RGB (H, W, 3)."""
    return network(to_input(to_array(Image.fromarray(frame), reading), reading, transform)[None])[0]


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
    reading: Reading = AS_IS,
    kinds: Container[str] = (),
    out: Path | None = None,
    threshold: float = 0.0,
) -> Result:
    """Write an image's mask into `out`, encode it and score it, as far as `kinds` asks for what. A pixel is
    foreground if its logit is above `threshold`."""
    mask = scale_to_mask(item.values, item.size, threshold)
    if out is not None:
        write_pictures(item, mask, reading, kinds, out, threshold)
    runs, counts, unscored, number = "", None, None, reading.classes.count
    if "submission" in kinds:
        fits = item.size == CARVANA_SIZE
        runs = encode(mask if fits else scale_to_mask(item.values, CARVANA_SIZE, threshold))
    if item.target is not None:
        try:
            target = read_mask(item.target, replace(reading, size=None))
            must_match(item.target, target.shape, mask.shape)
            counts = count_classes(torch.from_numpy(mask)[None], torch.from_numpy(target)[None], number)[0]
        except BadInput as error:  # the prediction stands
            kind = f"classes 0 to {number - 1}" if reading.classes.multiclass else "black and white"
            unscored = BadInput(error.subject, error.finding, f"Give a mask of the image's size in {kind}")
    polygons = outlines(mask) if "polygons" in kinds else []
    return Result(item.path, item.size, counts, runs, polygons, unscored)


def write_pictures(
    item: Item, mask: np.ndarray, reading: Reading, kinds: Container[str], out: Path, threshold: float
) -> None:
    """Write an image's mask into `out`, and what else `kinds` asks for."""
    stem = item.path.stem
    save_mask(mask, out / f"{stem}.png")
    if "probability" in kinds:
        save_probability(scale_to_probability(item.values, item.size), out / f"{stem}_probability.png")
    if "overlay" in kinds or "cutout" in kinds:
        image = read_image(item.path, replace(reading, size=None))
        image = image[..., :3] if reading.channels >= 3 else image[..., :1].repeat(3, axis=2)
    if "overlay" in kinds:
        draw_overlay(image, mask, out / f"{stem}_overlay.jpg")
    if "cutout" in kinds:  # half transparent where the mask ends
        logits = item.values if reading.classes.multiclass else item.values - np.float32(threshold)
        opacity = scale_to_probability(logits, item.size, foreground=True)
        save_cutout(image, opacity, out / f"{stem}_cutout.png")


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
    finish = partial(finish_item, reading=reading)
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


def check_places(options: Namespace) -> None:
    """Refuse places to write to that can't be meant, before any image is looked for."""
    pictures = options.OVERLAY or options.PROBABILITY or options.CUTOUT
    if not options.OUT and (pictures or not (options.SUBMISSION or options.POLYGONS or options.MASK_DIR)):
        raise BadInput("OUT", "empty, so there is nowhere to write to", "Give a folder")
    for name, example in (("SUBMISSION", "submission.csv"), ("POLYGONS", "polygons.json")):
        if os.path.isdir(file := getattr(options, name)):
            raise BadInput(file, "a folder", f"Give --{name} a file's name, say {example}")
    if options.POLYGONS and os.path.realpath(options.POLYGONS) == os.path.realpath(options.SUBMISSION):
        raise BadInput("POLYGONS", "the same file as SUBMISSION", "Give another one")


def main(argv: list[str] | None = None) -> None:
    """Predict as the constants above and `argv` say. Exits with 1 if some images or true masks couldn't be used."""
    parser = ConstantParser(globals())
    parser.add_argument("images", nargs="+", help="images and videos, and folders of images")
    options = parser.parse_args(argv)
    check_places(options)
    kinds = [kind for kind in KINDS if getattr(options, kind.upper())]
    endings = ["", *(f"_{kind}" for kind in kinds if kind in ("probability", "cutout"))]
    images = find_inputs(options.images, options.OUT, options.MASK_DIR, endings)
    videos = [file for file in images if file.suffix.lower() in video.SUFFIXES]
    images = [file for file in images if file not in videos]
    if videos and not options.OUT:
        raise BadInput(videos[0], "a video, and OUT is empty", "Give a folder for its masks")
    pairs = with_masks(images, options.MASK_DIR) if options.MASK_DIR else [(file, None) for file in images]

    give_memory_back()
    paths = options.CHECKPOINT if isinstance(options.CHECKPOINT, list) else [options.CHECKPOINT]
    device = choose_device(options.DEVICE)
    model, reading, precision = load_networks(paths, device, options.IMAGE_HEIGHT, options.IMAGE_WIDTH)
    classes = reading.classes
    for name, given in (("SUBMISSION", options.SUBMISSION), ("THRESHOLD", options.THRESHOLD != THRESHOLD)):
        if given and classes.multiclass:
            raise BadInput(name, f"meant for one class, and {paths[0]} has {classes.count}", "Leave it out")
    names = {number: f"class {number}" for number in range(1, classes.count)} or {1: "foreground"}
    out = writable_folder(Path(options.OUT), "Give another --OUT") if options.OUT else None
    for name in ("SUBMISSION", "POLYGONS"):
        if file := getattr(options, name):
            writable_folder(Path(file).parent, f"Give another --{name}")

    network = partial(predict_logits, model, views=options.VIEWS, precision=precision)
    threshold = math.log(options.THRESHOLD / (1 - options.THRESHOLD))  # of the logit
    logits = partial(predict_frame, reading=reading, transform=make_transforms()[1], network=network)
    for file in videos:
        if reading.channels not in (1, 3):
            finding = f"RGB, and the checkpoint's images have {reading.channels} channels"
            raise BadInput(file, finding, "Give images")
        print(video.predict_video(file, out, logits, threshold))
    if not images:
        return
    finish = partial(finish_item, reading=reading, kinds=kinds, out=out, threshold=threshold)
    workers = count_cores() if options.NUM_WORKERS == "auto" else max(1, options.NUM_WORKERS)
    results = predict_images(pairs, reading, network, finish, batch_size=options.BATCH_SIZE, workers=workers)
    done, failures = [], []
    try:
        with (
            submission_rows(Path(options.SUBMISSION)) if options.SUBMISSION else nullcontext() as rows,
            coco_file(Path(options.POLYGONS), names) if options.POLYGONS else nullcontext() as add_to_coco,
        ):
            for result in tqdm(results, total=len(pairs), unit=" images"):
                if isinstance(result, BadInput):
                    failures.append(result)
                    continue
                if rows:
                    rows.writerow((result.path.name, result.runs))
                if add_to_coco:
                    add_to_coco(result.path.name, result.size, result.outlines)
                done.append(result._replace(runs="", outlines=[]))
    except OSError as error:  # files that can't be read are a BadInput: this is the disk that is written to
        finding = f"can't be written ({error.strerror or error})"
        raise BadInput(error.filename or "results", finding, "Make room or give another place") from error

    files = list(filter(None, (options.SUBMISSION, options.POLYGONS)))
    written = " and ".join(filter(None, (options.OUT, *files))) or "nothing written"
    print(f"{len(done)} of {len(pairs)} images predicted: {written}")
    if scored := [result for result in done if result.counts is not None]:
        report(scored)
    missing = f"; they are missing in {' and '.join(files)}" if files else ""
    list_failures(failures, len(pairs), f"images could not be used{missing}")
    unscored = [result.unscored for result in done if result.unscored]
    list_failures(unscored, len(pairs), "images could not be scored")
    if failures or unscored:
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
