"""What can be wrong with images and masks that reading a single pair doesn't tell, before a run begins.

`support/reading.py` refuses what is wrong with one file or pair. The rules here judge a whole folder, or training
and validation together. A refusal names each file; a warning stands for all of its kind in one line.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from os.path import samefile
from pathlib import Path
from types import MappingProxyType
from typing import Any

from support.errors import BadInput, by_cause, counted, refuse, warn
from support.pairs import CARVANA_NAME
from support.preparation import Prepared
from support.reading import IGNORED, Reading, Size, ceiling, read_mask

KEPT = 0.5  # of a mask's foreground: with less at the network's size, it has lost too much
CEILING = 0.95  # Dice at full size that perfect masks should be able to have
LARGER = "Give a larger IMAGE_HEIGHT and IMAGE_WIDTH, or CROP, say 256"


def check_run(train: Prepared, val: Prepared, levels: int, at_once: int, crop: int = 0) -> dict[str, Any]:
    """Print what both folders hold, warn of what may be wrong, and return what a checkpoint tells of the images:
    their counts, and a digest of all of them. Raises BadInput with all that is wrong.

    A network halves an image once for each of its `levels`, so they say how small it may be, for a process that
    computes so many images `at_once`; with `crop`, it is squares of so many pixels that it sees.
    """
    if samefile(train.image_dir, val.image_dir):
        finding = "the folder of the training images, too"
        raise BadInput(val.image_dir, finding, "Give others for validation: prepare_data.py split divides a set")
    smallest, size = 2**levels, train.reading.size or (crop, crop)
    refuse([*refusals(train, smallest), *refusals(val, smallest), *refusals_together(train, val)])
    largest = max(max(m.size) for m in train.metadata.values())
    if crop > largest:
        raise BadInput("CROP", f"{crop}, where the largest image has {largest} pixels", "Give less")
    if min(len(train.metadata), at_once) * math.prod(side // smallest for side in size) < 2:
        finding = f"{size[0]} and {size[1]}, of which {levels} levels leave BatchNorm a single pixel or none"
        names = "CROP" if crop else "IMAGE_HEIGHT and IMAGE_WIDTH"
        raise BadInput(names, finding, f"Give {2 * smallest} or more, or fewer FEATURES")
    report(train)
    report(val)
    _warn(_warnings_together(train, val))
    contents = sorted((image.name, m.digest) for f in (train, val) for (image, _), m in f.metadata.items())
    digest = hashlib.sha256(repr(contents).encode()).hexdigest()
    return {"train": len(train.metadata), "val": len(val.metadata), "digest": digest}


def crops_per_image(folder: Prepared, crop: int) -> int:
    """How many squares of `crop` pixels a side have as many pixels as the images do, on average; 1 without any."""
    pixels = sum(math.prod(m.size) for m in folder.metadata.values())
    return max(1, round(pixels / len(folder.metadata) / crop**2)) if crop else 1


def report(folder: Prepared, origins: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Print what a folder holds, what perfect masks would score, and its warnings, with a file's own name if
    `origins` has it for a copy's path."""
    metadata = folder.metadata.values()
    sizes, shares = sorted({m.size for m in metadata}, key=math.prod), [m.foreground for m in metadata]
    mean = sum(shares) / len(shares)
    parts = [
        f"{counted(len(metadata), 'image')} with masks",
        " to ".join(_shown(size) for size in dict.fromkeys((sizes[0], sizes[-1]))),
        f"foreground {mean:.1%} on average, {min(shares):.1%} to {max(shares):.1%}",
    ]
    if folder.reading.classes.multiclass:
        parts.append(f"classes {' '.join(map(str, sorted(_classes(folder))))}")
    if folder.scan.skipped:
        parts.append(counted(len(folder.scan.skipped), "skipped file"))
    if _ceiling(folder) < 0.9995:
        parts.append(f"perfect masks of {_shown(folder.reading.size)} would score {_ceiling(folder):.3f}")
    print(f"{folder.image_dir}: {'; '.join(parts)}")
    _warn(_warnings(folder), origins)


