"""What each setting of a training step brings on this machine, what bounds the step, and how large a batch fits.

    python -m benchmarks.step                                  # a few steps of a small batch, as suits a CPU
    python -m benchmarks.step --BATCH_SIZE 128 --STEPS 30      # as suits a large GPU
    python -m benchmarks.step --ONLY COMPILE                   # the defaults, and the settings with this word
    python -m benchmarks.step --ONLY bounds                    # the defaults, and what bounds them
    python -m benchmarks.step --IMAGE_HEIGHT 1280 --IMAGE_WIDTH 1918 --BATCH_SIZE 4 --STEPS 10

All on a synthetic batch, with train.py's own `train_fn`. Each setting has a process of its own.
"""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.speed import (
    Side,
    apart,
    describe_machine,
    flop_per_image,
    matrix_peak,
    peak_memory,
    seconds,
    show,
    synchronise,
    synthetic_batch,
)
from support.device import choose_device, make_deterministic
from support.errors import BadInput, run_script
from support.options import ConstantParser
from support.signals import exit_on_sigterm

IMAGE_HEIGHT = 160  # pixels
IMAGE_WIDTH = 240  # pixels
FEATURES = [64, 128, 256, 512]  # channels of each level of the U-Net
BATCH_SIZE = 4  # images per step
STEPS = 1  # steps per measurement; 30 and more suit a GPU
REPEATS = 5  # measurements of each setting
ONLY = ""  # a part of the names of what to measure; what none has lists them all
DEVICE = "auto"  # cuda, mps or cpu
OUT = ""  # a file for the tables, in Markdown


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """AdamW in the place of Muon."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, **options)


def change_nothing() -> None:
    """What most settings need before."""


def try_algorithms() -> None:
    """Have cuDNN time its algorithms for each size, and take the fastest."""
    torch.backends.cudnn.benchmark = True


def round_no_convolution() -> None:
    """Have convolutions of float32 on CUDA be just that: as torch comes, they round their factors to TF32."""
    torch.backends.cudnn.allow_tf32 = False


def round_products() -> None:
    """Have float32 matrix products on CUDA round their factors to 10 bits, too."""
    torch.set_float32_matmul_precision("high")


class Setting(NamedTuple):
    """How a step differs from train.py's default: what `Side` takes, and what is called before."""

    options: dict[str, Any] = {}
    prepare: Callable[[], None] = change_nothing


DEFAULT: Final = "train.py's defaults"
BOUNDS: Final = "what bounds a step"
LARGEST: Final = "the largest batch"  # on CUDA; elsewhere memory has no such end
# With float16's scaler the CPU waits for the GPU once a step, but not with another precision or a fused optimizer:
# what these bring includes that.
SETTINGS: dict[str, Setting] = {
    DEFAULT: Setting(),
    "float16": Setting({"precision": "float16"}),
    "bfloat16": Setting({"precision": "bfloat16"}),
    "float32": Setting({"precision": "float32"}),
    "float32 without TF32": Setting({"precision": "float32"}, round_no_convolution),
    "TF32 for Muon's products": Setting({}, round_products),
    "contiguous instead of channels_last": Setting({"layout": torch.contiguous_format}),
    "AdamW": Setting({"optimizer": adamw}),
    "AdamW, fused": Setting({"optimizer": partial(adamw, fused=True)}),
    "cudnn.benchmark": Setting({}, try_algorithms),
    "DETERMINISTIC": Setting({}, make_deterministic),
    "COMPILE": Setting({"compile_mode": "default"}),
    "COMPILE, cudnn.benchmark": Setting({"compile_mode": "default"}, try_algorithms),
    "COMPILE, bfloat16": Setting({"compile_mode": "default", "precision": "bfloat16"}),
    "COMPILE with CUDA graphs (reduce-overhead)": Setting({"compile_mode": "reduce-overhead"}),
    "COMPILE, max-autotune without graphs": Setting({"compile_mode": "max-autotune-no-cudagraphs"}),
    "COMPILE, max-autotune with graphs": Setting({"compile_mode": "max-autotune"}),
}


