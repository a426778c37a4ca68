"""What fits into the time: width, epochs, and a run that follows the clock."""

import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from support import budget
from support.budget import settle_length, settle_network, work_curve
from support.checkpoint import read_checkpoint, save_checkpoint
from support.distributed import ALONE

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("half_share", [0.0, 0.3, 0.5, 1.0])
def test_half_size_steps_are_less_of_the_work(half_share):
    steps, work = work_curve(half_share)
    shares = [number / 40 for number in range(41)]
    done = [np.interp(share, steps, work) for share in shares]
    assert done[0] == 0 and done[-1] == 1 and done == sorted(done)
    assert [np.interp(share, work, steps) for share in done] == pytest.approx(shares)
    if half_share == 0.5:
        assert done[20] == pytest.approx(0.35 / 1.35)


def settled(steps: int, state: dict | None = None, **given: object) -> tuple[list[int], float, float]:
    """FEATURES, NUM_EPOCHS and PROGRESSIVE_RESIZING."""
    options = {"FEATURES": "auto", "NUM_EPOCHS": "auto", "TIME_LIMIT": 0.0, "ENCODER": "", "CROP": 0}
    options |= {"PROGRESSIVE_RESIZING": 0.5, "IMAGE_HEIGHT": 160, "IMAGE_WIDTH": 240, "IN_CHANNELS": 3}
    chosen = Namespace(**{**options, "BATCH_SIZE": 2, "ACCUMULATION_STEPS": 1, **given})
    settle_network(chosen, state, None)
    settle_length(chosen, state, ALONE, torch.float32, steps)
    return chosen.FEATURES, chosen.NUM_EPOCHS, chosen.PROGRESSIVE_RESIZING


NARROW = [8, 16, 32, 64]
STATE = {"model": {"features": [5, 6]}, "constants": {"NUM_EPOCHS": 7}}


@pytest.mark.parametrize(
    "steps, state, given, expected",
    [
        (48, None, {}, (NARROW, 31, 0.5)),  # 1,500 steps
        (10_000, None, {}, (NARROW, 3, 0.5)),
        (48, None, {"FEATURES": [4, 8], "NUM_EPOCHS": 2}, ([4, 8], 2, 0.5)),
        (48, None, {"ENCODER": "resnet34"}, ([*NARROW, 128], 31, 0.5)),
        (48, None, {"IMAGE_HEIGHT": 30}, (NARROW, 31, 0.0)),  # half of it is too small
        (48, None, {"IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 32}, (NARROW, 31, 0.5)),
        (48, None, {"IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 32, "BATCH_SIZE": 1}, (NARROW, 31, 0.0)),  # for BatchNorm
        (48, None, {"IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 32, "ACCUMULATION_STEPS": 2}, (NARROW, 31, 0.0)),
        (48, None, {"CROP": 64}, (NARROW, 31, 0.0)),
        (48, STATE, {}, ([5, 6], 7, 0.5)),
        (48, STATE, {"NUM_EPOCHS": 9}, ([5, 6], 9, 0.5)),
        (48, {**STATE, "constants": {"NUM_EPOCHS": math.inf}}, {}, ([5, 6], 31, 0.5)),  # it had a TIME_LIMIT
    ],
)
def test_what_is_chosen_without_a_limit_on_a_cpu(steps, state, given, expected):
    assert settled(steps, state, **given) == expected


@pytest.mark.parametrize("minutes, width", [(0.1, 8), (2, 8), (4, 16), (16, 32), (500, 64)])
def test_with_a_limit_the_widest_network_that_does_its_steps_in_the_time(monkeypatch, minutes, width):
    """On a machine whose steps take 0.06 s with 16 channels, and four times as long with twice as many."""
    monkeypatch.setattr(budget, "time_step", lambda model, *_: 0.06 * (model.arguments["features"][0] / 16) ** 2)
    monkeypatch.setattr(budget, "BEGAN", budget.time.monotonic())
    assert settled(48, TIME_LIMIT=minutes)[:2] == ([width * 2**level for level in range(4)], math.inf)


def test_a_network_without_memory_is_not_chosen(monkeypatch):
    def step(model: torch.nn.Module, *_: object) -> float:
        if model.arguments["features"][0] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.001

    monkeypatch.setattr(budget, "time_step", step)
    assert settled(48, TIME_LIMIT=10)[0] == [16, 32, 64, 128]


def test_the_step_of_one_process_is_timed(monkeypatch):
    timed = []
    monkeypatch.setattr(budget, "time_step", lambda model, precision, size, batch: timed.append(batch) or 1e9)
    settled(48, TIME_LIMIT=10, BATCH_SIZE=12, ACCUMULATION_STEPS=3)
    assert timed == [4]


def test_the_clock_begins_with_the_process():
    lines = "import time; began = time.monotonic(); from support.budget import BEGAN; print(began - BEGAN)"
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) > -0.02 or sys.platform != "linux"  # where imports would count for nothing


def test_a_run_with_a_limit_ends_by_the_clock_with_its_learning_rate_at_zero(folders, tmp_path):
    words = [*folders, "--NUM_EPOCHS", "auto", "--TIME_LIMIT", "0.2", "--OUT_DIR", str(tmp_path)]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = read_checkpoint(tmp_path / "my_checkpoint.pth.tar")
    assert state["epoch"] >= 1 and state["optimizer"]["param_groups"][0]["lr"] < 1e-3 * train.LEARNING_RATE
    assert state["half_size"] is False and state["elapsed"] > 0
    assert "0.2 minutes, 6 steps" in done.stdout and "\nepoch 1\n" in done.stdout
    again = subprocess.run([*command, "--LOAD_MODEL"], capture_output=True, text=True)
    assert again.returncode == 0 and "TIME_LIMIT 0.2 is reached: give a larger one" in again.stdout


def test_such_a_run_goes_on_without_its_limit(folders, tmp_path, capsys):
    words = [*folders, "--NUM_EPOCHS", "auto", "--OUT_DIR", str(tmp_path)]
    train.main([*words, "--NUM_EPOCHS", "1"])
    state = read_checkpoint(tmp_path / "my_checkpoint.pth.tar")
    limited = {**state["constants"], "NUM_EPOCHS": math.inf, "TIME_LIMIT": 1.0}
    save_checkpoint({**state, "constants": limited, "epoch": 249}, tmp_path / "my_checkpoint.pth.tar")
    train.main([*words, "--LOAD_MODEL"])
    assert "\nepoch 250 of 250\n" in capsys.readouterr().out  # 1,500 steps


def test_a_run_says_how_long_it_takes(folders, tmp_path, capsys):
    train.main([*folders, "--NUM_EPOCHS", "5", "--OUT_DIR", str(tmp_path)])
    assert capsys.readouterr().out.count(" minutes to go\n") == 4
