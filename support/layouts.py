"""Which file is the mask of which image, and which side of the set it is on, in the layouts that data sets come in.

All from names alone. A name is a file's path below the folder that was given, with slashes.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, partial
from itertools import product
from typing import NamedTuple

from support.errors import BadInput

# Words in the names of images and of masks that say which of the two a file is, and not what it shows.
IMAGE_WORDS, MASK_WORDS = (
    frozenset(words.split())
    for words in (
        "image images img im photo frame sat training test train leftimg8bit rgb original input 0000",
        "mask masks segmentation segmented seg label labels lbl manual1 gtfine labelids gt groundtruth ground "
        "truth annotation anno matte target l p jpg jpeg png tif",
    )
)
LONG_WORDS = [word for word in sorted(IMAGE_WORDS | MASK_WORDS) if len(word) > 2 and word.isalpha()]
GLUED = re.compile(rf"^({'|'.join(LONG_WORDS)})(?=\d+$)")  # image001

# What folders of masks and of images are called, and those of one side of a set, when that is taken off.
MASK_FOLDER = re.compile(r"(mask|label|annot(ation)?|manual|segment\w*|ground.?truth|gtfine|\bgt|\bseg|\btarget)s?")
# Which of several folders of masks is meant: the first that fits.
MASK_RANKS = ("manual", "^(?!.*(object|instance|visual|colou?r|npy|human|2nd|fov))", "")
PARTS = re.compile(r"left|right")  # folders of masks that are each a part of one
IMAGE_FOLDER = re.compile(r"(\w*image|leftimg8bit|img|photo|picture|\bframe|\binput|\brgb)s?")
SIDES = {"train": "train", "training": "train", "tr": "train", "test": "test", "testing": "test", "ts": "test"}
SIDES |= {"val": "val", "valid": "val", "validation": "val", "dev": "val"}


class Match(NamedTuple):
    """What goes with what, by names alone."""

    pairs: dict[str, list[str]]  # the masks of each image
    examples: list[tuple[str, str]]  # a mask and its image for each rule that found some
    clashes: dict[str, list[str]]  # images with masks that contradict each other
    unpaired: list[str]  # images without a mask
    unused: list[str]  # masks without an image


class _Name(NamedTuple):
    """A file's name, taken apart by a rule."""

    folders: tuple[str, ...]  # but for those that say image or mask
    shown: str  # what files of one image have in common
    words: tuple[str, ...]  # what says image or mask
    number: tuple[str, ...]  # of one of several masks


Rule = tuple[Callable[[str], _Name | None], Callable[[str], _Name | None]]  # for an image's name and for a mask's


def match(images: Sequence[str], masks: Sequence[str], scheme: str = "") -> Match:
    """Find the mask, or the masks, of each image.

    Names that are equal come first, then those that are equal without the words above, then without the words that
    only masks, or all images, have; then the same without folders. A mask may also end in a number, or lie in a
    folder with its image's name. Several masks of an image are united if only their numbers differ, and else
    contradict each other. `scheme`, such as NAME_mask or NAME_sat=NAME_mask, is taken instead of the words.
    """
    claims: dict[str, dict[str, _Name]] = {}
    examples, left = [], list(masks)
    for flat, rules in product((False, True), _rules(images, masks, scheme)):
        free = [image for image in images if image not in claims]
        for of_image, of_mask in rules if free else ():
            keys = {image: _key(of_image(image), flat) for image in free if left}
            count = Counter(keys.values())
            owners = {key: image for image, key in keys.items() if key and count[key] == 1}
            names = {mask: of_mask(mask) for mask in left}
            found = {mask: owners[key] for mask in left if (key := _key(names[mask], flat)) in owners}
            for mask, image in found.items():
                claims.setdefault(image, {})[mask] = names[mask]
            examples += [*found.items()][:1]
            left = [mask for mask in left if mask not in found]
    pairs, clashes = {}, {}
    for image in (image for image in images if image in claims):
        names = claims[image].values()
        alike = len({name.words for name in names}) == 1 and len({name.number for name in names}) == len(names)
        (pairs if alike else clashes)[image] = sorted(claims[image])
    return Match(pairs, examples, clashes, [image for image in images if image not in claims], left)


