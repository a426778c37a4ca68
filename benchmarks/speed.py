"""Measure this repository against the plain tutorial loop, in one run on this machine.

The plain loop is what the copies of the tutorial that README.md names do: two workers decode both files in full for
every sample; Adam at 1e-4, cross-entropy, float16 on CUDA. It is written out below, with the same U-Net.

    python -m benchmarks.speed                                             # on the rendered sample set
    python -m benchmarks.speed --IMG_DIR photos/ --MASK_DIR masks/         # on true files
    python -m benchmarks.speed --PARTS learning --TARGET_DICE 0.95         # how fast both learn
    python -m benchmarks.speed --OUT benchmarks/speed.md                   # also write the table into a file

The two sides take turns after a warm-up; a figure is the median over REPEATS, with the lowest and the highest.
"""

import math
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final, NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import train
from dataset import CarvanaDataset
from losses import BCEDiceLoss
from model import UNET
from prepare_data import sample_if_empty
from support.device import choose_device, choose_memory_format, choose_num_workers, choose_precision, count_cores
from support.errors import BadInput, counted, run_script
from support.options import ConstantParser
from support.pairs import find_pairs
from support.reading import Pair
from support.signals import exit_on_sigterm
from train import LEARNING_RATE, make_optimizer, make_transforms, train_fn
from utils import check_accuracy, get_loaders

IMG_DIR = "data/train_images/"  # images to read
MASK_DIR = "data/train_masks/"  # their masks
VAL_IMG_DIR = "data/val_images/"  # images to score on, in learning
VAL_MASK_DIR = "data/val_masks/"  # their masks
IMAGE_HEIGHT = 160  # pixels
IMAGE_WIDTH = 240  # pixels
FEATURES = [64, 128, 256, 512]  # channels of each level of the U-Net
BATCH_SIZE = 4  # images per step; 64 and more suit a large GPU
STEPS = 1  # steps per measurement on a synthetic batch; 50 and more suit a GPU
EPOCH_IMAGES = 16  # images of the epoch from disk, repeated where there are fewer; 0 takes all, as suits a GPU
REPEATS = 5  # measurements of each figure
PARTS = ["reading", "step", "epoch"]  # what to measure; learning is another part
TARGET_DICE = 0.95  # in learning, the validation Dice whose time is taken
EPOCHS = 4  # in learning, epochs of train.py
PLAIN_EPOCHS = 12  # in learning, epochs of the plain loop; 0 leaves it out
TRAIN_OPTIONS = ""  # in learning, more for train.py: --TRAIN_OPTIONS="--BATCH_SIZE 8 --COMPILE"
DEVICE = "auto"  # cuda, mps or cpu
OUT = ""  # a file for the table, in Markdown
CURVE = ""  # a file for a picture of the validation Dice after each epoch


class PlainDataset(Dataset):
    """The tutorial's: both files are decoded in full for every sample."""

    def __init__(self, pairs: list[Pair], transform: A.Compose) -> None:
        self.pairs, self.transform = pairs, transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = np.array(Image.open(self.pairs[index][0]).convert("RGB"))
        mask = np.array(Image.open(self.pairs[index][1]).convert("L"), dtype=np.float32)
        mask[mask == 255.0] = 1.0
        augmented = self.transform(image=image, mask=mask)
        return augmented["image"], augmented["mask"]


def plain_transform(size: tuple[int, int]) -> A.Compose:
    """The tutorial's augmentation."""
    return A.Compose(
        [
            A.Resize(*size),
            A.Rotate(limit=35, p=1.0),
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.1),
            A.Normalize(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], max_pixel_value=255.0),
            ToTensorV2(),
        ]
    )


def plain_loader(pairs: list[Pair], batch_size: int, size: tuple[int, int]) -> DataLoader:
    """The tutorial's."""
    dataset = PlainDataset(pairs, plain_transform(size))
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=2, pin_memory=torch.cuda.is_available())


