"""Masks of other kinds, as class numbers or 0 and 255: several for an image, object numbers, colours, outlines."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from support.errors import BadInput, counted
from support.pairs import IMAGE_SUFFIXES, MASK_ENDINGS
from support.preparation import Prepared
from support.reading import IGNORED, Classes, Pair, Reading, read_mask, read_values

VALUES = re.compile(r"values up to|a mask in colour|a palette in colour, whose black")  # findings about one class
SPECIAL = dict.fromkeys(("ignore", "void", "unlabelled", "unlabeled"), IGNORED) | {"background": 0, "bg": 0}


@dataclass(frozen=True)
class Meaning:
    """What a user says about his data, each the command's option of that name."""

    mask_name: str = ""
    foreground: str = ""
    colours: str = ""
    num_classes: int = 0  # 0 for what the masks hold
    ignore_index: int = 255
    in_channels: int = 0  # 0 for 3
    range: int = 0  # 0 for 65535
    train_list: str = ""
    val_list: str = ""
    list: str = ""
    skip_bad: bool = False


class Sample(NamedTuple):
    name: str  # without an ending, of its own on its side
    image: Path
    masks: list[Path] | Callable[[], np.ndarray]  # files, or what draws it
    side: str  # "train", "val" or "", if the set isn't split yet


def convert(
    sample: Sample, meaning: Meaning, colours: Sequence["Colour"], scratch: Path
) -> tuple[Pair, dict[str, float]] | BadInput:
    """A sample's files as train.py reads them: its own, or new ones; and shares of colours that aren't listed."""
    name = f"{sample.side}.{sample.name}"
    shares: dict[str, float] = {}
    try:
        image = sample.image
        if image.suffix.lower() not in IMAGE_SUFFIXES:
            image = scratch / f"{name}.png"
            try:
                with Image.open(sample.image) as picture:
                    picture.convert("RGB").save(image)
            except Exception as error:  # of formats that Pillow doesn't know, and broken files
                what = f"a {sample.image.suffix.lower()} file, which can't be read"
                raise BadInput(sample.image, what, "Save it as JPEG or PNG") from error
        masks, values = sample.masks, None
        if not isinstance(masks, list):
            values = masks()
        elif colours:
            values, shares = _from_colours(masks, colours)
        elif meaning.foreground:
            values = np.maximum.reduce([_from_values(mask, meaning.foreground) for mask in masks])
        elif len(masks) > 1:
            if meaning.num_classes > 1:
                raise BadInput(sample.image, "several masks, which can be united for one class alone", "Keep one")
            values = np.maximum.reduce([read_mask(mask) for mask in masks]) * np.uint8(255)
        elif masks[0].suffix.lower() not in MASK_ENDINGS:
            values = read_values(masks[0])
        elif meaning.ignore_index != IGNORED:
            values = read_mask(masks[0], Reading(classes=Classes(meaning.num_classes, meaning.ignore_index)))
        if values is None:
            return (image, masks[0]), shares
        Image.fromarray(values).save(mask := scratch / f"{name}.mask.png")
        return (image, mask), shares
    except BadInput as error:
        return error
    except ValueError as error:  # masks of one image that differ in size
        return BadInput(sample.image, f"its masks can't be united ({error})", "Give all of them the image's size")


def _from_values(mask: Path, foreground: str) -> np.ndarray:
    values = read_values(mask)
    if values.ndim > 2:
        raise BadInput(mask, "a mask in colour", "Give --colours")
    try:
        chosen = (
            values != 0 if foreground == "nonzero" else np.isin(values, [int(n) for n in foreground.split(",")])
        )
    except ValueError as error:
        raise BadInput(
            "--foreground", f"{foreground!r} can't be used", "Give nonzero, or numbers as 1,2"
        ) from error
    return chosen.astype(np.uint8) * 255


class Colour(NamedTuple):
    name: str
    rgb: tuple[int, int, int]
    number: int  # of its class


def read_colours(file: str) -> list[Colour]:
    """The colours of a list, such as CVAT's `car:128,0,0::`, CamVid's `128 0 0 car` or `#800000 car`.

    Classes are numbered in the list's order. One called background is 0; ignore, void and unlabelled are ignored.
    """
    try:
        rows = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(
            file, f"can't be read as a list of colours ({error})", "Give a line R G B NAME each"
        ) from error
    found: list[tuple[str, tuple[int, int, int]]] = []
    for row in rows:
        if hexed := re.search(r"#([0-9a-fA-F]{6})\b", row):
            rgb, rest = tuple(bytes.fromhex(hexed[1])), row.replace(hexed[0], " ")
        elif numbers := re.search(r"(?<![\w.])(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?![\w.])", row):
            rgb, rest = tuple(map(int, numbers.groups())), row.replace(numbers[0], " ", 1)
        else:
            continue
        words = [word.strip() for word in re.split(r"[:,;\t]|\s{2,}", rest) if word.strip()]
        found.append((words[0] if words else "#" + bytes(rgb).hex(), rgb))
    if not found or any(max(rgb) > 255 for _, rgb in found):
        raise BadInput(file, "no list of colours", "Give a line R G B NAME for each colour, from 0 to 255")
    special = {name: SPECIAL[name.strip("_").lower()] for name, _ in found if name.strip("_").lower() in SPECIAL}
    others = list(dict.fromkeys(name for name, _ in found if name not in special))
    first = 1 if 0 in special.values() else 0
    numbers = special | {name: number for number, name in enumerate(others, first)}
    return [Colour(name, rgb, numbers[name]) for name, rgb in found]


