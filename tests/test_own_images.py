"""From a folder of images that show no cars to masks, with the very commands of README.md."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from conftest import write_pairs
from PIL import Image

from support.checkpoint import read_checkpoint

ROOT = Path(__file__).parent.parent
SMALL = "--IMAGE_HEIGHT 64 --IMAGE_WIDTH 64 --FEATURES 8 16 32 --NUM_EPOCHS 8 --PRECISION float32 --NUM_THREADS 1"


def test_the_readmes_commands_lead_from_a_folder_to_masks(tmp_path):
    for n, size in enumerate([(240, 360), (180, 320), (203, 301)]):
        names = [f"thing {n}-{i}" for i in range(20)]
        write_pairs(tmp_path / "my_images", tmp_path / "my_masks", names[:16], size)
        write_pairs(tmp_path / "new_images", tmp_path / "truth", names[16:], size)
    section = (ROOT / "README.md").read_text().partition("## Your own images\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^    python (.*)$", section, re.MULTILINE)
    assert 0 < len(commands) <= 5 and commands[-1].startswith("predict.py")
    for command in commands:
        script, *words = shlex.split(command, comments=True)
        words += SMALL.split() if script == "train.py" else []  # a network that learns in seconds
        done = subprocess.run(
            [sys.executable, ROOT / script, *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "best_checkpoint.pth.tar")["best_dice"] > 0.9
    dice = []
    for path in (tmp_path / "truth").iterdir():
        name = path.stem.removesuffix("_mask")
        predicted, target = (Image.open(file) for file in (tmp_path / f"predictions/{name}.png", path))
        mask, truth = (np.asarray(image.convert("L")) > 127 for image in (predicted, target))
        dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
        assert (tmp_path / f"predictions/{name}_overlay.jpg").exists()
    assert np.mean(dice) > 0.9, np.round(dice, 3)
