"""Photographs and masks in files, as arrays."""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps

from errors import BadInput

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
MASK_SUFFIXES = ("_mask.gif", "_mask.png", ".png", ".gif")  # what follows the photograph's stem

Size = tuple[int, int]  # (height, width) in pixels, as arrays and tensors have it
Pair = tuple[Path, Path]  # a photograph and its mask


def find_pairs(image_dir: str | Path, mask_dir: str | Path) -> list[Pair]:
    """Every photograph of a folder with its mask, sorted by name. Raises BadInput as the two functions below do."""
    return with_masks(find_photographs(image_dir), mask_dir)


def find_photographs(folder: str | Path) -> list[Path]:
    """The photographs of a folder, sorted by name.

    Hidden files and files without a picture's ending are skipped. Raises BadInput for a missing folder and for one
    without photographs.
    """
    images = [file for file in _files(folder) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise BadInput(folder, "no photographs here", f"Expected files ending in {' '.join(IMAGE_SUFFIXES)}")
    return images


def with_masks(images: Iterable[Path], mask_dir: str | Path) -> list[Pair]:
    """Each photograph with its mask.

    The mask of `NAME.jpg` is `NAME_mask.gif`, `NAME_mask.png`, `NAME.png` or `NAME.gif`. Raises BadInput for a
    missing folder and for a photograph with no mask or with two.
    """
    masks: dict[str, list[Path]] = {}
    for file in _files(mask_dir):
        masks.setdefault(_same(file.name), []).append(file)

    pairs = []
    for image in images:
        tried = [image.stem + suffix for suffix in MASK_SUFFIXES]
        found = [file for name in tried for file in masks.get(_same(name), ()) if file != image]
        if not found:
            raise BadInput(image, f"no mask in {mask_dir}; tried {', '.join(tried)}", "Add the mask or remove it")
        if len(found) > 1:
            raise BadInput(image, f"two masks, {found[0].name} and {found[1].name}", "Keep one of them")
        pairs.append((image, found[0]))
    return pairs


def _files(folder: str | Path) -> list[Path]:
    if not os.path.isdir(folder):
        raise BadInput(folder, "no such folder", "Give a folder that exists")
    with os.scandir(folder) as entries:
        return sorted(Path(folder, e.name) for e in entries if not e.name.startswith(".") and not e.is_dir())


def _same(name: str) -> str:
    """Names that a person reads as the same: .PNG and .png, an e with its accent in one character or two."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()


def read_image(path: str | Path, size: Size | None = None) -> np.ndarray:
    """A photograph as uint8 (H, W, 3), turned upright as its EXIF orientation says.

    With `size`, it is scaled to (height, width) by averaging over areas. A JPEG is then decoded at the
    smallest DCT scale that still covers `size`, which is several times faster than in full.
    """
    return read_with_size(path, size)[0]


def read_with_size(path: str | Path, size: Size | None = None) -> tuple[np.ndarray, Size]:
    """What `read_image` gives, and the (height, width) that the upright photograph has before it is scaled."""
    with _opened(path) as picture:
        own, drafted = picture.size, None
        if size is not None:
            sideways = picture.getexif().get(0x0112, 1) in range(5, 9)  # these orientations swap the sides
            own = own[::-1] if sideways else own
            drafted = picture.draft(None, size if sideways else size[::-1])
        picture = ImageOps.exif_transpose(picture)
        own = own if drafted else picture.size  # only a JPEG is drafted; a TIFF turns itself
        if picture.mode.startswith("I;16"):
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))  # convert() would saturate
        elif picture.mode in ("I", "F"):
            raise BadInput(path, f"pixels of type {picture.mode}, whose range is unknown", "Save it with 8 bits")
        return np.array(_scaled(picture.convert("RGB"), size)), own[::-1]


def read_mask(path: str | Path, size: Size | None = None) -> np.ndarray:
    """A mask as uint8 (H, W) in {0, 1}.

    A palette of grays is read by its colours, a coloured one by index. Values in {0, 1} stand as they are;
    otherwise foreground is 128 and up. With `size`, a pixel is foreground where at least half of its area is:
    so the mask stays centred on its photograph, where nearest-neighbour scaling would shift it.
    """
    with _opened(path) as picture:
        picture = _one_band(picture, path)
        lowest, largest = picture.getextrema()
        levels = list(range(256))
        if picture.mode == "P":
            colours = picture.getpalette("RGB") + [0] * 768
            if all(len(set(colours[3 * index : 3 * index + 3])) == 1 for index in range(lowest, largest + 1)):
                levels = colours[: 3 * 256 : 3]
                largest = max(levels[lowest : largest + 1])
        if 1 < largest < 128:
            finding = f"values up to {largest}, where background is 0 and foreground 1 or 255"
            raise BadInput(path, finding, "Save it in black and white")
        threshold = 1 if largest <= 1 else 128
        mask = picture.point([255 if level >= threshold else 0 for level in levels], "L")
        return (np.asarray(_scaled(mask, size)) >= 128).astype(np.uint8)


def read_pair(pair: Pair, size: Size | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A photograph and its mask, uint8 (H, W, 3) and {0, 1} (H, W). Raises BadInput where their sizes differ."""
    image, mask = read_image(pair[0], size), read_mask(pair[1], size)
    if image.shape[:2] != mask.shape:
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, its photograph {image.shape[1]}x{image.shape[0]}"
        raise BadInput(pair[1], f"the mask is {sizes}", "Give both the same size")
    return image, mask


def _one_band(picture: Image.Image, path: str | Path) -> Image.Image:
    """A mask as a picture of mode P or L."""
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        return Image.fromarray((values if values.max() <= 1 else values >> 8).astype(np.uint8))
    if picture.mode in ("LA", "RGB", "RGBA"):
        first, *others = picture.split()[: len(picture.mode.rstrip("A"))]
        if any(ImageChops.difference(first, other).getbbox() for other in others):
            raise BadInput(path, "a mask in colour", "Save it in black and white")
        return first
    if picture.mode not in ("1", "L", "P"):
        raise BadInput(path, f"a mask with pixels of type {picture.mode}", "Save it with 8 bits")
    picture.load()
    return picture.convert("L") if picture.mode == "1" else picture


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The opened picture; whatever goes wrong while it is read becomes a BadInput that names it."""
    try:
        with Image.open(path) as picture:
            yield picture
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # a broken PNG is a SyntaxError
        reason = str(error).replace(f" {str(path)!r}", "")
        raise BadInput(path, f"can't be read as a picture ({reason})", "Replace or remove it") from error


def _scaled(picture: Image.Image, size: Size | None) -> Image.Image:
    if size is None or picture.size == size[::-1]:
        return picture
    shrinks = picture.height >= size[0] and picture.width >= size[1]
    return picture.resize(size[::-1], Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
