"""Which file is the mask of which image, and which side of the set it is on, in the layouts that data sets come in.

All from names alone. A name is a file's path below the folder that was given, with slashes.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

from support.errors import BadInput

# What the names of images and of masks have beside the NAME that they share, before or after it.
IMAGE_MARKS = "image images img im photo frame sat training test train leftImg8bit rgb original input 0000"
MASK_MARKS = (
    "mask masks segmentation segmented seg label labels lbl manual1 manual gtFine_labelIds labelIds gt groundtruth "
    "ground_truth truth annotation anno matte target L P"
)
SEPARATORS = ("_", "-", ".", " ", "")
NUMBERED = re.compile(r"(.+?)(?:[_\- ]+(\d+)| ?\((\d+)\))$")  # one of several masks, perhaps
FOLDER = "NAME/"  # a scheme: all masks in the folder of their image, or in one with its name

# What folders of masks and of images are called, and those of one side of a set, when that is taken off.
MASK_FOLDER = re.compile(r"(mask|label|annot(ation)?|manual|segment\w*|ground.?truth|gtfine|\bgt|\bseg|\btarget)s?")
# Which of several folders of masks is meant: the first that fits.
MASK_RANKS = ("manual", "^(?!.*(object|instance|visual|colou?r|npy|human|2nd|fov))", "")
PARTS = re.compile(r"left|right")  # folders of masks that are each a part of one
IMAGE_FOLDER = re.compile(r"(\w*image|leftimg8bit|img|photo|picture|\bframe|\binput|\brgb)s?")
SIDES = {"train": "train", "training": "train", "tr": "train", "test": "test", "testing": "test", "ts": "test"}
SIDES |= {"val": "val", "valid": "val", "validation": "val", "dev": "val"}

WAYS = tuple(product((False, True), repeat=2))  # to compare names, the strictest first: as of `_plain_key`
Pairs = dict[str, list[str]]  # the masks of each image


class Match(NamedTuple):
    """What goes with what, by names alone."""

    pairs: Pairs
    schemes: list[str]  # how masks were found, the commonest first
    clashes: dict[str, list[str]]  # images with masks that contradict each other
    unpaired: list[str]  # images without a mask
    unused: list[str]  # masks without an image


def match(images: Sequence[str], masks: Sequence[str], scheme: str = "") -> Match:
    """Find the mask, or the masks, of each image.

    The scheme that pairs the most images is taken first, then the one that pairs the most of what is left. A mask
    with an image's very name is never another image's. `scheme`, such as NAME_mask or NAME_sat=NAME_mask, is taken
    instead of those found.
    """
    schemes = [_scheme(scheme)] if scheme else _schemes(images, masks)
    exact = {_key(name, "NAME") for name in images}
    reserved = set() if scheme else {mask for mask in masks if _key(mask, "NAME") in exact}
    pairs: Pairs = {}
    said: list[str] = []
    left = list(masks)

    def claims(some: Sequence[str], way: Sequence[bool], names: tuple[str, str]) -> dict[str, dict[str, str]]:
        usable = [mask for mask in left if mask not in reserved or names == ("NAME", "NAME")]
        return _claims(some, usable, way, *names)

    while left and (free := [image for image in images if image not in pairs]):
        best, best_way = {}, None
        for way in product(WAYS, schemes):
            if len(found := claims(free, *way)) > len(best):
                best, best_way = found, way
            if len(best) == len(free):
                break
        if not best:
            break
        said.append(_describe(*best_way))
        pairs |= {image: sorted(numbered.values()) for image, numbered in best.items()}
        taken = {mask for image in best for mask in pairs[image]}
        left = [mask for mask in left if mask not in taken]
    clashes: dict[str, list[str]] = {}  # NAME.png and NAME_mask.png, or NAME.png and NAME.gif
    for names in schemes if left else []:
        if names[1] != FOLDER:
            for image, numbered in claims(list(pairs), WAYS[0], names).items():
                clashes.setdefault(image, [pairs[image][0], *numbered.values()])
    taken = {mask for some in clashes.values() for mask in some}
    unpaired = [image for image in images if image not in pairs]
    pairs = {image: pairs[image] for image in images if image in pairs and image not in clashes}
    return Match(pairs, list(dict.fromkeys(said)), clashes, unpaired, [mask for mask in left if mask not in taken])


def _scheme(text: str) -> tuple[str, str]:
    """How images and masks are called, of NAME_mask or NAME_sat=NAME_mask."""
    image, _, mask = text.rpartition("=")
    if mask.count("NAME") != 1 or image.count("NAME") != ("=" in text):
        remedy = "Give one like NAME_mask or NAME_sat=NAME_mask"
        raise BadInput(f"--mask_name {text}", "no way to name masks", remedy)
    return image or "NAME", mask


def masks_among(files: Sequence[str], scheme: str = "") -> set[str]:
    """Of images and masks in one folder, the masks: those that fit `scheme`, or with a mask's mark and an image's
    name, or, of two files with one name, the one that isn't a JPEG, or NAME_anything that stands with several."""
    images, masks = _templates(files, IMAGE_MARKS), _templates(files, MASK_MARKS)[1:]
    if scheme:
        images, masks = ([template] for template in _scheme(scheme))
    names = {key: file for template in images for file in files if (key := _key(file, template))}

    def fitting(templates: Sequence[str]) -> set[str]:
        ways = list(product(templates, (False, True)))
        return {file for file in files if any(names.get(_key(file, *way), file) != file for way in ways)}

    jpegs = {file for file in files if re.search(r"\.(jpe?g|jfif|jpe)$", file, re.I)}
    stems = {os.path.splitext(file)[0] for file in jpegs}
    return (
        fitting(masks)
        or {file for file in files if file not in jpegs and os.path.splitext(file)[0] in stems}
        or fitting(_suggested(files, files))
    )


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
    images = [file for file in files if kinds[file][0] == "image"]
    if not by_folder or not images and len(images := [f for f in files if not kinds[f][0]]) == 0:
        marked = masks_among(files)
        masks = masks_among(files, scheme) if scheme else marked
        others = marked - masks
        return [f for f in files if f not in marked | masks], [f for f in files if f in masks], sorted(others)
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


