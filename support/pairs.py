"""Images and their masks in folders: which files belong together, by their names."""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from support.errors import BadInput, refuse
from support.reading import Pair

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".tif", ".tiff", ".webp", ".bmp")
MASK_ENDINGS = (".gif", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # after a image's stem, or stem_mask
MASK_FILES = (*IMAGE_SUFFIXES, ".gif")  # endings in a folder of masks that someone may have meant for one
CARVANA_NAME = re.compile(r"([0-9a-f]{12})_\d{2}$")  # a car and one of its 16 views


class Scan(NamedTuple):
    """What two folders hold, by names alone."""

    pairs: list[Pair]  # sorted by name
    bad: list[BadInput]  # images with no mask or with two, and folders named like images
    unused: list[Path]  # masks without an image
    subfolders: list[Path]  # which nothing looks into
    skipped: list[Path]  # hidden files, and those without an image's ending


def find_pairs(image_dir: str | Path, mask_dir: str | Path) -> list[Pair]:
    """Every image of a folder with its mask, sorted by name. Raises BadInput as the two functions below do."""
    found = scan(image_dir, mask_dir)
    refuse(found.bad)
    return found.pairs


def find_images(folder: str | Path) -> list[Path]:
    """The images of a folder, sorted by name, but hidden ones. Raises BadInput if it is missing or has none."""
    images = [file for file in list_folder(folder)[0] if _is_image(file, IMAGE_SUFFIXES)]
    if not images:
        raise BadInput(folder, "no images here", f"Expected files ending in {' '.join(IMAGE_SUFFIXES)}")
    return images


def skipped_files(folder: str | Path) -> Counter[str]:
    """What a folder holds besides images, by ending: files that aren't hidden, and subfolders."""
    files, folders = list_folder(folder)
    others = [file for file in files if not file.name.startswith(".") and not _is_image(file, IMAGE_SUFFIXES)]
    kinds = Counter(file.suffix.lower() or "without an ending" for file in others)
    return kinds + Counter({"subfolder" + "s" * (len(folders) > 1): len(folders)})


def with_masks(images: Sequence[Path], mask_dir: str | Path) -> list[Pair]:
    """Each image with its mask: of `NAME.jpg` `NAME_mask.gif`, `NAME.png` or the like. Raises BadInput for a
    missing folder and for each image with no mask or with two."""
    pairs, bad, _ = _match(images, list_folder(mask_dir)[0], mask_dir)
    refuse(bad)
    return pairs


def scan(image_dir: str | Path, mask_dir: str | Path) -> Scan:
    """Pair the images of a folder with the masks of another. Raises BadInput for a missing or empty folder."""
    (files, folders), (mask_files, mask_folders) = list_folder(image_dir), list_folder(mask_dir)
    pairs, bad, used = _match(find_images(image_dir), mask_files, mask_dir)
    below = sorted({*folders, *mask_folders} - {Path(image_dir), Path(mask_dir)})
    subfolders = [folder for folder in below if not folder.name.startswith(".")]
    unused = {file for file in mask_files if _is_image(file, MASK_FILES)} - used
    return Scan(pairs, bad, sorted(unused), subfolders, sorted({*files, *mask_files} - used - unused))


def _match(
    images: Sequence[Path], mask_files: Sequence[Path], mask_dir: str | Path
) -> tuple[list[Pair], list[BadInput], set[Path]]:
    """The pairs, what is wrong with images that have no mask or two, and all files taken for one of these."""
    masks: dict[str, list[Path]] = {}
    for file in mask_files:
        masks.setdefault(_same(file.name), []).append(file)
    pairs, bad, used, images_too = [], [], set(images), {image.name for image in images}
    for image in images:
        names = [_same(image.stem + mark + ending) for ending in MASK_ENDINGS for mark in ("_mask", "")]
        found = [file for name in names for file in masks.get(name, ()) if file != image]
        used.update(found)
        if images_too.intersection(file.name for file in found) and os.path.samefile(image.parent, mask_dir):
            finding = f"holds masks and images, and {found[0].name} could be either"
            raise BadInput(mask_dir, finding, "Move the masks into a folder of their own")
        if image.is_dir():
            bad.append(BadInput(image, "a folder, though named like an image", "Rename or remove it"))
        elif len(found) == 1:
            pairs.append((image, found[0]))
        elif found:
            bad.append(BadInput(image, f"two masks, {found[0].name} and {found[1].name}", "Keep one of them"))
        else:
            tried = f"{image.stem}_mask and {image.stem}, ending in {' '.join(MASK_ENDINGS)}"
            remedy = "Add the mask, or take this file out of the folder"
            bad.append(BadInput(image, f"no mask in {mask_dir}; tried {tried}", remedy))
    return pairs, bad, used


def _is_image(path: Path, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def list_folder(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """The files, and folders named like one, and the other folders of a folder, sorted by name."""
    found: tuple[list[Path], list[Path]] = [], []
    try:
        for path in sorted(Path(folder).iterdir()):
            found[path.is_dir() and not _is_image(path, MASK_FILES)].append(path)
    except FileNotFoundError as error:
        raise BadInput(folder, "no such folder", _nearest_folder(Path(folder))) from error
    except OSError as error:
        raise BadInput(folder, f"can't be read as a folder ({error.strerror})", "Give another folder") from error
    return found


def _nearest_folder(missing: Path) -> str:
    """What to do about a folder that isn't there: the names that come nearest to it."""
    there = next(parent for parent in missing.absolute().parents if parent.is_dir())
    names = sorted(path.name for path in there.iterdir() if path.is_dir() and not path.name.startswith("."))
    near = difflib.get_close_matches(missing.absolute().relative_to(there).parts[0], names, n=5, cutoff=0)
    return f"The nearest in {there} are {', '.join(near)}" if near else f"{there} has no folders"


def _same(name: str) -> str:
    """Names that a person reads as the same: .PNG and .png, an e with its accent in one character or two."""
    stem, suffix = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + suffix.lower()
