"""What a model predicts, to look at: masks, overlays, the grid of an epoch and the page saved_images/index.html."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

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
GAP = 8  # pixels between panels
ROWS = 64  # that are scaled at a time, shared by classes
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
    probability = np.empty(size, np.uint16)
    for rows, scaled in _scaled_rows(logits, size):
        shares = scaled.sigmoid() if len(scaled) == 1 else scaled.softmax(0)
        share = 1 - shares[0] if foreground and len(scaled) > 1 else shares.amax(0)
        probability[rows] = (65535 * share).round()
    return probability


def _scaled_rows(logits: np.ndarray, size: Size) -> Iterator[tuple[slice, torch.Tensor]]:
    """Some rows at a time, and logits (C, rows, width) there: at full size, those of a large image would take four
    times its memory for each class."""
    height, width = size
    source = torch.from_numpy(logits.reshape(-1, *logits.shape[-2:]))
    step = max(4, ROWS // len(source))
    if source.shape[1:] == size:
        yield from ((slice(top, top + step), source[:, top : top + step].float()) for top in range(0, height, step))
        return
    wide = F.interpolate(source[None], (source.shape[1], width), mode="bilinear", align_corners=False)[0]
    centres = ((torch.arange(height) + 0.5) * source.shape[1] / height - 0.5).clamp(0, source.shape[1] - 1)
    above = centres.long()
    below = (above + 1).clamp(max=source.shape[1] - 1)
    weight = (centres - above)[:, None]
    for rows in (slice(top, top + step) for top in range(0, height, step)):
        yield rows, torch.lerp(wide[:, above[rows]], wide[:, below[rows]], weight[rows])


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Write a boolean (H, W) mask as a PNG in {0, 255}, and one of classes, uint8, as a PNG whose values are their
    numbers, with PALETTE."""
    if mask.dtype == bool:
        image = Image.fromarray(_black_and_white(mask))
    else:
        image = Image.fromarray(mask)
        image.putpalette(PALETTE.tobytes())
    with whole_file(path) as part:
        image.save(part, "PNG", compress_level=1)  # half the time of the default


def save_probability(probability: np.ndarray, path: Path) -> None:
    """Write a probability, uint16 (H, W), as a gray PNG of 16 bits."""
    with whole_file(path) as part:
        Image.fromarray(probability).save(part, "PNG", compress_level=1)


