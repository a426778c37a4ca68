"""The study of the recipe, small, with its real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resume import members

from benchmarks import common, study
from support.errors import BadInput

SMALL = {"VAL_CARS": 1, "TRAIN_CARS": 1, "IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 48, "FEATURES": [4, 8]}


def words(folders: list[str], **options: object) -> list[str]:
    return common.constants(IMG_DIR=folders[1], MASK_DIR=folders[3], **{**SMALL, **options})


@pytest.mark.slow
def test_each_change_is_compared_with_the_recipe_on_the_same_cars(folders, tmp_path, capsys):
    out = tmp_path / "table.md"
    study.main(words(folders, NUM_EPOCHS=16, SEEDS=[3, 5], ONLY="boundaries", OUT=out))
    table = out.read_text()
    assert table in capsys.readouterr().out and "| change | seed 3 | seed 5 | mean |" in table
    recipe, change = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[-2:])
    assert recipe[0] == study.RECIPE and change[0] == "no more weight near boundaries"
    one, two = ([float(cell) for cell in cells[1:4]] for cells in (recipe, change))
    assert one != two and one[2] == pytest.approx(sum(one[:2]) / 2, abs=1e-4)
    gain, error = (float(word) for word in change[4].split(" ± "))
    assert gain == pytest.approx(two[2] - one[2], abs=2e-4)
    assert error == pytest.approx(abs((two[0] - one[0]) - (two[1] - one[1])) / 2, abs=2e-4)


def test_no_car_is_in_training_and_in_validation(folders, tmp_path):
    options = study.ConstantParser(vars(study)).parse_args(words(folders, TRAIN_CARS=0))
    dirs = study.link_cars(options, 1, tmp_path)
    training, _, validation, _ = ({path.name for path in Path(folder).iterdir()} for folder in dirs)
    assert len(validation) == len(training) == 6 and not training & validation


def test_a_word_that_no_change_has_is_refused_with_all_their_names():
    with pytest.raises(BadInput, match="no change has 'nosuch' in its name. The changes are: the recipe; Adam"):
        study.main(["--ONLY", "nosuch"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
def test_sigterm_ends_its_run_too_and_leaves_nothing(folders, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.study", *words(folders, NUM_EPOCHS=500)],
        env={**os.environ, "TMPDIR": str(tmp_path / "in")},
        start_new_session=True,
    )
    before = {*(tmp_path / "in").iterdir()}
    while not list((tmp_path / "in").glob("*/my_checkpoint.pth.tar")):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    # torch's own cache may stay, and a process may take a moment to go.
    left = lambda: {path for path in (tmp_path / "in").iterdir() if path.name[:13] != "torchinductor"}  # noqa: E731
    for _ in range(100):
        if not members(process.pid) and left() == before:
            break
        time.sleep(0.1)
    assert members(process.pid) == [] and left() == before
