"""Masks of other kinds, as class numbers or 0 and 255: several for an image, object numbers, colours, outlines."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from support.errors import BadInput, counted
from support.pairs import IMAGE_SUFFIXES, MASK_ENDINGS
from support.preparation import Prepared
from support.reading import IGNORED, Classes, Pair, Reading, read_mask, read_values

VALUES = re.compile(r"values up to|a mask in colour|a palette in colour, whose black")  # findings about one class
SPECIAL = dict.fromkeys(("ignore", "void", "unlabelled", "unlabeled"), IGNORED) | {"background": 0, "bg": 0}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Meaning:
    """What a user says about his data, each the command's option of that name."""

    mask_name: str = _option("", "how masks are called for an image NAME, as NAME_mask or NAME_sat=NAME_mask")
    foreground: str = _option("", "values of one class, as nonzero or 1,2, if masks hold numbers")
    colours: str = _option("", "file with a line R G B NAME for each colour of the masks")
    num_classes: int = _option(0, "1 for foreground alone; 0 is what the masks hold")
    ignore_index: int = _option(255, "value of pixels that are left out, if there are several classes")
    in_channels: int = _option(0, "bands of the images: 1 is gray, 3 RGB, others as TIFF has them; 0 is 3")
    range: int = _option(0, "highest value of images with 16 bits, such as 4095 of 12 bits; 0 is 65535")
    train_list: str = _option("", "file with the names of images for training")
    val_list: str = _option("", "file with the names of images for validation")
    list: str = _option("", "file to write all findings to")
    skip_bad: bool = False

    def __post_init__(self) -> None:
        """Raises BadInput for what contradicts itself."""
        for name in ("colours", "foreground"):
            if getattr(self, name) and (self.num_classes > 1 or self.ignore_index != IGNORED):
                remedy = f"Leave --NUM_CLASSES and --IGNORE_INDEX out: --{name} tells the classes"
                raise BadInput(f"--{name}", "given beside the numbers of classes", remedy)
        if self.ignore_index != IGNORED and self.num_classes < 2:
            raise BadInput("--IGNORE_INDEX", f"{self.ignore_index} says nothing alone", "Give --NUM_CLASSES, too")


class MissingColours(BadInput):
    """A mask with colours that the list of them lacks."""


class Sample(NamedTuple):
    name: str  # without an ending, of its own on its side
    image: Path
    masks: list[Path] | Callable[[], np.ndarray]  # files, or what draws it
    side: str  # "train", "val" or "", if the set isn't split yet


def convert(sample: Sample, meaning: Meaning, colours: dict[int, int], one_class: bool, scratch: Path) -> Pair:
    """A sample's files as train.py reads them: its own, or new ones in `scratch`, which have 255 for the only class
    of outlines or colours if it is `one_class`. `colours` are as of `read_colours`. Raises BadInput."""
    image, masks, values = sample.image, sample.masks, None
    new = scratch / f"{sample.side}.{sample.name}.png"
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        try:
            with Image.open(image) as picture:
                if (number := getattr(picture, "n_frames", 1)) > 1 or picture.mode == "F":
                    raise ValueError(f"{counted(number, 'image')} of mode {picture.mode}")
                picture.convert("I;16" if picture.mode[0] == "I" else "RGB").save(new)  # I is 16 bits of gray
        except Exception as error:  # of formats that Pillow doesn't know, and broken files
            what = f"a {image.suffix.lower()} file, which can't be read ({error})"
            raise BadInput(image, what, "Save it as JPEG or PNG") from error
        image = new
    if not isinstance(masks, list) or colours:
        values = _from_colours(masks, colours) if colours else masks()
        values = values * np.uint8(255 if one_class else 1)
    elif meaning.foreground:
        values = _united(sample.image, [_from_values(mask, meaning.foreground) for mask in masks])
    elif len(masks) > 1:
        if meaning.num_classes > 1:
            raise BadInput(sample.image, "several masks, which can be united for one class alone", "Keep one")
        values = _united(sample.image, [read_mask(mask) * np.uint8(255) for mask in masks])
    elif masks[0].suffix.lower() not in MASK_ENDINGS:
        values = read_values(masks[0])
    elif meaning.ignore_index != IGNORED:
        values = read_mask(masks[0], Reading(classes=Classes(meaning.num_classes, meaning.ignore_index)))
    if values is None:
        return image, masks[0]
    Image.fromarray(values).save(mask := new.with_suffix(".mask.png"))
    return image, mask


def _united(image: Path, masks: Sequence[np.ndarray]) -> np.ndarray:
    if len({mask.shape for mask in masks}) > 1:
        raise BadInput(image, "its masks differ in size", "Give all of them the image's size")
    return np.maximum.reduce(masks)


def _from_values(mask: Path, foreground: str) -> np.ndarray:
    values = read_values(mask)
    if values.ndim > 2:
        raise BadInput(mask, "a mask in colour", "Give --colours")
    if foreground == "nonzero":
        return (values != 0) * np.uint8(255)
    try:
        return np.isin(values, [int(number) for number in foreground.split(",")]) * np.uint8(255)
    except ValueError as error:
        remedy = "Give nonzero, or numbers as 1,2"
        raise BadInput("--foreground", f"{foreground!r} can't be used", remedy) from error


