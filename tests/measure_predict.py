"""Measure predict.py: its rate against the bare network's, its memory, and the masks that it encodes in a second.

    python tests/measure_predict.py photos/ masks/ --checkpoint best_checkpoint.pth.tar    # Linux only

The two rates take turns, five times; a figure is the median. Processor time is given too: other work on the machine
disturbs it less.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent.parent)]

import torch

import predict
from machine import count_cores
from reading import find_pairs, read_mask
from rle import encode


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that a call takes, and seconds of processor time, over all threads."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - worked


def peak_memory(photographs: list[Path], checkpoint: str) -> float:
    """The most memory, in MB, that a process of its own has held when it has predicted these."""
    # Not ru_maxrss, which a process takes over from the one that started it.
    script = "import sys, predict; predict.main(sys.argv[1:]); print(open('/proc/self/status').read())"
    with tempfile.TemporaryDirectory() as out:
        words = [*map(str, photographs), "--CHECKPOINT", os.path.abspath(checkpoint), "--OUT", out]
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            cwd=Path(predict.__file__).parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    return int(done.stdout.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images")
    parser.add_argument("masks")
    parser.add_argument("--checkpoint", default="best_checkpoint.pth.tar")
    parser.add_argument("--number", type=int, default=48, help="photographs to time (default: %(default)s)")
    parser.add_argument("--memory", type=int, nargs=2, default=[10, 1000], help="photographs to hold (%(default)s)")
    options = parser.parse_args()
    pairs = find_pairs(options.images, options.masks)

    masks = [read_mask(mask).astype(bool) for _, mask in pairs[:16]]
    rate = len(masks) / statistics.median(seconds(lambda: [encode(mask) for mask in masks])[1] for _ in range(5))
    print(f"{rate:.0f} masks of {masks[0].shape[1]}x{masks[0].shape[0]} encoded in a second of one core")

    device = predict.choose_device()
    model, size, _, precision = predict.load_network(options.checkpoint, device)
    network = partial(predict.predict_logits, model, flip=False, precision=precision)
    images = torch.rand(predict.BATCH_SIZE, 3, *size)
    chosen = [(pairs[i % len(pairs)][0], None) for i in range(options.number)]
    batches = -(-len(chosen) // predict.BATCH_SIZE)
    bare, whole = [], []  # seconds an image, by the clock and of processor time
    with tempfile.TemporaryDirectory() as out:
        finish = partial(predict.finish_item, out=Path(out), overlay=False, threshold=0.0, submission=False)
        arguments = {"batch_size": predict.BATCH_SIZE, "workers": count_cores()}
        network(images)
        for _ in range(5):
            times = seconds(lambda: [network(images) for _ in range(batches)])
            bare.append([time / batches / len(images) for time in times])
            times = seconds(lambda: list(predict.predict_photographs(chosen, size, network, finish, **arguments)))
            whole.append([time / len(chosen) for time in times])
    bare, whole = ([statistics.median(times) for times in zip(*side, strict=True)] for side in (bare, whole))
    print(
        f"{1 / whole[0]:.2f} photographs a second from disk to PNG, {1 / bare[0]:.2f} by the bare network: "
        f"{bare[0] / whole[0]:.1%} ({bare[1] / whole[1]:.1%} by processor time), on {device} at {size[0]}x{size[1]}"
    )

    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder, f"{i:06d}{pairs[i % len(pairs)][0].suffix}") for i in range(max(options.memory))]
        for i, link in enumerate(links):
            link.symlink_to(pairs[i % len(pairs)][0].absolute())
        for number in options.memory:
            print(f"{number} photographs: {peak_memory(links[:number], options.checkpoint):.0f} MB at most")


if __name__ == "__main__":
    main()
