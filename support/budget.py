"""What fits into the time: how wide a network, how many epochs, and how much of a run is done."""

import math
import time
from argparse import Namespace
from typing import Any

import torch

from model import UNET
from support.checkpoint import model_arguments
from support.device import time_step
from support.distributed import Group
from support.reading import Size

BEGAN = time.monotonic()  # of the command, but for the interpreter's start
STEPS = 1500  # of a run without a limit
ENOUGH_STEPS = 3000  # before a wider network is worth its time (the table of widths in benchmarks/RESULTS.md)
ENCODER_FEATURES = [8, 16, 32, 64, 128]  # with an encoder, most of which halve the image five times
WIDTHS = (8, 16, 32, 64)  # channels of the first of four levels; each next level has twice as many
HALF_SIZE_WORK = 0.35  # of a step at half the height and width: a quarter of the pixels, and what each step costs


def choose_features(
    device: torch.device, precision: torch.dtype, size: Size, batch: int, seconds: float
) -> list[int]:
    """Channels of each level. Without a limit (0 seconds) a CPU gets an eighth of the paper's, and a GPU all of
    them; otherwise the widest network that does ENOUGH_STEPS in these seconds, judged by a few steps of each."""
    chosen = WIDTHS[0] if seconds or device.type == "cpu" else WIDTHS[-1]
    for width in WIDTHS if seconds else ():
        model = UNET(features=[width * 2**level for level in range(4)]).to(device)
        if ENOUGH_STEPS * time_step(model, precision, size, batch) > seconds:
            break
        chosen = width
    return [chosen * 2**level for level in range(4)]


def settle(
    options: Namespace,
    state: dict[str, Any] | None,
    start: dict[str, Any] | None,
    group: Group,
    precision: torch.dtype,
    batch: int,
    steps: int,
) -> None:
    """Give FEATURES and NUM_EPOCHS their values if they are "auto": those of the `state` that is resumed or of the
    checkpoint to `start` from, or what suits `steps` an epoch of `batch` images and the time that is left.
    With CROP, squares of so many pixels are what the network sees; they are trained at full scale, and so is
    anything whose half is too small."""
    if start and not options.ENCODER:
        options.ENCODER = start.get("model", {}).get("encoder", "")
    if options.CROP:
        options.IMAGE_HEIGHT = options.IMAGE_WIDTH = options.CROP
    size = options.IMAGE_HEIGHT, options.IMAGE_WIDTH
    if options.FEATURES == "auto" and (known := state or start):
        options.FEATURES = model_arguments(known, options.START_FROM if start else "LOAD_MODEL")["features"]
    elif options.FEATURES == "auto" and options.ENCODER:
        options.FEATURES = ENCODER_FEATURES
    elif options.FEATURES == "auto":
        seconds = options.TIME_LIMIT * 60 and max(1.0, options.TIME_LIMIT * 60 - (time.monotonic() - BEGAN))
        seconds /= 1 - (1 - HALF_SIZE_WORK) * options.PROGRESSIVE_RESIZING  # of steps at full size
        options.FEATURES = group.broadcast(lambda: choose_features(group.device, precision, size, batch, seconds))
    if options.NUM_EPOCHS == "auto":
        saved = (state or {}).get("constants", {}).get("NUM_EPOCHS")
        options.NUM_EPOCHS = math.inf if options.TIME_LIMIT else saved or max(3, round(STEPS / steps))
    if options.CROP or min(size) < 2 * 2 ** len(options.FEATURES):
        options.PROGRESSIVE_RESIZING = 0.0


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
