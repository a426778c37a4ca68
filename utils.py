"""What a training run needs besides its data, its model and its loop."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from dataset import CarvanaDataset, EpochBatches
from support.checkpoint import load_checkpoint as load_checkpoint  # here, too, where the tutorial has them
from support.checkpoint import save_checkpoint as save_checkpoint
from support.device import autocast
from support.distributed import ALONE, Group
from support.errors import BadInput, counted
from support.reading import IGNORED, ONE_CLASS, Classes, Size
from support.visualize import Picture, draw_grid, save_mask
from support.workers import init_worker, kill_workers_at_exit


def get_loaders(
    train_dir: str | Path,
    train_maskdir: str | Path,
    val_dir: str | Path,
    val_maskdir: str | Path,
    batch_size: int | str,
    train_transform: Callable[..., dict[str, Any]],
    val_transform: Callable[..., dict[str, Any]],
    num_workers: int = 4,
    pin_memory: bool = True,
    *,
    size: Size | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    min_steps: int = 1,
    accumulation_steps: int = 1,
    drop_last: bool = False,
    classes: Classes = ONE_CLASS,
    group: Group = ALONE,
) -> tuple[DataLoader, DataLoader]:
    """Loaders of (images, masks) batches, for training and for validation.

    `size` scales everything to (height, width), and `cache_dir` keeps the scaled arrays for later epochs and runs.
    A `batch_size` of "auto" is 16 for each process, or fewer, down to 2, so that an epoch has `min_steps` batches.
    Validation has no gradients to hold, so what fits in training fits there: as many images as are computed at
    once, in `accumulation_steps` parts. The training loader's order and augmentation depend on `seed` and the
    epoch alone, whatever `num_workers` is.

    Of several processes, each gets its share of every training batch, which needs `drop_last`, and of the
    validation images. Raises BadInput where a batch has no image for each.
    """
    train_set = CarvanaDataset(train_dir, train_maskdir, train_transform, size=size, seed=seed, classes=classes)
    val_set = CarvanaDataset(val_dir, val_maskdir, val_transform, size=size, seed=seed, classes=classes)
    if cache_dir:
        train_set.use_cache(cache_dir)
        val_set.use_cache(cache_dir)
    if len(train_set) < group.world_size:
        finding = f"{counted(len(train_set), 'image')} for {group.world_size} processes"
        raise BadInput(train_dir, finding, "Start fewer processes or add images")
    if batch_size == "auto":
        batch_size = max(2 * group.world_size, min(16 * group.world_size, len(train_set) // min_steps))
    if batch_size < group.world_size:
        finding = f"{counted(batch_size, 'image')} a step for {group.world_size} processes"
        raise BadInput("BATCH_SIZE", finding, "Give one for each")
    train_batch_size = min(batch_size, len(train_set))
    kill_workers_at_exit()
    if num_workers:  # here and not in the workers: OpenCV's lock can be taken when they are forked
        cv2.setNumThreads(1)  # each would use all cores
    common = {
        "num_workers": num_workers,
        "pin_memory": pin_memory and torch.cuda.is_available(),
        "persistent_workers": num_workers > 0,
        "worker_init_fn": init_worker,
        "generator": torch.Generator(),  # not the global one: reading must not change what the run draws
    }
    batches = EpochBatches(
        len(train_set),
        train_batch_size,
        seed=seed,
        drop_last=drop_last,
        rank=group.rank,
        world_size=group.world_size,
    )
    train_loader = DataLoader(train_set, batch_sampler=batches, **common)
    val_batch_size = max(1, train_batch_size // group.world_size // accumulation_steps)
    val_loader = DataLoader(val_set, batch_size=val_batch_size, sampler=group.shard(len(val_set)), **common)
    return train_loader, val_loader


def count_overlap(predicted: Tensor, truth: Tensor) -> Tensor:
    """Exact pixel counts of each image: boolean (N, ...) twice to int64 (N, 4): both, predicted, true, all."""
    predicted, truth = predicted.flatten(1), truth.flatten(1)
    pixels = torch.full((len(truth),), truth.shape[1], device=truth.device)
    return torch.stack(((predicted & truth).sum(1), predicted.sum(1), truth.sum(1), pixels), dim=1)


def count_classes(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """`count_overlap` of one class, int64 (N, 4), or of each of several, (N, num_classes, 4): these from uint8
    (N, H, W) twice, but for the pixels whose truth is IGNORED."""
    if num_classes == 1:
        return count_overlap(predicted, truth > 0)
    images = torch.arange(len(truth), device=truth.device).view(-1, 1, 1)
    cells = (images * num_classes + truth) * num_classes + predicted
    cells = torch.bincount(cells[truth != IGNORED], minlength=len(truth) * num_classes**2)
    confusion = cells.view(-1, num_classes, num_classes)  # image, true class, predicted class
    pixels = confusion.sum((1, 2))[:, None].expand(-1, num_classes)
    return torch.stack((confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2), pixels), dim=2)


def compare(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What logits (N, C, H, W) predict and what masks (N, H, W) say, both (N, H, W), and their `count_classes`. One
    class gives booleans, several uint8."""
    if logits.shape[1] == 1:
        predicted, truth = logits[:, 0] > 0, masks > 0.5  # a logit of 0 is a probability of 0.5
    else:
        predicted, truth = logits.argmax(1).byte(), masks.byte()
    return predicted, truth, count_classes(predicted, truth, logits.shape[1])