def two_folders(files: Sequence[str]) -> list[str]:
    """Of files in two folders of any names, that of the images and that of the masks, as their files' names tell;
    nothing of others."""
    shared = os.path.commonpath([os.path.dirname(file) for file in files])
    inside: dict[str, list[str]] = {}
    for file in files:
        first = os.path.relpath(file, shared or ".").split(os.sep)[:-1][:1]
        inside.setdefault("/".join(filter(None, [shared, *first])), []).append(file)
    if len(inside) != 2:
        return []
    pairs = {order: match(*map(inside.get, order)).pairs for order in permutations(inside)}
    best = max(pairs, key=lambda order: len(pairs[order]))
    return list(best) if pairs[best] else []


def side(file: str) -> str:
    """The side of a set, train, val or test, that one of a file's folders is called by; else nothing."""
    words = (word for part in file.split("/")[:-1] for word in re.split(r"[\W\d_]+", _core(part)))
    return next((SIDES[word] for word in [*words][::-1] if word in SIDES), "")


def plain_names(sides: dict[str, str]) -> dict[str, str]:
    """For each image, of which the side is given, a name that no other on its side has, and that can't be read as
    another's mask: without its ending, and with its folders, but for those that say image or a side."""
    names = {image: _joined(image, ("", *SIDES)) for image in sides}
    count = Counter((sides[image], name.casefold()) for image, name in names.items())
    for image, name in names.items():
        if count[sides[image], name.casefold()] > 1:  # 1.jpg and 1.png, or train/1.jpg and 1.jpg
            name = _joined(image, ()) + os.path.splitext(image)[1].replace(".", "_")
        names[image] = re.sub("_mask$", "-mask", name)
    return names


def _joined(image: str, left_out: Sequence[str]) -> str:
    *folders, _ = image.split("/")
    kept = [part for folder in folders if (part := _plain_folder(folder) if left_out else folder) not in left_out]
    return "_".join([*kept, os.path.splitext(os.path.basename(image))[0]])


def listed(images: Sequence[str], names: Iterable[str]) -> tuple[set[str], list[str]]:
    """The images that a list names, by path, by file or without their endings; and names that are no image's."""
    known: dict[str, str] = {}
    for image in images:
        for word in (image, os.path.basename(image)):
            known[word] = known[os.path.splitext(word)[0]] = image
    found, unknown = set(), []
    for name in names:
        spelt = []
        for words in (name, name.split()[0]):  # VOC's lists have a number behind each name
            file = words.strip("./").rpartition("/")[2]
            spelt += [words, words.lstrip("./"), file, os.path.splitext(file)[0]]
        image = next((known[word] for word in spelt if word in known), None)
        found.add(image) if image else unknown.append(name)
    return found, unknown


