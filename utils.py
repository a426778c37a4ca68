"""What a training run needs besides its data, its model and its loop."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from dataset import CarvanaDataset, EpochBatches
from losses import as_targets
from support.checkpoint import load_checkpoint as load_checkpoint  # here, too, where the tutorial has them
from support.checkpoint import save_checkpoint as save_checkpoint
from support.device import autocast
from support.distributed import ALONE, Group
from support.errors import BadInput, counted
from support.reading import AS_IS, IGNORED, Reading
from support.visualize import Prediction, draw_grid, save_mask
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
    reading: Reading = AS_IS,
    crop: int = 0,
    crops: int = 1,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    min_steps: int = 1,
    min_batch_size: int = 2,
    accumulation_steps: int = 1,
    drop_last: bool = False,
    group: Group = ALONE,
) -> tuple[DataLoader, DataLoader]:
    """Loaders of (images, masks) batches, for training and for validation.

    `cache_dir` keeps the arrays that `reading` makes of the files for later epochs and runs. With `crop`, training
    sees `crops` squares of so many pixels of each image, and validation whole images, one at a time. A `batch_size`
    of "auto" is 16 for each process, or fewer, down to `min_batch_size`, so that an epoch has `min_steps` batches.
    Validation has no gradients to hold, so what fits in training fits there: as many images as are computed at
    once, in `accumulation_steps` parts. The training loader's order and augmentation depend on `seed` and the epoch
    alone, whatever `num_workers` is.

    Of several processes, each gets its part of every training batch, which needs `drop_last`, and of the
    validation images. Raises BadInput if a batch has no image for each.
    """
    train_set = CarvanaDataset(
        train_dir, train_maskdir, train_transform, reading, crop=crop, crops=crops, seed=seed
    )
    val_set = CarvanaDataset(val_dir, val_maskdir, val_transform, reading)
    if cache_dir:
        train_set.use_cache(cache_dir)
        val_set.use_cache(cache_dir)
    if len(train_set) < group.world_size:
        finding = f"{counted(len(train_set), 'image')} for {group.world_size} processes"
        raise BadInput(train_dir, finding, "Start fewer processes or add images")
    if batch_size == "auto":
        batch_size = min(16 * group.world_size, len(train_set) // min_steps)
        batch_size = max(min_batch_size * group.world_size, batch_size)
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
    val_batch_size = 1 if crop else max(1, train_batch_size // group.world_size // accumulation_steps)
    val_loader = DataLoader(val_set, batch_size=val_batch_size, sampler=group.shard(len(val_set)), **common)
    return train_loader, val_loader


def count_overlap(predicted: Tensor, target: Tensor) -> Tensor:
    """Exact pixel counts of each image: boolean (N, ...) twice to int64 (N, 4): true positives, predicted, target,
    all."""
    predicted, target = predicted.flatten(1), target.flatten(1)
    pixels = torch.full((len(target),), target.shape[1], device=target.device)
    return torch.stack(((predicted & target).sum(1), predicted.sum(1), target.sum(1), pixels), dim=1)


def count_confusion(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Pixels of each image by their true and their predicted class, int64 (N, num_classes, num_classes), from class
    numbers (N, H, W) twice, but for those whose target is IGNORED."""
    images = torch.arange(len(target), device=target.device).view(-1, 1, 1)
    cells = (images * num_classes + target) * num_classes + predicted
    cells = torch.bincount(cells[target != IGNORED], minlength=len(target) * num_classes**2)
    return cells.view(-1, num_classes, num_classes)


def count_classes(predicted: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """`count_overlap` of one class, int64 (N, 4), or of each of several, (N, num_classes, 4): these from class
    numbers (N, H, W) twice, but for the pixels whose target is IGNORED."""
    if num_classes == 1:
        return count_overlap(predicted, target > 0)
    return class_overlaps(count_confusion(predicted, target, num_classes))


def class_overlaps(confusion: Tensor) -> Tensor:
    """`count_overlap` of each class, int64 (N, C, 4), from `count_confusion`'s (N, C, C)."""
    pixels = confusion.sum((1, 2))[:, None].expand(-1, confusion.shape[1])
    return torch.stack((confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2), pixels), dim=2)


