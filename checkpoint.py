"""Checkpoint files: whole or not there, and read without running anything that they hold."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from errors import BadInput


def save_checkpoint(state: dict[str, Any], filename: str | Path = "my_checkpoint.pth.tar") -> None:
    """Write `state` (tensors and primitives) so that `filename` is always either the old file or the new one."""
    part = f"{filename}.part"
    with open(part, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
    os.replace(part, filename)


def read_checkpoint(filename: str | Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU. Raises BadInput where there is none to be read."""
    path = Path(filename)
    if not path.exists():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.pth.tar"))) or "none"
        raise BadInput(path, "no such checkpoint", f"Checkpoints in this folder: {there}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(path, f"not a checkpoint that can be read ({reason[:120]})", "Use another") from error
    if not isinstance(state, dict) or "state_dict" not in state:
        raise BadInput(path, "holds no 'state_dict'", "Use a checkpoint that train.py wrote")
    return state


def load_checkpoint(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Put the weights of a checkpoint into `model`. Raises BadInput where they don't fit it."""
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        differences = str(error).splitlines()[1:] or [str(error)]
        raise BadInput(
            "checkpoint", f"made for another model ({differences[0].strip()[:160]})", "Set FEATURES as it was then"
        ) from error
