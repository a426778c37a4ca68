"""What can be wrong with images and masks that reading a single pair doesn't tell, before a run begins.

`support/reading.py` refuses what is wrong with one file or pair. The rules here judge a whole folder, or training
and validation together. A refusal names each file; a warning stands for all of its kind in one line.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from os.path import samefile
from pathlib import Path
from types import MappingProxyType
from typing import Any

from support.errors import BadInput, by_cause, counted, refuse, warn
from support.pairs import CARVANA_NAME
from support.preparation import Prepared
from support.reading import Metadata, Reading, Size, ceiling, read_mask

CEILING = 0.95  # Dice at full size that perfect masks should be able to have
KEPT = 0.5  # of a mask's foreground: with less at the network's size, it has lost too much
LARGER = "Give a larger IMAGE_HEIGHT and IMAGE_WIDTH, or CROP, say 256"


def check_run(train: Prepared, val: Prepared, levels: int, batch_size: int, crop: int = 0) -> dict[str, Any]:
    """Print what both folders hold, warn of what may be wrong, and return what a checkpoint tells of the images:
    their counts, and a digest of all of them. Raises BadInput with all that is wrong.

    A network halves an image once for each of its `levels`, so they say how small it may be; with `crop`, it is
    squares of so many pixels that it sees.
    """
    smallest, size = 2**levels, train.reading.size or (crop, crop)
    names = "CROP" if crop else "IMAGE_HEIGHT and IMAGE_WIDTH"
    if min(size) < smallest:
        finding = f"{size[0]} and {size[1]}, which a network of {levels} levels shrinks to nothing"
        raise BadInput(names, finding, f"Give {smallest} or more, or fewer FEATURES")
    largest = max((max(m.size) for m in train.metadata.values()), default=crop)
    if crop > largest:
        raise BadInput("CROP", f"{crop}, where the largest image has {largest} pixels", "Give less")
    if samefile(train.image_dir, val.image_dir):
        finding = "the folder of the training images, too"
        raise BadInput(val.image_dir, finding, "Give others for validation: prepare_data.py split shares them out")
    refused = [*refusals(train, smallest), *refusals(val, smallest), *refusals_together(train, val)]
    report(train)
    report(val)
    if not refused:
        _warn(_warnings_together(train, val))
    refuse(refused)
    if min(len(train.metadata), batch_size) * math.prod(side // smallest for side in size) < 2:
        finding = f"{size[0]} and {size[1]}, of which batches of one leave BatchNorm a single pixel at the bottom"
        raise BadInput(names, finding, f"Give {2 * smallest} or more")
    contents = sorted((image.name, m.digest) for f in (train, val) for (image, _), m in f.metadata.items())
    digest = hashlib.sha256(repr(contents).encode()).hexdigest()
    return {"train": len(train.metadata), "val": len(val.metadata), "digest": digest}


def crops_per_image(folder: Prepared, crop: int) -> int:
    """How many squares of `crop` pixels a side have as many pixels as the images do, on average; 1 without any."""
    pixels = [math.prod(m.size) for m in folder.metadata.values()]
    return max(1, round(sum(pixels) / len(pixels) / crop**2)) if crop and pixels else 1


def report(folder: Prepared, origins: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Print what a folder holds, what perfect masks would score, and its warnings, with a file's own name if
    `origins` has it for a copy's path."""
    metadata = folder.metadata.values()
    parts = [f"{counted(len(metadata), 'image')} with {'a mask' if len(metadata) == 1 else 'masks'}"]
    if metadata:
        sizes, shares = sorted({m.size for m in metadata}, key=math.prod), [m.foreground for m in metadata]
        mean = sum(shares) / len(shares)
        parts.append(" to ".join(_shown(size) for size in dict.fromkeys((sizes[0], sizes[-1]))))
        parts.append(f"foreground {mean:.1%} on average, {min(shares):.1%} to {max(shares):.1%}")
    if folder.reading.classes.multiclass:
        parts.append(f"classes {' '.join(map(str, sorted(_classes(folder)))) or 'none'}")
    counts = {"car": _cars(folder), "skipped file": folder.scan.skipped}
    parts += [counted(len(items), noun) for noun, items in counts.items() if items]
    if metadata and _ceiling(folder) < 0.9995:
        parts.append(f"perfect masks of {_shown(folder.reading.size)} would score {_ceiling(folder):.3f}")
    print(f"{folder.image_dir}: {'; '.join(parts)}")
    _warn(_warnings(folder), origins)