def dice_scores(counts: Tensor) -> Tensor:
    """Dice of each row of counts, float64 (N,) or (N, C). Nothing predicted where nothing is scores 1; of several
    classes it is a NaN, which means over images or classes leave out."""
    both, predicted, true, _ = counts.double().unbind(-1)
    return _share(2 * both, predicted + true)


def iou_scores(counts: Tensor) -> Tensor:
    """Intersection over union of each row of counts, as `dice_scores` has it."""
    both, predicted, true, _ = counts.double().unbind(-1)
    return _share(both, predicted + true - both)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=1), 1.0 if whole.dim() == 1 else math.nan)


def image_scores(counts: Tensor) -> Tensor:
    """Dice of each image, float64 (N,): of several classes the mean over those that are there or predicted."""
    scores = dice_scores(counts)
    return scores if scores.dim() == 1 else scores.nanmean(1).nan_to_num(1.0)  # all ignored: nothing is wrong


def class_scores(counts: Tensor) -> dict[str, Tensor]:
    """Scores of all images, each (C,), or of one class a scalar: `dice` and `iou`, means over the images that show
    or predict the class; `pixel_dice` and `pixel_iou`, over all pixels of all images together."""
    total = counts.sum(0, keepdim=True)
    return {
        "dice": dice_scores(counts).nanmean(0),
        "iou": iou_scores(counts).nanmean(0),
        "pixel_dice": dice_scores(total)[0],
        "pixel_iou": iou_scores(total)[0],
    }


def overall_scores(counts: Tensor) -> dict[str, float]:
    """Means over all classes, the background among them, of `class_scores` (with one class, Kaggle's metric is this
    `dice`), and `accuracy`, the share of all pixels that are right. Of several classes also the `dice/NUMBER` and
    `iou/NUMBER` of each that some image shows or predicts."""
    by_class = class_scores(counts)
    scores = {name: values.nanmean().item() for name, values in by_class.items()}
    both, predicted, true, pixels = counts.sum(0).unbind(-1)
    several = counts.dim() == 3
    right = both.sum() if several else pixels - predicted - true + 2 * both
    scores["accuracy"] = (right / pixels.max()).item()
    if several:
        for name in ("dice", "iou"):
            values = enumerate(by_class[name].tolist())
            scores |= {f"{name}/{number}": value for number, value in values if not math.isnan(value)}
    return scores