class Measured(NamedTuple):
    """What a setting came to, or what went wrong."""

    rates: list[float]  # images/s
    memory: float  # MB, at most
    first: float  # seconds of the first step, compiling included
    error: str = ""


def measure(name: str, o: Any) -> Measured:
    """Measure a setting, in a process that is its own."""
    setting = SETTINGS[name]
    setting.prepare()
    device = choose_device(o.DEVICE)
    try:
        side = Side(device, o, **setting.options)
        batches = [synthetic_batch(o, device)] * o.STEPS
        first = seconds(lambda: side.epoch(batches[:1]))
        side.epoch(batches)
        rates = [o.BATCH_SIZE * o.STEPS / seconds(lambda: side.epoch(batches)) for _ in range(o.REPEATS)]
    except Exception as error:  # out of memory, or no compiler: what it is stands in the table
        return Measured([], 0, 0, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200])
    return Measured(rates, peak_memory(device), first)


def compare_settings(o: Any, names: list[str]) -> Iterator[str]:
    """The lines of a table of settings."""
    peak = apart(matrix_peak, choose_device(o.DEVICE))
    work = flop_per_image(o)
    yield f"| setting | images/s | times the first's | % of {peak / 1e12:.3g} TFLOP/s | peak MB | first step, s |"
    yield "|---|---|---|---|---|---|"
    reference = 0.0
    for name in names:
        found = apart(measure, name, o)
        if found.error:
            yield f"| {name} | {found.error} | | | | |"
            continue
        rate = statistics.median(found.rates)
        reference = reference or rate
        yield (
            f"| {name} | {show(found.rates)} | {rate / reference:.2f} | {show([100 * rate * work / peak])} | "
            f"{found.memory:.0f} | {show([found.first])} |"
        )
    yield ""
    yield "The % are of a large bfloat16 matrix product's rate, measured in the same run. The memory includes what"
    yield "the first step tries."


# The kinds of work in a step, and the operations that are of them, by a part of their names.
KINDS: dict[str, str] = {
    "convolutions": "conv",
    "BatchNorm": "batch_norm|native_batch",
    "ReLU": "relu|clamp_min|threshold",
    "pooling": "max_pool",
    "concatenation and its gradient": r"cat\b|slice|narrow|split",
    "matrix products, of the optimizer": "mm$|matmul|addmm",
    "other steps of the optimizer": "_foreach|lerp|optimizer",
    "copies and casts": "copy|_to_|clone|memcpy|memset",
    "everything else": "",
}


def kind_of(operation: str) -> str:
    """The kind that an operation is of, named as the profiler or the dispatcher names it."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, operation, re.I))


class Needs(TorchDispatchMode):
    """Adds up, for each kind, the FLOP of all operations and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.flop: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
        moves = not function.is_view and "empty" not in function.name()
        kind = kind_of(function.name().partition("::")[2].partition(".")[0])
        self.bytes[kind] += sum(tensor.numel() * tensor.element_size() for tensor in tensors) * moves
        if counter := flop_registry.get(function._overloadpacket):
            self.flop[kind] += counter(*args, **(kwargs or {}), out_val=found)
        return found


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes: the best of ten."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        synchronise(device)

    copy()
    return 2 * source.numel() * source.element_size() / min(seconds(copy) for _ in range(10))


