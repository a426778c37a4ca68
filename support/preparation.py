"""The one pass over the images and masks, and what is kept of it so that later runs decode nothing.

That is the resized pairs, in a file of equal records, and the facts about each pair, which checks.py judges.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from support.device import count_cores
from support.errors import BadInput, explain_limits, refuse
from support.files import writable_folder
from support.reading import ONE_CLASS, Classes, Metadata, Pair, Size, inspect_pair
from support.signals import ignore_signals_in_worker

VERSION = 4  # of a record's layout and of how pictures are read: raise it with either, and caches are made anew
SPARE_BYTES = 2**30  # of disk to leave free for the run's own results
SMALL = (16, 24)  # where the check alone needs the pixels: a JPEG decodes fastest at an eighth or less
REMEDY = 'Give a CACHE_DIR that can be written, or "" for none'


class PairCache:
    """Images and masks mapped from a file of equal records: an item is uint8 (H, W, 3) and uint8 (H, W)."""

    def __init__(self, path: Path, size: Size) -> None:
        self.path, self.size = path, size
        self._records: np.ndarray | None = None  # mapped on first use, by each process for itself

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_records": None}

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = self.size[0] * self.size[1]
        if self._records is None:
            self._records = np.asarray(np.memmap(self.path, np.uint8, "r")).reshape(-1, 4 * pixels)
        image, mask = np.split(self._records[index].copy(), [3 * pixels])
        return image.reshape(*self.size, 3), mask.reshape(self.size)


class _Records(Dataset):
    """What a pass reads from each pair: a record for the cache, and the facts. Or what is wrong with the pair."""

    def __init__(self, pairs: list[Pair], size: Size, classes: Classes) -> None:
        self.pairs, self.size, self.classes = pairs, size, classes

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, Metadata] | tuple[None, BadInput]:
        try:
            image, mask, facts = inspect_pair(self.pairs[index], self.size, self.classes)
        except BadInput as error:
            return None, error
        return np.concatenate([image.ravel(), mask.ravel()]), facts


def open_cache(pairs: list[Pair], size: Size, folder: str | Path, classes: Classes = ONE_CLASS) -> PairCache | None:
    """The cache of `pairs` at `size` in `folder`, made on first use by all cores.

    Its name tells the folders and everything that its content depends on: a file's name, length or time of change,
    the size, the classes, the version. So another content is another file, and the one before is removed. None,
    with a line that says so, where the disk has no room for it. Raises BadInput for pairs that can't be read.
    """
    path = _cache_path(pairs, size, folder, classes)
    if not path.exists():
        if not _has_room(pairs, size, folder):
            needed = len(pairs) * 4 * size[0] * size[1] / 1e9
            print(f"no room in {folder} for a cache of {needed:.1f} GB: each epoch will decode every file")
            return None
        refuse([finding for finding in _read_all(pairs, size, classes, path) if isinstance(finding, BadInput)])
    return PairCache(path, size)


def gather_facts(
    pairs: list[Pair], size: Size | None = None, folder: str | Path = "", classes: Classes = ONE_CLASS
) -> list[Metadata | BadInput]:
    """The facts about each pair, or what is wrong with it.

    With `folder`, facts are remembered there, and pairs are read only where a file's name, length or time of change
    is new, or the classes are others. Where all are new and there is a `size`, the same pass makes the cache. What
    is wrong is not remembered: a file that had no permission to be read looks the same when it has got one.
    """
    stamps = [_stamp(pair) for pair in pairs]
    memory = Path(folder, f"{_home(pairs)}_facts.json") if folder and pairs else None
    version = f"{VERSION} {classes}"
    known = _recall(memory, version) if memory else {}
    unknown = [pair for pair, stamp in zip(pairs, stamps, strict=True) if stamp not in known]
    path = None
    if memory and size and len(unknown) == len(pairs) and _has_room(pairs, size, folder):
        path = _cache_path(pairs, size, folder, classes)
    fresh = iter(_read_all(unknown, size or SMALL, classes, path if path and not path.exists() else None))
    found = [known[stamp] if stamp in known else next(fresh) for stamp in stamps]
    if memory and unknown:
        facts = {stamp: fact for stamp, fact in zip(stamps, found, strict=True) if isinstance(fact, Metadata)}
        part = writable_folder(memory.parent, REMEDY) / f"{memory.stem}.{os.getpid()}.part"
        with explain_limits():
            part.write_text(json.dumps({"version": version, "facts": facts}), encoding="ascii")
            os.replace(part, memory)
    return found


def _recall(memory: Path, version: str) -> dict[str, Metadata]:
    """The facts in a file, by stamp; none where it is absent, broken or of another version."""
    try:
        content = json.loads(memory.read_text(encoding="ascii"))
        if content["version"] == version:
            return {stamp: Metadata(tuple(size), *rest) for stamp, (size, *rest) in content["facts"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # everything is read again
    return {}


def _stamp(pair: Pair) -> str | None:
    """What changes with a pair's files: their names, lengths and times of change. None for a broken link."""
    try:
        return "\0".join(f"{path.name}\0{(s := path.stat()).st_size}\0{s.st_mtime_ns}" for path in pair)
    except OSError:
        return None


