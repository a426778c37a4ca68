"""Images and masks as people have them, made plain: what `prepare_data.py split` and `check` begin with.

`layouts.py` finds what belongs together, `conversion.py` gives masks the form that train.py reads, and the rules of
`checks.py` judge them all. Files are only read: new ones go into a scratch folder.
"""

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from support.annotations import load_annotations
from support.checks import CEILING, refusals, refusals_together
from support.conversion import Meaning, MissingColours, Sample, classes_in, common_colours, convert, read_colours
from support.errors import BadInput, by_cause, counted, refuse, warn
from support.layouts import listed, match, plain_names, side, tell_apart
from support.pairs import IMAGE_SUFFIXES, MASK_FILES, Scan, list_folder
from support.preparation import Prepared, prepare
from support.reading import IGNORED, WHITE, Classes, Pair, Reading, Size, image_size

OTHER_SUFFIXES = (".gif", ".ppm", ".pgm", ".jp2", ".avif", ".heic", ".heif", ".npy", ".dcm", ".svg", ".psd")
AREA = 160 * 240  # pixels of the size that is suggested, unless fine detail needs more
CROP = 256  # pixels of a side, suggested if even 4 * AREA lose too much


class Found(NamedTuple):
    """What folders hold, before any mask is read."""

    samples: list[Sample]
    bad: list[BadInput]  # what can't be paired
    unused: list[Path]  # masks without an image
    names: list[str]  # of the classes, if outlines tell them
    ignores: bool  # whether outlines leave pixels out


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
    samples, bad, unused, names, ignores = _find(sources, meaning)
    colours: dict[int, int] = {}
    if meaning.colours:
        names, colours = read_colours(meaning.colours)
        ignores = IGNORED in colours.values()
    classes = Classes(1 if meaning.foreground else meaning.num_classes or 1)
    if len(names) > 2 or ignores:
        classes = Classes(max(2, len(names)))
    pairs, refused = _convert(samples, meaning, colours, not classes.multiclass, scratch)
    bad += refused
    origins: dict[str, Path] = {}
    for pair, sample in pairs.items():
        own = (sample.image, sample.masks[0] if isinstance(sample.masks, list) else Path(sources[-1]))
        origins |= {str(new): old for new, old in zip(pair, own, strict=True) if new != old}
    if not pairs:
        _tell(bad or [BadInput(sources[0], "nothing that can be used", "Give other folders or lists")], meaning)
    folders = [Path(source) for source in dict.fromkeys(sources) if Path(source).is_dir()]
    skipped = [folder / name for folder in folders for name in list_files(folder, pictures=False)]
    sizes = [known for image, _ in pairs if (known := image_size(image))] or [(160, 240)]

    def read(reading: Reading) -> Prepared:
        found = Scan(list(pairs), [], unused, [], skipped)
        return prepare(sources[0], sources[len(sources) > 1], reading, "" if origins else cache_dir, found)

    reading = Reading(size or suggest_size(sizes), classes, meaning.in_channels or 3, meaning.range or WHITE)
    prepared, crop = read(reading), 0
    if not (names or meaning.foreground or meaning.num_classes):
        classes = classes_in(prepared)
        if classes.multiclass:
            print(f"masks hold the numbers 0 to {classes.count - 1}: NUM_CLASSES is {classes.count}")
            prepared = read(reading := replace(reading, classes=classes))
    for area in (2 * AREA, 4 * AREA, None):
        if not size and _loses_detail(prepared):
            crop = 0 if area else min(CROP, max(map(max, sizes)) // 16 * 16)
            prepared = read(replace(reading, size=suggest_size(sizes, area) if area else None))
    return _without_bad(Plain(pairs, prepared, names, origins, crop), bad, meaning)


def _convert(
    samples: Sequence[Sample], meaning: Meaning, colours: dict[int, int], one_class: bool, scratch: Path
) -> tuple[dict[Pair, Sample], list[BadInput]]:
    """The samples by their files as train.py reads them, and what is wrong with the others."""
    pairs: dict[Pair, Sample] = {}
    bad: list[BadInput] = []
    lacking: list[Path] = []
    for sample in tqdm(samples, "converting", delay=1):
        try:
            pairs[convert(sample, meaning, colours, one_class, scratch)] = sample
        except MissingColours as error:
            lacking.append(Path(error.subject))
        except BadInput as error:
            bad.append(error)
    if lacking:
        told = f"lacks colours of {counted(len(lacking), 'mask')}: {common_colours(lacking, colours)}"
        remedy = "Add a line for each, called ignore if its pixels are to be left out"
        bad.append(BadInput(meaning.colours, told, remedy))
    return pairs, bad


def _without_bad(plain: Plain, bad: list[BadInput], meaning: Meaning) -> Plain:
    """The set without what can't be used, if that is asked for; raises BadInput if not, or if there is more."""
    prepared, owners = plain.prepared, {str(file): pair for pair in plain.samples for file in pair}
    while single := [error for error in _refused(plain, prepared) if error.subject in owners]:
        bad += [BadInput(plain.origins.get(e.subject, e.subject), e.finding, e.remedy) for e in single]
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


def _swapped(bad: Sequence[BadInput]) -> list[BadInput]:
    """The findings; of a mask that has another image's size, and the other way round, both are named."""
    sizes = {error: re.findall(r"\d+x\d+", error.finding) for error in bad if "its image" in error.finding}
    told = []
    for error in bad:
        others = [other for other in sizes if error in sizes and sizes[other] == sizes[error][::-1]]
        if len(others) == 1:
            more = f", and with {Path(others[0].subject).name} it is the other way round"
            error = BadInput(error.subject, error.finding + more, "Look whether the two are swapped")
        told.append(error)
    return told


def _find(sources: Sequence[str], meaning: Meaning) -> Found:
    if len(sources) not in (1, 2, 4):
        remedy = "Give one folder, images and masks, or both of training and then both of validation"
        raise BadInput(sources[2], "not expected here", remedy)
    if len(sources) < 4:
        return _find_side(Path(sources[0]), Path(sources[-1]), meaning)
    if meaning.train_list or meaning.val_list:
        raise BadInput("--train_list or --val_list", "says nothing beside four folders", "Give one of the two")
    train, val = (_find_side(Path(sources[i]), Path(sources[i + 1]), meaning) for i in (0, 2))
    samples = [s._replace(side=part) for some, part in ((train, "train"), (val, "val")) for s in some.samples]
    if train.names != val.names:  # each side has numbered its own
        finding = f"its classes are {' '.join(val.names)}, those for training {' '.join(train.names)}"
        raise BadInput(sources[3], finding, "Give one folder or file with the annotations of both, and --val_list")
    ignores = train.ignores or val.ignores
    return Found(samples, train.bad + val.bad, train.unused + val.unused, train.names, ignores)


def _find_side(root: Path, mask_root: Path, meaning: Meaning) -> Found:
    images, masks = _images_and_masks(root, mask_root, meaning)
    sides = _listed(images, meaning) or {image: side(image) for image in images}
    images, unused, names, ignores = list(sides), [], [], False
    if not masks and (annotations := load_annotations(mask_root, [root / image for image in images])):
        if meaning.foreground or meaning.colours or meaning.num_classes:
            remedy = "Leave --foreground, --colours and --NUM_CLASSES out"
            raise BadInput(mask_root, "outlines, which tell their classes themselves", remedy)
        names, ignores = ["background", *annotations.names], annotations.ignores
        pairs = {image: draw for image in images if (draw := annotations.masks.get(root / image))}
        remedy = "Annotate it, with an empty file if it shows nothing"
        bad = {image: BadInput(root / image, f"not in {mask_root}", remedy) for image in sides.keys() - pairs}
        print(f"masks are drawn from the outlines in {mask_root}")
    else:
        pairs, bad, unused = _pair(root, images, mask_root, masks, meaning)
    parts = {"", *(sides[image] for image in pairs)} if pairs else {*sides.values()}
    if to_predict := [image for image in images if sides[image] not in parts]:
        print(f"left out: {counted(len(to_predict), 'image')} of a side without masks, as {root / to_predict[0]}")
    bad = [bad[image] for image in images if image in bad and sides[image] in parts]
    sides = _settle({image: sides[image] for image in pairs})
    plain = plain_names(sides)
    samples = [Sample(plain[image], root / image, pairs[image], part) for image, part in sides.items()]
    return Found(samples, bad, unused, names, ignores)


def _images_and_masks(root: Path, mask_root: Path, meaning: Meaning) -> tuple[list[str], list[str]]:
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
    return images, masks


def _pair(
    root: Path, images: Sequence[str], mask_root: Path, masks: Sequence[str], meaning: Meaning
) -> tuple[dict[str, list[Path]], dict[str, BadInput], list[Path]]:
    """The masks of each image, what is wrong with images that have none or two, and masks without an image."""
    if not masks:
        remedy = "Give two folders, IMAGES MASKS, or name masks NAME_mask"
        raise BadInput(mask_root, f"no masks for {counted(len(images), 'image')}", remedy)
    found = match(images, masks, meaning.mask_name)
    if not found.examples:
        finding = f"no mask fits an image: images are called {images[0]}, masks {masks[0]}"
        raise BadInput(mask_root, finding, "Say how masks are called with --mask_name, such as NAME_mask")
    print(f"masks are found by name: {', '.join(f'{mask} of {image}' for mask, image in found.examples)}")
    if several := sum(len(some) > 1 for some in found.pairs.values()):
        print(f"{counted(several, 'image')} with several masks, which are united")
    remedy = "Add it, or say how masks are called with --mask_name"
    bad = {image: BadInput(root / image, f"no mask in {mask_root}", remedy) for image in found.unpaired}
    remedy = "Keep one of them, give the folder of one kind, or say which with --mask_name, such as NAME_mask"
    for image, some in found.clashes.items():
        bad[image] = BadInput(root / image, f"two masks, {' and '.join(some[:2])}", remedy)
    pairs = {image: [mask_root / mask for mask in some] for image, some in found.pairs.items()}
    return pairs, bad, [mask_root / mask for mask in found.unused]


def _settle(sides: dict[str, str]) -> dict[str, str]:
    """The images for training and validation and their sides, "" if folders don't split them so."""
    parts = {*sides.values()}
    if "" in parts or not {"train"} < parts:
        return dict.fromkeys(sides, "")
    if "val" not in parts:
        print("validation is what the folders call test")
        return {image: part.replace("test", "val") for image, part in sides.items()}
    if "test" in parts:
        print(f"left out: {counted([*sides.values()].count('test'), 'image')} of test")
    return {image: part for image, part in sides.items() if part != "test"}


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
        if both := found & sides.keys():
            raise BadInput(name, f"{min(both)} is in the other list, too", "Keep it in one of them")
        if unknown:
            warn(name, f"{counted(len(unknown), 'name')} that no image has, {unknown[0]} for one", "Unused")
        sides |= {image: part for image in images if image in found}
    if sides and not (meaning.train_list and meaning.val_list):
        other = "train" if meaning.val_list else "val"
        sides = {image: sides.get(image, other) for image in images}
    return sides


def list_files(root: Path, pictures: bool = True) -> list[str]:
    """All that may be an image or a mask below a folder, or all else; without what is hidden."""
    list_folder(root)  # raises BadInput for a missing one
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        places = (Path(folder, file).relative_to(root).as_posix() for file in sorted(files) if file[0] != ".")
        found += [place for place in places if place.lower().endswith((*MASK_FILES, *OTHER_SUFFIXES)) == pictures]
    return found


def _median_shape(sizes: Sequence[Size]) -> Size:
    return tuple(round(statistics.median(side)) for side in zip(*sizes, strict=True))


def suggest_size(sizes: Sequence[Size], area: int = AREA) -> Size:
    """(height, width) to train at: of the median shape, with about `area` pixels or all that it has, in multiples
    of 16 and 32 at the least."""
    height, width = _median_shape(sizes)
    scale = min(1, (area / (height * width)) ** 0.5)
    return tuple(max(32, round(side * scale / 16) * 16) for side in (height, width))


def _loses_detail(prepared: Prepared) -> bool:
    """Whether perfect masks at the network's size would score less than a warning allows."""
    scores = [m.ceiling for m in prepared.metadata.values()]
    return bool(scores) and sum(scores) / len(scores) < CEILING


def describe(plain: Plain) -> str:
    """The share of pixels of each class, the median shape, and a size to train at."""
    metadata, classes = plain.prepared.metadata.values(), plain.prepared.reading.classes
    totals = np.sum([np.multiply(m.shares, m.size[0] * m.size[1]) for m in metadata], axis=0)
    shares = totals / sum(m.size[0] * m.size[1] for m in metadata)
    names = plain.names or ([] if classes.multiclass else ["background", "foreground"])
    labels = names if len(names) == len(shares) else [f"class {n}" for n in range(len(shares))]
    told = [f"{label} {share:.1%}" for label, share in zip(labels, shares, strict=True) if share]
    if (ignored := 1 - shares.sum()) > 5e-4:
        told.append(f"ignored {ignored:.1%}")
    (height, width), size = _median_shape([m.size for m in metadata]), plain.prepared.reading.size
    advice = f"its detail is too fine for whole images: train on squares, --CROP {plain.crop}"
    if not plain.crop:
        advice = f"a size to train at: {size[1]}x{size[0]} (width x height)"
    return f"pixels: {', '.join(told)}\nmedian shape {width}x{height}; {advice}"
