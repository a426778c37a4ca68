"""A training run between its steps: what a checkpoint holds, and when one is written."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from support.checkpoint import FORMAT, CheckpointWriter, all_finite, load_checkpoint
from support.distributed import ALONE, Group
from support.errors import BadInput, warn
from support.logger import Logger

LOOK_EVERY = 10  # steps between looks at the loss, which make a GPU wait
SMALLEST_SCALE = 2.0**-10  # of a scaler: below it, float16 overflows in every step


def end_bars() -> None:
    """Have every progress bar end its line, which whatever breaks off an epoch would leave open."""
    for bar in list(tqdm._instances):
        bar.close()


class Run:
    """One training run: where it is, and how to save it and go on from there, exactly.

    A position is an epoch, counted from 0, and the steps done in it. Used as a context, it answers signals:
    SIGTERM and SIGINT save after the step and end the process with 128 + signal, SIGUSR1 saves and goes on.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        logger: Logger,
        loader: DataLoader,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        scaler: torch.amp.GradScaler,
        about: dict[str, Any],
        group: Group = ALONE,
    ) -> None:
        """`about` is what a checkpoint tells beside the state: the script's constants, the arguments of the model
        and which images it learns from."""
        self.writer, self.logger, self.about, self.group = writer, logger, about, group
        self.dataset, self.batches = loader.dataset, loader.batch_sampler
        self.model, self.optimizer, self.scheduler, self.scaler = model, optimizer, scheduler, scaler
        self.save_seconds = about["constants"]["SAVE_MINUTES"] * 60
        self.epoch = self.step = 0
        self.losses: list[Tensor] = []  # of the epoch's steps, left on the device
        self.best_dice = -1.0
        self.signal, self.save_soon = 0, False  # what this process was asked for
        self.asks_always = group.world_size == 1 or group.device.type == "cpu"  # GPUs would wait for each other
        self.last_save = time.monotonic()
        self.clock: tuple[int, float] | None = None  # a step of this epoch and when it was done

    @property
    def total_steps(self) -> int:
        """Steps done in all epochs."""
        return self.scheduler.last_epoch  # whatever its name says, it counts steps here

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and primitives."""
        kind, keys, *rest = np.random.get_state()
        return {
            "format": FORMAT,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.group.mean(torch.stack(self.losses)) if self.losses else torch.empty(0),
            "best_dice": self.best_dice,
            "generators": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "python": random.getstate(),
                "numpy": [kind, keys.tolist(), *rest],
            },
            "launch": self.group.run_id,
            **self.about,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
        }

    def saved_state(self, load_model: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from: the latest, with `load_model`; else what was saved before torchrun, of the
        same command, restarted the processes; or none."""
        if load_model:
            return self.writer.read()
        if self.group.run_id and self.writer.latest.exists():
            state = self.writer.read()
            return state if state.get("launch") == self.group.run_id else None
        return None

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; from weights alone, or another script's checkpoint, start anew."""
        name = str(self.writer.latest)
        if "step" not in state:
            load_checkpoint(state, self.model, name=name)
            return
        try:
            self._restore(state, name)
        except BadInput:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            finding = f"lacks {reason}" if isinstance(error, KeyError) else f"not as train.py writes it ({reason})"
            raise BadInput(name, finding, "Use another checkpoint") from error

    def _restore(self, state: dict[str, Any], name: str) -> None:
        load_checkpoint(state, self.model, self.optimizer, name=name)
        images = self.about["images"]
        if state.get("images", images) != images:
            counts = "{train} to learn from and {val} to score on"
            then, now = (counts.format(**some) for some in (state["images"], images))
            finding = f"the images have changed since it was written: then {then}, now {now}"
            warn(name, finding, "The run goes on with the new ones")
        self.scheduler.load_state_dict(state["scheduler"])
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.best_dice = state["epoch"], state["step"], state["best_dice"]
        device = next(self.model.parameters()).device
        self.losses = list(state["losses"].to(device))
        self.batches.epoch, self.batches.first_batch = self.epoch, self.step
        generators = state["generators"]
        torch.set_rng_state(generators["torch"])
        if torch.cuda.is_available() and len(generators["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(generators["cuda"])
        random.setstate(generators["python"])
        np.random.set_state(tuple(generators["numpy"]))
        for name, value in state["constants"].items():
            now = self.about["constants"].get(name, value)
            if now != value and name != "LOAD_MODEL":
                print(f"{name} was {value!r} when this run began and is {now!r} now")

    def after_step(self, loss: Tensor) -> None:
        """Count the step; every so many, and whenever something is asked for, look at the losses and save."""
        self.step += 1
        self.losses.append(loss)
        self.clock = self.clock or (self.step, time.perf_counter())
        look = self.step % LOOK_EVERY == 0 or self.step == len(self.batches)
        number, save = self.asked() if look or self.asks_always else (0, False)
        if look or number or save:
            self.check_losses()
            self.writer.poll()
        if look:
            self.record()
        if number:
            self.save_and_exit(number)
        if save:
            self.save()

    def asked(self) -> tuple[int, bool]:
        """The signal that any process got, or 0, and whether to save: one answer for all processes."""
        due = time.monotonic() - self.last_save > self.save_seconds
        signals, saves = zip(*self.group.all_gather((self.signal, self.save_soon or due)), strict=True)
        return max(signals), any(saves)

    def record(self) -> None:
        """Add to the logger what the steps since the last time were like."""
        before, now = (self.step - 1) // LOOK_EVERY * LOOK_EVERY, time.perf_counter()
        share_of_peak = self.scheduler.get_last_lr()[0] / self.scheduler.base_lrs[0]  # the same in all layers
        values = {
            "loss": self.group.mean(torch.stack(self.losses[before:])).mean().item(),
            "learning_rate": self.about["constants"]["LEARNING_RATE"] * share_of_peak,
            "scale": self.scaler.get_scale(),
        }
        if steps := self.step - self.clock[0]:
            values["images_per_s"] = steps * self.batches.batch_size / (now - self.clock[1])
        self.clock = self.step, now
        self.logger.add("train", self.total_steps, values)

    def mean_loss(self) -> float:
        """Mean training loss of the epoch's steps so far, those before an interruption included."""
        return self.group.mean(torch.stack(self.losses)).mean().item()

    def stoppable(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of `loader`, for as long as no signal asks to stop."""
        for batch in loader:
            if self.signal:
                break
            yield batch
        number, _ = self.asked()  # here, because the processes' batches may differ in number
        if number:
            self.save_and_exit(number)

    def finish_epoch(self, dice: float) -> None:
        """Move on to the next epoch and save; the highest validation Dice so far makes the best checkpoint."""
        is_best = dice > self.best_dice  # never so for a NaN
        self.best_dice = dice if is_best else self.best_dice
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []
        self.clock = None
        self.save(is_best)
        number, _ = self.asked()
        if number:
            self.exit(number)

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint of where the run is, in the background."""
        if not all_finite(self.model.state_dict()):
            raise BadInput(f"epoch {self.epoch + 1}", "weights are not finite", "Lower LEARNING_RATE")
        self.writer.save(self.state(), is_best)
        self.save_soon, self.last_save = False, time.monotonic()

    def save_and_exit(self, number: int) -> NoReturn:
        """Save, and end the process as the signal of that number asks."""
        self.save()
        self.exit(number)

    def exit(self, number: int) -> NoReturn:
        """End the process as the signal of that number asks, when what was saved last is on the disk."""
        self.writer.wait()
        end_bars()
        place = f"epoch {self.epoch + 1} after step {self.step}"
        print(f"stopped in {place}; the same command with --LOAD_MODEL goes on from there")
        raise SystemExit(128 + number)

    def check_losses(self) -> None:
        """Raise BadInput at the epoch's first loss that is not finite, with the files of its share of the step."""
        bad = (~torch.stack(self.losses).isfinite()).nonzero()
        found = None
        if len(bad):
            step = int(bad[0])
            files = ", ".join(self.dataset.images[index] for index in self.batches.shard(self.epoch, step))
            found = step, f"the loss is {self.losses[step].item()}, with {files}"
        found = min(filter(None, self.group.all_gather(found)), default=None)
        if found:
            step, finding = found
            remedy = "Look at these files, lower LEARNING_RATE or set PRECISION to float32"
            raise BadInput(f"epoch {self.epoch + 1}, step {step + 1}", finding, remedy)
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            finding = "every step overflows in float16"
            remedy = "Lower LEARNING_RATE or set PRECISION to bfloat16 or float32"
            raise BadInput(f"epoch {self.epoch + 1}, step {self.step}", finding, remedy)

    def __enter__(self) -> "Run":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            names = ("SIGTERM", "SIGINT", "SIGUSR1")  # Windows lacks the last
            signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        end_bars()
        if kind is None:
            self.writer.wait()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGUSR1", None):
            self.save_soon = True
        elif not self.signal:
            self.signal = number
        elif self.group.world_size == 1:  # else the same one came from a queue and once more from torchrun
            os._exit(128 + number)
