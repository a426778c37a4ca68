"""What the machine has, and how a run makes use of it."""

import copy
import ctypes
import os
import platform
import time
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from model import UNET
from support.errors import BadInput, warn
from support.reading import Size


def count_cores() -> int:
    """Cores that this process may use, which in a container or under a queue are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_memory_back() -> None:
    """Have large blocks that are freed go back to the system at once, where the C library is glibc. It would keep
    more and more of them, in pieces, the longer a process with several threads works."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD: blocks of a MiB and more


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else Apple's, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cuda", "mps", "cpu"):
            raise NotImplementedError("not cuda, mps or cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        finding = f"not available here ({str(error).splitlines()[0]})"
        raise BadInput(f"DEVICE {name}", finding, 'Use "auto" or "cpu"') from error
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in. "auto" is float16 on CUDA, and bfloat16 on a CPU that is faster with it."""
    fits = {"float32": torch.float32, "auto": torch.float32}
    if device.type == "cuda":
        fits |= {"float16": torch.float16, "auto": torch.float16}
        if torch.cuda.is_bf16_supported(including_emulation=False):
            fits["bfloat16"] = torch.bfloat16
    elif device.type == "cpu" and _cpu_can("avx512_bf16"):
        fits["bfloat16"] = torch.bfloat16
        # AMX multiplies bfloat16 many times faster than float32, and AMD's AVX512 twice as fast. Intel's AVX512
        # without AMX has half the rate of float32: 0.20 against 0.36 TFLOP/s on two cores of an Emerald Rapids.
        if _cpu_can("amx_tile") or not _cpu_is_intel():
            fits["auto"] = torch.bfloat16
    if name not in fits:
        uses = str(fits["auto"]).removeprefix("torch.")
        warn(f"PRECISION {name}", f"{device} does not have it in hardware", f"This run uses {uses}")
    return fits.get(name, fits["auto"])


def _cpu_can(capability: str) -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get(capability))
    return getattr(torch.cpu, f"_is_{capability}_supported")()  # torch before 2.12 or so


def _cpu_is_intel() -> bool:
    info = Path("/proc/cpuinfo")
    return "GenuineIntel" in (info.read_text() if info.exists() else platform.processor())


def set_up_cuda(deterministic: bool) -> None:
    """Have CUDA repeat a run bit for bit, at a price in speed (a CPU does so anyway, with as many threads), or have
    cuDNN time its algorithms for each size. Float32 products, Muon's, are rounded to TF32, as convolutions are."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = True


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Mixed precision on `device`; nothing changes in float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def choose_memory_format(device: torch.device, precision: torch.dtype) -> torch.memory_format:
    """Channels last, which mixed precision is faster with. So is float32 on an Intel CPU (15 % on the one above),
    but on an AMD one it can take twice as long."""
    slower = device.type == "cpu" and precision == torch.float32 and not _cpu_is_intel()
    return torch.contiguous_format if slower else torch.channels_last


def time_step(model: UNET, precision: torch.dtype, size: Size, batch: int) -> float:
    """Seconds of a training step with `batch` images of `size`, the faster of two after one to warm up."""
    device = next(model.parameters()).device
    channels = model.arguments["in_channels"]
    images = torch.rand(batch, channels, *size, generator=torch.Generator()).to(device)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        with autocast(device, precision):
            loss = model(images).float().sum()
        loss.backward()
        float(next(model.parameters()).grad.sum())  # a GPU is waited for
        times.append(time.perf_counter() - began)
    return min(times[1:])


def choose_num_threads(number: int | str, model: UNET, precision: torch.dtype, size: Size, batch: int) -> int:
    """Threads for a CPU to train `model` with. "auto" times a few steps on `batch` images of `size` with all and
    with one, and is the faster: beside other work on the same cores, two threads that wait for each other can take
    six times as long as one. The number changes how sums are rounded, and so the weights in their last digits."""
    if number != "auto":
        return int(number)
    model, chosen, seconds = copy.deepcopy(model).train(), torch.get_num_threads(), {}
    for threads in (chosen, 1):
        torch.set_num_threads(threads)
        seconds[threads] = time_step(model, precision, size, batch)
    torch.set_num_threads(chosen)
    return min(seconds, key=seconds.get)


def choose_num_workers(number: int | str, device: torch.device, processes: int = 1) -> int:
    """Processes that read images. "auto" is up to 16 beside a GPU, and none where the CPU trains: its cores are
    busy, and reading takes them a hundredth of the time of learning. Several training processes share the cores."""
    if number == "auto":
        return 0 if device.type == "cpu" else min(16, max(1, count_cores() // processes))
    if int(number) > count_cores():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # torch's own words for it, in two lines
        warn(f"NUM_WORKERS {number}", f"more than the {count_cores()} cores here", "Fewer are likely to be faster")
    return int(number)
