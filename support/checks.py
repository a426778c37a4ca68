"""The check of the images and masks that a run is to use, before it begins.

What a single file or pair can have wrong is refused by reading.py, in training and prediction too. The rules here
need more: the other files, or the network. They stand in four tables; a refusal names each file, a warning stands
for all of them in one line.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from os.path import samefile
from pathlib import Path
from typing import Any, NamedTuple

from support.errors import BadInput, counted, refuse, warn
from support.pairs import CARVANA_NAME, Scan, scan
from support.preparation import gather_facts
from support.reading import ONE_CLASS, Classes, Metadata, Pair, Size

DEFAULT_SMALLEST = 16  # pixels a side that train.py's four levels need


class Folder(NamedTuple):
    """What was found in a folder of images and a folder of their masks."""

    image_dir: Path
    mask_dir: Path
    smallest: int  # pixels that the network needs on each side
    classes: Classes
    scan: Scan
    facts: dict[Pair, Metadata]  # of the pairs that can be read
    bad: list[BadInput]  # what is wrong with the others

    def is_empty(self) -> bool:
        """Whether there are masks, and none has any foreground."""
        return bool(self.facts) and not any(facts.foreground for facts in self.facts.values())

    def names(self) -> dict[str, Path]:
        return {image.name: image for image, _ in self.facts}

    def digests(self) -> dict[str, Path]:
        return {facts.digest: image for (image, _), facts in self.facts.items()}

    def found(self) -> list[int]:
        """The classes that some mask holds, where there are several."""
        return sorted({number for facts in self.facts.values() for number in facts.classes})

    def missing(self) -> list[int]:
        """The others, where there are several. Without any, something else is wrong."""
        if not self.classes.multiclass or self.is_empty() or not self.facts:
            return []
        return sorted({*range(self.classes.count)} - {*self.found()})

    def cars(self) -> dict[str, Path]:
        """Carvana's cars, each with one of its images."""
        return {match[1]: image for image, _ in self.facts if (match := CARVANA_NAME.match(image.stem))}


def _shared(mine: dict[str, Path], others: dict[str, Path]) -> list[tuple[Path, Path]]:
    """What has the same key in both."""
    return [(mine[key], others[key]) for key in mine if key in others]


class Rule(NamedTuple):
    """Something that may be wrong: the files that break it, each with a detail to name; what to say, what to do."""

    broken: Callable[..., Iterable[tuple[Path, Any]]]
    finding: str
    remedy: str


REFUSED = (
    Rule(  # nothing can be learnt from them, and the network halves a picture once for each level
        lambda f: (
            (i, f"{a.size[1]}x{a.size[0]} pixels, where each side needs {f.smallest}")
            for (i, _), a in f.facts.items()
            if min(a.size) < f.smallest
        ),
        "{}",
        "Remove it with its mask",
    ),
    Rule(  # one without foreground is a fair example; a folder of them is a mistake
        lambda f: [(f.mask_dir, len(f.facts))] * (not f.classes.multiclass and f.is_empty()),
        "all {} masks are background alone",
        "Foreground is 1, or 128 and up: look at the masks",
    ),
    Rule(  # as black-and-white masks are, whose 255 is ignored
        lambda f: [(f.mask_dir, len(f.facts))] * (f.classes.multiclass and f.is_empty()),
        "all {} masks hold nothing but background and what is ignored",
        "Give NUM_CLASSES 1 for masks in black and white",
    ),
)
WARNED = (
    Rule(
        lambda f: (
            (mask, "") for (_, mask), a in f.facts.items() if a.foreground == 1 and not f.classes.multiclass
        ),
        "foreground in every pixel",
        "Look whether the mask is meant so",
    ),
    Rule(
        lambda f: ((mask, f"{a.between:.1%}") for (_, mask), a in f.facts.items() if a.between),
        "values between black and white in {} of its pixels",
        "They are cut at half: look whether the mask is meant so",
    ),
    Rule(
        lambda f: ((f.mask_dir, number) for number in f.missing()),
        "class {} is in no mask",
        "It can be neither learnt nor scored here: look whether NUM_CLASSES is meant so",
    ),
    Rule(lambda f: ((file, "") for file in f.scan.unused), "a mask without a image", "It is not used"),
    Rule(lambda f: ((folder, "") for folder in f.scan.subfolders), "a subfolder", "What is in it is not used"),
)
# Of a folder for training and one for validation.
REFUSED_TOGETHER = (
    Rule(  # a score on what was learnt by heart says nothing
        lambda train, val: _shared(val.digests(), train.digests()),
        "the very image that is also learnt from, as {}",
        "Keep it on one side",
    ),
)
WARNED_TOGETHER = (
    Rule(
        lambda train, val: _shared(val.names(), train.names()),
        "a name that stands in training as well",
        "Look whether both show the same",
    ),
    Rule(
        lambda train, val: _shared(val.cars(), train.cars()),
        "a view of a car that is also learnt from, as in {}",
        "Scores come out too high: prepare_data.py split keeps cars whole",
    ),
)


