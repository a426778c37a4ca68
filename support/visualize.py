"""What a model predicts, to look at: masks, overlays, the grid of an epoch and the page saved_images/index.html."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from support.files import whole_file
from support.reading import IGNORED, Size

# Okabe and Ito's palette, which colour-blind people can tell apart: https://jfly.uni-koeln.de/color/
FALSE_POSITIVE = (230, 159, 0)
FALSE_NEGATIVE = (86, 180, 233)
# Of the boundary in an overlay: the one that stands out.
STRONG = np.array([(255, 0, 255), (0, 255, 255), (255, 255, 0), (0, 255, 0), (255, 64, 0), (30, 80, 255)], np.uint8)
# Of classes from 1 up, and then again: that palette, and what is farthest from all before it to the eye, with and
# without red-green blindness. Class 0 is black and what is ignored gray.
COLOURS = [
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (0, 0, 255), (51, 102, 255), (255, 255, 204), (0, 255, 255), (153, 0, 51), (153, 204, 102), (153, 102, 51),
    (153, 0, 102), (153, 0, 204), (102, 153, 255), (255, 204, 204), (153, 0, 0), (153, 204, 153),
]  # fmt: skip
PALETTE = np.array([(0, 0, 0), *(COLOURS[k % len(COLOURS)] for k in range(IGNORED - 1)), (128, 128, 128)], np.uint8)
TEMPLATE = Path(__file__).with_name("page.html")
INK, PAPER = (32, 32, 32), (235, 235, 235)
ROWS = 64  # that are scaled at a time
GAP, SMALLEST_PANEL, LARGEST_PANEL = 4, 240, 480  # pixels: around a panel, and of its width


class Prediction(NamedTuple):
    """What a model makes of an image (C, H, W), two masks (H, W), and their Dice. The masks are boolean, or
    of several classes uint8 with their numbers and, in the target, IGNORED."""

    name: str
    image: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    dice: float


def scale_to_mask(logits: np.ndarray, size: Size, threshold: float = 0.0) -> np.ndarray:
    """The mask of (height, width) in which logits, float32 (h, w), exceed `threshold` when they are scaled to it:
    boolean. Of several classes' logits, (C, h, w), it is the number of the highest: uint8."""
    mask = np.empty(size, bool if logits.ndim == 2 else np.uint8)
    for rows, scaled in _scaled_rows(logits, size):
        mask[rows] = scaled[0] > threshold if logits.ndim == 2 else scaled.argmax(0)
    return mask


def scale_to_probability(logits: np.ndarray, size: Size, *, foreground: bool = False) -> np.ndarray:
    """The probability of the foreground, uint16 (H, W), where 65535 is 1, from logits that are scaled to `size`. Of
    several classes it is that of the predicted one or, for the `foreground`, of all but the background."""
    written = np.empty(size, np.uint16)
    for rows, scaled in _scaled_rows(logits, size):
        scaled = torch.from_numpy(scaled)
        by_class = scaled.sigmoid() if len(scaled) == 1 else scaled.softmax(0)
        probability = 1 - by_class[0] if foreground and len(scaled) > 1 else by_class.amax(0)
        written[rows] = (65535 * probability).round()
    return written


