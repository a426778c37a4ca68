"""Outlines drawn with other tools, as masks: COCO's .json, a folder of LabelMe's .json or of YOLO's .txt files.

Coordinates are continuous: the first pixel reaches from 0 to 1, and its centre is at 0.5.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path, PureWindowsPath  # which knows both slashes
from typing import Any, NamedTuple

import numpy as np
import yaml

from support.errors import BadInput, refuse
from support.pairs import MASK_FILES
from support.reading import IGNORED, Size, image_size, read_with_size

SPECIAL = {"background": 0, "_background_": 0, "__ignore__": IGNORED}  # labels that are no classes
FAR = 0.1  # of an image's width or height: what leaves it by less is cut off at its edge
SHARES = (1, 1)  # the size of images whose coordinates are shares of width and height


class Annotations(NamedTuple):
    names: list[str]  # of the classes without the background: class i + 1 in the masks is names[i]
    masks: dict[str, Callable[[], np.ndarray]]  # by the image's name, what draws its mask: uint8 (H, W)


class _Object(NamedTuple):
    place: str  # in its file
    name: str | None  # of its class
    shape: Any  # an outline, float (N, 2) of x and y; COCO's RLE, a dict; None if it is neither


class _Image(NamedTuple):
    file: Path  # that annotates it
    name: str
    size: Size | None  # that the file says it has
    objects: list[_Object]  # later ones lie over earlier ones


def load_annotations(source: Path, images: dict[str, Path]) -> Annotations | None:
    """The masks that `source` holds for `images`, files by their names; None if it holds no outlines.

    An image listed with nothing on it has an empty mask, one that isn't listed none. Raises BadInput about each
    kind of fault, with its first place and their number.
    """
    files = sorted(source.glob("[!.]*")) if source.is_dir() else [source] if source.is_file() else []
    jsons = [file for file in files if file.suffix.lower() == ".json"]
    texts = [file for file in files if file.suffix.lower() == ".txt" and file.name != "classes.txt"]
    stems = {Path(name).stem: name for name in images}
    masks_too = any(file.suffix.lower() in MASK_FILES and file.name not in images for file in files)
    one = len(jsons) == 1 and not masks_too and _read(jsons[0], lambda data: b'"categories"' in data)
    if one or jsons == [source]:
        names, found = _read(jsons[0], partial(_coco, jsons[0]))
    elif any(_read(file, lambda data: b'"shapes"' in data) for file in jsons):
        found, broken = [], []
        for file in jsons:
            try:
                found.append(_read(file, partial(_labelme, file)))
            except BadInput as error:
                broken.append(error)
        refuse(broken)
        names = sorted({thing.name for image in found for thing in image.objects})
    elif source.is_dir() and any(file.stem in stems for file in texts):
        names, found = _yolo(source, texts, stems)
    else:
        return None
    names = [name for name in dict.fromkeys(names) if name not in SPECIAL]
    if len(names) >= IGNORED:
        raise BadInput(source, f"{len(names)} classes, more than 8 bits hold", f"Leave {IGNORED - 1} at most")
    numbers = SPECIAL | {name: number for number, name in enumerate(names, 1)}
    masks: dict[str, Callable[[], np.ndarray]] = {}
    faults = defaultdict(list)
    for image in found:
        path = images.get(image.name)  # if its header can't be read, reading it says what is wrong
        size = path and (image_size(path) or read_with_size(path)[1])
        if size is None and image.objects:
            faults["an image that isn't there", "Add it, or remove its annotations"].append((image, ""))
        elif size and image.name in masks:
            faults["an image annotated twice", "Keep one of the two"].append((image, ""))
        elif size and image.size not in (None, SHARES, size):
            faults["an image of another size than annotated", "Give those that were annotated"].append((image, ""))
        elif size:
            masks[image.name] = partial(_draw, image, size, numbers)
            for thing in image.objects:
                if fault := _fault(thing, size, SHARES if image.size == SHARES else size, numbers):
                    faults[fault].append((image, f", {thing.place}"))
    errors = []
    for (finding, remedy), places in faults.items():
        (first, place), more = places[0], f"; {len(places)} in all" * (len(places) > 1)
        errors.append(BadInput(first.file, f"{finding} ({first.name}{place}{more})", remedy))
    refuse(errors)
    return Annotations(names, masks)


def _fault(thing: _Object, size: Size, unit: Size, numbers: dict[str, int]) -> tuple[str, str] | None:
    """What is wrong with an object of an image of `size`, and what to do; `unit` is the size in its coordinates."""
    shape = thing.shape
    if isinstance(shape, dict):
        if shape["size"] != size or (shape["counts"] < 0).any() or shape["counts"].sum() != size[0] * size[1]:
            return "RLE that doesn't fit the image", "Export it again"
    elif shape is None or not np.isfinite(shape).all():
        return "an outline that isn't pairs of numbers", "Correct or remove it"
    elif len(shape) < 3:
        return "an outline of fewer than 3 points", "Draw one, or remove it: a box alone is none"
    elif (abs(shape / unit[::-1] - 0.5) > 0.5 + FAR).any():
        return "an outline far outside the image", "Give the images that were annotated"
    return None if thing.name in numbers else ("a class that isn't listed", "Add its name to the classes")


def _coco(file: Path, data: bytes) -> tuple[list[str], list[_Image]]:
    """Classes in the order of their ids. Crowds come last, so that nothing lies over them."""
    content, found = json.loads(data), {}
    classes = {each["id"]: str(each["name"]) for each in sorted(content["categories"], key=lambda each: each["id"])}
    for each in content["images"]:
        size = (each["height"], each["width"]) if each.get("height") else None
        found[each["id"]] = _Image(file, PureWindowsPath(each["file_name"]).name, size, [])
    for each in sorted(content["annotations"], key=lambda each: bool(each.get("iscrowd"))):
        image = found.setdefault(each["image_id"], _Image(file, f"image_id {each['image_id']}", None, []))
        name = "__ignore__" if each.get("iscrowd") else classes.get(each["category_id"])
        shapes = each.get("segmentation") or [[]]
        if isinstance(shapes, dict):
            counts = _counts(shapes["counts"]) if isinstance(shapes["counts"], str) else shapes["counts"]
            shapes = [{"size": tuple(shapes["size"]), "counts": np.array(counts, np.int64)}]
        for shape in shapes:
            shape = shape if isinstance(shape, dict) else _outline(shape)
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


def _labelme(file: Path, data: bytes) -> _Image:
    """A rectangle is two corners, a circle its centre and a point on it."""
    content, objects = json.loads(data), []
    for number, each in enumerate(content["shapes"], 1):
        kind, shape = each.get("shape_type") or "polygon", _outline(each["points"])
        if kind not in ("polygon", "rectangle", "circle"):
            raise ValueError(f"shape {number} is a {kind}, not a polygon, rectangle or circle")
        if kind != "polygon" and shape is not None and len(shape) == 2:
            (x, y), (x2, y2) = shape
            turn = np.linspace(0, 2 * np.pi, 360, endpoint=False)
            circle = shape[0] + np.hypot(x2 - x, y2 - y) * np.stack([np.cos(turn), np.sin(turn)], 1)
            shape = circle if kind == "circle" else np.array([(x, y), (x2, y), (x2, y2), (x, y2)])
        objects.append(_Object(f"shape {number}", str(each["label"]), shape))
    size = (content["imageHeight"], content["imageWidth"]) if content.get("imageHeight") else None
    return _Image(file, PureWindowsPath(content["imagePath"]).name, size, objects)


def _yolo(folder: Path, files: list[Path], stems: dict[str, str]) -> tuple[list[str], list[_Image]]:
    """Files of an image's stem with a line an object: the number of its class, and its outline in shares. Names of
    classes are in the folder or in one of two above it."""
    above = (folder, *folder.absolute().parents[:2])
    lists = [file for place in above for file in (place / "classes.txt", place / "data.yaml") if file.is_file()]
    classes = {str(number): f"class {number}" for number in range(IGNORED)}
    if lists:
        classes = _read(lists[0], partial(_yolo_names, lists[0]))
    found, used = [], 0  # the names that are needed if none are listed
    for file in files:
        objects = []
        for number, row in enumerate(_read(file, partial(str, encoding="utf-8-sig")).splitlines(), 1):
            if row.strip():
                first, *values = row.split()
                used = max(used, list(classes).index(first) + 1 if first in classes else 0)
                objects.append(_Object(f"line {number}", classes.get(first), _outline(values)))
        found.append(_Image(file, stems.get(file.stem, file.stem), SHARES, objects))
    return list(classes.values())[: None if lists else used], found


def _yolo_names(file: Path, data: bytes) -> dict[str, str]:
    """Of data.yaml, where they have numbers or not, or of classes.txt, a line each."""
    names = yaml.safe_load(data)["names"] if file.suffix == ".yaml" else str(data, "utf-8-sig").split("\n")
    names = names if isinstance(names, dict) else dict(enumerate(names))
    return {str(number): str(name).strip() for number, name in names.items() if str(name).strip()}


def _outline(values: Any) -> np.ndarray | None:
    """Points of pairs, or of x and y in turn; None if `values` are neither."""
    with suppress(ValueError, TypeError):
        return np.array(values, float).reshape(-1, 2)
    return None


def _draw(image: _Image, size: Size, numbers: dict[str, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    for _, name, shape in image.objects:
        if not isinstance(shape, dict):
            _fill(mask, shape * size[::-1] if image.size == SHARES else shape, numbers[name])
        else:  # runs of background and object in turn, down the columns
            counts = shape["counts"]
            mask.T[np.repeat(np.arange(len(counts)) % 2 > 0, counts).reshape(size[::-1])] = numbers[name]
    return mask


def _fill(mask: np.ndarray, points: np.ndarray, number: int) -> None:
    """Give a number to pixels whose centre is inside an outline, by even and odd where it crosses itself.

    COCO's own tools do so, too. OpenCV's fillPoly takes all that the line touches, half a pixel more on each side.
    """
    (x, y), (x2, y2) = points.T, np.roll(points, -1, axis=0).T
    first, end = (np.ceil(side(y, y2) - 0.5).clip(0, len(mask)).astype(int) for side in (np.minimum, np.maximum))
    edge = np.repeat(np.arange(len(x)), end - first)  # for each row whose centres it crosses
    row = np.concatenate([np.arange(*rows) for rows in zip(first, end, strict=True)])
    crossing = x[edge] + (row + 0.5 - y[edge]) / (y2 - y)[edge] * (x2 - x)[edge]
    column = np.ceil(crossing - 0.5).clip(0, mask.shape[1]).astype(int)
    order = np.lexsort((column, row))
    for at, left, right in zip(row[order][::2], *column[order].reshape(-1, 2).T, strict=True):
        mask[at, left:right] = number


def _read(file: Path, parse: Callable[[bytes], Any]) -> Any:
    """What `parse` makes of a file; what it stumbles over becomes a BadInput."""
    try:
        return parse(file.read_bytes())
    except Exception as error:  # broken files raise almost anything
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise BadInput(file, f"can't be read as annotations ({reason})", "Export it again, or remove it") from error
