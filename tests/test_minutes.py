"""Dice over minutes, this repository beside others, small, with its real processes."""

import importlib.util

import pytest
from PIL import Image

from benchmarks import common, minutes
from support.errors import BadInput

SMALL = common.constants(IMAGE_HEIGHT=64, IMAGE_WIDTH=96, DEVICE="cpu")


@pytest.mark.slow
def test_networks_and_rivals_are_timed_from_the_commands_start(folders, tmp_path, capsys):
    rivals = ["plain", *["smp"] * (importlib.util.find_spec("segmentation_models_pytorch") is not None)]
    files = {"OUT": tmp_path / "table.md", "CURVE": tmp_path / "curve.png"}
    runs = "--RUNS=--NUM_EPOCHS 1 --FEATURES 4 4 4 4 4"
    minutes.main([*folders[:8], *SMALL, runs, *common.constants(RIVALS=rivals, **files)])
    table = files["OUT"].read_text()
    assert table in capsys.readouterr().out and "threads, " in table.partition(";")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:2] == "| "
    ]
    assert {row[0].partition(",")[0] for row in rows[1:]} >= {"this repository", "this", "plain loop"}
    for name, _, _, training, whole, first, dice in rows[1:]:
        assert float(training) >= 0 and 0 <= float(dice) < 1
        assert bool(whole) == bool(first) == name.startswith("this") and float(whole or 1) >= float(first or 0)
    with Image.open(files["CURVE"]) as picture:
        assert picture.width > 500


def test_options_that_train_py_has_not_are_refused(folders):
    with pytest.raises(BadInput, match="no such option"):
        minutes.main([*folders[:8], *SMALL, "--RUNS=--NOSUCH 1"])
