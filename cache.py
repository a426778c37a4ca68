"""Resized photographs and masks kept in a file, so that only the first run decodes them."""

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from machine import count_cores, leave_signals_to_parent
from reading import Pair, Size, read_pair

VERSION = 1  # of a record's layout and of how pictures are read: raise it with either, and caches are made anew
SPARE_BYTES = 2**30  # of disk to leave free for the run's own results


class PairCache:
    """Images and masks mapped from a file of equal records: an item is uint8 (H, W, 3) and {0, 1} (H, W)."""

    def __init__(self, path: Path, size: Size) -> None:
        self.path, self.size = path, size

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = self.size[0] * self.size[1]
        record = np.memmap(self.path, np.uint8, "c", offset=index * 4 * pixels, shape=(4 * pixels,))
        image, mask = np.split(np.asarray(record), [3 * pixels])
        return image.reshape(*self.size, 3), mask.reshape(self.size)


class _Records(Dataset):
    """The records that a cache is to hold, read from the photographs."""

    def __init__(self, pairs: list[Pair], size: Size) -> None:
        self.pairs, self.size = pairs, size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.concatenate([array.ravel() for array in read_pair(self.pairs[index], self.size)])


def open_cache(pairs: list[Pair], size: Size, folder: str | Path) -> PairCache | None:
    """The cache of `pairs` at `size` in `folder`, made on first use by all cores.

    Its name tells the folders and everything that its content depends on: a file's name, length or time of change,
    the size, the version. So another content is another file, and the one before is removed. None, with a line that
    says so, where the disk has no room for it.
    """
    folder = Path(folder)
    home = hashlib.sha256(
        "\n".join(sorted({str(file.parent.resolve()) for pair in pairs for file in pair})).encode()
    )
    prefix = f"{home.hexdigest()[:12]}_{size[0]}x{size[1]}_"
    path = folder / f"{prefix}{_fingerprint(pairs, size)}.bin"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        needed = len(pairs) * 4 * size[0] * size[1]
        if needed + SPARE_BYTES > shutil.disk_usage(folder).free:
            print(f"no room in {folder} for a cache of {needed / 1e9:.1f} GB: each epoch will decode every file")
            return None
        _write(path, pairs, size)
        hour_ago = time.time() - 3600
        for old in folder.glob(f"{prefix}*"):
            if old != path and (old.suffix == ".bin" or old.stat().st_mtime < hour_ago):  # or left by a killed run
                with contextlib.suppress(OSError):  # Windows keeps a file that another run has open
                    old.unlink()
    return PairCache(path, size)


def _fingerprint(pairs: list[Pair], size: Size) -> str:
    digest = hashlib.sha256(repr((VERSION, size)).encode())
    for file in (file for pair in pairs for file in pair):
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _write(path: Path, pairs: list[Pair], size: Size) -> None:
    """Decode every pair into `path`, which appears only when it is whole."""
    part = path.with_suffix(f".{os.getpid()}.part")
    workers = min(count_cores(), len(pairs) // 16)  # a process is not worth starting for a few files
    loader = DataLoader(
        _Records(pairs, size),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # else it would draw from the run's own, and change the first weights
    )
    try:
        with open(part, "wb") as file:
            for record in tqdm(loader, desc=f"reading {pairs[0][0].parent}", unit="pairs", delay=1):
                file.write(record.numpy())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
