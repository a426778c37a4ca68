"""What fits into the time: width, epochs, and a run that follows the clock."""

import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import train
from support import budget
from support.budget import progress_of_work, settle, work
from support.checkpoint import read_checkpoint
from support.distributed import ALONE

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("half_share", [0.0, 0.3, 0.5, 1.0])
def test_half_size_steps_are_less_of_the_work(half_share):
    shares = [number / 40 for number in range(41)]
    done = [work(progress, half_share) for progress in shares]
    assert done[0] == 0 and done[-1] == pytest.approx(1) and done == sorted(done)
    assert [progress_of_work(share, half_share) for share in done] == pytest.approx(shares)
    if half_share == 0.5:
        assert work(0.5, 0.5) == pytest.approx(0.35 / 1.35)


def options(**given: object) -> Namespace:
    defaults = {
        "FEATURES": "auto",
        "NUM_EPOCHS": "auto",
        "TIME_LIMIT": 0.0,
        "ENCODER": "",
        "ENCODER_WEIGHTS": "",
        "CROP": 0,
        "PROGRESSIVE_RESIZING": 0.5,
    }
    return Namespace(**{**defaults, "IMAGE_HEIGHT": 160, "IMAGE_WIDTH": 240, **given})


def settled(steps: int, state: dict | None = None, **given: object) -> tuple[list[int], float]:
    chosen = options(**given)
    settle(chosen, state, None, ALONE, torch.float32, 2, steps)
    return chosen.FEATURES, chosen.NUM_EPOCHS


def test_without_a_limit_a_cpu_trains_a_narrow_network_for_1500_steps():
    assert settled(48) == ([8, 16, 32, 64], 31)
    assert settled(283) == ([8, 16, 32, 64], 5)
    assert settled(10_000) == ([8, 16, 32, 64], 3)
    assert settled(48, FEATURES=[4, 8], NUM_EPOCHS=2) == ([4, 8], 2)


def test_a_resumed_run_keeps_what_was_chosen():
    state = {"model": {"features": [5, 6]}, "constants": {"NUM_EPOCHS": 7}}
    assert settled(48, state) == ([5, 6], 7)
    assert settled(48, state, NUM_EPOCHS=9) == ([5, 6], 9)


@pytest.mark.parametrize("minutes, width", [(0.1, 8), (2, 8), (4, 16), (16, 32), (500, 64)])
def test_with_a_limit_the_widest_network_that_does_its_steps_in_the_time(monkeypatch, minutes, width):
    """On a machine whose steps take 0.06 s with 16 channels, and four times as long with twice as many."""
    monkeypatch.setattr(budget, "time_step", lambda model, *_: 0.06 * (model.arguments["features"][0] / 16) ** 2)
    monkeypatch.setattr(budget, "BEGAN", budget.time.monotonic())
    assert settled(48, TIME_LIMIT=minutes) == ([width * 2**level for level in range(4)], math.inf)


def test_half_of_a_small_image_is_not_trained_at():
    small = options(IMAGE_HEIGHT=30, FEATURES=[4] * 4)
    settle(small, None, None, ALONE, torch.float32, 2, 48)
    assert small.PROGRESSIVE_RESIZING == 0


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


def test_a_run_says_how_long_it_takes(folders, tmp_path, capsys):
    train.main([*folders, "--NUM_EPOCHS", "5", "--OUT_DIR", str(tmp_path)])
    assert capsys.readouterr().out.count(" minutes of training to go\n") == 1
