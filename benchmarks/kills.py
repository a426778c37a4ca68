"""Kill a training run at random moments, resume it, and compare the end with that of a run left alone.

    python -m benchmarks.kills --kills 200          # POSIX only, since it forks
    python -m benchmarks.kills --kills 200 --plain  # with a plain torch.save in place of ours: this must fail

Three of four kills are aimed at a save. It prints the seed and what was going on at each kill.
"""

import argparse
import collections
import contextlib
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.utils.tensorboard  # noqa: F401  here, so that not every child has to

import train
from support import checkpoint
from support.errors import BadInput
from tests.conftest import write_pairs

PHASES = ["starting", "training", "writing", "syncing", "verifying", "renaming", "finished"]


def announce(phase: mmap.mmap) -> None:
    """Have a child say in shared memory what it is doing, by wrapping what it calls."""

    def during(name: str, function: Callable, after: str) -> Callable:
        def wrapped(*args, **kwargs):
            if function in (sync, replace) and PHASES[phase[0]] not in PHASES[2:6]:
                return function(*args, **kwargs)  # of other files than checkpoints
            phase[0] = PHASES.index(name)
            try:
                return function(*args, **kwargs)
            finally:
                phase[0] = PHASES.index(after)

        return wrapped

    sync, replace = os.fsync, os.replace
    train.Run.__enter__ = during("starting", train.Run.__enter__, "training")
    checkpoint._write = during("writing", checkpoint._write, "training")
    os.fsync = during("syncing", os.fsync, "verifying")
    os.replace = during("renaming", os.replace, "writing")


def write_plainly(data: memoryview, path: Path) -> None:
    """What most training scripts do: write onto the old file."""
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
        with (
            open(os.devnull, "w") as silence,
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            if plain:
                checkpoint._write = write_plainly
            announce(phase)
            train.main(arguments)
    except BadInput as error:
        print(error)
    finally:
        phase[0] = PHASES.index("finished")
        os._exit(0)


def same(one: dict, other: dict) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def end_of(folder: Path) -> dict:
    state = checkpoint.read_checkpoint(folder / "my_checkpoint.pth.tar")
    return {name: state[name] for name in ("state_dict", "optimizer", "epoch", "step", "best_dice")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--plain", action="store_true", help="use a plain torch.save")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    rng = random.Random(options.seed)
    torch.set_num_threads(1)  # so that a forked child can go on with it
    phase = mmap.mmap(-1, 1)
    root = Path(tempfile.mkdtemp())
    dirs = [root / name for name in ("train_images", "train_masks", "val_images", "val_masks")]
    write_pairs(dirs[0], dirs[1], [f"train{number}" for number in range(12)])
    write_pairs(dirs[2], dirs[3], [f"val{number}" for number in range(3)])
    names = ("TRAIN_IMG_DIR", "TRAIN_MASK_DIR", "VAL_IMG_DIR", "VAL_MASK_DIR")
    arguments = [word for name, folder in zip(names, dirs, strict=True) for word in (f"--{name}", str(folder))]
    small = {"IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 48, "NUM_EPOCHS": 2, "SAVE_MINUTES": 1e-9}  # a save after each step
    arguments += [word for name, value in small.items() for word in (f"--{name}", str(value))]
    arguments += ["--FEATURES", "8", "16"]
    arguments += ["--CACHE_DIR", str(root / "cache")]

    began = time.monotonic()
    os.waitpid(in_child([*arguments, "--OUT_DIR", str(root / "whole")], phase, plain=False), 0)
    duration = time.monotonic() - began
    whole = end_of(root / "whole")

    kills: collections.Counter[str] = collections.Counter()
    lost = different = early = 0
    out = root / "killed"
    while sum(kills.values()) < options.kills:
        shutil.rmtree(out, ignore_errors=True)
        run = [*arguments, "--OUT_DIR", str(out)]
        child = in_child(run, phase, options.plain)
        if sum(kills.values()) % 4:  # in a save: wait for one of the run's 14, then a moment of it
            for _ in range(rng.randint(1, 12)):
                wait_for(phase, child, lambda name: name in PHASES[2:])
                wait_for(phase, child, lambda name: name not in PHASES[2:6])
            wait_for(phase, child, lambda name: name in PHASES[2:])
            time.sleep(rng.uniform(0, 0.004))
        else:
            time.sleep(rng.uniform(0, duration))
        name = PHASES[phase[0]]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if name == "finished":
            early += 1
            duration *= 0.95  # the first run may have been slow
            if early > 10 * options.kills:
                sys.exit("the run ends before it can be killed")
            continue
        kills[name] += 1

        saved = (out / "my_checkpoint.pth.tar").exists()
        if saved:
            try:
                checkpoint.read_checkpoint(out / "my_checkpoint.pth.tar")
            except BadInput:
                lost += 1
                continue
        os.waitpid(in_child([*run, *(["--LOAD_MODEL"] if saved else [])], phase, options.plain), 0)
        different += not same(end_of(out), whole)
    in_save = sum(kills[name] for name in PHASES[2:6])
    print(", ".join(f"{name} {kills[name]}" for name in PHASES[:6]), f"({in_save} in a save)")
    print(f"{sum(kills.values())} kills: {lost} checkpoints lost, {different} resumed runs that ended differently")
    print(f"{time.monotonic() - began:.0f} seconds")
    shutil.rmtree(root)
    sys.exit(1 if lost or different else 0)


def wait_for(phase: mmap.mmap, child: int, wanted: Callable[[str], bool]) -> None:
    """Wait until the child's phase is wanted, or the child has finished."""
    while not wanted(PHASES[phase[0]]) and PHASES[phase[0]] != "finished":
        time.sleep(0.0001)


if __name__ == "__main__":
    main()
