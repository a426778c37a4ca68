"""Pictures of what a model predicts: photograph, truth, prediction and errors, side by side with their names."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from files import whole_file
from reading import Size

# Okabe and Ito's palette, which colour-blind people can tell apart: https://jfly.uni-koeln.de/color/
FALSE_POSITIVE = (230, 159, 0)
FALSE_NEGATIVE = (86, 180, 233)
OUTLINE = (213, 94, 0)
INK, PAPER = (32, 32, 32), (255, 255, 255)
GAP = 8  # pixels between panels
STRIP_ROWS = 64  # of a mask that are made at a time
SMALLEST_PANEL, LARGEST_PANEL = 240, 480  # pixels of width; other images are shown enlarged or reduced


class Picture(NamedTuple):
    """One image with its prediction: float (C, H, W), boolean (H, W) twice, and the Dice of the two."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    dice: float


def scale_to_mask(logits: np.ndarray, size: Size, threshold: float) -> np.ndarray:
    """Where logits, float32 (h, w), exceed `threshold` when they are scaled to (height, width): boolean.

    Bilinear, with both centres in one place, as `F.interpolate(align_corners=False)` does it. It goes in strips:
    they stay in the processor's cache, and all at once would take four times the memory of the mask.
    """
    height, width = size
    above, down = _neighbours(logits.shape[0], height)
    left, along = _neighbours(logits.shape[1], width)
    logits = np.pad(logits, ((0, 1), (0, 1)), "edge")
    wide = logits[:, left] + np.diff(logits, axis=1)[:, left] * along  # (h + 1, width)
    steps = np.diff(wide, axis=0)
    mask = np.empty(size, bool)
    for top in range(0, height, STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        strip = steps[above[rows]]
        strip *= down[rows, None]
        strip += wide[above[rows]]
        np.greater(strip, threshold, out=mask[rows])
    return mask


def _neighbours(length: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each of `target` pixels lies among `length`: the one before its centre, and its distance from that."""
    centres = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
    before = centres.astype(np.int64)
    return before, (centres - before).astype(np.float32)


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a boolean (H, W) mask as a PNG in {0, 255}."""
    with whole_file(path) as part:
        Image.fromarray(_black_and_white(mask)).save(part, "PNG", compress_level=1)  # half the time of the default


def draw_outline(photograph: np.ndarray, mask: np.ndarray, path: Path) -> None:
    """Write a photograph, uint8 (H, W, 3), as a JPEG with the outline of its boolean (H, W) mask drawn in."""
    width = 2 * max(1, min(mask.shape) // 400) + 1  # pixels, half of them on either side
    square = np.ones((width, width), np.uint8)
    outlined = photograph.copy()
    outlined[cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, square) > 0] = OUTLINE
    with whole_file(path) as part:
        Image.fromarray(outlined).save(part, "JPEG", quality=90)


def save_errors(picture: Picture, path: Path) -> None:
    """Write the wrong pixels, in colour on a transparent ground, as a PNG."""
    missed, too_much = picture.truth & ~picture.prediction, picture.prediction & ~picture.truth
    errors = Image.fromarray(missed.astype(np.uint8) + 2 * too_much.astype(np.uint8))
    errors.putpalette([*PAPER, *FALSE_NEGATIVE, *FALSE_POSITIVE])
    errors.save(path, transparency=0)


def _black_and_white(mask: np.ndarray) -> np.ndarray:
    return mask.view(np.uint8) * np.uint8(255)


def draw_sheet(rows: list[Picture], path: Path) -> None:
    """Write a PNG with a row for each picture: photograph, truth, prediction, errors; above them name and Dice."""
    height, width = rows[0].truth.shape
    scale = min(max(1, SMALLEST_PANEL / width), LARGEST_PANEL / width)
    height, width = round(height * scale), round(width * scale)
    font = ImageFont.load_default(size=15)
    line = 22  # pixels of height for a line of writing

    columns = ["photograph", "truth", "prediction", "errors"]
    sheet = Image.new("RGB", (len(columns) * (width + GAP) + GAP, line + len(rows) * (line + height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (width + GAP), 2), title, INK, font)
    # The legend is the heading of the last column.
    x = sheet.width - GAP - width + draw.textlength("errors: ", font)
    draw.text((x, 2), "missed", FALSE_NEGATIVE, font)
    draw.text((x + draw.textlength("missed ", font), 2), "too much", FALSE_POSITIVE, font)

    for number, row in enumerate(rows):
        top = line + number * (line + height + GAP)
        draw.text((GAP, top + 1), f"{row.name}   dice {row.dice:.4f}", INK, font)
        photograph = to_rgb(row.image)
        for column, panel in enumerate(
            (photograph, _black_and_white(row.truth), _black_and_white(row.prediction), _errors(row, photograph))
        ):
            picture = Image.fromarray(panel).resize((width, height), Image.Resampling.BOX)  # enlarges in squares
            sheet.paste(picture, (GAP + column * (width + GAP), top + line))
    sheet.save(path)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Float (C, H, W) to uint8 (H, W, 3), whatever normalisation made of it: its range becomes 0 to 255.

    One or two channels are shown in gray, and of more than three the first three.
    """
    image = np.repeat(image[:1], 3, axis=0) if len(image) < 3 else image[:3]
    lowest, largest = image.min(), image.max()
    return ((image - lowest) / max(largest - lowest, 1e-6) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def _errors(row: Picture, photograph: np.ndarray) -> np.ndarray:
    """The photograph, pale and gray, with the wrong pixels in colour."""
    panel = np.repeat(photograph.mean(axis=2, keepdims=True) * 0.4 + 140, 3, axis=2).astype(np.uint8)
    panel[row.prediction & ~row.truth] = FALSE_POSITIVE
    panel[~row.prediction & row.truth] = FALSE_NEGATIVE
    return panel
