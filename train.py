"""Train a U-Net to cut cars (or anything else) out of photographs.

    python train.py                                          # a rendered sample set where data/ is empty
    python train.py --BATCH_SIZE 8 --NUM_EPOCHS 10           # any constant below, for one run
    python train.py --LOAD_MODEL --NUM_EPOCHS 20             # go on from my_checkpoint.pth.tar
    python train.py --FEATURES 16 32 64 128 --NUM_EPOCHS 1   # a small network, for a quick look on a CPU

Checkpoints and saved_images/ tell how it went.
"""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for its newest version

import albumentations as A
import cv2
import torch
from albumentations.pytorch import ToTensorV2
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from errors import run_script
from losses import BCEDiceLoss
from machine import autocast, choose_device, choose_num_workers, choose_precision
from model import UNET
from options import ConstantParser
from prepare_data import sample_if_empty
from utils import (
    check_accuracy,
    get_loaders,
    one_cycle,
    save_predictions_as_imgs,
    set_aside,
)

TRAIN_IMG_DIR = "data/train_images/"  # photographs to learn from
TRAIN_MASK_DIR = "data/train_masks/"  # their masks: NAME_mask.gif or .png, or NAME.png, for NAME.jpg
VAL_IMG_DIR = "data/val_images/"  # photographs to score on after each epoch
VAL_MASK_DIR = "data/val_masks/"  # their masks
IMAGE_HEIGHT = 160  # pixels that the network sees; Carvana's own are 1280
IMAGE_WIDTH = 240  # pixels; Carvana's own are 1918

FEATURES = [64, 128, 256, 512]  # channels of each level of the U-Net; a quarter of each is 15 times cheaper
NUM_CLASSES = 1  # 1 tells foreground from background

LEARNING_RATE = 1e-3  # the peak of a one-cycle schedule
BATCH_SIZE = 16  # images per step, at most
MIN_STEPS = 24  # steps per epoch, at least: a small set gets smaller batches, so that a few epochs teach it enough
NUM_EPOCHS = 3  # passes over the training photographs

CACHE_DIR = "data/cache/"  # keeps the scaled photographs, for later epochs and runs; "" keeps none
NUM_WORKERS = "auto"  # processes that read photographs; 0 reads in the training process
PIN_MEMORY = True  # faster copies to a CUDA device; without one it means nothing
DEVICE = "auto"  # cuda, cuda:1, mps or cpu
PRECISION = "auto"  # float16, bfloat16 or float32; auto is float16 on CUDA, bfloat16 on a CPU that has it
SEED = 0  # of the first weights, the order of the photographs and their augmentation

LOAD_MODEL = False  # True goes on from my_checkpoint.pth.tar
OUT_DIR = "."  # where my_checkpoint.pth.tar and saved_images/ go
NUM_PICTURES = 8  # validation images to draw after each epoch


def train_fn(
    loader: DataLoader,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module,
    scaler: torch.amp.GradScaler,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    precision: torch.dtype | None = None,
    after_step: Callable[[Tensor], None] = lambda loss: None,
) -> float:
    """Train for one epoch and return its mean loss. `after_step` is called with each step's loss, on the device."""
    device = next(model.parameters()).device
    precision = precision or choose_precision("auto", device)
    total = torch.zeros((), device=device)
    loop = tqdm(loader)
    for step, (images, masks) in enumerate(loop, start=1):
        images = images.to(device, non_blocking=True)
        targets = masks.to(device, non_blocking=True).unsqueeze(1)  # (N, H, W) to (N, 1, H, W)

        with autocast(device, precision):
            logits = model(images)
        loss = loss_fn(logits.float(), targets)

        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if scheduler is not None:
            scheduler.step()

        total += loss.detach()
        if step % 10 == 0 or step == len(loop):  # reading a number from a GPU makes it wait
            loop.set_postfix(loss=total.item() / step)
        after_step(loss.detach())
    return total.item() / len(loop)


