"""What the machine has, and how a run makes use of it."""

import os
import signal

import torch

from errors import BadInput


def count_cores() -> int:
    """Cores that this process may use, which in a container or under a queue are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else Apple's, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"DEVICE {name}", f"not to be had here ({reason})", 'Use "auto" or "cpu"') from error
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in. "auto" is float16 on CUDA and bfloat16 on a CPU that has it in hardware."""
    if device.type == "cuda":
        fits = {"float16": torch.float16, "bfloat16": torch.bfloat16}
        best = torch.float16
    elif device.type == "cpu" and _cpu_has_bfloat16():
        fits = {"bfloat16": torch.bfloat16}
        best = torch.bfloat16
    else:
        fits, best = {}, torch.float32
    fits |= {"auto": best, "float32": torch.float32}
    if name not in fits:
        print(f"PRECISION {name}: {device} does not have it in hardware, so this run uses {best}")
    return fits.get(name, best)


def _cpu_has_bfloat16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):  # from torch 2.11 on
        return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Mixed precision on `device`; nothing changes in float32."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def choose_num_workers(number: int | str, device: torch.device) -> int:
    """Processes that read photographs. "auto" is up to 8 beside a GPU, and none where the CPU trains: its cores are
    busy, and reading takes them a hundredth of the time of learning."""
    if number == "auto":
        return 0 if device.type == "cpu" else min(8, count_cores())
    return int(number)


def leave_signals_to_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
