"""Kaggle's own archives of Carvana: how to fetch them, and what is in them."""

import os
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from support.errors import BadInput, counted
from support.reading import Pair

# The three cars, of 318, that the tutorial holds back for validation: 48 images.
TUTORIAL_CARS = ("0cdf5b5d0ce1", "0ce66b539f52", "0d1a9caf4350")
HOW_TO_FETCH = """\
Kaggle gives out Carvana's images to whoever has accepted the competition's rules:

1. Accept them:   https://www.kaggle.com/c/carvana-image-masking-challenge/rules
2. Get a token:   https://www.kaggle.com/settings/api
   Put it into ~/.kaggle/access_token or the environment variable KAGGLE_API_TOKEN
   (a token of the older kind, kaggle.json, goes to ~/.kaggle/kaggle.json).
3. Fetch:         pip install kaggle
                  kaggle competitions download -c carvana-image-masking-challenge -f train.zip
                  kaggle competitions download -c carvana-image-masking-challenge -f train_masks.zip
4. Lay out data/: python prepare_data.py carvana train.zip train_masks.zip

train_hq.zip holds the same images, less compressed, and can stand in for train.zip.
"""


def unpack_carvana(images: str, masks: str, folder: Path) -> list[Pair]:
    """Every image with its mask, sorted by name, out of folders or of Kaggle's archives, which are unpacked into
    `folder` and tested by their checksums. Raises BadInput if an archive is missing (after printing how to fetch
    it) or broken, and if an image lacks its mask or a mask its image.
    """
    for source in (images, masks):
        if not os.path.exists(source):
            print(HOW_TO_FETCH)
            raise BadInput(source, "no such archive or folder", "Fetch it as shown, or say where it is")
    found, truths = _unpack(images, ".jpg", folder), _unpack(masks, "_mask.gif", folder)
    for source, alone, missing in (
        (masks, found.keys() - truths.keys(), "mask"),
        (images, truths.keys() - found.keys(), "image"),
    ):
        if alone:
            finding = f"lacks {counted(len(alone), missing)}, the first of them that of {min(alone)}"
            raise BadInput(source, finding, "Use archives that belong together")
    return [(found[name], truths[name]) for name in sorted(found)]


def _unpack(source: str, ending: str, folder: Path) -> dict[str, Path]:
    """The files of an archive or a folder by CAR_VIEW, for the names CAR_VIEW + `ending`."""
    name, found = re.compile(r"([0-9a-f]{12}_\d{2})" + re.escape(ending)), {}
    try:
        if os.path.isdir(source):
            return {match[1]: path for path in Path(source).iterdir() if (match := name.fullmatch(path.name))}
        with zipfile.ZipFile(source) as archive:
            for member in tqdm(archive.namelist(), f"unpacking {source}", delay=1):
                if match := name.fullmatch(PurePosixPath(member).name):  # without folders, so that it stays in ours
                    found[match[1]] = folder / match[0]
                    found[match[1]].write_bytes(archive.read(member))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise BadInput(source, f"can't be unpacked ({error})", "Fetch it anew, or make room") from error
    return found