def _home(pairs: list[Pair]) -> str:
    """A name for the folders that the pairs come from."""
    folders = sorted({str(folder.resolve()) for folder in {file.parent for pair in pairs for file in pair}})
    return hashlib.sha256("\n".join(folders).encode(errors="surrogateescape")).hexdigest()[:12]


def _prefix(pairs: list[Pair], size: Size) -> str:
    return f"{_home(pairs)}_{size[0]}x{size[1]}_"


def _cache_path(pairs: list[Pair], size: Size, folder: str | Path, classes: Classes) -> Path:
    digest = hashlib.sha256(repr((VERSION, classes, size, [_stamp(pair) for pair in pairs])).encode())
    return Path(folder, f"{_prefix(pairs, size)}{digest.hexdigest()[:16]}.bin")


def _has_room(pairs: list[Pair], size: Size, folder: str | Path) -> bool:
    needed = len(pairs) * 4 * size[0] * size[1]
    return needed + SPARE_BYTES <= shutil.disk_usage(writable_folder(Path(folder), REMEDY)).free


def _read_all(
    pairs: list[Pair], size: Size, classes: Classes, path: Path | None = None
) -> list[Metadata | BadInput]:
    """Read every pair, in several processes. With `path`, also write the records there: the file appears only where
    every pair could be read, when it is whole, and older ones of the same folders and size go."""
    if not pairs:
        return []
    workers = min(count_cores(), len(pairs) // 16)  # a process is not worth starting for a few files
    workers = 0 if workers == 1 else workers  # nor one alone
    loader = DataLoader(
        _Records(pairs, size, classes),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=ignore_signals_in_worker,
        generator=torch.Generator(),  # else it would draw from the run's own, and change the first weights
    )
    part = path.with_suffix(f".{os.getpid()}.part") if path else Path(os.devnull)
    found = []
    try:
        with explain_limits(), open(part, "wb") as file:
            for record, finding in tqdm(loader, desc=f"reading {pairs[0][0].parent}", unit="pairs", delay=1):
                found.append(finding)
                if path and record is not None:
                    file.write(record)
            if path and not any(isinstance(finding, BadInput) for finding in found):
                file.flush()
                os.fsync(file.fileno())
                os.replace(part, path)
                _remove_old(path, _prefix(pairs, size))
    finally:
        if path:
            part.unlink(missing_ok=True)
    return found


def _as_it_is(item: Any) -> Any:
    return item


def _remove_old(path: Path, prefix: str) -> None:
    hour_ago = time.time() - 3600
    for old in path.parent.glob(f"{prefix}*"):
        if old != path and (old.suffix == ".bin" or old.stat().st_mtime < hour_ago):  # or left by a killed run
            with contextlib.suppress(OSError):  # Windows keeps a file that another run has open
                old.unlink()
