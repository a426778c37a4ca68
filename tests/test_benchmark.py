import math

from PIL import Image

import benchmark


def test_one_command_prints_and_writes_the_table(folders, tmp_path, capsys):
    names = {"--TRAIN_IMG_DIR": "--IMG_DIR", "--TRAIN_MASK_DIR": "--MASK_DIR"}
    dirs = [names.get(word, word) for word in folders[:8]]
    small = {"IMAGE_HEIGHT": 32, "IMAGE_WIDTH": 48, "BATCH_SIZE": 2, "EPOCH_IMAGES": 4, "REPEATS": 1}
    more = {"TARGET_DICE": 0.99, "EPOCHS": 2, "PLAIN_EPOCHS": 1, "OUT": tmp_path / "table.md"}
    more["CURVE"] = tmp_path / "curve.png"
    benchmark.main(
        [*dirs, "--FEATURES", "4", "8"]
        + [word for name, value in (small | more).items() for word in (f"--{name}", str(value))]
    )
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    measured, computed = table.split("Largest batches")
    lines = [line.split(" | ") for line in measured.splitlines() if line.startswith("| ")][1:]
    what = [line[0].partition(":")[0].strip("| ") for line in lines]
    assert what.pop(5).startswith("the same, % of the bfloat16 matrix product")
    assert what == [
        "reading, first epoch",
        "reading, later epochs",
        "reading, later epochs",
        "peak memory of a step with batch 2",
        "training step, synthetic batch",
        "a whole epoch of 4 photographs from disk",
        "the same, % of the rate on synthetic batches",
        "seconds of training to a validation Dice of 0.99",
        "seconds of training, 1 epochs against 2",
        "validation Dice, 1 epochs against 2",
    ]
    with Image.open(tmp_path / "curve.png") as curve:
        assert curve.width > 500 and (0, 0x72, 0xB2) in {
            colour for _, colour in curve.convert("RGB").getcolors(2**24)
        }
    for line in lines[:7]:
        plain, ours = (float(cell.split()[0]) for cell in line[1:3])
        assert plain > 0 and ours > 0 and float(line[3].strip("| ")) > 0
    batches = [[int(cell) for cell in line.strip("| ").split(" | ")[1:]] for line in computed.splitlines()[4:]]
    assert batches == [sorted(row) for row in batches] and batches[0] > batches[1] > batches[2]


def test_the_row_says_how_many_times_ours_is_better():
    assert benchmark.row("ms", [4.0, 2.0, 6.0], [2.0, 1.0, 3.0], higher_is_better=False) == (
        "ms",
        "4 (2 to 6)",
        "2 (1 to 3)",
        "2.00",
    )
    assert benchmark.row("images/s", [4.0], [6.0])[3] == "1.50"
    assert benchmark.row("s", [math.inf], [6.0], higher_is_better=False)[1:] == (
        "inf (inf to inf)",
        "6 (6 to 6)",
        "inf",
    )
    assert benchmark.row("s", [6.0], [math.inf], higher_is_better=False)[3] == ""