def save_cutout(image: np.ndarray, probability: np.ndarray, path: Path) -> None:
    """Write an image, uint8 (H, W, 3), as a PNG that is as opaque as the probability, uint16 (H, W), is high."""
    alpha = (probability // 257).astype(np.uint8)
    cutout = np.dstack((image, alpha))
    cutout[alpha == 0] = 0  # what can't be seen needs no room
    with whole_file(path) as part:
        Image.fromarray(cutout).save(part, "PNG", compress_level=1)


def draw_overlay(image: np.ndarray, mask: np.ndarray, path: Path) -> None:
    """Write a image, uint8 (H, W, 3), as a JPEG with the boundary of its (H, W) mask and a faint fill: of a boolean
    one in a colour that stands out from the image, of classes, uint8, in each one's colour, with a legend below."""
    width = max(1, round(max(mask.shape) / 300))  # pixels
    square = np.ones((width + 1, width + 1), np.uint8)
    numbers = mask.astype(np.uint8)
    highest = cv2.dilate(numbers, square)
    line = highest != cv2.erode(numbers, square)
    colours, share = PALETTE, 0.35
    if mask.dtype == bool and line.any():
        colours, share = np.array([INK, _standing_out(image[line])], np.uint8), 0.2
    drawn, filled = image.copy(), numbers > 0
    drawn[filled] = (1 - share) * image[filled] + share * colours[numbers[filled]]
    drawn[line] = colours[highest[line]]
    if mask.dtype != bool and filled.any():
        classes = {number: _css(number) for number in np.unique(mask[filled]).tolist()}
        drawn = np.vstack((drawn, _legend(classes, mask.shape[1], max(15, max(mask.shape) // 60))))
    with whole_file(path) as part:
        Image.fromarray(drawn).save(part, "JPEG", quality=90, subsampling=0)  # thin lines keep their colour


def _standing_out(pixels: np.ndarray) -> np.ndarray:
    """The one of the STRONG colours that is farthest, to the eye, from the mean of pixels, uint8 (N, 3)."""
    colours = np.vstack((STRONG, pixels.mean(0, keepdims=True))).astype(np.float32) / 255
    lab = cv2.cvtColor(colours[None], cv2.COLOR_RGB2LAB)[0]
    return STRONG[np.linalg.norm(lab[:-1] - lab[-1], axis=1).argmax()]


def save_errors(row: Prediction, path: Path) -> None:
    """Write the wrong pixels, in colour on a transparent ground, as a PNG."""
    values, palette = _errors(row)
    errors = Image.fromarray(values)
    errors.putpalette(palette.tobytes())
    errors.save(path, transparency=0)


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


def _black_and_white(mask: np.ndarray) -> np.ndarray:
    return mask.view(np.uint8) * np.uint8(255)


def _panel(mask: np.ndarray) -> np.ndarray:
    return _black_and_white(mask) if mask.dtype == bool else PALETTE[mask]


def classes_in(rows: list[Prediction]) -> dict[int, str]:
    """The classes in some target or prediction, and their colours as CSS has them; empty for boolean masks."""
    masks = [mask for row in rows for mask in (row.target, row.prediction) if mask.dtype != bool]
    found = sorted({number for mask in masks for number in np.unique(mask).tolist()} - {IGNORED})
    return {number: _css(number) for number in found}


def _css(number: int) -> str:
    return "#" + PALETTE[number].tobytes().hex()


def _legend(classes: dict[int, str], width: int, size: int = 15) -> np.ndarray:
    """The numbers of classes beside their colours, uint8 (H, width, 3), in as many lines as it takes."""
    cell, line = round(3.5 * size), round(1.5 * size)  # pixels
    a_line = max(1, (width - GAP) // cell)
    legend = Image.new("RGB", (width, line * math.ceil(len(classes) / a_line)), PAPER)
    draw, font = ImageDraw.Draw(legend), ImageFont.load_default(size)
    for place, (number, colour) in enumerate(classes.items()):
        x, y = GAP + place % a_line * cell, place // a_line * line + size // 4
        draw.rectangle((x, y, x + 0.8 * size, y + 0.8 * size), colour)
        draw.text((x + 1.1 * size, y + 0.4 * size), str(number), INK, font, anchor="lm")
    return np.asarray(legend)


def draw_grid(rows: list[Prediction], path: Path) -> None:
    """Write a PNG with a row for each image: image, target, prediction, errors; above them name and Dice."""
    height, width = rows[0].target.shape
    scale = min(max(1, SMALLEST_PANEL / width), LARGEST_PANEL / width)
    height, width = round(height * scale), round(width * scale)
    font = ImageFont.load_default(size=15)
    line = 22  # pixels of height for a line of writing

    columns = ["image", "target", "prediction", "errors"]
    grid_width = len(columns) * (width + GAP) + GAP
    classes = classes_in(rows)
    legend = _legend(classes, grid_width) if classes else np.empty((0, grid_width, 3))
    head = line + len(legend)
    grid = Image.new("RGB", (grid_width, head + len(rows) * (line + height + GAP)), PAPER)
    draw = ImageDraw.Draw(grid)
    for column, title in enumerate(columns):
        draw.text((GAP + column * (width + GAP), 2), title, INK, font)
    # The legend is the heading of the last column; of several classes it has lines of its own.
    x = grid.width - GAP - width + draw.textlength("errors: ", font)
    if classes:
        draw.text((x, 2), "colour of the true class", INK, font)
        grid.paste(Image.fromarray(legend), (0, line))
    else:
        draw.text((x, 2), "missed", FALSE_NEGATIVE, font)
        draw.text((x + draw.textlength("missed ", font), 2), "too much", FALSE_POSITIVE, font)

    for number, row in enumerate(rows):
        top = head + number * (line + height + GAP)
        draw.text((GAP, top + 1), f"{row.name}   dice {row.dice:.4f}", INK, font)
        image = to_rgb(row.image)
        for column, panel in enumerate(
            (image, _panel(row.target), _panel(row.prediction), _error_panel(row, image))
        ):
            cell = Image.fromarray(panel).resize((width, height), Image.Resampling.BOX)  # enlarges in squares
            x, y = GAP + column * (width + GAP), top + line
            grid.paste(cell, (x, y))
            draw.rectangle((x - 1, y - 1, x + width, y + height), outline=FRAME)  # for masks as white as the paper
    grid.save(path)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Float (C, H, W) to uint8 (H, W, 3), whatever normalisation made of it: its range becomes 0 to 255.

    One or two channels are shown in gray, and of more than three the first three.
    """
    image = np.repeat(image[:1], 3, axis=0) if len(image) < 3 else image[:3]
    lowest, largest = image.min(), image.max()
    return ((image - lowest) / max(largest - lowest, 1e-6) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def _error_panel(row: Prediction, image: np.ndarray) -> np.ndarray:
    """The image, pale and gray, with the wrong pixels in colour."""
    values, palette = _errors(row)
    panel = np.repeat(image.mean(axis=2, keepdims=True) * 0.4 + 140, 3, axis=2).astype(np.uint8)
    panel[values > 0] = palette[values[values > 0]]
    return panel


def update_page(folder: Path, epoch: int, rows: list[Prediction]) -> None:
    """Add an epoch's rows, sorted the worst first, to `folder`/index.html.

    `folder`/epoch_NNN/ holds their NAME_pred.png already; beside these go NAME_errors.png and scores.json, from
    which the page is made anew each time. Epochs later than this one, from a run that has gone back to an earlier
    checkpoint, are left out.
    """
    if not rows:
        return
    originals = folder / "images"
    originals.mkdir(exist_ok=True)
    for row in rows:
        Image.fromarray(to_rgb(row.image)).save(originals / f"{row.name}.jpg", quality=90)
        save_mask(row.target, originals / f"{row.name}_target.png")
        save_errors(row, folder / f"epoch_{epoch:03d}" / f"{row.name}_errors.png")
    scores = json.dumps({row.name: round(row.dice, 6) for row in rows}, indent=1)
    (folder / f"epoch_{epoch:03d}" / "scores.json").write_text(scores, encoding="utf-8")

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
