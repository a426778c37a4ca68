"""Train a U-Net to cut cars, or anything else, out of images.

    python train.py                                          # on a rendered sample set if data/ is empty
    python train.py --BATCH_SIZE 8 --NUM_EPOCHS 10           # any constant below, for one run
    python train.py --LOAD_MODEL                             # go on with a run that was stopped
    python train.py --TIME_LIMIT 10                          # the network that makes the most of ten minutes
    torchrun --nproc_per_node=8 train.py --BATCH_SIZE 128    # on eight GPUs

Results: the checkpoints, saved_images/index.html and `tensorboard --logdir runs`.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import make_transforms
from losses import BCEDiceLoss, CEDiceLoss, as_targets
from model import UNET, to_float
from predict import score_images
from prepare_data import sample_if_empty
from support.budget import batch_at_once, num_levels, settle_length, settle_network
from support.checkpoint import CheckpointWriter, load_checkpoint, read_checkpoint, start_from, trained_size
from support.checks import check_run, crops_per_image
from support.device import (
    autocast,
    choose_memory_format,
    choose_num_threads,
    choose_num_workers,
    choose_precision,
    set_up_cuda,
)
from support.distributed import Group, end_together, init_distributed
from support.errors import BadInput, counted, explain_limits, run_script
from support.files import writable_folder
from support.muon import Muon
from support.options import ConstantParser, settle_classes
from support.preparation import prepare
from support.pretrained import load_pretrained, require_encoder
from support.reading import Classes, Reading, Size
from support.run import Run
from support.sliding_window import SlidingWindow
from support.tables import confusion_table, save_scores
from support.visualize import update_page
from utils import (
    Scores,
    check_accuracy,
    choose_images,
    evaluating,
    get_loaders,
    image_scores,
    save_predictions_as_imgs,
)
from utils import describe as describe_scores

TRAIN_IMG_DIR = "data/train_images/"  # images to train on
TRAIN_MASK_DIR = "data/train_masks/"  # their masks: NAME_mask.gif, NAME.png or the like for NAME.jpg
VAL_IMG_DIR = "data/val_images/"  # images to validate on after each epoch
VAL_MASK_DIR = "data/val_masks/"  # their masks
NUM_CLASSES = "auto"  # 1 is foreground alone; auto is what split has found, data/dataset.json's, or 1
IN_CHANNELS = "auto"  # of the images: 1 is gray, 3 RGB, others as TIFF has them; auto is split's, or 3
RANGE = "auto"  # highest value of images with 16 bits, such as 4095 of 12 bits; auto is split's, or 65535
IGNORE_INDEX = 255  # value of pixels that are left out of the loss and the scores, if NUM_CLASSES is more than 1

IMAGE_HEIGHT = 160  # pixels that the network sees; Carvana's own are 1280
IMAGE_WIDTH = 240  # pixels; Carvana's own are 1918
CROP = 0  # pixels of a side; with a number, the network sees squares at the images' own scale: for thin things

FEATURES = "auto"  # channels of each level, such as 64 128 256 512, the paper's; auto is what suits device and time
ENCODER = ""  # one of timm's networks, with ImageNet's weights, for the way down; "" trains all from scratch
ENCODER_WEIGHTS = ""  # a file of its weights; "" fetches them
START_FROM = ""  # a checkpoint whose weights a new run begins with: of other images, sizes or classes

LEARNING_RATE = 0.1  # the peak of warmup_cosine; see make_optimizer
BATCH_SIZE = "auto"  # images per step, over all GPUs; auto is 16 a GPU, or fewer so that an epoch has MIN_STEPS
MIN_STEPS = 48  # steps per epoch that an automatic BATCH_SIZE leaves a small set, down to 2 images, with ENCODER 4
NUM_EPOCHS = "auto"  # passes over the training images; auto is 1,500 steps, or what TIME_LIMIT allows
PATIENCE = 0  # epochs at full size without a better validation Dice after which the run ends; 0 goes on to the end
TIME_LIMIT = 0.0  # minutes for the whole command; 0 is none. With a limit, a run can't be repeated to the bit
PROGRESSIVE_RESIZING = 0.5  # fraction of the run, its beginning, at half the height and width: less work
ACCUMULATION_STEPS = 1  # parts that a batch is computed in, one by one: 4 take about a quarter of the memory

CACHE_DIR = "data/cache/"  # keeps the scaled images, for later epochs and runs; "" keeps none
NUM_WORKERS = "auto"  # processes that load images; 0 loads in the training process
NUM_THREADS = "auto"  # threads that a CPU trains with; auto is all or one, whichever is faster beside other work
PIN_MEMORY = True  # faster copies to a CUDA device; without one it means nothing
DEVICE = "auto"  # cuda, cuda:1, mps or cpu
SYNC_BATCHNORM = False  # True synchronizes BatchNorm's statistics, for few images on each GPU; CUDA only
PRECISION = "auto"  # float16, bfloat16 or float32; auto is float16 on CUDA, the faster one on a CPU
COMPILE = False  # True compiles the training step, which takes minutes: for long runs on CUDA
DETERMINISTIC = False  # True has CUDA repeat a run bit for bit; a CPU does so anyway
SEED = 0  # of the first weights, the order of the images and their augmentation

LOAD_MODEL = False  # True resumes from my_checkpoint.pth.tar
SAVE_MINUTES = 10.0  # between checkpoints within an epoch; each epoch ends with one
OUT_DIR = "."  # folder of my_checkpoint.pth.tar, saved_images/ and runs/
FULL_SIZE_SCORES = True  # scores the best checkpoint at the images' own sizes, after training
FULL_SIZE_EVERY = 0  # epochs after which the network is scored so, too, which takes longer; 0 is never
NUM_SAVED_IMAGES = 8  # validation images to draw after each epoch: half the same ones, half the worst


def make_model(
    options: Namespace,
    group: Group,
    precision: torch.dtype,
    state: dict[str, Any] | None = None,
    start: dict[str, Any] | None = None,
) -> tuple[UNET, nn.Module]:
    """The network with its first weights, and the same network as training calls it: one of several processes,
    compiled. A resumed run brings its weights in `state`; a new one has those of the checkpoint to `start` from,
    ImageNet's in its encoder, or random ones."""
    torch.manual_seed(options.SEED)
    try:
        model = UNET(
            in_channels=options.IN_CHANNELS,
            out_channels=options.NUM_CLASSES,
            features=options.FEATURES,
            encoder=options.ENCODER or None,
        )
    except (ValueError, ImportError) as error:
        raise BadInput("ENCODER", str(error), "Give another of timm's networks, or FEATURES that fit") from error
    if start:
        start_from(start, model, name=options.START_FROM)
    elif options.ENCODER and not state:
        with group.main_first():
            load_pretrained(model.encoder, options.ENCODER, options.ENCODER_WEIGHTS)
    model.to(group.device, memory_format=choose_memory_format(group.device, precision))
    smallest = 2 ** len(options.FEATURES)
    train_model = group.wrap(model, torch.zeros(1, options.IN_CHANNELS, smallest, smallest), options.SYNC_BATCHNORM)
    if group.device.type == "cpu" and group.world_size == 1:  # torchrun divides the cores
        size, batch = (options.IMAGE_HEIGHT, options.IMAGE_WIDTH), min(4, options.BATCH_SIZE)
        torch.set_num_threads(choose_num_threads(options.NUM_THREADS, model, precision, size, batch))
    if options.COMPILE:  # for each size anew: code for any size gives up the layout of convolutions
        # CUDA graphs spare a small batch its kernel launches. Their next run overwrites what the last one returned,
        # so they are not for batches in parts or for gradients of several processes.
        graphs = options.BATCH_SIZE <= 8 and options.ACCUMULATION_STEPS == 1 and group.world_size == 1
        mode = "reduce-overhead" if graphs and group.device.type == "cuda" else None
        train_model = torch.compile(train_model, dynamic=False, mode=mode)
    return model, train_model


