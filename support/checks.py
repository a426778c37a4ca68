"""What can be wrong with images and masks that reading a single pair doesn't tell, before a run begins.

`support/reading.py` refuses what is wrong with one file or pair. The rules here judge a whole folder, or training
and validation together. A refusal names each file; a warning stands for all of its kind in one line.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from os.path import samefile
from types import MappingProxyType
from typing import Any, NamedTuple

from support.errors import BadInput, counted, refuse, warn
from support.pairs import CARVANA_NAME
from support.preparation import Prepared
from support.reading import Metadata, Reading, Size, ceiling, read_mask

CEILING = 0.95  # Dice at full size that perfect masks should be able to have
KEPT = 0.5  # of a mask's foreground: with less at the network's size, it has lost too much


class Rule(NamedTuple):
    """Something that may be wrong: what breaks it, each with a detail to name; what to say; what to do."""

    broken: Callable[..., Iterable[tuple[Any, Any]]]
    finding: str
    remedy: str


def check_run(train: Prepared, val: Prepared, levels: int, batch_size: int, crop: int = 0) -> dict[str, Any]:
    """Print what both folders hold, warn of what may be wrong, and return what a checkpoint tells of the images:
    their counts, and a digest of all of them. Raises BadInput with all that is wrong.

    A network halves an image once for each of its `levels`, so they say how small it may be; with `crop`, it is
    squares of so many pixels that it sees.
    """
    smallest, size, names = (
        2**levels,
        train.reading.size or (crop, crop),
        "CROP" if crop else "IMAGE_HEIGHT and IMAGE_WIDTH",
    )
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
    for folder in (train, val):
        report(folder)
    if not refused:
        _warn(WARNED_TOGETHER, train, val)
    refuse(refused)
    if min(len(train.metadata), batch_size) * math.prod(side // smallest for side in size) < 2:
        finding = f"{size[0]} and {size[1]}, of which batches of one leave BatchNorm a single pixel at the bottom"
        raise BadInput(names, finding, f"Give {2 * smallest} or more")
    contents = sorted(
        (image.name, m.digest) for folder in (train, val) for (image, _), m in folder.metadata.items()
    )
    digest = hashlib.sha256(repr(contents).encode()).hexdigest()
    return {"train": len(train.metadata), "val": len(val.metadata), "digest": digest}


def crops_per_image(folder: Prepared, crop: int) -> int:
    """How many squares of `crop` pixels a side have as many pixels as the images do, on average; 1 without any."""
    pixels = [math.prod(m.size) for m in folder.metadata.values()]
    return max(1, round(sum(pixels) / len(pixels) / crop**2)) if crop and pixels else 1


def refusals(folder: Prepared, smallest: int = 16) -> list[BadInput]:
    """All that is wrong with one folder for a network that needs `smallest` pixels a side: train.py's needs 16."""
    too_small = [
        BadInput(
            image, f"{m.size[1]}x{m.size[0]} pixels, and each side needs {smallest}", "Remove it with its mask"
        )
        for (image, _), m in folder.metadata.items()
        if min(m.size) < smallest
    ]
    return [*folder.bad, *too_small, *_broken(REFUSED, folder)]


def refusals_together(train: Prepared, val: Prepared) -> list[BadInput]:
    """All that is wrong with two folders, sound by themselves, for training and validation."""
    return _broken(REFUSED_TOGETHER, train, val)