def main(argv: list[str] | None = None) -> None:
    """Train as the constants above and `argv` say."""
    options = ConstantParser(globals()).parse_args(argv)
    device = choose_device(options.DEVICE)
    precision = choose_precision(options.PRECISION, device)
    folders = sample_if_empty(
        (options.TRAIN_IMG_DIR, options.TRAIN_MASK_DIR, options.VAL_IMG_DIR, options.VAL_MASK_DIR)
    )

    train_transform = A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(
                scale=(0.9, 1.1),
                translate_percent=(-0.05, 0.05),
                rotate=(-5, 5),  # degrees: cars stand upright
                border_mode=cv2.BORDER_REFLECT_101,
                p=0.7,
            ),
            A.RandomBrightnessContrast(p=0.5),
            A.Normalize(mean=0, std=1, max_pixel_value=255),  # to [0, 1]
            ToTensorV2(),
        ]
    )
    val_transform = A.Compose([A.Normalize(mean=0, std=1, max_pixel_value=255), ToTensorV2()])
    train_loader, val_loader = get_loaders(
        *folders,
        options.BATCH_SIZE,
        train_transform,
        val_transform,
        choose_num_workers(options.NUM_WORKERS, device),
        options.PIN_MEMORY,
        size=(options.IMAGE_HEIGHT, options.IMAGE_WIDTH),
        cache_dir=options.CACHE_DIR,
        seed=options.SEED,
        min_steps=options.MIN_STEPS,
        drop_last=True,
    )

    torch.manual_seed(options.SEED)
    model = UNET(in_channels=3, out_channels=options.NUM_CLASSES, features=options.FEATURES).to(device)
    loss_fn = BCEDiceLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.LEARNING_RATE, fused=device.type != "mps")
    total_steps = options.NUM_EPOCHS * len(train_loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step / total_steps))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)

    out_dir = Path(options.OUT_DIR)
    out_dir.mkdir(parents=True, exist_ok=True)
    checkpoint_file = out_dir / "my_checkpoint.pth.tar"
    pictures_dir = out_dir / "saved_images"
    first_epoch = 0
    if options.LOAD_MODEL:
        checkpoint = read_checkpoint(checkpoint_file)
        load_checkpoint(checkpoint, model)
        if "epoch" in checkpoint:  # the tutorial's own checkpoints have none: their weights are a start
            optimizer.load_state_dict(checkpoint["optimizer"])
            scheduler.load_state_dict(checkpoint["scheduler"])
            scaler.load_state_dict(checkpoint["scaler"])
            first_epoch = train_loader.batch_sampler.epoch = checkpoint["epoch"]
        print(f"{checkpoint_file}: going on after epoch {first_epoch} of {options.NUM_EPOCHS}")
    elif aside := set_aside(out_dir, ["*.pth.tar", "saved_images/epoch_*"]):
        print(f"the results of the run before are now in {aside}")

    print(
        f"{len(train_loader.dataset)} photographs to learn from, {len(val_loader.dataset)} to score on; "
        f"{train_loader.batch_sampler.batch_size} a step, {len(train_loader)} steps an epoch; "
        f"{device} in {str(precision).removeprefix('torch.')}"
    )
    for epoch in range(first_epoch, options.NUM_EPOCHS):
        print(f"epoch {epoch + 1} of {options.NUM_EPOCHS}")
        train_fn(train_loader, model, optimizer, loss_fn, scaler, scheduler=scheduler, precision=precision)
        save_checkpoint(
            {
                "state_dict": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "scaler": scaler.state_dict(),
                "epoch": epoch + 1,
                "constants": vars(options),
            },
            checkpoint_file,
        )
        check_accuracy(val_loader, model, device, loss_fn=loss_fn, precision=precision)
        save_predictions_as_imgs(
            val_loader,
            model,
            pictures_dir / f"epoch_{epoch + 1:03d}",
            device,
            num_images=options.NUM_PICTURES,
            precision=precision,
        )


if __name__ == "__main__":
    run_script(main)
