"""What fits into the time: how wide a network, how many epochs, and how much of a run is done."""

import math
import time
from argparse import Namespace
from typing import Any

import torch

from model import UNET, Encoder, unet_arguments
from support.checkpoint import plain_weights
from support.device import time_step
from support.distributed import Group
from support.errors import BadInput
from support.reading import Size

BEGAN = time.monotonic()  # of the command, but for the interpreter's start
STEPS = 1500  # of a run without a limit
ENOUGH_STEPS = 3000  # before a wider network is worth its time (the table of widths in benchmarks/RESULTS.md)
ENCODER_WIDTH = 8  # of the first level, with an encoder
WIDTHS = (8, 16, 32, 64)  # channels of the first of four levels; each next level has twice as many
HALF_SIZE_WORK = 0.35  # of a step at half the height and width: a quarter of the pixels, and what each step costs


def choose_features(
    device: torch.device, precision: torch.dtype, size: Size, batch: int, seconds: float, encoder: str = ""
) -> list[int]:
    """Channels of each level. Without a limit (0 seconds) a CPU gets an eighth of the paper's, and a GPU all of
    them; otherwise it is the widest network that does ENOUGH_STEPS in these seconds, judged by a few steps of each.
    With an encoder their number matters little."""
    if encoder:
        return [ENCODER_WIDTH * 2**level for level in range(Encoder(encoder).levels)]
    chosen = WIDTHS[0] if device.type == "cpu" else WIDTHS[-1]
    if seconds:
        chosen = WIDTHS[0]
        for width in WIDTHS:
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
    if options.ENCODER_WEIGHTS and not options.ENCODER:
        raise BadInput("ENCODER_WEIGHTS", "given without an ENCODER", "Name the network whose weights they are")
    if options.CROP:
        options.IMAGE_HEIGHT = options.IMAGE_WIDTH = options.CROP
    size = options.IMAGE_HEIGHT, options.IMAGE_WIDTH

    def choose() -> tuple[list[int], float]:
        features, epochs, known = options.FEATURES, options.NUM_EPOCHS, state or start
        if features == "auto" and known:
            features = (known.get("model") or unet_arguments(plain_weights(known)))["features"]
        if features == "auto":
            seconds = options.TIME_LIMIT * 60 and max(1.0, options.TIME_LIMIT * 60 - (time.monotonic() - BEGAN))
            seconds /= 1 - (1 - HALF_SIZE_WORK) * options.PROGRESSIVE_RESIZING  # of steps at full size
            features = choose_features(group.device, precision, size, batch, seconds, options.ENCODER)
        if epochs == "auto":
            saved = (state or {}).get("constants", {}).get("NUM_EPOCHS")
            epochs = math.inf if options.TIME_LIMIT else saved or max(3, round(STEPS / steps))
        return features, epochs

    try:
        options.FEATURES, options.NUM_EPOCHS = group.broadcast(choose)
    except (ValueError, ImportError) as error:
        raise BadInput("ENCODER", str(error), "Give another of timm's networks") from error
    except KeyError as error:
        raise BadInput(options.START_FROM, f"not a U-Net of model.py: no weight {error}", "Use another") from error
    if options.CROP or min(size) < 2 * 2 ** len(options.FEATURES):
        options.PROGRESSIVE_RESIZING = 0.0


def work(progress: float, half_share: float) -> float:
    """The share of a run's work that is done with a share `progress` of its steps, the first `half_share` of which
    are at half the height and width."""
    total = HALF_SIZE_WORK * half_share + 1 - half_share
    return (HALF_SIZE_WORK * min(progress, half_share) + max(0.0, progress - half_share)) / total


def progress_of_work(share: float, half_share: float) -> float:
    """The share of the steps that is done with a share of the work: the inverse of `work`."""
    total = HALF_SIZE_WORK * half_share + 1 - half_share
    first = HALF_SIZE_WORK * half_share
    done = share * total
    return done / HALF_SIZE_WORK if done < first else half_share + done - first


class Clock:
    """The time of a run: with a limit of so many `seconds` (0 is none), the `share` of it that has passed."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.share = seconds, 0.0
        self.earlier = 0.0  # seconds before the run was resumed
        self.reserve = seconds / 20  # for the last validation, until one has been timed
        self.at_end = 0.0  # for what comes after training
        self.last_look = BEGAN
        self.first_work: tuple[float, float] | None = None  # some work that was done, and when

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

    def minutes_left(self, done: float) -> float | None:
        """Without a limit, at the second look at the share of the work that is `done`: what the rest of it
        takes."""
        now, first = time.monotonic(), self.first_work
        if first is None:
            self.first_work = done, now
        elif not self.seconds and first[0] < done < 1:
            self.first_work = math.inf, now
            return (now - first[1]) / (done - first[0]) * (1 - done) / 60
        return None
