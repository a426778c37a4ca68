"""Kill a training run at random moments, resume it, and compare the end with that of a run left alone.

    python -m benchmarks.kills --kills 200          # POSIX only, since it forks
    python -m benchmarks.kills --kills 200 --encoder tf_efficientnet_lite0
    python -m benchmarks.kills --kills 200 --plain  # with a plain torch.save in place of ours: this must fail

Three of four kills are aimed at a save. It prints the seed and what was going on at each kill.
"""

import collections
import contextlib
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # noqa: F401  here, so that not every child has to

import train
from benchmarks import common
from prepare_data import FOLDERS
from support.checkpoint import CheckpointWriter, read_checkpoint
from support.errors import BadInput
from support.options import OptionParser
from support.sample import make_sample

PHASES = ["starting", "training", "saving", "finished"]


def announce(phase: mmap.mmap) -> None:
    """Have a child say in shared memory what it is doing, by wrapping what it calls."""

    def during(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            phase[0] = PHASES.index(name)
            try:
                return function(*args, **kwargs)
            finally:
                phase[0] = PHASES.index("training")

        return wrapped

    train.Run.__enter__ = during("starting", train.Run.__enter__)
    CheckpointWriter._write = during("saving", CheckpointWriter._write)


def write_plainly(writer: CheckpointWriter, data: memoryview, is_best: bool) -> None:
    """What most training scripts do: write onto the old file."""
    for path in [writer.latest, *[writer.best] * is_best]:
        with open(path, "wb") as file:
            for start in range(0, len(data), 4096):
                file.write(data[start : start + 4096])
                file.flush()


def in_child(arguments: list[str], phase: mmap.mmap, plain: bool) -> int:
    """Train in a forked child, whose process number is returned."""
    phase[0] = 0
    child = os.fork()
    if child:
        return child
    try:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            if plain:
                CheckpointWriter._write = write_plainly
            announce(phase)
            train.main(arguments)
    except BadInput as error:
        print(error)
    finally:
        phase[0] = PHASES.index("finished")
        os._exit(0)


def wait_for(phase: mmap.mmap, wanted: str) -> None:
    """Wait until this is the child's phase, or the child has finished."""
    while PHASES[phase[0]] not in (wanted, "finished"):
        time.sleep(0.0001)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, to the bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def end_of(folder: Path) -> dict[str, Any]:
    """What the end of a run is compared by."""
    state = read_checkpoint(folder / "my_checkpoint.pth.tar")
    return {name: state[name] for name in ("state_dict", "optimizer", "epoch", "step", "best_dice")}


def kill_and_compare(root: Path, most: int, rng: random.Random, plain: bool, encoder: str) -> bool:
    """Kill a run `most` times, print how each ended, and return whether all ended as a run left alone."""
    phase = mmap.mmap(-1, 1)
    # Rendered apart: the killed children of a process with a progress bar leave its lock closed for the others.
    common.apart(make_sample, root / "data", 1, 1, 12)
    arguments = common.folder_constants(*(root / "data" / name for name in FOLDERS))
    network = {"ENCODER": encoder, "FEATURES": [4] * 5} if encoder else {"FEATURES": [8, 16]}
    arguments += common.constants(**network, CACHE_DIR=root / "cache", IMAGE_HEIGHT=32, IMAGE_WIDTH=48)
    arguments += common.constants(NUM_EPOCHS=2, NUM_SAVED_IMAGES=2, SAVE_MINUTES=1e-9)  # a save after each step
    began = time.monotonic()
    os.waitpid(in_child([*arguments, "--OUT_DIR", str(root / "whole")], phase, plain=False), 0)
    duration = time.monotonic() - began
    whole = end_of(root / "whole")

    kills: collections.Counter[str] = collections.Counter()
    lost = different = early = 0
    while kills.total() < most:
        out = root / f"killed_{kills.total()}_{early}"
        resumed = [*arguments, "--OUT_DIR", str(out)]
        child = in_child(resumed, phase, plain)
        if kills.total() % 4:  # in a save: wait for one of the run's 14, then a moment of it
            for _ in range(rng.randint(1, 12)):
                wait_for(phase, "saving")
                wait_for(phase, "training")
            wait_for(phase, "saving")
            time.sleep(rng.uniform(0, 0.002))
        else:
            time.sleep(rng.uniform(0, duration))
        name = PHASES[phase[0]]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if name == "finished":
            early += 1
            duration *= 0.95  # the first run may have been slow
            continue
        kills[name] += 1

        if (out / "my_checkpoint.pth.tar").exists():
            resumed.append("--LOAD_MODEL")
            try:
                read_checkpoint(out / "my_checkpoint.pth.tar")
            except BadInput:
                lost += 1
                continue
        os.waitpid(in_child(resumed, phase, plain), 0)
        different += not same(end_of(out), whole)
    print(", ".join(f"{name} {kills[name]}" for name in PHASES[:-1]))
    print(f"{kills.total()} kills: {lost} checkpoints lost, {different} resumed runs that ended differently")
    print(f"{time.monotonic() - began:.0f} seconds")
    return not (lost or different)


def main(argv: list[str] | None = None) -> None:
    """Kill, resume and compare; exit status 1 if anything was lost."""
    parser = OptionParser(prog="kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--plain", action="store_true", help="use a plain torch.save")
    parser.add_argument("--encoder", default="", help="one of timm's networks, with its weights")
    o = parser.parse_args(argv)
    torch.set_num_threads(1)  # so that a forked child can go on with it
    print(f"{common.describe_machine(torch.device('cpu'))}; seed {o.seed}", flush=True)
    with tempfile.TemporaryDirectory() as root:
        if not kill_and_compare(Path(root), o.kills, random.Random(o.seed), o.plain, o.encoder):
            sys.exit(1)


if __name__ == "__main__":
    common.run(main)