def refusals(folder: Prepared, smallest: int = 16) -> list[BadInput]:
    """All that is wrong with one folder for a network that needs `smallest` pixels a side: train.py's needs 16."""
    found, metadata = [*folder.bad], folder.metadata.items()
    for (image, _), m in metadata:
        if min(m.size) < smallest:
            finding = f"{_shown(m.size)} pixels, and each side needs {smallest}"
            found.append(BadInput(image, finding, "Remove it with its mask"))
    found += _palette_conflicts(folder)
    if metadata and not any(m.foreground for _, m in metadata):  # of one mask alone it is a fair example
        finding, remedy = "are background alone", "Foreground is 1, or 128 and up: look at the masks"
        if folder.reading.classes.multiclass:  # black-and-white masks, whose 255 is ignored
            finding = "hold nothing but background and ignored pixels"
            remedy = "Give NUM_CLASSES 1 for masks in black and white"
        found.append(BadInput(folder.mask_dir, f"all {len(metadata)} masks {finding}", remedy))
    return [*found, *_lost(folder, vanished=True)]


def refusals_together(train: Prepared, val: Prepared) -> list[BadInput]:
    """All that is wrong with two folders, sound by themselves, for training and validation."""
    trained = {m.digest: image for (image, _), m in train.metadata.items()}
    return [
        BadInput(image, f"the very image that is also trained on, as {trained[m.digest]}", "Keep it on one side")
        for (image, _), m in val.metadata.items()
        if m.digest in trained
    ]


