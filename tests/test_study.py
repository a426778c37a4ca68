"""The study of the recipe, small, with its real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resume import members

from benchmarks import study
from support.errors import BadInput


def test_each_change_is_compared_with_the_recipe_on_the_same_cars(folders, tmp_path, capsys):
    small = {
        "HELD_OUT_CARS": 1,
        "TRAIN_CARS": 1,
        "IMAGE_HEIGHT": 32,
        "IMAGE_WIDTH": 48,
        "NUM_EPOCHS": 16,
    }
    small |= {"ONLY": "outlines", "OUT": tmp_path / "table.md"}
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    study.main(
        ["--IMG_DIR", folders[1], "--MASK_DIR", folders[3], "--FEATURES", "4", "8", "--SEEDS", "3", "5", *words]
    )
    printed = capsys.readouterr().out
    table = (tmp_path / "table.md").read_text()
    assert table in printed and "| change | seed 3 | seed 5 | mean |" in table
    recipe, change = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[-2:])
    assert recipe[0] == "the recipe" and change[0] == "no more weight near outlines"
    one, two = ([float(cell) for cell in cells[1:4]] for cells in (recipe, change))
    assert one != two and one[2] == pytest.approx(sum(one[:2]) / 2, abs=1e-4)
    gain, error = (float(word) for word in change[4].split(" ± "))
    assert gain == pytest.approx(two[2] - one[2], abs=2e-4)
    assert error == pytest.approx(abs((two[0] - one[0]) - (two[1] - one[1])) / 2, abs=2e-4)


def test_the_cars_held_out_are_not_learned_from(folders, tmp_path):
    options = study.ConstantParser(vars(study)).parse_args(
        ["--IMG_DIR", folders[1], "--MASK_DIR", folders[3], "--HELD_OUT_CARS", "1", "--TRAIN_CARS", "0"]
    )
    learn, _, score, _ = (
        {path.name for path in map(study.Path, [folder]) for path in path.iterdir()}
        for folder in study.share_out(options, 1, tmp_path)
    )
    assert len(score) == len(learn) == 6 and not learn & score


def test_a_word_that_no_change_has_is_refused_with_all_their_names():
    with pytest.raises(BadInput, match="no change has 'nosuch' in its name. The changes are: the recipe; Adam"):
        study.main(["--ONLY", "nosuch"])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
def test_sigterm_ends_its_run_too_and_leaves_nothing(folders, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    small = {"HELD_OUT_CARS": 1, "TRAIN_CARS": 1, "IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 48, "NUM_EPOCHS": 500}
    small |= {"IMG_DIR": folders[1], "MASK_DIR": folders[3]}
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.study", "--FEATURES", "4", "8", *words],
        env={**os.environ, "TMPDIR": str(scratch)},
        start_new_session=True,
    )
    while not list(scratch.glob("*/my_checkpoint.pth.tar")):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert members(process.pid) == [] and not list(scratch.iterdir())
