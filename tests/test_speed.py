"""The comparison with the plain loop, small, with its real processes."""

import math

import cv2
import pytest
import torch

import train
from benchmarks import common, prediction, speed


def measure(folders: list[str], tmp_path, *more: str, **options: object) -> dict[str, list[str]]:
    """The rows of the table, by what stands before a colon in their names."""
    dirs = [word.removeprefix("--TRAIN_") for word in folders[:4]]
    dirs = [f"--{word}" if word in ("IMG_DIR", "MASK_DIR") else word for word in dirs]
    small = {"IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 48, "BATCH_SIZE": 2, "EPOCH_IMAGES": 14, "REPEATS": 1}
    out = tmp_path / "table.md"
    speed.main([*dirs, *more, *common.constants(**{**small, "FEATURES": [4, 8], "OUT": out, **options})])
    lines = (line.strip("|").split("|") for line in out.read_text().splitlines() if line.startswith("| "))
    return {name.strip().partition(": ")[0]: [cell.strip() for cell in cells] for name, *cells in lines}


@pytest.mark.slow
def test_one_command_prints_and_writes_the_table_and_leaves_settings_alone(folders, tmp_path, capsys):
    before = cv2.getNumThreads(), torch.get_num_threads()
    found = measure(folders, tmp_path)
    assert (cv2.getNumThreads(), torch.get_num_threads()) == before
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out and "threads, " in table.partition(";")[0]
    names = ["reading, first epoch", "reading, later epochs", "peak memory of a step with batch 2"]
    names += ["training step, synthetic batch", "a whole epoch of 14 images from disk"]
    names += ["the same, % of the rate on synthetic batches"]
    assert {*names} < {*found} and any("matrix product" in name for name in found)
    for name in names:
        assert min(float(cell.split()[0]) for cell in found[name]) > 0
    batches = [list(map(int, found[size])) for size in ("240x160", "960x640", "1918x1280")]
    assert batches == [sorted(row) for row in batches] and batches[0] > batches[1] > batches[2]


def test_the_row_says_how_many_times_ours_is_better():
    assert speed.row("ms", [4.0, 2.0, 6.0], [2.0, 1.0, 3.0], False) == "| ms | 4 (2 to 6) | 2 (1 to 3) | 2.00 |"
    assert speed.row("images/s", [4.0], [6.0]) == "| images/s | 4 | 6 | 1.50 |"
    assert speed.row("s", [math.inf], [6.0], False) == "| s | never | 6 |  |"
    assert speed.row("s", [math.nan], [6.0]) == "| s |  | 6 |  |"


@pytest.mark.slow
def test_each_stage_of_prediction_has_its_rate_and_memory(folders, tmp_path, capsys):
    train.main([*folders, "--OUT_DIR", str(tmp_path), "--NUM_EPOCHS", "1"])
    capsys.readouterr()
    checkpoint = ["--checkpoint", str(tmp_path / "best_checkpoint.pth.tar")]
    prediction.main([folders[1], folders[3], *checkpoint, "--number", "3", "--memory", "1", "2"])
    cells = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    assert [row[0] for row in cells if row[0] in "12"] == ["1", "2"] and "from JPEG to PNG" in [
        row[0] for row in cells
    ]
    assert all(float(row[1]) > 0 for row in cells if row[0] not in ("stage", "images"))
