"""Measure predict.py: each stage by itself, whole runs from JPEG to PNG and to a line for Kaggle, and the memory.

    python -m benchmarks.prediction photos/ masks/ --checkpoint best_checkpoint.pth.tar    # Linux only

Rates take turns, five times; a figure is the median. Processor time is given too: other work disturbs it less. The
slowest stage is what bounds a whole run, whose stages work at the same time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

import predict
import train
from benchmarks.speed import synchronise
from support.device import autocast, count_cores
from support.pairs import find_pairs
from support.reading import read_mask
from support.rle import encode

KAGGLES = 100_064  # images of the competition's test set


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that a call takes, and seconds of processor time, over all threads."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - worked


def peak_memory(images: list[Path], checkpoint: str) -> float:
    """The most memory, in MB, that a process of its own has held when it has predicted these."""
    # Not ru_maxrss, which a process takes over from the one that started it.
    script = "import sys, predict; predict.main(sys.argv[1:]); print(open('/proc/self/status').read())"
    with tempfile.TemporaryDirectory() as out:
        words = [*map(str, images), "--CHECKPOINT", os.path.abspath(checkpoint), "--OUT", out]
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
    parser.add_argument("--number", type=int, default=48, help="images to time (default: %(default)s)")
    parser.add_argument("--memory", type=int, nargs=2, default=[10, 1000], help="images to hold (%(default)s)")
    options = parser.parse_args()
    pairs = find_pairs(options.images, options.masks)

    masks = [read_mask(mask).astype(bool) for _, mask in pairs[:16]]
    rate = len(masks) / statistics.median(seconds(lambda: [encode(mask) for mask in masks])[1] for _ in range(5))
    print(f"{rate:.0f} masks of {masks[0].shape[1]}x{masks[0].shape[0]} encoded in a second of one core")

    device = predict.choose_device()
    workers = count_cores()
    model, size, _, precision = predict.load_network(options.checkpoint, device)
    network = partial(predict.predict_logits, model, flip=False, precision=precision)
    read = partial(predict.read_item, size=size, transform=train.make_transforms()[1])
    chosen = [(pairs[i % len(pairs)][0], None) for i in range(options.number)]
    images = torch.rand(predict.BATCH_SIZE, 3, *size)
    there = images.to(device)
    batches = -(-len(chosen) // predict.BATCH_SIZE)
    seen = next(predict.predict_items([read(chosen[0])], 1, network))
    done = [seen._replace(path=Path(f"{number}.jpg")) for number in range(len(chosen))]  # each writes its own PNG

    def in_threads(function: Callable[[Any], Any], items: list[Any]) -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(predict.in_order(pool, function, items, predict.BATCH_SIZE + workers))

    def whole(finish: Callable[[Any], Any]) -> None:
        amounts = {"batch_size": predict.BATCH_SIZE, "workers": workers}
        list(predict.predict_images(chosen, size, network, finish, **amounts))

    def on_device() -> None:
        with torch.inference_mode(), autocast(device, precision):
            for _ in range(batches):
                model(there)
        synchronise(device)

    with tempfile.TemporaryDirectory() as out:
        to_png, to_line = (
            partial(predict.finish_item, out=folder, overlay=False, threshold=0.0, submission=not folder)
            for folder in (Path(out), None)
        )
        turns = {
            "reading": lambda: in_threads(read, chosen),
            "the network, with nothing copied": on_device,
            "the network, with copies to and from its device": lambda: [network(images) for _ in range(batches)],
            "from logits to PNG": lambda: in_threads(to_png, done),
            "from logits to a line for Kaggle": lambda: in_threads(to_line, done),
            "from JPEG to PNG": lambda: whole(to_png),
            "from JPEG to a line for Kaggle": lambda: whole(to_line),
        }
        network(images)
        rounds = [{name: seconds(work) for name, work in turns.items()} for _ in range(5)]
    print(f"images a second, and ms of processor time each: {device}, {workers} threads, {size[0]}x{size[1]}")
    for name in turns:
        clock, worked = (statistics.median(times[name][i] for times in rounds) / len(chosen) for i in (0, 1))
        hours = f"; {KAGGLES * clock / 3600:.1f} hours for all {KAGGLES:,}" if name.startswith("from JPEG") else ""
        print(f"{name}: {1 / clock:.2f}; {1e3 * worked:.0f} ms{hours}")

    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder, f"{i:06d}{pairs[i % len(pairs)][0].suffix}") for i in range(max(options.memory))]
        for i, link in enumerate(links):
            link.symlink_to(pairs[i % len(pairs)][0].absolute())
        for number in options.memory:
            print(f"{number} images: {peak_memory(links[:number], options.checkpoint):.0f} MB at most")


if __name__ == "__main__":
    main()
