"""A run that was interrupted, anywhere and however often, ends as the one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from torch import nn

import train
from benchmarks.kills import end_of, same
from model import UNET
from support.checkpoint import CheckpointWriter, read_checkpoint, save_checkpoint
from support.errors import BadInput
from support.run import Run

ROOT = Path(__file__).parent.parent


def everything(folder: Path) -> dict[str, Any]:
    """What a run leaves: what its checkpoints hold, and the bytes of its images and their page."""
    found: dict[str, Any] = {}
    for file in ("my_checkpoint.pth.tar", "best_checkpoint.pth.tar"):
        state = read_checkpoint(folder / file)
        found |= {f"{file}.{name}": state[name] for name in state.keys() - {"constants", "elapsed"}}
    files = [path for path in (folder / "saved_images").rglob("*") if path.is_file()]
    return found | {str(path.relative_to(folder)): path.read_bytes() for path in files}


def differences(folder: Path, other: Path) -> list[str]:
    one, two = everything(folder), everything(other)
    return [name for name in one | two if name not in one or name not in two or not same(one[name], two[name])]


def stopped(arguments: list[str], out: Path, where: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until (epoch, step), and get a real SIGTERM there."""

    def step_with_signal(self: Run, loss: torch.Tensor, after_step: Any = Run.after_step) -> bool:
        if (self.epoch, self.step + 1) == where:
            os.kill(os.getpid(), signal.SIGTERM)
        return after_step(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "after_step", step_with_signal)
        with pytest.raises(SystemExit) as stop:
            train.main([*arguments, "--OUT_DIR", str(out)])
    assert stop.value.code == 128 + signal.SIGTERM
    state = read_checkpoint(out / "my_checkpoint.pth.tar")
    assert (state["epoch"], state["step"]) == where


def interrupted(arguments: list[str], out: Path, stops: list[tuple[int, int]], monkeypatch) -> None:
    """Run to the end, with a stop at each (epoch, step)."""
    for number, where in enumerate(stops):
        stopped([*arguments, *["--LOAD_MODEL"] * (number > 0)], out, where, monkeypatch)
    train.main([*arguments, "--LOAD_MODEL", "--OUT_DIR", str(out)])


def scores_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if "dice" in line or "mean training loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Callable[..., tuple[Path, list[str]]]:
    """Runs the whole training once for each set of arguments: its folder, and the scores it printed."""
    done: dict[tuple[str, ...], tuple[Path, list[str]]] = {}

    def run(folders: list[str], capsys: pytest.CaptureFixture, *more: str) -> tuple[Path, list[str]]:
        if more not in done:
            out = tmp_path_factory.mktemp("whole")
            capsys.readouterr()
            train.main([*folders, *more, "--NUM_WORKERS", "0", "--OUT_DIR", str(out)])
            done[more] = out, scores_of(capsys.readouterr().out)
        return done[more]

    return run


STOPS = {
    "middle": [(0, 3)],
    "ends of epochs": [(0, 6), (1, 6)],
    "four times": [(0, 1), (0, 4), (1, 1), (1, 5)],
}


@pytest.mark.parametrize(
    "where, precision, workers",
    [("middle", "bfloat16", "2"), ("ends of epochs", "float32", "0"), ("four times", "float32", "0")],
)
def test_an_interrupted_run_equals_one_that_was_not(
    folders, tmp_path, monkeypatch, capsys, uninterrupted, where, precision, workers
):
    whole, scores = uninterrupted(folders, capsys, "--PRECISION", precision)
    interrupted([*folders, "--PRECISION", precision, "--NUM_WORKERS", workers], tmp_path, STOPS[where], monkeypatch)
    assert differences(whole, tmp_path) == []
    assert scores_of(capsys.readouterr().out) == scores


def test_a_signal_between_epochs_and_during_validation(folders, tmp_path, monkeypatch, capsys, uninterrupted):
    whole, _ = uninterrupted(folders, capsys)
    for moment in ("check_accuracy", "save_predictions_as_imgs"):
        function = getattr(train, moment)

        def with_signal(*args, function=function, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)
            return function(*args, **kwargs)

        out = ["--OUT_DIR", str(tmp_path / moment)]
        monkeypatch.setattr(train, moment, with_signal)
        with pytest.raises(SystemExit) as stop:
            train.main([*folders, *out])
        assert stop.value.code == 128 + signal.SIGINT
        monkeypatch.setattr(train, moment, function)
        train.main([*folders, *out, "--LOAD_MODEL"])
        assert differences(whole, tmp_path / moment) == []


