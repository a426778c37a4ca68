"""What a model predicts, to look at: masks, overlays, the grid of an epoch and the page saved_images/index.html."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
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
INK, PAPER, FRAME = (32, 32, 32), (255, 255, 255), (200, 200, 200)
GAP, LINE = 8, 22  # pixels between panels, and of height for a line of writing
ROWS = 64  # that are scaled at a time, divided among classes
SMALLEST_PANEL, LARGEST_PANEL = 240, 480  # pixels of width; other images are shown enlarged or reduced


class Prediction(NamedTuple):
    """What a model makes of an image: float (C, H, W), two masks (H, W), and their Dice. The masks are boolean, or
    of several classes uint8 with their numbers and, in the target, IGNORED."""

    name: str
    image: np.ndarray
    target: np.ndarray
    prediction: np.ndarray
    dice: float


def scale_to_mask(logits: np.ndarray, size: Size, threshold: float = 0.0) -> np.ndarray:
    """The mask of (height, width) in which logits, float32 (h, w), exceed `threshold` when they are scaled to it as
    `F.interpolate` does: boolean. Of several classes' logits, (C, h, w), it is the number of the highest: uint8."""
    mask = torch.empty(size, dtype=torch.bool if logits.ndim == 2 else torch.uint8)
    for rows, scaled in _scaled_rows(logits, size):
        mask[rows] = scaled[0] > threshold if len(scaled) == 1 else scaled.argmax(0).byte()
    return mask.numpy()


def scale_to_probability(logits: np.ndarray, size: Size, *, foreground: bool = False) -> np.ndarray:
    """The probability of the foreground, uint16 (H, W), where 65535 is 1, from logits that are scaled to `size`. Of
    several classes it is that of the predicted one or, for the `foreground`, of all but the background."""
    written = np.empty(size, np.uint16)
    for rows, scaled in _scaled_rows(logits, size):
        by_class = scaled.sigmoid() if len(scaled) == 1 else scaled.softmax(0)
        probability = 1 - by_class[0] if foreground and len(scaled) > 1 else by_class.amax(0)
        written[rows] = (65535 * probability).round()
    return written


def _scaled_rows(logits: np.ndarray, size: Size) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some rows at a time, and logits (C, rows, width) there: at full size, those of a large image would take four
    times its memory for each class."""
    height, width = size
    wide = torch.from_numpy(logits.reshape(-1, *logits.shape[-2:]))
    if wide.shape[2] != width:
        wide = F.interpolate(wide[None], (wide.shape[1], width), mode="bilinear", align_corners=False)[0]
    last = wide.shape[1] - 1
    centres = ((torch.arange(height) + 0.5) * wide.shape[1] / height - 0.5).clamp(0, last)
    above = centres.long()
    below, weight = (above + 1).clamp(max=last), (centres - above)[:, None]
    step = max(4, ROWS // len(wide))
    for rows in (slice(top, top + step) for top in range(0, height, step)):
        yield rows, torch.lerp(wide[:, above[rows]].float(), wide[:, below[rows]].float(), weight[rows])


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a boolean (H, W) mask as a PNG in {0, 255}, and one of classes, uint8, as a PNG whose values are their
    numbers, with PALETTE."""
    _save(mask.view(np.uint8) * np.uint8(255) if mask.dtype == bool else _indexed(mask, PALETTE), path)


def save_probability(probability: np.ndarray, path: Path) -> None:
    """Write a probability, uint16 (H, W), as a gray PNG of 16 bits."""
    _save(probability, path)


