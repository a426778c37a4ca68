"""Masks as polygons, in COCO's JSON, which annotation tools and detectors read."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from support.files import whole_file
from support.reading import Size

Outline = tuple[int, np.ndarray]  # a class, and a closed polygon, int32 (n, 2), of x and y


def outlines(mask: np.ndarray) -> list[Outline]:
    """The connected parts of a mask, boolean or of classes, uint8 (H, W), each by the very edges of its pixels.

    COCO's polygons can't hold holes: a hole is joined to the outline by a cut of no width, there and back, which
    leaves it out again wherever the polygon is filled: pycocotools makes the very mask of it.
    """
    found = []
    for number in range(1, int(mask.max()) + 1):
        # OpenCV goes through the centres of pixels. With each of them doubled, even ones lie at a near edge and odd
        # ones at a far one.
        doubled = (mask == number).view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
        contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        rings = [(contour[:, 0] + 1) // 2 for contour in contours]
        rings = [ring[(ring != np.roll(ring, 1, axis=0)).any(1)] for ring in rings]
        parents = tree[0, :, 3].tolist() if rings else []
        for hole, parent in zip(rings, parents, strict=True):
            if parent >= 0:
                near = np.abs(rings[parent] - hole[0]).sum(1).argmin()
                ring = rings[parent]
                rings[parent] = np.concatenate((ring[: near + 1], hole, hole[:1], ring[near:]))
        found += [(number, ring) for ring, parent in zip(rings, parents, strict=True) if parent < 0]
    return found


@contextmanager
def coco_file(path: Path, names: dict[int, str]) -> Iterator[Callable[[str, Size, Sequence[Outline]], None]]:
    """A function that adds an image, by its file's name, its (height, width) and its outlines, to `path`, which
    appears when they are all there. `names` are those of the classes."""
    images, number = [], 0
    with whole_file(path) as part, open(part, "w", encoding="utf-8") as file:

        def add(name: str, size: Size, parts: Sequence[Outline]) -> None:
            nonlocal number
            images.append({"id": len(images) + 1, "file_name": name, "height": size[0], "width": size[1]})
            for category, ring in parts:
                first, extent = ring.min(0), np.ptp(ring, axis=0)
                annotation = {
                    "id": number + 1,
                    "image_id": len(images),
                    "category_id": category,
                    "segmentation": [ring.ravel().tolist()],
                    "area": cv2.contourArea(ring),
                    "bbox": [*first.tolist(), *extent.tolist()],
                    "iscrowd": 0,
                }
                file.write(("" if number == 0 else ",\n") + json.dumps(annotation))
                number += 1

        file.write('{"annotations": [\n')
        yield add
        categories = [{"id": number, "name": name} for number, name in names.items()]
        file.write(f'\n], "images": {json.dumps(images)}, "categories": {json.dumps(categories)}}}\n')
