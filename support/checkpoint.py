"""Checkpoint files: whole or not there, checked before they are used, and read without running what they hold."""

import io
import os
import re
import shutil
import sys
import warnings
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn
from torch.optim import Optimizer

from model import unet_arguments
from support.errors import BadInput, counted, warn
from support.files import whole_file, writable_folder
from support.reading import Size

FORMAT = 1  # of what a checkpoint holds: raise it where older code would misread a new one


def save_checkpoint(state: dict[str, Any], filename: str | Path = "my_checkpoint.pth.tar") -> None:
    """Write `state` (tensors and primitives) so that `filename` is always the whole old file or the whole new one.

    Raises BadInput, with the old file as it was, where the new one can't be written.
    """
    _write(_to_bytes(state), Path(filename))


def _to_bytes(state: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def _write(data: memoryview, path: Path) -> None:
    try:
        with whole_file(path, sync=True) as part:
            part.write_bytes(data)
    except OSError as error:
        finding = f"can't be written ({error.strerror or error})"
        raise BadInput(path, finding, "Make room; what was saved before is whole") from error


def _place_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, in one step; if the disk has no hard links, a copy of it."""
    with whole_file(target) as part:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


class CheckpointWriter:
    """Saves a run's checkpoints beside the training: only the copy into memory takes the run's own time.

    `latest` is replaced by each `save`; the one before stays as `previous`, and the best so far as `best`. While it
    lives, no other run can write into `folder`: that raises BadInput there, as does a folder that can't be written.
    Of several processes only the one that `writes` does any of this.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self._lock = lock_folder(folder) if writes else None
        self.latest = folder / "my_checkpoint.pth.tar"
        self.previous = folder / "previous_checkpoint.pth.tar"
        self.best = folder / "best_checkpoint.pth.tar"
        self._thread, self._saved = ThreadPoolExecutor(1), Future()
        self._saved.set_result(None)

    def save(self, state: dict[str, Any], is_best: bool = False) -> None:
        """Copy `state` and write it in the background. Raises what went wrong with the save before."""
        self.wait()
        if self._lock is not None:
            self._saved = self._thread.submit(self._write, _to_bytes(state), is_best)

    def _write(self, data: memoryview, is_best: bool) -> None:
        if self.latest.exists():
            _place_copy(self.latest, self.previous)
        if is_best:  # first, since the latest knows the Dice that the best one has
            _write(data, self.best)
            _place_copy(self.best, self.latest)
        else:
            _write(data, self.latest)

    def wait(self) -> None:
        """Return when the last save is on the disk. Raises BadInput where it could not be written."""
        self._saved.result()

    def check_room(self, model: nn.Module) -> None:
        """Raise BadInput where the disk can't hold the latest, the previous, the best and one being written."""
        needed = 4 * 2 * sum(value.nbytes for value in model.state_dict().values())  # weights and Muon's momentum
        ours = sum(path.stat().st_size for path in (self.latest, self.previous, self.best) if path.exists())
        free = shutil.disk_usage(self.latest.parent).free + ours
        if free < needed:
            finding = f"{free / 1e9:.2f} GB free, where a run's checkpoints take {needed / 1e9:.2f}"
            raise BadInput(self.latest.parent, finding, "Make room or give another --OUT_DIR")

    def saved_state(self, load_model: bool, run_id: str) -> dict[str, Any] | None:
        """The checkpoint to resume from: the latest, with `load_model`; otherwise what was saved before torchrun
        restarted the processes of the same command, which have one `run_id`; or none. Where the latest is broken,
        it is the one before, and a line says so."""
        if not (load_model or (run_id and self.latest.exists())):
            return None
        try:
            state = read_checkpoint(self.latest)
        except BadInput as error:
            if not load_model:  # another run's, or what torchrun is to begin anew after
                return None
            if isinstance(error, NewerFormat) or not self.previous.exists():
                raise
            state = read_checkpoint(self.previous)
            _place_copy(self.previous, self.latest)  # else the next save would make the broken one the previous
            print(f"{error} Going on from {self.previous} instead.", file=sys.stderr)
        return state if load_model or state.get("run_id") == run_id else None


class NewerFormat(BadInput):
    """A checkpoint that a newer version of this repository wrote: whole, but not for this one."""


def read_checkpoint(filename: str | Path) -> dict[str, Any]:
    """The state in a checkpoint file, on the CPU. Nothing in the file is run.

    Raises BadInput where it is missing, broken in any byte that matters, or no checkpoint.
    """
    path = Path(filename)
    if not path.exists():
        found = [*path.parent.glob("*.pth.tar"), *path.parent.glob("previous_runs/*/*.pth.tar")]
        there = ", ".join(sorted(str(file.relative_to(path.parent)) for file in found)) or "none"
        raise BadInput(path, "no such checkpoint", f"Checkpoints in this folder: {there}")
    try:
        # torch.load does not look whether tensors' bytes are those that were saved; the archive's checksums tell.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken:
                raise ValueError(f"the checksum of {broken} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a foreign pickle gets one line, ours
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken files raise almost anything, from EOFError to UnicodeDecodeError
        reason = (str(error).splitlines() or [""])[0]
        if not 0 < len(reason) < 80:  # torch.load explains itself at length
            reason = "broken, or written by something else"
        raise BadInput(path, f"not a checkpoint that can be read ({reason})", "Use another checkpoint") from error
    if isinstance(state, dict) and "state_dict" not in state:
        state = {"state_dict": state}  # weights alone
    weights = state["state_dict"] if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise BadInput(path, "holds no 'state_dict' of weights by name", "Use a checkpoint that train.py wrote")
    if "step" in state and state.get("format", 1) > FORMAT:
        finding = f"written by a newer version (format {state['format']}, where this one knows {FORMAT})"
        raise NewerFormat(path, finding, "Update this repository, or use another checkpoint")
    return state


def trained_size(state: dict[str, Any]) -> Size:
    """The (height, width) at which the network in a checkpoint has been trained last."""
    constants = {"IMAGE_HEIGHT": 160, "IMAGE_WIDTH": 240} | state.get("constants", {})
    height, width = constants["IMAGE_HEIGHT"], constants["IMAGE_WIDTH"]
    half_size = state.get("half_size")  # stopped in the first part of its progressive resizing
    return (height // 2, width // 2) if half_size else (height, width)


def model_arguments(checkpoint: dict[str, Any], name: str | Path) -> dict[str, Any]:
    """The arguments of the UNET in a checkpoint; those of weights alone are told by their shapes. Raises BadInput
    about `name` for another network's."""
    try:
        return checkpoint.get("model") or unet_arguments(plain_weights(checkpoint))
    except KeyError as error:
        raise BadInput(name, f"not a U-Net of model.py: no weight {error}", "Use one of train.py") from error


def load_checkpoint(
    checkpoint: dict[str, Any], model: nn.Module, optimizer: Optimizer | None = None, *, name: str = "checkpoint"
) -> None:
    """Put a checkpoint's weights into `model` and its optimizer's state into `optimizer`, whose settings stay.

    Raises BadInput about `name`, with neither changed, where weights are not finite or anything doesn't fit.
    """
    weights, own = plain_weights(checkpoint), model.state_dict()
    differences = []
    for key in own | weights:
        found, expected = (tuple(part[key].shape) if key in part else "nothing" for part in (weights, own))
        if found != expected:
            differences.append(f"{key} is {found} instead of {expected}")
    if differences:
        number = counted(len(differences), "difference")
        finding = f"made for another model: {'; '.join(differences[:3])} ({number} in all)"
        remedy = "Give the FEATURES, ENCODER and NUM_CLASSES that it was made with"
        if made := checkpoint.get("model"):
            features, encoder = " ".join(map(str, made["features"])), made.get("encoder") or '""'
            remedy += f": {features}, {encoder} and {made['out_channels']} (IN_CHANNELS {made['in_channels']})"
        raise BadInput(name, finding, remedy)
    if not all_finite(weights):
        raise BadInput(name, "its weights are not finite", "Use an earlier one")
    if optimizer is not None:
        saved, settings = checkpoint.get("optimizer", {}), optimizer.state_dict()["param_groups"]
        groups = (saved.get("param_groups", []), settings)
        kinds = [[(set(group), len(group["params"])) for group in side] for side in groups]
        if kinds[0] != kinds[1]:
            raise BadInput(name, "made by another optimizer", "Use the one it was made with")
        optimizer.load_state_dict({**saved, "param_groups": settings})
    model.load_state_dict(weights)


def start_from(checkpoint: dict[str, Any], model: nn.Module, *, name: str) -> None:
    """Put a checkpoint's weights into `model`, whose head keeps its own if it has another number of classes. Prints
    how many. Raises BadInput as `load_checkpoint` does."""
    weights, own = plain_weights(checkpoint), model.state_dict()
    head = [key for key in own if key.startswith("final_conv.")]
    new = [key for key in head if key not in weights or weights[key].shape != own[key].shape]
    weights |= {key: own[key] for key in new}
    load_checkpoint({**checkpoint, "state_dict": weights}, model, name=name)
    print(f"{name}: {len(own) - len(new)} of {len(own)} tensors taken{'; final_conv starts anew' if new else ''}")


def plain_weights(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A checkpoint's weights by the names that the model itself gives them, without what DataParallel and
    torch.compile put before these."""
    weights = checkpoint["state_dict"]
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in weights.items()}


def all_finite(weights: dict[str, torch.Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    return all(bool(value.isfinite().all()) for value in weights.values())


def lock_folder(folder: Path) -> TextIO:
    """Keep other runs out of `folder` for as long as the returned file is open and this process lives.

    Raises BadInput, naming the other process, if there is another run, and if nothing can be written. On a file
    system that has no locks, a warning says so.
    """
    file = open(writable_folder(folder) / ".lock", "a+", encoding="ascii")  # noqa: SIM115  stays open
    try:
        if os.name == "posix":
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process; workers don't inherit it
        else:
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        finding = f"another run is at work here (process {file.read().strip()})"
        raise BadInput(folder, finding, "Give another --OUT_DIR") from error
    except OSError as error:
        warn(folder, f"its file system has no locks ({error.strerror})", "Start no second run in this folder")
    file.truncate(0)
    print(os.getpid(), file=file, flush=True)
    return file