def save_cutout(image: np.ndarray, probability: np.ndarray, path: Path) -> None:
    """Write an image, uint8 (H, W, 3), as a PNG that is as opaque as the probability, uint16 (H, W), is high."""
    alpha = (probability // 257).astype(np.uint8)
    cutout = np.dstack((image, alpha))
    cutout[alpha == 0] = 0  # what can't be seen needs no room
    _save(cutout, path)


def save_errors(row: Prediction, path: Path) -> None:
    """Write the wrong pixels, in colour on a transparent ground, as a PNG."""
    _save(_indexed(*_errors(row)), path, transparency=0)


def _save(image: np.ndarray | Image.Image, path: Path, **options: Any) -> None:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    with whole_file(path) as part:
        if path.suffix == ".jpg":
            image.save(part, "JPEG", quality=90, **options)
        else:
            image.save(part, "PNG", compress_level=1, **options)  # half the time of the default


def _indexed(values: np.ndarray, palette: np.ndarray) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette(palette.tobytes())
    return image


def draw_overlay(image: np.ndarray, mask: np.ndarray, path: Path) -> None:
    """Write the `overlay` of an image as a JPEG, with a legend of its classes below."""
    drawn = overlay(image, mask)
    if mask.dtype != bool and mask.any():
        labels = {str(number): _css(number) for number in np.unique(mask[mask > 0]).tolist()}
        drawn = np.vstack((drawn, _legend(labels, mask.shape[1], max(15, max(mask.shape) // 60))))
    _save(drawn, path, subsampling=0)  # thin lines keep their colour


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
        colours, opacity = np.array([INK, _standing_out(image[line])], np.uint8), 0.2
    drawn, filled = image.copy(), numbers > 0
    drawn[filled] = (1 - opacity) * image[filled] + opacity * colours[numbers[filled]]
    drawn[line] = colours[highest[line]]
    return drawn


def _standing_out(pixels: np.ndarray) -> np.ndarray:
    """The one of the STRONG colours that is farthest, to the eye, from the mean of pixels, uint8 (N, 3)."""
    colours = np.vstack((STRONG, pixels.mean(0, keepdims=True))).astype(np.float32) / 255
    lab = cv2.cvtColor(colours[None], cv2.COLOR_RGB2LAB)[0]
    return STRONG[np.linalg.norm(lab[:-1] - lab[-1], axis=1).argmax()]


def _errors(row: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """The wrong pixels by their colours' places in a palette, uint8 (H, W), and that palette. Those at 0 are right.

    Of several classes, a wrong pixel has the colour of its true class.
    """
    if row.target.dtype == bool:
        missed, too_much = row.target & ~row.prediction, row.prediction & ~row.target
        palette = np.array([PAPER, FALSE_NEGATIVE, FALSE_POSITIVE], np.uint8)
        return missed.astype(np.uint8) + 2 * too_much.astype(np.uint8), palette
    wrong = (row.target != row.prediction) & (row.target != IGNORED)
    return np.where(wrong, row.target + 1, 0).astype(np.uint8), np.roll(PALETTE, 1, axis=0)


def classes_in(rows: list[Prediction]) -> dict[int, str]:
    """The classes in some target or prediction, and their colours as CSS has them; empty for boolean masks."""
    masks = [mask for row in rows for mask in (row.target, row.prediction) if mask.dtype != bool]
    found = sorted({number for mask in masks for number in np.unique(mask).tolist()} - {IGNORED})
    return {number: _css(number) for number in found}


def _css(number: int) -> str:
    return "#" + PALETTE[number].tobytes().hex()


def _legend(labels: dict[str, Any], width: int, size: int = 15) -> np.ndarray:
    """Labels beside their colours, uint8 (H, width, 3), in as many lines as it takes."""
    font = ImageFont.load_default(size)
    cell, line = round(max(map(font.getlength, labels)) + 1.8 * size), round(1.5 * size)  # pixels
    a_line = max(1, (width - GAP) // cell)
    legend = Image.new("RGB", (width, line * math.ceil(len(labels) / a_line)), PAPER)
    draw = ImageDraw.Draw(legend)
    for place, (label, colour) in enumerate(labels.items()):
        x, y = GAP + place % a_line * cell, place // a_line * line + size // 4
        draw.rectangle((x, y, x + 0.8 * size, y + 0.8 * size), colour)
        draw.text((x + 1.1 * size, y + 0.4 * size), label, INK, font, anchor="lm")
    return np.asarray(legend)


def draw_grid(rows: list[Prediction], path: Path) -> Image.Image:
    """Write and return a PNG with a row for each image: image, target, prediction, errors, under name and Dice."""
    height, width = rows[0].target.shape
    scale = np.clip(1, SMALLEST_PANEL / width, LARGEST_PANEL / width)
    size = width, height = round(width * scale), round(height * scale)
    classes, font = classes_in(rows), ImageFont.load_default(15)
    titles = ["image", "target", "prediction", "errors" + " (colour of the true class)" * bool(classes)]
    labels = {str(number): colour for number, colour in classes.items()}
    lefts = [GAP + column * (width + GAP) for column in range(len(titles))]
    legend = _legend(labels or {"missed": FALSE_NEGATIVE, "too much": FALSE_POSITIVE}, lefts[-1] + width + GAP)
    top = LINE + len(legend)
    grid = Image.new("RGB", (legend.shape[1], top + len(rows) * (LINE + height + GAP)), PAPER)
    grid.paste(Image.fromarray(legend), (0, LINE))
    draw = ImageDraw.Draw(grid)
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, 2), title, INK, font)
    for row in rows:
        draw.text((GAP, top + 1), f"{row.name}   dice {row.dice:.4f}", INK, font)
        for left, panel in zip(lefts, _panels(row), strict=True):
            cell = Image.fromarray(panel).resize(size, Image.Resampling.BOX)  # enlarges in squares
            cell = ImageOps.expand(cell.convert("RGB"), 1, FRAME)  # for masks as white as the paper
            grid.paste(cell, (left - 1, top + LINE - 1))
        top += LINE + height + GAP
    _save(grid, path)
    return grid


def _panels(row: Prediction) -> list[np.ndarray]:
    """Image, target, prediction, and the image, pale and gray, with the wrong pixels in colour: uint8."""
    image, (values, palette) = to_rgb(row.image), _errors(row)
    masks = [mask.view(np.uint8) * 255 if mask.dtype == bool else PALETTE[mask] for mask in row[2:4]]
    errors = np.dstack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) * 0.4 + 140] * 3).astype(np.uint8)
    errors[values > 0] = palette[values[values > 0]]
    return [image, *masks, errors]


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Float (C, H, W) to uint8 (H, W, 3), whatever normalisation made of it: its range becomes 0 to 255.

    One or two channels are shown in gray, and of more than three the first three.
    """
    image = np.repeat(image[:1], 3, axis=0) if len(image) < 3 else image[:3]
    lowest, largest = image.min(), image.max()
    return ((image - lowest) / max(largest - lowest, 1e-6) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def update_page(folder: Path, epoch: int, rows: list[Prediction], drawn: set[str]) -> None:
    """Add an epoch's rows, sorted the worst first, to `folder`/index.html, which is made anew from scores.json in
    each `folder`/epoch_NNN/. Beside it go NAME_errors.png and, already there, NAME_pred.png.

    `drawn` holds the names of images that this process has written before, with their targets. Epochs later than
    this one, from a run that has gone back to an earlier checkpoint, are left out.
    """
    if not rows:
        return
    originals, epoch_dir = folder / "images", folder / f"epoch_{epoch:03d}"
    originals.mkdir(exist_ok=True)
    for row in rows:
        save_errors(row, epoch_dir / f"{row.name}_errors.png")
        if row.name not in drawn:
            _save(to_rgb(row.image), originals / f"{row.name}.jpg")
            save_mask(row.target, originals / f"{row.name}_target.png")
            drawn.add(row.name)
    scores = {row.name: round(row.dice, 6) for row in rows}
    (epoch_dir / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")

    files = {int(path.parent.name.removeprefix("epoch_")): path for path in folder.glob("epoch_*/scores.json")}
    epochs = {
        number: list(json.loads(path.read_text(encoding="utf-8")).items())
        for number, path in sorted(files.items())
        if number <= epoch
    }
    height, width = rows[0].target.shape
    run = {"height": height, "width": width, "epochs": epochs}
    if classes := classes_in(rows):
        run["classes"] = classes
    data = json.dumps(run).replace("<", r"\u003c")  # no </script>
    with whole_file(folder / "index.html") as part:
        part.write_text(TEMPLATE.read_text(encoding="utf-8").replace("RUN", data, 1), encoding="utf-8")
