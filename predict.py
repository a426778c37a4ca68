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
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import reduce
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
from support.errors import BadInput, counted, refuse, run_script
from support.files import writable_folder
from support.networks import load_networks
from support.options import ConstantParser
from support.pairs import find_images, skipped_files, with_masks
from support.reading import Reading, Size, must_match, read_image, read_mask, read_with_size, to_array
from support.rle import CARVANA_SIZE, encode, submission_rows
from support.visualize import draw_overlay, save_image, save_mask, scale_to_mask, scale_to_probability
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


class Item(NamedTuple):
    """An image on its way, and what came of it, as far as that was asked for."""

    path: Path
    target: Path | None  # its true mask
    size: Size  # its own
    values: Any  # its pixels, as the network takes them, and then its logits
    runs: str = ""  # its mask for Kaggle
    outlines: Sequence[Outline] = ()
    counts: Tensor | None = None  # its row of `count_classes`


@dataclass
class Predictor:
    """A network, and what is made of its logits: masks in `out`, and what else `kinds` names (probability, cutout,
    overlay, submission, polygons). A pixel is foreground if its logit is above `threshold`. Images of their own
    sizes come one at a time, others in batches of `batch_size`."""

    model: nn.Module
    reading: Reading
    precision: torch.dtype
    views: int = 1
    threshold: float = 0.0
    out: Path | None = None
    kinds: Collection[str] = ()
    batch_size: int = 8
    workers: int = field(default_factory=count_cores)
    transform: Callable[..., dict[str, Any]] = field(default_factory=lambda: make_transforms()[1])
    failures: list[BadInput] = field(default_factory=list)  # of images and true masks that couldn't be used

    def __post_init__(self) -> None:
        if self.reading.size is None:  # images may be large, and of different sizes
            self.batch_size = 1

    def predict(self, pairs: Iterable[tuple[Path, Path | None]]) -> Iterator[Item]:
        """What comes of each image, with its true mask if there is one, in order. Threads read the next ones and
        finish the last ones meanwhile."""
        with ThreadPoolExecutor(self.workers) as pool:
            read = self.in_order(pool, self.read, pairs)
            yield from self.in_order(pool, self.finish, self.see(read))

    def in_order(self, pool: Executor, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """What `function` makes of each item in the pool's threads, in the items' order, without those that fail.
        So many are at work or waiting to be taken that memory doesn't grow with the number of items."""
        items, waiting = iter(items), deque()
        while True:
            room = self.batch_size + self.workers - len(waiting)
            waiting.extend(pool.submit(function, item) for item in islice(items, room))
            if not waiting:
                return
            try:
                yield waiting.popleft().result()
            except BadInput as error:  # one bad file stops no other
                self.failures.append(error)

    def read(self, pair: tuple[Path, Path | None]) -> Item:
        """An image as the network takes it."""
        image, own_size = read_with_size(pair[0], self.reading)
        return Item(*pair, own_size, self.to_input(image))

    def to_input(self, image: np.ndarray) -> Tensor:
        """An image, uint8 (H, W, C), as the network takes it, (C, H, W)."""
        return self.transform(image=image)["image"]

    def see(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items with logits in the place of pixels."""
        while batch := list(islice(items, self.batch_size)):
            images = [item.values for item in batch]
            logits = self.logits(images[0][None] if len(images) == 1 else torch.stack(images))
            batch = [item._replace(values=values) for item, values in zip(batch, logits, strict=True)]
            del images  # may be large
            yield from batch

    def logits(self, images: Tensor) -> np.ndarray:
        """Logits, float32 (N, H, W), or of several classes (N, C, H, W), of images (N, B, H, W): the mean over so
        many `views` of test-time augmentation, flipped along each side, then with the sides exchanged."""
        device = next(self.model.parameters()).device
        images = images.to(device) if self.reading.size else images  # one of its own size may be large, and stays

        def see(view: int) -> Tensor:
            axes = [axis for axis, turned in ((3, view & 1), (2, view & 2)) if turned]
            seen = images.flip(axes) if axes else images
            logits = self.model(seen.mT).mT if view & 4 else self.model(seen)
            return logits.flip(axes) if axes else logits

        with torch.inference_mode(), autocast(device, self.precision):
            total = reduce(torch.add, map(see, range(self.views)))  # sum() would copy the first
            return total.float().div_(self.views).squeeze(1).cpu().numpy()

    def mask(self, image: np.ndarray) -> np.ndarray:
        """The mask (H, W) of an image, uint8 RGB (H, W, 3): boolean, or of several classes uint8."""
        seen = self.to_input(to_array(Image.fromarray(image), self.reading))
        return scale_to_mask(self.logits(seen[None])[0], image.shape[:2], self.threshold)

    def finish(self, item: Item) -> Item:
        """Write an item's mask, encode it and score it, as far as that was asked for."""
        mask, runs, counts = scale_to_mask(item.values, item.size, self.threshold), "", None
        if self.out is not None:
            self.write(item, mask)
        if "submission" in self.kinds:
            fits = item.size == CARVANA_SIZE
            runs = encode(mask if fits else scale_to_mask(item.values, CARVANA_SIZE, self.threshold))
        if item.target is not None:
            try:
                target = read_mask(item.target, replace(self.reading, size=None))
                must_match(item.target, target.shape, mask.shape)
                masks = torch.from_numpy(mask)[None], torch.from_numpy(target)[None]
                counts = count_classes(*masks, self.reading.classes.count)[0]
            except BadInput as error:  # the prediction stands
                self.failures.append(error)
        parts = outlines(mask) if "polygons" in self.kinds else ()
        return item._replace(values=None, runs=runs, outlines=parts, counts=counts)

    def write(self, item: Item, mask: np.ndarray) -> None:
        """Write an item's mask, and what else is to be seen of it, into files."""
        stem = item.path.stem
        save_mask(mask, self.out / f"{stem}.png")
        if "probability" in self.kinds:
            save_image(scale_to_probability(item.values, item.size), self.out / f"{stem}_probability.png")
        if "overlay" in self.kinds or "cutout" in self.kinds:
            image = read_image(item.path, replace(self.reading, size=None))
            image = image[..., :3] if self.reading.channels >= 3 else image[..., :1].repeat(3, axis=2)
        if "overlay" in self.kinds:
            save_image(draw_overlay(image, mask), self.out / f"{stem}_overlay.jpg")
        if "cutout" in self.kinds:  # half transparent where the mask ends
            logits = item.values - np.float32(self.threshold)
            opacity = (scale_to_probability(logits, item.size, foreground=True) // 257).astype(np.uint8)
            cutout = np.dstack((image, opacity))
            cutout[opacity == 0] = 0  # what can't be seen needs no room
            save_image(cutout, self.out / f"{stem}_cutout.png")


def score_images(
    pairs: Sequence[tuple[Path, Path]],
    model: nn.Module,
    reading: Reading,
    precision: torch.dtype,
    batch_size: int = 8,
) -> Scores:
    """Scores of a network that sees images by this `reading`, on images and their true masks at their own sizes."""
    predictor = Predictor(model, reading, precision, batch_size=batch_size)
    items = tqdm(predictor.predict(pairs), "scoring at full size", len(pairs), delay=1, unit=" images")
    with evaluating(model):
        counts = [item.counts for item in items]
    refuse(predictor.failures)
    return overall_scores(torch.stack(counts))


def find_inputs(words: Sequence[str], out: str = "", mask_dir: str = "", kinds: Iterable[str] = ()) -> list[Path]:
    """The files that `words` name, each once, and the images of folders. A line says what folders hold besides.

    Raises BadInput for what isn't there, for a folder without images, for two files whose masks, or what else
    of these `kinds`, would have one name, and if `out` holds the images or the true masks.
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
    files = list({os.path.abspath(file): file for file in found}.values())
    names: dict[str, Path] = {}
    for file, ending in product(files, ["", *(f"_{kind}" for kind in kinds)]):
        if (other := names.setdefault(os.path.normcase(file.stem + ending), file)) is not file:
            raise BadInput(file, f"its mask would have the name of that of {other}", "Rename one of the two")
    for folder in {file.parent for file in files} | ({Path(mask_dir)} if mask_dir else set()):
        if out and os.path.realpath(out) == os.path.realpath(folder):
            raise BadInput(out, "holds the images or true masks, which must stay", "Give another --OUT")
    return files


def report(counts: dict[Path, Tensor]) -> None:
    """Print how the masks compare with the true ones, and the worst of them."""
    scores = overall_scores(torch.stack(list(counts.values())))
    print(describe(scores, f"{counted(len(counts), 'image')} at full size"))
    print("the lowest dice:")
    for dice, path in sorted(zip(scores.images, map(str, counts), strict=True))[:10]:
        print(f"{dice:.4f} {path}")


def main(argv: list[str] | None = None) -> None:
    """Predict as the constants above and `argv` say. Exits with 1 if some images or true masks couldn't be used."""
    parser = ConstantParser(globals())
    parser.add_argument("images", nargs="+", help="images and videos, and folders of images")
    options = parser.parse_args(argv)
    pictures = [kind for kind in ("overlay", "probability", "cutout") if getattr(options, kind.upper())]
    tables = [kind for kind in ("submission", "polygons") if getattr(options, kind.upper())]
    if not options.OUT and (pictures or not (tables or options.MASK_DIR)):
        raise BadInput("OUT", "empty, so there is nowhere to write to", "Give a folder")
    files = find_inputs(options.images, options.OUT, options.MASK_DIR, pictures)
    videos = [file for file in files if file.suffix.lower() in video.SUFFIXES]
    for name in ("SUBMISSION", "POLYGONS", "MASK_DIR", "PROBABILITY", "CUTOUT"):
        if videos and getattr(options, name):
            raise BadInput(name, f"meant for images, and {videos[0]} is a video", "Leave out one or the other")
    images = [file for file in files if file not in videos]
    pairs = with_masks(images, options.MASK_DIR) if options.MASK_DIR else [(file, None) for file in images]

    give_memory_back()
    paths = options.CHECKPOINT if isinstance(options.CHECKPOINT, list) else [options.CHECKPOINT]
    networks = load_networks(paths, choose_device(options.DEVICE), options.IMAGE_HEIGHT, options.IMAGE_WIDTH)
    predictor = Predictor(*networks, options.VIEWS, batch_size=options.BATCH_SIZE, kinds=[*pictures, *tables])
    if videos and predictor.reading.channels not in (1, 3):
        finding = f"in colour, where the network takes {predictor.reading.channels} channels"
        raise BadInput(videos[0], finding, "Give another --CHECKPOINT")
    classes = predictor.reading.classes
    for name, given in (("SUBMISSION", options.SUBMISSION), ("THRESHOLD", options.THRESHOLD != THRESHOLD)):
        if given and classes.multiclass:
            raise BadInput(name, f"meant for one class, and {paths[0]} has {classes.count}", "Leave it out")
    predictor.threshold = math.log(options.THRESHOLD / (1 - options.THRESHOLD))  # of the logit
    if options.NUM_WORKERS != "auto":
        predictor.workers = max(1, options.NUM_WORKERS)
    if options.OUT:
        predictor.out = writable_folder(Path(options.OUT), "Give another --OUT")
    for name in ("SUBMISSION", "POLYGONS"):
        if file := getattr(options, name):
            writable_folder(Path(file).parent, f"Give another --{name}")

    names = {number: f"class {number}" for number in range(1, classes.count)} or {1: "foreground"}
    predicted, counts = 0, {}
    try:
        with (
            submission_rows(Path(options.SUBMISSION)) if options.SUBMISSION else nullcontext() as rows,
            coco_file(Path(options.POLYGONS), names) if options.POLYGONS else nullcontext() as add_to_coco,
        ):
            for item in tqdm(predictor.predict(pairs), total=len(pairs), unit=" images", disable=not pairs):
                predicted += 1
                if rows:
                    rows.writerow((item.path.name, item.runs))
                if add_to_coco:
                    add_to_coco(item.path.name, item.size, item.outlines)
                if item.counts is not None:
                    counts[item.path] = item.counts
        for file in videos:
            try:
                print(video.predict_video(file, predictor.out, predictor.mask))
            except BadInput as error:
                predictor.failures.append(error)
    except OSError as error:  # files that can't be read are a BadInput: this is the disk that is written to
        finding = f"can't be written ({error.strerror or error})"
        raise BadInput(error.filename or "results", finding, "Make room or give another place") from error

    if images:
        written = " and ".join(filter(None, (options.OUT, options.SUBMISSION, options.POLYGONS)))
        print(f"{predicted} of {len(images)} images predicted: {written or 'nothing written'}")
    if counts:
        report(counts)
    try:
        refuse(predictor.failures)
    except BadInput as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    run_script(main)