def _warnings(folder: Prepared) -> Iterator[BadInput]:
    multiclass, size = folder.reading.classes.multiclass, folder.reading.size
    for (image, mask), m in folder.metadata.items():
        if m.foreground == 1 and not multiclass:
            yield BadInput(mask, "foreground in every pixel", "Look whether the mask is meant so")
        if m.between:
            finding = f"values between black and white in {m.between:.1%} of its pixels"
            yield BadInput(mask, finding, "They are cut at half: look whether the mask is meant so")
        if m.reoriented:
            remedy = "If the mask was drawn on the image as it is stored, save the image without that orientation"
            yield BadInput(image, "its EXIF orientation rotates or mirrors it, and its mask has none", remedy)
    yield from _lost(folder, vanished=False)
    if folder.metadata and (score := _ceiling(folder)) < CEILING:
        twice, scores = (2 * size[0], 2 * size[1]), []
        for (_, mask), m in list(folder.metadata.items())[:: max(1, len(folder.metadata) // 8)]:
            scaled = replace(folder.reading, size=tuple(map(min, twice, m.size)))
            scores.append(ceiling(read_mask(mask, replace(scaled, size=None)), read_mask(mask, scaled)))
        then = f"at {_shown(twice)}, {sum(scores) / len(scores):.2f}; with CROP, 1.00"
        finding = f"even perfect masks would score {score:.2f} at their own size when the network sees"
        yield BadInput(folder.mask_dir, f"fine detail: {finding} {_shown(size)}; {then}", LARGER)
    classes = _classes(folder)
    if multiclass and any(classes):  # if there are none but the background, something else is wrong
        remedy = "It can be neither trained nor scored here: look whether NUM_CLASSES is meant so"
        for number in sorted({*range(folder.reading.classes.count)} - classes):
            yield BadInput(folder.mask_dir, f"class {number} is in no mask", remedy)
        scaled = {n for m in folder.metadata.values() for n, share in enumerate(m.scaled_shares) if share}
        for number in sorted(classes - scaled - {0}):
            finding = f"class {number} is in no mask at {_shown(size)}: what is left of it belongs to other classes"
            yield BadInput(folder.mask_dir, finding, LARGER)
    yield from (BadInput(file, "a mask without an image", "It is not used") for file in folder.scan.unused)
    yield from (BadInput(path, "a subfolder", "What is in it is not used") for path in folder.scan.subfolders)


def _warnings_together(train: Prepared, val: Prepared) -> Iterator[BadInput]:
    names, cars = {image.name for image, _ in train.metadata}, _cars(train)
    for image, _ in val.metadata:
        if image.name in names:
            yield BadInput(image, "a name that stands in training as well", "Look whether both show the same")
    for car, image in _cars(val).items():
        if car in cars:
            finding = f"a view of a car that is also trained on, as in {cars[car]}"
            yield BadInput(image, finding, "Scores come out too high: prepare_data.py split keeps cars whole")


def _warn(found: Iterator[BadInput], origins: Mapping[str, Any] = MappingProxyType({})) -> None:
    for error in by_cause([*found]):
        warn(origins.get(error.subject, error.subject), error.finding, error.remedy)


def _shown(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def _classes(folder: Prepared) -> set[int]:
    """The classes in some mask."""
    return {number for m in folder.metadata.values() for number in m.classes}


def _cars(folder: Prepared) -> dict[str, Path]:
    """Carvana's cars, each with one of its images."""
    return {match[1]: image for image, _ in folder.metadata if (match := CARVANA_NAME.match(image.stem))}


def _ceiling(folder: Prepared) -> float:
    """The mean Dice at the images' own sizes of masks that are perfect at the network's size."""
    scores = [m.ceiling for m in folder.metadata.values()]
    return sum(scores) / len(scores)


def _palette_conflicts(folder: Prepared) -> Sequence[BadInput]:
    """The first mask with a palette that gives a colour another index than a mask before it does."""
    first: dict[str, tuple[Path, int]] = {}
    for (_, mask), m in folder.metadata.items():
        for colour, index in m.palette:
            other, expected = first.setdefault(colour, (mask, index))
            if index != expected:
                conflict = f"#{colour} is number {index}, and in {other.name} number {expected}"
                remedy = "Save all masks with one palette, or with class numbers as gray values"
                return [BadInput(mask, f"its palette differs from that of other masks: {conflict}", remedy)]
    return []


def _lost(folder: Prepared, vanished: bool) -> Sequence[BadInput]:
    """Findings about masks that lose more than KEPT allows at the network's size, the worst first. With `vanished`,
    one about the folder instead, if nothing is left of most: a network that predicts nothing would score 1."""
    drawn = {mask: m for (_, mask), m in folder.metadata.items() if m.foreground}
    kept = {mask: m.scaled_foreground / m.foreground for mask, m in drawn.items()}
    lost = sorted((mask for mask in kept if kept[mask] < KEPT), key=kept.get)
    empty = sum(kept[mask] == 0 for mask in lost)
    if not lost or vanished != (empty > len(drawn) / 2):
        return []
    better = _size_that_keeps(lost[0], drawn[lost[0]], folder.reading)
    detail = f"at {_shown(folder.reading.size)}; at {_shown(better)} it would be kept"
    if vanished:
        finding = f"too thin: nothing is left of {empty} of {len(drawn)} masks {detail}"
        return [BadInput(folder.mask_dir, finding, LARGER)]
    return [BadInput(mask, f"too thin: more than half of its foreground is lost {detail}", LARGER) for mask in lost]


def _size_that_keeps(mask: Path, metadata: Metadata, reading: Reading) -> Size:
    """The smallest of the whole fractions of a mask's own size that keeps its foreground."""
    for divisor in range(16, 1, -1):
        size = metadata.size[0] // divisor, metadata.size[1] // divisor
        if (
            min(size)
            and (read_mask(mask, replace(reading, size=size)) % 255 > 0).mean() >= KEPT * metadata.foreground
        ):
            return size
    return metadata.size