def _rules(images: Sequence[str], masks: Sequence[str], scheme: str) -> list[list[Rule]]:
    """Rules, the strictest first, in lists of which each is for the images that those before it leave over."""
    if scheme:
        image, mask = _scheme(scheme)
        return [[(partial(_fitting, image), partial(_fitting, mask, numbered=number)) for number in (False, True)]]
    rules: list[list[Rule]] = []
    for of_masks, of_images in (
        (MASK_WORDS, IMAGE_WORDS),
        (MASK_WORDS | _own_words(masks, images, 2), IMAGE_WORDS | _own_words(images, masks, len(images))),
    ):
        both = of_masks | of_images
        rules.append([(_with_ending, _whole), (_whole, _whole), (partial(_fitting, "NAME"), _in_folder)])
        for (image, mask), numbered in product((((), of_masks), (both, both)), (False, True)):
            rules[-1].append((partial(_without, image), partial(_without, mask, numbered=numbered)))
    return rules


def _scheme(text: str) -> tuple[str, str]:
    """How images and masks are called, of NAME_mask or NAME_sat=NAME_mask."""
    image, _, mask = text.rpartition("=")
    if mask.count("NAME") != 1 or image.count("NAME") != ("=" in text):
        remedy = "Give one like NAME_mask or NAME_sat=NAME_mask"
        raise BadInput(f"--mask_name {text}", "no way to name masks", remedy)
    return image or "NAME", mask


def _own_words(names: Sequence[str], others: Sequence[str], least: int) -> set[str]:
    """Words that at least so many, and two, names have, and no other."""
    count = Counter(word for name in names for word in {*_words(name)})
    elsewhere = {word for name in others for word in _words(name)}
    return {word for word in count.keys() - elsewhere if count[word] >= max(2, least) and not word.isdecimal()}


def _key(name: _Name | None, flat: bool) -> tuple[str, ...] | None:
    """What a mask must have in common with its image; None if that is nothing, or nothing but the side."""
    if name is None or not (name.shown or not flat and {*name.folders} - {*SIDES.values()}):
        return None
    return (*(() if flat else name.folders), name.shown)


def _whole(file: str) -> _Name:
    return _Name(_folders(file), _stem(file), (), _part(file))


def _with_ending(file: str) -> _Name:
    """An image whose masks are called 1.jpg.png."""
    return _whole(f"{file}.png")  # as if it were one of them


def _without(words: Collection[str], file: str, numbered: bool = False) -> _Name:
    found, number = _words(file), _part(file)
    if numbered and found[-1:] and found[-1].isdecimal():
        found, number = found[:-1], (*number, found[-1])
    shown = " ".join(word for word in found if word not in words)
    return _Name(_folders(file), _plain(shown), tuple(word for word in found if word in words), number)


def _fitting(template: str, file: str, numbered: bool = False) -> _Name | None:
    stem = _stem(file)
    cut = re.sub(r"[\s_\-]*\(?\d+\)?$", "", stem) if numbered else stem
    found = re.fullmatch(re.escape(template).replace("NAME", "(.+)"), cut, re.I)
    return _Name(_folders(file), _plain(found[1]), (), (*_part(file), stem[len(cut) :])) if found else None


def _in_folder(file: str) -> _Name | None:
    """A mask in a folder with its image's name."""
    *folders, last = _folders(file) or ("",)
    return _Name(tuple(folders), _plain(last), (), (_stem(file),))


def _plain(text: str) -> str:
    """Text without letter case and leading zeros."""
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), text.casefold())


@cache
def _stem(file: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(file.rpartition("/")[2])[0])


@cache
def _words(file: str) -> tuple[str, ...]:
    words = re.split(r"[\s_.()\-]+", _stem(file).casefold())
    return tuple(part for word in words for part in GLUED.sub(r"\1 ", word).split())


@cache
def _folders(file: str) -> tuple[str, ...]:
    return tuple(plain.casefold() for part in file.split("/")[:-1] if (plain := _plain_folder(part)))


def _part(file: str) -> tuple[str, ...]:
    return tuple(PARTS.findall(file.rpartition("/")[0].lower())[:1])