class Dropping(UNET):
    """A network that draws from torch's generator in each step."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.pool = nn.Sequential(nn.MaxPool2d(2, 2), nn.Dropout(0.2))


def noise(image: np.ndarray, **_: Any) -> np.ndarray:
    """Brightness drawn from Python's and numpy's global generators."""
    return (image * (0.5 + 0.25 * random.random() + 0.25 * np.random.random())).astype(np.uint8)


# Each piece of a checkpoint, and a way to lose it.
PIECES = {
    "state_dict": lambda state: state["state_dict"]["final_conv.bias"].zero_(),
    "buffers": lambda state: state["state_dict"]["downs.0.conv.1.running_mean"].zero_(),
    "optimizer": lambda state: state["optimizer"]["state"].clear(),  # AdamW's moments
    "epoch": lambda state: state.update(epoch=0),
    "step": lambda state: state.update(step=0),
    "losses": lambda state: state["losses"].zero_(),  # of the epoch's printed mean
    "torch generator": lambda state: state["generators"]["torch"].copy_(
        torch.Generator().manual_seed(9).get_state()
    ),
    "python generator": lambda state: state["generators"].update(python=random.Random(1).getstate()),
    "numpy generator": lambda state: state["generators"]["numpy"].__setitem__(2, 0),
}


@pytest.mark.parametrize("piece", [None, *PIECES])
def test_each_piece_of_a_checkpoint_is_needed(folders, tmp_path, monkeypatch, capsys, uninterrupted, piece):
    augmentation, to_tensor = train.make_transforms()
    noisy = A.Compose([A.Lambda(image=noise), augmentation])
    monkeypatch.setattr(train, "make_transforms", lambda: (noisy, to_tensor))
    monkeypatch.setattr(train, "UNET", Dropping)
    # Threads would share out the noise at full size as it comes.
    arguments = [*folders, "--NUM_WORKERS", "0", "--SAVE_MINUTES", "60", "--FULL_SIZE_SCORES", "False"]

    def seed() -> None:
        random.seed(0), np.random.seed(0)

    seed()
    whole, scores = uninterrupted(arguments, capsys, "--SEED", "0")
    seed()
    stopped(arguments, tmp_path, (1, 3), monkeypatch)
    state = read_checkpoint(tmp_path / "my_checkpoint.pth.tar")
    if piece:
        PIECES[piece](state)
        save_checkpoint(state, tmp_path / "my_checkpoint.pth.tar")
    seed()
    train.main([*arguments, "--OUT_DIR", str(tmp_path), "--LOAD_MODEL"])
    changed = differences(whole, tmp_path)
    printed = scores_of(capsys.readouterr().out)
    assert bool(changed or printed != scores) == bool(piece), changed[:5]


def test_a_checkpoint_of_an_earlier_version_resumes(folders, tmp_path, monkeypatch, capsys):
    stopped(folders, tmp_path / "new", (1, 3), monkeypatch)
    (tmp_path / "old").mkdir()
    state = read_checkpoint(tmp_path / "new/my_checkpoint.pth.tar")
    old = {"losses": torch.empty(0), "loss_sum": state["losses"].sum()}  # of some steps, and of all
    later = ("losses", "images", "full_size_dice", "steps_per_epoch", "elapsed", "num_threads")
    old |= {key: value for key, value in state.items() if key not in later}
    save_checkpoint(old, tmp_path / "old/my_checkpoint.pth.tar")
    ends = []
    for out in (tmp_path / "new", tmp_path / "old"):
        capsys.readouterr()
        train.main([*folders, "--LOAD_MODEL", "--OUT_DIR", str(out)])
        ends.append((scores_of(capsys.readouterr().out), end_of(out)))
    assert same(*ends)


def test_patience_counts_epochs_at_full_size_and_over_interruptions(folders, tmp_path, monkeypatch, capsys):
    half_size, full_size = [0.9, 0.1, 0.1, 0.1, 0.1], [0.3, 0.2, 0.5, 0.4, 0.45]
    check_accuracy = train.check_accuracy

    def script() -> None:
        dice = iter(half_size + full_size)

        def with_script(*args: Any, **kwargs: Any) -> Any:
            scores = check_accuracy(*args, **kwargs)
            scores["dice"] = next(dice)
            return scores

        monkeypatch.setattr(train, "check_accuracy", with_script)

    arguments = [*folders, "--NUM_EPOCHS", "11", "--PROGRESSIVE_RESIZING", "0.46", "--PATIENCE", "2"]  # 5 of 11
    script()
    train.main([*arguments, "--OUT_DIR", str(tmp_path / "whole")])
    assert "no better validation Dice in 2 epochs: the run ends" in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "whole/my_checkpoint.pth.tar")["epoch"] == 10
    script()
    interrupted(arguments, tmp_path / "parts", [(2, 3), (8, 6), (9, 1)], monkeypatch)
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    before = (tmp_path / "parts/my_checkpoint.pth.tar").read_bytes()
    train.main([*arguments, "--OUT_DIR", str(tmp_path / "parts"), "--LOAD_MODEL"])
    assert "PATIENCE 2 is reached: give a larger one to train on" in capsys.readouterr().out
    assert (tmp_path / "parts/my_checkpoint.pth.tar").read_bytes() == before


def test_a_worse_epoch_never_replaces_the_best(folders, tmp_path):
    out = ["--OUT_DIR", str(tmp_path)]
    train.main([*folders, *out, "--NUM_EPOCHS", "1"])
    state = read_checkpoint(tmp_path / "my_checkpoint.pth.tar")
    best = (tmp_path / "best_checkpoint.pth.tar").read_bytes()
    for best_dice, replaced in ((2.0, False), (-1.0, True)):
        save_checkpoint({**state, "best_dice": best_dice}, tmp_path / "my_checkpoint.pth.tar")
        train.main([*folders, *out, "--NUM_EPOCHS", "2", "--LOAD_MODEL"])
        assert ((tmp_path / "best_checkpoint.pth.tar").read_bytes() != best) == replaced


def test_without_the_best_checkpoint_the_next_epoch_is_the_best(folders, tmp_path):
    out = ["--OUT_DIR", str(tmp_path)]
    train.main([*folders, *out, "--NUM_EPOCHS", "1"])
    (tmp_path / "best_checkpoint.pth.tar").unlink()
    state = read_checkpoint(tmp_path / "my_checkpoint.pth.tar")
    save_checkpoint({**state, "best_dice": 2.0}, tmp_path / "my_checkpoint.pth.tar")
    train.main([*folders, *out, "--NUM_EPOCHS", "2", "--LOAD_MODEL"])
    assert read_checkpoint(tmp_path / "best_checkpoint.pth.tar")["epoch"] == 2


def test_a_kill_while_saving_loses_no_best_checkpoint(tmp_path, monkeypatch):
    """The latest never knows of a Dice whose weights are not in the best one."""
    writer, moves, move = CheckpointWriter(tmp_path), [], os.replace

    def watch(source: str, target: str) -> None:
        move(source, target)
        moves.append({path.name: read_checkpoint(path)["best_dice"] for path in tmp_path.glob("[mb]*.pth.tar")})

    monkeypatch.setattr(os, "replace", watch)
    weights = {"state_dict": {"weight": torch.zeros(2)}}
    for dice in (0.5, 0.6):
        writer.save({**weights, "best_dice": dice}, is_best=True)
        writer.wait()
    latest, best = "my_checkpoint.pth.tar", "best_checkpoint.pth.tar"
    assert len(moves) > 4 and all(there.get(latest, 0) <= there.get(best, 0) for there in moves)


def test_weights_alone_begin_a_run_and_leave_the_results_before_whole(folders, tmp_path):
    out = ["--OUT_DIR", str(tmp_path)]
    train.main([*folders, *out, "--NUM_EPOCHS", "1"])
    best = (tmp_path / "best_checkpoint.pth.tar").read_bytes()
    weights = {"state_dict": read_checkpoint(tmp_path / "my_checkpoint.pth.tar")["state_dict"]}
    save_checkpoint(weights, tmp_path / "my_checkpoint.pth.tar")
    train.main([*folders, *out, "--LOAD_MODEL"])
    (archive,) = (tmp_path / "previous_runs").iterdir()
    assert (archive / "best_checkpoint.pth.tar").read_bytes() == best
    assert read_checkpoint(archive / "my_checkpoint.pth.tar").keys() == {"state_dict"}


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_after_it_is_saved(folders, tmp_path, capsys):
    out = ["--OUT_DIR", str(tmp_path)]
    train.main([*folders, *out, "--NUM_EPOCHS", "1"])
    before = {path: path.read_bytes() for path in tmp_path.glob("*.pth.tar")}
    shown = sorted((tmp_path / "saved_images").rglob("*"))
    state = read_checkpoint(tmp_path / "my_checkpoint.pth.tar")
    poison = {**state["state_dict"], "final_conv.bias": torch.tensor([3e38])}
    save_checkpoint({**state, "state_dict": poison}, tmp_path / "my_checkpoint.pth.tar")
    before[tmp_path / "my_checkpoint.pth.tar"] = (tmp_path / "my_checkpoint.pth.tar").read_bytes()
    with pytest.raises(
        BadInput, match=r"epoch 2, step \d: the loss is (nan|inf), with 0+[12]_\d\d\.jpg, 0+[12]_\d\d\.jpg"
    ):
        train.main([*folders, *out, "--LOAD_MODEL", "--LEARNING_RATE", "1e38"])
    assert {path: path.read_bytes() for path in tmp_path.glob("*.pth.tar")} == before
    assert sorted((tmp_path / "saved_images").rglob("*")) == shown


def start(folders: list[str], out: Path, *more: str) -> subprocess.Popen:
    words = [*folders, "--OUT_DIR", str(out), "--NUM_EPOCHS", "500", *more]
    # A process group of its own, as a terminal or a queue makes: its signals reach the workers too.
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for _ in range(600):
        if (out / "my_checkpoint.pth.tar").exists():
            return process
        time.sleep(0.1)
    raise AssertionError(process.communicate())


def members(group: int) -> list[str]:
    """The processes of a group that are still there, but for those that only wait to be reaped."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    return [stat for stat in stats if stat[2] == str(group) and stat[0] != "Z"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX")
