"""The networks in checkpoints, ready to predict."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from model import UNET
from support.checkpoint import load_checkpoint, model_arguments, read_checkpoint, trained_size
from support.device import choose_memory_format, choose_precision
from support.errors import BadInput
from support.reading import AS_IS, Classes, Reading
from support.sliding_window import SlidingWindow


def load_network(
    path: str | Path, device: torch.device, height: int | str = "auto", width: int | str = "auto"
) -> tuple[nn.Module, Reading, torch.dtype]:
    """The network in a checkpoint, ready to predict; how it reads images; its precision.

    One that was trained with CROP is in a SlidingWindow, for images of their own size. Weights alone tell their
    network by their shapes. Raises BadInput for a checkpoint that can't be used."""
    checkpoint = read_checkpoint(path)
    if "constants" not in checkpoint and "auto" in (height, width):
        print(f"{path}: doesn't say at what size it was trained: IMAGE_WIDTH and IMAGE_HEIGHT are taken as 240x160")
    constants = {"IGNORE_INDEX": 255, "PRECISION": "auto", "RANGE": AS_IS.highest} | checkpoint.get("constants", {})
    trained = trained_size(checkpoint)
    size = trained[0] if height == "auto" else height, trained[1] if width == "auto" else width
    arguments = model_arguments(checkpoint, path)
    if min(size) < (smallest := 2 ** len(arguments["features"])):
        raise BadInput("IMAGE_HEIGHT and IMAGE_WIDTH", f"{size[0]} and {size[1]}", f"Give {smallest} or more each")
    precision = choose_precision(constants["PRECISION"], device)
    model = UNET(**arguments)
    load_checkpoint(checkpoint, model, name=str(path))
    model.to(device, memory_format=choose_memory_format(device, precision)).eval()
    if constants.get("CROP") and (height, width) == ("auto", "auto"):
        model, size = SlidingWindow(model, constants["CROP"]), None
    classes = Classes(arguments["out_channels"], constants["IGNORE_INDEX"])
    return model, Reading(size, classes, arguments["in_channels"], constants["RANGE"]), precision


class Ensemble(nn.Module):
    """The mean of several networks' logits."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        return sum(model(images).float() for model in self.models) / len(self.models)


def load_networks(
    paths: Sequence[str], device: torch.device, height: int | str = "auto", width: int | str = "auto"
) -> tuple[nn.Module, Reading, torch.dtype]:
    """What `load_network` gives, of the Ensemble of several checkpoints. Raises BadInput if they don't fit."""
    models, readings, precisions = zip(*(load_network(path, device, height, width) for path in paths), strict=True)
    for path, reading in zip(paths, readings, strict=True):
        if reading != readings[0]:
            finding = f"its size, classes, IN_CHANNELS or RANGE are not those of {paths[0]}"
            raise BadInput(path, finding, "Predict with each by itself")
    return models[0] if len(models) == 1 else Ensemble(models), readings[0], precisions[0]