def report(folder: Prepared, origins: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Print what a folder holds, what perfect masks would score, and its warnings, with a file's own name if
    `origins` has it for a copy's path."""
    metadata, found = folder.metadata.values(), _classes(folder)
    sizes = sorted({m.size for m in metadata}, key=math.prod)
    ends = " to ".join(f"{width}x{height}" for height, width in dict.fromkeys(sizes[:1] + sizes[-1:]))
    shares = [m.foreground for m in metadata]
    parts = [f"{counted(len(metadata), 'image')} with {'a mask' if len(metadata) == 1 else 'masks'}"]
    if shares:
        mean = sum(shares) / len(shares)
        parts += [ends, f"foreground {mean:.1%} on average, {min(shares):.1%} to {max(shares):.1%}"]
    if folder.reading.classes.multiclass:
        parts.append(f"classes {' '.join(map(str, found)) or 'none'}")
    counts = {"car": _cars(folder), "skipped file": folder.scan.skipped}
    parts += [counted(len(items), noun) for noun, items in counts.items() if items]
    if folder.reading.size and shares and _ceiling(folder) < 0.9995:
        parts.append(
            f"perfect masks of {folder.reading.size[1]}x{folder.reading.size[0]} would score {_ceiling(folder):.3f}"
        )
    print(f"{folder.image_dir}: {'; '.join(parts)}")
    _warn(WARNED, folder, origins=origins)


def _broken(rules: Iterable[Rule], *folders: Prepared) -> list[BadInput]:
    return [
        BadInput(subject, rule.finding.format(detail), rule.remedy.format(detail))
        for rule in rules
        for subject, detail in rule.broken(*folders)
    ]


def _warn(rules: Iterable[Rule], *folders: Prepared, origins: Mapping[str, Any] = MappingProxyType({})) -> None:
    for rule in rules:
        if broken := _broken([rule], *folders):
            more = f" (and {len(broken) - 1} like it)" if len(broken) > 1 else ""
            subject = origins.get(broken[0].subject, broken[0].subject)
            warn(subject, broken[0].finding + more, broken[0].remedy)


def _classes(folder: Prepared) -> list[int]:
    """The classes in some mask."""
    return sorted({number for m in folder.metadata.values() for number in m.classes})


def _missing(folder: Prepared) -> list[int]:
    """Of several classes, those in no mask. If there are no classes but the background, something else is wrong."""
    if not folder.reading.classes.multiclass or not any(_classes(folder)):
        return []
    return sorted({*range(folder.reading.classes.count)} - {*_classes(folder)})


def _all_background(folder: Prepared) -> list[tuple[Any, int]]:
    empty = folder.metadata and not any(m.foreground for m in folder.metadata.values())
    return [(folder.mask_dir, len(folder.metadata))] if empty else []


def _ceiling(folder: Prepared) -> float:
    """The mean Dice at the images' own sizes of masks that are perfect at the network's size."""
    scores = [m.ceiling for m in folder.metadata.values()]
    return sum(scores) / len(scores)


def _low_ceiling(folder: Prepared) -> list[tuple[Any, str]]:
    """The folder of masks, if perfect ones would score less than CEILING, with what they would at twice the
    size."""
    if not folder.reading.size or not folder.metadata or (score := _ceiling(folder)) >= CEILING:
        return []
    height, width = folder.reading.size
    twice = []
    for (_, mask), m in list(folder.metadata.items())[:: max(1, len(folder.metadata) // 8)]:
        size = min(2 * height, m.size[0]), min(2 * width, m.size[1])
        twice.append(ceiling(*(read_mask(mask, replace(folder.reading, size=s)) for s in (None, size))))
    then = f"at {2 * width}x{2 * height}, {sum(twice) / len(twice):.2f}; with CROP, 1.00"
    return [(folder.mask_dir, f"{score:.2f} at their own size when the network sees {width}x{height}; {then}")]


def _lost(folder: Prepared, vanished: bool) -> list[tuple[Any, str]]:
    """Masks that lose more than KEPT allows at the network's size, each with the size at which it would be kept.
    With `vanished`, the folder of masks instead, if nothing at all is left of most of them."""
    drawn = {mask: m for (_, mask), m in folder.metadata.items() if m.foreground}
    lost = {mask: m for mask, m in drawn.items() if m.scaled_foreground < KEPT * m.foreground}
    empty = sum(not m.scaled_foreground for m in lost.values())
    if not lost or vanished != (empty > len(drawn) / 2):
        return []
    worst = min(lost, key=lambda mask: lost[mask].scaled_foreground / lost[mask].foreground)
    width, height = _size_that_keeps(worst, lost[worst], folder.reading)[::-1]
    detail = f"{folder.reading.size[1]}x{folder.reading.size[0]}; at {width}x{height} it would be kept"
    if vanished:
        return [(folder.mask_dir, f"{empty} of {len(drawn)} masks at {detail}")]
    return [(mask, detail) for mask in (worst, *(lost.keys() - {worst}))]


def _size_that_keeps(mask: Any, metadata: Metadata, reading: Reading) -> Size:
    """The smallest of the whole fractions of a mask's own size that keeps its foreground."""
    for divisor in range(16, 1, -1):
        size = metadata.size[0] // divisor, metadata.size[1] // divisor
        kept = min(size) and (read_mask(mask, replace(reading, size=size)) % 255 > 0).mean()
        if kept >= KEPT * metadata.foreground:
            return size
    return metadata.size


def _vanished(folder: Prepared) -> list[tuple[Any, str]]:
    """Of several classes, those in masks but in none of them at the network's size."""
    scaled = {n for m in folder.metadata.values() for n, share in enumerate(m.scaled_shares) if share}
    gone = {*_classes(folder)} - scaled if folder.reading.classes.multiclass else set()
    if not folder.reading.size:
        return []
    size = f"{folder.reading.size[1]}x{folder.reading.size[0]}"
    return [(folder.mask_dir, f"class {number} is in no mask at {size}") for number in sorted(gone) if number]


def _cars(folder: Prepared) -> dict[str, Any]:
    """Carvana's cars, each with one of its images."""
    return {match[1]: image for image, _ in folder.metadata if (match := CARVANA_NAME.match(image.stem))}


def _in_both(train: Prepared, val: Prepared, key: Callable[[Prepared], dict[str, Any]]) -> list[tuple[Any, Any]]:
    """The validation images, each with the training image of the same key."""
    others = key(train)
    return [(image, others[name]) for name, image in key(val).items() if name in others]


def _palette_conflicts(folder: Prepared) -> list[tuple[Any, str]]:
    """The first mask with a palette that gives a colour another index than a mask before it does."""
    first: dict[str, tuple[Any, int]] = {}
    for (_, mask), m in folder.metadata.items():
        for colour, index in m.palette:
            other, expected = first.setdefault(colour, (mask, index))
            if index != expected:
                return [(mask, f"#{colour} is number {index}, and in {other.name} number {expected}")]
    return []


REFUSED = (
    Rule(  # the classes would be mixed up
        _palette_conflicts,
        "its palette differs from that of other masks: {}",
        "Save all masks with one palette, or with class numbers as gray values",
    ),
    Rule(  # one without foreground is a fair example; a folder of them is a mistake
        lambda f: [] if f.reading.classes.multiclass else _all_background(f),
        "all {} masks are background alone",
        "Foreground is 1, or 128 and up: look at the masks",
    ),
    Rule(  # black-and-white masks, whose 255 is ignored
        lambda f: _all_background(f) if f.reading.classes.multiclass else [],
        "all {} masks hold nothing but background and ignored pixels",
        "Give NUM_CLASSES 1 for masks in black and white",
    ),
    Rule(  # the network would be given empty masks, and score 1 for predicting nothing
        lambda f: _lost(f, vanished=True),
        "too thin: nothing is left of {}",
        "Give a larger IMAGE_HEIGHT and IMAGE_WIDTH, or CROP, say 256",
    ),
)
WARNED = (
    Rule(
        lambda f: (
            (mask, "")
            for (_, mask), m in f.metadata.items()
            if m.foreground == 1 and not f.reading.classes.multiclass
        ),
        "foreground in every pixel",
        "Look whether the mask is meant so",
    ),
    Rule(
        lambda f: ((mask, f"{m.between:.1%}") for (_, mask), m in f.metadata.items() if m.between),
        "values between black and white in {} of its pixels",
        "They are cut at half: look whether the mask is meant so",
    ),
    Rule(
        lambda f: _lost(f, vanished=False),
        "too thin: more than half of its foreground is lost at {}",
        "Give a larger IMAGE_HEIGHT and IMAGE_WIDTH, or CROP, say 256",
    ),
    Rule(
        _low_ceiling,
        "fine detail: even perfect masks would score {}",
        "Give a larger IMAGE_HEIGHT and IMAGE_WIDTH, or CROP, say 256",
    ),
    Rule(
        _vanished,
        "{}: what is left of it belongs to other classes",
        "Give a larger IMAGE_HEIGHT and IMAGE_WIDTH, or CROP, say 256",
    ),
    Rule(
        lambda f: ((image, "") for (image, _), m in f.metadata.items() if m.reoriented),
        "its EXIF orientation rotates or mirrors it, and its mask has none",
        "If the mask was drawn on the image as it is stored, save the image without that orientation",
    ),
    Rule(
        lambda f: ((f.mask_dir, number) for number in _missing(f)),
        "class {} is in no mask",
        "It can be neither trained nor scored here: look whether NUM_CLASSES is meant so",
    ),
    Rule(lambda f: ((file, "") for file in f.scan.unused), "a mask without an image", "It is not used"),
    Rule(lambda f: ((folder, "") for folder in f.scan.subfolders), "a subfolder", "What is in it is not used"),
)
# Of a folder for training and one for validation.
REFUSED_TOGETHER = (
    Rule(  # a score on what was trained on says nothing
        lambda train, val: _in_both(
            train, val, lambda f: {m.digest: image for (image, _), m in f.metadata.items()}
        ),
        "the very image that is also trained on, as {}",
        "Keep it on one side",
    ),
)
WARNED_TOGETHER = (
    Rule(
        lambda train, val: _in_both(train, val, lambda f: {image.name: image for image, _ in f.metadata}),
        "a name that stands in training as well",
        "Look whether both show the same",
    ),
    Rule(
        lambda train, val: _in_both(train, val, _cars),
        "a view of a car that is also trained on, as in {}",
        "Scores come out too high: prepare_data.py split keeps cars whole",
    ),
)
