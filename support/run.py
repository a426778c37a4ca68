"""A training run between its steps: what a checkpoint holds, and when one is written."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from support.budget import Clock, progress_of_work, work
from support.checkpoint import FORMAT, CheckpointWriter, all_finite, load_checkpoint, trained_size
from support.distributed import ALONE, Group
from support.errors import BadInput, counted, warn
from support.files import writable_folder
from support.logger import Logger
from support.reading import Size
from support.workers import ENDINGS

LOOK_EVERY = 10  # steps between looks at the loss, which make a GPU wait
SMALLEST_SCALE = 2.0**-10  # of a scaler: below it, float16 overflows in every step


def end_bars() -> None:
    """Have every progress bar end its line, which whatever breaks off an epoch would leave open."""
    for bar in list(tqdm._instances):
        bar.close()


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

        self.epoch = self.step = 0
        self.loss_sum = torch.zeros((), device=group.device)  # over the epoch's steps
        self.losses: list[Tensor] = []  # of the steps since the last look, left on the device
        self.best_dice = -1.0
        self.full_size_dice: list[float] = []  # of each epoch that PATIENCE counts
        self.signal, self.save_soon = 0, False  # what this process was asked for
        self.last_save = time.monotonic()
        self.last_record: tuple[int, float] | None = None  # a step of this epoch and when it was done
        for param_group in optimizer.param_groups:
            param_group["initial_lr"] = param_group["lr"]  # the peak, under the name that PyTorch's schedulers use
        self._set_learning_rate()

    @property
    def total_steps(self) -> int:
        """Steps done in all epochs."""
        return self.epoch * len(self.batches) + self.step

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, in [0, 1], whatever the number of steps in its epochs was: of its
        steps or, with a TIME_LIMIT, of the steps that the time will be enough for, if these are fewer."""
        by_steps = self.total_steps / (self.num_epochs * len(self.batches))
        return min(1.0, max(by_steps, progress_of_work(self.clock.share, self.half_share)))

    @property
    def half_size(self) -> bool:
        """Whether the network has seen nothing but half the height and width so far, in progressive resizing."""
        return 0 < self.progress <= self.half_share

    @property
    def image_size(self) -> Size:
        """The size, (height, width), that the network has been trained at last."""
        return trained_size({**self.metadata, "half_size": self.half_size})

    @property
    def is_stuck(self) -> bool:
        """Whether PATIENCE is over: so many epochs at full size have passed since the best of these."""
        scores = self.full_size_dice
        return bool(scores) and 0 < self.patience < len(scores) - scores.index(max(scores))

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done and validated, or the time or the patience is over."""
        return self.epoch >= self.num_epochs or ((self.clock.share == 1 or self.is_stuck) and self.step == 0)

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
            "loss_sum": self.group.mean(self.loss_sum),
            "losses": self.group.mean(torch.stack(self.losses)) if self.losses else torch.empty(0),
            "best_dice": self.best_dice,
            "full_size_dice": self.full_size_dice,
            "half_size": self.half_size,
            "num_threads": torch.get_num_threads(),
            "elapsed": self.clock.elapsed,
            "generators": {
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                "python": random.getstate(),
                "numpy": [kind, keys.tolist(), *rest],
            },
            "run_id": self.group.run_id,
            **self.metadata,
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
        }

    def begin(self, state: dict[str, Any] | None) -> None:
        """Resume from a saved state, or begin anew with its weights if it holds no more than these; without one,
        move the results of the run before out of the way."""
        name = str(self.writer.latest)
        if state and "step" in state:
            self._resume(state, name)
        elif state:
            load_checkpoint(state, self.model, name=name)
            print(f"{name}: weights alone, with which a new run begins")
        elif self.group.is_main:
            results = ["*_checkpoint.pth.tar", "saved_images/[!.]*", "runs/*/events.*"]
            if archive := archive_results(self.writer.latest.parent, results):
                print(f"the results of the run before are now in {archive}")

    def _resume(self, state: dict[str, Any], name: str) -> None:
        try:
            self._restore(state, name)
        except BadInput:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            finding = f"lacks {reason}" if isinstance(error, KeyError) else f"not as train.py writes it ({reason})"
            raise BadInput(name, finding, "Use another checkpoint") from error
        print(f"{name}: going on after {counted(self.epoch, 'epoch')} and {counted(self.step, 'step')}")
        if self.is_finished:
            limit = f"NUM_EPOCHS {self.num_epochs}"
            if self.clock.share == 1:
                limit = f"TIME_LIMIT {self.clock.seconds / 60:g}"
            elif self.is_stuck:
                limit = f"PATIENCE {self.patience}"
            print(f"{limit} is reached: give a larger one to train on")

    def _restore(self, state: dict[str, Any], name: str) -> None:
        if "loss_sum" not in state:  # as earlier versions wrote it: the losses of the whole epoch
            state = state | {"loss_sum": state["losses"].sum(), "losses": torch.empty(0)}
        state = {  # nor did they write these
            "images": self.metadata["images"],
            "full_size_dice": [],
            "steps_per_epoch": len(self.batches),
            "elapsed": 0.0,
            "num_threads": torch.get_num_threads(),
        } | state
        # The optimizer's state comes with the settings that it had: those in force now are the options'.
        param_groups = self.optimizer.param_groups
        in_force = [{key: group[key] for key in group.keys() - {"params"}} for group in param_groups]
        load_checkpoint(state, self.model, self.optimizer, name=name)
        for group, settings in zip(self.optimizer.param_groups, in_force, strict=True):
            group.update(settings)
        if state["images"] != self.metadata["images"]:
            counts = "{train} for training and {val} for validation"
            then, now = (counts.format(**images) for images in (state["images"], self.metadata["images"]))
            finding = f"the images have changed since it was written: then {then}, now {now}"
            warn(name, finding, "The run goes on with the new ones")
        if state.get("scaler") and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best_dice = state["epoch"], state["best_dice"]
        self.full_size_dice = list(state["full_size_dice"])
        # The same fraction of the epoch is done, if it has another number of steps now.
        fraction = len(self.batches) / state["steps_per_epoch"]
        self.step = round(fraction * state["step"])
        losses = state["losses"].to(self.group.device)
        self.losses = list(losses) if fraction == 1 else []
        self.loss_sum = fraction * state["loss_sum"].to(self.group.device)
        self.batches.epoch, self.batches.first_batch = self.epoch, self.step
        self.clock.earlier = state["elapsed"]
        self.clock.look(self.group)
        self._set_learning_rate()
        if self.constants["NUM_THREADS"] == "auto":  # another number would round otherwise
            torch.set_num_threads(state["num_threads"])
        generators = state["generators"]
        torch.set_rng_state(generators["torch"])
        if torch.cuda.is_available() and len(generators["cuda"]) == torch.cuda.device_count():
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
        self.step += 1
        self.clock.look(self.group)
        self._set_learning_rate()
        self.losses.append(loss)
        self.loss_sum += loss
        self.last_record = self.last_record or (self.step, time.perf_counter())
        look = self.step % LOOK_EVERY == 0 or self.step == len(self.batches) or self.progress == 1
        always = self.group.world_size == 1 or self.group.device.type == "cpu"  # GPUs would wait for each other
        number, save = self.asked() if look or always else (0, False)
        if look or number or save:
            self.check_losses()
            self.writer.poll()
        if look:
            self.record()
            self.losses = []
            minutes = self.clock.minutes_left(work(self.progress, self.half_share))
            if minutes is not None and self.group.is_main:
                tqdm.write(f"about {minutes:.1f} minutes of training to go")
        if number or save:
            self.save()
        if number:
            self.exit(number)
        return self.progress == 1

    def asked(self) -> tuple[int, bool]:
        """The signal that any process got, or 0, and whether to save: one answer for all processes."""
        due = time.monotonic() - self.last_save > 60 * self.constants["SAVE_MINUTES"]
        signals, saves = zip(*self.group.all_gather((self.signal, self.save_soon or due)), strict=True)
        return max(signals), any(saves)

    def record(self) -> None:
        """Log what the steps since the last time were like."""
        now = time.perf_counter()
        values = {
            "loss": self.group.mean(torch.stack(self.losses)).mean().item(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "scale": self.scaler.get_scale(),
        }
        if steps := self.step - self.last_record[0]:
            values["images_per_s"] = steps * self.batches.batch_size / (now - self.last_record[1])
        self.last_record = self.step, now
        self.logger.add("train", self.total_steps, values)

    def mean_loss(self) -> float:
        """Mean training loss of the epoch's steps so far, those before an interruption included."""
        return self.group.mean(self.loss_sum).item() / max(1, self.step)

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
            self.exit(number)

    def finish_epoch(self, dice: float) -> None:
        """Move on to the next epoch and save; the highest validation Dice so far makes the best checkpoint."""
        self.clock.end_validation()
        is_best = dice > self.best_dice  # never so for a NaN
        self.best_dice = dice if is_best else self.best_dice
        if not self.half_size:
            self.full_size_dice.append(dice)
        if self.is_stuck:
            print(f"no better validation Dice in {counted(self.patience, 'epoch')}: the run ends")
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []
        self.loss_sum = torch.zeros_like(self.loss_sum)
        self.last_record = None
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

    def exit(self, number: int) -> NoReturn:
        """End the process as the signal of that number asks, when what was saved last is on the disk."""
        self.writer.wait()
        end_bars()
        place = f"epoch {self.epoch + 1} after step {self.step}"
        print(f"stopped in {place}; the same command with --LOAD_MODEL goes on from there")
        raise SystemExit(128 + number)

    def check_losses(self) -> None:
        """Raise BadInput at the first loss since the last look that is not finite, with the files of its step."""
        bad, found = (~torch.stack(self.losses).isfinite()).nonzero().flatten().tolist(), None
        if bad:
            step = self.step - len(self.losses) + bad[0]
            files = ", ".join(self.dataset.images[index] for index in self.batches.shard(self.epoch, step))
            found = step, f"the loss is {self.losses[bad[0]].item()}, with {files}"
        if found := min(filter(None, self.group.all_gather(found)), default=None):
            remedy = "Look at these files, lower LEARNING_RATE or set PRECISION to float32"
            raise BadInput(f"epoch {self.epoch + 1}, step {found[0] + 1}", found[1], remedy)
        if self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE:
            remedy = "Lower LEARNING_RATE or set PRECISION to bfloat16 or float32"
            raise BadInput(f"epoch {self.epoch + 1}, step {self.step}", "every step overflows in float16", remedy)

    def __enter__(self) -> "Run":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
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


def archive_results(folder: Path, patterns: Sequence[str]) -> Path | None:
    """Move what matches `patterns` in `folder` to the like place in `folder`/previous_runs/TIME, and return that
    folder; None where nothing matches."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not found:
        return None
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    names = (f"{stamp}_{number}" if number > 1 else stamp for number in count(1))
    archive = next(path for name in names if not (path := folder / "previous_runs" / name).exists())
    for path in found:
        target = archive / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return archive