def _scaled_rows(logits: np.ndarray, size: Size) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows of `size` at a time, and logits (C, rows, width) there, scaled bilinearly: at full size, those of a
    large image would take four times its memory for each class."""
    logits = logits.reshape(-1, *logits.shape[-2:])
    (height, width), (h, w) = size, logits.shape[1:]
    planes = [Image.fromarray(plane) for plane in logits] if (h, w) != size else []
    for top in range(0, height, ROWS):
        bottom = min(top + ROWS, height)
        box = (0, top * h / height, w, bottom * h / height)  # which may cut through pixels
        scaled = [plane.resize((width, bottom - top), Image.Resampling.BILINEAR, box) for plane in planes]
        yield slice(top, bottom), np.stack(scaled) if scaled else logits[:, top:bottom]


def save_image(image: np.ndarray | Image.Image, path: Path) -> None:
    """Write a JPEG or a PNG, as the path ends, that is whole or not there. A boolean array becomes 0 and 255."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image.view(np.uint8) * np.uint8(255) if image.dtype == bool else image)
    with whole_file(path) as part:
        if path.suffix == ".jpg":
            image.save(part, "JPEG", quality=90, subsampling=0)  # thin lines keep their colour
        else:
            image.save(part, "PNG", compress_level=1)  # half the time of the default


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a boolean (H, W) mask as a PNG in {0, 255}, and one of classes, uint8, as a PNG whose values are their
    numbers, with PALETTE."""
    image = mask
    if mask.dtype != bool:
        image = Image.fromarray(mask)
        image.putpalette(PALETTE.tobytes())
    save_image(image, path)


def draw_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The `overlay` of an image, with a legend of its classes below."""
    drawn = overlay(image, mask)
    if mask.dtype == bool or not mask.any():
        return drawn
    labels = {str(number): css(PALETTE[number]) for number in np.unique(mask[mask > 0])}
    return np.vstack((drawn, _legend(labels, mask.shape[1], max(15, max(mask.shape) // 60))))


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image, uint8 (H, W, 3), with the boundary of its (H, W) mask and a faint fill: of a boolean one in a
    colour that stands out from the image, of classes, uint8, in each one's colour."""
    width = max(1, round(max(mask.shape) / 300))  # pixels
    square = np.ones((width + 1, width + 1), np.uint8)
    numbers = mask.astype(np.uint8)
    highest = cv2.dilate(numbers, square)
    line = highest != cv2.erode(numbers, square)
    colours, opacity = PALETTE, 0.35
    if mask.dtype == bool and line.any():
        farthest = np.abs(STRONG - image[line].mean(0)).sum(1).argmax()
        colours, opacity = np.array([INK, STRONG[farthest]], np.uint8), 0.2
    drawn, filled = image.copy(), numbers > 0
    drawn[filled] = (1 - opacity) * image[filled] + opacity * colours[numbers[filled]]
    drawn[line] = colours[highest[line]]
    return drawn


def errors(row: Prediction) -> np.ndarray:
    """The wrong pixels on a transparent ground, uint8 (H, W, 4), each in the colour of what it truly is."""
    colours = np.array([FALSE_POSITIVE, FALSE_NEGATIVE], np.uint8) if row.target.dtype == bool else PALETTE
    wrong = (row.target != row.prediction) & (row.target != IGNORED)
    return np.dstack((colours[row.target.astype(int)], wrong * np.uint8(255))) * wrong[..., None]


def legend_of(rows: list[Prediction]) -> dict[str, str]:
    """Names and colours, as CSS has them: of the errors, or of the classes in some target or prediction."""
    if rows[0].target.dtype == bool:
        return {"missed": css(FALSE_NEGATIVE), "too much": css(FALSE_POSITIVE)}
    numbers = {number for row in rows for mask in row[2:4] for number in np.unique(mask).tolist()} - {IGNORED}
    return {str(number): css(PALETTE[number]) for number in sorted(numbers)}


def css(colour: tuple[int, int, int] | np.ndarray) -> str:
    """A colour as CSS and Pillow have it."""
    return "#" + bytes(colour).hex()


def _legend(labels: dict[str, str], width: int, size: int = 15) -> np.ndarray:
    """Labels beside their colours, uint8 (H, width, 3), in as many lines as it takes."""
    font = ImageFont.load_default(size)
    cell = round(max(map(font.getlength, labels)) + 2 * size)
    columns = max(1, width // cell)
    legend = Image.new("RGB", (width, 2 * size * math.ceil(len(labels) / columns)), PAPER)
    draw = ImageDraw.Draw(legend)
    for place, (label, colour) in enumerate(labels.items()):
        x, y = place % columns * cell, (2 * (place // columns) + 1) * size
        draw.rectangle((x + size // 2, y - size // 3, x + size, y + size // 3), colour)
        draw.text((x + 1.3 * size, y), label, INK, font, anchor="lm")
    return np.asarray(legend)


def draw_grid(rows: list[Prediction], path: Path) -> Image.Image:
    """Write and return a PNG with a row for each image: image, target, prediction, errors, under name and Dice."""
    height, width = rows[0].target.shape
    scale = np.clip(1, SMALLEST_PANEL / width, LARGEST_PANEL / width)
    size = round(width * scale), round(height * scale)
    each = size[0] + 2 * GAP
    titles = ("image", "target", "prediction", "errors" + ": the true class" * (rows[0].target.dtype != bool))
    parts = [np.hstack([_text(title, each) for title in titles]), _legend(legend_of(rows), 4 * each)]
    for row in rows:
        panels = [Image.fromarray(panel).resize(size, Image.Resampling.BOX) for panel in _panels(row)]
        parts.append(_text(f"{row.name}   dice {row.dice:.4f}", 4 * each))
        parts.append(np.hstack([ImageOps.expand(panel, GAP, PAPER) for panel in panels]))
    grid = Image.fromarray(np.vstack(parts))
    save_image(grid, path)
    return grid


def _text(line: str, width: int) -> np.ndarray:
    image = Image.new("RGB", (width, 22), PAPER)
    ImageDraw.Draw(image).text((GAP, 2), line, INK, ImageFont.load_default(15))
    return np.asarray(image)


def _panels(row: Prediction) -> list[np.ndarray]:
    """Image, target, prediction, and the image, pale and gray, with the wrong pixels in colour: uint8 (H, W, 3)."""
    image, wrong = to_rgb(row.image), errors(row)
    colours = np.array([(0, 0, 0), (255, 255, 255)], np.uint8) if row.target.dtype == bool else PALETTE
    pale = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 0.4 + 140).astype(np.uint8)
    masks = [colours[mask.astype(int)] for mask in row[2:4]]
    return [image, *masks, np.where(wrong[..., 3:], wrong[..., :3], pale)]


def to_rgb(image: np.ndarray) -> np.ndarray:
    """An image (C, H, W) as uint8 (H, W, 3): of one that a transform has normalized, the range becomes 0 to 255.

    One or two channels are shown in gray, and of more than three the first three.
    """
    image = np.repeat(image[:1], 3, axis=0) if len(image) < 3 else image[:3]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image.transpose(1, 2, 0))
    lowest, largest = image.min(), image.max()
    return ((image - lowest) / max(largest - lowest, 1e-6) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def update_page(folder: Path, epoch: int, rows: list[Prediction]) -> None:
    """Add an epoch's rows, sorted the worst first, to `folder`/index.html, which is made anew from scores.json in
    each `folder`/epoch_NNN/. Beside it go NAME_errors.png and, already there, NAME_pred.png.

    Epochs later than this one, from a run that has gone back to an earlier checkpoint, are left out.
    """
    if not rows:
        return
    originals, epoch_dir = folder / "images", folder / f"epoch_{epoch:03d}"
    originals.mkdir(exist_ok=True)
    for row in rows:
        save_image(errors(row), epoch_dir / f"{row.name}_errors.png")
        save_image(to_rgb(row.image), originals / f"{row.name}.jpg")
        save_mask(row.target, originals / f"{row.name}_target.png")
    scores = {row.name: round(row.dice, 6) for row in rows}
    (epoch_dir / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")

    epochs = {}
    for path in sorted(folder.glob("epoch_*/scores.json")):
        if (number := int(path.parent.name.removeprefix("epoch_"))) <= epoch:
            epochs[number] = list(json.loads(path.read_text(encoding="utf-8")).items())
    height, width = rows[0].target.shape
    run = {"height": height, "width": width, "legend": legend_of(rows), "epochs": epochs}
    data = json.dumps(run).replace("<", r"\u003c")  # no </script>
    with whole_file(folder / "index.html") as part:
        part.write_text(TEMPLATE.read_text(encoding="utf-8").replace("RUN", data, 1), encoding="utf-8")
