"""What a whole folder can have wrong: masks that vanish when scaled, orientations that sizes don't tell."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import train
from prepare_data import check
from support.errors import BadInput


def draw(folder: Path, names: str, line: int, size: tuple[int, int] = (300, 200), value: int = 255) -> list[str]:
    """Images with a line so many pixels wide across, and masks of it; returns the two folders."""
    for name in names:
        image, mask = Image.new("RGB", size, "gray"), Image.new("L", size)
        ends = ((0, 20 + 10 * names.index(name)), (size[0], size[1] - 30))
        ImageDraw.Draw(image).line(ends, "black", line)
        ImageDraw.Draw(mask).line(ends, value, line)
        for kind, picture in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            picture.save(folder / kind / f"{name}.png")
    return [str(folder / "images"), str(folder / "masks")]


def look(folders: list[str], classes: int = 1, size: tuple[int, int] = (32, 48)) -> None:
    check(folders, size, "", num_classes=classes)


def warnings(capsys: pytest.CaptureFixture, word: str) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if word in line]


def test_masks_that_vanish_at_the_networks_size_are_refused_with_one_that_keeps_them(tmp_path, capsys):
    folders = draw(tmp_path, "abc", 2)
    with pytest.raises(BadInput, match="masks: too thin: nothing is left of 3 of 3 masks at 48x32; at ") as e:
        look(folders)
    width, height = map(int, str(e.value).partition("; at ")[2].split()[0].split("x"))
    look(folders, size=(height, width))
    assert not warnings(capsys, "too thin")


def test_a_run_on_vanished_masks_is_refused_before_it_scores_1(tmp_path):
    dirs = [*draw(tmp_path / "train", "abc", 2), *draw(tmp_path / "val", "xyz", 3)]
    names = ("TRAIN_IMG_DIR", "TRAIN_MASK_DIR", "VAL_IMG_DIR", "VAL_MASK_DIR")
    words = [word for name, folder in zip(names, dirs, strict=True) for word in (f"--{name}", folder)]
    small = ["--IMAGE_HEIGHT", "32", "--IMAGE_WIDTH", "48", "--FEATURES", "4", "--CACHE_DIR", ""]
    command = [sys.executable, train.__file__, *words, *small, "--OUT_DIR", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "3 of 3 masks at 48x32" in done.stderr and "epoch 1" not in done.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]  # nothing else


def test_masks_that_lose_much_are_warned_of_in_one_line(tmp_path, capsys):
    draw(tmp_path, "ab", 2)
    look(draw(tmp_path, "cde", 40))
    (line,) = warnings(capsys, "too thin")
    assert "lost at 48x32" in line and "(and 1 like it)" in line


def test_a_class_that_vanishes_is_named(tmp_path, capsys):
    folders = draw(tmp_path, "ab", 2, value=2)
    for path in Path(folders[1]).iterdir():
        mask = np.array(Image.open(path))
        mask[:, :100] = 1
        Image.fromarray(mask).save(path)
    look(folders, classes=3)
    assert warnings(capsys, "masks: class 2 is in no mask at 48x32")


@pytest.mark.parametrize(
    "orientation, size, warned", [(3, (300, 200), 2), (6, (200, 200), 2), (6, (300, 200), 0), (1, (200, 200), 0)]
)
def test_an_orientation_that_sizes_cannot_tell_is_warned_of_once(tmp_path, capsys, orientation, size, warned):
    folders = draw(tmp_path, "ab", 40, size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for path in Path(folders[0]).iterdir():
        image = Image.open(path)
        image = image.transpose(Image.Transpose.ROTATE_90) if (orientation, size) == (6, (300, 200)) else image
        image.save(path, exif=exif)
    look(folders)
    lines = warnings(capsys, "orientation")
    assert len(lines) == bool(warned) and all(f"(and {warned - 1} like it)" in line for line in lines)


def test_palettes_that_give_a_colour_two_numbers_are_refused(tmp_path):
    folders, red, blue = draw(tmp_path, "abc", 40), (255, 0, 0), (0, 0, 255)
    for name, colours in (("a", (red, blue)), ("b", (red, blue)), ("c", (blue, red))):
        mask = Image.fromarray(np.arange(3, dtype=np.uint8).repeat(20_000).reshape(200, 300))
        mask.putpalette([0, 0, 0, *colours[0], *colours[1]])
        mask.save(tmp_path / f"masks/{name}.png")
    with pytest.raises(BadInput, match="c.png: its palette differs .*#0000ff is number 1, and in a.png number 2"):
        look(folders, classes=3)
    (tmp_path / "images/c.png").unlink()
    look(folders, classes=3)
