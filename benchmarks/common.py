"""What the benchmarks share: the two training loops, measuring, tables, and the machine that they ran on."""

import contextlib
import io
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import train
from losses import BCEDiceLoss
from model import UNET
from support.device import choose_memory_format, choose_precision, count_cores
from support.errors import BadInput, exit_on_sigterm, run_script
from support.reading import Pair


class PlainDataset(Dataset):
    """The tutorial's: both files are decoded in full for every sample."""

    def __init__(self, pairs: list[Pair], size: tuple[int, int]) -> None:
        self.pairs = pairs
        augment = [A.Resize(*size), A.Rotate(limit=35, p=1.0), A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.1)]
        self.transform = A.Compose([*augment, A.Normalize(mean=0, std=1, max_pixel_value=255), ToTensorV2()])

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = np.array(Image.open(self.pairs[index][0]).convert("RGB"))
        mask = np.array(Image.open(self.pairs[index][1]).convert("L"), dtype=np.float32)
        mask[mask == 255.0] = 1.0
        augmented = self.transform(image=image, mask=mask)
        return augmented["image"], augmented["mask"]


def plain_loader(pairs: list[Pair], batch_size: int, size: tuple[int, int]) -> DataLoader:
    """The tutorial's loader, with two workers."""
    cv2.setNumThreads(1)  # here: forked while OpenCV's threads are at work, a worker would wait for ever
    options = {"shuffle": True, "num_workers": 2, "pin_memory": torch.cuda.is_available()}
    return DataLoader(PlainDataset(pairs, size), batch_size, **options)


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


def make_network(features: list[int], encoder: str = "") -> UNET:
    """The network, with one of timm's as its way down if `encoder` names it. Raises BadInput if they don't fit."""
    try:
        return UNET(features=features, encoder=encoder or None)
    except ValueError as error:
        raise BadInput("ENCODER", str(error), "Give other FEATURES") from error


class Side:
    """One side of a comparison: the plain loop or train.py's, with its network and all that trains it. `precision`,
    `layout`, `optimizer` and `compile_mode` take the place of train.py's own choices; `encoder` is one of timm's
    networks, with random weights."""

    def __init__(
        self,
        device: torch.device,
        features: list[int],
        *,
        plain: bool = False,
        precision: str = "auto",
        layout: torch.memory_format | None = None,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        compile_mode: str = "",
        encoder: str = "",
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.plain, self.device = plain, device
        self.precision = choose_precision(precision, device)
        layout = layout or (torch.contiguous_format if plain else choose_memory_format(device, self.precision))
        self.model = make_network(features, "" if plain else encoder).to(device, memory_format=layout)
        if compile_mode:
            self.model.compile(mode=compile_mode, dynamic=False)
        adam = partial(torch.optim.Adam, lr=1e-4)  # the tutorial's
        muon = partial(train.make_optimizer, learning_rate=train.LEARNING_RATE)
        self.optimizer = (optimizer or muon)(self.model) if not plain else adam(self.model.parameters())
        float16 = device.type == "cuda" if plain else self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=float16)

    def epoch(self, loader: Any) -> None:
        """Train on the batches of `loader`, and return when the device is done."""
        if self.plain:
            plain_epoch(loader, self.model, self.optimizer, self.scaler)
        else:
            options = {"precision": self.precision, "show_bar": sys.stderr.isatty()}  # as the plain loop's
            train.train_fn(loader, self.model, self.optimizer, BCEDiceLoss(), self.scaler, **options)
        synchronise(self.device)


class Learning(NamedTuple):
    """How a run of train.py went, in seconds."""

    curve: list[tuple[float, float]]  # after each epoch: training so far, without validation, and the Dice
    first_step: float  # from the start until the first step is done
    end: float  # from the start until the end


def watched_run(argv: list[str], began: float) -> Learning:
    """Run train.py's own `main` in silence and note how it goes, counting from `began`, a time.time(). For a
    process of its own: it changes the module `train`."""
    spent, curve, first_step = 0.0, [], 0.0
    train_fn, check_accuracy = train.train_fn, train.check_accuracy

    def timed(*args: Any, **kwargs: Any) -> float:
        nonlocal spent
        epoch_began = time.perf_counter()
        loss = train_fn(*args, **kwargs)
        spent += time.perf_counter() - epoch_began
        return loss

    def noted(*args: Any, **kwargs: Any) -> dict[str, float]:
        scores = check_accuracy(*args, **kwargs)
        curve.append((spent, scores["dice"]))
        return scores

    def after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal first_step
        if not first_step:
            synchronise(optimizer.param_groups[0]["params"][0].device)
            first_step = time.time() - began

    train.train_fn, train.check_accuracy = timed, noted
    register_optimizer_step_post_hook(after_step)
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(argv)
    return Learning(curve, first_step, time.time() - began)