def tell_apart(files: Sequence[str], root: str = "", scheme: str = "") -> tuple[list[str], list[str], list[str]]:
    """The images and the masks in one folder and its subfolders, and what is neither.

    Folders called images, masks and the like tell them, else the names of files. Of several folders of masks for
    the same images, the one for most of them is taken, then that of the first rank; raises BadInput if that doesn't
    decide. `scheme` is as of `match`.
    """
    kinds = {file: _kind(file) for file in files}
    by_folder: dict[str, list[str]] = {}
    for file, (kind, folder) in kinds.items():
        if kind == "mask":
            by_folder.setdefault(folder, []).append(file)
    images = [file for file in files if kinds[file][0] == "image"] or [f for f in files if not kinds[f][0]]
    if not by_folder or not images:
        marked = _masks_among(files)
        masks = _masks_among(files, scheme) if scheme else marked
        return [f for f in files if f not in marked | masks], sorted(masks), sorted(marked - masks)
    pairs = {folder: set(match(images, masks, scheme).pairs) for folder, masks in by_folder.items()}
    ranks = {f: (-len(pairs[f]), next(i for i, rank in enumerate(MASK_RANKS) if re.search(rank, f))) for f in pairs}
    best, *others = sorted(pairs, key=ranks.get)
    for other in others:
        if ranks[other] == ranks[best] and pairs[other] & pairs[best]:
            first, second = (root + os.path.dirname(by_folder[folder][0]) for folder in (best, other))
            remedy = f"Give two folders, say {root}{os.path.dirname(images[0])} and {first}"
            raise BadInput(first, f"holds masks, and so does {second}", remedy)
    apart = [best, *(other for other in others if pairs[other] and not pairs[other] & pairs[best])]
    masks = [file for folder in apart for file in by_folder[folder]]
    return images, masks, sorted({*files} - {*images, *masks})


def _masks_among(files: Sequence[str], scheme: str = "") -> set[str]:
    """Of images and masks in one folder, the masks: those that fit `scheme`, or have a word for masks, or aren't
    JPEGs, if others are their images."""
    marked = [file for file in files if MASK_WORDS.intersection(_words(file))]
    others = [file for file in files if not re.search(r"\.(jpe?g|jfif|jpe)$", file, re.I)]
    for masks in [files] if scheme else [marked, others]:
        found = match([file for file in files if scheme or file not in {*masks}], masks, scheme)
        if found.pairs or found.clashes:
            return {mask for some in (*found.pairs.values(), *found.clashes.values()) for mask in some}
    return set()


def side(file: str) -> str:
    """The side of a set, train, val or test, that one of a file's folders is called by; else nothing."""
    words = [word for part in file.split("/")[:-1] for word in re.split(r"[\W\d_]+", _core(part))]
    return next((SIDES[word] for word in reversed(words) if word in SIDES), "")


def plain_names(sides: dict[str, str]) -> dict[str, str]:
    """For each image, of which the side is given, a name that no other on its side has, and that can't be read as
    another's mask: without its ending, and with its folders, but for those that say image or a side."""
    names = {}
    for image in sides:
        folders = [plain for part in image.split("/")[:-1] if (plain := _plain_folder(part)) not in ("", *SIDES)]
        names[image] = "_".join([*folders, os.path.splitext(os.path.basename(image))[0]])
    count = Counter((sides[image], name.casefold()) for image, name in names.items())
    for image, name in names.items():
        if count[sides[image], name.casefold()] > 1:  # 1.jpg and 1.png, or train/1.jpg and 1.jpg
            name = re.sub("[/.]", "_", image)
        names[image] = re.sub("_mask$", "-mask", name)
    return names


def listed(images: Sequence[str], rows: Iterable[str]) -> tuple[set[str], list[str]]:
    """The images that a list names, by path, by file or without their endings; and rows that name none."""
    known: dict[str, str] = {}
    for image in images:
        for word in (image, os.path.basename(image)):
            known[word] = known[os.path.splitext(word)[0]] = image
    found, unknown = set(), []
    for row in rows:
        words = [words.removeprefix("./") for words in (row, row.split()[0])]  # VOC has a number behind each name
        words += [os.path.basename(word) for word in words]
        words += [os.path.splitext(word)[0] for word in words]
        image = next((known[word] for word in words if word in known), None)
        found.add(image) if image else unknown.append(row)
    return found, unknown


def _kind(file: str) -> tuple[str, str]:
    """Whether folders say mask or image or neither, and what the folder of masks is called but for its side."""
    for part in reversed(file.split("/")[:-1]):
        word = part.lower().replace("_", " ")
        if MASK_FOLDER.search(word):
            return "mask", re.sub("|".join(SIDES), "", PARTS.sub("", word)).strip(" -")
        if IMAGE_FOLDER.search(word):
            return "image", ""
    return "", ""


def _core(folder: str) -> str:
    """A folder's name without what says image or mask."""
    return MASK_FOLDER.sub("", IMAGE_FOLDER.sub("", folder.lower().replace("_", " ")))


@cache
def _plain_folder(folder: str) -> str:
    """What a folder tells of its images: its side, nothing if it is called images or masks, else its name."""
    word = folder.lower().replace("_", " ")
    side = SIDES.get(re.sub(r"[\W\d]+", "", _core(folder)))
    return side or ("" if MASK_FOLDER.search(word) or IMAGE_FOLDER.search(word) else folder)
