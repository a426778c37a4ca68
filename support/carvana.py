"""Kaggle's own archives of Carvana: how to fetch them, and what is in them."""

import os
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from support.errors import BadInput, counted

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


class Member(NamedTuple):
    """A file in a zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    @property
    def name(self) -> str:
        """The file's name without its folders, so that no archive can have it written anywhere else."""
        return PurePosixPath(self.info.filename).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    def is_at(self, path: Path) -> bool:
        """Whether that file holds the same bytes, by length and checksum."""
        return path.stat().st_size == self.info.file_size and zlib.crc32(path.read_bytes()) == self.info.CRC

    def read(self) -> bytes:
        """The file's bytes. Raises BadInput where they differ from those that were packed."""
        try:
            return self.archive.read(self.info)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            finding = f"{self.info.filename} can't be unpacked ({error})"
            raise BadInput(self.archive.filename, finding, "Fetch the archive anew") from error


def find_carvana(images: str | Path, masks: str | Path) -> list[tuple[Path | Member, Path | Member]]:
    """Every image with its mask, sorted by name, out of Kaggle's archives or folders unpacked from them.

    Whatever doesn't have the name of one is left where it is. Raises BadInput where an archive is missing (after
    printing how to fetch it) or broken, and where a image lacks its mask or a mask its image.
    """
    for source in (images, masks):
        if not os.path.exists(source):
            print(HOW_TO_FETCH)
            raise BadInput(source, "no such archive or folder", "Fetch it as shown, or say where it is")
    found, truths = _named(images, ".jpg"), _named(masks, "_mask.gif")
    for source, alone, missing in (
        (masks, found.keys() - truths.keys(), "mask"),
        (images, truths.keys() - found.keys(), "image"),
    ):
        if alone:
            finding = f"lacks {counted(len(alone), missing)}, the first of them that of {min(alone)}"
            raise BadInput(source, finding, "Use archives that belong together")
    return [(found[name], truths[name]) for name in sorted(found)]


def _named(source: str | Path, ending: str) -> dict[str, Path | Member]:
    """The files of an archive or a folder by CAR_VIEW, for the names CAR_VIEW + `ending`."""
    try:
        if os.path.isdir(source):
            files = list(Path(source).iterdir())
        else:
            archive = zipfile.ZipFile(source)
            files = [Member(archive, info) for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise BadInput(source, f"not a whole zip archive ({error})", "Fetch it anew") from error
    named = {file.name.removesuffix(ending): file for file in files if file.name.endswith(ending)}
    named = {name: file for name, file in named.items() if re.fullmatch(r"[0-9a-f]{12}_\d{2}", name)}
    if not named:
        raise BadInput(source, f"holds no file like 0cdf5b5d0ce1_01{ending}", "Give images, then masks")
    return named
