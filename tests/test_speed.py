import math

import pytest
from PIL import Image

from benchmarks import speed
from support.errors import BadInput


def measure(folders: list[str], *more: str, **options: object) -> None:
    """Run benchmark.py, small, on the images of `folders`."""
    names = {"--TRAIN_IMG_DIR": "--IMG_DIR", "--TRAIN_MASK_DIR": "--MASK_DIR"}
    dirs = [names.get(word, word) for word in folders[:8]]
    small = {"IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 48, "BATCH_SIZE": 2, "EPOCH_IMAGES": 14, "REPEATS": 1}
    words = [word for name, value in (small | options).items() for word in (f"--{name}", str(value))]
    speed.main([*dirs, "--FEATURES", "4", "8", *words, *more])


def rows(table: str) -> dict[str, list[str]]:
    lines = (line.strip("|").split("|") for line in table.splitlines() if line.startswith("| "))
    return {name.strip().partition(":")[0]: [cell.strip() for cell in cells] for name, *cells in lines}


def test_one_command_prints_and_writes_the_table(folders, tmp_path, capsys):
    measure(folders, OUT=tmp_path / "table.md")
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    measured, computed = table.split("Largest batches")
    lines = [line.strip("|").split("|") for line in measured.splitlines() if line.startswith("| ")][1:]
    what = [line[0].partition(":")[0].strip() for line in lines]
    assert what.pop(5).startswith("the same, % of the bfloat16 matrix product")
    assert what == [
        "reading, first epoch",
        "reading, later epochs",
        "reading, later epochs",
        "peak memory of a step with batch 2",
        "training step, synthetic batch",
        "a whole epoch of 14 images from disk",
        "the same, % of the rate on synthetic batches",
    ]
    for line in lines:
        assert min(float(cell.split()[0]) for cell in line[1:]) > 0
    batches = [[int(cell) for cell in line.strip("| ").split(" | ")[1:]] for line in computed.splitlines()[4:]]
    assert batches == [sorted(row) for row in batches] and batches[0] > batches[1] > batches[2]


def test_learning_is_timed_from_the_commands_start(folders, tmp_path):
    out, curve = tmp_path / "table.md", tmp_path / "curve.png"
    measure(folders, "--PARTS", "learning", EPOCHS=2, PLAIN_EPOCHS=1, TARGET_DICE=0.01, OUT=out, CURVE=curve)
    found = rows(out.read_text())
    seconds = float(found["seconds of training, 1 epoch against 2"][1])
    whole = float(found["seconds of the whole command, scoring and pictures included"][1])
    first = float(found["seconds until its first step is done"][1])
    assert 0 < float(found["seconds of training to a validation Dice of 0.01"][1]) <= seconds < whole > first > 0
    dice = found["validation Dice, 1 epoch against 2"][1]
    assert "this repository, validation Dice: 0." in out.read_text() and f", {dice} after {seconds:.1f} s" in (
        out.read_text()
    )
    with Image.open(curve) as picture:
        assert picture.width > 500 and (0, 0x72, 0xB2) in {
            colour for _, colour in picture.convert("RGB").getcolors(2**24)
        }
    measure(folders, "--PARTS", "learning", EPOCHS=1, PLAIN_EPOCHS=0, OUT=out, CURVE=curve)
    assert "plain loop, validation Dice: not run" in out.read_text() and curve.exists()
    with pytest.raises(BadInput, match=r"train.py: ended with status 2. It said: .*no such option"):
        measure(folders, "--PARTS", "learning", "--TRAIN_OPTIONS=--NOSUCH 1", PLAIN_EPOCHS=0)


def test_the_row_says_how_many_times_ours_is_better():
    assert speed.row("ms", [4.0, 2.0, 6.0], [2.0, 1.0, 3.0], higher_is_better=False) == (
        "ms",
        "4 (2 to 6)",
        "2 (1 to 3)",
        "2.00",
    )
    assert speed.row("images/s", [4.0], [6.0])[3] == "1.50"
    assert speed.row("s", [math.inf], [6.0], higher_is_better=False)[1:] == (
        "never",
        "6",
        "",
    )
    assert speed.row("s", [6.0], [math.inf], higher_is_better=False)[3] == ""
