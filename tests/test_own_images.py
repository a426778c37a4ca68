"""From a folder of images that show no cars to masks, with the very commands of README.md."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from support.checkpoint import read_checkpoint

ROOT = Path(__file__).parent.parent
THINGS = ("coin", "fish")
SMALL = "--IMAGE_HEIGHT 64 --IMAGE_WIDTH 64 --FEATURES 8 16 32 --NUM_EPOCHS 8"
SIZES = [(360, 240), (240, 360), (320, 180), (260, 260), (200, 400), (301, 203)]  # width and height


def texture(rng: np.random.Generator, size: tuple[int, int], low: int, high: int) -> Image.Image:
    """A rough coloured surface: noise of three grain sizes around a colour from `low` to `high`."""
    surface = np.zeros((size[1], size[0], 3)) + rng.integers(low, high, 3)
    for grain in (3, 12, 60):
        coarse = rng.integers(0, 255, (-(-size[1] // grain), -(-size[0] // grain)), dtype=np.uint8)
        surface += (np.asarray(Image.fromarray(coarse).resize(size, Image.BICUBIC))[..., None] - 128.0) * 0.18
    return Image.fromarray(surface.clip(0, 255).astype(np.uint8))


def outline(thing: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """The mask of a thing somewhere in a picture of (width, height), turned anyhow, in 0 and 255."""
    mask = Image.new("L", size)
    draw, r = ImageDraw.Draw(mask), rng.uniform(0.22, 0.36) * min(size)
    x, y = (rng.uniform(0.4, 0.6) * side for side in size)
    if thing == "coin":
        draw.ellipse((x - r, y - r, x + r, y + r), 255)
    else:
        draw.ellipse((x - 1.2 * r, y - r / 2, x + 0.8 * r, y + r / 2), 255)
        draw.polygon([(x + 0.5 * r, y), (x + 1.3 * r, y - r / 2), (x + 1.3 * r, y + r / 2)], 255)
    return mask.rotate(rng.uniform(0, 360), center=(x, y))


def render(number: int) -> tuple[Image.Image, Image.Image]:
    """A image of a thing on a rough ground with its shadow, and its exact mask; the sizes and shapes vary."""
    rng = np.random.default_rng(number)
    size = SIZES[number % len(SIZES)]
    mask = outline(THINGS[number // len(SIZES) % len(THINGS)], size, rng)
    image, thing = texture(rng, size, 40, 110), texture(rng, size, 120, 250)
    image.paste((15, 15, 15), mask=ImageChops.offset(mask, 7, 9))
    image.paste(thing, mask=mask)
    return image, mask


def turned(image: Image.Image, path: Path) -> None:
    """As a telephone held upright writes it: lying, with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def with_alpha(image: Image.Image, path: Path) -> None:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def deep(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)


def converted(mode: str, **options: Any) -> Callable[[Image.Image, Path], None]:
    return lambda picture, path: picture.convert(mode).save(path, **options)


def one(mask: Image.Image, path: Path) -> None:
    mask.point(lambda value: value // 255).save(path)


def indexed(mask: Image.Image, path: Path) -> None:
    picture = mask.point(lambda value: value // 255).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0])
    picture.save(path)


# The ways in which images and masks of one folder are written: endings and functions.
WAYS = [
    (".jpg", converted("RGB", quality=90), ".png", converted("L")),
    (".JPG", turned, "_mask.png", converted("1")),
    (".png", with_alpha, ".png", one),
    (".png", converted("L"), "_mask.gif", converted("1")),
    (".tif", deep, "_mask.png", converted("RGBA")),
    (".webp", converted("RGB"), ".png", indexed),
    (".bmp", converted("RGB"), "_mask.jpg", converted("L", quality=90)),
    (".jpeg", converted("CMYK"), ".gif", converted("P")),
    (".png", converted("P", palette=Image.Palette.ADAPTIVE), "_mask.PNG", converted("RGB")),
]


def write(folder: Path, masks: Path | None, numbers: range) -> None:
    folder.mkdir()
    if masks:
        masks.mkdir()
    for number in numbers:
        image, mask = render(number)
        ending, save, mask_ending, save_mask = WAYS[number % len(WAYS)]
        save(image, folder / f"thing {number}{ending}")
        if masks:
            save_mask(mask, masks / f"thing {number}{mask_ending}")


def readme_commands() -> list[list[str]]:
    """The words of each command of the section about one's own images."""
    section = (ROOT / "README.md").read_text().partition("## Your own images\n")[2].partition("\n## ")[0]
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (python .*)$", section, re.MULTILINE)]


def test_the_readmes_commands_lead_from_a_folder_to_masks(tmp_path):
    write(tmp_path / "my_images", tmp_path / "my_masks", range(72))
    write(tmp_path / "new_images", None, new := range(72, 90))
    commands = readme_commands()
    assert 0 < len(commands) <= 5 and commands[-1][1] == "predict.py"
    printed = ""
    for _, script, *words in commands:
        if script == "train.py":  # a network that learns in seconds
            words += SMALL.split()
        done = subprocess.run(
            [sys.executable, ROOT / script, *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert "my_images: 72 images with masks; 320x180 to " in printed
    assert read_checkpoint(tmp_path / "best_checkpoint.pth.tar")["best_dice"] > 0.9
    dice = []
    for number in new:
        with Image.open(tmp_path / f"predictions/thing {number}.png") as predicted:
            mask, truth = (np.asarray(picture) > 127 for picture in (predicted, render(number)[1]))
        assert mask.shape == truth.shape
        dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert np.mean(dice) > 0.9, np.round(dice, 3)
    assert len(list((tmp_path / "predictions").glob("*_overlay.jpg"))) == len(new)