def compare(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """What logits (N, C, H, W) predict and what masks (N, H, W) hold, both (N, H, W).
    One class gives booleans, several uint8."""
    if logits.shape[1] == 1:
        predicted, target = logits[:, 0] > 0, masks > 0.5  # a logit of 0 is a probability of 0.5
    else:
        predicted, target = logits.argmax(1).byte(), masks.byte()
    return predicted, target


def score_counts(counts: Tensor) -> dict[str, Tensor]:
    """dice, iou, precision and recall of each row of counts, float64 (N,) or (N, C), from (N, 4) or (N, C, 4).

    Where nothing is predicted and nothing there, they are 1; of several classes NaN, which means over images or
    classes leave out. Nothing predicted where something is has a precision of 0, as scikit-learn has it.
    """
    tp, predicted, target, _ = counts.double().unbind(-1)
    fractions = {
        "dice": (2 * tp, predicted + target),
        "iou": (tp, predicted + target - tp),
        "precision": (tp, torch.where(predicted > 0, predicted, target)),
        "recall": (tp, torch.where(target > 0, target, predicted)),
    }
    nothing = 1.0 if counts.dim() == 2 else math.nan
    return {name: torch.where(of > 0, part / of.clamp(min=1), nothing) for name, (part, of) in fractions.items()}


def image_scores(counts: Tensor) -> dict[str, Tensor]:
    """`score_counts` of each image, float64 (N,), and the fraction of its target that is `foreground`. Of several
    classes, the means over those that it shows or has predicted, and dice/NUMBER of each."""
    scores, target = score_counts(counts), counts[..., 2]
    if counts.dim() == 3:
        each = {f"dice/{number}": dice for number, dice in enumerate(scores["dice"].T)}
        scores = {name: values.nanmean(1).nan_to_num(1.0) for name, values in scores.items()}  # all ignored: right
        return scores | {"foreground": target[:, 1:].sum(1) / counts[:, 0, 3].clamp(min=1)} | each
    return scores | {"foreground": target / counts[:, 3].clamp(min=1)}


class Scores(dict[str, float]):
    """Scores of a set of images by name, and the `counts` that they are from. Of several classes, `confusion` holds
    all images' `count_confusion` in one, (C, C)."""

    counts: Tensor
    confusion: Tensor | None = None

    @property
    def images(self) -> list[float]:
        """Dice of each image, in order."""
        return image_scores(self.counts)["dice"].tolist()


def overall_scores(counts: Tensor) -> Scores:
    """Scores of all images, from their counts (N, 4) or (N, C, 4).

    `dice` and `iou` are means over images (with one class, `dice` is Kaggle's metric); `micro_dice`, `micro_iou`,
    `precision` and `recall` are those of all pixels pooled, and `accuracy` is the fraction that is right. Of
    several classes, these are means over the classes, the background among them, and NAME/NUMBER is that of each
    class that is shown or predicted.
    """
    pooled = counts.sum(0, keepdim=True)
    images, pixels = score_counts(counts), score_counts(pooled)
    by_class = {name: images[name].nanmean(0) for name in ("dice", "iou")}
    by_class |= {f"micro_{name}": pixels[name][0] for name in ("dice", "iou")}
    by_class |= {name: pixels[name][0] for name in ("precision", "recall")}
    scores = Scores({name: values.nanmean().item() for name, values in by_class.items()})
    scores.counts = counts
    tp, predicted, target, total = pooled[0].unbind(-1)
    multiclass = counts.dim() == 3
    right = tp.sum() if multiclass else total - predicted - target + 2 * tp
    scores["accuracy"] = (right / total.max()).item()
    if multiclass:
        for name, values in by_class.items():
            numbered = enumerate(values.tolist())
            scores |= {f"{name}/{number}": value for number, value in numbered if not math.isnan(value)}
    return scores


def describe(scores: dict[str, float], images: str) -> str:
    """One line about the `overall_scores` of these images, and one about each of several classes."""
    lines = defaultdict(list)
    for name, value in scores.items():
        name, _, number = name.partition("/")
        lines[number and f"class {number}"].append(f"{name} {value:.4f}")
    return "\n".join(f"{what or images}: {', '.join(values)}" for what, values in lines.items())


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
) -> Scores:
    """Score the model on every image of `loader`, at the size it loads them, with a threshold of 0.5. Of several
    processes, each scores its shard of them; all return the scores of the whole.

    Prints and returns the `overall_scores`, and `loss` if `loss_fn` is given.
    """
    device = torch.device(device)
    group.broadcast_buffers(model)
    # These stand for a shard without images.
    counts, losses = [torch.empty(0, dtype=torch.int64, device=device)], [torch.empty(0, device=device)]
    sizes, confusion = set(), torch.zeros((), dtype=torch.int64, device=device)
    with evaluating(model):
        for images, masks in loader:
            images, targets = images.to(device), masks.to(device)
            sizes.add(tuple(masks.shape[1:]))
            with autocast(device, precision):
                logits = model(images)
            predicted, target = compare(logits, targets)
            if logits.shape[1] == 1:
                counts.append(count_overlap(predicted, target))
            else:
                each = count_confusion(predicted, target, logits.shape[1])
                confusion = confusion + each.sum(0)
                counts.append(class_overlaps(each))
            if loss_fn is not None:
                losses.append((loss_fn(logits.float(), as_targets(targets)) * len(images)).reshape(1))
    counts = group.gather(torch.cat(counts))
    scores = overall_scores(counts)
    scores.confusion = sum(group.all_gather(confusion.cpu()))
    if loss_fn is not None:
        scores["loss"] = sum(group.all_gather(torch.cat(losses).sum().item())) / len(counts)
    size = "{1}x{0}".format(*sizes.pop()) if len(sizes) == 1 else "their own sizes"
    print(describe(scores, f"{counted(len(counts), 'image')} at {size}"))
    return scores


