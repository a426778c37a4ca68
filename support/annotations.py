"""Outlines drawn with other tools, as masks: COCO's .json, a folder of LabelMe's .json or of YOLO's .txt files.

Coordinates are continuous: the first pixel reaches from 0 to 1, and its centre is at 0.5.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import yaml

from support.errors import BadInput, by_cause, refuse
from support.reading import IGNORED, Size, image_size, read_with_size

SPECIAL = {"background": 0, "_background_": 0, "__ignore__": IGNORED}  # labels that are no classes
FAR = 0.1  # of an image's width or height: what leaves it by less is cut off at its edge
SHARES = (1, 1)  # the size of images whose coordinates are shares of width and height


class Annotations(NamedTuple):
    names: list[str]  # of the classes without the background: class i + 1 in the masks is names[i]
    ignores: bool  # whether some objects are to be left out
    masks: dict[Path, Callable[[], np.ndarray]]  # by the image's file, what draws its mask: uint8 (H, W)


class _Object(NamedTuple):
    place: str  # in its file
    name: str | None  # of its class
    shape: Any  # pairs of x and y, or x and y in turn; or COCO's RLE, a dict


class _Image(NamedTuple):
    file: Path  # that annotates it
    path: PureWindowsPath  # of the image, as the file has it; a path of Windows knows both slashes
    size: Size | None  # that the file says it has
    objects: list[_Object]  # later ones lie over earlier ones


def load_annotations(source: Path, images: Sequence[Path]) -> Annotations | None:
    """The masks that a file, or all files below a folder, hold for `images`; None if they hold no outlines.

    An image listed with nothing on it has an empty mask, one that isn't listed none. Raises BadInput about files
    that can't be read and images that are missing or annotated twice; what draws a mask, about its outlines.
    """
    below = [Path(folder, name) for folder, _, names in os.walk(source) for name in names if name[0] != "."]
    by_name, by_stem = defaultdict(list), {path.stem: path.name for path in images}
    for path in images:
        by_name[path.name].append(path)
    listed, found, bad = [], [], []
    for file in sorted(below) or [source]:
        try:
            names, annotated = _read_file(file, by_stem, file == source)
        except Exception as error:  # broken files raise almost anything
            reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
            remedy = "Export it again, or remove it"
            bad.append(BadInput(file, f"can't be read as annotations ({reason})", remedy))
        else:
            listed += names
            found += annotated
    refuse(by_cause(bad))
    if not found:
        return None
    labels = {thing.name for image in found for thing in image.objects} - {None}
    names = [name for name in dict.fromkeys(listed or sorted(labels)) if name not in SPECIAL]
    if len(names) >= IGNORED:
        raise BadInput(source, f"{len(names)} classes, more than 8 bits hold", f"Leave {IGNORED - 1} at most")
    numbers = SPECIAL | {name: number for number, name in enumerate(names, 1)}
    masks: dict[Path, Callable[[], np.ndarray]] = {}
    for image in found:
        told = {*image.file.parts, *image.path.parts}  # of several images with one name, the nearest
        path = max(by_name[image.path.name], key=lambda path: len(told.intersection(path.parts)), default=None)
        name = image.path.name
        if path in masks:
            bad.append(BadInput(image.file, f"an image annotated twice ({name})", "Keep one of the two"))
        elif path:
            masks[path] = partial(_draw, image, path, numbers)
        elif image.objects:
            remedy = "Add it, or remove its annotations"
            bad.append(BadInput(image.file, f"an image that isn't there ({name})", remedy))
    refuse(by_cause(bad))
    return Annotations(names, "__ignore__" in labels, masks)


def _read_file(file: Path, stems: dict[str, str], alone: bool) -> tuple[list[str], list[_Image]]:
    """The classes that a file lists and the images that it annotates; nothing of other files, unless it is
    `alone`. `stems` are the images' names by their stems."""
    if file.suffix.lower() == ".json":
        data = file.read_bytes()
        if b'"shapes"' in data:
            return [], [_labelme(file, json.loads(data))]
        if alone or b'"categories"' in data and b'"annotations"' in data:
            return _coco(file, json.loads(data))
    if file.suffix.lower() == ".txt" and file.stem in stems:
        return _yolo(file, stems[file.stem])
    return [], []


def _coco(file: Path, content: dict[str, Any]) -> tuple[list[str], list[_Image]]:
    """Classes in the order of their ids. Crowds come last, so that nothing lies over them."""
    found: dict[int, _Image] = {}
    classes = {each["id"]: str(each["name"]) for each in sorted(content["categories"], key=lambda each: each["id"])}
    for each in content["images"]:
        size = (each["height"], each["width"]) if each.get("height") else None
        found[each["id"]] = _Image(file, PureWindowsPath(each["file_name"]), size, [])
    for each in sorted(content["annotations"], key=lambda each: bool(each.get("iscrowd"))):
        unlisted = _Image(file, PureWindowsPath(f"image_id {each['image_id']}"), None, [])
        image = found.setdefault(each["image_id"], unlisted)
        name = "__ignore__" if each.get("iscrowd") else classes.get(each["category_id"])
        shapes = each.get("segmentation") or [[]]
        for shape in [shapes] if isinstance(shapes, dict) else shapes:
            image.objects.append(_Object(f"annotation {each.get('id')}", name, shape))
    return list(classes.values()), list(found.values())


