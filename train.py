"""Train a U-Net to cut cars (or anything else) out of images.

    python train.py                                          # a rendered sample set where data/ is empty
    python train.py --BATCH_SIZE 8 --NUM_EPOCHS 10           # any constant below, for one run
    python train.py --LOAD_MODEL                             # go on with a run that was stopped
    python train.py --FEATURES 16 32 64 128 --NUM_EPOCHS 1   # a small network, for a quick look on a CPU
    torchrun --nproc_per_node=8 train.py --BATCH_SIZE 128    # on eight GPUs

Checkpoints, saved_images/index.html and `tensorboard --logdir runs` tell how it went.
"""

from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import make_transforms
from losses import BCEDiceLoss, CEDiceLoss
from model import UNET
from prepare_data import sample_if_empty
from support.checkpoint import CheckpointWriter
from support.checks import check_run
from support.device import autocast, choose_memory_format, choose_num_workers, choose_precision, make_deterministic
from support.distributed import Group, end_together, init_distributed
from support.errors import counted, explain_limits, run_script
from support.files import writable_folder
from support.logger import Logger
from support.muon import Muon
from support.options import ConstantParser
from support.page import update_page
from support.reading import Classes
from support.run import Run
from utils import (
    archive_results,
    check_accuracy,
    get_loaders,
    save_predictions_as_imgs,
    warmup_cosine,
)

TRAIN_IMG_DIR = "data/train_images/"  # images to learn from
TRAIN_MASK_DIR = "data/train_masks/"  # their masks: NAME_mask.gif, NAME.png or the like for NAME.jpg
VAL_IMG_DIR = "data/val_images/"  # images to score on after each epoch
VAL_MASK_DIR = "data/val_masks/"  # their masks
IMAGE_HEIGHT = 160  # pixels that the network sees; Carvana's own are 1280
IMAGE_WIDTH = 240  # pixels; Carvana's own are 1918

FEATURES = [64, 128, 256, 512]  # channels of each level of the U-Net; a quarter of each is a sixteenth of the work
NUM_CLASSES = 1  # 1 tells foreground from background; with more, masks hold the numbers of classes from 0 up
IGNORE_INDEX = 255  # the number of pixels that are neither learnt nor scored, where NUM_CLASSES is more than 1

LEARNING_RATE = 0.1  # the peak of a schedule that rises and falls once; see make_optimizer
BATCH_SIZE = 16  # images per step, at most; several GPUs share them
MIN_STEPS = 48  # steps per epoch, at least: a small set gets smaller batches, down to 2, so as to learn enough
NUM_EPOCHS = 3  # passes over the training images
HALF_SIZE_SHARE = 0.5  # of all steps, the first, see half the height and width, which is a quarter of the work
ACCUMULATE = 1  # parts that a batch is computed in, one after the other: 4 takes about a quarter of the memory

CACHE_DIR = "data/cache/"  # keeps the scaled images, for later epochs and runs; "" keeps none
NUM_WORKERS = "auto"  # processes that read images; 0 reads in the training process
PIN_MEMORY = True  # faster copies to a CUDA device; without one it means nothing
DEVICE = "auto"  # cuda, cuda:1, mps or cpu
SYNC_BATCHNORM = False  # True has BatchNorm see all GPUs' shares of a step, for shares of a few images; CUDA only
PRECISION = "auto"  # float16, bfloat16 or float32; auto is float16 on CUDA, the faster one on a CPU
COMPILE = False  # True has torch.compile make the network faster, which takes minutes: for long runs on CUDA
DETERMINISTIC = False  # True has CUDA repeat a run bit for bit; a CPU does so anyway
SEED = 0  # of the first weights, the order of the images and their augmentation

LOAD_MODEL = False  # True goes on from my_checkpoint.pth.tar
SAVE_MINUTES = 10.0  # between checkpoints within an epoch; each epoch ends with one
OUT_DIR = "."  # where my_checkpoint.pth.tar and saved_images/ go
NUM_PICTURES = 8  # validation images to draw after each epoch


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Muon for all parameters: at the full rate for convolutions, whose updates it makes orthogonal; at 3 % of
    it for biases and for BatchNorm, whose numbers it moves by their rate each."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return Muon([{"params": weights}, {"params": vectors, "lr": 0.03 * learning_rate}], learning_rate)