def _schemes(images: Sequence[str], masks: Sequence[str]) -> list[tuple[str, str]]:
    """All schemes for names of images and of masks: the table's, and those that the names suggest."""
    image_templates, mask_templates = _templates(images, IMAGE_MARKS), _templates(masks, MASK_MARKS)
    mask_templates += _suggested(images, masks)
    ends = [os.path.commonprefix([_stem(name)[::-1] for name in some])[::-1] for some in (images, masks)]
    ends = [end[min((end.find(mark) for mark in "_-." if mark in end), default=len(end)) :] for end in ends]
    schemes = [("FILE", "NAME"), *(("NAME", mask) for mask in dict.fromkeys(mask_templates))]
    schemes += [(image, mask) for image in image_templates[1:] for mask in dict.fromkeys(mask_templates)]
    if all(ends) and len(images) > 1:
        schemes.append((f"NAME{ends[0]}", f"NAME{ends[1]}"))
    return [*dict.fromkeys(schemes), ("NAME", FOLDER), (FOLDER, FOLDER)]


def _suggested(images: Sequence[str], masks: Sequence[str]) -> list[str]:
    """NAME_anything, if it stands with several images."""
    stems = {_stem(image) for image in images}
    rests: Counter[str] = Counter()
    for mask in masks:
        stem = _stem(mask)
        cut = next((i for i in range(len(stem) - 1, 0, -1) if stem[:i] in stems and not stem[i].isalnum()), None)
        if cut:
            rests[re.sub(r"[_\- ]+\d+$", "", stem[cut:])] += 1
    return [f"NAME{rest}" for rest, count in rests.most_common(3) if rest and count > 1]


def _templates(files: Sequence[str], marks: str) -> list[str]:
    """NAME, and the templates with a mark that some file may fit."""
    text = "\n".join(["", *map(_stem, files), ""]).lower()
    before = [f"{m}{s}NAME" for m in marks.split() for s in SEPARATORS if f"\n{m}{s}".lower() in text]
    after = [f"NAME{s}{m}" for m in marks.split() for s in SEPARATORS[:-1] if f"{s}{m}".lower() in text]
    return ["NAME", *after, *before]


def _key(file: str, template: str, numbered: bool = False) -> str:
    """What two files must have in common: plain folders and the NAME in a template. Nothing if it doesn't fit;
    `numbered`, a number after it doesn't count."""
    folder, stem = _folder(file), _stem(file)
    if template == FOLDER:
        return folder.strip("/") if folder.strip("/") not in SIDES else ""
    if template == "FILE":
        return folder + unicodedata.normalize("NFC", file.rpartition("/")[2])
    if numbered:
        stem = found[1] if (found := NUMBERED.match(stem)) else ""
    before, after = template.split("NAME")
    fits = len(stem) > len(before + after) and stem.lower().startswith(before.lower())
    name = stem[len(before) : len(stem) - len(after)]
    glued = before[-1:].isalpha() and not name[:1].isdigit()  # image1, but not imagery for img
    return folder + name if fits and stem.lower().endswith(after.lower()) and not glued else ""


def _claims(
    images: Sequence[str], masks: Sequence[str], way: Sequence[bool], image_scheme: str, mask_scheme: str
) -> dict[str, dict[str, str]]:
    """Under one scheme the masks of each image, by their numbers."""
    keys = [_plain_key(_key(image, image_scheme), *way) for image in images]
    count = Counter(keys)
    owners = {key: image for key, image in zip(keys, images, strict=True) if key and count[key] == 1}
    claims: dict[str, dict[str, str]] = {}
    for mask in masks:
        for numbered in (False, True):
            key = _key(mask, mask_scheme, numbered)
            if image := owners.get(_plain_key(key, *way)):
                part = PARTS.search(mask.rpartition("/")[0].lower())
                number = _stem(mask) if numbered or mask_scheme == FOLDER else part[0] if part else ""
                claims.setdefault(image, {}).setdefault(number, mask)
                break
    return claims


def _plain_key(key: str, flat: bool, alike: bool) -> str:
    """A key without its folders, or without letter case and leading zeros."""
    key = key.rpartition("/")[2] if flat else key
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), key.casefold()) if alike else key


def _describe(way: Sequence[bool], names: tuple[str, str]) -> str:
    image, mask = names
    text = "the folder of their image" if mask == FOLDER else "NAME.jpg.png" if image == "FILE" else mask
    text += f" for {image}" if image not in ("NAME", "FILE", FOLDER) else ""
    return text + " (but for letter case and leading zeros)" * way[1]


@cache
def _folder(file: str) -> str:
    return "/".join([*filter(None, map(_plain_folder, file.split("/")[:-1])), ""])


@cache
def _stem(file: str) -> str:
    return unicodedata.normalize("NFC", os.path.splitext(file.rpartition("/")[2])[0])


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