def find_bounds(o: Any) -> list[str]:
    """A table of what a step's time goes into, beside the least that the FLOP and the bytes of each kind take."""
    device = choose_device(o.DEVICE)
    peak, rate = matrix_peak(device), bandwidth(device)
    side = Side(device, o)
    batches = [synthetic_batch(o, device)] * max(3, o.STEPS)
    side.epoch(batches)
    whole = seconds(lambda: side.epoch(batches)) / len(batches)
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as found:
        side.epoch(batches)
    taken: dict[str, float] = defaultdict(float)  # seconds a step
    for event in found.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if event.key.startswith("aten::"):
            taken[kind_of(event.key.removeprefix("aten::"))] += own / 1e6 / len(batches)
    with Needs() as needs:
        side.epoch(batches[:1])

    seen = sum(taken.values()) or math.nan  # a container may keep the profiler from the GPU
    lines = ["| work | ms a step | % of all | ms by its FLOP | ms by its bytes |", "|---|---|---|---|---|"]
    least = 0.0
    for kind in sorted(KINDS, key=lambda kind: -taken[kind]):
        by_flop, by_bytes = needs.flop[kind] / peak, needs.bytes[kind] / rate
        least += max(by_flop, by_bytes)
        share = 100 * taken[kind] / seen
        lines.append(
            f"| {kind} | {1e3 * taken[kind]:.2f} | {share:.1f} | {1e3 * by_flop:.2f} | {1e3 * by_bytes:.2f} |"
        )
    return [
        *lines,
        "",
        f"A step takes {1e3 * whole:.2f} ms by the clock; in {1e3 * seen:.2f} of them the profiler "
        f"sees the device at work. Were each kind done at {peak / 1e12:.3g} TFLOP/s, a bfloat16 product's, or at "
        f"{rate / 1e9:.3g} GB/s, a large copy's, whichever takes longer, it would take {1e3 * least:.2f} ms.",
    ]


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, to a sixteenth of it; 0 where not even 1 does."""
    above = 1
    while fits(above):
        above *= 2
    below = above // 2
    while above - below > max(1, below // 16):
        middle = (above + below) // 2
        below, above = (middle, above) if fits(middle) else (below, middle)
    return below


def find_largest_batch(o: Any) -> Iterator[str]:
    """The lines of a table of batches up to the largest that the GPU's memory holds, and how larger ones ended."""
    most_steps, images, found = o.STEPS, o.BATCH_SIZE * o.STEPS, {}

    def fits(batch_size: int) -> bool:
        o.BATCH_SIZE, o.STEPS = batch_size, max(1, min(most_steps, images // batch_size))
        found[batch_size] = apart(measure, DEFAULT, o)
        return not found[batch_size].error

    most = largest(fits)
    yield "| batch | images/s | peak MB |"
    yield "|---|---|---|"
    for batch_size, one in sorted(found.items()):
        yield f"| {batch_size} | {one.error or show(one.rates)} | {one.memory:.0f} |"
    yield ""
    yield f"The largest batch that fits, to a sixteenth: {most}."


def measure_all(o: Any, names: list[str]) -> Iterator[str]:
    """The lines of everything."""
    device = choose_device(o.DEVICE)
    size = f"{o.IMAGE_HEIGHT}x{o.IMAGE_WIDTH}, batch {o.BATCH_SIZE}"
    yield f"{describe_machine(device)}; {size}, medians of {o.REPEATS}"
    yield ""
    yield from compare_settings(o, names)
    if o.ONLY in BOUNDS:
        yield ""
        yield from apart(find_bounds, o)
    if o.ONLY in LARGEST and device.type == "cuda":
        yield ""
        yield from find_largest_batch(o)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables line by line, and write them where OUT says."""
    o = ConstantParser(globals()).parse_args(argv)
    names = [name for name in SETTINGS if name == DEFAULT or o.ONLY in name]
    known = [*SETTINGS, BOUNDS, LARGEST]
    if not any(o.ONLY in name for name in known):
        raise BadInput("ONLY", f"nothing has {o.ONLY!r} in its name", f"The names are: {'; '.join(known)}")
    lines = []
    for line in measure_all(o, names):
        print(line, flush=True)
        lines.append(line)
        if o.OUT:  # each time, since the rest can take long
            Path(o.OUT).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    exit_on_sigterm()
    run_script(main)
