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
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import common
from support.device import choose_device, set_up_cuda
from support.errors import BadInput
from support.options import ConstantParser

IMAGE_HEIGHT = 160  # pixels
IMAGE_WIDTH = 240  # pixels
FEATURES = [64, 128, 256, 512]  # channels of each level of the U-Net
ENCODER = ""  # one of timm's networks for the way down; FEATURES are then one for each time it halves an image
BATCH_SIZE = 4  # images per step
STEPS = 1  # steps per measurement; 30 and more suit a GPU
REPEATS = 5  # measurements of each setting
ONLY = ""  # a part of the names of what to measure; what none has lists them all
DEVICE = "auto"  # cuda, mps or cpu
OUT = ""  # a file for the tables, in Markdown


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """AdamW in the place of Muon."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, **options)


def forbid_tf32(convolutions: bool = True) -> None:
    """Have products of float32 on CUDA, Muon's, be just that, and `convolutions`, too: by default both round their
    factors to TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = not convolutions


def take_first_algorithm() -> None:
    """Have cuDNN take the algorithm that it thinks fastest, and not time any."""
    torch.backends.cudnn.benchmark = False


DEFAULT: Final = "train.py's defaults"
BOUNDS: Final = "what bounds a step"
LARGEST: Final = "the largest batch"  # on CUDA; elsewhere memory has no such end
# How a step differs from train.py's default: what `Side` takes, and what is called before. With float16's scaler
# the CPU waits for the GPU once a step, but not with another precision or a fused optimizer: that counts, too.
SETTINGS: dict[str, tuple[dict[str, Any], Callable[[], None] | None]] = {
    DEFAULT: ({}, None),
    "float16": ({"precision": "float16"}, None),
    "bfloat16": ({"precision": "bfloat16"}, None),
    "float32": ({"precision": "float32"}, None),
    "float32 without TF32": ({"precision": "float32"}, forbid_tf32),
    "Muon's products without TF32": ({}, partial(forbid_tf32, convolutions=False)),
    "contiguous instead of channels_last": ({"layout": torch.contiguous_format}, None),
    "AdamW": ({"optimizer": adamw}, None),
    "AdamW, fused": ({"optimizer": partial(adamw, fused=True)}, None),
    "without cudnn.benchmark": ({}, take_first_algorithm),
    "DETERMINISTIC": ({}, partial(set_up_cuda, deterministic=True)),
    "COMPILE": ({"compile_mode": "default"}, None),
    "COMPILE, bfloat16": ({"compile_mode": "default", "precision": "bfloat16"}, None),
    "COMPILE with CUDA graphs (reduce-overhead)": ({"compile_mode": "reduce-overhead"}, None),
    "COMPILE, max-autotune without graphs": ({"compile_mode": "max-autotune-no-cudagraphs"}, None),
    "COMPILE, max-autotune with graphs": ({"compile_mode": "max-autotune"}, None),
}


class Measured(NamedTuple):
    """What a setting came to, or what went wrong."""

    rates: list[float]  # images/s
    memory: float  # MB, at most
    first: float  # seconds of the first step, compiling included
    precision: torch.dtype | None
    error: str = ""


def measure(name: str, o: Any) -> Measured:
    """Measure a setting, in a process of its own."""
    options, prepare = SETTINGS[name]
    set_up_cuda(deterministic=False)  # as train.py does
    if prepare:
        prepare()
    device = choose_device(o.DEVICE)
    try:
        side = common.Side(device, o.FEATURES, encoder=o.ENCODER, **options)
        batches = [common.synthetic_batch(o, device)] * o.STEPS
        first = common.seconds(lambda: side.epoch(batches[:1]))
        side.epoch(batches)
        rates = [o.BATCH_SIZE * o.STEPS / common.seconds(lambda: side.epoch(batches)) for _ in range(o.REPEATS)]
    except Exception as error:  # out of memory, or no compiler: what it is stands in the table
        return Measured([], 0, 0, None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200])
    return Measured(rates, common.peak_memory(device), first, side.precision)