def _from_colours(masks: Sequence[Path], colours: Sequence[Colour]) -> tuple[np.ndarray, dict[str, float]]:
    """Class numbers of a mask in colour, and the shares of colours that aren't listed."""
    if len(masks) > 1:
        raise BadInput(masks[1], "a second mask in colour for its image", "Keep one")
    codes = _codes(masks[0])
    found, counts = np.unique(codes, return_counts=True)
    numbers = {int.from_bytes(bytes(colour.rgb), "big"): colour.number for colour in colours}
    shares = Counter(
        {f"#{c:06x}": n / codes.size for c, n in zip(found.tolist(), counts, strict=True) if c not in numbers}
    )
    table = np.array([numbers.get(code, IGNORED) for code in found.tolist()], np.uint8)
    return table[np.searchsorted(found, codes)], dict(shares.most_common(99))


def _codes(mask: Path) -> np.ndarray:
    return read_values(mask, colour=True).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])


def look_swapped(images: Sequence[Path], masks: Sequence[Path]) -> bool:
    """Whether files given as images have the few values of masks, and those given as masks the many of images."""
    with suppress(BadInput):
        few, many = ([len(np.unique(_codes(file))) for file in files[:3]] for files in (images, masks))
        return max(few, default=99) <= 32 < min(many, default=0)
    return False


def classes_written(masks: Sequence[Path], count: int) -> Classes:
    """The classes of masks written here. Of one without ignored pixels, 255 instead of 1 is written for it."""
    if count > 2 or any((np.asarray(Image.open(mask)) == IGNORED).any() for mask in masks):
        return Classes(max(2, count))
    for mask in masks:
        Image.fromarray(np.asarray(Image.open(mask)) * np.uint8(255)).save(mask)
    return Classes()


def meaning_of(values: Sequence[set[int]], ignored: int = 255) -> str:
    """What the values of many masks are: "objects" numbered in each mask anew, "classes", or "other"."""
    found = [some - {ignored} for some in values]
    together = set().union(*found)
    last = {max(some) for some in found if some and max(some)}
    whole = all(some <= {0} or some | {0} == {*range(max(some) + 1)} for some in found)
    if whole and len(last) > 1 and not any(ignored in some for some in values):
        return "objects"
    return "classes" if together == {*range(len(together))} and len(together) > 1 else "other"


def classes_in(prepared: Prepared, ignored: int) -> Classes:
    """The classes of masks that aren't all of one. Raises BadInput that names an option, if they don't tell."""
    refused = {error.subject: error for error in prepared.bad if VALUES.match(error.finding)}
    if not refused:
        return prepared.reading.classes
    paths = [mask for _, mask in prepared.scan.pairs]
    colours = [mask for mask in paths if str(mask) in refused and "colour" in refused[str(mask)].finding]
    if colours:
        shares: Counter[int] = Counter()
        for mask in colours[:50]:
            found, counts = np.unique(_codes(mask), return_counts=True)
            shares.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        rows = (f"{c >> 16} {c >> 8 & 255} {c & 255} ({n / shares.total():.1%})" for c, n in shares.most_common(8))
        finding = f"in colour, as {counted(len(colours) - 1, 'other mask')}: {', '.join(rows)}"
        raise BadInput(colours[0], finding, "Give --colours FILE, with a line R G B NAME for each colour")
    values = []
    for mask in paths:
        try:
            values.append({*np.unique(read_values(mask)).tolist()})
        except BadInput:  # it is among the findings
            values.append(set())
    kind, found = meaning_of(values, ignored), sorted(set().union(*values))
    last = max((n for n in found if n != ignored), default=0)
    told = " ".join(map(str, found[:10])) + " ..." * (len(found) > 10)
    example = next(iter(refused))
    if kind == "classes" and last < 255:
        return Classes(last + 1, ignored)
    if kind == "objects":
        ends = sorted(max(some) for some in values if some)
        finding = f"numbers from 0 on, up to {ends[0]} in one mask and {ends[-1]} in another, as objects have them"
        remedy = f"Give --foreground nonzero for one class, or --NUM_CLASSES {last + 1} if they are classes"
        raise BadInput(example, finding, remedy)
    remedy = f"Give --foreground {last} or others, as 1,2, or --NUM_CLASSES {last + 1} if they are classes"
    if last > 254 or len(found) > 30:
        remedy = "Give --foreground nonzero, or the numbers of the foreground, as 1,2"
    raise BadInput(example, f"masks hold {told}", remedy)