def plain_epoch(
    loader: Any, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """The tutorial's epoch: float16 on CUDA, float32 on a CPU, and a look at the loss in every step."""
    device = next(model.parameters()).device
    loss_fn = nn.BCEWithLogitsLoss()
    loop = tqdm(loader, disable=None)
    for images, masks in loop:
        images, targets = images.to(device), masks.float().unsqueeze(1).to(device)
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            loss = loss_fn(model(images), targets)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loop.set_postfix(loss=loss.item())


def plain_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The tutorial's."""
    return torch.optim.Adam(model.parameters(), lr=1e-4)


class Side:
    """A network with all that one side of the comparison trains it with."""

    def __init__(
        self,
        device: torch.device,
        o: Any,
        *,
        plain: bool = False,
        precision: str = "auto",
        layout: torch.memory_format | None = None,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        compile_mode: str = "",
    ) -> None:
        """The plain loop's, or train.py's, with what is given in the place of its own choices."""
        torch.manual_seed(0)
        self.plain, self.device = plain, device
        self.precision = choose_precision(precision, device)
        layout = layout or (torch.contiguous_format if plain else choose_memory_format(device, self.precision))
        self.model = UNET(features=o.FEATURES).to(device, memory_format=layout)
        if compile_mode:
            self.model.compile(mode=compile_mode, dynamic=False)
        default = plain_optimizer if plain else partial(make_optimizer, learning_rate=LEARNING_RATE)
        self.optimizer = (optimizer or default)(self.model)
        float16 = device.type == "cuda" if plain else self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=float16)

    def epoch(self, loader: Any) -> None:
        """Train on what `loader` yields, and return when the device is done."""
        if self.plain:
            plain_epoch(loader, self.model, self.optimizer, self.scaler)
        else:
            options = {"precision": self.precision, "show_bar": sys.stderr.isatty()}  # as the plain loop's
            train_fn(loader, self.model, self.optimizer, BCEDiceLoss(), self.scaler, **options)
        synchronise(self.device)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU's work to end."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def take_turns(repeats: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Each side's figures, measured in turn, after one round that isn't counted."""
    rounds = [[side() for side in sides] for _ in range(repeats + 1)]
    return [list(figures) for figures in zip(*rounds[1:], strict=True)]


def row(name: str, plain: list[float], ours: list[float], higher_is_better: bool = True) -> tuple[str, ...]:
    """A line of the table: name, both medians with their range, and how many times ours is better."""
    better, worse = statistics.median(ours), statistics.median(plain)
    if not higher_is_better:
        better, worse = worse, better
    ratio = f"{better / worse:.2f}" if math.isfinite(better) and math.isfinite(worse) else ""
    return name, show(plain), show(ours), ratio


def show(figures: list[float]) -> str:
    """The median with the range; nothing for a NaN, which stands for what was left out."""
    low, middle, high = (
        np.format_float_positional(value, 3, unique=False, fractional=False, trim="-")
        for value in (min(figures), statistics.median(figures), max(figures))
    )
    if len(figures) > 1:
        return f"{middle} ({low} to {high})"
    return {"nan": "", "inf": "never"}.get(middle, middle)


def reading(pairs: list[Pair], o: Any) -> list[tuple[str, ...]]:
    """Milliseconds a image, augmentation included, on one core."""
    size = (o.IMAGE_HEIGHT, o.IMAGE_WIDTH)
    plain = PlainDataset(pairs, plain_transform(size))
    folders = pairs[0][0].parent, pairs[0][1].parent
    first, later = (CarvanaDataset(*folders, make_transforms()[0], size=size) for _ in range(2))

    def first_pass() -> None:
        with tempfile.TemporaryDirectory() as folder:
            first.use_cache(folder)
            [first[0, i] for i in range(len(first))]

    with one_core(), tempfile.TemporaryDirectory() as folder:
        later.use_cache(folder)
        passes = (
            lambda: [plain[i] for i in range(len(plain))],
            first_pass,
            lambda: [later[1, i] for i in range(len(later))],
        )
        figures = take_turns(o.REPEATS, *(lambda p=p: seconds(p) * 1000 / len(pairs) for p in passes))
    return [
        row("reading, first epoch: ms a image, one core", figures[0], figures[1], higher_is_better=False),
        row("reading, later epochs: ms a image, one core", figures[0], figures[2], higher_is_better=False),
    ]