def compare_settings(o: Any, names: list[str]) -> Iterator[str]:
    """The lines of a table of settings."""
    peak, work, reference = common.apart(common.matrix_peak, choose_device(o.DEVICE)), common.flop_per_image(o), 0.0
    share = f"% of {peak / 1e12:.3g} TFLOP/s"
    yield from common.table_head(
        "setting", "precision", "images/s", "times the first's", share, "peak MB", "first step, s"
    )
    for name in names:
        found = common.apart(measure, name, o)
        if found.error:
            yield common.table_row(name, "", found.error, *[""] * 4)
            continue
        rate = statistics.median(found.rates)
        reference = reference or rate
        yield common.table_row(
            name,
            str(found.precision).removeprefix("torch."),
            common.show(found.rates),
            f"{rate / reference:.2f}",
            common.show([100 * rate * work / peak]),
            f"{found.memory:.0f}",
            common.show([found.first]),
        )
    yield "\nThe % are of a large matrix product's rate, in the fastest precision, measured in the same run."
    yield "The memory includes what the first step tries."


# The kinds of work in a step, and a part of the names of their operations.
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
    """The kind of an operation, named as the profiler or the dispatcher names it."""
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
        self.bytes[kind] += sum(tensor.nbytes for tensor in tensors) * moves
        if counter := flop_registry.get(function._overloadpacket):
            self.flop[kind] += counter(*args, **(kwargs or {}), out_val=found)
        return found


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / common.fastest(lambda: target.copy_(source), device)


def find_bounds(o: Any) -> list[str]:
    """A table of what a step's time goes into, beside the least that the FLOP and the bytes of each kind take."""
    device = choose_device(o.DEVICE)
    peak, rate = common.matrix_peak(device), bandwidth(device)
    side = common.Side(device, o.FEATURES, encoder=o.ENCODER)
    batches = [common.synthetic_batch(o, device)] * max(3, o.STEPS)
    side.epoch(batches)
    whole = common.seconds(lambda: side.epoch(batches)) / len(batches)
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
    lines, least = common.table_head("work", "ms a step", "% of all", "ms by its FLOP", "ms by its bytes"), 0.0
    for kind in sorted(KINDS, key=lambda kind: -taken[kind]):
        by_flop, by_bytes = needs.flop[kind] / peak, needs.bytes[kind] / rate
        least += max(by_flop, by_bytes)
        times = (f"{1e3 * value:.2f}" for value in (by_flop, by_bytes))
        lines.append(common.table_row(kind, f"{1e3 * taken[kind]:.2f}", f"{100 * taken[kind] / seen:.1f}", *times))
    return [
        *lines,
        f"\nA step takes {1e3 * whole:.2f} ms by the clock; in {1e3 * seen:.2f} of them the profiler "
        f"sees the device at work. Were each kind done at {peak / 1e12:.3g} TFLOP/s, a matrix product's, or at "
        f"{rate / 1e9:.3g} GB/s, a large copy's, whichever takes longer, it would take {1e3 * least:.2f} ms.",
    ]


def largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, to a sixteenth of it; 0 if not even 1 does."""
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
        found[batch_size] = common.apart(measure, DEFAULT, o)
        return not found[batch_size].error

    most = largest(fits)
    yield from common.table_head("batch", "images/s", "peak MB")
    for batch_size, one in sorted(found.items()):
        yield common.table_row(batch_size, one.error or common.show(one.rates), f"{one.memory:.0f}")
    yield f"\nThe largest batch that fits, to a sixteenth: {most}."


def measure_all(o: Any, names: list[str]) -> Iterator[str]:
    """The lines of everything."""
    device = choose_device(o.DEVICE)
    size = f"{o.IMAGE_WIDTH}x{o.IMAGE_HEIGHT}, batch {o.BATCH_SIZE}"
    yield f"{common.describe_machine(device)}; {size}, medians of {o.REPEATS}\n"
    yield from compare_settings(o, names)
    if o.ONLY in BOUNDS:
        yield ""
        yield from common.apart(find_bounds, o)
    if o.ONLY in LARGEST and device.type == "cuda":
        yield ""
        yield from find_largest_batch(o)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the tables line by line, and write them into OUT."""
    o = ConstantParser(globals()).parse_args(argv)
    names = [name for name in SETTINGS if name == DEFAULT or o.ONLY in name]
    known = [*SETTINGS, BOUNDS, LARGEST]
    if not any(o.ONLY in name for name in known):
        raise BadInput("ONLY", f"nothing has {o.ONLY!r} in its name", f"The names are: {'; '.join(known)}")
    common.tell(measure_all(o, names), o.OUT)


if __name__ == "__main__":
    common.run(main)
