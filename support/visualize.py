"""Pictures of what a model predicts: image, truth, prediction and errors, side by side with their names."""

import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from support.files import whole_file
from support.reading import IGNORED, Size

# Okabe and Ito's palette, which colour-blind people can tell apart: https://jfly.uni-koeln.de/color/
FALSE_POSITIVE = (230, 159, 0)
FALSE_NEGATIVE = (86, 180, 233)
OUTLINE = (213, 94, 0)
# Of classes from 1 up, and then again: that palette, and what is farthest from all before it to the eye, with and
# without red-green blindness. Class 0 is black and what is ignored gray.
COLOURS = [
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (0, 0, 255), (51, 102, 255), (255, 255, 204), (0, 255, 255), (153, 0, 51), (153, 204, 102), (153, 102, 51),
    (153, 0, 102), (153, 0, 204), (102, 153, 255), (255, 204, 204), (153, 0, 0), (153, 204, 153),
]  # fmt: skip
PALETTE = np.array([(0, 0, 0), *(COLOURS[k % len(COLOURS)] for k in range(IGNORED - 1)), (128, 128, 128)], np.uint8)
INK, PAPER, FRAME = (32, 32, 32), (255, 255, 255), (200, 200, 200)
GAP = 8  # pixels between panels
LEGEND = 52  # pixels of width for a class of the legend
STRIP_ROWS = 64  # of a mask that are made at a time, shared by classes
SMALLEST_PANEL, LARGEST_PANEL = 240, 480  # pixels of width; other images are shown enlarged or reduced


class Picture(NamedTuple):
    """One image with its prediction: float (C, H, W), two masks (H, W), and their Dice. The masks are boolean, or
    of several classes uint8 with their numbers and, in the truth, IGNORED."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    dice: float


def scale_to_mask(logits: np.ndarray, size: Size, threshold: float = 0.0) -> np.ndarray:
    """Where logits, float32 (h, w), exceed `threshold` when they are scaled to (height, width): boolean. Of several
    classes' logits, (C, h, w), it is the number of the highest: uint8.

    Bilinear, with both centres in one place, as `F.interpolate(align_corners=False)` does it. It goes in strips:
    they stay in the processor's cache, and all at once would take four times the memory of the mask for each class.
    """
    height, width = size
    above, down = _neighbours(logits.shape[-2], height)
    left, along = _neighbours(logits.shape[-1], width)
    mask = np.empty(size, bool if logits.ndim == 2 else np.uint8)
    logits = np.pad(logits, [(0, 0)] * (logits.ndim - 2) + [(0, 1), (0, 1)], "edge")
    strip_rows = STRIP_ROWS if logits.ndim == 2 else max(4, STRIP_ROWS // len(logits))
    for top in range(0, height, strip_rows):
        rows = slice(top, top + strip_rows)
        part = logits[..., above[rows][0] : above[rows][-1] + 2, :]
        wide = part[..., left] + np.diff(part)[..., left] * along
        before = above[rows] - above[top]
        strip = np.diff(wide, axis=-2)[..., before, :]
        strip *= down[rows, None]
        strip += wide[..., before, :]
        if logits.ndim == 2:
            np.greater(strip, threshold, out=mask[rows])
        else:
            mask[rows] = strip.argmax(0)
    return mask


def _neighbours(length: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each of `target` pixels lies among `length`: the one before its centre, and its distance from that."""
    centres = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
    before = centres.astype(np.int64)
    return before, (centres - before).astype(np.float32)


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a boolean (H, W) mask as a PNG in {0, 255}, and one of classes, uint8, as a PNG whose values are their
    numbers, with PALETTE."""
    if mask.dtype == bool:
        picture = Image.fromarray(_black_and_white(mask))
    else:
        picture = Image.fromarray(mask)
        picture.putpalette(PALETTE.tobytes())
    with whole_file(path) as part:
        picture.save(part, "PNG", compress_level=1)  # half the time of the default


def draw_overlay(image: np.ndarray, mask: np.ndarray, path: Path) -> None:
    """Write a image, uint8 (H, W, 3), as a JPEG with its (H, W) mask drawn in: of a boolean one the outline,
    of classes, uint8, a tint in each one's colour."""
    width = 2 * max(1, min(mask.shape) // 400) + 1  # pixels, half of them on either side
    square = np.ones((width, width), np.uint8)
    drawn = image.copy()
    if mask.dtype == bool:
        drawn[cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, square) > 0] = OUTLINE
    else:
        tinted = mask > 0
        drawn[tinted] = drawn[tinted] // 2 + PALETTE[mask[tinted]] // 2
    with whole_file(path) as part:
        Image.fromarray(drawn).save(part, "JPEG", quality=90)


