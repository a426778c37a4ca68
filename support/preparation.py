"""The one pass over images and masks, before training: what each pair is like, and the scaled arrays for every
epoch.

Both are kept in a cache folder, under a name that tells everything that they depend on.
"""

import hashlib
import json
import math
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from support.device import count_cores
from support.errors import BadInput, explain_limits, warn
from support.files import whole_file, writable_folder
from support.pairs import Scan, scan
from support.reading import Metadata, Pair, Reading, Size, image_size, inspect_pair

VERSION = 10  # of the records' layout and of how files are read: raise it with either, and caches are made anew
SPARE_BYTES = 2**30  # of disk to leave free for the run's own results


class Records:
    """Images and masks in a mapped file, in a row: an item is uint8 (H, W, channels) and uint8 (H, W), which are
    read from the disk when they are used, and can't be written to."""

    def __init__(self, path: Path, sizes: list[Size], channels: int = 3) -> None:
        self.path, self.sizes, self.channels = path, sizes, channels
        self.places = np.cumsum([0, *((channels + 1) * height * width for height, width in sizes)]).tolist()
        self._mapped: np.ndarray | None = None  # on first use, by each process for itself

    def __len__(self) -> int:
        return len(self.sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_mapped": None}

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if self._mapped is None:
            self._mapped = np.asarray(np.memmap(self.path, np.uint8, "r"))
        size, place = self.sizes[index], self.places[index]
        image, mask = np.split(self._mapped[place : self.places[index + 1]], [-math.prod(size)])
        return image.reshape(*size, self.channels), mask.reshape(size)


class Prepared(NamedTuple):
    """What a folder of images and a folder of masks hold."""

    image_dir: Path
    mask_dir: Path
    reading: Reading
    scan: Scan
    metadata: dict[Pair, Metadata]  # of the pairs that can be read
    bad: list[BadInput]  # what is wrong with the others
    records: Records | None  # of all pairs, if every one can be read and the cache folder holds them


def prepare(
    image_dir: str | Path,
    mask_dir: str | Path,
    reading: Reading,
    cache_dir: str | Path = "",
    found: Scan | None = None,
) -> Prepared:
    """Read every pair of two folders once, in several threads. `found` is what they hold, if that is known.

    With `cache_dir`, nothing is read a second time until a file's name, length or time of change is another, or the
    `reading` or VERSION. If the folder can't be written or has no room, a line says so and nothing is kept. Raises
    BadInput for a missing or empty folder; what is wrong with a file is in the result.
    """
    found, path = found or scan(image_dir, mask_dir), None
    if cache_dir and found.pairs and not found.bad:
        with suppress(OSError):  # a broken link, which can't be read
            path = _cache_path(found.pairs, reading, cache_dir)
    results = _recall(path) if path else None
    if results is None:
        path = path if path and _has_room(path, found.pairs, reading) else None
        results = _read_all(found.pairs, reading, path)
    metadata = {p: result for p, result in zip(found.pairs, results, strict=True) if isinstance(result, Metadata)}
    bad = [*found.bad, *(result for result in results if isinstance(result, BadInput))]
    sizes = [reading.size or m.size for m in metadata.values()]
    records = Records(path, sizes, reading.channels) if path and path.exists() else None
    return Prepared(Path(image_dir), Path(mask_dir), reading, found, metadata, bad, records)


def _read_all(pairs: list[Pair], reading: Reading, path: Path | None) -> list[Metadata | BadInput]:
    """Read every pair, in several threads: most of the work is done in C. With `path`, the records go there and the
    metadata beside them, if every pair can be read."""
    results = []
    place = whole_file(path, shared=True) if path else nullcontext(os.devnull)
    bar = tqdm(total=len(pairs), desc="reading images and masks", unit="pairs", delay=1)
    threads = min(8, count_cores())
    with explain_limits(), bar, place as part, open(part, "wb") as file, ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(pairs), 4 * threads):  # not all at once: decoded images may be large
            for record, result in pool.map(partial(_read, reading=reading), pairs[first : first + 4 * threads]):
                file.write(record)
                results.append(result)
                bar.update()
    if path and any(isinstance(result, BadInput) for result in results):
        path.unlink()  # what is wrong isn't remembered: it may be mended by a permission alone
    elif path:
        with explain_limits(), whole_file(path.with_suffix(".json"), shared=True) as part:
            part.write_text(json.dumps(results), encoding="ascii")
        _remove_outdated(path)
    return results


def _read(pair: Pair, reading: Reading) -> tuple[np.ndarray | bytes, Metadata | BadInput]:
    """The record of a pair and its metadata, or what is wrong with it."""
    try:
        image, mask, metadata = inspect_pair(pair, reading)
    except BadInput as error:
        return b"", error
    return np.concatenate([image.ravel(), mask.ravel()]), metadata


def _remove_outdated(path: Path) -> None:
    """Remove what the cache holds of the same folders at the same size beside the records in `path`."""
    for old in path.parent.glob(f"*{path.name.rpartition('_')[0]}_*"):
        with suppress(OSError):  # Windows keeps a file that another run has open
            at_work = old.suffix == ".part" and time.time() - old.stat().st_mtime < 3600
            if old.stem != path.stem and not at_work:
                old.unlink()


def _recall(path: Path) -> list[Metadata] | None:
    """The metadata beside the records in `path`; None if either isn't there or can't be read."""
    try:
        path.stat()
        stored = json.loads(path.with_suffix(".json").read_text(encoding="ascii"))
        return [Metadata(tuple(size), *fields) for size, *fields in stored]
    except (OSError, ValueError, TypeError):
        return None


def _cache_path(pairs: list[Pair], reading: Reading, folder: str | Path) -> Path:
    """The file of the records: folders, size, and a digest of all that changes its content."""
    files = [file for pair in pairs for file in pair]
    changing = attrgetter("st_size", "st_mtime_ns")
    content = VERSION, reading, [(file.name, *changing(file.stat())) for file in files]
    folders = sorted({str(file.parent.resolve()) for file in files})
    home, digest = (hashlib.sha256(os.fsencode(repr(part))).hexdigest() for part in (folders, content))
    kind = f"{reading.size[1]}x{reading.size[0]}" if reading.size else "own_size"
    return Path(folder, f"{home[:12]}_{kind}_{digest[:16]}.bin")


def _has_room(path: Path, pairs: list[Pair], reading: Reading) -> bool:
    pixels = sum(math.prod(reading.size or image_size(image) or ()) for image, _ in pairs)
    needed = (reading.channels + 1) * pixels
    try:
        if needed + SPARE_BYTES <= shutil.disk_usage(writable_folder(path.parent)).free:
            return True
        finding = f"no room for {needed / 1e9:.1f} GB of decoded images"
    except BadInput as error:
        finding = error.finding
    warn(path.parent, finding, "Every epoch decodes every file; another CACHE_DIR would keep them")
    return False
