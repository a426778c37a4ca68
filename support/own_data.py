"""Images and masks as people have them, made plain: what `prepare_data.py split` and `check` begin with.

`layouts.py` finds what belongs together, `conversion.py` gives masks the form that train.py reads, and the rules of
`checks.py` judge them all. Files are only read: new ones go into a scratch folder.
"""

import os
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from support.annotations import load_annotations
from support.checks import CEILING, refusals, refusals_together
from support.conversion import (
    VALUES,
    Meaning,
    Sample,
    classes_in,
    classes_written,
    convert,
    look_swapped,
    read_colours,
)
from support.errors import BadInput, by_cause, counted, refuse, warn
from support.layouts import Match, listed, match, plain_names, side, tell_apart, two_folders
from support.pairs import IMAGE_SUFFIXES, MASK_FILES, Scan, list_folder
from support.preparation import Prepared, prepare
from support.reading import IGNORED, WHITE, Classes, Pair, Reading, Size, image_size

OTHER_SUFFIXES = (".gif", ".ppm", ".pgm", ".jp2", ".avif", ".heic", ".heif", ".npy", ".dcm", ".svg", ".psd")
AREA = 160 * 240  # pixels of the size that is suggested, unless fine detail needs more
CROP = 256  # pixels of a side, suggested if even 4 * AREA lose too much


class Plain(NamedTuple):
    """A set in the form that train.py reads."""

    samples: dict[Pair, Sample]  # by files as they go into data/, of which some lie in the scratch folder
    prepared: Prepared  # of all of them
    names: list[str]  # of the classes, if they are known
    origins: dict[str, Path]  # of each file in the scratch folder, the user's own
    crop: int  # pixels of a side of the squares to train on, or 0 for whole images of `prepared.size`