def save_errors(picture: Picture, path: Path) -> None:
    """Write the wrong pixels, in colour on a transparent ground, as a PNG."""
    values, palette = _errors(picture)
    errors = Image.fromarray(values)
    errors.putpalette(palette.tobytes())
    errors.save(path, transparency=0)


def _errors(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """The wrong pixels by their colours' places in a palette, uint8 (H, W), and that palette. Those at 0 are right.

    Of several classes, a wrong pixel has the colour of its true class.
    """
    if picture.truth.dtype == bool:
        missed, too_much = picture.truth & ~picture.prediction, picture.prediction & ~picture.truth
        palette = np.array([PAPER, FALSE_NEGATIVE, FALSE_POSITIVE], np.uint8)
        return missed.astype(np.uint8) + 2 * too_much.astype(np.uint8), palette
    wrong = (picture.truth != picture.prediction) & (picture.truth != IGNORED)
    return np.where(wrong, picture.truth + 1, 0).astype(np.uint8), np.roll(PALETTE, 1, axis=0)


def _black_and_white(mask: np.ndarray) -> np.ndarray:
    return mask.view(np.uint8) * np.uint8(255)


def _panel(mask: np.ndarray) -> np.ndarray:
    return _black_and_white(mask) if mask.dtype == bool else PALETTE[mask]


def classes_in(pictures: list[Picture]) -> dict[int, str]:
    """The classes in some truth or prediction, and their colours as CSS has them; empty for boolean masks."""
    masks = [mask for picture in pictures for mask in (picture.truth, picture.prediction) if mask.dtype != bool]
    found = sorted({number for mask in masks for number in np.unique(mask).tolist()} - {IGNORED})
    return {number: "#" + PALETTE[number].tobytes().hex() for number in found}


def draw_grid(rows: list[Picture], path: Path) -> None:
    """Write a PNG with a row for each picture: image, truth, prediction, errors; above them name and Dice."""
    height, width = rows[0].truth.shape
    scale = min(max(1, SMALLEST_PANEL / width), LARGEST_PANEL / width)
    height, width = round(height * scale), round(width * scale)
    font = ImageFont.load_default(size=15)
    line = 22  # pixels of height for a line of writing

    columns = ["image", "truth", "prediction", "errors"]
    sheet_width = len(columns) * (width + GAP) + GAP
    classes = classes_in(rows)
    a_line = (sheet_width - GAP) // LEGEND  # classes in a line of the legend
    head = line * (1 + math.ceil(len(classes) / a_line))
    sheet = Image.new("RGB", (sheet_width, head + len(rows) * (line + height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (width + GAP), 2), title, INK, font)
    # The legend is the heading of the last column; of several classes it has lines of its own.
    x = sheet.width - GAP - width + draw.textlength("errors: ", font)
    if classes:
        draw.text((x, 2), "colour of the true class", INK, font)
    else:
        draw.text((x, 2), "missed", FALSE_NEGATIVE, font)
        draw.text((x + draw.textlength("missed ", font), 2), "too much", FALSE_POSITIVE, font)
    for place, (number, colour) in enumerate(classes.items()):
        x, y = GAP + place % a_line * LEGEND, line * (1 + place // a_line)
        draw.rectangle((x, y + 4, x + 12, y + 16), colour)
        draw.text((x + 17, y + 2), str(number), INK, font)

    for number, row in enumerate(rows):
        top = head + number * (line + height + GAP)
        draw.text((GAP, top + 1), f"{row.name}   dice {row.dice:.4f}", INK, font)
        image = to_rgb(row.image)
        for column, panel in enumerate(
            (image, _panel(row.truth), _panel(row.prediction), _error_panel(row, image))
        ):
            picture = Image.fromarray(panel).resize((width, height), Image.Resampling.BOX)  # enlarges in squares
            x, y = GAP + column * (width + GAP), top + line
            sheet.paste(picture, (x, y))
            draw.rectangle((x - 1, y - 1, x + width, y + height), outline=FRAME)  # for masks as white as the paper
    sheet.save(path)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Float (C, H, W) to uint8 (H, W, 3), whatever normalisation made of it: its range becomes 0 to 255.

    One or two channels are shown in gray, and of more than three the first three.
    """
    image = np.repeat(image[:1], 3, axis=0) if len(image) < 3 else image[:3]
    lowest, largest = image.min(), image.max()
    return ((image - lowest) / max(largest - lowest, 1e-6) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def _error_panel(row: Picture, image: np.ndarray) -> np.ndarray:
    """The image, pale and gray, with the wrong pixels in colour."""
    values, palette = _errors(row)
    panel = np.repeat(image.mean(axis=2, keepdims=True) * 0.4 + 140, 3, axis=2).astype(np.uint8)
    panel[values > 0] = palette[values[values > 0]]
    return panel
