"""Measure predict.py: its rate against the bare network's, its memory, and the masks that it encodes in a second.

    python tests/measure_predict.py photos/ masks/ --checkpoint best_checkpoint.pth.tar    # POSIX only

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


def seconds(work: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_memory(photographs: list[Path], checkpoint: str) -> float:
    """The most memory, in MB, that the real command has held while it predicted these."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, predict.__file__, *map(str, photographs), "--CHECKPOINT", checkpoint]
        process = subprocess.Popen([*command, "--OUT", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise RuntimeError(f"predict.py ended with status {status}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


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
    rate = len(masks) / statistics.median(seconds(lambda: [encode(mask) for mask in masks]) for _ in range(5))
    print(f"{rate:.0f} masks of {masks[0].shape[1]}x{masks[0].shape[0]} encoded a second, on one core")

    device = predict.choose_device()
    model, size, precision = predict.load_network(options.checkpoint, device)
    network = partial(predict.predict_logits, model, flip=False, precision=precision)
    images = torch.rand(predict.BATCH_SIZE, 3, *size)
    chosen = [(pairs[i % len(pairs)][0], None) for i in range(options.number)]
    batches = -(-len(chosen) // predict.BATCH_SIZE)
    bare, whole, work = [], [], []
    with tempfile.TemporaryDirectory() as out:
        finish = partial(predict.finish_item, out=Path(out), overlay=False, threshold=0.0, submission=False)
        arguments = {"batch_size": predict.BATCH_SIZE, "workers": count_cores()}
        network(images)
        for _ in range(5):
            began = time.process_time()
            taken = seconds(lambda: [network(images) for _ in range(batches)])
            bare.append(batches * predict.BATCH_SIZE / taken)
            between = time.process_time()
            taken = seconds(lambda: list(predict.predict_photographs(chosen, size, network, finish, **arguments)))
            whole.append(len(chosen) / taken)
            ended = time.process_time()
            work.append((between - began) / batches / predict.BATCH_SIZE * len(chosen) / (ended - between))
    ratio = statistics.median(w / b for w, b in zip(whole, bare, strict=True))
    print(
        f"{statistics.median(whole):.2f} photographs a second from disk to PNG, {statistics.median(bare):.2f} "
        f"by the bare network: {ratio:.1%} ({statistics.median(work):.1%} by processor time), on {device} at "
        f"{size[0]}x{size[1]}"
    )

    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder, f"{i:06d}{pairs[i % len(pairs)][0].suffix}") for i in range(max(options.memory))]
        for i, link in enumerate(links):
            link.symlink_to(pairs[i % len(pairs)][0].absolute())
        for number in options.memory:
            print(f"{number} photographs: {peak_memory(links[:number], options.checkpoint):.0f} MB at most")


if __name__ == "__main__":
    main()