def train_fn(
    loader: DataLoader,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module,
    scaler: torch.amp.GradScaler,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    precision: torch.dtype = torch.float32,
    accumulate: int = 1,
    mean_batch_size: float | None = None,
    first_step: int = 0,
    half_size_steps: int = 0,
    after_step: Callable[[Tensor], None] = lambda loss: None,
    show_bar: bool = True,
) -> float:
    """Train for one epoch, or for what is left of it after `first_step`, and return the mean loss.

    Each batch is computed in `accumulate` parts, whose gradients add up to the whole's. Where processes share it,
    `mean_batch_size` is the mean number of images that they have of it. The epoch's first `half_size_steps` see
    half the height and width. `after_step` is called with each step's loss, which is on the device.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    loop = tqdm(loader, initial=first_step, disable=not show_bar)
    for step, (images, masks) in enumerate(loop, start=first_step + 1):
        images = images.to(device, non_blocking=True)
        targets = masks.to(device, non_blocking=True).unsqueeze(1)  # (N, H, W) to (N, 1, H, W)
        if step <= half_size_steps:
            targets = targets[..., step % 2 :: 2, step // 2 % 2 :: 2]  # each of four in turn, lest masks shift
            images = F.interpolate(images, targets.shape[2:], mode="area")

        optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        for part, truth in zip(images.chunk(accumulate), targets.chunk(accumulate), strict=True):
            with autocast(device, precision):
                logits = model(part)
            part_loss = loss_fn(logits.float(), truth) * (len(part) / (mean_batch_size or len(images)))
            scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        scaler.step(optimizer)
        scaler.update()
        if scheduler is not None:
            scheduler.step()

        after_step(loss)
        total += loss
        if step % 10 == 0 or step == first_step + 1:  # not each time: reading a number from a GPU makes it wait
            loop.set_postfix(loss=total.item() / (step - first_step))
    return total.item() / max(1, len(loop) - first_step)


def load_data(options: Namespace, classes: Classes, group: Group) -> tuple[DataLoader, DataLoader, dict[str, Any]]:
    """Check all files, and return the loaders of those to learn from and to score on, and what a checkpoint notes
    about them."""
    size = (options.IMAGE_HEIGHT, options.IMAGE_WIDTH)
    folders = (options.TRAIN_IMG_DIR, options.TRAIN_MASK_DIR, options.VAL_IMG_DIR, options.VAL_MASK_DIR)
    with group.main_first():
        folders = sample_if_empty(folders, classes.count)
    images = group.broadcast(
        lambda: check_run(folders, size, options.FEATURES, options.BATCH_SIZE, options.CACHE_DIR, classes)
    )
    with group.main_first():
        loaders = get_loaders(
            *folders,
            options.BATCH_SIZE,
            *make_transforms(),
            choose_num_workers(options.NUM_WORKERS, group.device, group.local_world_size),
            options.PIN_MEMORY,
            size=size,
            cache_dir=options.CACHE_DIR,
            seed=options.SEED,
            min_steps=options.MIN_STEPS,
            drop_last=True,
            classes=classes,
            group=group,
        )
    for folder, loader in zip(folders[::2], loaders, strict=True):
        group.require_same_files(folder, loader.dataset.images)
    return *loaders, images


def main(argv: list[str] | None = None) -> None:
    """Train as the constants above and `argv` say."""
    options = ConstantParser(globals()).parse_args(argv)
    group = init_distributed(options.DEVICE)
    device = group.device
    classes = Classes(options.NUM_CLASSES, options.IGNORE_INDEX)
    precision = choose_precision(options.PRECISION, device)
    if options.DETERMINISTIC:
        make_deterministic()
    out_dir = Path(options.OUT_DIR)
    writer = CheckpointWriter(out_dir, writes=group.is_main)
    pictures_dir = writable_folder(out_dir / "saved_images")
    logger = Logger(writable_folder(out_dir / "runs"), vars(options), enabled=group.is_main)

    train_loader, val_loader, images = load_data(options, classes, group)
    batch_size = train_loader.batch_sampler.batch_size

    torch.manual_seed(options.SEED)
    model_arguments = {"in_channels": 3, "out_channels": options.NUM_CLASSES, "features": options.FEATURES}
    model = UNET(**model_arguments).to(device, memory_format=choose_memory_format(device, precision))
    smallest = 2 ** len(options.FEATURES)  # pixels a side
    shared_model = group.wrap(model, torch.zeros(1, 3, smallest, smallest), options.SYNC_BATCHNORM)
    if options.COMPILE:  # only now, so that it compiles for no image but the run's
        model.compile(dynamic=False)  # for each size anew: code for any size gives up convolutions' layout
    loss_fn = CEDiceLoss() if classes.multiclass else BCEDiceLoss()
    optimizer = make_optimizer(model, options.LEARNING_RATE)
    total_steps = options.NUM_EPOCHS * len(train_loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step / total_steps))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    can_halve = min(options.IMAGE_HEIGHT, options.IMAGE_WIDTH) >= 2 * smallest
    half_size_steps = round(options.HALF_SIZE_SHARE * total_steps) if can_halve else 0

    writer.check_room(model)
    about = {"constants": vars(options), "model": model_arguments, "images": images}
    run = Run(writer, logger, train_loader, model, optimizer, scheduler, scaler, about, group)
    if state := group.broadcast(lambda: run.saved_state(options.LOAD_MODEL)):
        run.restore(state)
        print(f"{writer.latest}: going on after {counted(run.epoch, 'epoch')} and {counted(run.step, 'step')}")
        if run.epoch >= options.NUM_EPOCHS:
            print(f"NUM_EPOCHS {options.NUM_EPOCHS} is reached: give a larger one to train on")
    elif group.is_main and (
        aside := archive_results(out_dir, ["*_checkpoint.pth.tar", "saved_images/[!.]*", "runs/*/events.*"])
    ):
        print(f"the results of the run before are now in {aside}")

    print(
        f"{counted(len(train_loader.dataset), 'image')} to learn from, {len(val_loader.dataset)} to score on; "
        f"{batch_size} a step{group.describe_shards(batch_size)}, {counted(len(train_loader), 'step')} an epoch; "
        f"{device} in {str(precision).removeprefix('torch.')}"
    )
    shape = f"{options.IMAGE_HEIGHT}x{options.IMAGE_WIDTH}"
    with explain_limits(f"batches of {batch_size} images of {shape}"), run, closing(logger):
        while run.epoch < options.NUM_EPOCHS:
            print(f"epoch {run.epoch + 1} of {options.NUM_EPOCHS}")
            train_fn(
                train_loader,
                shared_model,
                optimizer,
                loss_fn,
                scaler,
                scheduler=scheduler,
                precision=precision,
                accumulate=options.ACCUMULATE,
                mean_batch_size=group.mean_batch_size(batch_size),
                first_step=run.step,
                half_size_steps=half_size_steps - run.epoch * len(train_loader),
                after_step=run.after_step,
                show_bar=group.is_main,
            )
            print(f"mean training loss {run.mean_loss():.4f}")
            scores = check_accuracy(
                run.stoppable(val_loader), model, device, loss_fn=loss_fn, precision=precision, group=group
            )
            epoch_dir = pictures_dir / f"epoch_{run.epoch + 1:03d}"
            if group.is_main:
                pictures = save_predictions_as_imgs(
                    val_loader,
                    model,
                    epoch_dir,
                    device,
                    num_images=options.NUM_PICTURES,
                    precision=precision,
                )
                update_page(pictures_dir, run.epoch + 1, pictures)
            logger.add("val", run.total_steps, scores, epoch_dir / "grid.png")
            run.finish_epoch(scores["dice"])


if __name__ == "__main__":
    run_script(end_together(main))
