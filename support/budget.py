"""What fits into the time: how wide a network, how many epochs, and how much of a run is done."""

import math
import os
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from model import UNET
from support.checkpoint import model_arguments
from support.device import choose_memory_format, time_step
from support.distributed import Group
from support.reading import Size

STEPS = 1500  # of a run without a limit
ENOUGH_STEPS = 3000  # before a wider network is worth its time (the table of widths in benchmarks/RESULTS.md)
ENCODER_FEATURES = [8, 16, 32, 64, 128]  # with an encoder, most of which halve the image five times
WIDTHS = (8, 16, 32, 64)  # channels of the first of four levels; each next level has twice as many
HALF_SIZE_WORK = 0.35  # of a step at half the height and width: a quarter of the pixels, and what each step costs


def _process_age() -> float:
    """Seconds since this process was started, where the system tells; 0 for one that has been there long before,
    as a notebook's."""
    age = 0.0
    with suppress(OSError, ValueError, AttributeError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return age if 0 < age < 60 else 0.0


BEGAN = time.monotonic() - _process_age()  # of the command


def choose_features(
    device: torch.device,
    precision: torch.dtype,
    size: Size,
    channels: int,
    batch: int,
    seconds: float,
) -> list[int]:
    """Channels of each level. Without a limit (0 seconds) a CPU gets an eighth of the paper's, and a GPU all of
    them; otherwise the widest network that does ENOUGH_STEPS in these seconds, judged by a few steps of each."""
    chosen = WIDTHS[0] if seconds or device.type == "cpu" else WIDTHS[-1]
    for width in WIDTHS if seconds else ():
        model = UNET(channels, features=[width * 2**level for level in range(4)])
        try:
            model.to(device, memory_format=choose_memory_format(device, precision))
            each = time_step(model, precision, size, batch)
        except RuntimeError:  # out of memory, which a narrower network wasn't
            if width == WIDTHS[0]:
                raise
            break
        if ENOUGH_STEPS * each > seconds:
            break
        chosen = width
    return [chosen * 2**level for level in range(4)]


def settle_network(options: Namespace, state: dict[str, Any] | None, start: dict[str, Any] | None) -> None:
    """Give ENCODER, FEATURES and BATCH_SIZE, before any image is read, the values that the `state` to resume or the
    checkpoint to `start` from has for them, if none are given. With CROP, squares of so many pixels are what the
    network sees."""
    known = state or start or {}
    options.ENCODER = options.ENCODER or known.get("model", {}).get("encoder") or ""
    if options.FEATURES == "auto" and known:
        options.FEATURES = model_arguments(known, options.START_FROM if start else "LOAD_MODEL")["features"]
    elif options.FEATURES == "auto" and options.ENCODER:
        options.FEATURES = ENCODER_FEATURES
    if options.BATCH_SIZE == "auto" and state:
        options.BATCH_SIZE = state.get("constants", {}).get("BATCH_SIZE", "auto")
    if options.CROP:
        options.IMAGE_HEIGHT = options.IMAGE_WIDTH = options.CROP


def settle_length(
    options: Namespace, state: dict[str, Any] | None, group: Group, precision: torch.dtype, steps: int
) -> None:
    """Give FEATURES and NUM_EPOCHS, if they are still "auto", what suits the time left and `steps` an epoch.
    Squares of CROP are trained at full scale, and so is anything whose half leaves BatchNorm a single pixel."""
    size, levels = (options.IMAGE_HEIGHT, options.IMAGE_WIDTH), num_levels(options)
    batch = batch_at_once(options, group)
    if options.CROP or batch * math.prod(side // 2 // 2**levels for side in size) < 2:
        options.PROGRESSIVE_RESIZING = 0.0
    if options.FEATURES == "auto":
        seconds = options.TIME_LIMIT * 60 and max(1.0, options.TIME_LIMIT * 60 - (time.monotonic() - BEGAN))
        seconds /= 1 - (1 - HALF_SIZE_WORK) * options.PROGRESSIVE_RESIZING  # of steps at full size
        seconds /= options.ACCUMULATION_STEPS  # of its parts
        shape = size, options.IN_CHANNELS, batch
        options.FEATURES = group.broadcast(lambda: choose_features(group.device, precision, *shape, seconds))
    if options.NUM_EPOCHS == "auto":
        saved = (state or {}).get("constants", {}).get("NUM_EPOCHS", math.inf)  # which it is with a TIME_LIMIT
        unlimited = max(3, round(STEPS / steps)) if math.isinf(saved) else saved
        options.NUM_EPOCHS = math.inf if options.TIME_LIMIT else unlimited


def num_levels(options: Namespace) -> int:
    """How often the network halves an image."""
    return 4 if options.FEATURES == "auto" else len(options.FEATURES)


def batch_at_once(options: Namespace, group: Group) -> int:
    """How many images of a step, at the least, a process computes at once."""
    return max(1, options.BATCH_SIZE // group.world_size // options.ACCUMULATION_STEPS)


def work_curve(half_share: float) -> tuple[list[float], list[float]]:
    """Points of a run: the shares of its steps, the first `half_share` of which are at half the height and width,
    and the shares of its work that are done with these."""
    half = HALF_SIZE_WORK * half_share
    return [0.0, half_share, 1.0], [0.0, half / (half + 1 - half_share), 1.0]


class Clock:
    """The time of a run: with a limit of so many `seconds` (0 is none), the `share` of it that has passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.share = seconds, 0.0
        self.earlier = 0.0  # seconds before the run was resumed
        self.reserve = seconds / 20  # for the last validation, until one has been timed
        self.at_end = 0.0  # for what comes after training
        self.last_look = BEGAN

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, with those before it was resumed."""
        return self.earlier + time.monotonic() - BEGAN

    def look(self, group: Group) -> None:
        """Note the time after a step. Of several processes, the first one's clock counts."""
        self.last_look = time.monotonic()
        if self.seconds:
            share = group.broadcast(lambda: self.elapsed / max(1e-9, self.seconds - self.reserve - self.at_end))
            self.share = min(1.0, max(self.share, share))

    def end_validation(self) -> None:
        """Note how long a validation took: the last one has to fit in, too."""
        self.reserve = max(0.9 * self.reserve, time.monotonic() - self.last_look)