def reading_with_workers(pairs: list[Pair], o: Any, device: torch.device) -> list[tuple[str, ...]]:
    """Images a second from the loaders alone; ours has read the files before, and its workers stay."""
    with tempfile.TemporaryDirectory() as name:
        sides = loaders(Path(name), o, device, pairs)
        passes = (
            lambda s=s: len(s) * o.BATCH_SIZE / seconds(lambda: [len(images) for images, _ in s]) for s in sides
        )
        figures = take_turns(o.REPEATS, *passes)
    workers = " and ".join(str(side.num_workers) for side in sides)
    return [row(f"reading, later epochs: images/s with the default workers, {workers}", *figures)]


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process and those that it starts on one core, where the system lets it, and to one thread."""
    cv2.setNumThreads(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader's worker
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    yield
    if cores:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)


def loaders(folder: Path, o: Any, device: torch.device, pairs: list[Pair]) -> tuple[DataLoader, DataLoader]:
    """The plain loader and ours, over `pairs`; ours keeps its cache in `folder`."""
    size = (o.IMAGE_HEIGHT, o.IMAGE_WIDTH)
    plain = plain_loader(pairs, o.BATCH_SIZE, size)
    dirs = (pairs[0][0].parent, pairs[0][1].parent)
    workers = choose_num_workers("auto", device)
    ours, _ = get_loaders(
        *dirs,
        *dirs,
        o.BATCH_SIZE,
        *make_transforms(),
        workers,
        size=size,
        cache_dir=folder / "cache",
        drop_last=True,
    )
    return plain, ours


def stepping(o: Any, device: torch.device) -> list[tuple[str, ...]]:
    """Images a second of training steps on a synthetic batch, and the share of the matrix product's peak."""
    sides = [Side(device, o, plain=True), Side(device, o)]
    batches = [synthetic_batch(o, device)] * o.STEPS
    images = o.BATCH_SIZE * o.STEPS
    plain, ours = take_turns(o.REPEATS, *(lambda s=s: images / seconds(lambda: s.epoch(batches)) for s in sides))
    peak, work = matrix_peak(device), flop_per_image(o)
    shares = ([100 * rate * work / peak for rate in rates] for rates in (plain, ours))
    name = f"the same, % of the bfloat16 matrix product's {peak / 1e12:.3g} TFLOP/s"
    return [row("training step, synthetic batch: images/s", plain, ours), row(name, *shares)]