def _counts(text: str) -> list[int]:
    """The runs of COCO's compressed RLE: five bits a character, the lowest first, with a sixth if more follow. From
    the fourth run on it is the change from the last but one."""
    counts, value, shift = [], 0, 0
    for bits in (byte - 48 for byte in text.encode()):
        value, shift = value | (bits & 31) << shift, shift + 5
        if not bits & 32:
            value -= (bits & 16) << shift - 4  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _labelme(file: Path, content: dict[str, Any]) -> _Image:
    """A rectangle is two corners, a circle its centre and a point on it."""
    objects = []
    for number, each in enumerate(content["shapes"], 1):
        kind, shape = each.get("shape_type") or "polygon", each["points"]
        if kind not in ("polygon", "rectangle", "circle"):
            raise ValueError(f"shape {number} is a {kind}, not a polygon, rectangle or circle")
        if kind != "polygon" and len(shape) == 2:  # newer versions write all four corners of a rectangle
            (x, y), (x2, y2) = shape
            turn = np.linspace(0, 2 * np.pi, 360, endpoint=False)
            circle = shape[0] + np.hypot(x2 - x, y2 - y) * np.stack([np.cos(turn), np.sin(turn)], 1)
            shape = circle if kind == "circle" else [(x, y), (x2, y), (x2, y2), (x, y2)]
        objects.append(_Object(f"shape {number}", str(each["label"]), shape))
    size = (content["imageHeight"], content["imageWidth"]) if content.get("imageHeight") else None
    return _Image(file, PureWindowsPath(content["imagePath"]), size, objects)


def _yolo(file: Path, image: str) -> tuple[list[str], list[_Image]]:
    """A line an object: the number of its class, and its outline in shares. Names of classes are in the folder or
    in one of two above it; if not, there are as many as are used."""
    above = (file.parent, *file.absolute().parents[1:3])
    lists = [each for place in above for each in (place / "classes.txt", place / "data.yaml") if each.is_file()]
    classes = {str(number): f"class {number}" for number in range(IGNORED)}
    if lists:
        text = lists[0].read_text(encoding="utf-8-sig")
        names = yaml.safe_load(text)["names"] if lists[0].suffix == ".yaml" else text.split("\n")
        names = names if isinstance(names, dict) else dict(enumerate(names))  # with their numbers, or in a row
        classes = {str(number): str(name).strip() for number, name in names.items() if str(name).strip()}
    objects, used = [], 0
    for number, row in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        if row.strip():
            first, *values = row.split()
            used = max(used, list(classes).index(first) + 1 if first in classes else 0)
            objects.append(_Object(f"line {number}", classes.get(first), values))
    names = list(classes.values())[: None if lists else used]
    return names, [_Image(file, PureWindowsPath(image), SHARES, objects)]


def _draw(image: _Image, path: Path, numbers: dict[str, int]) -> np.ndarray:
    """The mask of the image in `path`. Raises BadInput about an image or a shape that can't be used."""
    size = image_size(path) or read_with_size(path)[1]  # raises BadInput about a broken image
    if image.size not in (None, SHARES, size):
        finding = f"an image of another size than annotated ({path.name})"
        raise BadInput(image.file, finding, "Give those that were annotated")
    mask = np.zeros(size, np.uint8)
    for place, name, shape in image.objects:
        try:
            if name not in numbers:
                raise ValueError("its class isn't listed")
            if isinstance(shape, dict):
                _fill_runs(mask, shape, numbers[name])
            else:
                points = np.array(shape, float).reshape(-1, 2)
                _fill(mask, points * size[::-1] if image.size == SHARES else points, numbers[name])
        except (ValueError, TypeError, KeyError) as error:
            remedy = "Correct or remove it"
            raise BadInput(image.file, f"a shape can't be drawn: {error} ({path.name}, {place})", remedy) from error
    return mask


def _fill_runs(mask: np.ndarray, rle: dict[str, Any], number: int) -> None:
    """Give a number to the pixels of COCO's RLE: runs of background and object in turn, down the columns."""
    counts = _counts(rle["counts"]) if isinstance(rle["counts"], str) else rle["counts"]
    if (*rle["size"],) != mask.shape or min(counts) < 0 or sum(counts) != mask.size:
        raise ValueError("RLE of another size than the image")
    drawn = np.repeat(np.arange(len(counts)) % 2 > 0, counts).reshape(rle["size"][::-1])
    mask.T[drawn] = number


def _fill(mask: np.ndarray, points: np.ndarray, number: int) -> None:
    """Give a number to pixels whose centre is inside an outline, by even and odd where it crosses itself.

    COCO's own tools do so, too. OpenCV's fillPoly takes all that the line touches, half a pixel more on each side.
    Raises ValueError if it is no outline in this image.
    """
    if len(points) < 3:
        raise ValueError("fewer than 3 points: a box alone is no outline")
    if not (abs(points / mask.shape[::-1] - 0.5) <= 0.5 + FAR).all():  # nor NaN
        raise ValueError("far outside the image: give those that were annotated")
    (x, y), (x2, y2) = points.T, np.roll(points, -1, axis=0).T
    first, end = (np.ceil(side(y, y2) - 0.5).clip(0, len(mask)).astype(int) for side in (np.minimum, np.maximum))
    edge = np.repeat(np.arange(len(x)), end - first)  # for each row whose centres it crosses
    row = np.concatenate([np.arange(*rows) for rows in zip(first, end, strict=True)])
    crossing = x[edge] + (row + 0.5 - y[edge]) / (y2 - y)[edge] * (x2 - x)[edge]
    column = np.ceil(crossing - 0.5).clip(0, mask.shape[1]).astype(int)
    order = np.lexsort((column, row))
    for at, left, right in zip(row[order][::2], *column[order].reshape(-1, 2).T, strict=True):
        mask[at, left:right] = number