def refusals(folder: Prepared, smallest: int = 16) -> list[BadInput]:
    """All that is wrong with one folder for a network that needs `smallest` pixels a side: train.py's needs 16."""
    metadata, numbers = folder.metadata.values(), {}
    found = [*folder.bad]
    for (image, mask), m in folder.metadata.items():
        if min(m.size) < smallest:
            finding = f"{_shown(m.size)} pixels, and each side needs {smallest}"
            found.append(BadInput(image, finding, "Remove it with its mask"))
        for colour, number in m.palette.items():
            other, first = numbers.setdefault(colour, (mask, number))
            if number != first:
                finding = f"#{colour} is number {number} in its palette, and {first} in that of {other.name}"
                found.append(BadInput(mask, finding, "Save all masks with one palette, or as gray values"))
    drawn = [m for m in metadata if m.foreground]
    if metadata and not drawn:
        finding, remedy = "are background alone", "Foreground is 1, or 128 and up: look at the masks"
        if folder.reading.classes.multiclass:  # black-and-white masks, whose 255 is ignored
            finding = "hold nothing but background and ignored pixels"
            remedy = "Give NUM_CLASSES 1 for masks in black and white"
        found.append(BadInput(folder.mask_dir, f"all {len(metadata)} masks {finding}", remedy))
    elif (lost := sum(not m.scaled_foreground for m in drawn)) > len(drawn) / 2:  # predicting nothing would score 1
        better = _size_that_keeps(_lost(folder)[0], folder.reading)
        finding = f"too thin: nothing is left of {lost} of {len(drawn)} masks at {_shown(folder.reading.size)}"
        finding += f"; {_shown(better)} would keep the worst"
        found.append(BadInput(folder.mask_dir, finding, LARGER))
    return found


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
    for (_, mask), m in folder.metadata.items():
        if m.foreground == 1 and not multiclass:
            yield BadInput(mask, "foreground in every pixel", "Look whether the mask is meant so")
        if m.between:
            finding = f"values between black and white in {m.between:.1%} of its pixels"
            yield BadInput(mask, finding, "They are cut at half: look whether the mask is meant so")
    if lost := _lost(folder):
        better = _size_that_keeps(lost[0], folder.reading)
        finding = f"too thin: more than half of it is lost at {_shown(size)}, and would be kept at {_shown(better)}"
        yield from (BadInput(mask, finding, LARGER) for mask in lost)
    if (score := _ceiling(folder)) < CEILING:
        twice = (2 * size[0], 2 * size[1])
        then = f"{score:.2f} at {_shown(size)}, {_ceiling_at(twice, folder):.2f} at {_shown(twice)}, 1.00 with CROP"
        finding = f"fine detail: even perfect masks would score at their own size no more than {then}"
        yield BadInput(folder.mask_dir, finding, LARGER)
    if multiclass:
        scaled = {number for m in folder.metadata.values() for number, share in enumerate(m.scaled_shares) if share}
        for number in sorted({*range(folder.reading.classes.count)} - scaled):
            lost = f" at {_shown(folder.reading.size)}" if number in _classes(folder) else ""
            remedy = "It can be neither trained nor scored here: look whether NUM_CLASSES is meant so"
            yield BadInput(folder.mask_dir, f"class {number} is in no mask{lost}", LARGER if lost else remedy)
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
    return {number for m in folder.metadata.values() for number, share in enumerate(m.shares) if share}


def _cars(folder: Prepared) -> dict[str, Path]:
    """Carvana's cars, each with one of its images."""
    return {match[1]: image for image, _ in folder.metadata if (match := CARVANA_NAME.match(image.stem))}


def _lost(folder: Prepared) -> list[Path]:
    """The masks that lose more than KEPT allows at the network's size, the worst first."""
    masks = {mask: m for (_, mask), m in folder.metadata.items() if m.scaled_foreground < KEPT * m.foreground}
    return sorted(masks, key=lambda mask: masks[mask].scaled_foreground / masks[mask].foreground)


def _size_that_keeps(mask: Path, reading: Reading) -> Size:
    """The smallest of the whole fractions of a mask's own size that keeps its foreground."""
    whole = read_mask(mask, replace(reading, size=None)) % IGNORED > 0
    for divisor in range(16, 1, -1):
        size = whole.shape[0] // divisor, whole.shape[1] // divisor
        if min(size) and (read_mask(mask, replace(reading, size=size)) % IGNORED > 0).mean() >= KEPT * whole.mean():
            return size
    return whole.shape


def _ceiling(folder: Prepared) -> float:
    """The mean Dice at the images' own sizes of masks that are perfect at the network's size."""
    return sum(m.ceiling for m in folder.metadata.values()) / len(folder.metadata)


def _ceiling_at(size: Size, folder: Prepared) -> float:
    """The same at another size, of a few masks."""
    masks = [(mask, m.size) for (_, mask), m in folder.metadata.items()][:: max(1, len(folder.metadata) // 8)]
    sizes = [(mask, replace(folder.reading, size=tuple(map(min, size, own)))) for mask, own in masks]
    scores = [ceiling(read_mask(mask, replace(at, size=None)), read_mask(mask, at)) for mask, at in sizes]
    return sum(scores) / len(scores)