def test_under_nohup_a_closed_terminal_does_not_end_the_run(folders, tmp_path):
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a child inherits it, as nohup has it
    try:
        process = start(folders, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    os.kill(process.pid, signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_ends_stops_the_run_with_a_checkpoint(folders, tmp_path, stream):
    command = [sys.executable, str(ROOT / "train.py"), *folders, "--OUT_DIR", str(tmp_path), "--NUM_EPOCHS", "500"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: subprocess.PIPE}
    process = subprocess.Popen(command, **streams)
    reader = getattr(process, stream)
    reader.readline()
    while not (tmp_path / "best_checkpoint.pth.tar").exists():
        os.read(reader.fileno(), 2**16)
    reader.close()  # as head does, or a dropped connection
    assert process.wait(60) == 128 + signal.SIGTERM
    assert read_checkpoint(tmp_path / "my_checkpoint.pth.tar")["epoch"] >= 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
@pytest.mark.parametrize("number, workers", [(signal.SIGTERM, "2"), (signal.SIGINT, "0"), (signal.SIGHUP, "0")])
def test_a_signal_to_the_whole_group_saves_and_ends_it(folders, tmp_path, number, workers):
    process = start(folders, tmp_path, "--NUM_WORKERS", workers)
    if number == signal.SIGTERM:  # SIGUSR1 saves in between and lets it go on
        os.kill(process.pid, signal.SIGUSR1)
        time.sleep(1)
        assert process.poll() is None
    began = time.monotonic()
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert time.monotonic() - began < 20 and "Traceback" not in output
    assert "the same command with --LOAD_MODEL goes on from there" in output
    state = read_checkpoint(tmp_path / "my_checkpoint.pth.tar")
    assert f"\nstopped in epoch {state['epoch'] + 1} after step {state['step']};" in output  # not glued to the bar
    assert members(process.pid) == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="benchmarks/kills.py forks")
def test_a_few_kills(tmp_path):
    """The long form, with hundreds, is the command in the README."""
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills: 0 checkpoints lost, 0 resumed runs that ended differently" in done.stdout
