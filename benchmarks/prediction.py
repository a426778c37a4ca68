"""Measure predict.py: each stage by itself, whole runs from JPEG to PNG and to a line for Kaggle, and the memory.

    python -m benchmarks.prediction photos/ masks/ --checkpoint best_checkpoint.pth.tar

The stages take turns, five times; a figure is the median. Processor time is given too: other work disturbs it less.
The slowest stage bounds a whole run, whose stages work at the same time.
"""

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import predict
from benchmarks import common
from support.device import autocast, choose_device, count_cores
from support.networks import load_network
from support.options import OptionParser
from support.pairs import find_pairs
from support.reading import read_mask
from support.rle import encode

KAGGLES = 100_064  # images of the competition's test set


def times(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that a call takes, and seconds of processor time, over all threads."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - worked


def memory_for(words: list[str]) -> float:
    """The most memory, in MB, that a process of its own holds when it predicts with these words."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        predict.main([*words, "--OUT", out])
    return common.peak_memory(torch.device("cpu"))


def measure(o: Any) -> Iterator[str]:
    """The lines of the tables."""
    pairs = find_pairs(o.images, o.masks)
    device, workers = choose_device(), count_cores()
    model, reading, precision = load_network(o.checkpoint, device)
    predictor = predict.Predictor(model, reading, precision, batch_size=predict.BATCH_SIZE, workers=workers)
    chosen = [(pairs[i % len(pairs)][0], None) for i in range(o.number)]
    masks = [read_mask(pairs[i % len(pairs)][1]).astype(bool) for i in range(min(16, o.number))]
    images = torch.rand(predict.BATCH_SIZE, 3, *reading.size)
    there = images.to(device)
    batches = -(-len(chosen) // predict.BATCH_SIZE)
    seen = next(predictor.see(iter([predictor.read(chosen[0])])))
    done = [seen._replace(path=Path(f"{number}.jpg")) for number in range(len(chosen))]  # each writes its own PNG

    def in_threads(function: Callable[[Any], Any], items: list[Any]) -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(predictor.in_order(pool, function, items))

    def on_device() -> None:
        with torch.inference_mode(), autocast(device, precision):
            for _ in range(batches):
                model(there)
        common.synchronise(device)

    with tempfile.TemporaryDirectory() as out:
        to_png, to_line = replace(predictor, out=Path(out)), replace(predictor, kinds=["submission"])
        stages = {
            "reading": lambda: in_threads(predictor.read, chosen),
            "the network, with nothing copied": on_device,
            "the network, with copies to and from its device": lambda: [*map(predictor.logits, [images] * batches)],
            "from logits to PNG": lambda: in_threads(to_png.finish, done),
            "from logits to a line for Kaggle": lambda: in_threads(to_line.finish, done),
            "from JPEG to PNG": lambda: list(to_png.predict(chosen)),
            "from JPEG to a line for Kaggle": lambda: list(to_line.predict(chosen)),
            "encoding alone, one thread": lambda: [encode(masks[i % len(masks)]) for i in range(len(chosen))],
        }
        rounds = common.take_turns(5, *(partial(times, work) for work in stages.values()))
    what = f"{len(chosen)} images at {reading.size[1]}x{reading.size[0]}, {workers} reading and writing"
    yield f"{common.describe_machine(device, precision)}; {what}\n"
    yield from common.table_head("stage", "images/s", "ms of processor time each", f"hours for {KAGGLES:,} images")
    for name, figures in zip(stages, rounds, strict=True):
        clock, worked = (statistics.median(one) / len(chosen) for one in zip(*figures, strict=True))
        yield common.table_row(name, f"{1 / clock:.2f}", f"{1e3 * worked:.0f}", f"{KAGGLES * clock / 3600:.1f}")
    yield ""
    yield from common.table_head("images", "peak MB")
    with tempfile.TemporaryDirectory() as folder:
        links = [Path(folder, f"{i:06d}{pairs[i % len(pairs)][0].suffix}") for i in range(max(o.memory))]
        for i, link in enumerate(links):
            link.symlink_to(pairs[i % len(pairs)][0].absolute())
        for number in o.memory:
            words = [*map(str, links[:number]), "--CHECKPOINT", os.path.abspath(o.checkpoint)]
            yield common.table_row(number, f"{common.apart(memory_for, words):.0f}")


def main(argv: list[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = OptionParser(prog="prediction", description=__doc__)
    parser.add_argument("images")
    parser.add_argument("masks")
    parser.add_argument("--checkpoint", default="best_checkpoint.pth.tar")
    parser.add_argument("--number", type=int, default=48, help="images to time (default: %(default)s)")
    parser.add_argument("--memory", type=int, nargs=2, default=[10, 1000], help="images to hold (%(default)s)")
    common.tell(measure(parser.parse_args(argv)), "")


if __name__ == "__main__":
    common.run(main)