def make_optimizer(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Muon for all parameters: at the full rate for convolutions, whose updates it makes orthogonal; at 3 % of it
    for biases and BatchNorm, each of whose numbers it changes by the rate."""
    pretrained = list(model.encoder.parameters()) if hasattr(model, "encoder") else []
    known = set(pretrained)
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1 and parameter not in known]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1 and parameter not in known]
    transposed = [module.weight for module in model.modules() if isinstance(module, nn.ConvTranspose2d)]
    groups = [{"params": weights}, {"params": vectors, "lr": 0.03 * learning_rate}]
    if pretrained:  # its weights are good already
        groups.append({"params": pretrained, "lr": 0.003 * learning_rate, "orthogonal": False})
    return Muon(groups, learning_rate, transposed=transposed)


def warmup_cosine(progress: float) -> float:
    """Fraction of the peak learning rate at `progress` in [0, 1] of the run: up for 20 % of it and down to 0,
    both along a cosine. Smith and Topin 2017, https://arxiv.org/abs/1708.07120."""
    warm_up = 0.2
    if progress < warm_up:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / warm_up)) / 2
    return (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up))) / 2


def halve(images: Tensor, masks: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and masks (N, H, W) at half the height and width, for progressive resizing. Of the four
    mask pixels that become one, each is taken in turn, by `step`: always the same one would shift the masks. Of an
    odd height or width the last pixel is left out."""
    height, width = (side // 2 * 2 for side in masks.shape[1:])
    images = F.avg_pool2d(to_float(images[..., :height, :width]), 2)
    return images, masks[:, step % 2 : height : 2, step // 2 % 2 : width : 2]


class AtSize(nn.Module):
    """A network that sees images (N, C, H, W) scaled down to `size`, with its logits scaled back up to H and W."""

    def __init__(self, model: nn.Module, size: Size) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(F.interpolate(to_float(images), self.size, mode="area"))
        return F.interpolate(logits.float(), images.shape[2:], mode="bilinear", align_corners=False)


def train_fn(
    loader: DataLoader,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module,
    scaler: torch.amp.GradScaler,
    *,
    precision: torch.dtype = torch.float32,
    accumulation_steps: int = 1,
    mean_batch_size: float | None = None,
    first_step: int = 0,
    half_size: Callable[[], bool] = lambda: False,
    after_step: Callable[[Tensor], bool | None] = lambda loss: None,
    show_bar: bool = True,
) -> float:
    """Train for one epoch, or for what is left of it after `first_step`, and return the mean loss.

    Each batch is computed in `accumulation_steps` parts, whose gradients add up. If a batch is split among
    processes, `mean_batch_size` is the mean number of images that each has of it. `half_size` tells if the next
    step is trained at half the height and width. `after_step` is called with each step's loss, on the device;
    if it returns True, no time is left for another step.
    """
    device = next(model.parameters()).device
    total, step = torch.zeros((), device=device), first_step
    loop = tqdm(loader, initial=first_step, disable=not show_bar)
    for step, (images, masks) in enumerate(loop, start=first_step + 1):
        images, masks = images.to(device, non_blocking=True), masks.to(device, non_blocking=True)
        if half_size():
            images, masks = halve(images, masks, step)
        targets = as_targets(masks)

        optimizer.zero_grad()
        loss = torch.zeros((), device=device)
        parts = min(accumulation_steps, int(mean_batch_size or len(images)))  # the same number in all processes
        for part, (x, y) in enumerate(zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True), 1):
            # Processes take the mean of their gradients with the last part alone.
            sync = nullcontext() if part == parts else getattr(model, "no_sync", nullcontext)()
            with sync:
                with autocast(device, precision):
                    logits = model(x)
                part_loss = loss_fn(logits.float(), y) * (len(x) / (mean_batch_size or len(images)))
                scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        scaler.step(optimizer)
        scaler.update()

        total += loss
        over = after_step(loss)
        if step % 10 == 0 or step == first_step + 1:  # not each time: reading a number from a GPU makes it wait
            loop.set_postfix(loss=total.item() / (step - first_step))
        if over:
            break
    return total.item() / max(1, step - first_step)


def load_data(options: Namespace, group: Group) -> tuple[DataLoader, DataLoader, dict[str, Any]]:
    """Read and check all files, and return the loaders for training and for validation, and what a checkpoint tells
    about the images."""
    size = None if options.CROP else (options.IMAGE_HEIGHT, options.IMAGE_WIDTH)
    classes = Classes(options.NUM_CLASSES, options.IGNORE_INDEX)
    reading = Reading(size, classes, options.IN_CHANNELS, options.RANGE)
    folders = (options.TRAIN_IMG_DIR, options.TRAIN_MASK_DIR, options.VAL_IMG_DIR, options.VAL_MASK_DIR)
    min_batch_size = 4 if options.ENCODER else 2  # the statistics of an encoder's BatchNorm need more images
    with group.main_first():
        folders = sample_if_empty(folders, classes.count)

    def inspect() -> tuple[dict[str, Any], bool, int]:
        train, val = (prepare(*pair, reading, options.CACHE_DIR) for pair in (folders[:2], folders[2:]))
        at_once = min_batch_size if options.BATCH_SIZE == "auto" else batch_at_once(options, group)
        images = check_run(train, val, num_levels(options), at_once, options.CROP)
        return images, bool(train.records and val.records), crops_per_image(train, options.CROP)

    images, cached, crops = group.broadcast(inspect)
    with group.main_first():
        loaders = get_loaders(
            *folders,
            options.BATCH_SIZE,
            *make_transforms(),
            choose_num_workers(options.NUM_WORKERS, group.device, group.local_world_size),
            options.PIN_MEMORY,
            reading=reading,
            crop=options.CROP,
            crops=crops,
            cache_dir=options.CACHE_DIR if cached else None,
            seed=options.SEED,
            min_steps=options.MIN_STEPS,
            min_batch_size=min_batch_size,
            accumulation_steps=options.ACCUMULATION_STEPS,
            drop_last=True,
            group=group,
        )
    for folder, loader in zip(folders[::2], loaders, strict=True):
        group.require_same_files(folder, loader.dataset.images)
    options.BATCH_SIZE = loaders[0].batch_sampler.batch_size
    return *loaders, images


def describe(
    options: Namespace, train_loader: DataLoader, val_loader: DataLoader, group: Group, precision: torch.dtype
) -> str:
    """What the run is about to do, in two lines."""
    crops, batch_size = train_loader.dataset.crops, train_loader.batch_sampler.batch_size
    data = counted(len(train_loader.dataset) // crops, "training image")
    if options.CROP:
        data += f" ({counted(crops, 'crop')} of each)"
    data += f", {counted(len(val_loader.dataset), 'validation image')}"
    network = f"FEATURES {' '.join(map(str, options.FEATURES))}"
    if options.ENCODER:
        network = f"{options.ENCODER}, {network}"
    length = counted(len(train_loader), "step")
    if not math.isinf(options.NUM_EPOCHS):
        length = f"{counted(options.NUM_EPOCHS, 'epoch')} of {length}"
    if options.TIME_LIMIT:
        length = f"{options.TIME_LIMIT:g} minutes, {length}"
    over = f" over {group.world_size} processes" if group.world_size > 1 else ""
    machine = f"{group.device} in {str(precision).removeprefix('torch.')}"
    if group.device.type == "cpu":
        machine += f", {counted(torch.get_num_threads(), 'thread')}"
    return f"{data}; batches of {batch_size}{over}\n{network}; {length}; {machine}"


def validation_network(model: nn.Module, run: Run, crop: int) -> nn.Module:
    """The network as validation sees it: in windows of whole images, if it is trained on crops, and at half the
    size for as long as it has seen no other."""
    if crop:
        return SlidingWindow(model, crop)
    return AtSize(model, run.image_size) if run.half_size else model


def show_epoch(
    run: Run, scores: Scores, loader: DataLoader, network: nn.Module, num_images: int, precision: torch.dtype
) -> None:
    """Draw the predictions of an epoch, add them to the page, and log and write its scores."""
    folder, device = run.images_dir / f"epoch_{run.epoch + 1:03d}", run.group.device
    indices = choose_images(scores.images, num_images)
    rows, grid = save_predictions_as_imgs(loader, network, folder, device, indices=indices, precision=precision)
    update_page(run.images_dir, run.epoch + 1, rows)
    table = confusion_table(scores.confusion) if scores.confusion.dim() else None
    save_scores(image_scores(scores.counts), loader.dataset.images, folder, table)
    run.logger.add("val", run.total_steps, scores, grid, table)


def score_at_full_size(
    run: Run, model: nn.Module, size: Size, loader: DataLoader, precision: torch.dtype, which: str
) -> None:
    """Print and save how a network that sees images of `size` scores on validation images of their own sizes."""
    dataset = loader.dataset
    reading = replace(dataset.reading, size=size)
    scores = score_images(dataset.pairs, model, reading, precision, loader.batch_size)
    print(describe_scores(scores, f"{which}, {counted(len(dataset), 'image')} at their own sizes"))
    save_scores(image_scores(scores.counts), dataset.images, writable_folder(run.images_dir / "full_size"))


def load_best(run: Run, model: nn.Module) -> Size:
    """Give `model` the weights of the run's best checkpoint, and return the size that it was trained at."""
    best = read_checkpoint(run.writer.best)
    load_checkpoint(best, model, name=str(run.writer.best))
    return trained_size(best)


def seconds_at_full_size(model: nn.Module, loader: DataLoader, precision: torch.dtype) -> float:
    """What `score_at_full_size` will take, judged by a few images."""
    dataset, began = loader.dataset, time.monotonic()
    some = dataset.pairs[:4]
    score_images(some, model, dataset.reading, precision, loader.batch_size)
    return (time.monotonic() - began) / len(some) * len(dataset)


def seconds_to_validate(network: nn.Module, loader: DataLoader, drawn: int, precision: torch.dtype) -> float:
    """What a validation will take that draws so many images, judged by the fastest of a few, since the first one
    takes longer."""
    device, each = next(network.parameters()).device, []
    with evaluating(network), autocast(device, precision):
        for index in range(min(3, len(loader.dataset))):
            began = time.monotonic()
            network(loader.dataset[index][0].unsqueeze(0).to(device)).cpu()
            each.append(time.monotonic() - began)
    return min(each) * (len(loader.sampler) + drawn)


def main(argv: list[str] | None = None) -> None:
    """Train as the constants above and `argv` say."""
    options = ConstantParser(globals()).parse_args(argv)
    settle_classes(options)
    group = init_distributed(options.DEVICE)
    precision = choose_precision(options.PRECISION, group.device)
    set_up_cuda(options.DETERMINISTIC)
    require_encoder(options.ENCODER, options.ENCODER_WEIGHTS)
    writer = CheckpointWriter(Path(options.OUT_DIR), writes=group.is_main)
    state = group.broadcast(lambda: writer.saved_state(options.LOAD_MODEL, group.run_id))
    start = read_checkpoint(options.START_FROM) if options.START_FROM and not state else None
    settle_network(options, state, start)

    train_loader, val_loader, images = load_data(options, group)
    settle_length(options, state, group, precision, len(train_loader))
    model, train_model = make_model(options, group, precision, state, start)
    loss_fn = CEDiceLoss() if options.NUM_CLASSES > 1 else BCEDiceLoss()
    optimizer = make_optimizer(model, options.LEARNING_RATE)
    scaler = torch.amp.GradScaler(group.device.type, enabled=precision == torch.float16)
    metadata = {"model": model.arguments, "images": images}
    run = Run(writer, vars(options), train_loader, model, optimizer, scaler, warmup_cosine, metadata, group)
    run.begin(state)
    at_full_size = options.FULL_SIZE_SCORES and group.is_main and not options.CROP  # which validates at full size
    if options.TIME_LIMIT:
        network = validation_network(model, run, options.CROP)
        seconds = seconds_to_validate(network, val_loader, options.NUM_SAVED_IMAGES, precision)
        run.clock.reserve = max(run.clock.reserve, seconds)
        run.clock.at_end = seconds_at_full_size(model, val_loader, precision) if at_full_size else 0.0
    print(describe(options, train_loader, val_loader, group, precision))

    work = f"batches of {options.BATCH_SIZE} images of {options.IMAGE_WIDTH}x{options.IMAGE_HEIGHT}"
    with explain_limits(work), run:
        while not run.limit:
            print(f"epoch {run.epoch + 1}" + ("" if math.isinf(run.num_epochs) else f" of {run.num_epochs}"))
            train_fn(
                train_loader,
                train_model,
                optimizer,
                loss_fn,
                scaler,
                precision=precision,
                accumulation_steps=options.ACCUMULATION_STEPS,
                mean_batch_size=group.mean_batch_size(options.BATCH_SIZE),
                first_step=run.step,
                half_size=lambda: run.progress < options.PROGRESSIVE_RESIZING,
                after_step=run.after_step,
                show_bar=group.is_main,
            )
            print(f"mean training loss {run.mean_loss():.4f}")
            network, batches = validation_network(model, run, options.CROP), run.stoppable(val_loader)
            scores = check_accuracy(
                batches, network, group.device, loss_fn=loss_fn, precision=precision, group=group
            )
            if group.is_main:
                show_epoch(run, scores, val_loader, network, options.NUM_SAVED_IMAGES, precision)
                if options.FULL_SIZE_EVERY and not options.CROP and (run.epoch + 1) % options.FULL_SIZE_EVERY == 0:
                    score_at_full_size(run, model, run.image_size, val_loader, precision, f"epoch {run.epoch + 1}")
            run.finish_epoch(scores["dice"])
    if at_full_size and run.writer.best.exists():
        score_at_full_size(run, model, load_best(run, model), val_loader, precision, "best checkpoint")


if __name__ == "__main__":
    run_script(end_together(main))