def choose_images(dice: Sequence[float], number: int) -> list[int]:
    """Which of a set's images to draw: half of them spread evenly, always the same, and half with the lowest
    Dice."""
    number = min(number, len(dice))
    fixed = number - number // 2
    chosen = [index * len(dice) // fixed for index in range(fixed)]
    others = sorted(set(range(len(dice))) - set(chosen), key=lambda index: (dice[index], index))
    return chosen + others[: number // 2]


def save_predictions_as_imgs(
    loader: DataLoader,
    model: nn.Module,
    folder: str | Path = "saved_images/",
    device: str | torch.device = "cuda",
    *,
    indices: Sequence[int] | None = None,
    precision: torch.dtype = torch.float32,
) -> tuple[list[Prediction], Image.Image | None]:
    """Draw what the model makes of the images of `loader` with these indices, or of 8 spread over its dataset.

    `folder` gets `grid.png`, which shows image, target, prediction and errors with names and Dice, the worst
    first, and for each image its predicted mask, `NAME_pred.png`, at the size that the loader gives. Returns the
    rows of the grid, and the grid.
    """
    device, dataset, folder = torch.device(device), loader.dataset, Path(folder)
    if indices is None:
        number = min(8, len(dataset))
        indices = [index * len(dataset) // number for index in range(number)]
    files = getattr(dataset, "images", [f"{index:05d}" for index in range(len(dataset))])
    stems = Counter(Path(file).stem for file in files)
    batches = DataLoader(Subset(dataset, indices), batch_size=loader.batch_size or 8, generator=torch.Generator())
    rows = []
    with evaluating(model):
        for images, masks in batches:
            with autocast(device, precision):
                logits = model(images.to(device)).cpu()
            predicted, targets = compare(logits, masks)
            counts = count_classes(predicted, targets, logits.shape[1])
            for image, *drawn, dice in zip(images, targets, predicted, image_scores(counts)["dice"], strict=True):
                stem = Path(file := files[indices[len(rows)]]).stem
                name = stem if stems[stem] == 1 else Path(file).name
                rows.append(Prediction(name, image.numpy(), *(mask.numpy() for mask in drawn), dice.item()))
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        save_mask(row.prediction, folder / f"{row.name}_pred.png")
    rows.sort(key=lambda row: row.dice)
    return rows, draw_grid(rows, folder / "grid.png") if rows else None