def constants(**values: Any) -> list[str]:
    """Constants as words of train.py's command line."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return [word for name, value in lists.items() for word in (f"--{name}", *map(str, value))]


def folder_constants(*folders: str | Path) -> list[str]:
    """train.py's options for the images and masks of training, then of validation."""
    names = ("TRAIN_IMG_DIR", "TRAIN_MASK_DIR", "VAL_IMG_DIR", "VAL_MASK_DIR")
    return constants(**dict(zip(names, folders, strict=True)))


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns, called in a fresh process, so that no setting and no memory stays behind."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=exit_on_sigterm) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BaseException:  # what ends this process ends that one, too
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def synchronise(device: torch.device) -> None:
    """Wait for a GPU's work to end."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes on the device: the best of ten after one that isn't counted."""

    def done() -> None:
        work()
        synchronise(device)

    done()
    return min(seconds(done) for _ in range(10))


def take_turns(repeats: int, *sides: Callable[[], Any]) -> list[list[Any]]:
    """Each side's figures, measured in turn, after one round that isn't counted."""
    rounds = [[side() for side in sides] for _ in range(repeats + 1)]
    return [list(figures) for figures in zip(*rounds[1:], strict=True)]


def synthetic_batch(o: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images, uint8 (N, 3, H, W), and masks (N, H, W) of foreground alone, on the device."""
    shape = (o.BATCH_SIZE, o.IMAGE_HEIGHT, o.IMAGE_WIDTH)
    images = torch.randint(256, (shape[0], 3, *shape[1:]), dtype=torch.uint8, device=device)
    return images, torch.ones(shape, dtype=torch.bool, device=device)


def peak_precision(device: torch.device) -> torch.dtype:
    """What the device multiplies matrices fastest in: without the instructions, bfloat16 takes a CPU minutes."""
    return torch.bfloat16 if device.type == "cuda" else choose_precision("auto", device)


def matrix_peak(device: torch.device) -> float:
    """FLOP/s of a large matrix product in the `peak_precision`."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(n, n, device=device).to(peak_precision(device)) for _ in range(2))
    return 2 * n**3 / fastest(lambda: a @ b, device)


def flop_per_image(o: Any) -> float:
    """FLOP of one image, forward and backward, counted."""
    with FlopCounterMode(display=False) as counter:
        model = make_network(o.FEATURES, o.ENCODER)
        model(torch.rand(1, 3, o.IMAGE_HEIGHT, o.IMAGE_WIDTH)).sum().backward()
    return counter.get_total_flops()


def peak_memory(device: torch.device) -> float:
    """The most memory held so far, in MB: of the GPU, or without one by this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where a process inherits its parent's ru_maxrss
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) * 1024 / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def show(figures: Sequence[float]) -> str:
    """The median with the range; nothing for a NaN, which stands for what was left out."""
    low, middle, high = (
        np.format_float_positional(value, 3, unique=False, fractional=False, trim="-")
        for value in (min(figures), statistics.median(figures), max(figures))
    )
    if len(figures) > 1:
        return f"{middle} ({low} to {high})"
    return {"nan": "", "inf": "never"}.get(middle, middle)


def table_row(*cells: Any) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def table_head(*names: str) -> list[str]:
    """The first two lines of a table in Markdown."""
    return [table_row(*names), "|---" * len(names) + "|"]


def describe_machine(device: torch.device, precision: torch.dtype | None = None) -> str:
    """What a table of figures has to say beside them: device, cores, threads, precision, versions, commit."""
    processor = platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor
    commit, command = "", ["git", "describe", "--always", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError):  # no git
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    precision = precision or choose_precision("auto", device)
    return (
        f"{device} ({name}), {count_cores()} cores, {torch.get_num_threads()} threads, "
        f"{str(precision).removeprefix('torch.')}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"albumentations {A.__version__}; commit {commit or 'unknown'}"
    )


def tell(lines: Iterable[str], out: str) -> None:
    """Print the lines as they come, and write them into the file `out`, if one is named."""
    with open(out or os.devnull, "w", encoding="utf-8") as file:
        for line in lines:
            print(line, flush=True)
            print(line, file=file, flush=True)


def run(main: Callable[[], None]) -> None:
    """Run a benchmark's `main` as a script, which SIGTERM ends as Ctrl-C does."""
    run_script(main)
