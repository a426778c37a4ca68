"""Images and masks as samples, and the order in which training sees them."""

import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset, Sampler

from support.errors import refuse
from support.pairs import find_pairs
from support.preparation import Records, prepare
from support.reading import AS_IS, IGNORED, Reading, read_pair

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks a server for the newest version
import albumentations as A  # noqa: E402
from albumentations.pytorch import ToTensorV2  # noqa: E402


def make_transforms() -> tuple[A.Compose, A.Compose]:
    """What is done to a sample on its way to the network, in training and in validation. Sizes stay as they are,
    and images uint8, (C, H, W): the network makes floats of them on its device."""
    augment = [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            scale=(0.9, 1.1),
            translate_percent=(-0.05, 0.05),
            rotate=(-5, 5),  # degrees: cars stand upright
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.7,
        ),
        A.RandomBrightnessContrast(brightness_limit=0.4, contrast_limit=0.4, p=0.8),  # cars of other colours
        A.CoarseDropout((1, 4), (0.1, 0.25), (0.1, 0.25), fill="random_uniform", p=0.5),  # masks keep what it hides
    ]
    return A.Compose([*augment, ToTensorV2()]), A.Compose([ToTensorV2()])


class CarvanaDataset(Dataset):
    """Images with their masks, sorted by name.

    An item is `(image, mask)`: what `transform` (an albumentations Compose) makes of an image, uint8
    (H, W, channels), and a mask, uint8 (H, W): {0, 1}, or of several classes their numbers and
    support.reading.IGNORED. The mask comes out as bool, or of several classes as uint8. With a `reading` that
    has a size, all items fit in one batch, whatever the images' own sizes. With `crop`, an item is a square of so
    many pixels at the image's own scale, and each image is there `crops` times.

    An index is a number, or the (epoch, index) that EpochBatches yields: the transform then draws from
    (seed, epoch, index) alone, so that an item is the same in whichever worker, process or run it is made.
    """

    def __init__(
        self,
        image_dir: str | Path,
        mask_dir: str | Path,
        transform: Callable[..., dict[str, Any]] | None = None,
        reading: Reading = AS_IS,
        *,
        crop: int = 0,
        crops: int = 1,
        seed: int = 0,
    ) -> None:
        self.image_dir, self.mask_dir, self.transform, self.reading = image_dir, mask_dir, transform, reading
        self.crop, self.crops, self.seed = crop, crops, seed
        self.pairs = find_pairs(image_dir, mask_dir) * crops
        self.images = [image.name for image, _ in self.pairs]
        self.records: Records | None = None

    def use_cache(self, folder: str | Path) -> None:
        """Read the records in `folder` from now on; if they are missing or out of date, prepare them first."""
        prepared = prepare(self.image_dir, self.mask_dir, self.reading, folder)
        refuse(prepared.bad)
        self.records = prepared.records

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image, uint8 (H, W, C), and mask, uint8 (H, W), before any crop and transform, not to be written to."""
        if self.records is not None:
            with suppress(FileNotFoundError):  # another run may have replaced them: the files give the same
                return self.records[index % len(self.records)]
        return read_pair(self.pairs[index], self.reading)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Any, Any]:
        epoch, index = index if isinstance(index, tuple) else (None, index)
        image, mask = self.read(index)
        generator = np.random.default_rng() if epoch is None else np.random.default_rng((self.seed, epoch, index))
        if self.crop:
            image, mask = random_crop(image, mask, self.crop, generator)
        image, mask = image.copy(), mask.copy()
        if self.transform is not None:
            if epoch is not None and hasattr(self.transform, "set_random_state"):
                # One generator for the whole Compose. Its own `seed=` gives each child a like one, whose draws
                # then agree: two flips would always come together.
                self.transform.set_random_state(generator, random.Random(int(generator.integers(2**63))))
            try:
                augmented = self.transform(image=image, mask=mask)
            except Exception as error:
                raise RuntimeError(f"the transform failed on {self.pairs[index][0]}") from error
            image, mask = augmented["image"], augmented["mask"]
        return image, mask if self.reading.classes.multiclass else mask > 0


def random_crop(
    image: np.ndarray, mask: np.ndarray, side: int, generator: np.random.Generator, foreground: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """A square of `side` pixels of an image, uint8 (H, W, C), and its mask, uint8 (H, W). A share `foreground` of
    them is sure to show foreground, which may be rare. A smaller image is continued by its mirror image."""
    down, right = (max(0, side - length) for length in mask.shape)
    if down or right:
        image, mask = (cv2.copyMakeBorder(a, 0, down, 0, right, cv2.BORDER_REFLECT_101) for a in (image, mask))
        image = np.atleast_3d(image)  # of one band, OpenCV has left none
    room = np.array(mask.shape) - side  # for the upper left corner
    corner = generator.integers(room + 1)
    if generator.random() < foreground and len(pixels := np.flatnonzero((mask > 0) & (mask != IGNORED))):
        pixel = np.array(np.unravel_index(pixels[generator.integers(len(pixels))], mask.shape))
        corner = (pixel - generator.integers(side, size=2)).clip(0, room)
    square = tuple(slice(start, start + side) for start in corner)
    return image[square], mask[square]


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), in an order drawn from (seed, epoch) alone.

    Each iteration is the next epoch. A position in a run is `epoch` and `first_batch`; whoever sets them goes
    on from there. The epoch travels with each index, because persistent workers keep the dataset they began
    with. With `drop_last`, a last batch that isn't full is left out; the order sees to it that other images
    are left out in each epoch. Of several processes, each takes its share of every batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed, self.drop_last = size, batch_size, seed, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first_batch = 0
        self._ordered, self._order = -1, []  # the epoch whose order is at hand

    def __len__(self) -> int:
        return self.size // self.batch_size if self.drop_last else math.ceil(self.size / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # A generator, so that the epoch counts on with the first batch: a DataLoader makes iterators it never uses.
        epoch, first_batch = self.epoch, self.first_batch
        self.epoch, self.first_batch = epoch + 1, 0
        for number in range(first_batch, len(self)):
            yield [(epoch, index) for index in self.shard(epoch, number)]

    def shard(self, epoch: int, number: int) -> list[int]:
        """The indices of this process's share of a batch."""
        return self.batch(epoch, number)[self.rank :: self.world_size]

    def batch(self, epoch: int, number: int) -> list[int]:
        """The indices of one batch of an epoch."""
        if epoch != self._ordered:
            self._ordered = epoch
            self._order = np.random.default_rng((self.seed, epoch)).permutation(self.size).tolist()
        return self._order[number * self.batch_size : (number + 1) * self.batch_size]
