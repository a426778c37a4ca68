"""What a whole folder can have wrong: masks and classes that vanish when scaled."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from prepare_data import check
from support.errors import BadInput


def draw(folder: Path, names: str, value: int = 255) -> list[str]:
    """Images with a thin line across, and masks of it; returns the two folders."""
    for name in names:
        image, mask = Image.new("RGB", (300, 200), "gray"), Image.new("L", (300, 200))
        ends = ((0, 20 + 10 * names.index(name)), (300, 170))
        ImageDraw.Draw(image).line(ends, "black", 2)
        ImageDraw.Draw(mask).line(ends, value, 2)
        for kind, picture in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            picture.save(folder / kind / f"{name}.png")
    return [str(folder / "images"), str(folder / "masks")]


def test_masks_that_vanish_at_the_networks_size_are_refused_with_one_that_keeps_them(tmp_path, capsys):
    """A network that predicts nothing would score 1 on them."""
    folders = draw(tmp_path, "abc")
    with pytest.raises(BadInput, match="masks: too thin: nothing is left of 3 of 3 masks at 48x32; ") as e:
        check(folders, (32, 48), "")
    width, height = map(int, str(e.value).partition("48x32; ")[2].split()[0].split("x"))
    check(folders, (height, width), "")
    assert "too thin" not in capsys.readouterr().err


def test_masks_that_lose_much_are_warned_of_in_one_line(tmp_path, capsys):
    draw(tmp_path, "ab")
    for name in "cde":
        image, mask = Image.new("RGB", (300, 200), "gray"), Image.new("L", (300, 200))
        ImageDraw.Draw(mask).rectangle((50, 50, 150, 150), 255)
        image.save(tmp_path / f"images/{name}.png")
        mask.save(tmp_path / f"masks/{name}.png")
    check([str(tmp_path / "images"), str(tmp_path / "masks")], (32, 48), "")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "too thin" in line]
    assert "lost at 48x32, and would be kept at " in line and "(and 1 like it)" in line


def test_a_class_that_vanishes_is_named(tmp_path, capsys):
    folders = draw(tmp_path, "ab", 2)
    for path in Path(folders[1]).iterdir():
        mask = np.array(Image.open(path))
        mask[:, :100] = 1
        Image.fromarray(mask).save(path)
    check(folders, (32, 48), "", num_classes=3)
    assert "masks: class 2 is in no mask at 48x32. Give a larger" in capsys.readouterr().err


def test_palettes_that_give_a_colour_two_numbers_are_refused(tmp_path):
    folders, red, blue = draw(tmp_path, "abc"), (255, 0, 0), (0, 0, 255)
    for name, colours in (("a", (red, blue)), ("b", (red, blue)), ("c", (blue, red))):
        mask = Image.fromarray(np.arange(3, dtype=np.uint8).repeat(20_000).reshape(200, 300))
        mask.putpalette([0, 0, 0, *colours[0], *colours[1]])
        mask.save(tmp_path / f"masks/{name}.png")
    with pytest.raises(BadInput, match="c.png: #0000ff is number 1 in its palette, and 2 in that of a.png"):
        check(folders, (32, 48), "", num_classes=3)
    (tmp_path / "images/c.png").unlink()
    check(folders, (32, 48), "", num_classes=3)