def synthetic_batch(o: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images (N, 3, H, W) and masks (N, H, W) of foreground alone, on the device."""
    shape = (o.BATCH_SIZE, o.IMAGE_HEIGHT, o.IMAGE_WIDTH)
    return torch.rand(shape[0], 3, *shape[1:], device=device), torch.ones(shape, device=device)


def matrix_peak(device: torch.device) -> float:
    """FLOP/s of a large bfloat16 matrix product: the best of ten."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(n, n, device=device).bfloat16() for _ in range(2))

    def product() -> None:
        a @ b
        synchronise(device)

    product()
    return 2 * n**3 / min(seconds(product) for _ in range(10))


def flop_per_image(o: Any) -> float:
    """FLOP of one image, forward and backward, counted."""
    with FlopCounterMode(display=False) as counter:
        UNET(features=o.FEATURES)(torch.rand(1, 3, o.IMAGE_HEIGHT, o.IMAGE_WIDTH)).sum().backward()
    return counter.get_total_flops()


def whole_epoch(o: Any, device: torch.device, pairs: list[Pair]) -> list[tuple[str, ...]]:
    """Images a second of an epoch from files on disk; our cache is there from the warm-up on."""
    sides = [Side(device, o, plain=True), Side(device, o)]
    with tempfile.TemporaryDirectory() as name:
        few = []
        for number, pair in zip(range(o.EPOCH_IMAGES or len(pairs)), cycle(pairs)):
            image, mask = (f"{number}_{file.name}" for file in pair)
            few.append((Path(name, "images", image), Path(name, "masks", mask)))
            for source, target in zip(pair, few[-1], strict=True):
                target.parent.mkdir(exist_ok=True)
                target.symlink_to(source.absolute())
        synthetic = [synthetic_batch(o, device)] * (len(few) // o.BATCH_SIZE)
        workloads = (*loaders(Path(name), o, device, few), synthetic, synthetic)
        turns = [
            lambda s=s, w=w: len(few) / seconds(lambda: s.epoch(w))
            for s, w in zip(2 * sides, workloads, strict=True)
        ]
        plain, ours, *steps = take_turns(o.REPEATS, *turns)
    shares = (  # round by round, since a machine's speed drifts
        [100 * own / step for own, step in zip(rates, synthetic_rates, strict=True)]
        for rates, synthetic_rates in zip((plain, ours), steps, strict=True)
    )
    return [
        row(f"a whole epoch of {len(few)} images from disk: images/s", plain, ours),
        row("the same, % of the rate on synthetic batches", *shares),
    ]


Curve = list[tuple[float, float]]  # after each epoch, seconds of training so far, scoring left out, and the Dice
NOT_RUN: Final = (math.nan, math.nan)


class Learning(NamedTuple):
    """How a run of `python train.py` went, in seconds from its start."""

    first_step: float  # until the loss of the first step was shown
    end: float
    curve: Curve


def timed_training(argv: list[str]) -> Learning:
    """Run train.py as its users do, and note when it says what. Raises BadInput where it fails."""
    events = re.compile(r"epoch \d+ of |loss=|mean training loss|: dice (\d\.\d{4})")
    text, place, began_epoch, spent, first_step, curve = "", 0, 0.0, 0.0, 0.0, []
    began = time.perf_counter()
    command = [sys.executable, "-u", train.__file__, *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while some := process.stdout.read1():
            now = time.perf_counter() - began
            text += some.decode(errors="replace")
            for event in events.finditer(text, place):
                place = event.end()
                if event[0].startswith("epoch"):
                    began_epoch = now
                elif event[0] == "loss=":
                    first_step = first_step or now
                elif event[1]:
                    curve.append((spent, float(event[1])))
                else:
                    spent += now - began_epoch
    if process.returncode:
        raise BadInput("train.py", f"ended with status {process.returncode}", f"It said: {text.strip()[-300:]!r}")
    return Learning(first_step, now, curve)


def plain_learning(o: Any, device: torch.device, pairs: list[Pair]) -> Curve:
    """How the plain loop learns the images, with the tutorial's batches of 16."""
    size = (o.IMAGE_HEIGHT, o.IMAGE_WIDTH)
    scored = CarvanaDataset(o.VAL_IMG_DIR, o.VAL_MASK_DIR, make_transforms()[1], size=size)
    side, curve, spent = Side(device, o, plain=True), [], 0.0
    loader = plain_loader(pairs, 16, size)
    for _ in range(o.PLAIN_EPOCHS):
        spent += seconds(lambda: side.epoch(loader))
        curve.append((spent, check_accuracy(DataLoader(scored, 16), side.model, device)["dice"]))
    return curve


def our_learning(o: Any) -> Learning:
    """How train.py learns the same images."""
    with tempfile.TemporaryDirectory() as folder:
        argv = ["--OUT_DIR", folder, "--CACHE_DIR", f"{folder}/cache", "--NUM_EPOCHS", str(o.EPOCHS)]
        for name in ("IMAGE_HEIGHT", "IMAGE_WIDTH", "DEVICE"):
            argv += [f"--{name}", str(getattr(o, name))]
        for name in ("IMG_DIR", "MASK_DIR"):
            argv += [f"--TRAIN_{name}", getattr(o, name), f"--VAL_{name}", getattr(o, f"VAL_{name}")]
        return timed_training([*argv, "--FEATURES", *map(str, o.FEATURES), *shlex.split(o.TRAIN_OPTIONS)])


def learning_rows(plain: Curve, ours: Learning, target: float) -> list[tuple[str, ...]]:
    """The lines of the table about two runs: the time to a Dice, and where they end."""

    def reached(curve: Curve) -> float:
        never = math.inf if curve else math.nan
        return next((spent for spent, dice in curve if dice >= target), never)

    (plain_seconds, plain_dice), (our_seconds, our_dice) = plain[-1] if plain else NOT_RUN, ours.curve[-1]
    epochs = f"{counted(len(plain), 'epoch')} against {len(ours.curve)}"
    to_target = f"seconds of training to a validation Dice of {target}"
    return [
        row(to_target, [reached(plain)], [reached(ours.curve)], higher_is_better=False),
        row(f"seconds of training, {epochs}", [plain_seconds], [our_seconds], higher_is_better=False),
        (f"validation Dice, {epochs}", f"{plain_dice:.4f}" if plain else "", f"{our_dice:.4f}", ""),
        ("seconds of the whole command, scoring and pictures included", "", show([ours.end]), ""),
        ("seconds until its first step is done", "", show([ours.first_step]), ""),
    ]


def describe_curve(whose: str, curve: Curve) -> str:
    """A line about the Dice after each epoch."""
    epochs = (f"{dice:.4f} after {spent:.1f} s" for spent, dice in curve)
    return f"{whose}, validation Dice: {', '.join(epochs) or 'not run'}"


def draw_curves(plain: Curve, ours: Curve, name: str, path: str) -> None:
    """Draw the Dice of both sides after each epoch."""
    from matplotlib.figure import Figure  # a developer's need: train.py goes without

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for curve, label, colour in ((plain, "plain tutorial loop", "#999999"), (ours, "this repository", "#0072b2")):
        if not curve:
            continue
        dice = [dice for _, dice in curve]
        axes.plot(range(1, 1 + len(dice)), dice, "o-", color=colour, label=f"{label} (last: {dice[-1]:.3f})")
    axes.set(xlabel=f"epochs, {name}", ylabel="validation Dice", xlim=(0.8, None), ylim=(0, 1.02))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="center right")
    figure.savefig(path, dpi=110)


def step_memory(plain: bool, o: Any) -> float:
    """Peak memory of a training step in MB."""
    device = choose_device(o.DEVICE)
    side = Side(device, o, plain=plain)
    side.epoch([synthetic_batch(o, device)] * 2)
    return peak_memory(device)


def peak_memory(device: torch.device) -> float:
    """The most memory held so far, in MB: of the GPU, or without one by this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns, called in a fresh process, so that no setting and no memory stays behind."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=exit_on_sigterm) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BaseException:  # what ends this process ends that one, too
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def memory(o: Any) -> list[tuple[str, ...]]:
    """Peak memory of a step, each side in a process of its own."""
    plain, ours = (apart(step_memory, plain, o) for plain in (True, False))
    name = f"peak memory of a step with batch {o.BATCH_SIZE}: MB, once"
    return [row(name, [plain], [ours], higher_is_better=False)]


def largest_batches(o: Any) -> str:
    """The batches that GPUs of three sizes hold, computed: what the backward pass in 16 bits keeps of each image, a
    fifth more for its own work, and 12 bytes a weight (itself, its gradient and its momentum)."""
    model = UNET(features=o.FEATURES)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(images: int) -> int:
        storages = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        x, y = torch.rand(images, 3, 64, 64), torch.ones(images, 1, 64, 64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = BCEDiceLoss()(logits.float(), y)
        del loss
        return sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in weights)

    each = 1.2 * (kept(3) - kept(1)) / 2 / 64**2  # bytes a pixel
    fixed = 12 * sum(parameter.numel() for parameter in model.parameters())
    lines = [
        f"Largest batches, computed ({each:.0f} bytes a pixel):",
        "",
        "| size | 8 GB | 24 GB | 80 GB |",
        "|---|---|---|---|",
    ]
    for height, width in ((160, 240), (640, 960), (1280, 1918)):
        batches = (max(0, int((gigabytes * 1e9 - fixed) / (each * height * width))) for gigabytes in (8, 24, 80))
        lines.append(f"| {height}x{width} | " + " | ".join(map(str, batches)) + " |")
    return "\n".join(lines)


def describe_machine(device: torch.device) -> str:
    """What a table of figures has to say beside them: device, cores, versions, commit."""
    processor = platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return (
        f"{device} ({name}), {count_cores()} cores; Python {platform.python_version()}, torch {torch.__version__}, "
        f"albumentations {A.__version__}; commit {commit or 'unknown'}"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, and write it where OUT says."""
    o = ConstantParser(globals()).parse_args(argv)
    device = choose_device(o.DEVICE)
    o.IMG_DIR, o.MASK_DIR, o.VAL_IMG_DIR, o.VAL_MASK_DIR = sample_if_empty(
        (o.IMG_DIR, o.MASK_DIR, o.VAL_IMG_DIR, o.VAL_MASK_DIR)
    )
    pairs = find_pairs(o.IMG_DIR, o.MASK_DIR)
    rows = []
    if "reading" in o.PARTS:
        rows += reading(pairs, o) + reading_with_workers(pairs, o, device)
    if "step" in o.PARTS:
        rows += memory(o) + stepping(o, device)
    if "epoch" in o.PARTS:
        rows += whole_epoch(o, device, pairs)
    if "learning" in o.PARTS:
        plain, ours = plain_learning(o, device, pairs) if o.PLAIN_EPOCHS else [], our_learning(o)
        rows += learning_rows(plain, ours, o.TARGET_DICE)
        if o.CURVE:
            draw_curves(plain, ours.curve, f"{len(pairs)} images at {o.IMAGE_HEIGHT}x{o.IMAGE_WIDTH}", o.CURVE)

    precision = str(choose_precision("auto", device)).removeprefix("torch.")
    table = [
        f"{describe_machine(device)}; {precision}, {len(pairs)} images, "
        f"{o.IMAGE_HEIGHT}x{o.IMAGE_WIDTH}, batch {o.BATCH_SIZE}, medians of {o.REPEATS}",
        "",
        "| what | plain loop | this repository | times better |",
        "|---|---|---|---|",
        *("| " + " | ".join(line) + " |" for line in rows),
    ]
    if "learning" in o.PARTS:
        table += ["", describe_curve("plain loop", plain), "", describe_curve("this repository", ours.curve)]
    if "step" in o.PARTS:
        table += ["", largest_batches(o)]
    print("\n".join(table))
    if o.OUT:
        Path(o.OUT).write_text("\n".join(table) + "\n")


if __name__ == "__main__":
    exit_on_sigterm()
    run_script(main)