def describe(scores: dict[str, float], images: str) -> str:
    """One line about the `overall_scores` of these images, and one about each of several classes."""
    by_class = defaultdict(list)
    for name, value in scores.items():
        name, _, number = name.partition("/")
        by_class[number and f"class {number}"].append(f"{name} {value:.4f}")
    return "\n".join(f"{what or images}: {', '.join(values)}" for what, values in by_class.items())


class AtSize(nn.Module):
    """A network that sees images (N, C, H, W) scaled down to `size`, with its logits scaled back up to H and W."""

    def __init__(self, model: nn.Module, size: Size) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(F.interpolate(images, self.size, mode="area"))
        return F.interpolate(logits.float(), images.shape[2:], mode="bilinear", align_corners=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards, and after an exception, the model is as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def check_accuracy(
    loader: DataLoader,
    model: nn.Module,
    device: str | torch.device = "cuda",
    *,
    loss_fn: nn.Module | None = None,
    precision: torch.dtype = torch.float32,
    group: Group = ALONE,
) -> dict[str, float]:
    """Score the model on every image of `loader`, at the size it loads them, with a threshold of 0.5. Of several
    processes, each scores its share of them; all return the scores of the whole.

    Prints and returns the `overall_scores`, and `loss` where `loss_fn` is given.
    """
    device = torch.device(device)
    group.broadcast_buffers(model)
    # These stand for a share without images.
    counts, losses = [torch.empty(0, dtype=torch.int64, device=device)], [torch.empty(0, device=device)]
    masks = torch.empty(0, 0, 0)
    with evaluating(model):
        for images, masks in loader:
            images, targets = images.to(device), masks.to(device)
            with autocast(device, precision):
                logits = model(images)
            counts.append(compare(logits, targets)[2])
            if loss_fn is not None:
                targets = targets.unsqueeze(1) if targets.is_floating_point() else targets
                losses.append((loss_fn(logits.float(), targets) * len(images)).reshape(1))
    counts = group.gather(torch.cat(counts))
    scores = overall_scores(counts)
    if loss_fn is not None:
        scores["loss"] = sum(group.all_gather(torch.cat(losses).sum().item())) / len(counts)
    height, width = masks.shape[1:]
    print(describe(scores, f"{counted(len(counts), 'image')} at {width}x{height}"))
    return scores


def save_predictions_as_imgs(
    loader: DataLoader,
    model: nn.Module,
    folder: str | Path = "saved_images/",
    device: str | torch.device = "cuda",
    *,
    num_images: int = 8,
    precision: torch.dtype = torch.float32,
) -> list[Picture]:
    """Write what the model makes of `num_images` images of `loader`, always the same ones, spread over its dataset.

    `folder` gets `grid.png`, which shows image, truth, prediction and errors with names and Dice, the worst
    first, and for each image its predicted mask, `NAME_pred.png`, at the size that the loader gives. Returns the
    rows of the sheet.
    """
    device, dataset, folder = torch.device(device), loader.dataset, Path(folder)
    num_images = min(num_images, len(dataset))
    chosen = [i * len(dataset) // num_images for i in range(num_images)]
    names = getattr(dataset, "images", [f"{i:05d}" for i in range(len(dataset))])
    batches = DataLoader(Subset(dataset, chosen), batch_size=loader.batch_size or 8, generator=torch.Generator())
    rows = []
    with evaluating(model):
        for images, masks in batches:
            with autocast(device, precision):
                logits = model(images.to(device)).cpu()
            predicted, truth, counts = compare(logits, masks)
            dice = image_scores(counts).tolist()
            for image, mask, prediction, score in zip(images, truth, predicted, dice, strict=True):
                name = Path(names[chosen[len(rows)]]).stem
                rows.append(Picture(name, image.numpy(), mask.numpy(), prediction.numpy(), score))
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        save_mask(row.prediction, folder / f"{row.name}_pred.png")
    rows.sort(key=lambda row: row.dice)
    if rows:
        draw_grid(rows, folder / "grid.png")
    return rows