def check_folder(
    image_dir: str | Path, mask_dir: str | Path, cache_dir: str | Path = "", classes: Classes = ONE_CLASS
) -> None:
    """Check images and their masks, and say what is there. Raises BadInput with all that is wrong."""
    folder = _look(image_dir, mask_dir, None, cache_dir, DEFAULT_SMALLEST, classes)
    _report([folder])
    refuse(_refusals(folder))


def check_run(
    dirs: Sequence[str | Path],
    size: Size,
    features: Sequence[int],
    batch_size: int,
    cache_dir: str | Path = "",
    classes: Classes = ONE_CLASS,
) -> dict[str, Any]:
    """Check what a run is to use: images and masks of training (`dirs` begins with them), and of validation.

    Warns, sums up, and returns what tells these images from others. The same pass over the files makes the
    cache in `cache_dir`, which also remembers what was checked. Raises BadInput with all that is wrong.
    """
    smallest = 2 ** len(features)
    if min(size) < smallest:
        finding = f"{size[0]} and {size[1]}, which a network of {len(features)} levels shrinks to nothing"
        raise BadInput("IMAGE_HEIGHT and IMAGE_WIDTH", finding, f"Give {smallest} or more, or fewer FEATURES")
    if all(map(Path.is_dir, map(Path, dirs))) and samefile(dirs[0], dirs[2]):
        finding = "the folder of the training images, too"
        raise BadInput(dirs[2], finding, "Give others to score on: prepare_data.py split shares them out")
    train, val = folders = [_look(*pair, size, cache_dir, smallest, classes) for pair in (dirs[:2], dirs[2:])]
    _report(folders)
    refused = [*_refusals(train), *_refusals(val), *_broken(REFUSED_TOGETHER, train, val)]
    if not refused:
        _warn(WARNED_TOGETHER, train, val)
    refuse(refused)
    if min(len(train.facts), batch_size) * math.prod(side // smallest for side in size) < 2:
        finding = f"{size[0]} and {size[1]}, of which batches of one leave BatchNorm a single pixel at the bottom"
        raise BadInput("IMAGE_HEIGHT and IMAGE_WIDTH", finding, f"Give {2 * smallest} or more")
    contents = sorted(
        (image.name, facts.digest) for folder in folders for (image, _), facts in folder.facts.items()
    )
    return {
        "train": len(train.facts),
        "val": len(val.facts),
        "digest": hashlib.sha256(repr(contents).encode()).hexdigest(),
    }


def _look(
    image_dir: str | Path,
    mask_dir: str | Path,
    size: Size | None,
    cache_dir: str | Path,
    smallest: int,
    classes: Classes,
) -> Folder:
    found = scan(image_dir, mask_dir)
    facts = dict(zip(found.pairs, gather_facts(found.pairs, size, cache_dir, classes), strict=True))
    good = {pair: fact for pair, fact in facts.items() if isinstance(fact, Metadata)}
    bad = [fact for fact in facts.values() if isinstance(fact, BadInput)]
    return Folder(Path(image_dir), Path(mask_dir), smallest, classes, found, good, [*found.bad, *bad])


def _refusals(folder: Folder) -> list[BadInput]:
    return [*folder.bad, *_broken(REFUSED, folder)]


def _broken(rules: Iterable[Rule], *folders: Folder) -> list[BadInput]:
    return [
        BadInput(path, rule.finding.format(detail), rule.remedy)
        for rule in rules
        for path, detail in rule.broken(*folders)
    ]


def _warn(rules: Iterable[Rule], *folders: Folder) -> None:
    for rule in rules:
        if broken := _broken([rule], *folders):
            more = f" (and {len(broken) - 1} like it)" if len(broken) > 1 else ""
            warn(broken[0].subject, broken[0].finding + more, rule.remedy)


def _report(folders: Iterable[Folder]) -> None:
    """Print what each folder holds, and its warnings."""
    for folder in folders:
        facts = folder.facts.values()
        sizes = sorted({fact.size for fact in facts}, key=math.prod)
        ends = " to ".join(f"{width}x{height}" for height, width in dict.fromkeys(sizes[:1] + sizes[-1:]))
        shares = [fact.foreground for fact in facts]
        parts = [f"{counted(len(facts), 'image')} with {'a mask' if len(facts) == 1 else 'masks'}"]
        if shares:
            mean = sum(shares) / len(shares)
            parts += [ends, f"foreground {mean:.1%} on average, {min(shares):.1%} to {max(shares):.1%}"]
        if folder.classes.multiclass:
            parts.append(f"classes {' '.join(map(str, folder.found())) or 'none'}")
        others = {"car": folder.cars(), "skipped file": folder.scan.skipped}
        parts += [counted(len(found), noun) for noun, found in others.items() if found]
        print(f"{folder.image_dir}: {'; '.join(parts)}")
        _warn(WARNED, folder)