def make_plain(
    sources: Sequence[str], meaning: Meaning, scratch: Path, size: Size | None = None, cache_dir: str = ""
) -> Plain:
    """Pair, convert and read all that `sources` hold, at `size` or at one that suits it, and say what was found.

    Raises BadInput with all that is wrong, a line for each cause.
    """
    _refuse_contradictions(sources, meaning)
    samples, bad, unused, names = _find(sources, meaning)
    if names and (meaning.foreground or meaning.colours):
        raise BadInput(sources[-1], "outlines, of which --foreground and --colours say nothing", "Leave them out")
    colours = read_colours(meaning.colours) if meaning.colours else []
    if colours:
        by_number = {colour.number: colour.name for colour in colours if colour.number < IGNORED}
        names = [by_number[number] for number in sorted(by_number)]
    if names and meaning.num_classes not in ((0, 1, 2) if len(names) < 3 else (0, len(names))):
        told = f"{meaning.colours or sources[-1]} has {len(names)}: {' '.join(names)}"
        raise BadInput("NUM_CLASSES", f"{meaning.num_classes}, where {told}", "Leave it out")
    pairs: dict[Pair, Sample] = {}
    origins: dict[str, Path] = {}
    unlisted: Counter[str] = Counter()
    with ThreadPoolExecutor() as pool:  # which decode and encode at the same time
        work = pool.map(lambda sample: convert(sample, meaning, colours, scratch), samples)
        for sample, done in zip(samples, tqdm(work, "converting", len(samples), delay=1), strict=True):
            if isinstance(done, BadInput):
                bad.append(done)
                continue
            pair, shares = done
            pairs[pair] = sample
            unlisted.update(shares)
            own = (sample.image, sample.masks[0] if isinstance(sample.masks, list) else Path(sources[-1]))
            origins |= {str(new): old for new, old in zip(pair, own, strict=True) if new != old}
    if unlisted:
        told = ", ".join(f"{colour} ({n / len(samples):.2%})" for colour, n in unlisted.most_common(8))
        more = f" and {len(unlisted) - 8} more" if len(unlisted) > 8 else ""
        remedy = "Add a line for each, called ignore if its pixels are to be left out"
        raise BadInput(meaning.colours, f"lacks colours of the masks: {told}{more}", remedy)
    if not pairs:
        _tell(bad or [BadInput(sources[0], "nothing that can be used", "Give other folders or lists")], meaning)
    if names:
        written = [Path(path) for path in origins if path.endswith(".mask.png")]
        classes = classes_written(written, len(names))
    else:  # masks with another number for ignored pixels are written anew
        classes = Classes(1 if meaning.foreground else meaning.num_classes or 1)
    folders = [source for source in dict.fromkeys(sources) if Path(source).is_dir()]
    skipped = [Path(folder, name) for folder in folders for name in list_files(Path(folder), False)]
    found = Scan(list(pairs), [], unused, [], skipped)
    sizes = [known for image, _ in pairs if (known := image_size(image))] or [(160, 240)]

    def read(reading: Reading) -> Prepared:
        cache = "" if origins else cache_dir
        return prepare(sources[0], sources[min(1, len(sources) - 1)], reading, cache, found)

    reading = Reading(size or suggest_size(sizes), classes, meaning.in_channels or 3, meaning.range or WHITE)
    prepared, crop = read(reading), 0
    if not (names or meaning.foreground or meaning.num_classes):
        classes = classes_in(prepared, meaning.ignore_index)
        if classes.multiclass:
            print(f"masks hold the numbers 0 to {classes.count - 1}: NUM_CLASSES is {classes.count}")
            prepared = read(reading := replace(reading, classes=classes))
    for area in (2 * AREA, 4 * AREA, None):
        if not size and loses_detail(prepared):
            crop = 0 if area else min(CROP, max(map(max, sizes)) // 16 * 16)
            prepared = read(replace(reading, size=suggest_size(sizes, area) if area else None))
    return _without_bad(Plain(pairs, prepared, names, origins, crop), bad, meaning)


def _refuse_contradictions(sources: Sequence[str], meaning: Meaning) -> None:
    """Raise BadInput if one option makes another one say nothing."""
    Classes(meaning.num_classes or 1, meaning.ignore_index)  # raises BadInput
    another = meaning.ignore_index != IGNORED
    if another and meaning.num_classes < 2:
        raise BadInput("--IGNORE_INDEX", f"{meaning.ignore_index} says nothing alone", "Give --NUM_CLASSES, too")
    lists = meaning.train_list or meaning.val_list
    for option, given, other, beside in (
        ("--foreground", meaning.foreground, "--colours", meaning.colours),
        ("--foreground", meaning.foreground, "--NUM_CLASSES", meaning.num_classes > 1),
        ("--IGNORE_INDEX", another, "--colours", meaning.colours),
        ("--train_list or --val_list", lists, "four folders", len(sources) == 4),
    ):
        if given and beside:
            raise BadInput(option, f"says nothing beside {other}", "Give one of the two")


def _without_bad(plain: Plain, bad: Sequence[BadInput], meaning: Meaning) -> Plain:
    """The set without what can't be used, if that is asked for; raises BadInput if not, or if there is more."""
    prepared, bad = plain.prepared, list(bad)
    owners = {str(file): pair for pair in plain.samples for file in pair}
    while single := [error for error in _refused(plain, prepared) if error.subject in owners]:
        for error in single:
            own = plain.origins.get(error.subject, error.subject)
            remedy = "Change the mask, or give --foreground or --NUM_CLASSES"
            bad.append(BadInput(own, error.finding, remedy if VALUES.match(error.finding) else error.remedy))
        left_out = {owners[error.subject] for error in single}
        metadata = {pair: m for pair, m in prepared.metadata.items() if pair not in left_out}
        prepared = prepared._replace(bad=[], metadata=metadata, records=None)
    whole = refusals(prepared) if prepared.metadata else []
    _tell([*_swapped(bad), *whole], meaning, may_skip=bool(prepared.metadata) and not whole)
    return plain._replace(prepared=prepared, samples={pair: plain.samples[pair] for pair in prepared.metadata})


def _refused(plain: Plain, prepared: Prepared) -> list[BadInput]:
    """All that is wrong with what is left of a set, and with its two sides together."""
    train, val = (
        prepared._replace(metadata={p: m for p, m in prepared.metadata.items() if plain.samples[p].side == side})
        for side in ("train", "val")
    )
    return [*refusals(prepared), *refusals_together(train, val)]


def _tell(bad: Sequence[BadInput], meaning: Meaning, may_skip: bool = False) -> None:
    """Refuse what is wrong, a line a cause, or only warn of it if it may be left out."""
    if meaning.list:
        try:
            Path(meaning.list).write_text("".join(f"{error}\n" for error in bad), encoding="utf-8")
        except OSError as error:
            raise BadInput(meaning.list, f"can't be written ({error.strerror})", "Give another") from error
    if not may_skip or not meaning.skip_bad:
        skip = ", or leave it out with --skip_bad" if may_skip else ""
        refuse([BadInput(e.subject, e.finding, e.remedy + skip) for e in by_cause(bad)])
    for error in by_cause(bad):
        warn(error.subject, error.finding, "Left out")


def _find(sources: Sequence[str], meaning: Meaning) -> tuple[list[Sample], list[BadInput], list[Path], list[str]]:
    """All samples, what can't be paired, masks without an image, and the classes' names if outlines tell them."""
    if len(sources) not in (1, 2, 4):
        remedy = "Give one folder, images and masks, or both of training and then both of validation"
        raise BadInput(sources[2], "not expected here", remedy)
    if len(sources) < 4:
        return _find_side(Path(sources[0]), Path(sources[-1]), meaning)
    train, val = (
        _find_side(Path(images), Path(masks), meaning)
        for images, masks in zip(sources[::2], sources[1::2], strict=True)
    )
    samples = [sample._replace(side=part) for some, part in ((train, "train"), (val, "val")) for sample in some[0]]
    return samples, train[1] + val[1], train[2] + val[2], train[3]


def _find_side(
    root: Path, mask_root: Path, meaning: Meaning
) -> tuple[list[Sample], list[BadInput], list[Path], list[str]]:
    files = list_files(root)
    if mask_root.is_dir() and os.path.samefile(root, mask_root):
        images, masks, others = tell_apart(files, f"{root}/", meaning.mask_name)
        if others:
            print(f"left alone: {counted(len(others), 'file')}, as {root / others[0]}")
    else:
        masks = [] if mask_root.is_file() else list_files(mask_root)
        inside = os.path.relpath(mask_root, root).replace(os.sep, "/") + "/"
        images = [file for file in files if not file.startswith(inside)]
    if not images:
        raise BadInput(root, "no images here", f"Expected files ending in {' '.join(IMAGE_SUFFIXES)}")
    if root != mask_root and look_swapped([root / i for i in images], [mask_root / m for m in masks]):
        finding = f"looks like masks, and {mask_root} like images"
        raise BadInput(root, finding, f"Give {split_command(mask_root, root)}")
    sides = _listed(images, meaning) or {image: side(image) for image in images}
    images, names, unused = list(sides), [], []
    if not masks and (annotations := load_annotations(mask_root, [root / image for image in images])):
        names = ["background", *annotations.names]
        pairs = {image: draw for image in images if (draw := annotations.masks.get(root / image))}
        remedy = "Annotate it, with an empty file if it shows nothing"
        bad = [BadInput(root / image, f"not in {mask_root}", remedy) for image in images if image not in pairs]
        print(f"masks are drawn from the outlines in {mask_root}")
    else:
        found = match(images, masks, meaning.mask_name)
        bad = _unpaired(root, mask_root, found, images, masks)
        pairs = {image: [mask_root / mask for mask in some] for image, some in found.pairs.items()}
        unused = [mask_root / mask for mask in found.unused]
        if pairs:
            print(f"masks are found by: {', '.join(found.schemes)}")
        if several := sum(len(some) > 1 for some in pairs.values()):
            print(f"{counted(several, 'image')} with several masks, which are united")
    parts = {sides[image] for image in pairs}
    # A side of which no image has a mask is there to be predicted.
    unmasked = {str(root / image) for image in images if pairs and sides[image] not in {"", *parts}}
    bad = [error for error in bad if error.subject not in unmasked]
    if "" in parts or not {"train"} < parts:
        sides = dict.fromkeys(images, "")  # not split, or in another way than by folders
    elif "val" not in parts:
        sides = {image: part.replace("test", "val") for image, part in sides.items()}
        print("validation is what the folders call test")
    elif "test" in parts:
        print(f"left out: {counted(sum(sides[image] == 'test' for image in pairs), 'image')} of test")
        pairs = {image: some for image, some in pairs.items() if sides[image] != "test"}
    plain = plain_names({image: sides[image] for image in pairs})
    samples = [Sample(plain[image], root / image, some, sides[image]) for image, some in pairs.items()]
    return samples, bad, unused, names


def list_files(root: Path, pictures: bool = True) -> list[str]:
    """All that may be an image or a mask below a folder, or all else; without what is hidden."""
    list_folder(root)  # raises BadInput for a missing one
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        places = (Path(folder, file).relative_to(root).as_posix() for file in sorted(files) if file[0] != ".")
        found += [place for place in places if place.lower().endswith((*MASK_FILES, *OTHER_SUFFIXES)) == pictures]
    return found


def split_command(*sources: str | Path) -> str:
    return shlex.join(["python", "prepare_data.py", "split", *map(str, sources)])


def _unpaired(
    root: Path, mask_root: Path, found: Match, images: Sequence[str], masks: Sequence[str]
) -> list[BadInput]:
    """What to say of images without a mask, or with two."""
    if not masks:
        if not os.path.samefile(root, mask_root):
            return [BadInput(mask_root, "no masks here", "Give the folder that holds them")]
        finding = f"no masks among {counted(len(images), 'image')}"
        remedy = "Give two folders, IMAGES MASKS, or name masks NAME_mask"
        if folders := two_folders(images):
            of_each = [[root / image for image in images if image.startswith(f"{f}/")] for f in folders]
            order = -1 if look_swapped(*of_each) else 1
            remedy = (
                f"Give {split_command(*(root / folder for folder in folders[::order]))} if it is images and masks"
            )
        return [BadInput(mask_root, finding, remedy)]
    if len(found.unpaired) == len(images):
        finding = f"no mask fits an image: images are called {images[0]}, masks {masks[0]}"
        return [BadInput(mask_root, finding, "Say how masks are called with --mask_name, such as NAME_mask")]
    finding = f"no mask in {mask_root} by {', '.join(found.schemes)}"
    bad = [BadInput(root / image, finding, "Add it, or say how with --mask_name") for image in found.unpaired]
    remedy = "Keep one of them, or say which with --mask_name, such as NAME_mask"
    for image, (first, second, *_) in found.clashes.items():
        finding = f"two masks, {os.path.basename(first)} and {os.path.basename(second)}"
        bad.append(BadInput(root / image, finding, remedy))
    return bad


def _listed(images: Sequence[str], meaning: Meaning) -> dict[str, str]:
    """The side of each image that lists of names tell; of one list, all others are on the other side."""
    sides: dict[str, str] = {}
    for part, name in (("train", meaning.train_list), ("val", meaning.val_list)):
        if not name:
            continue
        try:
            rows = [row.strip() for row in Path(name).read_text(encoding="utf-8").splitlines() if row.strip()]
        except (OSError, ValueError) as error:
            raise BadInput(name, f"can't be read as a list of names ({error})", "Give one name a line") from error
        found, unknown = listed(images, rows)
        if not found:
            raise BadInput(name, f"no image by any of its {counted(len(rows), 'name')}", "Give one name a line")
        if both := [image for image in images if image in found and image in sides]:
            raise BadInput(name, f"{both[0]} is in the other list, too", "Keep it in one of them")
        if unknown:
            warn(name, f"{counted(len(unknown), 'name')} that no image has, {unknown[0]} for one", "Unused")
        sides |= {image: part for image in images if image in found}
    if sides and not (meaning.train_list and meaning.val_list):
        other = "train" if meaning.val_list else "val"
        sides = {image: sides.get(image, other) for image in images}
    return sides


def _swapped(bad: Sequence[BadInput]) -> list[BadInput]:
    """The findings; of a mask that has another image's size, and the other way round, both are named."""
    sizes = [re.search(r"is (\d+x\d+), its image (\d+x\d+)", error.finding) for error in bad]
    told = []
    for error, found in zip(bad, sizes, strict=True):
        wanted = found and found.groups()[::-1]
        others = [e for e, other in zip(bad, sizes, strict=True) if other and other.groups() == wanted]
        if len(others) == 1:
            more = f", and with {Path(others[0].subject).name} it is the other way round"
            error = BadInput(error.subject, error.finding + more, "Look whether the two are swapped")
        told.append(error)
    return told


def median_shape(sizes: Sequence[Size]) -> Size:
    return tuple(round(statistics.median(side)) for side in zip(*sizes, strict=True))


def suggest_size(sizes: Sequence[Size], area: int = AREA) -> Size:
    """(height, width) to train at: of the median shape, with about `area` pixels or all that it has, in multiples
    of 16 and 32 at the least."""
    height, width = median_shape(sizes)
    scale = min(1, (area / (height * width)) ** 0.5)
    return tuple(max(32, round(side * scale / 16) * 16) for side in (height, width))


def describe(plain: Plain) -> str:
    """The share of pixels of each class, the median shape, and a size to train at."""
    metadata, classes = plain.prepared.metadata.values(), plain.prepared.reading.classes
    names = plain.names or ([] if classes.multiclass else ["background", "foreground"])
    totals = np.sum([np.multiply(m.shares, m.size[0] * m.size[1]) for m in metadata], axis=0)
    pixels = sum(m.size[0] * m.size[1] for m in metadata)
    labels = names if len(names) == len(totals) else [f"class {n}" for n in range(len(totals))]
    shares = ", ".join(
        f"{label} {total / pixels:.1%}" for label, total in zip(labels, totals, strict=True) if total
    )
    if (ignored := 1 - totals.sum() / pixels) > 5e-4:
        shares += f", ignored {ignored:.1%}"
    (height, width), size = median_shape([m.size for m in metadata]), plain.prepared.reading.size
    advice = f"its detail is too fine for whole images: train on squares, --CROP {plain.crop}"
    if not plain.crop:
        advice = f"a size to train at: {size[1]}x{size[0]} (width x height)"
    return f"pixels: {shares}\nmedian shape {width}x{height}; {advice}"


def loses_detail(prepared: Prepared) -> bool:
    """Whether perfect masks at the network's size would score less than a warning allows."""
    scores = [m.ceiling for m in prepared.metadata.values()]
    return bool(scores) and sum(scores) / len(scores) < CEILING