def read_colours(file: str) -> tuple[list[str], dict[int, int]]:
    """The classes and colours of a list, such as CVAT's `car:128,0,0::`, CamVid's `128 0 0 car` or `#800000 car`:
    the names of classes, and the number for each colour, R * 65536 + G * 256 + B.

    Classes are numbered in the list's order. One called background is 0; ignore, void and unlabelled are ignored.
    """
    found: list[tuple[str, str, Sequence[int]]] = []
    with suppress(OSError, ValueError):
        for row in Path(file).read_text(encoding="utf-8-sig").splitlines():
            if hexed := re.search(r"#([0-9a-fA-F]{6})\b", row):
                rgb, rest = bytes.fromhex(hexed[1]), row.replace(hexed[0], " ")
            elif numbers := re.search(r"(?<![\w.])(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?![\w.])", row):
                rgb, rest = [int(number) for number in numbers.groups()], row.replace(numbers[0], " ", 1)
            else:
                continue
            words = [word.strip() for word in re.split(r"[:,;\t]|\s{2,}", rest) if word.strip()]
            name = words[0] if words else "#" + bytes(rgb).hex()
            found.append((name, name.strip("_").lower(), rgb))
    if not found or any(max(rgb) > 255 for *_, rgb in found):
        raise BadInput(
            file, "can't be read as a list of colours", "Give a line R G B NAME for each colour, from 0 to 255"
        )
    background = [name for name, word, _ in found if SPECIAL.get(word) == 0]
    names = list(dict.fromkeys([*background[:1], *(name for name, word, _ in found if word not in SPECIAL)]))
    numbers = {_code(rgb): SPECIAL[word] if word in SPECIAL else names.index(name) for name, word, rgb in found}
    return names, numbers


def _from_colours(masks: Sequence[Path], colours: dict[int, int]) -> np.ndarray:
    """Class numbers of a mask in colour."""
    if len(masks) > 1:
        raise BadInput(masks[1], "a second mask in colour for its image", "Keep one")
    codes = _codes(masks[0])
    found, places = np.unique(codes, return_inverse=True)
    if not colours.keys() >= {*found.tolist()}:
        raise MissingColours(masks[0])
    return np.array([colours[code] for code in found.tolist()], np.uint8)[places].reshape(codes.shape)


def _code(rgb: Any) -> Any:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _codes(mask: Path) -> np.ndarray:
    """A mask's colours, each as one number: int (H, W)."""
    return _code(np.moveaxis(read_values(mask, colour=True).astype(int), 2, 0))


def common_colours(masks: Sequence[Path], known: Collection[int] = ()) -> str:
    """The commonest colours of masks, but for those that are `known`, with their shares of the pixels."""
    count: Counter[int] = Counter()
    for mask in masks:
        count.update(
            dict(zip(*(some.tolist() for some in np.unique(_codes(mask), return_counts=True)), strict=True))
        )
    rows = Counter({code: number for code, number in count.items() if code not in known}).most_common(8)
    return ", ".join(f"{c >> 16} {c >> 8 & 255} {c & 255} ({n / count.total():.1%})" for c, n in rows)


def are_classes(values: Sequence[set[int]]) -> bool:
    """Whether the values of many masks are class numbers: all from 0 on, and not those of objects, which each mask
    numbers up to a last one of its own without a gap."""
    found = [some - {IGNORED} for some in values]
    together = set().union(*found)
    last = {max(some) for some in found if any(some)}
    gaps = any(some | {0} != {*range(max(some) + 1)} for some in found if some)
    classes = gaps or len(last) == 1 or any(IGNORED in some for some in values)
    return classes and len(together) > 1 and together == {*range(len(together))}


def classes_in(prepared: Prepared) -> Classes:
    """The classes of masks that aren't all of one. Raises BadInput that names an option, if they don't tell."""
    refused = [error for error in prepared.bad if VALUES.match(error.finding)]
    if not refused:
        return prepared.reading.classes
    for error in refused:
        if "colour" in error.finding:
            remedy = "Give --colours FILE, with a line R G B NAME for each, or images first if these are images"
            raise BadInput(error.subject, f"in colour: {common_colours([Path(error.subject)])}", remedy)
    values = []
    for _, mask in prepared.scan.pairs:
        with suppress(BadInput):  # it is among the findings
            values.append({*np.unique(read_values(mask)).tolist()})
    found = set().union(*values)
    if are_classes(values):
        return Classes(max(found - {IGNORED}) + 1)
    told = " ".join(map(str, sorted(found)[:10])) + " ..." * (len(found) > 10)
    remedy = "Give --foreground nonzero for objects, or 1,2 for some of them, or --NUM_CLASSES if they are classes"
    raise BadInput(refused[0].subject, f"masks hold {told}", remedy)
