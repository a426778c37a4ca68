"""A training run between its steps: what a checkpoint holds, and when one is written."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from support.budget import Clock, work_curve
from support.checkpoint import FORMAT, CheckpointWriter, all_finite, load_checkpoint, trained_size
from support.distributed import ALONE, Group
from support.errors import BadInput, counted, warn
from support.files import writable_folder
from support.logger import Logger
from support.reading import Size
from support.workers import ENDINGS

LOOK_EVERY = 10  # steps between looks at the loss, which make a GPU wait
SMALLEST_SCALE = 2.0**-10  # of a scaler: below it, float16 overflows in every step


class Run:
    """One training run: where it is, and how to save it and resume it exactly.

    A position is an epoch, counted from 0, and the steps done in it. Used as a context, it answers signals:
    SIGTERM, SIGINT and SIGHUP save after the step and end the process with 128 + signal, SIGUSR1 saves and goes on.
    """

    def __init__(
        self,
        writer: CheckpointWriter,
        constants: dict[str, Any],
        loader: DataLoader,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        schedule: Callable[[float], float],
        metadata: dict[str, Any],
        group: Group = ALONE,
    ) -> None:
        """`schedule` gives the learning rate, of its peak, from the fraction of the run that is done; `constants`
        are the script's, in force; `metadata` is what else a checkpoint tells: the model's arguments and which
        images it is trained on. Raises BadInput if OUT_DIR can't be written."""
        out_dir = Path(constants["OUT_DIR"])
        self.images_dir = writable_folder(out_dir / "saved_images")
        self.logger = Logger(writable_folder(out_dir / "runs"), constants, enabled=group.is_main)
        writer.check_room(model)
        self.writer, self.group = writer, group
        self.dataset, self.batches = loader.dataset, loader.batch_sampler
        self.model, self.optimizer, self.scaler, self.schedule = model, optimizer, scaler, schedule
        self.constants, self.metadata = constants, {"constants": constants, **metadata}
        self.num_epochs, self.patience = constants["NUM_EPOCHS"], constants["PATIENCE"]
        self.half_share, self.clock = constants["PROGRESSIVE_RESIZING"], Clock(constants["TIME_LIMIT"] * 60)
        self.work_curve = work_curve(self.half_share)

        self.epoch = self.step = 0
        self.losses = torch.zeros(len(self.batches), device=group.device)  # of the epoch's steps
        self.best_dice = -1.0
        self.half_size = False  # whether the last step was at half the height and width, in progressive resizing
        self.full_size_dice: list[float] = []  # of each epoch that PATIENCE counts
        self.signal, self.save_soon = 0, False  # what this process was asked for
        self.last_save = time.monotonic()
        for param_group in optimizer.param_groups:
            param_group["initial_lr"] = param_group["lr"]  # the peak, under the name that PyTorch's schedulers use

    @property
    def total_steps(self) -> int:
        """Steps done in all epochs."""
        return self.epoch * len(self.batches) + self.step

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, in [0, 1], whatever the number of steps in its epochs was: of its
        steps or, with a TIME_LIMIT, of the steps that the time will be enough for, if these are fewer."""
        by_steps = self.total_steps / (self.num_epochs * len(self.batches))
        steps, work = self.work_curve
        return min(1.0, max(by_steps, float(np.interp(self.clock.share, work, steps))))

    @property
    def work(self) -> float:
        """The fraction of the run's work that is done."""
        return float(np.interp(self.progress, *self.work_curve))

    @property
    def image_size(self) -> Size:
        """The size, (height, width), that the network has been trained at last."""
        return trained_size({**self.metadata, "half_size": self.half_size})

    @property
    def limit(self) -> str:
        """The constant whose limit ends the run, with its value; "" if more epochs are to come. PATIENCE is over
        when so many epochs at full size have passed since the best of these."""
        scores = self.full_size_dice
        if self.epoch >= self.num_epochs:
            return f"NUM_EPOCHS {self.num_epochs}"
        if self.step == 0 and self.clock.share == 1:
            return f"TIME_LIMIT {self.clock.seconds / 60:g}"
        if self.step == 0 and scores and 0 < self.patience < len(scores) - scores.index(max(scores)):
            return f"PATIENCE {self.patience}"
        return ""

    def _set_learning_rate(self) -> None:
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = param_group["initial_lr"] * self.schedule(self.progress)

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and primitives."""
        kind, keys, *rest = np.random.get_state()
        return {
            "format": FORMAT,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "steps_per_epoch": len(self.batches),
            "losses": self.group.mean(self.losses[: self.step]),
            "best_dice": self.best_dice,
            "full_size_dice": self.full_size_dice,
            "half_size": self.half_size,
            "num_threads": torch.get_num_threads(),
            "elapsed": self.clock.elapsed,
            "generators": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all(),
                "python": random.getstate(),
                "numpy": [kind, keys.tolist(), *rest],
            },
            "run_id": self.group.run_id,
            **self.metadata,
        }

    def begin(self, state: dict[str, Any] | None) -> None:
        """Resume from a saved state, or begin anew with its weights if it holds no more than these; without one,
        move the results of the run before out of the way."""
        name = str(self.writer.latest)
        if state and "step" in state:
            try:
                self._restore(state, name)
            except BadInput:
                raise
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
                raise BadInput(name, f"not as train.py writes it: {reason}", "Use another checkpoint") from error
            print(f"{name}: going on after {counted(self.epoch, 'epoch')} and {counted(self.step, 'step')}")
            if self.limit:
                print(f"{self.limit} is reached: give a larger one to train on")
            return
        if state:
            load_checkpoint(state, self.model, name=name)
            print(f"{name}: weights alone, with which a new run begins")
        if self.group.is_main:
            results = ["*_checkpoint.pth.tar", "saved_images/[!.]*", "runs/*/events.*"]
            if archive := archive_results(self.writer.latest.parent, results):
                print(f"the results of the run before are now in {archive}")

    def _restore(self, state: dict[str, Any], name: str) -> None:
        # What has a default here, earlier versions did not write.
        load_checkpoint(state, self.model, self.optimizer, name=name)
        if state.get("images", self.metadata["images"]) != self.metadata["images"]:
            warn(name, "the images have changed since it was written", "The run goes on with the new ones")
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.half_size = state["epoch"], state.get("half_size", False)
        self.best_dice = state["best_dice"] if self.group.broadcast(self.writer.best.exists) else -1.0
        self.full_size_dice = list(state.get("full_size_dice", []))
        # The same fraction of the epoch is done, if it has another number of steps now.
        self.step = round(state["step"] * len(self.batches) / state.get("steps_per_epoch", len(self.batches)))
        losses = state["losses"]
        if losses.numel() != self.step:  # their mean stands for each; earlier versions kept their sum
            losses = state.get("loss_sum", losses.sum()) / max(1, state["step"])
        self.losses[: self.step] = losses
        self.batches.epoch, self.batches.first_batch = self.epoch, self.step
        self.clock.earlier = state.get("elapsed", 0.0)
        self.clock.look(self.group)
        if self.constants["NUM_THREADS"] == "auto":  # another number would round otherwise
            torch.set_num_threads(state.get("num_threads", torch.get_num_threads()))
        generators = state["generators"]
        torch.set_rng_state(generators["torch"])
        if len(generators["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(generators["cuda"])
        random.setstate(generators["python"])
        np.random.set_state(tuple(generators["numpy"]))
        for constant, then in state["constants"].items():
            now = self.constants.get(constant, then)
            if now != then and constant != "LOAD_MODEL":
                print(f"{constant} was {then!r} when this run began and is {now!r} now")

    def after_step(self, loss: Tensor) -> bool:
        """Count the step and set the next one's learning rate; every so many, and whenever something is asked for,
        look at the losses and save. Returns whether the run's time is over."""
        self.half_size = self.progress < self.half_share
        self.losses[self.step] = loss
        self.step += 1
        self.clock.look(self.group)
        self._set_learning_rate()
        look = self.step % LOOK_EVERY == 0 or self.step == len(self.batches) or self.progress == 1
        always = self.group.world_size == 1 or self.group.device.type == "cpu"  # GPUs would wait for each other
        number, save = self.asked() if look or always else (0, False)
        first = (self.step - 1) // LOOK_EVERY * LOOK_EVERY  # since the look before
        if look or number or save:
            self.check_losses(first)
        if look:
            loss = self.group.mean(self.losses[first : self.step]).mean().item()
            rate, scale = self.optimizer.param_groups[0]["lr"], self.scaler.get_scale()
            self.logger.add("train", self.total_steps, {"loss": loss, "learning_rate": rate, "scale": scale})
        if number or save:
            self.save()
        self.exit_if(number)
        return self.progress == 1

    def asked(self) -> tuple[int, bool]:
        """The signal that any process got, or 0, and whether to save: one answer for all processes."""
        due = time.monotonic() - self.last_save > 60 * self.constants["SAVE_MINUTES"]
        signals, saves = zip(*self.group.all_gather((self.signal, self.save_soon or due)), strict=True)
        return max(signals), any(saves)

    def check_losses(self, first: int) -> None:
        """Raise BadInput at the first loss from the step `first` on that is not finite, with its files."""
        bad, found = (~self.losses[first : self.step].isfinite()).nonzero().flatten().tolist(), None
        if bad:
            step = first + bad[0]
            files = ", ".join(self.dataset.images[index] for index in self.batches.shard(self.epoch, step))
            found = step, f"the loss is {self.losses[step].item()}, with {files}"
        if found := min(filter(None, self.group.all_gather(found)), default=None):
            remedy = "Look at these files, lower LEARNING_RATE or set PRECISION to float32"
            raise BadInput(f"epoch {self.epoch + 1}, step {found[0] + 1}", found[1], remedy)
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            remedy = "Lower LEARNING_RATE or set PRECISION to bfloat16 or float32"
            raise BadInput(f"epoch {self.epoch + 1}, step {self.step}", "every step overflows in float16", remedy)

    def mean_loss(self) -> float:
        """Mean training loss of the epoch's steps so far, those before an interruption included."""
        return self.group.mean(self.losses[: self.step]).mean().item()

    def stoppable(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of `loader`, for as long as no signal asks to stop."""
        if self.half_size:
            height, width = self.image_size
            print(f"the network has seen {width}x{height} so far: its logits are scaled up")
        for batch in loader:
            if self.signal:
                break
            yield batch
        number, _ = self.asked()  # here, because the processes' batches may differ in number
        if number:
            self.save()
        self.exit_if(number)

    def finish_epoch(self, dice: float) -> None:
        """Move on to the next epoch and save; the highest validation Dice so far makes the best checkpoint."""
        self.clock.end_validation()
        is_best = dice > self.best_dice  # never so for a NaN
        self.best_dice = dice if is_best else self.best_dice
        if not self.half_size:
            self.full_size_dice.append(dice)
        self.epoch, self.step = self.epoch + 1, 0
        self.save(is_best)
        (began, before), done = self.began, self.work
        if self.limit.startswith("PATIENCE"):
            print(f"no better validation Dice in {counted(self.patience, 'epoch')}: the run ends")
        elif not self.clock.seconds and before < done < 1:
            minutes = (time.monotonic() - began) / (done - before) * (1 - done) / 60
            print(f"about {minutes:.1f} minutes to go")
        self.exit_if(self.asked()[0])

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint of where the run is, in the background."""
        if not all_finite(self.model.state_dict()):
            raise BadInput(f"epoch {self.epoch + 1}", "weights are not finite", "Lower LEARNING_RATE")
        self.writer.save(self.state(), is_best)
        self.save_soon, self.last_save = False, time.monotonic()

    def exit_if(self, number: int) -> None:
        """End the process as the signal of that number asks, if it isn't 0, when the last save is on the disk."""
        if number:
            self.writer.wait()
            end_bars()
            place = f"epoch {self.epoch + 1} after step {self.step}"
            print(f"stopped in {place}; the same command with --LOAD_MODEL goes on from there")
            raise SystemExit(128 + number)

    def __enter__(self) -> "Run":
        self._set_learning_rate()
        self.began = time.monotonic(), self.work
        self._handlers = {}
        for name in (*ENDINGS, "SIGUSR1"):
            number = getattr(signal, name, None)  # Windows lacks some
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        end_bars()
        self.logger.close()
        if kind is None:
            self.writer.wait()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGUSR1", None):
            self.save_soon = True
        elif not self.signal:
            self.signal = number
        elif self.group.world_size == 1:  # else the same one came from a queue and once more from torchrun
            os._exit(128 + number)


def end_bars() -> None:
    """Have every progress bar end its line, which whatever breaks off an epoch would leave open."""
    for bar in list(tqdm._instances):
        bar.close()


def archive_results(folder: Path, patterns: Sequence[str]) -> Path | None:
    """Move what matches `patterns` in `folder` to the like place in `folder`/previous_runs/TIME, and return that
    folder; None where nothing matches."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not found:
        return None
    while (archive := folder / "previous_runs" / time.strftime("%Y-%m-%d_%H-%M-%S")).exists():
        time.sleep(0.1)  # two runs in one second
    for path in found:
        target = archive / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return archive
